"""Whether a raster that is given as a scene holds an image, as far as its header tells."""

from __future__ import annotations

import re

from geolabel.errors import SceneError
from geolabel.io.read.headers import Header

PRODUCT = "GEOLABEL_PRODUCT"
"""Tag of the rasters that geolabel writes and that are no images: scores, masks, labels, heights."""

_HEIGHTS = re.compile(r"\b(dem|dsm|dtm|dhm|chm|ndsm|elevations?|heights?|altitudes?)\b")

_LENGTHS = ("m", "metre", "metres", "meter", "meters", "ft", "feet", "foot", "us survey foot")


def product_of(header: Header) -> str | None:
    """What of geolabel's own a raster is, if it is no image."""
    return {key.upper(): value for key, value in header.tags.items()}.get(PRODUCT)


def check_image(header: Header) -> None:
    """Refuse what is certainly no image.

    Raises
    ------
    SceneError
        If a raster is a product of geolabel, or its one band says that it holds heights.
    """
    product = product_of(header)
    if product is not None:
        way = "" if product == "heights" else "; geolabel polygonize makes polygons of it"
        raise SceneError(f"{header.name} is a raster of geolabel's own ({product}), not an image{way}")
    if header.count != 1:
        return
    name, unit = (header.descriptions[0] or "").lower(), (header.units[0] or "").lower() if header.units else ""
    if _HEIGHTS.search(re.sub(r"[_\W]+", " ", name)) or unit in _LENGTHS:
        said = f"its band is described as {header.descriptions[0]!r}" if header.descriptions[0] else f"in {unit}"
        raise SceneError(
            f"{header.name} holds heights, {said}: landslides are found in images of three colours or of grey; give one"
        )


def doubts(header: Header, bands: tuple[int, int, int]) -> tuple[str, ...]:
    """What is unusual of the bands that serve as an image."""
    dtype = header.dtypes[bands[0] - 1]
    if len(set(bands)) > 1 or header.count > 1 or dtype.startswith(("uint", "bool")):
        return ()
    text = (
        f"one band of {dtype} serves as red, green and blue: if it holds heights or an index, the result means nothing"
    )
    return (text,)

"""Headers of rasters: bands, nodata, georeference, date, and checks of these."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Any

import pyproj
import rasterio
from affine import Affine
from rasterio.errors import CRSError

from geolabel.bands import is_alpha
from geolabel.errors import SceneError
from geolabel.io.error_messages import in_words
from geolabel.scene import Grid

DATE_TAGS = (
    "EVENT_DATE",
    "ACQUISITIONDATETIME",
    "ACQUISITION_DATETIME",
    "ACQUISITION_DATE",
    "ACQUISITION_TIME",
    "ACQUISITIONDATE",
    "ACQUIRED",
    "DATE_ACQUIRED",
    "SENSING_TIME",
    "SENSING_DATE",
    "PRODUCT_START_TIME",
    "DATATAKE_1_DATATAKE_SENSING_START",
    "FIRSTLINETIME",
    "START_DATETIME",
    "NITF_IDATIM",
    "EXIF_DATETIMEORIGINAL",
)
"""Tags with the acquisition time, the most specific first; case-insensitive.

TIFFTAG_DATETIME, EXIF_DateTime, NITF_FDT and the like are excluded: programs set these when they save a file.
"""


SHOWN_TIMES = 6
"""Maximum number of times listed in an error message."""

MAX_PRJ_BYTES = 1 << 16
"""Maximum size of a ``.prj``."""


@dataclass(frozen=True)
class Header:
    """Header of a raster."""

    name: str
    height: int
    width: int
    crs: pyproj.CRS | None
    transform: Affine | None
    """None if the raster has none."""
    dtypes: tuple[str, ...]
    nodata: tuple[float | None, ...]
    """Per band."""
    descriptions: tuple[str | None, ...]
    colours: tuple[str, ...]
    """Colour interpretation per band, lower case; ``undefined`` if there is none."""
    masked: tuple[bool, ...]
    """Whether a band has a mask, inside the file or beside it."""
    scaling: tuple[tuple[float, float], ...] = ()
    """Scale and offset per band from stored to physical values; empty for an array."""
    approximate: str | None = None
    """How the raster is georeferenced if not by a transform: ``ground control points`` or ``RPCs``."""
    tags: Mapping[str, str] = field(default_factory=dict)
    units: tuple[str | None, ...] = ()
    """Unit of each band, if known."""
    wavelengths: tuple[float | None, ...] = ()
    """Centre wavelength of each band in nanometres, if known."""
    size_bytes: int | None = None
    modified: str | None = None
    times: tuple[str | None, ...] = ()
    """ISO 8601 date and time of each band, if the file has them; empty for a raster without times."""
    stored: tuple[int, ...] = ()
    """One-based band numbers in the file, if the raster is a subset of its bands."""

    def only(self, numbers: Sequence[int]) -> Header:
        """The header for a subset of bands, given by one-based numbers."""
        per_band = ("dtypes", "nodata", "descriptions", "colours", "masked", "scaling", "units", "wavelengths", "times")
        chosen: dict[str, Any] = {
            name: tuple(values[number - 1] for number in numbers)
            for name in per_band
            if (values := getattr(self, name))
        }
        return replace(self, **chosen, stored=tuple(numbers))

    @property
    def count(self) -> int:
        """Number of bands."""
        return len(self.dtypes)

    @property
    def alpha(self) -> tuple[int, ...]:
        """One-based numbers of the alpha bands."""
        pairs = enumerate(zip(self.colours, self.descriptions, strict=True), 1)
        return tuple(i for i, (colour, name) in pairs if is_alpha(name, colour))

    @property
    def sensor(self) -> str:
        """Text that may name the sensor: the file name, and tags about sensor and spacecraft."""
        said = (
            value for key, value in self.tags.items() if re.search(r"sensor|spacecraft|satellite|platform", key, re.I)
        )
        return " ".join((re.split(r"[\\/]", self.name)[-1], *said))


def chosen_time(wanted: str, times: Sequence[str], name: str) -> str:
    """The one ISO 8601 time that starts with `wanted`.

    Raises
    ------
    SceneError
        If none or several do.
    """
    found = [time for time in times if time.startswith(wanted.strip().replace(" ", "T"))]
    if len(found) != 1:
        some = ", ".join(times[:SHOWN_TIMES]) + (
            f" and {len(times) - SHOWN_TIMES} more" if len(times) > SHOWN_TIMES else ""
        )
        many = f"{len(found)} of its times start" if found else "none of its times starts"
        raise SceneError(f"time {wanted}: {name} has {some}; {many} with that: give one of them")
    return found[0]


def grid_of(header: Header, gsd: float | None) -> Grid:
    """Grid of a raster; `gsd` (metres per pixel) is for rasters without CRS.

    Raises
    ------
    SceneError
        If it is georeferenced by ground control points or RPCs, or has a CRS without a transform, or if `gsd` is
        missing without a CRS or given with one.
    """
    height, width = header.height, header.width
    if header.approximate:
        raise SceneError(
            f"{header.name} is georeferenced by {header.approximate}, not by a transform: "
            "rectify it first (gdalwarp IN OUT), then give the result"
        )
    if header.crs is None:
        if gsd is None:
            tool = "gdal_translate -a_srs EPSG:CODE IN OUT" if header.scaling else 'array.rio.write_crs("EPSG:CODE")'
            way = "" if header.transform is None else f", or its CRS ({tool})"
            raise SceneError(f"{header.name} has no CRS, so the size of its pixels is unknown: give --gsd METRES{way}")
        if header.transform is None:
            return Grid(None, Affine(1, 0, 0, 0, -1, 0), height, width, unit_m=gsd)
        side = math.sqrt(abs(header.transform.determinant))
        return Grid(None, header.transform, height, width, unit_m=gsd / side)
    if header.transform is None:
        raise SceneError(
            f"{header.name} has a CRS but no transform, so its position is unknown: georeference it first "
            f"(gdal_translate -a_ullr LEFT TOP RIGHT BOTTOM IN OUT)"
        )
    if gsd is not None:
        raise SceneError(f"{header.name} has a CRS, which gives the size of its pixels: leave out --gsd {gsd:g}")
    return Grid(header.crs, header.transform, height, width)


def event_date_of(header: Header) -> str | None:
    """The ISO 8601 acquisition date in the tags, or None."""
    tags = {key.upper(): value for key, value in header.tags.items()}
    for name in DATE_TAGS:
        match = re.match(r"(\d{4})[:/-]?(\d\d)[:/-]?(\d\d)(?=\D|$|\d{4,6}Z?$)", tags.get(name, "").strip())
        if match:
            try:
                return date(*map(int, match.groups())).isoformat()
            except ValueError:  # such as 0000:00:00, written by some cameras
                continue
    return None


def crs_beside(path: Path) -> pyproj.CRS | None:
    """The CRS in a ``.prj`` beside a raster, which GDAL ignores for GeoTIFFs and pictures; None without one.

    Raises
    ------
    SceneError
        If PROJ cannot parse it.
    """
    found = next((path.with_suffix(suffix) for suffix in (".prj", ".PRJ") if path.with_suffix(suffix).is_file()), None)
    if found is None or found.stat().st_size > MAX_PRJ_BYTES:
        return None
    try:
        return pyproj.CRS.from_user_input(found.read_text(encoding="utf-8", errors="replace").strip())
    except pyproj.exceptions.CRSError as cause:
        raise SceneError(
            f"PROJ cannot parse the CRS in {found}, which is beside {path.name}: correct or remove it"
        ) from cause


def to_pyproj(crs: rasterio.crs.CRS | None, name: str) -> pyproj.CRS | None:
    """The CRS of a named scene, converted from rasterio's; None if it has none.

    Raises
    ------
    SceneError
        If PROJ cannot parse it.
    """
    if not crs:
        return None
    try:
        return pyproj.CRS.from_wkt(crs.to_wkt())
    except (CRSError, pyproj.exceptions.CRSError) as cause:
        raise SceneError(f"{name}: PROJ cannot parse the CRS of the scene: {in_words(cause)}") from cause


# --- whether a raster is an image ------------------------------------------------------------------------------------


PRODUCT = "GEOLABEL_PRODUCT"
"""Tag of rasters written by geolabel that are not images: scores, masks, labels, heights."""

_HEIGHTS = re.compile(r"\b(dem|dsm|dtm|dhm|chm|ndsm|elevations?|heights?|altitudes?)\b")

_LENGTHS = ("m", "metre", "metres", "meter", "meters", "ft", "feet", "foot", "us survey foot")


def product_of(header: Header) -> str | None:
    """Kind of geolabel product that a raster is; None for an image."""
    return {key.upper(): value for key, value in header.tags.items()}.get(PRODUCT)


def check_image(header: Header) -> None:
    """Refuse a raster that is certainly not an image.

    Raises
    ------
    SceneError
        If it is a product of geolabel, or its single band is declared as heights.
    """
    product = product_of(header)
    if product is not None:
        way = "" if product == "heights" else "; geolabel polygonize converts it to polygons"
        raise SceneError(f"{header.name} was written by geolabel ({product}) and is not an image{way}")
    if header.count != 1:
        return
    name, unit = (header.descriptions[0] or "").lower(), (header.units[0] or "").lower() if header.units else ""
    if _HEIGHTS.search(re.sub(r"[_\W]+", " ", name)) or unit in _LENGTHS:
        said = f"its band is described as {header.descriptions[0]!r}" if header.descriptions[0] else f"in {unit}"
        raise SceneError(
            f"{header.name} holds heights, {said}: landslides are detected in RGB or grey images; give one"
        )


def doubts(header: Header, bands: tuple[int, int, int]) -> tuple[str, ...]:
    """Warnings about unusual bands of an image."""
    dtype = header.dtypes[bands[0] - 1]
    if len(set(bands)) > 1 or header.count > 1 or dtype.startswith(("uint", "bool")):
        return ()
    text = (
        f"one band of {dtype} is used as red, green and blue: if it holds heights or an index, results are meaningless"
    )
    return (text,)

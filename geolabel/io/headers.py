"""What a raster says of itself, and what that means: where it lies, and when it was taken."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date

import pyproj
import rasterio
from affine import Affine
from rasterio.errors import CRSError

from geolabel.errors import SceneError
from geolabel.io.foreign import in_words
from geolabel.scene import Grid

DATE_TAGS = (
    "ACQUISITIONDATETIME",
    "DATETIME",
    "DATE_ACQUIRED",
    "PRODUCT_START_TIME",
    "SENSING_TIME",
    "TIFFTAG_DATETIME",
)
"""Tags that may say when the scene was taken, the most telling first; case does not matter."""


@dataclass(frozen=True)
class Header:
    """What a raster says of itself."""

    name: str
    height: int
    width: int
    crs: pyproj.CRS | None
    transform: Affine | None
    """None where the raster has none."""
    dtypes: tuple[str, ...]
    nodata: tuple[float | None, ...]
    """Per band."""
    descriptions: tuple[str | None, ...]
    colours: tuple[str, ...]
    """Colour interpretation per band, lower case, ``undefined`` where there is none."""
    masked: tuple[bool, ...]
    """Whether a band comes with a mask, inside the file or beside it."""
    scaling: tuple[tuple[float, float], ...] = ()
    """Factor and offset per band that turn stored values into what they stand for; empty for an array."""
    approximate: str | None = None
    """How the raster is placed where that is no transform: ``ground control points`` or ``RPCs``."""
    tags: Mapping[str, str] = field(default_factory=dict)
    size_bytes: int | None = None
    modified: str | None = None

    @property
    def count(self) -> int:
        """Number of bands."""
        return len(self.dtypes)

    @property
    def alpha(self) -> tuple[int, ...]:
        """One-based numbers of the alpha bands."""
        pairs = enumerate(zip(self.colours, self.descriptions, strict=True), 1)
        return tuple(i for i, (colour, name) in pairs if "alpha" in (colour, (name or "").lower()))


def grid_of(header: Header, gsd: float | None) -> Grid:
    """Where a raster lies; `gsd`, metres per pixel, is for one without CRS.

    Raises
    ------
    SceneError
        If it lies nowhere, or `gsd` is missing or one too many.
    """
    height, width = header.height, header.width
    if header.approximate:
        raise SceneError(
            f"{header.name} is placed by {header.approximate}, not by a transform: "
            "rectify it first (gdalwarp IN OUT), then give the result"
        )
    if header.crs is None:
        if gsd is None:
            raise SceneError(f"{header.name} has no CRS, so the size of its pixels is unknown: give --gsd METRES")
        if header.transform is None:
            return Grid(None, Affine(1, 0, 0, 0, -1, 0), height, width, unit_m=gsd)
        side = math.sqrt(abs(header.transform.determinant))
        return Grid(None, header.transform, height, width, unit_m=gsd / side)
    if header.transform is None:
        raise SceneError(
            f"{header.name} has a CRS but no transform, so it lies nowhere: "
            "place it first (gdal_translate -a_ullr LEFT TOP RIGHT BOTTOM IN OUT)"
        )
    if gsd is not None:
        raise SceneError(f"{header.name} has a CRS, which says how large its pixels are: leave --gsd {gsd:g} away")
    return Grid(header.crs, header.transform, height, width)


def event_date_of(header: Header) -> str | None:
    """The ISO 8601 date of acquisition that the tags tell, if they do."""
    tags = {key.upper(): value for key, value in header.tags.items()}
    for name in DATE_TAGS:
        match = re.match(r"(\d{4})[:/-]?(\d\d)[:/-]?(\d\d)(?!\d)", tags.get(name, "").strip())
        if match:
            try:
                return date(*map(int, match.groups())).isoformat()
            except ValueError:  # such as 0000:00:00, which some cameras write
                continue
    return None


def to_pyproj(crs: rasterio.crs.CRS | None, name: str) -> pyproj.CRS | None:
    """The CRS of a scene of some name, as rasterio has it; None of none.

    Raises
    ------
    SceneError
        If PROJ does not understand it.
    """
    if not crs:
        return None
    try:
        return pyproj.CRS.from_wkt(crs.to_wkt())
    except (CRSError, pyproj.exceptions.CRSError) as cause:
        raise SceneError(f"{name}: PROJ does not understand the CRS of the scene: {in_words(cause)}") from cause

"""A scene before pixels are read: its grid, its bands, and the working grid."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import pyproj
import shapely
from affine import Affine

from geolabel.errors import SceneError
from geolabel.tiles import Window
from geolabel.types import BoolArray

SAME_GSD = 0.01
"""A grid is used unchanged if its gsd differs from the wanted one by no more than this share."""

MOST_ENLARGED = 4.0
"""Maximum factor by which the working grid enlarges a coarse scene along each side."""

ALIGNED = 0.01
"""Tolerance in pixels for grids to count as aligned."""

PATCH = 64
"""Side in pixels of the patches that are tested against an area as a whole."""


@dataclass(frozen=True)
class Grid:
    """Georeference and size of a raster: coordinate reference system, affine transform, height and width.

    Pixel ``(row, col)`` covers ``[col, col + 1) x [row, row + 1)`` in the frame that `transform` maps to the CRS.
    The transform may be rotated or south-up.

    Parameters
    ----------
    crs
        None for an image without CRS; `unit_m` is then the length of one unit of its transform.
    transform
        Pixel to CRS coordinates.
    height, width
        Pixels.
    unit_m
        Metres per CRS unit where `crs` is None; ignored otherwise.
    """

    crs: pyproj.CRS | None
    transform: Affine
    height: int
    width: int
    unit_m: float | None = None

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1:
            raise SceneError(f"a grid of {self.height} x {self.width} px has no pixels")
        if self.transform.determinant == 0 or not all(math.isfinite(v) for v in self.transform):
            raise SceneError(f"the transform {tuple(self.transform)[:6]} cannot be inverted: its pixels have no area")

    @property
    def window(self) -> Window:
        """The whole grid as a window."""
        return Window(0, 0, self.height, self.width)

    @property
    def center(self) -> tuple[float, float]:
        """CRS coordinates of the middle of the grid."""
        x, y = self.transform * (self.width / 2, self.height / 2)
        return float(x), float(y)

    @property
    def outline(self) -> shapely.Polygon:
        """The frame of the grid in its CRS."""
        corners = ((0, 0), (self.width, 0), (self.width, self.height), (0, self.height))
        return shapely.Polygon([self.transform * corner for corner in corners])

    def pixel_size_m(self) -> tuple[float, float]:
        """Width and height of the central pixel in metres, geodesic unless the CRS is local (engineering) or missing.

        Raises
        ------
        SceneError
            If both CRS and `unit_m` are missing, or the centre of the grid is outside the area of the CRS.
        """
        if self.crs is None:
            if self.unit_m is None:
                raise SceneError("the scene has no CRS, so the size of its pixels is unknown: give --gsd METRES")
            a, b, _, d, e, _ = tuple(self.transform)[:6]
            return math.hypot(a, d) * self.unit_m, math.hypot(b, e) * self.unit_m
        row, col = self.height / 2, self.width / 2
        corners = [self.transform * p for p in ((col, row), (col + 1, row), (col, row + 1))]
        geodetic = self.crs.geodetic_crs
        if geodetic is None:  # an engineering CRS: metres or feet on a building site
            factor = self.crs.axis_info[0].unit_conversion_factor if self.crs.axis_info else 1.0
            (x0, y0), right, down = corners
            return (
                math.hypot(right[0] - x0, right[1] - y0) * factor,
                math.hypot(down[0] - x0, down[1] - y0) * factor,
            )
        to_lonlat = pyproj.Transformer.from_crs(self.crs, geodetic, always_xy=True)
        (lon, lat), right, down = (to_lonlat.transform(*p) for p in corners)
        if not all(math.isfinite(v) for v in (lon, lat, *right, *down)):
            raise SceneError(
                f"the centre of the scene, {self.center}, is outside the area of {self.crs.name}: "
                "the CRS or the transform of the file is wrong"
            )
        geod = self.crs.get_geod() or pyproj.Geod(ellps="WGS84")
        return float(geod.inv(lon, lat, *right)[2]), float(geod.inv(lon, lat, *down)[2])

    @property
    def gsd(self) -> float:
        """Ground sample distance in metres: the geometric mean of the central pixel's sides."""
        return math.sqrt(math.prod(self.pixel_size_m()))

    def at_gsd(self, gsd: float) -> Grid:
        """The same extent with pixels of `gsd` metres, scaled per axis; the grid itself if it is within 1 %."""
        scale_x, scale_y = (size / gsd for size in self.pixel_size_m())
        if abs(scale_x - 1) <= SAME_GSD and abs(scale_y - 1) <= SAME_GSD:
            return self
        return self.resized(max(1, round(self.height * scale_y)), max(1, round(self.width * scale_x)))

    def resized(self, height: int, width: int) -> Grid:
        """The same extent with another number of pixels."""
        transform = self.transform * Affine.scale(self.width / width, self.height / height)
        return replace(self, transform=transform, height=height, width=width)

    def working(self, gsd_range: tuple[float, float]) -> Grid:
        """The grid to work on: the scene's own gsd if the networks support it, else the nearest supported one.

        A scene is enlarged at most `MOST_ENLARGED` times: more would add work without detail.
        """
        finest, coarsest = gsd_range
        return self.at_gsd(min(max(self.gsd, finest), max(coarsest, self.gsd / MOST_ENLARGED)))

    def window_of(self, other: Grid) -> Window | None:
        """Window of another grid in this one, extended in all directions; None if pixels are not aligned.

        They are if the CRS is the same and every corner of the other grid is within `ALIGNED` of a pixel corner. Grids
        without CRS are never aligned.
        """
        if self.crs is None or other.crs is None or not self.crs.equals(other.crs, ignore_axis_order=True):
            return None
        onto = ~self.transform * other.transform
        col, row = round(onto.c), round(onto.f)
        for x, y in ((0, 0), (other.width, 0), (0, other.height), (other.width, other.height)):
            here_x, here_y = onto * (x, y)
            if max(abs(here_x - col - x), abs(here_y - row - y)) > ALIGNED:
                return None
        return Window(row, col, other.height, other.width)

    def crop(self, window: Window) -> Grid:
        """The part of the grid in `window`, pixel for pixel."""
        if not self.window.contains(window):
            raise SceneError(f"{window} is not inside a grid of {self.height} x {self.width} px")
        transform = self.transform * Affine.translation(window.col, window.row)
        return replace(self, transform=transform, height=window.height, width=window.width)


def span(bounds: Iterable[float]) -> str:
    """An extent for messages: left, bottom, right and top."""
    left, bottom, right, top = bounds
    return f"x {left:.10g} to {right:.10g}, y {bottom:.10g} to {top:.10g}"


@dataclass(frozen=True)
class Scene:
    """A georeferenced raster, as described by its header."""

    name: str
    """The user's name for it: a path, a URI, or the name of an array."""
    grid: Grid
    """The raster's own grid."""
    bands: tuple[int, int, int]
    """One-based numbers of the bands used as red, green and blue; they may be equal."""
    dtype: str
    band_count: int
    size_bytes: int | None = None
    modified: str | None = None
    """ISO 8601 time of the last change of the file, if known."""
    event_date: str | None = None
    """ISO 8601 date of acquisition, if known."""


def inside(geometry: shapely.Geometry, grid: Grid, window: Window) -> BoolArray:
    """Whether the centre of each pixel of `window` is inside a geometry in the grid's CRS.

    The geometry is prepared in place, so it may not be used by several threads at once.

    Returns
    -------
    (height, width)
    """
    shapely.prepare(geometry)
    result = np.zeros((window.height, window.width), bool)
    # Pixels are tested one by one only near an outline; other patches are inside or outside as a whole.
    for row in range(0, window.height, PATCH):
        for col in range(0, window.width, PATCH):
            patch = result[row : row + PATCH, col : col + PATCH]
            top, left, (height, width) = window.row + row, window.col + col, patch.shape
            corners = [grid.transform * (x, y) for x in (left, left + width) for y in (top, top + height)]
            frame = shapely.MultiPoint(corners).envelope
            if shapely.contains_properly(geometry, frame):
                patch[...] = True
            elif shapely.intersects(geometry, frame):
                cols, rows = np.meshgrid(left + 0.5 + np.arange(width), top + 0.5 + np.arange(height))
                patch[...] = shapely.contains_xy(geometry, *(grid.transform * (cols, rows)))
    return result

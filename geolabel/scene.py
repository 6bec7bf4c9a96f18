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
"""A grid whose pixels differ from the wanted gsd by no more than this share is used as it is."""

MOST_ENLARGED = 4.0
"""How much larger the working grid of a coarse scene is than the scene, at most and along a side."""

ALIGNED = 0.01
"""Pixels by which two grids may miss each other and still count as one."""

PATCH = 64
"""Side in pixels of the patches that are compared with an area as a whole."""


@dataclass(frozen=True)
class Grid:
    """A raster's placement: coordinate reference system, affine transform and size.

    Pixel ``(row, col)`` covers ``[col, col + 1) x [row, row + 1)`` in the frame that `transform` maps to the CRS.
    The transform may be rotated or south-up.

    Parameters
    ----------
    crs
        None for a picture that lies nowhere on Earth; `unit_m` then says how long one unit of its transform is.
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
            raise SceneError(f"a grid of {self.height} x {self.width} px holds no pixel")
        if self.transform.determinant == 0 or not all(math.isfinite(v) for v in self.transform):
            raise SceneError(f"the transform {tuple(self.transform)[:6]} cannot be inverted: it gives pixels no area")

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
        """Width and height of the central pixel in metres, geodesic wherever the CRS lies on Earth.

        Raises
        ------
        SceneError
            If the CRS is missing and `unit_m` too, or the centre of the grid lies outside what the CRS can map.
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
                f"the centre of the scene, {self.center}, lies outside what {self.crs.name} can map: "
                "the CRS or the transform of the file is wrong"
            )
        geod = self.crs.get_geod() or pyproj.Geod(ellps="WGS84")
        return float(geod.inv(lon, lat, *right)[2]), float(geod.inv(lon, lat, *down)[2])

    @property
    def gsd(self) -> float:
        """Ground sample distance in metres: the geometric mean of the central pixel's sides."""
        return math.sqrt(math.prod(self.pixel_size_m()))

    def at_gsd(self, gsd: float) -> Grid:
        """The same extent with pixels of `gsd` metres, scaled per axis; the grid itself where it is within 1 %."""
        scale_x, scale_y = (size / gsd for size in self.pixel_size_m())
        if abs(scale_x - 1) <= SAME_GSD and abs(scale_y - 1) <= SAME_GSD:
            return self
        return self.resized(max(1, round(self.height * scale_y)), max(1, round(self.width * scale_x)))

    def resized(self, height: int, width: int) -> Grid:
        """The same extent in another number of pixels."""
        transform = self.transform * Affine.scale(self.width / width, self.height / height)
        return replace(self, transform=transform, height=height, width=width)

    def working(self, gsd_range: tuple[float, float]) -> Grid:
        """The grid to work on: the scene's own gsd where the networks' range allows, else the nearest end of it.

        A scene is enlarged at most `MOST_ENLARGED` times: more would add work and nothing to see.
        """
        finest, coarsest = gsd_range
        return self.at_gsd(min(max(self.gsd, finest), max(coarsest, self.gsd / MOST_ENLARGED)))

    def window_of(self, other: Grid) -> Window | None:
        """Where another grid lies on this one, continued in all directions; None where the two do not share pixels.

        They do where the CRS is the same and no corner of the other lies further than `ALIGNED` from a corner of
        pixels. Grids without CRS lie nowhere, so they share none.
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
        """The part of the grid under `window`, pixel for pixel."""
        if not self.window.contains(window):
            raise SceneError(f"{window} is not inside a grid of {self.height} x {self.width} px")
        transform = self.transform * Affine.translation(window.col, window.row)
        return replace(self, transform=transform, height=window.height, width=window.width)


def span(bounds: Iterable[float]) -> str:
    """Left, bottom, right and top as messages name an extent."""
    left, bottom, right, top = bounds
    return f"x {left:.10g} to {right:.10g}, y {bottom:.10g} to {top:.10g}"


@dataclass(frozen=True)
class Scene:
    """A georeferenced raster as its header describes it."""

    name: str
    """What the user called it: a path, a URI, or the name of an array."""
    grid: Grid
    """The raster's own grid."""
    bands: tuple[int, int, int]
    """One-based band numbers that serve as red, green and blue; one band may serve as all three."""
    dtype: str
    band_count: int
    size_bytes: int | None = None
    modified: str | None = None
    """ISO 8601 time of the last change of the file, if known."""
    event_date: str | None = None
    """ISO 8601 date of acquisition, if the scene carries one."""


def inside(geometry: shapely.Geometry, grid: Grid, window: Window) -> BoolArray:
    """Whether the centre of each pixel of `window` lies inside a geometry in the grid's CRS.

    The geometry is prepared in place, so threads that share one have to take turns.

    Returns
    -------
    (height, width)
    """
    shapely.prepare(geometry)
    result = np.zeros((window.height, window.width), bool)
    # Pixels are asked one by one only where an outline passes; elsewhere a patch is inside or outside as a whole.
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

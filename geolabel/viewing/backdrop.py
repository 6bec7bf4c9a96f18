"""Pictures of scenes to draw outlines on: north up, in the CRS of the outlines, and of a bounded size."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyproj
import rasterio
import shapely
from affine import Affine
from rasterio.warp import Resampling
from rasterio.warp import reproject as warp

from geolabel.errors import SceneError, TileError
from geolabel.geodesy import reproject
from geolabel.io.read.map_tiles import MapTiles, missing_tiles, open_map_tiles
from geolabel.io.read.scenes import SceneReader
from geolabel.io.read.tile_urls import is_map_tiles
from geolabel.radiometry import Stretch
from geolabel.scene import Grid
from geolabel.tiles import Window
from geolabel.types import BoolArray, UInt8Array

log = logging.getLogger(__name__)

STRIP = 256
"""Rows of a picture that are read at once."""

MAX_SIDE = 8192
"""Maximum side of a picture, in pixels: not every browser or printer takes more."""

ANY_PLANE = pyproj.CRS.from_epsg(3857)
"""Stands for the plane of scenes without CRS, which are never reprojected."""

SEGMENTS = 32
"""Segments that the sides of a frame are divided into before they are reprojected."""


@dataclass(frozen=True)
class Source:
    """A scene, and how it is rendered."""

    reader: SceneReader
    stretch: Stretch

    @classmethod
    def open(
        cls,
        scene: str | Path,
        *,
        bands: str | None = None,
        nodata: float | None = None,
        gsd: float | None = None,
        time: str | None = None,
        stretch: str = "p2-98",
        area: tuple[float, float, float, float] | None = None,
    ) -> Source:
        """Open a scene as `geolabel.extract` reads it; the other arguments are fields of `geolabel.Reading`.

        Parameters
        ----------
        area
            Left, bottom, right, top in web Mercator of the part to show of a layer of map tiles.

        Raises
        ------
        SceneError
            If it cannot be opened or sampled.
        """
        given: str | Path | MapTiles = scene
        if is_map_tiles(str(scene)):
            given, gsd = open_map_tiles(str(scene), area, gsd), None
            for text in missing_tiles(given):
                log.warning("%s: %s", given.header.name, text)
        reader = SceneReader(given, bands=bands, nodata=nodata, gsd=gsd, time=time)
        sample, valid = reader.sample()
        reader, valid = reader.examined(sample, valid)
        return cls(reader, Stretch.from_sample(sample, valid, stretch))

    @property
    def grid(self) -> Grid:
        """The grid of the scene."""
        return self.reader.scene.grid


@dataclass(frozen=True)
class Backdrop:
    """A picture of scenes."""

    image: UInt8Array
    """(H, W, 3), RGB; 0 where not valid."""
    valid: BoolArray
    """(H, W)"""
    grid: Grid
    """North up, with square pixels on the ground."""


def frame_of(grids: Sequence[Grid], crs: pyproj.CRS | None, max_pixels: int) -> Grid:
    """The grid of a picture of whole scenes: north up, in a CRS, no finer than the finest scene.

    Parameters
    ----------
    grids
        Grids of the scenes, at least one.
    crs
        CRS of the picture; None for scenes without one.
    max_pixels
        Maximum number of pixels of the picture.

    Raises
    ------
    SceneError
        If only one of scene and picture has a CRS, or the scene lies outside the domain of the picture's CRS.
    """
    for grid in grids:
        if (grid.crs is None) != (crs is None):
            without, other = ("scene", "polygons") if grid.crs is None else ("file of polygons", "scene")
            raise SceneError(
                f"the {without} has no CRS and the {other} have one: it is not known where they meet; assign a CRS "
                "(gdal_edit.py -a_srs EPSG:... for rasters, ogr2ogr -a_srs for polygons)"
            )
    finest = min(grid.gsd for grid in grids)
    if len(grids) == 1 and _is_upright(grids[0]) and _same_crs(grids[0].crs, crs):
        height_m, width_m = _size_m(grids[0])
        return grids[0].at_gsd(_gsd(height_m, width_m, finest, max_pixels))
    outlines = shapely.union_all([_outline_in(grid, crs) for grid in grids])
    left, bottom, right, top = outlines.bounds
    unit = Grid(crs, Affine(right - left, 0, left, 0, bottom - top, top), 1, 1, grids[0].unit_m)
    height_m, width_m = _size_m(replace(unit, transform=unit.transform * Affine.scale(0.01), height=100, width=100))
    gsd = _gsd(height_m, width_m, finest, max_pixels)
    height, width = max(1, round(height_m / gsd)), max(1, round(width_m / gsd))
    return replace(unit, transform=unit.transform * Affine.scale(1 / width, 1 / height), height=height, width=width)


def _is_upright(grid: Grid) -> bool:
    a, b, _, d, e, _ = tuple(grid.transform)[:6]
    return bool(a > 0 > e and b == d == 0)


def _same_crs(one: pyproj.CRS | None, other: pyproj.CRS | None) -> bool:
    return one is other or (one is not None and other is not None and one.equals(other, ignore_axis_order=True))


def _size_m(grid: Grid) -> tuple[float, float]:
    across, down = grid.pixel_size_m()
    return down * grid.height, across * grid.width


def _gsd(height_m: float, width_m: float, finest: float, max_pixels: int) -> float:
    return max(finest, math.sqrt(height_m * width_m / max_pixels), max(height_m, width_m) / MAX_SIDE)


def _outline_in(grid: Grid, crs: pyproj.CRS | None) -> shapely.Geometry:
    """The outline of a grid in a CRS, with bent sides."""
    outline = grid.outline
    if grid.crs is None or crs is None or _same_crs(grid.crs, crs):
        return outline
    bent = shapely.segmentize(outline, outline.length / (4 * SEGMENTS))
    moved = reproject(np.array([bent], object), grid.crs, crs)[0]
    if not np.isfinite(moved.bounds).all():
        raise SceneError(f"the scene in {grid.crs.name} has no place in {crs.name}, the CRS of the polygons")
    return moved


def paint(sources: Iterable[Source], frame: Grid) -> Backdrop:
    """Render scenes on one grid, the first valid one on top.

    Parameters
    ----------
    sources
        May reach beyond the frame, or leave parts of it empty.
    frame
        See `frame_of`.

    Raises
    ------
    SceneError
        If a scene cannot be read.
    """
    image = np.zeros((frame.height, frame.width, 3), np.uint8)
    valid = np.zeros((frame.height, frame.width), bool)
    for source in sources:
        found = _on_frame(source, frame)
        if found is not None:
            rgb, present = found
            here = present & ~valid
            image[here] = rgb[here]
            valid |= here
    return Backdrop(image, valid, frame)


def _on_frame(source: Source, frame: Grid) -> tuple[UInt8Array, BoolArray] | None:
    """A scene on the grid of a picture; None if it does not reach into it."""
    scaled = source.grid.at_gsd(max(source.grid.gsd, frame.gsd))
    if scaled.window == frame.window and scaled.window_of(frame) == frame.window:
        return _read(source, scaled, scaled.window)
    window = _under(scaled, frame)
    if window is None:
        return None
    rgb, valid = _read(source, scaled, window)
    stored = np.concatenate([np.moveaxis(rgb, 2, 0), valid[None] * np.uint8(255)])
    shown = np.zeros((4, frame.height, frame.width), np.uint8)
    warp(
        stored,
        shown,
        src_transform=scaled.crop(window).transform,
        src_crs=_crs(scaled.crs),
        dst_transform=frame.transform,
        dst_crs=_crs(frame.crs),
        src_alpha=4,
        dst_alpha=4,
        resampling=Resampling.bilinear,
    )
    return np.moveaxis(shown[:3], 0, 2), shown[3] >= 128


def _read(source: Source, grid: Grid, window: Window) -> tuple[UInt8Array, BoolArray]:
    """A window of a scene, stretched; parts that cannot be read are not valid."""
    rgb = np.zeros((window.height, window.width, 3), np.uint8)
    valid = np.zeros((window.height, window.width), bool)
    failed: TileError | None = None
    for row in range(0, window.height, STRIP):
        height = min(STRIP, window.height - row)
        try:
            bands, valid[row : row + height] = source.reader.read(
                Window(window.row + row, window.col, height, window.width), grid
            )
        except TileError as error:
            failed = error
            continue
        rgb[row : row + height] = source.stretch.apply(bands, valid[row : row + height])
    if failed is not None:
        if not valid.any():
            raise failed
        log.warning("%s; its part of the picture stays empty", failed)
    return rgb, valid


def _under(grid: Grid, frame: Grid) -> Window | None:
    """The window of a grid that a frame in any CRS covers."""
    outline = shapely.transform(_outline_in(frame, grid.crs), lambda xy: np.stack((~grid.transform) * xy.T, axis=1))
    left, top, right, bottom = shapely.bounds(outline)
    row, col = max(0, math.floor(top) - 1), max(0, math.floor(left) - 1)
    low, far = min(grid.height, math.ceil(bottom) + 1), min(grid.width, math.ceil(right) + 1)
    return Window(row, col, low - row, far - col) if low > row and far > col else None


def _crs(crs: pyproj.CRS | None) -> rasterio.crs.CRS:
    return rasterio.crs.CRS.from_wkt((crs or ANY_PLANE).to_wkt())

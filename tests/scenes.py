"""Small scenes for tests: rasters on one place of the ground, with two bright boxes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyproj
import rasterio
import shapely
from affine import Affine

from geolabel.scene import Grid
from geolabel.tiles import Window

UTM = pyproj.CRS.from_epsg(32648)
PLACE = Affine(0.5, 0, 500_000, 0, -0.5, 3_000_000)
GRID = Grid(UTM, PLACE, 200, 200)
WEST, EAST = Window(20, 20, 60, 60), Window(100, 120, 60, 60)
"""Bright boxes of `bright_scene`."""


def write_raster(
    path: Path, values: np.ndarray, *, crs: object = UTM, transform: Affine = PLACE, **profile: object
) -> Path:
    """Write a band (H, W), or bands (B, H, W), as a GeoTIFF of their dtype."""
    bands = np.asarray(values)
    bands = bands if bands.ndim == 3 else bands[None]
    count, height, width = bands.shape
    known = {"driver": "GTiff", "dtype": bands.dtype, "count": count, "height": height, "width": width}
    with rasterio.open(path, "w", **(known | {"crs": crs, "transform": transform} | profile)) as target:
        target.write(bands)
    return path


def bright_scene(path: Path) -> Path:
    """Write a dark scene on `GRID` with the boxes `WEST` and `EAST`."""
    image = np.random.default_rng(0).integers(20, 60, (3, GRID.height, GRID.width)).astype(np.uint8)
    for box in (WEST, EAST):
        image[:, box.row : box.bottom, box.col : box.right] = 230
    return write_raster(path, image, photometric="rgb")


def around(gsd: float, crs: pyproj.CRS = UTM, margin: float = 20.0) -> Grid:
    """A grid of another gsd in another CRS that covers `GRID` and a margin in metres."""
    there = pyproj.Transformer.from_crs(UTM, crs, always_xy=True)
    left, bottom, right, top = there.transform_bounds(*shapely.buffer(GRID.outline, margin).bounds)
    step = gsd / 111_000 if crs.is_geographic else gsd
    height, width = int(np.ceil((top - bottom) / step)), int(np.ceil((right - left) / step))
    return Grid(crs, Affine(step, 0, left, 0, -step, top), height, width)

"""Scenes made from images that lie nowhere: one image with a place, or many side by side."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyproj
import rasterio
from affine import Affine

from geolabel.evaluation.examples import Example
from geolabel.evaluation.maps import ellipse
from geolabel.io.write.rasters import write_geotiff
from geolabel.scene import Grid
from geolabel.tiles import Window
from geolabel.types import BoolArray, Int32Array, UInt8Array

PLACE = (500_000.0, 3_000_000.0)
"""Easting and northing of the upper left corner of a scene that lies nowhere: made up."""

MOSAIC_WIDTH = 4096
"""Pixels, of a mosaic that has no wider chip."""


def placed(example: Example, gsd: float) -> Grid:
    """A place for an example that lies nowhere."""
    height, width = example.ids.shape
    return Grid(pyproj.CRS.from_epsg(32648), Affine(gsd, 0, PLACE[0], 0, -gsd, PLACE[1]), height, width)


def write_scene(path: Path, example: Example, gsd: float) -> Path:
    """Write an example as a GeoTIFF that lies somewhere; return its path."""
    write_geotiff(path, example.rgb, placed(example, gsd), description=example.name, overwrite=True)
    return path


@dataclass(frozen=True)
class Mosaic:
    """Where the landslides of a mosaic of chips are, and its chips."""

    ids: Int32Array
    """(H, W) number of the landslide, from 1; -1 where no chip lies."""
    places: dict[str, Window]
    """By the chip's name."""

    def without(self, name: str) -> Int32Array:
        """Numbers (H, W) with -1 where one chip lies, so that it is not judged."""
        ids = self.ids.copy()
        ids[self.places[name].slices] = -1
        return ids

    def heaviest(self) -> tuple[str, float]:
        """Name of the chip with the most pixels of landslides, and its share of all of them."""
        counts = {name: np.count_nonzero(self.ids[place.slices] > 0) for name, place in self.places.items()}
        name = max(counts, key=lambda chip: counts[chip])
        return name, counts[name] / max(1, sum(counts.values()))

    def ellipses(self) -> Int32Array:
        """(H, W) an ellipse of half the chip's size in the middle of each chip with a landslide, numbered from 1."""
        ids = np.zeros(self.ids.shape, np.int32)
        for number, place in enumerate(self.places.values(), 1):
            if (self.ids[place.slices] > 0).any():
                ids[place.slices][ellipse((place.height, place.width))] = number
        return ids


def lay_mosaic(chips: Iterable[Example], path: Path, gsd: float, *, width: int = MOSAIC_WIDTH) -> Mosaic:
    """Lay chips side by side into one scene, written to `path`, so that no chip's middle gives its landslide away.

    Chips are shuffled from a fixed seed and laid in rows by height; what is left between them is not valid.

    Parameters
    ----------
    gsd
        Metres per pixel of the scene.
    width
        Pixels of the scene, unless a chip is wider.
    """
    order = list(chips)
    random.Random(0).shuffle(order)  # noqa: S311  # no secret: the same mosaic everywhere
    order.sort(key=lambda chip: -(chip.ids.shape[0] // 64))
    width = max(width, *(chip.ids.shape[1] for chip in order))
    places, height = _shelves([chip.ids.shape for chip in order], width)
    rgb, ids = np.zeros((height, width, 3), np.uint8), np.full((height, width), -1, np.int32)
    count = 0
    for place, chip in zip(places, order, strict=True):
        rgb[place.slices] = chip.rgb
        # numbered chip by chip: landslides of chips that touch are not one
        ids[place.slices] = np.where(chip.ids > 0, chip.ids + count, 0)
        count += int(chip.ids.max(initial=0))
    _write_mosaic(path, rgb, ids >= 0, gsd)
    return Mosaic(ids, dict(zip((chip.name for chip in order), places, strict=True)))


def _shelves(sizes: Iterable[tuple[int, ...]], width: int) -> tuple[list[Window], int]:
    """Places of rectangles in rows of a given width, in the order given, and the height of all rows."""
    row = col = tallest = 0
    places = []
    for height, wide in sizes:
        if col + wide > width:
            row, col, tallest = row + tallest, 0, 0
        places.append(Window(row, col, height, wide))
        col, tallest = col + wide, max(tallest, height)
    return places, row + tallest


def _write_mosaic(path: Path, rgb: UInt8Array, valid: BoolArray, gsd: float) -> None:
    height, width = valid.shape
    profile = {"driver": "GTiff", "height": height, "width": width, "count": 3, "dtype": "uint8", "crs": "EPSG:32648"}
    tiling = {"tiled": True, "blockxsize": 512, "blockysize": 512}
    packing = {"compress": "jpeg", "photometric": "ycbcr", "jpeg_quality": 92}
    transform = Affine(gsd, 0, PLACE[0], 0, -gsd, PLACE[1])
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(path, "w", transform=transform, **profile, **tiling, **packing) as scene,
    ):
        scene.write(np.moveaxis(rgb, 2, 0))
        scene.write_mask(valid.astype(np.uint8) * 255)

"""Scenes made from images without georeference, and the polygons of geolabel and of the baselines on them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import pyproj
import rasterio
import shapely
from affine import Affine
from rasterio.features import rasterize

from geolabel.evaluation import baselines
from geolabel.evaluation.examples import Example
from geolabel.evaluation.steps import OURS
from geolabel.extraction.activation_maps import validity
from geolabel.extraction.pipeline import find_landslides, join_regions, localize
from geolabel.extraction.plan import Plan
from geolabel.extraction.request import Networks, Parameters, Reading
from geolabel.extraction.scene_groups import prepare
from geolabel.extraction.vectorize import find_objects
from geolabel.extraction.work import in_scratch
from geolabel.io.write.rasters import write_geotiff
from geolabel.masks import FULL
from geolabel.mosaic import Layers
from geolabel.scene import Grid
from geolabel.spans import Spans
from geolabel.tiles import BlockGrid, Window
from geolabel.types import AnyArray, BoolArray, Float64Array, Int32Array, UInt8Array

if TYPE_CHECKING:
    import geopandas as gpd

CORNER = (500_000.0, 3_000_000.0)
"""Easting and northing of the upper left corner of scenes made from images without georeference: arbitrary."""

MOSAIC_WIDTH = 4096
"""Minimum width of a mosaic, pixels."""

WITH_CANDIDATES = "geolabel, with candidates"
ACTIVATION_ALONE = "activation alone"
ELLIPSE = "centred ellipse in chips with a landslide"
"""A baseline that knows which chips show a landslide, and that it is in the middle of the chip."""

BASELINES: dict[str, Callable[[UInt8Array, BoolArray], BoolArray]] = {
    "Otsu on excess green": baselines.otsu_bare,
    "Otsu on brightness": baselines.otsu_bright,
}
"""Masks (H, W) of images (H, W, 3) and their valid pixels, by name."""


# --- scenes from images ----------------------------------------------------------------------------------------------


def example_grid(example: Example, gsd: float) -> Grid:
    """An arbitrary georeference for an example, with pixels of `gsd` metres."""
    height, width = example.ids.shape
    return Grid(pyproj.CRS.from_epsg(32648), Affine(gsd, 0, CORNER[0], 0, -gsd, CORNER[1]), height, width)


def write_scene(path: Path, example: Example, gsd: float) -> Path:
    """Write an example as a georeferenced GeoTIFF, and return its path."""
    write_geotiff(path, example.rgb, example_grid(example, gsd), description=example.name, overwrite=True)
    return path


@dataclass(frozen=True)
class Mosaic:
    """Landslides of chips laid side by side, with the windows of the chips."""

    ids: Int32Array
    """(H, W) number of the landslide, from 1; 0 on other ground, -1 between chips."""
    places: dict[str, Window]
    """Windows by the chip's name."""

    def without(self, name: str) -> Int32Array:
        """Numbers (H, W) with -1 on one chip, which excludes it."""
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
                ids[place.slices][baselines.centred_ellipse((place.height, place.width))] = number
        return ids


def lay_mosaic(chips: Iterable[Example], path: Path, gsd: float, *, width: int = MOSAIC_WIDTH) -> Mosaic:
    """Lay chips side by side and write them as one scene, so that landslides are not in the middle of an image.

    Chips are shuffled with a fixed seed and laid in rows by height; pixels between them are not valid.

    Parameters
    ----------
    path
        GeoTIFF to write.
    gsd
        Metres per pixel.
    width
        Pixels, unless a chip is wider.
    """
    order = list(chips)
    random.Random(0).shuffle(order)  # noqa: S311  # not a secret: the same mosaic everywhere
    order, places, size = shelve(order, [chip.ids.shape for chip in order], width)
    rgb, ids = np.zeros((*size, 3), np.uint8), np.full(size, -1, np.int32)
    count = 0
    for place, chip in zip(places, order, strict=True):
        rgb[place.slices] = chip.rgb
        # numbered chip by chip: landslides that meet at the edge of two chips stay separate
        ids[place.slices] = np.where(chip.ids > 0, chip.ids + count, 0)
        count += int(chip.ids.max(initial=0))
    _write_mosaic(path, rgb, ids >= 0, gsd)
    return Mosaic(ids, dict(zip((chip.name for chip in order), places, strict=True)))


Item = TypeVar("Item")


def shelve(
    items: Sequence[Item], shapes: Sequence[tuple[int, ...]], width: int
) -> tuple[list[Item], list[Window], tuple[int, int]]:
    """Arrange images in rows of `width` pixels, or of the widest image, with images of similar height together.

    Parameters
    ----------
    shapes
        (H, W, ...) of each item.

    Returns
    -------
    items in row order, the window of each, and (H, W) of the whole
    """
    order = sorted(range(len(items)), key=lambda k: -(shapes[k][0] // 64))
    width = max(width, *(shape[1] for shape in shapes))
    row = col = tallest = 0
    places = []
    for height, wide in (shapes[k][:2] for k in order):
        if col + wide > width:
            row, col, tallest = row + tallest, 0, 0
        places.append(Window(row, col, height, wide))
        col, tallest = col + wide, max(tallest, height)
    return [items[k] for k in order], places, (row + tallest, width)


def _write_mosaic(path: Path, rgb: UInt8Array, valid: BoolArray, gsd: float) -> None:
    height, width = valid.shape
    profile = {"driver": "GTiff", "height": height, "width": width, "count": 3, "dtype": "uint8", "crs": "EPSG:32648"}
    tiling = {"tiled": True, "blockxsize": 512, "blockysize": 512}
    packing = {"compress": "jpeg", "photometric": "ycbcr", "jpeg_quality": 92}
    transform = Affine(gsd, 0, CORNER[0], 0, -gsd, CORNER[1])
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(path, "w", transform=transform, **profile, **tiling, **packing) as scene,
    ):
        scene.write(np.moveaxis(rgb, 2, 0))
        scene.write_mask(valid.astype(np.uint8) * 255)


# --- polygons of a scene ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """Polygons found in a scene by a method, rasterized on a grid."""

    ids: Int32Array
    """(H, W) number of the polygon, from 1; 0 elsewhere."""
    valid: BoolArray
    """(H, W)"""
    gsd: float
    """Metres per pixel."""
    confidence: Float64Array | None = None
    """(polygons,) confidence; NaN if unknown."""


@dataclass(frozen=True)
class Answers:
    """Answers of the product and the baselines for one scene."""

    by_method: dict[str, Answer]
    """On the scene's own grid."""
    gate: float
    """Maximum class probability of its tiles; 0 where no tile is valid."""


def answer_scene(path: Path, networks: Networks, parameters: Parameters) -> Answers:
    """Polygons of a georeferenced scene by the product and by the baselines.

    Masks of the baselines are cleaned like the product's: small objects dropped, small holes filled.
    """
    plan = prepare(path, Reading(), networks, parameters)
    with in_scratch(plan) as work:
        found = find_landslides(work)
        ((spans, _, _),) = join_regions(work)
        valid = validity(work.run, plan.grid.window)
    grid, native = plan.grid, plan.reader.scene.grid
    valid = np.ones((grid.height, grid.width), bool) if valid is None else valid
    shown = onto(valid, native)
    active = spans.paint(grid.window, np.ones(len(spans), np.uint8)) > 0
    image = _pixels(plan)
    masks = {ACTIVATION_ALONE: active} | {name: find(image, valid) for name, find in BASELINES.items()}
    ours = {OURS: [found.landslides], WITH_CANDIDATES: [found.landslides, found.candidates]}
    return Answers(
        {name: _answer(tables, shown, native) for name, tables in ours.items()}
        | {
            name: Answer(onto(clean(mask, grid, parameters), native), shown, native.gsd) for name, mask in masks.items()
        },
        _largest(found.tiles),
    )


def gate_probability(path: Path, networks: Networks, parameters: Parameters) -> float:
    """Maximum probability that a tile of a georeferenced scene shows a landslide."""
    with in_scratch(prepare(path, Reading(), networks, parameters)) as work:
        return _largest(localize(work))


def _largest(tiles: gpd.GeoDataFrame) -> float:
    return float(np.nan_to_num(tiles["probability"].to_numpy(float)).max(initial=0))


def _answer(tables: Sequence[gpd.GeoDataFrame], valid: BoolArray, grid: Grid) -> Answer:
    outlines = chain.from_iterable(table.geometry for table in tables)
    confidence = np.concatenate([table["confidence"].to_numpy(float) for table in tables])
    return Answer(polygon_ids(outlines, grid), valid, grid.gsd, confidence)


def polygon_ids(outlines: Iterable[shapely.Geometry], grid: Grid) -> Int32Array:
    """(H, W) number of the polygon that contains a pixel's centre, from 1 in the given order; 0 elsewhere."""
    shapes = [(outline, number) for number, outline in enumerate(outlines, 1)]
    size = grid.height, grid.width
    if not shapes:
        return np.zeros(size, np.int32)
    ids: Int32Array = rasterize(shapes, size, transform=grid.transform, dtype="int32")
    return ids


A = TypeVar("A", bound=AnyArray)


def onto(values: A, grid: Grid) -> A:
    """Sample values (h, w) at the pixel centres of a grid (H, W) of the same extent, that of the scene."""
    if values.shape == (grid.height, grid.width):
        return values
    rows, cols = (
        ((np.arange(wanted) + 0.5) * held / wanted).astype(int)
        for held, wanted in zip(values.shape, (grid.height, grid.width), strict=True)
    )
    taken: A = values[rows[:, None], cols]
    return taken


def _pixels(plan: Plan) -> UInt8Array:
    """(H, W, 3) red, green and blue on the working grid, scaled to 8 bits by a common factor if deeper."""
    parts = [(window, plan.reader.read(window, plan.grid)[0]) for window in plan.blocks]
    top = max(float(bands.max(initial=0)) for _, bands in parts)
    rgb = np.zeros((plan.grid.height, plan.grid.width, 3), np.uint8)
    for window, bands in parts:
        scaled = bands if bands.dtype == np.uint8 else np.clip(bands * (255 / max(top, 1e-9)), 0, 255)
        rgb[window.slices] = np.moveaxis(scaled, 0, 2)
    return rgb


@dataclass(frozen=True)
class _MaskMosaic:
    """A mask as a mosaic, for the product's cleaning."""

    mask: BoolArray

    def scores(self, window: Window) -> UInt8Array:
        return self.mask[window.slices].astype(np.uint8) * np.uint8(FULL)

    def read(self, window: Window, spans: Spans) -> Layers:  # noqa: ARG002
        return Layers(self.scores(window))


def clean(mask: BoolArray, grid: Grid, parameters: Parameters) -> Int32Array:
    """(H, W) numbers of the objects of a mask after the product's cleaning."""
    found = find_objects(
        _MaskMosaic(mask),
        BlockGrid(grid.height, grid.width, parameters.block_size),
        threshold=FULL,
        min_area_px=parameters.min_area.pixels(grid.gsd),
        max_hole_px=parameters.max_hole.pixels(grid.gsd),
    )
    ids: Int32Array = found.spans.paint(grid.window, found.labels + np.int32(1))
    return ids

"""The product from end to end: scenes to polygons, and what peers make of the same scenes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import shapely
from rasterio.features import rasterize

from geolabel.evaluation import baselines
from geolabel.evaluation.table import OURS
from geolabel.evaluation.tally import Answer
from geolabel.extraction.activation_maps import validity
from geolabel.extraction.extract import find_landslides
from geolabel.extraction.pipeline import join_regions, localize
from geolabel.extraction.plan import Parameters, Plan
from geolabel.extraction.request import Networks, Reading, prepare
from geolabel.extraction.vectorize import find_objects
from geolabel.extraction.work import in_scratch
from geolabel.masks import FULL
from geolabel.mosaic import Layers
from geolabel.scene import Grid
from geolabel.seams import Spans
from geolabel.tiles import BlockGrid, Window
from geolabel.types import AnyArray, BoolArray, Int32Array, UInt8Array

if TYPE_CHECKING:
    import geopandas as gpd

WITH = "geolabel, with candidates"
ALONE = "activation alone"
PEERS: dict[str, Callable[[UInt8Array, BoolArray], BoolArray]] = {
    "Otsu on excess green": baselines.otsu_bare,
    "Otsu on brightness": baselines.otsu_bright,
}
ELLIPSE = "centred ellipse in chips with a landslide"
"""A peer that knows which chips show a landslide, and that it lies in their middle."""


@dataclass(frozen=True)
class Found:
    """What the product and its peers make of a scene."""

    answers: dict[str, Answer]
    """On the scene's own grid, by method."""
    gate: float
    """Largest class probability of any tile; 0 where no tile is valid."""


def answers(path: Path, networks: Networks, parameters: Parameters) -> Found:
    """Polygons of a georeferenced scene as the product draws them, and as its peers do.

    The peers' masks are cleaned as the product's are: specks dropped, small holes filled.
    """
    plan = prepare(path, Reading(), networks, parameters)
    with in_scratch(plan) as work:
        found = find_landslides(work)
        spans, _, _ = join_regions(work)
        valid = validity(work.run, plan.grid.window)
    grid, native = plan.grid, plan.reader.scene.grid
    valid = np.ones((grid.height, grid.width), bool) if valid is None else valid
    shown = onto(valid, native)
    active = spans.paint(grid.window, np.ones(len(spans), np.uint8)) > 0
    image = _pixels(plan)
    masks = {ALONE: active} | {name: find(image, valid) for name, find in PEERS.items()}
    ours = {OURS: [found.landslides], WITH: [found.landslides, found.candidates]}
    return Found(
        {name: _answer(tables, shown, native) for name, tables in ours.items()}
        | {name: Answer(onto(tidy(mask, grid, parameters), native), shown, native.gsd) for name, mask in masks.items()},
        _largest(found.tiles),
    )


def gate_probability(path: Path, networks: Networks, parameters: Parameters) -> float:
    """Ask the product whether any tile of a georeferenced scene shows a landslide."""
    with in_scratch(prepare(path, Reading(), networks, parameters)) as work:
        return _largest(localize(work))


def _largest(tiles: gpd.GeoDataFrame) -> float:
    return float(np.nan_to_num(tiles["probability"].to_numpy(float)).max(initial=0))


def _answer(tables: Sequence[gpd.GeoDataFrame], valid: BoolArray, grid: Grid) -> Answer:
    outlines = chain.from_iterable(table.geometry for table in tables)
    confidence = np.concatenate([table["confidence"].to_numpy(float) for table in tables])
    return Answer(polygon_ids(outlines, grid), valid, grid.gsd, confidence)


def polygon_ids(outlines: Iterable[shapely.Geometry], grid: Grid) -> Int32Array:
    """(H, W) number of the polygon, from 1 in the order given, that holds a pixel's centre; 0 elsewhere."""
    shapes = [(outline, number) for number, outline in enumerate(outlines, 1)]
    size = grid.height, grid.width
    if not shapes:
        return np.zeros(size, np.int32)
    ids: Int32Array = rasterize(shapes, size, transform=grid.transform, dtype="int32")
    return ids


A = TypeVar("A", bound=AnyArray)


def onto(values: A, grid: Grid) -> A:
    """Values (h, w) at the centres of a grid (H, W) of the same extent: the scene's own, which the networks may not."""
    if values.shape == (grid.height, grid.width):
        return values
    rows, cols = (
        ((np.arange(wanted) + 0.5) * held / wanted).astype(int)
        for held, wanted in zip(values.shape, (grid.height, grid.width), strict=True)
    )
    taken: A = values[rows[:, None], cols]
    return taken


def _pixels(plan: Plan) -> UInt8Array:
    """(H, W, 3) red, green and blue of the working grid, scaled to 8 bits by one factor where they are deeper."""
    parts = [(window, plan.reader.read(window, plan.grid)[0]) for window in plan.blocks]
    top = max(float(bands.max(initial=0)) for _, bands in parts)
    rgb = np.zeros((plan.grid.height, plan.grid.width, 3), np.uint8)
    for window, bands in parts:
        scaled = bands if bands.dtype == np.uint8 else np.clip(bands * (255 / max(top, 1e-9)), 0, 255)
        rgb[window.slices] = np.moveaxis(scaled, 0, 2)
    return rgb


@dataclass(frozen=True)
class _Held:
    """A mask as a mosaic, for the product's own cleaning."""

    mask: BoolArray

    def scores(self, window: Window) -> UInt8Array:
        return self.mask[window.slices].astype(np.uint8) * np.uint8(FULL)

    def read(self, window: Window, spans: Spans) -> Layers:  # noqa: ARG002
        return Layers(self.scores(window))


def tidy(mask: BoolArray, grid: Grid, parameters: Parameters) -> Int32Array:
    """Number the objects of (H, W) after the cleaning that the product gives its own."""
    found = find_objects(
        _Held(mask),
        BlockGrid(grid.height, grid.width, parameters.block_size),
        threshold=FULL,
        min_area_px=parameters.min_area.pixels(grid.gsd),
        max_hole_px=parameters.max_hole.pixels(grid.gsd),
    )
    ids: Int32Array = found.spans.paint(grid.window, found.labels + np.int32(1))
    return ids

"""A height model on a working grid, and what follows from it under polygons: slope, aspect, relief, curvature."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from geolabel import terrain
from geolabel.errors import SceneError
from geolabel.extraction.plan import Plan
from geolabel.io.read.aligned import AlignedReader, overlaps, source_pixels
from geolabel.io.read.scenes import SceneReader
from geolabel.tiles import Window
from geolabel.types import BoolArray, Float64Array, Int32Array, Int64Array

MAX_STEP_PX = 512
"""Maximum step of slopes in pixels, to bound memory. A coarser height model is linear over more pixels."""

HEIGHT_UNITS = {"": 1.0, "ft": 0.3048, "foot": 0.3048, "feet": 0.3048, "us survey foot": 1200 / 3937} | dict.fromkeys(
    ("m", "metre", "metres", "meter", "meters"), 1.0
)
"""Metres per unit of a height model."""

TERRAIN_LAYERS = ("known", "slope", "east", "north", "high", "low")
"""Whether heights are known, slope in 1/100 of a degree, downslope direction in 1/10,000 of the unit vector, and
heights in centimetres, above the lowest and below the highest possible height; 0 where unknown."""

ANGLE, UNIT, CM, MICRO, MAX_BENT = 100, 10_000, 100, 1_000_000, 2_000_000_000

HEAD = 0.2
"""Share of the relief of an object that is its head, from the top."""


@dataclass(frozen=True)
class Heights:
    """A height model on a working grid."""

    reader: AlignedReader
    step: int
    """Pixels of the working grid per cell of the model."""
    scale: float
    offset: float
    """Metres are ``value * scale + offset``."""

    def read(self, window: Window, plan: Plan) -> tuple[Float64Array, BoolArray]:
        """Metres, and where they are known; raises as `AlignedReader.read`."""
        values, valid = self.reader.read(window, plan.grid)
        metres = values[0] * self.scale + self.offset
        return metres, valid & (metres > terrain.LOWEST_M) & (metres < terrain.HIGHEST_M)


def open_heights(path: str | Path, plans: Sequence[Plan]) -> list[Heights | None]:
    """Open a height model on the grid of each plan; None for grids that it does not overlap.

    Raises
    ------
    SceneError
        If it cannot be opened, has other values than heights, or overlaps no grid.
    """
    reader = SceneReader(path, gsd=plans[0].grid.unit_m)
    header, aligned = reader.header, AlignedReader(reader, bands=1)
    if reader.scene.band_count != 1:
        raise SceneError(f"--dem {header.name} has {header.count} bands: give a raster of heights alone")
    unit = (header.units[0] or "").strip().lower() if header.units else ""
    if unit not in HEIGHT_UNITS:
        raise SceneError(f"--dem {header.name} holds values in {unit}: give heights in metres or feet")
    factor, offset = header.scaling[0] if header.scaling else (1.0, 0.0)
    metres = HEIGHT_UNITS[unit]
    shares = overlaps(aligned, [plan.grid for plan in plans], "--dem")
    return [
        Heights(aligned, _step(plan, reader), factor * metres, offset * metres) if share else None
        for plan, share in zip(plans, shares, strict=True)
    ]


def _step(plan: Plan, reader: SceneReader) -> int:
    wide = source_pixels(plan.grid, reader.scene.grid)
    return max(1, min(MAX_STEP_PX, round(1 / wide)))


def terrain_layers(plan: Plan, heights: Heights, window: Window) -> Int32Array:
    """(L, H, W) the layers `TERRAIN_LAYERS` of a window."""
    found, here = _derived(plan, heights, window)
    layers = (
        found.known,
        np.rint(found.slope * ANGLE),
        np.rint(found.east * UNIT),
        np.rint(found.north * UNIT),
        np.where(found.known, np.rint((here - terrain.LOWEST_M) * CM) + 1, 0),
        np.where(found.known, np.rint((terrain.HIGHEST_M - here) * CM) + 1, 0),
    )
    return np.stack([layer.astype(np.int32) for layer in layers])


def _derived(plan: Plan, heights: Heights, window: Window) -> tuple[terrain.Terrain, Float64Array]:
    """Terrain of a window, and its heights (H, W); 0 where a neighbouring height is unknown."""
    step = heights.step
    around = Window(window.row - step, window.col - step, window.height + 2 * step, window.width + 2 * step)
    metres, known = heights.read(around, plan)
    sizes = terrain.pixel_sizes(plan.grid, range(window.row, window.bottom))
    found = terrain.derive(metres, known, sizes, plan.grid, step)
    return found, np.where(found.known, metres[step:-step, step:-step], 0.0)


def head_layers(plan: Plan, heights: Heights, window: Window, floors: Int64Array) -> Int32Array:
    """(2, H, W) whether each pixel of a window is in the head of an object, and its curvature there, in 1e-6 / m.

    Parameters
    ----------
    floors : (H, W)
        See `head_floors`.
    """
    found, here = _derived(plan, heights, window)
    high = np.where(found.known, np.rint((here - terrain.LOWEST_M) * CM) + 1, 0)
    head = found.known & (high >= floors)
    bent = np.clip(np.rint(found.curvature * MICRO), -MAX_BENT, MAX_BENT)
    return np.stack([head.astype(np.int32), (head * bent).astype(np.int32)])


def terrain_columns(
    sums: Mapping[str, Int64Array], most: Mapping[str, Int64Array], known: BoolArray
) -> dict[str, Float64Array]:
    """Columns of objects from sums and maxima of `TERRAIN_LAYERS`; NaN where `known` (K,) is false."""
    count = np.maximum(sums["known"], 1)
    highest = (most["high"] - 1) / CM + terrain.LOWEST_M
    lowest = terrain.HIGHEST_M - (most["low"] - 1) / CM
    columns = {
        "slope_mean_deg": sums["slope"] / (count * ANGLE),
        "slope_max_deg": most["slope"] / ANGLE,
        "relief_m": highest - lowest,
        "aspect_deg": terrain.aspect(sums["east"].astype(float), sums["north"].astype(float)),
    }
    return {name: np.where(known, np.round(values, 6), np.nan) for name, values in columns.items()}


def head_floors(most: Mapping[str, Int64Array]) -> Int64Array:
    """(K,) lower limit of the head of each object, in the units of the layer ``high``."""
    lowest = round((terrain.HIGHEST_M - terrain.LOWEST_M) * CM) + 2 - most["low"]
    return np.asarray(np.ceil(most["high"] - HEAD * (most["high"] - lowest)), np.int64)

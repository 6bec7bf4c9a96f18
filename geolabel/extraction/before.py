"""A scene from before the event on the working grid: registered, matched in its grey values, and compared.

The scene is read on the pixels of the working grid, moved by one displacement that blocks all over the grid agree on,
and its grey values are matched to those of the scene after the event. What the two differ by in patches all over the
grid is what light and season do; the change of a polygon is measured in units of that.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from geolabel.change import Stable, features, match_greys, patch_means
from geolabel.engine import executors, worker
from geolabel.errors import SceneError, TileError
from geolabel.extraction.plan import Plan, examined
from geolabel.io.read.aligned import AlignedReader, overlaps, source_pixels
from geolabel.io.read.headers import check_image
from geolabel.io.read.masks import hidden_share, open_masks
from geolabel.io.read.scenes import SceneReader
from geolabel.radiometry import Stretch
from geolabel.registration import Displacement, Peaks, confirmed, correlate, displacement
from geolabel.tiles import Window
from geolabel.types import AnyArray, BoolArray, Float64Array, Int32Array, Int64Array, UInt8Array

log = logging.getLogger(__name__)

BLOCK_PX = 256
"""Side of the blocks that the displacement is measured in."""

BLOCKS_ACROSS = 8
"""Maximum number of blocks along each axis."""

MAX_DISPLACEMENT_PX = 32
"""Maximum displacement along either axis that is looked for."""

COARSEST = 8.0
"""Maximum size of the pixels of a scene before, in pixels of the working grid: a landslide has too few larger ones."""

BEFORE_MASK = "--before-mask"
"""What masks of a scene before are given with."""

STRETCH = "p2-98"
"""Of the scene before, as networks are used to. They see it so: matched to another season it has less contrast."""

STEP = 2
"""Pixels along each axis between those that grey values are matched by."""


@dataclass(frozen=True)
class Before:
    """A scene from before the event, on the working grid of a plan."""

    reader: AlignedReader
    """Moved by the displacement."""
    stretch: Stretch
    displacement: Displacement
    tables: UInt8Array
    """(3, 256) what its grey values become, so that unchanged ground looks as in the scene after."""
    stable: Stable
    """How much patches differ."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values for provenance."""
        return {"displacement_px": asdict(self.displacement), "stable": asdict(self.stable)}

    @property
    def marks(self) -> dict[str, Any]:
        """What measurements depend on beside the file, as plain values."""
        return self.as_dict() | {"stretch": asdict(self.stretch), "tables": self.tables.tolist()}


def open_before(
    path: str | Path, plans: Sequence[Plan], *, masks: Sequence[str | Path] = (), register: bool = True
) -> list[Before | None]:
    """A scene from before the event on the grid of each plan; None for grids that it does not reach.

    Parameters
    ----------
    masks
        What is left out of it, see `geolabel.io.read.masks`.
    register
        Whether to measure its displacement; else its position is trusted.

    Raises
    ------
    SceneError
        If it cannot be opened, is no image, is too coarse, misses all grids, or cannot be registered.
    """
    reader = SceneReader(path, gsd=plans[0].grid.unit_m)
    check_image(reader.header)
    for text in reader.warnings:
        log.warning("%s: %s", reader.scene.name, text)
    shares = overlaps(AlignedReader(reader), [plan.grid for plan in plans], "--before")
    if masks:
        reader = reader.without(open_masks(masks, [reader.scene.grid], BEFORE_MASK, gsd=plans[0].grid.unit_m))
        hidden_share(reader, reader.scene.grid, BEFORE_MASK)
    reader, stretch = examined(reader, STRETCH, plans[0].parameters.on_error)
    return [
        _register(AlignedReader(reader), stretch, plan, register=register) if share else None
        for plan, share in zip(plans, shares, strict=True)
    ]


def _register(aligned: AlignedReader, stretch: Stretch, plan: Plan, *, register: bool) -> Before:
    size = 1 / source_pixels(plan.grid, aligned.grid)
    if size > COARSEST:
        raise SceneError(
            f"--before {aligned.reader.scene.name} has pixels that are {size:.3g} times as large as those of the "
            f"working grid, and at most {COARSEST:g} are compared: give a finer scene, or a --working-gsd"
        )
    windows, moved = _blocks(plan), Displacement(0.0, 0.0)
    if register:
        moved = displacement(executors.ordered(partial(_peaks, plan, aligned, stretch), windows), MAX_DISPLACEMENT_PX)
        aligned = aligned.moved((moved.rows, moved.cols))
        left = executors.ordered(partial(_peaks, plan, aligned, stretch), windows)
        moved = confirmed(moved, displacement(left, MAX_DISPLACEMENT_PX))
        aligned = aligned.moved((moved.rows, moved.cols))
        log.info("%s: displaced by %s", aligned.reader.scene.name, moved)
    pairs = list(executors.ordered(partial(_pair, plan, aligned, stretch), windows))
    picked = [(after[::STEP, ::STEP], before[::STEP, ::STEP], valid[::STEP, ::STEP]) for after, before, valid in pairs]
    tables = match_greys(
        np.concatenate([before[valid] for _, before, valid in picked]).T,
        np.concatenate([after[valid] for after, _, valid in picked]).T,
    )
    means = [patch_means(features(after) - features(matched(before, tables)), valid) for after, before, valid in pairs]
    return Before(aligned, stretch, moved, tables, Stable.of(np.concatenate(means, axis=1)))


def _blocks(plan: Plan) -> list[Window]:
    """Windows of one size all over the grid."""
    side = min(BLOCK_PX, plan.grid.height, plan.grid.width)
    rows, cols = (
        np.linspace(0, length - side, min(BLOCKS_ACROSS, max(1, length // side))).astype(int).tolist()
        for length in (plan.grid.height, plan.grid.width)
    )
    return [Window(row, col, side, side) for row in rows for col in cols]


def _read(plan: Plan, aligned: AlignedReader, window: Window) -> tuple[AnyArray, AnyArray, BoolArray] | None:
    """Bands (3, h, w) after and before in a window, and where both are valid; None if one is unreadable."""
    try:
        bands, valid = plan.reader.read(window, plan.grid)
        earlier, known = aligned.read(window, plan.grid)
    except TileError:
        if plan.parameters.on_error == "fail":
            raise
        return None
    return bands, earlier, valid & known


def _peaks(plan: Plan, aligned: AlignedReader, stretch: Stretch, window: Window) -> Peaks:
    """Correlation of a block of both images, each band in units of its brightest ground."""
    read = _read(plan, aligned, window)
    if read is None:
        return {}
    bands, earlier, both = read
    after, before = (
        np.where(both, values * (255 / np.maximum(one.high, 1e-12))[:, None, None], 0.0)
        for values, one in ((bands, plan.stretch), (earlier, stretch))
    )
    return correlate(after, before, both, MAX_DISPLACEMENT_PX)


def _pair(
    plan: Plan, aligned: AlignedReader, stretch: Stretch, window: Window
) -> tuple[UInt8Array, UInt8Array, BoolArray]:
    """The images (h, w, 3) after and before in a window, and where both are valid; nowhere if one is unreadable."""
    read = _read(plan, aligned, window)
    if read is None:
        nothing = np.zeros((window.height, window.width, 3), np.uint8)
        return nothing, nothing, np.zeros((window.height, window.width), bool)
    bands, earlier, both = read
    return plan.stretch.apply(bands, both), stretch.apply(earlier, both), both


def matched(image: UInt8Array, tables: UInt8Array) -> UInt8Array:
    """(h, w, 3) an image with its grey values looked up in the tables (3, 256) of `geolabel.change.match_greys`."""
    return np.stack([table[image[..., band]] for band, table in enumerate(tables)], axis=2)


# --- comparing -------------------------------------------------------------------------------------------------------

LAYERS = ("seen", "greenness", "brightness", "texture", "activation")
"""Where both scenes are valid, the differences of `geolabel.change.features`, and the activation of the scene before,
0 to 255; 0 where one is not valid."""


def compare(
    plan: Plan, before: Before, tile: Window, window: Window, activation: UInt8Array | None = None
) -> Int32Array:
    """(L, H, W) the layers `LAYERS` of a window inside a tile of the localizer, which sees the whole tile.

    Parameters
    ----------
    activation : (H, W)
        Of the scene before in the window, where it is known already.

    Raises
    ------
    TileError
        If one of the scenes cannot be read.
    """
    bands, valid = plan.reader.read(tile, plan.grid)
    earlier, known = before.reader.read(tile, plan.grid)
    both = valid & known
    after, image = plan.stretch.apply(bands, both), before.stretch.apply(earlier, both)
    difference = features(after) - features(matched(image, before.tables))
    here = window.within(tile)
    seen = activation_of(plan, image)[here] if activation is None else activation
    layers = [both[here].astype(np.int32), *difference[:, *here], seen]
    return np.stack([layer * both[here] for layer in layers]).astype(np.int32)


def activation_of(plan: Plan, image: UInt8Array) -> UInt8Array:
    """(H, W) 0..255, the strongest activation of the classes of the plan; 0 where it has no localizer."""
    if not plan.localized:
        return np.zeros(image.shape[:2], np.uint8)
    with worker.network(plan.localizer, plan.parameters.threads):
        (found,) = worker.localizer(plan.localizer)([image])
    size = image.shape[0], image.shape[1]
    grey = [found.grey(found.classes.index(name), size) for name in plan.classes]
    return np.asarray(np.max(grey, axis=0), np.uint8)


def change_columns(
    totals: dict[str, Int64Array], areas: Int64Array, before: Before, share: float, *, localized: bool
) -> dict[str, Float64Array]:
    """Columns `geolabel.io.columns.CHANGE` of objects of `areas` pixels, NaN where less than `share` of one is seen.

    Parameters
    ----------
    totals
        (K,) sums of each layer of `LAYERS`.
    localized
        Whether there was a localizer to see the scene before.
    """
    seen = totals["seen"] >= share * np.maximum(areas, 1)
    count = np.maximum(totals["seen"], 1)
    means = np.stack([totals[name] / count for name in ("greenness", "brightness", "texture")])
    activation = totals["activation"] / (255 * count) if localized else np.full(len(count), math.nan)
    columns = {"change_z": before.stable.change(means), "activation_before": activation}
    return {
        name: np.where(seen & np.isfinite(values), np.round(values, 6), math.nan) for name, values in columns.items()
    }

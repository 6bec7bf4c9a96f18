"""Images from before the event on the working grid: registered, with matched grey values, and compared.

An image is read on the working grid, shifted by one displacement that blocks all over the grid agree on. Of several
images, the first that is valid at a pixel is used. Grey values are matched to those of the scene after the event. The
differences of patches all over the grid estimate the effect of light and season; the change of a polygon is measured in
units of that.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from geolabel.change import TEXTURE_PX, Stable, features, match_greys, patch_means
from geolabel.engine import executors, worker
from geolabel.errors import SceneError, TileError
from geolabel.extraction.plan import Plan, examined
from geolabel.io.columns import ACTIVITIES
from geolabel.io.read.aligned import AlignedReader, overlaps, source_pixels
from geolabel.io.read.headers import check_image
from geolabel.io.read.masks import hidden_share, open_masks
from geolabel.io.read.scenes import SceneReader
from geolabel.radiometry import Stretch
from geolabel.registration import Displacement, Peaks, confirmed, correlate, displacement
from geolabel.scene import Grid, Scene
from geolabel.tiles import Window
from geolabel.types import AnyArray, BoolArray, Float64Array, Int32Array, Int64Array, UInt8Array

log = logging.getLogger(__name__)

BLOCK_PX = 256
"""Side in pixels of the blocks in which the displacement is measured."""

BLOCKS_ACROSS = 8
"""Maximum number of blocks along each axis."""

MAX_DISPLACEMENT_PX = 32
"""Maximum displacement along either axis, pixels."""

COARSEST = 8.0
"""Maximum pixel size of an earlier image, in pixels of the working grid: a landslide has too few larger ones."""

BEFORE_MASK = "--before-mask"
"""Option for masks of an earlier image."""

STRETCH = "p2-98"
"""Stretch of an earlier image for networks; matched to another season it would have less contrast."""

STEP = 2
"""Step in pixels along each axis of the sample for matching grey values."""


class _Readable(Protocol):
    """A raster that can be read on a working grid."""

    def read(self, window: Window, grid: Grid) -> tuple[AnyArray, BoolArray]:
        """Bands (3, height, width), and where they are valid."""
        ...


@dataclass(frozen=True)
class Layer:
    """One earlier image, on the working grid of a plan."""

    reader: AlignedReader
    """Shifted by the displacement."""
    stretch: Stretch
    displacement: Displacement
    tables: UInt8Array = field(default_factory=lambda: np.tile(np.arange(256, dtype=np.uint8), (3, 1)))
    """(3, 256) table of grey values, matched to the first of several images."""

    @property
    def scene(self) -> Scene:
        """Header data."""
        return self.reader.reader.scene


@dataclass(frozen=True)
class Filled:
    """Several earlier images as one: at each pixel, the first valid one is used."""

    layers: tuple[Layer, ...]

    def read(self, window: Window, grid: Grid) -> tuple[Float64Array, BoolArray]:
        """Grey values (3, height, width) with the stretch of the first image, and where any is valid."""
        image, valid = np.zeros((3, window.height, window.width)), np.zeros((window.height, window.width), bool)
        for layer in self.layers:
            if valid.all():
                break
            bands, known = layer.reader.read(window, grid)
            new = known & ~valid
            image[:, new] = matched(layer.stretch.apply(bands, known), layer.tables)[new].T
            valid |= new
        return image, valid


GREY = Stretch((0.0,) * 3, (255.0,) * 3, "none")
"""Stretch of several images, which are stretched before they are merged."""


@dataclass(frozen=True)
class Before:
    """Earlier images of a place, on the working grid of a plan."""

    layers: tuple[Layer, ...]
    """The images, in order of precedence."""
    tables: UInt8Array
    """(3, 256) table of grey values, matched so that unchanged ground looks as in the scene after the event."""
    stable: Stable
    """Distribution of the differences between patches of the images and of the scene."""

    @property
    def reader(self) -> AlignedReader | Filled:
        """The single image, or several as one."""
        return self.layers[0].reader if len(self.layers) == 1 else Filled(self.layers)

    @property
    def stretch(self) -> Stretch:
        """Stretch of `reader`."""
        return self.layers[0].stretch if len(self.layers) == 1 else GREY

    @property
    def displacements(self) -> list[Displacement]:
        """Displacement of each image."""
        return [layer.displacement for layer in self.layers]

    @property
    def dates(self) -> list[str | None]:
        """ISO 8601 date of each image, if known."""
        return [layer.scene.event_date for layer in self.layers]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for provenance."""
        moved = [asdict(one) for one in self.displacements]
        return {"displacement_px": moved[0] if len(moved) == 1 else moved, "stable": asdict(self.stable)}

    @property
    def marks(self) -> dict[str, Any]:
        """Values besides the files that measurements depend on, as plain values."""
        layers = [{"stretch": asdict(layer.stretch), "tables": layer.tables.tolist()} for layer in self.layers]
        return self.as_dict() | {"layers": layers, "tables": self.tables.tolist()}


def open_before(
    paths: Sequence[str | Path],
    plans: Sequence[Plan],
    *,
    masks: Sequence[Sequence[str | Path]] = (),
    register: bool = True,
) -> list[Before | None]:
    """Open the earlier images on the grid of each plan; None for grids that none overlaps.

    Parameters
    ----------
    paths
        In order of precedence: where one is not valid, or is masked, the next one is used.
    masks
        Masks of each, see `geolabel.io.read.masks`; empty for none.
    register
        Whether to measure displacements; otherwise positions are trusted.

    Raises
    ------
    SceneError
        If one cannot be opened, is not an image, is too coarse, overlaps no grid, or cannot be registered.
    """
    each = masks or [()] * len(paths)
    opened = [_open(path, plans, own) for path, own in zip(paths, each, strict=True)]
    found: list[Before | None] = []
    for number, plan in enumerate(plans):
        images = [(reader, stretch) for reader, stretch, shares in opened if shares[number]]
        layers = [_register(AlignedReader(reader), stretch, plan, register=register) for reader, stretch in images]
        found.append(_together(layers, plan) if layers else None)
    return found


def _open(
    path: str | Path, plans: Sequence[Plan], masks: Sequence[str | Path]
) -> tuple[SceneReader, Stretch, list[float]]:
    """A masked image, its stretch, and the share of the grid of each plan that it covers."""
    reader = SceneReader(path, gsd=plans[0].grid.unit_m)
    check_image(reader.header)
    for text in reader.warnings:
        log.warning("%s: %s", reader.scene.name, text)
    shares = overlaps(AlignedReader(reader), [plan.grid for plan in plans], "--before")
    if masks:
        reader = reader.without(open_masks(masks, [reader.scene.grid], BEFORE_MASK, gsd=plans[0].grid.unit_m))
        hidden_share(reader, reader.scene.grid, BEFORE_MASK)
    for plan in plans:
        own, later = plan.reader.scene.event_date, reader.scene.event_date
        if own is not None and later is not None and later > own:
            log.warning(
                "%s is of %s, later than %s of %s: is the first the image before the event, and the second after it?",
                *(reader.scene.name, later, plan.reader.scene.name, own),
            )
    return *examined(reader, STRETCH, plans[0].parameters.on_error), shares


def _register(aligned: AlignedReader, stretch: Stretch, plan: Plan, *, register: bool) -> Layer:
    size = 1 / source_pixels(plan.grid, aligned.grid)
    if size > COARSEST:
        raise SceneError(
            f"--before {aligned.reader.scene.name} has pixels that are {size:.3g} times as large as those of the "
            f"working grid; the limit is {COARSEST:g}: give a finer scene, or a --working-gsd"
        )
    windows, moved = _blocks(plan), Displacement(0.0, 0.0)
    if register:
        moved = displacement(executors.ordered(partial(_peaks, plan, aligned, stretch), windows), MAX_DISPLACEMENT_PX)
        aligned = aligned.moved((moved.rows, moved.cols))
        left = executors.ordered(partial(_peaks, plan, aligned, stretch), windows)
        moved = confirmed(moved, displacement(left, MAX_DISPLACEMENT_PX))
        aligned = aligned.moved((moved.rows, moved.cols))
        log.info("%s: displaced by %s", aligned.reader.scene.name, moved)
    return Layer(aligned, stretch, moved)


def _together(layers: Sequence[Layer], plan: Plan) -> Before:
    """Registered images, with their grey values matched to each other."""
    (first, *others), windows = layers, _blocks(plan)

    def read(one: Layer | Before, other: tuple[_Readable, Stretch]) -> list[tuple[UInt8Array, UInt8Array, BoolArray]]:
        return list(executors.ordered(partial(_pair, plan, (one.reader, one.stretch), other), windows))

    alike = [replace(layer, tables=_tables(read(layer, (first.reader, first.stretch)))) for layer in others]
    known = Before((first, *alike), first.tables, Stable.of(np.zeros((3, 0))))
    pairs = read(known, (plan.reader, plan.stretch))
    tables = _tables(pairs)
    means = [patch_means(features(after) - features(matched(before, tables)), valid) for before, after, valid in pairs]
    return replace(known, tables=tables, stable=Stable.of(np.concatenate(means, axis=1)))


def _tables(pairs: Sequence[tuple[UInt8Array, UInt8Array, BoolArray]]) -> UInt8Array:
    """Tables that map grey values of the first images (h, w, 3) of pairs to the second, where both are valid."""
    picked = [(one[::STEP, ::STEP], other[::STEP, ::STEP], valid[::STEP, ::STEP]) for one, other, valid in pairs]
    return match_greys(
        np.concatenate([one[valid] for one, _, valid in picked]).T,
        np.concatenate([other[valid] for _, other, valid in picked]).T,
    )


def _blocks(plan: Plan) -> list[Window]:
    """Windows of one size, spread over the grid."""
    side = min(BLOCK_PX, plan.grid.height, plan.grid.width)
    rows, cols = (
        np.linspace(0, length - side, min(BLOCKS_ACROSS, max(1, length // side))).astype(int).tolist()
        for length in (plan.grid.height, plan.grid.width)
    )
    return [Window(row, col, side, side) for row in rows for col in cols]


def _read(plan: Plan, one: _Readable, other: _Readable, window: Window) -> tuple[AnyArray, AnyArray, BoolArray] | None:
    """Bands (3, h, w) of both in a window, and where both are valid; None if one cannot be read."""
    try:
        bands, valid = one.read(window, plan.grid)
        others, known = other.read(window, plan.grid)
    except TileError:
        if plan.parameters.on_error == "fail":
            raise
        return None
    return bands, others, valid & known


def _peaks(plan: Plan, aligned: AlignedReader, stretch: Stretch, window: Window) -> Peaks:
    """Correlation of a block of the scene and an earlier image, each band relative to its brightest ground."""
    read = _read(plan, plan.reader, aligned, window)
    if read is None:
        return {}
    bands, earlier, both = read
    after, before = (
        np.where(both, values * (255 / np.maximum(one.high, 1e-12))[:, None, None], 0.0)
        for values, one in ((bands, plan.stretch), (earlier, stretch))
    )
    return correlate(after, before, both, MAX_DISPLACEMENT_PX)


def _pair(
    plan: Plan, one: tuple[_Readable, Stretch], other: tuple[_Readable, Stretch], window: Window
) -> tuple[UInt8Array, UInt8Array, BoolArray]:
    """Two images (h, w, 3) in a window, and where both are valid; nowhere if one cannot be read."""
    read = _read(plan, one[0], other[0], window)
    if read is None:
        nothing = np.zeros((window.height, window.width, 3), np.uint8)
        return nothing, nothing, np.zeros((window.height, window.width), bool)
    bands, others, both = read
    return one[1].apply(bands, both), other[1].apply(others, both), both


def matched(image: UInt8Array, tables: UInt8Array) -> UInt8Array:
    """(h, w, 3) an image with its grey values looked up in the tables (3, 256) of `geolabel.change.match_greys`."""
    return np.stack([table[image[..., band]] for band, table in enumerate(tables)], axis=2)


def event_after(before: Before, shown: Sequence[Int64Array], areas: Int64Array, share: float) -> AnyArray:
    """(K,) ISO 8601 date of the last image that shows at least a share of each object; None if unknown.

    Parameters
    ----------
    shown
        (K,) for each image the pixels of objects, of `areas` pixels, that it shows.
    """
    found = np.full(len(areas), None, object)
    for date, pixels in sorted(
        ((date, pixels) for date, pixels in zip(before.dates, shown, strict=True) if date), key=itemgetter(0)
    ):
        found[pixels >= share * np.maximum(areas, 1)] = date
    return found


def shown_by(plan: Plan, before: Before, window: Window) -> Int32Array:
    """(images, height, width) 1 where each earlier image is used in a window.

    Raises
    ------
    TileError
        If one cannot be read.
    """
    shown = np.zeros((len(before.layers), window.height, window.width), np.int32)
    for number, layer in enumerate(before.layers):
        if shown.any(axis=0).all():
            break
        shown[number] = layer.reader.read(window, plan.grid)[1] & ~shown.any(axis=0)
    return shown


ACTIVE_BEFORE, QUIET_BEFORE, CHANGED = 0.3, 0.1, 1.5
"""Minimum earlier activation of a reactivated landslide, maximum of a new one, and minimum change of both."""


def activity(change: Float64Array, activation: Float64Array) -> AnyArray:
    """(K,) one of `geolabel.io.columns.ACTIVITIES` of objects by their columns of `change_columns`, or None."""
    said = np.full(len(change), None, object)
    for name, there in zip(ACTIVITIES, (activation >= ACTIVE_BEFORE, activation <= QUIET_BEFORE), strict=True):
        said[there & (change > CHANGED)] = name
    return said


# --- comparing -------------------------------------------------------------------------------------------------------

LAYERS = ("seen", "greenness", "brightness", "texture", "activation")
"""Where both scenes are valid, differences of `geolabel.change.features`, and activation of the earlier scene, 0 to
255; 0 where either is not valid."""


def compare(
    plan: Plan, before: Before, tile: Window, window: Window, activation: UInt8Array | None = None
) -> Int32Array:
    """(L, H, W) the layers `LAYERS` of a window inside a tile of the localizer, which sees the whole tile.

    Parameters
    ----------
    activation : (H, W)
        Known activation of the earlier scene in the window: then only the window is read, with the pixels that its
        texture depends on.

    Raises
    ------
    TileError
        If one of the scenes cannot be read.
    """
    around = tile if activation is None else window.grown(TEXTURE_PX // 2).shared(tile)
    bands, valid = plan.reader.read(around, plan.grid)
    earlier, known = before.reader.read(around, plan.grid)
    both, here = valid & known, window.within(around)
    after, image = plan.stretch.apply(bands, both), before.stretch.apply(earlier, both)
    difference = features(after) - features(matched(image, before.tables))
    seen = activation_of(plan, image)[here] if activation is None else activation
    layers = [both[here].astype(np.int32), *difference[:, *here], seen]
    return np.stack([layer * both[here] for layer in layers]).astype(np.int32)


def activation_of(plan: Plan, image: UInt8Array) -> UInt8Array:
    """(H, W) 0..255, maximum activation over the classes of the plan; 0 without a localizer."""
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
    """Columns `geolabel.io.columns.CHANGE` of objects of `areas` pixels; NaN if less than `share` of one is visible.

    Parameters
    ----------
    totals
        (K,) sums of each layer of `LAYERS`.
    localized
        Whether a localizer processed the earlier scene.
    """
    seen = totals["seen"] >= share * np.maximum(areas, 1)
    count = np.maximum(totals["seen"], 1)
    means = np.stack([totals[name] / count for name in ("greenness", "brightness", "texture")])
    activation = totals["activation"] / (255 * count) if localized else np.full(len(count), math.nan)
    columns = {"change_z": before.stable.change(means), "activation_before": activation}
    return {
        name: np.where(seen & np.isfinite(values), np.round(values, 6), math.nan) for name, values in columns.items()
    }

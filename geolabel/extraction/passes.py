"""The passes over a scene: the only functions that workers run.

Each takes the run and a task number, reads results of earlier passes from the store, writes one record, and returns the
few numbers that the client needs. No two tasks write the same record.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from functools import lru_cache, partial
from typing import Any, Self

import numpy as np
from scipy import ndimage

from geolabel import activation, mosaic
from geolabel.activation import LEVELS, Activation
from geolabel.engine import worker
from geolabel.engine.tasks import Pass
from geolabel.errors import TileError
from geolabel.extraction import activation_maps
from geolabel.extraction.activation_maps import Tiles, blend_activation, class_probability, reach, validity
from geolabel.extraction.plan import Plan, PromptedWindow, Run
from geolabel.io.records import Store
from geolabel.labelers import classes_of, follow_activation, most_alike
from geolabel.masks import FULL, ClassedMasks, Masks
from geolabel.mosaic import Layers
from geolabel.parts import EverythingRecipe
from geolabel.prompts import Prompts
from geolabel.spans import Spans, pixel_sums
from geolabel.tiles import Window, extent, strips
from geolabel.types import AnyArray, BoolArray, Float32Array, Int32Array, Int64Array, UInt8Array

log = logging.getLogger(__name__)

STRIP = 8
"""Maximum number of windows read at once: tiles overlap, and shared pixels are then read and stretched once."""

NOWHERE = (slice(0, 0), slice(0, 0))

NO_DATA, CLEAR, FOUND, FAILED, UNSEEN = "nodata", "clear", "landslide", "failed", "unseen"
"""Status of a tile: nothing valid in it, below the gate, above the gate, unreadable, or not processed by the localizer
since prompts were given."""


@dataclass(frozen=True)
class TileReport:
    """Result of the first pass for one tile."""

    index: int
    status: str
    probability: float | None
    message: str | None = None


@dataclass(frozen=True)
class MaskTable:
    """Windows and qualities of the masks of one segmentation task."""

    windows: Int64Array
    """(M, 4) row, col, height, width of the crop around the mask."""
    prompt_ids: Int64Array
    predicted_iou: Float32Array
    stability: Float32Array
    followed: BoolArray
    """(M,) whether it is the region of the activation, which replaced a mask that disagreed with it."""
    class_ids: Int32Array
    """(M,) index into the classes of the plan."""
    failures: tuple[tuple[Window, str], ...] = ()
    """Windows that could not be segmented, with the reason."""


# --- 1. localize -----------------------------------------------------------------------------------------------------


def _localize(run: Run, task: int) -> list[TileReport]:
    """Write the activation, the class probability and the validity of a batch of tiles."""
    plan = run.plan
    tiles = plan.tiles_of(task)
    images, valid, failures = _read(plan, [plan.localize_tiles[index] for index in tiles])
    seen = [k for k, mask in enumerate(valid) if mask.any()] if run.localized else []
    maps = dict(zip(seen, _locate(plan, [images[k] for k in seen]), strict=True)) if seen else {}
    for k, found in list(maps.items()):
        if not (np.isfinite(found.values).all() and np.isfinite(found.local_probability).all()):
            failures[k] = _not_numbers(plan, "localizer", plan.localize_tiles[tiles[k]])
            valid[k] = np.zeros_like(valid[k])
            del maps[k]
    record: dict[str, AnyArray] = {
        "seen": np.asarray(list(maps), np.int32),
        "stride": np.asarray(next((found.stride for found in maps.values()), 1), np.int32),
        "valid": np.packbits(np.stack(valid), axis=-1),
        "whole": np.asarray([mask.all() for mask in valid]),
    }
    probability = dict.fromkeys(maps, 0.0)
    for class_id, name in enumerate(plan.classes):
        own = {k: found.classes.index(name) for k, found in maps.items()}
        # an array for each class: later passes read one class at a time
        for kind, values in (("activation", "values"), ("probability", "local_probability")):
            grey = [activation.quantise(getattr(maps[k], values)[c]) for k, c in own.items()]
            record[f"{kind}_{class_id}"] = _stack(grey)
        probability = {k: max(probability[k], float(maps[k].probability[c])) for k, c in own.items()}
    run.store.write("localize", task, record)
    status = [_status(run, failures.get(k), mask, probability.get(k)) for k, mask in enumerate(valid)]
    return [TileReport(index, status[k], probability.get(k), failures.get(k)) for k, index in enumerate(tiles)]


def _locate(plan: Plan, images: Sequence[UInt8Array]) -> list[Activation]:
    images = worker.waiting(plan.localizer, images)
    with worker.network(plan.localizer, plan.parameters.threads):
        return worker.localizer(plan.localizer)(images)


def _not_numbers(plan: Plan, role: str, window: Window) -> str:
    """Report that a network failed on a window; raises if that ends the run."""
    message = (
        f"{plan.reader.scene.name}: the {role} returns values that are not finite for {window}: "
        "check its weights, try --precision fp32, or skip such parts with --on-error skip"
    )
    if plan.parameters.on_error == "fail":
        raise TileError(message)
    log.warning("%s", message)
    return message


def _read(plan: Plan, windows: list[Window]) -> tuple[list[UInt8Array], list[BoolArray], dict[int, str]]:
    """Stretched images and validity of windows; messages of those that failed, which count as not valid."""
    images: list[UInt8Array] = []
    valid: list[BoolArray] = []
    failures: dict[int, str] = {}
    for strip, members in strips(windows, STRIP):
        try:
            image, mask = _picture(plan, strip)
        except TileError:  # reading each alone shows which one failed
            parts = [_alone(plan, window) for window in members]
        else:
            parts = [(image[window.within(strip)], mask[window.within(strip)], None) for window in members]
        failures |= {len(images) + k: message for k, (*_, message) in enumerate(parts) if message is not None}
        images += [image for image, *_ in parts]
        valid += [mask for _, mask, _ in parts]
    return images, valid, failures


def _picture(plan: Plan, window: Window) -> tuple[UInt8Array, BoolArray]:
    bands, valid = plan.reader.read(window, plan.grid)
    return plan.stretch.apply(bands, valid), valid


def _alone(plan: Plan, window: Window) -> tuple[UInt8Array, BoolArray, str | None]:
    try:
        return *_picture(plan, window), None
    except TileError as error:
        if plan.parameters.on_error == "fail":
            raise
        log.warning("%s", error)
        shape = window.height, window.width
        return np.zeros((*shape, 3), np.uint8), np.zeros(shape, bool), str(error)


def _stack(arrays: list[UInt8Array]) -> UInt8Array:
    return np.stack(arrays) if arrays else np.zeros((0, 1, 1), np.uint8)


def _status(run: Run, failure: str | None, valid: BoolArray, probability: float | None) -> str:
    if failure is not None:
        return FAILED
    if not valid.any():
        return NO_DATA
    if probability is None:
        return UNSEEN
    return FOUND if probability >= run.plan.method.gate else CLEAR


def _where_tiles(run: Run, task: int) -> str:
    tiles = run.plan.tiles_of(task)
    return f"tiles {tiles[0]} to {tiles[-1]}, from {run.plan.localize_tiles[tiles[0]]} on"


LOCALIZE = Pass("localize", _localize, list[TileReport], _where_tiles, pixels="localize")


# --- 2. prompt -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Regions:
    """Spans of a block whose blended activation exceeds the threshold (APSAM, eq. 2)."""

    spans: Spans
    probability: Int64Array
    """(N,) maximum class probability under each span, 0..255."""


def _find_regions(run: Run, job: tuple[int, int]) -> Regions:
    """Threshold the blended activation of a class in a block; the job names both."""
    block, class_id = job
    window = run.plan.blocks[block]
    threshold = run.plan.method.activation_threshold
    binary = blend_activation(run, window, class_id, partial(reach, threshold)) > threshold
    valid = validity(run, window)
    if valid is not None:
        binary &= valid
    spans = Spans.of_mask(binary, window)
    return Regions(spans, pixel_sums(spans, window, class_probability(run, window, class_id, binary))[1])


def where_block(run: Run, job: Sequence[Any]) -> str:
    """Description of a job that starts with a block and a class."""
    block, class_id = job[:2]
    of = f", class {run.plan.classes[class_id]}" if len(run.plan.classes) > 1 else ""
    return f"block {block}, {run.plan.blocks[block]}{of}"


PROMPT = Pass("prompt", _find_regions, Regions, where_block)


# --- 3. segment ------------------------------------------------------------------------------------------------------


def segment(run: Run, job: tuple[int, list[PromptedWindow]]) -> MaskTable:
    """Write the masks for the prompts of a batch of windows, each cropped."""
    task, prompted = job
    crops: list[UInt8Array] = []
    rows: list[tuple[Window, int, float, float, int, bool]] = []
    failures: list[tuple[Window, str]] = []
    for seen, valid, masks in _answers(run, prompted, failures):
        masks, followed = _followed(run, seen, masks)
        classes = _classes(run.plan, masks, seen.prompts)
        for m in np.flatnonzero((masks.quality >= run.plan.method.min_quality) & (classes >= 0)):
            place, scores = _crop(masks.scores[m], valid, seen.window)
            if scores.size:
                quality = masks.predicted_iou[m], masks.stability[m]
                rows.append((place, masks.prompt_ids[m], *quality, classes[m], followed[m]))
                crops.append(scores.ravel())
    table = MaskTable(
        windows=np.asarray([astuple(place) for place, *_ in rows], np.int64).reshape(-1, 4),
        prompt_ids=np.asarray([row[1] for row in rows], np.int64),
        predicted_iou=np.asarray([row[2] for row in rows], np.float32),
        stability=np.asarray([row[3] for row in rows], np.float32),
        class_ids=np.asarray([row[4] for row in rows], np.int32),
        followed=np.asarray([row[5] for row in rows], bool),
        failures=tuple(failures),
    )
    flat = np.concatenate([np.zeros(0, np.uint8), *crops])
    run.store.write("segment", task, {"windows": table.windows, "scores": flat})
    return table


def _classes(plan: Plan, masks: Masks, prompts: Prompts) -> Int32Array:
    """(M,) index into the classes of the plan; -1 for masks of another class."""
    if not isinstance(masks, ClassedMasks):
        return classes_of(masks, prompts)
    assert isinstance(plan.segmenter, EverythingRecipe)
    assert plan.segmenter.clusters is not None
    names = plan.segmenter.clusters.class_names
    return np.asarray([plan.classes.index(n) if n in plan.classes else -1 for n in names], np.int32)[masks.class_ids]


def _answers(
    run: Run, prompted: list[PromptedWindow], failures: list[tuple[Window, str]]
) -> Iterator[tuple[PromptedWindow, BoolArray, Masks]]:
    """Yield windows, their validity, and their masks; failed ones are added to `failures`."""
    plan, batch = run.plan, run.plan.segmenter.batch
    ahead = -(-STRIP // batch) * batch
    for start in range(0, len(prompted), ahead):
        part = prompted[start : start + ahead]
        images, valid, failed = _read(plan, [item.window for item in part])
        failures += [(part[k].window, message) for k, message in failed.items()]
        part = [_without_invalid(item, mask) for item, mask in zip(part, valid, strict=True)]
        kept = [k for k in range(len(part)) if k not in failed]
        for first in range(0, len(kept), batch):
            some = kept[first : first + batch]
            answers = _answer(run, [images[k] for k in some], [part[k] for k in some])
            for k, masks in zip(some, answers, strict=True):
                if np.isfinite(masks.quality).all():
                    yield part[k], valid[k], masks
                else:
                    failures.append((part[k].window, _not_numbers(plan, "segmenter", part[k].window)))


def _without_invalid(item: PromptedWindow, valid: BoolArray) -> PromptedWindow:
    if item.reach is None or valid.all():
        return item
    near = ndimage.maximum_filter(valid, 2 * item.reach + 1, mode="constant")
    col, row = (item.prompts.points[:, 0] - (item.window.col, item.window.row)).astype(np.int64).T
    return replace(item, prompts=item.prompts[near[row, col]])


def _answer(run: Run, images: Sequence[UInt8Array], prompted: list[PromptedWindow]) -> list[Masks]:
    images = worker.waiting(run.plan.segmenter, images)
    prompts = [item.prompts.shift(-item.window.col, -item.window.row) for item in prompted]
    with worker.network(run.plan.segmenter, run.plan.parameters.threads):
        answers = worker.segmenter(run.plan.segmenter)(images, prompts)
    if run.plan.method.selection != "overlap":
        return answers
    active = (_active(run, item.window) for item in prompted)
    return [masks[most_alike(masks, asked, here)] for masks, asked, here in zip(answers, prompts, active, strict=True)]


def _followed(run: Run, seen: PromptedWindow, masks: Masks) -> tuple[Masks, BoolArray]:
    """Masks, and which were replaced since they disagree with the activation, if the method does that."""
    if not (run.localized and run.plan.method.activation_floor and len(masks)):
        return masks, np.zeros(len(masks), bool)
    prompts = seen.prompts.shift(-seen.window.col, -seen.window.row)
    return follow_activation(masks, prompts, _grey(run, seen.window), run.plan.method.activation_threshold)


def _active(run: Run, window: Window) -> BoolArray:
    """(C, H, W) where the activation of each class exceeds the threshold."""
    return _grey(run, window) > run.plan.method.activation_threshold


def _grey(run: Run, window: Window) -> UInt8Array:
    """(C, H, W) activation of each class, exact where it exceeds the threshold."""
    near = partial(reach, run.plan.method.activation_threshold)
    return np.stack([blend_activation(run, window, c, near) for c in range(len(run.plan.classes))])


def _crop(scores: UInt8Array, valid: BoolArray, window: Window) -> tuple[Window, UInt8Array]:
    """Window of the valid part of a mask, and its scores there; an empty array if there is none."""
    near = extent(scores) or NOWHERE
    scores = scores[near] * valid[near]
    inner = extent(scores) or NOWHERE  # smaller if parts of the mask are not valid
    return window.part(near).part(inner), scores[inner]


def _where_windows(_: Run, job: tuple[int, list[PromptedWindow]]) -> str:
    return f"{len(job[1])} prompts' windows, from {job[1][0].window} on"


SEGMENT = Pass("segment", segment, MaskTable, _where_windows, pixels="segment")


# --- 4. merge --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MaskPlace:
    """One mask that intersects a block: its number in the run, and where its scores are stored."""

    number: int
    task: int
    position: int
    drawn: bool = False
    """Whether it answers a prompt drawn by a person."""


@lru_cache(maxsize=16)
def _segment_record(store: Store, task: int) -> tuple[Int64Array, Int64Array, UInt8Array]:
    record = store.read("segment", task)
    sizes = record["windows"][:, 2] * record["windows"][:, 3]
    return record["windows"], np.concatenate([[0], np.cumsum(sizes)]), record["scores"]


def forget() -> None:
    """Drop cached records when their run has ended."""
    activation_maps.forget()
    _segment_record.cache_clear()


def _mask_crops(
    store: Store, places: list[MaskPlace], *, drawn: bool = False
) -> Iterator[tuple[Window, UInt8Array, int]]:
    """Yield windows and scores of masks, and their place in the list from 1; with `drawn`, only those of a person."""
    for k, place in enumerate(places, 1):
        if place.drawn or not drawn:
            yield *mask_crop(store, place.task, place.position), k


def mask_crop(store: Store, task: int, position: int) -> tuple[Window, UInt8Array]:
    """Window of a mask, and its scores (H, W), 0..254; `position` is its row in the table of a task."""
    windows, offsets, scores = _segment_record(store, task)
    window = Window(*(int(v) for v in windows[position]))
    return window, scores[offsets[position] : offsets[position + 1]].reshape(window.height, window.width)


def _merge(run: Run, job: tuple[int, int, list[MaskPlace]]) -> bool:
    """Write the mosaic of a class in a block: maximum score and winning mask of each pixel. False if empty.

    A block without a record has score 0 everywhere and no winner.
    """
    block, class_id, places = job
    window = run.plan.blocks[block]
    valid = validity(run, window)
    if not places and valid is None:
        return False
    # Few masks intersect a block: winners are stored as indices into `numbers`, usually in one byte.
    numbers = np.asarray([mosaic.NO_MASK, *(place.number for place in places)], np.int32)
    kind = next(kind for kind in (np.uint8, np.uint16, np.uint32) if len(places) <= np.iinfo(kind).max)
    scores, winner = mosaic.merge_scores(window, _mask_crops(run.store, places), kind)
    if run.localized and run.plan.method.activation_floor:
        kept = _above_floor(run, window, class_id, scores)
        scores, winner = scores * kept, winner * kept
        if any(place.drawn for place in places):  # below the floor, only masks of prompts drawn by a person are used
            asked, whose = mosaic.merge_scores(window, _mask_crops(run.store, places, drawn=True), kind)
            scores, winner = np.where(kept, scores, asked), np.where(kept, winner, whose)
    if valid is not None:
        scores = mosaic.mark_outside(scores, valid)
        winner *= valid
    arrays = {"scores": scores, "winner": winner, "numbers": numbers}
    run.store.write("mosaic", run.plan.layer(block, class_id), arrays)
    return True


def _merge_maps(run: Run, job: tuple[int, int]) -> bool:
    """Write the mosaic of a class in a block from the localizer's map; False if empty, as in `_merge`."""
    block, class_id = job
    window = run.plan.blocks[block]
    grey = run.plan.method.map_of(run, window, class_id)
    valid = validity(run, window)
    if valid is None and not grey.any():
        return False
    scores = to_scores(grey)
    scores = scores if valid is None else mosaic.mark_outside(scores, valid)
    run.store.write("mosaic", run.plan.layer(block, class_id), {"scores": scores})
    return True


def to_scores(grey: UInt8Array) -> UInt8Array:
    """(H, W) scores 0..254 of grey values 0..255; one half, between 127 and 128, is between 126 and 127 of them."""
    table: UInt8Array = np.floor(np.arange(LEVELS + 1) * (FULL / LEVELS)).astype(np.uint8)
    return table[grey]


def _above_floor(run: Run, window: Window, class_id: int, scores: UInt8Array) -> BoolArray:
    """(H, W) where the blended activation of a class under the masks of a window exceeds the floor."""
    floor = run.plan.method.activation_floor or 0

    def masked(patch: Window, tiles: Tiles) -> Window | None:
        near, place = reach(floor, patch, tiles), extent(scores[patch.within(window)])
        return None if near is None or place is None else near.intersection(patch.part(place))

    return blend_activation(run, window, class_id, masked) > floor


MERGE = Pass("merge", _merge, bool, where_block, pixels="mosaic")
MERGE_MAPS = Pass("merge", _merge_maps, bool, where_block, pixels="mosaic")


AttributeLayer = Callable[[Run, int, Window, Spans], AnyArray]
"""Values (H, W) of a layer for a class in a window, as integers; only needed under the spans."""


def _attribute_layers(run: Run) -> dict[str, AttributeLayer]:
    """Layers with further attributes of polygons, by their name in `geolabel.io.columns`."""
    return {"activation": _activation_under} if run.localized else {}


def _activation_under(run: Run, class_id: int, window: Window, spans: Spans) -> UInt8Array:
    def covered(patch: Window, _: Tiles) -> Window | None:
        return spans.clip(patch)[0].hull

    return blend_activation(run, window, class_id, covered)


@dataclass(frozen=True)
class MosaicSource:
    """The finished mosaic of a class, read window by window for polygons and rasters."""

    run: Run
    class_id: int = 0
    """Index into the classes of the plan."""

    @classmethod
    def of_classes(cls, run: Run) -> list[Self]:
        """One for each class of the plan."""
        return [cls(run, class_id) for class_id in range(len(run.plan.classes))]

    def scores(self, window: Window) -> UInt8Array:
        """(H, W) 0..254, or `OUTSIDE`."""
        scores = np.zeros((window.height, window.width), np.uint8)
        for block, shared, record in self._records(window, "scores"):
            scores[shared.within(window)] = record["scores"][shared.within(block)]
        return scores

    def read(self, window: Window, spans: Spans) -> Layers:
        """The scores, and under the spans the masks they came from and `_attribute_layers`, if any."""
        if self.run.plan.dense:
            return Layers(self.scores(window))
        winner = np.full((window.height, window.width), mosaic.NO_MASK, np.int32)
        for block, shared, record in self._records(window, "winner", "numbers"):
            under, _ = spans.clip(shared)
            won = record["winner"].reshape(-1)[under.pixels(block)]
            winner.reshape(-1)[under.pixels(window)] = record["numbers"][won]

        attributes = {
            name: layer(self.run, self.class_id, window, spans) for name, layer in _attribute_layers(self.run).items()
        }
        return Layers(self.scores(window), winner, attributes)

    def _records(self, window: Window, *names: str) -> Iterator[tuple[Window, Window, Mapping[str, AnyArray]]]:
        """Yield the blocks that have a record and share pixels with a window: block, intersection, arrays."""
        plan, store = self.run.plan, self.run.store
        for block in plan.blocks.covering(window):
            layer = plan.layer(block, self.class_id)
            if store.has("mosaic", layer):
                yield plan.blocks[block], plan.blocks[block].shared(window), store.read("mosaic", layer, *names)

"""From a mosaic to a table of landslides, block by block.

Passes over the blocks find spans, join them into objects, and sum values under each object. The result does not depend
on the size of the blocks or their order.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby, pairwise
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from geolabel import geodesy, polygons
from geolabel.engine.tasks import Bound, Pass
from geolabel.io.columns import LANDSLIDES, MEASURED, Of
from geolabel.masks import OUTSIDE
from geolabel.mosaic import Layers
from geolabel.scene import Grid
from geolabel.spans import Spans, drop_small, holes, join, largest, pixel_sums, total
from geolabel.splitting import split_at_necks
from geolabel.tiles import BlockGrid, Window
from geolabel.types import BoolArray, Float32Array, Float64Array, Int32Array, Int64Array, UInt8Array

if TYPE_CHECKING:
    import geopandas as gpd

Map = Callable[[Bound[Any], Iterable[Any]], Iterable[Any]]
"""Applies a pass to jobs and yields the results in order, like `map`."""

SCORE = "score"
"""Name of the layer of scores in `geolabel.io.columns`."""

BATCH_SPANS = 1 << 20
"""Maximum spans outlined at a time, rounded up to whole objects, to bound memory."""


class MosaicReader(Protocol):
    """A finished mosaic of one class, read window by window. It is pickled to the workers that read it."""

    def scores(self, window: Window) -> UInt8Array:
        """(H, W) 0..254, or `geolabel.masks.OUTSIDE`."""
        ...

    def read(self, window: Window, spans: Spans) -> Layers:
        """The scores and other layers, needed only under `spans`; other values are undefined.

        A layer is present in all windows with an object, or in none.
        """
        ...


Mosaics = MosaicReader | Sequence[MosaicReader]
"""A mosaic, or one per class: a pixel belongs to the class with the highest score, ties to the first."""


@dataclass(frozen=True)
class Objects:
    """K objects of a mosaic after cleaning, numbered from 0 by their first pixel in raster order."""

    spans: Spans
    """In raster order; spans of different classes or parts may touch."""
    labels: Int32Array
    """(N,) object of each span."""
    count: int
    class_ids: Int32Array
    """(K,) class of each object."""
    parts: Int32Array | None = None
    """(K,) number of each object among the parts of a split one, from 0; None if none was split. Parts may touch."""
    ground: BoolArray | None = None
    """(K,) whether each is ground cut out of landslides, see `geolabel.extraction.cutting`; None if nothing was
    checked. They may touch the others."""

    def mask(self, window: Window) -> UInt8Array:
        """(H, W) class of the object at each pixel, from 1; 0 without an object."""
        return self.spans.paint(window, (self.class_ids[self.labels] + 1).astype(np.uint8))

    def only(self, kept: BoolArray) -> Objects:
        """Some of the objects, selected by (K,), renumbered."""
        under = kept[self.labels]
        numbers = np.cumsum(kept, dtype=np.int32) - np.int32(1)
        return Objects(self.spans[under], numbers[self.labels[under]], int(kept.sum()), self.class_ids[kept])

    def cut(self, neck: float, min_area_px: float) -> Objects:
        """The objects, split at necks; see `geolabel.splitting`."""
        spans, labels, origin = split_at_necks(self.spans, self.labels, self.count, neck=neck, min_area_px=min_area_px)
        parts = np.zeros(len(origin), np.int32)
        for one in np.flatnonzero(np.bincount(origin, minlength=self.count) > 1):
            own = np.flatnonzero(origin == one)
            parts[own] = np.arange(len(own))
        ground = None if self.ground is None else self.ground[origin]
        return Objects(spans, labels, len(origin), self.class_ids[origin], parts, ground)

    def apart(self) -> Iterator[BoolArray]:
        """Yield masks (K,) of objects that do not touch each other, together all of them."""
        none = np.zeros(self.count, np.int32)
        parts, ground = (none if values is None else values for values in (self.parts, self.ground))
        kinds = np.stack([self.class_ids, parts, ground])
        for kind in np.unique(kinds, axis=1).T:
            yield (kinds == kind[:, None]).all(axis=0)

    @cached_property
    def areas(self) -> Int64Array:
        """(K,) pixels."""
        return total(self.spans.lengths, self.labels, self.count)

    def batches(self, size: int = BATCH_SPANS) -> Iterator[Objects]:
        """Yield the objects in order, as few whole ones at a time as have `size` spans."""
        order = np.argsort(self.labels, kind="stable")
        ends = np.cumsum(np.bincount(self.labels, minlength=self.count))
        cuts = np.append(0, np.flatnonzero(np.diff(ends // size, append=-1)) + 1)
        for first, last in pairwise(cuts):
            part = np.sort(order[0 if first == 0 else ends[first - 1] : ends[last - 1]])
            yield Objects(
                self.spans[part], self.labels[part] - np.int32(first), int(last - first), self.class_ids[first:last]
            )


# --- objects ---------------------------------------------------------------------------------------------------------


def find_objects(
    mosaic: Mosaics,
    blocks: BlockGrid,
    *,
    threshold: int,
    min_area_px: float = 0,
    max_hole_px: float = 0,
    split: float | None = None,
    apply: Map = map,
) -> Objects:
    """Find, class by class, the 4-connected components with a score of at least `threshold`.

    First, components of fewer than `min_area_px` pixels are dropped, then holes of up to `max_hole_px` pixels filled. A
    hole is 8-connected background that does not reach the frame of the grid and contains no pixel that is not valid or
    belongs to another class.

    Parameters
    ----------
    mosaic
        For one class, or for each; validity must be the same in all.
    split
        Split objects at necks, see `geolabel.splitting.split_at_necks`; None for no splitting.
    apply
        Runs the tasks on blocks.
    """
    mosaics = _per_class(mosaic)
    found = list(apply(_FIND_SPANS.bind(mosaics, threshold, min_area_px), blocks))
    classes = [join([parts[c] for parts, _ in found])[0] for c in range(len(mosaics))]
    if min_area_px > 1:
        classes = [drop_small(spans, min_area_px) for spans in classes]
    if max_hole_px >= 1:
        suspects = [blocks[index] for index, (_, any_outside) in enumerate(found) if any_outside]
        classes = _fill_holes(mosaics, classes, max_hole_px, blocks.height, suspects, apply)
    objects = _number([(spans, *spans.components(4)) for spans in classes])
    return objects if split is None else objects.cut(split, min_area_px)


def _per_class(mosaic: Mosaics) -> Sequence[MosaicReader]:
    return mosaic if isinstance(mosaic, Sequence) else [mosaic]


def _number(classes: Sequence[tuple[Spans, Int32Array, int]]) -> Objects:
    """Merge the objects of all classes (spans, object of each, count), numbered by their first pixels."""
    if len(classes) == 1:
        return Objects(*classes[0], np.zeros(classes[0][2], np.int32))
    spans = Spans.concatenate([part for part, _, _ in classes])
    counts = [count for _, _, count in classes]
    first = np.cumsum([0, *counts])[:-1].astype(np.int32)
    labels = np.concatenate([own + start for (_, own, _), start in zip(classes, first, strict=True)])
    order = np.lexsort((spans.start, spans.row))
    spans, labels = spans[order], labels[order]
    _, begins = np.unique(labels, return_index=True)
    by_pixel = np.argsort(begins)
    number = np.empty(len(begins), np.int32)
    number[by_pixel] = np.arange(len(begins), dtype=np.int32)
    class_ids = np.repeat(np.arange(len(classes), dtype=np.int32), counts)
    return Objects(spans, number[labels], len(begins), class_ids[by_pixel])


def with_ground(kept: Spans, ground: Spans) -> Objects:
    """The components of two sets of spans as objects of the first class; those of the second are `Objects.ground`."""
    both = _number([(spans, *spans.components(4)) for spans in (kept, ground)])
    return replace(both, class_ids=np.zeros(both.count, np.int32), ground=both.class_ids == 1)


def _find_spans(
    mosaics: Sequence[MosaicReader], threshold: int, min_area_px: float, window: Window
) -> tuple[list[Spans], bool]:
    """Spans of each class in one block, and whether the block has a pixel that is not valid."""
    scores = mosaics[0].scores(window)
    best = np.zeros(scores.shape if len(mosaics) > 1 else (0, 0), np.uint8)
    for c, mosaic in enumerate(mosaics[1:], 1):
        own = mosaic.scores(window)
        best[own > scores] = c
        scores = np.maximum(scores, own)
    outside = scores == OUTSIDE
    any_outside = bool(outside.any())
    mask = scores >= threshold
    if any_outside:
        mask &= ~outside
    masks = [mask & (best == c) for c in range(len(mosaics))] if len(mosaics) > 1 else [mask]
    classes = [Spans.of_mask(own, window) for own in masks]
    # Specks are dropped here, so that little data is transferred and joined however noisy the scores are.
    if min_area_px > 1:
        classes = [drop_small(spans, min_area_px, frame=window) for spans in classes]
    return classes, any_outside


_FIND_SPANS = Pass("find-spans", _find_spans, tuple[list[Spans], bool])


def _fill_holes(
    mosaics: Sequence[MosaicReader],
    classes: list[Spans],
    maximum: float,
    height: int,
    suspects: Sequence[Window],
    apply: Map,
) -> list[Spans]:
    """Spans of each class, with the pixels of its holes; `suspects` are the blocks with a pixel that is not valid."""
    found = [holes(spans, maximum, height) for spans in classes]
    closed = [np.ones(count, bool) for *_, count in found]
    jobs = [
        (c, window, part, labels[index])
        for c, (gaps, labels, _) in enumerate(found)
        for window in suspects
        for part, index in [gaps.clip(window)]
        if len(part)
    ]
    if jobs:
        for (c, *_), invalid in zip(jobs, apply(_INVALID_HOLES.bind(mosaics), jobs), strict=True):
            closed[c][invalid] = False
    filled = []
    for c, (gaps, labels, _) in enumerate(found):
        for other in classes[:c] + classes[c + 1 :]:
            closed[c][labels[gaps.meeting(other)]] = False
        filled.append(join([classes[c], gaps[closed[c][labels]]])[0])
    return filled


def _invalid_holes(mosaics: Sequence[MosaicReader], job: tuple[int, Window, Spans, Int32Array]) -> Int32Array:
    class_id, window, gaps, labels = job
    _, highest = pixel_sums(gaps, window, mosaics[class_id].scores(window))
    return np.unique(labels[highest == OUTSIDE])


_INVALID_HOLES = Pass("invalid-holes", _invalid_holes, Int32Array)


# --- sums ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sums:
    """Exact integers for the attributes of K objects, or of those in one block."""

    labels: Int32Array
    """(K,) the objects."""
    layers: tuple[str, ...]
    """L names: ``score``, and those of the attributes of the mosaic."""
    totals: Int64Array
    """(L, K) sum of each layer over the object's pixels."""
    maxima: Int64Array
    """(L, K) its maximum."""
    wins: Int64Array | None
    """(P, 3) object, mask, and number of the object's pixels won by the mask, ascending; None without masks."""

    def of(self, column: Of, areas: Int64Array) -> Float64Array | None:
        """(K,) a statistic of objects of `areas` pixels; None if the mosaic has no such layer."""
        if column.layer not in self.layers:
            return None
        place = self.layers.index(column.layer)
        found: Float64Array = (
            self.maxima[place] / column.unit
            if column.statistic == "maximum"
            else self.totals[place] / (areas * column.unit)
        )
        return found


def sum_objects(mosaic: Mosaics, blocks: BlockGrid, objects: Objects, *, apply: Map = map) -> Sums:
    """Sum the layers of the mosaic of its class over the pixels of every object."""
    parts = list(apply(_SUM_BLOCK.bind(_per_class(mosaic)), _shares(blocks, objects)))
    labels = np.concatenate([np.zeros(0, np.int32), *(part.labels for part in parts)])
    if labels.min(initial=0) < 0 or labels.max(initial=-1) >= objects.count:  # they are used as indices
        raise IndexError(f"sums of object {labels.max()}, where there are {objects.count}")

    layers = parts[0].layers if parts else (SCORE,)
    assert all(part.layers == layers for part in parts), "a layer is missing in some windows"
    totals, maxima = (
        np.concatenate([np.zeros((len(layers), 0), np.int64), *values], axis=1)
        for values in ([part.totals for part in parts], [part.maxima for part in parts])
    )
    wins = [part.wins for part in parts if part.wins is not None]
    return Sums(
        labels=np.arange(objects.count, dtype=np.int32),
        layers=layers,
        totals=np.stack([total(values, labels, objects.count) for values in totals]),
        maxima=np.stack([largest(values, labels, objects.count) for values in maxima]),
        wins=_merge_wins(np.concatenate(wins)) if wins else None,
    )


def _shares(blocks: BlockGrid, objects: Objects) -> Iterator[tuple[int, Window, Spans, Int32Array]]:
    """Yield the part of each block that belongs to objects of each class, if any."""
    for class_id in np.unique(objects.class_ids).tolist():
        of_class = objects.class_ids[objects.labels] == class_id
        own, labels = objects.spans[of_class], objects.labels[of_class]
        for window in blocks:
            spans, index = own.clip(window)
            if len(spans):
                yield class_id, window, spans, labels[index]


def _sum_block(mosaics: Sequence[MosaicReader], job: tuple[int, Window, Spans, Int32Array]) -> Sums:
    class_id, window, spans, labels = job
    layers = mosaics[class_id].read(window, spans)
    present, local = np.unique(labels, return_inverse=True)
    values = {SCORE: layers.scores, **layers.attributes}
    sums = [pixel_sums(spans, window, layer) for layer in values.values()]
    wins = None
    if layers.winner is not None:
        winner = layers.winner.reshape(-1)[spans.pixels(window)]
        pairs = np.repeat(labels.astype(np.int64) << 32, spans.lengths) | winner
        # Neighbours won by one mask are counted as runs, of which there are few to sort; NO_MASK makes a pair of -1.
        runs = np.flatnonzero(np.diff(pairs, prepend=-2))
        counted = _unpack(pairs[runs], np.diff(runs, append=len(pairs)))
        wins = _merge_wins(counted[pairs[runs] >= 0])
    return Sums(
        labels=present,
        layers=tuple(values),
        totals=np.stack([total(totals, local, len(present)) for totals, _ in sums]),
        maxima=np.stack([largest(maxima, local, len(present)) for _, maxima in sums]),
        wins=wins,
    )


_SUM_BLOCK = Pass("sum-block", _sum_block, Sums)


def _merge_wins(wins: Int64Array) -> Int64Array:
    """Sum the pixels of rows with the same object and mask."""
    pairs, place = np.unique(wins[:, 0] << 32 | wins[:, 1], return_inverse=True)
    return _unpack(pairs, total(wins[:, 2], place, len(pairs)))


def _unpack(pairs: Int64Array, pixels: Int64Array) -> Int64Array:
    return np.column_stack([pairs >> 32, pairs & 0xFFFFFFFF, pixels])


# --- table -----------------------------------------------------------------------------------------------------------


def vectorize(
    mosaic: Mosaics,
    grid: Grid,
    blocks: BlockGrid,
    *,
    threshold: int,
    min_area_px: float = 0,
    max_hole_px: float = 0,
    split: float | None = None,
    simplify_px: float = 0,
    smooth_px: float = 0,
    predicted_iou: Float32Array | None = None,
    stability: Float32Array | None = None,
    classes: Sequence[str] = ("landslide",),
    apply: Map = map,
) -> gpd.GeoDataFrame:
    """Convert a mosaic to landslides with attributes, one row each.

    Parameters
    ----------
    mosaic, grid, blocks
        The mosaic, or one per class; its grid; the blocks to read it in, which only affect memory and speed.
    threshold
        Minimum score of a landslide's pixels, 1..254.
    min_area_px, max_hole_px, split
        See `find_objects`.
    simplify_px, smooth_px
        Sides of pixels, see `geolabel.polygons`.
    predicted_iou, stability : (M,)
        Qualities of the masks numbered by `Layers.winner`.
    classes
        Name of each class.
    apply
        Runs the tasks on blocks.

    Returns
    -------
    geopandas.GeoDataFrame
        Columns ``id`` (from 1, by first pixel in raster order) to ``gsd_m`` of
        `geolabel.io.columns.LANDSLIDE_COLUMNS`, null if the mosaic does not have the layer.
    """
    objects = find_objects(
        mosaic,
        blocks,
        threshold=threshold,
        min_area_px=min_area_px,
        max_hole_px=max_hole_px,
        split=split,
        apply=apply,
    )
    sums = sum_objects(mosaic, blocks, objects, apply=apply)
    return describe(
        objects,
        sums,
        grid,
        simplify_px=simplify_px,
        smooth_px=smooth_px,
        predicted_iou=predicted_iou,
        stability=stability,
        classes=classes,
    )


def describe(
    objects: Objects,
    sums: Sums,
    grid: Grid,
    *,
    simplify_px: float = 0,
    smooth_px: float = 0,
    predicted_iou: Float32Array | None = None,
    stability: Float32Array | None = None,
    followed: Float32Array | None = None,
    prompt_ids: Int64Array | None = None,
    classes: Sequence[str] = ("landslide",),
) -> gpd.GeoDataFrame:
    """Outline and measure objects; see `vectorize`.

    Parameters
    ----------
    followed : (M,)
        1 for each mask that is a region of the activation, else 0.
    prompt_ids : (M,)
        Prompt of each mask.
    """
    import geopandas as gpd

    outlines = np.empty(objects.count, object)
    for some in objects.apart():  # objects that are traced together must not touch
        outlines[some] = _outlines(objects.only(some), grid, simplify_px, smooth_px)
    sizes = geodesy.measure(outlines, grid.crs, 1.0 if grid.unit_m is None else grid.unit_m)
    columns = {
        "id": np.arange(1, objects.count + 1),
        "class": [classes[class_id] for class_id in objects.class_ids.tolist()],
        **{name: getattr(sizes, name) for name in MEASURED},
        **{column.name: sums.of(column.of, objects.areas) for column in LANDSLIDES if column.of is not None},
        "predicted_iou": _mean_over_winners(sums.wins, objects.count, predicted_iou),
        "stability": _mean_over_winners(sums.wins, objects.count, stability),
        "activation_share": _mean_over_winners(sums.wins, objects.count, followed),
        "n_prompts": None if sums.wins is None else np.bincount(sums.wins[:, 0], minlength=objects.count),
        "prompts": _prompts_behind(sums.wins, objects.count, prompt_ids),
        "gsd_m": grid.gsd,
    }
    in_order = {column.name: columns[column.name] for column in LANDSLIDES if column.name in columns}
    return gpd.GeoDataFrame(in_order, geometry=outlines, crs=grid.crs)


def _outlines(objects: Objects, grid: Grid, simplify_px: float, smooth_px: float) -> polygons.Geometries:
    """(K,) multipolygons of objects of one class."""
    batches = [
        polygons.outlines(part.spans, part.labels, part.count, grid.transform, tolerance=simplify_px, reach=smooth_px)
        for part in objects.batches()
    ]
    return np.concatenate([np.zeros(0, object), *batches])


def _prompts_behind(wins: Int64Array | None, count: int, prompt_ids: Int64Array | None) -> list[str] | None:
    """(count,) numbers of the prompts whose masks won pixels of each object, ascending, as a JSON list."""
    if wins is None or prompt_ids is None:
        return None
    pairs = np.unique(np.column_stack([wins[:, 0], prompt_ids[wins[:, 1]]]), axis=0).tolist()
    behind = {owner: [prompt for _, prompt in group] for owner, group in groupby(pairs, lambda pair: pair[0])}
    return [json.dumps(behind.get(owner, [])) for owner in range(count)]


def _mean_over_winners(wins: Int64Array | None, count: int, quality: Float32Array | None) -> Float64Array | None:
    """(count,) mean quality of the winning masks, weighted by the pixels of the object that each won."""
    if wins is None or quality is None:
        return None
    owner, mask, pixels = wins.T
    weighted = np.bincount(owner, weights=quality[mask].astype(np.float64) * pixels, minlength=count)
    weight = total(pixels, owner, count)
    mean: Float64Array = np.divide(weighted, weight, out=np.full(count, np.nan), where=weight > 0)
    return mean

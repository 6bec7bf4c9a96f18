"""From a mosaic to a table of landslides, block by block.

Passes over the blocks find spans, join them into objects, and sum what lies under each object. Nothing that comes out
depends on the size of the blocks or on the order in which they are done.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby, pairwise
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from geolabel import geodesy, polygons
from geolabel.engine.tasks import Bound, Pass
from geolabel.masks import FULL, OUTSIDE
from geolabel.mosaic import Layers
from geolabel.scene import Grid
from geolabel.seams import Spans, drop_small, holes, join, largest, pixel_sums, total
from geolabel.tiles import BlockGrid, Window
from geolabel.types import BoolArray, Float32Array, Float64Array, Int32Array, Int64Array, UInt8Array

if TYPE_CHECKING:
    import geopandas as gpd

Map = Callable[[Bound[Any], Iterable[Any]], Iterable[Any]]
"""Applies a pass to jobs and yields the results in their order, as `map` does."""

BATCH_SPANS = 1 << 20
"""Spans that are outlined at a time, rounded up to whole objects: a bound on memory, not on results."""


class MosaicReader(Protocol):
    """A finished mosaic, read window by window. Copies of it travel to where the windows are read."""

    def scores(self, window: Window) -> UInt8Array:
        """(H, W) 0..254, or `geolabel.masks.OUTSIDE`."""
        ...

    def read(self, window: Window, spans: Spans) -> Layers:
        """The scores and what lies beside them, as far as it lies under `spans`; elsewhere values mean nothing.

        A layer is there in all windows that hold an object, or in none.
        """
        ...


@dataclass(frozen=True)
class Objects:
    """K objects of a mosaic after cleaning, numbered from 0 by their first pixel in raster order."""

    spans: Spans
    labels: Int32Array
    """(N,) object of each span."""
    count: int

    def mask(self, window: Window) -> UInt8Array:
        """(H, W) 1 inside an object, else 0."""
        return self.spans.paint(window, np.ones(len(self.spans), np.uint8))

    def only(self, kept: BoolArray) -> Objects:
        """Some of the objects, chosen by (K,), numbered anew."""
        under = kept[self.labels]
        numbers = np.cumsum(kept, dtype=np.int32) - np.int32(1)
        return Objects(self.spans[under], numbers[self.labels[under]], int(kept.sum()))

    @cached_property
    def areas(self) -> Int64Array:
        """(K,) pixels."""
        return total(self.spans.lengths, self.labels, self.count)

    def batches(self, size: int = BATCH_SPANS) -> Iterator[Objects]:
        """Yield the objects in order, some whole ones at a time, as few as hold `size` spans."""
        order = np.argsort(self.labels, kind="stable")
        ends = np.cumsum(np.bincount(self.labels, minlength=self.count))
        cuts = np.append(0, np.flatnonzero(np.diff(ends // size, append=-1)) + 1)
        for first, last in pairwise(cuts):
            part = np.sort(order[0 if first == 0 else ends[first - 1] : ends[last - 1]])
            yield Objects(self.spans[part], self.labels[part] - np.int32(first), int(last - first))


# --- objects ---------------------------------------------------------------------------------------------------------


def find_objects(
    mosaic: MosaicReader,
    blocks: BlockGrid,
    *,
    threshold: int,
    min_area_px: float = 0,
    max_hole_px: float = 0,
    apply: Map = map,
) -> Objects:
    """Find the 4-connected components of what scores at least `threshold`.

    First components of fewer than `min_area_px` pixels are dropped, then holes of up to `max_hole_px` pixels filled. A
    hole is 8-connected background that neither reaches the frame of the grid nor holds a pixel that is not valid.

    Parameters
    ----------
    apply
        Runs the work on blocks.
    """
    found = list(apply(_FIND_SPANS.bind(mosaic, threshold, min_area_px), blocks))
    spans, _ = join([part for part, _ in found])
    if min_area_px > 1:
        spans = drop_small(spans, min_area_px)
    if max_hole_px >= 1:
        gaps, labels, count = holes(spans, max_hole_px, blocks.height)
        suspects = [blocks[index] for index, (_, any_outside) in enumerate(found) if any_outside]
        filled = _all_valid(mosaic, suspects, gaps, labels, count, apply)[labels]
        spans, _ = join([spans, gaps[filled]])
    return Objects(spans, *spans.components(4))


def _find_spans(mosaic: MosaicReader, threshold: int, min_area_px: float, window: Window) -> tuple[Spans, bool]:
    """Spans of one block, and whether it holds a pixel that is not valid."""
    scores = mosaic.scores(window)
    outside = scores == OUTSIDE
    any_outside = bool(outside.any())
    mask = scores >= threshold
    spans = Spans.of_mask(mask & ~outside if any_outside else mask, window)
    # Specks end here, so what travels and what is joined stays small however noisy the scores are.
    return drop_small(spans, min_area_px, frame=window) if min_area_px > 1 else spans, any_outside


_FIND_SPANS = Pass("find-spans", _find_spans, tuple[Spans, bool])


def _all_valid(
    mosaic: MosaicReader, suspects: Iterable[Window], gaps: Spans, labels: Int32Array, count: int, apply: Map
) -> BoolArray:
    """(count,) which holes are valid throughout; `suspects` are the blocks that hold a pixel that is not."""
    parts = ((window, *gaps.clip(window)) for window in suspects)
    jobs = [(window, part, labels[index]) for window, part, index in parts if len(part)]
    valid = np.ones(count, bool)
    if not jobs:
        return valid
    for invalid in apply(_INVALID_HOLES.bind(mosaic), jobs):
        valid[invalid] = False
    return valid


def _invalid_holes(mosaic: MosaicReader, job: tuple[Window, Spans, Int32Array]) -> Int32Array:
    window, gaps, labels = job
    _, highest = pixel_sums(gaps, window, mosaic.scores(window))
    return np.unique(labels[highest == OUTSIDE])


_INVALID_HOLES = Pass("invalid-holes", _invalid_holes, Int32Array)


# --- sums ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sums:
    """Exact integers behind the attributes of K objects, or of those in one block."""

    labels: Int32Array
    """(K,) the objects."""
    score: Int64Array
    """(K,) sum over the object's pixels."""
    score_max: Int64Array
    activation: Int64Array | None
    """(K,) sum over the object's pixels; None where the mosaic has no activation."""
    wins: Int64Array | None
    """(P, 3) object, mask, and how many of the object's pixels the mask won, in ascending order; None without masks."""


def sum_objects(mosaic: MosaicReader, blocks: BlockGrid, objects: Objects, *, apply: Map = map) -> Sums:
    """Sum the mosaic's layers over the pixels of every object."""
    parts = list(apply(_SUM_BLOCK.bind(mosaic), _shares(blocks, objects)))
    labels = np.concatenate([np.zeros(0, np.int32), *(part.labels for part in parts)])
    if labels.min(initial=0) < 0 or labels.max(initial=-1) >= objects.count:  # sums are counted out by them
        raise IndexError(f"sums of object {labels.max()}, where there are {objects.count}")

    def gather(values: list[Int64Array]) -> Int64Array:
        return np.concatenate([np.zeros(0, np.int64), *values])

    activation = [part.activation for part in parts if part.activation is not None]
    wins = [part.wins for part in parts if part.wins is not None]
    assert len(activation) in (0, len(parts)), "the activation is missing in some windows"
    return Sums(
        labels=np.arange(objects.count, dtype=np.int32),
        score=total(gather([part.score for part in parts]), labels, objects.count),
        score_max=largest(gather([part.score_max for part in parts]), labels, objects.count),
        activation=total(gather(activation), labels, objects.count) if activation else None,
        wins=_merge_wins(np.concatenate(wins)) if wins else None,
    )


def _shares(blocks: BlockGrid, objects: Objects) -> Iterator[tuple[Window, Spans, Int32Array]]:
    """Yield what each block holds of the objects, where it holds anything."""
    for window in blocks:
        spans, index = objects.spans.clip(window)
        if len(spans):
            yield window, spans, objects.labels[index]


def _sum_block(mosaic: MosaicReader, job: tuple[Window, Spans, Int32Array]) -> Sums:
    window, spans, labels = job
    layers = mosaic.read(window, spans)
    present, local = np.unique(labels, return_inverse=True)
    score, score_max = pixel_sums(spans, window, layers.scores)
    activation, wins = None, None
    if layers.activation is not None:
        activation = total(pixel_sums(spans, window, layers.activation)[0], local, len(present))
    if layers.winner is not None:
        winner = layers.winner.reshape(-1)[spans.pixels(window)]
        pairs = np.repeat(labels.astype(np.int64) << 32, spans.lengths) | winner
        # Neighbours that one mask won are counted as runs, of which there are few to sort; NO_MASK makes a pair of -1.
        runs = np.flatnonzero(np.diff(pairs, prepend=-2))
        counted = _unpack(pairs[runs], np.diff(runs, append=len(pairs)))
        wins = _merge_wins(counted[pairs[runs] >= 0])
    return Sums(
        labels=present,
        score=total(score, local, len(present)),
        score_max=largest(score_max, local, len(present)),
        activation=activation,
        wins=wins,
    )


_SUM_BLOCK = Pass("sum-block", _sum_block, Sums)


def _merge_wins(wins: Int64Array) -> Int64Array:
    """Add up the pixels of the rows that name the same object and mask."""
    pairs, place = np.unique(wins[:, 0] << 32 | wins[:, 1], return_inverse=True)
    return _unpack(pairs, total(wins[:, 2], place, len(pairs)))


def _unpack(pairs: Int64Array, pixels: Int64Array) -> Int64Array:
    return np.column_stack([pairs >> 32, pairs & 0xFFFFFFFF, pixels])


# --- table -----------------------------------------------------------------------------------------------------------


def vectorize(
    mosaic: MosaicReader,
    grid: Grid,
    blocks: BlockGrid,
    *,
    threshold: int,
    min_area_px: float = 0,
    max_hole_px: float = 0,
    simplify_px: float = 0,
    smooth_px: float = 0,
    predicted_iou: Float32Array | None = None,
    stability: Float32Array | None = None,
    class_name: str = "landslide",
    apply: Map = map,
) -> gpd.GeoDataFrame:
    """Turn a mosaic into landslides with attributes, one row each.

    Parameters
    ----------
    mosaic, grid, blocks
        The mosaic, where it lies, and the blocks to read it in, which change nothing but memory and speed.
    threshold
        Least score of a landslide's pixels, 1..254.
    min_area_px, max_hole_px
        Pixels, see `find_objects`.
    simplify_px, smooth_px
        Sides of pixels, see `geolabel.polygons`.
    predicted_iou, stability : (M,)
        Qualities of the masks that `Layers.winner` counts.
    class_name
        Of every row.
    apply
        Runs the work on blocks.

    Returns
    -------
    geopandas.GeoDataFrame
        Columns ``id`` (from 1, by first pixel in raster order) to ``gsd_m`` of
        `geolabel.io.columns.LANDSLIDE_COLUMNS`, with nothing where the mosaic has no such thing.
    """
    objects = find_objects(
        mosaic, blocks, threshold=threshold, min_area_px=min_area_px, max_hole_px=max_hole_px, apply=apply
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
        class_name=class_name,
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
    prompt_ids: Int64Array | None = None,
    class_name: str = "landslide",
) -> gpd.GeoDataFrame:
    """Outline and measure objects; see `vectorize`.

    Parameters
    ----------
    prompt_ids : (M,)
        The prompt that each mask answers.
    """
    import geopandas as gpd

    outlines = np.concatenate([np.zeros(0, object)] + [
        polygons.outlines(part.spans, part.labels, part.count, grid.transform, tolerance=simplify_px, reach=smooth_px)
        for part in objects.batches()
    ])  # fmt: skip
    sizes = geodesy.measure(outlines, grid.crs, 1.0 if grid.unit_m is None else grid.unit_m)
    columns = {
        "id": np.arange(1, objects.count + 1),
        "class": [class_name] * objects.count,
        "area_m2": sizes.area_m2,
        "perimeter_m": sizes.perimeter_m,
        "length_m": sizes.length_m,
        "width_m": sizes.width_m,
        "elongation": sizes.elongation,
        "lon": sizes.lon,
        "lat": sizes.lat,
        "score_mean": sums.score / (objects.areas * FULL),
        "score_max": sums.score_max / FULL,
        "predicted_iou": _mean_over_winners(sums.wins, objects.count, predicted_iou),
        "stability": _mean_over_winners(sums.wins, objects.count, stability),
        "activation_mean": None if sums.activation is None else sums.activation / (objects.areas * 255),
        "n_prompts": None if sums.wins is None else np.bincount(sums.wins[:, 0], minlength=objects.count),
        "prompts": _prompts_behind(sums.wins, objects.count, prompt_ids),
        "gsd_m": grid.gsd,
    }
    return gpd.GeoDataFrame(columns, geometry=outlines, crs=grid.crs)


def _prompts_behind(wins: Int64Array | None, count: int, prompt_ids: Int64Array | None) -> list[str] | None:
    """(count,) numbers of the prompts whose masks won pixels of each object, ascending, as a list in JSON."""
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

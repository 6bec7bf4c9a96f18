"""From a mosaic to a table of landslides, block by block.

Passes over the blocks find spans, join them into objects, and sum what lies under each object. Nothing that comes out
depends on the size of the blocks or on the order in which they are done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from geolabel import geodesy, polygons
from geolabel.masks import FULL, OUTSIDE
from geolabel.mosaic import NO_MASK, Layers
from geolabel.scene import Grid
from geolabel.seams import Spans, drop_small, holes, join, largest, pixel_sums, total
from geolabel.tiles import BlockGrid, Window
from geolabel.types import BoolArray, Float32Array, Float64Array, Int32Array, Int64Array, UInt8Array

if TYPE_CHECKING:
    import geopandas as gpd

Map = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]
"""Applies a function to items and yields the results in their order, as `map` does."""

BATCH_SPANS = 1 << 20
"""Spans that are outlined at a time, rounded up to whole objects: a bound on memory, not on results."""


class Mosaic(Protocol):
    """A finished mosaic, read window by window. Copies of it travel to where the windows are read."""

    def scores(self, window: Window) -> UInt8Array:
        """(H, W) 0..254, or `geolabel.masks.OUTSIDE`."""
        ...

    def layers(self, window: Window) -> Layers:
        """The scores and what lies beside them."""
        ...


class MaskTable(Protocol):
    """What is known of the masks whose numbers `Layers.winner` holds."""

    @property
    def prompt_ids(self) -> Int64Array:
        """(M,) the prompt that each mask answers."""
        ...

    @property
    def predicted_iou(self) -> Float32Array:
        """(M,) 0..1."""
        ...

    @property
    def stability(self) -> Float32Array:
        """(M,) 0..1."""
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
    mosaic: Mosaic,
    blocks: BlockGrid,
    *,
    threshold: int,
    min_area: float = 0,
    max_hole: float = 0,
    apply: Map = map,
) -> Objects:
    """Find the 4-connected components of what scores at least `threshold`.

    First components below `min_area` pixels are dropped, then holes up to `max_hole` pixels are filled. A hole is
    8-connected background that neither reaches the frame of the grid nor holds a pixel that is not valid.

    Parameters
    ----------
    apply
        Runs the work on blocks.
    """
    found = list(apply(partial(_find_spans, mosaic, threshold, min_area), blocks))
    spans, _ = join([part for part, _ in found])
    if min_area > 1:
        spans = drop_small(spans, min_area)
    if max_hole >= 1:
        gaps, labels, count = holes(spans, max_hole, blocks.height)
        gapped = np.asarray([gappy for _, gappy in found], bool)
        spans, _ = join([spans, gaps[_all_valid(mosaic, blocks, gapped, gaps, labels, count, apply)[labels]]])
    return Objects(spans, *spans.components(4))


def _find_spans(mosaic: Mosaic, threshold: int, min_area: float, window: Window) -> tuple[Spans, bool]:
    """Spans of one block, and whether it holds a pixel that is not valid."""
    scores = mosaic.scores(window)
    outside = scores == OUTSIDE
    any_outside = bool(outside.any())
    mask = scores >= threshold
    spans = Spans.of_mask(mask & ~outside if any_outside else mask, window)
    # Specks end here, so what travels and what is joined stays small however noisy the scores are.
    return drop_small(spans, min_area, frame=window) if min_area > 1 else spans, any_outside


def _all_valid(
    mosaic: Mosaic,
    blocks: BlockGrid,
    gapped: BoolArray,
    gaps: Spans,
    labels: Int32Array,
    count: int,
    apply: Map,
) -> BoolArray:
    """(count,) which holes are valid throughout; only blocks that hold both invalid pixels and holes are read."""
    parts = [(blocks[index], *gaps.clip(blocks[index])) for index in np.flatnonzero(gapped).tolist()]
    asked = [(window, part, labels[index]) for window, part, index in parts if len(part)]
    valid = np.ones(count, bool)
    for invalid in apply(partial(_invalid_holes, mosaic), asked):
        valid[invalid] = False
    return valid


def _invalid_holes(mosaic: Mosaic, job: tuple[Window, Spans, Int32Array]) -> Int32Array:
    window, gaps, labels = job
    _, highest = pixel_sums(gaps, window, mosaic.scores(window))
    return np.unique(labels[highest == OUTSIDE])


# --- sums ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sums:
    """Exact integers behind the attributes of K objects, over their pixels."""

    score: Int64Array
    score_max: Int64Array
    activation: Int64Array | None
    """None where the mosaic has no activation."""
    wins: Int64Array
    """(P, 3) object, mask, and how many pixels of the object have that mask as winner; in ascending order."""


def sum_objects(mosaic: Mosaic, blocks: BlockGrid, objects: Objects, *, apply: Map = map) -> Sums:
    """Sum the mosaic's layers over the pixels of every object."""
    score, score_max, activation = (np.zeros(objects.count, np.int64) for _ in range(3))
    activated = False
    wins = [np.zeros((0, 3), np.int64)]
    for part in apply(partial(_sum_block, mosaic), _shares(blocks, objects)):
        np.add.at(score, part.labels, part.score)
        np.maximum.at(score_max, part.labels, part.score_max)
        if part.activation is not None:
            activated = True
            np.add.at(activation, part.labels, part.activation)
        wins.append(part.wins)
    pairs, place = np.unique(np.concatenate(wins)[:, :2], axis=0, return_inverse=True)
    pixels = total(np.concatenate(wins)[:, 2], place.reshape(-1), len(pairs))
    return Sums(score, score_max, activation if activated else None, np.column_stack([pairs, pixels]))


def _shares(blocks: BlockGrid, objects: Objects) -> Iterator[tuple[Window, Spans, Int32Array]]:
    """Yield what each block holds of the objects, where it holds anything."""
    for window in blocks:
        spans, index = objects.spans.clip(window)
        if len(spans):
            yield window, spans, objects.labels[index]


@dataclass(frozen=True)
class _BlockSums:
    labels: Int32Array
    """Objects with a pixel in the block."""
    score: Int64Array
    score_max: Int64Array
    activation: Int64Array | None
    wins: Int64Array


def _sum_block(mosaic: Mosaic, job: tuple[Window, Spans, Int32Array]) -> _BlockSums:
    window, spans, labels = job
    layers = mosaic.layers(window)
    present, local = np.unique(labels, return_inverse=True)
    score, score_max = pixel_sums(spans, window, layers.scores)
    activation = None
    if layers.activation is not None:
        activation = total(pixel_sums(spans, window, layers.activation)[0], local, len(present))
    return _BlockSums(
        labels=present,
        score=total(score, local, len(present)),
        score_max=largest(score_max, local, len(present)),
        activation=activation,
        wins=_count_wins(window, spans, labels, layers.winner),
    )


def _count_wins(window: Window, spans: Spans, labels: Int32Array, winner: Int32Array | None) -> Int64Array:
    if winner is None:
        return np.zeros((0, 3), np.int64)
    by = winner.reshape(-1)[spans.pixels(window)].astype(np.int64)
    pairs = (np.repeat(labels.astype(np.int64), spans.lengths) << 32 | by)[by != NO_MASK]
    pairs, pixels = np.unique(pairs, return_counts=True)
    return np.column_stack([pairs >> 32, pairs & 0xFFFFFFFF, pixels])


# --- table -----------------------------------------------------------------------------------------------------------


def vectorize(
    mosaic: Mosaic,
    grid: Grid,
    blocks: BlockGrid,
    *,
    threshold: int,
    min_area: float = 0,
    max_hole: float = 0,
    simplify: float = 0,
    smooth: float = 0,
    masks: MaskTable | None = None,
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
    min_area, max_hole
        Pixels, see `find_objects`.
    simplify, smooth
        Sides of pixels, see `geolabel.polygons`.
    masks
        Qualities of the masks that `Layers.winner` counts.
    class_name
        Of every row.
    apply
        Runs the work on blocks.

    Returns
    -------
    geopandas.GeoDataFrame
        Columns ``id`` (from 1, by first pixel in raster order) to ``gsd_m`` of `geolabel.io.vectors.LANDSLIDE_COLUMNS`,
        with nothing where the mosaic has no such thing.
    """
    objects = find_objects(mosaic, blocks, threshold=threshold, min_area=min_area, max_hole=max_hole, apply=apply)
    return describe(objects, sum_objects(mosaic, blocks, objects, apply=apply), grid, simplify=simplify, smooth=smooth,
                    masks=masks, class_name=class_name)  # fmt: skip


def describe(
    objects: Objects,
    sums: Sums,
    grid: Grid,
    *,
    simplify: float = 0,
    smooth: float = 0,
    masks: MaskTable | None = None,
    class_name: str = "landslide",
) -> gpd.GeoDataFrame:
    """Outline and measure objects; see `vectorize`."""
    import geopandas as gpd

    outlines = np.concatenate([np.zeros(0, object)] + [
        polygons.outlines(part.spans, part.labels, part.count, grid.transform, tolerance=simplify, reach=smooth)
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
        **_from_masks(sums.wins, objects.count, masks),
        "activation_mean": None if sums.activation is None else sums.activation / (objects.areas * 255),
        "n_prompts": None if masks is None else _count_prompts(sums.wins, objects.count, masks),
        "gsd_m": grid.gsd,
    }
    return gpd.GeoDataFrame(columns, geometry=outlines, crs=grid.crs)


def _from_masks(wins: Int64Array, count: int, masks: MaskTable | None) -> dict[str, Float64Array | None]:
    """Means over the pixels of every object that have a winning mask, of what the network thinks of that mask."""
    if masks is None:
        return {"predicted_iou": None, "stability": None}
    owner, mask, pixels = wins.T
    weight = total(pixels, owner, count)
    means: dict[str, Float64Array | None] = {}
    for name, values in (("predicted_iou", masks.predicted_iou), ("stability", masks.stability)):
        weighted = np.bincount(owner, weights=values[mask].astype(np.float64) * pixels, minlength=count)
        means[name] = np.divide(weighted, weight, out=np.full(count, np.nan), where=weight > 0)
    return means


def _count_prompts(wins: Int64Array, count: int, masks: MaskTable) -> Int64Array:
    """Prompts of which a mask is the winner of a pixel of the object."""
    answered = np.unique(np.column_stack([wins[:, 0], masks.prompt_ids[wins[:, 1]]]), axis=0)
    return np.bincount(answered[:, 0], minlength=count)

"""The level to which a localizer is adapted: its operating point, or layers too, chosen by cross-validation.

The first level sets the two thresholds of the map: on unknown ground, the values of a localizer can all be too low
or too high. The second also adapts the layers that mix the features of the pyramid, the third most of the
network. Levels are compared on spatial blocks that they were not fitted to.

Source: Roberts et al. (2017), "Cross-validation strategies for data with temporal, spatial, hierarchical, or
phylogenetic structure".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, Literal, Protocol, TypeAlias, TypeVar, get_args

import numpy as np
from scipy import ndimage

from geolabel.activation import window_logits
from geolabel.engine.tasks import Progress, Silent
from geolabel.types import AnyArray, Float32Array, Float64Array, Int64Array, UInt8Array

Level = Literal["threshold", "head", "all"]
"""What is adapted: the operating point and the gate, or also the layers after the pyramid, or also those of the pyramid
and of most of the trunk. Simplest first."""

FOLDS = 4
"""Number of groups of blocks; each is judged by a fit to the others."""

MINIMUM_GAIN = 0.02
"""Minimum F1 that a level gains over the simpler ones by cross-validation: less is noise of a few polygons."""

CUTS = np.exp(np.arange(-24, 15) / 10)
"""Cuts to try, as multiples of the network's own: on unknown ground, values are too low more often than too high."""

GATES = (0.8, 1.0, 1.25, 1.5, 1.8, 2.2, 2.8)
"""Gates to try, as multiples of the cut; the network's own ratio comes last."""

OWN = (24, len(GATES))
"""Index of the network's own operating point in a tally."""


@dataclass(frozen=True)
class OperatingPoint:
    """Thresholds of a raw map: cells above `cut`, in regions where the logit of some window reaches `gate`."""

    cut: float
    gate: float
    sharpness: float | None = None
    """Sharpness of the pooling over a window; see `geolabel.activation.window_logits`."""

    def at(self, index: tuple[int, int]) -> OperatingPoint:
        """The operating point of an entry of a tally."""
        cut = self.cut * float(CUTS[index[0]])
        ratio = self.gate / self.cut if index[1] == len(GATES) else GATES[index[1]]
        return replace(self, cut=cut, gate=cut * ratio)


@dataclass(frozen=True)
class Cells:
    """The map of one tile, and the judgement of its cells."""

    raw: Float32Array
    """(h, w) map of the unchanged network."""
    cover: Float32Array
    """(h, w) share of the judged pixels of a cell that is landslide."""
    judged: Float32Array
    """(h, w) share of the pixels of a cell that is judged."""
    place: tuple[int, int, int]
    """Number of the grid, row and column of the first cell on it."""
    features: AnyArray | None = None
    """(h, w, F) features of the pyramid, half precision; None if no layers are fitted."""
    image: UInt8Array | None = None
    """(H, W, 3) image; None if only layers after the pyramid are fitted."""


# --- blocks ----------------------------------------------------------------------------------------------------------


SIDES = (256, 128, 64, 32, 16)
"""Sides of blocks in cells: the largest that gives enough blocks with landslides is used."""


@dataclass(frozen=True)
class Blocks:
    """Squares of ground, each of which is either fitted to or judged."""

    numbers: tuple[Int64Array, ...]
    """(h, w) block of the cells of each tile."""
    fold: Int64Array
    """(B,) fold of each block."""
    shown: int
    """Number of blocks with landslides."""

    @classmethod
    def of(cls, cells: Sequence[Cells]) -> Blocks | None:
        """Blocks of which at least two hold landslides, if possible one for each fold; None if there are none."""
        found = None
        for side in SIDES:
            found = _blocks(cells, side)
            if found.shown >= FOLDS:
                return found
        return found if found is not None and found.shown > 1 else None


def _blocks(cells: Sequence[Cells], side: int) -> Blocks:
    known: dict[tuple[int, int, int], int] = {}
    numbers = []
    for one in cells:
        grid, top, left = one.place
        rows, cols = (np.arange(start, start + n) // side for start, n in zip((top, left), one.raw.shape, strict=True))
        of_row = np.empty(one.raw.shape, np.int64)
        for row in np.unique(rows):
            for col in np.unique(cols):
                number = known.setdefault((grid, int(row), int(col)), len(known))
                of_row[np.ix_(rows == row, cols == col)] = number
        numbers.append(of_row)
    area = sum(
        np.bincount(of.ravel(), (one.cover * one.judged).ravel(), len(known))
        for one, of in zip(cells, numbers, strict=True)
    )
    order = np.argsort(-np.asarray(area), kind="stable")  # those with most landslide are assigned first
    fold = np.empty(len(known), np.int64)
    fold[order] = np.arange(len(known)) % FOLDS
    return Blocks(tuple(numbers), fold, int(np.count_nonzero(np.asarray(area) > 0)))


# --- tallies ---------------------------------------------------------------------------------------------------------


def region_peaks(raw: Float32Array, logits: Float64Array, cut: float) -> Float64Array:
    """(h * w,) highest of the logits (h, w) in the region above the cut that contains each cell; -inf below the cut."""
    labels, regions = ndimage.label(raw > cut, np.ones((3, 3)))
    peaks = np.full(regions + 1, -np.inf)
    inside = labels > 0
    np.maximum.at(peaks, labels[inside], logits[inside])
    highest: Float64Array = peaks[labels.ravel()]
    return highest


def tally(raw: Float32Array, cells: Cells, numbers: Int64Array, count: int, point: OperatingPoint, window: int) -> Any:
    """Judged area of every block at every operating point.

    Parameters
    ----------
    raw : (h, w)
        Map to threshold.
    numbers : (h, w)
        Block of each cell, below `count`.
    window
        Side of the gate's window in cells.

    Returns
    -------
    (count, cuts, gates, 3) area that is landslide and found, that is found, and that is landslide
    """
    logits = window_logits(raw[None], window, point.sharpness)[0]
    slides, judged, blocks = (cells.cover * cells.judged).ravel(), cells.judged.ravel(), numbers.ravel()
    ratios = (*GATES, point.gate / point.cut)
    table = np.zeros((count, len(CUTS), len(ratios), 3))
    table[..., 2] = np.bincount(blocks, slides, count)[:, None, None]
    for i, cut in enumerate(point.cut * CUTS):
        highest = region_peaks(raw, logits, cut)
        for j, ratio in enumerate(ratios):
            taken = highest >= ratio * cut
            table[:, i, j, 0] += np.bincount(blocks[taken], slides[taken], count)
            table[:, i, j, 1] += np.bincount(blocks[taken], judged[taken], count)
    return table


def f1(counts: Float64Array) -> Float64Array:
    """F1 (...) of tallies (..., 3)."""
    values: Float64Array = 2 * counts[..., 0] / np.maximum(counts[..., 1] + counts[..., 2], 1e-9)
    return values


def best(counts: Float64Array) -> tuple[int, int]:
    """The operating point with the highest F1, smoothed over neighbouring cuts: a peak at one cut is chance."""
    smooth = ndimage.uniform_filter(f1(counts), (3, 1), mode="nearest")
    i, j = np.unravel_index(smooth.argmax(), smooth.shape)
    return int(i), int(j)


def _crossed(tallies: Float64Array, fold: Int64Array) -> float:
    """F1 of blocks (B, cuts, gates, 3), each fold at the operating point that is best for the others."""
    sums = np.zeros(3)
    for one in np.unique(fold):
        rest = tallies[fold != one].sum(0)
        sums += tallies[fold == one].sum(0)[best(rest) if rest[OWN][2] else OWN]
    return float(f1(sums))


# --- the choice ------------------------------------------------------------------------------------------------------


class Mapper(Protocol):
    """Layers that give another map of a tile."""

    def map(self, cells: Cells) -> Float32Array:
        """Raw map (h, w)."""
        ...


M = TypeVar("M", bound=Mapper)

Fit: TypeAlias = Callable[[Sequence[Cells]], M]
"""Fits layers to tiles."""


@dataclass(frozen=True)
class Choice(Generic[M]):
    """The chosen level, and the F1 of each level by cross-validation."""

    level: Level | None
    """None if nothing gains."""
    scores: Mapping[str, float]
    """F1 by cross-validation of the unchanged network (``none``) and of every level that was tried."""
    point: OperatingPoint
    layers: M | None = None
    """Fitted to everything, if the level has layers."""

    @property
    def gain(self) -> float:
        """F1 that the level gains by cross-validation; 0 if nothing gains."""
        return self.scores[self.level] - self.scores["none"] if self.level else 0.0


def choose(
    cells: Sequence[Cells],
    blocks: Blocks,
    point: OperatingPoint,
    window: int,
    fits: Mapping[Level, Fit[M]] | None = None,
    *,
    level: Level | None = None,
    progress: Progress | None = None,
) -> Choice[M]:
    """Choose a level by cross-validation over spatial blocks, and fit it to everything.

    Parameters
    ----------
    point
        Operating point of the unchanged network.
    window
        Side of the gate's window in cells.
    fits
        Functions that fit the layers, for each level that has any; None to try the operating point only.
    level
        The level to use if it gains anything; None for the simplest that gains at least `MINIMUM_GAIN` over all
        simpler ones.
    progress
        Follows the fits, each of which leaves out a fold.
    """
    own = _tallies(cells, blocks, point, window, lambda k: cells[k].raw)
    tallies: dict[Level, Float64Array] = {"threshold": own}
    for name, fit in (fits or {}).items():
        tallies[name] = _of_others(cells, blocks, point, window, fit, progress or Silent(), name)
    scores = {"none": float(f1(own.sum(0))[OWN])}
    scores |= {name: _crossed(table, blocks.fold) for name, table in tallies.items()}
    chosen = level_of(scores) if level is None else level
    if chosen is None or scores[chosen] <= scores["none"]:
        return Choice(None, scores, point)
    layers = fits[chosen](cells) if fits and chosen in fits else None
    return Choice(chosen, scores, point.at(best(tallies[chosen].sum(0))), layers)


def level_of(scores: Mapping[str, float]) -> Level | None:
    """The simplest level that gains at least `MINIMUM_GAIN` over all simpler ones; None if none does.

    Parameters
    ----------
    scores
        See `Choice.scores`.
    """
    chosen, highest = None, scores["none"]
    for level in get_args(Level):
        if level in scores and scores[level] >= highest + MINIMUM_GAIN:
            chosen = level
        highest = max(highest, scores.get(level, highest))
    return chosen


def _of_others(
    cells: Sequence[Cells],
    blocks: Blocks,
    point: OperatingPoint,
    window: int,
    fit: Fit[M],
    progress: Progress,
    name: str,
) -> Float64Array:
    """Tallies of the blocks of each fold by layers that were fitted to the other folds."""
    total = np.zeros((len(blocks.fold), len(CUTS), len(GATES) + 1, 3))
    folds = np.unique(blocks.fold)
    for fold in progress.track(folds, f"fit {name}", len(folds)):
        held = [blocks.fold[numbers] == fold for numbers in blocks.numbers]
        rest = [
            replace(one, judged=np.where(out, np.float32(0), one.judged)) for one, out in zip(cells, held, strict=True)
        ]
        if not any((one.cover * one.judged).any() for one in rest):
            continue
        layers = fit(rest)
        here = [k for k, out in enumerate(held) if (out & (cells[k].judged > 0)).any()]
        part = Blocks(tuple(blocks.numbers[k] for k in here), blocks.fold, blocks.shown)
        maps = {k: layers.map(cells[k]) for k in here}
        table = _tallies([cells[k] for k in here], part, point, window, lambda k: maps[here[k]])  # noqa: B023
        total[blocks.fold == fold] = table[blocks.fold == fold]
    return total


def _tallies(
    cells: Sequence[Cells], blocks: Blocks, point: OperatingPoint, window: int, raw: Callable[[int], Float32Array]
) -> Float64Array:
    """(B, cuts, gates, 3) of all tiles; `raw` returns the map of a tile by its number."""
    count = len(blocks.fold)
    total = np.zeros((count, len(CUTS), len(GATES) + 1, 3))
    for k, (one, numbers) in enumerate(zip(cells, blocks.numbers, strict=True)):
        total += tally(raw(k), one, numbers, count, point, window)
    return total


def by_cell(mask: AnyArray, stride: int) -> Float32Array:
    """(h, w) share of each cell of `stride` x `stride` pixels that a mask (H, W) covers; its sides are multiples."""
    height, width = (n // stride for n in mask.shape)
    share: Float32Array = mask.reshape(height, stride, width, stride).mean((1, 3), dtype=np.float32)
    return share

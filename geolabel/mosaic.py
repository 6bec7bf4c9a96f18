"""One mosaic from overlapping tiles: dense maps are blended, masks are merged by their maximum score.

A tile without a prompt for an object has no vote on it, so a mask is never averaged with its absence. Every
function fills one window of the mosaic from the tiles or masks that reach into it. Weights are integers that depend on
a tile alone, and sums of integers do not depend on their order: a pixel has the same value in any window.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Protocol

import numpy as np

from geolabel.masks import OUTSIDE
from geolabel.tiles import Window
from geolabel.types import AnyArray, BoolArray, Int32Array, UInt8Array

NO_MASK = -1
"""Winner of a pixel that no mask covers."""


@dataclass(frozen=True)
class Layers:
    """A window of the finished mosaic, and what lies beside it."""

    scores: UInt8Array
    """(H, W) 0..254, or `geolabel.masks.OUTSIDE`."""
    winner: Int32Array | None = None
    """(H, W) number of the mask that gave a pixel its score, or `NO_MASK`; None for a mosaic that has no masks."""
    attributes: Mapping[str, AnyArray] = field(default_factory=dict)
    """(H, W) integers by the name of a layer: what polygons are described by beside their scores, such as
    ``activation``, 0..255."""


STEPS = 128
"""Most steps of a feather along an axis: weights, and sums of grey values under them, then fit 32 bits."""


class Sliceable(Protocol):
    """Grey values of a tile, given or made where they are asked for."""

    def __getitem__(self, part: tuple[slice, slice]) -> UInt8Array:
        """Pixels of a part of the tile."""
        ...


def feather(height: int, width: int, floor: int = 1) -> Int32Array:
    """(height, width) weights of a tile: `floor` along its frame, rising inward along each axis in up to `STEPS` steps.

    The weights of the two axes are multiplied. They are nowhere 0, so the frame of a scene, which has
    no second tile, keeps its values.
    """
    inward = (np.minimum(np.arange(n), np.arange(n)[::-1]) for n in (height, width))
    rows, cols = (floor + steps // -(-(int(steps.max()) + 1) // STEPS) for steps in inward)
    return np.outer(rows, cols).astype(np.int32)


@lru_cache(maxsize=16)
def _weights(height: int, width: int) -> Int32Array:
    weights = feather(height, width)
    weights.setflags(write=False)  # shared between calls
    return weights


def blend(window: Window, parts: Iterable[tuple[Window, Sliceable]]) -> UInt8Array:
    """Average the tiles that cover a window, weighted by `feather`; halves are rounded up.

    Parameters
    ----------
    window
        What to fill.
    parts
        Tiles in any order: where they lie, and their values (h, w). What reaches out of `window` is ignored.

    Returns
    -------
    (H, W), 0 where no tile is
    """
    parts = list(parts)
    if len(parts) == 1 and parts[0][0].contains(window):
        return parts[0][1][window.within(parts[0][0])]
    total = np.zeros((window.height, window.width), np.int32)
    weight = np.zeros((window.height, window.width), np.int32)
    for tile, values in parts:
        shared = tile.intersection(window)
        if shared is None:
            continue
        source, target = shared.within(tile), shared.within(window)
        share = _weights(tile.height, tile.width)[source]
        total[target] += share * values[source]
        weight[target] += share
    # In double precision a quotient of such integers, and half of one more, lies on the right side of whole numbers.
    mean = np.divide(total, np.maximum(weight, 1, out=weight))
    mean += 0.5
    grey: UInt8Array = mean.astype(np.uint8)
    return grey


def merge_scores(
    window: Window, parts: Iterable[tuple[Window, UInt8Array, int]], kind: type[np.unsignedinteger[Any]] = np.uint32
) -> tuple[UInt8Array, AnyArray]:
    """Maximum of the scores of masks, and which mask it came from.

    Parameters
    ----------
    window
        What to fill.
    parts
        Masks in any order: the window of the crop, its scores (h, w), 0 where the mask is not, and the mask's number,
        from 1. What reaches out of `window` is ignored.
    kind
        Holds the numbers; a window is large, and the masks that reach into it are few.

    Returns
    -------
    scores : (H, W), 0 where no mask is
    winner : (H, W), of type `kind`, 0 where no mask is; where scores tie, the mask of the lowest number
    """
    scores = np.zeros((window.height, window.width), np.uint8)
    winner = np.zeros((window.height, window.width), kind)
    for crop, values, number in parts:
        shared = crop.intersection(window)
        if shared is None:
            continue
        new, target = values[shared.within(crop)], shared.within(window)
        best, by = scores[target], winner[target]
        better = (new > best) | ((new == best) & (number < by))  # 0, no mask, is less than any number: it is not beaten
        np.maximum(best, new, out=best)
        np.copyto(by, kind(number), where=better)
    return scores, winner


def mark_outside(scores: UInt8Array, valid: BoolArray) -> UInt8Array:
    """Scores (H, W) with `geolabel.masks.OUTSIDE` where a pixel is not valid (H, W)."""
    return np.where(valid, scores, np.uint8(OUTSIDE))

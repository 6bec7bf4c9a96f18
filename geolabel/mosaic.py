"""Merge overlapping tiles into one mosaic: dense maps are blended, masks are merged by maximum score.

A tile without a prompt for an object has no vote on it, so a mask is never averaged with its absence. Every function
fills one window of the mosaic from the tiles or masks that intersect it. Weights are integers that depend on a tile
only, and integer sums do not depend on order: a pixel has the same value in any window.
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
"""Owner of a pixel without a mask."""


@dataclass(frozen=True)
class Layers:
    """A window of the finished mosaic, with its other layers."""

    scores: UInt8Array
    """(H, W) 0..254, or `geolabel.masks.OUTSIDE`."""
    winner: Int32Array | None = None
    """(H, W) number of the mask that gave a pixel its score, or `NO_MASK`; None for a mosaic without masks."""
    attributes: Mapping[str, AnyArray] = field(default_factory=dict)
    """Further integer layers (H, W) by name, which describe polygons, such as ``activation``, 0..255."""


STEPS = 128
"""Maximum steps of a feather along an axis: weights, and weighted sums of grey values, then fit 32 bits."""


class Sliceable(Protocol):
    """Grey values of a tile, stored or computed on slicing."""

    def __getitem__(self, part: tuple[slice, slice]) -> UInt8Array:
        """Pixels of a part of the tile."""
        ...


def feather(height: int, width: int, floor: int = 1) -> Int32Array:
    """(height, width) weights of a tile: `floor` at the frame, rising inwards along each axis in up to `STEPS` steps.

    The weights of the two axes are multiplied. They are positive everywhere, so the frame of a scene, where there is
    only one tile, keeps its values.
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
        Window to fill.
    parts
        Window and values (h, w) of tiles, in any order. Pixels outside `window` are ignored.

    Returns
    -------
    (H, W), 0 without a tile
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
    # In double precision, quotients of such integers, plus a half, are on the correct side of whole numbers.
    mean = np.divide(total, np.maximum(weight, 1, out=weight))
    mean += 0.5
    grey: UInt8Array = mean.astype(np.uint8)
    return grey


def merge_scores(
    window: Window, parts: Iterable[tuple[Window, UInt8Array, int]], kind: type[np.unsignedinteger[Any]] = np.uint32
) -> tuple[UInt8Array, AnyArray]:
    """Maximum score of masks, and which mask it came from.

    Parameters
    ----------
    window
        Window to fill.
    parts
        Masks in any order: window of the crop, scores (h, w), 0 outside the mask, and the mask's number, from 1.
        Pixels outside `window` are ignored.
    kind
        Integer type for the numbers, small if few masks intersect a large window.

    Returns
    -------
    scores : (H, W), 0 without a mask
    winner : (H, W), of type `kind`, 0 without a mask; ties to the lowest number
    """
    scores = np.zeros((window.height, window.width), np.uint8)
    winner = np.zeros((window.height, window.width), kind)
    for crop, values, number in parts:
        shared = crop.intersection(window)
        if shared is None:
            continue
        new, target = values[shared.within(crop)], shared.within(window)
        best, by = scores[target], winner[target]
        better = (new > best) | ((new == best) & (number < by))  # never true where both are 0, as no number is below 0
        np.maximum(best, new, out=best)
        np.copyto(by, kind(number), where=better)
    return scores, winner


def mark_outside(scores: UInt8Array, valid: BoolArray) -> UInt8Array:
    """Scores (H, W) with `geolabel.masks.OUTSIDE` where a pixel is not valid (H, W)."""
    return np.where(valid, scores, np.uint8(OUTSIDE))

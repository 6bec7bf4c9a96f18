"""Square crops of chips of any size.

A chip's size tells what it shows wherever chips were cut around objects. So crops are taken at the chip's own scale, or
at one drawn without looking at its size, and a chip smaller than a crop lies anywhere in it, its surroundings mirrored.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from PIL import Image

from geolabel.tiles import mirrored
from geolabel.training.colours import recolour
from geolabel.types import AnyArray, BoolArray, Int32Array, Int64Array, UInt8Array


@dataclass(frozen=True)
class Cropping:
    """How crops are taken."""

    size: int
    """Pixels a side."""
    zooms: tuple[float, float] = (1.0, 1.0)
    """Range of enlargements."""
    strength: float = 1.0
    """Of the changes in colour and sharpness; 0 for none."""

    @property
    def zoom(self) -> float:
        """The middle of `zooms`, at which whole chips are judged."""
        return float(np.sqrt(self.zooms[0] * self.zooms[1]))


@dataclass(frozen=True)
class Crop:
    """Part of a chip."""

    rgb: UInt8Array
    """(S, S, 3)"""
    layer: AnyArray | None
    """(S, S) numbers that were cut with it."""


def take_crop(
    rgb: UInt8Array,
    cropping: Cropping,
    rng: Generator,
    layer: AnyArray | None = None,
    holding: tuple[int, int] | None = None,
) -> Crop:
    """Cut, scale, turn, mirror and recolour part of a chip.

    Parameters
    ----------
    rgb : (H, W, 3)
    layer : (H, W)
        Numbers, uint8 or int32, that go through the same geometry without being mixed.
    holding
        Row and column of a pixel that the crop has to show, anywhere in it; None for any part of the chip.
    """
    size = cropping.size
    zoom = np.exp(rng.uniform(*np.log(cropping.zooms)))
    reach = max(1, round(size / zoom))
    held = (None, None) if holding is None else holding
    rows, cols = (_span(length, reach, rng, at) for length, at in zip(rgb.shape[:2], held, strict=True))
    turns, mirror = int(rng.integers(4)), bool(rng.integers(2))

    def warp(values: AnyArray, how: Image.Resampling) -> AnyArray:
        part = Image.fromarray(_along(_along(values, rows, 0), cols, 1))
        scaled = np.asarray(part if reach == size else part.resize((size, size), how))
        turned = np.rot90(scaled, turns)
        return np.ascontiguousarray(turned[:, ::-1] if mirror else turned)

    out = warp(rgb, Image.Resampling.BILINEAR)
    if cropping.strength > 0:
        out = recolour(out, rng, cropping.strength)
    return Crop(out, None if layer is None else warp(layer, Image.Resampling.NEAREST))


def _span(length: int, reach: int, rng: Generator, at: int | None = None) -> Int64Array:
    """Where `reach` pixels lie along a side of `length`: anywhere inside, or anywhere around it, mirrored.

    With `at`, anywhere that includes this pixel.
    """
    spare = length - reach
    if spare < 0:
        first = -int(rng.integers(-spare + 1))
    elif at is None:
        first = int(rng.integers(spare + 1))
    else:
        first = int(rng.integers(max(0, at - reach + 1), min(spare, at) + 1))
    return mirrored(first, first + reach, length)


def _along(values: AnyArray, at: Int64Array, axis: int) -> AnyArray:
    # most spans mirror nothing: their steps are all 1, and a slice costs nothing
    if at[-1] - at[0] == len(at) - 1:
        return values[(slice(None),) * axis + (slice(at[0], at[-1] + 1),)]
    return np.take(values, at, axis=axis)


def epoch_indices(count: int, batch: int, step: int, seed: int) -> Int32Array:
    """(batch,) which of `count` samples make up a step: all of them once in every epoch, in an order of its own.

    The last batch of an epoch is filled up from its beginning.
    """
    steps = -(-count // batch)
    epoch, at = divmod(step, steps)
    order = np.random.default_rng([seed, 3, epoch]).permutation(count).astype(np.int32)
    return np.take(order, np.arange(at * batch, (at + 1) * batch), mode="wrap")


def balanced_indices(shown: BoolArray, share: float, batch: int, step: int, seed: int) -> Int32Array:
    """(batch,) as `epoch_indices`, but a `share` of every step is of those samples (N,) that show something.

    Either kind has epochs of its own. Where there is only one kind, they are those of `epoch_indices`.
    """
    kinds = np.flatnonzero(shown), np.flatnonzero(~shown)
    if not share or not all(map(len, kinds)):
        return epoch_indices(len(shown), batch, step, seed)
    first = min(batch - 1, max(1, round(batch * share)))
    drawn = [
        kind[epoch_indices(len(kind), count, step, seed + number)]
        for number, (kind, count) in enumerate(zip(kinds, (first, batch - first), strict=True))
    ]
    return np.concatenate(drawn).astype(np.int32)

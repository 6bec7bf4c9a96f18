"""Activation maps: normalise, upsample, quantise.

They are cut in `geolabel.extraction.passes.find_regions`, those of chips in `geolabel.prompters`.

Sources: Wang et al., "Auto-Prompting SAM for Weakly Supervised Landslide Extraction" (APSAM), eq. 1 and 2;
Zhou et al. (2016), "Learning Deep Features for Discriminative Localization".
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np

from geolabel.tiles import extent
from geolabel.types import AnyArray, Float32Array, Float64Array, Int64Array, UInt8Array

Normalisation = Literal["constant", "maximum"]
"""What becomes activation 1: the constant stored with the weights, so that the tiles of a scene compare, or the maximum
of each image, as eq. 1 of APSAM has it for chips."""

LEVELS = 255
"""Activations are thresholded and stored as grey values 0..255, as eq. 2 of APSAM has them."""


@dataclass(frozen=True)
class Activation:
    """Class activation maps of one image, at the stride of the network that made them.

    The map alone cannot say that a class is absent (its maximum may have been scaled to one), so the raw maximum
    and the class probability travel with it.
    """

    values: Float32Array
    """(C, h, w), 0..1."""
    local_probability: Float32Array
    """(C, h, w), 0..1: probability of the class in the window of the training size around each cell."""
    raw_max: Float32Array
    """(C,) maximum of the linear map before normalisation."""
    stride: int
    """Image pixels per cell; cell ``i`` covers pixels ``[i * stride, (i + 1) * stride)``."""
    classes: tuple[str, ...]

    @property
    def probability(self) -> Float32Array:
        """(C,) largest class probability over all windows of the training size."""
        largest: Float32Array = self.local_probability.max(axis=(1, 2))
        return largest

    def grey(self, class_id: int, size: tuple[int, int] | None = None) -> UInt8Array:
        """(H, W) map of a class in the pixels of the image, 0..255.

        Parameters
        ----------
        size
            Of the image; None where it is a multiple of the stride.
        """
        values = self.values[class_id]
        height, width = size or (values.shape[0] * self.stride, values.shape[1] * self.stride)
        return upsample(quantise(values), self.stride, height, width)


def normalise(raw: Float32Array, constant: float | None = None) -> Float32Array:
    """Scale a linear activation map to 0..1, negative values to 0.

    With `constant`, a given raw value becomes 1 (and what exceeds it is cut), so maps of many tiles compare. Without,
    the map's own maximum becomes 1: eq. 1 of APSAM, right for a chip that is known to show the class. A map
    without a positive value becomes all zeros, never inverted.

    Parameters
    ----------
    raw : (..., h, w)
    constant
        Positive raw value that maps to 1.
    """
    positive: Float32Array = np.maximum(raw, 0, dtype=np.float32)
    if constant is not None:
        np.minimum(positive / np.float32(constant), 1, out=positive)
        return positive
    peak = positive.max(axis=(-2, -1), keepdims=True)
    scaled: Float32Array = np.divide(positive, peak, out=np.zeros_like(positive), where=peak > 0)
    return scaled


def local_probability(
    raw: Float32Array, bias: Float32Array, cells: int, sharpness: float | None = None
) -> Float32Array:
    """Class probability of the window of `cells` x `cells` around each cell.

    The head of the network is linear, so the logit of any window is the pooled raw map over it plus the bias. Windows
    lie inside the map: a cell near its frame takes the window nearest to it.

    Parameters
    ----------
    raw : (C, h, w)
    bias : (C,)
    cells
        Side of the training window in cells of the map.
    sharpness
        r of log-sum-exp pooling, ``log(mean(exp(r x))) / r``; None for the mean.

    Returns
    -------
    (C, h, w), 0..1
    """
    logits = window_logits(raw, cells, sharpness) + bias[:, None, None]
    probability: Float32Array = (1 / (1 + np.exp(-np.clip(logits, -60, 60)))).astype(np.float32)
    return probability


def window_logits(raw: Float32Array, cells: int, sharpness: float | None = None) -> Float64Array:
    """Logit, without the bias, of the window of `cells` x `cells` around each cell; see `local_probability`.

    Parameters
    ----------
    raw : (C, h, w)

    Returns
    -------
    (C, h, w)
    """
    if sharpness is None:
        return _window_means(raw.astype(np.float64), cells)
    # What exp() cannot hold beside the highest of the map has a probability of 0 all the same.
    highest = raw.max(axis=(1, 2), keepdims=True).astype(np.float64)
    means = _window_means(np.exp(sharpness * (raw - highest)), cells)
    pooled: Float64Array = np.log(np.maximum(means, np.finfo(np.float64).tiny)) / sharpness + highest
    return pooled


def _window_means(values: Float64Array, cells: int) -> Float64Array:
    _, height, width = values.shape
    kh, kw = min(cells, height), min(cells, width)
    # Sums over every window that fits, from an integral image. Double precision keeps the rounding of the running sums
    # far below what single-precision results can show.
    integral = np.pad(values.cumsum(1).cumsum(2), ((0, 0), (1, 0), (1, 0)))
    sums = integral[:, kh:, kw:] - integral[:, :-kh, kw:] - integral[:, kh:, :-kw] + integral[:, :-kh, :-kw]
    means = sums / (kh * kw)
    rows = np.clip(np.arange(height) - kh // 2, 0, height - kh)
    cols = np.clip(np.arange(width) - kw // 2, 0, width - kw)
    nearest: Float64Array = means[:, rows][:, :, cols]
    return nearest


def quantise(values: Float32Array) -> UInt8Array:
    """Map 0..1, of any shape, to grey values 0..255, to nearest."""
    grey: UInt8Array = np.rint(np.clip(values, 0, 1) * LEVELS).astype(np.uint8)
    return grey


def upsample(values: UInt8Array, stride: int, height: int, width: int) -> UInt8Array:
    """Enlarge a grey map by `stride` with bilinear interpolation and cut it to (height, width).

    Cell centres keep their place (the ``align_corners=False`` convention) and the frame repeats the outermost cells.

    Parameters
    ----------
    values : (h, w) with ``h * stride >= height`` and ``w * stride >= width``
    """
    return Enlarged(values, stride)[:height, :width]


@dataclass(frozen=True)
class Enlarged:
    """A grey map that is enlarged as `upsample` does it, but only where it is sliced."""

    values: UInt8Array
    """(h, w)"""
    stride: int

    def __getitem__(self, part: tuple[slice, slice]) -> UInt8Array:
        """Pixels of a part of the enlarged map; the same wherever the part begins and ends."""
        if self.stride == 1:
            return self.values[part]
        unit = (2 * self.stride) ** 2
        rows, cols = (
            _taps(n, self.stride, *s.indices(n * self.stride)[:2]) for n, s in zip(self.values.shape, part, strict=True)
        )
        # Columns first: the few rows of cells then become rows of pixels by copies of whole lines.
        scaled = _along(_along(self.values[rows.cells, cols.cells].T, cols).T, rows)
        scaled += unit // 2
        scaled //= unit
        return scaled.astype(np.uint8)

    def reach(self, level: int, part: tuple[slice, slice]) -> tuple[slice, slice] | None:
        """A part of a part outside of which no pixel exceeds `level`; None where none does."""
        near = [slice(max(0, s.start // self.stride - 1), -(-s.stop // self.stride) + 1) for s in part]
        cells = extent(self.values[near[0], near[1]] > level)
        if cells is None:
            return None
        # A cell has a share in the pixels of half a cell more on either side, which may all lie outside the part.
        rows, cols = (
            slice(
                max(s.start, (2 * (n.start + c.start) - 1) * self.stride // 2),
                min(s.stop, -(-(2 * (n.start + c.stop) + 1) * self.stride // 2)),
            )
            for s, n, c in zip(part, near, cells, strict=True)
        )
        return (rows, cols) if rows.start < rows.stop and cols.start < cols.stop else None


class _Taps(NamedTuple):
    # What the pixels of a part of an axis are made of.
    cells: slice
    before: Int64Array
    """Of `cells`, the one whose centre is the last before the pixel's."""
    after: Int64Array
    share: AnyArray
    """Of the cell before, in 2 * stride."""
    rest: AnyArray


def _taps(length: int, stride: int, start: int, stop: int) -> _Taps:
    before, after, share, rest = (values[start:stop] for values in _axis(length, stride))
    first, last = (int(before[0]), int(after[-1]) + 1) if len(before) else (0, 0)
    return _Taps(slice(first, last), before - first, after - first, share, rest)


@lru_cache(maxsize=16)
def _axis(length: int, stride: int) -> tuple[Int64Array, Int64Array, AnyArray, AnyArray]:
    # All are integers: a pixel is the same in whichever part it is asked for.
    twice = 2 * np.arange(length * stride) + 1 - stride  # the pixel's centre, in units of 1 / (2 * stride) cells
    low = twice // (2 * stride)
    weight = twice - low * 2 * stride
    before, after = np.clip(low, 0, length - 1), np.clip(low + 1, 0, length - 1)
    # Scaled on both axes, and half a unit added to round, grey values fit 16 bits up to a stride of 8.
    kind = np.uint16 if LEVELS * (2 * stride) ** 2 + 2 * stride**2 < 1 << 16 else np.uint32
    return before, after, (2 * stride - weight).astype(kind)[:, None], weight.astype(kind)[:, None]


def _along(values: AnyArray, taps: _Taps) -> AnyArray:
    # The first axis, scaled by 2 * stride.
    scaled: AnyArray = values[taps.before] * taps.share
    scaled += values[taps.after] * taps.rest
    return scaled

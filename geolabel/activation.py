"""Activation maps: normalise, upsample, quantise.

They are thresholded in `geolabel.extraction.passes`, those of chips in `geolabel.prompters`.

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
"""What is scaled to activation 1: the constant stored with the weights, so that tiles of a scene are comparable, or the
maximum of each image, as in eq. 1 of APSAM for chips."""

LEVELS = 255
"""Activations are thresholded and stored as grey values 0..255, as in eq. 2 of APSAM."""


@dataclass(frozen=True)
class Activation:
    """Class activation maps of one image, at the stride of the network that made them.

    The map alone cannot show that a class is absent, as its maximum may have been scaled to one. The raw maximum and
    the class probability are therefore kept with it.
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
        """Map (H, W) of a class at the resolution of the image, 0..255.

        Parameters
        ----------
        size
            Size of the image; None if it is a multiple of the stride.
        """
        values = self.values[class_id]
        height, width = size or (values.shape[0] * self.stride, values.shape[1] * self.stride)
        return upsample(quantise(values), self.stride, height, width)


def normalise(raw: Float32Array, constant: float | None = None) -> Float32Array:
    """Scale a linear activation map to 0..1; negative values become 0.

    With `constant`, that raw value becomes 1 and larger values are clipped, so maps of different tiles are comparable.
    Without, the map's own maximum becomes 1: eq. 1 of APSAM, suited to a chip that is known to show the class. A map
    without positive values becomes all zeros.

    Parameters
    ----------
    raw : (..., h, w)
    constant
        Positive raw value that is scaled to 1.
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

    The head of the network is linear, so the logit of a window is the pooled raw map over it plus the bias. Windows
    stay inside the map: a cell near the frame uses the nearest window.

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
    """Logit, without bias, of the window of `cells` x `cells` around each cell; see `local_probability`.

    Parameters
    ----------
    raw : (C, h, w)

    Returns
    -------
    (C, h, w)
    """
    if sharpness is None:
        return _window_means(raw.astype(np.float64), cells)
    # Terms that underflow in exp() relative to the maximum have probability 0 anyway.
    highest = raw.max(axis=(1, 2), keepdims=True).astype(np.float64)
    means = _window_means(np.exp(sharpness * (raw - highest)), cells)
    pooled: Float64Array = np.log(np.maximum(means, np.finfo(np.float64).tiny)) / sharpness + highest
    return pooled


def _window_means(values: Float64Array, cells: int) -> Float64Array:
    _, height, width = values.shape
    kh, kw = min(cells, height), min(cells, width)
    # Sums over all windows from an integral image. Double precision keeps the rounding errors of the running sums far
    # below single precision.
    integral = np.pad(values.cumsum(1).cumsum(2), ((0, 0), (1, 0), (1, 0)))
    sums = integral[:, kh:, kw:] - integral[:, :-kh, kw:] - integral[:, kh:, :-kw] + integral[:, :-kh, :-kw]
    means = sums / (kh * kw)
    rows = np.clip(np.arange(height) - kh // 2, 0, height - kh)
    cols = np.clip(np.arange(width) - kw // 2, 0, width - kw)
    nearest: Float64Array = means[:, rows][:, :, cols]
    return nearest


def quantise(values: Float32Array) -> UInt8Array:
    """Quantise values 0..1 of any shape to grey values 0..255, rounding to nearest."""
    grey: UInt8Array = np.rint(np.clip(values, 0, 1) * LEVELS).astype(np.uint8)
    return grey


def upsample(values: UInt8Array, stride: int, height: int, width: int) -> UInt8Array:
    """Enlarge a grey map by `stride` with bilinear interpolation and crop it to (height, width).

    Cell centres keep their position (``align_corners=False``), and the outermost cells are repeated at the frame.

    Parameters
    ----------
    values : (h, w) with ``h * stride >= height`` and ``w * stride >= width``
    """
    return Enlarged(values, stride)[:height, :width]


@dataclass(frozen=True)
class Enlarged:
    """A grey map enlarged like `upsample`, but only where it is sliced."""

    values: UInt8Array
    """(h, w)"""
    stride: int

    def __getitem__(self, part: tuple[slice, slice]) -> UInt8Array:
        """Pixels of a part of the enlarged map; values do not depend on the part."""
        if self.stride == 1:
            return self.values[part]
        unit = (2 * self.stride) ** 2
        rows, cols = (
            _taps(n, self.stride, *s.indices(n * self.stride)[:2]) for n, s in zip(self.values.shape, part, strict=True)
        )
        # Columns first: the few rows of cells then become rows of pixels by copying whole lines.
        scaled = _along(_along(self.values[rows.cells, cols.cells].T, cols).T, rows)
        scaled += unit // 2
        scaled //= unit
        return scaled.astype(np.uint8)

    def reach(self, level: int, part: tuple[slice, slice]) -> tuple[slice, slice] | None:
        """A sub-part outside of which no pixel exceeds `level`; None if no pixel does."""
        near = [slice(max(0, s.start // self.stride - 1), -(-s.stop // self.stride) + 1) for s in part]
        cells = extent(self.values[near[0], near[1]] > level)
        if cells is None:
            return None
        # A cell influences pixels up to half a cell beyond its edges, which may all be outside the part.
        rows, cols = (
            slice(
                max(s.start, (2 * (n.start + c.start) - 1) * self.stride // 2),
                min(s.stop, -(-(2 * (n.start + c.stop) + 1) * self.stride // 2)),
            )
            for s, n, c in zip(part, near, cells, strict=True)
        )
        return (rows, cols) if rows.start < rows.stop and cols.start < cols.stop else None


class _Taps(NamedTuple):
    # Interpolation taps for the pixels of one axis of a part.
    cells: slice
    before: Int64Array
    """Index, within `cells`, of the last cell whose centre is not after the pixel's."""
    after: Int64Array
    share: AnyArray
    """Weight of the cell `before`, in units of 1 / (2 * stride)."""
    rest: AnyArray


def _taps(length: int, stride: int, start: int, stop: int) -> _Taps:
    before, after, share, rest = (values[start:stop] for values in _axis(length, stride))
    first, last = (int(before[0]), int(after[-1]) + 1) if len(before) else (0, 0)
    return _Taps(slice(first, last), before - first, after - first, share, rest)


@lru_cache(maxsize=16)
def _axis(length: int, stride: int) -> tuple[Int64Array, Int64Array, AnyArray, AnyArray]:
    # All integers: a pixel does not depend on the part it is computed in.
    twice = 2 * np.arange(length * stride) + 1 - stride  # the pixel's centre, in units of 1 / (2 * stride) cells
    low = twice // (2 * stride)
    weight = twice - low * 2 * stride
    before, after = np.clip(low, 0, length - 1), np.clip(low + 1, 0, length - 1)
    # Scaled on both axes, plus half a unit for rounding, grey values fit 16 bits up to a stride of 8.
    kind = np.uint16 if LEVELS * (2 * stride) ** 2 + 2 * stride**2 < 1 << 16 else np.uint32
    return before, after, (2 * stride - weight).astype(kind)[:, None], weight.astype(kind)[:, None]


def _along(values: AnyArray, taps: _Taps) -> AnyArray:
    # The first axis, scaled by 2 * stride.
    scaled: AnyArray = values[taps.before] * taps.share
    scaled += values[taps.after] * taps.rest
    return scaled

"""One radiometric stretch for a whole scene: from the values of the sensor to the 8-bit RGB of the networks.

A stretch per tile would change the appearance of the same ground across a seam, so the numbers are computed once, from
a sample of the scene, and stored with the run.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Self

import numpy as np

from geolabel.errors import OptionError
from geolabel.types import AnyArray, BoolArray, Float64Array, UInt8Array

DEFAULT = "p2-98"

MID_GREY = 127
"""Grey value of a band without contrast."""

_PERCENTILES = re.compile(r"p(\d+(?:\.\d+)?)-(\d+(?:\.\d+)?)")


@dataclass(frozen=True)
class Stretch:
    """A linear stretch per band: `low` becomes 0 and `high` 255, values beyond are clipped."""

    low: tuple[float, float, float]
    high: tuple[float, float, float]
    """A band whose `high` is not above its `low` has no contrast and becomes mid-grey."""
    spec: str = DEFAULT
    """Origin of the numbers."""
    empty: bool = False
    """Whether the sample had no valid pixel; the numbers are then meaningless."""

    @classmethod
    def from_sample(cls, bands: AnyArray, valid: BoolArray, spec: str = DEFAULT) -> Self:
        """Compute the stretch of a scene.

        Parameters
        ----------
        bands : (3, h, w)
            Sample of the scene.
        valid : (h, w)
        spec
            ``pLOW-HIGH`` uses percentiles of the valid pixels of each band, or a band's extremes if both percentiles
            are equal; ``LOW,HIGH`` are values for all bands; ``none`` keeps 8-bit values.

        Raises
        ------
        OptionError
            If `spec` is none of these, or is ``none`` for data other than uint8.
        """
        percentiles = parse_stretch(spec)
        empty = not valid.any()
        if spec == "none":
            if bands.dtype != np.uint8:
                raise OptionError(
                    f"stretch 'none' is for uint8 scenes, but this one is {bands.dtype}: give p2-98 or LOW,HIGH"
                )
            return cls((0.0,) * 3, (255.0,) * 3, spec, empty)
        if not spec.startswith("p"):
            return cls((percentiles[0],) * 3, (percentiles[1],) * 3, spec, empty)
        if empty:
            return cls((0.0,) * 3, (1.0,) * 3, spec, empty)
        ranges = [_range(band if valid.all() else band[valid], percentiles) for band in bands]
        (low_r, high_r), (low_g, high_g), (low_b, high_b) = ranges
        return cls((low_r, low_g, low_b), (high_r, high_g, high_b), spec)

    def apply(self, bands: AnyArray, valid: BoolArray) -> UInt8Array:
        """Stretch a window.

        Parameters
        ----------
        bands : (3, h, w)
            Any real dtype.
        valid : (h, w)

        Returns
        -------
        (h, w, 3), red first
            0 if not valid. Each band is contiguous, as in `bands` and as networks expect.
        """
        out = np.empty((3, *valid.shape), np.uint8)
        for band, low, high, grey in zip(bands, self.low, self.high, out, strict=True):
            if band.dtype.itemsize > 2 or band.dtype.kind not in "iu":
                grey[...] = _levels(band, low, high)
                continue
            table = _table(low, high, band.dtype.str)
            if band.dtype.itemsize == 1:
                grey.reshape(-1)[...] = np.frombuffer(band.tobytes().translate(table.tobytes()), np.uint8)
            else:
                np.take(table, band.view(np.uint16), out=grey, mode="clip")  # clip skips the bounds check
        if not valid.all():
            out *= valid
        return np.moveaxis(out, 0, 2)


def parse_stretch(spec: str) -> tuple[float, float]:
    """The two numbers of a stretch: percentiles for ``pLOW-HIGH``, values for ``LOW,HIGH`` and ``none``.

    Raises
    ------
    OptionError
        If the text is none of these, or its numbers are out of order.
    """
    if spec == "none":
        return 0.0, 255.0
    match = _PERCENTILES.fullmatch(spec)
    try:
        low, high = map(float, match.groups() if match else spec.split(","))
    except ValueError:
        raise OptionError(
            f"stretch {spec!r}: give percentiles (p2-98), two values with a comma (0,3000), or none"
        ) from None
    if not (np.isfinite(low) and np.isfinite(high) and low < high) or (match and high > 100):
        limit = "percentiles from 0 to 100, the lower first" if match else "two finite values, the lower first"
        raise OptionError(f"stretch {spec!r}: it takes {limit}")
    return low, high


def _range(values: AnyArray, percentiles: tuple[float, float]) -> tuple[float, float]:
    low, high = _percentiles(values, percentiles) if values.dtype == np.uint8 else np.percentile(values, percentiles)
    if low == high:  # nearly all pixels are equal; the few others are the content
        low, high = values.min(), values.max()
    return float(low), float(high)


def _percentiles(values: UInt8Array, percentiles: tuple[float, float]) -> Float64Array:
    """The result of `numpy.percentile`, from a histogram instead of sorting."""
    ends = np.cumsum(np.bincount(values.reshape(-1), minlength=256))
    place = np.asarray(percentiles) / 100 * (ends[-1] - 1)
    share = place - np.floor(place)
    below, above = (
        np.searchsorted(ends, at, side="right").astype(np.float64) for at in (np.floor(place), np.ceil(place))
    )
    step = above - below
    between: Float64Array = np.where(share < 0.5, below + step * share, above - step * (1 - share))
    return between


def _levels(values: AnyArray, low: float, high: float) -> UInt8Array:
    if not high > low:
        return np.full(values.shape, MID_GREY, np.uint8)
    with np.errstate(over="ignore", invalid="ignore"):  # extremes of float64 are not brightness
        levels = (np.clip(values.astype(np.float64), low, high) - low) * 255 / (high - low)
    return np.rint(np.nan_to_num(levels, posinf=255)).astype(np.uint8)


@lru_cache(maxsize=16)
def _table(low: float, high: float, dtype: str) -> UInt8Array:
    """Grey value of every value of an 8- or 16-bit type, ordered by its bits read as unsigned."""
    kind = np.dtype(dtype)
    every = np.arange(1 << (8 * kind.itemsize), dtype=f"u{kind.itemsize}").view(kind)
    return _levels(every, low, high)

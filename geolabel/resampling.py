"""Resample a raster to a scaled grid; a pixel does not depend on the window it is read in.

Along each axis, a pixel of the new grid covers an interval of source pixels whose ends are exact fractions. Where the
grid is coarser, the pixel is the mean over that interval, weighted by share; where it is finer, it is interpolated
between the two nearest source centres (bilinear). Source pixels that are not valid have weight zero. GDAL does the same
arithmetic for whole rasters, but rounds the source window of a partial read to whole pixels, so a pixel would depend on
its tile.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Self

import numpy as np
from scipy import sparse

from geolabel.errors import SceneError
from geolabel.scene import Grid
from geolabel.types import AnyArray, BoolArray, Float64Array, Int64Array

MAX_DENOMINATOR = 1 << 20
"""Scales are ratios of sizes in pixels; this bound recovers the ratio from a transform's floating-point numbers."""


@dataclass(frozen=True)
class Axis:
    """One axis of a grid in pixels of a source. Pixel ``i`` is ``[offset + i * scale, offset + (i + 1) * scale)``."""

    scale: Fraction
    """Source pixels per pixel."""
    offset: Fraction
    """Start of the grid, in source pixels."""
    length: int
    """Size of the source in pixels."""

    @property
    def aligned(self) -> bool:
        """Whether every pixel is exactly one source pixel."""
        return self.scale == 1 and self.offset.denominator == 1

    def resized(self, length: int) -> Self:
        """The same axis on a source of the same extent with another `length`, such as an overview."""
        ratio = Fraction(length, self.length)
        return type(self)(self.scale * ratio, self.offset * ratio, length)

    def weights(self, start: int, stop: int) -> tuple[slice, sparse.csr_array]:
        """The source pixels behind the pixels ``[start, stop)``, and the share of each.

        Returns
        -------
        span
            Source pixels to read.
        shares : (stop - start, span)
            Integers with the same sum in every row, so that sums of integers are exact.
        """
        taps, shares = self._mean(start, stop) if self.scale > 1 else self._between(start, stop)
        taps = np.clip(taps, 0, self.length - 1)  # outermost pixels are repeated at the frame
        used = shares > 0
        first, last = int(taps[used].min()), int(taps[used].max())
        rows = np.broadcast_to(np.arange(len(taps))[:, None], taps.shape)
        matrix = sparse.coo_array(
            (shares[used].astype(np.float64), (rows[used], taps[used] - first)), shape=(len(taps), last - first + 1)
        )
        return slice(first, last + 1), matrix.tocsr()

    def _mean(self, start: int, stop: int) -> tuple[Int64Array, Int64Array]:
        # In units of 1 / unit source pixels, both grids are integers.
        unit, begin, step = self._units()
        low = begin + np.arange(start, stop, dtype=np.int64) * step
        high = low + step
        count = int((-(-high // unit) - low // unit).max())
        taps = (low // unit)[:, None] + np.arange(count)
        shares = np.minimum(high[:, None], (taps + 1) * unit) - np.maximum(low[:, None], taps * unit)
        return taps, np.maximum(shares, 0)

    def _between(self, start: int, stop: int) -> tuple[Int64Array, Int64Array]:
        unit, begin, step = self._units()
        # Twice the units: the centre of a pixel is an integer too.
        centre = 2 * begin + (2 * np.arange(start, stop, dtype=np.int64) + 1) * step - unit
        low = centre // (2 * unit)
        beyond = centre - low * 2 * unit
        return low[:, None] + np.arange(2), np.stack([2 * unit - beyond, beyond], axis=1)

    def _units(self) -> tuple[int, int, int]:
        unit = int(np.lcm(self.scale.denominator, self.offset.denominator))
        return unit, int(self.offset * unit), int(self.scale * unit)


def axes(source: Grid, grid: Grid) -> tuple[Axis, Axis]:
    """Rows and columns of `grid` in pixels of `source`.

    Raises
    ------
    SceneError
        If `grid` is not `source` scaled or cropped, or `source` is too large to be scaled.
    """
    m = ~source.transform * grid.transform
    rows, cols = _axis(m.e, m.f, source.height), _axis(m.a, m.c, source.width)
    astray = max(abs(m.b) * grid.height, abs(m.d) * grid.width, abs(m.f - rows.offset), abs(m.c - cols.offset))
    ends = (rows.offset + rows.scale * grid.height, cols.offset + cols.scale * grid.width)
    inside = min(rows.offset, cols.offset) >= 0 and ends[0] <= source.height and ends[1] <= source.width
    if m.a <= 0 or m.e <= 0 or astray > 0.01 or not inside:
        if max(source.height, source.width) > MAX_DENOMINATOR:
            raise SceneError(
                f"a scene of {source.height} x {source.width} px, with a side over {MAX_DENOMINATOR} px, is too "
                f"large to be resampled: work at its own pixel size (--working-gsd {source.gsd:.4g}), or cut it into "
                "parts (gdal_translate -projwin)"
            )
        raise SceneError(
            f"the grid {tuple(grid.transform)[:6]} is not the scene's own, scaled or cropped: make it of "
            "the scene's by at_gsd and crop"
        )
    return rows, cols


def _axis(scale: float, offset: float, length: int) -> Axis:
    # Floating-point transforms store the ratio of two sizes to about fifteen digits, and an offset in units of its last
    # digit to about seven: both are recovered exactly, so a cropped grid has the same weights as the whole one.
    exact = Fraction(scale).limit_denominator(MAX_DENOMINATOR)
    return Axis(exact, Fraction(round(offset * exact.denominator), exact.denominator), length)


def resample(
    values: AnyArray, valid: BoolArray, rows: sparse.csr_array, cols: sparse.csr_array
) -> tuple[AnyArray, BoolArray]:
    """Weighted means over valid source pixels.

    Parameters
    ----------
    values : (B, H, W)
    valid : (H, W)
    rows : (h, H)
        Shares from `Axis.weights`.
    cols : (w, W)

    Returns
    -------
    values : (B, h, w)
        Of the dtype of `values`, integers rounded to nearest; 0 if not valid.
    valid : (h, w)
        Where at least half of the weight is on valid pixels.
    """
    total = rows.sum(axis=1)[:, None] * cols.sum(axis=1)[None, :]
    weight = total if valid.all() else _apply(valid, rows, cols)
    kept = 2 * weight >= total
    divisor = np.where(kept, weight, 1)
    out = np.empty((len(values), *kept.shape), values.dtype)
    for band, result in zip(values, out, strict=True):
        mean = np.where(kept, _apply(np.where(valid, band, 0), rows, cols) / divisor, 0)
        result[...] = np.rint(mean) if out.dtype.kind in "iu" else mean
    return out, kept


def _apply(plane: AnyArray, rows: sparse.csr_array, cols: sparse.csr_array) -> Float64Array:
    # Sparse products add terms in column order: the same digits whatever else is in the window.
    result: Float64Array = (cols @ (rows @ plane.astype(np.float64)).T).T
    return result

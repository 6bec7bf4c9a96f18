"""Change between two registered images of the same place.

Change is measured in greenness, brightness and texture, after the grey values of one image have been matched to those
of the other, in units of the scene's own variation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np

from geolabel.types import AnyArray, BoolArray, Float64Array, Int32Array, Int64Array, UInt8Array

FEATURES = ("greenness", "brightness", "texture")
"""Features in which change is measured."""

UNIT = 10_000
"""Integer value that represents 1: features are integers, so that sums do not depend on order."""

TEXTURE_PX = 7
"""Side in pixels of the squares in which texture is measured."""

PATCH_PX = 24
"""Side in pixels of the squares whose mean changes estimate the scene's own variation."""

MIN_SPREAD = (300.0, 300.0, 100.0)
"""Minimum spread of the three features; it avoids dividing by nearly 0 if the images are nearly equal."""

MAD_TO_SIGMA = 1.4826
"""Factor from median absolute deviation to the standard deviation of a normal distribution."""


# --- radiometry ------------------------------------------------------------------------------------------------------


NEAR_LEVELS, MIN_PIXELS = 4, 50
"""Grey values on either side that contribute to a value's match, and the minimum number of pixels for a match."""


def match_greys(before: UInt8Array, after: UInt8Array) -> UInt8Array:
    """Table (3, 256) that maps grey values so that unchanged ground looks as it does in the later image.

    Each value is mapped to the median later value of its pixels, made ascending. Changed ground has no influence while
    it is the smaller part of a grey value; histogram matching would shift all bright ground with every landslide.

    Parameters
    ----------
    before, after : (3, N)
        Grey values 0..255 of the same ground.
    """
    return np.stack([_medians(*bands) for bands in zip(before, after, strict=True)])


def _medians(before: UInt8Array, after: UInt8Array) -> UInt8Array:
    order = np.argsort(before, kind="stable")
    later, first = after[order], np.searchsorted(before[order], np.arange(257))
    groups = [later[first[max(0, v - NEAR_LEVELS)] : first[min(256, v + NEAR_LEVELS + 1)]] for v in range(256)]
    known = np.asarray([v for v, group in enumerate(groups) if len(group) >= MIN_PIXELS], int)
    if len(known) < 2:
        return np.arange(256, dtype=np.uint8)
    medians = np.maximum.accumulate([np.median(groups[v]) for v in known])
    gain = (medians[-1] - medians[0]) / (known[-1] - known[0])  # for values outside the known range
    ends = medians[0] - gain * known[0], medians[-1] + gain * (255 - known[-1])
    levels = np.interp(np.arange(256), [-1, *known, 256], [ends[0], *medians, ends[1]])
    return np.asarray(np.rint(np.clip(levels, 0, 255)), np.uint8)


# --- change ----------------------------------------------------------------------------------------------------------


def features(image: UInt8Array) -> Int32Array:
    """Greenness, brightness and texture (3, h, w) of an image, as integers in units of 1 / `UNIT`.

    Greenness is excess green (Woebbecke et al., 1995) of chromatic coordinates, -1..2; brightness is the mean of the
    bands, 0..1; texture is the standard deviation of brightness in squares of `TEXTURE_PX` pixels, which are clipped in
    the outermost ``TEXTURE_PX // 2`` pixels.

    Parameters
    ----------
    image : (h, w, 3)
    """
    total = _total(image)
    greenness = (3 * image[..., 1].astype(np.int32) - total) * UNIT // np.maximum(total, 1)
    return np.stack([greenness, total * UNIT // 765, _spread(total)])


def _total(image: UInt8Array) -> Int32Array:
    """Sum (h, w) of the three bands."""
    red, green, blue = (image[..., band].astype(np.int32) for band in range(3))
    return np.asarray(red + green + blue)


def _spread(total: Int32Array) -> Int32Array:
    """Standard deviation (h, w) of brightness around each pixel, from integers, so it does not depend on the window."""
    reach = TEXTURE_PX // 2
    count, sums, squares = (box_sums(v, reach) for v in (np.ones_like(total), total, total * total))
    variance = squares * count - sums * sums
    return np.asarray(np.rint(np.sqrt(np.maximum(variance, 0)) / count * (UNIT / 765)), np.int32)


def box_sums(values: AnyArray, reach: int) -> AnyArray:
    """Exact sums (h, w) of integers (h, w) over squares around each pixel, clipped at the frame.

    The sums have the dtype of the values, at least 32 bits, and must fit.
    """
    return _line_sums(_line_sums(values, reach).T, reach).T


def _line_sums(values: AnyArray, reach: int) -> AnyArray:
    """Sums (h, w) along columns; intermediate overflow cancels in the difference."""
    length = len(values)
    sums = np.zeros((length + 2 * reach + 1, values.shape[1]), np.result_type(values, np.int32))
    np.cumsum(values, axis=0, out=sums[reach + 1 : reach + 1 + length])
    sums[reach + 1 + length :] = sums[reach + length]
    return np.asarray(sums[2 * reach + 1 :] - sums[:length])


def _table(values: AnyArray) -> AnyArray:
    """Integral image (h + 1, w + 1) (Crow 1984), with the dtype of `box_sums`."""
    table = np.zeros((values.shape[0] + 1, values.shape[1] + 1), np.result_type(values, np.int32))
    np.cumsum(values, axis=0, out=table[1:, 1:])
    np.cumsum(table[1:, 1:], axis=1, out=table[1:, 1:])
    return table


@dataclass(frozen=True)
class _Squares:
    """Squares around P pixels, clipped at the frame: indices of their four corners in an integral image."""

    corners: tuple[Int64Array, Int64Array, Int64Array, Int64Array]

    @classmethod
    def around(cls, where: BoolArray, reach: int) -> Self:
        """Squares with a side of 2 `reach` + 1 pixels, around the pixels where `where` (h, w) is true."""
        (height, width), (rows, cols) = where.shape, np.nonzero(where)
        top, bottom = (np.clip(rows + step, 0, height) * (width + 1) for step in (-reach, reach + 1))
        left, right = (np.clip(cols + step, 0, width) for step in (-reach, reach + 1))
        return cls((bottom + right, top + right, bottom + left, top + left))

    def sums(self, table: AnyArray) -> AnyArray:
        """Sums (P,) over the squares, from an integral image by `_table`."""
        one, above, beside, both = (table.ravel()[corner] for corner in self.corners)
        return np.asarray((one - above) - (beside - both))


@dataclass(frozen=True)
class Stable:
    """Distribution of the differences in mean features of patches: light, season and noise."""

    median: tuple[float, float, float]
    spread: tuple[float, float, float]
    """Standard deviation, estimated from the median absolute deviation; at least `MIN_SPREAD`."""

    @classmethod
    def of(cls, differences: AnyArray) -> Stable:
        """Estimate from mean differences (3, N) of patches; fewer than half may be true changes."""
        if not differences.shape[1]:
            return cls((0.0,) * 3, MIN_SPREAD)
        median = np.median(differences, axis=1)
        spread = np.maximum(MAD_TO_SIGMA * np.median(np.abs(differences - median[:, None]), axis=1), MIN_SPREAD)
        first, second, third = (round(float(v), 3) for v in median)
        one, two, three = (round(float(v), 3) for v in spread)
        return cls((first, second, third), (one, two, three))

    def change(self, means: Float64Array) -> Float64Array:
        """Root mean square (K,) of the robust z-scores of mean differences (3, K): 1 is the scene's own variation."""
        scores = (means - np.asarray(self.median)[:, None]) / np.asarray(self.spread)[:, None]
        return np.asarray(np.sqrt((scores * scores).mean(axis=0)))


def patch_means(differences: Int32Array, valid: BoolArray) -> Float64Array:
    """Means (3, N) of differences (3, h, w) over the patches that are valid (h, w) everywhere."""
    down, right = valid.shape[0] // PATCH_PX, valid.shape[1] // PATCH_PX
    cut = slice(down * PATCH_PX), slice(right * PATCH_PX)
    squares = differences[:, *cut].reshape(3, down, PATCH_PX, right, PATCH_PX)
    whole = valid[cut].reshape(down, PATCH_PX, right, PATCH_PX).all(axis=(1, 3))
    return np.asarray(squares.mean(axis=(2, 4))[:, whole])


# --- features of a pixel and its surroundings ------------------------------------------------------------------------


NEAR, AROUND, WIDE = 1, 4, 12
"""Radii in pixels of the squares for means: neighbours, and two sizes of surroundings."""

LIKENESS = (5, 10, 24)
"""Radius in pixels of the squares for correlations of the two images."""

REACH = max(WIDE + TEXTURE_PX // 2, max(LIKENESS) + NEAR)
"""Radius in pixels of the area that a pixel's features depend on."""

NOISE = 12
"""Standard deviation of brightness, in sums of three grey values, below which ground has no recognisable pattern."""


@dataclass(frozen=True)
class Seen:
    """A window of an image and its activation."""

    image: UInt8Array
    """(h, w, 3)"""
    activation: UInt8Array
    """(h, w) 0..255"""

    def part(self, rows: slice, cols: slice) -> Seen:
        """A part of the window."""
        return Seen(self.image[rows, cols], self.activation[rows, cols])


def pixel_features(
    after: Seen, before: Seen | None, valid: BoolArray, stable: Stable | None, where: BoolArray
) -> dict[str, AnyArray]:
    """Features (P,) by name, which distinguish new landslides from other bare ground.

    Means over squares use valid pixels only. With an earlier image, there are also its features, ``change_*`` (robust
    z-scores) and ``likeness_*`` (normalised cross-correlation of the brightness of both images, -1..1, which is
    insensitive to light and season).

    Parameters
    ----------
    after
        Image after the event.
    before
        Image before the event, its grey values matched to `after`; or None.
    valid : (h, w)
        Where the images are valid.
    stable
        Distribution of the differences between patches of the images.
    where : (h, w)
        The P pixels to compute. Pixels more than `REACH` away from all of them have no influence.
    """
    both = {"after": after} if before is None else {"after": after, "before": before}
    own = {name: valid * values for when, seen in both.items() for name, values in _of(seen, when)}
    found: dict[str, AnyArray] = {f"activation_{when}": own[f"activation_{when}"][where] for when in both}
    ones, tables = _table(valid), {name: _table(values) for name, values in own.items()}
    for reach in (NEAR, AROUND, WIDE):
        squares = _Squares.around(where, reach)
        count = np.maximum(squares.sums(ones), 1)
        means = {name: squares.sums(table) / count for name, table in tables.items()}
        if stable is not None and before is not None:
            steps = [means[f"{name}_after"] - means[f"{name}_before"] for name in FEATURES]
            scores = [(d - m) / s for d, m, s in zip(steps, stable.median, stable.spread, strict=True)]
            found |= {f"change_{name}_{reach}": score for name, score in zip(FEATURES, scores, strict=True)}
            found[f"change_{reach}"] = np.sqrt(sum(score * score for score in scores) / len(scores))
        if reach != NEAR:
            found |= {f"{name}_{reach}": values for name, values in means.items()}
    return found if before is None else found | _likeness(after.image, before.image, valid, where)


def _of(seen: Seen, when: str) -> list[tuple[str, AnyArray]]:
    """Integer layers (h, w) and their names."""
    layers = zip(FEATURES, features(seen.image), strict=True)
    return [*((f"{name}_{when}", values) for name, values in layers), (f"activation_{when}", seen.activation)]


def _likeness(after: UInt8Array, before: UInt8Array, valid: BoolArray, where: BoolArray) -> dict[str, AnyArray]:
    """Correlation (P,) of the brightness of both images around pixels, averaged over 3 by 3 pixels first."""
    one, other = (box_sums(valid * _total(image), NEAR) // 9 for image in (after, before))
    tables = [_table(values) for values in (np.ones_like(one), one, other, one * one, other * other, one * other)]
    found = {}
    for reach in LIKENESS:
        squares = _Squares.around(where, reach)
        count, a, b, aa, bb, ab = (squares.sums(table).astype(np.int64) for table in tables)
        noise = (NOISE * count) ** 2
        spread = np.sqrt((count * aa - a * a + noise).astype(float)) * np.sqrt(
            (count * bb - b * b + noise).astype(float)
        )
        found[f"likeness_{reach}"] = (count * ab - a * b) / spread
    return found

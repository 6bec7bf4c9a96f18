"""Two images of one place in register: what changed between them.

Change is measured in greenness, brightness and texture, after the grey values of one image are matched
to those of the other, and is given in units of the spread that the scene itself shows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np

from geolabel.types import AnyArray, BoolArray, Float64Array, Int32Array, Int64Array, UInt8Array

FEATURES = ("greenness", "brightness", "texture")
"""What change is measured in."""

UNIT = 10_000
"""Value of a feature that stands for 1: features are integers, whose sums depend on no order."""

TEXTURE_PX = 7
"""Side in pixels of the squares that texture is measured in."""

PATCH_PX = 24
"""Side in pixels of the squares whose mean changes say what the scene itself shows."""

MIN_SPREAD = (300.0, 300.0, 100.0)
"""Minimum spread of the three features: in a pair of nearly equal images the smallest difference is no change."""

MAD_TO_SIGMA = 1.4826
"""Of the median absolute deviation, to be the standard deviation of normal values."""


# --- radiometry ------------------------------------------------------------------------------------------------------


NEAR_LEVELS, MIN_PIXELS = 4, 50
"""Grey values on either side that count with a value, and the minimum number of pixels that tell what they become."""


def match_greys(before: UInt8Array, after: UInt8Array) -> UInt8Array:
    """(3, 256) what each grey value of each band becomes so that ground that did not change looks as it does later.

    That is the median of what the same pixels are later, made ascending: ground that changed has no say where it is the
    smaller part of what had a grey value. Matching of histograms would move all bright ground with every landslide.

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
    gain = (medians[-1] - medians[0]) / (known[-1] - known[0])  # beyond what is known
    ends = medians[0] - gain * known[0], medians[-1] + gain * (255 - known[-1])
    levels = np.interp(np.arange(256), [-1, *known, 256], [ends[0], *medians, ends[1]])
    return np.asarray(np.rint(np.clip(levels, 0, 255)), np.uint8)


# --- change ----------------------------------------------------------------------------------------------------------


def features(image: UInt8Array) -> Int32Array:
    """(3, h, w) greenness, brightness and texture of an image, in whole numbers of 1 / `UNIT`.

    Greenness is excess green (Woebbecke et al., 1995) of chromatic coordinates, -1..2; brightness the mean of the
    bands, 0..1; texture the standard deviation of brightness in squares of `TEXTURE_PX` pixels. The outermost
    ``TEXTURE_PX // 2`` pixels have the texture of fewer pixels.

    Parameters
    ----------
    image : (h, w, 3)
    """
    total = _total(image)
    greenness = (3 * image[..., 1].astype(np.int32) - total) * UNIT // np.maximum(total, 1)
    return np.stack([greenness, total * UNIT // 765, _spread(total)])


def _total(image: UInt8Array) -> Int32Array:
    """(h, w) sums of the three bands."""
    red, green, blue = (image[..., band].astype(np.int32) for band in range(3))
    return np.asarray(red + green + blue)


def _spread(total: Int32Array) -> Int32Array:
    """(h, w) standard deviation of brightness around each pixel: of whole numbers, so it depends on no window."""
    reach = TEXTURE_PX // 2
    count, sums, squares = (box_sums(v, reach) for v in (np.ones_like(total), total, total * total))
    variance = squares * count - sums * sums
    return np.asarray(np.rint(np.sqrt(np.maximum(variance, 0)) / count * (UNIT / 765)), np.int32)


def box_sums(values: AnyArray, reach: int) -> AnyArray:
    """(h, w) exact sums of whole numbers (h, w) over squares around each pixel, cut at the frame.

    The sums have the kind of the values, of 32 bits at least, and must fit in it.
    """
    return _line_sums(_line_sums(values, reach).T, reach).T


def _line_sums(values: AnyArray, reach: int) -> AnyArray:
    """(h, w) sums along columns; what overflows on the way to a sum that fits does not matter to a difference."""
    length = len(values)
    sums = np.zeros((length + 2 * reach + 1, values.shape[1]), np.result_type(values, np.int32))
    np.cumsum(values, axis=0, out=sums[reach + 1 : reach + 1 + length])
    sums[reach + 1 + length :] = sums[reach + length]
    return np.asarray(sums[2 * reach + 1 :] - sums[:length])


def _table(values: AnyArray) -> AnyArray:
    """(h + 1, w + 1) sums of all that is above and to the left (Crow 1984), as `box_sums` has them."""
    table = np.zeros((values.shape[0] + 1, values.shape[1] + 1), np.result_type(values, np.int32))
    np.cumsum(values, axis=0, out=table[1:, 1:])
    np.cumsum(table[1:, 1:], axis=1, out=table[1:, 1:])
    return table


@dataclass(frozen=True)
class _Squares:
    """Squares around P pixels, cut at the frame: where the table of sums has their four corners."""

    corners: tuple[Int64Array, Int64Array, Int64Array, Int64Array]

    @classmethod
    def around(cls, where: BoolArray, reach: int) -> Self:
        """Of 2 `reach` + 1 pixels a side, around the pixels that `where` (h, w) marks."""
        (height, width), (rows, cols) = where.shape, np.nonzero(where)
        top, bottom = (np.clip(rows + step, 0, height) * (width + 1) for step in (-reach, reach + 1))
        left, right = (np.clip(cols + step, 0, width) for step in (-reach, reach + 1))
        return cls((bottom + right, top + right, bottom + left, top + left))

    def sums(self, table: AnyArray) -> AnyArray:
        """(P,) sums of what `_table` was made of."""
        one, above, beside, both = (table.ravel()[corner] for corner in self.corners)
        return np.asarray((one - above) - (beside - both))


@dataclass(frozen=True)
class Stable:
    """How much the mean features of patches differ between the images: light, season, and what is left of noise."""

    median: tuple[float, float, float]
    spread: tuple[float, float, float]
    """Standard deviation, estimated by the median absolute deviation; at least `MIN_SPREAD`."""

    @classmethod
    def of(cls, differences: AnyArray) -> Stable:
        """Estimate it from mean differences (3, N) of patches, of which fewer than half may be true changes."""
        if not differences.shape[1]:
            return cls((0.0,) * 3, MIN_SPREAD)
        median = np.median(differences, axis=1)
        spread = np.maximum(MAD_TO_SIGMA * np.median(np.abs(differences - median[:, None]), axis=1), MIN_SPREAD)
        first, second, third = (round(float(v), 3) for v in median)
        one, two, three = (round(float(v), 3) for v in spread)
        return cls((first, second, third), (one, two, three))

    def change(self, means: Float64Array) -> Float64Array:
        """(K,) root mean square of the robust z-scores of mean differences (3, K): 1 is what the scene itself shows."""
        scores = (means - np.asarray(self.median)[:, None]) / np.asarray(self.spread)[:, None]
        return np.asarray(np.sqrt((scores * scores).mean(axis=0)))


def patch_means(differences: Int32Array, valid: BoolArray) -> Float64Array:
    """(3, N) means of differences (3, h, w) over the whole patches that are valid (h, w) everywhere."""
    down, right = valid.shape[0] // PATCH_PX, valid.shape[1] // PATCH_PX
    cut = slice(down * PATCH_PX), slice(right * PATCH_PX)
    squares = differences[:, *cut].reshape(3, down, PATCH_PX, right, PATCH_PX)
    whole = valid[cut].reshape(down, PATCH_PX, right, PATCH_PX).all(axis=(1, 3))
    return np.asarray(squares.mean(axis=(2, 4))[:, whole])


# --- what a pixel and its surroundings say ---------------------------------------------------------------------------


NEAR, AROUND, WIDE = 1, 4, 12
"""Pixels on either side of a pixel that means are taken over: of its neighbours, and of two sizes of surroundings."""

LIKENESS = (5, 10, 24)
"""Pixels on either side of a pixel over which the two images are correlated."""

REACH = max(WIDE + TEXTURE_PX // 2, max(LIKENESS) + NEAR)
"""Pixels on either side of a pixel that its features depend on."""

NOISE = 12
"""Standard deviation of brightness, in sums of three grey values, below which ground has no pattern to recognise."""


@dataclass(frozen=True)
class Seen:
    """A window of an image, and what the localizer makes of it."""

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
    """What tells new landslides from other bare ground: (P,) numbers by name.

    Means over squares are of valid pixels. With an image before there are also its own features, ``change_*``, robust
    z-scores, and ``likeness_*``, correlations of the brightness of both images (normalised cross-correlation, -1..1),
    which other light and another season leave high.

    Parameters
    ----------
    after
        After the event.
    before
        Before it, its grey values matched to those after it; or None.
    valid : (h, w)
        Where the images are.
    stable
        What patches of the images differ by.
    where : (h, w)
        The P pixels that are looked at. What is more than `REACH` away from all of them does not matter.
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
    """(h, w) layers of whole numbers and their names."""
    layers = zip(FEATURES, features(seen.image), strict=True)
    return [*((f"{name}_{when}", values) for name, values in layers), (f"activation_{when}", seen.activation)]


def _likeness(after: UInt8Array, before: UInt8Array, valid: BoolArray, where: BoolArray) -> dict[str, AnyArray]:
    """(P,) correlation of the brightness of both images around pixels, of which 3 by 3 pixels are one sum."""
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

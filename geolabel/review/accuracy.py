"""Accuracy of a map from a sample, with intervals: the error matrix of Olofsson et al., shares, and rare counts.

Source: Olofsson et al. (2014), "Good practices for estimating area and assessing accuracy of land change", Remote
Sensing of Environment 148, eq. 1 to 11.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from geolabel.types import Float64Array

LEVEL = 0.95
"""Confidence level of all intervals."""

Z = float(stats.norm.ppf((1 + LEVEL) / 2))
"""1.96"""


@dataclass(frozen=True)
class Estimated:
    """A figure with its 95 % interval."""

    value: float
    low: float
    high: float

    @classmethod
    def normal(cls, value: float, error: float, top: float = math.inf) -> Self:
        """Value and standard error, with an interval clipped to 0..`top`."""
        return cls(value, max(0.0, value - Z * error), min(top, value + Z * error))

    def times(self, factor: float) -> Estimated:
        """The same in another unit."""
        return Estimated(self.value * factor, self.low * factor, self.high * factor)

    def plain(self) -> list[float]:
        """Value, lower and upper end, for JSON."""
        return [round(one, 6) for one in (self.value, self.low, self.high)]


@dataclass(frozen=True)
class ErrorMatrix:
    """Confusion of map classes (rows) with true classes (columns), estimated from a sample of each map class."""

    weights: Float64Array
    """(q,) share of the map area of each class, 0..1."""
    shares: Float64Array
    """(q, q) for the area of each map class, the shares of true classes; rows sum to 1."""
    variances: Float64Array
    """(q, q) variances of `shares`."""
    area: float
    """Area of the map, in any unit."""

    @classmethod
    def of_counts(cls, counts: ArrayLike, weights: ArrayLike, area: float) -> Self:
        """The matrix of a stratified random sample of points or pixels.

        Parameters
        ----------
        counts : (q, q)
            Sample units by map class (rows), which are the strata, and by true class (columns).
        weights : (q,)
            Area share of each map class.
        """
        n = np.asarray(counts, float)
        total = n.sum(axis=1, keepdims=True)
        shares = n / total
        return cls(np.asarray(weights, float), shares, shares * (1 - shares) / (total - 1), area)

    @property
    def proportions(self) -> Float64Array:
        """(q, q) shares of the whole area (eq. 4)."""
        return np.asarray(self.weights[:, None] * self.shares, float)

    def overall(self) -> Estimated:
        """Share of the area that is mapped correctly (eq. 1 and 5)."""
        error = math.sqrt(float((self.weights**2 * np.diag(self.variances)).sum()))
        return Estimated.normal(float(np.trace(self.proportions)), error, 1)

    def users(self, k: int) -> Estimated:
        """Share of the area mapped as class `k` that is class `k` (eq. 2 and 6): precision by area."""
        return Estimated.normal(float(self.shares[k, k]), math.sqrt(float(self.variances[k, k])), 1)

    def producers(self, k: int) -> Estimated:
        """Share of the area of class `k` that is mapped as such (eq. 3 and 7): recall by area."""
        column = float(self.proportions[:, k].sum())
        value = float(self.proportions[k, k]) / column if column else math.nan
        others = np.arange(len(self.weights)) != k
        own = (self.weights[k] * (1 - value)) ** 2 * self.variances[k, k]
        rest = value**2 * (self.weights[others] ** 2 * self.variances[others, k]).sum()
        return Estimated.normal(value, math.sqrt(float(own + rest)) / column if column else math.nan, 1)

    def area_of(self, k: int) -> Estimated:
        """True area of class `k` (eq. 9 to 11)."""
        error = math.sqrt(float((self.weights**2 * self.variances[:, k]).sum()))
        return Estimated.normal(float(self.proportions[:, k].sum()), error, 1).times(self.area)


def ratio(parts: Float64Array, wholes: Float64Array, total: float) -> tuple[float, float]:
    """Ratio of parts to wholes over a population from which units of unequal size were sampled, and its variance.

    The ratio estimator of Cochran (1977), "Sampling Techniques", eq. 6.4 and 6.13, with the correction for a finite
    population by area.

    Parameters
    ----------
    parts, wholes : (n,)
        For each unit; the variance is NaN for n below 2, and 0 if all units are known.
    total
        Sum of the wholes in the population.
    """
    n, size = len(wholes), float(wholes.sum())
    if not size:
        return math.nan, math.nan
    share = float(parts.sum()) / size
    if size >= total * (1 - 1e-9):
        return share, 0.0
    if n < 2:
        return share, math.nan
    spread = float(((parts - share * wholes) ** 2).sum()) / (n - 1)
    return share, max(0.0, 1 - size / total) * n * spread / size**2


def right_of_rest(rest: ArrayLike, reviewed: ArrayLike, right: ArrayLike) -> Estimated:
    """Estimate how many unreviewed polygons are correct, from the reviewed ones of the same strata.

    Sum over strata of the share of correct ones times the unreviewed rest, with the variance of stratified sampling
    without replacement. The interval is that of Wilson (1927) for the sample size that has this variance, after Korn
    and Graubard (1998), "Confidence intervals for proportions with small expected number of positive counts": it is
    also sensible if all or none were correct.

    Parameters
    ----------
    rest, reviewed, right : (H,)
        For each stratum; `reviewed` is at least 2 if `rest` is not 0.
    """
    m, n, r = (np.asarray(values, float)[np.asarray(rest) > 0] for values in (rest, reviewed, right))
    total = float(m.sum())
    if not total:
        return Estimated(0.0, 0.0, 0.0)
    share = r / n
    p = float((m * share).sum()) / total
    variance = float((m * (m + n) * share * (1 - share) / (n - 1)).sum()) / total**2
    looks = p * (1 - p) / variance if variance else float(n.sum()) * total / float((m + n).sum())
    low, high = wilson(p, looks)
    return Estimated(p, low, high).times(total)


def wilson(share: float, n: float) -> tuple[float, float]:
    """The interval of Wilson (1927) for a share of n trials.

    Examples
    --------
    >>> [round(end, 3) for end in wilson(1.0, 10)]
    [0.722, 1.0]
    """
    middle = share + Z**2 / (2 * n)
    half = Z * math.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
    return max(0.0, (middle - half) / (1 + Z**2 / n)), min(1.0, (middle + half) / (1 + Z**2 / n))


def rare_total(counts: Float64Array, wholes: Float64Array, total: float) -> Estimated:
    """Estimate the number of rare objects on an area, from counts on parts of it.

    The interval is that of Fay and Feuer (1997), "Confidence intervals for directly standardized rates: a method based
    on the gamma distribution", for the variance of `ratio`, which exceeds Poisson's if objects are clustered;
    otherwise, and for a count of 0, Poisson's is used.

    Parameters
    ----------
    counts, wholes : (n,)
        For each part: number of objects, and area.
    total
        Whole area.
    """
    seen, size = float(counts.sum()), float(wholes.sum())
    each = total / size  # total objects per counted one
    _, variance = ratio(counts, wholes, total)
    wanted = seen * each
    # effective count: the one that has the same relative variance under Poisson's law
    spread = max(variance * total**2 if math.isfinite(variance) else 0.0, seen * each**2 * max(0.0, 1 - 1 / each))
    looks = wanted**2 / spread if spread else seen
    unit = wanted / looks if looks else each
    tail = (1 - LEVEL) / 2
    low = float(stats.chi2.ppf(tail, 2 * looks)) / 2 * unit if looks else 0.0
    return Estimated(wanted, low, float(stats.chi2.ppf(1 - tail, 2 * (looks + 1))) / 2 * unit)

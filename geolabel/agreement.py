"""How well label maps of chips agree with their masks: every class by itself, with intervals over chips."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from geolabel.labels import IGNORE
from geolabel.types import Float64Array, Int64Array, UInt8Array

DRAWS = 1000
"""Of the bootstrap."""


def count_pixels(predicted: UInt8Array, truth: UInt8Array, classes: int) -> Int64Array:
    """(K, K) pixels of every true class, in rows, that were taken for every class; ignored ones count nowhere.

    Parameters
    ----------
    predicted, truth : (H, W)
        0 to ``classes - 1``, or `IGNORE`.
    """
    judged = (predicted != IGNORE) & (truth != IGNORE)
    pairs = truth[judged].astype(np.int64) * classes + predicted[judged]
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


@dataclass(frozen=True)
class Agreement:
    """Counts of N chips and what follows from them."""

    counts: Int64Array
    """(N, K, K), see `count_pixels`; class 0 is background."""
    classes: tuple[str, ...]
    """Names of all K classes."""

    def figures(self) -> dict[str, float]:
        """Overall accuracy, mean IoU, and of every class but the background precision, recall, F1 and IoU.

        NaN where there is nothing to divide by; such a class is left out of the mean.
        """
        return _figures(self.counts.sum(axis=0), self.classes)

    def interval(self, seed: int = 0, level: float = 0.95) -> dict[str, tuple[float, float]]:
        """Percentile bootstrap over chips: low and high of every figure."""
        drawn = self._draws(seed)
        edge = (1 - level) / 2
        keys = list(self.figures())
        values = np.array([list(_figures(total, self.classes).values()) for total in drawn])
        return {key: _quantiles(column, edge) for key, column in zip(keys, values.T, strict=True)}

    def _draws(self, seed: int) -> Int64Array:
        # (DRAWS, K, K) sums over as many chips as there are, drawn with replacement
        n = len(self.counts)
        weights = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), DRAWS)
        drawn: Int64Array = np.einsum("dn,nij->dij", weights, self.counts)
        return drawn


def paired_interval(
    first: Sequence[float] | Float64Array, second: Sequence[float] | Float64Array, seed: int = 0, level: float = 0.95
) -> tuple[float, float, float]:
    """Mean difference of two figures of the same chips, and its percentile bootstrap interval.

    Chips on which either is NaN are left out.
    """
    difference = np.asarray(first, np.float64) - np.asarray(second, np.float64)
    difference = difference[~np.isnan(difference)]
    n = len(difference)
    if not n:
        return (float("nan"),) * 3
    means = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), DRAWS) @ difference / n
    return float(difference.mean()), *_quantiles(means, (1 - level) / 2)


def _quantiles(values: Float64Array, edge: float) -> tuple[float, float]:
    told = values[~np.isnan(values)]
    if not len(told):
        return float("nan"), float("nan")
    low, high = np.quantile(told, [edge, 1 - edge])
    return float(low), float(high)


def _figures(counts: Int64Array, classes: tuple[str, ...]) -> dict[str, float]:
    matrix = counts.astype(np.float64)
    hit, true, taken = np.diag(matrix), matrix.sum(axis=1), matrix.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        iou = hit / (true + taken - hit)
        columns = {"precision": hit / taken, "recall": hit / true, "f1": 2 * hit / (true + taken), "iou": iou}
        accuracy = float(hit.sum() / matrix.sum())
    told = iou[~np.isnan(iou)]
    figures = {"overall_accuracy": accuracy, "miou": float(told.mean()) if len(told) else float("nan")}
    for k, name in list(enumerate(classes))[1:]:
        prefix = "" if len(classes) == 2 else f"{name} "
        figures |= {f"{prefix}{key}": float(values[k]) for key, values in columns.items()}
    return figures

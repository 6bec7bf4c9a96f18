"""How sure one may be of a polygon: a logistic model over its attributes, as plain numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from geolabel.types import Float64Array

Attributes = Mapping[str, ArrayLike]
"""Columns of K polygons by name, as an inventory has them; NaN or None where one is not known."""


def _column(name: str) -> Callable[[Attributes], Float64Array]:
    return lambda attributes: np.asarray(attributes[name], float)


def _log(function: Callable[[Attributes], Float64Array]) -> Callable[[Attributes], Float64Array]:
    def log(attributes: Attributes) -> Float64Array:
        values = function(attributes)
        # an outline without area or width has no logarithm, and so no confidence
        return np.log10(values, out=np.full(values.shape, np.nan), where=np.isfinite(values) & (values > 0))

    return log


FEATURES: dict[str, Callable[[Attributes], Float64Array]] = {
    "score_mean": _column("score_mean"),
    "score_max": _column("score_max"),
    "predicted_iou": _column("predicted_iou"),
    "stability": _column("stability"),
    "activation_mean": _column("activation_mean"),
    "activation_share": _column("activation_share"),
    "log_area_m2": _log(_column("area_m2")),
    "log_area_px": _log(lambda a: _column("area_m2")(a) / _column("gsd_m")(a) ** 2),
    "log_elongation": _log(_column("elongation")),
}
"""What a model may look at, by name: functions of the attributes."""


def features(attributes: Attributes, names: tuple[str, ...]) -> Float64Array:
    """(K, F) features of K polygons; NaN where an attribute is not known."""
    return np.stack([FEATURES[name](attributes) for name in names], axis=1)


@dataclass(frozen=True)
class ConfidenceModel:
    """Logistic regression: ``sigmoid(intercept + sum(coefficient * (feature - mean) / scale))``."""

    names: tuple[str, ...]
    """Of `FEATURES`."""
    means: tuple[float, ...]
    scales: tuple[float, ...]
    """Positive."""
    coefficients: tuple[float, ...]
    intercept: float

    def __post_init__(self) -> None:
        unknown = set(self.names) - set(FEATURES)
        if unknown:
            raise ValueError(f"features {sorted(unknown)} are not known: known are {sorted(FEATURES)}")
        if len({len(values) for values in (self.names, self.means, self.scales, self.coefficients)}) > 1:
            raise ValueError("every feature has a mean, a scale and a coefficient")

    def __call__(self, attributes: Attributes) -> Float64Array:
        """(K,) probability, 0..1, that at least half of each polygon is landslide; NaN where a feature is missing."""
        standard = (features(attributes, self.names) - np.asarray(self.means)) / np.asarray(self.scales)
        # sums of few numbers, in one order: the same digits however many polygons there are
        logit = self.intercept + sum(
            (standard[:, k] * c for k, c in enumerate(self.coefficients)), np.zeros(len(standard))
        )
        probability: Float64Array = 1 / (1 + np.exp(-np.clip(logit, -60, 60)))
        return probability

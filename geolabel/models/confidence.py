"""The confidence of a polygon: a logistic model of its attributes, the bundled model, and model files."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from geolabel.errors import WeightsError
from geolabel.outputs import replacing
from geolabel.parsing import read_json
from geolabel.types import Float64Array


@dataclass(frozen=True)
class FittedConfidence:
    """A model, and the networks whose polygons it was fitted to."""

    model: ConfidenceModel
    networks: dict[str, str]
    """SHA-256 of the networks' weights, by role."""
    fitted: dict[str, Any]
    """Data, counts and figures, as plain values."""


def shipped() -> Path:
    """Path of the bundled model."""
    return Path(str(resources.files("geolabel.weights") / "confidence.json"))


METHOD = "apsam"
"""Method whose polygons models are fitted to."""


def confidence_of(
    attributes: Attributes, networks: Mapping[str, str], method: str, model: FittedConfidence | None = None
) -> Float64Array:
    """(K,) confidence of K polygons; NaN for networks (by SHA-256) and methods that the model was not fitted to.

    Other networks score their masks on another scale, where the model would be confidently wrong.

    Parameters
    ----------
    model
        None for the bundled one.
    """
    if not knows(networks, method, model):
        return np.full(len(np.asarray(attributes["area_m2"])), np.nan)
    return (model or _shipped(shipped())).model(attributes)


def knows(networks: Mapping[str, str], method: str, model: FittedConfidence | None = None) -> bool:
    """Whether a model was fitted to polygons of these networks (by SHA-256) and this method."""
    return (model or _shipped(shipped())).networks == dict(networks) and method == METHOD


def load_fitted(path: Path, networks: Mapping[str, str]) -> FittedConfidence:
    """Read a model given by the user, for networks given by SHA-256.

    Raises
    ------
    WeightsError
        If the file is missing or not a model, or the model was fitted to other networks.
    """
    found = load_confidence(path)
    other = sorted(role for role in {*networks, *found.networks} if networks.get(role) != found.networks.get(role))
    if other:
        raise WeightsError(
            f"{path} was fitted to another {' and '.join(other)} than the one in use: fit it again (geolabel train "
            "confidence), or omit it"
        )
    return found


@lru_cache(maxsize=1)
def _shipped(path: Path) -> FittedConfidence:
    return load_confidence(path)


def load_confidence(path: Path) -> FittedConfidence:
    """Read a model.

    Raises
    ------
    WeightsError
        If the file is missing or not a model.
    """
    try:
        values = read_json(path)
        numbers = {name: tuple(map(float, values[name])) for name in ("means", "scales", "coefficients")}
        model = ConfidenceModel(names=tuple(values["features"]), intercept=float(values["intercept"]), **numbers)
        return FittedConfidence(model, dict(values["networks"]), dict(values["fitted"]))
    except OSError as error:
        raise WeightsError(
            f"{path} cannot be read ({error.strerror}): write it again with geolabel train confidence"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise WeightsError(
            f"{path} is not a confidence model ({error}): write it again with geolabel train confidence"
        ) from error


def save_confidence(path: Path, found: FittedConfidence, *, overwrite: bool) -> None:
    """Write a model as JSON; the file appears when it is complete.

    Raises
    ------
    OutputError
        If it exists and may not be replaced.
    """
    model = found.model
    values = {
        "features": model.names,
        "means": model.means,
        "scales": model.scales,
        "coefficients": model.coefficients,
        "intercept": model.intercept,
        "networks": found.networks,
        "fitted": found.fitted,
    }
    with replacing(path, overwrite=overwrite) as part:
        part.write_text(json.dumps(values, indent=1, allow_nan=False) + "\n", encoding="utf-8")


Attributes = Mapping[str, ArrayLike]
"""Columns of K polygons by name, as in an inventory; NaN or None if unknown."""


def _column(name: str) -> Callable[[Attributes], Float64Array]:
    return lambda attributes: np.asarray(attributes[name], float)


def _log(function: Callable[[Attributes], Float64Array]) -> Callable[[Attributes], Float64Array]:
    def log(attributes: Attributes) -> Float64Array:
        values = function(attributes)
        # an outline without area or width has no logarithm, and thus no confidence
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
"""Features that a model may use, by name: functions of the attributes."""


def features(attributes: Attributes, names: tuple[str, ...]) -> Float64Array:
    """(K, F) features of K polygons; NaN if an attribute is unknown."""
    return np.stack([FEATURES[name](attributes) for name in names], axis=1)


@dataclass(frozen=True)
class ConfidenceModel:
    """Logistic regression: ``sigmoid(intercept + sum(coefficient * (feature - mean) / scale))``."""

    names: tuple[str, ...]
    """Names in `FEATURES`."""
    means: tuple[float, ...]
    scales: tuple[float, ...]
    """Positive scales."""
    coefficients: tuple[float, ...]
    intercept: float

    def __post_init__(self) -> None:
        unknown = set(self.names) - set(FEATURES)
        if unknown:
            raise ValueError(f"features {sorted(unknown)} are not known: known are {sorted(FEATURES)}")
        if len({len(values) for values in (self.names, self.means, self.scales, self.coefficients)}) > 1:
            raise ValueError("every feature needs a mean, a scale and a coefficient")
        numbers = (*self.means, *self.scales, *self.coefficients, self.intercept)
        if not (self.names and all(map(math.isfinite, numbers)) and min(self.scales) > 0):
            raise ValueError("it needs at least one feature, finite numbers and positive scales")

    def __call__(self, attributes: Attributes) -> Float64Array:
        """(K,) probability, 0..1, that at least half of each polygon is landslide; NaN if a feature is missing."""
        standard = (features(attributes, self.names) - np.asarray(self.means)) / np.asarray(self.scales)
        # sums in a fixed order: the same digits for any number of polygons
        logit = self.intercept + sum(
            (standard[:, k] * c for k, c in enumerate(self.coefficients)), np.zeros(len(standard))
        )
        probability: Float64Array = 1 / (1 + np.exp(-np.clip(logit, -60, 60)))
        return probability

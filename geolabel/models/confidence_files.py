"""The confidence model that ships with the networks, and the file that it is kept in."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from geolabel.confidence import Attributes, ConfidenceModel
from geolabel.errors import WeightsError
from geolabel.outputs import replacing
from geolabel.parsing import read_json
from geolabel.types import Float64Array


@dataclass(frozen=True)
class FittedConfidence:
    """A model, the networks whose polygons it was fitted to, and what else is worth knowing of it."""

    model: ConfidenceModel
    networks: dict[str, str]
    """SHA-256 of the weights by role."""
    fitted: dict[str, Any]
    """Data, counts and figures, as plain values."""


def shipped() -> Path:
    """Where the model that comes with geolabel is."""
    return Path(str(resources.files("geolabel.weights") / "confidence.json"))


METHOD = "apsam"
"""How the polygons were found that models are fitted to."""


def confidence_of(attributes: Attributes, networks: Mapping[str, str], method: str) -> Float64Array:
    """(K,) confidence of K polygons; NaN for networks, by SHA-256, and methods that no model was fitted to.

    Others judge their masks on another scale, where this model would be sure of nonsense.
    """
    found = _shipped(shipped())
    if not knows(networks, method):
        return np.full(len(np.asarray(attributes["area_m2"])), np.nan)
    return found.model(attributes)


def knows(networks: Mapping[str, str], method: str) -> bool:
    """Whether the model was fitted to polygons of these networks, by SHA-256, and of this method."""
    return _shipped(shipped()).networks == dict(networks) and method == METHOD


@lru_cache(maxsize=1)
def _shipped(path: Path) -> FittedConfidence:
    return load_confidence(path)


def load_confidence(path: Path) -> FittedConfidence:
    """Read a model.

    Raises
    ------
    WeightsError
        If the file is missing or holds no such model.
    """
    try:
        values = read_json(path)
        numbers = {name: tuple(values[name]) for name in ("means", "scales", "coefficients")}
        model = ConfidenceModel(names=tuple(values["features"]), intercept=float(values["intercept"]), **numbers)
        return FittedConfidence(model, dict(values["networks"]), dict(values["fitted"]))
    except OSError as error:
        raise WeightsError(f"{path} cannot be read ({error.strerror}): install geolabel again") from error
    except (ValueError, KeyError, TypeError) as error:
        raise WeightsError(
            f"{path} holds no confidence model ({error}): make it again with geolabel train confidence"
        ) from error


def save_confidence(path: Path, found: FittedConfidence, *, overwrite: bool) -> None:
    """Write a model as JSON; the file appears when it is whole.

    Raises
    ------
    OutputError
        If it exists and must not be replaced.
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

"""Fit the confidence of polygons: extract scenes that are kept for selection, and see which polygons are right."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np

from geolabel.bench import examples
from geolabel.bench.calibration import expected_calibration_error, reliability
from geolabel.bench.examples import Example
from geolabel.bench.layout import placed, write_scene
from geolabel.bench.scenes import polygon_ids
from geolabel.bench.tally import judged
from geolabel.confidence import ConfidenceModel, features
from geolabel.errors import GeolabelError
from geolabel.extras import require
from geolabel.io.confidence import FittedConfidence
from geolabel.run.extract import extract
from geolabel.run.plan import Parameters
from geolabel.run.report import Progress, Silent
from geolabel.run.request import Networks
from geolabel.types import BoolArray, Float64Array, Int64Array

NAMES = (
    "score_mean",
    "score_max",
    "predicted_iou",
    "stability",
    "activation_mean",
    "log_area_px",
    "log_elongation",
)
"""What the model looks at. Not the area in square metres: a model that knows it would trust a sensor, not a shape."""

LEAST = 30
"""Polygons of either kind that a fit needs."""

FOLDS = 5
"""Parts by scene: a part is judged by a model that was fitted to the others."""


@dataclass(frozen=True)
class Polygons:
    """N polygons of several scenes."""

    features: Float64Array
    """(N, F) of `NAMES`."""
    right: BoolArray
    """(N,) whether at least half of each is landslide."""
    scene: Int64Array
    """(N,) number of its scene."""


def fit_confidence(
    networks: Networks, *, scenes: int, sichuan: Path | None = None, progress: Progress | None = None
) -> FittedConfidence:
    """Extract scenes, and fit a logistic model to which polygons are right.

    Parameters
    ----------
    scenes
        Synthetic scenes, from the first seed that is kept for selection.
    sichuan
        Folder with images/ and masks/, of which those for selection are taken.

    Raises
    ------
    GeolabelError
        If scikit-learn is missing, or too few polygons were found.
    """
    drawn = examples.Drawn(examples.SYNTHETIC["select"], scenes)
    outlined = examples.outlined(sichuan, "select") if sichuan else None
    followed = (progress or Silent()).track(_scenes(drawn, outlined), "extract", scenes + len(outlined or ()))
    polygons = collect(followed, networks)
    sources = [f"{scenes} synthetic scenes of geolabel (seeds {drawn.first} to {drawn.first + scenes - 1})"]
    if outlined and sichuan:
        sources.append(f"{len(outlined)} real images with landslides ({sichuan.name})")
    model, figures = fit(polygons)
    recipes = {recipe.role: recipe.sha256 for recipe in networks.recipes()}
    return FittedConfidence(model, recipes, {"data": sources, **figures})


def _scenes(drawn: examples.Drawn, outlined: examples.Files | None) -> Iterator[tuple[Example, float]]:
    """Yield examples and their metres per pixel."""
    yield from zip(drawn, repeat(examples.SYNTHETIC_GSD))
    yield from zip(outlined or (), repeat(examples.OUTLINED_GSD))


def collect(scenes: Iterator[tuple[Example, float]], networks: Networks) -> Polygons:
    """Extract each scene and look at its polygons; what a feature is not known of is left out."""
    found: list[Float64Array] = [np.zeros((0, len(NAMES)))]
    right: list[BoolArray] = [np.zeros(0, bool)]
    number: list[Int64Array] = [np.zeros(0, np.int64)]
    with tempfile.TemporaryDirectory(prefix="geolabel-") as folder:
        for count, (example, gsd) in enumerate(scenes):
            path = write_scene(Path(folder) / "scene.tif", example, gsd)
            landslides = extract(path, networks=networks, parameters=Parameters(min_confidence=0))
            numbers, is_right = judged(polygon_ids(landslides.geometry, placed(example, gsd)), example.ids)
            columns = features(landslides, NAMES)[numbers - 1]
            known = np.isfinite(columns).all(axis=1)
            found.append(columns[known])
            right.append(is_right[known])
            number.append(np.full(int(known.sum()), count))
    return Polygons(np.concatenate(found), np.concatenate(right), np.concatenate(number))


def require_fitting() -> None:
    """Make sure that a model can be fitted here; raises a GeolabelError that says what is missing."""
    require("train", "sklearn", purpose="fitting the confidence")


def fit(polygons: Polygons) -> tuple[ConfidenceModel, dict[str, Any]]:
    """Fit a logistic model, and judge it on scenes that it was not fitted to.

    Returns
    -------
    the model of all polygons, and figures of models that were fitted without the scenes they are judged on
    """
    require_fitting()
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import log_loss, roc_auc_score
    from sklearn.model_selection import GroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    right, count = polygons.right, int(polygons.right.sum())
    if min(count, len(right) - count) < LEAST:
        raise GeolabelError(
            f"{count} polygons are right and {len(right) - count} wrong; at least {LEAST} of either kind are needed: "
            "give more --scenes"
        )
    pipeline = make_pipeline(StandardScaler(), LogisticRegression())
    unseen = cross_val_predict(
        pipeline, polygons.features, right, groups=polygons.scene, cv=GroupKFold(FOLDS), method="predict_proba"
    )[:, 1]
    scaler, logistic = (step for _, step in pipeline.fit(polygons.features, right).steps)
    model = ConfidenceModel(
        names=NAMES,
        means=_plain(scaler.mean_),
        scales=_plain(scaler.scale_),
        coefficients=_plain(logistic.coef_[0]),
        intercept=round(float(logistic.intercept_[0]), 9),
    )
    figures = {
        "polygons": len(right),
        "share_right": count / len(right),
        "auc": float(roc_auc_score(right, unseen)),
        "log_loss": float(log_loss(right, unseen)),
        "calibration_error": expected_calibration_error(reliability(unseen, right)),
    }
    return model, {name: round(value, 6) for name, value in figures.items()}


def _plain(values: Float64Array) -> tuple[float, ...]:
    # nine digits are more than the data can tell, and the same on every machine
    return tuple(round(float(value), 9) for value in values)

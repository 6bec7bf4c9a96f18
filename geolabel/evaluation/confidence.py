"""Fit the confidence of polygons: extract scenes held out for selection, and check which polygons are correct."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from geolabel.engine.tasks import Progress, Silent
from geolabel.errors import GeolabelError, require
from geolabel.evaluation import examples
from geolabel.evaluation.calibration import expected_calibration_error, reliability
from geolabel.evaluation.examples import L4S_GSD, Data, Example, Examples, Shrunk
from geolabel.evaluation.scene_scores import judged
from geolabel.evaluation.scenes import example_grid, polygon_ids, write_scene
from geolabel.extraction.extract import extract
from geolabel.extraction.request import Networks, Parameters
from geolabel.models.confidence import ConfidenceModel, FittedConfidence, features
from geolabel.types import BoolArray, Float64Array, Int64Array

NAMES = (
    "score_mean",
    "score_max",
    "predicted_iou",
    "stability",
    "activation_mean",
    "activation_share",
    "log_area_px",
    "log_elongation",
)
"""Features of the model. Area in square metres is excluded: the model would learn the sensor instead of the shape."""

LEAST = 30
"""Minimum number of correct and of wrong polygons for a fit."""

FOLDS = 5
"""Cross-validation folds by scene."""


@dataclass(frozen=True)
class Polygons:
    """N polygons of several scenes."""

    features: Float64Array
    """(N, F) of `NAMES`."""
    right: BoolArray
    """(N,) whether at least half of each polygon is landslide."""
    scene: Int64Array
    """(N,) number of its scene."""
    weight: Float64Array
    """(N,) weight of each in the fit."""


@dataclass(frozen=True)
class Source:
    """Scenes of one kind and pixel size."""

    name: str
    scenes: Examples
    gsd: float
    """Metres per pixel."""
    weight: float = 1.0
    """Total weight of all its polygons."""


GSDS = (1.5, 4.0)
"""Metres per pixel to which orthophotos are also reduced: confidence depends on pixel size."""

WITHOUT = 24
"""Maximum number of images of each set without landslides."""


def fit_confidence(
    networks: Networks, *, scenes: int, data: Data | None = None, progress: Progress | None = None
) -> FittedConfidence:
    """Extract scenes, and fit a logistic model that predicts which polygons are correct.

    Parameters
    ----------
    scenes
        Number of synthetic scenes, from the first seed for selection.
    data
        Real images: orthophotos, chips of 10 m and images without landslides, those for selection of each.

    Raises
    ------
    GeolabelError
        If scikit-learn is missing, or there are too few polygons.
    """
    sources = _sources(scenes, data or Data())
    polygons = collect(sources, networks, progress or Silent())
    model, figures = fit(polygons)
    recipes = {recipe.role: recipe.sha256 for recipe in networks.recipes()}
    return FittedConfidence(model, recipes, {"data": [source.name for source in sources], **figures})


def _sources(scenes: int, data: Data) -> list[Source]:
    """Kinds with landslides have equal weights, and all without landslides together have the same."""
    synthetic = examples.SyntheticScenes(examples.SYNTHETIC["select"], scenes)
    seeds = f"seeds {synthetic.first} to {synthetic.first + scenes - 1}"
    sources = [Source(f"{scenes} synthetic scenes of geolabel ({seeds})", synthetic, examples.SYNTHETIC_GSD)]
    if data.sichuan:
        outlined = examples.outlined(data.sichuan, "select")
        name = f"{len(outlined)} real images with landslides ({data.sichuan.name})"
        sources.append(Source(name, outlined, examples.OUTLINED_GSD))
        for gsd in GSDS:
            coarse = Shrunk(outlined, gsd / examples.OUTLINED_GSD)
            sources.append(Source(f"{name}, shrunk to {gsd:g} m", coarse, gsd))
    if data.l4s:
        chips = examples.satellite_chips(data.l4s, "select")
        sources.append(Source(f"{len(chips)} chips of 10 m with landslides ({data.l4s.name})", chips, L4S_GSD))
    without = examples.without_landslides(data.negatives, "select") if data.negatives else {}
    for name, plain in without.items():
        # Georeferenced images would need their own pixel size.
        images = tuple(path for path in plain.images if path.suffix.lower() not in (".tif", ".tiff"))
        images = images[:: max(1, -(-len(images) // WITHOUT))]
        files = examples.Files(images, plain.images[0].parent / "masks")
        sources.append(Source(f"{len(images)} images without landslides ({name})", files, plain.gsd, 1 / len(without)))
    return sources


def collect(sources: Sequence[Source], networks: Networks, progress: Progress) -> Polygons:
    """Extract each scene and compute the features of its polygons; those with unknown features are skipped."""
    numbers = count()
    with tempfile.TemporaryDirectory(prefix="geolabel-") as folder:
        parts = []
        for source in sources:
            scenes = progress.track(source.scenes, "extract", len(source.scenes))
            found = [_look(Path(folder), example, source.gsd, networks) for example in scenes]
            total = sum(len(right) for _, right in found)
            for columns, right in found:
                number, weight = (
                    np.full(len(right), next(numbers)),
                    np.full(len(right), source.weight / max(total, 1)),
                )
                parts.append((columns, right, number, weight))
    return Polygons(*(np.concatenate(layers) for layers in zip(*parts, strict=True)))


def _look(folder: Path, example: Example, gsd: float, networks: Networks) -> tuple[Float64Array, BoolArray]:
    # Features of the polygons of a scene, and which are correct.
    path = write_scene(folder / "scene.tif", example, gsd)
    landslides = extract(path, networks=networks, parameters=Parameters(min_confidence=0))
    numbers, is_right = judged(polygon_ids(landslides.geometry, example_grid(example, gsd)), example.ids)
    columns = features(landslides, NAMES)[numbers - 1]
    known = np.isfinite(columns).all(axis=1)
    return columns[known], is_right[known]


def _require_fitting() -> None:
    """Check that a model can be fitted here; raises a GeolabelError that names what is missing."""
    require("train", "sklearn", purpose="fitting the confidence")


def fit(polygons: Polygons) -> tuple[ConfidenceModel, dict[str, Any]]:
    """Fit a logistic model, and evaluate it by cross-validation over scenes.

    Returns
    -------
    the model of all polygons, and figures of models fitted without the scenes they are evaluated on
    """
    _require_fitting()
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import log_loss, roc_auc_score
    from sklearn.model_selection import GroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    right, correct = polygons.right, int(polygons.right.sum())
    if min(correct, len(right) - correct) < LEAST:
        raise GeolabelError(
            f"{correct} polygons are correct and {len(right) - correct} wrong; at least {LEAST} of each are "
            "needed: give more --scenes"
        )
    pipeline = make_pipeline(StandardScaler(), LogisticRegression())
    weights = {"logisticregression__sample_weight": polygons.weight * len(right) / polygons.weight.sum()}
    unseen = cross_val_predict(
        pipeline,
        polygons.features,
        right,
        groups=polygons.scene,
        cv=GroupKFold(FOLDS),
        method="predict_proba",
        params=weights,
    )[:, 1]
    scaler, logistic = (step for _, step in pipeline.fit(polygons.features, right, **weights).steps)
    model = ConfidenceModel(
        names=NAMES,
        means=_plain(scaler.mean_),
        scales=_plain(scaler.scale_),
        coefficients=_plain(logistic.coef_[0]),
        intercept=round(float(logistic.intercept_[0]), 9),
    )
    figures = {
        "polygons": len(right),
        "share_right": correct / len(right),
        "auc": float(roc_auc_score(right, unseen)),
        "log_loss": float(log_loss(right, unseen)),
        "calibration_error": expected_calibration_error(reliability(unseen, right)),
    }
    return model, {name: round(value, 6) for name, value in figures.items()}


def _plain(values: Float64Array) -> tuple[float, ...]:
    # nine digits: more than are significant, and equal on every machine
    return tuple(round(float(value), 9) for value in values)

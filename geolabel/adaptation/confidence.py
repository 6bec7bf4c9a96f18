"""The confidence of polygons of adapted networks: the previous model, fitted to a person's review.

A few reviewed polygons cannot fit a model of eight attributes, but they can calibrate the existing one. So its
logit is shifted and scaled (Platt 1999), with a prior that keeps it unchanged where there is little to learn from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import shapely
from scipy.optimize import minimize
from scipy.special import expit, logit

from geolabel.adaptation.ground import Ground
from geolabel.engine.tasks import Progress
from geolabel.extraction.pipeline import find_landslides
from geolabel.extraction.plan import Plan, make_plan
from geolabel.extraction.work import in_scratch
from geolabel.io.write.rasters import in_pixels
from geolabel.models.confidence import ConfidenceModel, FittedConfidence
from geolabel.parts import Recipe
from geolabel.types import BoolArray, Float64Array

MINIMUM, EITHER = 4, 1
"""Minimum number of polygons on reviewed ground for a fit, and of each kind. They may be few: the prior holds the
model, and an unchanged model may call everything unlikely that a network with another threshold finds."""

SHIFT, SCALE = 2.0, 0.3
"""Standard deviations of the prior: of the shift around 0, and of the scale around 1."""

HALF = 0.5
"""Minimum share of a polygon that is judged for it to count, and minimum share of that which is landslide for it to be
right."""


def fit_again(
    before: FittedConfidence,
    recipes: tuple[Recipe, Recipe],
    plans: Sequence[Plan],
    grounds: Sequence[Ground],
    progress: Progress,
) -> FittedConfidence:
    """Fit the confidence of polygons of other networks to a person's review.

    Parameters
    ----------
    before
        Confidence model of the previous networks.
    recipes
        The new localizer and the segmenter.
    plans, grounds
        Scenes, and the judgement of their ground.
    """
    stated, right = [np.zeros(0)], [np.zeros(0, bool)]
    for plan, ground in zip(plans, grounds, strict=True):
        if len(ground.landslides) + len(ground.rejected) + len(ground.areas):
            columns, found = _polygons(plan, ground, recipes, progress)
            known = before.model(columns) if len(found) else np.zeros(0)
            stated.append(known[np.isfinite(known)])
            right.append(found[np.isfinite(known)])
    model, polygons = before.model, np.concatenate(right)
    correct = int(polygons.sum())
    enough = len(polygons) >= MINIMUM and min(correct, len(polygons) - correct) >= EITHER
    if enough:
        model = _moved(model, *_platt(np.concatenate(stated), polygons))
    networks = {recipe.role: recipe.sha256 for recipe in recipes}
    told = {"polygons": len(polygons), "right": correct, "fitted again": enough}
    return FittedConfidence(model, networks, before.fitted | {"adapted": told})


def _polygons(
    plan: Plan, ground: Ground, recipes: tuple[Recipe, Recipe], progress: Progress
) -> tuple[pd.DataFrame, BoolArray]:
    """Attributes of the polygons that networks find on reviewed ground, and which of them are landslides."""
    judged = ground.judged
    with in_scratch(plan_around(plan, judged, recipes), progress) as work:
        polygons = find_landslides(work).polygons
    outlines = in_pixels(polygons.geometry.to_numpy(), plan.grid)
    landslides = shapely.union_all(ground.landslides)
    sizes = np.maximum(shapely.area(outlines), 1e-9)
    known = shapely.area(shapely.intersection(outlines, judged))
    slides = shapely.area(shapely.intersection(outlines, landslides))
    counts = known >= HALF * sizes
    right: BoolArray = slides[counts] >= HALF * known[counts]
    return polygons[counts].reset_index(drop=True), right


def plan_around(plan: Plan, judged: shapely.Geometry, recipes: tuple[Recipe, Recipe]) -> Plan:
    """The run of networks on judged ground, in pixels of the grid of a plan, and half a tile around it."""
    a, b, c, d, e, f = tuple(plan.grid.transform)[:6]
    around = ground_around(judged, plan.segment_tiles.size / 2)
    area = shapely.transform(around, lambda points: points @ [[a, d], [b, e]] + [c, f])
    reader = plan.reader.within(area if plan.reader.aoi is None else area.intersection(plan.reader.aoi))
    return make_plan(reader, *recipes, plan.parameters, working_gsd=plan.grid.gsd, stretch=plan.stretch, warn=False)


def ground_around(judged: shapely.Geometry, distance: float) -> shapely.Geometry:
    """Rectangles around each part of the judged ground: the ground between distant places would waste time."""
    left, top, right, bottom = shapely.bounds(shapely.get_parts(judged)).T
    boxes = shapely.box(left - distance, top - distance, right + distance, bottom + distance)
    return shapely.union_all(boxes)


def _platt(stated: Float64Array, right: BoolArray) -> tuple[float, float]:
    """Shift and scale of the logit of the confidence (N,) of polygons, of which some are right (N,)."""
    logits, signs = logit(np.clip(stated, 1e-9, 1 - 1e-9)), np.where(right, 1.0, -1.0)

    def loss(values: Float64Array) -> float:
        shift, scale = values
        prior = (shift / SHIFT) ** 2 / 2 + ((scale - 1) / SCALE) ** 2 / 2
        return float(-np.log(np.maximum(expit(signs * (shift + scale * logits)), 1e-12)).sum() + prior)

    shift, scale = minimize(loss, np.array([0.0, 1.0]), bounds=[(-6, 6), (0.1, 3)]).x
    return round(float(shift), 6), round(float(scale), 6)


def _moved(model: ConfidenceModel, shift: float, scale: float) -> ConfidenceModel:
    """The model whose logit is `shift` + `scale` times the logit of another."""
    coefficients = tuple(scale * value for value in model.coefficients)
    return replace(model, intercept=shift + scale * model.intercept, coefficients=coefficients)

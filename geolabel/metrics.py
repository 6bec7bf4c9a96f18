"""How well a prediction agrees with the truth: by area, and by object.

A ratio without a denominator is NaN: a class that neither side has is no success and no failure, and means leave it
out. Between the F1 score and the intersection over union holds IoU = F1 / (2 - F1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Self, TypeAlias

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import maximum_bipartite_matching

from geolabel.types import BoolArray, Float64Array, Int64Array

Areas: TypeAlias = Float64Array | Int64Array

HALF = 0.5
"""Share of an object that has to be covered, and IoU that a pair has to reach, to count."""


def ratio(numerator: float, denominator: float) -> float:
    """Divide; NaN where there is nothing to divide by."""
    return numerator / denominator if denominator else math.nan


@dataclass(frozen=True)
class Confusion:
    """Areas by what they are and what they were taken for, in pixels or in square metres.

    Parts of a scene add up. A NaN in `tn` says that nobody knows where the scene ends; what needs it is NaN then.
    """

    tp: float = 0
    """Landslide, found."""
    fp: float = 0
    """No landslide, but predicted."""
    fn: float = 0
    """Landslide, missed."""
    tn: float = 0
    """Neither."""

    @classmethod
    def of(cls, predicted: BoolArray, truth: BoolArray, valid: BoolArray) -> Self:
        """Count pixels of boolean arrays of one shape; those that are not valid count nowhere."""
        both, either = predicted & truth & valid, (predicted | truth) & valid
        tp, p, t = (int(np.count_nonzero(mask)) for mask in (both, predicted & valid, truth & valid))
        return cls(tp=tp, fp=p - tp, fn=t - tp, tn=int(np.count_nonzero(valid) - np.count_nonzero(either)))

    def __add__(self, other: Confusion) -> Self:
        return type(self)(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})

    @property
    def total(self) -> float:
        """Everything that was judged."""
        return self.tp + self.fp + self.fn + self.tn

    @property
    def overall_accuracy(self) -> float:
        """Share of the scene that is right."""
        return ratio(self.tp + self.tn, self.total)

    @property
    def precision(self) -> float:
        """Share of the predicted landslides that is landslide."""
        return ratio(self.tp, self.tp + self.fp)

    @property
    def recall(self) -> float:
        """Share of the landslides that was predicted."""
        return ratio(self.tp, self.tp + self.fn)

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall."""
        return ratio(2 * self.tp, 2 * self.tp + self.fp + self.fn)

    @property
    def iou(self) -> float:
        """Intersection over union of the landslide class."""
        return ratio(self.tp, self.tp + self.fp + self.fn)

    @property
    def miou(self) -> float:
        """Mean intersection over union of landslide and background, without a class that neither side has."""
        if math.isnan(self.tn):
            return math.nan
        classes = [self.iou, ratio(self.tn, self.tn + self.fp + self.fn)]
        present = [value for value in classes if not math.isnan(value)]
        return ratio(sum(present), len(present))

    @property
    def kappa(self) -> float:
        """Cohen's kappa: agreement beyond that of chance (Cohen 1960, doi:10.1177/001316446002000104)."""
        n = self.total
        chance = (self.tp + self.fp) * (self.tp + self.fn) + (self.fn + self.tn) * (self.fp + self.tn)
        return ratio((self.tp + self.tn) * n - chance, n * n - chance)


@dataclass(frozen=True)
class ObjectScores:
    """Landslides counted one by one."""

    true_objects: int
    found: int
    """True landslides of which predictions cover at least half."""
    polygons: int
    right: int
    """Predicted polygons of which at least half lies on true landslides."""
    matched: int
    """Pairs of a true landslide and a polygon with an IoU of at least one half, each in one pair at most."""

    @property
    def found_share(self) -> float:
        """Share of the true landslides that were found."""
        return ratio(self.found, self.true_objects)

    @property
    def right_share(self) -> float:
        """Share of the polygons that are right."""
        return ratio(self.right, self.polygons)

    @property
    def precision(self) -> float:
        """Share of the polygons that match a true landslide."""
        return ratio(self.matched, self.polygons)

    @property
    def recall(self) -> float:
        """Share of the true landslides that match a polygon."""
        return ratio(self.matched, self.true_objects)

    @property
    def f1(self) -> float:
        """Harmonic mean of matched precision and recall."""
        return ratio(2 * self.matched, self.polygons + self.true_objects)


@dataclass(frozen=True)
class Overlaps:
    """What N pairs of a true landslide and a predicted polygon share; areas in any one unit."""

    true_area: Areas
    """(T,)"""
    true_covered: Areas
    """(T,) area that any prediction covers."""
    polygon_area: Areas
    """(P,)"""
    polygon_correct: Areas
    """(P,) area that lies on any true landslide."""
    pairs: Int64Array
    """(N, 2) true landslide and polygon, each pair once."""
    shared: Areas
    """(N,) area that the pair has in common."""

    def scores(self) -> ObjectScores:
        """Count what was found, what is right, and what matches."""
        return ObjectScores(
            true_objects=len(self.true_area),
            found=_at_least_half(self.true_covered, self.true_area),
            polygons=len(self.polygon_area),
            right=_at_least_half(self.polygon_correct, self.polygon_area),
            matched=self._matched(),
        )

    def _matched(self) -> int:
        true, polygon = self.pairs.T
        union = self.true_area[true] + self.polygon_area[polygon] - self.shared
        good = (self.shared >= HALF * union) & (self.shared > 0)
        # one landslide can have two such polygons when it is halved exactly, or when polygons overlap
        graph = coo_array(
            (np.ones(good.sum(), bool), (true[good], polygon[good])),
            shape=(len(self.true_area), len(self.polygon_area)),
        )
        return int((maximum_bipartite_matching(graph.tocsr(), perm_type="column") >= 0).sum())


def _at_least_half(part: Areas, whole: Areas) -> int:
    return int(((part >= HALF * whole) & (whole > 0)).sum())

"""Agreement of a prediction with the truth: by area, object, object width, outline, and pixel class.

A ratio without a denominator is NaN: a class that neither side has is neither success nor failure, and means skip it.
F1 and IoU are related by IoU = F1 / (2 - F1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Self, TypeAlias

import numpy as np
import shapely
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import maximum_bipartite_matching
from scipy.spatial import KDTree

from geolabel.labels import IGNORE
from geolabel.types import BoolArray, Float64Array, Int32Array, Int64Array, UInt8Array

Areas: TypeAlias = Float64Array | Int64Array

HALF = 0.5
"""Minimum covered share of an object, and minimum IoU of a pair, to count."""

WIDTH_LIMITS = (8, 24, 64)
"""Limits in pixels between the bands of object width."""

TOLERANCE = 3.0
"""Tolerance of outlines in pixels; reference outlines drawn by hand are no more accurate."""


def ratio(numerator: float, denominator: float) -> float:
    """Divide; NaN if the denominator is 0."""
    return numerator / denominator if denominator else math.nan


@dataclass(frozen=True)
class Confusion:
    """Areas by truth and prediction, in pixels or square metres.

    Parts of a scene can be added. `tn` and figures based on it are NaN if the extent of the scene is unknown.
    """

    tp: float = 0
    """Landslide, predicted."""
    fp: float = 0
    """Background, but predicted."""
    fn: float = 0
    """Landslide, missed."""
    tn: float = 0
    """Background, not predicted."""

    @classmethod
    def of(cls, predicted: BoolArray, truth: BoolArray, valid: BoolArray) -> Self:
        """Count pixels of boolean arrays of one shape; pixels that are not valid are skipped."""
        both, either = predicted & truth & valid, (predicted | truth) & valid
        tp, p, t = (int(np.count_nonzero(mask)) for mask in (both, predicted & valid, truth & valid))
        return cls(tp=tp, fp=p - tp, fn=t - tp, tn=int(np.count_nonzero(valid) - np.count_nonzero(either)))

    def __add__(self, other: Confusion) -> Self:
        return type(self)(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})

    @property
    def total(self) -> float:
        """Total area."""
        return self.tp + self.fp + self.fn + self.tn

    @property
    def overall_accuracy(self) -> float:
        """Share of the scene that is correct."""
        return ratio(self.tp + self.tn, self.total)

    @property
    def precision(self) -> float:
        """Share of the predicted area that is landslide."""
        return ratio(self.tp, self.tp + self.fp)

    @property
    def recall(self) -> float:
        """Share of the landslide area that is predicted."""
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
        """Mean IoU of landslide and background, without a class that neither side has."""
        if math.isnan(self.tn):
            return math.nan
        classes = [self.iou, ratio(self.tn, self.tn + self.fp + self.fn)]
        present = [value for value in classes if not math.isnan(value)]
        return ratio(sum(present), len(present))

    @property
    def kappa(self) -> float:
        """Cohen's kappa: agreement beyond chance (Cohen 1960, doi:10.1177/001316446002000104)."""
        n = self.total
        chance = (self.tp + self.fp) * (self.tp + self.fn) + (self.fn + self.tn) * (self.fp + self.tn)
        return ratio((self.tp + self.tn) * n - chance, n * n - chance)


@dataclass(frozen=True)
class ObjectScores:
    """Object-wise counts of landslides."""

    true_objects: int
    found: int
    """True landslides at least half covered by predictions."""
    polygons: int
    right: int
    """Predicted polygons at least half on true landslides."""
    matched: int
    """Disjoint pairs of a true landslide and a polygon with an IoU of at least one half."""

    @property
    def found_share(self) -> float:
        """Share of the true landslides that were found."""
        return ratio(self.found, self.true_objects)

    @property
    def right_share(self) -> float:
        """Share of the polygons that are correct."""
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
    """Overlaps of N pairs of a true landslide and a predicted polygon; areas in any unit."""

    true_area: Areas
    """(T,)"""
    true_covered: Areas
    """(T,) area covered by any prediction."""
    polygon_area: Areas
    """(P,)"""
    polygon_correct: Areas
    """(P,) area on any true landslide."""
    pairs: Int64Array
    """(N, 2) indices of true landslide and polygon, each pair once."""
    shared: Areas
    """(N,) shared area of the pair."""

    def scores(self) -> ObjectScores:
        """Count found, correct and matched objects."""
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
        # ambiguous if a landslide is halved exactly, or if polygons overlap
        graph = coo_array(
            (np.ones(good.sum(), bool), (true[good], polygon[good])),
            shape=(len(self.true_area), len(self.polygon_area)),
        )
        return int((maximum_bipartite_matching(graph.tocsr(), perm_type="column") >= 0).sum())


def _at_least_half(part: Areas, whole: Areas) -> int:
    return int(((part >= HALF * whole) & (whole > 0)).sum())


# --- width -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class WidthCounts:
    """True and found landslides in the width bands separated by `WIDTH_LIMITS`."""

    objects: tuple[int, ...] = (0,) * (len(WIDTH_LIMITS) + 1)
    found: tuple[int, ...] = (0,) * (len(WIDTH_LIMITS) + 1)

    @classmethod
    def of(cls, widths: Float64Array, found: BoolArray) -> Self:
        """Sort N landslides into bands by their width in pixels (N,), and count the found ones (N,)."""
        bands = np.searchsorted(WIDTH_LIMITS, widths, side="right")
        counts = (np.bincount(part, minlength=len(WIDTH_LIMITS) + 1) for part in (bands, bands[found]))
        return cls(*(tuple(part.tolist()) for part in counts))

    def __add__(self, other: WidthCounts) -> WidthCounts:
        return WidthCounts(
            tuple(map(sum, zip(self.objects, other.objects, strict=True))),
            tuple(map(sum, zip(self.found, other.found, strict=True))),
        )

    def recalls(self) -> tuple[float, ...]:
        """Share found in each band; NaN in an empty band."""
        return tuple(ratio(found, objects) for found, objects in zip(self.found, self.objects, strict=True))


def object_widths(ids: Int32Array) -> Float64Array:
    """(N,) short side in pixels of the minimum rotated rectangle around each numbered object of (H, W).

    The rectangle contains the pixels' squares, so a row of pixels is 1 px wide. Objects are in the order of the
    numbers that occur, from 1.
    """
    widths = []
    for number, place in enumerate(ndimage.find_objects(ids), 1):
        if place is not None:
            rectangle = shapely.oriented_envelope(shapely.multipoints(_hull_candidates(ids[place] == number)))
            sides = np.diff(shapely.get_coordinates(rectangle)[:3], axis=0)
            widths.append(float(np.hypot(*sides.T).min()))
    return np.array(widths, float)


def _hull_candidates(mask: BoolArray) -> Int64Array:
    """(N, 2) x, y of pixel corners that include all corners of the convex hull of a mask (H, W)."""
    rows = np.flatnonzero(mask.any(axis=1))
    left, right = mask[rows].argmax(axis=1), mask.shape[1] - mask[rows, ::-1].argmax(axis=1)
    corners = [np.stack([x, rows + below], axis=1) for x in (left, right) for below in (0, 1)]
    return np.concatenate(corners)


# --- outlines --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Boundary:
    """Outline pixels of both sides, and those near an outline of the other side. Parts of a scene can be added.

    Source: Csurka, Larlus, Perronnin (2013), "What is a good evaluation measure for semantic segmentation?",
    doi:10.5244/C.27.32; here over all objects of a scene at once.
    """

    predicted: int = 0
    predicted_near: int = 0
    true: int = 0
    true_near: int = 0

    @classmethod
    def of(cls, predicted: BoolArray, truth: BoolArray, valid: BoolArray, tolerance: float = TOLERANCE) -> Self:
        """Compare boolean arrays of one shape; distances are between pixel centres, in pixels."""
        found, true = edge_pixels(predicted, valid), edge_pixels(truth, valid)
        return cls(len(found), _count_near(found, true, tolerance), len(true), _count_near(true, found, tolerance))

    def __add__(self, other: Boundary) -> Self:
        return type(self)(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    @property
    def f1(self) -> float:
        """Harmonic mean of the near shares; NaN if neither side has an outline."""
        if not self.predicted and not self.true:
            return math.nan
        precision, recall = self.predicted_near / max(1, self.predicted), self.true_near / max(1, self.true)
        return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def edge_pixels(mask: BoolArray, valid: BoolArray) -> Int64Array:
    """(N, 2) row and column of the pixels of a mask (H, W) with a valid 4-neighbour outside it.

    The frame of the image, and of its valid part, is not an edge: the true end of an object cut there is unknown.
    """
    inside, outside = mask & valid, valid & ~mask
    beside = np.zeros(mask.shape, bool)
    beside[1:] |= outside[:-1]
    beside[:-1] |= outside[1:]
    beside[:, 1:] |= outside[:, :-1]
    beside[:, :-1] |= outside[:, 1:]
    return np.argwhere(inside & beside)


def _count_near(points: Int64Array, others: Int64Array, tolerance: float) -> int:
    if not len(points) or not len(others):
        return 0
    # the tree finds distances below its bound, and the tolerance itself counts as near
    distance, _ = KDTree(others).query(points, distance_upper_bound=np.nextafter(tolerance, np.inf))
    return int(np.isfinite(distance).sum())


# --- pixel classes ---------------------------------------------------------------------------------------------------


def count_pixels(predicted: UInt8Array, truth: UInt8Array, classes: int) -> Int64Array:
    """(K, K) confusion matrix of two label maps: rows are true classes, columns predicted ones.

    Parameters
    ----------
    predicted, truth : (H, W)
        0 to ``classes - 1``, or `IGNORE`; pixels ignored on either side are not counted.
    """
    judged = (predicted != IGNORE) & (truth != IGNORE)
    pairs = truth[judged].astype(np.int64) * classes + predicted[judged]
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def class_figures(counts: Int64Array, classes: Sequence[str]) -> dict[str, float]:
    """Overall accuracy and mean IoU of a confusion matrix, and precision, recall, F1 and IoU of each class.

    Parameters
    ----------
    counts : (K, K)
        See `count_pixels`.
    classes
        Names of all K classes; the first is the background, which has no separate figures.

    Returns
    -------
    By name, prefixed by the class if there are several; NaN without a denominator, and means skip such
    classes
    """
    matrix = counts.astype(np.float64)
    hit, true, predicted = np.diag(matrix), matrix.sum(axis=1), matrix.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        iou = hit / (true + predicted - hit)
        columns = {"precision": hit / predicted, "recall": hit / true, "f1": 2 * hit / (true + predicted), "iou": iou}
        accuracy = float(hit.sum() / matrix.sum())
    defined = iou[~np.isnan(iou)]
    figures = {"overall_accuracy": accuracy, "miou": float(defined.mean()) if len(defined) else math.nan}
    for k, name in list(enumerate(classes))[1:]:
        prefix = "" if len(classes) == 2 else f"{name} "
        figures |= {f"{prefix}{key}": float(values[k]) for key, values in columns.items()}
    return figures

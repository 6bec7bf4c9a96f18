"""What an answer and the truth of a scene have in common, as counts that add up over scenes."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from typing import Any, Self

import numpy as np

from geolabel.metrics import HALF, Boundary, Confusion, WidthCounts, object_widths, ratio
from geolabel.types import BoolArray, Float64Array, Int32Array, Int64Array


@dataclass(frozen=True)
class Answer:
    """What a method found in a scene: polygons as pixels of one grid."""

    ids: Int32Array
    """(H, W) number of the polygon, from 1; 0 elsewhere."""
    valid: BoolArray
    """(H, W)"""
    gsd: float
    """Metres per pixel."""
    confidence: Float64Array | None = None
    """(polygons,) NaN where it is not known."""


@dataclass(frozen=True)
class Truth:
    """The landslides of a scene."""

    ids: Int32Array
    """(H, W) number of the landslide, from 1; 0 on other ground, below 0 where nothing is judged."""
    minimum: int = 1
    """Pixels of the smallest landslide that counts as an object; smaller ones count by area alone."""

    @cached_property
    def objects(self) -> Int32Array:
        """(H, W) numbers of the landslides that count as objects; 0 elsewhere."""
        ids = np.maximum(self.ids, 0)
        large = np.bincount(ids.ravel()) >= self.minimum
        large[0] = False
        kept: Int32Array = np.where(large[ids], ids, 0).astype(np.int32)
        return kept

    @cached_property
    def widths(self) -> Float64Array:
        """(N,) of the objects, pixels."""
        return object_widths(self.objects)


@dataclass(frozen=True)
class Tally:
    """What agrees in some scenes: by area, along the outlines, and by object."""

    areas: Confusion = field(default_factory=Confusion)
    boundary: Boundary = field(default_factory=Boundary)
    widths: WidthCounts = field(default_factory=WidthCounts)
    """True landslides, and those that predictions cover to at least half."""
    polygons: int = 0
    right: int = 0
    """Polygons of which at least half lies on true landslides."""

    @classmethod
    def of(cls, answer: Answer, truth: Truth) -> Self:
        """Compare one answer with the truth on the same grid."""
        valid = answer.valid & (truth.ids >= 0)
        ids, true = np.where(truth.ids >= 0, answer.ids, 0), truth.ids > 0
        correct = shares(ids, true)
        return cls(
            Confusion.of(ids > 0, true, valid),
            Boundary.of(ids > 0, true, valid),
            WidthCounts.of(truth.widths, shares(truth.objects, ids > 0) >= HALF),
            len(correct),
            int((correct >= HALF).sum()),
        )

    @classmethod
    def from_plain(cls, values: dict[str, Any]) -> Self:
        """Read back what `plain` gave."""
        widths = WidthCounts(**{name: tuple(counts) for name, counts in values["widths"].items()})
        parts = {"areas": Confusion(**values["areas"]), "boundary": Boundary(**values["boundary"]), "widths": widths}
        return cls(**(values | parts))

    def plain(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def __add__(self, other: Tally) -> Tally:
        return Tally(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def figures(self) -> dict[str, float]:
        """Figures for a table."""
        objects = sum(self.widths.objects)
        return {
            "F1": self.areas.f1,
            "IoU": self.areas.iou,
            "precision": self.areas.precision,
            "recall": self.areas.recall,
            "boundary F1": self.boundary.f1,
            "object recall": ratio(sum(self.widths.found), objects),
            "landslides": objects,
            "polygons right": ratio(self.right, self.polygons),
            "polygons": self.polygons,
        }


def shares(ids: Int32Array, mask: BoolArray) -> Float64Array:
    """Share of each numbered object of (H, W), in the order of the numbers that occur, that lies on a mask (H, W)."""
    whole = np.bincount(ids.ravel())
    inside = np.bincount(ids.ravel(), weights=mask.ravel(), minlength=len(whole))
    present = np.flatnonzero(whole[1:]) + 1
    share: Float64Array = inside[present] / whole[present]
    return share


def stated(answer: Answer, truth: Int32Array) -> list[tuple[float, bool]]:
    """Confidence of each polygon that has one, and whether at least half of it is landslide."""
    if answer.confidence is None:
        return []
    numbers, right = judged(answer.ids, truth)
    said = answer.confidence[numbers - 1]
    return [(round(float(c), 6), bool(r)) for c, r in zip(said, right, strict=True) if np.isfinite(c)]


def judged(ids: Int32Array, truth: Int32Array) -> tuple[Int64Array, BoolArray]:
    """Numbers of the polygons that hold a pixel's centre, ascending, and whether half of each or more is landslide."""
    numbers = np.unique(ids[ids > 0]).astype(np.int64)
    return numbers, shares(ids, truth > 0) >= HALF


def false_alarms(answer: Answer) -> dict[str, float]:
    """Area and number of polygons in a scene without landslides, by its valid area."""
    km2 = np.count_nonzero(answer.valid) * answer.gsd**2 / 1e6
    predicted = np.count_nonzero((answer.ids > 0) & answer.valid) * answer.gsd**2
    return {"ha per km2": ratio(predicted / 1e4, km2), "polygons per km2": ratio(int(answer.ids.max()), km2)}

"""Prompts of the segmenter, one record per object.

Coordinates are pixels of the image at hand. A box ``(x0, y0, x1, y1)`` is half-open: it covers columns ``[x0, x1)`` and
rows ``[y0, y1)``. A point ``(x, y)`` is a pixel index: the centre of the pixel in column 3 is at ``x = 3``.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Self

import numpy as np

from geolabel.types import BoolArray, Float32Array, Float64Array, Int8Array, Int32Array, Int64Array

FOREGROUND, BACKGROUND, PADDING = 1, 0, -1
"""Labels of a point, as numbered by SAM; padding fills up objects with fewer points."""

CORNERS = (2, 3)
"""Labels of the first and the last pixel of a box given as two points."""

LOCALIZER, DRAWN, FRESH = 0, 1, 2
"""Origin of a prompt: the localizer; a person, in an earlier run; a person, since the file was written."""


@dataclass(frozen=True)
class Prompts:
    """K objects to segment. The box and the points of an object share a row, so they stay together."""

    boxes: Float64Array
    """(K, 4) x0, y0, x1, y1; NaN if the object has no box."""
    points: Float64Array
    """(K, P, 2) x, y."""
    labels: Int8Array
    """(K, P) 1 foreground, 0 background, -1 padding."""
    class_ids: Int32Array
    """(K,) index into the run's classes."""
    scores: Float32Array
    """(K,) 0..1, confidence of the source of the prompt."""
    ids: Int64Array
    """(K,) identity of the prompt, the same in every window."""
    origins: Int8Array
    """(K,) origin: `LOCALIZER`, `DRAWN` or `FRESH`."""

    def __post_init__(self) -> None:
        k = len(self.boxes)
        wrong = [f.name for f in fields(self) if len(getattr(self, f.name)) != k]
        if wrong or self.boxes.shape != (k, 4) or self.points.shape != (*self.labels.shape, 2):
            raise ValueError(f"{k} boxes do not match the shapes of {wrong or ['boxes', 'points', 'labels']}")
        if k and not (self.has_box | self.has_point).all():
            raise ValueError("an object without box and without point asks for nothing")

    @classmethod
    def build(
        cls,
        boxes: Float64Array | None = None,
        points: Float64Array | None = None,
        labels: Int8Array | None = None,
        class_ids: Int32Array | None = None,
        scores: Float32Array | None = None,
        ids: Int64Array | None = None,
        origins: Int8Array | None = None,
    ) -> Self:
        """Fill in defaults: no boxes, no points, foreground, class 0, score 1, ids 0, 1, ..., the localizer.

        `points` may be (K, 2): one for each object.
        """
        given = boxes if boxes is not None else points
        k = 0 if given is None else len(given)
        boxes = np.full((k, 4), np.nan) if boxes is None else np.asarray(boxes, float)
        points = np.zeros((k, 0, 2)) if points is None else np.asarray(points, float)
        if points.ndim == 2:
            points = points[:, None]
        if labels is None:
            labels = np.full(points.shape[:2], FOREGROUND, np.int8)
        return cls(
            boxes=boxes,
            points=points,
            labels=np.asarray(labels, np.int8),
            class_ids=np.zeros(k, np.int32) if class_ids is None else np.asarray(class_ids, np.int32),
            scores=np.ones(k, np.float32) if scores is None else np.asarray(scores, np.float32),
            ids=np.arange(k, dtype=np.int64) if ids is None else np.asarray(ids, np.int64),
            origins=np.zeros(k, np.int8) if origins is None else np.asarray(origins, np.int8),
        )

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, index: BoolArray | Int64Array | slice) -> Self:
        """Objects selected by mask, indices or slice."""
        return replace(self, **{f.name: getattr(self, f.name)[index] for f in fields(self)})

    @property
    def has_box(self) -> BoolArray:
        """(K,) whether an object has a box."""
        return np.logical_not(np.isnan(self.boxes).any(axis=1))

    @property
    def has_point(self) -> BoolArray:
        """(K,) whether an object has at least one point other than padding."""
        real: BoolArray = (self.labels != PADDING).any(axis=1)
        return real

    @property
    def drawn(self) -> BoolArray:
        """(K,) whether a person drew or changed it."""
        return np.asarray(self.origins != LOCALIZER)

    @property
    def extents(self) -> Float64Array:
        """(K, 4) the box of each object, or the bounding box of its points if it has none."""
        lacking = ~self.has_box
        if not lacking.any():
            return self.boxes
        used = (self.labels != PADDING)[..., None]
        low = np.where(used, self.points, np.inf).min(axis=1, initial=np.inf)
        high = np.where(used, self.points + 1, -np.inf).max(axis=1, initial=-np.inf)
        return np.where(lacking[:, None], np.concatenate([low, high], axis=1), self.boxes)

    def shift(self, dx: float, dy: float) -> Self:
        """Move every object by (dx, dy) pixels."""
        return replace(self, boxes=np.add(self.boxes, (dx, dy, dx, dy)), points=np.add(self.points, (dx, dy)))

    def only(self, kind: str) -> Self:
        """Keep ``box``, ``point`` or ``both``; an object that has only the other kind is unchanged."""
        if kind == "box":
            labels = np.where(self.has_box[:, None], np.int8(PADDING), self.labels)
            return replace(self, labels=labels)
        if kind == "point":
            return replace(self, boxes=np.where(self.has_point[:, None], np.nan, self.boxes))
        return self

    @classmethod
    def concatenate(cls, parts: list[Prompts]) -> Self:
        """Concatenate the objects of `parts`; ids are kept."""
        width = max((p.points.shape[1] for p in parts), default=0)
        padded = [p._padded(width) for p in parts] or [cls.build()]
        return cls(**{f.name: np.concatenate([getattr(p, f.name) for p in padded]) for f in fields(cls)})

    def _padded(self, width: int) -> Prompts:
        extra = width - self.points.shape[1]
        return replace(
            self,
            points=np.pad(self.points, ((0, 0), (0, extra), (0, 0))),
            labels=np.pad(self.labels, ((0, 0), (0, extra)), constant_values=PADDING),
        )

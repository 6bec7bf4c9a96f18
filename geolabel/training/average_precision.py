"""Average precision of instances, as defined by COCO and computed by pycocotools.

A found object is correct if its IoU with a true object of its class, not matched by one with a higher score, reaches a
threshold. AP is the mean over thresholds from 0.50 to 0.95 and over classes; S, M and L are objects of less than 32^2,
of up to 96^2, and of more pixels. At most 100 objects per image are counted, those with the highest scores.
"""

from __future__ import annotations

import io
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pycocotools import mask as run_length
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from geolabel.labels import Instances
from geolabel.types import BoolArray, Float32Array, Int32Array

NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl")


@dataclass(frozen=True)
class ScoredMasks:
    """N objects found in an image by a network or a method. They may overlap."""

    masks: BoolArray
    """(N, H, W)"""
    class_ids: Int32Array
    """(N,) from 1"""
    scores: Float32Array
    """(N,) 0..1"""

    @classmethod
    def of(cls, objects: Instances) -> ScoredMasks:
        """The objects of a label map, with their confidence as score."""
        masks = (
            np.stack([objects.mask(k) for k in range(len(objects))])
            if len(objects)
            else (np.zeros((0, *objects.ids.shape), bool))
        )
        return cls(masks, objects.class_ids, objects.scores)


@dataclass
class AveragePrecision:
    """Accumulates images one by one. Memory grows only with the run lengths of masks."""

    classes: int
    """Number of classes, without background."""
    sizes: list[tuple[int, int]] = field(default_factory=list)
    """Height and width of each image."""
    truth: list[dict[str, Any]] = field(default_factory=list)
    found: list[dict[str, Any]] = field(default_factory=list)

    def add(self, truth: Instances, found: ScoredMasks) -> None:
        """Add an image."""
        self.sizes.append((truth.ids.shape[0], truth.ids.shape[1]))
        true = ScoredMasks.of(truth)
        for mask, class_id in zip(true.masks, true.class_ids.tolist(), strict=True):
            if not mask.any():
                continue  # hidden by other objects
            number = len(self.truth) + 1
            self.truth.append(self._record(mask, class_id) | {"id": number, "area": int(mask.sum()), "iscrowd": 0})
        for mask, class_id, score in zip(found.masks, found.class_ids.tolist(), found.scores.tolist(), strict=True):
            if mask.any():
                self.found.append(self._record(mask, class_id) | {"score": score})

    def _record(self, mask: BoolArray, class_id: int) -> dict[str, Any]:
        encoded = run_length.encode(np.asfortranarray(mask, np.uint8))
        return {"image_id": len(self.sizes), "category_id": class_id, "segmentation": encoded}

    def figures(self) -> dict[str, float]:
        """The six figures, 0..1; NaN if there are no true objects of that size."""
        if not self.truth:
            return dict.fromkeys(NAMES, float("nan"))
        if not self.found:
            return self._none_found()
        with redirect_stdout(io.StringIO()):  # pycocotools prints its progress
            whole = COCO()
            whole.dataset = {
                "info": {},
                "images": [{"id": k, "height": h, "width": w} for k, (h, w) in enumerate(self.sizes, 1)],
                "categories": [{"id": number, "name": str(number)} for number in range(1, self.classes + 1)],
                "annotations": self.truth,
            }
            whole.createIndex()
            counted = COCOeval(whole, whole.loadRes(self.found), "segm")
            counted.evaluate()
            counted.accumulate()
            counted.summarize()
        return {name: float(v) if v >= 0 else float("nan") for name, v in zip(NAMES, counted.stats, strict=False)}

    def _none_found(self) -> dict[str, float]:
        areas = np.asarray([record["area"] for record in self.truth])
        sizes = {"APs": areas < 32**2, "APm": (areas >= 32**2) & (areas <= 96**2), "APl": areas > 96**2}
        return {name: 0.0 if sizes.get(name, areas).any() else float("nan") for name in NAMES}

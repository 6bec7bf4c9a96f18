"""Training a detector: Mask R-CNN on instances, whether of pseudo-labels or outlined by hand.

DiffuPrompter's evaluation (its section 3): a detector learns from pseudo-labels, is tuned further on a share of real
masks, and its average precision on other real masks says what the pseudo-labels are worth.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from geolabel.datasets.examples import Examples, Outlined
from geolabel.labels import Instances
from geolabel.training.crops import Cropping, epoch_indices, take_crop
from geolabel.training.precision import Found, Precision
from geolabel.types import Int32Array, UInt8Array

MOST = 64
"""Objects of a crop that are learned from; the largest where there are more."""

LEAST = 9
"""Pixels that are left of an object in a crop for it to be learned from."""


class DetectorLosses(nn.Module):
    """A detector as the fit loop calls it: tensors of one shape in, losses by name out."""

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, images: Tensor, ids: Tensor, class_ids: Tensor) -> dict[str, Tensor]:
        """Losses of a batch.

        Parameters
        ----------
        images : (B, 3, S, S) uint8
        ids : (B, S, S)
            Number of the object of a pixel, from 1; 0 where there is none.
        class_ids : (B, K)
            Of the objects; 0 where there are fewer.
        """
        targets = [_target(*pair) for pair in zip(ids, class_ids, strict=True)]
        losses: dict[str, Tensor] = self.detector(list(images.float() / 255), targets)
        return losses


def _target(ids: Tensor, class_ids: Tensor) -> dict[str, Tensor]:
    labels = class_ids[class_ids > 0].long()
    masks = ids[None] == torch.arange(1, len(labels) + 1, device=ids.device)[:, None, None]
    boxes: list[Tensor] = []
    for mask in masks:
        rows, cols = (torch.nonzero(mask.any(dim=axis))[:, 0] for axis in (1, 0))
        boxes.append(torch.stack([cols[0], rows[0], cols[-1] + 1, rows[-1] + 1]).float())
    return {
        "boxes": torch.stack(boxes) if boxes else torch.zeros((0, 4), device=ids.device),
        "labels": labels,
        "masks": masks.to(torch.uint8),
    }


@dataclass(frozen=True)
class DetectorObjective:
    """What the fit loop trains: a detector on crops, judged by its AP on whole images."""

    module: DetectorLosses
    learn: Examples[Outlined]
    select: Examples[Outlined]
    cropping: Cropping
    batch_size: int
    seed: int = 0

    def batch(self, step: int) -> dict[str, Tensor]:
        """Crops of one step."""
        rng = np.random.default_rng([self.seed, 4, step])
        chosen = epoch_indices(len(self.learn), self.batch_size, step, self.seed)
        crops = [crop_objects(*self.learn[int(index)], self.cropping, rng) for index in chosen]
        images, ids, class_ids = (np.stack(parts) for parts in zip(*crops, strict=True))
        return {
            "images": torch.from_numpy(images).permute(0, 3, 1, 2),
            "ids": torch.from_numpy(ids),
            "class_ids": torch.from_numpy(class_ids),
        }

    def figures(self, module: nn.Module) -> dict[str, float]:
        """AP on the images that are kept to select by."""
        figures = judge(module.detector, self.select)  # type: ignore[arg-type]
        return {"score": float(np.nan_to_num(figures["AP"])), **figures}


def crop_objects(
    image: UInt8Array, objects: Instances, cropping: Cropping, rng: np.random.Generator
) -> tuple[UInt8Array, Int32Array, Int32Array]:
    """Cut, turn and recolour part of an image; what is smaller than a crop is padded, and the padding holds no object.

    Returns
    -------
    image (S, S, 3), ids (S, S) from 1, classes (`MOST`,) with 0 where there are fewer objects
    """
    short = [(0, max(0, cropping.size - side)) for side in image.shape[:2]]
    padded = np.pad(image, (*short, (0, 0)), constant_values=127)
    crop = take_crop(padded, cropping, rng, np.pad(objects.ids, short))
    assert crop.layer is not None
    areas = np.bincount(crop.layer.ravel(), minlength=len(objects) + 1)[1:]
    kept = np.argsort(-areas, kind="stable")[:MOST]
    kept = np.sort(kept[areas[kept] >= LEAST])
    numbers = np.zeros(len(objects) + 1, np.int32)
    numbers[kept + 1] = np.arange(1, len(kept) + 1)
    class_ids = np.zeros(MOST, np.int32)
    class_ids[: len(kept)] = objects.class_ids[kept]
    return crop.rgb, numbers[crop.layer], class_ids


def judge(detector: nn.Module, examples: Examples[Outlined]) -> dict[str, float]:
    """Average precision of a detector on images, which it sees as a whole."""
    counted = Precision(len(examples.classes))
    for index in range(len(examples)):
        image, truth = examples[index]
        counted.add(truth, detect(detector, image))
    return counted.figures()


def detect(detector: nn.Module, image: UInt8Array) -> Found:
    """Objects that a detector sees in an image (H, W, 3)."""
    device = next(detector.parameters()).device
    pixels = torch.from_numpy(np.ascontiguousarray(np.moveaxis(image, 2, 0))).to(device).float() / 255
    was_training = detector.training
    with torch.inference_mode():
        answer: dict[str, Any] = detector.eval()([pixels])[0]
    detector.train(was_training)
    return Found(
        (answer["masks"][:, 0] > 0.5).cpu().numpy(),
        answer["labels"].cpu().numpy().astype(np.int32),
        answer["scores"].cpu().numpy(),
    )

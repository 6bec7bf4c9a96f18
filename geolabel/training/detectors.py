"""Detectors: Mask R-CNN trained on instances, from pseudo-labels or outlined by a person.

DiffuPrompter's evaluation (its section 3): a detector is trained on pseudo-labels, fine-tuned on a share of real masks,
and its average precision on other real masks measures the quality of the pseudo-labels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from geolabel.datasets.examples import Examples, Outlined, Subset
from geolabel.datasets.instances import read_instances
from geolabel.labels import Instances
from geolabel.models.checkpoint import NetworkInfo
from geolabel.models.nets import build
from geolabel.training.average_precision import AveragePrecision, ScoredMasks
from geolabel.training.first_weights import Share, load_share
from geolabel.training.presets import DETECTORS, DetectorPreset
from geolabel.training.samples import Cropping, epoch_indices, take_crop
from geolabel.training.train import (
    Figures,
    Training,
    TrainingRequest,
    check_same_classes,
    gsd_range,
    share_of,
    sources_of,
    split,
)
from geolabel.types import Int32Array, UInt8Array

FILE = "detector.safetensors"

Objects = Examples[Outlined]
"""Images with their objects."""

MAX_OBJECTS = 64
"""Maximum objects of a crop in training; the largest are kept."""

_MIN_PIXELS = 9
"""Minimum pixels of an object in a crop for training."""


@dataclass(frozen=True)
class DetectorRequest(TrainingRequest[Objects, DetectorPreset]):
    """Request for a training of a detector; figures are AP, AP50, AP75, APs, APm and APl.

    See `geolabel.datasets.instances.read_instances` for the data.
    """

    file = FILE

    preset: Literal["cpu", "paper"] = "cpu"
    init: tuple[Share, str | Path] | None = None
    """First weights: the share of the network, and the detector's file that they come from."""
    share: float = 1.0
    """Share of the images used in training."""

    @property
    def numbers(self) -> DetectorPreset:
        """The preset with the requested changes."""
        return self.applied_to(DETECTORS[self.preset])

    def prepare(
        self,
        data: str | Path | Objects,
        numbers: DetectorPreset,
        test: str | Path | Objects | None,
    ) -> Training:
        """Read and check the images, and build the network with its first weights."""
        examples, tested = _opened(data), None if test is None else _opened(test)
        asked = Subset(examples, share_of(examples.names, self.share))
        learn, select = (Subset(asked, part) for part in split(asked.names))
        if tested is not None:
            check_same_classes(examples.classes, tested.classes)
        torch.manual_seed(self.seed)
        architecture = {"name": "maskrcnn", "classes": len(examples.classes), **numbers.architecture}
        network = build(architecture)
        pretrained: dict[str, Any] = {}
        if self.init is not None:
            pretrained = load_share(network, architecture, examples.classes, *self.init, "detector")
        batch = min(numbers.batch, len(learn))
        steps = max(2, math.ceil((self.epochs or numbers.epochs) * len(learn) / batch))

        def describe(_: nn.Module, figures: Figures, of_test: Figures) -> NetworkInfo:
            known = {name: value for name, value in (figures | of_test).items() if not math.isnan(value)}
            trained = {"preset": self.preset, "seed": self.seed, "share": self.share, "images": len(learn)}
            return NetworkInfo(
                kind="detector",
                architecture=architecture,
                classes=tuple(examples.classes),
                window=numbers.cropping.size,
                stride=1,
                gsd_range=gsd_range(self.gsd, numbers.cropping),
                mean=(0.0,) * 3,
                std=(255.0,) * 3,
                trained=trained | {"figures": known} | pretrained,
            )

        return Training(
            network=lambda _: network,
            objective=lambda *_: _DetectorObjective(
                DetectorLosses(network), learn, select, numbers.cropping, batch, self.seed
            ),
            schedule=numbers.schedule.lasting(steps, self.minutes),
            inputs=sources_of(examples),
            describe=describe,
            test=None if tested is None else lambda: evaluate(network, tested),
        )


def _opened(data: str | Path | Objects) -> Objects:
    return read_instances(data) if isinstance(data, str | Path) else data


# --- objective -------------------------------------------------------------------------------------------------------


class DetectorLosses(nn.Module):
    """A detector with the interface of the fit loop: tensors of fixed shape in, losses by name out."""

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, images: Tensor, ids: Tensor, class_ids: Tensor) -> dict[str, Tensor]:
        """Losses of a batch.

        Parameters
        ----------
        images : (B, 3, S, S) uint8
        ids : (B, S, S)
            Number of the object of a pixel, from 1; 0 if none.
        class_ids : (B, K)
            Classes of the objects; padded with 0.
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
class _DetectorObjective:
    """Training objective: a detector on crops, evaluated by its AP on whole images."""

    module: DetectorLosses
    learn: Objects
    select: Objects
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
        """AP on the images held out for selection."""
        figures = evaluate(module.detector, self.select)  # type: ignore[arg-type]
        return {"score": float(np.nan_to_num(figures["AP"])), **figures}


def crop_objects(
    image: UInt8Array, objects: Instances, cropping: Cropping, rng: np.random.Generator
) -> tuple[UInt8Array, Int32Array, Int32Array]:
    """Crop, turn and recolour part of an image; small images are padded, without objects in the padding.

    Returns
    -------
    image (S, S, 3), ids (S, S) from 1, classes (`MAX_OBJECTS`,) padded with 0
    """
    short = [(0, max(0, cropping.size - side)) for side in image.shape[:2]]
    padded = np.pad(image, (*short, (0, 0)), constant_values=127)
    crop = take_crop(padded, cropping, rng, np.pad(objects.ids, short))
    assert crop.layer is not None
    areas = np.bincount(crop.layer.ravel(), minlength=len(objects) + 1)[1:]
    kept = np.argsort(-areas, kind="stable")[:MAX_OBJECTS]
    kept = np.sort(kept[areas[kept] >= _MIN_PIXELS])
    numbers = np.zeros(len(objects) + 1, np.int32)
    numbers[kept + 1] = np.arange(1, len(kept) + 1)
    class_ids = np.zeros(MAX_OBJECTS, np.int32)
    class_ids[: len(kept)] = objects.class_ids[kept]
    return crop.rgb, numbers[crop.layer], class_ids


def evaluate(detector: nn.Module, examples: Objects) -> dict[str, float]:
    """Average precision of a detector on whole images."""
    counted = AveragePrecision(len(examples.classes))
    for index in range(len(examples)):
        image, truth = examples[index]
        counted.add(truth, detect(detector, image))
    return counted.figures()


def detect(detector: nn.Module, image: UInt8Array) -> ScoredMasks:
    """Objects that a detector finds in an image (H, W, 3)."""
    device = next(detector.parameters()).device
    pixels = torch.from_numpy(np.ascontiguousarray(np.moveaxis(image, 2, 0))).to(device).float() / 255
    was_training = detector.training
    with torch.inference_mode():
        answer: dict[str, Any] = detector.eval()([pixels])[0]
    detector.train(was_training)
    return ScoredMasks(
        (answer["masks"][:, 0] > 0.5).cpu().numpy(),
        answer["labels"].cpu().numpy().astype(np.int32),
        answer["scores"].cpu().numpy(),
    )

"""Train a detector on instances, go on with one on a share of others, and measure it: DiffuPrompter's evaluation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from geolabel.datasets.examples import Examples, Outlined, Subset
from geolabel.datasets.instances import read_instances
from geolabel.engine import worker
from geolabel.extraction.request import Networks
from geolabel.labels import Instances
from geolabel.models.checkpoint import NetworkInfo, save_checkpoint
from geolabel.models.nets import build
from geolabel.models.nets.initial import Share
from geolabel.training.average_precision import Found, Precision
from geolabel.training.fit import Schedule, fit
from geolabel.training.presets import TrainingPreset
from geolabel.training.samples import Cropping, epoch_indices, take_crop
from geolabel.training.train import (
    TrainingRequest,
    begin,
    check_same_classes,
    gsd_range,
    share_of,
    sources_of,
    split,
    training_folder,
)
from geolabel.types import Int32Array, UInt8Array

FILE = "detector.safetensors"

PresetName = Literal["cpu", "paper"]


@dataclass(frozen=True, kw_only=True)
class DetectorPreset(TrainingPreset):
    """Numbers of a training of a detector."""

    architecture: Mapping[str, Any]
    """What `geolabel.models.nets.build` makes it from, but for the classes."""
    rate: float
    """Highest learning rate."""


PRESETS: dict[PresetName, DetectorPreset] = {
    # The paper names Mask R-CNN and images of 512 px. Batch and epochs are those of the usual schedule from random
    # weights (He et al., 2019), the rate is AdamW's.
    "paper": DetectorPreset(
        architecture={"backbone": "resnet50"}, epochs=72, batch=16, cropping=Cropping(512, strength=0.0), rate=2e-4
    ),
    "cpu": DetectorPreset(
        architecture={"backbone": "resnet18", "anchors": [16, 32, 64, 128, 256], "sampled": 64},
        epochs=12,
        batch=4,
        cropping=Cropping(192, strength=0.35),
        rate=3e-4,
    ),
}


@dataclass(frozen=True)
class DetectorRequest(TrainingRequest):
    """What a user asks of a training of a detector."""

    preset: PresetName = "cpu"
    init: tuple[Share, str | Path] | None = None
    """First weights: which share of the network, and the detector's file that they come from."""
    share: float = 1.0
    """Part of the images that are learned from."""

    @property
    def numbers(self) -> DetectorPreset:
        """The preset with what was asked for."""
        return self.applied_to(PRESETS[self.preset])


def train_detector(
    examples: str | Path | Examples[Outlined],
    out: Path,
    request: DetectorRequest | None = None,
    *,
    test: str | Path | Examples[Outlined] | None = None,
    networks: Networks | None = None,
    preset: DetectorPreset | None = None,
    class_name: str = "landslide",
    overwrite: bool = False,
    resume: bool = False,
) -> dict[str, float]:
    """Train a detector.

    One image in five, by its name, is kept to select the weights by.

    Parameters
    ----------
    examples, test
        See `geolabel.datasets.instances.read_instances`; `test` is what is reported on instead of the kept images.
    out
        Folder that gets `FILE`, the curves, and the state that a stopped training goes on from.
    preset
        Numbers instead of those of the request.
    overwrite
        Whether what an earlier training left in `out` may be replaced; it stands until this one has ended.
    resume
        Go on from where a stopped training in `out` was saved.

    Returns
    -------
    AP, AP50, AP75, APs, APm, APl, and how many steps were taken

    Raises
    ------
    ChipError
        If the images cannot be read, or are of other classes than those of the test.
    WeightsError, OptionError
        If the file of the first weights cannot be read, or holds another network.
    OutputError
        If the folder cannot be written to.
    """
    request, networks = request or DetectorRequest(), networks or Networks()
    numbers = preset or request.numbers
    known = _opened(examples, class_name)
    asked = Subset(known, share_of(known.names, request.share))
    learn, select = (Subset(asked, part) for part in split(asked.names))
    held = None if test is None else _opened(test, class_name)
    if held is not None:
        check_same_classes(known.classes, held.classes)
    torch.manual_seed(request.seed)
    architecture = {"name": "maskrcnn", "classes": len(known.classes), **numbers.architecture}
    detector = build(architecture)
    begun = {} if request.init is None else begin(detector, architecture, known.classes, *request.init, "detector")
    objective = DetectorObjective(
        DetectorLosses(detector), learn, select, numbers.cropping, min(numbers.batch, len(learn)), request.seed
    )
    steps = math.ceil((request.epochs or numbers.epochs) * len(learn) / objective.batch_size)
    schedule = Schedule((max(2, steps),), numbers.rate, minutes=request.minutes or math.inf)
    device, precision = worker.device_and_precision(networks.device, networks.precision)
    with training_folder(out, FILE, overwrite=overwrite, resume=resume, inputs=sources_of(known)) as folder:
        figures = fit(objective, schedule, folder, device=device, precision=precision, resume=resume)
        if held is not None:
            figures |= judge(detector, held)
        told = {name: value for name, value in figures.items() if not math.isnan(value)}
        trained = {"preset": request.preset, "seed": request.seed, "share": request.share, "images": len(learn)}
        info = NetworkInfo(
            kind="detector",
            architecture=architecture,
            classes=tuple(known.classes),
            window=numbers.cropping.size,
            stride=1,
            gsd_range=gsd_range(request.gsd, numbers.cropping),
            mean=(0.0,) * 3,
            std=(255.0,) * 3,
            trained=trained | {"figures": told} | begun,
        )
        save_checkpoint(folder / FILE, detector, info)
    return figures


def _opened(examples: str | Path | Examples[Outlined], class_name: str) -> Examples[Outlined]:
    return read_instances(examples, class_name=class_name) if isinstance(examples, str | Path) else examples


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

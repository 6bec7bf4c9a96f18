"""Train a detector on instances, go on with one on a share of others, and measure it: DiffuPrompter's evaluation."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from geolabel.chips import is_held_out
from geolabel.datasets.instances import read_instances
from geolabel.errors import ChipError, OptionError, WeightsError
from geolabel.networks import build
from geolabel.networks.checkpoint import NetworkInfo, load_checkpoint, save_checkpoint
from geolabel.run import worker
from geolabel.run.request import Networks
from geolabel.trainers.crops import Cropping
from geolabel.trainers.fit import Schedule, fit
from geolabel.trainers.instances import DetectorLosses, DetectorObjective, Examples, Some, judge

FILE = "detector.safetensors"

PresetName = Literal["cpu", "paper"]


@dataclass(frozen=True)
class DetectorPreset:
    """Numbers of a training of a detector."""

    architecture: Mapping[str, Any]
    """What `geolabel.networks.build` makes it from, but for the classes."""
    epochs: int
    batch: int
    cropping: Cropping
    rate: float


PRESETS: dict[PresetName, DetectorPreset] = {
    # The paper names Mask R-CNN and images of 512 px. Batch and epochs are those of the usual schedule from random
    # weights (He et al., 2019), the rate is AdamW's.
    "paper": DetectorPreset({"backbone": "resnet50"}, 72, 16, Cropping(512, strength=0.0), rate=2e-4),
    "cpu": DetectorPreset(
        {"backbone": "resnet18", "anchors": [16, 32, 64, 128, 256], "sampled": 64},
        12,
        4,
        Cropping(192, strength=0.35),
        rate=3e-4,
    ),
}


@dataclass(frozen=True)
class DetectorRequest:
    """What a user asks of a training; None leaves a number to the preset.

    Raises
    ------
    OptionError
        If a number cannot be.
    """

    preset: PresetName = "cpu"
    epochs: float | None = None
    minutes: float | None = None
    """Wall clock limit; the weights then depend on the machine."""
    size: int | None = None
    batch: int | None = None
    seed: int = 0
    start: Path | None = None
    """A detector to go on from."""
    share: float = 1.0
    """Of the images; which ones depends on their names alone, and less are among more."""

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise OptionError(f"share {self.share}: it has to lie above 0, up to 1")
        if self.size is not None and self.size % 32:
            raise OptionError(f"crops of {self.size} px: give a multiple of 32 px")

    @property
    def numbers(self) -> DetectorPreset:
        """The preset with what was asked for."""
        preset = PRESETS[self.preset]
        cropping = replace(preset.cropping, size=self.size or preset.cropping.size)
        return replace(preset, cropping=cropping, batch=self.batch or preset.batch)


def train_detector(
    examples: str | Path | Examples,
    out: Path,
    request: DetectorRequest | None = None,
    *,
    test: str | Path | Examples | None = None,
    networks: Networks | None = None,
    preset: DetectorPreset | None = None,
    class_name: str = "landslide",
    resume: bool = False,
) -> dict[str, float]:
    """Train a detector.

    One image in five, by its name, is kept to select the weights by.

    Parameters
    ----------
    examples, test
        See `geolabel.datasets.instances.read_instances`; `test` is what is reported on in place of the kept images.
    out
        Folder that gets `FILE`, the curves, and the state that a stopped training goes on from.
    preset
        Numbers in place of those of the request.

    Returns
    -------
    AP, AP50, AP75, APs, APm, APl, and how many steps were taken

    Raises
    ------
    ChipError
        If the images cannot be read, or are of other classes than those of the detector to go on from.
    WeightsError
        If that is no detector.
    """
    request, networks = request or DetectorRequest(), networks or Networks()
    numbers = preset or request.numbers
    learn, select = _split(_some(_opened(examples, class_name), request.share))
    held = None if test is None else _opened(test, class_name)
    torch.manual_seed(request.seed)
    architecture, detector = _detector(request, numbers, learn.classes)
    if held is not None and tuple(held.classes) != tuple(learn.classes):
        raise ChipError(f"the test shows {', '.join(held.classes)}, the training {', '.join(learn.classes)}")
    objective = DetectorObjective(
        DetectorLosses(detector), learn, select, numbers.cropping, min(numbers.batch, len(learn.names)), request.seed
    )
    steps = math.ceil((request.epochs or numbers.epochs) * len(learn.names) / objective.batch_size)
    schedule = Schedule((max(2, steps),), numbers.rate, minutes=request.minutes or math.inf)
    device, precision = worker.device_and_precision(networks.device, networks.precision)
    figures = fit(objective, schedule, out, device=device, precision=precision, resume=resume)  # type: ignore[arg-type]
    if held is not None:
        figures |= judge(detector, held)
    known = {name: value for name, value in figures.items() if not math.isnan(value)}
    trained = {
        "preset": request.preset, "seed": request.seed, "share": request.share, "images": len(learn.names),
        "start": None if request.start is None else str(request.start), "figures": known,
    }  # fmt: skip
    size = numbers.cropping.size
    info = NetworkInfo(
        "detector", architecture, tuple(learn.classes), size, 1, (0.01, 1000.0), (0.0,) * 3, (255.0,) * 3
    )
    save_checkpoint(out / FILE, detector, replace(info, trained=trained))
    return figures


def _opened(examples: str | Path | Examples, class_name: str) -> Examples:
    return read_instances(examples, class_name=class_name) if isinstance(examples, str | Path) else examples


def _some(examples: Examples, share: float) -> Examples:
    def position(name: str) -> float:
        return int(hashlib.sha256(name.encode()).hexdigest(), 16) / 2.0**256

    if share == 1:
        return examples
    chosen = [k for k, name in enumerate(examples.names) if position(name) < share]
    if not chosen:
        raise ChipError(f"a share of {share} of {len(examples.names)} images holds none: give a larger one")
    return Some(examples, np.asarray(chosen, np.int64))


def _split(examples: Examples) -> tuple[Examples, Examples]:
    kept = np.asarray([is_held_out(name) for name in examples.names], bool)
    if kept.any() and not kept.all():
        return Some(examples, np.flatnonzero(~kept)), Some(examples, np.flatnonzero(kept))
    return examples, examples  # too few to keep some aside


def _detector(
    request: DetectorRequest, numbers: DetectorPreset, classes: tuple[str, ...]
) -> tuple[dict[str, Any], torch.nn.Module]:
    if request.start is None:
        architecture = {"name": "maskrcnn", "classes": len(classes), **numbers.architecture}
        return architecture, build(architecture)
    state, info = load_checkpoint(request.start)
    if info.kind != "detector":
        raise WeightsError(f"{request.start} holds a {info.kind}: give a detector of geolabel train student")
    if info.classes != tuple(classes):
        raise ChipError(f"{request.start} knows {', '.join(info.classes)}, the images show {', '.join(classes)}")
    detector = build(info.architecture)
    detector.load_state_dict(state)
    return info.architecture, detector

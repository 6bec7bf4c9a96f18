"""Train a student on label maps: from a folder of pseudo-labels, or of masks, to a file that extract runs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from geolabel.datasets.painted import PaintedChips, read_painted
from geolabel.datasets.pseudo_labels import PseudoLabels
from geolabel.engine import worker
from geolabel.errors import ChipError, OptionError
from geolabel.extraction.request import Networks
from geolabel.models.checkpoint import NetworkInfo, save_checkpoint
from geolabel.models.nets import build
from geolabel.models.nets.initial import Share
from geolabel.training.bundled import norm_of
from geolabel.training.crops import Cropping
from geolabel.training.fit import fit
from geolabel.training.presets import TrainingPreset
from geolabel.training.schedules import Falling
from geolabel.training.setup import (
    TrainingRequest,
    begin,
    begin_with_imagenet,
    begin_with_trunk,
    check_same_classes,
    gsd_range,
    share_of,
    sources_of,
    split,
    training_folder,
)
from geolabel.training.student_objective import PaintedExamples, PaintedSubset, StudentLosses, StudentObjective, judge
from geolabel.training.weak import Learning

FILE = "student.safetensors"

PresetName = Literal["cpu", "paper"]


@dataclass(frozen=True, kw_only=True)
class StudentPreset(TrainingPreset):
    """Numbers of a training of a student."""

    architectures: Mapping[str, Mapping[str, Any]]
    """By the name that ``--model`` takes: what `networks.build` makes the network from, but for the classes."""
    schedule: Mapping[str, Any]
    """Of `Falling`, but for the number of steps."""
    overlap: float = 0.0
    """Weight of `overlap_loss` beside the cross-entropy."""
    shown: float = 0.0
    """See `StudentObjective`."""


BUNDLED = "bundled"
"""The model that begins with the trunk of the bundled localizer."""

IMAGENET = "imagenet"
"""The model that begins with a trunk that has learned to see from photographs."""

_TRUNK = {"name": "resunet", "widths": [40, 80, 144, 192], "depths": [2, 2, 2, 2]}
"""Of the bundled localizer."""

_LITE = {"name": "resunet", "trunk": "lite0"}


def _smp(model: str, encoder: str) -> dict[str, Any]:
    return {"name": "smp", "model": model, "encoder": encoder}


PRESETS: dict[PresetName, StudentPreset] = {
    # APSAM's released code: no colours changed, 24 chips of 256 px, 100 epochs, and a rate that falls when the loss
    # stands still; here it falls at a third and two thirds, so that a training's length is known.
    "paper": StudentPreset(
        architectures={
            "resunet": {"name": "resunet", "widths": [32, 64, 128, 256, 512]},
            "unet": _smp("unet", "resnet34"),
            "deeplabv3plus": _smp("deeplabv3plus", "resnet50"),
            "segformer": _smp("segformer", "mit_b2"),
            BUNDLED: _TRUNK,
            IMAGENET: _LITE,
        },
        epochs=100,
        batch=24,
        cropping=Cropping(256, strength=0.0),
        schedule={"kind": "sgd", "rate": 0.01, "momentum": 0.9, "decay": 5e-4, "fall": "step", "average": 0.0},
    ),
    "cpu": StudentPreset(
        architectures={
            "resunet": {"name": "resunet", "widths": [16, 32, 64, 128]},
            "unet": _smp("unet", "resnet18"),
            "deeplabv3plus": _smp("deeplabv3plus", "resnet18"),
            "segformer": _smp("segformer", "mit_b0"),
            BUNDLED: _TRUNK,
            IMAGENET: _LITE,
        },
        epochs=14,
        batch=12,
        cropping=Cropping(160, (0.25, 0.6), strength=0.4),
        schedule={"kind": "adamw", "fall": "cosine", "rate": 2e-3, "decay": 0.02, "average": 0.995},
        overlap=1.0,
        shown=0.5,
    ),
}

MODELS = tuple(PRESETS["paper"].architectures)


@dataclass(frozen=True)
class StudentRequest(TrainingRequest):
    """What a user asks of a training of a student."""

    model: str = "resunet"
    preset: PresetName = "cpu"
    steps: int | None = None
    """In place of epochs, however many images there are."""
    init: tuple[Share, str | Path] | None = None
    """First weights: which share of the network, and the student's file that they come from."""
    share: float = 1.0
    """Part of the images that are learned from."""
    plain: bool = False
    """Cross-entropy of crops anywhere in all images alike, whatever the preset has besides."""

    @property
    def numbers(self) -> StudentPreset:
        """The preset with what was asked for."""
        numbers = self.applied_to(PRESETS[self.preset])
        if numbers.batch < 2:
            raise OptionError("one crop a step: a network that normalises over its batch needs two at least")
        return replace(numbers, overlap=0.0, shown=0.0) if self.plain else numbers


def train_student(
    examples: str | Path | PaintedExamples,
    out: str | Path,
    request: StudentRequest | None = None,
    *,
    test: PaintedExamples | None = None,
    networks: Networks | None = None,
    preset: StudentPreset | None = None,
    overwrite: bool = False,
    resume: bool = False,
) -> dict[str, float]:
    """Train a student on label maps.

    One image in five, by its name, is kept to select the weights by; where the label maps are pseudo-labels, so are
    those of these images.

    Parameters
    ----------
    examples
        See `geolabel.datasets.painted.read_painted`.
    test
        What is reported on besides the kept images.
    out
        Folder that gets `FILE`, the curves, and the state that a stopped training goes on from.
    networks
        Where the training runs.
    preset
        Numbers instead of those of the request.
    overwrite
        Whether what an earlier training left in `out` may be replaced; it stands until this one has ended.
    resume
        Go on from where a stopped training in `out` was saved.

    Returns
    -------
    figures of the weights kept; with a test, how well they agree with its masks

    Raises
    ------
    ChipError
        If the label maps cannot be read, know or show nothing but one class, or know others than the test.
    TrainingError
        If the loss is no number.
    WeightsError, OptionError
        If the file of the first weights cannot be read, or holds another network.
    OutputError
        If the folder cannot be written to.
    """
    request, networks, out = request or StudentRequest(), networks or Networks(), Path(out)
    numbers = preset or request.numbers
    examples = read_painted(examples) if isinstance(examples, str | Path) else examples
    _check_teach(examples)
    if test is not None:
        check_same_classes(examples.classes, test.classes)
    asked = PaintedSubset(examples, share_of(examples.names, request.share))
    learn, select = (PaintedSubset(asked, part) for part in split(asked.names))
    torch.manual_seed(request.seed)
    architecture = {**numbers.architectures[request.model], "classes": len(examples.classes)}
    network = build(architecture)
    begun: dict[str, Any] = {}
    if request.init is not None:
        begun = begin(network, architecture, tuple(examples.classes), *request.init)
    elif request.model == BUNDLED:
        begun = begin_with_trunk(network)
    elif request.model == IMAGENET:
        begun = begin_with_imagenet(network, _LITE["trunk"])
    learning = Learning(
        numbers.cropping, max(2, min(numbers.batch, len(learn))), *norm_of(architecture), seed=request.seed
    )
    losses = StudentLosses(network, learn.names, numbers.overlap)
    objective = StudentObjective(losses, learn, select, learning, numbers.shown)
    steps = request.steps or request.steps_of(numbers, learning.epoch_steps(len(learn)))
    schedule = Falling(cycles=(steps,), minutes=request.minutes or math.inf, **numbers.schedule)
    device, precision = worker.device_and_precision(networks.device, networks.precision)
    with training_folder(out, FILE, overwrite=overwrite, resume=resume, inputs=sources_of(examples)) as folder:
        figures = fit(objective, schedule, folder, device=device, precision=precision, resume=resume)
        trained = {"model": request.model, "preset": request.preset, "seed": request.seed, "images": len(learn)}
        trained["share"] = request.share
        trained |= {"steps": int(figures["steps"]), "zooms": list(numbers.cropping.zooms), "selection": figures}
        trained["labels"] = _origin(examples)
        trained |= begun
        info = _describe(architecture, examples, request, numbers.cropping)
        save_checkpoint(folder / FILE, network, replace(info, trained=trained))
    return figures if test is None else figures | judge(network, test, learning)


def _check_teach(examples: PaintedExamples) -> None:
    """Refuse label maps that nothing can be learned from."""
    if len(examples.classes) < 2 or not len(examples):
        raise ChipError(
            f"{len(examples)} images of {len(examples.classes)} class: a student needs some of two at least"
        )
    if not examples.shown.any():
        raise ChipError(
            f"none of {len(examples)} label maps shows anything but {examples.classes[0]}: nothing is there to "
            "learn; add images that show a class"
        )


def _origin(examples: PaintedExamples) -> str:
    """Who made the label maps."""
    if isinstance(examples, PseudoLabels):
        return str(examples.provenance.get("method", "pseudo-labels"))
    return "masks"


def _describe(
    architecture: dict[str, Any], examples: PaintedExamples, request: StudentRequest, cropping: Cropping
) -> NetworkInfo:
    gsd = request.gsd
    if gsd is None and isinstance(examples, PseudoLabels):
        gsd = examples.provenance.get("images", {}).get("gsd_m")
    elif gsd is None and isinstance(examples, PaintedChips):
        gsd = examples.gsd
    mean, std = norm_of(architecture)
    return NetworkInfo(
        kind="student",
        architecture=architecture,
        classes=tuple(examples.classes),
        window=cropping.size,
        stride=1,
        gsd_range=gsd_range(gsd, cropping),
        mean=mean,
        std=std,
    )

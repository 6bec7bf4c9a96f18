"""Presets of trainings on chips: numbers of the papers, of their released code, and for a small machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

from geolabel.errors import OptionError
from geolabel.training.cism import CismTerms
from geolabel.training.fit import Schedule
from geolabel.training.s2c import S2cTerms
from geolabel.training.samples import Cropping

Method = Literal["cam", "s2c", "cism"]
PresetName = Literal["paper", "code", "cpu"]

BUNDLED = "bundled"
"""Student that starts with the trunk of the bundled localizer."""

IMAGENET = "imagenet"
"""Student that starts with a trunk pretrained on photographs."""


@dataclass(frozen=True, kw_only=True)
class TrainingPreset:
    """Numbers of any training on crops."""

    epochs: int
    """Number of epochs."""
    batch: int
    """Crops per step."""
    cropping: Cropping
    schedule: Schedule
    """Schedule without the number of steps."""


@dataclass(frozen=True, kw_only=True)
class LocalizerPreset(TrainingPreset):
    """Numbers of a training of a localizer."""

    backbone: str
    """Backbone for random first weights."""
    output_stride: int
    features: int | None
    """See `models.nets.classifier.Classifier`."""
    pretrained_rate: float | None = None
    """Learning rate for first weights that know the classes, instead of the schedule's; None for the same. Their map is
    already good, and fast training blurs it: the surroundings of a landslide predict the label of a chip as well."""
    pretrained_spread: float | None = None
    """Range of scaling around the zoom of such weights' own training; None for the usual zooms. They know the classes
    at that zoom: at half of it, the bundled network is half as good."""
    shipped_rate: float | None = None
    """Learning rate for the bundled trunk, instead of the schedule's; None for the same. The layers on top are new."""
    trunk_share: float = 1.0
    """Factor of that rate for the trunk itself. If it learned from image labels at the full rate, the maximum of the
    map was beside the landslide in most chips: docs/experiments.md."""
    s2c: S2cTerms
    cism: CismTerms
    points_per_side: int = 32
    """Points per side of the grid for S2C's segments."""
    labeler_threshold: float = 0.5
    """The tau of S2C's eq. 11."""
    frozen_norm: bool = False
    """Whether batch normalisation keeps pretrained statistics; not for random weights."""

    def for_pretrained(self, zoom: float) -> Self:
        """Return the numbers of a training whose first weights know the classes at a zoom."""
        schedule, cropping = self.schedule, self.cropping
        if self.pretrained_rate is not None:
            schedule = replace(schedule, rate=self.pretrained_rate)
        if self.pretrained_spread is not None:
            cropping = replace(cropping, zooms=(zoom / self.pretrained_spread, zoom * self.pretrained_spread))
        return replace(self, schedule=schedule, cropping=cropping)

    def for_shipped_trunk(self) -> Self:
        """Return the numbers of a training on the bundled trunk.

        The last weights are kept, as in the papers: image labels are predicted almost at once, while maps improve until
        the end, so the highest AUC does not select the best map (docs/experiments.md).
        """
        rate = self.schedule.rate if self.shipped_rate is None else self.shipped_rate
        return replace(self, schedule=replace(self.schedule, rate=rate, trunk=self.trunk_share, keeps_last=1))


@dataclass(frozen=True, kw_only=True)
class StudentPreset(TrainingPreset):
    """Numbers of a training of a student."""

    architectures: Mapping[str, Mapping[str, Any]]
    """Architectures by their name in ``--model``: input of `geolabel.models.nets.build`, without classes."""
    overlap: float = 0.0
    """Weight of `geolabel.training.students.overlap_loss` relative to the cross-entropy."""
    shown: float = 0.0
    """Share of the crops of a step that show a class; see `geolabel.training.students.StudentObjective`."""


@dataclass(frozen=True, kw_only=True)
class DetectorPreset(TrainingPreset):
    """Numbers of a training of a detector."""

    architecture: Mapping[str, Any]
    """Input of `geolabel.models.nets.build`, without classes."""


# --- localizers ------------------------------------------------------------------------------------------------------

_S2C, _CISM = S2cTerms(), CismTerms()
_SGD = Schedule(kind="sgd", rate=0.1, average=0.0)
_ADAMW = Schedule(kind="adamw", fall="poly", rate=5e-4, decay=0.02, average=0.99)

# APSAM states neither batch size, epochs nor crops: these are its tile size, and its released code's batch and epochs.
_CAM_PAPER = LocalizerPreset(
    backbone="resnet50",
    output_stride=16,
    features=None,
    epochs=15,
    batch=32,
    cropping=Cropping(256),
    schedule=replace(_SGD, rate=0.1, decay=1e-4, momentum=0.9, fall="step"),
    s2c=_S2C,
    cism=_CISM,
)

_S2C_PAPER = LocalizerPreset(
    backbone="wrn38",
    output_stride=8,
    features=256,
    epochs=6,
    batch=8,
    cropping=Cropping(256, (0.75, 1.5)),
    schedule=replace(_SGD, rate=0.02, decay=5e-4, momentum=0.9, fall="poly"),
    s2c=_S2C,
    cism=_CISM,
)

_CISM_PAPER = LocalizerPreset(
    backbone="resnet50",
    output_stride=16,
    features=None,
    epochs=20,
    batch=16,
    cropping=Cropping(512),
    schedule=Schedule(kind="adam", rate=0.01, decay=0.0, average=0.0, fall="poly"),
    s2c=_S2C,
    cism=_CISM,
)

# Half the scale and 160 px: a crop covers 230 to 450 px of a chip, at a quarter of the cost.
_CPU = LocalizerPreset(
    backbone="resnet18",
    output_stride=16,
    features=None,
    epochs=8,
    batch=16,
    cropping=Cropping(160, (0.35, 0.7)),
    schedule=_ADAMW,
    pretrained_rate=1e-4,
    pretrained_spread=1.4,
    shipped_rate=2e-3,
    trunk_share=0.01,
    s2c=replace(_S2C, pixels=4096, scales=(1.0,)),
    cism=_CISM,
    points_per_side=12,
)

LOCALIZERS: dict[tuple[Method, PresetName], LocalizerPreset] = {
    ("cam", "paper"): _CAM_PAPER,
    ("cam", "code"): replace(
        _CAM_PAPER,
        cropping=Cropping(256, strength=0.0),
        schedule=replace(_SGD, rate=0.1, decay=1e-4, momentum=1e-4, fall="poly"),
        frozen_norm=True,
    ),
    ("cam", "cpu"): _CPU,
    ("s2c", "paper"): _S2C_PAPER,
    ("s2c", "code"): replace(
        _S2C_PAPER,
        epochs=40,
        schedule=replace(_SGD, rate=0.02, decay=5e-4, momentum=5e-4, fall="poly"),
        s2c=replace(_S2C, temperature=1.0, prompted_from=2.0, by_logits=True, smallest=False),
        labeler_threshold=0.0,
        frozen_norm=True,
    ),
    ("s2c", "cpu"): replace(_CPU, output_stride=8),
    ("cism", "paper"): _CISM_PAPER,
    ("cism", "cpu"): _CPU,
}
"""``code`` changes numbers only. APSAM's code trains SIPE instead of the plain class activation that its paper
describes; that network is not part of geolabel. CISM has no released code."""


def preset_of(method: Method, name: PresetName) -> LocalizerPreset:
    """Return a preset by name.

    Raises
    ------
    OptionError
        If the method has no such preset.
    """
    if (method, name) not in LOCALIZERS:
        known = ", ".join(preset for of, preset in LOCALIZERS if of == method)
        raise OptionError(f"{method} has no preset {name!r}, since no code of it was released: it has {known}")
    return LOCALIZERS[method, name]


# --- students --------------------------------------------------------------------------------------------------------


def _smp(model: str, encoder: str) -> dict[str, Any]:
    return {"name": "smp", "model": model, "encoder": encoder}


LITE_STUDENT = {"name": "resunet", "trunk": "lite0"}
"""A ResUNet on the trunk of the bundled localizer: architecture of the students `BUNDLED` and `IMAGENET`."""


STUDENTS: dict[Literal["cpu", "paper"], StudentPreset] = {
    # APSAM's released code: no colour changes, 24 chips of 256 px, 100 epochs, and a rate that falls when the loss
    # stagnates; here it falls after one third and two thirds, so that the length of a training is fixed.
    "paper": StudentPreset(
        architectures={
            "resunet": {"name": "resunet", "widths": [32, 64, 128, 256, 512]},
            "unet": _smp("unet", "resnet34"),
            "deeplabv3plus": _smp("deeplabv3plus", "resnet50"),
            "segformer": _smp("segformer", "mit_b2"),
            "upernet": _smp("upernet", "resnet50"),
            "pspnet": _smp("pspnet", "resnet50"),
            BUNDLED: LITE_STUDENT,
            IMAGENET: LITE_STUDENT,
        },
        epochs=100,
        batch=24,
        cropping=Cropping(256, strength=0.0),
        schedule=Schedule(kind="sgd", rate=0.01, momentum=0.9, decay=5e-4, fall="step", average=0.0),
    ),
    "cpu": StudentPreset(
        architectures={
            "resunet": {"name": "resunet", "widths": [16, 32, 64, 128]},
            "unet": _smp("unet", "resnet18"),
            "deeplabv3plus": _smp("deeplabv3plus", "resnet18"),
            "segformer": _smp("segformer", "mit_b0"),
            "upernet": _smp("upernet", "resnet18"),
            "pspnet": _smp("pspnet", "resnet18"),
            BUNDLED: LITE_STUDENT,
            IMAGENET: LITE_STUDENT,
        },
        epochs=14,
        batch=12,
        cropping=Cropping(160, (0.25, 0.6), strength=0.4),
        schedule=Schedule(kind="adamw", fall="cosine", rate=2e-3, decay=0.02, average=0.995),
        overlap=1.0,
        shown=0.5,
    ),
}

MODELS = tuple(STUDENTS["paper"].architectures)

# --- detectors -------------------------------------------------------------------------------------------------------

DETECTORS: dict[Literal["cpu", "paper"], DetectorPreset] = {
    # The paper names Mask R-CNN and images of 512 px. Batch size and epochs are those of the common schedule from
    # random weights (He et al., 2019), the rate is AdamW's.
    "paper": DetectorPreset(
        architecture={"backbone": "resnet50"},
        epochs=72,
        batch=16,
        cropping=Cropping(512, strength=0.0),
        schedule=Schedule(rate=2e-4),
    ),
    "cpu": DetectorPreset(
        architecture={"backbone": "resnet18", "anchors": [16, 32, 64, 128, 256], "sampled": 64},
        epochs=12,
        batch=4,
        cropping=Cropping(192, strength=0.35),
        schedule=Schedule(rate=3e-4),
    ),
}

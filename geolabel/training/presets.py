"""What each method's paper, its released code, and a small machine ask of a training. Numbers only."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, Self

from geolabel.errors import OptionError
from geolabel.training.cism import CismTerms
from geolabel.training.fit import Falling
from geolabel.training.s2c import S2cTerms
from geolabel.training.samples import Cropping

Method = Literal["cam", "s2c", "cism"]
PresetName = Literal["paper", "code", "cpu"]


@dataclass(frozen=True, kw_only=True)
class TrainingPreset:
    """Numbers of any training on crops."""

    epochs: int
    """How often every image is seen."""
    batch: int
    """Crops of a step."""
    cropping: Cropping


@dataclass(frozen=True, kw_only=True)
class LocalizerPreset(TrainingPreset):
    """Numbers of a training of a localizer."""

    backbone: str
    """Of a network that starts from nothing."""
    output_stride: int
    features: int | None
    """See `models.nets.classifier.Classifier`."""
    schedule: dict[str, Any]
    """Of `Falling`, but for the number of steps."""
    taught_rate: float | None = None
    """In place of the schedule's rate where the first weights know the classes; None for the same. Their map points
    already, and a fast training spreads it: a label of a whole chip is told by what lies around a slide as well."""
    taught_spread: float | None = None
    """How far from the zoom of their own training crops for such weights are reduced and enlarged; None for the usual
    zooms. They know the classes at the size at which they saw them: at half of it, the bundled one is half as good."""
    s2c: S2cTerms
    cism: CismTerms
    points_per_side: int = 32
    """Of the grid that S2C's segments come from."""
    labeler_threshold: float = 0.5
    """The tau of S2C's eq. 11."""
    frozen_norm: bool = False
    """Whether batch normalisation keeps pretrained statistics; of no use to weights that start from nothing."""

    def for_taught(self, zoom: float) -> Self:
        """The numbers of a training whose first weights learned the classes at a zoom."""
        schedule, cropping = self.schedule, self.cropping
        if self.taught_rate is not None:
            schedule = schedule | {"rate": self.taught_rate}
        if self.taught_spread is not None:
            cropping = replace(cropping, zooms=(zoom / self.taught_spread, zoom * self.taught_spread))
        return replace(self, schedule=schedule, cropping=cropping)

    def falling(self, steps: int, minutes: float) -> Falling:
        """The schedule of a training of so many steps."""
        return Falling(cycles=(steps,), minutes=minutes, **self.schedule)


_S2C, _CISM = S2cTerms(), CismTerms()
_SGD: dict[str, Any] = {"kind": "sgd", "average": 0.0}
_ADAMW: dict[str, Any] = {"kind": "adamw", "fall": "poly", "rate": 5e-4, "decay": 0.02, "average": 0.99}

# APSAM gives neither batch nor epochs nor crops: its tiles' size, and its released code's batch and epochs.
_CAM_PAPER = LocalizerPreset(
    backbone="resnet50",
    output_stride=16,
    features=None,
    epochs=15,
    batch=32,
    cropping=Cropping(256),
    schedule=_SGD | {"rate": 0.1, "decay": 1e-4, "momentum": 0.9, "fall": "step"},
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
    schedule=_SGD | {"rate": 0.02, "decay": 5e-4, "momentum": 0.9},
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
    schedule={"kind": "adam", "rate": 0.01, "decay": 0.0, "average": 0.0},
    s2c=_S2C,
    cism=_CISM,
)

# Half the scale and 160 px: a crop shows 230 to 450 px of a chip, at a quarter of the cost.
_CPU = LocalizerPreset(
    backbone="resnet18",
    output_stride=16,
    features=None,
    epochs=8,
    batch=16,
    cropping=Cropping(160, (0.35, 0.7)),
    schedule=_ADAMW,
    taught_rate=1e-4,
    taught_spread=1.4,
    s2c=replace(_S2C, pixels=2048, scales=(1.0,)),
    cism=_CISM,
    points_per_side=12,
)

PRESETS: dict[tuple[Method, PresetName], LocalizerPreset] = {
    ("cam", "paper"): _CAM_PAPER,
    ("cam", "code"): replace(
        _CAM_PAPER,
        cropping=Cropping(256, strength=0.0),
        schedule=_SGD | {"rate": 0.1, "decay": 1e-4, "momentum": 1e-4, "fall": "poly"},
        frozen_norm=True,
    ),
    ("cam", "cpu"): _CPU,
    ("s2c", "paper"): _S2C_PAPER,
    ("s2c", "code"): replace(
        _S2C_PAPER,
        epochs=40,
        schedule=_SGD | {"rate": 0.02, "decay": 5e-4, "momentum": 5e-4},
        s2c=replace(_S2C, temperature=1.0, prompted_from=2.0),
        labeler_threshold=0.0,
        frozen_norm=True,
    ),
    ("s2c", "cpu"): replace(_CPU, output_stride=8),
    ("cism", "paper"): _CISM_PAPER,
    ("cism", "cpu"): _CPU,
}
"""``code`` changes numbers only. APSAM's code trains SIPE in place of the plain class activation that its paper
describes; that network is not part of geolabel. CISM has no released code."""


def preset_of(method: Method, name: PresetName) -> LocalizerPreset:
    """Look up a preset.

    Raises
    ------
    OptionError
        If the method has none of that name.
    """
    if (method, name) not in PRESETS:
        known = ", ".join(preset for of, preset in PRESETS if of == method)
        raise OptionError(f"{method} has no preset {name!r}, since no code of it was released: it has {known}")
    return PRESETS[method, name]

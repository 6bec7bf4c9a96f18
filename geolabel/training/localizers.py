"""Localizers: networks of class activation maps trained on image-level labels, by three methods."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from geolabel.chips import Chips, ChipSubset, check_learnable, split
from geolabel.datasets.chips import read_chips
from geolabel.engine import worker
from geolabel.engine.tasks import Progress
from geolabel.errors import OptionError, TrainingError, WeightsError
from geolabel.extraction.request import Networks
from geolabel.io.downloads import offline
from geolabel.io.error_messages import in_words
from geolabel.labelers import ConfidenceLabeler
from geolabel.labeling.regions import segment_maps
from geolabel.models import registry
from geolabel.models.checkpoint import IMAGE_LABELS, NetworkInfo, load_own
from geolabel.models.defaults import segmenter_defaults
from geolabel.models.nets import build
from geolabel.models.nets.classifier import WRN38, Classifier
from geolabel.models.nets.localizer import PyramidLocalizer
from geolabel.models.nets.trunk import IMAGENET_MEAN, IMAGENET_STD, load_trunk
from geolabel.parts import SegmenterRecipe
from geolabel.prompters import PeakPrompter
from geolabel.training.bundled import MEAN, STD
from geolabel.training.cism import CismLosses, CismObjective
from geolabel.training.first_weights import TIMM, load_backbone, published_files
from geolabel.training.image_labels import ChipLosses, ChipObjective, Learning, Segments, activation_constant, fit_bias
from geolabel.training.presets import LocalizerPreset, Method, PresetName, preset_of
from geolabel.training.s2c import S2cLosses, S2cObjective, Targets, prompted_targets
from geolabel.training.train import Figures, Training, TrainingRequest, gsd_range, sources_of

if TYPE_CHECKING:
    from torch import nn


log = logging.getLogger(__name__)

_IMAGENET_PYRAMID: dict[str, Any] = {
    "name": "pyramid",
    "trunk": "lite0",
    "features": 96,
    "strides": [8, 16],
    "sharpness": 1.0,
}
"""The network of ``--init imagenet``, on the bundled trunk. With image labels only, a mean over the map or a stride of
32 localises classes worse (docs/experiments.md)."""

FILE = "localizer.safetensors"


@dataclass(frozen=True)
class LocalizerRequest(TrainingRequest[Chips, LocalizerPreset]):
    """Request for a training of a localizer on image-level labels; masks are never read.

    See `geolabel.datasets.chips.read_chips` for the data.
    """

    file = FILE

    method: Method = "cam"
    preset: PresetName = "cpu"
    init: str = "imagenet"
    """``imagenet``, ``bundled``, a localizer's file, a network of timm whose weights are fetched, or ``none``."""
    init_weights: Path | None = None
    """File with the ImageNet weights of a backbone that is not bundled; see `first_weights.load_backbone`."""
    backbone: str | None = None
    """Backbone for random first weights, or for those of `init_weights`; None for the preset's, or for the bundled
    trunk with the preset ``cpu`` and `init` ``imagenet``."""
    segments: Path | None = None
    """Folder of the segment maps of S2C, which trainings of the same chips can share; None for one in the output."""

    @property
    def numbers(self) -> LocalizerPreset:
        """The preset with the requested changes."""
        return self.applied_to(preset_of(self.method, self.preset))

    def _timed(self, numbers: LocalizerPreset) -> LocalizerPreset:
        """The preset, with CPM starting at the same share of a shorter training."""
        share = min(1.0, (self.epochs or numbers.epochs) / numbers.epochs)
        return replace(numbers, s2c=replace(numbers.s2c, prompted_from=numbers.s2c.prompted_from * share))

    def prepare(self, data: str | Path | Chips, numbers: LocalizerPreset, test: str | Path | Chips | None) -> Training:
        """Read and check the chips, and build the network with its first weights."""
        if test is not None:
            raise OptionError("a localizer has no test, as its labels say nothing about pixels; omit the test")
        chips = read_chips(data) if isinstance(data, str | Path) else data
        check_learnable(chips)
        learn, select = _split(chips)
        torch.manual_seed(self.seed)
        network, info, numbers, pretrained = _start(self, self._timed(numbers), chips)
        learning = Learning(
            cropping=numbers.cropping,
            batch=min(numbers.batch, len(learn)),
            mean=info.mean,
            std=info.std,
            seed=self.seed,
            frozen_norm=numbers.frozen_norm and self.init != "none",
        )
        if pretrained:
            fit_bias(network.eval(), learn, learning)
        steps = self.steps_of(numbers, learning.epoch_steps(len(learn)))

        def objective(folder: Path, networks: Networks, progress: Progress) -> ChipObjective:
            teacher = _Teacher(networks, self.segments or folder / "segments", progress)
            return _METHODS[self.method].objective(numbers, network, learn, select, learning, teacher)

        def kept(module: Any) -> Any:
            localizer = module.localizer
            if localizer is network:
                return network
            try:
                activation_constant(localizer.eval(), learn, learning)
            except TrainingError as error:  # after a short training, which is still usable
                log.warning("the second classifier has learned too little, the map of the first is kept: %s", error)
                return network
            fit_bias(localizer, learn, learning)  # the trained bias does not suit whole chips
            return localizer

        def describe(localizer: Any, figures: Figures, _: Figures) -> NetworkInfo:
            width = getattr(localizer, "projected", None)
            architecture = info.architecture | ({"projected": width} if width else {})
            trained = {"method": self.method, "preset": self.preset, "init": self.init, "seed": self.seed}
            trained |= {"chips": len(learn), "steps": int(figures["steps"]), "zooms": list(numbers.cropping.zooms)}
            trained |= {"selection": figures, "supervision": IMAGE_LABELS}
            constant = activation_constant(localizer, learn, learning)
            return replace(info, architecture=architecture, constant=constant, trained=trained)

        return Training(
            network=kept,
            objective=objective,
            schedule=numbers.schedule.lasting(steps, self.minutes),
            inputs=sources_of(chips),
            describe=describe,
        )


@dataclass(frozen=True)
class _Teacher:
    """The segmenter that S2C learns from."""

    networks: Networks
    folder: Path
    """Store of the segments of chips."""
    progress: Progress

    @cached_property
    def recipe(self) -> SegmenterRecipe:
        """Recipe of the segmenter."""
        return self.networks.recipes("whole")[1]

    def segments(self, numbers: LocalizerPreset, learn: Chips) -> Segments:
        """Segments of all objects in every chip, for the first term."""
        return segment_maps(
            learn,
            self.recipe,
            self.folder,
            filters=segmenter_defaults(self.recipe.source).filters,
            points_per_side=numbers.points_per_side,
            smallest=numbers.s2c.smallest,
            progress=self.progress,
        )

    def targets(self, numbers: LocalizerPreset, classes: tuple[str, ...]) -> Targets:
        """Masks of the peaks of a map, for the second term."""
        prompter = PeakPrompter(single=numbers.s2c.single_peak)
        tau = min(numbers.labeler_threshold, segmenter_defaults(self.networks.sam).confidence)
        terms = numbers.s2c
        labeler = ConfidenceLabeler(tau, terms.by_stability, terms.by_activation, terms.by_logits)
        return prompted_targets(prompter, worker.segmenter(self.recipe), labeler, classes)


def _of_classes(
    _numbers: LocalizerPreset, network: nn.Module, learn: Chips, select: Chips, learning: Learning, _teacher: _Teacher
) -> ChipObjective:
    losses = ChipLosses(network, names=learn.names, frozen_norm=learning.frozen_norm)
    return ChipObjective(losses, learn, select, learning)


def _of_s2c(
    numbers: LocalizerPreset, network: nn.Module, learn: Chips, select: Chips, learning: Learning, teacher: _Teacher
) -> ChipObjective:
    targets = teacher.targets(numbers, learn.classes)
    segments = teacher.segments(numbers, learn) if numbers.s2c.contrast else None
    shared: dict[str, Any] = {"names": learn.names, "frozen_norm": learning.frozen_norm}
    losses = S2cLosses(network, terms=numbers.s2c, targets=targets, **shared)
    return S2cObjective(losses, learn, select, learning, segments)


def _of_cism(
    numbers: LocalizerPreset, network: nn.Module, learn: Chips, select: Chips, learning: Learning, _: _Teacher
) -> ChipObjective:
    paired = CismLosses(network, terms=numbers.cism, names=learn.names, frozen_norm=learning.frozen_norm)
    return CismObjective(paired, learn, select, learning, numbers.cism)


class _Supervision(NamedTuple):
    """What a method learns from."""

    objective: Callable[[LocalizerPreset, nn.Module, Chips, Chips, Learning, _Teacher], ChipObjective]
    adds_classifier: bool = False
    """Whether it adds a second classifier to the network."""


_METHODS: dict[Method, _Supervision] = {
    "cam": _Supervision(_of_classes),
    "s2c": _Supervision(_of_s2c),
    "cism": _Supervision(_of_cism, adds_classifier=True),
}
"""Methods by their name in ``--method``."""


def _split(chips: Chips) -> tuple[ChipSubset, ChipSubset]:
    learn, select = split(chips)
    informative = [labels.any(axis=0) & ~labels.all(axis=0) for labels in (learn.labels, select.labels) if len(labels)]
    if len(informative) == 2 and all(of_class.all() for of_class in informative):
        return learn, select
    log.warning("%d chips are too few to hold some out: weights are selected on the training data", len(chips))
    everything = ChipSubset(chips, np.arange(len(chips)))
    return everything, everything


class _Start(NamedTuple):
    """A network with its first weights."""

    network: Any
    info: NetworkInfo
    numbers: LocalizerPreset
    """Numbers of its training."""
    pretrained: bool
    """Whether it was trained on the classes."""


def _start(request: LocalizerRequest, numbers: LocalizerPreset, chips: Chips) -> _Start:
    """Build the requested network with its first weights."""
    _check_together(request, numbers)
    if request.init == "imagenet" and _own_backbone(request, numbers) is None:
        return _shipped_trunk(request, numbers, chips)
    if request.init == "bundled" or Path(request.init).is_file():
        return _own_file(request, numbers, chips)
    return _any_backbone(request, numbers, chips)


def _own_backbone(request: LocalizerRequest, numbers: LocalizerPreset) -> str | None:
    """The backbone named by the request or a published preset; None for the bundled trunk."""
    return request.backbone or (numbers.backbone if request.preset != "cpu" else None)


def _check_together(request: LocalizerRequest, numbers: LocalizerPreset) -> None:
    """Refuse contradictory options.

    Raises
    ------
    OptionError
        If one would be ignored.
    """
    init, backbone = request.init, _own_backbone(request, numbers)
    known = init == "bundled" or Path(init).is_file()
    if request.init_weights is not None and init != "imagenet":
        raise OptionError(
            f"--init-weights {request.init_weights} is for --init imagenet, but init is {init}: omit one of them"
        )
    if request.backbone is not None and init not in ("none", "imagenet"):
        raise OptionError(f"backbone {request.backbone} needs init none or imagenet, but init is {init}")
    if init == "bundled" and request.preset != "cpu":
        raise OptionError(
            f"--preset {request.preset} trains {numbers.backbone}, but --init bundled is another network: give --init "
            "imagenet --init-weights FILE, --init none, or --preset cpu"
        )
    if (
        request.preset != "cpu"
        and init not in ("none", "imagenet")
        and not known
        and init.partition(".")[0] != backbone
    ):
        raise OptionError(
            f"--preset {request.preset} trains {backbone}, but --init names {init}: give weights of {backbone}, or "
            "--preset cpu"
        )
    if init == "imagenet" and backbone is None and request.init_weights is not None:
        raise OptionError(
            f"--init-weights {request.init_weights}: without a --backbone, --init imagenet uses "
            "EfficientNet-Lite0, whose weights are bundled; omit it, or name its backbone"
        )
    if init == "imagenet" and backbone is not None and request.init_weights is None:
        raise OptionError(
            f"--init imagenet of {backbone}: its ImageNet weights are not bundled, give their file with --init-weights "
            f"({published_files(backbone)}); or use --init none"
        )


def _shipped_trunk(request: LocalizerRequest, numbers: LocalizerPreset, chips: Chips) -> _Start:
    described = _IMAGENET_PYRAMID | {"classes": len(chips.classes)}
    network = build(described)
    assert isinstance(network, PyramidLocalizer)
    network.trunk.load_state_dict(load_trunk(_IMAGENET_PYRAMID["trunk"]))
    known = _known(request, numbers, chips)
    info = NetworkInfo(architecture=described, stride=network.stride, mean=IMAGENET_MEAN, std=IMAGENET_STD, **known)
    return _Start(network, info, numbers.for_shipped_trunk(), pretrained=False)


def _own_file(request: LocalizerRequest, numbers: LocalizerPreset, chips: Chips) -> _Start:
    path = registry.fetch(registry.lookup("bundled", "localizer")[0])
    network, info = load_own(path if request.init == "bundled" else Path(request.init), "localizer")
    if request.preset != "cpu" and info.architecture.get("backbone") != numbers.backbone:
        held = info.architecture.get("backbone") or info.architecture.get("name")
        raise OptionError(
            f"--preset {request.preset} trains {numbers.backbone}, but {request.init} holds {held}: give --preset cpu"
        )
    if _METHODS[request.method].adds_classifier and info.architecture.get("projected"):
        raise OptionError(
            f"{request.init} holds the second classifier of CISM, to which no other can be added: start from a file of "
            "--method cam"
        )
    network.requires_grad_(True)
    architecture = info.architecture | {"classes": len(chips.classes)}
    pretrained = info.classes == chips.classes
    if not pretrained:
        fresh = build(architecture)
        kept = {name: t for name, t in network.state_dict().items() if not name.startswith(("head.", "bias"))}
        fresh.load_state_dict(kept, strict=False)
        network = fresh
    numbers = numbers.for_pretrained(info.zoom) if pretrained else numbers
    described = replace(info, architecture=architecture, **_known(request, numbers, chips))
    return _Start(network, described, numbers, pretrained)


def _any_backbone(request: LocalizerRequest, numbers: LocalizerPreset, chips: Chips) -> _Start:
    """A backbone by name: with random weights, those of a file, or those downloaded by timm."""
    if Path(request.init).suffix == ".safetensors":
        raise WeightsError(
            f"{request.init} does not exist: give a localizer's file, bundled, imagenet, none or a network of timm"
        )
    fetched = request.init not in ("none", "imagenet")
    if fetched and offline():
        raise WeightsError(
            f"GEOLABEL_OFFLINE forbids downloading {request.init}: give --init imagenet, bundled, none or a file"
        )
    backbone = request.init if fetched else request.backbone or numbers.backbone
    stride = 8 if backbone == WRN38 else numbers.output_stride
    architecture: dict[str, Any] = {
        "backbone": backbone,
        "classes": len(chips.classes),
        "output_stride": stride,
        "features": numbers.features,
    }
    try:
        classifier = Classifier(**architecture, pretrained=fetched)
    except (ValueError, OSError) as error:
        raise WeightsError(
            f"{backbone} cannot initialise a localizer ({in_words(error)}): give none, bundled, a file of geolabel or "
            "a convolutional network of timm"
        ) from error
    if request.init_weights is not None:
        load_backbone(classifier.trunk, backbone, request.init_weights)
    mean, std = (MEAN, STD) if request.init == "none" else TIMM
    known = _known(request, numbers, chips)
    described = {"name": "classifier", **architecture}
    info = NetworkInfo(architecture=described, stride=classifier.stride, mean=mean, std=std, **known)
    return _Start(classifier, info, numbers, pretrained=False)


def _known(request: LocalizerRequest, numbers: LocalizerPreset, chips: Chips) -> dict[str, Any]:
    """The part of a localizer's description that is known before training, whatever its first weights."""
    gsd = request.gsd or getattr(chips, "gsd", None)
    return {
        "kind": "localizer",
        "classes": chips.classes,
        "window": numbers.cropping.size,
        "gsd_range": gsd_range(gsd, numbers.cropping),
    }

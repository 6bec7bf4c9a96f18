"""Train a localizer on chips: from a folder to a file that extract runs."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from geolabel.chips import Chips, ChipSubset, check_learnable, split
from geolabel.datasets.chips import ChipDataset, read_chips
from geolabel.engine import worker
from geolabel.engine.progress import Progress, Silent
from geolabel.errors import OptionError, WeightsError
from geolabel.extraction.request import Networks
from geolabel.io.downloads import offline
from geolabel.io.foreign import in_words
from geolabel.labelers import ConfidenceLabeler
from geolabel.labeling.segment_maps import segment_maps
from geolabel.models import loading
from geolabel.models.checkpoint import NetworkInfo, load_own, save_checkpoint
from geolabel.models.defaults import segmenter_defaults
from geolabel.models.nets import build, imagenet
from geolabel.models.nets.classifier import Classifier
from geolabel.models.nets.localizer import PyramidLocalizer
from geolabel.parts import SegmenterRecipe
from geolabel.prompters import PeakPrompter
from geolabel.training.bundled import MEAN, STD
from geolabel.training.cism import CismLosses, CismObjective
from geolabel.training.fit import fit
from geolabel.training.image_labels import ChipLosses, ChipObjective, Learning, Segments, activation_constant, fit_bias
from geolabel.training.presets import LocalizerPreset, Method, PresetName, preset_of
from geolabel.training.s2c import S2cLosses, S2cObjective, Targets, prompted_targets
from geolabel.training.train import TrainingRequest, gsd_range, sources_of, training_folder

if TYPE_CHECKING:
    from torch import nn

    from geolabel.devices import Precision

log = logging.getLogger(__name__)

IMAGENET_PYRAMID: dict[str, Any] = {"name": "pyramid", "trunk": "lite0", "features": 96}
"""The network of ``--init imagenet``, on the trunk that ships."""

TIMM = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
"""Mean and standard deviation that timm's weights expect, of 0..255."""

FILE = "localizer.safetensors"


@dataclass(frozen=True)
class LocalizerRequest(TrainingRequest):
    """What a user asks of a training of a localizer."""

    method: Method = "cam"
    preset: PresetName = "cpu"
    init: str = "none"
    """``none``, ``imagenet``, ``bundled``, a localizer's file, or a network of timm whose weights are fetched."""
    backbone: str | None = None
    """Of a network that starts from nothing."""

    @property
    def numbers(self) -> LocalizerPreset:
        """The preset with what was asked for."""
        return self.applied_to(preset_of(self.method, self.preset))


def train_localizer(
    chips: str | Path | Chips,
    out: str | Path,
    request: LocalizerRequest | None = None,
    *,
    networks: Networks | None = None,
    preset: LocalizerPreset | None = None,
    segments: Path | None = None,
    overwrite: bool = False,
    resume: bool = False,
    progress: Progress | None = None,
) -> dict[str, float]:
    """Train a localizer on image-level labels; no mask is read, be there any.

    One chip in five, by its name, is kept to select the weights by.

    Parameters
    ----------
    chips
        See `geolabel.datasets.chips.read_chips`.
    out
        Folder that gets `FILE`, the curves, and the state that a stopped training goes on from.
    networks
        The segmenter that S2C learns from, and where everything runs.
    preset
        Numbers instead of those of the request.
    segments
        Folder of the segment maps of S2C, which trainings of the same chips may share; by default one in `out`.
    overwrite
        Whether what an earlier training left in `out` may be replaced; it stands until this one has ended.
    resume
        Go on from where a stopped training in `out` was saved.

    Returns
    -------
    figures of the weights kept

    Raises
    ------
    ChipError
        If the chips cannot be read or teach nothing.
    TrainingError
        If a loss is no number.
    WeightsError
        If the first weights cannot be had, or are no localizer's.
    OutputError
        If the folder cannot be written to.
    """
    request, networks, out = request or LocalizerRequest(), networks or Networks(), Path(out)
    numbers = preset or request.numbers
    chips = read_chips(chips) if isinstance(chips, str | Path) else chips
    check_learnable(chips)
    learn, select = _split(chips)
    recipe, segmenter = networks.recipes("whole")
    torch.manual_seed(request.seed)
    network, info, numbers, taught = _start(request, numbers, chips)
    learning = Learning(
        cropping=numbers.cropping,
        batch=min(numbers.batch, len(learn)),
        mean=info.mean,
        std=info.std,
        seed=request.seed,
        frozen_norm=numbers.frozen_norm and request.init != "none",
    )
    if taught:
        fit_bias(network.eval(), learn, learning)
    steps = request.steps_of(numbers, learning.epoch_steps(len(learn)))
    schedule = numbers.falling(steps, request.minutes or math.inf)
    precision: Precision = "bf16" if recipe.precision == "bf16" else "fp32"
    with training_folder(out, FILE, overwrite=overwrite, resume=resume, inputs=sources_of(chips)) as folder:
        kept = segments or folder / "segments"
        teacher = _Teacher(segmenter, segmenter_defaults(networks.sam).confidence, kept, progress or Silent())
        objective = _objective(request.method, numbers, network, learn, select, learning, teacher)
        figures = fit(objective, schedule, folder, device=recipe.device, precision=precision, resume=resume)
        trained = {"method": request.method, "preset": request.preset, "init": request.init, "seed": request.seed}
        trained |= {"chips": len(learn), "steps": int(figures["steps"]), "zooms": list(numbers.cropping.zooms)}
        trained["selection"] = figures
        constant = activation_constant(objective.module.network, learn, learning)
        save_checkpoint(folder / FILE, network, replace(info, constant=constant, trained=trained))
    return figures


@dataclass(frozen=True)
class _Teacher:
    """The segmenter that S2C learns from."""

    recipe: SegmenterRecipe
    confidence: float
    """Most that the threshold of its masks may be; see `geolabel.models.defaults`."""
    folder: Path
    """Where the segments of chips are kept."""
    progress: Progress

    def segments(self, numbers: LocalizerPreset, learn: Chips) -> Segments:
        """What it finds everywhere in every chip, which the first term learns from."""
        return segment_maps(learn, self.recipe, self.folder, filters=segmenter_defaults(self.recipe.source).filters,
                            points_per_side=numbers.points_per_side, progress=self.progress)  # fmt: skip

    def targets(self, numbers: LocalizerPreset, classes: tuple[str, ...]) -> Targets:
        """The masks that it answers to the peaks of a map, which the second term learns from."""
        prompter = PeakPrompter(single=numbers.s2c.single_peak)
        tau = min(numbers.labeler_threshold, self.confidence)
        labeler = ConfidenceLabeler(tau, numbers.s2c.by_stability, numbers.s2c.by_activation)
        return prompted_targets(prompter, worker.segmenter(self.recipe), labeler, classes)


def _objective(
    method: Method,
    numbers: LocalizerPreset,
    network: nn.Module,
    learn: Chips,
    select: Chips,
    learning: Learning,
    teacher: _Teacher,
) -> ChipObjective:
    """What a method trains a network for."""
    shared: dict[str, Any] = {"names": learn.names, "frozen_norm": learning.frozen_norm}
    if method == "s2c":
        targets = teacher.targets(numbers, learn.classes)
        segments = teacher.segments(numbers, learn) if numbers.s2c.contrast else None
        losses = S2cLosses(network, terms=numbers.s2c, targets=targets, **shared)
        return S2cObjective(losses, learn, select, learning, segments)
    if method == "cism":
        paired = CismLosses(network, terms=numbers.cism, **shared)
        return CismObjective(paired, learn, select, learning, numbers.cism)
    return ChipObjective(ChipLosses(network, **shared), learn, select, learning)


def _split(chips: Chips) -> tuple[ChipSubset, ChipSubset]:
    learn, select = split(chips)
    told = [labels.any(axis=0) & ~labels.all(axis=0) for labels in (learn.labels, select.labels) if len(labels)]
    if len(told) == 2 and all(t.all() for t in told):
        return learn, select
    log.warning("%d chips are too few to keep some aside: weights are selected by what they learn from", len(chips))
    everything = ChipSubset(chips, np.arange(len(chips)))
    return everything, everything


def _start(
    request: LocalizerRequest, numbers: LocalizerPreset, chips: Chips
) -> tuple[Any, NetworkInfo, LocalizerPreset, bool]:
    """A network to train, what is known of it, the numbers of its training, and whether it knows the classes."""
    count = len(chips.classes)
    if request.backbone is not None and request.init != "none":
        raise OptionError(f"backbone {request.backbone} is that of a network with init none: init is {request.init}")
    if request.init == "imagenet":
        lite = build(IMAGENET_PYRAMID | {"classes": count})
        assert isinstance(lite, PyramidLocalizer)
        lite.trunk.load_state_dict(imagenet.load_trunk(IMAGENET_PYRAMID["trunk"]))
        known = _known(request, numbers, chips)
        described = IMAGENET_PYRAMID | {"classes": count}
        info = NetworkInfo(architecture=described, stride=lite.stride, mean=imagenet.MEAN, std=imagenet.STD, **known)
        return lite, info, numbers, False
    if request.init == "bundled" or Path(request.init).is_file():
        path = loading.fetch(loading.lookup("bundled", "localizer")[0])
        network, info = load_own(path if request.init == "bundled" else Path(request.init), "localizer")
        network.requires_grad_(True)
        architecture = info.architecture | {"classes": count}
        if info.classes != chips.classes:
            fresh = build(architecture)
            kept = {name: t for name, t in network.state_dict().items() if not name.startswith(("head.", "bias"))}
            fresh.load_state_dict(kept, strict=False)
            network = fresh
        taught = info.classes == chips.classes
        numbers = numbers.for_taught(info.zoom) if taught else numbers
        known = _known(request, numbers, chips)
        return network, replace(info, architecture=architecture, **known), numbers, taught
    if Path(request.init).suffix == ".safetensors":
        raise WeightsError(
            f"{request.init} does not exist: give a localizer's file, bundled, imagenet, none or a network of timm"
        )
    pretrained = request.init != "none"
    if pretrained and offline():
        raise WeightsError(
            f"GEOLABEL_OFFLINE forbids to fetch {request.init}: give --init imagenet, bundled, none or a file"
        )
    backbone = request.init if pretrained else request.backbone or numbers.backbone
    stride = 8 if backbone == "wrn38" else numbers.output_stride
    architecture = {"backbone": backbone, "classes": count, "output_stride": stride, "features": numbers.features}
    mean, std = TIMM if pretrained else (MEAN, STD)
    try:
        classifier = Classifier(**architecture, pretrained=pretrained)
    except (ValueError, OSError) as error:
        raise WeightsError(
            f"{backbone} cannot start a localizer ({in_words(error)}): give none, bundled, a file of geolabel, or a "
            "convolutional network of timm"
        ) from error
    described = {"name": "classifier", **architecture}
    known = _known(request, numbers, chips)
    info = NetworkInfo(architecture=described, stride=classifier.stride, mean=mean, std=std, **known)
    return classifier, info, numbers, False


def _known(request: LocalizerRequest, numbers: LocalizerPreset, chips: Chips) -> dict[str, Any]:
    """What is known of a localizer before it is trained, whatever it starts from."""
    gsd = request.gsd or (chips.gsd if isinstance(chips, ChipDataset) else None)
    return {
        "kind": "localizer",
        "classes": chips.classes,
        "window": numbers.cropping.size,
        "gsd_range": gsd_range(gsd, numbers.cropping),
    }

"""Train a student on label maps: from a folder of pseudo-labels, or of masks, to a file that extract runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor, nn
from torch.nn import functional

from geolabel.datasets.chips import PaintedChips, read_painted
from geolabel.datasets.examples import Examples, Subset
from geolabel.datasets.pseudo_labels import PseudoLabels
from geolabel.engine import worker
from geolabel.errors import ChipError, OptionError, TrainingError
from geolabel.extraction.request import Networks
from geolabel.labels import IGNORE
from geolabel.metrics import class_figures, count_pixels
from geolabel.models.checkpoint import NetworkInfo, save_checkpoint
from geolabel.models.nets import build
from geolabel.models.nets.initial import Share
from geolabel.models.nets.student import zoomed_probabilities
from geolabel.training.bundled import norm_of
from geolabel.training.fit import Falling, fit
from geolabel.training.image_labels import Learning
from geolabel.training.presets import TrainingPreset
from geolabel.training.samples import Cropping, balanced_indices, generator, take_crop, to_tensor
from geolabel.training.train import (
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
from geolabel.types import BoolArray, Float32Array, UInt8Array

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
        See `geolabel.datasets.chips.read_painted`.
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


class Painted(Protocol):
    """An image and its label map."""

    @property
    def image(self) -> UInt8Array:
        """(H, W, 3) red first."""
        ...

    @property
    def values(self) -> UInt8Array:
        """(H, W) index into the classes, or `geolabel.labels.IGNORE`."""
        ...


class PaintedExamples(Examples[Painted], Protocol):
    """Images with label maps; `classes` names every value from 0, the background being one where there is one."""

    @property
    def shown(self) -> BoolArray:
        """(N,) whether the label map of an image has a class other than the first, the background."""
        ...


@dataclass(frozen=True)
class PaintedSubset(Subset[Painted]):
    """Some of a set of images with label maps."""

    whole: PaintedExamples

    @property
    def shown(self) -> BoolArray:
        """(N,) whether an image shows a class."""
        return np.asarray(self.whole.shown[self.index], bool)


def segmentation_loss(logits: Tensor, values: Tensor) -> Tensor:
    """Mean cross-entropy of logits (N, K, H, W) over the pixels of (N, H, W) that are not ignored; 0 without any."""
    total = functional.cross_entropy(logits, values, ignore_index=IGNORE, reduction="sum")
    return total / (values != IGNORE).sum().clamp(min=1)


def overlap_loss(logits: Tensor, values: Tensor) -> Tensor:
    """One minus the Dice overlap of every class but the first, over all known pixels of a step; their mean.

    Cross-entropy weighs a pixel of a rare class as any other, so what covers a tenth of the ground is drawn too small;
    an overlap weighs classes. Source: Milletari et al. (2016), "V-Net", with the sum in the denominator; 1 is added to
    both sides, so that a class that is nowhere and not found anywhere agrees.

    Parameters
    ----------
    logits : (N, K, H, W)
    values : (N, H, W)
        0 to K - 1, or `IGNORE`.
    """
    known = (values != IGNORE)[:, None]
    precise = torch.promote_types(logits.dtype, torch.float32)  # sums over a step are too long for half precision
    probability = logits.softmax(dim=1, dtype=precise) * known
    truth = functional.one_hot(values.masked_fill(values == IGNORE, 0), logits.shape[1]).movedim(-1, 1) * known
    both, total = (part.sum(dim=(0, 2, 3))[1:] for part in (probability * truth, probability + truth))
    return (1 - (2 * both + 1) / (total + 1)).mean()


class StudentLosses(nn.Module):
    """A network and its loss; one that is no number ends the training and says of which images it was.

    Parameters
    ----------
    network
        Makes logits of every pixel.
    names
        Of the images.
    overlap
        Weight of `overlap_loss`.
    """

    def __init__(self, network: nn.Module, names: Sequence[str], overlap: float = 0.0) -> None:
        super().__init__()
        self.network: Any = network
        self._names, self._overlap = tuple(names), overlap

    def forward(self, index: Tensor, images: Tensor, values: Tensor) -> dict[str, Tensor]:
        """Loss of normalised crops (N, 3, S, S) of the images (N,) `index`, with label maps (N, S, S).

        Raises
        ------
        TrainingError
            If it is no number.
        """
        logits = self.network(images)
        losses = {"pixels": segmentation_loss(logits, values)}
        if self._overlap:
            losses["overlap"] = self._overlap * overlap_loss(logits, values)
        if not torch.isfinite(loss := sum(losses.values(), torch.zeros_like(losses["pixels"]))):
            images_of = ", ".join(dict.fromkeys(self._names[i] for i in index.tolist()))
            raise TrainingError(
                f"the loss is {loss.item()} on the images {images_of}: look at these, or lower the learning rate"
            )
        return losses


class StudentObjective:
    """Crops with their label maps, and the mean IoU of held-out images, judged whole.

    Parameters
    ----------
    shown
        Share of the crops of a step that are of images which show a class, each around a pixel of it; 0 for crops of
        all images alike, anywhere in them.
    """

    def __init__(
        self,
        losses: StudentLosses,
        learn: PaintedExamples,
        select: PaintedExamples,
        learning: Learning,
        shown: float = 0.0,
    ) -> None:
        self.module = losses
        self._learn, self._learning, self._share = learn, learning, shown
        self._shown = learn.shown if shown else np.ones(len(learn), bool)
        at = np.unique(np.linspace(0, len(select) - 1, min(learning.judged, len(select))).astype(np.int64))
        self._select = PaintedSubset(select, at)

    def batch(self, step: int) -> dict[str, Tensor]:
        """Crops of one step."""
        learning = self._learning
        rng = generator(learning.seed, 1, step)
        index = balanced_indices(self._shown, self._share, learning.batch, step, learning.seed)
        examples = (self._learn[int(i)] for i in index)
        crops = [take_crop(e.image, learning.cropping, rng, e.values, self._place(e.values, rng)) for e in examples]
        return {
            "index": torch.from_numpy(index),
            "images": to_tensor([crop.rgb for crop in crops], learning.mean, learning.std),
            "values": torch.from_numpy(np.stack([np.asarray(crop.layer) for crop in crops])).long(),
        }

    def _place(self, values: UInt8Array, rng: Generator) -> tuple[int, int] | None:
        # landslides are small in large images: most crops anywhere would show none
        of_a_class = np.flatnonzero((values > 0) & (values != IGNORE)) if self._share else ()
        if not len(of_a_class):
            return None
        row, col = divmod(int(rng.choice(of_a_class)), values.shape[1])
        return row, col

    def figures(self, module: nn.Module) -> dict[str, float]:
        """Agreement with the label maps of held-out images, which may be pseudo-labels too; the score is mean IoU."""
        assert isinstance(module, StudentLosses)
        figures = judge(module.network, self._select, self._learning)
        return {"score": figures["miou"], "accuracy": figures["overall_accuracy"]}


def judge(network: Any, examples: Examples[Painted], learning: Learning) -> dict[str, float]:
    """Agreement of a student with the label maps of whole images; see `geolabel.metrics.class_figures`."""
    counts = []
    for k in range(len(examples)):
        example = examples[k]
        found = probabilities(network, example.image, learning).argmax(axis=0).astype(np.uint8)
        counts.append(count_pixels(found, example.values, len(examples.classes)))
    return class_figures(np.sum(counts, axis=0), examples.classes)


@torch.inference_mode()
def probabilities(network: Any, rgb: UInt8Array, learning: Learning) -> Float32Array:
    """(K, H, W) probability of every class in an image (H, W, 3), seen at the middle of the zooms of the training."""
    device = next(network.parameters()).device
    pixels = to_tensor([rgb], learning.mean, learning.std).to(device)
    return zoomed_probabilities(network, pixels, learning.cropping.zoom, learning.cropping.size)[0].cpu().numpy()

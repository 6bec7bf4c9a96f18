"""Students: segmentation networks trained on label maps, pseudo-labels or masks.

APSAM's last step (its section II-D), shared by S2C and CISM. A student learns what most pseudo-labels agree on and
ignores outliers; ignored pixels have no loss.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor, nn
from torch.nn import functional

from geolabel.datasets.chips import read_painted
from geolabel.datasets.examples import Examples, Painted, PaintedExamples, PaintedSubset
from geolabel.datasets.pseudo_labels import PseudoLabels
from geolabel.errors import ChipError, OptionError, TrainingError, WeightsError
from geolabel.io.downloads import offline
from geolabel.io.error_messages import in_words
from geolabel.labels import IGNORE
from geolabel.metrics import class_figures, count_pixels
from geolabel.models.checkpoint import NetworkInfo
from geolabel.models.nets import build
from geolabel.models.nets.student import zoomed_probabilities
from geolabel.training.bundled import Norm, norm_of
from geolabel.training.first_weights import (
    TIMM,
    Share,
    load_backbone,
    load_bundled_trunk,
    load_imagenet_trunk,
    load_share,
)
from geolabel.training.image_labels import Learning
from geolabel.training.presets import BUNDLED, IMAGENET, LITE_STUDENT, STUDENTS, StudentPreset
from geolabel.training.samples import Cropping, balanced_indices, generator, take_crop, to_tensor
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
from geolabel.types import Float32Array, UInt8Array

FILE = "student.safetensors"


@dataclass(frozen=True)
class StudentRequest(TrainingRequest[PaintedExamples, StudentPreset]):
    """Request for a training of a student on label maps; pseudo-labels are also used for selection.

    See `geolabel.datasets.chips.read_painted` for the data.
    """

    file = FILE

    model: str | None = None
    """One of the preset's architectures; None for a ResUNet on the ImageNet trunk, or for the paper's with its
    preset."""
    preset: Literal["cpu", "paper"] = "cpu"
    steps: int | None = None
    """Number of steps, instead of epochs."""
    init: tuple[Share, str | Path] | None = None
    """First weights: the share of the network, and the student's file that they come from."""
    init_weights: str | Path | None = None
    """ImageNet weights of the encoder of a network of segmentation-models-pytorch: ``imagenet`` to download the
    library's, or a file of timm or torchvision."""
    share: float = 1.0
    """Share of the images used in training."""
    plain: bool = False
    """Whether to use plain cross-entropy of random crops of all images, whatever else the preset has."""

    @property
    def architecture(self) -> str:
        """Name of the architecture."""
        return self.model or (IMAGENET if self.preset == "cpu" else "resunet")

    @property
    def numbers(self) -> StudentPreset:
        """The preset with the requested changes."""
        numbers = self.applied_to(STUDENTS[self.preset])
        if numbers.batch < 2:
            raise OptionError("one crop a step: batch normalisation needs at least two")
        return replace(numbers, overlap=0.0, shown=0.0) if self.plain else numbers

    def prepare(
        self, data: str | Path | PaintedExamples, numbers: StudentPreset, test: str | Path | PaintedExamples | None
    ) -> Training:
        """Read and check the label maps, and build the network with its first weights."""
        examples, tested = _opened(data), None if test is None else _opened(test)
        _check_learnable(examples)
        if tested is not None:
            check_same_classes(examples.classes, tested.classes)
        asked = PaintedSubset(examples, share_of(examples.names, self.share))
        learn, select = (PaintedSubset(asked, part) for part in split(asked.names))
        torch.manual_seed(self.seed)
        architecture = {**numbers.architectures[self.architecture], "classes": len(examples.classes)}
        network, norm = self._network(architecture)
        pretrained = self._load_first_weights(network, architecture, tuple(examples.classes))
        batch = max(2, min(numbers.batch, len(learn)))
        learning = Learning(numbers.cropping, batch, *norm, seed=self.seed)
        steps = self.steps or self.steps_of(numbers, learning.epoch_steps(len(learn)))
        info = _describe(architecture, norm, examples, self.gsd, numbers.cropping)

        def objective(*_: object) -> StudentObjective:
            losses = StudentLosses(network, learn.names, numbers.overlap)
            return StudentObjective(losses, learn, select, learning, numbers.shown)

        def describe(_: nn.Module, figures: Figures, __: Figures) -> NetworkInfo:
            trained = {"model": self.architecture, "preset": self.preset, "seed": self.seed, "images": len(learn)}
            trained |= {"share": self.share, "steps": int(figures["steps"]), "zooms": list(numbers.cropping.zooms)}
            trained |= {"selection": figures, "labels": _origin(examples)}
            return replace(info, trained=trained | pretrained)

        return Training(
            network=lambda _: network,
            objective=objective,
            schedule=numbers.schedule.lasting(steps, self.minutes),
            inputs=sources_of(examples),
            describe=describe,
            test=None if tested is None else lambda: evaluate(network, tested, learning),
        )

    def _network(self, architecture: dict[str, Any]) -> tuple[nn.Module, Norm]:
        """The network, with ImageNet weights in its encoder if requested, and the normalisation of its images."""
        if self.init_weights is None:
            return build(architecture), norm_of(architecture)
        if architecture["name"] != "smp" or self.init is not None:
            other = f"the model {self.architecture}" if self.init is None else f"--init {self.init[0]}"
            raise OptionError(
                f"--init-weights {self.init_weights}: {other} starts from other weights; omit it, or choose a "
                "model of segmentation-models-pytorch, such as unet"
            )
        fetched = str(self.init_weights) == "imagenet"
        if fetched and offline():
            raise WeightsError(
                f"GEOLABEL_OFFLINE forbids downloading ImageNet weights of {architecture['encoder']}: give their file"
            )
        # not part of the stored description, so loading the network does not download weights
        try:
            network = build(architecture | {"pretrained": fetched})
        except OSError as error:
            raise WeightsError(
                f"the ImageNet weights of {architecture['encoder']} could not be downloaded ({in_words(error)}): "
                "connect to the network, or give their file with --init-weights FILE"
            ) from error
        if not fetched:
            encoder = network.get_submodule("network.encoder")
            load_backbone(encoder, architecture["encoder"], Path(self.init_weights))
        return network, TIMM

    def _load_first_weights(
        self, network: nn.Module, architecture: Mapping[str, Any], classes: tuple[str, ...]
    ) -> dict[str, Any]:
        if self.init_weights is not None:
            return {"init": {"share": "backbone", "weights": f"ImageNet, {architecture['encoder']}"}}
        begun: dict[str, Any] = {}
        if self.architecture == BUNDLED:
            begun = load_bundled_trunk(network)
        elif self.architecture == IMAGENET:
            begun = load_imagenet_trunk(network, LITE_STUDENT["trunk"])
        if self.init is None:
            return begun
        taken = load_share(network, architecture, classes, *self.init)
        # with only a head, the trunk is that of the model
        return {"init": taken["init"] | {"trunk": begun["init"]}} if begun and self.init[0] == "head" else taken


def _opened(data: str | Path | PaintedExamples) -> PaintedExamples:
    if isinstance(data, str | Path):
        return read_painted(data)
    examples: PaintedExamples = getattr(data, "painted", data)  # of a GeoChips, its label maps
    return examples


def _check_learnable(examples: PaintedExamples) -> None:
    """Refuse label maps that cannot be learned from."""
    if not len(examples):
        raise ChipError("there are no images to learn from: give a folder of geolabel label, or of chips with masks")
    if len(examples.classes) < 2:
        raise ChipError(f"a student needs label maps of at least two classes, found {len(examples.classes)}")
    if not examples.shown.any():
        raise ChipError(
            f"none of {len(examples)} label maps shows anything but {examples.classes[0]}: add images that show a class"
        )


def _origin(examples: PaintedExamples) -> str:
    """Source of the label maps: the method of pseudo-labels, or masks."""
    if isinstance(examples, PseudoLabels):
        return str(examples.provenance.get("method", "pseudo-labels"))
    return "masks"


def _describe(
    architecture: dict[str, Any], norm: Norm, examples: PaintedExamples, gsd: float | None, cropping: Cropping
) -> NetworkInfo:
    if gsd is None and isinstance(examples, PseudoLabels):
        gsd = examples.provenance.get("images", {}).get("gsd_m")
    elif gsd is None:
        gsd = getattr(examples, "gsd", None)
    mean, std = norm
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


# --- objective -------------------------------------------------------------------------------------------------------


def segmentation_loss(logits: Tensor, values: Tensor) -> Tensor:
    """Mean cross-entropy of logits (N, K, H, W) over the pixels of (N, H, W) that are not ignored; 0 without any."""
    total = functional.cross_entropy(logits, values, ignore_index=IGNORE, reduction="sum")
    return total / (values != IGNORE).sum().clamp(min=1)


def overlap_loss(logits: Tensor, values: Tensor) -> Tensor:
    """One minus the Dice overlap of every class but the first, over all known pixels of a step; their mean.

    Cross-entropy weighs pixels equally, so outlines of a class that covers a tenth of the ground become too small; an
    overlap weighs classes equally. Source: Milletari et al. (2016), "V-Net", with the sum in the denominator; 1 is
    added to both sides, so that a class that neither side has matches.

    Parameters
    ----------
    logits : (N, K, H, W)
    values : (N, H, W)
        0 to K - 1, or `IGNORE`.
    """
    known = (values != IGNORE)[:, None]
    precise = torch.promote_types(logits.dtype, torch.float32)  # half precision is too coarse for sums over a step
    probability = logits.softmax(dim=1, dtype=precise) * known
    truth = functional.one_hot(values.masked_fill(values == IGNORE, 0), logits.shape[1]).movedim(-1, 1) * known
    both, total = (part.sum(dim=(0, 2, 3))[1:] for part in (probability * truth, probability + truth))
    return (1 - (2 * both + 1) / (total + 1)).mean()


class StudentLosses(nn.Module):
    """A network and its loss; a loss that is not finite ends the training with an error that names the images.

    Parameters
    ----------
    network
        Computes logits of every pixel.
    names
        Names of the images.
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
            If it is not finite.
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
    """Crops with their label maps, and the mean IoU on whole held-out images.

    Parameters
    ----------
    shown
        Share of the crops of a step from images that show a class, around one of its pixels; 0 for random crops of all
        images.
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
        # landslides are small in large images: most random crops would show none
        of_a_class = np.flatnonzero((values > 0) & (values != IGNORE)) if self._share else ()
        if not len(of_a_class):
            return None
        row, col = divmod(int(rng.choice(of_a_class)), values.shape[1])
        return row, col

    def figures(self, module: nn.Module) -> dict[str, float]:
        """Agreement with the label maps of held-out images, possibly pseudo-labels too; the score is mean IoU."""
        assert isinstance(module, StudentLosses)
        figures = evaluate(module.network, self._select, self._learning)
        return {"score": figures["miou"], "accuracy": figures["overall_accuracy"]}


def evaluate(network: Any, examples: Examples[Painted], learning: Learning) -> dict[str, float]:
    """Agreement of a student with the label maps of whole images; see `geolabel.metrics.class_figures`."""
    counts = []
    for k in range(len(examples)):
        example = examples[k]
        found = probabilities(network, example.image, learning).argmax(axis=0).astype(np.uint8)
        counts.append(count_pixels(found, example.values, len(examples.classes)))
    return class_figures(np.sum(counts, axis=0), examples.classes)


@torch.inference_mode()
def probabilities(network: Any, rgb: UInt8Array, learning: Learning) -> Float32Array:
    """(K, H, W) probability of every class in an image (H, W, 3), at the middle of the training's zooms."""
    device = next(network.parameters()).device
    pixels = to_tensor([rgb], learning.mean, learning.std).to(device)
    return zoomed_probabilities(network, pixels, learning.cropping.zoom, learning.cropping.size)[0].cpu().numpy()

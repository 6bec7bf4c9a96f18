"""S2C: the classifier learns from a segmenter, by segments of every chip and by masks of its own peaks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from geolabel.activation import Activation
from geolabel.chips import Chips
from geolabel.models.nets.classifier import merged_maps
from geolabel.parts import Labeler, Prompter, Segmenter
from geolabel.pipeline import Pipeline
from geolabel.training.crops import epoch_indices, take_crop
from geolabel.training.s2c import normalised, prompted_mask_loss, segment_contrast
from geolabel.training.samples import generator
from geolabel.training.weak import ChipLosses, ChipObjective, Learning, Segments
from geolabel.types import UInt8Array

Targets = Callable[[Sequence[UInt8Array], Tensor, Tensor], Tensor]
"""(N, H, W) label maps of images (H, W, 3), by their maps (N, C, h, w) of 0..1 and labels (N, C)."""


@dataclass(frozen=True)
class S2cTerms:
    """Which terms there are, and their numbers; the paper's."""

    contrast: bool = True
    """SSC."""
    contrast_on_logits: bool = False
    """SSC on the class maps in place of the features, as in the paper's ablation."""
    temperature: float = 0.5
    pixels: int = 4096
    """Pixels of a crop that take part in SSC."""
    prompted: bool = True
    """CPM."""
    prompted_from: float = 1.0
    """Epoch from which CPM counts: the maps of the first are not worth asking about."""
    background: bool = True
    """Whether CPM has a background."""
    single_peak: bool = False
    by_stability: bool = True
    by_activation: bool = True
    """See `prompters.PeakPrompter` and `labelers.ConfidenceLabeler`."""
    scales: tuple[float, ...] = (0.5, 1.0, 1.5, 2.0)
    """Of the maps that are asked about."""


@dataclass(frozen=True)
class _Given:
    """The activation that is known already, as a localizer."""

    activation: Activation
    classes: tuple[str, ...] = ()
    window: int = 1
    stride: int = 1
    gsd_range: tuple[float, float] = (0.0, float("inf"))

    def __call__(self, images: Sequence[UInt8Array]) -> list[Activation]:  # noqa: ARG002
        return [self.activation]


def prompted_targets(prompter: Prompter, segmenter: Segmenter, labeler: Labeler, classes: tuple[str, ...]) -> Targets:
    """What a segmenter makes of the peaks of maps (eq. 7 to 11), as a function that trainings can copy."""

    def targets(images: Sequence[UInt8Array], maps: Tensor, labels: Tensor) -> Tensor:
        found = []
        for image, values, shows in zip(images, maps.float().cpu().numpy(), labels, strict=True):
            if not shows.any():
                found.append(np.zeros(image.shape[:2], np.uint8))
                continue
            peaks = values.max(axis=(1, 2))
            activation = Activation(values, np.ones_like(values), peaks, image.shape[0] // values.shape[1], classes)
            found.append(Pipeline(_Given(activation), prompter, segmenter, labeler)(image).values)
        return torch.from_numpy(np.stack(found)).long().to(maps.device)

    return targets


class S2cLosses(ChipLosses):
    """Eq. 14: classification, SSC and CPM."""

    def __init__(self, network: nn.Module, names: Sequence[str], terms: S2cTerms, targets: Targets | None, **rest: Any):
        super().__init__(network, names, **rest)
        self._terms, self._targets = terms, targets

    def losses(  # type: ignore[override]
        self, images: Tensor, labels: Tensor, pixels: Tensor, segments: Tensor, epoch: Tensor
    ) -> dict[str, Tensor]:
        """Losses of crops.

        Parameters
        ----------
        images : (N, 3, S, S)
            Normalised.
        labels : (N, C)
        pixels : (N, S, S, 3)
            The same crops as a segmenter takes them.
        segments : (N, S, S)
            See `s2c.segment_contrast`.
        epoch : ()
        """
        terms = self._terms
        features = self.network.features(images)
        maps = self.network.head(features)
        losses = {"classification": self.classification(maps, labels)}
        if terms.contrast:
            of = maps if terms.contrast_on_logits else features
            losses["contrast"] = segment_contrast(of, segments, terms.temperature, pixels=terms.pixels)
        if terms.prompted and epoch.item() >= terms.prompted_from and self._targets is not None:
            target = self._targets(list(pixels.cpu().numpy()), self._current(images, labels), labels)
            losses["prompted"] = prompted_mask_loss(normalised(maps, labels), target, background=terms.background)
        else:
            losses["prompted"] = maps.sum() * 0  # the curves keep their columns
        return losses

    def _current(self, images: Tensor, labels: Tensor) -> Tensor:
        """Maps of the weights as they are, to be asked about."""
        training = self.training
        self.eval()
        merged = normalised(merged_maps(self.network, images, self._terms.scales), labels)
        self.train(training)
        return merged


class S2cObjective(ChipObjective):
    """Crops with the segments under them."""

    def __init__(
        self, losses: S2cLosses, learn: Chips, select: Chips, learning: Learning, segments: Segments | None
    ) -> None:
        super().__init__(losses, learn, select, learning)
        self._segments = segments

    def batch(self, step: int) -> dict[str, Tensor]:
        """Crops of one step."""
        learning = self.learning
        rng = generator(learning.seed, 1, step)
        index = epoch_indices(len(self._learn), learning.batch, step, learning.seed)
        rgb, layers = [], []
        for i in index:
            image = self._learn.rgb(int(i))
            blank = np.zeros(image.shape[:2], np.int32)
            layer = blank if self._segments is None else self._segments(int(i))
            crop = take_crop(image, learning.cropping, rng, layer)
            rgb.append(crop.rgb)
            layers.append(crop.layer)
        return self.tensors(rgb, index) | {
            "pixels": torch.from_numpy(np.stack(rgb)),
            "segments": torch.from_numpy(np.stack(layers)).long(),  # type: ignore[arg-type]
            "epoch": torch.tensor(step / learning.epoch_steps(len(self._learn))),
        }

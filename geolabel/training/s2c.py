"""S2C: a classifier learns from a segmenter, by the segments of every chip and by the masks of its own peaks.

The two terms are pure functions of tensors; `S2cLosses` and `S2cObjective` train with them.

Source: Kweon and Yoon (2024), "From SAM to CAMs: Exploring Segment Anything Model for Weakly Supervised Semantic
Segmentation", CVPR. Numbers of equations are the paper's. Where the paper is silent or misprinted:

* Eq. 6 lacks its exponentials and its logarithm; InfoNCE is meant.
* Prototypes carry no gradient, as in the released code.
* The stability of a mask is a map in the paper, and the logits in the released code: here the probability of a pixel.
* A is max-normalised to 0..1 and goes into the cross-entropy of eq. 13 as it is, so that loss has a floor above 0:
  ``log(1 + C / e)`` for C classes that are not the target.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from geolabel.activation import Activation
from geolabel.chips import Chips
from geolabel.labels import IGNORE
from geolabel.models.nets.classifier import merged_maps
from geolabel.parts import Labeler, Pipeline, Prompter, Segmenter
from geolabel.training.image_labels import ChipLosses, ChipObjective, Learning, Segments
from geolabel.training.samples import epoch_indices, generator, take_crop
from geolabel.types import UInt8Array

Targets = Callable[[Sequence[UInt8Array], Tensor, Tensor], Tensor]
"""(N, H, W) label maps of images (H, W, 3), from their maps (N, C, h, w) of 0..1 and labels (N, C)."""

EPSILON = 1e-5
"""Added to a maximum before dividing by it, as in all code of these methods."""


def prototypes(features: Tensor, segments: Tensor, count: int) -> Tensor:
    """Unit prototypes (count, D): normalised means of the normalised features of each segment (eq. 5).

    Parameters
    ----------
    features : (P, D)
        Of unit length.
    segments : (P,)
        Number of each feature's segment, 0 to ``count - 1``; all must occur.
    """
    sums = features.new_zeros((count, features.shape[1])).index_add(0, segments, features)
    # the mean has the direction of the sum, and is normalised anyway
    return functional.normalize(sums, dim=1)


def segment_contrast(
    features: Tensor, segments: Tensor, temperature: float = 0.5, *, detach: bool = True, pixels: int | None = None
) -> Tensor:
    """SSC (eq. 5 and 6): every covered pixel should be nearer to its own segment's prototype than to the others'.

    Parameters
    ----------
    features : (N, D, h, w)
        Enlarged bilinearly to the size of the segments.
    segments : (N, H, W)
        Number of the segment, from 1; 0 outside.
    temperature
        Divides the cosines. The released code multiplies by 1 instead, which is the same for 1.
    detach
        Whether prototypes carry no gradient.
    pixels
        Approximate number of pixels of an image that are used, evenly spread; None for all. The similarities of all
        pixels of a large image do not fit in memory.

    Returns
    -------
    mean over the covered pixels of each image, then over the images; 0 if nothing is covered
    """
    enlarged = functional.interpolate(features, segments.shape[-2:], mode="bilinear", align_corners=False)
    step = 1 if pixels is None else max(1, round((segments[0].numel() / pixels) ** 0.5))
    losses = []
    for maps, numbers in zip(enlarged, segments, strict=True):
        flat = functional.normalize(maps[:, ::step, ::step].flatten(1).T, dim=1)
        thinned = numbers[::step, ::step].flatten()
        covered = thinned > 0
        present, own = thinned[covered].unique(return_inverse=True)
        if not len(present):
            losses.append(maps.sum() * 0)
            continue
        points = flat[covered]
        centres = prototypes(points.detach() if detach else points, own, len(present))
        losses.append(functional.cross_entropy(points @ centres.T / temperature, own))
    return torch.stack(losses).mean()


def normalised(maps: Tensor, labels: Tensor | None = None) -> Tensor:
    """Maps scaled to 0..1 by their own maximum; negative values, and classes that an image does not show, become 0.

    Parameters
    ----------
    maps : (N, C, h, w)
    labels : (N, C)
        0 or 1; None to keep all classes.
    """
    positive = maps.relu() if labels is None else maps.relu() * labels[:, :, None, None]
    return positive / (positive.amax(dim=(2, 3), keepdim=True) + EPSILON)


def with_background(maps: Tensor) -> Tensor:
    """(N, 1 + C, h, w): a background channel before the classes, one minus the strongest of them (eq. 12)."""
    return torch.cat([1 - maps.amax(dim=1, keepdim=True), maps], dim=1)


def prompted_mask_loss(maps: Tensor, target: Tensor, shows: Tensor, *, background: bool = True) -> Tensor:
    """CPM (eq. 13): cross-entropy of the maps, with a background channel, against prompted masks.

    Parameters
    ----------
    maps : (N, C, h, w)
        0..1; enlarged bilinearly to the target's size.
    target : (N, H, W)
        0 background, c + 1 the class c, 255 ignored.
    shows : (N,)
        Which images show a class. The others have no map and no loss.
    background
        False compares each map with the mask of its class only, by absolute difference, as in the paper's ablation.

    Returns
    -------
    mean over the pixels of these images that are not ignored; 0 if there are none
    """
    maps, target = maps[shows], target[shows]
    if not len(maps):
        return maps.sum() * 0
    known = target != IGNORE
    enlarged = functional.interpolate(maps, target.shape[-2:], mode="bilinear", align_corners=False)
    if background:
        total = functional.cross_entropy(with_background(enlarged), target, ignore_index=IGNORE, reduction="sum")
    else:
        masks = functional.one_hot(target.masked_fill(~known, 0), maps.shape[1] + 1).movedim(-1, 1)[:, 1:]
        total = ((enlarged - masks).abs() * known[:, None]).sum()
    return total / known.sum().clamp(min=1)


@dataclass(frozen=True)
class S2cTerms:
    """Loss terms and their numbers; the paper's."""

    contrast: bool = True
    """SSC."""
    contrast_on_logits: bool = False
    """SSC on the class maps instead of the features, as in the paper's ablation."""
    temperature: float = 0.5
    pixels: int | None = None
    """Approximate number of pixels of a crop used in SSC; None for all, as in the paper."""
    prompted: bool = True
    """CPM."""
    prompted_from: float = 1.0
    """First epoch with CPM: earlier maps are too poor for prompts. A training with fewer epochs than its preset waits
    for the same share of them."""
    background: bool = True
    """Whether CPM has a background."""
    single_peak: bool = False
    by_stability: bool = True
    by_activation: bool = True
    by_logits: bool = False
    """See `prompters.PeakPrompter` and `labelers.ConfidenceLabeler`."""
    smallest: bool = True
    """Whether a pixel belongs to the smallest segment that covers it; otherwise to that with the highest predicted IoU,
    as in the released code."""
    scales: tuple[float, ...] = (0.5, 1.0, 1.5, 2.0)
    """Scales of the maps used for prompts."""


@dataclass(frozen=True)
class Given:
    """Known activations as a localizer."""

    activations: list[Activation]
    classes: tuple[str, ...] = ()
    window: int = 1
    stride: int = 1
    gsd_range: tuple[float, float] = (0.0, float("inf"))

    def __call__(self, images: Sequence[UInt8Array]) -> list[Activation]:  # noqa: ARG002
        """The activations, which are those of the images."""
        return self.activations


def prompted_targets(prompter: Prompter, segmenter: Segmenter, labeler: Labeler, classes: tuple[str, ...]) -> Targets:
    """Targets from a segmenter prompted by the peaks of maps (eq. 7 to 11), as a function that can be pickled."""

    def targets(images: Sequence[UInt8Array], maps: Tensor, labels: Tensor) -> Tensor:
        found = [np.zeros(image.shape[:2], np.uint8) for image in images]
        shown = np.flatnonzero(labels.any(dim=1).cpu().numpy()).tolist()
        stride = images[0].shape[0] // maps.shape[-2]
        every = (one for one in maps.float().cpu().numpy())
        given = [Activation(one, np.ones_like(one), one.max(axis=(1, 2)), stride, classes) for one in every]
        pipeline = Pipeline(Given([given[k] for k in shown]), prompter, segmenter, labeler)
        for k, one in zip(shown, pipeline.many([images[k] for k in shown]) if shown else (), strict=True):
            found[k] = one.values
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
            The same crops for a segmenter.
        segments : (N, S, S)
            See `segment_contrast`.
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
            losses["prompted"] = prompted_mask_loss(
                normalised(maps, labels), target, labels.any(dim=1), background=terms.background
            )
        else:
            losses["prompted"] = maps.sum() * 0  # keeps the column in the curves
        return losses

    def _current(self, images: Tensor, labels: Tensor) -> Tensor:
        """Maps of the current weights, for prompts."""
        training = self.training
        self.eval()
        merged = normalised(merged_maps(self.network, images, self._terms.scales), labels)
        self.train(training)
        return merged


class S2cObjective(ChipObjective):
    """Crops with their segments."""

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

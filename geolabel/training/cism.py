"""CISM: a classifier compares images in pairs that share a class.

The modules and losses are pure functions of tensors; `CismLosses` and `CismObjective` train with them.

Source: Zhou et al. (2023), "Weakly Supervised Semantic Segmentation in Aerial Imagery via Cross-Image Semantic Mining",
Remote Sensing 15, 986; numbers of equations are the paper's. No code was released, and several equations do not fit
together as printed. They are read as follows:

* P is one vector per image, and what eq. 7 compares has to vary over space: X is the 1x1 convolution of the gated map.
* Eq. 8 uses one similarity for both images, whose positions differ: each image has its own.
* Similarities are rescaled to 0..1 per image; a constant one becomes 1.
* Eq. 14 multiplies the map of a class, the prototype and the features, all of one width D.
* The weight gamma of eq. 16 is the softmax over classes at each pixel. Without SLSC, which brings that softmax, the
  class vectors are plain means, classified as the image is: by one sigmoid for each class.
* Eq. 21 has one index where the loss of ReCAM (Chen et al. 2022), which inspired it, has two: logit j of the vector of
  class n. With one logit for each class, two classes that an image shows would best be told equally likely, and the
  weights of a class that is always beside another, such as `OTHER`, would never rise above those of the other.
* The map that is kept is that of the second classifier: its weights on the features, times the mean prototype of the
  images that show the class, so that the map of a scene depends on no partner.

A softmax over one class says nothing, and images of one class have nothing to compare. So a task with one class gets a
second one in training, `OTHER`: the ground around the class, which every image shows.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.random import Generator
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from geolabel.chips import Chips
from geolabel.models.nets.classifier import class_logits
from geolabel.training.image_labels import ChipLosses, ChipObjective, Learning
from geolabel.training.s2c import EPSILON
from geolabel.training.samples import epoch_indices, generator, take_crop
from geolabel.types import BoolArray, UInt8Array

logger = logging.getLogger(__name__)

WIDTH = 256
"""D, the width of prototypes."""

OTHER = "other"
"""The class beside a single one: other ground, which every image shows. It has no map in the trained localizer."""

AFFINITY = 128
"""Width of the keys and queries of `CrossImageAffinity`."""

_MOMENTUM = 0.02
"""Share of a step in the running mean of the prototypes."""

_FEW_CLASSES = 3
"""Maximum number of classes of an image in the low group, from which samples are generated."""


def prototype(features: Tensor, gate: Tensor) -> Tensor:
    """(N, D) means of features (N, D, h, w) over the cells of a gate (N, 1, h, w) (eq. 3 and 4).

    A constant factor of the gate cancels; if the gate is closed everywhere, the mean is 0.
    """
    open_cells = gate.sum(dim=(2, 3))
    return (features * gate).sum(dim=(2, 3)) / open_cells.clamp(min=EPSILON)


class _Similarity(NamedTuple):
    """Similarity of each cell to the other image of a pair."""

    q: Tensor
    """(N, 1, hq, wq)"""
    r: Tensor
    """(N, 1, hr, wr)"""


def cross_similarity(q: Tensor, r: Tensor) -> _Similarity:
    """Maximum cosine similarity of each cell of one image with any cell of the other (eq. 7), -1..1.

    Parameters
    ----------
    q : (N, D, hq, wq)
    r : (N, D, hr, wr)
    """
    flat_q, flat_r = (functional.normalize(x.flatten(2), dim=1) for x in (q, r))
    cosines = flat_q.transpose(1, 2) @ flat_r
    of_q, of_r = cosines.amax(dim=2), cosines.amax(dim=1)
    return _Similarity(of_q.reshape(len(q), 1, *q.shape[2:]), of_r.reshape(len(r), 1, *r.shape[2:]))


def rescaled(similarity: Tensor) -> Tensor:
    """Similarity (N, 1, h, w) scaled to 0..1 in each image; 1 if it is constant."""
    low, high = similarity.amin(dim=(2, 3), keepdim=True), similarity.amax(dim=(2, 3), keepdim=True)
    span = high - low
    spread = (similarity - low) / span.clamp(min=EPSILON)
    return torch.where(span > EPSILON, spread, torch.ones_like(spread))


def enhanced(own: Tensor, other: Tensor, similarity: Tensor) -> Tensor:
    """PIE (eq. 8 and 9): prototypes (N, D) and the mean of the other image's X (N, D, h, w) where it is similar."""
    return own + (other * similarity).sum(dim=(2, 3)) / similarity.sum(dim=(2, 3)).clamp(min=EPSILON)


def class_maps(maps: Tensor) -> Tensor:
    """M of eq. 12 and 13: linear maps (N, C, h, w), with the positive part scaled to a maximum of 1."""
    positive = maps.relu()
    return positive / (positive.amax(dim=(2, 3), keepdim=True) + EPSILON)


def class_vectors(features: Tensor, maps: Tensor, prototypes: Tensor, weights: Tensor) -> Tensor:
    """Eq. 14 to 17: features weighted by each class's map and the prototype, averaged under soft labels.

    Parameters
    ----------
    features : (N, D, h, w)
    maps : (N, C, h, w)
        0..1
    prototypes : (N, D)
    weights : (N, C, h, w)
        Gamma; softmax over the classes.

    Returns
    -------
    (N, C, D)
    """
    share = weights * maps
    sums = torch.einsum("nchw,ndhw->ncd", share, features) * prototypes[:, None]
    return sums / weights.sum(dim=(2, 3)).clamp(min=EPSILON)[..., None]


def single_label_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """SLSC (eq. 21 and 22): every class vector of a shown class should be classified as that class only.

    Parameters
    ----------
    logits : (N, C, C)
        By class vector, then by class.
    labels : (N, C)

    Returns
    -------
    mean over the classes that an image shows, then over the images that show one; 0 if none does
    """
    count = labels.sum(dim=1)
    own = logits.log_softmax(dim=2).diagonal(dim1=1, dim2=2)
    each = -(labels * own).sum(dim=1) / count.clamp(min=1)
    return each.sum() / (count > 0).sum().clamp(min=1)


class _PairLabels(NamedTuple):
    """Classes (N, C) of a pair: in both, in the first only, in the second only."""

    common: Tensor
    q_only: Tensor
    r_only: Tensor


def pair_labels(q: Tensor, r: Tensor) -> _PairLabels:
    """Split the labels (N, C), 0 or 1, of both images of a pair."""
    common = q * r
    return _PairLabels(common, q - common, r - common)


def common_semantic_loss(logits_q: Tensor, logits_r: Tensor, common: Tensor) -> Tensor:
    """CSM (eq. 23 and 24): similar cells of both images should show the common classes.

    Parameters
    ----------
    logits_q, logits_r : (N, C)
        Mean class logits of the cells of each image, weighted by their similarity.
    common : (N, C)

    Returns
    -------
    sum over the classes, mean over the pairs that have a class in common; 0 if none has
    """
    return _over_pairs(
        functional.binary_cross_entropy_with_logits(logits_q + logits_r, common, reduction="none"), common
    )


def non_common_semantic_loss(logits_q: Tensor, logits_r: Tensor, labels: _PairLabels) -> Tensor:
    """NSC (eq. 25 to 27): the other cells of each image should show the classes that only that image has.

    Parameters
    ----------
    logits_q, logits_r : (N, C)
        Mean class logits of the cells of each image, weighted by one minus their similarity.

    Returns
    -------
    sum over the classes, mean over the pairs that have a class in common; 0 if none has
    """
    each = functional.binary_cross_entropy_with_logits(logits_q, labels.q_only, reduction="none")
    each = each + functional.binary_cross_entropy_with_logits(logits_r, labels.r_only, reduction="none")
    return _over_pairs(each, labels.common)


def _over_pairs(each: Tensor, common: Tensor) -> Tensor:
    # Pairs without a common class have no loss.
    partners = (common.sum(dim=1) > 0).to(each.dtype)
    return (each.sum(dim=1) * partners).sum() / partners.sum().clamp(min=1)


# --- multi-category sample generation --------------------------------------------------------------------------------


def low_group(labels: BoolArray) -> BoolArray:
    """(N,) images with few classes, 1 to `_FEW_CLASSES`, which are combined into richer ones."""
    count = labels.sum(axis=1)
    return np.asarray((count > 0) & (count <= _FEW_CLASSES))


def generated_sample(images: Sequence[UInt8Array], rng: Generator) -> UInt8Array:
    """MCSG: four images, scaled, cropped and arranged at random into one as large as the largest of them.

    Parameters
    ----------
    images
        Four of (H, W, 3). The new image shows all their classes.
    """
    if len(images) != 4:
        raise ValueError(f"a sample needs four images, not {len(images)}")
    height, width = (max(image.shape[axis] for image in images) for axis in (0, 1))
    row, col = (int(rng.integers(round(0.35 * n), round(0.65 * n) + 1)) for n in (height, width))
    canvas = np.empty((height, width, 3), np.uint8)
    parts = [
        (slice(0, row), slice(0, col)),
        (slice(0, row), slice(col, None)),
        (slice(row, None), slice(0, col)),
        (slice(row, None), slice(col, None)),
    ]
    for part, k in zip(parts, rng.permutation(4), strict=True):
        view = canvas[part]
        view[:] = _scaled_crop(images[k], view.shape[0], view.shape[1], rng)
    return canvas


def _scaled_crop(image: UInt8Array, height: int, width: int, rng: Generator) -> UInt8Array:
    # Scaled to fill the part, or up to half as large again, and cropped at random.
    smallest = max(height / image.shape[0], width / image.shape[1])
    scale = smallest * rng.uniform(1, 1.5)
    size = [max(n, round(side * scale)) for n, side in zip((height, width), image.shape[:2], strict=True)]
    scaled = np.asarray(Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BILINEAR))
    top, left = (int(rng.integers(have - need + 1)) for have, need in zip(size, (height, width), strict=True))
    return scaled[top : top + height, left : left + width]


# --- training --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CismTerms:
    """Modules, loss terms and their numbers; the paper's."""

    prototypes: bool = True
    """PV: class vectors are features weighted by a prototype, and are classified too."""
    enhancement: bool = True
    """PIE: prototypes are enriched by similar cells of the partner."""
    eta: float = 0.3
    """Share of cells that the gate of the prototypes closes."""
    secondary: bool = True
    """SLSC: class vectors are weighted by soft labels and classified by one softmax."""
    common: bool = True
    """CSM."""
    non_common: bool = True
    """NSC."""
    generated: bool = True
    """MCSG."""
    affinity: bool = False
    """The cross-image affinity of CIAN, the paper's baseline; not part of CISM."""
    other: bool = True
    """Whether a task with one class gets the second class `OTHER` in training."""
    weight: float = 1.0
    """Lambda of eq. 18. The paper learns it, but a learned weight without a bound falls to 0."""

    @property
    def vectors(self) -> bool:
        """Whether there are class vectors, and thus a second classifier."""
        return self.prototypes or self.enhancement or self.secondary


class CrossImageAffinity(nn.Module):
    """Adds features of the partner, and of the image itself, at similar places.

    Source: Fan et al. (2020), "CIAN: Cross-Image Affinity Net for Weakly Supervised Semantic Segmentation". Keys and
    values are pooled by 2; the element-wise maximum of the answers of the image and its partner is used.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query, self.key = (nn.Conv2d(channels, AFFINITY, 1) for _ in range(2))
        self.value = nn.Conv2d(channels, channels, 1)

    def forward(self, features: Tensor) -> Tensor:
        """(2 N, D, h, w) from features of that shape, whose second half are the partners of the first."""
        partners = torch.cat(features.chunk(2)[::-1])
        heard = torch.maximum(self._answer(features, features), self._answer(features, partners))
        found: Tensor = features + heard
        return found

    def _answer(self, asking: Tensor, asked: Tensor) -> Tensor:
        pooled = functional.avg_pool2d(asked, 2, ceil_mode=True)
        query, key, value = (x.flatten(2) for x in (self.query(asking), self.key(pooled), self.value(pooled)))
        share = (query.transpose(1, 2) @ key / AFFINITY**0.5).softmax(dim=2)
        answer: Tensor = (value @ share.transpose(1, 2)).reshape(asking.shape)
        return answer


class CismLosses(ChipLosses):
    """Eq. 18. Modules besides the network are for training only, except the second classifier; see `localizer`."""

    def __init__(self, network: nn.Module, names: Sequence[str], terms: CismTerms, **rest: Any) -> None:
        super().__init__(network, names, **rest)
        inputs, classes = self.network.head.in_channels, self.network.head.out_channels
        self._terms = terms
        self.other = nn.Conv2d(inputs, 1, 1) if classes == 1 and terms.other else None
        count = classes + (self.other is not None)
        self.project = nn.Conv2d(inputs, WIDTH, 1)
        self.spatial = nn.Conv2d(WIDTH, WIDTH, 1)
        self.semantic = nn.Conv2d(WIDTH, count, 1)
        self.secondary = nn.Parameter(torch.randn(count, WIDTH) / WIDTH**0.5)
        self.affinity = CrossImageAffinity(inputs) if terms.affinity else None
        self.typical: Tensor
        self.register_buffer("typical", torch.full((count, WIDTH), 0.5))

    def losses(self, images: Tensor, labels: Tensor, gates: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        """Losses of pairs: the first half of the batch, each with its partner in the second.

        Parameters
        ----------
        images : (2 N, 3, S, S)
            Normalised.
        labels : (2 N, C)
        gates : (2 N, 1, h, w)
            Gamma of eq. 5.
        """
        terms = self._terms
        if self.other is not None:
            labels = torch.cat([labels, torch.ones_like(labels[:, :1])], dim=1)
        features = self.network.features(images)
        maps = self._maps(features)
        losses = {"classification": self._summed(class_logits(maps, self._bias, self.network.sharpness), labels)}
        if self.affinity is not None:
            heard = self._maps(self.affinity(features))
            losses["affinity"] = self._summed(class_logits(heard, self._bias, self.network.sharpness), labels)
        projected = self.project(features).sigmoid()  # eq. 1 and 2
        spatial = self.spatial(projected * gates)  # eq. 6
        q, r = spatial.chunk(2)
        similar = torch.cat([rescaled(s) for s in cross_similarity(q, r)])
        if terms.vectors:
            prototypes = prototype(projected, gates)  # eq. 3 and 4
            if terms.enhancement:
                prototypes = enhanced(prototypes, torch.cat([r, q]), torch.cat(similar.chunk(2)[::-1]))
            self._remember(prototypes, labels)
            losses |= self._of_vectors(projected, maps, prototypes, labels)
        pairs = pair_labels(*labels.chunk(2))
        if terms.common:
            of_q, of_r = self.semantic(similar * spatial).mean(dim=(2, 3)).chunk(2)
            losses["common"] = terms.weight * common_semantic_loss(of_q, of_r, pairs.common)
        if terms.non_common:
            of_q, of_r = self.semantic((1 - similar) * spatial).mean(dim=(2, 3)).chunk(2)
            losses["non_common"] = terms.weight * non_common_semantic_loss(of_q, of_r, pairs)
        return losses

    @property
    def localizer(self) -> Any:
        """The network with the maps of the second classifier, if there is one: a copy, with a bias of 0."""
        if not self._terms.vectors:
            return super().localizer
        network: Any = copy.deepcopy(self.network)
        classes = network.head.out_channels
        weight = self.secondary.detach()
        if self._terms.secondary:  # a softmax determines its weights only up to a vector common to all classes
            weight = weight - weight.mean(dim=0)
        weight = weight * self.typical
        network.projected = WIDTH
        network.projection = nn.Sequential(copy.deepcopy(self.project), nn.Sigmoid())
        network.head = nn.Conv2d(WIDTH, classes, 1, bias=False)
        with torch.no_grad():
            network.head.weight.copy_(weight[:classes, :, None, None])
            network.bias.zero_()
        return network.to(weight.device)

    @property
    def _bias(self) -> Tensor:
        bias: Tensor = self.network.bias
        return bias if self.other is None else torch.cat([bias, bias.new_zeros(1)])

    def _maps(self, features: Tensor) -> Tensor:
        maps: Tensor = self.network.head(features)
        return maps if self.other is None else torch.cat([maps, self.other(features)], dim=1)

    def _of_vectors(self, projected: Tensor, maps: Tensor, prototypes: Tensor, labels: Tensor) -> dict[str, Tensor]:
        terms, active = self._terms, class_maps(maps)
        soft = maps.softmax(dim=1) if terms.secondary else torch.ones_like(maps)
        vectors = class_vectors(projected, active, prototypes, soft)
        logits = vectors @ self.secondary.T
        if terms.secondary:
            return {"secondary": terms.weight * single_label_loss(logits, labels)}
        own = logits.diagonal(dim1=1, dim2=2)
        return {"prototypes": terms.weight * self._summed(own, labels)}

    @torch.no_grad()
    def _remember(self, prototypes: Tensor, labels: Tensor) -> None:
        if not self.training:
            return
        count = labels.sum(dim=0)[:, None]
        mean = labels.T @ prototypes.float() / count.clamp(min=1)
        self.typical += _MOMENTUM * (count > 0) * (mean - self.typical)

    @staticmethod
    def _summed(logits: Tensor, labels: Tensor) -> Tensor:
        """Binary cross-entropy, summed over the classes as in eq. 19, averaged over the images."""
        return functional.binary_cross_entropy_with_logits(logits, labels, reduction="none").sum(dim=1).mean()


class CismObjective(ChipObjective):
    """Pairs of crops whose chips share a class; some crops are generated from four chips."""

    def __init__(self, losses: CismLosses, learn: Chips, select: Chips, learning: Learning, terms: CismTerms) -> None:
        super().__init__(losses, learn, select, learning)
        self._terms = terms
        self._low = np.flatnonzero(low_group(learn.labels))
        self._bare = np.flatnonzero(~learn.labels.any(axis=1))
        self._warn()

    def batch(self, step: int) -> dict[str, Tensor]:
        """Pairs of one step."""
        learning = self.learning
        rng = generator(learning.seed, 1, step)
        first = epoch_indices(len(self._learn), max(1, learning.batch // 2), step, learning.seed)
        partners = [partner(self._learn.labels, int(i), rng) for i in first]
        index = np.concatenate([first, np.asarray(partners, np.int32)])
        crops, labels, sources = [], [], []
        for i in index:
            rgb, shows, used = self._sample(int(i), rng)
            crops.append(take_crop(rgb, learning.cropping, rng).rgb)
            labels.append(shows)
            sources.append(used)
        cells = learning.cropping.size // self.module.network.stride
        dropped = torch.from_numpy(rng.random((len(index), 1, cells, cells))) < self._terms.eta
        batch = self.tensors(crops, index)
        batch["index"] = torch.tensor(sources)
        batch["labels"] = torch.from_numpy(np.stack(labels)).float()
        return batch | {"gates": (~dropped).float()}

    def _sample(self, i: int, rng: Generator) -> tuple[UInt8Array, BoolArray, list[int]]:
        """A chip, or a sample generated from it and three other chips with few classes, with all of their labels.

        Chips without a class are combined as often, with each other: otherwise the seams of a sample would reveal that
        it shows a class.
        """
        labels = self._learn.labels
        share = len(self._low) / max(1, int(labels.any(axis=1).sum()))
        group = self._low if labels[i].any() else self._bare
        joined = self._terms.generated and len(group) >= 4 and i in group
        if not joined or rng.random() >= share / 2:
            return self._learn.rgb(i), labels[i], [i] * 4
        four = [i, *(int(k) for k in rng.choice(group, 3, replace=False))]
        rgb = generated_sample([self._learn.rgb(k) for k in four], rng)
        return rgb, np.asarray(labels[four].any(axis=0)), four

    def _warn(self) -> None:
        labels = self._learn.labels
        if labels.shape[1] == 1 and not self._terms.other:
            logger.warning("with one class, the secondary classification has nothing to distinguish: its loss is 0")
        for name, count in zip(self._learn.classes, labels.sum(axis=0), strict=True):
            if count < 2:
                logger.warning("the class %r is shown by %d chip: it never has a partner", name, count)
        if self._terms.non_common and not self._terms.common:
            logger.warning("the non-common loss without the common one made maps worse in the paper (Table 8)")


def partner(labels: BoolArray, index: int, rng: Generator) -> int:
    """Another image that shares a class with one of them; any other if none does, or if it shows nothing.

    Parameters
    ----------
    labels : (N, C)
    """
    shares = (labels & labels[index]).any(axis=1)
    shares[index] = False
    others = np.flatnonzero(shares)
    if not len(others):
        others = np.flatnonzero(np.arange(len(labels)) != index)
    return int(rng.choice(others)) if len(others) else index

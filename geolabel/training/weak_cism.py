"""CISM: the classifier compares images in pairs that share a class."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor, nn

from geolabel.chips import Chips
from geolabel.training import cism
from geolabel.training.crops import epoch_indices, take_crop
from geolabel.training.samples import generator
from geolabel.training.weak import ChipLosses, ChipObjective, Learning
from geolabel.types import BoolArray, UInt8Array

logger = logging.getLogger(__name__)

WIDTH = 256
"""D, the width of prototypes."""


@dataclass(frozen=True)
class CismTerms:
    """Which modules and terms there are, and their numbers; the paper's."""

    enhancement: bool = True
    """PIE."""
    eta: float = 0.3
    """Share of cells that the gate of the prototypes closes."""
    secondary: bool = True
    """SLSC."""
    common: bool = True
    """CSM."""
    non_common: bool = True
    """NSC."""
    generated: bool = True
    """MCSG."""
    weight: float = 1.0
    """Lambda of eq. 18. The paper learns it; a learned weight without a bound falls to 0."""


class CismLosses(ChipLosses):
    """Eq. 18. What is beside the network serves the training alone."""

    def __init__(self, network: nn.Module, names: Sequence[str], terms: CismTerms, **rest: Any) -> None:
        super().__init__(network, names, **rest)
        inputs, classes = self.network.head.in_channels, self.network.head.out_channels
        self._terms = terms
        self.project = nn.Conv2d(inputs, WIDTH, 1)
        self.spatial = nn.Conv2d(WIDTH, WIDTH, 1)
        self.semantic = nn.Conv2d(WIDTH, classes, 1)
        self.secondary = nn.Parameter(torch.randn(classes, WIDTH) / WIDTH**0.5)

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
        features = self.network.features(images)
        maps = self.network.head(features)
        losses = {"classification": self.classification(maps, labels)}
        projected = self.project(features).sigmoid()  # eq. 1 and 2
        spatial = self.spatial(projected * gates)  # eq. 6
        q, r = spatial.chunk(2)
        similar = torch.cat([cism.rescaled(s) for s in cism.cross_similarity(q, r)])
        if terms.secondary:
            prototypes = cism.prototype(projected, gates)
            if terms.enhancement:
                prototypes = cism.enhanced(prototypes, torch.cat([r, q]), torch.cat(similar.chunk(2)[::-1]))
            vectors = cism.class_vectors(projected, cism.class_maps(maps), prototypes, maps.softmax(dim=1))
            logits = (vectors * self.secondary).sum(dim=2)
            losses["secondary"] = terms.weight * cism.single_label_loss(logits, labels)
        pairs = cism.pair_labels(*labels.chunk(2))
        if terms.common:
            of_q, of_r = self.semantic(similar * spatial).mean(dim=(2, 3)).chunk(2)
            losses["common"] = terms.weight * cism.common_semantic_loss(of_q, of_r, pairs.common)
        if terms.non_common:
            of_q, of_r = self.semantic((1 - similar) * spatial).mean(dim=(2, 3)).chunk(2)
            losses["non_common"] = terms.weight * cism.non_common_semantic_loss(of_q, of_r, pairs)
        return losses


class CismObjective(ChipObjective):
    """Pairs of crops whose chips share a class, some of them put together from four chips."""

    def __init__(self, losses: CismLosses, learn: Chips, select: Chips, learning: Learning, terms: CismTerms) -> None:
        super().__init__(losses, learn, select, learning)
        self._terms = terms
        self._low = np.flatnonzero(cism.low_group(learn.labels))
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
        """A chip, or a sample generated from it and three others that show few classes, with all of their labels."""
        labels = self._learn.labels
        share = len(self._low) / max(1, int(labels.any(axis=1).sum()))
        low = self._terms.generated and len(self._low) >= 4 and i in self._low
        if not low or rng.random() >= share / 2:
            return self._learn.rgb(i), labels[i], [i] * 4
        four = [i, *(int(k) for k in rng.choice(self._low, 3, replace=False))]
        rgb = cism.generated_sample([self._learn.rgb(k) for k in four], rng)
        return rgb, np.asarray(labels[four].any(axis=0)), four

    def _warn(self) -> None:
        labels = self._learn.labels
        if labels.shape[1] == 1:
            logger.warning("with one class, the secondary classification has nothing to tell apart: its loss is 0")
        for name, count in zip(self._learn.classes, labels.sum(axis=0), strict=True):
            if count < 2:
                logger.warning("the class %r is shown by %d chip: it never meets a partner", name, count)
        if self._terms.non_common and not self._terms.common:
            logger.warning("the non-common loss without the common one made maps worse in the paper (Table 8)")


def partner(labels: BoolArray, index: int, rng: Generator) -> int:
    """Another image that shares a class with one of them; any other where none does, or where it shows nothing.

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

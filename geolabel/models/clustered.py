"""A segmenter that answers with one class only: the masks whose clusters are called so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from geolabel.clusters import Clusters
from geolabel.labelers import gate
from geolabel.labels import smallest_wins
from geolabel.masks import FeaturedMasks, Masks
from geolabel.mosaic import NO_MASK
from geolabel.parts import Segmenter
from geolabel.prompts import Prompts
from geolabel.types import UInt8Array


@dataclass(frozen=True)
class ClusterSegmenter:
    """Keeps, of the masks of an image, those of the named clusters, as far as no smaller mask of another one is there.

    So what is left of an image is what ALPS would paint with the class, with the masks' own scores.
    """

    segmenter: Segmenter
    """Answers with `FeaturedMasks`."""
    clusters: Clusters
    class_name: str
    max_share: float
    """The filtering gate of ALPS, eq. 2 and 3."""

    @property
    def window(self) -> int:
        """Side in pixels of the largest image it takes."""
        return self.segmenter.window

    @property
    def gsd_range(self) -> tuple[float, float]:
        """Finest and coarsest ground sample distance, metres, that it knows."""
        return self.segmenter.gsd_range

    def __call__(self, images: Sequence[UInt8Array], prompts: Sequence[Prompts]) -> list[Masks]:
        """Masks of images (H, W, 3), red first."""
        return [self._choose(masks) for masks in self.segmenter(images, prompts)]

    def _choose(self, masks: Masks) -> Masks:
        assert isinstance(masks, FeaturedMasks)
        masks = masks[gate(masks.binary, self.max_share)]
        wanted = np.isin(self.clusters.assign(masks.features), self.clusters.of_class(self.class_name))
        owner = smallest_wins(masks.binary)
        others = (owner != NO_MASK) & ~np.append(wanted, False)[owner]  # NO_MASK, -1, picks the last
        kept = masks[wanted]
        return replace(kept, scores=np.where(others, np.uint8(0), kept.scores))

"""A segmenter for images larger than its window, which sees them reduced."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from geolabel.masks import Masks
from geolabel.parts import Segmenter
from geolabel.prompts import Prompts
from geolabel.types import UInt8Array


@dataclass(frozen=True)
class FittingSegmenter:
    """Reduces an image until its longer side fits, as the official networks do with every image.

    For chips, which are seen whole; scenes are worked on in tiles at their own pixels instead.
    """

    segmenter: Segmenter

    @property
    def window(self) -> int:
        """There is no largest image."""
        return 1 << 30

    @property
    def gsd_range(self) -> tuple[float, float]:
        """Of the segmenter."""
        return self.segmenter.gsd_range

    def __call__(self, images: Sequence[UInt8Array], prompts: Sequence[Prompts]) -> list[Masks]:
        """Masks of images (H, W, 3) at their own size."""
        return [self._one(image, asked) for image, asked in zip(images, prompts, strict=True)]

    def _one(self, image: UInt8Array, prompts: Prompts) -> Masks:
        height, width = image.shape[:2]
        share = self.segmenter.window / max(height, width)
        if share >= 1:
            return self.segmenter([image], [prompts])[0]
        small = max(1, round(width * share)), max(1, round(height * share))
        # a copy, since torch warns of arrays that cannot be written to, as those that Pillow lends are
        reduced = np.array(Image.fromarray(image).resize(small, Image.Resampling.BILINEAR))
        # a point is the index of a pixel: centres keep their place
        scaled = replace(prompts, boxes=prompts.boxes * share, points=(prompts.points + 0.5) * share - 0.5)
        (masks,) = self.segmenter([reduced], [scaled])
        scores = np.empty((len(masks), height, width), np.uint8)
        for k, score in enumerate(masks.scores):
            scores[k] = np.asarray(Image.fromarray(score).resize((width, height), Image.Resampling.BILINEAR))
        return replace(masks, scores=scores)

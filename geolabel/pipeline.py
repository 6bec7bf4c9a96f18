"""The grammar that all methods share: an image becomes a label map in four steps.

A method is a choice of the four parts. The pipeline knows neither networks nor files, so a training objective may hold
one as well as a command does.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from geolabel.labels import LabelMap
from geolabel.parts import Labeler, Localizer, Prompter, Segmenter
from geolabel.tiles import TileGrid
from geolabel.types import UInt8Array


@dataclass(frozen=True)
class Pipeline:
    """Four parts that label an image (H, W, 3) of a size that all of them take."""

    localizer: Localizer
    prompter: Prompter
    segmenter: Segmenter
    labeler: Labeler

    def __call__(self, image: UInt8Array) -> LabelMap:
        """Label one image."""
        (activation,) = self.localizer([image])
        prompts = self.prompter(activation)
        (masks,) = self.segmenter([image], [prompts])
        return self.labeler(masks, prompts, activation)


def label_image(pipeline: Pipeline, image: UInt8Array, size: int, overlap: int | None = None) -> LabelMap:
    """Label an image of any size: tile by tile, every pixel by the tile whose centre is nearest.

    Parameters
    ----------
    size
        Largest side of a tile, pixels; an image up to that size is one tile.
    overlap
        Pixels that neighbouring tiles share; by default a quarter of the tile.
    """
    height, width = image.shape[:2]
    tiles = TileGrid(height, width, size, size // 4 if overlap is None else overlap)
    values, confidence = np.empty((height, width), np.uint8), np.empty((height, width), np.float32)
    for index, tile in enumerate(tiles):
        labels = pipeline(image[tile.slices])
        core = tiles.core(index)
        values[core.slices] = labels.values[core.within(tile)]
        confidence[core.slices] = labels.confidence[core.within(tile)]
    return LabelMap(values, confidence, labels.classes)

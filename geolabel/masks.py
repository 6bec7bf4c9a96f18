"""Masks of the segmenter: how candidates are judged and chosen."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Self

import numpy as np

from geolabel.errors import OptionError
from geolabel.settings.methods import Selection as Selection
from geolabel.types import BoolArray, Float32Array, Int32Array, Int64Array, UInt8Array

OUTSIDE = 255
"""Score of a pixel that is not valid. Scores of valid pixels are 0..254."""

FULL = 254
"""The score of probability one."""

EDGE = 127
"""The score of probability one half, SAM's own mask edge (a logit of 0)."""

FAINT = 13
"""Scores below this, one in twenty, are 0: a mask then ends somewhere, and nothing is to be done where it is not."""


STABILITY_OFFSET = 1.0
"""Logits by which the cuts of the stability are above and below the edge, as in segment-anything."""


@dataclass(frozen=True)
class Masks:
    """M masks of one image, each the answer to a prompt."""

    scores: UInt8Array
    """(M, H, W) sigmoid of the mask's logit, 0..254; 0 where that is less than `FAINT`."""
    predicted_iou: Float32Array
    """(M,) the network's own guess of the mask's quality, 0..1."""
    stability: Float32Array
    """(M,) 0..1, see `stability_score`."""
    prompt_ids: Int64Array
    """(M,) `Prompts.ids` of the prompt that the mask answers."""
    candidates: Int64Array
    """(M,) which of the network's mask tokens it is: 0 the single mask, 1 to 3 the candidates."""

    @staticmethod
    def none(height: int, width: int) -> Masks:
        """No masks of an image of that size."""
        ids: Int64Array = np.empty(0, np.int64)
        quality: Float32Array = np.empty(0, np.float32)
        return Masks(np.empty((0, height, width), np.uint8), quality, quality, ids, ids)

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, index: BoolArray | Int64Array | slice) -> Self:
        """Masks chosen by boolean mask, indices or slice."""
        return replace(self, **{f.name: getattr(self, f.name)[index] for f in fields(self)})

    @property
    def binary(self) -> BoolArray:
        """(M, H, W) the pixels inside SAM's edge."""
        return self.scores >= EDGE

    @property
    def quality(self) -> Float32Array:
        """(M,) predicted IoU times stability."""
        return self.predicted_iou * self.stability


@dataclass(frozen=True)
class FeaturedMasks(Masks):
    """Masks with what the network's encoder saw inside each."""

    features: Float32Array
    """(M, D) mean of the image embedding over the mask (ALPS, eq. 4)."""


@dataclass(frozen=True)
class ClassedMasks(Masks):
    """Masks whose class does not follow from their prompts."""

    class_ids: Int32Array
    """(M,) index into the classes of the segmenter."""


@dataclass(frozen=True)
class Filters:
    """Which candidates count as answers. The defaults are those of segment-anything's mask generator.

    Raises
    ------
    OptionError
        If a share does not lie between 0 and 1, or the offset is negative.
    """

    predicted_iou: float = 0.88
    """A candidate's predicted IoU has to exceed this."""
    stability: float = 0.95
    """Minimum stability, see `stability_score`; an empty mask is never an answer."""
    offset: float = STABILITY_OFFSET
    """Of the stability, logits."""
    duplicate: float = 0.7
    """Of candidates whose boxes have a larger IoU only the one of the highest predicted IoU is kept."""

    def __post_init__(self) -> None:
        for name in ("predicted_iou", "stability", "duplicate"):
            if not 0 <= getattr(self, name) <= 1:
                raise OptionError(f"{name.replace('_', ' ')} {getattr(self, name)}: it has to be between 0 and 1")
        if not self.offset >= 0:
            raise OptionError(f"stability offset {self.offset}: it must not be negative")


EVERY_CANDIDATE = Filters(predicted_iou=0, stability=0, duplicate=1)
"""Nothing is left out but empty masks: the choice is made elsewhere."""


def quantise_logits(logits: Float32Array) -> UInt8Array:
    """Map mask logits to scores 0..254, 0 for less than `FAINT`. Logits from 0 on give `EDGE` or more, others less."""
    with np.errstate(over="ignore"):  # of a logit far below 0, whose score is 0 either way
        score = np.exp(-np.asarray(logits, np.float32))
    score += 1
    np.divide(FULL, score, out=score)
    scores: UInt8Array = np.rint(score, out=score).astype(np.uint8)
    scores *= scores >= FAINT
    at_edge = scores == EDGE
    scores[at_edge] -= logits[at_edge] < 0  # rounded over it
    return scores


def stability_score(logits: Float32Array, offset: float = STABILITY_OFFSET) -> Float32Array:
    """IoU of the masks cut at ``+offset`` and ``-offset``, over the last two axes; 0 for an empty mask.

    Source: segment-anything, ``calculate_stability_score`` (threshold 0).
    """
    # -1 cannot be told where there is no pixel, as in a mask that is faint everywhere
    masks = logits.reshape(math.prod(logits.shape[:-2]), *logits.shape[-2:])
    inner, outer = (np.asarray([np.count_nonzero(mask > cut) for mask in masks]) for cut in (offset, -offset))
    share: Float32Array = (inner / np.maximum(outer, 1)).astype(np.float32)
    return share.reshape(logits.shape[:-2])

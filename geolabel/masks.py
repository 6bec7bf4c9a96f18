"""Masks of the segmenter: how candidates are scored and selected."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Self

import numpy as np

from geolabel.errors import OptionError
from geolabel.settings.methods import Selection as Selection
from geolabel.types import BoolArray, Float32Array, Int32Array, Int64Array, UInt8Array

OUTSIDE = 255
"""Score of pixels that are not valid. Valid pixels have 0..254."""

FULL = 254
"""Score of probability 1."""

EDGE = 127
"""Score of probability 0.5, the mask edge of SAM (a logit of 0)."""

FAINT = 13
"""Lower scores (below 1 in 20) are set to 0, so that masks are bounded and cheap outside."""


STABILITY_OFFSET = 1.0
"""Logits above and below the edge at which stability cuts the mask, as in segment-anything."""


@dataclass(frozen=True)
class Masks:
    """M masks of one image, each the answer to a prompt."""

    scores: UInt8Array
    """(M, H, W) sigmoid of the mask's logit, 0..254; 0 if less than `FAINT`."""
    predicted_iou: Float32Array
    """(M,) the network's predicted IoU, 0..1."""
    stability: Float32Array
    """(M,) 0..1, see `stability_score`."""
    prompt_ids: Int64Array
    """(M,) `Prompts.ids` of the answered prompt."""
    candidates: Int64Array
    """(M,) mask token of the network: 0 the single mask, 1 to 3 the candidates."""

    @staticmethod
    def none(height: int, width: int) -> Masks:
        """No masks, for an image of that size."""
        ids: Int64Array = np.empty(0, np.int64)
        quality: Float32Array = np.empty(0, np.float32)
        return Masks(np.empty((0, height, width), np.uint8), quality, quality, ids, ids)

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, index: BoolArray | Int64Array | slice) -> Self:
        """Masks selected by boolean mask, indices or slice."""
        return replace(self, **{f.name: getattr(self, f.name)[index] for f in fields(self)})

    @property
    def binary(self) -> BoolArray:
        """(M, H, W) pixels inside SAM's edge."""
        return self.scores >= EDGE

    @property
    def quality(self) -> Float32Array:
        """(M,) predicted IoU times stability."""
        return self.predicted_iou * self.stability


@dataclass(frozen=True)
class FeaturedMasks(Masks):
    """Masks with the encoder's features inside each."""

    features: Float32Array
    """(M, D) mean image embedding over the mask (ALPS, eq. 4)."""


@dataclass(frozen=True)
class ClassedMasks(Masks):
    """Masks whose class does not follow from their prompts."""

    class_ids: Int32Array
    """(M,) index into the segmenter's classes."""


@dataclass(frozen=True)
class Filters:
    """Which candidates are accepted. The defaults are those of segment-anything's mask generator.

    Raises
    ------
    OptionError
        If a share is not between 0 and 1, or the offset is negative.
    """

    predicted_iou: float = 0.88
    """Exclusive lower limit of a candidate's predicted IoU."""
    stability: float = 0.95
    """Minimum stability, see `stability_score`; empty masks are never accepted."""
    offset: float = STABILITY_OFFSET
    """Offset of the stability, in logits."""
    duplicate: float = 0.7
    """Maximum IoU of boxes; of candidates above it, only the one with the highest predicted IoU is kept."""

    def __post_init__(self) -> None:
        for name in ("predicted_iou", "stability", "duplicate"):
            if not 0 <= getattr(self, name) <= 1:
                raise OptionError(f"{name.replace('_', ' ')} {getattr(self, name)}: it must be between 0 and 1")
        if not self.offset >= 0:
            raise OptionError(f"stability offset {self.offset}: it must not be negative")


EVERY_CANDIDATE = Filters(predicted_iou=0, stability=0, duplicate=1)
"""Accepts everything except empty masks: the selection is made elsewhere."""


def quantise_logits(logits: Float32Array) -> UInt8Array:
    """Quantise mask logits to scores 0..254, 0 below `FAINT`. Logits from 0 on give at least `EDGE`, others less."""
    with np.errstate(over="ignore"):  # logits far below 0, whose score is 0 anyway
        score = np.exp(-np.asarray(logits, np.float32))
    score += 1
    np.divide(FULL, score, out=score)
    scores: UInt8Array = np.rint(score, out=score).astype(np.uint8)
    scores *= scores >= FAINT
    at_edge = scores == EDGE
    scores[at_edge] -= logits[at_edge] < 0  # rounded across the edge
    return scores


def stability_score(logits: Float32Array, offset: float = STABILITY_OFFSET) -> Float32Array:
    """IoU of masks cut at ``+offset`` and ``-offset``, over the last two axes; 0 for an empty mask.

    Source: segment-anything, ``calculate_stability_score`` (threshold 0).
    """
    # not -1: it cannot be inferred for masks without a pixel, such as those that are faint everywhere
    masks = logits.reshape(math.prod(logits.shape[:-2]), *logits.shape[-2:])
    inner, outer = (np.asarray([np.count_nonzero(mask > cut) for mask in masks]) for cut in (offset, -offset))
    share: Float32Array = (inner / np.maximum(outer, 1)).astype(np.float32)
    return share.reshape(logits.shape[:-2])

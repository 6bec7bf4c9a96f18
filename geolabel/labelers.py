"""From masks to a label map: the last of the four steps of every method."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from geolabel.activation import LEVELS, Activation
from geolabel.labels import BACKGROUND, IGNORE, LabelMap, highest_wins
from geolabel.masks import EDGE, FULL, Masks
from geolabel.mosaic import NO_MASK
from geolabel.parts import Labeler
from geolabel.prompts import Prompts
from geolabel.types import BoolArray, Float32Array, Float64Array, Int32Array, Int64Array, UInt8Array


@dataclass(frozen=True)
class UnionLabeler:
    """A pixel inside any mask gets the class of its prompt: APSAM, and the last step of DiffuPrompter.

    Masks of one class are united. Where masks of several classes overlap, the highest score wins, ties to the first
    prompt. Pixels without a mask are background.
    """

    def __call__(self, masks: Masks, prompts: Prompts, activation: Activation) -> LabelMap:
        """Label the image of the masks."""
        scores = np.where(masks.binary, masks.scores, np.uint8(0))
        owner = highest_wins(scores)
        covered = owner != NO_MASK
        values = np.zeros(owner.shape, np.uint8)
        values[covered] = classes_of(masks, prompts)[owner[covered]] + 1
        highest = scores.max(axis=0, initial=0).astype(np.float32) / FULL
        confidence = np.where(covered, highest, 1 - masks.scores.max(axis=0, initial=0) / np.float32(FULL))
        return LabelMap(values, confidence.astype(np.float32), (BACKGROUND, *activation.classes))


@dataclass(frozen=True)
class ConfidenceLabeler:
    """S2C, eq. 8 to 11: the class whose masks are most stable and active at a pixel, if above a threshold.

    Every mask of a class c has the confidence ``alpha = stability x mean of A^c over the mask`` (eq. 9 and 10), where
    the stability is a map: how sure the segmenter is of each pixel, 0.5 to 1 inside the mask. At a pixel the highest
    alpha wins, and pixels whose highest alpha is below `threshold` are background (eq. 11). The released code of S2C
    has no such threshold, which corresponds to 0.
    """

    threshold: float = 0.5
    """The tau of eq. 11."""
    by_stability: bool = True
    by_activation: bool = True
    """Factors of alpha; omitted ones are 1, as in the ablation of the paper's Table 2."""
    by_logits: bool = False
    """Whether the stability is a pixel's logit instead of its probability, as in the released code."""

    def __call__(self, masks: Masks, prompts: Prompts, activation: Activation) -> LabelMap:
        """Label the image of the masks."""
        inside, class_ids = masks.binary, classes_of(masks, prompts)
        maps = enlarged(activation, *masks.scores.shape[1:])
        active = np.asarray(
            [maps[c][mask].mean() if mask.any() else 0 for c, mask in zip(class_ids, inside, strict=True)], np.float32
        )
        active = active if self.by_activation else np.ones(len(masks), np.float32)
        alpha = inside * active[:, None, None]
        if self.by_stability:
            alpha *= _stability_map(masks, logits=self.by_logits)
        owner, highest = highest_wins(alpha), alpha.max(axis=0, initial=0).astype(np.float32)
        sure = (owner != NO_MASK) & (highest >= self.threshold)
        values = np.zeros(owner.shape, np.uint8)
        values[sure] = class_ids[owner[sure]] + 1
        confidence = np.minimum(highest, 1)
        return LabelMap(values, np.where(sure, confidence, 1 - confidence), (BACKGROUND, *activation.classes))


def _stability_map(masks: Masks, *, logits: bool = False) -> Float32Array:
    """(M, H, W) probability (0..1) or logit of every pixel; scores of 0 and `FULL` have that of 1 and `FULL` - 1."""
    probability = masks.scores.astype(np.float32) / np.float32(FULL)
    if not logits:
        return probability
    inner = np.clip(probability, 1 / FULL, 1 - 1 / FULL)
    found: Float32Array = np.log(inner / (1 - inner))
    return found


@dataclass(frozen=True)
class ThresholdLabeler:
    """The most active class of a pixel, or background if none exceeds `threshold`; masks are ignored.

    CISM's last step, and eq. 10 of DiffuPrompter without its dense CRF: the threshold is the activation of a uniform
    background class. Activation equal to the threshold is background.
    """

    threshold: float = 0.4

    def __call__(self, masks: Masks, prompts: Prompts, activation: Activation) -> LabelMap:  # noqa: ARG002
        """Label the image of the activation, at the size of the masks (possibly none)."""
        maps = enlarged(activation, *masks.scores.shape[1:])
        highest: Float32Array = maps.max(axis=0)
        active = highest > self.threshold
        values = np.where(active, maps.argmax(axis=0) + 1, 0).astype(np.uint8)
        return LabelMap(values, np.where(active, highest, 1 - highest), (BACKGROUND, *activation.classes))


@dataclass(frozen=True)
class AgreedLabeler:
    """Another labeler, restricted to where the activation agrees; other pixels are ignored.

    Masks far beyond the activation, and activation without a mask, are wrong about as often as right: networks train
    better without them.
    """

    labeler: Labeler = UnionLabeler()
    threshold: float = 0.4
    """Activation above it indicates the class."""

    def __call__(self, masks: Masks, prompts: Prompts, activation: Activation) -> LabelMap:
        """Label the image of the masks."""
        found = self.labeler(masks, prompts, activation)
        active = enlarged(activation, *found.values.shape) > self.threshold
        said = np.concatenate([~active.any(axis=0, keepdims=True), active])
        known = found.values != IGNORE
        agreed = known & np.take_along_axis(said, np.where(known, found.values, 0)[None], axis=0)[0]
        values = np.where(agreed, found.values, IGNORE).astype(np.uint8)
        return LabelMap(values, np.where(agreed, found.confidence, 0).astype(np.float32), found.classes)


@dataclass(frozen=True)
class OverlapLabeler:
    """DiffuPrompter, section 2.2.3: for each prompt, the mask most similar to the activation it came from.

    The segmenter must return all its candidates; see `geolabel.masks.EVERY_CANDIDATE`. A pixel's confidence is its
    activation: the paper gives objects no score, and the segmenter's own score measures how sharp an edge is, which is
    also high for specks.
    """

    threshold: float = 0.4
    """The gamma of eq. 10: masks are compared with activation above it."""
    labeler: Labeler = UnionLabeler()
    """Turns the chosen masks into labels."""

    def __call__(self, masks: Masks, prompts: Prompts, activation: Activation) -> LabelMap:
        """Label the image of the masks."""
        maps = enlarged(activation, *masks.scores.shape[1:])
        labels = self.labeler(masks[most_alike(masks, prompts, maps > self.threshold)], prompts, activation)
        sure = np.concatenate([1 - maps.max(axis=0, keepdims=True), maps])
        known = labels.labelled
        found = np.take_along_axis(sure, np.where(known, labels.values, 0)[None], axis=0)[0]
        return replace(labels, confidence=np.where(known, found, labels.confidence).astype(np.float32))


def paint(owner: Int32Array, values: Int32Array, quality: Float32Array, classes: tuple[str, ...]) -> LabelMap:
    """Give the pixels of each mask its value and quality; pixels without a mask are ignored.

    Parameters
    ----------
    owner : (H, W)
        See `geolabel.labels`.
    values, quality : (M,)
    """
    covered = owner != NO_MASK
    labels = np.full(owner.shape, IGNORE, np.uint8)
    confidence = np.zeros(owner.shape, np.float32)
    labels[covered] = values[owner[covered]]
    confidence[covered] = np.clip(quality, 0, 1)[owner[covered]]
    return LabelMap(labels, confidence, classes)


def most_alike(masks: Masks, prompts: Prompts, active: BoolArray) -> Int64Array:
    """(N,) masks to use: for every answered prompt, the one with the highest IoU with the prompt's activation.

    A prompt's activation is the active pixels (C, H, W) of its class inside its box, or all of them without a box. Ties
    go to the lower number.
    """
    rows = {int(prompt): row for row, prompt in enumerate(prompts.ids)}
    best: dict[int, tuple[float, int]] = {}
    for index, (prompt, mask) in enumerate(zip(masks.prompt_ids.tolist(), masks.binary, strict=True)):
        row = rows[prompt]
        asked = active[prompts.class_ids[row]]
        if prompts.has_box[row]:
            asked = _inside(asked, prompts.boxes[row])
        alike = int(np.count_nonzero(mask & asked)) / max(1, int(np.count_nonzero(mask | asked)))
        if prompt not in best or alike > best[prompt][0]:
            best[prompt] = alike, index
    return np.asarray(sorted(index for _, index in best.values()), np.int64)


AGREED = 0.7
"""Minimum IoU of a mask with its activation region; below it, the region replaces the mask. Chosen on images reserved
for such choices: see docs/experiments.md."""


def follow_activation(masks: Masks, prompts: Prompts, grey: UInt8Array, threshold: int) -> tuple[Masks, BoolArray]:
    """Replace each mask whose IoU with its activation region is below `AGREED` by that region.

    The region consists of the pixels above the threshold inside the prompt's box; scores rise from `EDGE` with the
    activation. Masks of prompts without a box, and of prompts drawn by a person, are kept.

    Parameters
    ----------
    grey : (C, H, W)
        Activation of each class, 0..255.

    Returns
    -------
    The masks, and (M,) whether each was replaced.
    """
    rows = {int(prompt): row for row, prompt in enumerate(prompts.ids)}
    scores, followed = masks.scores.copy(), np.zeros(len(masks), bool)
    for index, (prompt, mask) in enumerate(zip(masks.prompt_ids.tolist(), masks.binary, strict=True)):
        row = rows[prompt]
        if prompts.drawn[row] or not prompts.has_box[row]:
            continue
        values = grey[prompts.class_ids[row]]
        region = _inside(values > threshold, prompts.boxes[row])
        union = int(np.count_nonzero(mask | region))
        if region.any() and np.count_nonzero(mask & region) < AGREED * union:
            rise = (values.astype(np.int64) - threshold) * (FULL - EDGE) // max(1, LEVELS - threshold)
            scores[index] = np.where(region, EDGE + rise, 0).astype(np.uint8)
            followed[index] = True
    return replace(masks, scores=scores), followed


def _inside(mask: BoolArray, box: Float64Array) -> BoolArray:
    # a pixel is in the box if its centre is
    rows, cols = np.ogrid[: mask.shape[0], : mask.shape[1]]
    x0, y0, x1, y1 = box - 0.5
    inside: BoolArray = mask & (cols > x0) & (cols < x1) & (rows > y0) & (rows < y1)
    return inside


def gate(masks: BoolArray, max_share: float) -> BoolArray:
    """(M,) whether masks (M, H, W) are objects: not empty, and at most `max_share` of the image (ALPS, eq. 2 and 3)."""
    areas = masks.sum(axis=(1, 2), dtype=np.int64)
    return passes_gate(areas, np.full(len(areas), masks.shape[1] * masks.shape[2]), max_share)


def passes_gate(areas: Int64Array, pixels: Int64Array, max_share: float) -> BoolArray:
    """(M,) whether masks of `areas` pixels, in images of `pixels`, are objects; see `gate`."""
    return np.asarray((areas > 0) & (areas <= max_share * pixels))


def classes_of(masks: Masks, prompts: Prompts) -> Int32Array:
    """(M,) class of the prompt that each mask answers.

    Raises
    ------
    ValueError
        If a mask answers an unknown prompt.
    """
    order = np.argsort(prompts.ids, kind="stable")
    at = np.searchsorted(prompts.ids, masks.prompt_ids, sorter=order)
    found = order[np.minimum(at, max(len(order) - 1, 0))] if len(order) else np.zeros(len(at), np.int64)
    if len(masks) and (not len(order) or (prompts.ids[found] != masks.prompt_ids).any()):
        raise ValueError(f"masks answer prompts {masks.prompt_ids.tolist()}, asked were {prompts.ids.tolist()}")
    classes: Int32Array = prompts.class_ids[found]
    return classes


def enlarged(activation: Activation, height: int, width: int) -> Float32Array:
    """(C, height, width) activation enlarged to the image, in the grey-value steps in which it is stored."""
    grey = [activation.grey(c, (height, width)) for c in range(len(activation.values))]
    return np.stack(grey).astype(np.float32) / np.float32(255)

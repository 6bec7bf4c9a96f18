"""Everything mode: all candidate masks of many prompts, filtered and without duplicates.

With a grid of points and the same thresholds, the result equals that of segment-anything's
``SamAutomaticMaskGenerator``, in the same order, with less work: images are encoded in batches, masks are computed only
for candidates with a sufficient predicted IoU, enlarged a few at a time or only where they are, and only masks that are
not duplicates are kept at the size of the image.

Sources: Kirillov et al. (2023), "Segment Anything", section 5 and appendix B; for features of masks, ALPS, eq. 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from geolabel.clusters import Clusters
from geolabel.labelers import gate
from geolabel.labels import smallest_wins
from geolabel.masks import ClassedMasks, FeaturedMasks, Filters, Masks, quantise_logits
from geolabel.models import low_res as low_res_masks
from geolabel.models.engines import PROMPTS_CPU, Points, PromptedNetwork, SelectiveNetwork
from geolabel.models.sam import answer, corner_pixels, enlarged
from geolabel.mosaic import NO_MASK
from geolabel.parts import Segmenter
from geolabel.prompts import Prompts
from geolabel.tiles import extent
from geolabel.types import AnyArray, BoolArray, Float32Array, Int32Array, Int64Array, UInt8Array

if TYPE_CHECKING:
    from torch import Tensor

    from geolabel.models.on_device import Packed

PROMPTS_GPU = 64
"""Prompts per call of the decoder on a GPU, as in segment-anything."""


@dataclass(frozen=True)
class _Candidates:
    """M masks with a sufficient predicted IoU, at low resolution."""

    low_res: Any
    """(M, h, w) logits, the engine's array."""
    judged: Any
    """(M, J) result of `_judge`, on the device of the logits."""
    quality: Float32Array
    prompt: Int64Array
    """(M,) index of the prompt."""
    token: Int64Array

    def __getitem__(self, index: AnyArray) -> _Candidates:
        return _Candidates(**{name: part[index] for name, part in vars(self).items()})

    @classmethod
    def of(cls, parts: Sequence[_Candidates]) -> _Candidates:
        """Concatenate the candidates of several calls."""
        return cls(**{name: _joined([getattr(part, name) for part in parts]) for name in vars(parts[0])})


def _joined(parts: Sequence[Any]) -> Any:
    if isinstance(parts[0], np.ndarray):
        return np.concatenate(parts)
    import torch  # arrays of another type come from it

    return torch.cat(list(parts))


class EverythingSegmenter:
    """A SAM-shaped network as a `parts.Segmenter` that returns none, one or several masks per prompt.

    Parameters
    ----------
    network, gsd_range
        See `geolabel.models.sam.SamSegmenter`.
    filters
        Which candidates are accepted.
    prompts_per_batch
        Prompts per call of the decoder; `PROMPTS_CPU` or `PROMPTS_GPU`.
    features
        Whether masks come with the encoder's features inside them, as `FeaturedMasks`.
    scores
        Whether scores are needed besides the mask itself. If not, masks computed on a device are copied as bits, with
        score `FULL` inside and 0 outside.
    """

    def __init__(
        self,
        network: PromptedNetwork,
        *,
        gsd_range: tuple[float, float],
        filters: Filters | None = None,
        prompts_per_batch: int = PROMPTS_CPU,
        features: bool = False,
        scores: bool = True,
    ) -> None:
        self._network = network
        self._gsd_range = gsd_range
        self._filters = filters or Filters()
        self._prompts_per_batch = prompts_per_batch
        self._features = features
        self._scores = scores

    @property
    def window(self) -> int:
        """Maximum side in pixels of an image."""
        return self._network.window

    @property
    def gsd_range(self) -> tuple[float, float]:
        """Finest and coarsest supported ground sample distance, metres."""
        return self._gsd_range

    def __call__(self, images: Sequence[UInt8Array], prompts: Sequence[Prompts]) -> list[Masks]:
        """Masks of images (H, W, 3), red first, by descending predicted IoU; images without prompts are not encoded.

        Raises
        ------
        ValueError
            If an image is larger than `window`, or its prompts are not all of one kind: one point, a box, or both.
        """
        return answer(self._network, images, prompts, self._answer, self._nothing)

    def _nothing(self, image: UInt8Array) -> Masks:
        none = Masks.none(*image.shape[:2])
        width = self._network.width
        return FeaturedMasks(**vars(none), features=np.empty((0, width), np.float32)) if self._features else none

    def _answer(self, embedding: Any, image: UInt8Array, prompts: Prompts) -> Masks | Packed:
        size: tuple[int, int] = image.shape[:2]
        calls = range(0, len(prompts), self._prompts_per_batch)
        every = _Candidates.of([self._candidates(embedding, size, prompts, start) for start in calls])
        judged = self._network.host(every.judged)
        passed = np.flatnonzero(self._passes(judged))
        best = passed[_distinct(judged[passed, 1:5], every.quality[passed], self._filters.duplicate)]
        kept = every[best]
        found = Masks(
            scores=np.zeros((len(best), *size), np.uint8),
            predicted_iou=kept.quality.clip(0, 1),
            stability=judged[best, 0],
            prompt_ids=prompts.ids[kept.prompt],
            candidates=kept.token + 1,
        )
        if self._network.apart:
            return self._pack(embedding, kept.low_res, judged[best], found)
        return self._drawn(embedding, kept.low_res, found)

    def _drawn(self, embedding: Any, low_res: Any, masks: Masks) -> Masks:
        # The masks with their scores and features, computed on the host.
        height, width = masks.scores.shape[1:]
        if isinstance(low_res, np.ndarray):
            for scores, part in zip(masks.scores, enlarged(self._network, low_res, (height, width)), strict=True):
                scores[part.slices] = quantise_logits(part.logits)
        else:
            from geolabel.models import on_device

            for rows, logits in on_device.enlarged(self._network, low_res, (height, width)):
                masks.scores[rows] = quantise_logits(logits.numpy())
        if not self._features:
            return masks
        cells = np.asarray(self._network.features(embedding))
        return FeaturedMasks(**vars(masks), features=pool(cells, masks.binary, self._step((height, width))))

    def _pack(self, embedding: Any, low_res: Tensor, judged: Float32Array, masks: Masks) -> Packed:
        # The same on a device, without waiting for results.
        from geolabel.models import on_device

        height, width = masks.scores.shape[1:]
        crops = on_device.Crops(judged[:, -4:], self._scores)
        cells = self._network.features(embedding) if self._features else None
        step = self._step((height, width))
        return on_device.pack_everything(self._network, low_res, masks, crops, cells=cells, step=step)

    def _candidates(self, embedding: Any, size: tuple[int, int], prompts: Prompts, start: int) -> _Candidates:
        # Candidates of the prompts of one call; already filtered if the result is known without waiting.
        asked = self._to_sam(prompts[start : start + self._prompts_per_batch], size)
        frame = self._network.frame_size(size)
        low_res, quality, prompt, token = _likely(self._network, embedding, asked, self._filters.predicted_iou, frame)
        every = _Candidates(low_res, self._judge(low_res, size), quality, prompt + start, token)
        return every if self._network.apart else every[np.flatnonzero(self._passes(self._network.host(every.judged)))]

    def _passes(self, judged: Float32Array) -> BoolArray:
        return np.asarray((judged[:, 0] >= self._filters.stability) & (judged[:, 3] >= 0))

    def _judge(self, low_res: Any, size: tuple[int, int]) -> Any:
        # (M, 5) stability and box of masks, x0, y0, x1, y1; an empty mask, or one that is not stable enough, has a box
        # that ends before it starts. On a device (M, 9), with the box of non-zero scores, if scores are needed, and
        # boxes of all masks.
        if isinstance(low_res, np.ndarray):
            step = self._network.window // low_res.shape[-1]
            judged = low_res_masks.judge(low_res, step, size, self._filters.offset, self._filters.stability)
            return np.concatenate([judged.stability[:, None], judged.boxes.astype(np.float32)], axis=1)
        from geolabel.models import on_device

        scored = self._network.apart and self._scores
        return on_device.judge(self._network, low_res, size, self._filters.offset, scored=scored)

    def _to_sam(self, prompts: Prompts, size: tuple[int, int]) -> tuple[Points | None, AnyArray | None]:
        one_point = prompts.points.shape[1] <= 1 and len(set(prompts.has_point.tolist())) == 1
        if not one_point or len(set(prompts.has_box.tolist())) > 1:
            raise ValueError("the prompts of an image are of several kinds: give each one point, a box, or both")
        frame = self._network.frame_size(size)
        scale = np.array([frame[1] / size[1], frame[0] / size[0]])
        points = boxes = None
        if prompts.has_point[0]:
            points = prompts.points * scale, prompts.labels.astype(np.int32)
        if prompts.has_box[0]:
            boxes = (corner_pixels(prompts.boxes) * np.tile(scale, 2)).astype(np.float32)
        return points, boxes

    def _step(self, size: tuple[int, int]) -> tuple[float, float]:
        # image pixels per cell of the embedding, along rows and columns
        if self._network.stretches:
            return size[0] / self._network.cells, size[1] / self._network.cells
        step = float(self.window / self._network.cells * max(size) / max(self._network.frame_size(size)))
        return step, step


def _likely(
    network: PromptedNetwork,
    embedding: Any,
    asked: tuple[Points | None, AnyArray | None],
    least: float,
    frame: tuple[int, int],
) -> tuple[Any, Float32Array, Int64Array, Int64Array]:
    # See `SelectiveNetwork.decode_likely`; other networks compute all masks first.
    if isinstance(network, SelectiveNetwork):
        return network.decode_likely(embedding, *asked, least, frame)
    low_res, given = network.decode(embedding, *asked)
    quality: Float32Array = network.host(given)
    prompt, token = np.nonzero(quality > least)
    return low_res[prompt, token], quality[prompt, token], prompt, token


def _distinct(boxes: Float32Array, quality: Float32Array, most: float) -> Int64Array:
    # Indices after removing duplicates of better masks, by descending quality: torchvision's non-maximum suppression.
    order = np.argsort(-quality, kind="stable")
    boxes = boxes[order]
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    open_, kept = np.ones(len(boxes), bool), []
    for k in range(len(boxes)):
        if open_[k]:
            kept.append(k)
            others = boxes[k + 1 :]
            sides = np.minimum(boxes[k, 2:], others[:, 2:]) - np.maximum(boxes[k, :2], others[:, :2])
            shared = np.maximum(sides, 0).prod(axis=1)
            with np.errstate(invalid="ignore"):  # two boxes without area
                iou = shared / (areas[k] + areas[k + 1 :] - shared)
            open_[k + 1 :] &= ~(iou.astype(np.float64) > most)
    best: Int64Array = order[np.asarray(kept, np.int64)]
    return best


def pool(embedding: Float32Array, masks: BoolArray, step: float | tuple[float, float]) -> Float32Array:
    """Mean of an embedding over masks, with each cell weighted by the share covered by the mask (ALPS, eq. 4).

    ALPS enlarges the embedding to the mask; reducing the mask to the embedding gives the same weighted mean except for
    interpolation, with a small part of the memory, and also works for masks smaller than a cell.

    Parameters
    ----------
    embedding : (D, h, w)
    masks : (M, H, W), none of them empty
    step
        Image pixels per cell, along rows and columns if they differ; cell ``i`` covers pixels
        ``[i * step, (i + 1) * step)``.

    Returns
    -------
    (M, D)
    """
    steps = step if isinstance(step, tuple) else (step, step)
    rows, cols = (
        low_res_masks.cell_shares(*each) for each in zip(embedding.shape[1:], masks.shape[1:], steps, strict=True)
    )
    weights = np.zeros((len(masks), len(rows), len(cols)), np.float32)
    for weight, mask in zip(weights, masks, strict=True):
        if (near := extent(mask)) is not None:
            weight[:] = rows[:, near[0]] @ mask[near].astype(np.float32) @ cols[:, near[1]].T
    total = np.maximum(weights.sum(axis=(1, 2)), np.finfo(np.float32).tiny)
    pooled: Float32Array = weights.reshape(len(masks), -1) @ embedding.reshape(len(embedding), -1).T
    pooled /= total[:, None]
    return pooled


# --- one class of clusters -------------------------------------------------------------------------------------------


OTHER = -1
"""Class of clusters with any other name, or none."""


@dataclass(frozen=True)
class ClusterSegmenter:
    """Keeps the masks of an image that belong to named clusters, except where a smaller mask of another class is.

    The result equals what ALPS would paint with the classes, with the masks' own scores.
    """

    segmenter: Segmenter
    """A segmenter that returns `FeaturedMasks`."""
    clusters: Clusters
    class_names: tuple[str, ...]
    max_share: float
    """Maximum share of an image (ALPS, eq. 2 and 3)."""

    @property
    def window(self) -> int:
        """Maximum side in pixels of an image."""
        return self.segmenter.window

    @property
    def gsd_range(self) -> tuple[float, float]:
        """Finest and coarsest supported ground sample distance, metres."""
        return self.segmenter.gsd_range

    def __call__(self, images: Sequence[UInt8Array], prompts: Sequence[Prompts]) -> list[Masks]:
        """Masks of images (H, W, 3), red first, with their classes."""
        return [self._choose(masks) for masks in self.segmenter(images, prompts)]

    def _choose(self, masks: Masks) -> Masks:
        assert isinstance(masks, FeaturedMasks)
        masks = masks[gate(masks.binary, self.max_share)]
        classes = self._class_of_cluster()[self.clusters.assign(masks.features)]
        owner = smallest_wins(masks.binary)
        kept, wanted = classes >= 0, classes[classes >= 0]
        owning = np.append(classes, OTHER)[owner]  # NO_MASK, -1, selects the last
        others = (owner != NO_MASK) & (owning != wanted[:, None, None])
        scores = np.where(others, np.uint8(0), masks.scores[kept])
        return ClassedMasks(
            scores,
            masks.predicted_iou[kept],
            masks.stability[kept],
            masks.prompt_ids[kept],
            masks.candidates[kept],
            wanted,
        )

    def _class_of_cluster(self) -> Int32Array:
        """(K,) index into the names, or `OTHER`."""
        classes = np.full(len(self.clusters), OTHER, np.int32)
        for index, name in enumerate(self.class_names):
            classes[self.clusters.of_class(name)] = index
        return classes

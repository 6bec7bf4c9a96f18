"""Everything mode: all candidate masks of many prompts, filtered and freed of duplicates.

With a grid of points and the same thresholds this answers what ``SamAutomaticMaskGenerator`` of segment-anything does,
in the same order, by less work: images are encoded in batches, masks are made only of candidates of a high enough
predicted IoU, some are enlarged at a time, or each where it is, and only those that are no duplicates are kept at the
size of the image.

Sources: Kirillov et al. (2023), "Segment Anything", section 5 and appendix B; for features of masks, ALPS, eq. 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from segment_anything.utils.amg import batched_mask_to_box
from torch import Tensor
from torchvision.ops import nms

from geolabel.clusters import Clusters
from geolabel.labelers import gate
from geolabel.labels import smallest_wins
from geolabel.masks import EDGE, ClassedMasks, FeaturedMasks, Filters, Masks, quantise_logits
from geolabel.models import low_res as low_res_masks
from geolabel.models.engines import Points, PromptedNetwork, SelectiveNetwork
from geolabel.models.on_device import enlarge
from geolabel.models.sam import answer, corner_pixels, enlarged
from geolabel.mosaic import NO_MASK
from geolabel.parts import Segmenter
from geolabel.prompts import Prompts
from geolabel.types import AnyArray, Int32Array, UInt8Array

ENLARGED = 64
"""Masks that are held at the size of the image at a time."""

PROMPTS_CPU, PROMPTS_GPU = 8, 64
"""Prompts per call of the decoder. The cells of 8 stay nearer to a processor than those of 64, segment-anything's own;
a GPU takes more at a time."""


@dataclass(frozen=True)
class _Candidates:
    """M masks that passed the filters, at low resolution."""

    low_res: Tensor
    """(M, h, w) logits"""
    quality: Tensor
    stability: Tensor
    boxes: Tensor
    """(M, 4) first and last column and row of the pixels inside, as x0, y0, x1, y1."""
    prompt: Tensor
    """(M,) row of the prompt."""
    token: Tensor


class EverythingSegmenter:
    """A SAM-shaped network as a `parts.Segmenter` that answers a prompt with none, one or several masks.

    Parameters
    ----------
    network, gsd_range
        See `geolabel.models.sam.SamSegmenter`.
    filters
        Which candidates are answers.
    prompts_per_batch
        Prompts per call of the decoder; `PROMPTS_CPU` or `PROMPTS_GPU`.
    features
        Whether masks come with what the encoder saw inside them, as `FeaturedMasks`.
    """

    def __init__(
        self,
        network: PromptedNetwork,
        *,
        gsd_range: tuple[float, float],
        filters: Filters | None = None,
        prompts_per_batch: int = PROMPTS_CPU,
        features: bool = False,
    ) -> None:
        self._network = network
        self._gsd_range = gsd_range
        self._filters = filters or Filters()
        self._prompts_per_batch = prompts_per_batch
        self._features = features

    @property
    def window(self) -> int:
        """Side in pixels of the largest image it takes."""
        return self._network.window

    @property
    def gsd_range(self) -> tuple[float, float]:
        """Finest and coarsest ground sample distance, metres, that it knows."""
        return self._gsd_range

    def __call__(self, images: Sequence[UInt8Array], prompts: Sequence[Prompts]) -> list[Masks]:
        """Masks of images (H, W, 3), red first, by falling predicted IoU; an image without prompts is not encoded.

        Raises
        ------
        ValueError
            If an image is larger than `window`, or the prompts of an image are not all of one kind: one point, a box,
            or both.
        """
        return answer(self._network, images, prompts, self._answer, self._nothing)

    def _nothing(self, image: UInt8Array) -> Masks:
        none = Masks.none(*image.shape[:2])
        width = self._network.width
        return FeaturedMasks(**vars(none), features=np.empty((0, width), np.float32)) if self._features else none

    def _answer(self, embedding: Any, image: UInt8Array, prompts: Prompts) -> Masks:
        size: tuple[int, int] = image.shape[:2]
        calls = range(0, len(prompts), self._prompts_per_batch)
        parts = [self._candidates(embedding, size, prompts, start) for start in calls]
        names = list(vars(parts[0]))
        every = _Candidates(*(torch.cat([getattr(part, name) for part in parts]) for name in names))
        best = nms(every.boxes.float(), every.quality, self._filters.duplicate)
        kept = _Candidates(*(getattr(every, name)[best] for name in names))
        masks = Masks(
            scores=np.zeros((len(best), *size), np.uint8),
            predicted_iou=kept.quality.clamp(0, 1).cpu().numpy(),
            stability=kept.stability.cpu().numpy(),
            prompt_ids=prompts.ids[kept.prompt.cpu().numpy()],
            candidates=kept.token.cpu().numpy() + 1,
        )
        seen = self._network.features(embedding)
        if isinstance(seen, np.ndarray):
            for scores, part in zip(masks.scores, enlarged(self._network, kept.low_res.numpy(), size), strict=True):
                scores[part.slices] = quantise_logits(part.logits)
        else:
            for rows in _chunks(len(best)):
                masks.scores[rows] = quantise_logits(enlarge(self._network, kept.low_res[rows], size).cpu().numpy())
        if not self._features:
            return masks
        cells = torch.as_tensor(seen)
        chunks = (torch.as_tensor(masks.scores[rows] >= EDGE).to(cells.device) for rows in _chunks(len(best)))
        pooled = [pool(cells, inside, self._step(size)).cpu() for inside in chunks]
        features = torch.cat([torch.zeros((0, self._network.width)), *pooled])
        return FeaturedMasks(**vars(masks), features=features.numpy())

    def _candidates(self, embedding: Any, size: tuple[int, int], prompts: Prompts, start: int) -> _Candidates:
        # What is left of the three candidates of one call's prompts.
        asked = self._to_sam(prompts[start : start + self._prompts_per_batch], size)
        frame = self._network.frame_size(size)
        low_res, quality, prompt, token = _likely(self._network, embedding, asked, self._filters.predicted_iou, frame)
        firm, boxes = self._judge(low_res, size)
        good = torch.nonzero((firm >= self._filters.stability) & (boxes[:, 2] >= 0))[:, 0]
        parts = (low_res, quality, firm, boxes, prompt + start, token)
        return _Candidates(*(torch.as_tensor(part)[good] for part in parts))

    def _judge(self, low_res: Any, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        # Stability (M,) and box (M, 4) of masks; an empty mask has a box that ends before it begins.
        if isinstance(low_res, np.ndarray):
            step = self._network.window // low_res.shape[-1]
            judged = low_res_masks.judge(low_res, step, size, self._filters.offset)
            return torch.from_numpy(judged.stability), torch.from_numpy(judged.boxes)
        chunks = [self._judge_chunk(low_res[rows], size) for rows in _chunks(len(low_res))]
        none = torch.zeros((0, 4), dtype=torch.long, device=low_res.device)
        firm = torch.cat([low_res.new_zeros(0), *(part for part, _ in chunks)])
        return firm, torch.cat([none, *(part for _, part in chunks)])

    def _judge_chunk(self, low_res: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        logits = enlarge(self._network, low_res, size)
        inside = logits > 0
        boxes = batched_mask_to_box(inside)
        boxes[~inside.flatten(1).any(dim=1), 2] = -1
        inner, outer = ((logits > cut).sum(dim=(1, 2)) for cut in (self._filters.offset, -self._filters.offset))
        return inner / outer.clamp(min=1), boxes

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
) -> tuple[Any, Any, Any, Any]:
    # See `SelectiveNetwork.decode_likely`; a network of another kind makes all masks first.
    if isinstance(network, SelectiveNetwork):
        return network.decode_likely(embedding, *asked, least, frame)
    low_res, quality = map(torch.as_tensor, network.decode(embedding, *asked))
    prompt, token = torch.nonzero(quality > least, as_tuple=True)
    return low_res[prompt, token], quality[prompt, token], prompt, token


def pool(embedding: Tensor, masks: Tensor, step: float | tuple[float, float]) -> Tensor:
    """Mean of an embedding over masks, each cell weighted by the share of it that the mask covers (ALPS, eq. 4).

    ALPS enlarges the embedding to the mask; averaging the mask down to the embedding gives the same weighted mean but
    for the interpolation, with a small part of the memory, and loses no mask that is smaller than a cell.

    Parameters
    ----------
    embedding : (D, h, w)
    masks : (M, H, W) boolean, none of them empty
    step
        Image pixels per cell, where they differ along rows and along columns; cell ``i`` covers pixels
        ``[i * step, (i + 1) * step)``.

    Returns
    -------
    (M, D)
    """
    rows, cols = (
        _shares(cells, pixels, along).to(masks.device)
        for cells, pixels, along in zip(
            embedding.shape[1:], masks.shape[1:], step if isinstance(step, tuple) else (step, step), strict=True
        )
    )
    weights = torch.einsum("ih,mhw,jw->mij", rows, masks.float(), cols)
    total = weights.sum(dim=(1, 2)).clamp(min=torch.finfo(torch.float32).tiny)
    return torch.einsum("mij,dij->md", weights, embedding.float()) / total[:, None]


def _shares(cells: int, pixels: int, step: float) -> Tensor:
    # (cells, pixels) how much of each pixel is in each cell
    edges = torch.arange(cells + 1, dtype=torch.float64) * step
    low = torch.arange(pixels, dtype=torch.float64)
    shared = torch.minimum(edges[1:, None], low + 1) - torch.maximum(edges[:-1, None], low)
    return shared.clamp(min=0).float()


def _chunks(count: int) -> list[slice]:
    return [slice(start, min(start + ENLARGED, count)) for start in range(0, count, ENLARGED)]


# --- one class of clusters -------------------------------------------------------------------------------------------


OTHER = -1
"""Class of clusters that have another name, or none."""


@dataclass(frozen=True)
class ClusterSegmenter:
    """Keeps, of the masks of an image, those of the named clusters, where no smaller mask of another class is.

    What is left of an image is what ALPS would paint with the classes, with the masks' own scores.
    """

    segmenter: Segmenter
    """Answers with `FeaturedMasks`."""
    clusters: Clusters
    class_names: tuple[str, ...]
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
        """Masks of images (H, W, 3), red first, with their classes."""
        return [self._choose(masks) for masks in self.segmenter(images, prompts)]

    def _choose(self, masks: Masks) -> Masks:
        assert isinstance(masks, FeaturedMasks)
        masks = masks[gate(masks.binary, self.max_share)]
        classes = self._class_of_cluster()[self.clusters.assign(masks.features)]
        owner = smallest_wins(masks.binary)
        kept, wanted = classes >= 0, classes[classes >= 0]
        owning = np.append(classes, OTHER)[owner]  # NO_MASK, -1, picks the last
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

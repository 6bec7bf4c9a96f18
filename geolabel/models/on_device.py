"""Image upload to the device of a network, and masks computed there, each with one copy per batch of images.

Images are copied as 8-bit values, and resized and normalised on the device. For CUDA they are copied asynchronously
from pinned memory.

Selection, stability and scores equal those of `geolabel.models.sam.SamSegmenter`, as tensor operations without
synchronisation. Answers are packed as bytes; the host waits once for all answers of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from segment_anything.utils.amg import batched_mask_to_box
from torch import Tensor
from torch.nn.functional import interpolate, pad

from geolabel.masks import EDGE, FAINT, FULL, STABILITY_OFFSET, FeaturedMasks, Masks
from geolabel.models.engines import PromptedNetwork
from geolabel.models.low_res import cell_shares
from geolabel.prompts import Prompts
from geolabel.types import Float32Array, Int64Array, UInt8Array

ENLARGED = 16
"""Number of masks with logits at the size of the image at a time; their scores need a quarter of that memory."""


def pinned(images: Sequence[UInt8Array]) -> list[UInt8Array]:
    """Copies of images (H, W, 3) in pinned memory, which a CUDA device can read.

    They must outlive the call of the network.
    """
    return [view.numpy() for view in _views(_gathered(images, pin=True), images)]


def upload(images: Sequence[UInt8Array], device: str) -> list[Tensor]:
    """Images (H, W, 3) on a device, unchanged; the copy to a CUDA device is asynchronous."""
    cuda = device.startswith("cuda")
    if cuda and all(image.flags.c_contiguous and torch.from_numpy(image).is_pinned() for image in images):
        return [torch.from_numpy(image).to(device, non_blocking=True) for image in images]
    held = _gathered(images, pin=cuda)
    return _views(held.to(device, non_blocking=True), images)


def _gathered(images: Sequence[UInt8Array], *, pin: bool) -> Tensor:
    held = torch.empty(sum(image.size for image in images), dtype=torch.uint8, pin_memory=pin)
    for view, image in zip(_views(held, images), images, strict=True):
        view.copy_(torch.from_numpy(image if min(image.strides) > 0 else image.copy()))  # torch has no negative strides
    return held


def _views(held: Tensor, images: Sequence[UInt8Array]) -> list[Tensor]:
    parts = torch.split(held, [image.size for image in images])
    return [part.view(image.shape) for part, image in zip(parts, images, strict=True)]


@dataclass(frozen=True)
class Packed:
    """Masks of an image that are still on a device."""

    content: Tensor
    """(n,) bytes."""
    unpack: Callable[[UInt8Array], Masks]
    """Decodes the bytes to masks, on the host."""


def fetch(network: PromptedNetwork, packed: Sequence[Packed]) -> list[Masks]:
    """Copy the masks of several images to the host at once."""
    if not packed:
        return []
    content = network.host(torch.cat([one.content for one in packed]))
    ends = np.cumsum([len(one.content) for one in packed])
    return [one.unpack(part) for one, part in zip(packed, np.split(content, ends[:-1]), strict=True)]


@dataclass(frozen=True)
class Answered:
    """Some prompts of an image, and their masks on a device."""

    rows: Int64Array
    """(K,) indices of the prompts."""
    scores: Tensor
    """(K, H, W)"""
    figures: Tensor
    """(K, 3) predicted IoU, stability and mask token, float32."""


def answered(
    network: PromptedNetwork,
    rows: Int64Array,
    low_res: Tensor,
    quality: Tensor,
    *,
    chosen: int | None,
    first_token: int,
    size: tuple[int, int],
) -> Answered:
    """Select among the candidates (K, T, h, w) of prompts by predicted IoU (K, T), and compute the masks.

    Parameters
    ----------
    chosen
        The candidate to use; None for the one with the highest predicted IoU.
    first_token
        Number of the mask token of the first candidate.
    size
        Height and width of the image.
    """
    best = quality.argmax(dim=1) if chosen is None else torch.full_like(quality[:, 0], chosen, dtype=torch.long)
    each = torch.arange(len(quality), device=quality.device)
    low_res, quality = low_res[each, best], quality[each, best].float()
    scores, stability = [], []
    for start in range(0, len(low_res), ENLARGED):
        logits = enlarge(network, low_res[start : start + ENLARGED], size)
        inner, outer = ((logits > cut).sum(dim=(1, 2)) for cut in (STABILITY_OFFSET, -STABILITY_OFFSET))
        stability.append(inner / outer.clamp(min=1))
        scores.append(quantise(logits))
    figures = torch.stack([quality.clamp(0, 1), torch.cat(stability), (best + first_token).float()], dim=1)
    return Answered(rows, torch.cat(scores), figures)


def pack(prompts: Prompts, size: tuple[int, int], parts: Sequence[Answered]) -> Packed:
    """The masks of the prompts of one image, from answers in parts."""
    figures = torch.cat([part.figures for part in parts]).contiguous().view(torch.uint8).flatten()
    content = torch.cat([figures, *(part.scores.flatten() for part in parts)])
    order = np.concatenate([part.rows for part in parts])

    def unpack(given: UInt8Array) -> Masks:
        count = len(order)
        table = given[: 12 * count].copy().view(np.float32).reshape(count, 3)
        where = np.argsort(order)  # parts are grouped by kind of prompt
        return Masks(
            scores=given[12 * count :].reshape(count, *size)[where],
            predicted_iou=table[where, 0],
            stability=table[where, 1],
            prompt_ids=prompts.ids,
            candidates=table[where, 2].astype(np.int64),
        )

    return Packed(content, unpack)


def enlarge(network: PromptedNetwork, low_res: Tensor, size: tuple[int, int]) -> Tensor:
    """Logits (K, H, W) of coarse masks (K, h, w) at the size of their image, like ``Sam.postprocess_masks``."""
    if network.stretches:
        return interpolate(low_res[:, None], size, mode="bilinear", align_corners=False)[:, 0]
    frame = network.frame_size(size)
    whole = interpolate(low_res[:, None], (network.window, network.window), mode="bilinear", align_corners=False)
    logits = whole[..., : frame[0], : frame[1]]
    if frame != size:
        logits = interpolate(logits, size, mode="bilinear", align_corners=False)
    return logits[:, 0]


def quantise(logits: Tensor) -> Tensor:
    """Scores 0..254 of logits, like `geolabel.masks.quantise_logits`."""
    scores = (FULL / (1 + torch.exp(-logits.float()))).round()
    scores = torch.where(scores < FAINT, 0, scores)
    scores = scores - ((scores == EDGE) & (logits < 0)).float()  # rounded across the edge
    return scores.to(torch.uint8)


# --- everything mode -------------------------------------------------------------------------------------------------


EVERYTHING = 64
"""Number of masks of everything mode with logits at the size of the image at a time."""


def enlarged(network: PromptedNetwork, low_res: Tensor, size: tuple[int, int]) -> Iterator[tuple[slice, Tensor]]:
    """Logits at the size of their image, for `EVERYTHING` masks at a time, with their indices."""
    for start in range(0, len(low_res), EVERYTHING):
        rows = slice(start, min(start + EVERYTHING, len(low_res)))
        yield rows, enlarge(network, low_res[rows], size)


def judge(
    network: PromptedNetwork, low_res: Tensor, size: tuple[int, int], offset: float, *, scored: bool = False
) -> Tensor:
    """(M, 5) stability and box of coarse masks (M, h, w), see `boxes_of`; (M, 9) with the box of non-zero scores."""
    found = [low_res.new_zeros((0, 9 if scored else 5))]
    for _, logits in enlarged(network, low_res, size):
        inner, outer = ((logits > cut).sum(dim=(1, 2)) for cut in (offset, -offset))
        shown = [logits > 0, quantise(logits) > 0] if scored else [logits > 0]
        found.append(torch.cat([(inner / outer.clamp(min=1))[:, None], *map(boxes_of, shown)], dim=1))
    return torch.cat(found)


def pack_everything(
    network: PromptedNetwork,
    low_res: Tensor,
    masks: Masks,
    crops: Crops,
    *,
    cells: Tensor | None,
    step: tuple[float, float],
) -> Packed:
    """Masks of everything mode with their pixels, and with features if `cells` are given.

    Parameters
    ----------
    low_res : (M, h, w)
    masks
        M masks with scores of 0, which are filled on the host.
    cells, step
        See `geolabel.models.everything.pool`.
    """
    size: tuple[int, int] = masks.scores.shape[1:]
    width = 0 if cells is None else len(cells)
    content = [low_res.new_zeros(0, dtype=torch.uint8 if crops.scores else torch.bool)]
    features = [low_res.new_zeros((0, width))]
    for rows, logits in enlarged(network, low_res, size):
        content.append(crops.of(logits, rows))
        if cells is not None:
            features.append(_pool(cells, logits >= 0, step))

    def unpack(given: UInt8Array) -> Masks:
        seen, drawn = np.split(given, [4 * len(masks) * width])
        crops.draw(drawn, masks.scores)
        if cells is None:
            return masks
        return FeaturedMasks(**vars(masks), features=seen.copy().view(np.float32).reshape(len(masks), width))

    pooled = torch.cat(features).contiguous().view(torch.uint8).flatten()
    return Packed(torch.cat([pooled, crops.pack(content)]), unpack)


def _pool(embedding: Tensor, masks: Tensor, step: tuple[float, float]) -> Tensor:
    # Like `geolabel.models.everything.pool`.
    rows, cols = (
        torch.from_numpy(cell_shares(*each)).to(masks.device)
        for each in zip(embedding.shape[1:], masks.shape[1:], step, strict=True)
    )
    weights = torch.einsum("ih,mhw,jw->mij", rows, masks.float(), cols)
    total = weights.sum(dim=(1, 2)).clamp(min=torch.finfo(torch.float32).tiny)
    return torch.einsum("mij,dij->md", weights, embedding.float()) / total[:, None]


@dataclass(frozen=True)
class Crops:
    """Masks of an image, each cropped to its box: the form in which everything mode copies them to the host."""

    boxes: Float32Array
    """(M, 4) first and last column and row, as x0, y0, x1, y1; see `boxes_of`."""
    scores: bool
    """Whether scores are copied, a byte each; otherwise bits, whether pixels are inside."""

    def of(self, logits: Tensor, rows: slice) -> Tensor:
        """(n,) scores or flags of the masks (K, H, W) of some rows."""
        values = quantise(logits) if self.scores else logits >= 0
        crops = [mask[self._within(k)].flatten() for k, mask in enumerate(values, rows.start)]
        return torch.cat(crops)

    def pack(self, parts: Sequence[Tensor]) -> Tensor:
        """Bytes of all masks; the first pixel is the highest bit, as in ``numpy.packbits``."""
        flags = torch.cat(list(parts))
        if self.scores:
            return flags
        flags = pad(flags.to(torch.uint8), (0, -len(flags) % 8)).reshape(-1, 8)
        places = torch.tensor([128, 64, 32, 16, 8, 4, 2, 1], dtype=torch.uint8, device=flags.device)
        return (flags * places).sum(dim=1, dtype=torch.uint8)

    def draw(self, content: UInt8Array, masks: UInt8Array) -> None:
        """Write the bytes of `pack` as scores into masks (M, H, W) of zeros."""
        values = content if self.scores else np.unpackbits(content) * np.uint8(FULL)
        first = 0
        for k, mask in enumerate(masks):
            crop = mask[self._within(k)]
            crop[:] = values[first : first + crop.size].reshape(crop.shape)
            first += crop.size

    def _within(self, k: int) -> tuple[slice, slice]:
        x0, y0, x1, y1 = self.boxes[k].astype(int).tolist()
        return slice(y0, y1 + 1), slice(x0, x1 + 1)


def boxes_of(masks: Tensor) -> Tensor:
    """(K, 4) first and last column and row of boolean masks (K, H, W); an empty one has a last column of -1."""
    boxes = batched_mask_to_box(masks).float()
    some = masks.flatten(1).any(dim=1)
    last = torch.where(some, boxes[:, 2], -1.0)
    return torch.stack([boxes[:, 0], boxes[:, 1], last, boxes[:, 3]], dim=1)

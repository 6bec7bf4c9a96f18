"""Segment Anything: an image is encoded once, and all its prompts are decoded in batches.

Any network of that shape will do: the official ViT-B, -L and -H, and the small one that ships with geolabel.
Source: Kirillov et al. (2023), "Segment Anything", and the package ``segment_anything``, whose predictor this equals.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from segment_anything.modeling import Sam
from torch import Tensor
from torch.nn.functional import interpolate

from geolabel.masks import FAINT, FULL, Masks, Selection, quantise_logits, stability_score
from geolabel.prompts import PADDING, Prompts
from geolabel.segmenters.network import Points, SamNetwork
from geolabel.types import Float32Array, Float64Array, Int64Array, UInt8Array

FAINT_LOGIT = math.log((FAINT - 1) / (FULL - FAINT + 1))
"""Logit of the score below `FAINT`: what does not reach it scores 0, nor do the means of what does not."""


class SamSegmenter:
    """A SAM-shaped network as a `parts.Segmenter`.

    Parameters
    ----------
    sam, resize, device, precision, batch
        See `geolabel.segmenters.network.SamNetwork`; the official networks need images resized.
    gsd_range
        Finest and coarsest ground sample distance, metres, that it knows.
    selection
        Which candidate answers a prompt; not ``overlap``, for which the activation would have to be known.
    prompts_per_batch
        Objects per call of the decoder, all of one image. Which share a call depends on that image's prompts alone.
    """

    def __init__(
        self,
        sam: Sam,
        *,
        gsd_range: tuple[float, float],
        resize: bool = True,
        device: str = "cpu",
        precision: str = "fp32",
        batch: int = 8,
        selection: Selection = "best_iou",
        prompts_per_batch: int = 64,
    ) -> None:
        self._network = SamNetwork(sam, resize=resize, device=device, precision=precision, batch=batch)
        # Convolutions run fastest with the channels of a pixel side by side; the first one brings its input there.
        sam.image_encoder.to(memory_format=torch.channels_last)
        self._gsd_range = gsd_range
        self._selection = selection
        self._prompts_per_batch = prompts_per_batch

    @property
    def window(self) -> int:
        """Side in pixels of the largest image it takes."""
        return self._network.window

    @property
    def gsd_range(self) -> tuple[float, float]:
        """Finest and coarsest ground sample distance, metres, that it knows."""
        return self._gsd_range

    def __call__(self, images: Sequence[UInt8Array], prompts: Sequence[Prompts]) -> list[Masks]:
        """Masks of images (H, W, 3), red first; an image without prompts is not encoded.

        Raises
        ------
        ValueError
            If an image is larger than `window`.
        """
        return self._network.answer(images, prompts, self._decode, lambda image: Masks.none(*image.shape[:2]))

    def _decode(self, embedding: Tensor, image: UInt8Array, prompts: Prompts) -> Masks:
        height, width = image.shape[:2]
        answers = Masks(
            scores=np.zeros((len(prompts), height, width), np.uint8),
            predicted_iou=np.empty(len(prompts), np.float32),
            stability=np.empty(len(prompts), np.float32),
            prompt_ids=prompts.ids,
            candidates=np.empty(len(prompts), np.int64),
        )
        for rows in _alike(prompts, self._prompts_per_batch):
            low_res, predicted_iou, candidates = self._answer(embedding, (height, width), prompts[rows])
            answers.predicted_iou[rows] = predicted_iou.clamp(0, 1).cpu().numpy()
            answers.candidates[rows] = candidates.cpu().numpy()
            for row, mask, cells in zip(rows, low_res, _boxes(low_res >= FAINT_LOGIT), strict=True):
                (top, left), logits = self._enlarge(mask, cells, (height, width))
                answers.scores[row, top : top + len(logits), left : left + logits.shape[1]] = quantise_logits(logits)
                answers.stability[row] = stability_score(logits)
        return answers

    def _answer(self, embedding: Tensor, size: tuple[int, int], prompts: Prompts) -> tuple[Tensor, Tensor, Tensor]:
        # Of K prompts of one kind: coarse logits (K, h, w) of the chosen masks, predicted IoU (K,), mask token (K,).
        points, boxes = self._to_sam(prompts, size)
        single = self._selection == "single"
        low_res, quality = self._network.decode(embedding, points, boxes, single=single)
        chosen = _choose(quality, self._selection)
        each = torch.arange(len(chosen), device=chosen.device)
        return low_res[each, chosen], quality[each, chosen], chosen if single else chosen + 1

    def _enlarge(
        self, low_res: Tensor, cells: tuple[slice, slice], size: tuple[int, int]
    ) -> tuple[tuple[int, int], Float32Array]:
        # A mask in the image's pixels, as Sam.postprocess_masks makes it, where its logits (h, w) may count: the first
        # row and column, and logits. A second interpolation, where the frame is no part of the image, needs all cells.
        frame_size, step = self._network.frame_size(size), self.window // low_res.shape[-1]
        if frame_size != size:
            cells = (slice(0, low_res.shape[0]), slice(0, low_res.shape[1]))
        part = low_res[cells]
        top, left = (s.start * step for s in cells)
        if part.numel():
            enlarged = (part.shape[0] * step, part.shape[1] * step)
            part = interpolate(part[None, None], enlarged, mode="bilinear", align_corners=False)[0, 0]
        logits = part[: max(0, frame_size[0] - top), : max(0, frame_size[1] - left)]
        if frame_size != size:
            logits = interpolate(logits[None, None], size, mode="bilinear", align_corners=False)[0, 0]
        return (top, left), logits.cpu().numpy()

    def _to_sam(self, prompts: Prompts, size: tuple[int, int]) -> tuple[Points | None, Tensor | None]:
        # Prompts of one kind as the prompt encoder takes them: padding left out, in pixels of the frame.
        frame = self._network.frame_size(size)
        scale = np.array([frame[1] / size[1], frame[0] / size[0]])
        points = boxes = None
        count = int((prompts.labels[0] != PADDING).sum())
        if count:
            order = np.argsort(prompts.labels == PADDING, axis=1, kind="stable")[:, :count]
            coords = np.take_along_axis(prompts.points, order[..., None], axis=1) * scale
            labels = np.take_along_axis(prompts.labels, order, axis=1)
            points = self._tensor(coords), torch.from_numpy(labels.astype(np.int32)).to(self._network.device)
        if prompts.has_box[0]:
            boxes = self._tensor(corner_pixels(prompts.boxes) * np.tile(scale, 2))
        return points, boxes

    def _tensor(self, values: Float64Array) -> Tensor:
        return torch.from_numpy(values.astype(np.float32)).to(self._network.device)


def corner_pixels(boxes: Float64Array) -> Float64Array:
    """First and last pixel of half-open boxes (K, 4): what SAM calls a box, as it adds half a pixel to each corner."""
    return boxes - [0, 0, 1, 1]


def _boxes(reached: Tensor) -> Iterator[tuple[slice, slice]]:
    # Of each of K masks (K, h, w): the rows and columns that hold something, and one more on every side. What is
    # interpolated from there has the values that it has in the whole mask, or is made of nothing that counts.
    rows, cols = reached.any(dim=2).cpu().numpy(), reached.any(dim=1).cpu().numpy()
    for along in zip(rows, cols, strict=True):
        found = [np.flatnonzero(line) for line in along]
        row, col = (slice(max(0, at[0] - 1), at[-1] + 2) if len(at) else slice(0, 0) for at in found)
        yield row, col


def _choose(quality: Tensor, selection: Selection) -> Tensor:
    if selection == "best_iou":
        return quality.argmax(dim=1)
    last = quality.shape[1] - 1
    return torch.full((len(quality),), last if selection == "whole" else 0, device=quality.device)


def _alike(prompts: Prompts, size: int) -> Iterator[Int64Array]:
    # Rows that may share a call: all with a box or all without, and with equally many points. SAM adds a token of its
    # own to points without box, and evening out by padding would add tokens that it never saw.
    kinds = list(zip(prompts.has_box.tolist(), (prompts.labels != PADDING).sum(axis=1).tolist(), strict=True))
    for kind in sorted(set(kinds)):
        rows = np.asarray([row for row, other in enumerate(kinds) if other == kind], np.int64)
        for start in range(0, len(rows), size):
            yield rows[start : start + size]

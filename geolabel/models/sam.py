"""Segment Anything: an image is encoded once, and all its prompts are decoded in batches.

Works with any network of that structure: the official ViT-B, -L and -H, and the small one that ships with geolabel.
Source: Kirillov et al. (2023), "Segment Anything"; results equal those of the predictor of ``segment_anything``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from geolabel.masks import FAINT, FULL, Masks, Selection, quantise_logits, stability_score
from geolabel.models.engines import Points, PromptedNetwork
from geolabel.parts import Segmenter
from geolabel.prompts import PADDING, Prompts
from geolabel.types import AnyArray, BoolArray, Float32Array, Float64Array, Int64Array, UInt8Array

if TYPE_CHECKING:
    from geolabel.models.on_device import Packed

FAINT_LOGIT = math.log((FAINT - 1) / (FULL - FAINT + 1))
"""Logit of the score below `FAINT`: smaller logits score 0, and so do their means."""


class SamSegmenter:
    """A SAM-shaped network as a `parts.Segmenter`.

    Parameters
    ----------
    network
        The network, in its engine.
    gsd_range
        Finest and coarsest supported ground sample distance, metres.
    selection
        Which candidate answers a prompt; ``overlap`` is not supported, as it needs the activation.
    prompts_per_batch
        Objects per call of the decoder, all of one image. The grouping depends on that image's prompts only.
    """

    def __init__(
        self,
        network: PromptedNetwork,
        *,
        gsd_range: tuple[float, float],
        selection: Selection = "best_iou",
        prompts_per_batch: int = 64,
    ) -> None:
        self._network = network
        self._gsd_range = gsd_range
        self._selection = selection
        self._prompts_per_batch = prompts_per_batch

    @property
    def window(self) -> int:
        """Maximum side in pixels of an image."""
        return self._network.window

    @property
    def gsd_range(self) -> tuple[float, float]:
        """Finest and coarsest supported ground sample distance, metres."""
        return self._gsd_range

    def __call__(self, images: Sequence[UInt8Array], prompts: Sequence[Prompts]) -> list[Masks]:
        """Masks of images (H, W, 3), red first; images without prompts are not encoded.

        Raises
        ------
        ValueError
            If an image is larger than `window`.
        """
        return answer(self._network, images, prompts, self._decode, lambda image: Masks.none(*image.shape[:2]))

    def _decode(self, embedding: Any, image: UInt8Array, prompts: Prompts) -> Masks | Packed:
        height, width = image.shape[:2]
        if self._network.apart:
            return self._decode_apart(embedding, (height, width), prompts)
        answers = Masks(
            scores=np.zeros((len(prompts), height, width), np.uint8),
            predicted_iou=np.empty(len(prompts), np.float32),
            stability=np.empty(len(prompts), np.float32),
            prompt_ids=prompts.ids,
            candidates=np.empty(len(prompts), np.int64),
        )
        for rows in _alike(prompts, self._prompts_per_batch):
            low_res, predicted_iou, candidates = self._answer(embedding, (height, width), prompts[rows])
            answers.predicted_iou[rows] = predicted_iou.clip(0, 1)
            answers.candidates[rows] = candidates
            for row, mask in zip(rows, enlarged(self._network, low_res, (height, width)), strict=True):
                answers.scores[row][mask.slices] = quantise_logits(mask.logits)
                answers.stability[row] = stability_score(mask.logits)
        return answers

    def _decode_apart(self, embedding: Any, size: tuple[int, int], prompts: Prompts) -> Packed:
        # The same on a device, without waiting for results.
        from geolabel.models import on_device

        single, parts = self._selection == "single", []
        for rows in _alike(prompts, self._prompts_per_batch):
            low_res, quality = self._network.decode(embedding, *self._to_sam(prompts[rows], size), single=single)
            last = quality.shape[1] - 1
            chosen = None if self._selection == "best_iou" else last if self._selection == "whole" else 0
            token = 0 if single else 1
            parts.append(
                on_device.answered(self._network, rows, low_res, quality, chosen=chosen, first_token=token, size=size)
            )
        return on_device.pack(prompts, size, parts)

    def _answer(self, embedding: Any, size: tuple[int, int], prompts: Prompts) -> tuple[Any, Float32Array, Int64Array]:
        # For K prompts of one kind: coarse logits (K, h, w) of the chosen masks, predicted IoU (K,), mask token (K,).
        points, boxes = self._to_sam(prompts, size)
        single = self._selection == "single"
        low_res, given = self._network.decode(embedding, points, boxes, single=single)
        quality = self._network.host(given)
        chosen = _choose(quality, self._selection)
        each = np.arange(len(chosen))
        return low_res[each, chosen], quality[each, chosen], chosen if single else chosen + 1

    def _to_sam(self, prompts: Prompts, size: tuple[int, int]) -> tuple[Points | None, AnyArray | None]:
        # Prompts of one kind for the prompt encoder: without padding, in pixels of the frame.
        frame = self._network.frame_size(size)
        scale = np.array([frame[1] / size[1], frame[0] / size[0]])
        points = boxes = None
        count = int((prompts.labels[0] != PADDING).sum())
        if count:
            order = np.argsort(prompts.labels == PADDING, axis=1, kind="stable")[:, :count]
            coords = np.take_along_axis(prompts.points, order[..., None], axis=1) * scale
            labels = np.take_along_axis(prompts.labels, order, axis=1)
            points = coords.astype(np.float32), labels.astype(np.int32)
        if prompts.has_box[0]:
            boxes = (corner_pixels(prompts.boxes) * np.tile(scale, 2)).astype(np.float32)
        return points, boxes


@dataclass(frozen=True)
class EnlargedMask:
    """A mask in the pixels of its image, cropped."""

    top: int
    left: int
    logits: Float32Array
    """(h, w)"""

    @property
    def slices(self) -> tuple[slice, slice]:
        """Rows and columns of the image."""
        height, width = self.logits.shape
        return slice(self.top, self.top + height), slice(self.left, self.left + width)


def enlarged(
    network: PromptedNetwork, low_res: Any, size: tuple[int, int], reach: float | None = None
) -> Iterator[EnlargedMask]:
    """Coarse masks (K, h, w) from the network, enlarged to the size of their image.

    Parameters
    ----------
    size
        Height and width.
    reach
        Masks are cropped to logits of at least this; None to crop to scores above 0.
    """
    reach = FAINT_LOGIT if reach is None else reach
    for mask, cells in zip(low_res, _boxes(network.host(low_res) >= reach), strict=True):
        (top, left), logits = _enlarge(network, mask, cells, size)
        yield EnlargedMask(top, left, logits)


def _enlarge(
    network: PromptedNetwork, low_res: Any, cells: tuple[slice, slice], size: tuple[int, int]
) -> tuple[tuple[int, int], Float32Array]:
    # A mask in the image's pixels, like Sam.postprocess_masks, where its logits (h, w) may matter: first row and
    # column, and logits. A second interpolation, if the frame is not part of the image, needs all cells.
    if network.stretches:
        return (0, 0), network.host(network.enlarge(low_res, size))
    frame_size, step = network.frame_size(size), network.window // low_res.shape[-1]
    if frame_size != size:
        cells = (slice(0, low_res.shape[0]), slice(0, low_res.shape[1]))
    part = low_res[cells]
    top, left = (s.start * step for s in cells)
    if all(part.shape):
        part = network.enlarge(part, (part.shape[0] * step, part.shape[1] * step))
    logits = part[: max(0, frame_size[0] - top), : max(0, frame_size[1] - left)]
    if frame_size != size:
        logits = network.enlarge(logits, size)
    return (top, left), network.host(logits)


def corner_pixels(boxes: Float64Array) -> Float64Array:
    """First and last pixel of half-open boxes (K, 4): SAM's convention, as it adds half a pixel to each corner."""
    return boxes - [0, 0, 1, 1]


def _boxes(reached: BoolArray) -> Iterator[tuple[slice, slice]]:
    # For each of K masks (K, h, w): the rows and columns with content, with a margin of one on every side.
    # Interpolation inside has the same values as in the whole mask; everything outside is irrelevant.
    rows, cols = np.any(reached, axis=2), np.any(reached, axis=1)
    for along in zip(rows, cols, strict=True):
        found = [np.flatnonzero(line) for line in along]
        row, col = (slice(max(0, at[0] - 1), at[-1] + 2) if len(at) else slice(0, 0) for at in found)
        yield row, col


def _choose(quality: Float32Array, selection: Selection) -> Int64Array:
    if selection == "best_iou":
        best: Int64Array = np.argmax(quality, axis=1)
        return best
    last = quality.shape[1] - 1
    return np.full(len(quality), last if selection == "whole" else 0)


def _alike(prompts: Prompts, size: int) -> Iterator[Int64Array]:
    # Indices that may share a call: all with a box or all without, and with equally many points. SAM adds a token to
    # points without box, and padding would add tokens that it was not trained with.
    kinds = list(zip(prompts.has_box.tolist(), (prompts.labels != PADDING).sum(axis=1).tolist(), strict=True))
    for kind in sorted(set(kinds)):
        rows = np.asarray([row for row, other in enumerate(kinds) if other == kind], np.int64)
        for start in range(0, len(rows), size):
            yield rows[start : start + size]


def answer(
    network: PromptedNetwork,
    images: Sequence[UInt8Array],
    prompts: Sequence[Prompts],
    decode: Callable[[Any, UInt8Array, Prompts], Masks | Packed],
    nothing: Callable[[UInt8Array], Masks],
) -> list[Masks]:
    """Masks of images (H, W, 3), red first.

    Parameters
    ----------
    decode
        Computes the masks of one image from its embedding, the image and its prompts. Masks left on a device are copied
        to the host together for all images of a batch.
    nothing
        Returns the masks of an image without prompts, which is not encoded.

    Raises
    ------
    ValueError
        If an image with prompts is larger than the network's window.
    """
    asked = [i for i, of_image in enumerate(prompts) if len(of_image)]
    masks = [nothing(image) for image in images]
    with network.running():
        for start in range(0, len(asked), network.batch):
            group = asked[start : start + network.batch]
            for i in group:
                if max(images[i].shape[:2]) > network.window:
                    size = images[i].shape[:2]
                    raise ValueError(f"an image of {size} px exceeds the segmenter's window of {network.window} px")
            embeddings = network.encode([images[i] for i in group])
            made = [decode(seen, images[i], prompts[i]) for i, seen in zip(group, embeddings, strict=True)]
            for i, found in zip(group, _on_the_host(network, made), strict=True):
                masks[i] = found
    return masks


def _on_the_host(network: PromptedNetwork, made: Sequence[Masks | Packed]) -> Iterator[Masks]:
    packed = [one for one in made if not isinstance(one, Masks)]
    if packed:
        from geolabel.models import on_device

        packed_masks = iter(on_device.fetch(network, packed))
        yield from (one if isinstance(one, Masks) else next(packed_masks) for one in made)
    else:
        yield from (one for one in made if isinstance(one, Masks))


# --- images larger than the window -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class FittingSegmenter:
    """Reduces an image until its longer side fits, as the official networks do with every image.

    For chips, which are processed as a whole; scenes are processed in tiles at their own resolution.
    """

    segmenter: Segmenter

    @property
    def window(self) -> int:
        """Unlimited."""
        return 1 << 30

    @property
    def gsd_range(self) -> tuple[float, float]:
        """That of the wrapped segmenter."""
        return self.segmenter.gsd_range

    def __call__(self, images: Sequence[UInt8Array], prompts: Sequence[Prompts]) -> list[Masks]:
        """Masks of images (H, W, 3) at their own size."""
        reduced = [self._reduced(image, asked) for image, asked in zip(images, prompts, strict=True)]
        found = self.segmenter([image for image, _ in reduced], [asked for _, asked in reduced])
        return [_enlarged_masks(masks, image.shape[:2]) for masks, image in zip(found, images, strict=True)]

    def _reduced(self, image: UInt8Array, prompts: Prompts) -> tuple[UInt8Array, Prompts]:
        height, width = image.shape[:2]
        share = self.segmenter.window / max(height, width)
        if share >= 1:
            return image, prompts
        small = max(1, round(width * share)), max(1, round(height * share))
        # a copy, since torch warns about read-only arrays, such as those from Pillow
        reduced = np.array(Image.fromarray(image).resize(small, Image.Resampling.BILINEAR))
        # a point is a pixel index: centres keep their position
        return reduced, replace(prompts, boxes=prompts.boxes * share, points=(prompts.points + 0.5) * share - 0.5)


def _enlarged_masks(masks: Masks, size: tuple[int, ...]) -> Masks:
    height, width = size
    if masks.scores.shape[1:] == (height, width):
        return masks
    scores = np.empty((len(masks), height, width), np.uint8)
    for k, score in enumerate(masks.scores):
        scores[k] = np.asarray(Image.fromarray(score).resize((width, height), Image.Resampling.BILINEAR))
    return replace(masks, scores=scores)

"""Training of the segmenter like Segment Anything: many objects per image, three candidates, minimum loss.

Source: Kirillov et al. (2023), "Segment Anything", appendix A.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.random import Generator
from scipy import ndimage, optimize
from segment_anything.modeling import Sam
from torch import Tensor, nn
from torch.nn import functional

from geolabel.devices import exact
from geolabel.models.nets.sam import EMBEDDING_STRIDE, LOW_RES_STRIDE
from geolabel.synthetic import CLASSES
from geolabel.synthetic.cover import LANDSLIDE
from geolabel.training.bundled_data import UNKNOWN
from geolabel.training.losses import best_candidate, cover_loss, dice_loss, focal_loss, mask_iou
from geolabel.training.samples import Sample, Sampling, draw, generator, in_cells
from geolabel.types import BoolArray, Float64Array

Kind = Literal["both", "box", "point"]
KINDS: tuple[Kind, ...] = ("both", "both", "both", "box", "box", "point")
"""Kinds of prompts in a step; extraction uses box and point."""

OBJECTS = 6
"""Objects per image."""

EXACT = 0.25
"""Share of prompts that are an object's exact box and centroid; half of the others on landslides imitate a
localizer."""

WHOLE = 0.4
"""Share of samples near a landslide that contain all of it: extraction reduces images larger than the frame."""

_MIN_OBJECT = 24
"""Minimum pixels of an object."""

_CELL = 8
"""Pixels per cell of the imitated activation."""

_EIGHT = np.ones((3, 3), int)
"""Connectivity, as in contour tracing."""


class SegmenterLosses(nn.Module):
    """The segmenter and its losses.

    Each step has few objects, which tell the encoder little. So an auxiliary head, dropped after training, predicts the
    land cover of every cell from the embedding: masks follow edges between different covers.
    """

    def __init__(self, sam: Sam) -> None:
        super().__init__()
        self.sam = sam
        channels = sam.mask_decoder.transformer_dim
        fold = EMBEDDING_STRIDE // LOW_RES_STRIDE
        self.cover = nn.Sequential(nn.Conv2d(channels, len(CLASSES) * fold**2, 1), nn.PixelShuffle(fold))

    def forward(
        self,
        images: Tensor,
        classes: Tensor,
        index: Tensor,
        target: Tensor,
        origin: Tensor,
        points: Tensor | None = None,
        boxes: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Losses of K objects and of the land cover under them.

        Parameters
        ----------
        classes : (N, h, w)
            Land cover in the decoder's cells, `UNKNOWN` for unknown cover other than landslides.
        target : (K, h, w)
            Coverage of the decoder's cells by each object.

        The other arguments are those of `answer`.
        """
        embeddings = self.sam.image_encoder(images)
        logits, quality = self.decode(embeddings, index, origin, points, boxes)
        cover = cover_loss(self.cover(embeddings).float(), classes, LANDSLIDE, UNKNOWN)
        return mask_losses(logits, quality, target) | {"cover": 0.5 * cover}

    def answer(
        self,
        images: Tensor,
        index: Tensor,
        origin: Tensor,
        points: Tensor | None = None,
        boxes: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Logits (K, 4, h, w) and predicted IoU (K, 4) of all four mask tokens, the single one first.

        An image may be smaller than the encoder's: it is then placed somewhere inside the frame that positions refer
        to. Small images cover more of the data in the same time.

        Parameters
        ----------
        images : (N, 3, S, S)
            Normalised.
        index : (K,)
            Image of each object.
        origin : (2,)
            x and y of the images' first pixel in the encoder's frame, multiples of the embedding's stride.
        points : (K, 2)
            In pixels of the image.
        boxes : (K, 4)
            In pixels of the image.
        """
        return self.decode(self.sam.image_encoder(images), index, origin, points, boxes)

    def decode(
        self, embeddings: Tensor, index: Tensor, origin: Tensor, points: Tensor | None, boxes: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Like `answer`, from embeddings (N, D, S / 16, S / 16)."""
        with exact(str(embeddings.device)):  # eight bits cannot distinguish pixels
            sparse, dense, positions = self._ask(embeddings.shape[-1], origin, points, boxes)
        # The decoder takes one image and adds dense prompts to it: objects of many images can share a call if their
        # image is passed as part of the prompt.
        logits, quality = self.sam.mask_decoder.predict_masks(
            image_embeddings=torch.zeros_like(embeddings[:1]),
            image_pe=positions,
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense + embeddings[index],
        )
        return logits.float(), quality.float()

    def _ask(
        self, cells: int, origin: Tensor, points: Tensor | None, boxes: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        # Sparse and dense embeddings of prompts, and the positions of the image cells.
        encoder = self.sam.prompt_encoder
        shift = origin.float()
        asked_points = None
        if points is not None:
            asked_points = (points + shift)[:, None], points.new_ones(len(points), 1)
        asked_boxes = None if boxes is None else boxes + shift.repeat(2)
        drawn = encoder.draw(asked_points, asked_boxes)
        fold = EMBEDDING_STRIDE // LOW_RES_STRIDE
        masks = _part(drawn, origin // LOW_RES_STRIDE, cells * fold)
        positions = _part(encoder.get_dense_pe(), origin // EMBEDDING_STRIDE, cells)
        sparse, dense = encoder(points=asked_points, boxes=asked_boxes, masks=masks)
        return sparse, dense, positions


def mask_losses(logits: Tensor, quality: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Losses of the masks of K objects, mainly of the best of three candidates, and of predicted IoU.

    Parameters
    ----------
    logits : (K, 4, h, w)
        Logits of all four mask tokens, the single one first.
    quality : (K, 4)
        Predicted IoU.
    target : (K, h, w)
        Coverage of the cells by each object.
    """
    true = target[:, None].expand_as(logits)
    each = 20 * focal_loss(logits, true) + dice_loss(logits, true)
    masks = best_candidate(each[:, 1:], rest=0.15) + 0.5 * each[:, 0]
    wrong = functional.mse_loss(quality, mask_iou(logits, true).detach(), reduction="none")
    return {"masks": masks.mean(), "quality": 2 * wrong.mean()}


def _part(maps: Tensor, origin: Tensor, cells: int) -> Tensor:
    x, y = origin.tolist()
    return maps[..., y : y + cells, x : x + cells]


class SegmenterObjective:
    """Trains on samples of two sizes, selects on samples of the encoder's size with a localizer's prompts.

    Parameters
    ----------
    sampling
        Size and batch of most steps; every fourth step has fewer samples of twice the side.
    slides
        Share of objects that are landslides.
    judged
        Samples for selection.
    """

    def __init__(self, sam: Sam, sampling: Sampling, *, slides: float = 0.7, judged: int = 24) -> None:
        self.module = SegmenterLosses(sam)
        self._sampling, self._slides = sampling, slides
        self._frame = int(sam.image_encoder.img_size)
        self._judged = [self._kept(i) for i in range(judged)]

    def batch(self, step: int) -> dict[str, Tensor]:
        """Samples of one step."""
        asked = self._sampling
        rng = generator(asked.seed, 2, step)
        large = step % 4 == 3 and 2 * asked.size <= self._frame
        size, count = (2 * asked.size, max(1, asked.batch // 4)) if large else (asked.size, asked.batch)
        samples = [draw(asked.pictures, size, rng, on_slide=0.8, whole=WHOLE) for _ in range(count)]
        prompts: list[Prompt] = []
        index: list[int] = []
        while not prompts:
            for i, sample in enumerate(samples):
                for mask, is_slide in choose_objects(sample, OBJECTS, self._slides, rng):
                    prompts.append(_ask(mask, is_slide, rng))
                    index.append(i)
            if not prompts:
                samples = [draw(asked.pictures, size, rng, on_slide=1.0) for _ in range(count)]
        kind = KINDS[rng.integers(len(KINDS))]
        steps = (self._frame - size) // EMBEDDING_STRIDE
        origin = rng.integers(0, steps + 1, 2) * EMBEDDING_STRIDE
        classes = np.stack([in_cells(sample.classes, LOW_RES_STRIDE) for sample in samples])
        return {
            "images": asked.to_tensor([sample.rgb for sample in samples]),
            "classes": torch.from_numpy(classes).long(),
            "index": torch.tensor(index),
            "origin": torch.from_numpy(origin),
        } | _question(prompts, kind)

    def _kept(self, number: int) -> dict[str, Tensor]:
        rng = generator(self._sampling.seed, 3, number)
        while True:
            sample = draw(self._sampling.selection, self._frame, rng, on_slide=1.0)
            prompts = [localizer_prompt(mask, rng) for mask, _ in choose_objects(sample, OBJECTS, 1.0, rng)]
            if prompts:
                images = self._sampling.to_tensor([sample.rgb])
                index = torch.zeros(len(prompts), dtype=torch.long)
                origin = torch.zeros(2, dtype=torch.long)
                return {"images": images, "index": index, "origin": origin} | _question(prompts, "both")

    def figures(self, module: nn.Module) -> dict[str, float]:
        """Mean IoU with landslides: of the candidate preferred by the network (the score), the best, the single one.

        Also ``logit/scale``, which calibrates the sigmoid of the preferred masks' logits.
        """
        assert isinstance(module, SegmenterLosses)
        device = module.sam.device
        chosen, best, single, error, margins = [], [], [], [], []
        for kept in self._judged:
            batch = {name: tensor.to(device) for name, tensor in kept.items()}
            target = batch.pop("target")
            logits, quality = module.answer(**batch)
            iou = mask_iou(logits, target[:, None].expand_as(logits)).cpu()
            preferred = quality[:, 1:].argmax(dim=1, keepdim=True)
            chosen.append(iou[:, 1:].gather(1, preferred.cpu())[:, 0])
            best.append(iou[:, 1:].max(dim=1).values)
            single.append(iou[:, 0])
            error.append((quality.cpu() - iou).abs().mean(dim=1))
            # The margin is positive on the correct side of a mask's edge.
            masks = logits[torch.arange(len(logits), device=device), 1 + preferred[:, 0]]
            margins.append((masks * (2 * (target >= 0.5) - 1)).flatten().cpu())
        means = [float(torch.cat(values).mean()) for values in (chosen, best, single, error)]
        figures = dict(zip(("iou/chosen", "iou/best", "iou/single", "iou/error"), means, strict=True))
        return {"score": means[0], **figures, "logit/scale": logit_scale(torch.cat(margins).double().numpy())}


def _ask(mask: BoolArray, is_slide: bool, rng: Generator) -> Prompt:
    how = rng.random()
    if how < EXACT:
        return exact_prompt(mask)
    return localizer_prompt(mask, rng) if is_slide and how < 0.5 * (1 + EXACT) else sloppy_prompt(mask, rng)


def logit_scale(margins: Float64Array) -> float:
    """Scale of minimum cross-entropy for logits, given as margins (N,): negated if the truth is 0.

    Source: temperature scaling, Guo et al. (2017), "On Calibration of Modern Neural Networks".
    """

    def loss(log_scale: float) -> float:
        return float(np.logaddexp(0, -np.exp(log_scale) * margins).mean())

    return float(np.exp(optimize.minimize_scalar(loss, bounds=(-2, 2), method="bounded").x))


@torch.no_grad()
def settle(losses: SegmenterLosses, figures: dict[str, float]) -> None:
    """Fold the scale into the decoder, so that scores are probabilities; mask edges stay at a logit of 0."""
    for branch in losses.sam.mask_decoder.output_hypernetworks_mlps:
        branch.layers[-1].weight *= figures["logit/scale"]
        branch.layers[-1].bias *= figures["logit/scale"]


def _question(prompts: Sequence[Prompt], kind: Kind) -> dict[str, Tensor]:
    masks = torch.from_numpy(np.stack([prompt.mask for prompt in prompts])).float()
    asked = {"target": functional.avg_pool2d(masks[:, None], LOW_RES_STRIDE)[:, 0]}
    if kind != "box":
        asked["points"] = torch.from_numpy(np.stack([prompt.point for prompt in prompts])).float()
    if kind != "point":
        asked["boxes"] = torch.from_numpy(np.stack([prompt.box for prompt in prompts])).float()
    return asked


# --- objects and prompts ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prompt:
    """An object and a prompt for it."""

    mask: BoolArray
    """(S, S)"""
    box: Float64Array
    """(4,) x0, y0, x1, y1: first and last pixels, SAM's convention for boxes."""
    point: Float64Array
    """(2,) x, y of a pixel."""


def choose_objects(sample: Sample, count: int, slides: float, rng: Generator) -> list[tuple[BoolArray, bool]]:
    """Up to `count` masks (S, S) of a sample, with whether each is a landslide; about a share `slides` of them are.

    Landslides are connected components, as in extraction. Other objects are regions of land cover that fill at most
    half of the sample.
    """
    components, _ = ndimage.label(sample.slides, _EIGHT)
    own = _numbers(components, minimum=_MIN_OBJECT, maximum=components.size, rng=rng)
    other = _numbers(sample.regions, minimum=4 * _MIN_OBJECT, maximum=components.size // 2, rng=rng)
    other = [n for n in other if not sample.slides[sample.regions == n].all()]
    wanted = rng.binomial(count, slides)
    wanted = max(wanted, count - len(other))
    chosen = [(components == n, True) for n in own[:wanted]]
    return chosen + [(sample.regions == n, False) for n in other[: count - len(chosen)]]


def _numbers(labels: np.ndarray, *, minimum: int, maximum: int, rng: Generator) -> list[int]:
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    found = np.flatnonzero((sizes >= minimum) & (sizes <= maximum))
    return [int(n) for n in rng.permutation(found)]


def exact_prompt(mask: BoolArray) -> Prompt:
    """Box and centroid of an object (H, W); that of a crescent may be outside, and still means the crescent."""
    rows, cols = np.nonzero(mask)
    return Prompt(mask, _box(mask), np.array([cols.mean(), rows.mean()]))


def sloppy_prompt(mask: BoolArray, rng: Generator) -> Prompt:
    """A person's prompt: a box with errors of about a tenth of its size, and a point anywhere inside the object."""
    box = _box(mask)
    sides = np.tile(box[2:] - box[:2] + 1, 2)
    box = box + rng.normal(0, 0.06, 4) * sides + rng.normal(0, 1.5, 4)
    rows, cols = np.nonzero(mask)
    at = rng.integers(len(rows))
    return Prompt(mask, _ordered(box, mask.shape), np.array([cols[at], rows[at]], float))


def localizer_prompt(mask: BoolArray, rng: Generator, *, noise: float = 0.25) -> Prompt:
    """The prompt from a coarse and uneven activation: box and centroid of its component with most of the object."""
    size = len(mask)
    coverage = mask.reshape(size // _CELL, _CELL, size // _CELL, _CELL).mean(axis=(1, 3))
    nodes = rng.standard_normal((7, 7))
    uneven = ndimage.zoom(nodes, len(coverage) / 7, order=1, grid_mode=True, mode="nearest")
    level = ndimage.gaussian_filter(coverage, 0.6) + noise * uneven
    near = ndimage.binary_dilation(coverage > 0)
    labels, count = ndimage.label((level > 0.4) & near, _EIGHT)
    if count == 0:
        return sloppy_prompt(mask, rng)
    held = np.bincount(labels.ravel(), weights=coverage.ravel(), minlength=count + 1)[1:]
    part = labels == 1 + int(held.argmax())
    rows, cols = np.nonzero(part)
    first_last = _box(part) * _CELL + [0, 0, _CELL - 1, _CELL - 1]
    centroid = np.array([cols.mean(), rows.mean()]) * _CELL + (_CELL - 1) / 2
    return Prompt(mask, first_last, centroid)


def _box(mask: BoolArray) -> Float64Array:
    rows, cols = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return np.array([cols[0], rows[0], cols[-1], rows[-1]], float)


def _ordered(box: Float64Array, shape: tuple[int, ...]) -> Float64Array:
    box = np.clip(box, 0, np.tile(shape[::-1], 2) - 1)
    return np.concatenate([np.minimum(box[:2], box[2:]), np.maximum(box[:2], box[2:])])

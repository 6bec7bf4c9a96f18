"""The last layers of a segmenter's mask decoder, fitted to outlines that a person drew.

These are the layers after its transformer: those that upsample the cells, those that make masks from the tokens, and
the predicted IoU. Their inputs are computed once for each outline. A few outlines teach little: the layers are pulled
towards their initial weights, and the mean of both is kept if it gains on other outlines.

Sources: Kirillov et al. (2023), "Segment Anything", appendix A, for the losses; Li et al. (2018), "Explicit inductive
bias for transfer learning with convolutional networks", for the pull (L2-SP); Wortsman et al. (2022), "Robust
fine-tuning of zero-shot models", for the mean.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import shapely
import torch
from scipy import ndimage
from segment_anything.modeling import MaskDecoder, Sam
from torch import Tensor

from geolabel.activation import window_logits
from geolabel.adaptation.ground import Ground
from geolabel.adaptation.levels import FOLDS, OperatingPoint, by_cell
from geolabel.engine.tasks import Progress
from geolabel.extraction.estimate import warm_seconds
from geolabel.extraction.plan import Plan, PromptedWindow, assign, oversized
from geolabel.io.write.rasters import rasterize
from geolabel.models import loading
from geolabel.models.checkpoint import load_own
from geolabel.models.nets.sam import LOW_RES_STRIDE
from geolabel.models.on_torch import TorchSam
from geolabel.models.sam import corner_pixels
from geolabel.parts import Recipe
from geolabel.prompts import Prompts
from geolabel.tiles import TileGrid, Window
from geolabel.training.losses import mask_iou
from geolabel.training.segmenter_objective import mask_losses
from geolabel.types import AnyArray, Float32Array, Float64Array, Int64Array, UInt8Array

MINIMUM = 5
"""Minimum number of outlines drawn by a person to fit the decoder to."""

MAXIMUM = 256
"""Maximum number of outlines to learn from, evenly sampled from all."""

SMALLEST = 200
"""Minimum area of an outline in pixels: a dozen of the decoder's cells."""

MINIMUM_GAIN = 0.02
"""IoU of masks by cross-validation that the new decoder has to gain: less is within the noise of a few outlines."""

MATCH = 0.3
"""Minimum IoU of the boxes for a prompt of the localizer to stand for an outline."""

SIDES = (2048, 1024, 512, 256, 128)
"""Sides in pixels of the squares of ground by which outlines are left out: the largest that gives enough is used."""

STEPS, OUTLINES, RATE = 40, 8, 1e-3
"""Steps, outlines per step, highest learning rate."""

PULL = 1e-2
"""Weight of the squared distance from the initial weights."""

SHARE = 0.5
"""Weight of the trained weights in their mean with the initial ones."""


@dataclass(frozen=True)
class Redrawn:
    """A segmenter fitted to outlines, and its gain."""

    before: float
    """Mean IoU of its masks with the outlines."""
    after: float
    """The same by cross-validation over squares of ground."""
    decoder: MaskDecoder | None
    """Fitted to all outlines; None if it gains too little."""


def fit_decoder(
    recipe: Recipe,
    plans: Sequence[Plan],
    grounds: Sequence[Ground],
    found: Sequence[Prompts],
    seed: int,
    progress: Progress,
) -> Redrawn | None:
    """Fit the decoder of a segmenter to the outlines that a person drew; None if they are too few, or in one place.

    Parameters
    ----------
    plans, grounds
        Scenes, and the judgement of their ground.
    found
        Prompts of the localizer for each scene, in pixels of its grid.
    """
    if sum(len(ground.drawn) for ground in grounds) < MINIMUM:
        return None
    sam, _ = load_own(loading.file_of(recipe), "segmenter")
    assert isinstance(sam, Sam)
    lessons = _gather(TorchSam(sam, resize=False, device=recipe.device, batch=1), plans, grounds, found, progress)
    folds = None if lessons is None else folds_of(lessons.places)
    if lessons is None or folds is None or len(lessons) < MINIMUM:
        return None
    before, after = ious(sam.mask_decoder, lessons), np.zeros(len(lessons))
    for fold in progress.track(np.unique(folds), "fit decoder", len(np.unique(folds))):
        held = folds == fold
        after[held] = ious(fitted(sam.mask_decoder, lessons.only(~held), seed), lessons.only(held))
    decoder = fitted(sam.mask_decoder, lessons, seed) if gains(before, after) else None
    return Redrawn(float(before.mean()), float(after.mean()), decoder)


def gains(before: Float64Array, after: Float64Array) -> bool:
    """Whether the mean IoU of outlines (K,) rises by at least `MINIMUM_GAIN`."""
    return bool(after.mean() >= before.mean() + MINIMUM_GAIN)


# --- before a fit ----------------------------------------------------------------------------------------------------


def lacking(plans: Sequence[Plan], grounds: Sequence[Ground]) -> str | None:
    """Why no decoder can be fitted to the outlines that a person drew; None if one can."""
    drawn = sum(len(ground.drawn) for ground in grounds)
    if drawn < MINIMUM:
        return f"{drawn} outlines were drawn or redrawn, at least {MINIMUM} are needed"
    asked = _asked(plans, grounds, [Prompts.build()] * len(plans))
    count = sum(len(outlines) for _, _, outlines in asked)
    if count < MINIMUM:
        return (
            f"{count} of {drawn} outlines drawn or redrawn have {SMALLEST} px or more and fit a window of the "
            f"segmenter, at least {MINIMUM} are needed"
        )
    return "all drawn or redrawn outlines are in one place" if folds_of(_places(asked)) is None else None


def seconds_to_fit(recipe: Recipe, plans: Sequence[Plan], grounds: Sequence[Ground], fits: int) -> float:
    """Seconds to encode the outlines that a person drew, and to fit the decoder to them a number of times."""
    sam, _ = load_own(loading.file_of(recipe), "segmenter")
    assert isinstance(sam, Sam)
    network = TorchSam(sam, resize=False, device=recipe.device, batch=1)
    asked = _asked(plans, grounds, [Prompts.build()] * len(plans))
    number, seen, outlines = asked[0]
    bands, valid = plans[number].reader.read(seen.window, plans[number].grid)
    image = plans[number].stretch.apply(bands, valid)
    prompts = seen.prompts.shift(-seen.window.col, -seen.window.row)
    encode_s = warm_seconds(lambda: attended(network, image, prompts))
    cells, tokens = (torch.cat(parts) for parts in zip(*attended(network, image, prompts), strict=True))
    covers = np.stack([_cover(outline, seen.window, valid, network.window) for outline in outlines])
    lessons = Lessons(cells, tokens, torch.from_numpy(covers).to(cells.device), _places(asked[:1]))
    lessons = lessons.only(np.resize(np.arange(len(lessons)), OUTLINES))  # the size of a step
    start = time.perf_counter()
    fitted(sam.mask_decoder, lessons, 0)
    return len(asked) * encode_s + fits * (time.perf_counter() - start)


# --- outlines and their prompts --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Lessons:
    """K outlines, and the inputs of the last layers for their prompts."""

    cells: Tensor
    """(K, D, h, w) image cells as output by the transformer, half precision."""
    tokens: Tensor
    """(K, 1 + M, D) tokens of the predicted IoU and of each mask, as output by the transformer."""
    covers: Tensor
    """(K, 4 h, 4 w) share of the decoder's cells that the outline covers, half precision."""
    places: Int64Array
    """(K, 3) number of the grid, row and column of the centre of each outline."""

    def __len__(self) -> int:
        return len(self.covers)

    def only(self, rows: AnyArray) -> Lessons:
        """Some of the outlines."""
        return Lessons(self.cells[rows], self.tokens[rows], self.covers[rows], self.places[rows])


def regions(raw: Float32Array, point: OperatingPoint, window: int, stride: int, first: tuple[int, int]) -> Prompts:
    """Box and centroid of the regions of a raw map (h, w) at an operating point, in pixels of the grid.

    Parameters
    ----------
    window
        Side of the gate's window in cells.
    stride
        Pixels per cell.
    first
        Row and column of the first cell on the grid.
    """
    labels, count = ndimage.label(raw > point.cut, np.ones((3, 3)))
    numbers = np.arange(1, count + 1)
    logits = window_logits(raw[None], window, point.sharpness)[0]
    taken = numbers[np.asarray(ndimage.maximum(logits, labels, numbers)) >= point.gate] if count else numbers
    if not len(taken):
        return Prompts.build()
    places = ndimage.find_objects(labels)
    corners = [(x.start, y.start, x.stop, y.stop) for y, x in (places[k - 1] for k in taken.tolist())]
    centres = np.asarray(ndimage.center_of_mass(labels > 0, labels, taken))[:, ::-1]
    offset = np.asarray(first[::-1], float)
    return Prompts.build(
        boxes=stride * (np.asarray(corners, float) + np.tile(offset, 2)),
        points=stride * (centres + offset + 0.5) - 0.5,
    )


def prompts_for(outlines: AnyArray, found: Prompts) -> Prompts:
    """Prompts for outlines (K,): the prompt whose box is most similar, or, if there is none, its own box and centroid.

    Parameters
    ----------
    outlines
        Polygons in pixels of the grid.
    found
        Prompts of the localizer, in the same pixels.
    """
    bounds = shapely.bounds(outlines)
    boxes = np.concatenate([np.floor(bounds[:, :2]), np.ceil(bounds[:, 2:])], axis=1)
    points = shapely.get_coordinates(shapely.centroid(outlines)) - 0.5
    if len(found):
        ious = _box_ious(boxes, found.boxes)
        best = ious.argmax(axis=1)
        alike = (ious.max(axis=1) >= MATCH)[:, None]
        boxes, points = np.where(alike, found.boxes[best], boxes), np.where(alike, found.points[best, 0], points)
    return Prompts.build(boxes=boxes, points=points)


def _box_ious(ours: Float64Array, others: Float64Array) -> Float64Array:
    """(K, N) IoU of boxes (K, 4) and (N, 4)."""
    low = np.maximum(ours[:, None, :2], others[None, :, :2])
    high = np.minimum(ours[:, None, 2:], others[None, :, 2:])
    both = np.clip(high - low, 0, None).prod(axis=2)
    sizes, theirs = ((boxes[:, 2:] - boxes[:, :2]).prod(axis=1) for boxes in (ours, others))
    return np.asarray(both / np.maximum(sizes[:, None] + theirs[None] - both, 1e-9))


def _gather(
    network: TorchSam, plans: Sequence[Plan], grounds: Sequence[Ground], found: Sequence[Prompts], progress: Progress
) -> Lessons | None:
    """The outlines that a person drew on all scenes; None if none of them fits a window."""
    asked = _asked(plans, grounds, found)
    if not asked:
        return None
    seen_of: list[tuple[Tensor, Tensor]] = []
    covers = []
    for number, seen, outlines in progress.track(asked, "encode outlines", len(asked)):
        bands, valid = plans[number].reader.read(seen.window, plans[number].grid)
        image = plans[number].stretch.apply(bands, valid)
        seen_of += attended(network, image, seen.prompts.shift(-seen.window.col, -seen.window.row))
        covers += [_cover(outline, seen.window, valid, network.window) for outline in outlines]
    cells, tokens = (torch.cat(parts) for parts in zip(*seen_of, strict=True))
    return Lessons(cells, tokens, torch.from_numpy(np.stack(covers)).to(cells.device), _places(asked))


_Asked = tuple[int, PromptedWindow, AnyArray]
"""Number of a plan, a window with the prompts for outlines, and these outlines in the order of the prompts."""


def _asked(plans: Sequence[Plan], grounds: Sequence[Ground], found: Sequence[Prompts]) -> list[_Asked]:
    """The windows that show the outlines that a person drew."""
    asked: list[_Asked] = []
    share = max(1, -(-sum(len(ground.drawn) for ground in grounds) // MAXIMUM))
    for number, (plan, ground) in enumerate(zip(plans, grounds, strict=True)):
        outlines = _fitting(ground.drawn[::share], plan.segment_tiles)
        if len(outlines):
            windows = assign(prompts_for(outlines, found[number]), plan.segment_tiles)
            asked += [(number, seen, outlines[seen.prompts.ids]) for seen in windows]
    return asked


def _places(asked: Sequence[_Asked]) -> Int64Array:
    """(K, 3) number of the grid, row and column of the centre of each outline."""
    places = []
    for number, _, outlines in asked:
        left, top, right, bottom = shapely.bounds(outlines).T
        places.append(np.stack([np.full(len(outlines), number), (top + bottom) // 2, (left + right) // 2], axis=1))
    return np.concatenate(places).astype(np.int64)


@torch.no_grad()
def attended(network: TorchSam, image: UInt8Array, prompts: Prompts) -> list[tuple[Tensor, Tensor]]:
    """Cells and tokens of prompts (K,) with box and point of an image (H, W, 3), in batches; see `Lessons`."""
    encoder, decoder, device = network.sam.prompt_encoder, network.sam.mask_decoder, network.sam.device
    embedding, positions = network.encode([image]), encoder.get_dense_pe()
    own = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
    points = torch.from_numpy(prompts.points[:, :1]).float().to(device)
    boxes = torch.from_numpy(corner_pixels(prompts.boxes)).float().to(device)
    found = []
    for start in range(0, len(prompts), OUTLINES):
        some = slice(start, start + OUTLINES)
        labels = torch.ones(points[some].shape[:2], device=device)
        sparse, dense = encoder(points=(points[some], labels), boxes=boxes[some], masks=None)
        tokens = torch.cat([own.expand(len(sparse), -1, -1), sparse], dim=1)
        hidden, cells = decoder.transformer(embedding + dense, positions.expand(len(sparse), -1, -1, -1), tokens)
        found.append((cells.transpose(1, 2).reshape(dense.shape).half(), hidden[:, : len(own)].clone()))
    return found


def _fitting(outlines: AnyArray, tiles: TileGrid) -> AnyArray:
    """Outlines on the grid that are neither too small nor larger than a tile, clipped to its frame."""
    kept = shapely.intersection(outlines, shapely.box(0, 0, tiles.width, tiles.height))
    kept = kept[shapely.area(kept) >= SMALLEST]
    small = ~oversized(prompts_for(kept, Prompts.build()), tiles) if len(kept) else np.zeros(0, bool)
    return np.asarray(kept[small])


def _cover(outline: shapely.Geometry, window: Window, valid: AnyArray, side: int) -> AnyArray:
    """(side / 4, side / 4) share of each cell of a frame that an outline covers in a window."""
    drawn = rasterize(shapely.STRtree([outline]), np.ones(1, np.uint8), window) * valid
    frame = np.zeros((side, side), np.float32)
    frame[: window.height, : window.width] = drawn
    return by_cell(frame, LOW_RES_STRIDE).astype(np.float16)


def folds_of(places: Int64Array) -> Int64Array | None:
    """(K,) fold of outlines at places (K, 3), assigned by square; None if all are in one.

    The largest squares that give every fold one are used; those with most outlines are assigned first.
    """
    for side in SIDES:
        squares, of, counts = np.unique(
            places // np.asarray([1, side, side]), axis=0, return_inverse=True, return_counts=True
        )
        if len(squares) >= FOLDS:
            break
    fold = np.empty(len(squares), np.int64)
    fold[np.argsort(-counts, kind="stable")] = np.arange(len(squares)) % FOLDS
    return np.asarray(fold[of.ravel()]) if len(squares) > 1 else None


# --- the last layers -------------------------------------------------------------------------------------------------


def fitted(decoder: MaskDecoder, lessons: Lessons, seed: int) -> MaskDecoder:
    """The mean of a mask decoder and of one whose last layers were fitted to outlines."""
    decoder = copy.deepcopy(decoder).requires_grad_(requires_grad=False)
    last = decoder.output_upscaling, decoder.output_hypernetworks_mlps, decoder.iou_prediction_head
    weights = [weight for module in last for weight in module.requires_grad_(requires_grad=True).parameters()]
    initial = [weight.detach().clone() for weight in weights]
    optimiser = torch.optim.Adam(weights, RATE)
    random = np.random.default_rng(seed)
    for step in range(STEPS):
        optimiser.param_groups[0]["lr"] = RATE * (1 + np.cos(np.pi * step / STEPS)) / 2 + 1e-7
        some = lessons.only(random.permutation(len(lessons))[:OUTLINES])
        terms = mask_losses(*answers(decoder, some), some.covers.float())
        distances = [(new - old).square().sum() for new, old in zip(weights, initial, strict=True)]
        loss = torch.stack(list(terms.values())).sum() + PULL * torch.stack(distances).sum()
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch does not type it
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
    with torch.no_grad():
        for weight, old in zip(weights, initial, strict=True):
            weight.copy_(SHARE * weight + (1 - SHARE) * old)
    return decoder.requires_grad_(requires_grad=False)


def answers(decoder: MaskDecoder, lessons: Lessons) -> tuple[Tensor, Tensor]:
    """Logits (K, M, 4 h, 4 w) and predicted IoU (K, M) of all mask tokens, the single one first."""
    fine = decoder.output_upscaling(lessons.cells.float())
    layers = enumerate(decoder.output_hypernetworks_mlps, 1)
    shares = torch.stack([layer(lessons.tokens[:, token]) for token, layer in layers], dim=1)
    return torch.einsum("kmc,kchw->kmhw", shares, fine), decoder.iou_prediction_head(lessons.tokens[:, 0])


@torch.no_grad()
def ious(decoder: MaskDecoder, lessons: Lessons) -> Float64Array:
    """(K,) IoU of each outline with the mask that the network prefers, in the decoder's cells."""
    found = []
    for start in range(0, len(lessons), OUTLINES):
        some = lessons.only(np.arange(start, min(start + OUTLINES, len(lessons))))
        logits, quality = answers(decoder, some)
        each = mask_iou(logits, some.covers.float()[:, None].expand_as(logits))[:, 1:]
        found.append(each.gather(1, quality[:, 1:].argmax(dim=1, keepdim=True))[:, 0].cpu().numpy())
    return np.concatenate(found).astype(np.float64)

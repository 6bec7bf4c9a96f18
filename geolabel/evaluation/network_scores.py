"""Scores of single networks on images that need no tiling: masks, maps, the gate, and label maps of chips."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from PIL import Image

from geolabel.activation import Activation
from geolabel.chips import Chip, Chips
from geolabel.evaluation import baselines
from geolabel.evaluation.calibration import expected_calibration_error, reliability
from geolabel.evaluation.chip_scores import ChipScores
from geolabel.evaluation.examples import Example, landslide_prompts
from geolabel.evaluation.scenes import MOSAIC_WIDTH, shelve
from geolabel.evaluation.steps import OURS, Case, Measurement
from geolabel.labelers import enlarged
from geolabel.labels import BACKGROUND, IGNORE
from geolabel.masks import EDGE
from geolabel.metrics import class_figures, count_pixels
from geolabel.mosaic import blend
from geolabel.parts import Localizer, Segmenter
from geolabel.prompts import Prompts
from geolabel.tiles import TileGrid, Window, window_around
from geolabel.training.bundled_data import stretch
from geolabel.training.localizer_objective import area_under_curve
from geolabel.types import AnyArray, BoolArray, Float32Array, Float64Array, UInt8Array

MARGIN = 1 / 8
"""Minimum margin around a box in a method's crop, as a share of the box's longer side."""

BASELINE_SIDE = 192
"""Maximum side in pixels of the baselines' crops; larger crops are reduced."""

THRESHOLDS = tuple(np.round(np.arange(0.05, 1.0, 0.05), 2).tolist())
"""Thresholds of an activation map; the best one is chosen on chips reserved for that."""

MOSAIC_TILE = 512
"""Side in pixels of the tiles in which a mosaic of chips is predicted."""

Outliner = Callable[[UInt8Array, Float64Array, Float64Array], BoolArray]
"""Image (H, W, 3), box and point to mask (H, W)."""

Paint = Callable[[Chip], UInt8Array]
"""Label map (H, W) of a chip."""


def iou(found: BoolArray, truth: BoolArray) -> float:
    """Intersection over union of two masks (H, W); 0 if both are empty."""
    either = np.count_nonzero(found | truth)
    return np.count_nonzero(found & truth) / either if either else 0.0


# --- masks -----------------------------------------------------------------------------------------------------------


def mask_ious(
    examples: Iterable[Example], methods: dict[str, tuple[Outliner, int]]
) -> tuple[list[Measurement], list[Case]]:
    """Prompt each method with the true box and centroid of each landslide.

    Parameters
    ----------
    methods
        By name: the outliner and its maximum side in pixels. A landslide that does not fit with a margin is reduced;
        its mask is still evaluated in the image's own pixels.

    Returns
    -------
    mean IoU of each method, and the IoU of each landslide under its name
    """
    ious: dict[str, list[float]] = defaultdict(list)
    cases: list[Case] = []
    for example in examples:
        rgb = stretch(example.rgb)
        prompts = landslide_prompts(example.ids, example.minimum)
        for k, number in enumerate(prompts.ids.tolist()):
            case: Case = {"name": f"{example.name}, landslide {number}"}
            for name, (outline, side) in methods.items():
                place, found = _outline(outline, side, rgb, prompts[k : k + 1])
                ious[name].append(_iou_in(found, example.ids == number, place))
                case[name] = round(ious[name][-1], 4)
            cases.append(case)
    means = [Measurement("", name, {"mean IoU": float(np.mean(v)), "landslides": len(v)}) for name, v in ious.items()]
    return means, cases


def _outline(outline: Outliner, side: int, rgb: UInt8Array, one: Prompts) -> tuple[Window, BoolArray]:
    """Mask of one landslide, from a window of the image around it."""
    x0, y0, x1, y1 = one.extents[0].tolist()
    wanted = max(side, round(max(x1 - x0, y1 - y0) * (1 + 2 * MARGIN)))
    place = window_around((y0 + y1) / 2, (x0 + x1) / 2, wanted, *rgb.shape[:2])
    scale = min(1.0, side / max(place.height, place.width))
    size = max(1, round(place.width * scale)), max(1, round(place.height * scale))
    shown = _resize(rgb[place.slices], size, Image.Resampling.BOX)
    moved = one.shift(-place.col, -place.row)
    factors = np.array([size[0] / place.width, size[1] / place.height])
    # the point is a pixel index: its centre scales like pixel edges
    point = (moved.points[0, 0] + 0.5) * factors - 0.5
    mask = outline(shown, moved.boxes[0] * np.tile(factors, 2), point)
    full = _resize(mask.astype(np.uint8), (place.width, place.height), Image.Resampling.NEAREST)
    return place, full > 0


def _resize(image: UInt8Array, size: tuple[int, int], how: Image.Resampling) -> UInt8Array:
    if image.shape[1::-1] == size:
        return image.copy()
    return np.array(Image.fromarray(image).resize(size, how))


def _iou_in(found: BoolArray, truth: BoolArray, place: Window) -> float:
    # of a mask in a window and the truth in the whole image
    inside = truth[place.slices]
    both = np.count_nonzero(found & inside)
    return both / (np.count_nonzero(found) + np.count_nonzero(truth) - both)


@dataclass(frozen=True)
class SegmenterOutliner:
    """A segmenter as an outliner."""

    segmenter: Segmenter

    def __call__(self, rgb: UInt8Array, box: Float64Array, point: Float64Array) -> BoolArray:
        """The mask (H, W) for a box and a point."""
        (masks,) = self.segmenter([rgb], [Prompts.build(box[None], point[None])])
        return np.asarray(masks.scores[0] >= EDGE)


def outliners(segmenter: Segmenter) -> dict[str, tuple[Outliner, int]]:
    """The segmenter and its baselines; GrabCut only if OpenCV is installed."""
    methods: dict[str, tuple[Outliner, int]] = {
        OURS: (SegmenterOutliner(segmenter), segmenter.window),
        "filled box": (lambda rgb, box, _: baselines.box_mask(rgb.shape, box), BASELINE_SIDE),
        "random walker": (baselines.walk, BASELINE_SIDE),
    }
    try:
        import cv2  # noqa: F401
    except ModuleNotFoundError:
        return methods
    return methods | {"GrabCut": (lambda rgb, box, _: baselines.cut(rgb, box), BASELINE_SIDE)}


# --- maps ------------------------------------------------------------------------------------------------------------


def map_hits(
    examples: Iterable[Example], localizer: Localizer, index: int = 0, others: Mapping[str, Localizer] | None = None
) -> tuple[list[Measurement], list[Case]]:
    """Share of images with landslides in which the maximum of a map is on one.

    Baselines are averaged over cells of the map's stride, so that all choose among the same places, the centres of
    cells. If several cells have the maximum, the share of them on a landslide is used.

    Parameters
    ----------
    index
        Class of the localizers.
    others
        Localizers to compare with, by name.
    """
    hits: dict[str, list[float]] = defaultdict(list)
    cases: list[Case] = []
    for example in examples:
        if not example.truth.any():
            continue
        shown = stretch(example.rgb)
        found = {name: ask([shown])[0] for name, ask in {OURS: localizer, **(others or {})}.items()}
        stride = found[OURS].stride
        brightness = example.rgb.mean(axis=2, dtype=np.float32)
        maps: dict[str, tuple[Float32Array, int]] = {
            **{name: (one.values[index], one.stride) for name, one in found.items()},
            "brightest cell": (baselines.cell_means(brightness, stride), stride),
            "lowest excess green": (-baselines.cell_means(baselines.excess_green(example.rgb), stride), stride),
        }
        case: Case = {"name": example.name}
        for name, (values, side) in maps.items():
            hit = float(_at_centres(example.truth, side)[values == values.max()].mean())
            hits[name].append(hit)
            case[name] = round(hit, 4)
        hits["random pixel"].append(float(example.truth.mean()))
        cases.append(case)
    means = [Measurement("", name, {"hits": float(np.mean(v)), "images": len(v)}) for name, v in hits.items()]
    return means, cases


def _at_centres(truth: BoolArray, stride: int) -> BoolArray:
    """Truth (H, W) at the centres of cells; centres outside the image are moved to its frame."""
    rows, cols = (np.minimum(np.arange(-(-n // stride)) * stride + stride // 2, n - 1) for n in truth.shape)
    return np.asarray(truth[rows[:, None], cols])


# --- the gate --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GateScores:
    """Scores of N images by method, high where a landslide is likely, and which images show one."""

    scores: dict[str, Float64Array]
    truth: BoolArray

    def measurements(self) -> list[Measurement]:
        """Area under the ROC curve of each method; for the gate also its calibration error."""
        counts = {"images": len(self.truth), "with landslides": int(self.truth.sum())}
        rows = [
            Measurement("", name, {"ROC AUC": area_under_curve(values, self.truth), **counts})
            for name, values in self.scores.items()
        ]
        error = expected_calibration_error(reliability(self.scores[OURS], self.truth))
        rows[0] = replace(rows[0], figures=rows[0].figures | {"calibration error": error})
        return rows


def gate_scores(
    examples: Iterable[Example],
    ask: Callable[[Example], float],
    others: Mapping[str, Callable[[Example], float]] | None = None,
) -> GateScores:
    """Score images at their own size by the gate and by its baselines.

    The baselines are artefacts of a data set: its landslide chips are small, bare, and barest in the middle.

    Parameters
    ----------
    ask
        Probability that an image shows a landslide.
    others
        The same of other localizers, by name.
    """
    scores: dict[str, list[float]] = defaultdict(list)
    truth = []
    for example in examples:
        green = baselines.excess_green(example.rgb)
        for name, one in {OURS: ask, **(others or {})}.items():
            scores[name].append(one(example))
        scores["small image"].append(-min(example.rgb.shape[:2]))
        scores["surround minus centre in excess green"].append(baselines.surround_minus_centre(green))
        scores["low excess green"].append(-float(green.mean()))
        truth.append(bool(example.truth.any()))
    arrays: dict[str, AnyArray] = {name: np.asarray(values, float) for name, values in scores.items()}
    return GateScores(arrays, np.asarray(truth, bool))


# --- maps and label maps of chips ------------------------------------------------------------------------------------


def _pairs(chips: Chips) -> Iterator[tuple[Chip, int, BoolArray, BoolArray]]:
    """Yield each chip with each class that it shows and its mask marks: chip, class, mask, known pixels."""
    for k in range(len(chips)):
        chip = chips.chip(k)
        if chip.mask is not None:
            for c in np.flatnonzero(chip.labels):
                truth = chip.mask == c + 1
                if truth.any():
                    yield chip, int(c), truth, chip.mask != IGNORE


@dataclass(frozen=True)
class MapScores:
    """Agreement of maps with the masks of P pairs of a chip and a class that it shows; plain values."""

    names: list[str]
    """(P,)"""
    hits: list[float]
    """(P,) whether the maximum is on the mask; the share of maxima if there are several."""
    ious: list[list[float]]
    """(P, T) IoU at each of `THRESHOLDS`."""
    areas: list[float]
    """(P,) share of the chip under the mask: the hit rate of a random place."""

    @classmethod
    def of(cls, localizer: Localizer, chips: Chips) -> Self:
        """Compare the maps of a localizer with masks."""
        names, hits, ious, areas = [], [], [], []
        seen: tuple[str, Activation | None] = ("", None)
        for chip, c, truth, judged in _pairs(chips):
            if seen[0] != chip.name:
                seen = chip.name, localizer([chip.rgb])[0]
            assert seen[1] is not None
            values = _at_size(seen[1], c, truth.shape)
            names.append(f"{chip.name} {chips.classes[c]}")
            hits.append(float(truth[values == values.max()].mean()) if values.max() > 0 else 0.0)
            ious.append([iou((values > t) & judged, truth) for t in THRESHOLDS])
            areas.append(float(truth.mean()))
        return cls(names, hits, ious, areas)

    def best_threshold(self) -> int:
        """Index of the threshold with the highest mean IoU."""
        return int(np.mean(self.ious, axis=0).argmax())

    def at(self, threshold: int) -> Float64Array:
        """(P,) IoU at one of the thresholds."""
        return np.asarray(self.ious)[:, threshold]


def _at_size(activation: Activation, c: int, size: tuple[int, ...]) -> Any:
    return activation.values[c] if activation.stride == 1 else enlarged(activation, *size)[c]


def image_scores(localizer: Localizer, chips: Chips) -> dict[str, float]:
    """Accuracy and mean ROC AUC over the classes, for whether chips show them.

    A single-view localizer suffices: other scales and mirrored views change maps, not probabilities.
    """
    probabilities = np.stack([localizer([chips.rgb(k)])[0].probability for k in range(len(chips))])
    areas = [area_under_curve(p.astype(np.float64), t) for p, t in zip(probabilities.T, chips.labels.T, strict=True)]
    defined = [area for area in areas if np.isfinite(area)]
    accuracy = float(((probabilities > 0.5) == chips.labels).mean())
    return {"accuracy": accuracy, "AUC": float(np.mean(defined)) if defined else np.nan}


def label_scores(paint: Paint, chips: Chips) -> dict[str, Any]:
    """Figures of label maps over all pixels of all chips, and the IoU of each chip that shows a class.

    Pixels that a label map ignores are skipped.
    """
    classes = (BACKGROUND, *chips.classes)
    names, counts, shows, each = [], [], [], []
    for k in range(len(chips)):
        chip = chips.chip(k)
        if chip.mask is None:
            continue
        found = paint(chip)
        names.append(chip.name)
        counts.append(count_pixels(found, chip.mask, len(classes)))
        shows.append(bool(chip.labels.any()))
        if shows[-1]:
            judged = (chip.mask != IGNORE) & (found != IGNORE)
            each.append(iou((found > 0) & judged, (chip.mask > 0) & judged))
    scores = ChipScores(np.stack(counts), classes, np.array(shows), tuple(names))
    return {
        "all": scores.figures(),
        "shown": scores.of_shown().figures() if any(shows) else {},
        "ious": each,
    }


# --- mosaics ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ChipMosaic:
    """Chips side by side as one scene, in which a landslide may be anywhere."""

    rgb: UInt8Array
    """(H, W, 3) 0 between chips."""
    truth: UInt8Array
    """(H, W) values of masks; 255 between chips."""


def mosaic_of(chips: Chips, *, width: int = MOSAIC_WIDTH, seed: int = 0) -> ChipMosaic:
    """Arrange chips with masks in rows, in an order shuffled with a seed; chips of similar height share a row."""
    found = [chip for chip in (chips.chip(k) for k in range(len(chips))) if chip.mask is not None]
    order = np.random.default_rng(seed).permutation(len(found))
    shuffled = [found[k] for k in order]
    shuffled, places, size = shelve(shuffled, [chip.rgb.shape for chip in shuffled], width)
    rgb, truth = np.zeros((*size, 3), np.uint8), np.full(size, IGNORE, np.uint8)
    for chip, place in zip(shuffled, places, strict=True):
        assert chip.mask is not None
        rgb[place.slices], truth[place.slices] = chip.rgb, chip.mask
    return ChipMosaic(rgb, truth)


def mosaic_scores(
    score: Callable[[UInt8Array], UInt8Array], mosaic: ChipMosaic, classes: Sequence[str]
) -> dict[str, float]:
    """Figures of a mosaic that is predicted tile by tile and blended like a scene.

    Parameters
    ----------
    score
        Grey values (h, w) of a tile (h, w, 3): the probability of the first class, times 255.
    classes
        Names of the background and the first class.
    """
    height, width = mosaic.truth.shape
    tiles = TileGrid(height, width, MOSAIC_TILE, MOSAIC_TILE // 4)
    counts = np.zeros((2, 2), np.int64)
    kept: dict[int, UInt8Array] = {}
    for strip in range(0, height, MOSAIC_TILE):
        window = Window(strip, 0, min(MOSAIC_TILE, height - strip), width)
        wanted = tiles.covering(window)
        kept = {k: kept[k] if k in kept else score(mosaic.rgb[tiles[k].slices]) for k in wanted}
        grey = blend(window, [(tiles[k], values) for k, values in kept.items()])
        truth = mosaic.truth[window.slices]
        truth = np.where(truth == IGNORE, truth, truth == 1).astype(np.uint8)
        counts += count_pixels((grey > 127).astype(np.uint8), truth, 2)
    return class_figures(counts, classes[:2])

"""Maps and label maps of chips beside their masks: what the measurements of weak supervision share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from geolabel.activation import Activation
from geolabel.chips import Chip, Chips
from geolabel.evaluation.chip_scores import ChipScores
from geolabel.labels import BACKGROUND, IGNORE
from geolabel.metrics import class_figures, count_pixels
from geolabel.parts import Localizer
from geolabel.tiles import TileGrid, Window
from geolabel.training.localizer_objective import area_under_curve
from geolabel.types import BoolArray, Float64Array, UInt8Array

THRESHOLDS = tuple(np.round(np.arange(0.05, 1.0, 0.05), 2).tolist())
"""Activations that a map may be cut at; which one is chosen on chips that are kept for it."""

MOSAIC_WIDTH, MOSAIC_TILE = 4096, 512
"""Pixels: least width of a mosaic of chips, and the side of the tiles that it is seen in."""

Paint = Callable[[Chip], UInt8Array]
"""Label map (H, W) of a chip."""


def pairs(chips: Chips) -> Iterator[tuple[Chip, int, BoolArray, BoolArray]]:
    """Yield every chip with each class that it shows and its mask marks: chip, class, its mask, what is judged."""
    for k in range(len(chips)):
        chip = chips.chip(k)
        if chip.mask is not None:
            for c in np.flatnonzero(chip.labels):
                truth = chip.mask == c + 1
                if truth.any():
                    yield chip, int(c), truth, chip.mask != IGNORE


@dataclass(frozen=True)
class MapScores:
    """How maps lie on the masks of P pairs of a chip and a class that it shows; all plain values."""

    names: list[str]
    """(P,)"""
    hits: list[float]
    """(P,) whether the highest place lies on the mask; its share where several places are highest."""
    ious: list[list[float]]
    """(P, T) at each of `THRESHOLDS`."""
    areas: list[float]
    """(P,) share of the chip that the mask covers: the hits of a place drawn at random."""

    @classmethod
    def of(cls, localizer: Localizer, chips: Chips) -> Self:
        """Judge the maps of a localizer."""
        names, hits, ious, areas = [], [], [], []
        seen: tuple[str, Activation | None] = ("", None)
        for chip, c, truth, judged in pairs(chips):
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
        """Index of the threshold of the highest mean IoU."""
        return int(np.mean(self.ious, axis=0).argmax())

    def at(self, threshold: int) -> Float64Array:
        """(P,) IoU at one of the thresholds."""
        return np.asarray(self.ious)[:, threshold]


def _at_size(activation: Activation, c: int, size: tuple[int, ...]) -> Any:
    if activation.stride == 1:
        return activation.values[c]
    from geolabel.labelers import enlarged

    return enlarged(activation, *size)[c]


def iou(found: BoolArray, truth: BoolArray) -> float:
    """Intersection over union of two masks (H, W); 0 where neither is anywhere."""
    either = np.count_nonzero(found | truth)
    return np.count_nonzero(found & truth) / either if either else 0.0


def image_scores(localizer: Localizer, chips: Chips) -> dict[str, float]:
    """Accuracy and mean ROC AUC, over the classes, of whether chips show them.

    Views of other scales and mirrored ones change maps and not probabilities: a localizer of one view is enough.
    """
    said = np.stack([localizer([chips.rgb(k)])[0].probability for k in range(len(chips))])
    areas = [area_under_curve(p.astype(np.float64), t) for p, t in zip(said.T, chips.labels.T, strict=True)]
    told = [area for area in areas if np.isfinite(area)]
    return {"accuracy": float(((said > 0.5) == chips.labels).mean()), "AUC": float(np.mean(told)) if told else np.nan}


def label_scores(paint: Paint, chips: Chips) -> dict[str, Any]:
    """Figures of label maps over all pixels of all chips, and the IoU of every chip that shows something.

    Pixels that a label map ignores are not judged.
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
class Mosaic:
    """Chips side by side, as one scene in which a landslide may lie anywhere."""

    rgb: UInt8Array
    """(H, W, 3) 0 where no chip is."""
    truth: UInt8Array
    """(H, W) as masks have it; 255 where no chip is."""


def mosaic_of(chips: Chips, *, width: int = MOSAIC_WIDTH, seed: int = 0) -> Mosaic:
    """Lay chips that have masks in rows, in an order drawn from a seed; chips of like height share a row."""
    found = [chip for chip in (chips.chip(k) for k in range(len(chips))) if chip.mask is not None]
    order = np.random.default_rng(seed).permutation(len(found))
    shuffled = sorted((found[k] for k in order), key=lambda chip: -(chip.rgb.shape[0] // 64))
    width = max(width, *(chip.rgb.shape[1] for chip in shuffled))
    places, row, col, tall = [], 0, 0, 0
    for chip in shuffled:
        height, wide = chip.rgb.shape[:2]
        if col + wide > width:
            row, col, tall = row + tall, 0, 0
        places.append(Window(row, col, height, wide))
        col, tall = col + wide, max(tall, height)
    rgb = np.zeros((row + tall, width, 3), np.uint8)
    truth = np.full((row + tall, width), IGNORE, np.uint8)
    for chip, place in zip(shuffled, places, strict=True):
        assert chip.mask is not None
        rgb[place.slices], truth[place.slices] = chip.rgb, chip.mask
    return Mosaic(rgb, truth)


def mosaic_scores(
    score: Callable[[UInt8Array], UInt8Array], mosaic: Mosaic, classes: Sequence[str]
) -> dict[str, float]:
    """Figures of what is painted tile by tile, blended as scenes are.

    Parameters
    ----------
    score
        Grey values (h, w) of a tile (h, w, 3): the probability of the first class, of 255.
    classes
        Names of the background and the first class.
    """
    from geolabel.mosaic import blend

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


# --- floors ----------------------------------------------------------------------------------------------------------


def ellipse(shape: Iterable[int]) -> BoolArray:
    """(H, W) an ellipse of half an image's size in its middle."""
    height, width = shape
    rows, cols = np.ogrid[:height, :width]
    y, x = (rows - (height - 1) / 2) / (height / 4), (cols - (width - 1) / 2) / (width / 4)
    return np.asarray(y**2 + x**2 <= 1)

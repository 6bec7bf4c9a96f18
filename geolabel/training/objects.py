"""Objects to outline in a sample, and the prompts that ask for them: exact, sloppy, or as a localizer would."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from scipy import ndimage

from geolabel.training.samples import Sample
from geolabel.types import BoolArray, Float64Array

LEAST = 24
"""Pixels of the smallest object that is asked for."""

CELL = 8
"""Pixels per cell of the activation that is imitated."""


EIGHT = np.ones((3, 3), int)
"""Neighbours that connect, as contour tracing connects them."""


@dataclass(frozen=True)
class Prompt:
    """One object and the question it is the answer to."""

    mask: BoolArray
    """(S, S)"""
    box: Float64Array
    """(4,) x0, y0, x1, y1: the first and the last pixels, as SAM has boxes."""
    point: Float64Array
    """(2,) x, y of a pixel."""


def choose_objects(sample: Sample, count: int, slides: float, rng: Generator) -> list[tuple[BoolArray, bool]]:
    """Up to `count` masks (S, S) of a sample, each with whether it is a landslide; about a share `slides` of them are.

    Landslides are connected components: what touches is one object, as extraction sees it. Other objects are regions of
    land cover that fill no more than half of the sample.
    """
    components, _ = ndimage.label(sample.slides, EIGHT)
    own = _numbers(components, least=LEAST, most=components.size, rng=rng)
    other = _numbers(sample.regions, least=4 * LEAST, most=components.size // 2, rng=rng)
    other = [n for n in other if not sample.slides[sample.regions == n].all()]
    wanted = rng.binomial(count, slides)
    wanted = max(wanted, count - len(other))
    chosen = [(components == n, True) for n in own[:wanted]]
    return chosen + [(sample.regions == n, False) for n in other[: count - len(chosen)]]


def _numbers(labels: np.ndarray, *, least: int, most: int, rng: Generator) -> list[int]:
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    found = np.flatnonzero((sizes >= least) & (sizes <= most))
    return [int(n) for n in rng.permutation(found)]


def exact_prompt(mask: BoolArray) -> Prompt:
    """Box and centroid of an object (H, W); that of a crescent lies beside it, and the answer is still the crescent."""
    rows, cols = np.nonzero(mask)
    return Prompt(mask, _box(mask), np.array([cols.mean(), rows.mean()]))


def sloppy_prompt(mask: BoolArray, rng: Generator) -> Prompt:
    """A person's prompt: a box whose edges miss by about a tenth of its size, a click anywhere inside the object."""
    box = _box(mask)
    sides = np.tile(box[2:] - box[:2] + 1, 2)
    box = box + rng.normal(0, 0.06, 4) * sides + rng.normal(0, 1.5, 4)
    rows, cols = np.nonzero(mask)
    at = rng.integers(len(rows))
    return Prompt(mask, _ordered(box, mask.shape), np.array([cols[at], rows[at]], float))


def localizer_prompt(mask: BoolArray, rng: Generator, *, noise: float = 0.25) -> Prompt:
    """The prompt of a coarse and uneven activation: box and centroid of its component with most of the object."""
    size = len(mask)
    coverage = mask.reshape(size // CELL, CELL, size // CELL, CELL).mean(axis=(1, 3))
    nodes = rng.standard_normal((7, 7))
    uneven = ndimage.zoom(nodes, len(coverage) / 7, order=1, grid_mode=True, mode="nearest")
    level = ndimage.gaussian_filter(coverage, 0.6) + noise * uneven
    near = ndimage.binary_dilation(coverage > 0)
    labels, count = ndimage.label((level > 0.4) & near, EIGHT)
    if count == 0:
        return sloppy_prompt(mask, rng)
    held = np.bincount(labels.ravel(), weights=coverage.ravel(), minlength=count + 1)[1:]
    part = labels == 1 + int(held.argmax())
    rows, cols = np.nonzero(part)
    first_last = _box(part) * CELL + [0, 0, CELL - 1, CELL - 1]
    centroid = np.array([cols.mean(), rows.mean()]) * CELL + (CELL - 1) / 2
    return Prompt(mask, first_last, centroid)


def _box(mask: BoolArray) -> Float64Array:
    rows, cols = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return np.array([cols[0], rows[0], cols[-1], rows[-1]], float)


def _ordered(box: Float64Array, shape: tuple[int, ...]) -> Float64Array:
    box = np.clip(box, 0, np.tile(shape[::-1], 2) - 1)
    return np.concatenate([np.minimum(box[:2], box[2:]), np.maximum(box[:2], box[2:])])

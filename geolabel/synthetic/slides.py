"""Landslides: they start on steep ground, run downslope and come to rest in a lobe."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from geolabel.synthetic.fields import smooth_noise
from geolabel.synthetic.terrain import Terrain
from geolabel.types import BoolArray, Float32Array, Float64Array

SMALLEST, LARGEST = 14.0, 420.0
"""Length of a landslide from crown to toe, pixels."""

MOST_TRIES = 400
"""Landslides that are let loose per 2**20 pixels before a scene is taken to hold no more."""


@dataclass(frozen=True)
class Slide:
    """One landslide in a window of the scene."""

    window: tuple[slice, slice]
    mask: BoolArray
    """(h, w)"""
    along: Float32Array
    """(h, w) 0 at the crown, 1 at the toe."""
    across: Float32Array
    """(h, w) signed distance from the axis, in half widths."""
    depth: Float32Array
    """(h, w) pixels to the edge, negative outside."""
    tone: float
    """0..1, where in the scene's palette of soil its material lies."""
    freshness: float
    """0..1, how little has grown over it."""


def make_slides(terrain: Terrain, share: float, rng: np.random.Generator) -> list[Slide]:
    """Let landslides come down until they cover about `share` of the scene."""
    height, width = terrain.dem.shape
    steep = np.argwhere(terrain.slope[::4, ::4] > max(0.25, float(np.quantile(terrain.slope[::8, ::8], 0.6)))) * 4
    slides: list[Slide] = []
    if not len(steep):
        return slides
    left, largest = share * height * width, min(LARGEST, 0.45 * max(height, width))
    for _ in range(max(MOST_TRIES, MOST_TRIES * height * width >> 20)):
        if left <= 0:
            break
        length = float(np.exp(rng.uniform(np.log(SMALLEST), np.log(max(largest, SMALLEST + 1)))))
        start = steep[rng.integers(len(steep))] + rng.uniform(0, 4, 2)
        slide = _release(terrain, start, length, rng)
        if slide is not None:
            slides.append(slide)
            left -= int(slide.mask.sum())
    return slides


def _release(terrain: Terrain, start: Float64Array, length: float, rng: np.random.Generator) -> Slide | None:
    axis = _trace(terrain, start, length, rng)
    if len(axis) < 3:
        return None
    run = len(axis) / max(length, 1)
    t = np.linspace(0, 1, len(axis))
    slim = rng.uniform(0.1, 0.34)
    # a scarp that opens quickly, a track that narrows, a lobe at the foot that widens again
    scarp = np.sqrt(np.clip(t / 0.12, 0, 1)) * np.exp(-((t / rng.uniform(0.5, 1.5)) ** 2))
    lobe = rng.uniform(0.2, 1.0) * np.exp(-(((t - rng.uniform(0.75, 0.92)) / 0.18) ** 2))
    half = np.maximum(
        length * run * slim * np.maximum(0.25 + 0.75 * scarp, lobe) * np.sqrt(np.clip((1.02 - t) / 0.1, 0, 1)), 1.2
    )
    return _fill(terrain, axis, half, rng)


def _trace(terrain: Terrain, start: Float64Array, length: float, rng: np.random.Generator) -> Float64Array:
    """Points one to four pixels apart down the slope, with some momentum."""
    height, width = terrain.dem.shape
    step = max(1.0, length / 80)
    point, direction, points = start.astype(float), np.zeros(2), []
    for _ in range(int(length / step)):
        row, col = int(point[0]), int(point[1])
        if not (0 <= row < height and 0 <= col < width):
            break
        points.append(point.copy())
        fall = np.asarray([terrain.down[0][row, col], terrain.down[1][row, col]])
        steepness = np.hypot(*fall)
        if steepness < 0.04 and len(points) > 4:
            break  # it comes to rest
        fall = fall / max(steepness, 1e-6)
        direction = 0.75 * direction + 0.25 * fall + rng.normal(0, 0.04, 2) if len(points) > 1 else fall
        direction /= max(np.hypot(*direction), 1e-6)
        point = point + step * direction
    return np.asarray(points).reshape(-1, 2)


def _fill(terrain: Terrain, axis: Float64Array, half: Float64Array, rng: np.random.Generator) -> Slide | None:
    height, width = terrain.dem.shape
    reach = float(half.max()) * 1.6 + 4
    top, left = (max(0, int(v)) for v in axis.min(axis=0) - reach)
    bottom, right = (int(v) + 2 for v in axis.max(axis=0) + reach)
    window = (slice(top, min(bottom, height)), slice(left, min(right, width)))
    shape = (window[0].stop - top, window[1].stop - left)
    if min(shape) < 4:
        return None
    # nearest point of the axis, by way of an image of the axis
    image = np.full(shape, True)
    local = np.clip(np.rint(axis - [top, left]).astype(int), 0, np.asarray(shape) - 1)
    image[local[:, 0], local[:, 1]] = False
    number = np.zeros(shape, int)
    number[local[:, 0], local[:, 1]] = np.arange(len(axis))
    distance, nearest = ndimage.distance_transform_edt(image, return_indices=True)
    order = number[nearest[0], nearest[1]]
    step = np.gradient(axis, axis=0)
    row, col = np.mgrid[: shape[0], : shape[1]]
    side = np.sign((row - nearest[0]) * step[order, 1] - (col - nearest[1]) * step[order, 0])
    size = float(half.mean())
    ragged = 0.35 * smooth_noise(shape, max(4 * size, 12), rng) + 0.2 * smooth_noise(shape, max(size, 5), rng)
    radius = ndimage.gaussian_filter1d(half, 1.5)[order] * (1 + np.clip(ragged, -0.7, 0.8))
    depth = (radius - distance).astype(np.float32)
    mask = depth > 0
    if size > 6:  # islands of standing trees
        island = smooth_noise(shape, max(1.2 * size, 10), rng) > rng.uniform(1.7, 2.6)
        mask &= ~(island & (depth > 1))
    labels, count = ndimage.label(mask)
    if count == 0:
        return None
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    mask = labels == sizes.argmax()
    if mask.sum() < 30:
        return None
    across = (side * distance / np.maximum(radius, 1)).astype(np.float32)
    along = (order / (len(axis) - 1)).astype(np.float32)
    return Slide(window, mask, along, across, depth, tone=float(rng.random()), freshness=float(rng.uniform(0.35, 1)))

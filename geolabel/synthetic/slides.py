"""Landslides: they start on steep ground, run downslope and come to rest in a lobe."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from geolabel.synthetic.terrain import Terrain, smooth_noise
from geolabel.types import BoolArray, Float32Array, Float64Array, Int64Array

SMALLEST, LARGEST = 30.0, 560.0
"""Length of a landslide from crown to toe, pixels."""

LEAST_AREA = 120
"""Minimum area of a landslide in pixels. Smaller ones look like gaps between trees."""

SISTERS = 0.35
"""Probability that a landslide starts beside the previous one, so that some run together."""


ROADSIDE = 0.3
"""Probability that a landslide starts near a road, whose cut has steepened the slope."""

NEAR = 48
"""Pixels to the nearest road that count as near."""


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
    """0..1, the mixing ratio of the two soils of the scene's palette."""
    freshness: float
    """0..1, how free of vegetation it is."""

    @property
    def size(self) -> float:
        """Largest distance from the edge, pixels."""
        return max(2.0, float(self.depth[self.mask].max()))

    def lift(self, gsd: float) -> Float32Array:
        """(h, w) change of height in metres: negative under the scarp, positive in the deposit; 0 outside."""
        bowl = np.clip(self.depth / self.size, 0, 1) ** 0.5
        return np.asarray(bowl * (1.1 * self.along - 0.6) * self.size * gsd * 0.35, np.float32)


def make_slides(
    terrain: Terrain,
    share: float,
    rng: np.random.Generator,
    *,
    clear: BoolArray | None = None,
    roads: BoolArray | None = None,
) -> list[Slide]:
    """Draw landslides until they cover about `share` of the scene.

    Parameters
    ----------
    clear : (H, W)
        Where no landslide is visible: rivers carry it off, people clear their roads.
    roads : (H, W)
        Roads, near which more landslides start.
    """
    height, width = terrain.dem.shape
    clear = np.zeros((height, width), np.bool_) if clear is None else clear
    steep = np.argwhere(terrain.slope[::4, ::4] > max(0.3, float(np.quantile(terrain.slope[::8, ::8], 0.5)))) * 4
    slides: list[Slide] = []
    if not len(steep):
        return slides
    roadside = steep[_near(roads, steep)] if roads is not None else steep[:0]
    missing, largest = share * height * width, min(LARGEST, 0.45 * max(height, width))
    beside: Float64Array | None = None
    for _ in range(40 + height * width // 2000):
        if missing <= 0:
            break
        length = float(np.exp(rng.uniform(np.log(SMALLEST), np.log(max(largest, SMALLEST + 1)))))
        places = roadside if len(roadside) and rng.random() < ROADSIDE else steep
        start = places[rng.integers(len(places))] + rng.uniform(0, 4, 2)
        if beside is not None and rng.random() < SISTERS:
            start = beside + rng.normal(0, 0.25 * length + 6, 2)
        slide = _release(terrain, clear, start, length, rng)
        if slide is not None and slide.mask.sum() < 1.5 * missing + LEAST_AREA:
            slides.append(slide)
            missing -= int(slide.mask.sum())
            beside = start
    return slides


def _near(roads: BoolArray, places: Int64Array) -> BoolArray:
    """(N,) whether each place (N, 2) has a road nearby, in cells of 4 px."""
    cells = np.logical_or.reduceat(
        np.logical_or.reduceat(roads, range(0, roads.shape[0], 4), 0), range(0, roads.shape[1], 4), 1
    )
    if not cells.any():
        return np.zeros(len(places), np.bool_)
    row, col = (places // 4).T
    return np.asarray(ndimage.distance_transform_edt(~cells)[row, col] * 4 < NEAR)


def _release(
    terrain: Terrain, clear: BoolArray, start: Float64Array, length: float, rng: np.random.Generator
) -> Slide | None:
    axis = _trace(terrain, start, length, rng)
    if len(axis) < 4:
        return None
    t = np.linspace(0, 1, len(axis))
    run = float(np.hypot(*np.diff(axis, axis=0).T).sum())
    slim = np.exp(rng.uniform(np.log(0.06), np.log(0.45)))  # half the width over the length
    # a scarp that opens quickly, a track that narrows, a lobe at the foot that widens again
    scarp = np.sqrt(np.clip(t / 0.12, 0, 1)) * np.exp(-((t / rng.uniform(0.5, 1.5)) ** 2))
    lobe = rng.uniform(0.2, 1.1) * np.exp(-(((t - rng.uniform(0.75, 0.92)) / 0.18) ** 2))
    ends = np.sqrt(np.clip(t / 0.05, 0.1, 1) * np.clip((1.02 - t) / 0.1, 0, 1))
    profile = np.maximum(0.25 + 0.75 * scarp, lobe) * ends
    return _fill(clear, axis, np.maximum(run * slim * profile, 1.2), rng)


def _trace(terrain: Terrain, start: Float64Array, length: float, rng: np.random.Generator) -> Float64Array:
    """Points one to five pixels apart down the slope, with some momentum."""
    height, width = terrain.dem.shape
    step = max(1.0, length / 80)
    point, direction, points = start.astype(float), np.zeros(2), []
    rest = rng.uniform(0.08, 0.2)  # the slope, rise over run, on which it comes to rest
    for _ in range(int(length / step)):
        row, col = np.floor(point).astype(int)
        if not (0 <= row < height and 0 <= col < width):
            break
        points.append(point.copy())
        fall = np.asarray([terrain.down[0][row, col], terrain.down[1][row, col]], np.float64)
        steepness = float(np.hypot(*fall))
        if steepness < rest and len(points) > 4:
            break
        fall = fall / max(steepness, 1e-6)
        direction = 0.75 * direction + 0.25 * fall + rng.normal(0, 0.04, 2) if len(points) > 1 else fall
        direction /= max(float(np.hypot(*direction)), 1e-6)
        point = point + step * direction
    return np.asarray(points).reshape(-1, 2)


def _fill(clear: BoolArray, axis: Float64Array, half: Float64Array, rng: np.random.Generator) -> Slide | None:
    """Widen an axis to a ragged outline with islands of standing trees."""
    height, width = clear.shape
    reach = float(half.max()) * 1.6 + 4
    top, left = (max(0, int(v)) for v in axis.min(axis=0) - reach)
    bottom, right = (int(v) + 2 for v in axis.max(axis=0) + reach)
    window = (slice(top, min(bottom, height)), slice(left, min(right, width)))
    shape = (window[0].stop - top, window[1].stop - left)
    if min(shape) < 4:
        return None
    order, distance, side = _along_axis(shape, axis - [top, left])
    size = float(half.mean())
    ragged = 0.3 * smooth_noise(shape, max(4 * size, 12), rng) + 0.2 * smooth_noise(shape, max(size, 5), rng)
    radius = ndimage.gaussian_filter1d(half, 1.5)[order] * (1 + np.clip(ragged, -0.7, 0.8))
    depth = (radius - distance).astype(np.float32)
    mask = (depth > 0) & ~clear[window]
    if size > 6:
        island = smooth_noise(shape, max(1.2 * size, 10), rng) > rng.uniform(1.7, 2.6)
        mask &= ~(island & (depth > 1))
    labels, count = ndimage.label(mask)
    if count == 0:
        return None
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    mask = labels == sizes.argmax()
    if mask.sum() < LEAST_AREA:
        return None
    across = (side * distance / np.maximum(radius, 1)).astype(np.float32)
    along = (order / (len(axis) - 1)).astype(np.float32)
    return Slide(window, mask, along, across, depth, float(rng.random()), float(1 - 0.45 * rng.random() ** 2))


def _along_axis(shape: tuple[int, int], axis: Float64Array) -> tuple[np.ndarray, Float64Array, Float64Array]:
    """For every pixel the number of the nearest point of an axis, the distance to it, and its side of the axis."""
    image = np.full(shape, True)
    number = np.zeros(shape, np.int64)
    local = np.clip(axis.astype(int), 0, np.asarray(shape) - 1)
    image[local[:, 0], local[:, 1]] = False
    number[local[:, 0], local[:, 1]] = np.arange(len(axis))
    distance, nearest = ndimage.distance_transform_edt(image, return_indices=True)
    order = number[nearest[0], nearest[1]]
    step = np.gradient(axis, axis=0)
    row, col = np.ogrid[: shape[0], : shape[1]]
    side = np.sign((row - nearest[0]) * step[order, 1] - (col - nearest[1]) * step[order, 0])
    return order, distance, side

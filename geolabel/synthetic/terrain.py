"""Relief: valleys with flat floors, spurs and gullies on their sides, and the way down."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from geolabel.synthetic.fields import Shape, fractal_noise, frame, refine, wander
from geolabel.types import Float32Array

LARGEST_FORM = 1400
"""Pixels. Landforms grow with a scene up to this size; a larger scene shows more of them."""


@dataclass(frozen=True)
class Terrain:
    """A relief in metres and what follows from it."""

    dem: Float32Array
    """(H, W) metres."""
    slope: Float32Array
    """(H, W) rise over run of the relief without its roughness."""
    down: tuple[Float32Array, Float32Array]
    """Fall in rows and in columns, metres per metre."""
    valley: Float32Array
    """(H, W) pixels from the axis of the nearest valley; negative on one side."""
    flat: float
    """Half the width of the valleys' floors, pixels."""


def make_terrain(shape: Shape, gsd: float, rng: np.random.Generator) -> Terrain:
    """Draw a relief: parallel winding valleys, gullies that run down their sides, fractal hills over all.

    Forms are the same in pixels at every gsd but for their height: the slopes of a landscape hardly depend on scale.
    """
    form = min(max(shape), LARGEST_FORM)
    period, flat = form * rng.uniform(1.0, 1.7), form * rng.uniform(0.01, 0.1)
    _, along, across = frame(shape, (shape[0] / 2, shape[1] / 2), rng.uniform(0, np.pi), sum(shape))
    wave = form * rng.uniform(0.25, 0.5)
    across += form * rng.uniform(-0.45, 0.45) + wave * rng.uniform(0.15, 0.4) * wander(along, wave, rng)
    valley = np.mod(across + period / 2, period, dtype=np.float32) - np.float32(period / 2)
    above = np.maximum(np.abs(valley) - np.float32(flat), 0)
    top = np.float32(period / 2 - flat)
    foot = np.float32(0.06 * form)
    above *= above / (above + foot)  # the sides rise from the floor without an edge
    top *= top / (top + foot)
    side = np.sin(above * (np.float32(np.pi / 2) / top))  # and are level on the ridge, where two valleys meet
    rise = np.minimum(above * np.float32(6 / period), 1)
    hills = fractal_noise(shape, form / 3, form / 24, rng, persistence=0.42)
    gullies = _gullies(along, across, form, rng)
    relief = 0.3 * side + rise * (rng.uniform(0.025, 0.06) * hills + rng.uniform(0.03, 0.06) * gullies)
    row, col = np.gradient(relief)
    steepness = np.hypot(row, col)
    # the steeper half of the country stands at 24 to 38 degrees
    scale = np.float32(rng.uniform(0.45, 0.78) / np.quantile(steepness[::8, ::8], 0.75))
    slope = steepness * scale
    rough = fractal_noise(shape, form / 24, 2, rng, persistence=0.4)
    dem = relief * (scale * np.float32(gsd)) + rough * np.clip(slope, 0.03, 1) * np.float32(form * gsd * 0.0015)
    dem += along * np.float32(0.01 * gsd)
    dem -= dem.min() - np.float32(rng.uniform(100, 2500))
    down = (ndimage.gaussian_filter(row, 2) * -scale, ndimage.gaussian_filter(col, 2) * -scale)
    return Terrain(dem, slope, down, valley, float(flat))


def _gullies(along: Float32Array, across: Float32Array, form: float, rng: np.random.Generator) -> Float32Array:
    """Rounded spurs with sharp gullies between them, three times as long down the sides as they are wide."""
    width = form * rng.uniform(0.06, 0.14)
    lattice = rng.standard_normal((64, 64), dtype=np.float32)
    for _ in range(3):
        lattice = refine(lattice)
    place = [(along / np.float32(width / 8)) + 100, (across / np.float32(3 * width / 8)) + 100]
    noise = ndimage.map_coordinates(lattice, place, order=1, mode="reflect")
    return np.asarray(np.abs(noise), np.float32)

"""Relief, and what follows from it: slope, shade, the way down."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from geolabel.synthetic.fields import Shape, fractal_noise, smooth_noise
from geolabel.types import Float32Array


@dataclass(frozen=True)
class Terrain:
    """A relief in metres and its derivatives."""

    dem: Float32Array
    """(H, W) metres."""
    slope: Float32Array
    """(H, W) rise over run of the relief without its roughness."""
    shade: Float32Array
    """(H, W) cosine of the angle between the sun and the ground, 0..1."""
    down: tuple[Float32Array, Float32Array]
    """Downhill direction: rows and columns per step, not normalised."""
    sun: tuple[float, float]
    """Where the sun stands: row and column of a unit vector."""


def make_terrain(shape: Shape, gsd: float, rng: np.random.Generator) -> Terrain:
    """Draw a fractal relief with ridges and valleys and light it.

    Relief is the same in pixels at every gsd but for its height: slopes of a landscape hardly depend on scale.
    """
    longest = rng.uniform(0.5, 0.9) * min(max(shape), 1400)
    broad = fractal_noise(shape, longest, longest / 6, rng, persistence=0.45)
    ridges = 1 - np.abs(fractal_noise(shape, longest / 2, longest / 12, rng, persistence=0.5))
    # a third of the country is nearly flat: valley floors and terraces, where fields and roads are
    flat = np.clip(0.55 + 0.5 * smooth_noise(shape, longest, rng), 0.08, 1.2)
    smooth = broad + rng.uniform(0.25, 0.5) * ridges * flat
    row, col = (d / gsd for d in np.gradient(smooth))
    steepness = np.hypot(row, col)
    scale = np.float32(rng.uniform(0.35, 0.6) / np.quantile(steepness[::8, ::8], 0.7))
    smooth = smooth * scale
    rough = fractal_noise(shape, longest / 12, 4, rng, persistence=0.45)
    dem = smooth + rough * np.float32(longest * gsd * 0.004) * np.clip(steepness * scale, 0.1, 1)
    azimuth, height = rng.uniform(0, 2 * np.pi), np.radians(rng.uniform(28, 65))
    sun = (float(np.sin(azimuth)), float(np.cos(azimuth)))
    rough_row, rough_col = (d / gsd for d in np.gradient(dem))
    toward = rough_row * sun[0] + rough_col * sun[1]
    shade = (np.sin(height) - np.cos(height) * toward) / np.sqrt(1 + rough_row**2 + rough_col**2)
    row, col = row * scale, col * scale
    return Terrain(
        dem=dem.astype(np.float32),
        slope=np.hypot(row, col).astype(np.float32),
        shade=np.clip(shade, 0.05, 1).astype(np.float32),
        down=(ndimage.gaussian_filter(-row, 2).astype(np.float32), ndimage.gaussian_filter(-col, 2).astype(np.float32)),
        sun=sun,
    )

"""Random fields: the raw material of relief, vegetation and noise."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from geolabel.types import Float32Array

Shape = tuple[int, int]


def smooth_noise(shape: Shape, wavelength: float, rng: np.random.Generator) -> Float32Array:
    """(H, W) noise of zero mean and unit spread whose features are about `wavelength` pixels long.

    Long waves are drawn on a coarse grid and enlarged, so the cost does not grow with the wavelength.
    """
    step = max(1.0, wavelength / 4)
    coarse_shape = tuple(int(np.ceil(side / step)) + 4 for side in shape)
    coarse = ndimage.gaussian_filter(
        rng.standard_normal(coarse_shape, dtype=np.float32), wavelength / step / 4, mode="wrap"
    )
    field = coarse if step == 1 else _enlarge(coarse, step, shape)
    field = field[: shape[0], : shape[1]]
    spread = float(coarse.std())
    return np.asarray((field - coarse.mean()) / max(spread, 1e-6), np.float32)


def _enlarge(coarse: Float32Array, step: float, shape: Shape) -> Float32Array:
    rows = (np.arange(shape[0], dtype=np.float64) / step + 1.5)[:, None]
    cols = np.arange(shape[1], dtype=np.float64) / step + 1.5
    return np.asarray(_cubic(_cubic(coarse, rows.ravel(), 0), cols, 1), np.float32)


def _cubic(values: Float32Array, positions: np.ndarray, axis: int) -> Float32Array:
    # cubic B-spline weights: smooth to the second derivative, so hillshades show no grid
    base = np.floor(positions).astype(int)
    t = (positions - base).astype(np.float32)
    weights = ((1 - t) ** 3 / 6, (3 * t**3 - 6 * t**2 + 4) / 6, (-3 * t**3 + 3 * t**2 + 3 * t + 1) / 6, t**3 / 6)
    last = values.shape[axis] - 1
    out = 0
    for offset, weight in zip((-1, 0, 1, 2), weights, strict=True):
        w = weight[:, None] if axis == 0 else weight
        out = out + values.take(np.clip(base + offset, 0, last), axis) * w
    return np.asarray(out, np.float32)


def fractal_noise(
    shape: Shape, longest: float, shortest: float, rng: np.random.Generator, persistence: float = 0.5
) -> Float32Array:
    """(H, W) sum of octaves from `longest` to `shortest` pixels, each `persistence` times as strong as the last."""
    total = np.zeros(shape, np.float32)
    weight, power, wavelength = 1.0, 0.0, longest
    while True:
        total += np.float32(weight) * smooth_noise(shape, wavelength, rng)
        power += weight**2
        wavelength, weight = wavelength / 2, weight * persistence
        if wavelength < shortest:
            return total / np.float32(np.sqrt(power))


def share(field: Float32Array, fraction: float) -> np.ndarray:
    """(H, W) bool, the highest `fraction` of a field."""
    sample = field[:: max(1, field.shape[0] // 256), :: max(1, field.shape[1] // 256)]
    return field > np.quantile(sample, 1 - fraction)

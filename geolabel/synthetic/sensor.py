"""What a camera, and whoever prepared its picture, makes of light."""

from __future__ import annotations

import numpy as np
from scipy import fft, ndimage

from geolabel.types import Float32Array, UInt8Array

BLOCK = 8
"""Side of the squares that a compressed picture is made of, pixels."""


def photograph(light: Float32Array, rng: np.random.Generator) -> UInt8Array:
    """(H, W, 3) a picture of (H, W, 3) light: haze, blur, colour response, noise, compression, rounding to 8 bits.

    `light` is used up.
    """
    haze = np.asarray([0.5, 0.75, 1.0], np.float32) * np.float32(rng.uniform(0, 0.07))
    gain = 1 + rng.normal(0, 0.07, 3).astype(np.float32)
    blur = rng.uniform(0.35, 1.0)
    for band in range(3):
        light[..., band] = ndimage.gaussian_filter(light[..., band], blur)
    light *= gain * (1 - haze)
    light += haze
    grey = light.mean(axis=2, keepdims=True)
    light -= grey
    light *= np.float32(rng.uniform(0.6, 1.4))  # saturation
    light += grey
    high = np.float32(np.quantile(light[::8, ::8], 0.99) * rng.uniform(0.9, 1.3))
    light /= max(float(high), 1e-3)
    np.clip(light, 0, 1.2, out=light)
    light **= np.float32(rng.uniform(0.6, 1.0))
    spread, bright = rng.uniform(0.002, 0.02), np.float32(rng.uniform(205, 250))
    compress = rng.random() < 0.5
    coarseness = rng.uniform(3, 22)
    for band in range(3):
        light[..., band] += np.float32(spread) * rng.standard_normal(light.shape[:2], dtype=np.float32)
        light[..., band] *= bright
        if compress:
            light[..., band] = _quantise_blocks(light[..., band], coarseness)
    return np.clip(np.rint(light), 1, 255).astype(np.uint8)


def _quantise_blocks(band: Float32Array, coarseness: float) -> Float32Array:
    """Round the cosine coefficients of each block of pixels, the finer waves the more coarsely, as JPEG does.

    Whole rows of blocks are worked on in turn, so memory is bounded by them; what does not fill a block stays as it is.
    """
    rows, cols = (side // BLOCK for side in band.shape)
    wave = np.arange(BLOCK, dtype=np.float32)
    steps = np.float32(coarseness) * (1 + 0.35 * (wave[:, None] + wave)).astype(np.float32)
    out = band.copy()
    for first in range(0, rows, 64):
        count = min(64, rows - first)
        part = slice(first * BLOCK, (first + count) * BLOCK), slice(0, cols * BLOCK)
        blocks = band[part].reshape(count, BLOCK, cols, BLOCK)
        waves = fft.dctn(blocks, axes=(1, 3), norm="ortho")
        rounded = np.rint(waves / steps[:, None, :]) * steps[:, None, :]
        out[part] = fft.idctn(rounded, axes=(1, 3), norm="ortho").reshape(count * BLOCK, cols * BLOCK)
    return out

"""Colour augmentation: sensors, seasons, weather and processing, and repainted regions."""

from __future__ import annotations

import io

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageFilter

from geolabel.types import Float64Array, UInt8Array, UInt16Array

_MIN_REGION = 60
"""Minimum size in pixels of a region that is repainted."""

_MAX_REPAINTED = 4
"""Maximum number of repainted regions of a sample."""


def recolour(rgb: UInt8Array, rng: Generator, strength: float = 1.0, haze: float = 0.2) -> UInt8Array:
    """Change colours, contrast, sharpness and noise of (H, W, 3) like sensors, seasons, weather and processing.

    The strength scales the change of colours and the probability of blur, noise and compression; haze is a probability.
    """
    image = Image.fromarray(rgb)
    if rng.random() < 0.7:
        image = image.convert("RGB", _mix(rng, 0.08 * strength))
    image = image.point(_tones(rng, strength, haze))
    if rng.random() < 0.35 * strength:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.6)))
    out = np.asarray(image)
    if rng.random() < 0.05:
        out = np.ascontiguousarray(out[..., rng.permutation(3)])
    if rng.random() < 0.5 * strength:
        noise = rng.standard_normal(out.shape, np.float32) * np.float32(rng.uniform(1, 12))
        out = np.clip(out + noise, 0, 255).astype(np.uint8)
    if rng.random() < 0.3 * strength:
        out = np.asarray(Image.open(io.BytesIO(jpeg(out, int(rng.integers(30, 92))))))
    return out


def _mix(rng: Generator, spread: float) -> tuple[float, ...]:
    """A colour matrix for Pillow, in rows of four, that keeps grey grey; one in twenty removes all colour."""
    matrix = np.eye(3) + rng.normal(0, spread, (3, 3)) if rng.random() < 0.95 else np.ones((3, 3))
    matrix /= matrix.sum(axis=1, keepdims=True)
    return tuple(np.pad(matrix, ((0, 0), (0, 1))).ravel().tolist())


def _tones(rng: Generator, strength: float, haze: float) -> list[int]:
    """Contrast, brightness and gamma as 256 tones for each of three bands; only brightness differs between bands."""
    level = np.linspace(-0.5, 0.5, 256)
    gamma, contrast, brightness = rng.normal(0, [0.25, 0.2, 0.06]) * strength
    middle = 0.5 + brightness + rng.normal(0, 0.03 * strength, 3)
    tones = [np.clip(level * np.exp(contrast) + m, 0, 1) ** np.exp(gamma) for m in middle]
    if rng.random() < haze:  # path radiance, blue or grey, added to the attenuated light of the ground
        share, air = rng.uniform(0.1, 0.5), rng.uniform(0.4, 0.75) + np.array([-0.1, 0, 0.06]) * rng.random()
        tones = [(1 - share) * tone + share * light for tone, light in zip(tones, air, strict=True)]
    return [round(tone * 255) for tone in np.concatenate(tones).tolist()]


def jpeg(rgb: UInt8Array, quality: int) -> bytes:
    """An image (H, W, 3) as a JPEG file."""
    stream = io.BytesIO()
    Image.fromarray(rgb).save(stream, "JPEG", quality=quality)
    return stream.getvalue()


def coarsen(rgb: UInt8Array, rng: Generator) -> UInt8Array:
    """Reduce (H, W, 3) 1.3 to 4 times and enlarge it again, like a coarse image for a network."""
    height, width = rgb.shape[:2]
    factor = np.exp(rng.uniform(np.log(1.3), np.log(4.0)))
    small = (max(1, round(width / factor)), max(1, round(height / factor)))
    image = Image.fromarray(rgb).resize(small, Image.Resampling.BOX)
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))


def tint(rgb: UInt8Array, like: UInt8Array, rng: Generator) -> UInt8Array:
    """Shift the colours of (H, W, 3) towards those of a part of another image of about that size.

    The linear map of minimum transport matches mean and covariance. Source: Pitie and Kokaram (2007), "The linear
    Monge-Kantorovitch linear colour mapping for example-based colour transfer".
    """
    side = min(len(rgb), *like.shape[:2])
    top, left = (int(rng.integers(0, n - side + 1)) for n in like.shape[:2])
    own = rgb[::3, ::3].reshape(-1, 3).astype(float)
    other = like[top : top + side : 3, left : left + side : 3].reshape(-1, 3).astype(float)
    share = rng.uniform(0.3, 1)
    # A little noise in all directions: grey images have no variance in two of them.
    mine, theirs = (np.cov(colours.T) + 9 * np.eye(3) for colours in (own, other))
    root = _power(mine, 0.5)
    inverse = _power(mine, -0.5)
    matrix = inverse @ _power(root @ theirs @ root, 0.5) @ inverse
    matrix = (1 - share) * np.eye(3) + share * np.clip(matrix, -3, 3)
    mean = (1 - share) * own.mean(axis=0) + share * other.mean(axis=0)
    moved: UInt8Array = np.clip((rgb - own.mean(axis=0)) @ matrix.T + mean, 0, 255).astype(np.uint8)
    return moved


def _power(matrix: Float64Array, exponent: float) -> Float64Array:
    """A power of a symmetric, positive definite matrix."""
    values, vectors = np.linalg.eigh(matrix)
    powered: Float64Array = (vectors * values**exponent) @ vectors.T
    return powered


def repaint(rgb: UInt8Array, regions: UInt16Array, slides: UInt8Array, rng: Generator) -> UInt8Array:
    """Change brightness, tone and contrast of up to `_MAX_REPAINTED` regions of a sample, with soft edges.

    Bare ground without landslide becomes brighter on average and landslides a little darker: networks overestimate the
    importance of brightness.

    Parameters
    ----------
    rgb : (H, W, 3)
    regions : (H, W)
        Numbered from 1; 0 outside.
    slides : (H, W)
        1 on landslides.
    """
    numbers = np.unique(regions[regions > 0])
    if not len(numbers):
        return rgb
    painted = rgb.astype(np.float32)
    for number in rng.choice(numbers, min(len(numbers), int(rng.integers(1, _MAX_REPAINTED + 1))), replace=False):
        region = regions == number
        if region.sum() < _MIN_REGION:
            continue
        gain = rng.normal(-0.1, 0.25) if slides[region].mean() > 0.3 else rng.normal(0.25, 0.35)
        gains = np.exp(gain + rng.normal(0, 0.1, 3))
        offset = rng.normal(0, 12) + rng.normal(0, 6, 3)
        contrast = np.exp(rng.normal(-0.1, 0.3))
        mean = painted[region].mean(axis=0)
        new = (painted - mean) * contrast + mean * gains + offset
        edge = Image.fromarray(region.astype(np.uint8) * 255).filter(ImageFilter.GaussianBlur(rng.uniform(0.6, 4)))
        share = np.asarray(edge, np.float32)[..., None] / 255
        painted = (painted + share * (new - painted)).astype(np.float32)
    return np.clip(painted, 0, 255).astype(np.uint8)

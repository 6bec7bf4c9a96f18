"""Colours: what land cover and landslides reflect, and what a camera makes of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from geolabel.synthetic import cover
from geolabel.synthetic.fields import fractal_noise, smooth_noise
from geolabel.synthetic.slides import Slide
from geolabel.synthetic.terrain import Terrain
from geolabel.types import Float32Array, UInt8Array

SEASONS = {
    "lush": ((0.07, 0.12, 0.06), (0.16, 0.24, 0.10)),
    "summer": ((0.09, 0.13, 0.07), (0.22, 0.27, 0.13)),
    "dry": ((0.12, 0.13, 0.08), (0.32, 0.29, 0.18)),
    "autumn": ((0.17, 0.13, 0.07), (0.28, 0.25, 0.14)),
    "grey": ((0.10, 0.11, 0.10), (0.21, 0.22, 0.19)),
}
"""Reflectance in red, green and blue of forest and of grass."""

SOILS = (
    (0.42, 0.33, 0.24),
    (0.36, 0.26, 0.18),
    (0.45, 0.41, 0.35),
    (0.33, 0.30, 0.27),
    (0.48, 0.36, 0.22),
    (0.3, 0.22, 0.17),
)
"""Reflectance of bare ground: what fields, quarries, river banks and landslides of a region are made of."""


def reflectance(
    classes: UInt8Array,
    variant: Float32Array,
    slides: Sequence[Slide],
    terrain: Terrain,
    gsd: float,
    rng: np.random.Generator,
) -> Float32Array:
    """(H, W, 3) reflectance under the sun: colour, texture and shade of every class, landslides laid over them.

    Parameters
    ----------
    classes : (H, W)
        The cover before the landslides, which shows through at their edges.
    """
    shape = (classes.shape[0], classes.shape[1])
    forest, grass = (np.asarray(c, np.float32) for c in SEASONS[rng.choice(list(SEASONS))])
    first, second = (_vary(SOILS[k], 0.12, rng) for k in rng.choice(len(SOILS), 2, replace=False))
    broad = smooth_noise(shape, 180, rng)[..., None]
    fine = fractal_noise(shape, 12, 2, rng, persistence=0.7)[..., None]
    v = variant[..., None]
    roughness = rng.uniform(0.05, 0.12)
    image = np.empty((*shape, 3), np.float32)

    def paint(number: int, layer: Float32Array) -> None:
        # each layer covers the scene, so no two of them are kept in memory
        where = classes == number
        image[where] = np.broadcast_to(layer, image.shape)[where]

    paint(cover.FOREST, _vary(forest, 0.15, rng) * (1 + 0.12 * broad) * _crowns(shape, gsd, terrain, rng)[..., None])
    meadow = _vary(grass, 0.15, rng)
    paint(cover.GRASS, meadow * (1 + 0.18 * broad + 0.08 * fine) + 0.05 * first * np.clip(broad, 0, 2))
    crop = grass * (0.7 + 0.5 * v) + 0.35 * (first - grass) * np.clip(2 * v - 1, 0, 1)
    paint(cover.FIELD, crop * _rows(shape, gsd, rng))
    del crop
    paint(cover.BARE, (first + (second - first) * v) * (1 + 0.08 * broad + roughness * fine))
    paint(cover.ROCK, np.float32(0.34) * np.asarray([1, 0.98, 0.93], np.float32) * (1 + 0.25 * fine))
    paint(cover.ROAD, np.float32(rng.uniform(0.22, 0.42)) * (1 + 0.04 * fine))
    water, silt = _vary((0.10, 0.15, 0.15), 0.3, rng), np.float32(rng.random() ** 2 * 0.6)
    paint(cover.RIVER, water * (1 + 0.05 * broad) + 0.4 * first * silt)
    paint(cover.ROOF, _vary((0.45, 0.36, 0.33), 0.2, rng) * (0.5 + v))
    for slide in slides:
        _lay_bare(image, slide, first, second, grass, rng)
    image *= np.where(classes == cover.RIVER, 0.8, 0.25 + 0.95 * terrain.shade).astype(np.float32)[..., None]
    image *= _cloud_shadow(shape, rng)[..., None]
    return image


def _vary(colour: object, spread: float, rng: np.random.Generator) -> Float32Array:
    tint = 1 + rng.normal(0, spread) + rng.normal(0, spread / 3, 3)
    return (np.asarray(colour, np.float32) * np.clip(tint, 0.5, 1.7)).astype(np.float32)


def _crowns(shape: tuple[int, int], gsd: float, terrain: Terrain, rng: np.random.Generator) -> Float32Array:
    """Light and dark sides of tree crowns some metres wide; at a coarse gsd only their clumps are left."""
    size = max(rng.uniform(4, 9) / gsd, 2.2)
    canopy = smooth_noise(shape, size * 1.6, rng) + 0.5 * smooth_noise(shape, size * 4, rng)
    lit = -(np.gradient(canopy, axis=0) * -terrain.sun[0] + np.gradient(canopy, axis=1) * -terrain.sun[1]) * size
    contrast = rng.uniform(0.15, 0.4) * min(1.0, size / 4)
    return np.asarray(np.clip(1 + contrast * lit * 0.5 + 0.15 * canopy, 0.25, 2), np.float32)


def _rows(shape: tuple[int, int], gsd: float, rng: np.random.Generator) -> Float32Array:
    angle, pitch = rng.uniform(0, np.pi), max(rng.uniform(1.5, 6) / gsd, 3)
    row, col = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    wave = np.sin((row * np.sin(angle) + col * np.cos(angle)) * np.float32(2 * np.pi / pitch))
    return np.asarray(1 + rng.uniform(0, 0.1) * wave, np.float32)[..., None]


def _lay_bare(
    image: Float32Array,
    slide: Slide,
    first: Float32Array,
    second: Float32Array,
    grass: Float32Array,
    rng: np.random.Generator,
) -> None:
    """Paint a landslide: streaks along its way, blocks in its deposit, a dark scarp, grass coming back."""
    shape = slide.mask.shape
    size = max(4.0, float(slide.depth.max()))
    soil = (first + (second - first) * np.float32(slide.tone)) * np.float32(rng.uniform(0.75, 1.15))
    table = ndimage.gaussian_filter1d(rng.standard_normal(256), 2.0)
    lane = np.clip((slide.across * 40 + 128 + 3 * smooth_noise(shape, size * 2, rng)).astype(int), 0, 255)
    streaks = table[lane] / table.std() * rng.uniform(0.04, 0.14)
    blocks = fractal_noise(shape, max(size * 0.7, 4), 2, rng, persistence=0.8) * (0.05 + 0.14 * slide.along)
    wet = 0.25 * rng.random() * np.clip(smooth_noise(shape, size * 3, rng), 0, 2)
    scarp = 0.35 * rng.random() * np.exp(-slide.along * 14)
    levee = 0.1 * np.exp(-((slide.depth - 2) ** 2) / 6) * rng.uniform(-1, 1)
    tone = np.clip(1 + streaks + blocks - wet - scarp + levee, 0.3, 1.8)[..., None].astype(np.float32)
    green = np.clip((1 - slide.freshness) * (0.5 + 0.6 * smooth_noise(shape, size * 1.2, rng)), 0, 0.75)[..., None]
    material = soil * tone * (1 - green) + grass * green * (0.8 + 0.4 * tone)
    edge = np.clip(slide.depth / rng.uniform(0.6, 2.0), 0.3, 1)[..., None]
    view = image[slide.window]
    view[slide.mask] = (view * (1 - edge) + material * edge)[slide.mask]


def _cloud_shadow(shape: tuple[int, int], rng: np.random.Generator) -> Float32Array:
    if rng.random() > 0.3:
        return np.ones(shape, np.float32)
    field = smooth_noise(shape, 500, rng)
    return np.asarray(1 - rng.uniform(0.2, 0.45) * np.clip((field - 1.0) * 4, 0, 1), np.float32)


def photograph(light: Float32Array, rng: np.random.Generator) -> UInt8Array:
    """(H, W, 3) what a camera makes of reflected light: haze, colour response, blur, noise, rounding to 8 bits."""
    haze = np.asarray([0.6, 0.8, 1.0], np.float32) * np.float32(rng.uniform(0, 0.08))
    gains = 1 + rng.normal(0, 0.06, 3).astype(np.float32)
    sigma = rng.uniform(0.4, 1.1)
    # in place from here on: the scene may be large
    image = light * (1 - haze)
    image += haze
    ndimage.gaussian_filter(image, (sigma, sigma, 0), output=image)
    image *= gains
    grey = image.mean(axis=2, keepdims=True)
    image -= grey
    image *= np.float32(rng.uniform(0.6, 1.25))  # saturation
    image += grey
    high = np.quantile(image[::8, ::8], 0.995)
    image /= max(float(high), 1e-3)
    np.clip(image, 0, 1.2, out=image)
    image **= np.float32(rng.uniform(0.6, 1.0))
    noise = rng.standard_normal(light.shape, dtype=np.float32)
    noise *= np.float32(rng.uniform(0.002, 0.015))
    image += noise
    image *= rng.uniform(200, 250)
    return np.clip(image, 1, 255, out=image).astype(np.uint8)

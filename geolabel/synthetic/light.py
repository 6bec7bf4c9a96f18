"""Reflectance of the ground, and the image that a camera makes of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import fft, ndimage

from geolabel.synthetic import cover
from geolabel.synthetic.cover import Cover
from geolabel.synthetic.slides import Slide
from geolabel.synthetic.terrain import Shape, Terrain, crowns, fractal_noise, smooth_noise
from geolabel.types import BoolArray, Float32Array, UInt8Array

Colour = tuple[float, float, float]

SEASONS: dict[str, tuple[Colour, Colour, Colour, Colour]] = {
    "lush": ((0.045, 0.085, 0.04), (0.09, 0.15, 0.06), (0.14, 0.21, 0.08), (0.24, 0.27, 0.12)),
    "summer": ((0.06, 0.09, 0.05), (0.12, 0.16, 0.08), (0.19, 0.23, 0.11), (0.33, 0.30, 0.17)),
    "dry": ((0.08, 0.09, 0.06), (0.17, 0.17, 0.10), (0.25, 0.24, 0.14), (0.36, 0.31, 0.20)),
    "autumn": ((0.09, 0.08, 0.05), (0.24, 0.16, 0.07), (0.22, 0.21, 0.12), (0.33, 0.27, 0.17)),
    "grey": ((0.08, 0.085, 0.075), (0.17, 0.165, 0.145), (0.22, 0.22, 0.17), (0.31, 0.29, 0.24)),
}
"""Reflectance in red, green and blue: dark and light trees, fresh and withered grass."""

FREQUENCY = (0.35, 0.3, 0.13, 0.09, 0.13)
"""Probability of each season."""

SOILS: tuple[Colour, ...] = (
    (0.42, 0.33, 0.24),
    (0.36, 0.26, 0.18),
    (0.45, 0.41, 0.35),
    (0.36, 0.33, 0.30),
    (0.48, 0.36, 0.22),
    (0.30, 0.22, 0.17),
    (0.52, 0.48, 0.41),
)
"""Reflectance of bare ground: fields, quarries, river banks and landslides of a region share it."""

ROOFS: tuple[Colour, ...] = ((0.42, 0.22, 0.16), (0.20, 0.28, 0.42), (0.55, 0.55, 0.54), (0.30, 0.28, 0.27))

ROUGHNESS = {
    cover.FOREST: 0.10,
    cover.GRASS: 0.10,
    cover.FIELD: 0.06,
    cover.BARE: 0.10,
    cover.ROCK: 0.30,
    cover.ROAD: 0.04,
    cover.RIVER: 0.03,
    cover.ROOF: 0.05,
    cover.LANDSLIDE: 0.0,
}
"""Typical spread of the brightness of each class from pixel to pixel."""


def reflect(
    land: Cover,
    slides: Sequence[Slide],
    terrain: Terrain,
    gsd: float,
    rng: np.random.Generator,
    day: np.random.Generator | None = None,
) -> Float32Array:
    """(H, W, 3) light reflected by the scene, 0..1 where nothing is brighter than a white sheet in the sun.

    Parameters
    ----------
    day
        Generator for season, light and clouds of another day; trees and stones stay those of `rng`. None for the same
        day.
    """
    shape = (land.classes.shape[0], land.classes.shape[1])
    palette = _palette(rng)
    if day is not None:
        palette = _another_season(palette, day)
    mix, height = land.variant.copy(), np.zeros(shape, np.float32)
    woods = land.classes == cover.FOREST
    _grow(mix, height, woods, gsd, rng)
    broad = smooth_noise(shape, 180, rng)
    meadow = land.classes == cover.GRASS
    mix[meadow] = np.clip(0.4 + 0.3 * broad, 0, 1)[meadow]
    roofs = land.classes == cover.ROOF
    height[roofs] = 4 + 4 * land.variant[roofs]
    texture = fractal_noise(shape, 16, 2, rng, persistence=0.7)
    texture *= np.asarray(list(ROUGHNESS.values()), np.float32)[land.classes] * np.float32(rng.uniform(0.7, 1.4))
    tone = (1 + texture + land.grain) * (1 + 0.07 * broad)
    del texture, broad
    image = np.empty((*shape, 3), np.float32)
    for band in range(3):
        low, high = palette[0, :, band], palette[1, :, band]
        image[..., band] = (low[land.classes] + (high - low)[land.classes] * mix) * tone
    _overgrow(image, land, palette, tone, rng)
    del mix, tone
    for slide in slides:
        _lay_bare(image, slide, palette, rng)
        height[slide.window][slide.mask] = slide.lift(gsd)[slide.mask]
    image *= _sunlight(terrain.dem + height, gsd, rng if day is None else day)[..., None]
    return image


def _palette(rng: np.random.Generator) -> Float32Array:
    """(2, classes, 3) the two colours that each class varies between; landslides have the colours of bare soil."""
    trees, light, grass, withered = SEASONS[str(rng.choice(list(SEASONS), p=FREQUENCY))]
    soils = [SOILS[k] for k in rng.choice(len(SOILS), 2, replace=False)]
    roofs = [ROOFS[k] for k in rng.choice(len(ROOFS), 2, replace=False)]
    water = rng.random() ** 2
    river = np.asarray((0.08, 0.14, 0.13)) * (1 - 0.6 * water) + 0.6 * water * np.asarray(soils[0])
    pairs = [
        (trees, light),
        (grass, withered),
        (grass, withered),
        tuple(soils),
        ((0.22, 0.21, 0.20), (0.36, 0.35, 0.32)),
        _pavement(soils[0], rng),
        (river, river),
        tuple(roofs),
        tuple(soils),
    ]
    colours = np.moveaxis(np.asarray(pairs), 1, 0)
    tint = 1 + rng.normal(0, 0.1, (1, len(pairs), 1)) + rng.normal(0, 0.03, (1, len(pairs), 3))
    tint[:, cover.LANDSLIDE] = tint[:, cover.BARE]
    return (colours * np.clip(tint, 0.6, 1.5)).astype(np.float32)


def _another_season(palette: Float32Array, rng: np.random.Generator) -> Float32Array:
    """The palette of the same region in another season: other leaves, drier or wetter ground."""
    trees, light, grass, withered = (np.asarray(c) for c in SEASONS[str(rng.choice(list(SEASONS), p=FREQUENCY))])
    later = palette * (1 + rng.normal(0, 0.06, (1, palette.shape[1], 1))).astype(np.float32)
    for number, (first, second) in {
        cover.FOREST: (trees, light),
        cover.GRASS: (grass, withered),
        cover.FIELD: (grass, withered),
    }.items():
        later[:, number] = np.stack([first, second]) * (1 + rng.normal(0, 0.08))
    later[:, cover.LANDSLIDE] = later[:, cover.BARE]
    return np.clip(later, 0.01, 1).astype(np.float32)


def _pavement(soil: Colour, rng: np.random.Generator) -> tuple[Colour, Colour]:
    """Colours of two roads: from black asphalt to white concrete, under more or less dust of the surrounding ground."""
    grey, dust = np.exp(rng.uniform(np.log(0.18), np.log(0.85), 2)), rng.uniform(0, 0.6)
    hue = 1 - dust + dust * np.asarray(soil) / np.mean(soil)
    first, second = (tuple((g * hue).tolist()) for g in grey)
    return first, second


def _grow(mix: Float32Array, height: Float32Array, woods: BoolArray, gsd: float, rng: np.random.Generator) -> None:
    """Trees some metres wide; where pixels are too large to show them, only their clumps remain."""
    shape: Shape = (woods.shape[0], woods.shape[1])
    spacing, tall, uneven = rng.uniform(3.5, 8), rng.uniform(5, 16), rng.uniform(0.25, 0.5)
    if spacing / gsd >= 2.5:
        dome, shade = crowns(shape, spacing / gsd, rng)
        dome += dome * (0.12 * fractal_noise(shape, spacing / gsd / 2, 1, rng, persistence=0.7))
    else:
        dome = np.clip(0.7 + 0.25 * fractal_noise(shape, 4, 1, rng, persistence=0.8), 0, 1).astype(np.float32)
        shade = rng.random(shape, dtype=np.float32)
    stand = fractal_noise(shape, 200, max(8, 10 / gsd), rng, persistence=0.6)
    mix[woods] = np.clip(0.15 + 0.45 * shade + 0.2 * dome + 0.18 * stand, 0, 1)[woods]
    canopy = np.minimum(dome * 3, 1) * (tall * (1 - uneven) * (1 + 0.15 * stand)) + dome * np.float32(tall * uneven)
    height[woods] = canopy[woods]


def _sunlight(surface: Float32Array, gsd: float, rng: np.random.Generator) -> Float32Array:
    """(H, W) light on a surface in metres: the sun's by Lambert's law outside shadows, the sky's everywhere."""
    azimuth, elevation = rng.uniform(0, 2 * np.pi), np.radians(rng.uniform(30, 65))
    toward = (float(np.sin(azimuth)), float(np.cos(azimuth)))
    row, col = np.gradient(surface, gsd)
    facing = np.sin(elevation) - np.cos(elevation) * (row * toward[0] + col * toward[1])
    direct = np.clip(facing / np.sqrt(1 + row * row + col * col), 0, None) / np.sin(elevation)
    del row, col, facing
    lit = np.ones(surface.shape, np.float32)
    rise = gsd * np.tan(elevation)
    for distance in np.unique(np.geomspace(1, max(2, 30 / rise), 10).astype(int)):
        shift = [round(distance * t) for t in toward]
        ahead = ndimage.shift(surface, [-s for s in shift], order=0, mode="nearest", prefilter=False)
        lit -= np.float32(0.35) * (ahead - surface > np.float32(distance * rise))
    sky = np.float32(rng.uniform(0.3, 0.5))
    light = sky + (1 - sky) * np.minimum(direct, 1.6) * np.clip(lit, 0, 1)
    if rng.random() < 0.2:  # the shadow of a cloud
        cloud = smooth_noise((surface.shape[0], surface.shape[1]), 512, rng)
        light *= 1 - rng.uniform(0.2, 0.45) * np.clip((cloud - 1.0) * 4, 0, 1)
    return np.asarray(light, np.float32)


def _overgrow(
    image: Float32Array, land: Cover, palette: Float32Array, tone: Float32Array, rng: np.random.Generator
) -> None:
    """Grow grass in tufts on bare ground that has lain for years; this year's landslides show none."""
    shape = (tone.shape[0], tone.shape[1])
    tufts = land.weeds * np.clip(1 + 0.6 * fractal_noise(shape, 32, 4, rng, persistence=0.7), 0, 1.2)
    fresh, withered = palette[:, cover.GRASS]
    for band in range(3):
        image[..., band] += tufts * ((0.5 * (fresh + withered))[band] * tone - image[..., band])


def _lay_bare(image: Float32Array, slide: Slide, palette: Float32Array, rng: np.random.Generator) -> None:
    """Paint a landslide: streaks along its path, blocks in its deposit, a dark scarp, regrowing grass."""
    shape = (slide.mask.shape[0], slide.mask.shape[1])
    size = slide.size
    first, second = palette[:, cover.BARE]
    grass = palette[0, cover.GRASS]
    soil = (first + (second - first) * np.float32(slide.tone)) * np.float32(rng.uniform(0.9, 1.45))
    table = ndimage.gaussian_filter1d(rng.standard_normal(256), 2.0)
    lane = np.clip((slide.across * 40 + 128 + 3 * smooth_noise(shape, size * 2, rng)).astype(int), 0, 255)
    streaks = table[lane] / table.std() * rng.uniform(0.08, 0.24)
    blocks = fractal_noise(shape, max(size * 0.7, 4), 1, rng, persistence=0.8) * (0.08 + 0.2 * slide.along)
    wet = 0.25 * rng.random() * np.clip(smooth_noise(shape, size * 3, rng), 0, 2)
    scarp = rng.uniform(0.15, 0.5) * np.exp(-slide.along * 14)
    tone = np.clip(1 + streaks + blocks - wet - scarp, 0.3, 1.8)[..., None].astype(np.float32)
    green = np.clip((1 - slide.freshness) * (0.5 + 0.7 * smooth_noise(shape, size * 1.2, rng)), 0, 0.8)[..., None]
    material = soil * tone * (1 - green) + grass * green * (0.7 + 0.3 * tone)
    edge = np.clip(slide.depth / rng.uniform(0.6, 2.0), 0.4, 1)[..., None]
    view = image[slide.window]
    view[slide.mask] = (view * (1 - edge) + material * edge)[slide.mask]


BLOCK = 8
"""Side of the blocks of JPEG compression, in pixels."""


def photograph(light: Float32Array, rng: np.random.Generator) -> UInt8Array:
    """(H, W, 3) a photograph of (H, W, 3) light: haze, blur, colour response, noise, compression, rounding to 8 bits.

    `light` is overwritten.
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
    """Round the cosine coefficients of each block of pixels, higher frequencies more coarsely, as in JPEG.

    Whole rows of blocks are processed in turn, which bounds memory; incomplete blocks at the edge are not changed.
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

"""Land cover: a map of classes, among them much bare ground that is no landslide."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from geolabel.synthetic.fields import Shape, fractal_noise, share, smooth_noise
from geolabel.synthetic.terrain import Terrain
from geolabel.types import Float32Array, Int64Array, UInt8Array

CLASSES = ("forest", "grass", "field", "bare soil", "rock", "road", "river", "roof", "landslide")
"""Names of the classes, in the order of their numbers."""

FOREST, GRASS, FIELD, BARE, ROCK, ROAD, RIVER, ROOF, LANDSLIDE = range(len(CLASSES))


def make_cover(terrain: Terrain, gsd: float, rng: np.random.Generator) -> tuple[UInt8Array, Float32Array]:
    """Draw the land cover before any landslide.

    Returns
    -------
    classes : (H, W)
    variant : (H, W)
        0..1, constant per field, roof or patch of soil: what tells neighbours of one class apart.
    """
    shape = terrain.dem.shape
    assert len(shape) == 2
    classes = np.full(shape, GRASS, np.uint8)
    variant = np.full(shape, 0.5, np.float32)
    woods = fractal_noise(shape, 300, 8, rng, persistence=0.6) + 1.2 * np.tanh(2 * terrain.slope - 0.6)
    classes[share(woods, rng.uniform(0.25, 0.8))] = FOREST
    flat = terrain.slope < rng.uniform(0.15, 0.3)
    _plough(classes, variant, flat, rng)
    classes[share(terrain.slope + 0.1 * smooth_noise(shape, 20, rng), rng.uniform(0.002, 0.02))] = ROCK
    _strip_bare(classes, variant, terrain, rng)
    _dig_quarries(classes, variant, rng)
    _let_rivers_run(classes, variant, gsd, rng)
    _lay_roads(classes, variant, terrain, gsd, rng)
    _build(classes, variant, flat, gsd, rng)
    return classes, variant


def _cells(shape: Shape, size: float, rng: np.random.Generator) -> Int64Array:
    """(H, W) numbers of crooked quadrangles about `size` pixels wide, as fields are laid out."""
    angle = rng.uniform(0, np.pi)
    row, col = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    bend = smooth_noise(shape, 6 * size, rng) * size * 0.5
    u = (row * np.sin(angle) + col * np.cos(angle) + bend) / size
    v = (row * np.cos(angle) - col * np.sin(angle) - bend) / (size * rng.uniform(0.3, 1))
    strip: Int64Array = np.floor(u).astype(np.int64)
    shift = np.random.default_rng(int(rng.integers(1 << 31))).random(4096)
    cell: Int64Array = strip * 7919 + np.floor(v + shift[strip % 4096]).astype(np.int64)
    return cell


def _plough(classes: UInt8Array, variant: Float32Array, flat: np.ndarray, rng: np.random.Generator) -> None:
    shape = classes.shape
    where = flat & share(smooth_noise(shape, 250, rng), rng.uniform(0.3, 0.9))
    cells = _cells(shape, rng.uniform(25, 110), rng)
    table = rng.random(8191).astype(np.float32)
    value = table[cells % 8191]
    classes[where] = FIELD
    variant[where] = value[where]
    # a fallow field is bare soil
    classes[where & (value < rng.uniform(0.15, 0.4))] = BARE


def _strip_bare(classes: UInt8Array, variant: Float32Array, terrain: Terrain, rng: np.random.Generator) -> None:
    """Dry or grazed ground: patches with soft or hard edges anywhere, some on steep ground."""
    shape = classes.shape
    for size, fraction in ((30, 0.012), (90, 0.03), (220, 0.03)):
        field = fractal_noise(shape, size, 5, rng, persistence=0.5)
        patch = share(field - 0.3 * terrain.slope * rng.uniform(-1, 1), fraction * rng.uniform(0.5, 1.6))
        classes[patch] = BARE
        variant[patch] = rng.random()


def _dig_quarries(classes: UInt8Array, variant: Float32Array, rng: np.random.Generator) -> None:
    """Quarries, pads and building sites: straight or round edges, terraces inside."""
    height, width = classes.shape
    for _ in range(rng.poisson(height * width / 160_000)):
        half = np.exp(rng.uniform(np.log(8), np.log(70))) * np.asarray([1, rng.uniform(0.4, 1)])
        row, col, angle = rng.uniform(0, height), rng.uniform(0, width), rng.uniform(0, np.pi)
        window, u, v = _frame(classes.shape, row, col, angle, float(half.max()) * 1.5)
        if u.size == 0:
            continue
        power = rng.choice([2.0, 8.0])  # an ellipse or nearly a rectangle
        inside = (np.abs(u / half[0]) ** power + np.abs(v / half[1]) ** power) < 1
        classes[window][inside] = BARE
        step = np.floor((u + half[0]) / max(half[0] / rng.integers(1, 5), 3)) % 2
        variant[window][inside] = (0.35 + 0.3 * step + rng.uniform(-0.2, 0.2))[inside]


def _frame(
    shape: Shape, row: float, col: float, angle: float, reach: float
) -> tuple[tuple[slice, slice], Float32Array, Float32Array]:
    """A window around a point and its pixels' coordinates along and across a direction."""
    top, left = max(0, int(row - reach)), max(0, int(col - reach))
    window = (slice(top, min(shape[0], int(row + reach) + 1)), slice(left, min(shape[1], int(col + reach) + 1)))
    r, c = np.mgrid[window].astype(np.float32)
    r, c = r - row, c - col
    return window, r * np.sin(angle) + c * np.cos(angle), r * np.cos(angle) - c * np.sin(angle)


def _let_rivers_run(classes: UInt8Array, variant: Float32Array, gsd: float, rng: np.random.Generator) -> None:
    """Water along the lowest contour of a broad field that follows the relief, gravel on both sides."""
    shape = classes.shape
    for _ in range(rng.integers(0, 3)):
        field = smooth_noise(shape, rng.uniform(400, 900), rng) + 0.12 * smooth_noise(shape, 80, rng)
        gradient = np.hypot(*np.gradient(field)) + 1e-4
        distance = ndimage.gaussian_filter(np.abs(field - rng.uniform(-0.5, 0.5)) / gradient, 2)
        width = np.clip(rng.uniform(4, 18) / max(gsd, 0.5) * (1 + 0.3 * smooth_noise(shape, 120, rng)), 1.5, 40)
        gravel = width * (1.2 + 1.3 * np.clip(smooth_noise(shape, 90, rng), -0.8, 2))
        banks = distance < gravel
        classes[banks] = BARE
        variant[banks] = 0.8
        classes[distance < width] = RIVER


def _lay_roads(
    classes: UInt8Array, variant: Float32Array, terrain: Terrain, gsd: float, rng: np.random.Generator
) -> None:
    """Roads along contours of broad fields; on slopes with a cut of bare soil on the uphill side."""
    shape = classes.shape
    for _ in range(rng.integers(1, 5)):
        field = smooth_noise(shape, rng.uniform(250, 800), rng) + 0.05 * smooth_noise(shape, 60, rng)
        gradient = np.hypot(*np.gradient(field)) + 1e-4
        signed = (field - rng.uniform(-0.8, 0.8)) / gradient
        half = np.clip(rng.uniform(1.5, 5) / gsd, 0.8, 14)
        if rng.random() < 0.6:
            cut = half * (1.3 + 2.5 * np.clip(smooth_noise(shape, 70, rng), 0, 2))
            side = (signed > 0) & (signed < cut) & (terrain.slope > 0.2)
            classes[side] = BARE
            variant[side] = 0.4
        line = np.abs(signed) < half
        paved = rng.random() < 0.6
        classes[line] = ROAD if paved else BARE
        variant[line] = 0.7


def _build(classes: UInt8Array, variant: Float32Array, flat: np.ndarray, gsd: float, rng: np.random.Generator) -> None:
    """Villages: rectangles of a few metres, in groups."""
    height, width = classes.shape
    for _ in range(rng.integers(0, 6)):
        center = np.asarray([rng.uniform(0, height), rng.uniform(0, width)])
        spread, angle = rng.uniform(20, 90), rng.uniform(0, np.pi)
        for _ in range(rng.integers(5, 40)):
            row, col = center + rng.normal(0, spread, 2)
            if not (0 <= row < height and 0 <= col < width) or not flat[int(row), int(col)]:
                continue
            half = np.clip(rng.uniform(3, 12, 2) / gsd, 1, 40)
            window, u, v = _frame(classes.shape, row, col, angle + rng.choice([0, np.pi / 2]), float(half.max()) * 1.5)
            inside = (np.abs(u) < half[0]) & (np.abs(v) < half[1])
            classes[window][inside] = ROOF
            variant[window][inside] = rng.random()

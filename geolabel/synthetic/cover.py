"""Land cover: a map of classes, with much bare ground that is not landslide."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from scipy import ndimage

from geolabel.synthetic.terrain import Terrain, fractal_noise, frame, share, smooth_noise, wander
from geolabel.types import BoolArray, Float32Array, UInt8Array

CLASSES = ("forest", "grass", "field", "bare soil", "rock", "road", "river", "roof", "landslide")
"""Names of the classes, in the order of their numbers."""

FOREST, GRASS, FIELD, BARE, ROCK, ROAD, RIVER, ROOF, LANDSLIDE = range(len(CLASSES))


@dataclass(frozen=True)
class Cover:
    """Land cover before any landslide."""

    classes: UInt8Array
    """(H, W)"""
    variant: Float32Array
    """(H, W) 0..1, one value per field, roof or patch of soil, to vary neighbours of one class."""
    grain: Float32Array
    """(H, W) share by which furrows, terraces and tracks lighten the ground."""
    weeds: Float32Array
    """(H, W) 0..1, how overgrown bare ground is."""

    def paint(
        self,
        number: int,
        where: BoolArray,
        variant: float | Float32Array,
        window: tuple[slice, slice],
        weeds: float = 0.0,
    ) -> None:
        """Give the pixels of a window where `where` is true a class, a variant and a degree of overgrowth."""
        self.classes[window][where] = number
        self.variant[window][where] = variant if isinstance(variant, float) else variant[where]
        self.weeds[window][where] = weeds


WHOLE = (slice(None), slice(None))

OPEN = 0.2
"""Share of scenes of open country: grass and much dry ground, few trees."""

TERRACED = 0.5
"""Share of scenes with terraced slopes."""


def make_cover(terrain: Terrain, gsd: float, rng: np.random.Generator) -> Cover:
    """Draw the land cover: woods on the slopes, fields on the valley floors, and ground bared by people and rivers."""
    shape = (terrain.dem.shape[0], terrain.dem.shape[1])
    none = np.zeros(shape, np.float32)
    cover = Cover(np.full(shape, FOREST, np.uint8), np.full(shape, 0.5, np.float32), none, none.copy())
    meadows = fractal_noise(shape, 256, 8, rng, persistence=0.6) - 1.5 * terrain.slope
    open_country = rng.random() < OPEN
    cover.classes[share(meadows, rng.uniform(0.6, 0.97) if open_country else rng.uniform(0.08, 0.5))] = GRASS
    gentle = terrain.slope < rng.uniform(0.2, 0.35)
    _plough(cover, gentle, gsd, rng)
    if rng.random() < TERRACED:
        _terrace(cover, terrain, gsd, rng)
    cliffs = terrain.slope + 0.15 * fractal_noise(shape, 64, 4, rng, persistence=0.7)
    cover.classes[share(cliffs, rng.uniform(0.002, 0.03))] = ROCK
    _erode(cover, rng.uniform(2, 8) if open_country else rng.uniform(0.4, 1.6), rng)
    _dig(cover, rng)
    _let_river_run(cover, terrain, gsd, rng)
    _lay_roads(cover, terrain, gsd, rng)
    _build(cover, gentle, gsd, rng)
    return cover


def altered(cover: Cover, terrain: Terrain, gsd: float, rng: np.random.Generator) -> Cover:
    """The same land some months later: fields ploughed, pits dug and roads built, on gentle and on steep ground."""
    later = Cover(**{one.name: getattr(cover, one.name).copy() for one in fields(cover)})
    shape = (terrain.dem.shape[0], terrain.dem.shape[1])
    first = rng.uniform(0, 0.7)
    ploughed = (later.classes == FIELD) & (later.variant > first) & (later.variant < first + rng.uniform(0.1, 0.3))
    later.paint(BARE, ploughed, float(rng.random()), WHOLE, rng.uniform(0, 0.3))
    cleared = share(fractal_noise(shape, 64, 4, rng, persistence=0.55), rng.uniform(0.003, 0.015))
    later.paint(BARE, cleared & (terrain.slope < 0.3) & (later.classes != RIVER), float(rng.random()), WHOLE)
    _dig(later, rng)
    _lay_roads(later, terrain, gsd, rng)
    return later


def _plough(cover: Cover, gentle: BoolArray, gsd: float, rng: np.random.Generator) -> None:
    """Crooked strips of fields in a few directions; a fallow one is bare soil."""
    shape = (gentle.shape[0], gentle.shape[1])
    tilled = gentle & share(smooth_noise(shape, 256, rng), rng.uniform(0.2, 0.75))
    size = np.clip(rng.uniform(20, 60) / gsd, 10, 120)
    quarter = smooth_noise(shape, 8 * size, rng) > 0
    angle = rng.uniform(0, np.pi)
    fallow = rng.uniform(0.1, 0.3)
    pitch = np.float32(2 * np.pi / max(rng.uniform(1.5, 6) / gsd, 3))
    bend = smooth_noise(shape, 8 * size, rng) * np.float32(0.4 * size)
    for part, turn in ((quarter, 0.0), (~quarter, rng.uniform(0.5, 1.5))):
        _, u, v = frame(shape, (0, 0), angle + turn, sum(shape))
        u += bend
        strip = np.floor(u / np.float32(size)).astype(np.int32)
        shift = rng.random(4096, dtype=np.float32)
        piece = np.floor(v / np.float32(size * rng.uniform(1, 3)) + shift[strip % 4096]).astype(np.int32)
        value = rng.random(8191, dtype=np.float32)[(strip * 7919 + piece) % 8191]
        where = tilled & part
        cover.paint(FIELD, where, (value - np.float32(fallow)) / np.float32(1 - fallow), WHOLE)
        cover.paint(BARE, where & (value < fallow), value / np.float32(fallow), WHOLE, rng.uniform(0, 0.6))
        cover.grain[where] = (np.float32(rng.uniform(0, 0.12)) * np.sin(u[where] * pitch)).astype(np.float32)


def _terrace(cover: Cover, terrain: Terrain, gsd: float, rng: np.random.Generator) -> None:
    """Narrow fields along the contours of slopes, between banks; those just dug are bare soil."""
    shape = (terrain.dem.shape[0], terrain.dem.shape[1])
    where = (terrain.slope > 0.08) & (terrain.slope < 0.6) & share(smooth_noise(shape, 256, rng), rng.uniform(0.1, 0.4))
    if not where.any():
        return
    width = np.clip(rng.uniform(3, 15) / gsd, 5, 30)
    step = np.float32(float(width) * gsd * float(np.median(terrain.slope[where])))
    rise = ndimage.gaussian_filter(terrain.dem, 3) / step + np.float32(0.15) * smooth_noise(shape, 3 * width, rng)
    level = np.floor(rise).astype(np.int32)
    owner = np.floor(2 * smooth_noise(shape, 12 * width, rng)).astype(np.int32)  # a family farms several terraces
    value = rng.random(8191, dtype=np.float32)[(level * 7919 + owner * 104_729) % 8191]
    dug = np.float32(rng.uniform(0, 0.6))
    cover.paint(FIELD, where, (value - dug) / (1 - dug), WHOLE)
    cover.paint(BARE, where & (value < dug), value / dug, WHOLE, rng.uniform(0, 0.6))
    bank = np.exp(-(((rise - level) / np.float32(rng.uniform(0.1, 0.3))) ** 2))
    cover.grain[where] = (np.float32(rng.uniform(-0.5, 0.3)) * bank)[where]


def _erode(cover: Cover, dryness: float, rng: np.random.Generator) -> None:
    """Dry, grazed or cleared ground: ragged patches anywhere, some on steep ground, without a runout."""
    shape = (cover.classes.shape[0], cover.classes.shape[1])
    for size, fraction in ((32, 0.008), (64, 0.02), (256, 0.025)):
        field = fractal_noise(shape, size, 4, rng, persistence=0.55)
        where = share(field, min(0.3, fraction * dryness * rng.uniform(0.7, 1.4)))
        cover.paint(BARE, where, float(rng.random()), WHOLE, rng.uniform(0.25, 0.8))


def _dig(cover: Cover, rng: np.random.Generator) -> None:
    """Quarries, pads and building sites, with steps and wheel tracks inside; rows of greenhouses or solar panels."""
    height, width = cover.classes.shape
    for _ in range(rng.poisson(height * width / 130_000)):
        half = np.exp(rng.uniform(np.log(6), np.log(75))) * np.asarray([1, rng.uniform(0.35, 1)])
        center = (rng.uniform(0, height), rng.uniform(0, width))
        window, u, v = frame((height, width), center, rng.uniform(0, np.pi), float(half.max()) * 1.5)
        power = rng.choice([2.0, 8.0])  # an ellipse or nearly a rectangle
        ragged = np.float32(rng.uniform(0, 0.25)) * smooth_noise((u.shape[0], u.shape[1]), half.min(), rng)
        inside = np.abs(u / half[0]) ** power + np.abs(v / half[1]) ** power < 1 + ragged
        built = power > 2 and rng.random() < 0.3
        cover.paint(ROOF if built else BARE, inside, float(rng.random()), window)
        step = np.sin(u * np.float32(2 * np.pi / max(half[0] / rng.integers(1, 6), 4)) + 3 * ragged)
        cover.grain[window][inside] = (rng.uniform(0, 0.2) * step)[inside]


def _let_river_run(cover: Cover, terrain: Terrain, gsd: float, rng: np.random.Generator) -> None:
    """A river that meanders over the valley floor, with gravel banks; some valleys are dry."""
    if rng.random() < 0.3:
        return
    shape = (terrain.dem.shape[0], terrain.dem.shape[1])
    half = np.clip(rng.uniform(3, 14) / gsd, 1.2, 0.6 * terrain.flat + 2)
    swing = smooth_noise(shape, 256, rng)
    distance = np.abs(terrain.valley + np.float32(max(terrain.flat - half, 0) * 0.5) * swing)
    ragged = fractal_noise(shape, 128, 4, rng, persistence=0.6)
    gravel = half * (1 + rng.uniform(0.2, 1.5) * np.clip(0.4 + ragged, 0, 2))
    cover.paint(BARE, distance < gravel, 0.8, WHOLE)
    cover.grain[distance < gravel] = 0
    cover.classes[distance < half * (1 + 0.15 * smooth_noise(shape, 128, rng))] = RIVER


def _lay_roads(cover: Cover, terrain: Terrain, gsd: float, rng: np.random.Generator) -> None:
    """Roads that wind through the scene or follow the valley; on slopes with a cut of bare soil on the uphill side."""
    shape = (terrain.dem.shape[0], terrain.dem.shape[1])
    for _ in range(rng.integers(1, 6)):
        half = np.clip(rng.uniform(1.8, 4.5) / gsd, 0.7, 11)
        offset = rng.uniform(-0.4, 0.4) * min(shape)
        if rng.random() < 0.6:
            signed = terrain.valley - np.float32(offset) + 18 * smooth_noise(shape, 128, rng)
        else:
            center = (shape[0] / 2, shape[1] / 2)
            _, along, signed = frame(shape, center, rng.uniform(0, np.pi), sum(shape))
            wave = rng.uniform(120, 300)
            signed = signed + np.float32(offset) + np.float32(0.25 * wave) * wander(along, wave, rng)
        signed = signed / np.maximum(np.hypot(*np.gradient(signed)), 0.3)  # equally wide in every bend
        uphill = np.sign(
            np.gradient(terrain.dem, axis=0) * np.gradient(signed, axis=0)
            + np.gradient(terrain.dem, axis=1) * np.gradient(signed, axis=1)
        )
        cut = half * (1 + rng.uniform(0.5, 3) * np.clip(smooth_noise(shape, 64, rng), 0, 2))
        side = (signed * uphill > 0) & (np.abs(signed) < cut) & (terrain.slope > 0.25)
        cover.paint(BARE, side & (cover.classes != RIVER), float(rng.random()), WHOLE)
        paved = rng.random() < 0.65
        cover.paint(ROAD if paved else BARE, np.abs(signed) < half, float(rng.random()), WHOLE)
        cover.grain[np.abs(signed) < half] = 0


def _build(cover: Cover, gentle: BoolArray, gsd: float, rng: np.random.Generator) -> None:
    """Hamlets: houses of a few metres side by side."""
    height, width = cover.classes.shape
    for _ in range(rng.poisson(3 * max(1.0, height * width / (1 << 20)))):
        center, angle = rng.uniform(0, (height, width)), rng.uniform(0, np.pi)
        spread = np.clip(rng.uniform(15, 60) / gsd, 8, 150)
        for _ in range(rng.integers(3, 30)):
            half = np.clip(rng.uniform(3, 9, 2) / gsd, 0.8, 40)
            row, col = center + rng.normal(0, spread, 2)
            if not (0 <= row < height and 0 <= col < width) or not gentle[int(row), int(col)]:
                continue
            turn = angle + rng.choice([0, np.pi / 2])
            window, u, v = frame((height, width), (row, col), turn, float(half.max()) * 1.5)
            inside = (np.abs(u) < half[0]) & (np.abs(v) < half[1])
            free = ~np.isin(cover.classes[window], (RIVER, ROAD, ROOF))
            if free[inside].all():
                cover.paint(ROOF, inside, float(rng.random()), window)
                cover.grain[window][inside] = np.where(u > 0, -0.12, 0.12)[inside]

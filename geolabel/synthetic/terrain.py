"""Relief: valleys with flat floors, spurs and gullies on their sides, the flow direction, and random fields."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from geolabel.types import BoolArray, Float32Array, Float64Array

LARGEST_FORM = 1400
"""Size in pixels up to which landforms grow with a scene; a larger scene shows more of them."""


@dataclass(frozen=True)
class Terrain:
    """A relief in metres, and quantities derived from it."""

    dem: Float32Array
    """(H, W) metres."""
    slope: Float32Array
    """(H, W) rise over run of the relief without its roughness."""
    down: tuple[Float32Array, Float32Array]
    """Fall in rows and in columns, metres per metre."""
    valley: Float32Array
    """(H, W) pixels from the axis of the nearest valley; negative on one side."""
    flat: float
    """Half the width of the valley floors, in pixels."""


def make_terrain(shape: Shape, gsd: float, rng: np.random.Generator) -> Terrain:
    """Draw a relief: parallel winding valleys, gullies down their sides, and fractal hills.

    Forms have the same size in pixels at every gsd; only their height scales, since slopes hardly depend on scale.
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
    # the steeper half of the area stands at 24 to 38 degrees
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
        lattice = _refine(lattice)
    place = [(along / np.float32(width / 8)) + 100, (across / np.float32(3 * width / 8)) + 100]
    noise = ndimage.map_coordinates(lattice, place, order=1, mode="reflect")
    return np.asarray(np.abs(noise), np.float32)


Shape = tuple[int, int]


def fractal_noise(
    shape: Shape, longest: float, shortest: float, rng: np.random.Generator, persistence: float = 0.5
) -> Float32Array:
    """(H, W) noise of zero mean and unit spread: octaves, each `persistence` times as strong as the one before.

    Successive random additions (Saupe, 1988): white noise on a lattice of pitch `longest` is refined by subdivision
    and joined by new noise at every octave, so all octaves together cost little more than the last.
    Wavelengths, in pixels, are rounded to powers of two.
    """
    first = max(0, round(math.log2(max(longest, 1))))
    last = min(first, max(0, round(math.log2(max(shortest, 1)))))
    # each refinement consumes a cell at both ends: the margin is what remains after all of them
    field = rng.standard_normal([-(-side // 2**first) + 3 for side in shape], dtype=np.float32)
    for level in range(first - 1, -1, -1):
        field = _refine(field)
        if level >= last:
            strength = np.float32(persistence ** (first - level))
            field += strength * rng.standard_normal(field.shape, dtype=np.float32)
    top, left = ((have - want) // 2 for have, want in zip(field.shape, shape, strict=True))
    field = np.ascontiguousarray(field[top : top + shape[0], left : left + shape[1]])
    field -= np.float32(field.mean(dtype=np.float64))
    field /= np.float32(max(float(field.std(dtype=np.float64)), 1e-6))
    return field


def smooth_noise(shape: Shape, wavelength: float, rng: np.random.Generator) -> Float32Array:
    """(H, W) noise of zero mean and unit spread with the single wavelength `wavelength`, in pixels."""
    return fractal_noise(shape, wavelength, wavelength, rng)


def _refine(field: Float32Array) -> Float32Array:
    """Halve the pitch of a lattice by quadratic B-spline subdivision (Chaikin, 1974) along both axes.

    (h, w) becomes (2 h - 2, 2 w - 2): new nodes lie a quarter of a cell on either side of the middle between old ones.
    """
    near, far = np.float32(0.75), np.float32(0.25)
    tall = np.empty((2 * len(field) - 2, field.shape[1]), np.float32)
    tall[0::2] = near * field[:-1] + far * field[1:]
    tall[1::2] = far * field[:-1] + near * field[1:]
    fine = np.empty((len(tall), 2 * field.shape[1] - 2), np.float32)
    fine[:, 0::2] = near * tall[:, :-1] + far * tall[:, 1:]
    fine[:, 1::2] = far * tall[:, :-1] + near * tall[:, 1:]
    return fine


def wander(positions: Float32Array, wavelength: float, rng: np.random.Generator) -> Float32Array:
    """Smooth noise of unit spread along a line, at any positions on it (pixels)."""
    low = float(positions.min())
    count = int((float(positions.max()) - low) / wavelength) + 5
    knots = ndimage.spline_filter1d(rng.standard_normal(count), order=3)
    # a table of fine steps: linear interpolation in it is much faster than evaluating the spline everywhere
    steps = np.linspace(1, count - 2, 32 * count)
    table = ndimage.map_coordinates(knots, steps[None], order=3, prefilter=False)
    return np.asarray(np.interp((positions - low) / wavelength + 1, steps, table), np.float32)


def crowns(shape: Shape, spacing: float, rng: np.random.Generator) -> tuple[Float32Array, Float32Array]:
    """Tree crowns: paraboloids on a jittered lattice of pitch `spacing` pixels; each pixel shows the highest one.

    Returns
    -------
    dome : (H, W)
        Height of the crowns' surface: 0 between crowns, 1 at the tallest tops.
    tone : (H, W)
        One random number from 0 to 1 per tree.
    """
    cells = [math.ceil(side / spacing) + 2 for side in shape]
    offset = rng.uniform(0.1, 0.9, (2, *cells)).astype(np.float32)
    top = rng.uniform(0.6, 1.0, cells).astype(np.float32)
    steepness = top / rng.uniform(0.45, 0.85, cells).astype(np.float32) ** 2
    shade = rng.random(cells, dtype=np.float32)
    # the four nearest cells decide; a tree of a fifth one reaches a pixel too rarely to matter
    y, x = ((np.arange(side, dtype=np.float32) + 0.5) / np.float32(spacing) for side in shape)
    dome, tone = np.zeros(shape, np.float32), np.full(shape, 0.5, np.float32)
    for down, right in ((0, 0), (0, 1), (1, 0), (1, 1)):
        rows, cols = ((np.floor(p + 0.5)).astype(np.intp) + step for p, step in ((y, down), (x, right)))
        cell = np.ix_(rows, cols)
        dy = offset[0][cell] + (rows - 1 - y).astype(np.float32)[:, None]
        dx = offset[1][cell] + (cols - 1 - x).astype(np.float32)[None]
        surface = top[cell] - steepness[cell] * (dy * dy + dx * dx)
        higher = surface > dome
        np.copyto(dome, surface, where=higher)
        np.copyto(tone, shade[cell], where=higher)
    return dome, tone


def share(field: Float32Array, fraction: float) -> BoolArray:
    """(H, W) where a field has its highest `fraction` of values."""
    sample = field[:: max(1, field.shape[0] // 256), :: max(1, field.shape[1] // 256)]
    return field > np.quantile(sample, 1 - fraction)


def frame(
    shape: Shape, center: Float64Array | tuple[float, float], angle: float, reach: float
) -> tuple[tuple[slice, slice], Float32Array, Float32Array]:
    """The window within `reach` pixels of a point, and its pixels' coordinates along and across a direction."""
    row, col = (float(v) for v in center)
    top, left = max(0, int(row - reach)), max(0, int(col - reach))
    window = (slice(top, min(shape[0], int(row + reach) + 1)), slice(left, min(shape[1], int(col + reach) + 1)))
    r, c = (np.asarray(a, np.float32) for a in np.ogrid[window])
    r, c = r - np.float32(row), c - np.float32(col)
    sin, cos = np.float32(np.sin(angle)), np.float32(np.cos(angle))
    return window, r * sin + c * cos, r * cos - c * sin

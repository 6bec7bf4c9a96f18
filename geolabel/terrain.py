"""Slope and aspect of heights, by finite differences over three by three heights (Horn, 1981).

Heights are on a working grid whose pixels are metres wide. A height model that is coarser than the grid is interpolated
onto it; its differences are taken over one cell of the model, so that slopes are those of the model and not of the
facets between its heights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyproj

from geolabel.scene import Grid
from geolabel.types import AnyArray, BoolArray, Float64Array

LOWEST_M, HIGHEST_M = -1_000.0, 10_000.0
"""Minimum and maximum height on land; what is beyond, such as an undeclared -9999, is no height."""

WEIGHTS = ((-1, 1), (0, 2), (1, 1))
"""Of the three differences along an axis, by the step across it (Horn, 1981)."""


@dataclass(frozen=True)
class Terrain:
    """What follows from heights at every pixel."""

    slope: Float64Array
    """(h, w) degrees from the horizontal, 0..90."""
    east: Float64Array
    """(h, w) eastward part of the unit vector that points down the slope; 0 where the ground is level."""
    north: Float64Array
    """(h, w) its northward part."""
    known: BoolArray
    """(h, w) where all nine heights are known; values of other pixels are 0."""


def pixel_sizes(grid: Grid, rows: range) -> tuple[Float64Array, Float64Array]:
    """(h,) widths and heights in metres of the pixels of some rows, in the middle of the grid.

    Degrees of longitude shrink towards the poles, so on a geographic grid each row has a width of its own; elsewhere
    all pixels are as large as the central one.
    """
    count = len(rows)
    geod = grid.crs.get_geod() if grid.crs is not None and grid.crs.is_geographic else None
    if geod is None:
        width, height = grid.pixel_size_m()
        return np.full(count, width), np.full(count, height)
    row, col = np.asarray(rows, float) + 0.5, grid.width / 2
    there = [_lonlat(grid, *place) for place in ((row, col), (row, col + 1.0), (row - 0.5, col), (row + 0.5, col))]
    return _apart(geod, there[0], there[1]), _apart(geod, there[2], there[3])


def _lonlat(grid: Grid, row: Float64Array, col: float) -> tuple[Float64Array, Float64Array]:
    a, b, c, d, e, f = tuple(grid.transform)[:6]
    factor = grid.crs.axis_info[0].unit_conversion_factor if grid.crs is not None else 1.0
    degrees = np.degrees(factor)
    return (a * col + b * row + c) * degrees, (d * col + e * row + f) * degrees


def _apart(
    geod: pyproj.Geod, one: tuple[Float64Array, Float64Array], other: tuple[Float64Array, Float64Array]
) -> Float64Array:
    return np.asarray(geod.inv(*one, *other)[2], float)


def derive(
    heights: Float64Array, known: BoolArray, sizes: tuple[Float64Array, Float64Array], grid: Grid, step: int = 1
) -> Terrain:
    """Slope and aspect of heights.

    Parameters
    ----------
    heights : (h + 2 * step, w + 2 * step)
        Metres, with a margin of `step` pixels on all sides.
    known : (h + 2 * step, w + 2 * step)
    sizes
        (h,) widths and heights of the pixels of each row, metres; see `pixel_sizes`.
    grid
        Which way its rows and columns run.
    step
        Pixels between the heights that differences are taken of: those of a cell of the model.

    Returns
    -------
    Terrain of (h, w) pixels
    """
    z = np.where(known, heights, 0.0)
    whole = np.logical_and.reduce([_moved(known, down, right, step) for down in (-1, 0, 1) for right in (-1, 0, 1)])
    wide, tall = (step * size[:, None] for size in sizes)
    rightward = sum(k * (_moved(z, d, 1, step) - _moved(z, d, -1, step)) for d, k in WEIGHTS) / (8 * wide)
    downward = sum(k * (_moved(z, 1, r, step) - _moved(z, -1, r, step)) for r, k in WEIGHTS) / (8 * tall)
    east, north = _on_map(rightward, downward, grid)
    rise = np.hypot(east, north)
    sloping = whole & (rise > 0)
    length = np.where(sloping, rise, 1.0)
    return Terrain(
        slope=np.where(whole, np.degrees(np.arctan(rise)), 0.0),
        east=np.where(sloping, -east / length, 0.0),
        north=np.where(sloping, -north / length, 0.0),
        known=whole,
    )


def _moved(values: AnyArray, down: int, right: int, step: int) -> AnyArray:
    """(h, w) what is `down` and `right` steps away from each pixel of an array with a margin of one step."""
    height, width = values.shape[0] - 2 * step, values.shape[1] - 2 * step
    row, col = (1 + down) * step, (1 + right) * step
    return values[row : row + height, col : col + width]


def _on_map(rightward: Float64Array, downward: Float64Array, grid: Grid) -> tuple[Float64Array, Float64Array]:
    """Turn the gradient along columns and rows, metres per metre, to east and north of the grid's CRS."""
    a, b, _, d, e, _ = tuple(grid.transform)[:6]
    right_x, right_y = a / np.hypot(a, d), d / np.hypot(a, d)
    down_x, down_y = b / np.hypot(b, e), e / np.hypot(b, e)
    return rightward * right_x + downward * down_x, rightward * right_y + downward * down_y


FORMS_M = (5.0, 15.0, 45.0)
"""Distances over which the forms of the ground around a pixel are looked at."""


def form_steps(pixel_m: float, step: int, limit: int) -> tuple[int, ...]:
    """The distances `FORMS_M` in pixels: at least the cell of the height model, and at most `limit`."""
    return tuple(min(limit, max(step, 2, round(distance / pixel_m))) for distance in FORMS_M)


def forms(
    heights: Float64Array, known: BoolArray, sizes: tuple[Float64Array, Float64Array], grid: Grid, steps: Sequence[int]
) -> dict[str, AnyArray]:
    """How steep the ground around each pixel is, and how high it stands above it, at several distances.

    Parameters
    ----------
    heights, known : (h + 2 * margin, w + 2 * margin)
        As for `derive`, with a margin of the largest of `steps`.
    sizes
        (h,) as for `derive`.
    steps
        Pixels, see `form_steps`.

    Returns
    -------
    (h, w) ``slope_*`` in degrees, ``rise_*`` in metres above the mean of eight places around per metre of distance, and
    ``known``: where all heights are.
    """
    margin = max(steps)
    found: dict[str, AnyArray] = {"known": np.ones(tuple(side - 2 * margin for side in heights.shape), bool)}
    wide, tall = (size[:, None] for size in sizes)
    for number, step in enumerate(steps, 1):
        cut = (
            slice(margin - step, heights.shape[0] - margin + step),
            slice(margin - step, heights.shape[1] - margin + step),
        )
        z, there = np.where(known[cut], heights[cut], 0.0), known[cut]
        derived = derive(z, there, sizes, grid, step)
        around = [_moved(z, d, r, step) for d in (-1, 0, 1) for r in (-1, 0, 1) if d or r]
        distance = step * (wide + tall) / 2
        found[f"slope_{number}"] = derived.slope
        found[f"rise_{number}"] = (_moved(z, 0, 0, step) - sum(around) / len(around)) / distance
        found["known"] = found["known"] & derived.known
    return found


def aspect(east: Float64Array, north: Float64Array) -> Float64Array:
    """(K,) compass direction, degrees clockwise from the north of the grid, of sums of `Terrain.east` and `north`.

    The circular mean (Mardia and Jupp, 2000, eq. 2.2.4); NaN where the vectors cancel out.

    Examples
    --------
    >>> aspect(np.array([0.0, 2.0, 0.0]), np.array([3.0, 0.0, 0.0])).tolist()
    [0.0, 90.0, nan]
    """
    degrees = np.degrees(np.arctan2(east, north)) % 360
    return np.where((east == 0) & (north == 0), np.nan, degrees)

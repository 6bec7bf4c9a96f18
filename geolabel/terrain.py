"""Slope, aspect and curvature of heights, by finite differences over three by three heights.

Heights are on a working grid whose pixels are metres wide. A height model that is coarser than the grid is interpolated
onto it; its differences are taken over one cell of the model, so that slopes are those of the model and not of the
facets between its heights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyproj

from geolabel.scene import Grid
from geolabel.seams import Spans, total
from geolabel.types import AnyArray, BoolArray, Float64Array, Int32Array

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
    curvature: Float64Array
    """(h, w) 1/m, see `derive`: positive on a ridge, negative in a hollow, 0 on a plane."""
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
    """Slope, aspect and curvature of heights.

    Slope and aspect follow Horn (1981). Curvature is that of Zevenbergen and Thorne (1987): ``-2 (D + E)``, the
    negative sum of the second derivatives along both axes, as in ArcGIS and xarray-spatial, which give it times 100.

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
    whole = np.logical_and.reduce([_moved(known, down, right, step) for down, right in ALL_NINE])
    z = np.where(known, heights, 0.0)
    nine = {place: _moved(z, *place, step) for place in ALL_NINE}
    wide, tall = (step * size[:, None] for size in sizes)
    east, north = _on_map(*_gradient(nine, wide, tall), grid)
    rise = np.hypot(east, north)
    sloping = whole & (rise > 0)
    length = np.where(sloping, rise, 1.0)
    bent = (2 * nine[0, 0] - nine[0, 1] - nine[0, -1]) / wide**2 + (2 * nine[0, 0] - nine[1, 0] - nine[-1, 0]) / tall**2
    return Terrain(
        slope=np.where(whole, np.degrees(np.arctan(rise)), 0.0),
        east=np.where(sloping, -east / length, 0.0),
        north=np.where(sloping, -north / length, 0.0),
        curvature=np.where(whole, bent, 0.0),
        known=whole,
    )


ALL_NINE = tuple((down, right) for down in (-1, 0, 1) for right in (-1, 0, 1))
"""Steps down and to the right from a place to those that differences are taken of."""


def _gradient(
    nine: Mapping[tuple[int, int], Float64Array], wide: Float64Array, tall: Float64Array
) -> tuple[Float64Array, Float64Array]:
    """Metres per metre along rows and columns, of heights at `ALL_NINE` that are so many metres apart (Horn, 1981)."""
    rightward = sum(k * (nine[d, 1] - nine[d, -1]) for d, k in WEIGHTS) / (8 * wide)
    downward = sum(k * (nine[1, r] - nine[-1, r]) for r, k in WEIGHTS) / (8 * tall)
    return np.asarray(rightward), np.asarray(downward)


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

    A height that is not known, as at the edge of a model, is continued in a straight line from the other side.

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
    ``known``: where the height of the pixel itself is.
    """
    margin = max(steps)
    inner = tuple(slice(margin, side - margin) for side in heights.shape)
    found: dict[str, AnyArray] = {"known": known[inner]}
    wide, tall = (size[:, None] for size in sizes)
    for number, step in enumerate(steps, 1):
        cut = tuple(slice(margin - step, side - margin + step) for side in heights.shape)
        nine = _continued(np.where(known[cut], heights[cut], 0.0), known[cut], step)
        rise = np.hypot(*_on_map(*_gradient(nine, step * wide, step * tall), grid))
        around = sum(z for place, z in nine.items() if place != (0, 0)) / (len(nine) - 1)
        found[f"slope_{number}"] = np.degrees(np.arctan(rise))
        found[f"rise_{number}"] = (nine[0, 0] - around) / (step * (wide + tall) / 2)
    return found


def _continued(z: Float64Array, known: BoolArray, step: int) -> dict[tuple[int, int], Float64Array]:
    """(h, w) heights at `ALL_NINE`; those that are not known follow from the centre and the opposite one, if any."""
    here, centre = _moved(z, 0, 0, step), {}
    for down, right in ALL_NINE:
        there, opposite = _moved(known, down, right, step), _moved(known, -down, -right, step)
        beyond = np.where(opposite, 2 * here - _moved(z, -down, -right, step), here)
        centre[down, right] = np.where(there, _moved(z, down, right, step), beyond)
    return centre


def fall_lengths(spans: Spans, labels: Int32Array, aspects: Float64Array, grid: Grid) -> Float64Array:
    """(K,) metres between the outermost centres of pixels of objects along their aspect; NaN where it is not known.

    Parameters
    ----------
    labels : (N,)
        The object of each of N spans.
    aspects : (K,)
        Degrees clockwise from the north of the grid.
    """
    count = len(aspects)
    rows = total(spans.row * spans.lengths, labels, count) // np.maximum(total(spans.lengths, labels, count), 1)
    wide, tall = (sizes[rows] for sizes in pixel_sizes(grid, range(grid.height)))
    right, down = (_on_map(np.asarray(one, float), np.asarray(1 - one, float), grid) for one in (1, 0))
    turn = np.radians(np.nan_to_num(aspects))
    along_row = (np.sin(turn) * right[0] + np.cos(turn) * right[1]) * wide
    along_col = (np.sin(turn) * down[0] + np.cos(turn) * down[1]) * tall
    furthest, nearest = np.full(count, -np.inf), np.full(count, np.inf)
    for col in (spans.start, spans.stop - 1):
        place = spans.row * along_col[labels] + col * along_row[labels]
        np.maximum.at(furthest, labels, place)
        np.minimum.at(nearest, labels, place)
    return np.where(np.isnan(aspects), np.nan, furthest - nearest)


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

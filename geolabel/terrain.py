"""Slope, aspect and curvature of heights, by finite differences over three by three heights.

Heights are on a working grid with pixel sizes in metres. A height model that is coarser than the grid is interpolated;
differences are taken over one cell of the model, so that slopes are those of the model and not of the facets between
its heights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyproj

from geolabel.scene import Grid
from geolabel.spans import Spans, total
from geolabel.types import AnyArray, BoolArray, Float64Array, Int32Array

LOWEST_M, HIGHEST_M = -1_000.0, 10_000.0
"""Minimum and maximum height on land; values beyond, such as an undeclared -9999, are ignored."""

WEIGHTS = ((-1, 1), (0, 2), (1, 1))
"""Weights of the three differences along an axis (Horn, 1981)."""


@dataclass(frozen=True)
class Terrain:
    """Derivatives of heights at every pixel."""

    slope: Float64Array
    """(h, w) degrees from the horizontal, 0..90."""
    east: Float64Array
    """(h, w) eastward component of the unit vector that points downslope; 0 on level ground."""
    north: Float64Array
    """(h, w) northward component."""
    curvature: Float64Array
    """(h, w) 1/m, see `derive`: positive on a ridge, negative in a hollow, 0 on a plane."""
    known: BoolArray
    """(h, w) whether all nine heights are known; other values are 0."""


def pixel_sizes(grid: Grid, rows: range) -> tuple[Float64Array, Float64Array]:
    """(h,) widths and heights in metres of the pixels of some rows, at the middle column of the grid.

    Degrees of longitude shrink towards the poles, so on a geographic grid they vary by row; on other grids all pixels
    have the size of the central one.
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
    """Compute slope, aspect and curvature of heights.

    Slope and aspect follow Horn (1981). Curvature is that of Zevenbergen and Thorne (1987): ``-2 (D + E)``, the
    negative sum of the second derivatives along both axes, as in ArcGIS and xarray-spatial, which scale it by 100.

    Parameters
    ----------
    heights : (h + 2 * step, w + 2 * step)
        Metres, with a margin of `step` pixels on all sides.
    known : (h + 2 * step, w + 2 * step)
    sizes
        (h,) widths and heights of the pixels of each row, metres; see `pixel_sizes`.
    grid
        For the direction of its rows and columns.
    step
        Distance in pixels of the heights that are subtracted: the size of a cell of the model.

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
"""Offsets (down, right) of the nine heights, in steps."""


def _gradient(
    nine: Mapping[tuple[int, int], Float64Array], wide: Float64Array, tall: Float64Array
) -> tuple[Float64Array, Float64Array]:
    """Gradient (metres per metre) along rows and columns, of heights at `ALL_NINE` with given spacings (Horn, 1981)."""
    rightward = sum(k * (nine[d, 1] - nine[d, -1]) for d, k in WEIGHTS) / (8 * wide)
    downward = sum(k * (nine[1, r] - nine[-1, r]) for r, k in WEIGHTS) / (8 * tall)
    return np.asarray(rightward), np.asarray(downward)


def _moved(values: AnyArray, down: int, right: int, step: int) -> AnyArray:
    """(h, w) values `down` and `right` steps away from each pixel of an array with a margin of one step."""
    height, width = values.shape[0] - 2 * step, values.shape[1] - 2 * step
    row, col = (1 + down) * step, (1 + right) * step
    return values[row : row + height, col : col + width]


def _on_map(rightward: Float64Array, downward: Float64Array, grid: Grid) -> tuple[Float64Array, Float64Array]:
    """Convert the gradient along columns and rows, metres per metre, to east and north of the grid's CRS."""
    a, b, _, d, e, _ = tuple(grid.transform)[:6]
    right_x, right_y = a / np.hypot(a, d), d / np.hypot(a, d)
    down_x, down_y = b / np.hypot(b, e), e / np.hypot(b, e)
    return rightward * right_x + downward * down_x, rightward * right_y + downward * down_y


FORMS_M = (5.0, 15.0, 45.0)
"""Distances in metres at which the shape of the surrounding ground is measured."""


def form_steps(pixel_m: float, step: int, limit: int) -> tuple[int, ...]:
    """The distances `FORMS_M` in pixels: at least one cell of the height model, at most `limit`."""
    return tuple(min(limit, max(step, 2, round(distance / pixel_m))) for distance in FORMS_M)


def forms(
    heights: Float64Array, known: BoolArray, sizes: tuple[Float64Array, Float64Array], grid: Grid, steps: Sequence[int]
) -> dict[str, AnyArray]:
    """Steepness of the ground around each pixel, and its height above the surroundings, at several distances.

    An unknown height, as at the edge of a model, is extrapolated linearly from the opposite side.

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
    (h, w) ``slope_*`` in degrees, ``rise_*`` in metres above the mean of the eight surrounding heights per metre of
    distance, and ``known``: whether the pixel's own height is known.
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
    """(h, w) heights at `ALL_NINE`; unknown ones are extrapolated from the centre and the opposite one, if known."""
    here, centre = _moved(z, 0, 0, step), {}
    for down, right in ALL_NINE:
        there, opposite = _moved(known, down, right, step), _moved(known, -down, -right, step)
        beyond = np.where(opposite, 2 * here - _moved(z, -down, -right, step), here)
        centre[down, right] = np.where(there, _moved(z, down, right, step), beyond)
    return centre


def fall_lengths(spans: Spans, labels: Int32Array, aspects: Float64Array, grid: Grid) -> Float64Array:
    """(K,) metres between the outermost pixel centres of objects along their aspect; NaN if it is unknown.

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

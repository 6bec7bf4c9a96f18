"""A raster of any grid and CRS, read on the pixels of a working grid.

`SceneReader` reads a scene on its own grid, cropped or scaled. A raster that supplements a scene, such as a height
model or an earlier scene, has another grid and another CRS. The centre of each pixel of the working grid is
transformed to the raster's CRS, and the raster is sampled there. A pixel has the same value in every window:
coordinates are exact at the nodes of a lattice fixed to the working grid, interpolated linearly, and rounded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import pyproj

from geolabel.errors import SceneError
from geolabel.scene import Grid, span
from geolabel.tiles import Window
from geolabel.types import AnyArray, BoolArray, Float64Array

if TYPE_CHECKING:
    from geolabel.io.read.scenes import SceneReader

NODES = 16
"""Pixels of the working grid between nodes with exact coordinates. At any gsd below 100 m, linear interpolation between
them is wrong by less than a hundredth of a pixel."""

FRACTIONS = 1024
"""Coordinates are rounded to this fraction of a source pixel, so that rasters on the same grid are read exactly."""

LOOKS = 64
"""Points along each axis at which the overlap with a working grid is measured."""

PART_PX = 1 << 22
"""Maximum number of source pixels read at a time."""


@dataclass(frozen=True)
class AlignedReader:
    """A raster read on the grids of other rasters. Pickled by its arguments.

    Parameters
    ----------
    reader
        The raster to read.
    bands
        Number of bands to read: 3 for red, green and blue, 1 for a raster with a single band.
    shift
        Offset (rows, columns) in pixels of the working grid from a pixel to the same content in the raster.
    """

    reader: SceneReader
    bands: int = 3
    shift: tuple[float, float] = (0.0, 0.0)

    @property
    def grid(self) -> Grid:
        """The raster's own grid."""
        return self.reader.scene.grid

    def moved(self, shift: tuple[float, float]) -> AlignedReader:
        """Return the same raster, read with another shift."""
        return replace(self, shift=shift)

    def read(self, window: Window, grid: Grid) -> tuple[Float64Array, BoolArray]:
        """Read a window of a working grid; the window may extend beyond the grid.

        A raster that is at least twice as fine is first averaged over whole numbers of its pixels. A pixel is valid
        if at least half of the pixels it is computed from are valid.

        Returns
        -------
        bands : (bands, height, width)
            float64; 0 where not valid.
        valid : (height, width)

        Raises
        ------
        SceneError
            If only one of the raster and the grid has a CRS.
        TileError
            If the raster cannot be read.
        """
        coarse = _coarser(self.grid, source_pixels(grid, self.grid))
        bands = np.zeros((self.bands, window.height, window.width))
        valid = np.zeros((window.height, window.width), bool)
        for part in _parts(window, grid, coarse):
            here = part.within(window)
            rows, cols = _coordinates(part, grid, coarse, self.shift)
            bands[:, *here], valid[here] = self._sample(rows, cols, coarse)
        return bands, valid

    def overlap(self, grid: Grid) -> float:
        """Share of a working grid (0..1) inside the raster's frame, estimated on a lattice of points."""
        rows, cols = (np.linspace(0, side - 1, min(side, LOOKS)).astype(int) for side in (grid.height, grid.width))
        y, x = place(rows[:, None], cols[None, :], grid, self.grid)
        inside = (y >= 0) & (y < self.grid.height) & (x >= 0) & (x < self.grid.width)
        return float(inside.mean())

    def _sample(self, rows: Float64Array, cols: Float64Array, coarse: Grid) -> tuple[Float64Array, BoolArray]:
        """Values at pixel coordinates of the `coarse` grid (pixel centres at .5); see `_coordinates`."""
        within = (rows >= 0) & (rows < coarse.height), (cols >= 0) & (cols < coarse.width)  # False where not finite
        inside = within[0] & within[1]
        if not inside.any():
            return np.zeros((self.bands, *inside.shape)), np.zeros(inside.shape, bool)
        here = within if rows.shape != inside.shape else (inside, inside)
        y, x = np.where(here[0], rows - 0.5, 0.0), np.where(here[1], cols - 0.5, 0.0)
        top, left = np.floor(y).astype(np.int64), np.floor(x).astype(np.int64)
        down, right = y - top, x - left
        first_row, first_col = max(0, int(top[here[0]].min())), max(0, int(left[here[1]].min()))
        last_row = min(coarse.height - 1, int(top[here[0]].max()) + 1)
        last_col = min(coarse.width - 1, int(left[here[1]].max()) + 1)
        behind = Window(first_row, first_col, last_row - first_row + 1, last_col - first_col + 1)
        stored, good = self.reader.read(behind, coarse)
        stored = stored[: self.bands]
        good = good & np.isfinite(stored).all(axis=0)
        return _between(stored, good, inside, (top - first_row, left - first_col), (down, right))


def _between(
    stored: AnyArray,
    good: BoolArray,
    inside: BoolArray,
    corner: tuple[AnyArray, AnyArray],
    beyond: tuple[AnyArray, AnyArray],
) -> tuple[Float64Array, BoolArray]:
    """Bilinear interpolation of (3, h', w') pixels, using valid pixels only."""
    (top, left), (down, right) = corner, beyond
    whole = bool(good.all())
    values = stored if whole else np.where(good, stored, np.zeros((), stored.dtype))
    sums, weight, product = np.zeros((len(stored), *inside.shape)), np.zeros(inside.shape), np.empty(inside.shape)
    for below in (0, 1):
        for beside in (0, 1):
            rows, cols = np.clip(top + below, 0, good.shape[0] - 1), np.clip(left + beside, 0, good.shape[1] - 1)
            share = (down if below else 1 - down) * (right if beside else 1 - right)
            if share.any():
                share = share if whole else share * _picked(good, rows, cols)
                weight += share
                for total, band in zip(sums, values, strict=True):
                    total += np.multiply(share, _picked(band, rows, cols), out=product)
    valid = inside & (weight >= 0.5)
    return np.where(valid, sums / np.where(valid, weight, 1.0), 0.0), valid


def _picked(values: AnyArray, rows: AnyArray, cols: AnyArray) -> AnyArray:
    """Values (h, w) at rows and columns; whole lines if these are (h, 1) and (1, w)."""
    if rows.shape[1] == cols.shape[0] == 1:
        return values[_line(rows[:, 0])][:, _line(cols[0])]
    return np.asarray(values[rows, cols])


def _line(places: AnyArray) -> slice | AnyArray:
    """Indices as a slice if they are consecutive, which avoids a copy."""
    first = int(places[0])
    return slice(first, first + len(places)) if (np.diff(places) == 1).all() else places


# --- where pixels are ------------------------------------------------------------------------------------------------


def place(
    rows: AnyArray, cols: AnyArray, grid: Grid, source: Grid, shift: tuple[float, float] = (0.0, 0.0)
) -> tuple[Float64Array, Float64Array]:
    """Rows and columns on `source` (pixel centres at .5) of the pixel centres of `grid`.

    Raises
    ------
    SceneError
        If only one of the two has a CRS.
    """
    a, b, c, d, e, f = tuple(grid.transform)[:6]
    row, col = np.broadcast_arrays(rows + (0.5 + shift[0]), cols + (0.5 + shift[1]))
    x, y = a * col + b * row + c, d * col + e * row + f
    change = _transformer(grid.crs, source.crs)
    if change is not None:
        x, y = change.transform(x, y)
    a, b, c, d, e, f = tuple(~source.transform)[:6]
    with np.errstate(invalid="ignore"):
        return np.asarray(d * x + e * y + f), np.asarray(a * x + b * y + c)


def _transformer(own: pyproj.CRS | None, other: pyproj.CRS | None) -> pyproj.Transformer | None:
    if own is None and other is None:
        return None
    if own is None or other is None:
        raise SceneError(
            "only one of the two rasters has a CRS, so they cannot be aligned: assign one to the other "
            "(gdal_edit.py -a_srs EPSG:CODE FILE)"
        )
    if own.equals(other, ignore_axis_order=True) or own.geodetic_crs is None or other.geodetic_crs is None:
        return None
    return _between_crs(own.to_wkt(), other.to_wkt())


@lru_cache(maxsize=32)
def _between_crs(own: str, other: str) -> pyproj.Transformer:
    return pyproj.Transformer.from_crs(own, other, always_xy=True)


def source_pixels(grid: Grid, source: Grid) -> float:
    """Width of the middle pixel of `grid` in pixels of `source`: the geometric mean of both axes."""
    row, col = grid.height / 2, grid.width / 2
    y, x = place(np.asarray([row, row, row + 1]), np.asarray([col, col + 1, col]), grid, source)
    area = abs((x[1] - x[0]) * (y[2] - y[0]) - (x[2] - x[0]) * (y[1] - y[0]))
    return math.sqrt(area) if math.isfinite(area) and area > 0 else 1.0


def _coarser(source: Grid, wide: float) -> Grid:
    """The grid of a source, coarsened until a pixel of the working grid is less than two pixels wide."""
    factor = int(wide + 1e-6)
    if factor < 2:
        return source
    return source.resized(max(1, round(source.height / factor)), max(1, round(source.width / factor)))


def _coordinates(
    window: Window, grid: Grid, source: Grid, shift: tuple[float, float]
) -> tuple[Float64Array, Float64Array]:
    """Rows and columns on `source` of the pixels of a window, interpolated between nodes and rounded.

    Returns
    -------
    Arrays (h, w), or (h, 1) and (1, w) if the axes are parallel: the same values, faster.
    """
    nodes = [
        np.arange(first // NODES, -(-last // NODES) + 1) * NODES
        for first, last in ((window.row, window.bottom), (window.col, window.right))
    ]
    corners = place(nodes[0][:, None], nodes[1][None, :], grid, source, shift)
    down = np.arange(window.row, window.bottom) - nodes[0][0]
    right = np.arange(window.col, window.right) - nodes[1][0]
    found = []
    if (corners[0] == corners[0][:, :1]).all() and (corners[1] == corners[1][:1]).all():
        tall, wide = _lines(corners[0][:, :1], down), _lines(corners[1][:1].T, right).T
        return np.rint(tall * FRACTIONS) / FRACTIONS, np.rint(wide * FRACTIONS) / FRACTIONS
    for at in corners:
        tall = _lines(at, down)
        found.append(np.rint(_lines(tall.T, right).T * FRACTIONS) / FRACTIONS)
    return found[0], found[1]


def _lines(nodes: Float64Array, steps: AnyArray) -> Float64Array:
    """Values (len(steps), n) interpolated between the rows of (m, n) nodes."""
    node, part = np.divmod(steps, NODES)
    share = (part / NODES)[:, None]
    after = np.minimum(node + 1, len(nodes) - 1)
    with np.errstate(invalid="ignore"):
        return np.asarray(nodes[node] * (1 - share) + nodes[after] * share)


def _parts(window: Window, grid: Grid, source: Grid) -> list[Window]:
    """Split a window so that each part reads few source pixels."""
    side = max(NODES, int(math.isqrt(PART_PX) / max(1.0, source_pixels(grid, source))))
    return [
        Window(row, col, min(side, window.bottom - row), min(side, window.right - col))
        for row in range(window.row, window.bottom, side)
        for col in range(window.col, window.right, side)
    ]


def overlaps(aligned: AlignedReader, grids: Sequence[Grid], option: str) -> list[float]:
    """Share of each working grid that a raster covers.

    Parameters
    ----------
    option
        Name of the user's option, for the error.

    Raises
    ------
    SceneError
        If it covers no pixel of any grid.
    """
    shares = [aligned.overlap(grid) for grid in grids]
    if not any(shares):
        own, grid = aligned.grid, grids[0]
        raise SceneError(
            f"{option} {aligned.reader.scene.name} misses the scene: it covers {span(own.outline.bounds)}"
            f"{'' if own.crs is None else f' in {own.crs.name}'}, the scene covers {span(grid.outline.bounds)}"
            f"{'' if grid.crs is None else f' in {grid.crs.name}'}: give one that covers the scene, or correct its CRS"
        )
    return shares

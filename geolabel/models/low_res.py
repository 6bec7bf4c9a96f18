"""Stability and box of coarse masks as if they were enlarged, without computing their pixels.

SAM enlarges the logits of a mask bilinearly, four pixels per cell, and counts pixels. Between four cells that are all
above a cut, all pixels are, and between four that are below, none is: only pixels near an edge are computed. The result
equals that of counting all pixels, except for logits that are equal to a cut to the last digit.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np

from geolabel.types import BoolArray, Float32Array, Int64Array


@dataclass(frozen=True)
class Judged:
    """Stability and boxes of K masks."""

    stability: Float32Array
    """(K,) see `geolabel.masks.stability_score`."""
    boxes: Int64Array
    """(K, 4) first and last column and row of the pixels inside, as x0, y0, x1, y1; x1 is -1 if there are none, or if
    the box was not asked for."""


def judge(logits: Float32Array, step: int, size: tuple[int, int], offset: float, min_stability: float = 0.0) -> Judged:
    """Compute stability and boxes of masks from their coarse logits.

    Parameters
    ----------
    logits : (K, h, w)
    step
        Image pixels per cell, an even number.
    size
        Height and width of the image, up to ``h * step`` and ``w * step``; its first pixel is in the first cell.
    offset
        Offset of the stability, in logits.
    min_stability
        Minimum stability of masks whose boxes are computed.
    """
    cells = np.pad(logits, ((0, 0), (1, 1), (1, 1)), mode="edge")  # as in bilinear interpolation
    places = _Places.of(step, size, (logits.shape[1] + 2, logits.shape[2] + 2))
    near = _near(cells, -offset)
    cells, places = cells[:, near[0], near[1]], places.part(*near)
    inner, outer = (_count(cells, cut, places) for cut in (offset, -offset))
    stability = (inner / np.maximum(outer, 1)).astype(np.float32)
    boxes = np.tile(np.array([[0, 0, -1, 0]], np.int64), (len(cells), 1))
    asked = np.flatnonzero(stability >= min_stability)
    boxes[asked] = _boxes(cells[asked], places)
    return Judged(stability, boxes)


def _near(cells: Float32Array, cut: float) -> tuple[slice, slice]:
    # Rows and columns of cells (K, h, w) that include all places between cells of which any mask exceeds a cut,
    # and one more at the end, which has no place.
    above: BoolArray = np.asarray((cells > cut).any(axis=0))
    spans = []
    for axis in (1, 0):
        some = np.flatnonzero(above.any(axis=axis))
        spans.append(slice(max(0, some[0] - 1), some[-1] + 2) if len(some) else slice(0, 1))
    return spans[0], spans[1]


@dataclass(frozen=True)
class _Places:
    """The places between two by two cells, numbered by the upper left cell, with their pixels."""

    step: int
    weights: Float32Array
    """(4, step^2) weights of the upper left, upper right, lower left and lower right cell, by pixel."""
    rows: BoolArray
    """(h, step) whether rows of pixels are in the image; false for the last place, which has no cell below."""
    cols: BoolArray
    area: Float32Array
    """(h, w) number of pixels of each place in the image."""
    first: tuple[int, int] = (0, 0)
    """Row and column, in the image, of the first pixel of the first place."""

    def part(self, rows: slice, cols: slice) -> _Places:
        """The places of some rows and columns of cells; the last of each has none."""
        tall, wide = self.rows[rows].copy(), self.cols[cols].copy()
        tall[-1], wide[-1] = False, False
        first = self.first[0] + rows.start * self.step, self.first[1] + cols.start * self.step
        area = self.area[rows, cols].copy()
        area[-1], area[:, -1] = 0, 0
        return _Places(self.step, self.weights, tall, wide, area, first)

    @staticmethod
    @lru_cache(maxsize=8)
    def of(step: int, size: tuple[int, int], count: tuple[int, int]) -> _Places:
        """The places of `count` rows and columns of cells."""
        after = ((np.arange(step) + 0.5) / step).astype(np.float32)
        along = np.stack([1 - after, after])
        weights = np.einsum("ai,bj->abij", along, along).reshape(4, step**2)
        pixels = [np.arange(n * step).reshape(n, step) - step // 2 for n in count]
        rows, cols = ((at >= 0) & (at < side) for at, side in zip(pixels, size, strict=True))
        rows[-1], cols[-1] = False, False
        area = np.outer(rows.sum(axis=1), cols.sum(axis=1)).astype(np.float32)
        return _Places(step, weights, rows, cols, area, (-(step // 2), -(step // 2)))

    def found(self, cells: Float32Array, cut: float) -> tuple[BoolArray, Int64Array, BoolArray]:
        """Places whose pixels all exceed the cut (K, h, w), places where some may (N,), which do (N, step, step)."""
        above, width = (cells > cut).ravel(), cells.shape[2]
        some, every = above.copy(), above.copy()
        # Processes rows and masks in one pass; places across their ends have no pixels. Short rows would be 10 times
        # slower.
        for shift in (1, width):
            some[:-shift] |= some[shift:]
            every[:-shift] &= every[shift:]
        inside_image = self.area > 0
        edge = np.flatnonzero((some ^ every).reshape(cells.shape) & inside_image)
        corners = cells.reshape(-1)[edge[:, None] + np.array([0, 1, width, width + 1])]
        inside = (corners @ self.weights).reshape(-1, self.step, self.step) > cut
        place = edge % self.area.size
        cut_off = np.flatnonzero(self.area.ravel()[place] < self.step**2)
        row, col = np.divmod(place[cut_off], width)
        inside[cut_off] &= self.rows[row][:, :, None] & self.cols[col][:, None, :]
        return every.reshape(cells.shape) & inside_image, edge, inside


def _count(cells: Float32Array, cut: float, places: _Places) -> Int64Array:
    # (K,) number of pixels above a cut
    every, edge, inside = places.found(cells, cut)
    area, full = places.area.ravel(), places.step**2
    at_frame = np.flatnonzero((area > 0) & (area < full))
    ends = np.searchsorted(edge, np.arange(len(every) + 1) * area.size).tolist()
    found = np.array([np.count_nonzero(mask) for mask in every], np.int64) * full
    found += (every.reshape(len(every), area.size)[:, at_frame] @ (area - full)[at_frame]).astype(np.int64)
    found += np.array([np.count_nonzero(inside[first:last]) for first, last in pairwise(ends)], np.int64)
    return found


def _boxes(cells: Float32Array, places: _Places) -> Int64Array:
    every, edge, inside = places.found(cells, 0.0)
    mask, row, col = np.unravel_index(edge, every.shape)
    ends = []
    for axis, place, valid, first in ((1, row, places.rows, places.first[0]), (2, col, places.cols, places.first[1])):
        held = np.asarray(every.any(axis=3 - axis))[..., None] & valid
        which, pixel = np.nonzero(inside.any(axis=3 - axis))
        held[mask[which], place[which], pixel] = True
        line = held.reshape(len(cells), valid.size)
        ends.append(
            (first + line.argmax(axis=1), first + valid.size - 1 - line[:, ::-1].argmax(axis=1), line.any(axis=1))
        )
    (top, bottom, some), (left, right, _) = ends
    found = np.stack([left, top, np.where(some, right, -1), np.where(some, bottom, 0)], axis=1).astype(np.int64)
    found[~some, :2] = 0
    return found


def cell_shares(cells: int, pixels: int, step: float) -> Float32Array:
    """(cells, pixels) share of each pixel in each cell of `step` pixels."""
    edges, low = np.arange(cells + 1) * step, np.arange(pixels)
    shared = np.minimum(edges[1:, None], low + 1) - np.maximum(edges[:-1, None], low)
    shares: Float32Array = shared.clip(min=0).astype(np.float32)
    return shares

"""Objects without seams: masks as spans, joined where they touch.

A span is a run of mask pixels in one row. Spans are found block by block; a span that ends at a seam is joined to the
one that starts there. After that, nothing depends on blocks: components, holes, bounding boxes, moments and outlines
are computed from the spans of the whole grid. Spans take less memory than outlines, which bounds the memory of a run
over a large scene; pixels are kept for one block only.

Rows and columns are those of the grid, spans are half-open like windows, and all counts are exact integers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Literal, Self

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from geolabel.tiles import Window
from geolabel.types import AnyArray, BoolArray, Float64Array, Int32Array, Int64Array

Connectivity = Literal[4, 8]
"""Whether pixels are connected over edges only, or also over corners."""


@dataclass(frozen=True)
class Spans:
    """N disjoint runs of pixels in raster order: row ``row``, columns ``[start, stop)``."""

    row: Int32Array
    start: Int32Array
    stop: Int32Array

    @classmethod
    def of_mask(cls, mask: BoolArray, window: Window) -> Self:
        """Spans of the true pixels (h, w) of a window of the grid.

        Parameters
        ----------
        mask : (window.height, window.width)
        """
        height, width = mask.shape
        change = np.empty((height, width + 1), bool)
        change[:, 0] = mask[:, 0]
        np.not_equal(mask[:, 1:], mask[:, :-1], out=change[:, 1:-1])
        change[:, -1] = mask[:, -1]
        row, col = np.divmod(np.flatnonzero(change), width + 1)  # changes in a row alternate between start and stop
        return cls(
            *(
                (values + offset).astype(np.int32)
                for values, offset in ((row[::2], window.row), (col[::2], window.col), (col[1::2], window.col))
            )
        )

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        """Concatenate spans, without sorting."""
        return cls(
            *(np.concatenate([np.zeros(0, np.int32), *(getattr(one, f.name) for one in parts)]) for f in fields(cls))
        )

    @classmethod
    def empty(cls) -> Self:
        """No spans."""
        return cls(*(np.zeros(0, np.int32) for _ in fields(cls)))

    def __len__(self) -> int:
        return len(self.row)

    def __getitem__(self, index: BoolArray | Int64Array | slice) -> Self:
        """Spans selected by mask, ascending indices or slice."""
        return type(self)(self.row[index], self.start[index], self.stop[index])

    @property
    def lengths(self) -> Int64Array:
        """(N,) number of pixels of each span."""
        return self.stop.astype(np.int64) - self.start

    @cached_property
    def _keys(self) -> tuple[int, Int64Array, Int64Array]:
        # Starts and stops as single ascending numbers, spaced so that shifts by one do not reach another row.
        pitch = int(self.stop.max(initial=0)) + 2
        base = self.row.astype(np.int64) * pitch
        return pitch, base + self.start, base + self.stop

    def in_order(self) -> bool:
        """Whether these are valid spans; to check those of a file."""
        row, start, stop = self.row, self.start, self.stop
        if not all(values.ndim == 1 and values.dtype == np.int32 for values in (row, start, stop)):
            return False
        if not len(row) == len(start) == len(stop) or np.any((row < 0) | (start < 0) | (start >= stop)):
            return False
        below = np.diff(row) > 0
        return bool((below | (np.diff(row) == 0) & (start[1:] >= stop[:-1])).all())

    def clip(self, window: Window) -> tuple[Self, Int64Array]:
        """Return the parts of spans inside a window, and (M,) the index of the span of each part."""
        first, last = np.searchsorted(self.row, [window.row, window.bottom])
        start = np.maximum(self.start[first:last], window.col)
        stop = np.minimum(self.stop[first:last], window.right)
        inside = start < stop
        part = type(self)(self.row[first:last][inside], start[inside], stop[inside])
        return part, np.flatnonzero(inside) + first

    @property
    def hull(self) -> Window | None:
        """The smallest window that contains all spans; None if there are none."""
        if not len(self):
            return None
        row, col = int(self.row[0]), int(self.start.min())
        return Window(row, col, int(self.row[-1]) + 1 - row, int(self.stop.max()) - col)

    def pixels(self, window: Window) -> Int64Array:
        """(P,) ascending flat indices of the pixels of spans inside `window`, in an array of that window."""
        ends = np.cumsum(self.lengths)
        first = (self.row.astype(np.int64) - window.row) * window.width + self.start - window.col
        return np.arange(ends[-1] if len(ends) else 0) + np.repeat(first - ends + self.lengths, self.lengths)

    def paint(self, window: Window, values: AnyArray, background: int = 0) -> AnyArray:
        """Rasterize the part of spans inside `window`.

        Parameters
        ----------
        values : (N,) value of each span

        Returns
        -------
        (window.height, window.width), of the type of `values`
        """
        part, index = self.clip(window)
        image = np.full((window.height, window.width), background, values.dtype)
        image.reshape(-1)[part.pixels(window)] = np.repeat(values[index], part.lengths)
        return image

    def gaps(self) -> Self:
        """Background between two spans of the same row."""
        same = self.row[1:] == self.row[:-1]
        return type(self)(self.row[1:][same], self.stop[:-1][same], self.start[1:][same])

    def touching(self, connectivity: Connectivity) -> tuple[Int64Array, Int64Array]:
        """Pairs of spans that touch, as two arrays of indices: one in a row, one in the row below."""
        reach = connectivity == 8
        pitch, starts, stops = self._keys
        low = np.searchsorted(stops, starts + (pitch - reach), side="right")
        high = np.searchsorted(starts, stops + (pitch + reach), side="left")
        count = np.maximum(high - low, 0)
        upper = np.repeat(np.arange(len(self)), count)
        ends = np.cumsum(count)
        lower = np.arange(len(upper)) + np.repeat(low - ends + count, count)
        return upper, lower

    def holding(self, rows: Int64Array, cols: Int64Array) -> Int64Array:
        """(M,) number of the span that contains each pixel, or -1."""
        if not len(self):
            return np.full(len(rows), -1, np.int64)
        pitch, starts, _ = self._keys
        at = np.searchsorted(starts, rows * pitch + cols, side="right") - 1
        inside = (at >= 0) & (self.row[at] == rows) & (self.stop[at] > cols)
        return np.where(inside, at, -1)

    def meeting(self, other: Spans) -> BoolArray:
        """(N,) whether each span shares a pixel with one of the others."""
        pitch = int(max(self.stop.max(initial=0), other.stop.max(initial=0))) + 1
        first, last = (other.row.astype(np.int64) * pitch + values for values in (other.start, other.stop))
        low, high = (self.row.astype(np.int64) * pitch + values for values in (self.start, self.stop))
        return np.asarray(np.searchsorted(last, low, side="right") < np.searchsorted(first, high, side="left"))

    def components(self, connectivity: Connectivity) -> tuple[Int32Array, int]:
        """Label the connected components, numbered from 0 by their first pixel in raster order.

        Returns
        -------
        labels : (N,) component of each span
        count : number of components
        """
        return connected(*self.touching(connectivity), len(self))


def connected(one: Int64Array, other: Int64Array, count: int) -> tuple[Int32Array, int]:
    """Group `count` items, given pairs of connected ones as two arrays of indices.

    Returns
    -------
    labels : (count,) group of each item, numbered from 0 by their first item
    groups : number of groups
    """
    if not count:
        return np.zeros(0, np.int32), 0
    graph = coo_array((np.ones(len(one), bool), (one, other)), shape=(count, count))
    groups, labels = connected_components(graph, directed=False)
    _, first = np.unique(labels, return_index=True)
    number = np.empty(groups, np.int32)
    number[np.argsort(first)] = np.arange(groups, dtype=np.int32)
    return number[labels], int(groups)


def join(parts: Sequence[Spans]) -> tuple[Spans, Int64Array]:
    """Merge spans of disjoint windows; spans that meet at a seam become one.

    Returns
    -------
    spans : N spans
    index : (M,) the merged span that each span of the concatenated `parts` became part of
    """
    if not parts:
        return Spans.empty(), np.zeros(0, np.int64)
    row, start, stop = (np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(Spans))
    order = np.lexsort((start, row))
    row, start, stop = row[order], start[order], stop[order]
    new = np.ones(len(row), bool)
    new[1:] = (row[1:] != row[:-1]) | (start[1:] != stop[:-1])
    last = np.append(new[1:], True)[: len(row)]
    index = np.empty(len(row), np.int64)
    index[order] = np.cumsum(new) - 1
    return Spans(row[new], start[new], stop[last]), index


def large_components(spans: Spans, minimum: float, *, frame: Window | None = None) -> tuple[Spans, Int32Array, int]:
    """The 4-connected components of at least `minimum` pixels.

    Parameters
    ----------
    frame
        Window of a block: components that touch its frame, and may continue beyond it, are kept.

    Returns
    -------
    spans : N spans
    labels : (N,) component of each span; see `Spans.components`
    count : number of components
    """
    labels, count = spans.components(4)
    keep = total(spans.lengths, labels, count) >= minimum
    if frame is not None:
        touches = (spans.row == frame.row) | (spans.row == frame.bottom - 1)
        touches |= (spans.start == frame.col) | (spans.stop == frame.right)
        keep[labels[touches]] = True
    kept, number = keep[labels], np.cumsum(keep, dtype=np.int32) - 1
    return spans[kept], number[labels[kept]], int(np.count_nonzero(keep))


def drop_small(spans: Spans, minimum: float, *, frame: Window | None = None) -> Spans:
    """The spans of `large_components`."""
    return large_components(spans, minimum, frame=frame)[0]


def holes(spans: Spans, maximum: float, height: int) -> tuple[Spans, Int32Array, int]:
    """Holes of at most `maximum` pixels: 8-connected background that does not reach the frame of the grid.

    Parameters
    ----------
    height
        Number of rows of the grid.

    Returns
    -------
    gaps : spans of the holes
    labels : hole of each gap
    count : number of holes
    """
    gaps = spans.gaps()
    labels, count = gaps.components(8)
    closed = total(gaps.lengths, labels, count) <= maximum
    closed[labels[_open(gaps, spans, height)]] = False
    inside = closed[labels]
    return gaps[inside], (np.cumsum(closed, dtype=np.int32) - 1)[labels[inside]], int(closed.sum())


def _open(gaps: Spans, spans: Spans, height: int) -> BoolArray:
    """Whether a gap touches, in the row above or below, background that reaches the left or right end of the row.

    Together with the first and last row of the grid, these are all exits of a hole: background between the first and
    last span of a row consists of gaps.
    """
    rows, first = np.unique(spans.row, return_index=True)
    left, right = spans.start[first], spans.stop[np.append(first[1:], len(spans))[: len(first)] - 1]
    result: BoolArray = (gaps.row == 0) | (gaps.row == height - 1)
    for row in (gaps.row - 1, gaps.row + 1):
        at = np.minimum(np.searchsorted(rows, row), max(len(rows) - 1, 0))
        result |= (rows[at] != row) | (gaps.start <= left[at]) | (gaps.stop >= right[at])
    return result


def total(values: AnyArray, labels: AnyArray, count: int) -> Int64Array:
    """(count,) exact sums of integers per label."""
    sums = np.zeros(count, np.int64)
    np.add.at(sums, labels, values.astype(np.int64))
    return sums


def largest(values: AnyArray, labels: AnyArray, count: int, least: int = 0) -> Int64Array:
    """(count,) maximum of integers per label; `least` if a label has none."""
    result = np.full(count, least, np.int64)
    np.maximum.at(result, labels, values.astype(np.int64))
    return result


@dataclass(frozen=True)
class Shapes:
    """Bounding boxes and moments of K objects, as exact integers."""

    area: Int64Array
    """(K,) pixels; the moment m00."""
    sum_row: Int64Array
    """(K,) sum of the row of every pixel; the moment m01."""
    sum_col: Int64Array
    """(K,) sum of the column of every pixel; the moment m10."""
    top: Int64Array
    left: Int64Array
    bottom: Int64Array
    """(K,) first row below."""
    right: Int64Array
    """(K,) first column to the right."""
    first: Int64Array
    """(K,) the object's first span in raster order."""

    @classmethod
    def of(cls, spans: Spans, labels: Int32Array, count: int) -> Self:
        """Measure labelled spans (N,); every object from 0 to `count` - 1 must have a span."""
        lengths, row = spans.lengths, spans.row.astype(np.int64)
        # the columns of a span form an arithmetic series
        columns = (spans.start.astype(np.int64) + spans.stop - 1) * lengths // 2
        return cls(
            area=total(lengths, labels, count),
            sum_row=total(row * lengths, labels, count),
            sum_col=total(columns, labels, count),
            top=-largest(-row, labels, count, least=-(1 << 62)),
            left=-largest(-spans.start.astype(np.int64), labels, count, least=-(1 << 62)),
            bottom=largest(row + 1, labels, count),
            right=largest(spans.stop, labels, count),
            first=-largest(-np.arange(len(spans)), labels, count, least=-(1 << 62)),
        )

    @property
    def boxes(self) -> Float64Array:
        """(K, 4) x0, y0, x1, y1, half-open, as in `geolabel.prompts`."""
        return np.stack([self.left, self.top, self.right, self.bottom], axis=1).astype(np.float64)

    @property
    def centroids(self) -> Float64Array:
        """(K, 2) x, y as pixel indices: the means of columns and rows, APSAM eq. 5 and 6 by pixel sums."""
        return np.stack([self.sum_col / self.area, self.sum_row / self.area], axis=1)


def pixel_sums(spans: Spans, window: Window, values: AnyArray) -> tuple[Int64Array, Int64Array]:
    """Sum and maximum of the pixels under each span.

    Parameters
    ----------
    spans
        N spans inside `window`.
    values : (window.height, window.width), integers

    Returns
    -------
    sums, maxima : (N,)
    """
    if not len(spans):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    under = values.reshape(-1)[spans.pixels(window)].astype(np.int64)
    first = np.cumsum(spans.lengths) - spans.lengths
    return np.add.reduceat(under, first), np.maximum.reduceat(under, first)

"""Windows, overlapping tiles, and the blocks that partition a scene.

Plain integer geometry on the working grid. Nothing holds pixels, so the memory of a plan does not depend on the number
of tiles.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np

from geolabel.errors import OptionError, SceneError
from geolabel.types import AnyArray, Int64Array

MAX_PIECES = 1 << 26
"""Maximum tiles or blocks of a run, 10^13 px in tiles of 512 px: beyond, the header is damaged or an area is
missing."""


@dataclass(frozen=True, order=True)
class Window:
    """A half-open rectangle of pixels: rows ``[row, row + height)``, columns ``[col, col + width)``."""

    row: int
    col: int
    height: int
    width: int

    def __str__(self) -> str:
        return f"row {self.row}, col {self.col}, {self.height} x {self.width} px"

    @property
    def bottom(self) -> int:
        """First row below the window."""
        return self.row + self.height

    @property
    def right(self) -> int:
        """First column right of the window."""
        return self.col + self.width

    @property
    def slices(self) -> tuple[slice, slice]:
        """Row and column slices into an array whose first pixel is the grid's."""
        return slice(self.row, self.bottom), slice(self.col, self.right)

    def intersection(self, other: Window) -> Window | None:
        """Return the pixels in both windows, or None when there are none."""
        row, col = max(self.row, other.row), max(self.col, other.col)
        bottom, right = min(self.bottom, other.bottom), min(self.right, other.right)
        if bottom <= row or right <= col:
            return None
        return Window(row, col, bottom - row, right - col)

    def shared(self, other: Window) -> Window:
        """Return the pixels in both windows, which must intersect."""
        both = self.intersection(other)
        assert both is not None
        return both

    def within(self, outer: Window) -> tuple[slice, slice]:
        """Row and column slices of this window into an array that covers exactly `outer`."""
        return (
            slice(self.row - outer.row, self.bottom - outer.row),
            slice(self.col - outer.col, self.right - outer.col),
        )

    def part(self, place: tuple[slice, slice]) -> Window:
        """The window of row and column slices into an array that covers exactly this window; inverse of `within`."""
        rows, cols = place
        return Window(self.row + rows.start, self.col + cols.start, rows.stop - rows.start, cols.stop - cols.start)

    def hull(self, other: Window) -> Window:
        """Return the smallest window that contains both."""
        row, col = min(self.row, other.row), min(self.col, other.col)
        return Window(row, col, max(self.bottom, other.bottom) - row, max(self.right, other.right) - col)

    def grown(self, margin: int) -> Window:
        """Return the window with a margin on all sides."""
        return Window(self.row - margin, self.col - margin, self.height + 2 * margin, self.width + 2 * margin)

    def contains(self, other: Window) -> bool:
        """Whether every pixel of `other` is in this window."""
        return (
            self.row <= other.row
            and self.col <= other.col
            and other.bottom <= self.bottom
            and other.right <= self.right
        )


def tile_starts(length: int, size: int, stride: int) -> tuple[int, ...]:
    """First pixels of the tiles along one axis: 0, stride, ..., the last one moved back to end at the edge.

    An axis shorter than a tile has the single start 0.

    Examples
    --------
    >>> tile_starts(600, 256, 153)
    (0, 153, 306, 344)
    """
    if length <= size:
        return (0,)
    return (*range(0, length - size, stride), length - size)


@dataclass(frozen=True)
class TileGrid:
    """Overlapping square tiles over a grid of `height` x `width` pixels, numbered in raster order.

    Tiles are clipped to a grid smaller than `size`; the caller of a network pads them.

    Raises
    ------
    OptionError
        If `size` is not positive or `overlap` leaves no step between tiles.
    SceneError
        If there are more than `MAX_PIECES` tiles.
    """

    height: int
    width: int
    size: int
    overlap: int

    def __post_init__(self) -> None:
        if self.size < 1:
            raise OptionError(f"tile size {self.size} px: it must be at least 1 px")
        if not 0 <= self.overlap < self.size:
            raise OptionError(
                f"overlap {self.overlap} px does not fit a tile size of {self.size} px: "
                f"give an overlap from 0 to {self.size - 1} px"
            )
        stride = self.size - self.overlap
        _check_count(self.height, self.width, self.size, (-(-self.height // stride)) * (-(-self.width // stride)))

    @cached_property
    def rows(self) -> tuple[int, ...]:
        """First row of each row of tiles."""
        return tile_starts(self.height, self.size, self.size - self.overlap)

    @cached_property
    def cols(self) -> tuple[int, ...]:
        """First column of each column of tiles."""
        return tile_starts(self.width, self.size, self.size - self.overlap)

    def __len__(self) -> int:
        return len(self.rows) * len(self.cols)

    def __getitem__(self, index: int) -> Window:
        if not 0 <= index < len(self):
            raise IndexError(f"tile {index} of {len(self)}")
        i, j = divmod(index, len(self.cols))
        return self._window(i, j)

    def __iter__(self) -> Iterator[Window]:
        return (self[index] for index in range(len(self)))

    def number(self, tile: Window) -> int:
        """Index of one of the tiles; a ValueError for any other window."""
        return self.rows.index(tile.row) * len(self.cols) + self.cols.index(tile.col)

    def _window(self, i: int, j: int) -> Window:
        row, col = self.rows[i], self.cols[j]
        return Window(row, col, min(self.size, self.height - row), min(self.size, self.width - col))

    def covering(self, window: Window) -> list[int]:
        """Ascending indices of the tiles that share a pixel with `window`; empty outside the grid."""
        window = window.intersection(Window(0, 0, self.height, self.width)) or Window(0, 0, 0, 0)
        lines = self._reaching(self.rows, window.row, window.bottom)
        files = self._reaching(self.cols, window.col, window.right)
        return [i * len(self.cols) + j for i in lines for j in files]

    def _reaching(self, starts: tuple[int, ...], first: int, last: int) -> range:
        # Tiles along an axis that share a pixel with [first, last).
        return range(bisect_right(starts, first - self.size), bisect_left(starts, last))

    def patches(self, window: Window) -> Iterator[tuple[Window, list[int]]]:
        """Split `window` wherever a tile starts or ends: its parts, and the tiles that cover each part completely.

        Parameters
        ----------
        window
            Inside the grid.
        """
        across = [
            (col, right - col, self._reaching(self.cols, col, right))
            for col, right in pairwise(self._cuts(self.cols, window.col, window.right))
        ]
        for row, bottom in pairwise(self._cuts(self.rows, window.row, window.bottom)):
            lines = self._reaching(self.rows, row, bottom)
            for col, width, files in across:
                yield Window(row, col, bottom - row, width), [i * len(self.cols) + j for i in lines for j in files]

    def _cuts(self, starts: tuple[int, ...], first: int, last: int) -> list[int]:
        near = (starts[k] for k in self._reaching(starts, first, last))
        ends = {end for start in near for end in (start, start + self.size) if first < end < last}
        return sorted({first, last} | ends)

    def core(self, index: int) -> Window:
        """The pixels nearer to the centre of this tile than to any other's; cores partition the grid."""
        i, j = divmod(index, len(self.cols))
        top, bottom = _core(self.rows, i, self.size, self.height)
        left, right = _core(self.cols, j, self.size, self.width)
        return Window(top, left, bottom - top, right - left)

    def nearest(self, row: float, col: float) -> int:
        """Index of the tile whose centre is nearest to a point (pixel edges at integers); ties to the lower index."""
        half_h, half_w = min(self.size, self.height) / 2, min(self.size, self.width) / 2
        return _closest(self.rows, row - half_h) * len(self.cols) + _closest(self.cols, col - half_w)


def _closest(starts: tuple[int, ...], place: float) -> int:
    after = bisect_left(starts, place)
    return min(range(max(0, after - 1), min(len(starts), after + 1)), key=lambda k: (abs(starts[k] - place), k))


def _core(starts: tuple[int, ...], i: int, size: int, length: int) -> tuple[int, int]:
    first = 0 if i == 0 else (starts[i - 1] + starts[i] + size) // 2
    last = length if i == len(starts) - 1 else (starts[i] + starts[i + 1] + size) // 2
    return first, last


@dataclass(frozen=True)
class BlockGrid:
    """Blocks that partition a grid, numbered in raster order; the last ones may be smaller."""

    height: int
    width: int
    size: int

    def __post_init__(self) -> None:
        if self.size < 1:
            raise OptionError(f"block size {self.size} px: it must be at least 1 px")
        _check_count(self.height, self.width, self.size, self.shape[0] * self.shape[1])

    @property
    def shape(self) -> tuple[int, int]:
        """Number of blocks down and across."""
        return -(-self.height // self.size), -(-self.width // self.size)

    def __len__(self) -> int:
        return self.shape[0] * self.shape[1]

    def __getitem__(self, index: int) -> Window:
        if not 0 <= index < len(self):
            raise IndexError(f"block {index} of {len(self)}")
        i, j = divmod(index, self.shape[1])
        row, col = i * self.size, j * self.size
        return Window(row, col, min(self.size, self.height - row), min(self.size, self.width - col))

    def __iter__(self) -> Iterator[Window]:
        return (self[index] for index in range(len(self)))

    def covering(self, window: Window) -> list[int]:
        """Ascending indices of the blocks that share a pixel with `window`; empty outside the grid."""
        window = window.intersection(Window(0, 0, self.height, self.width)) or Window(0, 0, 0, 0)
        top, left = window.row // self.size, window.col // self.size
        bottom, right = (window.bottom - 1) // self.size, (window.right - 1) // self.size
        return [i * self.shape[1] + j for i in range(top, bottom + 1) for j in range(left, right + 1)]


def _check_count(height: int, width: int, size: int, count: int) -> None:
    # Checked before anything is listed: a small header may claim 2^31 x 2^31 px.
    if count > MAX_PIECES:
        raise SceneError(
            f"{height} x {width} px make {count} pieces of {size} px; the limit of a run is {MAX_PIECES}: "
            "work on a part (--bounds or --aoi) or in larger pieces; if the scene is smaller, its header is damaged"
        )


def window_around(row: float, col: float, size: int, height: int, width: int) -> Window:
    """A window of `size` px a side centred on a point, moved inside the grid and clipped to a smaller grid."""
    h, w = min(size, height), min(size, width)
    top = min(max(round(row - h / 2), 0), height - h)
    left = min(max(round(col - w / 2), 0), width - w)
    return Window(top, left, h, w)


def strips(windows: Iterable[Window], most: int) -> Iterator[tuple[Window, list[Window]]]:
    """Group up to `most` consecutive windows of the same rows, each touching or overlapping the one to its left.

    Yields the window that they cover together, and its members.
    """
    members: list[Window] = []
    for window in windows:
        last = members[-1] if members else None
        beside = last is not None and (last.row, last.height) == (window.row, window.height)
        if last is None or len(members) == most or not (beside and last.col <= window.col <= last.right):
            if last is not None:
                yield members[0].hull(last), members
            members = []
        members.append(window)
    if members:
        yield members[0].hull(members[-1]), members


def mirrored(first: int, end: int, length: int) -> Int64Array:
    """Indices ``first`` to ``end`` along a side that is mirrored repeatedly at both ends."""
    at = np.arange(first, end) % (2 * length)
    inside: Int64Array = np.minimum(at, 2 * length - 1 - at)
    return inside


def extent(values: AnyArray) -> tuple[slice, slice] | None:
    """Range of rows and columns with non-zero values of (H, W); None if all are 0."""
    rows = np.flatnonzero(values.any(axis=1))
    if not len(rows):
        return None
    tall = slice(int(rows[0]), int(rows[-1]) + 1)
    cols = np.flatnonzero(values[tall].any(axis=0))
    return tall, slice(int(cols[0]), int(cols[-1]) + 1)

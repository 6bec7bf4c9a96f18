"""Match masks of one object across tiles.

Tiles overlap, so an object near a seam is seen by two or more of them: whole by one, in parts by all where it is longer
than the overlap. Masks of two tiles are compared where both tiles see, and paired when they agree there. Pairs make
groups, by union-find; a group is one object. Masks that only touch are not joined.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from geolabel.seams import Spans
from geolabel.tiles import TileGrid, Window
from geolabel.types import BoolArray, Float32Array, Float64Array, Int32Array, Int64Array


@dataclass(frozen=True)
class Part:
    """What one tile sees of an object."""

    window: Window
    """Of the grid."""
    mask: BoolArray
    """(window.height, window.width), its first and last row and column not empty."""


def agreements(
    first: Sequence[Part], second: Sequence[Part], shared: Window, minimum: float
) -> tuple[Int64Array, Float64Array]:
    """Pair the parts of two tiles whose IoU inside the window that both see is `minimum` or more.

    A part belongs to at most one pair: each of the two is the other's best, ties to the lower index. What does not
    reach into the window has no pair.

    Returns
    -------
    pairs : (P, 2) indices into `first` and `second`
    iou : (P,)
    """
    a, b = _flat(first, shared), _flat(second, shared)
    if not len(a) or not len(b):
        return np.zeros((0, 2), np.int64), np.zeros(0)
    both = (a @ b.T).astype(np.float64)
    either = a.sum(axis=1, dtype=np.float64)[:, None] + b.sum(axis=1, dtype=np.float64) - both
    iou = np.divide(both, either, out=np.zeros_like(both), where=either > 0)
    rows = np.arange(len(a))
    best = iou.argmax(axis=1)
    mutual = (iou.argmax(axis=0)[best] == rows) & (iou[rows, best] >= minimum)
    pairs = np.stack([rows[mutual], best[mutual]], axis=1).astype(np.int64)
    return pairs, iou[pairs[:, 0], pairs[:, 1]]


def _flat(parts: Sequence[Part], shared: Window) -> Float32Array:
    # (n, pixels of the window); products of ones and zeros count pixels exactly up to 2**24
    flat = np.zeros((len(parts), shared.height, shared.width), np.float32)
    for image, part in zip(flat, parts, strict=True):
        common = part.window.intersection(shared)
        if common is not None:
            image[common.within(shared)] = part.mask[common.within(part.window)]
    return flat.reshape(len(parts), shared.height * shared.width)


def is_cut(part: Part, tile: Window, grid: Window) -> bool:
    """Whether a part reaches a side of its tile that is no side of the grid: the object may continue beyond."""
    window = part.window
    return (
        (window.row == tile.row > grid.row)
        or (window.col == tile.col > grid.col)
        or (window.bottom == tile.bottom < grid.bottom)
        or (window.right == tile.right < grid.right)
    )


def representative_point(part: Part) -> tuple[int, int]:
    """Row and column, on the grid, of the pixel of a mask that is nearest to its centroid."""
    rows, cols = np.nonzero(part.mask)
    nearest = int(np.argmin((rows - rows.mean()) ** 2 + (cols - cols.mean()) ** 2))
    return part.window.row + int(rows[nearest]), part.window.col + int(cols[nearest])


@dataclass(frozen=True)
class Sightings:
    """M parts of all tiles, as small numbers."""

    tile: Int64Array
    """(M,) tile that saw it."""
    window: Int64Array
    """(M, 4) row, col, height, width."""
    cut: BoolArray
    """(M,) see `is_cut`."""
    point: Int64Array
    """(M, 2) see `representative_point`."""
    quality: Float64Array
    """(M,) how good the mask is."""

    def __len__(self) -> int:
        return len(self.tile)


def identify(seen: Sightings, pairs: Int64Array, iou: Float64Array) -> Int32Array:
    """Put parts of one object into one group, the surest pairs first.

    Two parts of one tile are joined only where each is cut off and they lie apart, as the arms of a bow are: whatever
    else a tile tells apart stays apart, however the other tiles see it.

    Returns
    -------
    (M,) number of each part's group, from 0 in the order of the parts
    """
    parent = np.arange(len(seen))
    members: dict[int, list[int]] = {k: [k] for k in range(len(seen))}
    for k in np.lexsort((pairs[:, 1], pairs[:, 0], -iou)):
        a, b = sorted((_root(parent, int(pairs[k, 0])), _root(parent, int(pairs[k, 1]))))
        if a != b and not any(_apart(seen, x, y) for x in members[a] for y in members[b]):
            parent[b] = a
            members[a] += members.pop(b)
    roots = np.asarray([_root(parent, k) for k in range(len(seen))], np.int64)
    return np.unique(roots, return_inverse=True)[1].astype(np.int32)  # a root is the first of its group


def _root(parent: Int64Array, k: int) -> int:
    while parent[k] != k:
        parent[k] = parent[parent[k]]
        k = int(parent[k])
    return k


def _apart(seen: Sightings, x: int, y: int) -> bool:
    # whether one tile holds two parts for different objects
    if seen.tile[x] != seen.tile[y]:
        return False
    if not (seen.cut[x] and seen.cut[y]):
        return True
    return Window(*seen.window[x].tolist()).intersection(Window(*seen.window[y].tolist())) is not None


def choose(seen: Sightings, groups: Int32Array, tiles: TileGrid) -> list[list[int]]:
    """Say which parts each object is made of; an object without parts here is left out.

    An object that some tile sees whole is taken from one tile alone: the one that owns it, by its representative point
    in the core of the tile, else that of the best quality. An object that no tile sees whole is the union of its parts.
    A part that no other tile agrees with counts only in the tile that owns it, so nothing is found twice.
    """
    cores = {tile: tiles.core(tile) for tile in np.unique(seen.tile).tolist()}
    owned = [_inside(point, cores[tile]) for point, tile in zip(seen.point, seen.tile.tolist(), strict=True)]
    order = np.argsort(groups, kind="stable")
    starts = np.flatnonzero(np.diff(groups[order], prepend=-1))
    chosen = []
    for group in np.split(order, starts[1:]) if len(order) else []:
        whole = [k for k in group.tolist() if not seen.cut[k]]
        if len(group) == 1:
            chosen.append(group.tolist() if owned[group[0]] else [])
        elif whole:
            chosen.append([min(whole, key=lambda k: (not owned[k], -seen.quality[k], k))])
        else:
            chosen.append(group.tolist())
    return [parts for parts in chosen if parts]


def _inside(point: Int64Array, core: Window) -> bool:
    row, col = point.tolist()
    return bool(core.row <= row < core.bottom and core.col <= col < core.right)


def unite(parts: Sequence[Spans]) -> Spans:
    """The union of spans that may overlap each other."""
    row, start, stop = (np.concatenate([getattr(part, name) for part in parts]) for name in ("row", "start", "stop"))
    if not len(row):
        return Spans.empty()
    order = np.lexsort((start, row))
    row, start, stop = row[order], start[order], stop[order]
    pitch = int(stop.max()) + 1
    base = row.astype(np.int64) * pitch
    reached = np.maximum.accumulate(base + stop)
    new = np.append(True, (base + start)[1:] > reached[:-1])
    last = np.append(np.flatnonzero(new)[1:] - 1, len(row) - 1)
    return Spans(row[new], start[new], (reached[last] - base[last]).astype(np.int32))

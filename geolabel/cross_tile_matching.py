"""Match masks of the same object across tiles.

Tiles overlap, so two or more of them see an object near a seam: one sees it whole, or, if it is longer than the
overlap, each sees a part. Masks of two tiles are compared in the area that both see, and paired if they agree there.
Pairs are grouped with union-find; a group is one object. Masks that only touch are not joined.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from geolabel.spans import Spans
from geolabel.tiles import TileGrid, Window
from geolabel.types import BoolArray, Float32Array, Float64Array, Int32Array, Int64Array


@dataclass(frozen=True)
class Part:
    """The part of an object that one tile sees."""

    window: Window
    """Window on the grid."""
    mask: BoolArray
    """(window.height, window.width); first and last row and column are not empty."""


def agreements(
    first: Sequence[Part], second: Sequence[Part], shared: Window, minimum: float
) -> tuple[Int64Array, Float64Array]:
    """Pair the parts of two tiles whose IoU in the window that both tiles see is at least `minimum`.

    A part is in at most one pair: each of the two is the other's best match, ties to the lower index. Parts outside the
    window have no pair.

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
    # (n, pixels of the window); products of zeros and ones count pixels exactly up to 2**24
    flat = np.zeros((len(parts), shared.height, shared.width), np.float32)
    for image, part in zip(flat, parts, strict=True):
        common = part.window.intersection(shared)
        if common is not None:
            image[common.within(shared)] = part.mask[common.within(part.window)]
    return flat.reshape(len(parts), shared.height * shared.width)


def is_cut(part: Part, tile: Window, grid: Window) -> bool:
    """Whether a part touches a side of its tile that is not a side of the grid: the object may continue beyond."""
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
    """M parts of all tiles, in compact form."""

    tile: Int64Array
    """(M,) number of the tile."""
    window: Int64Array
    """(M, 4) row, col, height, width."""
    cut: BoolArray
    """(M,) see `is_cut`."""
    point: Int64Array
    """(M, 2) see `representative_point`."""
    quality: Float64Array
    """(M,) quality of the mask."""

    def __len__(self) -> int:
        return len(self.tile)


def identify(seen: Sightings, pairs: Int64Array, iou: Float64Array) -> Int32Array:
    """Group the parts of each object, the best pairs first.

    Two parts of one tile are joined only if both are cut off and apart, such as the arms of a bow. Other parts that a
    tile separates stay separate, however other tiles see them.

    Returns
    -------
    (M,) group number of each part, from 0 in the order of the parts
    """
    parent = np.arange(len(seen))
    members: dict[int, list[int]] = {k: [k] for k in range(len(seen))}
    for k in np.lexsort((pairs[:, 1], pairs[:, 0], -iou)):
        a, b = sorted((_root(parent, int(pairs[k, 0])), _root(parent, int(pairs[k, 1]))))
        if a != b and not any(_apart(seen, x, y) for x in members[a] for y in members[b]):
            parent[b] = a
            members[a] += members.pop(b)
    roots = np.asarray([_root(parent, k) for k in range(len(seen))], np.int64)
    return np.unique(roots, return_inverse=True)[1].astype(np.int32)  # the root of a group is its first part


def _root(parent: Int64Array, k: int) -> int:
    while parent[k] != k:
        parent[k] = parent[parent[k]]
        k = int(parent[k])
    return k


def _apart(seen: Sightings, x: int, y: int) -> bool:
    # whether one tile has two parts for different objects
    if seen.tile[x] != seen.tile[y]:
        return False
    if not (seen.cut[x] and seen.cut[y]):
        return True
    return Window(*seen.window[x].tolist()).intersection(Window(*seen.window[y].tolist())) is not None


def choose(seen: Sightings, groups: Int32Array, tiles: TileGrid) -> list[list[int]]:
    """Select the parts that each object is made of; objects without parts here are omitted.

    An object that some tile sees whole is taken from one tile: the one that has its representative point in its core,
    otherwise the one with the best quality. Any other object is the union of its parts. A part without a match in other
    tiles is used only if its tile's core has its point, so nothing is found twice.
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
    """The union of possibly overlapping spans."""
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

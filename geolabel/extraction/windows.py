"""Which window the segmenter sees each prompt in: one window per prompt."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace

import numpy as np

from geolabel.prompts import PADDING, Prompts
from geolabel.tiles import TileGrid, Window, window_around
from geolabel.types import BoolArray

MARGIN = 1 / 16
"""Room, as a share of the tile, that a box keeps from the frame of the tile it is segmented in."""


@dataclass(frozen=True)
class PromptedWindow:
    """A window of the scene and the prompts that the segmenter answers in it."""

    window: Window
    prompts: Prompts
    """In pixels of the working grid, not of the window."""


def oversized(prompts: Prompts, tiles: TileGrid) -> BoolArray:
    """(K,) whether an object is larger than a tile, so that no single window can show it."""
    extents = prompts.extents
    height, width = min(tiles.size, tiles.height), min(tiles.size, tiles.width)
    return np.asarray((extents[:, 2] - extents[:, 0] > width) | (extents[:, 3] - extents[:, 1] > height))


def assign(prompts: Prompts, tiles: TileGrid) -> list[PromptedWindow]:
    """Give every prompt the tile whose centre is nearest to its own, or a window of its own where it does not fit.

    A prompt fits when its box with a margin lies inside the tile; the margin ends at the frame of the scene. No prompt
    may be larger than a tile (see `oversized`). Windows come in raster order, prompts in the order given.
    """
    margin = tiles.size * MARGIN
    groups: dict[Window, list[int]] = defaultdict(list)
    for k, (x0, y0, x1, y1) in enumerate(prompts.extents):
        row, col = (y0 + y1) / 2, (x0 + x1) / 2
        tile = tiles[tiles.nearest(row, col)]
        fits = (
            tile.col <= max(x0 - margin, 0)
            and tile.row <= max(y0 - margin, 0)
            and tile.right >= min(x1 + margin, tiles.width)
            and tile.bottom >= min(y1 + margin, tiles.height)
        )
        window = tile if fits else window_around(row, col, tiles.size, tiles.height, tiles.width)
        groups[window].append(k)
    return [PromptedWindow(window, prompts[np.asarray(groups[window])]) for window in sorted(groups)]


def clip_to_tiles(prompts: Prompts, tiles: TileGrid) -> Prompts:
    """Replace each object by its part in every tile whose core it reaches: the box cut to the tile, the points inside.

    For objects larger than a tile of which only the outline is known, such as a box that a person drew. The parts
    keep the id of the object.
    """
    parts = [
        _clip(prompts[k : k + 1], tiles, index) for k in range(len(prompts)) for index in _touched(prompts, k, tiles)
    ]
    return Prompts.concatenate(parts)


def _touched(prompts: Prompts, k: int, tiles: TileGrid) -> list[int]:
    x0, y0, x1, y1 = prompts.extents[k]
    box = Window(int(y0), int(x0), max(1, round(y1) - int(y0)), max(1, round(x1) - int(x0)))
    return [index for index in tiles.covering(box) if tiles.core(index).intersection(box)]


def _clip(one: Prompts, tiles: TileGrid, index: int) -> Prompts:
    tile = tiles[index]
    low, high = [tile.col, tile.row], [tile.right, tile.bottom]
    boxes = np.concatenate([np.maximum(one.boxes[:, :2], low), np.minimum(one.boxes[:, 2:], high)], axis=1)
    inside = ((one.points >= low) & (one.points < high)).all(axis=2)
    if np.isnan(boxes).any() and not inside.any():
        return one[:0]
    return replace(one, boxes=boxes, labels=np.where(inside, one.labels, np.int8(PADDING)))

"""What the first pass left, read back window by window: activation, class probability, and which pixels are valid.

Tiles are blended where they are read, so what a window holds depends on no other window.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial, reduce
from typing import TypeAlias

import numpy as np

from geolabel import mosaic
from geolabel.activation import LEVELS, Enlarged
from geolabel.extraction.plan import Run
from geolabel.io.records import Store
from geolabel.tiles import Window, extent
from geolabel.types import AnyArray, BoolArray, UInt8Array

Tiles: TypeAlias = list[tuple[Window, Enlarged]]
"""Tiles and their activations."""


@dataclass(frozen=True)
class TileMaps:
    """What the first pass left of one tile."""

    window: Window
    activation: Enlarged | None
    """Of the size of the tile; None where the tile went to no network."""
    probability: UInt8Array | None
    """At the network's stride."""
    stride: int
    bits: UInt8Array | None
    """Which pixels are valid, eight to a byte along a row; None where every pixel is."""

    @property
    def valid(self) -> BoolArray | None:
        """(h, w), or None where every pixel is valid."""
        return None if self.bits is None else np.unpackbits(self.bits, axis=-1, count=self.window.width).astype(bool)


@lru_cache(maxsize=64)
def _localize_record(store: Store, task: int, class_id: int) -> Mapping[str, AnyArray]:
    maps = (f"activation_{class_id}", f"probability_{class_id}")
    return store.read("localize", task, "seen", *maps, "stride", "valid", "whole")


def forget() -> None:
    """Let go of the records that this process keeps in memory."""
    _localize_record.cache_clear()


def tile_maps(run: Run, window: Window, class_id: int = 0) -> dict[int, TileMaps]:
    """What the first pass left of every tile that shares a pixel with `window`, by the number of the tile."""
    return {index: _tile_maps(run, index, class_id) for index in run.plan.localize_tiles.covering(window)}


def _tile_maps(run: Run, index: int, class_id: int) -> TileMaps:
    task, k = divmod(index, run.plan.task_tiles)
    record = _localize_record(run.store, task, class_id)
    at = int(np.searchsorted(record["seen"], k))
    seen = at < len(record["seen"]) and record["seen"][at] == k
    return TileMaps(
        window=run.plan.localize_tiles[index],
        activation=Enlarged(record[f"activation_{class_id}"][at], int(record["stride"])) if seen else None,
        probability=record[f"probability_{class_id}"][at] if seen else None,
        stride=int(record["stride"]),
        bits=None if record["whole"][k] else record["valid"][k],
    )


def blend_activation(
    run: Run, window: Window, class_id: int, wanted: Callable[[Window, Tiles], Window | None]
) -> UInt8Array:
    """(H, W) grey values 0..255 of the activation of a class, blended over the tiles that cover a window.

    A tile that went to no network has no vote on what its neighbours saw.

    Parameters
    ----------
    class_id
        Index into the classes of the plan.
    wanted
        The part that matters of a patch, which these tiles cover, or None; elsewhere the values are 0.
    """
    maps = tile_maps(run, window, class_id)
    grey = np.zeros((window.height, window.width), np.uint8)
    for patch, indices in run.plan.localize_tiles.patches(window):
        tiles = [(maps[i].window, values) for i in indices if (values := maps[i].activation) is not None]
        part = wanted(patch, tiles)
        if part is not None:
            grey[part.within(window)] = mosaic.blend(part, tiles)
    return grey


def reach(level: int, patch: Window, tiles: Tiles) -> Window | None:
    """Where in a patch the blend, an average of the tiles, may exceed a level."""
    parts = [(tile, values.reach(level, patch.within(tile))) for tile, values in tiles]
    windows = [tile.part(place) for tile, place in parts if place is not None]
    return reduce(Window.hull, windows) if windows else None


def validity(run: Run, window: Window) -> BoolArray | None:
    """(H, W) which pixels of a window any tile found valid; None when all are."""
    tiles = list(tile_maps(run, window).values())
    if all(maps.bits is None for maps in tiles):
        return None
    valid = np.zeros((window.height, window.width), bool)
    for maps in tiles:
        shared = maps.window.shared(window)
        own = maps.valid
        valid[shared.within(window)] |= True if own is None else own[shared.within(maps.window)]
    return valid


def class_probability(run: Run, window: Window, class_id: int, wanted: BoolArray) -> UInt8Array:
    """(H, W) 0..255, the largest probability that any tile gives a class around each wanted pixel of a window."""
    maps = tile_maps(run, window, class_id)
    best = np.zeros((window.height, window.width), np.uint8)
    for patch, indices in run.plan.localize_tiles.patches(window):
        place = extent(wanted[patch.within(window)])
        if place is None:
            continue
        part = patch.part(place)
        into = best[part.within(window)]
        for tile in (maps[index] for index in indices):
            if tile.probability is not None:
                rows, cols = (np.arange(at.start, at.stop) // tile.stride for at in part.within(tile.window))
                np.maximum(into, tile.probability[:, cols][rows], out=into)
    return best


def likely_activation(run: Run, window: Window, class_id: int, gate: float) -> UInt8Array:
    """(H, W) blended activation of a class in a window, and 0 where the class is less probable around than `gate`."""
    grey = blend_activation(run, window, class_id, partial(reach, 0))
    likely = class_probability(run, window, class_id, grey > 0) >= gate * LEVELS
    return np.where(likely, grey, np.uint8(0))

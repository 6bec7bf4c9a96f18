"""Results of the first pass, read window by window: activation, class probability, and validity.

Tiles are blended when they are read, so a window does not depend on other windows.
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
    """Results of the first pass for one tile."""

    window: Window
    activation: Enlarged | None
    """At the size of the tile; None if no network saw the tile."""
    probability: UInt8Array | None
    """At the network's stride."""
    stride: int
    bits: UInt8Array | None
    """Valid pixels as bits, packed along rows; None if all are valid."""

    @property
    def valid(self) -> BoolArray | None:
        """(h, w), or None if every pixel is valid."""
        return None if self.bits is None else np.unpackbits(self.bits, axis=-1, count=self.window.width).astype(bool)


@lru_cache(maxsize=64)
def _localize_record(store: Store, task: int, class_id: int) -> Mapping[str, AnyArray]:
    maps = (f"activation_{class_id}", f"probability_{class_id}")
    return store.read("localize", task, "seen", *maps, "stride", "valid", "whole")


def forget() -> None:
    """Drop cached records."""
    _localize_record.cache_clear()


def tile_maps(run: Run, window: Window, class_id: int = 0) -> dict[int, TileMaps]:
    """Results of the first pass for every tile that shares a pixel with `window`, by tile number."""
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

    A tile that no network saw is ignored.

    Parameters
    ----------
    class_id
        Index into the classes of the plan.
    wanted
        Needed part of a patch that these tiles cover, or None; elsewhere values are 0.
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
    """(H, W) pixels of a window that are valid in any tile; None if all are."""
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
    """(H, W) 0..255, maximum probability of a class in any tile around each wanted pixel of a window."""
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
    """(H, W) blended activation of a class in a window; 0 where the class is less probable than `gate`."""
    grey = blend_activation(run, window, class_id, partial(reach, 0))
    likely = class_probability(run, window, class_id, grey > 0) >= gate * LEVELS
    return np.where(likely, grey, np.uint8(0))

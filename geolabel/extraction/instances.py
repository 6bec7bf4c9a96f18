"""Passes that turn the masks of all tiles into objects with one identity each. Workers run these functions.

They read the records that the segmentation of a scene left, one per task of tiles; what travels is small.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import shapely

from geolabel import polygons
from geolabel.cross_tile_matching import Part, agreements, is_cut, representative_point, unite
from geolabel.engine.tasks import Pass
from geolabel.extraction.plan import Run
from geolabel.io.store import Store
from geolabel.masks import EDGE
from geolabel.seams import Spans, drop_small
from geolabel.tiles import Window
from geolabel.types import AnyArray, Float64Array, Int64Array


@dataclass(frozen=True)
class Places:
    """Where the masks of one tile are stored: a record and their positions in it."""

    task: int
    positions: tuple[int, ...]
    first: int
    """Number, in the run, of the first of them; the others follow."""

    @property
    def numbers(self) -> range:
        """Numbers of the masks in the run."""
        return range(self.first, self.first + len(self.positions))


@dataclass(frozen=True)
class Seam:
    """Two tiles that overlap."""

    shared: Window
    first: Places
    second: Places


def look(run: Run, job: tuple[Window, Places]) -> list[tuple[bool, int, int, int]]:
    """Of every mask of a tile: whether it is cut off, row and column of its representative point, and its pixels."""
    tile, places = job
    parts = read_parts(run.store, places)
    return [(is_cut(part, tile, run.plan.grid.window), *representative_point(part), int(part.mask.sum()))
            if part.mask.any() else (False, -1, -1, 0) for part in parts]  # fmt: skip


def _where_tile(_: Run, job: tuple[Window, Places]) -> str:
    return f"{job[0]}"


LOOK = Pass("look", look, list[tuple[bool, int, int, int]], _where_tile)


def compare(run: Run, job: tuple[float, Seam]) -> tuple[Int64Array, Float64Array]:
    """Pairs of masks, as numbers of the run, that agree where two tiles overlap; and how well."""
    least, seam = job
    near = [_near(run.store, places, seam.shared) for places in (seam.first, seam.second)]
    (first, a), (second, b) = near
    pairs, iou = agreements(a, b, seam.shared, least)
    return np.stack([first[pairs[:, 0]], second[pairs[:, 1]]], axis=1), iou


def _where_seam(_: Run, job: tuple[float, Seam]) -> str:
    return f"{job[1].shared}"


MATCH = Pass("match", compare, tuple[Int64Array, Float64Array], _where_seam)


def _near(store: Store, places: Places, shared: Window) -> tuple[Int64Array, list[Part]]:
    found = [
        (number, part)
        for number, part in zip(places.numbers, read_parts(store, places), strict=True)
        if part.window.intersection(shared)
    ]
    return np.asarray([number for number, _ in found], np.int64), [part for _, part in found]


def outline(run: Run, objects: list[list[Places]]) -> list[tuple[Any, int] | None]:
    """Multipolygon and first pixel (row x width + column) of objects; None for those that are too small."""
    plan = run.plan
    gsd = plan.grid.gsd
    least = plan.parameters.min_area.pixels(gsd)
    found: list[tuple[Any, int] | None] = []
    for places in objects:
        spans = unite([_spans(part) for one in places for part in read_parts(run.store, one)])
        spans = drop_small(spans, least) if least > 1 else spans
        if not len(spans):
            found.append(None)
            continue
        labels, count = spans.components(4)
        shapes = polygons.outlines(
            spans,
            labels,
            count,
            plan.grid.transform,
            tolerance=plan.parameters.simplify.pixels(gsd),
            reach=plan.parameters.smooth.pixels(gsd),
        )
        found.append(
            (polygons.multipolygons(_together(shapes))[0], int(spans.row[0]) * plan.grid.width + int(spans.start[0]))
        )
    return found


def _where_objects(_: Run, objects: list[list[Places]]) -> str:
    return f"{len(objects)} objects, from mask {objects[0][0].first} on"


OUTLINE = Pass("outline", outline, list[tuple[Any, int] | None], _where_objects)


def _together(shapes: polygons.Geometries) -> polygons.Geometries:
    together: polygons.Geometries = np.array([shapely.multipolygons(shapely.get_parts(shapes))])
    return together


def _spans(part: Part) -> Spans:
    return Spans.of_mask(part.mask, part.window)


@lru_cache(maxsize=8)
def _record(store: Store, task: int) -> tuple[Int64Array, Int64Array, AnyArray]:
    record: Mapping[str, AnyArray] = store.read("segment", task)
    windows = record["windows"]
    return windows, np.concatenate([[0], np.cumsum(windows[:, 2] * windows[:, 3])]), record["scores"]


def read_parts(store: Store, places: Places) -> list[Part]:
    """The masks of a tile, each within the smallest window that holds it."""
    windows, offsets, scores = _record(store, places.task)
    return [_part(windows[k], scores[offsets[k] : offsets[k + 1]] >= EDGE) for k in places.positions]


def _part(window: Int64Array, flat: AnyArray) -> Part:
    row, col, height, width = window.tolist()
    mask = flat.reshape(height, width)
    rows, cols = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return Part(Window(row, col, 0, 0), mask[:0, :0])
    top, left, bottom, right = rows[0], cols[0], rows[-1] + 1, cols[-1] + 1
    return Part(Window(row + int(top), col + int(left), int(bottom - top), int(right - left)),
                mask[top:bottom, left:right])  # fmt: skip


def forget() -> None:
    """Let go of the records that this process keeps in memory."""
    _record.cache_clear()


def batches(items: Iterable[Any], size: int) -> list[list[Any]]:
    """Lists of up to `size` items, in order."""
    every = list(items)
    return [every[start : start + size] for start in range(0, len(every), size)]

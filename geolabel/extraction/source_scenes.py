"""Which scenes of a scene mosaic each landslide was seen in."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from geolabel.engine.tasks import Pass
from geolabel.extraction.plan import Run
from geolabel.io.read.scene_mosaic import NO_SCENE, SceneMosaic, common_date, scene_mosaic_of
from geolabel.resampling import axes
from geolabel.seams import Spans
from geolabel.tiles import Window
from geolabel.types import Int32Array, Int64Array

if TYPE_CHECKING:
    from geolabel.extraction.vectorize import Objects
    from geolabel.extraction.work import Work


def seen_in(work: Work, objects: Objects) -> list[tuple[str, str | None]] | None:
    """Source and date of each object: the scenes that show in its pixels, the first on top; None for a single scene.

    A date is only given where all of these scenes have it.
    """
    run = work.run
    scene_mosaic = scene_mosaic_of(run.plan.reader)
    if scene_mosaic is None:
        return None
    jobs = [
        (window, spans, objects.labels[index])
        for window in run.plan.blocks
        for spans, index in [objects.spans.clip(window)]
        if len(spans)
    ]
    pairs = np.unique(np.concatenate([np.zeros((0, 2), np.int64), *work.apply(SCENES_UNDER.bind(run), jobs)]), axis=0)
    numbers_of = np.split(pairs[:, 1], np.searchsorted(pairs[:, 0], np.arange(1, objects.count)))
    return [_told(scene_mosaic, numbers.tolist()) for numbers in numbers_of[: objects.count]]


def _told(scene_mosaic: SceneMosaic, numbers: list[int]) -> tuple[str, str | None]:
    seen = [scene_mosaic.layers[number] for number in numbers]
    return sources([layer.name for layer in seen]), common_date([layer.event_date for layer in seen])


def sources(names: Iterable[str]) -> str:
    """The scenes of a landslide as the inventory has them: a list in JSON."""
    return json.dumps(list(names), ensure_ascii=False)


def scenes_under(run: Run, job: tuple[Window, Spans, Int32Array]) -> Int64Array:
    """(N, 2) pairs of object and scene, for the spans of objects in a block.

    Only where the grids of several scenes meet under a span are pixels read.
    """
    window, spans, labels = job
    scene_mosaic, grid = scene_mosaic_of(run.plan.reader), run.plan.grid
    assert scene_mosaic is not None
    touched = np.zeros(len(spans), np.int64)
    only = np.zeros(len(spans), np.int64)
    for number, footprint in _footprints(run, scene_mosaic, window):
        _, index = spans.clip(footprint)
        touched[index] += 1
        only[index] = number
    clear = touched == 1
    pairs = [np.column_stack([labels[clear], only[clear]])]
    some, theirs = spans[~clear], labels[~clear]
    if len(some):
        top, bottom = int(some.row.min()), int(some.row.max()) + 1
        left, right = int(some.start.min()), int(some.stop.max())
        place = Window(top, left, bottom - top, right - left)
        shown = scene_mosaic.scene_numbers_on(grid, place).reshape(-1)[some.pixels(place)]
        pairs.append(np.column_stack([np.repeat(theirs, some.lengths), shown]))
    found = np.concatenate(pairs).astype(np.int64)
    unique: Int64Array = np.unique(found[found[:, 1] != NO_SCENE], axis=0)
    return unique


SCENES_UNDER = Pass("scenes-under", scenes_under, Int64Array)


def _footprints(run: Run, scene_mosaic: SceneMosaic, window: Window) -> list[tuple[int, Window]]:
    """Where the scenes that may lie under a window are on the working grid, rounded outward."""
    tall, wide = axes(scene_mosaic.grid, run.plan.grid)
    top, bottom = (tall.offset + edge * tall.scale for edge in (window.row, window.bottom))
    left, right = (wide.offset + edge * wide.scale for edge in (window.col, window.right))
    places = []
    for number in scene_mosaic.meeting(_outward(top, left, bottom, right)).tolist():
        place = scene_mosaic.layers[number].window
        row, end = ((edge - tall.offset) / tall.scale for edge in (place.row, place.bottom))
        col, last = ((edge - wide.offset) / wide.scale for edge in (place.col, place.right))
        places.append((number, _outward(row, col, end, last)))
    return places


def _outward(top: Fraction, left: Fraction, bottom: Fraction, right: Fraction) -> Window:
    row, col = math.floor(top), math.floor(left)
    return Window(row, col, math.ceil(bottom) - row, math.ceil(right) - col)

"""What a run knows of its polygons beside their shape: source scenes, dates, confidence; and of its tiles."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

import geopandas as gpd
import numpy as np
import shapely

from geolabel.engine.tasks import Pass
from geolabel.extraction.passes import TileReport
from geolabel.extraction.plan import Plan, Run
from geolabel.io.columns import LANDSLIDE_COLUMNS
from geolabel.io.read.scene_mosaic import NO_SCENE, SceneMosaic, common_date, scene_mosaic_of
from geolabel.io.styles import REVIEW_STATES
from geolabel.io.write.vectors import prompt_numbers
from geolabel.models.confidence_files import confidence_of
from geolabel.resampling import axes
from geolabel.seams import Spans
from geolabel.tiles import Window
from geolabel.types import BoolArray, Float64Array, Int32Array, Int64Array

if TYPE_CHECKING:
    from geolabel.extraction.vectorize import Objects
    from geolabel.extraction.work import Work


def complete(
    landslides: gpd.GeoDataFrame,
    plan: Plan,
    seen: Sequence[tuple[str, str | None]] | None = None,
    drawn_ids: Int64Array | None = None,
) -> gpd.GeoDataFrame:
    """Add what is not measured of landslides, and put the columns in the order of the inventory.

    Parameters
    ----------
    seen
        Source and date of each landslide, where these are not the same for all.
    drawn_ids
        Prompts that a person drew, see `confidence_known`.
    """
    scene = plan.reader.scene
    source = scene.name if seen is None else [name for name, _ in seen]
    date = scene.event_date if seen is None else [date for _, date in seen]
    known = {"source": source, "event_date": date, "notes": None, "status": REVIEW_STATES[0]}
    confidence = confidence_known(landslides, plan, drawn_ids)
    return landslides.assign(**known, confidence=confidence)[[*LANDSLIDE_COLUMNS, "geometry"]]


def confidence_known(landslides: gpd.GeoDataFrame, plan: Plan, drawn_ids: Int64Array | None = None) -> Float64Array:
    """(K,) confidence of landslides; NaN where none is known for the networks or the method, or a person asked for one.

    The model knows polygons of the localizer's prompts; what answers a prompt that a person drew is likelier than it
    could say.
    """
    networks = {recipe.role: recipe.sha256 for recipe in (plan.localizer, plan.segmenter)}
    confidence = confidence_of(landslides, networks, plan.method.name)
    if drawn_ids is not None and len(drawn_ids):
        asked = frozenset(drawn_ids.tolist())
        confidence[[not asked.isdisjoint(prompt_numbers(prompts)) for prompts in landslides["prompts"]]] = np.nan
    return confidence


def is_likely(polygons: gpd.GeoDataFrame, plan: Plan) -> BoolArray:
    """(K,) whether polygons are landslides; what is less sure than the parameters ask is a candidate.

    Where nothing is known of its confidence, a polygon counts.
    """
    confidence = polygons["confidence"].to_numpy(float)
    likely: BoolArray = np.isnan(confidence) | (confidence >= (plan.parameters.min_confidence or 0))
    return likely


# --- source scenes ---------------------------------------------------------------------------------------------------


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
    scenes = np.split(pairs[:, 1], np.searchsorted(pairs[:, 0], np.arange(1, objects.count)))
    return [_source_and_date(scene_mosaic, numbers.tolist()) for numbers in scenes[: objects.count]]


def _source_and_date(scene_mosaic: SceneMosaic, numbers: list[int]) -> tuple[str, str | None]:
    seen = [scene_mosaic.layers[number] for number in numbers]
    return source_list([layer.name for layer in seen]), common_date([layer.event_date for layer in seen])


def source_list(names: Iterable[str]) -> str:
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
        layer = scene_mosaic.layers[number].window
        row, end = ((edge - tall.offset) / tall.scale for edge in (layer.row, layer.bottom))
        col, last = ((edge - wide.offset) / wide.scale for edge in (layer.col, layer.right))
        places.append((number, _outward(row, col, end, last)))
    return places


def _outward(top: Fraction, left: Fraction, bottom: Fraction, right: Fraction) -> Window:
    row, col = math.floor(top), math.floor(left)
    return Window(row, col, math.ceil(bottom) - row, math.ceil(right) - col)


# --- tiles -----------------------------------------------------------------------------------------------------------


def tile_table(reports: Sequence[TileReport], plan: Plan) -> gpd.GeoDataFrame:
    """Outline, status and class probability of every tile of the localizer."""
    corners = np.asarray(
        [
            [(tile.col, tile.row), (tile.right, tile.row), (tile.right, tile.bottom), (tile.col, tile.bottom)]
            for tile in (plan.localize_tiles[report.index] for report in reports)
        ],
        float,
    )
    a, b, c, d, e, f = tuple(plan.grid.transform)[:6]
    col, row = corners[..., 0], corners[..., 1]
    x, y = a * col + b * row + c, d * col + e * row + f
    return gpd.GeoDataFrame(
        {
            "tile": [report.index for report in reports],
            "status": [report.status for report in reports],
            "probability": [report.probability for report in reports],
            "message": [report.message for report in reports],
        },
        geometry=shapely.polygons(np.stack([x, y], axis=-1)),
        crs=plan.grid.crs,
    )

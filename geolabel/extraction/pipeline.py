"""The passes over one working grid, in order: tiles, prompts, masks, mosaic, polygons.

Each pass runs its tasks on the workers, keeps its pixels in the store and returns small tables.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

import geopandas as gpd
import numpy as np
import shapely

from geolabel.engine.tasks import Pass
from geolabel.extraction import passes
from geolabel.extraction.cutting import cut_ground, known_beside
from geolabel.extraction.evidence import NO_EVIDENCE, Evidence, measure
from geolabel.extraction.passes import MaskPlace, MaskTable, MosaicSource, Regions, TileReport
from geolabel.extraction.plan import Plan, PromptedWindow, Run, assign, clip_to_tiles, oversized, task_size
from geolabel.extraction.result import Part, complete, source_list
from geolabel.extraction.vectorize import Objects, describe, find_objects, sum_objects
from geolabel.extraction.work import Work
from geolabel.io.read.scene_mosaic import NO_SCENE, SceneMosaic, common_date, scene_mosaic_of
from geolabel.prompters import centroid_outside, shape_prompts
from geolabel.prompts import Prompts
from geolabel.resampling import axes
from geolabel.spans import Shapes, Spans, join, largest
from geolabel.tiles import TileGrid, Window
from geolabel.types import BoolArray, Float32Array, Int32Array, Int64Array

NOBODY = np.zeros(0, np.int64)
"""No prompts."""


def find_landslides(work: Work, drawn: Prompts | None = None, evidence: Evidence = NO_EVIDENCE) -> Part:
    """Run the five passes. Each keeps its pixels in the store and returns a small table.

    Parameters
    ----------
    drawn
        Prompts that replace the activation, in pixels of the working grid.
    evidence
        Supplementary data.
    """
    tiles, prompts, masks = find_scores(work, drawn)
    objects, polygons = polygonize(work, masks, prompts.ids[prompts.drawn], evidence)
    return Part(polygons, prompts, tiles, objects, work.run, evidence)


def find_scores(work: Work, drawn: Prompts | None = None) -> tuple[gpd.GeoDataFrame, Prompts, list[MaskTable]]:
    """Run the passes up to the mosaic: tiles, prompts, masks; only tiles if the localizer's maps are the scores."""
    tiles, plan = localize(work), work.run.plan
    if plan.dense:
        _merge_maps(work)
        return tiles, Prompts.build(), []
    own = plan.method.ask(work)
    if own is None:
        prompts = find_prompts(work) if drawn is None else fit_to_tiles(drawn, plan.segment_tiles)
        own = prompts, segment(work, prompts)
    prompts, masks = own
    merge(work, masks, prompts.ids[prompts.drawn])
    return tiles, prompts, masks


def localize(work: Work) -> gpd.GeoDataFrame:
    """Pass 1: the activation of every tile with valid pixels."""
    plan = work.run.plan
    reports = [
        tile for batch in work.each(passes.LOCALIZE, plan.localize_tasks, networks=[plan.localizer]) for tile in batch
    ]
    work.report.count_tiles(reports)
    return _tile_table(reports, plan)


def find_prompts(work: Work) -> Prompts:
    """Pass 2: box and centroid of every region of activation, or the method's own prompts."""
    plan = work.run.plan
    own = plan.method.find_prompts(work)
    if own is not None:
        return fit_to_tiles(_numbered(own), plan.segment_tiles)
    regions = join_regions(work)
    return _numbered(
        Prompts.concatenate([_region_prompts(work, class_id, *found) for class_id, found in enumerate(regions)])
    )


def _region_prompts(work: Work, class_id: int, spans: Spans, labels: Int32Array, probability: Float32Array) -> Prompts:
    """Box and centroid of the regions of one class; see `join_regions`."""
    tiles = work.run.plan.segment_tiles
    shapes = Shapes.of(spans, labels, len(probability))
    prompts = shape_prompts(shapes, probability, np.full(len(probability), class_id, np.int32))
    large = oversized(prompts, tiles)
    parts = [_tile_prompts(spans[labels == k], prompts[k : k + 1], tiles) for k in np.flatnonzero(large)]
    work.report.points_outside += centroid_outside(spans, labels, shapes)
    return Prompts.concatenate([prompts[~large], *parts])


def join_regions(work: Work) -> list[tuple[Spans, Int32Array, Float32Array]]:
    """Join the regions of all blocks, class by class: components of the blended activation that pass the gate.

    Returns
    -------
    For each class: spans (N,), component of each (N,), and the class probability of each component (K,)
    """
    plan = work.run.plan
    regions = list(work.each(passes.PROMPT, plan.layers))
    blocks = len(plan.blocks)
    return [_join(plan, regions[start : start + blocks]) for start in range(0, len(regions), blocks)]


def _join(plan: Plan, regions: Sequence[Regions]) -> tuple[Spans, Int32Array, Float32Array]:
    spans, index = join([region.spans for region in regions])
    labels, count = spans.components(8)
    probability = largest(np.concatenate([region.probability for region in regions]), labels[index], count) / 255
    open_gate = probability >= plan.method.gate
    inside = open_gate[labels]
    renumbered = (np.cumsum(open_gate, dtype=np.int32) - 1)[labels[inside]]
    return spans[inside], renumbered, probability[open_gate].astype(np.float32)


def _tile_prompts(spans: Spans, whole: Prompts, tiles: TileGrid) -> Prompts:
    """Prompts of an object larger than a tile: box and centroid of its part in every tile whose core it reaches."""
    x0, y0, x1, y1 = (int(v) for v in whole.boxes[0])
    parts = []
    for index in tiles.covering(Window(y0, x0, y1 - y0, x1 - x0)):
        part, _ = spans.clip(tiles[index])
        if len(part) and len(part.clip(tiles.core(index))[0]):
            parts.append(
                shape_prompts(Shapes.of(part, np.zeros(len(part), np.int32), 1), whole.scores, whole.class_ids)
            )
    return Prompts.concatenate(parts)


def fit_to_tiles(prompts: Prompts, tiles: TileGrid) -> Prompts:
    """The same prompts, with those larger than a tile split by tile; the parts get new numbers."""
    large = oversized(prompts, tiles)
    if not large.any():
        return prompts
    parts = clip_to_tiles(prompts[large], tiles)
    numbers = np.arange(len(parts), dtype=np.int64) + prompts.ids.max() + 1
    return Prompts.concatenate([prompts[~large], replace(parts, ids=numbers)])


def _numbered(prompts: Prompts) -> Prompts:
    """The same prompts with ids 1, 2, ..."""
    return replace(prompts, ids=np.arange(1, len(prompts) + 1, dtype=np.int64))


def segment(work: Work, prompts: Prompts) -> list[MaskTable]:
    """Pass 3: masks of the windows with prompts, each window once for all its prompts."""
    batches = batches_of(prompts, work.run.plan)
    tables = list(work.each(passes.SEGMENT, batches, networks=[work.run.plan.segmenter]))
    work.report.count_masks(prompts, [window for _, windows in batches for window in windows], tables)
    return tables


def batches_of(prompts: Prompts, plan: Plan) -> list[tuple[int, list[PromptedWindow]]]:
    """The tasks of pass 3 and their numbers: windows with prompts, in batches."""
    windows = [
        replace(seen, prompts=seen.prompts.only(plan.method.prompts)) for seen in assign(prompts, plan.segment_tiles)
    ]
    size = task_size(len(windows), plan.segmenter.batch)
    return list(enumerate(windows[start : start + size] for start in range(0, len(windows), size)))


def merge(work: Work, masks: Sequence[MaskTable], drawn_ids: Int64Array = NOBODY) -> None:
    """Pass 4: the mosaic of every block, from the masks that intersect it.

    Parameters
    ----------
    drawn_ids
        Prompts drawn by a person: their masks are used whatever the activation is.
    """
    blocks = work.run.plan.blocks
    drawn = [np.isin(table.prompt_ids, drawn_ids) for table in masks]
    counts = work.run.plan.method.counts(work, masks)
    counting = [sure | asked for sure, asked in zip(counts, drawn, strict=True)]
    places: dict[tuple[int, int], list[MaskPlace]] = defaultdict(list)
    number = 0
    for task, table in enumerate(masks):
        for position, (crop, class_id) in enumerate(zip(table.windows.tolist(), table.class_ids.tolist(), strict=True)):
            for block in blocks.covering(Window(*crop)) if counting[task][position] else ():
                place = MaskPlace(number, task, position, drawn=bool(drawn[task][position]))
                places[block, class_id].append(place)
            number += 1
    jobs = [(block, class_id, places.get((block, class_id), [])) for block, class_id in work.run.plan.layers]
    for _ in work.each(passes.MERGE, jobs):
        pass


def _merge_maps(work: Work) -> None:
    """Pass 2 of dense methods, their last: the mosaic of every block, from the localizer's maps."""
    for _ in work.each(passes.MERGE_MAPS, work.run.plan.layers):
        pass


def polygonize(
    work: Work, masks: Sequence[MaskTable], drawn_ids: Int64Array = NOBODY, evidence: Evidence = NO_EVIDENCE
) -> tuple[Objects, gpd.GeoDataFrame]:
    """Pass 5: objects of every block joined across seams, cleaned, outlined and measured.

    Parameters
    ----------
    drawn_ids
        Prompts drawn by a person: their objects have no confidence, and are never candidates.
    evidence
        Supplementary data. Ground that contradicts a landslide is cut out of objects without drawn prompts.
    """
    plan, parameters, gsd = work.run.plan, work.run.plan.parameters, work.run.plan.grid.gsd
    mosaic, known = MosaicSource.of_classes(work.run), known_beside(work.run, evidence)
    prompt_ids = np.concatenate([np.zeros(0, np.int64), *(table.prompt_ids for table in masks)])
    with work.report.timed("polygons"):
        objects = find_objects(
            mosaic,
            plan.blocks,
            threshold=plan.mask_threshold,
            min_area_px=parameters.min_area.pixels(gsd),
            max_hole_px=parameters.max_hole.pixels(gsd),
            split=parameters.split if known is None else None,
            apply=work.apply,
        )
        if known is not None:  # other ground is cut out before necks are split
            fixed = _asked(work, objects, np.isin(prompt_ids, drawn_ids))
            objects = cut_ground(work, objects, known, fixed, parameters.min_area.pixels(gsd))
            if parameters.split is not None:
                objects = objects.cut(parameters.split, parameters.min_area.pixels(gsd))
        landslides = describe(
            objects,
            sum_objects(mosaic, plan.blocks, objects, apply=work.apply),
            plan.grid,
            simplify_px=parameters.simplify.pixels(gsd),
            smooth_px=parameters.smooth.pixels(gsd),
            predicted_iou=np.concatenate([np.zeros(0, np.float32), *(table.predicted_iou for table in masks)]),
            stability=np.concatenate([np.zeros(0, np.float32), *(table.stability for table in masks)]),
            followed=np.concatenate([np.zeros(0, bool), *(table.followed for table in masks)]).astype(np.float32),
            prompt_ids=prompt_ids,
            classes=plan.classes,
        )
        landslides = landslides.assign(**measure(work, objects, evidence))
    return objects, complete(landslides, plan, _seen_in(work, objects), drawn_ids, evidence, objects.ground)


def _asked(work: Work, objects: Objects, drawn: BoolArray) -> BoolArray:
    """(K,) objects with pixels won by masks of prompts drawn by a person (M,)."""
    found = np.zeros(objects.count, bool)
    if drawn.any():
        sums = sum_objects(MosaicSource.of_classes(work.run), work.run.plan.blocks, objects, apply=work.apply)
        if sums.wins is not None:
            found[sums.wins[drawn[sums.wins[:, 1]], 0]] = True
    return found


# --- tiles as a table ------------------------------------------------------------------------------------------------


def _tile_table(reports: Sequence[TileReport], plan: Plan) -> gpd.GeoDataFrame:
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


# --- source scenes ---------------------------------------------------------------------------------------------------


def _seen_in(work: Work, objects: Objects) -> list[tuple[str, str | None]] | None:
    """Source and date of each object: the scenes shown in its pixels, in order of precedence; None for a single scene.

    A date is only given if all of these scenes have it.
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
    pairs = np.unique(np.concatenate([np.zeros((0, 2), np.int64), *work.apply(_SCENES_UNDER.bind(run), jobs)]), axis=0)
    scenes = np.split(pairs[:, 1], np.searchsorted(pairs[:, 0], np.arange(1, objects.count)))
    return [_source_and_date(scene_mosaic, numbers.tolist()) for numbers in scenes[: objects.count]]


def _source_and_date(scene_mosaic: SceneMosaic, numbers: list[int]) -> tuple[str, str | None]:
    seen = [scene_mosaic.layers[number] for number in numbers]
    return source_list([layer.name for layer in seen]), common_date([layer.event_date for layer in seen])


def _scenes_under(run: Run, job: tuple[Window, Spans, Int32Array]) -> Int64Array:
    """(N, 2) pairs of object and scene, for the spans of objects in a block.

    Pixels are read only where several scenes overlap under a span.
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


_SCENES_UNDER = Pass("scenes-under", _scenes_under, Int64Array)


def _footprints(run: Run, scene_mosaic: SceneMosaic, window: Window) -> list[tuple[int, Window]]:
    """Windows of the scenes that may be under a window, on the working grid, rounded outward."""
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

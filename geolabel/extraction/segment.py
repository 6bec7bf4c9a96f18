"""Segment everything in a scene: from a grid of points to polygons with one identity across tiles.

scene -> tiles -> grid of points -> masks -> objects across tiles -> polygons -> GeoPackage
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import geopandas as gpd
import numpy as np
import pyproj
import shapely

from geolabel import geodesy, polygons
from geolabel.cross_tile_matching import (
    Part,
    Sightings,
    agreements,
    choose,
    identify,
    is_cut,
    representative_point,
    unite,
)
from geolabel.engine.run_folder import RunFolderOptions
from geolabel.engine.tasks import Pass, Progress
from geolabel.errors import OptionError
from geolabel.extraction import passes
from geolabel.extraction.outputs import Targets, plan_provenance, writing
from geolabel.extraction.passes import MaskTable
from geolabel.extraction.plan import Plan, PromptedWindow, Run, task_size
from geolabel.extraction.request import Networks, Parameters, Reading, SceneMethod
from geolabel.extraction.result import in_dst_crs
from geolabel.extraction.scene_groups import check_dst_crs, parse_crs, prepare
from geolabel.extraction.work import Report, Work, under_way
from geolabel.io.columns import MEASURED, SEGMENT_COLUMNS
from geolabel.io.read.review import Carried
from geolabel.io.records import Store
from geolabel.io.write.vectors import write_segments
from geolabel.masks import EDGE, Filters
from geolabel.models.defaults import BUNDLED, segmenter_defaults
from geolabel.parts import EverythingRecipe, EverywhereRecipe
from geolabel.prompters import GridPrompter
from geolabel.prompts import Prompts
from geolabel.settings.methods import GridSettings
from geolabel.spans import Spans, large_components
from geolabel.tiles import Window
from geolabel.types import AnyArray, Float64Array, Int64Array

if TYPE_CHECKING:
    from geolabel.io.read.arrays import Labelled

log = logging.getLogger(__name__)

OBJECTS = 64
"""Objects per outlining task."""


@dataclass(frozen=True)
class GridPrompts(GridSettings, SceneMethod):
    """The grid of prompts, and which answers are accepted.

    Raises
    ------
    OptionError
        If a number is out of its range.
    """

    name = "segment"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.same <= 1:
            raise OptionError(f"IoU of one object {self.same}: it must be above 0, up to 1")
        self.filters(BUNDLED)
        GridPrompter(self.points_per_side)

    def filters(self, segmenter: str) -> Filters:
        """Filters for the segmenter's answers."""
        given = {"predicted_iou": self.predicted_iou, "stability": self.stability, "duplicate": self.duplicate}
        chosen = {name: value for name, value in given.items() if value is not None}
        return replace(segmenter_defaults(segmenter).filters, **chosen)

    def recipes(self, networks: Networks) -> tuple[EverywhereRecipe, EverythingRecipe]:
        """Recipes of `Everywhere` and of a segmenter in everything mode."""
        from geolabel.models import loading

        _, segmenter = networks.recipes()
        return EverywhereRecipe(), loading.everything(segmenter, self.filters(segmenter.source))


@dataclass(frozen=True)
class Segmentation:
    """All results of a run."""

    segments: gpd.GeoDataFrame
    plan: Plan
    report: Report

    def summary(self) -> dict[str, Any]:
        """The figures that a user wants to see at the end."""
        return {**self.report.found, **self.report.hidden(), "gaps": len(self.report.gaps), **self.report.effort()}


def segment(
    scene: str | Path | Labelled,
    *,
    out: str | Path | None = None,
    reading: Reading | None = None,
    networks: Networks | str | Path | None = None,
    everything: GridPrompts | None = None,
    parameters: Parameters | None = None,
    dst_crs: str | None = None,
    overwrite: bool = False,
    discard_review: bool = False,
    run_folder: RunFolderOptions | None = None,
    progress: Progress | None = None,
    report: Report | None = None,
) -> gpd.GeoDataFrame:
    """Find all objects in a scene that the segmenter detects, without classes.

    Parameters
    ----------
    scene, out, reading, networks, dst_crs, overwrite, discard_review, run_folder, progress, report
        As in `geolabel.extract`.
    everything
        The grid of prompts, and which answers are accepted.
    parameters
        As in `geolabel.extract`; only those of tiles and polygons are used, and no method.

    Returns
    -------
    geopandas.GeoDataFrame
        One row per segment. Segments may overlap, such as a part and the whole.

    Raises
    ------
    GeolabelError
        See `geolabel.errors`.
    """
    asked, reading = everything or GridPrompts(), reading or Reading()
    run_folder, carried = run_folder or RunFolderOptions(), Carried(discard=discard_review)
    inputs, crs = (scene, *reading.inputs), parse_crs(dst_crs)
    targets = Targets.of(out, overwrite=overwrite, inputs=inputs, run_dir=run_folder.run_dir, carried=carried)
    parameters = replace(parameters or Parameters(), method=asked)
    plan = prepare(scene, reading, Networks.of(networks), parameters)
    check_dst_crs(crs, plan.grid.crs)
    targets.check_crs(plan.grid.crs, crs)
    for text in plan.reader.warnings:
        log.warning("%s", text)
    how: dict[str, Any] = {"run_folder": run_folder, "progress": progress, "report": report}
    return run_segment(plan, targets, asked, dst_crs=crs, **how).segments


def run_segment(
    plan: Plan,
    targets: Targets,
    everything: GridPrompts,
    *,
    dst_crs: pyproj.CRS | None = None,
    run_folder: RunFolderOptions | None = None,
    progress: Progress | None = None,
    report: Report | None = None,
) -> Segmentation:
    """Run a plan and write the outputs; the records of the run are deleted at the end."""
    asked = {"everything": {name: getattr(everything, name) for name in everything.options()}}
    with under_way([plan], targets, run_folder or RunFolderOptions(), [None], progress, report, asked) as (work,):
        try:
            segments = in_dst_crs(_find_segments(work, everything), dst_crs)
        finally:
            _forget()
        if targets.inventory is not None:
            facts = plan_provenance(plan) | asked | {"counts": {"segments": len(segments)}}
            with writing(targets, work.folder):
                write_segments(
                    targets.inventory,
                    segments,
                    facts,
                    crs=segments.crs,
                    overwrite=targets.may_replace(targets.inventory),
                    carried=targets.carried,
                )
        report = work.report
        report.found = {"segments": len(segments), "masks": report.masks, "tiles": report.windows}
    return Segmentation(segments, plan, report)


def _find_segments(work: Work, everything: GridPrompts) -> gpd.GeoDataFrame:
    """Run the passes: masks of every tile, their properties, matches between tiles, and outlines."""
    tables = ask_everywhere(work, everything.points_per_side)
    places, tile_of = _locate(tables, everything.points_per_side**2)
    seen = _sight(work, tables, places, tile_of)
    pairs, iou = _pair_up(work, places, everything.same)
    objects = choose(seen, identify(seen, pairs, iou), work.run.plan.segment_tiles)
    return _describe(work, objects, tables, places, tile_of)


def ask_everywhere(work: Work, points_per_side: int) -> list[MaskTable]:
    """Pass 1: the masks of every tile. Prompts are numbered over all tiles, so a mask identifies its prompt."""
    tiles, grid = work.run.plan.segment_tiles, GridPrompter(points_per_side)
    step = -(-min(tiles.size, max(tiles.height, tiles.width)) // points_per_side)
    windows = [PromptedWindow(tile, _numbered(grid, tile, index), reach=step) for index, tile in enumerate(tiles)]
    size = task_size(len(windows), work.run.plan.segmenter.batch)
    tables = list(
        work.each(passes.SEGMENT, list(enumerate(_batches(windows, size))), networks=[work.run.plan.segmenter])
    )
    work.report.windows += len(tiles)
    work.report.masks += sum(len(table.windows) for table in tables)
    work.report.gaps += [f"{window}: {message}" for table in tables for window, message in table.failures]
    return tables


def _numbered(grid: GridPrompter, tile: Window, index: int) -> Prompts:
    prompts = grid.over(tile.height, tile.width).shift(tile.col, tile.row)
    return replace(prompts, ids=prompts.ids + index * len(prompts))


def _locate(tables: Sequence[MaskTable], points: int) -> tuple[dict[int, Places], Int64Array]:
    """Places of the stored masks of each tile, and (M,) the tile of every mask; masks are numbered over the tables."""
    places: dict[int, Places] = {}
    tile_of = np.concatenate([np.zeros(0, np.int64), *(table.prompt_ids // points for table in tables)])
    first = 0
    for task, table in enumerate(tables):
        tiles = table.prompt_ids // points
        for tile in np.unique(tiles).tolist():
            positions = np.flatnonzero(tiles == tile)
            places[tile] = Places(task, tuple(positions.tolist()), first + int(positions[0]))
        first += len(tiles)
    return places, tile_of


def _sight(work: Work, tables: Sequence[MaskTable], places: dict[int, Places], tile_of: Int64Array) -> Sightings:
    """Pass 2: compact properties of every mask."""
    tiles = work.run.plan.segment_tiles
    jobs = [(tiles[tile], where) for tile, where in places.items()]
    rows = [row for found in work.each(LOOK, jobs) for row in found]
    numbers = np.asarray(rows, np.int64).reshape(-1, 4)
    windows = [np.zeros((0, 4), np.int64), *(table.windows for table in tables)]
    quality = [table.predicted_iou.astype(float) * table.stability for table in tables]
    return Sightings(
        tile=tile_of,
        window=np.concatenate(windows),
        cut=numbers[:, 0].astype(bool),
        point=numbers[:, 1:3],
        quality=np.concatenate([np.zeros(0), *quality]),
    )


def _pair_up(work: Work, places: dict[int, Places], least: float) -> tuple[Int64Array, Any]:
    """Pass 3: (N, 2) masks of overlapping tiles that show one object, and (N,) their agreement."""
    tiles = work.run.plan.segment_tiles
    jobs = []
    for tile, where in places.items():
        for other in tiles.covering(tiles[tile]):
            shared = tiles[tile].intersection(tiles[other])
            if other > tile and other in places and shared is not None:
                jobs.append((least, Seam(shared, where, places[other])))
    found = list(work.each(MATCH, jobs))
    pairs = np.concatenate([np.zeros((0, 2), np.int64), *(part for part, _ in found)])
    return pairs, np.concatenate([np.zeros(0), *(part for _, part in found)])


def _describe(
    work: Work, objects: list[list[int]], tables: Sequence[MaskTable], places: dict[int, Places], tile_of: Int64Array
) -> gpd.GeoDataFrame:
    """Pass 4: outline and measure the objects, in the order of their first pixels."""
    plan = work.run.plan
    jobs = _batches([_parts(masks, places, tile_of) for masks in objects], OBJECTS)
    outlines = [one for part in work.each(OUTLINE, jobs) for one in part]
    found = sorted((one[1], k, one[0]) for k, one in enumerate(outlines) if one is not None)
    order = [k for _, k, _ in found]
    shapes = np.array([None, *(shape for *_, shape in found)])[1:]
    sizes = geodesy.measure(shapes, plan.grid.crs, 1.0 if plan.grid.unit_m is None else plan.grid.unit_m)
    predicted, stability = (
        np.concatenate([np.zeros(0, np.float32), *(getattr(table, name) for table in tables)])
        for name in ("predicted_iou", "stability")
    )
    columns = {name: getattr(sizes, name) for name in MEASURED} | {
        "id": np.arange(1, len(order) + 1),
        "predicted_iou": [float(predicted[objects[k]].mean()) for k in order],
        "stability": [float(stability[objects[k]].mean()) for k in order],
        "n_tiles": [len(set(tile_of[objects[k]].tolist())) for k in order],
        "gsd_m": plan.grid.gsd,
        "source": plan.reader.scene.name,
    }
    return gpd.GeoDataFrame(columns, geometry=shapes, crs=plan.grid.crs)[[*SEGMENT_COLUMNS, "geometry"]]


def _parts(masks: list[int], places: dict[int, Places], tile_of: Int64Array) -> list[Places]:
    by_tile: dict[int, list[int]] = defaultdict(list)
    for mask in masks:
        by_tile[int(tile_of[mask])].append(mask)
    parts = []
    for tile, numbers in by_tile.items():
        where = places[tile]
        positions = tuple(where.positions[number - where.first] for number in numbers)
        parts.append(Places(where.task, positions, numbers[0]))
    return parts


@dataclass(frozen=True)
class Places:
    """Where the masks of one tile are stored: a record and positions in it."""

    task: int
    positions: tuple[int, ...]
    first: int
    """Run-wide number of the first mask; the others follow."""

    @property
    def numbers(self) -> range:
        """Run-wide numbers of the masks."""
        return range(self.first, self.first + len(self.positions))


@dataclass(frozen=True)
class Seam:
    """Two overlapping tiles."""

    shared: Window
    first: Places
    second: Places


def _look(run: Run, job: tuple[Window, Places]) -> list[tuple[bool, int, int, int]]:
    """For every mask of a tile: whether it is cut off, row and column of its representative point, and its pixels."""
    tile, places = job
    parts = _read_parts(run.store, places)
    return [
        (is_cut(part, tile, run.plan.grid.window), *representative_point(part), int(part.mask.sum()))
        if part.mask.any()
        else (False, -1, -1, 0)
        for part in parts
    ]


def _where_tile(_: Run, job: tuple[Window, Places]) -> str:
    return f"{job[0]}"


LOOK = Pass("look", _look, list[tuple[bool, int, int, int]], _where_tile)


def _compare(run: Run, job: tuple[float, Seam]) -> tuple[Int64Array, Float64Array]:
    """Pairs of masks, by run-wide number, that agree where two tiles overlap; and their agreement."""
    least, seam = job
    near = [_near(run.store, places, seam.shared) for places in (seam.first, seam.second)]
    (first, a), (second, b) = near
    pairs, iou = agreements(a, b, seam.shared, least)
    return np.stack([first[pairs[:, 0]], second[pairs[:, 1]]], axis=1), iou


def _where_seam(_: Run, job: tuple[float, Seam]) -> str:
    return f"{job[1].shared}"


MATCH = Pass("match", _compare, tuple[Int64Array, Float64Array], _where_seam)


def _near(store: Store, places: Places, shared: Window) -> tuple[Int64Array, list[Part]]:
    found = [
        (number, part)
        for number, part in zip(places.numbers, _read_parts(store, places), strict=True)
        if part.window.intersection(shared)
    ]
    return np.asarray([number for number, _ in found], np.int64), [part for _, part in found]


def _outline(run: Run, objects: list[list[Places]]) -> list[tuple[Any, int] | None]:
    """Multipolygon and first pixel (row x width + column) of objects; None for those that are too small."""
    plan = run.plan
    gsd = plan.grid.gsd
    least = plan.parameters.min_area.pixels(gsd)
    found: list[tuple[Any, int] | None] = []
    for places in objects:
        spans = unite([_spans(part) for one in places for part in _read_parts(run.store, one)])
        spans, labels, count = large_components(spans, least)
        if not count:
            found.append(None)
            continue
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


OUTLINE = Pass("outline", _outline, list[tuple[Any, int] | None], _where_objects)


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


def _read_parts(store: Store, places: Places) -> list[Part]:
    """The masks of a tile, each in its smallest window."""
    windows, offsets, scores = _record(store, places.task)
    return [_part(windows[k], scores[offsets[k] : offsets[k + 1]] >= EDGE) for k in places.positions]


def _part(window: Int64Array, flat: AnyArray) -> Part:
    row, col, height, width = window.tolist()
    mask = flat.reshape(height, width)
    rows, cols = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return Part(Window(row, col, 0, 0), mask[:0, :0])
    top, left, bottom, right = rows[0], cols[0], rows[-1] + 1, cols[-1] + 1
    return Part(
        Window(row + int(top), col + int(left), int(bottom - top), int(right - left)), mask[top:bottom, left:right]
    )


def _forget() -> None:
    """Drop cached records."""
    _record.cache_clear()


def _batches(items: Iterable[Any], size: int) -> list[list[Any]]:
    """Lists of up to `size` items, in order."""
    every = list(items)
    return [every[start : start + size] for start in range(0, len(every), size)]

"""Everything in a scene: from a grid of points to polygons that keep one identity across tiles.

scene -> tiles -> grid of points -> masks -> objects across tiles -> polygons -> GeoPackage
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import geopandas as gpd
import numpy as np

from geolabel import geodesy
from geolabel.cross_tile_matching import Sightings, choose, identify
from geolabel.engine.progress import Progress
from geolabel.engine.run_folder import RunFolderOptions
from geolabel.errors import OptionError
from geolabel.extraction import passes
from geolabel.extraction.instances import LOOK, MATCH, OUTLINE, Places, Seam, batches, forget
from geolabel.extraction.outputs import Targets, plan_provenance, writing
from geolabel.extraction.passes import MaskTable
from geolabel.extraction.plan import Parameters, Plan, PromptedWindow, task_size
from geolabel.extraction.request import Networks, Reading
from geolabel.extraction.scene_groups import prepare
from geolabel.extraction.scene_method import SceneMethod
from geolabel.extraction.work import Report, Work, under_way
from geolabel.io.columns import MEASURED, SEGMENT_COLUMNS
from geolabel.io.read.review import Carried
from geolabel.io.write.vectors import write_segments
from geolabel.masks import Filters
from geolabel.models.defaults import BUNDLED, segmenter_defaults
from geolabel.parts import EverythingRecipe, EverywhereRecipe
from geolabel.prompters import GridPrompter
from geolabel.types import Int64Array

if TYPE_CHECKING:
    from geolabel.io.read.arrays import Labelled

log = logging.getLogger(__name__)

OBJECTS = 64
"""Objects that a task outlines."""


@dataclass(frozen=True)
class GridPrompts(SceneMethod):
    """What is asked everywhere, and what counts as an answer; the defaults are those of segment-anything's generator.

    Raises
    ------
    OptionError
        If a number is out of its range.
    """

    name = "segment"

    points_per_side: int = 32
    predicted_iou: float | None = None
    """A mask's predicted IoU has to exceed this; None for 0.88, or less with the bundled network."""
    stability: float | None = None
    """Minimum stability of a mask; None for 0.95, or less with the bundled network."""
    duplicate: float = 0.7
    """Of masks of a tile whose boxes have a larger IoU only the best is kept."""
    same: float = 0.5
    """Minimum IoU, where two tiles overlap, of two masks of one object."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.same <= 1:
            raise OptionError(f"IoU of one object {self.same}: it has to lie above 0, up to 1")
        self.filters(BUNDLED)
        GridPrompter(self.points_per_side)

    def filters(self, segmenter: str) -> Filters:
        """What counts as an answer of a segmenter."""
        given = {"predicted_iou": self.predicted_iou, "stability": self.stability, "duplicate": self.duplicate}
        chosen = {name: value for name, value in given.items() if value is not None}
        return replace(segmenter_defaults(segmenter).filters, **chosen)

    def recipes(self, networks: Networks) -> tuple[EverywhereRecipe, EverythingRecipe]:
        """Recipes of `Everywhere` and of a segmenter in everything mode."""
        _, segmenter = networks.recipes()
        return EverywhereRecipe(), segmenter.everything(self.filters(segmenter.source))


@dataclass(frozen=True)
class Segmentation:
    """Everything that a run found."""

    segments: gpd.GeoDataFrame
    plan: Plan
    report: Report

    def summary(self) -> dict[str, Any]:
        """The figures that a user wants to see at the end."""
        return self.report.found | {"gaps": len(self.report.gaps)} | self.report.effort()


def segment(
    scene: str | Path | Labelled,
    *,
    out: str | Path | None = None,
    reading: Reading | None = None,
    networks: Networks | None = None,
    everything: GridPrompts | None = None,
    parameters: Parameters | None = None,
    overwrite: bool = False,
    discard_review: bool = False,
    run_folder: RunFolderOptions | None = None,
    progress: Progress | None = None,
    report: Report | None = None,
) -> gpd.GeoDataFrame:
    """Find everything in a scene that the segmenter takes for an object, whatever it is.

    Parameters
    ----------
    scene, out, reading, networks, overwrite, discard_review, run_folder, progress, report
        As in `geolabel.extract`.
    everything
        What is asked, and what counts as an answer.
    parameters
        As in `geolabel.extract`; only those of tiles and polygons matter, and no method.

    Returns
    -------
    geopandas.GeoDataFrame
        One row per segment in the scene's CRS. Segments may overlap: a part and the whole are both there.

    Raises
    ------
    GeolabelError
        See `geolabel.errors`.
    """
    asked = everything or GridPrompts()
    run_folder, carried = run_folder or RunFolderOptions(), Carried(discard=discard_review)
    targets = Targets.of(out, overwrite=overwrite, inputs=(scene,), run_dir=run_folder.run_dir, carried=carried)
    parameters = replace(parameters or Parameters(), method=asked)
    plan = prepare(scene, reading or Reading(), networks or Networks(), parameters)
    for text in plan.reader.warnings:
        log.warning("%s", text)
    return run_segment(plan, targets, asked, run_folder=run_folder, progress=progress, report=report).segments


def run_segment(
    plan: Plan,
    targets: Targets,
    everything: GridPrompts,
    *,
    run_folder: RunFolderOptions | None = None,
    progress: Progress | None = None,
    report: Report | None = None,
) -> Segmentation:
    """Do what was planned and write what was asked for; the records of the run are deleted at the end."""
    asked = {"everything": {name: getattr(everything, name) for name in everything.options()}}
    with under_way([plan], targets, run_folder or RunFolderOptions(), [None], progress, report, asked) as (work,):
        try:
            segments = find_segments(work, everything)
        finally:
            forget()
        if targets.inventory is not None:
            facts = plan_provenance(plan) | asked | {"counts": {"segments": len(segments)}}
            with writing(targets, work.folder):
                write_segments(
                    targets.inventory,
                    segments,
                    facts,
                    crs=plan.grid.crs,
                    overwrite=targets.may_replace(targets.inventory),
                    carried=targets.carried,
                )
        report = work.report
        report.found = {"segments": len(segments), "masks": report.masks, "tiles": report.windows}
    return Segmentation(segments, plan, report)


def find_segments(work: Work, everything: GridPrompts) -> gpd.GeoDataFrame:
    """Run the passes: masks of every tile, what they are of, which are one object, and its outline."""
    tables = ask_everywhere(work, everything.points_per_side)
    places, tile_of = locate(tables, everything.points_per_side**2)
    seen = sight(work, tables, places, tile_of)
    pairs, iou = pair_up(work, places, everything.same)
    objects = choose(seen, identify(seen, pairs, iou), work.run.plan.segment_tiles)
    return describe(work, objects, tables, places, tile_of)


def ask_everywhere(work: Work, points_per_side: int) -> list[MaskTable]:
    """Pass 1: the masks of every tile. Prompts are numbered through the tiles, so a mask knows its own."""
    tiles, grid = work.run.plan.segment_tiles, GridPrompter(points_per_side)
    windows = [
        PromptedWindow(tile, _numbered(grid, tile.height, tile.width, index).shift(tile.col, tile.row))
        for index, tile in enumerate(tiles)
    ]
    size = task_size(len(windows), work.run.plan.segmenter.batch)
    tables = list(
        work.each(passes.SEGMENT, list(enumerate(batches(windows, size))), networks=[work.run.plan.segmenter])
    )
    work.report.windows += len(tiles)
    work.report.masks += sum(len(table.windows) for table in tables)
    work.report.gaps += [f"{window}: {message}" for table in tables for window, message in table.failures]
    return tables


def _numbered(grid: GridPrompter, height: int, width: int, tile: int) -> Any:
    prompts = grid.over(height, width)
    return replace(prompts, ids=prompts.ids + tile * len(prompts))


def locate(tables: Sequence[MaskTable], points: int) -> tuple[dict[int, Places], Int64Array]:
    """Where the masks of each tile are stored, and (M,) the tile of every mask; masks count through the tables."""
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


def sight(work: Work, tables: Sequence[MaskTable], places: dict[int, Places], tile_of: Int64Array) -> Sightings:
    """Pass 2: small numbers of every mask."""
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


def pair_up(work: Work, places: dict[int, Places], least: float) -> tuple[Int64Array, Any]:
    """Pass 3: (N, 2) which masks of overlapping tiles are of one object, and (N,) how well they agree."""
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


def describe(
    work: Work, objects: list[list[int]], tables: Sequence[MaskTable], places: dict[int, Places], tile_of: Int64Array
) -> gpd.GeoDataFrame:
    """Pass 4: outline and measure the objects, in the order of their first pixels."""
    plan = work.run.plan
    jobs = batches([_parts(masks, places, tile_of) for masks in objects], OBJECTS)
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

"""From a scene to landslide polygons.

scene -> tiles -> activation -> prompts -> masks -> mosaic blocks -> polygons -> GeoPackage
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from geolabel.engine.report import Progress, Report
from geolabel.engine.run_folder import Keeping
from geolabel.engine.work import Work, under_way
from geolabel.errors import OptionError
from geolabel.extraction import dense, passes
from geolabel.extraction.clustered import find_clustered
from geolabel.extraction.merge_overlaps import brought
from geolabel.extraction.outputs import (
    Targets,
    complete,
    is_likely,
    overview,
    review_provenance,
    sorted_by,
    tile_table,
    write_outputs,
)
from geolabel.extraction.passes import MaskPlace, MaskTable, MosaicSource
from geolabel.extraction.peaks import confident, peak_prompts
from geolabel.extraction.plan import Parameters, Plan, Run, task_size
from geolabel.extraction.request import Networks, Reading
from geolabel.extraction.reviewed import carried_over, combine
from geolabel.extraction.source_scenes import seen_in
from geolabel.extraction.vectorize import Objects, describe, find_objects, sum_objects
from geolabel.extraction.windows import assign, clip_to_tiles, oversized
from geolabel.io.read.scene_inputs import list_scenes
from geolabel.io.write.vectors import read_prompts
from geolabel.prompters import centroid_outside, shape_prompts
from geolabel.prompts import FRESH, Prompts
from geolabel.seams import Shapes, Spans, join, largest
from geolabel.tiles import TileGrid, Window
from geolabel.types import AnyArray, Float32Array, Int32Array, Int64Array

if TYPE_CHECKING:
    import geopandas as gpd

    from geolabel.io.read.arrays import Labelled
    from geolabel.io.read.review import Review
    from geolabel.io.write.vectors import Reviewed


NOBODY = np.zeros(0, np.int64)
"""No prompt."""


log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Extraction:
    """Everything that a run found."""

    landslides: gpd.GeoDataFrame
    candidates: gpd.GeoDataFrame
    """What is less likely to be a landslide than `Parameters.min_confidence` asks, numbered with the landslides."""
    prompts: Prompts
    """In pixels of the working grid."""
    tiles: gpd.GeoDataFrame
    """Windows of the localizer: status, class probability, message."""
    objects: Objects
    """All that was found, as pixels, in the order of their numbers from 1: landslides, candidates and what a review
    leaves out."""
    shown: Int64Array
    """Numbers of those that are landslides."""
    run: Run
    report: Report
    reviewed: Reviewed | None = None
    """What comes from a person's review."""
    left_out: int = 0
    """Polygons that were found on ground that the person has decided about."""

    def summary(self) -> dict[str, Any]:
        """The figures that a user wants to see at the end."""
        counts: dict[str, Any] = review_provenance(self).get("review", {})
        return overview(self.landslides, self.candidates) | counts | self.report.summary()

    @property
    def drawn(self) -> AnyArray:
        """Outlines of the landslides that are a person's work, in the CRS of the scene."""
        own = self.landslides[self.landslides["id"].isin(self.reviewed.numbers if self.reviewed else ())]
        return brought(own, self.plan.grid.crs)

    @property
    def plan(self) -> Plan:
        """What was decided before."""
        return self.run.plan


def extract(
    scene: str | Path | Labelled | Sequence[str | Path | Labelled],
    *,
    out: str | Path | None = None,
    reading: Reading | None = None,
    networks: Networks | None = None,
    parameters: Parameters | None = None,
    prompts_from: str | Path | None = None,
    keep_reviewed: str | Path | None = None,
    score_out: str | Path | None = None,
    mask_out: str | Path | None = None,
    dst_crs: str | None = None,
    overwrite: bool = False,
    discard_review: bool = False,
    keeping: Keeping | None = None,
    progress: Progress | None = None,
) -> gpd.GeoDataFrame:
    """Find the landslides of a scene, or of many as one inventory.

    Scenes on one grid are worked on as one; where they overlap, the first one that is valid shows. Those on other grids
    are worked on in turn, and landslides of theirs that overlap are united.

    Parameters
    ----------
    scene
        Anything that GDAL opens, an array or dataset of xarray as rioxarray makes them, or several of these; also
        patterns, lists and STAC items, see `geolabel.io.read.scene_inputs.list_scenes`.
    out
        GeoPackage to write; None to write nothing.
    reading, networks, parameters
        How the scene is read, which networks run where, and every number that the result depends on.
    prompts_from
        A vector file whose points and boxes replace the activation. Of a GeoPackage that this function wrote, the
        review is kept too, as with `keep_reviewed`, and prompts that nobody changed are answered as they were.
    keep_reviewed
        A GeoPackage that this function wrote, or another file of polygons: what a person accepted, edited or added in
        it comes back as it is, and what was rejected or deleted does not; see `geolabel.extraction.reviewed`. It may
        be `out`.
    score_out, mask_out
        Cloud Optimized GeoTIFFs to write on the working grid, where there is only one.
    dst_crs
        CRS of the inventory, such as EPSG:32648; by default that of the scenes, which then have to share one.
    overwrite
        Whether files that exist may be replaced. A GeoPackage in which a person has reviewed or edited something is
        replaced only if this comes into the new file.
    discard_review
        Whether such a file may be replaced all the same.
    keeping
        Where the records of the run are kept, from which the same call goes on when this one ends early; by default in
        a folder beside the first output that goes when the run succeeds.
    progress
        Whoever wants to follow the run.

    Returns
    -------
    geopandas.GeoDataFrame
        One row per landslide, as in the layer ``landslides`` of the GeoPackage. What is less sure than
        `Parameters.min_confidence` is in its layer ``candidates`` alone.

    Raises
    ------
    GeolabelError
        See `geolabel.errors`.

    Examples
    --------
    >>> import geolabel
    >>> slides = geolabel.extract("scene.tif", out="slides.gpkg")  # doctest: +SKIP
    """
    from geolabel.extraction.combine import run_survey
    from geolabel.extraction.scene_groups import prepare_survey

    keeping, reading = keeping or Keeping(), reading or Reading()
    scenes = list_scenes(scene, asset=reading.asset)
    carried = carried_over(keep_reviewed, prompts_from, discard=discard_review)
    inputs = [*carried.inputs(prompts_from), *(one.source for one in scenes)]
    targets = Targets.of(
        out, score_out, mask_out, overwrite=overwrite, inputs=inputs, run_dir=keeping.run_dir, carried=carried
    )
    survey = prepare_survey(
        scenes, reading, networks or Networks(), parameters or Parameters(), dst_crs=dst_crs, raster=targets.raster
    )
    for text in survey.warnings:
        log.warning("%s", text)
    return run_survey(survey, targets, prompts_from=prompts_from, keeping=keeping, progress=progress).landslides


def run_extract(
    plan: Plan,
    targets: Targets,
    *,
    prompts_from: str | Path | None = None,
    keeping: Keeping | None = None,
    progress: Progress | None = None,
) -> Extraction:
    """Do what was planned and write what was asked for; the records of the run are gone at the end."""
    drawn = read_drawn(prompts_from, plan)
    with under_way(plan, targets, keeping or Keeping(), drawn, progress) as work:
        found = with_review(find_landslides(work, drawn), targets.carried.review)
        write_outputs(found, targets, work.folder)
    return found


def read_drawn(
    path: str | Path | None, plan: Plan, *, partly: bool = False, others: frozenset[str] = frozenset()
) -> Prompts | None:
    """Read the prompts that replace the activation, if a file of such is given."""
    if path is not None and not plan.localized:
        raise OptionError(f"prompts from {path}: a method without a localizer asks everywhere; use --method apsam")
    if path is not None and plan.dense:
        raise OptionError(f"prompts from {path}: {plan.parameters.method} asks no segmenter; use --method apsam")
    if path is None:
        return None
    prompts = read_prompts(path, plan.grid, classes=plan.classes, partly=partly, others=others)
    if plan.parameters.selection == "overlap" and prompts.drawn.any():
        raise OptionError(f"prompts of a person, in {path}, have no activation that --selection overlap could compare "
                          "masks with: choose by best_iou, first, whole or single")  # fmt: skip
    return prompts


def find_landslides(work: Work, drawn: Prompts | None = None) -> Extraction:
    """Run the five passes. Each leaves its pixels in the store and returns a table of small numbers.

    Parameters
    ----------
    drawn
        Prompts that replace the activation, in pixels of the working grid.
    """
    tiles, prompts, masks = find_scores(work, drawn)
    objects, polygons = polygonize(work, masks, prompts.ids[prompts.drawn])
    likely = is_likely(polygons, work.run.plan)
    work.report.landslides += int(likely.sum())
    work.report.candidates += int((~likely).sum())
    shown = polygons["id"].to_numpy(np.int64)[likely]
    return Extraction(*sorted_by(likely, polygons), prompts, tiles, objects, shown, run=work.run, report=work.report)


def with_review(found: Extraction, review: Review | None) -> Extraction:
    """What was found, and what a person reviewed, if there is such."""
    if review is None:
        return found
    fresh = frozenset(found.prompts.ids[found.prompts.origins == FRESH].tolist())
    together = combine(review, found.landslides, found.candidates, fresh, found.plan.grid.unit_m)
    found.report.landslides, found.report.candidates = len(together.landslides), len(together.candidates)
    return replace(found, **vars(together))


def find_scores(work: Work, drawn: Prompts | None = None) -> tuple[gpd.GeoDataFrame, Prompts, list[MaskTable]]:
    """Run the passes up to the mosaic: tiles, prompts, masks; tiles alone where the localizer's maps are the scores."""
    tiles = localize(work)
    if work.run.plan.dense:
        dense.merge(work)
        return tiles, Prompts.build(), []
    if work.run.plan.segmenter.clusters is not None:
        prompts, masks = find_clustered(work)
        merge(work, masks)
        return tiles, prompts, masks
    prompts = find_prompts(work) if drawn is None else fit_to_tiles(drawn, work.run.plan.segment_tiles)
    masks = segment(work, prompts)
    merge(work, masks, prompts.ids[prompts.drawn])
    return tiles, prompts, masks


def localize(work: Work) -> gpd.GeoDataFrame:
    """Pass 1: the activation of every tile that holds a valid pixel."""
    plan = work.run.plan
    reports = [
        tile
        for batch in work.each("localize", passes.localize, plan.localize_tasks, network=plan.localizer)
        for tile in batch
    ]
    work.report.count_tiles(reports)
    return tile_table(reports, plan)


def find_prompts(work: Work) -> Prompts:
    """Pass 2: box and centroid of every place where a landslide is likely."""
    plan = work.run.plan
    spans, labels, probability = join_regions(work)
    if plan.parameters.method == "s2c":
        return fit_to_tiles(numbered(peak_prompts(work, spans, labels, probability)), plan.segment_tiles)
    shapes = Shapes.of(spans, labels, len(probability))
    prompts = shape_prompts(shapes, probability)
    large = oversized(prompts, plan.segment_tiles)
    parts = [tile_prompts(spans[labels == k], prompts[k : k + 1], plan.segment_tiles) for k in np.flatnonzero(large)]
    work.report.points_outside += centroid_outside(spans, labels, shapes)
    return numbered(Prompts.concatenate([prompts[~large], *parts]))


def join_regions(work: Work) -> tuple[Spans, Int32Array, Float32Array]:
    """Join the regions of all blocks: components of the thresholded, blended activation that pass the gate.

    Returns
    -------
    spans (N,), component of each (N,), and the class probability of each component (K,)
    """
    plan = work.run.plan
    regions = list(work.each("prompt", passes.find_regions, range(len(plan.blocks))))
    spans, index = join([region.spans for region in regions])
    labels, count = spans.components(8)
    probability = largest(np.concatenate([region.probability for region in regions]), labels[index], count) / 255
    open_gate = probability >= plan.parameters.gate
    inside = open_gate[labels]
    renumbered = (np.cumsum(open_gate, dtype=np.int32) - 1)[labels[inside]]
    return spans[inside], renumbered, probability[open_gate].astype(np.float32)


def tile_prompts(spans: Spans, whole: Prompts, tiles: TileGrid) -> Prompts:
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
    """The same prompts, those larger than a tile cut to tiles; the parts get numbers that no other prompt has."""
    large = oversized(prompts, tiles)
    if not large.any():
        return prompts
    parts = clip_to_tiles(prompts[large], tiles)
    numbers = np.arange(len(parts), dtype=np.int64) + prompts.ids.max() + 1
    return Prompts.concatenate([prompts[~large], replace(parts, ids=numbers)])


def numbered(prompts: Prompts) -> Prompts:
    """The same prompts with ids 1, 2, ..."""
    return replace(prompts, ids=np.arange(1, len(prompts) + 1, dtype=np.int64))


def segment(work: Work, prompts: Prompts) -> list[MaskTable]:
    """Pass 3: masks of the windows that hold a prompt, each window once for all its prompts, and of no other."""
    plan = work.run.plan
    windows = [
        replace(seen, prompts=seen.prompts.only(plan.parameters.prompts))
        for seen in assign(prompts, plan.segment_tiles)
    ]
    size = task_size(len(windows), plan.segmenter.batch)
    batches = [windows[start : start + size] for start in range(0, len(windows), size)]
    tables = list(work.each("segment", passes.segment, list(enumerate(batches)), network=work.run.plan.segmenter))
    work.report.count_masks(prompts, windows, tables)
    return tables


def merge(work: Work, masks: Sequence[MaskTable], drawn_ids: Int64Array = NOBODY) -> None:
    """Pass 4: the mosaic of every block, from the masks that reach into it.

    Parameters
    ----------
    drawn_ids
        Prompts that a person drew: their masks count wherever they are, whatever the localizer says of the place.
    """
    blocks = work.run.plan.blocks
    drawn = [np.isin(table.prompt_ids, drawn_ids) for table in masks]
    counting = [np.ones(len(table.windows), bool) for table in masks]
    if work.run.plan.parameters.method == "s2c" and work.run.localized:
        counting = [sure | asked for sure, asked in zip(confident(work, masks), drawn, strict=True)]
    places: dict[int, list[MaskPlace]] = defaultdict(list)
    number = 0
    for task, table in enumerate(masks):
        for position, crop in enumerate(table.windows.tolist()):
            for block in blocks.covering(Window(*crop)) if counting[task][position] else ():
                places[block].append(MaskPlace(number, task, position, drawn=bool(drawn[task][position])))
            number += 1
    for _ in work.each("merge", passes.merge, [(block, places.get(block, [])) for block in range(len(blocks))]):
        pass


def polygonize(
    work: Work, masks: Sequence[MaskTable], drawn_ids: Int64Array = NOBODY
) -> tuple[Objects, gpd.GeoDataFrame]:
    """Pass 5: objects of every block joined across seams, cleaned, outlined and measured.

    Parameters
    ----------
    drawn_ids
        Prompts that a person drew: what answers them has no confidence, and so is no candidate.
    """
    plan, parameters, gsd = work.run.plan, work.run.plan.parameters, work.run.plan.grid.gsd
    mosaic = dense.DenseSource(work.run) if plan.dense else MosaicSource(work.run)
    with work.report.timed("polygons"):
        objects = find_objects(
            mosaic,
            plan.blocks,
            threshold=plan.mask_threshold,
            min_area_px=parameters.min_area.pixels(gsd),
            max_hole_px=parameters.max_hole.pixels(gsd),
            apply=work.apply,
        )
        landslides = describe(
            objects,
            sum_objects(mosaic, plan.blocks, objects, apply=work.apply),
            plan.grid,
            simplify_px=parameters.simplify.pixels(gsd),
            smooth_px=parameters.smooth.pixels(gsd),
            predicted_iou=np.concatenate([np.zeros(0, np.float32), *(table.predicted_iou for table in masks)]),
            stability=np.concatenate([np.zeros(0, np.float32), *(table.stability for table in masks)]),
            prompt_ids=np.concatenate([np.zeros(0, np.int64), *(table.prompt_ids for table in masks)]),
            class_name=plan.classes[plan.class_index],
        )
    return objects, complete(landslides, plan, seen_in(work, objects), drawn_ids)

"""From a scene to landslide polygons.

scene -> tiles -> activation -> prompts -> masks -> mosaic blocks -> polygons -> GeoPackage
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from geolabel.engine.progress import Progress
from geolabel.engine.run_folder import RunFolderOptions
from geolabel.errors import OptionError
from geolabel.extraction.merge_overlaps import brought
from geolabel.extraction.outputs import (
    Targets,
    is_likely,
    overview,
    review_provenance,
    sorted_by,
    write_outputs,
)
from geolabel.extraction.pipeline import find_scores, polygonize
from geolabel.extraction.plan import Parameters, Plan, Run
from geolabel.extraction.request import Networks, Reading
from geolabel.extraction.reviewed import carried_over, combine
from geolabel.extraction.vectorize import Objects
from geolabel.extraction.work import Report, Work, under_way
from geolabel.io.read.features import read_prompts
from geolabel.io.read.scene_inputs import list_scenes
from geolabel.prompts import FRESH, Prompts
from geolabel.types import AnyArray, Int64Array

if TYPE_CHECKING:
    import geopandas as gpd

    from geolabel.io.read.arrays import Labelled
    from geolabel.io.read.review import Review
    from geolabel.io.write.vectors import Reviewed


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
    run_folder: RunFolderOptions | None = None,
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
    run_folder
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

    run_folder, reading = run_folder or RunFolderOptions(), reading or Reading()
    scenes = list_scenes(scene, asset=reading.asset)
    carried = carried_over(keep_reviewed, prompts_from, discard=discard_review)
    inputs = [*carried.inputs(prompts_from), *(one.source for one in scenes)]
    targets = Targets.of(
        out, score_out, mask_out, overwrite=overwrite, inputs=inputs, run_dir=run_folder.run_dir, carried=carried
    )
    survey = prepare_survey(
        scenes, reading, networks or Networks(), parameters or Parameters(), dst_crs=dst_crs, raster=targets.raster
    )
    for text in survey.warnings:
        log.warning("%s", text)
    return run_survey(survey, targets, prompts_from=prompts_from, run_folder=run_folder, progress=progress).landslides


def run_extract(
    plan: Plan,
    targets: Targets,
    *,
    prompts_from: str | Path | None = None,
    run_folder: RunFolderOptions | None = None,
    progress: Progress | None = None,
) -> Extraction:
    """Do what was planned and write what was asked for; the records of the run are gone at the end."""
    drawn = read_drawn(prompts_from, plan)
    with under_way(plan, targets, run_folder or RunFolderOptions(), drawn, progress) as work:
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

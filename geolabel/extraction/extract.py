"""From scenes to landslide polygons.

scene -> tiles -> activation -> prompts -> masks -> mosaic blocks -> polygons -> GeoPackage
"""

from __future__ import annotations

import logging
from collections.abc import Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING

from geolabel.engine.run_folder import RunFolderOptions
from geolabel.engine.tasks import Progress
from geolabel.errors import OptionError, VectorError
from geolabel.extraction.evidence import NO_EVIDENCE, check_evidence
from geolabel.extraction.outputs import Targets, write_result
from geolabel.extraction.pipeline import find_landslides
from geolabel.extraction.plan import Plan
from geolabel.extraction.request import Networks, Parameters, Reading
from geolabel.extraction.result import Result, combine
from geolabel.extraction.reviewed import carried_over, with_review
from geolabel.extraction.scene_groups import SceneGroups, prepare_scenes
from geolabel.extraction.supplements import Supplements
from geolabel.extraction.work import Report, under_way
from geolabel.io.prompt_layers import grid_key
from geolabel.io.read.features import read_prompts
from geolabel.io.read.scene_inputs import list_scenes
from geolabel.io.write.geopackage import parts_of
from geolabel.io.write.vectors import provenance_of
from geolabel.parsing import Measure
from geolabel.prompts import Prompts

if TYPE_CHECKING:
    import geopandas as gpd

    from geolabel.io.read.scene_inputs import Scenes

log = logging.getLogger(__name__)

BESIDE = ("dem", "min_slope", "exclude", "before", "before_mask")
"""Names of supplementary data in the provenance."""


def extract(
    scene: Scenes,
    *,
    out: str | Path | None = None,
    reading: Reading | None = None,
    networks: Networks | str | Path | None = None,
    parameters: Parameters | None = None,
    dem: str | Path | None = None,
    min_slope: Measure | None = None,
    exclude: str | Path | None = None,
    before: str | Path | Sequence[str | Path] | None = None,
    before_mask: str | Path | Sequence[str | Path | None] = (),
    register: bool = True,
    cut: bool = True,
    event_after: str | None = None,
    event_before: str | None = None,
    prompts_from: str | Path | None = None,
    keep_reviewed: str | Path | None = None,
    score_out: str | Path | None = None,
    mask_out: str | Path | None = None,
    preview: str | Path | None = None,
    dst_crs: str | None = None,
    overwrite: bool = False,
    discard_review: bool = False,
    run_folder: RunFolderOptions | None = None,
    progress: Progress | None = None,
    report: Report | None = None,
) -> gpd.GeoDataFrame:
    """Find the landslides of a scene, or of many as one inventory.

    Scenes on one grid are processed as one mosaic; where they overlap, the first valid one is used. Scenes on other
    grids are processed one after another, and their overlapping landslides are merged.

    Parameters
    ----------
    scene
        Anything that GDAL opens, an array or dataset of xarray as rioxarray makes them, or several of these; also
        patterns, lists and STAC items, see `geolabel.io.read.scene_inputs.list_scenes`.
    out
        GeoPackage to write; None to write nothing.
    reading, networks, parameters
        How the scene is read and masked, which networks run where, and all numbers that the result depends on. Networks
        may be a folder written by `geolabel.adapt`.
    dem
        Heights in metres, in any CRS and on any grid, as anything that GDAL opens: polygons then have a slope, an
        aspect and a relief.
    min_slope
        Minimum mean slope of a landslide, such as ``Measure(10, "deg")``; gentler ones are candidates. Needs `dem`.
    exclude
        A vector file, such as lakes and rivers: polygons at least half covered by its polygons are candidates.
    before
        An image of the place before the event, in any CRS and on any grid: polygons then have a change and an earlier
        activation, and ground that was bare before and has not changed is a candidate. Of several images, the first
        that is valid and not masked at a pixel is used.
    before_mask
        Rasters, in any CRS and on any grid, such as clouds: non-zero pixels are excluded from `before`. For several
        images one for each, or None.
    register
        Whether to measure the displacement of `before`, at most 32 px of the working grid.
    cut
        Whether to cut ground out of polygons where `before` and `dem` contradict a landslide; it becomes candidates.
        Otherwise they judge whole polygons.
    event_after, event_before
        ISO 8601 dates of the interval with the event; None for those of the images.
    prompts_from
        A vector file whose points and boxes replace the activation. For a GeoPackage that this function wrote, the
        review is kept too, as with `keep_reviewed`, and unchanged prompts give the same masks.
    keep_reviewed
        A reviewed GeoPackage that this function wrote, or another file of polygons: accepted, edited and added polygons
        are kept unchanged, rejected and deleted ones are removed; see `geolabel.extraction.reviewed`. It may be
        `out`.
    score_out, mask_out
        Cloud Optimized GeoTIFFs on the working grid, if there is only one.
    preview
        Picture to write, PNG or JPEG: the scene, outlines by confidence, a scale bar, a north arrow, a legend.
    dst_crs
        CRS of the inventory, such as EPSG:32648; by default that of the scenes, which must then be the same.
    overwrite
        Whether existing files may be replaced. A GeoPackage with reviews or edits is replaced only if these are carried
        over to the new file.
    discard_review
        Whether to replace such a file and lose its reviews and edits.
    run_folder
        Where the records of the run are kept, from which the same call resumes if this one is interrupted; by default
        in a folder beside the first output, which is deleted when the run succeeds.
    progress
        Follows the run.
    report
        Receives counts, gaps and seconds of the run.

    Returns
    -------
    geopandas.GeoDataFrame
        One row per landslide, as in the layer ``landslides`` of the GeoPackage. Polygons below
        `Parameters.min_confidence` are only in its layer ``candidates``.

    Raises
    ------
    GeolabelError
        See `geolabel.errors`.

    Examples
    --------
    >>> import geolabel
    >>> slides = geolabel.extract("scene.tif", out="slides.gpkg")  # doctest: +SKIP
    """
    run_folder, reading = run_folder or RunFolderOptions(), reading or Reading()
    supplements = Supplements(dem, min_slope, exclude, before, before_mask, register, cut, event_after, event_before)
    scenes = list_scenes(scene, asset=reading.asset)
    carried = carried_over(keep_reviewed, prompts_from, discard=discard_review)
    given = {name for one in scenes for name in ("before", "before_mask", "mask") if getattr(one, name)}
    given |= {*supplements.as_dict()} | ({"mask"} if reading.mask else set())
    _warn_of_other_evidence(keep_reviewed or prompts_from, given)
    inputs = [*carried.inputs(prompts_from), *supplements.inputs, *reading.inputs]
    own = [path for one in scenes for path in (*one.before, *one.before_mask, *one.mask)]
    targets = Targets.of(
        out,
        score_out,
        mask_out,
        preview=preview,
        overwrite=overwrite,
        inputs=[*inputs, *own, *(one.source for one in scenes)],
        run_dir=run_folder.run_dir,
        carried=carried,
    )
    groups = prepare_scenes(
        scenes,
        reading,
        Networks.of(networks),
        parameters or Parameters(),
        dst_crs=dst_crs,
        raster=targets.raster,
        supplements=supplements,
    )
    targets.check_crs(groups.crs)
    for text in groups.warnings:
        log.warning("%s", text)
    result = run_extract(
        groups, targets, prompts_from=prompts_from, run_folder=run_folder, progress=progress, report=report
    )
    return result.landslides


def _warn_of_other_evidence(path: str | Path | None, now: Set[str]) -> None:
    """Warn if an inventory was made with supplementary data that this run, which continues it, does not have."""
    if path is None:
        return
    made = provenance_of(path)
    given = made.get("evidence")
    lost = [name for name in BESIDE if isinstance(given, dict) and name in given and name not in now]
    lost += ["mask"] if "mask" not in now and any("masks" in part for part in parts_of(made)) else []
    if lost:
        options = ", ".join("--" + name.replace("_", "-") for name in lost)
        log.warning("%s was made with %s, but this run is not: give them again if they still apply", path, options)


def run_extract(
    groups: SceneGroups,
    targets: Targets,
    *,
    prompts_from: str | Path | None = None,
    run_folder: RunFolderOptions | None = None,
    progress: Progress | None = None,
    report: Report | None = None,
) -> Result:
    """Run a plan and write its outputs; the records of the run are deleted at the end."""
    drawn = read_drawn(prompts_from, groups.plans)
    evidence = groups.evidence or (NO_EVIDENCE,) * len(groups.plans)
    asked = check_evidence(evidence, targets.paths)
    with under_way(groups.plans, targets, run_folder or RunFolderOptions(), drawn, progress, report, asked) as works:
        parts = [find_landslides(*given) for given in zip(works, drawn, evidence, strict=True)]
        found = combine(parts, groups, works[0].report, given=prompts_from is not None)
        result = with_review(found, targets.carried.review)
        result.report.found = result.figures()
        write_result(result, targets, works[0].folder)
    return result


def read_drawn(path: str | Path | None, plans: Sequence[Plan]) -> list[Prompts | None]:
    """The prompts that replace the activation: for each grid those on it, or None without a file."""
    if path is None:
        return [None] * len(plans)
    keys = [grid_key(plan.grid) for plan in plans]
    drawn = []
    for plan, key in zip(plans, keys, strict=True):
        _check_prompted(path, plan)
        others = frozenset(keys) - {key}
        drawn.append(read_prompts(path, plan.grid, classes=plan.classes, partly=len(plans) > 1, others=others))
    if len(plans) > 1 and not any(map(len, drawn)):
        raise VectorError(f"no prompt of {path} is on any of the scenes: check the CRS of the file")
    if plans[0].method.selection == "overlap" and any(prompts.drawn.any() for prompts in drawn):
        raise OptionError(
            f"prompts of a person, in {path}, have no activation that --selection overlap could compare "
            "masks with: choose by best_iou, first, whole or single"
        )
    return [*drawn]


def _check_prompted(path: str | Path, plan: Plan) -> None:
    if not plan.localized:
        raise OptionError(
            f"prompts from {path}: a method without a localizer makes its own prompts; use --method apsam"
        )
    if plan.dense:
        raise OptionError(f"prompts from {path}: {plan.method.name} uses no segmenter; use --method apsam")

"""One inventory of many scenes: every grid worked on in turn, and what was found put together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geolabel.errors import VectorError
from geolabel.io.patchwork import patchwork_of
from geolabel.io.promptlayers import BOX_COLUMNS, POINT_COLUMNS
from geolabel.io.vectors import LANDSLIDE_COLUMNS, TILE_COLUMNS, prompt_features, write_layers
from geolabel.prompts import Prompts
from geolabel.run.extract import Extraction, find_landslides, read_drawn, run_extract
from geolabel.run.folder import Keeping
from geolabel.run.key import survey_key
from geolabel.run.origins import sources
from geolabel.run.outcome import (
    Targets,
    is_likely,
    judged,
    noted,
    overview,
    plan_provenance,
    software,
    sorted_by,
    write_rasters,
)
from geolabel.run.plan import Plan
from geolabel.run.report import Progress, Report
from geolabel.run.survey import Survey
from geolabel.run.union import stacked, unite
from geolabel.run.work import parts_under_way

if TYPE_CHECKING:
    import geopandas as gpd


@dataclass(frozen=True)
class Inventory:
    """What a run found, in the CRS of the survey."""

    landslides: gpd.GeoDataFrame
    candidates: gpd.GeoDataFrame
    """What is less likely to be a landslide than `Parameters.min_confidence` asks, numbered with the landslides."""
    boxes: gpd.GeoDataFrame
    """As the layer ``prompts``."""
    points: gpd.GeoDataFrame
    """As the layer ``prompt_points``."""
    tiles: gpd.GeoDataFrame
    report: Report

    def summary(self) -> dict[str, Any]:
        """The figures that a user wants to see at the end."""
        return overview(self.landslides, self.candidates) | self.report.summary()


def run_survey(
    survey: Survey,
    targets: Targets,
    *,
    prompts_from: str | Path | None = None,
    keeping: Keeping | None = None,
    progress: Progress | None = None,
) -> Extraction | Inventory:
    """Do what was planned for one scene or many and write what was asked for."""
    if survey.plain:
        plan = survey.plans[0]
        return run_extract(plan, targets, prompts_from=prompts_from, keeping=keeping, progress=progress)
    keeping = keeping or Keeping()
    plans, drawn = survey.plans, _drawn(prompts_from, survey.plans)
    wanted = targets.root(keeping.run_dir) is not None
    key = survey_key(plans, drawn, survey.crs, scene_key=keeping.scene_key) if wanted else None
    with parts_under_way(plans, targets, keeping, drawn, progress, key) as works:
        parts = []
        for work, prompts in zip(works, drawn, strict=True):
            found = find_landslides(work, prompts)
            write_rasters(found, targets, work.folder)
            parts.append(_part(found, survey))
        inventory = _together(parts, survey, works[0].report)
        if targets.inventory is not None:
            with noted(works[0].folder, targets.inventory):
                write_layers(
                    targets.inventory,
                    inventory.landslides,
                    (inventory.boxes, inventory.points),
                    inventory.tiles,
                    _provenance(survey, inventory.report),
                    crs=survey.crs,
                    candidates=inventory.candidates,
                    overwrite=targets.may_replace(targets.inventory),
                )
    return inventory


def _drawn(path: str | Path | None, plans: Sequence[Plan]) -> list[Prompts | None]:
    """The prompts that replace the activation, for each grid those that lie on it."""
    if path is None:
        return [None] * len(plans)
    found = [read_drawn(path, plan, partly=len(plans) > 1) for plan in plans]
    if len(plans) > 1 and not any(prompts is not None and len(prompts) for prompts in found):
        raise VectorError(f"no prompt of {path} lies on any of the scenes: check the CRS of the file")
    return found


def _part(found: Extraction, survey: Survey) -> Inventory:
    """What was found on one grid, in the CRS of the grid."""
    landslides, candidates = found.landslides, found.candidates
    if survey.several and patchwork_of(found.plan.reader) is None:
        source = sources([found.plan.reader.scene.name])
        landslides, candidates = landslides.assign(source=source), candidates.assign(source=source)
    prompts = prompt_features(found.prompts, found.plan.grid, found.plan.classes)
    return Inventory(landslides, candidates, *prompts, found.tiles, found.report)


def _polygons(part: Inventory) -> gpd.GeoDataFrame:
    """Landslides and candidates in the order of their numbers."""
    tables = (part.landslides, part.candidates)
    return stacked(tables, part.landslides.crs, LANDSLIDE_COLUMNS).sort_values("id", ignore_index=True)


def _together(parts: Sequence[Inventory], survey: Survey, report: Report) -> Inventory:
    """The parts as one, in the CRS of the survey: prompts and tiles numbered through, landslides united."""
    polygons, plan = unite([_polygons(part) for part in parts], survey.crs), survey.plans[0]
    polygons = polygons.assign(confidence=judged(polygons, plan))
    likely = is_likely(polygons, plan)  # two candidates that overlap may be one landslide, and the other way round
    boxes, points, tiles = [], [], []
    prompt = tile = 0
    for part in parts:
        boxes.append(part.boxes.assign(prompt=part.boxes["prompt"] + prompt))
        points.append(part.points.assign(prompt=part.points["prompt"] + prompt))
        tiles.append(part.tiles.assign(tile=part.tiles["tile"] + tile))
        numbers = [*boxes[-1]["prompt"], *points[-1]["prompt"]]
        prompt = max(numbers) + 1 if numbers else prompt
        tile += len(part.tiles)
    report.landslides, report.candidates = int(likely.sum()), int((~likely).sum())
    return Inventory(
        *sorted_by(likely, polygons),
        stacked(boxes, survey.crs, BOX_COLUMNS),
        stacked(points, survey.crs, POINT_COLUMNS),
        stacked(tiles, survey.crs, TILE_COLUMNS),
        report,
    )


def _provenance(survey: Survey, report: Report) -> dict[str, Any]:
    """How the inventory was made, as plain values."""
    parts = [plan_provenance(plan) for plan in survey.plans]
    return {
        "software": software(),
        "crs": None if survey.crs is None else survey.crs.to_wkt(),
        "parts": [{name: value for name, value in part.items() if name != "software"} for part in parts],
        "counts": report.counts(),
    }

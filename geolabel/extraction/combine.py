"""One inventory of many scenes: every grid worked on in turn, and what was found put together."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from geolabel.engine.progress import Progress
from geolabel.engine.run_folder import RunFolderOptions
from geolabel.errors import VectorError
from geolabel.extraction.extract import Extraction, find_landslides, read_drawn, run_extract
from geolabel.extraction.merge_overlaps import stacked, unite
from geolabel.extraction.outputs import (
    Targets,
    is_likely,
    judged,
    overview,
    plan_provenance,
    review_provenance,
    software,
    sorted_by,
    write_rasters,
    writing,
)
from geolabel.extraction.pipeline import NOBODY
from geolabel.extraction.plan import Plan
from geolabel.extraction.reviewed import combine
from geolabel.extraction.run_key import survey_key
from geolabel.extraction.scene_groups import Survey
from geolabel.extraction.source_scenes import sources
from geolabel.extraction.work import Report, parts_under_way
from geolabel.io.columns import BOX_COLUMNS, LANDSLIDE_COLUMNS, POINT_COLUMNS, TILE_COLUMNS
from geolabel.io.prompt_layers import PIXELS, grid_key
from geolabel.io.read.scene_mosaic import scene_mosaic_of
from geolabel.io.write.vectors import Reviewed, prompt_features, prompt_numbers, write_layers
from geolabel.prompts import FRESH, Prompts
from geolabel.types import Int64Array

if TYPE_CHECKING:
    import geopandas as gpd

    from geolabel.io.read.review import Review


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
    reviewed: Reviewed | None = None
    """What comes from a person's review."""
    shown: Int64Array = field(default_factory=NOBODY.copy)
    """Numbers that those landslides that were found have without the review."""
    fresh: frozenset[int] = frozenset()
    """Prompts that a person drew or changed since the file that they come from was written."""
    left_out: int = 0
    """Polygons that were found on ground that the person has decided about."""

    def summary(self) -> dict[str, Any]:
        """The figures that a user wants to see at the end."""
        counts: dict[str, Any] = review_provenance(self).get("review", {})
        return overview(self.landslides, self.candidates) | counts | self.report.summary()


def run_survey(
    survey: Survey,
    targets: Targets,
    *,
    prompts_from: str | Path | None = None,
    run_folder: RunFolderOptions | None = None,
    progress: Progress | None = None,
) -> Extraction | Inventory:
    """Do what was planned for one scene or many and write what was asked for."""
    if survey.plain:
        plan = survey.plans[0]
        return run_extract(plan, targets, prompts_from=prompts_from, run_folder=run_folder, progress=progress)
    run_folder = run_folder or RunFolderOptions()
    plans, drawn = survey.plans, _drawn(prompts_from, survey.plans)
    wanted = targets.root(run_folder.run_dir) is not None
    key = survey_key(plans, drawn, survey.crs, scene_key=run_folder.scene_key) if wanted else None
    with parts_under_way(plans, targets, run_folder, drawn, progress, key) as works:
        parts = []
        for work, prompts in zip(works, drawn, strict=True):
            found = find_landslides(work, prompts)
            parts.append(_Part.of(found, survey))
        inventory = _together(parts, survey, works[0].report, given=prompts_from is not None)
        inventory = _with_review(inventory, targets.carried.review)
        with writing(targets, works[0].folder):
            if targets.raster is not None:  # there is one grid: its polygons are numbered as they were found
                seen = {name: getattr(inventory, name) for name in ("landslides", "shown", "reviewed")}
                write_rasters(replace(found, **seen), targets)
            if targets.inventory is not None:
                write_layers(
                    targets.inventory,
                    inventory.landslides,
                    (inventory.boxes, inventory.points),
                    inventory.tiles,
                    _provenance(survey, inventory.report) | review_provenance(inventory),
                    crs=survey.crs,
                    candidates=inventory.candidates,
                    reviewed=inventory.reviewed,
                    overwrite=targets.may_replace(targets.inventory),
                    carried=targets.carried,
                )
    return inventory


def _drawn(path: str | Path | None, plans: Sequence[Plan]) -> list[Prompts | None]:
    """The prompts that replace the activation, for each grid those that lie on it."""
    if path is None:
        return [None] * len(plans)
    keys = [grid_key(plan.grid) for plan in plans]
    found = [
        read_drawn(path, plan, partly=len(plans) > 1, others=frozenset(keys) - {key})
        for plan, key in zip(plans, keys, strict=True)
    ]
    if len(plans) > 1 and not any(prompts is not None and len(prompts) for prompts in found):
        raise VectorError(f"no prompt of {path} lies on any of the scenes: check the CRS of the file")
    return found


@dataclass(frozen=True)
class _Part:
    """What was found on one grid, in the CRS of the grid."""

    polygons: gpd.GeoDataFrame
    """Landslides and candidates in the order of their numbers."""
    prompts: Prompts
    tiles: gpd.GeoDataFrame
    plan: Plan

    @classmethod
    def of(cls, found: Extraction, survey: Survey) -> _Part:
        """Keep of a run what the inventory is made of."""
        tables = (found.landslides, found.candidates)
        polygons = stacked(tables, found.landslides.crs, LANDSLIDE_COLUMNS).sort_values("id", ignore_index=True)
        if survey.several and scene_mosaic_of(found.plan.reader) is None:
            polygons = polygons.assign(source=sources([found.plan.reader.scene.name]))
        return cls(polygons, found.prompts, found.tiles, found.plan)

    def renumbered(self, ids: Int64Array) -> _Part:
        """The same with other numbers (K,) of the prompts, also where landslides name them."""
        new = dict(zip(self.prompts.ids.tolist(), ids.tolist(), strict=True))
        named = [
            None if text is None else json.dumps([new[number] for number in prompt_numbers(text)])
            for text in self.polygons["prompts"]
        ]
        polygons = self.polygons.assign(prompts=pd.Series(named, self.polygons.index, dtype=object))
        return replace(self, polygons=polygons, prompts=replace(self.prompts, ids=ids))


def _together(parts: Sequence[_Part], survey: Survey, report: Report, *, given: bool) -> Inventory:
    """The parts as one, in the CRS of the survey: prompts and tiles numbered through, landslides united.

    Parameters
    ----------
    given
        Whether the prompts come from a file, whose numbers they keep.
    """
    numbers = _numbers([part.prompts.ids for part in parts], given=given)
    parts = [part.renumbered(ids) for part, ids in zip(parts, numbers, strict=True)]
    polygons, plan = unite([part.polygons for part in parts], survey.crs), survey.plans[0]
    asked = np.concatenate([part.prompts.ids[part.prompts.drawn] for part in parts])
    polygons = polygons.assign(confidence=judged(polygons, plan, asked))
    likely = is_likely(polygons, plan)  # two candidates that overlap may be one landslide, and the other way round
    prompts = [prompt_features(part.prompts, part.plan.grid, part.plan.classes) for part in parts]
    tiles, tile = [], 0
    for part in parts:
        tiles.append(part.tiles.assign(tile=part.tiles["tile"] + tile))
        tile += len(part.tiles)
    report.landslides, report.candidates = int(likely.sum()), int((~likely).sum())
    return Inventory(
        *sorted_by(likely, polygons),
        stacked([boxes for boxes, _ in prompts], survey.crs, {**BOX_COLUMNS, **PIXELS}),
        stacked([points for _, points in prompts], survey.crs, {**POINT_COLUMNS, **PIXELS}),
        stacked(tiles, survey.crs, TILE_COLUMNS),
        report,
        shown=polygons["id"].to_numpy(np.int64)[likely],
        fresh=frozenset(int(n) for part in parts for n in part.prompts.ids[part.prompts.origins == FRESH]),
    )


def _numbers(own: Sequence[Int64Array], *, given: bool) -> list[Int64Array]:
    """Numbers of the prompts of all parts, none of them twice.

    Parameters
    ----------
    own
        Numbers of each part.
    given
        Whether they were given, and so are kept where no earlier part has them; a prompt may be on several grids.
    """
    free = 1 + max((int(ids.max()) for ids in own if len(ids)), default=-1)
    taken: set[int] = set()
    numbers = []
    for ids in own:
        if given:
            again = np.array([number in taken for number in ids.tolist()], bool)
            ids = np.where(again, free + np.cumsum(again) - 1, ids).astype(np.int64)
            free += int(again.sum())
        else:
            ids = ids + (max(taken) + 1 if taken else 0)
        taken.update(ids.tolist())
        numbers.append(ids)
    return numbers


def _with_review(found: Inventory, review: Review | None) -> Inventory:
    """What was found, and what a person reviewed, if there is such."""
    if review is None:
        return found
    together = combine(review, found.landslides, found.candidates, found.fresh)
    found.report.landslides, found.report.candidates = len(together.landslides), len(together.candidates)
    return replace(found, **vars(together))


def _provenance(survey: Survey, report: Report) -> dict[str, Any]:
    """How the inventory was made, as plain values."""
    parts = [plan_provenance(plan) for plan in survey.plans]
    return {
        "software": software(),
        "crs": None if survey.crs is None else survey.crs.to_wkt(),
        "parts": [{name: value for name, value in part.items() if name != "software"} for part in parts],
        "counts": report.counts(),
    }

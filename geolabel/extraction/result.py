"""The result of a run: everything found on one grid or on many, as one table in one CRS."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pyproj
import shapely

from geolabel import geodesy
from geolabel.errors import VectorError
from geolabel.extraction.evidence import CONFIDENCE, NO_EVIDENCE, Evidence, reasons
from geolabel.extraction.scene_groups import SceneGroups, check_dst_crs, parse_crs, same_crs
from geolabel.geodesy import reproject
from geolabel.io.columns import (
    BOX_COLUMNS,
    LANDSLIDE_COLUMNS,
    LANDSLIDES,
    MEASURED,
    POINT_COLUMNS,
    TILE_COLUMNS,
    Kind,
    Merged,
)
from geolabel.io.prompt_layers import PIXELS
from geolabel.io.read.scene_mosaic import common_date, scene_mosaic_of
from geolabel.io.styles import REVIEW_STATES
from geolabel.io.write.vectors import Reviewed, prompt_features, prompt_numbers
from geolabel.models.confidence import confidence_of
from geolabel.models.evidence_head import with_evidence
from geolabel.parsing import parse_json
from geolabel.prompts import FRESH
from geolabel.spans import connected
from geolabel.types import AnyArray, BoolArray, Float64Array, Int32Array, Int64Array

if TYPE_CHECKING:
    from geolabel.extraction.plan import Plan, Run
    from geolabel.extraction.vectorize import Objects
    from geolabel.extraction.work import Report
    from geolabel.prompts import Prompts


@dataclass(frozen=True)
class Part:
    """Everything found on one grid, in its CRS."""

    polygons: gpd.GeoDataFrame
    """Landslides and candidates, in the order of their numbers from 1."""
    prompts: Prompts
    """Prompts in pixels of the working grid."""
    tiles: gpd.GeoDataFrame
    """Windows of the localizer: status, class probability, message."""
    objects: Objects
    """The same polygons as pixels."""
    run: Run
    evidence: Evidence = NO_EVIDENCE
    """Evidence from outside the scene."""

    @property
    def plan(self) -> Plan:
        """The decisions before the run."""
        return self.run.plan

    @property
    def landslides(self) -> gpd.GeoDataFrame:
        """Polygons not below `Parameters.min_confidence` that no evidence contradicts."""
        return self.polygons[_is_likely(self.polygons, self.plan)].reset_index(drop=True)

    @property
    def candidates(self) -> gpd.GeoDataFrame:
        """The others."""
        return self.polygons[~_is_likely(self.polygons, self.plan)].reset_index(drop=True)


@dataclass(frozen=True)
class Result:
    """Everything that a run found, in the requested CRS."""

    landslides: gpd.GeoDataFrame
    candidates: gpd.GeoDataFrame
    """Polygons below `Parameters.min_confidence` or contradicted by evidence, numbered with the landslides."""
    boxes: gpd.GeoDataFrame
    """Boxes as in the layer ``prompts``."""
    points: gpd.GeoDataFrame
    """Points as in the layer ``prompt_points``."""
    tiles: gpd.GeoDataFrame
    """Windows of the localizer: status, class probability, message."""
    parts: tuple[Part, ...]
    """What was found on each grid."""
    report: Report
    shown: Int64Array
    """Numbers of the found polygons before the review, for those that are landslides."""
    reviewed: Reviewed | None = None
    """Polygons from a person's review."""
    left_out: int = 0
    """Number of polygons found on ground that the person has decided about."""
    cut_out: AnyArray = field(default_factory=lambda: np.zeros(0, object))
    """Ground that the person has decided about, and that was cut out of polygons found around it."""

    @property
    def fresh(self) -> frozenset[int]:
        """Prompts that a person drew or changed since their file was written."""
        return frozenset(int(n) for part in self.parts for n in part.prompts.ids[part.prompts.origins == FRESH])

    def reviewed_polygons(self, crs: pyproj.CRS | None) -> tuple[AnyArray, list[str]]:
        """Outlines in a CRS, and classes, of the landslides from a person's review."""
        own = self.landslides[self.landslides["id"].isin(self.reviewed.numbers if self.reviewed else ())]
        return reprojected(own, crs), own["class"].astype(str).tolist()

    def review_counts(self) -> dict[str, int]:
        """Counts of a person's review, if there was one."""
        if self.reviewed is None:
            return {}
        kept, rejected = len(self.reviewed.numbers), len(self.reviewed.rejected)
        return {"kept": kept, "rejected": rejected, "left_out": self.left_out}

    def figures(self) -> dict[str, Any]:
        """The figures that a user wants to see first.

        The mean confidence, if it is known, estimates which share of the landslides is right.
        """
        confidence = self.landslides["confidence"].to_numpy(float)
        known = confidence[np.isfinite(confidence)]
        polygons: dict[str, Any] = {
            "landslides": len(self.landslides),
            "area_m2": round(float(self.landslides["area_m2"].sum()), 1),
            "mean_confidence": round(float(known.mean()), 3) if known.size else None,
            "candidates": len(self.candidates),
        }
        if self.parts[0].evidence.given or self.parts[0].plan.reader.masks:
            polygons["reasons"] = dict(sorted(Counter(self.candidates["reason"].dropna()).items()))
        known = [part.evidence.before for part in self.parts if part.evidence.before is not None]
        moved = [one for before in known for one in before.displacements]
        if any(one.blocks for one in moved):  # georeferencing that is trusted is not measured
            polygons["displacements_px"] = [[one.rows, one.cols] for one in moved]
        known_classes = self.parts[0].plan.classes
        if len(known_classes) > 1:
            counts = Counter(self.landslides["class"].astype(str))
            polygons["classes"] = {name: counts[name] for name in dict.fromkeys((*known_classes, *sorted(counts)))}
        return polygons | self.review_counts()


def combine(parts: Sequence[Part], groups: SceneGroups, report: Report, *, given: bool) -> Result:
    """The parts as one, in the requested CRS: prompts and tiles numbered through, landslides that overlap merged.

    Parameters
    ----------
    given
        Whether the prompts come from a file; they keep its numbers.
    """
    numbers = _numbers([part.prompts.ids for part in parts], given=given)
    parts = [_renumbered(part, ids) for part, ids in zip(parts, numbers, strict=True)]
    plan = groups.plans[0]
    polygons = merge_overlaps([_with_source(part, groups) for part in parts], groups.crs)
    drawn = np.concatenate([part.prompts.ids[part.prompts.drawn] for part in parts])
    asked = answering(polygons["prompts"], frozenset(drawn.tolist()))
    polygons = polygons.assign(confidence=_confidence_known(polygons, plan, asked))
    likely = _is_likely(polygons, plan)  # two candidates that overlap may be one landslide, and the other way round
    prompts = [prompt_features(part.prompts, part.plan.grid, part.plan.classes) for part in parts]
    first = np.cumsum([0, *(len(part.tiles) for part in parts)])
    tiles = [part.tiles.assign(tile=part.tiles["tile"] + n) for part, n in zip(parts, first, strict=False)]
    return Result(
        landslides=polygons[likely].reset_index(drop=True),
        candidates=polygons[~likely].fillna({"reason": CONFIDENCE}).reset_index(drop=True),
        boxes=_as_one([boxes for boxes, _ in prompts], groups.crs, {**BOX_COLUMNS, **PIXELS}),
        points=_as_one([points for _, points in prompts], groups.crs, {**POINT_COLUMNS, **PIXELS}),
        tiles=_as_one(tiles, groups.crs, TILE_COLUMNS),
        parts=tuple(parts),
        report=report,
        shown=polygons["id"].to_numpy(np.int64)[likely],
    )


def _with_source(part: Part, groups: SceneGroups) -> gpd.GeoDataFrame:
    """The polygons of a part; with several scenes, each lists its own."""
    if groups.scenes == 1 or scene_mosaic_of(part.plan.reader) is not None:
        return part.polygons
    return part.polygons.assign(source=source_list([part.plan.reader.scene.name]))


def _renumbered(part: Part, ids: Int64Array) -> Part:
    """A copy with other numbers (K,) of the prompts, also in the column of landslides that names them."""
    if np.array_equal(part.prompts.ids, ids):
        return part
    new = dict(zip(part.prompts.ids.tolist(), ids.tolist(), strict=True))
    named = [
        None if text is None else json.dumps([new[number] for number in prompt_numbers(text)])
        for text in part.polygons["prompts"]
    ]
    polygons = part.polygons.assign(prompts=pd.Series(named, part.polygons.index, dtype=object))
    return replace(part, polygons=polygons, prompts=replace(part.prompts, ids=ids))


def _numbers(own: Sequence[Int64Array], *, given: bool) -> list[Int64Array]:
    """Numbers of the prompts of all parts, without duplicates.

    Parameters
    ----------
    own
        Numbers of each part.
    given
        Whether they come from a file; they are then kept unless an earlier part has them: a prompt may be on two grids.
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


# --- attributes that are not measured --------------------------------------------------------------------------------


def complete(
    landslides: gpd.GeoDataFrame,
    plan: Plan,
    seen: Sequence[tuple[str, str | None]] | None,
    drawn_ids: Int64Array,
    evidence: Evidence,
    cut: BoolArray | None = None,
) -> gpd.GeoDataFrame:
    """Add the attributes of landslides that are not measured, and put the columns in the order of the inventory.

    Parameters
    ----------
    seen
        Source and date of each landslide, if these are not the same for all.
    drawn_ids
        Prompts that a person drew, see `_confidence_known`.
    evidence
        Evidence against polygons that no person asked for.
    cut : (K,)
        Which were cut out of others, see `geolabel.extraction.cutting`.
    """
    scene = plan.reader.scene
    source = scene.name if seen is None else [name for name, _ in seen]
    date = scene.event_date if seen is None else [date for _, date in seen]
    known: dict[str, Any] = {"source": source, "event_date": date, "notes": None, "status": REVIEW_STATES[0]}
    asked = answering(landslides["prompts"], frozenset(drawn_ids.tolist()))
    known["confidence"] = _confidence_known(landslides, plan, asked)
    known["event_before"] = date if evidence.event_before is None else evidence.event_before
    known["reason"] = reasons(landslides, evidence, asked, cut)
    return landslides.assign(**known)[[*LANDSLIDE_COLUMNS, "geometry"]]


def _confidence_known(landslides: gpd.GeoDataFrame, plan: Plan, asked: BoolArray) -> Float64Array:
    """(K,) confidence of landslides; NaN if none is known for the networks or the method, or a person drew the prompt.

    The model was fitted to polygons of the localizer's prompts; those of a prompt that a person drew are likelier than
    it would estimate. Evidence refines it.
    """
    networks = {recipe.role: recipe.sha256 for recipe in (plan.localizer, plan.segmenter)}
    confidence = confidence_of(landslides, networks, plan.method.name, plan.confidence)
    confidence = with_evidence(confidence, landslides, plan.localizer.sha256)
    confidence[asked] = np.nan
    return confidence


def answering(prompts: pd.Series, numbers: frozenset[int]) -> BoolArray:
    """(K,) whether a landslide, by the column that names its prompts, belongs to one of some prompts."""
    if not numbers:
        return np.zeros(len(prompts), bool)
    return np.array([not numbers.isdisjoint(prompt_numbers(named)) for named in prompts], bool)


def _is_likely(polygons: gpd.GeoDataFrame, plan: Plan) -> BoolArray:
    """(K,) whether polygons are landslides: their confidence suffices, and no evidence speaks against them.

    A polygon without a known confidence is one.
    """
    confidence = polygons["confidence"].to_numpy(float)
    sure = np.isnan(confidence) | (confidence >= (plan.parameters.min_confidence or 0))
    likely: BoolArray = sure & polygons["reason"].isna().to_numpy(bool)
    return likely


def source_list(names: Iterable[str]) -> str:
    """The scenes of a landslide as in the inventory: a JSON list."""
    return json.dumps(list(names), ensure_ascii=False)


# --- polygons that overlap -------------------------------------------------------------------------------------------


def stacked(
    tables: Sequence[gpd.GeoDataFrame], crs: pyproj.CRS | None, columns: Mapping[str, Kind]
) -> gpd.GeoDataFrame:
    """Concatenate tables, with their geometry reprojected to `crs`; columns that one lacks are null.

    Raises
    ------
    VectorError
        If a geometry lies outside the domain of `crs`.
    """
    tables = [table.reindex(columns=[*columns, table.geometry.name]) for table in tables]
    values = {name: _column([table[name] for table in tables], kind) for name, kind in columns.items()}
    shapes = np.concatenate([reprojected(table, crs) for table in tables])
    return gpd.GeoDataFrame(values, geometry=shapes, crs=crs)


def _as_one(
    tables: Sequence[gpd.GeoDataFrame], crs: pyproj.CRS | None, columns: Mapping[str, Kind]
) -> gpd.GeoDataFrame:
    """As `stacked`; a single table that is in `crs` is returned unchanged."""
    if len(tables) == 1 and same_crs(tables[0].crs, crs):
        return tables[0]
    return stacked(tables, crs, columns)


def _column(parts: Sequence[pd.Series], kind: Kind) -> AnyArray:
    values = np.concatenate([part.astype(object).to_numpy() for part in parts])
    missing = pd.isna(values)
    if kind == "real":
        values[missing] = np.nan
        return np.asarray(values, np.float64)
    if kind == "int" and not missing.any():
        return values.astype(np.int64)
    values[missing] = None
    if kind == "int":  # check boxes of another table, as 0 and 1
        values = np.array([*(int(one) if isinstance(one, bool) else one for one in values), None], object)[:-1]
    return values


def reprojected(table: gpd.GeoDataFrame, crs: pyproj.CRS | None) -> AnyArray:
    """The geometries of a table in a CRS, valid there; unchanged if it is their own.

    Raises
    ------
    VectorError
        If one lies outside its domain.
    """
    own = table.crs
    if crs is None or own is None or same_crs(own, crs) or not len(table):
        return np.asarray(table.geometry.to_numpy(), object)
    moved = reproject(np.asarray(table.geometry.to_numpy(), object), own, crs)
    if not np.isfinite(shapely.bounds(moved)).all():
        raise VectorError(f"polygons in {own.name} have no place in {crs.name}: correct them, or choose another CRS")
    invalid = ~shapely.is_valid(moved)
    moved[invalid] = shapely.make_valid(moved[invalid], method="structure", keep_collapsed=False)
    return moved


def in_dst_crs(table: gpd.GeoDataFrame, dst_crs: str | pyproj.CRS | None) -> gpd.GeoDataFrame:
    """Polygons in a CRS that a user names, with sizes measured there; unchanged if none is named, or their own.

    Raises
    ------
    OptionError
        If PROJ does not know the CRS, or the polygons have none.
    VectorError
        If a polygon lies outside its domain.
    """
    crs = parse_crs(dst_crs)
    if crs is None or same_crs(table.crs, crs):
        return table
    check_dst_crs(crs, table.crs)
    moved = table.set_geometry(gpd.GeoSeries(reprojected(table, crs), index=table.index, crs=crs))
    return _measured(moved, np.ones(len(table), bool))


def merge_overlaps(tables: Sequence[gpd.GeoDataFrame], crs: pyproj.CRS | None) -> gpd.GeoDataFrame:
    """Landslides of several scenes as one table, in which those of different scenes that overlap are merged.

    Landslides that only touch stay apart, as do those of the same scene, which are apart in their pixels, and those of
    different classes.

    Parameters
    ----------
    tables
        As in the inventory of each scene; ``source`` is a JSON list.
    crs
        CRS of the result.

    Returns
    -------
    geopandas.GeoDataFrame
        Numbered by scene and there as before. A union has the sum of its parts' prompts, their largest score, other
        means weighted by area, all their sources, and the other attributes of its largest part.
    """
    if len(tables) == 1 and same_crs(tables[0].crs, crs):
        return tables[0]
    together = stacked(tables, crs, LANDSLIDE_COLUMNS)
    new = np.repeat([not same_crs(table.crs, crs) for table in tables], [len(table) for table in tables])
    scene = np.repeat(np.arange(len(tables)), [len(table) for table in tables])
    _, kind = np.unique(together["class"].astype(str), return_inverse=True)
    group, count = overlapping(together.geometry.to_numpy(), scene, kind)
    size = np.bincount(group, minlength=count)
    alone = size[group] == 1
    joined = np.flatnonzero(size > 1)
    unions = [_union(together[group == number]) for number in joined]
    parts = [_measured(together[alone], new[alone])]
    if unions:
        table = gpd.GeoDataFrame(unions, geometry="geometry", crs=crs)
        parts.append(_measured(table, np.ones(len(table), bool)))
    result = stacked(parts, crs, LANDSLIDE_COLUMNS)
    order = np.argsort(np.concatenate([group[alone], joined]), kind="stable")
    return result.iloc[order].reset_index(drop=True).assign(id=np.arange(1, count + 1))


def overlapping(shapes: AnyArray, scene: Int64Array, kind: Int64Array | None = None) -> tuple[Int32Array, int]:
    """Group polygons that share ground with a polygon of another scene.

    Parameters
    ----------
    shapes : (N,) polygons
    scene : (N,) the scene of each
    kind : (N,) the class of each; None if all have the same

    Returns
    -------
    labels : (N,) numbered from 0 by their first polygon
    count : number of groups
    """
    one, other = shapely.STRtree(shapes).query(shapes, predicate="intersects")
    pairs = (scene[one] < scene[other]) & ~shapely.touches(shapes[one], shapes[other])
    if kind is not None:
        pairs &= kind[one] == kind[other]
    return connected(one[pairs], other[pairs], len(shapes))


def _union(parts: gpd.GeoDataFrame) -> dict[str, Any]:
    """One landslide made of several; see `merge_overlaps`."""
    area = parts["area_m2"].to_numpy(float)
    merged = {column.name: MERGED[column.merged](parts[column.name], area) for column in LANDSLIDES}
    return merged | {"geometry": shapely.union_all(parts.geometry.to_numpy())}


def _of_largest(values: pd.Series, area: Float64Array) -> Any:
    return values.iloc[int(np.argmax(area))]


def _mean(values: pd.Series, area: Float64Array) -> float:
    numbers = values.to_numpy(float)
    known = np.isfinite(numbers)
    return float(np.average(numbers[known], weights=area[known])) if known.any() else np.nan


def _sum(values: pd.Series, _: Float64Array) -> int | None:
    return None if values.isna().any() else int(values.sum())


def _prompt_list(values: pd.Series, _: Float64Array) -> str | None:
    numbers = sorted({number for text in values for number in prompt_numbers(text)})
    return None if values.isna().any() else json.dumps(numbers)


def _scene_list(values: pd.Series, _: Float64Array) -> str:
    return source_list(dict.fromkeys(name for text in values for name in parse_json(text)))


MERGED: Mapping[Merged, Callable[[pd.Series, Float64Array], Any]] = {
    "largest": _of_largest,
    "measured": _of_largest,  # until the new outline is measured
    "mean": _mean,
    "maximum": lambda values, _: float(values.max()),
    "sum": _sum,
    "numbers": _prompt_list,
    "scenes": _scene_list,
    "shared": lambda values, _: common_date(list(values)),
}
"""Functions from values of polygons and their areas to that of their union, by `geolabel.io.columns.Column.merged`."""


def _measured(table: gpd.GeoDataFrame, new: BoolArray) -> gpd.GeoDataFrame:
    """The table with multipolygons, and with the sizes of new outlines."""
    outlines = table.geometry.to_numpy()
    singles = shapely.get_type_id(outlines) == shapely.GeometryType.POLYGON
    outlines = np.where(
        singles, [shapely.MultiPolygon([o]) if s else o for o, s in zip(outlines, singles, strict=True)], outlines
    )
    sizes = geodesy.measure(outlines[new], table.crs)
    measured = {name: table[name].to_numpy(float).copy() for name in MEASURED}
    for name, values in measured.items():
        values[new] = getattr(sizes, name)
    return table.assign(**measured).set_geometry(gpd.GeoSeries(outlines, index=table.index, crs=table.crs))

"""Combine a person's review and what a run found into one inventory.

A person's work comes first. A polygon that the run found is left out if at least half
of it is on ground that a person has decided about, of whatever class: kept, and so in the inventory already, or
rejected. If at least a quarter of it is, it is a candidate, for the person to see. If less is, that ground is cut out
of it, and the rest is kept as found. For that quarter, ground that the person cut off a redrawn polygon counts as
decided too. Two kinds of polygons are exempt: those that the reviewed file holds with the same outline and that
nobody touched, which keep their numbers; and, on rejected ground, those of a prompt that was drawn or changed since
that file was written.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import pyproj
import shapely

from geolabel import geodesy, polygons
from geolabel.extraction.evidence import DECIDED
from geolabel.extraction.result import Result, answering, reprojected, stacked
from geolabel.extraction.scene_groups import same_crs
from geolabel.io.columns import LANDSLIDE_COLUMNS, MEASURED, WINDOW_COLUMNS
from geolabel.io.read.review import (
    LAYER,
    POLYGON_LAYERS,
    REDRAWN,
    UNREVIEWED,
    Carried,
    Review,
    mark_of_prompts,
    read_review,
)
from geolabel.io.read.typed_columns import added_columns
from geolabel.io.write.vectors import Reviewed
from geolabel.io.written import canonical, plain, read_written
from geolabel.types import AnyArray, BoolArray, Float64Array

log = logging.getLogger(__name__)

FOUND = POLYGON_LAYERS[:2]
"""Layers of what a run finds: landslides and candidates."""

SHARE = 0.5
"""Share of a polygon on decided ground from which on it is left out."""

LITTLE = 0.25
"""Share of a polygon on decided ground from which on it is a candidate; below, that ground is cut out of it."""


def _review_of(keep_reviewed: str | Path | None, prompts_from: str | Path | None) -> Review | None:
    """The review that a run keeps: that of the file named for it, else of the file of prompts, if geolabel wrote it.

    Raises
    ------
    VectorError
        If the file cannot be read.
    """
    if keep_reviewed is None and (prompts_from is None or read_written(prompts_from) is None):
        return None
    review = read_review(Path(keep_reviewed or prompts_from or ""))
    if review.unsure:
        log.warning(
            "%s has no record of what geolabel wrote, as exports have none: edits of %d unreviewed polygons cannot be "
            "recognised, so these are not kept; set their status to accepted to keep them",
            review.path,
            review.unsure,
        )
    return review


def carried_over(
    keep_reviewed: str | Path | None, prompts_from: str | Path | None, *, discard: bool = False
) -> Carried:
    """The part of a person's review that a run carries over; see `_review_of`."""
    review = _review_of(keep_reviewed, prompts_from)
    if prompts_from is None or not Path(prompts_from).is_file():  # none, or a URL, which no output can be
        return Carried(discard, review)
    return Carried(discard, review, Path(prompts_from), mark_of_prompts(Path(prompts_from)))


def with_review(result: Result, review: Review | None) -> Result:
    """Combine a person's review and what a run found into one result; see the module for the rules.

    Polygons that were kept, or found again with the same outline, keep their numbers; all others get higher ones than
    any polygon of these files has had.
    """
    if review is None:
        return result
    landslides, candidates, fresh = result.landslides, result.candidates, result.fresh
    unit_m = result.parts[0].plan.grid.unit_m
    crs = landslides.crs
    kept, rejected = (reviewed_in(table, crs, unit_m) for table in (review.kept, review.rejected))
    highest = number_new((kept, rejected), review.highest)
    found = pd.concat([landslides.assign(**{LAYER: "landslides"}), candidates.assign(**{LAYER: "candidates"})])
    found = found.sort_values("id", ignore_index=True)
    shapes = np.asarray(found.geometry.to_numpy(), object)
    was = _waiting(review, crs)
    removed = shapely.get_parts(reprojected(review.removed, crs))  # with lines, if an outline crossed itself
    removed = removed[shapely.area(removed) > 0]
    share, much, decided = _decided(shapes, answering(found["prompts"], fresh), kept, rejected, removed)
    cut = ~shapely.is_empty(decided) & np.array([one is None for one in _known(shapes, was)], bool)
    found = _without(found, cut, decided, unit_m)
    known = _known(found.geometry.to_numpy(), was)
    again = np.array([one is not None for one in known], bool)
    inside = share >= SHARE
    numbers = found["id"].to_numpy(np.int64)
    ids = np.array([one[0] if one is not None else 0 for one in known], np.int64)
    stays = again | ~inside
    new = stays & ~again
    ids[new] = np.arange(highest + 1, highest + 1 + new.sum())
    highest += int(new.sum())
    shown, waited = (np.array([one is not None and one[1] == name for one in known]) for name in FOUND)
    layer, reason = found[LAYER].to_numpy(object), found["reason"].to_numpy(object)
    moved = (much | (waited & (share > 0))) & ~shown & (layer == "landslides")
    layer, reason = np.where(moved, "candidates", layer), np.where(moved, DECIDED, reason)
    found = found.assign(**{"id": ids, LAYER: layer, "reason": reason})[stays]
    columns = LANDSLIDE_COLUMNS | dict(review.columns)
    layers = []
    for name in FOUND:
        parts = [part[part[LAYER] == name] for part in (found, kept)]
        layers.append(stacked(parts, crs, columns).sort_values("id", kind="stable", ignore_index=True))
    numbered = frozenset(int(number) for number in kept["id"])
    return replace(
        result,
        landslides=layers[0],
        candidates=layers[1],
        reviewed=Reviewed(numbered, stacked([rejected], crs, columns), review.columns, highest, looked_in(review, crs)),
        shown=numbers[stays & (layer == "landslides")],
        left_out=int((~stays).sum()),
        cut_out=decided[cut],
    )


def number_new(tables: Sequence[gpd.GeoDataFrame], highest: int) -> int:
    """Number, in place, the polygons that have no ``id``, above `highest`; returns the new highest number."""
    for table in tables:
        new = table["id"].isna().to_numpy(bool)
        table.loc[new, "id"] = np.arange(highest + 1, highest + 1 + new.sum())
        highest += int(new.sum())
    return highest


def looked_in(review: Review, crs: pyproj.CRS | None) -> gpd.GeoDataFrame:
    """Windows that a person has reviewed, in a CRS."""
    columns = WINDOW_COLUMNS | added_columns([review.looked], WINDOW_COLUMNS)
    return stacked([review.looked], crs, columns) if len(review.looked) else review.looked


def reviewed_in(table: gpd.GeoDataFrame, crs: pyproj.CRS | None, unit_m: float | None) -> gpd.GeoDataFrame:
    """Reviewed polygons in the CRS of the inventory, with the sizes of outlines that a person drew."""
    outlines = reprojected(table, crs)
    new = np.full(len(table), not same_crs(table.crs, crs)) | table[REDRAWN].to_numpy(bool)
    table = table.reindex(columns=[*dict.fromkeys([*table.columns, *LANDSLIDE_COLUMNS])])
    table = table.set_geometry(gpd.GeoSeries(outlines, index=table.index, crs=crs))
    dates = [plain(value) for value in table["event_date"]]
    states = table["status"].astype(object).where(table["status"].notna(), UNREVIEWED)
    sizes = geodesy.measure(polygons.valid_multipolygons(outlines[new]), crs, 1.0 if unit_m is None else unit_m)
    measured = {name: pd.to_numeric(table[name]).to_numpy(float, copy=True) for name in MEASURED}
    for name, values in measured.items():
        values[new] = getattr(sizes, name)
    return table.assign(event_date=pd.Series(dates, table.index, dtype=object), status=states, **measured)


def _waiting(review: Review, crs: pyproj.CRS | None) -> dict[bytes, tuple[int, str]]:
    """Number and layer of the unreviewed polygons, by their outlines."""
    outlines = canonical(reprojected(review.waiting, crs))
    rows = zip(outlines, review.waiting["id"], review.waiting[LAYER], strict=True)
    return {shapely.to_wkb(outline): (int(number), layer) for outline, number, layer in rows}


def _known(shapes: AnyArray, was: Mapping[bytes, tuple[int, str]]) -> list[tuple[int, str] | None]:
    """What `_waiting` returns for the outlines (K,)."""
    return [was.get(shapely.to_wkb(outline)) for outline in canonical(shapes)]


def _without(found: gpd.GeoDataFrame, cut: BoolArray, decided: AnyArray, unit_m: float | None) -> gpd.GeoDataFrame:
    """Polygons (K,), some of them without the decided ground (K,), measured again."""
    if not cut.any():
        return found
    outlines = np.asarray(found.geometry.to_numpy(), object).copy()
    outlines[cut] = polygons.valid_multipolygons(shapely.difference(outlines[cut], decided[cut]))
    sizes = geodesy.measure(outlines[cut], found.crs, 1.0 if unit_m is None else unit_m)
    measured = {name: pd.to_numeric(found[name]).to_numpy(float, copy=True) for name in MEASURED}
    for name, values in measured.items():
        values[cut] = getattr(sizes, name)
    return found.assign(**measured).set_geometry(gpd.GeoSeries(outlines, index=found.index, crs=found.crs))


def _decided(
    shapes: AnyArray, answers: BoolArray, kept: gpd.GeoDataFrame, rejected: gpd.GeoDataFrame, removed: AnyArray
) -> tuple[Float64Array, BoolArray, AnyArray]:
    """(K,) share of polygons on reviewed polygons, whether it is `LITTLE` or more, and the ground to cut out if not.

    Parameters
    ----------
    answers : (K,)
        Which belong to a fresh prompt, so that rejected and removed ground is ignored.
    removed : (R,)
        Parts cut off redrawn polygons; no one is shown a polygon for them.
    """
    tables = kept.geometry.to_numpy(), rejected.geometry.to_numpy()
    ground = polygons.valid_multipolygons(np.concatenate([*tables, removed]))
    refused = np.arange(len(ground)) >= len(kept)
    one, other = shapely.STRtree(ground).query(shapes, predicate="intersects")
    counts = ~(answers[one] & refused[other])
    one, other = one[counts], other[counts]
    shared = shapely.intersection(shapes[one], ground[other])
    reviewed = other < len(kept) + len(rejected)
    sizes = np.maximum(shapely.area(shapes), np.finfo(float).tiny)
    share = polygons.covered_areas(shared[reviewed], one[reviewed], len(shapes)) / sizes
    areas = polygons.covered_areas(shared, one, len(shapes))
    much = (share > 0) & (areas >= LITTLE * sizes)
    cut_out = np.full(len(shapes), shapely.Polygon(), object)
    for number in np.flatnonzero((share > 0) & ~much):
        cut_out[number] = shapely.union_all(shared[one == number])
    return share, much, cut_out

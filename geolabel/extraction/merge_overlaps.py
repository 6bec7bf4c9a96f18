"""Tables of several scenes as one: in one CRS, numbered through, and polygons that overlap united."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pyproj
import shapely

from geolabel import geodesy
from geolabel.errors import VectorError
from geolabel.extraction.scene_groups import same_crs
from geolabel.extraction.source_scenes import sources
from geolabel.io.columns import LANDSLIDE_COLUMNS, Kind
from geolabel.io.read.scene_mosaic import common_date
from geolabel.io.write.vectors import prompt_numbers
from geolabel.parsing import parse_json
from geolabel.reprojection import reproject
from geolabel.seams import connected
from geolabel.types import AnyArray, BoolArray, Int32Array, Int64Array

MEANS = ("score_mean", "predicted_iou", "stability", "activation_mean")
"""Attributes of a union that are those of its parts, weighted by area."""

SIZES = ("area_m2", "perimeter_m", "length_m", "width_m", "elongation", "lon", "lat")
"""Attributes that are measured of the outline."""


def stacked(
    tables: Sequence[gpd.GeoDataFrame], crs: pyproj.CRS | None, columns: Mapping[str, Kind]
) -> gpd.GeoDataFrame:
    """Put tables one after the other, their geometry reprojected to `crs`; what columns they lack is null.

    Raises
    ------
    VectorError
        If a geometry has no place in `crs`.
    """
    tables = [table.reindex(columns=[*columns, table.geometry.name]) for table in tables]
    values = {name: _column([table[name] for table in tables], kind) for name, kind in columns.items()}
    shapes = np.concatenate([brought(table, crs) for table in tables])
    return gpd.GeoDataFrame(values, geometry=shapes, crs=crs)


def _column(parts: Sequence[pd.Series], kind: Kind) -> AnyArray:
    values = np.concatenate([part.astype(object).to_numpy() for part in parts])
    if kind == "real":
        return np.asarray([np.nan if value is None else value for value in values], np.float64)
    missing = pd.isna(values)
    if kind == "int" and not missing.any():
        return values.astype(np.int64)
    values[missing] = None
    return values


def brought(table: gpd.GeoDataFrame, crs: pyproj.CRS | None) -> AnyArray:
    """The geometries of a table in a CRS, valid there; as they are where it is their own.

    Raises
    ------
    VectorError
        If one has no place in `crs`.
    """
    own = table.crs
    if crs is None or own is None or same_crs(own, crs) or not len(table):
        return np.asarray(table.geometry.to_numpy(), object)
    moved = reproject(np.asarray(table.geometry.to_numpy(), object), own, crs)
    if not np.isfinite(shapely.bounds(moved)).all():
        raise VectorError(f"polygons in {own.name} have no place in {crs.name}: give another --dst-crs")
    invalid = ~shapely.is_valid(moved)
    moved[invalid] = shapely.make_valid(moved[invalid], method="structure", keep_collapsed=False)
    return moved


def unite(tables: Sequence[gpd.GeoDataFrame], crs: pyproj.CRS | None) -> gpd.GeoDataFrame:
    """Landslides of several scenes as one table, where those of different scenes that overlap are one.

    What only touches stays apart, as do landslides of the same scene: these are apart in their pixels.

    Parameters
    ----------
    tables
        As in the inventory of each scene; ``source`` is a list in JSON.
    crs
        Of the result.

    Returns
    -------
    geopandas.GeoDataFrame
        Numbered by scene and there as before. A union has the sum of its parts' prompts, their largest score, other
        means weighted by area, all their sources, and what is left of its largest part.
    """
    together = stacked(tables, crs, LANDSLIDE_COLUMNS)
    new = np.repeat([not same_crs(table.crs, crs) for table in tables], [len(table) for table in tables])
    scene = np.repeat(np.arange(len(tables)), [len(table) for table in tables])
    group, count = overlapping(together.geometry.to_numpy(), scene)
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


def overlapping(shapes: AnyArray, scene: Int64Array) -> tuple[Int32Array, int]:
    """Which polygons belong together since they share ground with one of another scene.

    Parameters
    ----------
    shapes : (N,) polygons
    scene : (N,) whose each is

    Returns
    -------
    labels : (N,) numbered from 0 by their first polygon
    count : number of groups
    """
    one, other = shapely.STRtree(shapes).query(shapes, predicate="intersects")
    pairs = (scene[one] < scene[other]) & ~shapely.touches(shapes[one], shapes[other])
    return connected(one[pairs], other[pairs], len(shapes))


def _union(parts: gpd.GeoDataFrame) -> dict[str, Any]:
    """One landslide of several; see `unite`."""
    area = parts["area_m2"].to_numpy(float)
    whole: dict[str, Any] = parts.iloc[int(np.argmax(area))].to_dict()
    for name in MEANS:
        values = parts[name].to_numpy(float)
        known = np.isfinite(values)
        whole[name] = float(np.average(values[known], weights=area[known])) if known.any() else np.nan
    names = [name for text in parts["source"] for name in parse_json(text)]
    asked = sorted({number for text in parts["prompts"] for number in prompt_numbers(text)})
    return whole | {
        "score_max": float(parts["score_max"].max()),
        "n_prompts": None if parts["n_prompts"].isna().any() else int(parts["n_prompts"].sum()),
        "prompts": None if parts["prompts"].isna().any() else json.dumps(asked),
        "source": sources(dict.fromkeys(names)),
        "event_date": common_date(list(parts["event_date"])),
        "geometry": shapely.union_all(parts.geometry.to_numpy()),
    }


def _measured(table: gpd.GeoDataFrame, new: BoolArray) -> gpd.GeoDataFrame:
    """The table with multipolygons, and the sizes of those outlines that are new."""
    outlines = table.geometry.to_numpy()
    singles = shapely.get_type_id(outlines) == shapely.GeometryType.POLYGON
    outlines = np.where(
        singles, [shapely.MultiPolygon([o]) if s else o for o, s in zip(outlines, singles, strict=True)], outlines
    )
    sizes = geodesy.measure(outlines[new], table.crs)
    measured = {name: table[name].to_numpy(float).copy() for name in SIZES}
    for name, values in measured.items():
        values[new] = getattr(sizes, name)
    return table.assign(**measured).set_geometry(gpd.GeoSeries(outlines, index=table.index, crs=table.crs))

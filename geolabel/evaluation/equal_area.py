"""Polygons where areas can be measured: in an equal-area projection, as connected regions, inside what was judged."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pyproj
import shapely
from pyproj.crs import ProjectedCRS
from pyproj.crs.coordinate_operation import LambertAzimuthalEqualAreaConversion
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from geolabel.errors import VectorError
from geolabel.io.read.features import in_crs, layer_info, read_aoi, read_layer
from geolabel.io.read.label_rasters import grid_of
from geolabel.types import AnyArray

TOUCHING = 1e-3
"""Metres, or units without CRS, between polygons that share an edge; changing a CRS moves edges by less."""


def regions(polygons: AnyArray) -> AnyArray:
    """(T,) connected regions of polygons, what a raster of them shows as one.

    Parts of a multipolygon are regions of their own; polygons that overlap or share an edge are one, those that meet
    at a corner are not.
    """
    parts = shapely.get_parts(polygons)
    one, other = shapely.STRtree(parts).query(parts, predicate="dwithin", distance=TOUCHING)
    pairs = one < other
    one, other = one[pairs], other[pairs]
    # a common edge of some length: around a corner two polygons share no more than a few squares of the tolerance
    common = shapely.area(shapely.intersection(shapely.buffer(parts[one], TOUCHING), parts[other]))
    edge = common > 4 * TOUCHING**2
    graph = coo_array((np.ones(edge.sum(), bool), (one[edge], other[edge])), shape=(len(parts), len(parts)))
    count, region = connected_components(graph, directed=False)
    order = np.argsort(region, kind="stable")
    groups = np.split(parts[order], np.searchsorted(region[order], np.arange(1, count)))
    return np.array(
        [group[0] if len(group) == 1 else shapely.union_all(group) for group in groups if len(group)], object
    )


def plane_of(*sources: tuple[str | Path, str]) -> pyproj.CRS | None:
    """An equal-area projection around the middle of the first layer that has features, in that layer's own datum.

    None where a layer has no place on Earth: coordinates are compared as they are.
    """
    infos = [layer_info(path, layer) for path, layer in sources]
    systems = [None if info["crs"] is None else pyproj.CRS(info["crs"]) for info in infos]
    on_earth = [crs for crs in systems if crs is not None and crs.geodetic_crs is not None]
    if len(on_earth) < len(systems):
        return None
    filled = [k for k, info in enumerate(infos) if info["features"]]
    if not filled:
        return on_earth[0]
    crs, (left, bottom, right, top) = on_earth[filled[0]], infos[filled[0]]["total_bounds"]
    to_lonlat = pyproj.Transformer.from_crs(crs, crs.geodetic_crs, always_xy=True)
    lon, lat = to_lonlat.transform([left, (left + right) / 2, right], [bottom, (bottom + top) / 2, top])
    if not np.isfinite([lon[1], lat[1]]).all():
        raise VectorError(f"the polygons around {(left, bottom, right, top)} lie outside what {crs.name} can map")
    middle = lon[1]
    if lon[2] - lon[0] > 180:  # on both sides of the antimeridian, and the mean of the numbers is round the Earth
        points = shapely.get_coordinates(read_layer(*sources[filled[0]], columns=()).geometry.to_numpy())
        east = np.exp(1j * np.radians(to_lonlat.transform(*points.T)[0]))
        middle = math.degrees(np.angle(east.mean()))
    return ProjectedCRS(LambertAzimuthalEqualAreaConversion(lat[1], middle), geodetic_crs=crs.geodetic_crs)


def extent_of(
    plane: pyproj.CRS | None, scene: str | Path | None, aoi: tuple[str | Path, str | None] | None
) -> shapely.Geometry | None:
    """What is judged: the outline of a scene, an area of interest, or what both share; None for everything.

    Raises
    ------
    VectorError
        If they do not meet.
    """
    parts = [] if aoi is None else [read_aoi(aoi[0], plane, aoi[1])]
    if scene is not None:
        grid = grid_of(scene)
        outline = gpd.GeoDataFrame(geometry=[grid.outline], crs=grid.crs)
        parts.append(in_crs(outline, plane, scene).geometry[0])
    if not parts:
        return None
    extent = shapely.intersection_all(parts)
    if extent.area == 0:
        raise VectorError(f"{aoi and aoi[0]} and {scene} do not meet: a CRS or the coordinates may be wrong")
    return extent


def covered(polygons: AnyArray, cover: Any) -> AnyArray:
    """(K,) area of each polygon under a cover, part of the cover by part."""
    parts = shapely.get_parts(cover)
    index, part = shapely.STRtree(parts).query(polygons, predicate="intersects")
    shared = shapely.area(shapely.intersection(polygons[index], parts[part]))
    return np.bincount(index, weights=shared, minlength=len(polygons))

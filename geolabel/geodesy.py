"""Sizes of polygons on the ground: areas and lengths in metres, wherever the polygons' CRS lies."""

from __future__ import annotations

from dataclasses import dataclass, fields
from itertools import pairwise

import numpy as np
import pyproj
import shapely

from geolabel.polygons import Geometries
from geolabel.reprojection import cut_apart, put_together
from geolabel.types import Float64Array, Int64Array


@dataclass(frozen=True)
class Sizes:
    """What K polygons measure on the ground; NaN where their CRS cannot tell."""

    area_m2: Float64Array
    """(K,) geodesic area, holes left out."""
    perimeter_m: Float64Array
    """(K,) geodesic length of all rings, holes too."""
    length_m: Float64Array
    """(K,) long side of the smallest rectangle, of any direction, around the polygon."""
    width_m: Float64Array
    """(K,) its short side."""
    lon: Float64Array
    """(K,) longitude of a point inside the polygon, degrees east of Greenwich in the datum of the CRS."""
    lat: Float64Array
    """(K,) its latitude."""

    @property
    def elongation(self) -> Float64Array:
        """(K,) length over width, 1 or more."""
        return self.length_m / self.width_m


def measure(polygons: Geometries, crs: pyproj.CRS | None, unit_m: float = 1.0) -> Sizes:
    """Measure multipolygons on the ellipsoid of their CRS, or on the plane where it has none.

    Rectangles are fitted in the azimuthal equidistant projection around a point inside each polygon. What the edge of
    the CRS cuts apart, see `geolabel.reprojection`, is measured as a whole.

    Parameters
    ----------
    polygons : (K,) multipolygons
    crs
        None for a picture that lies nowhere on Earth.
    unit_m
        Metres per unit of the coordinates where `crs` is None.
    """
    if not len(polygons):
        return Sizes(*(np.zeros(0) for _ in range(6)))
    if crs is None or crs.ellipsoid is None:
        if crs is not None and crs.axis_info:  # an engineering CRS: metres or feet on a building site
            unit_m = crs.axis_info[0].unit_conversion_factor
        return _on_plane(polygons, unit_m)
    sizes = _on_ellipsoid(polygons, crs)
    for index in np.flatnonzero(cut_apart(polygons, crs)):
        whole, plane = put_together(polygons[index], crs)
        one = _on_ellipsoid(np.array([whole], object), plane)
        for field in fields(sizes):
            getattr(sizes, field.name)[index] = getattr(one, field.name)[0]
    return sizes


def _on_plane(polygons: Geometries, unit_m: float) -> Sizes:
    hulls, owner = _hulls(polygons)
    sides = _rectangles(hulls, owner, len(polygons)) * unit_m
    unknown = np.full(len(polygons), np.nan)
    return Sizes(
        area_m2=shapely.area(polygons) * unit_m**2,
        perimeter_m=shapely.length(polygons) * unit_m,
        length_m=sides[:, 0],
        width_m=sides[:, 1],
        lon=unknown,
        lat=unknown,
    )


def _on_ellipsoid(polygons: Geometries, crs: pyproj.CRS) -> Sizes:
    ellipsoid = crs.ellipsoid
    assert ellipsoid is not None
    a, b = ellipsoid.semi_major_metre, ellipsoid.semi_minor_metre
    geod = pyproj.Geod(a=a, b=b)
    # Degrees from Greenwich on the same ellipsoid: no datum shift, whatever meridian and unit the CRS counts in.
    graticule = pyproj.CRS.from_dict({"proj": "longlat", "a": a, "b": b})
    degrees = pyproj.Transformer.from_crs(crs, graticule, always_xy=True)
    area, perimeter = _areas(polygons, geod, degrees)
    inside = shapely.point_on_surface(polygons)
    lon, lat = degrees.transform(shapely.get_x(inside), shapely.get_y(inside))
    hulls, owner = _hulls(polygons)
    azimuth, _, distance = geod.inv(lon[owner], lat[owner], *degrees.transform(hulls[:, 0], hulls[:, 1]))
    azimuth = np.radians(azimuth)
    local = np.stack([distance * np.sin(azimuth), distance * np.cos(azimuth)], axis=1)
    sides = _rectangles(local, owner, len(polygons))
    lon, lat = (np.where(np.isfinite(values), values, np.nan) for values in (lon, lat))
    lon = np.where(np.abs(lon) > 180, np.mod(lon + 180, 360) - 180, lon)  # of scenes that count on beyond 180 degrees
    return Sizes(area_m2=area, perimeter_m=perimeter, length_m=sides[:, 0], width_m=sides[:, 1], lon=lon, lat=lat)


def _areas(polygons: Geometries, geod: pyproj.Geod, degrees: pyproj.Transformer) -> tuple[Float64Array, Float64Array]:
    """Area and perimeter of every multipolygon from those of its rings (Karney 2013, "Algorithms for geodesics")."""
    _, coordinates, (rings, parts, wholes) = shapely.to_ragged_array(polygons, include_z=False)
    lon, lat = degrees.transform(coordinates[:, 0], coordinates[:, 1])
    measured = [geod.polygon_area_perimeter(lon[a:b], lat[a:b]) for a, b in pairwise(rings)]
    ring_area, ring_length = np.asarray(measured).T
    sign = np.full(len(measured), -1.0)
    sign[parts[:-1]] = 1  # the first ring of a part is its shell
    first_ring = parts[wholes]
    return np.add.reduceat(sign * np.abs(ring_area), first_ring[:-1]), np.add.reduceat(ring_length, first_ring[:-1])


def _hulls(polygons: Geometries) -> tuple[Float64Array, Int64Array]:
    """Vertices of the convex hulls, closed, and the polygon that each belongs to, ascending."""
    coordinates, owner = shapely.get_coordinates(shapely.convex_hull(polygons), return_index=True)
    return coordinates, owner


def _rectangles(vertices: Float64Array, owner: Int64Array, count: int) -> Float64Array:
    """(count, 2) long and short side of the smallest rectangle around each hull; it shares a side with the hull."""
    bounds = np.searchsorted(owner, np.arange(count + 1))
    return np.asarray([_rectangle(vertices[a:b]) for a, b in pairwise(bounds)])


def _rectangle(hull: Float64Array) -> tuple[float, float]:
    if not np.isfinite(hull).all():
        return np.nan, np.nan
    side = np.diff(hull, axis=0)
    side = side[side.any(axis=1)]
    along = side / np.hypot(side[:, 0], side[:, 1])[:, None]
    across = np.stack([-along[:, 1], along[:, 0]], axis=1)
    extents = np.stack([np.ptp(hull @ along.T, axis=0), np.ptp(hull @ across.T, axis=0)], axis=1)
    best = extents[np.argmin(extents.prod(axis=1))]
    return float(best.max()), float(best.min())

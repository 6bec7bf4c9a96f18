"""Reprojection of geometries, and sizes of polygons on the ground in metres, in any CRS.

Longitudes jump at the antimeridian, and so do the coordinates of world maps at their edge. A polygon that crosses it
would span the whole Earth; it is split there instead, as in GeoJSON (RFC 7946, section 3.1.9).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from functools import partial
from itertools import pairwise

import numpy as np
import pyproj
import shapely
from pyproj.crs import ProjectedCRS
from pyproj.crs.coordinate_operation import LambertAzimuthalEqualAreaConversion

from geolabel.polygons import Geometries
from geolabel.types import BoolArray, Float64Array, Int64Array


@dataclass(frozen=True)
class Sizes:
    """Sizes of K polygons on the ground; NaN if unknown, such as longitudes without a CRS."""

    area_m2: Float64Array
    """(K,) geodesic area without holes."""
    perimeter_m: Float64Array
    """(K,) geodesic length of all rings, including holes."""
    length_m: Float64Array
    """(K,) long side of the minimum rotated rectangle."""
    width_m: Float64Array
    """(K,) its short side."""
    lon: Float64Array
    """(K,) longitude of a point inside the polygon, degrees east of Greenwich in the datum of the CRS."""
    lat: Float64Array
    """(K,) its latitude."""

    @property
    def elongation(self) -> Float64Array:
        """(K,) length over width, at least 1."""
        return self.length_m / self.width_m


def measure(polygons: Geometries, crs: pyproj.CRS | None, unit_m: float = 1.0) -> Sizes:
    """Measure multipolygons on the ellipsoid of their CRS, or in the plane without one.

    Rectangles are fitted in the azimuthal equidistant projection centred on a point of each polygon. Polygons split at
    the edge of the CRS, see `geolabel.geodesy`, are measured as a whole.

    Parameters
    ----------
    polygons : (K,) multipolygons
    crs
        None for an image without georeference.
    unit_m
        Metres per unit of the coordinates if `crs` is None.
    """
    if not len(polygons):
        return Sizes(*(np.zeros(0) for _ in range(6)))
    if crs is None or crs.ellipsoid is None:
        if crs is not None and crs.axis_info:  # an engineering CRS: metres or feet on a building site
            unit_m = crs.axis_info[0].unit_conversion_factor
        return _on_plane(polygons, unit_m)
    sizes = _on_ellipsoid(polygons, crs)
    for index in np.flatnonzero(_cut_apart(polygons, crs)):
        whole, plane = _put_together(polygons[index], crs)
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
    # Degrees from Greenwich on the same ellipsoid: no datum shift, whatever prime meridian and unit the CRS has.
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
    lon = np.where(np.abs(lon) > 180, np.mod(lon + 180, 360) - 180, lon)  # scenes that extend beyond 180 degrees
    return Sizes(area_m2=area, perimeter_m=perimeter, length_m=sides[:, 0], width_m=sides[:, 1], lon=lon, lat=lat)


def _areas(polygons: Geometries, geod: pyproj.Geod, degrees: pyproj.Transformer) -> tuple[Float64Array, Float64Array]:
    """Area and perimeter of every multipolygon, from its rings (Karney 2013, "Algorithms for geodesics")."""
    _, coordinates, (rings, parts, wholes) = shapely.to_ragged_array(polygons, include_z=False)
    lon, lat = degrees.transform(coordinates[:, 0], coordinates[:, 1])
    measured = [geod.polygon_area_perimeter(lon[a:b], lat[a:b]) for a, b in pairwise(rings)]
    ring_area, ring_length = np.asarray(measured).T
    sign = np.full(len(measured), -1.0)
    sign[parts[:-1]] = 1  # the first ring of a part is its shell
    first_ring = parts[wholes]
    return np.add.reduceat(sign * np.abs(ring_area), first_ring[:-1]), np.add.reduceat(ring_length, first_ring[:-1])


def _hulls(polygons: Geometries) -> tuple[Float64Array, Int64Array]:
    """Closed vertices of the convex hulls, and the index of the polygon of each, ascending."""
    coordinates, owner = shapely.get_coordinates(shapely.convex_hull(polygons), return_index=True)
    return coordinates, owner


def _rectangles(vertices: Float64Array, owner: Int64Array, count: int) -> Float64Array:
    """(count, 2) long and short side of the minimum rectangle around each hull; it shares a side with the hull."""
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


ORIGINS = ("Longitude of natural origin", "Longitude of false origin", "Longitude of projection centre")
"""Projection parameters that name the central meridian."""

HAIR = 1e-9
"""Degrees between a cut and the edge of a map, 0.1 mm, so that the side of a point is unambiguous."""


def reproject(geometries: Geometries, source: pyproj.CRS, target: pyproj.CRS) -> Geometries:
    """Change the CRS of geometries (N,) of points and polygons.

    Returns
    -------
    (N,) geometries; infinite where `target` is undefined, multipolygons where they are split
    """
    transformer = pyproj.Transformer.from_crs(source, target, always_xy=True)
    moved: Geometries = shapely.transform(geometries, transformer.transform, interleaved=False)
    seam = Seam.of(target)
    if seam is None or not len(geometries):
        return moved
    lonlat = moved
    if not seam.geographic:
        degrees = pyproj.Transformer.from_crs(source, seam.geodetic, always_xy=True)
        lonlat = shapely.transform(geometries, degrees.transform, interleaved=False)
    return seam.cut(moved, lonlat)


@dataclass(frozen=True)
class Seam:
    """The meridian where the coordinates of a CRS jump."""

    target: pyproj.CRS
    geodetic: pyproj.CRS
    """The CRS of its longitudes and latitudes."""
    middle: float
    """Longitude of the opposite meridian, in units of `geodetic`."""
    turn: float
    """A full circle in these units."""

    @classmethod
    def of(cls, crs: pyproj.CRS) -> Seam | None:
        """Find the seam of a CRS; None if it has none, or is not georeferenced."""
        crs = _horizontal(crs)
        geodetic = crs.geodetic_crs
        if geodetic is None or geodetic.is_geocentric:
            return None
        unit = geodetic.axis_info[0].unit_conversion_factor if geodetic.axis_info else math.radians(1)
        turn = 2 * math.pi / unit
        if crs.is_geographic:
            return cls(crs, crs, 0.0, turn)
        parameters = crs.coordinate_operation.params if crs.coordinate_operation is not None else []
        middle = next((float(p.value) * p.unit_conversion_factor / unit for p in parameters if p.name in ORIGINS), None)
        if middle is None or not _jumps(crs, geodetic, middle + turn / 2, turn):
            return None
        return cls(crs, geodetic, middle, turn)

    @property
    def geographic(self) -> bool:
        """Whether the coordinates are longitudes."""
        return bool(self.target.is_geographic)

    def cut(self, moved: Geometries, lonlat: Geometries) -> Geometries:
        """Split the polygons that cross the seam.

        Parameters
        ----------
        moved : (N,) geometries in the CRS of the seam
        lonlat : (N,) the same in `geodetic`
        """
        result = moved.copy()
        for index in np.flatnonzero(self.through(lonlat)):
            result[index] = self._halves(lonlat[index])
        if self.geographic:
            bounds = shapely.bounds(result)
            beyond = np.flatnonzero((bounds[:, 0] < -self.turn / 2) | (bounds[:, 2] > self.turn / 2))
            result[beyond] = shapely.transform(result[beyond], self._within)
        return result

    def _from_seam(self, lon: Float64Array) -> Float64Array:
        """Angle east of the seam, from minus half a circle."""
        with np.errstate(invalid="ignore"):  # points where the CRS is undefined
            wrapped: Float64Array = np.mod(lon - self.middle, self.turn) - self.turn / 2
        return wrapped

    def through(self, lonlat: Geometries) -> BoolArray:
        """(N,) whether the seam crosses or touches a polygon, so that its longitudes are at both edges."""
        points, owner = shapely.get_coordinates(lonlat, return_index=True)
        short = _extents(self._from_seam(points[:, 0]), owner, len(lonlat)) < self.turn / 2
        wide = _extents(self._from_seam(points[:, 0] + self.turn / 2), owner, len(lonlat)) > self.turn / 2
        return np.asarray(short & wide & (shapely.get_dimensions(lonlat) == 2))

    def unrolled(self, points: Float64Array) -> Float64Array:
        """Points (N, 2) of `geodetic` with angles from the seam; points very close to it are moved onto it."""
        angle = self._from_seam(points[:, 0])
        return np.stack([np.where(np.abs(angle) < 2 * HAIR, 0.0, angle), points[:, 1]], axis=1)

    def _halves(self, geometry: shapely.Geometry) -> shapely.MultiPolygon:
        flat = shapely.make_valid(shapely.transform(geometry, self.unrolled), method="structure", keep_collapsed=False)
        parts: list[shapely.Polygon] = []
        for west, east, edge in ((-self.turn / 2, 0.0, self.turn / 2), (0.0, self.turn / 2, -self.turn / 2)):
            side = shapely.intersection(flat, shapely.box(west, -self.turn, east, self.turn))
            pieces = shapely.get_parts(shapely.get_parts([side]))
            parts += [self._on_edge(piece, edge) for piece in pieces if piece.geom_type == "Polygon" and piece.area]
        return shapely.MultiPolygon([shapely.geometry.polygon.orient(part) for part in parts])

    def _on_edge(self, part: shapely.Polygon, edge: float) -> shapely.Polygon:
        """A part on one side of the seam, in the CRS; `edge` is the angle of the seam on that side."""
        if self.geographic:
            return shapely.transform(part, lambda points: points + np.array([edge, 0.0]))
        back = pyproj.Transformer.from_crs(self.geodetic, self.target, always_xy=True)

        def place(points: Float64Array) -> Float64Array:
            angle = np.clip(points[:, 0] + edge, HAIR - self.turn / 2, self.turn / 2 - HAIR)
            lon = np.mod(self.middle + angle + self.turn / 2, self.turn) - self.turn / 2
            return np.stack(back.transform(lon, points[:, 1]), axis=1)

        return shapely.transform(part, place)

    def _within(self, points: Float64Array) -> Float64Array:
        return np.stack([np.mod(points[:, 0] + self.turn / 2, self.turn) - self.turn / 2, points[:, 1]], axis=1)


def unwrapped(geometries: Geometries, crs: pyproj.CRS) -> Geometries:
    """Polygons whose longitudes jump, as from 179.9 to -179.9, with continuous longitudes.

    Polygons from edge to edge, such as the outline of the world, are returned unchanged.
    """
    seam = Seam.of(crs)
    if seam is None or not seam.geographic or not len(geometries):
        return geometries
    result = geometries.copy()
    bounds = shapely.bounds(geometries)
    for index in np.flatnonzero(bounds[:, 2] - bounds[:, 0] > seam.turn / 2):
        parts = np.asarray(shapely.get_parts(geometries[index]), object)
        wide = seam.through(parts) & (np.ptp(shapely.bounds(parts)[:, [0, 2]], axis=1) < seam.turn)
        parts[wide] = shapely.transform(
            parts[wide], lambda points: np.stack([np.mod(points[:, 0], seam.turn), points[:, 1]], axis=1)
        )
        if wide.any():
            result[index] = parts[0] if len(parts) == 1 else shapely.union_all(parts)
    return result


def _cut_apart(polygons: Geometries, crs: pyproj.CRS) -> BoolArray:
    """(N,) whether polygons have parts at both edges of a CRS, as split by `reproject`."""
    seam = Seam.of(crs)
    parts = np.asarray(shapely.get_num_geometries(polygons) > 1)
    if seam is None or not parts.any():
        return np.zeros(len(polygons), bool)
    to_lonlat = pyproj.Transformer.from_crs(crs, seam.geodetic, always_xy=True)
    lonlat = shapely.transform(polygons[parts], to_lonlat.transform, interleaved=False)
    result = np.zeros(len(polygons), bool)
    result[parts] = seam.through(lonlat)
    return result


def _put_together(polygon: shapely.MultiPolygon, crs: pyproj.CRS) -> tuple[shapely.MultiPolygon, pyproj.CRS]:
    """A polygon that `_cut_apart` reports, merged, in an equal-area projection around it."""
    seam = Seam.of(crs)
    assert seam is not None
    to_lonlat = pyproj.Transformer.from_crs(crs, seam.geodetic, always_xy=True)
    lonlat = shapely.transform(polygon, to_lonlat.transform, interleaved=False)
    flat = shapely.transform(lonlat, seam.unrolled)
    middle = flat.representative_point()
    lon = float(np.mod(middle.x + seam.middle, seam.turn)) - seam.turn / 2
    plane = ProjectedCRS(LambertAzimuthalEqualAreaConversion(middle.y, lon), geodetic_crs=seam.geodetic)
    to_plane = pyproj.Transformer.from_crs(seam.geodetic, plane, always_xy=True)

    def place(points: Float64Array) -> Float64Array:
        return np.stack(to_plane.transform(points[:, 0] + seam.middle + seam.turn / 2, points[:, 1]), axis=1)

    whole = shapely.transform(shapely.union_all(shapely.get_parts([flat])), place)
    return shapely.MultiPolygon(list(shapely.get_parts([whole]))), plane


def near(geometries: Geometries, crs: pyproj.CRS | None, frame: shapely.Polygon) -> Geometries:
    """Geometries shifted by full circles of longitude to where a frame is: 180.1 east is 179.9 west.

    If several shifts intersect the frame, the result is their union; if none does, the geometry is unchanged.
    """
    seam = None if crs is None else Seam.of(crs)
    if seam is None or not seam.geographic or not len(geometries):
        return geometries
    left, _, right, _ = frame.bounds
    bounds = shapely.total_bounds(geometries)
    if -seam.turn / 2 <= min(left, bounds[0]) and max(right, bounds[2]) <= seam.turn / 2:
        return geometries
    result = geometries.copy()
    for index, geometry in enumerate(geometries):
        shifts = [np.array([turns * seam.turn, 0.0]) for turns in (-1, 0, 1)]
        turned = [shapely.transform(geometry, partial(np.add, shift)) for shift in shifts]
        meeting = [
            part
            for part in shapely.get_parts(np.array(turned, object))
            if part.bounds[0] <= right and part.bounds[2] >= left
        ]
        if meeting:
            result[index] = meeting[0] if len(meeting) == 1 else shapely.union_all(meeting)
    return result


def _horizontal(crs: pyproj.CRS) -> pyproj.CRS:
    """The horizontal part of a CRS."""
    if crs.is_bound and crs.source_crs is not None:
        return _horizontal(crs.source_crs)
    return _horizontal(crs.sub_crs_list[0]) if crs.is_compound else crs


def _jumps(crs: pyproj.CRS, geodetic: pyproj.CRS, lon: float, turn: float) -> bool:
    """Whether the coordinates of a CRS jump at a meridian; they do not around the pole of a polar map."""
    lat = np.repeat(np.array([10.0, 60.0, -60.0]) * turn / 360, 2)
    sides = np.tile([lon - HAIR, lon + HAIR], 3)
    x, y = pyproj.Transformer.from_crs(geodetic, crs, always_xy=True).transform(sides, lat)
    apart = np.hypot(np.diff(x), np.diff(y))[::2]
    return bool((apart[np.isfinite(apart)] > 1000).any())


def _extents(values: Float64Array, owner: Int64Array, count: int) -> Float64Array:
    """(count,) range of the values of each owner; owners are sorted."""
    low, high = np.full(count, np.inf), np.full(count, -np.inf)
    np.minimum.at(low, owner, values)
    np.maximum.at(high, owner, values)
    extents: Float64Array = high - low
    return extents

"""From spans to polygons: exact outlines, simplified or smoothed, in the coordinates of the scene.

The order is fixed: exact outlines without collinear vertices and with a canonical start, simplify, smooth, make valid,
and finally the affine transform. Until then coordinates are x (columns) and y (rows) of pixel edges: exact integers, so
neighbouring outlines match without rounding errors.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Self

import numpy as np
import shapely
from affine import Affine
from numpy.typing import NDArray

from geolabel.spans import Spans
from geolabel.types import Float64Array, Int32Array, Int64Array

Geometries = NDArray[np.object_]
"""(K,) shapely geometries."""

PAIRS = 1 << 14
"""Maximum number of pairs of polygons whose intersections are in memory at once."""

SMOOTHING_ROUNDS = 4
"""Iterations of `smooth`; each doubles the number of vertices and halves the cut."""


def trace(spans: Spans, labels: Int32Array, count: int) -> Geometries:
    """Outline labelled spans.

    Pixels are connected over their edges. A ring has no collinear vertices, starts with its first vertical edge in
    raster order, and has its pixels on the left: a shell starts downwards. A ring never touches itself: where an object
    meets itself at a corner, the enclosed background becomes a hole that touches the shell in that point, as in
    ``rasterio.features.shapes``.

    Parameters
    ----------
    spans
        N spans.
    labels : (N,) object of each span, from 0 to `count` - 1; an object is one 4-connected component

    Returns
    -------
    (count,) polygons in pixel coordinates
    """
    if count == 0:
        return np.zeros(0, object)
    sides = _Sides.of(spans, labels)
    order = sides.corners_by_line()
    # A corner where two pixels of an object meet diagonally is visited twice. If one ring visits it twice, swapping the
    # successors splits the ring there. All such corners are handled at once, since rings do not cross themselves.
    ring = _cycles(_following(order))[2]
    left, right = order[1:-1:2], order[2::2]
    twice = (sides.corners[left] == sides.corners[right]).all(axis=1) & (ring[left // 2] == ring[right // 2])
    order[1:-1:2], order[2::2] = np.where(twice, right, left), np.where(twice, left, right)
    members, offsets, _ = _cycles(_following(order))
    return _assemble(sides, members, offsets, count)


@dataclass(frozen=True)
class _Sides:
    """E vertical edges in raster order. Left sides of objects are walked down, right sides up."""

    x: Int64Array
    tail: Int64Array
    """(E,) row where the walk along the edge starts."""
    head: Int64Array
    """(E,) row where it ends."""
    owner: Int32Array
    """(E,) object."""

    @classmethod
    def of(cls, spans: Spans, labels: Int32Array) -> Self:
        """Merge the ends of spans down the rows."""
        x = np.concatenate([spans.start, spans.stop]).astype(np.int64)
        y = np.tile(spans.row.astype(np.int64), 2)
        right = np.repeat([False, True], len(spans))
        # one ascending number per end; ends above each other are consecutive
        key = (2 * x + right) * (y.max() + 2) + y
        order = np.argsort(key)
        new = np.append(True, np.diff(key[order]) != 1)
        first, last = order[new], order[np.append(new[1:], True)]
        raster = np.lexsort((x[first], y[first]))
        first, last = first[raster], last[raster]
        top, bottom, up = y[first], y[last] + 1, right[first]
        return cls(x[first], np.where(up, bottom, top), np.where(up, top, bottom), np.tile(labels, 2)[first])

    @cached_property
    def corners(self) -> Int64Array:
        """(2 E, 2) x, y of the ends of edges: the tail of edge i is corner 2 i, its head 2 i + 1."""
        return np.stack([np.repeat(self.x, 2), np.stack([self.tail, self.head], axis=1).ravel()], axis=1)

    def corners_by_line(self) -> Int64Array:
        """(2 E,) corners from left to right along every line between rows.

        Every corner ends one horizontal edge, so the first and second, third and fourth, ... are paired. Where pixels
        meet diagonally, two corners coincide; the one of a right side ends the edge from the left.
        """
        x, y = self.corners.T
        return np.lexsort((np.repeat(self.tail < self.head, 2), x, y))


def _following(order: Int64Array) -> Int64Array:
    """(E,) edge that follows each edge around its ring: the one whose tail is paired with the edge's head."""
    partner = np.empty(len(order), np.int64)
    partner[order[0::2]], partner[order[1::2]] = order[1::2], order[0::2]
    following: Int64Array = partner[1::2] // 2
    return following


def _cycles(following: Int64Array) -> tuple[Int64Array, Int64Array, Int64Array]:
    """Walk the cycles of a permutation, each from its lowest member.

    Returns
    -------
    members : (E,) the R cycles, concatenated
    offsets : (R + 1,) start of each cycle
    cycle : (E,) number of the cycle of every member
    """
    step = following.tolist()  # list items are accessed ten times faster than array items
    cycle = [-1] * len(step)
    members: list[int] = []
    offsets = [0]
    for first in range(len(step)):
        if cycle[first] >= 0:
            continue
        at, number = first, len(offsets) - 1
        while cycle[at] < 0:
            cycle[at] = number
            members.append(at)
            at = step[at]
        offsets.append(len(members))
    return np.asarray(members), np.asarray(offsets), np.asarray(cycle)


def _assemble(sides: _Sides, members: Int64Array, offsets: Int64Array, count: int) -> Geometries:
    """Polygons of rings. The first ring of an object in raster order is its shell."""
    owner = sides.owner[members[offsets[:-1]]]
    by_object = np.argsort(owner, kind="stable")
    sizes = np.diff(offsets)[by_object]
    ends = np.cumsum(sizes)
    edges = members[np.arange(len(members)) + np.repeat(offsets[by_object] - ends + sizes, sizes)]
    vertices = sides.corners[np.stack([2 * edges, 2 * edges + 1], axis=1).ravel()].astype(np.float64)
    rings = np.searchsorted(owner[by_object], np.arange(count + 1))
    return _polygons(vertices, np.append(0, 2 * ends), rings)


def _polygons(vertices: Float64Array, offsets: Int64Array, rings: Int64Array) -> Geometries:
    """Polygons of open rings: ring r has the vertices from ``offsets[r]`` on, polygon k the rings from ``rings[k]``."""
    closed = np.insert(vertices, offsets[1:], vertices[offsets[:-1]], axis=0)
    result: Geometries = shapely.from_ragged_array(
        shapely.GeometryType.POLYGON, closed, (offsets + np.arange(len(offsets)), rings)
    )
    return result


def simplify(polygons: Geometries, tolerance: float) -> Geometries:
    """Drop vertices, moving outlines by at most `tolerance` (Douglas and Peucker 1973), preserving topology.

    The start of a ring may move by up to twice as much, since GEOS treats that vertex separately.
    """
    if tolerance == 0:
        return polygons
    result: Geometries = shapely.simplify(polygons, tolerance, preserve_topology=True)
    return result


def smooth(polygons: Geometries, reach: float) -> Geometries:
    """Round corners by cutting them, at most `reach` from the corner along either side.

    Chaikin (1974), "An algorithm for high-speed curve generation": every corner is cut at a quarter of its two sides,
    but at no more than half of the remaining `reach`, so long straight sides are kept.

    Parameters
    ----------
    polygons : (K,) polygons, not multipolygons
    """
    if reach == 0 or not len(polygons):
        return polygons
    _, closed, (closed_offsets, rings) = shapely.to_ragged_array(polygons, include_z=False)
    vertices, offsets = (
        np.delete(closed, closed_offsets[1:] - 1, axis=0),
        closed_offsets - np.arange(len(closed_offsets)),
    )
    for k in range(1, SMOOTHING_ROUNDS + 1):
        vertices, offsets = _cut_corners(vertices, offsets, reach / 2**k), 2 * offsets
    return _polygons(vertices, offsets, rings)


def _cut_corners(vertices: Float64Array, offsets: Int64Array, reach: float) -> Float64Array:
    following = np.arange(1, len(vertices) + 1)
    following[offsets[1:] - 1] = offsets[:-1]
    side = vertices[following] - vertices
    length = np.hypot(side[:, 0], side[:, 1])
    share = np.minimum(0.25, np.divide(reach, length, out=np.full_like(length, 0.25), where=length > 0))[:, None]
    return np.stack([vertices + share * side, vertices + (1 - share) * side], axis=1).reshape(-1, 2)


def multipolygons(polygons: Geometries) -> Geometries:
    """Make polygons valid, drop those without area, and convert all to multipolygons."""
    mended = polygons.copy()
    for index in np.flatnonzero(~shapely.is_valid(polygons)):
        # lines and points may remain, in a collection that may contain multipolygons
        parts = shapely.get_parts(shapely.get_parts([shapely.make_valid(polygons[index])]))
        mended[index] = shapely.MultiPolygon([part for part in parts if part.geom_type == "Polygon"])
    parts, owner = shapely.get_parts(mended, return_index=True)
    result: Geometries = shapely.multipolygons(parts, indices=owner)
    assert len(result) == len(polygons), "an outline without area"
    return result


def place(polygons: Geometries, transform: Affine) -> Geometries:
    """Move polygons from pixel coordinates to those of a raster's transform, with counterclockwise shells."""
    a, b, c, d, e, f = tuple(transform)[:6]

    def move(points: Float64Array) -> Float64Array:
        x, y = points[:, 0], points[:, 1]
        return np.stack([a * x + b * y + c, d * x + e * y + f], axis=1)

    moved: Geometries = shapely.transform(polygons, move)
    # the transform of a south-up raster does not mirror
    return shapely.reverse(moved) if transform.determinant > 0 else moved


def outlines(
    spans: Spans, labels: Int32Array, count: int, transform: Affine, *, tolerance: float = 0, reach: float = 0
) -> Geometries:
    """Polygons of labelled spans in the coordinates of `transform`: all steps of this module, in order.

    Parameters
    ----------
    spans, labels, count
        See `trace`.
    transform
        Pixel to CRS coordinates.
    tolerance
        Tolerance of `simplify`, pixels; 0 for exact outlines.
    reach
        Reach of `smooth`, pixels; 0 for sharp corners.

    Returns
    -------
    (count,) valid multipolygons
    """
    polygons = smooth(simplify(trace(spans, labels, count), tolerance), reach)
    # rounding in the transform can make touching rings cross slightly
    return multipolygons(place(multipolygons(polygons), transform))


def valid_multipolygons(outlines: Geometries) -> Geometries:
    """(N,) outlines as valid multipolygons; outlines drawn by a person may cross themselves."""
    mended = shapely.make_valid(outlines, method="structure", keep_collapsed=False)
    parts, owner = shapely.get_parts(mended, return_index=True)
    bounds = np.searchsorted(owner, np.arange(len(outlines) + 1))
    return np.array([shapely.MultiPolygon(list(parts[a:b])) for a, b in pairwise(bounds)] + [None], object)[:-1]


def shared_areas(one: Geometries, other: Geometries, pairs: tuple[Int64Array, Int64Array]) -> Float64Array:
    """(N,) areas that pairs of polygons share; intersections are made some at a time, however many pairs there are.

    Parameters
    ----------
    one, other : (K,) and (L,)
        Valid polygons.
    pairs : (N,) each
        Indices in `one` and in `other`.
    """
    first, second = pairs
    areas = np.zeros(len(first))
    for start in range(0, len(first), PAIRS):
        some = slice(start, start + PAIRS)
        areas[some] = shapely.area(shapely.intersection(one[first[some]], other[second[some]]))
    return areas


def covered_areas(parts: Geometries, owner: Int64Array, count: int) -> Float64Array:
    """(count,) area that the parts of each owner cover together; NaN without parts.

    Parameters
    ----------
    parts : (N,)
        Polygons; they may overlap.
    owner : (N,) from 0 to `count` - 1
    """
    areas = np.full(count, np.nan)
    order = np.argsort(owner, kind="stable")
    owners, first = np.unique(owner[order], return_index=True)
    for k, own in zip(owners, np.split(order, first)[1:], strict=True):
        areas[k] = shapely.union_all(parts[own]).area
    return areas

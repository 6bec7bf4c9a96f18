"""A stratified random sample to review, from which the accuracy of an inventory can be estimated.

Strata are the landslides of the map by confidence, its candidates, and the ground outside polygons, which is sampled by
square windows. Every stratum gets the same share of the sample, as recommended by Olofsson et al. (2014) if the
accuracy of rare classes matters, and the ground outside polygons twice as much, since most of its windows are empty.

Polygons and windows are ordered by a hash of the seed and their number or position. So a larger sample starts with the
smaller one, and any first part of it is a random sample too.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pyproj
import shapely

from geolabel.errors import OptionError, VectorError
from geolabel.io.read.review import SAMPLE, UNREVIEWED
from geolabel.io.write.geopackage import parts_of
from geolabel.io.write.vectors import provenance_of
from geolabel.review.estimate import OUTSIDE, MappedPolygons
from geolabel.review.inventories import read_inventory
from geolabel.review.next_windows import frames_around
from geolabel.review.window_layers import (
    frame_of,
    masked_ground,
    metres_per_unit,
    replacing_windows,
    tile_side,
    window_table,
)
from geolabel.types import AnyArray, BoolArray, Int64Array

log = logging.getLogger(__name__)

MAX_CELLS = 4_000_000
"""Maximum number of windows outside polygons."""

FREE = 0.25
"""Minimum share of a window that is searched ground outside polygons."""

SAME_SIDE = 0.02
"""Relative tolerance for equal sides of windows, which are not exact in degrees."""


@dataclass(frozen=True)
class Sample:
    """A sample written to an inventory."""

    windows: gpd.GeoDataFrame
    """New windows; see `geolabel.io.columns.WINDOWS`."""
    kept: int
    """Number of earlier windows of the same sample."""

    def figures(self) -> dict[str, Any]:
        """Plain values: number of new windows, by stratum, and of kept ones."""
        drawn = self.windows["stratum"].value_counts(sort=False).to_dict()
        return {"windows": len(self.windows), "kept": self.kept, "strata": {str(k): int(v) for k, v in drawn.items()}}


def sample_review(
    path: str | Path,
    *,
    count: int = 60,
    seed: int = 0,
    window: float | None = None,
    aoi: str | Path | None = None,
) -> Sample:
    """Draw a stratified random sample to review, and write it to an inventory as the layer ``review_sample``.

    Nothing else in the file changes. Called again with a larger count, the sample grows; earlier windows are kept.

    Parameters
    ----------
    path
        A GeoPackage written by geolabel.
    count
        Number of windows of the whole sample, including earlier ones.
    seed
        Random seed; the same for every call on one file.
    window
        Side in metres of the windows outside polygons; None for half a tile of the localizer.
    aoi
        Polygons of the area to sample; by default the tiles that the localizer saw. Masked ground is excluded.

    Raises
    ------
    OptionError
        If `count` or `window` is not positive, there would be too many windows, or the sample of the file has windows
        of another size.
    VectorError
        If a file cannot be read, or the area to sample is unknown.
    OutputError
        If the file is not a GeoPackage written by geolabel, or cannot be changed.

    Examples
    --------
    >>> import geolabel
    >>> geolabel.sample_review("slides.gpkg", count=60).figures()  # doctest: +SKIP
    """
    if count < 1:
        raise OptionError(f"count {count}: give at least 1 window")
    if window is not None and not 0 < window < math.inf:
        raise OptionError(f"window {window} m: it must be a positive number of metres")
    with replacing_windows(path, SAMPLE) as layer:
        inventory = read_inventory(path)
        mapped = MappedPolygons.of(inventory)
        frame = frame_of(path, inventory.crs, aoi)
        if frame is None:
            raise VectorError(f"{path} has no layer tiles, so the area that was searched is not known: give --aoi FILE")
        if frame.is_empty:
            raise VectorError(f"{path} has no searched ground in the area to sample: give another --aoi FILE")
        masks = [part.get("masks") for part in parts_of(provenance_of(path))]
        hidden = any(isinstance(one, dict) and one.get("share") for one in masks)
        if aoi is None and hidden and masked_ground(path) is None:
            log.warning(
                "%s was made with --mask by an earlier version, which did not keep what was left out: windows may be "
                "on it, where landslides would count as missed; extract again, or give the area searched with --aoi",
                path,
            )
        held = layer.held
        drawer = _Drawer(mapped, frame, inventory.crs, seed, _side(path, window), inventory.polygons)
        drawer.check(held)
        windows = window_table(drawer.draw(count, held), inventory.crs)
        layer.write(windows, keep=np.ones(len(held), bool))
        return Sample(windows, len(held))


def _side(path: str | Path, window: float | None) -> float:
    if window is not None:
        return window
    side = tile_side(path)
    if side is None:
        raise OptionError(f"{path} has no layer tiles to say how large windows are to be: give --window METRES")
    return side / 2


@dataclass(frozen=True)
class _Drawer:
    """Draws the sample of one inventory."""

    mapped: MappedPolygons
    frame: shapely.Geometry
    """Area to sample."""
    crs: pyproj.CRS | None
    seed: int
    side: float
    """Side of windows outside polygons, metres."""
    table: pd.DataFrame

    def check(self, held: gpd.GeoDataFrame) -> None:
        """Refuse to add windows of another size to a sample."""
        outside = held[held["polygon"].isna()] if len(held) else held
        if not len(outside):
            return
        bounds = shapely.bounds(outside.geometry.to_numpy())
        metres = metres_per_unit(self.crs, (bounds[:, :2] + bounds[:, 2:]) / 2)
        longer = ((bounds[:, 2:] - bounds[:, :2]) * metres).max(axis=1)  # windows are mostly cut on one side only
        side = float(np.median(longer))
        if abs(side / self.side - 1) > SAME_SIDE:
            raise OptionError(
                f"window {self.side:g} m: the sample that was drawn before has windows of {side:.0f} m; give --window "
                f"{side:.0f} to add to it"
            )

    def draw(self, count: int, held: gpd.GeoDataFrame) -> list[dict[str, Any]]:
        """Rows of the windows to add to the existing ones, up to a total count."""
        again = held[held["polygon"].notna()] if len(held) else held
        drawn = dict(zip(again["polygon"].astype(int), again["stratum"].astype(str), strict=True))
        names = self.mapped.strata(drawn)
        sources = {name: self._polygons(name, names == name, drawn) for name in dict.fromkeys(sorted(names))}
        sources[OUTSIDE] = self._outside(held)
        given: dict[str, int] = held["stratum"].value_counts().to_dict() if len(held) else {}
        rows: list[dict[str, Any]] = []
        wanted = dict.fromkeys(sources, 1) | {OUTSIDE: 2}
        while sources and len(held) + len(rows) < count:
            # the stratum furthest below its share
            name = min(sources, key=lambda one: given.get(one, 0) / wanted[one])
            row = next(sources[name], None)
            if row is None:
                del sources[name]
                continue
            given[name] = given.get(name, 0) + 1
            rows.append(row | {"rank": len(held) + len(rows) + 1, "status": UNREVIEWED})
        return rows

    def _polygons(self, name: str, own: BoolArray, drawn: Mapping[int, str]) -> Iterator[dict[str, Any]]:
        """Unreviewed polygons of a stratum that are not in the sample yet, in random order."""
        found = np.flatnonzero(own & ~self.mapped.decided)
        for k in found[np.argsort(hashed(self.seed, self.mapped.ids[found], 0 * found), kind="stable")]:
            if int(self.mapped.ids[k]) not in drawn:
                yield self._around(k, name)

    def _around(self, k: int, name: str) -> dict[str, Any]:
        number = int(self.mapped.ids[k])
        gsd = self.table["gsd_m"][self.table["id"] == number] if "gsd_m" in self.table else []
        frames = frames_around(self.mapped.outlines[k : k + 1], np.asarray(gsd, float)[:1], self.crs)
        reason = "accept, reject or redraw the polygon"
        return {"polygon": number, "stratum": name, "reason": reason, "geometry": frames[0]}

    def _outside(self, held: gpd.GeoDataFrame) -> Iterator[dict[str, Any]]:
        """Windows with ground outside polygons, in random order, without their other parts."""
        tree = shapely.STRtree(self.mapped.outlines)
        drawn = held.geometry.to_numpy()[held["polygon"].isna().to_numpy(bool)] if len(held) else []
        before = shapely.STRtree(shapely.point_on_surface(drawn))
        frame = self.frame
        shapely.prepare(frame)
        for cell in self._cells():
            if len(before.query(cell, predicate="contains")):
                continue
            near = tree.query(cell, predicate="intersects")
            ground = cell.intersection(frame).difference(shapely.union_all(self.mapped.outlines[near]))
            if ground.area >= FREE * cell.area:
                reason = "draw every landslide that is missed here, then set the status to reviewed"
                yield {"polygon": None, "stratum": OUTSIDE, "reason": reason, "geometry": _areal(ground)}

    def _cells(self) -> Iterator[shapely.Polygon]:
        """Squares whose centre is in the frame, in random order."""
        bounds = np.array(self.frame.bounds)
        centre = ((bounds[:2] + bounds[2:]) / 2)[None]
        step = self.side / metres_per_unit(self.crs, centre)[0]
        low, high = np.floor(bounds[:2] / step), np.ceil(bounds[2:] / step)
        if (high - low).prod() > MAX_CELLS:
            raise OptionError(
                f"windows of {self.side:g} m: the area has {(high - low).prod():.0f} of them, and {MAX_CELLS} at most "
                "are drawn from; give a larger --window"
            )
        cols, rows = (np.arange(a, b).astype(np.int64) for a, b in zip(low, high, strict=True))
        col, row = (axis.ravel() for axis in np.meshgrid(cols, rows))
        inside = shapely.contains_xy(self.frame, (col + 0.5) * step[0], (row + 0.5) * step[1])
        col, row = col[inside], row[inside]
        for k in np.argsort(hashed(self.seed, col, row), kind="stable"):
            left, bottom = col[k] * step[0], row[k] * step[1]
            yield shapely.box(left, bottom, left + step[0], bottom + step[1])


def _areal(geometry: shapely.Geometry) -> shapely.Geometry:
    """The polygons of a geometry, without lines and points left by a difference."""
    parts = shapely.get_parts(geometry)
    return shapely.union_all(parts[shapely.get_dimensions(parts) == 2])


def hashed(seed: int, one: Int64Array, other: Int64Array) -> AnyArray:
    """(N,) pseudo-random 64-bit numbers, the same for the same pair and seed on every machine (SplitMix64)."""
    mixed = np.full(len(one), seed % 2**64, np.uint64)
    with np.errstate(over="ignore"):
        for part in (one, other):
            mixed = mixed * np.uint64(0x9E3779B97F4A7C15) + np.asarray(part, np.int64).view(np.uint64)
            mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            mixed ^= mixed >> np.uint64(31)
    return mixed

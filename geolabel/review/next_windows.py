"""Windows to review next: around polygons that are uncertain, large and unlike those reviewed before.

The value of reviewing a polygon is the product of three terms from 0 to 1:

* uncertainty: the entropy of the confidence, in bits, ``-c log2 c - (1 - c) log2(1 - c)``; 1 where none is known
  (uncertainty sampling by entropy: Settles 2009, "Active Learning Literature Survey", section 3.1)
* size: the share of the waiting polygons that are not larger
* novelty: ``1 - exp(-d / sqrt(F))``, d the distance to the nearest polygon that was reviewed or chosen, in F attributes
  of mean 0 and standard deviation 1

Windows are chosen one by one, each with the largest value given those before it, as Brinker (2003), "Incorporating
Diversity in Active Learning with Support Vector Machines", makes a batch diverse; Tuia et al. (2011), "A Survey of
Active Learning Algorithms for Supervised Remote Sensing Image Classification", compare such criteria. Other polygons
in a window are reviewed with it, and get no separate window.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pyproj
import shapely

from geolabel.errors import OptionError
from geolabel.io.read.review import REVIEW, UNREVIEWED
from geolabel.review.inventories import Inventory, areas, read_inventory
from geolabel.review.window_layers import metres_per_unit, replacing_windows, window_table
from geolabel.types import AnyArray, Float64Array

ROOM = 1.5
"""Side of a window over the longer side of its polygon."""

PIXELS = 128
"""Minimum side of a window, in pixels of the working grid: a small landslide is recognised by its surroundings."""

ATTRIBUTES = ("score_mean", "predicted_iou", "stability", "activation_share", "activation_mean")
"""Attributes to compare polygons by, beside the logarithms of area and elongation."""


@dataclass(frozen=True)
class NextWindows:
    """Windows that were written into an inventory."""

    windows: gpd.GeoDataFrame
    """A row for each window, in the order of review; see `geolabel.io.columns.WINDOWS`."""
    kept: int
    """Windows of earlier calls that a person has reviewed, which are not changed."""
    waiting: int
    """Number of unreviewed polygons."""
    shown: int
    """Number of those that the windows show."""

    def figures(self) -> dict[str, Any]:
        """Plain values."""
        return {"windows": len(self.windows), "kept": self.kept, "waiting": self.waiting, "shown": self.shown}


def next_windows(path: str | Path, *, count: int = 20) -> NextWindows:
    """Choose windows to look at first, and write them into an inventory as the layer ``review``.

    Nothing else in the file changes. Called again, it replaces unreviewed windows; those that were
    reviewed, moved, drawn or have notes stay.

    Parameters
    ----------
    path
        A GeoPackage that geolabel wrote.
    count
        Maximum number of windows.

    Raises
    ------
    OptionError
        If `count` is not positive.
    VectorError
        If the file cannot be read, or a layer ``review`` of it is not geolabel's.
    OutputError
        If the file is not a GeoPackage that geolabel wrote, or cannot be changed.

    Examples
    --------
    >>> import geolabel
    >>> geolabel.next_windows("slides.gpkg", count=20).windows  # doctest: +SKIP
    """
    if count < 1:
        raise OptionError(f"count {count}: give at least 1 window")
    with replacing_windows(path, REVIEW) as layer:
        inventory = read_inventory(path)
        windows, shown = choose_windows(inventory, count)
        layer.write(windows)
        return NextWindows(windows, len(layer.kept), int(inventory.waiting.sum()), shown)


def choose_windows(inventory: Inventory, count: int) -> tuple[gpd.GeoDataFrame, int]:
    """The windows with the largest values, and how many waiting polygons they show; see the module."""
    outlines, table = inventory.outlines(inventory.crs), inventory.polygons
    waiting = np.flatnonzero(inventory.waiting)
    size = areas(outlines, inventory.crs)
    confidence = _numbers(table, "confidence")[waiting]
    uncertainty = entropy(confidence)
    share = _shares(size[waiting])
    places = features(table, size)
    frames = frames_around(outlines, _numbers(table, "gsd_m"), inventory.crs)
    inside = shapely.points(shapely.get_coordinates(shapely.point_on_surface(outlines[waiting])))
    distance = _nearest(places[waiting], places[~inventory.waiting])
    open_ = np.ones(len(waiting), bool)
    rows: list[dict[str, Any]] = []
    while open_.any() and len(rows) < count:
        value = uncertainty * share * -np.expm1(-distance / math.sqrt(places.shape[1]))
        best = int(np.argmax(np.where(open_, value, -1)))
        k = waiting[best]
        seen = shapely.intersects(frames[k], inside) & open_
        seen[best] = True
        rows.append(
            {
                "rank": len(rows) + 1,
                "polygon": int(table["id"].iloc[k]),
                "reason": _reason(confidence[best], size[k], distance[best]),
                "value": float(value[best]),
                "status": UNREVIEWED,
                "geometry": frames[k],
            }
        )
        open_ &= ~seen
        distance = np.minimum(distance, _nearest(places[waiting], places[waiting][seen]))
    return window_table(rows, inventory.crs), int((~open_).sum())


def entropy(probability: Float64Array) -> Float64Array:
    """(N,) entropy of yes and no in bits, 0..1; 1 where the probability is not known.

    Examples
    --------
    >>> entropy(np.array([0.0, 0.25, 0.5, np.nan])).round(3).tolist()
    [0.0, 0.811, 1.0, 1.0]
    """
    p = np.clip(np.where(np.isfinite(probability), probability, 0.5), 1e-12, 1 - 1e-12)
    return np.asarray(-p * np.log2(p) - (1 - p) * np.log2(1 - p), float)


def features(table: pd.DataFrame, size: Float64Array) -> Float64Array:
    """(N, F) attributes of polygons with mean 0 and standard deviation 1; 0 where one is not known."""
    columns = [np.log(np.maximum(size, 1e-9)), np.log(np.maximum(_numbers(table, "elongation"), 1e-9))]
    values = np.stack([*columns, *(_numbers(table, name) for name in ATTRIBUTES)], axis=1)
    known = np.isfinite(values)
    count = np.maximum(known.sum(axis=0), 1)
    filled = np.where(known, values, 0)
    mean = filled.sum(axis=0) / count
    centred = np.where(known, filled - mean, 0)
    spread = np.sqrt((centred**2).sum(axis=0) / count)
    # an attribute that all polygons share does not distinguish them, but rounding errors in it would
    return np.asarray(np.divide(centred, spread, out=np.zeros_like(centred), where=spread > 1e-9), float)


def _numbers(table: pd.DataFrame, name: str) -> Float64Array:
    """(N,) a column; NaN where it is not known, or if the table has none."""
    if name not in table:
        return np.full(len(table), np.nan)
    return np.asarray(pd.to_numeric(table[name], errors="coerce"), float)


def _shares(size: Float64Array) -> Float64Array:
    """(N,) share of the polygons that are not larger than each."""
    ordered = np.sort(size)
    share: Float64Array = np.searchsorted(ordered, size, side="right") / max(1, len(size))
    return share


def _nearest(places: Float64Array, others: Float64Array) -> Float64Array:
    """(N,) distance to the nearest of M others; infinite without any."""
    nearest = np.full(len(places), np.inf)
    for other in others:
        nearest = np.minimum(nearest, np.sqrt(((places - other) ** 2).sum(axis=1)))
    return nearest


def frames_around(outlines: AnyArray, gsd: Float64Array, crs: pyproj.CRS | None) -> AnyArray:
    """(N,) a square, on the ground, around each polygon and its surroundings.

    Parameters
    ----------
    gsd : (N,)
        Metres per pixel of the working grid; NaN where it is not known.
    """
    bounds = shapely.bounds(outlines)
    centre, extent = (bounds[:, :2] + bounds[:, 2:]) / 2, bounds[:, 2:] - bounds[:, :2]
    metres = metres_per_unit(crs, centre)
    known = np.where(np.isfinite(gsd), gsd, 0) if len(gsd) else np.zeros(len(outlines))
    side = np.maximum((extent * metres).max(axis=1) * ROOM, known * PIXELS)
    half = side[:, None] / metres / 2
    low, high = centre - half, centre + half
    frames: AnyArray = shapely.box(low[:, 0], low[:, 1], high[:, 0], high[:, 1])
    return frames


def _reason(confidence: float, size: float, distance: float) -> str:
    """Why to look at a polygon, in words."""
    sure = f"confidence {confidence:.2f}" if math.isfinite(confidence) else "no confidence known"
    near = "the first to be seen" if math.isinf(distance) else f"{distance:.1f} from what was seen before"
    return f"{sure}, {size:.0f} m2, {near}"

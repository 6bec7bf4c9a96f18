"""An inventory and its review as one table."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import pyproj

from geolabel import geodesy
from geolabel.extraction.result import reprojected
from geolabel.io.read.review import (
    ACCEPTED,
    ADDED,
    EDITED,
    LAYER,
    POLYGON_LAYERS,
    UNREVIEWED,
    WHY,
    read_review,
)
from geolabel.io.read.typed_columns import FACTS
from geolabel.io.written import Record, read_written
from geolabel.polygons import valid_multipolygons
from geolabel.types import AnyArray, BoolArray, Float64Array

LANDSLIDES, CANDIDATES = POLYGON_LAYERS[:2]

RIGHT = (ACCEPTED, EDITED, ADDED)
"""States of polygons reviewed as landslides."""


@dataclass(frozen=True)
class Inventory:
    """Every polygon of a file, including deleted ones, in the order of their numbers."""

    crs: pyproj.CRS | None
    polygons: gpd.GeoDataFrame
    """Columns of the file; ``id`` is null for a polygon without a number."""
    layer: AnyArray
    """(N,) ``landslides``, ``candidates`` or ``rejected``: the layer of a polygon after the review."""
    state: AnyArray
    """(N,) ``unreviewed``, ``accepted``, ``rejected``, ``edited``, ``added`` or ``deleted``."""
    record: Record | None
    """Record of what geolabel wrote; None for other formats or programs, where only ``status`` is used."""

    @property
    def right(self) -> BoolArray:
        """(N,) which polygons were reviewed as landslides."""
        return np.isin(self.state, RIGHT)

    @property
    def added(self) -> BoolArray:
        """(N,) which polygons a person added: landslides that geolabel did not write."""
        known = {} if self.record is None else self.record.of(*POLYGON_LAYERS)
        numbers = pd.to_numeric(self.polygons["id"]).to_numpy(float) if "id" in self.polygons else np.zeros(0)
        return self.right & ~np.isin(numbers, list(known)) if len(numbers) else self.right

    @property
    def waiting(self) -> BoolArray:
        """(N,) which polygons are unreviewed."""
        return np.asarray(self.state == UNREVIEWED)

    def outlines(self, crs: pyproj.CRS | None) -> AnyArray:
        """(N,) valid multipolygons in a CRS.

        Raises
        ------
        VectorError
            If one lies outside its domain.
        """
        return valid_multipolygons(reprojected(self.polygons, crs))


def read_inventory(path: str | Path) -> Inventory:
    """Read the polygons of an inventory and their review.

    In a file without the record of what was written, such as an export, only ``status`` is used; see
    `geolabel.io.read.review.read_review`.

    Raises
    ------
    VectorError
        If the file cannot be read, or holds other geometry than polygons.
    """
    record = read_written(path)
    review = read_review(path, record=record)
    parts = [part for part in review.tables if len(part)]
    rows = pd.concat(parts, ignore_index=True) if parts else review.waiting
    order = np.argsort(pd.to_numeric(rows["id"]).to_numpy(float), kind="stable")  # those without a number come last
    rows = rows.iloc[order].reset_index(drop=True)
    state = rows[WHY].astype(object).where(rows[WHY].notna(), UNREVIEWED).to_numpy()
    own = [name for name in rows.columns if name not in FACTS]
    polygons = gpd.GeoDataFrame(rows[own], geometry="geometry", crs=review.crs)
    return Inventory(review.crs, polygons, rows[LAYER].to_numpy(object), state, record)


def areas(outlines: AnyArray, crs: pyproj.CRS | None) -> Float64Array:
    """(N,) areas of valid multipolygons on the ellipsoid, m2; in units of the coordinates without a CRS."""
    found = np.zeros(len(outlines))
    filled = np.array([not outline.is_empty for outline in outlines], bool)
    if filled.any():
        found[filled] = geodesy.measure(outlines[filled], crs).area_m2
    return found

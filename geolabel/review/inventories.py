"""An inventory and its review as one table."""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pyproj

from geolabel import geodesy
from geolabel.extraction.result import reprojected
from geolabel.io.read.features import layer_info, spatial_layers
from geolabel.io.read.geoparquet import PROVENANCE, metadata_of
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
from geolabel.io.read.vector_files import MAX_BYTES, vector_file
from geolabel.io.write.geopackage import read_provenance
from geolabel.io.written import Record, read_written
from geolabel.parsing import parse_json, read_json
from geolabel.polygons import valid_multipolygons
from geolabel.types import AnyArray, BoolArray, Float64Array

LANDSLIDES, CANDIDATES = POLYGON_LAYERS[:2]

MAX_RECORD = 1 << 24
"""Bytes of the provenance in an archive."""

RIGHT = (ACCEPTED, EDITED, ADDED)
"""States of polygons reviewed as landslides."""


@dataclass(frozen=True)
class Inventory:
    """Every polygon of a file, including deleted ones, in the order of their numbers."""

    crs: pyproj.CRS | None
    polygons: gpd.GeoDataFrame
    """Columns of the file; ``id`` is null for what has no number."""
    layer: AnyArray
    """(N,) ``landslides``, ``candidates`` or ``rejected``: the layer that a polygon belongs to by what was decided."""
    state: AnyArray
    """(N,) ``unreviewed``, ``accepted``, ``rejected``, ``edited``, ``added`` or ``deleted``."""
    record: Record | None
    """Record of what geolabel wrote; None for other formats or programs, where only ``status`` counts."""

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
            If one has no place in it.
        """
        return valid_multipolygons(reprojected(self.polygons, crs))


def read_inventory(path: str | Path) -> Inventory:
    """Read the polygons of an inventory and their review.

    In a file without the record of what was written, such as an export, only ``status`` counts; see
    `geolabel.io.read.review.read_review`.

    Raises
    ------
    VectorError
        If the file cannot be read, or holds other geometry than polygons.
    """
    record = read_written(path)
    review = read_review(path, record=record)
    parts = [part for part in (review.kept, review.rejected, review.waiting) if len(part)]
    rows = pd.concat(parts, ignore_index=True) if parts else review.waiting
    order = np.argsort(pd.to_numeric(rows["id"]).to_numpy(float), kind="stable")  # what has no number comes last
    rows = rows.iloc[order].reset_index(drop=True)
    state = rows[WHY].astype(object).where(rows[WHY].notna(), UNREVIEWED).to_numpy()
    own = [name for name in rows.columns if not str(name).endswith(" ")]
    polygons = gpd.GeoDataFrame(rows[own], geometry="geometry", crs=review.crs)
    return Inventory(review.crs, polygons, rows[LAYER].to_numpy(object), state, record)


def provenance_of(path: str | Path) -> dict[str, Any]:
    """Provenance of an inventory; empty for formats without it, such as Shapefile and KMZ.

    Raises
    ------
    VectorError
        If the file may not be read.
    """
    path = Path(path)
    vector_file(path)  # refuses what is not to be opened
    try:
        suffix = path.suffix.lower()
        if suffix == ".parquet":
            made = parse_json(metadata_of(path).get(PROVENANCE, "null"))
        elif suffix == ".geojson":
            made = read_json(path, limit=MAX_BYTES).get("provenance")
        elif suffix == ".zip":
            made = _in_archive(path)
        elif suffix == ".fgb":
            made = parse_json(
                (layer_info(path, spatial_layers(path)[0])["layer_metadata"] or {}).get("provenance", "null")
            )
        else:
            made = read_provenance(path)
    except (OSError, ValueError, AttributeError):
        return {}
    return made if isinstance(made, dict) else {}


def _in_archive(path: Path) -> Any:
    """The provenance in an archive of Shapefiles, of which at most `MAX_RECORD` is unpacked; None without."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open("provenance.json") as part:
            return parse_json(part.read(MAX_RECORD + 1), limit=MAX_RECORD)
    except (zipfile.BadZipFile, zlib.error, KeyError, EOFError, NotImplementedError, RuntimeError):
        return None


def areas(outlines: AnyArray, crs: pyproj.CRS | None) -> Float64Array:
    """(N,) areas of valid multipolygons on the ellipsoid, m2; in units of the coordinates without a CRS."""
    found = np.zeros(len(outlines))
    filled = np.array([not outline.is_empty for outline in outlines], bool)
    if filled.any():
        found[filled] = geodesy.measure(outlines[filled], crs).area_m2
    return found

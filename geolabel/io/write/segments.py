"""The GeoPackage of everything in a scene: one layer of segments that have no class."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import geopandas as gpd
import pyproj

from geolabel.io.columns import Kind
from geolabel.io.read.review import NOTHING, Carried
from geolabel.io.styles import style_of
from geolabel.io.write.geopackage import Layer, write_geopackage

SEGMENT_COLUMNS: dict[str, Kind] = {
    "id": "int",
    "area_m2": "real",
    "perimeter_m": "real",
    "length_m": "real",
    "width_m": "real",
    "elongation": "real",
    "lon": "real",
    "lat": "real",
    "predicted_iou": "real",
    "stability": "real",
    "n_tiles": "int",
    "gsd_m": "real",
    "source": "text",
}
"""Attributes of a segment and their kinds, in the order of the file."""


def write_segments(
    path: str | Path,
    segments: gpd.GeoDataFrame,
    provenance: Mapping[str, Any],
    *,
    crs: pyproj.CRS | None,
    overwrite: bool = False,
    carried: Carried = NOTHING,
) -> None:
    """Write a GeoPackage with the layer ``segments``, typed and styled; the same input gives the same bytes.

    Raises
    ------
    OutputError
        If the file cannot be written, or exists and must not be replaced.
    """
    layer = Layer(
        "segments", "MultiPolygon", "Everything in the scene, no class", SEGMENT_COLUMNS, segments,
        style_of("segments", segments, SEGMENT_COLUMNS).qml(), key="id",
    )  # fmt: skip
    write_geopackage(path, [layer], crs, provenance, overwrite=overwrite, carried=carried)

"""GeoParquet 1.1: one typed layer with its provenance, for cloud tables and programs such as DuckDB.

Geometries are WKB, with a column ``bbox`` by which readers skip distant features. Besides the standard's metadata, the
file has the provenance (``geolabel:provenance``), the style for QGIS (``geolabel:qml``) and the name of the layer; each
column has its display name and meaning.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyproj
import shapely

from geolabel.io.columns import COLUMNS, Kind
from geolabel.io.read.geoparquet import GEO, LAYER, PROVENANCE, QML
from geolabel.io.write.geopackage import Layer, VectorFile, column_values, others_of, shapes_of, warn_left_out
from geolabel.types import AnyArray

VERSION = "1.1.0"

GEOMETRY, BBOX = "geometry", "bbox"
"""Additional columns; an underscore is appended if the layer has a column of that name."""

CORNERS = ("xmin", "ymin", "xmax", "ymax")

ROWS = 50_000
"""Rows of a group, which a reader reads or skips as a whole."""


def write_geoparquet(path: Path, file: VectorFile) -> None:
    """Write the first layer; warn about omissions."""
    import pyarrow.parquet as pq

    layer = file.layers[0]
    warn_left_out(path, f"the layer {layer.name}", f"the record of the review{others_of(file)}")
    own = [name if name not in layer.columns else f"{name}_" for name in (GEOMETRY, BBOX)]
    table = _table(layer, *own)
    metadata = {
        GEO: json.dumps(_geo(layer, file.crs, *own), ensure_ascii=False),
        LAYER: layer.name,
        PROVENANCE: file.record,
        QML: layer.qml,
    }
    pq.write_table(table.replace_schema_metadata(metadata), path, compression="zstd", row_group_size=ROWS)


def _table(layer: Layer, geometry: str, cover: str) -> Any:
    import pyarrow as pa

    shapes = shapes_of(layer)
    names = list(layer.columns)
    fields = [pa.field(name, _type(layer.columns[name]), metadata=_described(name)) for name in names]
    values = [_values(layer, name, field.type) for name, field in zip(names, fields, strict=True)]
    box = pa.struct([(corner, pa.float64()) for corner in CORNERS])
    bounds = shapely.bounds(shapes).reshape(-1, len(CORNERS)).T
    boxes = pa.StructArray.from_arrays([pa.array(side) for side in bounds], fields=list(box))
    fields += [pa.field(cover, box), pa.field(geometry, pa.binary())]
    values += [boxes, pa.array(_wkb(shapes), pa.binary())]
    return pa.Table.from_arrays(values, schema=pa.schema(fields))


def _wkb(shapes: AnyArray) -> list[bytes]:
    return [bytes(one) for one in shapely.to_wkb(shapes, byte_order=1, flavor="iso")]


def _type(kind: Kind) -> Any:
    import pyarrow as pa

    return {
        "int": pa.int64(),
        "real": pa.float64(),
        "text": pa.string(),
        "date": pa.date32(),
        "datetime": pa.timestamp("ms", tz="UTC"),
        "bool": pa.bool_(),
    }[kind]


def _described(name: str) -> dict[str, str] | None:
    return {"title": COLUMNS[name].alias, "description": COLUMNS[name].meaning} if name in COLUMNS else None


def _values(layer: Layer, name: str, kind: Any) -> Any:
    import pyarrow as pa

    values, null = column_values(layer.features, name, layer.columns[name])
    if values.dtype == object:
        return pa.array(values.tolist(), kind)
    return pa.array(values, mask=null).cast(kind)


def _geo(layer: Layer, crs: pyproj.CRS | None, geometry: str, cover: str) -> dict[str, Any]:
    """The standard's metadata."""
    bounds = layer.features.total_bounds.tolist()
    column = {
        "encoding": "WKB",
        "geometry_types": [layer.geometry_type],
        "crs": None if crs is None else crs.to_json_dict(),
        "edges": "planar",
        "covering": {"bbox": {corner: [cover, corner] for corner in CORNERS}},
    }
    if np.isfinite(bounds).all():
        column["bbox"] = bounds
    return {"version": VERSION, "primary_column": geometry, "columns": {geometry: column}}

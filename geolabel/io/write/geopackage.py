"""GeoPackages for QGIS and GDAL: typed layers, styles and metadata in one complete file.

The same layers give the same bytes: the times of last change that the format requires are constant, so the time of
writing is in the metadata or nowhere.
"""

from __future__ import annotations

import json
import logging
import os
import sqlite3
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import geopandas as gpd
import numpy as np
import pandas as pd
import pyogrio
import pyproj
import shapely

from geolabel.errors import OutputError
from geolabel.io.columns import COLUMNS, DERIVED, WINDOWS, Kind
from geolabel.io.databases import limit_steps, quoted, reading_database
from geolabel.io.error_messages import in_words
from geolabel.io.layer_styles import ABOUT as STYLE_ABOUT
from geolabel.io.layer_styles import CREATE as CREATE_STYLES
from geolabel.io.layer_styles import TABLE as STYLES
from geolabel.io.layer_styles import insert_styles
from geolabel.io.written import TABLE as WRITTEN_TABLE
from geolabel.io.written import Written, add_written, insert_written, plain
from geolabel.parsing import check_regular, parse_json
from geolabel.types import AnyArray, BoolArray
from geolabel.urls import clean

log = logging.getLogger(__name__)

GEOMETRY = "geom"
"""Name of the geometry column; ``layer_styles`` has to repeat it or QGIS ignores the style."""

LOCKED_SECONDS = 10.0
"""Time to wait for a program that is writing to the file."""

VERSION = "1.3"
"""Version of the standard. 1.4 has other triggers, which validators and software of a few years ago reject."""

TIME = "1970-01-01T00:00:00.000Z"

SCHEMA_TABLES = (
    """
CREATE TABLE gpkg_data_columns (
  table_name TEXT NOT NULL, column_name TEXT NOT NULL, name TEXT, title TEXT, description TEXT, mime_type TEXT,
  constraint_name TEXT, CONSTRAINT pk_gdc PRIMARY KEY (table_name, column_name),
  CONSTRAINT gdc_tn UNIQUE (table_name, name))
""",
    """
CREATE TABLE gpkg_data_column_constraints (
  constraint_name TEXT NOT NULL, constraint_type TEXT NOT NULL, value TEXT, min NUMERIC, min_is_inclusive BOOLEAN,
  max NUMERIC, max_is_inclusive BOOLEAN, description TEXT,
  CONSTRAINT gdcc_ntv UNIQUE (constraint_name, constraint_type, value))
""",
)
"""As in the standard."""


@dataclass(frozen=True)
class Layer:
    """One layer to write."""

    name: str
    geometry_type: Literal["Point", "Polygon", "MultiPolygon"]
    description: str
    columns: Mapping[str, Kind]
    """In order. Columns missing from `features` are written as null."""
    features: gpd.GeoDataFrame
    """Its columns have to be in `columns`."""
    qml: str
    """The style that QGIS applies on opening."""
    key: str | None = None
    """The column that numbers its features, if edits are to be recognised (`geolabel.io.written`)."""
    reviewed: AbstractSet[int] = frozenset()
    """Numbers of features that come from a person's review already."""

    def __post_init__(self) -> None:
        unknown = sorted(set(self.features.columns) - set(self.columns) - {self.features.geometry.name})
        if unknown:
            raise ValueError(f"layer {self.name} has no columns {unknown}: it knows {list(self.columns)}")
        fitting = {self.geometry_type, self.geometry_type.removeprefix("Multi")}
        other = sorted(set(self.features.geom_type.astype(str)) - fitting)
        if other:
            raise ValueError(f"layer {self.name} takes no {other}: its features are of type {self.geometry_type}")


@dataclass(frozen=True)
class VectorFile:
    """The contents of a file of layers; a format that cannot hold all of it names what it leaves out."""

    layers: Sequence[Layer]
    """In order; not empty."""
    crs: pyproj.CRS | None
    provenance: Mapping[str, Any]
    """How the layers were made, as plain JSON values."""
    written: Sequence[Written] = ()
    """Rows of the record other than the features of layers with a key."""
    highest: int = 0
    """Highest number that polygons have had in files that this one is made from."""

    @cached_property
    def record(self) -> str:
        """The provenance as JSON, without secrets in URLs."""
        return json.dumps(clean(self.provenance), indent=1, ensure_ascii=False, allow_nan=False)


def warn_left_out(path: Path, contents: str, left_out: str) -> None:
    """Warn about what a format leaves out, compared with a GeoPackage."""
    log.warning("%s holds %s, without %s: write a .gpkg to keep them", path.name, contents, left_out)


def others_of(file: VectorFile) -> str:
    """The layers that a format of one layer leaves out, to follow the other losses in `warn_left_out`."""
    left_out = [f"{layer.name} ({len(layer.features)})" for layer in file.layers[1:] if len(layer.features)]
    return f"; left out: {', '.join(left_out)}" if left_out else ""


def shapes_of(layer: Layer) -> AnyArray:
    """(N,) geometries of a layer, all of its type."""
    shapes: AnyArray = np.array(layer.features.geometry.to_numpy(), object)
    if layer.geometry_type == "MultiPolygon":
        single = shapely.get_type_id(shapes) == shapely.GeometryType.POLYGON
        shapes[single] = [shapely.MultiPolygon([shape]) for shape in shapes[single]]
    return shapes


def write_geopackage(path: Path, file: VectorFile) -> None:
    """Write all layers with their styles, the record of the review, and the provenance in ``gpkg_metadata``."""
    rows = [*file.written, *(row for layer in file.layers for row in _written_features(layer))]
    numbered = {layer.name for layer in file.layers if layer.key == "id"}
    highest = max([file.highest, *(row.key for row in rows if row.layer in numbered)])
    for number, layer in enumerate(file.layers):
        write_layer(
            path,
            without_binary(layer),
            file.crs,
            driver="GPKG",
            append=number > 0,
            dataset_options={} if number else {"VERSION": VERSION},
            layer_options={"GEOMETRY_NAME": GEOMETRY, "SPATIAL_INDEX": "YES", "DESCRIPTION": layer.description},
            # any entry makes GDAL create the tables of gpkg_metadata; the provenance replaces it
            **({} if number else {"dataset_metadata": {"provenance": ""}}),
        )
    with closing(sqlite3.connect(path)) as connection, connection:
        for layer in file.layers:
            _add_binary(connection, layer)
        _add_styles(connection, file.layers)
        _add_descriptions(connection, file.layers)
        add_written(connection, rows, highest)
        _add_provenance(connection, file.record)


def without_binary(layer: Layer) -> Layer:
    """A layer without its columns of binary data, such as photos."""
    columns = {name: kind for name, kind in layer.columns.items() if kind != "binary"}
    lost = [name for name in layer.columns if name not in columns]
    return replace(layer, columns=columns, features=layer.features.drop(columns=lost, errors="ignore"))


def _add_binary(connection: sqlite3.Connection, layer: Layer) -> None:
    """Add the columns of binary data to a layer written without them, since pyogrio writes none."""
    names = [name for name, kind in layer.columns.items() if kind == "binary"]
    if not names:
        return
    for function in ("ST_IsEmpty", "ST_MinX", "ST_MaxX", "ST_MinY", "ST_MaxY"):
        # named by triggers of the spatial index, which only fire where a feature gets another number or outline
        connection.create_function(function, 1, lambda _: None)
    for name in names:
        connection.execute(f"ALTER TABLE {quoted(layer.name)} ADD COLUMN {quoted(name)} BLOB")
        values, _ = column_values(layer.features, name, "binary")
        connection.executemany(
            f"UPDATE {quoted(layer.name)} SET {quoted(name)} = ? WHERE fid = ?",  # noqa: S608
            zip(values.tolist(), range(1, len(values) + 1), strict=True),
        )


_CATALOGUES = {
    "gpkg_contents": "table_name",
    "gpkg_geometry_columns": "table_name",
    "gpkg_extensions": "table_name",
    "gpkg_ogr_contents": "table_name",
    "gpkg_data_columns": "table_name",
    STYLES: "f_table_name",
    WRITTEN_TABLE: "layer",
}
"""Tables that refer to layers, and their column with the name of the layer."""


@dataclass(frozen=True)
class Update:
    """A GeoPackage that is being changed."""

    path: Path
    connection: sqlite3.Connection
    version: int
    """Changes when another program writes to the file."""

    def begin(self) -> sqlite3.Connection:
        """Start to change the file; until the end, nothing else in this process may open it.

        SQLite holds its locks for a process, and they end where the process closes the file, even through GDAL.

        Raises
        ------
        OutputError
            If another program has written to the file since it was opened, or a trigger of the file could act.
        """
        self.connection.execute("BEGIN IMMEDIATE")
        if _version(self.connection) != self.version:
            raise OutputError(f"{self.path} was edited in another program at the same time: run again")
        rows = self.connection.execute("SELECT name, tbl_name FROM sqlite_master WHERE type = 'trigger'")
        strange = next((row for row in rows if row[1].lower() in _CATALOGUES), None)
        if strange is not None:
            raise OutputError(
                f"{self.path} has a trigger {strange[0]} on its table {strange[1]}, which could change other layers: "
                "drop the trigger, or write the inventory again"
            )
        return self.connection


@contextmanager
def updating(path: Path) -> Iterator[Update]:
    """Change an existing GeoPackage, completely or not at all, from `Update.begin` on.

    Other programs may have the file open. It is not replaced, so a program such as QGIS keeps writing to the same one.

    Raises
    ------
    OutputError
        If it cannot be written to, or another program is writing to it.
    """
    try:
        check_regular(path)
        with closing(sqlite3.connect(path, timeout=LOCKED_SECONDS, isolation_level=None)) as connection:
            limit_steps(connection)  # for triggers of an untrusted file
            try:
                yield Update(path, connection, _version(connection))
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
            if connection.in_transaction:
                connection.execute("COMMIT")
    except (OSError, sqlite3.Error) as error:
        raise OutputError(
            f"{path} cannot be changed ({in_words(error)}): save the edits of other programs that have it open, and "
            "run again"
        ) from error


def _version(connection: sqlite3.Connection) -> int:
    (version,) = connection.execute("PRAGMA data_version").fetchone()
    return int(version)


def replace_layer(connection: sqlite3.Connection, layer: Layer, beside: str) -> None:
    """Write a layer of polygons into a GeoPackage, replacing the layer of that name; nothing else changes.

    Parameters
    ----------
    connection
        See `Update.begin`.
    layer
        Numbered by its `Layer.key`, by which it is recognised as geolabel's.
    beside
        A layer of the file, whose CRS the new one gets.
    """
    (srs,) = connection.execute("SELECT srs_id FROM gpkg_geometry_columns WHERE table_name = ?", (beside,)).fetchone()
    drop_layer(connection, layer.name)
    columns = "".join(f", {quoted(name)} {_SQL[kind]}" for name, kind in layer.columns.items())
    kind = layer.geometry_type.upper()
    connection.execute(
        f"CREATE TABLE {quoted(layer.name)} "
        f"(fid INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, {GEOMETRY} {kind}{columns})"
    )
    marks = ", ".join("?" * (1 + len(layer.columns)))
    values = [column_values(layer.features, name, kind) for name, kind in layer.columns.items()]
    plainly = [[None if n else v for v, n in zip(_in_sql(v), null, strict=True)] for v, null in values]
    # little-endian, no envelope; then the geometry as WKB
    header = b"GP\0\x01" + int(srs).to_bytes(4, "little", signed=True)
    outlines = [header + shapely.to_wkb(shape, byte_order=1) for shape in layer.features.geometry]
    connection.executemany(
        f"INSERT INTO {quoted(layer.name)} ({GEOMETRY}{''.join(f', {quoted(n)}' for n in layer.columns)}) "  # noqa: S608
        f"VALUES ({marks})",
        zip(outlines, *plainly, strict=True),
    )
    bounds = layer.features.total_bounds.tolist() if len(layer.features) else [None] * 4
    connection.execute(
        "INSERT INTO gpkg_contents (table_name, data_type, identifier, description, last_change, min_x, min_y, max_x, "
        "max_y, srs_id) VALUES (?, 'features', ?, ?, ?, ?, ?, ?, ?, ?)",
        (layer.name, layer.name, layer.description, TIME, *bounds, srs),
    )
    connection.execute("INSERT INTO gpkg_geometry_columns VALUES (?, ?, ?, ?, 0, 0)", (layer.name, GEOMETRY, kind, srs))
    _insert_styles(connection, [layer])
    if _has_table(connection, "gpkg_data_columns"):
        _insert_descriptions(connection, [layer])
    insert_written(connection, _written_features(layer))


def _in_sql(values: AnyArray) -> list[Any]:
    """Values in the types that SQLite takes; dates and times in the format of a GeoPackage."""
    if values.dtype == "datetime64[D]":
        values = np.datetime_as_string(values)
    elif values.dtype.kind == "M":
        values = np.datetime_as_string(values, unit="ms", timezone="UTC")
    plainly: list[Any] = values.tolist()
    return plainly


def drop_layer(connection: sqlite3.Connection, name: str) -> None:
    """Remove a layer, with its style and the record of its features."""
    for table, column in _CATALOGUES.items():
        if _has_table(connection, table):
            own = f" AND description = '{STYLE_ABOUT}'" if table == STYLES else ""  # a person's styles stay
            connection.execute(f"DELETE FROM {table} WHERE {column} = ?{own}", (name,))  # noqa: S608
    for table in (f"rtree_{name}_{GEOMETRY}", name):
        connection.execute(f"DROP TABLE IF EXISTS {quoted(table)}")


_SQL: Mapping[Kind, str] = {
    "int": "INTEGER",
    "real": "REAL",
    "text": "TEXT",
    "date": "DATE",
    "datetime": "DATETIME",
    "bool": "BOOLEAN",
    "binary": "BLOB",
}
"""Types of columns in a GeoPackage."""


def _has_table(connection: sqlite3.Connection, name: str) -> bool:
    found = connection.execute("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?", (name,)).fetchone()
    return found is not None


def _written_features(layer: Layer) -> Iterator[Written]:
    if layer.key is None:
        return
    table = layer.features
    editable = [name for name in layer.columns if name in table and name not in DERIVED]
    rows = zip(table[layer.key].tolist(), table[editable].to_dict("records"), table.geometry, strict=True)
    for number, values, outline in rows:
        attributes = {name: plain(value) for name, value in values.items()}
        yield Written(layer.name, int(number), outline, attributes, reviewed=int(number) in layer.reviewed)


def read_provenance(path: str | Path) -> Any:
    """Return the provenance of a GeoPackage that geolabel wrote, or None if there is none, or it cannot be read."""
    try:
        with reading_database(path) as connection:
            row = connection.execute(
                "SELECT metadata FROM gpkg_metadata WHERE mime_type = 'application/json' ORDER BY id LIMIT 1"
            ).fetchone()
        return None if row is None else parse_json(row[0])
    except (sqlite3.Error, ValueError, TypeError):
        return None


def parts_of(made: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The parts of a provenance that belong to each grid."""
    parts = made.get("parts", [made])
    return [part for part in parts if isinstance(part, dict)] if isinstance(parts, list) else []


@contextmanager
def _fixed_time() -> Iterator[None]:
    before = pyogrio.get_gdal_config_option("OGR_CURRENT_DATE")
    pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": TIME})
    try:
        yield
    finally:
        pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": before})


@contextmanager
def _plainly_named(path: Path) -> Iterator[Path]:
    """A name for a file that pyogrio uses unchanged: it would write to the part after an exclamation mark.

    On Windows it does not change whole paths; elsewhere a link leads to the file.
    """
    whole = path.absolute()
    if os.name == "nt" or not set("!;") & set(str(whole)):
        yield whole
        return
    with tempfile.TemporaryDirectory(prefix="geolabel-") as folder:
        link = Path(folder) / f"file{path.suffix}"
        link.symlink_to(whole)
        yield link


def write_layer(path: Path, layer: Layer, crs: pyproj.CRS | None, **options: Any) -> None:
    """Write one layer with pyogrio, with typed columns; `options` are pyogrio's and those of its driver."""
    columns = [column_values(layer.features, name, kind) for name, kind in layer.columns.items()]
    with warnings.catch_warnings(), _fixed_time(), _plainly_named(path) as name:
        # a scene without CRS has none to give
        warnings.filterwarnings("ignore", message="'crs' was not provided")
        pyogrio.raw.write(
            name,
            shapely.to_wkb(layer.features.geometry.to_numpy()),
            [values for values, _ in columns],
            list(layer.columns),
            field_mask=[mask for _, mask in columns],
            layer=layer.name,
            geometry_type=layer.geometry_type,
            promote_to_multi=layer.geometry_type == "MultiPolygon",
            crs=None if crs is None else crs.to_wkt(),
            **options,
        )


def column_values(features: gpd.GeoDataFrame, name: str, kind: Kind) -> tuple[AnyArray, BoolArray]:
    """(N,) values of one column in the type of its kind, and where they are null."""
    series = features[name] if name in features else pd.Series([None] * len(features), dtype=object)
    null = series.isna().to_numpy(bool)
    if kind == "text":
        return np.array([None if n else str(v) for v, n in zip(series, null, strict=True)], object), null
    if kind in ("date", "datetime"):
        times = pd.to_datetime(series, utc=True).dt.tz_localize(None)
        return times.to_numpy("datetime64[D]" if kind == "date" else "datetime64[ms]"), null
    if kind == "binary":
        return np.array([*(None if n else bytes(v) for v, n in zip(series, null, strict=True)), None], object)[
            :-1
        ], null
    if kind == "bool":
        return series.where(~null, other=False).to_numpy(bool), null
    if kind == "int" and series.dtype == object:  # which pandas would turn into floating-point numbers if one is null
        return np.array([0 if n else int(v) for v, n in zip(series, null, strict=True)], np.int64), null
    numbers = pd.to_numeric(series).to_numpy(float if kind == "real" else np.int64, na_value=0)
    return numbers, null


def _add_styles(connection: sqlite3.Connection, layers: Sequence[Layer]) -> None:
    """Create the table of styles with those of the layers."""
    connection.execute(CREATE_STYLES)
    connection.execute(
        "INSERT INTO gpkg_contents (table_name, data_type, identifier, description, last_change) "
        "VALUES ('layer_styles', 'attributes', 'layer_styles', 'How QGIS draws the layers', ?)",
        (TIME,),
    )
    _insert_styles(connection, layers)


def _insert_styles(connection: sqlite3.Connection, layers: Sequence[Layer]) -> None:
    insert_styles(connection, [(layer.name, layer.qml) for layer in layers], GEOMETRY, TIME)


def _add_descriptions(connection: sqlite3.Connection, layers: Sequence[Layer]) -> None:
    """Name and describe the columns, as in the schema extension of the standard."""
    for statement in SCHEMA_TABLES:
        connection.execute(statement)
    connection.executemany(
        "INSERT INTO gpkg_extensions (table_name, column_name, extension_name, definition, scope) "
        "VALUES (?, NULL, 'gpkg_schema', 'http://www.geopackage.org/spec121/#extension_schema', 'read-write')",
        [("gpkg_data_columns",), ("gpkg_data_column_constraints",)],
    )
    _insert_descriptions(connection, layers)


def _insert_descriptions(connection: sqlite3.Connection, layers: Sequence[Layer]) -> None:
    connection.executemany(
        "INSERT INTO gpkg_data_columns (table_name, column_name, name, title, description) VALUES (?, ?, ?, ?, ?)",
        [
            (layer.name, name, name, COLUMNS[name].alias, _meaning(layer, name))
            for layer in layers
            for name in layer.columns
            if name in COLUMNS
        ],
    )


def _meaning(layer: Layer, name: str) -> str:
    """What a column means; windows have a status of another kind than polygons."""
    own = {column.name: column for column in WINDOWS} if layer.key == "window" else {}
    return own.get(name, COLUMNS[name]).meaning


def _add_provenance(connection: sqlite3.Connection, record: str) -> None:
    # with an entry of GDAL's own kind in the file, GDAL 3.12 leaves an .aux.xml beside it whenever it is read
    connection.execute(
        "UPDATE gpkg_metadata SET md_standard_uri = ?, mime_type = 'application/json', metadata = ?",
        ("https://www.rfc-editor.org/rfc/rfc8259", record),
    )

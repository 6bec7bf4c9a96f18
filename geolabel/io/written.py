"""What geolabel wrote into a GeoPackage, kept in the file beside its layers, so that a person's work can be recognised.

A table ``geolabel_written`` holds the outline and the attributes of every feature as they were written. Editors such as
QGIS change layers and leave other tables alone: a feature that differs from its row was edited, one without a row was
added, and a row without a feature was deleted.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import shapely

from geolabel.names import check_regular
from geolabel.parsing import parse_json
from geolabel.types import AnyArray, BoolArray

Geometries: TypeAlias = Sequence[shapely.Geometry | None] | AnyArray

TABLE = "geolabel_written"

HIGHEST = ""
"""Layer of the row whose key is the highest number that any polygon of the file, or of those before it, has had."""

CREATE = """
CREATE TABLE geolabel_written (
  layer TEXT NOT NULL, key INTEGER NOT NULL, outline BLOB, attributes TEXT NOT NULL, reviewed INTEGER NOT NULL,
  PRIMARY KEY (layer, key)) WITHOUT ROWID
"""
"""In no list of the GeoPackage, so no program offers it as a layer."""

INSERT = "INSERT INTO geolabel_written VALUES (?, ?, ?, ?, ?)"

SELECT = "SELECT layer, key, outline, attributes, reviewed FROM geolabel_written"

MOST_STEPS = 500_000_000
"""Of SQLite's machine, to read a file."""

SAME = 1e-9
"""Units of the CRS: coordinates that differ by less are the same."""


@dataclass(frozen=True)
class Written:
    """One feature as it was written."""

    layer: str
    key: int
    """Its number: ``id`` of a polygon, ``prompt`` of a prompt."""
    outline: shapely.Geometry | None
    attributes: Mapping[str, Any]
    """Those that a person may edit, as `plain` values."""
    reviewed: bool = False
    """Whether it was a person's work already."""


@dataclass(frozen=True)
class Record:
    """Everything that was written into a file."""

    features: Mapping[tuple[str, int], Written] = field(default_factory=dict)
    """By layer and number."""
    highest: int = 0
    """Of the numbers that polygons of the file, or of those that it was made from, have had."""

    def of(self, *layers: str) -> dict[int, Written]:
        """Features of layers by their numbers."""
        return {key: found for (layer, key), found in self.features.items() if layer in layers}


def plain(value: object) -> Any:
    """A value as it is compared: text, number or None; what says nothing is None, and a date is text."""
    if value is None or (np.isscalar(value) and pd.isna(value)) or value is pd.NaT:
        return None
    if hasattr(value, "isoformat"):
        text = value.isoformat()
        return text.removesuffix("T00:00:00") if isinstance(text, str) else str(text)
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, int | float | np.integer | np.floating):
        return float(value)
    return str(value).strip() or None


def same_outlines(one: Geometries, other: Geometries) -> BoolArray:
    """(N,) whether geometries have the same vertices, however these are ordered and wrapped in collections of one."""
    return np.asarray(shapely.equals_exact(canonical(one), canonical(other), SAME), bool)


def canonical(geometries: Geometries) -> AnyArray:
    """(N,) the same geometries with their vertices in one order, flat, and out of collections that hold one alone."""
    canonical = np.array(shapely.normalize(shapely.force_2d(np.asarray(geometries, object))), object, ndmin=1)
    single = (shapely.get_type_id(canonical) >= shapely.GeometryType.MULTIPOINT) & (
        shapely.get_num_geometries(canonical) == 1
    )
    canonical[single] = shapely.get_geometry(canonical[single], 0)
    return canonical


def add_written(connection: sqlite3.Connection, rows: Iterable[Written], highest: int) -> None:
    """Write the table."""
    connection.execute(CREATE)
    values = [
        (
            row.layer,
            row.key,
            None if row.outline is None else shapely.to_wkb(row.outline),
            json.dumps(dict(row.attributes), ensure_ascii=False, sort_keys=True),
            int(row.reviewed),
        )
        for row in rows
    ]
    connection.executemany(INSERT, [(HIGHEST, highest, None, "{}", 0), *sorted(values)])


@contextmanager
def read_only(path: str | Path) -> Iterator[sqlite3.Connection]:
    """A GeoPackage that is open to be read with SQLite, what a write-ahead log beside it holds too.

    What takes more than `MOST_STEPS` ends in an error: what calls itself a table may be a view that never ends.
    """
    try:
        check_regular(path)
    except OSError as error:
        raise sqlite3.OperationalError(error.strerror) from error
    with closing(sqlite3.connect(f"{Path(path).absolute().as_uri()}?mode=ro", uri=True)) as connection:
        connection.set_progress_handler(lambda: True, MOST_STEPS)
        yield connection


def read_written(path: str | Path) -> Record | None:
    """Read the table of a GeoPackage; None where there is none that can be read."""
    try:
        with read_only(path) as connection:
            kind = connection.execute("SELECT type FROM sqlite_master WHERE name = ?", (TABLE,)).fetchone()
            if kind != ("table",):
                return None
            rows = connection.execute(SELECT).fetchall()
        outlines = shapely.from_wkb(np.array([*(row[2] for row in rows), None], object))[:-1]
        # in one call: one for each row would take longer than all else
        said = parse_json(f"[{','.join(row[3] for row in rows)}]")
        found = [
            Written(str(layer), int(key), outline, dict(attributes), bool(reviewed))
            for (layer, key, _, _, reviewed), outline, attributes in zip(rows, outlines, said, strict=True)
        ]
    except (sqlite3.Error, ValueError, TypeError, shapely.errors.ShapelyError):
        return None
    highest = max((row.key for row in found if row.layer == HIGHEST), default=0)
    return Record({(row.layer, row.key): row for row in found if row.layer != HIGHEST}, highest)

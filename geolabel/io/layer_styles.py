"""The table ``layer_styles`` of a GeoPackage: styles of geolabel, and those that a person saved in QGIS.

A style of geolabel has its description; QGIS gives another one to styles that a person saves, also under the same name.
Styles of a person stay with their file: they are kept when the file is written again, and nowhere else, since a style
of QGIS can contain code.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

from geolabel.io.databases import reading_database

TABLE = "layer_styles"

ABOUT = "As geolabel shows it"
"""Description of a style of geolabel."""

CREATE = """
CREATE TABLE layer_styles (
  id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, f_table_catalog TEXT(256), f_table_schema TEXT(256),
  f_table_name TEXT(256), f_geometry_column TEXT(256), styleName TEXT(30), styleQML TEXT, styleSLD TEXT,
  useAsDefault BOOLEAN, description TEXT, owner TEXT(30), ui TEXT(30),
  update_time DATETIME DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ','now')))
"""
"""As QGIS itself creates it. It looks styles up by an empty catalog and schema."""

COLUMNS = (
    "f_table_catalog, f_table_schema, f_table_name, f_geometry_column, styleName, styleQML, styleSLD, useAsDefault, "
    "description, owner, ui, update_time"
)

OTHER = "description IS NOT ?"
"""Condition for styles of a person, by `ABOUT`."""


def insert_styles(connection: sqlite3.Connection, styles: Iterable[tuple[str, str]], geometry: str, time: str) -> None:
    """Add styles of geolabel; one that a person saved as the default of its layer stays the default.

    Parameters
    ----------
    styles
        Names of layers, and their styles as QML.
    geometry
        Name of the geometry column, which QGIS compares.
    time
        Time of the last change.
    """
    connection.executemany(
        f"INSERT INTO layer_styles ({COLUMNS}) VALUES ('', '', ?1, ?2, ?1, ?3, '', NOT EXISTS (SELECT 1 FROM "  # noqa: S608
        f"layer_styles WHERE f_table_name = ?1 AND useAsDefault AND {OTHER.replace('?', '?4')}), ?4, '', '', ?5)",
        [(layer, geometry, qml, ABOUT, time) for layer, qml in styles],
    )


def saved_styles(path: str | Path) -> list[str]:
    """Names of the styles that a person saved in a GeoPackage; none if it has no table of styles."""
    try:
        with reading_database(path) as connection:
            rows = connection.execute(f"SELECT styleName FROM layer_styles WHERE {OTHER} ORDER BY id", (ABOUT,))  # noqa: S608
            return [str(name or "") for (name,) in rows]
    except sqlite3.Error:
        return []


def keep_styles(old: str | Path, new: str | Path) -> None:
    """Copy the styles that a person saved from a GeoPackage to the one that replaces it, for layers that are in both.

    Raises
    ------
    sqlite3.Error
        If the new file cannot be written.
    """
    if not saved_styles(old):
        return
    with reading_database(old) as source:
        rows = source.execute(f"SELECT {COLUMNS} FROM layer_styles WHERE {OTHER} ORDER BY id", (ABOUT,)).fetchall()  # noqa: S608
    with closing(sqlite3.connect(new)) as connection, connection:
        there = {layer for (layer,) in connection.execute("SELECT table_name FROM gpkg_contents")}
        for row in rows:
            layer, name, default = row[2], row[4], row[7]
            if layer not in there:
                continue
            if default:
                connection.execute("UPDATE layer_styles SET useAsDefault = 0 WHERE f_table_name = ?", (layer,))
            connection.execute("DELETE FROM layer_styles WHERE f_table_name = ? AND styleName = ?", (layer, name))
            connection.execute(
                f"INSERT INTO layer_styles ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",  # noqa: S608
                row,
            )

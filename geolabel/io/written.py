"""A copy of what geolabel wrote, stored in the GeoPackage beside its layers, to recognise edits.

A table ``geolabel_written`` holds the outline and the attributes of every feature as they were written. Editors such as
QGIS change layers and leave other tables alone: a feature that differs from its row was edited, one without a row was
added, and a row without a feature was deleted.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely

from geolabel.io.databases import reading_database
from geolabel.io.prompt_layers import ORIGINS
from geolabel.io.styles import REVIEW_STATES
from geolabel.parsing import parse_json
from geolabel.prompts import DRAWN, FOREGROUND, FRESH, LOCALIZER
from geolabel.types import AnyArray, BoolArray, Int64Array

Geometries: TypeAlias = Sequence[shapely.Geometry | None] | AnyArray

TABLE = "geolabel_written"

HIGHEST = ""
"""Layer of the row whose key is the highest number of any polygon of this file, or of those it was made from."""

CREATE = """
CREATE TABLE geolabel_written (
  layer TEXT NOT NULL, key INTEGER NOT NULL, outline BLOB, attributes TEXT NOT NULL, reviewed INTEGER NOT NULL,
  PRIMARY KEY (layer, key)) WITHOUT ROWID
"""
"""Not registered in the GeoPackage, so that no program offers it as a layer."""

INSERT = "INSERT INTO geolabel_written VALUES (?, ?, ?, ?, ?)"

SELECT = "SELECT layer, key, outline, attributes, reviewed FROM geolabel_written"

SAME = 1e-9
"""Units of the CRS: coordinates that differ by less are the same."""


@dataclass(frozen=True)
class Written:
    """One feature as geolabel wrote it."""

    layer: str
    key: int
    """Its number: ``id`` of a polygon, ``prompt`` of a prompt."""
    outline: shapely.Geometry | None
    attributes: Mapping[str, Any]
    """Attributes that a person may edit, as `plain` values."""
    reviewed: bool = False
    """Whether it came from a person's review already."""

    def holds(self, name: str, value: object) -> bool:
        """Whether an attribute was written with that value; earlier versions rounded large whole numbers here."""
        now, was = plain(value), self.attributes.get(name)
        return bool((float(now) if isinstance(now, int) and isinstance(was, float) else now) == was)


@dataclass(frozen=True)
class Record:
    """Everything that was written into a file."""

    features: Mapping[tuple[str, int], Written] = field(default_factory=dict)
    """Features by layer and number."""
    highest: int = 0
    """Highest number that polygons of the file, or of those that it was made from, have had."""

    def of(self, *layers: str) -> dict[int, Written]:
        """Features of layers by their numbers."""
        return {key: found for (layer, key), found in self.features.items() if layer in layers}


def plain(value: object) -> Any:
    """A value in the form that is compared: text, number or None; empty values are None, and a date is text."""
    if value is None or (np.isscalar(value) and pd.isna(value)) or value is pd.NaT or value is pd.NA:
        return None
    if isinstance(value, bytes):
        return hashlib.sha256(value).hexdigest()
    if hasattr(value, "isoformat"):
        text = value.isoformat()
        return text.removesuffix("T00:00:00") if isinstance(text, str) else str(text)
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, int | np.integer) and abs(int(value)) > 2**53:
        return int(value)  # a floating-point number would round it
    if isinstance(value, int | float | np.integer | np.floating):
        return float(value)
    return str(value).strip() or None


def same_outlines(one: Geometries, other: Geometries) -> BoolArray:
    """(N,) whether geometries have the same vertices, in any order, and within collections of one or not."""
    return np.asarray(shapely.equals_exact(canonical(one), canonical(other), SAME), bool)


def canonical(geometries: Geometries) -> AnyArray:
    """(N,) the same geometries in 2D, with their vertices in one order, taken out of collections of one."""
    canonical = np.array(shapely.normalize(shapely.force_2d(np.asarray(geometries, object))), object, ndmin=1)
    single = (shapely.get_type_id(canonical) >= shapely.GeometryType.MULTIPOINT) & (
        shapely.get_num_geometries(canonical) == 1
    )
    canonical[single] = shapely.get_geometry(canonical[single], 0)
    return canonical


def add_written(connection: sqlite3.Connection, rows: Iterable[Written], highest: int) -> None:
    """Write the table."""
    connection.execute(CREATE)
    connection.execute(INSERT, (HIGHEST, highest, None, "{}", 0))
    insert_written(connection, rows)


def insert_written(connection: sqlite3.Connection, rows: Iterable[Written]) -> None:
    """Add rows to the existing table."""
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
    connection.executemany(INSERT, sorted(values))


def read_written(path: str | Path) -> Record | None:
    """Read the table of a GeoPackage; None if there is none, or it cannot be read."""
    try:
        with reading_database(path) as connection:
            kind = connection.execute("SELECT type FROM sqlite_master WHERE name = ?", (TABLE,)).fetchone()
            if kind != ("table",):
                return None
            rows = connection.execute(SELECT).fetchall()
        outlines = shapely.from_wkb(np.array([*(row[2] for row in rows), None], object))[:-1]
        # in one call: one for each row would take longer than everything else
        said = parse_json(f"[{','.join(row[3] for row in rows)}]")
        found = [
            Written(str(layer), int(key), outline, dict(attributes), bool(reviewed))
            for (layer, key, _, _, reviewed), outline, attributes in zip(rows, outlines, said, strict=True)
        ]
    except (sqlite3.Error, ValueError, TypeError, OverflowError, shapely.errors.ShapelyError):
        return None
    highest = max((row.key for row in found if row.layer == HIGHEST), default=0)
    return Record({(row.layer, row.key): row for row in found if row.layer != HIGHEST}, highest)


# --- prompts ---------------------------------------------------------------------------------------------------------


PROMPT_LAYERS = ("prompts", "prompt_points")

UNNUMBERED = -1


@dataclass(frozen=True)
class _Asked:
    """One prompt as in its layers."""

    box: shapely.Geometry | None = None
    row: int = -1
    """Row of the box in its layer."""
    said: tuple[Any, Any] = (None, None)
    """Class and status of the box."""
    points: tuple[tuple[float, float, float], ...] = ()
    """x, y and label, in the order of the layer."""


def written_prompts(boxes: gpd.GeoDataFrame, points: gpd.GeoDataFrame) -> list[Written]:
    """Prompts as they are written, with their coordinates in pixels of the grid of their run.

    Parameters
    ----------
    boxes, points
        Layers from `geolabel.io.prompt_layers`, in the CRS of the file.
    """
    box_rows = {int(row["prompt"]): row for row in boxes.to_dict("records")}
    point_rows: dict[int, list[dict[str, Any]]] = {}
    for row in points.to_dict("records"):
        point_rows.setdefault(int(row["prompt"]), []).append(row)
    found = []
    for number, asked in sorted(_asked(boxes, points).items()):
        box, own = box_rows.get(number, {}), point_rows.get(number, [])
        said = box or own[0]
        attributes = {
            "class": said["class"],
            "origin": said["origin"],
            "points": [list(point) for point in asked.points],
            "box_pixels": box.get("pixels"),
            "point_pixels": [row.get("pixels") for row in own],
        }
        found.append(Written("prompts", number, asked.box, attributes, reviewed=said["origin"] == ORIGINS[DRAWN]))
    return found


def mark_changes(layers: Mapping[str, gpd.GeoDataFrame], written: Mapping[int, Written]) -> dict[str, gpd.GeoDataFrame]:
    """Mark the prompts that have not been changed, and leave out those that were deleted.

    Parameters
    ----------
    layers
        ``prompts`` and ``prompt_points``, or one of them, in the CRS of their file.
    written
        The record of the file, by the number of the prompt.

    Returns
    -------
    The layers with the columns ``asked_by``, which is `LOCALIZER`, `DRAWN` or `FRESH`, and ``pixels``, null for
    changed prompts. Points whose box is gone are left out unless they were changed too: deleting a box deletes its
    prompt.
    """
    boxes, points = layers.get("prompts"), layers.get("prompt_points")
    asked = _asked(boxes, points)
    same = _unchanged(asked, written)
    origins = {
        number: DRAWN if written[number].attributes.get("origin") == ORIGINS[DRAWN] else LOCALIZER for number in same
    }
    marked = {}
    if boxes is not None:
        rows = {one.row: number for number, one in asked.items() if one.box is not None}
        own = [rows.get(row, UNNUMBERED) for row in range(len(boxes))]
        marked["prompts"] = boxes.assign(
            asked_by=[origins.get(number, FRESH) for number in own],
            pixels=[written[number].attributes.get("box_pixels") if number in same else None for number in own],
        )
    if points is not None:
        numbers = _numbers(points)
        exact = {number: iter(_list(written[number], "point_pixels")) for number in same}
        table = points.assign(
            asked_by=[origins.get(number, FRESH) for number in numbers.tolist()],
            pixels=[next(exact[number], None) if number in exact else None for number in numbers.tolist()],
        )
        orphaned = [number for number, was in written.items() if _is_orphaned(asked.get(number, _Asked()), was)]
        marked["prompt_points"] = table[~np.isin(numbers, orphaned)].reset_index(drop=True)
    return marked


def changed_prompts(layers: Mapping[str, gpd.GeoDataFrame], written: Mapping[int, Written]) -> int:
    """Count the prompts that a person drew, changed, rejected or deleted, in this file or one it was made from."""
    boxes, points = layers.get("prompts"), layers.get("prompt_points")
    asked = _asked(boxes, points)
    same = [written[number] for number in _unchanged(asked, written)]
    loose = sum(int((_numbers(table) == UNNUMBERED).sum()) for table in (boxes, points) if table is not None)
    return len({*asked, *written}) - sum(not was.reviewed for was in same) + loose


def _asked(boxes: gpd.GeoDataFrame | None, points: gpd.GeoDataFrame | None) -> dict[int, _Asked]:
    """Prompts by their numbers. The first of several boxes with one number belongs to the prompt."""
    found: dict[int, _Asked] = {}
    if boxes is not None:
        names = boxes["class"] if "class" in boxes else [None] * len(boxes)
        states = boxes["status"] if "status" in boxes else [None] * len(boxes)
        for row, (number, box, *said) in enumerate(
            zip(_numbers(boxes).tolist(), boxes.geometry, names, states, strict=True)
        ):
            if number != UNNUMBERED:
                found.setdefault(number, _Asked(box, row, (said[0], said[1])))
    if points is not None:
        placed: dict[int, list[tuple[float, float, float]]] = {}
        labels = pd.to_numeric(points["label"], errors="coerce") if "label" in points else pd.Series(1, points.index)
        x, y = points.geometry.x, points.geometry.y
        values = np.column_stack([x, y, labels.fillna(FOREGROUND)]).astype(float).tolist()
        for number, (at_x, at_y, label) in zip(_numbers(points).tolist(), values, strict=True):
            placed.setdefault(number, []).append((at_x, at_y, label))
        placed.pop(UNNUMBERED, None)
        for number, own in placed.items():
            box = found.get(number, _Asked())
            found[number] = _Asked(box.box, box.row, box.said, tuple(own))
    return found


def _numbers(features: gpd.GeoDataFrame) -> Int64Array:
    """(N,) numbers of the prompts; `UNNUMBERED` where there is none."""
    if "prompt" not in features:
        return np.full(len(features), UNNUMBERED, np.int64)
    given = pd.to_numeric(features["prompt"], errors="coerce").to_numpy(float)
    sound = np.isfinite(given) & (given >= 0) & (given < 2**53)
    return np.where(sound, given, UNNUMBERED).astype(np.int64)


def _unchanged(asked: Mapping[int, _Asked], written: Mapping[int, Written]) -> set[int]:
    """Numbers of the prompts that are unchanged since they were written."""
    alike = [number for number, was in written.items() if number in asked and _is_alike(asked[number], was)]
    boxed = [number for number in alike if asked[number].box is not None]
    same = same_outlines([asked[number].box for number in boxed], [written[number].outline for number in boxed])
    return {*alike} - {number for number, one in zip(boxed, same, strict=True) if not one}


def _is_alike(asked: _Asked, was: Written) -> bool:
    """Whether everything but the outline of the box is unchanged."""
    if (asked.box is None) != (was.outline is None) or not _same_points(asked, was):
        return False
    name, status = (plain(value) for value in asked.said)
    return asked.box is None or (name == was.attributes.get("class") and status in (None, REVIEW_STATES[0]))


def _same_points(asked: _Asked, was: Written) -> bool:
    return sorted(map(repr, map(list, asked.points))) == sorted(map(repr, _list(was, "points")))


def _list(was: Written, name: str) -> list[Any]:
    value = was.attributes.get(name)
    return value if isinstance(value, list) else []


def _is_orphaned(asked: _Asked, was: Written) -> bool:
    return was.outline is not None and asked.box is None and _same_points(asked, was)

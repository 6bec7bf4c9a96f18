"""The review of a GeoPackage written by geolabel: decisions and edits of a person.

A polygon is a person's work if its ``status`` is not ``unreviewed``, if its outline, class, notes, date or an added
column differs from what was written, if it was moved to another layer, or if its number was not written by geolabel. A
missing polygon was rejected. Work that was carried over from an earlier file remains a person's, unless its status has
been set back to ``unreviewed``.
"""

from __future__ import annotations

import hashlib
import logging
import sqlite3
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pyproj
import shapely

from geolabel.errors import OutputError, VectorError
from geolabel.io.columns import DERIVED, WINDOW_COLUMNS, Kind, spelled
from geolabel.io.databases import reading_database
from geolabel.io.layer_styles import TABLE as STYLES
from geolabel.io.layer_styles import saved_styles
from geolabel.io.read.features import layer_info, read_layer, spatial_layers
from geolabel.io.read.typed_columns import FACTS, added_columns, check_one_crs, one_case, read_polygon_table, read_typed
from geolabel.io.styles import REVIEW_STATES
from geolabel.io.written import PROMPT_LAYERS, Record, Written, changed_prompts, plain, read_written, same_outlines

log = logging.getLogger(__name__)

UNREVIEWED, ACCEPTED, REJECTED = REVIEW_STATES

STATES = (*REVIEW_STATES, "reviewed")
"""Values of the column ``status``; the last one is for windows that were examined completely."""

POLYGON_LAYERS = ("landslides", "candidates", REJECTED)
"""Layers of an inventory that a person reviews."""

LAYER_OF = "layer"
"""Column that names the layer of a polygon in a single-layer file, such as one exported by the review page."""

REVIEW, SAMPLE = WINDOW_LAYERS = ("review", "review_sample")
"""Layers of review windows: those to look at first, and a random sample."""

MASKED, MASKED_ABOUT = "masked", "Ground that masks leave out"
"""Layer of masked ground and its description; a layer of this name with another description is a person's."""

CHANGES, CHANGES_ABOUT = "changes", "What was added, removed or changed, one row each"

OWN_LAYERS = (*POLYGON_LAYERS, *PROMPT_LAYERS, "tiles", MASKED, "segments")

OWN_TABLES = (STYLES, "geolabel_written", "sqlite_sequence")

MAX_NUMBER = 2**53
"""Maximum ``id``; some programs cannot store larger numbers."""


@dataclass(frozen=True)
class Review:
    """A person's work on the polygons of a file, in the CRS of the file."""

    path: Path
    crs: pyproj.CRS | None
    kept: gpd.GeoDataFrame
    """Polygons to return unchanged, to the layer named by the column `LAYER`."""
    rejected: gpd.GeoDataFrame
    """Polygons not to return. Deleted ones are as they were written."""
    waiting: gpd.GeoDataFrame
    """Unreviewed polygons."""
    looked: gpd.GeoDataFrame = field(default_factory=gpd.GeoDataFrame)
    """Windows that the person examined, drew or annotated; see `read_windows`."""
    removed: gpd.GeoDataFrame = field(default_factory=gpd.GeoDataFrame)
    """Parts cut off redrawn polygons, which have no attributes."""
    columns: Mapping[str, Kind] = field(default_factory=dict)
    """Columns that the person added."""
    highest: int = 0
    """Highest polygon number used so far."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """Numbers of accepted, rejected, edited, added and deleted polygons."""
    unsure: int = 0
    """Polygons that may have been edited, in a file without a record."""

    @property
    def tables(self) -> tuple[gpd.GeoDataFrame, gpd.GeoDataFrame, gpd.GeoDataFrame]:
        """All polygons: kept, rejected and waiting ones."""
        return self.kept, self.rejected, self.waiting

    def is_still(self, other: Review) -> bool:
        """Whether another reading gave the same result."""
        names = ("kept", "rejected", "waiting", "looked")
        return all(getattr(self, name).equals(getattr(other, name)) for name in names)


LAYER, REDRAWN, TOUCHED, WHY = FACTS
"""Columns of tables read here: the layer of a polygon; whether its outline is a person's; whether a person examined,
moved, drew or annotated a window; why a polygon is a person's work, null if it is not."""


def read_review(path: str | Path, layers: tuple[str, ...] = POLYGON_LAYERS, record: Record | None = None) -> Review:
    """Read a person's changes to the polygons of a file.

    In a file without a record of what was written, such as an export or a file of another program, rows are judged by
    ``status``; a row without status or number is a person's.

    Parameters
    ----------
    layers
        Layers to read; if the file has none of them, its first layer, as landslides.
    record
        The record of what was written, if already read.

    Raises
    ------
    VectorError
        If the file cannot be read, or has geometries other than polygons.
    """
    path = Path(path)
    record = record or read_written(path)
    written = None if record is None else record.of(*layers)
    tables = polygon_tables(path, layers)
    crs = next((table.crs for table in tables.values()), None)
    beside = [] if written is None else [name for name in spatial_layers(path) if name in OWN_LAYERS]
    held = {name: layer_info(path, name)["crs"] for name in beside if name not in tables}
    check_one_crs(path, {name: table.crs for name, table in tables.items()} | held)
    rows = pd.concat([_judged(name, table, written) for name, table in tables.items()], ignore_index=True)
    # copied to another layer unchanged: the copy is kept, the original ignored
    copied = rows.loc[rows[WHY].notna() & ~rows[REDRAWN].astype(bool), "id"].dropna()
    rows = rows[~(rows[WHY].isna() & rows["id"].isin(copied))].reset_index(drop=True)
    taken = rows["id"].notna() & rows["id"].duplicated()
    # a feature was split or copied: the first part keeps the number, the others are new
    rows.loc[taken, "id"], rows.loc[taken, WHY] = None, ADDED
    gone = _deleted(rows, written or {}, crs)
    asked = rows[rows[WHY].notna()]
    refused = asked[LAYER] == REJECTED
    counts = Counter([*asked[WHY], *([DELETED] * len(gone))])
    known = [*rows["id"].dropna().astype(int), *(written or {}), 0]
    return Review(
        path,
        crs,
        kept=_frame(asked[~refused], crs),
        rejected=_frame(pd.concat([asked[refused], gone], ignore_index=True) if len(gone) else asked[refused], crs),
        waiting=_frame(rows[rows[WHY].isna() & rows["id"].notna()], crs),
        looked=_looked(path, record) if layers == POLYGON_LAYERS else gpd.GeoDataFrame(),
        removed=_cut_off(asked, {} if record is None else record.of(*POLYGON_LAYERS), crs),
        columns=added_columns(tables.values()),
        highest=max(*known, record.highest if record else 0),
        counts={name: counts[name] for name in (ACCEPTED, REJECTED, EDITED, ADDED, DELETED)},
        unsure=int(rows[WHY].isna().sum()) if record is None else 0,
    )


EDITED, ADDED, DELETED = "edited", "added", "deleted"


def read_windows(path: str | Path, layer: str, record: Record | None) -> gpd.GeoDataFrame | None:
    """Read a layer of windows written by geolabel, with the column `TOUCHED`; None if the file has none.

    A window with a duplicate number, or one that was not written by geolabel, is a person's.

    Parameters
    ----------
    layer
        One of `WINDOW_LAYERS`.
    record
        Record of what was written to the file.

    Raises
    ------
    VectorError
        If the file cannot be read, or has a layer of that name that geolabel did not write.
    """
    if layer not in spatial_layers(path):
        return None
    written = {} if record is None else record.of(layer)
    if not written:
        raise VectorError(f"{path} has a layer {layer} that geolabel did not write: give that layer another name")
    table = read_typed(path, layer)
    table = table.rename(columns={name: f"{name}_" for name in FACTS})  # a person's
    table = table.reindex(columns=[*dict.fromkeys([*WINDOW_COLUMNS, *table.columns])])
    table = table.assign(**{name: table[name].astype(object) for name, kind in WINDOW_COLUMNS.items() if kind == "int"})
    numbers = pd.to_numeric(table["window"], errors="coerce")
    was = [None if np.isnan(number) else written.get(int(number)) for number in numbers]
    outlined = np.array([*(None if one is None else one.outline for one in was), None], object)[:-1]
    same = same_outlines(table.geometry.to_numpy(), outlined) & ~numbers.duplicated().to_numpy(bool)
    states = [str(plain(state) or UNREVIEWED).lower() for state in table["status"]]
    said = np.array([state != UNREVIEWED for state in states], bool) | table["notes"].map(plain).notna().to_numpy(bool)
    return table.assign(**{"status": states, TOUCHED: ~same | said})


def _looked(path: Path, record: Record | None) -> gpd.GeoDataFrame:
    """A person's windows of both layers, numbered from 1."""
    found = [] if record is None else [read_windows(path, name, record) for name in WINDOW_LAYERS if record.of(name)]
    parts = [table[table[TOUCHED]] for table in found if table is not None]
    parts = [part for part in parts if len(part)]
    if not parts:
        return gpd.GeoDataFrame()
    rows = pd.concat(one_case(parts), ignore_index=True)
    rows = rows.assign(window=np.arange(1, len(rows) + 1)).drop(columns=TOUCHED)
    return gpd.GeoDataFrame(rows, geometry="geometry")


def polygon_tables(path: Path, layers: tuple[str, ...] = POLYGON_LAYERS) -> dict[str, gpd.GeoDataFrame]:
    """The polygons of a file by layer: those of `layers` that exist, else its first layer as landslides.

    Raises
    ------
    VectorError
        If the file cannot be read, has geometries other than polygons, or only layers that geolabel writes for
        other purposes, such as segments.
    """
    names = spatial_layers(path)
    ours = [name for name in layers if name in names]
    if not ours and names[0] in OWN_LAYERS:
        raise VectorError(f"{path} holds {', '.join(names)}, but no landslides: give an inventory written by extract")
    tables = {name: read_polygon_table(path, name) for name in ours or names[:1]}
    if not ours or names == [POLYGON_LAYERS[0]]:
        tables = _split(next(iter(tables.values())))
    tables = dict(zip(tables, one_case([*tables.values()]), strict=True))
    for name, table in tables.items():
        other = sorted({*table.geom_type} - {"Polygon", "MultiPolygon"})
        if other:
            raise VectorError(f"layer {name} of {path} holds {', '.join(other)}: landslides are polygons")
    return tables


def _split(table: gpd.GeoDataFrame) -> dict[str, gpd.GeoDataFrame]:
    """The polygons of a single-layer file, split by its column `LAYER_OF` if every row names an inventory layer."""
    column = spelled(LAYER_OF, table.columns)
    if column is None or not len(table) or not table[column].isin(POLYGON_LAYERS).all():
        return {POLYGON_LAYERS[0]: table}
    return {
        name: table[table[column] == name].drop(columns=column).reset_index(drop=True)
        for name in POLYGON_LAYERS
        if (table[column] == name).any()
    }


def _judged(layer: str, table: gpd.GeoDataFrame, written: Mapping[int, Written] | None) -> pd.DataFrame:
    """The rows of a layer with `id` (null if invalid), their `LAYER`, and `WHY`."""
    ids = pd.to_numeric(table["id"], errors="coerce") if "id" in table else pd.Series(np.nan, table.index)
    ids = ids.where((ids % 1 == 0) & (ids > 0) & (ids < MAX_NUMBER))
    was = [None if written is None or np.isnan(number) else written.get(int(number)) for number in ids]
    outlined = np.array([*(None if one is None else one.outline for one in was), None], object)[:-1]
    same = same_outlines(table.geometry.to_numpy(), outlined)
    why: list[str | None] = []
    target: list[str] = []
    _warn_of_other_words(layer, table)
    for row, values in enumerate(table.drop(columns="geometry").to_dict("records")):
        state, one = _state(layer, values, was[row]), was[row]
        target.append(
            {ACCEPTED: "landslides", REJECTED: REJECTED}.get(state, layer if layer != REJECTED else "landslides")
        )
        if state in (ACCEPTED, REJECTED):
            why.append(state)
        elif written is None:
            said = state != UNREVIEWED or plain(values.get("notes")) is not None
            numbered = "status" in values and np.isfinite(ids.iloc[row])
            why.append(EDITED if said else None if numbered else ADDED)
        elif one is None:
            why.append(ADDED)
        else:
            why.append(EDITED if not same[row] or _edited(layer, values, state, one) else None)
    return pd.DataFrame(table).assign(
        **{"id": ids.astype(object).where(ids.notna(), None), LAYER: target, WHY: why, REDRAWN: ~same}
    )


def _warn_of_other_words(layer: str, table: gpd.GeoDataFrame) -> None:
    """Warn about values of ``status`` that are not decisions, so that a typo does not silently count as a landslide."""
    words = [str(plain(value) or UNREVIEWED).strip() for value in table["status"]] if "status" in table else []
    other = Counter(word for word in words if word.lower() not in STATES)
    if other:
        log.warning(
            "layer %s: status %s: not one of %s; these polygons count as edited landslides",
            layer,
            ", ".join(f"{word!r} of {count}" for word, count in sorted(other.items())[:5]),
            ", ".join(STATES),
        )


def _state(layer: str, values: Mapping[str, Any], was: Written | None) -> str:
    """The status of a row, lower case. Rows in the layer ``rejected`` are rejected."""
    state = str(plain(values.get("status")) or UNREVIEWED).strip().lower()
    put_there = layer == REJECTED and (was is None or was.layer != REJECTED)
    return REJECTED if put_there and state == UNREVIEWED else state


def _edited(layer: str, values: Mapping[str, Any], state: str, was: Written) -> bool:
    """Whether an unreviewed row with an unchanged outline is a person's work for another reason."""
    names = {name for name in {*values, *was.attributes} if name not in DERIVED and name != "status"}
    if not all(was.holds(name, values.get(name)) for name in names):
        return True
    withdrawn = str(was.attributes.get("status") or UNREVIEWED).lower() != UNREVIEWED
    return layer != was.layer or state != UNREVIEWED or (was.reviewed and not withdrawn)


def _deleted(rows: pd.DataFrame, written: Mapping[int, Written], crs: pyproj.CRS | None) -> gpd.GeoDataFrame:
    present = {int(number) for number in rows["id"].dropna()}
    gone = [was for number, was in sorted(written.items()) if number not in present and was.outline is not None]
    decided = {"status": REJECTED, LAYER: REJECTED, REDRAWN: False, WHY: DELETED}
    table = [{**was.attributes, "id": was.key, **decided} for was in gone]
    columns = None if table else ["id", *decided]
    return gpd.GeoDataFrame(table, columns=columns, geometry=[was.outline for was in gone], crs=crs)


def _cut_off(rows: pd.DataFrame, written: Mapping[int, Written], crs: pyproj.CRS | None) -> gpd.GeoDataFrame:
    """Parts that redrawn polygons covered when they were written, and do not cover now."""
    redrawn = rows[rows[REDRAWN].astype(bool) & rows["id"].isin(list(written))]
    before = [written[int(number)].outline for number in redrawn["id"]]
    parts = shapely.difference(shapely.make_valid(before), shapely.make_valid(redrawn.geometry.to_numpy()))
    return gpd.GeoDataFrame(geometry=[part for part in parts if not shapely.is_empty(part)], crs=crs)


def _frame(rows: pd.DataFrame, crs: pyproj.CRS | None) -> gpd.GeoDataFrame:
    table = rows.reset_index(drop=True)
    return gpd.GeoDataFrame(table, geometry="geometry" if "geometry" in table else [], crs=crs)


# --- whether a file may be replaced ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class PersonsWork:
    """A person's work in an inventory, summarised for commands that would replace it."""

    polygons: Mapping[str, int] = field(default_factory=dict)
    """Numbers of accepted, rejected, edited, added and deleted polygons."""
    prompts: int = 0
    """Number of prompts drawn, changed, rejected or deleted."""
    windows: int = 0
    """Number of review windows examined, drawn or changed."""
    tables: tuple[str, ...] = ()
    """Layers and tables not written by geolabel."""
    styles: tuple[str, ...] = ()
    """Names of the styles saved by a person."""

    def __bool__(self) -> bool:
        return any([*self.polygons.values(), self.prompts, self.windows, self.tables, self.styles])

    def __str__(self) -> str:
        total = sum(self.polygons.values())
        states = ", ".join(f"{count} {name}" for name, count in self.polygons.items() if count)
        parts = [f"{total} reviewed polygon{'s' * (total != 1)} ({states})"] if total else []
        parts += [f"{self.prompts} prompt{'s' * (self.prompts != 1)} that a person drew or changed"] * bool(
            self.prompts
        )
        parts += [f"{self.windows} reviewed window{'s' * (self.windows != 1)}"] * bool(self.windows)
        parts += [f"what geolabel did not write ({', '.join(self.tables)})"] * bool(self.tables)
        parts += [f"styles that a person saved ({', '.join(self.styles)})"] * bool(self.styles)
        return " and ".join(parts)


def read_work(path: str | Path) -> PersonsWork:
    """Summarise a person's work in a file that a command would replace; empty if it is not an inventory."""
    path = Path(path)
    record = read_written(path) if path.is_file() else None
    if record is None and not _is_ours(path):
        return PersonsWork()
    try:
        names = spatial_layers(path)
        polygons, prompts, windows = Counter[str](), 0, 0
        kinds: tuple[tuple[str, ...], ...] = (POLYGON_LAYERS, ("segments",))
        for layers in kinds:
            if {*layers} & {*names} or (layers == POLYGON_LAYERS and path.suffix.lower() in _OTHERS):
                found = read_review(path, layers, record)
                polygons.update(found.counts)
                windows += len(found.looked)
        if record is not None and {*PROMPT_LAYERS} & {*names}:
            asked = {name: read_layer(path, name) for name in PROMPT_LAYERS if name in names}
            prompts = changed_prompts(asked, record.of("prompts"))
        own = path.suffix.lower() == ".gpkg"
        tables, styles = (_other_tables(path, record), saved_styles(path)) if own else ((), ())
    except VectorError as error:
        raise OutputError(
            f"{path} may hold a person's review, and cannot be read: {error}. Give another name, or "
            "--discard-review to replace it anyway"
        ) from error
    return PersonsWork(polygons, prompts, windows, tables, tuple(styles))


@dataclass(frozen=True)
class Carried:
    """What a command carries over from a file that it replaces."""

    discard: bool = False
    """Whether a person's work may be lost."""
    review: Review | None = None
    """Reviewed polygons written to the new file; not lost if they come from the replaced file."""
    prompts_from: Path | None = None
    """File whose prompts are used; they are not lost if it is the replaced file."""
    prompts_mark: str | None = None
    """Mark of these prompts, see `mark_of_prompts`."""

    def keeps(self, path: Path) -> bool:
        """Whether the review of a file is written to the file that replaces it."""
        return self.review is not None and path.exists() and _same_file(path, self.review.path)

    def inputs(self, prompts_from: str | Path | None) -> list[str | Path]:
        """Files that the run reads and may not replace; the file whose review is kept may be replaced."""
        kept = prompts_from is None or (self.review is not None and _same_file(Path(prompts_from), self.review.path))
        return [] if kept or prompts_from is None else [prompts_from]


NOTHING = Carried()


def check_work(path: str | Path, carried: Carried = NOTHING) -> None:
    """Refuse to replace a file with a person's work that would be lost.

    Raises
    ------
    OutputError
        If work would be lost, or the file has changed since its review was read.
    """
    path = Path(path)
    if carried.discard or not path.exists():
        return
    work = read_work(path)
    if carried.review is not None and carried.keeps(path):
        _check_still(path, same=carried.review.is_still(read_review(path)))
        work = replace(work, polygons={}, windows=0, styles=())
    if carried.prompts_from is not None and _same_file(path, carried.prompts_from):
        _check_still(path, same=mark_of_prompts(path) == carried.prompts_mark)
        work = replace(work, prompts=0)
    if work:
        raise OutputError(
            f"{path} holds {work}: keep reviewed polygons with --keep-reviewed {path}, and edited prompts with "
            f"--prompts-from {path}; or give another output, or --discard-review to lose it"
        )


def _check_still(path: Path, *, same: bool) -> None:
    if not same:
        raise OutputError(f"{path} was edited after its review was read: run the same command again to keep the edits")


def mark_of_prompts(path: Path) -> str:
    """A value that changes when a person changes a prompt of a file.

    Raises
    ------
    VectorError
        If the file cannot be read.
    """
    digest = hashlib.sha256()
    for name in spatial_layers(path):
        if name in PROMPT_LAYERS:
            table = read_layer(path, name)
            digest.update(repr([name, *table.drop(columns="geometry").to_numpy().tolist()]).encode())
            digest.update(b"".join(table.geometry.to_wkb()))
    return digest.hexdigest()


def _same_file(one: Path, other: Path) -> bool:
    return other.exists() and one.samefile(other)


def _is_ours(path: Path) -> bool:
    """Whether a file without a record has the layers of an inventory."""
    if not path.is_file() or path.suffix.lower() not in (".gpkg", *_OTHERS):
        return False
    if path.suffix.lower() in _OTHERS:
        try:
            return any({*_MARKS} <= {*table} for table in polygon_tables(path).values())
        except VectorError:
            return False
    try:
        with reading_database(path) as connection:
            found = {name for (name,) in connection.execute("SELECT table_name FROM gpkg_contents")}
            if not found & {*POLYGON_LAYERS}:
                return False
            layer = next(name for name in POLYGON_LAYERS if name in found)
            columns = {row[1] for row in connection.execute(f'PRAGMA table_info("{layer}")')}
    except sqlite3.Error:
        return False
    return {*_MARKS} <= columns


_OTHERS, _MARKS = (".fgb", ".parquet", ".geojson", ".shp", ".zip"), ("id", "status", "score_mean")
"""Formats besides GeoPackage in which an inventory can be reviewed, and the columns that identify one."""


def _other_tables(path: Path, record: Record | None) -> tuple[str, ...]:
    """Tables of a GeoPackage that were not made by geolabel, the standard or SQLite."""
    with reading_database(path) as connection:
        names = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        said = dict(connection.execute("SELECT table_name, description FROM gpkg_contents").fetchall())
    windows = [name for name in WINDOW_LAYERS if record is not None and record.of(name)]
    derived = [name for name, about in ((MASKED, MASKED_ABOUT), (CHANGES, CHANGES_ABOUT)) if said.get(name) == about]
    own = {*OWN_LAYERS, *OWN_TABLES, *windows} - {MASKED} | {*derived}
    return tuple(sorted(n for n in names if n not in own and not n.startswith(("gpkg_", "rtree_", "sqlite_"))))

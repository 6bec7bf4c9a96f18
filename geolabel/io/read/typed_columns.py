"""Columns of a file of polygons in the form of an inventory: of known types, under names that do not clash.

Files come from editors and other programs. A known column is used only if its values fit; otherwise it counts as a
person's, and is kept under another name. Whole numbers and truth values keep their type where some are null; most
readers turn them into floating-point numbers, which cannot hold a number of 17 digits.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pyarrow as pa
import pyproj

from geolabel.errors import VectorError
from geolabel.io.columns import LANDSLIDE_COLUMNS, Kind, spelled
from geolabel.io.read.features import exact_integers, layer_info, read_layer, with_whole_names
from geolabel.io.written import plain

log = logging.getLogger(__name__)

EXACT = 2**53
"""Whole numbers up to this one are exact as floating-point numbers."""

WORDS: Mapping[Kind, str] = {"int": "whole number", "real": "number", "text": "text", "date": "date"}
"""Description of the values of a kind of column."""

RESERVED = ("fid", "geom", "geometry")
"""Column names that file formats reserve, lower case."""

FACTS = ("layer ", "redrawn ", "touched ", "why ")
"""Columns that `geolabel.io.read.review` adds to tables it reads; a person's column of such a name gets another one."""

DAYS = "datetime64[s]"
"""Type of columns of dates; times of a day are in milliseconds."""

BYTES = pd.ArrowDtype(pa.binary())
"""Type of columns of binary data without any value; with values they are objects."""


def read_typed(path: str | Path, layer: str) -> gpd.GeoDataFrame:
    """Read a layer as `read_layer`, with nullable types of pandas for whole numbers and truth values, and `DAYS`.

    Lists become JSON texts.

    Raises
    ------
    VectorError
        If the file or the layer cannot be read.
    """
    table = read_layer(path, layer)
    info = layer_info(path, layer)
    said = {name: str(kind) for name, kind in zip(info["fields"], info["dtypes"], strict=True) if name in table}
    kinds = {name: np.dtype(kind) for name, kind in said.items() if not kind.startswith("list")}
    listed = {name: table[name].map(_as_json) for name in said.keys() - kinds.keys()}
    whole = [name for name, kind in kinds.items() if kind.kind in "iu"]
    exact = {name: exact_integers(path, layer, name) for name in whole if _is_large(table[name])}
    types = {name: "Int64" for name in whole if name not in exact}
    types |= {name: "boolean" for name, kind in kinds.items() if kind.kind == "b"}
    types |= {name: DAYS for name, kind in kinds.items() if kind == "datetime64[D]"}
    held = zip(info["fields"], info.get("ogr_types", ()), strict=False)  # since pyogrio 0.12
    types |= {name: BYTES for name, kind in held if kind == "OFTBinary" and name in table and table[name].isna().all()}
    return table.astype(types).assign(**exact, **listed)


def _as_json(values: object) -> str | None:
    return (
        json.dumps(np.asarray(values).tolist(), ensure_ascii=False) if isinstance(values, list | np.ndarray) else None
    )


def _is_large(values: pd.Series) -> bool:
    return bool(values.dtype.kind == "f" and (values.abs() >= EXACT).any())


def read_polygon_table(path: str | Path, layer: str) -> gpd.GeoDataFrame:
    """Read a layer of polygons with those columns of an inventory that it has.

    Names of columns of `geolabel.io.columns.LANDSLIDES` are case-insensitive. A column whose values do not
    fit, such as a text in ``confidence``, gets another name, with a warning, and so does one of two whose names differ
    in case only, as most formats cannot hold both.

    Raises
    ------
    VectorError
        If the file or the layer cannot be read.
    """
    return _distinct(path, layer, _fitted(path, layer, with_whole_names(read_typed(path, layer))))


def _fitted(path: str | Path, layer: str, table: gpd.GeoDataFrame) -> gpd.GeoDataFrame:
    """The same table with the known columns under their names and of their types."""
    for name, kind in LANDSLIDE_COLUMNS.items():
        column = spelled(name, table.columns)
        if column is None:
            continue
        values = _of_kind(table[column], kind)
        if values is None:
            own = free_name(name, table)
            said = next(str(one) for one in table[column] if _of_kind(pd.Series([one]), kind) is None)
            log.warning(
                "layer %s of %s: the column %s holds %r, which is not a %s: it is kept as %s",
                *(layer, path, column, said[:40], WORDS[kind], own),
            )
            table = table.rename(columns={column: own})
        else:
            table = table.rename(columns={column: name}).assign(**{name: values})
    return table


def _of_kind(values: pd.Series, kind: Kind) -> pd.Series | None:
    """Values in the type of an inventory's column; None if some do not fit."""
    of_numbers = pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)
    if pd.api.types.is_integer_dtype(values) and values.isna().any():
        values = values.astype("float64")
    elif pd.api.types.is_integer_dtype(values):
        values = values.astype("int64")
    if kind in ("int", "real"):
        numbers = values if of_numbers else pd.to_numeric(values.map(plain), errors="coerce")
        if not of_numbers and bool((numbers.isna() & values.map(plain).notna()).any()):
            return None
        known = numbers.dropna().to_numpy(float)
        fits = kind == "real" or (np.isfinite(known) & (known % 1 == 0) & (np.abs(known) <= EXACT)).all()
        return numbers if fits else None
    if kind == "text":
        return _texts(values)
    if pd.api.types.is_datetime64_any_dtype(values):
        return values
    said = values.astype(object).map(plain)
    if any(not isinstance(one, str | None) for one in said):
        return None
    days = pd.to_datetime(said, errors="coerce", utc=True, format="ISO8601")
    return None if bool((days.isna() & said.notna()).any()) else values


def _texts(values: pd.Series) -> pd.Series | None:
    """Values as texts; None if some are bytes."""
    if values.dtype == object and any(isinstance(value, bytes) for value in values):
        return None
    if not pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_datetime64_any_dtype(values):
        return values
    said = [plain(value) for value in values]
    texts = [f"{one:.15g}" if isinstance(one, float) else None if one is None else str(one) for one in said]
    return pd.Series(texts, values.index, dtype=object)


def _distinct(path: str | Path, layer: str, table: gpd.GeoDataFrame) -> gpd.GeoDataFrame:
    """The same table with names that differ by more than case, and without names that file formats reserve."""
    taken = {name.lower() for name in (*LANDSLIDE_COLUMNS, *FACTS)}
    renamed = {}
    for column in table.columns.drop("geometry"):
        if str(column) in LANDSLIDE_COLUMNS:
            continue
        if str(column).lower() in taken or str(column).lower() in RESERVED[1:]:
            renamed[column] = free_name(str(column), table, taken)
            log.warning("layer %s of %s: the column %s is kept as %s", layer, path, column, renamed[column])
        taken.add(renamed.get(column, str(column)).lower())
    return table.rename(columns=renamed)


def free_name(name: str, table: pd.DataFrame, taken: AbstractSet[str] = frozenset()) -> str:
    """A column name that a table does not have."""
    held = {str(column).lower() for column in table.columns} | {*taken}
    while name.lower() in held:
        name += "_"
    return name


def one_spelling(tables: Iterable[Iterable[str]]) -> list[dict[str, str]]:
    """For the column names of each table, the new names where one differs in case only from a name of an earlier table.

    Most formats cannot hold both, and a person means one column.
    """
    spelling: dict[str, str] = {}
    renamed = []
    for names in tables:
        new = {name: spelling.setdefault(name.lower(), name) for name in names}
        renamed.append({name: other for name, other in new.items() if name != other})
        for name, other in renamed[-1].items():
            log.warning("the columns %s and %s differ in case only: they become one, %s", other, name, other)
    return renamed


def one_case(tables: Sequence[gpd.GeoDataFrame]) -> list[gpd.GeoDataFrame]:
    """The same tables, renamed by `one_spelling`."""
    return [table.rename(columns=new) for table, new in zip(tables, one_spelling(tables), strict=True)]


def check_one_crs(path: str | Path, held: Mapping[str, Any]) -> None:
    """Refuse layers in several CRSs: their outlines could not be compared with what was written, which is in one.

    Parameters
    ----------
    held
        CRSs of layers by their names, from pyproj or pyogrio.

    Raises
    ------
    VectorError
        If they differ.
    """
    known = {name: None if crs is None else pyproj.CRS.from_user_input(crs) for name, crs in held.items()}
    first = next(iter(known))
    for name, crs in known.items():
        one = known[first]
        if (one is None) != (crs is None) or (one and crs and not one.equals(crs, ignore_axis_order=True)):
            said = " and ".join(f"{k} in {c.name if c else 'no CRS'}" for k, c in ((first, one), (name, crs)))
            raise VectorError(
                f"{path} has layers in several CRSs ({said}), so edits of its outlines cannot be recognised: reproject "
                f"{first} to that of {name}, or export {first} to a separate file, where only status is used"
            )


# --- columns of a person ---------------------------------------------------------------------------------------------


def added_columns(tables: Iterable[gpd.GeoDataFrame], known: Mapping[str, Kind] = LANDSLIDE_COLUMNS) -> dict[str, Kind]:
    """Columns that geolabel does not know, and their kind in all tables together; see `common_kinds`."""
    own = {name.lower() for name in (*known, *RESERVED)}
    return common_kinds(
        (table, {name: kind_of(table[name]) for name in table if name not in FACTS and name.lower() not in own})
        for table in tables
    )


def common_kinds(tables: Iterable[tuple[pd.DataFrame, Mapping[str, Kind]]]) -> dict[str, Kind]:
    """The kinds of columns that several tables have, each given with its kinds.

    A table in which a column has no value counts for that column only if it has none in any: many formats do not name
    the kind of empty columns.

    Raises
    ------
    VectorError
        If values of a column are binary in one table and of another kind in a second one.
    """
    columns: dict[str, tuple[Kind, bool]] = {}
    for table, kinds in tables:
        for name, kind in kinds.items():
            filled = name in table and bool(table[name].notna().any())
            before, was_filled = columns.get(name, (kind, filled))
            if filled and was_filled:
                columns[name] = joint_kind(name, before, kind), True
            elif filled or was_filled:
                columns[name] = kind if filled else before, True
            else:
                columns[name] = "binary" if "binary" in (before, kind) else joint_kind(name, before, kind), False
    return {name: kind for name, (kind, _) in columns.items()}


def kind_of(values: pd.Series) -> Kind:
    """The kind of a column that geolabel does not know."""
    if values.dtype == BYTES:
        return "binary"
    inferred = _INFERRED.get(pd.api.types.infer_dtype(values, skipna=True)) if values.dtype == object else None
    if inferred is not None:
        return inferred
    if pd.api.types.is_bool_dtype(values):
        return "bool"
    if pd.api.types.is_integer_dtype(values):
        return "int"
    if pd.api.types.is_float_dtype(values):
        return "real"
    if pd.api.types.is_datetime64_any_dtype(values):
        days = values.dropna()
        if not len(days):
            return "date" if values.dtype == DAYS else "datetime"
        return "date" if (days == days.dt.normalize()).all() else "datetime"
    return "text"


_INFERRED: Mapping[str, Kind] = {
    "boolean": "bool",
    "integer": "int",
    "floating": "real",
    "mixed-integer-float": "real",
    "date": "date",
    "datetime": "datetime",
    "datetime64": "datetime",
    "bytes": "binary",
}
"""Kinds of values without a type of their own, by pandas' name for them."""


def joint_kind(name: str, one: Kind, other: Kind) -> Kind:
    """The common kind of a column that has different kinds in two tables.

    Raises
    ------
    VectorError
        If one of them is binary, which cannot be converted to text.
    """
    if one == other:
        return one
    kinds = {one, other}
    if "binary" in kinds:
        raise VectorError(f"the column {name} holds binary data in one layer and something else in another: rename one")
    if kinds <= {"bool", "int", "real"}:  # a check box is 0 or 1
        return "real" if "real" in kinds else "int"
    return "datetime" if kinds == {"date", "datetime"} else "text"

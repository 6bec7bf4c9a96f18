"""GeoParquet, read with limits: features as plain columns and WKB, for GDAL.

A file of a few kilobytes can expand to many gigabytes, since its pages are compressed and its strings are indices into
a dictionary. Sizes are therefore summed before anything is decoded: from the footer, from the header of every page, and
for strings before they are looked up in their dictionary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyproj

from geolabel.parsing import MAX_NAME, parse_json
from geolabel.types import AnyArray, BoolArray

GEO, LAYER, PROVENANCE, QML = "geo", "geolabel:layer", "geolabel:provenance", "geolabel:qml"
"""Metadata keys: the standard's and geolabel's."""

MAX_GEO_BYTES = 1 << 20
"""Maximum size of the standard's metadata."""

MAX_COLUMNS, MAX_ROWS, MAX_PAGES = 1000, 50_000_000, 1_000_000

MAX_THRIFT = 16 << 20
"""Maximum size of a footer."""

MAX_HEADER = 1 << 16
"""Maximum size of a page header, whose statistics contain two values of the column."""

MAX_NESTED = 8
"""Maximum nesting of structs and lists in footers and page headers."""

BATCH = 1 << 14
"""Rows decoded at once."""


@dataclass(frozen=True)
class Features:
    """The features of a file."""

    name: str
    """Name of the layer."""
    wkb: list[bytes | None]
    """Geometries (N,) as stored."""
    columns: dict[str, tuple[AnyArray, BoolArray]]
    """Attributes (N,) and their null masks: bool, int64, float64, datetime64, or object arrays of strings."""
    crs: pyproj.CRS | None


def read_geoparquet(path: Path, limit: int) -> Features:
    """Read the primary geometry column and the plain attributes of a file.

    Parameters
    ----------
    limit
        Maximum decoded size in bytes.

    Raises
    ------
    ValueError
        If it is not GeoParquet with WKB geometries, damaged, or larger than `limit`.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    _check_sizes(path, limit)
    try:
        limits = {"thrift_string_size_limit": MAX_THRIFT, "thrift_container_size_limit": MAX_THRIFT}
        with pq.ParquetFile(path, **limits) as file:
            primary, crs = _geo(file.metadata.metadata or {})
            fields = [file.schema_arrow.field(i) for i in range(len(file.schema_arrow.names))]
        geometry = next((field for field in fields if field.name == primary), None)
        if geometry is None or not _is_bytes(geometry.type):
            raise ValueError(f"its geometry column {primary[:80]!r} is missing or does not hold WKB")
        plain = [field for field in fields if field.name != primary and _target(field.type) is not None]
        texts = [field.name for field in (geometry, *plain) if _is_bytes(field.type) or _is_text(field.type)]
        with pq.ParquetFile(path, **limits, read_dictionary=texts) as file:
            given = (file.metadata.metadata or {}).get(LAYER.encode(), b"").decode(errors="replace")
            batches = list(_bounded(file, [primary, *(field.name for field in plain)], limit))
    except pa.ArrowException as error:
        raise ValueError(f"it is damaged or not Parquet ({str(error).splitlines()[0][:200]})") from error
    except (OSError, NotImplementedError, OverflowError) as error:
        raise ValueError(f"it cannot be decoded ({str(error)[:200]})") from error
    name = given if given.isprintable() and 0 < len(given) <= MAX_NAME else path.stem
    values = {field.name: _joined([batch.column(field.name) for batch in batches], field.type) for field in plain}
    shapes = [one for batch in batches for one in batch.column(primary).to_pylist()]
    return Features(name, shapes, values, crs)


def metadata_of(path: Path) -> dict[str, str]:
    """The key-value metadata of a file.

    Raises
    ------
    OSError
        If it cannot be read.
    ValueError
        If it is damaged.
    """
    with path.open("rb") as file:
        pairs = _structs(_footer(file).get(5))
    texts = [tuple(pair.get(field) for field in (1, 2)) for pair in pairs]
    return {k.decode(): v.decode() for k, v in texts if isinstance(k, bytes) and isinstance(v, bytes)}


def _geo(metadata: dict[bytes, bytes]) -> tuple[str, pyproj.CRS | None]:
    """Name of the primary column and its CRS, from the standard's metadata."""
    text = metadata.get(GEO.encode())
    if text is None:
        raise ValueError("it is a table without the metadata of GeoParquet: write it with geopandas, DuckDB or GDAL")
    geo = parse_json(text, limit=MAX_GEO_BYTES)
    columns = geo.get("columns") if isinstance(geo, dict) else None
    primary = geo.get("primary_column") if isinstance(geo, dict) else None
    column = columns.get(primary) if isinstance(columns, dict) and isinstance(primary, str) else None
    if not isinstance(column, dict):
        raise ValueError("its metadata of GeoParquet names no primary column")  # noqa: TRY004
    encoding = column.get("encoding")
    if encoding != "WKB":
        raise ValueError(f"its geometries are encoded as {str(encoding)[:40]!r}: write it again with WKB")
    given = column.get("crs", "OGC:CRS84")
    if given is None or given == "OGC:CRS84":
        return str(primary), None if given is None else pyproj.CRS.from_user_input(given)
    if not isinstance(given, dict):
        raise ValueError(f"its crs {str(given)[:80]!r} is no PROJJSON: write it again as GeoParquet 1.0 or 1.1")  # noqa: TRY004
    try:
        return str(primary), pyproj.CRS.from_json_dict(given)
    except pyproj.exceptions.CRSError as error:
        raise ValueError(f"its crs is not known to PROJ ({str(error)[:120]})") from error


# --- sizes -----------------------------------------------------------------------------------------------------------


def _check_sizes(path: Path, limit: int) -> None:
    """Refuse a file that would be larger than `limit` once decompressed.

    The footer is parsed here as well: a damaged one can crash pyarrow's process.
    """
    with path.open("rb") as file:
        footer = _footer(file)
        columns = _structs(footer.get(2))
        groups = [group for group in _structs(footer.get(4)) if group.get(3)]
        rows = sum(_number(group.get(3)) for group in groups)
        if rows > MAX_ROWS or len(columns) > MAX_COLUMNS:
            raise ValueError(
                f"it has {rows} rows and {len(columns)} columns; the limits are {MAX_ROWS} and {MAX_COLUMNS}"
            )
        chunks = [chunk for group in groups for one in _structs(group.get(1)) for chunk in _structs([one.get(3)])]
        size = sum(_number(chunk.get(6)) for chunk in chunks)
        if size <= limit:
            size = sum(_page_sizes(file, chunks, limit))
    if size > limit:
        raise ValueError(f"it is larger than {limit >> 20} MB once decompressed: give a part of it")


def _footer(file: Any) -> dict[int, Any]:
    """Parsed footer: row groups and columns, by Thrift field number."""
    end = file.seek(0, 2)
    file.seek(max(0, end - 8))
    tail = file.read(8)
    size = int.from_bytes(tail[:4], "little")
    if tail[4:] != b"PAR1" or size > end - 12:
        raise ValueError("it is damaged: it has no footer")
    if size > MAX_THRIFT:
        raise ValueError(f"its footer has {size} bytes; the limit is {MAX_THRIFT}")
    file.seek(end - 8 - size)
    return _Compact(file.read(size)).struct()


def _page_sizes(file: Any, chunks: Sequence[dict[int, Any]], limit: int) -> Iterator[int]:
    """Uncompressed sizes of all pages, from their headers, which decide how much memory is allocated.

    Parameters
    ----------
    chunks
        Column metadata of the row groups (``ColumnMetaData``), by field number.
    """
    end, count = file.seek(0, 2), 0
    for chunk in chunks:
        at = min(_number(chunk[field]) for field in (9, 11) if field in chunk) if 9 in chunk else -1
        last = at + _number(chunk.get(7))
        if not 0 <= at <= last <= end:
            raise ValueError("a column of it begins or ends outside the file")
        while at < last:
            file.seek(at)
            header = _Compact(file.read(MAX_HEADER))
            fields = header.struct()
            whole, packed = _number(fields.get(2)), _number(fields.get(3))
            count += 1
            if whole < 0 or packed < 0 or whole > limit or count > MAX_PAGES:
                raise ValueError(f"a page of it claims {whole} bytes, or it has more than {MAX_PAGES} pages")
            yield whole
            at += header.at + packed


def _number(value: Any) -> int:
    return value if isinstance(value, int) else -1


def _structs(value: Any) -> list[dict[int, Any]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


class _Compact:
    """Structs in Thrift's compact protocol, as used by footers and page headers.

    https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md
    """

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def struct(self, depth: int = 0) -> dict[int, Any]:
        """Fields by number: integers, strings, lists and structs, else None; the position moves past the struct."""
        found: dict[int, Any] = {}
        field = 0
        while (byte := self._byte()) != 0:
            field = field + (byte >> 4) if byte >> 4 else self._zigzag()
            found[field] = self._value(byte & 15, depth)
        return found

    def _value(self, kind: int, depth: int) -> Any:
        if depth > MAX_NESTED:
            raise ValueError("it is damaged: its footer or a page header is nested too deep")
        if kind in (1, 2):  # true and false, whose value is the kind
            return None
        if kind in (4, 5, 6):
            return self._zigzag()
        if kind in (3, 7):
            return self._skip({3: 1, 7: 8}[kind])
        if kind == 8:
            size = self._varint()
            self._skip(size)
            return self.data[self.at - size : self.at]
        if kind in (9, 10):
            size = self._byte()
            count, inner = size >> 4 if size >> 4 < 15 else self._varint(), size & 15
            return [self._value(3 if inner in (1, 2) else inner, depth + 1) for _ in range(count)]
        if kind == 12:
            return self.struct(depth + 1)
        raise ValueError("it is damaged: its footer or a page header cannot be read")

    def _skip(self, size: int) -> None:
        self.at += size
        if self.at > len(self.data):
            raise ValueError("it is damaged: its footer or a page header ends too early")

    def _byte(self) -> int:
        self._skip(1)
        return self.data[self.at - 1]

    def _varint(self) -> int:
        value = shift = 0
        while shift < 64:
            byte = self._byte()
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value
        raise ValueError("it is damaged: its footer or a page header has an endless number")

    def _zigzag(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)


def _bounded(file: Any, names: list[str], limit: int) -> Iterator[Any]:
    """Yield batches whose strings and geometries take at most `limit` bytes in total."""
    import pyarrow as pa
    import pyarrow.compute as pc

    left = limit
    for batch in file.iter_batches(batch_size=BATCH, columns=names, use_threads=False):
        columns = []
        for column in batch.columns:
            if pa.types.is_dictionary(column.type):
                sizes = pc.take(pc.binary_length(column.dictionary), column.indices)
                left -= pc.sum(pc.cast(sizes, pa.int64())).as_py() or 0
            else:
                left -= column.nbytes
            if left < 0:
                raise ValueError(f"it is larger than {limit >> 20} MB: give a part of it")
            columns.append(column.dictionary_decode() if pa.types.is_dictionary(column.type) else column)
        yield pa.RecordBatch.from_arrays(columns, names=batch.schema.names)


# --- columns ---------------------------------------------------------------------------------------------------------


def _is_bytes(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_text(kind: Any) -> bool:
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        return _is_text(kind.value_type)
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _target(kind: Any) -> Any:
    """The type that a column is converted to; None if it is not a plain attribute, such as a list."""
    import pyarrow as pa

    types = pa.types
    if _is_text(kind):
        return pa.string()
    if types.is_boolean(kind) or types.is_date(kind):
        return pa.bool_() if types.is_boolean(kind) else pa.date32()
    if types.is_timestamp(kind):
        return pa.timestamp("ms")
    if types.is_floating(kind) or types.is_decimal(kind) or types.is_uint64(kind):
        return pa.float64()
    return pa.int64() if types.is_integer(kind) else None


def _joined(parts: Sequence[Any], kind: Any) -> tuple[AnyArray, BoolArray]:
    """Values of a column and its null mask."""
    import pyarrow as pa

    target = _target(kind)
    column = pa.chunked_array([part.cast(target, safe=False) for part in parts], target)
    null: BoolArray = np.asarray(column.is_null().to_numpy(), bool)
    if target == pa.string():
        return np.array([*column.to_pylist(), None], object)[:-1], null
    if target == pa.bool_() or target == pa.int64():
        return column.fill_null(pa.scalar(0, pa.int64()).cast(target)).to_numpy(), null
    return column.to_numpy(), null

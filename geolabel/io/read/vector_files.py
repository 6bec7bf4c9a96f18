"""Vector files that contain their own features: recognised by first bytes and checked before GDAL opens them.

GDAL's drivers cannot be chosen when features are read, and many of them read instructions: other files to open, SQL to
run, URLs to fetch. So the format is determined here. GeoPackages, Shapefiles, FlatGeobufs and file geodatabases have
first bytes that no text format has; GeoJSON, KML and GeoParquet are parsed by geolabel, and a copy with only the
features is written for GDAL. Files from a network or in an archive are fetched or unpacked once, then checked as local
files.
"""

from __future__ import annotations

import atexit
import json
import re
import shutil
import sqlite3
import tempfile
import threading
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit
from xml.etree import ElementTree as ET

import numpy as np

from geolabel.errors import SceneError, VectorError
from geolabel.io.databases import quoted, reading_database
from geolabel.io.error_messages import in_words
from geolabel.io.read import files
from geolabel.io.read.geoparquet import read_geoparquet
from geolabel.parsing import parse_json, parse_xml
from geolabel.urls import path_of

MAX_BYTES = 1 << 29
"""Maximum size of a file that is fetched, unpacked or rewritten."""

MAX_MEMBERS = 10_000
"""Maximum number of files in an archive."""

IN_ARCHIVES = (".gpkg", ".geojson", ".json", ".shp", ".fgb", ".kml", ".parquet", ".geoparquet")
"""Suffixes of vector files that are searched for in archives."""

BESIDE_SHAPES = (".shx", ".dbf", ".prj", ".cpg")
"""Suffixes of the other files of a Shapefile."""

WAY_OUT = (
    "give a GeoPackage, GeoJSON, Shapefile, FlatGeobuf, GeoParquet, KML or file geodatabase; ogr2ogr and QGIS convert "
    "other formats"
)

PLAIN_TABLE = re.compile(
    r"CREATE (TABLE|(UNIQUE )?INDEX|VIEW|TRIGGER)\b"
    r'|CREATE VIRTUAL TABLE ("([^"]|"")*"|\'([^\']|\'\')*\'|\[[^]]*\]|`[^`]*`|\w+) USING (rtree|rtree_i32|fts[345])\b',
    re.IGNORECASE,
)
"""How schema statements for the tables, indexes, views and triggers of a GeoPackage begin, as SQLite writes them."""

GEOMETRIES = {"Point", "MultiPoint", "LineString", "MultiLineString", "Polygon", "MultiPolygon", "GeometryCollection"}

CRS_NAME = re.compile(
    r"(urn:ogc:def:crs:[\w.:+-]+|(EPSG|OGC|ESRI|IAU):+[\w.:]+|https?://www\.opengis\.net/def/crs/[\w./]+)"
)
"""CRS names in GeoJSON: a code, not a location to fetch it from."""

KML = {
    "kml": "",
    "Document": "id",
    "Folder": "id",
    "Placemark": "id",
    "name": "",
    "description": "",
    "ExtendedData": "",
    "Data": "name",
    "value": "",
    "SchemaData": "schemaUrl",
    "SimpleData": "name",
    "Schema": "id name",
    "SimpleField": "name type",
    "MultiGeometry": "",
    "Point": "",
    "LineString": "",
    "LinearRing": "",
    "Polygon": "",
    "outerBoundaryIs": "",
    "innerBoundaryIs": "",
    "coordinates": "",
    "TimeStamp": "",
    "TimeSpan": "",
    "when": "",
    "begin": "",
    "end": "",
}
"""KML elements that are kept, and their attributes; styles, links, overlays and views are dropped."""

_COPIES: dict[tuple[str, int, int], Path] = {}
_COPYING = threading.RLock()


def vector_file(path: str | Path) -> Path:
    """A local file that GDAL may read features from: the given one, or a checked copy.

    Parameters
    ----------
    path
        A file or a URL, an archive, or a file in one (``zip://a.zip!b.shp``). Files from a network are fetched once per
        process.

    Raises
    ------
    VectorError
        If it cannot be read, or its format may refer to other files.
    """
    name = files.chained(str(path))
    try:
        return _of_network(name) if files.is_remote(name) else _of_machine(name)
    except (OSError, ValueError, RuntimeError, zipfile.BadZipFile, SceneError) as error:
        said = str(error) if isinstance(error, ValueError | SceneError) else in_words(error)
        raise VectorError(f"{path} cannot be read as a vector file: {said}") from error


def _of_network(name: str) -> Path:
    match = re.match(r"/vsi(zip)/\{?(/vsi.*?\.zip)\}?(?:/(.+))?$|zip\+(.*?\.zip)(?:!(.+))?$", name)
    url, inner = (name, None) if match is None else (match[2] or match[4], match[3] or match[5])
    with _COPYING:
        if (url, 0, 0) not in _COPIES:
            file = _new_folder() / _plain_name(PurePosixPath(urlsplit(files.url_of(url)).path).name)
            file.write_bytes(files.fetch(url, MAX_BYTES))
            if file.suffix.lower() == ".shp":
                for suffix in BESIDE_SHAPES:
                    with suppress(SceneError, OSError):
                        beside = files.fetch(_beside(url, suffix), MAX_BYTES)
                        file.with_suffix(suffix).write_bytes(beside)
            _COPIES[url, 0, 0] = file
        file = _COPIES[url, 0, 0]
    return _of_machine(str(file) if inner is None else f"zip://{file}!{inner}")


def _beside(url: str, suffix: str) -> str:
    """The URL of a file beside a Shapefile, with the same query string."""
    place, mark, query = url.partition("?")
    return place[: -len(".shp")] + suffix + mark + query


def _of_machine(name: str) -> Path:
    match = re.match(r"(?:/vsizip/|zip://)\{?(.*?\.(?:zip|kmz|shz))\}?(?:[!/](.+))?$", name, re.IGNORECASE)
    inner = None
    if match is not None:
        name, inner = match[1], match[2]
    path = Path(path_of(name)).absolute()
    if path.is_dir():
        if path.suffix.lower() == ".gdb" and (path / "a00000001.gdbtable").is_file():
            return path
        raise ValueError("it is a folder: give the file inside it")
    if not path.exists():
        raise ValueError("there is no such file")
    if not path.is_file():
        raise ValueError("it is not a file")
    with path.open("rb") as file:
        start = file.read(100)
    if start.startswith(b"SQLite format 3\0"):
        check_tables(path)
        return path
    if start.startswith((b"fgb\x03fgb", b"\0\0\x27\x0a")):
        return path
    if start.startswith(b"PAR1"):
        return _copy(path, ".parquet", _geoparquet)
    if start.startswith(b"PK\3\4"):
        return _copy(path, inner or "", _unpacked)
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n")
    if text.startswith(b"{"):
        return _copy(path, ".geojson", _geojson)
    if text.startswith(b"<"):
        return _copy(path, ".kml", _kml)
    raise ValueError(WAY_OUT)


def _copy(path: Path, kind: str, make: Any) -> Path:
    """The copy of a file that `make` writes to a folder, once per state of that file."""
    status = path.stat()
    key = f"{path} {kind}", status.st_mtime_ns, status.st_size
    with _COPYING:
        if key not in _COPIES:
            _COPIES[key] = make(path, kind, _new_folder())
        return _COPIES[key]


def _new_folder() -> Path:
    """A folder that is deleted when the process ends."""
    folder = Path(tempfile.mkdtemp(prefix="geolabel-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


# --- GeoPackage ------------------------------------------------------------------------------------------------------


def check_tables(path: Path, *, views: bool = True, way_out: str = WAY_OUT) -> None:
    """Refuse a database that reads other files or never ends.

    Checked are tables with rows and those of a spatial index, since modules of virtual tables can read any file, and
    the schema, which anyone can write, may hide them. Views are run if `views` is set, for at most
    `geolabel.io.databases.MAX_STEPS`.

    Raises
    ------
    ValueError
        If it is refused.
    """
    try:
        with reading_database(path) as database:
            made = database.execute("SELECT name, type, sql FROM sqlite_master WHERE sql IS NOT NULL").fetchall()
            for _, _, sql in made:
                if not PLAIN_TABLE.match(str(sql)):
                    raise ValueError(f"it has a table that is read from elsewhere ({str(sql)[:80]!r}); {way_out}")
            database.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_BYTES)
            for name, kind, _ in made:
                if kind == "view" and views:
                    _run_view(database, str(name))
    except sqlite3.Error:
        return  # a damaged file is left to GDAL, which reads no table that SQLite cannot list


def _run_view(database: sqlite3.Connection, name: str) -> None:
    try:
        for _ in database.execute(f"SELECT * FROM {quoted(name)}"):  # noqa: S608
            pass
    except (sqlite3.Error, MemoryError) as error:
        raise ValueError(
            f"its view {name[:80]!r} takes too long to read ({in_words(error)}): save it as a layer "
            "of its own (Export in QGIS)"
        ) from error


# --- GeoJSON ---------------------------------------------------------------------------------------------------------


def _geojson(path: Path, suffix: str, folder: Path) -> Path:
    with path.open("rb") as file:
        value = parse_json(file.read(MAX_BYTES + 1), limit=MAX_BYTES)
    kind = value.get("type")
    if kind == "FeatureCollection":
        features = value.get("features")
        if not isinstance(features, list):
            raise ValueError("its member features is not a list")
    elif kind == "Feature":
        features = [value]
    elif kind in GEOMETRIES:
        features = [{"type": "Feature", "properties": {}, "geometry": value}]
    else:
        raise ValueError(f"it is JSON of the type {str(kind)[:40]!r}, not GeoJSON; {WAY_OUT}")
    kept: dict[str, Any] = {"type": "FeatureCollection", "name": str(value.get("name") or path.stem)}
    if (crs := value.get("crs")) is not None:
        kept["crs"] = _crs(crs)
    copy = folder / (_plain_name(path.stem) + suffix)
    with copy.open("w", encoding="ascii") as target:
        # one feature at a time: serialising the whole collection would need its memory twice
        target.write(_as_json(kept)[:-1] + ',"features":[')
        target.writelines(("," if row else "") + _as_json(_feature(one)) for row, one in enumerate(features))
        target.write("]}")
    return copy


def _as_json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def _crs(crs: Any) -> dict[str, Any]:
    properties = crs.get("properties") if isinstance(crs, dict) and crs.get("type") == "name" else None
    name = properties.get("name") if isinstance(properties, dict) else None
    if not isinstance(name, str) or not CRS_NAME.fullmatch(name):
        raise ValueError(f"its crs {str(crs)[:80]} is not a CRS code, such as urn:ogc:def:crs:EPSG::32648")
    return {"type": "name", "properties": {"name": name}}


def _feature(feature: Any) -> dict[str, Any]:
    if not isinstance(feature, dict):
        raise ValueError("it holds an invalid feature")  # noqa: TRY004
    properties, geometry = feature.get("properties"), feature.get("geometry")
    if not isinstance(properties, dict | None) or not isinstance(geometry, dict | None):
        raise ValueError("it holds a feature with invalid properties or geometry")  # noqa: TRY004
    kept: dict[str, Any] = {"type": "Feature"}
    if isinstance(feature.get("id"), str | int):
        kept["id"] = feature["id"]
    return kept | {"properties": properties, "geometry": None if geometry is None else _geometry(geometry)}


def _geometry(geometry: dict[str, Any]) -> dict[str, Any]:
    kind = geometry.get("type")
    if kind not in GEOMETRIES:
        raise ValueError(f"it holds a geometry of the type {str(kind)[:40]!r}")
    if kind == "GeometryCollection":
        parts = geometry.get("geometries")
        inner = parts if isinstance(parts, list) else ()
        return {"type": kind, "geometries": [_geometry(one) for one in inner if isinstance(one, dict)]}
    return {"type": kind, "coordinates": geometry.get("coordinates")}


# --- KML -------------------------------------------------------------------------------------------------------------


def _kml(path: Path, suffix: str, folder: Path) -> Path:
    with path.open("rb") as file:
        root = _kml_root(file.read(MAX_BYTES + 1))
    return _write_kml(root, folder / (_plain_name(path.stem) + suffix))


def _kml_root(data: bytes) -> ET.Element:
    root = parse_xml(data, limit=MAX_BYTES)
    if root.tag != "kml":
        raise ValueError(f"it is XML of the kind {root.tag[:40]!r}, not KML; {WAY_OUT}")
    return _elements(root)


def _write_kml(root: ET.Element, copy: Path) -> Path:
    root.set("xmlns", "http://www.opengis.net/kml/2.2")
    ET.ElementTree(root).write(copy, encoding="utf-8", xml_declaration=True)
    return copy


def _elements(given: ET.Element) -> ET.Element:
    names = KML[given.tag].split()
    made = ET.Element(given.tag, {key: value for key, value in given.attrib.items() if key in names})
    if not made.get("schemaUrl", "#").startswith("#"):
        del made.attrib["schemaUrl"]  # fields declared in another file
    made.text = given.text
    made.extend([_elements(child) for child in given if child.tag in KML])
    return made


# --- GeoParquet ------------------------------------------------------------------------------------------------------


def _geoparquet(path: Path, _: str, folder: Path) -> Path:
    import pyogrio  # imports pandas, which opening a scene does not need

    found = read_geoparquet(path, MAX_BYTES)
    names = [name for name in found.columns if name]
    taken = {name.lower() for name in names}
    if len(taken) < len(names):
        raise ValueError("it has two columns whose names differ only in case: rename one")
    own = [next(name for name in (word, f"{word}_", f"{word}__") if name not in taken) for word in ("fid", "geom")]
    copy = folder / (_plain_name(path.stem) + ".gpkg")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="'crs' was not provided")
        pyogrio.raw.write(
            copy,
            np.array([*found.wkb, None], object)[:-1],
            [found.columns[name][0] for name in names],
            names,
            field_mask=[found.columns[name][1] for name in names],
            layer=_plain_name(found.name),
            driver="GPKG",
            geometry_type="Unknown",
            crs=None if found.crs is None else found.crs.to_wkt(),
            layer_options={"FID": own[0], "GEOMETRY_NAME": own[1]},
        )
    return copy


# --- archives --------------------------------------------------------------------------------------------------------


def _unpacked(path: Path, inner: str, folder: Path) -> Path:
    """The only vector file of an archive, or the named one."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if len(members) > MAX_MEMBERS:
            raise ValueError(f"its archive holds {len(members)} files; the limit is {MAX_MEMBERS}")
        if path.suffix.lower() == ".kmz":
            return _kmz(archive, [one for one in members if one.filename.lower().endswith(".kml")], path, folder)
        wanted = [one for one in members if _is_vector(one.filename) and (not inner or one.filename == inner)]
        if any(one.filename.lower().endswith(".shp") for one in wanted):
            wanted = [one for one in wanted if PurePosixPath(one.filename).name != "provenance.json"]
        if len(wanted) != 1 and not _are_layers(wanted):
            found = ", ".join(one.filename for one in wanted[:5]) or "none"
            raise ValueError(
                "an archive must hold one vector file, or the Shapefiles of one folder, but it holds "
                f"{found}: unpack it, give one"
            )
        stems = {one.filename.rpartition(".")[0] for one in wanted}
        beside = [
            one
            for one in members
            if one.filename.rpartition(".")[0] in stems and one.filename.lower().endswith(BESIDE_SHAPES)
        ]
        for member, data in _contents(archive, [*wanted, *beside]):
            (folder / _plain_name(PurePosixPath(member.filename).name)).write_bytes(data)
    return folder if len(wanted) > 1 else _of_machine(str(folder / _plain_name(PurePosixPath(wanted[0].filename).name)))


def _are_layers(members: list[zipfile.ZipInfo]) -> bool:
    """Whether files of an archive are Shapefiles in one folder, which then are its layers."""
    paths = [PurePosixPath(one.filename) for one in members]
    names = {_plain_name(path.name).lower() for path in paths}
    return (
        len(paths) == len(names) > 1
        and len({path.parent for path in paths}) == 1
        and all(path.suffix.lower() == ".shp" for path in paths)
    )


def _kmz(archive: zipfile.ZipFile, members: list[zipfile.ZipInfo], path: Path, folder: Path) -> Path:
    """All features of a KMZ archive, whose KML files link to each other, in one file."""
    root = ET.Element("kml")
    whole = ET.SubElement(root, "Document")
    for _, data in _contents(archive, members):
        for child in _kml_root(data):
            if child.find(".//Placemark") is not None:  # others only contain links
                child.tag = "Folder" if child.tag == "Document" else child.tag
                whole.append(child)
    return _write_kml(root, folder / (_plain_name(path.stem) + ".kml"))


def _contents(archive: zipfile.ZipFile, members: list[zipfile.ZipInfo]) -> Iterator[tuple[zipfile.ZipInfo, bytes]]:
    left = MAX_BYTES
    for member in members:
        try:
            with archive.open(member) as file:
                data = file.read(left + 1)
        except (zlib.error, EOFError) as error:
            raise ValueError(f"its archive is damaged at {member.filename} ({error})") from error
        left -= len(data)
        if left < 0:
            raise ValueError(f"its archive is larger than {MAX_BYTES >> 20} MB: unpack it, and give the file")
        yield member, data


def _is_vector(name: str) -> bool:
    return name.lower().endswith(IN_ARCHIVES) and not PurePosixPath(name).name.startswith(".")


def _plain_name(name: str) -> str:
    """A name of at most 100 characters without special meaning for any library."""
    stem, dot, suffix = name.rpartition(".")
    return re.sub(r"[^\w. -]", "_", (stem if dot else suffix)[:100]) + (f".{suffix[:10]}" if dot else "") or "file"

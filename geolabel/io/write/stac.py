"""STAC items (version 1.1.0): files with their media types, roles and checksums.

https://github.com/radiantearth/stac-spec, and the extensions in `EXTENSIONS`. File names are relative to the item, so
that a folder can be moved as a whole, and no absolute path is written.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pyproj
import shapely

from geolabel.errors import OptionError, OutputError
from geolabel.geodesy import reproject
from geolabel.outputs import check_target, replacing
from geolabel.urls import clean

VERSION = "1.1.0"

EXTENSIONS = {
    name: f"https://stac-extensions.github.io/{name}/{version}/schema.json"
    for name, version in (("file", "v2.1.0"), ("projection", "v2.0.0"), ("processing", "v1.2.0"), ("mlm", "v1.6.0"))
}

GEOJSON = "application/geo+json"
"""Media type of items and of GeoJSON."""

MEDIA: Mapping[str, str] = {
    ".gpkg": "application/geopackage+sqlite3",
    ".fgb": "application/vnd.fgb",
    ".parquet": "application/vnd.apache.parquet",
    ".geojson": GEOJSON,
    ".shp": "application/vnd.shp",
    ".shx": "application/vnd.shx",
    ".dbf": "application/vnd.dbf",
    ".prj": "text/plain",
    ".cpg": "text/plain",
    ".zip": "application/zip",
    ".kmz": "application/vnd.google-earth.kmz",
    ".tif": "image/tiff; application=geotiff",
    ".tiff": "image/tiff; application=geotiff",
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".svg": "image/svg+xml",
    ".pdf": "application/pdf",
    ".html": "text/html",
    ".json": "application/json",
    ".csv": "text/csv",
    ".qgz": "application/zip",
    ".safetensors": "application/octet-stream",
}
"""Media types by the suffix of a file."""

COG = "; profile=cloud-optimized"

PICTURES = (".png", ".jpg", ".jpeg", ".svg")

DIGITS = 7
"""Decimals of longitudes and latitudes."""

PIECES = 16
"""Segments that a side of a footprint is split into before reprojection."""


def asset_of(path: Path, item: Path, title: str, roles: Sequence[str] = (), **more: Any) -> dict[str, Any]:
    """Describe a file: its path relative to the item, media type, size and checksum.

    Parameters
    ----------
    item
        The item that refers to it.
    roles
        By default ``overview`` for a picture, ``metadata`` for a page, and otherwise ``data``.

    Raises
    ------
    OptionError
        If the suffix is not in `MEDIA`, or the file is on another drive than the item.
    OutputError
        If it cannot be read.
    """
    suffix = path.suffix.lower()
    if suffix not in MEDIA:
        raise OptionError(
            f"{path}: no media type is known of {suffix or 'a file without suffix'}: give {', '.join(MEDIA)}"
        )
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            file.seek(0)
            cloud = suffix in (".tif", ".tiff") and b"LAYOUT=IFDS_BEFORE_DATA" in file.read(512)
        size = path.stat().st_size
    except OSError as error:
        raise OutputError(f"{path} cannot be read: {error.strerror or error}") from error
    usual = "overview" if suffix in PICTURES else "metadata" if suffix in (".html", ".pdf", ".qgz") else "data"
    return {
        "href": href_of(path, item),
        "title": title,
        "type": MEDIA[suffix] + (COG if cloud else ""),
        "roles": list(roles) or [usual],
        "file:size": size,
        "file:checksum": multihash(digest),
    } | more


def multihash(digest: str) -> str:
    """A SHA-256 (hexadecimal) as a multihash: prefixed with its code and length, https://multiformats.io/multihash."""
    return f"1220{digest}"


def href_of(path: Path, item: Path) -> str:
    """The name of a file relative to an item, as a URL.

    Raises
    ------
    OptionError
        If it is on another drive.
    """
    try:
        name = os.path.relpath(path.resolve(), item.parent.resolve())
    except ValueError as error:
        raise OptionError(f"{path} and {item} are on different drives: write the item beside its files") from error
    return quote(Path(name).as_posix() if name.startswith("..") else f"./{Path(name).as_posix()}")


def footprint(outlines: Sequence[tuple[shapely.Geometry, pyproj.CRS | None]]) -> shapely.Geometry | None:
    """The ground of outlines in longitudes and latitudes, split at the antimeridian; None if unknown."""
    parts = []
    for outline, crs in outlines:
        if crs is None or crs.geodetic_crs is None:
            return None
        fine = shapely.segmentize(outline, max(outline.length / 4 / PIECES, 1e-9))
        (moved,) = reproject(np.array([fine], object), crs, pyproj.CRS.from_user_input("OGC:CRS84"))
        if not np.isfinite(moved.bounds).all():
            return None
        parts.append(moved)
    if not parts:
        return None
    whole = shapely.union_all(parts).simplify(10.0**-DIGITS)
    return shapely.orient_polygons(shapely.set_precision(whole, 10.0**-DIGITS))


def bbox_of(shape: shapely.Geometry) -> list[float]:
    """West, south, east and north of a footprint; across the antimeridian, west is larger than east."""
    west, south, east, north = shape.bounds
    parts = shapely.get_parts(shape)
    if west <= -180 and east >= 180 and not any(part.bounds[0] < 0 < part.bounds[2] for part in parts):
        west = min(part.bounds[0] for part in parts if part.bounds[0] >= 0)
        east = max(part.bounds[2] for part in parts if part.bounds[2] <= 0)
    return [round(value, DIGITS) for value in (west, south, east, north)]


def item_of(
    out: Path,
    shape: shapely.Geometry | None,
    properties: Mapping[str, Any],
    assets: Mapping[str, Mapping[str, Any]],
    *,
    extensions: Sequence[str],
    links: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """An item whose ``id`` is the name of its file.

    Parameters
    ----------
    extensions
        Names of `EXTENSIONS`.
    """
    geometry = None if shape is None else json.loads(json.dumps(shapely.geometry.mapping(shape)))
    return {
        "type": "Feature",
        "stac_version": VERSION,
        "stac_extensions": [EXTENSIONS[name] for name in extensions],
        "id": out.stem,
        "geometry": geometry,
        **({} if shape is None else {"bbox": bbox_of(shape)}),
        "properties": clean(properties),
        "links": list(links),
        "assets": dict(assets),
    }


def write_item(item: Mapping[str, Any], out: Path, *, overwrite: bool = False) -> None:
    """Write an item, completely or not at all; the same item gives the same bytes.

    Raises
    ------
    OutputError
        If it cannot be written, or exists and may not be replaced.
    """
    check_target(out, overwrite=overwrite, suffixes=(".json", ".geojson"))
    text = json.dumps(item, indent=2, ensure_ascii=False, allow_nan=False)
    try:
        with replacing(out, overwrite=overwrite) as part:
            part.write_text(f"{text}\n", encoding="utf-8", newline="\n")
    except OSError as error:
        raise OutputError(f"{out} could not be written: {error.strerror or error}") from error

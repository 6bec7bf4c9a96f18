"""Formats for other programs: Shapefiles, GeoJSON, FlatGeobuf for web maps, and KMZ for virtual globes.

No format holds everything; each writer logs a warning that lists what it omits. Archives have no dates, so that the
same layers give the same bytes.
"""

from __future__ import annotations

import json
import re
import tempfile
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pyproj
import shapely

from geolabel.errors import OptionError, OutputError
from geolabel.geodesy import reproject
from geolabel.io.columns import COLUMNS, NAME_LENGTH, Kind, short_names
from geolabel.io.styles import GREEN, LIMITS, MIDDLE, WARM
from geolabel.io.write.geopackage import (
    Layer,
    VectorFile,
    column_values,
    others_of,
    shapes_of,
    warn_left_out,
    write_layer,
)
from geolabel.io.written import plain
from geolabel.types import AnyArray
from geolabel.urls import clean

BEGINNING = (1980, 1, 1, 0, 0, 0)
"""The earliest date in an archive."""

TEXT_LENGTH = 254
"""Maximum bytes of a text in a Shapefile."""

DECIMALS = 7
"""Decimals of longitudes and latitudes in GeoJSON: 1 cm at the equator."""

LONLAT = "OGC:CRS84"

KML = "http://www.opengis.net/kml/2.2"

UNKNOWN = "255,255,255"
"""Colour of polygons without a confidence."""

NO_XML = re.compile(r"[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that are invalid in XML, such as terminal control characters."""


def write_shapefiles(path: Path, file: VectorFile) -> None:
    """Write every layer as a Shapefile in one archive, with the provenance as JSON; warn about omissions."""
    with tempfile.TemporaryDirectory(prefix="geolabel-") as folder:
        lost = [_write_shapefile(Path(folder) / f"{layer.name}.shp", layer, file.crs) for layer in file.layers]
        members = {one.name: one.read_bytes() for one in sorted(Path(folder).iterdir())}
    _archive(path, members | {"provenance.json": file.record.encode()})
    warn_left_out(path, "Shapefiles", f"styles and the record of the review{_said_of(lost)}")


def write_shapefile(path: Path, file: VectorFile) -> None:
    """Write the first layer as a Shapefile, which is several files; warn about omissions."""
    lost = _write_shapefile(path, file.layers[0], file.crs)
    left_out = f"styles, provenance and the record of the review{_said_of([lost])}{others_of(file)}"
    warn_left_out(path, f"the layer {file.layers[0].name}", left_out)


@dataclass(frozen=True)
class _Lost:
    """Contents of a layer that a Shapefile cannot hold."""

    renamed: Mapping[str, str]
    """Renamed columns, with their new names."""
    cut: bool
    """Whether a text was truncated."""


def _write_shapefile(path: Path, layer: Layer, crs: pyproj.CRS | None) -> _Lost:
    short = short_names(list(layer.columns))
    columns: dict[str, Kind] = {
        short[name]: "text" if kind == "datetime" else kind for name, kind in layer.columns.items()
    }
    part = replace(layer, columns=columns, features=layer.features.rename(columns=short), key=None)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*truncated to 254 characters")
        write_layer(
            path,
            part,
            crs,
            driver="ESRI Shapefile",
            layer_options={"ENCODING": "UTF-8", "DBF_DATE_LAST_UPDATE": "1970-01-01", "2GB_LIMIT": "YES"},
        )
    cut = any(_has_long_texts(layer, name) for name, kind in layer.columns.items() if kind == "text")
    return _Lost({name: other for name, other in short.items() if name != other}, cut)


def _said_of(lost: Sequence[_Lost]) -> str:
    renamed = {name: other for one in lost for name, other in one.renamed.items()}
    named = ", ".join(f"{name} is {other}" for name, other in renamed.items())
    said = f"; column names have {NAME_LENGTH} characters ({named})" if named else ""
    return said + (f"; texts are cut at {TEXT_LENGTH} bytes" if any(one.cut for one in lost) else "")


def _has_long_texts(layer: Layer, name: str) -> bool:
    if name not in layer.features:
        return False
    return any(len(str(text).encode()) > TEXT_LENGTH for text in layer.features[name].dropna())


def write_geojson(path: Path, file: VectorFile) -> None:
    """Write the first layer as GeoJSON (RFC 7946), with the provenance as an extra member; warn about omissions.

    Polygons are in longitudes and latitudes with seven decimals, with counterclockwise outer rings; polygons across the
    antimeridian are split there. Each feature is on one line.

    Raises
    ------
    OutputError
        If the layer has no CRS, or a polygon cannot be converted to longitude and latitude.
    """
    layer = file.layers[0]
    fine = shapely.set_precision(_on_earth(path, layer, file.crs), 10.0**-DECIMALS)
    shapes = shapely.to_geojson(shapely.orient_polygons(fine))
    columns = {name: _json_values(layer, name, kind) for name, kind in layer.columns.items()}
    with path.open("w", encoding="utf-8", newline="\n") as target:
        head = {"type": "FeatureCollection", "name": layer.name, "provenance": clean(file.provenance)}
        target.write(_as_json(head)[:-1] + ',"features":[')
        for row, shape in enumerate(shapes):
            properties = {name: values[row] for name, values in columns.items()}
            feature = {"type": "Feature"} | ({} if layer.key is None else {"id": properties[layer.key]})
            text = _as_json(feature | {"properties": properties})
            target.write(f'{"," if row else ""}\n{text[:-1]},"geometry":{shape}}}')
        target.write("\n]}\n")
    left_out = f"styles and the record of the review{others_of(file)}"
    warn_left_out(path, f"the layer {layer.name} in longitudes and latitudes", left_out)


def _as_json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _json_values(layer: Layer, name: str, kind: Kind) -> list[Any]:
    values, null = column_values(layer.features, name, kind)
    if kind in ("date", "datetime"):
        texts = np.datetime_as_string(values, timezone="UTC" if kind == "datetime" else "naive")
        return [None if n else str(text) for text, n in zip(texts, null, strict=True)]
    if kind == "real":
        null = null | ~np.isfinite(values)
    return [None if n else value for value, n in zip(values.tolist(), null, strict=True)]


def write_flatgeobuf(path: Path, file: VectorFile) -> None:
    """Write the first layer as FlatGeobuf, with the provenance as JSON in its metadata; warn about omissions.

    Features are in the order of the spatial index. Dates become times at midnight, as the format has no dates.
    """
    layer = file.layers[0]
    warn_left_out(path, f"the layer {layer.name}", f"styles and the record of the review{others_of(file)}")
    write_layer(
        path,
        layer,
        file.crs,
        driver="FlatGeobuf",
        layer_options={"SPATIAL_INDEX": "YES", "TITLE": layer.description},
        layer_metadata={"provenance": file.record},
    )


def check_lonlat(path: Path, crs: pyproj.CRS | None, dst_crs: pyproj.CRS | None = None) -> None:
    """Refuse a format in longitudes and latitudes for polygons without them, or with another `dst_crs`.

    Parameters
    ----------
    crs
        CRS of the polygons.
    dst_crs
        Requested CRS, where it only affects how the file is written.

    Raises
    ------
    OutputError
        If the suffix is of such a format, and there is no CRS, or a local (engineering) one.
    OptionError
        If it is, and `dst_crs` is another CRS.
    """
    name = {".geojson": "GeoJSON", ".kmz": "KMZ"}.get(path.suffix.lower())
    if name is None:
        return
    if crs is None or crs.geodetic_crs is None:
        what = "no CRS" if crs is None else f"the CRS {crs.name}, which is local (engineering)"
        raise OutputError(f"{path.name}: {name} has longitudes and latitudes, and the scene has {what}: write a .gpkg")
    if dst_crs is not None and not dst_crs.equals(pyproj.CRS.from_user_input(LONLAT), ignore_axis_order=True):
        raise OptionError(
            f"--dst-crs: {path.name} is {name}, which has longitudes and latitudes of WGS 84 and not {dst_crs.name}: "
            "leave it out, or write another format"
        )


def _on_earth(path: Path, layer: Layer, crs: pyproj.CRS | None) -> AnyArray:
    """(N,) features of a layer in longitudes and latitudes."""
    check_lonlat(path, crs)
    assert crs is not None
    shapes: AnyArray = reproject(shapes_of(layer), crs, pyproj.CRS.from_user_input(LONLAT))
    bounds = shapely.bounds(shapes)
    strange = np.flatnonzero(~np.isfinite(bounds).all(axis=1) | (np.abs(bounds).max(axis=1, initial=0) > 360))
    if len(strange):
        number = layer.features["id"].iloc[strange[0]] if "id" in layer.features else strange[0] + 1
        raise OutputError(f"polygon {number} of {layer.name} has no longitude and latitude: write a .gpkg")
    return shapes


def write_kmz(path: Path, file: VectorFile) -> None:
    """Write the layers of polygons with their attributes, coloured by confidence; warn about omissions.

    Raises
    ------
    OutputError
        If the layers have no CRS, or a polygon cannot be converted to longitude and latitude.
    """
    check_lonlat(path, file.crs)
    shown = [layer for layer in file.layers if layer.key == "id"] or file.layers[:1]
    root = ET.Element("kml", xmlns=KML)
    document = ET.SubElement(root, "Document")
    ET.SubElement(document, "name").text = path.stem
    for name, colour in _colours().items():
        style = ET.SubElement(document, "Style", id=name)
        line = ET.SubElement(style, "LineStyle")
        ET.SubElement(line, "color").text = _abgr(colour, 255)
        ET.SubElement(line, "width").text = "2"
        ET.SubElement(ET.SubElement(style, "PolyStyle"), "color").text = _abgr(colour, 50)
    for layer in shown:
        folder = ET.SubElement(document, "Folder")
        ET.SubElement(folder, "name").text = layer.name
        ET.SubElement(folder, "description").text = layer.description
        for place in _places(layer, _on_earth(path, layer, file.crs)):
            folder.append(place)
    _archive(path, {"doc.kml": ET.tostring(root, encoding="utf-8", xml_declaration=True)})
    others = ", ".join(layer.name for layer in file.layers if layer.name not in {one.name for one in shown})
    left_out = f"QGIS styles, provenance and the record of the review{f'; left out: {others}' if others else ''}"
    warn_left_out(path, "polygons in longitudes and latitudes", left_out)


def _places(layer: Layer, shapes: AnyArray) -> Iterator[ET.Element]:
    """A placemark for each polygon; `shapes` (N,) are in longitudes and latitudes."""
    rows = layer.features.drop(columns=layer.features.geometry.name).to_dict("records")
    for values, shape in zip(rows, shapes, strict=True):
        place = ET.Element("Placemark")
        ET.SubElement(place, "name").text = NO_XML.sub("", _title(layer, values))
        ET.SubElement(place, "styleUrl").text = f"#{_style_of(values)}"
        data = ET.SubElement(place, "ExtendedData")
        for name in layer.columns:
            value = plain(values.get(name))
            if value is not None and layer.columns[name] == "int":
                value = int(value)
            if value is not None:
                entry = ET.SubElement(data, "Data", name=NO_XML.sub("", name))
                ET.SubElement(entry, "displayName").text = (
                    COLUMNS[name].alias if name in COLUMNS else NO_XML.sub("", name)
                )
                text = f"{value:.10g}" if isinstance(value, float) else NO_XML.sub("", str(value))
                ET.SubElement(entry, "value").text = text
        many = ET.SubElement(place, "MultiGeometry")
        for part in shapely.get_parts(shape):
            polygon = ET.SubElement(many, "Polygon")
            for kind, ring in [
                ("outerBoundaryIs", part.exterior),
                *(("innerBoundaryIs", one) for one in part.interiors),
            ]:
                linear = ET.SubElement(ET.SubElement(polygon, kind), "LinearRing")
                ET.SubElement(linear, "coordinates").text = " ".join(f"{x:.8f},{y:.8f}" for x, y in ring.coords)
        yield place


def _title(layer: Layer, values: Mapping[Any, Any]) -> str:
    if values.get("id") is None:
        return str(values.get("change") or layer.name)
    return f"{plain(values.get('class')) or 'landslide'} {values['id']}"


def _colours() -> dict[str, str]:
    graded = {f"confidence{k}": colour for k, colour in enumerate(WARM)}
    return graded | {"unknown": UNKNOWN, "accepted": GREEN, "rejected": MIDDLE}


def _style_of(values: Mapping[Any, Any]) -> str:
    status, confidence = plain(values.get("status")), plain(values.get("confidence"))
    if status in ("accepted", "rejected"):
        return str(status)
    if confidence is None:
        return "unknown"
    return f"confidence{sum(confidence >= limit for limit in LIMITS[1:-1])}"


def _abgr(colour: str, opacity: int) -> str:
    red, green, blue = (int(part) for part in colour.split(","))
    return f"{opacity:02x}{blue:02x}{green:02x}{red:02x}"


def _archive(path: Path, members: Mapping[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            entry = zipfile.ZipInfo(name, BEGINNING)
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, content)

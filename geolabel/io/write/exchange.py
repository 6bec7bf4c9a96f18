"""Formats to hand an inventory on to other programs: zipped Shapefiles, and KMZ for virtual globes.

Neither holds everything, and each names in a warning what it leaves out. Both are archives without dates, so that the
same layers give the same bytes.
"""

from __future__ import annotations

import logging
import re
import tempfile
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pandas as pd
import pyproj
import shapely

from geolabel.errors import OutputError
from geolabel.geodesy import reproject
from geolabel.io.columns import COLUMNS, Kind
from geolabel.io.styles import GREEN, LIMITS, MIDDLE, WARM
from geolabel.io.write.geopackage import Layer, VectorFile, write_layer
from geolabel.io.written import plain

log = logging.getLogger(__name__)

BEGINNING = (1980, 1, 1, 0, 0, 0)
"""The first date that an archive can hold."""

NAME_LENGTH = 10
"""Characters of a column name in a Shapefile."""

TEXT_LENGTH = 254
"""Bytes of a text in a Shapefile."""

KML = "http://www.opengis.net/kml/2.2"

UNKNOWN = "255,255,255"
"""Colour of polygons without a confidence."""

NO_XML = re.compile(r"[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML cannot hold, such as those that control a terminal."""


def write_shapefiles(path: Path, file: VectorFile) -> None:
    """Write every layer as a Shapefile in one archive, with the provenance as JSON; name what cannot be held."""
    with tempfile.TemporaryDirectory(prefix="geolabel-") as folder:
        renamed, cut = dict[str, str](), False
        for layer in file.layers:
            short = short_names(list(layer.columns))
            renamed |= {name: other for name, other in short.items() if name != other}
            cut |= any(_has_long_texts(layer, name) for name, kind in layer.columns.items() if kind == "text")
            columns: dict[str, Kind] = {
                short[name]: "text" if kind == "datetime" else kind for name, kind in layer.columns.items()
            }
            part = replace(layer, columns=columns, features=layer.features.rename(columns=short), key=None)
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".*truncated to 254 characters")
                write_layer(
                    Path(folder) / f"{layer.name}.shp",
                    part,
                    file.crs,
                    driver="ESRI Shapefile",
                    layer_options={"ENCODING": "UTF-8", "DBF_DATE_LAST_UPDATE": "1970-01-01"},
                )
        members = {one.name: one.read_bytes() for one in sorted(Path(folder).iterdir())}
    _archive(path, members | {"provenance.json": file.record.encode()})
    named = ", ".join(f"{name} is {other}" for name, other in renamed.items())
    log.warning(
        "%s holds Shapefiles, without styles and without what recognises a person's review%s%s: for these give a name "
        "that ends with .gpkg",
        path.name,
        f"; column names have {NAME_LENGTH} characters ({named})" if named else "",
        f"; texts are cut at {TEXT_LENGTH} bytes" if cut else "",
    )


def short_names(names: Sequence[str]) -> dict[str, str]:
    """Names of columns with ten characters at most, no two of which are the same in any case of letters.

    Longer ones lose the vowels within their words first, and then their end.

    Examples
    --------
    >>> short_names(["area_m2", "activation_share", "activation_shares"])
    {'area_m2': 'area_m2', 'activation_share': 'actvtn_shr', 'activation_shares': 'actvtn_sh2'}
    """
    found: dict[str, str] = {}
    for name in sorted(names, key=len):  # what is short already keeps its name
        short = name if len(name) <= NAME_LENGTH else re.sub(r"(?<=[^\W_])[aeiou]", "", name)[:NAME_LENGTH]
        number, taken = 1, {other.lower() for other in found.values()}
        while short.lower() in taken:
            number += 1
            short = f"{short[: NAME_LENGTH - len(str(number))]}{number}"
        found[name] = short
    return {name: found[name] for name in names}


def _has_long_texts(layer: Layer, name: str) -> bool:
    if name not in layer.features:
        return False
    return any(len(str(text).encode()) > TEXT_LENGTH for text in layer.features[name].dropna())


def write_kmz(path: Path, file: VectorFile) -> None:
    """Write the layers of polygons with their attributes, coloured by confidence; name what is left out.

    Raises
    ------
    OutputError
        If the layers have no CRS, or a polygon has no place on Earth.
    """
    if file.crs is None:
        raise OutputError(f"{path.name}: KMZ has longitudes and latitudes, and the scene has no CRS: write a .gpkg")
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
        for place in _places(layer, file.crs):
            folder.append(place)
    _archive(path, {"doc.kml": ET.tostring(root, encoding="utf-8", xml_declaration=True)})
    others = ", ".join(layer.name for layer in file.layers if layer.name not in {one.name for one in shown})
    log.warning(
        "%s holds polygons in longitudes and latitudes, without QGIS styles, provenance and what recognises a person's "
        "review%s: for these give a name that ends with .gpkg",
        path.name,
        f"; left out: {others}" if others else "",
    )


def _places(layer: Layer, crs: pyproj.CRS) -> Iterator[ET.Element]:
    """A placemark of each polygon."""
    shapes = reproject(layer.features.geometry.to_numpy(), crs, pyproj.CRS.from_user_input("OGC:CRS84"))
    rows = layer.features.drop(columns=layer.features.geometry.name).to_dict("records")
    for values, shape in zip(rows, shapes, strict=True):
        if not all(map(pd.notna, shape.bounds)) or max(map(abs, shape.bounds)) > 360:
            number = values.get("id")
            raise OutputError(f"polygon {number} of {layer.name} has no longitude and latitude: write a .gpkg")
        place = ET.Element("Placemark")
        ET.SubElement(place, "name").text = NO_XML.sub("", _title(layer, values))
        ET.SubElement(place, "styleUrl").text = f"#{_style_of(values)}"
        data = ET.SubElement(place, "ExtendedData")
        for name in layer.columns:
            value = plain(values.get(name))
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

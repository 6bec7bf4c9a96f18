"""A QGIS project beside a result: the scene and the layers in one group, with styles and relative paths.

The project is written without QGIS, in the format of version 3.22, which later versions read. Nothing in it comes
from a style or a form of a file, which could contain code.
"""

from __future__ import annotations

import hashlib
import io
import os
import uuid
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import geopandas as gpd
import pyproj

from geolabel.errors import OptionError, OutputError
from geolabel.io.columns import COLUMNS, Kind
from geolabel.io.read.features import layer_info, read_layer, spatial_layers
from geolabel.io.read.typed_columns import kind_of, read_typed
from geolabel.io.styles import STYLED, VERSION, document, style_of
from geolabel.outputs import check_target, replacing
from geolabel.urls import without_secrets
from geolabel.viewing.backdrop import Source, frame_of

SUFFIX = ".qgz"

VECTORS = (".gpkg", ".fgb", ".geojson", ".json", ".shp")
"""Suffixes of results whose layers QGIS finds by the name of the file."""

EPOCH = (1980, 1, 1, 0, 0, 0)
"""Timestamp of the one file in the archive, so that the same project has the same bytes."""

MARK = b"geolabel "
"""Start of the archive's comment, followed by the SHA-256 of everything before it; QGIS drops it on saving."""

DIGITS = 64

MAX_BYTES = 64 << 20
"""Maximum size of a project to check: a larger one is not geolabel's."""

KEYS = ("id", "prompt", "tile", "change", "window")
"""Columns to name a feature by; a layer with a style has one of them."""

MARGIN = 0.05
"""Margin around the initial view, as a share of it."""


@dataclass(frozen=True)
class _Layer:
    """One layer of a project."""

    name: str
    path: Path
    crs: pyproj.CRS | None
    provider: str
    """``ogr`` or ``gdal``."""
    content: ET.Element
    """Contents of its element beside its name, its file and its CRS."""
    shown: bool = True
    inner: str = ""
    """Name of the layer in the file, if that has several."""


def write_project(
    slides: str | Path,
    out: str | Path,
    *,
    scene: str | Path | Sequence[str | Path] = (),
    before: str | Path | Sequence[str | Path] = (),
    bands: str | None = None,
    before_bands: str | None = None,
    gsd: float | None = None,
    stretch: str = "p2-98",
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write a project of QGIS that shows an inventory on its scene.

    Paths in it are relative to the project, so that a folder that holds all of it can be moved.

    Parameters
    ----------
    slides
        A GeoPackage of `geolabel.extract` or `geolabel.segment`, or another file of layers (``.fgb``, ``.geojson``,
        ``.shp``).
    out
        The project, whose name ends with ``.qgz``.
    scene
        File of the scene that they were found in, or several, the first on top.
    before
        Files of the time before, hidden at first.
    bands, gsd, stretch
        How the scenes are read, see `geolabel.Reading`.
    before_bands
        Which bands of `before` are red, green and blue, if not those that a reader would choose.
    overwrite
        Whether to replace an existing project; one that was changed is never replaced.

    Returns
    -------
    Names of the ``layers`` and of the ``scenes``, topmost first.

    Raises
    ------
    OutputError
        If the project cannot be written, or was saved by a person.
    OptionError
        If a scene is not a file of this machine.
    VectorError
        If the layers cannot be read.
    SceneError
        If a scene cannot be read.
    """
    for one in (scene, before):
        _refuse_urls([one] if isinstance(one, str | Path) else one)
    slides, out = Path(slides), Path(out)
    scenes, earlier = ([Path(one)] if isinstance(one, str | Path) else list(map(Path, one)) for one in (scene, before))
    check_target(out, overwrite=overwrite, suffixes=(SUFFIX,), inputs=[slides, *scenes, *earlier])
    _check_ours(out)
    for path in (slides, *scenes, *earlier):
        _check_file(path)
    if slides.suffix.lower() not in VECTORS:
        raise OptionError(f"{slides}: a project shows files that end with {', '.join(VECTORS)}")
    layers = _vector_layers(slides)
    how: dict[str, Any] = {"gsd": gsd, "stretch": stretch}
    sources = [Source.open(str(path), bands=bands, **how) for path in scenes]
    then = [Source.open(str(path), bands=before_bands, **how) for path in earlier]
    rasters = [_raster_layer(path, source) for path, source in zip(scenes, sources, strict=True)]
    rasters += [_raster_layer(path, source, shown=False) for path, source in zip(earlier, then, strict=True)]
    bounds = _bounds(slides, layers, sources)
    text = document(_project(slides.stem, [*layers, *rasters], layers[0].crs, bounds, out))
    with replacing(out, overwrite=overwrite) as part:
        _check_ours(out)
        part.write_bytes(_archive(f"{out.stem}.qgs", text))
    return {"layers": [one.name for one in layers], "scenes": [one.name for one in rasters]}


_NOT_HERE = "a project needs a file of this machine; download it first, or add it in QGIS"


def _refuse_urls(given: Iterable[str | Path]) -> None:
    for one in given:
        if "://" in str(one):
            raise OptionError(f"{without_secrets(str(one))}: {_NOT_HERE}")


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise OptionError(f"{path}: {_NOT_HERE}")
    if "|" in str(path.absolute()):
        raise OptionError(f"{path}: QGIS takes what follows | for options; rename the file or the folder")


# --- who wrote a project ---------------------------------------------------------------------------------------------


def _check_ours(path: Path) -> None:
    """Refuse to replace a project that has been changed since geolabel wrote it."""
    if path.exists() and not _is_ours(path):
        raise OutputError(
            f"{path} was saved in QGIS, or not written by geolabel, and is not replaced: give another name, or delete "
            f"it"
        )


def _is_ours(path: Path) -> bool:
    if not path.is_file() or path.stat().st_size > MAX_BYTES:
        return False
    content = path.read_bytes()
    return content[:-DIGITS].endswith(MARK) and content[-DIGITS:] == _digest(content[:-DIGITS])


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).hexdigest().encode()


def _archive(name: str, text: str) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(zipfile.ZipInfo(name, EPOCH), text, zipfile.ZIP_DEFLATED)
        archive.comment = MARK + b"0" * DIGITS
    content = stream.getvalue()[:-DIGITS]
    return content + _digest(content)


# --- layers ----------------------------------------------------------------------------------------------------------


def _vector_layers(path: Path) -> list[_Layer]:
    """Layers of a file in its order, the first on top."""
    names = spatial_layers(path)
    return [_vector_layer(path, name, alone=len(names) == 1) for name in names]


def _vector_layer(path: Path, name: str, *, alone: bool) -> _Layer:
    table = read_typed(path, name)
    columns: dict[str, Kind] = {
        str(column): COLUMNS[column].kind if column in COLUMNS else kind_of(table[column])
        for column in table.columns
        if column != table.geometry.name
    }
    kind = str(layer_info(path, name)["geometry_type"])
    element = ET.Element("maplayer", type="vector", geometry=_geometry(kind), styleCategories="AllStyleCategories")
    of = name if name in STYLED else "landslides" if alone and "Polygon" in kind else None
    if of is not None and not columns.keys().isdisjoint(KEYS):
        style_of(of, table, columns).add_to(element)
    inner = name if path.suffix.lower() == ".gpkg" else ""
    return _Layer(name, path, table.crs, "ogr", element, inner=inner)


def _geometry(kind: str) -> str:
    return next((word for word in ("Point", "Line", "Polygon") if word in kind), "Unknown geometry")


def _raster_layer(path: Path, source: Source, *, shown: bool = True) -> _Layer:
    """A scene in the colours of geolabel's stretch."""
    element = ET.Element("maplayer", type="raster", styleCategories="AllStyleCategories")
    alpha = source.reader.header.alpha
    colours = ("red", "green", "blue")
    bands = {f"{colour}Band": str(band) for colour, band in zip(colours, source.reader.scene.bands, strict=True)}
    settings = {"type": "multibandcolor", "opacity": "1", "alphaBand": str(alpha[0] if alpha else -1)}
    renderer = ET.SubElement(ET.SubElement(element, "pipe"), "rasterrenderer", settings | bands)
    stretch = source.stretch
    for colour, low, high in zip(colours, stretch.low, stretch.high, strict=True):
        contrast = ET.SubElement(renderer, f"{colour}ContrastEnhancement")
        ET.SubElement(contrast, "minValue").text = repr(low)
        ET.SubElement(contrast, "maxValue").text = repr(high)
        ET.SubElement(contrast, "algorithm").text = "StretchToMinimumMaximum"
    return _Layer(path.stem, path, source.grid.crs, "gdal", element, shown)


# --- the document ----------------------------------------------------------------------------------------------------


Bounds = tuple[float, float, float, float]


def _bounds(slides: Path, layers: Iterable[_Layer], sources: Sequence[Source]) -> Bounds | None:
    """The initial view, in the CRS of the layers: the scenes, or all polygons; None if there are neither.

    Raises
    ------
    SceneError
        If a scene lies outside the domain of the layers' CRS.
    """
    first = next(iter(layers))
    if sources:
        left, bottom, right, top = frame_of([one.grid for one in sources], first.crs, 1 << 20).outline.bounds
    else:
        tables = [read_layer(slides, one.name, columns=()) for one in layers]
        filled: list[gpd.GeoDataFrame] = [table for table in tables if len(table)]
        if not filled:
            return None
        left, bottom, right, top = filled[0].total_bounds.tolist()
    across, down = (right - left) * MARGIN, (top - bottom) * MARGIN
    return left - across, bottom - down, right + across, top + down


def _project(
    title: str, layers: Sequence[_Layer], crs: pyproj.CRS | None, bounds: Bounds | None, out: Path
) -> ET.Element:
    root = ET.Element("qgis", projectname=title, version=VERSION)
    ET.SubElement(root, "title").text = title
    _add_crs(ET.SubElement(root, "projectCrs"), crs)
    tree = ET.SubElement(root, "layer-tree-group")
    group = ET.SubElement(tree, "layer-tree-group", name=title, checked="Qt::Checked", expanded="1")
    canvas = ET.SubElement(root, "mapcanvas", name="theMapCanvas")
    if bounds is not None:
        extent = ET.SubElement(canvas, "extent")
        for name, value in zip(("xmin", "ymin", "xmax", "ymax"), bounds, strict=True):
            ET.SubElement(extent, name).text = repr(value)
    _add_crs(ET.SubElement(canvas, "destinationsrs"), crs)
    content = ET.SubElement(root, "projectlayers")
    for layer in layers:
        key, source = _key(layer), _source(layer, out)
        checked = "Qt::Checked" if layer.shown else "Qt::Unchecked"
        known = {"id": key, "name": layer.name, "providerKey": layer.provider, "source": source}
        opened = str(int(layer is layers[0]))
        ET.SubElement(group, "layer-tree-layer", known | {"checked": checked, "expanded": opened})
        content.append(_filled(layer, key, source))
    properties = ET.SubElement(root, "properties")
    ET.SubElement(ET.SubElement(properties, "Paths"), "Absolute", type="bool").text = "false"
    ET.SubElement(ET.SubElement(properties, "SpatialRefSys"), "ProjectionsEnabled", type="int").text = "1"
    return root


def _filled(layer: _Layer, key: str, source: str) -> ET.Element:
    """The element of a layer, with its name and id first."""
    element = layer.content
    named: Mapping[str, str] = {"id": key, "datasource": source, "layername": layer.name}
    for place, (name, text) in enumerate(named.items()):
        one = ET.Element(name)
        one.text = text
        element.insert(place, one)
    if layer.crs is not None:
        _add_crs(ET.SubElement(element, "srs"), layer.crs)
    ET.SubElement(element, "provider", encoding="UTF-8").text = layer.provider
    return element


def _key(layer: _Layer) -> str:
    """Id of a layer in the project; the same layer has the same id."""
    name = "".join(sign if sign.isalnum() else "_" for sign in layer.name)
    return f"{name}_{uuid.uuid5(uuid.NAMESPACE_URL, f'{layer.path.name}/{layer.provider}/{layer.name}')}"


def _source(layer: _Layer, out: Path) -> str:
    """Path of a layer for QGIS: relative to the project, or absolute on another drive."""
    try:
        path = Path(os.path.relpath(layer.path.absolute(), out.absolute().parent)).as_posix()
    except ValueError:
        path = layer.path.absolute().as_posix()
    else:
        path = path if path.startswith("../") else f"./{path}"
    return f"{path}|layername={layer.inner}" if layer.inner else path


def _add_crs(element: ET.Element, crs: pyproj.CRS | None) -> None:
    if crs is None:
        return
    known = ET.SubElement(element, "spatialrefsys")
    ET.SubElement(known, "wkt").text = crs.to_wkt()
    authority = crs.to_authority(min_confidence=100)
    if authority is not None:
        ET.SubElement(known, "authid").text = ":".join(authority)
    ET.SubElement(known, "description").text = crs.name

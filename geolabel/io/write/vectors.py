"""Files of layers: the contents of an inventory, and its formats.

A format is a function that fills a file, and a row of `WRITERS`. `provenance_of` reads the provenance of a file.
"""

from __future__ import annotations

import json
import sqlite3
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import geopandas as gpd
import pyproj
from pyogrio.errors import FeatureError
from shapely.errors import ShapelyError

from geolabel.errors import OutputError
from geolabel.io.columns import (
    BOX_COLUMNS,
    LANDSLIDE_COLUMNS,
    MASKED_COLUMNS,
    POINT_COLUMNS,
    SEGMENT_COLUMNS,
    TILE_COLUMNS,
    WINDOW_COLUMNS,
    Kind,
)
from geolabel.io.error_messages import in_words
from geolabel.io.layer_styles import keep_styles
from geolabel.io.prompt_layers import PIXELS, box_features, point_features
from geolabel.io.read.features import layer_info, spatial_layers
from geolabel.io.read.geoparquet import PROVENANCE, metadata_of
from geolabel.io.read.review import (
    MASKED,
    MASKED_ABOUT,
    NOTHING,
    REJECTED,
    REVIEW,
    SAMPLE,
    UNREVIEWED,
    Carried,
    check_work,
)
from geolabel.io.read.typed_columns import added_columns
from geolabel.io.read.vector_files import MAX_BYTES, vector_file
from geolabel.io.styles import style_of
from geolabel.io.write.exchange import write_flatgeobuf, write_geojson, write_kmz, write_shapefile, write_shapefiles
from geolabel.io.write.geopackage import (
    Layer,
    VectorFile,
    read_provenance,
    warn_left_out,
    without_binary,
    write_geopackage,
)
from geolabel.io.write.geoparquet import write_geoparquet
from geolabel.io.written import written_prompts
from geolabel.outputs import check_target, replacing
from geolabel.parsing import parse_json, read_json
from geolabel.prompts import Prompts
from geolabel.scene import Grid

WRITERS: Mapping[str, Callable[[Path, VectorFile], None]] = {
    ".gpkg": write_geopackage,
    ".fgb": write_flatgeobuf,
    ".parquet": write_geoparquet,
    ".geojson": write_geojson,
    ".shp": write_shapefile,
    ".zip": write_shapefiles,
    ".kmz": write_kmz,
}
"""Formats of layers: the suffix of a file, and the function that fills it; the one that holds everything is first."""

SUFFIXES = tuple(WRITERS)

MAX_RECORD = 1 << 24
"""Maximum size of the provenance in an archive, in bytes."""


def write_vectors(path: str | Path, file: VectorFile, *, overwrite: bool = False, carried: Carried = NOTHING) -> None:
    """Write layers in the format that the suffix of the file names; the same layers give the same bytes.

    The file appears when it is complete.

    Parameters
    ----------
    carried
        How a person's review of a replaced file is carried over.

    Raises
    ------
    OutputError
        If the file cannot be written, or exists and must not be replaced, or a person's review would be lost.
    """
    path = Path(path)
    check_target(path, overwrite=overwrite, suffixes=SUFFIXES)
    with replacing(path, overwrite=overwrite) as part:
        try:
            whole = path.suffix.lower() == ".gpkg"
            WRITERS[path.suffix.lower()](part, file if whole else _without_binary(path, file))
            if whole and carried.keeps(path):
                keep_styles(path, part)
        except (OSError, RuntimeError, sqlite3.Error, FeatureError, ShapelyError) as error:
            raise OutputError(f"{path} could not be written: {in_words(error)}") from error
        check_work(path, carried)  # last: work of a person who reviews during the run is not lost


def _without_binary(path: Path, file: VectorFile) -> VectorFile:
    """The part that a format without binary data can hold; what it leaves out is named in a warning."""
    lost = {name for layer in file.layers for name, kind in layer.columns.items() if kind == "binary"}
    if lost:
        warn_left_out(path, "the other columns", f"the binary columns {', '.join(sorted(lost))}")
    return replace(file, layers=[without_binary(layer) for layer in file.layers]) if lost else file


def write_inventory(
    path: str | Path,
    landslides: gpd.GeoDataFrame,
    prompts: Prompts | None,
    tiles: gpd.GeoDataFrame | None,
    provenance: Mapping[str, Any],
    *,
    grid: Grid,
    candidates: gpd.GeoDataFrame | None = None,
    classes: tuple[str, ...] = ("landslide",),
    reviewed: Reviewed | None = None,
    overwrite: bool = False,
    carried: Carried = NOTHING,
) -> None:
    """Write the layers ``landslides``, ``candidates``, ``prompts``, ``prompt_points`` and ``tiles``.

    Every layer is typed and styled, also when it is empty. The file appears when it is complete; the same input gives
    the same bytes.

    Parameters
    ----------
    landslides
        Polygons in the CRS of `grid` with columns of `geolabel.io.columns.LANDSLIDE_COLUMNS`. Missing columns
        become null, a missing status ``unreviewed``.
    prompts
        Prompts in pixels of `grid`; `read_prompts` reads them back. None leaves their two layers out.
    tiles
        Polygons with columns of `geolabel.io.columns.TILE_COLUMNS`; None leaves the layer out.
    provenance
        How the run was made, as plain JSON values.
    grid
        The working grid, whose CRS all layers have.
    candidates
        Like `landslides`, but less likely to be one; None leaves the layer out.
    classes
        Names of the classes in `Prompts.class_ids`.
    reviewed
        A person's review, see `write_layers`.
    carried
        See `write_vectors`.

    Raises
    ------
    OutputError
        If the file cannot be written, or exists and must not be replaced.
    """
    drawn = None if prompts is None else prompt_features(prompts, grid, classes)
    write_layers(
        path,
        landslides,
        drawn,
        tiles,
        provenance,
        crs=grid.crs,
        candidates=candidates,
        reviewed=reviewed,
        overwrite=overwrite,
        carried=carried,
    )


def prompt_features(
    prompts: Prompts, grid: Grid, classes: tuple[str, ...] = ("landslide",)
) -> tuple[gpd.GeoDataFrame, gpd.GeoDataFrame]:
    """Boxes and points of prompts in pixels of `grid`, as the layers ``prompts`` and ``prompt_points`` hold them."""
    return box_features(prompts, grid, classes), point_features(prompts, grid, classes)


@dataclass(frozen=True)
class Reviewed:
    """The part of an inventory that comes from a person's review."""

    numbers: frozenset[int]
    """Numbers of the landslides and candidates that come from a person's review."""
    rejected: gpd.GeoDataFrame
    """Rejected polygons, in the CRS of the inventory: the layer ``rejected``, if there are any."""
    columns: Mapping[str, Kind]
    """Columns that the person added, and their kinds."""
    highest: int
    """Highest number that polygons have had."""
    looked: gpd.GeoDataFrame = field(default_factory=gpd.GeoDataFrame)
    """Windows that the person has reviewed, in the CRS of the inventory: the layer ``review``, if there are any."""


def write_layers(
    path: str | Path,
    landslides: gpd.GeoDataFrame,
    prompts: tuple[gpd.GeoDataFrame, gpd.GeoDataFrame] | None,
    tiles: gpd.GeoDataFrame | None,
    provenance: Mapping[str, Any],
    *,
    crs: pyproj.CRS | None,
    candidates: gpd.GeoDataFrame | None = None,
    masked: gpd.GeoDataFrame | None = None,
    reviewed: Reviewed | None = None,
    overwrite: bool = False,
    carried: Carried = NOTHING,
) -> None:
    """Write the same as `write_inventory`, from features that are in `crs` already.

    Parameters
    ----------
    prompts
        See `prompt_features`.
    masked
        Masked ground: the layer ``masked``, if there is any.
    """
    polygons = partial(_polygons, reviewed=reviewed)
    layers = [polygons("landslides", "Landslides, one row each", landslides)]
    if candidates is not None:
        layers.append(polygons("candidates", "What may be a landslide, but is less likely to be one", candidates))
    if reviewed is not None and len(reviewed.rejected):
        layers.append(polygons(REJECTED, "What a person rejected: it is not found again", reviewed.rejected))
    written = []
    if prompts is not None:
        boxes, points = _with_landslides(prompts, [landslides] if candidates is None else [landslides, candidates])
        written = written_prompts(boxes, points)
        boxes, points = (table.drop(columns=[*PIXELS], errors="ignore") for table in (boxes, points))
        layers += [
            _layer("prompts", "Polygon", "Boxes that the segmenter was asked for", BOX_COLUMNS, boxes),
            _layer("prompt_points", "Point", "Points of the same prompts: 1 inside, 0 outside", POINT_COLUMNS, points),
        ]
    if tiles is not None:
        layers.append(_layer("tiles", "Polygon", "Windows that the localizer saw", TILE_COLUMNS, tiles))
    if masked is not None and len(masked):
        layers.append(_layer(MASKED, "Polygon", MASKED_ABOUT, MASKED_COLUMNS, masked))
    if reviewed is not None and len(reviewed.looked):
        layers.append(window_layer(REVIEW, reviewed.looked))
    file = VectorFile(layers, crs, provenance, written, highest=0 if reviewed is None else reviewed.highest)
    write_vectors(path, file, overwrite=overwrite, carried=carried)


def window_layer(name: str, features: gpd.GeoDataFrame) -> Layer:
    """A layer of windows for a person to review, see `geolabel.io.read.review.WINDOW_LAYERS`."""
    said = {REVIEW: "Where to look first", SAMPLE: "A random sample to look at, for an estimate of what is right"}
    touched = frozenset(features["window"][features["status"] != UNREVIEWED].astype(int).tolist())
    columns = WINDOW_COLUMNS | added_columns([features], WINDOW_COLUMNS)
    layer = _layer(name, "Polygon", said[name], columns, features)
    return replace(layer, key="window", reviewed=touched)


def _polygons(name: str, description: str, features: gpd.GeoDataFrame, reviewed: Reviewed | None) -> Layer:
    status = features["status"].fillna(UNREVIEWED) if "status" in features else UNREVIEWED
    columns, numbers = LANDSLIDE_COLUMNS, frozenset[int]()
    if reviewed is not None:
        columns = LANDSLIDE_COLUMNS | dict(reviewed.columns)
        numbers = reviewed.numbers if name != REJECTED else frozenset(features["id"].tolist())
    layer = _layer(name, "MultiPolygon", description, columns, features.assign(status=status))
    return replace(layer, key="id", reviewed=numbers)


def _with_landslides(
    prompts: tuple[gpd.GeoDataFrame, gpd.GeoDataFrame], tables: Sequence[gpd.GeoDataFrame]
) -> list[gpd.GeoDataFrame]:
    """Boxes and points with the numbers of the landslides and candidates that name their prompt."""
    made: dict[int, list[int]] = {}
    for table in tables:
        if "prompts" in table:
            for number, named in zip(table["id"].tolist(), table["prompts"], strict=True):
                for prompt in prompt_numbers(named):
                    made.setdefault(prompt, []).append(int(number))
    return [
        table.assign(landslides=[json.dumps(sorted(made.get(int(prompt), []))) for prompt in table["prompt"]])
        for table in prompts
    ]


def prompt_numbers(named: object) -> list[int]:
    """Numbers in the column ``prompts`` of a landslide; none if it holds no such list."""
    try:
        found = parse_json(named) if isinstance(named, str) else []
    except ValueError:
        return []
    return [number for number in found if isinstance(number, int)] if isinstance(found, list) else []


def _layer(
    name: str, geometry_type: Any, description: str, columns: Mapping[str, Kind], features: gpd.GeoDataFrame
) -> Layer:
    if (features.geom_type == "MultiPolygon").any():  # boxes that the edge of the CRS cuts apart, too
        geometry_type = "MultiPolygon"
    return Layer(name, geometry_type, description, columns, features, style_of(name, features, columns).qml())


def write_segments(
    path: str | Path,
    segments: gpd.GeoDataFrame,
    provenance: Mapping[str, Any],
    *,
    crs: pyproj.CRS | None,
    overwrite: bool = False,
    carried: Carried = NOTHING,
) -> None:
    """Write the layer ``segments``, typed and styled; the same input gives the same bytes.

    Raises
    ------
    OutputError
        If the file cannot be written, or exists and must not be replaced.
    """
    layer = Layer(
        "segments",
        "MultiPolygon",
        "Everything in the scene, no class",
        SEGMENT_COLUMNS,
        segments,
        style_of("segments", segments, SEGMENT_COLUMNS).qml(),
        key="id",
    )
    write_vectors(path, VectorFile([layer], crs, provenance), overwrite=overwrite, carried=carried)


# --- provenance ------------------------------------------------------------------------------------------------------


def provenance_of(path: str | Path) -> dict[str, Any]:
    """Provenance of a file of layers; empty for URLs, and for formats without it, such as Shapefile and KMZ.

    Raises
    ------
    VectorError
        If the file may not be read.
    """
    vector_file(path)  # refuses files that must not be opened
    path = Path(path)
    try:
        suffix = path.suffix.lower()
        if suffix == ".parquet":
            made = parse_json(metadata_of(path).get(PROVENANCE, "null"))
        elif suffix == ".geojson":
            made = read_json(path, limit=MAX_BYTES).get("provenance")
        elif suffix == ".zip":
            made = _in_archive(path)
        elif suffix == ".fgb":
            made = parse_json(
                (layer_info(path, spatial_layers(path)[0])["layer_metadata"] or {}).get("provenance", "null")
            )
        else:
            made = read_provenance(path)
    except (OSError, ValueError, AttributeError):
        return {}
    return made if isinstance(made, dict) else {}


def _in_archive(path: Path) -> Any:
    """The provenance in an archive of Shapefiles, at most `MAX_RECORD` bytes unpacked; None without."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open("provenance.json") as part:
            return parse_json(part.read(MAX_RECORD + 1), limit=MAX_RECORD)
    except (zipfile.BadZipFile, zlib.error, KeyError, EOFError, NotImplementedError, RuntimeError):
        return None

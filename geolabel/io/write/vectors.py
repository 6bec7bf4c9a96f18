"""Vector files of a run: the inventory it writes, and the prompts and areas that a person drew."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import geopandas as gpd
import pyproj
import shapely

from geolabel.errors import VectorError
from geolabel.io.columns import BOX_COLUMNS, LANDSLIDE_COLUMNS, POINT_COLUMNS, TILE_COLUMNS, Kind
from geolabel.io.foreign import in_words
from geolabel.io.prompt_layers import PIXELS, asked_elsewhere, box_features, gather_prompts, point_features
from geolabel.io.read.features import (
    check_meets,
    choose_layer,
    in_crs,
    mended,
    polygon_parts,
    read_layer,
    spatial_layers,
)
from geolabel.io.read.review import NOTHING, REJECTED, UNREVIEWED, Carried
from geolabel.io.styles import style_of
from geolabel.io.write.geopackage import Layer, write_geopackage
from geolabel.io.written import PROMPT_LAYERS, mark_changes, read_written, written_prompts
from geolabel.parsing import parse_json
from geolabel.prompts import Prompts
from geolabel.reprojection import near, unwrapped
from geolabel.scene import Grid, span

log = logging.getLogger(__name__)


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
    """Write a GeoPackage with the layers ``landslides``, ``candidates``, ``prompts``, ``prompt_points`` and ``tiles``.

    Every layer is typed and styled, also when it is empty. The file appears when it is finished; the same input gives
    the same bytes.

    Parameters
    ----------
    landslides
        Polygons in the CRS of `grid` with columns of `geolabel.io.columns.LANDSLIDE_COLUMNS`. What is missing
        becomes null, a missing status ``unreviewed``.
    prompts
        In pixels of `grid`; `read_prompts` reads them back. None leaves their two layers out.
    tiles
        Polygons with columns of `geolabel.io.columns.TILE_COLUMNS`; None leaves the layer out.
    provenance
        What the run was made of and with; plain values that JSON knows.
    grid
        The working grid, whose CRS all layers have.
    candidates
        As `landslides`, of what is too unlikely to be one; None leaves the layer out.
    classes
        Names that `Prompts.class_ids` count.
    reviewed
        What comes from a person's review, see `write_layers`.
    carried
        See `geolabel.io.write.geopackage.write_geopackage`.

    Raises
    ------
    OutputError
        If the file cannot be written, or exists and must not be replaced.
    """
    drawn = None if prompts is None else prompt_features(prompts, grid, classes)
    write_layers(
        path, landslides, drawn, tiles, provenance, crs=grid.crs, candidates=candidates, reviewed=reviewed,
        overwrite=overwrite, carried=carried,
    )  # fmt: skip


def prompt_features(
    prompts: Prompts, grid: Grid, classes: tuple[str, ...] = ("landslide",)
) -> tuple[gpd.GeoDataFrame, gpd.GeoDataFrame]:
    """Boxes and points of prompts in pixels of `grid`, as the layers ``prompts`` and ``prompt_points`` hold them."""
    return box_features(prompts, grid, classes), point_features(prompts, grid, classes)


@dataclass(frozen=True)
class Reviewed:
    """What an inventory has from a person's review."""

    numbers: frozenset[int]
    """Of the landslides and candidates that are a person's work."""
    rejected: gpd.GeoDataFrame
    """What was rejected, in the CRS of the inventory: the layer ``rejected``, if there is anything."""
    columns: Mapping[str, Kind]
    """Those that the person added."""
    highest: int
    """Of the numbers that polygons have had."""


def write_layers(
    path: str | Path,
    landslides: gpd.GeoDataFrame,
    prompts: tuple[gpd.GeoDataFrame, gpd.GeoDataFrame] | None,
    tiles: gpd.GeoDataFrame | None,
    provenance: Mapping[str, Any],
    *,
    crs: pyproj.CRS | None,
    candidates: gpd.GeoDataFrame | None = None,
    reviewed: Reviewed | None = None,
    overwrite: bool = False,
    carried: Carried = NOTHING,
) -> None:
    """Write what `write_inventory` does, of features that lie in `crs` already.

    Parameters
    ----------
    prompts
        See `prompt_features`.
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
    write_geopackage(
        path, layers, crs, provenance, overwrite=overwrite, carried=carried, written=written,
        highest=0 if reviewed is None else reviewed.highest,
    )  # fmt: skip


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
    """Numbers in the column ``prompts`` of a landslide; none where it holds no such list."""
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


def read_prompts(
    path: str | Path,
    grid: Grid,
    *,
    classes: tuple[str, ...] = ("landslide",),
    partly: bool = False,
    others: frozenset[str] = frozenset(),
) -> Prompts:
    """Read the prompts that a person drew or corrected.

    Any vector file of points and polygons will do, in any CRS. Of a file with the layers ``prompts`` or
    ``prompt_points`` these are read, of another all layers. A polygon becomes its bounding box on the grid. Columns are
    optional:

    ``prompt``
        Number of the object. A point joins the box of the same number; a point without a number joins the smallest box
        that it lies in, else it is an object of its own. A box without a number, or with one that is taken, gets a new
        one.
    ``label``
        Of a point: 1 inside the landslide (the default), 0 outside.
    ``class``, ``score``
        Name of the class, by default the first, and 0..1, by default 1.
    ``status``
        Of a box: what is ``rejected`` is left out, with its points.

    Of a file that `geolabel.extract` wrote it is known which prompts are as they were written: these are the
    localizer's, if it asked for them, and exactly those of that run if the grid is the same. All others are a person's.
    A box that was deleted takes its points with it, if these were not moved.

    Boxes are cut to the scene. What lies outside, and points labelled 0 whose object has nothing else, is left out with
    a warning. Objects come in the order of their numbers.

    Parameters
    ----------
    partly
        Whether the grid is one of several: then nothing is wrong with prompts that lie outside it, even if all do.
    others
        Keys of the other grids of the run, see `geolabel.io.prompt_layers.grid_key`: what was asked on one of
        these, and was not changed, is asked there.

    Returns
    -------
    Prompts in pixels of `grid`, rounded to a millionth.

    Raises
    ------
    VectorError
        If the file cannot be read, holds other geometry, a column holds what it cannot, or all prompts lie outside.
    """
    names = spatial_layers(path)
    ours = [name for name in names if name in PROMPT_LAYERS]
    tables = {name: read_layer(path, name) for name in ours or names}
    record, highest = read_written(path) if ours else None, -1
    if record is not None:
        written = record.of("prompts")
        highest = max(written, default=-1)
        marked = mark_changes(tables, written)
        tables = {name: table[~asked_elsewhere(table, others)] for name, table in marked.items()}
    layers = {f"layer {name} of {path}": in_crs(table, grid.crs, path) for name, table in tables.items()}
    return gather_prompts(layers, grid, classes, partly=partly, highest=highest)


def read_aoi(
    path: str | Path, crs: pyproj.CRS | None, layer: str | None = None, *, grid: Grid | None = None
) -> shapely.Geometry:
    """Read the area of interest: all polygons of a layer as one, in the CRS of the scene.

    Parameters
    ----------
    layer
        None for the only one that holds polygons. What else it holds is left out with a warning.
    grid
        Of the scene, which the area has to meet; None where it need not.

    Raises
    ------
    VectorError
        If the file cannot be read, holds no area, has several layers of polygons of which none is named, or misses
        the scene.
    """
    layer = choose_layer(path, layer, "--aoi-layer", polygons=True)
    features, what = read_layer(path, layer, columns=()), f"layer {layer} of {path}"
    kinds = features.geometry.geom_type
    polygons = gpd.GeoDataFrame(geometry=polygon_parts(features.geometry.to_numpy()), crs=features.crs)
    if not len(polygons):
        held = f"holds {', '.join(sorted(set(kinds)))} alone" if len(kinds) else "is empty"
        raise VectorError(f"{what} encloses no area, since it {held}: draw a polygon around the area")
    other = int((~kinds.isin(["Polygon", "MultiPolygon"])).sum())
    if other:
        log.warning("%s: of %d features %d are no polygons, of which nothing else is used", what, len(kinds), other)
    if grid is not None:
        if features.crs is None and grid.crs is not None:
            what = f"{what}, which has no CRS and is taken to be in {grid.crs.name},"
        polygons = _around(polygons, grid, what)
    try:
        polygons = mended(in_crs(polygons, crs, path))
        if grid is not None and len(polygons):
            polygons = polygons.set_geometry(near(polygons.geometry.to_numpy(), crs, grid.outline))
            check_meets(what, polygons, grid)
        area = shapely.union_all(polygons.geometry.to_numpy())
    except shapely.errors.ShapelyError as error:
        raise VectorError(
            f"the polygons of {what} cannot be put together ({in_words(error)}): mend them first"
        ) from error
    if area.is_empty or area.area == 0:
        raise VectorError(f"{what} encloses no area: give a file with at least one polygon")
    return area


def _around(polygons: gpd.GeoDataFrame, grid: Grid, what: str) -> gpd.GeoDataFrame:
    """Polygons cut to the surroundings of a scene, in their own CRS: few can map a continent into a UTM zone.

    Raises
    ------
    VectorError
        If none is there.
    """
    own, crs = polygons.crs, grid.crs
    if (
        own is None
        or crs is None
        or own.equals(crs, ignore_axis_order=True)
        or not (own.geodetic_crs and crs.geodetic_crs)
    ):
        return polygons
    frame = in_crs(gpd.GeoDataFrame(geometry=[grid.outline], crs=crs), own, what).geometry[0]
    boxes = [shapely.box(*part.bounds) for part in shapely.get_parts([frame])]
    surroundings = shapely.union_all([box.buffer(box.length / 4, join_style="mitre") for box in boxes])
    outlines = near(unwrapped(polygons.geometry.to_numpy(), own), own, frame)
    valid = mended(gpd.GeoDataFrame(geometry=outlines, crs=own))
    cut = polygon_parts(shapely.intersection(valid.geometry.to_numpy(), surroundings))
    if len(valid) and not len(cut):
        raise VectorError(
            f"{what} misses the scene: in {own.name} it reaches over {span(valid.total_bounds)}, the scene over "
            f"{span(frame.bounds)}; its CRS or its coordinates may be wrong"
        )
    return gpd.GeoDataFrame(geometry=cut, crs=own)


SEGMENT_COLUMNS: dict[str, Kind] = {
    "id": "int",
    "area_m2": "real",
    "perimeter_m": "real",
    "length_m": "real",
    "width_m": "real",
    "elongation": "real",
    "lon": "real",
    "lat": "real",
    "predicted_iou": "real",
    "stability": "real",
    "n_tiles": "int",
    "gsd_m": "real",
    "source": "text",
}
"""Attributes of a segment and their kinds, in the order of the file."""


def write_segments(
    path: str | Path,
    segments: gpd.GeoDataFrame,
    provenance: Mapping[str, Any],
    *,
    crs: pyproj.CRS | None,
    overwrite: bool = False,
    carried: Carried = NOTHING,
) -> None:
    """Write a GeoPackage with the layer ``segments``, typed and styled; the same input gives the same bytes.

    Raises
    ------
    OutputError
        If the file cannot be written, or exists and must not be replaced.
    """
    layer = Layer(
        "segments", "MultiPolygon", "Everything in the scene, no class", SEGMENT_COLUMNS, segments,
        style_of("segments", segments, SEGMENT_COLUMNS).qml(), key="id",
    )  # fmt: skip
    write_geopackage(path, [layer], crs, provenance, overwrite=overwrite, carried=carried)

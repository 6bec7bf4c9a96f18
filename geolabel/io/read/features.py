"""Features of any vector file, reprojected to the CRS of a scene."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import geopandas as gpd
import numpy as np
import pandas as pd
import pyogrio
import pyproj
import shapely

from geolabel.errors import VectorError
from geolabel.geodesy import near, reproject, unwrapped
from geolabel.io.columns import LANDSLIDE_COLUMNS, short_names, spelled
from geolabel.io.error_messages import in_words
from geolabel.io.prompt_layers import asked_elsewhere, gather_prompts
from geolabel.io.read.vector_files import vector_file
from geolabel.io.written import PROMPT_LAYERS, mark_changes, read_written
from geolabel.parsing import check_name
from geolabel.prompts import Prompts
from geolabel.scene import Grid, span
from geolabel.types import AnyArray

log = logging.getLogger(__name__)

SEGMENTS = 32
"""Segments that the longest side of a polygon is split into before reprojection, since straight lines bend."""

MAX_CORNERS, MAX_HALVINGS = 256, 40
"""Maximum number of vertices of the parts of large polygons, and of times that they are halved."""

CUT_AT = "!;"
"""Characters at which pyogrio splits a file name: it takes the rest for a file in an archive."""


def _opened_as(path: str | Path) -> str:
    """Path for GDAL of a checked file, quoted so that pyogrio does not split it; raises as `vector_file`."""
    check_name(str(path))
    file = vector_file(path)
    if not any(character in str(file) for character in CUT_AT):
        return str(file)
    return f"/vsicached?file={quote(os.fsencode(file))}"


def spatial_layers(path: str | Path) -> list[str]:
    """Names of the layers of a vector file that have geometries, in the file's order.

    Raises
    ------
    VectorError
        If the file cannot be read or has no such layer.
    """
    file = _opened_as(path)
    try:
        names = [str(name) for name, geometry_type in pyogrio.list_layers(file) if geometry_type is not None]
    except (RuntimeError, ValueError) as error:
        raise VectorError(f"{path} cannot be read as a vector file: {in_words(error)}") from error
    if not names:
        raise VectorError(f"{path} has no layer with geometries: give a file of points or polygons")
    return names


def choose_layer(
    path: str | Path, layer: str | None, option: str, *, preferred: str = "", polygons: bool = False
) -> str:
    """The layer to read: the named one, the preferred one, or the only one with features.

    Parameters
    ----------
    layer
        The user's choice, or None.
    option
        Name of the user's option, for the error.
    preferred
        Used if the user names no layer and the file has it.
    polygons
        Whether only layers of polygons are considered.

    Raises
    ------
    VectorError
        If the file cannot be read, has no such layer, or several candidates and none is named.
    """
    names = spatial_layers(path)
    if layer is not None or preferred in names:
        return _check_layer(path, names, preferred if layer is None else layer)
    filled = [name for name in names if len(names) == 1 or _holds(path, name, polygons=polygons)]
    if len(filled) > 1:
        raise VectorError(
            f"{path} has several layers{' of polygons' if polygons else ''}, {', '.join(filled)}: "
            f"choose one ({option} NAME)"
        )
    return filled[0] if filled else names[0]


def _check_layer(path: str | Path, names: list[str], layer: str) -> str:
    if layer not in names:
        raise VectorError(f"{path} has no layer {layer}: it has {', '.join(names)}")
    return layer


def _holds(path: str | Path, layer: str, *, polygons: bool) -> bool:
    """Whether a layer has a feature, or one with polygons."""
    kind = layer_info(path, layer)["geometry_type"]
    if polygons and kind is not None and ("Point" in kind or "LineString" in kind):
        return False
    geometries = read_layer(path, layer, columns=()).geometry.to_numpy()
    return len(_polygon_parts(geometries) if polygons else geometries) > 0


def _polygon_parts(geometries: AnyArray) -> AnyArray:
    """The polygons (N,) of geometries; multipolygons and collections are split."""
    parts: AnyArray = np.asarray(geometries, object)
    while (shapely.get_type_id(parts) > shapely.GeometryType.POLYGON).any():
        parts = shapely.get_parts(parts)
    polygons: AnyArray = parts[(shapely.get_type_id(parts) == shapely.GeometryType.POLYGON) & ~shapely.is_empty(parts)]
    return polygons


def read_features(path: str | Path, crs: pyproj.CRS | None, layer: str | None = None) -> gpd.GeoDataFrame:
    """Read one layer reprojected to `crs`, without Z values and without features that lack a geometry.

    A file without CRS is assumed to be in `crs`. If `crs` is None, or either CRS is local (engineering), coordinates
    are not transformed.

    Parameters
    ----------
    layer
        None for the file's first layer.

    Raises
    ------
    VectorError
        If the file or the layer cannot be read, or its features cannot be reprojected to `crs`.
    """
    return in_crs(read_layer(path, layer), crs, path)


def read_layer(path: str | Path, layer: str | None = None, columns: Sequence[str] | None = None) -> gpd.GeoDataFrame:
    """Read one layer in its own CRS, without Z values and without features that lack a geometry.

    Parameters
    ----------
    layer
        None for the file's first layer.
    columns
        Attributes to read; None for all.

    Raises
    ------
    VectorError
        If the file or the layer cannot be read.
    """
    names = spatial_layers(path)
    layer = _check_layer(path, names, names[0] if layer is None else layer)
    file = _opened_as(path)
    try:
        features = _read(file, layer, columns)
    except (RuntimeError, ValueError, shapely.errors.ShapelyError) as error:
        raise VectorError(f"layer {layer} of {path} cannot be read: {in_words(error)}") from error
    return features[~(features.geometry.isna() | features.geometry.is_empty)].reset_index(drop=True)


def _read(file: str, layer: str, columns: Sequence[str] | None) -> gpd.GeoDataFrame:
    wanted = {"layer": layer, "force_2d": True, "columns": columns}
    try:
        return pyogrio.read_dataframe(file, **wanted)
    except UnicodeDecodeError:  # a DBF with a wrong or no encoding declaration, from older Windows programs
        return pyogrio.read_dataframe(file, **wanted, encoding="ISO-8859-1")


def exact_integers(path: str | Path, layer: str, column: str) -> pd.Series:
    """Read a column of whole numbers with all their digits, null ones among them, of the rows that `read_layer` gives.

    Raises
    ------
    VectorError
        If the file or the layer cannot be read.
    """
    file = _opened_as(path)
    try:
        _, table = pyogrio.read_arrow(file, layer=layer, columns=[column])
        shapes = shapely.from_wkb(table.column(table.num_columns - 1).to_numpy(zero_copy_only=False))
    except (RuntimeError, ValueError, shapely.errors.ShapelyError) as error:  # those of Arrow are ValueErrors
        raise VectorError(f"layer {layer} of {path} cannot be read: {in_words(error)}") from error
    numbers = pd.Series(pd.array(table.column(column).to_pylist(), "Int64"))
    return numbers[~(shapely.is_missing(shapes) | shapely.is_empty(shapes))].reset_index(drop=True)


def with_whole_names(table: gpd.GeoDataFrame) -> gpd.GeoDataFrame:
    """Undo the short column names of Shapefiles written by geolabel."""
    short = {other: name for name, other in short_names(list(LANDSLIDE_COLUMNS)).items() if other != name}
    known = {other: name for other, name in short.items() if other in table and name not in table}
    return table.rename(columns=known) if len(known) == len(short) else table


def layer_info(path: str | Path, layer: str) -> dict[str, Any]:
    """Description of a layer by pyogrio, with its bounds.

    Raises
    ------
    VectorError
        If the file or the layer cannot be read.
    """
    file = _opened_as(path)
    try:
        info: dict[str, Any] = pyogrio.read_info(file, layer=layer, force_total_bounds=True)
    except (RuntimeError, ValueError) as error:
        raise VectorError(f"layer {layer} of {path} cannot be read: {in_words(error)}") from error
    return info


def in_crs(features: gpd.GeoDataFrame, crs: pyproj.CRS | None, source: str | Path) -> gpd.GeoDataFrame:
    """Reproject features; long sides of polygons are densified first.

    If either side has no CRS, or a local (engineering) one, coordinates are not transformed.

    Parameters
    ----------
    source
        Origin of the features, for the error and the warning.

    Raises
    ------
    VectorError
        If coordinates cannot be transformed to `crs`.
    """
    own = features.crs
    if own is None and crs is not None:
        log.warning("%s has no CRS: its coordinates are taken to be in %s", source, crs.name)
    if crs is None or own is None or own.geodetic_crs is None or crs.geodetic_crs is None:
        return features.set_crs(crs, allow_override=True)
    if own.equals(crs, ignore_axis_order=True):
        return features.set_crs(crs, allow_override=True)
    geometries = unwrapped(features.geometry.to_numpy(), own)
    bounds = shapely.bounds(geometries)
    longest = np.maximum(bounds[:, 2] - bounds[:, 0], bounds[:, 3] - bounds[:, 1])
    pieces = np.where(longest > 0, longest / SEGMENTS, 1.0)
    moved = reproject(shapely.segmentize(geometries, pieces), own, crs)
    features = features.set_geometry(gpd.GeoSeries(moved, index=features.index, crs=crs))
    if not np.isfinite(features.geometry.bounds.to_numpy()).all():
        raise VectorError(
            f"{source}: coordinates in {own.name} cannot be transformed to {crs.name}, the scene's CRS: "
            "the CRS or the coordinates of the file are wrong"
        )
    return features


def check_meets(what: str, outlines: gpd.GeoDataFrame, grid: Grid) -> None:
    """Refuse outlines that do not intersect a scene.

    Parameters
    ----------
    what
        For the error: the file, and its layer.
    outlines
        In the CRS of `grid`.

    Raises
    ------
    VectorError
        If no outline intersects the grid.
    """
    if not outlines.geometry.intersects(grid.outline).any():
        raise VectorError(
            f"{what} misses the scene: it covers {span(outlines.total_bounds)}, the scene covers "
            f"{span(grid.outline.bounds)}; its CRS or its coordinates may be wrong"
        )


def read_landslides(path: str | Path, crs: pyproj.CRS | None, layer: str) -> gpd.GeoDataFrame:
    """Read a layer as `read_features`, without what a person rejected, unless it is the layer ``rejected`` itself.

    In a file of one layer with a column ``layer``, as the page of a review gives, candidates count once accepted.
    Names of both columns are case-insensitive.
    """
    features = read_features(path, crs, layer)
    state, part = (spelled(name, features.columns) for name in ("status", "layer"))
    if state is None or layer == "rejected":
        return features
    status = features[state].map(lambda said: str(said).strip().lower())
    beside = features[part].isin(["candidates", "rejected"]) if part else False
    out = ((status == "rejected") | (beside & (status != "accepted"))).to_numpy(bool)
    if out.any():
        text = "layer %s of %s: %d rejected polygons or candidates are left out; see geolabel review export"
        log.warning(text, layer, path, out.sum())
    return features[~out].reset_index(drop=True)


def read_polygons(path: str | Path, crs: pyproj.CRS | None, layer: str) -> gpd.GeoDataFrame:
    """Read a layer of polygons, see `read_landslides`; self-intersecting outlines are repaired.

    Raises
    ------
    VectorError
        If the file cannot be read or holds other geometries.
    """
    features = read_landslides(path, crs, layer)
    kinds = set(features.geometry.geom_type) - {"Polygon", "MultiPolygon"}
    if kinds:
        raise VectorError(f"{path} holds {', '.join(sorted(kinds))}: only polygons can be used here")
    return _mended(features)


def _mended(polygons: gpd.GeoDataFrame) -> gpd.GeoDataFrame:
    """Polygons made valid; those without area are dropped."""
    valid = polygons.geometry.make_valid(method="structure", keep_collapsed=False)
    return polygons.set_geometry(valid)[~valid.is_empty].reset_index(drop=True)


# --- inputs drawn by a person ----------------------------------------------------------------------------------------


def read_prompts(
    path: str | Path,
    grid: Grid,
    *,
    classes: tuple[str, ...] = ("landslide",),
    partly: bool = False,
    others: frozenset[str] = frozenset(),
) -> Prompts:
    """Read the prompts that a person drew or corrected.

    Any vector file of points and polygons, in any CRS. If it has the layers ``prompts`` or ``prompt_points``, only
    these are read, otherwise all. A polygon becomes its bounding box on the grid. Columns are optional:

    ``prompt``
        Object number. A point joins the box of the same number; a point without a number joins the smallest box that
        contains it, else it is a separate object. A box without a number, or with a duplicate one, gets a new number.
    ``label``
        Of a point: 1 inside the landslide (default), 0 outside.
    ``class``, ``score``
        Class name, by default the first, and score 0..1, by default 1.
    ``status``
        Of a box: ``rejected`` boxes are skipped, with their points.

    In a file written by `geolabel.extract`, unchanged prompts are recognised: they count as the localizer's if it
    asked for them, and are exactly those of that run if the grid is the same. All others count as a person's. If a
    box was deleted, its points are skipped too, unless they were moved.

    Boxes are clipped to the scene. Prompts outside, and points with label 0 whose object has nothing else, are skipped
    with a warning. Objects are sorted by number.

    Parameters
    ----------
    partly
        Whether the grid is one of several: then prompts may all be outside it.
    others
        Keys of the other grids of the run, see `geolabel.io.prompt_layers.grid_key`: unchanged prompts of these grids
        are skipped here.

    Returns
    -------
    Prompts in pixels of `grid`, rounded to a millionth.

    Raises
    ------
    VectorError
        If the file cannot be read, a geometry or column value is invalid, or all prompts are outside.
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
    """Read the area of interest: the union of a layer's polygons, in the CRS of the scene.

    Parameters
    ----------
    layer
        None for the only layer with polygons. Features that are not polygons are skipped with a warning.
    grid
        Grid of the scene, which the area must intersect; None to skip that check.

    Raises
    ------
    VectorError
        If the file cannot be read, holds no area, has several layers of polygons and none is named, or does not
        intersect the scene.
    """
    layer = choose_layer(path, layer, "--aoi-layer", polygons=True)
    features, what = read_layer(path, layer, columns=()), f"layer {layer} of {path}"
    kinds = features.geometry.geom_type
    polygons = gpd.GeoDataFrame(geometry=_polygon_parts(features.geometry.to_numpy()), crs=features.crs)
    if not len(polygons):
        held = f"holds {', '.join(sorted(set(kinds)))} alone" if len(kinds) else "is empty"
        raise VectorError(f"{what} encloses no area, since it {held}: draw a polygon around the area")
    other = int((~kinds.isin(["Polygon", "MultiPolygon"])).sum())
    if other:
        log.warning("%s: %d features, of which %d are not polygons and are ignored", what, len(kinds), other)
    if grid is not None:
        if features.crs is None and grid.crs is not None:
            what = f"{what}, which has no CRS and is assumed to be in {grid.crs.name},"
        polygons = _around(polygons, grid, what)
    try:
        polygons = _mended(in_crs(polygons, crs, path))
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


def _around(polygons: gpd.GeoDataFrame, grid: Grid, what: str, *, required: bool = True) -> gpd.GeoDataFrame:
    """Polygons clipped to the surroundings of a scene, in their own CRS: UTM cannot project a whole continent.

    Raises
    ------
    VectorError
        If none remains and at least one is `required`.
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
    valid = _mended(gpd.GeoDataFrame(geometry=outlines, crs=own))
    cut = _polygon_parts(shapely.intersection(valid.geometry.to_numpy(), surroundings))
    if required and len(valid) and not len(cut):
        raise VectorError(
            f"{what} misses the scene: in {own.name} it covers {span(valid.total_bounds)}, the scene covers "
            f"{span(frame.bounds)}; its CRS or its coordinates may be wrong"
        )
    return gpd.GeoDataFrame(geometry=cut, crs=own)


def read_exclusions(path: str | Path, grid: Grid) -> AnyArray:
    """Read ground where nothing counts as a landslide: the polygons of all layers that intersect a scene.

    Returns
    -------
    Polygons (N,) in the CRS of `grid`, large ones split into parts; empty if the file has no polygon there, such as
    water bodies in a dry area

    Raises
    ------
    VectorError
        If the file cannot be read, or has no polygon at all.
    """
    tables = [(f"layer {name} of {path}", read_layer(path, name, columns=())) for name in spatial_layers(path)]
    parts = [(what, _polygon_parts(table.geometry.to_numpy()), table.crs) for what, table in tables]
    if not any(len(polygons) for _, polygons, _ in parts):
        raise VectorError(f"{path} holds no polygon: give a file of polygons, such as lakes and rivers")
    found = [np.zeros(0, object)]
    for what, polygons, own in parts:
        if len(polygons):
            there = _around(gpd.GeoDataFrame(geometry=polygons, crs=own), grid, what, required=False)
            outlines = _mended(in_crs(there, grid.crs, path)).geometry.to_numpy()
            found.append(near(outlines, grid.crs, grid.outline) if len(outlines) else outlines)
    everything = np.concatenate(found)
    return _subdivided(everything[shapely.intersects(everything, grid.outline)])


def _subdivided(polygons: AnyArray) -> AnyArray:
    """Polygons split into parts (M,) with few vertices: overlays with a whole coastline are slow."""
    parts: list[AnyArray] = [np.zeros(0, object)]
    for _ in range(MAX_HALVINGS):
        few = shapely.get_num_coordinates(polygons) <= MAX_CORNERS
        parts.append(polygons[few])
        polygons = polygons[~few]
        if not len(polygons):
            break
        left, bottom, right, top = shapely.bounds(polygons).T
        wide = right - left > top - bottom
        x, y = np.where(wide, (left + right) / 2, right), np.where(wide, top, (bottom + top) / 2)
        u, v = np.where(wide, x, left), np.where(wide, bottom, y)
        halves = shapely.box(left, bottom, x, y), shapely.box(u, v, right, top)
        polygons = np.concatenate([_polygon_parts(shapely.intersection(polygons, half)) for half in halves])
    return np.concatenate([*parts, polygons])

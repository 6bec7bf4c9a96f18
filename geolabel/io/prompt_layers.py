"""Convert prompts to features and back: boxes as polygons, points as points, joined by prompt number."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Mapping

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely

from geolabel.errors import VectorError
from geolabel.io.columns import Kind
from geolabel.io.styles import REVIEW_STATES
from geolabel.parsing import parse_json
from geolabel.prompts import DRAWN, FOREGROUND, FRESH, LOCALIZER, PADDING, Prompts
from geolabel.scene import Grid
from geolabel.types import AnyArray, BoolArray, Float64Array, Int64Array

log = logging.getLogger(__name__)

PIXELS: dict[str, Kind] = {"pixels": "text"}
"""Column of prompt features that only the record of a file keeps: the grid, and exact coordinates in its pixels.

In another CRS the sides of a box bend, so the box could not be recovered from its geometry."""

ORIGINS = {LOCALIZER: "localizer", DRAWN: "person", FRESH: "person"}
"""Values of the column for the origin of a prompt."""

MOST_POINTS = 1 << 24
"""Maximum points of all prompts together, each padded to the maximum number of points of one."""

DECIMALS = 6
"""Decimals of pixel coordinates that are read: a millionth of a pixel hides rounding errors of a CRS's large
numbers."""


def box_features(prompts: Prompts, grid: Grid, classes: tuple[str, ...]) -> gpd.GeoDataFrame:
    """One polygon for each prompt with a box; on a rotated grid the box is rotated too."""
    chosen = prompts[prompts.has_box]
    corners = chosen.boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 4, 2)
    table = {
        "prompt": chosen.ids,
        "origin": [ORIGINS[origin] for origin in chosen.origins.tolist()],
        "class": [classes[c] for c in chosen.class_ids],
        "score": chosen.scores.astype(float),
        "status": REVIEW_STATES[0],
        "pixels": _pixels(grid, chosen.boxes),
    }
    return gpd.GeoDataFrame(table, geometry=shapely.polygons(_to_crs(grid, corners)), crs=grid.crs)


def point_features(prompts: Prompts, grid: Grid, classes: tuple[str, ...]) -> gpd.GeoDataFrame:
    """One point for each point of a prompt, at the centre of its pixel."""
    rows, places = np.nonzero(prompts.labels != PADDING)
    table = {
        "prompt": prompts.ids[rows],
        "label": prompts.labels[rows, places],
        "origin": [ORIGINS[origin] for origin in prompts.origins[rows].tolist()],
        "class": [classes[c] for c in prompts.class_ids[rows]],
        "score": prompts.scores[rows].astype(float),
        "pixels": _pixels(grid, prompts.points[rows, places]),
    }
    return gpd.GeoDataFrame(
        table, geometry=shapely.points(_to_crs(grid, prompts.points[rows, places] + 0.5)), crs=grid.crs
    )


def grid_key(grid: Grid) -> str:
    """Key of a grid: grids with the same key have the same pixels."""
    crs = None if grid.crs is None else grid.crs.to_wkt()
    return hashlib.sha256(repr((crs, tuple(grid.transform), grid.height, grid.width)).encode()).hexdigest()[:16]


def _pixels(grid: Grid, coordinates: Float64Array) -> list[str]:
    key = grid_key(grid)
    return [json.dumps([key, *values]) for values in coordinates.tolist()]


def asked_elsewhere(features: gpd.GeoDataFrame, others: frozenset[str]) -> BoolArray:
    """(N,) prompts that belong to another grid of the run, by its key, and are unchanged."""
    keys = [_written_pixels(text)[0] for text in _column(features, "pixels")]
    return np.isin(np.array([*keys, None], object)[:-1], [*others]) if others else np.zeros(len(features), bool)


def gather_prompts(
    layers: Mapping[str, gpd.GeoDataFrame],
    grid: Grid,
    classes: tuple[str, ...],
    *,
    partly: bool = False,
    highest: int = -1,
) -> Prompts:
    """Convert features of named layers, in the CRS of `grid`, to prompts in its pixels.

    See `geolabel.io.read.features.read_prompts` for the columns, the rules and `partly`. Features without a column
    ``asked_by`` are a person's, see `geolabel.io.written.mark_changes`.

    Parameters
    ----------
    highest
        Highest prompt number so far: new prompts get higher ones.

    Raises
    ------
    VectorError
        If a layer has other geometries, a column has invalid values, or all prompts are outside the grid.
    """
    boxes, points = [], []
    for where, features in layers.items():
        kinds = features.geometry.geom_type
        other = sorted(set(kinds) - {"Polygon", "MultiPolygon", "Point", "MultiPoint"})
        if other:
            raise VectorError(f"{where} holds {', '.join(other)}: prompts are points and polygons")
        polygonal = kinds.isin(["Polygon", "MultiPolygon"])
        boxes.append(_box_table(features[polygonal], grid, classes, where))
        points.append(_point_table(features[~polygonal].explode(ignore_index=True), grid, classes, where))
    prompts = _join(pd.concat(boxes, ignore_index=True), pd.concat(points, ignore_index=True), highest)
    if not len(prompts):
        log.warning("no prompts in %s", " and ".join(layers))
    return _inside(_answerable(prompts), grid, partly=partly)


def _to_crs(grid: Grid, pixels: Float64Array) -> Float64Array:
    a, b, c, d, e, f = tuple(grid.transform)[:6]
    x, y = pixels[..., 0], pixels[..., 1]
    return np.stack([a * x + b * y + c, d * x + e * y + f], axis=-1)


def _to_pixels(grid: Grid, coordinates: Float64Array) -> Float64Array:
    a, b, c, d, e, f = tuple(grid.transform)[:6]
    # subtract the origin first, so that the inverse loses no digits
    x, y = coordinates[..., 0] - c, coordinates[..., 1] - f
    pixels = np.stack([e * x - b * y, a * y - d * x], axis=-1) / (a * e - b * d)
    rounded: Float64Array = np.round(pixels, DECIMALS)
    return rounded


# --- tables of features ----------------------------------------------------------------------------------------------


def _box_table(features: gpd.GeoDataFrame, grid: Grid, classes: tuple[str, ...], where: str) -> pd.DataFrame:
    """Columns x0, y0, x1, y1, prompt (or null), class_id, score, rejected."""
    coordinates, owner = shapely.get_coordinates(features.geometry.to_numpy(), return_index=True)
    low = np.full((len(features), 2), np.inf)
    high = -low
    pixels = _to_pixels(grid, coordinates)
    np.minimum.at(low, owner, pixels)
    np.maximum.at(high, owner, pixels)
    table = _common_columns(features, classes, where)
    corners = _exactly(features, grid, np.concatenate([low, high], axis=1))
    table["x0"], table["y0"], table["x1"], table["y1"] = corners.T
    table["rejected"] = _column(features, "status").astype(str).to_numpy() == "rejected"
    return table


def _point_table(features: gpd.GeoDataFrame, grid: Grid, classes: tuple[str, ...], where: str) -> pd.DataFrame:
    """Columns x, y, label, prompt (or null), class_id, score."""
    table = _common_columns(features, classes, where)
    read = _to_pixels(grid, shapely.get_coordinates(features.geometry.to_numpy())) - 0.5
    pixels = _exactly(features, grid, read)
    table["x"], table["y"] = pixels.T
    table["label"] = _numbers(features, "label", FOREGROUND, where, whole=True, limits=(0, 1)).astype(np.int8)
    return table


def _exactly(features: gpd.GeoDataFrame, grid: Grid, read: Float64Array) -> Float64Array:
    """(N, D) coordinates in pixels: the exact ones if they were written for this grid, else from the geometry."""
    key, exact = grid_key(grid), read.copy()
    for row, text in enumerate(_column(features, "pixels") if "asked_by" in features else ()):
        where, values = _written_pixels(text)
        if where == key and len(values) == read.shape[1]:
            exact[row] = values
    return exact


def _written_pixels(text: object) -> tuple[str | None, list[float]]:
    """Key of a grid and coordinates in its pixels, as written by `_pixels`; empty if there are none."""
    try:
        key, *values = parse_json(text) if isinstance(text, str) else ("",)
        numbers = [float(value) for value in values]
    except (ValueError, TypeError):
        return None, []
    return (key, numbers) if key and isinstance(key, str) and np.isfinite(numbers).all() else (None, [])


def _common_columns(features: gpd.GeoDataFrame, classes: tuple[str, ...], where: str) -> pd.DataFrame:
    names = _column(features, "class").fillna(classes[0])
    unknown = sorted({str(name) for name in names} - set(classes))
    if unknown:
        raise VectorError(
            f"{where}: column class names {', '.join(unknown)}, which this run does not know: "
            f"use {', '.join(classes)}, or leave it empty"
        )
    return pd.DataFrame(
        {
            "prompt": _numbers(features, "prompt", np.nan, where, whole=True, limits=(0, 2**53)),
            "class_id": [classes.index(name) for name in names],
            "score": _numbers(features, "score", 1.0, where, limits=(0, 1)),
            "asked_by": features["asked_by"].to_numpy(np.int8) if "asked_by" in features else np.int8(FRESH),
        }
    )


def _column(features: gpd.GeoDataFrame, name: str) -> pd.Series:
    if name in features:
        return features[name].astype(object)
    return pd.Series(None, index=features.index, dtype=object)


def _numbers(
    features: gpd.GeoDataFrame,
    name: str,
    default: float,
    where: str,
    *,
    limits: tuple[float, float],
    whole: bool = False,
) -> Float64Array:
    given = _column(features, name)
    numbers = pd.to_numeric(given, errors="coerce")
    low, high = limits
    fine = numbers.between(low, high) & ((numbers % 1 == 0) if whole else True)
    wrong = given[given.notna() & ~fine]
    if len(wrong):
        raise VectorError(
            f"{where}: {len(wrong)} values of column {name}, such as {wrong.iloc[0]!r}, are no "
            f"{'whole ' if whole else ''}number from {low:g} to {high:g}: correct or empty them"
        )
    filled: Float64Array = numbers.fillna(default).to_numpy(float)
    return filled


# --- from tables to prompts ------------------------------------------------------------------------------------------


def _join(boxes: pd.DataFrame, points: pd.DataFrame, highest: int = -1) -> Prompts:
    rejected = boxes.loc[boxes["rejected"], "prompt"].dropna()
    boxes = boxes[~boxes["rejected"]]
    points = points[~(points["prompt"].isin(rejected) & ~points["prompt"].isin(boxes["prompt"]))]
    free = int(np.nanmax([highest, *boxes["prompt"], *points["prompt"], *rejected])) + 1
    box_ids = _fill(boxes["prompt"].mask(boxes["prompt"].duplicated()), free)
    free = max(free, int(box_ids.max(initial=-1)) + 1)
    corners = boxes[["x0", "y0", "x1", "y1"]].to_numpy(float)
    loose = points["prompt"].isna().to_numpy()
    owners = points["prompt"].to_numpy(float, copy=True)
    owners[loose] = _smallest_box(points.loc[loose, ["x", "y"]].to_numpy(float), corners, box_ids)
    point_ids = _fill(pd.Series(owners), free)
    return _assemble(boxes, corners, box_ids, points, point_ids)


def _fill(ids: pd.Series, free: int) -> Int64Array:
    """Number those without a number from `free` on."""
    lacking = ids.isna().to_numpy()
    numbers: Int64Array = ids.fillna(0).to_numpy(np.int64, copy=True)
    numbers[lacking] = free + np.arange(lacking.sum())
    return numbers


def _smallest_box(points: Float64Array, corners: Float64Array, ids: Int64Array) -> Float64Array:
    """(N,) number of the smallest box around each point, NaN without one."""
    found = np.full(len(points), np.nan)
    order = np.lexsort((ids, np.prod(corners[:, 2:] - corners[:, :2], axis=1)))
    tree = shapely.STRtree(shapely.box(*corners[order].T))
    inside, box = tree.query(shapely.points(points + 0.5), predicate="intersects")
    rank = np.full(len(points), len(ids))
    np.minimum.at(rank, inside, box)
    hit = rank < len(ids)
    found[hit] = ids[order][rank[hit]]
    return found


def _assemble(
    boxes: pd.DataFrame, corners: Float64Array, box_ids: Int64Array, points: pd.DataFrame, point_ids: Int64Array
) -> Prompts:
    ids, first = np.unique(np.concatenate([box_ids, point_ids]), return_index=True)
    # the first feature of an object, a box if there is one, gives its class and score
    spoken = pd.concat([boxes[["class_id", "score"]], points[["class_id", "score"]]])
    all_corners = np.full((len(ids), 4), np.nan)
    all_corners[np.searchsorted(ids, box_ids)] = corners
    place = pd.Series(point_ids).groupby(point_ids).cumcount().to_numpy(np.int64)
    asked_by = np.zeros(len(ids), np.int8)
    np.maximum.at(asked_by, np.searchsorted(ids, box_ids), boxes["asked_by"].to_numpy(np.int8))
    np.maximum.at(asked_by, np.searchsorted(ids, point_ids), points["asked_by"].to_numpy(np.int8))
    rows, width = np.searchsorted(ids, point_ids), int(place.max(initial=-1)) + 1
    if len(ids) * width > MOST_POINTS:
        most, _ = Counter(point_ids.tolist()).most_common(1)[0]
        raise VectorError(
            f"prompt {most} has {width} points, and {len(ids)} prompts with room for as many are more than fit into "
            f"memory ({MOST_POINTS} points): give fewer points to a prompt, or fewer prompts at a time"
        )
    xy, labels = np.zeros((len(ids), width, 2)), np.full((len(ids), width), PADDING, np.int8)
    xy[rows, place] = points[["x", "y"]].to_numpy(float)
    labels[rows, place] = points["label"].to_numpy(np.int8)
    return Prompts(
        boxes=all_corners,
        points=xy,
        labels=labels,
        class_ids=spoken["class_id"].to_numpy(np.int32)[first],
        scores=spoken["score"].to_numpy(np.float32)[first],
        ids=ids,
        origins=asked_by,
    )


def _answerable(prompts: Prompts) -> Prompts:
    useful: AnyArray = prompts.has_box | (prompts.labels == FOREGROUND).any(axis=1)
    if not useful.all():
        log.warning("%d prompts have points labelled 0 and nothing else: they are left out", (~useful).sum())
    return prompts[useful]


def _inside(prompts: Prompts, grid: Grid, *, partly: bool) -> Prompts:
    size = np.array([grid.width, grid.height], float)
    boxes = np.clip(prompts.boxes, 0, np.tile(size, 2))
    boxes[~(boxes[:, 2:] > boxes[:, :2]).all(axis=1)] = np.nan
    on_grid = ((prompts.points >= -0.5) & (prompts.points < size - 0.5)).all(axis=2)
    labels = np.where(on_grid, prompts.labels, np.int8(PADDING))
    kept = ~np.isnan(boxes).any(axis=1) | (labels == FOREGROUND).any(axis=1)
    if len(prompts) and not kept.any() and not partly:
        left, bottom, right, top = _bounds(grid)
        crs = "its own coordinates" if grid.crs is None else grid.crs.name
        raise VectorError(
            f"all {len(prompts)} prompts lie outside the scene, which reaches from ({left:g}, {bottom:g}) to "
            f"({right:g}, {top:g}) in {crs}: check the CRS of the file"
        )
    if not kept.all() and not partly:
        log.warning("%d of %d prompts lie outside the scene and are left out", (~kept).sum(), len(kept))
    return Prompts(
        boxes=boxes[kept],
        points=prompts.points[kept],
        labels=labels[kept],
        class_ids=prompts.class_ids[kept],
        scores=prompts.scores[kept],
        ids=prompts.ids[kept],
        origins=prompts.origins[kept],
    )


def _bounds(grid: Grid) -> tuple[float, float, float, float]:
    corners = _to_crs(grid, np.array([(0, 0), (grid.width, 0), (grid.width, grid.height), (0, grid.height)], float))
    (left, bottom), (right, top) = corners.min(axis=0), corners.max(axis=0)
    return float(left), float(bottom), float(right), float(top)

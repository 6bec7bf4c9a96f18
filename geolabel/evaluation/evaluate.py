"""Score an inventory against the truth: a raster of labels, or another inventory."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pyproj
import shapely
from pyproj.crs import ProjectedCRS
from pyproj.crs.coordinate_operation import LambertAzimuthalEqualAreaConversion
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from geolabel.errors import OptionError, SceneError, VectorError
from geolabel.io.read.features import (
    choose_layer,
    in_crs,
    layer_info,
    read_aoi,
    read_layer,
    read_polygons,
    spatial_layers,
)
from geolabel.io.read.label_rasters import LabelRaster, grid_of, is_raster, is_unplaced
from geolabel.io.write.rasterize import in_pixels, rasterize
from geolabel.labels import IGNORE
from geolabel.metrics import Confusion, ObjectScores, Overlaps
from geolabel.reprojection import near
from geolabel.scene import span
from geolabel.seams import Spans, join, total
from geolabel.tiles import BlockGrid, Window
from geolabel.types import AnyArray, BoolArray, Int32Array, Int64Array

log = logging.getLogger(__name__)

LANDSLIDE = 1
"""Value of landslides in a truth raster that does not name its classes; all others are background."""

NAME = "landslide"
"""Name of the class in a raster that names them."""

TOUCHING = 1e-3
"""Metres, or units without CRS, between polygons that share an edge; changing a CRS moves edges by less."""

BLOCK = 2048
"""Side in pixels of the parts that a truth raster is read in."""

_Source = tuple[str | Path, str | None]
"""A vector file and its layer, where it is named."""

LAYER = "landslides"
"""The layer to score, where the file has one of this name."""


@dataclass(frozen=True)
class Evaluation:
    """Figures of one inventory."""

    areas: Confusion
    """In pixels of the truth raster, or in square metres."""
    objects: ObjectScores
    true_ha: float
    """Hectares of true landslide; NaN without a CRS."""
    predicted_ha: float

    def as_dict(self) -> dict[str, float | int | None]:
        """Plain values; None for what is not defined."""
        areas, objects = self.areas, self.objects
        values: dict[str, float | int] = {
            "overall_accuracy": areas.overall_accuracy,
            "precision": areas.precision,
            "recall": areas.recall,
            "f1": areas.f1,
            "iou": areas.iou,
            "miou": areas.miou,
            "kappa": areas.kappa,
            "true_landslides": objects.true_objects,
            "found": objects.found_share,
            "polygons": objects.polygons,
            "right": objects.right_share,
            "matched": objects.matched,
            "object_precision": objects.precision,
            "object_recall": objects.recall,
            "object_f1": objects.f1,
            "true_ha": self.true_ha,
            "predicted_ha": self.predicted_ha,
        }
        return {key: None if math.isnan(value) else value for key, value in values.items()}


def evaluate(
    slides: str | Path,
    truth: str | Path,
    *,
    layer: str | None = None,
    truth_layer: str | None = None,
    scene: str | Path | None = None,
    aoi: str | Path | None = None,
    aoi_layer: str | None = None,
) -> Evaluation:
    """Score the polygons of one file against the truth in another.

    A raster is compared pixel by pixel, those left out that it does not know; see `geolabel.io.read.label_rasters`. Its
    landslides are 4-connected regions of the value 1, of the class named landslide, or of white beside 0. Polygons are
    compared by their exact areas in an equal-area projection, and their landslides are connected regions too, however
    they are cut into features. Where their background ends only `scene` or `aoi` can tell; without, nothing that needs
    it is defined (accuracy, kappa, mean IoU). What is outside counts neither as right nor as wrong.

    Parameters
    ----------
    slides
        Predicted polygons.
    truth
        Raster or polygons.
    layer, truth_layer
        By default ``landslides``, or the only layer of polygons.
    scene
        For a truth of polygons: the raster whose outline is judged. For a raster without georeference: the one of the
        same size that it was made for.
    aoi, aoi_layer
        Polygons: only what lies inside is judged. See `geolabel.io.write.vectors.read_aoi`.

    Raises
    ------
    VectorError
        If polygons cannot be read.
    SceneError
        If a raster cannot be read or understood, or does not meet the polygons.
    OptionError
        If `scene` is given with a truth raster that has a place of its own.
    """
    area = None if aoi is None else (aoi, aoi_layer)
    layer = choose_layer(slides, layer, "--layer", preferred=LAYER, polygons=True)
    if not is_raster(truth):
        try:
            spatial_layers(truth)
        except VectorError as error:
            raise VectorError(
                f"{truth} opens neither as a raster nor as a vector file of polygons: give one of these"
            ) from error
        truth_layer = choose_layer(truth, truth_layer, "--truth-layer", preferred=LAYER, polygons=True)
        return _against_polygons((slides, layer), (truth, truth_layer), scene=scene, aoi=area)
    if scene is not None and not is_unplaced(grid_of(truth)):
        raise OptionError(f"--scene {scene} is for a truth of polygons: the raster {truth} has an outline of its own")
    raster = LabelRaster.open(truth, scene=None if scene is None else grid_of(scene))
    return _against_raster((slides, layer), raster, area)


# --- truth as a raster -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Shared:
    """Where the true landslides of one block and the polygons meet."""

    spans: Spans
    """True landslides."""
    covered: Int64Array
    """(S,) pixels of each span under any polygon."""
    pairs: Int64Array
    """(N, 2) span of this block and polygon, counted from 1, that share pixels."""
    pixels: Int64Array
    """(N,) how many."""


def _against_raster(slides: tuple[str | Path, str], truth: LabelRaster, aoi: _Source | None) -> Evaluation:
    grid, landslide = truth.grid, _landslide(truth)
    polygons = _polygons_on(slides, truth)
    layers = [shapely.STRtree(polygons[members]) for members in _layers(polygons)]
    number_of = [(members + 1).astype(np.int32) for members in _layers(polygons)]
    area = [] if aoi is None else [read_aoi(aoi[0], grid.crs, aoi[1], grid=grid)]
    region = shapely.STRtree(in_pixels(np.array(area, object), grid))
    areas, burnt, judged = Confusion(), *np.zeros((2, len(polygons) + 1), np.int64)
    meetings = []
    for window in BlockGrid(grid.height, grid.width, BLOCK):
        values, valid = truth.read(window)
        true = values == landslide
        if area:
            valid &= rasterize(region, np.ones(1, np.uint8), window) > 0
        numbers = [rasterize(tree, members, window) for tree, members in zip(layers, number_of, strict=True)]
        for layer in numbers:
            burnt += np.bincount(layer.reshape(-1), minlength=len(burnt))
            judged += np.bincount(layer[valid], minlength=len(judged))
        predicted = np.zeros(true.shape, bool) if not numbers else np.any(numbers, axis=0)
        areas += Confusion.of(predicted, true, valid)
        meetings.append(_meet(Spans.of_mask(true & valid, window), predicted, numbers, window))
    if areas.tp + areas.fn == 0:
        also = "" if truth.nodata is None else f"; {truth.nodata:g} is nodata there, which nobody has judged"
        log.warning("%s holds no landslide: these are pixels of value %d%s", truth.path, landslide, also)
    # what lies where nobody has judged is neither right nor wrong; what is smaller than a pixel is judged, and wrong
    counted = (judged[1:] > 0) | (burnt[1:] == 0)
    pixel_ha = math.nan if grid.crs is None else math.prod(grid.pixel_size_m()) / 10_000
    return Evaluation(
        areas=areas,
        objects=_overlaps(meetings, judged[1:], counted).scores(),
        true_ha=(areas.tp + areas.fn) * pixel_ha,
        predicted_ha=(areas.tp + areas.fp) * pixel_ha,
    )


def _landslide(truth: LabelRaster) -> int:
    """The value of landslides."""
    value = next((value for value, name in truth.classes.items() if name == NAME), None)
    if value is None and not truth.named and (LANDSLIDE in truth.classes or not truth.classes):
        value = LANDSLIDE
    if value is None:
        raise SceneError(
            f"{truth.path} holds {truth.listed()}, and landslides are the value {LANDSLIDE}, a class named {NAME} "
            f"(band tag class_K={NAME}), or 255 where all else is 0: give a raster of landslides"
        )
    if len(truth.classes) >= IGNORE and not truth.named:
        raise SceneError(f"{truth.path} holds {len(truth.classes)} values: give a raster of classes, not of objects")
    if truth.white:
        log.warning("%s holds 0 and %d: the latter is taken for landslide", truth.path, value)
    elif len(truth.classes) > 1 and not truth.named:
        log.warning("%s holds the values %s: %d is landslide, the others are background",
                    truth.path, truth.listed(), value)  # fmt: skip
    return value


def _polygons_on(slides: tuple[str | Path, str], truth: LabelRaster) -> AnyArray:
    """(K,) the polygons that meet a raster, in its pixels.

    Raises
    ------
    SceneError
        If none of them does.
    """
    grid = truth.grid
    path, layer = slides
    features = read_polygons(path, grid.crs, layer)
    own = layer_info(path, layer)["crs"]
    if is_unplaced(grid) and own is not None and pyproj.CRS(own).geodetic_crs is not None:
        raise SceneError(
            f"{truth.path} has no georeference, and the polygons of {path} are in {pyproj.CRS(own).name}: give --scene "
            "with the raster of the same size that it was made for"
        )
    polygons = near(features.geometry.to_numpy(), grid.crs, grid.outline)
    here = np.asarray(shapely.area(shapely.intersection(polygons, grid.outline)) > 0)
    if len(here) and not here.any():
        raise SceneError(
            f"{truth.path} and the polygons of {path} do not meet: the raster reaches over "
            f"{span(grid.outline.bounds)}, the polygons over {span(features.total_bounds)}; a CRS or the coordinates "
            "may be wrong"
        )
    return in_pixels(polygons[here], grid)


def _layers(polygons: AnyArray) -> list[Int64Array]:
    """Members of as few layers as it takes for no two polygons of a layer to overlap."""
    one, other = shapely.STRtree(polygons).query(polygons, predicate="intersects")
    before = one > other
    one, other = one[before], other[before]
    overlap = shapely.area(shapely.intersection(polygons[one], polygons[other])) > 0
    under: dict[int, list[int]] = {}
    for upper, lower in zip(one[overlap].tolist(), other[overlap].tolist(), strict=True):
        under.setdefault(upper, []).append(lower)
    layer = np.zeros(len(polygons), np.int64)
    for upper in sorted(under):
        taken = {int(layer[lower]) for lower in under[upper]}
        layer[upper] = next(k for k in range(len(taken) + 1) if k not in taken)
    return [np.flatnonzero(layer == k) for k in range(int(layer.max(initial=-1)) + 1)]


def _meet(spans: Spans, predicted: BoolArray, layers: list[Int32Array], window: Window) -> _Shared:
    pixels = spans.pixels(window)
    owner = np.repeat(np.arange(len(spans)), spans.lengths)
    covered = np.bincount(owner[predicted.reshape(-1)[pixels]], minlength=len(spans))
    pairs, counts = [np.zeros((0, 2), np.int64)], [np.zeros(0, np.int64)]
    for numbers in layers:
        under = numbers.reshape(-1)[pixels].astype(np.int64)
        base = int(numbers.max(initial=0)) + 1
        met, shared = np.unique((owner * base + under)[under > 0], return_counts=True)
        pairs.append(np.stack(np.divmod(met, base), axis=1))
        counts.append(shared)
    return _Shared(spans, covered, np.concatenate(pairs), np.concatenate(counts))


def _overlaps(meetings: list[_Shared], polygon_area: Int64Array, counted: BoolArray) -> Overlaps:
    """Join the true landslides of all blocks, and add up what polygons share with them."""
    spans, joined = join([part.spans for part in meetings])
    labels, count = spans.components(4)
    first = np.cumsum([0, *(len(part.spans) for part in meetings)])
    true = labels[joined[np.concatenate([part.pairs[:, 0] + n for part, n in zip(meetings, first, strict=False)])]]
    place = np.cumsum(counted) - 1  # of each polygon among those that count; what meets a true landslide does
    polygon = place[np.concatenate([part.pairs[:, 1] for part in meetings]) - 1]
    pixels = np.concatenate([part.pixels for part in meetings])
    pairs, inverse = np.unique(np.stack([true, polygon], axis=1), axis=0, return_inverse=True)
    shared = total(pixels, inverse.reshape(-1), len(pairs))
    return Overlaps(
        true_area=total(spans.lengths, labels, count),
        true_covered=total(np.concatenate([part.covered for part in meetings]), labels[joined], count),
        polygon_area=polygon_area[counted],
        polygon_correct=total(pixels, polygon, int(counted.sum())),
        pairs=pairs,
        shared=shared,
    )


# --- truth as polygons -----------------------------------------------------------------------------------------------


def _against_polygons(
    slides: tuple[str | Path, str], truth: tuple[str | Path, str], *, scene: str | Path | None, aoi: _Source | None
) -> Evaluation:
    plane = _plane(truth, slides)
    extent = _extent(plane, scene, aoi)
    layers = [read_polygons(path, plane, layer) for path, layer in (slides, truth)]
    predicted, outlined = (_inside(polygons, extent) for polygons in layers)
    _check_meet(predicted, outlined, slides[0], truth[0])
    true = _regions(outlined)
    all_predicted, all_true = shapely.union_all(predicted), shapely.union_all(true)
    tp = shapely.intersection(all_predicted, all_true).area
    areas = Confusion(
        tp=tp,
        fp=all_predicted.area - tp,
        fn=all_true.area - tp,
        tn=math.nan if extent is None else extent.area - all_predicted.area - all_true.area + tp,
    )
    pairs = shapely.STRtree(predicted).query(true, predicate="intersects").T
    shared = shapely.area(shapely.intersection(true[pairs[:, 0]], predicted[pairs[:, 1]]))
    overlaps = Overlaps(
        true_area=shapely.area(true),
        true_covered=_covered(true, all_predicted),
        polygon_area=shapely.area(predicted),
        polygon_correct=_covered(predicted, all_true),
        pairs=pairs,
        shared=shared,
    )
    ha = math.nan if plane is None else 1e-4
    return Evaluation(areas, overlaps.scores(), true_ha=all_true.area * ha, predicted_ha=all_predicted.area * ha)


def _check_meet(predicted: AnyArray, true: AnyArray, slides: str | Path, truth: str | Path) -> None:
    """Warn of sets that are far from each other: they may be right, but a wrong CRS looks the same."""
    if len(predicted) and len(true):
        spans = [shapely.total_bounds(polygons) for polygons in (predicted, true)]
        if not shapely.box(*spans[0]).intersects(shapely.box(*spans[1])):
            log.warning("no polygon of %s meets one of %s: in metres from the middle they reach over %s, and over %s",
                        slides, truth, *map(span, spans))  # fmt: skip


def _regions(polygons: AnyArray) -> AnyArray:
    """(T,) connected regions of polygons, what a raster of them shows as one.

    Parts of a multipolygon are regions of their own; polygons that overlap or share an edge are one, those that meet
    at a corner are not.
    """
    parts = shapely.get_parts(polygons)
    one, other = shapely.STRtree(parts).query(parts, predicate="dwithin", distance=TOUCHING)
    pairs = one < other
    one, other = one[pairs], other[pairs]
    # a common edge of some length: around a corner two polygons share no more than a few squares of the tolerance
    common = shapely.area(shapely.intersection(shapely.buffer(parts[one], TOUCHING), parts[other]))
    edge = common > 4 * TOUCHING**2
    graph = coo_array((np.ones(edge.sum(), bool), (one[edge], other[edge])), shape=(len(parts), len(parts)))
    count, region = connected_components(graph, directed=False)
    order = np.argsort(region, kind="stable")
    groups = np.split(parts[order], np.searchsorted(region[order], np.arange(1, count)))
    return np.array(
        [group[0] if len(group) == 1 else shapely.union_all(group) for group in groups if len(group)], object
    )


def _plane(*sources: tuple[str | Path, str]) -> pyproj.CRS | None:
    """An equal-area projection around the middle of the first layer that has features, in that layer's own datum.

    None where a layer has no place on Earth: coordinates are compared as they are.
    """
    infos = [layer_info(path, layer) for path, layer in sources]
    systems = [None if info["crs"] is None else pyproj.CRS(info["crs"]) for info in infos]
    on_earth = [crs for crs in systems if crs is not None and crs.geodetic_crs is not None]
    if len(on_earth) < len(systems):
        return None
    filled = [k for k, info in enumerate(infos) if info["features"]]
    if not filled:
        return on_earth[0]
    crs, (left, bottom, right, top) = on_earth[filled[0]], infos[filled[0]]["total_bounds"]
    to_lonlat = pyproj.Transformer.from_crs(crs, crs.geodetic_crs, always_xy=True)
    lon, lat = to_lonlat.transform([left, (left + right) / 2, right], [bottom, (bottom + top) / 2, top])
    if not np.isfinite([lon[1], lat[1]]).all():
        raise VectorError(f"the polygons around {(left, bottom, right, top)} lie outside what {crs.name} can map")
    middle = lon[1]
    if lon[2] - lon[0] > 180:  # on both sides of the antimeridian, and the mean of the numbers is round the Earth
        points = shapely.get_coordinates(read_layer(*sources[filled[0]], columns=()).geometry.to_numpy())
        east = np.exp(1j * np.radians(to_lonlat.transform(*points.T)[0]))
        middle = math.degrees(np.angle(east.mean()))
    return ProjectedCRS(LambertAzimuthalEqualAreaConversion(lat[1], middle), geodetic_crs=crs.geodetic_crs)


def _extent(plane: pyproj.CRS | None, scene: str | Path | None, aoi: _Source | None) -> shapely.Geometry | None:
    parts = [] if aoi is None else [read_aoi(aoi[0], plane, aoi[1])]
    if scene is not None:
        grid = grid_of(scene)
        outline = gpd.GeoDataFrame(geometry=[grid.outline], crs=grid.crs)
        parts.append(in_crs(outline, plane, scene).geometry[0])
    if not parts:
        return None
    extent = shapely.intersection_all(parts)
    if extent.area == 0:
        raise VectorError(f"{aoi and aoi[0]} and {scene} do not meet: a CRS or the coordinates may be wrong")
    return extent


def _inside(polygons: gpd.GeoDataFrame, extent: shapely.Geometry | None) -> AnyArray:
    geometries = np.asarray(polygons.geometry.to_numpy())
    if extent is None:
        return geometries
    cut = shapely.intersection(geometries, extent)
    return np.asarray(cut[shapely.area(cut) > 0])


def _covered(polygons: AnyArray, cover: Any) -> AnyArray:
    """(K,) area of each polygon under a cover, part of the cover by part."""
    parts = shapely.get_parts(cover)
    index, part = shapely.STRtree(parts).query(polygons, predicate="intersects")
    shared = shapely.area(shapely.intersection(polygons[index], parts[part]))
    return np.bincount(index, weights=shared, minlength=len(polygons))

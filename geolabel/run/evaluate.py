"""Score an inventory against the truth: a raster of labels, or another inventory."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pyproj
import rasterio
import shapely
from affine import Affine
from pyproj.crs import ProjectedCRS
from pyproj.crs.coordinate_operation import LambertAzimuthalEqualAreaConversion
from rasterio.errors import NotGeoreferencedWarning, RasterioError

from geolabel.errors import OptionError, SceneError, VectorError
from geolabel.io.burning import burn, in_pixels
from geolabel.io.features import in_crs, layer_info, read_polygons, spatial_layers
from geolabel.io.foreign import in_words
from geolabel.io.opening import open_raster, settings
from geolabel.io.vectors import read_aoi
from geolabel.metrics import Confusion, ObjectScores, Overlaps
from geolabel.scene import Grid
from geolabel.seams import Spans, join, total
from geolabel.tiles import BlockGrid, Window
from geolabel.types import AnyArray, BoolArray, Int32Array, Int64Array

log = logging.getLogger(__name__)

LANDSLIDE, UNKNOWN = 1, 255
"""Values of a truth raster: landslide, and pixels that nobody judged. All others are background."""

BLOCK = 2048
"""Side in pixels of the parts that a truth raster is read in."""

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
) -> Evaluation:
    """Score the polygons of one file against the truth in another.

    A raster is compared pixel by pixel, those of value 255 or nodata left out; its landslides are 4-connected regions
    of value 1. Polygons are compared by their exact areas in an equal-area projection. Where their background ends only
    `scene` or `aoi` can tell; without, nothing that needs it is defined (accuracy, kappa, mean IoU).

    Parameters
    ----------
    slides
        Predicted polygons.
    truth
        Raster or polygons.
    layer, truth_layer
        By default ``landslides``, or the file's first layer.
    scene
        For a truth of polygons: the raster whose outline is judged.
    aoi
        Polygons: only what lies inside is judged.

    Raises
    ------
    VectorError
        If polygons cannot be read.
    SceneError
        If a raster cannot be read.
    OptionError
        If `scene` is given with a truth raster, which has an outline of its own.
    """
    layer = _choose_layer(slides, layer)
    if not _is_raster(truth):
        try:
            truth_layer = _choose_layer(truth, truth_layer)
        except VectorError as error:
            raise VectorError(
                f"{truth} opens neither as a raster nor as a vector file of polygons: give one of these"
            ) from error
        return _against_polygons((slides, layer), (truth, truth_layer), scene=scene, aoi=aoi)
    if scene is not None:
        raise OptionError(f"--scene {scene} is for a truth of polygons: the raster {truth} has an outline of its own")
    with _open(truth) as dataset:
        return _against_raster(slides, layer, dataset, aoi)


def _choose_layer(path: str | Path, layer: str | None) -> str:
    names = spatial_layers(path)
    if layer is None:
        return LAYER if LAYER in names else names[0]
    return layer


def _is_raster(path: str | Path) -> bool:
    try:
        with _env(path), open_raster(str(path)):
            return True
    except RasterioError:
        return False


@contextmanager
def _open(path: str | Path) -> Iterator[rasterio.DatasetReader]:
    with _env(path):
        try:
            dataset = open_raster(str(path))
        except RasterioError as error:
            raise SceneError(f"{path} cannot be read as a raster: {in_words(error)}") from error
        with dataset:
            try:
                yield dataset
            except RasterioError as error:
                raise SceneError(f"{path} cannot be read: {in_words(error)}") from error


@contextmanager
def _env(path: str | Path) -> Iterator[None]:
    with rasterio.Env(**settings(str(path))), warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        yield


def _grid(dataset: rasterio.DatasetReader) -> Grid:
    crs = None if dataset.crs is None else pyproj.CRS.from_wkt(dataset.crs.to_wkt())
    transform = dataset.transform
    if crs is None and transform == Affine.identity():
        transform = Affine(1, 0, 0, 0, -1, 0)  # pixels counted downwards, as scenes without CRS have them
    return Grid(crs, transform, dataset.height, dataset.width)


# --- truth as a raster -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Shared:
    """Where the true landslides of one block and the polygons meet."""

    spans: Spans
    """True landslides."""
    pairs: Int64Array
    """(N, 2) span of this block and polygon, counted from 1, that share pixels."""
    pixels: Int64Array
    """(N,) how many."""


def _against_raster(
    slides: str | Path, layer: str, dataset: rasterio.DatasetReader, aoi: str | Path | None
) -> Evaluation:
    grid = _grid(dataset)
    polygons = shapely.STRtree(in_pixels(read_polygons(slides, grid.crs, layer).geometry.to_numpy(), grid))
    region = None if aoi is None else read_aoi(aoi, grid.crs)
    if region is not None:
        region = shapely.STRtree(in_pixels(np.array([region]), grid))
    number_of = np.arange(1, len(polygons) + 1, dtype=np.int32)
    areas, sizes, meetings = Confusion(), np.zeros(len(polygons) + 1, np.int64), []
    for window in BlockGrid(grid.height, grid.width, BLOCK):
        true, valid = _read_truth(dataset, window)
        if region is not None:
            valid &= burn(region, np.ones(1, np.uint8), window) > 0
        numbers = burn(polygons, number_of, window)
        areas += Confusion.of(numbers > 0, true, valid)
        sizes += np.bincount(numbers.reshape(-1), minlength=len(sizes))
        meetings.append(_meet(Spans.of_mask(true & valid, window), numbers, window))
    if areas.tp + areas.fn == 0:
        log.warning("%s holds no landslide: these are pixels of value %d", dataset.name, LANDSLIDE)
    pixel_ha = math.nan if grid.crs is None else math.prod(grid.pixel_size_m()) / 10_000
    return Evaluation(
        areas=areas,
        objects=_overlaps(meetings, sizes[1:]).scores(),
        true_ha=(areas.tp + areas.fn) * pixel_ha,
        predicted_ha=(areas.tp + areas.fp) * pixel_ha,
    )


def _read_truth(dataset: rasterio.DatasetReader, window: Window) -> tuple[BoolArray, BoolArray]:
    """Which pixels are landslide, and which were judged."""
    values = dataset.read(1, window=((window.row, window.bottom), (window.col, window.right)))
    valid = (values != UNKNOWN) & np.isfinite(values)
    # many masks declare their background as nodata; nobody means by it that the whole background is unknown
    if dataset.nodata not in (None, 0):
        valid &= values != dataset.nodata
    return values == LANDSLIDE, valid


def _meet(spans: Spans, numbers: Int32Array, window: Window) -> _Shared:
    base = int(numbers.max(initial=0)) + 1
    under = numbers.reshape(-1)[spans.pixels(window)].astype(np.int64)
    keys = np.repeat(np.arange(len(spans)), spans.lengths) * base + under
    met, pixels = np.unique(keys[under > 0], return_counts=True)
    return _Shared(spans, np.stack(np.divmod(met, base), axis=1), pixels)


def _overlaps(meetings: list[_Shared], polygon_area: Int64Array) -> Overlaps:
    """Join the true landslides of all blocks, and add up what polygons share with them."""
    spans, joined = join([part.spans for part in meetings])
    labels, count = spans.components(4)
    first = np.cumsum([0, *(len(part.spans) for part in meetings)])
    true = labels[joined[np.concatenate([part.pairs[:, 0] + n for part, n in zip(meetings, first, strict=False)])]]
    polygon = np.concatenate([part.pairs[:, 1] for part in meetings]) - 1
    pixels = np.concatenate([part.pixels for part in meetings])
    pairs, inverse = np.unique(np.stack([true, polygon], axis=1), axis=0, return_inverse=True)
    return Overlaps(
        true_area=total(spans.lengths, labels, count),
        true_covered=total(pixels, true, count),
        polygon_area=polygon_area,
        polygon_correct=total(pixels, polygon, len(polygon_area)),
        pairs=pairs,
        shared=total(pixels, inverse.reshape(-1), len(pairs)),
    )


# --- truth as polygons -----------------------------------------------------------------------------------------------


def _against_polygons(
    slides: tuple[str | Path, str], truth: tuple[str | Path, str], *, scene: str | Path | None, aoi: str | Path | None
) -> Evaluation:
    plane = _plane(truth, slides)
    extent = _extent(plane, scene, aoi)
    predicted, true = (_inside(read_polygons(path, plane, layer), extent) for path, layer in (slides, truth))
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


def _plane(*sources: tuple[str | Path, str]) -> pyproj.CRS | None:
    """An equal-area projection around the middle of the first layer that has features, in that layer's own datum.

    None where a layer has no place on Earth: coordinates are compared as they are.
    """
    infos = [layer_info(path, layer) for path, layer in sources]
    systems = [None if info["crs"] is None else pyproj.CRS(info["crs"]) for info in infos]
    on_earth = [crs for crs in systems if crs is not None and crs.geodetic_crs is not None]
    if len(on_earth) < len(systems):
        return None
    filled = [(info, crs) for info, crs in zip(infos, on_earth, strict=True) if info["features"]]
    if not filled:
        return on_earth[0]
    info, crs = filled[0]
    left, bottom, right, top = info["total_bounds"]
    to_lonlat = pyproj.Transformer.from_crs(crs, crs.geodetic_crs, always_xy=True)
    lon, lat = to_lonlat.transform((left + right) / 2, (bottom + top) / 2)
    if not (math.isfinite(lon) and math.isfinite(lat)):
        raise VectorError(f"the polygons around {(left, bottom, right, top)} lie outside what {crs.name} can map")
    return ProjectedCRS(LambertAzimuthalEqualAreaConversion(lat, lon), geodetic_crs=crs.geodetic_crs)


def _extent(plane: pyproj.CRS | None, scene: str | Path | None, aoi: str | Path | None) -> shapely.Geometry | None:
    parts = [] if aoi is None else [read_aoi(aoi, plane)]
    if scene is not None:
        with _open(scene) as dataset:
            grid = _grid(dataset)
        outline = gpd.GeoDataFrame(geometry=[grid.outline], crs=grid.crs)
        parts.append(in_crs(outline, plane, scene).geometry[0])
    return shapely.intersection_all(parts) if parts else None


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

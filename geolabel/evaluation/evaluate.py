"""Score an inventory against a truth: a raster of labels, or another inventory."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pyproj
import shapely

from geolabel.errors import OptionError, SceneError, VectorError
from geolabel.evaluation.scene_scores import covered, extent_of, plane_of, regions
from geolabel.geodesy import near
from geolabel.io.read.features import choose_layer, layer_info, read_aoi, read_polygons, spatial_layers
from geolabel.io.read.label_rasters import LabelRaster, grid_of, is_raster, is_unplaced
from geolabel.io.write.rasters import in_pixels, rasterize
from geolabel.io.write.vectors import provenance_of
from geolabel.labels import BACKGROUND, IGNORE, choose_classes
from geolabel.metrics import Confusion, ObjectScores, Overlaps
from geolabel.polygons import shared_areas
from geolabel.scene import span
from geolabel.spans import Spans, join, total
from geolabel.tiles import BlockGrid, Window
from geolabel.types import AnyArray, BoolArray, Int32Array, Int64Array

log = logging.getLogger(__name__)

LANDSLIDE = 1
"""Value of landslides in a truth raster without class names; all other values are background."""

NAME = "landslide"
"""Name of the class in a raster with class names."""

BLOCK = 2048
"""Side in pixels of the blocks in which a truth raster is read."""

_Source = tuple[str | Path, str | None]
"""A vector file and its layer, if named."""

CLASS = "class"
"""Column with the class of a polygon."""

LAYER = "landslides"
"""Layer to score, if the file has one of this name."""


@dataclass(frozen=True)
class Evaluation:
    """Figures of one inventory."""

    areas: Confusion
    """Areas in pixels of the truth raster, or in square metres."""
    objects: ObjectScores
    true_ha: float
    """Hectares of true landslide; NaN without a CRS."""
    predicted_ha: float
    classes: Mapping[str, Evaluation] = field(default_factory=dict)
    """Figures of each class, if several are compared; those above are then of all together."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values; None if undefined.

        Several classes have their own figures under ``classes``, and the mean of shares, over the classes where they
        are defined, under ``mean``.
        """
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
        figures: dict[str, Any] = {key: None if math.isnan(value) else value for key, value in values.items()}
        if self.classes:
            figures["classes"] = {name: one.as_dict() for name, one in self.classes.items()}
            figures["mean"] = {name: _mean([one[name] for one in figures["classes"].values()]) for name in SHARES}
        return figures


SHARES = (
    "overall_accuracy",
    "precision",
    "recall",
    "f1",
    "iou",
    "miou",
    "kappa",
    "found",
    "right",
    "object_precision",
    "object_recall",
    "object_f1",
)
"""Figures with a mean over classes."""


def _mean(values: Sequence[float | None]) -> float | None:
    defined = [value for value in values if value is not None]
    return sum(defined) / len(defined) if defined else None


def evaluate(
    slides: str | Path,
    truth: str | Path,
    *,
    layer: str | None = None,
    truth_layer: str | None = None,
    scene: str | Path | None = None,
    aoi: str | Path | None = None,
    aoi_layer: str | None = None,
    classes: Sequence[str] = (),
) -> Evaluation:
    """Score the polygons of one file against the truth in another.

    A raster is compared pixel by pixel, except unknown pixels; see `geolabel.io.read.label_rasters`. Its landslides are
    4-connected regions of value 1, of the class named landslide, or of white on 0. Polygons are compared by exact areas
    in an equal-area projection, and their landslides are connected regions too, however they are split into features.
    Their background is only bounded by `scene` or `aoi`; without, figures that need it are undefined (accuracy, kappa,
    mean IoU). Everything outside is ignored.

    Classes are compared one by one if both sides name them and share a name: polygons in a column ``class``, rasters in
    their band tags ``class_K``. All classes of either side are compared or, if the truth is a raster, which may have
    more classes than were requested, those of the polygons and of their run.

    Parameters
    ----------
    slides
        Predicted polygons.
    truth
        Raster or polygons.
    layer, truth_layer
        By default ``landslides``, or the only layer of polygons.
    scene
        For a truth of polygons: the raster whose outline bounds the comparison. For a truth raster without
        georeference: a georeferenced raster of the same size and place.
    aoi, aoi_layer
        Polygons: only the area inside is compared. See `geolabel.io.read.features.read_aoi`.
    classes
        Names of the classes to compare.

    Raises
    ------
    VectorError
        If polygons cannot be read.
    SceneError
        If a raster cannot be read or interpreted, or does not intersect the polygons.
    OptionError
        If `scene` is given with a georeferenced truth raster, or a class with a side that does not have it.
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
        return _against_polygons((slides, layer), (truth, truth_layer), scene=scene, aoi=area, wanted=classes)
    if scene is not None and not is_unplaced(grid_of(truth)):
        raise OptionError(f"--scene {scene} is for a truth of polygons: the raster {truth} has its own outline")
    raster = LabelRaster.open(truth, scene=None if scene is None else grid_of(scene))
    return _against_raster((slides, layer), raster, area, classes)


@dataclass(frozen=True)
class _Polygons:
    """N polygons and their classes."""

    outlines: AnyArray
    names: AnyArray | None
    """(N,) class of each; None if the file has no classes."""

    @classmethod
    def of(cls, features: gpd.GeoDataFrame) -> _Polygons:
        """Take polygons from features; one without a class is a landslide."""
        names = features[CLASS].astype(object).where(features[CLASS].notna(), NAME) if CLASS in features else None
        outlines = np.asarray(features.geometry.to_numpy(), object)
        return cls(outlines, None if names is None else np.array([str(name) for name in names], object))

    def __getitem__(self, index: BoolArray) -> _Polygons:
        return _Polygons(self.outlines[index], None if self.names is None else self.names[index])

    def with_outlines(self, outlines: AnyArray) -> _Polygons:
        """The same with other outlines."""
        return _Polygons(outlines, self.names)

    def of_classes(self, *classes: str) -> AnyArray:
        """Outlines of these classes; all if the file has no classes."""
        return self.outlines if self.names is None else self.outlines[np.isin(self.names, classes)]

    @property
    def classes(self) -> set[str]:
        """All class names."""
        return set() if self.names is None else set(self.names.tolist())


def _compared(
    slides: str | Path, predicted: set[str], truth: str | Path, true: set[str], wanted: Sequence[str], *, raster: bool
) -> tuple[str, ...]:
    """Classes to compare one by one; empty to compare without classes."""
    if wanted:
        for path, names in ((slides, predicted), (truth, true)):
            if not names:
                raise OptionError(f"class {wanted[0]}: {path} has no classes; omit it, or add a column {CLASS}")
        return choose_classes(sorted(predicted | true), wanted, f"{slides} and {truth}")
    if not predicted & true:
        if len(predicted) > 1 and true:
            log.warning(
                "no class of %s (%s) is one of %s (%s): they are compared as one class",
                slides,
                ", ".join(sorted(predicted)),
                truth,
                ", ".join(sorted(true)),
            )
        return ()
    classes = predicted if raster else predicted | true
    return tuple(sorted(classes)) if len(classes) > 1 else ()


def _per_class(classes: tuple[str, ...], compare: Callable[..., Evaluation]) -> Evaluation:
    """Figures of all classes together, and of each if there are several."""
    together = compare(*classes)
    if len(classes) < 2:
        return together
    return replace(together, classes={name: compare(name) for name in classes})


# --- truth as a raster -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Shared:
    """Overlaps of the true landslides of a block and the polygons."""

    spans: Spans
    """True landslides."""
    covered: Int64Array
    """(S,) pixels of each span under any polygon."""
    pairs: Int64Array
    """(N, 2) span of this block and polygon, numbered from 1, that share pixels."""
    pixels: Int64Array
    """(N,) number of shared pixels."""


def _against_raster(
    slides: tuple[str | Path, str], truth: LabelRaster, aoi: _Source | None, wanted: Sequence[str]
) -> Evaluation:
    polygons = _polygons_on(slides, truth)
    searched = None if polygons.names is None else provenance_of(slides[0]).get("classes")
    predicted = polygons.classes | set(map(str, searched if isinstance(searched, list) else []))
    known = {name: value for value, name in truth.classes.items() if name != BACKGROUND} if truth.named else {}
    classes = _compared(slides[0], predicted, truth.path, set(known), wanted, raster=True)
    if not classes:
        return _raster_figures(polygons.outlines, truth, [_landslide(truth)], aoi)

    def compare(*names: str) -> Evaluation:
        values = [known[name] for name in names if name in known]
        return _raster_figures(polygons.of_classes(*names), truth, values, aoi)

    return _per_class(classes, compare)


def _raster_figures(polygons: AnyArray, truth: LabelRaster, values: Sequence[int], aoi: _Source | None) -> Evaluation:
    """Figures of polygons, in pixels, against pixels with these values."""
    grid = truth.grid
    layers = [shapely.STRtree(polygons[members]) for members in _layers(polygons)]
    number_of = [(members + 1).astype(np.int32) for members in _layers(polygons)]
    area = [] if aoi is None else [read_aoi(aoi[0], grid.crs, aoi[1], grid=grid)]
    region = shapely.STRtree(in_pixels(np.array(area, object), grid))
    areas, burnt, judged = Confusion(), *np.zeros((2, len(polygons) + 1), np.int64)
    meetings = []
    for window in BlockGrid(grid.height, grid.width, BLOCK):
        labels, valid = truth.read(window)
        true = np.isin(labels, values)
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
        also = "" if truth.nodata is None else f"; {truth.nodata:g} is nodata there and not compared"
        names = " or ".join(truth.classes.get(value, NAME) if truth.named else NAME for value in values) or "such class"
        shown = " or ".join(map(str, values)) or "no"
        log.warning("%s holds no %s: these are pixels of value %s%s", truth.path, names, shown, also)
    # area outside known pixels is ignored; a polygon smaller than a pixel is counted, and wrong
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
            f"{truth.path} holds {truth.listed()}, but landslides are the value {LANDSLIDE}, a class named {NAME} "
            f"(band tag class_K={NAME}), or 255 where all else is 0: give a raster of landslides"
        )
    if len(truth.classes) >= IGNORE and not truth.named:
        raise SceneError(f"{truth.path} holds {len(truth.classes)} values: give a raster of classes, not of objects")
    if truth.white:
        log.warning("%s holds 0 and %d: the latter is taken for landslide", truth.path, value)
    elif len(truth.classes) > 1 and not truth.named:
        log.warning(
            "%s holds the values %s: %d is landslide, the others are background", truth.path, truth.listed(), value
        )
    return value


def _polygons_on(slides: tuple[str | Path, str], truth: LabelRaster) -> _Polygons:
    """The polygons that intersect a raster, in its pixel coordinates.

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
            f"{truth.path} has no georeference, but the polygons of {path} are in {pyproj.CRS(own).name}: give --scene "
            "with a georeferenced raster of the same size and place"
        )
    table = _Polygons.of(features)
    polygons = near(table.outlines, grid.crs, grid.outline)
    here = np.asarray(shapely.area(shapely.intersection(polygons, grid.outline)) > 0)
    if len(here) and not here.any():
        raise SceneError(
            f"{truth.path} and the polygons of {path} do not intersect: the raster covers "
            f"{span(grid.outline.bounds)}, the polygons cover {span(features.total_bounds)}; a CRS or the coordinates "
            "may be wrong"
        )
    return table[here].with_outlines(in_pixels(polygons[here], grid))


def _layers(polygons: AnyArray) -> list[Int64Array]:
    """Split polygons into as few groups as possible without overlaps in a group."""
    one, other = shapely.STRtree(polygons).query(polygons, predicate="intersects")
    before = one > other
    one, other = one[before], other[before]
    overlap = shared_areas(polygons, polygons, (one, other)) > 0
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
    """Merge the true landslides of all blocks, and sum the overlaps of polygons with them."""
    spans, joined = join([part.spans for part in meetings])
    labels, count = spans.components(4)
    first = np.cumsum([0, *(len(part.spans) for part in meetings)])
    true = labels[joined[np.concatenate([part.pairs[:, 0] + n for part, n in zip(meetings, first, strict=False)])]]
    place = np.cumsum(counted) - 1  # new index of each counted polygon; those that overlap a true landslide are counted
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
    slides: tuple[str | Path, str],
    truth: tuple[str | Path, str],
    *,
    scene: str | Path | None,
    aoi: _Source | None,
    wanted: Sequence[str],
) -> Evaluation:
    plane = plane_of(truth, slides)
    extent = extent_of(plane, scene, aoi)
    layers = [read_polygons(path, plane, layer) for path, layer in (slides, truth)]
    predicted, true = (_inside(_Polygons.of(polygons), extent) for polygons in layers)
    _check_meet(predicted.outlines, true.outlines, slides[0], truth[0])
    classes = _compared(slides[0], predicted.classes, truth[0], true.classes, wanted, raster=False)
    if not classes:
        return _vector_figures(predicted.outlines, true.outlines, plane, extent)

    def compare(*names: str) -> Evaluation:
        return _vector_figures(predicted.of_classes(*names), true.of_classes(*names), plane, extent)

    return _per_class(classes, compare)


def _vector_figures(
    predicted: AnyArray, outlined: AnyArray, plane: pyproj.CRS | None, extent: shapely.Geometry | None
) -> Evaluation:
    """Figures of polygons against those of the truth, in an equal-area projection."""
    true = regions(outlined)
    all_predicted, all_true = shapely.union_all(predicted), shapely.union_all(true)
    tp = shapely.intersection(all_predicted, all_true).area
    areas = Confusion(
        tp=tp,
        fp=all_predicted.area - tp,
        fn=all_true.area - tp,
        tn=math.nan if extent is None else extent.area - all_predicted.area - all_true.area + tp,
    )
    pairs = shapely.STRtree(predicted).query(true, predicate="intersects").T
    shared = shared_areas(true, predicted, (pairs[:, 0], pairs[:, 1]))
    overlaps = Overlaps(
        true_area=shapely.area(true),
        true_covered=covered(true, all_predicted),
        polygon_area=shapely.area(predicted),
        polygon_correct=covered(predicted, all_true),
        pairs=pairs,
        shared=shared,
    )
    ha = math.nan if plane is None else 1e-4
    return Evaluation(areas, overlaps.scores(), true_ha=all_true.area * ha, predicted_ha=all_predicted.area * ha)


def _check_meet(predicted: AnyArray, true: AnyArray, slides: str | Path, truth: str | Path) -> None:
    """Warn if the sets are far apart: that may be correct, but a wrong CRS looks the same."""
    if len(predicted) and len(true):
        spans = [shapely.total_bounds(polygons) for polygons in (predicted, true)]
        if not shapely.box(*spans[0]).intersects(shapely.box(*spans[1])):
            log.warning(
                "no polygon of %s intersects one of %s: in metres from the middle they cover %s, and %s",
                slides,
                truth,
                *map(span, spans),
            )


def _inside(polygons: _Polygons, extent: shapely.Geometry | None) -> _Polygons:
    if extent is None:
        return polygons
    cut = shapely.intersection(polygons.outlines, extent)
    here = np.asarray(shapely.area(cut) > 0)
    return polygons[here].with_outlines(cut[here])

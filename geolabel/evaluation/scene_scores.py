"""Agreement of polygons with the landslides of scenes: counts that can be added over scenes, in equal-area planes."""

from __future__ import annotations

import math
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import geopandas as gpd
import numpy as np
import pyproj
import shapely
from pyproj.crs import ProjectedCRS
from pyproj.crs.coordinate_operation import LambertAzimuthalEqualAreaConversion
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from geolabel.errors import VectorError
from geolabel.evaluation.bench import Bench
from geolabel.evaluation.examples import Example, Examples
from geolabel.evaluation.scenes import (
    ELLIPSE,
    WITH_CANDIDATES,
    Answer,
    Mosaic,
    answer_scene,
    lay_mosaic,
    write_scene,
)
from geolabel.evaluation.steps import OURS, Case, Measurement
from geolabel.io.read.features import in_crs, layer_info, read_aoi, read_layer
from geolabel.io.read.label_rasters import grid_of
from geolabel.metrics import HALF, Boundary, Confusion, WidthCounts, object_widths, ratio
from geolabel.polygons import shared_areas
from geolabel.types import AnyArray, BoolArray, Float64Array, Int32Array, Int64Array

WITHOUT, CHIPS = " without ", "chips, "
"""Name parts of a mosaic's sets: all but one chip, and its chips one by one."""


# --- one scene -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Truth:
    """The landslides of a scene."""

    ids: Int32Array
    """(H, W) number of the landslide, from 1; 0 on other ground, negative where unknown."""
    minimum: int = 1
    """Minimum area in pixels of an object; smaller landslides count by area only."""

    @cached_property
    def objects(self) -> Int32Array:
        """(H, W) numbers of the landslides that are objects; 0 elsewhere."""
        ids = np.maximum(self.ids, 0)
        large = np.bincount(ids.ravel()) >= self.minimum
        large[0] = False
        kept: Int32Array = np.where(large[ids], ids, 0).astype(np.int32)
        return kept

    @cached_property
    def widths(self) -> Float64Array:
        """(N,) width of each object, pixels."""
        return object_widths(self.objects)


@dataclass(frozen=True)
class SceneScores:
    """Agreement of polygons with the landslides of some scenes: by area, outline, and object."""

    areas: Confusion = field(default_factory=Confusion)
    boundary: Boundary = field(default_factory=Boundary)
    widths: WidthCounts = field(default_factory=WidthCounts)
    """True landslides, and those at least half covered by predictions."""
    polygons: int = 0
    right: int = 0
    """Polygons at least half of which is landslide."""

    @classmethod
    def of(cls, answer: Answer, truth: Truth) -> Self:
        """Compare an answer with the truth on the same grid."""
        valid = answer.valid & (truth.ids >= 0)
        ids, true = np.where(truth.ids >= 0, answer.ids, 0), truth.ids > 0
        correct = _shares(ids, true)
        return cls(
            Confusion.of(ids > 0, true, valid),
            Boundary.of(ids > 0, true, valid),
            WidthCounts.of(truth.widths, _shares(truth.objects, ids > 0) >= HALF),
            len(correct),
            int((correct >= HALF).sum()),
        )

    @classmethod
    def from_plain(cls, values: dict[str, Any]) -> Self:
        """Inverse of `plain`."""
        widths = WidthCounts(**{name: tuple(counts) for name, counts in values["widths"].items()})
        parts = {"areas": Confusion(**values["areas"]), "boundary": Boundary(**values["boundary"]), "widths": widths}
        return cls(**(values | parts))

    def plain(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    def __add__(self, other: SceneScores) -> SceneScores:
        return SceneScores(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def figures(self) -> dict[str, float]:
        """Figures for a table."""
        objects = sum(self.widths.objects)
        return {
            "F1": self.areas.f1,
            "IoU": self.areas.iou,
            "precision": self.areas.precision,
            "recall": self.areas.recall,
            "boundary F1": self.boundary.f1,
            "object recall": ratio(sum(self.widths.found), objects),
            "landslides": objects,
            "polygons right": ratio(self.right, self.polygons),
            "polygons": self.polygons,
        }


def _shares(ids: Int32Array, mask: BoolArray) -> Float64Array:
    """(N,) share of each numbered object of (H, W) that is on a mask (H, W), by ascending number."""
    whole = np.bincount(ids.ravel())
    inside = np.bincount(ids.ravel(), weights=mask.ravel(), minlength=len(whole))
    present = np.flatnonzero(whole[1:]) + 1
    share: Float64Array = inside[present] / whole[present]
    return share


def judged(ids: Int32Array, truth: Int32Array) -> tuple[Int64Array, BoolArray]:
    """Ascending numbers of the polygons with a pixel's centre, and whether each is at least half landslide."""
    numbers = np.unique(ids[ids > 0]).astype(np.int64)
    return numbers, _shares(ids, truth > 0) >= HALF


def stated_confidence(answer: Answer, truth: Int32Array) -> list[tuple[float, bool]]:
    """Confidence of each polygon that has one, and whether at least half of the polygon is landslide."""
    if answer.confidence is None:
        return []
    numbers, right = judged(answer.ids, truth)
    stated = answer.confidence[numbers - 1]
    return [(round(float(c), 6), bool(r)) for c, r in zip(stated, right, strict=True) if np.isfinite(c)]


def false_alarms(answer: Answer) -> dict[str, float]:
    """Area and number of polygons in a scene without landslides, per valid area."""
    km2 = np.count_nonzero(answer.valid) * answer.gsd**2 / 1e6
    predicted = np.count_nonzero((answer.ids > 0) & answer.valid) * answer.gsd**2
    return {"ha per km2": ratio(predicted / 1e4, km2), "polygons per km2": ratio(int(answer.ids.max()), km2)}


# --- sets of scenes --------------------------------------------------------------------------------------------------


Baselines = Callable[[Example], dict[str, Int32Array]]
"""Numbered polygons (H, W) of further baselines for one image, by method."""


def probability_case(probability: float, truth: bool) -> Case:
    """One case of a reliability curve, as plain values."""
    return {"said": round(probability, 6), "true": truth}


@dataclass
class SceneSets:
    """Figures of sets of scenes, and of each scene."""

    measured: list[Measurement] = field(default_factory=list)
    cases: dict[str, list[Case]] = field(default_factory=dict)

    def add(self, name: str, gsd: float, scored: Sequence[tuple[str, dict[str, SceneScores]]]) -> None:
        """Add a set of named scenes, with their scores by method."""
        pooled: dict[str, SceneScores] = defaultdict(SceneScores)
        for _, scores in scored:
            for method, one in scores.items():
                pooled[method] = pooled[method] + one
        self.measured += [Measurement(name, method, one.figures()) for method, one in pooled.items()]
        self.cases[name] = [scene_case(image, gsd, scores) for image, scores in scored]


def scene_case(name: str, gsd: float, scores: dict[str, SceneScores]) -> Case:
    """Scores of one scene by method, as plain values."""
    areas = scores[OURS].areas
    # without a landslide, IoU is meaningless
    iou = round(areas.iou, 4) if areas.tp + areas.fn else None
    return {"name": name, OURS: iou, "gsd": gsd, "tallies": {method: one.plain() for method, one in scores.items()}}


def measure_scenes(
    bench: Bench,
    sets: SceneSets,
    name: str,
    items: Examples,
    gsd: float,
    more: Baselines | None = None,
    minimum: int = 1,
) -> None:
    """Extract each image of a set as a separate scene, and compare the answers of all methods with the truth.

    Parameters
    ----------
    gsd
        Metres per pixel of the scenes.
    minimum
        Minimum area in pixels of a landslide that counts as an object.
    """
    scored, stated, gates = [], [], []
    with tempfile.TemporaryDirectory(prefix="geolabel-") as folder:
        for example in bench.track(items, f"scenes, {name}"):
            path = write_scene(Path(folder) / "scene.tif", example, gsd)
            found = answer_scene(path, bench.networks, bench.parameters)
            valid = found.by_method[OURS].valid
            others = {method: Answer(ids, valid, gsd) for method, ids in (more(example) if more else {}).items()}
            truth = Truth(example.ids, minimum)
            scored.append((example.name, {m: SceneScores.of(a, truth) for m, a in (found.by_method | others).items()}))
            pairs = stated_confidence(found.by_method[WITH_CANDIDATES], example.ids)
            stated += [probability_case(*pair) for pair in pairs]
            gates.append(probability_case(found.gate, bool(example.truth.any())))
    sets.add(name, gsd, scored)
    sets.cases |= {f"confidence, {name}": stated, f"gate, {name}": gates}


def measure_mosaic(
    bench: Bench, sets: SceneSets, name: str, items: Iterable[Example], gsd: float, *, by_chip: bool
) -> None:
    """Extract chips laid side by side as one scene.

    Parameters
    ----------
    gsd
        Metres per pixel of the scene.
    by_chip
        Whether to evaluate it also without the chip with the most landslide, and chip by chip.
    """
    with tempfile.TemporaryDirectory(prefix="geolabel-") as folder:
        path = Path(folder) / "mosaic.tif"
        mosaic = lay_mosaic(items, path, gsd)
        answers = answer_scene(path, bench.networks, bench.parameters).by_method
    answers |= {ELLIPSE: Answer(mosaic.ellipses(), answers[OURS].valid, gsd)}
    truth = Truth(mosaic.ids)
    sets.add(name, gsd, [(name, {method: SceneScores.of(answer, truth) for method, answer in answers.items()})])
    pairs = stated_confidence(answers[WITH_CANDIDATES], mosaic.ids)
    sets.cases[f"confidence, {name}"] = [probability_case(*pair) for pair in pairs]
    if by_chip:
        chip, share = mosaic.heaviest()
        rest = Truth(mosaic.without(chip))
        scores = {method: SceneScores.of(answer, rest) for method, answer in answers.items()}
        sets.add(f"{name}{WITHOUT}{chip}, {share:.0%} of its landslide pixels", gsd, [(chip, scores)])
        sets.cases[f"{CHIPS}{name}"] = [scene_case(chip, gsd, _areas(answers, mosaic, chip)) for chip in mosaic.places]


def _areas(answers: dict[str, Answer], mosaic: Mosaic, chip: str) -> dict[str, SceneScores]:
    """Scores by area of one chip, whose frame clips polygons and landslides."""
    place = mosaic.places[chip].slices
    true = mosaic.ids[place] > 0
    return {m: SceneScores(Confusion.of(a.ids[place] > 0, true, a.valid[place])) for m, a in answers.items()}


TOUCHING = 1e-3
"""Tolerance in metres, or units without CRS, for shared edges; reprojection moves edges by less."""


def regions(polygons: AnyArray) -> AnyArray:
    """(T,) connected regions of polygons, as in a raster of them.

    Parts of a multipolygon are separate regions; polygons that overlap or share an edge are one, those that meet at a
    corner are not.
    """
    parts = shapely.get_parts(polygons)
    one, other = shapely.STRtree(parts).query(parts, predicate="dwithin", distance=TOUCHING)
    pairs = one < other
    one, other = one[pairs], other[pairs]
    # a common edge has a length: around a corner, two polygons share only a few squares of the tolerance
    common = shared_areas(shapely.buffer(parts, TOUCHING), parts, (one, other))
    edge = common > 4 * TOUCHING**2
    graph = coo_array((np.ones(edge.sum(), bool), (one[edge], other[edge])), shape=(len(parts), len(parts)))
    count, region = connected_components(graph, directed=False)
    order = np.argsort(region, kind="stable")
    groups = np.split(parts[order], np.searchsorted(region[order], np.arange(1, count)))
    return np.array(
        [group[0] if len(group) == 1 else shapely.union_all(group) for group in groups if len(group)], object
    )


def plane_of(*sources: tuple[str | Path, str]) -> pyproj.CRS | None:
    """An equal-area projection centred on the first layer with features, in that layer's datum.

    None if a layer has no CRS, or a local one: coordinates are compared untransformed.
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
        raise VectorError(f"the polygons around {(left, bottom, right, top)} are outside the area of {crs.name}")
    middle = lon[1]
    if lon[2] - lon[0] > 180:  # across the antimeridian, where the mean longitude is on the other side of the Earth
        points = shapely.get_coordinates(read_layer(*sources[filled[0]], columns=()).geometry.to_numpy())
        east = np.exp(1j * np.radians(to_lonlat.transform(*points.T)[0]))
        middle = math.degrees(np.angle(east.mean()))
    return ProjectedCRS(LambertAzimuthalEqualAreaConversion(lat[1], middle), geodetic_crs=crs.geodetic_crs)


def extent_of(
    plane: pyproj.CRS | None, scene: str | Path | None, aoi: tuple[str | Path, str | None] | None
) -> shapely.Geometry | None:
    """The compared area: the outline of a scene, an area of interest, or their intersection; None for everything.

    Raises
    ------
    VectorError
        If they do not intersect.
    """
    parts = [] if aoi is None else [read_aoi(aoi[0], plane, aoi[1])]
    if scene is not None:
        grid = grid_of(scene)
        outline = gpd.GeoDataFrame(geometry=[grid.outline], crs=grid.crs)
        parts.append(in_crs(outline, plane, scene).geometry[0])
    if not parts:
        return None
    extent = shapely.intersection_all(parts)
    if extent.area == 0:
        raise VectorError(f"{aoi and aoi[0]} and {scene} do not intersect: a CRS or the coordinates may be wrong")
    return extent


def covered(polygons: AnyArray, cover: Any) -> AnyArray:
    """(K,) area of each polygon under a cover, computed per part of the cover."""
    parts = shapely.get_parts(cover)
    index, part = shapely.STRtree(parts).query(polygons, predicate="intersects")
    shared = shared_areas(polygons, parts, (index, part))
    return np.bincount(index, weights=shared, minlength=len(polygons))

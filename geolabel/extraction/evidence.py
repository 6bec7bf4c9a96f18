"""Supplementary evidence about polygons: slope, ground before the event, excluded ground, masks.

Polygons are measured on tiles of fixed size on the working grid, as sums of integers, so that the result does not
depend on blocks or workers. Polygons that the evidence contradicts become candidates, with a reason.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import shapely

from geolabel import terrain
from geolabel.engine.tasks import Bound, Pass
from geolabel.errors import TileError
from geolabel.extraction import before, heights
from geolabel.extraction.before import Before
from geolabel.extraction.heights import Heights
from geolabel.extraction.plan import Plan, Run
from geolabel.extraction.supplements import Supplements
from geolabel.extraction.vectorize import Objects
from geolabel.extraction.work import Work
from geolabel.io.columns import CHANGE, MASKED, SEEN, TERRAIN
from geolabel.io.read.features import read_exclusions
from geolabel.io.read.fingerprints import check_apart, fingerprint
from geolabel.io.read.scenes import SceneReader
from geolabel.parts import Recipe
from geolabel.polygons import covered_areas
from geolabel.spans import Spans, largest, pixel_sums, total
from geolabel.tiles import BlockGrid, Window
from geolabel.types import AnyArray, BoolArray, Int32Array, Int64Array, UInt8Array

log = logging.getLogger(__name__)

TILE_PX = 512
"""Side in pixels of the tiles for measurements, to bound memory."""

SHARE = 0.5
"""Minimum share of a polygon on excluded ground to exclude it, and with known heights to measure it."""

STRIP = 1 / 3
"""Minimum share of an outline along a mask for a polygon to count as cut by it: the rest is a strip along the mask."""

OTHER_GROUND, CUT, BEFORE, SLOPE, EXCLUDED, CONFIDENCE = "ground", "masked", "before", "slope", "excluded", "confidence"
"""Reasons of candidates: cut out by evidence, cut by a mask, bare before the event, gentler than the minimum slope, on
excluded ground, below the minimum confidence. Of several, the last of the first five is given."""

DECIDED = "reviewed"
"""Reason of candidates that share ground with polygons that a person has decided about."""

BARE_BEFORE, UNCHANGED = 0.6, 1.5
"""Minimum activation before the event, and maximum change, of a polygon that was bare before. Chosen on synthetic
pairs; docs/experiments.md says what they reject on others. A reactivated landslide has changed more."""


@dataclass(frozen=True)
class Evidence:
    """Supplementary data on one working grid."""

    heights: Heights | None = None
    before: Before | None = None
    min_slope: float = 0.0
    """Degrees."""
    cut: bool = True
    """Whether to cut ground out of polygons."""
    excluded: AnyArray = field(default_factory=lambda: np.zeros(0, object))
    """(N,) polygons in the CRS of the grid."""
    given: Mapping[str, Any] = field(default_factory=dict)
    """Plain values for provenance."""
    event_after: str | None = None
    event_before: str | None = None
    """ISO 8601 dates of the interval with the event, instead of those of the images."""

    @property
    def readers(self) -> list[SceneReader]:
        """The rasters."""
        own = [] if self.heights is None else [self.heights.reader.reader]
        own += [] if self.before is None else [layer.reader.reader for layer in self.before.layers]
        return [*own, *(mask.reader.reader for reader in own for mask in reader.masks)]


NO_EVIDENCE = Evidence()


def open_evidence(supplements: Supplements, plans: Sequence[Plan]) -> list[Evidence]:
    """Open supplementary data on the grid of each plan.

    Raises
    ------
    SceneError
        See `geolabel.extraction.heights.open_heights` and `geolabel.extraction.before.open_before`.
    VectorError
        If the polygons cannot be read.
    """
    areas = [
        np.zeros(0, object) if supplements.exclude is None else read_exclusions(supplements.exclude, plan.grid)
        for plan in plans
    ]
    if supplements.exclude is not None and not any(map(len, areas)):
        log.warning("%s has no polygon on the scenes: nothing is excluded", supplements.exclude)
    models: list[Heights | None] = [None] * len(plans)
    if supplements.dem is not None:
        models = heights.open_heights(supplements.dem, plans)
    scenes: list[Before | None] = [None] * len(plans)
    if supplements.befores:
        masks, register = supplements.before_masks, supplements.register
        scenes = before.open_before(supplements.befores, plans, masks=masks, register=register)
    least, given = 0.0 if supplements.min_slope is None else supplements.min_slope.value, supplements.as_dict()
    return [
        Evidence(
            model,
            scene,
            least,
            supplements.cut,
            area,
            given | ({} if scene is None else {"change": scene.as_dict()}),
            supplements.event_after,
            supplements.event_before,
        )
        for model, scene, area in zip(models, scenes, areas, strict=True)
    ]


def check_evidence(evidence: Sequence[Evidence], outputs: Sequence[Path]) -> dict[str, Any]:
    """Plain values for the run key: what the records of a run depend on besides the scenes.

    Raises
    ------
    OutputError
        If an output is one of the files of the evidence.
    """
    readers = [reader for known in evidence for reader in known.readers]
    for reader in readers:
        check_apart(outputs, reader)
    marks = [known.before.marks for known in evidence if known.before is not None]
    return {"evidence": [*map(fingerprint, readers), *marks]} if readers else {}


# --- measuring -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LayerSums:
    """Exact sums and maxima of layers of integers over the pixels of K objects, or of those in one tile."""

    labels: Int32Array
    """(K,) numbers of the objects."""
    totals: Int64Array
    """(L, K)"""
    maxima: Int64Array
    """(L, K)"""
    failures: tuple[str, ...] = ()
    """Failed reads."""


Job = tuple[Window, Window, Spans, Int32Array]
"""A tile, the window in it with pixels of objects, their spans, and the object of each span."""

GROUND = "ground"
"""Kind of the records with outputs of the evidence head in the core of a localizer tile, by tile number."""

LEVELS = 254
"""Quantisation of a probability p in these records: ``1 + round(p * LEVELS)``; 0 is unknown."""


def measure(work: Work, objects: Objects, evidence: Evidence) -> dict[str, AnyArray]:
    """Columns of `geolabel.io.columns` from evidence and masks, for objects; NaN if unknown.

    Also ``event_after`` and ``activity``, None if unknown.
    """
    plan = work.run.plan
    names = (*TERRAIN, *CHANGE, *SEEN, *MASKED)
    columns: dict[str, AnyArray] = {name: np.full(objects.count, np.nan) for name in names}
    columns["event_after"] = np.full(objects.count, evidence.event_after, object)
    columns["activity"] = np.full(objects.count, None, object)
    if plan.reader.masks:
        tiles = list(BlockGrid(plan.grid.height, plan.grid.width, TILE_PX))
        sums, _ = _summed(work, objects, _CUT.bind(plan), _shares(tiles, tiles, objects), ("cut",))
        columns["masked_edge"] = np.round(sums["cut"] / _edges(objects), 6)
    if evidence.heights is not None:
        tiles = list(BlockGrid(plan.grid.height, plan.grid.width, TILE_PX))
        step = _MEASURE.bind(plan, evidence.heights)
        sums, most = _summed(work, objects, step, _shares(tiles, tiles, objects), heights.TERRAIN_LAYERS)
        columns |= heights.terrain_columns(sums, most, sums["known"] >= SHARE * np.maximum(objects.areas, 1))
        falls = terrain.fall_lengths(objects.spans, objects.labels, columns["aspect_deg"], plan.grid)
        ratio = columns["relief_m"] / np.where(falls > 0, falls, np.nan)
        columns["h_over_l"] = np.round(ratio, 6)
        heads = _HEAD.bind(plan, evidence.heights)
        tops = _with_floors(_shares(tiles, tiles, objects), heights.head_floors(most))
        sums, _ = _summed(work, objects, heads, tops, ("head", "curvature"))
        bent = sums["curvature"] / (np.maximum(sums["head"], 1) * heights.MICRO)
        columns["upslope_curvature"] = np.where(np.isnan(columns["relief_m"]), np.nan, np.round(bent, 6))
    cores = [plan.localize_tiles.core(index) for index in range(len(plan.localize_tiles))]
    if objects.ground is not None:
        jobs = _shares(list(plan.localize_tiles), cores, objects)
        sums, _ = _summed(work, objects, _WEIGH.bind(work.run), jobs, ("known", "levels"))
        known = sums["known"] >= SHARE * np.maximum(objects.areas, 1)
        means = (sums["levels"] / np.maximum(sums["known"], 1) - 1) / LEVELS
        columns["evidence"] = np.where(known, np.round(means, 6), np.nan)
    if evidence.before is not None:
        step = _COMPARE.bind(work.run, evidence.before)
        tiles = list(plan.localize_tiles)
        networks = [plan.localizer] if plan.localized else []
        sums, _ = _summed(work, objects, step, _shares(tiles, cores, objects), before.LAYERS, networks=networks)
        columns |= before.change_columns(sums, objects.areas, evidence.before, SHARE, localized=plan.localized)
        columns["activity"] = before.activity(columns["change_z"], columns["activation_before"])
        if evidence.event_after is None and any(evidence.before.dates):
            shown = [sums["seen"]]
            if len(evidence.before.layers) > 1:
                step, numbers = _SHOW.bind(plan, evidence.before), list(map(str, range(len(evidence.before.layers))))
                by_number, _ = _summed(work, objects, step, _shares(tiles, cores, objects), numbers)
                shown = list(by_number.values())
            columns["event_after"] = before.event_after(evidence.before, shown, objects.areas, SHARE)
    return columns


def _summed(
    work: Work,
    objects: Objects,
    step: Bound[LayerSums],
    jobs: Iterable[Job | tuple[Job, Int64Array]],
    layers: Sequence[str],
    networks: Sequence[Recipe] = (),
) -> tuple[dict[str, Int64Array], dict[str, Int64Array]]:
    """(K,) sums and maxima of each layer over all objects."""
    parts = list(work.apply(step, jobs, networks=networks))
    work.report.gaps += [message for part in parts for message in part.failures]
    labels = np.concatenate([np.zeros(0, np.int32), *(part.labels for part in parts)])
    none = np.zeros((len(layers), 0), np.int64)
    totals = np.concatenate([none, *(part.totals for part in parts)], axis=1)
    maxima = np.concatenate([none, *(part.maxima for part in parts)], axis=1)
    sums = {name: total(values, labels, objects.count) for name, values in zip(layers, totals, strict=True)}
    return sums, {name: largest(values, labels, objects.count) for name, values in zip(layers, maxima, strict=True)}


def _with_floors(jobs: Iterable[Job], floors: Int64Array) -> Iterator[tuple[Job, Int64Array]]:
    for job in jobs:
        yield job, floors[job[3]]


def _shares(tiles: Sequence[Window], cores: Sequence[Window], objects: Objects) -> Iterator[Job]:
    """Yield the part of each tile's core that belongs to objects, if any; cores do not overlap."""
    for tile, core in zip(tiles, cores, strict=True):
        spans, index = objects.spans.clip(core)
        window = spans.hull
        if window is not None:
            yield tile, window, spans, objects.labels[index]


def _measure_tile(plan: Plan, model: Heights, job: Job) -> LayerSums:
    return _sums_of(plan, job, partial(heights.terrain_layers, plan, model, job[1]), len(heights.TERRAIN_LAYERS))


def _head_tile(plan: Plan, model: Heights, given: tuple[Job, Int64Array]) -> LayerSums:
    """Number of pixels in the heads of objects, and their curvature; there is a floor for each span."""
    job, floors = given
    window, spans = job[1], job[2]
    return _sums_of(plan, job, lambda: heights.head_layers(plan, model, window, spans.paint(window, floors)), 2)


def _compare_tile(run: Run, scene: Before, job: Job) -> LayerSums:
    seen = _ground(run, job, "activation")
    return _sums_of(run.plan, job, partial(before.compare, run.plan, scene, *job[:2], seen), len(before.LAYERS))


def _weigh_tile(run: Run, job: Job) -> LayerSums:
    window = job[1]
    found = _ground(run, job, "evidence")
    levels = np.zeros((window.height, window.width), np.int32) if found is None else found.astype(np.int32)
    return _sums_of(run.plan, job, lambda: np.stack([(levels > 0).astype(np.int32), levels]), 2)


def _ground(run: Run, job: Job, name: str) -> UInt8Array | None:
    """(H, W) output of the evidence head in the window of a job; None if it did not process the tile."""
    tile, window, tiles = job[0], job[1], run.plan.localize_tiles
    index = tiles.number(tile)
    if not run.store.has(GROUND, index):
        return None
    values: UInt8Array = run.store.read(GROUND, index, name)[name]
    return values[window.within(tiles.core(index))]


def _show_tile(plan: Plan, scene: Before, job: Job) -> LayerSums:
    return _sums_of(plan, job, partial(before.shown_by, plan, scene, job[1]), len(scene.layers))


def _cut_tile(plan: Plan, job: Job) -> LayerSums:
    return _sums_of(plan, job, partial(_cuts, plan, job[1]), 1)


def _cuts(plan: Plan, window: Window) -> Int32Array:
    """(1, H, W) edges that each pixel of a window shares with pixels that masks hide."""
    around = Window(window.row - 1, window.col - 1, window.height + 2, window.width + 2)
    hidden = plan.reader.hidden(around, plan.grid).astype(np.int32)
    beside = hidden[:-2, 1:-1] + hidden[2:, 1:-1] + hidden[1:-1, :-2] + hidden[1:-1, 2:]
    return beside[None]


def _edges(objects: Objects) -> Int64Array:
    """(K,) pixel edges between each object and its surroundings."""
    spans, labels = objects.spans, objects.labels
    upper, lower = spans.touching(4)
    own = labels[upper] == labels[lower]
    upper, lower = upper[own], lower[own]
    shared = np.minimum(spans.stop[upper], spans.stop[lower]) - np.maximum(spans.start[upper], spans.start[lower])
    within = total(shared, labels[upper], objects.count)
    return total(2 * spans.lengths + 2, labels, objects.count) - 2 * within


def _sums_of(plan: Plan, job: Job, read: Callable[[], Int32Array], count: int) -> LayerSums:
    """Sum the layers (L, H, W) of a window; unreadable ones count as 0, unless that ends the run."""
    _, window, spans, labels = job
    present, local = np.unique(labels, return_inverse=True)
    failures: tuple[str, ...] = ()
    try:
        layers = read()
    except TileError as error:
        if plan.parameters.on_error == "fail":
            raise
        log.warning("%s", error)
        layers, failures = np.zeros((count, window.height, window.width), np.int32), (f"{window}: {error}",)
    sums = [pixel_sums(spans, window, layer) for layer in layers]
    return LayerSums(
        labels=present,
        totals=np.stack([total(totals, local, len(present)) for totals, _ in sums]),
        maxima=np.stack([largest(maxima, local, len(present)) for _, maxima in sums]),
        failures=failures,
    )


def _where_tile(*given: Any) -> str:
    return f"{given[-1][1]}"


_MEASURE = Pass("measure-terrain", _measure_tile, LayerSums, _where_tile)
_HEAD = Pass("measure-heads", _head_tile, LayerSums, lambda *given: f"{given[-1][0][1]}")
_CUT = Pass("cut", _cut_tile, LayerSums, _where_tile)
_WEIGH = Pass("weigh", _weigh_tile, LayerSums, _where_tile)
_SHOW = Pass("show", _show_tile, LayerSums, _where_tile)
_COMPARE = Pass("compare", _compare_tile, LayerSums, _where_tile)


# --- judging ---------------------------------------------------------------------------------------------------------


def reasons(
    polygons: gpd.GeoDataFrame, evidence: Evidence, asked: BoolArray, ground: BoolArray | None = None
) -> AnyArray:
    """(K,) why polygons are not landslides; None for those that the evidence does not contradict.

    Parameters
    ----------
    polygons
        In the CRS of the grid, with the columns of `measure`.
    asked : (K,)
        Which answer a prompt drawn by a person: these are not judged.
    ground : (K,)
        Which were cut out of others, see `geolabel.extraction.cutting`.
    """
    away = np.zeros(len(polygons), bool) if ground is None else ground
    gentle = polygons["slope_mean_deg"].to_numpy(float) < evidence.min_slope
    inside = _excluded(np.asarray(polygons.geometry.to_numpy(), object), evidence.excluded)
    bare = polygons["activation_before"].to_numpy(float) >= BARE_BEFORE
    same = polygons["change_z"].to_numpy(float) <= UNCHANGED
    cut = polygons["masked_edge"].to_numpy(float) >= STRIP
    found = np.full(len(polygons), None, object)
    for against, reason in (
        (away, OTHER_GROUND),
        (cut, CUT),
        (bare & same, BEFORE),
        (gentle, SLOPE),
        (inside, EXCLUDED),
    ):
        found[against & ~asked] = reason
    return found


def _excluded(outlines: AnyArray, areas: AnyArray) -> BoolArray:
    """(K,) outlines with at least `SHARE` of their area on excluded ground."""
    one, other = shapely.STRtree(areas).query(outlines, predicate="intersects")
    shared = shapely.intersection(outlines[one], areas[other])
    inside: BoolArray = covered_areas(shared, one, len(outlines)) >= SHARE * shapely.area(outlines)
    return inside

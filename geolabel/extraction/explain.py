"""Explain why a place is a landslide or not: the result of each step of `geolabel.extract` there."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyproj
import shapely
from scipy import ndimage

from geolabel.errors import OptionError
from geolabel.extraction.activation_maps import blend_activation, class_probability, reach, validity
from geolabel.extraction.evidence import NO_EVIDENCE, check_evidence
from geolabel.extraction.passes import MaskTable, MosaicSource, mask_crop
from geolabel.extraction.pipeline import find_scores, polygonize
from geolabel.extraction.plan import Plan, Run
from geolabel.extraction.request import Networks, Parameters, Reading
from geolabel.extraction.result import Part
from geolabel.extraction.scene_groups import parse_crs, prepare_scenes
from geolabel.extraction.supplements import Supplements
from geolabel.extraction.work import in_scratch
from geolabel.geodesy import reproject
from geolabel.io.read.fingerprints import check_apart
from geolabel.io.read.scene_inputs import list_scenes
from geolabel.masks import FULL, OUTSIDE
from geolabel.outputs import check_target
from geolabel.prompts import Prompts
from geolabel.scene import span
from geolabel.tiles import BlockGrid, TileGrid, Window, window_around
from geolabel.viewing.place import Place, write_place
from geolabel.viewing.preview import SUFFIXES, together_of

if TYPE_CHECKING:
    from geolabel.engine.tasks import Progress
    from geolabel.io.read.scene_inputs import Scenes
    from geolabel.parsing import Measure

log = logging.getLogger(__name__)

AROUND = 2
"""Tiles of the segmenter on every side of the place that are processed: the reach of its masks."""

EIGHT = np.ones((3, 3), bool)
"""Connectivity of a region, including diagonals (APSAM, eq. 2)."""


def explain(
    scene: Scenes,
    at: tuple[float, float],
    *,
    at_crs: str | None = None,
    out: str | Path | None = None,
    reading: Reading | None = None,
    networks: Networks | str | Path | None = None,
    parameters: Parameters | None = None,
    dem: str | Path | None = None,
    min_slope: Measure | None = None,
    exclude: str | Path | None = None,
    before: str | Path | Sequence[str | Path] | None = None,
    before_mask: str | Path | Sequence[str | Path | None] = (),
    register: bool = True,
    cut: bool = True,
    event_after: str | None = None,
    event_before: str | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Report the result of each step of `geolabel.extract` at one place, and which of them decides.

    The tiles around the place, and the stretch, are those of a run over the whole scene. A landslide larger than two
    tiles may be clipped.

    Parameters
    ----------
    at
        x and y of the place.
    at_crs
        CRS of `at`, such as EPSG:4326 for longitude and latitude; by default that of the scene.
    out
        Picture to write, PNG or JPEG: the scene, the activation with the prompts, the masks, the polygons.
    scene, reading, networks, parameters, dem, min_slope, exclude, before, before_mask, register, cut,
    event_after, event_before, progress
        As in `geolabel.extract`.
    overwrite
        Whether the picture may be replaced.

    Returns
    -------
    Plain values by name: ``verdict`` (landslide, candidate or nothing), ``why`` as text, and the result of each step.

    Raises
    ------
    OptionError
        If the place is outside all scenes.
    GeolabelError
        See `geolabel.errors`.

    Examples
    --------
    >>> import geolabel
    >>> geolabel.explain("scene.tif", (500_120.0, 2_999_850.0), out="place.png")["why"]  # doctest: +SKIP
    """
    reading = reading or Reading()
    scenes = list_scenes(scene, asset=reading.asset)
    supplements = Supplements(dem, min_slope, exclude, before, before_mask, register, cut, event_after, event_before)
    pictures = [] if out is None else [Path(out)]
    files = [one.source for one in scenes if isinstance(one.source, str | Path)]
    for path in pictures:
        inputs = [*supplements.inputs, *reading.inputs, *files]
        check_target(path, overwrite=overwrite, suffixes=SUFFIXES, inputs=inputs)
    groups = prepare_scenes(
        scenes,
        reading,
        Networks.of(networks),
        parameters or Parameters(),
        raster="the picture of a place",
        supplements=supplements,
    )
    for text in groups.warnings:
        log.warning("%s", text)
    (plan,), evidence = groups.plans, (*groups.evidence, NO_EVIDENCE)[0]
    for reader in (plan.reader, *(mask.reader.reader for mask in plan.reader.masks)):
        check_apart(pictures, reader)
    check_evidence(groups.evidence, pictures)
    row, col = _placed(plan, at, at_crs)
    near = _near(plan, row, col)
    row, col = row - near.row, col - near.col
    with in_scratch(_cropped(plan, near), progress) as work:
        tiles, prompts, masks = find_scores(work)
        objects, polygons = polygonize(work, masks, evidence=evidence)
        part = Part(polygons, prompts, tiles, objects, work.run, evidence)
        found = _Found.at(work.run, part, masks, row, col)
        figures = {"x": at[0], "y": at[1], **found.figures()}
        for path in pictures:
            write_place(path, _picture(work.run, part, found))
    return figures


# --- the place, and the part of the scene around it ------------------------------------------------------------------


def _placed(plan: Plan, at: tuple[float, float], at_crs: str | None) -> tuple[int, int]:
    """Row and column of a place on the working grid.

    Raises
    ------
    OptionError
        If it is outside.
    """
    grid, name = plan.grid, plan.reader.scene.name
    x, y = _moved(at, parse_crs(at_crs), grid.crs)
    col, row = ~grid.transform * (x, y)
    if 0 <= row < grid.height and 0 <= col < grid.width:
        return int(row), int(col)
    crs = "its pixels" if grid.crs is None else grid.crs.name
    raise OptionError(
        f"the place {at[0]:.10g},{at[1]:.10g} is not on {name}, which covers {span(grid.outline.bounds)} in "
        f"{crs}: give a place there, or its CRS with --at-crs, such as EPSG:4326 for longitude,latitude"
    )


def _moved(at: tuple[float, float], given: pyproj.CRS | None, crs: pyproj.CRS | None) -> tuple[float, float]:
    if given is None:
        return at
    if crs is None:
        raise OptionError(f"a scene without CRS cannot be located in {given.name}: omit --at-crs")
    point = reproject(np.array([shapely.Point(at)], object), given, crs)[0]
    return float(point.x), float(point.y)


def _near(plan: Plan, row: int, col: int) -> Window:
    """A window around a place, aligned with the tiles of both networks."""
    segment, localize = plan.segment_tiles, plan.localize_tiles
    step = math.lcm(segment.size - segment.overlap, localize.size - localize.overlap)
    margin = AROUND * max(segment.size, localize.size)

    def side(place: int, length: int) -> tuple[int, int]:
        first = max(0, (place - margin) // step * step)
        last = first + -(-(place + margin - first) // step) * step + max(segment.size, localize.size)
        return first, min(last, length) - first

    (top, height), (left, width) = side(row, plan.grid.height), side(col, plan.grid.width)
    return Window(top, left, height, width)


def _cropped(plan: Plan, window: Window) -> Plan:
    """The plan of a part of the grid, with tiles of the same sizes."""

    def tiles(whole: TileGrid) -> TileGrid:
        return replace(whole, height=window.height, width=window.width)

    return replace(
        plan,
        grid=plan.grid.crop(window),
        localize_tiles=tiles(plan.localize_tiles),
        segment_tiles=tiles(plan.segment_tiles),
        blocks=BlockGrid(window.height, window.width, plan.blocks.size),
    )


# --- results of the steps --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Localized:
    """Result of the localizer at a place."""

    class_name: str
    activation: int
    """Grey value 0..255."""
    probability: float
    """Maximum in the region of the place; at the place itself if it is in none."""
    in_region: bool
    """Whether the activation exceeds the threshold."""


@dataclass(frozen=True)
class _Answer:
    """A mask that contains the place, or answers a prompt whose box does."""

    prompt: int
    predicted_iou: float
    stability: float
    followed: bool
    score: float
    """Score of the mask at the place, 0 to 1."""


@dataclass(frozen=True)
class _Found:
    """Results of all steps at a place."""

    plan: Plan
    row: int
    col: int
    valid: bool
    localized: _Localized | None
    asked: tuple[int, ...]
    """Prompts whose box contains the place."""
    answers: tuple[_Answer, ...]
    score: float
    polygon: dict[str, Any] | None
    likely: bool

    @classmethod
    def at(cls, run: Run, part: Part, masks: Sequence[MaskTable], row: int, col: int) -> _Found:
        pixel = Window(row, col, 1, 1)
        valid = validity(run, pixel)
        asked = _asked(part.prompts, row, col)
        scores = [int(source.scores(pixel)[0, 0]) for source in MosaicSource.of_classes(run)]
        polygon, likely = _polygon_at(part, row, col)
        return cls(
            plan=run.plan,
            row=row,
            col=col,
            valid=valid is None or bool(valid[0, 0]),
            localized=_localized(run, row, col) if run.localized else None,
            asked=tuple(asked),
            answers=tuple(_answers(run, masks, frozenset(asked), row, col)),
            score=max((score for score in scores if score != OUTSIDE), default=0) / FULL,
            polygon=polygon,
            likely=likely,
        )

    @property
    def verdict(self) -> str:
        if self.polygon is None:
            return "nothing"
        return "landslide" if self.likely else "candidate"

    def figures(self) -> dict[str, Any]:
        """Plain values by name."""
        method, parameters = self.plan.method, self.plan.parameters
        figures: dict[str, Any] = {"verdict": self.verdict, "why": self.why(), "valid": self.valid}
        if self.localized is not None:
            figures |= {
                "class": self.localized.class_name,
                "activation": self.localized.activation,
                "activation_threshold": None if method.dense else method.activation_threshold,
                "activation_floor": None if method.dense else method.activation_floor,
                "probability": round(self.localized.probability, 4),
                "gate": method.gate,
            }
        figures["prompts"] = list(self.asked)
        figures["masks"] = [
            {**vars(one), **{name: round(vars(one)[name], 4) for name in ("predicted_iou", "stability", "score")}}
            for one in self.answers
        ]
        return figures | {
            "score": round(self.score, 4),
            "score_threshold": parameters.score_threshold,
            "min_confidence": parameters.min_confidence,
            "polygon": self.polygon,
        }

    def why(self) -> str:
        """The step that decides, as text."""
        if not self.valid:
            hidden = ", or a mask leaves it out" if self.plan.reader.masks else ""
            return f"nothing: there is no data at this place{hidden}"
        if self.polygon is not None:
            return self._of_polygon(self.polygon)
        if self.score >= self.plan.parameters.score_threshold:
            minimum = self.plan.parameters.min_area
            return f"a score of {self.score:.2f} is enough, but the polygon is smaller than the minimum area, {minimum}"
        covered = [one for one in self.answers if one.score >= self.plan.parameters.score_threshold]
        floor = self.plan.method.activation_floor
        if covered and self.localized is not None and floor and self.localized.activation <= floor:
            return (
                f"a mask holds this place, but its activation, {self.localized.activation} of 255, does not exceed the "
                f"activation floor, {floor}"
            )
        if self.answers:
            best = max(one.score for one in self.answers)
            return f"the masks of prompts nearby leave this place out: their best score here is {best:.2f}"
        return self._not_asked()

    def _of_polygon(self, polygon: dict[str, Any]) -> str:
        sure = polygon["confidence"]
        said = "of unknown confidence" if sure is None else f"with a confidence of {sure:.2f}"
        if self.likely:
            return f"a landslide of {polygon['area_m2']:.0f} m2, {said}"
        reason = polygon["reason"]
        if reason is None:
            return (
                f"a candidate: its confidence, {sure:.2f}, is below the minimum, {self.plan.parameters.min_confidence}"
            )
        return f"a candidate {said}, whose reason is {reason!r}"

    def _not_asked(self) -> str:
        found, method = self.localized, self.plan.method
        if found is None or self.plan.dense:
            return f"its score, {self.score:.2f}, is below the threshold, {self.plan.parameters.score_threshold}"
        if not found.in_region:
            return (
                f"its activation, {found.activation} of 255, does not exceed the threshold, "
                f"{method.activation_threshold}, so the segmenter is not asked"
            )
        if found.probability < method.gate:
            return (
                f"the class probability of the region, {found.probability:.2f}, is below the gate, {method.gate:g}, so "
                "the segmenter is not asked"
            )
        return "the segmenter was asked about the region, and none of its masks takes part"


def _localized(run: Run, row: int, col: int) -> _Localized:
    """Result for the class with the highest activation at a place."""
    plan = run.plan
    pixel, threshold = Window(row, col, 1, 1), plan.method.activation_threshold
    values = [int(blend_activation(run, pixel, k, lambda patch, _: patch)[0, 0]) for k in range(len(plan.classes))]
    best = int(np.argmax(values))
    binary = blend_activation(run, plan.grid.window, best, partial(reach, threshold)) > threshold
    labels, _ = ndimage.label(binary, EIGHT)
    inside = labels == labels[row, col] if binary[row, col] else np.zeros_like(binary)
    inside[row, col] = True
    probability = class_probability(run, plan.grid.window, best, inside)[inside].max() / 255
    return _Localized(plan.classes[best], values[best], float(probability), bool(binary[row, col]))


def _asked(prompts: Prompts, row: int, col: int) -> list[int]:
    """Numbers of the prompts whose box, or point if they have no box, is at a place."""
    x0, y0, x1, y1 = prompts.extents.T
    inside = (x0 <= col + 1) & (col <= x1) & (y0 <= row + 1) & (row <= y1)
    return [int(number) for number in prompts.ids[inside]]


def _answers(run: Run, masks: Sequence[MaskTable], asked: frozenset[int], row: int, col: int) -> Iterator[_Answer]:
    pixel = Window(row, col, 1, 1)
    for task, table in enumerate(masks):
        for k, number in enumerate(table.prompt_ids.tolist()):
            window, scores = mask_crop(run.store, task, k)
            score = int(scores[pixel.within(window)][0, 0]) if window.contains(pixel) else 0
            if score or number in asked:
                iou, stability = float(table.predicted_iou[k]), float(table.stability[k])
                yield _Answer(number, iou, stability, bool(table.followed[k]), score / FULL)


def _polygon_at(part: Part, row: int, col: int) -> tuple[dict[str, Any] | None, bool]:
    """Attributes of the polygon at a place, and whether it is a landslide; None without one."""
    place = shapely.box(col, row, col + 1, row + 1)
    place = shapely.transform(place, lambda xy: np.stack(part.plan.grid.transform * xy.T, axis=1))
    for table, likely in ((part.landslides, True), (part.candidates, False)):
        shared = shapely.area(shapely.intersection(table.geometry.to_numpy(), place))
        if len(shared) and shared.max() > 0:
            row_of = table.drop(columns=["geometry", "id"]).iloc[int(np.argmax(shared))]
            return {name: _plain(value) for name, value in row_of.items()}, likely
    return None, False


def _plain(value: Any) -> Any:
    if value is None or (np.isscalar(value) and pd.isna(value)):
        return None
    return value.item() if isinstance(value, np.generic) else value


# --- the picture -----------------------------------------------------------------------------------------------------


SHOWN = 512
"""Maximum side of the pictured area in pixels."""


def _picture(run: Run, part: Part, found: _Found) -> Place:
    """Contents of the picture: the surroundings of the place."""
    plan = run.plan
    window = window_around(found.row, found.col, SHOWN, plan.grid.height, plan.grid.width)
    grid = plan.grid.crop(window)
    rgb = plan.stretch.apply(*plan.reader.read(window, plan.grid))
    classes = range(len(plan.classes))
    activation = None
    if run.localized:
        activation = np.max([blend_activation(run, window, k, lambda patch, _: patch) for k in classes], axis=0)
    scores = np.stack([mosaic.scores(window) for mosaic in MosaicSource.of_classes(run)])
    layers = {"landslides": part.landslides, "candidates": part.candidates}
    return Place(
        grid=grid,
        image=rgb,
        activation=activation,
        threshold=plan.method.activation_threshold,
        scores=np.where(scores == OUTSIDE, 0, scores).max(axis=0),
        prompts=part.prompts.shift(-window.col, -window.row),
        polygons=together_of(layers, plan.grid.crs),
        at=(found.row - window.row, found.col - window.col),
        title=found.why(),
    )

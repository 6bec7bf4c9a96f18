"""How polygons agree with the landslides of scenes: counts that add up over scenes, and sets of scenes."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np

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
from geolabel.evaluation.table import OURS, Case, Measurement
from geolabel.metrics import HALF, Boundary, Confusion, WidthCounts, object_widths, ratio
from geolabel.types import BoolArray, Float64Array, Int32Array, Int64Array

WITHOUT, CHIPS = " without ", "chips, "
"""In the names of parts of a mosaic: all but one chip, and its chips one by one."""


# --- one scene -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Truth:
    """The landslides of a scene."""

    ids: Int32Array
    """(H, W) number of the landslide, from 1; 0 on other ground, negative where nothing is judged."""
    minimum: int = 1
    """Minimum area in pixels of an object; smaller landslides count by area alone."""

    @cached_property
    def objects(self) -> Int32Array:
        """(H, W) numbers of the landslides that count as objects; 0 elsewhere."""
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
    """Agreement of polygons with the landslides of some scenes: by area, along the outlines, and by object."""

    areas: Confusion = field(default_factory=Confusion)
    boundary: Boundary = field(default_factory=Boundary)
    widths: WidthCounts = field(default_factory=WidthCounts)
    """True landslides, and those that predictions cover to at least half."""
    polygons: int = 0
    right: int = 0
    """Polygons at least half of which is landslide."""

    @classmethod
    def of(cls, answer: Answer, truth: Truth) -> Self:
        """Compare an answer with the truth on the same grid."""
        valid = answer.valid & (truth.ids >= 0)
        ids, true = np.where(truth.ids >= 0, answer.ids, 0), truth.ids > 0
        correct = shares(ids, true)
        return cls(
            Confusion.of(ids > 0, true, valid),
            Boundary.of(ids > 0, true, valid),
            WidthCounts.of(truth.widths, shares(truth.objects, ids > 0) >= HALF),
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


def shares(ids: Int32Array, mask: BoolArray) -> Float64Array:
    """(N,) share of each numbered object of (H, W) that is on a mask (H, W), by ascending number."""
    whole = np.bincount(ids.ravel())
    inside = np.bincount(ids.ravel(), weights=mask.ravel(), minlength=len(whole))
    present = np.flatnonzero(whole[1:]) + 1
    share: Float64Array = inside[present] / whole[present]
    return share


def judged(ids: Int32Array, truth: Int32Array) -> tuple[Int64Array, BoolArray]:
    """Ascending numbers of the polygons that hold a pixel's centre, and whether at least half of each is landslide."""
    numbers = np.unique(ids[ids > 0]).astype(np.int64)
    return numbers, shares(ids, truth > 0) >= HALF


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
    # without a landslide there is nothing that an IoU could be good at
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
    """Extract each image of a set as a scene of its own, and compare the answers of all methods with the truth.

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
        Whether to judge it also without the chip with the most landslide, and chip by chip.
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
    """Scores by area alone of one chip, whose frame cuts polygons and landslides."""
    place = mosaic.places[chip].slices
    true = mosaic.ids[place] > 0
    return {m: SceneScores(Confusion.of(a.ids[place] > 0, true, a.valid[place])) for m, a in answers.items()}

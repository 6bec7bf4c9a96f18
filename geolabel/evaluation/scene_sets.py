"""Sets of scenes from end to end: what was counted in each scene, for the tables that are made from it."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from geolabel.evaluation import examples, scenes
from geolabel.evaluation.baselines import Forest
from geolabel.evaluation.examples import Example, Examples
from geolabel.evaluation.layout import Mosaic, lay_mosaic, placed, write_scene
from geolabel.evaluation.maps import ellipse
from geolabel.evaluation.setup import Bench
from geolabel.evaluation.table import OURS, Measurement, Section
from geolabel.evaluation.tally import Answer, Tally, Truth, stated
from geolabel.metrics import TOLERANCE, Confusion
from geolabel.types import Int32Array

FOREST_SEEDS = range(700_000, 700_004)
"""Scenes that the random forest learns from."""

FINE_GSD = 0.25
"""Metres per pixel at which orthophotos of unstated gsd, 0.2 to 0.9 m, are also read."""

SHRUNK = {"sichuan": (3.0, 8.0), "bijie": (2.0, 5.0)}
"""Factors that the gsd of real scenes is also multiplied by, so that each band of gsd has some."""

WITHOUT, CHIPS = " without ", "chips, "
"""In the names of what is a part of a mosaic: all of it but one chip, or its chips one by one."""

Cases = dict[str, list[dict[str, Any]]]
More = Callable[[Example], dict[str, Int32Array]]
"""Further peers of one image: numbered polygons (H, W) by method."""


def said_of(probability: float, truth: bool) -> dict[str, Any]:
    """One case for a reliability curve, as plain values."""
    return {"said": round(probability, 6), "true": truth}


@dataclass
class Sets:
    """What was measured of sets of scenes."""

    measured: list[Measurement] = field(default_factory=list)
    cases: Cases = field(default_factory=dict)

    def add(self, name: str, gsd: float, counted: Sequence[tuple[str, dict[str, Tally]]]) -> None:
        """Take in the counts of named scenes, by method."""
        pooled: dict[str, Tally] = defaultdict(Tally)
        for _, tallies in counted:
            for method, tally in tallies.items():
                pooled[method] = pooled[method] + tally
        self.measured += [Measurement(name, method, tally.figures()) for method, tally in pooled.items()]
        self.cases[name] = [_case(image, gsd, tallies) for image, tallies in counted]


def _case(name: str, gsd: float, tallies: dict[str, Tally]) -> dict[str, Any]:
    areas = tallies[OURS].areas
    # without a landslide there is nothing that an IoU could be good at
    iou = round(areas.iou, 4) if areas.tp + areas.fn else None
    return {"name": name, OURS: iou, "gsd": gsd, "tallies": {method: one.plain() for method, one in tallies.items()}}


def measure_scenes(
    bench: Bench, sets: Sets, name: str, items: Examples, gsd: float, more: More | None = None, minimum: int = 1
) -> None:
    """Extract each image of a set as a scene of its own, and compare every method's answer with the truth.

    Parameters
    ----------
    gsd
        Metres per pixel of the scenes.
    minimum
        Pixels of the smallest landslide that counts as an object.
    """
    counted, said, gates = [], [], []
    with tempfile.TemporaryDirectory(prefix="geolabel-") as folder:
        for example in bench.followed(items, f"scenes, {name}"):
            path = write_scene(Path(folder) / "scene.tif", example, gsd)
            found = scenes.answers(path, bench.networks, bench.parameters)
            valid = found.answers[OURS].valid
            peers = {method: Answer(ids, valid, gsd) for method, ids in (more(example) if more else {}).items()}
            truth = Truth(example.ids, minimum)
            counted.append((example.name, {m: Tally.of(a, truth) for m, a in (found.answers | peers).items()}))
            said += [said_of(*pair) for pair in stated(found.answers[scenes.WITH], example.ids)]
            gates.append(said_of(found.gate, bool(example.truth.any())))
    sets.add(name, gsd, counted)
    sets.cases |= {f"confidence, {name}": said, f"gate, {name}": gates}


def measure_mosaic(bench: Bench, sets: Sets, name: str, items: Iterable[Example], gsd: float, *, by_chip: bool) -> None:
    """Extract chips laid side by side as one scene.

    Parameters
    ----------
    gsd
        Metres per pixel of the scene.
    by_chip
        Whether to judge it also without the chip with the most landslide, and each chip by itself.
    """
    with tempfile.TemporaryDirectory(prefix="geolabel-") as folder:
        path = Path(folder) / "mosaic.tif"
        mosaic = lay_mosaic(items, path, gsd)
        answers = scenes.answers(path, bench.networks, bench.parameters).answers
    answers |= {scenes.ELLIPSE: Answer(mosaic.ellipses(), answers[OURS].valid, gsd)}
    truth = Truth(mosaic.ids)
    sets.add(name, gsd, [(name, {method: Tally.of(answer, truth) for method, answer in answers.items()})])
    sets.cases[f"confidence, {name}"] = [said_of(*pair) for pair in stated(answers[scenes.WITH], mosaic.ids)]
    if by_chip:
        chip, share = mosaic.heaviest()
        rest = Truth(mosaic.without(chip))
        tallies = {method: Tally.of(answer, rest) for method, answer in answers.items()}
        sets.add(f"{name}{WITHOUT}{chip}, {share:.0%} of its landslide pixels", gsd, [(chip, tallies)])
        sets.cases[f"{CHIPS}{name}"] = [_case(chip, gsd, _areas(answers, mosaic, chip)) for chip in mosaic.places]


def _areas(answers: dict[str, Answer], mosaic: Mosaic, chip: str) -> dict[str, Tally]:
    """Areas alone of one chip: its frame cuts polygons and landslides."""
    place = mosaic.places[chip].slices
    true = mosaic.ids[place] > 0
    return {m: Tally(Confusion.of(a.ids[place] > 0, true, a.valid[place])) for m, a in answers.items()}


def _ellipse(example: Example) -> dict[str, Int32Array]:
    return {scenes.ELLIPSE: ellipse(example.ids.shape).astype(np.int32) * np.int32(example.truth.any())}


POOLED = [
    "Pixels are pooled over the scenes of a set.",
    f"An outline counts where the other side has one within {TOLERANCE:g} px; the frame is no outline.",
    "A landslide is found when half of it is covered, a polygon right when half of it is landslide.",
]


def scene(bench: Bench) -> Section:
    """Real scenes of submetre pixels to polygons."""
    sets = Sets()
    if bench.bijie is not None:
        chips_of = bench.followed(bench.bijie, "mosaic of bijie")
        measure_mosaic(bench, sets, "mosaic of bijie", chips_of, examples.CHIP_GSD, by_chip=True)
    if bench.sichuan is not None:
        least = bench.sichuan.least
        measure_scenes(bench, sets, "sichuan", bench.sichuan, examples.OUTLINED_GSD, minimum=least)
    notes = [*POOLED, f"Specks of the outlines of sichuan, below {examples.LEAST_OUTLINED} px, are no objects."]
    return Section("scene", "Scene to polygons", sets.measured, notes, sets.cases)


def coarse(bench: Bench) -> Section:
    """Satellite chips to polygons, each a scene of its own gsd."""
    sets = Sets()
    for name, items, gsd in (
        ("hokkaido_planet_3m", bench.hokkaido, examples.HOKKAIDO_GSD),
        ("l4s_rgb_10m", bench.l4s, examples.L4S_GSD),
    ):
        if items is not None:
            measure_scenes(bench, sets, name, items, gsd, _ellipse)
    question = "Scene to polygons, satellite images of 3 and 10 m"
    return Section("coarse", question, sets.measured, [] if sets.measured else ["Not measured."], sets.cases)


@dataclass(frozen=True)
class Shrunk:
    """Examples as coarser pixels show them."""

    items: Examples
    factor: float

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Example]:
        return (examples.shrunk(example, self.factor) for example in self.items)


def band(bench: Bench) -> Section:
    """The same scenes at other gsds, for the bands that no set of its own fills."""
    sets = Sets()
    if bench.sichuan is not None:
        least = bench.sichuan.least
        measure_scenes(bench, sets, f"sichuan read at {FINE_GSD} m", bench.sichuan, FINE_GSD, minimum=least)
        for factor in SHRUNK["sichuan"]:
            gsd = factor * examples.OUTLINED_GSD
            least = round(bench.sichuan.least / factor**2)
            shown = Shrunk(bench.sichuan, factor)
            measure_scenes(bench, sets, f"sichuan shrunk to {gsd:g} m", shown, gsd, minimum=least)
    if bench.bijie is not None:
        for factor in SHRUNK["bijie"]:
            gsd = factor * examples.CHIP_GSD
            name = f"mosaic of bijie shrunk to {gsd:g} m"
            measure_mosaic(bench, sets, name, bench.followed(Shrunk(bench.bijie, factor), name), gsd, by_chip=False)
    return Section("band", "By ground sample distance", sets.measured, [], sets.cases)


def synthetic(bench: Bench) -> Section:
    """Synthetic scenes to polygons."""
    notes = [POOLED[0], "The sample is the scene that the README begins with."]
    forests: dict[str, Forest] = {}
    try:
        learned = (examples.Drawn(seed, 1) for seed in FOREST_SEEDS)
        forests["random forest"] = Forest.grow((one.rgb, one.truth) for scene in learned for one in scene)
    except ModuleNotFoundError:
        notes.append("The random forest was left out: it needs scikit-learn (pip install scikit-learn).")
    gsd = examples.SYNTHETIC_GSD

    def more(example: Example) -> dict[str, Int32Array]:
        grid = placed(example, gsd)
        return {name: scenes.tidy(forest.find(example.rgb), grid, bench.parameters) for name, forest in forests.items()}

    sets = Sets()
    measure_scenes(bench, sets, "synthetic", bench.synthetic, gsd, more)
    sample = examples.Drawn(examples.SAMPLE, 1, examples.SAMPLE_SIZE)
    measure_scenes(bench, sets, "sample of the README", sample, gsd, more)
    return Section("synthetic", "Synthetic scenes to polygons", sets.measured, notes, sets.cases)

"""``bench weak``: weak supervision by labels of whole chips, compared with baselines and a student trained on masks.

All trainings use ``train/`` of a set of chips; thresholds are chosen on one in five of its chips, selected by name,
whose masks are read for that; figures are of ``val/``. A stopped run resumes at the step, and a training at its last
state.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from geolabel.activation import quantise
from geolabel.chips import Chip, is_held_out
from geolabel.datasets.chips import ChipDataset, PaintedChips, read_chips, read_painted
from geolabel.engine import worker
from geolabel.engine.tasks import Progress, Silent
from geolabel.evaluation import baselines
from geolabel.evaluation.examples import SPLITS, unpack_chips
from geolabel.evaluation.network_scores import (
    THRESHOLDS,
    MapScores,
    image_scores,
    label_scores,
    mosaic_of,
    mosaic_scores,
)
from geolabel.evaluation.steps import run_steps, step_folder
from geolabel.extraction.request import Networks
from geolabel.labeling.label import ActivatedLabels, Compose, chip_localizer, label_chips
from geolabel.labels import BACKGROUND
from geolabel.methods import apsam, cism, s2c
from geolabel.models import loading
from geolabel.models.cam import DenseLocalizer
from geolabel.models.checkpoint import load_own
from geolabel.models.defaults import segmenter_defaults
from geolabel.parsing import read_json
from geolabel.parts import Localizer, Recipe
from geolabel.training import localizers, presets, students
from geolabel.training.localizer_objective import area_under_curve
from geolabel.training.presets import LocalizerPreset, Method, preset_of
from geolabel.training.samples import Cropping
from geolabel.training.train import train
from geolabel.types import BoolArray, UInt8Array

PresetName = Literal["quick", "cpu", "gpu"]

METHODS: tuple[Method, ...] = get_args(Method)

Kind = Literal["maps", "labels", "students"]
"""What is measured: maps of localizers, the pseudo-labels made of them, and students trained on these."""

KINDS: tuple[Kind, ...] = get_args(Kind)

PSEUDO: dict[str, Method] = {
    "apsam": "cam",
    "apsam paper": "cam",
    "apsam box": "cam",
    "apsam point": "cam",
    "s2c": "s2c",
    "cism": "cism",
    "cism crf": "cism",
}
"""Pseudo-labels, and their localizers. `apsam` is what `geolabel label` writes with this segmenter; the others of
APSAM, its Table II, have the paper's settings. `apsam` and `cism` use refined maps."""

_SETTINGS: dict[str, Callable[[Networks], apsam.Settings | s2c.Settings | cism.Settings]] = {
    "apsam": lambda networks: apsam.with_defaults(apsam.Settings(pamr=True), networks),
    "apsam paper": lambda _: apsam.PAPER,
    "apsam box": lambda _: replace(apsam.PAPER, prompts="box"),
    "apsam point": lambda _: replace(apsam.PAPER, prompts="point"),
    "s2c": lambda networks: s2c.Settings(confidence=segmenter_defaults(networks.sam).confidence),
    "cism": lambda _: cism.Settings(pamr=True),
    "cism crf": lambda _: cism.Settings(crf=True),
}
"""Settings of the method for each of the pseudo-labels."""

STUDENTS = ("apsam", "apsam paper", "s2c", "cism", "masks")
"""Label maps for students; the last is the ceiling."""

ORDER: tuple[tuple[Method, tuple[str, ...]], ...] = (
    ("cam", ("apsam", "masks")),
    ("cism", ()),
    ("s2c", ("s2c", "cism", "apsam paper")),
)
"""Localizers, each with the students that are trained after it; references of comparisons come first."""


@dataclass(frozen=True)
class Sizes:
    """Presets of both trainings, the same for all methods."""

    localizer: dict[str, Any]
    """Fields of `LocalizerPreset` that differ from its ``cpu`` preset."""
    student: presets.StudentPreset
    multiscale: bool = True
    """Whether maps are sums over four scales and mirrored views, which take fifteen times as long as one view."""


_CPU = presets.STUDENTS["cpu"]
_LARGE = Cropping(256, (0.5, 1.0))

SIZES: dict[PresetName, Sizes] = {
    "quick": Sizes(
        {
            "output_stride": 16,
            "cropping": Cropping(128, (0.5, 1.0)),
            "points_per_side": 4,
            "epochs": 4,
            "schedule": replace(_CPU.schedule, fall="poly", rate=5e-4, average=0.99, evaluations=3),
        },
        replace(_CPU, epochs=5, schedule=replace(_CPU.schedule, average=0.99, evaluations=2)),
        multiscale=False,
    ),
    "cpu": Sizes({"output_stride": 16, "points_per_side": 8}, _CPU),
    "gpu": Sizes(
        {
            "backbone": "resnet50",
            "cropping": _LARGE,
            "batch": 32,
            "epochs": 20,
            "output_stride": 16,
            "points_per_side": 16,
        },
        replace(_CPU, architectures=presets.STUDENTS["paper"].architectures, cropping=_LARGE, batch=24, epochs=30),
    ),
}
"""``quick`` takes about half an hour of one core for each seed, started from the bundled localizer with 1,000 chips in
bf16; its students are far from converged. ``cpu`` takes hours for each seed, most of them for students."""


@dataclass(frozen=True)
class WeakBench:
    """A measurement, and the folder of its figures and trainings."""

    source: Path
    """Folder with train/ and val/, each as `geolabel.datasets.chips.read_chips` reads chips, with masks; or a pack."""
    work: Path
    preset: PresetName = "cpu"
    seeds: int = 3
    networks: Networks = field(default_factory=Networks)
    init: str = "imagenet"
    """Initial weights of localizers; see `geolabel.training.localizers.LocalizerRequest`."""
    epochs: float | None = None
    """Epochs of each training, for a quick look; None for the preset's."""
    limit: int | None = None
    """Maximum number of chips of each split, for a quick look; None for all."""
    deadline: float | None = None
    """Reading of `time.monotonic` after which no step is started; None for no limit."""
    only: tuple[Kind, ...] = KINDS
    """What to measure. Without maps, only pseudo-labels and students whose localizers exist."""
    methods: tuple[Method, ...] = METHODS
    """Localizers to measure, each with what is made of it."""
    overwrite: bool = False
    """Whether to measure again; earlier figures are replaced once all steps are done."""
    progress: Progress = field(default_factory=Silent)

    # --- data --------------------------------------------------------------------------------------------------------

    @property
    def data(self) -> Path:
        """The folder; a pack is unpacked to one in `work`."""
        return self.source if self.source.is_dir() else self.work / "chips"

    @cached_property
    def train(self) -> ChipDataset:
        """Chips to train on, by their labels; only the ceiling reads their masks."""
        return self._some(read_chips(self.data / "train"))

    @cached_property
    def val(self) -> ChipDataset:
        """Chips for figures."""
        return self._some(read_chips(self.data / "val"))

    @cached_property
    def fold(self) -> ChipDataset:
        """Chips of `train` that show a class, for choosing thresholds; not used in training."""
        kept = np.array([is_held_out(name) for name in self.train.names]) & self.train.labels.any(axis=1)
        return self.train.part(kept if kept.any() else np.any(self.train.labels, axis=1))

    def _some(self, chips: ChipDataset) -> ChipDataset:
        if self.limit is None or self.limit >= len(chips):
            return chips
        order = np.argsort(~chips.labels.any(axis=1), kind="stable")
        keep = np.zeros(len(chips), bool)
        keep[order[np.unique(np.linspace(0, len(chips) - 1, self.limit).astype(int))]] = True
        return chips.part(keep)

    # --- steps -------------------------------------------------------------------------------------------------------

    def steps(self) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
        """Yield all steps by name, seed by seed."""
        yield "floors", self.floors
        if self._started:
            yield "start", self.start
        for seed in range(self.seeds):
            for method, learners in (of for of in ORDER if of[0] in self.methods):
                if "maps" in self.only:
                    yield f"seed{seed}/{method}", partial(self.localizer, method, seed)
                for name in (name for name, of in PSEUDO.items() if of == method and "labels" in self.only):
                    if self._located(method, seed):
                        yield f"seed{seed}/pseudo {name}", partial(self.pseudo, name, seed)
                for name in learners if "students" in self.only else ():
                    if name not in PSEUDO or self._located(PSEUDO[name], seed):
                        yield f"seed{seed}/student {name}", partial(self.student, name, seed)

    def _located(self, method: Method, seed: int) -> bool:
        # the localizer of this seed exists, or will
        return "maps" in self.only or self.localizer_file(method, seed).is_file()

    def run(self) -> dict[str, dict[str, Any]]:
        """Measure the steps that are not measured yet, until the deadline; return the figures of all finished steps.

        Raises
        ------
        OptionError
            If the folder has figures of other options.
        """
        names = [name for name, _ in self.steps()]
        inputs = [self.source / part for part in SPLITS]
        with step_folder(self.work, self._key(), names, overwrite=self.overwrite, inputs=inputs) as folder:
            inside = replace(self, work=folder)
            if self.source.is_file():
                unpack_chips(self.source, inside.data)
            # including steps of other seeds measured in earlier runs
            held = {
                str(path.relative_to(folder).with_suffix("")): read_json(path)
                for path in sorted(folder.glob("seed[0-9]*/*.json"))
            }
            steps = {name: partial(_timed, step) for name, step in inside.steps()}
            return held | run_steps(folder, steps, title="weak", progress=self.progress, deadline=self.deadline)

    def _key(self) -> dict[str, Any]:
        """Everything that the figures depend on."""
        key: dict[str, Any] = {"preset": self.preset, "init": self.init, "epochs": self.epochs, "limit": self.limit}
        key |= {"segmenter": self.networks.recipes()[1].sha256, **self._place()}
        if self._started:
            key["first weights"] = loading.recipe("localizer", self.init).sha256
        key |= {f"student {name}": value for name, value in asdict(SIZES[self.preset].student).items()}
        key |= {f"labels {name}": asdict(self._settings(name)) for name in PSEUDO}
        for method in METHODS:
            key |= {f"{method} {name}": value for name, value in asdict(self._numbers(method)).items()}
        return key

    def floors(self) -> dict[str, Any]:
        """Baselines: an ellipse, Otsu's threshold of excess green, and artefacts of sizes and centres."""
        shown = np.any(self.val.labels, axis=1)
        scores: dict[str, list[float]] = {"small chip": [], "surround minus centre in excess green": []}
        for k in range(len(self.val)):
            rgb = self.val.rgb(k)
            scores["small chip"].append(-min(rgb.shape[:2]))
            scores["surround minus centre in excess green"].append(
                baselines.surround_minus_centre(baselines.excess_green(rgb))
            )
        return {
            "AUC": {name: area_under_curve(np.asarray(values, float), shown) for name, values in scores.items()},
            "ellipse": label_scores(
                lambda chip: baselines.centred_ellipse(chip.rgb.shape[:2]).astype(np.uint8), self.val
            ),
            "Otsu": label_scores(lambda chip: _bare(chip.rgb).astype(np.uint8), self.val)
            | {"mosaic": self._on_mosaic(lambda rgb: _bare(rgb).astype(np.uint8) * np.uint8(255))},
        }

    def localizer(self, method: Method, seed: int) -> dict[str, Any]:
        """Train a localizer and evaluate its maps, for one view and as used for labels.

        Thresholds are the best on the fold.
        """
        out = self.localizer_file(method, seed).parent
        request = localizers.LocalizerRequest(
            method, "cpu", self.init, segments=self.work / "segments", epochs=self.epochs, seed=seed
        )
        train(
            self.train,
            out,
            request,
            networks=self.networks,
            preset=self._numbers(method),
            resume=True,
            progress=self.progress,
        )
        return self._judge(self._recipe(method, seed))

    def start(self) -> dict[str, Any]:
        """Evaluate the maps of the initial localizer."""
        return self._judge(loading.recipe("localizer", self.init, batch=1, **self._place()))

    def _judge(self, recipe: Recipe) -> dict[str, Any]:
        one_view = chip_localizer(recipe, multiscale=False)
        refined = chip_localizer(recipe, multiscale=self._multiscale, pamr=True)
        return {
            **image_scores(one_view, self.val),
            "maps": self._map_scores(one_view),
            "refined maps": self._map_scores(refined),
        }

    def _map_scores(self, locate: Localizer) -> dict[str, Any]:
        chosen = MapScores.of(locate, self.fold).best_threshold()
        return asdict(MapScores.of(locate, self.val)) | {"chosen": chosen, "threshold": THRESHOLDS[chosen]}

    def pseudo(self, name: str, seed: int) -> dict[str, Any]:
        """Evaluate pseudo-labels of the fold, which the localizer was not trained on."""
        label = self.label(name, seed)
        return label_scores(lambda chip: label(chip.rgb, chip.labels).values, self.fold)

    def student(self, name: str, seed: int) -> dict[str, Any]:
        """Train a student on pseudo-labels, or on masks, and evaluate it on chips and on their mosaic."""
        source: Any = PaintedChips(self.train)
        if name != "masks":
            out = self.work / f"seed{seed}" / f"pseudo {name}"
            if not (out / "manifest.json").is_file():
                recipes = [self._recipe(PSEUDO[name], seed)]
                label_chips(
                    self.train,
                    out,
                    name.partition(" ")[0],
                    self._settings(name),
                    recipes,
                    self.compose(name),
                    overwrite=False,
                    progress=self.progress,
                )
            source = read_painted(out)
        out = self.student_folder(name, seed)
        model = self.init if self.init in (presets.BUNDLED, presets.IMAGENET) else "resunet"
        request = students.StudentRequest(model, epochs=self.epochs, seed=seed)
        sizes = SIZES[self.preset].student
        train(source, out, request, networks=self.networks, preset=sizes, resume=True)
        student = self.trained_student(name, seed)

        def paint(chip: Chip) -> UInt8Array:
            return student.label(chip.rgb).values

        return label_scores(paint, self.val) | {
            "held out": label_scores(paint, self.fold)["all"],
            "mosaic": self._on_mosaic(lambda rgb: quantise(student([rgb])[0].values[0])),
        }

    def _on_mosaic(self, score: Callable[[UInt8Array], UInt8Array]) -> dict[str, float]:
        return mosaic_scores(score, mosaic_of(self.val), (BACKGROUND, *self.val.classes))

    @property
    def _started(self) -> bool:
        # whether the initial weights of localizers already give maps
        return self.init == "bundled" or Path(self.init).is_file()

    def _numbers(self, method: Method) -> LocalizerPreset:
        return replace(preset_of(method, "cpu"), **SIZES[self.preset].localizer)

    def _place(self) -> dict[str, Any]:
        device, precision = worker.device_and_precision(self.networks.device, self.networks.precision)
        return {"device": device, "precision": precision}

    def _recipe(self, method: Method, seed: int) -> Recipe:
        return loading.recipe("localizer", self.localizer_file(method, seed), batch=1, **self._place())

    @property
    def _multiscale(self) -> bool:
        return SIZES[self.preset].multiscale

    # --- trained networks --------------------------------------------------------------------------------------------

    def localizer_file(self, method: Method, seed: int) -> Path:
        """File of a trained localizer."""
        return self.work / f"seed{seed}" / f"localizer {method}" / localizers.FILE

    def student_folder(self, name: str, seed: int) -> Path:
        """Folder of a trained student."""
        return self.work / f"seed{seed}" / f"student {name}"

    def locate(self, name: str, seed: int) -> Localizer:
        """The trained localizer of the pseudo-labels of a name, for whole chips."""
        pamr = bool(self._settings(name).pamr)
        return chip_localizer(self._recipe(PSEUDO[name], seed), multiscale=self._multiscale, pamr=pamr)

    def label(self, name: str, seed: int) -> ActivatedLabels:
        """Labeler of the pseudo-labels of a name."""
        return ActivatedLabels(self.locate(name, seed), self.compose(name))

    def trained_student(self, name: str, seed: int) -> DenseLocalizer:
        """A trained student, for whole chips."""
        network, info = load_own(self.student_folder(name, seed) / students.FILE, "student")
        return DenseLocalizer(network, info, zoom=info.zoom, **self._place())

    def compose(self, name: str) -> Compose:
        """Method of the pseudo-labels of a name, given a localizer."""
        settings = self._settings(name)
        if isinstance(settings, cism.Settings):
            return lambda localizer: cism.pipeline(localizer, settings)
        segmenter = worker.segmenter(self.networks.recipes(settings.selection or "best_iou")[1])
        if isinstance(settings, s2c.Settings):
            return lambda localizer: s2c.pipeline(localizer, segmenter, settings)
        return lambda localizer: apsam.pipeline(localizer, segmenter, settings)

    def _settings(self, name: str) -> apsam.Settings | s2c.Settings | cism.Settings:
        return replace(_SETTINGS[name](self.networks), single_scale=not self._multiscale)


def _bare(rgb: UInt8Array) -> BoolArray:
    return baselines.otsu_bare(rgb, np.asarray(rgb.any(axis=2)))


def _timed(step: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    start = time.monotonic()
    return step() | {"seconds": round(time.monotonic() - start, 1)}

"""``bench weak``: how far labels of whole chips lead, beside floors that know nothing and a student that knows masks.

Everything is learned from ``train/`` of a set of chips; numbers are chosen on one in five of its chips, by name, whose
masks may be looked at for that; figures are of ``val/``. Each step leaves its figures in a file of its own: a run that
was stopped goes on from there, and a training from its last state.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from geolabel.activation import quantise
from geolabel.chips import Chip, is_held_out
from geolabel.datasets.chips import ChipDataset, read_chips
from geolabel.datasets.painted import PaintedChips, read_painted
from geolabel.engine import worker
from geolabel.engine.progress import Progress, Silent
from geolabel.errors import OptionError
from geolabel.evaluation import baselines
from geolabel.evaluation.chippack import SPLITS, unpack_chips
from geolabel.evaluation.maps import (
    THRESHOLDS,
    MapScores,
    ellipse,
    image_scores,
    label_scores,
    mosaic_of,
    mosaic_scores,
)
from geolabel.evaluation.table import write_json
from geolabel.extraction.request import Networks
from geolabel.folders import work_folder
from geolabel.labeling.label_chips import ActivatedLabels, Compose, chip_localizer, label_chips
from geolabel.labels import BACKGROUND
from geolabel.methods import apsam, cism, s2c
from geolabel.models import loading
from geolabel.models.checkpoints import load_own
from geolabel.models.dense import DenseLocalizer
from geolabel.models.multiscale import MultiscaleLocalizer
from geolabel.parsing import read_json
from geolabel.parts import Recipe
from geolabel.training import localizers, students
from geolabel.training.localizer_objective import area_under_curve
from geolabel.training.presets import LocalizerPreset, Method, preset_of
from geolabel.training.samples import Cropping
from geolabel.types import BoolArray, UInt8Array

log = logging.getLogger(__name__)

PresetName = Literal["quick", "cpu", "gpu"]

METHODS: tuple[Method, ...] = get_args(Method)

Kind = Literal["maps", "labels", "students"]
"""What is measured: localizers, the pseudo-labels that they lead to, and what learns from these."""

KINDS: tuple[Kind, ...] = get_args(Kind)

PSEUDO: dict[str, Method] = {
    "apsam": "cam", "apsam paper": "cam", "apsam box": "cam", "apsam point": "cam", "s2c": "s2c", "cism": "cism",
    "cism crf": "cism",
}  # fmt: skip
"""Pseudo-labels that are judged, and the localizer that they come from. Those of `apsam` are as `geolabel label` makes
them with this segmenter; the others of APSAM, its Table II, have the paper's choices."""

STUDENTS = ("apsam", "apsam paper", "s2c", "cism", "masks")
"""What students learn from; the last is the ceiling."""

ORDER: tuple[tuple[Method, tuple[str, ...]], ...] = (
    ("cam", ("apsam", "masks")),
    ("cism", ()),
    ("s2c", ("s2c", "cism", "apsam paper")),
)
"""Localizers, each with the students that are trained after it: what the others are compared with comes first."""


@dataclass(frozen=True)
class Sizes:
    """Numbers of both trainings, the same for all methods."""

    localizer: dict[str, Any]
    """Of `LocalizerPreset`, in place of those of its ``cpu`` preset."""
    student: students.StudentPreset
    multiscale: bool = True
    """Whether maps are sums over four scales and mirrored chips, which take fifteen times as long as one view."""


_CPU = students.PRESETS["cpu"]
_LARGE = Cropping(256, (0.5, 1.0))

SIZES: dict[PresetName, Sizes] = {
    "quick": Sizes(
        {"output_stride": 16, "cropping": Cropping(128, (0.5, 1.0)), "points_per_side": 4, "epochs": 4,
         "schedule": {**_CPU.schedule, "fall": "poly", "rate": 5e-4, "average": 0.99, "evaluations": 3}},
        replace(_CPU, epochs=5, schedule={**_CPU.schedule, "average": 0.99, "evaluations": 2}),
        multiscale=False,
    ),
    "cpu": Sizes({"output_stride": 16, "points_per_side": 8}, _CPU, multiscale=False),
    "gpu": Sizes(
        {"backbone": "resnet50", "cropping": _LARGE, "batch": 32, "epochs": 20, "output_stride": 16,
         "points_per_side": 16},
        replace(_CPU, architectures=students.PRESETS["paper"].architectures, cropping=_LARGE, batch=24, epochs=30),
    ),
}  # fmt: skip
"""``quick`` takes half an hour or so of one core for each seed, started from the bundled localizer with 1,000 chips in
bf16, and its students stop long before they are done. ``cpu`` takes hours for each seed, most of them the students'."""


NUMBERS = "numbers.json"
"""What the figures in a folder depend on."""


@dataclass(frozen=True)
class WeakBench:
    """A measurement, and the folder where it keeps what it has done."""

    source: Path
    """Folder with train/ and val/, each as `geolabel.datasets.chips.read_chips` reads chips, with masks; or a pack."""
    work: Path
    preset: PresetName = "cpu"
    seeds: int = 3
    networks: Networks = field(default_factory=Networks)
    init: str = "none"
    """What localizers start from; see `geolabel.training.localizers.LocalizerRequest`."""
    epochs: float | None = None
    """Of every training, for a quick look; None for the preset's."""
    limit: int | None = None
    """Chips of each split, for a quick look; None for all."""
    deadline: float | None = None
    """Reading of `time.monotonic` after which nothing new is begun."""
    only: tuple[Kind, ...] = KINDS
    """What to measure. Without maps, of pseudo-labels and students only those whose localizers were trained before."""
    overwrite: bool = False
    """Whether to measure anew: what was measured before is replaced when everything is done that was asked for."""
    progress: Progress = field(default_factory=Silent)

    # --- data --------------------------------------------------------------------------------------------------------

    @property
    def data(self) -> Path:
        """The folder; a pack is unpacked to one in `work`."""
        return self.source if self.source.is_dir() else self.work / "chips"

    @cached_property
    def train(self) -> ChipDataset:
        """Chips to learn from, their labels read, and their masks by the ceiling alone."""
        return self._some(read_chips(self.data / "train"))

    @cached_property
    def val(self) -> ChipDataset:
        """Chips for figures."""
        return self._some(read_chips(self.data / "val"))

    @cached_property
    def fold(self) -> ChipDataset:
        """Chips of `train` that show something and that numbers are chosen on; no weights learn from them."""
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
        """Yield everything that is to be done, by name; a seed is whole before the next one begins."""
        yield "floors", self.floors
        if self._started:
            yield "start", self.start
        for seed in range(self.seeds):
            for method, learners in ORDER:
                if "maps" in self.only:
                    yield f"seed{seed}/{method}", partial(self.localizer, method, seed)
                for name in (name for name, of in PSEUDO.items() if of == method and "labels" in self.only):
                    if self._located(method, seed):
                        yield f"seed{seed}/pseudo {name}", partial(self.pseudo, name, seed)
                for name in learners if "students" in self.only else ():
                    if name not in PSEUDO or self._located(PSEUDO[name], seed):
                        yield f"seed{seed}/student {name}", partial(self.student, name, seed)

    def _located(self, method: Method, seed: int) -> bool:
        # that of this seed is there, or will be
        return "maps" in self.only or self.localizer_file(method, seed).is_file()

    def run(self) -> dict[str, dict[str, Any]]:
        """Do what is not done yet, as far as the time allows; returns the figures of every step that is done.

        Raises
        ------
        OptionError
            If what is done was done with other numbers.
        """
        inputs = [self.source / part for part in SPLITS]
        with work_folder(
            self.work,
            overwrite=self.overwrite,
            inputs=inputs,
            goes_on=lambda folder: self._other(folder) is None,
            whole=lambda folder: all((folder / f"{name}.json").is_file() for name, _ in self.steps()),
        ) as folder:
            return replace(self, work=folder)._measured()

    def _measured(self) -> dict[str, dict[str, Any]]:
        if (other := self._other(self.work)) is not None:
            raise OptionError(other)
        write_json(self.work / NUMBERS, self._depends_on())
        if self.source.is_file():
            unpack_chips(self.source, self.data)
        done = {
            str(path.relative_to(self.work).with_suffix("")): read_json(path)
            for path in sorted(self.work.glob("seed[0-9]*/*.json"))
        }
        steps = list(self.steps())
        for name, step in self.progress.track(steps, "weak", len(steps)):
            path = self.work / f"{name}.json"
            if not path.is_file():
                if self.deadline is not None and time.monotonic() > self.deadline:
                    continue
                start = time.monotonic()
                found = step() | {"seconds": round(time.monotonic() - start, 1)}
                path.parent.mkdir(parents=True, exist_ok=True)
                write_json(path, _plain(found))
                log.info("%s: %.0f s", name, found["seconds"])
            done[name] = read_json(path)
        return done

    def _depends_on(self) -> dict[str, Any]:
        """What the figures depend on, as plain values."""
        numbers = {"preset": self.preset, "init": self.init, "epochs": self.epochs, "limit": self.limit}
        numbers |= {"segmenter": self.networks.recipes()[1].sha256, **self._place()}
        if self._started:
            numbers["first weights"] = loading.recipe("localizer", self.init).sha256
        numbers |= {f"student {name}": value for name, value in asdict(SIZES[self.preset].student).items()}
        for method in METHODS:
            numbers |= {f"{method} {name}": value for name, value in asdict(self._numbers(method)).items()}
        plain: dict[str, Any] = json.loads(json.dumps(numbers))
        return plain

    def _other(self, folder: Path) -> str | None:
        """How what a folder holds was measured otherwise; None where it was not."""
        if not (folder / NUMBERS).is_file():
            return None
        held = read_json(folder / NUMBERS)
        for name, value in self._depends_on().items():
            if held.get(name) != value:
                return (
                    f"{folder} was measured with {name} {held.get(name)}, this is {value}: ask as before, give "
                    "another --out, or --overwrite"
                )
        return None

    def floors(self) -> dict[str, Any]:
        """What a method has to beat: an ellipse, Otsu's cut of excess green, and what sizes and centres give away."""
        shown = np.any(self.val.labels, axis=1)
        said: dict[str, list[float]] = {"small chip": [], "surround minus centre in excess green": []}
        for k in range(len(self.val)):
            rgb = self.val.rgb(k)
            said["small chip"].append(-min(rgb.shape[:2]))
            said["surround minus centre in excess green"].append(
                baselines.surround_minus_centre(baselines.excess_green(rgb))
            )
        return {
            "AUC": {name: area_under_curve(np.asarray(values, float), shown) for name, values in said.items()},
            "ellipse": label_scores(lambda chip: ellipse(chip.rgb.shape[:2]).astype(np.uint8), self.val),
            "Otsu": label_scores(lambda chip: _bare(chip.rgb).astype(np.uint8), self.val)
            | {"mosaic": self._on_mosaic(lambda rgb: _bare(rgb).astype(np.uint8) * np.uint8(255))},
        }

    def localizer(self, method: Method, seed: int) -> dict[str, Any]:
        """Train a localizer and judge its maps, cut where that is best on the fold."""
        out = self.localizer_file(method, seed).parent
        request = localizers.LocalizerRequest(method, "cpu", self.init, epochs=self.epochs, seed=seed)
        localizers.train_localizer(
            self.train, out, request, networks=self.networks, preset=self._numbers(method),
            segments=self.work / "segments", resume=True, progress=self.progress,
        )  # fmt: skip
        return self._judge(self._recipe(method, seed))

    def start(self) -> dict[str, Any]:
        """Judge the maps of what localizers start from."""
        return self._judge(loading.recipe("localizer", self.init, batch=1, **self._place()))

    def _judge(self, recipe: Recipe) -> dict[str, Any]:
        locate = chip_localizer(recipe, multiscale=self._multiscale)
        threshold = MapScores.of(locate, self.fold).best_threshold()
        return image_scores(chip_localizer(recipe, multiscale=False), self.val) | {
            "threshold": THRESHOLDS[threshold],
            "maps": asdict(MapScores.of(locate, self.val)) | {"chosen": threshold},
        }

    def pseudo(self, name: str, seed: int) -> dict[str, Any]:
        """Judge pseudo-labels of the fold, whose chips the localizer has not learned from."""
        label = self.label(name, seed)
        return label_scores(lambda chip: label(chip.rgb, chip.labels).values, self.fold)

    def student(self, name: str, seed: int) -> dict[str, Any]:
        """Train a student on pseudo-labels, or on masks, and judge it on chips and on their mosaic."""
        source: Any = PaintedChips(self.train)
        if name != "masks":
            out = self.work / f"seed{seed}" / f"pseudo {name}"
            if not (out / "manifest.json").is_file():
                recipes = [self._recipe(PSEUDO[name], seed)]
                label_chips(self.train, out, name.partition(" ")[0], self._settings(name), recipes, self.compose(name),
                            overwrite=False, progress=self.progress)  # fmt: skip
            source = read_painted(out)
        out = self.student_folder(name, seed)
        model = students.BUNDLED if self.init == "bundled" else "resunet"
        request = students.StudentRequest(model, epochs=self.epochs, seed=seed)
        sizes = SIZES[self.preset].student
        students.train_student(source, out, request, networks=self.networks, preset=sizes, resume=True)
        student = self.drawer(name, seed)

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
        # whether localizers begin with weights that make maps already
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

    # --- what was trained --------------------------------------------------------------------------------------------

    def localizer_file(self, method: Method, seed: int) -> Path:
        """Where a localizer is, once it is trained."""
        return self.work / f"seed{seed}" / f"localizer {method}" / localizers.FILE

    def student_folder(self, name: str, seed: int) -> Path:
        """Where a student is, once it is trained."""
        return self.work / f"seed{seed}" / f"student {name}"

    def locate(self, method: Method, seed: int) -> MultiscaleLocalizer:
        """A trained localizer, for whole chips."""
        return chip_localizer(self._recipe(method, seed), multiscale=self._multiscale)

    def label(self, name: str, seed: int) -> ActivatedLabels:
        """What makes the pseudo-labels of a name."""
        return ActivatedLabels(self.locate(PSEUDO[name], seed), self.compose(name))

    def drawer(self, name: str, seed: int) -> DenseLocalizer:
        """A trained student, for whole chips."""
        network, info = load_own(self.student_folder(name, seed) / students.FILE, "student")
        return DenseLocalizer(network, info, zoom=info.zoom, **self._place())

    def compose(self, name: str) -> Compose:
        """The method that makes the pseudo-labels of a name."""
        settings = self._settings(name)
        if isinstance(settings, cism.Settings):
            return lambda localizer: cism.pipeline(localizer, settings)
        segmenter = worker.segmenter(self.networks.recipes(settings.selection or "best_iou")[1])
        if isinstance(settings, s2c.Settings):
            return lambda localizer: s2c.pipeline(localizer, segmenter, settings)
        return lambda localizer: apsam.pipeline(localizer, segmenter, settings)

    def _settings(self, name: str) -> apsam.Settings | s2c.Settings | cism.Settings:
        kind, _, part = name.partition(" ")
        views: dict[str, Any] = {"single_scale": not self._multiscale}
        if kind == "s2c":
            return s2c.Settings(confidence=self.networks.usual_confidence, **views)
        if kind == "cism":
            return cism.Settings(crf=part == "crf", **views)
        if part:
            prompts: Any = "both" if part == "paper" else part
            return replace(apsam.PAPER, prompts=prompts, **views)
        return apsam.settled(apsam.Settings(**views), self.networks)


def _bare(rgb: UInt8Array) -> BoolArray:
    return baselines.otsu_bare(rgb, np.asarray(rgb.any(axis=2)))


def _plain(values: Any) -> Any:
    if isinstance(values, dict):
        return {key: _plain(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [_plain(value) for value in values]
    return None if isinstance(values, float) and not np.isfinite(values) else values

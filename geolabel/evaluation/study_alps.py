"""The study of ALPS: what a student gains from pre-training on pseudo-labels, with other gates, classes and steps.

The rows are those of the paper's Tables 1 to 5. In each, a student is pre-trained on pseudo-labels, keeps some of its
weights, and is fine-tuned on a few real masks; the first row is only fine-tuned. All rows of a seed are fine-tuned on
the same chips in the same order, so that they compare pair by pair. Pseudo-labels, pre-trained students, and the
figures of each fine-tuned one are kept.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from geolabel.chips import Chips, is_held_out, split
from geolabel.datasets.chips import ChipDataset, PaintedChips, mask_path
from geolabel.datasets.examples import PaintedSubset
from geolabel.datasets.pseudo_labels import PseudoLabel, PseudoLabels
from geolabel.engine import worker
from geolabel.engine.tasks import Progress, Silent
from geolabel.errors import ChipError, OptionError
from geolabel.evaluation.network_scores import label_scores
from geolabel.evaluation.steps import Measurement, Section, check_names, figures_of, run_steps, step_folder
from geolabel.evaluation.studies import write_study
from geolabel.extraction.request import Networks
from geolabel.labels import BACKGROUND, IGNORE
from geolabel.methods import alps
from geolabel.models.cam import DenseLocalizer
from geolabel.models.checkpoint import load_own
from geolabel.models.defaults import segmenter_defaults
from geolabel.training import students
from geolabel.training.first_weights import Share
from geolabel.training.presets import StudentPreset
from geolabel.training.train import train
from geolabel.types import BoolArray, Int64Array, UInt8Array

Figures = dict[str, float]

QUESTION = "What do pseudo-labels teach before the first mask? (ALPS, Tables 1 to 5)"

TITLE = "alps"

SCRATCH = "scratch"

NOTES = [
    "Gain: IoU less that of the student from scratch that was tuned on the same chips; mean and limits over seeds.",
    "The paper's figures are mean IoU of other networks on other data: compare the order.",
]


@dataclass(frozen=True)
class _Lesson:
    """Pre-training of a student, and the weights it keeps."""

    share: Share | None = "backbone"
    """Share of the weights that is kept; None for no pre-training."""
    gate: float | None = None
    """Maximum share of an image that an object covers; None for the default."""
    binary: bool = False
    """Whether pseudo-labels have no classes."""
    times: int = 1
    """Factor of the steps."""
    chained: bool = False
    """Whether to start from the backbone of a student of another set."""


LESSONS: dict[str, _Lesson] = {
    SCRATCH: _Lesson(None),
    "overall": _Lesson("overall"),
    "backbone": _Lesson(),
    "head": _Lesson("head"),
    **{f"gate {gate}": _Lesson(gate=gate) for gate in (0.1, 0.3, 0.5, 0.7, 1.0)},
    "binary": _Lesson(binary=True),
    "chained": _Lesson(chained=True),
    "longer": _Lesson(times=4),
}
"""Tables 1 and 2: kept weights. Table 5: the gate. Table 3b: binary masks, and two sets, the second of which starts
from the backbone of the first. Table 4: four times the steps. From the gate on, the backbone is kept, as in the
paper."""

PAPER: dict[str, dict[str, float]] = {
    SCRATCH: {"iSAID": 0.6452, "Potsdam": 0.7118},
    "overall": {"iSAID": 0.6465, "Potsdam": 0.7129},
    "backbone": {"iSAID": 0.5747, "Potsdam": 0.7103},
    "head": {"iSAID": 0.6610, "Potsdam": 0.7145},
    "gate 0.1": {"Potsdam": 0.7017},
    "gate 0.3": {"Potsdam": 0.7103},
    "gate 0.5": {"Potsdam": 0.6522},
    "gate 0.7": {"Potsdam": 0.4781},
    "gate 1.0": {"Potsdam": 0.4299},
    "binary": {"iSAID": 0.1003},
    "chained": {"iSAID": 0.5968},
    "longer": {"iSAID": 0.6177, "Potsdam": 0.7131},
}
"""The paper's mean IoU for UperNet; compare the order. Its baseline starts from a backbone of ImageNet."""


@dataclass(frozen=True)
class Binary:
    """Pseudo-labels without classes: object or background."""

    labels: PseudoLabels
    classes: tuple[str, ...] = (BACKGROUND, "object")

    @property
    def names(self) -> tuple[str, ...]:
        """Name of every image."""
        return self.labels.names

    @property
    def shown(self) -> BoolArray:
        """(N,) whether an image has an object."""
        return np.array([(self[k].values > 0).any() for k in range(len(self))], bool)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> _BinaryLabel:
        """Read one image."""
        return _BinaryLabel(self.labels[index])


@dataclass(frozen=True)
class _BinaryLabel:
    """One such image."""

    label: PseudoLabel

    @property
    def image(self) -> UInt8Array:
        """(H, W, 3) red first."""
        return self.label.image

    @property
    def values(self) -> UInt8Array:
        """(H, W) 1 on objects."""
        return np.asarray(self.label.values != IGNORE, np.uint8)


@dataclass(frozen=True)
class AlpsStudy:
    """A study: its rows, images and networks.

    A stopped study resumes: its trainings and measurements are kept in `out`.

    Raises
    ------
    OptionError
        If a row is unknown, or needs a set that is not given.
    ChipError
        If there are fewer masks than fine-tuning needs.
    """

    chips: ChipDataset
    """Chips with masks for fine-tuning."""
    images: Path
    """Folder of images for pseudo-labels; test images in it are excluded."""
    out: Path
    """Folder for the table, the plot, students and figures."""
    networks: Networks
    test: Chips | None = None
    """Chips to test on; None for one in five of `chips`, which are then not used in training."""
    before: Path | None = None
    """Folder of images of the first of two sets."""
    settings: alps.Settings = field(default_factory=alps.Settings)
    only: tuple[str, ...] = ()
    """Rows of `LESSONS` to measure besides `SCRATCH`; empty for all that the sets allow."""
    masks: tuple[int, ...] = (50,)
    """Numbers of chips for fine-tuning that show a class, with as many that do not, if present."""
    seeds: int = 1
    """Number of fine-tunings of each row, each on other chips."""
    steps: int = 300
    """Steps of pre-training and of fine-tuning."""
    student: students.StudentRequest = field(default_factory=students.StudentRequest)
    """Model and preset."""
    preset: StudentPreset | None = None
    """Preset that replaces that of the request."""
    overwrite: bool = False
    """Whether to measure again; the figures of an earlier study are replaced once this one is complete."""
    progress: Progress = field(default_factory=Silent)

    def __post_init__(self) -> None:
        check_names(self.only, LESSONS)
        if self.before is None and "chained" in self.only:
            raise OptionError("the row chained needs two sets: give --before FOLDER with images of another one")
        if max(self.masks) > len(self._showing):
            raise ChipError(
                f"{max(self.masks)} masks to tune on, and {len(self._showing)} chips to train on show something and "
                "have one: ask for fewer"
            )

    @property
    def names(self) -> list[str]:
        """Rows of the table; the others are compared with the first."""
        chosen = self.only or tuple(name for name in LESSONS if self.before is not None or not LESSONS[name].chained)
        return [SCRATCH, *(name for name in LESSONS if name in chosen and name != SCRATCH)]

    def run(self) -> Section:
        """Measure the rows that are not measured yet, and write table and plot.

        Raises
        ------
        OptionError
            If `out` holds figures of other images or options.
        """
        inputs = [*self.chips.sources, self.images, *([] if self.before is None else [self.before])]
        wanted = [(name, count, seed) for seed in range(self.seeds) for name in self.names for count in self.masks]
        names = {one: f"{self._tuned(*one)}/figures" for one in wanted}
        with step_folder(self.out, self._key(), names.values(), overwrite=self.overwrite, inputs=inputs) as folder:
            inside = replace(self, out=folder)
            steps = {name: partial(inside._tune, *one) for one, name in names.items()}
            done = run_steps(folder, steps, title="study", progress=self.progress)
            found = {one: figures_of(done[name]) for one, name in names.items()}
            rows = [self._measurement(name, count, found) for count in self.masks for name in self.names]
            section = Section(TITLE, QUESTION, rows, NOTES)
            write_study(section, folder)
        return section

    def _measurement(self, name: str, count: int, found: dict[tuple[str, int, int], Figures]) -> Measurement:
        ours, bare = ([found[which, count, seed] for seed in range(self.seeds)] for which in (name, SCRATCH))
        gain = {} if name == SCRATCH else _gain(ours, bare)
        printed = {f"paper, {data}": value for data, value in PAPER[name].items()}
        return Measurement(f"{count} masks", name, _means(ours) | gain | printed)

    def _key(self) -> dict[str, Any]:
        """Everything that the figures depend on."""
        return {
            "settings": asdict(self.settings),
            "steps": self.steps,
            "student": asdict(self.student),
            "segmenter": [self.networks.sam, self.networks.sam_checkpoint],
            "folders": [self.images, self.before],
            "learned": [self.chips.names[k] for k in self._learnable],
            "judged": list(self._judged.names),
        }

    # --- chips -------------------------------------------------------------------------------------------------------

    @cached_property
    def _judged(self) -> Chips:
        return split(self.chips)[1] if self.test is None else self.test

    @cached_property
    def _learnable(self) -> Int64Array:
        kept = [self.test is not None or not is_held_out(name) for name in self.chips.names]
        return np.flatnonzero(kept).astype(np.int64)

    @cached_property
    def _showing(self) -> Int64Array:
        shown, paths = np.any(self.chips.labels, axis=1), self.chips.paths
        return np.asarray([k for k in self._learnable if shown[k] and mask_path(paths[k]).is_file()], np.int64)

    def _tuned_on(self, count: int, seed: int) -> Int64Array:
        # a larger number includes a smaller one: the seed determines the order
        random = np.random.default_rng([seed, 5])
        blank = self._learnable[~np.any(self.chips.labels[self._learnable], axis=1)]
        chosen = [random.permutation(some)[:count] for some in (self._showing, blank)]
        return np.sort(np.concatenate(chosen))

    # --- steps -------------------------------------------------------------------------------------------------------

    def _tuned(self, name: str, count: int, seed: int) -> str:
        # folder of a fine-tuned student; rows that keep the same weights of the same student share it
        lesson = LESSONS[name]
        kept = SCRATCH if lesson.share is None else f"{lesson.share} of {self._mark(lesson)}"
        return f"tuned/{kept}/{count}-{seed}"

    def _tune(self, name: str, count: int, seed: int) -> Figures:
        lesson, out = LESSONS[name], self.out / self._tuned(name, count, seed)
        first = None if lesson.share is None else (lesson.share, self._pretrained(lesson))
        self._train(PaintedSubset(PaintedChips(self.chips), self._tuned_on(count, seed)), out, self.steps, first, seed)
        network, info = load_own(out / students.FILE, "student")
        device, precision = worker.device_and_precision(self.networks.device, self.networks.precision)
        student = DenseLocalizer(network, info, zoom=info.zoom, device=device, precision=precision)
        scores = label_scores(lambda chip: student.label(chip.rgb).values, self._judged)["all"]
        names = {"miou": "mIoU", "iou": "IoU", "f1": "F1", "precision": "P", "recall": "R"}
        return {text: scores[key] for key, text in names.items() if key in scores}

    def _pretrained(self, lesson: _Lesson) -> Path:
        """The student of a lesson, trained if it does not exist."""
        first: tuple[Share, Path] | None = None
        if lesson.chained:
            assert self.before is not None
            first = "backbone", self._pretrain(_Lesson(), self.before, self.out / "taught" / "before", None)
        return self._pretrain(lesson, self.images, self.out / "taught" / self._mark(lesson), first)

    def _pretrain(self, lesson: _Lesson, images: Path, out: Path, first: tuple[Share, Path] | None) -> Path:
        if not (out / students.FILE).is_file():
            labels = self._labels(self._gate(lesson), images)
            examples = Binary(labels) if lesson.binary else labels
            seen = PaintedSubset(examples, self._unjudged(labels.names))
            self._train(seen, out, self.steps * lesson.times, first, seed=0)
        return out / students.FILE

    def _gate(self, lesson: _Lesson) -> float:
        given = (lesson.gate, self.settings.max_share, segmenter_defaults(self.networks.sam).max_share)
        return next(gate for gate in given if gate is not None)

    def _mark(self, lesson: _Lesson) -> str:
        # of the student, whichever weights are kept
        parts = [
            f"gate {self._gate(lesson)}",
            "binary" * lesson.binary,
            "chained" * lesson.chained,
            f"{lesson.times} times" * (lesson.times > 1),
        ]
        return ", ".join(filter(None, parts))

    def _labels(self, gate: float, images: Path) -> PseudoLabels:
        part = "before" if images == self.before else "images"
        out = self.out / "labels" / part / f"gate {gate}"
        if not (out / "manifest.json").is_file():
            settings = replace(self.settings, max_share=gate, regions=self.out / "regions" / part)
            alps.label(images, out, settings, self.networks, overwrite=False, progress=self.progress)
        return PseudoLabels(out)

    def _unjudged(self, names: tuple[str, ...]) -> Int64Array:
        judged = set(self._judged.names)
        return np.asarray([k for k, name in enumerate(names) if name.rpartition("__")[2] not in judged], np.int64)

    def _train(self, examples: Any, out: Path, steps: int, first: tuple[Share, Path] | None, seed: int) -> None:
        request = replace(self.student, steps=steps, seed=seed, init=first)
        # plain steps, as in the paper: rows differ only in the lesson
        plain = replace(self.preset or request.numbers, overlap=0.0, shown=0.0)
        train(examples, out, request, networks=self.networks, preset=plain, resume=True)


def _means(found: list[Figures]) -> Figures:
    return {name: float(np.mean([one[name] for one in found])) for name in found[0]}


def _gain(ours: list[Figures], bare: list[Figures]) -> Figures:
    key = "IoU" if "IoU" in ours[0] else "mIoU"
    gains = [one[key] - other[key] for one, other in zip(ours, bare, strict=True)]
    return {"gain": float(np.mean(gains)), "minimum gain": min(gains), "maximum gain": max(gains)}

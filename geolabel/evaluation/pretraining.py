"""ALPS with another gate, without classes, with other steps: what its pseudo-labels teach a student before any mask.

The rows are those of the paper's Tables 1 to 5. In each a student learns from pseudo-labels, hands on some of its
weights, and is tuned on a few real masks; the first row is tuned alone. All rows of a seed are tuned on the same chips
in the same order, so that they compare pair by pair. Pseudo-labels, first students, and the figures of every tuned one
are kept: a study that was stopped goes on.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from geolabel.chips import Chips, is_held_out, split
from geolabel.datasets.chips import ChipDataset, mask_path
from geolabel.datasets.painted import PaintedChips
from geolabel.datasets.pseudo_labels import PseudoLabel, PseudoLabels
from geolabel.engine import worker
from geolabel.engine.progress import Progress, Silent
from geolabel.errors import ChipError, OptionError
from geolabel.evaluation.maps import label_scores
from geolabel.evaluation.studies import draw
from geolabel.evaluation.table import Measurement, Section, write_json, write_text
from geolabel.extraction.request import Networks
from geolabel.folders import work_folder
from geolabel.labels import BACKGROUND, IGNORE
from geolabel.methods import alps
from geolabel.models.checkpoints import load_own
from geolabel.models.dense import DenseLocalizer
from geolabel.models.nets.initial import Share
from geolabel.parsing import read_json
from geolabel.training import students
from geolabel.training.students import PaintedSubset
from geolabel.types import BoolArray, Int64Array, UInt8Array

QUESTION = "What do pseudo-labels teach before the first mask? (ALPS, Tables 1 to 5)"

TITLE = "alps"

STUDY = "study.json"
"""What the figures in a folder depend on."""

SCRATCH = "scratch"

FIGURES = "figures.json"

NOTES = [
    "Gain: IoU less that of the student from scratch that was tuned on the same chips; mean, least, most over seeds.",
    "The paper's figures are mean IoU of other networks on other data: compare the order.",
]


@dataclass(frozen=True)
class Lesson:
    """What a student learned from before it sees a mask, and what it keeps of that."""

    share: Share | None = "backbone"
    """Of the weights; None for none at all."""
    gate: float | None = None
    """Largest share of an image that an object covers; None for the usual one."""
    binary: bool = False
    """Whether pseudo-labels say no more than where objects are."""
    times: int = 1
    """Of the usual steps."""
    chained: bool = False
    """Whether it learned from another set first, and handed on its backbone."""


LESSONS: dict[str, Lesson] = {
    SCRATCH: Lesson(None),
    "overall": Lesson("overall"),
    "backbone": Lesson(),
    "head": Lesson("head"),
    **{f"gate {gate}": Lesson(gate=gate) for gate in (0.1, 0.3, 0.5, 0.7, 1.0)},
    "binary": Lesson(binary=True),
    "chained": Lesson(chained=True),
    "longer": Lesson(times=4),
}
"""Tables 1 and 2: what is kept. Table 5: the gate. Table 3b: binary masks, and two sets, of which the second begins
with the backbone of the first. Table 4: four times the steps. From the gate on, the backbone is what is kept, as
there."""

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
"""Mean IoU that the paper prints for UperNet, pre-trained on SAMRS-PL where it says so; compare the order. Its baseline
begins with a backbone from ImageNet."""


@dataclass(frozen=True)
class Binary:
    """Pseudo-labels without their classes: where objects are, and where none is."""

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

    def __getitem__(self, index: int) -> BinaryLabel:
        """Read one image."""
        return BinaryLabel(self.labels[index])


@dataclass(frozen=True)
class BinaryLabel:
    """One image of them."""

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
class PretrainingStudy:
    """What is asked, of which images, with which networks.

    Raises
    ------
    OptionError
        If a row is not known, or needs a set that is not given.
    ChipError
        If there are fewer masks than a student is to be tuned on.
    """

    chips: ChipDataset
    """Whose masks students are tuned on."""
    images: Path
    """Folder of images that pseudo-labels are made of; of those of `chips`, the ones to be judged on are left out."""
    out: Path
    """Folder for the table, the plot, and what is kept on the way."""
    networks: Networks
    test: Chips | None = None
    """What is judged on; None for one in five of `chips`, which are then not learned from."""
    before: Path | None = None
    """Folder of images of the first of two sets."""
    settings: alps.Settings = field(default_factory=alps.Settings)
    rows: tuple[str, ...] | None = None
    """Of `LESSONS`; None for all that can be."""
    masks: tuple[int, ...] = (50,)
    """How many chips that show something students are tuned on, with as many that show nothing if there are."""
    seeds: int = 1
    """How often students are tuned, each time on other chips."""
    steps: int = 300
    """Of the usual lesson, and of tuning."""
    student: students.StudentRequest = field(default_factory=students.StudentRequest)
    """Model and preset."""
    preset: students.StudentPreset | None = None
    """Numbers in place of those of the request."""
    overwrite: bool = False
    """Whether to measure anew: what an earlier study left in `out` is replaced when this one is finished."""
    progress: Progress = field(default_factory=Silent)

    def __post_init__(self) -> None:
        unknown = [name for name in self.rows or () if name not in LESSONS]
        if unknown:
            raise OptionError(f"no row is called {', '.join(unknown)}: known are {', '.join(LESSONS)}")
        if self.before is None and "chained" in (self.rows or ()):
            raise OptionError("the row chained learns from two sets: give --before FOLDER with images of another one")
        if max(self.masks) > len(self._showing):
            raise ChipError(
                f"{max(self.masks)} masks to tune on, and {len(self._showing)} chips to learn from show something and "
                "have one: ask for fewer"
            )

    @property
    def names(self) -> list[str]:
        """Rows of the table; what others are compared with is the first."""
        chosen = self.rows or tuple(name for name in LESSONS if self.before is not None or not LESSONS[name].chained)
        return [SCRATCH, *(name for name in LESSONS if name in chosen and name != SCRATCH)]

    def run(self) -> Section:
        """Measure what is not measured yet, and write table and plot."""
        inputs = [*self.chips.sources, self.images, *([] if self.before is None else [self.before])]
        with work_folder(
            self.out, overwrite=self.overwrite, inputs=inputs, goes_on=lambda folder: _held(folder) == self._key()
        ) as folder:
            return replace(self, out=folder)._measured()

    def _measured(self) -> Section:
        if _held(self.out) not in (None, self._key()):
            raise OptionError(f"{self.out} holds a study of other images or settings: another folder, or --overwrite")
        write_json(self.out / STUDY, self._key())
        steps = [(name, count, seed) for seed in range(self.seeds) for name in self.names for count in self.masks]
        found = {step: self._figures(*step) for step in self.progress.track(steps, "study", len(steps))}
        rows = []
        for count in self.masks:
            for name in self.names:
                ours, bare = ([found[which, count, seed] for seed in range(self.seeds)] for which in (name, SCRATCH))
                gain = {} if name == SCRATCH else _gain(ours, bare)
                printed = {f"paper, {data}": value for data, value in PAPER[name].items()}
                rows.append(Measurement(f"{count} masks", name, _means(ours) | gain | printed))
        section = Section(TITLE, QUESTION, rows, NOTES)
        write_text(self.out / f"{TITLE}.md", section.markdown())
        write_json(self.out / f"{TITLE}.json", section.as_json())
        draw(section, self.out / f"{TITLE}.png")
        return section

    def _key(self) -> Any:
        """What the figures depend on, as plain values."""
        kept = {
            "settings": asdict(self.settings),
            "steps": self.steps,
            "student": asdict(self.student),
            "segmenter": [self.networks.sam, self.networks.sam_checkpoint],
            "folders": [self.images, self.before],
            "learned": [self.chips.names[k] for k in self._learnable],
            "judged": list(self._judged.names),
        }
        return json.loads(json.dumps(kept, default=str))

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
        # more masks hold fewer: a seed decides the order
        random = np.random.default_rng([seed, 5])
        blank = self._learnable[~np.any(self.chips.labels[self._learnable], axis=1)]
        drawn = [random.permutation(some)[:count] for some in (self._showing, blank)]
        return np.sort(np.concatenate(drawn))

    # --- steps -------------------------------------------------------------------------------------------------------

    def _figures(self, name: str, count: int, seed: int) -> dict[str, float]:
        lesson = LESSONS[name]
        kept = SCRATCH if lesson.share is None else f"{lesson.share} of {self._mark(lesson)}"
        out = self.out / "tuned" / kept / f"{count}-{seed}"
        if not (out / FIGURES).is_file():
            found = self._tune(lesson, count, seed, out)
            write_json(out / FIGURES, {key: None if math.isnan(value) else value for key, value in found.items()})
        read: dict[str, float | None] = read_json(out / FIGURES)
        return {key: math.nan if value is None else value for key, value in read.items()}

    def _tune(self, lesson: Lesson, count: int, seed: int, out: Path) -> dict[str, float]:
        first = None if lesson.share is None else (lesson.share, self._taught(lesson))
        self._train(PaintedSubset(PaintedChips(self.chips), self._tuned_on(count, seed)), out, self.steps, first, seed)
        network, info = load_own(out / students.FILE, "student")
        device, precision = worker.device_and_precision(self.networks.device, self.networks.precision)
        student = DenseLocalizer(network, info, zoom=info.zoom, device=device, precision=precision)
        scores = label_scores(lambda chip: student.label(chip.rgb).values, self._judged)["all"]
        names = {"miou": "mIoU", "iou": "IoU", "f1": "F1", "precision": "P", "recall": "R"}
        return {text: scores[key] for key, text in names.items() if key in scores}

    def _taught(self, lesson: Lesson) -> Path:
        """The student of a lesson, trained if it is not there."""
        first: tuple[Share, Path] | None = None
        if lesson.chained:
            assert self.before is not None
            first = "backbone", self._teach(Lesson(), self.before, self.out / "taught" / "before", None)
        return self._teach(lesson, self.images, self.out / "taught" / self._mark(lesson), first)

    def _teach(self, lesson: Lesson, images: Path, out: Path, first: tuple[Share, Path] | None) -> Path:
        if not (out / students.FILE).is_file():
            labels = self._labels(self._gate(lesson), images)
            examples = Binary(labels) if lesson.binary else labels
            seen = PaintedSubset(examples, self._unjudged(labels.names))
            self._train(seen, out, self.steps * lesson.times, first, seed=0)
        return out / students.FILE

    def _gate(self, lesson: Lesson) -> float:
        given = (lesson.gate, self.settings.max_share, alps.usual_share(self.networks))
        return next(gate for gate in given if gate is not None)

    def _mark(self, lesson: Lesson) -> str:
        # what a lesson was about, whatever is kept of it
        parts = [f"gate {self._gate(lesson)}", "binary" * lesson.binary, "chained" * lesson.chained,
                 f"{lesson.times} times" * (lesson.times > 1)]  # fmt: skip
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
        # plain steps, as the paper's: what differs between rows is to be the lesson alone
        plain = replace(self.preset or request.numbers, overlap=0.0, shown=0.0)
        students.train_student(examples, out, request, networks=self.networks, preset=plain, resume=True)


def _held(folder: Path) -> Any:
    """What the figures in a folder depend on; None where there are none."""
    path = folder / STUDY
    return read_json(path) if path.is_file() else None


def _means(found: list[dict[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([one[name] for one in found])) for name in found[0]}


def _gain(ours: list[dict[str, float]], bare: list[dict[str, float]]) -> dict[str, float]:
    key = "IoU" if "IoU" in ours[0] else "mIoU"
    gains = [one[key] - other[key] for one, other in zip(ours, bare, strict=True)]
    return {"gain": float(np.mean(gains)), "least gain": min(gains), "most": max(gains)}

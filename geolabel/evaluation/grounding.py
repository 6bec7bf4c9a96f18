"""DiffuPrompter with other numbers: time step, threshold, draws, and the map alone beside the segmenter's masks.

The rows are those of the paper's Tables 1, 2 and 9. What is compared with the truth here are the pseudo-labels
themselves; the paper trains a Mask R-CNN on each row and prints its AP, which `geolabel.training.detectors` does for
one.
Every image is asked about the classes that it shows, as in the paper. For each time step and number of draws the maps
are made once for all thresholds, and the figures are kept in a file: a study that was stopped goes on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from geolabel.activation import Activation
from geolabel.concepts import Grounding
from geolabel.datasets.examples import Examples, Outlined
from geolabel.engine import worker
from geolabel.engine.progress import Progress, Silent
from geolabel.errors import OptionError
from geolabel.evaluation.table import Measurement, Section, write_json, write_text
from geolabel.extraction.text_prompts import GroundedNetworks
from geolabel.folders import work_folder
from geolabel.labels import Instances, LabelMap, closed_regions
from geolabel.methods.diffuprompter import asked_only, compose
from geolabel.metrics import ratio
from geolabel.outputs import replacing
from geolabel.parsing import read_json
from geolabel.parts import Localizer, Segmenter
from geolabel.pipeline import label_image
from geolabel.training.average_precision import Found, Precision
from geolabel.types import UInt8Array

Figures = dict[str, float]

WAYS = {"masks": False, "map alone": True}
"""What becomes of the map, and whether that asks no segmenter."""

PAPER = {
    ("30", "0.3"): 0.123, ("30", "0.4"): 0.205, ("30", "0.5"): 0.185,
    ("40", "0.3"): 0.225, ("40", "0.4"): 0.273, ("40", "0.5"): 0.254,
    ("50", "0.3"): 0.195, ("50", "0.4"): 0.237, ("50", "0.5"): 0.201,
}  # fmt: skip
"""AP of a Mask R-CNN trained on each row, by time step and threshold (Table 9, NWPU VHR-10): compare the order."""


@dataclass
class Once:
    """A localizer that sees every picture once: what it said of it is said again."""

    localizer: Localizer
    said: dict[bytes, Activation] = field(default_factory=dict)

    def __call__(self, images: Sequence[UInt8Array]) -> list[Activation]:
        """Activations of images (H, W, 3)."""
        for image in images:
            if image.tobytes() not in self.said:
                self.said[image.tobytes()] = self.localizer([image])[0]
        return [self.said[image.tobytes()] for image in images]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.localizer, name)


@dataclass(frozen=True)
class GroundingStudy:
    """What is asked, of which images, with which networks."""

    examples: Examples[Outlined]
    """Images with their objects; the names of the classes are among the grounding's."""
    out: Path
    """Folder for the table, the plot, and the figures of every row."""
    networks: GroundedNetworks
    timesteps: tuple[int, ...] = (30, 40, 50)
    thresholds: tuple[float, ...] = (0.3, 0.4, 0.5)
    draws: tuple[int, ...] = (1, 5, 10, 25, 50, 100)
    overwrite: bool = False
    """Whether to measure anew: what an earlier study left in `out` is replaced when this one is finished."""
    progress: Progress = field(default_factory=Silent)

    def __post_init__(self) -> None:
        if self.grounding.classes != tuple(self.examples.classes):
            told, there = ", ".join(self.grounding.classes), ", ".join(self.examples.classes)
            raise OptionError(f"the classes {told}: the images show {there}; name these, in this order")
        if not all(0 < threshold < 1 for threshold in self.thresholds):
            raise OptionError(f"thresholds {self.thresholds}: they have to lie between 0 and 1")

    @property
    def grounding(self) -> Grounding:
        """What the network is asked, but for what the study changes; its draws are those of the sweep of time steps."""
        assert self.networks.grounding is not None
        return self.networks.grounding

    def pairs(self) -> list[tuple[int, int]]:
        """Time steps and draws of the maps: every step at the usual draws, the usual step at every number of draws."""
        usual = self.grounding
        pairs = [(step, usual.draws) for step in self.timesteps] + [(usual.timestep, count) for count in self.draws]
        return list(dict.fromkeys(pairs))

    def run(self) -> Section:
        """Measure what is not measured yet, and write table and plot."""
        sources = getattr(self.examples, "sources", ())
        with work_folder(self.out, overwrite=self.overwrite, inputs=sources, goes_on=self._is_of_these) as folder:
            return replace(self, out=folder)._measured()

    def _is_of_these(self, folder: Path) -> bool:
        """Whether the figures in a folder are of these thresholds."""
        held = [read_json(path) for path in folder.glob("t*-L*.json")]
        return all(set(map(str, self.thresholds)) <= figures.keys() for figures in held)

    def _measured(self) -> Section:
        rows = []
        for timestep, draws in self.progress.track(self.pairs(), "study", len(self.pairs())):
            path = self.out / f"t{timestep}-L{draws}.json"
            if not path.is_file():
                write_json(path, self._measure(replace(self.grounding, timestep=timestep, draws=draws)))
            found = read_json(path)
            for threshold in map(str, self.thresholds):
                for way in WAYS:
                    if threshold not in found or way not in found[threshold]:
                        raise OptionError(f"{path} is of another study: give another folder, or --overwrite")
                    values = {k: math.nan if v is None else v for k, v in found[threshold][way].items()}
                    printed = PAPER.get((str(timestep), threshold)) if way == "masks" and draws == 50 else None
                    extra = {} if printed is None else {"AP of the paper's Mask R-CNN": printed}
                    name = f"t {timestep}, L {draws}, threshold {threshold}, {way}"
                    rows.append(Measurement("", name, values | extra))
        notes = [
            "AP is that of the pseudo-labels themselves; the paper's is of a network trained on them, on its own data."
        ]
        section = Section("diffuprompter", "Which numbers draw the best pseudo-labels? (DiffuPrompter)", rows, notes)
        write_text(self.out / "diffuprompter.md", section.markdown())
        write_json(self.out / "diffuprompter.json", section.as_json())
        draw(section, self.out / "diffuprompter.png")
        return section

    def _measure(self, grounding: Grounding) -> dict[str, dict[str, dict[str, float | None]]]:
        # Figures by threshold and way.
        locate, segment = replace(self.networks, grounding=grounding).recipes("overlap")
        localizer, segmenter = worker.localizer(locate), worker.segmenter(segment)
        counted = {(threshold, way): _Tally(len(grounding.classes)) for threshold in self.thresholds for way in WAYS}
        for index in range(len(self.examples)):
            image, truth = self.examples[index]
            shown = {grounding.classes[value - 1] for value in truth.class_ids.tolist()}
            if not shown:
                continue
            once = Once(asked_only(localizer, shown))
            for (threshold, way), tally in counted.items():
                tally.add(truth, self._label(once, segmenter, threshold, way)(image))
        found: dict[str, dict[str, dict[str, float | None]]] = {}
        for (threshold, way), tally in counted.items():
            plain = {name: None if math.isnan(value) else value for name, value in tally.figures().items()}
            found.setdefault(str(threshold), {})[way] = plain
        return found

    @staticmethod
    def _label(once: Once, segmenter: Segmenter, threshold: float, way: str) -> Callable[[UInt8Array], LabelMap]:
        pipeline = compose(once, segmenter, threshold, attention_only=WAYS[way])
        return lambda image: label_image(pipeline, image, min(once.window, segmenter.window))


@dataclass
class _Tally:
    # Agreement of label maps with objects: IoU of each class over all pixels, and AP.
    classes: int
    precision: Precision = field(init=False)
    both: list[int] = field(init=False)
    either: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.precision, self.both, self.either = Precision(self.classes), [0] * self.classes, [0] * self.classes

    def add(self, truth: Instances, labels: LabelMap) -> None:
        painted = np.concatenate([[0], truth.class_ids])[truth.ids]
        for k in range(self.classes):
            there, told = painted == k + 1, labels.values == k + 1
            self.both[k] += int((there & told).sum())
            self.either[k] += int((there | told).sum())
        self.precision.add(truth, Found.of(closed_regions(labels)))

    def figures(self) -> Figures:
        ious = [ratio(both, either) for both, either in zip(self.both, self.either, strict=True)]
        known = [value for value in ious if not math.isnan(value)]
        return {"IoU": float(np.mean(known)) if known else math.nan, **self.precision.figures()}


def draw(section: Section, path: Path) -> None:
    """Plot the IoU of every row."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = [row.method for row in section.measured]
    figure = Figure(figsize=(8, 1.2 + 0.22 * len(names)))
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    colours = ["#bbbbbb" if name.endswith("map alone") else "#4477aa" for name in names]
    axes.barh(names[::-1], [row.figures["IoU"] for row in section.measured][::-1], color=colours[::-1])
    axes.set_xlabel("IoU, mean over classes")
    axes.tick_params(axis="y", labelsize=7)
    axes.set_title(section.question, fontsize=9)
    figure.tight_layout()
    with replacing(path, overwrite=True) as part:
        figure.savefig(part, format="png", dpi=150, metadata={"Software": None})

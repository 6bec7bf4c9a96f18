"""The study of DiffuPrompter: time step, threshold, draws, and the map alone compared with the segmenter's masks.

The rows are those of the paper's Tables 1, 2 and 9. Pseudo-labels are compared with the truth directly; the paper
trains a Mask R-CNN on each row and prints its AP, which `geolabel.training.detectors` does for one. The words for an
image are the classes that it shows, as in the paper. A step is a time step and a number of draws: its maps are computed
once for all thresholds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from geolabel.activation import Activation
from geolabel.concepts import Grounding
from geolabel.datasets.examples import Examples, Outlined
from geolabel.engine import worker
from geolabel.engine.tasks import Progress, Silent
from geolabel.errors import OptionError
from geolabel.evaluation.steps import Measurement, Section, figures_of, run_steps, step_folder
from geolabel.evaluation.studies import write_study
from geolabel.extraction.request import Networks
from geolabel.labels import Instances, LabelMap, closed_regions
from geolabel.methods.diffuprompter import asked_only, compose, recipes_of
from geolabel.metrics import ratio
from geolabel.parts import Localizer, Segmenter, label_image
from geolabel.training.average_precision import AveragePrecision, ScoredMasks
from geolabel.types import UInt8Array

Figures = dict[str, float]

MAP_ALONE = "map alone"

WAYS = {"masks": False, MAP_ALONE: True}
"""Ways from a map to labels, and whether they work without the segmenter."""

PAPER = {
    ("30", "0.3"): 0.123,
    ("30", "0.4"): 0.205,
    ("30", "0.5"): 0.185,
    ("40", "0.3"): 0.225,
    ("40", "0.4"): 0.273,
    ("40", "0.5"): 0.254,
    ("50", "0.3"): 0.195,
    ("50", "0.4"): 0.237,
    ("50", "0.5"): 0.201,
}
"""AP of a Mask R-CNN trained on each row, by time step and threshold (Table 9, NWPU VHR-10): compare the order."""


@dataclass
class Once:
    """A localizer that computes the activation of each image once."""

    localizer: Localizer
    kept: dict[bytes, Activation] = field(default_factory=dict)

    def __call__(self, images: Sequence[UInt8Array]) -> list[Activation]:
        """Activations of images (H, W, 3)."""
        for image in images:
            if image.tobytes() not in self.kept:
                self.kept[image.tobytes()] = self.localizer([image])[0]
        return [self.kept[image.tobytes()] for image in images]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.localizer, name)


@dataclass(frozen=True)
class DiffuPrompterStudy:
    """A study: its numbers, the images and the networks.

    A stopped study resumes: the figures of each step are kept in `out`.

    Raises
    ------
    OptionError
        If the classes are not those of the images, or a threshold is not between 0 and 1.
    """

    examples: Examples[Outlined]
    """Images with their objects; their class names must be among the grounding's."""
    out: Path
    """Folder for the table, the plot, and the figures of each step."""
    networks: Networks
    """The segmenter, and its device."""
    diffusion: str
    """A folder, or a model of the hub."""
    grounding: Grounding
    """Words and template, and the draws of the sweep of time steps; the study changes the other numbers."""
    timesteps: tuple[int, ...] = (30, 40, 50)
    thresholds: tuple[float, ...] = (0.3, 0.4, 0.5)
    draws: tuple[int, ...] = (1, 5, 10, 25, 50, 100)
    overwrite: bool = False
    """Whether to measure again; the figures of an earlier study are replaced once this one is complete."""
    progress: Progress = field(default_factory=Silent)

    def __post_init__(self) -> None:
        if self.grounding.classes != tuple(self.examples.classes):
            named, shown = ", ".join(self.grounding.classes), ", ".join(self.examples.classes)
            raise OptionError(f"the classes {named}: the images show {shown}; name these, in this order")
        if not all(0 < threshold < 1 for threshold in self.thresholds):
            raise OptionError(f"thresholds {self.thresholds}: they must be between 0 and 1")

    def pairs(self) -> list[tuple[int, int]]:
        """Time steps and draws: each time step at the default draws, the default time step at each number of draws."""
        default = self.grounding
        pairs = [(step, default.draws) for step in self.timesteps]
        pairs += [(default.timestep, count) for count in self.draws]
        return list(dict.fromkeys(pairs))

    def run(self) -> Section:
        """Measure the steps that are not measured yet, and write table and plot.

        Raises
        ------
        OptionError
            If `out` holds figures of other options.
        """
        steps = {f"t{timestep}-L{draws}": partial(self._measure, timestep, draws) for timestep, draws in self.pairs()}
        inputs = getattr(self.examples, "sources", ())
        with step_folder(self.out, self._key(), steps, overwrite=self.overwrite, inputs=inputs) as folder:
            done = run_steps(folder, steps, title="study", progress=self.progress)
            rows = [
                self._measurement(timestep, draws, threshold, way, found[threshold][way])
                for (timestep, draws), found in zip(self.pairs(), done.values(), strict=True)
                for threshold in map(str, self.thresholds)
                for way in WAYS
            ]
            section = Section(
                "diffuprompter",
                "Which numbers give the best pseudo-labels? (DiffuPrompter)",
                rows,
                ["AP is that of the pseudo-labels; the paper's is of a network trained on them, on its own data."],
            )
            write_study(section, folder, pale=MAP_ALONE)
        return section

    @staticmethod
    def _measurement(
        timestep: int, draws: int, threshold: str, way: str, values: dict[str, float | None]
    ) -> Measurement:
        printed = PAPER.get((str(timestep), threshold)) if way == "masks" and draws == 50 else None
        extra = {} if printed is None else {"AP of the paper's Mask R-CNN": printed}
        name = f"t {timestep}, L {draws}, threshold {threshold}, {way}"
        return Measurement("", name, figures_of(values) | extra)

    def _key(self) -> dict[str, Any]:
        """Everything that the figures depend on."""
        recipes = recipes_of(self.networks, self.diffusion, self.grounding)
        grounding = {name: value for name, value in asdict(self.grounding).items() if name not in ("timestep", "draws")}
        return {
            "thresholds": list(self.thresholds),
            "networks": {recipe.role: recipe.sha256 for recipe in recipes},
            "words": grounding,
            "images": len(self.examples),
        }

    def _measure(self, timestep: int, draws: int) -> dict[str, dict[str, Figures]]:
        # figures by threshold and way
        grounding = replace(self.grounding, timestep=timestep, draws=draws)
        locate, segment = recipes_of(self.networks, self.diffusion, grounding)
        localizer, segmenter = worker.localizer(locate), worker.segmenter(segment)
        counted = {
            (threshold, way): _LabelScores(len(grounding.classes)) for threshold in self.thresholds for way in WAYS
        }
        for index in range(len(self.examples)):
            image, truth = self.examples[index]
            shown = {grounding.classes[value - 1] for value in truth.class_ids.tolist()}
            if not shown:
                continue
            once = Once(asked_only(localizer, shown))
            for (threshold, way), scores in counted.items():
                scores.add(truth, self._label(once, segmenter, threshold, way)(image))
        return {
            str(threshold): {way: counted[threshold, way].figures() for way in WAYS} for threshold in self.thresholds
        }

    @staticmethod
    def _label(once: Once, segmenter: Segmenter, threshold: float, way: str) -> Callable[[UInt8Array], LabelMap]:
        pipeline = compose(once, segmenter, threshold, attention_only=WAYS[way])
        return lambda image: label_image(pipeline, image, min(once.window, segmenter.window))


@dataclass
class _LabelScores:
    # agreement of label maps with objects: IoU of each class over all pixels, and AP
    classes: int
    precision: AveragePrecision = field(init=False)
    both: list[int] = field(init=False)
    either: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.precision, self.both, self.either = AveragePrecision(self.classes), [0] * self.classes, [0] * self.classes

    def add(self, truth: Instances, labels: LabelMap) -> None:
        painted = np.concatenate([[0], truth.class_ids])[truth.ids]
        for k in range(self.classes):
            true, predicted = painted == k + 1, labels.values == k + 1
            self.both[k] += int((true & predicted).sum())
            self.either[k] += int((true | predicted).sum())
        self.precision.add(truth, ScoredMasks.of(closed_regions(labels)))

    def figures(self) -> Figures:
        ious = [ratio(both, either) for both, either in zip(self.both, self.either, strict=True)]
        defined = [value for value in ious if not math.isnan(value)]
        return {"IoU": float(np.mean(defined)) if defined else math.nan, **self.precision.figures()}

"""The report of ``bench weak``: tables over seeds with paired differences, and a sheet of pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from geolabel.chips import Chip
from geolabel.errors import OptionError
from geolabel.evaluation.chip_scores import paired_interval
from geolabel.evaluation.network_scores import iou
from geolabel.evaluation.steps import Measurement, Section, write_text
from geolabel.evaluation.weak import METHODS, PSEUDO, STUDENTS, WeakBench
from geolabel.labelers import enlarged
from geolabel.labels import IGNORE
from geolabel.models.multiscale import LabelledLocalizer
from geolabel.outputs import replacing
from geolabel.training import students
from geolabel.types import UInt8Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes

START = "as they start"
"""Row of the initial localizer."""

COUNT = 12
"""Chips on a sheet."""

TRUTH, FOUND = "yellow", "red"

Plot = Callable[["Axes", Chip], None]
"""Plots one column of a chip."""


# --- tables ----------------------------------------------------------------------------------------------------------


def write_table(done: dict[str, dict[str, Any]], out: Path, title: str) -> list[Section]:
    """Write the figures of all finished steps as Markdown: means over seeds, and their spread (max - min)."""
    sections = [
        _image_section(done),
        map_section(done),
        _pseudo_section(done),
        _student_section(done),
        difference_section(done),
    ]
    kept = [section for section in sections if section.measured]
    write_text(out, "\n".join([f"# {title}", "", *(section.markdown() for section in kept)]))
    return kept


def _localizers(done: dict[str, dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    found = {START: [done["start"]] if "start" in done else []} | {m: _over_seeds(done, m) for m in METHODS}
    return {name: of for name, of in found.items() if of}


def _image_section(done: dict[str, dict[str, Any]]) -> Section:
    """Whether chips show something."""
    rows = [
        row("val", name, {"AUC": [f["AUC"] for f in of], "accuracy": [f["accuracy"] for f in of]})
        for name, of in _localizers(done).items()
    ]
    floors = done.get("floors", {}).get("AUC", {})
    rows += [Measurement("val", name, {"AUC": value}) for name, value in floors.items()]
    return Section("image", "Does a chip show it?", rows)


def map_section(done: dict[str, dict[str, Any]]) -> Section:
    """Position of the maximum of maps, and how well they cover landslides."""
    rows, areas = [], 0.0
    for name, of in _localizers(done).items():
        maps = [found["maps"] for found in of]
        figures = {"hits": [np.mean(m["hits"]) for m in maps], "map IoU": [_map_ious(m).mean() for m in maps]}
        refined = [found["refined maps"] for found in of if "refined maps" in found]
        if refined:
            figures |= {"hits, refined": [np.mean(m["hits"]) for m in refined]}
            figures |= {"map IoU, refined": [_map_ious(m).mean() for m in refined]}
        rows.append(row("val", name, figures))
        areas = float(np.mean(maps[0]["areas"]))
    if rows:
        rows.append(Measurement("val", "random place", {"hits": areas}))
    return Section("map", "Is the maximum of a map on what the chip shows?", rows)


def _pseudo_section(done: dict[str, dict[str, Any]]) -> Section:
    """Agreement of pseudo-labels with masks."""
    rows = []
    for name in PSEUDO:
        if of := _over_seeds(done, f"pseudo {name}"):
            ious = [f["shown"]["miou" if "iou" not in f["shown"] else "iou"] for f in of]
            means = [float(np.mean(f["ious"])) for f in of]
            rows.append(row("train, held out", name, {"IoU": ious, "mean IoU of chips": means}))
    return Section("pseudo", "How good are pseudo-labels of chips that show it?", rows)


STUDENT_FIGURES = {"iou": "IoU", "f1": "F1", "overall_accuracy": "OA", "precision": "P", "recall": "R", "miou": "mIoU"}


def _student_section(done: dict[str, dict[str, Any]]) -> Section:
    """Students and baselines, on all chips, on those that show a class, and on the mosaic."""
    found = {f"student of {name}": _over_seeds(done, f"student {name}") for name in STUDENTS}
    floors = done.get("floors", {})
    found |= {name: [floors[name]] for name in ("ellipse", "Otsu") if name in floors}
    rows = []
    for part, title in (("shown", "val, chips that show it"), ("all", "val, all chips"), ("mosaic", "val, mosaic")):
        for name, of in found.items():
            figures = {
                text: [f[part][key] for f in of if key in f.get(part, {})] for key, text in STUDENT_FIGURES.items()
            }
            if any(figures.values()):
                rows.append(row(title, name, {key: values for key, values in figures.items() if values}))
    return Section("student", "How good are students?", rows)


def difference_section(done: dict[str, dict[str, Any]]) -> Section:
    """Differences on the same chips, means over the seeds of both, with intervals of 95 % over chips."""
    rows = []
    for key, title in (("maps", "map IoU"), ("refined maps", "refined map IoU")):
        for better, than in (("cam", START), ("s2c", "cam"), ("cism", "cam")):
            first, second = _of_both(done, better, than)
            if first and all(key in found for found in (*first, *second)):
                ious = (np.mean([_map_ious(f[key]) for f in some], axis=0) for some in (first, second))
                rows.append(_difference("val, chips that show it", f"{title} of {better} over {than}", *ious))
    for better, than in (("apsam paper", "apsam box"), ("apsam box", "apsam point"), ("apsam", "apsam paper")):
        first, second = _of_both(done, f"pseudo {better}", f"pseudo {than}")
        if first:
            ious = (np.mean([f["ious"] for f in some], axis=0) for some in (first, second))
            rows.append(_difference("train, held out", f"labels of {better} over {than}", *ious))
    for name in STUDENTS[:-1]:
        first, second = _of_both(done, f"student {name}", "student masks")
        if first:
            key = "iou" if "iou" in first[0]["shown"] else "miou"
            ious = (np.mean([f["ious"] for f in some], axis=0) for some in (first, second))
            ours, theirs = (np.mean([f["shown"][key] for f in some]) for some in (first, second))
            row = _difference("val, chips that show it", f"student of {name} over that of masks", *ious)
            rows.append(replace(row, figures=row.figures | {"ratio of IoU": float(ours / theirs)}))
    return Section("difference", "What is better than what?", rows)


def _of_both(done: dict[str, dict[str, Any]], first: str, second: str) -> tuple[list[Any], list[Any]]:
    """Figures of two steps for the seeds that have both; the initial localizer is combined with every seed."""
    found: tuple[list[Any], list[Any]] = [], []
    for seed in dict.fromkeys(key.partition("/")[0] for key in done if "/" in key):
        keys = [START if name == START else f"{seed}/{name}" for name in (first, second)]
        pair = [done.get("start" if key == START else key) for key in keys]
        if all(one is not None for one in pair):
            for some, one in zip(found, pair, strict=True):
                some.append(one)
    return found


def _over_seeds(done: dict[str, dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """Figures of a step, of each seed that has them."""
    return [found for key, found in done.items() if key.partition("/")[2] == name]


def row(data: str, method: str, figures: Mapping[str, Iterable[float]]) -> Measurement:
    """Means over seeds, each with its spread where there are several."""
    means: dict[str, float] = {}
    for name, values in figures.items():
        array = np.array([np.nan if value is None else value for value in values], float)
        means[name] = float(array.mean())
        if len(array) > 1:
            means[f"{name} spread"] = float(np.ptp(array))
    return Measurement(data, method, means)


def _map_ious(maps: dict[str, Any]) -> Any:
    return np.asarray(maps["ious"])[:, maps["chosen"]]


def _difference(data: str, name: str, first: Any, second: Any) -> Measurement:
    mean, low, high = paired_interval(first, second)
    return Measurement(data, name, {"difference": mean, "from": low, "to": high})


# --- pictures ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Sheet:
    """Columns of a sheet: the networks of one seed."""

    bench: WeakBench
    seed: int

    def columns(self) -> dict[str, Plot]:
        """Columns by title, for all trained networks."""
        found: dict[str, Plot] = {}
        for method in METHODS:
            if self.bench.localizer_file(method, self.seed).is_file():
                found[f"{method}: map"] = self._map(method)
                for name in (name for name, of in PSEUDO.items() if of == method and " " not in name):
                    found[f"{name}: labels"] = self._labels(name)
        for name in STUDENTS:
            if (self.bench.student_folder(name, self.seed) / students.FILE).is_file():
                found[f"student of {name}"] = self._student(name)
        return found

    def _map(self, method: Any) -> Plot:
        labels = next(name for name, of in PSEUDO.items() if of == method)
        locate = self.bench.locate(labels, self.seed)
        prompter = self.bench.compose(labels)(locate).prompter

        def plot(axes: Axes, chip: Chip) -> None:
            (activation,) = LabelledLocalizer(locate, chip.labels)([chip.rgb])
            values = enlarged(activation, *chip.rgb.shape[:2]).max(axis=0)
            axes.imshow(values, cmap="inferno", vmin=0, vmax=1)
            axes.autoscale(False)  # boxes reach the frame
            prompts = prompter(activation)
            for x0, y0, x1, y1 in prompts.boxes[prompts.has_box]:
                axes.plot([x0, x1, x1, x0, x0], [y0, y0, y1, y1, y0], color="cyan", linewidth=0.7)
            points = prompts.points[prompts.labels == 1]
            axes.plot(points[:, 0], points[:, 1], "c+", markersize=5)

        return plot

    def _labels(self, name: str) -> Plot:
        label = self.bench.label(name, self.seed)
        return lambda axes, chip: _outline(axes, chip, label(chip.rgb, chip.labels).values)

    def _student(self, name: str) -> Plot:
        student = self.bench.trained_student(name, self.seed)
        return lambda axes, chip: _outline(axes, chip, student.label(chip.rgb).values)


def _outline(axes: Axes, chip: Chip, values: UInt8Array) -> None:
    found = (values > 0) & (values != IGNORE)
    axes.imshow(chip.rgb)
    if found.any() and not found.all():
        axes.contour(found, levels=[0.5], colors=FOUND, linewidths=0.9)
    if chip.mask is not None:
        judged = (chip.mask != IGNORE) & (values != IGNORE)
        axes.set_xlabel(f"{iou(found & judged, (chip.mask > 0) & judged):.2f}", fontsize=7, labelpad=1)


def draw_sheet(bench: WeakBench, path: Path, *, seed: int = 0, count: int = COUNT) -> dict[str, list[str]]:
    """Plot `count` chips of ``val/`` that show a class, evenly spread, one per row.

    Truth is outlined in yellow, predictions in red with their IoU below; prompts on maps are cyan.

    Returns
    -------
    names of the chips and titles of the columns

    Raises
    ------
    OptionError
        If nothing is trained yet.
    """
    from matplotlib.figure import Figure

    columns = _Sheet(bench, seed).columns()
    if not columns:
        raise OptionError(f"nothing is trained yet in {bench.work}: run the same command for longer first")
    shown = np.flatnonzero(bench.val.labels.any(axis=1))
    at = shown[np.unique(np.linspace(0, len(shown) - 1, min(count, len(shown))).astype(int))]
    figure = Figure(figsize=(1.35 * (len(columns) + 1), 1.45 * len(at)), dpi=110, layout="constrained")
    grid = figure.subplots(len(at), len(columns) + 1, squeeze=False)
    names = []
    for row, k in zip(grid, at, strict=True):
        chip = bench.val.chip(int(k))
        names.append(chip.name)
        row[0].imshow(chip.rgb)
        row[0].set_ylabel(chip.name, fontsize=7)
        for axes, plot in zip(row[1:], columns.values(), strict=True):
            plot(axes, chip)
        for axes in row:
            if chip.mask is not None:
                axes.contour(chip.mask > 0, levels=[0.5], colors=TRUTH, linewidths=0.7)
            axes.set(xticks=[], yticks=[])
    for axes, title in zip(grid[0], ("chip", *columns), strict=True):
        axes.set_title(title, fontsize=7)
    with replacing(path, overwrite=True) as part:
        figure.savefig(part, format="png", metadata={"Software": None})
    return {"chips": names, "columns": ["chip", *columns]}

"""Pictures of ``bench weak``: chips beside their maps, prompts, pseudo-labels and what the students draw."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from geolabel.chips import Chip
from geolabel.errors import OptionError
from geolabel.evaluation.maps import iou
from geolabel.evaluation.weak import METHODS, PSEUDO, STUDENTS, WeakBench
from geolabel.labelers import enlarged
from geolabel.labels import IGNORE
from geolabel.models.multiscale import LabelledLocalizer
from geolabel.outputs import replacing
from geolabel.training import students
from geolabel.types import UInt8Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COUNT = 12
"""Chips on a sheet."""

TRUTH, FOUND = "yellow", "red"

Paint = Callable[["Axes", Chip], None]
"""Draws what one column shows of a chip."""


@dataclass(frozen=True)
class _Sheet:
    """What the trainings of one seed have left, as columns of a sheet."""

    bench: WeakBench
    seed: int

    def columns(self) -> dict[str, Paint]:
        """Everything that is trained, by its title."""
        found: dict[str, Paint] = {}
        for method in METHODS:
            if self.bench.localizer_file(method, self.seed).is_file():
                found[f"{method}: map"] = self._map(method)
                for name in (name for name, of in PSEUDO.items() if of == method and " " not in name):
                    found[f"{name}: labels"] = self._labels(name)
        for name in STUDENTS:
            if (self.bench.student_folder(name, self.seed) / students.FILE).is_file():
                found[f"student of {name}"] = self._student(name)
        return found

    def _map(self, method: Any) -> Paint:
        locate = self.bench.locate(method, self.seed)
        prompter = None if method == "cism" else self.bench.compose(_asked(method))(locate).prompter

        def paint(axes: Axes, chip: Chip) -> None:
            (activation,) = LabelledLocalizer(locate, chip.labels)([chip.rgb])
            values = enlarged(activation, *chip.rgb.shape[:2]).max(axis=0)
            axes.imshow(values, cmap="inferno", vmin=0, vmax=1)
            axes.autoscale(False)  # boxes reach the frame
            if prompter is None:
                return
            prompts = prompter(activation)
            for x0, y0, x1, y1 in prompts.boxes[prompts.has_box]:
                axes.plot([x0, x1, x1, x0, x0], [y0, y0, y1, y1, y0], color="cyan", linewidth=0.7)
            points = prompts.points[prompts.labels == 1]
            axes.plot(points[:, 0], points[:, 1], "c+", markersize=5)

        return paint

    def _labels(self, name: str) -> Paint:
        label = self.bench.label(name, self.seed)
        return lambda axes, chip: _outline(axes, chip, label(chip.rgb, chip.labels).values)

    def _student(self, name: str) -> Paint:
        student = self.bench.drawer(name, self.seed)
        return lambda axes, chip: _outline(axes, chip, student.label(chip.rgb).values)


def _asked(method: str) -> str:
    return "apsam" if method == "cam" else method


def _outline(axes: Axes, chip: Chip, values: UInt8Array) -> None:
    found = (values > 0) & (values != IGNORE)
    axes.imshow(chip.rgb)
    if found.any() and not found.all():
        axes.contour(found, levels=[0.5], colors=FOUND, linewidths=0.9)
    if chip.mask is not None:
        judged = (chip.mask != IGNORE) & (values != IGNORE)
        axes.set_xlabel(f"{iou(found & judged, (chip.mask > 0) & judged):.2f}", fontsize=7, labelpad=1)


def draw_sheet(bench: WeakBench, path: Path, *, seed: int = 0, count: int = COUNT) -> dict[str, list[str]]:
    """Draw `count` chips of ``val/`` that show something, evenly spread, one in a row.

    Truth is outlined in yellow, what was found in red with its IoU below; prompts lie on the maps in cyan.

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
        for axes, paint in zip(row[1:], columns.values(), strict=True):
            paint(axes, chip)
        for axes in row:
            if chip.mask is not None:
                axes.contour(chip.mask > 0, levels=[0.5], colors=TRUTH, linewidths=0.7)
            axes.set(xticks=[], yticks=[])
    for axes, title in zip(grid[0], ("chip", *columns), strict=True):
        axes.set_title(title, fontsize=7)
    with replacing(path, overwrite=True) as part:
        figure.savefig(part, format="png", metadata={"Software": None})
    return {"chips": names, "columns": ["chip", *columns]}

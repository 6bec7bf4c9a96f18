"""Reliability of probabilities over bins, and the expected calibration error."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from geolabel.outputs import replacing
from geolabel.types import BoolArray, Float64Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BINS = 10


@dataclass(frozen=True)
class Bin:
    """Cases with a probability in one bin."""

    lower: float
    upper: float
    count: int
    probability: float
    """Mean probability; NaN without cases."""
    share: float
    """Share of the cases that is true; NaN without cases."""


def reliability(probability: Float64Array, truth: BoolArray, bins: int = BINS) -> list[Bin]:
    """Reliability of probabilities (N,) 0..1 given truth (N,), in bins of equal width; the last includes 1."""
    place = np.minimum((probability * bins).astype(int), bins - 1)
    found = []
    for number in range(bins):
        here = place == number
        count = int(here.sum())
        mean = float(probability[here].mean()) if count else float("nan")
        share = float(truth[here].mean()) if count else float("nan")
        found.append(Bin(number / bins, (number + 1) / bins, count, mean, share))
    return found


def expected_calibration_error(bins: list[Bin]) -> float:
    """Mean distance of probability and true share, bins weighted by their cases; NaN without cases.

    Source: Naeini, Cooper, Hauskrecht (2015), "Obtaining Well Calibrated Probabilities Using Bayesian Binning".
    """
    total = sum(part.count for part in bins)
    if not total:
        return float("nan")
    return sum(part.count * abs(part.probability - part.share) for part in bins if part.count) / total


def draw_curves(path: Path, curves: dict[str, list[Bin]]) -> None:
    """Plot reliability curves as a PNG, one panel per kind; the size of dots shows the number of cases.

    Parameters
    ----------
    curves
        By kind and set, such as ``gate, bijie``. Sets with a single outcome have no curve and are skipped.
    """
    from matplotlib.figure import Figure

    shown = {name: bins for name, bins in curves.items() if _has_both(bins)}
    kinds = list(dict.fromkeys(name.partition(", ")[0] for name in shown)) or [""]
    figure = Figure(figsize=(5 * len(kinds), 5), dpi=110, layout="constrained")
    panels = figure.subplots(1, len(kinds), squeeze=False)[0]
    for axes, kind in zip(panels, kinds, strict=True):
        axes.plot([0, 1], [0, 1], color="0.7", linewidth=1)
        for name, bins in shown.items():
            if name.partition(", ")[0] == kind:
                _draw_curve(axes, name.partition(", ")[2] or name, bins)
        axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="probability", ylabel="share that was true", title=kind)
        axes.set_aspect("equal")
        if axes.get_legend_handles_labels()[0]:
            axes.legend(loc="upper left", fontsize=7)
    with replacing(path, overwrite=True) as part:
        figure.savefig(part, metadata={"Software": None})


def _has_both(bins: list[Bin]) -> bool:
    """Whether some cases are true and some are not."""
    filled = [part for part in bins if part.count]
    return any(part.share > 0 for part in filled) and any(part.share < 1 for part in filled)


def _draw_curve(axes: Axes, name: str, bins: list[Bin]) -> None:
    filled = [part for part in bins if part.count]
    total = sum(part.count for part in filled)
    x, y = [part.probability for part in filled], [part.share for part in filled]
    (line,) = axes.plot(x, y, linewidth=1.2, label=f"{name}, error {expected_calibration_error(bins):.3f}")
    sizes = [12 + 300 * part.count / total for part in filled]
    axes.scatter(x, y, s=sizes, color=line.get_color(), alpha=0.6)

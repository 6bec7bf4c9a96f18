"""Scores of label maps of chips against masks, per class, with confidence intervals over chips."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from geolabel.datasets.chips import PaintedChips, read_painted
from geolabel.datasets.pseudo_labels import PseudoLabels
from geolabel.engine import worker
from geolabel.engine.tasks import Progress, Silent
from geolabel.errors import ChipError, WeightsError
from geolabel.extraction.request import Networks
from geolabel.labels import BACKGROUND, IGNORE
from geolabel.metrics import class_figures, count_pixels
from geolabel.types import BoolArray, Float64Array, Int64Array, UInt8Array

Predict = Callable[[int, UInt8Array], UInt8Array]
"""Label map (H, W) of an image, given its number and its pixels (H, W, 3)."""


DRAWS = 1000
"""Number of bootstrap samples for an interval."""


@dataclass(frozen=True)
class ChipScores:
    """Pixel counts of N chips, and figures computed from them."""

    counts: Int64Array
    """(N, K, K) confusion matrices, see `geolabel.metrics.count_pixels`."""
    classes: tuple[str, ...]
    """Names of all K classes; the first is the background."""
    shows: BoolArray
    """(N,) whether each chip shows a class."""
    names: tuple[str, ...]

    def of_shown(self) -> Self:
        """Scores of only the chips that show a class."""
        names = tuple(name for name, shows in zip(self.names, self.shows, strict=True) if shows)
        return replace(self, counts=self.counts[self.shows], shows=self.shows[self.shows], names=names)

    def figures(self) -> dict[str, float]:
        """Figures over all pixels; see `geolabel.metrics.class_figures`."""
        return class_figures(self.counts.sum(axis=0), self.classes)

    def intervals(self, seed: int = 0, level: float = 0.95) -> dict[str, tuple[float, float]]:
        """Lower and upper end of each figure's interval, by percentile bootstrap over chips; NaN if undefined."""
        n = len(self.counts)
        weights = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), DRAWS)
        samples = np.einsum("dn,nij->dij", weights, self.counts)
        values = np.array([list(class_figures(sample, self.classes).values()) for sample in samples])
        edge = (1 - level) / 2
        return {key: _quantiles(column, edge) for key, column in zip(self.figures(), values.T, strict=True)}

    def tables(self) -> dict[str, dict[str, dict[str, float | None]]]:
        """Each figure with its interval, for all chips and for those that show a class; None if undefined.

        If all chips show a class, or none does, there is one table.
        """
        parts = {"all chips": self}
        if self.shows.any() and not self.shows.all():
            parts["chips that show something"] = self.of_shown()
        return {name: part._table() for name, part in parts.items()}

    def _table(self) -> dict[str, dict[str, float | None]]:
        intervals = self.intervals()
        return {
            key: {"value": _defined(value), "low": _defined(intervals[key][0]), "high": _defined(intervals[key][1])}
            for key, value in self.figures().items()
        }


def paired_interval(
    first: Sequence[float] | Float64Array, second: Sequence[float] | Float64Array, seed: int = 0, level: float = 0.95
) -> tuple[float, float, float]:
    """Mean difference of two figures of the same chips, and its percentile bootstrap interval.

    Chips without one of the two (NaN) are skipped.
    """
    difference = np.asarray(first, np.float64) - np.asarray(second, np.float64)
    difference = difference[~np.isnan(difference)]
    n = len(difference)
    if not n:
        return (float("nan"),) * 3
    means = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), DRAWS) @ difference / n
    return float(difference.mean()), *_quantiles(means, (1 - level) / 2)


def _quantiles(values: Float64Array, edge: float) -> tuple[float, float]:
    defined = values[~np.isnan(values)]
    if not len(defined):
        return float("nan"), float("nan")
    low, high = np.quantile(defined, [edge, 1 - edge])
    return float(low), float(high)


def _defined(value: float) -> float | None:
    return None if np.isnan(value) else value


def score_chips(
    predicted: str | Path,
    truth: str | Path,
    *,
    class_name: str = "landslide",
    networks: Networks | None = None,
    progress: Progress | None = None,
) -> ChipScores:
    """Score label maps against the masks of the same chips; pixels that either side ignores are not counted.

    Parameters
    ----------
    predicted
        Folder of pseudo-labels, or the file of a student, which then labels every chip.
    truth
        Chips with masks, or pseudo-labels to compare with.
    networks
        Device and precision of the student.

    Raises
    ------
    ChipError
        If a chip has no prediction, the sizes differ, or the classes do.
    """
    masks = read_painted(truth, class_name=class_name)
    classes = tuple(masks.classes)
    path = Path(predicted)
    predict = _student(path, classes, networks or Networks()) if path.is_file() else _folder(path, masks)
    counts, shows = [], []

    def work() -> Iterator[int]:
        for k in range(len(masks)):
            chip = masks[k]
            found = predict(k, chip.image)
            if found.shape != chip.values.shape:
                raise ChipError(
                    f"{masks.names[k]} is predicted with {found.shape} px but has {chip.values.shape} px: "
                    "label the same chips"
                )
            counts.append(count_pixels(found, chip.values, len(classes)))
            shows.append(bool(((chip.values != 0) & (chip.values != IGNORE)).any()))
            yield k

    for _ in (progress or Silent()).track(work(), "chips", len(masks)):
        pass
    return ChipScores(np.stack(counts), classes, np.array(shows), tuple(masks.names))


def _folder(path: Path, masks: PseudoLabels | PaintedChips) -> Predict:
    labels = PseudoLabels(path)
    _check_classes(labels.classes, masks.classes, path)
    place = {name: k for k, name in enumerate(labels.names)}
    missing = [name for name in masks.names if name not in place]
    if missing:
        raise ChipError(f"{len(missing)} of {len(masks)} chips are not in {path}, such as {missing[0]}: label them too")
    return lambda k, _: labels[place[masks.names[k]]].values


def _student(path: Path, classes: tuple[str, ...], networks: Networks) -> Predict:
    from geolabel.models.cam import DenseLocalizer
    from geolabel.models.checkpoint import load_own

    if path.suffix != ".safetensors":
        raise WeightsError(
            f"{path} is neither a folder of pseudo-labels nor a student, whose file ends in .safetensors"
        )
    network, info = load_own(path, "student")
    _check_classes(info.classes, classes, path)
    device, precision = worker.device_and_precision(networks.device, networks.precision)
    student = DenseLocalizer(network, info, zoom=info.zoom, device=device, precision=precision)
    return lambda _, image: student.label(image).values


def _check_classes(found: tuple[Any, ...], wanted: tuple[Any, ...], path: Path) -> None:
    if tuple(found) != tuple(wanted):
        names = [", ".join(name for name in some if name != BACKGROUND) for some in (found, wanted)]
        raise ChipError(f"{path} knows {names[0]}, the masks show {names[1]}: give masks of the same classes")

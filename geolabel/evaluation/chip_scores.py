"""Score label maps of chips, or a student that makes them, against masks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from geolabel.agreement import Agreement, count_pixels
from geolabel.datasets.painted import PaintedChips, read_painted
from geolabel.datasets.pseudo_labels import PseudoLabels
from geolabel.engine import worker
from geolabel.engine.progress import Progress, Silent
from geolabel.errors import ChipError, WeightsError
from geolabel.extraction.request import Networks
from geolabel.labels import BACKGROUND, IGNORE
from geolabel.types import BoolArray, UInt8Array

Predict = Callable[[int, UInt8Array], UInt8Array]
"""Label map (H, W) of an image by its number and its pixels (H, W, 3)."""


@dataclass(frozen=True)
class ChipScores:
    """Figures of a set of chips."""

    names: tuple[str, ...]
    agreement: Agreement
    shows: BoolArray
    """(N,) which chips truly show a class."""

    def tables(self) -> dict[str, dict[str, dict[str, float | None]]]:
        """Every figure with its interval, of all chips, and of those that show something; None if not defined.

        Where no chip shows nothing, the two are the same and there is but one.
        """
        parts = {"all chips": self.agreement}
        if self.shows.any() and not self.shows.all():
            parts["chips that show something"] = Agreement(self.agreement.counts[self.shows], self.agreement.classes)
        return {name: _table(part) for name, part in parts.items()}


def _table(agreement: Agreement) -> dict[str, dict[str, float | None]]:
    intervals = agreement.interval()
    return {
        key: {"value": _told(value), "low": _told(intervals[key][0]), "high": _told(intervals[key][1])}
        for key, value in agreement.figures().items()
    }


def _told(value: float) -> float | None:
    return None if np.isnan(value) else value


def score_chips(
    predicted: str | Path,
    truth: str | Path,
    *,
    class_name: str = "landslide",
    networks: Networks | None = None,
    progress: Progress | None = None,
) -> ChipScores:
    """Score label maps against the masks of the same chips; pixels that either side ignores count nowhere.

    Parameters
    ----------
    predicted
        Folder of pseudo-labels, or the file of a student, which then labels every chip.
    truth
        Chips with masks, or pseudo-labels to compare with.
    networks
        Where the student runs.

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
                raise ChipError(f"{masks.names[k]} is predicted with {found.shape} px and has {chip.values.shape} px: "
                                "label the same chips")  # fmt: skip
            counts.append(count_pixels(found, chip.values, len(classes)))
            shows.append(bool(((chip.values != 0) & (chip.values != IGNORE)).any()))
            yield k

    for _ in (progress or Silent()).track(work(), "chips", len(masks)):
        pass
    return ChipScores(tuple(masks.names), Agreement(np.stack(counts), classes), np.array(shows))


def _folder(path: Path, masks: PseudoLabels | PaintedChips) -> Predict:
    labels = PseudoLabels(path)
    _check_classes(labels.classes, masks.classes, path)
    place = {name: k for k, name in enumerate(labels.names)}
    missing = [name for name in masks.names if name not in place]
    if missing:
        raise ChipError(f"{len(missing)} of {len(masks)} chips are not in {path}, such as {missing[0]}: label them too")
    return lambda k, _: labels[place[masks.names[k]]].values


def _student(path: Path, classes: tuple[str, ...], networks: Networks) -> Predict:
    from geolabel.models.checkpoints import load_own
    from geolabel.models.dense import DenseLocalizer

    if path.suffix != ".safetensors":
        raise WeightsError(f"{path} is no folder of pseudo-labels and no student, whose file ends in .safetensors")
    network, info = load_own(path, "student")
    _check_classes(info.classes, classes, path)
    device, precision = worker.device_and_precision(networks.device, networks.precision)
    student = DenseLocalizer(network, info, zoom=info.zoom, device=device, precision=precision)
    return lambda _, image: student.label(image).values


def _check_classes(found: tuple[Any, ...], wanted: tuple[Any, ...], path: Path) -> None:
    if tuple(found) != tuple(wanted):
        names = [", ".join(name for name in some if name != BACKGROUND) for some in (found, wanted)]
        raise ChipError(f"{path} knows {names[0]}, the masks show {names[1]}: give masks of the same classes")

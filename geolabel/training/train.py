"""The common training: from a set of chips to a file for extract.

Localizers, students and detectors differ in their requests: `TrainingRequest.prepare` turns data into a `Training`,
which `train` runs in a folder, resumes after an interruption, and writes.
"""

from __future__ import annotations

import hashlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
from torch import nn

from geolabel.chips import is_held_out
from geolabel.engine import worker
from geolabel.engine.tasks import Progress, Silent
from geolabel.errors import ChipError, OptionError, OutputError, WeightsError
from geolabel.extraction.request import Networks
from geolabel.folders import work_folder
from geolabel.models.checkpoint import NetworkInfo, save_checkpoint
from geolabel.training.fit import LOSSES, STATE, Objective, Schedule, fit
from geolabel.training.presets import TrainingPreset
from geolabel.training.samples import Cropping
from geolabel.types import Int64Array

log = logging.getLogger(__name__)

Data = TypeVar("Data")
Preset = TypeVar("Preset", bound=TrainingPreset)

Figures = dict[str, float]

_ANY_GSD = (0.01, 1000.0)
"""Assumed range of metres per pixel for training images of unknown gsd."""

_WRITERS = ("PytorchStreamWriter", "inline_container")
"""Parts of torch's messages when a state does not fit on the disk, for its first or last part."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """What is trained, its data, and the description of its file."""

    network: Callable[[nn.Module], nn.Module]
    """Selects the part of the objective's trained module that is kept."""
    objective: Callable[[Path, Networks, Progress], Objective]
    """Creates the objective, which may store files in the folder of the training and use a segmenter."""
    schedule: Schedule
    inputs: Sequence[Path]
    """Files and folders of training data."""
    describe: Callable[[nn.Module, Figures, Figures], NetworkInfo]
    """Makes the description, from figures on the images held out for selection and on those of the test."""
    test: Callable[[], Figures] | None = None
    """Evaluates the trained network on data that was not used in training."""


@dataclass(frozen=True, kw_only=True)
class TrainingRequest(ABC, Generic[Data, Preset]):
    """Request for any training on crops; None uses the preset's number.

    Raises
    ------
    OptionError
        If the crop size is not supported.
    """

    file: ClassVar[str]
    """Name of the weights in the folder of a training."""

    epochs: float | None = None
    """Number of epochs."""
    minutes: float | None = None
    """Wall clock limit; the weights then depend on the machine."""
    size: int | None = None
    """Side of the crops, pixels."""
    batch: int | None = None
    """Crops per step."""
    seed: int = 0
    gsd: float | None = None
    """Metres per pixel of images without georeference."""

    def __post_init__(self) -> None:
        if self.size is not None and (self.size % 32 or self.size < 32):
            near = max(32, self.size // 32 * 32)
            raise OptionError(f"crops of {self.size} px: networks take multiples of 32 px, such as {near}")

    def applied_to(self, preset: Preset) -> Preset:
        """Return the preset with the requested crops."""
        cropping = replace(preset.cropping, size=self.size or preset.cropping.size)
        return replace(preset, cropping=cropping, batch=self.batch or preset.batch)

    def steps_of(self, preset: Preset, epoch: int) -> int:
        """Steps of the training, given those of an epoch."""
        return max(2, round((self.epochs or preset.epochs) * epoch))

    @property
    @abstractmethod
    def numbers(self) -> Preset:
        """The preset with the requested changes."""

    @abstractmethod
    def prepare(self, data: str | Path | Data, numbers: Preset, test: str | Path | Data | None) -> Training:
        """Read and check the data, and build the network with its first weights; see `train`."""


def train(
    data: str | Path | Data,
    out: str | Path,
    request: TrainingRequest[Data, Preset],
    *,
    test: str | Path | Data | None = None,
    networks: Networks | str | Path | None = None,
    preset: Preset | None = None,
    overwrite: bool = False,
    resume: bool = False,
    progress: Progress | None = None,
) -> Figures:
    """Train a localizer, a student or a detector, and write its file, curves and state to a folder.

    One image in five, chosen by name, is held out for selection.

    Parameters
    ----------
    data
        Training data: for a `LocalizerRequest` chips with image-level labels, see
        `geolabel.datasets.chips.read_chips`; for a `StudentRequest` images with label maps, see
        `geolabel.datasets.chips.read_painted`; for a `DetectorRequest` images with objects, see
        `geolabel.datasets.instances.read_instances`. A path is read with these. Chips with image-level labels or label
        maps may be a `geolabel.datasets.geochips.GeoChips`.
    out
        Folder for the weights, the curves, and the state from which an interrupted training resumes.
    request
        Kind of network, and how to train it.
    test
        Data of the same kind for a final evaluation besides the held-out images; not for localizers.
    networks
        Device of the training, and the segmenter for S2C.
    preset
        Preset that replaces that of the request.
    overwrite
        Whether an earlier training in `out` may be replaced; it is kept until this one has ended.
    resume
        Resume from the state of an interrupted training in `out`.

    Returns
    -------
    figures of the kept weights; with a test, those on its data

    Raises
    ------
    ChipError
        If the data cannot be read, has nothing to learn, or has other classes than the test.
    OptionError
        If the request contradicts itself or the first weights, a localizer is given a test, or the data has transforms.
    TrainingError
        If a loss is not finite.
    WeightsError
        If the first weights cannot be read, or they or the state in the folder are of another network.
    OutputError
        If the folder contains another training, or cannot be written to.

    Examples
    --------
    >>> from geolabel.training.localizers import LocalizerRequest
    >>> train("chips/", "trained/", LocalizerRequest(method="cam"))  # doctest: +SKIP
    """
    if getattr(data, "transforms", None) is not None:
        raise OptionError("the data has transforms, but trainings change crops themselves: give it without transforms")
    networks, out = Networks.of(networks), Path(out)
    numbers = preset or request.numbers
    training = request.prepare(data, numbers, test)
    device, precision = worker.device_and_precision(networks.device, networks.precision)
    with training_folder(out, request.file, overwrite=overwrite, resume=resume, inputs=training.inputs) as folder:
        objective = training.objective(folder, networks, progress or Silent())
        figures = fit(objective, training.schedule, folder, device=device, precision=precision, resume=resume)
        tested = training.test() if training.test is not None else {}
        # the same training gives the same file, however long it took
        of_weights = {name: value for name, value in figures.items() if name != "minutes"}
        network = training.network(objective.module)
        save_checkpoint(folder / request.file, network, training.describe(network, of_weights, tested))
    return figures | tested


@contextmanager
def training_folder(
    out: Path, file: str, *, overwrite: bool, resume: bool, inputs: Iterable[str | Path] = ()
) -> Iterator[Path]:
    """Yield the folder to train in: `out`, or a subfolder while an earlier training is kept until it is replaced.

    Parameters
    ----------
    file
        Name of the weights.
    inputs
        Training data.

    Raises
    ------
    OutputError
        If the folder is an input, contains an earlier training and neither `overwrite` nor `resume` is given, contains
        files of these names that geolabel did not write, or cannot be written to.
    """
    earlier = next((name for name in (file, STATE, LOSSES) if (out / name).exists()), None)
    if earlier is not None and not (overwrite or resume):
        raise OutputError(
            f"{out} holds {earlier} of an earlier training: give --resume to resume it, --overwrite to replace it, or "
            "another folder"
        )

    def is_own(name: str) -> bool:
        return name == file or not name.endswith((".safetensors", ".md"))  # other networks may be in the folder

    folder = work_folder(
        out, overwrite=overwrite, inputs=inputs, shared=True, named=(file,), leaving=is_own, goes_on=lambda _: resume
    )
    with saving_to(out), folder as work:
        yield work


@contextmanager
def saving_to(folder: Path) -> Iterator[None]:
    """Translate errors of a training that saves its states to a folder.

    Raises
    ------
    OutputError
        If the disk is full, or cannot be written to.
    WeightsError
        If the folder contains the state of another network.
    """
    try:
        yield
    except OSError as error:
        raise OutputError(f"{folder} could not be written to ({error}): is the disk full?") from error
    except RuntimeError as error:  # raised by torch if a state does not fit on the disk, or in the network
        if any(writer in str(error) for writer in _WRITERS):
            raise OutputError(f"{folder} could not be written to ({error}): is the disk full?") from error
        if "state_dict" in str(error):
            raise WeightsError(
                f"{folder} contains the state of another training: give another folder, or its own options to resume"
            ) from error
        raise


# --- helpers for requests --------------------------------------------------------------------------------------


def sources_of(data: Any) -> Sequence[Path]:
    """Folders that chips, images or label maps are read from; empty for data in memory."""
    return getattr(data, "sources", ())


def gsd_range(gsd: float | None, cropping: Cropping) -> tuple[float, float]:
    """Supported gsd range of a network trained on images of some gsd, enlarged according to `cropping`."""
    low, high = cropping.zooms
    return _ANY_GSD if gsd is None else (gsd / high, gsd / low)


def share_of(names: Sequence[str], share: float) -> Int64Array:
    """(K,) ascending indices of the images of a share, chosen by name: a smaller share is part of a larger one.

    Raises
    ------
    OptionError
        If the share is not above 0 and at most 1.
    ChipError
        If it contains no image.
    """
    if not 0 < share <= 1:
        raise OptionError(f"share {share}: give one above 0, up to 1")
    places = [int(hashlib.sha256(name.encode()).hexdigest(), 16) / 2.0**256 for name in names]
    chosen = np.asarray([k for k, place in enumerate(places) if share == 1 or place < share], np.int64)
    if not len(chosen):
        raise ChipError(f"a share of {share} of {len(names)} images contains none: give a larger one")
    return chosen


def split(names: Sequence[str]) -> tuple[Int64Array, Int64Array]:
    """(K,) indices of training images, and (L,) of held-out ones; see `geolabel.chips.is_held_out`.

    If there are too few to hold some out, all are used for both.
    """
    kept = np.fromiter(map(is_held_out, names), bool, len(names))
    if kept.any() and not kept.all():
        return np.flatnonzero(~kept), np.flatnonzero(kept)
    log.warning("images: %d, too few to hold some out: weights are selected on the training data", len(names))
    return np.arange(len(names)), np.arange(len(names))


def check_same_classes(learned: Sequence[str], tested: Sequence[str]) -> None:
    """Refuse a test with other classes than the training.

    Raises
    ------
    ChipError
        If they differ.
    """
    if tuple(tested) != tuple(learned):
        raise ChipError(f"the test shows {', '.join(tested)}, the training {', '.join(learned)}: they must agree")

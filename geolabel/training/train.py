"""What the trainings on chips share: which images, what they begin with, pixel sizes, and what stops them."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from torch import nn

from geolabel.chips import is_held_out
from geolabel.errors import ChipError, OptionError, OutputError, WeightsError
from geolabel.folders import work_folder
from geolabel.io.downloads import sha256
from geolabel.models import loading
from geolabel.models.checkpoint import load_checkpoint
from geolabel.models.nets import imagenet
from geolabel.models.nets.initial import Share, take_over
from geolabel.training.fit import LOSSES, STATE
from geolabel.training.presets import TrainingPreset
from geolabel.training.samples import Cropping
from geolabel.types import Int64Array

log = logging.getLogger(__name__)

Preset = TypeVar("Preset", bound=TrainingPreset)

ANY_GSD = (0.01, 1000.0)
"""What a network of images of unknown gsd is taken to know."""

WRITERS = ("PytorchStreamWriter", "inline_container")
"""Where torch's errors come from when a state does not fit on the disk: by the first or the last of its parts."""


@dataclass(frozen=True, kw_only=True)
class TrainingRequest:
    """What a user asks of any training on crops; None leaves a number to the preset.

    Raises
    ------
    OptionError
        If networks take no crops of that size.
    """

    epochs: float | None = None
    """How often every image is seen."""
    minutes: float | None = None
    """Wall clock limit; the weights then depend on the machine."""
    size: int | None = None
    """Side of the crops, pixels."""
    batch: int | None = None
    """Crops of a step."""
    seed: int = 0
    gsd: float | None = None
    """Metres per pixel of images that do not know it themselves."""

    def __post_init__(self) -> None:
        if self.size is not None and (self.size % 32 or self.size < 32):
            near = max(32, self.size // 32 * 32)
            raise OptionError(f"crops of {self.size} px: networks take multiples of 32 px, such as {near}")

    def applied_to(self, preset: Preset) -> Preset:
        """The preset with the crops that were asked for."""
        cropping = replace(preset.cropping, size=self.size or preset.cropping.size)
        return replace(preset, cropping=cropping, batch=self.batch or preset.batch)

    def steps_of(self, preset: TrainingPreset, epoch: int) -> int:
        """Steps of the training, where an epoch has so many."""
        return max(2, round((self.epochs or preset.epochs) * epoch))


@contextmanager
def training_folder(
    out: Path, file: str, *, overwrite: bool, resume: bool, inputs: Iterable[str | Path] = ()
) -> Iterator[Path]:
    """Yield the folder to train in: `out`, or one in it while an earlier training stands that is replaced at the end.

    Parameters
    ----------
    file
        Name of the weights.
    inputs
        What is learned from.

    Raises
    ------
    OutputError
        If the folder is an input, holds an earlier training and neither `overwrite` nor `resume` is given, holds
        files of these names that geolabel did not make, or cannot be written to.
    """
    earlier = next((name for name in (file, STATE, LOSSES) if (out / name).exists()), None)
    if earlier is not None and not (overwrite or resume):
        raise OutputError(
            f"{out} holds {earlier} of an earlier training: give --resume to go on with that one, --overwrite to "
            "replace it, or another folder"
        )

    def is_own(name: str) -> bool:
        return name == file or not name.endswith((".safetensors", ".md"))  # other networks may be in the folder

    folder = work_folder(out, overwrite=overwrite, inputs=inputs, shared=True, named=(file,), leaving=is_own,
                         goes_on=lambda _: resume)  # fmt: skip
    with saving_to(out), folder as work:
        yield work


def sources_of(data: Any) -> Sequence[Path]:
    """Folders that chips, images or label maps are read from, as far as they say so."""
    return getattr(data, "sources", ())


@contextmanager
def saving_to(folder: Path) -> Iterator[None]:
    """Say in words what a training that saves its states to a folder stumbles over.

    Raises
    ------
    OutputError
        If the disk is full, or cannot be written to.
    WeightsError
        If the folder holds the state of another network.
    """
    try:
        yield
    except OSError as error:
        raise OutputError(f"{folder} could not be written to ({error}): is the disk full?") from error
    except RuntimeError as error:  # torch says so when a state does not fit on the disk, or to the network
        if any(writer in str(error) for writer in WRITERS):
            raise OutputError(f"{folder} could not be written to ({error}): is the disk full?") from error
        if "state_dict" in str(error):
            raise WeightsError(f"{folder} holds the state of another training: give another folder, or its own options "
                               "to resume") from error  # fmt: skip
        raise


def gsd_range(gsd: float | None, cropping: Cropping) -> tuple[float, float]:
    """What a network knows that saw images of some gsd, enlarged as `cropping` says."""
    low, high = cropping.zooms
    return ANY_GSD if gsd is None else (gsd / high, gsd / low)


def share_of(names: Sequence[str], share: float) -> Int64Array:
    """(K,) which images make up a share, ascending, by their names alone, so that less are among more.

    Raises
    ------
    OptionError
        If the share is none.
    ChipError
        If it holds no image.
    """
    if not 0 < share <= 1:
        raise OptionError(f"share {share}: it has to lie above 0, up to 1")
    places = [int(hashlib.sha256(name.encode()).hexdigest(), 16) / 2.0**256 for name in names]
    chosen = np.asarray([k for k, place in enumerate(places) if share == 1 or place < share], np.int64)
    if not len(chosen):
        raise ChipError(f"a share of {share} of {len(names)} images holds none: give a larger one")
    return chosen


def split(names: Sequence[str]) -> tuple[Int64Array, Int64Array]:
    """(K,) which images to learn from, and (L,) which to select the weights by; see `geolabel.chips.is_held_out`.

    Where they are too few to keep some aside, all of them serve both ends.
    """
    kept = np.fromiter(map(is_held_out, names), bool, len(names))
    if kept.any() and not kept.all():
        return np.flatnonzero(~kept), np.flatnonzero(kept)
    log.warning("images: %d, too few to keep some aside: weights are selected by what they learn from", len(names))
    return np.arange(len(names)), np.arange(len(names))


def check_same_classes(learned: Sequence[str], tested: Sequence[str]) -> None:
    """Refuse a test of other classes than those that are learned.

    Raises
    ------
    ChipError
        If they differ.
    """
    if tuple(tested) != tuple(learned):
        raise ChipError(f"the test shows {', '.join(tested)}, the training {', '.join(learned)}: they have to agree")


def begin(
    network: nn.Module,
    architecture: Mapping[str, Any],
    classes: tuple[str, ...],
    share: Share,
    path: str | Path,
    kind: str = "student",
) -> dict[str, Any]:
    """Give a network its first weights from another one of its make, and say which.

    Raises
    ------
    WeightsError
        If the file cannot be read, or holds another kind of network.
    OptionError
        If that is of another make.
    """
    state, info = load_checkpoint(path)
    if info.kind != kind:
        raise WeightsError(f"{path} holds a {info.kind}, not a {kind}: give a file of geolabel train student")
    theirs, ours = (
        {key: value for key, value in of.items() if key != "classes"} for of in (info.architecture, architecture)
    )
    if theirs != ours:
        raise OptionError(f"{path} holds {theirs}, and {ours} is to be trained: give the same --model and --preset")
    try:
        taken = take_over(network, state, share, same_classes=info.classes == classes)
    except ValueError as error:
        raise WeightsError(f"{path} does not hold what it says ({error}): train it again") from error
    return {"init": {"share": share, "sha256": sha256(Path(path)), "tensors": len(taken)}}


def begin_with_imagenet(network: nn.Module, variant: str) -> dict[str, Any]:
    """Give a ResUNet on a trunk of EfficientNet-Lite the ImageNet weights that ship, and say so."""
    trunk = {f"down.{name}": tensor for name, tensor in imagenet.load_trunk(variant).items()}
    network.load_state_dict(trunk, strict=False)
    return {"init": {"share": "backbone", "weights": f"ImageNet, {variant}", "tensors": len(trunk)}}


def begin_with_trunk(network: nn.Module) -> dict[str, Any]:
    """Give a ResUNet on a trunk the bundled localizer's, and say so."""
    path = loading.fetch(loading.lookup("bundled", "localizer")[0])
    state, _ = load_checkpoint(path)
    trunk = {name.replace("trunk.", "down.", 1): tensor for name, tensor in state.items() if name.startswith("trunk.")}
    network.load_state_dict(trunk, strict=False)
    return {"init": {"share": "backbone", "sha256": sha256(path), "tensors": len(trunk)}}

"""Weights files into networks: geolabel's own safetensors, and the official files of Segment Anything."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from geolabel.errors import WeightsError
from geolabel.models.checkpoint import NetworkInfo, load_checkpoint
from geolabel.models.nets import build
from geolabel.models.nets.classifier import Classifier
from geolabel.models.nets.localizer import PyramidLocalizer

if TYPE_CHECKING:
    from segment_anything.modeling import Sam

SAM_WIDTHS = {768: "vit_b", 1024: "vit_l", 1280: "vit_h"}
"""Channels of the official encoders, by which their files are told apart."""


DAMAGE = (
    pickle.UnpicklingError, RuntimeError, ValueError, EOFError, LookupError, OSError, TypeError, AttributeError,
    AssertionError, MemoryError, NotImplementedError, OverflowError, zipfile.BadZipFile, SafetensorError,
)  # fmt: skip
"""What torch raises of a file that is none of its own, or that somebody changed."""


def is_safetensors(path: Path) -> bool:
    """Whether a file begins as safetensors do: eight bytes of length, then JSON."""
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"


def load_own(path: Path, role: str) -> tuple[nn.Module, NetworkInfo]:
    """Make the network that a file of geolabel describes.

    Parameters
    ----------
    role
        ``localizer`` or ``segmenter``: what the file has to hold.

    Raises
    ------
    WeightsError
        If the file is missing, damaged, or holds something else.
    """
    state, info = load_checkpoint(path)
    if info.kind != role:
        raise WeightsError(f"{path} holds a {info.kind}, a {role} is needed: give another file")
    with torch.device("meta"):  # a description may ask for more memory than the file holds tensors
        _check_fit(build(info.architecture), state, path)
    network = build(info.architecture)
    _fill(network, state, path)
    return network, info


def load_localizer(path: Path) -> tuple[PyramidLocalizer | Classifier, NetworkInfo]:
    """Make the localizer that a file of geolabel describes; raises as `load_own` does."""
    network, info = load_own(path, "localizer")
    if not isinstance(network, PyramidLocalizer | Classifier):
        raise WeightsError(f"{path} calls itself a localizer and holds a {type(network).__name__}: give another file")
    return network, info


def load_official(path: Path, expected: str = "") -> Sam:
    """Make the network of an official Segment Anything file, which is a pickle; nothing but tensors is unpickled.

    Parameters
    ----------
    expected
        ``vit_b``, ``vit_l`` or ``vit_h`` if the file is said to hold it; empty to believe the file.

    Raises
    ------
    WeightsError
        If the file is missing, damaged, or holds something else.
    """
    from segment_anything import sam_model_registry

    state = official_state(path)
    name = official_name(state, path)
    if expected not in ("", name):
        raise WeightsError(f"{path} holds {name}, {expected} was asked for: give --sam {name}")
    with torch.device("meta"):  # millions of random numbers that the file replaces anyway
        sam = sam_model_registry[name]()
    _fill(sam, state, path)
    return sam


def official_state(path: Path) -> dict[str, Tensor]:
    """Read the tensors of an official file, mapped from disk where its format allows.

    Raises
    ------
    WeightsError
        If the file is missing, damaged, or holds anything but named tensors.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch wonders about pickle protocols before it fails; one error is enough
            _check_stored(path)
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except FileNotFoundError as error:
        raise WeightsError(f"{path} does not exist: give the path of a weights file") from error
    except DAMAGE as error:
        raise WeightsError(
            f"{path} is damaged or no weights file ({type(error).__name__}): give an official Segment Anything "
            "file or a safetensors file of geolabel"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError(
            f"{path} holds {type(state).__name__} in place of named tensors: give an official Segment "
            "Anything file or one of geolabel"
        )
    return state


def _check_stored(path: Path) -> None:
    """Refuse an archive that unpacks to more than it is; torch stores tensors as they are."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                if entry.compress_type != zipfile.ZIP_STORED:
                    raise ValueError(f"{entry.filename} is compressed")


def official_name(state: dict[str, Tensor], path: Path) -> str:
    """Which of the official networks some tensors are.

    Raises
    ------
    WeightsError
        If they are none of them.
    """
    positions = state.get("image_encoder.pos_embed")
    width = positions.shape[-1] if positions is not None and positions.ndim else None
    if width not in SAM_WIDTHS:
        raise WeightsError(
            f"{path} holds no Segment Anything network of {', '.join(SAM_WIDTHS.values())}: give one of these"
        )
    return SAM_WIDTHS[width]


def _fill(network: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    _check_fit(network, state, path)
    network.load_state_dict(state, assign=True)
    network.float().requires_grad_(False)


def _check_fit(network: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    wanted = {name: tensor.shape for name, tensor in network.state_dict().items()}
    given = {name: tensor.shape for name, tensor in state.items()}
    wrong = sorted(name for name in wanted.keys() | given.keys() if wanted.get(name) != given.get(name))
    if wrong:
        raise WeightsError(
            f"the tensors in {path} do not fit its network: {len(wrong)} of {len(wanted)} are missing, unknown or of "
            f"another shape, such as {wrong[0]}; the file is damaged or another's"
        )

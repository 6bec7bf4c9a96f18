"""Network files: geolabel's format, and the official files of Segment Anything.

geolabel's files are safetensors with half-precision tensors and a JSON description; from pickles, only tensors are
read. The description can be read without torch.
"""

from __future__ import annotations

import json
import math
import os
import pickle
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from safetensors import SafetensorError, safe_open

from geolabel.activation import LEVELS
from geolabel.errors import WeightsError
from geolabel.outputs import replacing
from geolabel.parsing import parse_json
from geolabel.types import Float32Array, depth, of_kind

if TYPE_CHECKING:
    from segment_anything.modeling import Sam
    from torch import Tensor, nn

    from geolabel.models.nets.classifier import Classifier
    from geolabel.models.nets.localizer import PyramidLocalizer

FORMAT = 1
"""Version of the description; newer versions are refused."""

KEY = "geolabel"
"""Key of the description in the file's metadata."""

LEAST, LARGEST = 32, 1 << 14
"""Minimum and maximum side in pixels of a network's images."""

DEEPEST = 16
"""Maximum nesting of a description."""

Kind = Literal["localizer", "segmenter"]

IMAGE_LABELS = "labels of whole images"
"""Supervision of a localizer that was trained without masks."""


@dataclass(frozen=True)
class NetworkInfo:
    """Description of a network, with everything needed to use it. All of it is plain JSON."""

    kind: Kind | Literal["student", "detector"]
    architecture: dict[str, Any]
    """Input of `networks.build`."""
    classes: tuple[str, ...]
    """Names of the localizer's classes; of a segmenter, the objects it was mainly trained on; of a student, of every
    value of its label maps, including background."""
    window: int
    """Side in pixels of its training images; for a localizer, the window of the gate."""
    stride: int
    """Image pixels per cell: of the localizer's map, of the segmenter's low-resolution masks."""
    gsd_range: tuple[float, float]
    """Finest and coarsest ground sample distance of its training, metres."""
    mean: tuple[float, float, float]
    """Mean of red, green and blue, 0..255; with deviation `std`, an image is normalised as ``(rgb - mean) / std``."""
    std: tuple[float, float, float]
    constant: float | None = None
    """Raw value of a localizer's map that is scaled to activation 1, so that 120 of 255 is the operating point."""
    floor: int | None = None
    """Grey value 0..255 that the activation of all pixels of a landslide must exceed; None without such a limit."""
    trained: dict[str, Any] = field(default_factory=dict)
    """Origin of the weights: seed, steps, data and their licences, figures on selection data."""

    @property
    def zoom(self) -> float:
        """Middle of the enlargements used in training, which suits chips of the same set."""
        low, high = self.trained.get("zooms", (1.0, 1.0))
        return math.sqrt(low * high)

    @property
    def sharpness(self) -> float | None:
        """Sharpness of the pooling from a localizer's map to its probabilities; see `geolabel.activation`."""
        sharpness: float | None = self.architecture.get("sharpness")
        return sharpness

    def to_json(self) -> str:
        """Return the description as JSON, with its format version."""
        return json.dumps({"format": FORMAT, **asdict(self)}, sort_keys=True)

    def is_sound(self) -> bool:
        """Whether the numbers are plausible; for descriptions from files."""
        finest, coarsest = self.gsd_range
        numbers = [finest, coarsest, *self.mean, *self.std, *([] if self.constant is None else [self.constant])]
        return (
            all(math.isfinite(number) for number in numbers)
            and 0 < finest <= coarsest
            and min(self.std) > 0
            and 1 <= self.stride <= self.window
            and LEAST <= self.window <= LARGEST
            and len(self.classes) > 0
            and not self.architecture.get("pretrained")  # loading a file must not fetch other weights
            and 0 <= (self.floor or 0) <= LEVELS
            and (self.sharpness is None or (isinstance(self.sharpness, int | float) and 0 < self.sharpness < math.inf))
        )

    @classmethod
    def from_json(cls, text: str) -> NetworkInfo:
        """Parse the result of `to_json`.

        Raises
        ------
        WeightsError
            If the text is not a description, or its format is newer.
        """
        try:
            given = parse_json(text)
            version = given.pop("format")
            if version > FORMAT:
                raise WeightsError(
                    f"the network file has format {version}, this geolabel reads up to {FORMAT}: upgrade it"
                )
            known = {f.name for f in fields(cls)}
            values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items() if k in known}
            info, levels = cls(**values), depth(values)
        except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise WeightsError(f"the description of the network cannot be read ({error}): use another file") from error
        if levels > DEEPEST or not (of_kind(info, cls) and info.is_sound()):
            raise WeightsError("the description of the network has implausible values: use another file")
        return info


def save_checkpoint(path: Path | str, module: nn.Module | Mapping[str, Tensor], info: NetworkInfo) -> None:
    """Write a network, with floating-point tensors rounded to half precision.

    The file appears when it is complete; see `geolabel.outputs.replacing`.
    """
    from safetensors.torch import save_file
    from torch import nn

    path = Path(path)
    state = module.state_dict() if isinstance(module, nn.Module) else module
    tensors = {name: _half(tensor) for name, tensor in sorted(state.items())}
    with replacing(path, overwrite=True) as part:
        save_file(tensors, part, metadata={KEY: info.to_json()})
        part.chmod(0o666 & ~_umask())  # like any other output: newer versions of safetensors restrict it to the owner


def _umask() -> int:
    """The process's umask, which can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def read_info(path: Path | str) -> NetworkInfo:
    """Read the description of a network without its tensors, and without torch; raises like `load_checkpoint`."""
    return _read(Path(path), "np", tensors=False)[1]


def load_checkpoint(path: Path | str) -> tuple[dict[str, Tensor], NetworkInfo]:
    """Read the tensors, in single precision, and the description of a network.

    Raises
    ------
    WeightsError
        If the file is missing, damaged, or not a network of geolabel.
    """
    state, info = _read(Path(path), "pt")
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}, info


def load_arrays(path: Path | str) -> tuple[dict[str, Float32Array], NetworkInfo]:
    """Read the floating-point tensors like `load_checkpoint`, as arrays and without torch."""
    state, info = _read(Path(path), "np")
    floating = {name: array for name, array in state.items() if np.issubdtype(array.dtype, np.floating)}
    return {name: np.ascontiguousarray(array, np.float32) for name, array in floating.items()}, info


def _read(path: Path, framework: str, *, tensors: bool = True) -> tuple[dict[str, Any], NetworkInfo]:
    if not path.is_file():
        raise WeightsError(f"{path} does not exist: give the path of a network file")
    try:
        with safe_open(path, framework=framework) as file:
            text = (file.metadata() or {}).get(KEY)
            state = {name: file.get_tensor(name) for name in file.keys()} if tensors else {}  # noqa: SIM118
    except (
        SafetensorError,
        OSError,
        ValueError,
        RuntimeError,
        KeyError,
        AttributeError,
        MemoryError,
        TypeError,
    ) as error:
        raise WeightsError(f"{path} is not a complete safetensors file ({error}): fetch or train it again") from error
    if text is None:
        raise WeightsError(f"{path} has no description of a network: use a file written by geolabel")
    return state, NetworkInfo.from_json(text)


def _half(tensor: Tensor) -> Tensor:
    tensor = tensor.detach().cpu().contiguous()
    return tensor.half() if tensor.is_floating_point() else tensor.clone()


# --- networks --------------------------------------------------------------------------------------------------------


SAM_WIDTHS = {768: "vit_b", 1024: "vit_l", 1280: "vit_h"}
"""Channels of the official encoders, which identify their files."""

MOBILE, MOBILE_TENSOR = "mobile-sam", "image_encoder.patch_embed.seq.0.c.weight"
"""MobileSAM, and the name of a tensor that only its file has."""


DAMAGE = (
    pickle.UnpicklingError,
    RuntimeError,
    ValueError,
    EOFError,
    LookupError,
    OSError,
    TypeError,
    AttributeError,
    AssertionError,
    MemoryError,
    NotImplementedError,
    OverflowError,
    zipfile.BadZipFile,
    SafetensorError,
)
"""Errors of torch for files that it did not write, or that were changed."""


def is_safetensors(path: Path) -> bool:
    """Whether a file starts like safetensors: eight bytes of length, then JSON."""
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"


def load_own(path: Path, role: str) -> tuple[nn.Module, NetworkInfo]:
    """Build the network that a file of geolabel describes.

    Parameters
    ----------
    role
        Required role: ``localizer`` or ``segmenter``.

    Raises
    ------
    WeightsError
        If the file is missing, damaged, or holds something else.
    """
    import torch

    from geolabel.models.nets import build

    state, info = load_checkpoint(path)
    if info.kind != role:
        raise WeightsError(f"{path} holds a {info.kind}, but a {role} is needed: give another file")
    with torch.device("meta"):  # a description may ask for more memory than the tensors of the file need
        _check_fit(build(info.architecture), state, path)
    network = build(info.architecture)
    _fill(network, state, path)
    return network, info


def load_localizer(path: Path) -> tuple[PyramidLocalizer | Classifier, NetworkInfo]:
    """Build the localizer that a file of geolabel describes; raises like `load_own`."""
    from geolabel.models.nets.classifier import Classifier
    from geolabel.models.nets.localizer import PyramidLocalizer

    network, info = load_own(path, "localizer")
    if not isinstance(network, PyramidLocalizer | Classifier):
        raise WeightsError(f"{path} claims to be a localizer but holds a {type(network).__name__}: give another file")
    return network, info


def load_official(path: Path, expected: str = "") -> Sam:
    """Build the network of an official Segment Anything file, which is a pickle; only tensors are unpickled.

    Parameters
    ----------
    expected
        Declared network, see `official_name`; empty to detect it.

    Raises
    ------
    WeightsError
        If the file is missing, damaged, or holds something else.
    """
    import torch
    from segment_anything import sam_model_registry

    state = official_state(path)
    name = official_name(state, path)
    if expected not in ("", name):
        raise WeightsError(f"{path} holds {name}, but {expected} was requested: give --sam {name}")
    if name == MOBILE:
        from geolabel.models.nets.mobile_sam import build_mobile_sam, renamed

        sam, state = build_mobile_sam(), renamed(state)
    else:
        with torch.device("meta"):  # avoids initialising millions of weights that the file replaces
            sam = sam_model_registry[name]()
    _fill(sam, state, path)
    return sam


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read the named tensors of an untrusted file: safetensors, or a pickle of which only tensors are unpickled.

    Raises
    ------
    WeightsError
        If the file is missing, damaged, or holds anything else.
    """
    if not path.is_file():
        raise WeightsError(f"{path} does not exist: give the path of a weights file")
    if not is_safetensors(path):
        return official_state(path)
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except DAMAGE as error:
        raise WeightsError(f"{path} is not a complete safetensors file ({error}): fetch it again") from error


def official_state(path: Path) -> dict[str, Tensor]:
    """Read the tensors of an official file, memory-mapped if its format allows.

    Raises
    ------
    WeightsError
        If the file is missing, damaged, or holds anything but named tensors.
    """
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about pickle protocols before it fails; the error is enough
            _check_stored(path)
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except FileNotFoundError as error:
        raise WeightsError(f"{path} does not exist: give the path of a weights file") from error
    except DAMAGE as error:
        raise WeightsError(
            f"{path} is damaged or not a weights file ({type(error).__name__}): give an official Segment Anything "
            "file or a safetensors file of geolabel"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise WeightsError(
            f"{path} holds {type(state).__name__} instead of named tensors: give an official Segment "
            "Anything file or one of geolabel"
        )
    return state


def _check_stored(path: Path) -> None:
    """Refuse an archive that expands when read; torch stores tensors uncompressed."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                if entry.compress_type != zipfile.ZIP_STORED:
                    raise ValueError(f"{entry.filename} is compressed")


def official_name(state: dict[str, Tensor], path: Path) -> str:
    """Identify an official network by its tensors: ``vit_b``, ``vit_l``, ``vit_h`` or ``mobile-sam``.

    Raises
    ------
    WeightsError
        If it is none of them.
    """
    if MOBILE_TENSOR in state:
        return MOBILE
    positions = state.get("image_encoder.pos_embed")
    width = positions.shape[-1] if positions is not None and positions.ndim else None
    if width not in SAM_WIDTHS:
        known = ", ".join((*SAM_WIDTHS.values(), MOBILE))
        raise WeightsError(f"{path} is not one of the Segment Anything networks {known}: give one of these")
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
            f"another shape, such as {wrong[0]}; the file is damaged or belongs to another network"
        )

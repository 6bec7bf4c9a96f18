"""Files of networks: geolabel's own, and the official ones of Segment Anything.

Its own are safetensors with half-precision tensors and a description in JSON; of pickles nothing but tensors is read.
The description is read without torch.
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
"""Version of the description; a reader refuses what is newer than it knows."""

KEY = "geolabel"
"""Key of the description in the metadata of the file."""

LEAST, LARGEST = 32, 1 << 14
"""Pixels a side that a network may ask for at once."""

DEEPEST = 16
"""Levels of values in values of a description."""

Kind = Literal["localizer", "segmenter"]

IMAGE_LABELS = "labels of whole images"
"""What a localizer says of its supervision that no mask taught."""


@dataclass(frozen=True)
class NetworkInfo:
    """What a network is, and what a caller must know to use it. All of it is plain JSON."""

    kind: Kind | Literal["student", "detector"]
    architecture: dict[str, Any]
    """What `networks.build` makes the network from."""
    classes: tuple[str, ...]
    """Names of the localizer's classes; of a segmenter, what it was mostly trained to outline; of a student, of every
    value of its label maps, the background included."""
    window: int
    """Side in pixels of the images it was trained on: of a localizer, the window of the gate."""
    stride: int
    """Image pixels per cell: of the localizer's map, of the segmenter's low-resolution masks."""
    gsd_range: tuple[float, float]
    """Finest and coarsest ground sample distance of its training, metres."""
    mean: tuple[float, float, float]
    """Of red, green and blue, 0..255: an image is normalised as ``(rgb - mean) / std``."""
    std: tuple[float, float, float]
    constant: float | None = None
    """Raw value of a localizer's map that becomes activation 1, so that 120 of 255 is the operating point."""
    floor: int | None = None
    """Grey value 0..255 that the activation of every pixel of a landslide has to exceed; None where none was chosen."""
    trained: dict[str, Any] = field(default_factory=dict)
    """Where the weights come from: seed, steps, data and their licences, figures on selection data."""

    @property
    def zoom(self) -> float:
        """The middle of the enlargements that it was trained at: how it sees chips of its own set best."""
        low, high = self.trained.get("zooms", (1.0, 1.0))
        return math.sqrt(low * high)

    @property
    def sharpness(self) -> float | None:
        """Of the pooling that makes a localizer's probabilities of its map; see `geolabel.activation`."""
        sharpness: float | None = self.architecture.get("sharpness")
        return sharpness

    def to_json(self) -> str:
        """Return the description as JSON, with the version of its format."""
        return json.dumps({"format": FORMAT, **asdict(self)}, sort_keys=True)

    def is_sound(self) -> bool:
        """Whether the numbers can be those of a network; for what a file says."""
        finest, coarsest = self.gsd_range
        numbers = [finest, coarsest, *self.mean, *self.std, *([] if self.constant is None else [self.constant])]
        return (
            all(math.isfinite(number) for number in numbers)
            and 0 < finest <= coarsest
            and min(self.std) > 0
            and 1 <= self.stride <= self.window
            and LEAST <= self.window <= LARGEST
            and len(self.classes) > 0
            and not self.architecture.get("pretrained")  # who loads a file fetches no other
            and 0 <= (self.floor or 0) <= LEVELS
            and (self.sharpness is None or (isinstance(self.sharpness, int | float) and 0 < self.sharpness < math.inf))
        )

    @classmethod
    def from_json(cls, text: str) -> NetworkInfo:
        """Read what `to_json` wrote.

        Raises
        ------
        WeightsError
            If the text is no such description, or of a newer format.
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
            raise WeightsError("the description of the network holds what no network can have: use another file")
        return info


def save_checkpoint(path: Path | str, module: nn.Module | Mapping[str, Tensor], info: NetworkInfo) -> None:
    """Write a network, its floating-point tensors rounded to half precision.

    A reader never sees half a file; see `geolabel.outputs.replacing`.
    """
    from safetensors.torch import save_file
    from torch import nn

    path = Path(path)
    state = module.state_dict() if isinstance(module, nn.Module) else module
    tensors = {name: _half(tensor) for name, tensor in sorted(state.items())}
    with replacing(path, overwrite=True) as part:
        save_file(tensors, part, metadata={KEY: info.to_json()})
        part.chmod(0o666 & ~_umask())  # as any other output: newer versions of safetensors keep it to its owner


def _umask() -> int:
    """What the process leaves out of the permissions of new files; it can be read only by being set."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def read_info(path: Path | str) -> NetworkInfo:
    """Read the description of a network without its tensors, and without torch; raises as `load_checkpoint` does."""
    return _read(Path(path), "np", tensors=False)[1]


def load_checkpoint(path: Path | str) -> tuple[dict[str, Tensor], NetworkInfo]:
    """Read the tensors, in single precision, and the description of a network.

    Raises
    ------
    WeightsError
        If the file is missing, damaged, or no network of geolabel.
    """
    state, info = _read(Path(path), "pt")
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}, info


def load_arrays(path: Path | str) -> tuple[dict[str, Float32Array], NetworkInfo]:
    """Read the floating-point tensors as `load_checkpoint` does, as arrays and without torch."""
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
        raise WeightsError(f"{path} is no whole safetensors file ({error}): fetch or train it again") from error
    if text is None:
        raise WeightsError(f"{path} lacks the description that geolabel stores with a network: use a file made by it")
    return state, NetworkInfo.from_json(text)


def _half(tensor: Tensor) -> Tensor:
    tensor = tensor.detach().cpu().contiguous()
    return tensor.half() if tensor.is_floating_point() else tensor.clone()


# --- networks --------------------------------------------------------------------------------------------------------


SAM_WIDTHS = {768: "vit_b", 1024: "vit_l", 1280: "vit_h"}
"""Channels of the official encoders, which distinguish their files."""

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
    import torch

    from geolabel.models.nets import build

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
    from geolabel.models.nets.classifier import Classifier
    from geolabel.models.nets.localizer import PyramidLocalizer

    network, info = load_own(path, "localizer")
    if not isinstance(network, PyramidLocalizer | Classifier):
        raise WeightsError(f"{path} calls itself a localizer and holds a {type(network).__name__}: give another file")
    return network, info


def load_official(path: Path, expected: str = "") -> Sam:
    """Make the network of an official Segment Anything file, which is a pickle; nothing but tensors is unpickled.

    Parameters
    ----------
    expected
        Which network the file is said to hold, see `official_name`; empty to believe the file.

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
        raise WeightsError(f"{path} holds {name}, {expected} was asked for: give --sam {name}")
    if name == MOBILE:
        from geolabel.models.nets.mobile import build_mobile_sam, renamed

        sam, state = build_mobile_sam(), renamed(state)
    else:
        with torch.device("meta"):  # millions of random numbers that the file replaces anyway
            sam = sam_model_registry[name]()
    _fill(sam, state, path)
    return sam


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read the named tensors of a file that anybody made: safetensors, or a pickle of which only tensors are unpickled.

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
        raise WeightsError(f"{path} is no whole safetensors file ({error}): fetch it again") from error


def official_state(path: Path) -> dict[str, Tensor]:
    """Read the tensors of an official file, mapped from disk where its format allows.

    Raises
    ------
    WeightsError
        If the file is missing, damaged, or holds anything but named tensors.
    """
    import torch

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
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise WeightsError(
            f"{path} holds {type(state).__name__} instead of named tensors: give an official Segment "
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
    """Which of the official networks some tensors are: ``vit_b``, ``vit_l``, ``vit_h`` or ``mobile-sam``.

    Raises
    ------
    WeightsError
        If they are none of them.
    """
    if MOBILE_TENSOR in state:
        return MOBILE
    positions = state.get("image_encoder.pos_embed")
    width = positions.shape[-1] if positions is not None and positions.ndim else None
    if width not in SAM_WIDTHS:
        known = ", ".join((*SAM_WIDTHS.values(), MOBILE))
        raise WeightsError(f"{path} holds no Segment Anything network of {known}: give one of these")
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

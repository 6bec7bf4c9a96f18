"""The errors that geolabel raises on purpose.

::

    GeolabelError
    ├── OptionError     an option, or a combination of options, that cannot work
    ├── SceneError      a raster that cannot be opened or lacks what the run needs
    │   └── TileError   one window of a readable scene failed; the rest may continue
    ├── ChipError       chips, labels or masks that cannot be learned from
    ├── TrainingError   a training that cannot continue
    ├── VectorError     prompts, an area of interest or an inventory that cannot be used
    ├── WeightsError    a network file that is missing, damaged, or not what it claims to be
    ├── OutputError     a result that cannot be written
    ├── RunError        a run folder that is in use, or belongs to another run
    ├── ClusterError    workers or a scheduler that cannot be reached or are gone
    └── MemoryLimitError  memory that ran out

A message names the value, the limit and the way out. The command line maps `OptionError` to exit code 2
and every other member to 1; with ``--on-error skip`` a `TileError` becomes a recorded gap and exit code 3.
"""

from __future__ import annotations

import re
from importlib.util import find_spec
from typing import Literal

from geolabel.urls import without_secrets


class GeolabelError(Exception):
    """Base of all errors that geolabel raises on purpose. Credentials in URLs are removed from the message."""

    def __init__(self, *parts: object) -> None:
        super().__init__(*(without_secrets(part) if isinstance(part, str) else part for part in parts))


class OptionError(GeolabelError):
    """An option, or a combination of options, cannot work."""


class SceneError(GeolabelError):
    """A raster cannot be opened, or lacks what the run needs."""


class TileError(SceneError):
    """One window of a readable scene could not be processed."""


class ChipError(GeolabelError):
    """Chips, labels or masks cannot be learned from."""


class TrainingError(GeolabelError):
    """A training cannot continue, such as one whose loss is not finite."""


class VectorError(GeolabelError):
    """Prompts, an area of interest or an inventory cannot be used."""


class WeightsError(GeolabelError):
    """A network file is missing, damaged, or not what it claims to be."""


class OutputError(GeolabelError):
    """A result cannot be written."""


class RunError(GeolabelError):
    """A run folder is in use, or belongs to another run."""


class ClusterError(GeolabelError):
    """Workers or a scheduler cannot be reached, or are gone."""


class MemoryLimitError(GeolabelError):
    """Memory ran out: of this process, of a worker, or of a GPU. Smaller tiles, blocks or batches need less."""


def ran_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error of Python, NumPy, PyTorch or GDAL, or one of its causes, means that memory ran out."""
    while error is not None:
        # by name: torch's error for a GPU, and GDAL's
        if isinstance(error, MemoryError) or type(error).__name__ in ("OutOfMemoryError", "CPLE_OutOfMemoryError"):
            return True
        # torch's messages for a CPU, on Linux and macOS, and on Windows
        if isinstance(error, RuntimeError) and re.search(r"can't allocate memory|not enough memory", str(error)):
            return True
        error = error.__cause__
    return False


def memory_wanted(error: BaseException) -> str:
    """The amount of memory that an error asked for, as text; empty if not stated."""
    found = re.search(r"allocate (\d[\d.]*) ?(bytes|[KMGT]i?B)", str(error))
    if found is None:
        return ""
    number, unit = found.groups()
    return f", {int(number) / 2**30:.1f} GiB wanted" if unit == "bytes" else f", {number.rstrip('.')} {unit} wanted"


Extra = Literal["train", "diffusion", "sam"]

PACKAGES = {"sklearn": "scikit-learn", "segmentation_models_pytorch": "segmentation-models-pytorch"}
"""Modules whose package has another name."""


def require(extra: Extra, *modules: str, purpose: str) -> None:
    """Check that libraries are installed, without importing them.

    Parameters
    ----------
    extra
        Extra of geolabel that installs them.
    modules
        Names of their top modules.
    purpose
        What needs them, for the message.

    Raises
    ------
    GeolabelError
        If any is not installed; the message names all of them and how to install them.
    """
    missing = [PACKAGES.get(name, name) for name in modules if find_spec(name) is None]
    if missing:
        raise GeolabelError(
            f"{purpose} needs {' and '.join(missing)}, not installed here: pip install 'geolabel[{extra}]'"
        )

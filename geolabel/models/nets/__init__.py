"""The networks that ship with geolabel, and how any of them is built from a description."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from geolabel.errors import WeightsError

if TYPE_CHECKING:
    from torch import nn

_BUILDERS = {
    "classifier": "classifier.Classifier",
    "maskrcnn": "student.build_detector",
    "pyramid": "localizer.PyramidLocalizer",
    "resunet": "student.ResUNet",
    "sam": "sam.build_sam",
    "smp": "student.build_smp",
}
"""Module and name of each builder. They import torch, which descriptions and ONNX Runtime do without."""


MOST_LAYERS = 64
"""Maximum number of blocks of one stage, a depth in a description."""

LARGEST = 1 << 13
"""Maximum channels or pixels: every other number of a description."""


def build(architecture: Mapping[str, Any]) -> nn.Module:
    """Build a network with random weights from a JSON-serialisable description.

    Parameters
    ----------
    architecture
        ``name``, one of the builders', and the builder's keyword arguments.

    Raises
    ------
    WeightsError
        If no builder has that name, or it does not take these arguments.
    """
    arguments = dict(architecture)
    name = arguments.pop("name", None)
    if not isinstance(name, str) or name not in _BUILDERS:
        raise WeightsError(f"no network is called {name!r}: known are {', '.join(sorted(_BUILDERS))}")
    _check_sizes(arguments)
    module, _, builder = _BUILDERS[name].partition(".")
    try:
        network: nn.Module = getattr(import_module(f"{__name__}.{module}"), builder)(**arguments)
    except (TypeError, ValueError, ArithmeticError, AssertionError, IndexError, RuntimeError) as error:
        raise WeightsError(f"the network {name!r} cannot be built from its description: {error}") from error
    return network


def _check_sizes(arguments: Mapping[str, Any]) -> None:
    # Before memory and time are spent: a description comes from a file, which may be untrusted.
    for name, value in arguments.items():
        limit = MOST_LAYERS if "depth" in name else LARGEST
        numbers = value if isinstance(value, list | tuple) else [value]
        if len(numbers) > MOST_LAYERS or any(isinstance(v, int | float) and not abs(v) <= limit for v in numbers):
            raise WeightsError(f"the description of the network asks for {name} {value!r}: at most {limit} is built")

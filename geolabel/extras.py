"""Libraries that an extra of the package brings: asked for before anything is loaded, downloaded or worked on."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Literal

from geolabel.errors import GeolabelError

Extra = Literal["train", "diffusion"]

PACKAGES = {"sklearn": "scikit-learn", "segmentation_models_pytorch": "segmentation-models-pytorch"}
"""Modules whose package has another name."""


def require(extra: Extra, *modules: str, purpose: str) -> None:
    """Make sure that libraries are installed, without importing them.

    Parameters
    ----------
    extra
        Which extra of geolabel brings them.
    modules
        Names of their top modules.
    purpose
        What needs them, for the message.

    Raises
    ------
    GeolabelError
        If one is not installed; names all of them and the way to install them.
    """
    missing = [PACKAGES.get(name, name) for name in modules if find_spec(name) is None]
    if missing:
        raise GeolabelError(
            f"{purpose} needs {' and '.join(missing)}, not installed here: pip install 'geolabel[{extra}]'"
        )

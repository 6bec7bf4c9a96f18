"""Landslide polygons from georeferenced scenes, and the networks that detect them.

The public functions and records are those of `geolabel.api`. They resolve on first use, so that ``import geolabel``
loads neither torch nor a raster library.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from geolabel import api

if TYPE_CHECKING:
    from geolabel.api import *  # noqa: F403

__version__ = "0.2.0.dev0"

__all__ = ["__version__", *api.__all__]


def __getattr__(name: str) -> Any:
    if name not in api.__all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

"""Landslide polygons from georeferenced scenes, and the networks that find them.

Names resolve on first use, so that ``import geolabel`` loads neither torch nor a raster library.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from geolabel.errors import GeolabelError as GeolabelError
    from geolabel.extraction.extract import extract as extract
    from geolabel.extraction.plan import Parameters as Parameters
    from geolabel.extraction.predict import predict as predict
    from geolabel.extraction.request import Networks as Networks
    from geolabel.extraction.request import Reading as Reading
    from geolabel.units import Measure as Measure

__version__ = "0.2.0.dev0"

_HOMES = {
    "GeolabelError": "geolabel.errors",
    "Measure": "geolabel.units",
    "Networks": "geolabel.extraction.request",
    "Parameters": "geolabel.extraction.plan",
    "Reading": "geolabel.extraction.request",
    "extract": "geolabel.extraction.extract",
    "predict": "geolabel.extraction.predict",
}

__all__ = ["GeolabelError", "Measure", "Networks", "Parameters", "Reading", "__version__", "extract", "predict"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

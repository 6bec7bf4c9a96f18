"""The QGIS plugin: Processing algorithms that call the command line of geolabel.

QGIS loads a copy of this folder with its own Python, so nothing here imports geolabel or any of its libraries.
"""

from __future__ import annotations

from typing import Any


def classFactory(iface: Any) -> Any:
    """Return the plugin; QGIS calls this."""
    from .provider import GeolabelPlugin

    return GeolabelPlugin(iface)

"""The plugin, the provider of its algorithms, and its setting: the command to call."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from processing.core.ProcessingConfig import ProcessingConfig, Setting
from qgis.core import QgsApplication, QgsProcessingProvider
from qgis.PyQt.QtGui import QIcon

from .algorithms import ALGORITHMS, COMMAND, GROUP
from .program import ProgramError, version_of

FOLDER = Path(__file__).parent

DEFAULT = FOLDER / "command.txt"
"""The command of the environment that installed the plugin, if one did."""


class GeolabelPlugin:
    """What QGIS starts and stops."""

    def __init__(self, iface: Any) -> None:
        self.iface = iface
        """None in qgis_process."""
        self.provider: Any = None

    def initProcessing(self) -> None:
        """Offer the algorithms; qgis_process calls this alone."""
        self.provider = GeolabelProvider()
        QgsApplication.processingRegistry().addProvider(self.provider)

    def initGui(self) -> None:
        """Start."""
        self.initProcessing()

    def unload(self) -> None:
        """Stop."""
        QgsApplication.processingRegistry().removeProvider(self.provider)


class GeolabelProvider(QgsProcessingProvider):
    """The algorithms."""

    def id(self) -> str:
        """By which algorithms are named: ``geolabel:extract``."""
        return "geolabel"

    def name(self) -> str:
        """For people."""
        return GROUP

    def longName(self) -> str:
        """For people who want to know more."""
        return "geolabel: landslide polygons"

    def icon(self) -> Any:
        """Picture in the toolbox."""
        return QIcon(str(FOLDER / "icon.svg"))

    def supportedOutputVectorLayerExtensions(self) -> list[str]:
        """Formats of results, all of which have styles."""
        return ["gpkg"]

    def load(self) -> bool:
        """Add the setting and the algorithms."""
        ProcessingConfig.settingIcons[GROUP] = self.icon()
        ProcessingConfig.addSetting(
            Setting(
                GROUP,
                COMMAND,
                "Command geolabel of the environment where it is installed",
                _default_command(),
                valuetype=Setting.FILE,
                validator=_check_command,
            )
        )
        ProcessingConfig.readSettings()
        self.refreshAlgorithms()
        return True

    def unload(self) -> None:
        """Remove the setting."""
        ProcessingConfig.removeSetting(COMMAND)

    def loadAlgorithms(self) -> None:
        """Add the algorithms."""
        for algorithm in ALGORITHMS:
            self.addAlgorithm(algorithm())


def _default_command() -> str:
    try:
        return DEFAULT.read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _check_command(command: Any) -> None:
    """Refuse, in the dialog of the options, what is no command of geolabel."""
    if command and command != _default_command():  # which is checked when it is used, for it may be gone since
        try:
            version_of(str(command))
        except ProgramError as error:
            raise ValueError(str(error)) from error

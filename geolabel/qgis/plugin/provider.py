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
    """The object that QGIS starts and stops."""

    def __init__(self, iface: Any) -> None:
        self.iface = iface
        """None in qgis_process."""
        self.provider: Any = None

    def initProcessing(self) -> None:
        """Register the algorithms; qgis_process calls only this."""
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
        """Prefix of the algorithms' names: ``geolabel:extract``."""
        return "geolabel"

    def name(self) -> str:
        """Short name."""
        return GROUP

    def longName(self) -> str:
        """Long name."""
        return "geolabel: landslide polygons"

    def icon(self) -> Any:
        """Icon in the toolbox."""
        return QIcon(str(FOLDER / "icon.svg"))

    def supportedOutputVectorLayerExtensions(self) -> list[str]:
        """Suffixes of results, all of which have styles."""
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
    """Refuse, in the dialog of the options, a path that is not the command of geolabel."""
    if command and command != _default_command():  # the default is checked when it is used; it may be gone by then
        try:
            version_of(str(command))
        except ProgramError as error:
            raise ValueError(str(error)) from error

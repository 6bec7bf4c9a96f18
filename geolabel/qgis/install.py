"""Install the plugin in a QGIS profile, replace it and remove it.

A record beside the copy says which files geolabel put there (`geolabel.folder_record`): only those are replaced or
deleted, and only if they are unchanged.
"""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import cache_from_source
from pathlib import Path
from typing import Any

import platformdirs

from geolabel.errors import OptionError, OutputError
from geolabel.folder_record import NOT_OURS, RECORD, FolderRecord
from geolabel.folders import replacing_folder

SOURCE = Path(__file__).parent / "plugin"

NAME = "geolabel_qgis"
"""Folder of the plugin, which QGIS imports: not the package's name, since both may be installed there."""

COMMAND_FILE = "command.txt"
"""File of the copy with the command that its algorithms call, unless a person names another in QGIS."""

METADATA_BYTES = 1 << 16
"""Maximum number of bytes to read of a plugin's metadata."""

CUSTOM = "QGIS_CUSTOM_CONFIG_PATH"
"""Variable that tells QGIS where profiles are, instead of the user's own folder."""


def install_plugin(*, profile: str = "default") -> dict[str, Any]:
    """Copy the plugin into a profile of each installed QGIS version; an older copy is replaced.

    Parameters
    ----------
    profile
        Name of the profile.

    Returns
    -------
    The ``folders`` of the copies, and the ``command`` that they call.

    Raises
    ------
    OptionError
        If there is no such profile, or the command of this environment is not found.
    OutputError
        If there is something at the destination that geolabel did not make.
    """
    command, folders = _command(), _plugin_folders(profile)
    for folder in folders:
        with replacing_folder(folder, overwrite=True) as room:
            for path in sorted(SOURCE.iterdir()):
                if path.is_file():
                    shutil.copyfile(path, room / path.name)
            (room / COMMAND_FILE).write_text(f"{command}\n", encoding="utf-8")
    return {"folders": [str(folder) for folder in folders], "command": command}


def uninstall_plugin(*, profile: str = "default") -> dict[str, Any]:
    """Remove the plugin from a profile of QGIS; files that geolabel did not put there stay.

    Parameters
    ----------
    profile
        Name of the profile.

    Returns
    -------
    The ``folders`` that it was removed from.

    Raises
    ------
    OptionError
        If there is no such profile, or the plugin is not in it.
    OutputError
        If a file of the copy was changed.
    """
    folders = [folder for folder in _plugin_folders(profile) if os.path.lexists(folder)]
    if not folders:
        raise OptionError(f"the profile {profile} has no plugin {NAME}: there is nothing to remove")
    copies = [(folder, FolderRecord.read(folder)) for folder in folders]
    for folder, made in copies:
        changed = [""] if made is None else made.changed()
        if changed:
            raise OutputError(f"{folder / changed[0]} {NOT_OURS}")
    for folder, made in copies:
        assert made is not None
        made.remove(made.names)
        _remove_bytecode(folder, made)
        (folder / RECORD).unlink(missing_ok=True)
        with suppress(OSError):  # it has other contents
            folder.rmdir()
    return {"folders": [str(folder) for folder in folders]}


def installed_plugins() -> Iterator[tuple[Path, str | None]]:
    """Yield the folder of each copy in a profile, and its version according to its metadata."""
    for home in _profile_homes():
        for folder in sorted(home.glob(f"*/python/plugins/{NAME}")):
            try:
                with (folder / "metadata.txt").open(encoding="utf-8", errors="replace") as file:
                    lines = [line.strip() for line in file.readlines(METADATA_BYTES)]
            except OSError:
                lines = []
            yield folder, next((line.split("=", 1)[1] for line in lines if line.startswith("version=")), None)


def _remove_bytecode(folder: Path, made: FolderRecord) -> None:
    """Delete the bytecode of the deleted modules, of all Python versions."""
    cache = Path(cache_from_source(str(folder / "module.py"))).parent
    modules = {Path(name).stem for name in made.names if name.endswith(".py")}
    for path in cache.glob("*.pyc") if cache.parent == folder and cache.is_dir() else ():
        if path.name.split(".")[0] in modules:
            path.unlink()
    with suppress(OSError):
        cache.rmdir()


def _command() -> str:
    """The command of the running environment.

    Raises
    ------
    OptionError
        If it is not found.
    """
    name = "geolabel.exe" if os.name == "nt" else "geolabel"
    beside = [Path(sysconfig.get_path("scripts")) / name, Path(sys.executable).parent / name]
    found = next((path for path in beside if path.is_file()), None) or shutil.which("geolabel")
    if found is None:
        raise OptionError(f"{beside[0]} is not there: install geolabel into this environment with pip, and run again")
    return str(Path(found).absolute())


def _plugin_folders(profile: str) -> list[Path]:
    """The folder of the plugin in a profile, for each version of QGIS that has the profile.

    Raises
    ------
    OptionError
        If no version has it.
    """
    if Path(profile).name != profile or profile in ("", ".", ".."):
        raise OptionError(f"profile {profile!r}: give the name of a profile, such as default, not a path")
    homes = list(_profile_homes())
    found = [home / profile for home in homes if (home / profile).is_dir()]
    if not found:
        names = sorted({path.name for home in homes for path in home.iterdir() if path.is_dir()})
        way = f"there are {', '.join(names)}" if names else "start QGIS once, which makes the profile default"
        raise OptionError(f"QGIS has no profile {profile} here: {way}")
    return [folder / "python" / "plugins" / NAME for folder in found]


def _profile_homes() -> Iterator[Path]:
    """Existing folders of profiles."""
    custom = os.environ.get(CUSTOM)
    own = platformdirs.user_data_path("QGIS", appauthor=False, roaming=True)
    homes = [Path(custom)] if custom else [own / "QGIS3", own / "QGIS4"]
    yield from (home / "profiles" for home in homes if (home / "profiles").is_dir())

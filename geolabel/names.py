"""Names of files, as far as the libraries that open them take them."""

from __future__ import annotations

import errno
import os
import re
import stat
from pathlib import Path

from geolabel.errors import OptionError

MAX_PART_BYTES = 255
"""Of a name without its folders, on the file systems in use."""


def check_name(name: str | os.PathLike[str]) -> None:
    """Refuse a name that GDAL, GeoPackage and JSON cannot hold, before any work is done.

    Raises
    ------
    OptionError
        If it is not text in UTF-8, as on disks that old systems wrote, or longer than any file can be called.
    """
    text = os.fspath(name)
    try:
        text.encode()
    except UnicodeEncodeError:
        # The bytes of a name on disk; of one in a JSON file, which no disk has, the characters.
        shown = re.sub("[\ud800-\udbff]", lambda half: f"\\u{ord(half[0]):x}", text)
        shown = os.fsencode(shown).decode("utf-8", "backslashreplace")
        raise OptionError(
            f"the name {shown} is not text in UTF-8 (bytes with a backslash are of another encoding): rename the file"
        ) from None
    file = "://" not in text and not text.startswith("/vsi")
    longest = max((len(part.encode()) for part in re.split(r"[/\\]", text)), default=0)
    if file and (longest > MAX_PART_BYTES or "\0" in text):
        raise OptionError(f"no file can be called {text[:60]!r}... ({longest} bytes): give the name of a file")


def check_regular(name: str | os.PathLike[str]) -> None:
    """Refuse what is no file, but is opened like one: reading a pipe waits for ever, and a device has no end.

    Raises
    ------
    OSError
        If it is a pipe, a socket or a device. What is not there passes, as do files and folders.
    """
    try:
        mode = Path(name).stat().st_mode
    except (OSError, ValueError):
        return
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise OSError(errno.EINVAL, "it is a pipe or a device, not a file", os.fspath(name))


def exists(name: str | os.PathLike[str]) -> bool:
    """Whether there is a file or folder of a name; not where it cannot be, or cannot be seen."""
    try:
        return Path(name).exists()
    except (OSError, ValueError):  # the latter of what no file system can hold
        return False

"""Names of files, as far as the libraries that open them take them."""

from __future__ import annotations

import os

from geolabel.errors import OptionError


def check_name(name: str | os.PathLike[str]) -> None:
    """Refuse a name that GDAL, GeoPackage and JSON cannot hold, before any work is done.

    Raises
    ------
    OptionError
        If it is not text in UTF-8, as on disks that old systems wrote.
    """
    text = os.fspath(name)
    try:
        text.encode()
    except UnicodeEncodeError:
        shown = os.fsencode(text).decode("utf-8", "backslashreplace")
        raise OptionError(
            f"the name {shown} is not text in UTF-8 (bytes with a backslash are of another encoding): rename the file"
        ) from None

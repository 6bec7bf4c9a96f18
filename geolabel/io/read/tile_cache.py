"""Map tiles from their server, kept in a cache folder of bounded size.

The folder is ``tiles`` in the cache folder (``GEOLABEL_CACHE``). File names are hashes, so no URL, and no key in one,
is written.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import time
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from uuid import uuid4

from geolabel import __version__
from geolabel.errors import SceneError
from geolabel.io.downloads import cache_folder, offline
from geolabel.io.error_messages import in_words
from geolabel.io.read import files
from geolabel.urls import without_secrets

log = logging.getLogger(__name__)

MAX_TILE_BYTES = 8 << 20

MAX_CACHE_BYTES = 2 << 30
"""Maximum size of the tiles on disk; the oldest are deleted."""

PRUNE_AFTER = 256
"""Tiles written before the size of the cache is checked again."""

MAX_AGE_S, MISSING_AGE_S = 7 * 86_400.0, 86_400.0
"""Seconds for which a tile on disk is used, and for which a missing tile is remembered."""

MISSING = (404, 410)
"""HTTP statuses for a missing tile; an empty answer means the same."""


def tile_file(url: str, limit: int | None = None) -> bytes:
    """The file of a tile, from the cache or the server; empty if the server does not have it.

    Parameters
    ----------
    limit
        Maximum size in bytes; None for that of a tile.

    Raises
    ------
    SceneError
        If the server refuses or cannot be reached, or downloads are forbidden.
    """
    data = kept(url)
    if data is not None:
        return data
    if offline():
        raise SceneError(f"{url} is not in the cache, and GEOLABEL_OFFLINE forbids downloads: unset it")
    try:
        data = files.insist(lambda _: _asked(url, limit or MAX_TILE_BYTES), without_secrets(url))
    except (OSError, HTTPException, ValueError) as error:
        raise SceneError(
            f"{url} cannot be fetched: {in_words(error)}; run again to resume with the tiles that are here"
        ) from error
    _keep(url, data)
    return data


def _asked(url: str, limit: int) -> bytes:
    try:
        data = files.get(url, limit, headers={"User-Agent": f"geolabel/{__version__}"})
    except HTTPError as error:
        if error.code in MISSING:
            return b""
        raise
    if len(data) > limit:
        raise SceneError(f"{url} is larger than {limit >> 20} MB: too large for a map tile or its description")
    return data


def _place(url: str) -> Path:
    name = hashlib.sha256(url.encode()).hexdigest()
    return cache_folder() / "tiles" / name[:2] / name


def is_kept(url: str) -> bool:
    """Whether `kept` has a tile, or knows that it is missing."""
    try:
        return _is_fresh(_place(url).stat())
    except OSError:
        return False


def _is_fresh(status: os.stat_result) -> bool:
    return time.time() - status.st_mtime < (MAX_AGE_S if status.st_size else MISSING_AGE_S)


def kept(url: str) -> bytes | None:
    """A tile from the cache, empty if known to be missing; None if absent or too old."""
    path = _place(url)
    try:
        return path.read_bytes() if _is_fresh(path.stat()) else None
    except OSError:
        return None


def _keep(url: str, data: bytes) -> None:
    path = _place(url)
    part = path.with_name(f"{uuid4().hex}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(data)
        part.replace(path)
    except OSError as error:
        log.info("%s cannot be kept: %s", path, in_words(error))  # the tile is fetched again
        with suppress(OSError):
            part.unlink()


def prune() -> None:
    """Delete the oldest tiles of the cache until its size is at most `MAX_CACHE_BYTES`."""
    found = []
    for folder in _entries(cache_folder() / "tiles"):
        for one in _entries(folder.path) if folder.is_dir(follow_symlinks=False) else ():
            if re.fullmatch(r"[0-9a-f]{64}|[0-9a-f]{32}\.part", one.name):
                with suppress(OSError):
                    status = one.stat(follow_symlinks=False)
                    found.append((status.st_mtime, status.st_size, one.path))
    total = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if total <= MAX_CACHE_BYTES:
            break
        with suppress(OSError):
            Path(path).unlink()
        total -= size


def _entries(folder: str | Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError:
        return []

"""Downloads that are complete and have the expected hash, or fail."""

from __future__ import annotations

import hashlib
import logging
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

from geolabel.errors import WeightsError
from geolabel.io.error_messages import in_words

logger = logging.getLogger(__name__)

CHUNK = 1 << 20
"""Bytes per read from the network."""

TIMEOUT = 60
"""Seconds without a byte before a download fails."""


def cache_folder() -> Path:
    """Folder for downloads: ``GEOLABEL_CACHE``, or the user's cache folder."""
    given = os.environ.get("GEOLABEL_CACHE")
    if given:
        return Path(given)
    import platformdirs

    return platformdirs.user_cache_path("geolabel")


def offline() -> bool:
    """Whether ``GEOLABEL_OFFLINE`` forbids downloads: any value but 0 and the empty one."""
    return os.environ.get("GEOLABEL_OFFLINE", "0") not in ("", "0")


def sha256(path: Path) -> str:
    """SHA-256 of a file, computed once per process unless its size or modification time changes.

    Raises
    ------
    WeightsError
        If the file cannot be read.
    """
    try:
        found = path.stat()
        return _digest(path, found.st_size, found.st_mtime_ns)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read ({error.strerror}): give the path of a network file") from error


@lru_cache(maxsize=64)
def _digest(path: Path, size: int, changed: int) -> str:
    del size, changed  # part of the key only
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def download(
    url: str, path: Path, *, size: int, sha256_expected: str, otherwise: str = "try again later", progress: Any = None
) -> None:
    """Download a file beside `path`, check it, and rename it into place.

    Parameters
    ----------
    size, sha256_expected
        Expected values.
    otherwise
        Advice if the server cannot be reached, for the message.
    progress
        A progress bar with pooch's interface: ``total``, ``update(n)``, ``reset()`` and ``close()``.

    Raises
    ------
    WeightsError
        If the server cannot be reached or sends other content, or the folder cannot be written to. Nothing is left
        behind.
    """
    from pooch import HTTPDownloader

    from geolabel.outputs import replacing

    fetch = HTTPDownloader(progressbar=progress or False, chunk_size=CHUNK, timeout=TIMEOUT)
    logger.warning("downloading %s (%.0f MB) to %s", url, size / 1e6, path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WeightsError(
            f"the cache folder {path.parent} cannot be made ({error.strerror}): set GEOLABEL_CACHE"
        ) from error
    try:
        with replacing(path, overwrite=True) as part:
            fetch(url, part, None)
            _check(part, url, size, sha256_expected)
    except OSError as error:  # those of requests are OSErrors too
        said = in_words(error)
        raise WeightsError(f"{url} could not be downloaded to {path.parent}: {said}; {otherwise}") from error


def _check(part: Path, url: str, size: int, expected: str) -> None:
    found = part.stat().st_size
    if found != size:
        raise WeightsError(f"{url} sent {found} bytes instead of {size}: try again, or fetch the file by hand")
    digest = sha256(part)
    if digest != expected:
        raise WeightsError(f"{url} sent a file with SHA-256 {digest} instead of {expected}: do not use that source")

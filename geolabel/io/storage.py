"""Storage for the records of a run: a local folder, or any store of fsspec.

A file is written completely or not at all, so readers need no lock: in a folder by renaming, in a store as one object.
Temporary failures are retried.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from io import BufferedIOBase, BufferedWriter, BytesIO
from pathlib import Path
from typing import IO, Any, Protocol, TypeVar
from uuid import uuid4

from geolabel.errors import OptionError, OutputError
from geolabel.io.error_messages import in_words
from geolabel.parsing import check_regular
from geolabel.urls import path_of

log = logging.getLogger(__name__)

T = TypeVar("T")

WAITS = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Seconds to wait before each retry of a temporary failure, such as a busy store or an interrupted network."""

LASTING = (
    FileNotFoundError,
    FileExistsError,
    PermissionError,
    IsADirectoryError,
    NotADirectoryError,
)
"""Errors that are not retried."""

LASTING_NUMBERS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.ENAMETOOLONG, errno.EINVAL}
"""A full disk is not retried; the run resumes when the user has made room."""


class Storage(Protocol):
    """A folder of files, identified by names relative to the folder, with slashes."""

    def open(self, name: str) -> AbstractContextManager[BufferedIOBase]:
        """Open a file to read."""
        ...

    def write(self, name: str, fill: Callable[[IO[bytes]], Any]) -> None:
        """Write a file with `fill`, completely or not at all; an existing one is replaced."""
        ...

    def create(self, name: str, data: bytes) -> bool:
        """Write a file that must not exist; False if it does."""
        ...

    def exists(self, name: str) -> bool:
        """Whether the file exists."""
        ...

    def names(self) -> Iterator[str]:
        """Names of all files, in any order; empty if the folder is missing."""
        ...

    def remove(self, name: str) -> None:
        """Delete a file, if it exists."""
        ...

    def prune(self) -> None:
        """Delete empty folders, including the root."""
        ...


def storage_at(root: str | os.PathLike[str]) -> Storage:
    """The storage behind a path or a URL such as ``s3://bucket/run``.

    Raises
    ------
    OptionError
        If fsspec does not support it, or its package is missing.
    """
    text = os.fspath(root)
    if "://" in text and not text.startswith("file://"):
        return _RemoteStorage(text)
    return FolderStorage(Path(path_of(text)))


def is_url(root: str | os.PathLike[str]) -> bool:
    """Whether a path is a URL of a store."""
    return isinstance(storage_at(root), _RemoteStorage)


def _patient(action: Callable[[], T], what: str) -> T:
    """Call a function, and retry failures with increasing waits; the last error is raised."""
    for wait in WAITS:
        try:
            return action()
        except (OSError, TimeoutError) as error:
            if isinstance(error, LASTING) or error.errno in LASTING_NUMBERS:
                raise
            log.warning("%s: %s; trying again in %g s", what, in_words(error), wait)
            time.sleep(wait)
    return action()


class FolderStorage:
    """A local or mounted folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def open(self, name: str) -> AbstractContextManager[BufferedIOBase]:
        """Open a file to read."""
        try:
            check_regular(self.root / name)
        except OSError as error:
            raise OutputError(f"{error.filename} cannot be read, since {error.strerror}: remove it") from error
        return _patient(lambda: (self.root / name).open("rb"), name)

    def write(self, name: str, fill: Callable[[IO[bytes]], Any]) -> None:
        """Write beside the file and rename."""
        _patient(lambda: self._write(self.root / name, fill), name)

    def _write(self, target: Path, fill: Callable[[IO[bytes]], Any]) -> None:
        part = target.with_name(f"{uuid4().hex}.part")
        try:
            with _create(part) as file:
                fill(file)
            part.replace(target)
        except BaseException:
            part.unlink(missing_ok=True)
            raise

    def create(self, name: str, data: bytes) -> bool:
        """Write a file that must not exist; of concurrent attempts, one succeeds."""
        try:
            with _create(self.root / name) as file:
                file.write(data)
        except FileExistsError:
            return False
        return True

    def exists(self, name: str) -> bool:
        """Whether the file exists."""
        return (self.root / name).exists()

    def names(self) -> Iterator[str]:
        """Names of all files."""
        for folder, _, files in os.walk(self.root):
            inner = Path(folder).relative_to(self.root)
            yield from ((inner / file).as_posix() for file in files)

    def remove(self, name: str) -> None:
        """Delete a file, if it exists."""
        (self.root / name).unlink(missing_ok=True)

    def prune(self) -> None:
        """Delete empty folders."""
        for folder, _, _ in os.walk(self.root, topdown=False):
            with suppress(OSError):  # not empty
                Path(folder).rmdir()


def _create(path: Path) -> BufferedWriter:
    """Create a file, and its folder if needed."""
    try:
        return path.open("xb")
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("xb")


class _RemoteStorage:
    """A folder of a store supported by fsspec; an object appears when it is complete."""

    def __init__(self, url: str) -> None:
        import fsspec

        try:
            self.files, root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise OptionError(f"{url} cannot be used as a folder of a run: {error}") from error
        self.root = root.rstrip("/")

    def _path(self, name: str) -> str:
        return f"{self.root}/{name}"

    def open(self, name: str) -> AbstractContextManager[BufferedIOBase]:
        """Fetch a file and open it to read."""
        return BytesIO(_patient(lambda: self.files.cat_file(self._path(name)), name))

    def write(self, name: str, fill: Callable[[IO[bytes]], Any]) -> None:
        """Write a file as one object."""
        data = BytesIO()
        fill(data)
        _patient(lambda: self._put(name, data.getvalue()), name)

    def _put(self, name: str, data: bytes) -> None:
        path = self._path(name)
        self.files.makedirs(path.rpartition("/")[0], exist_ok=True)
        self.files.pipe_file(path, data)

    def create(self, name: str, data: bytes) -> bool:
        """Write a file that must not exist; after concurrent attempts, both read it again to see whose it is."""
        if self.exists(name):
            return False
        self.write(name, lambda file: file.write(data))
        with self.open(name) as file:
            return file.read() == data

    def exists(self, name: str) -> bool:
        """Whether the file exists."""
        return bool(_patient(lambda: self.files.exists(self._path(name)), name))

    def names(self) -> Iterator[str]:
        """Names of all files."""
        self.files.invalidate_cache()
        for path in self.files.find(self.root):
            yield path.removeprefix(self.root).lstrip("/")

    def remove(self, name: str) -> None:
        """Delete a file, if it exists."""
        with suppress(FileNotFoundError):
            _patient(lambda: self.files.rm_file(self._path(name)), name)

    def prune(self) -> None:
        """Delete the root if it is an empty folder; most stores have no folders."""
        with suppress(OSError):
            if not any(self.names()) and self.files.isdir(self.root):
                self.files.rm(self.root, recursive=True)

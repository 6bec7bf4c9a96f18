"""Record of the files that geolabel wrote to a folder; no other file is deleted or replaced.

A folder filled by geolabel has a file `RECORD` with the name, size and SHA-256 of every file written there. Folders
without a record, files changed by a person, and all other files are left alone. The line of a file is written before
the file is moved into place, so every file of geolabel has one, however a run ends.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Self

from geolabel.errors import OutputError
from geolabel.parsing import parse_json

RECORD = ".geolabel.jsonl"
"""Name of the record, also in subfolders."""

FORMAT = 1

HEADER = {"geolabel": FORMAT, "about": "What geolabel made here; only that is ever deleted."}
"""First line of a record."""

READ_BYTES = 16 << 20
"""Maximum bytes of a file that are hashed; files that people edit are smaller."""

MOST_LINE = 1 << 16
"""Maximum bytes of a line of a record."""

Mark = tuple[int, str]
"""Size and SHA-256 of a file."""


def mark_of(path: Path) -> Mark:
    """Size of a file, and the SHA-256 of its first `READ_BYTES` bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        size, left = os.fstat(file.fileno()).st_size, READ_BYTES
        while left and (part := file.read(min(left, 1 << 20))):
            digest.update(part)
            left -= len(part)
    return size, digest.hexdigest()


@dataclass(eq=False)
class FolderRecord:
    """The record of the files that geolabel wrote to a folder; new lines are appended.

    Parameters
    ----------
    root
        The folder.
    """

    root: Path
    marks: dict[str, set[Mark]] = field(default_factory=dict)
    """Marks of each file as it was written, possibly several times, by name with slashes."""
    growing: set[str] = field(default_factory=set)
    """Files that are ours whatever they contain, since they were still being written."""

    @classmethod
    def read(cls, root: Path) -> Self | None:
        """Read the record of a folder; None if it has none."""
        path, made = root / RECORD, cls(root)
        try:
            if path.is_symlink() or not path.is_file():
                return None
            with path.open("rb") as file:
                if not _is_header(file.readline(MOST_LINE)):
                    return None
                for line in iter(lambda: file.readline(MOST_LINE), b""):
                    made._add(line)
        except OSError:
            return None
        return made

    @classmethod
    def begin(cls, root: Path) -> Self:
        """The record of a folder, created if missing."""
        made = cls.read(root)
        if made is None:
            made = cls(root)
            try:
                with (root / RECORD).open("xb") as file:
                    file.write(_line(HEADER))
            except FileExistsError as error:
                raise OutputError(f"{root / RECORD} is not a record of geolabel: move it away") from error
            except OSError:
                (root / RECORD).unlink(missing_ok=True)
                raise
        return made

    def _add(self, line: bytes) -> None:
        try:
            name, size, digest = parse_json(line)
        except (ValueError, TypeError):  # a line truncated by a full disk
            return
        if not (isinstance(name, str) and _is_inner(name)):
            return
        if size is None:
            self.growing.add(name)
        else:
            self.growing.discard(name)
            self.marks.setdefault(name, set()).add((size, digest))

    def holds(self, path: Path) -> bool:
        """Whether a path is in the folder."""
        return self.root in path.parents

    def name(self, path: Path) -> str:
        """Name of a file of the folder in the record."""
        return path.relative_to(self.root).as_posix()

    def owns(self, name: str) -> bool:
        """Whether a file exists as geolabel wrote it."""
        path = self.root / name
        try:
            status = path.lstat()
        except OSError:
            return False
        inner = PurePosixPath(name)
        if not stat.S_ISREG(status.st_mode) or any((self.root / parent).is_symlink() for parent in inner.parents):
            return False
        if name in self.growing:
            return True
        if inner.name == RECORD:
            return name != RECORD and FolderRecord.read(path.parent) is not None
        marks = self.marks.get(name, set())
        return any(size == status.st_size for size, _ in marks) and mark_of(path) in marks

    @property
    def names(self) -> list[str]:
        """Every file ever written; the record of a subfolder comes after the files in it."""
        return sorted(self.marks.keys() | self.growing, key=lambda name: (PurePosixPath(name).name == RECORD, name))

    def changed(self) -> list[str]:
        """Files written by geolabel that have been changed since."""
        return [name for name in self.names if os.path.lexists(self.root / name) and not self.owns(name)]

    def check(self, path: Path) -> None:
        """Refuse to replace a file that geolabel did not write, or that was changed.

        Raises
        ------
        OutputError
            If it exists and is not as geolabel wrote it.
        """
        if os.path.lexists(path) and not self.owns(self.name(path)):
            raise OutputError(f"{path} {NOT_OURS}")

    def note(self, path: Path, content: Path | None = None) -> None:
        """Record that geolabel writes a file, before it is moved into place.

        Parameters
        ----------
        content
            Path of the file until then; None if it is written in place or already exists.
        """
        name, mark = self.name(path), None
        if content is not None:
            mark = mark_of(content)
            if mark in self.marks.get(name, ()) and name not in self.growing:
                return
        elif name in self.growing:
            return
        line = _line([name, *(mark or (None, None))])
        with (self.root / RECORD).open("ab") as file:
            file.write(b"\n" + line)  # a leading newline ends a line truncated by a full disk
        self._add(line)

    def conclude(self) -> None:
        """Rewrite the record with the existing files, at their final sizes."""
        there = [name for name in self.names if os.path.lexists(self.root / name)]
        marks = [
            (name, mark)
            for name in there
            for mark in ([mark_of(self.root / name)] if name in self.growing else sorted(self.marks[name]))
        ]
        part = self.root / f"{RECORD}.{os.getpid()}"
        try:
            write_record(part, marks)
            part.replace(self.root / RECORD)
        finally:
            part.unlink(missing_ok=True)

    def remove(self, names: Iterable[str]) -> None:
        """Delete files that are as geolabel wrote them, then empty folders."""
        for name in names:
            if self.owns(name):
                (self.root / name).unlink(missing_ok=True)
        self.prune()

    def prune(self) -> None:
        """Delete empty folders of recorded files, but not the folder itself."""
        inner = {parent for name in self.names for parent in PurePosixPath(name).parents if parent.parts}
        for parent in sorted(inner, key=lambda parent: len(parent.parts), reverse=True):
            with suppress(OSError):
                (self.root / parent).rmdir()


NOT_OURS = "was changed, or not written by geolabel, and is not replaced: move it away, or give another folder"


def write_record(path: Path, files: Iterable[tuple[str, Mark]]) -> None:
    """Write a record of files."""
    with path.open("xb") as file:
        file.write(_line(HEADER))
        file.writelines(_line([name, *mark]) for name, mark in files)


def _line(values: object) -> bytes:
    # names may hold invalid UTF-8, which escaped ASCII preserves
    return json.dumps(values).encode() + b"\n"


def _is_header(line: bytes) -> bool:
    try:
        values = parse_json(line)
    except ValueError:
        return False
    return isinstance(values, dict) and values.get("geolabel") == FORMAT


def _is_inner(name: str) -> bool:
    """Whether a name is that of a file in a folder or its subfolders."""
    path = PurePosixPath(name)
    return (
        bool(path.parts) and not path.is_absolute() and ".." not in path.parts and "\\" not in name and "\0" not in name
    )

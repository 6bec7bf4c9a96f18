"""Outputs appear completely and together, or not at all; and no output is an input.

A file is written in a `geolabel.scratch.Scratch` beside its destination and moved there when complete. Writers are
independent: files written inside `together` are moved into place when the block ends.
"""

from __future__ import annotations

import os
import re
import sqlite3
import stat
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Protocol

from geolabel.errors import OutputError
from geolabel.parsing import check_name
from geolabel.scratch import Move, Scratch, commit, settle
from geolabel.urls import database_uri

RASTER_SIDECARS = (".aux.xml", ".msk", ".ovr", ".msk.ovr", ".ovr.aux.xml", ".vat.dbf", ".vat.cpg")
"""Suffixes appended to the full name of a raster for files that describe it: statistics, mask, overviews, table."""

DESCRIBED_BY = {
    **dict.fromkeys((".tif", ".tiff"), (*RASTER_SIDECARS, "tfw", "tifw", "tiffw", "tfwx", "aux", "rrd")),
    ".png": (*RASTER_SIDECARS, "pgw", "pngw", "pgwx"),
    ".gpkg": (".aux.xml",),
    ".shp": (".xml", "qix", "qpj", "sbn", "sbx", "ain", "aih", "fbn", "fbx"),
}
"""Files that GDAL, QGIS and ArcGIS leave beside a finished file of each format and read with it; stale ones would
describe the new file wrongly. With a dot the ending is appended to the full name, without one it replaces the suffix.

A ``.prj`` or ``.wld`` of the same stem may belong to another file, and a ``.qml`` is a style made by a person: a
GeoTIFF needs none of them, so they are kept."""


PARTS = {".shp": (".shx", ".dbf", ".prj", ".cpg")}
"""Formats of several files, which are replaced together: the suffixes of the others."""

SQLITE = (".gpkg", ".sqlite", ".db")
"""SQLite formats; SQLite keeps uncommitted data in files beside them."""

UNSAVED = ("-wal", "-journal")
"""Suffixes of such files."""


class _Keeper(Protocol):
    """The record of the files that geolabel wrote to a folder; see `geolabel.folders`."""

    @property
    def root(self) -> Path:
        """The folder."""
        ...

    def holds(self, path: Path) -> bool:
        """Whether a path is in the folder."""
        ...

    def check(self, path: Path) -> None:
        """Refuse to replace a file that geolabel did not write."""
        ...

    def note(self, path: Path, content: Path) -> None:
        """Record that geolabel writes a file, before it is moved into place; `content` is its path until then."""
        ...


keepers: ContextVar[tuple[_Keeper, ...]] = ContextVar("keepers", default=())
"""Records of the folders being worked in, the innermost last."""


def check_target(path: Path, *, overwrite: bool, suffixes: tuple[str, ...], inputs: Iterable[str | Path] = ()) -> None:
    """Refuse an unsuitable output before any work is done.

    A symbolic link is refused, since it may point to any file.

    Parameters
    ----------
    overwrite
        Whether an existing file may be replaced.
    suffixes
        Valid suffixes, lower case.
    inputs
        Files that the run reads, which may not be its output.

    Raises
    ------
    OutputError
        If the name or folder is unsuitable, the file exists or is an input, or another program has it open.
    """
    check_name(path.absolute())
    if path.suffix.lower() not in suffixes:
        *others, last = suffixes
        named = f"{', '.join(others)} or {last}" if others else last
        raise OutputError(f"{path}: the name of this output must end with {named}")
    settle(path.parent)
    for source in inputs:
        if _is_read(path, source):
            raise OutputError(f"{path} is an input of this run ({source}): give the output another name")
    for file in (path, *other_files(path)):
        if file.is_symlink():
            raise OutputError(f"{file} is a symbolic link to {file.readlink()}: give the file itself")
        _check_place(file, overwrite=overwrite)


def other_files(path: Path) -> list[Path]:
    """The further files of a format; see `PARTS`."""
    return [path.with_suffix(suffix) for suffix in PARTS.get(path.suffix.lower(), ())]


def _check_place(path: Path, *, overwrite: bool) -> None:
    """Like `check_target`, at any moment of a run."""
    if path.is_dir():
        raise OutputError(f"{path} is a folder: give the name of a file")
    if path.exists():
        if not overwrite:
            raise OutputError(f"{path} exists: give --overwrite to replace it, or another name")
        if not stat.S_ISREG(path.stat().st_mode):
            raise OutputError(f"{path} is a device or a pipe: give the name of a file")
    if not path.parent.is_dir():
        raise OutputError(f"{path}: the folder {path.parent} does not exist; create it first")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise OutputError(f"{path}: the folder {path.parent} is not writable; choose another")
    if path.suffix.lower() in SQLITE:
        _check_closed(path)


PREFIX = re.compile(r"(/vsi\w+/|\w{2,}:(//)?)+")
"""What precedes a file in the name of something inside it: ``zip://``, ``/vsizip/``, ``GPKG:``."""


def _is_read(path: Path, source: str | Path) -> bool:
    """Whether a file is what a name is of, or holds it: an archive, or a file of several rasters."""
    if same_file(path, source):
        return True
    prefix = PREFIX.match(str(source))
    if prefix is None:
        return False
    inside = re.sub(r'["{}]', "", str(source)[prefix.end() :])
    return any(same_file(path, inside[: end.start()]) for end in re.finditer(r"[/!:]|$", inside) if end.start())


def same_file(path: Path, source: str | Path) -> bool:
    """Whether two names refer to one file or folder, through symbolic or hard links."""
    try:
        return path.samefile(source)
    except (OSError, ValueError):  # one of them is not a file: a URI, or missing
        return os.path.realpath(path) == os.path.realpath(Path(source))


def _check_closed(path: Path) -> None:
    """Refuse to replace a database with uncommitted edits, or that another program has open.

    The edits would be lost, and the new file would be unreadable, since SQLite would apply them to it.
    """
    for ending in UNSAVED:
        beside = path.with_name(path.name + ending)
        with suppress(OSError):
            if beside.stat().st_size:
                raise OutputError(
                    f"{beside} holds edits that are not yet in {path.name}: close {path.name} in QGIS or the program "
                    f"that has it open; if that program has crashed, open {path.name} once more and close it. Or give "
                    "the output another name"
                )
    if path.exists() and _is_open_elsewhere(path):
        raise OutputError(
            f"{path} is open in another program: close it there (in QGIS, remove its layers), or give another name"
        )


def _is_open_elsewhere(path: Path) -> bool:
    """Whether another process has locked a database; nothing is changed."""
    try:
        with closing(
            sqlite3.connect(database_uri(path.absolute(), "rw"), uri=True, timeout=0, isolation_level=None)
        ) as connection:
            connection.execute("PRAGMA locking_mode=EXCLUSIVE")
            connection.execute("BEGIN EXCLUSIVE")
            connection.execute("ROLLBACK")
    except sqlite3.OperationalError as error:
        return "locked" in str(error) or "busy" in str(error)
    except (sqlite3.Error, UnicodeError):  # not a database, so not open as one
        return False
    return False


class _Together:
    """Outputs of one block."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self.paths = {path.absolute() for path in paths}
        self.moves: list[Move] = []
        self.scratches: list[Scratch] = []

    def room(self, parent: Path) -> Path:
        """An empty folder on the file system of a path."""
        found = next((scratch for scratch in self.scratches if scratch.parent == parent), None)
        if found is None:
            found = Scratch(parent)
            self.scratches.append(found)
        return found.room()

    def finish(self) -> None:
        for move in self.moves:
            for keeper in keepers.get():
                if move.staged is not None and keeper.holds(move.final):
                    keeper.check(move.final)
                    keeper.note(move.final, move.staged)
        if self.moves:
            commit(self.moves, self.scratches)

    def close(self) -> None:
        for scratch in reversed(self.scratches):
            scratch.close()


_under_way: ContextVar[_Together | None] = ContextVar("_under_way", default=None)


@contextmanager
def together(*paths: Path) -> Iterator[None]:
    """Move files written inside the block into place at its end, all of them or none.

    Raises
    ------
    OutputError
        If a file cannot be moved into place; the other files are then unchanged.
    """
    with _together(*paths):
        yield


@contextmanager
def _together(*paths: Path) -> Iterator[_Together]:
    outer = _under_way.get()
    if outer is not None and outer.paths.issuperset(path.absolute() for path in paths):
        yield outer
        return
    work = _Together(paths)
    token = _under_way.set(work)
    try:
        yield work
        try:
            work.finish()
        except FileExistsError as error:
            place = error.filename2 or error.filename
            raise OutputError(f"{place} exists: give --overwrite to replace it, or another name") from error
        except OSError as error:
            place = error.filename2 or error.filename or work.moves[0].final
            raise OutputError(
                f"{place} could not be written ({error.strerror or error}): the old file is unchanged; close it in "
                f"other programs, or give another name"
            ) from error
    finally:
        _under_way.reset(token)
        work.close()


@contextmanager
def replacing(path: Path, *, overwrite: bool) -> Iterator[Path]:
    """Yield the path of a temporary file, which is moved to `path` if the block ends without an error.

    It has the name of `path`, in a new folder of `Scratch`, which also takes the other files of the format (`PARTS`).
    Files that describe the old file are deleted with it. After an error, everything is as before.

    Raises
    ------
    OutputError
        If `path` exists and may not be replaced.
    """
    held = [keeper for keeper in keepers.get() if keeper.holds(path)]
    _check_place(path, overwrite=overwrite)
    for keeper in held:
        keeper.check(path)
    with _together(path) as work:
        part = work.room(held[-1].root if held else path.parent) / path.name
        yield part
        others = [(place, part.with_name(place.name)) for place in other_files(path)]
        for place in (path, *(place for place, _ in others)):
            _check_place(place, overwrite=overwrite)  # another run may have finished in the meantime
        work.moves += [Move(sidecar) for sidecar in (() if held else _sidecars_of(path))]
        work.moves += [Move(place, file, exclusive=not overwrite) for place, file in others if file.exists()]
        work.moves += [Move(place) for place, file in others if place.exists() and not file.exists()]
        work.moves.append(Move(path, part, exclusive=not overwrite))


@contextmanager
def saving(path: Path) -> Iterator[Path]:
    """Rewrite a file like `replacing`; errors of the disk become an `OutputError`.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    try:
        with replacing(path, overwrite=True) as part:
            yield part
    except OSError as error:
        raise OutputError(f"{path} could not be written: {error.strerror or error}; is the disk full?") from error


def _sidecars_of(path: Path) -> list[Path]:
    """Existing files beside a file that describe it; case is ignored."""
    endings = DESCRIBED_BY.get(path.suffix.lower(), ())
    names = {(path.name + end if end.startswith(".") else f"{path.stem}.{end}").lower() for end in endings}
    stem = path.stem.lower()
    entries = path.parent.iterdir() if names and path.parent.is_dir() else ()
    same = [entry for entry in entries if entry.name.lower().startswith(stem) and entry.name.lower() in names]
    return sorted(entry for entry in same if entry.name.startswith(path.stem) and entry.is_file())

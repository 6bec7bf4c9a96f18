"""Scratch folders: outputs are written here before they are moved into place, all or none.

A scratch folder is created beside the outputs, on the same file system, under a random name; links in a folder are
never followed. Its files are moved into place by renaming. A journal in it lists the moves, so that the next run can
undo those of a run that was killed, and restore the previous files.

A folder is only recognised as scratch if it has a file that contains the folder's inode number, which is never true of
a copy. The file is locked while its run lives; the lock ends with the process, however it dies.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from geolabel.parsing import read_json

log = logging.getLogger(__name__)

PREFIX, SUFFIX = ".geolabel-", ".part"
"""Prefix and suffix of names of scratch folders, around random characters."""

OWNER, JOURNAL, DONE = "owner", "journal.json", "done"
"""Files in a scratch folder: its owner, the journal of moves, and the mark that all moves are done."""

NEW, OLD = "new", "old"
"""Subfolders: new files, and the files they replace."""

WITHOUT_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}
"""Errors of file systems without locks, where scratch folders are kept, since their run may be alive."""


@dataclass(frozen=True)
class Move:
    """A file to move into place, or one to remove."""

    final: Path
    staged: Path | None = None
    """None to remove the file at `final`."""
    exclusive: bool = False
    """Whether `final` must not exist."""


class Scratch:
    """A scratch folder of this process.

    Parameters
    ----------
    parent
        Folder that the outputs belong to.

    Raises
    ------
    OSError
        If the folder cannot be created.
    """

    def __init__(self, parent: Path) -> None:
        self.parent = parent
        self.path = Path(tempfile.mkdtemp(prefix=PREFIX, suffix=SUFFIX, dir=parent))
        self._count = 0
        try:
            self._owner = _lock(self.path / OWNER, _mark(self.path))
            (self.path / NEW).mkdir()
            (self.path / OLD).mkdir()
        except BaseException:
            shutil.rmtree(self.path, ignore_errors=True)
            raise

    def room(self) -> Path:
        """Create an empty folder for files that are moved into place later."""
        self._count += 1
        folder = self.path / NEW / f"{self._count}"
        folder.mkdir()
        return folder

    def close(self) -> None:
        """Delete the folder, except files that cannot be deleted or restored."""
        self._owner.close()
        if (self.path / DONE).exists() or not (self.path / JOURNAL).exists():
            _clear(self.path)


def commit(moves: Sequence[Move], scratches: Sequence[Scratch]) -> None:
    """Make all moves, or none.

    Parameters
    ----------
    scratches
        Folders whose files are moved; each destination is beside one of them.

    Raises
    ------
    OSError
        If a move fails; the previous files are then restored.
    """
    if len(moves) == 1 and moves[0].staged is not None:
        _place(moves[0].staged, moves[0].final, exclusive=moves[0].exclusive)
        return
    first = scratches[0]
    steps: list[tuple[Move, Path]] = []
    for scratch in reversed(scratches):  # the one that holds the final mark comes last
        own = [move for move in moves if _home(move, scratches) is scratch]
        entries = [_entry(move, scratch) for move in own]
        others = [os.path.relpath(other.path, first.path) for other in scratches[1:]] if scratch is first else []
        lead = None if scratch is first else os.path.relpath(first.path, scratch.path)
        record = {"moves": entries, "first": lead, "others": others}
        _write(scratch.path / JOURNAL, json.dumps(record))
        steps += [(move, scratch.path / OLD / f"{number}") for number, move in enumerate(own)]
    order = {id(move): number for number, move in enumerate(moves)}
    try:
        for move, kept in sorted(steps, key=lambda step: order[id(step[0])]):
            if not move.exclusive and _exists(move.final):
                move.final.replace(kept)
            if move.staged is not None:
                move.final.parent.mkdir(parents=True, exist_ok=True)
                _place(move.staged, move.final, exclusive=True)
        (first.path / DONE).touch()
    except BaseException:
        for scratch in scratches:
            _undo(scratch.path)
        raise
    for scratch in scratches[1:]:
        _finish(scratch.path)


def settle(folder: Path) -> None:
    """Clean up after killed runs in a folder: undo incomplete moves, delete scratch folders."""
    with suppress(OSError):
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
            if entry.name.startswith(PREFIX) and entry.name.endswith(SUFFIX) and entry.is_dir(follow_symlinks=False):
                _settle(Path(entry.path))


def is_scratch(path: Path) -> bool:
    """Whether a path is named like a scratch folder, which no listing of outputs includes."""
    return path.name.startswith(PREFIX) and path.name.endswith(SUFFIX)


def _settle(path: Path) -> None:
    if not _is_ours(path):
        return
    try:
        owner = _lock(path / OWNER)
    except OSError:  # its run is alive
        return
    with owner:
        record = _read(path) or {"moves": [], "first": None, "others": []}
        lead = None if record["first"] is None else path / record["first"]
        if lead is not None and not (path / DONE).exists() and lead.is_dir() and _is_ours(lead):
            _settle(lead)  # it has the final mark, and settles this folder too
        done = (path / DONE).exists()
        others = [other for name in record["others"] if (other := path / name).is_dir() and _is_ours(other)]
        settled = [one for one in (*others, path) if one.is_dir() and (_finish(one) if done else _undo(one))]
    for one in settled:
        _clear(one)


def _finish(path: Path) -> bool:
    with suppress(OSError):
        (path / DONE).touch()
    return True


def _undo(path: Path) -> bool:
    """Undo moves; returns whether everything could be restored."""
    record, lost = _read(path), []
    for number, (staged, final, mark) in reversed(list(enumerate((record or {}).get("moves", ())))):
        place, kept = path.parent / final, path / OLD / f"{number}"
        if not all(_is_inside(name, path.parent) for name in (final, staged) if name is not None):
            lost.append(place)
            continue
        try:
            if staged is not None and mark is not None and _identity(place) == mark:
                if _exists(path.parent / staged):  # killed between the two steps of a move
                    place.unlink()
                else:
                    place.replace(path.parent / staged)
            if _exists(kept):
                if _exists(place):  # another program has put a file there since
                    lost.append(place)
                else:
                    place.parent.mkdir(parents=True, exist_ok=True)
                    kept.replace(place)
        except OSError as error:
            log.warning("%s could not be put back: %s", place, error)
            lost.append(place)
    if lost:
        log.warning("%s is the earlier content of %s: move it back by hand", path / OLD, lost[0])
        return False
    (path / JOURNAL).unlink(missing_ok=True)
    return True


def _home(move: Move, scratches: Iterable[Scratch]) -> Scratch:
    """The scratch folder of a move: beside its destination, and around or beside the new file."""
    paths = [move.final] if move.staged is None else [move.final, move.staged]
    return next(scratch for scratch in scratches if all(_below(path, scratch.parent) for path in paths))


def _below(path: Path, folder: Path) -> bool:
    return folder.absolute() in path.absolute().parents


def _entry(move: Move, scratch: Scratch) -> list[Any]:
    staged, final = (
        None if path is None else Path(os.path.relpath(path, scratch.parent)).as_posix()
        for path in (move.staged, move.final)
    )
    return [staged, final, None if move.staged is None else _identity(move.staged)]


def _identity(path: Path) -> list[int] | None:
    """Identity of a file that survives renaming."""
    try:
        status = path.lstat()
    except OSError:
        return None
    return [status.st_ino, status.st_size, status.st_mtime_ns]


def _place(staged: Path, final: Path, *, exclusive: bool) -> None:
    """Move a file into place; if the destination must not exist, a file that appears there concurrently is kept."""
    if not exclusive:
        staged.replace(final)
        return
    if staged.is_file():
        try:
            os.link(staged, final, follow_symlinks=False)
        except FileExistsError:
            raise
        except (OSError, NotImplementedError):  # a file system without hard links
            pass
        else:
            staged.unlink()
            return
    if _exists(final):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(final))
    staged.rename(final)


def _exists(path: Path) -> bool:
    """Whether the path exists, also as a broken link."""
    return os.path.lexists(path)


def _is_inside(name: str, folder: Path) -> bool:
    """Whether a relative name leads to a path inside a folder, without links on the way."""
    inner = Path(name)
    if inner.is_absolute() or inner.drive or ".." in inner.parts or not inner.parts:
        return False
    return not any((folder / parent).is_symlink() for parent in inner.parents if parent.parts)


def _read(path: Path) -> dict[str, Any] | None:
    """The journal of a scratch folder; None without moves."""
    try:
        record = read_json(path / JOURNAL)
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and {"moves", "first", "others"} <= record.keys() else None


def _write(path: Path, text: str) -> None:
    part = path.with_name(f"{path.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def _mark(path: Path) -> str:
    return f"scratch of geolabel {path.stat().st_ino}\n"


def _is_ours(path: Path) -> bool:
    owner = path / OWNER
    try:
        return not owner.is_symlink() and owner.is_file() and owner.read_bytes()[:64] == _mark(path).encode()
    except OSError:
        return False


def _lock(path: Path, text: str | None = None) -> IO[bytes]:
    """Open a file and lock it while it is open and this process lives; `text` is for a new file.

    Raises
    ------
    OSError
        If another process has locked it, or the file system has no locks and the file is not new.
    """
    file = path.open("rb+" if text is None else "xb")
    try:
        try:
            lock_open(file)
        except OSError as error:
            if text is None or error.errno not in WITHOUT_LOCKS:
                raise
        if text is not None:  # written last: until then the folder is not recognised as scratch
            file.write(text.encode())
            file.flush()
    except BaseException:
        file.close()
        raise
    return file


def lock_open(file: IO[bytes]) -> None:
    """Lock an open file against other processes until it is closed, or raise OSError."""
    if sys.platform == "win32":
        import msvcrt

        file.seek(1 << 30)  # beyond the text, which other processes read
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        file.seek(0)
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _clear(path: Path) -> None:
    """Delete a scratch folder, its mark last, so that the next run recognises anything that remains."""
    for entry in sorted(path.iterdir() if path.is_dir() else (), key=lambda entry: entry.name == OWNER):
        if entry.name == OWNER and len(list(path.iterdir())) > 1:
            log.warning("%s cannot be deleted: delete it by hand", path)
            return
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            with suppress(OSError):
                entry.unlink()
    with suppress(OSError):
        path.rmdir()

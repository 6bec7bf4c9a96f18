"""Output folders: working in them, and replacing an old set of files by a new one.

`geolabel.folder_record` lists what geolabel made in a folder. The old set of files stays until the new one is complete;
then all of them are replaced together, and other files are left alone.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from geolabel import outputs
from geolabel.errors import OutputError
from geolabel.folder_record import NOT_OURS, RECORD, FolderRecord, mark_of, write_record
from geolabel.parsing import check_name, read_json
from geolabel.scratch import WITHOUT_LOCKS, Move, Scratch, commit, is_scratch, lock_open, settle

REWRITTEN = "written.json"
"""How files outside a folder were last written by the runs that work in it."""

WORK = ".geolabel-work"
"""Folder in an output folder where a new set is made while an old one stands."""


def _every(_: object) -> bool:
    """Whether an old file goes, or a new set is whole: always."""
    return True


def _none(_: Path) -> bool:
    """Whether a run resumes from a folder: from none."""
    return False


def check_made(path: Path) -> None:
    """Refuse to write to a file that is there and that geolabel did not make, in the folders that are worked in.

    Raises
    ------
    OutputError
        If it is such a file.
    """
    for keeper in outputs.keepers.get():
        if keeper.holds(path):
            keeper.check(path)


def note(path: Path) -> None:
    """Put a file that grows where it stands, or was written by other means, on the record of each folder worked in."""
    for keeper in outputs.keepers.get():
        if isinstance(keeper, FolderRecord) and keeper.holds(path):
            keeper.note(path)


def promise(paths: Iterable[Path]) -> None:
    """Put files that workers will write on the record of each folder worked in, see `written_elsewhere`.

    Raises
    ------
    OutputError
        If a file is there that geolabel did not make.
    """
    for path in paths:
        check_made(path)
        note(path)


@contextmanager
def written_elsewhere(root: Path) -> Iterator[None]:
    """Write, in a worker, files in a folder that another process works in and has promised."""
    token = outputs.keepers.set((_Promised(root),))
    try:
        yield
    finally:
        outputs.keepers.reset(token)


@dataclass(frozen=True)
class _Promised:
    """Keeps nothing: the record of the folder is kept by the process that works in it."""

    root: Path

    def holds(self, path: Path) -> bool:
        return self.root in path.parents

    def check(self, path: Path) -> None:
        pass

    def note(self, path: Path, content: Path) -> None:
        pass


def check_folder(out: Path, inputs: Iterable[str | Path] = (), *, shared: bool = False) -> None:
    """Refuse, before any work is done, a folder that cannot be one of outputs.

    Parameters
    ----------
    shared
        Whether it may hold other things, such as a folder of inputs.

    Raises
    ------
    OutputError
        If a file is there, or the folder is, holds, or is in an input.
    """
    check_name(out.absolute())
    for source in map(str, inputs):
        if not Path(source).exists():  # a URL
            continue
        if outputs.same_file(out, source):
            raise OutputError(f"{out} is an input of this run ({source}): give another folder for the output")
        if not Path(source).is_dir():  # a file in the folder stays there, unless geolabel made it
            made = FolderRecord.read(out) if _is_below(source, out) else None
            if made is not None and _name_in(out, source) in made.names:
                raise OutputError(f"{out} holds an input of this run ({source}): give another folder for the output")
            continue
        if _is_below(source, out) and not shared:
            raise OutputError(f"{out} holds an input of this run ({source}): give another folder for the output")
        if _is_below(out, source):
            raise OutputError(f"{out} is inside an input of this run ({source}): give another folder for the output")
    if os.path.lexists(out) and not out.is_dir():
        raise OutputError(f"{out} is a file: give the name of a folder")
    settle(out)
    settle(out.parent)


def _name_in(out: Path, source: str) -> str:
    return Path(os.path.relpath(os.path.realpath(source), os.path.realpath(out))).as_posix()


def _is_below(inner: str | Path, outer: str | Path) -> bool:
    here, there = os.path.realpath(inner), os.path.realpath(outer)
    return here != there and Path(there) in Path(here).parents


@contextmanager
def making(root: Path) -> Iterator[FolderRecord]:
    """Write down in the record of a folder whatever is written in it inside the block; one run at a time.

    Raises
    ------
    OutputError
        If another run is at work in the folder.
    """
    made = FolderRecord.begin(root)
    with (root / RECORD).open("rb+") as file:
        try:
            lock_open(file)
        except OSError as error:
            if error.errno not in WITHOUT_LOCKS:
                raise OutputError(f"{root} is in use by another run: wait for it, or give another folder") from error
        for outer in outputs.keepers.get():
            if outer.holds(root) and isinstance(outer, FolderRecord):
                outer.note(root / RECORD)
        token = outputs.keepers.set((*outputs.keepers.get(), made))
        try:
            yield made
        finally:
            outputs.keepers.reset(token)
    made.conclude()


@contextmanager
def work_folder(
    out: Path,
    *,
    overwrite: bool,
    inputs: Iterable[str | Path] = (),
    shared: bool = False,
    named: Sequence[str] = (),
    leaving: Callable[[str], bool] = _every,
    goes_on: Callable[[Path], bool] = _none,
    whole: Callable[[Path], bool] = _every,
) -> Iterator[Path]:
    """Yield the folder to work in, where a run that ends early leaves what the same command resumes from.

    That is `out` itself, or, with `overwrite` where geolabel made something in it before, a folder in it: what is made
    there takes the place of the old when the block ends without an error.

    Parameters
    ----------
    shared
        Whether `out` may hold other things, which are never touched.
    named
        Files that `overwrite` replaces although geolabel does not know them, since the user named them.
    leaving
        Which of the old files the new ones replace, by name.
    goes_on
        Whether what an interrupted run with `overwrite` left in a folder is what this one begins with.
    whole
        Whether what is in a folder at the end may take the place of the old; otherwise it waits for the next run.

    Raises
    ------
    OutputError
        If `out` cannot be a folder of outputs, or holds what may not be replaced.
    """
    old = check_work(out, overwrite=overwrite, inputs=inputs, shared=shared)
    known = [] if old is None else [name for name in old.names if os.path.lexists(out / name)]
    fresh = not out.is_dir()
    replaces = overwrite and any(os.path.lexists(out / name) for name in (*known, *named))
    folder = out / WORK if replaces else out
    try:
        out.mkdir(parents=True, exist_ok=True)
        if replaces:
            _begin_work(folder, goes_on)
        with making(folder):
            yield folder
        if replaces and whole(folder):
            _move_in(out, folder, old, leaving, named)
    except BaseException:
        _leave_empty(folder, out, fresh=fresh)
        raise


def check_work(
    out: Path, *, overwrite: bool, inputs: Iterable[str | Path] = (), shared: bool = False
) -> FolderRecord | None:
    """What geolabel made in a folder that is to be worked in; refuses, before any work is done, as `work_folder`."""
    check_folder(out, inputs, shared=shared)
    if overwrite:
        return claim(out, overwrite=True, shared=shared)
    made = FolderRecord.read(out)
    return claim(out, overwrite=False, shared=shared) if made is None else made


def _begin_work(folder: Path, goes_on: Callable[[Path], bool]) -> None:
    if not os.path.lexists(folder):
        folder.mkdir()
        return
    made = None if folder.is_symlink() else FolderRecord.read(folder)
    if made is None and any(folder.iterdir()):
        raise OutputError(f"{folder} is not a folder of geolabel: move it away")
    settle(folder)
    if made is not None and not goes_on(folder):
        made.remove(made.names)
        (folder / RECORD).unlink(missing_ok=True)


def _move_in(
    out: Path, folder: Path, old: FolderRecord | None, leaving: Callable[[str], bool], named: Sequence[str]
) -> None:
    scratch = Scratch(out)
    try:
        _swap(out, folder, old, [scratch], leaving=leaving, named=named)
    finally:
        scratch.close()
    (folder / RECORD).unlink(missing_ok=True)
    for inner in sorted((path for path in folder.rglob("*") if path.is_dir()), reverse=True):
        with suppress(OSError):
            inner.rmdir()
    with suppress(OSError):
        folder.rmdir()


def _leave_empty(folder: Path, out: Path, *, fresh: bool) -> None:
    """Take away the record of a run that has made nothing, and the folders that were made for it."""
    with suppress(OSError):
        made = FolderRecord.read(folder)
        if made is not None and not made.names:
            (folder / RECORD).unlink()
        if folder != out:
            folder.rmdir()
    with suppress(OSError):
        if fresh:
            out.rmdir()


@contextmanager
def replacing_folder(
    out: Path, *, overwrite: bool, inputs: Iterable[str | Path] = (), shared: bool = False
) -> Iterator[Path]:
    """Yield an empty folder; what is in it when the block ends without an error takes the place of what is in `out`.

    Nothing goes before everything is there. What geolabel did not make stays where it is.

    Parameters
    ----------
    shared
        Whether `out` may hold other things although geolabel has made nothing in it.

    Raises
    ------
    OutputError
        If `out` cannot be a folder of outputs, holds what geolabel did not make, or holds what it made and `overwrite`
        is not given.
    """
    check_folder(out, inputs, shared=shared)
    old = claim(out, overwrite=overwrite, shared=shared)
    fresh = not out.is_dir()
    try:
        out.mkdir(parents=True, exist_ok=True)
        scratch = Scratch(out)
        try:
            room = scratch.room()
            yield room
            _swap(out, room, old, [scratch])
        finally:
            scratch.close()
    except OSError as error:
        raise OutputError(f"{out} could not be written: {error.strerror or error}; is the disk full?") from error
    finally:
        if fresh:
            with suppress(OSError):  # nothing came of it
                out.rmdir()


def claim(out: Path, *, overwrite: bool, shared: bool = False) -> FolderRecord | None:
    """What geolabel made in a folder before, if it may be replaced.

    Parameters
    ----------
    shared
        Whether a folder may hold other things too.

    Raises
    ------
    OutputError
        If there is something else, or something that may not be replaced.
    """
    made = FolderRecord.read(out)
    if made is None:
        other = next((entry.name for entry in _entries(out)), None)
        if other is not None and not shared:
            raise OutputError(
                f"{out} holds {other}, and no record that geolabel made what is in it: give another folder, or move "
                "away what is there"
            )
        return None
    if any(os.path.lexists(out / name) for name in made.names):
        if not overwrite:
            raise OutputError(f"{out} exists: give --overwrite to replace what geolabel made in it, or another name")
        if changed := made.changed():
            raise OutputError(f"{out / changed[0]} {NOT_OURS}")
    return made


def _entries(out: Path) -> list[Path]:
    """What is in a folder, but for what runs leave that have ended early."""
    return sorted(path for path in out.iterdir() if not is_scratch(path) and path.name != WORK) if out.is_dir() else []


def _swap(
    out: Path,
    new: Path,
    old: FolderRecord | None,
    scratches: Sequence[Scratch],
    *,
    leaving: Callable[[str], bool] = _every,
    named: Sequence[str] = (),
) -> None:
    """Let the files of one folder take the places of those that geolabel made in another before; all or none.

    Parameters
    ----------
    leaving
        Which of the old files go.
    named
        Files that are replaced although geolabel does not know them, since the user named them.

    Raises
    ------
    OutputError
        If a file cannot be moved into place. The message names a folder with the new files.
    """
    files = sorted(path for path in new.rglob("*") if path.is_file() and path != new / RECORD)
    names = [path.relative_to(new).as_posix() for path in files]
    going = [] if old is None else [name for name in old.names if leaving(name) and old.owns(name)]
    free = {*going, *named}
    taken = [name for name in names if name not in free and os.path.lexists(out / name)]
    if taken:
        raise OutputError(f"{out / taken[0]} {NOT_OURS}")
    marks = [] if old is None else [(name, mark) for name in old.names if name not in free for mark in old.marks[name]]
    record = scratches[0].room() / RECORD
    write_record(record, sorted([*marks, *zip(names, map(mark_of, files), strict=True)]))
    moves = [Move(out / name) for name in going if name not in set(names)]
    moves += [Move(out / name, path) for name, path in zip(names, files, strict=True)]
    moves.append(Move(out / RECORD, record))
    try:
        commit(moves, scratches)
    except OSError as error:
        place = error.filename2 or error.filename or out
        saved = new if new.name == WORK else _save(new, out)
        raise OutputError(
            f"{place} could not be replaced ({error.strerror or error}): {out} is as it was"
            + (f", and the new files are in {saved}" if saved else "")
        ) from error
    if old is not None:
        old.prune()


def _save(new: Path, out: Path) -> Path | None:
    """Keep a set of files that could not take their places beside these; None where that cannot be either."""
    saved = next(p for n in range(1000) if not os.path.lexists(p := out.with_name(f"{out.name}.new{n or ''}")))
    try:
        shutil.move(new, saved)
    except OSError:
        return None
    return saved


def check_rewritten(path: Path, work: Path, *, overwrite: bool, suffixes: tuple[str, ...]) -> None:
    """Refuse to replace a file, unless `overwrite` says so, or it is as an earlier run of the same folder wrote it.

    Raises
    ------
    OutputError
        If it must not be replaced.
    """
    outputs.check_target(path, overwrite=True, suffixes=suffixes)
    if path.exists() and not overwrite and list(mark_of(path)) not in _rewritten(work).get(path.name, []):
        raise OutputError(f"{path} exists, and is not the output of an earlier run: give --overwrite, or another name")


def remember(path: Path, work: Path) -> None:
    """Write down in a folder of `work_folder` how a file elsewhere is now, for `check_rewritten`."""
    marks = _rewritten(work) | {path.name: [*_rewritten(work).get(path.name, []), list(mark_of(path))][-2:]}
    with making(work), outputs.saving(work / REWRITTEN) as part:
        part.write_text(json.dumps(marks), encoding="utf-8")


def _rewritten(work: Path) -> dict[str, list[list[object]]]:
    try:
        marks = read_json(work / REWRITTEN)
    except (OSError, ValueError):
        return {}
    return marks if isinstance(marks, dict) else {}

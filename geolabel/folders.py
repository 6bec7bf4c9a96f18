"""Output folders: working in them, and replacing an old set of files by a new one.

`geolabel.folder_record` lists the files that geolabel wrote to a folder. The old files stay until the new ones are
complete; then all are replaced together, and other files are left alone.
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
"""Record of files outside the folder, as last written by runs that work in it."""

WORK = ".geolabel-work"
"""Subfolder of an output folder where new files are written while the old ones stay."""


def _every(_: object) -> bool:
    """Always true: every old file is replaced, every new set is complete."""
    return True


def _none(_: Path) -> bool:
    """Always false: no folder is resumed from."""
    return False


def check_made(path: Path) -> None:
    """Refuse to write to an existing file that geolabel did not write, in the folders being worked in.

    Raises
    ------
    OutputError
        If it is such a file.
    """
    for keeper in outputs.keepers.get():
        if keeper.holds(path):
            keeper.check(path)


def note(path: Path) -> None:
    """Record a file that is written in place, or by other means, in each folder being worked in."""
    for keeper in outputs.keepers.get():
        if isinstance(keeper, FolderRecord) and keeper.holds(path):
            keeper.note(path)


def promise(paths: Iterable[Path]) -> None:
    """Record files that workers will write in each folder being worked in, see `written_elsewhere`.

    Raises
    ------
    OutputError
        If a file exists that geolabel did not write.
    """
    for path in paths:
        check_made(path)
        note(path)


@contextmanager
def written_elsewhere(root: Path) -> Iterator[None]:
    """Write files, in a worker, to a folder that another process works in and has recorded with `promise`."""
    token = outputs.keepers.set((_Promised(root),))
    try:
        yield
    finally:
        outputs.keepers.reset(token)


@dataclass(frozen=True)
class _Promised:
    """A record that does nothing: the process that works in the folder keeps the real one."""

    root: Path

    def holds(self, path: Path) -> bool:
        return self.root in path.parents

    def check(self, path: Path) -> None:
        pass

    def note(self, path: Path, content: Path) -> None:
        pass


def check_folder(out: Path, inputs: Iterable[str | Path] = (), *, shared: bool = False) -> None:
    """Refuse an unsuitable output folder before any work is done.

    Parameters
    ----------
    shared
        Whether it may contain other files, such as a folder of inputs.

    Raises
    ------
    OutputError
        If it is a file, or the folder is, contains or is inside an input.
    """
    check_name(out.absolute())
    for source in map(str, inputs):
        if not Path(source).exists():  # a URL
            continue
        if outputs.same_file(out, source):
            raise OutputError(f"{out} is an input of this run ({source}): give another folder for the output")
        if not Path(source).is_dir():  # a file in the folder stays there, unless geolabel wrote it
            made = FolderRecord.read(out) if _is_below(source, out) else None
            if made is not None and _name_in(out, source) in made.names:
                raise OutputError(f"{out} contains an input of this run ({source}): give another folder for the output")
            continue
        if _is_below(source, out) and not shared:
            raise OutputError(f"{out} contains an input of this run ({source}): give another folder for the output")
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
    """Record every file written to a folder inside the block; one run at a time.

    Raises
    ------
    OutputError
        If another run works in the folder.
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
    """Yield the folder to work in, which keeps the files of an interrupted run for the same command to resume.

    That is `out` itself, or, with `overwrite` if geolabel wrote files there before, a subfolder, whose files replace
    the old ones when the block ends without an error.

    Parameters
    ----------
    shared
        Whether `out` may contain other files, which are never touched.
    named
        Files that `overwrite` replaces although geolabel has no record of them, since the user named them.
    leaving
        Which of the old files the new ones replace, by name.
    goes_on
        Whether this run resumes from the files that an interrupted run with `overwrite` left in a folder.
    whole
        Whether the files in a folder may replace the old ones at the end; otherwise they wait for the next run.

    Raises
    ------
    OutputError
        If `out` is unsuitable, or contains files that may not be replaced.
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
    """The record of a folder to work in; refuses unsuitable ones before any work is done, like `work_folder`."""
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
    """Delete the record of a run that wrote nothing, and the folders created for it."""
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
    """Yield an empty folder; its files replace those in `out` when the block ends without an error.

    Nothing is deleted before all files are complete. Files that geolabel did not write stay.

    Parameters
    ----------
    shared
        Whether `out` may contain other files although geolabel wrote nothing there.

    Raises
    ------
    OutputError
        If `out` is unsuitable, contains files that geolabel did not write, or contains files that it wrote and
        `overwrite` is not set.
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
            with suppress(OSError):  # not empty, or already gone
                out.rmdir()


def claim(out: Path, *, overwrite: bool, shared: bool = False) -> FolderRecord | None:
    """The record of a folder whose files may be replaced.

    Parameters
    ----------
    shared
        Whether the folder may also contain other files.

    Raises
    ------
    OutputError
        If it contains other files, or files that may not be replaced.
    """
    made = FolderRecord.read(out)
    if made is None:
        other = next((entry.name for entry in _entries(out)), None)
        if other is not None and not shared:
            raise OutputError(
                f"{out} contains {other}, but no record that geolabel wrote its files: give another folder, or move "
                "its files away"
            )
        return None
    if any(os.path.lexists(out / name) for name in made.names):
        if not overwrite:
            raise OutputError(f"{out} exists: give --overwrite to replace what geolabel made in it, or another name")
        if changed := made.changed():
            raise OutputError(f"{out / changed[0]} {NOT_OURS}")
    return made


def _entries(out: Path) -> list[Path]:
    """Entries of a folder, except those left by interrupted runs."""
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
    """Replace the files that geolabel wrote to a folder by those of another folder; all or none.

    Parameters
    ----------
    leaving
        Which of the old files are replaced.
    named
        Files that are replaced although geolabel has no record of them, since the user named them.

    Raises
    ------
    OutputError
        If a file cannot be moved into place. The message names the folder with the new files.
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
            f"{place} could not be replaced ({error.strerror or error}): {out} is unchanged"
            + (f", and the new files are in {saved}" if saved else "")
        ) from error
    if old is not None:
        old.prune()


def _save(new: Path, out: Path) -> Path | None:
    """Keep files that could not be moved into place beside them; None if that fails too."""
    saved = next(p for n in range(1000) if not os.path.lexists(p := out.with_name(f"{out.name}.new{n or ''}")))
    try:
        shutil.move(new, saved)
    except OSError:
        return None
    return saved


def check_rewritten(path: Path, work: Path, *, overwrite: bool, suffixes: tuple[str, ...]) -> None:
    """Refuse to replace a file, unless with `overwrite`, or if it is unchanged since an earlier run of the same folder.

    Raises
    ------
    OutputError
        If it may not be replaced.
    """
    outputs.check_target(path, overwrite=True, suffixes=suffixes)
    if path.exists() and not overwrite and list(mark_of(path)) not in _rewritten(work).get(path.name, []):
        raise OutputError(f"{path} exists, and is not the output of an earlier run: give --overwrite, or another name")


def remember(path: Path, work: Path) -> None:
    """Record the state of a file outside `work_folder`, for `check_rewritten`."""
    marks = _rewritten(work) | {path.name: [*_rewritten(work).get(path.name, []), list(mark_of(path))][-2:]}
    with making(work), outputs.saving(work / REWRITTEN) as part:
        part.write_text(json.dumps(marks), encoding="utf-8")


def _rewritten(work: Path) -> dict[str, list[list[object]]]:
    try:
        marks = read_json(work / REWRITTEN)
    except (OSError, ValueError):
        return {}
    return marks if isinstance(marks, dict) else {}

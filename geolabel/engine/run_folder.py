"""The folder of a run: its records, run key and lock. An interrupted run resumes from here.

A folder holds ``run.json`` with the key and progress of the run; ``lock``, while a process works on it; and the records
of `geolabel.io.records`. It is deleted when the run has succeeded.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

from geolabel.engine import executors
from geolabel.engine.run_state import (
    DONE,
    LOCK,
    MAX_BYTES,
    RUN,
    STOP,
    Changes,
    Holder,
    State,
    difference,
    holder,
    locked,
)
from geolabel.errors import GeolabelError, OptionError, OutputError, RunError
from geolabel.io.records import SUFFIX as RECORD_SUFFIX
from geolabel.io.records import Store
from geolabel.io.storage import FolderStorage, is_url, storage_at
from geolabel.parsing import check_name

log = logging.getLogger(__name__)

_UNFIT = (ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError, TypeError, ValueError)
"""Errors raised by inconsistent values, such as those of damaged records."""

_REMOVING = "removing"
"""Status of a run whose records are being deleted."""

SUFFIX = ".run"
"""Suffix of the folder beside an output: ``slides.gpkg.run``."""


@dataclass(frozen=True)
class RunFolderOptions:
    """Where the records of a run are stored, and how long."""

    run_dir: str | Path | None = None
    """Path, or URL of any store supported by fsspec; None for a folder beside the output."""
    keep: bool = False
    """Whether to keep the records after the run has succeeded."""
    scene_key: str | None = None
    """Name of the scene in the key, for a scene in memory: a run over an array can only resume with one."""

    def __post_init__(self) -> None:
        if self.run_dir is not None:
            check_name(self.run_dir)


class Folder:
    """The folder of an active run.

    Parameters
    ----------
    store
        Location of the folder.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.storage = store.storage
        self.stopping = threading.Event()
        """Set when no further task may start."""
        self.lost = False
        """Whether another run has taken over the folder."""
        self.resumed = False
        """Whether the run resumes from the records of an earlier one."""
        self._state: State | None = None

    @property
    def state(self) -> State:
        """Content of ``run.json``."""
        assert self._state is not None
        return self._state

    def begin(self, key: Mapping[str, Any], *, overwrite: bool, allowed: Changes | None = None) -> None:
        """Resume the run with this key, or start it.

        Parameters
        ----------
        allowed
            See `geolabel.engine.run_state.difference`.

        Raises
        ------
        RunError
            If the folder belongs to another run and may not be overwritten.
        """
        found = self._read()
        if found is not None and found.status == _REMOVING:
            self.store.remove()  # a run was killed while it deleted its folder
        elif found is not None:
            differing = difference(found.key, key, allowed)
            if not differing and (found.overwrite or not overwrite):
                log.info("resuming the run in %s", self.store.root)
                self.resumed = True
                self._write(State(key, found.started, overwrite, passes=found.passes, written=found.written))
                return
            if differing and not overwrite:
                raise RunError(
                    f"{self.store.root} holds another run: {differing}. Use the same options to resume it, "
                    "--overwrite to restart, or another --run-dir"
                )
            self.store.remove()
        self._write(State(key, datetime.now(UTC).isoformat(timespec="seconds"), overwrite))

    def check(self) -> None:
        """Refuse a folder that is neither empty nor that of a run, before anything in it is changed.

        Raises
        ------
        RunError
            If it contains anything else.
        """
        root = self.store.root
        if isinstance(self.storage, FolderStorage) and self.storage.root.exists() and not self.storage.root.is_dir():
            raise RunError(f"{root} is a file: give a --run-dir that is a folder or does not exist")
        if self._read() is None:
            other = next((name for name in self.storage.names() if not self._is_lock(name)), None)
            if other is not None:
                raise RunError(
                    f"{root} contains {other} but no {RUN} of geolabel, so it is not the folder of a run: "
                    "give a --run-dir that is empty"
                )

    def _is_lock(self, name: str) -> bool:
        """Whether a file is the lock or the stop mark of a run that has just started, or was killed then."""
        if name not in (LOCK, STOP):
            return False
        with suppress(FileNotFoundError), self.storage.open(name) as file:
            data = file.read(MAX_BYTES)
            return not data or (name == LOCK and Holder.parse(data) is not None)
        return True

    def _read(self) -> State | None:
        try:
            return State.read(self.storage)
        except FileNotFoundError:
            return None
        except (ValueError, RecursionError) as error:
            raise RunError(
                f"{self.store.root}/{RUN} cannot be read by this version of geolabel ({error}): delete the folder if "
                "another version wrote it, or give another --run-dir"
            ) from error

    def _write(self, state: State) -> None:
        self._state = state
        try:
            self.storage.write(RUN, lambda file: file.write(state.dump()))
        except OSError as error:
            raise OutputError(f"{self.store.root}/{RUN} could not be written: {error.strerror or error}") from error

    def update(self, **changes: Any) -> None:
        """Change the state in ``run.json``."""
        self._write(State(**vars(self.state) | changes))

    def note_pass(self, name: str, tasks: int) -> None:
        """Record the number of tasks of a pass."""
        if self.state.passes.get(name) != tasks:
            self.update(passes={**self.state.passes, name: tasks})

    @contextmanager
    def writing(self, *paths: Path) -> Iterator[None]:
        """Record that outputs are being written, and then that they are complete: the same run may write them again."""
        begun = {str(path.absolute()): [BEGUN, time.time_ns()] for path in paths}
        self.update(written={**self.state.written, **begun})
        yield
        self.update(written={**self.state.written, **{str(path.absolute()): _stamp(path) for path in paths}})

    def stop(self) -> None:
        """Start no further task, here or in any worker."""
        self.stopping.set()
        with suppress(OSError):
            self.storage.write(STOP, lambda file: file.write(b""))

    def lose(self) -> None:
        """Leave the folder to another run, without asking its workers to stop."""
        self.lost = True
        self.stopping.set()

    def end(self, status: str, message: str = "") -> None:
        """Record how the run ended; the folder is left for ``geolabel runs`` or the run that resumes."""
        with suppress(GeolabelError):
            self.update(status=status, message=message)

    def give_up(self, error: BaseException, hint: str) -> None:
        """Record why the run failed, and keep records to resume from; if there are none, delete the folder."""
        if any(name.partition("/")[0].endswith(f"-{DONE}") for name in self.storage.names()):
            self.end("failed", str(error))
            error.add_note(hint)
        else:
            self.remove()

    def remove(self) -> None:
        """Delete everything that belongs to the run; `RUN` last, so that the folder is recognised until then."""
        state = self._read() if self._state is None else self._state
        if state is not None:
            with suppress(OutputError):  # on a full disk the state cannot be written
                self._write(State(**vars(state) | {"status": _REMOVING}))
        self._state = None
        self.store.remove()
        for name in (STOP, RUN):
            self.storage.remove(name)
        self.storage.prune()


@contextmanager
def opened(
    options: RunFolderOptions,
    root: str | Path,
    key: Mapping[str, Any],
    *,
    overwrite: bool,
    allowed: Changes | None = None,
) -> Iterator[Folder]:
    """A run folder that is locked, visible to every worker, and deleted when the run succeeds.

    Parameters
    ----------
    key
        Everything that the records of the run depend on, as plain values.
    allowed
        See `geolabel.engine.run_state.difference`.

    Raises
    ------
    RunError
        If another process works in it, it belongs to another run, or a worker cannot see it.
    KeyboardInterrupt
        With a message that says how to resume.
    """
    folder = Folder(Store(root))
    with ExitStack() as stack:
        folder.check()
        stack.enter_context(locked(folder.storage, str(root), on_loss=folder.lose))
        folder.storage.remove(STOP)
        folder.begin(key, overwrite=overwrite, allowed=allowed)
        hint = f"finished work is kept in {root}: run the same command again to resume"
        try:
            _check_visible(folder)
            with _interruptible(folder):
                yield folder
        except KeyboardInterrupt as error:
            if folder.lost:
                raise RunError(f"{root} was taken over by another run, since this one did not respond") from error
            folder.end("interrupted")
            raise KeyboardInterrupt(f"interrupted; {hint}") from error
        except BaseException as error:
            folder.give_up(error, hint)
            if folder.resumed and isinstance(error, _UNFIT):
                raise RunError(
                    f"{root} holds records of an earlier run, and resuming from them failed "
                    f"({type(error).__name__}: {error}); if they are damaged, restart with --overwrite"
                ) from error
            raise
        if options.keep:
            folder.end("finished")
        else:
            folder.remove()


def _check_visible(folder: Folder) -> None:
    if not executors.clustered():
        return
    for worker, sees in executors.everywhere(_sees, str(folder.store.root), folder.state.started).items():
        if not sees:
            raise RunError(
                f"the worker {worker} does not see {folder.store.root}: give a --run-dir that all workers and this "
                "machine see, such as a shared folder or s3://BUCKET/NAME"
            )


def _sees(root: str, started: str) -> bool:
    try:
        return State.read(storage_at(root)).started == started
    except (OSError, ValueError, RecursionError, OptionError):
        return False


@contextmanager
def _interruptible(folder: Folder) -> Iterator[None]:
    """Let the first Ctrl-C stop the run after its current tasks, and the second at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)
    if before is None:  # installed by something other than Python
        yield
        return

    def first(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        signal.signal(signal.SIGINT, before)
        folder.stop()
        log.warning("interrupted: finishing the current tasks (press again to stop at once)")

    signal.signal(signal.SIGINT, first)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


BEGUN = -1
"""Placeholder for the size of an output that is being written; its time is when that started."""

_SLACK_NS = 2_000_000_000
"""Resolution of file times: two seconds on some file systems."""


def _stamp(path: Path) -> list[int]:
    """Size and modification time of a file."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def written_by(root: str | Path) -> frozenset[Path]:
    """Outputs of an unfinished run in a folder, unchanged since: the resumed run may replace them."""
    try:
        state = State.read(storage_at(root))
    except (OSError, ValueError, RecursionError):
        return frozenset()
    found = set()
    for name, mark in state.written.items():
        with suppress(OSError, ValueError, TypeError, LookupError):  # the record may be damaged
            size, changed = _stamp(Path(name))
            # killed after the output was written but before that was recorded
            just_written = mark[0] == BEGUN and changed >= mark[1] - _SLACK_NS
            if just_written or [size, changed] == mark:
                found.add(Path(name))
    return frozenset(found)


# --- folders of other runs -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Summary:
    """Summary of a run, from its folder."""

    folder: str
    status: str
    """``running``, ``interrupted``, ``failed``, ``finished``, or ``dead``: ended without recording it."""
    started: str
    message: str
    done: Mapping[str, tuple[int, int]]
    """Finished tasks and total tasks, by pass."""
    key: Mapping[str, Any]
    size_bytes: int | None
    """None if the store does not report it."""


def summarize(root: str | Path) -> Summary:
    """Summarise the run in a folder.

    Raises
    ------
    RunError
        If it is not the folder of a run.
    """
    here = storage_at(root)
    try:
        state = State.read(here)
    except FileNotFoundError as error:
        raise RunError(f"{root} is not the folder of a run: it has no {RUN}") from error
    except (ValueError, RecursionError) as error:
        raise RunError(f"{root}/{RUN} cannot be read: {error}") from error
    names = list(here.names())
    alive = LOCK in names and holder(here, watch=False) is not None
    counted = {
        name: (sum(n.startswith(f"{name}-{DONE}/") and n.endswith(RECORD_SUFFIX) for n in names), total)
        for name, total in state.passes.items()
        if isinstance(total, int)
    }
    size = None
    if not is_url(root):
        size = sum(path.stat().st_size for path in Path(root).rglob("*") if path.is_file())
    status = "running" if alive else "dead" if state.status == "running" else state.status
    return Summary(str(root), status, state.started, state.message, counted, state.key, size)


def find_runs(where: Path) -> list[Path]:
    """Run folders in a folder, or that folder itself."""
    if (where / RUN).is_file():
        return [where]
    return sorted(path.parent for path in where.glob(f"*/{RUN}"))


def clean(root: str | Path) -> None:
    """Delete the folder of a run, unless a process works on it.

    Raises
    ------
    RunError
        If a process works on it, or the folder is not that of a run.
    """
    summarize(root)
    folder = Folder(Store(root))
    other = holder(folder.storage)
    if other is not None:
        raise RunError(f"{root} is in use by process {other.pid} on {other.host.split()[0]}: end that run first")
    folder.storage.remove(LOCK)
    folder.remove()

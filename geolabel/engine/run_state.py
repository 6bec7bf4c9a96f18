"""The state of a run folder: run key, progress, outcome, and lock.

One run at a time works in a folder. The lock of a dead run is taken over, whichever machine it ran on.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import psutil

from geolabel.errors import RunError
from geolabel.io.storage import Storage
from geolabel.parsing import parse_json
from geolabel.types import of_kind

RUN = "run.json"
"""Name of the state file."""

DONE = "done"
"""Suffix of the record kind of finished tasks: ``PASS-done``."""

STOP = "stop"
"""A file of this name in a run folder asks its workers to start no further task."""

FORMAT = 2
"""Format of the run folder; other versions are not resumed."""

MAX_BYTES = 16 << 20
"""Maximum size of ``run.json``, which usually takes a few thousand bytes."""

MAX_DEPTH = 16
"""Maximum nesting; a key has six levels."""


@dataclass(frozen=True)
class State:
    """Content of ``run.json``."""

    key: Mapping[str, Any]
    """Everything that the records depend on."""
    started: str
    overwrite: bool = False
    """Whether the run may replace its outputs."""
    status: str = "running"
    """``running``, ``interrupted``, ``failed``, ``finished`` or ``removing``."""
    message: str = ""
    """Error message of a failed run."""
    passes: Mapping[str, int] = field(default_factory=dict)
    """Number of tasks of the passes started so far."""
    written: Mapping[str, list[int]] = field(default_factory=dict)
    """Complete outputs: path to size and modification time in nanoseconds; see `Folder.writing`."""

    def dump(self) -> bytes:
        """Serialise."""
        return json.dumps({"format": FORMAT} | vars(self), indent=1).encode()

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Parse the result of `dump`.

        Raises
        ------
        ValueError
            If it is anything else.
        """
        values = parse_json(data, limit=MAX_BYTES, depth=MAX_DEPTH)
        types = {
            "key": dict,
            "started": str,
            "overwrite": bool,
            "status": str,
            "message": str,
            "passes": dict,
            "written": dict,
        }
        if not isinstance(values, dict) or values.pop("format", None) != FORMAT or values.keys() != types.keys():
            raise ValueError("it is of another version of geolabel")
        if not all(isinstance(values[name], kind) for name, kind in types.items()):
            raise ValueError("it is damaged")
        return cls(**values)

    @classmethod
    def read(cls, folder: Storage) -> Self:
        """Read the state in a folder.

        Raises
        ------
        FileNotFoundError
            If there is none.
        ValueError, RecursionError
            If it is not the result of `dump`.
        """
        with folder.open(RUN) as file:
            return cls.parse(file.read(MAX_BYTES + 1))


Changes = Mapping[str, tuple[Any, Any]]
"""Last names of key values that may change between a run and the one that resumes it, from and to what."""


def difference(old: Mapping[str, Any], new: Mapping[str, Any], allowed: Changes | None = None, limit: int = 4) -> str:
    """Describe the differences between two run keys; empty if there are none.

    Parameters
    ----------
    allowed
        Changes that are ignored.
    limit
        Maximum number of differences that are described.
    """
    before, after = dict(_flat(old)), dict(_flat(new))
    names = [
        name
        for name in {**before, **after}
        if before.get(name) != after.get(name)
        and (allowed or {}).get(name.rpartition(".")[2]) != (before.get(name), after.get(name))
    ]
    parts = [f"{name} was {_short(before.get(name))} and is {_short(after.get(name))} now" for name in sorted(names)]
    return "; ".join(parts[:limit]) + (f"; and {len(names) - limit} more" if len(names) > limit else "")


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _short(value: Any) -> str:
    text = "not given" if value is None else str(value)
    return text if len(text) <= 48 else f"{text[:45]}..."


log = logging.getLogger(__name__)

LOCK = "lock"
"""Name of the lock file."""

BEAT = 5.0
"""Seconds between heartbeats of the process that holds the lock."""

MAX_LOCK_BYTES = 1 << 16
"""Maximum size of a lock, which usually takes a few hundred bytes."""

_MAX_PID = 1 << 31
"""Upper bound of process numbers."""

PATIENCE = 3
"""Missed heartbeats after which a holder on another machine counts as dead."""


@dataclass(frozen=True)
class Holder:
    """The process that holds a lock."""

    host: str
    pid: int
    born: float
    """Start time of the process, as process numbers are reused."""
    token: str = field(default_factory=lambda: uuid.uuid4().hex)
    beat: int = 0

    @classmethod
    def here(cls) -> Self:
        """Return the current process."""
        return cls(_host(), os.getpid(), psutil.Process().create_time())

    @classmethod
    def parse(cls, data: bytes) -> Self | None:
        """Parse a lock; None if it is damaged, as by a full disk."""
        try:
            values = parse_json(data, limit=MAX_LOCK_BYTES)
            found = cls(**values)
        except (ValueError, TypeError):
            return None
        return found if of_kind(found, cls) and found.host.strip() and 0 < found.pid < _MAX_PID else None

    def dump(self) -> bytes:
        """Serialise."""
        return json.dumps(asdict(self)).encode()

    @property
    def alive(self) -> bool | None:
        """Whether the process is alive; None if unknown here."""
        if self.host != _host():
            return None
        try:
            return bool(abs(psutil.Process(self.pid).create_time() - self.born) < 1)
        except psutil.NoSuchProcess:
            return False
        except psutil.Error:
            return None


def _host() -> str:
    """The machine and its process namespace: containers may share a host name and a folder."""
    with suppress(OSError):
        return f"{platform.node()} {Path('/proc/self/ns/pid').readlink()}"
    return platform.node()


def holder(storage: Storage, *, watch: bool = True) -> Holder | None:
    """Return the live process that holds the lock of a folder, or None.

    Parameters
    ----------
    watch
        Whether to wait for a heartbeat of a process on another machine; if not, it counts as alive.
    """
    found = _read(storage)
    if found is None or found.alive is False:
        return None
    if found.alive or not watch:
        return found
    log.warning("the run may be active on %s: waiting for its heartbeat", found.host)
    end = time.monotonic() + PATIENCE * BEAT
    while time.monotonic() < end:
        time.sleep(BEAT / 5)
        now = _read(storage)
        if now != found:
            return now
    return None


def _read(storage: Storage) -> Holder | None:
    for _ in range(5):
        try:
            with storage.open(LOCK) as file:
                found = Holder.parse(file.read(MAX_LOCK_BYTES))
        except FileNotFoundError:
            return None
        if found is not None:
            return found
        time.sleep(BEAT / 25)  # another process is writing it, or died while writing
    return None


def _clear(storage: Storage) -> None:
    """Delete the lock of a dead process, unless another run was faster."""
    found = _read(storage)
    if found is None or found.alive is not True:
        storage.remove(LOCK)


@contextmanager
def locked(storage: Storage, name: str, *, on_loss: Callable[[], None]) -> Iterator[None]:
    """Hold the lock of a folder; if the folder is empty afterwards, it is deleted.

    Parameters
    ----------
    name
        Name of the folder, for messages.
    on_loss
        Called, from another thread, when another process has taken over the lock because this one seemed dead, such as
        on a laptop that was suspended.

    Raises
    ------
    RunError
        If a live run holds it.
    """
    mine = Holder.here()
    if not storage.create(LOCK, mine.dump()):
        other = holder(storage)
        if other is not None:
            raise RunError(
                f"{name} is in use by process {other.pid} on {other.host.split()[0]}: wait for it, "
                "or give another --run-dir"
            )
        _clear(storage)
        if not storage.create(LOCK, mine.dump()):
            raise RunError(f"{name} was just taken by another run: wait for it, or give another --run-dir")
    over = threading.Event()
    thread = threading.Thread(target=_beat, args=(storage, mine, over, on_loss), name="geolabel-lock", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        found = _read(storage)
        if found is not None and found.token == mine.token:
            storage.remove(LOCK)
            storage.prune()


def _beat(storage: Storage, mine: Holder, over: threading.Event, on_loss: Callable[[], None]) -> None:
    while not over.wait(BEAT):
        mine = replace(mine, beat=mine.beat + 1)
        data = mine.dump()
        try:
            found = _read(storage)
            if found is not None and found.token != mine.token:
                on_loss()
                return
            storage.write(LOCK, lambda file, data=data: file.write(data))  # type: ignore[misc]
        except OSError as error:  # a full disk stops the run elsewhere, with a better message
            log.warning("the lock could not be renewed: %s", error)

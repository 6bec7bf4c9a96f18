"""The state of a run's folder: its run key, how far it is, how it ended, and who holds its lock.

One run at a time works in a folder. The lock of a run that died is taken over, on whatever machine it ran.
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
"""Name of the file."""

DONE = "done"
"""Records of finished tasks are of the kind ``PASS-done``."""

STOP = "stop"
"""A file of this name in the folder of a run asks its workers to begin no further task."""

FORMAT = 2
"""Format of the run folder; other versions are not resumed."""

MAX_BYTES = 16 << 20
"""Of ``run.json``, which takes a few thousand."""

MAX_DEPTH = 16
"""Levels of values in values; a key has six."""


@dataclass(frozen=True)
class State:
    """What ``run.json`` says."""

    key: Mapping[str, Any]
    """Everything that the records depend on."""
    started: str
    overwrite: bool = False
    """Whether the run was asked to replace its outputs."""
    status: str = "running"
    """``running``, ``interrupted``, ``failed``, ``finished`` or ``removing``."""
    message: str = ""
    """Why it failed."""
    passes: Mapping[str, int] = field(default_factory=dict)
    """Tasks of the passes that have begun."""
    written: Mapping[str, list[int]] = field(default_factory=dict)
    """Outputs that are whole: path to size and modification time in nanoseconds; see `Folder.writing`."""

    def dump(self) -> bytes:
        """As it is written."""
        return json.dumps({"format": FORMAT} | vars(self), indent=1).encode()

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read what `dump` wrote.

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
        """Read what a folder says.

        Raises
        ------
        FileNotFoundError
            If it says nothing.
        ValueError, RecursionError
            If it is anything else than what `dump` wrote.
        """
        with folder.open(RUN) as file:
            return cls.parse(file.read(MAX_BYTES + 1))


Changes = Mapping[str, tuple[Any, Any]]
"""Last names of values of a key that may change between a run and the one that resumes it, from and to what."""


def difference(old: Mapping[str, Any], new: Mapping[str, Any], allowed: Changes | None = None, limit: int = 4) -> str:
    """Say in words what differs between two run keys; empty where nothing does.

    Parameters
    ----------
    allowed
        Changes that are no difference.
    limit
        Maximum number of values that are named.
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
"""Name of the file."""

BEAT = 5.0
"""Seconds between the signs of life of the process that holds the lock."""

MAX_LOCK_BYTES = 1 << 16
"""Of a lock, which takes a few hundred."""

_MAX_PID = 1 << 31
"""Larger than any number of a process."""

PATIENCE = 3
"""Beats without a sign of life after which a holder that cannot be looked up counts as dead."""


@dataclass(frozen=True)
class Holder:
    """Who holds a lock."""

    host: str
    pid: int
    born: float
    """When the process began; numbers of processes are used again."""
    token: str = field(default_factory=lambda: uuid.uuid4().hex)
    beat: int = 0

    @classmethod
    def here(cls) -> Self:
        """The process that asks."""
        return cls(_host(), os.getpid(), psutil.Process().create_time())

    @classmethod
    def parse(cls, data: bytes) -> Self | None:
        """Read a lock; None where it is none, as a full disk leaves it."""
        try:
            values = parse_json(data, limit=MAX_LOCK_BYTES)
            found = cls(**values)
        except (ValueError, TypeError):
            return None
        return found if of_kind(found, cls) and found.host.strip() and 0 < found.pid < _MAX_PID else None

    def dump(self) -> bytes:
        """As it is written."""
        return json.dumps(asdict(self)).encode()

    @property
    def alive(self) -> bool | None:
        """Whether the process lives; None where that cannot be seen from here."""
        if self.host != _host():
            return None
        try:
            return bool(abs(psutil.Process(self.pid).create_time() - self.born) < 1)
        except psutil.NoSuchProcess:
            return False
        except psutil.Error:
            return None


def _host() -> str:
    """The machine, and the space that its process numbers belong to: containers may share a name and a folder."""
    with suppress(OSError):
        return f"{platform.node()} {Path('/proc/self/ns/pid').readlink()}"
    return platform.node()


def holder(storage: Storage, *, watch: bool = True) -> Holder | None:
    """Return the live process that holds the lock of a folder, None without one.

    Parameters
    ----------
    watch
        Whether to wait for a sign of life of a process that runs elsewhere; without, it counts as alive.
    """
    found = _read(storage)
    if found is None or found.alive is False:
        return None
    if found.alive or not watch:
        return found
    log.warning("the run seems to be at work on %s: waiting for a sign of life", found.host)
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
        time.sleep(BEAT / 25)  # another process is writing it, or died writing it
    return None


def _clear(storage: Storage) -> None:
    """Take away the lock of a dead process, unless another run has been faster."""
    found = _read(storage)
    if found is None or found.alive is not True:
        storage.remove(LOCK)


@contextmanager
def locked(storage: Storage, name: str, *, on_loss: Callable[[], None]) -> Iterator[None]:
    """Hold the lock of a folder; a folder that is empty afterwards is deleted.

    Parameters
    ----------
    name
        Of the folder, for messages.
    on_loss
        Called, from another thread, when another process has taken the lock over: this process was thought dead, as a
        laptop that slept is.

    Raises
    ------
    RunError
        If another run holds it and lives.
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
            raise RunError(f"{name} was taken by another run just now: wait for it, or give another --run-dir")
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
        except OSError as error:  # a full disk ends the run elsewhere, with a better message
            log.warning("the lock could not be renewed: %s", error)

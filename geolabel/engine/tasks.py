"""Passes, their tasks, and the records of finished tasks, which a resumed run reads instead of doing them again.

A task first writes its pixels to the store, then a separate record of its result for the client: once that exists,
the task is done. Records hold arrays and plain values. Nothing in them names code: a pass declares the type of its
records, and a reader accepts no other.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import lru_cache
from typing import Any, Generic, Protocol, Self, TypeVar, get_args, runtime_checkable

import numpy as np
import shapely

from geolabel.engine import executors, worker
from geolabel.engine.run_folder import Folder
from geolabel.engine.run_state import DONE, STOP
from geolabel.errors import (
    ClusterError,
    GeolabelError,
    MemoryLimitError,
    OutputError,
    memory_wanted,
    ran_out_of_memory,
)
from geolabel.io.records import Store
from geolabel.parsing import parse_json
from geolabel.parts import Recipe
from geolabel.types import AnyArray, hints, of_kind

log = logging.getLogger(__name__)

T = TypeVar("T")


class Progress(Protocol):
    """Follows a run."""

    def track(self, results: Iterable[T], name: str, total: int) -> Iterator[T]:
        """Pass `results` through, one for each of `total` tasks of the pass `name`.

        They are `Weighed` if tasks differ in the time that they take.
        """
        ...


@dataclass(frozen=True)
class Weighed(Generic[T]):
    """Results of tasks that differ in the time that they take, so that the remaining time can be estimated."""

    results: Iterator[T]
    weights: Sequence[float]
    """About how long each task takes, in any unit."""

    def __iter__(self) -> Iterator[T]:
        return self.results


class Silent:
    """Follows nothing."""

    def track(self, results: Iterable[T], name: str, total: int) -> Iterator[T]:  # noqa: ARG002
        """Pass `results` through."""
        return iter(results)


@dataclass(frozen=True)
class Numbered:
    """Follows one part of a run under names that identify the part."""

    progress: Progress
    number: str

    def track(self, results: Iterable[T], name: str, total: int) -> Iterator[T]:
        """Pass `results` through."""
        return self.progress.track(results, f"{name} {self.number}", total)


@dataclass
class Effort:
    """Time, tasks and memory of a run: figures that differ between runs with the same result."""

    seconds: dict[str, float] = field(default_factory=dict)
    """Seconds of each pass."""
    tasks: int = 0
    tasks_kept: int = 0
    """Number of tasks that an earlier, interrupted run had done."""
    peak_bytes: dict[str, int] = field(default_factory=dict)
    """Maximum memory that each process has held."""

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Add the wall time of a pass."""
        start = time.perf_counter()
        yield
        self.seconds[name] = round(self.seconds.get(name, 0) + time.perf_counter() - start, 3)
        log.info("%s: %.1f s", name, self.seconds[name])

    def count_task(self, worker: str, *, kept: bool, peak_bytes: int) -> None:
        """Add the outcome of a task in a process."""
        self.tasks += 1
        self.tasks_kept += kept
        self.peak_bytes[worker] = max(self.peak_bytes.get(worker, 0), peak_bytes)

    def effort(self) -> dict[str, Any]:
        """Plain values for the user."""
        return {
            "tasks": self.tasks,
            "tasks_kept": self.tasks_kept,
            "seconds": self.seconds,
            "peak_mb": {worker: round(peak / 2**20) for worker, peak in sorted(self.peak_bytes.items())},
        }


R = TypeVar("R")
C = TypeVar("C")
E = TypeVar("E", bound=Effort)

_TOO_LARGE = "give its process more memory, or set a smaller --batch, --tile-size or --block-size"


# --- passes ----------------------------------------------------------------------------------------------------------


def _first(*given: Any) -> str:
    """First item of a job: its number, most often."""
    job = given[-1]
    return f"{job[0] if isinstance(job, tuple) else job}"


@dataclass(frozen=True)
class Pass(Generic[R]):
    """One step of a run: a function that is applied to many jobs."""

    name: str
    """Name of the pass in progress, errors and the run folder."""
    function: Callable[..., R]
    """Takes what the pass is bound to, and a job. A module-level function, so that it can be sent to workers."""
    record: Any
    """Type of what the function returns, down to the dtypes of arrays. Records of any other are not resumed from."""
    where: Callable[..., str] = _first
    """Takes the same arguments as the function, and describes in words what the job works on."""
    pixels: str | None = None
    """Kind of the record of pixels that a task writes under its own number, unless it returns False."""

    def bind(self, *given: Any) -> Bound[R]:
        """The pass as a function of the job alone."""
        return Bound(self, given)


@dataclass(frozen=True)
class Bound(Generic[R]):
    """A pass and the arguments of its function beside the job."""

    step: Pass[R]
    given: tuple[Any, ...] = ()

    def __call__(self, job: Any) -> R:
        """Do one job."""
        return self.step.function(*self.given, job)

    def where(self, job: Any) -> str:
        """What a job works on, in words."""
        return f"pass {self.step.name}, {self.step.where(*self.given, job)}"


@dataclass(frozen=True)
class _Outcome(Generic[R]):
    """The outcome of a task."""

    result: R | None
    worker: str
    """Host and process."""
    seconds: float = 0.0
    kept: bool = False
    """Whether the result was already recorded."""
    stopped: bool = False
    """Whether the task was not started, since the run is to stop."""
    peak_bytes: int = 0
    """Peak memory of the process so far."""


@dataclass(frozen=True)
class Recorded(Generic[R]):
    """A pass that reads a record if there is one, and writes one otherwise. It is sent to the workers."""

    step: Bound[R]
    store: Store | None
    """None for work that is not resumed, which writes its pixels only."""

    def __call__(self, task: tuple[int, Any]) -> _Outcome[R]:
        """Do a task, given with its number."""
        number, job = task
        start = time.perf_counter()
        kept = self._kept(number)
        if kept is not None:
            return _Outcome(kept[0], _process(), time.perf_counter() - start, kept=True, peak_bytes=peak_bytes())
        if self.store is not None and self.store.storage.exists(STOP):
            return _Outcome(None, _process(), stopped=True)
        try:
            result = self.step(job)
        except Exception as error:
            if isinstance(error, GeolabelError) or not ran_out_of_memory(error):
                raise
            raise self._too_large(number, error) from error
        if self.store is not None:
            kind = self.step.step.record
            assert of_kind(result, kind), f"pass {self.step.step.name} returned {type(result)}, its record is {kind}"
            self.store.write(self._kind, number, pack(result))
        return _Outcome(result, _process(), time.perf_counter() - start, peak_bytes=peak_bytes())

    @property
    def _kind(self) -> str:
        return f"{self.step.step.name}-{DONE}"

    def _kept(self, number: int) -> tuple[R] | None:
        step = self.step.step
        if self.store is None or not self.store.has(self._kind, number):
            return None
        try:
            result = unpack(self.store.read(self._kind, number), step.record)
        except OutputError:  # a damaged record counts as none: the task is done again
            return None
        if not of_kind(result, step.record):  # nor is what no task of this pass finds
            return None
        lost = step.pixels is not None and result is not False and not self.store.whole(step.pixels, number)
        return None if lost else (result,)

    def _too_large(self, number: int, error: Exception) -> GeolabelError:
        return MemoryLimitError(
            f"memory ran out in task {number} of pass {self.step.step.name} on {_process()}{memory_wanted(error)}: "
            f"{_TOO_LARGE}"
        )


def _process() -> str:
    return f"{platform.node()}:{os.getpid()}"


def peak_bytes() -> int:
    """Peak memory of this process so far."""
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    else:  # noqa: RET505 - type checkers know the branch of each system
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


# --- a run in progress -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Work(Generic[C, E]):
    """A run in progress: it submits the tasks of passes, collects their results, and can be stopped."""

    run: C
    """Arguments of the functions of passes beside their job."""
    report: E
    progress: Progress
    threads: int | None = None
    """Threads of a network call; None for all cores."""
    folder: Folder | None = None
    """The folder of the run, if it can be resumed."""
    part: str = ""
    """Prefix of the kinds of records, if a run has several parts in one folder."""
    stopping: threading.Event = field(default_factory=threading.Event)

    def inside(self, folder: Folder, part: str = "") -> Self:
        """The same work, with its records in a folder, and stopped when the folder says so."""
        return replace(self, folder=folder, part=part, stopping=folder.stopping)

    def each(
        self,
        step: Pass[R],
        jobs: Sequence[Any],
        *,
        networks: Sequence[Recipe] = (),
        weights: Sequence[float] | None = None,
    ) -> Iterator[R]:
        """Yield the results of a pass, one per job, in order.

        Parameters
        ----------
        networks
            Networks that the pass runs.
        weights
            About how long each job takes, in any unit; None if all take equally long.
        """
        with self.report.timed(step.name):
            results = self._results(step.bind(self.run), jobs, networks)
            tracked = results if weights is None else Weighed(results, weights)
            yield from self.progress.track(tracked, step.name, len(jobs))

    def apply(self, step: Bound[R], jobs: Iterable[Any], *, networks: Sequence[Recipe] = ()) -> Iterator[R]:
        """Apply a pass to jobs, like `map`; `networks` are those that it runs."""
        return self._results(step, list(jobs), networks)

    def _results(self, step: Bound[R], jobs: Sequence[Any], networks: Sequence[Recipe]) -> Iterator[R]:
        name, store = step.step.name, None
        if self.folder is not None:
            self.folder.note_pass(self.part + name, len(jobs))
            store = replace(self.folder.store, part=self.part)
        recorded, todo = Recorded(step, store), self._unless_stopped(jobs)
        calls = min((worker.calls_at_once(recipe, self.threads) for recipe in networks), default=1)
        outcomes = executors.ordered(recorded, todo, network=bool(networks), calls=calls)
        done = 0
        try:
            for outcome in outcomes:
                if outcome.stopped:
                    break
                self.report.count_task(outcome.worker, kept=outcome.kept, peak_bytes=outcome.peak_bytes)
                done += 1
                yield _result(outcome)
        except executors.TaskLostError as error:
            raise ClusterError(f"{step.where(jobs[error.number])}: {error}; {_TOO_LARGE}") from error
        if done < len(jobs):
            raise KeyboardInterrupt

    def _unless_stopped(self, jobs: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        for task in enumerate(jobs):
            if self.stopping.is_set():
                return
            yield task


def _result(outcome: _Outcome[R]) -> R:
    return outcome.result  # type: ignore[return-value]  # only a task that was stopped has none


# --- values as arrays ------------------------------------------------------------------------------------------------

_UNLIKE = (KeyError, ValueError, TypeError, AttributeError, RecursionError, OverflowError, shapely.errors.ShapelyError)
"""Exceptions on unpacking a record that no run has written."""


def pack(value: Any) -> dict[str, AnyArray]:
    """Take a result apart: its arrays by name, and an outline in JSON of how they belong together.

    Takes arrays, geometries, plain values, tuples, lists and dataclasses of these.
    """
    arrays: dict[str, AnyArray] = {}

    def outline(part: Any) -> Any:
        if isinstance(part, np.ndarray):
            arrays[f"a{len(arrays)}"] = part
            return {"array": len(arrays) - 1}
        if isinstance(part, shapely.Geometry):
            return {"geometry": outline(np.frombuffer(shapely.to_wkb(part), np.uint8))}
        if isinstance(part, tuple | list):
            return {type(part).__name__: [outline(item) for item in part]}
        if is_dataclass(part):
            return {type(part).__name__: [outline(getattr(part, field.name)) for field in fields(part)]}
        plain = part.item() if isinstance(part, np.generic) else part
        assert plain is None or isinstance(plain, str | int | float), f"{type(part).__name__} is not a plain value"
        return plain

    text = json.dumps(outline(value))
    return arrays | {"outline": np.frombuffer(text.encode(), np.uint8)}


@runtime_checkable
class _Ordered(Protocol):
    """A record whose arrays have an order that code relies on."""

    def in_order(self) -> bool: ...


def unpack(arrays: Mapping[str, AnyArray], kind: Any) -> Any:
    """Reassemble what `pack` took apart.

    Parameters
    ----------
    kind
        Type of the result: only its dataclasses are created.

    Raises
    ------
    OutputError
        If the arrays do not come from `pack`.
    """
    known = {record.__name__: record for record in _records_of(kind)}

    def build(part: Any) -> Any:
        if not isinstance(part, dict):
            return part
        ((name, inner),) = part.items()
        if name == "array":
            return arrays[f"a{inner}"]
        if name == "geometry":
            return shapely.from_wkb(bytes(build(inner)))
        items = [build(item) for item in inner]
        if name in ("tuple", "list"):
            return tuple(items) if name == "tuple" else items
        record = known[name](*items)
        if isinstance(record, _Ordered) and not record.in_order():
            raise ValueError(f"{name} that are out of order")
        return record

    try:
        return build(parse_json(bytes(np.asarray(arrays["outline"], np.uint8))))
    except _UNLIKE as error:
        raise OutputError(f"a record is not as it was written: {error}") from error


@lru_cache(maxsize=64)
def _records_of(kind: Any) -> frozenset[type]:
    """The dataclasses that a type contains."""
    inner = [part for part in get_args(kind) if not isinstance(part, str)]
    if is_dataclass(kind) and isinstance(kind, type):
        return frozenset({kind}).union(*(_records_of(part) for part in hints(kind).values()))
    return frozenset().union(*(_records_of(part) for part in inner))

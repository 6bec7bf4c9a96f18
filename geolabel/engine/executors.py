"""Run the tasks of a pass on the active dask scheduler. The only file that imports dask.

The active scheduler is an open ``distributed.Client``, else the one configured in dask (``scheduler``, with ``pool``
and ``num_workers``), else a few threads of this process. A task is a function and one item; the function is pickled,
and loaded once per worker process. Tasks are submitted one by one instead of as a graph, so that the first results are
consumed before the last tasks are created.

Inside a task of another program, as in ``client.map(geolabel.extract, scenes)``, threads of that task's process are
used: a task that waits for other tasks occupies a slot that they may need.
"""

from __future__ import annotations

import os
import sys
import threading
import uuid
from asyncio import CancelledError as AsyncCancelledError
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import dask
from dask.base import named_schedulers
from dask.local import MultiprocessingPoolExecutor
from numpy.typing import DTypeLike

from geolabel.errors import ClusterError, OptionError
from geolabel.tiles import BlockGrid, Window
from geolabel.types import AnyArray

T = TypeVar("T")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)

BESIDE_NETWORK = 2
"""Concurrent tasks in a process besides those in a network: one reads and one writes."""

LOCAL_WORKERS = BESIDE_NETWORK + 1
"""Concurrent tasks in a process whose network serves one at a time."""

_AHEAD = 4
"""Tasks in flight per concurrent task: enough to keep workers busy, few enough for the client's memory."""

_RECOUNT = 64
"""Tasks between counts of a cluster's workers, which may come and go."""

GPU = "GPU"
"""Resource announced by workers with a GPU; if any does, networks run only there."""


PATIENCE = "distributed.scheduler.no-workers-timeout"
"""dask's setting for how long tasks wait for a worker; unlimited by default."""

_NOBODY = (
    "no worker is left, and none joined within the scheduler's timeout: see why they ended, start others, "
    "and run the same command again to resume"
)


def ordered(function: Callable[[T], R], items: Iterable[T], *, network: bool = False, calls: int = 1) -> Iterator[R]:
    """Yield ``function(item)`` in the order of `items`, with a bounded number of concurrent tasks.

    Parameters
    ----------
    network
        Whether the function runs a network, so that workers with a GPU are preferred.
    calls
        Concurrent calls of the network, if this process runs the tasks.

    Raises
    ------
    ClusterError
        If the scheduler is gone, or a task killed several workers.
    """
    with _executor(network, BESIDE_NETWORK + calls) as executor:
        remaining = iter(items)
        task = _Shared(function)
        flying = deque(executor.submit(task, item) for item in islice(remaining, executor.width()))
        done = 0
        try:
            while flying:
                yield _result(flying.popleft(), done)
                done += 1
                room = executor.width() - len(flying) if done % _RECOUNT == 0 else 1
                flying.extend(executor.submit(task, item) for item in islice(remaining, max(0, room)))
        finally:
            for future in flying:
                future.cancel()


def later(function: Callable[..., Any], *arguments: Any, name: str) -> Any:
    """Return a delayed call for a dask graph with a readable name; delayed arguments are computed before it."""
    call = dask.delayed(function, pure=False, traverse=False)
    return call(*arguments, dask_key_name=f"{name}-{uuid.uuid4().hex}")


def lazy(
    function: Callable[[Window], AnyArray],
    blocks: BlockGrid,
    dtype: DTypeLike,
    *,
    name: str = "block",
    after: Callable[[int], Sequence[Any]] = lambda _: (),
) -> Any:
    """Return a ``dask.array`` of the grid that `blocks` partition; `function` computes a block on demand.

    Parameters
    ----------
    name
        Name of the blocks' tasks in the graph.
    after
        By block number, the calls of `later` that must run before it.
    """
    import dask.array as da

    made = partial(_made_after, function)
    down, across = blocks.shape
    rows = [
        [
            da.from_delayed(  # type: ignore[no-untyped-call]
                later(made, blocks[number], list(after(number)), name=name),
                (blocks[number].height, blocks[number].width),
                dtype,
            )
            for number in range(row * across, (row + 1) * across)
        ]
        for row in range(down)
    ]
    return da.block(rows)  # type: ignore[no-untyped-call]


def _made_after(function: Callable[[Window], AnyArray], window: Window, _: Sequence[Any]) -> AnyArray:
    return function(window)


# --- executors -------------------------------------------------------------------------------------------------------


def in_task() -> bool:
    """Whether this code runs inside a task of a cluster."""
    if "distributed" not in sys.modules:
        return False
    import distributed

    try:
        distributed.get_worker()
    except ValueError:
        return False
    return True


def clustered() -> bool:
    """Whether tasks go to other processes, local or remote."""
    return _client() is not None


def everywhere(function: Callable[..., R], *arguments: Any) -> dict[str, R]:
    """Call a function once in every worker, or here if there are none; results by the worker's address.

    Raises
    ------
    ClusterError
        If a worker fails.
    """
    client = _client()
    if client is None:
        return {"": function(*arguments)}
    with _explained():
        _await_workers(client)
        return dict(client.run(function, *arguments))


def check_seen(path: Path) -> None:
    """Refuse, before any work, an output that workers write but one of them cannot see.

    Parameters
    ----------
    path
        An existing file in the folder of the output.

    Raises
    ------
    ClusterError
        If a worker cannot see it.
    """
    for address, seen in everywhere(_is_file, str(path)).items():
        if not seen:
            raise ClusterError(
                f"the worker {address} does not see {path.parent}: give a folder that all workers and this machine see"
            )


def _is_file(path: str) -> bool:
    return Path(path).is_file()


def where_networks_run(function: Callable[..., R], *arguments: Any) -> R:
    """Call a function once in a worker of the cluster that may run networks, or here without a cluster."""
    if not clustered():
        return function(*arguments)
    return next(ordered(partial(_call, function), [arguments], network=True))


def _call(function: Callable[..., R], arguments: tuple[Any, ...]) -> R:
    return function(*arguments)


class _Promise(Protocol[R_co]):
    def result(self) -> R_co: ...
    def cancel(self) -> Any: ...


class _TaskExecutor(Protocol):
    """Runs tasks."""

    def width(self) -> int:
        """Number of tasks to keep in flight."""
        ...

    def submit(self, function: Callable[[T], R], item: T) -> _Promise[R]:
        """Start a task."""
        ...


@dataclass(frozen=True)
class _Pool:
    """Threads or processes of this machine."""

    executor: Executor
    workers: int

    def width(self) -> int:
        return self.workers * _AHEAD

    def submit(self, function: Callable[[T], R], item: T) -> _Promise[R]:
        return self.executor.submit(function, item)


class _Here:
    """The calling thread."""

    def width(self) -> int:
        return 1

    def submit(self, function: Callable[[T], R], item: T) -> _Promise[R]:
        future: Future[R] = Future()
        future.set_result(function(item))
        return future


class _Cluster:
    """The workers of a scheduler. A task may be repeated on another worker if its worker dies."""

    def __init__(self, client: Any, *, network: bool) -> None:
        self.client = client
        with _explained():
            _await_workers(client)
            gpu = network and any(_has_gpu(worker) for worker in self._workers())
        self.wanted = _has_gpu if gpu else bool
        # A fraction of a GPU: the next task can read while one is in the network, which serves one at a time.
        self.share = {GPU: 1 / LOCAL_WORKERS} if gpu else None

    def width(self) -> int:
        with _explained():
            threads = sum(int(worker["nthreads"]) for worker in self._workers() if self.wanted(worker))
        return _AHEAD * max(1, threads)

    def submit(self, function: Callable[[T], R], item: T) -> _Promise[R]:
        with _explained():
            promise: _Promise[R] = self.client.submit(function, item, pure=False, resources=self.share)
            return promise

    def _workers(self) -> list[dict[str, Any]]:
        return list(_workers(self.client).values())


def _has_gpu(worker: dict[str, Any]) -> bool:
    return bool((worker.get("resources") or {}).get(GPU))


@contextmanager
def _executor(network: bool, threads: int) -> Iterator[_TaskExecutor]:
    client = _client()
    if client is not None:
        yield _Cluster(client, network=network)
        return
    scheduler, pool = _configured()
    if scheduler in ("sync", "synchronous", "single-threaded"):
        yield _Here()
    elif isinstance(scheduler, Executor) and not _is_own(scheduler):
        yield _Pool(scheduler, getattr(scheduler, "_max_workers", LOCAL_WORKERS))
    elif isinstance(scheduler, Executor) or scheduler in ("threads", "threading", "dask.distributed", "distributed"):
        if isinstance(pool, Executor) and not _is_own(pool):
            yield _Pool(pool, getattr(pool, "_max_workers", threads))
            return
        count = int(dask.config.get("num_workers", None) or threads)
        with _closing(ThreadPoolExecutor(count, "geolabel")) as executor:
            yield _Pool(executor, count)
    elif scheduler in ("processes", "multiprocessing"):
        count = int(dask.config.get("num_workers", None) or os.cpu_count() or 1)
        try:
            yield _Pool(_processes(count), count)
        except TaskLostError:
            _processes.cache_clear()  # a pool that lost a process is broken
            raise
    else:
        raise OptionError(
            f"scheduler {scheduler!r}: geolabel supports synchronous, threads, processes, an executor or a "
            "distributed.Client; set one of these with dask.config.set(scheduler=...)"
        )


def _configured() -> tuple[Any, Executor | None]:
    """The scheduler configured in dask, by name if it has one, and its thread pool."""
    scheduler = dask.config.get("scheduler", None) or "threads"
    if callable(scheduler):  # such as dask.get and dask.threaded.get
        scheduler = next((name for name, get in named_schedulers.items() if get is scheduler), scheduler)
    pool = dask.config.get("pool", None)
    if pool is not None and not isinstance(pool, Executor):
        pool = MultiprocessingPoolExecutor(pool)  # type: ignore[no-untyped-call]
    return scheduler, pool


def _is_own(executor: Executor) -> bool:
    """Whether this thread belongs to the executor, whose other tasks might wait for it."""
    return threading.current_thread() in getattr(executor, "_threads", ())


@cache
def _processes(count: int) -> ProcessPoolExecutor:
    """A process pool that is kept between passes, with its loaded networks."""
    return ProcessPoolExecutor(count, get_context("spawn"))


@contextmanager
def _closing(executor: Executor) -> Iterator[Executor]:
    try:
        yield executor
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def _client() -> Any | None:
    # distributed takes half a second to import: if there is a client, it is imported already
    if "distributed" not in sys.modules or in_task():
        return None
    import distributed

    try:
        client = distributed.get_client()
    except ValueError:
        return None
    return None if client.asynchronous else client  # waiting would block its event loop, which this thread runs


def _await_workers(client: Any) -> None:
    if not _workers(client):
        try:
            client.wait_for_workers(1, timeout=dask.config.get(PATIENCE, None))
        except TimeoutError as error:
            raise ClusterError(_NOBODY) from error


def _workers(client: Any) -> dict[str, dict[str, Any]]:
    """Workers of a scheduler by address.

    Raises
    ------
    ClusterError
        If the scheduler is gone.
    """
    workers: dict[str, dict[str, Any]] | None = client.scheduler_info(n_workers=-1).get("workers")
    if workers is None:  # the client has lost its scheduler
        raise ClusterError("the scheduler is gone: start it again, and the same command resumes; or close its client")
    return workers


# --- pickled functions -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Shared(Generic[T, R]):
    """A function unpickled once per process and shared by its tasks, so that what it opened stays open."""

    function: Callable[[T], R]
    token: str = field(default_factory=lambda: uuid.uuid4().hex)

    def __call__(self, item: T) -> R:
        return self.function(item)

    def __reduce__(self) -> tuple[Any, ...]:
        return _recall, (self.function, self.token)


_known: OrderedDict[str, _Shared[Any, Any]] = OrderedDict()
_knowing = threading.Lock()

_KNOWN = 8
"""Number of functions that a process keeps: those of the passes of one run."""


def _recall(function: Callable[[T], R], token: str) -> _Shared[T, R]:
    with _knowing:
        shared = _known.setdefault(token, _Shared(function, token))
        _known.move_to_end(token)
        while len(_known) > _KNOWN:
            _known.popitem(last=False)
    return shared


# --- errors of the scheduler -----------------------------------------------------------------------------------------


class TaskLostError(ClusterError):
    """A task killed every worker that tried it."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.number = number
        """Number of the item."""


def _result(promise: _Promise[R], number: int) -> R:
    with _explained(number):
        return promise.result()


@contextmanager
def _explained(number: int = 0) -> Iterator[None]:
    """Translate dask's own errors into errors with advice."""
    try:
        yield
    except BrokenProcessPool as error:
        raise TaskLostError("its process died, most likely because memory ran out", number) from error
    except BaseException as error:
        if type(error).__name__ == "KilledWorker":
            raise TaskLostError(
                "every worker that tried it died, most likely because memory ran out", number
            ) from error
        if type(error).__name__ in ("NoWorkerError", "NoValidWorkerError"):
            raise ClusterError(_NOBODY) from error
        if isinstance(error, CancelledError | AsyncCancelledError) or type(error).__module__.startswith("distributed"):
            raise ClusterError(
                f"the scheduler is gone ({type(error).__name__}: {error}): start it again, and the same command resumes"
            ) from error
        raise

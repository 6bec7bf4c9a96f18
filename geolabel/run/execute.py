"""Run the tasks of a pass on whatever dask scheduler is active. The only file that names dask."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, TypeVar

import dask
from numpy.typing import DTypeLike

from geolabel.tiles import BlockGrid, Window
from geolabel.types import AnyArray

T = TypeVar("T")
R = TypeVar("R")

LOCAL_WORKERS = 3
"""Tasks at work at once in this process: one reads and one writes while one is in the network."""

AHEAD = 4
"""Tasks in flight per worker of a cluster: enough that none waits for the client."""


def ordered(function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """Yield ``function(item)`` in the order of `items`, working on a bounded number of them at once.

    Runs on the active ``distributed.Client`` if there is one, else on the scheduler that dask is configured for, else
    on a few threads of this process.
    """
    client = _client()
    return _local(function, items) if client is None else _distributed(client, function, items)


def lazy(function: Callable[[Window], AnyArray], blocks: BlockGrid, dtype: DTypeLike) -> Any:
    """Return a ``dask.array`` of the grid that `blocks` partition; `function` makes a block when it is asked for."""
    import dask.array as da

    read = dask.delayed(function, pure=False, traverse=False)
    down, across = blocks.shape
    rows = [
        [
            da.from_delayed(read(window), (window.height, window.width), dtype)  # type: ignore[no-untyped-call]
            for window in (blocks[i * across + j] for j in range(across))
        ]
        for i in range(down)
    ]
    return da.block(rows)  # type: ignore[no-untyped-call]


def _client() -> Any | None:
    # distributed takes half a second to import: whoever opened a client has imported it already
    import sys

    if "distributed" not in sys.modules:
        return None
    import distributed

    try:
        return distributed.get_client()
    except ValueError:
        return None


def _local(function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    delayed = dask.delayed(function, pure=False, traverse=False)
    scheduler = dask.config.get("scheduler", None) or "threads"
    remaining = iter(items)
    while chunk := list(islice(remaining, LOCAL_WORKERS * AHEAD)):
        yield from dask.compute(  # type: ignore[no-untyped-call]
            *(delayed(item) for item in chunk),
            scheduler=scheduler,
            num_workers=LOCAL_WORKERS,
            traverse=False,
            optimize_graph=False,
        )


def _distributed(client: Any, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    workers = max(1, len(client.scheduler_info(n_workers=-1)["workers"]))
    remaining = iter(items)
    flying = deque(client.submit(function, item, pure=False) for item in islice(remaining, workers * AHEAD))
    try:
        while flying:
            yield flying.popleft().result()
            flying.extend(client.submit(function, item, pure=False) for item in islice(remaining, 1))
    finally:
        client.cancel(list(flying))

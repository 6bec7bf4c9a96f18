"""What a run says while it works, and what it counts of its effort."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

log = logging.getLogger(__name__)

T = TypeVar("T")


class Progress(Protocol):
    """Follows a run."""

    def track(self, results: Iterable[T], name: str, total: int) -> Iterator[T]:
        """Pass `results` through, one for each of `total` tasks of the pass `name`."""
        ...


class Silent:
    """Follows nothing."""

    def track(self, results: Iterable[T], name: str, total: int) -> Iterator[T]:  # noqa: ARG002
        """Pass `results` through."""
        return iter(results)


@dataclass(frozen=True)
class Numbered:
    """Follows one part of a run under names that say which."""

    progress: Progress
    number: str

    def track(self, results: Iterable[T], name: str, total: int) -> Iterator[T]:
        """Pass `results` through."""
        return self.progress.track(results, f"{name} {self.number}", total)


@dataclass
class Effort:
    """Time, tasks and memory of a run: figures that differ between runs that find the same."""

    seconds: dict[str, float] = field(default_factory=dict)
    """Of each pass."""
    tasks: int = 0
    tasks_kept: int = 0
    """Tasks that an earlier run of the same had done."""
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
        """Take in how a task went in a process."""
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

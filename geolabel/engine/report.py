"""How a run tells what it is doing, and what it says of itself at the end."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, Self, TypeVar

from geolabel.engine.task_records import Outcome
from geolabel.extraction.passes import FAILED, FOUND, NO_DATA, MaskTable, TileReport
from geolabel.extraction.windows import PromptedWindow
from geolabel.prompts import Prompts
from geolabel.scene import Grid

log = logging.getLogger(__name__)

T = TypeVar("T")


class Progress(Protocol):
    """Whoever wants to follow a run."""

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


EFFORT = ("seconds", "pixels", "area_km2", "tasks", "tasks_kept", "peak_bytes")
"""Fields that differ between runs that find the same."""


@dataclass
class Report:
    """What a run did: counts, gaps, and seconds per pass."""

    tiles: int = 0
    tiles_without_data: int = 0
    tiles_above_gate: int = 0
    tiles_failed: int = 0
    prompts: int = 0
    points_outside: int = 0
    """Prompts whose centroid lies outside the region that it stands for (a bow, a ring)."""
    windows: int = 0
    masks: int = 0
    landslides: int = 0
    candidates: int = 0
    gaps: list[str] = field(default_factory=list)
    """Why a part of the scene is missing, one line each."""
    seconds: dict[str, float] = field(default_factory=dict)
    pixels: int = 0
    """Of the working grid."""
    area_km2: float = 0.0
    """Of the working grid, by the size of its central pixel."""
    tasks: int = 0
    tasks_kept: int = 0
    """Tasks that an earlier run of the same had done."""
    peak_bytes: dict[str, int] = field(default_factory=dict)
    """Most memory that each process has held."""

    @classmethod
    def of(cls, *grids: Grid) -> Self:
        """A report of a run over these working grids, before anything is done."""
        pixels = [grid.height * grid.width for grid in grids]
        areas = (count * grid.gsd**2 / 1e6 for count, grid in zip(pixels, grids, strict=True))
        return cls(pixels=sum(pixels), area_km2=round(sum(areas), 6))

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Add the wall time of a pass."""
        start = time.perf_counter()
        yield
        self.seconds[name] = round(self.seconds.get(name, 0) + time.perf_counter() - start, 3)
        log.info("%s: %.1f s", name, self.seconds[name])

    def count_tiles(self, reports: Sequence[TileReport]) -> None:
        """Take in what became of the tiles."""
        found = Counter(report.status for report in reports)
        self.tiles += len(reports)
        self.tiles_without_data += found[NO_DATA]
        self.tiles_failed += found[FAILED]
        self.tiles_above_gate += found[FOUND]
        self.gaps += [f"tile {report.index}: {report.message}" for report in reports if report.status == FAILED]

    def count_masks(self, prompts: Prompts, windows: Sequence[PromptedWindow], tables: Sequence[MaskTable]) -> None:
        """Take in what was asked of the segmenter and what it answered."""
        self.prompts += len(prompts)
        self.windows += len(windows)
        self.masks += sum(len(table.windows) for table in tables)
        self.gaps += [f"{window}: {message}" for table in tables for window, message in table.failures]

    def count_task(self, outcome: Outcome[Any]) -> None:
        """Take in how a task went."""
        self.tasks += 1
        self.tasks_kept += outcome.kept
        self.peak_bytes[outcome.worker] = max(self.peak_bytes.get(outcome.worker, 0), outcome.peak_bytes)

    def effort(self) -> dict[str, Any]:
        """What the run took: other figures each time."""
        total = sum(self.seconds.values())
        return {
            "tasks": self.tasks,
            "tasks_kept": self.tasks_kept,
            "seconds": self.seconds,
            "pixels_per_second": round(self.pixels / total) if total and not self.tasks_kept else None,
            "area_km2": self.area_km2,
            "seconds_per_km2": round(total / self.area_km2, 2) if self.area_km2 and not self.tasks_kept else None,
            "peak_mb": {worker: round(peak / 2**20) for worker, peak in sorted(self.peak_bytes.items())},
        }

    def summary(self) -> dict[str, Any]:
        """The figures that a user wants to see at the end."""
        names = ("prompts", "masks", "tiles", "tiles_without_data", "tiles_failed")
        return {name: getattr(self, name) for name in names} | {"gaps": len(self.gaps)} | self.effort()

    def counts(self) -> dict[str, Any]:
        """Plain values that the same run gives again: everything but the effort."""
        return {name: value for name, value in vars(self).items() if name not in EFFORT}

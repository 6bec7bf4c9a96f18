"""A run over scenes under way: its plan, what it counts, its records, and the folder that it can be resumed from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol, Self, TypeAlias

from geolabel.engine import tasks
from geolabel.engine.progress import Effort, Numbered, Progress, Silent
from geolabel.engine.run_folder import Folder, RunFolderOptions, opened
from geolabel.engine.run_state import Changes
from geolabel.extraction.passes import FAILED, FOUND, NO_DATA, MaskTable, TileReport, forget
from geolabel.extraction.plan import Plan, Run
from geolabel.extraction.run_key import run_key
from geolabel.extraction.windows import PromptedWindow
from geolabel.io.read.fingerprints import check_apart
from geolabel.io.store import Store
from geolabel.prompts import Prompts
from geolabel.scene import Grid

_EFFORT = ("seconds", "pixels", "area_km2", "tasks", "tasks_kept", "peak_bytes")
"""Fields that differ between runs that find the same."""


@dataclass
class Report(Effort):
    """What a run did: counts, gaps, and its effort."""

    tiles: int = 0
    tiles_without_data: int = 0
    tiles_above_gate: int = 0
    tiles_failed: int = 0
    prompts: int = 0
    points_outside: int = 0
    """Prompts whose centroid is outside the region that it stands for (a bow, a ring)."""
    windows: int = 0
    masks: int = 0
    landslides: int = 0
    candidates: int = 0
    gaps: list[str] = field(default_factory=list)
    """Why a part of the scene is missing, one line each."""
    pixels: int = 0
    """Of the working grid."""
    area_km2: float = 0.0
    """Of the working grid, by the size of its central pixel."""

    @classmethod
    def of(cls, *grids: Grid) -> Self:
        """A report of a run over these working grids, before anything is done."""
        pixels = [grid.height * grid.width for grid in grids]
        areas = (count * grid.gsd**2 / 1e6 for count, grid in zip(pixels, grids, strict=True))
        return cls(pixels=sum(pixels), area_km2=round(sum(areas), 6))

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

    def effort(self) -> dict[str, Any]:
        """What the run took: other figures each time."""
        total = sum(self.seconds.values())
        figures = super().effort()
        peak = figures.pop("peak_mb")
        return figures | {
            "pixels_per_second": round(self.pixels / total) if total and not self.tasks_kept else None,
            "area_km2": self.area_km2,
            "seconds_per_km2": round(total / self.area_km2, 2) if self.area_km2 and not self.tasks_kept else None,
            "peak_mb": peak,
        }

    def summary(self) -> dict[str, Any]:
        """The figures that a user wants to see at the end."""
        names = ("prompts", "masks", "tiles", "tiles_without_data", "tiles_failed")
        return {name: getattr(self, name) for name in names} | {"gaps": len(self.gaps)} | self.effort()

    def counts(self) -> dict[str, Any]:
        """Plain values that the same run gives again: everything but the effort."""
        return {name: value for name, value in vars(self).items() if name not in _EFFORT}


Work: TypeAlias = tasks.Work[Run, Report]
"""A run over one working grid."""

ALLOWED: Changes = {"on_error": ("fail", "skip")}
"""Values of the run key that may change: what was done without a gap stays as it is."""


class Outputs(Protocol):
    """The files that a run writes; see `geolabel.extraction.outputs.Targets`."""

    @property
    def paths(self) -> Sequence[Path]:
        """All files."""
        ...

    @property
    def overwrite(self) -> bool:
        """Whether they may be replaced."""
        ...

    def root(self, run_dir: str | Path | None = None) -> str | Path | None:
        """Where the records of the run are kept; None where there is no such place."""
        ...


def work_on(run: Run, report: Report, progress: Progress | None = None) -> Work:
    """Work on a plan, whose records only it sees."""
    return tasks.Work(run, report, progress or Silent(), threads=run.plan.parameters.threads)


def _asks_localizer(plan: Plan, drawn: Sequence[Prompts | None]) -> bool:
    """Whether the localizer is asked: for prompts, or where prompts of its own are given again, for what it weighs.

    Activation floor and confidence hold for these as they did in the run that found them. They do not hold for what a
    person drew, and where all prompts are such, there is nothing to ask the localizer about.
    """
    return plan.localized and any(prompts is None or not prompts.drawn.all() for prompts in drawn)


@contextmanager
def under_way(
    plan: Plan,
    targets: Outputs,
    run_folder: RunFolderOptions,
    drawn: Prompts | None,
    progress: Progress | None,
    asked: Mapping[str, Any] | None = None,
) -> Iterator[Work]:
    """Work on a plan in a folder that it can be resumed from, or in a temporary one where that cannot be.

    Parameters
    ----------
    drawn
        Prompts that replace the activation.
    asked
        What the records depend on beside the plan and the prompts, as plain values.
    """
    check_apart(targets.paths, plan.reader)
    localized = _asks_localizer(plan, [drawn])
    root = targets.root(run_folder.run_dir)
    key = None if root is None else run_key(plan, drawn, scene_key=run_folder.scene_key)
    if root is None or key is None:
        with in_scratch(plan, progress, localized=localized) as work:
            yield work
        return
    with _in_folder(root, key | dict(asked or {}), targets, run_folder) as folder:
        yield work_on(Run(plan, folder.store, localized=localized), Report.of(plan.grid), progress).inside(folder)


@contextmanager
def parts_under_way(
    plans: Sequence[Plan],
    targets: Outputs,
    run_folder: RunFolderOptions,
    drawn: Sequence[Prompts | None],
    progress: Progress | None,
    key: Mapping[str, Any] | None,
) -> Iterator[list[Work]]:
    """Work on several plans, one after the other, in one folder and with one report.

    Parameters
    ----------
    drawn
        For each plan, prompts that replace the activation.
    key
        Of the run; None where it cannot be resumed.
    """
    for plan in plans:
        check_apart(targets.paths, plan.reader)
    root = targets.root(run_folder.run_dir)
    report = Report.of(*(plan.grid for plan in plans))
    with ExitStack() as stack:
        if root is None or key is None:
            folder = None
            stack.callback(forget)
            scratch = stack.enter_context(TemporaryDirectory(prefix="geolabel-", ignore_cleanup_errors=True))
            store = Store(Path(scratch))
        else:
            folder = stack.enter_context(_in_folder(root, key, targets, run_folder))
            store = folder.store
        works = []
        for number, plan in enumerate(plans, 1):
            part = f"{number:04d}-"
            run = Run(plan, replace(store, part=part), localized=_asks_localizer(plan, drawn))
            work = work_on(run, report, Numbered(progress or Silent(), f"{number}/{len(plans)}"))
            works.append(work if folder is None else work.inside(folder, part))
        yield works


@contextmanager
def _in_folder(
    root: str | Path, key: Mapping[str, Any], targets: Outputs, run_folder: RunFolderOptions
) -> Iterator[Folder]:
    """The folder of a run; what the process keeps of its records is let go at the end."""
    try:
        with opened(run_folder, root, key, overwrite=targets.overwrite, allowed=ALLOWED) as folder:
            yield folder
    finally:
        forget()


@contextmanager
def in_scratch(plan: Plan, progress: Progress | None = None, *, localized: bool = True) -> Iterator[Work]:
    """Work on a plan in a temporary folder: an interrupted run restarts."""
    report = Report.of(plan.grid)
    try:
        with TemporaryDirectory(prefix="geolabel-", ignore_cleanup_errors=True) as scratch:
            yield work_on(Run(plan, Store(Path(scratch)), localized=localized), report, progress)
    finally:
        forget()

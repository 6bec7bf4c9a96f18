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

_UNCOUNTED = ("found", "dense", "seconds", "pixels", "area_km2", "tasks", "tasks_kept", "peak_bytes")
"""Fields that are no counts, or differ between runs that find the same."""


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
    gaps: list[str] = field(default_factory=list)
    """Why a part of the scene is missing, one line each."""
    pixels: int = 0
    """Of the working grid."""
    area_km2: float = 0.0
    """Of the working grid, by the size of its central pixel."""
    dense: bool = False
    """Whether the method scores every pixel itself, without prompts."""
    found: dict[str, Any] = field(default_factory=dict)
    """Figures of what was found, such as the number of landslides."""

    def cover(self, *plans: Plan) -> Self:
        """Take in the working grids of the run, before anything is done."""
        pixels = [plan.grid.height * plan.grid.width for plan in plans]
        areas = (count * plan.grid.gsd**2 / 1e6 for count, plan in zip(pixels, plans, strict=True))
        self.pixels += sum(pixels)
        self.area_km2 = round(self.area_km2 + sum(areas), 6)
        self.dense = plans[0].dense
        return self

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
        return self.found | {name: getattr(self, name) for name in names} | {"gaps": len(self.gaps)} | self.effort()

    def counts(self) -> dict[str, Any]:
        """Plain values that the same run gives again: everything but the effort."""
        return {name: value for name, value in vars(self).items() if name not in _UNCOUNTED}


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


def asks_localizer(plan: Plan, drawn: Sequence[Prompts | None]) -> bool:
    """Whether the localizer is asked: for prompts, or where prompts of its own are given again, for what it weighs.

    Activation floor and confidence hold for these as they did in the run that found them. They do not hold for what a
    person drew, and where all prompts are such, there is nothing to ask the localizer about.
    """
    return plan.localized and any(prompts is None or not prompts.drawn.all() for prompts in drawn)


@contextmanager
def under_way(
    plans: Sequence[Plan],
    targets: Outputs,
    run_folder: RunFolderOptions,
    drawn: Sequence[Prompts | None],
    progress: Progress | None,
    report: Report | None = None,
    asked: Mapping[str, Any] | None = None,
) -> Iterator[list[Work]]:
    """Work on plans, one after the other, with one report, in a folder that can be resumed or in a temporary one.

    Parameters
    ----------
    drawn
        For each plan, prompts that replace the activation.
    report
        Is filled in with what the run does.
    asked
        What the records depend on beside the plans and the prompts, as plain values.
    """
    for plan in plans:
        check_apart(targets.paths, plan.reader)
    root, progress = targets.root(run_folder.run_dir), progress or Silent()
    key = None if root is None else run_key(plans, drawn, scene_key=run_folder.scene_key)
    report = (report or Report()).cover(*plans)
    with ExitStack() as stack:
        if root is None or key is None:
            folder = None
            stack.callback(forget)
            scratch = stack.enter_context(TemporaryDirectory(prefix="geolabel-", ignore_cleanup_errors=True))
            store = Store(Path(scratch))
        else:
            folder = stack.enter_context(_in_folder(root, key | dict(asked or {}), targets, run_folder))
            store = folder.store
        works = []
        for number, plan in enumerate(plans, 1):
            part, follow = "", progress
            if len(plans) > 1:
                part, follow = f"{number:04d}-", Numbered(progress, f"{number}/{len(plans)}")
            run = Run(plan, replace(store, part=part), localized=asks_localizer(plan, drawn))
            work = work_on(run, report, follow)
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
    report = Report().cover(plan)
    try:
        with TemporaryDirectory(prefix="geolabel-", ignore_cleanup_errors=True) as scratch:
            yield work_on(Run(plan, Store(Path(scratch)), localized=localized), report, progress)
    finally:
        forget()

"""A run under way: it hands out the tasks of a pass, takes in what they found, and can be stopped."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from geolabel.engine import executors, worker
from geolabel.engine.report import Numbered, Progress, Report, Silent
from geolabel.engine.run_folder import Folder, RunFolderOptions, opened
from geolabel.engine.run_key import run_key
from geolabel.engine.task_records import TOO_LARGE, Outcome, Recorded
from geolabel.errors import ClusterError
from geolabel.extraction.outputs import Targets
from geolabel.extraction.passes import forget
from geolabel.extraction.plan import Plan, Run
from geolabel.io.read.fingerprints import check_apart
from geolabel.io.store import Store
from geolabel.parts import Recipe
from geolabel.prompts import Prompts

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Work:
    """A run under way."""

    run: Run
    report: Report
    progress: Progress
    folder: Folder | None = None
    """The folder of the run, where there is one to go on from."""
    stopping: threading.Event = field(default_factory=threading.Event)

    @classmethod
    def within(cls, folder: Folder, run: Run, report: Report, progress: Progress) -> Work:
        """Work that leaves its records in a folder and stops when the folder says so."""
        return cls(run, report, progress, folder, folder.stopping)

    def each(
        self, name: str, function: Callable[[Run, T], R], jobs: Sequence[T], *, network: Recipe | None = None
    ) -> Iterator[R]:
        """Results of a pass, one per job, in order.

        Parameters
        ----------
        network
            That the pass runs.
        """
        with self.report.timed(name):
            results = self._results(name, partial(function, self.run), jobs, network=network)
            yield from self.progress.track(results, name, len(jobs))

    def apply(self, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """Apply a function to items, as `map` does; the pass is called as the function is."""
        name = getattr(function, "func", function).__name__.strip("_").replace("_", "-")
        return self._results(name, function, list(items), network=None)

    def _results(
        self, name: str, function: Callable[[T], R], jobs: Sequence[T], *, network: Recipe | None
    ) -> Iterator[R]:
        if self.folder is not None:
            self.folder.note_pass(self.run.store.part + name, len(jobs))
        store = None if self.folder is None else self.run.store
        recorded, todo = Recorded(function, name, store), self._unless_stopped(jobs)
        if network is None:
            outcomes = executors.ordered(recorded, todo)
        else:
            calls = worker.calls_at_once(network, self.run.plan.parameters.threads)
            outcomes = executors.ordered(recorded, todo, network=True, calls=calls)
        done = 0
        try:
            for outcome in outcomes:
                if outcome.stopped:
                    break
                self.report.count_task(outcome)
                done += 1
                yield _result(outcome)
        except executors.TaskLostError as error:
            job = jobs[error.number]
            raise ClusterError(f"pass {name}, {place_of(self.run.plan, name, job)}: {error}; {TOO_LARGE}") from error
        if done < len(jobs):
            raise KeyboardInterrupt

    def _unless_stopped(self, jobs: Sequence[T]) -> Iterator[tuple[int, T]]:
        for task in enumerate(jobs):
            if self.stopping.is_set():
                return
            yield task


def _result(outcome: Outcome[R]) -> R:
    return outcome.result  # type: ignore[return-value]  # only a task that was stopped has none


def place_of(plan: Plan, name: str, job: Any) -> str:
    """Where in the scene a task works, in words."""
    if name == "localize":
        tiles = plan.tiles_of(job)
        return f"tiles {tiles[0]} to {tiles[-1]}, from {plan.localize_tiles[tiles[0]]} on"
    if name == "segment":
        return f"{len(job[1])} prompts' windows, from {job[1][0].window} on"
    if name in ("prompt", "merge"):
        block = job if name == "prompt" else job[0]
        return f"block {block}, {plan.blocks[block]}"
    return f"{job if not isinstance(job, tuple) else job[0]}"


def asks_localizer(plan: Plan, drawn: Sequence[Prompts | None]) -> bool:
    """Whether the localizer is asked: for prompts, or where prompts of its own are given again, for what it weighs.

    Activation floor and confidence hold for these as they did in the run that found them. They do not hold for what a
    person drew, and where all prompts are such, there is nothing to ask the localizer about.
    """
    return plan.localized and any(prompts is None or not prompts.drawn.all() for prompts in drawn)


@contextmanager
def under_way(
    plan: Plan, targets: Targets, run_folder: RunFolderOptions, drawn: Prompts | None, progress: Progress | None
) -> Iterator[Work]:
    """Work on a plan in a folder that it can go on from, or in a temporary one where that cannot be.

    Parameters
    ----------
    drawn
        Prompts that replace the activation.
    """
    check_apart(targets.paths, plan.reader)
    localized = asks_localizer(plan, [drawn])
    root = targets.root(run_folder.run_dir)
    key = None if root is None else run_key(plan, drawn, scene_key=run_folder.scene_key)
    if root is None or key is None:
        with in_scratch(plan, progress, localized=localized) as work:
            yield work
        return
    with in_folder(root, key, targets, run_folder) as folder:
        report = Report.of(plan.grid)
        yield Work.within(folder, Run(plan, folder.store, localized=localized), report, progress or Silent())


@contextmanager
def parts_under_way(
    plans: Sequence[Plan],
    targets: Targets,
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
        By what the run is known; None where nothing can go on from it.
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
            folder = stack.enter_context(in_folder(root, key, targets, run_folder))
            store = folder.store
        works = []
        for number, plan in enumerate(plans, 1):
            run = Run(plan, replace(store, part=f"{number:04d}-"), localized=asks_localizer(plan, drawn))
            follow = Numbered(progress or Silent(), f"{number}/{len(plans)}")
            works.append(Work(run, report, follow) if folder is None else Work.within(folder, run, report, follow))
        yield works


@contextmanager
def in_folder(
    root: str | Path, key: Mapping[str, Any], targets: Targets, run_folder: RunFolderOptions
) -> Iterator[Folder]:
    """The folder of a run; what the process keeps of its records is let go at the end."""
    try:
        with opened(run_folder, root, key, overwrite=targets.overwrite) as folder:
            yield folder
    finally:
        forget()


@contextmanager
def in_scratch(plan: Plan, progress: Progress | None = None, *, localized: bool = True) -> Iterator[Work]:
    """Work on a plan in a temporary folder: what is interrupted starts again."""
    report = Report.of(plan.grid)
    try:
        with TemporaryDirectory(prefix="geolabel-", ignore_cleanup_errors=True) as scratch:
            yield Work(Run(plan, Store(Path(scratch)), localized=localized), report, progress or Silent())
    finally:
        forget()

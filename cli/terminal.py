"""Output of commands: progress on stderr, results on stdout."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import repeat
from typing import TYPE_CHECKING, Any, TypeVar

import click

from geolabel.urls import clean, without_secrets

from .options import Session

if TYPE_CHECKING:
    from rich.console import Console

T = TypeVar("T")

WIDE = 100
"""Maximum characters of a value on one line; a longer one gets a line per part."""

PROGRESS = "GEOLABEL_PROGRESS"
"""Environment variable: ``json`` for machine-readable progress, see `Records`."""

RECORD_EVERY = 0.25
"""Seconds between records of progress."""

LINE_EVERY = 10.0
"""Seconds between lines of progress without a terminal."""


def _ended(name: str, done: int, total: int, start: float) -> str:
    """Line that remains after a pass."""
    return f"{name}: {done} of {_tasks(total)} in {time.monotonic() - start:.1f} s"


def _work_of(results: Iterable[Any], total: int) -> tuple[Iterator[float], float]:
    """Approximate weight of each task, and of all; see `geolabel.engine.tasks.Weighed`."""
    weights: Sequence[float] | None = getattr(results, "weights", None)
    return (repeat(1.0), float(total)) if weights is None else (iter(weights), sum(weights))


def _tasks(total: int) -> str:
    return f"{total} task" if total == 1 else f"{total} tasks"


class Lines:
    """Progress as plain lines: when a pass starts, every few seconds, and when it ends."""

    def track(self, results: Iterable[T], name: str, total: int) -> Iterator[T]:
        """Pass `results` through and report progress."""
        start = last = time.monotonic()
        done, worked = 0, 0.0
        weights, whole = _work_of(results, total)
        click.echo(f"{name}: {_tasks(total)}", err=True)
        for result in results:
            yield result
            done += 1
            worked += next(weights)
            now = time.monotonic()
            if now - last >= LINE_EVERY and done < total:
                left = (now - start) / worked * (whole - worked)
                click.echo(f"{name}: {done} of {total} tasks, about {duration(left)} left", err=True)
                last = now
        click.echo(_ended(name, done, total, start), err=True)


class Records:
    """Progress for programs: JSON objects, one per line, when a pass starts, a few times a second, and when it ends.

    Other lines on stderr are not JSON objects.
    """

    def track(self, results: Iterable[T], name: str, total: int) -> Iterator[T]:
        """Pass `results` through and report progress."""
        _record(name, 0, total)
        done, last = 0, time.monotonic()
        for result in results:
            yield result
            done += 1
            now = time.monotonic()
            if now - last >= RECORD_EVERY and done < total:
                _record(name, done, total)
                last = now
        _record(name, done, total)


def _record(name: str, done: int, total: int | None) -> None:
    click.echo(json.dumps({"progress": name, "done": done, "total": total}), err=True)


def _wants_records() -> bool:
    """Whether progress is requested as JSON.

    Raises
    ------
    OptionError
        If the variable has another value.
    """
    wanted = os.environ.get(PROGRESS, "")
    if wanted not in ("", "json"):
        from geolabel.errors import OptionError

        raise OptionError(f"{PROGRESS}={wanted}: progress for programs is json; set that, or nothing")
    return wanted == "json"


class Nothing:
    """No progress."""

    def track(self, results: Iterable[T], name: str, total: int) -> Iterator[T]:  # noqa: ARG002
        """Pass `results` through."""
        return iter(results)


class Bars:
    """Progress as one bar with the time left; a finished pass leaves a plain line above it."""

    def __init__(self, waiting: ExitStack) -> None:
        from rich.progress import (
            BarColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self.waiting = waiting
        """Closed when the first pass starts."""
        self.display = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[done]}/{task.fields[count]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=_console(),
        )

    def track(self, results: Iterable[T], name: str, total: int) -> Iterator[T]:
        """Pass `results` through and draw progress."""
        self.waiting.close()
        self.display.start()
        start, done = time.monotonic(), 0
        weights, whole = _work_of(results, total)
        # the bar and the time left follow the weights, the numbers count tasks
        task = self.display.add_task(name, total=whole, done=0, count=total)
        for result in results:
            yield result
            done += 1
            self.display.update(task, advance=next(weights), done=done)
        # only the active pass is redrawn: runs over many scenes have more passes than a terminal has lines
        self.display.remove_task(task)
        self.display.console.print(_ended(name, done, total, start), highlight=False, markup=False)


def _console() -> Console:
    from rich.console import Console

    return Console(stderr=True)


def _silent(ctx: click.Context) -> bool:
    return ctx.ensure_object(Session).quiet or bool(os.environ.get("GEOLABEL_NO_PROGRESS"))


@contextmanager
def loading(ctx: click.Context, what: str = "preparing") -> Iterator[None]:
    """Show a message until there is progress to show; on a terminal, only while it lasts."""
    if _silent(ctx):
        yield
    elif _wants_records():
        _record(what, 0, None)
        yield
    elif sys.stderr.isatty():
        with _console().status(what):
            yield
    else:
        click.echo(what, err=True)
        yield


@contextmanager
def progress_bar(ctx: click.Context, before: str | None = None) -> Iterator[Bars | Lines | Records | Nothing]:
    """Progress: a bar on a terminal, JSON for programs, else lines; none with ``-q`` or GEOLABEL_NO_PROGRESS.

    Parameters
    ----------
    before
        Message until the first pass starts, see `loading`.
    """
    with ExitStack() as waiting:
        if before is not None:
            waiting.enter_context(loading(ctx, before))
        if _silent(ctx):
            yield Nothing()
        elif _wants_records():
            yield Records()
        elif sys.stderr.isatty():
            bars = Bars(waiting)
            try:
                yield bars
            finally:
                bars.display.stop()
        else:
            yield Lines()


def warn(ctx: click.Context, messages: Iterable[str]) -> None:
    """Print warnings to stderr, unless ``-q`` was given."""
    if not ctx.ensure_object(Session).quiet:
        for message in messages:
            click.echo(f"warning: {without_secrets(message)}", err=True)


def announce(values: Mapping[str, Any], *, as_json: bool) -> None:
    """Print a result to stdout: JSON, or one line per value."""
    values = clean(values)
    if as_json:
        click.echo(json.dumps(values, indent=2, default=str))
        return
    width = max((len(key) for key in values), default=0)
    for key, value in values.items():
        first, *others = readable(value).splitlines() or [""]
        click.echo(f"{key.replace('_', ' '):<{width}}  {first}".rstrip())
        for line in others:
            click.echo(f"{'':<{width}}  {line}")


def readable(value: Any) -> str:
    """A value as text, without Python's quotes, brackets or braces."""
    if isinstance(value, Mapping):
        return _joined([f"{key} {readable(one)}" for key, one in value.items()])
    if isinstance(value, list | tuple):
        return _joined([readable(one) for one in value])
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else f"{value:.10g}" if isinstance(value, float) else str(value)


def _joined(parts: Sequence[str]) -> str:
    together = ", ".join(parts) or "none"
    return together if len(together) <= WIDE else "\n".join(parts)


def duration(seconds: float) -> str:
    """Seconds in a readable unit."""
    if seconds < 100:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 6000 else f"{seconds / 3600:.1f} hours"


def megabytes(size: int) -> str:
    """A size in bytes in a readable unit."""
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"


def extent(square_metres: float, whole: float | None = None) -> str:
    """An area in a readable unit: that of its `whole`, unless it is a tiny share."""
    for unit, size, least in (("km2", 1e6, 1e7), ("ha", 1e4, 1e3)):
        if square_metres >= least or (whole is not None and whole >= least and square_metres >= size / 100):
            return f"{_three_digits(square_metres / size)} {unit}"
    return f"{square_metres:.0f} m2"


def _three_digits(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def see(output: str) -> str:
    """Next step with an inventory."""
    if not output.lower().endswith(".gpkg"):
        return f"open {output} in QGIS or on a web map; to review landslides, give a name that ends with .gpkg"
    return f"open {output} in QGIS, and set status to accepted or rejected as you look"

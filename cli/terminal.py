"""What the user sees: progress on stderr, results on stdout."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import click

from .options import Session

T = TypeVar("T")

LINE_EVERY = 10.0
"""Seconds between lines of progress where there is no terminal to draw a bar on."""


class Lines:
    """Progress as plain lines: one when a pass starts, one every few seconds, one when it ends."""

    def track(self, results: Iterable[T], name: str, total: int) -> Iterator[T]:
        """Pass `results` through and say how far they are."""
        start = last = time.monotonic()
        done = 0
        for result in results:
            yield result
            done += 1
            now = time.monotonic()
            if now - last >= LINE_EVERY and done < total:
                left = (now - start) / done * (total - done)
                click.echo(f"{name}: {done} of {total} tasks, about {left:.0f} s left", err=True)
                last = now
        click.echo(f"{name}: {done} of {total} tasks in {time.monotonic() - start:.1f} s", err=True)


class Nothing:
    """No progress."""

    def track(self, results: Iterable[T], name: str, total: int) -> Iterator[T]:  # noqa: ARG002
        """Pass `results` through."""
        return iter(results)


class Bars:
    """Progress as bars with the time left."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self.display = Progress(
            TextColumn("{task.description:>10}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )

    def track(self, results: Iterable[T], name: str, total: int) -> Iterator[T]:
        """Pass `results` through and draw how far they are."""
        task = self.display.add_task(name, total=total)
        for result in results:
            yield result
            self.display.advance(task)


@contextmanager
def progress_bar(ctx: click.Context) -> Iterator[Bars | Lines | Nothing]:
    """Progress fit for where stderr goes: bars on a terminal, else lines; none with ``-q`` or GEOLABEL_NO_PROGRESS."""
    if ctx.ensure_object(Session).quiet or os.environ.get("GEOLABEL_NO_PROGRESS"):
        yield Nothing()
    elif sys.stderr.isatty():
        bars = Bars()
        with bars.display:
            yield bars
    else:
        yield Lines()


def warn(ctx: click.Context, messages: Iterable[str]) -> None:
    """Print warnings to stderr, unless ``-q`` was given."""
    if not ctx.ensure_object(Session).quiet:
        for message in messages:
            click.echo(f"warning: {message}", err=True)


def announce(values: Mapping[str, Any], *, as_json: bool) -> None:
    """Print a result to stdout: JSON, or one line per value."""
    if as_json:
        click.echo(json.dumps(values, indent=2, default=str))
        return
    width = max((len(key) for key in values), default=0)
    for key, value in values.items():
        click.echo(f"{key.replace('_', ' '):<{width}}  {value}")

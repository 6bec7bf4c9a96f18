"""Curves of a training: tables for people and programs, events for TensorBoard."""

from __future__ import annotations

import csv
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from geolabel.folders import check_made, note

logger = logging.getLogger(__name__)

LOSSES, SELECTION, EVENTS = "curves.csv", "selection.csv", "tensorboard"
"""Losses of every step, figures of every evaluation, and the folder of both for ``tensorboard --logdir``."""


class Curves:
    """Writes what happens step by step.

    Parameters
    ----------
    folder
        Gets `LOSSES`, `SELECTION` and, where the package tensorboard is installed, `EVENTS`.
    after
        The last step that counts: later ones, which an interrupted run wrote, are dropped, since they come again.
    """

    def __init__(self, folder: Path, after: int) -> None:
        self._folder = folder
        for name in (LOSSES, SELECTION):
            check_made(folder / name)
            _drop_rows(folder / name, after)
            note(folder / name)
        self._events = _open_events(folder / EVENTS, after)

    def losses(self, step: int, seconds: float, values: Mapping[str, float]) -> None:
        """Add the losses of a step."""
        self._add(LOSSES, "train", step, seconds, values)

    def figures(self, step: int, seconds: float, values: Mapping[str, float]) -> None:
        """Add the figures of an evaluation."""
        self._add(SELECTION, "selection", step, seconds, values)

    def _add(self, name: str, group: str, step: int, seconds: float, values: Mapping[str, float]) -> None:
        row = {"step": step, "seconds": round(seconds, 2)} | dict(values)
        path = self._folder / name
        fresh = not path.exists() or not path.stat().st_size
        with path.open("a", newline="") as file:
            writer = csv.DictWriter(file, row)
            if fresh:
                writer.writeheader()
            writer.writerow(row)
        if self._events is not None:
            for key, value in values.items():
                self._events.add_scalar(f"{group}/{key}", value, step)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._events is not None:
            self._events.close()
            for path in (self._folder / EVENTS).glob(f"events.out.tfevents.*.{os.getpid()}.*"):
                note(path)


def _open_events(folder: Path, after: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ModuleNotFoundError:
        logger.info("tensorboard is not installed: curves are written as CSV alone")
        return None
    return SummaryWriter(str(folder), purge_step=after + 1)


def _drop_rows(path: Path, after: int) -> None:
    if path.exists() and path.stat().st_size:
        header, *rows = path.read_text().splitlines()
        kept = [row for row in rows if int(row.split(",")[0]) <= after]
        path.write_text("\n".join([header, *kept, ""]) if kept else "")

"""What tasks found, kept as records: a run that is started again asks them before it works.

A task first leaves its pixels in the store, then what it tells the client, in a record of its own: where that one
lies, the task is done. Records hold arrays and plain values. Nothing in them names code; a reader knows every type it
accepts.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from typing import Any, Generic, TypeVar

import numpy as np
import shapely

from geolabel.errors import GeolabelError, MemoryLimitError, OutputError, memory_wanted, ran_out_of_memory
from geolabel.extraction.passes import MaskTable, Regions, TileReport
from geolabel.extraction.vectorize import Sums
from geolabel.io.store import Store
from geolabel.parsing import parse_json
from geolabel.seams import Spans
from geolabel.tiles import Window
from geolabel.typecheck import hints, of_kind
from geolabel.types import AnyArray

T = TypeVar("T")
R = TypeVar("R")

TYPES: dict[str, type] = {kind.__name__: kind for kind in (MaskTable, Regions, Spans, Sums, TileReport, Window)}
"""What tasks return, beside arrays and plain values."""

DONE = "done"
"""Records of finished tasks are of the kind ``PASS-done``."""

STOP = "stop"
"""A file of this name in the folder of a run asks its workers to begin no further task."""

PIXELS = {"localize": "localize", "segment": "segment", "merge": "mosaic"}
"""Passes whose tasks leave a record of pixels of the same number, unless they return False, and its kind."""


@dataclass(frozen=True)
class Outcome(Generic[R]):
    """What became of a task."""

    result: R | None
    worker: str
    """Host and process."""
    seconds: float = 0.0
    kept: bool = False
    """Whether the result was there already."""
    stopped: bool = False
    """Whether the task was not begun, since the run is to stop."""
    peak_bytes: int = 0
    """Most memory that the process has held so far."""


@dataclass(frozen=True)
class Recorded(Generic[T, R]):
    """A pass that asks the records before it works, and leaves one. Travels to the workers."""

    function: Callable[[T], R]
    name: str
    store: Store | None
    """None for work that nothing goes on from, which leaves its pixels alone."""

    def __call__(self, task: tuple[int, T]) -> Outcome[R]:
        """Do a task, given with its number."""
        number, job = task
        start = time.perf_counter()
        kept = self._kept(number)
        if kept is not None:
            return Outcome(kept[0], _process(), time.perf_counter() - start, kept=True, peak_bytes=peak_bytes())
        if self.store is not None and self.store.storage.exists(STOP):
            return Outcome(None, _process(), stopped=True)
        try:
            result = self.function(job)
        except Exception as error:
            if isinstance(error, GeolabelError) or not ran_out_of_memory(error):
                raise
            raise self._too_large(number, error) from error
        if self.store is not None:
            self.store.write(f"{self.name}-{DONE}", number, pack(result))
        return Outcome(result, _process(), time.perf_counter() - start, peak_bytes=peak_bytes())

    def _kept(self, number: int) -> tuple[R] | None:
        kind = f"{self.name}-{DONE}"
        if self.store is None or not self.store.has(kind, number):
            return None
        try:
            result = unpack(self.store.read(kind, number))
        except OutputError:  # a damaged record is as good as none: the task is done again
            return None
        if not of_kind(result, _answer_of(self.function)):  # nor is what no task of this pass finds
            return None
        lost = self.name in PIXELS and result is not False and not self.store.whole(PIXELS[self.name], number)
        return None if lost else (result,)

    def _too_large(self, number: int, error: Exception) -> GeolabelError:
        return MemoryLimitError(
            f"memory ran out in task {number} of pass {self.name} on {_process()}{memory_wanted(error)}: {TOO_LARGE}"
        )


TOO_LARGE = "give its process more memory, or set a smaller --batch, --tile-size or --block-size"


def _answer_of(function: Callable[..., Any]) -> Any:
    """The annotation of what a pass returns; anything where it has none."""
    while isinstance(function, partial):
        function = function.func
    return hints(function).get("return", Any) if hasattr(function, "__annotations__") else Any


def _process() -> str:
    return f"{platform.node()}:{os.getpid()}"


def peak_bytes() -> int:
    """Most memory that this process has held so far."""
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


UNLIKE = (KeyError, ValueError, TypeError, AttributeError, RecursionError, OverflowError, shapely.errors.ShapelyError)
"""What taking a record apart raises that no run has written."""


# --- values as arrays ------------------------------------------------------------------------------------------------


def pack(value: Any) -> dict[str, AnyArray]:
    """Take a result apart: its arrays by name, and an outline in JSON of how they belong together.

    Takes arrays, geometries, plain values, tuples, lists, and records of `TYPES`.
    """
    arrays: dict[str, AnyArray] = {}

    def outline(part: Any) -> Any:
        if isinstance(part, np.ndarray):
            arrays[f"a{len(arrays)}"] = part
            return {"array": len(arrays) - 1}
        if isinstance(part, shapely.Geometry):
            return {"geometry": outline(np.frombuffer(shapely.to_wkb(part), np.uint8))}
        if isinstance(part, tuple | list):
            return {type(part).__name__: [outline(item) for item in part]}
        if is_dataclass(part):
            assert type(part).__name__ in TYPES, f"{type(part).__name__} is not known to the ledger"
            return {type(part).__name__: [outline(getattr(part, field.name)) for field in fields(part)]}
        plain = part.item() if isinstance(part, np.generic) else part
        assert plain is None or isinstance(plain, str | int | float), f"{type(part).__name__} is no plain value"
        return plain

    text = json.dumps(outline(value))
    return arrays | {"outline": np.frombuffer(text.encode(), np.uint8)}


def unpack(arrays: Mapping[str, AnyArray]) -> Any:
    """Put together what `pack` took apart.

    Raises
    ------
    OutputError
        If the arrays are not what `pack` makes.
    """

    def build(part: Any) -> Any:
        if not isinstance(part, dict):
            return part
        ((kind, inner),) = part.items()
        if kind == "array":
            return arrays[f"a{inner}"]
        if kind == "geometry":
            return shapely.from_wkb(bytes(build(inner)))
        items = [build(item) for item in inner]
        if kind in ("tuple", "list"):
            return tuple(items) if kind == "tuple" else items
        record = TYPES[kind](*items)
        if isinstance(record, Spans) and not record.in_order():
            raise ValueError("spans that overlap, or are no spans")
        return record

    try:
        return build(parse_json(bytes(np.asarray(arrays["outline"], np.uint8))))
    except UNLIKE as error:
        raise OutputError(f"a record is not as it was written: {error}") from error

"""Measurements in named steps, and their tables; the figures of each step are saved, so that a run resumes."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from geolabel.engine.tasks import Progress
from geolabel.errors import OptionError
from geolabel.folders import work_folder
from geolabel.outputs import replacing
from geolabel.parsing import read_json

log = logging.getLogger(__name__)

Steps = Mapping[str, Callable[[], Mapping[str, Any]]]
"""Measurements by name: the path of the step's file in the folder, without suffix."""

KEY = "numbers.json"
"""File with everything that the figures in a folder depend on."""

WAY_OUT = "give the options of before, another --out, or --overwrite"


@contextmanager
def step_folder(
    out: Path,
    key: Mapping[str, Any],
    names: Collection[str],
    *,
    overwrite: bool,
    inputs: Iterable[str | Path] = (),
) -> Iterator[Path]:
    """Yield the folder to measure in, after its key is checked and written.

    With `overwrite` that is a folder beside the old figures, which it replaces once all steps are done.

    Parameters
    ----------
    out
        Folder of the figures; created if necessary.
    key
        Everything that the figures depend on; values that JSON does not support are stored as text.
    names
        Names of all steps.
    inputs
        Files and folders that the measurement reads.

    Raises
    ------
    OptionError
        If the figures in the folder depend on other values.
    OutputError
        If the folder is unsuitable for outputs, or another run works in it.
    """
    plain = json.loads(json.dumps(key, default=str))
    with work_folder(
        out,
        overwrite=overwrite,
        inputs=inputs,
        goes_on=lambda folder: _refusal(folder, plain, names) is None,
        whole=lambda folder: all(_file(folder, name).is_file() for name in names),
    ) as folder:
        if (refusal := _refusal(folder, plain, names)) is not None:
            raise OptionError(refusal)
        write_json(folder / KEY, plain)
        yield folder


def _file(folder: Path, name: str) -> Path:
    return folder / f"{name}.json"


def _refusal(folder: Path, key: Mapping[str, Any], names: Collection[str]) -> str | None:
    """Why the figures in a folder cannot be resumed; None if they can."""
    if (folder / KEY).is_file():
        difference = first_difference(read_json(folder / KEY), key)
        return None if difference is None else f"{folder} was measured with {difference}: {WAY_OUT}"
    if any(_file(folder, name).is_file() for name in names):
        return f"{folder} holds figures without {KEY}, which says what they depend on: {WAY_OUT}"
    return None


def first_difference(held: Any, wanted: Any, name: str = "") -> str | None:
    """The first value of a key that differs, as words such as ``epochs 0.5, this is 1.0``; None without any.

    Values that only `held` has are ignored.
    """
    if isinstance(held, Mapping) and isinstance(wanted, Mapping):
        parts = (first_difference(held.get(k), value, f"{name} {k}".strip()) for k, value in wanted.items())
        return next((part for part in parts if part is not None), None)
    if held == wanted:
        return None
    if isinstance(held, list | dict) or isinstance(wanted, list | dict):
        return f"other {name}"
    return f"{name} {held}, this is {wanted}"


def run_steps(
    folder: Path,
    steps: Steps,
    *,
    title: str,
    progress: Progress,
    deadline: float | None = None,
    again: bool = False,
) -> dict[str, dict[str, Any]]:
    """Measure the steps without a file in a folder, and return the figures of all finished steps, by name.

    Parameters
    ----------
    title
        Name of the measurement for the progress.
    deadline
        Reading of `time.monotonic` after which no step is started; None for no limit.
    again
        Whether to repeat finished steps.

    Returns
    -------
    what the files hold; None stands for values that are not finite
    """
    done = {}
    for name, measure in progress.track(list(steps.items()), title, len(steps)):
        path = _file(folder, name)
        if again or not path.is_file():
            if deadline is not None and time.monotonic() > deadline:
                continue
            start = time.monotonic()
            figures = measure()
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, _finite(figures))
            log.info("%s: %.0f s", name, time.monotonic() - start)
        done[name] = read_json(path)
    return done


def _finite(values: Any) -> Any:
    """Plain values with None for numbers that are not finite, which JSON does not support."""
    if isinstance(values, Mapping):
        return {key: _finite(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [_finite(value) for value in values]
    return None if isinstance(values, float) and not math.isfinite(values) else values


def figures_of(values: Mapping[str, float | None]) -> dict[str, float]:
    """Figures of a file, with NaN for None."""
    return {name: math.nan if value is None else value for name, value in values.items()}


def check_names(only: Iterable[str], known: Collection[str]) -> None:
    """Refuse names of rows that a measurement does not have.

    Raises
    ------
    OptionError
        Listing the known names.
    """
    if unknown := [name for name in only if name not in known]:
        raise OptionError(f"no row is called {unknown[0]!r}: known are {'; '.join(known)}")


OURS = "geolabel"
"""Name of geolabel's networks among the baselines."""

Case = dict[str, Any]
"""Figures of a single image or object under its ``name``, as plain values."""


@dataclass(frozen=True)
class Measurement:
    """Figures of one method on one set of data."""

    data: str
    method: str
    figures: dict[str, float]
    """By name; NaN where not defined."""

    def on(self, data: str) -> Self:
        """The same figures, with a set of data."""
        return replace(self, data=data)


@dataclass(frozen=True)
class Section:
    """All measurements that answer one question."""

    name: str
    question: str
    measured: list[Measurement]
    notes: list[str] = field(default_factory=list)
    cases: dict[str, list[Case]] = field(default_factory=dict)
    """Single images or objects by set of data, if kept."""
    seconds: float = 0.0

    @classmethod
    def of(cls, values: dict[str, Any]) -> Self:
        """Inverse of `as_json`."""
        measured = [
            Measurement(m["data"], m["method"], {k: math.nan if v is None else v for k, v in m["figures"].items()})
            for m in values["measured"]
        ]
        return cls(**(values | {"measured": measured}))

    def as_json(self) -> dict[str, Any]:
        """Plain values; None if undefined."""
        return asdict(self) | {"measured": [_plain(measurement) for measurement in self.measured]}

    def markdown(self) -> str:
        """A heading, the table, and notes."""
        columns = list(dict.fromkeys(name for m in self.measured for name in m.figures))
        lines = [f"## {self.question}", ""]
        if self.measured:
            lines += [_line(["data", "method", *columns]), _line(["---"] * (2 + len(columns)))]
            lines += [_line([m.data, m.method, *(_text(m.figures.get(c)) for c in columns)]) for m in self.measured]
            lines.append("")
        lines += [f"- {note}" for note in self.notes] + ([""] if self.notes else [])
        return "\n".join(lines)


def _plain(measurement: Measurement) -> dict[str, Any]:
    figures = {k: None if math.isnan(v) else v for k, v in measurement.figures.items()}
    return asdict(measurement) | {"figures": figures}


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _text(value: float | None) -> str:
    if value is None:
        return ""
    if math.isnan(value):
        return "not defined"
    return str(value) if isinstance(value, int) else f"{value:.3f}"


def extremes(cases: Sequence[Case], count: int = 10) -> str:
    """The best and the worst cases by the figure of `OURS`, as Markdown."""
    ranked = sorted(cases, key=lambda case: float(case[OURS]), reverse=True)
    parts = []
    for title, chosen in (("Best", ranked[:count]), ("Worst", ranked[: -count - 1 : -1])):
        parts += [f"{title}: " + "; ".join(f"{case['name']} {case[OURS]:.2f}" for case in chosen) + ".", ""]
    return "\n".join(parts)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with replacing(path, overwrite=True) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path: Path, values: Any) -> None:
    """Write plain values as JSON, atomically."""
    write_text(path, json.dumps(values, indent=1, allow_nan=False) + "\n")

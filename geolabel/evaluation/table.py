"""Figures as tables: one section for each question, in JSON and Markdown."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from geolabel.outputs import replacing

OURS = "geolabel"
"""Name of the networks that are measured, among the baselines."""

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
        """The same figures, with their set of data named."""
        return replace(self, data=data)


@dataclass(frozen=True)
class Section:
    """Everything that was measured to answer one question."""

    name: str
    question: str
    measured: list[Measurement]
    notes: list[str] = field(default_factory=list)
    cases: dict[str, list[Case]] = field(default_factory=dict)
    """Single images or objects by set of data, where they are kept."""
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
        """Plain values; None where not defined."""
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

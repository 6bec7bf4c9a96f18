"""``bench quality``: every question that the bundled networks are judged by, answered in one table each.

Sections are measured one by one, and each leaves its counts in a file of its own: an interrupted or a partial run
resumes from there. A section is measured again when the networks, the data or the split have changed.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from geolabel.evaluation import tables
from geolabel.evaluation.calibration import draw_curves
from geolabel.evaluation.sections import SECTIONS
from geolabel.evaluation.setup import Bench
from geolabel.evaluation.table import OURS, Section, extremes, write_json, write_text
from geolabel.folders import check_made, work_folder
from geolabel.models import loading
from geolabel.parsing import read_json
from geolabel.parts import Recipe

TABLE, PAGE, CURVES, PARTS = "quality.json", "quality.md", "reliability.png", "sections"
"""What is written, in the folder given: the table twice, the reliability curves, and the sections one by one."""


def bench_quality(
    out: Path, bench: Bench, *, only: Sequence[str] = tuple(SECTIONS), overwrite: bool = False
) -> dict[str, Path]:
    """Measure and write the table; sections that were measured before under the same key are taken from their files.

    Parameters
    ----------
    out
        Folder; made if it is not there.
    only
        Sections to measure, of `SECTIONS`.
    overwrite
        Whether to measure again what is there.

    Returns
    -------
    files written, by what they are
    """
    folders = [folder for folder in asdict(bench.data).values() if folder is not None]
    with work_folder(out, overwrite=False, inputs=folders, shared=True):
        for name in (TABLE, PAGE, CURVES):
            check_made(out / name)
        parts = out / PARTS
        parts.mkdir(parents=True, exist_ok=True)
        key = bench.key()
        for name in only:
            if overwrite or _kept(parts / f"{name}.json", key) is None:
                began = time.monotonic()
                section = replace(SECTIONS[name](bench), seconds=round(time.monotonic() - began, 1))
                write_json(parts / f"{name}.json", {"key": key, "section": section.as_json()})
        held = (_kept(parts / f"{name}.json", key) for name in SECTIONS)
        measured = [section for section in held if section is not None]
        curves = tables.curves(measured)
        if curves:
            draw_curves(out / CURVES, curves)
        found = tables.arrange(measured)
        described = {recipe.role: _described(recipe) for recipe in bench.recipes}
        write_json(out / TABLE, key | {"weights": described, "sections": [_brief(section) for section in found]})
        write_text(out / PAGE, _page(bench, described, found, bool(curves)))
    files = {"table": out / TABLE, "page": out / PAGE}
    return files | ({"curves": out / CURVES} if curves else {})


def _kept(path: Path, key: dict[str, Any]) -> Section | None:
    """A section that was measured before, if nothing has changed since."""
    if not path.is_file():
        return None
    held = read_json(path)
    return Section.of(held["section"]) if held["key"] == key else None


def _brief(section: Section) -> dict[str, Any]:
    """The section without single cases, which stay in its own file."""
    return {name: value for name, value in section.as_json().items() if name != "cases"}


def _described(recipe: Recipe) -> dict[str, Any]:
    """SHA-256 of a network and what it was trained on, as far as its file says."""
    path = loading.file_of(recipe)
    trained = loading.describe(path).get("trained") or {}
    return {
        "source": path.name,
        "sha256": recipe.sha256,
        "bytes": path.stat().st_size,
        "trained_on": trained.get("data", []),
    }


def _page(bench: Bench, described: dict[str, Any], found: Sequence[Section], curved: bool) -> str:
    lines = ["# Quality of the networks", ""]
    if bench.split == "select":
        lines += ["**For choosing only: measured on data that weights are selected by.**", ""]
    if bench.limit is not None:
        lines += [f"**A quick look: at most {bench.limit} examples of each set of data.**", ""]
    for role, values in described.items():
        lines += [f"- {role}: `{values['source']}`, {values['bytes'] / 1e6:.2f} MB, SHA-256 `{values['sha256']}`"]
        lines += [f"  - learned from {source}" for source in values["trained_on"]]
    if bench.missing():
        lines += [f"- not at hand, and so left out: {', '.join(bench.missing())}"]
    lines.append("")
    for section in found:
        lines.append(section.markdown())
        if section.name in ("mask", *tables.REAL):
            for data, cases in section.cases.items():
                ranked = [case for case in cases if case.get(OURS) is not None]
                if len(ranked) > 1:
                    lines += [f"By IoU on {data}.", "", extremes(ranked)]
        if section.name == "calibration" and curved:
            lines += [f"![reliability curves]({CURVES})", ""]
    return "\n".join(lines)

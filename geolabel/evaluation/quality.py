"""``bench quality``: measure sections or reuse earlier measurements, derive tables, write the page."""

from __future__ import annotations

import logging
import time
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from geolabel.errors import OptionError
from geolabel.evaluation.bench import Bench
from geolabel.evaluation.calibration import Bin, draw_curves, expected_calibration_error, reliability
from geolabel.evaluation.scene_scores import CHIPS, WITHOUT, SceneScores
from geolabel.evaluation.scenes import ACTIVATION_ALONE, ELLIPSE, WITH_CANDIDATES
from geolabel.evaluation.sections import SECTIONS, TRAINED_ON
from geolabel.evaluation.steps import (
    OURS,
    Case,
    Measurement,
    Section,
    extremes,
    first_difference,
    run_steps,
    write_json,
    write_text,
)
from geolabel.folders import check_made, work_folder
from geolabel.metrics import WIDTH_LIMITS, ratio
from geolabel.models import loading
from geolabel.parsing import read_json
from geolabel.parts import Recipe
from geolabel.types import BoolArray, Float64Array

log = logging.getLogger(__name__)

TABLE, PAGE, CURVES, PARTS = "quality.json", "quality.md", "reliability.png", "sections"
"""Output files: the table in two formats, the reliability curves, and the folder of single sections."""

GSD_LIMITS = (0.1, 0.3, 1.0, 2.5, 7.0, 30.0)
"""Metres per pixel between the bands."""

REAL = ("scene", "coarse")
"""Sections of real scenes at their own gsd."""

ALL_REAL = "all real sets"


# --- derived tables --------------------------------------------------------------------------------------------------


def _arrange(measured: Sequence[Section]) -> list[Section]:
    """Sort measured sections and the tables derived from them by question; synthetic scenes come last."""
    by_name = {section.name: section for section in measured}
    real = _sets_of(by_name[name] for name in REAL if name in by_name)
    shrunk = _sets_of([by_name["band"]] if "band" in by_name else [])
    known = curves(measured)
    derived = [gains(real), bands(real | shrunk), widths(real), images(real), *calibration(known)]
    tables = by_name | {section.name: section for section in derived if section.measured}
    order = ("mask", "map", "gate", *REAL, "gain", "band", "width", "image", "alarms")
    last = ("calibration", "reliability", "synthetic", "speed")
    return [tables[name] for name in (*order, *last) if name in tables]


def _sets_of(sections: Iterable[Section]) -> dict[str, list[Case]]:
    """Single scenes with their scores, by set; chips of a mosaic under its name after `CHIPS`."""
    return {
        name: cases for section in sections for name, cases in section.cases.items() if cases and "tallies" in cases[0]
    }


def _pool(cases: Iterable[Case]) -> dict[str, SceneScores]:
    """Scores over all scenes by method."""
    pooled: dict[str, SceneScores] = defaultdict(SceneScores)
    for case in cases:
        for method, values in case["tallies"].items():
            pooled[method] = pooled[method] + SceneScores.from_plain(values)
    return dict(pooled)


def _whole(sets: dict[str, list[Case]]) -> dict[str, dict[str, SceneScores]]:
    """Pooled scores of each set, without the single chips of mosaics."""
    return {name: _pool(cases) for name, cases in sets.items() if not name.startswith(CHIPS)}


def gains(sets: dict[str, list[Case]]) -> Section:
    """Polygons compared with the activation map that they come from."""
    measured = []
    for name, scores in _whole(sets).items():
        ours, alone = scores[OURS], scores[ACTIVATION_ALONE]
        figures = {
            "F1": ours.areas.f1,
            "F1 of the map": alone.areas.f1,
            "gain": ours.areas.f1 - alone.areas.f1,
            "boundary F1": ours.boundary.f1,
            "boundary F1 of the map": alone.boundary.f1,
            "boundary gain": ours.boundary.f1 - alone.boundary.f1,
        }
        measured.append(Measurement(name, OURS, figures))
    sums = [m.figures for m in measured if WITHOUT not in m.data]
    if sums:
        means = {name: _mean(figures[name] for figures in sums) for name in ("gain", "boundary gain")}
        measured.append(Measurement("mean of the real sets", OURS, means))
    return Section("gain", "What polygons add to the activation alone, at the same threshold", measured)


def _mean(values: Iterable[float]) -> float:
    """Mean of the defined values; NaN without any."""
    defined = [value for value in values if not np.isnan(value)]
    return ratio(sum(defined), len(defined))


def bands(sets: dict[str, list[Case]]) -> Section:
    """Real scenes by their ground sample distance, fine to coarse."""
    rows: list[tuple[float, Measurement]] = []
    for name, scores in _whole(sets).items():
        gsd = float(sets[name][0]["gsd"])
        number = min(max(bisect_right(GSD_LIMITS, gsd), 1), len(GSD_LIMITS) - 1)
        data = f"{GSD_LIMITS[number - 1]:g} to {GSD_LIMITS[number]:g} m: {name}"
        for method, one in scores.items():
            if method not in (WITH_CANDIDATES, ELLIPSE):
                figures = one.figures()
                kept = ("F1", "precision", "recall", "boundary F1", "object recall", "polygons right")
                rows.append((gsd, Measurement(data, method, {figure: figures[figure] for figure in kept})))
    rows.sort(key=lambda row: row[0])
    note = "Scenes at their own gsd and shrunk; orthophotos without georeference are also read as finer."
    return Section("band", "By ground sample distance", [measurement for _, measurement in rows], [note])


def widths(sets: dict[str, list[Case]]) -> Section:
    """Recall of landslides by their width."""
    limits = [f"{low} to {high} px" for low, high in pairwise(WIDTH_LIMITS)]
    names = [f"below {WIDTH_LIMITS[0]} px", *limits, f"from {WIDTH_LIMITS[-1]} px"]
    measured = []
    for data, scores in _whole(sets).items():
        for method, one in scores.items():
            if method not in (WITH_CANDIDATES, ELLIPSE):
                figures: dict[str, float] = {}
                for name, share, count in zip(names, one.widths.recalls(), one.widths.objects, strict=True):
                    figures |= {name: share, f"landslides {name}": count}
                measured.append(Measurement(data, method, figures))
    note = "Width is the short side of the minimum rotated rectangle; a landslide is found when half of it is covered."
    return Section("width", "Recall of landslides by their width", measured, [note])


def images(sets: dict[str, list[Case]]) -> Section:
    """Means over images compared with pooled pixels, in which one large landslide outweighs a hundred small ones."""
    measured, notes = [], ["Means are over images that show a landslide; pooled figures are over all."]
    for name, cases in sets.items():
        if WITHOUT in name or f"{CHIPS}{name}" in sets:
            continue
        areas = [{m: SceneScores.from_plain(v).areas for m, v in case["tallies"].items()} for case in cases]
        weights = [next(iter(one.values())).tp + next(iter(one.values())).fn for one in areas]
        heaviest = int(np.argmax(weights))
        share = weights[heaviest] / max(1, sum(weights))
        notes.append(f"{cases[heaviest]['name']} holds {share:.0%} of the landslide pixels of {name}.")
        pooled, rest = _pool(cases), _pool(case for k, case in enumerate(cases) if k != heaviest)
        shown = [one for one, weight in zip(areas, weights, strict=True) if weight]
        for method, scores in pooled.items():
            figures = {
                "mean F1": _mean(one[method].f1 for one in shown),
                "mean IoU": _mean(one[method].iou for one in shown),
                "pooled F1": scores.areas.f1,
                "pooled F1 without the heaviest": rest[method].areas.f1 if method in rest else float("nan"),
                "images": len(cases),
                "with landslides": len(shown),
            }
            measured.append(Measurement(name, method, figures))
    return Section("image", "Image by image", measured, notes)


# --- probabilities ---------------------------------------------------------------------------------------------------


def curves(measured: Iterable[Section]) -> dict[str, list[Bin]]:
    """Reliability of the gate and of the confidence of polygons by set, named ``gate, bijie``; pooled ones first."""
    pairs: dict[str, list[tuple[float, bool]]] = {f"{kind}, {ALL_REAL}": [] for kind in ("gate", "confidence")}
    for section in measured:
        for name, cases in section.cases.items():
            kind = name.partition(", ")[0]
            if kind in ("gate", "confidence"):
                pairs[name] = [(case["said"], case["true"]) for case in cases]
                # reduced copies would count a scene twice, and training data is not evidence
                if section.name not in ("band", "synthetic") and name.partition(", ")[2] != TRAINED_ON:
                    pairs[f"{kind}, {ALL_REAL}"] += pairs[name]
    return {name: reliability(*_columns(some)) for name, some in pairs.items() if some}


def _columns(pairs: Sequence[tuple[float, bool]]) -> tuple[Float64Array, BoolArray]:
    return np.array([p for p, _ in pairs], float), np.array([t for _, t in pairs], bool)


def calibration(known: dict[str, list[Bin]]) -> list[Section]:
    """Calibration error of the probabilities, and the true share of each of their bins."""
    errors, shares = [], []
    for name, bins in known.items():
        what, _, data = name.partition(", ")
        total = sum(part.count for part in bins)
        mean = sum(part.probability * part.count for part in bins if part.count) / total
        share = sum(part.share * part.count for part in bins if part.count) / total
        figures = {
            "calibration error": expected_calibration_error(bins),
            "mean probability": mean,
            "share true": share,
            "mean minus share": mean - share,
            "cases": total,
        }
        errors.append(Measurement(data, what, figures))
        titles = [f"{part.lower:.1f} to {part.upper:.1f}" for part in bins]
        for row, values in (
            ("share true", [part.share for part in bins]),
            ("cases", [part.count for part in bins]),
        ):
            shares.append(Measurement(data, f"{what}, {row}", dict(zip(titles, values, strict=True))))
    notes = [
        "Confidence: whether at least half of a polygon is landslide. Gate: whether an image shows one.",
        "The error is the expected one in ten bins. A set that holds only images of one kind has a share of 0 or 1.",
    ]
    return [
        Section("calibration", "Are probabilities calibrated?", errors, notes),
        Section("reliability", "Share that was true, by probability", shares),
    ]


# --- measuring and writing -------------------------------------------------------------------------------------------


def bench_quality(
    out: Path, bench: Bench, *, only: Sequence[str] = tuple(SECTIONS), overwrite: bool = False
) -> dict[str, Path]:
    """Measure and write the table; earlier measurements with the same key are kept.

    Keys that differ only in the version of geolabel are equal: the page names the version of each section.

    Parameters
    ----------
    out
        Output folder; created if necessary.
    only
        Names of `SECTIONS` to measure.
    overwrite
        Whether to repeat earlier measurements.

    Returns
    -------
    written files, by kind

    Raises
    ------
    OptionError
        If one of these sections was measured under another key, and `overwrite` is not set.
    """
    folders = [folder for folder in asdict(bench.data).values() if folder is not None]
    with work_folder(out, overwrite=False, inputs=folders, shared=True):
        for name in (TABLE, PAGE, CURVES):
            check_made(out / name)
        parts, key = out / PARTS, bench.key()
        if not overwrite:
            _check_kept(parts, only, key)
        steps = {name: partial(_measure, bench, name, key) for name in only}
        run_steps(parts, steps, title="quality", progress=bench.progress, again=overwrite)
        kept = _kept(parts, key)
        measured = [Section.of(held["section"]) for held in kept.values()]
        known = curves(measured)
        if known:
            draw_curves(out / CURVES, known)
        found = _arrange(measured)
        described = {recipe.role: _described(recipe) for recipe in bench.recipes}
        versions = {"geolabel": ", ".join(sorted({held["key"]["geolabel"] for held in kept.values()}))}
        plain = [{name: value for name, value in section.as_json().items() if name != "cases"} for section in found]
        write_json(out / TABLE, key | versions | {"weights": described, "sections": plain})
        write_text(out / PAGE, _page(bench, described, found, bool(known)))
    files = {"table": out / TABLE, "page": out / PAGE}
    return files | ({"curves": out / CURVES} if known else {})


def _measure(bench: Bench, name: str, key: dict[str, Any]) -> dict[str, Any]:
    start = time.monotonic()
    section = SECTIONS[name](bench)
    return {"key": key, "section": replace(section, seconds=round(time.monotonic() - start, 1)).as_json()}


def _check_kept(parts: Path, only: Sequence[str], key: dict[str, Any]) -> None:
    """Refuse sections that were measured under another key."""
    for name in only:
        path = parts / f"{name}.json"
        if path.is_file() and (difference := _difference(read_json(path), key)):
            raise OptionError(f"{path} was measured with {difference}: give another --out, or --overwrite")


def _difference(held: dict[str, Any], key: dict[str, Any]) -> str | None:
    # all versions must give the same figures: versions are recorded, not compared, and a parameter that a version did
    # not have had no effect in it
    known = held["key"]["parameters"]
    parameters = {name: value for name, value in key["parameters"].items() if name in known}
    compared = {name: key[name] for name in ("networks", "split", "limit", "data")}
    return first_difference(held["key"], compared | {"parameters": parameters})


def _kept(parts: Path, key: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Files of all sections measured under a key, by name."""
    held = {name: read_json(parts / f"{name}.json") for name in SECTIONS if (parts / f"{name}.json").is_file()}
    for name, values in held.items():
        if difference := _difference(values, key):
            log.warning("%s was measured with %s: left out of the table", parts / f"{name}.json", difference)
        elif values["key"]["geolabel"] != key["geolabel"]:
            log.warning(
                "%s was measured with geolabel %s, this is %s: --overwrite measures it again",
                parts / f"{name}.json",
                values["key"]["geolabel"],
                key["geolabel"],
            )
    return {name: values for name, values in held.items() if not _difference(values, key)}


def _described(recipe: Recipe) -> dict[str, Any]:
    """SHA-256 of a network, and the training data recorded in its file."""
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
        lines += ["**For selection only: measured on data that weights are selected by.**", ""]
    if bench.limit is not None:
        lines += [f"**A quick look: a maximum of {bench.limit} examples of each set of data.**", ""]
    for role, values in described.items():
        lines += [f"- {role}: `{values['source']}`, {values['bytes'] / 1e6:.2f} MB, SHA-256 `{values['sha256']}`"]
        lines += [f"  - trained on {source}" for source in values["trained_on"]]
    if bench.missing():
        lines += [f"- not available, and so left out: {', '.join(bench.missing())}"]
    lines.append("")
    for section in found:
        lines.append(section.markdown())
        if section.name in ("mask", *REAL):
            for data, cases in section.cases.items():
                ranked = [case for case in cases if case.get(OURS) is not None]
                if len(ranked) > 1:
                    lines += [f"By IoU on {data}.", "", extremes(ranked)]
        if section.name == "calibration" and curved:
            lines += [f"![reliability curves]({CURVES})", ""]
    return "\n".join(lines)

"""Tables made from the counts that the sections of ``bench quality`` keep: one for each question."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from geolabel.evaluation.alarms import LEARNED
from geolabel.evaluation.calibration import Bin, expected_calibration_error, reliability
from geolabel.evaluation.scene_sets import CHIPS, WITHOUT
from geolabel.evaluation.scenes import ALONE, ELLIPSE, WITH
from geolabel.evaluation.table import OURS, Measurement, Section
from geolabel.evaluation.tally import Tally
from geolabel.metrics import WIDTH_LIMITS, ratio
from geolabel.types import BoolArray, Float64Array

GSD_LIMITS = (0.1, 0.3, 1.0, 2.5, 7.0, 30.0)
"""Metres per pixel that separate the bands."""

REAL = ("scene", "coarse")
"""Sections with real scenes at their own gsd."""

ALL_REAL = "all real sets"

Case = dict[str, Any]


def arrange(measured: Sequence[Section]) -> list[Section]:
    """Put what was measured, and the tables made from it, in the order of the questions; synthetic scenes come last."""
    by_name = {section.name: section for section in measured}
    real = scene_sets(by_name[name] for name in REAL if name in by_name)
    shrunk = scene_sets([by_name["band"]] if "band" in by_name else [])
    known = curves(measured)
    made = [gains(real), bands(real | shrunk), widths(real), images(real), *calibration(known)]
    tables = by_name | {section.name: section for section in made if section.measured}
    order = ("mask", "map", "gate", *REAL, "gain", "band", "width", "image", "alarms")
    last = ("calibration", "reliability", "synthetic", "speed")
    return [tables[name] for name in (*order, *last) if name in tables]


def scene_sets(sections: Iterable[Section]) -> dict[str, list[Case]]:
    """Single scenes with their counts, by set; chips of a mosaic under its name after `CHIPS`."""
    return {
        name: cases
        for section in sections
        for name, cases in section.cases.items()
        if cases and "tallies" in cases[0]
    }  # fmt: skip


def pool(cases: Iterable[Case]) -> dict[str, Tally]:
    """Counts over all scenes by method."""
    pooled: dict[str, Tally] = defaultdict(Tally)
    for case in cases:
        for method, values in case["tallies"].items():
            pooled[method] = pooled[method] + Tally.from_plain(values)
    return dict(pooled)


def _whole(sets: dict[str, list[Case]]) -> dict[str, dict[str, Tally]]:
    """Pooled counts of each set, without the single chips of mosaics."""
    return {name: pool(cases) for name, cases in sets.items() if not name.startswith(CHIPS)}


def gains(sets: dict[str, list[Case]]) -> Section:
    """Polygons beside the map that they are made from."""
    measured = []
    for name, tallies in _whole(sets).items():
        ours, alone = tallies[OURS], tallies[ALONE]
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
    return Section("gain", "What polygons add to the activation alone, cut at the same value", measured)


def _mean(values: Iterable[float]) -> float:
    """Mean of what is defined; NaN where nothing is."""
    known = [value for value in values if not np.isnan(value)]
    return ratio(sum(known), len(known))


def bands(sets: dict[str, list[Case]]) -> Section:
    """Real scenes by their ground sample distance, fine to coarse."""
    rows: list[tuple[float, Measurement]] = []
    for name, tallies in _whole(sets).items():
        gsd = float(sets[name][0]["gsd"])
        number = min(max(bisect_right(GSD_LIMITS, gsd), 1), len(GSD_LIMITS) - 1)
        data = f"{GSD_LIMITS[number - 1]:g} to {GSD_LIMITS[number]:g} m: {name}"
        for method, tally in tallies.items():
            if method not in (WITH, ELLIPSE):
                figures = tally.figures()
                kept = ("F1", "precision", "recall", "boundary F1", "object recall", "polygons right")
                rows.append((gsd, Measurement(data, method, {figure: figures[figure] for figure in kept})))
    rows.sort(key=lambda row: row[0])
    note = "Scenes at their own gsd, and the same scenes shrunk; orthophotos of unstated gsd are also read as finer."
    return Section("band", "By ground sample distance", [measurement for _, measurement in rows], [note])


def widths(sets: dict[str, list[Case]]) -> Section:
    """Recall of landslides by their width."""
    limits = [f"{low} to {high} px" for low, high in pairwise(WIDTH_LIMITS)]
    names = [f"below {WIDTH_LIMITS[0]} px", *limits, f"from {WIDTH_LIMITS[-1]} px"]
    measured = []
    for data, tallies in _whole(sets).items():
        for method, tally in tallies.items():
            if method not in (WITH, ELLIPSE):
                figures: dict[str, float] = {}
                for name, share, count in zip(names, tally.widths.recalls(), tally.widths.objects, strict=True):
                    figures |= {name: share, f"landslides {name}": count}
                measured.append(Measurement(data, method, figures))
    note = "Width is the short side of the minimum rotated rectangle; a landslide is found when half of it is covered."
    return Section("width", "Recall of landslides by their width", measured, [note])


def images(sets: dict[str, list[Case]]) -> Section:
    """Image-wise means beside pooled pixels: a large landslide outweighs a hundred small ones in these."""
    measured, notes = [], ["Means are over images that show a landslide; pooled figures are over all."]
    for name, cases in sets.items():
        if WITHOUT in name or f"{CHIPS}{name}" in sets:
            continue
        counted = [{m: Tally.from_plain(v).areas for m, v in case["tallies"].items()} for case in cases]
        weights = [next(iter(one.values())).tp + next(iter(one.values())).fn for one in counted]
        heaviest = int(np.argmax(weights))
        share = weights[heaviest] / max(1, sum(weights))
        notes.append(f"{cases[heaviest]['name']} holds {share:.0%} of the landslide pixels of {name}.")
        pooled, rest = pool(cases), pool(case for k, case in enumerate(cases) if k != heaviest)
        shown = [one for one, weight in zip(counted, weights, strict=True) if weight]
        for method, tally in pooled.items():
            figures = {
                "mean F1": _mean(one[method].f1 for one in shown),
                "mean IoU": _mean(one[method].iou for one in shown),
                "pooled F1": tally.areas.f1,
                "pooled F1 without the heaviest": rest[method].areas.f1 if method in rest else float("nan"),
                "images": len(cases),
                "with landslides": len(shown),
            }
            measured.append(Measurement(name, method, figures))
    return Section("image", "Image by image", measured, notes)


# --- probabilities ---------------------------------------------------------------------------------------------------


def curves(measured: Iterable[Section]) -> dict[str, list[Bin]]:
    """Reliability of the gate and of the confidence of polygons by set, named as ``gate, bijie``; pooled ones first."""
    pairs: dict[str, list[tuple[float, bool]]] = {f"{kind}, {ALL_REAL}": [] for kind in ("gate", "confidence")}
    for section in measured:
        for name, cases in section.cases.items():
            kind = name.partition(", ")[0]
            if kind in ("gate", "confidence"):
                pairs[name] = [(case["said"], case["true"]) for case in cases]
                # shrunk copies of a scene would count it twice, and what was learned from proves nothing
                if section.name not in ("band", "synthetic") and name.partition(", ")[2] != LEARNED:
                    pairs[f"{kind}, {ALL_REAL}"] += pairs[name]
    return {name: reliability(*_columns(said)) for name, said in pairs.items() if said}


def _columns(pairs: Sequence[tuple[float, bool]]) -> tuple[Float64Array, BoolArray]:
    return np.array([p for p, _ in pairs], float), np.array([t for _, t in pairs], bool)


def calibration(known: dict[str, list[Bin]]) -> list[Section]:
    """How far probabilities are off, and what was true in each of their bins."""
    errors, shares = [], []
    for name, bins in known.items():
        what, _, data = name.partition(", ")
        total = sum(part.count for part in bins)
        said = sum(part.probability * part.count for part in bins if part.count) / total
        share = sum(part.share * part.count for part in bins if part.count) / total
        figures = {
            "calibration error": expected_calibration_error(bins),
            "mean probability": said,
            "share true": share,
            "mean minus share": said - share,
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
        Section("calibration", "Whether probabilities mean what they say", errors, notes),
        Section("reliability", "What was true by what was said", shares),
    ]

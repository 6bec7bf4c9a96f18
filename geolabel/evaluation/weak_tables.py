"""The tables of ``bench weak``: means over the seeds, their spread, and paired differences."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from geolabel.evaluation.chip_scores import paired_interval
from geolabel.evaluation.table import Measurement, Section, write_text
from geolabel.evaluation.weak import METHODS, PSEUDO, STUDENTS


def write_table(done: dict[str, dict[str, Any]], out: Path, title: str) -> list[Section]:
    """Write what is done as Markdown, means over the seeds and their spread (highest less lowest)."""
    sections = [image_section(done), map_section(done), pseudo_section(done), student_section(done),
                difference_section(done)]  # fmt: skip
    kept = [section for section in sections if section.measured]
    write_text(out, "\n".join([f"# {title}", "", *(section.markdown() for section in kept)]))
    return kept


START = "as they start"
"""Row of what localizers start from, before they learn."""


def _localizers(done: dict[str, dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    found = {START: [done["start"]] if "start" in done else []} | {m: over_seeds(done, m) for m in METHODS}
    return {name: of for name, of in found.items() if of}


def image_section(done: dict[str, dict[str, Any]]) -> Section:
    """Whether a chip shows something."""
    rows = [row("val", name, {"AUC": [f["AUC"] for f in of], "accuracy": [f["accuracy"] for f in of]})
            for name, of in _localizers(done).items()]  # fmt: skip
    floors = done.get("floors", {}).get("AUC", {})
    rows += [Measurement("val", name, {"AUC": value}) for name, value in floors.items()]
    return Section("image", "Does a chip show it?", rows)


def map_section(done: dict[str, dict[str, Any]]) -> Section:
    """Where maps are highest, and how well they cover."""
    rows, areas = [], 0.0
    for name, of in _localizers(done).items():
        maps = [found["maps"] for found in of]
        figures = {"hits": [np.mean(m["hits"]) for m in maps], "map IoU": [_map_ious(m).mean() for m in maps]}
        rows.append(row("val", name, figures))
        areas = float(np.mean(maps[0]["areas"]))
    if rows:
        rows.append(Measurement("val", "random place", {"hits": areas}))
    return Section("map", "Where are the maps of chips that show it highest?", rows)


def pseudo_section(done: dict[str, dict[str, Any]]) -> Section:
    """How good pseudo-labels are."""
    rows = [row("train, held out", name, {"IoU": [f["shown"]["miou" if "iou" not in f["shown"] else "iou"] for f in of],
                                          "mean IoU of chips": [float(np.mean(f["ious"])) for f in of]})
            for name in PSEUDO if (of := over_seeds(done, f"pseudo {name}"))]  # fmt: skip
    return Section("pseudo", "How good are pseudo-labels of chips that show it?", rows)


STUDENT_FIGURES = {"iou": "IoU", "f1": "F1", "overall_accuracy": "OA", "precision": "P", "recall": "R", "miou": "mIoU"}


def student_section(done: dict[str, dict[str, Any]]) -> Section:
    """Students and floors, on all chips, on those that show something, and on the mosaic."""
    found = {f"student of {name}": over_seeds(done, f"student {name}") for name in STUDENTS}
    floors = done.get("floors", {})
    found |= {name: [floors[name]] for name in ("ellipse", "Otsu") if name in floors}
    rows = []
    for part, title in (("shown", "val, chips that show it"), ("all", "val, all chips"), ("mosaic", "val, mosaic")):
        for name, of in found.items():
            figures = {
                text: [f[part][key] for f in of if key in f.get(part, {})] for key, text in STUDENT_FIGURES.items()
            }
            if any(figures.values()):
                rows.append(row(title, name, {key: values for key, values in figures.items() if values}))
    return Section("student", "What does a student draw?", rows)


def difference_section(done: dict[str, dict[str, Any]]) -> Section:
    """Differences of the same chips, averaged over the seeds that both have, with intervals of 95 % over the chips."""
    rows = []
    for better, than in (("cam", START), ("s2c", "cam"), ("cism", "cam")):
        first, second = _of_both(done, better, than)
        if first:
            ious = (np.mean([_map_ious(f["maps"]) for f in some], axis=0) for some in (first, second))
            rows.append(_difference("val, chips that show it", f"map IoU of {better} over {than}", *ious))
    for better, than in (("apsam paper", "apsam box"), ("apsam box", "apsam point"), ("apsam", "apsam paper")):
        first, second = _of_both(done, f"pseudo {better}", f"pseudo {than}")
        if first:
            ious = (np.mean([f["ious"] for f in some], axis=0) for some in (first, second))
            rows.append(_difference("train, held out", f"labels of {better} over {than}", *ious))
    for name in STUDENTS[:-1]:
        first, second = _of_both(done, f"student {name}", "student masks")
        if first:
            key = "iou" if "iou" in first[0]["shown"] else "miou"
            ious = (np.mean([f["ious"] for f in some], axis=0) for some in (first, second))
            ours, theirs = (np.mean([f["shown"][key] for f in some]) for some in (first, second))
            row = _difference("val, chips that show it", f"student of {name} over that of masks", *ious)
            rows.append(replace(row, figures=row.figures | {"ratio of IoU": float(ours / theirs)}))
    return Section("difference", "What is better than what?", rows)


def _of_both(done: dict[str, dict[str, Any]], first: str, second: str) -> tuple[list[Any], list[Any]]:
    """Figures of two steps, of the seeds that have both; what localizers start from goes with every seed."""
    found: tuple[list[Any], list[Any]] = [], []
    for seed in dict.fromkeys(key.partition("/")[0] for key in done if "/" in key):
        keys = [START if name == START else f"{seed}/{name}" for name in (first, second)]
        pair = [done.get("start" if key == START else key) for key in keys]
        if all(one is not None for one in pair):
            for some, one in zip(found, pair, strict=True):
                some.append(one)
    return found


def over_seeds(done: dict[str, dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """Figures of a step, of every seed that has them."""
    return [found for key, found in done.items() if key.partition("/")[2] == name]


def row(data: str, method: str, figures: Mapping[str, Iterable[float]]) -> Measurement:
    """Means over the seeds, each with its spread where there are several."""
    told: dict[str, float] = {}
    for name, values in figures.items():
        array = np.array([np.nan if value is None else value for value in values], float)
        told[name] = float(array.mean())
        if len(array) > 1:
            told[f"{name} spread"] = float(np.ptp(array))
    return Measurement(data, method, told)


def _map_ious(maps: dict[str, Any]) -> Any:
    return np.asarray(maps["ious"])[:, maps["chosen"]]


def _difference(data: str, name: str, first: Any, second: Any) -> Measurement:
    mean, low, high = paired_interval(first, second)
    return Measurement(data, name, {"difference": mean, "from": low, "to": high})

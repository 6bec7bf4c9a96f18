"""``bench quality``: every question that the bundled networks are judged by, answered in one table.

Sections are measured one by one, and each leaves its figures in a file of its own: an interrupted or a partial run goes
on from there. A section is measured again when the networks, the data or the split have changed.
"""

from __future__ import annotations

import json
import logging
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np

import geolabel
from geolabel.bench import chips, examples, scenes
from geolabel.bench.calibration import Bin, draw_curves, expected_calibration_error, reliability
from geolabel.bench.examples import Example, Examples, Split
from geolabel.bench.peers import Forest
from geolabel.bench.speed import measure_speed
from geolabel.bench.table import OURS, Measurement, Section, extremes, write_json, write_text
from geolabel.errors import OptionError
from geolabel.io import weights
from geolabel.parts import Localizer, Recipe, Segmenter
from geolabel.run.plan import Parameters
from geolabel.run.report import Progress, Silent
from geolabel.run.request import Networks
from geolabel.types import BoolArray, Float64Array

log = logging.getLogger(__name__)

SCENES = 20
"""Synthetic scenes of a split."""

FOREST_SEEDS = range(700_000, 700_004)
"""Scenes that the random forest learns from."""

TABLE, PAGE, CURVES, PARTS = "quality.json", "quality.md", "reliability.png", "sections"
"""What is written, in the folder given: the table twice, the reliability curves, and the sections one by one."""


@dataclass(frozen=True)
class Data:
    """Folders with real images; None for what is not at hand."""

    sichuan: Path | None = None
    """images/ and masks/; what is reported on is named in `geolabel.trainers.pictures.REPORTED`."""
    bijie: Path | None = None
    """train/ and val/, each with images/ and masks/."""
    geotiffs: Path | None = None
    """GeoTIFFs without landslides."""

    @classmethod
    def inside(cls, folder: Path) -> Data:
        """Take what a folder has of the three."""
        found = {name: folder / name for name in ("sichuan", "bijie", "geotiffs") if (folder / name).is_dir()}
        if not found:
            raise OptionError(f"{folder} holds no folder sichuan, bijie or geotiffs: give one of them by name")
        return cls(**found)


@dataclass(frozen=True)
class Bench:
    """What is measured, on what."""

    data: Data
    networks: Networks
    split: Split = "report"
    limit: int | None = None
    """Examples of each set of data at most, for a quick look; None for all."""
    windows: int = 2
    """Windows that the peer of the speed section is timed on."""
    progress: Progress = field(default_factory=Silent)

    @cached_property
    def recipes(self) -> tuple[Recipe, Recipe]:
        """Of the localizer and the segmenter."""
        return self.networks.recipes()

    @cached_property
    def localizer(self) -> Localizer:
        """Maps are not cut at the constant: their highest place has to be one."""
        return cast("Localizer", weights.load(replace(self.recipes[0], normalisation="maximum")))

    @cached_property
    def segmenter(self) -> Segmenter:
        """As the product uses it."""
        return cast("Segmenter", weights.load(self.recipes[1]))

    @cached_property
    def parameters(self) -> Parameters:
        """The product's own."""
        return Parameters()

    @property
    def sichuan(self) -> examples.Files | None:
        """Orthophotos with careful outlines."""
        return self._first(examples.outlined(self.data.sichuan, self.split) if self.data.sichuan else None)

    @property
    def bijie(self) -> examples.Files | None:
        """Chips with and without landslides."""
        return self._first(examples.chips(self.data.bijie, self.split) if self.data.bijie else None)

    @property
    def drawn(self) -> examples.Drawn:
        """Synthetic scenes."""
        count = SCENES if self.limit is None else min(SCENES, self.limit)
        return examples.Drawn(examples.SYNTHETIC[self.split], count)

    def _first(self, files: examples.Files | None) -> examples.Files | None:
        if files is None or self.limit is None:
            return files
        # every so many-th, so that chips with and without landslides both stay
        step = max(1, len(files) // self.limit)
        return replace(files, images=files.images[::step][: self.limit])

    def followed(self, items: Examples, name: str) -> Iterator[Example]:
        """Pass examples through under the eyes of the progress."""
        return self.progress.track(items, name, len(items))

    def key(self) -> dict[str, Any]:
        """What the figures depend on, as plain values."""
        listed = {"sichuan": self.sichuan, "bijie": self.bijie}
        return {
            "geolabel": geolabel.__version__,
            "networks": {recipe.role: recipe.sha256 for recipe in self.recipes},
            "parameters": self.networks.settled(self.parameters).as_dict(),
            "split": self.split,
            "limit": self.limit,
            "data": {name: files.listed() if files else None for name, files in listed.items()},
        }


# --- sections --------------------------------------------------------------------------------------------------------


def masks(bench: Bench) -> Section:
    """Masks from true boxes and centroids."""
    methods = chips.outliners(bench.segmenter)
    notes = ["A landslide too large for the segmenter's window is shown to it reduced."]
    if "GrabCut" not in methods:
        notes.append("GrabCut was left out: it needs OpenCV (pip install opencv-python-headless).")
    measured, cases = [], {}
    for name, items in (("sichuan", bench.sichuan), ("bijie", bench.bijie), ("synthetic", bench.drawn)):
        if items is not None:
            found, cases[name] = chips.mask_ious(bench.followed(items, f"masks, {name}"), methods)
            measured += [measurement.on(name) for measurement in found]
    return Section("mask", "Masks from the true box and centroid", measured, notes, cases)


def maps(bench: Bench) -> Section:
    """Whether the highest place of a map lies on a landslide."""
    measured, cases = [], {}
    sets: list[tuple[str, Examples | None, bool]] = [
        ("sichuan", bench.sichuan, False),
        ("bijie", bench.bijie, False),
        ("bijie, cut off centre", bench.bijie, True),
    ]
    for name, items, cut in sets:
        if items is not None:
            followed: Iterable[Example] = bench.followed(items, f"maps, {name}")
            followed = chips.off_centre_crops(followed) if cut else followed
            found, cases[name] = chips.map_hits(followed, bench.localizer)
            measured += [measurement.on(name) for measurement in found]
    question = "Share of maps whose highest place lies on a landslide"
    return Section("map", question, measured, ["Images keep their own pixel size."], cases)


def gate(bench: Bench) -> Section:
    """Whether the gate tells images with landslides from those without."""
    question = "Landslide or not, each image at its own pixel size"
    if bench.bijie is None:
        return Section("gate", question, [], ["Not measured: no folder of bijie was given."])
    found = chips.gate_scores(bench.followed(bench.bijie, "gate"), bench.localizer)
    pairs = [[round(float(p), 6), bool(t)] for p, t in zip(found.said[OURS], found.truth, strict=True)]
    return Section(
        "gate",
        question,
        [measurement.on("bijie") for measurement in found.measurements()],
        ["The largest class probability of any window of an image is taken as the image's."],
        {"bijie": [{"said": said, "true": true} for said, true in pairs]},
    )


def scene(bench: Bench) -> Section:
    """Real scenes to polygons."""
    measured: list[Measurement] = []
    cases: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory(prefix="geolabel-") as folder:
        if bench.bijie is not None:
            path = Path(folder) / "mosaic.tif"
            truth = scenes.lay_mosaic(bench.bijie, path)
            found = scenes.answers(path, bench.networks, bench.parameters)
            tallies = {name: scenes.Tally.of(answer, truth) for name, answer in found.items()}
            measured += [Measurement("mosaic of bijie", name, tally.figures()) for name, tally in tallies.items()]
            cases["confidence, mosaic of bijie"] = _stated(found, truth)
        if bench.sichuan is not None:
            followed = bench.followed(bench.sichuan, "scenes, sichuan")
            rows, cases["sichuan"], cases["confidence, sichuan"] = _pooled(bench, followed, examples.OUTLINED_GSD, {})
            measured += [measurement.on("sichuan") for measurement in rows]
    return Section("scene", "Scene to polygons", measured, ["Pixels are pooled over the scenes of a set."], cases)


def synthetic(bench: Bench) -> Section:
    """Drawn scenes to polygons."""
    notes = ["Pixels are pooled over the scenes."]
    more: dict[str, Forest] = {}
    try:
        drawn = (examples.Drawn(seed, 1) for seed in FOREST_SEEDS)
        more["random forest"] = Forest.grow((one.rgb, one.truth) for scene in drawn for one in scene)
    except ModuleNotFoundError:
        notes.append("The random forest was left out: it needs scikit-learn (pip install scikit-learn).")
    followed = bench.followed(bench.drawn, "synthetic")
    rows, each, said = _pooled(bench, followed, examples.SYNTHETIC_GSD, more)
    cases = {"synthetic": each, "confidence, synthetic": said}
    return Section("synthetic", "Synthetic scenes to polygons", [row.on("synthetic") for row in rows], notes, cases)


def _pooled(
    bench: Bench, items: Iterable[Example], gsd: float, more: dict[str, Forest]
) -> tuple[list[Measurement], list[dict[str, Any]], list[dict[str, Any]]]:
    """Figures over scenes of one pixel size, IoU of each scene, and what was said of each polygon."""
    tallies: dict[str, scenes.Tally] = defaultdict(scenes.Tally)
    each, said = [], []
    with tempfile.TemporaryDirectory(prefix="geolabel-") as folder:
        for example in items:
            path = scenes.write_scene(Path(folder) / "scene.tif", example, gsd)
            found = scenes.answers(path, bench.networks, bench.parameters)
            valid = found[OURS].valid
            for name, forest in more.items():
                found[name] = scenes.Answer(
                    scenes.tidy(forest.find(example.rgb), scenes.placed(example, gsd), bench.parameters), valid, gsd
                )
            counted = {name: scenes.Tally.of(answer, example.ids) for name, answer in found.items()}
            for name, tally in counted.items():
                tallies[name] = tallies[name] + tally
            each.append({"name": example.name} | {name: _rounded(t.areas.iou) for name, t in counted.items()})
            said += _stated(found, example.ids)
    return [Measurement("", name, tally.figures()) for name, tally in tallies.items()], each, said


def _stated(found: dict[str, scenes.Answer], truth: Any) -> list[dict[str, Any]]:
    return [{"said": said, "true": true} for said, true in scenes.stated(found[scenes.WITH], truth)]


def _rounded(value: float) -> float | None:
    return None if np.isnan(value) else round(value, 4)


def alarms(bench: Bench) -> Section:
    """What is found where nothing is."""
    question = "False alarms in scenes without landslides"
    if bench.data.geotiffs is None:
        return Section("alarms", question, [], ["Not measured: no folder of geotiffs was given."])
    paths = scenes.tiffs(bench.data.geotiffs)[: bench.limit]
    kept, seen = examples.apart(paths)
    sets = {"geotiffs kept for reports": kept if bench.split == "report" else [], "other geotiffs": seen}
    measured: list[Measurement] = []
    cases: dict[str, list[dict[str, Any]]] = {}
    for data, those in sets.items():
        if those:
            found: dict[str, list[dict[str, float]]] = defaultdict(list)
            cases[data] = []
            for path in bench.progress.track(those, f"alarms, {data}", len(those)):
                for name, answer in scenes.answers(path, bench.networks, bench.parameters).items():
                    found[name].append(scenes.false_alarms(answer))
                last = {name: round(rows[-1]["ha per km2"], 3) for name, rows in found.items()}
                cases[data].append({"name": path.name} | last)
            measured += [scenes.mean_alarms(data, name, rows) for name, rows in found.items()]
    notes = [
        "Means over scenes, since the coarsest would outweigh all others; 1 ha per km2 is 1 % of the area.",
        "The bundled localizer learned from none that is kept for reports, and from all others of its folder.",
    ]
    return Section("alarms", question, measured, notes, cases)


def speed(bench: Bench) -> Section:
    """How long a scene takes, beside the official ViT-B."""
    return measure_speed(bench.networks, bench.parameters, windows=bench.windows)


SECTIONS: dict[str, Callable[[Bench], Section]] = {
    "mask": masks,
    "map": maps,
    "gate": gate,
    "scene": scene,
    "alarms": alarms,
    "synthetic": synthetic,
    "speed": speed,
}
"""What can be measured, in the order of the table."""


# --- the run ---------------------------------------------------------------------------------------------------------


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
    parts = out / PARTS
    parts.mkdir(parents=True, exist_ok=True)
    key = bench.key()
    for name in only:
        if overwrite or _kept(parts / f"{name}.json", key) is None:
            began = time.monotonic()
            section = replace(SECTIONS[name](bench), seconds=round(time.monotonic() - began, 1))
            write_json(parts / f"{name}.json", {"key": key, "section": section.as_json()})
    held = (_kept(parts / f"{name}.json", key) for name in SECTIONS)
    found = [section for section in held if section is not None]
    curves = _curves(found)
    if curves:
        draw_curves(out / CURVES, curves)
        found.append(_calibration(curves))
    described = {recipe.role: _described(recipe) for recipe in bench.recipes}
    write_json(out / TABLE, key | {"weights": described, "sections": [_brief(section) for section in found]})
    write_text(out / PAGE, _page(bench, described, found, bool(curves)))
    files = {"table": out / TABLE, "page": out / PAGE}
    return files | ({"curves": out / CURVES} if curves else {})


def _kept(path: Path, key: dict[str, Any]) -> Section | None:
    """A section that was measured before, if nothing has changed since."""
    if not path.is_file():
        return None
    held = json.loads(path.read_text(encoding="utf-8"))
    return Section.of(held["section"]) if held["key"] == key else None


def _brief(section: Section) -> dict[str, Any]:
    """The section without single cases, which stay in its own file."""
    return {name: value for name, value in section.as_json().items() if name != "cases"}


def _curves(found: Sequence[Section]) -> dict[str, list[Bin]]:
    """Reliability of the gate and of the confidence of polygons, over all data that was measured."""
    pairs: dict[str, list[tuple[float, bool]]] = defaultdict(list)
    for section in found:
        for name, cases in section.cases.items():
            what = "gate" if section.name == "gate" else name if name.startswith("confidence") else None
            if what is not None:
                pairs[what] += [(case["said"], case["true"]) for case in cases]
    return {name: reliability(*_columns(said)) for name, said in pairs.items() if said}


def _columns(pairs: Sequence[tuple[float, bool]]) -> tuple[Float64Array, BoolArray]:
    return np.array([p for p, _ in pairs], float), np.array([t for _, t in pairs], bool)


def _calibration(curves: dict[str, list[Bin]]) -> Section:
    measured = []
    for name, bins in curves.items():
        total = sum(part.count for part in bins)
        said = sum(part.probability * part.count for part in bins if part.count) / total
        share = sum(part.share * part.count for part in bins if part.count) / total
        error = expected_calibration_error(bins)
        figures = {"calibration error": error, "mean probability": said, "share true": share, "cases": total}
        what, _, data = name.partition(", ")
        measured.append(Measurement(data or "bijie", what, figures))
    note = "Confidence: whether at least half of a polygon is landslide. Gate: whether an image shows one."
    return Section("calibration", "Whether probabilities mean what they say", measured, [note])


def _described(recipe: Recipe) -> dict[str, Any]:
    """SHA-256 of a network and what it was trained on, as far as its file says."""
    path = weights.file_of(recipe)
    trained = weights.describe(path).get("trained") or {}
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
    missing = [name for name, folder in asdict(bench.data).items() if folder is None]
    if missing:
        lines += [f"- not at hand, and so left out: {', '.join(missing)}"]
    lines.append("")
    for section in found:
        lines.append(section.markdown())
        if section.name in ("mask", "scene"):
            for data, cases in section.cases.items():
                ranked = [case for case in cases if case.get(OURS) is not None]
                if ranked:
                    lines += [f"By IoU on {data}.", "", extremes(ranked)]
        if section.name == "calibration" and curved:
            lines += [f"![reliability curves]({CURVES})", ""]
    return "\n".join(lines)

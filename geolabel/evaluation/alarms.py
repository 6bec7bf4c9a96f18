"""What is found in scenes without landslides."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from geolabel.evaluation import examples, scenes
from geolabel.evaluation.examples import Example
from geolabel.evaluation.layout import write_scene
from geolabel.evaluation.scene_sets import Cases, said_of
from geolabel.evaluation.setup import Bench
from geolabel.evaluation.table import OURS, Measurement, Section
from geolabel.evaluation.tally import false_alarms, stated
from geolabel.io.read.opening import reading
from geolabel.training.pictures import read_image

LEARNED = "other geotiffs"
"""A set that the bundled networks learned from."""


def alarms(bench: Bench) -> Section:
    """What is found where nothing is."""
    question = "False alarms in scenes without landslides"
    sets: dict[str, tuple[Sequence[Path], float | None]] = {}
    if bench.geotiffs:
        kept, seen = examples.apart(bench.geotiffs)
        sets["geotiffs kept for reports"] = (bench.every(kept) if bench.split == "report" else (), None)
        sets[LEARNED] = (bench.every(seen), None)
    sets |= {f"negatives/{name}": (plain.images, plain.gsd) for name, plain in bench.negatives.items()}
    if not sets:
        return Section("alarms", question, [], ["Not measured: no folder of geotiffs or negatives was given."])
    measured: list[Measurement] = []
    cases: Cases = {}
    notes = [
        "Means over scenes, since the coarsest would outweigh all others; 1 ha per km2 is 1 % of the area.",
        "Nothing is learned from images that are kept for reports; the other geotiffs are learned from.",
    ]
    for data, (paths, gsd) in sets.items():
        if paths:
            rows = _alarms_of(bench, data, paths, gsd, cases)
            measured += [mean_alarms(data, method, parts) for method, parts in rows.items()]
            worst = max(cases[data], key=lambda case: float(case[OURS]))
            if worst[OURS]:
                notes.append(f"Most of {data} was taken in {worst['name']}: {worst[OURS]:.1f} ha per km2.")
    return Section("alarms", question, measured, notes, cases)


def _alarms_of(
    bench: Bench, data: str, paths: Sequence[Path], gsd: float | None, cases: Cases
) -> dict[str, list[dict[str, float]]]:
    """False alarms of each scene by method; what was said of single scenes goes into `cases`."""
    found: dict[str, list[dict[str, float]]] = defaultdict(list)
    each, said, gates = [], [], []
    with tempfile.TemporaryDirectory(prefix="geolabel-") as folder:
        for path in bench.progress.track(paths, f"alarms, {data}", len(paths)):
            seen = scenes.answers(_as_scene(path, gsd, Path(folder)), bench.networks, bench.parameters)
            for method, answer in seen.answers.items():
                found[method].append(false_alarms(answer))
            each.append({"name": path.name} | {m: round(rows[-1]["ha per km2"], 3) for m, rows in found.items()})
            everything = seen.answers[scenes.WITH]
            said += [said_of(*pair) for pair in stated(everything, np.zeros_like(everything.ids))]
            gates.append(said_of(seen.gate, truth=False))
    cases |= {data: each, f"confidence, {data}": said, f"gate, {data}": gates}
    return found


def _as_scene(path: Path, gsd: float | None, folder: Path) -> Path:
    """The file itself where it has a place, or its pixels at a made-up place with pixels of `gsd` metres."""
    if gsd is None or _has_place(path):
        return path
    rgb = read_image(path, "RGB")
    return write_scene(folder / "scene.tif", Example(path.stem, rgb, np.zeros(rgb.shape[:2], np.int32)), gsd)


def _has_place(path: Path) -> bool:
    if path.suffix.lower() not in (".tif", ".tiff"):
        return False
    with reading(str(path)) as opened:
        return opened.crs is not None


def mean_alarms(data: str, method: str, parts: list[dict[str, float]]) -> Measurement:
    """Mean over scenes, since the coarsest scene would outweigh all others by area."""
    names = parts[0] if parts else {}
    means = {name: float(np.mean([part[name] for part in parts])) for name in names}
    worst = max((part["ha per km2"] for part in parts), default=float("nan"))
    return Measurement(data, method, means | {"worst ha per km2": worst, "scenes": len(parts)})

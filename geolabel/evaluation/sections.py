"""The sections of ``bench quality``: the networks one by one here, scenes and false alarms in files of their own."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from geolabel.evaluation import chips, examples, scenes
from geolabel.evaluation.alarms import alarms
from geolabel.evaluation.examples import Example, Examples
from geolabel.evaluation.layout import write_scene
from geolabel.evaluation.scene_sets import band, coarse, said_of, scene, synthetic
from geolabel.evaluation.setup import Bench
from geolabel.evaluation.speed import measure_speed
from geolabel.evaluation.table import OURS, Section


def masks(bench: Bench) -> Section:
    """Masks from true boxes and centroids."""
    methods = chips.outliners(bench.segmenter)
    notes = ["A landslide too large for the segmenter's window is shown to it reduced."]
    if "GrabCut" not in methods:
        notes.append("GrabCut was left out: it needs OpenCV (pip install opencv-python-headless).")
    measured, cases = [], {}
    for name, items in (("sichuan", bench.sichuan), ("bijie", bench.bijie), ("synthetic", bench.synthetic)):
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
    """Whether the gate separates images with landslides from those without."""
    question = "Landslide or not, each image a scene of its own pixel size"
    if bench.bijie is None:
        return Section("gate", question, [], ["Not measured: no folder of bijie was given."])
    with tempfile.TemporaryDirectory(prefix="geolabel-") as folder:

        def ask(example: Example) -> float:
            path = write_scene(Path(folder) / "scene.tif", example, examples.CHIP_GSD)
            return scenes.gate_probability(path, bench.networks, bench.parameters)

        found = chips.gate_scores(bench.followed(bench.bijie, "gate"), ask)
    said = [said_of(p, t) for p, t in zip(found.said[OURS].tolist(), found.truth.tolist(), strict=True)]
    return Section(
        "gate",
        question,
        [measurement.on("bijie") for measurement in found.measurements()],
        ["The largest class probability of any tile of an image is taken as the image's."],
        {"gate, bijie": said},
    )


def speed(bench: Bench) -> Section:
    """How long a scene takes, beside the official ViT-B."""
    return measure_speed(bench.networks, bench.parameters, windows=bench.windows)


SECTIONS: dict[str, Callable[[Bench], Section]] = {
    "mask": masks,
    "map": maps,
    "gate": gate,
    "scene": scene,
    "coarse": coarse,
    "band": band,
    "alarms": alarms,
    "synthetic": synthetic,
    "speed": speed,
}
"""What can be measured: real images first."""

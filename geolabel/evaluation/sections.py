"""Sections of ``bench quality``, each with a table that answers one question."""

from __future__ import annotations

import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from geolabel.evaluation import examples, network_scores
from geolabel.evaluation.baselines import Forest, centred_ellipse
from geolabel.evaluation.bench import Bench
from geolabel.evaluation.examples import Example, Examples, Shrunk, SyntheticScenes
from geolabel.evaluation.scene_scores import (
    SceneSets,
    false_alarms,
    measure_mosaic,
    measure_scenes,
    probability_case,
    stated_confidence,
)
from geolabel.evaluation.scenes import (
    ELLIPSE,
    WITH_CANDIDATES,
    answer_scene,
    clean,
    example_grid,
    gate_probability,
    write_scene,
)
from geolabel.evaluation.steps import OURS, Case, Measurement, Section
from geolabel.extraction.pipeline import find_landslides
from geolabel.extraction.plan import PromptedWindow, assign
from geolabel.extraction.request import Networks, Reading
from geolabel.extraction.scene_groups import prepare
from geolabel.extraction.work import in_scratch
from geolabel.io.read.opening import reading
from geolabel.metrics import TOLERANCE
from geolabel.models.sam import corner_pixels
from geolabel.tiles import TileGrid
from geolabel.training.bundled_data import read_image
from geolabel.types import Int32Array, UInt8Array

FOREST_SEEDS = range(700_000, 700_004)
"""Seeds of the synthetic scenes that the random forest is fitted to."""

FINE_GSD = 0.25
"""Metres per pixel at which orthophotos without georeference, of 0.2 to 0.9 m, are also processed."""

SHRUNK = {"sichuan": (3.0, 8.0), "bijie": (2.0, 5.0)}
"""Factors by which the gsd of real scenes is also multiplied, so that each gsd band has scenes."""

TRAINED_ON = "other geotiffs"
"""A set that the bundled networks were trained on."""

SPEED_SIZE, SPEED_SEED = 4096, 919_999
"""Side in pixels and seed of the synthetic scene for timing."""

OFFICIAL_SIDE = 1024
"""Side in pixels of the windows of the official networks."""


# --- single networks -------------------------------------------------------------------------------------------------


def _masks(bench: Bench) -> Section:
    """Masks from true boxes and centroids."""
    methods = network_scores.outliners(bench.segmenter)
    notes = ["A landslide too large for the segmenter's window is shown to it reduced."]
    if "GrabCut" not in methods:
        notes.append("GrabCut was left out: it needs OpenCV (pip install opencv-python-headless).")
    measured, cases = [], {}
    for name, items in (("sichuan", bench.sichuan), ("bijie", bench.bijie), ("synthetic", bench.synthetic)):
        if items is not None:
            found, cases[name] = network_scores.mask_ious(bench.track(items, f"masks, {name}"), methods)
            measured += [measurement.on(name) for measurement in found]
    return Section("mask", "Masks from the true box and centroid", measured, notes, cases)


def _maps(bench: Bench) -> Section:
    """Whether the maximum of a map is on a landslide."""
    measured, cases = [], {}
    sets: list[tuple[str, Examples | None, bool]] = [
        ("sichuan", bench.sichuan, False),
        ("bijie", bench.bijie, False),
        ("bijie, cut off centre", bench.bijie, True),
    ]
    for name, items, cropped in sets:
        if items is not None:
            tracked: Iterable[Example] = bench.track(items, f"maps, {name}")
            if cropped:
                tracked = (examples.off_centre(example) for example in tracked if example.truth.any())
            found, cases[name] = network_scores.map_hits(tracked, bench.localizer, others=bench.other_localizers)
            measured += [measurement.on(name) for measurement in found]
    question = "Share of maps whose maximum is on a landslide"
    return Section("map", question, measured, ["Images keep their own pixel size."], cases)


def _gate(bench: Bench) -> Section:
    """Whether the gate separates images with landslides from those without."""
    question = "Landslide or not, each image a scene of its own pixel size"
    if bench.bijie is None:
        return Section("gate", question, [], ["Not measured: no folder of bijie was given."])
    with tempfile.TemporaryDirectory(prefix="geolabel-") as folder:

        def gate_of(networks: Networks, example: Example) -> float:
            path = write_scene(Path(folder) / "scene.tif", example, examples.CHIP_GSD)
            return gate_probability(path, networks, bench.parameters)

        others = {name: partial(gate_of, networks) for name, networks in bench.others.items()}
        found = network_scores.gate_scores(bench.track(bench.bijie, "gate"), partial(gate_of, bench.networks), others)
    pairs = zip(found.scores[OURS].tolist(), found.truth.tolist(), strict=True)
    return Section(
        "gate",
        question,
        [measurement.on("bijie") for measurement in found.measurements()],
        ["The probability of an image is the maximum class probability of its tiles."],
        {"gate, bijie": [probability_case(*pair) for pair in pairs]},
    )


# --- scenes to polygons ----------------------------------------------------------------------------------------------


POOLED = [
    "Pixels are pooled over the scenes of a set.",
    f"An outline counts where the other side has one within {TOLERANCE:g} px; the frame is not an outline.",
    "A landslide is found when half of it is covered, a polygon right when half of it is landslide.",
]


def _scene(bench: Bench) -> Section:
    """Real scenes of submetre pixels to polygons."""
    sets = SceneSets()
    if bench.bijie is not None:
        chips = bench.track(bench.bijie, "mosaic of bijie")
        measure_mosaic(bench, sets, "mosaic of bijie", chips, examples.CHIP_GSD, by_chip=True)
    if bench.sichuan is not None:
        minimum = bench.sichuan.minimum
        measure_scenes(bench, sets, "sichuan", bench.sichuan, examples.OUTLINED_GSD, minimum=minimum)
    notes = [*POOLED, f"Specks of the outlines of sichuan, below {examples.MINIMUM_OUTLINED} px, are not objects."]
    return Section("scene", "Scene to polygons", sets.measured, notes, sets.cases)


def _coarse(bench: Bench) -> Section:
    """Satellite chips to polygons, each a scene of its own gsd."""

    def ellipse(example: Example) -> dict[str, Int32Array]:
        return {ELLIPSE: centred_ellipse(example.ids.shape).astype(np.int32) * np.int32(example.truth.any())}

    sets = SceneSets()
    for name, items, gsd in (
        ("hokkaido_planet_3m", bench.hokkaido, examples.HOKKAIDO_GSD),
        ("l4s_rgb_10m", bench.l4s, examples.L4S_GSD),
    ):
        if items is not None:
            measure_scenes(bench, sets, name, items, gsd, ellipse)
    question = "Scene to polygons, satellite images of 3 and 10 m"
    return Section("coarse", question, sets.measured, [] if sets.measured else ["Not measured."], sets.cases)


def _band(bench: Bench) -> Section:
    """The same scenes at other gsds, for bands without a set."""
    sets = SceneSets()
    if bench.sichuan is not None:
        minimum = bench.sichuan.minimum
        measure_scenes(bench, sets, f"sichuan read at {FINE_GSD} m", bench.sichuan, FINE_GSD, minimum=minimum)
        for factor in SHRUNK["sichuan"]:
            gsd = factor * examples.OUTLINED_GSD
            shrunk = Shrunk(bench.sichuan, factor)
            minimum = round(bench.sichuan.minimum / factor**2)
            measure_scenes(bench, sets, f"sichuan shrunk to {gsd:g} m", shrunk, gsd, minimum=minimum)
    if bench.bijie is not None:
        for factor in SHRUNK["bijie"]:
            gsd = factor * examples.CHIP_GSD
            name = f"mosaic of bijie shrunk to {gsd:g} m"
            measure_mosaic(bench, sets, name, bench.track(Shrunk(bench.bijie, factor), name), gsd, by_chip=False)
    return Section("band", "By ground sample distance", sets.measured, [], sets.cases)


def _synthetic(bench: Bench) -> Section:
    """Synthetic scenes to polygons."""
    notes = [POOLED[0], "The sample is the scene that the README begins with."]
    forests: dict[str, Forest] = {}
    try:
        learned = (SyntheticScenes(seed, 1) for seed in FOREST_SEEDS)
        forests["random forest"] = Forest.fit((one.rgb, one.truth) for scenes in learned for one in scenes)
    except ModuleNotFoundError:
        notes.append("The random forest was left out: it needs scikit-learn (pip install scikit-learn).")
    gsd = examples.SYNTHETIC_GSD

    def forest(example: Example) -> dict[str, Int32Array]:
        grid = example_grid(example, gsd)
        return {name: clean(one.find(example.rgb), grid, bench.parameters) for name, one in forests.items()}

    sets = SceneSets()
    measure_scenes(bench, sets, "synthetic", bench.synthetic, gsd, forest)
    sample = SyntheticScenes(examples.SAMPLE, 1, examples.SAMPLE_SIZE)
    measure_scenes(bench, sets, "sample of the README", sample, gsd, forest)
    return Section("synthetic", "Synthetic scenes to polygons", sets.measured, notes, sets.cases)


# --- false alarms ----------------------------------------------------------------------------------------------------


def _alarms(bench: Bench) -> Section:
    """Polygons in scenes without landslides."""
    question = "False alarms in scenes without landslides"
    sets: dict[str, tuple[Sequence[Path], float | None]] = {}
    if bench.geotiffs:
        kept, others = examples.separate_reported(bench.geotiffs)
        sets["geotiffs kept for reports"] = (bench.some_of(kept) if bench.split == "report" else (), None)
        sets[TRAINED_ON] = (bench.some_of(others), None)
    sets |= {f"negatives/{name}": (some.images, some.gsd) for name, some in bench.negatives.items()}
    if not sets:
        return Section("alarms", question, [], ["Not measured: no folder of geotiffs or negatives was given."])
    measured: list[Measurement] = []
    cases: dict[str, list[Case]] = {}
    notes = [
        "Means over scenes, since the coarsest would outweigh all others; 1 ha per km2 is 1 % of the area.",
        "Networks are not trained on images that are kept for reports; they are on the other geotiffs.",
    ]
    for data, (paths, gsd) in sets.items():
        if paths:
            rows = _alarms_of(bench, data, paths, gsd, cases)
            measured += [_mean_alarms(data, method, parts) for method, parts in rows.items()]
            worst = max(cases[data], key=lambda case: float(case[OURS]))
            if worst[OURS]:
                notes.append(f"Most of {data} was taken in {worst['name']}: {worst[OURS]:.1f} ha per km2.")
    return Section("alarms", question, measured, notes, cases)


def _alarms_of(
    bench: Bench, data: str, paths: Sequence[Path], gsd: float | None, cases: dict[str, list[Case]]
) -> dict[str, list[dict[str, float]]]:
    """False alarms of each scene by method; cases of single scenes are added to `cases`."""
    found: dict[str, list[dict[str, float]]] = defaultdict(list)
    each, stated, gates = [], [], []
    with tempfile.TemporaryDirectory(prefix="geolabel-") as folder:
        for path in bench.progress.track(paths, f"alarms, {data}", len(paths)):
            answers = answer_scene(_as_scene(path, gsd, Path(folder)), bench.networks, bench.parameters)
            for method, answer in answers.by_method.items():
                found[method].append(false_alarms(answer))
            each.append({"name": path.name} | {m: round(rows[-1]["ha per km2"], 3) for m, rows in found.items()})
            everything = answers.by_method[WITH_CANDIDATES]
            pairs = stated_confidence(everything, np.zeros_like(everything.ids))
            stated += [probability_case(*pair) for pair in pairs]
            gates.append(probability_case(answers.gate, truth=False))
    cases |= {data: each, f"confidence, {data}": stated, f"gate, {data}": gates}
    return found


def _as_scene(path: Path, gsd: float | None, folder: Path) -> Path:
    """The file itself if it is georeferenced, or its pixels with an arbitrary georeference of `gsd` metres."""
    if gsd is None or _is_georeferenced(path):
        return path
    rgb = read_image(path, "RGB")
    return write_scene(folder / "scene.tif", Example(path.stem, rgb, np.zeros(rgb.shape[:2], np.int32)), gsd)


def _is_georeferenced(path: Path) -> bool:
    if path.suffix.lower() not in (".tif", ".tiff"):
        return False
    with reading(str(path)) as opened:
        return opened.crs is not None


def _mean_alarms(data: str, method: str, parts: list[dict[str, float]]) -> Measurement:
    """Mean over scenes; by area, the coarsest scene would outweigh all others."""
    names = parts[0] if parts else {}
    means = {name: float(np.mean([part[name] for part in parts])) for name in names}
    worst = max((part["ha per km2"] for part in parts), default=float("nan"))
    return Measurement(data, method, means | {"worst ha per km2": worst, "scenes": len(parts)})


# --- speed -----------------------------------------------------------------------------------------------------------


def _speed(bench: Bench) -> Section:
    """Time of a run over a synthetic scene, compared with segment-anything's ViT-B (random weights) on its prompts.

    ViT-B is timed on a few windows, and their mean is extrapolated.
    """
    import torch

    with tempfile.TemporaryDirectory(prefix="geolabel-") as folder:
        (example,) = SyntheticScenes(SPEED_SEED, 1, SPEED_SIZE)
        path = write_scene(Path(folder) / "scene.tif", example, 0.5)
        plan = prepare(path, Reading(), bench.networks, bench.parameters)
        with in_scratch(plan) as work:
            start = time.perf_counter()
            found = find_landslides(work)
            ours = time.perf_counter() - start
        prompted = assign(found.prompts, TileGrid(SPEED_SIZE, SPEED_SIZE, OFFICIAL_SIDE, OFFICIAL_SIDE // 4))
        timed = _time_official(example.rgb, prompted[: bench.windows])
    official = float(np.mean(timed)) * len(prompted) if timed else float("nan")
    counts = {"prompts": len(found.prompts)}
    data = f"{SPEED_SIZE} x {SPEED_SIZE} px"
    measured = [
        Measurement(data, OURS, {"seconds": ours, "times as fast": official / ours, **counts}),
        Measurement(data, "segment-anything vit_b", {"seconds": official, "windows": len(prompted), **counts}),
    ]
    note = (
        f"{torch.get_num_threads()} threads on {plan.segmenter.device}; the product does all steps, "
        f"vit_b only answers the prompts. It was timed on {len(timed)} of its {len(prompted)} windows."
    )
    return Section("speed", "Time for a scene", measured, [note])


def _time_official(rgb: UInt8Array, prompted: list[PromptedWindow]) -> list[float]:
    """Seconds of segment-anything's predictor for each window of an image (H, W, 3) with its prompts."""
    import torch
    from segment_anything import SamPredictor, sam_model_registry

    predictor = SamPredictor(sam_model_registry["vit_b"]().eval())
    seconds = []
    with torch.inference_mode():
        for one in prompted:
            prompts = one.prompts.shift(-one.window.col, -one.window.row)
            start = time.perf_counter()
            predictor.set_image(np.ascontiguousarray(rgb[one.window.slices]))
            boxes = corner_pixels(prompts.boxes)
            for box, points, labels in zip(boxes, prompts.points, prompts.labels, strict=True):
                predictor.predict(points, labels, box)
            seconds.append(time.perf_counter() - start)
    return seconds


SECTIONS: dict[str, Callable[[Bench], Section]] = {
    "mask": _masks,
    "map": _maps,
    "gate": _gate,
    "scene": _scene,
    "coarse": _coarse,
    "band": _band,
    "alarms": _alarms,
    "synthetic": _synthetic,
    "speed": _speed,
}
"""Sections by name: real images first."""

"""How long the product takes for a scene, and how long the official network would take for the same prompts."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np

from geolabel.evaluation.examples import Drawn
from geolabel.evaluation.layout import write_scene
from geolabel.evaluation.table import OURS, Measurement, Section
from geolabel.extraction.extract import find_landslides
from geolabel.extraction.plan import Parameters
from geolabel.extraction.request import Networks, Reading, prepare
from geolabel.extraction.windows import PromptedWindow, assign
from geolabel.extraction.work import in_scratch
from geolabel.models.sam import corner_pixels
from geolabel.tiles import TileGrid
from geolabel.types import UInt8Array

SIZE = 4096
"""Pixels a side of the scene."""

SEED = 919_999

OFFICIAL_SIDE = 1024
"""Pixels a side of what the official networks see at once."""


def measure_speed(networks: Networks, parameters: Parameters, *, windows: int, size: int = SIZE) -> Section:
    """Time the whole run over a drawn scene, and ViT-B of segment-anything, with random weights, on its prompts.

    Parameters
    ----------
    windows
        Windows that ViT-B is timed on; the time of all windows is told from their mean.
    """
    import torch

    with tempfile.TemporaryDirectory(prefix="geolabel-") as folder:
        (example,) = Drawn(SEED, 1, size)
        path = write_scene(Path(folder) / "scene.tif", example, 0.5)
        plan = prepare(path, Reading(), networks, parameters)
        with in_scratch(plan) as work:
            began = time.perf_counter()
            found = find_landslides(work)
            ours = time.perf_counter() - began
        prompted = assign(found.prompts, TileGrid(size, size, OFFICIAL_SIDE, OFFICIAL_SIDE // 4))
        timed = time_official(example.rgb, prompted[:windows])
    peer = float(np.mean(timed)) * len(prompted) if timed else float("nan")
    counts = {"prompts": len(found.prompts)}
    data = f"{size} x {size} px"
    measured = [
        Measurement(data, OURS, {"seconds": ours, "times as fast": peer / ours, **counts}),
        Measurement(data, "segment-anything vit_b", {"seconds": peer, "windows": len(prompted), **counts}),
    ]
    note = (
        f"{torch.get_num_threads()} threads on {plan.segmenter.device}; the product reads, finds, outlines and joins, "
        f"its peer only answers the prompts. Timed on {len(timed)} of {len(prompted)} windows of the peer."
    )
    return Section("speed", "Time for a scene", measured, [note])


def time_official(rgb: UInt8Array, prompted: list[PromptedWindow]) -> list[float]:
    """Seconds that segment-anything's predictor takes for each window of an image (H, W, 3) with its prompts."""
    import torch
    from segment_anything import SamPredictor, sam_model_registry

    predictor = SamPredictor(sam_model_registry["vit_b"]().eval())
    seconds = []
    with torch.inference_mode():
        for seen in prompted:
            prompts = seen.prompts.shift(-seen.window.col, -seen.window.row)
            began = time.perf_counter()
            predictor.set_image(np.ascontiguousarray(rgb[seen.window.slices]))
            boxes = corner_pixels(prompts.boxes)
            for box, points, labels in zip(boxes, prompts.points, prompts.labels, strict=True):
                predictor.predict(points, labels, box)
            seconds.append(time.perf_counter() - began)
    return seconds

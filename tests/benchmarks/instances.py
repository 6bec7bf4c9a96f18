"""Average precision of instances on synthetic scenes: DiffuPrompter after its map, with another localizer.

Usage: python tests/benchmarks/instances.py [--scenes 4] [--size 1024] [--threshold 0.4] [--truth] [--device cpu]

The map is the activation of the bundled localizer, instead of cross-attention, or, with ``--truth``, the truth itself
at the localizer's stride: then what the path after the map loses is seen alone. Everything after it is that of
``geolabel label --method diffuprompter``: threshold, components, box and centroid, the mask of the highest IoU, closed
regions that are as sure as they are active. Beside it the mask of the highest predicted IoU, the same masks as sure as
their edges are firm, and the thresholded map alone.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from geolabel.activation import Activation
from geolabel.engine import worker
from geolabel.evaluation.examples import SYNTHETIC
from geolabel.extraction.request import Networks
from geolabel.labelers import OverlapLabeler, UnionLabeler, enlarged, most_alike
from geolabel.labels import Instances, LabelMap, closed_regions
from geolabel.masks import EVERY_CANDIDATE, Masks
from geolabel.methods.diffuprompter import compose, grey_level
from geolabel.parts import Localizer, Pipeline, label_image
from geolabel.prompters import ContourPrompter
from geolabel.prompts import Prompts
from geolabel.synthetic import SyntheticScene, synthesize
from geolabel.training.average_precision import NAMES, AveragePrecision, ScoredMasks
from geolabel.types import UInt8Array

TILE = 512
LEAST = 64
"""Pixels of the smallest landslide that counts, on both sides."""


@dataclass(frozen=True)
class TrueLocalizer:
    """A localizer that answers with the truth, at the stride of the bundled network."""

    scene: SyntheticScene
    classes: tuple[str, ...] = ("landslide",)
    window: int = 64
    stride: int = 8
    gsd_range: tuple[float, float] = (0.01, 1000.0)

    def __call__(self, images: Sequence[UInt8Array]) -> list[Activation]:
        """Share of landslide in each cell of tiles of the scene."""
        return [self._of(image) for image in images]

    def _of(self, image: UInt8Array) -> Activation:
        height, width = image.shape[:2]
        row, col = self._place(image)
        truth = self.scene.truth[row : row + height, col : col + width].astype(np.float32)
        cells = truth.reshape(height // 8, 8, width // 8, 8).mean(axis=(1, 3))[None]
        return Activation(cells, np.ones_like(cells), cells.max(axis=(1, 2)), self.stride, self.classes)

    def _place(self, image: UInt8Array) -> tuple[int, int]:
        # a tile is a view of the scene's array
        offset = image.__array_interface__["data"][0] - self.scene.rgb.__array_interface__["data"][0]
        row, rest = divmod(offset, self.scene.rgb.strides[0])
        return row, rest // self.scene.rgb.strides[1]


@dataclass(frozen=True)
class FirmLabeler:
    """The masks that `OverlapLabeler` takes, each pixel as sure as the segmenter is."""

    threshold: float

    def __call__(self, masks: Masks, prompts: Prompts, activation: Activation) -> LabelMap:
        """Label the image that the masks are of."""
        active = enlarged(activation, *masks.scores.shape[1:]) > self.threshold
        return UnionLabeler()(masks[most_alike(masks, prompts, active)], prompts, activation)


def truth_of(scene: SyntheticScene) -> Instances:
    """The landslides to be seen, those of fewer than `LEAST` pixels left out."""
    areas = np.bincount(scene.ids.ravel())
    areas[0] = 0
    kept = np.flatnonzero(areas >= LEAST)
    numbers = np.zeros(len(areas), np.int32)
    numbers[kept] = np.arange(1, len(kept) + 1)
    count = len(kept)
    return Instances(numbers[scene.ids], np.ones(count, np.int32), np.ones(count, np.float32), areas[kept])


def main() -> None:
    """Read the command line, and print one line for each way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=4)
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--threshold", type=float, default=0.4)
    parser.add_argument("--truth", action="store_true")
    parser.add_argument("--device", default="cpu")
    asked = parser.parse_args()
    networks = Networks(device=asked.device)
    locate, every = (worker_part(networks, "overlap", role) for role in (0, 1))
    best = worker_part(networks, "best_iou", 1)
    ways = (
        "mask most like the map",
        "mask of the highest predicted IoU",
        "most like, as sure as its edge",
        "map alone",
    )
    counted = {way: AveragePrecision(1) for way in ways}
    seconds = dict.fromkeys(ways, 0.0)
    for seed in range(SYNTHETIC["select"], SYNTHETIC["select"] + asked.scenes):
        scene = synthesize(asked.size, seed=seed)
        localizer: Localizer = TrueLocalizer(scene) if asked.truth else locate
        prompter = ContourPrompter(grey_level(asked.threshold))
        pipelines = (
            compose(localizer, every, asked.threshold),
            Pipeline(localizer, prompter, best, OverlapLabeler(asked.threshold)),
            Pipeline(localizer, prompter, every, FirmLabeler(asked.threshold)),
            compose(localizer, every, asked.threshold, attention_only=True),
        )
        for way, pipeline in zip(ways, pipelines, strict=True):
            start = time.perf_counter()
            labels = label_image(pipeline, scene.rgb, TILE)
            seconds[way] += time.perf_counter() - start
            counted[way].add(truth_of(scene), ScoredMasks.of(closed_regions(labels, LEAST)))
    print(f"{asked.scenes} scenes of {asked.size} px, {'truth' if asked.truth else 'bundled'} map > {asked.threshold}")
    print(f"candidates: {EVERY_CANDIDATE}")
    for way in ways:
        figures = counted[way].figures()
        text = "  ".join(f"{name} {figures[name]:.3f}" for name in NAMES)
        print(f"{way:<34} {text}  {seconds[way] / asked.scenes:.1f} s a scene")


def worker_part(networks: Networks, selection: str, role: int):
    """Load the localizer (0) or the segmenter (1) of a choice of masks."""
    recipe = networks.recipes(selection)[role]
    return worker.segmenter(recipe) if role else worker.localizer(recipe)


if __name__ == "__main__":
    main()

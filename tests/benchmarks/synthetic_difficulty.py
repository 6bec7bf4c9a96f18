"""How far colour and texture alone get on synthetic scenes: the generator is too easy if they get far.

Usage: python tests/benchmarks/synthetic_difficulty.py [--size 1024] [--gsd 0.5] [--extract]

The baselines of ``geolabel bench quality``: Otsu's threshold on excess green, per scene, and a random forest on colour
and local statistics, trained on pixels of other scenes. The forest is scored twice: at the usual one half, and at the
threshold with the best IoU on out-of-bag pixels. The IoU is pooled over the pixels of all scenes. With ``--extract``
the polygons of ``geolabel extract`` on the same scenes stand beside them.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from geolabel.evaluation.baselines import Forest, otsu_bare
from geolabel.evaluation.examples import Example
from geolabel.evaluation.scenes import answer_scene, write_scene
from geolabel.evaluation.steps import OURS
from geolabel.extraction.request import Networks, Parameters
from geolabel.metrics import Confusion
from geolabel.synthetic import synthesize

TESTED = range(900000, 900010)
TRAINED = range(700000, 700004)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--gsd", type=float, default=0.5)
    parser.add_argument("--extract", action="store_true", help="also extract the scenes with the bundled networks")
    options = parser.parse_args()
    start = time.perf_counter()
    scenes = (synthesize(options.size, options.gsd, seed) for seed in TRAINED)
    best = Forest.fit((scene.rgb, scene.truth > 0) for scene in scenes)
    half = replace(best, threshold=0.5)
    names = ["Otsu", "forest", f"forest at {best.threshold:.2f}"] + ["geolabel"] * options.extract
    pooled = dict.fromkeys(names, Confusion())
    print(f"{'seed':>6}  {'landslide':>9}  " + "  ".join(f"{name:>14}" for name in names))
    for seed in TESTED:
        scene = synthesize(options.size, options.gsd, seed)
        truth, everywhere = scene.truth > 0, np.ones(scene.truth.shape, bool)
        masks = [otsu_bare(scene.rgb, everywhere), half.find(scene.rgb), best.find(scene.rgb)]
        masks += [extract(scene.rgb, options.gsd)] if options.extract else []
        counted = {name: Confusion.of(mask, truth, everywhere) for name, mask in zip(names, masks, strict=True)}
        pooled = {name: pooled[name] + counted[name] for name in names}
        ious = "  ".join(f"{counted[name].iou:14.3f}" for name in names)
        print(f"{seed:>6}  {truth.mean():9.3f}  {ious}", flush=True)
    print(f"{'pooled':>6}  {'':9}  " + "  ".join(f"{pooled[name].iou:14.3f}" for name in names))
    print(f"{time.perf_counter() - start:.0f} s")


def extract(rgb, gsd):
    with tempfile.TemporaryDirectory() as folder:
        example = Example("scene", rgb, np.zeros(rgb.shape[:2], np.int32))
        path = write_scene(Path(folder) / "scene.tif", example, gsd)
        return answer_scene(path, Networks(), Parameters()).by_method[OURS].ids > 0


if __name__ == "__main__":
    main()

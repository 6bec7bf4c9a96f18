"""How well ``extract`` does on synthetic scenes that no training saw.

Usage: python tests/benchmarks/synthetic_extract.py [--scenes 10] [--size 1024] [--gsd 0.5] [--first 900000]

Pooled pixels over the scenes, beside Otsu's threshold on excess green in the same run; IoU alone per scene.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import rasterio
from skimage.filters import threshold_otsu

import geolabel
from geolabel.metrics import Confusion
from geolabel.run.evaluate import evaluate
from geolabel.run.synthesize import synthesize


def otsu(scene: Path, truth: np.ndarray) -> Confusion:
    """Take the low side of excess green for landslide."""
    with rasterio.open(scene) as source:
        red, green, blue = source.read().astype(np.int32)
    excess = 2 * green - red - blue
    return Confusion.of(excess < threshold_otsu(excess), truth, np.ones_like(truth))


def main() -> None:
    """Draw, extract, score."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=10)
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--gsd", type=float, default=0.5)
    parser.add_argument("--first", type=int, default=900000)
    given = parser.parse_args()
    ours, theirs = Confusion(), Confusion()
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(given.first, given.first + given.scenes):
            scene = Path(folder) / f"{seed}.tif"
            synthesize(scene, size=(given.size, given.size), gsd=given.gsd, seed=seed)
            geolabel.extract(scene, out=scene.with_suffix(".gpkg"))
            with rasterio.open(Path(folder) / f"{seed}_truth.tif") as source:
                truth = source.read(1) == 1
            result = evaluate(scene.with_suffix(".gpkg"), Path(folder) / f"{seed}_truth.tif")
            green = otsu(scene, truth)
            ours, theirs = ours + result.areas, theirs + green
            print(f"{seed}: IoU {result.areas.iou:.3f}, Otsu {green.iou:.3f}", flush=True)
    for name, total in (("extract", ours), ("Otsu", theirs)):
        print(
            f"{name}: precision {total.precision:.3f}, recall {total.recall:.3f}, "
            f"F1 {total.f1:.3f}, IoU {total.iou:.3f}"
        )


if __name__ == "__main__":
    main()

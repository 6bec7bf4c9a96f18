"""How well the bundled networks do on what they never saw, and how fast they are.

Usage: python tests/benchmarks/bundled_networks.py [--scenes 10] [--size 1024] [--shared ../shared/data]
       [--localizer FILE] [--segmenter FILE] [--threads 1]

Extraction from end to end on synthetic scenes whose seeds are kept for reports, and on the real images of sichuan that
are; the chips of bijie's val for the localizer alone (evaluation only: no weights that ship learn from them).
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import rasterio
import torch
from affine import Affine
from PIL import Image
from rasterio.features import rasterize

from geolabel.io import weights
from geolabel.run.extract import extract
from geolabel.run.plan import Parameters
from geolabel.run.request import Networks, Reading
from geolabel.synthetic import synthesize
from geolabel.trainers.bundled import REPORTED
from geolabel.trainers.localizer import area_under_curve
from geolabel.trainers.pictures import stretch

FIRST_SEED = 900_000


def score(found, truth):
    """True positives, false positives, false negatives of two masks."""
    return np.array([(found & truth).sum(), (found & ~truth).sum(), (~found & truth).sum()])


def describe(counts):
    hit, extra, missed = (float(n) for n in counts)
    precision, recall = hit / max(hit + extra, 1), hit / max(hit + missed, 1)
    f1, iou = 2 * hit / max(2 * hit + extra + missed, 1), hit / max(hit + extra + missed, 1)
    return f"precision {precision:.3f}  recall {recall:.3f}  F1 {f1:.3f}  IoU {iou:.3f}"


def extract_mask(path, shape, transform, networks, parameters, *, gsd=None):
    slides = extract(path, networks=networks, reading=Reading(gsd=gsd), parameters=parameters)
    shapes = [(outline, 1) for outline in slides.geometry]
    return rasterize(shapes, shape, transform=transform).astype(bool) if shapes else np.zeros(shape, bool)


def on_synthetic(first, count, size, gsd, networks, parameters):
    total = np.zeros(3)
    transform = Affine(gsd, 0, 500_000, 0, -gsd, 3_400_000)
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(first, first + count):
            scene = synthesize(size, gsd=gsd, seed=seed)
            path = Path(folder) / f"{seed}.tif"
            profile = {"driver": "GTiff", "height": size, "width": size, "count": 3, "dtype": "uint8"}
            with rasterio.open(path, "w", crs="EPSG:32648", transform=transform, photometric="RGB", **profile) as file:
                file.write(np.moveaxis(scene.rgb, 2, 0))
            counts = score(extract_mask(path, (size, size), transform, networks, parameters), scene.truth > 0)
            total += counts
            print(f"  seed {seed}: {describe(counts)}", flush=True)
    print(f"synthetic, {count} scenes: {describe(total)}", flush=True)


def on_sichuan(folder, networks, parameters):
    total = np.zeros(3)
    for path in sorted((folder / "images").iterdir()):
        if path.stem.endswith(REPORTED):
            truth = np.asarray(Image.open(folder / "masks" / f"{path.stem}.png").convert("L")) > 0
            counts = score(extract_mask(path, truth.shape, Affine.scale(1, -1), networks, parameters, gsd=0.5), truth)
            total += counts
            print(f"  {path.stem}: {describe(counts)}", flush=True)
    print(f"sichuan, images kept for reports: {describe(total)}", flush=True)


def on_bijie(folder, localizer):
    hits, probabilities, labels = [], [], []
    for path in sorted((folder / "images").iterdir()):
        rgb = np.asarray(Image.open(path).convert("RGB"))
        (activation,) = localizer([stretch(rgb)])
        mask = folder / "masks" / f"{path.stem}.png"
        probabilities.append(float(activation.probability[0]))
        labels.append(mask.is_file())
        if mask.is_file():
            row, col = np.unravel_index(activation.values[0].argmax(), activation.values[0].shape)
            truth = np.asarray(Image.open(mask).convert("L")) > 0
            s = activation.stride
            hits.append(truth[row * s : (row + 1) * s, col * s : (col + 1) * s].any())
    auc = area_under_curve(np.array(probabilities), np.array(labels))
    print(f"bijie/val: maximum on the slide in {np.mean(hits):.3f} of {len(hits)} chips, AUC of the gate {auc:.3f}")


def speed(localizer, segmenter):
    image = np.random.default_rng(0).integers(0, 255, (512, 512, 3), np.uint8)
    encode = segmenter._sam.image_encoder
    frame = torch.zeros(1, 3, 512, 512)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for name, run in (("localizer", lambda: localizer([image])), ("encoder", lambda: encode(frame))):
            times = []
            with torch.inference_mode():
                for _ in range(8):
                    start = time.perf_counter()
                    run()
                    times.append(time.perf_counter() - start)
            print(f"{name}: {1e3 * min(times):.0f} ms per tile of 512 px on {threads} threads")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=FIRST_SEED)
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--gsd", type=float, default=0.5)
    parser.add_argument("--gate", type=float, default=Parameters.gate)
    parser.add_argument("--min-quality", type=float, default=Parameters.min_quality)
    parser.add_argument("--activation-threshold", type=int, default=Parameters.activation_threshold)
    parser.add_argument("--shared", type=Path, default=Path("../shared/data"))
    parser.add_argument("--localizer", default="bundled")
    parser.add_argument("--segmenter")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    networks = Networks(localizer=options.localizer, sam_checkpoint=options.segmenter, device="cpu")
    parameters = Parameters(
        gate=options.gate,
        min_quality=options.min_quality,
        activation_threshold=options.activation_threshold,
    )
    localizer, segmenter = (weights.load(recipe) for recipe in networks.recipes())
    speed(localizer, segmenter)
    torch.set_num_threads(options.threads)
    if (options.shared / "bijie").is_dir():
        on_bijie(options.shared / "bijie" / "val", localizer)
        on_sichuan(options.shared / "sichuan", networks, parameters)
    on_synthetic(options.first_seed, options.scenes, options.size, options.gsd, networks, parameters)


if __name__ == "__main__":
    main()

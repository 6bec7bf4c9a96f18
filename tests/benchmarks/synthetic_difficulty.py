"""How far colour and texture alone get on synthetic scenes: the generator is too easy if they get far.

Usage: python tests/benchmarks/synthetic_difficulty.py [--size 1024] [--gsd 0.5] [--jobs 1]

Otsu's threshold (1979) on excess green, 2 G - R - B, per scene; and a random forest on colour and local statistics,
trained on pixels of other scenes. The forest is scored twice: at the usual one half, and at the threshold that has the
best IoU on the pixels that its trees did not see in training. The IoU is pooled over the pixels of all scenes.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
from scipy import ndimage
from skimage.filters import threshold_otsu
from sklearn.ensemble import RandomForestClassifier

from geolabel.synthetic import synthesize

TESTED = range(900000, 900010)
TRAINED = range(700000, 700004)
SCALES = (5, 15, 45)
"""Sides in pixels of the windows of local statistics."""

PIXELS = 50_000
"""Training pixels of a scene."""


def counts(truth, found):
    """Pixels of the intersection and of the union."""
    return np.array([np.count_nonzero(truth & found), np.count_nonzero(truth | found)])


def iou(counted):
    return counted[0] / max(counted[1], 1)


def otsu(rgb):
    red, green, blue = np.moveaxis(rgb.astype(np.int16), 2, 0)
    excess = 2 * green - red - blue
    return excess <= threshold_otsu(excess)


def features(rgb):
    """(H * W, 3 + 6 per scale) colour, and its local mean and standard deviation."""
    rgb = rgb.astype(np.float32)
    columns = [rgb]
    for scale in SCALES:
        mean = ndimage.uniform_filter(rgb, (scale, scale, 0))
        square = ndimage.uniform_filter(rgb**2, (scale, scale, 0))
        columns += [mean, np.sqrt(np.maximum(square - mean**2, 0))]
    return np.concatenate(columns, axis=2).reshape(rgb.shape[0] * rgb.shape[1], -1)


def train(size, gsd, jobs):
    """Return a forest and the threshold on its probability that suits unseen pixels best."""
    rng = np.random.default_rng(0)
    values, labels = [], []
    for seed in TRAINED:
        scene = synthesize(size, gsd, seed)
        chosen = rng.choice(scene.truth.size, min(PIXELS, scene.truth.size), replace=False)
        values.append(features(scene.rgb)[chosen])
        labels.append(scene.truth.ravel()[chosen])
    labels = np.concatenate(labels)
    forest = RandomForestClassifier(100, min_samples_leaf=5, oob_score=True, n_jobs=jobs, random_state=0)
    forest.fit(np.concatenate(values), labels)
    unseen = forest.oob_decision_function_[:, 1]
    thresholds = np.arange(0.05, 0.96, 0.05)
    return forest, max(thresholds, key=lambda threshold: iou(counts(labels > 0, unseen >= threshold)))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--gsd", type=float, default=0.5)
    parser.add_argument("--jobs", type=int, default=1)
    options = parser.parse_args()
    start = time.perf_counter()
    forest, threshold = train(options.size, options.gsd, options.jobs)
    names = ("otsu", "forest", f"forest at {threshold:.2f}")
    pooled = dict.fromkeys(names, 0)
    print(f"{'seed':>6}  {'landslide':>9}  " + "  ".join(f"{name:>14}" for name in names))
    for seed in TESTED:
        scene = synthesize(options.size, options.gsd, seed)
        truth = scene.truth > 0
        probability = forest.predict_proba(features(scene.rgb))[:, 1].reshape(truth.shape)
        found = dict(zip(names, (otsu(scene.rgb), probability > 0.5, probability >= threshold), strict=True))
        counted = {name: counts(truth, mask) for name, mask in found.items()}
        pooled = {name: pooled[name] + counted[name] for name in names}
        print(
            f"{seed:>6}  {truth.mean():9.3f}  " + "  ".join(f"{iou(counted[name]):14.3f}" for name in names), flush=True
        )
    print(f"{'pooled':>6}  {'':9}  " + "  ".join(f"{iou(pooled[name]):14.3f}" for name in names))
    print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()

"""Everything mode of this checkout against that of another one: time, and whether the same is found.

Usage: python tests/benchmarks/everything.py OTHER DATA [--images 4] [--side 1024] [--pairs 1] [--chips] [--points 32]

OTHER is a checkout of another version, DATA a folder with images/ and masks/. Of images spread over it the upper left
`--side` pixels become scenes for ``geolabel segment``, one after the other, with the bundled segmenter and default
options; with ``--chips`` they are one folder for ``geolabel label --method alps --clusters 8`` instead. Runs of the two
checkouts come in turn, as in before_after.py. By checkout:

CPU s, wall s
    Of the processes, the median of the pairs; the ratio is the other over this, its median and its extremes.
covered
    Share of pixels in a segment, or with a label.
recall, average recall
    Of landslides of the masks of 64 pixels or more: share whose best segment has an IoU of 0.5; the mean over IoU
    thresholds from 0.5 to 0.95.
AP
    Average precision at an IoU of 0.5, segments ranked by predicted IoU times stability.
F1
    Of landslide pixels: the union of clusters that is best on the same masks.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import geopandas as gpd
import numpy as np
import rasterio
from affine import Affine
from before_after import HERE, import_root
from PIL import Image
from rasterio.features import rasterize
from scipy import ndimage

from geolabel.datasets.chips import mask_path, read_image
from geolabel.datasets.examples import ImageFolder

LEAST = 64
PLACE = Affine(0.5, 0, 500_000, 0, -0.5, 3_000_000)
THRESHOLDS = np.arange(0.5, 1, 0.05)

Quality = dict[str, float]


@dataclass
class Taken:
    """Seconds of a checkout, run by run, and what it found."""

    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)
    quality: Quality = field(default_factory=dict)


def call(root: Path, *arguments: str) -> tuple[float, float]:
    """CPU and wall seconds of a command of the checkout whose package is in a folder."""
    start = time.perf_counter()
    code = "import sys; from geolabel.cli.main import main; sys.exit(main())"
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments, "--device", "cpu", "-q"],
        env=os.environ | {"PYTHONPATH": str(root)},
        cwd=root,
        stdout=subprocess.DEVNULL,
    )
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{arguments} ended with {process.returncode} in {root}")
    return used.ru_utime + used.ru_stime, time.perf_counter() - start


def segments_of(folder: Path, truths: dict[str, np.ndarray]) -> Quality:
    """How well the segments of images find the landslides of their masks."""
    count, covered, best, hits = 0, [], [], []
    for name, truth in truths.items():
        found = gpd.read_file(folder / f"{name}.gpkg", layer="segments")
        masks = [rasterize([shape], out_shape=truth.shape, transform=PLACE).astype(bool) for shape in found.geometry]
        union = np.any(masks, axis=0) if masks else np.zeros(truth.shape, bool)
        covered.append(union.mean())
        count += len(masks)
        labels, objects = ndimage.label(truth)
        shown = [labels == k for k in range(1, objects + 1) if (labels == k).sum() >= LEAST]
        iou = np.array([[(m & t).sum() / (m | t).sum() for t in shown] for m in masks]).reshape(len(masks), len(shown))
        best += iou.max(axis=0, initial=0).tolist()
        claimed: set[int] = set()
        for k in np.argsort(-(found["predicted_iou"] * found["stability"]).to_numpy(), kind="stable"):
            free = [t for t in range(len(shown)) if t not in claimed and iou[k, t] >= 0.5]
            claimed |= set(free[:1])
            hits.append((float(found["predicted_iou"][k] * found["stability"][k]), bool(free)))
    right = np.array([hit for _, hit in sorted(hits, reverse=True)], float)
    precision = np.maximum.accumulate((np.cumsum(right) / np.arange(1, len(right) + 1))[::-1])[::-1]
    reached = np.asarray(best)
    return {
        "segments": count,
        "covered": float(np.mean(covered)),
        "landslides": len(best),
        "recall": float((reached >= 0.5).mean()),
        "average recall": float((reached[:, None] >= THRESHOLDS).mean()),
        "AP": float((precision * right).sum() / max(1, len(best))),
    }


def labels_of(folder: Path, truths: dict[str, np.ndarray]) -> Quality:
    """How much labels cover, and how well clusters find the landslides of the masks."""
    tables = np.zeros((2, 256), np.int64)
    for name, truth in truths.items():
        values = np.asarray(Image.open(next((folder / "labels").glob(f"{name}.*"))))
        for row, where in enumerate((truth, ~truth)):
            tables[row] += np.bincount(values[where].ravel(), minlength=256)
    inside, outside = tables[:, :255]
    order = np.argsort(-inside / np.maximum(1, inside + outside), kind="stable")
    hits, false = np.cumsum(inside[order]), np.cumsum(outside[order])
    f1 = 2 * hits / (hits + false + tables[0].sum())
    return {"covered": 1 - tables[:, 255].sum() / tables.sum(), "F1": float(f1.max())}


def scenes_of(images: Path) -> Path:
    """Where the scenes of images are."""
    return images.with_name("scenes")


def prepare(data: Path, count: int, side: int, out: Path) -> dict[str, np.ndarray]:
    """Write the images as pictures and as scenes of 0.5 m, and return their masks by name."""
    scenes = scenes_of(out)
    scenes.mkdir()
    images, truths = ImageFolder(data / "images" if (data / "images").is_dir() else data), {}
    for index in np.unique(np.linspace(0, len(images) - 1, count).astype(int)).tolist():
        name = images.names[index]
        pixels = images.read(index)[:side, :side]
        Image.fromarray(pixels).save(out / f"{name}.png")
        height, width = pixels.shape[:2]
        form = {"driver": "GTiff", "dtype": "uint8", "count": 3, "crs": "EPSG:32648", "transform": PLACE}
        with rasterio.open(scenes / f"{name}.tif", "w", height=height, width=width, photometric="rgb", **form) as scene:
            scene.write(np.moveaxis(pixels, 2, 0))
        mask = mask_path(images.paths[index])
        values = read_image(mask) if mask.is_file() else np.zeros(pixels.shape[:2], np.uint8)
        truths[name] = ((values if values.ndim == 2 else values.max(axis=2)) > 0)[:side, :side]
    return truths


def segment_each(root: Path, images: Path, out: Path, points: int) -> tuple[float, float]:
    """Segment the images."""
    used = [
        call(root, "segment", str(path), "--out", str(out / f"{path.stem}.gpkg"), "--points-per-side", str(points))
        for path in sorted(scenes_of(images).iterdir())
    ]
    cpu, wall = np.sum(used, axis=0)
    return float(cpu), float(wall)


def label_all(root: Path, images: Path, out: Path, points: int) -> tuple[float, float]:
    """Label the images."""
    more = "--method", "alps", "--clusters", "8", "--points-per-side", str(points)
    return call(root, "label", str(images), "--out", str(out), *more)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--side", type=int, default=1024)
    parser.add_argument("--pairs", type=int, default=1)
    parser.add_argument("--points", type=int, default=32)
    parser.add_argument("--chips", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="geolabel-") as folder:
        images = Path(folder) / "images"
        images.mkdir()
        truths = prepare(given.data, given.images, given.side, images)
        checkouts = {"this": HERE, "other": given.other.resolve()}
        roots = {name: import_root(path, Path(folder) / name) for name, path in checkouts.items()}
        print(f"{len(truths)} images of up to {given.side} px, {given.points} points a side, {given.pairs} pairs")
        if given.chips:
            measure("label --method alps", label_all, labels_of, roots, images, truths, given)
        else:
            measure("segment", segment_each, segments_of, roots, images, truths, given)


def measure(
    title: str,
    run: Callable[[Path, Path, Path, int], tuple[float, float]],
    judge: Callable[[Path, dict[str, np.ndarray]], Quality],
    roots: dict[str, Path],
    images: Path,
    truths: dict[str, np.ndarray],
    given: argparse.Namespace,
) -> None:
    """Run a command of both checkouts in turn, and print a line for each."""
    taken = {name: Taken() for name in roots}
    for number in range(given.pairs):
        for name in sorted(roots, reverse=bool(number % 2)):
            out = images.parent / f"{name}-{title.split()[0]}-{number}"
            out.mkdir()
            cpu, wall = run(roots[name], images, out, given.points)
            taken[name].cpu.append(cpu)
            taken[name].wall.append(wall)
            taken[name].quality = judge(out, truths)
            print(f"{title}, pair {number + 1}, {name}: {cpu:.1f} CPU s, {wall:.1f} s", file=sys.stderr, flush=True)
    for name, one in taken.items():
        figures = "  ".join(f"{key} {value:.3f}" for key, value in one.quality.items())
        print(f"{title}, {name}: {median(one.cpu):.1f} CPU s, {median(one.wall):.1f} s; {figures}")
    for kind in ("cpu", "wall"):
        ratios = [b / a for a, b in zip(getattr(taken["this"], kind), getattr(taken["other"], kind), strict=True)]
        print(f"{title}, {kind}: {median(ratios):.2f} x as fast ({min(ratios):.2f} to {max(ratios):.2f})", flush=True)


if __name__ == "__main__":
    main()

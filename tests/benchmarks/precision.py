"""What precision does to masks: those of bf16 beside those of fp32, on real images, with the bundled segmenter.

Usage: python tests/benchmarks/precision.py DATA [--images 12] [--points 8]

DATA is a folder with images/. Of images spread over it, the upper left pixels that fit the segmenter's window are asked
at a grid of points, and every answer of both precisions is compared. Encoder and decoder run as on a GPU, but for the
decoder's products, which a processor does not round to TF32.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from geolabel.datasets.chips import read_image
from geolabel.masks import Masks
from geolabel.models import loading
from geolabel.models.checkpoint import load_own
from geolabel.models.nets.vit import halve
from geolabel.models.on_torch import TorchSam
from geolabel.models.sam import SamSegmenter
from geolabel.prompts import Prompts


def segmenter(precision: str) -> SamSegmenter:
    """The bundled one, its encoder's weights in the precision."""
    path = loading.file_of(loading.recipe("segmenter", device="cpu"))
    sam, info = load_own(path, "segmenter")
    network = TorchSam(sam, resize=False, precision=precision, batch=1)
    if precision == "bf16":
        halve(network.sam.image_encoder)
        network.apart = True  # so that the decoder keeps single precision, as on a GPU, where it multiplies in TF32
    return SamSegmenter(network, gsd_range=info.gsd_range)


def agreement(found: Masks, expected: Masks) -> list[float]:
    """IoU of each mask of two that are not both empty."""
    inner = (found.binary & expected.binary).sum(axis=(1, 2))
    outer = (found.binary | expected.binary).sum(axis=(1, 2))
    return [float(i / o) for i, o in zip(inner, outer, strict=True) if o]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--images", type=int, default=12)
    parser.add_argument("--points", type=int, default=8, help="along a side")
    given = parser.parse_args()
    paths = sorted((given.data / "images").iterdir())
    chosen = [paths[k] for k in np.linspace(0, len(paths) - 1, given.images).astype(int)]
    exact, rough = segmenter("fp32"), segmenter("bf16")
    every: list[float] = []
    for path in chosen:
        image = np.ascontiguousarray(read_image(path)[: exact.window, : exact.window])
        at = (np.arange(given.points) + 0.5) / given.points
        points = np.stack(np.meshgrid(at * image.shape[1], at * image.shape[0]), axis=-1).reshape(-1, 2)
        asked = Prompts.build(points=points)
        ious = agreement(rough([image], [asked])[0], exact([image], [asked])[0])
        every += ious
        print(f"{path.name}: mean {np.mean(ious):.4f}, lowest {min(ious):.4f}, {len(ious)} masks", flush=True)
    print(f"all: mean {np.mean(every):.4f}, a twentieth below {np.quantile(every, 0.05):.4f}, {len(every)} masks")


if __name__ == "__main__":
    main()

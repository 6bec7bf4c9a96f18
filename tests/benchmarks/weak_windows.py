"""Windows of images with masks, as chips of which only a label is known: what `bundled-weak` learns from.

    python tests/benchmarks/weak_windows.py DATA --out windows/
    geolabel train localizer windows/ --method cam --init imagenet --out trained/

DATA has ``sichuan``, ``l4s_rgb_10m/train``, ``negatives`` and ``geotiffs``. Images that are kept for reports are left
out, and the fifth of the images of 10 m that calibrates other networks. A mask decides whether a window shows a
landslide, and is not kept. All windows are compressed in the same way, so that no trace of a file tells the label.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
from PIL import Image

from geolabel.errors import OptionError
from geolabel.training.bundled_data import REPORTED, SUFFIXES, is_reported, read_image, stretch
from geolabel.types import UInt8Array

SIDE = 320
"""Side in pixels of a window."""

SHOWN = 0.02
"""Share of a window from which on it shows a landslide; with less, but some, it is left out."""

OF_SICHUAN = 24, 12
"""Windows of an image at its own size, and at half of it."""

COARSE = 4
"""How many times an image of 10 m is enlarged, as extraction enlarges coarse images."""

COARSE_COUNT = 600
"""Images of 10 m."""


def windows(
    rgb: UInt8Array, mask: UInt8Array, count: int, rng: np.random.Generator
) -> Iterator[tuple[UInt8Array, int]]:
    """Yield `count` windows at random of an image (H, W, 3) and their labels, those that show too little left out."""
    for _ in range(count):
        row, col = (int(rng.integers(max(1, n - SIDE + 1))) for n in mask.shape)
        place = slice(row, row + SIDE), slice(col, col + SIDE)
        share = float(mask[place].mean())
        if share == 0 or share >= SHOWN:
            yield rgb[place], int(share > 0)


def _halved(rgb: UInt8Array, mask: UInt8Array) -> tuple[UInt8Array, UInt8Array]:
    small = Image.fromarray(rgb).reduce(2)
    return np.asarray(small), np.asarray(Image.fromarray(mask).resize(small.size, Image.Resampling.NEAREST))


def outlined(data: Path, rng: np.random.Generator) -> Iterator[tuple[str, UInt8Array, int]]:
    """Windows of images with masks: of orthophotos, and images of 10 m as they are extracted."""
    for path in sorted((data / "sichuan" / "images").iterdir()):
        if path.stem.endswith(REPORTED):
            continue
        rgb, mask = stretch(read_image(path, "RGB")), _mask_of(path)
        for size, count in zip((lambda *a: a, _halved), OF_SICHUAN, strict=True):
            for k, (window, label) in enumerate(windows(*size(rgb, mask), count, rng)):
                yield f"sichuan_{path.stem}_{'h' if size is _halved else 'f'}{k}", window, label
    paths = [p for p in sorted((data / "l4s_rgb_10m" / "train" / "images").iterdir()) if not is_reported(p.stem)]
    for path in (paths[k] for k in sorted(rng.choice(len(paths), COARSE_COUNT, replace=False))):
        rgb, mask = stretch(read_image(path, "RGB")), _mask_of(path)
        if mask.any() and mask.mean() < SHOWN:
            continue
        size = rgb.shape[1] * COARSE, rgb.shape[0] * COARSE
        yield (
            f"l4s_{path.stem}",
            np.asarray(Image.fromarray(rgb).resize(size, Image.Resampling.BILINEAR)),
            int(mask.any()),
        )


def _mask_of(image: Path) -> UInt8Array:
    found = read_image(image.parent.parent / "masks" / f"{image.stem}.png", "L") > 0
    return found.astype(np.uint8)


def empty(data: Path, rng: np.random.Generator) -> Iterator[tuple[str, UInt8Array, int]]:
    """Windows of images without landslides: one of each, more of large ones."""
    folders = [data / "geotiffs", *sorted(p for p in (data / "negatives").iterdir() if p.is_dir())]
    for folder in folders:
        for path in sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES):
            held = path.stem.endswith(REPORTED) if folder == folders[0] else is_reported(path.stem)
            if held:
                continue
            try:
                rgb = stretch(read_image(path, "RGB"))
            except OptionError as error:
                click.echo(f"left out: {path.name}: {error}", err=True)
                continue
            count = min(8, max(1, rgb.shape[0] * rgb.shape[1] // (2 * SIDE * SIDE)))
            for k, (window, label) in enumerate(windows(rgb, np.zeros(rgb.shape[:2], np.uint8), count, rng)):
                yield f"{folder.name}_{path.stem}_{k}", window, label


@click.command()
@click.argument("data", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path))
@click.option("--seed", default=0)
def main(data: Path, out: Path, seed: int) -> None:
    """Cut the windows and write them with labels.csv."""
    rng = np.random.default_rng(seed)
    (out / "images").mkdir(parents=True)
    rows = []
    for part in (outlined, empty):
        for name, window, label in part(data, rng):
            Image.fromarray(window).save(out / "images" / f"{name}.jpg", quality=90)
            rows.append((f"images/{name}.jpg", label))
    with (out / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("image", "label"), *rows])
    click.echo(f"{len(rows)} windows, {sum(label for _, label in rows)} with landslides")


if __name__ == "__main__":
    sys.exit(main())

"""Real ground with real landslides pasted on it: scenes whose ground before the event is known.

    python tests/benchmarks/pasted.py DATA --folder DIR [--split report|select] [--vary]

DATA holds ``sichuan/`` (images and masks of landslides) and ``negatives/`` (folders of images without landslides).
Images of one set without landslides are laid side by side on a canvas of 1024 px; landslides are cut out of their
images by their masks, turned, mirrored, scaled and laid on it with soft edges. Before is the canvas as it was; with
``--vary`` on another day: other light, a displacement of up to 2 px, and compressed again.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from geolabel.evaluation.examples import Example, Split, outlined, without_landslides
from geolabel.evaluation.scenes import example_grid, write_scene
from geolabel.io.write.rasters import write_geotiff
from geolabel.training.bundled_data import SUFFIXES, is_reported, read_image
from geolabel.training.colours import jpeg
from geolabel.types import BoolArray, UInt8Array

SIDE = 1024
"""Pixels a side of a canvas."""

SETS = {"ucmerced": 256, "oam_fair": 256, "gsi_japan_0p2m": 512, "odm_drone": 512}
"""Sets without landslides, and the side of what is cut out of the middle of their images, pixels."""

SHARE = 0.05
"""Of a canvas that landslides are pasted on."""

SMALLEST, LARGEST = 400, 60_000
"""Pixels of a landslide that is pasted, as it is pasted."""

GSD = 0.3
"""Metres per pixel that canvases are given."""

SOFT = 1.5
"""Sigma in pixels of the edge of what is pasted."""


@dataclass(frozen=True)
class Pasted:
    """A canvas with landslides, and before them."""

    name: str
    after: UInt8Array
    """(H, W, 3)"""
    before: UInt8Array
    """(H, W, 3)"""
    truth: BoolArray
    """(H, W)"""


Cut = tuple[UInt8Array, BoolArray]
"""A landslide: the image (h, w, 3) around it, and where it is."""


def pasted(data: Path, split: Split, *, vary: bool, limit: int = 6) -> Iterator[Pasted]:
    """Yield up to `limit` canvases of each set, of images for reports or of all that trainings may use."""
    slides = list(_slides(data / "sichuan", split))
    for name, side in SETS.items():
        rng = np.random.default_rng(abs(hash_of(name)) % 2**32)
        tiles = list(_tiles(data / "negatives" / name, split, side))
        across = SIDE // side
        order = rng.permutation(len(tiles))
        for number in range(min(limit, -(-len(tiles) // across**2))):
            chosen = np.resize(order[number * across**2 : (number + 1) * across**2], across**2)
            rows = [np.concatenate([tiles[k] for k in line], axis=1) for line in chosen.reshape(across, across)]
            canvas = np.concatenate(rows)
            after, truth = _paste(canvas, slides, rng)
            before = _another_day(canvas, rng) if vary else canvas
            yield Pasted(f"{name}_{number}", after, before, truth)


def hash_of(name: str) -> int:
    """A seed of a name that is the same in every process."""
    return int.from_bytes(name.encode()[:4].ljust(4), "big")


def _slides(folder: Path, split: Split) -> Iterator[Cut]:
    for example in outlined(folder, split):
        for number, place in enumerate(ndimage.find_objects(example.ids), 1):
            mask = example.ids[place] == number
            if mask.sum() >= SMALLEST:
                yield example.rgb[place], mask


def _tiles(folder: Path, split: Split, side: int) -> Iterator[UInt8Array]:
    if split == "report":
        paths = without_landslides(folder.parent, "report")[folder.name].images
    else:
        images = (path for path in sorted(folder.rglob("*")) if path.suffix.lower() in SUFFIXES)
        paths = tuple(path for path in images if not is_reported(path.stem))
    for path in paths:
        rgb = read_image(path, "RGB")
        if min(rgb.shape[:2]) < side:  # a few images lack a row or two
            pad = [(0, max(0, side - length)) for length in rgb.shape[:2]]
            rgb = np.pad(rgb, (*pad, (0, 0)), mode="symmetric")
        row, col = (rgb.shape[0] - side) // 2, (rgb.shape[1] - side) // 2
        yield rgb[row : row + side, col : col + side]


def _paste(canvas: UInt8Array, slides: list[Cut], rng: np.random.Generator) -> tuple[UInt8Array, BoolArray]:
    after, truth = canvas.astype(np.float32), np.zeros(canvas.shape[:2], bool)
    for _ in range(200):
        if truth.mean() >= SHARE:
            break
        rgb, mask = slides[int(rng.integers(len(slides)))]
        area = np.exp(rng.uniform(np.log(2 * SMALLEST), np.log(LARGEST)))
        rgb, mask = _turned(rgb, mask, float(np.clip(np.sqrt(area / mask.sum()), 0.15, 1.0)), rng)
        height, width = mask.shape
        if max(height, width) > SIDE // 2 or mask.sum() < SMALLEST:
            continue
        row, col = int(rng.integers(SIDE - height)), int(rng.integers(SIDE - width))
        here = slice(row, row + height), slice(col, col + width)
        soft = ndimage.gaussian_filter(mask.astype(np.float32), SOFT)[..., None]
        after[here] += soft * (rgb - after[here])
        truth[here] |= mask
    return np.rint(np.clip(after, 0, 255)).astype(np.uint8), truth


def _turned(rgb: UInt8Array, mask: BoolArray, zoom: float, rng: np.random.Generator) -> Cut:
    """A landslide turned by quarters, mirrored and scaled, with a margin for its soft edge."""
    margin = [(6, 6), (6, 6)]
    rgb, mask = np.pad(rgb, (*margin, (0, 0)), mode="edge"), np.pad(mask, margin)
    quarters = int(rng.integers(4))
    rgb, mask = np.rot90(rgb, quarters), np.rot90(mask, quarters)
    if rng.random() < 0.5:
        rgb, mask = rgb[:, ::-1], mask[:, ::-1]
    small = ndimage.zoom(ndimage.gaussian_filter(rgb.astype(np.float32), (0.4 / zoom, 0.4 / zoom, 0)), (zoom, zoom, 1))
    shape = small.shape[:2]
    share = ndimage.zoom(mask.astype(np.float32), zoom, order=1)[: shape[0], : shape[1]]
    return np.clip(small, 0, 255).astype(np.uint8), share > 0.5


def _another_day(canvas: UInt8Array, rng: np.random.Generator) -> UInt8Array:
    """The same ground in other light, displaced and compressed again."""
    shift = (*rng.uniform(-2, 2, 2), 0)
    image = ndimage.shift(canvas.astype(np.float32), shift, order=1, mode="nearest", prefilter=False) / 255
    image = image ** rng.uniform(0.7, 1.4) * rng.uniform(0.7, 1.2) * rng.uniform(0.92, 1.08, 3) + rng.uniform(
        -0.03, 0.06
    )
    haze = ndimage.zoom(rng.normal(0, 0.05, (5, 5)), SIDE / 5, order=3)[:SIDE, :SIDE, None]
    image += haze + rng.normal(0, rng.uniform(0.0, 0.02), image.shape)
    stored = jpeg(np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8), int(rng.integers(75, 96)))
    return np.asarray(Image.open(io.BytesIO(stored)))


def write_pairs(data: Path, folder: Path, split: Split, *, vary: bool) -> list[Path]:
    """Write scenes, what was before them, and their truths; the scenes' paths. What is there is taken as it is."""
    folder.mkdir(parents=True, exist_ok=True)
    done = folder / "done"
    if not done.exists():
        for pair in pasted(data, split, vary=vary):
            ids = ndimage.label(pair.truth)[0].astype(np.int32)
            example = Example(pair.name, pair.after, ids)
            write_scene(folder / f"{pair.name}.tif", example, GSD)
            write_scene(folder / f"{pair.name}_before.tif", Example(pair.name, pair.before, ids), GSD)
            truth = pair.truth.astype(np.uint8)
            grid = example_grid(example, GSD)
            write_geotiff(folder / f"{pair.name}_truth.tif", truth, grid, description="landslide", overwrite=True)
        done.touch()
    return sorted(path for path in folder.glob("*.tif") if not path.stem.endswith(("_before", "_truth")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--split", choices=("report", "select"), default="report")
    parser.add_argument("--vary", action="store_true")
    given = parser.parse_args()
    write_pairs(given.data, given.folder, given.split, vary=given.vary)


if __name__ == "__main__":
    main()

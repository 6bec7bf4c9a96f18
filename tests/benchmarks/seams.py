"""What the seams of tiles leave in the segments of a synthetic scene, with the bundled segmenter.

Usage: python tests/benchmarks/seams.py [--size 2048] [--points 8] [--overlaps 0 128] [--seed 910100] [--batch 1]

Counted for every overlap; the first, 0, is what tiles side by side come to, in which nothing is known of neighbours.

across
    Segments on both sides of a tile's border.
cut
    Segments whose outline runs along a border for 16 px or more; and the same along lines 37 px beside the borders,
    where no tile ends: as many are straight by nature.
doubled
    Pairs of segments whose IoU is 0.7 or more. With an overlap of 0 all of them are of one tile, where duplicates are
    recognized by their boxes: specks, which are dropped later, make the box of a mask larger than its twin's.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import rasterio
import shapely
from affine import Affine
from shapely.affinity import affine_transform

from geolabel.extraction.outputs import Targets
from geolabel.extraction.request import Networks, Parameters, Reading
from geolabel.extraction.scene_groups import prepare
from geolabel.extraction.segment import GridPrompts, run_segment
from geolabel.synthetic import synthesize
from geolabel.tiles import TileGrid

STRAIGHT = 16
"""Pixels along a border that make a cut; the bundled masks have cells of 4 px."""

NEAR = 0.6
"""Maximum distance in pixels of an edge from its border: corners stay within 0.75 px, cuts are on whole pixels."""

BESIDE = 37
"""Pixels from a border to the line that it is compared with."""

SAME = 0.7

UTM = Affine(0.5, 0, 500_000, 0, -0.5, 3_000_000)


def write_scene(path: Path, size: int, seed: int) -> Path:
    """Write a synthetic scene of 0.5 m."""
    profile = {"driver": "GTiff", "dtype": "uint8", "count": 3, "height": size, "width": size, "crs": "EPSG:32648"}
    with rasterio.open(path, "w", transform=UTM, photometric="rgb", **profile) as target:
        target.write(np.moveaxis(synthesize(size, 0.5, seed).rgb, 2, 0))
    return path


def borders(tiles: TileGrid) -> tuple[np.ndarray, np.ndarray]:
    """Columns and rows where a tile begins or ends, those of the scene's frame left out."""
    lines = []
    for starts, length in ((tiles.cols, tiles.width), (tiles.rows, tiles.height)):
        ends = {*starts, *(start + tiles.size for start in starts)}
        lines.append(np.asarray(sorted(end for end in ends if 0 < end < length)))
    return lines[0], lines[1]


def across(shape: shapely.Geometry, lines: tuple[np.ndarray, np.ndarray]) -> bool:
    """Whether a shape, in pixels, has a line inside its bounds, by more than a pixel on both sides."""
    low, high = np.reshape(shape.bounds, (2, 2))
    return any(((at > low[axis] + 1) & (at < high[axis] - 1)).any() for axis, at in enumerate(lines))


def along(shape: shapely.Geometry, lines: tuple[np.ndarray, np.ndarray]) -> bool:
    """Whether an edge of a shape, in pixels, runs along a line for `STRAIGHT` or more."""
    for ring in shapely.get_rings(shapely.get_parts(shape)):
        corners = shapely.get_coordinates(ring)
        first, last = corners[:-1], corners[1:]
        for axis, at in enumerate(lines):
            off = np.maximum(*(np.abs(ends[:, axis, None] - at) for ends in (first, last)))
            long = np.abs(last - first)[:, 1 - axis] >= STRAIGHT
            if (off[long] <= NEAR).any():
                return True
    return False


def doubled(shapes: list[shapely.Geometry]) -> int:
    """Pairs of shapes of an IoU of `SAME` or more."""
    first, second = shapely.STRtree(shapes).query(shapes, predicate="intersects")
    pairs = [(shapes[a], shapes[b]) for a, b in zip(first.tolist(), second.tolist(), strict=True) if a < b]
    both = shapely.area(shapely.intersection(*np.array(pairs).T)) if pairs else np.zeros(0)
    areas = np.asarray([[a.area, b.area] for a, b in pairs]).reshape(-1, 2).sum(axis=1)
    return int((both >= SAME * (areas - both)).sum())


def measure(scene: Path, overlap: int, points: int, batch: int | None) -> str:
    """One row of the table."""
    asked = GridPrompts(points_per_side=points)
    plan = prepare(
        scene,
        Reading(),
        Networks(device="cpu", batch=batch),
        Parameters(method=asked, overlap=overlap, threads=1),
    )
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        found = run_segment(plan, Targets.of(Path(folder) / "segments.gpkg"), asked).segments
    seconds = time.perf_counter() - start
    back = ~plan.grid.transform
    to_pixels = [back.a, back.b, back.d, back.e, back.c, back.f]
    shapes = [affine_transform(shape, to_pixels) for shape in found.geometry]
    lines = borders(plan.segment_tiles)
    beside = tuple(at + BESIDE for at in lines)
    row = (
        overlap,
        len(plan.segment_tiles),
        len(shapes),
        int((found["n_tiles"] > 1).sum()),
        sum(across(shape, lines) for shape in shapes),
        sum(along(shape, lines) for shape in shapes),
        sum(along(shape, beside) for shape in shapes),
        doubled(shapes),
        f"{seconds:.0f} s",
    )
    return "| " + " | ".join(map(str, row)) + " |"


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=2048)
    parser.add_argument("--points", type=int, default=8)
    parser.add_argument("--overlaps", type=int, nargs="+", default=[0, 128])
    parser.add_argument("--seed", type=int, default=910_100)
    parser.add_argument("--batch", type=int, default=1)
    given = parser.parse_args()
    print("| overlap | tiles | segments | of several tiles | across | cut | straight beside | doubled | |")
    print("|" + "---|" * 9)
    with tempfile.TemporaryDirectory() as folder:
        scene = write_scene(Path(folder) / "scene.tif", given.size, given.seed)
        for overlap in given.overlaps:
            print(measure(scene, overlap, given.points, given.batch), flush=True)


if __name__ == "__main__":
    main()

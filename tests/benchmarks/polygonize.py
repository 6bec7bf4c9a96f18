"""Mask to polygons: this package against ``rasterio.features.shapes`` on the whole array, in one run.

Usage: python tests/benchmarks/polygonize.py [--size 8192] [--objects 2700] [--block-size 2048] [--noise 0]
       [--repeats 3] [--patch 4096 --scale 1.6]

Both get the same mask in memory and hand back shapely polygons in the coordinates of the scene. Times are CPU seconds,
the median of three runs in turn, on one thread. Peaks of memory are those of processes of their own that read the mask
from a file, with GDAL's cache fixed. `--noise` scatters single pixels over that share of the mask. `--patch` draws a
square of this side and lays it side by side, which makes a large mask in little time; `--scale` is the logarithm of the
size of a usual blob. Half a million components at 32768 px: ``--size 32768 --objects 500000 --patch 4096 --scale 2``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyproj
import rasterio
import rasterio.features
import shapely
from affine import Affine
from scipy import ndimage

from geolabel.extraction.vectorize import find_objects, vectorize
from geolabel.io.read.scores import ScoreRaster
from geolabel.io.write.rasters import write_cog
from geolabel.masks import EDGE
from geolabel.mosaic import Layers
from geolabel.polygons import outlines
from geolabel.scene import Grid
from geolabel.tiles import BlockGrid

REPEATS = 3
CACHE_BYTES = 64 << 20
TRANSFORM = Affine(0.5, 0, 400000, 0, -0.5, 3000000)


class Scores:
    """A mosaic of scores in an array or a memory map."""

    def __init__(self, whole):
        self.whole = whole

    def scores(self, window):
        return np.asarray(self.whole[window.slices])

    def read(self, window, spans):
        return Layers(self.scores(window))


def patched_scores(size, objects, noise, patch, scale):
    """The same patch side by side, with a line of background around it."""
    count = size // patch
    inner = landslide_scores(patch, objects // count**2, noise, scale)
    inner[0] = inner[:, 0] = 0
    return np.tile(inner, (count, count))


def landslide_scores(size, objects, noise, scale=3.2):
    """Blobs with rough outlines, most of them small, as scores; about `objects` components."""
    rng = np.random.default_rng(0)
    scores = np.zeros((size, size), np.uint8)
    while True:
        for _ in range(objects // 10):
            half = int(np.clip(rng.lognormal(scale, 0.6), 4, 200))
            rough = ndimage.gaussian_filter(rng.standard_normal((2 * half, 2 * half)), max(1, half / 8))
            y, x = np.mgrid[-1 : 1 : 2j * half, -1 : 1 : 2j * half]
            blob = 1 - 1.6 * np.hypot(y, 2 * x) + 0.35 * rough / rough.std() > 0
            row, col = rng.integers(0, size - 2 * half, 2)
            scores[row : row + 2 * half, col : col + 2 * half][blob] = 200
        if ndimage.label(scores)[1] >= objects:
            break
    if noise:
        scores[rng.random(scores.shape) < noise] = 200
    return scores


def with_rasterio(scores):
    mask = scores >= EDGE
    shapes = rasterio.features.shapes(mask.astype(np.uint8), mask=mask, connectivity=4, transform=TRANSFORM)
    return np.array([shapely.geometry.shape(geometry) for geometry, _ in shapes], object)


def with_geolabel(mosaic, blocks, threshold):
    objects = find_objects(mosaic, blocks, threshold=threshold)
    parts = [outlines(part.spans, part.labels, part.count, TRANSFORM) for part in objects.batches()]
    return np.concatenate(parts)


def everything(scores, blocks):
    """As extract does it: cleaned, simplified, with attributes."""
    grid = Grid(pyproj.CRS("EPSG:32648"), TRANSFORM, *scores.shape)
    return vectorize(
        Scores(scores),
        grid,
        blocks,
        threshold=EDGE,
        min_area_px=50,
        max_hole_px=50,
        simplify_px=0.75,
    )


def timed(function, *arguments):
    start = time.process_time()
    result = function(*arguments)
    return time.process_time() - start, result


def peak_mb(path, name, block_size):
    """Peak memory of a process of its own, less what it has after its imports."""
    command = [sys.executable, __file__, "--peak", name, str(path), "--block-size", str(block_size)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def print_peak(path, name, block_size):
    with rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES):
        before = resident_peak_mb()
        if name == "rasterio":
            with rasterio.open(path) as file:
                with_rasterio(file.read(1))
        else:
            source = ScoreRaster(path)
            with_geolabel(source, BlockGrid(source.grid.height, source.grid.width, block_size), source.level)
        print(resident_peak_mb() - before)


def resident_peak_mb():
    # not getrusage, whose peak a child inherits
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) // 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=8192)
    parser.add_argument("--objects", type=int, default=2700)
    parser.add_argument("--block-size", type=int, default=2048)
    parser.add_argument("--noise", type=float, default=0)
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--patch", type=int)
    parser.add_argument("--scale", type=float, default=3.2)
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        name, path = options.peak
        print_peak(path, name, options.block_size)
        return
    given = (options.size, options.objects, options.noise)
    scores = patched_scores(*given, options.patch, options.scale) if options.patch else landslide_scores(*given)
    blocks = BlockGrid(*scores.shape, options.block_size)
    theirs, ours, all_ours = [], [], []
    for _ in range(options.repeats):
        seconds, expected = timed(with_rasterio, scores)
        theirs.append(seconds)
        seconds, found = timed(with_geolabel, Scores(scores), blocks, EDGE)
        ours.append(seconds)
        all_ours.append(timed(everything, scores, blocks)[0])
    expected = np.sort(shapely.to_wkb(shapely.normalize(expected)))
    parts = np.sort(shapely.to_wkb(shapely.normalize(shapely.get_parts(found))))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scores.tif"
        grid = Grid(pyproj.CRS("EPSG:32648"), TRANSFORM, *scores.shape)
        write_cog(path, [(grid.window, scores)], grid, nodata=None, kind="score")
        peaks = {name: peak_mb(path, name, options.block_size) for name in ("rasterio", "geolabel")}
    medians = [statistics.median(values) for values in (theirs, ours, all_ours)]
    print(
        json.dumps(
            {
                "size": options.size,
                "polygons": len(found),
                "equal": len(parts) == len(expected) and bool((parts == expected).all()),
                "rasterio_seconds": round(medians[0], 3),
                "geolabel_seconds": round(medians[1], 3),
                "ratio": round(medians[1] / medians[0], 2),
                "cleaned_with_attributes_seconds": round(medians[2], 3),
                "cleaned_with_attributes_ratio": round(medians[2] / medians[0], 2),
                "rasterio_peak_mb": peaks["rasterio"],
                "geolabel_peak_mb": peaks["geolabel"],
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()

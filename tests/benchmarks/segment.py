"""Everything mode against segment-anything's own mask generator, called tile by tile with the same network.

Usage: python tests/benchmarks/segment.py [--size 4096] [--points 32] [--sam-checkpoint FILE] [--tiles 4]
       [--predicted-iou 0.25] [--stability 0.15] [--device cpu] [--batch 1]

tile by tile
    The generator and `EverythingSegmenter` in turn on the same tiles, spread over the scene, with the same thresholds:
    seconds of both (of one processor, without a GPU), and whether the masks are the same.
whole scene
    ``geolabel segment`` from the file to the GeoPackage: seconds, segments, peak memory of the process. Left out with
    ``--no-scene``.
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("GDAL_CACHEMAX", "64")

import numpy as np
import torch
from extract import make_scene
from segment_anything import SamAutomaticMaskGenerator

from geolabel.engine import worker
from geolabel.extraction.outputs import Targets
from geolabel.extraction.plan import Plan
from geolabel.extraction.request import Networks, Parameters, Reading
from geolabel.extraction.scene_groups import prepare
from geolabel.extraction.segment import GridPrompts, run_segment
from geolabel.masks import Filters
from geolabel.models import loading
from geolabel.prompters import GridPrompter


def tile_by_tile(plan: Plan, points: int, count: int) -> None:
    """Print the seconds of both and what differs."""
    filters = plan.segmenter.filters
    assert isinstance(filters, Filters)
    ours = worker.segmenter(plan.segmenter)
    generator = SamAutomaticMaskGenerator(
        loading.load(loading.with_engine(plan.segmenter, "torch"))._network.sam,
        points_per_side=points,
        pred_iou_thresh=filters.predicted_iou,
        stability_score_thresh=filters.stability,
        box_nms_thresh=filters.duplicate,
    )
    clock = time.process_time if plan.segmenter.device == "cpu" else time.perf_counter  # a busy machine changes neither
    chosen = np.unique(np.linspace(0, len(plan.segment_tiles) - 1, count).astype(int))
    images = [plan.stretch.apply(*plan.reader.read(plan.segment_tiles[k], plan.grid)) for k in chosen]
    grids = [GridPrompter(points).over(*image.shape[:2]) for image in images]
    with torch.inference_mode():
        start = clock()
        expected = [generator.generate(image) for image in images]
        theirs_s = clock() - start
    start = clock()
    found = ours(images, grids)
    ours_s = clock() - start
    pairs = list(zip(found, expected, strict=True))
    differing = sum(
        (mask != one["segmentation"]).mean()
        for masks, ones in pairs
        for mask, one in zip(masks.binary, ones, strict=False)
    )
    print(
        f"{len(images)} tiles: generator {theirs_s:.1f} s, ours {ours_s:.1f} s, ratio {theirs_s / ours_s:.2f}; masks "
        f"{[len(ones) for _, ones in pairs]} and {[len(masks) for masks, _ in pairs]}, "
        f"sum of the shares of pixels that differ {differing:.2e}"
    )


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--points", type=int, default=32)
    parser.add_argument("--tiles", type=int, default=4)
    parser.add_argument("--sam", default="bundled")
    parser.add_argument("--sam-checkpoint")
    parser.add_argument("--predicted-iou", type=float)
    parser.add_argument("--stability", type=float)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--no-scene", action="store_true")
    given = parser.parse_args()
    everything = GridPrompts(points_per_side=given.points, predicted_iou=given.predicted_iou, stability=given.stability)
    networks = Networks(sam=given.sam, sam_checkpoint=given.sam_checkpoint, device=given.device, batch=given.batch)
    with tempfile.TemporaryDirectory() as folder:
        scene = make_scene(Path(folder), given.size)
        plan = prepare(scene, Reading(), networks, Parameters(method=everything))
        tile_by_tile(plan, given.points, given.tiles)
        if given.no_scene:
            return
        start = time.perf_counter()
        found = run_segment(plan, Targets.of(Path(folder) / "segments.gpkg"), everything)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(
            f"{given.size} px: {time.perf_counter() - start:.1f} s, {len(found.segments)} segments of "
            f"{found.report.masks} masks in {found.report.windows} tiles, peak {peak:.0f} MiB, {found.report.seconds}"
        )


if __name__ == "__main__":
    main()

"""S2C over scenes: every place where a landslide is likely is asked about by the peaks of its activation.

Eq. 7 to 11 of the paper, with a component of the thresholded, blended activation in the place of an image. All peaks of
a component ask for one mask, and a mask counts if its stability times its mean activation is high enough. What comes
out depends on no tile and no block.

Source: Kweon and Yoon (2024), "From SAM to CAMs".
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

from geolabel.activation import LEVELS
from geolabel.engine.tasks import Pass
from geolabel.extraction.activation_maps import blend_activation, reach
from geolabel.extraction.passes import MaskTable, where_block
from geolabel.extraction.plan import Run
from geolabel.masks import EDGE
from geolabel.prompters import PeakPrompter
from geolabel.prompts import FOREGROUND, PADDING, Prompts
from geolabel.seams import Spans
from geolabel.tiles import Window
from geolabel.types import BoolArray, Float32Array, Float64Array, Int32Array, Int64Array, UInt8Array

if TYPE_CHECKING:
    from geolabel.extraction.work import Work

POINTS = 16
"""Most points of a prompt, the highest of the object's: more tell the segmenter nothing new."""


def peak_prompts(work: Work, regions: Sequence[tuple[Spans, Int32Array, Float32Array]]) -> Prompts:
    """One prompt per component, with a point on each of its peaks, the highest first; the classes in their order.

    Parameters
    ----------
    regions
        Of each class, see `geolabel.extraction.pipeline.join_regions`.
    """
    blocks = len(work.run.plan.blocks)
    found = list(work.each(PEAKS, work.run.plan.layers))
    return Prompts.concatenate(
        [
            _of_class(c, np.concatenate(found[c * blocks : (c + 1) * blocks]), *region)
            for c, region in enumerate(regions)
        ]
    )


def _of_class(class_id: int, found: Int64Array, spans: Spans, labels: Int32Array, probability: Float32Array) -> Prompts:
    """Prompts of the components of one class, from its peaks (N, 3)."""
    holding = spans.holding(found[:, 0], found[:, 1])
    owner = np.where(holding < 0, -1, np.append(labels, -1)[holding])
    found, owner = found[owner >= 0], owner[owner >= 0]
    order = np.lexsort((found[:, 1], found[:, 0], -found[:, 2], owner))
    found, owner = found[order], owner[order]
    present, first = np.unique(owner, return_index=True)
    rank = np.arange(len(owner)) - first[np.searchsorted(present, owner)]
    kept = rank < POINTS
    most = int(rank[kept].max(initial=-1)) + 1
    points = np.zeros((len(present), most, 2), np.float64)
    kinds = np.full((len(present), most), PADDING, np.int8)
    place = np.searchsorted(present, owner[kept]), rank[kept]
    points[place] = found[kept][:, [1, 0]]
    kinds[place] = FOREGROUND
    class_ids = np.full(len(present), class_id, np.int32)
    return Prompts.build(points=points, labels=kinds, scores=probability[present], class_ids=class_ids)


def peaks(run: Run, job: tuple[int, int]) -> Int64Array:
    """(N, 3) row, col and grey value of the peaks of a class in a block; the job names both.

    A peak is the highest of all within a distance, and high enough. Where several are highest, the first in raster
    order is the peak.
    """
    block, class_id = job
    plan = run.plan
    window = plan.blocks[block]
    distance = peak_distance(plan.localize_tiles.size)
    grid = plan.grid
    row, col = max(0, window.row - distance), max(0, window.col - distance)
    bottom, right = min(grid.height, window.bottom + distance), min(grid.width, window.right + distance)
    around = Window(row, col, bottom - row, right - col)
    threshold = plan.parameters.activation_threshold
    grey = blend_activation(run, around, class_id, partial(reach, threshold))
    # no two pixels of the scene have the same key, and doubles hold it exactly
    pixel = (np.arange(around.row, around.bottom)[:, None] * grid.width + np.arange(around.col, around.right)).astype(
        np.float64
    )
    pixels = float(grid.height * grid.width)
    key = np.where(grey > threshold, grey * pixels + (pixels - 1 - pixel), -1.0)
    highest = ndimage.maximum_filter(key, size=2 * distance + 1, mode="constant", cval=-1)
    rows, cols = np.nonzero((key == highest) & (key >= 0))
    inside = window.within(around)
    own = (rows >= inside[0].start) & (rows < inside[0].stop) & (cols >= inside[1].start) & (cols < inside[1].stop)
    rows, cols = rows[own], cols[own]
    return np.stack([rows + around.row, cols + around.col, grey[rows, cols].astype(np.int64)], axis=1)


PEAKS = Pass("peaks", peaks, Int64Array, where_block)


def peak_distance(side: int) -> int:
    """Least distance in pixels of two peaks in an image of that side, as `PeakPrompter` has it."""
    return max(1, round(PeakPrompter().distance * min(side, 256)))


def confident(work: Work, tables: Sequence[MaskTable]) -> list[BoolArray]:
    """Which masks of every task have a stability times mean activation (eq. 9 and 10) of at least tau (eq. 11)."""
    active = list(work.each(WEIGH, list(enumerate(tables))))
    tau = work.run.plan.parameters.confidence
    assert tau is not None  # see `Networks.settled`
    return [np.asarray(table.stability * mean >= tau) for table, mean in zip(tables, active, strict=True)]


def mean_activation(run: Run, job: tuple[int, MaskTable]) -> Float32Array:
    """(M,) mean activation 0..1 over each mask of a segmentation task (eq. 9)."""
    task, table = job
    record = run.store.read("segment", task)
    sizes = table.windows[:, 2] * table.windows[:, 3]
    crops: list[UInt8Array] = np.split(record["scores"], np.cumsum(sizes)[:-1])
    means: Float64Array = np.zeros(len(table.windows))
    rows = zip(table.windows.tolist(), table.class_ids.tolist(), crops, strict=False)
    for k, (window, class_id, scores) in enumerate(rows):
        place = Window(*window)
        inside = scores.reshape(place.height, place.width) >= EDGE
        if inside.any():
            means[k] = blend_activation(run, place, class_id, lambda patch, _: patch)[inside].mean() / LEVELS
    return means.astype(np.float32)


WEIGH = Pass("weigh", mean_activation, Float32Array)

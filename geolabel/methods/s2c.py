"""S2C: peaks of the class activation prompt a segmenter, and masks are weighted by their confidence.

Source: Kweon and Yoon (2024), "From SAM to CAMs: Exploring Segment Anything Model for Weakly Supervised Semantic
Segmentation". Its equations and where they are:

* eq. 1 to 4, classification: `geolabel.models.nets.classifier`, `geolabel.training.image_labels`
* eq. 5 and 6, contrast of segments: `geolabel.training.s2c.segment_contrast`
* eq. 7 and 8, peaks and their masks: `geolabel.prompters.PeakPrompter`
* eq. 9 to 11, confidence: `geolabel.labelers.ConfidenceLabeler`
* eq. 12 and 13, cross-entropy with a background: `geolabel.training.s2c.prompted_mask_loss`

The paper uses the segmenter in training only, and thresholds the map afterwards. Here the same pipeline labels chips,
since a student learns from masks with edges; ``geolabel label --method cism`` thresholds a map.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from scipy import ndimage

from geolabel.activation import LEVELS
from geolabel.engine import worker
from geolabel.engine.tasks import Pass, Progress
from geolabel.errors import OptionError
from geolabel.extraction import request
from geolabel.extraction.activation_maps import blend_activation, reach
from geolabel.extraction.passes import MaskTable, where_block
from geolabel.extraction.pipeline import join_regions
from geolabel.extraction.plan import Run
from geolabel.extraction.request import Networks, SceneMethod
from geolabel.labelers import ConfidenceLabeler
from geolabel.masks import EDGE
from geolabel.models.defaults import SegmenterDefaults, segmenter_defaults
from geolabel.models.sam import FittingSegmenter
from geolabel.parts import Localizer, Pipeline, Recipe, Segmenter
from geolabel.prompters import PeakPrompter
from geolabel.prompts import FOREGROUND, PADDING, Prompts
from geolabel.settings.methods import S2cChips, S2cScenes
from geolabel.spans import Spans
from geolabel.tiles import Window
from geolabel.types import BoolArray, Float32Array, Float64Array, Int32Array, Int64Array, UInt8Array

if TYPE_CHECKING:
    from geolabel.extraction.work import Work


Settings = S2cChips


def pipeline(localizer: Localizer, segmenter: Segmenter, settings: Settings) -> Pipeline:
    """The method, for chips that localizer and segmenter process as a whole."""
    return Pipeline(
        localizer,
        PeakPrompter(single=settings.single_peak),
        FittingSegmenter(segmenter),
        ConfidenceLabeler(SegmenterDefaults.confidence if settings.confidence is None else settings.confidence),
    )


def compose(segmenter: Recipe, settings: Settings, localizer: Localizer) -> Pipeline:
    """The method with the segmenter of a recipe, in any process."""
    return pipeline(localizer, worker.segmenter(segmenter), settings)


def label(
    chips: Path, out: Path, settings: Settings, networks: Networks, *, overwrite: bool, progress: Progress
) -> dict[str, Any]:
    """Label a folder of chips; see `geolabel.methods.Label`."""
    from geolabel.labeling.label import label_chips

    if settings.confidence is None:
        settings = replace(settings, confidence=segmenter_defaults(networks.sam).confidence)
    recipes = replace(networks, localizer=settings.localizer or networks.localizer).for_images(settings.selection)
    request.check_trained(recipes[0], "s2c")
    method = partial(compose, recipes[1], settings)
    return label_chips(chips, out, "s2c", settings, recipes, method, overwrite=overwrite, progress=progress)


@dataclass(frozen=True)
class Scenes(S2cScenes, SceneMethod):
    """The method over scenes: every region of activation is prompted with the peaks of its activation.

    A component of the thresholded, blended activation corresponds to an image. All peaks of a component prompt for one
    mask, and a mask is used if its stability times its mean activation is high enough. The result does not depend on
    tiles or blocks.
    """

    name = "s2c"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prompts == "box":
            raise OptionError("prompts box: the method s2c prompts with points, not boxes; leave it out")

    def with_defaults(self, networks: Networks) -> Self:
        """With the tau of the segmenter."""
        if self.confidence is not None:
            return self
        return replace(self, confidence=segmenter_defaults(networks.sam).confidence)

    def recipes(self, networks: Networks) -> tuple[Recipe, Recipe]:
        """With a localizer that was trained for the method."""
        localizer, segmenter = networks.recipes(self.selection)
        request.check_trained(localizer, self.name)
        return localizer, segmenter

    def find_prompts(self, work: Work) -> Prompts:
        """A point on each peak of every region."""
        return peak_prompts(work, join_regions(work))

    def counts(self, work: Work, masks: Sequence[MaskTable]) -> list[BoolArray]:
        """Masks whose stability times mean activation (eq. 9 and 10) is at least tau (eq. 11)."""
        if not work.run.localized:  # all prompts were drawn by a person
            return super().counts(work, masks)
        active = list(work.each(WEIGH, list(enumerate(masks))))
        assert self.confidence is not None  # see `with_defaults`
        return [
            np.asarray(table.stability * mean >= self.confidence) for table, mean in zip(masks, active, strict=True)
        ]


POINTS = 16
"""Maximum points of a prompt, the highest of the object's: more add little."""


def peak_prompts(work: Work, regions: Sequence[tuple[Spans, Int32Array, Float32Array]]) -> Prompts:
    """One prompt per component, with a point on each of its peaks, the highest first; ordered by class.

    Parameters
    ----------
    regions
        Regions of each class, see `geolabel.extraction.pipeline.join_regions`.
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

    A peak is the maximum within a distance, and high enough. Ties go to the first in raster order.
    """
    block, class_id = job
    plan = run.plan
    window = plan.blocks[block]
    distance = peak_distance(plan.localize_tiles.size)
    grid = plan.grid
    row, col = max(0, window.row - distance), max(0, window.col - distance)
    bottom, right = min(grid.height, window.bottom + distance), min(grid.width, window.right + distance)
    around = Window(row, col, bottom - row, right - col)
    threshold = plan.method.activation_threshold
    grey = blend_activation(run, around, class_id, partial(reach, threshold))
    # keys are unique for all pixels of the scene, and exact in double precision
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
    """Minimum distance in pixels of two peaks in an image of that side, as in `PeakPrompter`."""
    return max(1, round(PeakPrompter().distance * min(side, 256)))


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

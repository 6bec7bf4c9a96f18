"""Scores without a segmenter: the localizer's maps, blended over the tiles, are the mosaic.

A student scores every pixel with the probability of the class. CISM's score is its activation, and counts only where
the class is likely in some window around it, since an activation map alone cannot say that a class is absent.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from geolabel import mosaic
from geolabel.activation import LEVELS
from geolabel.engine.tasks import Pass
from geolabel.extraction.activation_maps import blend_activation, class_probability, reach, validity
from geolabel.extraction.passes import MosaicSource, where_block
from geolabel.extraction.plan import Run
from geolabel.masks import FULL
from geolabel.mosaic import Layers
from geolabel.seams import Spans
from geolabel.tiles import Window
from geolabel.types import UInt8Array

if TYPE_CHECKING:
    from geolabel.extraction.work import Work


def merge(work: Work) -> None:
    """Pass 2, the last: the mosaic of every block."""
    for _ in work.each(SCORE, work.run.plan.layers):
        pass


def score(run: Run, job: tuple[int, int]) -> bool:
    """Write the mosaic of a class in a block. False for nothing: a block without a record has score 0 everywhere."""
    block, class_id = job
    window = run.plan.blocks[block]
    grey = blend_activation(run, window, class_id, partial(reach, 0))
    if run.plan.parameters.method != "student":
        likely = class_probability(run, window, class_id, grey > 0) >= run.plan.parameters.gate * LEVELS
        grey = np.where(likely, grey, np.uint8(0))
    valid = validity(run, window)
    if valid is None and not grey.any():
        return False
    scores = to_scores(grey)
    scores = scores if valid is None else mosaic.mark_outside(scores, valid)
    run.store.write("mosaic", run.plan.layer(block, class_id), {"scores": scores})
    return True


SCORE = Pass("merge", score, bool, where_block, pixels="mosaic")


def to_scores(grey: UInt8Array) -> UInt8Array:
    """(H, W) scores 0..254 of grey values 0..255: one half, between 127 and 128, stays between 126 and 127."""
    table: UInt8Array = np.floor(np.arange(LEVELS + 1) * (FULL / LEVELS)).astype(np.uint8)
    return table[grey]


class DenseSource(MosaicSource):
    """The finished mosaic: scores, and no mask behind them."""

    def read(self, window: Window, spans: Spans) -> Layers:  # noqa: ARG002
        """The scores alone."""
        return Layers(self.scores(window))

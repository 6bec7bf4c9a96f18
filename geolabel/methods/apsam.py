"""APSAM: contours of the class activation prompt a segmenter, whose masks are merged.

Source: Wang et al. (2025), "Auto-Prompting SAM for Weakly Supervised Landslide Extraction". Its equations and where
they are:

* eq. 1, class activation: `geolabel.models.nets.classifier`, `geolabel.activation.normalise`
* eq. 2 to 8, threshold, contours, boxes and centroids: `geolabel.prompters.ContourPrompter`
* eq. 9, masks: `geolabel.models.sam`; which of three candidates to use is left open, see `PAPER`
* algorithm 1, chips without a landslide are skipped: `geolabel.labeling.label`
* retraining: `geolabel.training.students`

Over scenes the same is done block by block, see `Scenes`; it is the default method there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from geolabel.activation import Activation
from geolabel.engine import worker
from geolabel.engine.tasks import Progress
from geolabel.extraction.request import ContourMethod, Networks
from geolabel.labelers import AgreedLabeler, UnionLabeler
from geolabel.models.defaults import segmenter_defaults
from geolabel.models.sam import FittingSegmenter
from geolabel.parts import Labeler, Localizer, Pipeline, Recipe, Segmenter
from geolabel.prompters import ContourPrompter
from geolabel.prompts import Prompts
from geolabel.settings.methods import ApsamChips

Settings = ApsamChips

PAPER = Settings(selection="best_iou", agreed=False)
"""Every pixel gets a label; the paper does not state which candidate is used."""


def with_defaults(settings: Settings, networks: Networks) -> Settings:
    """The settings with the segmenter's defaults for None; see `geolabel.models.defaults`."""
    suits = segmenter_defaults(networks.sam)
    selection = suits.selection if settings.selection is None else settings.selection
    return replace(settings, selection=selection, agreed=suits.agreed if settings.agreed is None else settings.agreed)


@dataclass(frozen=True)
class AskedPrompter:
    """Contours, restricted to boxes, points or both (the paper's Table II)."""

    contours: ContourPrompter
    kind: Literal["box", "point", "both"] = "both"

    def __call__(self, activation: Activation) -> Prompts:
        """Prompts of one image."""
        return self.contours(activation).only(self.kind)


def pipeline(localizer: Localizer, segmenter: Segmenter, settings: Settings) -> Pipeline:
    """The method, for chips that localizer and segmenter process as a whole."""
    contours = ContourPrompter(settings.activation_threshold)
    labeler: Labeler = AgreedLabeler() if settings.agreed else UnionLabeler()
    return Pipeline(localizer, AskedPrompter(contours, settings.prompts), FittingSegmenter(segmenter), labeler)


def compose(segmenter: Recipe, settings: Settings, localizer: Localizer) -> Pipeline:
    """The method with the segmenter of a recipe, in any process."""
    return pipeline(localizer, worker.segmenter(segmenter), settings)


def label(
    chips: Path, out: Path, settings: Settings, networks: Networks, *, overwrite: bool, progress: Progress
) -> dict[str, Any]:
    """Label a folder of chips; see `geolabel.methods.Label`."""
    from geolabel.labeling.label import label_chips

    settings = with_defaults(settings, networks)
    chosen = replace(networks, localizer=settings.localizer or networks.localizer)
    recipes = chosen.for_images(settings.selection or "best_iou")
    method = partial(compose, recipes[1], settings)
    return label_chips(chips, out, "apsam", settings, recipes, method, overwrite=overwrite, progress=progress)


Scenes = ContourMethod
"""The method over scenes."""

"""S2C: peaks of the class activation ask a segmenter, and masks count by their confidence.

Source: Kweon and Yoon (2024), "From SAM to CAMs: Exploring Segment Anything Model for Weakly Supervised Semantic
Segmentation". Its equations and where they are:

* eq. 1 to 4, classification: `geolabel.models.nets.classifier`, `geolabel.training.image_labels`
* eq. 5 and 6, contrast of segments: `geolabel.training.s2c.segment_contrast`
* eq. 7 and 8, peaks and their masks: `geolabel.prompters.PeakPrompter`
* eq. 9 to 11, confidence: `geolabel.labelers.ConfidenceLabeler`
* eq. 12 and 13, cross-entropy with a background: `geolabel.training.s2c.prompted_mask_loss`

The paper asks the segmenter in training only, and thresholds the map afterwards. Here the same pipeline labels chips,
since a student learns from masks with edges; ``geolabel label --method cism`` thresholds a map.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from geolabel.engine import worker
from geolabel.engine.progress import Progress
from geolabel.extraction.request import TAU, Networks
from geolabel.labelers import ConfidenceLabeler
from geolabel.labeling.label_chips import label_chips
from geolabel.masks import Selection
from geolabel.models.sam import FittingSegmenter
from geolabel.parts import Localizer, Recipe, Segmenter
from geolabel.pipeline import Pipeline
from geolabel.prompters import PeakPrompter


@dataclass(frozen=True)
class Settings:
    """Choices of the method; the defaults are the paper's, but for the mask, where it is the released code's."""

    localizer: str = "bundled"
    confidence: float | None = None
    """Least stability times mean activation of a mask that counts: the tau of eq. 11. None for what suits its network,
    `geolabel.extraction.request.Networks.usual_confidence`."""
    single_peak: bool = False
    selection: Selection = "whole"
    single_scale: bool = False
    """One view of a chip, in place of four scales and mirrored ones."""
    class_name: str = "landslide"


def pipeline(localizer: Localizer, segmenter: Segmenter, settings: Settings) -> Pipeline:
    """The method, for chips that the localizer and the segmenter see whole."""
    return Pipeline(
        localizer,
        PeakPrompter(single=settings.single_peak),
        FittingSegmenter(segmenter),
        ConfidenceLabeler(TAU if settings.confidence is None else settings.confidence),
    )


def compose(segmenter: Recipe, settings: Settings, localizer: Localizer) -> Pipeline:
    """The method with the segmenter of a recipe, in whatever process it labels."""
    return pipeline(localizer, worker.segmenter(segmenter), settings)


def label(
    chips: Path, out: Path, settings: Settings, networks: Networks, *, overwrite: bool, progress: Progress
) -> dict[str, Any]:
    """Label a folder of chips; see `geolabel.methods.Label`."""
    if settings.confidence is None:
        settings = replace(settings, confidence=networks.usual_confidence)
    recipes = networks.with_localizer(settings.localizer).recipes_for("s2c", settings.selection)
    method = partial(compose, recipes[1], settings)
    return label_chips(chips, out, "s2c", settings, recipes, method, overwrite=overwrite, progress=progress)

"""CISM: the class activation of a network that learned in pairs of images is thresholded; no segmenter takes part.

Source: Zhou et al. (2023), "Weakly Supervised Semantic Segmentation in Aerial Imagery via Cross-Image Semantic Mining".
Its equations and where they are:

* eq. 1 to 17, prototypes, similarity, class vectors: `geolabel.trainers.cism`
* eq. 18 to 27, losses: `geolabel.trainers.weak_cism`
* the last step, pixels to classes: `geolabel.labelers.ThresholdLabeler`

With one class, the secondary classification is void and all images are of one group; common and non-common semantics
still compare images. Several classes are what the method is for.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from geolabel.activation import LEVELS
from geolabel.labelers import ThresholdLabeler
from geolabel.parts import Localizer, NoMasks, NoPrompts
from geolabel.pipeline import Pipeline
from geolabel.run.activated import label_chips
from geolabel.run.report import Progress
from geolabel.run.request import Networks


@dataclass(frozen=True)
class Settings:
    """Choices of the method."""

    localizer: str = "bundled"
    activation_threshold: int = 102
    """Grey value that activation has to exceed: 0.4 of its maximum."""
    single_scale: bool = False
    """One view of a chip, in place of four scales and mirrored ones."""
    class_name: str = "landslide"


def pipeline(localizer: Localizer, settings: Settings) -> Pipeline:
    """The method, for chips that the localizer sees whole."""
    return Pipeline(localizer, NoPrompts(), NoMasks(), ThresholdLabeler(settings.activation_threshold / LEVELS))


def label(
    chips: Path, out: Path, settings: Settings, networks: Networks, *, overwrite: bool, progress: Progress
) -> dict[str, Any]:
    """Label a folder of chips; see `geolabel.methods.Label`."""
    recipe, _ = networks.with_localizer(settings.localizer).recipes()
    return label_chips(
        chips, out, "cism", settings, [recipe], lambda localizer: pipeline(localizer, settings),
        overwrite=overwrite, progress=progress,
    )  # fmt: skip

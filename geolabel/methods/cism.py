"""CISM: the class activation of a network that learned in pairs of images is thresholded; no segmenter takes part.

Source: Zhou et al. (2023), "Weakly Supervised Semantic Segmentation in Aerial Imagery via Cross-Image Semantic Mining".
Its equations and where they are:

* eq. 1 to 17, prototypes, similarity, class vectors: `geolabel.training.cism`
* eq. 18 to 27, losses: `geolabel.training.cism`
* the last step, dense CRF, where it is asked for, and pixels to classes: `geolabel.models.refined`,
  `geolabel.labelers.ThresholdLabeler`

With one class, the secondary classification is void and all images are of one group; common and non-common semantics
still compare images. Several classes are what the method is for.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from geolabel.activation import LEVELS
from geolabel.engine.progress import Progress
from geolabel.errors import OptionError
from geolabel.extraction.request import Networks
from geolabel.labelers import ThresholdLabeler
from geolabel.labeling.label_chips import label_chips
from geolabel.models.refined import RefinedLocalizer
from geolabel.parts import Localizer, NoMasks, NoPrompts
from geolabel.pipeline import Pipeline


@dataclass(frozen=True)
class Settings:
    """Choices of the method."""

    localizer: str = "bundled"
    activation_threshold: int = 102
    """Grey value that activation has to exceed: 0.4 of its maximum."""
    crf: bool = False
    """Whether a dense CRF draws the maps along the edges of the chip, as the paper does; the threshold is then the
    background's activation. It takes seconds a chip, and 400 bytes a pixel."""
    single_scale: bool = False
    """One view of a chip, in place of four scales and mirrored ones."""
    class_name: str = "landslide"


def pipeline(localizer: Localizer, settings: Settings, device: str = "cpu") -> Pipeline:
    """The method, for chips that the localizer sees whole; the CRF runs on `device`.

    Raises
    ------
    OptionError
        If there is a CRF and no threshold: it needs a background.
    """
    threshold = settings.activation_threshold / LEVELS
    if settings.crf and not threshold:
        raise OptionError("a dense CRF of the map needs a background: give an --activation-threshold above 0")
    if settings.crf:
        localizer = RefinedLocalizer(localizer, threshold, jointly=True, device=device)
    return Pipeline(localizer, NoPrompts(), NoMasks(), ThresholdLabeler(threshold))


def label(
    chips: Path, out: Path, settings: Settings, networks: Networks, *, overwrite: bool, progress: Progress
) -> dict[str, Any]:
    """Label a folder of chips; see `geolabel.methods.Label`."""
    recipe, _ = networks.with_localizer(settings.localizer).recipes_for("cism")
    method = partial(pipeline, settings=settings, device=recipe.device)
    return label_chips(chips, out, "cism", settings, [recipe], method, overwrite=overwrite, progress=progress)

"""CISM: the thresholded class activation of a network trained on pairs of images, without a segmenter.

Source: Zhou et al. (2023), "Weakly Supervised Semantic Segmentation in Aerial Imagery via Cross-Image Semantic Mining".
Its equations and where they are:

* eq. 1 to 17, prototypes, similarity, class vectors: `geolabel.training.cism`
* eq. 18 to 27, losses: `geolabel.training.cism`
* the last step, optional dense CRF, and pixels to classes: `geolabel.models.refinement`,
  `geolabel.labelers.ThresholdLabeler`

With one class, the training adds a second one, the ground around it; see `geolabel.training.cism.OTHER`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from geolabel.activation import LEVELS
from geolabel.engine.tasks import Progress
from geolabel.errors import OptionError
from geolabel.extraction import request
from geolabel.extraction.activation_maps import likely_activation
from geolabel.extraction.plan import Run
from geolabel.extraction.request import Networks, SceneMethod
from geolabel.labelers import ThresholdLabeler
from geolabel.parts import Localizer, NoMasks, NoPrompts, NoSegmenterRecipe, Pipeline, Recipe
from geolabel.settings.methods import CismChips, CismScenes
from geolabel.tiles import Window
from geolabel.types import UInt8Array

Settings = CismChips


def pipeline(localizer: Localizer, settings: Settings, device: str = "cpu") -> Pipeline:
    """The method, for chips that the localizer processes as a whole; the CRF runs on `device`.

    Raises
    ------
    OptionError
        If there is a CRF but no threshold, which it needs for the background.
    """
    threshold = settings.activation_threshold / LEVELS
    if settings.crf and not threshold:
        raise OptionError("a dense CRF of the map needs a background: give an --activation-threshold above 0")
    if settings.crf:
        from geolabel.models.refinement import RefinedLocalizer

        localizer = RefinedLocalizer(localizer, threshold, jointly=True, device=device)
    return Pipeline(localizer, NoPrompts(), NoMasks(), ThresholdLabeler(threshold))


def label(
    chips: Path, out: Path, settings: Settings, networks: Networks, *, overwrite: bool, progress: Progress
) -> dict[str, Any]:
    """Label a folder of chips; see `geolabel.methods.Label`."""
    from geolabel.labeling.label import label_chips

    networks.refuse(NO_SEGMENTER, "sam", "sam_checkpoint", "compile")
    recipe, _ = replace(networks, localizer=settings.localizer or networks.localizer).for_images()
    request.check_trained(recipe, "cism")
    method = partial(pipeline, settings=settings, device=recipe.device)
    return label_chips(chips, out, "cism", settings, [recipe], method, overwrite=overwrite, progress=progress)


NO_SEGMENTER = "--method cism uses no segmenter"


@dataclass(frozen=True)
class Scenes(CismScenes, SceneMethod):
    """The method over scenes: the blended map is the score where the class is probable, else 0.

    An activation map alone cannot show that a class is absent.
    """

    name = "cism"
    dense = True

    def recipes(self, networks: Networks) -> tuple[Recipe, Recipe]:
        """A localizer that was trained for the method, and no segmenter."""
        networks.refuse(NO_SEGMENTER, "sam", "sam_checkpoint", "compile")
        localizer, _ = networks.fitted(*networks.unfitted().recipes(), alone=True)
        request.check_trained(localizer, self.name)
        return localizer, NoSegmenterRecipe()

    def map_of(self, run: Run, window: Window, class_id: int) -> UInt8Array:
        """(H, W) activation; 0 where the class is improbable in all windows around."""
        return likely_activation(run, window, class_id, self.gate)

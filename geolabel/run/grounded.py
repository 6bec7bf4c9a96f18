"""Runs whose localizer is a diffusion network that is told the classes in words."""

from __future__ import annotations

from dataclasses import dataclass, replace

from geolabel.concepts import Grounding
from geolabel.io import diffusion
from geolabel.masks import EVERY_CANDIDATE, Selection
from geolabel.parts import Recipe
from geolabel.run.request import Networks


@dataclass(frozen=True)
class GroundedNetworks(Networks):
    """Networks of a run that finds what words mean; the segmenter answers with every candidate."""

    diffusion: str = diffusion.DEFAULT
    """A folder, or a model of the hub."""
    grounding: Grounding | None = None

    @classmethod
    def of(cls, networks: Networks, source: str, grounding: Grounding) -> GroundedNetworks:
        """The same segmenter, and a diffusion network in place of the localizer."""
        return cls(**vars(networks), diffusion=source, grounding=grounding)

    def recipes(self, selection: Selection = "best_iou") -> tuple[Recipe, Recipe]:
        """Recipes of the diffusion network and of a segmenter that leaves the choice to its caller."""
        assert self.grounding is not None
        _, segmenter = super().recipes(selection)
        locate = diffusion.recipe(self.diffusion, self.grounding, segmenter)
        return locate, replace(segmenter, filters=EVERY_CANDIDATE)

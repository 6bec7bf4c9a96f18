"""Runs whose localizer is a diffusion network that is told the classes in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from geolabel.concepts import Grounding, parse_concepts
from geolabel.errors import OptionError
from geolabel.extraction.request import Networks
from geolabel.masks import Selection
from geolabel.models import diffusion_files
from geolabel.parts import Recipe, SegmenterRecipe

DEFAULTS: dict[str, Any] = {"activation_threshold": 102, "selection": "overlap"}
"""Parameters that the method has instead of the usual ones: 102 of 255 is `geolabel.concepts.GAMMA`."""


@dataclass(frozen=True)
class GroundedNetworks(Networks):
    """Networks of a run that finds what words mean."""

    diffusion: str = diffusion_files.DEFAULT
    """A folder, or a model of the hub."""
    grounding: Grounding | None = None

    @classmethod
    def of(cls, networks: Networks, source: str, grounding: Grounding) -> GroundedNetworks:
        """The same segmenter, and a diffusion network instead of the localizer."""
        diffusion_files.require_diffusion()  # before a segmenter is downloaded
        return cls(**vars(networks), diffusion=source, grounding=grounding)

    def recipes(self, selection: Selection = "best_iou") -> tuple[Recipe, SegmenterRecipe]:  # type: ignore[override]
        """Recipes of the diffusion network and of the segmenter.

        Raises
        ------
        OptionError
            If ONNX Runtime is asked for, which does not run diffusion networks.
        """
        assert self.grounding is not None
        if self.engine == "onnx":
            raise OptionError("engine onnx: the diffusion network runs with torch alone; give --engine auto or torch")
        _, segmenter = super().recipes(selection)
        return diffusion_files.recipe(self.diffusion, self.grounding, segmenter), segmenter


def grounded_networks(networks: Networks, given: Mapping[str, Any]) -> GroundedNetworks:
    """Networks of a run over a scene, from options by name; those that are None or missing keep their defaults.

    Raises
    ------
    OptionError
        If several classes are asked for (what is drawn in a scene is of one), or another localizer is.
    """
    concepts = parse_concepts(given.get("classes") or "landslide")
    if len(concepts) > 1:
        names = ", ".join(concept.name for concept in concepts)
        raise OptionError(f"the classes {names}: a scene is searched for one; part synonyms of it by slashes")
    chosen = {name: given[name] for name in ("template", "timestep", "draws") if given.get(name) is not None}
    if networks.localizer != "bundled":
        raise OptionError(f"localizer {networks.localizer}: with diffuprompter the diffusion network is the localizer")
    if networks.student is not None:
        raise OptionError(f"student {networks.student}: it draws by itself; leave out --method diffuprompter")
    level = given.get("activation_threshold") or DEFAULTS["activation_threshold"]
    grounding = Grounding(concepts, crf=level / 255 if given.get("crf") else None, **chosen)
    return GroundedNetworks.of(networks, given.get("diffusion") or diffusion_files.DEFAULT, grounding)

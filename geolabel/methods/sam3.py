"""Concepts of SAM 3: its detector locates words, a segmenter outlines them. Nothing is trained.

Source: Carion et al. (2025), "SAM 3: Segment Anything with Concepts". The map of its instances replaces the
cross-attention of `geolabel.methods.diffuprompter`; the later steps are the same. Its steps and where they are:

* instances, their scores, and the presence of a concept: `geolabel.models.concept_maps`
* the threshold; box and centroid of every component: `geolabel.prompters.ContourPrompter`
* the mask with the highest IoU with the map: `geolabel.labelers.most_alike`

Unlike a diffusion network it estimates whether a class is present: over scenes, the presence of a concept in a tile is
compared with the gate.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from geolabel.concepts import Asked, parse_concepts
from geolabel.engine.tasks import Progress
from geolabel.errors import OptionError, require
from geolabel.extraction.activation_maps import likely_activation
from geolabel.extraction.plan import Run
from geolabel.extraction.request import Networks, SceneMethod
from geolabel.masks import Selection
from geolabel.methods.diffuprompter import NO_SEGMENTER, OF_SEGMENTER, LabelAsked, label_asked
from geolabel.models import loading
from geolabel.parts import ConceptRecipe, NoSegmenterRecipe, Recipe, SegmenterRecipe
from geolabel.settings import check_limits
from geolabel.settings.methods import Sam3Chips, Sam3Scenes
from geolabel.tiles import Window
from geolabel.types import UInt8Array


@dataclass(frozen=True)
class Settings(Sam3Chips):
    """Settings for a folder of images.

    Raises
    ------
    OptionError
        If a number or a class is invalid.
    """

    def __post_init__(self) -> None:
        check_limits(self)
        assert self.asked

    @property
    def asked(self) -> Asked:
        """The classes."""
        return Asked(parse_concepts(self.classes))


def label(
    chips: Path, out: Path, settings: Settings, networks: Networks, *, overwrite: bool, progress: Progress
) -> dict[str, Any]:
    """Label a folder of images; see `geolabel.methods.Label`."""
    if settings.attention_only:
        networks.refuse(NO_SEGMENTER, *OF_SEGMENTER)
    chosen = replace(networks, localizer=settings.localizer or networks.localizer)
    recipes = recipes_of(chosen, settings.asked, alone=settings.attention_only)
    asked = LabelAsked.of(settings, settings.asked, recipes)
    return label_asked("sam3", chips, out, settings, asked, overwrite=overwrite, progress=progress)


def recipes_of(
    networks: Networks, asked: Asked, selection: Selection = "overlap", *, alone: bool = False
) -> tuple[ConceptRecipe, SegmenterRecipe]:
    """Recipes of the network for words, and of a segmenter; `alone` as in `Networks.fitted`.

    Raises
    ------
    OptionError
        If a localizer is given that does not take words, or ONNX Runtime, which cannot run it.
    WeightsError
        If a network cannot be loaded or downloaded.
    """
    _require()  # checked before a segmenter is downloaded
    if networks.engine == "onnx":
        raise OptionError("engine onnx: networks for words run with torch only; give --engine auto or torch")
    _, segmenter = replace(networks.unfitted(), localizer=None).recipes(selection)
    return networks.fitted(loading.concept_recipe(networks.localizer, asked, segmenter), segmenter, alone=alone)


def _require() -> None:
    require("sam", "transformers", "huggingface_hub", purpose="sam3")


@dataclass(frozen=True)
class Scenes(Sam3Scenes, SceneMethod):
    """The method over scenes: instances of concepts prompt the segmenter, and the mask most similar to them is used.

    Raises
    ------
    OptionError
        If a number or a class is invalid.
    """

    name = "sam3"

    def __post_init__(self) -> None:
        super().__post_init__()
        assert self.asked

        if self.attention_only:
            usual = {one.name: one.default for one in fields(Sam3Scenes)}
            for name in ("activation_threshold", "prompts", "selection", "min_quality"):
                value = getattr(self, name)
                if value != usual[name]:
                    instead = "; give --score-threshold" if name == "activation_threshold" else "; leave it out"
                    raise OptionError(f"--{name.replace('_', '-')} {value}: {NO_SEGMENTER}{instead}")

    @property
    def dense(self) -> bool:
        """Whether the instances themselves are the result."""
        return self.attention_only

    def require(self) -> None:
        """Check the library that runs the network."""
        _require()

    @property
    def asked(self) -> Asked:
        """The classes."""
        return Asked(parse_concepts(self.classes))

    def recipes(self, networks: Networks) -> tuple[Recipe, Recipe]:
        """A network for words, and a segmenter if one is used."""
        if not self.attention_only:
            return recipes_of(networks, self.asked, self.selection)
        networks.refuse(NO_SEGMENTER, *OF_SEGMENTER)
        return recipes_of(networks, self.asked, alone=True)[0], NoSegmenterRecipe()

    def map_of(self, run: Run, window: Window, class_id: int) -> UInt8Array:
        """(H, W) scores of instances; 0 if the class is not present."""
        return likely_activation(run, window, class_id, self.gate)

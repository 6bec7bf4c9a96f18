"""Concepts of SAM 3: its detector says what the words name and where, a segmenter draws it. Nothing is trained.

Source: Carion et al. (2025), "SAM 3: Segment Anything with Concepts". The map of its instances takes the place of the
cross-attention of `geolabel.methods.diffuprompter`; what is done with it is the same. Its steps and where they are:

* instances, their scores, and the presence of a concept: `geolabel.models.concept_maps`
* the threshold; box and centroid of every component: `geolabel.prompters.ContourPrompter`
* the mask of the highest IoU with the map: `geolabel.labelers.most_alike`

Unlike a diffusion network it says whether a class is there: over scenes, the presence of a concept in a tile is
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
from geolabel.settings.methods import Sam3Chips, Sam3Scenes
from geolabel.tiles import Window
from geolabel.types import UInt8Array


@dataclass(frozen=True)
class Settings(Sam3Chips):
    """Settings for a folder of images.

    Raises
    ------
    OptionError
        If a number or a class cannot be.
    """

    def __post_init__(self) -> None:
        if not 0 < self.threshold < 1:
            raise OptionError(f"threshold {self.threshold}: it has to be between 0 and 1")
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
    asked = LabelAsked.of(settings, settings.asked, recipes_of(chosen, settings.asked))
    return label_asked("sam3", chips, out, settings, asked, overwrite=overwrite, progress=progress)


def recipes_of(
    networks: Networks, asked: Asked, selection: Selection = "overlap"
) -> tuple[ConceptRecipe, SegmenterRecipe]:
    """Recipes of the network that is asked in words, and of a segmenter.

    Raises
    ------
    OptionError
        If a localizer is chosen that is not asked in words, or ONNX Runtime, which runs none.
    WeightsError
        If a network cannot be had.
    """
    _require()  # before a segmenter is downloaded
    if networks.engine == "onnx":
        raise OptionError("engine onnx: what is asked in words runs with torch alone; give --engine auto or torch")
    _, segmenter = replace(networks, localizer=None).recipes(selection)
    return networks.fitted(loading.concept_recipe(networks.localizer, asked, segmenter), segmenter)


def _require() -> None:
    require("sam", "transformers", "huggingface_hub", purpose="sam3")


@dataclass(frozen=True)
class Scenes(Sam3Scenes, SceneMethod):
    """The method over scenes: the instances of concepts ask the segmenter, whose mask most like them answers.

    Raises
    ------
    OptionError
        If a number or a class cannot be.
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
        """Whether the instances themselves are the answer."""
        return self.attention_only

    def require(self) -> None:
        """Ask for the library that runs the network."""
        _require()

    @property
    def asked(self) -> Asked:
        """The classes."""
        return Asked(parse_concepts(self.classes))

    def recipes(self, networks: Networks) -> tuple[Recipe, Recipe]:
        """A network that is asked in words, and a segmenter where one draws."""
        if not self.attention_only:
            return recipes_of(networks, self.asked, self.selection)
        networks.refuse(NO_SEGMENTER, *OF_SEGMENTER)
        return recipes_of(networks, self.asked)[0], NoSegmenterRecipe()

    def map_of(self, run: Run, window: Window, class_id: int) -> UInt8Array:
        """(H, W) scores of instances, and 0 where the class is not present."""
        return likely_activation(run, window, class_id, self.gate)

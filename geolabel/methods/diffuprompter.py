"""DiffuPrompter: a diffusion network says where the words are, a segmenter what is there. Nothing is trained.

Source: Li et al. (2024), "DiffuPrompter: Pixel-Level Automatic Annotation for High-Resolution Remote Sensing Images
with Foundation Models", Remote Sensing 16, 2004. No code of the authors is known. Its steps and where they are:

* the template, and words for a class: `geolabel.concepts`
* eq. 1 and 3, cross-attention: `geolabel.models.diffusion.AttentionRecorder`
* eq. 4, the pyramid and Norm: `geolabel.models.diffusion.combined` and `stretched`
* eq. 5 to 9, LSAD: `geolabel.models.diffusion.noisy` and `DiffusionLocalizer`
* eq. 10, the threshold and the dense CRF: `geolabel.models.refinement`
* box and centroid of every component: `geolabel.prompters.ContourPrompter`
* eq. 2, the segmenter: `geolabel.models.everything`, which keeps all its candidates
* the mask of the highest IoU with the map: `geolabel.labelers.most_alike`
* closed regions become instances: `geolabel.labels.closed_regions`

The paper labels images of which it is known what they show. Where the images are in folders of the classes' names, or
beside a table of labels, each is asked about its own classes only; otherwise about all, and what it does not show is
found somewhere nevertheless.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from geolabel.activation import LEVELS
from geolabel.concepts import Asked, Grounding, parse_concepts
from geolabel.datasets.chips import read_chips
from geolabel.datasets.examples import ImageFolder
from geolabel.datasets.pseudo_labels import PseudoLabelWriter
from geolabel.engine import worker
from geolabel.engine.tasks import Progress
from geolabel.errors import ChipError, OptionError
from geolabel.extraction.request import Networks, SceneMethod
from geolabel.labelers import OverlapLabeler, ThresholdLabeler
from geolabel.labeling.label import label_images, label_provenance
from geolabel.labels import BACKGROUND, LabelMap
from geolabel.masks import Selection
from geolabel.models import diffusion_files
from geolabel.models.concept_maps import ConceptLocalizer
from geolabel.models.diffusion import DiffusionLocalizer
from geolabel.models.refinement import RefinedLocalizer
from geolabel.models.tuning import SCENE_TILE, uncompiled
from geolabel.parts import (
    DiffusionRecipe,
    Localizer,
    NoMasks,
    NoPrompts,
    Pipeline,
    Recipe,
    Segmenter,
    SegmenterRecipe,
    label_image,
)
from geolabel.prompters import ContourPrompter
from geolabel.settings.methods import DiffuprompterChips, DiffuprompterScenes, Sam3Chips
from geolabel.types import UInt8Array


@dataclass(frozen=True)
class Settings(DiffuprompterChips):
    """Settings for a folder of images.

    Raises
    ------
    OptionError
        If a number or a class cannot be.
    """

    def __post_init__(self) -> None:
        if not 0 < self.threshold < 1:
            raise OptionError(f"threshold {self.threshold}: it has to be between 0 and 1")
        assert self.grounding

    @property
    def grounding(self) -> Grounding:
        """What the diffusion network is asked."""
        return Grounding(
            parse_concepts(self.classes),
            template=self.template,
            timestep=self.timestep,
            draws=self.draws,
            seed=self.seed,
            crf=self.threshold if self.crf else None,
        )


def compose(localizer: Localizer, segmenter: Segmenter, threshold: float, *, attention_only: bool = False) -> Pipeline:
    """The method after its map, whichever localizer made that.

    Parameters
    ----------
    segmenter
        Answers with every candidate; see `geolabel.masks.EVERY_CANDIDATE`.
    threshold
        The gamma of eq. 10.
    attention_only
        Whether the thresholded map is the label map: the paper's baseline.
    """
    if attention_only:
        return Pipeline(localizer, NoPrompts(), NoMasks(), ThresholdLabeler(threshold))
    return Pipeline(localizer, ContourPrompter(grey_level(threshold)), segmenter, OverlapLabeler(threshold))


def grey_level(threshold: float) -> int:
    """The grey value that activation above a threshold of 0..1 exceeds."""
    return int(threshold * LEVELS + 1e-6)


def label(
    chips: Path, out: Path, settings: Settings, networks: Networks, *, overwrite: bool, progress: Progress
) -> dict[str, Any]:
    """Label a folder of images; see `geolabel.methods.Label`."""
    if settings.attention_only:
        networks.refuse(NO_SEGMENTER, *OF_SEGMENTER)
    recipes = recipes_of(networks, settings.diffusion, settings.grounding)
    asked = LabelAsked.of(settings, settings.grounding, recipes)
    return label_asked("diffuprompter", chips, out, settings, asked, overwrite=overwrite, progress=progress)


WRITTEN = 0.01
"""Tiles that are labelled in the time in which an image is read and written."""

NO_SEGMENTER = "--attention-only uses no segmenter"

OF_SEGMENTER = ("sam", "sam_checkpoint", "compile")
"""Fields of `Networks` that are about a segmenter."""


def label_asked(
    method: str, chips: Path, out: Path, settings: Any, asked: LabelAsked, *, overwrite: bool, progress: Progress
) -> dict[str, Any]:
    """Label a folder of images with a method that is told the classes in words."""
    images = ImageFolder(chips)
    of_images = replace(asked, known=shown_classes(images, asked.asked))
    counted = {"classes_known_of": len(of_images.known)}
    provenance = label_provenance(method, settings, asked.recipes, images) | counted
    writer = PseudoLabelWriter(out, (BACKGROUND, *asked.asked.classes), provenance)
    figures = label_images(
        images,
        of_images,
        writer,
        networks=asked.recipes,
        weigh=lambda index: of_images.weigh(images, index),
        overwrite=overwrite,
        progress=progress,
    )
    return figures | counted


@dataclass(frozen=True)
class LabelAsked:
    """A method that is told the classes in words, in whatever process it labels."""

    asked: Asked
    recipes: tuple[Recipe, ...]
    """Of the localizer, and of the segmenter where one draws; see `compose`."""
    threshold: float
    known: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Classes that images are known to show, by name of the image."""

    @classmethod
    def of(
        cls, settings: DiffuprompterChips | Sam3Chips, asked: Asked, recipes: tuple[Recipe, SegmenterRecipe]
    ) -> Self:
        """The method with its settings; the segmenter is left out where it draws nothing."""
        localizer, segmenter = recipes
        chosen = (localizer,) if settings.attention_only else (localizer, uncompiled(segmenter))
        return cls(asked, chosen, settings.threshold)

    def weigh(self, images: ImageFolder, index: int) -> float:
        """About how long an image takes, in tiles; one that shows none of the classes is written alone."""
        shown = self.known.get(images.names[index], self.asked.classes)
        return images.tiles(index, SCENE_TILE) if shown else WRITTEN

    def __call__(self, names: Sequence[str], images: Sequence[UInt8Array]) -> list[LabelMap]:
        """Label images of these names."""
        return [self._label(name, image) for name, image in zip(names, images, strict=True)]

    def _label(self, name: str, image: UInt8Array) -> LabelMap:
        classes = self.asked.classes
        shown = self.known.get(name, classes)
        if not shown:
            return LabelMap.background(image.shape[0], image.shape[1], (BACKGROUND, *classes))
        locate, drawn = worker.localizer(self.recipes[0]), self.recipes[1:]
        segmenter = worker.segmenter(drawn[0]) if drawn else NoMasks()
        method = compose(asked_only(locate, shown), segmenter, self.threshold, attention_only=not drawn)
        return label_image(method, image, min(locate.window, segmenter.window))


def asked_only(localizer: Localizer, classes: Collection[str]) -> Localizer:
    """A localizer that is told words, for an image that shows these classes only."""
    if isinstance(localizer, RefinedLocalizer):
        inner = asked_only(localizer.localizer, classes)
        return RefinedLocalizer(inner, localizer.threshold, localizer.crf, localizer.device)
    assert isinstance(localizer, DiffusionLocalizer | ConceptLocalizer)
    return localizer.only(classes)


def shown_classes(images: ImageFolder, asked: Asked) -> Mapping[str, tuple[str, ...]]:
    """The classes that images are known to show, by the name of the image; empty where nothing says so.

    What folders or a table call an image counts where it means one of the classes that are asked for: by its name or by
    a synonym, in any case, with underscores for spaces. An image that is called something else shows none of them.
    """
    try:
        chips = read_chips(images.root)
    except ChipError:
        return {}
    meant = {word: concept.name for concept in asked.concepts for word in concept.words}
    classes = [meant.get(name.lower().replace("_", " ")) for name in chips.classes]
    if not any(classes):
        return {}
    shown = {
        path.resolve(): tuple(name for name, here in zip(classes, labels, strict=True) if name is not None and here)
        for path, labels in zip(chips.paths, chips.labels, strict=True)
    }
    known = ((name, shown.get(path.resolve())) for name, path in zip(images.names, images.paths, strict=True))
    return {name: found for name, found in known if found is not None}


def recipes_of(
    networks: Networks, diffusion: str, grounding: Grounding, selection: Selection = "overlap"
) -> tuple[DiffusionRecipe, SegmenterRecipe]:
    """Recipes of a diffusion network and of a segmenter.

    Raises
    ------
    OptionError
        If a localizer is chosen, or ONNX Runtime, which does not run diffusion networks.
    WeightsError
        If a network cannot be had.
    """
    diffusion_files.require_diffusion()  # before a segmenter is downloaded
    networks.refuse("with diffuprompter the diffusion network is the localizer", "localizer")
    if networks.engine == "onnx":
        raise OptionError("engine onnx: the diffusion network runs with torch alone; give --engine auto or torch")
    _, segmenter = networks.recipes(selection)
    return networks.fitted(diffusion_files.recipe(diffusion, grounding, segmenter), segmenter)


@dataclass(frozen=True)
class Scenes(DiffuprompterScenes, SceneMethod):
    """The method over scenes: the maps of words ask the segmenter, whose mask most like the map answers.

    Raises
    ------
    OptionError
        If a number or a class cannot be.
    """

    name = "diffuprompter"

    def __post_init__(self) -> None:
        super().__post_init__()
        assert self.grounding

    def require(self) -> None:
        """Ask for the libraries of diffusion networks."""
        diffusion_files.require_diffusion()

    @property
    def grounding(self) -> Grounding:
        """What the diffusion network is asked."""
        return Grounding(
            parse_concepts(self.classes),
            template=self.template,
            timestep=self.timestep,
            draws=self.draws,
            crf=self.activation_threshold / LEVELS if self.crf else None,
        )

    def recipes(self, networks: Networks) -> tuple[Recipe, Recipe]:
        """A diffusion network that is told the words, and a segmenter."""
        return recipes_of(networks, self.diffusion, self.grounding, self.selection)

"""DiffuPrompter: a diffusion network locates words, a segmenter outlines what is there. Nothing is trained.

Source: Li et al. (2024), "DiffuPrompter: Pixel-Level Automatic Annotation for High-Resolution Remote Sensing Images
with Foundation Models", Remote Sensing 16, 2004. No code of the authors is known. Its steps and where they are:

* the template, and words for a class: `geolabel.concepts`
* eq. 1 and 3, cross-attention: `geolabel.models.diffusion.AttentionRecorder`
* eq. 4, the pyramid and Norm: `geolabel.models.diffusion.combined` and `stretched`
* eq. 5 to 9, LSAD: `geolabel.models.diffusion.noisy` and `DiffusionLocalizer`
* eq. 10, the threshold and the dense CRF: `geolabel.models.refinement`
* box and centroid of every component: `geolabel.prompters.ContourPrompter`
* eq. 2, the segmenter: `geolabel.models.everything`, with all its candidates
* the mask with the highest IoU with the map: `geolabel.labelers.most_alike`
* closed regions become instances: `geolabel.labels.closed_regions`

The paper labels images with known classes. If the images are in folders named after classes, or listed in a table of
labels, each is searched for its own classes only; otherwise for all of them, and absent classes are found somewhere
nevertheless.
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
from geolabel.settings import check_limits
from geolabel.settings.methods import DiffuprompterChips, DiffuprompterScenes, Sam3Chips
from geolabel.types import UInt8Array


@dataclass(frozen=True)
class Settings(DiffuprompterChips):
    """Settings for a folder of images.

    Raises
    ------
    OptionError
        If a number or a class is invalid.
    """

    def __post_init__(self) -> None:
        check_limits(self)
        assert self.grounding

    @property
    def grounding(self) -> Grounding:
        """The request to the diffusion network."""
        return Grounding(
            parse_concepts(self.classes),
            template=self.template,
            timestep=self.timestep,
            draws=self.draws,
            seed=self.seed,
            crf=self.threshold if self.crf else None,
        )


def compose(localizer: Localizer, segmenter: Segmenter, threshold: float, *, attention_only: bool = False) -> Pipeline:
    """The steps after the map, for any localizer.

    Parameters
    ----------
    segmenter
        Returns every candidate; see `geolabel.masks.EVERY_CANDIDATE`.
    threshold
        The gamma of eq. 10.
    attention_only
        Whether the thresholded map is the label map: the paper's baseline.
    """
    if attention_only:
        return Pipeline(localizer, NoPrompts(), NoMasks(), ThresholdLabeler(threshold))
    return Pipeline(localizer, ContourPrompter(grey_level(threshold)), segmenter, OverlapLabeler(threshold))


def grey_level(threshold: float) -> int:
    """A threshold of 0..1 as the grey value that the activation has to exceed."""
    return int(threshold * LEVELS + 1e-6)


def label(
    chips: Path, out: Path, settings: Settings, networks: Networks, *, overwrite: bool, progress: Progress
) -> dict[str, Any]:
    """Label a folder of images; see `geolabel.methods.Label`."""
    if settings.attention_only:
        networks.refuse(NO_SEGMENTER, *OF_SEGMENTER)
    recipes = recipes_of(networks, settings.diffusion, settings.grounding, alone=settings.attention_only)
    asked = LabelAsked.of(settings, settings.grounding, recipes)
    return label_asked("diffuprompter", chips, out, settings, asked, overwrite=overwrite, progress=progress)


WRITTEN = 0.01
"""Number of tiles that are labelled in the time needed to read and write an image."""

NO_SEGMENTER = "--attention-only uses no segmenter"

OF_SEGMENTER = ("sam", "sam_checkpoint", "compile")
"""Fields of `Networks` that concern a segmenter."""


def label_asked(
    method: str, chips: Path, out: Path, settings: Any, asked: LabelAsked, *, overwrite: bool, progress: Progress
) -> dict[str, Any]:
    """Label a folder of images with a method that takes classes in words."""
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
    """A method that takes classes in words, in any process."""

    asked: Asked
    recipes: tuple[Recipe, ...]
    """Recipe of the localizer, and of the segmenter if one is used; see `compose`."""
    threshold: float
    known: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Classes that images are known to show, by name of the image."""

    @classmethod
    def of(
        cls, settings: DiffuprompterChips | Sam3Chips, asked: Asked, recipes: tuple[Recipe, SegmenterRecipe]
    ) -> Self:
        """The method with its settings; without a segmenter if the map is used alone."""
        localizer, segmenter = recipes
        chosen = (localizer,) if settings.attention_only else (localizer, uncompiled(segmenter))
        return cls(asked, chosen, settings.threshold)

    def weigh(self, images: ImageFolder, index: int) -> float:
        """Approximate time of an image, in tiles; one that shows none of the classes is only written."""
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
    """A localizer for classes in words, restricted to the classes that an image shows."""
    if isinstance(localizer, RefinedLocalizer):
        inner = asked_only(localizer.localizer, classes)
        return RefinedLocalizer(inner, localizer.threshold, localizer.crf, localizer.device)
    assert isinstance(localizer, DiffusionLocalizer | ConceptLocalizer)
    return localizer.only(classes)


def shown_classes(images: ImageFolder, asked: Asked) -> Mapping[str, tuple[str, ...]]:
    """The classes that images are known to show, by name of the image; empty if unknown.

    A name of a folder or in a table is used if it means one of the requested classes: its name or a synonym, in any
    case, with underscores for spaces. Images with other names show none of them.
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
    networks: Networks, diffusion: str, grounding: Grounding, selection: Selection = "overlap", *, alone: bool = False
) -> tuple[DiffusionRecipe, SegmenterRecipe]:
    """Recipes of a diffusion network and of a segmenter; `alone` as in `Networks.fitted`.

    Raises
    ------
    OptionError
        If a localizer is given, or ONNX Runtime, which cannot run diffusion networks.
    WeightsError
        If a network cannot be loaded or downloaded.
    """
    diffusion_files.require_diffusion()  # checked before a segmenter is downloaded
    networks.refuse("with diffuprompter the diffusion network is the localizer", "localizer")
    if networks.engine == "onnx":
        raise OptionError("engine onnx: the diffusion network runs with torch alone; give --engine auto or torch")
    _, segmenter = networks.unfitted().recipes(selection)
    return networks.fitted(diffusion_files.recipe(diffusion, grounding, segmenter), segmenter, alone=alone)


@dataclass(frozen=True)
class Scenes(DiffuprompterScenes, SceneMethod):
    """The method over scenes: maps of words prompt the segmenter, and the mask most similar to the map is used.

    Raises
    ------
    OptionError
        If a number or a class is invalid.
    """

    name = "diffuprompter"

    def __post_init__(self) -> None:
        super().__post_init__()
        assert self.grounding

    def require(self) -> None:
        """Check the libraries for diffusion networks."""
        diffusion_files.require_diffusion()

    @property
    def grounding(self) -> Grounding:
        """The request to the diffusion network."""
        return Grounding(
            parse_concepts(self.classes),
            template=self.template,
            timestep=self.timestep,
            draws=self.draws,
            crf=self.activation_threshold / LEVELS if self.crf else None,
        )

    def recipes(self, networks: Networks) -> tuple[Recipe, Recipe]:
        """A diffusion network with the words, and a segmenter."""
        return recipes_of(networks, self.diffusion, self.grounding, self.selection)

"""Roles of the parts of a method, recipes for their networks, and the four steps.

A method is a choice of four parts. The pipeline knows neither networks nor files, so training objectives can use one as
well as commands.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import numpy as np

from geolabel.activation import Activation, Normalisation
from geolabel.clusters import ClusterChoice
from geolabel.concepts import Asked, Grounding
from geolabel.labels import LabelMap
from geolabel.masks import Filters, Masks, Selection
from geolabel.prompts import Prompts
from geolabel.tiles import TileGrid
from geolabel.types import UInt8Array


class Localizer(Protocol):
    """Locates classes in an image."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the activation's first axis."""
        ...

    @property
    def window(self) -> int:
        """Side in pixels of its training images: the window of the gate."""
        ...

    @property
    def stride(self) -> int:
        """Image pixels per cell of the activation."""
        ...

    @property
    def gsd_range(self) -> tuple[float, float]:
        """Finest and coarsest supported ground sample distance, metres."""
        ...

    def __call__(self, images: Sequence[UInt8Array]) -> list[Activation]:
        """Activations of images (H, W, 3), red first; all of one size."""
        ...


class Prompter(Protocol):
    """Turns an activation into prompts, in pixels of the image."""

    def __call__(self, activation: Activation) -> Prompts:
        """Prompts of one image."""
        ...


class Segmenter(Protocol):
    """Answers prompts with masks. Calls are stateless: each passes images and their prompts."""

    @property
    def window(self) -> int:
        """Maximum side in pixels of an image."""
        ...

    @property
    def gsd_range(self) -> tuple[float, float]:
        """Finest and coarsest supported ground sample distance, metres."""
        ...

    def __call__(self, images: Sequence[UInt8Array], prompts: Sequence[Prompts]) -> list[Masks]:
        """Masks of images (H, W, 3), red first, H and W up to `window`; each is encoded once for all its prompts."""
        ...


class Labeler(Protocol):
    """Turns the masks of an image into a label map."""

    def __call__(self, masks: Any, prompts: Prompts, activation: Activation) -> LabelMap:
        """Label an image; `masks` are `Masks`, or the subclass that the method's segmenter returns."""
        ...


@dataclass(frozen=True)
class Everywhere:
    """The localizer of a method without one: full activation everywhere."""

    classes: tuple[str, ...] = ("anything",)
    window: int = 1
    stride: int = 1
    gsd_range: tuple[float, float] = (0.0, float("inf"))

    def __call__(self, images: Sequence[UInt8Array]) -> list[Activation]:
        """Activation 1 for every pixel of images (H, W, 3)."""
        return [self._ones(*image.shape[:2]) for image in images]

    def _ones(self, height: int, width: int) -> Activation:
        maps = np.ones((len(self.classes), height, width), np.float32)
        return Activation(maps, maps, np.ones(len(self.classes), np.float32), 1, self.classes)


@dataclass(frozen=True)
class NoPrompts:
    """The prompter of a method without a segmenter."""

    def __call__(self, activation: Activation) -> Prompts:  # noqa: ARG002
        """No prompts."""
        return Prompts.build()


@dataclass(frozen=True)
class NoMasks:
    """The segmenter of a method without one; its answers have the size of the image and no masks."""

    window: int = 1 << 30
    gsd_range: tuple[float, float] = (0.0, float("inf"))

    def __call__(self, images: Sequence[UInt8Array], prompts: Sequence[Prompts]) -> list[Masks]:  # noqa: ARG002
        """No masks of images (H, W, 3)."""
        return [Masks.none(*image.shape[:2]) for image in images]


@dataclass(frozen=True)
class Recipe:
    """How to create a part where it is needed. Recipes are small, hashable and picklable; networks stay out of tasks.

    Each kind of part has its own record below.
    """

    role: ClassVar[str]
    """``localizer`` or ``segmenter``."""

    source: str
    """``bundled``, the name of a published network, the path of a weights file or network folder, or
    ``OWNER/NAME@REVISION`` on the Hugging Face hub."""
    sha256: str = ""
    """SHA-256 of the weights file, or over the files of the folder; checked on loading."""
    device: str = "cpu"
    """A torch device."""
    precision: str = "fp32"
    """See `geolabel.devices.Precision`."""
    batch: int = 8
    """Images per forward call; the last batch is padded, since the last digits of a result depend on batch size."""
    engine: str = "torch"
    """``torch``, or ``onnx`` for ONNX Runtime, on a CPU in fp32."""
    graphs: tuple[str, ...] = ()
    """SHA-256 of the ONNX graphs beside the weights; checked on loading."""


@dataclass(frozen=True)
class LocalizerRecipe(Recipe):
    """A network of class activation maps, or a student, whose maps are scores; determined by its file."""

    role = "localizer"

    normalisation: Normalisation = "constant"
    """What is scaled to activation 1."""


@dataclass(frozen=True)
class WordsRecipe(Recipe):
    """A network that takes classes in words. Images are limited to its window, and it runs in PyTorch."""

    role = "localizer"


@dataclass(frozen=True)
class DiffusionRecipe(WordsRecipe):
    """A diffusion network; the source is the folder of its model."""

    grounding: Grounding = field(kw_only=True)
    """What to ask for."""


@dataclass(frozen=True)
class ConceptRecipe(WordsRecipe):
    """A network that segments concepts; see `models.concept_maps`."""

    asked: Asked = field(kw_only=True)
    """What to ask for."""


@dataclass(frozen=True)
class EverywhereRecipe(Recipe):
    """`Everywhere`."""

    role = "localizer"

    source: str = "everywhere"
    classes: tuple[str, ...] = Everywhere.classes


@dataclass(frozen=True)
class SegmenterRecipe(Recipe):
    """A segmenter that answers each prompt with one mask."""

    role = "segmenter"

    selection: Selection = "best_iou"
    """Which candidate mask is the answer."""
    architecture: str = ""
    """Declared content of a SAM file: ``vit_b``, ``vit_l``, ``vit_h`` or ``mobile-sam``; empty to detect it."""
    compile: str = "off"
    """``on`` if torch.compile is used for the image encoder; ``auto`` until a plan decides, see
    `tuning.compile_for`."""

    def everything(
        self, filters: Filters, *, features: bool = False, clusters: ClusterChoice | None = None
    ) -> EverythingRecipe:
        """The same network in PyTorch, returning every candidate that passes `filters`."""
        chosen = {"filters": filters, "features": features, "clusters": clusters, "engine": "torch", "graphs": ()}
        return EverythingRecipe(**{**vars(self), **chosen})


@dataclass(frozen=True)
class EverythingRecipe(SegmenterRecipe):
    """A segmenter that returns every candidate that passes; see `models.everything`."""

    filters: Filters = field(default_factory=Filters)
    features: bool = False
    """Whether masks come with features."""
    clusters: ClusterChoice | None = None
    """Clusters that masks are restricted to."""


@dataclass(frozen=True)
class NoSegmenterRecipe(Recipe):
    """`NoMasks`."""

    role = "segmenter"

    source: str = "nothing"


@dataclass(frozen=True)
class Pipeline:
    """Four parts that label an image (H, W, 3) of a size that all of them accept."""

    localizer: Localizer
    prompter: Prompter
    segmenter: Segmenter
    labeler: Labeler

    def __call__(self, image: UInt8Array) -> LabelMap:
        """Label one image."""
        return self.many([image])[0]

    def many(self, images: Sequence[UInt8Array]) -> list[LabelMap]:
        """Label images; every part sees each image once."""
        activations = self.localizer(images)
        prompts = [self.prompter(activation) for activation in activations]
        found = zip(self.segmenter(images, prompts), prompts, activations, strict=True)
        return [self.labeler(masks, asked, activation) for masks, asked, activation in found]


def label_image(pipeline: Pipeline, image: UInt8Array, size: int, overlap: int | None = None) -> LabelMap:
    """Label an image of any size in tiles; each pixel is taken from the tile with the nearest centre.

    Parameters
    ----------
    size
        Maximum side of a tile, pixels; smaller images are one tile.
    overlap
        Pixels shared by neighbouring tiles; by default a quarter of the tile.
    """
    height, width = image.shape[:2]
    tiles = TileGrid(height, width, size, size // 4 if overlap is None else overlap)
    values, confidence = np.empty((height, width), np.uint8), np.empty((height, width), np.float32)
    for index, tile in enumerate(tiles):
        labels = pipeline(image[tile.slices])
        core = tiles.core(index)
        values[core.slices] = labels.values[core.within(tile)]
        confidence[core.slices] = labels.confidence[core.within(tile)]
    return LabelMap(values, confidence, labels.classes)

"""From a folder of images to a folder of pseudo-labels, batch by batch; an interrupted run resumes.

Memory does not grow with the number of images. The labelling function is pickled to the workers: a record of the
method's recipes, which loads the networks there.

A chip that shows nothing is all background, and no network runs on it (APSAM, algorithm 1). For other chips, only the
maps of the classes that they show are used; APSAM, S2C and CISM share this.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

import geolabel
from geolabel.datasets.pseudo_labels import RUN, PseudoLabelWriter, labels_folder
from geolabel.engine import executors, worker
from geolabel.engine.tasks import Effort, Pass, Progress, Work
from geolabel.errors import WeightsError
from geolabel.folders import promise, written_elsewhere
from geolabel.image_files import picture_size
from geolabel.labels import BACKGROUND, LabelMap
from geolabel.models import loading
from geolabel.models.checkpoint import IMAGE_LABELS, load_localizer, read_info
from geolabel.parts import Localizer, Pipeline, Recipe
from geolabel.types import BoolArray, UInt8Array

if TYPE_CHECKING:
    from geolabel.datasets.chips import ChipDataset
    from geolabel.models.multiscale import MapModule
    from geolabel.models.nets.classifier import Classifier
    from geolabel.models.nets.localizer import PyramidLocalizer


class Images(Protocol):
    """Images read one by one, identified by name."""

    @property
    def names(self) -> Sequence[str]:
        """Unique names of the images."""
        ...

    @property
    def digest(self) -> str:
        """Digest that identifies the same images in another run."""
        ...

    @property
    def sources(self) -> Sequence[Path]:
        """Files and folders that they are read from, which may not be outputs."""
        ...

    def __len__(self) -> int: ...

    def read(self, index: int) -> UInt8Array:
        """Read one image (H, W, 3), red first."""
        ...


LabelImages = Callable[[Sequence[str], Sequence[UInt8Array]], Sequence[LabelMap]]
"""Labels images (H, W, 3), red first, given their names."""

Weigh = Callable[[int], float]
"""Approximate time of an image, by its number, in any unit."""


def label_images(
    images: Images,
    label: LabelImages,
    writer: PseudoLabelWriter,
    *,
    networks: Sequence[Recipe] = (),
    weigh: Weigh | None = None,
    overwrite: bool = False,
    progress: Progress,
) -> dict[str, Any]:
    """Label every image that is not labelled yet, and complete the folder.

    Parameters
    ----------
    label
        Called once per image; its maps have the classes of `writer`.
    networks
        Networks that it runs. The number of images per call is the largest of their batch sizes.
    weigh
        For the estimate of the time left; None if all images take equally long.
    overwrite
        Whether earlier files of geolabel in the folder may be replaced, once the new labels are complete.

    Returns
    -------
    The main figures for the user.

    Raises
    ------
    SceneError
        If an image cannot be read.
    OutputError
        If the folder contains other files or cannot be written to.
    """
    with labels_folder(writer.root, writer.provenance, overwrite=overwrite, inputs=images.sources) as folder:
        return label_within(images, label, replace(writer, root=folder), progress, networks, weigh)


def label_within(
    images: Images,
    label: LabelImages,
    writer: PseudoLabelWriter,
    progress: Progress,
    networks: Sequence[Recipe] = (),
    weigh: Weigh | None = None,
) -> dict[str, Any]:
    """Like `label_images`, in a folder of `labels_folder`."""
    names = images.names
    missing = {index for index, name in enumerate(names) if not writer.has(name)}
    executors.check_seen(writer.root / RUN)
    promise(path for index in missing for path in writer.files(names[index]))
    # Batches do not depend on existing labels: last digits of a network depend on the images of a call.
    batch = max((recipe.batch for recipe in networks), default=1)
    batches = [range(first, min(first + batch, len(names))) for first in range(0, len(names), batch)]
    jobs = [tuple(some) for some in batches if not missing.isdisjoint(some)]
    work = Work(_Labelling(images, label, writer, tuple(networks)), Effort(), progress)
    weights = None if weigh is None else [sum(map(weigh, job)) for job in jobs]
    for _ in work.each(LABEL, jobs, networks=networks, weights=weights):
        pass
    writer.finish(names, {"images": len(names)})
    return {"images": len(names), "kept": len(names) - len(missing), "classes": len(writer.classes)}


@dataclass(frozen=True)
class _Labelling:
    """Inputs for labelling images."""

    images: Images
    label: LabelImages
    writer: PseudoLabelWriter
    networks: tuple[Recipe, ...]


def _label(run: _Labelling, batch: tuple[int, ...]) -> None:
    """Label a batch of images and write the missing ones."""
    names, images = [run.images.names[index] for index in batch], [run.images.read(index) for index in batch]
    with worker.networks(run.networks, None):
        found = run.label(names, images)
    with written_elsewhere(run.writer.root):
        for name, image, labels in zip(names, images, found, strict=True):
            if not run.writer.has(name):
                run.writer.write(name, image, labels)


def _where(run: _Labelling, batch: tuple[int, ...]) -> str:
    first, last = (run.images.names[index] for index in (batch[0], batch[-1]))
    return f"image {first}" if len(batch) == 1 else f"images {first} to {last}"


LABEL = Pass("label", _label, None, _where)


def label_provenance(method: str, settings: Any, recipes: Sequence[Recipe], images: Images) -> dict[str, Any]:
    """Everything that pseudo-labels depend on, as plain values; a run only resumes with the same.

    Parameters
    ----------
    settings
        The method's own frozen dataclass; paths in it become text.
    """
    return {
        "geolabel": geolabel.__version__,
        "method": method,
        "settings": {name: str(v) if isinstance(v, Path) else v for name, v in asdict(settings).items()},
        "networks": {recipe.role: asdict(recipe) for recipe in recipes},
        "images": {"count": len(images), "sha256_of_names_and_sizes": images.digest},
    }


Compose = Callable[[Localizer], Pipeline]
"""Creates a method from a localizer that knows the labels of the current chip. Pickled to the workers."""


@dataclass(frozen=True)
class _ChipImages:
    """Chips with the interface of `geolabel.labeling.label.Images`."""

    chips: ChipDataset

    @property
    def names(self) -> Sequence[str]:
        """Name of every chip."""
        return self.chips.names

    @property
    def sources(self) -> Sequence[Path]:
        """The folders of the chips."""
        return self.chips.sources

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the names, sizes and labels of the files, which identifies the same chips in another run."""
        marks = (
            f"{path.name} {path.stat().st_size} {shows.astype(int).tolist()}"
            for path, shows in zip(self.chips.paths, self.chips.labels, strict=True)
        )
        return hashlib.sha256("\n".join(marks).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.chips)

    def read(self, index: int) -> UInt8Array:
        """Read one chip (H, W, 3); its mask is never opened."""
        return self.chips.rgb(index)

    def weigh(self, index: int) -> float:
        """Approximate time of a chip, in pixels of the localizer: a chip that shows nothing is only written."""
        if not self.chips.labels[index].any():
            return WRITTEN
        height, width = picture_size(self.chips.paths[index]) or (0, 0)
        return WRITTEN + SEGMENTED + height * width


WRITTEN, SEGMENTED = 1000, 20_000
"""Pixels that the bundled localizer processes at all scales in the time needed to read and write a chip and to encode
it with the bundled segmenter, whatever its size."""


@dataclass(frozen=True)
class ActivatedLabels:
    """Labels chips with known classes."""

    localizer: Localizer
    compose: Compose

    def __call__(self, image: UInt8Array, shows: BoolArray) -> LabelMap:
        """Label an image (H, W, 3) that shows some of the classes (C,)."""
        return self.many([image], shows[None])[0]

    def many(self, images: Sequence[UInt8Array], shows: BoolArray) -> list[LabelMap]:
        """Label images (H, W, 3), given the classes (N, C) that each shows; those without a class are skipped."""
        from geolabel.models.multiscale import LabelledLocalizer  # imports PyTorch, which takes seconds

        asked = np.flatnonzero(shows.any(axis=1)).tolist()
        labelled = LabelledLocalizer(self.localizer, shows[asked])
        found = dict(zip(asked, self.compose(labelled).many([images[k] for k in asked]) if asked else (), strict=True))
        classes = BACKGROUND, *self.localizer.classes
        sizes = [(image.shape[0], image.shape[1]) for image in images]
        return [found.get(k) or LabelMap.background(*size, classes) for k, size in enumerate(sizes)]


@dataclass(frozen=True)
class _ChipLabels:
    """Labels chips by name, with a localizer that each process loads once."""

    localizer: Recipe
    multiscale: bool
    pamr: bool
    compose: Compose
    shows: Mapping[str, BoolArray]
    """(C,) classes of each chip."""

    def __call__(self, names: Sequence[str], images: Sequence[UInt8Array]) -> list[LabelMap]:
        """Label the images (H, W, 3) of chips."""
        localizer = worker.once(chip_localizer, self.localizer, multiscale=self.multiscale, pamr=self.pamr)
        return ActivatedLabels(localizer, self.compose).many(images, np.stack([self.shows[name] for name in names]))


def chip_localizer(recipe: Recipe, *, multiscale: bool = True, pamr: bool = False) -> Localizer:
    """The localizer of a recipe, for whole chips.

    Parameters
    ----------
    multiscale
        Whether the maps of four scales and of mirrored chips are summed, as in released code of these methods.
    pamr
        Whether maps are aligned with the edges of the image; see `geolabel.models.refinement.Pamr`.

    Raises
    ------
    WeightsError
        If its file holds something else.
    """
    from geolabel.models.multiscale import SCALES, MapModule, MultiscaleLocalizer
    from geolabel.models.refinement import PamrLocalizer

    path = loading.file_of(recipe)
    network: PyramidLocalizer | Classifier | MapModule
    if recipe.engine == "onnx":
        maps, info = loading.maps_of(recipe, path)
        network = MapModule(maps)
    else:
        network, info = load_localizer(path)
    views: dict[str, Any] = {"scales": SCALES, "flip": True} if multiscale else {"scales": (1.0,), "flip": False}
    localizer = MultiscaleLocalizer(network, info, device=recipe.device, precision=recipe.precision, **views)
    return PamrLocalizer(localizer, device=recipe.device) if pamr else localizer


def _learned_from_labels(localizer: Recipe) -> bool:
    """Whether a localizer was trained on labels of whole images only: its maps are coarse, which PAMR corrects."""
    return read_info(loading.file_of(localizer)).trained.get("supervision") == IMAGE_LABELS


def label_chips(
    chips: Path | ChipDataset,
    out: Path,
    method: str,
    settings: Any,
    recipes: Sequence[Recipe],
    compose: Compose,
    *,
    overwrite: bool,
    progress: Progress,
) -> dict[str, Any]:
    """Label chips, such as those of a folder or table, and write the pseudo-labels.

    Parameters
    ----------
    settings
        Settings of the method; its ``single_scale``, ``pamr`` and ``class_name`` are used.
    recipes
        Recipe of the localizer, followed by those of other networks.
    compose
        The method.

    Raises
    ------
    ChipError
        If the chips cannot be read.
    WeightsError
        If the localizer does not know the classes that the chips show.
    """
    from geolabel.datasets.chips import read_chips

    known = read_chips(chips, class_name=settings.class_name) if isinstance(chips, str | Path) else chips
    known = getattr(known, "by_number", known)  # of a GeoChips, the underlying chips
    if settings.pamr is None:
        settings = replace(settings, pamr=_learned_from_labels(recipes[0]))
    images, multiscale = _ChipImages(known), not settings.single_scale
    localizer = worker.once(chip_localizer, recipes[0], multiscale=multiscale, pamr=settings.pamr)
    if localizer.classes != known.classes:
        raise WeightsError(
            f"the localizer {recipes[0].source} knows {', '.join(localizer.classes)}, the chips show "
            f"{', '.join(known.classes)}: train one on them, or give --class-name if only the names differ"
        )
    label = _ChipLabels(
        recipes[0], multiscale, settings.pamr, compose, dict(zip(known.names, known.labels, strict=True))
    )
    provenance = label_provenance(method, settings, recipes, images)
    provenance["images"] |= {"gsd_m": known.gsd}
    writer = PseudoLabelWriter(out, (BACKGROUND, *localizer.classes), provenance)
    figures = label_images(
        images, label, writer, networks=recipes, weigh=images.weigh, overwrite=overwrite, progress=progress
    )
    return figures | {"without labels": int((~known.labels.any(axis=1)).sum())}

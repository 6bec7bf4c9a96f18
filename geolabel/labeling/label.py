"""From a folder of images to a folder of pseudo-labels, one image after the other; a stopped run goes on.

Memory does not grow with the number of images. What labels an image is a function: a `geolabel.pipeline.Pipeline` with
the size of its tiles, or anything else that a method is made of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Protocol

import geolabel
from geolabel.datasets.pseudo_labels import PseudoLabelWriter, labels_folder
from geolabel.engine.progress import Progress
from geolabel.labels import LabelMap
from geolabel.parts import Recipe
from geolabel.types import UInt8Array


class Images(Protocol):
    """Images that are read one by one, each known by its name."""

    @property
    def names(self) -> Sequence[str]:
        """Name of every image, each once."""
        ...

    @property
    def digest(self) -> str:
        """By what the same images are known again."""
        ...

    @property
    def sources(self) -> Sequence[Path]:
        """Files and folders that they are read from, which no output may be."""
        ...

    def __len__(self) -> int: ...

    def read(self, index: int) -> UInt8Array:
        """Read one image (H, W, 3), red first."""
        ...


LabelImage = Callable[[str, UInt8Array], LabelMap]
"""Labels an image (H, W, 3), red first, known by its name."""


def label_images(
    images: Images, label: LabelImage, writer: PseudoLabelWriter, *, overwrite: bool = False, progress: Progress
) -> dict[str, Any]:
    """Label every image that is not labelled yet, and finish the folder.

    Parameters
    ----------
    label
        Is asked about each image once, in order; its maps have the classes of `writer`.
    overwrite
        Whether what geolabel made in the folder before may be replaced, when the new labels are finished.

    Returns
    -------
    The figures that a user wants to see at the end.

    Raises
    ------
    SceneError
        If an image cannot be read.
    OutputError
        If the folder holds something else or cannot be written to.
    """
    with labels_folder(writer.root, writer.provenance, overwrite=overwrite, inputs=images.sources) as folder:
        return label_within(images, label, replace(writer, root=folder), progress)


def label_within(images: Images, label: LabelImage, writer: PseudoLabelWriter, progress: Progress) -> dict[str, Any]:
    """As `label_images`, in a folder of `labels_folder`."""
    names = images.names
    kept = sum(map(writer.has, names))
    for _ in progress.track(_labelled(images, label, writer), "label", len(names)):
        pass
    writer.finish(names, {"images": len(names)})
    return {"images": len(names), "kept": kept, "classes": len(writer.classes)}


def _labelled(images: Images, label: LabelImage, writer: PseudoLabelWriter) -> Iterator[str]:
    for index, name in enumerate(images.names):
        if not writer.has(name):
            image = images.read(index)
            writer.write(name, image, label(name, image))
        yield name


def label_provenance(method: str, settings: Any, recipes: Sequence[Recipe], images: Images) -> dict[str, Any]:
    """What pseudo-labels are made of and with, as plain values; a run goes on only with the same.

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

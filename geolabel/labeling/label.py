"""From a folder of images to a folder of pseudo-labels, image by image; a stopped run resumes.

Memory does not grow with the number of images. What labels an image is a function that travels to the workers: a record
of what a method is made of, which loads its networks there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import geolabel
from geolabel.datasets.pseudo_labels import RUN, PseudoLabelWriter, labels_folder
from geolabel.engine import executors, worker
from geolabel.engine.progress import Effort, Progress
from geolabel.engine.tasks import Pass, Work
from geolabel.folders import promise, written_elsewhere
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
        """Names the same images in another run."""
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
    images: Images,
    label: LabelImage,
    writer: PseudoLabelWriter,
    *,
    networks: Sequence[Recipe] = (),
    overwrite: bool = False,
    progress: Progress,
) -> dict[str, Any]:
    """Label every image that is not labelled yet, and finish the folder.

    Parameters
    ----------
    label
        Is asked about each image once; its maps have the classes of `writer`.
    networks
        Networks that it runs.
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
        return label_within(images, label, replace(writer, root=folder), progress, networks)


def label_within(
    images: Images, label: LabelImage, writer: PseudoLabelWriter, progress: Progress, networks: Sequence[Recipe] = ()
) -> dict[str, Any]:
    """As `label_images`, in a folder of `labels_folder`."""
    names = images.names
    missing = [index for index, name in enumerate(names) if not writer.has(name)]
    executors.check_seen(writer.root / RUN)
    promise(path for index in missing for path in writer.files(names[index]))
    work = Work(_Labelling(images, label, writer, tuple(networks)), Effort(), progress)
    for _ in work.each(LABEL, missing, networks=networks):
        pass
    writer.finish(names, {"images": len(names)})
    return {"images": len(names), "kept": len(names) - len(missing), "classes": len(writer.classes)}


@dataclass(frozen=True)
class _Labelling:
    """What the labelling of one image takes."""

    images: Images
    label: LabelImage
    writer: PseudoLabelWriter
    networks: tuple[Recipe, ...]


def _label(run: _Labelling, index: int) -> None:
    """Label an image and write it."""
    name, image = run.images.names[index], run.images.read(index)
    with worker.networks(run.networks, None):
        labels = run.label(name, image)
    with written_elsewhere(run.writer.root):
        run.writer.write(name, image, labels)


def _where(run: _Labelling, index: int) -> str:
    return f"image {run.images.names[index]}"


LABEL = Pass("label", _label, None, _where)


def label_provenance(method: str, settings: Any, recipes: Sequence[Recipe], images: Images) -> dict[str, Any]:
    """What pseudo-labels are made of and with, as plain values; a run resumes only with the same.

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

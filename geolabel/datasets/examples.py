"""Training images, alone or with label maps or objects, read one by one on access."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import numpy as np

from geolabel.datasets.pseudo_labels import unique_names
from geolabel.errors import SceneError
from geolabel.image_files import picture_size
from geolabel.io.read.scenes import SceneReader
from geolabel.labels import Instances
from geolabel.radiometry import Stretch
from geolabel.tiles import TileGrid
from geolabel.types import BoolArray, Int64Array, UInt8Array

Example = TypeVar("Example", covariant=True)

Outlined = tuple[UInt8Array, Instances]
"""An image (H, W, 3), RGB, and its objects, whose classes count from 1: the background is not one of them."""


class Examples(Protocol[Example]):
    """A set of examples. The names are known without reading the examples."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes; whether they include the background depends on the kind of examples."""
        ...

    @property
    def names(self) -> Sequence[str]:
        """Name of every image; each name is unique."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example:
        """Read one example."""
        ...


@dataclass(frozen=True)
class Subset(Generic[Example]):
    """Some of a set of examples, in the order of `index`."""

    whole: Examples[Example]
    index: Int64Array

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes of the whole set."""
        return self.whole.classes

    @property
    def names(self) -> tuple[str, ...]:
        """Name of every image."""
        return tuple(self.whole.names[i] for i in self.index)

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, index: int) -> Example:
        """Read one example."""
        return self.whole[int(self.index[index])]


class Painted(Protocol):
    """An image and its label map."""

    @property
    def image(self) -> UInt8Array:
        """(H, W, 3) RGB."""
        ...

    @property
    def values(self) -> UInt8Array:
        """(H, W) index into the classes, or `geolabel.labels.IGNORE`."""
        ...


class PaintedExamples(Examples[Painted], Protocol):
    """Images with label maps; `classes` names every value from 0, including the background if there is one."""

    @property
    def shown(self) -> BoolArray:
        """(N,) whether the label map of an image has a class other than the first, the background."""
        ...


@dataclass(frozen=True)
class PaintedSubset(Subset[Painted]):
    """Some of a set of images with label maps."""

    whole: PaintedExamples

    @property
    def shown(self) -> BoolArray:
        """(N,) whether an image shows a class."""
        return np.asarray(self.whole.shown[self.index], bool)


SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")

SAMPLED = 32
"""Number of images to fit the stretch of a folder to, if they are not 8-bit."""

PLAIN = Stretch((0.0,) * 3, (255.0,) * 3, "none")
"""Keeps 8-bit values unchanged."""


@dataclass(frozen=True)
class ImageFolder:
    """Images below a folder, in the order of their paths; each is read on access.

    If the folder contains a folder ``images``, as labelled chips do, only that is searched.

    Raises
    ------
    SceneError
        If the folder is not there or holds no image.
    """

    root: Path

    def __post_init__(self) -> None:
        if not self.root.is_dir():
            raise SceneError(f"{self.root} is not a folder: give a folder of images")
        if not self.paths:
            raise SceneError(f"{self.root} contains no image with one of the suffixes {', '.join(SUFFIXES)}")

    @cached_property
    def inner(self) -> Path:
        """The folder that contains the images."""
        inner = self.root / "images"
        return inner if inner.is_dir() else self.root

    @property
    def sources(self) -> Sequence[Path]:
        """The folder, and the one that contains the images, which may be a link to another."""
        return (self.root, self.inner)

    @cached_property
    def paths(self) -> Sequence[Path]:
        """The files."""
        return sorted(path for path in self.inner.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())

    @cached_property
    def names(self) -> list[str]:
        """A name for every image.

        Raises
        ------
        OptionError
            If two images have one name.
        """
        return unique_names(self.paths, self.inner)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the names and sizes of the files, by which the same images are recognised."""
        marks = (f"{path.relative_to(self.inner).as_posix()} {path.stat().st_size}" for path in self.paths)
        return hashlib.sha256("\n".join(marks).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> UInt8Array:
        """Read one image (H, W, 3), RGB; 0 where it is not valid.

        Raises
        ------
        SceneError
            If it cannot be read.
        """
        with _reader(self.paths[index]) as reader:
            grid = reader.scene.grid
            stretch = PLAIN if reader.scene.dtype == "uint8" else self._stretch
            return stretch.apply(*reader.read(grid.window, grid))

    def tiles(self, index: int, side: int) -> int:
        """Number of tiles of up to `side` pixels that cover an image, by its header; 1 if that cannot be read."""
        size = picture_size(self.paths[index])
        return 1 if size is None else len(TileGrid(*size, side, side // 4))

    @cached_property
    def _stretch(self) -> Stretch:
        # One for all images: with one stretch each, the same ground would look different in two images.
        bands, valid = [], []
        for index in np.unique(np.linspace(0, len(self) - 1, SAMPLED).astype(int)):
            with _reader(self.paths[index]) as reader:
                sample, known = reader.sample(1 << 16)
            bands.append(sample.reshape(3, -1))
            valid.append(known.ravel())
        return Stretch.from_sample(np.concatenate(bands, axis=1)[:, None], np.concatenate(valid)[None])


def _reader(path: Path) -> SceneReader:
    # position and pixel size do not matter here; a plain image needs some gsd
    placed = SceneReader(path)
    return placed if placed.header.crs is not None else SceneReader(path, gsd=1.0)

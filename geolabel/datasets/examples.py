"""Sets that a network learns from: images with their label maps or objects, read one by one, when asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np

from geolabel.labels import Instances
from geolabel.types import BoolArray, Int64Array, UInt8Array

Example = TypeVar("Example", covariant=True)

Outlined = tuple[UInt8Array, Instances]
"""An image (H, W, 3), red first, and its objects, whose classes count from 1: the background is none of them."""


class Examples(Protocol[Example]):
    """A set of examples. Names are at hand, the examples are not."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes; whether the background is one of them is up to the kind of examples."""
        ...

    @property
    def names(self) -> Sequence[str]:
        """Name of every image, each once."""
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
        """Of the whole."""
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
        """(H, W, 3) red first."""
        ...

    @property
    def values(self) -> UInt8Array:
        """(H, W) index into the classes, or `geolabel.labels.IGNORE`."""
        ...


class PaintedExamples(Examples[Painted], Protocol):
    """Images with label maps; `classes` names every value from 0, the background being one where there is one."""

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

"""What a network learns from: images with whatever is known of them, read one by one, when they are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from geolabel.labels import Instances
from geolabel.types import Int64Array, UInt8Array

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

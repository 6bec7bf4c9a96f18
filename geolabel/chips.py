"""Chips: small images with known classes, each labelled as a whole."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

from geolabel.errors import ChipError
from geolabel.types import BoolArray, Int64Array, UInt8Array

FOLDS = 5
"""One chip in so many is kept to select by; see `is_held_out`."""


@dataclass(frozen=True)
class Chip:
    """One image, its image-level labels and, where known, its mask."""

    name: str
    """The stem of its file; results are named after it."""
    rgb: UInt8Array
    """(H, W, 3), red first."""
    labels: BoolArray
    """(C,) which classes it shows."""
    mask: UInt8Array | None = None
    """(H, W) 0 background, k the k-th class from 1, `geolabel.labels.IGNORE` where unknown; None without a mask."""


class Chips(Protocol):
    """A set of chips. Names and labels are in memory; images are read one by one, on access."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, the background left out."""
        ...

    @property
    def names(self) -> tuple[str, ...]:
        """Name of every chip, each once."""
        ...

    @property
    def labels(self) -> BoolArray:
        """(N, C) which chip shows which class."""
        ...

    def __len__(self) -> int: ...

    def chip(self, index: int) -> Chip:
        """Read one chip."""
        ...

    def rgb(self, index: int) -> UInt8Array:
        """Read the image (H, W, 3) of one chip, and not its mask: what learns from labels looks at no mask."""
        ...


@dataclass(frozen=True)
class ChipList:
    """Chips that are in memory anyway."""

    classes: tuple[str, ...]
    chips: Sequence[Chip]

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Name of every chip."""
        return tuple(chip.name for chip in self.chips)

    @cached_property
    def labels(self) -> BoolArray:
        """(N, C) which chip shows which class."""
        return np.stack([chip.labels for chip in self.chips])

    def __len__(self) -> int:
        return len(self.chips)

    def chip(self, index: int) -> Chip:
        """One of the chips."""
        return self.chips[index]

    def rgb(self, index: int) -> UInt8Array:
        """Image of one of the chips."""
        return self.chips[index].rgb


@dataclass(frozen=True)
class ChipSubset:
    """Some of a set of chips, in the order of `index`."""

    whole: Chips
    index: Int64Array

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.whole.classes

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Name of every chip."""
        return tuple(self.whole.names[i] for i in self.index)

    @cached_property
    def labels(self) -> BoolArray:
        """(N, C) which chip shows which class."""
        part: BoolArray = self.whole.labels[self.index]
        return part

    def __len__(self) -> int:
        return len(self.index)

    def chip(self, index: int) -> Chip:
        """Read one chip."""
        return self.whole.chip(int(self.index[index]))

    def rgb(self, index: int) -> UInt8Array:
        """Read the image of one chip."""
        return self.whole.rgb(int(self.index[index]))


def is_held_out(name: str) -> bool:
    """Whether a chip is kept to select by: the SHA-1 of its name is 0 modulo `FOLDS`.

    The rule looks at nothing but the name, so a chip stays on its side when others are added.
    """
    return int(hashlib.sha1(name.encode(), usedforsecurity=False).hexdigest(), 16) % FOLDS == 0


def split(chips: Chips) -> tuple[ChipSubset, ChipSubset]:
    """Chips to learn from, and those to select by."""
    kept = np.fromiter((is_held_out(name) for name in chips.names), bool, len(chips))
    return ChipSubset(chips, np.flatnonzero(~kept)), ChipSubset(chips, np.flatnonzero(kept))


def check_learnable(chips: Chips) -> None:
    """Refuse labels from which no classifier can learn.

    Raises
    ------
    ChipError
        If there is no chip, or a class that all chips show, or none does.
    """
    if not len(chips):
        raise ChipError("there are no chips: give a folder with labels.csv, or one folder of images per class")
    for name, shown in zip(chips.classes, chips.labels.T, strict=True):
        count = int(shown.sum())
        if count == 0:
            raise ChipError(
                f"none of the {len(shown)} chips shows the class {name!r}: add some that do, or leave it out"
            )
        if count == len(shown):
            raise ChipError(
                f"all {count} chips show the class {name!r}: a classifier also needs chips without it; "
                "cut some from ground where there is none"
            )

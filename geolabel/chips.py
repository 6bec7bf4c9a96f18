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
"""One chip in this many is held out for model selection; see `is_held_out`."""


@dataclass(frozen=True)
class Chip:
    """One image, its image-level labels and, where known, its mask."""

    name: str
    """Stem of its file name; results are named after it."""
    rgb: UInt8Array
    """(H, W, 3), red first."""
    labels: BoolArray
    """(C,) whether it shows each class."""
    mask: UInt8Array | None = None
    """(H, W) 0 background, k the k-th class from 1, `geolabel.labels.IGNORE` if unknown; None without a mask."""


class Chips(Protocol):
    """A set of chips. Names and labels are in memory; images are read on access."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, without background."""
        ...

    @property
    def names(self) -> tuple[str, ...]:
        """Unique names of the chips."""
        ...

    @property
    def labels(self) -> BoolArray:
        """(N, C) whether each chip shows each class."""
        ...

    def __len__(self) -> int: ...

    def chip(self, index: int) -> Chip:
        """Read one chip."""
        ...

    def rgb(self, index: int) -> UInt8Array:
        """Read only the image (H, W, 3) of a chip: training on labels never reads masks."""
        ...


@dataclass(frozen=True)
class ChipList:
    """Chips in memory."""

    classes: tuple[str, ...]
    chips: Sequence[Chip]

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Name of every chip."""
        return tuple(chip.name for chip in self.chips)

    @cached_property
    def labels(self) -> BoolArray:
        """(N, C) whether each chip shows each class."""
        return np.stack([chip.labels for chip in self.chips])

    def __len__(self) -> int:
        return len(self.chips)

    def chip(self, index: int) -> Chip:
        """Return one chip."""
        return self.chips[index]

    def rgb(self, index: int) -> UInt8Array:
        """Image of one of the chips."""
        return self.chips[index].rgb


@dataclass(frozen=True)
class ChipSubset:
    """A subset of chips, in the order of `index`."""

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
        """(N, C) whether each chip shows each class."""
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
    """Whether a chip is held out for model selection: the SHA-1 of its name is 0 modulo `FOLDS`.

    The rule depends on the name only, so a chip stays on its side when others are added.
    """
    return int(hashlib.sha1(name.encode(), usedforsecurity=False).hexdigest(), 16) % FOLDS == 0


def split(chips: Chips) -> tuple[ChipSubset, ChipSubset]:
    """Training chips, and those held out for model selection."""
    kept = np.fromiter((is_held_out(name) for name in chips.names), bool, len(chips))
    return ChipSubset(chips, np.flatnonzero(~kept)), ChipSubset(chips, np.flatnonzero(kept))


def check_learnable(chips: Chips) -> None:
    """Refuse labels that a classifier cannot be trained on.

    Raises
    ------
    ChipError
        If there are no chips, or a class is shown by all chips or by none.
    """
    if not len(chips):
        raise ChipError("there are no chips: give a folder with labels.csv, or one folder of images per class")
    for name, shown in zip(chips.classes, chips.labels.T, strict=True):
        count = int(shown.sum())
        if count == 0:
            raise ChipError(f"none of the {len(shown)} chips shows the class {name!r}: add some that do, or omit it")
        if count == len(shown):
            raise ChipError(
                f"all {count} chips show the class {name!r}: a classifier also needs chips without it; "
                "cut some from ground without it"
            )

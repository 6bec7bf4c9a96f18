"""Images with label maps, whoever painted them: pseudo-labels, or chips with masks that a person drew."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from geolabel.chips import Chip
from geolabel.datasets.chips import ChipDataset, mask_path, read_chips
from geolabel.datasets.pseudo_labels import PseudoLabels
from geolabel.errors import ChipError
from geolabel.labels import BACKGROUND
from geolabel.types import BoolArray, UInt8Array


@dataclass(frozen=True)
class PaintedChip:
    """A chip that has a mask."""

    chip: Chip

    @property
    def image(self) -> UInt8Array:
        """(H, W, 3) red first."""
        return self.chip.rgb

    @property
    def values(self) -> UInt8Array:
        """(H, W) 0 background, k the k-th class from 1, 255 where unknown."""
        assert self.chip.mask is not None
        return self.chip.mask


@dataclass(frozen=True)
class PaintedChips:
    """Chips with masks; those that show nothing need none."""

    chips: ChipDataset

    @property
    def classes(self) -> tuple[str, ...]:
        """Name of every value from 0."""
        return (BACKGROUND, *self.chips.classes)

    @property
    def names(self) -> tuple[str, ...]:
        """Name of every chip."""
        return self.chips.names

    @property
    def sources(self) -> Sequence[Path]:
        """The folders of the chips."""
        return self.chips.sources

    @property
    def shown(self) -> BoolArray:
        """(N,) whether a chip shows a class."""
        shown: BoolArray = np.any(self.chips.labels, axis=1)
        return shown

    @cached_property
    def gsd(self) -> float | None:
        """Metres per pixel, if known."""
        return self.chips.gsd

    def __len__(self) -> int:
        return len(self.chips)

    def __getitem__(self, index: int) -> PaintedChip:
        """Read one chip."""
        return PaintedChip(self.chips.chip(index))


def read_painted(path: str | Path, *, class_name: str = "landslide") -> PseudoLabels | PaintedChips:
    """Find the label maps of a folder: of ``geolabel label``, or of chips with ``masks/``.

    Raises
    ------
    ChipError
        If the folder holds neither, or a chip that shows something has no mask.
    SceneError
        If its pseudo-labels are not finished.
    """
    path = Path(path)
    if (path / "manifest.json").is_file() or (path / "run.json").is_file():
        return PseudoLabels(path)
    chips = read_chips(path, class_name=class_name)
    shown: BoolArray = np.any(chips.labels, axis=1)
    bare = [file for file, shows in zip(chips.paths, shown, strict=True) if shows and not mask_path(file).is_file()]
    if bare:
        raise ChipError(
            f"{len(bare)} of {int(shown.sum())} chips that show something have no mask, such as {bare[0]}: label them "
            "with geolabel label, or add masks/ beside images/"
        )
    return PaintedChips(chips)

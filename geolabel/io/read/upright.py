"""Scenes that are stored upside down, mirrored or turned by quarters, read with north up and west on the left.

What networks see, where tiles begin and how ties are broken would otherwise depend on how a file is stored. The same
scene gives the same pixels in the same order, whichever of the eight ways it lies in. Scenes that are rotated by other
angles, or sheared, are read as they are stored: there is no order of their pixels that has north up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from affine import Affine

from geolabel.tiles import Window
from geolabel.types import AnyArray, BoolArray

if TYPE_CHECKING:
    from geolabel.io.read.headers import Header
    from geolabel.io.read.sources import Source


@dataclass(frozen=True)
class Turn:
    """How an upright picture becomes the stored one: flipped first, then transposed."""

    rows: bool = False
    columns: bool = False
    transposed: bool = False

    @classmethod
    def of(cls, transform: Affine | None) -> Turn:
        """The turn of a picture with this transform; none where it is rotated by less than a quarter."""
        if transform is None:
            return cls()
        a, b, _, d, e, _ = tuple(transform)[:6]
        if b == d == 0:
            return cls(rows=e > 0, columns=a < 0)
        if a == e == 0:
            return cls(rows=d > 0, columns=b < 0, transposed=True)
        return cls()

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the upright picture, or of the stored one from those of the upright."""
        return (width, height) if self.transposed else (height, width)

    def window(self, window: Window, height: int, width: int) -> Window:
        """Where a window of the upright picture of some size is in the stored one."""
        row = height - window.bottom if self.rows else window.row
        col = width - window.right if self.columns else window.col
        if self.transposed:
            return Window(col, row, window.width, window.height)
        return Window(row, col, window.height, window.width)

    def upright(self, values: AnyArray) -> AnyArray:
        """Stored values (..., h, w) as the upright picture has them."""
        if self == Turn():
            return values
        if self.transposed:
            values = values.swapaxes(-1, -2)
        rows, columns = (slice(None, None, -1 if flipped else None) for flipped in (self.rows, self.columns))
        return np.ascontiguousarray(values[..., rows, columns])

    def transform(self, stored: Affine, height: int, width: int) -> Affine:
        """The transform of the upright picture of a height and a width."""
        turned = stored * Affine(0, 1, 0, 1, 0, 0) if self.transposed else stored
        if self.rows:
            turned = turned * Affine(1, 0, 0, 0, -1, height)
        return turned * Affine(-1, 0, width, 0, 1, 0) if self.columns else turned


class Upright:
    """A source of pixels with north up and west on the left; it opens its source when it is first read."""

    def __init__(self, stored: Source) -> None:
        self.stored = stored

    @cached_property
    def turn(self) -> Turn:
        """How the source is stored."""
        stored = self.stored.header
        return Turn.of(stored.transform if stored.crs is not None else None)  # without a CRS there is no north

    @cached_property
    def header(self) -> Header:
        """What the source says of itself, upright."""
        stored = self.stored.header
        if stored.transform is None or self.turn == Turn():
            return stored
        height, width = self.turn.size(stored.height, stored.width)
        return replace(
            stored, height=height, width=width, transform=self.turn.transform(stored.transform, height, width)
        )

    @property
    def levels(self) -> tuple[tuple[int, int], ...]:
        """Height and width of the raster and its overviews."""
        return tuple(self.turn.size(*level) for level in self.stored.levels)

    def read(self, bands: Sequence[int], window: Window, level: int = 0) -> tuple[AnyArray, BoolArray]:
        """Values (B, h, w) and where no mask and no alpha band hides them (h, w)."""
        where = window if self.turn == Turn() else self.turn.window(window, *self.levels[level])
        values, valid = self.stored.read(bands, where, level)
        return self.turn.upright(values), self.turn.upright(valid)

    def decimate(self, bands: Sequence[int], height: int, width: int) -> tuple[AnyArray, BoolArray]:
        """The whole raster at another size, each pixel picked from the nearest one stored."""
        values, valid = self.stored.decimate(bands, *self.turn.size(height, width))
        return self.turn.upright(values), self.turn.upright(valid)

    def close(self) -> None:
        """Give back what was opened."""
        self.stored.close()

"""Several scenes on one grid as a single pixel source, so that tiles cross scene borders without seams.

Each scene is stretched separately to 8-bit red, green and blue. Where scenes overlap, the first one with a valid pixel
is shown. Only scenes under the window are opened.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from geolabel.io.read.headers import Header
from geolabel.io.read.scenes import SceneReader
from geolabel.io.read.sources import Source
from geolabel.radiometry import Stretch
from geolabel.resampling import axes
from geolabel.scene import Grid
from geolabel.tiles import Window
from geolabel.types import BoolArray, Int32Array, Int64Array, UInt8Array

OPEN_SCENES = 64
"""Maximum open scenes per process; operating systems limit open files to several hundred."""

ROWS_PX = 1 << 22
"""Maximum pixels examined at once to find which scene is shown."""

NO_SCENE = -1
"""Scene number where no scene has a valid pixel."""


@dataclass(frozen=True)
class SceneLayer:
    """One scene of a mosaic. `Layer` is an output layer, `Layers` are scores."""

    reader: SceneReader
    name: str
    window: Window
    """Its window on the grid of the mosaic."""
    stretch: Stretch
    event_date: str | None = None


class SceneMosaic:
    """Scenes on one grid, the first on top. Pickled by its arguments.

    Parameters
    ----------
    grid
        Contains the windows of all layers.
    layers
        In order of precedence.
    """

    def __init__(self, grid: Grid, layers: Sequence[SceneLayer]) -> None:
        self.grid = grid
        self.layers = tuple(layers)
        self._windows = np.asarray([(w.row, w.col, w.bottom, w.right) for w in (s.window for s in self.layers)])
        self._using: dict[int, int] = {}
        self._opening = threading.Lock()

    def __reduce__(self) -> tuple[type[SceneMosaic], tuple[Grid, tuple[SceneLayer, ...]]]:
        return type(self), (self.grid, self.layers)

    @cached_property
    def header(self) -> Header:
        """Header of the mosaic: an image of three 8-bit bands."""
        first, others = self.layers[0].name, len(self.layers) - 1
        date = common_date([layer.event_date for layer in self.layers])
        return Header(
            name=f"{first} and {others} more" if others else first,
            height=self.grid.height,
            width=self.grid.width,
            crs=self.grid.crs,
            transform=self.grid.transform,
            dtypes=("uint8",) * 3,
            nodata=(None,) * 3,
            descriptions=(None,) * 3,
            colours=("red", "green", "blue"),
            masked=(False,) * 3,
            tags={} if date is None else {"DATE_ACQUIRED": date},
        )

    @property
    def levels(self) -> tuple[tuple[int, int], ...]:
        """A mosaic has no overviews, as those of its scenes need not share a grid."""
        return ((self.grid.height, self.grid.width),)

    def read(self, bands: Sequence[int], window: Window, level: int = 0) -> tuple[UInt8Array, BoolArray]:
        """Stretched values (B, h, w), and where any scene is valid (h, w)."""
        assert level == 0, "a mosaic has no overviews"
        values = np.zeros((3, window.height, window.width), np.uint8)
        valid = np.zeros((window.height, window.width), bool)
        for index, here in self._beneath(window, valid):
            image, good = self._image(index, window, here)
            np.copyto(values[:, *here], image, where=good & ~valid[here])
            valid[here] |= good
        return (values if list(bands) == [1, 2, 3] else values[[band - 1 for band in bands]]), valid

    def decimate(self, bands: Sequence[int], height: int, width: int) -> tuple[UInt8Array, BoolArray]:
        """The whole mosaic at another size, by nearest neighbour."""
        rows = (2 * np.arange(height) + 1) * self.grid.height // (2 * height)
        cols = (2 * np.arange(width) + 1) * self.grid.width // (2 * width)
        values = np.zeros((len(bands), height, width), np.uint8)
        valid = np.zeros((height, width), bool)
        for k, row in enumerate(rows):
            line, good = self.read(bands, Window(int(row), 0, 1, self.grid.width))
            values[:, k], valid[k] = line[:, 0, cols], good[0, cols]
        return values, valid

    def scene_numbers(self, window: Window) -> Int32Array:
        """Number (h, w) of the scene shown in each pixel of a window, or `NO_SCENE`."""
        shown = np.full((window.height, window.width), NO_SCENE, np.int32)
        covered = np.zeros(shown.shape, bool)
        for index, here in self._beneath(window, covered):
            _, good = self._image(index, window, here)
            shown[here][good & ~covered[here]] = index
            covered[here] |= good
        return shown

    def scene_numbers_on(self, grid: Grid, window: Window) -> Int32Array:
        """Number (h, w) of the scene shown at the centre of each pixel of a window of a working grid."""
        tall, wide = axes(self.grid, grid)
        if tall.aligned and wide.aligned:
            moved = Window(window.row + int(tall.offset), window.col + int(wide.offset), window.height, window.width)
            return self.scene_numbers(moved)
        rows, cols = (
            np.asarray([int(axis.offset + (2 * k + 1) * axis.scale / 2) for k in range(first, last)])
            for axis, first, last in ((tall, window.row, window.bottom), (wide, window.col, window.right))
        )
        left, right = int(cols[0]), int(cols[-1]) + 1
        shown = np.full((window.height, window.width), NO_SCENE, np.int32)
        step = max(1, int(ROWS_PX / (right - left) / max(1.0, float(tall.scale))))
        for first in range(0, window.height, step):
            some = rows[first : first + step]
            top, bottom = int(some[0]), int(some[-1]) + 1
            shown[first : first + step] = self.scene_numbers(Window(top, left, bottom - top, right - left))[some - top][
                :, cols - left
            ]
        return shown

    def meeting(self, window: Window) -> Int64Array:
        """Ascending numbers of the scenes that intersect a window."""
        top, left, bottom, right = self._windows.T
        return np.flatnonzero(
            (top < window.bottom) & (bottom > window.row) & (left < window.right) & (right > window.col)
        )

    def close(self) -> None:
        """Close all scenes; reading again opens again."""
        for layer in self.layers:
            layer.reader.close()

    @contextmanager
    def opened(self, index: int) -> Iterator[SceneReader]:
        """Borrow the reader of a scene; the least recently used ones are closed if too many are open."""
        with self._opening:
            self._using[index] = self._using.pop(index, 0) + 1
        try:
            yield self.layers[index].reader
        finally:
            with self._opening:
                self._using[index] -= 1
                idle = [other for other, users in self._using.items() if not users]
                for other in idle[: max(0, len(self._using) - OPEN_SCENES)]:
                    del self._using[other]
                    self.layers[other].reader.close()

    def _beneath(self, window: Window, covered: BoolArray) -> Iterator[tuple[int, tuple[slice, slice]]]:
        """Yield the scenes under a window, from the top, with the part of the window they cover."""
        for index in self.meeting(window).tolist():
            shared = self.layers[index].window.shared(window)
            here = shared.within(window)
            if not covered[here].all():
                yield index, here

    def _image(self, index: int, window: Window, here: tuple[slice, slice]) -> tuple[UInt8Array, BoolArray]:
        """Stretched image (3, h, w) and validity of a scene under a part of a window."""
        layer = self.layers[index]
        rows, cols = here
        part = Window(
            window.row + rows.start - layer.window.row,
            window.col + cols.start - layer.window.col,
            rows.stop - rows.start,
            cols.stop - cols.start,
        )
        with self.opened(index) as reader:
            bands, valid = reader.read(part, reader.scene.grid)
        return np.moveaxis(layer.stretch.apply(bands, valid), 2, 0), valid


def scene_mosaic_of(reader: SceneReader) -> SceneMosaic | None:
    """The scene mosaic behind a reader; None for a single scene."""
    return reader.source if isinstance(reader.source, SceneMosaic) else None


def common_date(dates: Sequence[str | None]) -> str | None:
    """The common date, or None."""
    return dates[0] if len(set(dates)) == 1 else None


def _is_source(mosaic: SceneMosaic) -> Source:
    return mosaic

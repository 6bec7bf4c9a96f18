"""Masks: rasters on any grid and CRS whose non-zero pixels are excluded from a scene, such as clouds.

A pixel of a mask hides ground if its value is not zero, nodata or NaN, and it is not hidden by a mask or alpha band of
its file. This is the opposite of GDAL's mask bands, where zero hides. Ground outside the mask is not hidden. In a
delivery of Sentinel-2, Landsat or PlanetScope, the quality raster marks clouds and their shadows as hidden.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from rasterio.features import shapes

from geolabel.errors import SceneError
from geolabel.io.read import files
from geolabel.io.read.aligned import AlignedReader, overlaps
from geolabel.io.read.deliveries import Quality, find_quality
from geolabel.io.read.scenes import SceneReader
from geolabel.scene import Grid
from geolabel.tiles import Window
from geolabel.types import AnyArray, BoolArray

log = logging.getLogger(__name__)

FLAG = 100
"""Replaces values that are not zero: it fits all dtypes, and its means are accurate to 1 %."""

SHARE = 0.5
"""Minimum flagged share of the known part of a pixel for the pixel to be hidden."""

LOOK_PX = 1 << 20
"""Maximum number of pixels of the grid on which the hidden share of a scene is measured."""


@dataclass(frozen=True)
class Mask:
    """A raster that hides parts of scenes on other grids. Pickled by its arguments."""

    reader: AlignedReader

    @property
    def name(self) -> str:
        """The user's name for it."""
        return self.reader.reader.scene.name

    def hidden(self, window: Window, grid: Grid) -> BoolArray:
        """Hidden pixels (height, width) of a window of a grid; the window may extend beyond the grid.

        Raises
        ------
        SceneError
            If only one of the mask and the grid has a CRS.
        TileError
            If the mask cannot be read.
        """
        flags, known = self.reader.read(window, grid)
        hidden: BoolArray = known & (flags[0] >= SHARE * FLAG)
        return hidden


class _Flags(SceneReader):
    """A single-band raster as flags: `FLAG` where its value hides ground, else 0.

    Parameters
    ----------
    quality
        Which values hide ground; None for all except zero.
    settings
        Passed to `SceneReader`.
    """

    def __init__(self, source: Any, *, quality: Quality | None = None, **settings: Any) -> None:
        super().__init__(source, **settings)
        self._recipe = partial(self._recipe, quality=quality)
        self._quality = quality

    def _finish(self, stored: AnyArray, valid: BoolArray) -> tuple[AnyArray, BoolArray]:
        bands, valid = super()._finish(stored, valid)
        return np.where(self._hides(bands), FLAG, 0).astype(bands.dtype), valid

    def _hides(self, bands: AnyArray) -> BoolArray:
        if self._quality is None:
            return np.asarray(bands != 0)
        if bands.dtype.kind not in "iu":
            raise SceneError(f"{self.scene.name} holds {bands.dtype}, but cloud masks hold integers: download it again")
        return np.asarray(np.isin(bands, self._quality.values) | ((bands & self._quality.bits) != 0))


def open_masks(
    paths: Sequence[str | Path], grids: Sequence[Grid], option: str, *, gsd: float | None = None
) -> tuple[Mask, ...]:
    """Open the masks of scenes on some grids.

    Parameters
    ----------
    paths
        Single-band rasters, or deliveries (`geolabel.io.read.deliveries`), whose quality raster is used.
    option
        Name of the user's option, for errors.
    gsd
        Metres per pixel of masks without CRS.

    Raises
    ------
    SceneError
        If one cannot be opened, has more than one band, or overlaps no grid.
    """
    masks = []
    for path in paths:
        quality = find_quality(files.vsi_path(str(path)))
        if quality is None:
            reader = _Flags(path, gsd=gsd)
        else:  # no nodata: zero means not clear in udm2; in SCL it means no data, which hides nothing
            reader = _Flags(quality.path, quality=quality, bands=(1,), nodata=-1, name=str(path))
        if quality is None and reader.scene.band_count != 1:
            raise SceneError(
                f"{option} {reader.scene.name} has {reader.scene.band_count} bands: give a raster of one band, which "
                "is not zero where the scene is to be excluded (gdal_translate -b 1 IN OUT)"
            )
        mask = Mask(AlignedReader(reader, bands=1))
        overlaps(mask.reader, grids, option)
        masks.append(mask)
    return tuple(masks)


def hidden_share(reader: SceneReader, grid: Grid, option: str) -> float:
    """Share of a grid (0..1) that the masks of a scene hide, measured on at most `LOOK_PX` pixels.

    Raises
    ------
    SceneError
        If they hide all of it.
    """
    if not reader.masks:
        return 0.0
    coarse = _coarse(grid)
    share = float(reader.hidden(coarse.window, coarse).mean())
    names = ", ".join(mask.name for mask in reader.masks)
    if share == 1:
        raise SceneError(
            f"{option} {names} hides all of {reader.scene.name}: non-zero pixels are hidden, so give a "
            "mask that is zero where the scene is clear (gdal_calc.py -A IN --outfile OUT --calc 'A==0')"
        )
    log.info("%s: %.1f %% of %s is hidden", names, 100 * share, reader.scene.name)
    return share


def hidden_ground(reader: SceneReader, grid: Grid) -> AnyArray:
    """Ground hidden by the masks of a scene, as polygons (N,) in the CRS of a grid, on at most `LOOK_PX` pixels."""
    coarse = _coarse(grid)
    hidden = reader.hidden(coarse.window, coarse)
    found = shapes(hidden.astype(np.uint8), mask=hidden, transform=coarse.transform)
    return np.array([*(shapely.geometry.shape(part) for part, _ in found), None], object)[:-1]


def _coarse(grid: Grid) -> Grid:
    """A grid of at most `LOOK_PX` pixels over the same ground."""
    step = max(1.0, math.sqrt(grid.height * grid.width / LOOK_PX))
    return grid.resized(max(1, int(grid.height / step)), max(1, int(grid.width / step)))

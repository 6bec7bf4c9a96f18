"""Rasters of labels: the meaning of their values, and which pixels are unknown."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyproj
from affine import Affine
from rasterio.crs import CRS
from rasterio.enums import ColorInterp, MaskFlags, Resampling
from rasterio.errors import RasterioError
from rasterio.io import DatasetReader
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window as RasterWindow

from geolabel.errors import SceneError
from geolabel.io.error_messages import in_words
from geolabel.io.read.opening import reading
from geolabel.labels import IGNORE
from geolabel.scene import Grid
from geolabel.tiles import Window
from geolabel.types import AnyArray, BoolArray

NAMED = 10
"""Maximum number of values listed in a message."""

ANY_CRS = CRS.from_epsg(3857)
"""Placeholder for a missing CRS: coordinates are then not transformed."""


def is_raster(path: str | Path) -> bool:
    """Whether GDAL can open a file as a raster."""
    try:
        with reading(str(path)):
            return True
    except RasterioError:
        return False


@contextmanager
def _translated(path: str | Path) -> Iterator[None]:
    try:
        yield
    except RasterioError as error:
        raise SceneError(f"{path} cannot be read as a raster: {in_words(error)}") from error


@dataclass(frozen=True)
class LabelRaster:
    """A raster whose values are classes. It is opened for every access.

    A band tag ``class_K`` names the class of value K. Without tags, value 1 is the requested class if there is no other
    value, else value K is class_K. A mask of 0 and white (255, or 65535 in 16 bits) shows the class in white; 255
    beside other values is unknown. Nodata is unknown too, except a nodata of 0, which many masks declare for their
    background without meaning that the background is unknown.
    """

    path: str
    grid: Grid
    """Grid of the raster: its own, or that of the scene it was made for."""
    classes: dict[int, str]
    """Name of every value except background, ascending."""
    nodata: float | None
    """Declared nodata."""
    named: bool
    """Whether the raster names its classes."""
    white: bool
    """Whether the only class is white."""

    @classmethod
    def open(cls, path: str | Path, *, class_name: str = "landslide", scene: Grid | None = None) -> LabelRaster:
        """Read all values of a raster once, to determine their meaning.

        Parameters
        ----------
        class_name
            Name of the class in a raster with one unnamed class.
        scene
            Grid of the scene that a raster without georeference belongs to.

        Raises
        ------
        SceneError
            If it cannot be read, its bands differ, a value is negative or not an integer, the compression is lossy,
            there is no background, or it has no georeference and not the size of the scene.
        """
        with _translated(path), reading(str(path)) as dataset:
            grid = _place(str(path), dataset, scene)
            nodata = dataset.nodata
            found, gaps = _scan(str(path), dataset)
            tags = _class_tags(dataset, 1)
            whites = {IGNORE, *([np.iinfo(dataset.dtypes[0]).max] if dataset.dtypes[0].startswith("uint") else [])}
        if tags:
            return cls(str(path), grid, tags, nodata, named=True, white=False)
        if gaps and len(found) == 1 and 0 not in found:
            raise SceneError(
                f"the only known value of {path} is {found.pop()}, the rest is nodata or transparent: set its "
                "background to 0 without nodata (gdal_edit.py -unsetnodata)"
            )
        found.discard(0)
        if len(found) == 1 and found <= whites:
            return cls(str(path), grid, {found.pop(): class_name}, nodata, named=False, white=True)
        values = sorted(found - {IGNORE})
        names = [class_name] if values == [1] else [f"class_{value}" for value in values]
        return cls(str(path), grid, dict(zip(values, names, strict=True)), nodata, named=False, white=False)

    def listed(self) -> str:
        """The classes, or their values if unnamed, for a message."""
        words = list(self.classes.values() if self.named else map(str, self.classes))
        return ", ".join(words[:NAMED]) + (f" and {len(words) - NAMED} more" if len(words) > NAMED else "")

    def read(self, window: Window, grid: Grid | None = None) -> tuple[AnyArray, BoolArray]:
        """Values (H, W) of a window and where they are known; nearest neighbour on a grid other than its own.

        Raises
        ------
        SceneError
            If they cannot be read.
        """
        place = RasterWindow(window.col, window.row, window.width, window.height)
        with _translated(self.path), reading(str(self.path)) as dataset:
            if grid is None or _same(grid, self.grid):
                values, known = _read(dataset, place)
            else:
                kinds = dataset.colorinterp
                alpha = kinds.index(ColorInterp.alpha) + 1 if ColorInterp.alpha in kinds else len(kinds) + 1
                onto = self._onto(grid, src_nodata=dataset.nodata or None, add_alpha=alpha > len(kinds))
                # GDAL treats the alpha of signed and floating-point rasters as an ordinary band, and so does this
                with WarpedVRT(dataset, **onto) as warped:
                    values, known = warped.read(1, window=place), warped.read(alpha, window=place) > 0
        if values.dtype.kind == "f":
            known &= np.isfinite(values)
            values = np.where(known, values, 0).astype(np.int64)
        return values, known if self.white else known & (values != IGNORE)

    def number(self, values: AnyArray, wanted: Sequence[int]) -> AnyArray:
        """One-based position of each of `values` in the requested values; 0 for others."""
        order = np.argsort(wanted)
        ascending = np.asarray(wanted)[order]
        at = np.minimum(np.searchsorted(ascending, values), len(ascending) - 1)
        return np.where(ascending[at] == values, order[at] + 1, 0)

    def _onto(self, grid: Grid, **options: Any) -> dict[str, Any]:
        own, other = self.grid.crs, grid.crs
        apart = own is None or other is None or own.geodetic_crs is None or other.geodetic_crs is None
        source, target = (ANY_CRS, ANY_CRS) if apart else (_rasterio(own), _rasterio(other))
        return {
            "src_crs": source,
            "crs": target,
            "src_transform": self.grid.transform,
            "transform": grid.transform,
            "height": grid.height,
            "width": grid.width,
            "nodata": None,
            "resampling": Resampling.nearest,
            **options,
        }


def _class_tags(dataset: DatasetReader, band: int) -> dict[int, str]:
    tags = {int(key[6:]): name for key, name in dataset.tags(band).items() if re.fullmatch(r"class_\d{1,10}", key)}
    return dict(sorted(tags.items()))


def named_values(path: str | Path, band: int = 1) -> dict[int, str]:
    """Values that a band names with tags ``class_K``, ascending, and their names; empty if there is no such band.

    Raises
    ------
    SceneError
        If the raster cannot be read.
    """
    with _translated(path), reading(str(path)) as dataset:
        return _class_tags(dataset, band) if band <= dataset.count else {}


def _rasterio(crs: pyproj.CRS | None) -> CRS | None:
    return None if crs is None else CRS.from_wkt(crs.to_wkt())


def _same(one: Grid, other: Grid) -> bool:
    size = (one.height, one.width) == (other.height, other.width)
    crs = one.crs is None or other.crs is None or one.crs.equals(other.crs, ignore_axis_order=True)
    return size and crs and one.transform.almost_equals(other.transform)


def grid_of(path: str | Path) -> Grid:
    """Grid of a raster; without georeference, pixels count downwards, as in scenes without CRS.

    Raises
    ------
    SceneError
        If it cannot be read.
    """
    with _translated(path), reading(str(path)) as dataset:
        return _place(str(path), dataset, None)


def is_unplaced(grid: Grid) -> bool:
    """Whether a raster has no georeference."""
    return grid.crs is None and grid.transform == Affine(1, 0, 0, 0, -1, 0)


def _place(path: str, dataset: DatasetReader, scene: Grid | None) -> Grid:
    crs = None if dataset.crs is None else pyproj.CRS.from_wkt(dataset.crs.to_wkt())
    if crs is not None or dataset.transform != Affine.identity():
        return Grid(crs, dataset.transform, dataset.height, dataset.width)
    if scene is None:
        return Grid(None, Affine(1, 0, 0, 0, -1, 0), dataset.height, dataset.width)
    if (dataset.height, dataset.width) != (scene.height, scene.width):
        raise SceneError(
            f"{path} has no georeference and {dataset.height} x {dataset.width} px, but the scene has "
            f"{scene.height} x {scene.width} px: give a raster of the scene's size, or one with a georeference"
        )
    return scene


def _read(dataset: DatasetReader, window: RasterWindow | None) -> tuple[AnyArray, BoolArray]:
    values = dataset.read(1, window=window)
    if dataset.nodata == 0 and MaskFlags.nodata in dataset.mask_flag_enums[0]:
        return values, np.ones(values.shape, bool)
    return values, np.asarray(dataset.read_masks(1, window=window) > 0)


def _scan(path: str, dataset: DatasetReader) -> tuple[set[int], bool]:
    """All known values, and whether any pixel is unknown."""
    if "JPEG" in (dataset.driver, dataset.profile.get("compress", "").upper()):
        raise SceneError(f"{path} is compressed as JPEG, which changes values: give labels as PNG or GeoTIFF")
    found: set[int] = set()
    gaps = False
    others = [k for k, kind in enumerate(dataset.colorinterp, 1) if k > 1 and kind != ColorInterp.alpha]
    for _, block in dataset.block_windows(1):
        values, known = _read(dataset, block)
        if any(not np.array_equal(values, dataset.read(k, window=block)) for k in others):
            raise SceneError(
                f"{path} has {dataset.count} bands that differ: give the one that holds the labels "
                "(gdal_translate -b 1 IN OUT)"
            )
        known &= np.isfinite(values)
        gaps |= not known.all()
        distinct = np.unique(values[known])
        strange = distinct[(distinct < 0) | (distinct != np.rint(distinct))]
        if len(strange):
            way = "declare it as nodata (gdal_edit.py -a_nodata)" if strange[0] < 0 else "make a mask of scores first"
            raise SceneError(
                f"{path} holds the value {strange[0]:g}, but labels are integers from 0: {way} if it is not a label"
            )
        found |= {int(value) for value in distinct}
    return found, gaps

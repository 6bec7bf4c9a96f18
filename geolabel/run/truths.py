"""What an inventory says of a scene: windows of chips, which classes each shows, and where."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely
from rasterio.crs import CRS
from rasterio.enums import Resampling
from rasterio.errors import RasterioError
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window as RasterWindow

from geolabel.datasets.tables import NOT_KNOWN, is_yes, means_nothing, plain
from geolabel.errors import ChipError, OptionError
from geolabel.io.burning import burn, in_pixels
from geolabel.io.features import read_features
from geolabel.io.foreign import in_words
from geolabel.io.opening import reading
from geolabel.labels import IGNORE
from geolabel.scene import Grid
from geolabel.tiles import TileGrid, Window, window_around
from geolabel.types import AnyArray, UInt8Array

RASTERS = (".tif", ".tiff", ".vrt", ".img", ".png")

LABEL_COLUMNS = ("label", "class")
"""Attributes that may say what a point or a polygon is."""


class Truth(Protocol):
    """What is known of a scene: the windows to cut, and what each shows."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, the background left out."""
        ...

    def windows(self, size: int, overlap: int) -> Iterator[tuple[Window, tuple[bool, ...] | None]]:
        """Windows, and their labels where these do not follow from the mask."""
        ...

    def mask(self, window: Window) -> UInt8Array | None:
        """(H, W) numbers of classes; None where nothing is known of single pixels."""
        ...


def read_truth(
    path: Path,
    grid: Grid,
    *,
    layer: str | None = None,
    class_column: str | None = None,
    class_name: str = "landslide",
    classes: Sequence[str] = (),
) -> Truth:
    """Open an inventory of a scene.

    Parameters
    ----------
    path
        Polygons or points of a vector file, or a raster whose values are numbers of classes.
    grid
        Of the scene.
    layer, class_column
        Of the vector file; the column is `LABEL_COLUMNS` by default, if there is one.
    class_name
        Of features without a class, and of the value 1 of a raster that does not name its values.
    classes
        Only these; all by default.

    Raises
    ------
    OptionError
        If there is no such column.
    ChipError
        If it holds none of the classes, or neither polygons nor points.
    VectorError
        If a vector file cannot be read.
    """
    if path.suffix.lower() in RASTERS:
        return RasterTruth.open(path, grid, class_name, classes)
    features = read_features(path, grid.crs, layer)
    if class_column is not None and class_column not in features:
        raise OptionError(f"{path} has no column {class_column!r}: it has {', '.join(map(str, features.columns))}")
    column = class_column or _column(features)
    labels = [class_name] * len(features) if column is None else _labels(path, features[column], class_name)
    if classes:
        labels = [label if label in classes else "" for label in labels]
    found = tuple(sorted({label for label in labels if label}))
    if not found:
        raise ChipError(f"{path} holds no {' or '.join(classes) or class_name}: an inventory needs one at least")
    if len(found) >= IGNORE:
        raise ChipError(f"column {column} of {path} holds {len(found)} classes, and chips have up to {IGNORE - 1}: "
                        "choose another column or some of the classes")  # fmt: skip
    shapes = in_pixels(features.geometry.to_numpy(), grid)
    numbers = np.array([found.index(label) + 1 if label else 0 for label in labels], np.uint8)
    kinds = {kind.removeprefix("Multi") for kind in features.geometry.geom_type}
    if kinds == {"Point"}:
        return PointTruth(found, grid, shapely.get_parts(shapes), numbers)
    if kinds != {"Polygon"}:
        raise ChipError(f"{path} holds {', '.join(sorted(kinds))}: give polygons, points, or a raster of classes")
    return PolygonTruth(found, grid, shapes, numbers)


def _column(features: gpd.GeoDataFrame) -> str | None:
    """The attribute that says what a feature is, if there is one and it says so of any feature."""
    return next((name for name in LABEL_COLUMNS if name in features and features[name].notna().any()), None)


def _labels(path: Path, values: pd.Series[Any], class_name: str) -> list[str]:
    """Class of every feature; empty for none."""
    texts = ["" if pd.isna(value) else plain(value) for value in values]
    unknown = sum(text.lower() in NOT_KNOWN for text in texts)
    if unknown:
        raise ChipError(
            f"{unknown} of {len(texts)} features of {path} have no class in column {values.name}: write 0 or none "
            "where nothing is shown, take out what nobody has looked at, or name another column (--class-column)"
        )
    return [_class(text, class_name) for text in texts]


def _class(text: str, class_name: str) -> str:
    yes = is_yes(text)
    if yes is None:
        return "" if means_nothing(text) else text
    return class_name if yes else ""


@dataclass(frozen=True)
class PolygonTruth:
    """Polygons of classes; the ground outside shows nothing."""

    classes: tuple[str, ...]
    grid: Grid
    shapes: AnyArray
    """(N,) in pixels of the grid."""
    numbers: UInt8Array
    """(N,) class of each from 1, or 0."""

    def windows(self, size: int, overlap: int) -> Iterator[tuple[Window, None]]:
        """All windows of the grid."""
        return _grid_windows(self.grid, size, overlap)

    @cached_property
    def _tree(self) -> shapely.STRtree:
        return shapely.STRtree(self.shapes)

    def mask(self, window: Window) -> UInt8Array:
        """(H, W) class of each pixel from 1, or 0."""
        return burn(self._tree, self.numbers, window)


@dataclass(frozen=True)
class PointTruth:
    """Points, each of which labels one window around it."""

    classes: tuple[str, ...]
    grid: Grid
    points: AnyArray
    """(N,) in pixels of the grid."""
    numbers: UInt8Array
    """(N,) class of each from 1; 0 of one that says that nothing is there."""

    def windows(self, size: int, overlap: int) -> Iterator[tuple[Window, tuple[bool, ...]]]:  # noqa: ARG002
        """Windows around the points, with the classes of all points whose window it is."""
        seen: dict[Window, set[int]] = {}
        for point, number in zip(self.points, self.numbers, strict=True):
            if 0 <= point.y < self.grid.height and 0 <= point.x < self.grid.width:
                window = window_around(point.y, point.x, size, self.grid.height, self.grid.width)
                seen.setdefault(window, set()).add(int(number))
        for window, numbers in sorted(seen.items()):
            yield window, tuple(k in numbers for k in range(1, len(self.classes) + 1))

    def mask(self, window: Window) -> None:
        """Nothing is known of single pixels."""


@dataclass(frozen=True)
class RasterTruth:
    """A raster of classes, on any grid."""

    classes: tuple[str, ...]
    grid: Grid
    path: Path
    values: tuple[int, ...]
    """Value of each class; `IGNORE` is not known, all else background."""

    @classmethod
    def open(cls, path: Path, grid: Grid, class_name: str, wanted: Sequence[str]) -> RasterTruth:
        """Find out what classes a raster holds; all of them are wanted where none is named.

        Raises
        ------
        ChipError
            If it cannot be read or holds none of them.
        """
        try:
            with reading(str(path)) as dataset:
                tags = dataset.tags(1)
                blocks = (np.unique(dataset.read(1, window=block)) for _, block in dataset.block_windows(1))
                found = {int(value) for values in blocks for value in values[np.isfinite(values)]}
                found -= {0, IGNORE, dataset.nodata}
        except RasterioError as error:
            raise ChipError(f"{path} cannot be read: {in_words(error)}") from error
        names = {int(key[6:]): name for key, name in tags.items() if re.fullmatch(r"class_\d+", key)}
        names = names or ({1: class_name} if found == {1} else {k: f"class_{k}" for k in found})
        value_of = {name: value for value, name in sorted(names.items()) if (name in wanted if wanted else value)}
        if not value_of:
            raise ChipError(f"{path} holds {', '.join(names.values()) or 'nothing but 0'}: no class to label chips by")
        strange = [value for value in value_of.values() if not 0 <= value < IGNORE]
        if strange:
            raise ChipError(
                f"{path} holds the value {strange[0]}, and classes are numbered up to {IGNORE - 1}: give a raster of "
                "classes, not of objects, or name the classes that are wanted"
            )
        return cls(tuple(value_of), grid, path, tuple(value_of.values()))

    def windows(self, size: int, overlap: int) -> Iterator[tuple[Window, None]]:
        """All windows of the grid."""
        return _grid_windows(self.grid, size, overlap)

    def mask(self, window: Window) -> UInt8Array:
        """(H, W) class of each pixel from 1, 0, or `IGNORE`; of the nearest pixel where the raster lies otherwise."""
        table = np.zeros(IGNORE + 2, np.uint8)  # the last of it is for all other values
        table[list(self.values)] = np.arange(1, len(self.values) + 1)
        table[IGNORE] = IGNORE
        values = self._read(window)
        mask: UInt8Array = table[np.where((values >= 0) & (values <= IGNORE), values, IGNORE + 1).astype(np.int64)]
        return mask

    def _read(self, window: Window) -> AnyArray:
        try:
            return self._values(window)
        except RasterioError as error:
            raise ChipError(f"{self.path} cannot be read: {in_words(error)}") from error

    def _values(self, window: Window) -> AnyArray:
        place = RasterWindow(window.col, window.row, window.width, window.height)
        with reading(str(self.path)) as dataset:
            same = (dataset.height, dataset.width) == (self.grid.height, self.grid.width)
            # many masks declare their background as nodata; nobody means by it that the whole background is unknown
            unknown = dataset.nodata if dataset.nodata not in (None, 0) else None
            if same and dataset.transform.almost_equals(self.grid.transform):
                values = dataset.read(1, window=place)
                if unknown is not None:
                    values = np.where(dataset.read_masks(1, window=place) > 0, values, np.int16(IGNORE))
                return np.asarray(values)
            crs = None if self.grid.crs is None else CRS.from_wkt(self.grid.crs.to_wkt())
            size = {"height": self.grid.height, "width": self.grid.width, "transform": self.grid.transform}
            marks = {"src_nodata": IGNORE if unknown is None else unknown, "nodata": IGNORE}
            with WarpedVRT(dataset, crs=crs, resampling=Resampling.nearest, **marks, **size) as warped:
                return np.asarray(warped.read(1, window=place))


def _grid_windows(grid: Grid, size: int, overlap: int) -> Iterator[tuple[Window, None]]:
    tiles = TileGrid(grid.height, grid.width, size, overlap)
    return ((tiles[k], None) for k in range(len(tiles)))

"""Labels of a scene from an inventory: windows of chips, the classes of each, and masks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely

from geolabel.datasets.tables import NOT_KNOWN, is_yes, means_nothing, plain
from geolabel.errors import ChipError, OptionError
from geolabel.geodesy import near
from geolabel.io.read.features import check_meets, choose_layer, in_crs, read_landslides
from geolabel.io.read.label_rasters import LabelRaster, is_raster
from geolabel.io.write.rasters import in_pixels, rasterize
from geolabel.labels import IGNORE
from geolabel.scene import Grid
from geolabel.tiles import TileGrid, Window, window_around
from geolabel.types import AnyArray, UInt8Array

LAYER = "landslides"
"""Default layer, if the file has one of this name."""

LABEL_COLUMNS = ("label", "class")
"""Default attributes with the class of a point or polygon."""


class Truth(Protocol):
    """Reference labels of a scene: the windows to cut, and their classes."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, without background."""
        ...

    def windows(self, size: int, overlap: int) -> Iterator[tuple[Window, tuple[bool, ...] | None]]:
        """Windows, and their labels if these do not follow from the mask."""
        ...

    def mask(self, window: Window) -> UInt8Array | None:
        """(H, W) numbers of classes; None if single pixels are unknown."""
        ...


def read_truth(
    path: Path,
    grid: Grid,
    *,
    layer: str | None = None,
    class_column: str | None = None,
    class_name: str = "landslide",
    classes: Sequence[str] = (),
    scene: Grid | None = None,
) -> Truth:
    """Open an inventory of a scene.

    Parameters
    ----------
    path
        Polygons or points in a vector file, or a raster of class numbers.
    grid
        Grid that chips are cut on.
    layer, class_column
        For a vector file: by default ``landslides`` or the only layer, and one of `LABEL_COLUMNS` if present.
    class_name
        For features without a class, and for a raster with one unnamed class.
    classes
        Classes to use; all by default.
    scene
        The scene's own grid, which a raster without georeference has too; `grid` by default.

    Raises
    ------
    OptionError
        If there is no such column.
    ChipError
        If it has none of the classes, or neither polygons nor points.
    SceneError
        If a raster is invalid.
    VectorError
        If a vector file cannot be read or has several layers, or the inventory does not intersect the scene.
    """
    if is_raster(path):
        return RasterTruth.open(path, grid, scene or grid, class_name, classes)
    layer = choose_layer(path, layer, "--layer", preferred=LAYER)
    features = read_landslides(path, grid.crs, layer)
    if class_column is not None and class_column not in features:
        raise OptionError(f"{path} has no column {class_column!r}: it has {', '.join(map(str, features.columns))}")
    column = class_column or _column(features)
    labels = [class_name] * len(features) if column is None else _labels(path, features[column], class_name)
    if classes:
        labels = [label if label in classes else "" for label in labels]
    found = tuple(sorted({label for label in labels if label}))
    if not found:
        raise ChipError(f"{path} has no {' or '.join(classes) or class_name}: an inventory needs at least one")
    if len(found) >= IGNORE:
        raise ChipError(
            f"column {column} of {path} holds {len(found)} classes, but chips have up to {IGNORE - 1}: "
            "choose another column or some of the classes"
        )
    features = features.set_geometry(near(features.geometry.to_numpy(), grid.crs, grid.outline))
    check_meets(str(path), features, grid)
    shapes = in_pixels(features.geometry.to_numpy(), grid)
    numbers = np.array([found.index(label) + 1 if label else 0 for label in labels], np.uint8)
    kinds = {kind.removeprefix("Multi") for kind in features.geometry.geom_type}
    if kinds == {"Point"}:
        return _PointTruth(found, grid, shapely.get_parts(shapes), numbers)
    if kinds != {"Polygon"}:
        raise ChipError(f"{path} holds {', '.join(sorted(kinds))}: give polygons, points, or a raster of classes")
    return _PolygonTruth(found, grid, shapes, numbers)


def _column(features: gpd.GeoDataFrame) -> str | None:
    """The attribute with the class of features, if there is one with any value."""
    return next((name for name in LABEL_COLUMNS if name in features and features[name].notna().any()), None)


def _labels(path: Path, values: pd.Series[Any], class_name: str) -> list[str]:
    """Class of every feature; empty for none."""
    texts = ["" if pd.isna(value) else plain(value) for value in values]
    unknown = sum(text.lower() in NOT_KNOWN for text in texts)
    if unknown:
        raise ChipError(
            f"{unknown} of {len(texts)} features of {path} have no class in column {values.name}: write 0 or none if "
            f"they show no class, delete features that were not checked, or name another column (--class-column)"
        )
    return [_class(text, class_name) for text in texts]


def _class(text: str, class_name: str) -> str:
    yes = is_yes(text)
    if yes is None:
        return "" if means_nothing(text) else text
    return class_name if yes else ""


@dataclass(frozen=True)
class _PolygonTruth:
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
        return rasterize(self._tree, self.numbers, window)


@dataclass(frozen=True)
class _PointTruth:
    """Points, each of which labels a window around it."""

    classes: tuple[str, ...]
    grid: Grid
    points: AnyArray
    """(N,) in pixels of the grid."""
    numbers: UInt8Array
    """(N,) class of each from 1; 0 for a point that states that no class is there."""

    def windows(self, size: int, overlap: int) -> Iterator[tuple[Window, tuple[bool, ...]]]:  # noqa: ARG002
        """Windows around the points, each with the classes of the points whose window it is."""
        seen: dict[Window, set[int]] = {}
        for point, number in zip(self.points, self.numbers, strict=True):
            if 0 <= point.y < self.grid.height and 0 <= point.x < self.grid.width:
                window = window_around(point.y, point.x, size, self.grid.height, self.grid.width)
                seen.setdefault(window, set()).add(int(number))
        for window, numbers in sorted(seen.items()):
            yield window, tuple(k in numbers for k in range(1, len(self.classes) + 1))

    def mask(self, window: Window) -> None:
        """None: single pixels are unknown."""


@dataclass(frozen=True)
class RasterTruth:
    """A raster of classes, on any grid."""

    classes: tuple[str, ...]
    grid: Grid
    raster: LabelRaster
    values: tuple[int, ...]
    """Value of each class."""

    @classmethod
    def open(cls, path: Path, grid: Grid, scene: Grid, class_name: str, wanted: Sequence[str]) -> RasterTruth:
        """Find the classes of a raster; all are used if none is named.

        Raises
        ------
        ChipError
            If it has none of them or too many.
        SceneError
            If it is invalid.
        VectorError
            If it does not intersect the scene.
        """
        raster = LabelRaster.open(path, class_name=class_name, scene=scene)
        value_of = {name: k for k, name in raster.classes.items() if (name in wanted if wanted else k)}
        if not value_of:
            raise ChipError(f"{path} holds {raster.listed() or 'nothing but 0'}: no class to label chips by")
        if len(value_of) >= IGNORE:
            raise ChipError(
                f"{path} holds {len(value_of)} values, but chips have up to {IGNORE - 1} classes: give a raster of "
                "classes, not of objects, or name the wanted classes"
            )
        outline = gpd.GeoDataFrame(geometry=[raster.grid.outline], crs=raster.grid.crs)
        check_meets(str(path), in_crs(outline, grid.crs, path), grid)
        return cls(tuple(value_of), grid, raster, tuple(value_of.values()))

    def windows(self, size: int, overlap: int) -> Iterator[tuple[Window, None]]:
        """All windows of the grid."""
        return _grid_windows(self.grid, size, overlap)

    def mask(self, window: Window) -> UInt8Array:
        """(H, W) class of each pixel from 1, 0, or `IGNORE` where unknown, as outside the raster; nearest neighbour."""
        values, known = self.raster.read(window, self.grid)
        return np.where(known, self.raster.number(values, self.values), IGNORE).astype(np.uint8)


def _grid_windows(grid: Grid, size: int, overlap: int) -> Iterator[tuple[Window, None]]:
    tiles = TileGrid(grid.height, grid.width, size, overlap)
    return ((tiles[k], None) for k in range(len(tiles)))

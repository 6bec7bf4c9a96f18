"""A person's judgement of the ground of a scene: landslide, other ground, or unknown.

Accepted, redrawn and added polygons are landslides; rejected and deleted ones are other ground, and so is anything cut
off a polygon that was redrawn. Areas that a person has examined completely are other ground wherever nothing is drawn:
the polygons of a layer ``reviewed``, windows of the layers ``review`` and ``review_sample``, or rows of the only layer,
whose ``status`` is ``reviewed``. Outside of such areas a ring around each reviewed polygon is other ground. Unreviewed
polygons are not judged, wherever they are, and neither are candidates that were edited, but not redrawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Self

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely

from geolabel.errors import VectorError
from geolabel.io.read.features import in_crs, read_layer, spatial_layers
from geolabel.io.read.review import (
    LAYER,
    POLYGON_LAYERS,
    REDRAWN,
    UNREVIEWED,
    WINDOW_LAYERS,
    Review,
    read_review,
)
from geolabel.io.write.rasters import in_pixels, rasterize
from geolabel.scene import Grid
from geolabel.tiles import Window
from geolabel.types import AnyArray, UInt8Array

UNJUDGED, GROUND, LANDSLIDE = 0, 1, 2
"""Values of a pixel: not judged, other ground, landslide."""

AREAS = "reviewed"
"""Layer of areas that a person has examined completely, and status of windows that are such areas."""

RING = (0.5, 32.0, 128.0)
"""Width of the ring around a polygon: a share of the side of a square of its area, and its limits in pixels."""

ROUGH = 4.0
"""Tolerance in pixels of the outline inside a ring: an eighth of the narrowest ring."""


@dataclass(frozen=True)
class Reviewed:
    """The review in a file, in the CRS of the file."""

    path: Path
    landslides: gpd.GeoDataFrame
    rejected: gpd.GeoDataFrame
    waiting: gpd.GeoDataFrame
    """Unreviewed polygons."""
    areas: gpd.GeoDataFrame
    """Areas that a person has examined completely."""
    removed: gpd.GeoDataFrame
    """Parts cut off redrawn polygons."""
    drawn: gpd.GeoDataFrame
    """The landslides whose outline a person drew, or that come from elsewhere."""

    @classmethod
    def read(cls, path: str | Path, *, accept_unreviewed: bool = False) -> Self:
        """Read a file: an inventory of geolabel, or any other file of polygons.

        Parameters
        ----------
        accept_unreviewed
            Whether unreviewed landslides count as accepted; candidates do not.

        Raises
        ------
        VectorError
            If the file cannot be read, holds other geometry than polygons, or several layers none of which has the name
            of a layer of an inventory.
        """
        path, names = Path(path), spatial_layers(path)
        others = [name for name in names if name not in (AREAS, *WINDOW_LAYERS)]
        layers = POLYGON_LAYERS if {*POLYGON_LAYERS} & {*names} else tuple(others)
        if len(layers) > 1 and layers is not POLYGON_LAYERS:
            raise VectorError(
                f"{path}: {len(others)} layers, {', '.join(others)}: name the one that holds landslides "
                f"{POLYGON_LAYERS[0]}, or save it to a separate file"
            )
        areas = [read_layer(path, AREAS)] if AREAS in names else []
        areas += [_with_status(read_layer(path, name), seen=True) for name in WINDOW_LAYERS if name in names]
        if not layers:
            nothing = areas[0].iloc[:0]
            return cls(path, nothing, nothing, nothing, _stacked(areas), nothing, nothing)
        review = read_review(path, layers)
        areas.append(_with_status(review.kept, seen=True))
        landslides, waiting, drawn = _decided(review, accept_unreviewed=accept_unreviewed)
        return cls(path, landslides, review.rejected, waiting, _stacked(areas), review.removed, drawn)

    def __len__(self) -> int:
        return len(self.landslides) + len(self.rejected) + len(self.areas)


def _decided(review: Review, *, accept_unreviewed: bool) -> tuple[gpd.GeoDataFrame, gpd.GeoDataFrame, gpd.GeoDataFrame]:
    """Landslides, polygons that are not judged, and the landslides whose outline a person drew."""
    kept, waiting = _with_status(review.kept, seen=False), review.waiting
    redrawn = kept[REDRAWN].astype(bool)
    candidate = (kept[LAYER] == POLYGON_LAYERS[1]) & ~redrawn
    taken = waiting[LAYER] == POLYGON_LAYERS[0] if accept_unreviewed else np.zeros(len(waiting), bool)
    # a truth that needs no review counts as a person's, even in a file that geolabel wrote
    return (
        _stacked([kept[~candidate], waiting[taken]]),
        _stacked([kept[candidate], waiting[~taken]]),
        _stacked([kept[redrawn], waiting[taken]]),
    )


def _with_status(table: gpd.GeoDataFrame, *, seen: bool) -> gpd.GeoDataFrame:
    """The rows whose status is ``reviewed``, or all others."""
    status = table["status"] if "status" in table else pd.Series(UNREVIEWED, table.index)
    return table[(status.astype(str).str.lower() == AREAS) == seen].reset_index(drop=True)


def _stacked(tables: Sequence[gpd.GeoDataFrame]) -> gpd.GeoDataFrame:
    crs = next((table.crs for table in tables if table.crs is not None), None)
    outlines = [outline for table in tables for outline in (table if crs is None else table.to_crs(crs)).geometry]
    return gpd.GeoDataFrame(geometry=outlines, crs=crs)


@dataclass(frozen=True)
class Ground:
    """The judgement of the ground of one grid, in its pixels."""

    landslides: AnyArray
    """(L,) polygons."""
    rejected: AnyArray
    waiting: AnyArray
    areas: AnyArray
    removed: AnyArray
    drawn: AnyArray

    @classmethod
    def on(cls, grid: Grid, files: Sequence[Reviewed]) -> Self:
        """The judgement of files for a grid; polygons elsewhere are ignored.

        Raises
        ------
        VectorError
            If the outlines of a file lie outside the domain of the grid's CRS.
        """
        frame = shapely.box(0, 0, grid.width, grid.height)

        def gathered(name: str) -> AnyArray:
            parts = [_outlines(getattr(one, name), grid, one.path) for one in files]
            outlines = np.concatenate([np.zeros(0, object), *parts])
            kept: AnyArray = outlines[shapely.intersects(outlines, frame)]
            return kept

        return cls(*(gathered(one.name) for one in fields(cls)))

    @cached_property
    def _rings(self) -> AnyArray:
        """Each reviewed polygon and the ring around it, whose outline is simplified, since pixel steps make it slow."""
        outlines = np.concatenate([self.landslides, self.rejected])
        share, low, high = RING
        widths = np.clip(share * np.sqrt(shapely.area(outlines)), low, high)
        return np.asarray(shapely.buffer(shapely.simplify(outlines, ROUGH), widths), object)

    @cached_property
    def _painted(self) -> tuple[shapely.STRtree, UInt8Array]:
        """Geometries in painting order, later ones on top, and their values."""
        layers = (
            (self._rings, GROUND),
            (self.areas, GROUND),
            (self.waiting, UNJUDGED),
            (self.rejected, GROUND),
            (self.removed, GROUND),
            (self.landslides, LANDSLIDE),
        )
        values = np.concatenate([np.full(len(outlines), value, np.uint8) for outlines, value in layers])
        return shapely.STRtree(np.concatenate([outlines for outlines, _ in layers])), values

    @property
    def judged(self) -> shapely.Geometry:
        """All judged ground."""
        reviewed = np.concatenate([self.landslides, self.rejected, self.removed])
        around = shapely.union_all(np.concatenate([self._rings, self.areas]))
        return shapely.union(shapely.difference(around, shapely.union_all(self.waiting)), shapely.union_all(reviewed))

    def paint(self, window: Window) -> UInt8Array:
        """(H, W) judgement of the pixels of a window."""
        painted: UInt8Array = rasterize(*self._painted, window)
        return painted


def _outlines(table: gpd.GeoDataFrame, grid: Grid, path: Path) -> AnyArray:
    if not len(table):
        return np.zeros(0, object)
    return np.asarray(shapely.make_valid(in_pixels(in_crs(table, grid.crs, path).geometry.to_numpy(), grid)))

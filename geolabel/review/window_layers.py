"""Layers of windows to review, in the GeoPackage of an inventory; nothing else in the file changes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pyproj
import shapely

from geolabel.errors import OutputError
from geolabel.extraction.passes import CLEAR, FOUND
from geolabel.extraction.result import stacked
from geolabel.io.columns import WINDOW_COLUMNS
from geolabel.io.read.features import layer_info, read_aoi, read_layer, spatial_layers
from geolabel.io.read.review import MASKED, POLYGON_LAYERS, TOUCHED, read_windows
from geolabel.io.read.typed_columns import added_columns
from geolabel.io.write.geopackage import Update, drop_layer, replace_layer, updating
from geolabel.io.write.vectors import window_layer
from geolabel.io.written import read_written
from geolabel.types import AnyArray, BoolArray, Float64Array

SEEN = (CLEAR, FOUND)
"""Status of tiles that the localizer processed."""


@dataclass(frozen=True)
class WindowLayer:
    """A layer that is being replaced."""

    name: str
    update: Update
    beside: str
    """A layer of polygons of the same file."""
    crs: pyproj.CRS | None
    held: gpd.GeoDataFrame
    """Windows in the file, with `geolabel.io.read.review.TOUCHED`."""

    @property
    def kept(self) -> gpd.GeoDataFrame:
        """Windows of a person, which are not changed."""
        return self.held[self.held[TOUCHED].astype(bool)] if len(self.held) else self.held

    def write(self, windows: gpd.GeoDataFrame, keep: BoolArray | None = None) -> None:
        """Replace the layer by the kept windows and new ones, which get new numbers.

        Parameters
        ----------
        keep
            (N,) which windows of `held` to keep; None for those of a person.

        Raises
        ------
        OutputError
            If another program has written to the file since the layer was read.
        """
        kept = self.kept if keep is None else self.held[keep]
        parts = [part for part in (kept, windows) if len(part)]
        if not parts:
            drop_layer(self.update.begin(), self.name)
            return
        together = stacked(parts, self.crs, WINDOW_COLUMNS | added_columns(parts, WINDOW_COLUMNS))
        numbers = pd.to_numeric(together["window"]).to_numpy(float, copy=True)
        free = np.isnan(numbers) | pd.Series(numbers).duplicated().to_numpy(bool)
        numbers[free] = np.nanmax(np.append(numbers, 0)) + np.arange(1, free.sum() + 1)
        features = together.assign(window=numbers.astype(np.int64))
        replace_layer(self.update.begin(), window_layer(self.name, features), self.beside)


@contextmanager
def replacing_windows(path: str | Path, name: str) -> Iterator[WindowLayer]:
    """Replace a layer of windows of an inventory, unless another program writes to the file in the meantime.

    Raises
    ------
    VectorError
        If the file cannot be read, or the layer is not geolabel's.
    OutputError
        If the file is not a GeoPackage that geolabel wrote, or cannot be changed.
    """
    path = Path(path)
    layers = spatial_layers(path)  # before it is opened for writing: an untrusted file is checked here
    beside = next((layer for layer in POLYGON_LAYERS if layer in layers), None)
    if beside is None or read_written(path) is None:
        raise OutputError(
            f"{path} is no GeoPackage that geolabel wrote, so windows cannot be kept in it: give an output of "
            "geolabel extract or polygonize that ends with .gpkg"
        )
    with updating(path) as update:
        held = read_windows(path, name, read_written(path))
        empty = gpd.GeoDataFrame(columns=[*WINDOW_COLUMNS, TOUCHED], geometry=[])
        crs = _crs_of(path, beside)
        yield WindowLayer(name, update, beside, crs, empty if held is None else held)


def _crs_of(path: Path, layer: str) -> pyproj.CRS | None:
    said = layer_info(path, layer)["crs"]
    return None if said is None else pyproj.CRS.from_user_input(said)


def window_table(rows: Sequence[Mapping[str, Any]], crs: pyproj.CRS | None) -> gpd.GeoDataFrame:
    """Windows as a table with ``geometry`` and some of the columns of `geolabel.io.columns.WINDOWS`."""
    columns = {name: [row.get(name) for row in rows] for name in WINDOW_COLUMNS}
    return gpd.GeoDataFrame(columns, geometry=[row["geometry"] for row in rows], crs=crs)


def frame_of(path: str | Path, crs: pyproj.CRS | None, aoi: str | Path | None) -> shapely.Geometry | None:
    """The searched area, in a CRS: that of a file, or the tiles that the localizer processed; None without either.

    Masked ground is not part of it.

    Raises
    ------
    VectorError
        If a file cannot be read.
    """
    if aoi is None:
        tiles = _seen_tiles(path)
        area = None if tiles is None else shapely.union_all(tiles)
    else:
        area = read_aoi(aoi, crs)
    masked = masked_ground(path)
    return area if area is None or masked is None else shapely.difference(area, masked)


def masked_ground(path: str | Path) -> shapely.Geometry | None:
    """The masked ground of an inventory, in its CRS; None if it has none.

    Raises
    ------
    VectorError
        If the file cannot be read.
    """
    if MASKED not in spatial_layers(path):
        return None
    return shapely.union_all(shapely.make_valid(read_layer(path, MASKED).geometry.to_numpy()))


def tile_side(path: str | Path) -> float | None:
    """Side in metres of the localizer's tiles; None without such a layer."""
    tiles = _seen_tiles(path)
    if tiles is None:
        return None
    bounds = shapely.bounds(tiles)
    metres = metres_per_unit(_crs_of(Path(path), "tiles"), (bounds[:, :2] + bounds[:, 2:]) / 2)
    return float(np.median(((bounds[:, 2:] - bounds[:, :2]) * metres).mean(axis=1)))


def _seen_tiles(path: str | Path) -> AnyArray | None:
    """Tiles that the localizer processed."""
    if "tiles" not in spatial_layers(path):
        return None
    table = read_layer(path, "tiles")
    seen = table[table["status"].isin(SEEN)].geometry if "status" in table else table.geometry
    return seen.to_numpy() if len(seen) else None


def metres_per_unit(crs: pyproj.CRS | None, places: Float64Array) -> Float64Array:
    """(N, 2) metres on the ground of a small step of one unit along x and along y; 1 without a CRS.

    Parameters
    ----------
    places : (N, 2) x and y
    """
    if crs is None or crs.ellipsoid is None or not len(places):
        return np.ones((len(places), 2))
    geod = pyproj.Geod(a=crs.ellipsoid.semi_major_metre, b=crs.ellipsoid.semi_minor_metre)
    geodetic = crs.geodetic_crs
    if geodetic is None:
        return np.ones((len(places), 2))
    degrees = pyproj.Transformer.from_crs(crs, geodetic, always_xy=True)
    step = 1e-4 if crs.is_geographic else 1.0
    lon, lat = degrees.transform(places[:, 0], places[:, 1])
    metres = []
    for axis in ([step, 0], [0, step]):
        moved = places + axis
        _, _, distance = geod.inv(lon, lat, *degrees.transform(moved[:, 0], moved[:, 1]))
        metres.append(np.asarray(distance) / step)
    return np.stack(metres, axis=1)

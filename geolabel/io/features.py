"""Features of any vector file, brought to the CRS of a scene."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pyogrio
import pyproj
import shapely

from geolabel.errors import VectorError
from geolabel.io.foreign import in_words
from geolabel.io.opening import is_remote

SEGMENTS = 32
"""Pieces that the longest side of a polygon is cut into before it changes its CRS, where straight lines bend."""

LEADING_ON = ("OGR_VRT", "VRT")
"""Formats of GDAL that hold no features themselves."""


def spatial_layers(path: str | Path) -> list[str]:
    """Names of the layers of a vector file that have a geometry, in the file's order.

    Raises
    ------
    VectorError
        If the file cannot be read or has none.
    """
    pyogrio.set_gdal_config_options({"GDAL_VRT_ENABLE_PYTHON": False})  # a file is data; it runs no code
    try:
        names = [str(name) for name, geometry_type in pyogrio.list_layers(path) if geometry_type is not None]
        leads_on = names and is_remote(str(path)) and pyogrio.read_info(path, layer=names[0])["driver"] in LEADING_ON
    except (RuntimeError, ValueError) as error:
        raise VectorError(f"{path} cannot be read as a vector file: {in_words(error)}") from error
    if leads_on:
        raise VectorError(
            f"{path} comes from a network and holds no features but the names of files that do: what others publish "
            "may not read files of this machine; if you trust it, download it and give the copy"
        )
    if not names:
        raise VectorError(f"{path} holds no layer with a geometry: give a file of points or polygons")
    return names


def read_features(path: str | Path, crs: pyproj.CRS | None, layer: str | None = None) -> gpd.GeoDataFrame:
    """Read one layer, brought to `crs`, without features that have no geometry and without heights.

    A file without CRS is taken to be in `crs`; with `crs` None, or where either CRS has no place on Earth, coordinates
    are taken as they are.

    Parameters
    ----------
    layer
        None for the file's first.

    Raises
    ------
    VectorError
        If the file or the layer cannot be read, or its features cannot be brought to `crs`.
    """
    names = spatial_layers(path)
    layer = names[0] if layer is None else layer
    if layer not in names:
        raise VectorError(f"{path} has no layer {layer}: it has {', '.join(names)}")
    try:
        features = pyogrio.read_dataframe(path, layer=layer, force_2d=True)
    except (RuntimeError, ValueError, shapely.errors.ShapelyError) as error:
        raise VectorError(f"layer {layer} of {path} cannot be read: {in_words(error)}") from error
    features = features[~(features.geometry.isna() | features.geometry.is_empty)].reset_index(drop=True)
    return in_crs(features, crs, path)


def layer_info(path: str | Path, layer: str) -> dict[str, Any]:
    """What pyogrio says of a layer, with its bounds.

    Raises
    ------
    VectorError
        If the file or the layer cannot be read.
    """
    try:
        info: dict[str, Any] = pyogrio.read_info(path, layer=layer, force_total_bounds=True)
    except (RuntimeError, ValueError) as error:
        raise VectorError(f"layer {layer} of {path} cannot be read: {in_words(error)}") from error
    return info


def in_crs(features: gpd.GeoDataFrame, crs: pyproj.CRS | None, source: str | Path) -> gpd.GeoDataFrame:
    """Bring features to a CRS; the long sides of polygons bend as they should.

    Without a CRS on either side, or where one has no place on Earth, coordinates are taken as they are.

    Parameters
    ----------
    source
        Where the features come from, for the error.

    Raises
    ------
    VectorError
        If coordinates have no place in `crs`.
    """
    own = features.crs
    if crs is None or own is None or own.geodetic_crs is None or crs.geodetic_crs is None:
        return features.set_crs(crs, allow_override=True)
    if own.equals(crs, ignore_axis_order=True):
        return features.set_crs(crs, allow_override=True)
    bounds = features.geometry.bounds
    longest = np.maximum(bounds["maxx"] - bounds["minx"], bounds["maxy"] - bounds["miny"]).to_numpy()
    pieces = np.where(longest > 0, longest / SEGMENTS, 1.0)
    features = features.set_geometry(shapely.segmentize(features.geometry.to_numpy(), pieces), crs=own).to_crs(crs)
    if not np.isfinite(features.geometry.bounds.to_numpy()).all():
        raise VectorError(
            f"{source}: coordinates in {own.name} have no place in {crs.name}, the scene's CRS: "
            "the CRS or the coordinates of the file are wrong"
        )
    return features


def read_polygons(path: str | Path, crs: pyproj.CRS | None, layer: str | None = None) -> gpd.GeoDataFrame:
    """Read a layer of polygons, see `read_features`; outlines that cross themselves are mended.

    Raises
    ------
    VectorError
        If the file cannot be read or holds anything but polygons.
    """
    features = read_features(path, crs, layer)
    kinds = set(features.geometry.geom_type) - {"Polygon", "MultiPolygon"}
    if kinds:
        raise VectorError(f"{path} holds {', '.join(sorted(kinds))}: only polygons can be used here")
    mended = features.geometry.make_valid(method="structure", keep_collapsed=False)
    return features.set_geometry(mended)[~mended.is_empty].reset_index(drop=True)

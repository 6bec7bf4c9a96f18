"""Cloud Optimized GeoTIFFs on the working grid, written block by block, and rasterized geometries."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import rasterio
import rasterio.shutil
import shapely
from affine import Affine
from rasterio import features
from rasterio._err import CPLE_BaseError
from rasterio.crs import CRS
from rasterio.enums import Resampling
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.windows import Window as RasterWindow

from geolabel.errors import OutputError
from geolabel.io.error_messages import in_words
from geolabel.io.read.headers import PRODUCT
from geolabel.labels import BACKGROUND
from geolabel.masks import FULL
from geolabel.outputs import check_target, replacing
from geolabel.scene import Grid
from geolabel.tiles import Window
from geolabel.types import AnyArray, UInt8Array

SUFFIXES = (".tif", ".tiff")

OVERVIEWS = {"score": "AVERAGE", "mask": "NEAREST"}
"""Resampling of overviews: scores are averaged without nodata, labels use nearest neighbour."""

TILE = 512
"""Side in pixels of the file's own tiles."""

GDAL_ERRORS = (RasterioError, CPLE_BaseError, SystemError, OSError)
"""Errors of rasterio on a full disk: `rasterio.shutil.copy` passes on GDAL's own errors."""

CACHE_BYTES = 128 << 20
"""Size of GDAL's block cache, whose default is a share of the machine's memory."""


def write_cog(
    path: str | Path,
    blocks: Iterable[tuple[Window, UInt8Array]],
    grid: Grid,
    *,
    nodata: int | None,
    kind: Literal["score", "mask"],
    classes: Sequence[str] = (),
    overwrite: bool = False,
    tags: Mapping[str, str] | None = None,
) -> None:
    """Write blocks of a raster as they arrive, as a Cloud Optimized GeoTIFF with overviews.

    Blocks are first written to a plain GeoTIFF in a scratch folder beside `path`, which GDAL then copies: a COG cannot
    be written in pieces. Memory is bounded by a block and GDAL's cache; disk space for two copies of the raster is
    needed.

    Parameters
    ----------
    blocks
        Windows of `grid` and their values, (h, w), or (C, h, w) for the scores of several classes. Pixels outside all
        windows are `nodata`, or 0 without one.
    nodata
        Value that marks pixels outside, or None.
    kind
        ``score``: grey values 0..254 for 0..1; the band has the scale.
        ``mask``: labels, which overviews must not mix.
    classes
        Names of several classes: those of the score bands, or of the labels from 1, as band tags ``class_K``.
    overwrite
        Whether an existing file may be replaced.
    tags
        Metadata of the file.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    path = Path(path)
    check_target(path, overwrite=overwrite, suffixes=SUFFIXES)
    with replacing(path, overwrite=overwrite) as part, rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES):
        scratch = part.with_name("blocks of " + part.name)  # in the scratch folder of this file
        try:
            _write_blocks(scratch, blocks, grid, nodata, kind, classes, tags or {})
            rasterio.shutil.copy(
                scratch,
                part,
                driver="COG",
                BLOCKSIZE=TILE,
                COMPRESS="DEFLATE",
                PREDICTOR="YES",
                OVERVIEW_RESAMPLING=OVERVIEWS[kind],
                BIGTIFF="IF_SAFER",
            )
        except GDAL_ERRORS as error:
            raise OutputError(f"{path} could not be written: {in_words(error)}") from error
        scratch.unlink()  # other outputs of the run may need the space


def _write_blocks(
    scratch: Path,
    blocks: Iterable[tuple[Window, UInt8Array]],
    grid: Grid,
    nodata: int | None,
    kind: Literal["score", "mask"],
    classes: Sequence[str],
    tags: Mapping[str, str],
) -> None:
    names = (classes or (kind,)) if kind == "score" else (kind,)
    profile: dict[str, Any] = {
        "driver": "GTiff",
        "dtype": "uint8",
        "count": len(names),
        "height": grid.height,
        "width": grid.width,
        "crs": None if grid.crs is None else CRS.from_wkt(grid.crs.to_wkt()),
        "transform": grid.transform,
        "nodata": nodata,
        "tiled": True,
        "blockxsize": TILE,
        "blockysize": TILE,
        "sparse_ok": True,  # empty parts of a scene take no disk space
        "bigtiff": "IF_SAFER",
    }
    with warnings.catch_warnings():
        # a scene without CRS has coordinates in pixels, which GeoTIFF stores although rasterio warns
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        dataset = rasterio.open(scratch, "w", **profile)
    with dataset:
        dataset.update_tags(**tags, **{PRODUCT: kind})
        for band, name in enumerate(names, 1):
            dataset.set_band_description(band, name)
        if kind == "score":
            dataset.scales = (1 / FULL,) * len(names)
        elif classes:
            dataset.update_tags(1, **{f"class_{value}": name for value, name in enumerate((BACKGROUND, *classes))})
        for window, values in blocks:
            place = RasterWindow(window.col, window.row, window.width, window.height)
            for band, layer in enumerate(values.reshape(-1, window.height, window.width), 1):
                dataset.write(layer, band, window=place)


# --- single arrays ---------------------------------------------------------------------------------------------------


Colour = tuple[int, int, int]


def write_geotiff(
    path: str | Path,
    values: AnyArray,
    grid: Grid,
    *,
    description: str,
    unit: str | None = None,
    classes: Mapping[str, Colour] | None = None,
    overwrite: bool = False,
) -> None:
    """Write an array as a tiled GeoTIFF with overviews. The same array gives the same bytes.

    Parameters
    ----------
    values : (H, W) or (H, W, 3)
        One band, or red, green and blue, without nodata.
    description
        Description of the file, and of a single band.
    unit
        Unit of a band's values.
    classes
        Names and colours of the labels 0, 1, ... in a band of uint8. Names become band tags (``class_0``, ...), colours
        its colour table.
    overwrite
        Whether an existing file may be replaced.

    Raises
    ------
    OutputError
        If the file cannot be written, or exists and may not be replaced.
    """
    path = Path(path)
    check_target(path, overwrite=overwrite, suffixes=SUFFIXES)
    bands = np.atleast_3d(values)
    # tiles are written in the order in which the cache releases them, so its size must be the same everywhere
    with replacing(path, overwrite=overwrite) as part, rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES):
        try:
            with rasterio.open(part, "w", **_profile(bands, grid)) as dataset:
                dataset.update_tags(TIFFTAG_IMAGEDESCRIPTION=description)
                if bands.shape[2] == 1:
                    _describe(dataset, description, unit, classes or {})
                for row in range(0, grid.height, TILE):
                    strip = bands[row : row + TILE]
                    dataset.write(strip.transpose(2, 0, 1), window=RasterWindow(0, row, grid.width, len(strip)))
            with rasterio.open(part, "r+") as dataset:
                # overviews must not mix labels
                labels = classes is not None
                dataset.build_overviews(_factors(grid), Resampling.nearest if labels else Resampling.average)
        except GDAL_ERRORS as error:
            raise OutputError(f"{path} could not be written: {in_words(error)}") from error


def _profile(bands: AnyArray, grid: Grid) -> dict[str, Any]:
    height, width, count = bands.shape
    return {
        "driver": "GTiff",
        "dtype": bands.dtype.name,
        "count": count,
        "height": height,
        "width": width,
        "crs": None if grid.crs is None else CRS.from_wkt(grid.crs.to_wkt()),
        "transform": grid.transform,
        "tiled": True,
        "blockxsize": TILE,
        "blockysize": TILE,
        "compress": "deflate",
        "predictor": 3 if bands.dtype.kind == "f" else 2,
        "photometric": "RGB" if count == 3 else "MINISBLACK",
        "interleave": "pixel",
        "bigtiff": "IF_SAFER",
    }


def _describe(dataset: Any, description: str, unit: str | None, classes: Mapping[str, Colour]) -> None:
    dataset.update_tags(**{PRODUCT: "labels" if classes else "heights" if unit else "values"})
    dataset.set_band_description(1, description)
    if unit is not None:
        dataset.set_band_unit(1, unit)
    if classes:
        dataset.update_tags(1, **{f"class_{number}": name for number, name in enumerate(classes)})
        dataset.write_colormap(1, dict(enumerate(classes.values())))


def _factors(grid: Grid) -> list[int]:
    """Halve the raster until it fits into one tile."""
    halvings = max(0, (max(grid.height, grid.width) - 1) // TILE).bit_length()
    return [2**k for k in range(1, halvings + 1)]


def in_pixels(geometries: AnyArray, grid: Grid) -> AnyArray:
    """Geometries (N,) in pixel coordinates: integer shifts then give exactly the same result in every window."""
    a, b, c, d, e, f = tuple(~grid.transform)[:6]
    return np.asarray(shapely.transform(geometries, lambda points: points @ [[a, d], [b, e]] + [c, f]))


def rasterize(tree: shapely.STRtree, values: AnyArray, window: Window) -> AnyArray:
    """(height, width) value of the polygon that covers each pixel's centre, later ones on top; 0 without a polygon.

    Parameters
    ----------
    tree
        STRtree of N polygons in pixel coordinates, see `in_pixels`.
    values : (N,)
        Integers, of the dtype of the result.
    """
    drawn = np.zeros((window.height, window.width), values.dtype)
    found = np.sort(tree.query(shapely.box(window.col, window.row, window.right, window.bottom)))
    if len(found):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)  # pixel coordinates, on purpose
            place = Affine.translation(window.col, window.row)
            features.rasterize(zip(tree.geometries[found], values[found], strict=True), out=drawn, transform=place)
    return drawn

"""Rasters that a run leaves behind: Cloud Optimized GeoTIFFs on the working grid, written block by block."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import rasterio
import rasterio.shutil
from rasterio._err import CPLE_BaseError
from rasterio.crs import CRS
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.windows import Window as RasterWindow

from geolabel.errors import OutputError
from geolabel.io.foreign import in_words
from geolabel.io.read.contents import PRODUCT
from geolabel.masks import FULL
from geolabel.outputs import check_target, replacing
from geolabel.scene import Grid
from geolabel.tiles import Window
from geolabel.types import UInt8Array

SUFFIXES = (".tif", ".tiff")

OVERVIEWS = {"score": "AVERAGE", "mask": "NEAREST"}
"""How a coarser level is made: scores are averaged over what is not nodata, labels are picked."""

TILE = 512
"""Side in pixels of the file's own tiles."""

GDAL_ERRORS = (RasterioError, CPLE_BaseError, SystemError, OSError)
"""What rasterio raises when a disk is full: `rasterio.shutil.copy` lets GDAL's own errors through, known or not."""

CACHE_BYTES = 128 << 20
"""Bound on GDAL's block cache, which otherwise takes a share of the machine's memory."""


def write_cog(
    path: str | Path,
    blocks: Iterable[tuple[Window, UInt8Array]],
    grid: Grid,
    *,
    nodata: int | None,
    kind: Literal["score", "mask"],
    overwrite: bool = False,
    tags: Mapping[str, str] | None = None,
) -> None:
    """Write blocks of a raster as they come, as a Cloud Optimized GeoTIFF with overviews.

    The blocks go to a plain GeoTIFF in a scratch folder beside `path` first, which GDAL then copies: a COG cannot be
    written in pieces. Memory is bounded by a block and GDAL's cache; the folder needs room for the raster twice.

    Parameters
    ----------
    blocks
        Windows of `grid` and their values (h, w). Pixels in no window are `nodata`, or 0 without one.
    nodata
        Value that marks pixels outside, or None.
    kind
        ``score``: grey values 0..254 that stand for 0..1, which the band's scale says to those who ask.
        ``mask``: labels, which no overview may mix.
    overwrite
        Whether a file that is there may be replaced.
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
        scratch = part.with_name("blocks of " + part.name)  # in the folder of this file alone
        try:
            _write_blocks(scratch, blocks, grid, nodata, kind, tags or {})
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
        scratch.unlink()  # whose room another output of the run may need


def _write_blocks(
    scratch: Path,
    blocks: Iterable[tuple[Window, UInt8Array]],
    grid: Grid,
    nodata: int | None,
    kind: Literal["score", "mask"],
    tags: Mapping[str, str],
) -> None:
    profile: dict[str, Any] = {
        "driver": "GTiff",
        "dtype": "uint8",
        "count": 1,
        "height": grid.height,
        "width": grid.width,
        "crs": None if grid.crs is None else CRS.from_wkt(grid.crs.to_wkt()),
        "transform": grid.transform,
        "nodata": nodata,
        "tiled": True,
        "blockxsize": TILE,
        "blockysize": TILE,
        "sparse_ok": True,  # empty parts of a scene take no room on the disk
        "bigtiff": "IF_SAFER",
    }
    with warnings.catch_warnings():
        # a scene without CRS counts its coordinates in pixels, which GeoTIFF keeps although rasterio doubts it
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        dataset = rasterio.open(scratch, "w", **profile)
    with dataset:
        dataset.update_tags(**tags, **{PRODUCT: kind})
        dataset.set_band_description(1, kind)
        if kind == "score":
            dataset.scales = (1 / FULL,)
        for window, values in blocks:
            place = RasterWindow(window.col, window.row, window.width, window.height)
            dataset.write(values, 1, window=place)

"""Arrays as GeoTIFFs: what fits in memory anyway and is written in one go, such as a synthetic scene."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.crs import CRS
from rasterio.enums import Resampling
from rasterio.windows import Window as RasterWindow

from geolabel.errors import OutputError
from geolabel.io.foreign import in_words
from geolabel.io.read.contents import PRODUCT
from geolabel.io.write.rasters import CACHE_BYTES, GDAL_ERRORS, SUFFIXES, TILE
from geolabel.outputs import check_target, replacing
from geolabel.scene import Grid
from geolabel.types import AnyArray

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
        One band, or red, green and blue. There is no nodata.
    description
        Of the file, and of a single band.
    unit
        Of a band's values.
    classes
        Names and colours of the labels 0, 1, ... that a band of uint8 holds. Names become metadata of the band
        (``class_0``, ...), colours its colour table.
    overwrite
        Whether a file that is there may be replaced.

    Raises
    ------
    OutputError
        If the file cannot be written, or exists and must not be replaced.
    """
    path = Path(path)
    check_target(path, overwrite=overwrite, suffixes=SUFFIXES)
    bands = np.atleast_3d(values)
    # tiles lie in the file in the order in which the cache lets go of them, so its size has to be the same everywhere
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
                # no overview may mix labels
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

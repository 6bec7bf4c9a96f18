"""Open untrusted rasters: no code runs, memory is bounded, and only the named files are read.

All rasters are opened here. A raster that contains its own pixels is opened with the driver of its format
(`geolabel.io.read.formats`), a VRT as a checked copy (`geolabel.io.read.vrt`), and a folder or archive of
bands as a virtual raster over them (`geolabel.io.read.deliveries`). Block sizes and band counts are checked for all.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import rasterio
from rasterio.errors import NotGeoreferencedWarning, RasterioError

from geolabel.io.read import files
from geolabel.io.read.deliveries import as_vrt, find_delivery
from geolabel.io.read.formats import check_size, open_pixels
from geolabel.io.read.vrt import Checked, checked_vrt, is_vrt

if TYPE_CHECKING:
    from rasterio.io import DatasetReader

is_remote = files.is_remote

_QUIET = threading.RLock()
"""Python's warning filters are global to the process, so rasters are opened one at a time."""


def settings(uri: str) -> dict[str, object]:
    """GDAL's settings for every access to a raster."""
    return files.settings(network=is_remote(uri) or _leads_to_network(files.vsi_path(uri)))


def open_raster(uri: str, *, level: int = 0) -> DatasetReader:
    """Open a raster for reading; call inside ``rasterio.Env(**settings(uri))``.

    Parameters
    ----------
    level
        Overview to open instead; 0 for the raster itself.

    Raises
    ------
    SceneError
        If its header is implausible, or it names a file that is not allowed.
    rasterio.errors.RasterioError
        If it cannot be opened.
    """
    path = files.vsi_path(uri)
    with _QUIET, warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # reported when the header is read
        described = _description(path)
        dataset = open_pixels(path, level=level) if described is None else _open_described(described, level)
    try:
        check_size(dataset, uri)
    except BaseException:
        dataset.close()
        raise
    return dataset


def _leads_to_network(path: str) -> bool:
    try:
        return is_vrt(path) and checked_vrt(path).network
    except (OSError, RasterioError):  # reported when it is opened
        return False


def _description(path: str) -> Checked | None:
    """The virtual raster of a VRT or a delivery; None for a raster that contains its own pixels."""
    if is_vrt(path) and not Path(path).is_dir():
        return checked_vrt(path)
    delivery = find_delivery(path)
    return None if delivery is None else as_vrt(delivery, open_raster)


def _open_described(checked: Checked, level: int) -> DatasetReader:
    options = {"OVERVIEW_LEVEL": level - 1} if level else {}
    with rasterio.Env(**files.settings(network=checked.network)):
        return rasterio.open(checked.path, driver="VRT", **options)


@contextmanager
def reading(uri: str) -> Iterator[DatasetReader]:
    """A raster that is open inside the block, with the required settings; raises as `open_raster`."""
    with rasterio.Env(**settings(uri)), open_raster(uri) as dataset:
        yield dataset


def files_of(uri: str) -> list[str]:
    """Local files that a raster is read from: a VRT or a delivery has many, a TIFF may have sidecars.

    Raises
    ------
    As `open_raster`.
    """
    described = _description(files.vsi_path(uri))
    if described is not None:
        return sorted(described.files)
    with reading(uri) as dataset:
        return sorted({os.fspath(name) for name in dataset.files})

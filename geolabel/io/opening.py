"""Open rasters that come from strangers.

They run no code, take no memory that was not asked for, and reach no further than they say. Nothing else opens a raster
to read it. What is checked here is what GDAL leaves to its caller: how much memory one block of a file takes, how many
bands there are, and whose files a raster from a network leads to.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET  # what GDAL has read and written anew: no entities, no DTD

import numpy as np
import rasterio

from geolabel.errors import SceneError
from geolabel.io import remote

if TYPE_CHECKING:
    from rasterio.io import DatasetReader

CACHE_BYTES = 256 << 20
"""GDAL's cache of decoded blocks; by default it takes 5 % of the machine's memory. ``GDAL_CACHEMAX`` is respected."""

MAX_BANDS = 4096
"""A time series of a hyperspectral sensor has as many; a header that claims more is wrong or means harm."""

MAX_BLOCK_BYTES = 1 << 30
"""Of one block as GDAL decodes it: whoever reads a pixel pays for all of its block."""

ALONE = frozenset({
    "BMP", "COG", "GIF", "GPKG", "GTiff", "JP2ECW", "JP2KAK", "JP2MrSID", "JP2OpenJPEG", "JPEG", "JPEGXL", "MBTiles",
    "NITF", "PNG", "WEBP", "Zarr",
})  # fmt: skip
"""Formats that hold their own pixels. Others are files about files: a network may not hand us these, but for a VRT."""

NETWORK = r"/vsi(curl|s3|gs|az|adls|oss|swift|webhdfs|hdfs)"

_REMOTE = re.compile(rf"(/vsi(zip|tar|gzip|7z|rar)/\{{?)*({NETWORK}|(?!file:)(\w+\+)*\w+://)")
_REMOTE_SOURCE = re.compile(rf"(/vsi(zip|tar|gzip|7z|rar)/\{{?)*({NETWORK}(_streaming)?[/?]|(https?|ftp)://)")

SNIFFERS = 16
"""Sources of a VRT from a network that are looked at at once."""


def settings(uri: str) -> dict[str, object]:
    """GDAL's settings for every access to a raster."""
    chosen: dict[str, object] = {"GDAL_VRT_ENABLE_PYTHON": False}  # a scene is data; it runs no code
    if "GDAL_CACHEMAX" not in os.environ:
        chosen["GDAL_CACHEMAX"] = CACHE_BYTES
    if is_remote(uri):
        chosen |= remote.settings()
    return chosen


def is_remote(uri: str) -> bool:
    """Whether a URI leads over a network, through archives or not."""
    return _REMOTE.match(uri) is not None


def refuse_local(name: str, named_by: str) -> None:
    """Refuse a file that something from a network names, unless that file is reached over a network too.

    Parameters
    ----------
    name
        As GDAL would open it.
    named_by
        What names it, for the message.

    Raises
    ------
    SceneError
        If the file is none, or if it lies on this machine or inside the process.
    """
    if _REMOTE_SOURCE.match(name) is None or "file:" in name.lower():
        raise SceneError(
            f"{named_by} comes from a network and names {name!r}, which does not: what others publish may not read "
            "files of this machine; if you trust it, download it and give the copy"
        )


def open_raster(uri: str, **options: Any) -> DatasetReader:
    """Open a raster to read it; call inside ``rasterio.Env(**settings(uri))``.

    Parameters
    ----------
    options
        For GDAL.

    Raises
    ------
    SceneError
        If its header claims more than can be true, or it comes from a network and names files of this machine.
    rasterio.errors.RasterioError
        If it cannot be opened.
    """
    dataset = rasterio.open(uri, **options)
    try:
        _check_size(dataset, uri)
        if is_remote(uri):
            _check_reach(dataset, uri)
    except BaseException:
        dataset.close()
        raise
    return dataset


@contextmanager
def reading(uri: str) -> Iterator[DatasetReader]:
    """A raster that is open inside the block, with the settings that every access needs; raises as `open_raster`."""
    with rasterio.Env(**settings(uri)), open_raster(uri) as dataset:
        yield dataset


# --- how large -------------------------------------------------------------------------------------------------------


def _check_size(dataset: DatasetReader, uri: str) -> None:
    if dataset.count > MAX_BANDS:
        raise SceneError(
            f"{uri} says that it has {dataset.count} bands, and at most {MAX_BANDS} are opened: the file is damaged, "
            "or take the three that are wanted out of it (gdal_translate -b 1 -b 2 -b 3 IN OUT)"
        )
    together = dataset.count if str(dataset.interleaving).upper().endswith("PIXEL") else 1
    pairs = zip(dataset.block_shapes, dataset.dtypes, strict=True)
    for (height, width), dtype in pairs:
        size = height * width * together * _bytes(dtype)
        if size > MAX_BLOCK_BYTES:
            raise SceneError(
                f"{uri} is stored in pieces of {height} x {width} px, {size >> 20} MB each, and at most "
                f"{MAX_BLOCK_BYTES >> 20} MB are read at once: the file is damaged, or write it in tiles "
                "(gdal_translate -co TILED=YES IN OUT)"
            )


def _bytes(dtype: str) -> int:
    return 4 if dtype == "complex_int16" else np.dtype(dtype).itemsize  # which is GDAL's own


# --- how far ---------------------------------------------------------------------------------------------------------


def _check_reach(dataset: DatasetReader, uri: str) -> None:
    outside = dataset.tags(ns="OVERVIEWS").get("OVERVIEW_FILE")
    if outside is not None:
        refuse_local(outside, uri)
    if dataset.driver == "VRT":
        _check_vrt(uri, dataset.name, dataset.tags(ns="xml:VRT")["xml:VRT"])
    elif dataset.driver not in ALONE:
        raise SceneError(
            f"{uri} is in GDAL's format {dataset.driver}, which may lead to other files, and comes from a network: "
            f"download it and give the copy, or give one of {', '.join(sorted(ALONE))}"
        )


@lru_cache(maxsize=64)
def _check_vrt(uri: str, name: str, text: str) -> None:
    """Check that a VRT does nothing but lay rasters side by side, all of them from a network and none a VRT itself."""
    try:
        sources = sorted(set(_sources(ET.fromstring(text), uri)))  # noqa: S314
    except ET.ParseError as error:
        raise SceneError(
            f"{uri} is no VRT that can be understood ({error}): download it with its sources, and give the copy"
        ) from error
    folder = name.rpartition("/")[0]
    paths = [source if absolute else f"{folder}/{source}" for source, absolute in sources]
    for path in paths:
        refuse_local(path, uri)

    def look(path: str) -> None:
        with rasterio.Env(**settings(path)), rasterio.open(path) as dataset:
            if dataset.driver not in ALONE:
                raise SceneError(
                    f"{uri} comes from a network and leads to {path}, which is no image but leads on to others "
                    f"({dataset.driver}): give that one, or download both"
                )

    with ThreadPoolExecutor(SNIFFERS) as pool:
        list(pool.map(look, paths))


PLAIN_SOURCES = {"SimpleSource", "ComplexSource", "AveragedSource", "NoDataFromMaskSource", "KernelFilteredSource"}


def _sources(root: ET.Element, uri: str) -> Iterator[tuple[str, bool]]:
    """Names of the sources of a plain VRT, and whether they stand for themselves rather than beside the VRT."""
    for element in root.iter():
        kind = element.get("subClass", "VRTRasterBand")
        strange = element.tag.startswith(("Source", "MDArray")) and element.tag not in (
            "SourceFilename", "SourceBand", "SourceProperties"
        )  # fmt: skip
        if kind != "VRTRasterBand" or strange or (element.tag.endswith("Source") and element.tag not in PLAIN_SOURCES):
            raise SceneError(
                f"{uri} is a VRT that does more than lay images side by side ({kind if not strange else element.tag}): "
                "such a one is not opened from a network; download it and give the copy"
            )
        if element.tag == "SourceFilename":
            name = element.text or ""
            # a relative name that is none is taken as it stands
            beside = element.get("relativeToVRT") == "1" and re.match(r"[^:/\\<{][^:<{]*$", name) is not None
            yield name, not beside

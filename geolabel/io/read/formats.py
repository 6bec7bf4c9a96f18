"""Raster formats that contain their own pixels, recognised by first bytes and opened with that format's driver only.

By default GDAL tries about 150 drivers, and many of them read instructions instead of pixels: files to open, URLs to
download, code to run. Only the formats in `FORMATS` are opened, each with its named driver, and files that GDAL opens
automatically beside a raster (external overviews and masks) are checked first.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np
import rasterio
from rasterio.errors import RasterioError, RasterioIOError

from geolabel.errors import SceneError
from geolabel.io.read import files
from geolabel.io.read.vector_files import check_tables
from geolabel.parsing import check_regular

if TYPE_CHECKING:
    from rasterio.io import DatasetReader


@dataclass(frozen=True)
class _Format:
    """A raster format that contains its own pixels."""

    drivers: tuple[str, ...]
    """Names of GDAL drivers; the first that this build has and that opens the file is used."""
    signature: bytes = b""
    """Regular expression of its first bytes; empty if only suffixes identify it."""
    suffixes: tuple[str, ...] = ()
    network: bool = False
    """Whether it may be read over a network: a single file that can be read in part."""
    inner: str = ""
    """Prefix of the name of one image of several, such as ``GTIFF_DIR:2:scene.tif``."""


FORMATS = (
    _Format(("GTiff",), rb"II[*+]\0|MM\0[*+]", (".tif", ".tiff", ".gtiff"), network=True, inner="GTIFF_DIR"),
    _Format(("PNG",), rb"\x89PNG\r\n\x1a\n", (".png",), network=True),
    _Format(("JPEG",), rb"\xff\xd8\xff", (".jpg", ".jpeg"), network=True),
    _Format(
        ("JP2OpenJPEG", "JP2KAK", "JP2ECW", "JP2MrSID"),
        rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51",
        (".jp2", ".j2k"),
        network=True,
    ),
    _Format(("JPEGXL",), rb"\0\0\0\x0cJXL |\xff\x0a", (".jxl",), network=True),
    _Format(("WEBP",), rb"RIFF....WEBP", (".webp",), network=True),
    _Format(("GIF", "BIGGIF"), rb"GIF8[79]a", (".gif",), network=True),
    _Format(("BMP",), rb"BM", (".bmp",), network=True),
    _Format(("NITF",), rb"NITF0|NSIF0", (".ntf", ".nitf"), network=True, inner="NITF_IM"),
    _Format(("GPKG", "MBTiles"), rb"SQLite format 3\0", (".gpkg", ".mbtiles"), inner="GPKG"),
    _Format(("HFA",), rb"EHFA_HEADER_TAG\0", (".img",)),
    _Format(("netCDF",), rb"CDF[\1\2\5]|\x89HDF\r\n\x1a\n", (".nc", ".nc4"), inner="NETCDF"),
    _Format(("HDF5", "HDF5Image"), rb"\x89HDF\r\n\x1a\n", (".h5", ".hdf5", ".he5"), inner="HDF5"),
    _Format(("GRIB",), rb"GRIB", (".grb", ".grib", ".grb2", ".grib2")),
    _Format(("PNM",), rb"P[56]\s", (".ppm", ".pgm", ".pnm")),
    _Format(("Zarr",), suffixes=(".zarr",), inner="ZARR"),
    _Format(("AAIGrid",), suffixes=(".asc", ".grd")),
    _Format(("SAGA",), suffixes=(".sdat", ".sgrd")),
    _Format(("ENVI",), suffixes=(".img", ".dat", ".bsq", ".bil", ".bip", ".raw", ".envi", "")),
    _Format(("EHdr",), suffixes=(".bil", ".bip", ".bsq", ".flt")),
)

MAX_BANDS = 4096
"""Maximum number of bands, enough for a hyperspectral time series; a larger number is a damaged or hostile header."""

MAX_BLOCK_BYTES = 1 << 30
"""Maximum decoded size of one block: reading a pixel decodes its whole block."""

SQLITE = b"SQLite format 3\0"

MAX_BESIDE = 4
"""Maximum nesting of files beside a raster, such as overviews of a mask of overviews."""

IMAGE_BYTES = 16
"""Number of first bytes that include a zero in an image. Drivers of text formats, such as VRT, stop reading there."""

_INNER = re.compile(rf"({'|'.join(f.inner for f in FORMATS if f.inner)}):(?:\d+:|\w+:\d+:)?(.+)", re.IGNORECASE)


@lru_cache(maxsize=1)
def _known_drivers() -> frozenset[str]:
    with rasterio.Env() as env:
        return frozenset(env.drivers())


def is_image(path: str) -> bool:
    """Whether the first bytes of a file are an image's, so that GDAL cannot take it for a text format.

    Raises
    ------
    OSError
        If it cannot be read.
    """
    start = files.head(path)
    known = any(f.signature and re.match(f.signature, start, re.DOTALL) for f in FORMATS)
    named = ".gti." in path.lower()  # a tile index is recognised by name
    return known and b"\0" in start[:IMAGE_BYTES] and not named


def open_pixels(path: str, *, level: int = 0, beside: int = 0) -> DatasetReader:
    """Open a raster that contains its own pixels, with the driver of its format; call inside `settings`.

    Parameters
    ----------
    path
        As returned by `files.vsi_path`.
    level
        Overview to open instead; 0 for the raster itself.

    Raises
    ------
    SceneError
        If it names overviews elsewhere, or its overviews or mask in a separate file are not images.
    rasterio.errors.RasterioError
        If it cannot be opened, or its format is not in `FORMATS`.
    """
    network = files.is_remote(path)
    if not network:
        file = _file_of(path)
        check_regular(file)
        _check_database(file)
        check_beside(file, beside)
    dataset = _open(path, network=network)
    try:
        _check_overviews(dataset, path, network=network, beside=beside)
        if level == 0:
            return dataset
        # After the checks: opening an overview also opens the file that contains it.
        overview = rasterio.open(path, driver=dataset.driver, OVERVIEW_LEVEL=level - 1)
    except BaseException:
        dataset.close()
        raise
    dataset.close()
    return overview


def _check_database(file: str) -> None:
    """Refuse a tile database with tables that read other files or never end: GDAL reads those first."""
    if _head(file)[: len(SQLITE)] != SQLITE:
        return
    if not Path(file).is_file():
        raise SceneError(f"{file} is a database in an archive: unpack it, and give the database")
    try:
        # The tiles of MBTiles are a view over all tiles: running it would read the whole file.
        views = not file.lower().endswith(".mbtiles")
        check_tables(Path(file), views=views, way_out="if you trust it, give a copy as GeoTIFF (gdal_translate)")
    except ValueError as error:
        raise SceneError(f"{file} cannot be read: {error}") from error


def _head(path: str) -> bytes:
    try:
        return b"" if Path(path).is_dir() else files.head(path)
    except (OSError, RasterioError):
        return b""


def _open(path: str, *, network: bool) -> DatasetReader:
    formats = [f for f in FORMATS if f.network or not network]
    inner = _INNER.match(path)
    if inner is not None:
        kind = inner[1].upper()
        drivers = [d for f in formats if f.inner == kind for d in f.drivers[::-1]]
    else:
        suffix = Path(urlsplit(path).path if network else path).suffix.lower()
        likely = [f for f in formats if suffix in f.suffixes]
        if network and likely:
            try:  # the file named as an image is requested only once
                return _by_driver(path, [d for f in likely for d in f.drivers])
            except RasterioIOError as error:
                if "not recognized" not in str(error):
                    raise
        try:
            start = b"" if Path(path).is_dir() else files.head(path)
        except (OSError, RasterioError):
            start = b"II*\0"  # the file is missing: opening it raises GDAL's own message
        signed = [f for f in formats if f.signature and re.match(f.signature, start, re.DOTALL)]
        silent = [f for f in likely if not f.signature]
        drivers = [d for f in sorted(signed, key=lambda f: suffix not in f.suffixes) or silent for d in f.drivers]
    return _by_driver(path, drivers)


def _by_driver(path: str, drivers: list[str]) -> DatasetReader:
    failure: RasterioError | None = None
    for driver in drivers:
        if driver not in _known_drivers():
            continue
        try:
            return rasterio.open(path, driver=driver)
        except RasterioError as error:
            failure = failure or error
    if failure is not None:
        raise failure
    raise RasterioIOError("not recognized as being in a supported file format")


def _file_of(path: str) -> str:
    """The file behind a name such as ``GPKG:scene.gpkg:table``."""
    match = _INNER.match(path)
    if match is None:
        return path
    name = match[2]
    while name and not Path(name.strip('"')).exists():
        name = name.rpartition(":")[0]
    if not name:
        raise RasterioIOError(f"{path}: there is no such file on this machine")
    return str(Path(name.strip('"')).absolute())


# --- what GDAL opens beside a raster ---------------------------------------------------------------------------------


def check_beside(path: str, beside: int = 0) -> None:
    """Check the files that GDAL uses as overviews or mask of a raster, since it opens these with any driver.

    Raises
    ------
    SceneError
        If such a file is not an image.
    """
    if not path.startswith("/vsi"):
        _check_pipes(path)
    for name in beside_of(path):
        try:
            start = files.head(name)
        except OSError:
            continue
        if name.lower().endswith(".aux") and not start.startswith(b"EHFA_HEADER_TAG"):
            continue  # ignored by GDAL too
        _check_image(name, "", f"{name} lies beside {path} as its overviews or mask", beside)


def _check_pipes(path: str) -> None:
    """Refuse named pipes beside a raster: opening one blocks for ever."""
    stem = path.rpartition(".")[0] or path
    whole = (".ovr", ".OVR", ".msk", ".MSK", ".aux", ".AUX", ".aux.xml", ".AUX.XML")
    suffix = Path(path).suffix[1:]
    worlds = ("aux", "tfw", "wld", "tab", "imd", "rpb", "hdr", f"{suffix}w", f"{suffix[:1]}{suffix[-1:]}w")
    try:
        for name in (*(path + end for end in whole), *(f"{stem}.{f}" for end in worlds for f in (end, end.upper()))):
            check_regular(name)
    except OSError as error:
        raise SceneError(f"{error.filename} is beside {path}, and {error.strerror}: remove it") from error


def beside_of(path: str) -> Iterator[str]:
    """Existing files that may contain overviews or the mask of a raster."""
    stem = path.rpartition(".")[0] or path
    names = [path + end for end in (".ovr", ".OVR", ".msk", ".MSK", ".aux", ".AUX")] + [stem + ".aux", stem + ".AUX"]
    yield from (name for name in names if (_is_in_archive(name) if path.startswith("/vsi") else Path(name).is_file()))


def _is_in_archive(name: str) -> bool:
    try:
        files.head(name)
    except (OSError, RasterioError):
        return False
    return True


def _check_overviews(dataset: DatasetReader, path: str, *, network: bool, beside: int = 0) -> None:
    """Check the overview file that a raster, or the ``.aux.xml`` beside it, names.

    Raises
    ------
    SceneError
        If a raster from a network names one, or the named file is not an image.
    """
    named = dataset.tags(ns="OVERVIEWS").get("OVERVIEW_FILE")
    if named is None:
        return
    if network:
        raise SceneError(
            f"{path} comes from a network but names {named!r} as the file of its overviews: download it, remove that "
            "entry (gdal_edit.py -unsetmd), and give the copy"
        )
    base = ":::BASE:::"
    file = str(Path(path).parent / named.removeprefix(base)) if named.startswith(base) else named
    _check_image(file, named, f"{path} names {named!r} as the file of its overviews", beside)


def _check_image(file: str, named: str, why: str, beside: int) -> None:
    try:
        plain = beside < MAX_BESIDE and "/vsi" not in named and is_image(file)
    except OSError:
        plain = False
    if not plain:
        raise SceneError(f"{why}, but it is not an image: remove it, or build the overviews again (gdaladdo)")
    check_pixels(file, beside=beside + 1)


def options_of(path: str) -> dict[str, Any]:
    """GDAL's settings for a raster that contains its own pixels."""
    return files.settings(network=files.is_remote(path))


# --- how large -------------------------------------------------------------------------------------------------------


def check_pixels(path: str, *, beside: int = 0) -> None:
    """Check that a raster that another one refers to opens, and its size; raises as `open_pixels` and `check_size`."""
    with open_pixels(path, beside=beside) as image:
        check_size(image, path)


def check_size(dataset: DatasetReader, uri: str) -> None:
    """Refuse a raster whose header is implausible, or whose blocks do not fit in memory.

    Raises
    ------
    SceneError
        If it has more than `MAX_BANDS` bands, or one block takes more than `MAX_BLOCK_BYTES`.
    """
    if dataset.count > MAX_BANDS:
        raise SceneError(
            f"{uri} claims {dataset.count} bands, the limit is {MAX_BANDS}: the file is damaged, "
            "or extract the three wanted bands (gdal_translate -b 1 -b 2 -b 3 IN OUT)"
        )
    together = dataset.count if dataset.tags(ns="IMAGE_STRUCTURE").get("INTERLEAVE") == "PIXEL" else 1
    pairs = zip(dataset.block_shapes, dataset.dtypes, strict=True)
    for (height, width), dtype in pairs:
        size = height * width * together * _bytes(dtype)
        if size > MAX_BLOCK_BYTES:
            raise SceneError(
                f"{uri} is stored in blocks of {height} x {width} px, {size >> 20} MB each; the limit is "
                f"{MAX_BLOCK_BYTES >> 20} MB: the file is damaged, or write it in tiles "
                "(gdal_translate -co TILED=YES IN OUT)"
            )


def _bytes(dtype: str) -> int:
    return 4 if dtype == "complex_int16" else np.dtype(dtype).itemsize  # complex_int16 exists only in GDAL

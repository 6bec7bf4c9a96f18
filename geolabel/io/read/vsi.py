"""Bytes of any file that GDAL reaches: on this machine, in archives, on web servers and in object stores.

What describes other files is read here, checked, and handed to GDAL as a copy; what holds pixels is recognised by its
first bytes. GDAL fetches these itself, with its own credentials and caches, so that a store needs no second client and
an answer that was looked at is the one that is used.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from xml.sax.saxutils import escape

import rasterio

from geolabel.io.read import remote
from geolabel.names import check_regular, exists

SCHEMES = {
    "http": "curl", "https": "curl", "ftp": "curl", "s3": "s3", "gs": "gs", "az": "az", "adls": "adls", "adl": "adls",
    "abfs": "adls", "abfss": "adls", "oss": "oss", "swift": "swift", "zip": "zip", "tar": "tar", "gzip": "gzip",
}  # fmt: skip
"""URL schemes, and the file systems of GDAL that serve them."""

NETWORK = r"/vsi(curl|s3|gs|az|adls|oss|swift|webhdfs|hdfs)"

_REMOTE = re.compile(
    rf"(/vsi(zip|tar|gzip|7z|rar)/\{{?)*({NETWORK}|(?!((zip|tar|gzip|file)\+)*(zip|tar|gzip|file)://)(\w+\+)*\w+://)"
)

_CHAINED = re.compile(rf"(/vsi(?:zip|tar|gzip|7z|rar)/\{{?)(?={NETWORK[1:]}[_/?])")

CHUNK = 1 << 14
"""Bytes that are read at once, as GDAL asks servers for them."""


CACHE_BYTES = 256 << 20
"""GDAL's cache of decoded blocks; by default it takes 5 % of the machine's memory. ``GDAL_CACHEMAX`` is respected."""


def settings(*, network: bool) -> dict[str, object]:
    """GDAL's settings for every access to a raster, over a network or not.

    Nothing that is opened runs code or names bytes to read as pixels. Files beside a raster count on this machine,
    where they are looked at first; their names are asked for one by one, so that all of them are known. Over a network
    none are.
    """
    chosen: dict[str, object] = {
        "GDAL_VRT_ENABLE_PYTHON": False,
        "GDAL_VRT_ENABLE_RAWRASTERBAND": False,
        "VRT_NUM_THREADS": 1,  # threads of GDAL's own would not know these settings
    }
    if "GDAL_CACHEMAX" not in os.environ:
        chosen["GDAL_CACHEMAX"] = CACHE_BYTES
    if network:
        chosen |= remote.settings()
    return chosen | {"GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR" if network else "TRUE"}


def is_remote(uri: str) -> bool:
    """Whether a URI leads over a network, through archives or not."""
    return _REMOTE.match(chained(uri)) is not None


def chained(uri: str) -> str:
    """An archive on a network in the one form of its two: ``/vsizip//vsicurl/...`` for ``/vsizip/vsicurl/...``."""
    return _CHAINED.sub(r"\1/", uri) if uri.startswith("/vsi") else uri


def vsi_path(uri: str) -> str:
    """A path or URL as GDAL opens it: ``s3://bucket/a.tif`` is ``/vsis3/bucket/a.tif``, a file its absolute path."""
    if uri.startswith("/vsi"):
        return chained(uri)
    scheme, _, rest = uri.partition("://")
    kinds = scheme.lower().split("+")
    if not rest or any(kind not in SCHEMES and kind != "file" for kind in kinds):
        return str(Path(uri).absolute()) if exists(uri) else uri
    archive, bang, inner = rest.rpartition("!")
    target = archive if bang else rest
    file_systems = [SCHEMES[kind] for kind in kinds if kind != "file"]
    if file_systems and file_systems[-1] == "curl":
        target = f"{kinds[-1]}://{target}"
    if not file_systems:
        return target
    return "/".join(f"/vsi{name}" for name in file_systems) + f"/{target}" + (f"/{inner.lstrip('/')}" if bang else "")


def head(path: str, size: int = 64) -> bytes:
    """The first bytes of a file that `vsi_path` names; zeros follow where it is smaller.

    Raises
    ------
    OSError
        If it cannot be read.
    """
    if path.startswith("/vsi"):
        return _read(path, 0, size)
    check_regular(path)
    with Path(path).open("rb") as file:
        return file.read(size).ljust(size, b"\0")


def text(path: str, limit: int) -> bytes:
    """A file of text, of at most `limit` bytes; a zero ends it, as it does for GDAL.

    Raises
    ------
    OSError
        If it cannot be read.
    ValueError
        If it is larger.
    """
    if path.startswith("/vsi"):
        data = b""
        while len(data) <= limit and b"\0" not in data[-CHUNK:]:
            data += _read(path, len(data), CHUNK)
    else:
        check_regular(path)
        with Path(path).open("rb") as file:
            data = file.read(limit + 1)
    found = data.partition(b"\0")[0]
    if len(found) > limit:
        raise ValueError(f"it is larger than {limit >> 20} MB")
    return found


def _read(path: str, offset: int, size: int) -> bytes:
    """Bytes of a file, at most `CHUNK` of them, with zeros after its end."""
    # rasterio does not lend GDAL's VSIFReadL: a raw band over the bytes of a file is what comes nearest.
    band = (
        f'<VRTDataset rasterXSize="{size}" rasterYSize="1"><GeoTransform>0,1,0,1,0,-1</GeoTransform>'
        '<VRTRasterBand dataType="Byte" band="1" subClass="VRTRawRasterBand">'
        f'<SourceFilename relativeToVRT="0">{escape(path)}</SourceFilename><ImageOffset>{offset}</ImageOffset>'
        f"<PixelOffset>1</PixelOffset><LineOffset>{size}</LineOffset></VRTRasterBand></VRTDataset>"
    )
    allowed = {"GDAL_VRT_ENABLE_RAWRASTERBAND": True, "GDAL_VRT_RAWRASTERBAND_ALLOWED_SOURCE": "ALL"}
    with rasterio.Env(**settings(network=is_remote(path)) | allowed), rasterio.open(band, driver="VRT") as dataset:
        return bytes(dataset.read(1).tobytes())

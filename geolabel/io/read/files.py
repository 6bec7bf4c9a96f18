"""Files on web servers, in object stores and in archives: settings of GDAL, retries and caches.

GDAL repeats a request that a server refuses for the moment, and geolabel repeats what still fails then: an answer that
breaks off, or a server that is away for longer. Credentials are GDAL's own: ``AWS_ACCESS_KEY_ID`` and its like, its
configuration files, or the role of the machine.

What describes other files is read here, checked, and handed to GDAL as a copy; what holds pixels is recognised by its
first bytes. GDAL fetches these itself, so a store needs no second client, and the answer that is checked is the one
that is used.
"""

from __future__ import annotations

import logging
import os
import re
import time
import urllib.request
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit, urlunsplit
from xml.sax.saxutils import escape

import rasterio
from rasterio.errors import RasterioError

from geolabel.errors import SceneError
from geolabel.io import storage
from geolabel.io.foreign import in_words
from geolabel.parsing import check_regular, exists
from geolabel.urls import without_secrets

log = logging.getLogger(__name__)

T = TypeVar("T")

SETTINGS: dict[str, object] = {
    "GDAL_HTTP_CONNECTTIMEOUT": 15,
    "GDAL_HTTP_LOW_SPEED_LIMIT": 1000,  # bytes per second: a timeout of the whole answer would punish slow lines
    "GDAL_HTTP_LOW_SPEED_TIME": 30,
    "GDAL_HTTP_MAX_RETRY": 3,  # of 429, 502, 503, 504 and timeouts, each wait about twice the one before
    "GDAL_HTTP_RETRY_DELAY": 0.5,
    "GDAL_INGESTED_BYTES_AT_OPEN": 1 << 15,  # the header of a COG of 10^5 px comes with the first request
}
"""Of GDAL, in seconds where they are times. What the environment sets is respected."""

ANSWER_S = 30.0
"""Seconds without a byte after which a server is given up for the moment."""

FETCH_S = 1800.0
"""Seconds that a whole file may take: one that trickles in is never whole."""

CHUNK = 1 << 20
"""Bytes that are read at once."""

STORES = ("curl", "s3", "gs", "az", "adls", "oss", "swift")

ASK_ANEW = {"CPL_VSIL_CURL_NON_CACHED": ":".join(f"/vsi{kind}/" for kind in STORES)}
"""So that GDAL forgets what a server said of a file before."""

LOCAL_NAMES = (".localhost", ".local", ".internal", ".lan", ".home.arpa")
"""How names of machines of a local network end."""

ANSWERS = re.compile(
    r"(response code:|HTTP error) 4(?!08|25|29)\d\d|access ?denied|no ?such ?(key|bucket)|does not exist"
    r"|redirection to url|invalid ?access ?key|signature|credentials|not recognized as|permission denied|no such file",
    re.IGNORECASE,
)
"""What a server says that it will say again: 404, 403, and that what it sent is no raster."""


def _network_settings() -> dict[str, object]:
    """Settings for files behind a network, but for those that the environment has."""
    return {name: value for name, value in SETTINGS.items() if name not in os.environ}


def insist(action: Callable[[bool], T], what: str) -> T:
    """Do what may fail for a while, again and again with longer waits; an error that is an answer stands.

    Parameters
    ----------
    action
        Told whether it has been tried before.
    """
    for tried, wait in enumerate((*storage.WAITS, None)):
        try:
            return action(tried > 0)
        except (RasterioError, OSError, SceneError) as error:
            ours = isinstance(error, SceneError) and error.__cause__ is None  # a judgement, not a failure
            said = list(_said(error))
            if wait is None or ours or any(map(ANSWERS.search, said)):
                raise
            log.warning("%s: %s; trying again in %g s", what, in_words(error), wait)
            time.sleep(wait)
    raise AssertionError("the last try has returned or raised")


def url_of(path: str) -> str:
    """The URL behind a name of GDAL's, such as ``/vsicurl/https://host/a.gpkg`` or ``/vsis3/bucket/a.gpkg``."""
    if path.startswith("/vsicurl?"):
        return unquote(next((o[4:] for o in path[9:].split("&") if o.startswith("url=")), ""))
    kind, _, place = path.removeprefix("/vsi").partition("/")
    if not path.startswith("/vsi"):
        return path
    return place if kind in ("curl", "curl_streaming") else f"{kind}://{place}"


def fetch(path: str, limit: int) -> bytes:
    """All bytes of a file on a web server or in an object store, with patience.

    Parameters
    ----------
    path
        Its URL, or its name in GDAL. User and password in the URL of a web server are sent as such.
    limit
        Maximum size in bytes.

    Raises
    ------
    SceneError
        If it cannot be fetched.
    ValueError
        If it is larger than `limit`.
    """
    url = url_of(path)
    try:
        data = insist(lambda _: _fetched(url, limit), without_secrets(path))
    except (OSError, ImportError, HTTPException) as error:
        raise SceneError(f"{path} cannot be fetched: {in_words(error)}") from error
    if len(data) > limit:
        raise ValueError(f"it is larger than {limit >> 20} MB")
    return data


def _fetched(url: str, limit: int) -> bytes:
    if not url.startswith(("http://", "https://")):
        import fsspec

        with fsspec.open(url, "rb") as file:
            return bytes(file.read(limit + 1))
    return get(url, limit)


def get(url: str, limit: int, headers: Mapping[str, str] | None = None) -> bytes:
    """Ask a web server for a file once; at most one byte more than `limit` is read.

    Raises
    ------
    OSError
        If the server cannot be reached, refuses, or sends too slowly.
    SceneError
        If it redirects to where it may not.
    """
    asked = request(url)
    for name, value in (headers or {}).items():
        asked.add_header(name, value)
    with _OPENER.open(asked, timeout=ANSWER_S) as answer:
        data, end = bytearray(), time.monotonic() + FETCH_S
        while len(data) <= limit and (part := answer.read1(CHUNK)):
            data += part
            if time.monotonic() > end:
                raise TimeoutError(f"{len(data)} bytes came in {FETCH_S:.0f} s, and then time ran out")
        return bytes(data)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follow redirects on the same server, and to names of other servers over https."""

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        check_redirect(req.full_url, newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


_OPENER = urllib.request.build_opener(_Redirects)


def check_redirect(asked: str, target: str) -> None:
    """Refuse a redirect that could lead into the network of this machine, whose servers a stranger may not choose.

    Object stores and download services redirect to other names over https, which is followed.

    Raises
    ------
    SceneError
        If the target is another server without https, or one that is given by its address or a local name.
    """
    old, new = urlsplit(asked), urlsplit(target)
    host = (new.hostname or "").rstrip(".")
    if new.hostname == old.hostname and new.port in (old.port, None):
        return
    is_address = ":" in host or host.rpartition(".")[2][:1].isdigit()
    if new.scheme == "https" and "." in host and not is_address and not host.endswith(LOCAL_NAMES):
        return
    raise SceneError(
        f"{asked} redirects to {target}, and redirects are followed on the same server or to a public name over https: "
        "give that URL itself, if you trust it"
    )


def request(url: str, method: str = "GET") -> urllib.request.Request:
    """A request for the URL of a web server, which may hold user and password."""
    parts = urlsplit(url)
    user, _, host = parts.netloc.rpartition("@")
    asked = urllib.request.Request(urlunsplit(parts._replace(netloc=host, fragment="")), method=method)  # noqa: S310
    if user:
        # not for the server that this one may redirect to
        asked.add_unredirected_header("Authorization", "Basic " + b64encode(unquote(user).encode()).decode())
    return asked


def tag_of(uri: str) -> str | None:
    """Version of a scene, as the server states it."""
    url = uri.removeprefix("/vsicurl/")
    if url.startswith(("http://", "https://")):
        with suppress(OSError, ValueError):
            return insist(lambda _: _header_tag(url), without_secrets(url))
        return None
    return _store_tag(url)


def _header_tag(url: str) -> str | None:
    with urllib.request.urlopen(request(url, "HEAD"), timeout=ANSWER_S) as answer:  # noqa: S310
        said = answer.headers.get("ETag") or answer.headers.get("Last-Modified") or answer.headers.get("Content-Length")
        return None if said is None else str(said)


def _store_tag(url: str) -> str | None:
    import fsspec

    # whatever a store's package raises: its word is a help, and header and pixels do without
    with suppress(Exception):
        files, path = fsspec.core.url_to_fs(url)
        facts = files.info(path)
        said = next((facts[name] for name in ("ETag", "etag", "LastModified", "last_modified") if name in facts), None)
        return None if said is None else str(said)
    return None


def _said(error: BaseException | None) -> Iterator[str]:
    """Yield the messages of an error and of all that led to it."""
    while error is not None:
        yield " ".join(str(error).split())
        error = error.__cause__


# --- GDAL's virtual file systems -------------------------------------------------------------------------------------


SCHEMES = {
    "http": "curl",
    "https": "curl",
    "ftp": "curl",
    "s3": "s3",
    "gs": "gs",
    "az": "az",
    "adls": "adls",
    "adl": "adls",
    "abfs": "adls",
    "abfss": "adls",
    "oss": "oss",
    "swift": "swift",
    "zip": "zip",
    "tar": "tar",
    "gzip": "gzip",
}
"""URL schemes, and the file systems of GDAL that serve them."""

NETWORK = r"/vsi(curl|s3|gs|az|adls|oss|swift|webhdfs|hdfs)"

_REMOTE = re.compile(
    rf"(/vsi(zip|tar|gzip|7z|rar)/\{{?)*({NETWORK}|(?!((zip|tar|gzip|file)\+)*(zip|tar|gzip|file)://)(\w+\+)*\w+://)"
)

_CHAINED = re.compile(rf"(/vsi(?:zip|tar|gzip|7z|rar)/\{{?)(?={NETWORK[1:]}[_/?])")

GDAL_CHUNK = 1 << 14
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
        chosen |= _network_settings()
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
        while len(data) <= limit and b"\0" not in data[-GDAL_CHUNK:]:
            data += _read(path, len(data), GDAL_CHUNK)
    else:
        check_regular(path)
        with Path(path).open("rb") as file:
            data = file.read(limit + 1)
    found = data.partition(b"\0")[0]
    if len(found) > limit:
        raise ValueError(f"it is larger than {limit >> 20} MB")
    return found


def _read(path: str, offset: int, size: int) -> bytes:
    """Bytes of a file, at most `GDAL_CHUNK` of them, with zeros after its end."""
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

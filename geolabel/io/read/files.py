"""Files on web servers, in object stores and in archives: settings of GDAL, retries and caches.

GDAL repeats a request that a server temporarily refuses, and geolabel repeats what still fails: truncated answers and
servers that are away for longer. Credentials are GDAL's own: ``AWS_ACCESS_KEY_ID`` and the like, its configuration
files, or the role of the machine.

Files that describe other files are read and checked here, and handed to GDAL as a copy; files with pixels are
recognised by their first bytes. GDAL fetches both, so no second client is needed, and the answer that is checked is the
one that is used.
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
from geolabel.io.error_messages import in_words
from geolabel.parsing import check_regular, exists
from geolabel.urls import without_secrets

log = logging.getLogger(__name__)

T = TypeVar("T")

SETTINGS: dict[str, object] = {
    "GDAL_HTTP_CONNECTTIMEOUT": 15,
    "GDAL_HTTP_LOW_SPEED_LIMIT": 1000,  # bytes per second: a timeout of the whole answer would penalise slow lines
    "GDAL_HTTP_LOW_SPEED_TIME": 30,
    "GDAL_HTTP_MAX_RETRY": 3,  # for 429, 502, 503, 504 and timeouts, with about twice the wait each time
    "GDAL_HTTP_RETRY_DELAY": 0.5,
    "GDAL_INGESTED_BYTES_AT_OPEN": 1 << 15,  # the header of a COG of 10^5 px comes with the first request
}
"""GDAL settings, times in seconds. Values set in the environment take precedence."""

ANSWER_S = 30.0
"""Seconds without a byte before a request fails."""

FETCH_S = 1800.0
"""Maximum seconds for a whole file, so that a server that trickles bytes cannot block a run."""

CHUNK = 1 << 20
"""Bytes read at once."""

STORES = ("curl", "s3", "gs", "az", "adls", "oss", "swift")

ASK_ANEW = {"CPL_VSIL_CURL_NON_CACHED": ":".join(f"/vsi{kind}/" for kind in STORES)}
"""Clears GDAL's memory of what a server said about a file."""

LOCAL_NAMES = (".localhost", ".local", ".internal", ".lan", ".home.arpa")
"""Suffixes of host names in a local network."""

ANSWERS = re.compile(
    r"(response code:|HTTP error) 4(?!08|25|29)\d\d|access ?denied|no ?such ?(key|bucket)|does not exist"
    r"|redirection to url|invalid ?access ?key|signature|credentials|not recognized as|permission denied|no such file",
    re.IGNORECASE,
)
"""Final answers of a server, which are not retried: 404, 403, and content that is not a raster."""


def _network_settings() -> dict[str, object]:
    """Settings for files on a network, except those set in the environment."""
    return {name: value for name, value in SETTINGS.items() if name not in os.environ}


def insist(action: Callable[[bool], T], what: str) -> T:
    """Call `action`, and retry temporary failures with increasing waits; final answers are raised at once.

    Parameters
    ----------
    action
        Receives whether it was called before.
    """
    for tried, wait in enumerate((*storage.WAITS, None)):
        try:
            return action(tried > 0)
        except (RasterioError, OSError, SceneError) as error:
            ours = isinstance(error, SceneError) and error.__cause__ is None  # raised by a check, not by a failure
            said = list(_said(error))
            if wait is None or ours or any(map(ANSWERS.search, said)):
                raise
            log.warning("%s: %s; trying again in %g s", what, in_words(error), wait)
            time.sleep(wait)
    raise AssertionError("the last try has returned or raised")


def url_of(path: str) -> str:
    """The URL behind a GDAL path, such as ``/vsicurl/https://host/a.gpkg`` or ``/vsis3/bucket/a.gpkg``."""
    if path.startswith("/vsicurl?"):
        return unquote(next((o[4:] for o in path[9:].split("&") if o.startswith("url=")), ""))
    kind, _, place = path.removeprefix("/vsi").partition("/")
    if not path.startswith("/vsi"):
        return path
    return place if kind in ("curl", "curl_streaming") else f"{kind}://{place}"


def fetch(path: str, limit: int) -> bytes:
    """All bytes of a file on a web server or in an object store, with retries.

    Parameters
    ----------
    path
        Its URL or GDAL path. User and password in the URL of a web server are sent as credentials.
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
    """Request a file from a web server once; at most one byte more than `limit` is read.

    Raises
    ------
    OSError
        If the server cannot be reached, refuses, or sends too slowly.
    SceneError
        If it redirects to a server that is not allowed.
    """
    asked = request(url)
    for name, value in (headers or {}).items():
        asked.add_header(name, value)
    with _OPENER.open(asked, timeout=ANSWER_S) as answer:
        data, end = bytearray(), time.monotonic() + FETCH_S
        while len(data) <= limit and (part := answer.read1(CHUNK)):
            data += part
            if time.monotonic() > end:
                raise TimeoutError(f"only {len(data)} bytes came in {FETCH_S:.0f} s")
        return bytes(data)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follow redirects on the same server, and to other public names over https."""

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        check_redirect(req.full_url, newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


_OPENER = urllib.request.build_opener(_Redirects)


def check_redirect(asked: str, target: str) -> None:
    """Refuse a redirect that could reach a server in the local network.

    Redirects to other names over https are followed, as object stores and download services use them.

    Raises
    ------
    SceneError
        If the target is another server without https, or is given by its IP address or a local name.
    """
    old, new = urlsplit(asked), urlsplit(target)
    host = (new.hostname or "").rstrip(".")
    if new.hostname == old.hostname and new.port in (old.port, None):
        return
    is_address = ":" in host or host.rpartition(".")[2][:1].isdigit()
    if new.scheme == "https" and "." in host and not is_address and not host.endswith(LOCAL_NAMES):
        return
    raise SceneError(
        f"{asked} redirects to {target}; redirects are followed on the same server or to a public name over https: "
        "give that URL itself, if you trust it"
    )


def request(url: str, method: str = "GET") -> urllib.request.Request:
    """A request for a URL of a web server, which may contain user and password."""
    parts = urlsplit(url)
    user, _, host = parts.netloc.rpartition("@")
    asked = urllib.request.Request(urlunsplit(parts._replace(netloc=host, fragment="")), method=method)  # noqa: S310
    if user:
        # not for a server that this one redirects to
        asked.add_unredirected_header("Authorization", "Basic " + b64encode(unquote(user).encode()).decode())
    return asked


def tag_of(uri: str) -> str | None:
    """Version of a scene (ETag or date), as stated by its server."""
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

    # any error of the store's package: the version is optional, header and pixels are enough
    with suppress(Exception):
        files, path = fsspec.core.url_to_fs(url)
        facts = files.info(path)
        said = next((facts[name] for name in ("ETag", "etag", "LastModified", "last_modified") if name in facts), None)
        return None if said is None else str(said)
    return None


def _said(error: BaseException | None) -> Iterator[str]:
    """Yield the messages of an error and of its causes."""
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
"""URL schemes and the GDAL file systems that serve them."""

NETWORK = r"/vsi(curl|s3|gs|az|adls|oss|swift|webhdfs|hdfs)"

_REMOTE = re.compile(
    rf"(/vsi(zip|tar|gzip|7z|rar)/\{{?)*({NETWORK}|(?!((zip|tar|gzip|file)\+)*(zip|tar|gzip|file)://)(\w+\+)*\w+://)"
)

_CHAINED = re.compile(rf"(/vsi(?:zip|tar|gzip|7z|rar)/\{{?)(?={NETWORK[1:]}[_/?])")

GDAL_CHUNK = 1 << 14
"""Bytes read at once, equal to GDAL's request size."""


CACHE_BYTES = 256 << 20
"""GDAL's cache of decoded blocks; its default is 5 % of the memory. ``GDAL_CACHEMAX`` takes precedence."""


def settings(*, network: bool) -> dict[str, object]:
    """GDAL's settings for every access to a raster, local or on a network.

    Nothing that is opened may run code or name bytes to read as pixels. On this machine, files beside a raster are
    allowed and checked first; they are requested by name, so all of them are known. On a network they are ignored.
    """
    chosen: dict[str, object] = {
        "GDAL_VRT_ENABLE_PYTHON": False,
        "GDAL_VRT_ENABLE_RAWRASTERBAND": False,
        "VRT_NUM_THREADS": 1,  # threads started by GDAL would not have these settings
    }
    if "GDAL_CACHEMAX" not in os.environ:
        chosen["GDAL_CACHEMAX"] = CACHE_BYTES
    if network:
        chosen |= _network_settings()
    return chosen | {"GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR" if network else "TRUE"}


def is_remote(uri: str) -> bool:
    """Whether a path leads over a network, also through an archive."""
    return _REMOTE.match(chained(uri)) is not None


def chained(uri: str) -> str:
    """The canonical path of an archive on a network: ``/vsizip//vsicurl/...``, not ``/vsizip/vsicurl/...``."""
    return _CHAINED.sub(r"\1/", uri) if uri.startswith("/vsi") else uri


def vsi_path(uri: str) -> str:
    """The GDAL path of a path or URL: ``/vsis3/bucket/a.tif`` for ``s3://bucket/a.tif``, absolute for a local file."""
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
    """The first bytes of a file named by `vsi_path`, padded with zeros.

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
    """The content of a text file of at most `limit` bytes; a zero byte ends it, as in GDAL.

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
    """Bytes of a file, at most `GDAL_CHUNK`, padded with zeros."""
    # rasterio does not expose VSIFReadL; a raw band over the bytes of a file is the closest substitute.
    band = (
        f'<VRTDataset rasterXSize="{size}" rasterYSize="1"><GeoTransform>0,1,0,1,0,-1</GeoTransform>'
        '<VRTRasterBand dataType="Byte" band="1" subClass="VRTRawRasterBand">'
        f'<SourceFilename relativeToVRT="0">{escape(path)}</SourceFilename><ImageOffset>{offset}</ImageOffset>'
        f"<PixelOffset>1</PixelOffset><LineOffset>{size}</LineOffset></VRTRasterBand></VRTDataset>"
    )
    allowed = {"GDAL_VRT_ENABLE_RAWRASTERBAND": True, "GDAL_VRT_RAWRASTERBAND_ALLOWED_SOURCE": "ALL"}
    with rasterio.Env(**settings(network=is_remote(path)) | allowed), rasterio.open(band, driver="VRT") as dataset:
        return bytes(dataset.read(1).tobytes())

"""Scenes in object stores and on web servers: how GDAL asks for them, what is asked again, and what counts as answer.

GDAL repeats a request that a server refuses for the moment, and geolabel repeats what still fails then: an answer that
breaks off, or a server that is away for longer. Credentials are GDAL's own: ``AWS_ACCESS_KEY_ID`` and its like, its
configuration files, or the role of the machine.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from rasterio.errors import RasterioError

from geolabel.errors import SceneError
from geolabel.io import places
from geolabel.io.foreign import in_words

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

STORES = ("curl", "s3", "gs", "az", "adls", "oss", "swift")

ASK_ANEW = {"CPL_VSIL_CURL_NON_CACHED": ":".join(f"/vsi{kind}/" for kind in STORES)}
"""So that GDAL forgets what a server said of a file before."""

ANSWERS = re.compile(
    r"(response code:|HTTP error) 4(?!08|25|29)\d\d|access ?denied|no ?such ?(key|bucket)|does not exist"
    r"|invalid ?access ?key|signature|credentials|not recognized as|permission denied|no such file",
    re.IGNORECASE,
)
"""What a server says that it will say again: 404, 403, and that what it sent is no raster."""


def settings() -> dict[str, object]:
    """Settings for scenes behind a network, but for those that the environment has."""
    return {name: value for name, value in SETTINGS.items() if name not in os.environ}


def insist(action: Callable[[bool], T], what: str) -> T:
    """Do what may fail for a while, again and again with longer waits; an error that is an answer stands.

    Parameters
    ----------
    action
        Told whether it has been tried before.
    """
    for tried, wait in enumerate((*places.WAITS, None)):
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


def _said(error: BaseException | None) -> Iterator[str]:
    """Yield the messages of an error and of all that led to it."""
    while error is not None:
        yield " ".join(str(error).split())
        error = error.__cause__

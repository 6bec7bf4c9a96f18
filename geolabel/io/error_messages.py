"""Error messages of other libraries in plain words.

Used for all messages of GDAL, SQLite and urllib3.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from http import HTTPStatus

from geolabel.urls import without_secrets

MAX_CHARACTERS = 300
"""Maximum length of a quoted message; some quote the whole file."""

ANSWER = re.compile(r"(?:HTTP (?:error|status)(?: code)?|response code)(?: on \S+)?[: ]+(\d{3})\b", re.IGNORECASE)

PHRASES = {status.value: status.phrase.lower() for status in HTTPStatus}

UNREADABLE = "it is in no format that GDAL reads here"

SENTENCES = {
    "the server's name is not known: check the address and the connection": (
        r"resolve host|name resolution|name or service not known|getaddrinfo|nodename nor|failed to resolve"
    ),
    "the server cannot be reached": (
        r"connection refused|(failed|could not|couldn't) (to )?connect|newconnectionerror|unreachable|no route to host"
    ),
    "no answer came in time": r"timed? ?out",
    "the server's certificate is not accepted": r"certificate|\bssl\b",
    "the connection broke off": r"connection (reset|aborted|broken)|remote end closed|incompleteread|max retries",
    UNREADABLE: (r"not recognized as (being in )?a supported (file|dataset) (format|name)|not a supported file format"),
    "there is no such file": r"no such file or directory|does not exist in the file system",
    "permission is denied": r"permission denied|operation not permitted",
    "the disk is full": r"no space left|disk full|disk is full|disk quota",
    "the disk does not take all of it: is it full?": (
        r"write error|error writing|(failed to write|failed writing|writing .* failed)|fwrite"
    ),
    "its folder is gone or cannot be written to": r"unable to open database file",
    "another program has it open": r"database is locked",
    "it is not a complete GeoPackage": r"no such table|not a database|database disk image is malformed",
    "there is not enough memory": r"out of memory|(cannot|can't|unable to) allocate|not enough memory|bad_alloc",
    "its data are damaged or end too early": (
        r"ireadblock|tifffill|tiffread|tiff directory|read error|reading error|decod|decompress|premature|truncated"
        r"|\bcrc\b|corrupt|short read|not a tiff"
    ),
}
"""Explanations, with patterns of messages. The first match is used."""


def in_words(cause: BaseException) -> str:
    """Explanation of an error of another library, on one line; if unknown, the library's message, marked as such.

    Examples
    --------
    >>> in_words(OSError("'x.tif' not recognized as being in a supported file format."))
    'it is in no format that GDAL reads here'
    """
    said = list(_said(cause))
    answer = next(filter(None, map(ANSWER.search, said)), None)
    if answer is not None:
        phrase = PHRASES.get(int(answer[1]))
        return f"the server answers {answer[1]}" + (f" ({phrase})" if phrase else "")
    for sentence, pattern in SENTENCES.items():
        if any(re.search(pattern, text, re.IGNORECASE) for text in said):
            return sentence
    strerror = getattr(cause, "strerror", None)
    if isinstance(strerror, str):
        return strerror
    text = said[-1] if said else type(cause).__name__
    return f'{_library(cause)} says "{text[:MAX_CHARACTERS]}"'


def _said(cause: BaseException | None) -> Iterator[str]:
    """Yield the messages of an error and of what led to it, but for rasterio's that only point to the next."""
    while cause is not None:
        text = without_secrets(" ".join(str(cause).split()))
        if text and "previous exception" not in text:
            yield text
        cause = cause.__cause__


def _library(cause: BaseException) -> str:
    package = type(cause).__module__.partition(".")[0]
    return {"rasterio": "GDAL", "pyogrio": "GDAL", "sqlite3": "SQLite", "builtins": "Python"}.get(package, package)

"""URLs of files, and URLs without secrets: user, password, query string and fragment."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any, Literal
from urllib.parse import quote, unquote

_URL = re.compile(
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*://|\b(?:https?|ftp|s3|gs|az|abfss?|adls?|oss|swift):/(?!/))("
    r"?P<rest>(?:[^\s'\"<>{}`]|\{[^\s'\"<>{}`]*\})+)"
)
_OPTIONS = re.compile(r"/vsicurl(_streaming)?\?(?P<options>[^\s'\"<>{}|\\^`]+)")
_STORE = re.compile(
    r"(?P<path>/vsi(s3|gs|az|adls|oss|swift|webhdfs|hdfs)(_streaming)?/[^\s'\"<>{}|\\^`?#]*)"
    r"[?#][^\s'\"<>{}|\\^`]*"
)
_USER = re.compile(r"[^\s'\"<>/@]+@(?=[\w.-]+:\d+)")


def path_of(text: str, *, windows: bool = os.name == "nt") -> str:
    """The path that a ``file://`` URL names; any other text as it is.

    Examples
    --------
    >>> path_of("file:///C:/scenes/a.tif", windows=True)
    'C:/scenes/a.tif'
    """
    path = text.removeprefix("file://")
    if not windows or path == text:
        return path
    return path[1:] if re.match("/[A-Za-z]:", path) else path if path.startswith("/") else f"//{path}"


def database_uri(path: PurePath, mode: Literal["ro", "rw"]) -> str:
    """An absolute path as a URI of SQLite.

    SQLite takes no name of a server: that of a Windows share is a part of the path.
    """
    text = path.as_posix()
    plain = quote(os.fsencode(text if text.startswith("/") else f"/{text}"), safe="/:")
    return f"file://{plain}?mode={mode}"


def without_secrets(text: str) -> str:
    """A URL, or a text with URLs anywhere in it, without what gives access.

    User and password, the query string and the fragment of every URL go, since these hold passwords, signatures (S3),
    shared access signatures (Azure) and tokens; so do the options of ``/vsicurl?...`` other than its URL. Anything
    that is no URL stays as it is. A URL that was taken for a path has lost one of its slashes, and counts.

    Examples
    --------
    >>> without_secrets("/vsicurl/https://me:secret@host/scene.tif?sig=abc cannot be opened")
    '/vsicurl/https://host/scene.tif cannot be opened'
    """
    if ":/" in text or "%3A%2F%2F" in text.upper() or "/vsi" in text or "@" in text:
        text = _OPTIONS.sub(_options, text)
        text = _URL.sub(_plain, text)
        text = _STORE.sub(r"\g<path>", text)
        text = _USER.sub("", text)  # as libraries quote a host that they do not understand
    return text


def clean(value: Any) -> Any:
    """The same plain value, with `without_secrets` applied to every text in it."""
    if isinstance(value, str):
        return without_secrets(value)
    if isinstance(value, Mapping):
        return {key: clean(inner) for key, inner in value.items()}
    return [clean(inner) for inner in value] if isinstance(value, list | tuple) else value


def _plain(match: re.Match[str]) -> str:
    rest = match["rest"]
    user, colon, port = re.split(r"[/?#]", rest, maxsplit=1)[0].partition(":")
    if colon and "@" not in port and not port.isdigit() and not user.startswith("["):
        rest = rest.rpartition("@")[2]  # a password that holds what ends a host: what looked like its port is none
    place = re.split(r"[?#]", rest, maxsplit=1)[0]
    host, slash, path = place.partition("/")
    tail = re.search(r"[).,;:]*$", rest)
    end = tail[0] if tail and place != rest else ""  # the punctuation of the sentence around it
    return f"{match['scheme']}{host.rpartition('@')[2]}{slash}{path}{end}"


def _options(match: re.Match[str]) -> str:
    """The URL that is given as an option, percent-encoded or not."""
    url = next((option[4:] for option in match["options"].split("&") if option.lower().startswith("url=")), "")
    return "/vsicurl/" + unquote(url)

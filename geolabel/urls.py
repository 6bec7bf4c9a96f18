"""URLs of files, and removal of secrets from URLs: user, password, query string and fragment."""

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
    """The path of a ``file://`` URL; any other text unchanged.

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

    SQLite does not accept a server name: that of a Windows share is part of the path.
    """
    text = path.as_posix()
    plain = quote(os.fsencode(text if text.startswith("/") else f"/{text}"), safe="/:")
    return f"file://{plain}?mode={mode}"


def without_secrets(text: str) -> str:
    """A URL, or a text with URLs anywhere in it, without credentials.

    Removed are user and password, query string and fragment of every URL, which may hold passwords, signatures (S3),
    shared access signatures (Azure) and tokens, and the options of ``/vsicurl?...`` other than its URL. Other text is
    unchanged. URLs that lost a slash, because they were treated as paths, are included.

    Examples
    --------
    >>> without_secrets("/vsicurl/https://me:secret@host/scene.tif?sig=abc cannot be opened")
    '/vsicurl/https://host/scene.tif cannot be opened'
    """
    if ":/" in text or "%3A%2F%2F" in text.upper() or "/vsi" in text or "@" in text:
        text = _OPTIONS.sub(_options, text)
        text = _URL.sub(_plain, text)
        text = _STORE.sub(r"\g<path>", text)
        text = _USER.sub("", text)  # as libraries quote a host that they cannot parse
    return text


def clean(value: Any) -> Any:
    """The same plain value, with `without_secrets` applied to every string in it."""
    if isinstance(value, str):
        return without_secrets(value)
    if isinstance(value, Mapping):
        return {key: clean(inner) for key, inner in value.items()}
    return [clean(inner) for inner in value] if isinstance(value, list | tuple) else value


def _plain(match: re.Match[str]) -> str:
    rest = match["rest"]
    user, colon, port = re.split(r"[/?#]", rest, maxsplit=1)[0].partition(":")
    if colon and "@" not in port and not port.isdigit() and not user.startswith("["):
        rest = rest.rpartition("@")[2]  # a password with a character that ends a host: the apparent port is part of it
    place = re.split(r"[?#]", rest, maxsplit=1)[0]
    host, slash, path = place.partition("/")
    tail = re.search(r"[).,;:]*$", rest)
    end = tail[0] if tail and place != rest else ""  # the punctuation of the surrounding sentence
    return f"{match['scheme']}{host.rpartition('@')[2]}{slash}{path}{end}"


def _options(match: re.Match[str]) -> str:
    """The URL that is given as an option, percent-encoded or not."""
    url = next((option[4:] for option in match["options"].split("&") if option.lower().startswith("url=")), "")
    return "/vsicurl/" + unquote(url)

"""Fingerprints of scenes: URI, size and date of the files, and a hash of some pixels."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
from rasterio.errors import RasterioError

from geolabel.errors import OutputError, SceneError
from geolabel.io.error_messages import in_words
from geolabel.io.read.map_tiles import MapTiles
from geolabel.io.read.opening import files_of, is_remote
from geolabel.io.read.scene_mosaic import scene_mosaic_of
from geolabel.io.read.scenes import SceneReader
from geolabel.io.read.sources import FileSource
from geolabel.outputs import same_file
from geolabel.tiles import Window
from geolabel.urls import without_secrets

LOOK = 512
"""Side in pixels of the hashed window: the middle of the coarsest overview, or of the scene."""

ANSWER_S = 10.0
"""Seconds to wait for a server's date of a scene; after that, header and pixels suffice."""


def fingerprint(reader: SceneReader) -> dict[str, Any] | None:
    """Plain values that change when the scene does; None for an array, which has no path.

    Raises
    ------
    SceneError
        If the scene cannot be opened.
    """
    source = reader.source
    if isinstance(source, MapTiles):
        named, hidden = without_secrets(source.template.text), _hidden(source.template.text)
        where = [source.zoom, source.size, *astuple(source.frame)]
        return hidden | {"uri": named, "tiles": where, "pixels": _look(source)}
    if not isinstance(source, FileSource):
        return None
    uri = source.uri
    named = without_secrets(uri)
    return _hidden(uri) | {
        "uri": named if is_remote(uri) or not Path(uri).exists() else str(Path(uri).absolute()),
        "files": _files(uri),
        "tag": source.pin(),
        "header": hashlib.sha256(repr(source.header).encode()).hexdigest(),
        "pixels": _look(source),
    }


def _hidden(uri: str) -> dict[str, str]:
    return {} if without_secrets(uri) == uri else {"url_sha256": hashlib.sha256(uri.encode()).hexdigest()}


def check_apart(outputs: Iterable[Path], reader: SceneReader) -> None:
    """Refuse outputs that a scene is read from, such as the sources of a VRT.

    Raises
    ------
    OutputError
        If an output is one of these files.
    """
    scene_mosaic = scene_mosaic_of(reader)
    readers = [reader] if scene_mosaic is None else [layer.reader for layer in scene_mosaic.layers]
    there = [path for path in outputs if path.exists()]
    for source in (one.source for one in readers) if there else ():
        if isinstance(source, FileSource) and not is_remote(source.uri):
            names = [name for name, *_ in _files(source.uri)]
            for path, name in ((path, name) for path in there for name in names if same_file(path, name)):
                named = without_secrets(source.uri)
                raise OutputError(f"{path} is an input of this run ({named} is read from {name}): give another name")


def _files(uri: str) -> list[list[Any]]:
    """Name, size and modification time of every file behind a scene: VRTs have many, TIFFs may have sidecars."""
    if is_remote(uri):
        return []
    try:
        names = files_of(uri)
    except RasterioError as cause:
        raise SceneError(f"{uri} cannot be opened: {in_words(cause)}") from cause
    marks = []
    for name in names:
        with suppress(OSError):
            status = Path(name).stat()
            marks.append([name, status.st_size, status.st_mtime_ns])
    return marks


def _look(source: FileSource | MapTiles) -> str:
    level = len(source.levels) - 1
    height, width = source.levels[level]
    tall, wide = min(height, LOOK), min(width, LOOK)
    window = Window((height - tall) // 2, (width - wide) // 2, tall, wide)
    try:
        values, _ = source.read([1], window, level)
    except (OSError, RuntimeError, ValueError) as cause:
        return f"cannot be read: {type(cause).__name__}"
    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()

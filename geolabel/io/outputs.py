"""Outputs appear whole or not at all: written beside their place and renamed when finished."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path

from geolabel.errors import OutputError
from geolabel.io.names import check_name

SIDECARS = ("", "-journal", "-wal", "-shm", ".aux.xml", ".msk", ".ovr", ".ovr.tmp")
"""What GDAL and SQLite may leave beside a file they were writing."""

RASTER_SIDECARS = (".aux.xml", ".msk", ".ovr", ".msk.ovr", ".ovr.aux.xml", ".vat.dbf", ".vat.cpg")
"""Files that describe a raster, named after the whole of its name: statistics and nodata, mask, pyramids, table."""

DESCRIBED_BY = {
    **dict.fromkeys((".tif", ".tiff"), (*RASTER_SIDECARS, "tfw", "tifw", "tiffw", "tfwx", "aux", "rrd")),
    ".png": (*RASTER_SIDECARS, "pgw", "pngw", "pgwx"),
    ".gpkg": (".aux.xml",),
}
"""What GDAL, QGIS and ArcGIS leave beside a finished file of each format and read with it: what describes the old file
would be believed of the new one. With a dot the ending follows the whole name, without one it replaces the suffix.

A ``.prj`` or ``.wld`` of the same stem may belong to another file, and a ``.qml`` is a style that a person made: a
GeoTIFF needs none of them, and they stay."""


def check_target(path: Path, *, overwrite: bool, suffixes: tuple[str, ...], inputs: Iterable[str | Path] = ()) -> None:
    """Refuse, before any work is done, a place where an output could not or should not be written.

    Parameters
    ----------
    overwrite
        Whether a file that is there already may be replaced.
    suffixes
        File name extensions that fit the format, lower case.
    inputs
        Files that the run reads, none of which may be its output too.

    Raises
    ------
    OutputError
        If the name, the folder, the file that is there, or an input stands in the way.
    """
    check_name(path.absolute())
    if path.suffix.lower() not in suffixes:
        raise OutputError(f"{path}: the name of this output has to end with {' or '.join(suffixes)}")
    for source in inputs:
        if _same_file(path, source):
            raise OutputError(f"{path} is an input of this run: give the output another name")
    if path.is_dir():
        raise OutputError(f"{path} is a folder: give the name of a file")
    if path.exists() and not overwrite:
        raise OutputError(f"{path} exists: give --overwrite to replace it, or another name")
    if not path.parent.is_dir():
        raise OutputError(f"{path}: the folder {path.parent} does not exist; create it first")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise OutputError(f"{path}: the folder {path.parent} cannot be written to; choose another")


def _same_file(path: Path, source: str | Path) -> bool:
    try:
        return path.samefile(source)
    except OSError:  # one of them is no file: a URI, or not there yet
        return path.absolute() == Path(source).absolute()


def empty(folder: Path, own: Sequence[str]) -> None:
    """Delete what an earlier call of the same kind left in a folder, if there is one.

    Parameters
    ----------
    own
        Names of what such calls write, ``*`` for anything; what a killed `replacing` left is theirs too.

    Raises
    ------
    OutputError
        If the folder holds anything else: nothing is deleted then.
    """
    entries = sorted(folder.iterdir()) if folder.is_dir() else []
    foreign = [entry.name for entry in entries if not any(fnmatch(entry.name, name) for name in (*own, ".*.part*"))]
    if foreign:
        raise OutputError(f"{folder} holds {foreign[0]}, which is none of the outputs to replace: give another folder")
    for entry in entries:
        shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()


@contextmanager
def replacing(path: Path, *, overwrite: bool) -> Iterator[Path]:
    """Yield the name of a file beside `path` to write to, and rename it to `path` if the block ends without an error.

    The name keeps the extension of `path`, which some drivers insist on, and is the same every time, so what a killed
    run left behind is cleared away by the next. After an error nothing is left but what was there before.

    Raises
    ------
    OutputError
        If `path` exists and must not be replaced.
    """
    part = path.with_name(f".{path.stem}.part{path.suffix}")
    check_target(path, overwrite=overwrite, suffixes=(path.suffix.lower(),))
    _discard(part)
    try:
        yield part
        # a second run may have finished in the meantime
        check_target(path, overwrite=overwrite, suffixes=(path.suffix.lower(),))
        with _undescribed(path):
            part.replace(path)
    finally:
        _discard(part)


@contextmanager
def saving(path: Path) -> Iterator[Path]:
    """Write a file anew, as `replacing` does; what the disk refuses becomes an error of ours.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    try:
        with replacing(path, overwrite=True) as part:
            yield part
    except OSError as error:
        raise OutputError(f"{path} could not be written: {error.strerror or error}; is the disk full?") from error


def sidecars_of(path: Path) -> list[Path]:
    """Files beside a file that describe it, as far as they are there; upper case counts too."""
    endings = DESCRIBED_BY.get(path.suffix.lower(), ())
    names = {(path.name + end if end.startswith(".") else f"{path.stem}.{end}").lower() for end in endings}
    stem = path.stem.lower()
    entries = path.parent.iterdir() if names and path.parent.is_dir() else ()
    same = [entry for entry in entries if entry.name.lower().startswith(stem) and entry.name.lower() in names]
    return sorted(entry for entry in same if entry.name.startswith(path.stem) and entry.is_file())


@contextmanager
def _undescribed(path: Path) -> Iterator[None]:
    """Lay aside what describes the file that is replaced inside the block; back again if that fails."""
    aside = {sidecar: sidecar.with_name(f".{sidecar.name}.old") for sidecar in sidecars_of(path)}
    for sidecar, kept in aside.items():
        sidecar.replace(kept)
    try:
        yield
    except BaseException:
        for sidecar, kept in aside.items():
            kept.replace(sidecar)
        raise
    for kept in aside.values():
        kept.unlink(missing_ok=True)


def _discard(part: Path) -> None:
    for sidecar in SIDECARS:
        part.with_name(part.name + sidecar).unlink(missing_ok=True)

"""Pixel sources of scenes: their protocol, and files opened by GDAL."""

from __future__ import annotations

import logging
import re
import threading
import time
import weakref
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import rasterio
from affine import Affine
from rasterio._err import CPLE_BaseError
from rasterio.enums import MaskFlags
from rasterio.errors import RasterioError
from rasterio.windows import Window as RasterWindow

from geolabel.errors import SceneError
from geolabel.io.error_messages import UNREADABLE, in_words
from geolabel.io.read import files
from geolabel.io.read.headers import Header, chosen_time, crs_beside, to_pyproj
from geolabel.io.read.opening import is_remote, open_raster, settings
from geolabel.parsing import check_name, check_regular
from geolabel.tiles import Window
from geolabel.types import AnyArray, BoolArray
from geolabel.urls import without_secrets

if TYPE_CHECKING:
    from rasterio.io import DatasetReader


logger = logging.getLogger(__name__)

PROBE = 512
"""Side in pixels at which the mask of a raster is compared with the masks of its overviews."""


CONFIRM_S = 10.0
"""Seconds after which a server is asked again for the version of a raster."""

_CONFIRMED: dict[str, float] = {}
"""Time at which the version of each URL was last confirmed in this process."""


@runtime_checkable
class Source(Protocol):
    """Pixels of a raster as stored. Level 0 is the raster itself, higher levels are coarser overviews."""

    @property
    def header(self) -> Header:
        """Header of the raster."""
        ...

    @property
    def levels(self) -> tuple[tuple[int, int], ...]:
        """Height and width of each level."""
        ...

    def read(self, bands: Sequence[int], window: Window, level: int = 0) -> tuple[AnyArray, BoolArray]:
        """Values (B, h, w), and where no mask or alpha band hides them (h, w)."""
        ...

    def decimate(self, bands: Sequence[int], height: int, width: int) -> tuple[AnyArray, BoolArray]:
        """The whole raster at another size, by nearest neighbour."""
        ...

    def close(self) -> None:
        """Release open files; reading again reopens them."""
        ...


class FileSource:
    """A path, a VRT or any URI that GDAL opens. Each thread opens its own handle on first use."""

    def __init__(self, uri: str, time: str | None = None) -> None:
        check_name(uri)
        self.uri = uri
        self.time = time
        self._tag: str | None = None
        self._local = threading.local()
        self._opening = threading.Lock()
        # Weak: a thread's handles are closed when it ends.
        self._opened: weakref.WeakSet[DatasetReader] = weakref.WeakSet()

    def __reduce__(self) -> tuple[Any, ...]:
        return _pinned, (self.uri, self.time, self._tag)

    def pin(self) -> str | None:
        """Pin the raster to the version that its server states; reading another version is then an error.

        None for a local raster, or if the server states no version.
        """
        if is_remote(self.uri) and self._tag is None:
            self._tag = files.tag_of(self.uri)
            _CONFIRMED[self.uri] = time.monotonic()
        return self._tag

    def _confirm(self) -> None:
        """Check now and then that the server still has the pinned version: mixed versions are not an image."""
        if self._tag is None or time.monotonic() - _CONFIRMED.get(self.uri, -CONFIRM_S) < CONFIRM_S:
            return
        found = files.tag_of(self.uri)
        if found is not None and found != self._tag:
            raise SceneError(
                f"{without_secrets(self.uri)} was replaced on its server while being read (it was {self._tag}, and is "
                f"{found}): run again, or download it first"
            )
        _CONFIRMED[self.uri] = time.monotonic()

    @cached_property
    def header(self) -> Header:
        """Header of the raster."""
        with self._dataset() as dataset:
            try:
                header = _file_header(dataset, self.uri)
            except CPLE_BaseError as cause:  # GDAL's error about a sidecar, which rasterio does not wrap
                raise SceneError(f"{self.uri} or a file that describes it cannot be read: {in_words(cause)}") from cause
        return header if self.time is None else _bands_of_time(header, self.time)

    @cached_property
    def levels(self) -> tuple[tuple[int, int], ...]:
        """Height and width of the raster and of the overviews that kept its mask."""
        base = (self.header.height, self.header.width)
        probe = (min(base[0], PROBE), min(base[1], PROBE))
        with self._dataset() as dataset:
            count = len(dataset.overviews(1))
            hidden = any(self.header.masked) and not dataset.read_masks(1, out_shape=probe).all()
        levels = [base]
        for level in range(1, count + 1):
            with self._dataset(level) as dataset:
                # A mask added after the overviews has no overviews; GDAL then reports all their pixels as valid.
                if hidden and dataset.read_masks(1, out_shape=probe).all():
                    logger.info("%s: its overviews lost the mask and are not used", without_secrets(self.uri))
                    break
                levels.append(dataset.shape)
        return tuple(levels)

    def read(self, bands: Sequence[int], window: Window, level: int = 0) -> tuple[AnyArray, BoolArray]:
        """Values (B, h, w), and where no mask or alpha band hides them (h, w)."""
        part = RasterWindow(window.col, window.row, window.width, window.height)
        return self._read(bands, (window.height, window.width), level, part)

    def decimate(self, bands: Sequence[int], height: int, width: int) -> tuple[AnyArray, BoolArray]:
        """The whole raster at another size, by nearest neighbour, from overviews if present."""
        return self._read(bands, (height, width), 0, None)

    def close(self) -> None:
        """Close the handles of all threads; reading again reopens them."""
        with self._opening:
            for dataset in self._opened:
                dataset.close()

    def _read(
        self, bands: Sequence[int], shape: tuple[int, int], level: int, part: RasterWindow | None
    ) -> tuple[AnyArray, BoolArray]:
        if not is_remote(self.uri):
            return self._read_once(bands, shape, level, part)

        def attempt(again: bool) -> tuple[AnyArray, BoolArray]:
            if again:
                self._reopen(level)
            return self._read_once(bands, shape, level, part)

        self._confirm()
        with self._dataset(level):  # opening has its own retries, which would multiply with those of reading
            return files.insist(attempt, without_secrets(self.uri))

    def _reopen(self, level: int) -> None:
        """Replace this thread's handle of a level by a new one, which asks the server again."""
        with rasterio.Env(**settings(self.uri) | files.ASK_ANEW):
            handle = self._local.handles.pop(level, None)
            if handle is not None:
                handle.close()
            self._local.handles[level] = self._open_once(level)

    def _read_once(
        self, bands: Sequence[int], shape: tuple[int, int], level: int, part: RasterWindow | None
    ) -> tuple[AnyArray, BoolArray]:
        header = self.header
        dtypes = {header.dtypes[band - 1] for band in bands}
        stored = header.stored or range(1, header.count + 1)
        numbers = [stored[band - 1] for band in bands]
        with self._dataset(level) as dataset:
            if len(dtypes) == 1:
                values = dataset.read(numbers, window=part, out_shape=(len(bands), *shape))
            else:  # mixed types, only in a VRT; rasterio reads one type at a time
                values = np.stack([dataset.read(number, window=part, out_shape=shape) for number in numbers])
            valid = np.ones(shape, bool)
            for band in header.alpha:
                valid &= dataset.read(stored[band - 1], window=part, out_shape=shape) > 0
            for number in (stored[band - 1] for band in bands if header.masked[band - 1]):
                valid &= dataset.read_masks(number, window=part, out_shape=shape) > 0
        return values, valid

    @contextmanager
    def _dataset(self, level: int = 0) -> Iterator[DatasetReader]:
        """Return this thread's handle of a level, inside the required GDAL settings."""
        handles: dict[int, DatasetReader] = self._local.__dict__.setdefault("handles", {})
        with rasterio.Env(**settings(self.uri)):
            if level not in handles or handles[level].closed:
                handles[level] = self._open(level)
            yield handles[level]

    def _open(self, level: int) -> DatasetReader:
        if not is_remote(self.uri):
            return self._open_once(level)

        def attempt(again: bool) -> DatasetReader:
            with rasterio.Env(**settings(self.uri) | (files.ASK_ANEW if again else {})):
                return self._open_once(level)

        return files.insist(attempt, without_secrets(self.uri))

    def _open_once(self, level: int) -> DatasetReader:
        try:
            dataset = open_raster(self.uri, level=level)
        except (RasterioError, OSError) as cause:
            raise SceneError(_why_not(self.uri, cause)) from cause
        with self._opening:
            self._opened.add(dataset)
        return dataset


def _pinned(uri: str, time: str | None, tag: str | None) -> FileSource:
    """A file pinned to a version in another process."""
    source = FileSource(uri, time)
    source._tag = tag
    return source


def _file_header(dataset: DatasetReader, uri: str) -> Header:
    if dataset.count == 0:
        inner = ", ".join(dataset.subdatasets) or "no subdatasets either"
        raise SceneError(f"{uri} contains no image itself: give one of its subdatasets as the scene ({inner})")
    placed = not dataset.transform.is_identity
    approximate = "ground control points" if dataset.gcps[0] else "RPCs" if dataset.tags(ns="RPC") else None
    status = Path(uri).stat() if Path(uri).is_file() else None
    crs = to_pyproj(dataset.crs, uri)
    if crs is None and placed and status is not None:
        crs = crs_beside(Path(uri))
    return Header(
        name=without_secrets(uri),
        height=dataset.height,
        width=dataset.width,
        crs=crs,
        transform=dataset.transform if placed else None,
        dtypes=dataset.dtypes,
        nodata=dataset.nodatavals,
        descriptions=dataset.descriptions,
        colours=tuple(colour.name.lower() for colour in dataset.colorinterp),
        # Alpha and nodata are evaluated separately: a mask beside the file replaces both in GDAL's own flags.
        masked=tuple(
            not {MaskFlags.all_valid, MaskFlags.nodata, MaskFlags.alpha} & set(flags)
            for flags in dataset.mask_flag_enums
        ),
        scaling=tuple(zip(dataset.scales, dataset.offsets, strict=True)),
        approximate=None if placed else approximate,
        tags={**dataset.tags(), **dataset.tags(ns="IMAGERY")},
        units=dataset.units,
        wavelengths=tuple(_wavelength(dataset, band) for band in dataset.indexes),
        size_bytes=status.st_size if status else None,
        modified=datetime.fromtimestamp(status.st_mtime, UTC).isoformat(timespec="seconds") if status else None,
        times=_times(dataset),
    )


def _times(dataset: DatasetReader) -> tuple[str | None, ...]:
    """Date and time of each band of netCDF and Zarr: a number of units since a date (CF conventions, 4.4).

    Empty if no band has one.
    """
    since = SINCE.match(str(dataset.tags().get("time#units", "")))
    numbers = [dataset.tags(band).get("NETCDF_DIM_time") for band in dataset.indexes]
    if not any(number is not None for number in numbers):
        return ()
    return tuple(number if since is None or number is None else _since(since, number) for number in numbers)


SINCE = re.compile(r"(day|hour|minute|second)s? since (\d{4}-\d\d?-\d\d?)(?:[ T](\d\d?:\d\d:\d\d))?")

SECONDS = {"day": 86_400, "hour": 3_600, "minute": 60, "second": 1}


def _since(unit: re.Match[str], number: str) -> str:
    year, month, day = map(int, unit[2].split("-"))
    hour, minute, second = map(int, (unit[3] or "0:0:0").split(":"))
    try:
        moment = datetime(year, month, day, hour, minute, second, tzinfo=UTC)
        moment += timedelta(seconds=float(number) * SECONDS[unit[1]])
    except (ValueError, OverflowError):  # another calendar
        return number
    return moment.replace(tzinfo=None).isoformat(timespec="seconds")


def _bands_of_time(header: Header, time: str) -> Header:
    """The bands of one time.

    Raises
    ------
    SceneError
        If no time, or more than one, starts with the requested one.
    """
    if not header.times:
        raise SceneError(f"time {time}: the bands of {header.name} have no times; omit it")
    moment = chosen_time(time, list(dict.fromkeys(one for one in header.times if one is not None)), header.name)
    part = header.only([number for number, one in enumerate(header.times, 1) if one == moment])
    date = {"ACQUISITION_DATE": moment[:10]} if re.match(r"\d{4}-\d\d-\d\dT", moment) else {}
    return replace(part, tags={**part.tags, **date})


VECTOR = re.compile(rb"SQLite format 3\x00|\x00\x00\x27\x0a|fgb\x03|\s*\{.*\"(FeatureCollection|Feature)\"", re.DOTALL)
"""First bytes of GeoPackages and other databases, Shapefiles, FlatGeobufs and GeoJSON."""

ARCHIVES = {b"PK\x03\x04": ("ZIP", "/vsizip/"), b"7z\xbc\xaf": ("7z", "/vsi7z/"), b"Rar!": ("RAR", "/vsirar/")}
"""First bytes of archives, and GDAL's prefix for them if it has one."""


def _archive(path: Path, start: bytes) -> str | None:
    """Error message for an archive; None for any other file."""
    if start[:2] == b"\x1f\x8b" or start[257:262] == b"ustar":
        return f"{path} is an archive (tar or gzip), not a raster: unpack it first"
    known = next((kind for begin, kind in ARCHIVES.items() if start.startswith(begin)), None)
    if known is None:
        return None
    name, prefix = known
    inner = rasters_inside(path) if name == "ZIP" else []
    if not inner:
        return f"{path} is a {name} archive, not a raster: unpack it first"
    more = f", or one of {len(inner) - 1} others in it" if len(inner) > 1 else ""
    return (
        f"{path} is a {name} archive: give the raster inside, {prefix}{path.absolute()}/{inner[0]}{more}, or unpack it"
    )


def rasters_inside(path: Path) -> list[str]:
    """Names of possible rasters in a ZIP archive; empty if it is not one."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError):
        return []
    return sorted(name for name in names if name.lower().endswith((".tif", ".tiff", ".jp2", ".png", ".jpg", ".img")))


def _wavelength(dataset: DatasetReader, band: int) -> float | None:
    """Centre wavelength of a band in nanometres, from GDAL or ENVI metadata."""
    try:
        micrometres = dataset.tags(band, ns="IMAGERY").get("CENTRAL_WAVELENGTH_UM")
        if micrometres is not None:
            return float(micrometres) * 1000
        tags = {key.lower(): value for key, value in dataset.tags(band).items()}
        length = float(tags["wavelength"])
        unit = tags.get("wavelength_units", "").lower() or ("micrometers" if length < 100 else "nanometers")
        return length if unit.startswith("n") else length * 1000
    except (KeyError, ValueError):
        return None


def _why_not(uri: str, cause: RasterioError) -> str:
    """Why a file cannot be opened, for the user."""
    path = Path(uri.removeprefix("file://"))
    if is_remote(uri) or re.match(r"/vsi|\w{2,}:", uri):
        return f"{uri} cannot be opened: {in_words(cause)}"
    if not path.exists():
        return f"{uri}: there is no such file"
    if path.is_dir():
        return f"{uri} is a folder, but not a delivery of Sentinel-2, Landsat or Planet: give the raster file inside it"
    try:
        check_regular(path)
    except OSError as error:
        return f"{uri} cannot be read: {error.strerror}"
    if path.stat().st_size == 0:
        return f"{uri} is empty: copy or download it again"
    try:
        with path.open("rb") as file:
            start = file.read(512)
    except OSError as denied:
        return f"{uri} cannot be read: {denied.strerror}"
    archive = _archive(path, start)
    if archive is not None:
        return archive
    if re.match(rb"\s*<(!doctype html|html|\?xml)", start, re.IGNORECASE) and b"<VRTDataset" not in start:
        return f"{uri} is a web page or XML, not a raster: it may be the error page of a failed download"
    if VECTOR.match(start) and in_words(cause) == UNREADABLE:
        return f"{uri} holds vectors or tables, not a raster: give a GeoTIFF or another format that GDAL reads"
    if not re.match(rb"\s*<", start) and not re.search(rb"[^\t\n\r\x20-\x7e\x80-\xff]", start):
        return f"{uri} is a text file, not a raster: give a GeoTIFF or another format that GDAL reads"
    reason = in_words(cause)
    return f"{uri} is damaged or in an unsupported format" + ("" if reason == UNREADABLE else f": {reason}")


# --- stored upside down, mirrored or turned --------------------------------------------------------------------------


@dataclass(frozen=True)
class Turn:
    """How the north-up raster becomes the stored one: flipped first, then transposed."""

    rows: bool = False
    columns: bool = False
    transposed: bool = False

    @classmethod
    def of(cls, transform: Affine | None) -> Turn:
        """The turn of a raster with this transform; none if it is rotated by less than a quarter."""
        if transform is None:
            return cls()
        a, b, _, d, e, _ = tuple(transform)[:6]
        if b == d == 0:
            return cls(rows=e > 0, columns=a < 0)
        if a == e == 0:
            return cls(rows=d > 0, columns=b < 0, transposed=True)
        return cls()

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the upright raster from those of the stored one, or vice versa."""
        return (width, height) if self.transposed else (height, width)

    def window(self, window: Window, height: int, width: int) -> Window:
        """A window of the upright raster (of some size) in the stored one."""
        row = height - window.bottom if self.rows else window.row
        col = width - window.right if self.columns else window.col
        if self.transposed:
            return Window(col, row, window.width, window.height)
        return Window(row, col, window.height, window.width)

    def upright(self, values: AnyArray) -> AnyArray:
        """Stored values (..., h, w), turned upright."""
        if self == Turn():
            return values
        if self.transposed:
            values = values.swapaxes(-1, -2)
        rows, columns = (slice(None, None, -1 if flipped else None) for flipped in (self.rows, self.columns))
        return np.ascontiguousarray(values[..., rows, columns])

    def transform(self, stored: Affine, height: int, width: int) -> Affine:
        """The transform of the upright raster of a height and a width."""
        turned = stored * Affine(0, 1, 0, 1, 0, 0) if self.transposed else stored
        if self.rows:
            turned = turned * Affine(1, 0, 0, 0, -1, height)
        return turned * Affine(-1, 0, width, 0, 1, 0) if self.columns else turned


class Upright:
    """A pixel source turned to north up and west left; it opens its source on first use."""

    def __init__(self, stored: Source) -> None:
        self.stored = stored

    @cached_property
    def turn(self) -> Turn:
        """How the source is stored."""
        stored = self.stored.header
        return Turn.of(stored.transform if stored.crs is not None else None)  # without a CRS, north is undefined

    @cached_property
    def header(self) -> Header:
        """Header of the source, upright."""
        stored = self.stored.header
        if stored.transform is None or self.turn == Turn():
            return stored
        height, width = self.turn.size(stored.height, stored.width)
        return replace(
            stored, height=height, width=width, transform=self.turn.transform(stored.transform, height, width)
        )

    @property
    def levels(self) -> tuple[tuple[int, int], ...]:
        """Height and width of the raster and its overviews."""
        return tuple(self.turn.size(*level) for level in self.stored.levels)

    def read(self, bands: Sequence[int], window: Window, level: int = 0) -> tuple[AnyArray, BoolArray]:
        """Values (B, h, w), and where no mask or alpha band hides them (h, w)."""
        where = window if self.turn == Turn() else self.turn.window(window, *self.levels[level])
        values, valid = self.stored.read(bands, where, level)
        return self.turn.upright(values), self.turn.upright(valid)

    def decimate(self, bands: Sequence[int], height: int, width: int) -> tuple[AnyArray, BoolArray]:
        """The whole raster at another size, by nearest neighbour."""
        values, valid = self.stored.decimate(bands, *self.turn.size(height, width))
        return self.turn.upright(values), self.turn.upright(valid)

    def close(self) -> None:
        """Release what was opened."""
        self.stored.close()

"""Where the pixels of a scene come from: a file that GDAL opens, or a DataArray. Both answer the same two questions."""

from __future__ import annotations

import logging
import re
import threading
import warnings
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
import pyproj
import rasterio
from affine import Affine
from rasterio.enums import MaskFlags
from rasterio.errors import CRSError, NotGeoreferencedWarning, RasterioError
from rasterio.windows import Window as RasterWindow

from geolabel.errors import SceneError
from geolabel.io import remote
from geolabel.io.opening import is_remote as is_remote
from geolabel.io.opening import open_raster, settings
from geolabel.tiles import Window
from geolabel.types import AnyArray, BoolArray

if TYPE_CHECKING:
    import xarray
    from rasterio.io import DatasetReader

logger = logging.getLogger(__name__)

PROBE = 512
"""Side in pixels at which the mask of a raster is compared with the masks of its overviews."""


@dataclass(frozen=True)
class Header:
    """What a raster says of itself."""

    name: str
    height: int
    width: int
    crs: pyproj.CRS | None
    transform: Affine | None
    """None where the raster has none."""
    dtypes: tuple[str, ...]
    nodata: tuple[float | None, ...]
    """Per band."""
    descriptions: tuple[str | None, ...]
    colours: tuple[str, ...]
    """Colour interpretation per band, lower case, ``undefined`` where there is none."""
    masked: tuple[bool, ...]
    """Whether a band comes with a mask, inside the file or beside it."""
    scaling: tuple[tuple[float, float], ...] = ()
    """Factor and offset per band that turn stored values into what they stand for; empty for an array."""
    approximate: str | None = None
    """How the raster is placed where that is no transform: ``ground control points`` or ``RPCs``."""
    tags: Mapping[str, str] = field(default_factory=dict)
    size_bytes: int | None = None
    modified: str | None = None

    @property
    def count(self) -> int:
        """Number of bands."""
        return len(self.dtypes)

    @property
    def alpha(self) -> tuple[int, ...]:
        """One-based numbers of the alpha bands."""
        pairs = enumerate(zip(self.colours, self.descriptions, strict=True), 1)
        return tuple(i for i, (colour, name) in pairs if "alpha" in (colour, (name or "").lower()))


@runtime_checkable
class Source(Protocol):
    """Pixels of a raster, as they are stored. Level 0 is the raster itself, the next ones are coarser overviews."""

    @property
    def header(self) -> Header:
        """What the raster says of itself."""
        ...

    @property
    def levels(self) -> tuple[tuple[int, int], ...]:
        """Height and width of each level."""
        ...

    def read(self, bands: Sequence[int], window: Window, level: int = 0) -> tuple[AnyArray, BoolArray]:
        """Values (B, h, w) and where no mask and no alpha band hides them (h, w)."""
        ...

    def decimate(self, bands: Sequence[int], height: int, width: int) -> tuple[AnyArray, BoolArray]:
        """The whole raster at another size, each pixel picked from the nearest one stored."""
        ...

    def close(self) -> None:
        """Give back what was opened; reading again opens again."""
        ...


class FileSource:
    """A path, a VRT or any URI that GDAL opens. Each thread has a handle of its own, opened when it first reads."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._local = threading.local()
        # Weak: the handles of a thread that ended are closed with it.
        self._opened: weakref.WeakSet[DatasetReader] = weakref.WeakSet()

    @cached_property
    def header(self) -> Header:
        """What the raster says of itself."""
        with self._dataset() as dataset:
            return _file_header(dataset, self.uri)

    @cached_property
    def levels(self) -> tuple[tuple[int, int], ...]:
        """Height and width of the raster and of the overviews that kept its masks."""
        base = (self.header.height, self.header.width)
        probe = (min(base[0], PROBE), min(base[1], PROBE))
        with self._dataset() as dataset:
            count = len(dataset.overviews(1))
            hidden = any(self.header.masked) and not dataset.read_masks(1, out_shape=probe).all()
        levels = [base]
        for level in range(1, count + 1):
            with self._dataset(level) as dataset:
                # A mask that came after the overviews has none itself; GDAL then calls all of them valid.
                if hidden and dataset.read_masks(1, out_shape=probe).all():
                    logger.info("%s: its overviews lost the mask and are not used", self.uri)
                    break
                levels.append(dataset.shape)
        return tuple(levels)

    def read(self, bands: Sequence[int], window: Window, level: int = 0) -> tuple[AnyArray, BoolArray]:
        """Values (B, h, w) and where no mask and no alpha band hides them (h, w)."""
        part = RasterWindow(window.col, window.row, window.width, window.height)
        return self._read(bands, (window.height, window.width), level, part)

    def decimate(self, bands: Sequence[int], height: int, width: int) -> tuple[AnyArray, BoolArray]:
        """The whole raster at another size, each pixel picked from the nearest one stored, overviews included."""
        return self._read(bands, (height, width), 0, None)

    def close(self) -> None:
        """Close the handles of all threads; reading again opens again."""
        with _OPENING:
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

        with self._dataset(level):  # opened with patience of its own, which would else multiply with that of reading
            return remote.insist(attempt, self.uri)

    def _reopen(self, level: int) -> None:
        """Replace this thread's handle of a level by one that asks the server whether the file is still there."""
        with rasterio.Env(**settings(self.uri) | remote.ASK_ANEW):
            handle = self._local.handles.pop(level, None)
            if handle is not None:
                handle.close()
            self._local.handles[level] = self._open_once(level)

    def _read_once(
        self, bands: Sequence[int], shape: tuple[int, int], level: int, part: RasterWindow | None
    ) -> tuple[AnyArray, BoolArray]:
        header = self.header
        dtypes = {header.dtypes[band - 1] for band in bands}
        with self._dataset(level) as dataset:
            if len(dtypes) == 1:
                values = dataset.read(list(bands), window=part, out_shape=(len(bands), *shape))
            else:  # as only a VRT has them; rasterio reads one type at a time
                values = np.stack([dataset.read(band, window=part, out_shape=shape) for band in bands])
            valid = np.ones(shape, bool)
            for band in header.alpha:
                valid &= dataset.read(band, window=part, out_shape=shape) > 0
            for band in (band for band in bands if header.masked[band - 1]):
                valid &= dataset.read_masks(band, window=part, out_shape=shape) > 0
        return values, valid

    @contextmanager
    def _dataset(self, level: int = 0) -> Iterator[DatasetReader]:
        """A handle of a level that belongs to this thread, inside the GDAL settings that every access needs."""
        handles: dict[int, DatasetReader] = self._local.__dict__.setdefault("handles", {})
        with rasterio.Env(**settings(self.uri)):
            if level not in handles or handles[level].closed:
                handles[level] = self._open(level)
            yield handles[level]

    def _open(self, level: int) -> DatasetReader:
        if not is_remote(self.uri):
            return self._open_once(level)

        def attempt(again: bool) -> DatasetReader:
            with rasterio.Env(**settings(self.uri) | (remote.ASK_ANEW if again else {})):
                return self._open_once(level)

        return remote.insist(attempt, self.uri)

    def _open_once(self, level: int) -> DatasetReader:
        options = {"OVERVIEW_LEVEL": level - 1} if level else {}
        try:
            with _OPENING, warnings.catch_warnings():
                warnings.simplefilter("ignore", NotGeoreferencedWarning)  # the header says so, as an error or not
                dataset = open_raster(self.uri, **options)
                self._opened.add(dataset)
        except RasterioError as cause:
            raise SceneError(_why_not(self.uri, cause)) from cause
        return dataset


_OPENING = threading.Lock()
"""Python's warning filters belong to the process, so handles are opened one after the other."""


class ArraySource:
    """A DataArray with rioxarray's conventions, in memory or behind dask, computed in the thread that reads."""

    def __init__(self, array: xarray.DataArray) -> None:
        import rioxarray  # noqa: F401 - registers the accessor that knows dimensions, CRS and nodata

        try:
            y, x = array.rio.y_dim, array.rio.x_dim
        except Exception as cause:  # rioxarray has several, all of them about dimensions
            raise SceneError(
                f"the array's dimensions {array.dims} are not rows and columns: name them y and x"
            ) from cause
        others = [dim for dim in array.dims if dim not in (y, x)]
        if len(others) > 1:
            raise SceneError(
                f"the array has dimensions {array.dims}: choose one of {others[1:]}, so that bands, y, x remain"
            )
        self.array = array
        self._bands_first = (
            array.transpose(*others, y, x) if others else array.expand_dims("band").transpose("band", y, x)
        )

    @cached_property
    def header(self) -> Header:
        """What the array says of itself."""
        return _array_header(self.array, self._bands_first)

    @property
    def levels(self) -> tuple[tuple[int, int], ...]:
        """An array has no overviews."""
        return ((self.header.height, self.header.width),)

    def read(self, bands: Sequence[int], window: Window, level: int = 0) -> tuple[AnyArray, BoolArray]:
        """Values (B, h, w); an array has no mask, so everything is valid."""
        assert level == 0, "an array has no overviews"
        return self._compute([band - 1 for band in bands], *window.slices)

    def decimate(self, bands: Sequence[int], height: int, width: int) -> tuple[AnyArray, BoolArray]:
        """The whole array at another size, each pixel picked from the nearest one, as GDAL picks it."""
        rows = (2 * np.arange(height) + 1) * self.header.height // (2 * height)
        cols = (2 * np.arange(width) + 1) * self.header.width // (2 * width)
        return self._compute([band - 1 for band in bands], rows, cols)

    def close(self) -> None:
        """Nothing was opened."""

    def _compute(
        self, bands: Sequence[int], rows: slice | AnyArray, cols: slice | AnyArray
    ) -> tuple[AnyArray, BoolArray]:
        wanted = [*bands, *(band - 1 for band in self.header.alpha)]
        part = self._bands_first[wanted, rows, cols]
        # In this thread: a pool of its own inside a task of the run would take cores that others count on.
        values = np.asarray(part.compute(scheduler="synchronous").values)
        return values[: len(bands)], np.all(values[len(bands) :] > 0, axis=0)


def _file_header(dataset: DatasetReader, uri: str) -> Header:
    if dataset.count == 0:
        inner = ", ".join(dataset.subdatasets) or "no subdatasets either"
        raise SceneError(f"{uri} holds no image itself: give one of its subdatasets as the scene ({inner})")
    placed = not dataset.transform.is_identity
    approximate = "ground control points" if dataset.gcps[0] else "RPCs" if dataset.rpcs else None
    status = Path(uri).stat() if Path(uri).is_file() else None
    return Header(
        name=uri,
        height=dataset.height,
        width=dataset.width,
        crs=_crs(dataset.crs, uri),
        transform=dataset.transform if placed else None,
        dtypes=dataset.dtypes,
        nodata=dataset.nodatavals,
        descriptions=dataset.descriptions,
        colours=tuple(colour.name.lower() for colour in dataset.colorinterp),
        # Alpha and nodata are looked at apart: a mask beside the file replaces both in GDAL's own flags.
        masked=tuple(
            not {MaskFlags.all_valid, MaskFlags.nodata, MaskFlags.alpha} & set(flags)
            for flags in dataset.mask_flag_enums
        ),
        scaling=tuple(zip(dataset.scales, dataset.offsets, strict=True)),
        approximate=None if placed else approximate,
        tags={**dataset.tags(), **dataset.tags(ns="IMAGERY")},
        size_bytes=status.st_size if status else None,
        modified=datetime.fromtimestamp(status.st_mtime, UTC).isoformat(timespec="seconds") if status else None,
    )


def _array_header(array: xarray.DataArray, stack: xarray.DataArray) -> Header:
    count, height, width = stack.shape
    names = array.attrs.get("long_name", array.attrs.get("descriptions"))
    labels = stack[stack.dims[0]].values if stack.dims[0] in stack.coords else np.arange(count)
    if labels.dtype.kind in "UO":  # band names as coordinates, as STAC readers give them
        names = tuple(map(str, labels))
    elif isinstance(names, str) or names is None or len(names) != count:
        names = (names,) * count if count == 1 and isinstance(names, str) else (None,) * count
    name = str(array.name or "array")
    try:
        nodata = array.rio.nodata
    except OverflowError:  # left over from another dtype, which this one cannot hold
        nodata = None
    return Header(
        name=name,
        height=height,
        width=width,
        crs=_crs(array.rio.crs, name),
        transform=_array_transform(array),
        dtypes=(str(stack.dtype),) * count,
        nodata=(None if nodata is None else float(nodata),) * count,
        descriptions=tuple(names),
        colours=("undefined",) * count,
        masked=(False,) * count,
        tags={key: value for key, value in array.attrs.items() if isinstance(value, str)},
    )


def _array_transform(array: xarray.DataArray) -> Affine | None:
    """The transform that the array carries, unless its coordinates say that it was cut or thinned since."""
    mapping = array.coords.get(array.rio.grid_mapping)
    text = "" if mapping is None else str(mapping.attrs.get("GeoTransform", ""))
    stored = Affine.from_gdal(*map(float, text.split())) if text else None
    axes = [array.coords.get(dim) for dim in (array.rio.x_dim, array.rio.y_dim)]
    if any(axis is None or axis.size < 2 for axis in axes):
        transform = stored
    else:
        xs, ys = (np.asarray(axis.values, float) for axis in axes if axis is not None)
        transform = _spaced(xs, ys)
        if stored is not None and transform.almost_equals(stored, 1e-3 * abs(transform.determinant) ** 0.5):
            transform = stored  # the coordinates are rounded, the stored numbers are the file's own
    return None if transform is None or transform.is_identity else transform


def _spaced(xs: AnyArray, ys: AnyArray) -> Affine:
    step_x, step_y = ((axis[-1] - axis[0]) / (axis.size - 1) for axis in (xs, ys))
    for dim, axis, step in (("x", xs, step_x), ("y", ys, step_y)):
        if step == 0 or np.abs(np.diff(axis) - step).max() > 0.1 * abs(step):
            raise SceneError(
                f"the coordinates along {dim} are not evenly spaced: bring the array to a regular grid first"
            )
    return Affine(step_x, 0, xs[0] - step_x / 2, 0, step_y, ys[0] - step_y / 2)


def _crs(crs: rasterio.crs.CRS | None, name: str) -> pyproj.CRS | None:
    if not crs:
        return None
    try:
        return pyproj.CRS.from_wkt(crs.to_wkt())
    except (CRSError, pyproj.exceptions.CRSError) as cause:
        raise SceneError(f"{name}: PROJ does not understand the CRS of the scene: {one_line(cause)}") from cause


def one_line(cause: BaseException) -> str:
    """The message of a foreign error as a single line; what GDAL said, where rasterio only points to it."""
    while "previous exception" in str(cause) and cause.__cause__ is not None:
        cause = cause.__cause__
    return " ".join(str(cause).split()) or type(cause).__name__


def _why_not(uri: str, cause: RasterioError) -> str:
    """Why a file does not open, in words that help."""
    path = Path(uri.removeprefix("file://"))
    if is_remote(uri) or re.match(r"/vsi|\w{2,}:", uri):
        return f"{uri} cannot be opened: {one_line(cause)}"
    if not path.exists():
        return f"{uri}: there is no such file"
    if path.is_dir():
        return f"{uri} is a folder: give the raster file inside it"
    if path.stat().st_size == 0:
        return f"{uri} is empty: copy or download it again"
    try:
        with path.open("rb") as file:
            start = file.read(512)
    except OSError as denied:
        return f"{uri} cannot be read: {denied.strerror}"
    if re.match(rb"\s*<(!doctype html|html|\?xml)", start, re.IGNORECASE) and b"<VRTDataset" not in start:
        return f"{uri} is a web page or XML, not a raster: it may be the error page of a failed download"
    if not re.match(rb"\s*<", start) and not re.search(rb"[^\t\n\r\x20-\x7e\x80-\xff]", start):
        return f"{uri} is a text file, not a raster: give a GeoTIFF or another format that GDAL reads"
    return f"{uri} is damaged, or in no format that GDAL reads here: {one_line(cause)}"

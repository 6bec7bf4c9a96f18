"""Read a scene window by window: three bands and their validity, on the scene's grid or a scaled one."""

from __future__ import annotations

import logging
import math
import os
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from fractions import Fraction
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from geolabel.bands import choose_bands
from geolabel.errors import SceneError, TileError
from geolabel.io.error_messages import in_words
from geolabel.io.read.arrays import ArraySource
from geolabel.io.read.headers import Header, doubts, event_date_of, grid_of
from geolabel.io.read.sources import FileSource, Source, Upright
from geolabel.io.read.tile_urls import is_map_tiles
from geolabel.nodata import Findings, beyond, examine, is_opacity
from geolabel.parsing import check_metres
from geolabel.resampling import Axis, axes, resample
from geolabel.scene import Grid, Scene, inside
from geolabel.tiles import Window
from geolabel.types import AnyArray, BoolArray
from geolabel.urls import without_secrets

if TYPE_CHECKING:
    import shapely

    from geolabel.io.read.arrays import Labelled
    from geolabel.io.read.masks import Mask

logger = logging.getLogger(__name__)

MAX_WINDOW_PX = 1 << 28
"""Maximum pixels of a window; a larger one is an error of the caller or the header."""

SOURCE_PX = 1 << 22
"""Maximum source pixels resampled at once."""

GLANCE_SIDE = 256
"""Maximum pixels along each axis at which an alpha band is sampled."""

PATCHES_ACROSS, PATCH_PX = 24, 32
"""Patches along each axis of a damaged scene's sample, and their side in pixels."""


class SceneReader:
    """A scene, opened on first use. Pickled by its arguments.

    A pixel is valid if the chosen bands hold data and finite values, it is not hidden by a mask or a fully transparent
    alpha, and it is in the area of interest. Values of other pixels are undefined. A pixel is nodata if all chosen
    bands are nodata, as for `dataset_mask` of rasterio: with a nodata of 0, pure red is (255, 0, 0). If nodata cannot
    be a measurement, such as -9999 or NaN, one band suffices.

    Parameters
    ----------
    source
        A path, a VRT, any URI that GDAL opens, a delivery (`geolabel.io.read.deliveries`), a DataArray or Dataset with
        rioxarray's conventions, or a `Source`. An array's bands are named by its band coordinate or ``long_name``, a
        dataset's by its variables; a band named alpha is used as alpha.
    bands
        See `geolabel.bands.choose_bands`.
    nodata
        Nodata value of every band, overriding the file's.
    gsd
        Metres per pixel; only for a scene without CRS.
    aoi
        Area of interest in the scene's CRS.
    name
        Name of the scene, if not its path.
    event_date
        ISO 8601 acquisition date, overriding the file's.
    time
        Which of several times of a file or dataset to read: an ISO 8601 date or date and time, or a prefix of one that
        is unique.
    findings
        Undeclared nodata that was detected, see `examined`.
    masks
        Masks of pixels to exclude, such as clouds; see `geolabel.io.read.masks`.

    Raises
    ------
    OptionError
        If `gsd` is not a positive number.
    """

    def __init__(
        self,
        source: str | os.PathLike[str] | Labelled | Source,
        *,
        bands: Sequence[int] | str | None = None,
        nodata: float | None = None,
        gsd: float | None = None,
        aoi: shapely.Geometry | None = None,
        name: str | None = None,
        event_date: str | None = None,
        time: str | None = None,
        findings: Findings | None = None,
        masks: Sequence[Mask] = (),
    ) -> None:
        check_metres("gsd", gsd)
        self._recipe = partial(
            type(self),
            source,
            bands=bands,
            nodata=nodata,
            gsd=gsd,
            aoi=aoi,
            name=name,
            event_date=event_date,
            time=time,
            findings=findings,
            masks=masks,
        )
        self.masks = tuple(masks)
        self.findings = findings or Findings()
        self._stored = _source(source, time)
        self._source = Upright(self._stored)
        self.aoi = aoi
        self.nodata = nodata
        self._bands, self._gsd, self._date = bands, gsd, event_date
        self._name = None if name is None else without_secrets(name)
        self._outlining = threading.Lock()
        self._placed: tuple[Grid | None, tuple[Axis, Axis] | None] = (None, None)

    def __reduce__(self) -> tuple[partial[SceneReader], tuple[()]]:
        # pickles of a file include the version it is pinned to
        source = self.source if isinstance(self.source, FileSource) else self._recipe.args[0]
        return partial(self._recipe.func, source, **self._recipe.keywords), ()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def within(self, aoi: shapely.Geometry) -> SceneReader:
        """The same scene with another area of interest."""
        return self._recipe(aoi=aoi)

    def without(self, masks: Sequence[Mask]) -> SceneReader:
        """The same scene with no masks, or other ones."""
        return self._recipe(masks=masks)

    def hidden(self, window: Window, grid: Grid) -> BoolArray:
        """Pixels (height, width) of a window that the masks hide; the window may extend beyond the grid."""
        hidden = np.zeros((window.height, window.width), bool)
        for mask in self.masks:
            hidden |= mask.hidden(window, grid)
        return hidden

    def examined(self, bands: AnyArray, valid: BoolArray) -> tuple[SceneReader, BoolArray]:
        """The same scene with undeclared nodata, detected in a sample, excluded; and the sample's valid pixels.

        Parameters
        ----------
        bands : (3, h, w)
        valid : (h, w)
            As returned by `sample`.
        """
        scene = self.scene
        if bands.shape[1] == 1 < scene.grid.height:  # patches of a damaged scene are not spatially ordered
            return self, valid
        findings = examine(bands, valid, single=len(self._unique) == 1, stated=self.nodata is not None)
        findings = replace(findings, warnings=(*findings.warnings, *self._doubtful_alpha()))
        reader = self._recipe(findings=findings)
        return reader, reader._without_findings(bands, valid, Window(0, 0, *valid.shape), valid.shape)

    def _doubtful_alpha(self) -> list[str]:
        """Warning about an unlabelled band that GDAL reports as alpha, as it does by default for the fourth of four."""
        header = self.header
        side = min(GLANCE_SIDE, header.height), min(GLANCE_SIDE, header.width)
        told = []
        for band in header.alpha:
            if header.descriptions[band - 1] is None:
                with suppress(OSError, RuntimeError):  # reading errors are reported when pixels are needed
                    if not is_opacity(self._source.decimate([band], *side)[0]):
                        told.append(
                            f"band {band} is marked as alpha but varies like infrared: pixels where "
                            f"it is 0 are left out; if it is none, gdal_translate -colorinterp_{band} undefined IN OUT"
                        )
        return told

    def close(self) -> None:
        """Close what is open, in all threads; reading again opens again."""
        self._source.close()

    @property
    def source(self) -> Source:
        """The source of stored pixels."""
        return self._stored

    @property
    def header(self) -> Header:
        """Header of the raster, with north up; see `geolabel.io.read.sources`."""
        return self._source.header

    @cached_property
    def scene(self) -> Scene:
        """Metadata known before a pixel is read.

        Raises
        ------
        SceneError
            If the scene cannot be opened, has no usable grid, or lacks the wanted bands.
        """
        header = self.header
        bands, _ = self._choice
        complex_band = next((b for b in bands if header.dtypes[b - 1].startswith("complex")), None)
        if complex_band:
            raise SceneError(
                f"band {complex_band} of {header.name} is {header.dtypes[complex_band - 1]}: "
                "choose real bands, or write the amplitude first"
            )
        return Scene(
            name=self._name or header.name,
            grid=grid_of(header, self._gsd),
            bands=bands,
            dtype=str(_working_dtype(np.result_type(*(header.dtypes[band - 1] for band in bands)))),
            band_count=header.count,
            size_bytes=header.size_bytes,
            modified=header.modified,
            event_date=self._date or event_date_of(header),
        )

    @property
    def warnings(self) -> tuple[str, ...]:
        """Assumptions for the user to check."""
        return (*self._choice[1], *doubts(self.header, self._choice[0]), *self.findings.warnings)

    @cached_property
    def _choice(self) -> tuple[tuple[int, int, int], tuple[str, ...]]:
        header = self.header
        return choose_bands(
            header.descriptions, header.colours, self._bands, wavelengths=header.wavelengths, sensor=header.sensor
        )

    def read(self, window: Window, grid: Grid) -> tuple[AnyArray, BoolArray]:
        """Read a window of a working grid.

        A pixel has the same value in every window. On a coarser grid it is the mean of the valid part of the ground it
        covers, read from the coarsest overview that is fine enough; on a finer grid it is interpolated. It is valid if
        at least half of its source pixels are.

        Parameters
        ----------
        window
            Pixels of `grid`.
        grid
            The scene's grid, scaled or cropped.

        Returns
        -------
        bands : (3, height, width)
            Red, green, blue; integers in the scene's dtype, others as float32.
        valid : (height, width)

        Raises
        ------
        SceneError
            If the window extends beyond the grid.
        TileError
            If the window cannot be read, with the original error as its cause.
        """
        scene = self.scene
        if not grid.window.contains(window):
            raise SceneError(
                f"{scene.name}: the window at {window} extends beyond the grid of {grid.height} x {grid.width} px: "
                "read windows of the grid that is given with them"
            )
        if window.height * window.width > MAX_WINDOW_PX:
            raise TileError(
                f"{scene.name}: a window of {window.height} x {window.width} px has more than the limit of "
                f"{MAX_WINDOW_PX} px: use smaller tiles"
            )
        try:
            bands, valid = self._on_grid(window, self._axes(grid))
        except (OSError, RuntimeError, ValueError, MemoryError) as cause:
            raise TileError(f"{scene.name}: the window at {window} cannot be read: {in_words(cause)}") from cause
        if self.aoi is not None:
            with self._outlining:
                valid &= inside(self.aoi, grid, window)
        if self.masks:
            valid &= ~self.hidden(window, grid)
        return bands, valid

    def sample(self, max_pixels: int = 1 << 20, *, lenient: bool = False) -> tuple[AnyArray, BoolArray]:
        """The whole scene at no more than `max_pixels`, for statistics.

        Pixels are decimated by nearest neighbour, from overviews if present. The area of interest is ignored, so
        statistics do not depend on which part of the scene is processed.

        Parameters
        ----------
        lenient
            If a part of the scene cannot be read, sample small patches all over it and skip those that fail.

        Returns
        -------
        bands : (3, h, w)
        valid : (h, w)

        Raises
        ------
        SceneError
            If the scene cannot be read.
        """
        grid = self.scene.grid
        step = max(1.0, math.sqrt(grid.height * grid.width / max_pixels))
        height = min(max(1, int(grid.height / step)), max_pixels)
        width = max(1, min(int(grid.width / step), max_pixels // height))
        whole = Window(0, 0, height, width)
        try:
            picked, present = self._finish(*self._source.decimate(self._unique, height, width))
            present = self._without_findings(picked, present, whole, (height, width))
            return picked, present & ~self.hidden(whole, grid.resized(height, width)) if self.masks else present
        except (OSError, RuntimeError, ValueError, MemoryError) as cause:
            patches = self._patches() if lenient else []
            if not patches:
                raise SceneError(
                    f"{self.scene.name} cannot be sampled: {in_words(cause)}; --on-error skip uses the readable parts"
                ) from cause
            logger.warning("%s is damaged: its statistics come from the patches that can be read", self.scene.name)
        bands, valid = zip(*patches, strict=True)
        return np.concatenate([b.reshape(3, 1, -1) for b in bands], axis=2), np.concatenate(
            [v.reshape(1, -1) for v in valid], axis=1
        )

    def _patches(self) -> list[tuple[AnyArray, BoolArray]]:
        """Readable patches on a regular grid."""
        grid, patches = self.scene.grid, []
        side_h, side_w = min(PATCH_PX, grid.height), min(PATCH_PX, grid.width)
        rows = np.linspace(0, grid.height - side_h, PATCHES_ACROSS).astype(int)
        cols = np.linspace(0, grid.width - side_w, PATCHES_ACROSS).astype(int)
        for row, col in sorted({(int(row), int(col)) for row in rows for col in cols}):
            with suppress(OSError, RuntimeError, ValueError):
                patches.append(self._native(Window(row, col, side_h, side_w)))
        return patches

    @property
    def _unique(self) -> list[int]:
        return sorted(set(self.scene.bands))

    def _on_grid(self, window: Window, placing: tuple[Axis, Axis]) -> tuple[AnyArray, BoolArray]:
        rows, cols = placing
        if rows.aligned and cols.aligned:
            top, left = window.row + int(rows.offset), window.col + int(cols.offset)
            return self._native(Window(top, left, window.height, window.width))
        level = self._level(rows.scale, cols.scale)
        height, width = self._source.levels[level]
        rows, cols = rows.resized(height), cols.resized(width)
        bands = np.empty((3, window.height, window.width), self.scene.dtype)
        valid = np.empty((window.height, window.width), bool)
        for part in _parts(window, rows.scale, cols.scale):
            here = part.within(window)
            tall, row_shares = rows.weights(part.row, part.bottom)
            wide, col_shares = cols.weights(part.col, part.right)
            behind = Window(tall.start, wide.start, tall.stop - tall.start, wide.stop - wide.start)
            bands[:, *here], valid[here] = resample(*self._native(behind, level), row_shares, col_shares)
        return bands, valid

    def _axes(self, grid: Grid) -> tuple[Axis, Axis]:
        # Cached for the last grid: there are thousands of windows, but grids change rarely.
        known, placing = self._placed
        if placing is None or known is not grid:
            placing = axes(self.scene.grid, grid)
            self._placed = grid, placing
        return placing

    def _level(self, *scales: Fraction) -> int:
        """The coarsest level that is not coarser than the grid; the raster itself unless both axes shrink."""
        if min(scales) <= 1:
            return 0
        height, width = self._source.levels[0]
        fits = [
            level
            for level, (h, w) in enumerate(self._source.levels)
            if Fraction(height, h) <= scales[0] and Fraction(width, w) <= scales[1]
        ]
        return fits[-1]

    def _native(self, window: Window, level: int = 0) -> tuple[AnyArray, BoolArray]:
        bands, valid = self._finish(*self._source.read(self._unique, window, level))
        return bands, self._without_findings(bands, valid, window, self._source.levels[level])

    def _without_findings(self, bands: AnyArray, valid: BoolArray, window: Window, shape: tuple[int, int]) -> BoolArray:
        """Validity without undeclared fill values and margins."""
        if self.findings.fill is not None:
            valid = valid & ~(bands == self.findings.fill).any(axis=0)
        for margin in self.findings.margins:
            valid = valid & ~margin.hidden(bands, window, shape)
        return valid

    def _finish(self, stored: AnyArray, valid: BoolArray) -> tuple[AnyArray, BoolArray]:
        """Reorder the bands and derive validity from their values."""
        unique = self._unique
        nodata = [self.header.nodata[band - 1] if self.nodata is None else self.nodata for band in unique]
        if any(value is not None for value in nodata):
            valid &= ~_missing(stored, nodata)
        if stored.dtype != self.scene.dtype:
            with np.errstate(over="ignore", invalid="ignore"):  # values beyond float32 become infinite
                stored = stored.astype(self.scene.dtype)
        if stored.dtype.kind == "f":
            valid &= (np.isfinite(stored) & ~beyond(stored)).all(axis=0)
        order = [unique.index(band) for band in self.scene.bands]
        return stored if order == [0, 1, 2] else stored[order], valid


def _source(given: str | os.PathLike[str] | Labelled | Source, time: str | None) -> Source:
    if isinstance(given, str | os.PathLike):
        if is_map_tiles(os.fspath(given)):
            raise SceneError(
                f"{given} is a layer of map tiles: extract, predict, segment and review view read a part of it as the "
                "scene (--gsd); elsewhere give a raster"
            )
        return FileSource(os.fspath(given), time)
    return given if isinstance(given, FileSource | Source) else ArraySource(given, time)


def _parts(window: Window, *scales: Fraction) -> list[Window]:
    """Split a window so that each part reads few source pixels, whatever the scale."""
    side = max(1, int(math.isqrt(SOURCE_PX) / max(map(float, scales))))
    return [
        Window(row, col, min(side, window.bottom - row), min(side, window.right - col))
        for row in range(window.row, window.bottom, side)
        for col in range(window.col, window.right, side)
    ]


def _working_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    if dtype.kind == "b":
        return np.dtype(np.uint8)
    return dtype if dtype.kind in "iu" else np.dtype(np.float32)


def _missing(bands: AnyArray, nodata: Sequence[float | None]) -> BoolArray:
    """Nodata pixels (h, w) of bands (B, h, w): all bands are nodata, or one is a nodata that cannot be measured."""
    everywhere, somewhere = np.ones(bands.shape[1:], bool), np.zeros(bands.shape[1:], bool)
    for values, value in zip(bands, nodata, strict=True):
        if value is None:
            everywhere[...] = False
            continue
        absent = _equals(values, value)
        everywhere &= absent
        if not _measurable(value, values.dtype):
            somewhere |= absent
    return everywhere | somewhere


def _measurable(nodata: float, dtype: np.dtype[Any]) -> bool:
    """Whether a nodata value could be a measurement: 0 and unsigned integers could; -9999, 1e20 and NaN could not."""
    return nodata == 0 or dtype.kind == "u"


def _equals(values: AnyArray, nodata: float) -> BoolArray:
    """Where a band equals nodata; nowhere if its dtype cannot hold the value, such as -9999 in bytes."""
    if math.isnan(nodata):
        return np.isnan(values) if values.dtype.kind == "f" else np.zeros(values.shape, bool)
    if values.dtype.kind == "f":
        # Tolerant like GDAL: programs round the lowest float32, -3.4028235e38, differently.
        with np.errstate(over="ignore", invalid="ignore"):
            stated = values.dtype.type(nodata)
            near = np.abs(values - stated) < 2 * np.finfo(np.float32).eps * np.abs(values + stated)
            return np.asarray(near | (values == stated))
    # NumPy compares integers with Python's exactly, whatever their size.
    whole = math.isfinite(nodata) and nodata == int(nodata)
    return np.asarray(values == int(nodata)) if whole else np.zeros(values.shape, bool)

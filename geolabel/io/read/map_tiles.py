"""Layers of map tiles on web servers (XYZ, TMS, WMTS in web Mercator) as scenes at one zoom level.

A layer is identified by the URL of its tiles, such as ``https://host/{z}/{x}/{y}.png``. GDAL's drivers for such layers
are not used: they open the server's answer with any driver, including a VRT that names local files, follow redirects
into the local network, and turn a missing tile into an error or black. Here a tile is PNG, JPEG or WebP of a known
size or an error, and a missing tile is nodata.

Grid: OGC Two Dimensional Tile Matrix Set 2.0 (17-083r4), WebMercatorQuad.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from io import BytesIO
from typing import Any

import numpy as np
import pyproj
from affine import Affine

from geolabel.errors import OptionError, SceneError
from geolabel.image_files import open_picture
from geolabel.io.error_messages import in_words
from geolabel.io.read import tile_cache
from geolabel.io.read.headers import Header
from geolabel.io.read.tile_urls import CRS, HALF_M, RADIUS_M, SIZES, Template, template_of
from geolabel.parsing import check_metres
from geolabel.scene import SAME_GSD
from geolabel.tiles import Window
from geolabel.types import BoolArray, UInt8Array
from geolabel.urls import without_secrets

log = logging.getLogger(__name__)

MAX_ZOOM = 24
"""Pixels of 1 cm; no server offers more."""

MAX_TILES = 1 << 14
"""Maximum number of tiles of a scene: 1.07 billion pixels in tiles of 256 px. Providers forbid bulk downloads."""

CONNECTIONS = 4
"""Tiles fetched in parallel."""

PROBES = 9
"""Maximum number of tiles fetched to determine their size."""

KEPT_TILES = 128
"""Decoded tiles kept in memory, for overlapping windows."""

TELL_AFTER_S = 10.0
"""Seconds between progress messages."""


def open_map_tiles(text: str, bounds: tuple[float, float, float, float] | None, gsd: float | None) -> MapTiles:
    """Open the tiles of a layer that intersect a rectangle, at the zoom level of a pixel size, as a scene.

    The zoom level is the coarsest whose pixels are at least as fine as `gsd` at the centre of the rectangle, to 1 %. A
    few tiles are fetched to determine their size.

    Parameters
    ----------
    text
        See `tile_urls.template_of`.
    bounds
        Left, bottom, right, top in web Mercator, metres.
    gsd
        Metres on the ground per pixel.

    Raises
    ------
    OptionError
        If the URL is not allowed, or bounds or gsd are missing or invalid.
    SceneError
        If the rectangle takes more than `MAX_TILES` tiles, or the server has none of them.
    """
    if bounds is None:
        raise OptionError(f"{text}: a layer of map tiles is unbounded: give the area to work on with --aoi or --bounds")
    if gsd is None:
        raise OptionError(f"{text}: a layer of map tiles has many zoom levels: give the size of pixels, --gsd METRES")
    template = template_of(text)
    left, bottom, right, top = (min(max(side, -HALF_M), HALF_M) for side in bounds)
    if not (left < right and bottom < top):
        raise OptionError(f"bounds {bounds}: they enclose no area of web Mercator ({CRS}), in metres")
    zoom = _zoom_for(gsd, (bottom + top) / 2, text)
    template.check_zoom(zoom)
    frame = _frame(zoom, (left, bottom, right, top))
    size = _size_of(template, zoom, frame)
    if size == SIZES[1] and zoom > 0:
        zoom -= 1
        template.check_zoom(zoom)
        frame = _frame(zoom, (left, bottom, right, top))
    count = frame.height * frame.width
    if count > MAX_TILES:
        raise SceneError(
            f"{text}: the area takes {count} tiles of zoom {zoom}; the limit for a scene is {MAX_TILES}: give a "
            "smaller area, or a larger --gsd"
        )
    return MapTiles(template, zoom, frame, size)


def missing_tiles(layer: MapTiles) -> tuple[str, ...]:
    """Fetch the tiles of a scene and describe how many are missing, if any; raises as `MapTiles.fetch`."""
    missing, count = layer.fetch(), layer.frame.height * layer.frame.width
    text = f"{missing} of {count} map tiles are missing on the server, and are read as nodata"
    return (text,) if missing else ()


def _zoom_for(gsd: float, y: float, text: str) -> int:
    check_metres("gsd", gsd)
    coarsest = 2 * HALF_M / SIZES[0] / math.cosh(y / RADIUS_M)
    zoom = max(0, math.ceil(math.log2(coarsest / (gsd * (1 + SAME_GSD)))))
    if zoom > MAX_ZOOM:
        raise OptionError(f"{text}: --gsd {gsd:g} needs zoom {zoom}; the limit is {MAX_ZOOM}: give a larger one")
    return zoom


def _frame(zoom: int, bounds: tuple[float, float, float, float]) -> Window:
    """Rows and columns of the tiles that a rectangle intersects by more than 1 mm."""
    left, bottom, right, top = bounds
    side, last = 2 * HALF_M / (1 << zoom), (1 << zoom) - 1
    row, col = (min(last, math.floor((offset + 1e-3) / side)) for offset in (HALF_M - top, HALF_M + left))
    end_row, end_col = (math.ceil((offset - 1e-3) / side) for offset in (HALF_M - bottom, HALF_M + right))
    return Window(row, col, max(1, end_row - row), max(1, end_col - col))


def _size_of(template: Template, zoom: int, frame: Window) -> int:
    """Side of the tiles in pixels, from tiles in the middle of the area."""
    middle = frame.row + (frame.height - 1) / 2, frame.col + (frame.width - 1) / 2
    reach = range(-(PROBES // 2), PROBES // 2 + 1)
    near = {
        (
            min(max(round(middle[0]) + down, frame.row), frame.bottom - 1),
            min(max(round(middle[1]) + along, frame.col), frame.right - 1),
        )
        for down in reach
        for along in reach
    }
    for row, col in sorted(near, key=lambda at: (math.dist(at, middle), at))[:PROBES]:
        data = tile_cache.tile_file(template.url(zoom, row, col))
        if data:
            return int(_decoded(data, template, zoom, row, col).shape[0])
    raise SceneError(
        f"{template.text} has no tile of zoom {zoom} in the middle of the area: it may end at a coarser zoom (give a "
        "larger --gsd), or show nothing there"
    )


# --- its pixels ------------------------------------------------------------------------------------------------------


class MapTiles:
    """The pixels of a layer's tiles at one zoom level. Pickled by its arguments.

    Parameters
    ----------
    frame
        Rows and columns of tiles, counted from the north-west corner of the world.
    size
        Side of a tile in pixels.
    """

    def __init__(self, template: Template, zoom: int, frame: Window, size: int) -> None:
        self.template, self.zoom, self.frame, self.size = template, zoom, frame, size
        self._decoded: OrderedDict[tuple[int, int], UInt8Array | None] = OrderedDict()
        self._holding = threading.Lock()

    def __reduce__(self) -> tuple[type[MapTiles], tuple[Any, ...]]:
        return type(self), (self.template, self.zoom, self.frame, self.size)

    @cached_property
    def header(self) -> Header:
        """Header of the layer: three 8-bit bands with a mask."""
        pixel = 2 * HALF_M / (self.size << self.zoom)
        left, top = (self.frame.col * self.size * pixel - HALF_M, HALF_M - self.frame.row * self.size * pixel)
        return Header(
            name=without_secrets(self.template.text),
            height=self.frame.height * self.size,
            width=self.frame.width * self.size,
            crs=pyproj.CRS(CRS),
            transform=Affine(pixel, 0, left, 0, -pixel, top),
            dtypes=("uint8",) * 3,
            nodata=(None,) * 3,
            descriptions=(None,) * 3,
            colours=("red", "green", "blue"),
            masked=(True,) * 3,
            tags={},
        )

    @property
    def levels(self) -> tuple[tuple[int, int], ...]:
        """A single level: tiles of other zoom levels may show another image."""
        return ((self.header.height, self.header.width),)

    def fetch(self) -> int:
        """Fetch the tiles that are not in the cache, and return how many tiles the server does not have.

        Raises
        ------
        SceneError
            If the server refuses, or an answer is not a tile. Tiles fetched before stay in the cache.
        """
        places = [(row, col) for row in range(self.frame.row, self.frame.bottom) for col in self._columns]
        tile_cache.prune()
        new = sum(not tile_cache.is_kept(self.template.url(self.zoom, *place)) for place in places)
        if new:
            log.warning(
                "fetching %d map tiles of zoom %d from %s: the terms of its provider say what may be fetched, stored "
                "and derived, and how it is credited",
                new,
                self.zoom,
                self.template.host,
            )
        missing, told = 0, time.monotonic()
        pool = ThreadPoolExecutor(CONNECTIONS)
        try:
            for done, there in enumerate(pool.map(self._is_there, places), 1):
                missing += not there
                if new and done % tile_cache.PRUNE_AFTER == 0:
                    tile_cache.prune()
                if time.monotonic() - told > TELL_AFTER_S:
                    told = time.monotonic()
                    log.warning("%d of %d map tiles are read", done, len(places))
        finally:
            pool.shutdown(cancel_futures=True)  # at the first error or at the end
        return missing

    @property
    def _columns(self) -> range:
        return range(self.frame.col, self.frame.right)

    def _is_there(self, place: tuple[int, int]) -> bool:
        data = tile_cache.tile_file(self.template.url(self.zoom, *place))
        if data:
            self._checked(_decoded(data, self.template, self.zoom, *place), *place)
        return bool(data)

    def read(self, bands: Sequence[int], window: Window, level: int = 0) -> tuple[UInt8Array, BoolArray]:
        """Values (B, h, w), and where a tile exists and is opaque (h, w)."""
        assert level == 0, "a layer of tiles has no overviews"
        values = np.zeros((3, window.height, window.width), np.uint8)
        valid = np.zeros((window.height, window.width), bool)
        for row, col, tile in self._over(window):
            shared = tile.shared(window)
            image = self._image(row, col)
            if image is not None:
                part = image[shared.within(tile)]
                here = shared.within(window)
                values[:, *here] = np.moveaxis(part[..., :3], 2, 0)
                valid[here] = part[..., 3] > 0
        return values[[band - 1 for band in bands]], valid

    def _over(self, window: Window) -> Iterator[tuple[int, int, Window]]:
        """Yield row, column and window of the tiles that a window intersects."""
        size = self.size
        for row in range(window.row // size, -(-window.bottom // size)):
            for col in range(window.col // size, -(-window.right // size)):
                yield self.frame.row + row, self.frame.col + col, Window(row * size, col * size, size, size)

    def decimate(self, bands: Sequence[int], height: int, width: int) -> tuple[UInt8Array, BoolArray]:
        """The whole scene at another size, by nearest neighbour."""
        tall, wide = self.levels[0]
        rows = (2 * np.arange(height) + 1) * tall // (2 * height)
        cols = (2 * np.arange(width) + 1) * wide // (2 * width)
        values = np.zeros((len(bands), height, width), np.uint8)
        valid = np.zeros((height, width), bool)
        for first in range(0, tall, self.size):
            some = np.flatnonzero((rows >= first) & (rows < first + self.size))
            if some.size:
                strip, good = self.read(bands, Window(first, 0, self.size, wide))
                picked = np.ix_(rows[some] - first, cols)
                values[:, some], valid[some] = strip[:, picked[0], picked[1]], good[picked]
        return values, valid

    def close(self) -> None:
        """Drop decoded tiles; no connection stays open."""
        with self._holding:
            self._decoded.clear()

    def _image(self, row: int, col: int) -> UInt8Array | None:
        """Red, green, blue and opacity (size, size, 4) of a tile; None if the server does not have it."""
        with self._holding:
            if (row, col) in self._decoded:
                self._decoded.move_to_end((row, col))
                return self._decoded[row, col]
        data = tile_cache.tile_file(self.template.url(self.zoom, row, col))
        image = self._checked(_decoded(data, self.template, self.zoom, row, col), row, col) if data else None
        with self._holding:
            self._decoded[row, col] = image
            while len(self._decoded) > KEPT_TILES:
                self._decoded.popitem(last=False)
        return image

    def _checked(self, image: UInt8Array, row: int, col: int) -> UInt8Array:
        if image.shape[0] != self.size:
            raise SceneError(
                f"{self.template.url(self.zoom, row, col)} is a tile of {image.shape[0]} px, and others are of "
                f"{self.size} px: one layer has tiles of one size"
            )
        return image


def _decoded(data: bytes, template: Template, zoom: int, row: int, col: int) -> UInt8Array:
    """Red, green, blue and opacity (size, size, 4)."""
    try:
        with open_picture(BytesIO(data), formats=("PNG", "JPEG", "WEBP")) as picture:
            width, height = picture.size
            if width == height and width in SIZES:
                return np.asarray(picture.convert("RGBA"))
        why = f"it has {width} x {height} px, and tiles have 256 or 512 px a side"
    except OSError as error:
        why = in_words(error)
    raise SceneError(
        f"{template.url(zoom, row, col)} is not a tile ({why}): the server may need a key, or have sent a text; open "
        "the URL in a browser"
    )

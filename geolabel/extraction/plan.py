"""Decide everything before any pixel is processed: grids, tiles, blocks, stretch, networks and parameters."""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from geolabel.errors import OptionError, VectorError
from geolabel.extraction.request import Parameters, SceneMethod
from geolabel.labels import choose_classes
from geolabel.models.confidence import FittedConfidence
from geolabel.parsing import check_metres
from geolabel.parts import EverywhereRecipe, Recipe, WordsRecipe
from geolabel.prompts import PADDING, Prompts
from geolabel.radiometry import Stretch
from geolabel.scene import MOST_ENLARGED, SAME_GSD, Grid, span
from geolabel.tiles import BlockGrid, TileGrid, Window, window_around
from geolabel.types import BoolArray

if TYPE_CHECKING:
    from geolabel.io.read.scenes import SceneReader
    from geolabel.io.records import Store

log = logging.getLogger(__name__)

TASK_TILES = 32
"""Maximum number of tiles, or prompted windows, per task: the unit of work that succeeds or is repeated as a whole."""

SHARES = 32
"""Minimum number of tasks of a pass, as far as batches allow, so that every worker has something to do. More of them
mean more records, and more tiles read without their neighbours."""

LOCALIZER_TILE = 512
"""Side in pixels of the localizer's tiles, unless smaller tiles are requested."""

SAMPLE_PX, GLANCE_PX = 1 << 20, 1 << 16
"""Number of pixels to compute percentiles from, and number to examine if the stretch is given."""

LEAST_PIXELS = 4
"""Width in pixels below which a landslide can hardly be told from its surroundings: for a warning, not a limit."""


@dataclass(frozen=True)
class Plan:
    """What a run will do. Small, and the same wherever it is opened."""

    reader: SceneReader
    grid: Grid
    """The working grid, cropped to the bounds or the area of interest."""
    stretch: Stretch
    localizer: Recipe
    segmenter: Recipe
    classes: tuple[str, ...]
    """Classes of the polygons, in the order of the localizer."""
    localize_tiles: TileGrid
    segment_tiles: TileGrid
    blocks: BlockGrid
    parameters: Parameters
    confidence: FittedConfidence | None = None
    """Confidence model of the polygons; None for the one that comes with geolabel."""
    masked: float = 0.0
    """Share of the working grid that is masked, 0..1."""

    @property
    def method(self) -> SceneMethod:
        """How the networks are used."""
        return self.parameters.method

    @property
    def localized(self) -> bool:
        """Whether there is a localizer, which finds where the classes are likely."""
        return not isinstance(self.localizer, EverywhereRecipe)

    @property
    def dense(self) -> bool:
        """Whether the localizer's maps are the scores."""
        return self.method.dense

    @property
    def layers(self) -> list[tuple[int, int]]:
        """Block and class of every record of the mosaic, by its number; see `layer`."""
        return [(block, class_id) for class_id in range(len(self.classes)) for block in range(len(self.blocks))]

    def layer(self, block: int, class_id: int) -> int:
        """Number of the record that holds the mosaic of a class in a block."""
        return class_id * len(self.blocks) + block

    @property
    def mask_threshold(self) -> int:
        """Minimum score, 1..254, of a landslide's pixels."""
        return max(1, math.ceil(self.parameters.score_threshold * 254))

    @property
    def task_tiles(self) -> int:
        """Number of tiles of a task of the first pass."""
        return task_size(len(self.localize_tiles), self.localizer.batch)

    @property
    def localize_tasks(self) -> range:
        """Numbers of the tasks of the first pass."""
        return range(-(-len(self.localize_tiles) // self.task_tiles))

    def tiles_of(self, task: int) -> range:
        """Indices of the localizer's tiles that a task processes."""
        size = self.task_tiles
        return range(task * size, min((task + 1) * size, len(self.localize_tiles)))


@dataclass(frozen=True)
class Run:
    """A plan and the place where its records are kept."""

    plan: Plan
    store: Store
    localized: bool = True
    """False if all prompts are a person's: tiles are then read for their validity only."""


def task_size(count: int, batch: int) -> int:
    """Number of tiles of each task of a pass over `count` tiles, in whole batches if possible.

    It does not depend on the workers, so that a run resumes with any number of them.

    Examples
    --------
    >>> [task_size(count, 1) for count in (5, 32, 33, 500, 10**6)], task_size(100, 8)
    ([1, 1, 2, 16, 32], 8)
    """
    batches = -(-count // (SHARES * batch))
    return max(1, min(TASK_TILES, batches * batch))


def make_plan(
    reader: SceneReader,
    localizer: Recipe,
    segmenter: Recipe,
    parameters: Parameters,
    *,
    bounds: tuple[float, float, float, float] | None = None,
    working_gsd: float | None = None,
    stretch: str | Stretch = "p2-98",
    warn: bool = True,
) -> Plan:
    """Decide a run over one scene.

    Parameters
    ----------
    bounds
        Left, bottom, right, top in the scene's CRS; only this part is processed.
    working_gsd
        Metres per pixel of the working grid; by default the scene's own within the networks' range.
    stretch
        See `geolabel.radiometry.Stretch.from_sample`; or a known one.
    warn
        Whether to warn of pixels that are too coarse; False where an earlier plan of the scene has.

    Raises
    ------
    OptionError
        If numbers contradict each other.
    SceneError
        If the scene has more pixels than a run takes.
    VectorError
        If the bounds or the area of interest miss the scene.
    """
    from geolabel.engine import executors, worker
    from geolabel.models.tuning import compile_for, uncompiled

    # How networks are used does not depend on the device, and a cluster's client may lack that of the workers.
    here: dict[str, Any] = {"device": "cpu", "precision": "fp32"} if executors.clustered() else {}
    # The number of tiles decides below what auto means, most often off: the segmenter is then loaded once.
    locate, segment = (
        worker.localizer(replace(localizer, **here)),
        worker.segmenter(replace(uncompiled(segmenter), **here)),
    )
    finest = max(locate.gsd_range[0], segment.gsd_range[0])
    coarsest = min(locate.gsd_range[1], segment.gsd_range[1])
    if warn:
        _warn_of_coarse_pixels(reader.scene.grid.gsd, coarsest)
    grid = _working_grid(reader, (finest, coarsest), bounds, working_gsd)
    # convolutions accept tiles of any size, networks that are prompted with words none larger than their own
    own = locate.window if isinstance(localizer, WordsRecipe) else LOCALIZER_TILE
    widest = own if parameters.method.dense else segment.window
    tile = widest if parameters.tile_size is None else parameters.tile_size
    if tile > segment.window:
        raise OptionError(
            f"tile size {tile} px: the segmenter {segmenter.source} sees at most {segment.window} px at once"
        )
    overlap = tile // 4 if parameters.overlap is None else parameters.overlap
    smaller = min(tile, own)
    # before a pixel is read: a header may claim more than can be processed
    localize_tiles = TileGrid(grid.height, grid.width, smaller, overlap * smaller // tile)
    segment_tiles = TileGrid(grid.height, grid.width, tile, overlap)
    segmenter = compile_for(segmenter, len(segment_tiles))
    blocks = BlockGrid(grid.height, grid.width, parameters.block_size)
    if not isinstance(stretch, Stretch):
        reader, stretch = examined(reader, stretch, parameters.on_error)
    return Plan(
        reader=reader,
        grid=grid,
        stretch=stretch,
        localizer=localizer,
        segmenter=segmenter,
        classes=choose_classes(locate.classes, parameters.class_names, f"the localizer {localizer.source}"),
        localize_tiles=localize_tiles,
        segment_tiles=segment_tiles,
        blocks=blocks,
        parameters=parameters,
    )


def _warn_of_coarse_pixels(gsd: float, coarsest: float) -> None:
    if gsd > coarsest * MOST_ENLARGED * (1 + SAME_GSD):
        log.warning(
            "pixels of %.3g m are much coarser than the %.3g m that the networks know, and a finer working grid adds "
            "no detail: landslides less than %.2g m across are rarely found",
            gsd,
            coarsest,
            LEAST_PIXELS * gsd,
        )


def _working_grid(
    reader: SceneReader,
    gsd_range: tuple[float, float],
    bounds: tuple[float, float, float, float] | None,
    working_gsd: float | None,
) -> Grid:
    """The scene's grid at the working pixel size, cropped to the bounds and the area of interest."""
    native = reader.scene.grid
    check_metres("working gsd", working_gsd)
    grid = native.working(gsd_range) if working_gsd is None else native.at_gsd(working_gsd)
    for region in (bounds, reader.aoi.bounds if reader.aoi is not None else None):
        if region is not None:
            grid = _crop_to(grid, region)
    return grid


def examined(reader: SceneReader, spec: str, on_error: str = "fail") -> tuple[SceneReader, Stretch]:
    """A scene without undeclared nodata, and its one stretch."""
    enough = SAMPLE_PX if spec.startswith("p") else GLANCE_PX
    bands, valid = reader.sample(enough, lenient=on_error == "skip")
    reader, valid = reader.examined(bands, valid)
    return reader, Stretch.from_sample(bands, valid, spec)


def _crop_to(grid: Grid, bounds: tuple[float, float, float, float]) -> Grid:
    """Crop a grid to the pixels that a rectangle of its CRS touches.

    Raises
    ------
    VectorError
        If the rectangle misses the grid.
    """
    left, bottom, right, top = bounds
    inverse = ~grid.transform
    corners = [inverse * corner for corner in ((left, top), (right, top), (right, bottom), (left, bottom))]
    cols, rows = [x for x, _ in corners], [y for _, y in corners]
    # tolerate rounding: bounds on pixel edges select exactly those pixels
    row, col = math.floor(min(rows) + 1e-6), math.floor(min(cols) + 1e-6)
    height, width = math.ceil(max(rows) - 1e-6) - row, math.ceil(max(cols) - 1e-6) - col
    window = grid.window.intersection(Window(row, col, height, width))
    if window is None:
        (x0, y0), (x1, y1) = grid.transform * (0, 0), grid.transform * (grid.width, grid.height)
        extent = min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)
        raise VectorError(
            f"the bounds {span(bounds)} miss the scene, which covers {span(extent)}: "
            "give bounds in the scene's CRS, or an area of interest in any CRS"
        )
    return grid.crop(window)


# --- windows of prompts ----------------------------------------------------------------------------------------------


MARGIN = 1 / 16
"""Minimum margin, as a share of the tile, between a box and the frame of the tile it is segmented in."""


@dataclass(frozen=True)
class PromptedWindow:
    """A window of the scene and the prompts that the segmenter answers in it."""

    window: Window
    prompts: Prompts
    """Prompts in pixels of the working grid, not of the window."""
    reach: int | None = None
    """Pixels, along rows and columns; a point with no valid pixel that close is left out. None to use all."""


def oversized(prompts: Prompts, tiles: TileGrid) -> BoolArray:
    """(K,) whether an object is larger than a tile, so that no single window can show it."""
    extents = prompts.extents
    height, width = min(tiles.size, tiles.height), min(tiles.size, tiles.width)
    return np.asarray((extents[:, 2] - extents[:, 0] > width) | (extents[:, 3] - extents[:, 1] > height))


def assign(prompts: Prompts, tiles: TileGrid) -> list[PromptedWindow]:
    """Assign every prompt to the tile with the nearest centre, or to a separate window if it does not fit.

    A prompt fits when its box with a margin lies inside the tile; the margin ends at the frame of the scene. No prompt
    may be larger than a tile (see `oversized`). Windows come in raster order, prompts in the order given.
    """
    margin = tiles.size * MARGIN
    groups: dict[Window, list[int]] = defaultdict(list)
    for k, (x0, y0, x1, y1) in enumerate(prompts.extents):
        row, col = (y0 + y1) / 2, (x0 + x1) / 2
        tile = tiles[tiles.nearest(row, col)]
        fits = (
            tile.col <= max(x0 - margin, 0)
            and tile.row <= max(y0 - margin, 0)
            and tile.right >= min(x1 + margin, tiles.width)
            and tile.bottom >= min(y1 + margin, tiles.height)
        )
        window = tile if fits else window_around(row, col, tiles.size, tiles.height, tiles.width)
        groups[window].append(k)
    return [PromptedWindow(window, prompts[np.asarray(groups[window])]) for window in sorted(groups)]


def clip_to_tiles(prompts: Prompts, tiles: TileGrid) -> Prompts:
    """Replace each object by its parts in all tiles whose core it intersects: box clipped to the tile, points inside.

    For objects larger than a tile of which only the outline is known, such as a box that a person drew. The parts
    keep the id of the object.
    """
    parts = [
        _clip(prompts[k : k + 1], tiles, index) for k in range(len(prompts)) for index in _touched(prompts, k, tiles)
    ]
    return Prompts.concatenate(parts)


def _touched(prompts: Prompts, k: int, tiles: TileGrid) -> list[int]:
    x0, y0, x1, y1 = prompts.extents[k]
    box = Window(int(y0), int(x0), max(1, round(y1) - int(y0)), max(1, round(x1) - int(x0)))
    return [index for index in tiles.covering(box) if tiles.core(index).intersection(box)]


def _clip(one: Prompts, tiles: TileGrid, index: int) -> Prompts:
    tile = tiles[index]
    low, high = [tile.col, tile.row], [tile.right, tile.bottom]
    boxes = np.concatenate([np.maximum(one.boxes[:, :2], low), np.minimum(one.boxes[:, 2:], high)], axis=1)
    inside = ((one.points >= low) & (one.points < high)).all(axis=2)
    if np.isnan(boxes).any() and not inside.any():
        return one[:0]
    return replace(one, boxes=boxes, labels=np.where(inside, one.labels, np.int8(PADDING)))

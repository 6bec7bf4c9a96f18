"""The product from end to end: scenes to polygons, and what peers make of the same scenes."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
import pyproj
import rasterio
import shapely
from affine import Affine
from PIL import Image
from rasterio.features import rasterize

from geolabel.bench import peers
from geolabel.bench.examples import Example, Files
from geolabel.bench.table import OURS, Measurement
from geolabel.errors import OptionError
from geolabel.io.geotiffs import write_geotiff
from geolabel.masks import FULL
from geolabel.metrics import HALF, Confusion, ratio
from geolabel.mosaic import Layers
from geolabel.run.extract import find_landslides, join_regions
from geolabel.run.localized import validity
from geolabel.run.plan import Parameters, Plan
from geolabel.run.request import Networks, Reading, prepare
from geolabel.run.vectorize import find_objects
from geolabel.run.work import in_scratch
from geolabel.scene import Grid
from geolabel.seams import Spans
from geolabel.tiles import BlockGrid, Window
from geolabel.types import BoolArray, Float64Array, Int32Array, Int64Array, UInt8Array

if TYPE_CHECKING:
    import geopandas as gpd

WITH = "geolabel, with candidates"
ALONE = "activation alone"
OTSU = "Otsu on excess green"

CHIP_GSD = 0.8
"""Metres per pixel of the chips that a mosaic is laid from."""

PLACE = (500_000.0, 3_000_000.0)
"""Easting and northing of the upper left corner of a scene that lies nowhere: made up."""


# --- scenes ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """What a method found in a scene: polygons as pixels of one grid."""

    ids: Int32Array
    """(H, W) number of the polygon, from 1; 0 elsewhere."""
    valid: BoolArray
    """(H, W)"""
    gsd: float
    """Metres per pixel."""
    confidence: Float64Array | None = None
    """(polygons,) NaN where it is not known."""


def answers(path: Path, networks: Networks, parameters: Parameters) -> dict[str, Answer]:
    """Polygons of a georeferenced scene as the product draws them, and as its peers do.

    The peers' masks are cleaned as the product's are: specks dropped, small holes filled.
    """
    plan = prepare(path, Reading(), networks, parameters)
    with in_scratch(plan) as work:
        found = find_landslides(work)
        spans, _, _ = join_regions(work)
        valid = validity(work.run, plan.grid.window)
    grid = plan.grid
    valid = np.ones((grid.height, grid.width), bool) if valid is None else valid
    active = spans.paint(grid.window, np.ones(len(spans), np.uint8)) > 0
    return {
        OURS: _answer([found.landslides], valid, grid),
        WITH: _answer([found.landslides, found.candidates], valid, grid),
        ALONE: Answer(tidy(active, grid, parameters), valid, grid.gsd),
        OTSU: Answer(tidy(peers.otsu_bare(_pixels(plan), valid), grid, parameters), valid, grid.gsd),
    }


def _answer(tables: Sequence[gpd.GeoDataFrame], valid: BoolArray, grid: Grid) -> Answer:
    outlines = chain.from_iterable(table.geometry for table in tables)
    confidence = np.concatenate([table["confidence"].to_numpy(float) for table in tables])
    return Answer(polygon_ids(outlines, grid), valid, grid.gsd, confidence)


def polygon_ids(outlines: Iterable[shapely.Geometry], grid: Grid) -> Int32Array:
    """(H, W) number of the polygon, from 1 in the order given, that holds a pixel's centre; 0 elsewhere."""
    shapes = [(outline, number) for number, outline in enumerate(outlines, 1)]
    size = grid.height, grid.width
    if not shapes:
        return np.zeros(size, np.int32)
    ids: Int32Array = rasterize(shapes, size, transform=grid.transform, dtype="int32")
    return ids


def _pixels(plan: Plan) -> UInt8Array:
    """(H, W, 3) red, green and blue of the working grid, scaled to 8 bits by one factor where they are deeper."""
    parts = [(window, plan.reader.read(window, plan.grid)[0]) for window in plan.blocks]
    top = max(float(bands.max(initial=0)) for _, bands in parts)
    rgb = np.zeros((plan.grid.height, plan.grid.width, 3), np.uint8)
    for window, bands in parts:
        scaled = bands if bands.dtype == np.uint8 else np.clip(bands * (255 / max(top, 1e-9)), 0, 255)
        rgb[window.slices] = np.moveaxis(scaled, 0, 2)
    return rgb


@dataclass(frozen=True)
class _Held:
    """A mask as a mosaic, for the product's own cleaning."""

    mask: BoolArray

    def scores(self, window: Window) -> UInt8Array:
        return self.mask[window.slices].astype(np.uint8) * np.uint8(FULL)

    def read(self, window: Window, spans: Spans) -> Layers:  # noqa: ARG002
        return Layers(self.scores(window))


def tidy(mask: BoolArray, grid: Grid, parameters: Parameters) -> Int32Array:
    """Number the objects of (H, W) after the cleaning that the product gives its own."""
    found = find_objects(
        _Held(mask),
        BlockGrid(grid.height, grid.width, parameters.block_size),
        threshold=FULL,
        min_area_px=parameters.min_area.pixels(grid.gsd),
        max_hole_px=parameters.max_hole.pixels(grid.gsd),
    )
    ids: Int32Array = found.spans.paint(grid.window, found.labels + np.int32(1))
    return ids


# --- against the truth -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tally:
    """What agrees in some scenes, by area and by object."""

    areas: Confusion = field(default_factory=Confusion)
    true_objects: int = 0
    found: int = 0
    """True landslides that predictions cover to at least half."""
    polygons: int = 0
    right: int = 0
    """Polygons of which at least half lies on true landslides."""

    @classmethod
    def of(cls, answer: Answer, truth: Int32Array) -> Self:
        """Compare one answer with numbered landslides (H, W)."""
        predicted, true = answer.ids > 0, truth > 0
        covered = shares(np.maximum(truth, 0), predicted)
        correct = shares(answer.ids, true)
        return cls(
            Confusion.of(predicted, true, answer.valid),
            len(covered),
            int((covered >= HALF).sum()),
            len(correct),
            int((correct >= HALF).sum()),
        )

    def __add__(self, other: Tally) -> Tally:
        return Tally(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def figures(self) -> dict[str, float]:
        """Figures for a table."""
        return {
            "F1": self.areas.f1,
            "IoU": self.areas.iou,
            "precision": self.areas.precision,
            "recall": self.areas.recall,
            "object recall": ratio(self.found, self.true_objects),
            "landslides": self.true_objects,
            "polygons right": ratio(self.right, self.polygons),
            "polygons": self.polygons,
        }


def shares(ids: Int32Array, mask: BoolArray) -> Float64Array:
    """Share of each numbered object of (H, W), in the order of the numbers that occur, that lies on a mask (H, W)."""
    whole = np.bincount(ids.ravel())
    inside = np.bincount(ids.ravel(), weights=mask.ravel(), minlength=len(whole))
    present = np.flatnonzero(whole[1:]) + 1
    share: Float64Array = inside[present] / whole[present]
    return share


def stated(answer: Answer, truth: Int32Array) -> list[tuple[float, bool]]:
    """Confidence of each polygon that has one, and whether at least half of it is landslide."""
    if answer.confidence is None:
        return []
    numbers, right = judged(answer.ids, truth)
    said = answer.confidence[numbers - 1]
    return [(round(float(c), 6), bool(r)) for c, r in zip(said, right, strict=True) if np.isfinite(c)]


def judged(ids: Int32Array, truth: Int32Array) -> tuple[Int64Array, BoolArray]:
    """Numbers of the polygons that hold a pixel's centre, ascending, and whether half of each or more is landslide."""
    numbers = np.unique(ids[ids > 0]).astype(np.int64)
    return numbers, shares(ids, truth > 0) >= HALF


def false_alarms(answer: Answer) -> dict[str, float]:
    """Area and number of polygons in a scene without landslides, by its valid area."""
    km2 = np.count_nonzero(answer.valid) * answer.gsd**2 / 1e6
    predicted = np.count_nonzero((answer.ids > 0) & answer.valid) * answer.gsd**2
    return {"ha per km2": ratio(predicted / 1e4, km2), "polygons per km2": ratio(int(answer.ids.max()), km2)}


def mean_alarms(data: str, method: str, parts: list[dict[str, float]]) -> Measurement:
    """Mean over scenes, since the coarsest scene would outweigh all others by area."""
    names = parts[0] if parts else {}
    means = {name: float(np.mean([part[name] for part in parts])) for name in names}
    worst = max((part["ha per km2"] for part in parts), default=float("nan"))
    return Measurement(data, method, means | {"worst ha per km2": worst, "scenes": len(parts)})


# --- making scenes ---------------------------------------------------------------------------------------------------


def placed(example: Example, gsd: float) -> Grid:
    """A place for an example that lies nowhere."""
    height, width = example.ids.shape
    return Grid(pyproj.CRS.from_epsg(32648), Affine(gsd, 0, PLACE[0], 0, -gsd, PLACE[1]), height, width)


def write_scene(path: Path, example: Example, gsd: float) -> Path:
    """Write an example as a GeoTIFF that lies somewhere; return its path."""
    write_geotiff(path, example.rgb, placed(example, gsd), description=example.name, overwrite=True)
    return path


def lay_mosaic(chips: Files, path: Path, *, width: int = 4096) -> Int32Array:
    """Lay chips side by side into one scene, written to `path`, so that no chip's middle gives its landslide away.

    Chips are shuffled from a fixed seed and laid in rows by height, at `CHIP_GSD` metres; what is left between them is
    not valid.

    Returns
    -------
    numbers of the landslides (H, W), from 1; -1 where no chip lies
    """
    order = list(chips.images)
    random.Random(0).shuffle(order)  # noqa: S311  # no secret: the same mosaic everywhere
    sizes = {image: _size(image) for image in order}
    order.sort(key=lambda image: -(sizes[image][0] // 64))
    width = max(width, *(sizes[image][1] for image in order))
    places, height = _shelves([sizes[image] for image in order], width)
    rgb, ids = np.zeros((height, width, 3), np.uint8), np.full((height, width), -1, np.int32)
    count = 0
    for place, example in zip(places, Files(tuple(order), chips.masks), strict=True):
        rgb[place.slices] = example.rgb
        # numbered chip by chip: landslides of chips that touch are not one
        ids[place.slices] = np.where(example.ids > 0, example.ids + count, 0)
        count += int(example.ids.max(initial=0))
    _write_mosaic(path, rgb, ids >= 0)
    return ids


def _size(image: Path) -> tuple[int, int]:
    with Image.open(image) as opened:
        return opened.height, opened.width


def _shelves(sizes: Iterable[tuple[int, int]], width: int) -> tuple[list[Window], int]:
    """Places of rectangles in rows of a given width, in the order given, and the height of all rows."""
    row = col = tallest = 0
    places = []
    for height, wide in sizes:
        if col + wide > width:
            row, col, tallest = row + tallest, 0, 0
        places.append(Window(row, col, height, wide))
        col, tallest = col + wide, max(tallest, height)
    return places, row + tallest


def _write_mosaic(path: Path, rgb: UInt8Array, valid: BoolArray) -> None:
    height, width = valid.shape
    profile = {"driver": "GTiff", "height": height, "width": width, "count": 3, "dtype": "uint8", "crs": "EPSG:32648"}
    tiling = {"tiled": True, "blockxsize": 512, "blockysize": 512}
    packing = {"compress": "jpeg", "photometric": "ycbcr", "jpeg_quality": 92}
    transform = Affine(CHIP_GSD, 0, PLACE[0], 0, -CHIP_GSD, PLACE[1])
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(path, "w", transform=transform, **profile, **tiling, **packing) as scene,
    ):
        scene.write(np.moveaxis(rgb, 2, 0))
        scene.write_mask(valid.astype(np.uint8) * 255)


def tiffs(folder: Path) -> list[Path]:
    """GeoTIFFs of a folder in the order of their names.

    Raises
    ------
    OptionError
        If there is none.
    """
    found = sorted(p for p in folder.glob("*") if p.suffix.lower() in (".tif", ".tiff"))
    if not found:
        raise OptionError(f"{folder} holds no GeoTIFF (.tif, .tiff): give a folder with scenes that show no landslide")
    return found

"""All objects that a segmenter finds in images, stored on disk: owners of pixels, features of masks, segment maps.

Finding them takes most of the time. The stored regions serve any gate and any number of clusters: if the smallest mask
of a pixel is too large to be an object, so are all its other masks.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from geolabel.chips import Chips
from geolabel.clusters import Source
from geolabel.datasets.examples import ImageFolder
from geolabel.datasets.pseudo_labels import read_json, write_json
from geolabel.engine import executors, worker
from geolabel.engine.tasks import Effort, Pass, Progress, Work
from geolabel.errors import ChipError, OutputError
from geolabel.folders import check_folder, promise, written_elsewhere
from geolabel.image_files import open_picture
from geolabel.io.records import Store
from geolabel.labelers import paint, passes_gate
from geolabel.labels import LabelMap, highest_wins, smallest_wins
from geolabel.masks import FeaturedMasks, Filters, Masks
from geolabel.models import loading
from geolabel.mosaic import NO_MASK
from geolabel.outputs import saving
from geolabel.parts import EverythingRecipe, Recipe, Segmenter, SegmenterRecipe
from geolabel.prompters import GridPrompter
from geolabel.tiles import TileGrid
from geolabel.types import BoolArray, Float32Array, Int32Array, Int64Array, UInt8Array

KEY = "key.json"
"""Identifies the content of the records."""


@dataclass(frozen=True)
class Regions:
    """M masks of an image, of any size."""

    owner: Int32Array
    """(H, W) smallest mask that covers a pixel, or `geolabel.mosaic.NO_MASK`."""
    features: Float32Array
    """(M, D)"""
    areas: Int64Array
    """(M,) pixels of each mask."""
    pixels: Int64Array
    """(M,) pixels of the tile that a mask was found in."""
    quality: Float32Array
    """(M,) predicted IoU x stability."""

    def objects(self, max_share: float) -> BoolArray:
        """(M,) masks that pass the gate of ALPS, eq. 2 and 3."""
        return passes_gate(self.areas, self.pixels, max_share)

    def label(self, values: Int32Array, classes: tuple[str, ...], max_share: float) -> LabelMap:
        """Paint every object with its value (M,); pixels without an object are ignored."""
        kept = np.append(self.objects(max_share), False)  # NO_MASK, -1, selects the last
        owner = np.where(kept[self.owner], self.owner, NO_MASK).astype(np.int32)
        return paint(owner, values, self.quality, classes)


def find_regions(image: UInt8Array, segmenter: Segmenter, points_per_side: int, size: int) -> Regions:
    """Segment everything in an image (H, W, 3), tile by tile; every pixel is taken from the nearest tile.

    Parameters
    ----------
    segmenter
        Returns `FeaturedMasks`.
    size
        Maximum side of a tile, pixels.
    """
    height, width = image.shape[:2]
    tiles = TileGrid(height, width, size, size // 4)
    grid = GridPrompter(points_per_side)
    owner = np.full((height, width), NO_MASK, np.int32)
    found: list[FeaturedMasks] = []
    areas, pixels, first = [], [], 0
    for index, tile in enumerate(tiles):
        (masks,) = segmenter([image[tile.slices]], [grid.over(tile.height, tile.width)])
        assert isinstance(masks, FeaturedMasks)
        inside = masks.binary
        here = smallest_wins(inside)
        core = tiles.core(index)
        owner[core.slices] = np.where(here == NO_MASK, NO_MASK, here + first)[core.within(tile)]
        found.append(masks)
        areas.append(inside.sum(axis=(1, 2), dtype=np.int64))
        pixels.append(np.full(len(masks), tile.height * tile.width, np.int64))
        first += len(masks)
    return Regions(
        owner,
        np.concatenate([masks.features for masks in found]),
        np.concatenate(areas),
        np.concatenate(pixels),
        np.concatenate([masks.quality for masks in found]),
    )


@dataclass(frozen=True)
class RegionFolder:
    """The regions of every image of a folder. An interrupted search resumes; each task keeps one image in memory."""

    root: Path
    images: ImageFolder

    def find(self, segmenter: Recipe, source: Source, progress: Progress) -> None:
        """Find the regions of all images that have none yet.

        Raises
        ------
        OutputError
            If the folder has those of other images or another segmenter, or other files.
        """
        check_folder(self.root, self.images.sources)
        if self.root.is_dir() and any(self.root.iterdir()) and not (self.root / KEY).is_file():
            raise OutputError(f"{self.root} contains files other than regions of a segmenter: give another folder")
        self.root.mkdir(parents=True, exist_ok=True)
        key = {"images": self.images.digest, "source": source.as_dict() | {"max_share": None}}
        path = self.root / KEY
        if path.exists() and read_json(path) != key:
            raise OutputError(
                f"{self.root} contains regions of other images, or of another segmenter or settings: "
                "give another folder, or delete this one"
            )
        write_json(path, key)
        missing = [index for index in range(len(self.images)) if not self._store.has("regions", index)]
        executors.check_seen(path)
        promise(self.root / self._store.name("regions", index) for index in missing)
        work = Work(_Search(self, segmenter, source), Effort(), progress)
        tiles = [self.images.tiles(index, source.tile) for index in missing]
        for _ in work.each(SEGMENT, missing, networks=[segmenter], weights=tiles):
            pass

    @property
    def _store(self) -> Store:
        return Store(self.root)

    def write(self, index: int, regions: Regions) -> None:
        """Write the regions of one image."""
        packed = np.frombuffer(zlib.compress(regions.owner.tobytes(), 1), np.uint8)
        size = np.asarray(regions.owner.shape, np.int32)
        self._store.write("regions", index, vars(regions) | {"owner": packed, "size": size})

    def remove(self) -> None:
        """Delete the stored regions."""
        self._store.remove()
        (self.root / KEY).unlink(missing_ok=True)
        with suppress(OSError):  # other files are in it
            self.root.rmdir()

    def read(self, index: int) -> Regions:
        """The regions of one image."""
        record = self._store.read("regions", index)
        flat = np.frombuffer(zlib.decompress(record["owner"].tobytes()), np.int32)
        owner = flat.reshape(record.pop("size"))
        return Regions(**record | {"owner": owner})

    def features(self, number: int, max_share: float, seed: int = 0) -> Iterator[Float32Array]:
        """Features (M, D) of the objects of every image, in an order determined by a seed and a number."""
        for index in np.random.default_rng([seed, number]).permutation(len(self.images)).tolist():
            record = self._store.read("regions", index, "features", "areas", "pixels")
            yield record["features"][passes_gate(record["areas"], record["pixels"], max_share)]


@dataclass(frozen=True)
class _Search:
    """Inputs for the search in one image."""

    folder: RegionFolder
    segmenter: Recipe
    source: Source


def _segment(run: _Search, index: int) -> None:
    """Find the regions of an image and write them."""
    image = run.folder.images.read(index)
    with worker.networks([run.segmenter], None):
        regions = find_regions(image, worker.segmenter(run.segmenter), run.source.points_per_side, run.source.tile)
    run.folder.write(index, regions)


def _where(run: _Search, index: int) -> str:
    return f"image {run.folder.images.names[index]}"


SEGMENT = Pass("segment", _segment, None, _where)


SETTINGS = "settings.json"
"""File with the settings that the maps of a folder were made with."""

_MAX_SEGMENTS = (1 << 16) - 1
"""Maximum number of segments of a chip in a 16-bit image; further ones are dropped."""


@dataclass(frozen=True)
class SegmentMaps:
    """Numbers of the segments of every chip; a pixel belongs to the smallest segment that covers it."""

    folder: Path
    chips: Chips

    def path(self, index: int) -> Path:
        """Path of a chip's map."""
        return self.folder / f"{self.chips.names[index]}.png"

    def __call__(self, index: int) -> Int32Array:
        """(H, W) numbers from 1, 0 without a segment."""
        path = self.path(index)
        try:
            with open_picture(path) as image:
                return np.asarray(image).astype(np.int32)
        except OSError as error:
            raise ChipError(f"{path} cannot be read ({error}): delete it, and it is made again") from error


def segment_maps(
    chips: Chips,
    recipe: SegmenterRecipe,
    folder: Path,
    *,
    filters: Filters,
    points_per_side: int = 32,
    smallest: bool = True,
    progress: Progress,
) -> SegmentMaps:
    """Segment every chip that is not in the folder yet.

    Parameters
    ----------
    recipe
        Recipe of the segmenter.
    folder
        Maps are stored in a subfolder named after the segmenter and the settings.
    smallest
        Whether a pixel belongs to the smallest segment covering it; otherwise to the one of highest predicted IoU.

    Raises
    ------
    OutputError
        If a map cannot be written.
    """
    settings = {"sha256": recipe.sha256, "points": points_per_side, **asdict(filters)}
    settings |= {} if smallest else {"order": "predicted IoU"}
    key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
    maps = SegmentMaps(folder / key, chips)
    maps.folder.mkdir(parents=True, exist_ok=True)
    missing = [k for k in range(len(chips)) if not maps.path(k).is_file()]
    if missing:
        with saving(maps.folder / SETTINGS) as part:
            part.write_text(json.dumps(settings, sort_keys=True), encoding="utf-8")
        executors.check_seen(maps.folder / SETTINGS)
    promise(maps.path(k) for k in missing)
    asked = loading.everything(recipe, filters)
    work = Work(_Everything(maps, asked, GridPrompter(points_per_side), smallest), Effort(), progress)
    for _ in work.each(SEGMENTS, missing, networks=[asked]) if missing else ():
        pass
    return maps


@dataclass(frozen=True)
class _Everything:
    """Inputs for the segmentation of one chip."""

    maps: SegmentMaps
    segmenter: EverythingRecipe
    prompter: GridPrompter
    smallest: bool


def _segments(run: _Everything, index: int) -> None:
    """Segment a chip and write its map."""
    rgb = run.maps.chips.rgb(index)
    with worker.networks([run.segmenter], None):
        numbers = segment_everything(rgb, worker.segmenter(run.segmenter), run.prompter, run.smallest)
    with written_elsewhere(run.maps.folder):
        _write(run.maps.path(index), numbers)


def _where_segmented(run: _Everything, index: int) -> str:
    return f"chip {run.maps.chips.names[index]}"


SEGMENTS = Pass("segments", _segments, None, _where_segmented)


def segment_everything(
    rgb: UInt8Array, segmenter: Segmenter, prompter: GridPrompter, smallest: bool = True
) -> Int32Array:
    """(H, W) numbers of the segments of an image, from 1; in tiles if it is larger than the segmenter's window."""
    numbers = np.zeros(rgb.shape[:2], np.int32)
    height, width = rgb.shape[:2]
    tiles = TileGrid(height, width, segmenter.window, segmenter.window // 4)
    for index, tile in enumerate(tiles):
        part = rgb[tile.slices]
        (masks,) = segmenter([part], [prompter.over(*part.shape[:2])])
        owner = smallest_wins(masks.binary) if smallest else _surest_wins(masks)
        core = tiles.core(index)
        own = owner[core.within(tile)]
        numbers[core.slices] = np.where(own >= 0, own + 1 + numbers.max(), 0)
    return numbers


def _surest_wins(masks: Masks) -> Int32Array:
    return highest_wins(masks.binary * (masks.predicted_iou[:, None, None] + np.float32(1e-6)))


def _write(path: Path, numbers: Int32Array) -> None:
    with saving(path) as part:
        Image.fromarray(np.where(numbers <= _MAX_SEGMENTS, numbers, 0).astype(np.uint16)).save(part)

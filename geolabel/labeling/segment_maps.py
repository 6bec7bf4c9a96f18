"""Segment maps: what a segmenter finds everywhere in a chip, computed once and kept as 16-bit images."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from geolabel.chips import Chips
from geolabel.engine import executors, worker
from geolabel.engine.progress import Effort, Progress
from geolabel.engine.tasks import Pass, Work
from geolabel.errors import ChipError
from geolabel.folders import promise, written_elsewhere
from geolabel.labels import smallest_wins
from geolabel.masks import Filters
from geolabel.outputs import saving
from geolabel.parts import EverythingRecipe, Segmenter, SegmenterRecipe
from geolabel.pictures import open_picture
from geolabel.prompters import GridPrompter
from geolabel.tiles import TileGrid
from geolabel.types import Int32Array, UInt8Array

SETTINGS = "settings.json"
"""What the maps of a folder were made with."""

_MAX_SEGMENTS = (1 << 16) - 1
"""Maximum number of segments of a chip, which an image of 16 bits can number; more are left out."""


@dataclass(frozen=True)
class SegmentMaps:
    """Numbers of the segments of every chip, where the smallest segment of those that cover a pixel owns it."""

    folder: Path
    chips: Chips

    def path(self, index: int) -> Path:
        """The file of a chip."""
        return self.folder / f"{self.chips.names[index]}.png"

    def __call__(self, index: int) -> Int32Array:
        """(H, W) numbers from 1, 0 where no segment is."""
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
    progress: Progress,
) -> SegmentMaps:
    """Segment every chip, but those that are in the folder already.

    Parameters
    ----------
    recipe
        Of the segmenter.
    folder
        Maps are kept below it in a folder that is named after the segmenter and the settings.

    Raises
    ------
    OutputError
        If a map cannot be written.
    """
    settings = {"sha256": recipe.sha256, "points": points_per_side, **asdict(filters)}
    key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
    maps = SegmentMaps(folder / key, chips)
    maps.folder.mkdir(parents=True, exist_ok=True)
    missing = [k for k in range(len(chips)) if not maps.path(k).is_file()]
    if missing:
        with saving(maps.folder / SETTINGS) as part:
            part.write_text(json.dumps(settings, sort_keys=True), encoding="utf-8")
        executors.check_seen(maps.folder / SETTINGS)
    promise(maps.path(k) for k in missing)
    asked = recipe.everything(filters)
    work = Work(_Everything(maps, asked, GridPrompter(points_per_side)), Effort(), progress)
    for _ in work.each(SEGMENTS, missing, networks=[asked]) if missing else ():
        pass
    return maps


@dataclass(frozen=True)
class _Everything:
    """What the segmentation of one chip takes."""

    maps: SegmentMaps
    segmenter: EverythingRecipe
    prompter: GridPrompter


def _segments(run: _Everything, index: int) -> None:
    """Segment a chip and write its map."""
    rgb = run.maps.chips.rgb(index)
    with worker.networks([run.segmenter], None):
        numbers = segment_everything(rgb, worker.segmenter(run.segmenter), run.prompter)
    with written_elsewhere(run.maps.folder):
        _write(run.maps.path(index), numbers)


def _where(run: _Everything, index: int) -> str:
    return f"chip {run.maps.chips.names[index]}"


SEGMENTS = Pass("segments", _segments, None, _where)


def segment_everything(rgb: UInt8Array, segmenter: Segmenter, prompter: GridPrompter) -> Int32Array:
    """(H, W) numbers of the segments of an image, from 1; in tiles where it is larger than the segmenter's window."""
    numbers = np.zeros(rgb.shape[:2], np.int32)
    height, width = rgb.shape[:2]
    tiles = TileGrid(height, width, segmenter.window, segmenter.window // 4)
    for index, tile in enumerate(tiles):
        part = rgb[tile.slices]
        (masks,) = segmenter([part], [prompter.over(*part.shape[:2])])
        owner, core = smallest_wins(masks.binary), tiles.core(index)
        own = owner[core.within(tile)]
        numbers[core.slices] = np.where(own >= 0, own + 1 + numbers.max(), 0)
    return numbers


def _write(path: Path, numbers: Int32Array) -> None:
    with saving(path) as part:
        Image.fromarray(np.where(numbers <= _MAX_SEGMENTS, numbers, 0).astype(np.uint16)).save(part)

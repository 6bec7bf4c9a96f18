"""From clusters to classes: which clusters are landslides, according to a person, labelled chips or an activation map.

Clusters are disjoint. So the union with the highest F1 score consists of the clusters with the highest precision, and
is found by trying as many unions as there are clusters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from geolabel.clusters import MOST
from geolabel.datasets.chips import TABLE, ChipDataset, mask_path, read_chips, read_image
from geolabel.datasets.pseudo_labels import PseudoLabel, PseudoLabels
from geolabel.errors import OptionError, SceneError
from geolabel.metrics import Confusion
from geolabel.outputs import replacing
from geolabel.parts import Localizer
from geolabel.prompters import THRESHOLD
from geolabel.tiles import TileGrid
from geolabel.types import BoolArray, Int64Array, UInt8Array

Truth = Callable[[PseudoLabel], BoolArray | None]
"""Where an image (H, W) shows the class; None if unknown."""

TILE = 512
"""Side in pixels of the localizer's tiles."""

GATE = 0.5
"""Minimum class probability of a tile for its activation to count, as in the extraction of scenes."""


@dataclass(frozen=True)
class Tally:
    """Pixels of K clusters inside and outside of a class, and of the class outside all clusters."""

    inside: Int64Array
    """(K,)"""
    outside: Int64Array
    """(K,)"""
    missed: int
    images: int

    @property
    def precision(self) -> list[float | None]:
        """(K,) share of each cluster inside the class; None for an empty cluster."""
        pairs = zip(self.inside.tolist(), self.outside.tolist(), strict=True)
        return [one / (one + other) if one + other else None for one, other in pairs]

    def confusion(self, chosen: Iterable[int]) -> Confusion:
        """Agreement of a union of clusters with the class, without true negatives."""
        at = sorted(chosen)
        tp, fp = float(self.inside[at].sum()), float(self.outside[at].sum())
        return Confusion(tp=tp, fp=fp, fn=float(self.inside.sum()) + self.missed - tp)

    def best(self) -> list[int]:
        """The union of clusters with the highest F1, by descending precision; empty if none overlaps the class."""
        seen = [k for k in range(len(self.inside)) if self.inside[k]]
        ranked = sorted(seen, key=lambda k: (-self.inside[k] / (self.inside[k] + self.outside[k]), k))
        scores = [self.confusion(ranked[: count + 1]).f1 for count in range(len(ranked))]
        return ranked[: int(np.argmax(scores)) + 1] if scores else []


def tally(labels: Iterable[PseudoLabel], truth: Truth, clusters: int) -> Tally:
    """Count the pixels of each cluster over all images with known truth.

    Raises
    ------
    OptionError
        If there is no such image.
    SceneError
        If a truth differs in size from its image.
    """
    counts = np.zeros((2, MOST + 1), np.int64)
    images = 0
    for one in labels:
        known = truth(one)
        if known is None:
            continue
        if known.shape != one.values.shape:
            raise SceneError(f"{one.name} has {one.values.shape} px and its truth {known.shape}: save it at that size")
        for row, part in enumerate((known, ~known)):
            counts[row] += np.bincount(one.values[part], minlength=MOST + 1)
        images += 1
    if not images:
        raise OptionError("none of the images has a truth: give chips of the same names as those that were labelled")
    return Tally(counts[0, :clusters], counts[1, :clusters], int(counts[0, clusters:].sum()), images)


# --- sources of truth ------------------------------------------------------------------------------------------------


def chip_masks(folder: Path) -> Truth:
    """Truth from labelled chips: masks of some, and optionally a table of chips that show nothing.

    Raises
    ------
    ChipError
        If the folder or its table is invalid.
    """
    table = any((parent / TABLE).is_file() for parent in (folder, folder.parent))
    chips = read_chips(folder) if table else None
    index_of = {} if chips is None else {name: index for index, name in enumerate(chips.names)}

    def truth(one: PseudoLabel) -> BoolArray | None:
        if chips is not None:
            return _of_chip(chips, index_of[one.name]) if one.name in index_of else None
        path = mask_path(folder / "images" / f"{one.name}.png")
        if not path.is_file():
            return None
        values = read_image(path)
        inside: BoolArray = values > 0 if values.ndim == 2 else values.max(axis=2) > 0
        return inside

    return truth


def _of_chip(chips: ChipDataset, index: int) -> BoolArray | None:
    mask = chips.chip(index).mask
    return None if mask is None else np.asarray(mask == 1)


def active(localizer: Localizer, class_name: str) -> Truth:
    """Truth from a localizer: where its activation exceeds the prompt threshold, in tiles that pass the gate.

    Raises
    ------
    OptionError
        If the localizer does not know the class.
    """
    if class_name not in localizer.classes:
        raise OptionError(f"the localizer does not know {class_name!r}: it knows {', '.join(localizer.classes)}")
    c = localizer.classes.index(class_name)

    def truth(one: PseudoLabel) -> BoolArray | None:
        image = one.image
        height, width = image.shape[:2]
        tiles = TileGrid(height, width, TILE, TILE // 4)
        found = np.zeros((height, width), bool)
        for index, tile in enumerate(tiles):
            (maps,) = localizer([np.array(image[tile.slices])])
            if maps.probability[c] >= GATE:
                grey = maps.grey(c, (tile.height, tile.width))
                core = tiles.core(index)
                found[core.slices] = (grey > THRESHOLD)[core.within(tile)]
        return found

    return truth


def followed(labels: PseudoLabels) -> Iterator[PseudoLabel]:
    """Every image of a folder, one in memory at a time."""
    for index in range(len(labels)):
        yield labels[index]


# --- contact sheets: regions of a cluster, to help a person name it ---------------------------------------------------

SIDE, COLUMNS, GAP, HEAD = 112, 6, 4, 20
"""Side of a picture, pictures per row, spacing, and height of the title, in pixels."""

_MIN_PIXELS = 16
"""Minimum size in pixels of a region on a sheet."""

LINE = (255, 220, 0)
"""Colour of the outline."""


def sample_regions(labels: Iterable[PseudoLabel], clusters: int, each: int, seed: int = 0) -> list[list[UInt8Array]]:
    """Pictures (SIDE, SIDE, 3) of up to `each` regions of every cluster, sampled uniformly from all images.

    Regions are 4-connected. Memory holds one image and the pictures.
    """
    random = np.random.default_rng(seed)
    kept: list[list[UInt8Array]] = [[] for _ in range(clusters)]
    seen = [0] * clusters
    for one in labels:
        for k in np.unique(one.values[one.values < clusters]).tolist():
            regions, count = ndimage.label(one.values == k)
            sizes = np.bincount(regions.ravel(), minlength=count + 1)
            for number in (np.flatnonzero(sizes[1:] >= _MIN_PIXELS) + 1).tolist():
                seen[k] += 1
                place = len(kept[k]) if seen[k] <= each else int(random.integers(seen[k]))
                if place < each:
                    kept[k][place : place + 1] = [picture(one.image, regions == number)]
    return kept


def picture(image: UInt8Array, region: BoolArray) -> UInt8Array:
    """A region (H, W), outlined, in a square crop of its surroundings, at the size of a picture."""
    rows, cols = np.flatnonzero(region.any(axis=1)), np.flatnonzero(region.any(axis=0))
    side = int(1.5 * max(rows[-1] - rows[0], cols[-1] - cols[0])) + 16
    top, left = ((int(at[0]) + int(at[-1]) - side) // 2 for at in (rows, cols))
    box = (left, top, left + side, top + side)  # black outside the image
    seen = np.asarray(Image.fromarray(np.array(image)).crop(box).resize((SIDE, SIDE), Image.Resampling.BILINEAR)).copy()
    mask = np.asarray(Image.fromarray(region).crop(box).resize((SIDE, SIDE), Image.Resampling.NEAREST))
    seen[mask & ~ndimage.binary_erosion(mask)] = LINE
    return seen


def write_sheet(path: Path, pictures: Sequence[UInt8Array], title: str) -> None:
    """Write the pictures of one cluster as one PNG, row by row below its title.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    rows = max(1, -(-len(pictures) // COLUMNS))
    step = SIDE + GAP
    sheet = Image.new("RGB", (COLUMNS * step + GAP, rows * step + GAP + HEAD), "white")
    ImageDraw.Draw(sheet).text((GAP, GAP), title, fill="black")
    for number, seen in enumerate(pictures):
        row, col = divmod(number, COLUMNS)
        sheet.paste(Image.fromarray(seen), (GAP + col * step, HEAD + GAP + row * step))
    with replacing(path, overwrite=False) as part:
        sheet.save(part)

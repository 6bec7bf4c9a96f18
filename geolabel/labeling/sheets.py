"""Contact sheets: what the regions of a cluster look like, for a person to name it by."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from geolabel.datasets.pseudo_labels import PseudoLabel
from geolabel.outputs import replacing
from geolabel.types import BoolArray, UInt8Array

SIDE, COLUMNS, GAP, HEAD = 112, 6, 4, 20
"""Pixels of a picture, pictures in a row, pixels between them, and pixels of the line at the top."""

LEAST = 16
"""Pixels of a region that is worth a look."""

LINE = (255, 220, 0)
"""Colour of the outline."""


def sample_regions(labels: Iterable[PseudoLabel], clusters: int, each: int, seed: int = 0) -> list[list[UInt8Array]]:
    """Pictures (SIDE, SIDE, 3) of up to `each` regions of every cluster, drawn with equal chance from all images.

    Regions are 4-connected. Memory holds one image and the pictures.
    """
    random = np.random.default_rng(seed)
    kept: list[list[UInt8Array]] = [[] for _ in range(clusters)]
    seen = [0] * clusters
    for one in labels:
        for k in np.unique(one.values[one.values < clusters]).tolist():
            regions, count = ndimage.label(one.values == k)
            sizes = np.bincount(regions.ravel(), minlength=count + 1)
            for number in (np.flatnonzero(sizes[1:] >= LEAST) + 1).tolist():
                seen[k] += 1
                place = len(kept[k]) if seen[k] <= each else int(random.integers(seen[k]))
                if place < each:
                    kept[k][place : place + 1] = [picture(one.image, regions == number)]
    return kept


def picture(image: UInt8Array, region: BoolArray) -> UInt8Array:
    """A region (H, W), outlined, in a square of its surroundings, at the side of a picture."""
    rows, cols = np.flatnonzero(region.any(axis=1)), np.flatnonzero(region.any(axis=0))
    side = int(1.5 * max(rows[-1] - rows[0], cols[-1] - cols[0])) + 16
    top, left = ((int(at[0]) + int(at[-1]) - side) // 2 for at in (rows, cols))
    box = (left, top, left + side, top + side)  # what reaches out of the image is black
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

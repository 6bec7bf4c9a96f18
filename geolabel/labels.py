"""Label maps: one class per pixel of an image, rules for overlapping masks, and connected regions.

An overlap rule gives the owner of each pixel as an index into the masks; what a mask means is looked up afterwards. So
the same rules serve classes (of prompts), clusters (of features) and segments (the mask's number).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Self

import numpy as np
from scipy import ndimage

from geolabel.errors import OptionError
from geolabel.mosaic import NO_MASK
from geolabel.types import BoolArray, Float32Array, Int32Array, Int64Array, UInt8Array

IGNORE = 255
"""Value of unlabelled pixels: excluded from training and scores."""

BACKGROUND = "background"
"""Name of the class of all other pixels; it has no instances."""


def choose_classes(known: Sequence[str], wanted: Collection[str], owner: str) -> tuple[str, ...]:
    """Select classes of a network or file, in its own order; all if none is requested.

    Parameters
    ----------
    owner
        What has the classes, for the message.

    Raises
    ------
    OptionError
        If a class is not known.

    Examples
    --------
    >>> choose_classes(("road", "landslide", "gully"), ("gully", "road"), "a.tif")
    ('road', 'gully')
    """
    for name in wanted:
        if name not in known:
            close = get_close_matches(name, known, n=1)
            hint = f": did you mean {close[0]}? There are" if close else "; there are"
            raise OptionError(f"no class of {owner} is called {name!r}{hint} {', '.join(known)}")
    return tuple(name for name in known if not wanted or name in wanted)


@dataclass(frozen=True)
class LabelMap:
    """The class of each pixel of an image, and the confidence of its source.

    Raises
    ------
    ValueError
        If the shapes differ, there are too many classes, or a value has no class.
    """

    values: UInt8Array
    """(H, W) index into `classes`, or `IGNORE`."""
    confidence: Float32Array
    """(H, W) 0..1; also for background and ignored pixels."""
    classes: tuple[str, ...]
    """Name of every value from 0; at most 255."""

    def __post_init__(self) -> None:
        if self.values.ndim != 2 or self.confidence.shape != self.values.shape:
            raise ValueError(
                f"values {self.values.shape} and confidence {self.confidence.shape} are not maps of one size"
            )
        if not 0 < len(self.classes) <= IGNORE:
            raise ValueError(
                f"{len(self.classes)} classes: a label map holds 1 to {IGNORE}, {IGNORE} itself is ignored"
            )
        highest = int(self.values.max(initial=0, where=self.values != IGNORE))
        if highest >= len(self.classes):
            raise ValueError(f"value {highest} is not one of the {len(self.classes)} classes")

    @classmethod
    def background(cls, height: int, width: int, classes: tuple[str, ...]) -> Self:
        """A map of the first class everywhere, for an image that is known to show nothing else."""
        return cls(np.zeros((height, width), np.uint8), np.ones((height, width), np.float32), classes)

    @property
    def labelled(self) -> BoolArray:
        """(H, W) where the class is known."""
        return np.asarray(self.values != IGNORE)


# --- overlap rules ---------------------------------------------------------------------------------------------------


def smallest_wins(masks: BoolArray) -> Int32Array:
    """Each pixel belongs to the smallest of the masks (M, H, W) that cover it, so parts show on top of wholes.

    Among masks of equal size, the lower number wins.

    Returns
    -------
    (H, W) index of the owner, or `geolabel.mosaic.NO_MASK`
    """
    owner = np.full(masks.shape[1:], NO_MASK, np.int32)
    areas = masks.sum(axis=(1, 2), dtype=np.int64)
    for index in np.lexsort((np.arange(len(masks)), areas))[::-1]:  # largest first; smaller ones are painted over it
        owner[masks[index]] = index
    return owner


def highest_wins(scores: UInt8Array | Float32Array) -> Int32Array:
    """Each pixel belongs to the mask with the highest score (M, H, W); ties to the lower number.

    Returns
    -------
    (H, W) index of the owner, or `geolabel.mosaic.NO_MASK` if every score is 0
    """
    if not len(scores):
        return np.full(scores.shape[1:], NO_MASK, np.int32)
    covered = scores.max(axis=0) > 0
    return np.where(covered, scores.argmax(axis=0), NO_MASK).astype(np.int32)


# --- closed regions --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Instances:
    """N disjoint objects of an image, numbered from 1 in a map."""

    ids: Int32Array
    """(H, W) number of the object, 0 if none."""
    class_ids: Int32Array
    """(N,) index into the classes of the source label map."""
    scores: Float32Array
    """(N,) 0..1."""
    areas: Int64Array
    """(N,) pixels."""

    def __len__(self) -> int:
        return len(self.class_ids)

    def mask(self, index: int) -> BoolArray:
        """(H, W) the pixels of one object, by its index from 0."""
        return np.asarray(self.ids == index + 1)


def closed_regions(labels: LabelMap, min_area: int = 1) -> Instances:
    """Every closed region of a class is an object, as in DiffuPrompter (section 2.2.3).

    Regions are 4-connected; smaller ones than `min_area` pixels are dropped. An object's score is the mean confidence
    of its pixels. Background and ignored pixels have no object.

    Returns
    -------
    Instances, by class and then by first pixel in raster order
    """
    ids = np.zeros(labels.values.shape, np.int32)
    class_ids: list[int] = []
    for value, name in enumerate(labels.classes):
        if name == BACKGROUND:
            continue
        regions, found = ndimage.label(labels.values == value)
        large = np.bincount(regions.ravel(), minlength=found + 1) >= min_area
        large[0] = False
        numbers = np.where(large, np.cumsum(large) + len(class_ids), 0)
        ids += numbers[regions].astype(np.int32)  # regions of different values share no pixel
        class_ids += [value] * int(large.sum())
    count = len(class_ids)
    areas = np.bincount(ids.ravel(), minlength=count + 1)[1:]
    sums = np.bincount(ids.ravel(), weights=labels.confidence.ravel().astype(np.float64), minlength=count + 1)[1:]
    scores = (sums / np.maximum(areas, 1)).astype(np.float32)
    return Instances(ids, np.asarray(class_ids, np.int32), scores, areas.astype(np.int64))


def run_lengths(mask: BoolArray) -> list[int]:
    """COCO's run lengths of a mask (H, W): down the columns, alternating outside and inside, starting outside."""
    flat = mask.T.ravel()
    ends = np.flatnonzero(np.diff(flat)) + 1
    counts: list[int] = np.diff(np.concatenate([[0], ends, [flat.size]])).tolist()
    return [0, *counts] if flat.size and flat[0] else counts


def from_run_lengths(counts: list[int], height: int, width: int) -> BoolArray:
    """The mask (height, width) of COCO's run lengths.

    Raises
    ------
    ValueError
        If they do not add up to the size.
    """
    if sum(counts) != height * width:
        raise ValueError(f"run lengths of {sum(counts)} pixels do not fill an image of {height} x {width} px")
    inside = np.arange(len(counts)) % 2 == 1
    mask: BoolArray = np.repeat(inside, counts).reshape(width, height).T
    return mask


def expand_run_lengths(counts: str | bytes) -> list[int]:
    """COCO's run lengths from their compressed text, like ``rleFrString`` of cocoapi.

    A run is stored in characters of 6 bits, lowest bits first: bit 6 says that another one follows, bit 5 of the last
    is the sign. From the fourth on, a run is stored as the difference to the run two before.
    https://github.com/cocodataset/cocoapi/blob/master/common/maskApi.c

    Raises
    ------
    ValueError
        If the text ends within a run or has invalid characters.
    """
    codes = [ord(c) - 48 for c in (counts.decode("latin-1") if isinstance(counts, bytes) else counts)]
    if any(not 0 <= code < 64 for code in codes) or (codes and codes[-1] & 32):
        raise ValueError("a compressed mask is truncated or damaged")
    runs: list[int] = []
    value = bits = 0
    for code in codes:
        value |= (code & 31) << bits
        bits += 5
        if bits > 60:
            raise ValueError("a compressed mask holds a run that is longer than any image")
        if code & 32:
            continue
        if code & 16:
            value -= 1 << bits
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = bits = 0
    return runs

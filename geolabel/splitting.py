"""Split touching objects at necks: the distance to the edge has a maximum in each part and a pass between them.

The watershed of the distance transform (Beucher and Lantuejoul 1979) gives every maximum a basin; basins are merged
from the highest pass down, unless the pass is low compared with the lower of the two maxima.
"""

from __future__ import annotations

import logging

import numpy as np
from scipy import ndimage
from skimage.feature import peak_local_max
from skimage.segmentation import watershed

from geolabel.errors import OptionError
from geolabel.spans import Spans
from geolabel.types import BoolArray, Float64Array, Int32Array, Int64Array

log = logging.getLogger(__name__)

MAX_PIXELS = 1 << 26
"""Maximum pixels of the rectangle around an object; larger objects are not split."""


def split_at_necks(
    spans: Spans, labels: Int32Array, count: int, *, neck: float, min_area_px: float = 0
) -> tuple[Spans, Int32Array, Int32Array]:
    """Split objects at necks.

    Parameters
    ----------
    spans, labels, count
        Objects that do not touch: spans in raster order, object (N,) of each, number of objects.
    neck
        Maximum width of a neck, as a share of the width of the narrower part, 0..1.
    min_area_px
        Minimum area of a part, pixels.

    Returns
    -------
    spans (M,), part (M,) of each, and (K,) the object of each part

    Parts are numbered by their first pixels in raster order. Parts of one object touch.

    Raises
    ------
    OptionError
        If `neck` is not between 0 and 1.
    """
    if not 0 <= neck <= 1:
        raise OptionError(f"split {neck}: give the width of a neck as a share of the narrower part, from 0 to 1")
    owner = np.argsort(labels, kind="stable")
    groups = np.split(owner, np.cumsum(np.bincount(labels, minlength=count))[:-1]) if count else []
    pieces = [_parts(spans[group], neck, min_area_px) for group in groups]
    flat = [piece for own in pieces for piece in own]
    origin = np.repeat(np.arange(count, dtype=np.int32), [len(own) for own in pieces])
    together = Spans.concatenate(flat)
    numbers = np.repeat(np.arange(len(flat), dtype=np.int32), [len(one) for one in flat])
    raster = np.lexsort((together.start, together.row))
    together, numbers = together[raster], numbers[raster]
    by_pixel = np.argsort(np.unique(numbers, return_index=True)[1])
    rank = np.empty(len(flat), np.int32)
    rank[by_pixel] = np.arange(len(flat), dtype=np.int32)
    return together, rank[numbers], origin[by_pixel]


def _parts(spans: Spans, neck: float, min_area_px: float) -> list[Spans]:
    """The parts of one object."""
    window = spans.hull
    assert window is not None
    if window.height * window.width > MAX_PIXELS:
        log.warning("the landslide in %s is too large to be split at necks, and is kept whole", window)
        return [spans]
    if spans.lengths.sum() < 2 * max(min_area_px, 1):
        return [spans]
    mask = spans.paint(window, np.ones(len(spans), bool))
    parts = _cut(mask, neck, min_area_px)
    found = np.unique(parts[mask])
    return [spans] if len(found) == 1 else [Spans.of_mask(parts == number, window) for number in found]


def _cut(mask: BoolArray, neck: float, min_area_px: float) -> Int32Array:
    """(h, w) number of the part of each pixel of an object, 0 outside."""
    depth = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    summits: Int64Array = peak_local_max(  # type: ignore[no-untyped-call]
        depth, min_distance=2, exclude_border=False, labels=mask.astype(np.int32)
    )
    if len(summits) < 2:
        return mask.astype(np.int32)
    markers = np.zeros(mask.shape, np.int32)
    markers[tuple(summits.T)] = np.arange(1, len(summits) + 1)
    basins: Int32Array = watershed(-depth, markers, mask=mask)  # type: ignore[no-untyped-call]
    areas = np.bincount(basins.reshape(-1), minlength=len(summits) + 1).astype(float)
    heights = np.append(0.0, depth[tuple(summits.T)])
    part = _joined(*_passes(basins, depth), heights, areas, neck, min_area_px)
    return np.asarray(part[basins], np.int32)


def _passes(basins: Int32Array, depth: Float64Array) -> tuple[Int64Array, Float64Array]:
    """Pairs of basins (P, 2) that touch, and the height (P,) of the highest pass between them, the highest first."""
    pairs, heights = [], []
    for one, other in ((np.s_[:, :-1], np.s_[:, 1:]), (np.s_[:-1], np.s_[1:])):
        border = (basins[one] != basins[other]) & (basins[one] > 0) & (basins[other] > 0)
        pairs.append(np.sort(np.stack([basins[one][border], basins[other][border]], axis=1), axis=1))
        heights.append(np.minimum(depth[one][border], depth[other][border]))
    unique, place = np.unique(np.concatenate(pairs), axis=0, return_inverse=True)
    highest = np.zeros(len(unique))
    np.maximum.at(highest, place.reshape(-1), np.concatenate(heights))
    order = np.argsort(-highest, kind="stable")
    return unique[order].astype(np.int64), highest[order]


def _joined(
    pairs: Int64Array, passes: Float64Array, summits: Float64Array, areas: Float64Array, neck: float, min_area_px: float
) -> Int32Array:
    """(B,) the part that each basin belongs to; summits and areas, by basin, are those of what is joined so far."""
    part = np.arange(len(summits), dtype=np.int32)
    for (one, other), height in zip(pairs.tolist(), passes.tolist(), strict=True):
        low, high = sorted((part[one], part[other]), key=lambda k: (summits[k], k))
        if low != high and (height >= neck * summits[low] or areas[low] < min_area_px or areas[high] < min_area_px):
            part[part == low] = high
            areas[high] += areas[low]
    return part

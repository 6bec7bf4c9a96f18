"""Baselines: simple methods without knowledge of landslides."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage
from skimage.filters import threshold_otsu
from skimage.segmentation import random_walker

from geolabel.types import BoolArray, Float32Array, Float64Array, UInt8Array

SCALES = (5, 15, 45)
"""Sides in pixels of the windows of local statistics for the random forest."""

SEED = 0.5
"""Size of the ellipse around the centroid that random walkers start from, as a share of the box."""

FOREST_PIXELS = 50_000
"""Pixels of each scene that a random forest learns from."""


def excess_green(rgb: UInt8Array) -> Float32Array:
    """(H, W) chromatic excess green, (2 G - R - B) / (R + G + B), -1..2; 0 where an image is black.

    Source: Woebbecke et al. (1995), doi:10.13031/2013.27838.
    """
    red, green, blue = np.moveaxis(rgb.astype(np.float32), -1, 0)
    total = red + green + blue
    share: Float32Array = np.divide(2 * green - red - blue, total, out=np.zeros_like(total), where=total > 0)
    return share


def otsu_bare(rgb: UInt8Array, valid: BoolArray) -> BoolArray:
    """(H, W) where excess green is below Otsu's threshold over the valid pixels (Otsu 1979)."""
    green = excess_green(rgb)
    return np.asarray(valid & (green <= _otsu(green[valid])))


def otsu_bright(rgb: UInt8Array, valid: BoolArray) -> BoolArray:
    """(H, W) where the mean of the bands is above Otsu's threshold over the valid pixels (Otsu 1979)."""
    # the mask is the low side of the darkness, so that nothing of a flat image is landslide here either
    dark = -rgb.mean(axis=2, dtype=np.float32)
    return np.asarray(valid & (dark <= _otsu(dark[valid])))


def _otsu(values: Float32Array) -> float:
    """Otsu's threshold of values (N,); minus infinity without two different ones."""
    if not len(values):
        return -np.inf
    # a few almost black pixels, whose colour is noise, must not form a separate class
    kept = np.clip(values, *np.percentile(values, (1, 99)))
    if kept.min() == kept.max():
        return -np.inf
    return float(threshold_otsu(kept))  # type: ignore[no-untyped-call]


def cell_means(values: Float32Array, stride: int) -> Float32Array:
    """Mean of (H, W) over cells of `stride` pixels, those of an activation map; the last pixels repeat at the frame."""
    missing = [(0, -side % stride) for side in values.shape]
    padded = np.pad(values, missing, mode="edge")
    height, width = (side // stride for side in padded.shape)
    means: Float32Array = padded.reshape(height, stride, width, stride).mean(axis=(1, 3), dtype=np.float32)
    return means


def surround_minus_centre(values: Float32Array) -> float:
    """Mean of (H, W) outside the middle half of each side, less the mean inside: high around a centred landslide."""
    height, width = values.shape
    inside = np.zeros(values.shape, bool)
    inside[height // 4 : height - height // 4, width // 4 : width - width // 4] = True
    if inside.all():
        return 0.0
    return float(values[~inside].mean() - values[inside].mean())


def centred_ellipse(shape: Iterable[int]) -> BoolArray:
    """(H, W) an ellipse of half an image's size in its middle."""
    height, width = shape
    rows, cols = np.ogrid[:height, :width]
    y, x = (rows - (height - 1) / 2) / (height / 4), (cols - (width - 1) / 2) / (width / 4)
    return np.asarray(y**2 + x**2 <= 1)


# --- masks from a box ------------------------------------------------------------------------------------------------


def box_mask(shape: tuple[int, ...], box: Float64Array) -> BoolArray:
    """(H, W) the pixels of a half-open box x0, y0, x1, y1."""
    x0, y0, x1, y1 = (max(0, round(v)) for v in box.tolist())
    filled = np.zeros(shape[:2], bool)
    filled[y0 : max(y1, y0 + 1), x0 : max(x1, x0 + 1)] = True
    return filled


def walk(rgb: UInt8Array, box: Float64Array, point: Float64Array) -> BoolArray:
    """(H, W) pixels that random walkers from the centroid reach before those from outside the box.

    Source: Grady (2006), doi:10.1109/TPAMI.2006.233, implemented by scikit-image.
    """
    inside = box_mask(rgb.shape, box)
    if inside.all():
        return inside
    rows, cols = np.ogrid[: rgb.shape[0], : rgb.shape[1]]
    reach = SEED * (box[2:] - box[:2]) / 2
    seeds = np.where(inside, 0, 2)
    seeds[(((cols - point[0]) / reach[0]) ** 2 + ((rows - point[1]) / reach[1]) ** 2 <= 1) & inside] = 1
    if not (seeds == 1).any() or not (seeds == 0).any():
        return inside
    reached: BoolArray = random_walker(rgb / 255, seeds, mode="cg_j", prob_tol=1, channel_axis=-1) == 1
    return reached


def cut(rgb: UInt8Array, box: Float64Array) -> BoolArray:
    """(H, W) GrabCut from a box, five rounds (Rother et al. 2004). Needs OpenCV.

    Raises
    ------
    ModuleNotFoundError
        If OpenCV is not installed.
    """
    import cv2

    inside = box_mask(rgb.shape, box)
    if inside.all():
        return inside
    cv2.setRNGSeed(0)
    labels = np.where(inside, cv2.GC_PR_FGD, cv2.GC_BGD).astype(np.uint8)
    background, foreground = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.grabCut(np.ascontiguousarray(rgb), labels, (0, 0, 1, 1), background, foreground, 5, cv2.GC_INIT_WITH_MASK)
    return np.isin(labels, (cv2.GC_FGD, cv2.GC_PR_FGD))


# --- random forest ---------------------------------------------------------------------------------------------------


def _texture(rgb: UInt8Array) -> Float32Array:
    """(H * W, 3 + 6 per scale) colour, and its mean and standard deviation over windows of `SCALES`."""
    values = rgb.astype(np.float32)
    columns = [values]
    for scale in SCALES:
        mean = ndimage.uniform_filter(values, (scale, scale, 0))
        square = ndimage.uniform_filter(values**2, (scale, scale, 0))
        columns += [mean, np.sqrt(np.maximum(square - mean**2, 0))]
    stacked: Float32Array = np.concatenate(columns, axis=2).reshape(rgb.shape[0] * rgb.shape[1], -1)
    return stacked


@dataclass(frozen=True)
class Forest:
    """A random forest on colour and texture, and the threshold of its probability."""

    model: Any
    threshold: float

    @classmethod
    def fit(cls, scenes: Iterable[tuple[UInt8Array, BoolArray]]) -> Forest:
        """Fit to pixels of scenes with their truth; the threshold maximizes the IoU of out-of-bag pixels.

        Raises
        ------
        ModuleNotFoundError
            If scikit-learn is not installed.
        """
        from sklearn.ensemble import RandomForestClassifier

        rng = np.random.default_rng(0)
        values, labels = [], []
        for rgb, truth in scenes:
            chosen = rng.choice(truth.size, min(FOREST_PIXELS, truth.size), replace=False)
            values.append(_texture(rgb)[chosen])
            labels.append(truth.ravel()[chosen])
        known = np.concatenate(labels)
        model = RandomForestClassifier(60, min_samples_leaf=5, oob_score=True, random_state=0)
        model.fit(np.concatenate(values), known)
        unseen = model.oob_decision_function_[:, 1]
        return cls(model, max(np.arange(0.05, 0.96, 0.05).tolist(), key=lambda level: _iou(known, unseen >= level)))

    def find(self, rgb: UInt8Array) -> BoolArray:
        """(H, W) where the probability of a landslide reaches the threshold."""
        probability = self.model.predict_proba(_texture(rgb))[:, 1]
        found: BoolArray = (probability >= self.threshold).reshape(rgb.shape[:2])
        return found


def _iou(truth: BoolArray, found: BoolArray) -> float:
    return int(np.count_nonzero(truth & found)) / max(1, int(np.count_nonzero(truth | found)))

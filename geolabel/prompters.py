"""From activation to prompts: APSAM's contours, S2C's peaks, and the grid of everything mode.

Sources: Wang et al., "Auto-Prompting SAM for Weakly Supervised Landslide Extraction", eq. 2 to 8; Kweon and
Yoon (2024), "From SAM to CAMs", eq. 7.

Decisions that the first paper leaves open:

* The grey value must exceed the threshold (eq. 2), so 120 itself is background.
* Components are 8-connected, and holes are ignored.
* Moments are sums over pixels, as in eq. 5. Every component has a pixel, so its zeroth moment is positive and its
  centroid defined: every object has a box and a point, even a single pixel or a line.
* The centroid of a bow or a ring is outside of it and is used nevertheless, as in the paper; ``point="inside"``
  uses the pixel farthest from the edge instead.
* Boxes are half-open here and become the inclusive corners that SAM expects in the segmenter.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from scipy import ndimage
from skimage.feature import peak_local_max

from geolabel.activation import LEVELS, Activation
from geolabel.errors import OptionError
from geolabel.prompts import Prompts
from geolabel.spans import Shapes, Spans
from geolabel.tiles import Window
from geolabel.types import Float32Array, Float64Array, Int32Array

THRESHOLD = 120
"""Grey value of eq. 2, as in the paper."""


def shape_prompts(shapes: Shapes, scores: Float32Array, class_ids: Int32Array | None = None) -> Prompts:
    """One prompt for each of K objects with scores (K,): its bounding box (eq. 4) and its centroid (eq. 5 and 6)."""
    points = np.round(shapes.centroids, 6)[:, None]
    return Prompts.build(boxes=shapes.boxes, points=points, scores=scores, class_ids=class_ids)


def centroid_outside(spans: Spans, labels: Int32Array, shapes: Shapes) -> int:
    """Count the objects, `labels` (N,) of N spans, whose rounded centroid is outside the object."""
    x, y = np.rint(shapes.centroids).astype(np.int64).T
    found = spans.holding(y, x)
    return int(((found < 0) | (labels[found] != np.arange(len(x)))).sum()) if len(spans) else len(x)


@dataclass(frozen=True)
class ContourPrompter:
    """Box and centroid of every component of the thresholded activation of one image.

    Parameters
    ----------
    threshold
        Grey value 0..255 that the activation must exceed.
    point
        ``centroid`` as in eq. 6, or ``inside``: the pixel of the component farthest from its edge.
    """

    threshold: int = THRESHOLD
    point: Literal["centroid", "inside"] = "centroid"

    def __call__(self, activation: Activation) -> Prompts:
        """Prompts of every class, ordered by class, then by the component's first pixel."""
        prompts = Prompts.concatenate([self._of_class(activation, c) for c in range(len(activation.classes))])
        return replace(prompts, ids=np.arange(len(prompts), dtype=np.int64))

    def _of_class(self, activation: Activation, class_id: int) -> Prompts:
        binary = activation.grey(class_id) > self.threshold
        frame = Window(0, 0, *binary.shape)
        spans = Spans.of_mask(binary, frame)
        labels, count = spans.components(8)
        shapes = Shapes.of(spans, labels, count)
        prompts = shape_prompts(
            shapes,
            scores=np.full(count, activation.probability[class_id], np.float32),
            class_ids=np.full(count, class_id, np.int32),
        )
        if self.point == "centroid" or not count:
            return prompts
        return Prompts.build(
            boxes=prompts.boxes,
            points=_deepest(spans.paint(frame, labels + 1), count)[:, None],
            scores=prompts.scores,
            class_ids=prompts.class_ids,
        )


@dataclass(frozen=True)
class PeakPrompter:
    """One prompt per class with a point at every local peak of its activation (S2C, eq. 7).

    The points of a class ask for one mask together, since an object often has several peaks. The paper leaves the
    search to an unavailable supplement; here the maximum of a neighbourhood is a peak, also at the frame, and the
    highest peak comes first.

    Parameters
    ----------
    threshold
        Minimum activation 0..1 of a peak: the paper's tau.
    distance
        Minimum distance of two peaks, as a share of the image's smaller side; 20 of 256 pixels in the released code.
    single
        Whether only the highest peak is used, as in the paper's ablation.
    """

    threshold: float = 0.5
    distance: float = 20 / 256
    single: bool = False

    def __call__(self, activation: Activation) -> Prompts:
        """Prompts of the classes that have a peak, in the order of the classes."""
        found = [self._of_class(activation, c) for c in range(len(activation.classes))]
        prompts = Prompts.concatenate([prompt for prompt in found if prompt is not None])
        return replace(prompts, ids=np.arange(len(prompts), dtype=np.int64))

    def _of_class(self, activation: Activation, class_id: int) -> Prompts | None:
        grey = activation.grey(class_id)
        apart = max(1, round(self.distance * min(grey.shape)))
        if grey.max() == 0 or grey.max() < self.threshold * LEVELS:
            return None
        peaks = peak_local_max(  # type: ignore[no-untyped-call]
            grey, min_distance=apart, threshold_abs=self.threshold * LEVELS, exclude_border=False
        )
        if not len(peaks):  # the search finds none on a uniform map, or one equal to the threshold
            peaks = np.argwhere(grey == grey.max())[:1]
        points = peaks[: 1 if self.single else None, ::-1].astype(np.float64)
        score = np.full(1, grey.max() / LEVELS, np.float32)
        return Prompts.build(points=points[None], scores=score, class_ids=np.full(1, class_id, np.int32))


@dataclass(frozen=True)
class GridPrompter:
    """A regular grid of points over an image, independent of its content: the prompts of everything mode.

    Parameters
    ----------
    points_per_side
        Number along each axis; 32 as in segment-anything's mask generator.

    Raises
    ------
    OptionError
        If there is no point.
    """

    points_per_side: int = 32

    def __post_init__(self) -> None:
        if self.points_per_side < 1:
            raise OptionError(f"points per side {self.points_per_side}: at least one is needed")

    def __call__(self, activation: Activation) -> Prompts:
        """Points over the image of the activation, row by row."""
        _, rows, cols = activation.values.shape
        return self.over(rows * activation.stride, cols * activation.stride)

    def over(self, height: int, width: int) -> Prompts:
        """Points over an image of that size, row by row."""
        steps = (np.arange(self.points_per_side) + 0.5) / self.points_per_side
        y, x = np.meshgrid(steps * height, steps * width, indexing="ij")
        return Prompts.build(points=np.stack([x.ravel(), y.ravel()], axis=1))


def _deepest(labels: Int32Array, count: int) -> Float64Array:
    depth = ndimage.distance_transform_edt(np.pad(labels > 0, 1))[1:-1, 1:-1]
    places = ndimage.maximum_position(depth, labels, np.arange(1, count + 1))
    return np.asarray([(col, row) for row, col in places], np.float64)

"""The networks one by one: masks from true boxes, maps, and the gate, on images that need no tiling."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from geolabel.evaluation import baselines
from geolabel.evaluation.calibration import expected_calibration_error, reliability
from geolabel.evaluation.examples import Example, landslide_prompts, off_centre
from geolabel.evaluation.table import OURS, Measurement
from geolabel.masks import EDGE
from geolabel.parts import Localizer, Segmenter
from geolabel.prompts import Prompts
from geolabel.tiles import Window, window_around
from geolabel.training.localizer_objective import area_under_curve
from geolabel.training.pictures import stretch
from geolabel.types import AnyArray, BoolArray, Float32Array, Float64Array, UInt8Array

MARGIN = 1 / 8
"""Room around a box, as a share of its longer side, that a method sees of the image at least."""

PEER_SIDE = 192
"""Most pixels a side of what the peers see; a larger cut is reduced."""

Outliner = Callable[[UInt8Array, Float64Array, Float64Array], BoolArray]
"""Image (H, W, 3), box and point to mask (H, W)."""


# --- masks -----------------------------------------------------------------------------------------------------------


def mask_ious(
    examples: Iterable[Example], methods: dict[str, tuple[Outliner, int]]
) -> tuple[list[Measurement], list[dict[str, float | str]]]:
    """Ask every method for every landslide with its true box and centroid.

    Parameters
    ----------
    methods
        By name: what outlines, and the most pixels a side that it takes. A landslide that does not fit in these with a
        margin is shown reduced; its mask is judged at the image's own pixels all the same.

    Returns
    -------
    mean IoU of each method, and the IoU of every landslide under its name
    """
    ious: dict[str, list[float]] = defaultdict(list)
    cases: list[dict[str, float | str]] = []
    for example in examples:
        rgb = stretch(example.rgb)
        prompts = landslide_prompts(example.ids, example.least)
        for k, number in enumerate(prompts.ids.tolist()):
            case: dict[str, float | str] = {"name": f"{example.name}, landslide {number}"}
            for name, (outline, side) in methods.items():
                place, found = _outline(outline, side, rgb, prompts[k : k + 1])
                iou = _iou(found, example.ids == number, place)
                ious[name].append(iou)
                case[name] = round(iou, 4)
            cases.append(case)
    means = [Measurement("", name, {"mean IoU": float(np.mean(v)), "landslides": len(v)}) for name, v in ious.items()]
    return means, cases


def _outline(outline: Outliner, side: int, rgb: UInt8Array, one: Prompts) -> tuple[Window, BoolArray]:
    """Mask of one landslide in a window of the image around it."""
    x0, y0, x1, y1 = one.extents[0].tolist()
    wanted = max(side, round(max(x1 - x0, y1 - y0) * (1 + 2 * MARGIN)))
    place = window_around((y0 + y1) / 2, (x0 + x1) / 2, wanted, *rgb.shape[:2])
    scale = min(1.0, side / max(place.height, place.width))
    size = max(1, round(place.width * scale)), max(1, round(place.height * scale))
    shown = _resize(rgb[place.slices], size, Image.Resampling.BOX)
    moved = one.shift(-place.col, -place.row)
    factors = np.array([size[0] / place.width, size[1] / place.height])
    # the point is the index of a pixel: its centre moves as the pixels' edges do
    point = (moved.points[0, 0] + 0.5) * factors - 0.5
    mask = outline(shown, moved.boxes[0] * np.tile(factors, 2), point)
    full = _resize(mask.astype(np.uint8), (place.width, place.height), Image.Resampling.NEAREST)
    return place, full > 0


def _resize(image: UInt8Array, size: tuple[int, int], how: Image.Resampling) -> UInt8Array:
    if image.shape[1::-1] == size:
        return image.copy()
    return np.array(Image.fromarray(image).resize(size, how))


def _iou(found: BoolArray, truth: BoolArray, place: Window) -> float:
    inside = truth[place.slices]
    both = np.count_nonzero(found & inside)
    return both / (np.count_nonzero(found) + np.count_nonzero(truth) - both)


@dataclass(frozen=True)
class Asked:
    """A segmenter as an outliner."""

    segmenter: Segmenter

    def __call__(self, rgb: UInt8Array, box: Float64Array, point: Float64Array) -> BoolArray:
        """Mask (H, W) that answers a box and a point."""
        (masks,) = self.segmenter([rgb], [Prompts.build(box[None], point[None])])
        return np.asarray(masks.scores[0] >= EDGE)


def outliners(segmenter: Segmenter) -> dict[str, tuple[Outliner, int]]:
    """The segmenter and its peers; GrabCut only where OpenCV is installed."""
    methods: dict[str, tuple[Outliner, int]] = {
        OURS: (Asked(segmenter), segmenter.window),
        "filled box": (lambda rgb, box, _: baselines.box_mask(rgb.shape, box), PEER_SIDE),
        "random walker": (baselines.walk, PEER_SIDE),
    }
    try:
        import cv2  # noqa: F401
    except ModuleNotFoundError:
        return methods
    return methods | {"GrabCut": (lambda rgb, box, _: baselines.cut(rgb, box), PEER_SIDE)}


# --- maps ------------------------------------------------------------------------------------------------------------


def map_hits(
    examples: Iterable[Example], localizer: Localizer, index: int = 0
) -> tuple[list[Measurement], list[dict[str, float | str]]]:
    """Share of images with landslides in which the highest place of a map lies on one.

    Peers are averaged over cells of the map's stride, so that all choose among the same places; the place is the centre
    of its cell. Where several cells are highest, the share of them that lies on a landslide counts.

    Parameters
    ----------
    index
        Class of the localizer.
    """
    hits: dict[str, list[float]] = defaultdict(list)
    cases: list[dict[str, float | str]] = []
    for example in examples:
        if not example.truth.any():
            continue
        (activation,) = localizer([stretch(example.rgb)])
        stride = activation.stride
        brightness = example.rgb.mean(axis=2, dtype=np.float32)
        maps: dict[str, Float32Array] = {
            OURS: activation.values[index],
            "brightest cell": baselines.cell_means(brightness, stride),
            "lowest excess green": -baselines.cell_means(baselines.excess_green(example.rgb), stride),
        }
        case: dict[str, float | str] = {"name": example.name}
        for name, values in maps.items():
            hit = float(_at_centres(example.truth, stride)[values == values.max()].mean())
            hits[name].append(hit)
            case[name] = round(hit, 4)
        hits["random pixel"].append(float(example.truth.mean()))
        cases.append(case)
    means = [Measurement("", name, {"hits": float(np.mean(v)), "images": len(v)}) for name, v in hits.items()]
    return means, cases


def _at_centres(truth: BoolArray, stride: int) -> BoolArray:
    """Truth (H, W) at the centres of the cells, moved inside the image at its frame."""
    rows, cols = (np.minimum(np.arange(-(-n // stride)) * stride + stride // 2, n - 1) for n in truth.shape)
    return np.asarray(truth[rows[:, None], cols])


def off_centre_crops(examples: Iterable[Example]) -> Iterable[Example]:
    """Yield those with landslides, cut so that these lie anywhere."""
    return (off_centre(example) for example in examples if example.truth.any())


# --- the gate --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GateScores:
    """What each method says of N images, high where a landslide is likely, and which show one."""

    said: dict[str, Float64Array]
    truth: BoolArray

    def measurements(self) -> list[Measurement]:
        """Area under the ROC curve of each; for the gate also how far its probabilities are off."""
        counts = {"images": len(self.truth), "with landslides": int(self.truth.sum())}
        rows = [
            Measurement("", name, {"ROC AUC": area_under_curve(values, self.truth), **counts})
            for name, values in self.said.items()
        ]
        error = expected_calibration_error(reliability(self.said[OURS], self.truth))
        rows[0] = replace(rows[0], figures=rows[0].figures | {"calibration error": error})
        return rows


def gate_scores(examples: Iterable[Example], ask: Callable[[Example], float]) -> GateScores:
    """Ask the gate and its peers whether images at their own size show a landslide.

    The peers are what a data set gives away: its landslide chips are small, bare, and barest in the middle.

    Parameters
    ----------
    ask
        Probability that an image shows a landslide.
    """
    said: dict[str, list[float]] = defaultdict(list)
    truth = []
    for example in examples:
        green = baselines.excess_green(example.rgb)
        said[OURS].append(ask(example))
        said["small image"].append(-min(example.rgb.shape[:2]))
        said["surround minus centre in excess green"].append(baselines.surround_minus_centre(green))
        said["low excess green"].append(-float(green.mean()))
        truth.append(bool(example.truth.any()))
    arrays: dict[str, AnyArray] = {name: np.asarray(values, float) for name, values in said.items()}
    return GateScores(arrays, np.asarray(truth, bool))

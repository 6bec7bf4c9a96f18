"""Training of the bundled localizer with masks: labels of windows, a dense loss on the map, land cover of cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage, optimize, special
from torch import Tensor, nn
from torch.nn import functional

from geolabel.activation import LEVELS
from geolabel.models.nets.localizer import PyramidLocalizer
from geolabel.synthetic import CLASSES
from geolabel.synthetic.cover import LANDSLIDE
from geolabel.training.bundled_data import UNKNOWN, Picture
from geolabel.training.losses import cover_loss, dice_loss, gate_loss, window_logits
from geolabel.training.samples import Changes, Sampling, draw, generator, in_cells, lay_together, to_tensor
from geolabel.types import BoolArray, Float32Array, Float64Array, UInt8Array

WINDOW = 128
"""Side in pixels of the windows with image-level labels. In larger ones, small landslides have no effect."""

LEAST = 0.02
"""Minimum share of a window covered by a landslide for a positive label."""

GATE = 32
"""Side in pixels of the gate's windows after training. The logit of a window is a mean of the map, and in a small
window the surroundings of a landslide do not dilute it."""

CENTRE = 4.0
"""Raw value at the edge of a landslide; other ground is then near 0, landslides near twice this."""

SMALL = 2500
"""Area in pixels below which a landslide has extra weight."""

MOST_WEIGHT = 3.0

DROPPED = 0.1
"""Dropout rate of feature channels, so that the map does not rely on any single one.

Source: Tompson et al. (2015), "Efficient Object Localization Using Convolutional Networks"."""

STRENGTH = 0.6
"""Strength of changes in colour and sharpness. Texture distinguishes landslides from other bare ground, and strong
changes hide it."""

OPERATING_POINT = 120
"""Grey-value threshold of eq. 2 of APSAM."""


class LocalizerLosses(nn.Module):
    """The localizer and its losses.

    The map has two purposes. Its mean over a window is the class logit: the gate. Its values are the evidence for
    prompts. A classifier alone responds to anything correlated with landslides, such as the forest around them, so a
    dense loss ties the map to landslides. A gain lets the two differ in scale; `absorb_gain` removes it.

    An auxiliary head, dropped after training, predicts the land cover of every cell: naming both helps to distinguish a
    quarry from a landslide.
    """

    def __init__(self, network: PyramidLocalizer) -> None:
        super().__init__()
        self.network = network
        self.log_gain = nn.Parameter(torch.tensor(1.0))
        self.cover = nn.Conv2d(network.head.in_channels, len(CLASSES), 1)

    def forward(self, images: Tensor, slides: Tensor, classes: Tensor, weights: Tensor) -> dict[str, Tensor]:
        """Losses of a batch.

        Parameters
        ----------
        images : (N, 3, S, S)
            Normalised.
        slides : (N, 1, S, S)
            1 on landslides, else 0.
        classes : (N, S / stride, S / stride)
            Land cover in the map's cells, `UNKNOWN` for unknown cover other than landslides.
        weights : (N, 1, S / stride, S / stride)
            Weights of the map's cells.
        """
        features = functional.dropout2d(self.network.features(images), DROPPED, training=self.training)
        maps = self.network.head(features).float()
        cover = cover_loss(self.cover(features).float(), classes, LANDSLIDE, UNKNOWN)
        coverage = functional.avg_pool2d(slides, self.network.stride)
        cells = WINDOW // self.network.stride
        logits = window_logits(maps * self.log_gain.exp(), self.network.bias, cells, cells // 2)
        share = functional.avg_pool2d(coverage, cells, cells // 2)
        logit = maps - CENTRE
        dense = functional.binary_cross_entropy_with_logits(
            logit, coverage, weight=weights, pos_weight=maps.new_tensor(2.0)
        )
        # Over the whole batch: for most samples without a landslide, the Dice overlap would be 0 or 1.
        overlap = 0.5 * dice_loss(logit.flatten(0, 2), coverage.flatten(0, 2))
        gate = 0.3 * gate_loss(logits, share, LEAST)
        return {"dense": dense, "overlap": overlap, "gate": gate, "cover": 0.5 * cover}

    @torch.no_grad()
    def absorb_gain(self) -> float:
        """Fold the gain into the head, so that the class logit is the mean of the map; return the gain."""
        gain = self.log_gain.exp().item()
        self.network.head.weight *= gain
        self.log_gain.zero_()
        return gain


class LocalizerObjective:
    """Trains on samples of pictures, selects on whole pictures.

    Parameters
    ----------
    changes
        Changes in the samples' colours.
    laid
        Share of samples that are partly covered by another one.
    judged
        Pictures for evaluation and calibration; by default those of the selection.
    """

    def __init__(
        self,
        network: PyramidLocalizer,
        sampling: Sampling,
        *,
        changes: Changes,
        laid: float = 0.0,
        judged: Judged | None = None,
    ) -> None:
        # Convolutions are fastest in channels-last layout; the first one converts its input.
        self.module = LocalizerLosses(network).to(memory_format=torch.channels_last)
        self._sampling, self._changes, self._laid = sampling, changes, laid
        self._judged = judged or Judged([sampling.selection])

    def batch(self, step: int) -> dict[str, Tensor]:
        """Samples of one step."""
        asked = self._sampling
        rng = generator(asked.seed, 1, step)
        drawn = [draw(asked.pictures, asked.size, rng, on_slide=0.8, changes=self._changes) for _ in range(asked.batch)]
        samples = lay_together(drawn, rng, self._laid)
        slides = torch.from_numpy(np.stack([sample.slides for sample in samples]))[:, None].float()
        classes = torch.from_numpy(np.stack([in_cells(s.classes, PyramidLocalizer.stride) for s in samples])).long()
        weights = torch.from_numpy(np.stack([weigh_slides(s.slides, PyramidLocalizer.stride) for s in samples]))[
            :, None
        ]
        images = asked.to_tensor([s.rgb for s in samples])
        return {"images": images, "slides": slides, "classes": classes, "weights": weights}

    def figures(self, module: nn.Module) -> dict[str, float]:
        """Result of `measure` on the selection; the score combines the map's F1 and, by a third, the gate's AUC."""
        assert isinstance(module, LocalizerLosses)
        asked = self._sampling
        found = measure(module.network, self._judged, asked.mean, asked.std, gain=module.log_gain.exp().item())
        return {"score": found["map/f1"] + float(np.nan_to_num(found["gate/auc"])) / 3, **found}


def weigh_slides(slides: UInt8Array, stride: int) -> Float32Array:
    """Weights of the cells of a map: higher on small landslides, which hardly affect a mean over pixels.

    Parameters
    ----------
    slides : (H, W)
        1 on landslides.

    Returns
    -------
    (H / stride, W / stride)
        1, or on landslides smaller than `SMALL` px the square root of the ratio, at most `MOST_WEIGHT`.
    """
    labels, _ = ndimage.label(slides)
    areas = np.bincount(labels.ravel()).astype(np.float32)
    weights = np.clip(np.sqrt(SMALL / np.maximum(areas, 1)), 1, MOST_WEIGHT)
    weights[0] = 1
    of_pixels = weights[labels].reshape(slides.shape[0] // stride, stride, -1, stride)
    cells: Float32Array = of_pixels.max(axis=(1, 3)).astype(np.float32)
    return cells


@dataclass(frozen=True)
class Judged:
    """Sets of pictures for evaluation and calibration of a localizer, at the resolution of extraction."""

    outlined: Sequence[Sequence[Picture]]
    """With landslides: a set for each kind of image, with equal weights."""
    without: Sequence[Sequence[Picture]] = ()
    """Without landslides."""


@torch.inference_mode()
def measure(
    network: PyramidLocalizer, judged: Judged, mean: Sequence[float], std: Sequence[float], *, gain: float = 1.0
) -> dict[str, float]:
    """Evaluate how well the map matches landslides, and the gate separates windows with and without them.

    Returns
    -------
    ``map/f1`` at ``map/threshold``, the raw value with the highest mean F1 over the sets, see `best_threshold`;
    ``map/hit``, the share of windows of `WINDOW` pixels with landslides whose maximum is on one; ``gate/auc`` of
    pictures, by the highest class logit of their windows of `GATE` pixels, those with landslides against those without;
    ``gate/scale`` and ``gate/shift``, which calibrate that logit for half of the pictures showing a landslide, with
    equal weights of the sets.
    """
    network.eval()
    outlined = [_Cells.of(network, pictures, mean, std, gain) for pictures in judged.outlined]
    without = [_Cells.of(network, pictures, mean, std, gain) for pictures in judged.without]
    threshold, f1 = best_threshold([(c.values, c.truth) for c in outlined], [c.values for c in without])
    logits = np.concatenate([cells.peaks for cells in (*outlined, *without)])
    labels = np.concatenate([cells.shows for cells in (*outlined, *without)])
    weights = np.concatenate([cells.weights() for cells in (*outlined, *without)])
    for label in (False, True):
        weights[labels == label] /= max(weights[labels == label].sum(), 1e-9)
    scale, shift = calibrate(logits, labels, weights)
    return {
        "map/f1": f1,
        "map/threshold": threshold,
        "map/hit": float(np.concatenate([c.hits for c in outlined]).mean()),
        "gate/auc": area_under_curve(logits, labels),
        "gate/scale": scale,
        "gate/shift": shift,
    }


@dataclass(frozen=True)
class _Cells:
    """Outputs of a localizer on the pictures of a set."""

    values: Float64Array
    """(N,) raw values of all cells."""
    truth: BoolArray
    """(N,) whether a landslide covers half of the cell."""
    peaks: Float64Array
    """(P,) highest class logit of the windows of `GATE` pixels of each picture."""
    shows: BoolArray
    """(P,) whether the picture shows a landslide."""
    hits: BoolArray
    """(V,) for windows of `WINDOW` pixels with landslides: whether the maximum is on one."""

    @classmethod
    def of(
        cls,
        network: PyramidLocalizer,
        pictures: Sequence[Picture],
        mean: Sequence[float],
        std: Sequence[float],
        gain: float,
    ) -> _Cells:
        parts = [_look(network, picture, mean, std, gain) for picture in pictures]
        return cls(*(np.concatenate(layers) for layers in zip(*parts, strict=True)))

    def weights(self) -> Float64Array:
        """(P,) weights of the pictures; those with landslides sum to 1, as do the others."""
        counts = np.bincount(self.shows, minlength=2)
        weights: Float64Array = 1 / counts[self.shows.astype(int)]
        return weights


def _look(
    network: PyramidLocalizer, picture: Picture, mean: Sequence[float], std: Sequence[float], gain: float
) -> tuple[Float64Array, BoolArray, Float64Array, Float64Array, BoolArray]:
    # The fields of `_Cells`, for one picture.
    cells, gate = WINDOW // network.stride, GATE // network.stride
    missing = [(0, -n % network.multiple) for n in picture.slides.shape]
    rgb = np.pad(picture.rgb, (*missing, (0, 0)), mode="edge")
    maps = network(to_tensor([rgb], mean, std).to(network.bias.device)).cpu() * gain
    height, width = (n // network.stride for n in picture.slides.shape)
    maps = maps[..., :height, :width]
    slides = torch.from_numpy(picture.slides)[None, None].float()
    coverage = functional.avg_pool2d(slides, network.stride)
    logits = window_logits(maps, network.bias.cpu(), min(gate, height, width), gate // 2)
    hits = torch.zeros(0, dtype=torch.bool)
    if min(height, width) >= cells:
        held = functional.unfold(coverage, cells, stride=cells // 2)
        peak = functional.unfold(maps, cells, stride=cells // 2).argmax(dim=1, keepdim=True)
        hits = (held.gather(1, peak) > 0).flatten()[held.mean(dim=1).flatten() >= LEAST]
    return (
        maps.flatten().double().numpy(),
        (coverage.flatten() >= 0.5).numpy(),
        logits.max().double().reshape(1).numpy(),
        np.array([picture.slides.any()]),
        hits.numpy(),
    )


PREVALENCE = 0.05
"""Assumed share of landslide in a scene. Sets of landslide images have many times more, and a threshold chosen on them
would cause too many false alarms."""


def best_threshold(
    outlined: Sequence[tuple[Float64Array, BoolArray]], without: Sequence[Float64Array] = ()
) -> tuple[float, float]:
    """Positive threshold with the highest mean F1 over several sets, and that mean.

    F1 is computed for a scene with a share `PREVALENCE` of landslides: recall is that of the set, and the false alarm
    rate is the mean of the set's own and that of the sets without landslides.

    Parameters
    ----------
    outlined
        Values (N,) and truth (N,) of each set with landslides.
    without
        Values (N,) of each set without.
    """
    slides = [np.sort(values[truth]) for values, truth in outlined]
    ground = [np.sort(values[~truth]) for values, truth in outlined]
    other = [np.sort(values) for values in without]
    levels = np.unique(np.concatenate(slides))
    levels = levels[levels > 0]
    if not len(levels):
        return 1e-3, 0.0
    levels = levels[:: max(1, len(levels) // 2000)]

    def above(values: Float64Array) -> Float64Array:
        share: Float64Array = 1 - np.searchsorted(values, levels, side="left") / max(1, len(values))
        return share

    elsewhere = np.mean([above(values) for values in other], axis=0) if other else None
    scores = []
    for own, around in zip(map(above, slides), map(above, ground), strict=True):
        false = around if elsewhere is None else (around + elsewhere) / 2
        taken = PREVALENCE * own + (1 - PREVALENCE) * false
        scores.append(2 * PREVALENCE * own / (taken + PREVALENCE))
    mean = np.mean(scores, axis=0)
    best = int(mean.argmax())
    return float(levels[best]), float(mean[best])


def area_under_curve(values: Float64Array, truth: BoolArray) -> float:
    """Area under the ROC curve of values (N,): how often a positive ranks above a negative, ties counting half.

    NaN without either.
    """
    positive, negative = int(truth.sum()), int((~truth).sum())
    if not positive or not negative:
        return float("nan")
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    return float((ranks[truth].sum() - positive * (positive + 1) / 2) / (positive * negative))


def calibrate(logits: Float64Array, truth: BoolArray, weights: Float64Array | None = None) -> tuple[float, float]:
    """Scale and shift that make ``sigmoid(scale * logit + shift)`` of logits (N,) a probability; 1, 0 for one label.

    Weights (N,) are equal by default.

    Source: Platt (1999), "Probabilistic Outputs for Support Vector Machines".
    """
    if truth.all() or not truth.any():
        return 1.0, 0.0

    share = np.full(len(logits), 1 / len(logits)) if weights is None else weights / weights.sum()

    def loss(parameters: Float64Array) -> tuple[float, Float64Array]:
        scaled = np.exp(parameters[0]) * logits  # optimises the logarithm of the scale, which keeps it positive
        margin = scaled + parameters[1]
        excess = special.expit(margin) - truth
        value = (share * (np.logaddexp(0, margin) - margin * truth)).sum()
        return float(value), np.array([(share * excess * scaled).sum(), (share * excess).sum()])

    log_scale, shift = optimize.minimize(loss, np.zeros(2), jac=True, method="BFGS").x
    return float(np.exp(log_scale)), float(shift)


@torch.no_grad()
def settle(losses: LocalizerLosses, figures: dict[str, float]) -> float:
    """Fold gain and calibration into head and bias; return the raw value of activation 1."""
    network = losses.network
    losses.absorb_gain()
    network.head.weight *= figures["gate/scale"]
    network.bias.mul_(figures["gate/scale"]).add_(figures["gate/shift"])
    return figures["map/threshold"] * figures["gate/scale"] * LEVELS / OPERATING_POINT

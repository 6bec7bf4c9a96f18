"""Training of the bundled localizer by masks: labels of windows, the map held to the slide, land cover of cells."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy import optimize, special
from torch import Tensor, nn
from torch.nn import functional

from geolabel.activation import LEVELS
from geolabel.networks.localizer import PyramidLocalizer
from geolabel.synthetic import CLASSES
from geolabel.synthetic.cover import LANDSLIDE
from geolabel.trainers.losses import cover_loss, gate_loss, window_logits
from geolabel.trainers.pictures import UNKNOWN, Picture
from geolabel.trainers.samples import Changes, Sampling, draw, generator, in_cells, lay_together, to_tensor
from geolabel.types import BoolArray, Float64Array

WINDOW = 128
"""Side in pixels of the windows whose image-level label is learned. In larger ones a small slide drowns."""

LEAST = 0.02
"""Share of a window that a slide must cover to label it."""

GATE = 32
"""Side in pixels of the windows that the gate looks at once it is trained. The logit of any window is a mean of the
map, and that of a small one is not drowned by what lies around a slide."""

MOST = 0.5
"""Share of such a window that a slide must cover: the class probability is that of mostly landslide."""

CENTRE = 4.0
"""Raw value at the edge of a slide; ground without slides then lies near 0, slides near twice this."""

STRENGTH = 0.6
"""Of the changes in colour and sharpness. Slides differ from other bare ground by texture, which strong ones hide."""

OPERATING_POINT = 120
"""Grey value at which eq. 2 of APSAM cuts the activation."""


class LocalizerLosses(nn.Module):
    """The localizer and its losses.

    The map serves two ends. Its mean over a window is the class logit: the gate. Its values are the evidence that
    prompts are cut from. A classifier left alone puts its evidence on whatever comes with slides, such as the forest
    around them, so a dense loss holds it to the slide. One gain lets the two differ in scale; `absorb_gain` ends that.

    A head that is thrown away after training reads the land cover of every cell from the features: a quarry is told
    from a slide sooner by one who has to name both.
    """

    def __init__(self, network: PyramidLocalizer) -> None:
        super().__init__()
        self.network = network
        self.log_gain = nn.Parameter(torch.tensor(1.0))
        self.cover = nn.Conv2d(network.head.in_channels, len(CLASSES), 1)

    def forward(self, images: Tensor, slides: Tensor, classes: Tensor) -> dict[str, Tensor]:
        """Losses of a batch.

        Parameters
        ----------
        images : (N, 3, S, S)
            Normalised.
        slides : (N, 1, S, S)
            1 on landslides, else 0.
        classes : (N, S / stride, S / stride)
            Land cover in the map's cells, `UNKNOWN` where it is only known to be no landslide.
        """
        features = self.network.features(images)
        maps = self.network.head(features).float()
        cover = cover_loss(self.cover(features).float(), classes, LANDSLIDE, UNKNOWN)
        coverage = functional.avg_pool2d(slides, self.network.stride)
        cells = WINDOW // self.network.stride
        logits = window_logits(maps * self.log_gain.exp(), self.network.bias, cells, cells // 2)
        share = functional.avg_pool2d(coverage, cells, cells // 2)
        dense = functional.binary_cross_entropy_with_logits(maps - CENTRE, coverage, pos_weight=maps.new_tensor(2.0))
        return {"dense": dense, "gate": 0.3 * gate_loss(logits, share, LEAST), "cover": 0.5 * cover}

    @torch.no_grad()
    def absorb_gain(self) -> float:
        """Fold the gain into the head, so that the class logit is the mean of the map itself; return the gain."""
        gain = self.log_gain.exp().item()
        self.network.head.weight *= gain
        self.log_gain.zero_()
        return gain


class LocalizerObjective:
    """Trains on samples of pictures, selects on whole pictures.

    Parameters
    ----------
    changes
        In the samples' colours.
    laid
        Share of samples over which part of another is laid.
    """

    def __init__(self, network: PyramidLocalizer, sampling: Sampling, *, changes: Changes, laid: float = 0.0) -> None:
        self.module = LocalizerLosses(network)
        self._sampling, self._changes, self._laid = sampling, changes, laid

    def batch(self, step: int) -> dict[str, Tensor]:
        """Samples of one step."""
        asked = self._sampling
        rng = generator(asked.seed, 1, step)
        drawn = [draw(asked.pictures, asked.size, rng, on_slide=0.8, changes=self._changes) for _ in range(asked.batch)]
        samples = lay_together(drawn, rng, self._laid)
        slides = torch.from_numpy(np.stack([sample.slides for sample in samples]))[:, None].float()
        classes = torch.from_numpy(np.stack([in_cells(s.classes, PyramidLocalizer.stride) for s in samples])).long()
        return {"images": asked.to_tensor([s.rgb for s in samples]), "slides": slides, "classes": classes}

    def figures(self, module: nn.Module) -> dict[str, float]:
        """Figures of `measure` on the selection; the score is the map's F1 and, for a third, the gate's AUC."""
        assert isinstance(module, LocalizerLosses)
        asked = self._sampling
        found = measure(module.network, asked.selection, asked.mean, asked.std, gain=module.log_gain.exp().item())
        return {"score": found["map/f1"] + float(np.nan_to_num(found["gate/auc"])) / 3, **found}


@torch.inference_mode()
def measure(
    network: PyramidLocalizer,
    pictures: Sequence[Picture],
    mean: Sequence[float],
    std: Sequence[float],
    *,
    gain: float = 1.0,
) -> dict[str, float]:
    """How well the map lies on the slides, and the gate tells windows with slides from windows without.

    Returns
    -------
    ``map/f1`` at ``map/threshold``, the raw value of highest F1 over all cells; ``map/hit``, the share of windows of
    `WINDOW` pixels with slides in which the maximum lies on one; ``gate/auc`` of windows of `GATE` pixels, those mostly
    slide against those without; ``gate/scale`` and ``gate/shift``, which make their class logit a calibrated one.
    """
    network.eval()
    device = network.bias.device
    values, truths, logits, shares, hits = [], [], [], [], []
    cells, gate = WINDOW // network.stride, GATE // network.stride
    for picture in pictures:
        height, width = (n // network.multiple * network.multiple for n in picture.slides.shape)
        maps = network(to_tensor([picture.rgb[:height, :width]], mean, std).to(device)).cpu() * gain
        slides = torch.from_numpy(picture.slides[:height, :width])[None, None].float()
        coverage = functional.avg_pool2d(slides, network.stride)
        values.append(maps.flatten())
        truths.append(coverage.flatten() >= 0.5)
        logits.append(window_logits(maps, network.bias.cpu(), gate, gate // 2).flatten())
        shares.append(functional.avg_pool2d(coverage, gate, gate // 2).flatten())
        held = functional.unfold(coverage, cells, stride=cells // 2)
        peak = functional.unfold(maps, cells, stride=cells // 2).argmax(dim=1, keepdim=True)
        hits.append((held.gather(1, peak) > 0).flatten()[held.mean(dim=1).flatten() >= LEAST])
    logit, share = torch.cat(logits).double().numpy(), torch.cat(shares).numpy()
    told = (share >= MOST) | (share == 0)
    hit = torch.cat(hits).numpy()
    threshold, f1 = best_threshold(torch.cat(values).double().numpy(), torch.cat(truths).numpy())
    scale, shift = calibrate(logit[told], share[told] >= MOST)
    return {
        "map/f1": f1,
        "map/threshold": threshold,
        "map/hit": float(hit.mean()) if len(hit) else float("nan"),
        "gate/auc": area_under_curve(logit[told], share[told] >= MOST),
        "gate/scale": scale,
        "gate/shift": shift,
    }


def best_threshold(values: Float64Array, truth: BoolArray) -> tuple[float, float]:
    """Positive value above which `values` (N,) agree best with a boolean `truth` (N,), and the F1 they reach there."""
    order = np.argsort(-values, kind="stable")
    hits = np.cumsum(truth[order])
    f1 = 2 * hits / (np.arange(1, len(order) + 1) + max(1, truth.sum()))
    f1[values[order] <= 0] = 0
    best = int(f1.argmax())
    return max(float(values[order[best]]), 1e-3), float(f1[best])


def area_under_curve(values: Float64Array, truth: BoolArray) -> float:
    """Area under the ROC curve of values (N,): how often a positive ranks above a negative, a tie being half of once.

    NaN without either.
    """
    positive, negative = int(truth.sum()), int((~truth).sum())
    if not positive or not negative:
        return float("nan")
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    return float((ranks[truth].sum() - positive * (positive + 1) / 2) / (positive * negative))


def calibrate(logits: Float64Array, truth: BoolArray) -> tuple[float, float]:
    """Scale and shift that make ``sigmoid(scale * logit + shift)`` of logits (N,) a probability; 1, 0 for one label.

    Source: Platt (1999), "Probabilistic Outputs for Support Vector Machines".
    """
    if truth.all() or not truth.any():
        return 1.0, 0.0

    def loss(parameters: Float64Array) -> tuple[float, Float64Array]:
        scaled = np.exp(parameters[0]) * logits  # the logarithm of the scale is sought: it stays positive
        margin = scaled + parameters[1]
        excess = special.expit(margin) - truth
        value = np.logaddexp(0, margin).mean() - (margin * truth).mean()
        return float(value), np.array([(excess * scaled).mean(), excess.mean()])

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

"""Image-level labels: the objective of a plain classifier, which S2C and CISM extend.

Each module holds the network and returns losses by name; each objective makes the batches of its module. Results of a
segmenter are passed in, so nothing here reads files.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import optimize, special
from torch import Tensor, nn
from torch.nn import functional

from geolabel.activation import local_probability
from geolabel.chips import Chips, ChipSubset
from geolabel.errors import TrainingError
from geolabel.models.nets.classifier import Activating, class_logits
from geolabel.training.localizer_objective import area_under_curve
from geolabel.training.samples import Cropping, epoch_indices, generator, take_crop, to_tensor
from geolabel.types import Float32Array, Float64Array, Int32Array

Segments = Callable[[int], Int32Array]
"""(H, W) numbers of the segments of a chip, from 1; 0 outside."""


@dataclass(frozen=True)
class Learning:
    """Inputs of all methods besides the chips."""

    cropping: Cropping
    batch: int
    """Crops per step."""
    mean: Sequence[float]
    std: Sequence[float]
    seed: int = 0
    judged: int = 128
    """Maximum number of chips for selection."""
    frozen_norm: bool = False
    """Whether batch normalisation keeps its statistics, as in released code of these methods."""

    def epoch_steps(self, count: int) -> int:
        """Steps of an epoch over `count` chips."""
        return -(-count // self.batch)


class ChipLosses(nn.Module):
    """A network and the loss of its image-level labels; base class of the other methods.

    A loss that is not finite ends the training with an error that names the chips.
    """

    def __init__(self, network: nn.Module, names: Sequence[str], *, frozen_norm: bool = False) -> None:
        super().__init__()
        self.network: Any = network
        self._names = tuple(names)
        self._frozen_norm = frozen_norm

    def forward(self, index: Tensor, **batch: Tensor) -> dict[str, Tensor]:
        """Losses of crops from the chips (N,) `index`.

        Raises
        ------
        TrainingError
            If one is not finite.
        """
        losses = self.losses(**batch)
        for name, loss in losses.items():
            if not torch.isfinite(loss):
                chips = ", ".join(dict.fromkeys(self._names[i] for i in index.flatten().tolist()))
                raise TrainingError(
                    f"the {name} loss is {loss.item()} on the chips {chips}: look at these, or lower the learning rate"
                )
        return losses

    def losses(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Binary cross-entropy of every class (S2C, eq. 4) of normalised crops (N, 3, S, S) with labels (N, C)."""
        return {"classification": self.classification(self.network(images), labels)}

    @property
    def localizer(self) -> Any:
        """The network to evaluate, and to keep after the training."""
        return self.network

    def logits(self, maps: Tensor) -> Tensor:
        """Logits (N, C) of whole crops from raw maps (N, C, h, w), with the network's pooling."""
        return class_logits(maps, self.network.bias, self.network.sharpness)

    def classification(self, maps: Tensor, labels: Tensor) -> Tensor:
        """Binary cross-entropy of labels (N, C) from raw maps (N, C, h, w)."""
        return functional.binary_cross_entropy_with_logits(self.logits(maps), labels)

    def train(self, mode: bool = True) -> ChipLosses:
        """Switch to training mode, except frozen normalisation."""
        super().train(mode)
        if mode and self._frozen_norm:
            for module in self.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        return self


class ChipObjective:
    """Batches of crops with the labels of their chips, and figures on whole held-out chips.

    A crop is assumed to show what its chip shows, which is sometimes wrong for chips much larger than a crop, as in all
    trainings of this kind.
    """

    def __init__(self, losses: ChipLosses, learn: Chips, select: Chips, learning: Learning) -> None:
        self.module = losses
        self.learning = learning
        self._learn = learn
        self._select = _evenly(select, learning.judged)

    def batch(self, step: int) -> dict[str, Tensor]:
        """Crops of one step."""
        rng = generator(self.learning.seed, 1, step)
        index = epoch_indices(len(self._learn), self.learning.batch, step, self.learning.seed)
        crops = [take_crop(self._learn.rgb(int(i)), self.learning.cropping, rng).rgb for i in index]
        return self.tensors(crops, index)

    def tensors(self, crops: Sequence[Any], index: Int32Array) -> dict[str, Tensor]:
        """Crops and labels as tensors."""
        return {
            "index": torch.from_numpy(index),
            "images": to_tensor(crops, self.learning.mean, self.learning.std),
            "labels": torch.from_numpy(self._learn.labels[index]).float(),
        }

    def figures(self, module: nn.Module) -> dict[str, float]:
        """Mean AUC and accuracy of image-level labels over the classes; weights are selected by AUC."""
        assert isinstance(module, ChipLosses)
        window = self.learning.cropping.size
        chips, network = self._select, module.localizer
        answers = [probabilities(network, chips.rgb(k), window, self.learning) for k in range(len(chips))]
        probability, labels = np.stack(answers), chips.labels
        areas = [area_under_curve(p.astype(np.float64), t) for p, t in zip(probability.T, labels.T, strict=True)]
        finite = [area for area in areas if np.isfinite(area)]
        auc = float(np.mean(finite)) if finite else 0.5
        return {"score": auc, "accuracy": float(((probability > 0.5) == labels).mean())}


def _evenly(chips: Chips, count: int) -> Chips:
    # Chips are often sorted by class, and every class must be evaluated.
    order = np.argsort(~chips.labels.any(axis=1), kind="stable")
    at = np.unique(np.linspace(0, len(chips) - 1, min(count, len(chips))).astype(int))
    return ChipSubset(chips, np.sort(order[at]))


@torch.inference_mode()
def raw_maps(network: Activating, rgb: Any, learning: Learning) -> Float32Array:
    """(C, h, w) raw maps of a whole chip (H, W, 3), at the middle of the training's zooms."""
    pixels = to_tensor([rgb], learning.mean, learning.std).to(network.bias.device)
    zoom, multiple = learning.cropping.zoom, network.multiple
    sides = [max(1, round(n * zoom / multiple)) * multiple for n in rgb.shape[:2]]
    scaled = functional.interpolate(pixels, sides, mode="bilinear", align_corners=False, antialias=True)
    maps: Float32Array = network(scaled)[0].float().cpu().numpy()
    return maps


def probabilities(network: Activating, rgb: Any, window: int, learning: Learning) -> Float32Array:
    """(C,) maximum probability of each class in any window of the training's size."""
    maps = raw_maps(network, rgb, learning)
    bias = network.bias.detach().float().cpu().numpy()
    found = local_probability(maps, bias, max(1, window // network.stride), network.sharpness)
    largest: Float32Array = found.max(axis=(1, 2))
    return largest


@torch.no_grad()
def fit_bias(network: Activating, chips: Chips, learning: Learning) -> None:
    """Set the bias of every class so that the expected number of chips that show it is correct.

    For pretrained weights: their bias may suit windows filled by a class. Training would raise the whole map long
    before it has moved such a bias to the value that whole chips need, and a map that is positive everywhere has no
    contours. The map itself is unchanged.
    """
    some = _evenly(chips, learning.judged)
    without, answers = torch.zeros(network.head.out_channels), []
    for k in range(len(some)):
        maps = torch.from_numpy(raw_maps(network, some.rgb(k), learning))
        answers.append(class_logits(maps[None].double(), without, network.sharpness)[0].numpy())
    for c, (means, shows) in enumerate(zip(np.stack(answers).T, some.labels.T, strict=True)):
        if shows.any() and not shows.all():  # a class shown by all or none of the sample keeps its bias
            network.bias[c] = _bias_of(means, float(shows.mean()))


def _bias_of(means: Float64Array, share: float) -> float:
    # The expected share grows with the bias: it is too small if the largest logit alone gives the wanted share, and too
    # large if the smallest does.
    wanted = special.logit(share)
    ends = wanted - means.max(), wanted - means.min()
    bias: float = optimize.brentq(lambda bias: special.expit(means + bias).mean() - share, ends[0] - 1, ends[1] + 1)
    return bias


def activation_constant(network: Activating, chips: Chips, learning: Learning) -> float:
    """Raw value for activation 1 on scenes: the median peak of the classes that chips show.

    Without pixel labels there is no operating point; this scales a typical peak like the maximum of a chip.

    Raises
    ------
    TrainingError
        If the median peak is not positive, as after too little training.
    """
    some = _evenly(chips, learning.judged)
    peaks = [
        float(raw_maps(network, some.rgb(k), learning)[c].max())
        for k in range(len(some))
        for c in np.flatnonzero(some.labels[k])
    ]
    constant = float(np.median(peaks)) if peaks else 0.0
    if not constant > 0:
        raise TrainingError(f"the map's median peak is {constant:.3g} but must be positive: train for longer")
    return constant

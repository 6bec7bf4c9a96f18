"""The layers after the pyramid, fitted to reviewed cells.

Source: Wortsman et al. (2022), "Robust fine-tuning of zero-shot models": the mean of old and new weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from geolabel.adaptation.levels import Cells
from geolabel.devices import forward
from geolabel.models.nets.localizer import PyramidLocalizer
from geolabel.training.losses import dice_loss
from geolabel.types import Float32Array

STEPS, CELLS, RATE = 150, 2048, 2e-3
"""Steps, cells of the map per step, highest learning rate."""

PULL = 1e-2
"""Weight of the squared distance from the initial weights."""

SHARE = 0.5
"""Weight of the trained layers in their mean with the initial ones. The trained ones alone lose more on ground that
nobody reviewed than they gain."""

POSITIVE = 2.0
"""Weight of a cell of landslide relative to one of other ground."""


@dataclass(frozen=True)
class Head:
    """Layers after the pyramid, as plain tensors: ``theta^T relu(M x + b)`` of the features x of both octaves."""

    mix: Tensor
    """M, (D, F)"""
    shift: Tensor
    """b, (D,)"""
    theta: Tensor
    """(D,)"""

    @classmethod
    def of(cls, network: nn.Module) -> Head | None:
        """The layers of a network of one class; None if it has others after the pyramid, or no pyramid."""
        if not isinstance(network, PyramidLocalizer) or network.projected is not None:
            return None
        mix = network.mix
        if mix is None or mix.bias is None:
            return None
        tensors = (mix.weight[:, :, 0, 0], mix.bias, network.head.weight[0, :, 0, 0])
        return cls(*(tensor.detach().clone() for tensor in tensors))

    def __call__(self, features: Tensor) -> Tensor:
        """Raw values (...) of features (..., F)."""
        return functional.relu(features @ self.mix.T + self.shift) @ self.theta

    @torch.inference_mode()
    def map(self, cells: Cells) -> Float32Array:
        """Raw map (h, w) of a tile."""
        assert cells.features is not None
        raw: Float32Array = self(torch.from_numpy(cells.features).float()).numpy()
        return raw

    def tensors(self) -> dict[str, Tensor]:
        """Tensors by their names in the network."""
        return {
            "mix.weight": self.mix[:, :, None, None],
            "mix.bias": self.shift,
            "head.weight": self.theta[None, :, None, None],
        }

    def fitted(self, cells: Sequence[Cells], cut: float, seed: int) -> Head:
        """The mean of these layers and of layers fitted to judged cells.

        Parameters
        ----------
        cut
            Raw value that landslides should exceed.
        """
        features, cover = _judged(cells)
        initial = (self.mix, self.shift, self.theta)
        weights = [tensor.clone().requires_grad_() for tensor in initial]
        optimiser = torch.optim.Adam(weights, RATE)
        random = torch.Generator().manual_seed(seed)
        for step in range(STEPS):
            optimiser.param_groups[0]["lr"] = RATE * (1 + np.cos(np.pi * step / STEPS)) / 2 + 1e-6
            some = torch.randint(len(features), (CELLS,), generator=random)
            logits, true = Head(*weights)(features[some].float()) - cut, cover[some]
            loss = functional.binary_cross_entropy_with_logits(logits, true, pos_weight=torch.tensor(POSITIVE))
            loss = loss + 0.5 * dice_loss(logits[None], true[None]).mean()
            distances = [(new - old).square().sum() for new, old in zip(weights, initial, strict=True)]
            loss = loss + PULL * torch.stack(distances).sum()
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch does not type it
            optimiser.step()
        return Head(*((1 - SHARE) * old + SHARE * new.detach() for old, new in zip(initial, weights, strict=True)))


def _judged(cells: Sequence[Cells]) -> tuple[Tensor, Tensor]:
    """Features (N, F), half precision, and cover (N,) of all judged cells."""
    features, cover = [], []
    for one in cells:
        known = one.judged > 0
        assert one.features is not None
        features.append(torch.from_numpy(one.features[known]))
        cover.append(torch.from_numpy(one.cover[known]))
    return torch.cat(features), torch.cat(cover)


class OctaveMaps:
    """The features of both octaves of a localizer, as a `geolabel.models.engines.MapNetwork` of as many maps."""

    def __init__(self, network: PyramidLocalizer, *, device: str = "cpu") -> None:
        self._network = network.to(device).to(memory_format=torch.channels_last).eval()
        self._device = device
        self.stride, self.multiple = network.stride, network.multiple
        self.bias: Float32Array = network.bias.detach().float().cpu().numpy()

    def __call__(self, pixels: Float32Array) -> Float32Array:
        """(N, F, H / stride, W / stride) of normalised images (N, 3, H, W)."""
        with forward(self._device, "fp32"):
            features: Float32Array = self._network.octaves(torch.from_numpy(pixels).to(self._device)).cpu().numpy()
        return features

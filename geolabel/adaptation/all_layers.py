"""All layers of a localizer after the first of its trunk, fitted to reviewed ground.

The first layers, down to a cell of 8 pixels, are not fitted: edges and textures are the same everywhere, and without
them a step takes two thirds of the time.

Source: Wortsman et al. (2022), "Robust fine-tuning of zero-shot models": the mean of old and new weights.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from geolabel.adaptation.head import POSITIVE
from geolabel.adaptation.levels import Cells
from geolabel.models.cam import CamLocalizer
from geolabel.models.checkpoint import NetworkInfo
from geolabel.models.nets.localizer import PyramidLocalizer
from geolabel.models.nets.trunk import LiteTrunk
from geolabel.models.on_torch import TorchMaps
from geolabel.training.losses import dice_loss
from geolabel.types import AnyArray, Float32Array, UInt8Array

FROZEN = 3
"""Stages of the trunk that are not fitted, with its first convolution."""

STEPS, CROPS, SIDE, RATE = 60, 4, 256, 1e-4
"""Steps, crops per step, their side in pixels, highest learning rate."""

COLOUR = 0.3
"""Random changes of brightness, contrast and colour balance: light differs within a region too."""

SHARE = 0.3
"""Weight of the trained weights in their mean with the initial ones: less than for the head, as more of them can
unlearn ground that nobody reviewed."""


@dataclass(frozen=True)
class AllLayers:
    """A localizer on EfficientNet-Lite, all of whose later layers can be fitted."""

    network: PyramidLocalizer
    info: NetworkInfo
    device: str = "cpu"

    @classmethod
    def of(cls, network: nn.Module, info: NetworkInfo, device: str) -> AllLayers | None:
        """The layers of a network; None if it has another trunk."""
        if not isinstance(network, PyramidLocalizer) or not isinstance(network.trunk, LiteTrunk):
            return None
        return cls(network, info, device)

    def map(self, cells: Cells) -> Float32Array:
        """Raw map (h, w) of a tile."""
        assert cells.image is not None
        maps = CamLocalizer(TorchMaps(self.network, device=self.device, precision="fp32"), self.info, batch=1)
        raw: Float32Array = maps.raw_maps([cells.image])[0, 0]
        return raw

    def tensors(self) -> dict[str, Tensor]:
        """Tensors by their names in the network."""
        return {name: tensor.detach().cpu() for name, tensor in self.network.state_dict().items()}

    def fitted(self, cells: Sequence[Cells], cut: float, seed: int) -> AllLayers:
        """The mean of this network and of one fitted to judged cells.

        Parameters
        ----------
        cut
            Raw value that landslides should exceed.
        """
        network = copy.deepcopy(self.network).float().to(self.device)
        network = network.to(memory_format=torch.channels_last).train()
        network.smooth.eval()  # a few crops would spoil the statistics of its normalisation
        weights = _unfrozen(network)
        initial = [weight.detach().clone() for weight in weights]
        optimiser = torch.optim.Adam(weights, RATE)
        crops = _Crops.of(cells, np.random.default_rng(seed))
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.info.mean, self.info.std))
        positive = torch.tensor(POSITIVE, device=self.device)
        for step in range(STEPS):
            optimiser.param_groups[0]["lr"] = RATE * (1 + np.cos(np.pi * step / STEPS)) / 2 + 1e-7
            pixels, cover, judged = (torch.from_numpy(np.stack(part)) for part in zip(*crops.some(), strict=True))
            pixels = ((pixels.permute(0, 3, 1, 2) - mean) / std).to(self.device, memory_format=torch.channels_last)
            known = judged.to(self.device) > 0
            logits, true = network(pixels)[:, 0][known] - cut, cover.to(self.device)[known]
            loss = nn.functional.binary_cross_entropy_with_logits(logits, true, pos_weight=positive)
            loss = loss + 0.5 * dice_loss(logits[None], true[None]).mean()
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch does not type it
            nn.utils.clip_grad_norm_(weights, 1.0)
            optimiser.step()
        with torch.no_grad():
            for weight, old in zip(weights, initial, strict=True):
                weight.copy_(SHARE * weight + (1 - SHARE) * old)
        return AllLayers(network.eval().requires_grad_(False), self.info, self.device)


def _unfrozen(network: PyramidLocalizer) -> list[nn.Parameter]:
    """Weights to fit; no others have gradients."""
    network.requires_grad_(False)
    assert isinstance(network.trunk, LiteTrunk)
    mixing = [] if network.mix is None else [network.mix]
    for module in (*network.trunk.blocks[FROZEN:], network.lateral, network.smooth, *mixing, network.head):
        module.requires_grad_(True)
    return [weight for weight in network.parameters() if weight.requires_grad]


@dataclass(frozen=True)
class _Crops:
    """Squares of tiles, with random rotation and light, around judged cells."""

    cells: Sequence[Cells]
    judged: AnyArray
    """(n, 3) tile, row and column of the judged cells."""
    random: np.random.Generator

    @classmethod
    def of(cls, cells: Sequence[Cells], random: np.random.Generator) -> _Crops:
        """Crops of tiles that contain a judged cell."""
        places = [np.argwhere(one.judged > 0) for one in cells]
        numbered = [np.insert(place, 0, number, axis=1) for number, place in enumerate(places)]
        return cls(cells, np.concatenate(numbered), random)

    def some(self) -> list[tuple[Float32Array, Float32Array, Float32Array]]:
        """Pixels (S, S, 3), cover (s, s) and judged share (s, s) of the crops of a step."""
        return [self._crop(*self.judged[self.random.integers(len(self.judged))]) for _ in range(CROPS)]

    def _crop(self, number: int, row: int, col: int) -> tuple[Float32Array, Float32Array, Float32Array]:
        one = self.cells[number]
        assert one.image is not None
        stride = -(-one.image.shape[0] // one.raw.shape[0])
        side = SIDE // stride
        top, left = (
            int(np.clip(at - self.random.integers(side), 0, max(0, length - side)))
            for at, length in zip((row, col), one.raw.shape, strict=True)
        )
        pixels = _square(one.image[top * stride :, left * stride :], SIDE, "edge")
        parts = [_square(values[top:, left:], side, "constant") for values in (one.cover, one.judged)]
        turns, mirrored = int(self.random.integers(4)), self.random.random() < 0.5
        turned = [np.rot90(part, turns)[:, :: -1 if mirrored else 1] for part in (self._lit(pixels), *parts)]
        return turned[0], turned[1], turned[2]

    def _lit(self, pixels: UInt8Array) -> Float32Array:
        contrast = np.exp(self.random.uniform(-COLOUR, COLOUR))
        shifts = 60 * COLOUR * self.random.uniform(-1, 1) + 30 * COLOUR * self.random.uniform(-1, 1, 3)
        lit: Float32Array = np.clip((pixels - 127.0) * contrast + 127.0 + shifts, 0, 255).astype(np.float32)
        return lit


def _square(values: AnyArray, side: int, mode: str) -> AnyArray:
    """The first rows and columns of an array, padded if there are too few."""
    part = values[:side, :side]
    missing = [(0, side - length) for length in part.shape[:2]] + [(0, 0)] * (part.ndim - 2)
    padded: AnyArray = np.pad(part, missing, mode=mode)  # type: ignore[call-overload]  # a literal would do
    return padded

"""Class activation of chips: several scales and mirrored views, and known labels.

The map of a chip that is known to show a class may be divided by its own maximum (eq. 1 of APSAM); a chip that does not
show it must have no activation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from geolabel.activation import Activation, local_probability, normalise
from geolabel.devices import forward
from geolabel.models.checkpoint import NetworkInfo
from geolabel.models.engines import MapNetwork
from geolabel.models.nets.classifier import Classifier, merged_maps
from geolabel.models.nets.localizer import PyramidLocalizer
from geolabel.models.on_device import upload
from geolabel.parts import Localizer
from geolabel.types import BoolArray, UInt8Array

SCALES = (0.5, 1.0, 1.5, 2.0)
"""Scales in the released code of APSAM and S2C."""


class MapModule(nn.Module):
    """A network of another engine, as a torch module on the CPU."""

    def __init__(self, maps: MapNetwork) -> None:
        super().__init__()
        self._maps = maps
        self.stride, self.multiple = maps.stride, maps.multiple
        self.bias = nn.Parameter(torch.from_numpy(maps.bias), requires_grad=False)

    def forward(self, images: Tensor) -> Tensor:
        """Raw maps (N, C, h, w) of normalised images."""
        return torch.from_numpy(self._maps(images.numpy()))


class MultiscaleLocalizer:
    """A classifier with a linear head, as a `parts.Localizer` of single chips of any size.

    Parameters
    ----------
    network, info
        See `models.cam.CamLocalizer`.
    zoom
        Enlargement of every chip before anything else; by default that of its description, the middle of the
        enlargements in training.
    scales, flip
        Views whose maps are summed.
    device, precision
        A torch device; see `geolabel.devices.Precision`.
    """

    stride = 1

    def __init__(
        self,
        network: PyramidLocalizer | Classifier | MapModule,
        info: NetworkInfo,
        *,
        zoom: float | None = None,
        scales: Sequence[float] = SCALES,
        flip: bool = True,
        device: str = "cpu",
        precision: str = "fp32",
    ) -> None:
        self._network = network.to(device).eval()
        self._info = info
        self._zoom = info.zoom if zoom is None else zoom
        self._scales, self._flip = tuple(scales), flip
        self._device, self._precision = device, precision
        self._mean, self._std = (torch.tensor(v, device=device)[:, None, None] for v in (info.mean, info.std))

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self._info.classes

    @property
    def window(self) -> int:
        """Side of its training chips, in their own pixels."""
        return max(1, round(self._info.window / self._zoom))

    @property
    def gsd_range(self) -> tuple[float, float]:
        """Finest and coarsest supported ground sample distance, metres."""
        return self._info.gsd_range

    def __call__(self, images: Sequence[UInt8Array]) -> list[Activation]:
        """Activations of images (H, W, 3), each at the size of its image, with maximum 1 if any value is positive."""
        with forward(self._device, self._precision):
            return [self._activation(image) for image in images]

    def _activation(self, image: UInt8Array) -> Activation:
        height, width = image.shape[:2]
        multiple = self._network.multiple
        (sent,) = upload([image], self._device)
        pixels = sent.permute(2, 0, 1).float()
        sides = [max(1, round(n * self._zoom / multiple)) * multiple for n in (height, width)]
        normal = ((pixels - self._mean) / self._std)[None]
        scaled = interpolate(normal, sides, mode="bilinear", align_corners=False, antialias=True)
        own = self._network(scaled)
        merged = merged_maps(self._network, scaled, self._scales, flip=self._flip, known=own)
        maps = interpolate(merged.float(), (height, width), mode="bilinear", align_corners=False)[0].cpu().numpy()
        raw = own[0].float().cpu().numpy()
        bias = self._network.bias.detach().float().cpu().numpy()
        cells = max(1, self._info.window // self._network.stride)
        probability = local_probability(raw, bias, cells, self._info.sharpness)
        largest = probability.max(axis=(1, 2), keepdims=True)
        return Activation(
            values=normalise(maps),
            local_probability=np.broadcast_to(largest, maps.shape),
            raw_max=raw.max(axis=(1, 2)),
            stride=self.stride,
            classes=self.classes,
        )


@dataclass(frozen=True)
class LabelledLocalizer:
    """A localizer of labelled chips; maps of classes that a chip does not show are 0."""

    localizer: Localizer
    shows: BoolArray
    """(N, C) labels of the images of a call, or (C,) for all."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.localizer.classes

    @property
    def window(self) -> int:
        """That of the wrapped localizer."""
        return self.localizer.window

    @property
    def stride(self) -> int:
        """That of the wrapped localizer."""
        return self.localizer.stride

    @property
    def gsd_range(self) -> tuple[float, float]:
        """That of the wrapped localizer."""
        return self.localizer.gsd_range

    def __call__(self, images: Sequence[UInt8Array]) -> list[Activation]:
        """Activations of images (H, W, 3)."""
        found = self.localizer(images)
        shows = np.broadcast_to(self.shows, (len(images), len(self.classes)))[..., None, None].astype(np.float32)
        return [replace(one, values=one.values * shown) for one, shown in zip(found, shows, strict=True)]

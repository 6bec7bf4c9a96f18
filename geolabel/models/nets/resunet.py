"""ResUNet, APSAM's student: a U-Net of residual blocks with a pyramid of pooled context at its bottom.

Sources: Zhang, Liu and Wang (2018), "Road Extraction by Deep Residual U-Net"; Zhao et al. (2017), "Pyramid Scene
Parsing Network".
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from geolabel.models.nets.imagenet import LiteTrunk
from geolabel.models.nets.trunk import STRIDES, Residual, Trunk, conv_norm, enlarge

POOLS = (1, 2, 3, 6)
"""Cells a side of the pooled contexts."""


class PyramidPooling(nn.Module):
    """Context of the whole image in grids of several sizes, beside the features."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        part = max(1, channels // len(POOLS))
        self.branches = nn.ModuleList(nn.Conv2d(channels, part, 1) for _ in POOLS)
        self.merge = nn.Sequential(conv_norm(channels + part * len(POOLS), channels), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        """Features of the shape of `x`."""
        pooled = [branch(functional.adaptive_avg_pool2d(x, n)) for branch, n in zip(self.branches, POOLS, strict=True)]
        spread = [functional.interpolate(p, x.shape[-2:], mode="bilinear", align_corners=False) for p in pooled]
        merged: Tensor = self.merge(torch.cat([x, *spread], dim=1))
        return merged


class ResUNet(nn.Module):
    """Logits of every pixel.

    Parameters
    ----------
    classes
        Number of classes, the background included.
    widths
        Channels from the full resolution down, each stage at half the size of the one before.
    depths
        Blocks of every stage of a `Trunk`, which then is the way down, with weights of the bundled networks if wanted.
        It begins at a quarter of the resolution, and so is the result, enlarged.
    trunk
        Instead of both, a variant of EfficientNet-Lite as the way down: `imagenet.VARIANTS`.
    """

    def __init__(
        self,
        *,
        classes: int,
        widths: Sequence[int] = (32, 64, 128, 256, 512),
        depths: Sequence[int] | None = None,
        trunk: str | None = None,
    ) -> None:
        super().__init__()
        self.down: nn.Module
        if trunk is not None:
            self.multiple = STRIDES[-1]
            self.down = lite = LiteTrunk(trunk)
            widths = lite.widths
        elif depths is None:
            self.multiple = 2 ** (len(widths) - 1)
            before = (3, *widths[:-1])
            self.down = nn.ModuleList(
                Residual(i, o, stride=1 if k == 0 else 2) for k, (i, o) in enumerate(zip(before, widths, strict=True))
            )
        else:
            self.multiple = STRIDES[-1]
            self.down = Trunk(widths, depths)
        self.context = PyramidPooling(widths[-1])
        pairs = list(pairwise(widths))[::-1]
        self.up = nn.ModuleList(Residual(fine + coarse, fine) for fine, coarse in pairs)
        self.head = nn.Conv2d(widths[0], classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        """(N, classes, H, W) logits of normalised images (N, 3, H, W), H and W multiples of `multiple`."""
        skips = self._descend(images)
        x = self.context(skips.pop())
        for stage in self.up:
            x = stage(torch.cat([skips.pop(), enlarge(x)], dim=1))
        logits: Tensor = self.head(x)
        size = images.shape[-2:]
        return (
            logits
            if logits.shape[-2:] == size
            else functional.interpolate(logits, size, mode="bilinear", align_corners=False)
        )

    def _descend(self, images: Tensor) -> list[Tensor]:
        if isinstance(self.down, Trunk | LiteTrunk):
            return list(self.down(images))
        found = [images]
        for stage in self.down.children():
            found.append(stage(found[-1]))
        return found[1:]

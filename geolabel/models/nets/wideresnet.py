"""WRN-38, the backbone of S2C: wide and shallow, with dilation instead of the last two strides.

Source: Wu, Shen and van den Hengel (2019), "Wider or Deeper: Revisiting the ResNet Model for Visual Recognition",
model A, without its pooling; blocks are pre-activated. Width and depth of every stage are in `STAGES`.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional


class _Stage(NamedTuple):
    blocks: int
    middle: int
    outputs: int
    stride: int
    dilations: tuple[int, int]
    """Dilation of the first convolution of the first block, and of all others."""


STAGES = (
    _Stage(3, 128, 128, 2, (1, 1)),
    _Stage(3, 256, 256, 2, (1, 1)),
    _Stage(6, 512, 512, 2, (1, 1)),
    _Stage(3, 512, 1024, 1, (1, 2)),
)

BOTTLENECKS = ((2048, 0.3), (4096, 0.5))
"""Channels, and dropout, of the two last blocks; both are dilated by 4."""


class PreActivated(nn.Module):
    """Two 3x3 convolutions, each behind batch normalisation and ReLU, and a skip connection."""

    def __init__(self, inputs: int, middle: int, outputs: int, stride: int, dilations: tuple[int, int]) -> None:
        super().__init__()
        first, second = dilations
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, middle, 3, stride, padding=first, dilation=first, bias=False)
        self.norm2 = nn.BatchNorm2d(middle)
        self.conv2 = nn.Conv2d(middle, outputs, 3, padding=second, dilation=second, bias=False)
        same = inputs == outputs and stride == 1
        self.skip = None if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Features of `x`, smaller by the block's stride."""
        active = functional.relu(self.norm1(x))
        kept = x if self.skip is None else self.skip(active)
        inner = functional.relu(self.norm2(self.conv1(active)))
        out: Tensor = kept + self.conv2(inner)
        return out


class Bottleneck(nn.Module):
    """1x1, dilated 3x3 and 1x1 convolutions with dropout, and a skip connection."""

    def __init__(self, inputs: int, outputs: int, dropout: float) -> None:
        super().__init__()
        quarter, half = outputs // 4, outputs // 2
        self.norms = nn.ModuleList(nn.BatchNorm2d(n) for n in (inputs, quarter, half))
        self.convs = nn.ModuleList(
            [
                nn.Conv2d(inputs, quarter, 1, bias=False),
                nn.Conv2d(quarter, half, 3, padding=4, dilation=4, bias=False),
                nn.Conv2d(half, outputs, 1, bias=False),
            ]
        )
        self.skip = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        """Features of `x`, of the same size."""
        active = functional.relu(self.norms[0](x))
        kept: Tensor = self.skip(active)
        inner = self.convs[0](active)
        for norm, conv in zip(list(self.norms)[1:], list(self.convs)[1:], strict=True):
            inner = functional.dropout(functional.relu(norm(inner)), self.dropout, self.training)
            inner = conv(inner)
        out: Tensor = kept + inner
        return out


class WideResNet38(nn.Module):
    """The convolutional part of WRN-38.

    Parameters
    ----------
    shrink
        Divides the number of channels everywhere, for tests.
    """

    stride = 8

    def __init__(self, shrink: int = 1) -> None:
        super().__init__()
        inputs = 64 // shrink
        self.stem = nn.Conv2d(3, inputs, 3, padding=1, bias=False)
        blocks: list[nn.Module] = []
        for stage in STAGES:
            for k in range(stage.blocks):
                dilations = stage.dilations if k == 0 else (stage.dilations[1],) * 2
                stride = stage.stride if k == 0 else 1
                outputs = stage.outputs // shrink
                blocks.append(PreActivated(inputs, stage.middle // shrink, outputs, stride, dilations))
                inputs = outputs
        for channels, dropout in BOTTLENECKS:
            blocks.append(Bottleneck(inputs, channels // shrink, dropout))
            inputs = channels // shrink
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.BatchNorm2d(inputs)
        self.channels = inputs

    def forward(self, images: Tensor) -> list[Tensor]:
        """The one output (N, 4096, H / 8, W / 8) of images (N, 3, H, W), in a list as timm's backbones return it."""
        return [functional.relu(self.norm(self.blocks(self.stem(images))))]

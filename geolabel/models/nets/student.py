"""Networks that learn from pseudo-labels: ResUNet, those of segmentation-models-pytorch, and Mask R-CNN.

From random weights Mask R-CNN needs normalisation that does not depend on the batch.

Sources: Zhang, Liu and Wang (2018), "Road Extraction by Deep Residual U-Net"; Zhao et al. (2017), "Pyramid Scene
Parsing Network"; He et al. (2017), "Mask R-CNN", from torchvision; He et al. (2019), "Rethinking ImageNet
Pre-training".
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from geolabel.errors import require
from geolabel.models.nets.trunk import STRIDES, LiteTrunk, Residual, Trunk, conv_norm, enlarge
from geolabel.tiles import mirrored
from geolabel.types import Int64Array

MODELS = {
    "unet": "Unet",
    "deeplabv3plus": "DeepLabV3Plus",
    "segformer": "Segformer",
    "upernet": "UPerNet",
    "pspnet": "PSPNet",
}
"""Names on the command line, and those of the library."""


class SmpStudent(nn.Module):
    """Logits (N, classes, H, W) of normalised images (N, 3, H, W), H and W multiples of `multiple`."""

    multiple = 32

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Score every pixel."""
        logits: Tensor = self.network(images)
        return logits


def build_smp(*, model: str, encoder: str, classes: int, pretrained: bool = False) -> SmpStudent:
    """Build a network of segmentation-models-pytorch.

    Parameters
    ----------
    model
        A key of `MODELS`.
    encoder
        A name that the library knows, such as ``resnet34`` or ``mit_b0``; ``tu-`` before a name selects one of timm's.
    classes
        Number of classes, including the background.
    pretrained
        Fetch the encoder's weights from ImageNet.

    Raises
    ------
    ValueError
        If the library has no such model or encoder.
    GeolabelError
        If the library is not installed.
    """
    if model not in MODELS:
        raise ValueError(f"no student is called {model!r}: known are {', '.join(MODELS)}")
    require("train", "segmentation_models_pytorch", purpose=f"the student {model}")
    import segmentation_models_pytorch as smp

    weights = "imagenet" if pretrained else None
    try:
        network = getattr(smp, MODELS[model])(encoder, encoder_weights=weights, in_channels=3, classes=classes)
    except (KeyError, RuntimeError) as error:
        raise ValueError(f"{MODELS[model]} has no encoder {encoder!r}: {error}") from error
    return SmpStudent(network)


def zoomed_probabilities(network: Any, pixels: Tensor, zoom: float, window: int = 1) -> Tensor:
    """(N, K, H, W) probabilities of normalised images (N, 3, H, W), which the network sees enlarged by `zoom`.

    Images smaller than the `window` of its training are padded by reflection, as crops of small images were there: the
    network has not been trained on features pooled over a few pixels.
    """
    size, multiple = pixels.shape[-2:], network.multiple
    sides = [max(1, round(n * zoom)) for n in size]
    if sides != list(size):
        pixels = functional.interpolate(pixels, sides, mode="bilinear", align_corners=False, antialias=True)
    spans = [_around(length, max(length, window), multiple) for length in sides]
    rows, cols = (torch.from_numpy(span).to(pixels.device) for span in spans)
    height, width = sides
    top, left = ((len(span) - length) // 2 for span, length in zip(spans, sides, strict=True))
    logits = network(pixels[..., rows[:, None], cols])[..., top : top + height, left : left + width]
    if sides != list(size):
        logits = functional.interpolate(logits, size, mode="bilinear", align_corners=False)
    found: Tensor = logits.float().softmax(dim=1)
    return found


def _around(length: int, least: int, multiple: int) -> Int64Array:
    """Indices of a side in the middle of its mirror images, a multiple of `multiple` and at least `least` in all."""
    whole = -(-least // multiple) * multiple
    first = -((whole - length) // 2)
    return mirrored(first, first + whole, length)


ANCHORS = (32, 64, 128, 256, 512)
"""Sides of the anchors of the five levels, pixels."""


def build_detector(
    classes: int,
    backbone: str = "resnet50",
    anchors: Sequence[int] = ANCHORS,
    proposals: int = 1000,
    detections: int = 100,
    sampled: int = 512,
) -> nn.Module:
    """Build a detector with random weights that takes images at their own scale.

    Parameters
    ----------
    classes
        Number of classes, without the background.
    backbone
        A ResNet of torchvision.
    anchors
        One side for each level.
    proposals, detections
        Maximum number of boxes that are examined per image, and of objects in the answer; COCO counts 100.
    sampled
        Number of boxes per image to learn from; a quarter of them, at most, get masks.
    """
    from torchvision.models.detection import MaskRCNN
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
    from torchvision.models.detection.rpn import AnchorGenerator

    trunk = resnet_fpn_backbone(
        backbone_name=backbone, weights=None, trainable_layers=5, norm_layer=partial(nn.GroupNorm, 32)
    )
    boxes = AnchorGenerator(tuple((side,) for side in anchors), ((0.5, 1.0, 2.0),) * len(anchors))
    # Without the last, images would be scaled to sides of 800 to 1333 px: here a pixel has a size on the ground.
    detector: nn.Module = MaskRCNN(
        trunk,
        classes + 1,
        rpn_anchor_generator=boxes,
        rpn_pre_nms_top_n_test=proposals,
        rpn_post_nms_top_n_test=proposals,
        box_detections_per_img=detections,
        box_batch_size_per_image=sampled,
        _skip_resize=True,
    )
    return detector


POOLS = (1, 2, 3, 6)
"""Cells along a side of the pooled contexts."""


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
        Number of classes, including the background.
    widths
        Channels from the full resolution down, each stage at half the size of the one before.
    depths
        Blocks of every stage of a `Trunk`, which then is the encoder, if wanted with weights of the bundled networks.
        Its first output has a quarter of the resolution, and so has the result before it is enlarged.
    trunk
        Instead of both, a variant of EfficientNet-Lite as the encoder: `geolabel.models.nets.trunk.VARIANTS`.
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

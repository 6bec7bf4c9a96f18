"""Students: segmentation networks of segmentation-models-pytorch, and what any student sees of an image."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from geolabel.extras import require
from geolabel.tiles import mirrored
from geolabel.types import Int64Array

MODELS = {"unet": "Unet", "deeplabv3plus": "DeepLabV3Plus", "segformer": "Segformer"}
"""Names that the command line takes, and the library's."""


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
        A name that the library knows, such as ``resnet34`` or ``mit_b0``; ``tu-`` before a name is any of timm's.
    classes
        Number of classes, the background included.
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

    Images smaller than the `window` of its training are mirrored around, as crops of small images were there: what is
    pooled over a few pixels alone is nothing that it has seen.
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

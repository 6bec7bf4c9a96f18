"""Students: segmentation networks of segmentation-models-pytorch, and what any student sees of an image."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional

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
        If the library is missing, or has no such model or encoder.
    """
    if model not in MODELS:
        raise ValueError(f"no student is called {model!r}: known are {', '.join(MODELS)}")
    try:
        import segmentation_models_pytorch as smp
    except ModuleNotFoundError as error:
        raise ValueError('this student needs segmentation-models-pytorch: pip install "geolabel[train]"') from error
    weights = "imagenet" if pretrained else None
    try:
        network = getattr(smp, MODELS[model])(encoder, encoder_weights=weights, in_channels=3, classes=classes)
    except (KeyError, RuntimeError) as error:
        raise ValueError(f"{MODELS[model]} has no encoder {encoder!r}: {error}") from error
    return SmpStudent(network)


def zoomed_probabilities(network: Any, pixels: Tensor, zoom: float) -> Tensor:
    """(N, K, H, W) probabilities of normalised images (N, 3, H, W), which the network sees enlarged by `zoom`."""
    size, multiple = pixels.shape[-2:], network.multiple
    sides = [max(1, round(n * zoom)) for n in size]
    if sides != list(size):
        pixels = functional.interpolate(pixels, sides, mode="bilinear", align_corners=False, antialias=True)
    height, width = sides
    pixels = functional.pad(pixels, (0, -width % multiple, 0, -height % multiple), mode="replicate")
    logits = network(pixels)[..., :height, :width]
    if sides != list(size):
        logits = functional.interpolate(logits, size, mode="bilinear", align_corners=False)
    found: Tensor = logits.float().softmax(dim=1)
    return found

"""A classifier of whole images on any backbone with a linear head: its activation map is the spatial form of its logit.

Source: Zhou et al. (2016), "Learning Deep Features for Discriminative Localization"; eq. 1 of APSAM, eq. 1 to 3 of S2C.
"""

from __future__ import annotations

import math
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from geolabel.models.nets.trunk import projection
from geolabel.models.nets.wideresnet import WideResNet38

WRN38 = "wrn38"


class MapsImages(Protocol):
    """A network of raw class activation maps."""

    stride: int
    multiple: int

    def __call__(self, images: Tensor) -> Tensor:
        """Raw maps (N, C, h, w) of normalised images, without the bias."""
        ...


class Activating(MapsImages, Protocol):
    """What the trainers require of a network; `Classifier` and `PyramidLocalizer` have it."""

    head: nn.Conv2d
    bias: nn.Parameter
    sharpness: float | None
    """Sharpness of the pooling that makes the logit of an image; see `class_logits`."""

    def features(self, images: Tensor) -> Tensor:
        """Compute (N, D, h, w) of normalised images (N, 3, H, W)."""
        ...


class Classifier(nn.Module):
    """A backbone, optionally a layer that narrows its features, and a 1x1 head.

    Parameters
    ----------
    backbone
        Any convolutional network of timm by its name, or ``wrn38``.
    classes
        Number of classes.
    output_stride
        Image pixels per cell of the map: 8, 16 or 32. WRN-38 has 8.
    features
        Channels of a 1x1 layer before the head (S2C's released code has 256); None for the backbone's own.
    projected
        Channels of a 1x1 layer and a sigmoid before the head, as in the second classifier of CISM; None to omit it.
    pretrained
        Fetch the weights that timm knows under this name.

    Raises
    ------
    ValueError
        If timm has no such network, or it cannot have that stride.
    """

    multiple = 32
    """The sides of an image are multiples of this."""
    sharpness = None
    """Its logits are means of its maps, as in the papers."""

    def __init__(
        self,
        *,
        backbone: str,
        classes: int,
        output_stride: int = 16,
        features: int | None = None,
        projected: int | None = None,
        pretrained: bool = False,
    ) -> None:
        super().__init__()
        self.trunk, width, self.stride = _trunk(backbone, output_stride, pretrained)
        self.narrow = nn.Identity() if features is None else nn.Sequential(nn.Conv2d(width, features, 1), nn.ReLU())
        width = width if features is None else features
        self.projected = projected
        self.projection = projection(width, projected)
        self.head = nn.Conv2d(projected or width, classes, 1, bias=False)
        self.bias = nn.Parameter(torch.zeros(classes))

    def features(self, images: Tensor) -> Tensor:
        """(N, D, H / stride, W / stride) of normalised images (N, 3, H, W), H and W multiples of `multiple`."""
        (deep,) = self.trunk(images)
        found: Tensor = self.projection(self.narrow(deep))
        return found

    def forward(self, images: Tensor) -> Tensor:
        """Raw class activation maps (N, C, H / stride, W / stride), without the bias."""
        maps: Tensor = self.head(self.features(images))
        return maps


def _trunk(backbone: str, output_stride: int, pretrained: bool) -> tuple[nn.Module, int, int]:
    if backbone == WRN38:
        if output_stride != WideResNet38.stride or pretrained:
            raise ValueError(f"{WRN38} has output stride {WideResNet38.stride} and no published weights in timm")
        wide = WideResNet38()
        return wide, wide.channels, wide.stride
    import timm

    try:
        trunk = timm.create_model(
            backbone, features_only=True, out_indices=(-1,), output_stride=output_stride, pretrained=pretrained
        )
    except (RuntimeError, TypeError, NotImplementedError, AssertionError) as error:
        raise ValueError(f"timm has no backbone {backbone!r} of output stride {output_stride}: {error}") from error
    facts: Any = trunk.feature_info
    return trunk, facts.channels()[-1], facts.reduction()[-1]


def class_logits(maps: Tensor, bias: Tensor, sharpness: float | None = None) -> Tensor:
    """Logits of whole images: pooled linear maps, and the bias.

    Parameters
    ----------
    maps : (N, C, h, w)
    bias : (C,)
    sharpness
        r of log-sum-exp pooling, ``log(mean(exp(r x))) / r``: close to the mean if small, close to the maximum if
        large, so that few cells can decide about an image. None for the mean (S2C, eq. 3).

    Returns
    -------
    (N, C)

    Source: Pinheiro and Collobert (2015), "From Image-Level to Pixel-Level Labeling with Convolutional Networks", eq. 6
    """
    if sharpness is None:
        return maps.mean(dim=(2, 3)) + bias
    flat = maps.flatten(2) * sharpness
    return (flat.logsumexp(dim=2) - math.log(flat.shape[2])) / sharpness + bias


@torch.no_grad()
def merged_maps(
    network: MapsImages,
    images: Tensor,
    scales: tuple[float, ...] = (1.0,),
    *,
    flip: bool = False,
    known: Tensor | None = None,
) -> Tensor:
    """Positive parts of the maps of several scales, and of mirrored images, summed at the size of scale 1.

    Parameters
    ----------
    images : (N, 3, H, W)
        Normalised.
    known
        Maps of the images at scale 1, if they have been computed: they are not computed again.

    Returns
    -------
    (N, C, h, w), not normalised
    """
    size = tuple(n // network.stride for n in images.shape[-2:])
    total: Tensor | None = None
    for scale in scales:
        sides = [max(1, round(n * scale / network.multiple)) * network.multiple for n in images.shape[-2:]]
        scaled = functional.interpolate(images, sides, mode="bilinear", align_corners=False)
        as_it_is = known if scaled.shape == images.shape else None
        views = [network(scaled) if as_it_is is None else as_it_is] + (
            [network(scaled.flip(-1)).flip(-1)] if flip else []
        )
        for maps in views:
            positive = functional.interpolate(maps.relu(), size, mode="bilinear", align_corners=False)
            total = positive if total is None else total + positive
    assert total is not None, "no scales"
    return total

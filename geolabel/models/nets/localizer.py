"""The classifier with a linear head, so that its activation map is the spatial form of its class logit.

Source: Zhou et al. (2016), "Learning Deep Features for Discriminative Localization"; eq. 1 of APSAM. Global average
pooling and a linear head commute: the logit of a window is the mean of ``theta^T F`` over the window, plus the bias.
Other pooling also applies to the map ``theta^T F``; see `geolabel.models.nets.classifier.class_logits`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from geolabel.models.nets.trunk import STRIDES, LiteTrunk, Trunk, conv_norm, enlarge, projection

_PYRAMIDS = STRIDES[1:2], STRIDES[1:3], STRIDES[1:]

FINE = 0.75
"""Initial weight of the image's own resolution in the mean of a localizer of two octaves."""


class PyramidLocalizer(nn.Module):
    """A trunk, a feature pyramid down to stride 8, and a 1x1 head.

    The pyramid (Lin et al. 2017) gives every cell both its surroundings and its details: bare ground is a landslide
    if the slope around it says so. With two octaves the same pyramid also sees the image at half its resolution,
    where a landslide of twice the size looks as large as those in training.

    Parameters
    ----------
    classes
        Number of classes.
    widths, depths
        Widths and depths of a residual trunk.
    trunk
        Instead of these, a variant of EfficientNet-Lite: `geolabel.models.nets.trunk.VARIANTS`.
    features
        Channels of the pyramid, the D of ``theta^T F``.
    projected
        Channels of a 1x1 layer and a sigmoid before the head, as in the second classifier of CISM; None to omit it.
    octaves
        1, or 2 to see the image at half its resolution too; the features of both are mixed cell by cell.
    strides
        Strides of the trunk's features that the pyramid joins, the finest 8. Without 32 a cell sees less of its
        surroundings, which tell as much about an image's label as the landslide does.
    sharpness
        Sharpness of the pooling of the map; see `geolabel.models.nets.classifier.class_logits`.

    Raises
    ------
    ValueError
        If other octaves, strides or pooling, or another trunk, are requested.
    """

    stride = STRIDES[1]
    multiple = STRIDES[-1]
    """The sides of an image are multiples of this."""

    def __init__(
        self,
        *,
        classes: int,
        features: int,
        widths: Sequence[int] = (),
        depths: Sequence[int] = (),
        trunk: str | None = None,
        projected: int | None = None,
        octaves: int = 1,
        strides: Sequence[int] = STRIDES[1:],
        sharpness: float | None = None,
    ) -> None:
        super().__init__()
        if octaves not in (1, 2):
            raise ValueError(f"a localizer has 1 or 2 octaves, not {octaves}")
        if tuple(strides) not in _PYRAMIDS:
            raise ValueError(f"a pyramid joins strides {' or '.join(map(str, _PYRAMIDS))}, not {tuple(strides)}")
        if sharpness is not None and not 0 < sharpness < math.inf:
            raise ValueError(f"the sharpness of pooling is positive, not {sharpness}")
        self.sharpness = sharpness
        self.trunk: Trunk | LiteTrunk = LiteTrunk(trunk) if trunk else Trunk(widths, depths)
        self.lateral = nn.ModuleList(nn.Conv2d(width, features, 1) for width in self.trunk.widths[1 : 1 + len(strides)])
        self.smooth = nn.Sequential(conv_norm(features, features), nn.ReLU())
        self.mix = _mixing(features) if octaves == 2 else None
        self.projected = projected
        self.projection = projection(features, projected)
        self.head = nn.Conv2d(projected or features, classes, 1, bias=False)
        self.bias = nn.Parameter(torch.zeros(classes))

    def forward(self, images: Tensor) -> Tensor:
        """Raw class activation maps, without the bias.

        Parameters
        ----------
        images : (N, 3, H, W)
            Normalised; H and W multiples of `multiple`.

        Returns
        -------
        (N, C, H / stride, W / stride)
        """
        maps: Tensor = self.head(self.features(images))
        return maps

    def features(self, images: Tensor) -> Tensor:
        """(N, D, H / stride, W / stride), the F of ``theta^T F``."""
        found: Tensor = self.projection(self._mixed(images))
        return found

    def octaves(self, images: Tensor) -> Tensor:
        """(N, octaves * D, H / stride, W / stride), the features of every octave, which `mix` mixes."""
        fine = self._pyramid(images)
        if self.mix is None:
            return fine
        half = functional.avg_pool2d(images, 2)
        height, width = half.shape[-2:]
        half = functional.pad(half, (0, -width % self.multiple, 0, -height % self.multiple), mode="replicate")
        coarse = enlarge(self._pyramid(half))[..., : fine.shape[-2], : fine.shape[-1]]
        return torch.cat([fine, coarse], dim=1)

    def _mixed(self, images: Tensor) -> Tensor:
        seen = self.octaves(images)
        if self.mix is None:
            return seen
        mixed: Tensor = functional.relu(self.mix(seen))
        return mixed

    def _pyramid(self, images: Tensor) -> Tensor:
        levels = [lateral(x) for lateral, x in zip(self.lateral, self.trunk(images)[1:], strict=False)]
        joined = levels.pop()
        while levels:
            joined = levels.pop() + enlarge(joined)
        features: Tensor = self.smooth(functional.relu(joined))
        return features


def _mixing(features: int) -> nn.Conv2d:
    """The weighted mean of two stacks of features, as a layer that can be trained."""
    layer = nn.Conv2d(2 * features, features, 1)
    same = torch.eye(features)
    with torch.no_grad():
        layer.weight.copy_(torch.cat([FINE * same, (1 - FINE) * same], dim=1)[:, :, None, None])
        layer.bias.zero_()  # type: ignore[union-attr]
    return layer

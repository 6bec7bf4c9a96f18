"""The classifier whose head is linear, so that its activation map is its class logit taken apart.

Source: Zhou et al. (2016), "Learning Deep Features for Discriminative Localization"; eq. 1 of APSAM. Global average
pooling and a linear head commute: the logit of a window is the mean of ``theta^T F`` over the window, plus the bias.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from geolabel.networks.trunk import STRIDES, Trunk, conv_norm, enlarge


class PyramidLocalizer(nn.Module):
    """A trunk, a feature pyramid down to stride 8, and a 1x1 head.

    The pyramid (Lin et al. 2017) gives every cell both what is near and what surrounds it: bare ground is a slide
    where the slope around it says so.

    Parameters
    ----------
    classes
        Number of classes.
    widths, depths
        Of the trunk.
    features
        Channels of the pyramid, the D of ``theta^T F``.
    """

    stride = STRIDES[1]
    multiple = STRIDES[-1]
    """The sides of an image are multiples of this."""

    def __init__(self, *, classes: int, widths: Sequence[int], depths: Sequence[int], features: int) -> None:
        super().__init__()
        self.trunk = Trunk(widths, depths)
        self.lateral = nn.ModuleList(nn.Conv2d(width, features, 1) for width in widths[1:])
        self.smooth = nn.Sequential(conv_norm(features, features), nn.ReLU())
        self.head = nn.Conv2d(features, classes, 1, bias=False)
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
        at8, at16, at32 = (lateral(x) for lateral, x in zip(self.lateral, self.trunk(images)[1:], strict=True))
        features: Tensor = self.smooth(functional.relu(at8 + enlarge(at16 + enlarge(at32))))
        return features

"""S2C's two terms, which bring a segmenter's knowledge into a classifier, as pure functions of tensors.

Source: Kweon and Yoon (2024), "From SAM to CAMs: Exploring Segment Anything Model for Weakly Supervised Semantic
Segmentation", CVPR. Numbers of equations are the paper's. Where the paper is silent or misprinted:

* Eq. 6 lacks its exponentials and its logarithm; InfoNCE is meant.
* Prototypes carry no gradient, as in the released code.
* A is max-normalised to 0..1 and goes into the cross-entropy of eq. 13 as it is, so that loss has a floor above 0:
  ``log(1 + C / e)`` for C classes that are not the target.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from geolabel.labels import IGNORE

EPSILON = 1e-5
"""Added to a maximum before it divides, as all code of this family does."""


def prototypes(features: Tensor, segments: Tensor, count: int) -> Tensor:
    """Unit prototypes (count, D): normalised means of the normalised features of each segment (eq. 5).

    Parameters
    ----------
    features : (P, D)
        Of unit length.
    segments : (P,)
        Number of each feature's segment, 0 to ``count - 1``, every one of them present.
    """
    sums = features.new_zeros((count, features.shape[1])).index_add(0, segments, features)
    # the mean has the direction of the sum, and only the direction is left
    return functional.normalize(sums, dim=1)


def segment_contrast(
    features: Tensor, segments: Tensor, temperature: float = 0.5, *, detach: bool = True, pixels: int | None = None
) -> Tensor:
    """SSC (eq. 5 and 6): every covered pixel is to be nearer to its own segment's prototype than to the others'.

    Parameters
    ----------
    features : (N, D, h, w)
        Enlarged to the segments' size, bilinearly.
    segments : (N, H, W)
        Number of the segment, any numbers from 1; 0 where none is.
    temperature
        Divides the cosines. The released code multiplies by 1 instead, which is the same as 1 here.
    detach
        Whether prototypes carry no gradient.
    pixels
        About how many pixels of an image take part, evenly spread; None for all. A large image has more similarities
        than memory.

    Returns
    -------
    mean over the covered pixels of each image, then over the images; 0 where nothing is covered
    """
    enlarged = functional.interpolate(features, segments.shape[-2:], mode="bilinear", align_corners=False)
    step = 1 if pixels is None else max(1, round((segments[0].numel() / pixels) ** 0.5))
    losses = []
    for maps, numbers in zip(enlarged, segments, strict=True):
        flat = functional.normalize(maps[:, ::step, ::step].flatten(1).T, dim=1)
        thinned = numbers[::step, ::step].flatten()
        covered = thinned > 0
        present, own = thinned[covered].unique(return_inverse=True)
        if not len(present):
            losses.append(maps.sum() * 0)
            continue
        points = flat[covered]
        centres = prototypes(points.detach() if detach else points, own, len(present))
        losses.append(functional.cross_entropy(points @ centres.T / temperature, own))
    return torch.stack(losses).mean()


def normalised(maps: Tensor, labels: Tensor | None = None) -> Tensor:
    """Maps scaled to 0..1 by their own maximum, negative parts and classes that an image does not show set to 0.

    Parameters
    ----------
    maps : (N, C, h, w)
    labels : (N, C)
        0 or 1; None to keep all classes.
    """
    positive = maps.relu() if labels is None else maps.relu() * labels[:, :, None, None]
    return positive / (positive.amax(dim=(2, 3), keepdim=True) + EPSILON)


def with_background(maps: Tensor) -> Tensor:
    """(N, 1 + C, h, w): before the classes, a background that is what the strongest of them leaves (eq. 12)."""
    return torch.cat([1 - maps.amax(dim=1, keepdim=True), maps], dim=1)


def prompted_mask_loss(maps: Tensor, target: Tensor, *, background: bool = True) -> Tensor:
    """CPM (eq. 13): cross-entropy of the maps, with a background channel, and what prompted masks say.

    Parameters
    ----------
    maps : (N, C, h, w)
        0..1; enlarged to the target's size, bilinearly.
    target : (N, H, W)
        0 background, c + 1 the class c, 255 ignored.
    background
        False leaves the background out of the loss, as the paper's ablation does.

    Returns
    -------
    mean over the pixels that are not ignored; 0 where all are
    """
    if not background:
        target = torch.where(target == 0, IGNORE, target)
    enlarged = functional.interpolate(maps, target.shape[-2:], mode="bilinear", align_corners=False)
    total = functional.cross_entropy(with_background(enlarged), target, ignore_index=IGNORE, reduction="sum")
    return total / (target != IGNORE).sum().clamp(min=1)

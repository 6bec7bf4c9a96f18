"""Losses as pure functions of tensors."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def window_logits(maps: Tensor, bias: Tensor, cells: int, step: int) -> Tensor:
    """Class logits of every window of `cells` x `cells`: the mean of a linear map over the window, plus the bias.

    Parameters
    ----------
    maps : (N, C, h, w)
    bias : (C,)
    cells, step
        Side of a window and distance between windows, in cells of the map.
    """
    return functional.avg_pool2d(maps, cells, step) + bias[:, None, None]


def gate_loss(logits: Tensor, share: Tensor, minimum: float) -> Tensor:
    """Binary cross-entropy of image-level labels, derived from the `share` of each window that the class covers.

    A window with at least `minimum` of it is positive, one without any negative; others have no loss.

    Parameters
    ----------
    logits, share : same shape
    """
    label = (share >= minimum).float()
    known = ((share >= minimum) | (share == 0)).float()
    each = functional.binary_cross_entropy_with_logits(logits, label, reduction="none")
    return (each * known).sum() / known.sum().clamp(min=1)


def focal_loss(logits: Tensor, target: Tensor, gamma: float = 2.0) -> Tensor:
    """Focal loss of each mask (..., h, w), its mean over the last two axes.

    The target may be between 0 and 1, like the coverage of a coarse cell: the weight is the distance from it, which for
    binary targets is that of Lin et al. (2017), "Focal Loss for Dense Object Detection", without their alpha.

    Parameters
    ----------
    logits, target : (..., h, w)
    """
    each = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    weight = (target - logits.sigmoid()).abs() ** gamma
    return (weight * each).mean(dim=(-2, -1))


def dice_loss(logits: Tensor, target: Tensor) -> Tensor:
    """One minus the Dice overlap of each mask (..., h, w), over the last two axes.

    Source: Milletari et al. (2016), "V-Net", with the sum in the denominator; 1 is added to both sides, so that two
    empty masks match.
    """
    probability = logits.sigmoid()
    both = (probability * target).sum(dim=(-2, -1))
    total = probability.sum(dim=(-2, -1)) + target.sum(dim=(-2, -1))
    return 1 - (2 * both + 1) / (total + 1)


def cover_loss(logits: Tensor, classes: Tensor, one: int, unknown: int) -> Tensor:
    """Mean cross-entropy of land cover; for unknown cover, that of "anything but class `one`".

    Parameters
    ----------
    logits : (N, C, h, w)
    classes : (N, h, w)
        0 to C - 1, or `unknown`.
    """
    open_ = classes == unknown
    each = functional.cross_entropy(logits, classes.masked_fill(open_, 0), reduction="none")
    # -log(1 - p) of the one class: its log-odds against all others are its logit minus their log-sum-exp.
    others = torch.cat([logits[:, :one], logits[:, one + 1 :]], dim=1).logsumexp(dim=1)
    not_one = functional.softplus(logits[:, one] - others)
    return torch.where(open_, not_one, each).mean()


def mask_iou(logits: Tensor, target: Tensor) -> Tensor:
    """IoU of each mask (..., h, w), cut at a logit of 0, with its target, cut at 1/2; 0 if both are empty."""
    predicted, true = logits > 0, target >= 0.5
    both = (predicted & true).sum(dim=(-2, -1))
    either = (predicted | true).sum(dim=(-2, -1))
    return both / either.clamp(min=1)


def best_candidate(losses: Tensor, rest: float) -> Tensor:
    """Loss of a set of candidates: its minimum, plus a share `rest` of the mean so that all of them are trained.

    Source: Kirillov et al. (2023), "Segment Anything", appendix A: only the minimum is backpropagated, which needs a
    long training until every candidate has won.

    Parameters
    ----------
    losses : (K, M)

    Returns
    -------
    (K,)
    """
    return (1 - rest) * losses.min(dim=1).values + rest * losses.mean(dim=1)

"""First weights of a student from another one, whole or in part, as ALPS hands on what pseudo-labels taught.

Source: ALPS, section "Experiments": the weights of the whole network, of its backbone or of its head are loaded before
fine-tuning. The head is all that is not the backbone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

from torch import Tensor, nn

Share = Literal["overall", "backbone", "head"]

SHARES: tuple[Share, ...] = get_args(Share)

BACKBONE = ("down.", "context.", "network.encoder.", "backbone.")
"""How the tensors of backbones begin: ResUNet's way down, the encoders of segmentation-models-pytorch, and the trunk of
torchvision's detectors."""

CLASSES = (
    "head.",
    "network.segmentation_head.",
    "roi_heads.box_predictor.",
    "roi_heads.mask_predictor.mask_fcn_logits.",
)
"""How the tensors begin that tell the classes apart."""


def take_over(network: nn.Module, state: Mapping[str, Tensor], share: Share, *, same_classes: bool) -> list[str]:
    """Load a share of the tensors of another network of the same make.

    Parameters
    ----------
    same_classes
        Whether both networks tell the same classes apart; if not, the layer that does so starts anew.

    Returns
    -------
    Names of the tensors that were taken over.

    Raises
    ------
    ValueError
        If a tensor is missing or has another shape.
    """
    taken = [
        name
        for name in network.state_dict()
        if (share == "overall" or name.startswith(BACKBONE) == (share == "backbone"))
        and (same_classes or not name.startswith(CLASSES))
    ]
    missing = [name for name in taken if name not in state]
    if missing:
        raise ValueError(f"{len(missing)} tensors are missing, such as {missing[0]}")
    try:
        network.load_state_dict({name: state[name] for name in taken}, strict=False)
    except RuntimeError as error:
        raise ValueError(str(error).splitlines()[-1].strip()) from error
    return taken

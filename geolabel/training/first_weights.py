"""First weights of a network: those of another one, whole or in part, or a pretrained trunk.

Source: ALPS, section "Experiments": the weights of the whole network, of its backbone or of its head are loaded before
fine-tuning. The head is all that is not the backbone.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from torch import Tensor, nn

from geolabel.errors import OptionError, WeightsError
from geolabel.io.downloads import sha256
from geolabel.models import registry
from geolabel.models.checkpoint import load_checkpoint
from geolabel.models.nets.trunk import load_trunk

Share = Literal["overall", "backbone", "head"]

SHARES: tuple[Share, ...] = get_args(Share)

BACKBONE = ("down.", "context.", "network.encoder.", "backbone.")
"""Prefixes of the tensors of backbones: ResUNet's way down, the encoders of segmentation-models-pytorch, and the trunk
of torchvision's detectors."""

CLASSES = (
    "head.",
    "network.segmentation_head.",
    "roi_heads.box_predictor.",
    "roi_heads.mask_predictor.mask_fcn_logits.",
)
"""Prefixes of the tensors that distinguish the classes."""


def take_over(network: nn.Module, state: Mapping[str, Tensor], share: Share, *, same_classes: bool) -> list[str]:
    """Load a share of the tensors of another network of the same architecture.

    Parameters
    ----------
    same_classes
        Whether both networks have the same classes; if not, the layer that distinguishes them keeps its own weights.

    Returns
    -------
    names of the tensors that were taken over

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


def load_share(
    network: nn.Module,
    architecture: Mapping[str, Any],
    classes: tuple[str, ...],
    share: Share,
    path: str | Path,
    kind: str = "student",
) -> dict[str, Any]:
    """Load a share of the weights in the file of another network, and return what the new file says of it.

    Raises
    ------
    WeightsError
        If the file cannot be read, or holds another kind of network.
    OptionError
        If that is of another architecture.
    """
    state, info = load_checkpoint(path)
    if info.kind != kind:
        raise WeightsError(f"{path} holds a {info.kind}, not a {kind}: give a file of geolabel train student")
    theirs, ours = (
        {key: value for key, value in of.items() if key != "classes"} for of in (info.architecture, architecture)
    )
    if theirs != ours:
        raise OptionError(f"{path} holds {theirs}, and {ours} is to be trained: give the same --model and --preset")
    try:
        taken = take_over(network, state, share, same_classes=info.classes == classes)
    except ValueError as error:
        raise WeightsError(f"{path} does not hold what it says ({error}): train it again") from error
    return {"init": {"share": share, "sha256": sha256(Path(path)), "tensors": len(taken)}}


def load_imagenet_trunk(network: nn.Module, variant: str) -> dict[str, Any]:
    """Load the ImageNet weights that ship into a ResUNet on a trunk of EfficientNet-Lite; return what the file says."""
    trunk = {f"down.{name}": tensor for name, tensor in load_trunk(variant).items()}
    _load_part(network, trunk)
    return {"init": {"share": "backbone", "weights": f"ImageNet, {variant}", "tensors": len(trunk)}}


def load_bundled_trunk(network: nn.Module) -> dict[str, Any]:
    """Load the trunk of the bundled localizer into a ResUNet on such a trunk; return what the new file says of it."""
    path = registry.fetch(registry.lookup("bundled", "localizer")[0])
    state, _ = load_checkpoint(path)
    trunk = {name.replace("trunk.", "down.", 1): tensor for name, tensor in state.items() if name.startswith("trunk.")}
    _load_part(network, trunk)
    return {"init": {"share": "backbone", "sha256": sha256(path), "tensors": len(trunk)}}


def _load_part(network: nn.Module, part: dict[str, Tensor]) -> None:
    """Load some of a network's tensors, all of which it has to have."""
    unexpected = network.load_state_dict(part, strict=False).unexpected_keys
    if unexpected:
        raise WeightsError(f"the network has no {unexpected[0]}: its trunk is another than that of the weights")

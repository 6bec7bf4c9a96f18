"""First weights of a network: those of another network, whole or in part, or a pretrained trunk.

Source: ALPS, section "Experiments": the weights of the whole network, of its backbone or of its head are loaded before
fine-tuning. The head is everything that is not the backbone.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from torch import Tensor, nn

from geolabel.errors import OptionError, WeightsError
from geolabel.io.downloads import sha256
from geolabel.models import registry
from geolabel.models.checkpoint import load_checkpoint, read_tensors
from geolabel.models.nets.classifier import WRN38
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


TIMM = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
"""Mean and standard deviation, of 0..255, that weights of timm and torchvision expect."""


def take_over(network: nn.Module, state: Mapping[str, Tensor], share: Share, *, same_classes: bool) -> list[str]:
    """Load a share of the tensors of another network of the same architecture.

    Parameters
    ----------
    same_classes
        Whether both networks have the same classes; if not, the layer that distinguishes them keeps its own weights.

    Returns
    -------
    names of the loaded tensors

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
    """Load a share of the weights in the file of another network, and return the record of it for the new file.

    Raises
    ------
    WeightsError
        If the file cannot be read, or holds another kind of network.
    OptionError
        If its architecture differs.
    """
    state, info = load_checkpoint(path)
    if info.kind != kind:
        raise WeightsError(f"{path} holds a {info.kind}, not a {kind}: give a file of geolabel train student")
    theirs, ours = (
        {key: value for key, value in of.items() if key != "classes"} for of in (info.architecture, architecture)
    )
    if theirs != ours:
        raise OptionError(f"{path} holds {theirs}, but {ours} is to be trained: give the same --model and --preset")
    try:
        taken = take_over(network, state, share, same_classes=info.classes == classes)
    except ValueError as error:
        raise WeightsError(f"{path} does not match its description ({error}): train it again") from error
    return {"init": {"share": share, "sha256": sha256(Path(path)), "tensors": len(taken)}}


_WRN38_STAGES = {2: 3, 3: 3, 4: 6, 5: 3, 6: 1, 7: 1}
"""Number of blocks of the stages b2 to b7 of the published WRN-38."""

_WRN38_PARTS = {
    "bn_branch2a": ("norm1", "norms.0"),
    "conv_branch2a": ("conv1", "convs.0"),
    "bn_branch2b1": ("norm2", "norms.1"),
    "conv_branch2b1": ("conv2", "convs.1"),
    "bn_branch2b2": ("", "norms.2"),
    "conv_branch2b2": ("", "convs.2"),
    "conv_branch1": ("skip", "skip"),
}
"""Published and own names of the layers of a block: in plain blocks, and in bottlenecks."""


def published_files(backbone: str) -> str:
    """Files that contain the ImageNet weights of a backbone, for a message."""
    if backbone == WRN38:
        return "the published state dict of ResNet-38d, ilsvrc-cls_rna-a1_cls1000_ep-0001 converted to PyTorch"
    return f"model.safetensors of timm/{backbone} on the Hugging Face hub, or torchvision's {backbone}-*.pth"


def load_backbone(trunk: nn.Module, backbone: str, path: Path) -> None:
    """Load ImageNet weights from a file into the trunk of a classifier, or the encoder of a student.

    Parameters
    ----------
    trunk
        That of `geolabel.models.nets.classifier.Classifier`, or of a network of segmentation-models-pytorch.
    backbone
        Its name. Files of timm and torchvision use timm's layer names, which timm flattens in a trunk; files of WRN-38
        use the names of the code that published it.
    path
        Safetensors, or a PyTorch file of tensors only. Tensors that the trunk does not have are ignored.

    Raises
    ------
    WeightsError
        If the file cannot be read, or a tensor of the trunk is missing or has another shape.
    """
    state = {name.removeprefix("module."): tensor for name, tensor in read_tensors(path).items()}
    given = _wrn38_names(state) if backbone == WRN38 else state
    flat = {name.replace(".", "_"): tensor for name, tensor in given.items()}
    wanted = {name: tensor for name, tensor in trunk.state_dict().items() if not name.endswith("num_batches_tracked")}
    found = {name: flat.get(name.replace(".", "_")) for name in wanted}
    wrong = [name for name, tensor in found.items() if tensor is None or tensor.shape != wanted[name].shape]
    if wrong:
        raise WeightsError(
            f"{path} does not hold {backbone}: {len(wrong)} of {len(wanted)} tensors are missing or of another shape, "
            f"such as {wrong[0]}; give {published_files(backbone)}"
        )
    trunk.load_state_dict({name: tensor for name, tensor in found.items() if tensor is not None}, strict=False)


def _wrn38_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of the published WRN-38, by our names; others are dropped."""
    first = 0
    blocks: dict[str, tuple[int, bool]] = {}
    for stage, count in _WRN38_STAGES.items():
        blocks |= {f"b{stage}" + (f"_{k}" if k else ""): (first + k, stage > 5) for k in range(count)}
        first += count
    named = {}
    for name, tensor in state.items():
        block, _, rest = name.partition(".")
        part, _, end = rest.partition(".")
        if block in blocks and part in _WRN38_PARTS:
            number, bottleneck = blocks[block]
            named[f"blocks.{number}.{_WRN38_PARTS[part][bottleneck]}.{end}"] = tensor
        elif block in ("conv1a", "bn7"):
            named[f"{'stem' if block == 'conv1a' else 'norm'}.{rest}"] = tensor
    return named


def load_imagenet_trunk(network: nn.Module, variant: str) -> dict[str, Any]:
    """Load the bundled ImageNet weights into a ResUNet with an EfficientNet-Lite trunk; return the file's record."""
    trunk = {f"down.{name}": tensor for name, tensor in load_trunk(variant).items()}
    _load_part(network, trunk)
    return {"init": {"share": "backbone", "weights": f"ImageNet, {variant}", "tensors": len(trunk)}}


def load_bundled_trunk(network: nn.Module) -> dict[str, Any]:
    """Load the trunk of the bundled localizer into a ResUNet with such a trunk; return the record for the new file."""
    path = registry.fetch(registry.lookup("bundled", "localizer")[0])
    state, _ = load_checkpoint(path)
    trunk = {name.replace("trunk.", "down.", 1): tensor for name, tensor in state.items() if name.startswith("trunk.")}
    _load_part(network, trunk)
    return {"init": {"share": "backbone", "sha256": sha256(path), "tensors": len(trunk)}}


def _load_part(network: nn.Module, part: dict[str, Tensor]) -> None:
    """Load some of a network's tensors; each must exist in the network."""
    unexpected = network.load_state_dict(part, strict=False).unexpected_keys
    if unexpected:
        raise WeightsError(f"the network has no {unexpected[0]}: its trunk is not that of the weights")

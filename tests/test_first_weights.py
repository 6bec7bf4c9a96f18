"""A student that begins where another one ended: which tensors it takes over, and when it cannot."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from geolabel.errors import ChipError, OptionError, WeightsError
from geolabel.models.checkpoint import NetworkInfo, save_checkpoint
from geolabel.models.nets import build
from geolabel.training.first_weights import BACKBONE, CLASSES, SHARES, load_share, take_over
from geolabel.training.train import share_of

RESUNET = {"name": "resunet", "widths": [8, 16]}
UNET = {"name": "smp", "model": "unet", "encoder": "resnet18"}
MASKRCNN = {"name": "maskrcnn", "backbone": "resnet18"}


def network(architecture: dict, classes: int = 2, seed: int = 0):
    torch.manual_seed(seed)
    return build({**architecture, "classes": classes})


@pytest.mark.parametrize("architecture", [RESUNET, UNET, MASKRCNN], ids=["resunet", "unet", "maskrcnn"])
def test_backbone_and_head_are_the_whole(architecture: dict) -> None:
    theirs = network(architecture, seed=1)
    taken = {share: take_over(network(architecture), theirs.state_dict(), share, same_classes=True) for share in SHARES}
    assert set(taken["overall"]) == set(theirs.state_dict())
    assert set(taken["backbone"]) & set(taken["head"]) == set()
    assert set(taken["backbone"]) | set(taken["head"]) == set(taken["overall"])
    assert all(name.startswith(BACKBONE) for name in taken["backbone"])
    assert any(name.startswith(CLASSES) for name in taken["head"])
    assert min(map(len, taken.values())) > 2


@pytest.mark.parametrize("share", SHARES)
def test_what_is_taken_over_is_theirs_and_the_rest_is_ours(share) -> None:
    ours, theirs = network(RESUNET), network(RESUNET, seed=1)
    before = {name: tensor.clone() for name, tensor in ours.state_dict().items()}
    taken = take_over(ours, theirs.state_dict(), share, same_classes=True)
    for name, tensor in ours.state_dict().items():
        assert torch.equal(tensor, theirs.state_dict()[name] if name in taken else before[name]), name


def test_other_classes_are_told_apart_anew() -> None:
    taken = take_over(network(RESUNET, 2), network(RESUNET, 16).state_dict(), "overall", same_classes=False)
    assert taken
    assert not any(name.startswith(CLASSES) for name in taken)
    with pytest.raises(ValueError, match="size mismatch"):
        take_over(network(RESUNET, 2), network(RESUNET, 16).state_dict(), "overall", same_classes=True)
    with pytest.raises(ValueError, match="tensors are missing"):
        take_over(network(RESUNET, 2), {}, "head", same_classes=True)


def test_a_detector_of_other_classes_takes_over_all_but_three_layers() -> None:
    ours, theirs = network(MASKRCNN, 2), network(MASKRCNN, 5)
    taken = take_over(ours, theirs.state_dict(), "overall", same_classes=False)
    assert len(taken) == len(ours.state_dict()) - 6  # weights and biases of scores, boxes and masks


def test_less_images_are_among_more() -> None:
    names = [f"image{k}" for k in range(400)]
    some, more = set(share_of(names, 0.25).tolist()), set(share_of(names, 0.5).tolist())
    assert some < more
    assert 70 < len(some) < 130
    assert share_of(names, 1).tolist() == list(range(400))
    assert share_of(names[::-1], 0.25).tolist() == sorted(399 - k for k in some)
    with pytest.raises(OptionError, match="share 0: give one above 0"):
        share_of(names, 0)
    with pytest.raises(ChipError, match="of 1 images contains none"):
        share_of(names[:1], 1e-9)


def save(path: Path, architecture: dict, classes: tuple[str, ...], kind: str = "student") -> Path:
    info = NetworkInfo(
        kind=kind,
        architecture={**architecture, "classes": len(classes)},
        classes=classes,
        window=64,
        stride=1,
        gsd_range=(0.1, 10.0),
        mean=(0.5,) * 3,
        std=(0.2,) * 3,
    )
    save_checkpoint(path, network(architecture, len(classes), seed=1), info)
    return path


def test_a_file_gives_the_first_weights_and_says_so(tmp_path: Path) -> None:
    path = save(tmp_path / "student.safetensors", RESUNET, ("a", "b", "c"))
    ours = network(RESUNET)
    told = load_share(ours, {**RESUNET, "classes": 2}, ("background", "landslide"), "overall", path)["init"]
    assert (told["share"], len(told["sha256"])) == ("overall", 64)
    assert told["tensors"] == len(ours.state_dict()) - 2  # weight and bias of the layer of the classes


def test_another_network_is_an_error(tmp_path: Path) -> None:
    path = save(tmp_path / "student.safetensors", RESUNET, ("a", "b"))
    with pytest.raises(OptionError, match="give the same --model and --preset"):
        load_share(network(UNET), {**UNET, "classes": 2}, ("a", "b"), "overall", path)
    other = save(tmp_path / "other.safetensors", RESUNET, ("a", "b"), kind="localizer")
    with pytest.raises(WeightsError, match="holds a localizer, not a student"):
        load_share(network(RESUNET), {**RESUNET, "classes": 2}, ("a", "b"), "overall", other)

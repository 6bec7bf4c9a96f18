"""The trunk with ImageNet weights: timm's own forward pass is the oracle."""

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from skimage import data

from geolabel.errors import WeightsError
from geolabel.models.nets import build
from geolabel.models.nets.trunk import IMAGENET_MEAN as MEAN
from geolabel.models.nets.trunk import IMAGENET_STD as STD
from geolabel.models.nets.trunk import VARIANTS, LiteTrunk, convert, load_trunk


def with_wheel_names(variant):
    """Random weights of timm under the names that the wheels have."""
    torch.manual_seed(1)
    network = timm.create_model(f"tf_efficientnet_{variant}", pretrained=False).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    state, renamed, count = network.state_dict(), {}, 0
    for prefix in ("conv_stem", "bn1"):
        mark = {"conv_stem": "_conv_stem", "bn1": "_bn0"}[prefix]
        renamed |= {k.replace(prefix, mark): v for k, v in state.items() if k.startswith(f"{prefix}.")}
    separable = {"conv_dw": "_depthwise_conv", "bn1": "_bn1", "conv_pw": "_project_conv", "bn2": "_bn2"}
    inverted = {
        "conv_pw": "_expand_conv",
        "bn1": "_bn0",
        "conv_dw": "_depthwise_conv",
        "bn2": "_bn1",
        "conv_pwl": "_project_conv",
        "bn3": "_bn2",
    }
    for s, stage in enumerate(network.blocks):
        for b, block in enumerate(stage):
            names = inverted if hasattr(block, "conv_pwl") else separable
            for ours, theirs in names.items():
                start = f"blocks.{s}.{b}.{ours}."
                renamed |= {
                    f"_blocks.{count}.{theirs}.{k.removeprefix(start)}": v
                    for k, v in state.items()
                    if k.startswith(start)
                }
            count += 1
    return network, renamed | {"_fc.weight": state["classifier.weight"]}


@pytest.mark.parametrize("variant", VARIANTS)
def test_features_are_those_of_timm(variant):
    network, wheel = with_wheel_names(variant)
    trunk = LiteTrunk(variant).eval()
    trunk.load_state_dict(convert(wheel, variant))
    images = torch.randn(2, 3, 64, 96)
    with torch.inference_mode():
        x, expected = network.bn1(network.conv_stem(images)), []
        for stage in network.blocks:
            x = stage(x)
            expected.append(x)
        found = trunk(images)
    for ours, theirs in zip(found, (expected[1], expected[2], expected[4], expected[6]), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert [f.shape[-1] for f in found] == [24, 12, 6, 3]
    assert tuple(f.shape[1] for f in found) == trunk.widths


def test_weights_of_another_variant_are_refused():
    _, wheel = with_wheel_names("lite0")
    with pytest.raises(WeightsError, match="not those of EfficientNet-lite2"):
        convert(wheel, "lite2")


def test_the_trunk_that_ships_has_seen_photographs():
    """Features of two pictures of one cat are closer than those of a cat and a cup; random weights do not say so."""
    trunk = LiteTrunk("lite0").eval()
    trunk.load_state_dict(load_trunk("lite0"))

    def describe(rgb):
        pixels = torch.from_numpy(np.array(Image.fromarray(rgb).resize((224, 224)))).permute(2, 0, 1).float()
        normal = (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
        with torch.inference_mode():
            return trunk(normal[None])[-1].mean(dim=(2, 3))[0]

    cat, cup = data.chelsea(), data.coffee()
    views = [describe(v) for v in (cat, np.ascontiguousarray(cat[20:260, 60:400, :]), cup)]
    same, other = (torch.cosine_similarity(views[0], v, dim=0).item() for v in views[1:])
    assert same > other + 0.3


def test_variants_that_do_not_ship_are_named():
    with pytest.raises(WeightsError, match="lite2 do not ship"):
        load_trunk("lite2")
    with pytest.raises(ValueError, match="'lite9' is not known"):
        LiteTrunk("lite9")


def test_batch_normalisation_of_a_trunk_keeps_its_statistics_in_training():
    network = build({"name": "pyramid", "classes": 1, "features": 16, "octaves": 2, "trunk": "lite0"}).train()
    before = network.trunk.bn1.running_mean.clone()
    smooth = network.smooth[0][1].running_mean.clone()
    network(torch.randn(2, 3, 64, 64) + 3)
    torch.testing.assert_close(network.trunk.bn1.running_mean, before, rtol=0, atol=0)
    assert not torch.equal(network.smooth[0][1].running_mean, smooth)

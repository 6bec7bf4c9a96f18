"""The networks that are trained on chips: shapes, strides, and the head taken apart."""

import pytest
import torch
from torch import nn

from geolabel.errors import WeightsError
from geolabel.models.nets import build
from geolabel.models.nets.classifier import Classifier, class_logits, merged_maps
from geolabel.models.nets.localizer import PyramidLocalizer
from geolabel.models.nets.student import ResUNet
from geolabel.models.nets.wideresnet import WideResNet38


@pytest.mark.parametrize("stride", [8, 16, 32])
def test_any_backbone_has_the_stride_it_is_asked_for(stride: int):
    network = build({"name": "classifier", "backbone": "resnet18", "classes": 2, "output_stride": stride}).eval()
    assert isinstance(network, Classifier)
    assert network.stride == stride
    with torch.no_grad():
        assert network(torch.zeros(1, 3, 64, 96)).shape == (1, 2, 64 // stride, 96 // stride)


def test_the_mean_of_the_map_is_the_logit():
    torch.manual_seed(0)
    network = Classifier(backbone="resnet18", classes=3, features=16).eval()
    nn.init.normal_(network.bias)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        pooled = network.features(images).mean(dim=(2, 3))
        expected = pooled @ network.head.weight[:, :, 0, 0].T + network.bias
        torch.testing.assert_close(class_logits(network(images), network.bias), expected)
    assert pooled.shape == (2, 16)


def test_the_features_of_the_bundled_localizer_lead_to_its_map():
    torch.manual_seed(0)
    network = PyramidLocalizer(classes=1, widths=[16] * 4, depths=[1] * 4, features=8).eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(network.head(network.features(images)), network(images))


class Grey(nn.Module):
    """The map is the mean of each cell of the image, minus one half."""

    stride = multiple = 8

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return nn.functional.avg_pool2d(images.mean(dim=1, keepdim=True), 8) - 0.5


def test_scales_and_mirrored_views_are_put_where_they_belong():
    images = torch.zeros(1, 3, 64, 64)
    images[..., :32] = 1
    found = merged_maps(Grey(), images, (0.5, 1.0, 2.0), flip=True)
    assert found.shape == (1, 1, 8, 8)
    torch.testing.assert_close(found[..., :3], torch.full((1, 1, 8, 3), 3.0))
    assert found[..., 5:].max() == 0


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        ({"backbone": "resnet18", "output_stride": 5}, "output stride 5"),
        ({"backbone": "nonsense"}, "no backbone 'nonsense'"),
        ({"backbone": "wrn38", "output_stride": 16}, "output stride 8"),
    ],
)
def test_backbones_that_are_not_there(architecture: dict, message: str):
    with pytest.raises(WeightsError, match=message):
        build({"name": "classifier", "classes": 1, **architecture})


def test_wrn38_has_the_published_shape():
    with torch.device("meta"):
        network = build({"name": "classifier", "backbone": "wrn38", "classes": 20, "output_stride": 8, "features": 256})
        assert network.features(torch.zeros(1, 3, 256, 256)).shape == (1, 256, 32, 32)
        assert network(torch.zeros(1, 3, 256, 256)).shape == (1, 20, 32, 32)
        trunk = network.trunk
    assert isinstance(trunk, WideResNet38)
    assert trunk.channels == 4096
    convolutions = [m for m in trunk.modules() if isinstance(m, nn.Conv2d)]
    # 38 layers that count: the stem, two for each of 15 blocks, three for each of two bottlenecks, and a classifier
    assert len([m for m in convolutions if m.kernel_size == (3, 3)]) == 1 + 2 * 15 + 2


def test_a_narrow_wrn38_learns():
    torch.manual_seed(0)
    trunk = WideResNet38(shrink=16)
    (features,) = trunk(torch.randn(2, 3, 32, 32))
    assert features.shape == (2, 256, 4, 4)
    features.mean().backward()
    assert all(p.grad is not None for p in trunk.parameters())


def test_resunet_scores_every_pixel():
    torch.manual_seed(0)
    network = build({"name": "resunet", "classes": 3, "widths": [4, 8, 12, 16]})
    assert isinstance(network, ResUNet)
    assert network.multiple == 8
    logits = network(torch.randn(2, 3, 48, 56))
    assert logits.shape == (2, 3, 48, 56)
    logits.mean().backward()
    assert all(p.grad is not None for p in network.parameters())


@pytest.mark.parametrize("model", ["unet", "deeplabv3plus", "segformer", "upernet", "pspnet"])
def test_students_of_the_library(model: str):
    encoder = "mit_b0" if model == "segformer" else "resnet18"
    network = build({"name": "smp", "model": model, "encoder": encoder, "classes": 2}).eval()
    with torch.no_grad():
        assert network(torch.zeros(1, 3, 64, 96)).shape == (1, 2, 64, 96)


def test_students_that_are_not_there():
    with pytest.raises(WeightsError, match="no student is called 'fcn'"):
        build({"name": "smp", "model": "fcn", "encoder": "resnet18", "classes": 2})
    with pytest.raises(WeightsError, match="no encoder 'nonsense'"):
        build({"name": "smp", "model": "unet", "encoder": "nonsense", "classes": 2})

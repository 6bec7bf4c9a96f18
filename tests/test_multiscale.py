"""Activation of chips: scales, mirrored views, and maps of classes that a chip does not show."""

import numpy as np
import pytest
import torch

from geolabel.models.cam import CamLocalizer
from geolabel.models.checkpoint import NetworkInfo
from geolabel.models.multiscale import LabelledLocalizer, MultiscaleLocalizer
from geolabel.models.nets import build
from geolabel.models.nets.localizer import PyramidLocalizer
from geolabel.models.on_torch import TorchMaps
from geolabel.parts import Localizer
from geolabel.testing import FakeLocalizer

INFO = NetworkInfo(
    kind="localizer",
    architecture={"name": "pyramid", "classes": 2, "widths": [8, 8, 8, 8], "depths": [1, 1, 1, 1], "features": 8},
    classes=("landslide", "gully"),
    window=64,
    stride=8,
    gsd_range=(0.2, 30.0),
    mean=(120.0, 110.0, 100.0),
    std=(50.0, 55.0, 60.0),
    trained={"zooms": [0.25, 1.0]},
)


@pytest.fixture(scope="module")
def network() -> PyramidLocalizer:
    torch.manual_seed(2)
    made = build(INFO.architecture)
    assert isinstance(made, PyramidLocalizer)
    return made.eval().requires_grad_(False)


def image_of(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def test_one_scale_is_the_activation_that_scenes_have(network):
    image = image_of(64, 96)
    (plain,) = CamLocalizer(TorchMaps(network), INFO, batch=1, normalisation="maximum")([image])
    (found,) = MultiscaleLocalizer(network, INFO, zoom=1.0, scales=(1.0,), flip=False)([image])
    cells = found.values.reshape(2, 8, 8, 12, 8)[:, :, 3:5, :, 3:5].mean(axis=(2, 4))
    inner = (slice(None), slice(1, -1), slice(1, -1))
    # between the four pixels around a cell's centre lies the cell's own value, but for the maximum they are divided by
    ratio = cells[inner][plain.values[inner] > 0.05] / plain.values[inner][plain.values[inner] > 0.05]
    assert ratio.std() < 0.15
    np.testing.assert_allclose(found.probability, plain.probability, rtol=1e-4)


def test_a_mirrored_image_has_the_mirrored_map(network):
    image = image_of(64, 64, seed=3)
    locate = MultiscaleLocalizer(network, INFO, zoom=1.0, scales=(0.5, 1.0))
    (found,), (mirrored,) = locate([image]), locate([np.ascontiguousarray(image[:, ::-1])])
    np.testing.assert_allclose(mirrored.values, found.values[..., ::-1], atol=1e-5)


@pytest.mark.parametrize("size", [(64, 64), (33, 70), (5, 200)])
def test_maps_have_the_size_of_their_image_and_a_maximum_of_one(network, size):
    locate = MultiscaleLocalizer(network, INFO)
    (found,) = locate([image_of(*size)])
    assert found.values.shape == (2, *size)
    assert set(np.round(found.values.max(axis=(1, 2)), 6)) <= {0.0, 1.0}
    assert locate.window == 128  # 64 px at a zoom of one half, the middle of a quarter and one


def test_a_class_that_a_chip_does_not_show_has_no_map():
    locate = LabelledLocalizer(FakeLocalizer(), np.array([False]))
    assert locate.classes == ("landslide",)
    bright = np.full((16, 16, 3), 255, np.uint8)
    assert locate([bright])[0].values.max() == 0
    assert LabelledLocalizer(FakeLocalizer(), np.array([True]))([bright])[0].values.min() == 1


def test_they_are_localizers(network):
    first: Localizer = MultiscaleLocalizer(network, INFO)
    second: Localizer = LabelledLocalizer(first, np.array([True, False]))
    assert second.gsd_range == first.gsd_range == (0.2, 30.0)
    assert second.stride == first.stride == 1
    assert second.window == first.window

"""CamLocalizer: raw maps, normalisation, the gate, batches and padding."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from geolabel.errors import WeightsError
from geolabel.models.cam import CamLocalizer
from geolabel.models.checkpoint import NetworkInfo
from geolabel.models.nets import build
from geolabel.models.nets.localizer import PyramidLocalizer
from geolabel.models.on_torch import TorchMaps
from geolabel.parts import Localizer

INFO = NetworkInfo(
    kind="localizer",
    architecture={"name": "pyramid", "classes": 2, "widths": [8, 8, 8, 8], "depths": [1, 1, 1, 1], "features": 8},
    classes=("landslide", "gully"),
    window=64,
    stride=8,
    gsd_range=(0.2, 30.0),
    mean=(120.0, 110.0, 100.0),
    std=(50.0, 55.0, 60.0),
    constant=0.5,
)


@pytest.fixture(scope="module")
def network() -> PyramidLocalizer:
    torch.manual_seed(1)
    made = build(INFO.architecture)
    assert isinstance(made, PyramidLocalizer)
    made.bias.data = torch.tensor([0.3, -0.7])
    return made.eval().requires_grad_(False)


def image_of(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def raw_maps(network, image):
    """Raw maps of one image, said again in plain torch: replicate to a multiple of 32, normalise, run."""
    height, width = image.shape[:2]
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    padded = functional.pad(pixels, (0, -width % 32, 0, -height % 32), mode="replicate")
    normalised = (padded - torch.tensor(INFO.mean)[:, None, None]) / torch.tensor(INFO.std)[:, None, None]
    return network(normalised)[0].numpy()


@pytest.mark.parametrize("size", [(64, 64), (64, 96), (33, 70), (5, 9), (1, 1)])
def test_maps_are_the_networks_and_cover_the_image_to_its_last_cell(network, size):
    image = image_of(*size)
    (found,) = CamLocalizer(TorchMaps(network), INFO, batch=1)([image])
    rows, cols = -(-size[0] // 8), -(-size[1] // 8)
    raw = raw_maps(network, image)[:, :rows, :cols]
    assert found.values.shape == found.local_probability.shape == (2, rows, cols)
    np.testing.assert_allclose(found.values, np.clip(raw / 0.5, 0, 1), atol=1e-5)
    np.testing.assert_allclose(found.raw_max, raw.max(axis=(1, 2)), atol=1e-5)
    assert (found.stride, found.classes) == (8, ("landslide", "gully"))


def test_the_maximum_of_each_class_becomes_one_on_chips(network):
    images = [image_of(64, 64, seed) for seed in range(2)]
    for found in CamLocalizer(TorchMaps(network), INFO, batch=2, normalisation="maximum")(images):
        for values, raw_max in zip(found.values, found.raw_max, strict=True):
            assert values.max() == (1.0 if raw_max > 0 else 0.0)


def test_the_probability_of_an_image_of_the_training_size_is_that_of_the_classifier(network):
    image = image_of(64, 64)
    (found,) = CamLocalizer(TorchMaps(network), INFO, batch=1)([image])
    logits = raw_maps(network, image).mean(axis=(1, 2)) + network.bias.numpy()
    np.testing.assert_allclose(found.probability, 1 / (1 + np.exp(-logits)), atol=1e-5)


def test_a_batch_equals_one_by_one(network):
    images = [image_of(40, 72, seed) for seed in range(3)]
    together = CamLocalizer(TorchMaps(network), INFO, batch=2)(images)
    for image, found in zip(images, together, strict=True):
        (alone,) = CamLocalizer(TorchMaps(network), INFO, batch=1)([image])
        np.testing.assert_allclose(found.values, alone.values, atol=1e-5)
        np.testing.assert_allclose(found.local_probability, alone.local_probability, atol=1e-5)


def test_the_same_bytes_whoever_shares_the_batch(network):
    images = [image_of(64, 64, seed) for seed in range(3)]
    locate = CamLocalizer(TorchMaps(network), INFO, batch=4)
    assert np.array_equal(locate(images)[0].values, locate(images[:1])[0].values)


def test_images_that_are_normalised_on_a_device_have_the_same_maps(network):
    images = [image_of(60, 52, seed) for seed in range(3)]
    expected = CamLocalizer(TorchMaps(network), INFO, batch=4)(images)
    maps = TorchMaps(network)
    maps.apart = True  # a processor as a stand-in
    for found, other in zip(CamLocalizer(maps, INFO, batch=4)(images), expected, strict=True):
        assert np.array_equal(found.raw_max, other.raw_max)
        assert np.array_equal(found.values, other.values)


def test_nothing_in_nothing_out(network):
    assert CamLocalizer(TorchMaps(network), INFO)([]) == []


def test_images_of_two_sizes_are_refused(network):
    with pytest.raises(ValueError, match="one size"):
        CamLocalizer(TorchMaps(network), INFO)([image_of(8, 8), image_of(8, 9)])


@pytest.mark.parametrize("constant", [None, 0.0, -1.0])
def test_a_localizer_without_a_constant_serves_chips_only(network, constant):
    info = replace(INFO, constant=constant)
    with pytest.raises(WeightsError, match=f"constant {constant}"):
        CamLocalizer(TorchMaps(network), info)
    assert CamLocalizer(TorchMaps(network), info, normalisation="maximum")([image_of(8, 8)])


def test_bf16_keeps_to_the_answer(network):
    image = image_of(64, 64)
    (exact,) = CamLocalizer(TorchMaps(network), INFO, batch=1)([image])
    (rough,) = CamLocalizer(TorchMaps(network, precision="bf16"), INFO, batch=1)([image])
    assert rough.raw_max.dtype == np.float32
    np.testing.assert_allclose(rough.raw_max, exact.raw_max, atol=0.05)
    assert not np.array_equal(rough.raw_max, exact.raw_max)


def test_it_is_a_localizer(network):
    locate: Localizer = CamLocalizer(TorchMaps(network), INFO)
    assert (locate.window, locate.stride, locate.gsd_range) == (64, 8, (0.2, 30.0))
    assert locate.classes == ("landslide", "gully")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_gpu_agrees_with_the_cpu(network):
    images = [image_of(100, 72, seed) for seed in range(3)]
    expected = CamLocalizer(TorchMaps(network), INFO)(images)
    try:
        found = CamLocalizer(TorchMaps(network, device="cuda"), INFO)(images)
    finally:
        network.to("cpu")
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a.raw_max, b.raw_max, atol=1e-4)
        np.testing.assert_allclose(a.values, b.values, atol=1e-3)

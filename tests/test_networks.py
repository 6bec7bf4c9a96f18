"""The bundled networks' architectures and the files that hold them."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib import resources

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from segment_anything.modeling import PromptEncoder, Sam

from geolabel.activation import local_probability
from geolabel.errors import WeightsError
from geolabel.models.checkpoint import KEY, NetworkInfo, load_checkpoint, read_info, save_checkpoint
from geolabel.models.nets import build
from geolabel.models.nets.classifier import class_logits
from geolabel.models.nets.sam import DrawingPromptEncoder

PYRAMID = {"name": "pyramid", "classes": 2, "widths": [24, 24, 24, 24], "depths": [1, 1, 1, 1], "features": 12}
SAM = {
    "name": "sam",
    "img_size": 128,
    "widths": [24, 24, 24, 24],
    "depths": [1, 1, 1, 1],
    "embed_dim": 32,
    "decoder_depth": 1,
    "heads": 2,
    "mlp_dim": 32,
    "pixel_mean": [110.0, 110.0, 110.0],
    "pixel_std": [65.0, 65.0, 65.0],
}
INFO = NetworkInfo(
    kind="localizer",
    architecture=PYRAMID,
    classes=("landslide", "debris flow"),
    window=128,
    stride=8,
    gsd_range=(0.2, 30.0),
    mean=(110.0, 110.0, 110.0),
    std=(65.0, 65.0, 65.0),
    constant=12.5,
    trained={"seed": 0},
)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def prompts() -> DrawingPromptEncoder:
    encoder = build(SAM).prompt_encoder
    assert isinstance(encoder, DrawingPromptEncoder)
    return encoder


def test_localizer_maps_have_the_stride_of_the_class():
    network = build(PYRAMID).eval()
    assert network(torch.zeros(2, 3, 64, 96)).shape == (2, 2, 64 // network.stride, 96 // network.stride)


@pytest.mark.parametrize("size", [(64, 64), (96, 32), (160, 224)])
def test_two_octaves_begin_as_a_mean_of_both_resolutions(size):
    network = build(PYRAMID | {"octaves": 2}).eval()
    single = build(PYRAMID).eval()
    single.load_state_dict({k: v for k, v in network.state_dict().items() if not k.startswith("mix.")})
    images = torch.randn(2, 3, *size)
    with torch.inference_mode():
        fine = single(images)
        assert network(images).shape == fine.shape
        if min(size) % 64 == 0 and max(size) % 64 == 0:
            coarse = torch.nn.functional.interpolate(
                single.features(torch.nn.functional.avg_pool2d(images, 2)), scale_factor=2.0, mode="bilinear"
            )
            expected = single.head(0.75 * single.features(images) + 0.25 * coarse)
            torch.testing.assert_close(network(images), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(WeightsError, match="1 or 2 octaves, not 3"):
        build(PYRAMID | {"octaves": 3})


@pytest.mark.parametrize("octaves", [1, 2])
def test_mean_of_the_map_is_the_logit_of_pooled_features(octaves):
    # Zhou et al. 2016: pooling first or last is the same for a linear head.
    network = build(PYRAMID | {"octaves": octaves}).eval()
    torch.nn.init.normal_(network.bias)
    seen = []
    network.head.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0]))
    with torch.inference_mode():
        maps = network(torch.randn(1, 3, 64, 64))
        pooled = seen[0].mean(dim=(2, 3)) @ network.head.weight[:, :, 0, 0].T + network.bias
    expected = local_probability(maps[0].numpy(), network.bias.detach().numpy(), cells=8)
    np.testing.assert_allclose(pooled.sigmoid()[0].numpy(), expected[:, 0, 0], atol=1e-6)


def test_a_pyramid_without_its_coarsest_level():
    network = build(PYRAMID | {"strides": [8, 16], "sharpness": 2.0}).eval()
    assert len(network.lateral) == 2
    images = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        assert network(images).shape[-2:] == (8, 12)
        _, at8, at16, _ = network.trunk(images)
        joined = network.lateral[0](at8) + torch.nn.functional.interpolate(
            network.lateral[1](at16), scale_factor=2.0, mode="bilinear"
        )
        torch.testing.assert_close(network.features(images), network.smooth(joined.relu()))
        raw = torch.randn(1, 2, 3, 5)
        pooled = class_logits(raw, torch.zeros(2), 2.0)
    torch.testing.assert_close(pooled, (raw * 2).exp().mean(dim=(2, 3)).log() / 2)
    for wrong in ({"strides": [16]}, {"strides": [4, 8]}, {"sharpness": -1.0}, {"sharpness": "much"}):
        with pytest.raises(WeightsError, match="cannot be built from its description"):
            build(PYRAMID | wrong)


def test_sam_embeds_at_stride_16_and_answers_at_stride_4():
    sam = build(SAM).eval()
    assert isinstance(sam, Sam)
    with torch.inference_mode():
        embedding = sam.image_encoder(torch.randn(1, 3, 128, 128))
        assert embedding.shape == (1, 32, 8, 8)
        sparse, dense = sam.prompt_encoder(points=None, boxes=torch.tensor([[8.0, 8.0, 40.0, 30.0]] * 3), masks=None)
        masks, quality = sam.mask_decoder(embedding, sam.prompt_encoder.get_dense_pe(), sparse, dense, True)
    assert masks.shape == (3, 3, 32, 32)
    assert quality.shape == (3, 3)


def test_drawn_box_covers_its_pixels_and_no_others(prompts):
    # Pixels 4 to 11 across and 8 to 9 down: two whole cells of 4 px, half a cell in height.
    drawn = prompts.draw(None, torch.tensor([[4.0, 8.0, 11.0, 9.0]]))
    expected = torch.zeros(1, 1, 32, 32)
    expected[0, 0, 2, 1:3] = 0.5
    torch.testing.assert_close(drawn, expected)


def test_drawn_box_keeps_the_area_of_any_box(prompts):
    boxes = torch.tensor([[0.0, 0.0, 0.0, 0.0], [3.0, 5.0, 100.0, 77.0], [0.0, 0.0, 127.0, 127.0]])
    area = (boxes[:, 2] - boxes[:, 0] + 1) * (boxes[:, 3] - boxes[:, 1] + 1)
    torch.testing.assert_close(prompts.draw(None, boxes).sum(dim=(1, 2, 3)) * 16, area)


def test_drawn_points_are_bumps_dents_and_nothing(prompts):
    where = torch.tensor([[[21.5, 13.5]]]).repeat(3, 1, 1)  # the centre of cell (3, 5)
    drawn = prompts.draw((where, torch.tensor([[1], [0], [-1]])), None)[:, 0]
    assert drawn[0].argmax() == 3 * 32 + 5
    assert drawn[0, 3, 5] == pytest.approx(1)
    torch.testing.assert_close(drawn[1], -drawn[0])
    assert not drawn[2].any()


def test_given_mask_is_encoded_as_segment_anything_does(prompts):
    boxes, masks = torch.tensor([[3.0, 4.0, 50.0, 60.0]]), torch.randn(1, 1, 32, 32)
    for ours, theirs in zip(
        prompts(None, boxes, masks), PromptEncoder.forward(prompts, None, boxes, masks), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_build_names_what_it_knows():
    with pytest.raises(WeightsError, match=r"'resnet'.*pyramid, resunet, sam"):
        build({"name": "resnet"})
    with pytest.raises(WeightsError, match="depth"):
        build(PYRAMID | {"depth": 3})
    with pytest.raises(WeightsError, match="4 stages"):
        build(PYRAMID | {"widths": [8, 8]})


def test_checkpoint_comes_back_rounded_to_half_precision(tmp_path):
    network = build(PYRAMID).eval()
    path = tmp_path / "network.safetensors"
    save_checkpoint(path, network, INFO)
    state, info = load_checkpoint(path)
    assert info == INFO == read_info(path)
    assert list(tmp_path.iterdir()) == [path]
    for name, tensor in network.state_dict().items():
        expected = tensor.half().float() if tensor.is_floating_point() else tensor
        torch.testing.assert_close(state[name], expected, rtol=0, atol=0)
    again = build(info.architecture)
    again.load_state_dict(state)


def test_sam_comes_back_from_its_description(tmp_path):
    sam = build(SAM).eval()
    path = tmp_path / "sam.safetensors"
    save_checkpoint(path, sam, replace(INFO, kind="segmenter", architecture=SAM, constant=None))
    state, info = load_checkpoint(path)
    again = build(info.architecture).eval()
    again.load_state_dict(state)
    image = torch.randn(1, 3, 128, 128)
    with torch.inference_mode():
        torch.testing.assert_close(again.image_encoder(image), sam.image_encoder(image), atol=2e-2, rtol=2e-2)
    torch.testing.assert_close(again.pixel_mean, sam.pixel_mean)


def test_same_network_same_bytes(tmp_path):
    network = build(PYRAMID)
    for name in ("a", "b"):
        save_checkpoint(tmp_path / name, network, INFO)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist"),
        (b"PK\x03\x04 not safetensors", "not a complete safetensors file"),
        ({"tensors": {}}, "has no description"),
        ({KEY: "[]"}, "cannot be read"),
        ({KEY: json.dumps({"format": 1, "kind": "localizer"})}, "cannot be read"),
        ({KEY: INFO.to_json().replace('"format": 1', '"format": 99')}, "format 99.*up to 1"),
    ],
)
def test_what_is_no_checkpoint_is_told_apart(tmp_path, content, message):
    path = tmp_path / "x.safetensors"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        metadata = {key: text for key, text in content.items() if isinstance(text, str)}
        save_file({"x": torch.zeros(1)}, path, metadata=metadata)
    with pytest.raises(WeightsError, match=message):
        load_checkpoint(path)


def test_truncated_checkpoint_is_an_error(tmp_path):
    path = tmp_path / "network.safetensors"
    save_checkpoint(path, build(PYRAMID), INFO)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(WeightsError, match="fetch or train it again"):
        load_checkpoint(path)


def test_later_fields_of_a_description_are_left_alone():
    text = json.loads(INFO.to_json()) | {"added_later": 1}
    assert NetworkInfo.from_json(json.dumps(text)) == INFO


def test_a_description_can_have_nothing_fetched():
    text = json.loads(INFO.to_json())
    text["architecture"] = {"name": "classifier", "backbone": "resnet18", "classes": 1, "pretrained": True}
    with pytest.raises(WeightsError, match="implausible values"):
        NetworkInfo.from_json(json.dumps(text))


def test_a_description_has_a_sharpness_that_can_be():
    text = json.loads(INFO.to_json())
    for wrong in (0, -1.0, "much", [1.0]):
        text["architecture"]["sharpness"] = wrong
        with pytest.raises(WeightsError, match="implausible values"):
            NetworkInfo.from_json(json.dumps(text))
    text["architecture"]["sharpness"] = 2.0
    assert NetworkInfo.from_json(json.dumps(text)).sharpness == 2.0


@pytest.mark.parametrize("kind", ["localizer", "segmenter"])
def test_bundled_network_is_what_its_description_says(kind):
    folder = resources.files("geolabel.weights")
    state, info = load_checkpoint(folder / f"{kind}.safetensors")
    network = build(info.architecture)
    network.load_state_dict(state)
    assert all(tensor.isfinite().all() for tensor in state.values())
    assert info.kind == kind
    assert info.classes == ("landslide",)
    assert info.gsd_range == ((0.2, 0.6) if kind == "localizer" else (0.2, 30))
    assert info.mean == tuple(info.architecture.get("pixel_mean", info.mean))
    if kind == "localizer":
        assert info.stride == network.stride
        assert info.window % network.stride == 0
        assert info.constant > 0
    else:
        assert info.window == network.image_encoder.img_size == 512
    assert "CC BY 4.0" in (folder / f"{kind}.md").read_text()


def test_bundled_networks_stay_small():
    folder = resources.files("geolabel.weights")
    assert sum((folder / f"{kind}.safetensors").stat().st_size for kind in ("localizer", "segmenter", "lite0")) <= 25e6

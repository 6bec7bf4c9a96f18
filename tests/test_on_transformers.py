"""Successors of Segment Anything: what the adapter answers is what the library's own forward pass does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import pytest
import rasterio
import torch
from affine import Affine

transformers = pytest.importorskip("transformers")

from geolabel.cli.main import run as command  # noqa: E402
from geolabel.errors import WeightsError  # noqa: E402
from geolabel.io.write.geopackage import read_provenance  # noqa: E402
from geolabel.masks import EVERY_CANDIDATE, FeaturedMasks, Filters, quantise_logits, stability_score  # noqa: E402
from geolabel.models import hub, loading  # noqa: E402
from geolabel.prompts import Prompts  # noqa: E402

DECODER = {
    "hidden_size": 16, "mlp_dim": 32, "num_attention_heads": 2, "iou_head_hidden_dim": 16, "num_hidden_layers": 2,
}  # fmt: skip


def sam2(**changes: Any) -> Any:
    backbone = transformers.Sam2HieraDetConfig(
        hidden_size=8, num_attention_heads=1, blocks_per_stage=[1, 1, 2, 1], embed_dim_per_stage=[8, 16, 32, 64],
        num_attention_heads_per_stage=[1, 1, 2, 2], window_size_per_stage=[4, 2, 2, 2], global_attention_blocks=[3],
        image_size=[64, 64], window_positional_embedding_background_size=[4, 4],
    )  # fmt: skip
    vision = transformers.Sam2VisionConfig(
        backbone_config=backbone, backbone_channel_list=[64, 32, 16, 8], fpn_hidden_size=16,
        backbone_feature_sizes=[[16, 16], [8, 8], [4, 4]],
    )  # fmt: skip
    prompts = transformers.Sam2PromptEncoderConfig(hidden_size=16, image_size=64, patch_size=16, mask_input_channels=8)
    config = transformers.Sam2Config(
        vision_config=vision,
        prompt_encoder_config=prompts,
        mask_decoder_config=transformers.Sam2MaskDecoderConfig(**DECODER),
        **changes,
    )
    return transformers.Sam2Model(config)


MODELS = {"sam2": sam2}
"""Tiny networks of each class, of random weights."""


def noisy(model: Any) -> Any:
    """The same model with every parameter and buffer of position random: none stays at zero."""
    generator = torch.Generator().manual_seed(7)
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module", params=list(MODELS))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("networks") / request.param
    torch.manual_seed(3)
    model = noisy(MODELS[request.param]())
    model.save_pretrained(made)
    processor_of(made).save_pretrained(made)
    return made


def model_of(folder: Path) -> Any:
    kinds = {"sam2": "Sam2Model"}
    return getattr(transformers, kinds[folder.name]).from_pretrained(folder).eval()


def processor_of(folder: Path) -> Any:
    side = {"height": 64, "width": 64}
    return transformers.Sam2ImageProcessor(size=side, mask_size={"height": 16, "width": 16})


def image_of(height: int, width: int, seed: int = 0) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 8 + 1, width // 8 + 1, 3)).astype(np.uint8)
    return coarse.repeat(8, axis=0).repeat(8, axis=1)[:height, :width]


def segmenter_of(folder: Path, **options: Any) -> Any:
    return loading.load(loading.recipe("segmenter", str(folder), device="cpu", **options))


POINTS = Prompts.build(points=np.array([[[20.0, 12.0]], [[5.0, 30.0]]]), labels=np.array([[1], [0]]))
BOXES = Prompts.build(boxes=np.array([[4.0, 6.0, 30.0, 29.0], [0.0, 0.0, 12.0, 40.0]]))
BOTH = Prompts.build(
    points=np.array([[[20.0, 12.0], [8.0, 9.0]], [[5.0, 30.0], [1.0, 1.0]]]),
    labels=np.array([[1, 0], [1, 1]]),
    boxes=np.array([[4.0, 6.0, 30.0, 29.0], [0.0, 0.0, 12.0, 40.0]]),
)


def forward(folder: Path, image: np.ndarray, prompts: Prompts, multiple: bool = True) -> tuple[Any, Any]:
    """Masks (K, 3, H, W) as logits of the image's pixels and predicted IoU, by the library alone."""
    model, processor = model_of(folder), processor_of(folder)
    given = processor(image, return_tensors="pt")
    scale = np.array([64 / image.shape[1], 64 / image.shape[0]])
    asked: dict[str, Any] = {}
    if prompts.has_point.any():
        asked["input_points"] = torch.tensor(prompts.points * scale, dtype=torch.float32)[None]
        asked["input_labels"] = torch.tensor(prompts.labels.astype(np.int64))[None]
    if prompts.has_box.any():
        corners = (prompts.boxes - [0, 0, 1, 1]) * np.tile(scale, 2)
        asked["input_boxes"] = torch.tensor(corners, dtype=torch.float32)[None]
    with torch.inference_mode():
        found = model(pixel_values=given["pixel_values"], **asked, multimask_output=multiple)
    (masks,) = processor.post_process_masks(found.pred_masks, [image.shape[:2]], binarize=False)
    return masks.numpy(), found.iou_scores[0].numpy()


def coarse_of(folder: Path, image: np.ndarray) -> np.ndarray:
    """(D, h, w) of what the library's encoder sees in an image."""
    pixels = processor_of(folder)(image, return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        return model_of(folder).get_image_embeddings(pixels)[-1][0].numpy()


@pytest.mark.parametrize("size", [(64, 64), (40, 56), (37, 64)])
@pytest.mark.parametrize("prompts", [POINTS, BOXES, BOTH], ids=["points", "boxes", "both"])
def test_masks_are_those_of_the_librarys_forward_pass(folder: Path, size: tuple[int, int], prompts: Prompts) -> None:
    image = image_of(*size)
    logits, quality = forward(folder, image, prompts)
    assert quality.shape == (2, 3)
    best = quality.argmax(axis=1)
    (masks,) = segmenter_of(folder)([image], [prompts])
    assert masks.candidates.tolist() == (best + 1).tolist()
    assert masks.predicted_iou == pytest.approx(quality.max(axis=1).clip(0, 1), abs=1e-5)
    for k in range(2):
        expected = quantise_logits(logits[k, best[k]])
        assert 0 < (expected > 127).mean() < 1
        assert np.abs(masks.scores[k].astype(int) - expected).max() <= 1
        assert masks.stability[k] == pytest.approx(stability_score(logits[k, best[k]]), abs=0.02)


def test_a_single_mask_is_the_librarys_single_mask(folder: Path) -> None:
    image = image_of(48, 64)
    logits, quality = forward(folder, image, BOXES, multiple=False)
    (masks,) = segmenter_of(folder, selection="single")([image], [BOXES])
    assert masks.predicted_iou == pytest.approx(quality[:, 0].clip(0, 1), abs=1e-5)
    assert np.abs(masks.scores.astype(int) - quantise_logits(logits[:, 0])).max() <= 1


def test_everything_mode_has_the_three_candidates_of_every_point(folder: Path) -> None:
    image = image_of(40, 56)
    logits, quality = forward(folder, image, POINTS)
    recipe = loading.recipe("segmenter", str(folder), device="cpu")
    (masks,) = loading.load(recipe.everything(EVERY_CANDIDATE, features=True))([image], [POINTS])
    assert isinstance(masks, FeaturedMasks)
    order = np.argsort(-quality.ravel(), kind="stable")
    order = order[(logits.reshape(6, -1)[order] > 0).any(axis=1)]
    assert masks.predicted_iou == pytest.approx(quality.ravel()[order].clip(0, 1), abs=1e-5)
    assert np.abs(masks.scores.astype(int) - quantise_logits(logits.reshape(6, *image.shape[:2])[order])).max() <= 1
    seen = coarse_of(folder, image).repeat(10, axis=1).repeat(14, axis=2)  # 4 x 4 cells fill 40 x 56 pixels
    for mask, found in zip(masks.binary, masks.features, strict=True):
        assert found == pytest.approx(seen[:, mask].mean(axis=1), abs=1e-4)
    cut = float(np.median(quality.clip(0, 1)))
    some = Filters(predicted_iou=cut, stability=0, duplicate=1)
    (masks,) = loading.load(recipe.everything(some))([image], [POINTS])
    assert len(masks) == (quality.ravel()[order] > cut).sum() < len(order)


def test_answers_depend_on_no_other_image_or_prompt(folder: Path) -> None:
    segmenter = segmenter_of(folder, batch=2)
    images = [image_of(64, 64), image_of(40, 56, 1), image_of(64, 50, 2)]
    together = segmenter(images, [POINTS, BOXES, BOTH])
    for image, prompts, masks in zip(images, (POINTS, BOXES, BOTH), together, strict=True):
        (alone,) = segmenter([image], [prompts])
        assert (alone.scores == masks.scores).all()
        assert (alone.predicted_iou == masks.predicted_iou).all()
    assert len(segmenter([images[0]], [Prompts.build()])[0]) == 0


def test_brain_floats_answer_nearly_the_same(folder: Path) -> None:
    image = image_of(64, 64)
    (exact,), (rounded,) = (segmenter_of(folder, precision=p)([image], [BOXES]) for p in ("fp32", "bf16"))
    assert rounded.predicted_iou == pytest.approx(exact.predicted_iou, abs=0.1)


def test_normalisation_is_what_the_folder_says(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / folder.name
    other.mkdir()
    for file in folder.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    name = "preprocessor_config.json" if (other / "preprocessor_config.json").is_file() else "processor_config.json"
    given = json.loads((other / name).read_text())
    part = given.get("image_processor", given)
    part["image_mean"] = [0.1, 0.2, 0.3]
    (other / name).write_text(json.dumps(given))
    image = image_of(64, 64)
    first, second = (segmenter_of(at)([image], [BOXES])[0] for at in (folder, other))
    assert (first.predicted_iou != second.predicted_iou).all()
    part["image_std"] = [0, 1, 1]
    (other / name).write_text(json.dumps(given))
    with pytest.raises(WeightsError, match="holds no mean and deviation of three colours"):
        segmenter_of(other)


# -- over scenes -------------------------------------------------------------------------------------------------------


def test_a_scene_is_segmented_and_its_provenance_names_the_folder(folder: Path, tmp_path: Path) -> None:
    image = image_of(80, 96)
    with rasterio.open(
        tmp_path / "scene.tif", "w", driver="GTiff", height=80, width=96, count=3, dtype="uint8", crs="EPSG:32648",
        transform=Affine(0.5, 0, 500_000, 0, -0.5, 3_000_000),
    ) as file:  # fmt: skip
        file.write(np.moveaxis(image, 2, 0))
    out = tmp_path / "segments.gpkg"
    given = ["segment", str(tmp_path / "scene.tif"), "--out", str(out), "--sam", str(folder), "--points-per-side", "4"]
    assert command([*given, "--predicted-iou", "0", "--stability", "0", "--device", "cpu"]) == 0
    assert len(pyogrio.read_dataframe(out, layer="segments")) > 0
    network = read_provenance(out)["networks"]["segmenter"]
    assert (network["source"], network["sha256"]) == (str(folder), hub.digest(folder))


# -- folders of others -------------------------------------------------------------------------------------------------


@pytest.fixture
def copy(tmp_path: Path, folder: Path) -> Path:
    other = tmp_path / folder.name
    other.mkdir()
    for file in folder.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    return other


def change(folder: Path, **values: Any) -> None:
    given = json.loads((folder / "config.json").read_text())
    for name, value in values.items():
        part = given
        *outer, last = name.split("__")
        for key in outer:
            part = part[key]
        part[last] = value
    (folder / "config.json").write_text(json.dumps(given))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"model_type": "llama"}, "type 'llama', which geolabel does not run: known are"),
        ({"mask_decoder_config__mlp_dim": 1 << 40}, "mlp_dim is 1099511627776"),
        ({"mask_decoder_config__mlp_dim": 1 << 13}, r"it has \d+ weights, and the files hold \d+"),
        ({"mask_decoder_config__num_hidden_layers": 100_000}, "num_hidden_layers is 100000"),
        ({"mask_decoder_config__mlp_dim": "many"}, "cannot be loaded"),
        ({"prompt_encoder_config__image_size": 8192}, "its images have 8192 px a side"),
        ({"vision_config": None}, "cannot be loaded"),
        ({"mask_decoder_config": [1]}, "cannot be loaded"),
        ({"mask_decoder_config__hidden_act": "x" * 100}, "hidden_act is xxx"),
        ({"vision_config__backbone_config__hidden_act": "exec"}, "cannot be loaded"),
    ],
)
def test_a_description_that_no_network_has_is_refused(copy: Path, values: dict[str, Any], said: str) -> None:
    change(copy, **values)
    with pytest.raises(WeightsError, match=said):
        segmenter_of(copy)


def test_code_that_a_folder_names_is_not_run(copy: Path) -> None:
    (copy / "evil.py").write_text("raise SystemExit('run')")
    change(
        copy, auto_map={"AutoModel": "evil.Model", "AutoConfig": "evil.Config"}, _name_or_path="http://nowhere.invalid"
    )
    image = image_of(64, 64)
    assert len(segmenter_of(copy)([image], [BOXES])[0]) == 2


def test_weights_of_another_network_are_refused(copy: Path) -> None:
    from safetensors.torch import load_file, save_file

    state = load_file(copy / "model.safetensors")
    name = next(name for name in state if "iou_prediction_head" in name)
    save_file({"elsewhere" if key == name else key: value for key, value in state.items()}, copy / "model.safetensors")
    with pytest.raises(WeightsError, match=r"1 tensors are missing, such as mask_decoder"):
        segmenter_of(copy)

"""Successors of Segment Anything: what the adapter answers is what the library's own forward pass does."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cache, partial
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
from geolabel.models import hub, loading, registry  # noqa: E402
from geolabel.models.nets.vit import halve  # noqa: E402
from geolabel.prompts import Prompts  # noqa: E402

DECODER = {
    "hidden_size": 16,
    "mlp_dim": 32,
    "num_attention_heads": 2,
    "iou_head_hidden_dim": 16,
    "num_hidden_layers": 2,
}


def sam2(**changes: Any) -> Any:
    backbone = transformers.Sam2HieraDetConfig(
        hidden_size=8,
        num_attention_heads=1,
        blocks_per_stage=[1, 1, 2, 1],
        embed_dim_per_stage=[8, 16, 32, 64],
        num_attention_heads_per_stage=[1, 1, 2, 2],
        window_size_per_stage=[4, 2, 2, 2],
        global_attention_blocks=[3],
        image_size=[64, 64],
        window_positional_embedding_background_size=[4, 4],
    )
    vision = transformers.Sam2VisionConfig(
        backbone_config=backbone,
        backbone_channel_list=[64, 32, 16, 8],
        fpn_hidden_size=16,
        backbone_feature_sizes=[[16, 16], [8, 8], [4, 4]],
    )
    prompts = transformers.Sam2PromptEncoderConfig(hidden_size=16, image_size=64, patch_size=16, mask_input_channels=8)
    config = transformers.Sam2Config(
        vision_config=vision,
        prompt_encoder_config=prompts,
        mask_decoder_config=transformers.Sam2MaskDecoderConfig(**DECODER),
        **changes,
    )
    return transformers.Sam2Model(config)


def vit(prefix: str, **decoder: Any) -> Any:
    """Sam and SamHQ."""
    of = {name: getattr(transformers, f"{prefix}{name}") for name in ("VisionConfig", "PromptEncoderConfig")}
    vision = of["VisionConfig"](
        hidden_size=16,
        output_channels=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=64,
        window_size=2,
        global_attn_indexes=[1],
        num_pos_feats=8,
        mlp_dim=32,
    )
    prompts = of["PromptEncoderConfig"](hidden_size=16, image_size=64, patch_size=16, mask_input_channels=8)
    mask = getattr(transformers, f"{prefix}MaskDecoderConfig")(**DECODER, **decoder)
    config = getattr(transformers, f"{prefix}Config")(
        vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=mask
    )
    return getattr(transformers, f"{prefix}Model")(config)


def edgetam() -> Any:
    backbone = transformers.TimmWrapperConfig(
        architecture="repvit_m1", model_args={"in_chans": 3, "features_only": True, "out_indices": [0, 1, 2, 3]}
    )
    vision = transformers.EdgeTamVisionConfig(
        backbone_config=backbone, fpn_hidden_size=16, backbone_feature_sizes=[[16, 16], [8, 8], [4, 4]]
    )
    prompts = transformers.EdgeTamPromptEncoderConfig(
        hidden_size=16, image_size=64, patch_size=16, mask_input_channels=8
    )
    mask = transformers.EdgeTamMaskDecoderConfig(**DECODER)
    return transformers.EdgeTamModel(
        transformers.EdgeTamConfig(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=mask)
    )


def sam3() -> Any:
    backbone = transformers.Sam3ViTConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=56,
        patch_size=14,
        window_size=2,
        global_attn_indexes=[1],
        pretrain_image_size=28,
    )
    vision = transformers.Sam3VisionConfig(
        backbone_config=backbone, fpn_hidden_size=16, backbone_feature_sizes=[[16, 16], [8, 8], [4, 4]]
    )
    prompts = transformers.Sam3TrackerPromptEncoderConfig(
        hidden_size=16, image_size=56, patch_size=14, mask_input_channels=8
    )
    mask = transformers.Sam3TrackerMaskDecoderConfig(**DECODER)
    return transformers.Sam3TrackerModel(
        transformers.Sam3TrackerConfig(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=mask)
    )


MODELS = {
    "sam": lambda: vit("Sam"),
    "sam_hq": lambda: vit("SamHQ", vit_dim=16),
    "sam2": sam2,
    "edgetam": edgetam,
    "sam3": sam3,
}
"""Tiny networks of each class, of random weights."""


def noisy(model: Any) -> Any:
    """The same model with every parameter random, so that none stays at zero, and masks of both signs."""
    generator = torch.Generator().manual_seed(7)
    for name, parameter in model.named_parameters():
        if "timm" not in name:  # many layers, whose random weights multiply
            parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    model.eval().requires_grad_(False)
    side = model.prompt_encoder.input_image_size
    pixels = torch.randn(1, 3, side, side, generator=generator)
    masks = model(pixel_values=pixels, input_boxes=torch.tensor([[[8.0, 8, 40, 40]]])).pred_masks
    for name, parameter in model.mask_decoder.named_parameters():
        if name.endswith(("proj_out.weight", "proj_out.bias")) and ("hypernetworks" in name or "hq_mask" in name):
            parameter *= 3 / masks.std()  # logits are linear in them
    return model


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Makes the folder of a tiny network, once."""
    root = tmp_path_factory.mktemp("networks")

    def folder_of(name: str) -> Path:
        if not (root / name).is_dir():
            torch.manual_seed(3)
            noisy(MODELS[name]()).save_pretrained(root / name)
            processor_of(root / name).save_pretrained(root / name)
        return root / name

    return folder_of


@pytest.fixture(params=list(MODELS))
def folder(request: pytest.FixtureRequest, folders: Callable[[str], Path]) -> Path:
    return folders(request.param)


@pytest.fixture
def sam2_folder(folders: Callable[[str], Path]) -> Path:
    return folders("sam2")


@cache
def model_of(folder: Path) -> Any:
    kinds = {"sam": "Sam", "sam_hq": "SamHQ", "sam2": "Sam2", "edgetam": "EdgeTam", "sam3": "Sam3Tracker"}
    return getattr(transformers, f"{kinds[folder.name]}Model").from_pretrained(folder).eval()


def processor_of(folder: Path) -> Any:
    if folder.name in ("sam", "sam_hq"):
        return transformers.SamImageProcessor(size={"longest_edge": 64}, pad_size={"height": 64, "width": 64})
    if folder.name == "sam3":
        return transformers.Sam3ImageProcessor(size={"height": 56, "width": 56})
    return transformers.Sam2ImageProcessor(size={"height": 64, "width": 64})


def test_a_device_is_sent_images_as_they_are_and_keeps_weights_in_bf16(folder: Path) -> None:
    random = np.random.default_rng(0)
    images = [random.integers(0, 255, (40, 56, 3)).astype(np.uint8) for _ in range(2)]
    network: Any = loading.load(loading.recipe("segmenter", folder, device="cpu", precision="bf16", batch=2))._network
    with network.running():
        expected = network.encode(images)
        network.apart = True
        halve(network._model.vision_encoder)
        for found, other in zip(network.encode(images), expected, strict=True):
            assert torch.equal(found.coarse, other.coarse)
    assert torch.bfloat16 in {parameter.dtype for parameter in network._model.vision_encoder.parameters()}


@pytest.mark.slow
def test_the_registry_has_the_sizes_of_the_networks() -> None:
    def hiera(width: int, heads: int, blocks: list[int]) -> Any:
        widths = [width << level for level in range(4)]
        backbone = transformers.Sam2HieraDetConfig(
            hidden_size=width,
            embed_dim_per_stage=widths,
            blocks_per_stage=blocks,
            num_attention_heads=heads,
            num_attention_heads_per_stage=[heads << level for level in range(4)],
            window_positional_embedding_background_size=[14, 14] if width == 112 else [7, 7],
        )
        vision = transformers.Sam2VisionConfig(backbone_config=backbone, backbone_channel_list=widths[::-1])
        return transformers.Sam2VideoModel(transformers.Sam2VideoConfig(vision_config=vision))

    def hq(width: int, layers: int) -> Any:
        vision = transformers.SamHQVisionConfig(
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=16 if width > 768 else 12,
            global_attn_indexes=[layers * part // 4 - 1 for part in (1, 2, 3, 4)],
        )
        mask = transformers.SamHQMaskDecoderConfig(vit_dim=width)
        return transformers.SamHQModel(transformers.SamHQConfig(vision_config=vision, mask_decoder_config=mask))

    def edge() -> Any:
        vision = transformers.EdgeTamVisionConfig(backbone_config=edgetam().config.vision_config.backbone_config)
        return transformers.EdgeTamVideoModel(transformers.EdgeTamVideoConfig(vision_config=vision))

    models = {
        "sam2.1-tiny": partial(hiera, 96, 1, [1, 2, 7, 2]),
        "sam2.1-small": partial(hiera, 96, 1, [1, 2, 11, 2]),
        "sam2.1-base-plus": partial(hiera, 112, 2, [2, 3, 16, 3]),
        "sam2.1-large": partial(hiera, 144, 2, [2, 6, 36, 4]),
        "sam-hq-base": partial(hq, 768, 12),
        "sam-hq-large": partial(hq, 1024, 24),
        "sam-hq-huge": partial(hq, 1280, 32),
        "edgetam": edge,
        "sam3": lambda: transformers.Sam3VideoModel(transformers.Sam3VideoConfig()),
    }
    with torch.device("meta"):
        sizes = {name: 4 * sum(p.numel() for p in make().parameters()) for name, make in models.items()}
    assert sizes == {p.name: p.size for p in registry.PUBLISHED if p.hub}


def image_of(height: int, width: int, seed: int = 0) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 8 + 1, width // 8 + 1, 3)).astype(np.uint8)
    return coarse.repeat(8, axis=0).repeat(8, axis=1)[:height, :width]


@cache
def part_of(folder: Path, **options: Any) -> Any:
    """A segmenter; loaded once for each choice of options."""
    return segmenter_of(folder, **options)


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
    frame = given["reshaped_input_sizes"][0] if "reshaped_input_sizes" in given else given["pixel_values"].shape[2:]
    scale = np.array([frame[1] / image.shape[1], frame[0] / image.shape[0]], float)
    asked: dict[str, Any] = {}
    if prompts.has_point.any():
        asked["input_points"] = torch.tensor(prompts.points * scale, dtype=torch.float32)[None]
        asked["input_labels"] = torch.tensor(prompts.labels.astype(np.int64))[None]
    if prompts.has_box.any():
        corners = (prompts.boxes - [0, 0, 1, 1]) * np.tile(scale, 2)
        asked["input_boxes"] = torch.tensor(corners, dtype=torch.float32)[None]
    with torch.inference_mode():
        found = model(pixel_values=given["pixel_values"], **asked, multimask_output=multiple)
    sizes = [[image.shape[:2]], *([[tuple(map(int, frame))]] if "reshaped_input_sizes" in given else [])]
    (masks,) = processor.post_process_masks(found.pred_masks, *sizes, binarize=False)
    return masks.numpy(), found.iou_scores[0].numpy()


def coarse_of(folder: Path, image: np.ndarray) -> np.ndarray:
    """(D, h, w) of what the library's encoder sees in an image."""
    pixels = processor_of(folder)(image, return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        return model_of(folder).get_image_embeddings(pixels)[-1][0].numpy()


@pytest.mark.parametrize(
    ("size", "prompts"),
    [((56, 56), BOXES), ((40, 56), POINTS), ((37, 51), BOTH)],
    ids=["boxes", "points", "both"],
)
def test_masks_are_those_of_the_librarys_forward_pass(folder: Path, size: tuple[int, int], prompts: Prompts) -> None:
    image = image_of(*size)
    logits, quality = forward(folder, image, prompts)
    assert quality.shape == (2, 3)
    best = quality.argmax(axis=1)
    (masks,) = part_of(folder)([image], [prompts])
    assert masks.candidates.tolist() == (best + 1).tolist()
    assert masks.predicted_iou == pytest.approx(quality.max(axis=1).clip(0, 1), abs=1e-5)
    for k in range(2):
        expected = quantise_logits(logits[k, best[k]])
        assert 0 < (expected > 127).mean() < 1
        assert expected.std() > 10
        assert np.abs(masks.scores[k].astype(int) - expected).max() <= 1
        assert masks.stability[k] == pytest.approx(stability_score(logits[k, best[k]]), abs=0.02)


def test_a_single_mask_is_the_librarys_single_mask(folder: Path) -> None:
    image = image_of(42, 56)
    logits, quality = forward(folder, image, BOXES, multiple=False)
    (masks,) = part_of(folder, selection="single")([image], [BOXES])
    assert masks.predicted_iou == pytest.approx(quality[:, 0].clip(0, 1), abs=1e-5)
    assert np.abs(masks.scores.astype(int) - quantise_logits(logits[:, 0])).max() <= 1


def test_everything_mode_has_the_three_candidates_of_every_point(folder: Path) -> None:
    image = image_of(40, 56)
    logits, quality = forward(folder, image, POINTS)
    recipe = loading.recipe("segmenter", str(folder), device="cpu")
    (masks,) = loading.load(recipe.everything(EVERY_CANDIDATE, features=True))([image], [POINTS])
    assert isinstance(masks, FeaturedMasks)
    order = np.argsort(-quality.ravel(), kind="stable")
    order = order[(logits.reshape(6, -1)[order] > 0).any(axis=1) & (quality.ravel()[order] > 0)]
    assert len(order) > 1
    assert masks.predicted_iou == pytest.approx(quality.ravel()[order].clip(0, 1), abs=1e-5)
    assert np.abs(masks.scores.astype(int) - quantise_logits(logits.reshape(6, *image.shape[:2])[order])).max() <= 1
    if folder.name not in ("sam", "sam_hq"):  # where an image fills the frame, 4 x 4 cells fill 40 x 56 pixels
        seen = coarse_of(folder, image).repeat(10, axis=1).repeat(14, axis=2)
        for mask, found in zip(masks.binary, masks.features, strict=True):
            assert found == pytest.approx(seen[:, mask].mean(axis=1), abs=1e-4)
    cut = float(quality.ravel()[order].clip(0, 1).mean())
    some = Filters(predicted_iou=cut, stability=0, duplicate=1)
    (masks,) = loading.load(recipe.everything(some))([image], [POINTS])
    assert 0 < len(masks) == (quality.ravel()[order] > cut).sum() < len(order)


def test_answers_depend_on_no_other_image_or_prompt(folder: Path) -> None:
    segmenter = part_of(folder, batch=2)
    images = [image_of(56, 56), image_of(40, 56, 1), image_of(56, 50, 2)]
    together = segmenter(images, [POINTS, BOXES, BOTH])
    other = image_of(30, 56, 3)  # in the place of the one that shared the call; the third image had one of its own
    for k, (image, prompts, masks) in enumerate(zip(images, (POINTS, BOXES, BOTH), together, strict=True)):
        sharing = [[image, other], [other, image], [image]][k]
        alone = segmenter(sharing, [prompts if one is image else POINTS for one in sharing])[1 if k == 1 else 0]
        assert (alone.scores == masks.scores).all()
        assert (alone.predicted_iou == masks.predicted_iou).all()
    assert len(segmenter([images[0]], [Prompts.build()])[0]) == 0


def test_brain_floats_answer_nearly_the_same(sam2_folder: Path) -> None:
    image = image_of(56, 56)
    (exact,), (rounded,) = (part_of(sam2_folder, **given)([image], [BOXES]) for given in ({}, {"precision": "bf16"}))
    assert rounded.predicted_iou == pytest.approx(exact.predicted_iou, abs=0.1)


def test_normalisation_is_what_the_folder_says(sam2_folder: Path, copy: Path) -> None:
    other = copy
    name = "preprocessor_config.json" if (other / "preprocessor_config.json").is_file() else "processor_config.json"
    given = json.loads((other / name).read_text())
    part = given.get("image_processor", given)
    part["image_mean"] = [0.1, 0.2, 0.3]
    (other / name).write_text(json.dumps(given))
    image = image_of(56, 56)
    first, second = (segmenter_of(at)([image], [BOXES])[0] for at in (sam2_folder, other))
    assert (first.predicted_iou != second.predicted_iou).all()
    part["image_std"] = [0, 1, 1]
    (other / name).write_text(json.dumps(given))
    with pytest.raises(WeightsError, match="lacks mean and deviation of three colours"):
        segmenter_of(other)


# -- over scenes -------------------------------------------------------------------------------------------------------


def test_a_scene_is_segmented_and_its_provenance_names_the_folder(sam2_folder: Path, tmp_path: Path) -> None:
    image = image_of(80, 96)
    with rasterio.open(
        tmp_path / "scene.tif",
        "w",
        driver="GTiff",
        height=80,
        width=96,
        count=3,
        dtype="uint8",
        crs="EPSG:32648",
        transform=Affine(0.5, 0, 500_000, 0, -0.5, 3_000_000),
    ) as file:
        file.write(np.moveaxis(image, 2, 0))
    out = tmp_path / "segments.gpkg"
    given = [
        "segment",
        str(tmp_path / "scene.tif"),
        "--out",
        str(out),
        "--sam",
        str(sam2_folder),
        "--points-per-side",
        "4",
    ]
    assert command([*given, "--predicted-iou", "0", "--stability", "0", "--device", "cpu"]) == 0
    assert len(pyogrio.read_dataframe(out, layer="segments")) > 0
    network = read_provenance(out)["networks"]["segmenter"]
    assert (network["source"], network["sha256"]) == (str(sam2_folder), hub.digest(sam2_folder))


# -- folders of others -------------------------------------------------------------------------------------------------


@pytest.fixture
def copy(tmp_path: Path, sam2_folder: Path) -> Path:
    return Path(shutil.copytree(sam2_folder, tmp_path / "sam2"))


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
        ({"mask_decoder_config__mlp_dim": 1 << 13}, r"it has \d+ weights, but the files hold \d+"),
        ({"mask_decoder_config__mlp_dim": 7}, "cannot be loaded"),
        ({"mask_decoder_config__mlp_dim": 0}, "cannot be loaded"),
        ({"mask_decoder_config__num_hidden_layers": 100_000}, "num_hidden_layers is 100000"),
        ({"mask_decoder_config__mlp_dim": "many"}, "cannot be loaded"),
        ({"prompt_encoder_config__image_size": 8192}, "its images have 8192 px a side"),
        ({"vision_config": None}, "cannot be loaded"),
        ({"mask_decoder_config": [1]}, "cannot be loaded"),
        ({"mask_decoder_config__hidden_act": "x" * 100}, "hidden_act is xxx"),
        ({"vision_config__backbone_config__hidden_act": "exec"}, "cannot be loaded"),
    ],
)
def test_a_description_that_no_network_has_is_refused(
    copy: Path, values: dict[str, Any], said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    change(copy, **values)
    with pytest.raises(WeightsError, match=said):
        segmenter_of(copy)
    assert not capfd.readouterr().err  # the library has much to say


def test_the_tracker_is_read_from_a_file_that_also_holds_the_detector(
    folders: Callable[[str], Path], tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    plain = folders("sam3")
    whole = Path(shutil.copytree(plain, tmp_path / "sam3"))
    parts = {
        "vision_encoder.backbone.": "detector_model.vision_encoder.backbone.",
        "vision_encoder.neck.": "tracker_neck.",
    }
    tensors = {"detector_model.text.weight": torch.full((3,), torch.nan)}
    for full, value in load_file(plain / "model.safetensors").items():
        name = full.removeprefix("tracker_model.")
        old = next((old for old in parts if name.startswith(old)), "")
        tensors[parts.get(old, "tracker_model.") + name.removeprefix(old)] = value
    save_file(tensors, whole / "model.safetensors")
    tracker = json.loads((plain / "config.json").read_text())
    (whole / "config.json").write_text(json.dumps({"model_type": "sam3_video", "tracker_config": tracker}))
    image = image_of(40, 56)
    (expected,), (masks,) = (part([image], [BOTH]) for part in (part_of(plain), segmenter_of(whole)))
    assert (masks.scores == expected.scores).all()


def test_a_network_that_would_never_end_is_refused(folders: Callable[[str], Path], tmp_path: Path) -> None:
    other = Path(shutil.copytree(folders("sam3"), tmp_path / "sam3"))
    change(other, vision_config__backbone_config__window_size=4096)
    with pytest.raises(WeightsError, match=r"an image takes \S+ operations, more than 1e\+14"):
        segmenter_of(other)


@pytest.mark.parametrize("name", ["hf-hub:owner/name", "resnet50", "repvit_m1.dist_in1k@main", 3])
def test_edgetam_has_its_own_backbone_alone(folders: Callable[[str], Path], tmp_path: Path, name: str | int) -> None:
    other = Path(shutil.copytree(folders("edgetam"), tmp_path / "edgetam"))
    change(other, vision_config__backbone_config__architecture=name)
    with pytest.raises(WeightsError, match=f"its backbone is .*{name}.*, not repvit_m1"):
        segmenter_of(other)


def test_code_that_a_folder_names_is_not_run(copy: Path) -> None:
    (copy / "evil.py").write_text("raise SystemExit('run')")
    change(
        copy, auto_map={"AutoModel": "evil.Model", "AutoConfig": "evil.Config"}, _name_or_path="http://nowhere.invalid"
    )
    image = image_of(56, 56)
    assert len(segmenter_of(copy)([image], [BOXES])[0]) == 2


def test_weights_of_another_network_are_refused(copy: Path) -> None:
    from safetensors.torch import load_file, save_file

    state = load_file(copy / "model.safetensors")
    name = next(name for name in state if "iou_prediction_head" in name)
    save_file({"elsewhere" if key == name else key: value for key, value in state.items()}, copy / "model.safetensors")
    with pytest.raises(WeightsError, match=r"1 tensors are missing, such as mask_decoder"):
        segmenter_of(copy)

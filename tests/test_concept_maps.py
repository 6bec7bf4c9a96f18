"""Concepts of SAM 3: the map is what the library's own forward pass and its post-processing make of an image."""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import torch
from affine import Affine
from PIL import Image

transformers = pytest.importorskip("transformers", reason="needs the extra geolabel[sam]")

from geolabel.cli.main import run  # noqa: E402
from geolabel.concepts import Asked, parse_concepts  # noqa: E402
from geolabel.datasets.pseudo_labels import PseudoLabels  # noqa: E402
from geolabel.engine import worker  # noqa: E402
from geolabel.errors import OptionError, WeightsError  # noqa: E402
from geolabel.io.write.geopackage import read_provenance  # noqa: E402
from geolabel.models import hub, loading  # noqa: E402
from geolabel.models.nets.vit import halve  # noqa: E402
from geolabel.parts import SegmenterRecipe  # noqa: E402
from geolabel.testing import write_tokenizer  # noqa: E402

WORDS = ("landslide", "mud|slide", "airplane", "storage", "tank")
SIDE = 112


def detector() -> Any:
    """A tiny Sam3Model of random weights that sees 112 px; its masks have 32 x 32 cells."""
    part = transformers.models.sam3.configuration_sam3
    small = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "num_layers": 1}
    backbone = transformers.Sam3ViTConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=SIDE,
        patch_size=14,
        window_size=2,
        global_attn_indexes=[1],
        pretrain_image_size=28,
    )
    text = transformers.CLIPTextConfig(
        vocab_size=100,
        hidden_size=16,
        intermediate_size=32,
        projection_dim=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=32,
        hidden_act="gelu",
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    config = transformers.Sam3Config(
        vision_config=transformers.Sam3VisionConfig(
            backbone_config=backbone, fpn_hidden_size=16, backbone_feature_sizes=[[32, 32], [16, 16], [8, 8]]
        ),
        text_config=text,
        geometry_encoder_config=transformers.Sam3GeometryEncoderConfig(**small),
        detr_encoder_config=part.Sam3DETREncoderConfig(**small),
        detr_decoder_config=part.Sam3DETRDecoderConfig(**small, num_queries=6),
        mask_decoder_config=part.Sam3MaskDecoderConfig(hidden_size=16, num_attention_heads=2),
    )
    torch.manual_seed(3)
    model = transformers.Sam3Model(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter += 0.2 * torch.randn(parameter.shape)
    # words that differ in what they find, where, and whether
    model.dot_product_scoring.query_proj.weight *= 6
    model.detr_decoder.presence_head.layer3.weight *= 60
    model.text_projection.weight *= 3
    model.mask_decoder.mask_embedder.layers[2].bias -= 1
    return model


def image_of(height: int, width: int, seed: int = 0) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 8 + 1, width // 8 + 1, 3)).astype(np.uint8)
    return coarse.repeat(8, axis=0).repeat(8, axis=1)[:height, :width]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("concepts") / "sam3"
    model = detector()
    model.save_pretrained(path)
    transformers.Sam3ImageProcessor(size={"height": SIDE, "width": SIDE}).save_pretrained(path)
    write_tokenizer(path, WORDS)
    return path


@cache
def localizer_of(folder: Path, classes: str = "landslide,airplane", **options: Any) -> Any:
    like = SegmenterRecipe("bundled", **{"device": "cpu", "batch": 2} | options)
    return loading.load(loading.concept_recipe(folder, Asked(parse_concepts(classes)), like))


@cache
def library_of(folder: Path) -> tuple[Any, Any]:
    processor = transformers.Sam3Processor(
        transformers.Sam3ImageProcessor(size={"height": SIDE, "width": SIDE}),
        transformers.CLIPTokenizer.from_pretrained(folder),
    )
    return transformers.Sam3Model.from_pretrained(folder).eval(), processor


def by_the_library(folder: Path, image: np.ndarray, word: str) -> tuple[Any, Any, float]:
    """The library's own answer: unions (H, W) of instances by threshold, scores, and the presence of a concept."""
    model, processor = library_of(folder)
    given = processor(images=image, text=word, return_tensors="pt")
    with torch.inference_mode():
        found = model(pixel_values=given.pixel_values, input_ids=given.input_ids, attention_mask=given.attention_mask)

    def instances(threshold: float) -> Any:
        return processor.post_process_instance_segmentation(found, threshold, 0.5, [image.shape[:2]])[0]

    def union(threshold: float) -> np.ndarray:
        return instances(threshold)["masks"].reshape(-1, *image.shape[:2]).numpy().astype(bool).any(axis=0)

    return union, np.sort(instances(0.0)["scores"].numpy()), float(found.presence_logits.sigmoid())


@pytest.mark.parametrize("size", [(SIDE, SIDE), (90, 110)], ids=["whole", "part"])
def test_the_map_cut_at_a_threshold_is_the_union_of_the_instances_that_the_library_keeps(
    folder: Path, size: tuple[int, int]
) -> None:
    image = image_of(*size)
    (found,) = localizer_of(folder)([image])
    assert found.values.shape == (2, *size)
    seen = set()
    for k, word in enumerate(("landslide", "airplane")):
        union, scores, presence = by_the_library(folder, image, word)
        assert found.probability[k] == pytest.approx(presence, abs=1e-5)
        assert found.raw_max[k] == pytest.approx(scores.max(), abs=1e-5)
        for threshold in (*((scores[1:] + scores[:-1]) / 2).tolist(), 0.5, 0.99):
            assert (found.values[k] > threshold).tolist() == union(threshold).tolist()
            seen.add(int(union(threshold).sum()))
    assert len(seen) > 5  # instances differ


def test_of_several_words_the_surest_counts(folder: Path) -> None:
    image = image_of(SIDE, SIDE, 1)
    (both,), (one,), (other,) = (
        localizer_of(folder, classes)([image]) for classes in ("landslide/mudslide", "landslide", "mudslide")
    )
    assert both.classes == ("landslide",)
    assert (both.values == np.maximum(one.values, other.values)).all()
    assert both.probability == max(one.probability, other.probability)
    assert one.probability != other.probability


def test_only_what_is_asked_is_active(folder: Path) -> None:
    image = image_of(SIDE, SIDE)
    whole = localizer_of(folder)
    (all_of_it,), (some,), (none,) = (part([image]) for part in (whole, whole.only(("airplane",)), whole.only(())))
    assert some.classes == all_of_it.classes
    assert (some.values[1] == all_of_it.values[1]).all()
    assert some.values[1].max() > 0 == some.values[0].max() == some.probability[0]
    assert none.values.max() == 0


def test_a_word_that_finds_nothing_is_active_nowhere(folder: Path) -> None:
    localizer = loading.load(
        loading.concept_recipe(folder, Asked(parse_concepts("tank")), SegmenterRecipe("x", batch=1))
    )
    localizer._model.detr_decoder.presence_head.layer3.bias -= 1e4
    (found,) = localizer([image_of(SIDE, SIDE)])
    assert found.values.shape == (1, SIDE, SIDE)
    assert found.values.max() == found.raw_max[0] == 0
    assert found.probability[0] < 1e-3


def test_a_map_depends_on_no_other_image(folder: Path) -> None:
    images = [image_of(SIDE, SIDE, seed) for seed in range(3)]
    localizer = localizer_of(folder)
    together = localizer(images)
    assert localizer([]) == []
    for k, partner in ((0, 2), (1, 2)):
        pair = [images[k], images[partner]] if k == 0 else [images[partner], images[k]]
        assert (localizer(pair)[k].values == together[k].values).all()
    (alone,) = localizer([images[2]])
    assert (alone.values == together[2].values).all()
    with pytest.raises(ValueError, match="exceeds the window of 112 px"):
        localizer([image_of(SIDE + 1, 50)])


def test_brain_floats_answer_nearly_the_same(folder: Path) -> None:
    image = image_of(SIDE, SIDE)
    (exact,), (rounded,) = (localizer_of(folder, precision=given)([image]) for given in ("fp32", "bf16"))
    assert rounded.probability == pytest.approx(exact.probability, abs=0.1)
    assert rounded.raw_max == pytest.approx(exact.raw_max, abs=0.1)
    halved = loading.load(loading.concept_recipe(folder, Asked(parse_concepts("tank")), SegmenterRecipe("x", batch=1)))
    halve(halved._model.get_submodule("vision_encoder"))  # as on a GPU
    halved._precision = "bf16"
    (one,) = halved([image])
    (other,) = localizer_of(folder, "tank")([image])
    assert one.probability == pytest.approx(other.probability, abs=0.1)
    assert one.raw_max == pytest.approx(other.raw_max, abs=0.1)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ("滑坡", "tokenizer does not know '滑坡'"),
        ("xyz", "knows no part of 'xyz' and splits it into 3"),
        (" ".join(["tank"] * 31), "has 33 tokens, the limit is 32: give a shorter name"),
    ],
)
def test_words_that_the_network_cannot_read_are_refused(folder: Path, classes: str, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        localizer_of(folder, classes)


# --- folders of others


@pytest.fixture
def copy(tmp_path: Path, folder: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "sam3"))


def change(folder: Path, **values: Any) -> None:
    given = json.loads((folder / "config.json").read_text())
    for name, value in values.items():
        part = given
        *outer, last = name.split("__")
        for key in outer:
            part = part[key]
        part[last] = value
    (folder / "config.json").write_text(json.dumps(given))


def test_the_detector_is_read_from_a_file_that_also_holds_the_tracker(folder: Path, copy: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = {f"detector_model.{name}": value for name, value in load_file(folder / "model.safetensors").items()}
    tensors |= {f"tracker_{part}.weight": torch.full((3,), torch.nan) for part in ("model.a", "neck.b")}
    save_file(tensors, copy / "model.safetensors")
    detector_config = json.loads((folder / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({"model_type": "sam3_video", "detector_config": detector_config}))
    image = image_of(SIDE, SIDE)
    (expected,), (found,) = (localizer_of(of)([image]) for of in (folder, copy))
    # tensors begin elsewhere in the file, and last digits may differ
    assert (np.abs(found.values - expected.values) > 1e-5).mean() < 0.001
    assert found.probability == pytest.approx(expected.probability, abs=1e-5)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"model_type": "sam2"}, "type 'sam2', which reads no words: known are sam3, sam3_video"),
        ({"detr_decoder_config__num_queries": 100_000}, "num_queries is 100000"),
        ({"text_config__vocab_size": 1 << 40}, "vocab_size is 1099511627776"),
        ({"text_config__intermediate_size": 1 << 13}, r"it has \d+ weights, but the files hold \d+"),
        ({"text_config__max_position_embeddings": 8}, "cannot be loaded"),
        ({"detr_encoder_config__num_layers": 100_000}, "num_layers is 100000"),
        ({"vision_config__backbone_config__image_size": 8192}, "its images have 8192 px a side"),
        ({"vision_config__backbone_config__patch_size": 0}, "cannot be loaded"),
        ({"mask_decoder_config__num_upsampling_stages": 0}, "cannot be loaded"),
        ({"text_config": None}, "cannot be loaded"),
        ({"geometry_encoder_config": [1]}, "cannot be loaded"),
    ],
)
def test_a_description_that_no_network_has_is_refused(
    copy: Path, values: dict[str, Any], said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    change(copy, **values)
    with pytest.raises(WeightsError, match=said) as error:
        localizer_of(copy)
    assert "\n" not in str(error.value)
    assert not capfd.readouterr().err  # the library has much to say


def test_one_file_of_a_tokenizer_is_enough(folder: Path, copy: Path) -> None:
    transformers.CLIPTokenizer.from_pretrained(folder).save_pretrained(copy)
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        (copy / name).unlink(missing_ok=True)
    assert (copy / "tokenizer.json").is_file()
    image = image_of(SIDE, SIDE)
    (expected,), (found,) = (localizer_of(of, "storage tank")([image]) for of in (folder, copy))
    assert (found.values == expected.values).all()


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("vocab.json", "[]", "cannot be read"),
        ("vocab.json", "{", "cannot be read"),
        ("vocab.json", '{"a": -1}', "cannot be read"),
        ("merges.txt", "#version: 0.2\na b c d\n", "cannot be read"),
        ("merges.txt", "q q\n" * 5_000_000, "cannot be read .*larger than 16777216 bytes"),
        (
            "tokenizer.json",
            '{"model": {"vocab": {"<|startoftext|>": 0, "<|endoftext|>": 100}, "merges": []}}',
            "but its network has 100",
        ),
        ("tokenizer.json", '{"model": 3}', "cannot be read"),
    ],
)
def test_a_damaged_tokenizer_is_refused(copy: Path, name: str, text: str, said: str) -> None:
    (copy / name).write_text(text)
    with pytest.raises(WeightsError, match=f"tokenizer of .* {said}"):
        localizer_of(copy)


@pytest.mark.parametrize("gone", ["vocab.json", "model.safetensors", "config.json"])
def test_a_folder_that_lacks_a_part_is_refused_by_name(copy: Path, gone: str) -> None:
    (copy / gone).rename(copy / "pytorch_model.bin")  # a pickle, if it were read
    named = "tokenizer.json" if gone == "vocab.json" else gone
    with pytest.raises(WeightsError, match=f"{named} missing; give such a folder, with weights as safetensors"):
        localizer_of(copy)


def test_the_digest_changes_with_the_words_that_are_known(copy: Path) -> None:
    asked, like = Asked(parse_concepts("tank")), SegmenterRecipe("bundled")
    recipe = loading.concept_recipe(copy, asked, like)
    assert recipe.source == str(copy)
    assert recipe.sha256 == hub.digest(copy, words=True) != hub.digest(copy)
    (copy / "merges.txt").write_text((copy / "merges.txt").read_text() + "t a\n")
    with pytest.raises(WeightsError, match=r"the run was planned with .*: plan it again"):
        loading.load(recipe)


def test_weights_that_are_given_on_request_name_where_to_ask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], scene: Path
) -> None:
    import huggingface_hub
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError

    class Refused(GatedRepoError):
        def __init__(self) -> None:
            Exception.__init__(self, "401")

    def refuse(**_: object) -> str:
        raise Refused

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.delenv("GEOLABEL_OFFLINE", raising=False)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    assert extract(scene, tmp_path / "out.gpkg", "--classes", "landslide") == 1
    said = "geolabel: facebook/sam3 is gated: request access at https://huggingface.co/facebook/sam3, run hf auth login"
    assert said in capsys.readouterr().err
    monkeypatch.setenv("GEOLABEL_OFFLINE", "1")
    assert extract(scene, tmp_path / "out.gpkg", "--classes", "landslide") == 1
    assert "or give the folder of a downloaded model with --localizer FOLDER" in capsys.readouterr().err


# --- the commands


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """180 px a side: several windows of the network's 112 px."""
    path = tmp_path_factory.mktemp("scene") / "scene.tif"
    profile = {"driver": "GTiff", "dtype": "uint8", "count": 3, "height": 180, "width": 180, "crs": "EPSG:32648"}
    with rasterio.open(path, "w", transform=Affine(0.5, 0, 350_000, 0, -0.5, 3_450_000), **profile) as file:
        file.write(np.moveaxis(image_of(180, 180), 2, 0))
    return path


def extract(scene: Path, out: Path, *options: Any, command: str = "extract") -> int:
    arguments = [command, scene, "--out", out, "--method", "sam3", "--threads", 1, "--device", "cpu", *options]
    return run([str(argument) for argument in arguments])


def test_a_scene_is_searched_for_several_classes_and_does_not_depend_on_its_blocks(
    folder: Path, scene: Path, tmp_path: Path
) -> None:
    options = ["--localizer", folder, "--classes", "landslide/mudslide,airplane"]
    for name, block in (("one", 2048), ("many", 64)):
        assert extract(scene, tmp_path / f"{name}.gpkg", *options, "--block-size", block) == 0
    one, many = (gpd.read_file(tmp_path / f"{name}.gpkg", layer="landslides") for name in ("one", "many"))
    assert set(one["class"]) == {"landslide", "airplane"}
    assert one.drop(columns="geometry").equals(many.drop(columns="geometry"))
    assert one.geometry.to_wkb().tolist() == many.geometry.to_wkb().tolist()
    network = read_provenance(tmp_path / "one.gpkg")["networks"]["localizer"]
    assert (network["source"], network["sha256"]) == (str(folder), hub.digest(folder, words=True))
    assert [one["words"] for one in network["asked"]["concepts"]] == [["landslide", "mudslide"], ["airplane"]]


def test_a_tile_without_the_concept_is_not_searched(folder: Path, scene: Path, tmp_path: Path) -> None:
    options = ["--localizer", folder, "--classes", "landslide", "--activation-threshold", 50]
    assert extract(scene, tmp_path / "all.gpkg", *options, "--gate", 0) == 0
    assert extract(scene, tmp_path / "none.gpkg", *options, "--gate", 0.9999) == 0
    found = [len(gpd.read_file(tmp_path / f"{name}.gpkg", layer="landslides")) for name in ("all", "none")]
    assert found[0] > 0 == found[1]


def test_scores_are_predicted(folder: Path, scene: Path, tmp_path: Path) -> None:
    options = ["--localizer", folder, "--classes", "storage tank"]
    assert extract(scene, tmp_path / "scores.tif", *options, command="predict") == 0
    with rasterio.open(tmp_path / "scores.tif") as file:
        assert file.read(1).any()


def test_the_instances_themselves_may_be_the_answer(folder: Path, tmp_path: Path) -> None:
    scene, image = tmp_path / "scene.tif", image_of(SIDE, SIDE, 1)
    profile = {"driver": "GTiff", "dtype": "uint8", "count": 3, "height": SIDE, "width": SIDE, "crs": "EPSG:32648"}
    with rasterio.open(scene, "w", transform=Affine(0.5, 0, 350_000, 0, -0.5, 3_450_000), **profile) as file:
        file.write(np.moveaxis(image, 2, 0))
    options = ["--localizer", folder, "--classes", "airplane", "--stretch", "none", "--attention-only"]
    assert extract(scene, tmp_path / "scores.tif", *options, command="predict") == 0
    union, _, presence = by_the_library(folder, image, "airplane")
    with rasterio.open(tmp_path / "scores.tif") as file:
        found = file.read(1)
        assert found.shape == (SIDE, SIDE)
        assert ((found > 0.5 * (254 if found.dtype == np.uint8 else 1)) == union(0.5)).mean() > 0.99
    assert extract(scene, tmp_path / "out.gpkg", *options, "--min-area", "1px", "--simplify", "0px") == 0
    outlines = gpd.read_file(tmp_path / "out.gpkg", layer="landslides")
    assert union(0.5).sum() > 0
    assert outlines.area.sum() * 4 == pytest.approx(union(0.5).sum(), rel=0.1)  # holes are filled
    assert "segmenter" in read_provenance(tmp_path / "out.gpkg")["networks"]
    assert extract(scene, tmp_path / "none.gpkg", *options, "--gate", presence + 0.01) == 0
    assert len(gpd.read_file(tmp_path / "none.gpkg", layer="landslides")) == 0


def test_images_are_labelled(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, size in (("airplane/a", (SIDE, SIDE)), ("landslide/b", (90, 130)), ("river/c", (64, 64))):
        (tmp_path / "chips" / name).parent.mkdir(parents=True)
        Image.fromarray(image_of(*size)).save(tmp_path / "chips" / f"{name}.png")
    options = ["--method", "sam3", "--classes", "landslide,airplane", "--localizer", folder, "--threads", 1, "--json"]
    worker._load.cache_clear()
    for out, more in (("maps", ["--attention-only"]), ("masks", [])):
        given = ["label", tmp_path / "chips", "--out", tmp_path / out, *options, *more]
        assert run([str(argument) for argument in given]) == 0
        assert json.loads(capsys.readouterr().out)["classes_known_of"] == 3
        assert worker._load.cache_info().misses == (1 if more else 2)  # no segmenter where none draws
    given = ["label", tmp_path / "chips", "--out", tmp_path / "no", *options, "--attention-only", "--sam", "bundled"]
    assert run([str(argument) for argument in given]) == 2
    assert "--sam bundled: --attention-only uses no segmenter; leave it out" in capsys.readouterr().err
    labels = PseudoLabels(tmp_path / "maps")
    of = dict(zip(labels.names, (labels[k].values for k in range(3)), strict=True))
    union, *_ = by_the_library(folder, image_of(SIDE, SIDE), "airplane")
    assert ((of["airplane__a"] == 2) == union(0.5)).mean() > 0.99  # grey values are 1/255 apart
    assert set(np.unique(of["landslide__b"])) <= {0, 1}
    assert not of["river__c"].any()
    recorded = {out: PseudoLabels(tmp_path / out).provenance["networks"] for out in ("maps", "masks")}
    assert recorded["masks"]["localizer"]["source"] == str(folder)
    assert recorded["maps"].keys() == {"localizer"}
    assert recorded["masks"].keys() == {"localizer", "segmenter"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--method apsam --localizer sam3", "sam3: what is kept in a folder is asked in words: give --method sam3"),
        ("--method apsam --localizer {folder}", "is asked in words: give --method sam3 and --classes with it"),
        ("--method apsam --localizer no/file", "localizer no/file: there is no such file, and a network of the hub is"),
        ("--method apsam --classes tank", "--classes is an option of --method diffuprompter and sam3, not of apsam"),
        ("--localizer bundled", "localizer bundled: it is not asked in words: give sam3, the folder of such a network"),
        ("--localizer {folder} --classes tank,", "class '' has an empty name"),
        ("--localizer {folder} --classes tank --engine onnx", "engine onnx: networks for words run with torch"),
        (
            "--localizer {folder} --classes tank --draws 2",
            "--draws is an option of --method diffuprompter, not of sam3",
        ),
        ("--localizer {folder} --attention-only --sam bundled", "--sam bundled: --attention-only uses no segmenter"),
        ("--localizer {folder} --attention-only --prompts box", "--prompts box: --attention-only uses no segmenter"),
        (
            "--localizer {folder} --attention-only --activation-threshold 9",
            "--activation-threshold 9: --attention-only uses no segmenter; give --score-threshold",
        ),
        ("--localizer {folder}/gone --classes tank", "there is no such file"),
    ],
)
def test_options_that_cannot_be_are_one_line(
    folder: Path, scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: str, message: str
) -> None:
    given = [word.format(folder=folder) for word in words.split()]
    assert extract(scene, tmp_path / "out.gpkg", *given) in (1, 2)
    said = capsys.readouterr().err
    (line,) = [line for line in said.splitlines() if line.startswith("geolabel: ")]
    assert message in line
    assert "Traceback" not in said

"""Engines: PyTorch and ONNX Runtime answer alike, which of them runs what, and that ONNX Runtime needs no torch."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto
from PIL import Image
from scenes import write_raster

from geolabel.cli.main import run
from geolabel.engine import worker
from geolabel.engine.run_state import difference
from geolabel.engine.tasks import Silent
from geolabel.errors import OptionError, WeightsError
from geolabel.extraction.outputs import plan_provenance
from geolabel.extraction.request import ContourMethod, Networks, Parameters, Reading, SceneMethod, decide
from geolabel.extraction.scene_groups import prepare
from geolabel.extraction.segment import GridPrompts
from geolabel.extraction.work import run_key
from geolabel.io.downloads import sha256
from geolabel.masks import EVERY_CANDIDATE, Filters
from geolabel.methods import apsam
from geolabel.methods.diffuprompter import Scenes
from geolabel.models import loading, registry
from geolabel.models.checkpoint import load_localizer, load_own, read_info, save_checkpoint
from geolabel.models.engines import PROMPTS_CPU, Engine, as_tokens, every_graph_file, graph_files
from geolabel.models.multiscale import MapModule, MultiscaleLocalizer
from geolabel.models.nets import build
from geolabel.models.on_onnx import KEY, OnnxEverything, OnnxMaps, OnnxSam, facts_of
from geolabel.models.on_torch import TorchMaps, TorchSam
from geolabel.parts import Recipe
from geolabel.prompters import GridPrompter
from geolabel.prompts import BACKGROUND, FOREGROUND, PADDING, Prompts
from geolabel.synthetic import synthesize
from geolabel.training.graphs import write_graphs

FILES = {role: registry.lookup("bundled", role)[0].path for role in ("localizer", "segmenter")}
ALIKE = 1e-4
ENGINES: tuple[Engine, ...] = ("onnx", "torch")

PYRAMID = {"name": "pyramid", "classes": 2, "widths": [8, 8, 8, 8], "depths": [1, 1, 1, 1], "features": 8, "octaves": 2}


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return synthesize(512, seed=900_101).rgb


@pytest.fixture(scope="module")
def sams() -> tuple[OnnxSam, TorchSam]:
    sam, _ = load_own(FILES["segmenter"], "segmenter")
    return OnnxSam(FILES["segmenter"], batch=2), TorchSam(sam, resize=False, batch=2)


@pytest.fixture
def copies(tmp_path: Path) -> Path:
    """A folder with the bundled networks and their graphs."""
    for role, path in FILES.items():
        for file in (path, *every_graph_file(path, role)):
            shutil.copy(file, tmp_path)
    return tmp_path


def randomise(path: Path, architecture: dict[str, object] | None = None) -> None:
    """Put random weights, of another architecture if one is given, in the place of those of a file."""
    info = read_info(path)
    info = replace(info, architecture=architecture or info.architecture)
    torch.manual_seed(2)
    network = build(info.architecture)
    for norm in (module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    save_checkpoint(path, network, info)


# -- both engines ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "size"), [(1, (512, 512)), (2, (96, 352)), (3, (64, 32))])
def test_localizers_answer_alike_at_any_size_and_batch(image: np.ndarray, count: int, size: tuple[int, int]) -> None:
    network, known = load_localizer(FILES["localizer"])
    views = np.stack([np.roll(image, 50 * k, axis=1)[: size[0], : size[1]] for k in range(count)])
    pixels = (np.moveaxis(views, 3, 1).astype(np.float32) - known.mean[0]) / np.float32(known.std[0])
    found, expected = OnnxMaps(FILES["localizer"])(pixels), TorchMaps(network)(pixels)
    assert found.shape == expected.shape
    assert np.abs(expected).max() > 0.5
    assert np.abs(found - expected).max() < ALIKE


def prompts_of(count: int, side: int) -> dict[str, tuple[object, object]]:
    random = np.random.default_rng(count)
    corners = np.sort(random.integers(0, side, (count, 2, 2)), axis=1).astype(np.float32)
    points = corners.mean(axis=1, keepdims=True), np.full((count, 1), FOREGROUND, np.int32)
    several = random.integers(0, side, (count, 3, 2)).astype(np.float32)
    kinds = random.choice(np.asarray([FOREGROUND, BACKGROUND], np.int32), (count, 3))
    boxes = corners.reshape(count, 4)
    return {"box": (None, boxes), "point": (points, None), "both": (points, boxes), "points": ((several, kinds), None)}


@pytest.mark.parametrize("kind", ["box", "point", "both", "points"])
def test_segmenters_answer_many_prompts_alike(sams, image: np.ndarray, kind: str) -> None:
    images = [image[:300, :411], image]
    answers = []
    for network in sams:
        with network.running():
            embeddings = network.encode(images)
            assert embeddings.shape == (2, network.width, network.cells, network.cells)
            asked = prompts_of(24, 300)[kind]
            decoded = [network.decode(embeddings[0], *asked, single=single) for single in (False, True)]
            answers.append([network.host(part) for part in (embeddings, *decoded[0], *decoded[1])])
    for found, expected in zip(*answers, strict=True):
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() < ALIKE
    assert answers[0][1].shape[:2] == (24, 3)
    assert answers[0][3].shape[:2] == (24, 1)


@pytest.mark.parametrize("size", [(17, 5), (4, 4), (1, 9), (40, 1)])
def test_masks_are_enlarged_alike(sams, size: tuple[int, int]) -> None:
    logits = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)
    ours, torchs = sams
    expected = torchs.host(torchs.enlarge(torch.from_numpy(logits), size))
    assert np.abs(ours.enlarge(logits, size) - expected).max() < 1e-5


def test_prompts_become_tokens_a_box_two_and_points_alone_one_more() -> None:
    points = np.array([[[3.0, 4]]]), np.array([[FOREGROUND]], np.int32)
    box = np.array([[1.0, 2, 5, 6]])
    for asked, places, labels in (
        ((None, box), [[1, 2], [5, 6]], [2, 3]),
        ((points, None), [[3, 4], [0, 0]], [FOREGROUND, PADDING]),
        ((points, box), [[3, 4], [1, 2], [5, 6]], [FOREGROUND, 2, 3]),
    ):
        coords, kinds = as_tokens(*asked)
        assert coords.tolist() == [places]
        assert kinds.tolist() == [labels]


@pytest.mark.parametrize("filters", [None, EVERY_CANDIDATE])
def test_parts_of_either_engine_find_the_same_masks(image: np.ndarray, filters: Filters | None) -> None:
    boxes = np.array([[20.0, 30, 200, 220], [100, 100, 180, 160], [240, 10, 300, 290]])
    recipe = loading.recipe("segmenter", device="cpu")
    recipe = recipe if filters is None else recipe.everything(filters)
    ours, torchs = (loading.load(loading.with_engine(recipe, engine)) for engine in ENGINES)
    (found,), (expected,) = (part([image[:300, :411]], [Prompts.build(boxes=boxes)]) for part in (ours, torchs))
    assert found.candidates.tolist() == expected.candidates.tolist()
    assert found.scores.any()
    assert np.abs(found.scores.astype(int) - expected.scores).max() <= 1
    assert np.abs(found.predicted_iou - expected.predicted_iou).max() < ALIKE


def test_chips_are_located_alike(image: np.ndarray) -> None:
    network, known = load_localizer(FILES["localizer"])
    views = {"scales": (0.5, 1.0), "flip": True}
    (found,) = MultiscaleLocalizer(MapModule(OnnxMaps(FILES["localizer"])), known, **views)([image[:200, :230]])
    (expected,) = MultiscaleLocalizer(network, known, **views)([image[:200, :230]])
    assert np.abs(found.values - expected.values).max() < ALIKE
    assert np.abs(found.local_probability - expected.local_probability).max() < ALIKE


def test_likely_candidates_of_either_engine_are_the_same(image: np.ndarray) -> None:
    recipe = loading.everything(loading.recipe("segmenter", device="cpu"), Filters(predicted_iou=0.25, stability=0.15))
    ours, torchs = (loading.load(loading.with_engine(recipe, engine)) for engine in ENGINES)
    asked = GridPrompter(4).over(300, 411)
    (found,), (expected,) = (part([image[:300, :411]], [asked]) for part in (ours, torchs))
    assert len(found) == len(expected) > 3
    assert found.prompt_ids.tolist() == expected.prompt_ids.tolist()
    assert (found.binary != expected.binary).mean() < 1e-4
    assert found.predicted_iou == pytest.approx(expected.predicted_iou, abs=1e-4)
    assert found.stability == pytest.approx(expected.stability, abs=1e-3)


def test_everything_mode_on_an_engine_has_the_graphs_of_this_mode() -> None:
    segmenter = loading.recipe("segmenter", device="cpu", engine="onnx")
    everything = loading.everything(segmenter, Filters())
    files = graph_files(FILES["segmenter"], "everything")
    assert (everything.engine, everything.graphs) == ("onnx", tuple(map(sha256, files)))
    assert loading.everything(replace(segmenter, engine="torch"), Filters()).graphs == ()


@dataclass
class Together:
    """The graph of tokens of an earlier version: of any number of prompts, whose cells are one array."""

    graph: Any
    batch: int | None = None

    def __call__(self, embedding: np.ndarray, coords: np.ndarray, labels: np.ndarray) -> list[np.ndarray]:
        """Answers of K prompts."""
        rows = np.arange(self.graph.batch).clip(max=len(coords) - 1)
        *cells, weights, quality = self.graph(embedding=embedding, coords=coords[rows], labels=labels[rows])
        return [np.stack(cells)[: len(coords)], weights[: len(coords)], quality[: len(coords)]]


def test_any_number_of_prompts_shares_calls_and_graphs_of_an_earlier_version_run(image: np.ndarray) -> None:
    network, (points, _) = OnnxEverything(FILES["segmenter"]), prompts_of(21, 300)["point"]
    tokens = network._decoders[0]
    assert tokens.batch == PROMPTS_CPU
    (seen,) = network.encode([image[:300, :300]])
    every = network.decode_likely(seen, points, None, 0.1, (300, 300))
    assert len(every[2]) > 21
    parts = []
    for rows in (slice(0, 5), slice(5, 8), slice(8, 21)):
        some = points[0][rows], points[1][rows]
        *found, prompts, candidates = network.decode_likely(seen, some, None, 0.1, (300, 300))
        parts.append((*found, prompts + rows.start, candidates))
    network._decoders[0] = Together(tokens)  # type: ignore[call-overload]
    some = points[0][:8], points[1][:8]
    parts.append(network.decode_likely(seen, some, None, 0.1, (300, 300)))
    *apart, before = parts
    for whole, *of_parts, earlier in zip(every, *apart, before, strict=True):
        assert np.array_equal(whole, np.concatenate(of_parts))
        assert np.array_equal(whole[: len(earlier)], earlier)


# -- graphs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", FILES)
def test_graphs_that_ship_hold_no_weights_and_are_of_the_networks_beside_them(role: str) -> None:
    for path in every_graph_file(FILES[role], role):
        model = onnx.load_model(path, load_external_data=False)
        held = [t for t in model.graph.initializer if t.data_location != TensorProto.EXTERNAL]
        assert max(len(t.raw_data) for t in held) < 1 << 14
        assert path.stat().st_size < 1 << 17
        architecture = json.loads(json.dumps(loading.describe(FILES[role])["architecture"]))
        assert facts_of(model)["architecture"] == architecture


@pytest.mark.parametrize("octaves", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_graph_is_written_of_any_localizer(copies: Path, octaves: int) -> None:
    path = copies / "localizer.safetensors"
    randomise(path, PYRAMID | {"octaves": octaves})
    assert write_graphs(path) == (copies / "localizer.onnx",)
    pixels = np.random.default_rng(0).normal(size=(2, 3, 160, 96)).astype(np.float32)
    found, expected = OnnxMaps(path)(pixels), TorchMaps(load_localizer(path)[0])(pixels)
    assert np.abs(expected).max() > 0.1
    assert np.abs(found - expected).max() < ALIKE


@pytest.mark.slow
def test_the_graphs_that_ship_are_what_is_written_today(copies: Path) -> None:
    for role, path in FILES.items():
        before = [file.read_bytes() for file in every_graph_file(path, role)]
        written = write_graphs(copies / path.name)
        assert [without_version(file.read_bytes()) for file in written] == [without_version(data) for data in before]


def without_version(graph: bytes) -> bytes:
    model = onnx.load_model_from_string(graph)
    model.producer_version = ""  # of torch
    return model.SerializeToString(deterministic=True)


def test_a_graph_is_that_of_an_architecture_whatever_its_weights(copies: Path) -> None:
    path = copies / "localizer.safetensors"
    pixels = np.random.default_rng(0).normal(size=(1, 3, 96, 64)).astype(np.float32)
    before = OnnxMaps(path)(pixels)
    randomise(path)
    found, expected = OnnxMaps(path)(pixels), TorchMaps(load_localizer(path)[0])(pixels)
    assert np.abs(found - expected).max() < ALIKE
    assert np.abs(found - before).max() > ALIKE


def test_a_file_with_its_graphs_runs_on_either_engine(copies: Path, image: np.ndarray) -> None:
    path = copies / "localizer.safetensors"
    parts = [loading.load(loading.recipe("localizer", path, device="cpu", engine=engine)) for engine in ENGINES]
    (found,), (expected,) = (part([image]) for part in parts)
    assert np.abs(found.values - expected.values).max() < ALIKE


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "localizer.onnx does not exist: write it again with geolabel train graphs"),
        (lambda path: path.write_bytes(b"no graph"), "localizer.onnx is not an ONNX graph"),
        (lambda path: path.write_bytes(b""), "localizer.onnx is the graph of another network"),
        (lambda path: relabel(path, {"architecture": {"name": "pyramid"}}), "is the graph of another network"),
    ],
)
def test_a_graph_that_is_not_that_of_the_weights_is_refused(copies: Path, damage, message: str) -> None:
    damage(copies / "localizer.onnx")
    with pytest.raises(WeightsError, match=message):
        OnnxMaps(copies / "localizer.safetensors")


def test_a_graph_of_other_weights_says_which_one_it_lacks(copies: Path) -> None:
    path = copies / "localizer.safetensors"
    randomise(path, PYRAMID)
    with pytest.raises(WeightsError, match=r"needs the weight .*, which the file beside it lacks"):
        OnnxMaps(path)


def relabel(path: Path, facts: dict[str, object]) -> None:
    model = onnx.load_model(path, load_external_data=False)
    next(prop for prop in model.metadata_props if prop.key == KEY).value = json.dumps(facts)
    path.write_bytes(model.SerializeToString())


def test_a_graph_that_changed_since_the_plan_is_refused(copies: Path) -> None:
    made = loading.recipe("localizer", copies / "localizer.safetensors", device="cpu", engine="onnx")
    with (copies / "localizer.onnx").open("ab") as file:
        file.write(b"?")
    with pytest.raises(WeightsError, match=f"the run was planned with {made.graphs[0]}"):
        loading.load(made)


def test_models_check_and_name_the_graphs_too(copies: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(registry.resources, "files", lambda _: copies)
    assert run(["models", "verify", "bundled"]) == 0
    assert run(["models", "info", "bundled", "--json"]) == 0
    described = json.loads(capsys.readouterr().out.partition("[")[2].join(["[", ""]))
    assert [sorted(one["graphs"]) for one in described] == [
        ["localizer.onnx"],
        [f"segmenter-{part}.onnx" for part in ("decoder", "encoder", "masks", "tokens")],
    ]
    for name in ("segmenter-tokens.onnx", "segmenter-decoder.onnx"):
        (copies / name).write_bytes(b"?")
        assert run(["models", "verify", "bundled"]) == 1
        assert f"{name} is not an ONNX graph" in capsys.readouterr().err


# -- which engine ------------------------------------------------------------------------------------------------------


def engines(networks: Networks, method: SceneMethod | None = None) -> list[str]:
    recipes = decide(networks, Parameters(method=method or ContourMethod()))[1]
    return [worker_engine(recipe) for recipe in recipes]


def worker_engine(recipe: Recipe) -> str:
    assert bool(recipe.graphs) == (recipe.engine == "onnx")
    return recipe.engine


def test_auto_is_onnx_runtime_for_the_bundled_networks_on_a_cpu_and_torch_elsewhere(copies: Path) -> None:
    assert engines(Networks(device="cpu")) == ["onnx", "onnx"]
    assert engines(Networks(device="cpu", engine="torch")) == ["torch", "torch"]
    assert engines(Networks(device="cpu", precision="bf16")) == ["torch", "torch"]
    of_file = Networks(device="cpu", localizer=str(copies / "localizer.safetensors"))
    assert engines(of_file) == ["torch", "onnx"]
    assert engines(replace(of_file, engine="onnx")) == ["onnx", "onnx"]
    assert engines(Networks(device="cpu"), GridPrompts()) == ["torch", "onnx"]  # nothing localizes
    assert engines(Networks(device="cpu", engine="onnx"), GridPrompts()) == ["torch", "onnx"]


def test_images_of_folders_come_in_batches_on_a_gpu_alone(copies: Path, monkeypatch) -> None:
    recipes = Networks(device="cpu").for_images("whole")
    assert [(recipe.engine, recipe.batch) for recipe in recipes] == [("onnx", 1)] * 2
    assert recipes[1].selection == "whole"
    monkeypatch.setattr(worker, "device_and_precision", lambda *_: ("cuda", "fp32"))
    assert [(recipe.engine, recipe.batch) for recipe in Networks().for_images()] == [("torch", 8)] * 2
    assert [recipe.batch for recipe in Networks(batch=4).for_images()] == [4, 4]


def test_every_chip_is_encoded_once(tmp_path: Path, monkeypatch) -> None:
    encoded = []
    encode = OnnxSam.encode

    def counted(network: OnnxSam, images: list[np.ndarray]) -> np.ndarray:
        encoded.append((len(images), network.batch))
        return encode(network, images)

    monkeypatch.setattr(OnnxSam, "encode", counted)
    names = [f"images/{k}.png" for k in range(5)]
    (tmp_path / "chips/images").mkdir(parents=True)
    for k, name in enumerate(names):
        scene = synthesize(128, seed=1000 + k).rgb
        Image.fromarray(scene).save(tmp_path / "chips" / name)
    rows = "\n".join(f"{name},landslide" for name in names)
    (tmp_path / "chips/labels.csv").write_text(f"image,label\n{rows}\n")
    settings = apsam.Settings(activation_threshold=10, single_scale=True)
    apsam.label(
        tmp_path / "chips", tmp_path / "out", settings, Networks(device="cpu"), overwrite=False, progress=Silent()
    )
    assert encoded == [(1, 1)] * len(names)


def test_auto_is_torch_on_a_gpu(monkeypatch) -> None:
    monkeypatch.setattr(worker, "device_and_precision", lambda *_: ("cuda", "fp32"))
    assert engines(Networks()) == ["torch", "torch"]
    with pytest.raises(OptionError, match="on the CPU in fp32, not on cuda in fp32: give --device cpu"):
        engines(Networks(engine="onnx"))


def test_what_has_no_graph_is_refused_for_onnx_runtime(copies: Path) -> None:
    alone = copies / "localizer.safetensors"
    (copies / "localizer.onnx").unlink()
    with pytest.raises(OptionError, match=r"no graph of the localizer .* give --engine auto"):
        engines(Networks(device="cpu", engine="onnx", localizer=str(alone)))
    with pytest.raises(OptionError, match="not on cpu in bf16"):
        engines(Networks(device="cpu", engine="onnx", precision="bf16"))


def test_a_diffusion_network_is_refused_for_onnx_runtime() -> None:
    with pytest.raises(OptionError, match="the diffusion network runs with torch alone"):
        Scenes(diffusion="model").recipes(Networks(device="cpu", engine="onnx"))


def test_a_run_is_known_by_its_engine(tmp_path: Path) -> None:
    scene = tmp_path / "scene.tif"
    write_raster(scene, np.random.default_rng(0).integers(0, 256, (3, 64, 64)).astype(np.uint8), photometric="rgb")
    plans = [prepare(scene, Reading(), Networks(device="cpu", engine=engine), Parameters()) for engine in ENGINES]
    keys = [run_key([plan], [None]) for plan in plans]
    assert "networks.localizer.engine was onnx and is torch now" in difference(*keys)
    assert [plan_provenance(plan)["networks"]["segmenter"]["engine"] for plan in plans] == list(ENGINES)
    assert {"onnxruntime", "torch"} <= set(keys[0]["versions"]) & set(plan_provenance(plans[0])["software"])


def test_extract_and_segment_with_the_bundled_networks_import_no_torch(tmp_path: Path) -> None:
    script = f"""
import sys
import numpy as np, rasterio
from geolabel.synthetic import synthesize
with rasterio.open({str(tmp_path / "scene.tif")!r}, "w", driver="GTiff", dtype="uint8", count=3, height=256, width=256,
                   photometric="rgb", crs="EPSG:32648",
                   transform=rasterio.Affine(0.5, 0, 500_000, 0, -0.5, 3_000_000)) as target:
    target.write(np.moveaxis(synthesize(256, seed=900_100).rgb, 2, 0))
from geolabel.cli.main import run
assert run(["extract", {str(tmp_path / "scene.tif")!r}, "--out", {str(tmp_path / "x.gpkg")!r}, "--device", "cpu"]) == 0
assert run(["segment", {str(tmp_path / "scene.tif")!r}, "--out", {str(tmp_path / "s.gpkg")!r}, "--device", "cpu",
            "--points-per-side", "4"]) == 0
print("imported:", *sorted({{"torch", "torchvision", "timm", "segment_anything"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1].split() == ["imported:"]

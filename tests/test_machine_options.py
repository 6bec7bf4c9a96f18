"""``--batch auto`` and ``--compile``: what they choose, what they are refused for, and that answers stay the same.

A GPU is a stand-in: an account of memory, from which each image of a call takes some.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import numpy as np
import pytest
import rasterio
import torch
from affine import Affine
from test_on_device import drawing, official, pictures

from geolabel import devices
from geolabel.cli.inputs import BatchSize
from geolabel.cli.workers import at_work
from geolabel.concepts import Asked
from geolabel.engine import worker
from geolabel.engine.tasks import Silent
from geolabel.errors import OptionError
from geolabel.extraction import request
from geolabel.extraction.plan import make_plan
from geolabel.extraction.request import Networks, Parameters
from geolabel.io.read.scenes import SceneReader
from geolabel.methods import alps, cism, diffuprompter, sam3, student
from geolabel.methods.diffuprompter import LabelAsked
from geolabel.models import checkpoint, loading, tuning
from geolabel.models.on_torch import TorchSam
from geolabel.models.sam import SamSegmenter
from geolabel.parts import LocalizerRecipe, SegmenterRecipe
from geolabel.prompts import Prompts
from geolabel.settings.methods import Sam3Chips

WEIGHTS = 40


@dataclass
class Memory:
    """Of a GPU, in some unit."""

    total: int
    of_images: Callable[[int], int]
    held: int = 0
    peak: int = 0
    tried: list[int] = field(default_factory=list)

    def prepare(self, count: int) -> Callable[[], None]:
        self.held = WEIGHTS
        return lambda: self.run(count)

    def run(self, count: int) -> None:
        self.tried.append(count)
        if self.held + self.of_images(count) > self.total:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.peak = self.held + self.of_images(count)

    def install(self, patch: pytest.MonkeyPatch) -> Memory:
        patch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: setattr(self, "peak", self.held))
        patch.setattr(torch.cuda, "memory_allocated", lambda device: self.held)
        patch.setattr(torch.cuda, "max_memory_allocated", lambda device: self.peak)
        patch.setattr(torch.cuda, "memory_reserved", lambda device: self.peak)
        patch.setattr(torch.cuda, "mem_get_info", lambda device: (self.total - self.peak, self.total))
        return self


@pytest.mark.parametrize(
    ("total", "of_images", "batch", "tried"),
    [
        (WEIGHTS + 100, lambda count: 10 * count, 4, [1, 4]),  # 7 calls of one image fit into 0.7 of 100
        (WEIGHTS + 10_000, lambda count: 10 * count, 32, [1, 32]),
        (WEIGHTS + 100, lambda count: 10 * count**2, 2, [1, 4, 2]),  # they take more than one image says
        (WEIGHTS + 15, lambda count: 10 * count, 1, [1]),
        (WEIGHTS + 5, lambda count: 10 * count, 1, [1]),  # the run will say that memory ran out
    ],
)
def test_a_batch_fits_the_free_memory(
    total: int, of_images: Callable[[int], int], batch: int, tried: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = Memory(total, of_images).install(monkeypatch)
    assert tuning.fitting_batch(memory.prepare, "cuda") == batch
    assert memory.tried == tried


def test_other_errors_of_a_trial_are_no_lack_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    Memory(100, lambda count: count).install(monkeypatch)

    def wrong() -> None:
        raise ValueError("weights")

    with pytest.raises(ValueError, match="weights"):
        tuning.fitting_batch(lambda count: wrong, "cuda")


@dataclass
class Part:
    """A network that takes memory."""

    memory: Memory
    batch: int
    window: int = 64

    def __call__(self, images: list[np.ndarray], prompts: list[Prompts] | None = None) -> None:
        if prompts is None:  # a localizer fills its batch up
            assert {image.shape for image in images} == {(512, 512, 3)}
            return self.memory.run(self.batch)
        assert {image.shape for image in images} == {(64, 64, 3)}
        assert all(map(len, prompts))
        return self.memory.run(len(images))


@pytest.mark.parametrize("recipe", [LocalizerRecipe("a", device="cuda"), SegmenterRecipe("b", device="cuda:1")])
def test_each_network_is_tried_on_its_gpu(recipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = Memory(200, lambda count: 10 * count).install(monkeypatch)
    loaded = []

    def load(one: Any) -> Part:
        loaded.append(one)
        return Part(memory, one.batch)

    monkeypatch.setattr(tuning, "load", load)
    assert tuning.largest_batch(replace(recipe, batch=8)) == 8
    assert memory.tried == [1, 8]
    assert {one.device for one in loaded} == {recipe.device}
    assert tuning.largest_batch(replace(recipe, device="cpu")) == 1


def test_a_network_is_tried_with_the_other_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    memory, loaded = Memory(200, lambda count: 10 * count).install(monkeypatch), []

    def load(one: Any) -> Part:
        loaded.append(one)
        if one.role == "localizer":
            memory.total -= 100  # what its weights take
        return Part(memory, one.batch)

    monkeypatch.setattr(tuning, "load", load)
    asked = SegmenterRecipe("b", device="cuda")
    assert tuning.largest_batch(asked) == 8
    assert tuning.largest_batch(asked, LocalizerRecipe("a", device="cuda")) == 4
    assert [one.role for one in loaded] == ["segmenter", "localizer", "segmenter"]


def test_what_auto_chose_is_logged_and_recorded(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    request._largest_batch.cache_clear()
    batches = {("localizer", "segmenter"): 4, ("segmenter", "localizer"): 16}
    monkeypatch.setattr(tuning, "largest_batch", lambda recipe, beside: batches[recipe.role, beside.role])
    with caplog.at_level(logging.INFO, "geolabel"):
        localizer, segmenter = Networks(batch="auto", device="cpu", engine="torch").recipes()
    request._largest_batch.cache_clear()
    assert (localizer.batch, asdict(segmenter)["batch"]) == (4, 16)
    assert "--batch auto: the segmenter takes 16 images at a time on cpu" in caplog.text
    assert Networks(batch=3, device="cpu").recipes()[1].batch == 3


@pytest.mark.parametrize("method", [diffuprompter, sam3])
@pytest.mark.parametrize("attention_only", [True, False])
def test_a_segmenter_that_is_not_used_takes_no_memory_of_auto(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, method: Any, attention_only: bool
) -> None:
    """Only the networks that run are tried, each beside the other; the bundled localizer never is."""
    located = LocalizerRecipe("words", device="cpu", batch=1)
    tried, label = [], {}
    for module, name in ((diffuprompter.diffusion_files, "recipe"), (loading, "concept_recipe")):
        monkeypatch.setattr(module, name, lambda *_: located)
    monkeypatch.setattr(diffuprompter.diffusion_files, "require_diffusion", lambda: None)
    monkeypatch.setattr(sam3, "_require", lambda: None)
    monkeypatch.setattr(method, "label_asked", lambda *given, **_: label.update(recipes=given[4].recipes))

    def largest(recipe: Any, beside: Any) -> int:
        tried.append((recipe.role, None if beside is None else beside.role))
        return 4 if beside is None else 2

    monkeypatch.setattr(request, "_largest_batch", largest)
    settings = method.Settings(classes="landslide", attention_only=attention_only)
    networks = Networks(batch="auto", device="cpu", engine="torch")
    method.label(tmp_path, tmp_path / "out", settings, networks, overwrite=False, progress=Silent())
    one, other = "localizer", "segmenter"
    assert tried == ([(one, None)] if attention_only else [(one, other), (other, one)])
    assert [recipe.batch for recipe in label["recipes"]] == ([4] if attention_only else [2, 2])


@pytest.mark.parametrize("method", [cism.Scenes(), student.Scenes(student="bundled"), sam3.Scenes(attention_only=True)])
def test_over_scenes_a_method_without_a_segmenter_tries_its_localizer_alone(
    monkeypatch: pytest.MonkeyPatch, method: Any
) -> None:
    tried: list[Any] = []
    monkeypatch.setattr(request, "_largest_batch", lambda recipe, beside: tried.append((recipe.role, beside)) or 4)
    monkeypatch.setattr(request, "check_trained", lambda *_: None)
    monkeypatch.setattr(checkpoint, "read_info", lambda _: SimpleNamespace(kind="student"))
    monkeypatch.setattr(loading, "concept_recipe", lambda *_: LocalizerRecipe("words", device="cpu", batch=1))
    monkeypatch.setattr(sam3, "_require", lambda: None)
    localizer, _ = method.recipes(Networks(batch="auto", device="cpu", engine="torch"))
    assert (tried, localizer.batch) == ([("localizer", None)], 4)


@pytest.mark.parametrize(("text", "batch"), [("auto", "auto"), ("12", 12)])
def test_a_batch_is_a_number_or_auto(text: str, batch: Any) -> None:
    assert BatchSize().convert(text, None, None) == batch
    for wrong in ("0", "-1", "many", "1.5"):
        with pytest.raises(click.BadParameter, match="give a number from 1, or auto"):
            BatchSize().convert(wrong, None, None)


# --- compile ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Traced by torch.compile, and run as it is: no compiler is needed."""
    monkeypatch.setattr(devices, "COMPILER", "eager")
    tuning.check_compiler.cache_clear()
    yield
    tuning.check_compiler.cache_clear()
    torch.compiler.reset()


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("kind", [official, drawing])
def test_a_compiled_encoder_answers_the_same_in_calls_of_one_shape(kind: Callable[[], Any]) -> None:
    torch.manual_seed(3)
    sam, images = kind().eval().requires_grad_(False), pictures((64, 64), (50, 40), (64, 30))
    asked = [Prompts.build(points=np.array([[9.0, 9], [20, 30]]))] * 3
    shapes, found = [], []
    for on in (False, True):
        network = TorchSam(sam, resize=False, batch=2, compile_encoder=on)
        encode = network._encode
        network._encode = lambda frames, of=encode: (shapes.append(len(frames)), of(frames))[1]
        found.append(SamSegmenter(network, gsd_range=(0.1, 10))(images, asked))
    assert shapes == [2, 1, 2, 2]  # the last one is filled up, not compiled again
    for plain, compiled in zip(*found, strict=True):
        assert np.abs(plain.scores.astype(int) - compiled.scores).max() <= 1
        np.testing.assert_allclose(plain.predicted_iou, compiled.predicted_iou, atol=1e-5)


@pytest.mark.usefixtures("eager")
def test_the_segmenter_is_compiled_and_its_recipe_says_so() -> None:
    for engine in ("auto", "torch"):
        localizer, segmenter = Networks(compile="on", device="cpu", engine=engine).for_images()
        assert (segmenter.engine, asdict(segmenter)["compile"]) == ("torch", "on")
        assert localizer.engine == ("onnx" if engine == "auto" else "torch")
    assert loading.load(segmenter)._network._one_shape  # type: ignore[attr-defined]
    assert Networks(device="cpu").for_images()[1].compile == "off"


def test_over_images_auto_compiles_nothing_and_is_recorded_so() -> None:
    asked = Networks(compile="auto", device="cpu")
    assert [recipe.compile for recipe in (asked.recipes()[1], asked.for_images()[1])] == ["auto", "off"]
    assert alps.source_of(alps.Settings(), asked)[1].compile == "off"
    words = LabelAsked.of(Sam3Chips(classes="landslide"), Asked(()), asked.recipes())
    assert words.recipes[1].compile == "off"  # type: ignore[attr-defined]


def test_a_plan_loads_the_segmenter_that_the_run_loads(tmp_path: Path) -> None:
    scene = tmp_path / "scene.tif"
    profile = {"driver": "GTiff", "dtype": "uint8", "count": 3, "height": 64, "width": 64, "crs": "EPSG:32648"}
    with rasterio.open(scene, "w", transform=Affine(0.5, 0, 350_000, 0, -0.5, 3_450_000), **profile) as file:
        file.write(np.full((3, 64, 64), 90, np.uint8))
    localizer, segmenter = Networks(compile="auto", device="cpu").recipes()
    worker._load.cache_clear()
    plan = make_plan(SceneReader(scene), localizer, segmenter, Parameters(), stretch="0,255")
    assert plan.segmenter.compile == "off"  # type: ignore[attr-defined]
    worker.segmenter(plan.segmenter)
    assert worker._load.cache_info().misses == 2


@pytest.mark.usefixtures("eager")
def test_compiling_is_refused_where_nothing_is_compiled(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="--compile on: PyTorch compiles, and --engine onnx runs"):
        Networks(compile="on", device="cpu", engine="onnx").recipes()
    for method in (cism.Scenes(), student.Scenes(student=str(tmp_path / "s.safetensors"))):
        with pytest.raises(OptionError, match="--compile on: "):
            method.recipes(Networks(compile="on"))
    with pytest.raises(OptionError, match="compiled for CUDA and the CPU, not for mps"):
        tuning.check_compiler("mps")


def test_a_machine_without_a_compiler_is_told_so(eager: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(graph: Any, inputs: Any) -> Any:
        raise RuntimeError("no g++ here\nand more")

    monkeypatch.setattr(devices, "COMPILER", fail)
    with pytest.raises(OptionError, match=r"does not work on cpu .*no g\+\+ here.*needs a C\+\+ compiler"):
        Networks(compile="on", device="cpu").recipes()


def test_a_compiler_that_times_kernels_is_told_so(eager: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def compile_as_before(function: Any, **given: Any) -> Any:
        raise RuntimeError("Unexpected optimization option deterministic, known options are ['debug']")

    monkeypatch.setattr(torch, "compile", compile_as_before)
    with pytest.raises(OptionError, match=r"option deterministic.*needs a newer PyTorch"):
        tuning.check_compiler("cpu")


@pytest.mark.parametrize(
    ("device", "windows", "chosen"),
    [("cuda", tuning.LONG, "on"), ("cuda:1", tuning.LONG - 1, "off"), ("cpu", 10**6, "off")],
)
def test_auto_compiles_long_runs_on_a_gpu(
    device: str, windows: int, chosen: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "geolabel"):
        found = tuning.compile_for(SegmenterRecipe("bundled", device=device, compile="auto"), windows)
    assert found.compile == chosen
    assert f"--compile auto: {chosen}, for {windows} windows" in caplog.text
    for given in ("on", "off"):
        assert tuning.compile_for(SegmenterRecipe("a", device=device, compile=given), windows).compile == given


# --- several GPUs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("visible", "gpus", "taken"),
    [(None, 3, ["0", "1", "2", "0"]), ("", 2, ["0", "1", "0", "1"]), ("2, 5", 2, ["2", "5", "2", "5"])],
)
def test_workers_take_the_gpus_in_turn(
    visible: str | None, gpus: int, taken: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    monkeypatch.setenv("GDAL_CACHEMAX", "64")
    for number in range(4):
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if visible is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        for _ in range(2):  # a worker may be fitted out again
            worker.settle(number, gpus=gpus, local=False)
        found.append(os.environ["CUDA_VISIBLE_DEVICES"])
    assert found == taken


def test_workers_are_not_given_one_gpu_together() -> None:
    options = dict.fromkeys(("scheduler", "worker_memory", "tls_ca_file", "tls_cert", "tls_key"))
    with (
        pytest.raises(OptionError, match="--device cuda:1 is a single one: give --device cuda"),
        at_work(options | {"workers": 2, "device": "cuda:1"}),
    ):
        pass

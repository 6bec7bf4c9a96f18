from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from scenes import write_raster

from geolabel.engine import worker
from geolabel.extraction.estimate import NETWORK_BYTES_PER_PX, TORCH_BYTES, estimate_plan
from geolabel.extraction.plan import make_plan
from geolabel.extraction.request import Networks, Parameters, Reading
from geolabel.extraction.scene_groups import prepare
from geolabel.io.read.scenes import SceneReader
from geolabel.parts import LocalizerRecipe, SegmenterRecipe
from geolabel.testing import FakeLocalizer, FakeSegmenter

RECIPES = LocalizerRecipe("stand-in", "0" * 64, batch=2), SegmenterRecipe("stand-in", "0" * 64)


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SceneReader:
    monkeypatch.setattr(
        worker, "_load", lambda recipe: FakeLocalizer() if recipe.role == "localizer" else FakeSegmenter()
    )
    path = tmp_path / "scene.tif"
    image = np.random.default_rng(0).integers(1, 255, (3, 300, 420), np.uint8)
    write_raster(path, image, photometric="rgb")
    return SceneReader(path)


def test_an_estimate_counts_the_work_and_writes_nothing(scene: SceneReader, tmp_path: Path) -> None:
    plan = make_plan(scene, *RECIPES, Parameters(tile_size=128, overlap=32, block_size=200))
    figures = estimate_plan(plan)
    assert figures["localizer_tiles"] == 3 * 5
    assert figures["blocks"] == 2 * 3
    assert figures["localizer_tile_px"] == figures["segmenter_tile_px"] == 128
    assert figures["seconds_without_landslides"] <= figures["seconds_with_landslides_everywhere"]
    assert figures["seconds_per_segmenter_window"] > 0
    assert [path.name for path in tmp_path.iterdir()] == ["scene.tif"]


def test_memory_is_less_where_no_network_needs_torch(scene: SceneReader) -> None:
    def figures(engine: Literal["onnx", "torch"]) -> dict[str, Any]:
        return estimate_plan(prepare(scene.source.uri, Reading(), Networks(device="cpu", engine=engine), Parameters()))

    ours, torchs = figures("onnx"), figures("torch")
    assert (ours["engine"], torchs["engine"]) == ("onnx", "torch")
    assert torchs["memory_mb"] - ours["memory_mb"] == TORCH_BYTES >> 20


def test_memory_grows_with_tiles_and_batches_and_not_with_the_scene(scene: SceneReader) -> None:
    def memory(**parameters: int) -> int:
        return int(estimate_plan(make_plan(scene, *RECIPES, Parameters(**parameters)))["memory_mb"])

    assert memory(tile_size=128, overlap=32) > memory(tile_size=64, overlap=16)


def test_memory_holds_what_the_segmenter_takes(scene: SceneReader) -> None:
    def memory(segmenter: SegmenterRecipe) -> int:
        return int(estimate_plan(make_plan(scene, RECIPES[0], segmenter, Parameters(tile_size=128)))["memory_mb"])

    one = SegmenterRecipe("stand-in", "0" * 64, batch=1)
    # 39 more images of 128 px in one call
    assert memory(replace(one, batch=40)) - memory(one) == pytest.approx(
        39 * 128**2 * NETWORK_BYTES_PER_PX / 2**20, abs=1
    )

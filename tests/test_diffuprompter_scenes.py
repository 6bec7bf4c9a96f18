"""A scene searched for what words mean, with a tiny network of random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine

pytest.importorskip("diffusers", reason="needs the extra geolabel[diffusion]")
pytest.importorskip("transformers", reason="needs the extra geolabel[diffusion]")

from geolabel.cli.main import run
from geolabel.testing import write_diffusion


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_diffusion(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two bright discs on noise, 220 px a side: several windows of the network's 128 px."""
    path = tmp_path_factory.mktemp("scene") / "scene.tif"
    rows, cols = np.mgrid[:220, :220]
    bright = (np.hypot(rows - 60, cols - 60) < 25) | (np.hypot(rows - 150, cols - 140) < 30)
    pixels = np.random.default_rng(0).integers(40, 80, (3, 220, 220)) + 120 * bright
    profile = {"driver": "GTiff", "dtype": "uint8", "count": 3, "height": 220, "width": 220, "crs": "EPSG:32648"}
    with rasterio.open(path, "w", transform=Affine(0.5, 0, 350_000, 0, -0.5, 3_450_000), **profile) as file:
        file.write(pixels.astype(np.uint8))
    return path


def extract(scene: Path, out: Path, *options: Any) -> int:
    arguments = ["extract", scene, "--out", out, "--method", "diffuprompter", "--threads", 1, *options]
    return run([str(argument) for argument in arguments])


def test_polygons_do_not_depend_on_the_blocks(model: Path, scene: Path, tmp_path: Path) -> None:
    for name, block in (("one", 2048), ("many", 64)):
        options = ["--diffusion", model, "--draws", 2, "--classes", "airplane", "--block-size", block]
        assert extract(scene, tmp_path / f"{name}.gpkg", *options) == 0
    one, many = (gpd.read_file(tmp_path / f"{name}.gpkg", layer="landslides") for name in ("one", "many"))
    assert len(one) > 0
    assert set(one["class"]) == {"airplane"}
    assert one.drop(columns="geometry").equals(many.drop(columns="geometry"))
    assert one.geometry.to_wkb().tolist() == many.geometry.to_wkb().tolist()


def test_a_scene_is_searched_for_several_words_at_once(model: Path, scene: Path, tmp_path: Path) -> None:
    options = ["--diffusion", model, "--draws", 2, "--gate", 0]
    assert extract(scene, tmp_path / "both.gpkg", *options, "--classes", "landslide/mudslide,airplane") == 0
    both = gpd.read_file(tmp_path / "both.gpkg", layer="landslides")
    assert set(both["class"]) == {"landslide", "airplane"}
    chosen = ["--classes", "landslide/mudslide,airplane", "--class", "airplane"]
    assert extract(scene, tmp_path / "one.gpkg", *options, *chosen) == 0
    assert set(gpd.read_file(tmp_path / "one.gpkg", layer="landslides")["class"]) == {"airplane"}


def test_a_tile_that_the_words_leave_cold_is_not_searched(model: Path, scene: Path, tmp_path: Path) -> None:
    options = ["--diffusion", model, "--draws", 2, "--classes", "airplane"]
    assert extract(scene, tmp_path / "all.gpkg", *options) == 0
    assert len(gpd.read_file(tmp_path / "all.gpkg", layer="landslides")) > 0
    assert extract(scene, tmp_path / "none.gpkg", *options, "--gate", 0.999) == 0
    assert len(gpd.read_file(tmp_path / "none.gpkg", layer="landslides")) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--localizer", "other.safetensors"], "the diffusion network is the localizer"),
        (["--template", "none"], "one {}"),
    ],
)
def test_options_that_cannot_be(
    model: Path,
    scene: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other.safetensors").touch()
    assert extract(scene, tmp_path / "out.gpkg", "--diffusion", model, *options) == 2
    assert message in capsys.readouterr().err


def test_options_of_the_method_need_the_method(scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["extract", str(scene), "--out", str(tmp_path / "out.gpkg"), "--draws", "2"]) == 2
    assert "--draws is an option of --method diffuprompter, not of apsam" in capsys.readouterr().err


def test_drawn_prompts_have_no_activation_to_compare_masks_with(
    model: Path, scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    box = shapely.box(350_010, 3_449_950, 350_050, 3_449_990)
    gpd.GeoDataFrame(geometry=[box], crs="EPSG:32648").to_file(tmp_path / "drawn.gpkg")
    options = ["--diffusion", model, "--draws", 1, "--prompts-from", tmp_path / "drawn.gpkg"]
    assert extract(scene, tmp_path / "out.gpkg", *options) == 2
    assert "have no activation that --selection overlap could compare masks with" in capsys.readouterr().err

"""Scenes whose scores come from the localizer's maps: students, and CISM."""

from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import torch
from affine import Affine

from geolabel.activation import quantise
from geolabel.engine import worker
from geolabel.errors import OptionError, WeightsError
from geolabel.extraction import request
from geolabel.extraction.extract import extract
from geolabel.extraction.passes import to_scores
from geolabel.extraction.request import Networks, Parameters, Reading
from geolabel.masks import FULL
from geolabel.methods import cism
from geolabel.methods.student import Scenes as Student
from geolabel.models.checkpoint import NetworkInfo, save_checkpoint
from geolabel.models.nets.student import ResUNet
from geolabel.models.registry import PUBLISHED
from geolabel.parsing import Measure
from geolabel.testing import FakeLocalizer

UTM = Affine(0.5, 0, 500_000, 0, -0.5, 3_000_000)
READING = Reading(stretch="0,255")
EXACT = {name: Measure(0, "px") for name in ("min_area", "max_hole", "simplify", "smooth")}


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scene") / "scene.tif"
    image = np.random.default_rng(0).integers(20, 60, (3, 200, 260)).astype(np.uint8)
    image[:, 40:80, 30:90] = 230
    image[:, 120:180, 120:220] = 230  # across tiles of 128 px
    options = {"crs": "EPSG:32648", "transform": UTM, "photometric": "rgb", "dtype": "uint8", "count": 3}
    with rasterio.open(path, "w", driver="GTiff", height=200, width=260, **options) as target:
        target.write(image)
    return path


def bright(image: np.ndarray) -> np.ndarray:
    return (image.mean(axis=2) > 180).astype(np.float32)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    load = worker._load.__wrapped__
    locate = FakeLocalizer(function=bright, stride=1, window=16)
    monkeypatch.setattr(request, "check_trained", lambda *_: None)
    monkeypatch.setattr(worker, "_load", lambda recipe: locate if recipe.role == "localizer" else load(recipe))


def area(found: gpd.GeoDataFrame) -> list[float]:
    return sorted(found.geometry.area.round(2).tolist())


def test_half_stays_half():
    scores = to_scores(np.arange(256, dtype=np.uint8))
    assert (scores[0], scores[127], scores[128], scores[255]) == (0, 126, 127, FULL)
    assert (np.diff(scores.astype(int)) >= 0).all()


@pytest.mark.usefixtures("stand_in")
def test_a_map_is_the_mosaic_whatever_the_tiles_and_blocks(scene: Path):
    found = [
        extract(
            scene,
            reading=READING,
            networks=Networks(device="cpu"),
            parameters=Parameters(method=cism.Scenes(), **EXACT, **options),
        )
        for options in ({}, {"tile_size": 128, "block_size": 64}, {"tile_size": 64, "overlap": 30})
    ]
    assert [area(one) for one in found] == [[40 * 60 / 4, 60 * 100 / 4]] * 3
    assert found[0]["score_mean"].tolist() == [1, 1]
    for name in ("n_prompts", "predicted_iou", "stability", "activation_mean", "confidence"):
        assert found[0][name].isna().all(), name


@pytest.mark.usefixtures("stand_in")
def test_a_map_counts_only_where_the_class_is_likely(scene: Path, monkeypatch: pytest.MonkeyPatch):
    faint = FakeLocalizer(function=lambda image: bright(image) * 0.7, stride=1, window=16)
    load = worker._load
    monkeypatch.setattr(worker, "_load", lambda recipe: faint if recipe.role == "localizer" else load(recipe))
    networks = Networks(device="cpu")
    for gate, count in ((0.6, 2), (0.8, 0)):
        parameters = Parameters(method=cism.Scenes(gate=gate), tile_size=128, **EXACT)
        assert len(extract(scene, reading=READING, networks=networks, parameters=parameters)) == count


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_student(tmp_path_factory.mktemp("student") / "student.safetensors", "background", "landslide")


def write_student(path: Path, *classes: str) -> Path:
    """A network whose last class is what is bright, by construction, and that sees nothing of others."""
    network = ResUNet(classes=len(classes), widths=[16, 32])
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        stage = network.down[0]
        stage.skip[0].weight[0, :, 0, 0] = 1 / 3
        stage.skip[1].weight[0] = 1
        up = network.up[0]
        up.skip[0].weight[0, 0, 0, 0] = 1
        up.skip[1].weight[0] = 1
        network.head.bias[1:] = -10
        network.head.weight[-1, 0] = 20
    architecture = {"name": "resunet", "widths": [16, 32], "classes": len(classes)}
    info = NetworkInfo("student", architecture, classes, 64, 1, (0.5, 0.5), (110.0,) * 3, (120.0,) * 3)
    save_checkpoint(path, network, info)
    return path


def test_a_student_draws_a_scene(scene: Path, student: Path, tmp_path: Path):
    networks, parameters = Networks(device="cpu"), Parameters(method=Student(student=student), **EXACT)
    found = extract(scene, out=tmp_path / "slides.gpkg", reading=READING, networks=networks, parameters=parameters)
    assert area(found) == [40 * 60 / 4, 60 * 100 / 4]
    written = gpd.read_file(tmp_path / "slides.gpkg", layer="landslides")
    assert area(written) == area(found)
    assert len(gpd.read_file(tmp_path / "slides.gpkg", layer="prompts")) == 0
    assert '"method": "student"' in (tmp_path / "slides.gpkg").read_bytes().decode(errors="ignore")


def test_a_student_draws_every_class_that_it_knows(scene: Path, tmp_path: Path):
    path = write_student(tmp_path / "two.safetensors", "background", "landslide", "rockfall")
    given = {"reading": READING, "networks": Networks(device="cpu")}
    found = extract(scene, **given, parameters=Parameters(method=Student(student=path), **EXACT))
    assert area(found) == [40 * 60 / 4, 60 * 100 / 4]
    assert set(found["class"]) == {"rockfall"}
    chosen = Parameters(method=Student(student=path), class_names=("landslide",), **EXACT)
    assert len(extract(scene, **given, parameters=chosen)) == 0


def test_what_a_student_cannot_do(scene: Path, student: Path, tmp_path: Path):
    bundled = next(p.path for p in PUBLISHED if p.bundled and p.role == "segmenter")
    with pytest.raises(WeightsError, match="holds a segmenter, not a student"):
        extract(scene, parameters=Parameters(method=Student(student=bundled)))
    with pytest.raises(WeightsError, match="does not exist"):
        extract(scene, parameters=Parameters(method=Student(student=tmp_path / "none.safetensors")))
    asked = {"networks": Networks(device="cpu"), "parameters": Parameters(method=Student(student=student))}
    out = tmp_path / "slides.gpkg"
    extract(scene, out=out, **asked)
    with pytest.raises(OptionError, match="student uses no segmenter"):
        extract(scene, out=tmp_path / "again.gpkg", **asked, prompts_from=out)


def test_a_student_may_be_asked_for_prompts_too(scene: Path, student: Path):
    recipe, _ = Networks(localizer=str(student), device="cpu").recipes()
    (activation,) = worker.localizer(recipe)([np.full((64, 64, 3), 230, np.uint8)])
    assert quantise(activation.values).min() == 255

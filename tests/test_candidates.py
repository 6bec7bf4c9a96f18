"""Candidates: what is less sure than a landslide has to be is kept apart, and nothing of it is lost."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import replace
from pathlib import Path

import geopandas as gpd
import numpy as np
import pyogrio
import pytest
import rasterio
from affine import Affine
from rasterio.features import rasterize

import geolabel
from geolabel.cli.main import run as command
from geolabel.errors import OptionError
from geolabel.extraction import request, result
from geolabel.extraction.request import LIKELY, Networks, Reading, with_limit
from geolabel.extraction.vectorize import Objects
from geolabel.methods import s2c
from geolabel.parsing import Measure
from geolabel.spans import Spans
from geolabel.testing import RECIPES
from geolabel.tiles import Window

UTM = Affine(0.5, 0, 500_000, 0, -0.5, 3_000_000)
NONE = Measure(0, "px")
GIVEN = {"tile_size": 64, "overlap": 16, "block_size": 100, "threads": 1, "min_area": NONE, "max_hole": NONE}
READING = Reading(stretch="0,255")


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks that find what is bright, and a confidence that grows with the area: 400 m2 and more are certain."""
    monkeypatch.setattr(Networks, "recipes", lambda *_: RECIPES)
    monkeypatch.setattr(request, "knows", lambda *_: True)
    monkeypatch.setattr(result, "confidence_of", lambda table, *_: np.clip(table["area_m2"].to_numpy() / 400, 0, 1))


def write(path: Path, *boxes: tuple[int, int, int, int], shift: float = 0.0) -> Path:
    """A scene of 200 x 200 px of 0.5 m, in which boxes (row, col, height, width) are bright."""
    image = np.random.default_rng(0).integers(20, 60, (3, 200, 200)).astype(np.uint8)
    for row, col, height, width in boxes:
        image[:, row : row + height, col : col + width] = 230
    profile = {"driver": "GTiff", "dtype": "uint8", "count": 3, "height": 200, "width": 200, "crs": "EPSG:32648"}
    transform = UTM * Affine.translation(shift, 0)
    with rasterio.open(path, "w", **profile, transform=transform, photometric="rgb") as target:
        target.write(image)
    return path


SMALL, LARGE = (20, 20, 16, 16), (80, 80, 60, 60)
"""64 and 900 m2."""


@pytest.mark.parametrize(("least", "landslides"), [(None, [2]), (0, [1, 2]), (0.1, [1, 2]), (0.5, [2])])
def test_what_is_less_sure_is_a_layer_of_its_own(tmp_path: Path, least: float | None, landslides: list[int]) -> None:
    scene, out, mask = write(tmp_path / "scene.tif", SMALL, LARGE), tmp_path / "s.gpkg", tmp_path / "m.tif"
    parameters = geolabel.Parameters(**GIVEN, min_confidence=least)
    found = geolabel.extract(scene, out=out, mask_out=mask, reading=READING, parameters=parameters)
    candidates = gpd.read_file(out, layer="candidates")
    assert found["id"].tolist() == landslides
    assert sorted([*found["id"], *candidates["id"]]) == [1, 2]
    assert found.index.tolist() == list(range(len(found)))
    written = gpd.read_file(out, layer="landslides")
    assert written["id"].tolist() == landslides
    assert list(written.columns) == list(candidates.columns)
    with rasterio.open(mask) as opened:
        drawn = opened.read(1)
    assert np.array_equal(drawn, rasterize(found.geometry, out_shape=drawn.shape, transform=UTM))


def test_without_a_candidate_the_layer_is_empty_and_has_a_style(tmp_path: Path) -> None:
    geolabel.extract(
        write(tmp_path / "scene.tif", LARGE),
        out=tmp_path / "s.gpkg",
        reading=READING,
        parameters=geolabel.Parameters(**GIVEN),
    )
    info = pyogrio.read_info(tmp_path / "s.gpkg", layer="candidates")
    assert (info["features"], info["geometry_type"]) == (0, "MultiPolygon")
    with sqlite3.connect(tmp_path / "s.gpkg") as connection:
        rows = connection.execute("SELECT f_table_name FROM layer_styles").fetchall()
    assert ("candidates",) in rows


def test_candidates_of_two_scenes_that_overlap_may_be_one_landslide(tmp_path: Path) -> None:
    """Two halves of 200 m2 each, on grids half a pixel apart, have 0.5 alone and share a part: together 0.8."""
    first = write(tmp_path / "a.tif", (100, 40, 20, 40), SMALL)
    second = write(tmp_path / "b.tif", (100, 64, 20, 40), shift=0.5)
    parameters = geolabel.Parameters(**GIVEN, min_confidence=0.6)
    found = geolabel.extract([first, second], out=tmp_path / "s.gpkg", reading=READING, parameters=parameters)
    assert [len(json.loads(source)) for source in found["source"]] == [2]
    assert found["confidence"].item() == pytest.approx(64.5 * 20 * 0.25 / 400, rel=0.02)
    candidates = gpd.read_file(tmp_path / "s.gpkg", layer="candidates")
    assert candidates["area_m2"].tolist() == pytest.approx([64], rel=0.02)
    assert {*found["id"], *candidates["id"]} == {1, 2}


def test_the_summary_counts_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scene = write(tmp_path / "scene.tif", SMALL, LARGE)
    options = ["--tile-size", "64", "--overlap", "16", "--stretch", "0,255", "--min-area", "0px", "--json"]
    assert command(["extract", str(scene), "--out", str(tmp_path / "s.gpkg"), *options]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["landslides"], told["candidates"]) == (1, 1)
    assert told["area_m2"] == pytest.approx(900, rel=0.02)
    assert told["mean_confidence"] == 1


def test_what_has_no_confidence_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(result, "confidence_of", lambda table, *_: np.full(len(table), np.nan))
    scene = write(tmp_path / "scene.tif", SMALL, LARGE)
    assert len(geolabel.extract(scene, reading=READING, parameters=geolabel.Parameters(**GIVEN))) == 2


@pytest.mark.parametrize("which", [0, 1])
def test_networks_without_confidence_take_no_limit(which: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    recipes = list(Networks(device="cpu").recipes())
    recipes[which] = replace(recipes[which], sha256="0" * 64)
    assert with_limit(geolabel.Parameters(), (recipes[0], recipes[1])).min_confidence is None
    assert with_limit(geolabel.Parameters(min_confidence=0), (recipes[0], recipes[1])).min_confidence == 0
    with pytest.raises(OptionError, match=r"min confidence 0\.5: .* omit it"):
        with_limit(geolabel.Parameters(min_confidence=0.5), (recipes[0], recipes[1]))


def test_the_bundled_networks_have_a_limit_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    recipes = Networks(device="cpu").recipes()
    assert with_limit(geolabel.Parameters(), recipes).min_confidence == LIKELY
    assert with_limit(geolabel.Parameters(min_confidence=0.7), recipes).min_confidence == 0.7
    with pytest.raises(OptionError, match=r"min confidence 0\.5: .* omit it"):
        with_limit(geolabel.Parameters(method=s2c.Scenes(), min_confidence=0.5), recipes)
    with pytest.raises(OptionError, match=r"min confidence 1\.5"):
        geolabel.Parameters(min_confidence=1.5)


def test_some_objects_alone() -> None:
    mask = np.zeros((4, 9), bool)
    mask[0:2, 0:2] = mask[1:3, 4:6] = mask[3, 7:9] = True
    spans = Spans.of_mask(mask, Window(0, 0, 4, 9))
    labels, count = spans.components(4)
    objects = Objects(spans, labels, count, np.zeros(count, np.int32))
    kept = objects.only(np.asarray([True, False, True]))
    mask[1:3, 4:6] = False
    assert np.array_equal(kept.mask(Window(0, 0, 4, 9)), mask)
    assert kept.areas.tolist() == [4, 2]

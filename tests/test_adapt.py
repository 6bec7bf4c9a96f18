"""Adaptation: what was reviewed becomes ground, levels are validated on other ground, and the loop closes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import geopandas as gpd
import numpy as np
import pyproj
import pytest
import shapely
from affine import Affine

import geolabel
from geolabel.adaptation.ground import GROUND, LANDSLIDE, UNJUDGED, Ground, Reviewed
from geolabel.adaptation.levels import CUTS, GATES, OWN, Blocks, Cells, OperatingPoint, choose, f1, tally
from geolabel.cli.main import run
from geolabel.errors import OptionError, OutputError, VectorError
from geolabel.models import registry
from geolabel.models.checkpoint import load_checkpoint, read_info, save_checkpoint
from geolabel.scene import Grid
from geolabel.tiles import Window

CRS = "EPSG:32648"
GRID = Grid(pyproj.CRS(CRS), Affine(1, 0, 0, 0, -1, 400), 400, 400)
"""Of 1 m; row r is at 400 - r."""


def square(left: float, top: float, side: float) -> shapely.Polygon:
    return shapely.box(left, 400 - top - side, left + side, 400 - top)


def write(path: Path, layer: str, outlines: Sequence[shapely.Geometry], **columns: Sequence[object]) -> Path:
    gpd.GeoDataFrame(columns, geometry=list(outlines), crs=CRS).to_file(path, layer=layer, driver="GPKG")
    return path


# What was reviewed


def test_polygons_are_landslide_ground_or_nothing_by_their_status(tmp_path: Path) -> None:
    places = [square(40 + 100 * k, 100, 40) for k in range(3)]
    states = ["accepted", "rejected", "unreviewed"]
    path = write(tmp_path / "a.gpkg", "landslides", places, id=[1, 2, 3], status=states)
    painted = Ground.on(GRID, [Reviewed.read(path)]).paint(GRID.window)
    assert [int(painted[120, 60 + 100 * k]) for k in range(3)] == [LANDSLIDE, GROUND, UNJUDGED]
    # the ring is as wide as half the side of the square, 20 m, but at least 32 m
    assert [int(painted[120, col]) for col in (30, 9, 5)] == [GROUND, GROUND, UNJUDGED]
    assert painted[300, 60] == UNJUDGED


def test_ground_of_areas_is_known_where_nothing_is_drawn(tmp_path: Path) -> None:
    path = write(tmp_path / "a.gpkg", "landslides", [square(40, 40, 40), square(140, 40, 40)], id=[1, 2],
                 status=["accepted", "unreviewed"])  # fmt: skip
    write(path, "reviewed", [square(0, 0, 200)])
    write(path, "review", [square(200, 0, 100), square(300, 0, 100)], status=["Reviewed", "unreviewed"])
    found = Reviewed.read(path)
    assert (len(found.landslides), len(found.waiting), len(found.areas)) == (1, 1, 2)
    painted = Ground.on(GRID, [found]).paint(GRID.window)
    assert [int(painted[60, col]) for col in (60, 160, 190, 250, 350)] == [
        LANDSLIDE,
        UNJUDGED,
        GROUND,
        GROUND,
        UNJUDGED,
    ]


def test_areas_in_a_file_of_one_layer_have_a_status(tmp_path: Path) -> None:
    places = [square(40, 40, 40), square(0, 0, 200)]
    gpd.GeoDataFrame({"id": [1, 2], "status": ["accepted", "reviewed"]}, geometry=places, crs=CRS).to_file(
        tmp_path / "a.geojson"
    )
    found = Reviewed.read(tmp_path / "a.geojson")
    assert (len(found.landslides), len(found.areas)) == (1, 1)


def test_any_polygons_are_landslides_and_a_layer_of_areas_alone_is_none(tmp_path: Path) -> None:
    assert len(Reviewed.read(write(tmp_path / "a.gpkg", "mine", [square(0, 0, 9)])).landslides) == 1
    alone = Reviewed.read(write(tmp_path / "b.gpkg", "reviewed", [square(0, 0, 9)]))
    assert (len(alone.landslides), len(alone.areas)) == (0, 1)


def test_a_window_is_painted_as_in_the_whole(tmp_path: Path) -> None:
    path = write(tmp_path / "a.gpkg", "landslides", [square(33, 71, 57)], id=[1], status=["accepted"])
    ground = Ground.on(GRID, [Reviewed.read(path)])
    window = Window(50, 20, 64, 90)
    assert np.array_equal(ground.paint(window), ground.paint(GRID.window)[window.slices])


# Levels

POINT = OperatingPoint(1.0, 1.5)


def cells(seed: int, scale: float, place: tuple[int, int, int], *, right: bool = True) -> Cells:
    """A map with a landslide of raw value 2, and other bare ground of 1.2, both times a scale."""
    random = np.random.default_rng(seed)
    raw, cover = random.normal(0.1, 0.1, (2, 64, 64)).astype(np.float32)
    cover[:] = 0
    for value, slide in ((2.0, right), (1.2, not right)):
        row, col = random.integers(4, 48, 2)
        raw[row : row + 12, col : col + 12] = value
        cover[row : row + 12, col : col + 12] = slide
    return Cells(raw * np.float32(scale), cover, np.ones_like(cover), place)


def many(scale: float, count: int = 6, **given: bool) -> list[Cells]:
    return [cells(k, scale, (0, 300 * k, 0), **given) for k in range(count)]


def test_a_tally_counts_judged_area_by_hand() -> None:
    raw = np.zeros((4, 8), np.float32)
    raw[1:3, 1:3], raw[1:3, 5:7] = 3.0, 1.1
    cover = np.zeros_like(raw)
    cover[1:3, 1:3] = 1
    judged = np.ones_like(raw)
    judged[1, 5] = 0
    numbers = np.repeat([[0] * 4 + [1] * 4], 4, axis=0)
    table = tally(raw, Cells(raw, cover, judged, (0, 0, 0)), numbers, 2, OperatingPoint(1.0, 1.5), 2)
    assert table.shape == (2, len(CUTS), len(GATES) + 1, 3)
    assert table[:, *OWN].tolist() == [[4, 4, 4], [0, 0, 0]]  # 1.1 is above the cut, and below the gate
    assert table[:, OWN[0], 0].tolist() == [[4, 4, 4], [0, 3, 0]]  # and above a gate of 0.8 times the cut
    assert f1(np.array([4.0, 7.0, 4.0])) == pytest.approx(8 / 11)


def test_a_scale_that_is_off_is_found_and_gains_on_other_ground() -> None:
    shown = many(0.45)
    blocks = Blocks.of(shown)
    assert blocks is not None
    choice = choose(shown, blocks, POINT, 4)
    assert choice.level == "threshold"
    assert choice.scores["none"] < 0.1
    assert choice.scores["threshold"] > 0.9
    assert 0.45 * 1.2 < max(choice.point.cut, choice.point.gate) < 0.45 * 2


def test_what_is_right_already_is_left_alone() -> None:
    shown = many(1.0)
    blocks = Blocks.of(shown)
    assert blocks is not None
    choice = choose(shown, blocks, POINT, 4)
    assert (choice.level, choice.point, choice.gain) == (None, POINT, 0.0)


def test_what_holds_in_no_other_place_does_not_count() -> None:
    """Half of the places say the opposite of the others: each fold is cut where the others are right."""
    shown = [cells(k, 1.0, (0, 300 * k, 0), right=k % 2 == 0) for k in range(6)]
    blocks = Blocks.of(shown)
    assert blocks is not None
    choice = choose(shown, blocks, POINT, 4)
    assert choice.scores["threshold"] < choice.scores["none"] + 0.25


def test_blocks_are_squares_of_ground_and_at_least_two_show_landslides() -> None:
    blocks = Blocks.of(many(1.0, 1))
    assert blocks is not None
    assert len(blocks.fold) > 1
    one = cells(0, 1.0, (0, 0, 0))
    cover = np.zeros_like(one.cover)
    cover[3, 3] = 1
    assert Blocks.of([replace(one, cover=cover)]) is None
    numbers = Blocks.of(many(1.0))
    assert numbers is not None
    assert len({int(n) for of in numbers.numbers for n in np.unique(of)}) == len(numbers.fold)


# The loop


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a synthetic scene, its truth, and a localizer whose scale is off."""
    folder = tmp_path_factory.mktemp("place")
    geolabel.synthesize(folder / "scene.tif", size=1024, gsd=0.5, seed=1002)
    state, info = load_checkpoint(registry.lookup("bundled", "localizer")[0].path)
    assert info.constant is not None
    state["bias"] = state["bias"] * 2.2
    save_checkpoint(folder / "off.safetensors", state, replace(info, constant=info.constant * 2.2, floor=100))
    return folder


def mapped(place: Path, out: Path, networks: geolabel.Networks) -> float:
    """F1 of the area of the landslides that networks find."""
    geolabel.extract(place / "scene.tif", out=out, networks=networks, overwrite=True)
    return geolabel.evaluate(out, place / "scene_truth.tif").areas.f1


def test_review_and_adaptation_find_more(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    begun = geolabel.Networks(localizer=str(place / "off.safetensors"), device="cpu")
    before = mapped(place, tmp_path / "first.gpkg", begun)
    truth = gpd.read_file(place / "scene_truth.gpkg", layer="landslides")
    table = gpd.read_file(tmp_path / "first.gpkg", layer="landslides")
    table["status"] = ["accepted" if truth.intersects(outline).any() else "rejected" for outline in table.geometry]
    added = truth[~truth.intersects(table.union_all())][["geometry"]]
    both = gpd.GeoDataFrame(gpd.pd.concat([table, added], ignore_index=True), crs=table.crs)
    both.to_file(tmp_path / "first.gpkg", layer="landslides", driver="GPKG")
    out = tmp_path / "valley"
    words = ["adapt", str(place / "scene.tif"), "--reviewed", str(tmp_path / "first.gpkg"), "--out", str(out)]
    assert run([*words, "--localizer", str(place / "off.safetensors"), "--device", "cpu", "-q", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["level"] == "threshold"
    assert said["gain"] > 0.05
    info = read_info(out / "localizer.safetensors")
    assert (info.floor, info.trained["adapted"]["scenes"]) == (100, ["scene.tif"])
    after = mapped(place, tmp_path / "second.gpkg", geolabel.Networks.from_folder(out, device="cpu"))
    assert after > before + 0.05
    with pytest.raises(OutputError, match="overwrite"):
        geolabel.adapt(place / "scene.tif", tmp_path / "first.gpkg", out=out)


def test_too_few_landslides_are_refused(place: Path, tmp_path: Path) -> None:
    truth = gpd.read_file(place / "scene_truth.gpkg", layer="landslides")[["geometry"]]
    truth[:2].to_file(tmp_path / "few.gpkg", layer="few")
    with pytest.raises(VectorError, match="2 reviewed landslides on the scenes, at least 3 are needed"):
        geolabel.adapt(place / "scene.tif", tmp_path / "few.gpkg")


def test_where_nothing_gains_nothing_is_written(place: Path, tmp_path: Path) -> None:
    truth = gpd.read_file(place / "scene_truth.gpkg", layer="landslides")[["geometry"]]
    truth.to_file(tmp_path / "all.gpkg", layer="all")
    words = ["adapt", str(place / "scene.tif"), "--reviewed", str(tmp_path / "all.gpkg"), "--out", str(tmp_path / "v")]
    assert run([*words, "-q"]) == 4
    assert not (tmp_path / "v").exists()


def test_a_localizer_of_another_kind_is_refused(place: Path, tmp_path: Path) -> None:
    state, info = load_checkpoint(place / "off.safetensors")
    more = info.architecture | {"classes": 2}
    state |= {name: state[name].repeat_interleave(2, 0) for name in ("bias", "head.weight")}
    two = tmp_path / "two.safetensors"
    save_checkpoint(two, state, replace(info, architecture=more, classes=("landslide", "rock")))
    with pytest.raises(OptionError, match="adapt knows localizers of one class"):
        geolabel.adapt(place / "scene.tif", place / "scene_truth.gpkg", networks=geolabel.Networks(localizer=str(two)))

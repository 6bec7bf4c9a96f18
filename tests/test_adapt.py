"""Adaptation: what was reviewed becomes ground, levels are validated on other ground, and the loop closes."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import geopandas as gpd
import numpy as np
import pandas as pd
import pyproj
import pytest
import rasterio
import shapely
import torch
from affine import Affine
from scipy.special import logit

import geolabel
from geolabel.adaptation import all_layers, confidence, decoder, levels
from geolabel.adaptation.all_layers import AllLayers
from geolabel.adaptation.confidence import _moved, _platt
from geolabel.adaptation.ground import GROUND, LANDSLIDE, UNJUDGED, Ground, Reviewed
from geolabel.adaptation.head import Head, OctaveMaps
from geolabel.adaptation.levels import (
    CUTS,
    GATES,
    OWN,
    Blocks,
    Cells,
    Choice,
    OperatingPoint,
    by_cell,
    choose,
    f1,
    tally,
)
from geolabel.adaptation.networks import BaseLocalizer, write_localizer, write_segmenter
from geolabel.cli.main import run
from geolabel.engine.tasks import Silent
from geolabel.errors import OptionError, OutputError, VectorError
from geolabel.extraction.scene_groups import prepare
from geolabel.models import registry
from geolabel.models.checkpoint import load_checkpoint, load_localizer, load_own, read_info, save_checkpoint
from geolabel.models.confidence import load_confidence, save_confidence, shipped
from geolabel.models.defaults import segmenter_defaults
from geolabel.models.loading import recipe
from geolabel.models.on_onnx import OnnxMaps
from geolabel.models.on_torch import TorchMaps, TorchSam
from geolabel.prompts import Prompts
from geolabel.scene import Grid
from geolabel.tiles import Window

if TYPE_CHECKING:
    from segment_anything.modeling import Sam

BUNDLED = registry.lookup("bundled", "localizer")[0].path

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
    path = write(
        tmp_path / "a.gpkg",
        "landslides",
        [square(40, 40, 40), square(140, 40, 40)],
        id=[1, 2],
        status=["accepted", "unreviewed"],
    )
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


def test_windows_of_a_sample_that_were_looked_at_are_areas(tmp_path: Path) -> None:
    path = write(tmp_path / "a.gpkg", "landslides", [square(40, 40, 40)], id=[1], status=["accepted"])
    write(path, "review_sample", [square(200, 0, 100), square(300, 0, 100)], status=["reviewed", "unreviewed"])
    painted = Ground.on(GRID, [Reviewed.read(path)]).paint(GRID.window)
    assert [int(painted[60, col]) for col in (60, 250, 350)] == [LANDSLIDE, GROUND, UNJUDGED]


def test_corrected_and_added_polygons_are_landslides_and_what_was_cut_off_is_not(place: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.gpkg"
    geolabel.polygonize(place / "scene_truth.tif", out=path)
    table = gpd.read_file(path, layer="landslides")
    before = table.geometry.iloc[0]
    left, bottom, right, top = before.bounds
    half = before.intersection(shapely.box(left, bottom, (left + right) / 2, top))
    table.loc[0, "geometry"] = half
    added = shapely.box(right + 200, top, right + 210, top + 10)
    both = pd.concat([table, gpd.GeoDataFrame(geometry=[added], crs=table.crs)], ignore_index=True)
    gpd.GeoDataFrame(both, crs=table.crs).to_file(path, layer="landslides", driver="GPKG")
    found = Reviewed.read(path)
    assert len(found.waiting) == len(table) - 1
    assert found.landslides.union_all().symmetric_difference(half.union(added)).area < 1e-6
    assert found.removed.union_all().symmetric_difference(before.difference(half)).area < 1e-6
    everything = Reviewed.read(path, accept_unreviewed=True)
    assert (len(everything.landslides), len(everything.waiting)) == (len(both), 0)
    painted = Ground.on(plan_grid(place), [found]).paint(plan_grid(place).window)
    col, row = ~plan_grid(place).transform * before.difference(half).representative_point().coords[0]
    assert painted[int(row), int(col)] == GROUND


def plan_grid(place: Path) -> Grid:
    with rasterio.open(place / "scene.tif") as scene:
        return Grid(pyproj.CRS(scene.crs), scene.transform, scene.height, scene.width)


def test_a_candidate_with_notes_alone_is_not_judged_and_a_redrawn_one_is_a_landslide(
    place: Path, tmp_path: Path
) -> None:
    path = tmp_path / "a.gpkg"
    found = geolabel.extract(
        place / "scene.tif",
        out=path,
        networks=geolabel.Networks(device="cpu"),
        parameters=geolabel.Parameters(min_confidence=0.98),
    )
    table = gpd.read_file(path, layer="candidates")
    assert len(table) > 2
    table.loc[0, "notes"] = "shadow?"
    table.loc[1, "geometry"] = table.geometry.iloc[1].buffer(3)
    table.to_file(path, layer="candidates", driver="GPKG")
    reviewed = Reviewed.read(path)
    assert len(reviewed.landslides) == 1
    assert len(reviewed.waiting) == len(table) - 1 + len(found)


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


def test_a_mistyped_status_is_named_and_blanks_are_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    places = [square(40 + 100 * k, 100, 40) for k in range(3)]
    states = ["reject", "rejected ", "Accepted"]
    found = Reviewed.read(write(tmp_path / "a.gpkg", "landslides", places, id=[1, 2, 3], status=states))
    assert (len(found.landslides), len(found.rejected)) == (2, 1)
    assert "status 'reject' of 1: not one of unreviewed, accepted, rejected" in caplog.text


def test_of_several_unknown_layers_none_is_taken_by_chance(tmp_path: Path) -> None:
    path = write(tmp_path / "a.gpkg", "roads", [square(0, 0, 9)])
    write(path, "slides", [square(40, 0, 9)])
    with pytest.raises(VectorError, match="2 layers, roads, slides"):
        Reviewed.read(path)
    write(path, "landslides", [square(80, 0, 9)])
    assert Reviewed.read(path).landslides.geometry.iloc[0].equals(square(80, 0, 9))


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


def test_a_scale_that_is_off_by_far_is_found_too() -> None:
    assert CUTS[OWN[0]] == 1
    shown = many(0.15)
    blocks = Blocks.of(shown)
    assert blocks is not None
    choice = choose(shown, blocks, POINT, 4)
    assert choice.scores["threshold"] > 0.9
    assert 0.15 * 1.2 < max(choice.point.cut, choice.point.gate) < 0.15 * 2


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


# The head


def featured(k: int, cue: int) -> Cells:
    """A map that shows nothing of what one of eight features shows."""
    one = cells(k, 1.0, (0, 300 * k, 0))
    features = np.random.default_rng(k).normal(0, 0.1, (*one.raw.shape, 8)).astype(np.float16)
    features[..., cue] += one.cover.astype(np.float16)
    raw = np.random.default_rng(99 + k).normal(0.3, 0.3, one.raw.shape).astype(np.float32)
    return replace(one, raw=raw, features=features)


def test_a_head_learns_what_holds_on_other_ground() -> None:
    torch.manual_seed(0)
    first, point = Head(torch.randn(4, 8) / 4, torch.zeros(4), torch.rand(4)), OperatingPoint(0.2, 0.3)
    shown = [featured(k, 3) for k in range(6)]
    shown = [replace(one, raw=first.map(one)) for one in shown]
    blocks = Blocks.of(shown)
    assert blocks is not None
    choice = choose(shown, blocks, point, 4, {"head": lambda part: first.fitted(part, point.cut, seed=0)})
    assert choice.level == "head"
    assert choice.scores["head"] > choice.scores["threshold"] + 0.02
    assert choice.layers is not None
    again = choose(
        shown, blocks, point, 4, {"head": lambda part: first.fitted(part, point.cut, seed=0)}, level="threshold"
    )
    assert (again.level, again.layers, again.scores) == ("threshold", None, choice.scores)


def test_the_head_is_the_network_after_its_pyramid() -> None:
    network = load_localizer(BUNDLED)[0]
    head = Head.of(network)
    assert head is not None
    pixels = np.random.default_rng(0).normal(0, 1, (1, 3, 64, 128)).astype(np.float32)
    features = OctaveMaps(network)(pixels)[0]
    one = Cells(*[np.zeros(features.shape[1:], np.float32)] * 3, (0, 0, 0), np.moveaxis(features, 0, 2))
    with torch.inference_mode():
        whole = network(torch.from_numpy(pixels))[0, 0].numpy()
    assert np.allclose(head.map(one), whole, atol=1e-4)
    state = load_checkpoint(BUNDLED)[0]
    assert all(torch.equal(state[name], tensor) for name, tensor in head.tensors().items())


# All layers


def tile(k: int, side: int = 320) -> Cells:
    """A tile whose landslides are red, which the map of the network says nothing of."""
    random = np.random.default_rng(k)
    image = random.integers(90, 130, (side, side, 3)).astype(np.uint8)
    truth = np.zeros((side, side), bool)
    row, col = random.integers(32, side - 128, 2)
    truth[row : row + 96, col : col + 96] = True
    image[truth] = (200, 60, 60)
    cover = by_cell(truth, 8)
    return Cells(np.zeros_like(cover), cover, np.ones_like(cover), (0, 300 * k, 0), image=image)


def trainable() -> AllLayers:
    found = AllLayers.of(*load_localizer(BUNDLED), "cpu")
    assert found is not None
    return found


def test_all_layers_learn_but_for_the_first_and_do_so_again(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("STEPS", 6), ("CROPS", 2), ("SIDE", 128), ("RATE", 1e-3)):
        monkeypatch.setattr(all_layers, name, value)
    first, shown = trainable(), [tile(0), tile(1)]
    before = first.tensors()
    found, again = (first.fitted(shown, 2.0, seed=3) for _ in range(2))
    moved = {name for name, tensor in found.tensors().items() if not torch.equal(tensor, before[name])}
    assert all(torch.equal(tensor, again.tensors()[name]) for name, tensor in found.tensors().items())
    assert all(torch.equal(tensor, before[name]) for name, tensor in first.tensors().items())
    assert {"head.weight", "mix.bias", "trunk.blocks.6.0.conv_pw.weight", "trunk.blocks.3.0.conv_pw.weight"} <= moved
    assert not {name for name in moved if name.startswith(("trunk.conv_stem", "trunk.bn1", "trunk.blocks.2", "bias"))}
    assert not {name for name in moved if "running" in name}
    unseen = tile(7)
    maps = [
        one.map(unseen)[:, :][[unseen.cover > 0.9, unseen.cover == 0][k]].mean()
        for one in (first, found)
        for k in (0, 1)
    ]
    assert maps[2] - maps[3] > maps[0] - maps[1] + 0.5


def test_all_layers_are_written_for_both_engines(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("STEPS", 2), ("CROPS", 1), ("SIDE", 64), ("RATE", 1e-2)):
        monkeypatch.setattr(all_layers, name, value)
    plan = prepare(place / "scene.tif", geolabel.Reading(), geolabel.Networks(device="cpu"), geolabel.Parameters())
    base = BaseLocalizer.of(plan, "all")
    assert base.all_layers is not None
    assert set(base.fits(0, "all")) == {"all"}
    assert set(base.fits(0, "head")) == {"head"}
    fitted = base.all_layers.fitted([tile(0, 64 + 128)], 2.0, seed=0)
    choice: Choice[Any] = Choice("all", {"none": 0.1, "all": 0.5}, base.point.at((3, 2)), fitted)
    written = write_localizer(tmp_path, base, choice, {"level": "all"})
    network, info = load_localizer(written)
    assert info.constant == pytest.approx(base.info.constant * CUTS[3])
    pixels = np.random.default_rng(0).normal(0, 1, (1, 3, 64, 64)).astype(np.float32)
    maps = [one(pixels) for one in (TorchMaps(network), OnnxMaps(written), TorchMaps(base.all_layers.network))]
    assert np.allclose(maps[0], maps[1], atol=1e-3)
    assert np.abs(maps[0] - maps[2]).max() > 0.05


def test_crops_keep_what_was_said_beside_its_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(all_layers, "COLOUR", 0.0)
    small = tile(2, 200)
    shown = [replace(tile(k), judged=(tile(k).cover > 0).astype(np.float32)) for k in range(2)] + [small]
    crops = all_layers._Crops.of(shown, np.random.default_rng(0))
    seen = [crop for _ in range(6) for crop in crops.some()]
    for pixels, cover, judged in seen:
        assert pixels.shape == (256, 256, 3)
        assert (judged > 0).any()
        red = by_cell(pixels[..., 0] > 150, 8)
        assert np.allclose(red[judged > 0], cover[judged > 0])


# The confidence


@pytest.mark.parametrize(("right", "fitted"), [([0, 1, 1, 0], True), ([1, 1, 1, 1], False), ([0, 1, 1], False)])
def test_four_polygons_move_the_confidence_and_fewer_or_of_one_kind_do_not(
    right: list[int], fitted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = load_confidence(shipped())
    names = ("score_mean", "score_max", "predicted_iou", "stability", "activation_mean", "activation_share")
    columns = pd.DataFrame(dict.fromkeys(names, 0.5) | {"area_m2": 900.0, "gsd_m": 0.5, "elongation": 2.0}, range(4))
    columns = columns[: len(right)]
    monkeypatch.setattr(confidence, "_polygons", lambda *_: (columns, np.array(right, bool)))
    ground: Any = SimpleNamespace(landslides=[0], rejected=[], areas=[])
    recipes: Any = (SimpleNamespace(role="localizer", sha256="a"), SimpleNamespace(role="segmenter", sha256="b"))
    plan: Any = None
    found = confidence.fit_again(before, recipes, [plan], [ground], Silent())
    assert found.networks == {"localizer": "a", "segmenter": "b"}
    assert found.fitted["adapted"] == {"polygons": len(right), "right": sum(right), "fitted again": fitted}
    stated, moved = before.model(columns)[0], found.model(columns)[0]
    assert (abs(moved - 0.5) < abs(stated - 0.5) - 0.05) == fitted
    assert (moved == stated) != fitted


def test_ground_between_places_far_apart_is_not_extracted_again() -> None:
    judged = shapely.union_all([square(10, 10, 20), square(300, 300, 20), square(320, 310, 5)])
    around = confidence.ground_around(judged, 16)
    assert around.equals(shapely.union_all([square(-6, -6, 52), shapely.box(284, 64, 341, 116)]))
    assert confidence.ground_around(square(10, 10, 20), 16).equals(square(-6, -6, 52))


def test_confidence_moves_towards_what_was_reviewed_and_stays_where_nothing_is_known() -> None:
    stated = np.linspace(0.1, 0.9, 40)
    calibrated = np.random.default_rng(0).random(40) < stated
    assert _platt(stated, calibrated) == pytest.approx((0, 1), abs=0.5)
    shift, scale = _platt(stated, np.ones(40, bool))
    assert shift > 1.5
    model = load_confidence(shipped()).model
    moved = _moved(model, shift, scale)
    columns = {
        name: np.array([value])
        for name, value in {
            "score_mean": 0.7,
            "score_max": 0.9,
            "predicted_iou": 0.5,
            "stability": 0.6,
            "activation_mean": 0.5,
            "activation_share": 0.9,
            "area_m2": 900.0,
            "gsd_m": 0.5,
            "elongation": 2.0,
        }.items()
    }
    before, after = (logit(one(columns)) for one in (model, moved))
    assert after == pytest.approx(shift + scale * before)


# The loop


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a synthetic scene, its truth, and a localizer whose scale is off."""
    folder = tmp_path_factory.mktemp("place")
    geolabel.synthesize(folder / "scene.tif", size=768, gsd=0.5, seed=1002)
    state, info = load_checkpoint(BUNDLED)
    assert info.constant is not None
    state["bias"] = state["bias"] * 2.2
    (folder / "off").mkdir()
    off = folder / "off" / "localizer.safetensors"
    save_checkpoint(off, state, replace(info, constant=info.constant * 2.2, floor=100))
    networks = {"localizer": recipe("localizer", off).sha256, "segmenter": recipe("segmenter").sha256}
    fitted = replace(load_confidence(shipped()), networks=networks)
    save_confidence(folder / "off" / "confidence.json", fitted, overwrite=False)
    return folder


def mapped(place: Path, out: Path, networks: geolabel.Networks) -> float:
    """F1 of the area of the landslides that networks find."""
    geolabel.extract(place / "scene.tif", out=out, networks=networks, overwrite=True)
    return geolabel.evaluate(out, place / "scene_truth.tif").areas.f1


def test_review_and_adaptation_find_more(
    place: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(decoder, "STEPS", 2)
    monkeypatch.setattr(decoder, "gains", lambda *_: True)
    base = geolabel.Networks.from_folder(place / "off", device="cpu")
    before = mapped(place, tmp_path / "first.gpkg", base)
    truth = gpd.read_file(place / "scene_truth.gpkg", layer="landslides")
    table = gpd.read_file(tmp_path / "first.gpkg", layer="landslides")
    table["status"] = ["accepted" if truth.intersects(outline).any() else "rejected" for outline in table.geometry]
    added = truth[~truth.intersects(table.union_all())][["geometry"]]
    both = gpd.GeoDataFrame(gpd.pd.concat([table, added], ignore_index=True), crs=table.crs)
    both.to_file(tmp_path / "first.gpkg", layer="landslides", driver="GPKG")
    out = tmp_path / "valley"
    words = ["adapt", str(place / "scene.tif"), "--reviewed", str(tmp_path / "first.gpkg"), "--out", str(out)]
    assert (
        run([*words, "--networks", str(place / "off"), "--device", "cpu", "--level", "threshold", "-q", "--json"]) == 0
    )
    said = json.loads(capsys.readouterr().out)
    assert said["level"] == "threshold"
    assert said["gain"] > 0.05
    info = read_info(out / "localizer.safetensors")
    fitted = load_confidence(out / "confidence.json").fitted["adapted"]
    assert fitted["polygons"] >= 5
    assert (info.floor, info.trained["adapted"]["scenes"]) == (100, ["scene.tif"])
    assert (said["drawn"], said["decoder"], len(said["masks"])) == (len(added), True, 2)
    drawing = read_info(out / "segmenter.safetensors").trained["adapted"]
    assert (drawing["drawn"], drawing["from"]) == (len(added), recipe("segmenter").sha256)
    assert segmenter_defaults(out / "segmenter.safetensors") == segmenter_defaults("bundled")
    new = geolabel.Networks.from_folder(out, device="cpu").for_images()
    assert [(one.source, one.engine) for one in new] == [
        (str(out / "localizer.safetensors"), "torch"),  # that of the fixture has no graph
        (str(out / "segmenter.safetensors"), "onnx"),
    ]
    assert load_confidence(out / "confidence.json").networks == {one.role: one.sha256 for one in new}
    after = mapped(place, tmp_path / "second.gpkg", geolabel.Networks.from_folder(out, device="cpu"))
    assert after > before + 0.05
    with pytest.raises(OutputError, match="overwrite"):
        geolabel.adapt(place / "scene.tif", tmp_path / "first.gpkg", out=out)
    given: Any = {"level": "threshold", "networks": base, "overwrite": True}
    caplog.set_level("WARNING", "geolabel")  # -q left it higher
    found = geolabel.adapt(place / "scene.tif", tmp_path / "first.gpkg", out=out, **given)
    assert f"valley: the networks there are replaced; by cross-validation, {found.said}" in caplog.text
    scores, masks = found.scores, found.masks or (0, 0)
    assert found.said == (
        f"F1 of the map rises from {scores['none']:.2f} to {scores['threshold']:.2f} with threshold, and IoU of masks "
        f"rises from {masks[0]:.2f} to {masks[1]:.2f}"
    )


def test_too_few_landslides_are_refused(place: Path, tmp_path: Path) -> None:
    truth = gpd.read_file(place / "scene_truth.gpkg", layer="landslides")[["geometry"]]
    truth[:2].to_file(tmp_path / "few.gpkg", layer="few")
    with pytest.raises(VectorError, match="2 reviewed landslides on the scenes, at least 3 are needed"):
        geolabel.adapt(place / "scene.tif", tmp_path / "few.gpkg")


def prospect(place: Path, path: Path, capsys: pytest.CaptureFixture[str], *more: str) -> tuple[int, dict[str, Any]]:
    """Exit code and figures of a dry run."""
    words = ["adapt", str(place / "scene.tif"), "--reviewed", str(path), "--networks", str(place / "off"), "--dry-run"]
    code = run([*words, "--device", "cpu", "--json", "-q", *more])
    return code, json.loads(capsys.readouterr().out)


def test_a_dry_run_counts_what_adapting_would_learn_from_and_writes_nothing(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoder, "STEPS", 1)
    path = tmp_path / "all.gpkg"
    gpd.read_file(place / "scene_truth.gpkg", layer="landslides")[["geometry"]].to_file(path, layer="all")
    gpd.GeoDataFrame(geometry=[shapely.box(0, 0, 9, 9)], crs=CRS).to_file(path, layer="reviewed")  # off the scene
    before = sorted(place.rglob("*")), sorted(tmp_path.rglob("*"))
    code, figures = prospect(place, path, capsys)
    assert code == 0
    assert (sorted(place.rglob("*")), sorted(tmp_path.rglob("*"))) == before
    off = geolabel.Networks.from_folder(place / "off", device="cpu")
    found = geolabel.adapt(place / "scene.tif", path, level="threshold", networks=off)
    names = ("landslides", "rejected", "areas", "tiles", "blocks", "drawn")
    assert {name: figures[name] for name in names} == {name: getattr(found, name) for name in names}
    assert figures["files"] == [
        {"file": "all.gpkg", "landslides": found.landslides, "drawn": found.drawn, "rejected": 0, "unreviewed": 0}
        | {"areas": 1}
    ]
    with rasterio.open(place / "scene_truth.tif") as truth:
        assert figures["landslide_km2"] == pytest.approx((truth.read(1) == 1).sum() * 0.25e-6, rel=0.02)
    assert figures["levels"] == {
        "threshold": None,
        "head": "no area was reviewed completely; --level head tries it anyway",
        "all": "it takes minutes on a CPU; --level all tries it",
        "decoder": None,
    }
    assert 0 < figures["seconds_without_gain"] < figures["seconds_with_gain"]


def test_a_dry_run_says_what_is_missing(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "few.gpkg"
    truth = gpd.read_file(place / "scene_truth.gpkg", layer="landslides")[["geometry"]]
    truth[:2].to_file(path, layer="few")
    code, figures = prospect(place, path, capsys)
    assert code == 4
    assert {why.partition(",")[0] for why in figures["levels"].values()} == {"2 reviewed landslides on the scenes"}
    truth[:4].to_file(path, layer="few")
    code, figures = prospect(place, path, capsys, "--level", "head")
    assert code == 0
    assert figures["levels"] == {
        "threshold": "--level head is asked for",
        "head": None,
        "all": "--level head is asked for",
        "decoder": "4 outlines were drawn or redrawn, at least 5 are needed",
    }
    words = ["adapt", str(place / "scene.tif"), "--reviewed", str(path)]
    truth[:2].to_file(path, layer="few")
    assert run([*words, "--dry-run", "-q"]) == 4
    assert "levels       none: 2 reviewed landslides on the scenes" in capsys.readouterr().out
    assert run(words) == 2
    assert "no output: give --out FOLDER" in capsys.readouterr().err
    for seed in ("0", "3"):
        assert run([*words, "--dry-run", "--seed", seed]) == 2
        assert f"--seed {seed}: --dry-run draws nothing at random; leave it out" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["aoi", "mask"])
def test_an_area_or_a_mask_is_no_folder_to_write(place: Path, tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "valley.gpkg", "a", [square(0, 0, 9)])
    with pytest.raises(OutputError, match="is an input of this run"):
        geolabel.adapt(
            place / "scene.tif", place / "scene_truth.gpkg", out=path, reading=geolabel.Reading(**{name: path})
        )


# The decoder


NETWORK = TorchSam(cast("Sam", load_own(registry.lookup("bundled", "segmenter")[0].path, "segmenter")[0]), resize=False)
DECODER = NETWORK.sam.mask_decoder


def lessons(count: int, seed: int) -> decoder.Lessons:
    """Images with a bright square, of which a person means the left half alone."""
    random = np.random.default_rng(seed)
    seen, covers = [], []
    for _ in range(count):
        image = random.integers(60, 90, (128, 128, 3)).astype(np.uint8)
        row, col = 16 * random.integers(2, 5, 2)
        image[row : row + 32, col : col + 32] += 120
        truth = np.zeros((512, 512), bool)
        truth[row : row + 32, col : col + 16] = True
        box = [[col - 8, row - 8, col + 40, row + 40]]
        seen += decoder.attended(NETWORK, image, prompts_of(box, [[col + 16, row + 16]]))
        covers.append(by_cell(truth, 4).astype(np.float16))
    cells, tokens = (torch.cat(parts) for parts in zip(*seen, strict=True))
    places = np.array([(0, 300 * k, 0) for k in range(count)])
    return decoder.Lessons(cells, tokens, torch.from_numpy(np.stack(covers)), places)


def test_what_the_last_layers_see_gives_the_masks_of_the_network() -> None:
    image = np.random.default_rng(0).integers(0, 255, (200, 160, 3)).astype(np.uint8)
    asked = prompts_of([[10, 20, 60, 90], [30, 30, 150, 190]], [[30, 50], [100, 99]])
    (cells, tokens), *_ = decoder.attended(NETWORK, image, asked)
    found = decoder.answers(DECODER, decoder.Lessons(cells, tokens, torch.zeros(2), np.zeros((2, 3), np.int64)))
    with NETWORK.running():
        points = asked.points.astype(np.float32), asked.labels.astype(np.int32)
        boxes = (asked.boxes - [0, 0, 1, 1]).astype(np.float32)
        masks, quality = NETWORK.decode(NETWORK.encode([image])[0], points, boxes)
    assert torch.allclose(found[0][:, 1:], masks, atol=0.05)  # cells are kept in half precision
    assert torch.allclose(found[1][:, 1:], quality, atol=1e-4)


def test_a_decoder_learns_what_outlines_mean_and_nothing_else_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("SHARE", 1.0), ("STEPS", 20), ("OUTLINES", 4)):
        monkeypatch.setattr(decoder, name, value)
    shown, others = lessons(6, 0), lessons(4, 1)
    before = {name: tensor.clone() for name, tensor in DECODER.state_dict().items()}
    found = decoder.fitted(DECODER, shown, seed=0)
    moved = {name for name, tensor in found.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved
    assert all(name.startswith(("output_upscaling.", "output_hypernetworks_mlps.", "iou_prediction")) for name in moved)
    assert all(torch.equal(tensor, before[name]) for name, tensor in DECODER.state_dict().items())
    assert decoder.ious(found, others).mean() > decoder.ious(DECODER, others).mean() + 0.1
    assert torch.equal(decoder.fitted(DECODER, shown, seed=0).state_dict()[min(moved)], found.state_dict()[min(moved)])


def test_the_mean_of_both_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder, "STEPS", 2)
    shown, name = lessons(2, 0), "output_upscaling.0.weight"
    monkeypatch.setattr(decoder, "SHARE", 1.0)
    whole_way = decoder.fitted(DECODER, shown, seed=0).state_dict()[name]
    monkeypatch.setattr(decoder, "SHARE", 0.5)
    half_way = decoder.fitted(DECODER, shown, seed=0).state_dict()[name]
    assert torch.allclose(half_way, (whole_way + DECODER.state_dict()[name]) / 2, atol=1e-7)


def test_a_gain_of_two_hundredths_counts() -> None:
    before = np.array([0.4, 0.6])
    assert decoder.gains(before, np.array([0.5, 0.541]))
    assert not decoder.gains(before, np.array([0.5, 0.539]))


def test_regions_of_a_map_ask_with_box_and_centroid_by_hand() -> None:
    raw = np.zeros((8, 8), np.float32)
    raw[1:3, 2:6], raw[6, 6] = 3.0, 1.2
    found = decoder.regions(raw, OperatingPoint(1.0, 1.5), 1, 8, (10, 20))
    assert found.boxes.tolist() == [[8 * 22, 8 * 11, 8 * 26, 8 * 13]]  # the other is below the gate
    assert found.points.tolist() == [[[8 * 24 - 0.5, 8 * 12 - 0.5]]]
    assert len(decoder.regions(raw - 9, OperatingPoint(1.0, 1.5), 1, 8, (0, 0))) == 0


def test_outlines_are_asked_for_as_the_localizer_found_them_or_by_their_own_box() -> None:
    outlines = np.array([shapely.box(10, 20, 50, 60), shapely.box(200, 200, 240.5, 220)], object)
    found = prompts_of([[12, 16, 52, 64], [100, 100, 140, 140]], [[30, 41], [120, 120]])
    asked = decoder.prompts_for(outlines, found)
    assert asked.boxes.tolist() == [[12, 16, 52, 64], [200, 200, 241, 220]]
    assert asked.points[:, 0].tolist() == [[30, 41], [219.75, 209.5]]
    assert decoder.prompts_for(outlines, Prompts.build()).boxes[0].tolist() == [10, 20, 50, 60]


def prompts_of(boxes: list[list[float]], points: list[list[float]]) -> Prompts:
    return Prompts.build(boxes=np.array(boxes, float), points=np.array(points, float))


def test_outlines_of_one_place_are_in_one_fold_and_one_place_alone_has_none() -> None:
    places = np.array([(0, 10, 10), (0, 20, 20), (0, 3000, 0), (0, 3000, 3000), (1, 0, 0)])
    found = decoder.folds_of(places)
    assert found is not None
    assert found[0] == found[1]
    assert len(set(found.tolist())) == 4
    assert decoder.folds_of(places[:2]) is None


def test_drawn_outlines_are_counted_and_accepted_ones_are_not(place: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.gpkg"
    geolabel.polygonize(place / "scene_truth.tif", out=path)
    table = gpd.read_file(path, layer="landslides")
    table.loc[0, "geometry"] = table.geometry.iloc[0].buffer(4)
    table.loc[1, "status"] = "accepted"
    table.to_file(path, layer="landslides", driver="GPKG")
    found = Reviewed.read(path)
    assert (len(found.landslides), len(found.drawn)) == (2, 1)
    assert len(Reviewed.read(path, accept_unreviewed=True).drawn) == len(table) - 1


def test_where_nothing_gains_nothing_is_written(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(levels, "MINIMUM_GAIN", 0.5)
    monkeypatch.setattr(decoder, "STEPS", 1)
    monkeypatch.setattr(decoder, "gains", lambda *_: False)
    truth = gpd.read_file(place / "scene_truth.gpkg", layer="landslides")[["geometry"]]
    truth.to_file(tmp_path / "all.gpkg", layer="all")
    words = ["adapt", str(place / "scene.tif"), "--reviewed", str(tmp_path / "all.gpkg"), "--out", str(tmp_path / "v")]
    assert run([*words, "-q"]) == 4
    assert not (tmp_path / "v").exists()


def test_a_localizer_of_another_kind_is_refused(place: Path, tmp_path: Path) -> None:
    state, info = load_checkpoint(BUNDLED)
    more = info.architecture | {"classes": 2}
    state |= {name: state[name].repeat_interleave(2, 0) for name in ("bias", "head.weight")}
    two = tmp_path / "two.safetensors"
    save_checkpoint(two, state, replace(info, architecture=more, classes=("landslide", "rock")))
    with pytest.raises(OptionError, match="adapt knows localizers of one class"):
        geolabel.adapt(place / "scene.tif", place / "scene_truth.gpkg", networks=geolabel.Networks(localizer=str(two)))


def test_a_segmenter_of_another_kind_is_refused(place: Path) -> None:
    for given in ({"sam": "vit_b"}, {"sam_checkpoint": BUNDLED}):  # a network that would be fetched; a localizer
        with pytest.raises(OptionError, match="adapt fits the decoder of segmenters that geolabel trained"):
            geolabel.adapt(place / "scene.tif", place / "scene_truth.gpkg", networks=geolabel.Networks(**given))


def test_a_network_that_stays_is_copied_unless_it_is_the_bundled_one(place: Path, tmp_path: Path) -> None:
    choice: Choice[Any] = Choice(None, {"none": 0.5}, POINT)
    given = geolabel.Networks(device="cpu"), geolabel.Networks.from_folder(place / "off", device="cpu")
    for networks, folder in zip(given, (tmp_path / "a", tmp_path / "b"), strict=True):
        plan = prepare(place / "scene.tif", geolabel.Reading(), networks, geolabel.Parameters())
        folder.mkdir()
        write_localizer(folder, BaseLocalizer.of(plan, "threshold"), choice, {})
        write_segmenter(folder, plan.segmenter, None, {})
    assert [path.name for path in sorted(tmp_path.rglob("*.*"))] == ["localizer.safetensors"]
    base = (place / "off" / "localizer.safetensors").read_bytes()
    assert (tmp_path / "b" / "localizer.safetensors").read_bytes() == base


@pytest.mark.qgis
def test_a_review_in_qgis_is_read_as_it_was_meant(place: Path, tmp_path: Path) -> None:
    path = tmp_path / "first.gpkg"
    geolabel.extract(place / "scene.tif", out=path, networks=geolabel.Networks(device="cpu"))
    geolabel.next_windows(path, count=3)
    python = Path(__file__).with_name("qgis_review.py")
    said = subprocess.run(
        ["/usr/bin/python3", python, path, place / "scene_truth.gpkg"], check=True, capture_output=True, text=True
    )
    counts = json.loads(said.stdout.splitlines()[-1])
    found = Reviewed.read(path)
    assert counts["windows"] == len(found.areas) > 0
    assert counts["accepted"] + counts["added"] == len(found.landslides) > 0
    assert counts["rejected"] == len(found.rejected)
    truth = gpd.read_file(place / "scene_truth.gpkg", layer="landslides").union_all()
    ground = Ground.on(plan_grid(place), [found])
    painted = ground.paint(plan_grid(place).window)
    with rasterio.open(place / "scene_truth.tif") as source:
        slides = source.read(1) > 0
    assert (painted == LANDSLIDE).any()
    assert truth.intersection(found.landslides.union_all()).area > 0.5 * found.landslides.union_all().area
    assert not slides[painted == GROUND].mean() > 0.1

"""A person's review: it is recognised in the file, comes back from the next run, and is never lost without a word."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pyogrio
import pytest
import rasterio
import shapely
from affine import Affine

import geolabel
from geolabel.cli.main import run as command
from geolabel.errors import OutputError
from geolabel.extraction import outputs, request, result
from geolabel.extraction.request import ContourMethod, Networks, Reading
from geolabel.io.read.review import read_review, read_work
from geolabel.methods import s2c
from geolabel.parsing import Measure
from geolabel.testing import RECIPES

UTM = Affine(0.5, 0, 500_000, 0, -0.5, 3_000_000)
NONE = Measure(0, "px")
GIVEN: dict[str, Any] = {
    "tile_size": 128,
    "overlap": 32,
    "block_size": 200,
    "threads": 1,
    "min_area": NONE,
    "max_hole": NONE,
    "activation_floor": 150,
}
PLACES = [(20, 20), (20, 100), (20, 180), (100, 20), (100, 100), (100, 180), (180, 20), (180, 100)]
"""Row and column of objects of 40 x 40 px, of which every third is small."""


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks that find what is bright, and a confidence that grows with the area: 400 m2 and more are certain."""
    monkeypatch.setattr(Networks, "recipes", lambda *_: RECIPES)
    monkeypatch.setattr(request, "knows", lambda _, method, __: method == ContourMethod.name)
    monkeypatch.setattr(result, "confidence_of", lambda table, *_: np.clip(table["area_m2"].to_numpy() / 400, 0, 1))


def write(path: Path, shift: float = 0.0) -> Path:
    """A scene of 256 x 256 px of 0.5 m with six landslides and, since they are small, two candidates."""
    image = np.random.default_rng(0).integers(20, 60, (3, 256, 256)).astype(np.uint8)
    for number, (row, col) in enumerate(PLACES):
        side = 16 if number % 3 == 2 else 40
        image[:, row : row + side, col : col + side] = 230
        image[:, row - 4 : row + side + 4, col - 4 : col] = 140  # the segmenter takes it along, the floor does not
    profile = {"driver": "GTiff", "dtype": "uint8", "count": 3, "height": 256, "width": 256, "crs": "EPSG:32648"}
    with rasterio.open(path, "w", **profile, transform=UTM * Affine.translation(shift, 0), photometric="rgb") as target:
        target.write(image)
    return path


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    return write(tmp_path / "scene.tif")


def extract(scene: Any, out: Path, **given: Any) -> gpd.GeoDataFrame:
    values = GIVEN | given.pop("parameters", {})
    own = {name: values.pop(name) for name in ContourMethod.options() if name in values}
    parameters = geolabel.Parameters(**{"method": ContourMethod(**own)} | values)
    return geolabel.extract(scene, out=out, reading=Reading(stretch="0,255"), parameters=parameters, **given)


def layers(path: Path) -> dict[str, gpd.GeoDataFrame]:
    return {name: gpd.read_file(path, layer=name) for name, _ in pyogrio.list_layers(path) if name != "layer_styles"}


def same(one: Path, other: Path) -> bool:
    before, after = layers(one), layers(other)
    return before.keys() == after.keys() and all(before[name].equals(after[name]) for name in before)


def sql(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        for name in ("IsEmpty", "MinX", "MaxX", "MinY", "MaxY"):  # triggers name them, for geometry alone
            connection.create_function(f"ST_{name}", 1, lambda _: None)
        for statement in statements:
            connection.execute(statement)


def edit(path: Path, layer: str, change: Callable[[gpd.GeoDataFrame], gpd.GeoDataFrame]) -> None:
    """Change a layer as another program would: rows get other numbers in the file, outlines other first vertices."""
    change(gpd.read_file(path, layer=layer)).to_file(path, layer=layer, driver="GPKG")


def moved(number: int, by: float, key: str = "id") -> Callable[[gpd.GeoDataFrame], gpd.GeoDataFrame]:
    def change(table: gpd.GeoDataFrame) -> gpd.GeoDataFrame:
        row = table[key] == number
        table.loc[row, "geometry"] = table[row].translate(by, 0)
        return table

    return change


def without(number: int, key: str = "id") -> Callable[[gpd.GeoDataFrame], gpd.GeoDataFrame]:
    return lambda table: table[table[key] != number]


# Without an edit


def test_prompts_that_nobody_changed_give_the_same_map(scene: Path, tmp_path: Path) -> None:
    """Floor and confidence hold as in the first run: the same landslides, candidates, prompts and attributes."""
    first = extract(scene, tmp_path / "a.gpkg")
    again = extract(scene, tmp_path / "b.gpkg", prompts_from=tmp_path / "a.gpkg")
    assert (len(first), len(layers(tmp_path / "a.gpkg")["candidates"])) == (6, 2)
    assert again.equals(first)
    assert same(tmp_path / "a.gpkg", tmp_path / "b.gpkg")
    assert first["activation_mean"].notna().all()


def test_the_floor_holds_for_the_prompts_of_the_localizer(scene: Path, tmp_path: Path) -> None:
    free = extract(scene, tmp_path / "a.gpkg", parameters={"activation_floor": 0})
    assert free["area_m2"].sum() > 1.05 * extract(scene, tmp_path / "b.gpkg")["area_m2"].sum()


@pytest.mark.parametrize("dst_crs", [None, "EPSG:4326", "EPSG:3857"])
@pytest.mark.parametrize("count", [1, 2])
def test_so_it_is_in_other_crss_and_on_several_grids(tmp_path: Path, dst_crs: str | None, count: int) -> None:
    """The second scene lies half a pixel beside the first, so their landslides are united."""
    scenes = [write(tmp_path / f"{k}.tif", k * 0.5 + k * 30) for k in range(count)]
    first = extract(scenes, tmp_path / "a.gpkg", dst_crs=dst_crs)
    again = extract(scenes, tmp_path / "b.gpkg", dst_crs=dst_crs, prompts_from=tmp_path / "a.gpkg")
    kept = extract(scenes, tmp_path / "c.gpkg", dst_crs=dst_crs, keep_reviewed=tmp_path / "a.gpkg")
    assert len(first) >= 6
    assert again.equals(first)
    assert kept.equals(first)
    assert same(tmp_path / "a.gpkg", tmp_path / "b.gpkg")
    assert same(tmp_path / "a.gpkg", tmp_path / "c.gpkg")


def test_nothing_is_taken_for_a_review(scene: Path, tmp_path: Path) -> None:
    extract(scene, tmp_path / "a.gpkg")
    assert not read_work(tmp_path / "a.gpkg")
    edit(tmp_path / "a.gpkg", "landslides", lambda table: table.iloc[::-1].assign(geometry=table.reverse()))
    edit(tmp_path / "a.gpkg", "prompts", lambda table: table.iloc[::-1])
    assert not read_work(tmp_path / "a.gpkg")
    extract(scene, tmp_path / "a.gpkg", overwrite=True)


def test_a_landslide_names_its_prompts_and_a_prompt_its_landslides(scene: Path, tmp_path: Path) -> None:
    extract(scene, tmp_path / "a.gpkg")
    found = layers(tmp_path / "a.gpkg")
    boxes = found["prompts"].set_index("prompt")
    for table in (found["landslides"], found["candidates"]):
        for row in table.itertuples():
            asked = json.loads(row.prompts)
            assert len(asked) == row.n_prompts == 1
            assert row.geometry.intersects(boxes.geometry[asked[0]])
            assert json.loads(boxes["landslides"][asked[0]]) == [row.id]
    assert found["prompt_points"]["landslides"].tolist() == boxes["landslides"].tolist()


# The loop


def review(path: Path) -> None:
    """Accept 1, reject 2, redraw 4, date 5 and write a note, delete 7, accept candidate 3, reject 6; add two."""
    sql(
        path,
        "ALTER TABLE landslides ADD COLUMN visited BOOLEAN",
        "UPDATE landslides SET status = 'accepted', notes = 'fresh scarp', visited = 1 WHERE id = 1",
        "UPDATE landslides SET status = 'rejected', notes = 'a quarry' WHERE id = 2",
        "UPDATE landslides SET event_date = '2008-05-12' WHERE id = 5",
        "UPDATE candidates SET status = 'accepted' WHERE id = 3",
        "UPDATE candidates SET status = 'rejected' WHERE id = 6",
    )

    def change(table: gpd.GeoDataFrame) -> gpd.GeoDataFrame:
        table = without(7)(moved(4, 0.25)(table))
        own = [shapely.MultiPolygon([shapely.box(500_100 + x, 2_999_890, 500_110 + x, 2_999_900)]) for x in (0, 14)]
        added = gpd.GeoDataFrame({"id": [None, 99], "notes": ["seen", None]}, geometry=own, crs=table.crs)
        return gpd.GeoDataFrame(pd.concat([table, added], ignore_index=True), crs=table.crs)

    edit(path, "landslides", change)


def test_a_review_comes_back(scene: Path, tmp_path: Path) -> None:
    path = tmp_path / "slides.gpkg"
    first = extract(scene, path).set_index("id")
    review(path)
    before = layers(path)["landslides"].set_index("id")
    assert read_review(path).counts == {"accepted": 2, "rejected": 2, "edited": 2, "added": 2, "deleted": 1}
    extract(scene, path, overwrite=True, keep_reviewed=path, mask_out=tmp_path / "mask.tif")
    found = layers(path)
    after = found["landslides"].set_index("id")
    assert after.index.tolist() == [1, 3, 4, 5, 8, 99, 100]
    assert found["candidates"].empty
    assert found["rejected"]["id"].tolist() == [2, 6, 7]
    assert found["rejected"]["notes"][0] == "a quarry"
    for number in (1, 4, 5, 99):
        assert shapely.to_wkb(after.geometry[number]) == shapely.to_wkb(before.geometry[number])
        columns = ["class", "notes", "event_date", "visited", "confidence", "prompts"]
        assert after.loc[number, columns].astype(str).equals(before.loc[number, columns].astype(str))
    assert after.loc[1, ["status", "notes"]].tolist() == ["accepted", "fresh scarp"]
    assert bool(after["visited"][1])
    assert str(after["event_date"][5])[:10] == "2008-05-12"
    assert after["notes"][100] == "seen"
    assert after["status"][3] == "accepted"
    assert after.geometry[8].equals(first.geometry[8])
    assert after["area_m2"][99] == pytest.approx(100, rel=2e-3)
    with rasterio.open(tmp_path / "mask.tif") as opened:
        mask = opened.read(1)
    assert mask[205:215, 205:215].all()  # added
    assert not mask[25:55, 105:135].any()  # rejected


def test_a_review_comes_back_from_every_further_run(scene: Path, tmp_path: Path) -> None:
    path = tmp_path / "slides.gpkg"
    extract(scene, path)
    review(path)
    extract(scene, path, overwrite=True, keep_reviewed=path)
    once = layers(path)
    for given in ({"keep_reviewed": path}, {"prompts_from": path}):
        extract(scene, path, overwrite=True, **given)
        again = layers(path)
        for name in ("landslides", "candidates", "rejected"):
            assert again[name].equals(once[name]), name


@pytest.mark.parametrize("threshold", [0.3, 0.8])
def test_what_is_rejected_does_not_return_in_another_shape(scene: Path, tmp_path: Path, threshold: float) -> None:
    path = tmp_path / "slides.gpkg"
    gone = extract(scene, path).set_index("id").geometry[[2, 5]].union_all()
    sql(path, "UPDATE landslides SET status = 'rejected' WHERE id = 2")
    edit(path, "landslides", without(5))
    changed = {"activation_floor": 0, "simplify": Measure(3, "px"), "score_threshold": threshold}
    found = extract(scene, path, overwrite=True, keep_reviewed=path, parameters=changed)
    assert not found.intersects(gone).any()
    assert len(found) == 6  # without the floor the candidates are larger, and landslides
    assert not {1, 2, 4, 5, 7, 8} & {*found["id"]}  # other outlines are other landslides


def looked_at(path: Path, outlines: gpd.GeoSeries, side: float) -> Path:
    """A file of squares in the middle of polygons: the first accepted, the second rejected."""
    squares = shapely.buffer(outlines.centroid.to_numpy(), side / 2, cap_style="square")
    table = gpd.GeoDataFrame({"status": ["accepted", "rejected"]}, geometry=list(squares), crs=outlines.crs)
    table.to_file(path, layer="landslides", driver="GPKG")
    return path


def test_a_little_reviewed_ground_is_cut_out_of_a_large_polygon(scene: Path, tmp_path: Path) -> None:
    """Squares of 16 m2 in landslides of more than 400 m2, then of 144 m2: more than a quarter."""
    out, mask = tmp_path / "slides.gpkg", tmp_path / "mask.tif"
    first = extract(scene, tmp_path / "first.gpkg").set_index("id").geometry[[1, 2]]
    small = looked_at(tmp_path / "small.gpkg", first, 4)
    found = extract(scene, out, keep_reviewed=small, mask_out=mask)
    squares = gpd.read_file(small)
    assert (len(found), len(layers(out)["candidates"]), len(layers(out)["rejected"])) == (7, 2, 1)
    around = found[found["status"] == "unreviewed"]
    for whole, square in zip(first, squares.geometry, strict=True):
        (row,) = around[around.intersects(whole)].itertuples()
        assert row.geometry.area == pytest.approx(whole.area - 16)
        assert row.area_m2 == pytest.approx(whole.area - 16, rel=2e-3)
        assert row.geometry.intersection(square).area == pytest.approx(0, abs=1e-6)
    with rasterio.open(mask) as opened:
        accepted, rejected = (opened.read(1)[opened.index(point.x, point.y)] for point in squares.centroid)
    assert (accepted, rejected) == (1, 0)
    extract(scene, tmp_path / "again.gpkg", keep_reviewed=out)
    assert same(out, tmp_path / "again.gpkg")
    large = looked_at(tmp_path / "large.gpkg", first, 12)
    extract(scene, out, keep_reviewed=large, overwrite=True, discard_review=True)
    assert len(layers(out)["candidates"]) == 4


@pytest.mark.parametrize(("part", "kept"), [(0.4, "candidates"), (0.2, "landslides")])
def test_reviewed_ground_that_a_polygon_meets_in_part_is_counted_once(
    scene: Path, tmp_path: Path, part: float, kept: str
) -> None:
    """An accepted square covers a part of a polygon, and lies beside it with more than half of its own area."""
    out = tmp_path / "slides.gpkg"
    first = extract(scene, tmp_path / "first.gpkg").set_index("id").geometry
    whole = first[1]
    left, bottom, right, top = whole.bounds
    sides = np.arange(left, right, 0.05)
    areas = shapely.area(shapely.intersection(whole, shapely.box(left, bottom, sides, top)))
    edge = sides[np.searchsorted(areas, part * whole.area)]
    square = shapely.box(2 * left - edge - 8, bottom, edge, top)
    assert whole.intersection(square).area < square.area / 2
    reviewed = gpd.GeoDataFrame({"status": ["accepted"]}, geometry=[square], crs=first.crs)
    reviewed.to_file(tmp_path / "reviewed.gpkg", layer="landslides", driver="GPKG")
    found = extract(scene, out, keep_reviewed=tmp_path / "reviewed.gpkg")
    beside = layers(out)[kept].query("status == 'unreviewed' and area_m2 > 200")
    (row,) = beside[beside.intersects(whole.buffer(-2))].itertuples()
    share = whole.intersection(square).area / whole.area
    if kept == "landslides":
        assert row.geometry.area == pytest.approx((1 - share) * whole.area)
        assert row.reason is None
    else:
        assert row.geometry.area == pytest.approx(whole.area)
        assert row.reason == "reviewed"
    assert found.union_all().area == pytest.approx(found.area.sum())


def redrawn(number: int, outline: shapely.Geometry) -> Callable[[gpd.GeoDataFrame], gpd.GeoDataFrame]:
    return lambda table: table.set_geometry(table.geometry.mask(table["id"] == number, outline))


@pytest.mark.parametrize(("status", "simplify"), [("accepted", NONE), ("rejected", Measure(2, "px"))])
def test_ground_that_was_cut_off_a_polygon_is_no_landslide_again(
    scene: Path, tmp_path: Path, status: str, simplify: Measure
) -> None:
    """Redrawn to a square of 64 m2, less than a quarter of the outline that is found again, alike or almost."""
    path = tmp_path / "slides.gpkg"
    whole = extract(scene, path).set_index("id").geometry[1]
    square = shapely.buffer(whole.centroid, 4, cap_style="square")
    assert square.area == 64 < whole.area / 4
    edit(path, "landslides", redrawn(1, square))
    sql(path, f"UPDATE landslides SET status = '{status}' WHERE id = 1")
    for _ in range(2):
        given = {"keep_reviewed": path, "parameters": {"simplify": simplify}}
        found = extract(scene, path, overwrite=True, **given)
        assert len(found) == (6 if status == "accepted" else 5)
        assert found.intersection(whole).area.sum() == pytest.approx(64 if status == "accepted" else 0, abs=1e-6)
        (row,) = layers(path)["candidates"].query("status == 'unreviewed' and area_m2 > 300").itertuples()
        assert row.id == 9  # the ground that was cut off is shown, for the person to see
        assert row.geometry.area == pytest.approx(whole.area, rel=0.1)


def test_ground_that_was_cut_off_is_cut_out_of_a_much_larger_polygon(scene: Path, tmp_path: Path) -> None:
    """A reviewed square of 36 m2 in a landslide of more than 400 m2 is redrawn to 16 m2: 36 m2 stay cut out."""
    path = tmp_path / "slides.gpkg"
    first = extract(scene, path).set_index("id").geometry[[1, 2]]
    small = looked_at(tmp_path / "small.gpkg", first, 6)
    found = extract(scene, path, keep_reviewed=small, overwrite=True, discard_review=True)
    around = found[found["status"] == "unreviewed"]
    (before,) = around[around.intersects(first[1])].itertuples()
    (number,) = found[found["status"] == "accepted"]["id"]
    edit(path, "landslides", redrawn(number, shapely.buffer(first[1].centroid, 2, cap_style="square")))
    after = extract(scene, path, keep_reviewed=path, overwrite=True).set_index("id").geometry
    assert after[number].area == pytest.approx(16)
    assert after[before.id].area == pytest.approx(first[1].area - 36)


def test_a_status_that_is_set_back_is_no_review(scene: Path, tmp_path: Path) -> None:
    path = tmp_path / "slides.gpkg"
    first = extract(scene, path)
    sql(path, "UPDATE landslides SET status = 'accepted' WHERE id = 1")
    sql(path, "UPDATE landslides SET status = 'rejected' WHERE id = 2")
    extract(scene, path, overwrite=True, keep_reviewed=path)
    assert read_work(path).polygons["rejected"] == 1
    sql(path, "UPDATE landslides SET status = 'unreviewed'", "UPDATE rejected SET status = 'unreviewed'")
    assert not read_work(path)
    found = extract(scene, path, overwrite=True, keep_reviewed=path)
    assert found.drop(columns="id").equals(first.drop(columns="id"))
    assert "rejected" not in layers(path)


@pytest.mark.parametrize("cut", [True, False])
def test_moving_between_layers_by_hand_decides(scene: Path, tmp_path: Path, cut: bool) -> None:
    path = tmp_path / "slides.gpkg"
    extract(scene, path)
    found = layers(path)
    row = found["candidates"]["id"] == 3
    edit(path, "landslides", lambda table: pd.concat([table, found["candidates"][row]]))
    if cut:
        edit(path, "candidates", without(3))
    after = extract(scene, path, overwrite=True, keep_reviewed=path)
    assert 3 in after["id"].tolist()
    assert layers(path)["candidates"]["id"].tolist() == [6]


def test_a_split_landslide_is_two(scene: Path, tmp_path: Path) -> None:
    path = tmp_path / "slides.gpkg"
    extract(scene, path)

    def split(table: gpd.GeoDataFrame) -> gpd.GeoDataFrame:
        (x0, y0, x1, y1), row = table.geometry[0].bounds, table.iloc[[0]]
        halves = [shapely.box(x0, y0, (x0 + x1) / 2, y1), shapely.box((x0 + x1) / 2, y0, x1, y1)]
        table.loc[0, "geometry"] = halves[0]
        return pd.concat([table, row.assign(geometry=[halves[1]])], ignore_index=True)

    edit(path, "landslides", split)
    found = extract(scene, path, overwrite=True, keep_reviewed=path).set_index("id")
    assert found.index.tolist() == [1, 2, 4, 5, 7, 8, 9]
    assert found["area_m2"][1] == pytest.approx(found["area_m2"][9], rel=1e-6)
    assert not found.geometry[1].overlaps(found.geometry[9])


# Prompts


def test_a_prompt_that_a_person_draws_is_answered_whatever_the_localizer_says(scene: Path, tmp_path: Path) -> None:
    path, again = tmp_path / "a.gpkg", tmp_path / "b.gpkg"
    extract(scene, path)
    box = shapely.box(500_110, 2_999_880, 500_125, 2_999_895)  # where nothing is
    edit(
        path,
        "prompts",
        lambda table: pd.concat([table, gpd.GeoDataFrame(geometry=[box], crs=table.crs)]),
    )
    assert read_work(path).prompts == 1
    for source, target in ((path, again), (again, tmp_path / "c.gpkg")):
        found = extract(scene, target, prompts_from=source).set_index("id")
        assert found.index.tolist() == [1, 2, 4, 5, 7, 8, 9]
        assert found.geometry[9].equals(shapely.MultiPolygon([box]))
        assert np.isnan(found["confidence"][9])
        assert layers(target)["prompts"]["origin"].tolist() == ["localizer"] * 8 + ["person"]
    assert same(again, tmp_path / "c.gpkg")


def test_prompts_that_are_moved_rejected_or_deleted(scene: Path, tmp_path: Path) -> None:
    path, again = tmp_path / "a.gpkg", tmp_path / "b.gpkg"
    first = extract(scene, path).set_index("id")
    sql(path, "UPDATE prompts SET status = 'rejected' WHERE prompt = 1")
    edit(path, "prompts", lambda table: moved(4, 1, "prompt")(without(2, "prompt")(table)))
    assert read_work(path).prompts == 3
    found = extract(scene, again, prompts_from=path).set_index("id")
    assert found.index.tolist() == [5, 7, 8, 9]  # the landslide of a prompt that was moved is another one
    assert found.loc[[5, 7, 8]].geometry.equals(first.loc[[5, 7, 8]].geometry)
    boxes = layers(again)["prompts"].set_index("prompt")
    assert boxes.index.tolist() == [3, 4, 5, 6, 7, 8]
    assert boxes["origin"].tolist() == ["localizer", "person", *["localizer"] * 4]
    assert set(layers(again)["prompt_points"]["prompt"]) == {*boxes.index}


def test_a_new_prompt_overrules_a_rejection(scene: Path, tmp_path: Path) -> None:
    path, again = tmp_path / "a.gpkg", tmp_path / "b.gpkg"
    extract(scene, path)
    sql(path, "UPDATE landslides SET status = 'rejected' WHERE id in (1, 2)")
    edit(path, "prompts", moved(1, 1, "prompt"))
    for source, target in ((path, again), (again, tmp_path / "c.gpkg")):
        found = extract(scene, target, prompts_from=source)
        assert found["id"].tolist() == [4, 5, 7, 8, 9]
    assert json.loads(found["prompts"].iloc[-1]) == [1]


# What is not overwritten


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("UPDATE landslides SET status = 'accepted' WHERE id < 3", r"2 reviewed polygons \(2 accepted\)"),
        ("UPDATE landslides SET status = 'rejected' WHERE id = 1", r"1 reviewed polygon \(1 rejected\)"),
        ("UPDATE candidates SET notes = 'hm' WHERE id = 3", "1 edited"),
        ("UPDATE landslides SET class = 'debris flow' WHERE id = 1", "1 edited"),
        ("DELETE FROM landslides WHERE id = 1", "1 deleted"),
        ("UPDATE prompts SET status = 'rejected' WHERE prompt = 1", "1 prompt that a person drew or changed"),
        ("DELETE FROM prompt_points WHERE prompt = 1", "1 prompt that a person drew or changed"),
        ("CREATE TABLE my_sites (fid INTEGER PRIMARY KEY, name TEXT)", r"did not write \(my_sites\)"),
    ],
)
def test_what_a_person_did_is_not_overwritten(scene: Path, tmp_path: Path, statement: str, message: str) -> None:
    path = tmp_path / "slides.gpkg"
    extract(scene, path)
    sql(path, statement)
    before = path.read_bytes()
    with pytest.raises(OutputError, match=f"{message}.*--keep-reviewed.*--discard-review"):
        extract(scene, path, overwrite=True)
    assert path.read_bytes() == before
    extract(scene, path, overwrite=True, discard_review=True)
    assert not read_work(path)


def test_what_is_carried_over_is_not_lost(scene: Path, tmp_path: Path) -> None:
    """The review of another file saves nothing of this one, and a review saves no prompts."""
    path, other = tmp_path / "slides.gpkg", tmp_path / "other.gpkg"
    for target in (path, other):
        extract(scene, target)
    sql(path, "UPDATE landslides SET status = 'accepted' WHERE id = 1")
    with pytest.raises(OutputError, match="1 accepted"):
        extract(scene, path, overwrite=True, keep_reviewed=other)
    extract(scene, path, overwrite=True, keep_reviewed=path)
    edit(path, "prompts", moved(1, 1, "prompt"))
    with pytest.raises(OutputError, match=r"1 prompt .* --prompts-from"):
        extract(scene, path, overwrite=True, keep_reviewed=path)
    extract(scene, path, overwrite=True, prompts_from=path)
    assert layers(path)["landslides"]["status"].tolist()[0] == "accepted"


@pytest.mark.parametrize("given", ["keep_reviewed", "prompts_from"])
@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE landslides SET status = 'accepted' WHERE id = 1",
        "UPDATE prompts SET status = 'rejected' WHERE prompt = 1",
    ],
)
def test_who_reviews_while_a_run_is_going_on_loses_nothing(
    scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, statement: str
) -> None:
    path = tmp_path / "slides.gpkg"
    extract(scene, path)
    write_layers = outputs.write_layers

    def late(*arguments: Any, **more: Any) -> None:
        sql(path, statement)
        write_layers(*arguments, **more)

    monkeypatch.setattr(outputs, "write_layers", late)
    with pytest.raises(OutputError, match=r"was edited after its review was read|1 prompt that a person"):
        extract(scene, path, overwrite=True, **{given: path})
    found = layers(path)
    assert {*found["landslides"]["status"], *found["prompts"]["status"]} & {"accepted", "rejected"}


def test_other_commands_do_not_overwrite_it_either(scene: Path, tmp_path: Path, capsys) -> None:
    mask, slides, truth = tmp_path / "mask.tif", tmp_path / "slides.gpkg", tmp_path / "s_truth.gpkg"
    extract(scene, tmp_path / "first.gpkg", mask_out=mask)
    calls = {
        slides: ["polygonize", str(mask), "--out", str(slides)],
        truth: ["synthesize", str(tmp_path / "s.tif"), "--size", "256", "--seed", "900101"],
    }
    for path, call in calls.items():
        assert command(call) == 0
        sql(path, "DELETE FROM landslides WHERE id = 1")
        assert command([*call, "--overwrite"]) == 1
        assert "1 reviewed polygon (1 deleted)" in capsys.readouterr().err
        assert command([*call, "--overwrite", "--discard-review"]) == 0


# Files of other programs


def test_an_export_without_the_record_is_read_by_its_status(scene: Path, tmp_path: Path, caplog) -> None:
    path, export = tmp_path / "slides.gpkg", tmp_path / "export.geojson"
    extract(scene, path)
    sql(path, "UPDATE landslides SET status = 'accepted', notes = 'yes' WHERE id = 1")
    sql(path, "UPDATE landslides SET status = 'rejected' WHERE id = 2")
    layers(path)["landslides"].to_file(export)
    found = extract(scene, tmp_path / "again.gpkg", keep_reviewed=export)
    assert found.set_index("id")["notes"][1] == "yes"
    assert len(found) == 5
    assert "edits of 4 unreviewed polygons cannot be recognised" in caplog.text


def test_a_redrawn_outline_that_crosses_itself_is_read(scene: Path, tmp_path: Path) -> None:
    """A bow tie of two triangles of 8 m2, with a spike."""
    path = tmp_path / "slides.gpkg"
    whole = extract(scene, path).set_index("id").geometry[1]
    x, y = whole.centroid.coords[0]
    corners = [(-4, -2), (4, 2), (4, -2), (-4, 2)]
    tie = shapely.Polygon([*((x + dx, y + dy) for dx, dy in corners), (x - 4, y + 2), (x - 40, y + 2), (x - 4, y + 2)])
    edit(path, "landslides", redrawn(1, tie))
    found = extract(scene, path, keep_reviewed=path, overwrite=True)
    assert found.make_valid().intersection(whole).area.sum() == pytest.approx(16, abs=1e-6)


def test_polygons_of_another_program_are_all_a_persons(scene: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.gpkg"
    box = shapely.box(500_110, 2_999_880, 500_125, 2_999_895)
    gpd.GeoDataFrame({"name": ["north slope"]}, geometry=[box], crs="EPSG:32648").to_file(own)
    found = extract(scene, tmp_path / "slides.gpkg", keep_reviewed=own)
    assert len(found) == 7
    assert found["name"].tolist()[0] == "north slope"
    assert found["id"].tolist() == [1, 2, 3, 5, 6, 8, 9]


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE geolabel_written SET attributes = '[1, 2]'",
        'UPDATE geolabel_written SET attributes = \'{"points": 1, "point_pixels": {}, "box_pixels": "[[["}\'',
        "UPDATE geolabel_written SET outline = x'00ff'",
        "UPDATE geolabel_written SET layer = 'prompts', key = key + 9223372036854775000",
        "DROP TABLE geolabel_written",
        "ALTER TABLE geolabel_written RENAME COLUMN outline TO other",
    ],
)
def test_a_record_that_is_damaged_ends_in_no_foreign_error(scene: Path, tmp_path: Path, statement: str) -> None:
    path = tmp_path / "slides.gpkg"
    extract(scene, path)
    with closing(sqlite3.connect(path)) as connection, connection, contextlib.suppress(sqlite3.Error):
        connection.execute(statement)
    for given in ({"keep_reviewed": path}, {"prompts_from": path}):
        found = extract(scene, tmp_path / "again.gpkg", overwrite=True, discard_review=True, **given)
        assert len(found) >= 6


# Neighbours


@pytest.mark.parametrize("given", [{"method": s2c.Scenes()}, {"tile_size": 32, "overlap": 8}, {"selection": "overlap"}])
def test_the_map_is_the_same_with_points_and_with_parts_of_large_objects(
    scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, Any]
) -> None:
    monkeypatch.setattr(request, "check_trained", lambda *_: None)
    given = {"parameters": {"activation_floor": None} | given, "dst_crs": "EPSG:4326"}
    first = extract(scene, tmp_path / "a.gpkg", **given)
    assert len(first)
    assert extract(scene, tmp_path / "b.gpkg", prompts_from=tmp_path / "a.gpkg", **given).equals(first)
    assert same(tmp_path / "a.gpkg", tmp_path / "b.gpkg")


def test_a_review_comes_back_in_another_crs(scene: Path, tmp_path: Path) -> None:
    path, other = tmp_path / "a.gpkg", tmp_path / "b.gpkg"
    extract(scene, path)
    review(path)
    found = extract(scene, other, keep_reviewed=path, dst_crs="EPSG:4326", mask_out=tmp_path / "mask.tif")
    assert found["id"].tolist() == [1, 3, 4, 5, 8, 99, 100]
    assert found.to_crs(32648).geometry.iloc[6].bounds == pytest.approx((500_100, 2_999_890, 500_110, 2_999_900))
    assert extract(scene, tmp_path / "c.gpkg", keep_reviewed=other, dst_crs="EPSG:4326").equals(found)
    with rasterio.open(tmp_path / "mask.tif") as opened:
        assert opened.read(1)[205:215, 205:215].all()


def test_a_review_of_several_scenes_comes_back_from_every_run(tmp_path: Path) -> None:
    scenes, path = [write(tmp_path / f"{k}.tif", k * 30.5) for k in range(2)], tmp_path / "slides.gpkg"
    extract(scenes, path)
    review(path)
    extract(scenes, path, keep_reviewed=path, overwrite=True)
    once = layers(path)
    assert once["landslides"]["status"].tolist().count("accepted") == 2
    extract(scenes, path, prompts_from=path, overwrite=True)
    assert all(layers(path)[name].equals(once[name]) for name in once)


def test_work_that_a_killed_program_left_in_a_log_counts(scene: Path, tmp_path: Path) -> None:
    path = tmp_path / "slides.gpkg"
    extract(scene, path)
    killed = (
        "import os, sqlite3; c = sqlite3.connect(os.sys.argv[1], isolation_level=None);"
        "c.execute('PRAGMA journal_mode = WAL');"
        "[c.create_function(f'ST_{n}', 1, str) for n in ('IsEmpty', 'MinX', 'MaxX', 'MinY', 'MaxY')];"
        "c.execute(\"UPDATE landslides SET status = 'accepted' WHERE id = 1\"); os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", f"import os, sys; os.sys = sys; {killed}", str(path)], check=True)
    assert (tmp_path / "slides.gpkg-wal").stat().st_size
    with pytest.raises(OutputError, match="holds edits that are not yet in"):
        extract(scene, path, overwrite=True)
    found = extract(scene, tmp_path / "again.gpkg", keep_reviewed=path)
    assert found["status"].tolist()[0] == "accepted"

"""Commands that use a person's review: comparing, merging, where to look next, and what the review says of the rest."""

from __future__ import annotations

import json
import sqlite3
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pyogrio
import pyproj
import pytest
import shapely

import geolabel
from geolabel.cli.main import run as command
from geolabel.errors import OptionError, OutputError, VectorError
from geolabel.io.columns import LANDSLIDE_COLUMNS
from geolabel.io.read.review import LAYER, Carried, check_work, read_review, read_work
from geolabel.io.write import geopackage
from geolabel.io.write.vectors import provenance_of, write_layers
from geolabel.review import next_windows, sample
from geolabel.review.merging import Merged
from geolabel.review.next_windows import choose_windows

UTM = pyproj.CRS.from_epsg(32648)
EAST, NORTH = 500_000, 3_000_000


def square(x: float, y: float, side: float = 20, width: float | None = None) -> shapely.MultiPolygon:
    """A square, or a rectangle, by metres east and north of the corner of the test area."""
    x, y = EAST + x, NORTH + y
    return shapely.MultiPolygon([shapely.box(x, y, x + (side if width is None else width), y + side)])


def table(shapes: Sequence[shapely.Geometry], first: int = 1, **values: Sequence[Any]) -> gpd.GeoDataFrame:
    count = len(shapes)
    known: dict[str, Sequence[Any]] = {
        "id": list(range(first, first + count)),
        "class": ["landslide"] * count,
        "area_m2": [shape.area for shape in shapes],
        "confidence": [0.5] * count,
    }
    return gpd.GeoDataFrame(known | values, geometry=list(shapes), crs=UTM)


def write(
    path: Path,
    shapes: Sequence[shapely.Geometry],
    candidates: Sequence[shapely.Geometry] = (),
    tiles: gpd.GeoDataFrame | None = None,
    made: Mapping[str, Any] | None = None,
    **values: Sequence[Any],
) -> Path:
    """An inventory as extract writes it, without a network."""
    write_layers(
        path,
        table(shapes, **values),
        None,
        tiles,
        made or {"scene": {"name": path.stem}},
        crs=UTM,
        candidates=table(candidates, 1 + len(shapes)),
        overwrite=True,
    )
    return path


def sql(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        for name in ("IsEmpty", "MinX", "MaxX", "MinY", "MaxY"):  # triggers name them, for geometry alone
            connection.create_function(f"ST_{name}", 1, lambda _: None)
        for statement in statements:
            connection.execute(statement)


def edit(path: Path, change: Any, layer: str = "landslides") -> None:
    """Change a layer as another program does."""
    change(gpd.read_file(path, layer=layer)).to_file(path, layer=layer, driver="GPKG")


def without(number: int) -> Any:
    return lambda rows: rows[rows["id"] != number]


# diff


FIVE = [square(x, 0) for x in (0, 100, 200, 300, 400)]


def test_inventories_that_are_alike_do_not_differ(tmp_path: Path) -> None:
    one = write(tmp_path / "a.gpkg", FIVE, [square(500, 0)])
    other = write(tmp_path / "b.gpkg", [shape.reverse() for shape in FIVE[::-1]], [square(500, 0)])
    found = geolabel.diff(one, other)
    assert not found
    assert found.same == 6
    assert command(["review", "diff", str(one), str(other)]) == 0


def test_a_difference_is_what_was_added_removed_and_changed(tmp_path: Path) -> None:
    """Of squares of 20 m the second moves by 5 m: IoU 300 / 500. Another is wider: 400 / 600."""
    one = write(tmp_path / "a.gpkg", FIVE, [square(500, 0)])
    after = [FIVE[0], square(105, 0), square(200, 0, width=30), FIVE[3], square(0, 300)]
    other = write(tmp_path / "b.gpkg", after, [square(500, 0)])
    sql(other, "UPDATE landslides SET status = 'accepted' WHERE id = 1")
    sql(other, "UPDATE landslides SET status = 'accepted', class = 'rock fall' WHERE id = 3")
    sql(other, "UPDATE candidates SET status = 'accepted'")
    found = geolabel.diff(one, other, out=tmp_path / "changes.gpkg")
    rows = found.changes.set_index(["change", "old_id"])
    assert rows.loc[("changed", 2), ["what", "iou"]].tolist() == ["outline", pytest.approx(0.6)]
    assert rows.loc[("changed", 3), ["what", "iou"]].tolist() == ["outline, status, class", pytest.approx(2 / 3)]
    assert rows.loc[("changed", 1), "what"] == "status"
    assert rows.loc[("changed", 6), "what"] == "layer, status"
    assert rows.loc[("removed", 5), "old_area_m2"] == pytest.approx(400, rel=2e-3)
    assert found.changes.loc[found.changes["change"] == "added", "new_id"].tolist() == [5]
    figures = {"same": 1, "added": 1, "removed": 1, "changed": 4, "changed outline": 2, "changed layer": 1}
    assert found.figures() == figures | {"changed status": 3, "changed class": 1}
    written = gpd.read_file(tmp_path / "changes.gpkg", layer="changes")
    assert written["what"].fillna("").tolist() == found.changes["what"].fillna("").tolist()
    assert written.geometry.geom_equals(found.changes.geometry).all()
    assert command(["review", "diff", str(one), str(other), "--json"]) == 4


def test_a_kmz_of_changes_names_what_became_of_each_polygon(tmp_path: Path) -> None:
    one, other = write(tmp_path / "a.gpkg", FIVE), write(tmp_path / "b.gpkg", FIVE[1:])
    geolabel.diff(one, other, out=tmp_path / "changes.kmz")
    with zipfile.ZipFile(tmp_path / "changes.kmz") as archive:
        (tmp_path / "doc.kml").write_bytes(archive.read("doc.kml"))
    assert pyogrio.read_dataframe(tmp_path / "doc.kml", layer="changes")["Name"].tolist() == ["removed"]


def test_what_is_too_far_apart_is_removed_and_added(tmp_path: Path) -> None:
    one, other = write(tmp_path / "a.gpkg", [square(0, 0)]), write(tmp_path / "b.gpkg", [square(5, 0)])
    assert geolabel.diff(one, other, min_iou=0.6).figures()["changed outline"] == 1
    apart = geolabel.diff(one, other, min_iou=0.61).figures()
    assert (apart["removed"], apart["added"], apart["changed"]) == (1, 1, 0)
    with pytest.raises(OptionError, match="min iou 0"):
        geolabel.diff(one, other, min_iou=0)


def test_what_a_person_deletes_is_rejected(tmp_path: Path) -> None:
    one, other = write(tmp_path / "a.gpkg", FIVE), write(tmp_path / "b.gpkg", FIVE)
    edit(other, without(2))
    changes = geolabel.diff(one, other).changes
    assert changes[["what", "old_id", "new_status"]].to_numpy().tolist() == [["layer, status", 2, "rejected"]]


def test_inventories_in_other_crss_are_compared_on_the_ground(tmp_path: Path) -> None:
    one = write(tmp_path / "a.gpkg", FIVE)
    gpd.read_file(one, layer="landslides").to_crs(4326).to_file(tmp_path / "b.geojson")
    found = geolabel.diff(one, tmp_path / "b.geojson")
    assert len(found.changes) == 0 or found.changes["iou"].min() > 0.999
    assert found.changes["what"].isin(["outline"]).all()


def test_each_polygon_is_in_one_pair(tmp_path: Path) -> None:
    """A landslide that was split in two is paired with the larger half; the smaller one is new."""
    one = write(tmp_path / "a.gpkg", [square(0, 0)])
    other = write(tmp_path / "b.gpkg", [square(0, 0, width=12), square(12, 0, width=8)])
    figures = geolabel.diff(one, other).figures()
    assert (figures["changed"], figures["added"], figures["removed"]) == (1, 1, 0)


def test_the_columns_of_the_test_inventories_are_those_of_the_product(tmp_path: Path) -> None:
    columns = pyogrio.read_info(write(tmp_path / "a.gpkg", FIVE), layer="landslides")["fields"].tolist()
    assert columns == list(LANDSLIDE_COLUMNS)


# next


def tiles() -> gpd.GeoDataFrame:
    """Four tiles of 400 m around the test area."""
    corners = [(-100, -100), (300, -100), (-100, 300), (300, 300)]
    shapes = [shapely.box(EAST + x, NORTH + y, EAST + x + 400, NORTH + y + 400) for x, y in corners]
    values = {"tile": range(4), "status": "clear", "probability": 0.1, "message": None}
    return gpd.GeoDataFrame(values, geometry=shapes, crs=UTM)


def rest_of(path: Path, own: Sequence[str]) -> dict[str, list[Any]]:
    """Every row of every table of a file but what is said of own layers."""
    said: dict[str, list[Any]] = {}
    with closing(sqlite3.connect(path)) as connection:
        for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            if name not in own and name != "sqlite_sequence":
                rows = connection.execute(f'SELECT * FROM "{name}"').fetchall()
                said[name] = [row for row in rows if not {*own} & {*row}]
    return said


def review_layer(path: Path, name: str = "review") -> gpd.GeoDataFrame:
    return gpd.read_file(path, layer=name)


def test_the_first_window_is_the_most_uncertain_of_polygons_alike(tmp_path: Path) -> None:
    path = write(tmp_path / "a.gpkg", FIVE, confidence=[0.9, 0.2, 0.55, 0.8, 0.99])
    found = geolabel.next_windows(path, count=2)
    assert found.windows["polygon"].tolist()[0] == 3
    assert (found.waiting, found.shown, found.kept) == (5, 2, 0)
    written = review_layer(path)
    assert written["polygon"].tolist() == found.windows["polygon"].tolist()
    assert written["rank"].tolist() == [1, 2]
    assert written["status"].tolist() == ["unreviewed"] * 2
    assert written.geometry[0].contains(FIVE[2])


def test_of_uncertain_polygons_the_larger_comes_first_and_then_the_one_that_is_unlike(tmp_path: Path) -> None:
    """Two large ones that are alike, and a small one of another kind: after the first, the small one is worth more."""
    shapes = [square(0, 0, 40), square(200, 0, 40), square(400, 0, 30)]
    path = write(tmp_path / "a.gpkg", shapes, confidence=[0.5, 0.49, 0.5], score_mean=[0.9, 0.9, 0.5])
    assert geolabel.next_windows(path).windows["polygon"].tolist()[:2] == [1, 3]


def test_what_was_reviewed_makes_the_like_of_it_less_worth(tmp_path: Path) -> None:
    shapes = [square(x, 0) for x in (0, 100, 200)]
    path = write(tmp_path / "a.gpkg", shapes, confidence=[0.5, 0.5, 0.5], score_mean=[0.9, 0.9, 0.5])
    sql(path, "UPDATE landslides SET status = 'accepted' WHERE id = 1")
    found = geolabel.next_windows(path)
    assert found.windows["polygon"].tolist() == [3, 2]
    assert found.waiting == 2


def test_a_window_shows_its_neighbours_too(tmp_path: Path) -> None:
    path = write(tmp_path / "a.gpkg", [square(0, 0), square(30, 0), square(300, 0)], gsd_m=[1.0] * 3)
    found = geolabel.next_windows(path)
    assert (len(found.windows), found.shown) == (2, 3)


def test_nothing_else_of_the_file_changes_and_again_gives_the_same(tmp_path: Path) -> None:
    path = write(tmp_path / "a.gpkg", FIVE, [square(500, 0)])
    edit(path, without(4))
    sql(path, "CREATE TABLE mine (x TEXT)", "INSERT INTO mine VALUES ('a note')")
    own = ("review",)
    before = rest_of(path, own)
    geolabel.next_windows(path, count=3)
    once = review_layer(path)
    assert rest_of(path, own) == before
    geolabel.next_windows(path, count=3)
    assert review_layer(path).equals(once)
    assert rest_of(path, own) == before
    assert geolabel.diff(path, path).same == 6


def test_windows_that_a_person_looked_at_stay(tmp_path: Path) -> None:
    path = write(tmp_path / "a.gpkg", FIVE)
    geolabel.next_windows(path, count=3)
    first = review_layer(path)
    sql(
        path,
        "UPDATE review SET status = 'reviewed' WHERE window = 1",
        "UPDATE review SET notes = 'cloudy' WHERE window = 2",
        f"UPDATE landslides SET status = 'rejected' WHERE id = {first['polygon'][0]}",
    )
    found = geolabel.next_windows(path, count=3)
    after = review_layer(path)
    assert found.kept == 2
    assert after["status"].tolist()[:2] == ["reviewed", "unreviewed"]
    assert after["notes"].tolist()[1] == "cloudy"
    assert after["window"].is_unique
    assert first["polygon"][0] not in found.windows["polygon"].tolist()


def test_a_layer_of_that_name_that_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "a.gpkg", FIVE)
    gpd.GeoDataFrame(geometry=[square(0, 0)], crs=UTM).to_file(path, layer="review", driver="GPKG")
    with pytest.raises(VectorError, match="a layer review that geolabel did not write"):
        geolabel.next_windows(path)


def test_a_file_that_is_not_ours_is_refused(tmp_path: Path) -> None:
    table(FIVE).to_file(tmp_path / "a.gpkg", layer="landslides", driver="GPKG")
    table(FIVE).to_file(tmp_path / "a.geojson")
    for name in ("a.gpkg", "a.geojson"):
        with pytest.raises(OutputError, match="no GeoPackage that geolabel wrote"):
            geolabel.next_windows(tmp_path / name)


def test_a_file_that_another_program_writes_to_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(geopackage, "LOCKED_SECONDS", 0.1)
    path = write(tmp_path / "a.gpkg", FIVE)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(OutputError, match="cannot be changed"):
            geolabel.next_windows(path)
    assert "review" not in pyogrio.list_layers(path)[:, 0]


def test_an_edit_in_the_meantime_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.gpkg", FIVE)

    def choose(inventory: Any, count: int) -> Any:
        sql(path, "UPDATE landslides SET status = 'accepted' WHERE id = 2")
        return choose_windows(inventory, count)

    monkeypatch.setattr(next_windows, "choose_windows", choose)
    with pytest.raises(OutputError, match="edited in another program"):
        geolabel.next_windows(path)
    assert gpd.read_file(path, layer="landslides")["status"].tolist()[1] == "accepted"
    assert "review" not in pyogrio.list_layers(path)[:, 0]


def test_triggers_of_a_strangers_file_change_nothing(tmp_path: Path) -> None:
    path = write(tmp_path / "a.gpkg", FIVE)
    sql(path, "CREATE TRIGGER evil AFTER INSERT ON GPKG_Contents BEGIN DELETE FROM landslides; END")
    with pytest.raises(OutputError, match=r"has a trigger evil on its table GPKG_Contents, .* drop the trigger"):
        geolabel.next_windows(path)
    assert len(gpd.read_file(path, layer="landslides")) == len(FIVE)


def test_looked_at_windows_are_a_persons_work(tmp_path: Path) -> None:
    path = write(tmp_path / "a.gpkg", FIVE)
    geolabel.next_windows(path)
    assert not read_work(path)
    sql(path, "UPDATE review SET status = 'reviewed' WHERE window = 1")
    assert str(read_work(path)) == "1 reviewed window"
    assert len(read_review(path).looked) == 1
    with pytest.raises(OutputError, match="1 reviewed window"):
        check_work(path)
    check_work(path, Carried(review=read_review(path)))


def test_features_that_all_share_say_nothing() -> None:
    rows = pd.DataFrame({"elongation": [1.0, 1.0], "score_mean": [0.2, None]})
    found = next_windows.features(rows, np.array([100.0, 1000.0]))
    assert found[:, 0].tolist() == [-1, 1]
    assert not found[:, 1:].any()


def test_the_layers_of_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "a.gpkg", FIVE, tiles=tiles())
    assert command(["review", "next", str(path), "--count", "2"]) == 0
    assert "2 new, 0 kept, in the layer review" in capsys.readouterr().out
    assert command(["review", "next", str(path), "--seed", "2"]) == 2
    assert "--seed: an option of --estimate" in capsys.readouterr().err
    assert command(["review", "next", str(path), "--estimate", "--window", "50", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kept"] == 0
    assert command(["review", "estimate", str(path)]) == 0
    said = capsys.readouterr().out
    assert "0 windows outside polygons were looked at" in said
    drawn = gpd.read_file(path, layer="review_sample")["polygon"].isna().sum()
    assert f"set status to reviewed in {drawn} windows of the layer review_sample" in said
    assert "draws windows" not in said


def test_an_archive_of_shapefiles_says_how_it_was_made(tmp_path: Path) -> None:
    made = {"scene": {"name": "valley"}, "software": {"geolabel": "9"}}
    archive = write(tmp_path / "a.zip", FIVE, made=made)
    assert {name: provenance_of(archive)[name] for name in made} == made
    out = tmp_path / "merged.gpkg"
    geolabel.merge([archive, write(tmp_path / "b.gpkg", FIVE)], out)
    said = [source["provenance"] for source in provenance_of(out)["merged"]]
    assert said[0]["scene"] == {"name": "valley"}


@pytest.mark.parametrize("text", [b"no JSON", b" " * 20_000_000 + b"{}", b"[1]"], ids=["text", "long", "list"])
def test_an_archive_that_says_it_wrongly_says_nothing(tmp_path: Path, text: bytes) -> None:
    whole, wrong = write(tmp_path / "a.zip", FIVE), tmp_path / "wrong.zip"
    with zipfile.ZipFile(whole) as one, zipfile.ZipFile(wrong, "w", zipfile.ZIP_DEFLATED) as other:
        for name in one.namelist():
            other.writestr(name, text if name == "provenance.json" else one.read(name))
    assert provenance_of(wrong) == {}


def test_a_layer_of_changes_replaces_an_earlier_one_and_nothing_else(tmp_path: Path) -> None:
    one, other = write(tmp_path / "a.gpkg", FIVE), write(tmp_path / "b.gpkg", FIVE[1:])
    out = tmp_path / "changes.gpkg"
    geolabel.diff(one, other, out=out)
    found = geolabel.diff(other, one, out=out, overwrite=True)
    assert gpd.read_file(out, layer="changes")["change"].tolist() == found.changes["change"].tolist() == ["added"]
    gpd.GeoDataFrame(geometry=FIVE[:1], crs=UTM).to_file(other, layer="changes", driver="GPKG")
    with pytest.raises(OutputError, match=r"what geolabel did not write [(]changes[)]"):
        geolabel.diff(one, one, out=other, overwrite=True)


def test_nothing_is_overwritten_without_a_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [str(write(tmp_path / name, FIVE)) for name in ("a.gpkg", "b.gpkg")]
    assert command(["review", "diff", *paths, "--overwrite"]) == 2
    assert "--overwrite replaces the layer of changes: give its name with --out" in capsys.readouterr().err


# sample and estimate


def test_a_sample_has_polygons_of_every_stratum_and_windows_outside(tmp_path: Path) -> None:
    path = write(tmp_path / "a.gpkg", FIVE, [square(500, 0)], tiles(), confidence=[0.3, 0.3, 0.7, 0.7, 0.9])
    found = geolabel.sample_review(path, count=12, window=50)
    strata = found.figures()["strata"]
    names = [
        "landslides, confidence 0.2 to 0.4",
        "landslides, confidence 0.6 to 0.8",
        "landslides, confidence 0.8 to 1",
    ]
    assert {name: strata[name] for name in names} == dict(zip(names, (2, 2, 1), strict=True))
    assert (strata["candidates"], strata["outside polygons"]) == (1, 6)
    outside = found.windows[found.windows["polygon"].isna()]
    assert outside.area.max() == pytest.approx(2500, rel=3e-3)
    assert not outside.overlaps(outside.geometry.iloc[0]).any()
    assert outside.within(tiles().union_all().buffer(1e-6)).all()


def test_a_larger_sample_begins_with_the_smaller_one(tmp_path: Path) -> None:
    one = write(tmp_path / "a.gpkg", FIVE, (), tiles())
    other = write(tmp_path / "b.gpkg", FIVE, (), tiles())
    geolabel.sample_review(one, count=5, window=50)
    small = review_layer(one, "review_sample")
    assert geolabel.sample_review(one, count=9, window=50).kept == 5
    geolabel.sample_review(other, count=9, window=50)
    grown, whole = review_layer(one, "review_sample"), review_layer(other, "review_sample")
    assert grown.equals(whole)
    assert grown.iloc[:5].equals(small)
    assert len(geolabel.sample_review(one, count=9, window=50).windows) == 0
    with pytest.raises(OptionError, match="windows of 50 m; give --window 50"):
        geolabel.sample_review(one, count=12, window=80)


def test_another_seed_draws_another_sample(tmp_path: Path) -> None:
    drawn = []
    for seed in (0, 1):
        path = write(tmp_path / f"{seed}.gpkg", FIVE, (), tiles())
        drawn.append(geolabel.sample_review(path, count=9, window=50, seed=seed).windows)
    assert not drawn[0].geometry.equals(drawn[1].geometry)


def test_places_of_windows_are_spread_evenly() -> None:
    cols, rows = (axis.ravel() for axis in np.meshgrid(np.arange(-50, 50), np.arange(-50, 50)))
    first = np.argsort(sample.hashed(0, cols, rows))[:1000]
    assert abs(cols[first].mean() + 0.5) < 3 * 29 / np.sqrt(1000)
    assert abs(rows[first].mean() + 0.5) < 3 * 29 / np.sqrt(1000)
    assert len(np.unique(sample.hashed(0, cols, rows))) == 10_000
    assert len(np.unique(sample.hashed(2**64 + 1, cols, rows))) == 10_000


def test_an_area_that_is_not_known_is_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path / "a.gpkg", FIVE)
    with pytest.raises(VectorError, match="give --aoi FILE"):
        geolabel.sample_review(path, window=50)
    gpd.GeoDataFrame(geometry=[square(-100, 100, 300)], crs=UTM).to_file(tmp_path / "aoi.geojson")
    found = geolabel.sample_review(path, window=50, aoi=tmp_path / "aoi.geojson", count=9).windows
    assert (found["polygon"].isna()).sum() == 6


def test_what_was_reviewed_stands_for_the_rest(tmp_path: Path) -> None:
    """Ten alike, of which six were looked at and four are right: two thirds of the other four."""
    shapes = [square(50 * k, 0) for k in range(10)]
    path = write(tmp_path / "a.gpkg", shapes, confidence=[0.5] * 10)
    sql(path, "UPDATE landslides SET status = 'accepted' WHERE id <= 4")
    sql(path, "UPDATE landslides SET status = 'rejected' WHERE id = 5")
    edit(path, without(6))
    found = geolabel.estimate_review(path)
    assert not found.sampled
    assert [(one.mapped, one.rest, one.reviewed, one.right) for one in found.strata] == [(10, 4, 6, 4)]
    assert found.right is not None
    assert found.right.value == pytest.approx(8 / 3)
    assert found.right.low < 8 / 3 < found.right.high <= 4
    assert (found.missed, found.matrix) == (None, None)
    assert any("cannot be known from polygons alone" in note for note in found.notes)
    assert any("no random sample" in note for note in found.notes)


def test_strata_are_not_mixed_up(tmp_path: Path) -> None:
    """All sure ones are right and no unsure one is: the rest is judged by its own kind."""
    shapes = [square(50 * k, 0) for k in range(20)]
    path = write(tmp_path / "a.gpkg", shapes, confidence=[0.9] * 10 + [0.3] * 10)
    sql(path, "UPDATE landslides SET status = 'accepted' WHERE id <= 3")
    sql(path, "UPDATE landslides SET status = 'rejected' WHERE id BETWEEN 11 AND 18")
    found = geolabel.estimate_review(path)
    assert found.right is not None
    assert found.right.value == pytest.approx(7)


def test_strata_with_few_looks_are_joined(tmp_path: Path) -> None:
    shapes = [square(50 * k, 0) for k in range(12)]
    path = write(tmp_path / "a.gpkg", shapes, confidence=[0.3] * 4 + [0.5] * 4 + [0.9] * 4)
    sql(path, "UPDATE landslides SET status = 'accepted' WHERE id IN (1, 5, 6, 9, 10, 11)")
    names = [one.name for one in geolabel.estimate_review(path).strata]
    assert names == ["landslides, confidence 0.2 to 0.6", "landslides, confidence 0.8 to 1"]


def test_too_few_looks_say_nothing(tmp_path: Path) -> None:
    path = write(tmp_path / "a.gpkg", FIVE)
    sql(path, "UPDATE landslides SET status = 'accepted' WHERE id = 1")
    found = geolabel.estimate_review(path)
    assert found.right is None
    assert any("4 landslides are unreviewed in strata" in note for note in found.notes)


def test_what_was_missed_is_known_from_windows_outside(tmp_path: Path) -> None:
    """One landslide of 400 m2 in four windows of 2,500 m2: 1 in 10,000 m2 of the 638,000 outside polygons."""
    path = write(tmp_path / "a.gpkg", FIVE, (), tiles(), confidence=[0.5] * 5)
    drawn = geolabel.sample_review(path, count=7, window=50).windows
    outside = drawn[drawn["polygon"].isna()]
    ground = [place for place in outside.geometry if not any(place.intersects(shape) for shape in FIVE)]
    x, y = ground[0].centroid.x - EAST - 10, ground[0].centroid.y - NORTH - 10
    missed = gpd.GeoDataFrame({"status": ["accepted"]}, geometry=[square(x, y)], crs=UTM)
    edit(path, lambda rows: pd.concat([rows, missed], ignore_index=True))
    sql(
        path,
        "UPDATE landslides SET status = 'accepted' WHERE id IS NOT NULL",
        "UPDATE review_sample SET status = 'reviewed'",
    )
    found = geolabel.estimate_review(path)
    area = sum(place.difference(shapely.union_all(FIVE)).area for place in outside.geometry)
    assert found.sampled
    assert (found.added, found.windows) == (1, len(outside))
    assert found.missed is not None
    assert found.missed.value == pytest.approx((640_000 - 5 * 400) / area, rel=3e-3)
    assert found.missed.low < 2
    assert found.matrix is not None
    assert found.matrix.users(0).value == pytest.approx(1)
    mapped, whole = 2000.0, 400 * (640_000 - 2000) / area
    assert found.matrix.producers(0).value == pytest.approx(mapped / (mapped + whole), rel=3e-3)
    assert found.matrix.area_of(0).value == pytest.approx(mapped + whole, rel=3e-3)


def masked_half(path: Path, **how: Any) -> Path:
    """An inventory of the tiles, 800 m a side, of which masks left out the west: 320,000 m2."""
    tables = {"landslides": table([square(400 + 100 * k, 0) for k in range(3)], confidence=[0.5] * 3)}
    left_out = gpd.GeoDataFrame({"id": [1]}, geometry=[square(-100, -100, 800, 400)], crs=UTM)
    made = {"masks": {"names": ["clouds.tif"], "share": 0.5}}
    write_layers(path, tables["landslides"], None, tiles(), made, crs=UTM, masked=left_out, overwrite=True, **how)
    return path


def test_ground_that_masks_left_out_is_in_no_window_and_no_total(tmp_path: Path, caplog: Any) -> None:
    """By hand, after Olofsson et al. (2014), eq. 4 and 9 to 11.

    Of 640,000 m2, 320,000 are searched, and 318,800 are outside the three polygons of 400 m2. Windows of 100 m hold a
    missed landslide of 400 m2. It is 400 of their area, so that share of 318,800 is landslide outside.
    """
    path = masked_half(tmp_path / "a.gpkg")
    drawn = geolabel.sample_review(path, count=12, window=100).windows
    outside = drawn[drawn["polygon"].isna()]
    assert not caplog.records
    assert outside.geometry.within(square(300, -100, 800, 400).buffer(1e-6)).all()
    place = next(one for one in outside.geometry if one.area == pytest.approx(10_000, rel=3e-3))
    x, y = place.centroid.x - EAST - 10, place.centroid.y - NORTH - 10
    missed = gpd.GeoDataFrame({"status": ["accepted"]}, geometry=[square(x, y)], crs=UTM)
    edit(path, lambda rows: pd.concat([rows, missed], ignore_index=True))
    sql(
        path,
        "UPDATE landslides SET status = 'accepted' WHERE id IS NOT NULL",
        "UPDATE review_sample SET status = 'reviewed'",
    )
    found = geolabel.estimate_review(path)
    searched = outside.area.sum()
    assert found.missed is not None
    assert found.missed.value == pytest.approx(318_800 / searched, rel=3e-3)
    assert found.matrix is not None
    assert found.matrix.area == pytest.approx(320_000, rel=3e-3)
    share = 400 / searched
    assert found.matrix.proportions.ravel() == pytest.approx(
        [1200 / 320_000, 0, 318_800 / 320_000 * share, 318_800 / 320_000 * (1 - share)], rel=3e-3
    )
    assert found.matrix.area_of(0).value == pytest.approx(1200 + 318_800 * share, rel=3e-3)


def test_masks_of_an_earlier_version_are_warned_of(tmp_path: Path, caplog: Any) -> None:
    path = write(tmp_path / "a.gpkg", FIVE, (), tiles(), {"masks": {"names": ["clouds.tif"], "share": 0.5}})
    geolabel.sample_review(path, count=9, window=50)
    assert "by an earlier version, which did not keep what was left out" in caplog.text
    caplog.clear()
    path = write(tmp_path / "b.gpkg", FIVE, (), tiles(), {"masks": {"names": ["clouds.tif"], "share": 0.0}})
    geolabel.sample_review(path, count=9, window=50)
    assert not caplog.records


@pytest.mark.parametrize("masks", [["clouds.tif"], {"names": ["clouds.tif"]}, None])
def test_masks_that_another_program_wrote_otherwise_are_passed_over(tmp_path: Path, caplog: Any, masks: object) -> None:
    path = write(tmp_path / "a.gpkg", FIVE, (), tiles(), {"masks": masks})
    assert len(geolabel.sample_review(path, count=9, window=50).windows) == 9
    assert "earlier version" not in caplog.text


def test_an_area_that_masks_left_out_is_refused(tmp_path: Path) -> None:
    path = masked_half(tmp_path / "a.gpkg")
    gpd.GeoDataFrame(geometry=[square(0, 0, 250)], crs=UTM).to_file(tmp_path / "aoi.geojson")
    with pytest.raises(VectorError, match="no searched ground in the area to sample"):
        geolabel.sample_review(path, window=50, aoi=tmp_path / "aoi.geojson")


def test_windows_outside_polygons_hold_none(tmp_path: Path) -> None:
    """Every cell of 40 m holds a polygon; what is cut off windows does not change the size of those drawn later."""
    shapes = [square(40 * k, 40 * n) for k in range(20) for n in range(20)]
    path = write(tmp_path / "a.gpkg", shapes, (), tiles(), confidence=[0.5] * 400)
    windows = geolabel.sample_review(path, count=9, window=40).windows
    windows = pd.concat([windows, geolabel.sample_review(path, count=30, window=40).windows])
    outside = windows[windows["polygon"].isna()]
    assert outside.geometry.is_valid.all()
    assert shapely.intersection(shapely.union_all(outside.geometry), shapely.union_all(shapes)).area < 1e-6
    assert outside.area.min() >= 0.25 * 1600 * 0.99
    assert shapely.union_all(outside.geometry).area == pytest.approx(outside.area.sum())  # none is drawn twice
    with pytest.raises(OptionError, match="windows of 40 m; give --window 40"):
        geolabel.sample_review(path, count=40, window=60)


def test_what_is_drawn_inside_a_polygon_is_not_missed(tmp_path: Path) -> None:
    path = write(tmp_path / "a.gpkg", [square(0, 0, 400)], (), tiles(), confidence=[0.5])
    geolabel.sample_review(path, count=12, window=200)
    drawn = gpd.GeoDataFrame({"status": ["accepted"] * 2}, geometry=[square(100, 100), square(390, 100, 30)], crs=UTM)
    edit(path, lambda rows: pd.concat([rows, drawn], ignore_index=True))
    sql(path, "UPDATE review_sample SET status = 'reviewed'")
    aoi = tmp_path / "aoi.geojson"
    gpd.GeoDataFrame(geometry=[square(0, 0, 600)], crs=UTM).to_file(aoi)
    found = geolabel.estimate_review(path, aoi=aoi)
    assert found.missed is not None
    assert found.added == 2
    assert 1 <= found.missed.value < 1.5  # the second alone, and windows show nearly all the ground outside


def test_a_sample_alone_counts_where_there_is_one(tmp_path: Path) -> None:
    """What was chosen to be looked at is known, and stands for nothing else."""
    shapes = [square(40 * k, 0) for k in range(16)]
    path = write(tmp_path / "a.gpkg", shapes, (), tiles(), confidence=[0.5] * 16)
    drawn = geolabel.sample_review(path, count=9, window=100).windows["polygon"].dropna().astype(int).tolist()
    others = [number for number in range(1, 17) if number not in drawn][:5]
    sql(path, f"UPDATE landslides SET status = 'rejected' WHERE id IN {tuple(others)}")
    sql(path, f"UPDATE landslides SET status = 'accepted' WHERE id IN {tuple(drawn)}")
    found = geolabel.estimate_review(path)
    assert len(drawn) == 3
    assert [(one.reviewed, one.right, one.rest) for one in found.strata] == [(3, 3, 8)]
    assert found.right is not None
    assert found.right.value == 8


# merge


def merged(*paths: Path, **how: Any) -> tuple[Merged, Path]:
    out = paths[0].with_name("merged.gpkg")
    return geolabel.merge(paths, out, overwrite=True, **how), out


def test_the_work_of_two_people_becomes_one_inventory(tmp_path: Path) -> None:
    """Each reviewed the same five polygons in part, and drew one."""
    hers, his = write(tmp_path / "hers.gpkg", FIVE), write(tmp_path / "his.gpkg", FIVE)
    sql(hers, "UPDATE landslides SET status = 'accepted' WHERE id = 1")
    sql(hers, "UPDATE landslides SET status = 'rejected' WHERE id = 2")
    sql(his, "UPDATE landslides SET status = 'accepted', notes = 'fresh' WHERE id = 3")
    edit(his, without(4))
    drawn = gpd.GeoDataFrame({"status": ["accepted"]}, geometry=[square(0, 500)], crs=UTM)
    edit(his, lambda rows: pd.concat([rows, drawn], ignore_index=True))
    found, out = merged(hers, his)
    assert found.figures() == {"landslides": 4, "candidates": 0, "rejected": 2, "joined": 5, "disagreements": 0}
    rows = pd.concat([found.landslides, found.rejected]).set_index("sources")
    assert rows.loc["hers.gpkg:1; his.gpkg:1", ["id", "status"]].tolist() == [1, "accepted"]
    assert rows.loc["hers.gpkg:2; his.gpkg:2", ["id", "status"]].tolist() == [2, "rejected"]
    assert rows.loc["his.gpkg:3; hers.gpkg:3", ["status", "notes"]].tolist() == ["accepted", "fresh"]
    assert rows.loc["his.gpkg:4; hers.gpkg:4", "status"] == "rejected"
    assert rows.loc["hers.gpkg:5; his.gpkg:5", ["id", "status"]].tolist() == [5, "unreviewed"]
    assert rows.loc["his.gpkg", "area_m2"] == pytest.approx(400, rel=2e-3)
    assert rows["id"].is_unique
    # what was decided is a person's work in the new file too
    again = read_review(out)
    assert (len(again.kept), len(again.rejected), len(again.waiting)) == (3, 2, 1)
    assert read_work(out)
    made = geopackage.read_provenance(out)["merged"]
    assert [one["file"] for one in made] == ["hers.gpkg", "his.gpkg"]
    assert [one["provenance"]["scene"]["name"] for one in made] == ["hers", "his"]


def test_where_people_disagree_the_first_counts_and_the_other_is_named(tmp_path: Path) -> None:
    hers, his = write(tmp_path / "hers.gpkg", FIVE[:3]), write(tmp_path / "his.gpkg", FIVE[:3])
    sql(hers, "UPDATE landslides SET status = 'accepted'")
    sql(his, "UPDATE landslides SET status = 'accepted'")
    sql(his, "UPDATE landslides SET status = 'rejected' WHERE id = 2")
    sql(his, "UPDATE landslides SET class = 'rock fall' WHERE id = 3")
    found, out = merged(hers, his)
    said = found.landslides.set_index("id")["disagreement"]
    assert pd.isna(said[1])
    assert [said[2], said[3]] == ["his.gpkg:2: rejected", "his.gpkg:3: class rock fall"]
    assert found.figures()["disagreements"] == 2
    turned, _ = merged(his, hers, discard_review=True)
    assert turned.rejected["disagreement"].tolist() == ["hers.gpkg:2: landslide"]
    arguments = ["review", "merge", str(hers), str(his), "--out", str(out), "--overwrite", "--discard-review"]
    assert command(arguments) == 4
    assert command(arguments[:-1]) != 4, "the merged file holds reviews"


def test_what_half_of_another_polygon_covers_is_a_part_of_it(tmp_path: Path) -> None:
    """IoU of the small square (10 m) and the large one (20 m): 100 / 400; of the one half outside: 50 / 450."""
    hers = write(tmp_path / "hers.gpkg", [square(0, 0)])
    his = write(tmp_path / "his.gpkg", [square(0, 0, 10), square(100, 0)])
    assert merged(hers, his, min_iou=0.3)[0].figures()["joined"] == 1
    half = write(tmp_path / "half.gpkg", [square(15, 0, 10)])
    assert merged(hers, half, min_iou=0.12)[0].figures()["joined"] == 1
    less = write(tmp_path / "less.gpkg", [square(15.1, 0, 10)])
    assert merged(hers, less, min_iou=0.12)[0].figures()["joined"] == 0
    with pytest.raises(OptionError, match="at least two"):
        geolabel.merge([hers], tmp_path / "one.gpkg")


def test_a_small_landslide_in_a_rejected_area_is_another_thing(tmp_path: Path) -> None:
    hers, his = write(tmp_path / "hers.gpkg", [square(0, 0, 100)]), write(tmp_path / "his.gpkg", [square(0, 0, 10)])
    sql(hers, "UPDATE landslides SET status = 'rejected'")
    found, _ = merged(hers, his)
    assert found.figures()["landslides"] == 0, "nobody has looked at it, and its ground was rejected"
    sql(his, "UPDATE landslides SET status = 'accepted'")
    found, _ = merged(hers, his, discard_review=True)
    assert found.figures() == {"landslides": 1, "candidates": 0, "rejected": 1, "joined": 0, "disagreements": 0}


def test_what_covers_an_accepted_polygon_is_a_candidate(tmp_path: Path) -> None:
    hers, his = write(tmp_path / "hers.gpkg", [square(0, 0, 10)]), write(tmp_path / "his.gpkg", [square(0, 0, 100)])
    sql(hers, "UPDATE landslides SET status = 'accepted'")
    found, _ = merged(hers, his)
    assert found.candidates[["sources", "reason"]].to_numpy().tolist() == [["his.gpkg:1", "reviewed"]]


def test_inventories_of_other_crss_columns_and_programs_are_merged(tmp_path: Path) -> None:
    hers, his = write(tmp_path / "hers.gpkg", FIVE[:2]), tmp_path / "his.geojson"
    sql(hers, "ALTER TABLE landslides ADD COLUMN depth INTEGER", "UPDATE landslides SET depth = 3 WHERE id = 2")
    own = gpd.GeoDataFrame({"depth": ["deep", "shallow"]}, geometry=[square(0, 0), square(500, 0)], crs=UTM)
    own.to_crs(4326).to_file(his, driver="GeoJSON")
    found, out = merged(hers, his)
    rows = gpd.read_file(out, layer="landslides").set_index("sources")
    assert found.landslides.crs == UTM
    assert rows["depth"].to_dict() == {
        "his.geojson; hers.gpkg:1": "deep",
        "hers.gpkg:2": "3",
        "his.geojson": "shallow",
    }
    assert rows.loc["his.geojson", "area_m2"] == pytest.approx(400, rel=2e-3)
    nowhere = write_layers_without_crs(tmp_path / "nowhere.gpkg")
    with pytest.raises(VectorError, match="one has a CRS and the other has none"):
        merged(hers, nowhere, discard_review=True)


def write_layers_without_crs(path: Path) -> Path:
    rows = table(FIVE[:1]).set_crs(None, allow_override=True)
    write_layers(path, rows, None, None, {"scene": {}}, crs=None)
    return path


def test_windows_that_people_looked_at_come_along(tmp_path: Path) -> None:
    hers, his = write(tmp_path / "hers.gpkg", FIVE), write(tmp_path / "his.gpkg", FIVE[::-1])
    for path in (hers, his):
        geolabel.next_windows(path, count=1)
        sql(path, "UPDATE review SET status = 'reviewed'")
    sql(his, "UPDATE landslides SET status = 'accepted' WHERE id = 1")
    _, out = merged(hers, his)
    windows = review_layer(out)
    about = gpd.read_file(out, layer="landslides").set_index("id").loc[windows["polygon"]]
    assert windows["window"].tolist() == [1, 2]
    assert shapely.contains(windows.geometry.to_numpy(), about.geometry.to_numpy()).all()


def test_a_merge_keeps_the_ground_that_masks_left_out_of_all_inventories(tmp_path: Path) -> None:
    """The west, 400 x 800 m, is masked in one; another saw its south, 400 x 400 m."""
    hers = masked_half(tmp_path / "hers.gpkg")
    his = write(tmp_path / "his.gpkg", FIVE, tiles=tiles().iloc[:1])
    unseen = write(tmp_path / "unseen.gpkg", FIVE)
    for others, area in (((unseen,), 320_000), ((masked_half(tmp_path / "copy.gpkg"),), 320_000), ((his,), 160_000)):
        _, out = merged(hers, *others, discard_review=True)
        left_out = gpd.read_file(out, layer="masked")
        assert left_out["id"].tolist() == [1]
        assert left_out.area.sum() == pytest.approx(area)
        assert read_work(out).tables == ()
    _, out = merged(hers, his, dst_crs="EPSG:4326", discard_review=True)
    assert gpd.read_file(out, layer="masked").to_crs(UTM).area.sum() == pytest.approx(160_000, rel=1e-4)
    _, out = merged(his, unseen, discard_review=True)
    assert "masked" not in gpd.list_layers(out)["name"].tolist()


@pytest.mark.parametrize("dst_crs", [None, "EPSG:4326", "EPSG:32647"])
def test_ground_that_another_inventory_saw_whole_leaves_no_slivers_in_another_crs(
    tmp_path: Path, dst_crs: str | None
) -> None:
    """Four tiles have corners on the sides of the masked west, which has none there; then one is not seen."""
    hers = masked_half(tmp_path / "hers.gpkg")
    _, out = merged(hers, write(tmp_path / "his.gpkg", FIVE, tiles=tiles()), dst_crs=dst_crs)
    assert "masked" not in gpd.list_layers(out)["name"].tolist()
    seen = tiles().iloc[[0, 1, 3]]
    _, out = merged(hers, write(tmp_path / "his.gpkg", FIVE, tiles=seen), dst_crs=dst_crs, discard_review=True)
    left_out = gpd.read_file(out, layer="masked").to_crs(UTM)
    assert left_out.area.tolist() == pytest.approx([160_000], rel=1e-6)


def test_a_merge_gives_the_same_bytes_again(tmp_path: Path) -> None:
    hers, his = write(tmp_path / "hers.gpkg", FIVE), write(tmp_path / "his.gpkg", FIVE, [square(500, 0)])
    geolabel.merge([hers, his], tmp_path / "one.gpkg")
    geolabel.merge([hers, his], tmp_path / "two.gpkg")
    assert (tmp_path / "one.gpkg").read_bytes() == (tmp_path / "two.gpkg").read_bytes()


def _inventory_of_one_layer(path: Path, **columns: list[object]) -> Path:
    given = {"id": [1, 2, 3], "status": ["unreviewed"] * 3, "score_mean": [0.5] * 3} | columns
    outlines = [shapely.MultiPolygon([shapely.box(x, 0, x + 9, 9)]) for x in (0, 20, 40)]
    table = gpd.GeoDataFrame(given, geometry=outlines, crs="EPSG:32648")
    table.to_file(path, layer="landslides", driver="FlatGeobuf" if path.suffix == ".fgb" else "GeoJSON")
    return path


def test_a_reviewed_flatgeobuf_is_not_replaced(tmp_path: Path) -> None:
    path = _inventory_of_one_layer(tmp_path / "a.fgb")
    check_work(path)
    _inventory_of_one_layer(path, status=["accepted", "unreviewed", "rejected"])
    with pytest.raises(OutputError, match="2 reviewed polygons"):
        check_work(path)
    check_work(path, Carried(review=read_review(path)))
    check_work(path, Carried(discard=True))


def test_a_file_of_one_layer_says_which_polygons_are_candidates(tmp_path: Path) -> None:
    of = ["landslides", "candidates", "landslides"]
    found = read_review(_inventory_of_one_layer(tmp_path / "a.geojson", layer=of))
    assert found.waiting[LAYER].tolist() == ["landslides", "landslides", "candidates"]
    assert found.waiting["id"].tolist() == [1, 3, 2]
    other = read_review(_inventory_of_one_layer(tmp_path / "b.geojson", layer=["north", "south", "south"]))
    assert other.waiting[LAYER].tolist() == ["landslides"] * 3
    assert other.waiting["layer"].tolist() == ["north", "south", "south"]


def test_an_inventory_is_merged_with_others_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "a.gpkg", FIVE)
    (tmp_path / "link.gpkg").hardlink_to(path)
    with pytest.raises(OptionError, match=r"link.gpkg is given twice"):
        geolabel.merge([path, tmp_path / "link.gpkg"], tmp_path / "both.gpkg")
    assert not (tmp_path / "both.gpkg").exists()

"""Columns of files of polygons: types that outlive a command, and names that do not clash."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pyogrio
import pytest
from shapely import Polygon, box

from geolabel.errors import VectorError
from geolabel.io.read.features import read_layer
from geolabel.io.read.review import LAYER, read_review, read_work
from geolabel.io.read.typed_columns import joint_kind, read_polygon_table
from geolabel.io.write.vectors import Reviewed, write_layers
from geolabel.review.exporting import export
from geolabel.review.merging import merge

CRS = "EPSG:32648"

LARGE = 2**53 + 1
"""The smallest whole number that no floating-point number is."""


def squares(count: int, **columns: Any) -> gpd.GeoDataFrame:
    return gpd.GeoDataFrame(columns, geometry=[box(20 * k, 0, 20 * k + 10, 10) for k in range(count)], crs=CRS)


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """Polygons with columns that a person added in QGIS, in which most values are null."""
    path = tmp_path / "own.gpkg"
    squares(3, status=["accepted"] * 3).to_file(path, layer="landslides")
    with closing(sqlite3.connect(path)) as database, database:
        for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            database.execute(f'DROP TRIGGER "{name}"')
        kinds = "parcel INTEGER, seen BOOLEAN, photo BLOB, day DATE, moment DATETIME, later DATETIME, none INTEGER"
        for column in kinds.split(", "):
            database.execute(f"ALTER TABLE landslides ADD COLUMN {column}")
        database.execute(
            "UPDATE landslides SET parcel = ?, seen = 0, photo = x'00ff', day = '2024-05-01', "
            "moment = '2024-05-01T12:30:00Z' WHERE fid = 2",
            (LARGE,),
        )
    return path


def types_of(path: Path) -> dict[str, str]:
    info = pyogrio.read_info(path, layer="landslides")
    return dict(zip(info["fields"].tolist(), map(str, info["dtypes"]), strict=True))


def test_columns_of_a_person_keep_their_types_and_values_where_most_are_null(own: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gpkg"
    export(own, out)
    kept = ("parcel", "seen", "photo", "day", "moment", "later", "none")
    assert {name: types_of(out)[name] for name in kept} == {name: types_of(own)[name] for name in kept}
    with closing(sqlite3.connect(out)) as database:
        rows = database.execute("SELECT parcel, seen, photo, day, none FROM landslides ORDER BY fid").fetchall()
    assert rows == [(None,) * 5, (LARGE, 0, b"\0\xff", "2024-05-01", None), (None,) * 5]


def test_a_file_with_a_photo_has_a_whole_spatial_index(own: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gpkg"
    export(own, out)
    assert len(gpd.read_file(out, layer="landslides", bbox=(19, 0, 31, 10))) == 1
    table = gpd.read_file(out, layer="landslides")
    table.loc[1, "geometry"] = box(100, 0, 110, 10)
    table.to_file(out, layer="landslides")  # GDAL's triggers act again
    assert len(gpd.read_file(out, layer="landslides", bbox=(99, 0, 111, 10))) == 1


def test_a_photo_of_one_landslide_is_read_again_beside_an_empty_layer(own: Path, tmp_path: Path) -> None:
    once, twice = tmp_path / "once.gpkg", tmp_path / "twice.gpkg"
    export(own, once)
    assert "candidates" in gpd.list_layers(once)["name"].tolist()
    assert read_review(once).columns["photo"] == "binary"
    assert read_work(once).polygons["accepted"] == 3
    export(once, twice)
    with closing(sqlite3.connect(twice)) as database:
        rows = database.execute("SELECT parcel, photo FROM landslides ORDER BY fid").fetchall()
    assert rows == [(None, None), (LARGE, b"\0\xff"), (None, None)]


def test_a_photo_is_merged_with_an_inventory_whose_column_is_empty(own: Path, tmp_path: Path) -> None:
    there = squares(9, status=["accepted"] * 9, photo=[None] * 9).iloc[8:]
    there.to_file(tmp_path / "none.geojson")
    merge([tmp_path / "none.geojson", own], tmp_path / "out.gpkg")
    found = gpd.read_file(tmp_path / "out.gpkg", layer="landslides")["photo"]
    assert found.dropna().tolist() == [b"\0\xff"]


def test_photos_that_are_empty_in_every_layer_stay_photos(own: Path, tmp_path: Path) -> None:
    with closing(sqlite3.connect(own)) as database, database:
        database.execute("UPDATE landslides SET photo = NULL")
    export(own, tmp_path / "once.gpkg")
    export(tmp_path / "once.gpkg", tmp_path / "twice.gpkg")
    with closing(sqlite3.connect(tmp_path / "twice.gpkg")) as database:
        columns = database.execute("SELECT name, type FROM pragma_table_info('landslides')").fetchall()
    assert ("photo", "BLOB") in columns


@pytest.mark.parametrize("suffix", ["geojson", "shp", "fgb", "parquet", "kmz", "zip"])
def test_formats_without_binary_data_name_the_photos_that_they_leave_out(
    own: Path, tmp_path: Path, suffix: str, caplog: pytest.LogCaptureFixture
) -> None:
    export(own, tmp_path / f"out.{suffix}")
    assert f"out.{suffix} holds the other columns, without the binary columns photo" in caplog.text


def test_inventories_of_which_one_has_whole_numbers_are_merged_to_real_numbers(tmp_path: Path) -> None:
    squares(1, depth=[3]).to_file(tmp_path / "a.gpkg")
    squares(2, depth=[0.5, 1.5]).iloc[1:].to_file(tmp_path / "b.gpkg")
    merge([tmp_path / "a.gpkg", tmp_path / "b.gpkg"], tmp_path / "out.gpkg")
    assert gpd.read_file(tmp_path / "out.gpkg", layer="landslides")["depth"].tolist() == [3.0, 1.5]
    with pytest.raises(VectorError, match="the column photo holds binary data in one layer"):
        joint_kind("photo", "binary", "text")


def test_values_that_do_not_fit_a_known_column_are_kept_under_another_name(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "foreign.geojson"
    values: dict[str, Any] = {
        "confidence": ["high", None],
        "id": ["x1", "x2"],
        "class": [1, 2],
        "event_date": [20240501, 20240502],
        "area_m2": ["100.5", "90"],
    }
    squares(2, **values).to_file(path)
    table = read_polygon_table(path, "foreign")
    assert (table["confidence_"][0], table["confidence_"].isna()[1]) == ("high", True)
    assert table["id_"].tolist() == ["x1", "x2"]
    assert table["event_date_"].tolist() == [20240501, 20240502]
    assert table["class"].tolist() == ["1", "2"]
    assert table["area_m2"].tolist() == [100.5, 90]
    assert "the column confidence holds 'high', which is not a number: it is kept as confidence_" in caplog.text
    assert "the column id holds 'x1', which is not a whole number: it is kept as id_" in caplog.text
    export(path, tmp_path / "out.gpkg")
    kept = gpd.read_file(tmp_path / "out.gpkg", layer="landslides")
    assert (kept["confidence_"][0], kept["class"].tolist()) == ("high", ["1", "2"])
    assert kept["confidence"].isna().all()


def test_names_count_in_upper_and_lower_case(tmp_path: Path) -> None:
    path = tmp_path / "foreign.parquet"
    squares(1, STATUS=["accepted"], Notes=["steep"], Class=["rockfall"]).to_parquet(path)
    review = read_review(path)
    assert review.kept[["status", "notes", "class"]].to_numpy().tolist() == [["accepted", "steep", "rockfall"]]
    assert not review.columns


def test_a_file_of_one_layer_is_split_by_its_column_layer_in_any_case(tmp_path: Path) -> None:
    path = tmp_path / "page.parquet"
    squares(3, STATUS=["unreviewed"] * 3, Layer=["landslides", "candidates", "rejected"], ID=[1, 2, 3]).to_parquet(path)
    review = read_review(path)
    waiting = zip(review.waiting["id"].tolist(), review.waiting[LAYER], strict=True)
    assert list(waiting) == [(1, "landslides"), (2, "candidates")]
    assert (review.rejected["id"].tolist(), review.columns) == ([3], {})


def test_columns_that_differ_in_case_alone_are_both_kept(tmp_path: Path) -> None:
    path = tmp_path / "foreign.geojson"
    squares(1, notes=["a"], Notes=["b"], Owner=["c"], OWNER=["d"]).to_file(path)
    export(path, tmp_path / "out.gpkg")
    kept = gpd.read_file(tmp_path / "out.gpkg", layer="landslides")
    assert kept[["notes", "Notes_", "Owner", "OWNER_"]].to_numpy().tolist() == [["a", "b", "c", "d"]]


@pytest.mark.parametrize("suffix", ["gpkg", "geojson", "parquet"])
def test_names_that_differ_in_case_between_layers_are_one_column(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / "slides.gpkg"
    squares(1, status=["accepted"], Depth=[3]).to_file(path, layer="landslides")
    squares(2, status=["accepted"] * 2, depth=[1, 4]).iloc[1:].to_file(path, layer="candidates")
    review = read_review(path)
    assert (review.columns, review.kept["Depth"].tolist()) == ({"Depth": "int"}, [3, 4])
    export(path, tmp_path / f"out.{suffix}")
    found = read_layer(tmp_path / f"out.{suffix}")
    assert found["Depth"].tolist() == [3, 4]


def test_names_that_differ_in_case_between_inventories_are_one_column(tmp_path: Path) -> None:
    squares(1, depth=[3]).to_file(tmp_path / "a.gpkg")
    squares(2, DEPTH=[0.5, 1.5]).iloc[1:].to_file(tmp_path / "b.gpkg")
    merge([tmp_path / "a.gpkg", tmp_path / "b.gpkg"], tmp_path / "out.gpkg")
    assert gpd.read_file(tmp_path / "out.gpkg", layer="landslides")["depth"].tolist() == [3.0, 1.5]


def test_names_of_a_person_that_end_with_a_space_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "slides.gpkg"
    squares(2, **{"status": ["accepted", "rejected"], "depth ": [7, 8], "why ": ["a", "b"]}).to_file(path)
    export(path, tmp_path / "out.gpkg")
    kept, refused = (gpd.read_file(tmp_path / "out.gpkg", layer=name) for name in ("landslides", "rejected"))
    assert kept[["depth ", "why _"]].to_numpy().tolist() == [[7, "a"]]
    assert refused[["depth ", "why _"]].to_numpy().tolist() == [[8, "b"]]


@pytest.mark.parametrize("suffix", ["gpkg", "parquet", "geojson", "shp"])
@pytest.mark.parametrize(
    ("numbers", "expected", "kind"),
    [([0, 1], [1, None, 0, 1], "int"), ([0.5, 1], [1, None, 0.5, 1], "real")],
)
def test_a_check_box_beside_numbers_is_a_number(
    tmp_path: Path, numbers: list[float], expected: list[float | None], kind: str, suffix: str
) -> None:
    path, out = tmp_path / "slides.gpkg", tmp_path / f"out.{suffix}"
    rows = squares(4, status=["accepted"] * 4)
    rows.iloc[:2].assign(seen=pd.array([True, None], "boolean")).to_file(path, layer="landslides")
    rows.iloc[2:].assign(seen=numbers).to_file(path, layer="candidates")
    assert read_review(path).columns == {"seen": kind}
    export(path, out)
    found = read_layer(out)["seen"]
    assert [None if pd.isna(one) else one for one in found] == expected


def test_lists_of_geojson_become_texts_in_json(tmp_path: Path) -> None:
    path = tmp_path / "lists.geojson"
    shape = '{"type":"Polygon","coordinates":[[[0,0],[1,0],[1,1],[0,0]]]}'
    said = '{"prompts":[3,4],"tags":["a","é"]}'
    path.write_text(f'{{"type":"Feature","properties":{said},"geometry":{shape}}}', encoding="utf-8")
    table = read_polygon_table(path, "lists")
    assert table[["prompts", "tags"]].to_numpy().tolist() == [["[3, 4]", '["a", "é"]']]


def test_large_numbers_are_of_the_rows_that_have_an_outline(tmp_path: Path) -> None:
    path = tmp_path / "holes.gpkg"
    table = squares(4, parcel=pd.array([1, None, LARGE, LARGE + 2], "Int64"))
    table.loc[[0, 2], "geometry"] = np.array([None, Polygon()], object)
    table.to_file(path, layer="landslides")
    found = read_polygon_table(path, "landslides")["parcel"]
    assert [None if value is pd.NA else int(value) for value in found] == [None, LARGE + 2]


@pytest.mark.parametrize(("recorded", "edited"), [(float(2**53), 0), (LARGE, 0), (float(2**53 + 4), 1), (LARGE + 1, 1)])
def test_large_numbers_that_an_earlier_version_recorded_as_rounded_are_no_edits(
    tmp_path: Path, recorded: float, edited: int
) -> None:
    """2**53 + 1 is halfway between two floating-point numbers, and is rounded to the even one, 2**53."""
    path = tmp_path / "slides.gpkg"
    rows = squares(1, id=[1], parcel=[LARGE])
    review = Reviewed(frozenset(), rows.iloc[:0], {"parcel": "int"}, 1)
    write_layers(path, rows, None, None, {}, crs=rows.crs, reviewed=review)
    with closing(sqlite3.connect(path)) as database, database:
        (said,) = database.execute("SELECT attributes FROM geolabel_written WHERE layer = 'landslides'").fetchone()
        said = json.dumps(json.loads(said) | {"parcel": recorded})
        database.execute("UPDATE geolabel_written SET attributes = ? WHERE layer = 'landslides'", (said,))
    assert read_review(path).counts["edited"] == edited


def test_layers_in_several_crss_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "slides.gpkg"
    squares(1, status=["accepted"]).to_crs(4326).to_file(path, layer="landslides")
    squares(1, status=["accepted"]).to_file(path, layer="candidates")
    with pytest.raises(VectorError, match=r"\(landslides in WGS 84 and candidates in WGS 84 / UTM zone 48N\)"):
        read_review(path)


def test_a_reprojected_layer_beside_the_prompts_of_its_run_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "slides.gpkg"
    tiles = squares(1, status=["clear"], tile=[0])
    write_layers(path, squares(1, id=[1]), None, tiles, {}, crs=tiles.crs)
    assert len(read_review(path).waiting) == 1
    squares(1, id=[1]).to_crs(4326).to_file(path, layer="landslides")
    with pytest.raises(VectorError, match=r"edits of its outlines cannot be recognised: reproject landslides to that"):
        read_review(path)

"""Styles that a person saved in a GeoPackage, and columns of windows: what a person did outlives every command."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import geopandas as gpd
import pyogrio
import pytest
from shapely import box

from geolabel.errors import OutputError
from geolabel.io.layer_styles import saved_styles
from geolabel.io.read.review import Carried, check_work, read_review
from geolabel.io.write.vectors import Reviewed, write_layers
from geolabel.review.exporting import export
from geolabel.review.next_windows import next_windows

CRS = "EPSG:32648"


@pytest.fixture
def slides(tmp_path: Path) -> Path:
    return write(tmp_path / "slides.gpkg")


def write(path: Path, carried: Carried | None = None, reviewed: Reviewed | None = None) -> Path:
    table = gpd.GeoDataFrame(
        {"id": [1, 2], "confidence": [0.5, 0.9], "gsd_m": [0.5, 0.5], "status": ["unreviewed"] * 2},
        geometry=[box(0, 0, 10, 10), box(100, 0, 120, 20)],
        crs=CRS,
    )
    given = {} if carried is None else {"carried": carried, "overwrite": True}
    write_layers(path, table, None, None, {}, crs=table.crs, reviewed=reviewed, **given)
    return path


def save_style(path: Path, name: str, description: str = "2026-11-29", *, layer: str = "landslides") -> None:
    """Save a style as QGIS does, as the default of a layer."""
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE layer_styles SET useAsDefault = 0 WHERE f_table_name = ?", (layer,))
        database.execute("DELETE FROM layer_styles WHERE f_table_name = ? AND styleName = ?", (layer, name))
        database.execute(
            "INSERT INTO layer_styles (f_table_catalog, f_table_schema, f_table_name, f_geometry_column, styleName, "
            "styleQML, styleSLD, useAsDefault, description, owner) VALUES ('', '', ?, 'geom', ?, '<q/>', '', 1, ?, '')",
            (layer, name, description),
        )


def styles(path: Path) -> list[tuple[str, str, int]]:
    with closing(sqlite3.connect(path)) as database:
        return database.execute("SELECT styleName, styleQML, useAsDefault FROM layer_styles ORDER BY id").fetchall()


def test_a_file_with_a_style_of_a_person_is_not_replaced(slides: Path) -> None:
    check_work(slides)
    save_style(slides, "mine")
    with pytest.raises(OutputError, match=r"holds styles that a person saved \(mine\): keep reviewed polygons with"):
        check_work(slides)
    check_work(slides, Carried(discard=True))


@pytest.mark.parametrize("name", ["mine", "landslides"])
def test_a_style_of_a_person_comes_into_the_file_that_keeps_the_review(slides: Path, name: str) -> None:
    save_style(slides, name)
    write(slides, Carried(review=read_review(slides)))
    own = [(name, "<q/>", 1)]
    assert [style for style in styles(slides) if style[1] == "<q/>"] == own
    assert [style[0] for style in styles(slides) if style[2]] == [name]
    assert saved_styles(slides) == [name]


def test_a_style_is_not_handed_on_to_another_file(slides: Path, tmp_path: Path) -> None:
    save_style(slides, "mine")
    export(slides, tmp_path / "other.gpkg")
    write(tmp_path / "next.gpkg", Carried(review=read_review(slides)))
    assert saved_styles(tmp_path / "other.gpkg") == saved_styles(tmp_path / "next.gpkg") == []


def test_windows_keep_the_style_and_the_columns_of_a_person(slides: Path) -> None:
    next_windows(slides)
    save_style(slides, "mine", layer="review")
    with closing(sqlite3.connect(slides)) as database, database:
        for column in ("who TEXT", "day DATE", "moment DATETIME", "hard BOOLEAN", "minutes INTEGER"):
            database.execute(f"ALTER TABLE review ADD COLUMN {column}")
        database.execute(
            "UPDATE review SET who = 'Ana', day = '2026-11-29', moment = '2026-11-29T12:30:00.000Z', hard = 0, "
            "minutes = 9007199254740993, status = 'reviewed' WHERE fid = 1"
        )
    said = ["Ana", "2026-11-29", "2026-11-29T12:30:00.000Z", 0, 9007199254740993]
    assert next_windows(slides).kept == 1
    assert windows(slides)[0] == tuple(said)
    assert [style[0] for style in styles(slides) if style[2]] == ["landslides", "mine"]
    info = pyogrio.read_info(slides, layer="review")
    kinds = dict(zip(info["fields"], map(str, info["dtypes"]), strict=True))
    assert [kinds[name] for name in ("day", "hard", "minutes")] == ["datetime64[D]", "bool", "int64"]


def test_columns_of_windows_come_into_an_export(slides: Path, tmp_path: Path) -> None:
    next_windows(slides)
    with closing(sqlite3.connect(slides)) as database, database:
        database.execute("ALTER TABLE review ADD COLUMN who TEXT")
        database.execute("UPDATE review SET who = 'Ana', status = 'reviewed'")
    export(slides, tmp_path / "out.gpkg")
    assert set(gpd.read_file(tmp_path / "out.gpkg", layer="review")["who"]) == {"Ana"}


def windows(path: Path) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(path)) as database:
        return database.execute("SELECT who, day, moment, hard, minutes FROM review ORDER BY who IS NULL").fetchall()

"""Commands that use a person's review: comparing, merging, where to look next, and what the review says of the rest."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import geopandas as gpd
import pyogrio
import pyproj
import pytest
import shapely

import geolabel
from geolabel.cli.main import run as command
from geolabel.errors import OptionError
from geolabel.io.columns import LANDSLIDE_COLUMNS
from geolabel.io.write.vectors import write_layers

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

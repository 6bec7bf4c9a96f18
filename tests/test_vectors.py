import json
import logging
import resource
import shutil
import sqlite3
import subprocess
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from xml.etree import ElementTree as ET

import geopandas as gpd
import numpy as np
import pandas as pd
import pyogrio
import pyproj
import pytest
import shapely
from affine import Affine
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from shapely import MultiPoint, Point, Polygon, box

from geolabel.errors import OutputError, VectorError
from geolabel.io.columns import LANDSLIDE_COLUMNS
from geolabel.io.read.features import read_aoi, read_prompts
from geolabel.io.styles import style_of
from geolabel.io.write.exchange import short_names
from geolabel.io.write.geopackage import read_provenance
from geolabel.io.write.vectors import SUFFIXES, write_inventory
from geolabel.prompts import PADDING, Prompts
from geolabel.scene import Grid

UTM = pyproj.CRS(32648)
ENGINEERING = pyproj.CRS.from_wkt(
    'ENGCRS["pit",EDATUM["pit"],CS[Cartesian,2],AXIS["x",east],AXIS["y",north],LENGTHUNIT["foot",0.3048]]'
)
GRIDS = {
    "utm": Grid(UTM, Affine(0.2, 0, 512_345.6, 0, -0.2, 4_321_098.7), 300, 400),
    "rotated": Grid(UTM, Affine.translation(5e5, 3e6) * Affine.rotation(30) * Affine.scale(0.5, -0.7), 300, 400),
    "south-up": Grid(UTM, Affine(0.5, 0, 5e5, 0, 0.5, 3e6), 300, 400),
    "degrees": Grid(pyproj.CRS(4326), Affine(2e-6, 0, 103.9, 0, -2e-6, 31.2), 300, 400),
    "feet": Grid(pyproj.CRS(2263), Affine(3, 0, 9e5, 0, -3, 2e5), 300, 400),
    "custom": Grid(pyproj.CRS("+proj=laea +lat_0=30 +lon_0=100 +ellps=GRS80"), Affine(9, 0, 7, 0, -9, 5), 300, 400),
    "site": Grid(ENGINEERING, Affine(1, 0, 0, 0, -1, 300), 300, 400),
    "none": Grid(None, Affine(1, 0, 0, 0, -1, 0), 300, 400, unit_m=0.5),
}
GRID = Grid(UTM, Affine(1, 0, 1000, 0, -1, 2000), 100, 200)
"""Pixel (row, col) has its middle at x = 1000.5 + col, y = 1999.5 - row."""


def slides_on(grid: Grid) -> gpd.GeoDataFrame:
    corners = [grid.transform * p for p in ((10, 10), (60, 10), (60, 40), (10, 40))]
    return gpd.GeoDataFrame(
        {
            "id": [1, 2],
            "class": ["landslide", "landslide"],
            "area_m2": [1500.5, 12.0],
            "score_mean": [0.75, np.nan],
            "n_prompts": [3, None],
            "event_date": ["2008-05-12", None],
        },
        geometry=[Polygon(corners), shapely.MultiPolygon([Polygon(corners)])],
        crs=grid.crs,
    )


def tiles_on(grid: Grid) -> gpd.GeoDataFrame:
    frame = gpd.GeoDataFrame({"tile": [0], "status": ["failed"]}, geometry=slides_on(grid).geometry[:1], crs=grid.crs)
    return frame.assign(probability=np.nan, message="truncated")


def prompts_on(grid: Grid) -> Prompts:
    box_and_points = Prompts.build(
        boxes=np.array([[10, 20, 60, 45], [0, 0, grid.width, grid.height]]),
        points=np.array([[[33.25, 30.5], [12, 22]], [[5, 6], [0, 0]]]),
        labels=np.array([[1, 0], [1, PADDING]]),
        scores=np.array([0.625, 0.1]),
    )
    alone = Prompts.build(points=np.array([[[70, 80]]]), scores=np.array([0.3]), ids=np.array([2]))
    return Prompts.concatenate([box_and_points, alone])


def write(path: Path, grid: Grid, *, overwrite: bool = False, **changes: object) -> None:
    given_ = {"landslides": slides_on(grid), "prompts": prompts_on(grid), "tiles": tiles_on(grid)} | changes
    write_inventory(path, **given_, provenance={"version": "1.0"}, grid=grid, overwrite=overwrite)  # type: ignore[arg-type]


def rows(path: Path, query: str) -> list[tuple]:
    connection = sqlite3.connect(path)
    try:
        return connection.execute(query).fetchall()
    finally:
        connection.close()


def assert_same(one: Prompts, two: Prompts, tolerance: float = 1e-6) -> None:
    np.testing.assert_array_equal(one.ids, two.ids)
    np.testing.assert_array_equal(one.class_ids, two.class_ids)
    np.testing.assert_array_equal(one.scores, two.scores)
    np.testing.assert_allclose(one.boxes, two.boxes, rtol=0, atol=tolerance)
    for k in range(len(one)):
        used = [p.labels[k] != PADDING for p in (one, two)]
        np.testing.assert_array_equal(one.labels[k][used[0]], two.labels[k][used[1]])
        np.testing.assert_allclose(one.points[k][used[0]], two.points[k][used[1]], rtol=0, atol=tolerance)


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """What a full disk does to a program that writes more than `size` bytes into a file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# --- the inventory ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_layers_are_typed_and_lie_where_they_should(tmp_path: Path, grid: Grid):
    path = tmp_path / "slides.gpkg"
    write(path, grid)
    spatial = rows(path, "SELECT table_name, geometry_type_name, srs_id, z FROM gpkg_geometry_columns")
    assert [(name, kind) for name, kind, _, _ in spatial] == [
        ("landslides", "MULTIPOLYGON"),
        ("prompts", "POLYGON"),
        ("prompt_points", "POINT"),
        ("tiles", "POLYGON"),
    ]
    assert pyogrio.list_layers(path)[0][0] == "landslides"
    back = gpd.read_file(path, layer="landslides")
    assert list(back.columns) == [*LANDSLIDE_COLUMNS, "geometry"]
    assert "fid" not in back.columns
    assert set(back.geom_type) == {"MultiPolygon"}
    assert back.geometry[0].equals_exact(shapely.MultiPolygon([slides_on(grid).geometry[0]]), 0)
    if grid.crs is None:
        assert back.crs is None
    elif grid is not GRIDS["site"]:
        to_own = pyproj.Transformer.from_crs(grid.crs, back.crs, always_xy=True)
        np.testing.assert_allclose(to_own.transform(*grid.center), grid.center, rtol=1e-9, atol=1e-9)
        assert (back.crs.to_epsg() == grid.crs.to_epsg()) or grid is GRIDS["custom"]


def test_columns_have_their_types_and_null_is_null(tmp_path: Path):
    path = tmp_path / "slides.gpkg"
    write(path, GRID)
    kinds = {name: kind for _, name, kind, *_ in rows(path, "PRAGMA table_info(landslides)")}
    words = {"int": "INTEGER", "real": "REAL", "text": "TEXT", "date": "DATE"}
    assert kinds == {"fid": "INTEGER", "geom": "MULTIPOLYGON"} | {n: words[k] for n, k in LANDSLIDE_COLUMNS.items()}
    first, second = rows(path, "SELECT id, score_mean, n_prompts, event_date, status, notes, stability FROM landslides")
    assert first == (1, 0.75, 3, "2008-05-12", "unreviewed", None, None)
    assert second == (2, None, None, None, "unreviewed", None, None)
    assert rows(path, "SELECT tile, status, probability, message FROM tiles") == [(0, "failed", None, "truncated")]


def test_what_was_not_found_is_empty_and_typed(tmp_path: Path):
    path = tmp_path / "slides.gpkg"
    empty = gpd.GeoDataFrame({"id": []}, geometry=[], crs=UTM)
    tiles = gpd.GeoDataFrame({"tile": []}, geometry=[], crs=UTM)
    write(path, GRID, landslides=empty, prompts=Prompts.build(), tiles=tiles)
    for layer, kind in {"landslides": "MultiPolygon", "prompts": "Polygon", "prompt_points": "Point"}.items():
        info = pyogrio.read_info(path, layer=layer)
        assert (info["features"], info["geometry_type"]) == (0, kind)
    assert pyogrio.read_info(path, layer="landslides")["dtypes"][0] == "int64"
    assert len(read_prompts(path, GRID)) == 0


def test_layers_of_runs_without_prompts_are_left_out(tmp_path: Path):
    path = tmp_path / "slides.gpkg"
    write(path, GRID, prompts=None, tiles=None)
    assert [name for (name,) in rows(path, "SELECT table_name FROM gpkg_geometry_columns")] == ["landslides"]


def test_every_layer_has_a_style_that_qgis_finds(tmp_path: Path):
    path = tmp_path / "slides.gpkg"
    write(path, GRID)
    found = rows(
        path,
        "SELECT f_table_name, styleQML FROM layer_styles JOIN gpkg_geometry_columns ON f_table_name = table_name "
        "AND f_geometry_column = column_name WHERE useAsDefault AND f_table_catalog = '' AND f_table_schema = ''",
    )
    assert [name for name, _ in found] == ["landslides", "prompts", "prompt_points", "tiles"]
    for name, qml in found:
        root = ET.fromstring(qml)
        rules = root.findall("./renderer-v2/rules//rule")
        symbols = {symbol.get("name") for symbol in root.findall("./renderer-v2/symbols/symbol")}
        assert {rule.get("symbol") for rule in rules} - {None} == symbols
        assert len({rule.get("key") for rule in rules}) == len(rules)
        assert {column.get("name") for column in root.findall(".//column")} == {
            row[1] for row in rows(path, f"PRAGMA table_info({name})")
        } - {"fid", "geom"}
        unticked = root.findall("./renderer-v2/rules/rule[@checkstate='0']")
        assert len(unticked) == (name != "landslides")


def rules_of(columns: dict, layer: str = "landslides") -> list[str | None]:
    style = style_of(layer, pd.DataFrame(columns), LANDSLIDE_COLUMNS)
    return [rule.get("label") for rule in ET.fromstring(style.qml()).findall(".//rule")]


def test_the_legend_names_the_confidence_and_has_no_empty_class():
    last = "unknown, or drawn by hand"
    decided = ["accepted", "rejected"]
    assert rules_of({"confidence": [0.2, 0.39, 1.0, None]}) == [
        *decided,
        "confidence, not reviewed",
        "0.8 to 1",
        "0.2 to 0.4",
        last,
    ]
    assert rules_of({"confidence": [None], "score_mean": [0.61]}) == [
        *decided,
        "mean score, not reviewed",
        "0.6 to 0.8",
        last,
    ]
    assert rules_of({"confidence": []}) == [*decided, "not reviewed"]


def test_the_form_begins_with_the_review_and_says_units():
    qml = style_of("landslides", pd.DataFrame(), {**LANDSLIDE_COLUMNS, "visited": "bool"}).qml()
    root = ET.fromstring(qml)
    first = root.find("./attributeEditorForm/attributeEditorContainer")
    assert first.get("name") == "Review"
    assert [field.get("name") for field in first] == ["id", "status", "notes", "event_date", "class", "visited"]
    widgets = {field.get("name"): field.find("editWidget").get("type") for field in root.find("./fieldConfiguration")}
    assert {name: widgets[name] for name in ("status", "notes", "event_date", "area_m2")} == {
        "status": "ValueMap",
        "notes": "TextEdit",
        "event_date": "DateTime",
        "area_m2": "Range",
    }
    aliases = {alias.get("field"): alias.get("name") for alias in root.find("./aliases")}
    assert aliases["area_m2"] == "Area (m²)"
    free = {field.get("name") for field in root.find("./editable") if field.get("editable") == "1"}
    assert free == {"status", "notes", "event_date", "class", "visited"}
    assert root.findtext("previewExpression") == """concat(coalesce("class", 'landslide'), ' ', "id")"""


def test_every_column_has_a_description_in_the_file(tmp_path: Path):
    path = tmp_path / "slides.gpkg"
    write(path, GRID)
    described = rows(path, "SELECT table_name, column_name FROM gpkg_data_columns WHERE description IS NOT NULL")
    tables = ("landslides", "prompts", "prompt_points", "tiles")
    columns = [(table, row[1]) for table in tables for row in rows(path, f"PRAGMA table_info({table})")]
    assert sorted(described) == sorted(pair for pair in columns if pair[1] not in ("fid", "geom"))


def test_provenance_is_json_in_the_metadata(tmp_path: Path):
    path = tmp_path / "slides.gpkg"
    record = {"scene": "Überhang.tif", "networks": [{"sha256": "ab"}], "size": None}
    write_inventory(path, slides_on(GRID), None, None, record, grid=GRID)
    ((text, scope),) = rows(
        path,
        "SELECT metadata, reference_scope FROM gpkg_metadata JOIN gpkg_metadata_reference ON md_file_id = id",
    )
    assert json.loads(text) == record
    assert scope == "geopackage"
    assert read_provenance(path) == record
    with pytest.raises(ValueError, match="Out of range float"):
        write_inventory(path, slides_on(GRID), None, None, {"loss": np.nan}, grid=GRID, overwrite=True)


@pytest.mark.parametrize(
    ("name", "suffix"),
    [
        (name, suffix)
        for name in ("utm", "custom", "none")
        for suffix in SUFFIXES
        if name != "none" or suffix not in (".geojson", ".kmz")
    ],
)
def test_the_same_input_gives_the_same_bytes(tmp_path: Path, name: str, suffix: str):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / f"slides{suffix}", GRIDS[name])
    one, other = ((tmp_path / folder / f"slides{suffix}").read_bytes() for folder in ("a", "b"))
    assert one == other


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_a_flatgeobuf_holds_the_landslides_of_the_geopackage(tmp_path: Path, grid: Grid):
    for name in ("slides.gpkg", "slides.fgb"):
        write(tmp_path / name, grid)
    one, other = (pyogrio.read_dataframe(tmp_path / name, layer="landslides") for name in ("slides.gpkg", "slides.fgb"))
    other = other.sort_values("id", ignore_index=True)  # it has the order of its spatial index
    assert list(other.columns) == [*LANDSLIDE_COLUMNS, "geometry"]
    assert other["event_date"].equals(one["event_date"].astype(other["event_date"].dtype))
    for column in set(LANDSLIDE_COLUMNS) - {"event_date"}:
        pd.testing.assert_series_equal(one[column], other[column])
    assert shapely.equals_identical(one.geometry.to_numpy(), other.geometry.to_numpy()).all()
    assert one.crs == other.crs


def test_a_flatgeobuf_keeps_the_provenance_and_names_what_it_leaves_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    write(tmp_path / "slides.fgb", GRID)
    info = pyogrio.read_info(tmp_path / "slides.fgb")
    assert json.loads(info["layer_metadata"]["provenance"]) == {"version": "1.0"}
    assert [name for name, _ in pyogrio.list_layers(tmp_path / "slides.fgb")] == ["landslides"]
    (said,) = (record.getMessage() for record in caplog.records if record.levelname == "WARNING")
    assert "slides.fgb holds the layer landslides, without styles" in said
    assert "left out: prompts (2), prompt_points (4), tiles (1): write a .gpkg to keep them" in said


def test_an_empty_flatgeobuf_has_its_columns(tmp_path: Path):
    write(tmp_path / "slides.fgb", GRID, landslides=slides_on(GRID)[:0], prompts=None, tiles=None)
    info = pyogrio.read_info(tmp_path / "slides.fgb")
    assert pyogrio.read_dataframe(tmp_path / "slides.fgb").empty
    assert list(info["fields"]) == list(LANDSLIDE_COLUMNS)


def test_one_file_without_write_ahead_log_and_with_indices(tmp_path: Path):
    path = tmp_path / "slides.gpkg"
    write(path, GRID)
    header = path.read_bytes()[:100]
    assert header[18:20] == b"\x01\x01"  # rollback journal; 2 would be a write-ahead log
    indexed = rows(path, "SELECT table_name FROM gpkg_extensions WHERE extension_name = 'gpkg_rtree_index'")
    assert len(indexed) == 4
    read_prompts(path, GRID)
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_is_replaced_only_when_asked_and_only_by_a_finished_one(tmp_path: Path):
    path = tmp_path / "slides.gpkg"
    write(path, GRID)
    before = path.read_bytes()
    with pytest.raises(OutputError, match="exists: give --overwrite"):
        write(path, GRID)
    broken = slides_on(GRID).assign(colour="red")
    with pytest.raises(ValueError, match=r"landslides has no columns \['colour'\]"):
        write(path, GRID, landslides=broken, overwrite=True)
    lines = tiles_on(GRID).set_geometry([shapely.LineString([(0, 0), (1, 1)])], crs=UTM)
    with pytest.raises(ValueError, match=r"tiles takes no \['LineString'\]"):
        write(path, GRID, tiles=lines, overwrite=True)
    with files_of_at_most(100_000), pytest.raises(OutputError, match=r"slides\.gpkg could not be written"):
        write(path, GRID, overwrite=True)
    assert path.read_bytes() == before
    write(path, GRID, landslides=slides_on(GRID)[:1], overwrite=True)
    assert rows(path, "SELECT count(*) FROM landslides") == [(1,)]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("slides.kml", r"must end with \.gpkg, \.fgb"),
        ("nowhere/slides.gpkg", "does not exist"),
        ("f.gpkg", "is a folder"),
    ],
)
def test_places_that_cannot_be_written(tmp_path: Path, name: str, message: str):
    (tmp_path / "f.gpkg").mkdir()
    with pytest.raises(OutputError, match=message):
        write(tmp_path / name, GRID, overwrite=True)


def has_validator() -> bool:
    python = "/usr/bin/python3"
    command = [python, "-c", "import osgeo_utils.samples.validate_gpkg"]
    return shutil.which(python) is not None and subprocess.run(command, capture_output=True).returncode == 0


@pytest.mark.skipif(not has_validator(), reason="needs Debian's python3-gdal, which has a GeoPackage validator")
@pytest.mark.parametrize("name", ["utm", "custom", "none"])
def test_the_validator_finds_no_fault(tmp_path: Path, name: str):
    path = tmp_path / "slides.gpkg"
    write(path, GRIDS[name])
    command = ["/usr/bin/python3", "-m", "osgeo_utils.samples.validate_gpkg", str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


# --- prompts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_prompts_come_back_as_they_were_written(tmp_path: Path, grid: Grid):
    path = tmp_path / "slides.gpkg"
    write(path, grid)
    # whole, half and quarter pixels come back exactly
    assert_same(read_prompts(path, grid), prompts_on(grid), tolerance=0)


@st.composite
def prompts_strategy(draw: st.DrawFn) -> Prompts:
    k, p = draw(st.integers(1, 5)), draw(st.integers(0, 3))
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 250, (k, 2))
    boxes = np.concatenate([low, low + rng.uniform(1, 50, (k, 2))], axis=1)
    labels = rng.integers(-1, 2, (k, p)).astype(np.int8)
    boxes[(labels == 1).any(axis=1) & (rng.random(k) < 0.5)] = np.nan
    points = rng.uniform(0, 299, (k, p, 2))
    return Prompts.build(
        boxes=boxes,
        points=points,
        labels=labels,
        class_ids=rng.integers(0, 2, k),
        scores=rng.random(k),
        ids=np.sort(rng.choice(1000, k, replace=False)),
    )


@given(prompts=prompts_strategy(), name=st.sampled_from(sorted(GRIDS)))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_prompts_survive_the_round_trip(tmp_path: Path, prompts: Prompts, name: str):
    grid, path, classes = GRIDS[name], tmp_path / "slides.gpkg", ("landslide", "debris flow")
    once = []
    for _ in range(2):
        write_inventory(path, slides_on(grid), prompts, None, {}, grid=grid, classes=classes, overwrite=True)
        once.append(read_prompts(path, grid, classes=classes))
        assert_same(once[-1], prompts)
        prompts = once[-1]
    assert_same(once[0], once[1], tolerance=0)


def drawn(path: Path, geometry: list, crs: object = UTM, layer: str = "drawn", **columns: list) -> Path:
    gpd.GeoDataFrame(columns, geometry=geometry, crs=crs).to_file(path, layer=layer, driver="GPKG")
    return path


def test_points_join_by_number_or_by_place_or_stand_alone(tmp_path: Path):
    path = tmp_path / "mine.gpkg"
    big, small, apart = box(1010, 1910, 1090, 1990), box(1020, 1960, 1040, 1980), box(1100, 1950, 1110, 1960)
    drawn(path, [big, small, apart], layer="boxes", prompt=[5, None, 9])
    points = [Point(1030.5, 1970.5), Point(1080.5, 1920.5), Point(1150.5, 1999.5), Point(1160.5, 1990.5)]
    drawn(
        path,
        [*points, Point(1105.5, 1955.5)],
        layer="points",
        prompt=[None, None, None, 9, 7],
        label=[1, 0, None, 1, 1],
    )
    prompts = read_prompts(path, GRID)
    assert prompts.ids.tolist() == [5, 7, 9, 10, 11]
    np.testing.assert_array_equal(prompts.boxes[0], [10, 10, 90, 90])  # big, with the point that only it holds
    np.testing.assert_array_equal(prompts.points[0, 0], [80, 79])
    assert prompts.labels[:, 0].tolist() == [0, 1, 1, 1, 1]
    assert prompts.has_box.tolist() == [True, False, True, True, False]
    np.testing.assert_array_equal(prompts.points[1, 0], [105, 44])  # number 7 has no box, so it stands alone
    np.testing.assert_array_equal(prompts.points[2, 0], [160, 9])  # far off, but its number is that of a box
    np.testing.assert_array_equal(prompts.boxes[3], [20, 20, 40, 40])  # small is the smaller of two around the point
    np.testing.assert_array_equal(prompts.points[3, 0], [30, 29])
    np.testing.assert_array_equal(prompts.points[4, 0], [150, 0])
    assert prompts.scores.tolist() == [1] * 5
    assert prompts.class_ids.tolist() == [0] * 5


def test_a_copied_box_becomes_another_prompt(tmp_path: Path):
    path = drawn(tmp_path / "a.gpkg", [box(1000, 1990, 1010, 2000), box(1050, 1990, 1060, 2000)], prompt=[3, 3])
    prompts = read_prompts(path, GRID)
    assert prompts.ids.tolist() == [3, 4]
    np.testing.assert_array_equal(prompts.boxes[1], [50, 0, 60, 10])


def test_rejected_boxes_go_with_their_points(tmp_path: Path):
    path = tmp_path / "slides.gpkg"
    write(path, GRIDS["utm"])
    boxes = gpd.read_file(path, layer="prompts")
    boxes.assign(status=["rejected", "unreviewed"]).to_file(path, layer="prompts")
    assert read_prompts(path, GRIDS["utm"]).ids.tolist() == [1, 2]


def test_polygons_become_boxes_also_on_a_rotated_grid(tmp_path: Path):
    grid = GRIDS["rotated"]
    pixels = [(50, 10), (90, 40), (60, 80), (20, 30)]
    path = drawn(tmp_path / "a.gpkg", [Polygon([grid.transform * p for p in pixels])])
    np.testing.assert_array_equal(read_prompts(path, grid).boxes, [[20, 10, 90, 80]])


def test_other_crs_formats_and_multipoints(tmp_path: Path):
    frame = gpd.GeoDataFrame(geometry=[box(1010, 1910, 1090, 1990), MultiPoint([(1150.5, 1950.5), (1160.5, 1950.5)])])
    path = tmp_path / "drawn.geojson"
    frame.set_crs(UTM).to_crs(4326).to_file(path)
    prompts = read_prompts(path, GRID)
    assert prompts.has_box.tolist() == [True, False, False]
    np.testing.assert_allclose(prompts.boxes[0], [10, 10, 90, 90], atol=0.02)
    np.testing.assert_allclose(prompts.points[1:, 0], [[150, 49], [160, 49]], atol=0.02)


def test_a_scene_without_crs_takes_coordinates_as_they_are(tmp_path: Path):
    path = drawn(tmp_path / "a.gpkg", [box(10, -40, 30, -20)], crs=4326)
    np.testing.assert_array_equal(read_prompts(path, GRIDS["none"]).boxes, [[10, 20, 30, 40]])


def test_what_lies_outside_is_cut_or_left_out_or_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    across, outside = box(980, 1950, 1020, 2050), box(0, 0, 10, 10)
    path = drawn(tmp_path / "a.gpkg", [across, outside, Point(1500, 1500)])
    with caplog.at_level(logging.WARNING):
        prompts = read_prompts(path, GRID)
    np.testing.assert_array_equal(prompts.boxes, [[0, 0, 20, 50]])
    assert "2 of 3 prompts lie outside the scene" in caplog.text
    path = drawn(tmp_path / "b.gpkg", [outside, Point(1200.5, 1950)])
    with pytest.raises(VectorError, match=r"all 2 prompts lie outside .* \(1000, 1900\) to \(1200, 2000\) in WGS 84"):
        read_prompts(path, GRID)


def test_background_points_alone_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    path = drawn(tmp_path / "a.gpkg", [Point(1010.5, 1990.5), Point(1020.5, 1990.5)], label=[0, 1])
    with caplog.at_level(logging.WARNING):
        prompts = read_prompts(path, GRID)
    assert prompts.labels.tolist() == [[1]]
    assert "1 prompts have points labelled 0 and nothing else" in caplog.text


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"label": [2]}, "1 values of column label, such as 2, are no whole number from 0 to 1"),
        ({"label": ["slide"]}, "column label, such as 'slide'"),
        ({"prompt": [1.5]}, "column prompt, such as 1.5, are no whole number"),
        ({"score": [1.5]}, "column score, such as 1.5, are no number from 0 to 1"),
        ({"class": ["lake"]}, "column class names lake, .* use landslide, or leave it empty"),
    ],
)
def test_columns_with_other_things_are_named(tmp_path: Path, columns: dict, message: str):
    path = drawn(tmp_path / "a.gpkg", [Point(1010.5, 1990.5)], **columns)
    with pytest.raises(VectorError, match=message):
        read_prompts(path, GRID)


@pytest.mark.parametrize("reader", [lambda path: read_prompts(path, GRID), lambda path: read_aoi(path, UTM)])
def test_files_that_are_no_use(tmp_path: Path, reader):
    with pytest.raises(VectorError, match=r"missing\.gpkg cannot be read as a vector file"):
        reader(tmp_path / "missing.gpkg")
    (tmp_path / "text.gpkg").write_text("no geopackage")
    with pytest.raises(VectorError, match=r"text\.gpkg cannot be read as a vector file"):
        reader(tmp_path / "text.gpkg")
    (tmp_path / "table.csv").write_text("a,b\n1,2\n")
    with pytest.raises(VectorError, match=r"table\.csv cannot be read as a vector file: give a GeoPackage, GeoJSON"):
        reader(tmp_path / "table.csv")
    lines = drawn(tmp_path / "lines.gpkg", [shapely.LineString([(1000, 1990), (1010, 1990)])])
    with pytest.raises(VectorError, match="holds LineString"):
        reader(lines)


# --- area of interest ------------------------------------------------------------------------------------------------


def test_an_area_of_interest_is_one_geometry_in_the_crs_of_the_scene(tmp_path: Path):
    pieces = [box(0, 0, 10, 10), box(10, 0, 20, 10), None, Polygon()]
    path = drawn(tmp_path / "aoi.gpkg", pieces)
    assert read_aoi(path, UTM).equals(box(0, 0, 20, 10))
    assert read_aoi(path, None).equals(box(0, 0, 20, 10))
    square = gpd.GeoSeries([box(500_000, 3_000_000, 600_000, 3_100_000)], crs=UTM)
    square.to_crs(4326).to_file(tmp_path / "aoi.geojson")
    area = read_aoi(tmp_path / "aoi.geojson", UTM)
    assert area.symmetric_difference(square[0]).area < 2e-2 * square[0].area


def test_straight_edges_bend_with_the_crs(tmp_path: Path):
    path = drawn(tmp_path / "aoi.gpkg", [box(95, 50, 105, 55)], crs=4326)
    to_utm = pyproj.Transformer.from_crs(4326, 32647, always_xy=True)
    area = read_aoi(path, pyproj.CRS(32647))
    assert area.contains(Point(to_utm.transform(99, 50.02)))
    assert not area.contains(Point(to_utm.transform(99, 49.98)))


@pytest.mark.parametrize("pieces", [[], [None], [Polygon([(0, 0), (1, 1), (0, 0)])]], ids=["none", "null", "flat"])
def test_an_area_of_interest_without_area_is_refused(tmp_path: Path, pieces: list):
    frame = gpd.GeoDataFrame(geometry=gpd.GeoSeries(pieces, crs=UTM))
    pyogrio.write_dataframe(frame, tmp_path / "aoi.gpkg", geometry_type="Polygon")
    with pytest.raises(VectorError, match=r"aoi\.gpkg encloses no area"):
        read_aoi(tmp_path / "aoi.gpkg", UTM)


def test_crossed_outlines_are_mended(tmp_path: Path):
    path = drawn(tmp_path / "aoi.gpkg", [Polygon([(0, 0), (10, 10), (10, 0), (0, 10)])])
    area = read_aoi(path, UTM)
    assert area.is_valid
    assert area.area == 50


def test_coordinates_without_a_place_in_the_scenes_crs_are_refused(tmp_path: Path):
    path = drawn(tmp_path / "aoi.gpkg", [box(5e5, 3e6, 6e5, 4e6)], crs=4326)
    with pytest.raises(VectorError, match="cannot be transformed to WGS 84 / UTM zone 48N"):
        read_aoi(path, UTM)


@pytest.mark.parametrize("layer", ["candidates", "rejected", "segments", "prompts", "prompt_points", "tiles", "truth"])
def test_every_layer_has_a_style(layer: str):
    assert rules_of({}, layer)


# formats to hand on


@pytest.mark.parametrize("name", GRIDS)
def test_shapefiles_hold_all_layers_under_short_names(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture):
    grid = GRIDS[name]
    for file in ("slides.gpkg", "slides.zip"):
        write(tmp_path / file, grid)
    said = caplog.records[-1].getMessage()
    assert "activation_share is actvtn_shr" in said
    assert "without styles" in said
    short = short_names(list(LANDSLIDE_COLUMNS))
    one = pyogrio.read_dataframe(tmp_path / "slides.gpkg", layer="landslides").rename(columns=short)
    other = pyogrio.read_dataframe(f"/vsizip/{tmp_path}/slides.zip/landslides.shp")
    assert list(other.columns) == list(one.columns)
    for column in short.values():
        if one[column].dtype == float:
            np.testing.assert_allclose(one[column], other[column], rtol=1e-9)
    assert other["class"].tolist() == one["class"].tolist()
    assert shapely.equals(one.geometry.to_numpy(), other.geometry.to_numpy()).all()
    with zipfile.ZipFile(tmp_path / "slides.zip") as archive:
        names = {Path(member).stem for member in archive.namelist()}
        assert json.loads(archive.read("provenance.json")) == {"version": "1.0"}
    assert {"landslides", "prompts", "prompt_points", "tiles"} <= names


def test_long_texts_and_names_are_cut_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    slides = slides_on(GRID)
    write(tmp_path / "slides.zip", GRID, landslides=slides.assign(notes="ä" * 200))
    assert "texts are cut at 254 bytes" in caplog.records[-1].getMessage()
    assert short_names(["a" * 12, "A" * 12, "b" * 10]) == {"a" * 12: "a", "A" * 12: "A" * 10, "b" * 10: "b" * 10}
    again = short_names(["predicted_x1", "predicted_x2", "predicted_x3"])
    assert len({value.lower() for value in again.values()}) == 3


def test_a_kmz_holds_polygons_in_longitudes_and_latitudes(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    slides = slides_on(GRID).assign(confidence=0.5, notes="<b>&\x0b\x00")
    write(tmp_path / "slides.kmz", GRID, landslides=slides)
    assert "left out: prompts, prompt_points, tiles" in caplog.records[-1].getMessage()
    with zipfile.ZipFile(tmp_path / "slides.kmz") as archive:
        text = archive.read("doc.kml").decode()
    (tmp_path / "doc.kml").write_text(text)
    found = pyogrio.read_dataframe(tmp_path / "doc.kml", layer="landslides")
    expected = slides.to_crs(4326).geometry.to_numpy()
    assert len(found) == len(slides)
    assert shapely.hausdorff_distance(shapely.force_2d(found.geometry.to_numpy()), expected).max() < 1e-7
    assert "&lt;b&gt;&amp;" in text
    assert text.count("<styleUrl>#confidence2</styleUrl>") == len(slides)


def test_a_kmz_of_a_scene_without_crs_says_what_to_write(tmp_path: Path):
    with pytest.raises(OutputError, match=r"no CRS: write a \.gpkg"):
        write(tmp_path / "slides.kmz", GRIDS["none"])
    assert not (tmp_path / "slides.kmz").exists()

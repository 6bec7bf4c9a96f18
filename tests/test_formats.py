"""What is written in formats other than GeoPackage, and read back: compared with geopandas, pyarrow and GDAL."""

import json
import shutil
import subprocess
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pyogrio
import pyproj
import pytest
import shapely
from affine import Affine
from shapely import MultiPolygon, Polygon, box

import geolabel
from geolabel.cli.main import run
from geolabel.errors import OptionError, OutputError, VectorError
from geolabel.io.columns import LANDSLIDE_COLUMNS, short_names
from geolabel.io.read import geoparquet, vector_files
from geolabel.io.read.features import read_aoi, read_exclusions, read_layer, spatial_layers
from geolabel.io.read.review import read_review, read_work
from geolabel.io.write.geopackage import read_provenance
from geolabel.io.write.vectors import SUFFIXES, Reviewed, write_inventory
from geolabel.io.written import plain
from geolabel.scene import Grid

UTM = pyproj.CRS(32648)
GRID = Grid(UTM, Affine(1, 0, 500_000, 0, -1, 4_000_000), 1000, 1000)
READABLE = [suffix for suffix in SUFFIXES if suffix != ".kmz"]


def slides(crs: Any = UTM) -> gpd.GeoDataFrame:
    ring = box(500_100, 3_999_100, 500_400, 3_999_400)
    hole = box(500_200, 3_999_200, 500_300, 3_999_300)
    return gpd.GeoDataFrame(
        {
            "id": [1, 2, 5],
            "class": ["landslide", "rockfall", "landslide"],
            "area_m2": [80_000.25, 12.0, np.nan],
            "confidence": [0.75, None, 0.1],
            "n_prompts": [3, None, 1],
            "event_date": ["2008-05-12", None, "2024-01-01"],
            "status": ["accepted", "unreviewed", "unreviewed"],
            "notes": ['ä "quoted", <b>\ntwo lines', None, None],
        },
        geometry=[
            MultiPolygon([ring - hole]),
            MultiPolygon([box(500_500, 3_999_500, 500_510, 3_999_520), box(500_600, 3_999_600, 500_601, 3_999_601)]),
            MultiPolygon([Polygon([(500_700, 3_999_700), (500_720, 3_999_700), (500_705, 3_999_730)])]),
        ],
        crs=crs,
    )


def write(path: Path, table: gpd.GeoDataFrame | None = None, grid: Grid = GRID, **how: Any) -> Path:
    provenance = {"software": {"geolabel": "1"}, "scene": {"name": "Überhang.tif"}}
    write_inventory(path, slides() if table is None else table, None, None, provenance, grid=grid, **how)
    return path


@pytest.mark.parametrize("suffix", READABLE)
def test_every_format_gives_back_the_polygons_that_were_written(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"slides{suffix}", candidates=slides().iloc[:0])
    found = read_review(path)
    table = pd.concat([found.kept, found.waiting]).sort_values("id", ignore_index=True)
    wanted = slides()
    assert table["id"].tolist() == [1, 2, 5]
    for name in ("class", "notes"):
        assert table[name].fillna("").tolist() == wanted[name].fillna("").tolist()
    for name in ("area_m2", "confidence", "n_prompts"):
        np.testing.assert_allclose(table[name].astype(float), wanted[name].astype(float), rtol=1e-9)
    assert {*LANDSLIDE_COLUMNS} <= {*table.columns}
    shapes = table.set_geometry("geometry").set_crs(found.crs).to_crs(UTM).geometry.to_numpy()
    off = shapely.hausdorff_distance(shapes, wanted.geometry.to_numpy())
    assert off.max() <= (0.02 if suffix == ".geojson" else 0)
    assert [str(value)[:10] for value in table["event_date"]][:1] == ["2008-05-12"]


# --- GeoParquet ------------------------------------------------------------------------------------------------------


def test_geopandas_reads_the_geoparquet_as_the_geopackage(tmp_path: Path) -> None:
    one = pyogrio.read_dataframe(write(tmp_path / "slides.gpkg"), layer="landslides")
    other = gpd.read_parquet(write(tmp_path / "slides.parquet"))
    assert other.crs == one.crs == UTM
    assert [name for name in other.columns if name != "bbox"] == list(one.columns)
    assert shapely.equals_identical(one.geometry.to_numpy(), other.geometry.to_numpy()).all()
    for name in LANDSLIDE_COLUMNS:
        assert [plain(value) for value in one[name]] == [plain(value) for value in other[name]], name


def test_a_geoparquet_has_the_metadata_of_version_1_1(tmp_path: Path) -> None:
    path = write(tmp_path / "slides.parquet")
    schema = pq.read_schema(path)
    geo = json.loads(schema.metadata[b"geo"])
    column = geo["columns"]["geometry"]
    assert (geo["version"], geo["primary_column"]) == ("1.1.0", "geometry")
    assert (column["encoding"], column["geometry_types"]) == ("WKB", ["MultiPolygon"])
    assert column["bbox"] == slides().total_bounds.tolist()
    assert pyproj.CRS.from_json_dict(column["crs"]) == UTM
    assert column["covering"] == {"bbox": {side: ["bbox", side] for side in ("xmin", "ymin", "xmax", "ymax")}}
    boxes = pq.read_table(path, columns=["bbox"])["bbox"].to_pylist()
    assert [tuple(one.values()) for one in boxes] == list(map(tuple, slides().bounds.to_numpy()))
    assert json.loads(schema.metadata[b"geolabel:provenance"])["scene"] == {"name": "Überhang.tif"}
    assert b"<qgis" in schema.metadata[b"geolabel:qml"]
    assert b"ellipsoid" in schema.field("area_m2").metadata[b"description"]
    kinds = {"id": "int64", "area_m2": "double", "class": "string", "event_date": "date32[day]"}
    assert {name: str(schema.field(name).type) for name in kinds} == kinds


def test_a_bounding_box_chooses_rows_of_a_geoparquet(tmp_path: Path) -> None:
    found = gpd.read_parquet(write(tmp_path / "slides.parquet"), bbox=(500_690, 3_999_690, 500_800, 3_999_800))
    assert found["id"].tolist() == [5]


def test_a_persons_columns_called_as_those_of_the_format_stay(tmp_path: Path) -> None:
    table = slides().assign(bbox="mine")
    how = Reviewed(frozenset({1}), slides().iloc[:0], {"bbox": "text"}, 5)
    write(tmp_path / "slides.parquet", table, reviewed=how)
    assert gpd.read_parquet(tmp_path / "slides.parquet")["bbox"].tolist() == ["mine"] * 3
    assert read_layer(tmp_path / "slides.parquet")["bbox"].tolist() == ["mine"] * 3


def test_an_empty_geoparquet_has_its_columns(tmp_path: Path) -> None:
    found = gpd.read_parquet(write(tmp_path / "slides.parquet", slides().iloc[:0]))
    assert found.empty
    assert {*LANDSLIDE_COLUMNS} <= {*found.columns}
    assert read_layer(tmp_path / "slides.parquet").empty


def test_geoparquet_of_geopandas_serves_as_area_and_as_exclusion(tmp_path: Path) -> None:
    area = gpd.GeoDataFrame(
        {"name": ["a", None], "when": pd.to_datetime(["2024-01-02 03:04", None]), "n": [1, 2], "list": [[1], [2]]},
        geometry=[box(500_000, 3_999_000, 500_500, 3_999_500), box(500_400, 3_999_000, 501_000, 4_000_000)],
        crs=UTM,
    )
    wanted = area.union_all()
    area["name"] = area["name"].astype("category")
    for name, crs in (("utm", UTM), ("degrees", 4326)):
        area.to_crs(crs).to_parquet(tmp_path / f"{name}.parquet", schema_version="1.1.0", write_covering_bbox=True)
        found = read_aoi(tmp_path / f"{name}.parquet", UTM, grid=GRID)
        assert shapely.hausdorff_distance(found, wanted) < 0.02
        assert len(read_exclusions(tmp_path / f"{name}.parquet", GRID)) == 2
    table = read_layer(tmp_path / "utm.parquet")
    assert list(table.columns) == ["name", "when", "n", "geometry"]
    assert table["n"].tolist() == [1, 2]
    assert str(table["when"][0]).startswith("2024-01-02 03:04")


def _parquet(path: Path, geo: Any, **columns: Any) -> Path:
    table = pa.table({"geometry": [shapely.to_wkb(box(0, 0, 1, 1))] * 2} | columns)
    metadata = {} if geo is None else {"geo": geo if isinstance(geo, bytes | str) else json.dumps(geo)}
    pq.write_table(table.replace_schema_metadata(metadata), path)
    return path


def _geo(**column: Any) -> dict[str, Any]:
    given = {"encoding": "WKB", "geometry_types": []} | column
    return {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": given}}


@pytest.mark.parametrize(
    ("geo", "columns", "message"),
    [
        (None, {}, "without the metadata of GeoParquet"),
        ("[1]", {}, "names no primary column"),
        ("{", {}, "cannot be read"),
        ({"primary_column": "nowhere", "columns": {}}, {}, "names no primary column"),
        ({"primary_column": "x", "columns": {"x": {"encoding": "WKB"}}}, {}, "is missing or does not hold WKB"),
        (_geo(encoding="multipolygon"), {}, "encoded as 'multipolygon': write it again with WKB"),
        (_geo(crs="+init=epsg:4326"), {}, "is no PROJJSON"),
        (_geo(crs={"type": "x"}), {}, "not known to PROJ"),
        (_geo(), {"a": [1, 2], "A": [1, 2]}, "differ only in case"),
        (b'{"x": "' + b"a" * (1 << 20) + b'"}', {}, "larger than"),
    ],
)
def test_a_table_that_is_no_geoparquet_is_refused(tmp_path: Path, geo: Any, columns: Any, message: str) -> None:
    with pytest.raises(VectorError, match=message):
        read_layer(_parquet(tmp_path / "a.parquet", geo, **columns))


def test_geometries_that_are_damaged_are_refused(tmp_path: Path) -> None:
    nested = b"\x01\x07\x00\x00\x00\x01\x00\x00\x00" * 100_000
    for number, wkb in enumerate((b"", b"\x01\x03", nested)):
        table = pa.table({"geometry": [wkb]}).replace_schema_metadata({"geo": json.dumps(_geo())})
        pq.write_table(table, tmp_path / f"{number}.parquet")
        with pytest.raises(VectorError):
            read_layer(tmp_path / f"{number}.parquet")


def test_a_geoparquet_may_not_claim_or_become_any_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vector_files, "MAX_BYTES", 1 << 20)
    shapes = [shapely.to_wkb(box(0, 0, 1, 1))] * 4000
    geo = {"geo": json.dumps(_geo())}
    plain = pa.table({"geometry": shapes, "text": [f"{k:04}" + "x" * 500 for k in range(4000)]})
    repeated = pa.table({"geometry": shapes, "text": ["x" * 1000] * 4000})
    for name, table in (("plain", plain), ("repeated", repeated)):
        pq.write_table(table.replace_schema_metadata(geo), tmp_path / f"{name}.parquet", compression="zstd")
        assert (tmp_path / f"{name}.parquet").stat().st_size < 1 << 19
        with pytest.raises(VectorError, match="larger than 1 MB"):
            read_layer(tmp_path / f"{name}.parquet")


def test_pages_larger_than_the_footer_says_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.parquet"
    table = pa.table({"geometry": [shapely.to_wkb(box(0, 0, 1, 1))], "text": ["x" * 100_000]})
    pq.write_table(table.replace_schema_metadata({"geo": json.dumps(_geo())}), path, compression="zstd")
    whole = geoparquet.read_geoparquet(path, 1 << 20)
    assert len(whole.columns["text"][0][0]) == 100_000
    said = pq.ParquetFile(path).metadata.row_group(0).column(1).total_uncompressed_size
    data = path.read_bytes()
    assert _varint(2 * said) in data
    path.write_bytes(data.replace(_varint(2 * said), _varint(2 * 10_000)))
    metadata = pq.ParquetFile(path).metadata
    assert metadata.row_group(0).column(1).total_uncompressed_size == 10_000
    with pytest.raises(ValueError, match="a page of it claims 100004 bytes"):
        geoparquet.read_geoparquet(path, 50_000)


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])


@pytest.mark.parametrize("version", ["1.0", "2.6"])
@pytest.mark.parametrize("page", ["1.0", "2.0"])
@pytest.mark.parametrize("compression", ["none", "snappy", "gzip", "zstd"])
def test_the_sizes_of_pages_are_those_of_the_footer(tmp_path: Path, version: str, page: str, compression: str) -> None:
    random = np.random.default_rng(3)
    table = pa.table(
        {"a": random.integers(0, 9, 5000), "b": [f"{k % 700}" for k in range(5000)], "c": [None, 1.5] * 2500}
    )
    path = tmp_path / "a.parquet"
    how = {"version": version, "data_page_version": page, "compression": compression, "data_page_size": 4096}
    pq.write_table(table, path, row_group_size=2000, **how)
    metadata = pq.ParquetFile(path).metadata
    with path.open("rb") as file:
        groups = geoparquet._footer(file)[4]
        assert [group[3] for group in groups] == [2000, 2000, 1000]
        for number, group in enumerate(groups):
            for column, chunk in enumerate(group[1]):
                sizes = list(geoparquet._page_sizes(file, [chunk[3]], 1 << 30))
                said = metadata.row_group(number).column(column).total_uncompressed_size
                assert chunk[3][6] == said
                assert 0 <= said - sum(sizes) <= 100 * len(sizes)  # the footer counts the headers of pages too
                assert len(sizes) > 1


@pytest.mark.parametrize(("suffix", "count"), [(".parquet", 60), (".zip", 25), (".kmz", 25)])
def test_bytes_that_are_changed_crash_nothing(tmp_path: Path, suffix: str, count: int) -> None:
    data = bytearray(write(tmp_path / f"slides{suffix}").read_bytes())
    random = np.random.default_rng(5)
    for number in range(count):
        changed = data.copy()
        for place in random.integers(4, len(data), 3):
            changed[place] = random.integers(256)
        path = tmp_path / f"{number}{suffix}"
        path.write_bytes(changed)
        with suppress(VectorError):
            read_layer(path)


# --- GeoJSON ---------------------------------------------------------------------------------------------------------


def test_geojson_is_that_of_rfc_7946(tmp_path: Path) -> None:
    found = json.loads(write(tmp_path / "slides.geojson").read_text(encoding="utf-8"))
    assert "crs" not in found
    assert (found["type"], found["name"]) == ("FeatureCollection", "landslides")
    assert found["provenance"]["scene"] == {"name": "Überhang.tif"}
    assert [feature["id"] for feature in found["features"]] == [1, 2, 5]
    first = found["features"][0]
    assert first["properties"]["event_date"] == "2008-05-12"
    assert first["properties"]["n_prompts"] == 3
    assert first["properties"]["score_mean"] is None
    wanted = slides().to_crs(4326).geometry
    for feature, shape in zip(found["features"], wanted, strict=True):
        read = shapely.geometry.shape(feature["geometry"])
        assert read.is_valid
        assert shapely.hausdorff_distance(read, shape) < 1e-7
        for polygon in feature["geometry"]["coordinates"]:
            outer, *inner = [shapely.LinearRing(ring) for ring in polygon]
            assert outer.is_ccw
            assert not any(ring.is_ccw for ring in inner)
            for x, y in outer.coords:
                assert (x, y) == (round(x, 7), round(y, 7))


def test_geojson_is_cut_at_the_antimeridian(tmp_path: Path) -> None:
    crs = pyproj.CRS(32601)  # zone 1, whose western edge is the antimeridian
    back = pyproj.Transformer.from_crs(4326, crs, always_xy=True)
    x, y = back.transform(180.0, -17.0 + 0.0)
    grid = Grid(crs, Affine(1, 0, x - 500, 0, -1, y + 500), 1000, 1000)
    table = gpd.GeoDataFrame({"id": [1]}, geometry=[MultiPolygon([box(x - 100, y, x + 100, y + 50)])], crs=crs)
    found = json.loads(write(tmp_path / "slides.geojson", table, grid).read_text())
    shape = shapely.geometry.shape(found["features"][0]["geometry"])
    west, east = sorted(shape.geoms, key=lambda part: part.bounds[0])
    assert west.bounds[0] == -180
    assert east.bounds[2] == 180
    assert max(part.bounds[2] - part.bounds[0] for part in shape.geoms) < 0.01


@pytest.mark.parametrize("suffix", [".geojson", ".kmz"])
def test_longitudes_and_latitudes_need_a_crs_before_any_work_is_done(tmp_path: Path, suffix: str) -> None:
    from geolabel.extraction.outputs import Targets

    targets = Targets.of(tmp_path / f"slides{suffix}")
    targets.check_crs(UTM)
    with pytest.raises(OutputError, match=r"has no CRS: write a \.gpkg"):
        targets.check_crs(None)
    pit = pyproj.CRS.from_wkt(
        'ENGCRS["pit",EDATUM["pit"],CS[Cartesian,2],AXIS["x",east],AXIS["y",north],LENGTHUNIT["metre",1]]'
    )
    with pytest.raises(OutputError, match=r"the CRS pit, which is local \(engineering\)"):
        targets.check_crs(pit)


@pytest.mark.skipif(shutil.which("ogrinfo") is None, reason="needs Debian's gdal-bin")
@pytest.mark.parametrize("suffix", [".geojson", ".shp", ".fgb"])
def test_another_gdal_reads_the_formats(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"slides{suffix}")
    said = subprocess.run(["ogrinfo", "-so", "-al", str(path)], capture_output=True, text=True, check=True)
    assert "Feature Count: 3" in said.stdout
    assert "ERROR" not in said.stderr


def test_a_layer_without_polygons_is_not_said_to_be_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path / "slides.shp", candidates=slides().iloc[:0])
    assert "left out: " not in caplog.records[-1].getMessage()


# --- Shapefiles ------------------------------------------------------------------------------------------------------


def test_a_shapefile_is_written_with_its_other_files_and_says_what_it_loses(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path / "slides.shp", candidates=slides().iloc[:2])
    assert {one.name for one in tmp_path.iterdir()} == {f"slides.{end}" for end in ("shp", "shx", "dbf", "prj", "cpg")}
    said = caplog.records[-1].getMessage()
    for part in (
        "holds the layer landslides, without styles",
        "activation_share is actvtn_shr",
        "left out: candidates (2)",
    ):
        assert part in said
    found = gpd.read_file(tmp_path / "slides.shp")
    assert found.crs == UTM
    assert list(found.columns) == [*short_names(list(LANDSLIDE_COLUMNS)).values(), "geometry"]


def test_a_file_of_a_shapefile_is_not_replaced_unasked(tmp_path: Path) -> None:
    (tmp_path / "slides.dbf").write_bytes(b"another's")
    with pytest.raises(OutputError, match=r"slides\.dbf exists: give --overwrite"):
        write(tmp_path / "slides.shp")
    assert [one.name for one in tmp_path.iterdir()] == ["slides.dbf"]
    assert (tmp_path / "slides.dbf").read_bytes() == b"another's"


def test_a_shapefile_leaves_nothing_of_the_one_it_replaces(tmp_path: Path) -> None:
    write(tmp_path / "slides.shp", slides().assign(status="unreviewed", notes=None))
    for end in ("qix", "sbn", "shp.xml"):
        (tmp_path / f"slides.{end}").write_bytes(b"of the old one")
    no_crs = Grid(None, GRID.transform, 1000, 1000, unit_m=1)
    write(tmp_path / "slides.shp", slides(None).iloc[:1], no_crs, overwrite=True)
    assert {one.name for one in tmp_path.iterdir()} == {f"slides.{end}" for end in ("shp", "shx", "dbf", "cpg")}
    assert gpd.read_file(tmp_path / "slides.shp").crs is None


# --- archives --------------------------------------------------------------------------------------------------------


def test_zipped_shapefiles_are_read_with_all_their_layers(tmp_path: Path) -> None:
    path = write(tmp_path / "slides.zip", candidates=slides().iloc[:2].assign(id=[7, 8]))
    assert sorted(spatial_layers(path)) == ["candidates", "landslides"]
    found = read_review(path)
    assert sorted(found.waiting["id"].tolist() + found.kept["id"].tolist()) == [1, 2, 5, 7, 8]
    assert not found.columns
    assert read_aoi(path, UTM, "landslides").area == pytest.approx(slides().union_all().area)
    with pytest.raises(VectorError, match=r"several layers of polygons, .*: choose one \(--aoi-layer NAME\)"):
        read_aoi(path, UTM)


def test_files_of_an_archive_that_are_no_layers_of_one_file_are_named(tmp_path: Path) -> None:
    write(tmp_path / "a.zip", candidates=slides().iloc[:0])
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    for folder in ("x/", "../"):
        with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
            for name, data in members.items():
                archive.writestr(folder + name if name.startswith("candidates") else name, data)
        with pytest.raises(VectorError, match="the Shapefiles of one folder"):
            spatial_layers(tmp_path / "b.zip")
        (tmp_path / "b.zip").unlink()
    with zipfile.ZipFile(tmp_path / "c.zip", "w") as archive:
        for name, data in members.items():
            archive.writestr(f"../../{name}", data)
    assert sorted(spatial_layers(tmp_path / "c.zip")) == ["candidates", "landslides"]
    assert {one.name for one in tmp_path.iterdir()} == {"a.zip", "c.zip"}


def test_an_archive_of_layers_may_not_hold_any_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vector_files, "MAX_BYTES", 1 << 20)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("a.shp", "b.shp"):
            archive.writestr(name, bytes(700_000))
    assert (tmp_path / "a.zip").stat().st_size < 10_000
    with pytest.raises(VectorError, match="larger than 1 MB"):
        spatial_layers(tmp_path / "a.zip")


# --- what a person did -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".fgb", ".parquet", ".geojson", ".shp", ".zip"])
def test_a_file_with_a_review_is_not_overwritten_in_any_format(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"slides{suffix}")
    assert read_work(path).polygons["accepted"] == 1
    before = path.read_bytes()
    with pytest.raises(OutputError, match=r"holds 1 reviewed polygon \(1 accepted\)"):
        write(path, overwrite=True)
    assert path.read_bytes() == before
    path = write(tmp_path / f"other{suffix}", slides().assign(status="unreviewed", notes=None))
    write(path, overwrite=True)


def test_only_a_geopackage_has_a_provenance_that_is_read_back(tmp_path: Path) -> None:
    assert read_provenance(write(tmp_path / "slides.gpkg"))["software"] == {"geolabel": "1"}
    assert read_provenance(write(tmp_path / "slides.geojson")) is None


def test_texts_in_dictionaries_are_counted_as_long_as_they_are() -> None:
    texts = pa.array(["x" * 100] * 50).dictionary_encode()
    assert pc.sum(pc.take(pc.binary_length(texts.dictionary), texts.indices)).as_py() == 5000


# --- export and --dst-crs --------------------------------------------------------------------------------------------


def test_an_export_has_what_the_review_left(tmp_path: Path) -> None:
    path = write(tmp_path / "slides.gpkg", slides().assign(status="unreviewed", notes=None), candidates=others())
    for layer, number, status in (("candidates", 7, "accepted"), ("landslides", 1, "rejected")):
        table = read_layer(path, layer)
        table.loc[table["id"] == number, "status"] = status
        if layer == "landslides":
            drawn = table.iloc[:1].assign(id=None, status=None, area_m2=None)
            drawn["geometry"] = [box(500_900, 3_999_900, 500_910, 3_999_930)]
            table = pd.concat([table, drawn.astype(table.dtypes.drop("id"))], ignore_index=True)
        pyogrio.write_dataframe(table, path, layer=layer, driver="GPKG")
    found = geolabel.export(path, tmp_path / "slides.parquet")
    table = gpd.read_parquet(tmp_path / "slides.parquet")
    assert table["id"].tolist() == [2, 5, 7, 9]
    assert table["area_m2"].iloc[-1] == pytest.approx(300, rel=1e-3)
    assert found.figures() == {
        "landslides": 4,
        "area_m2": pytest.approx(table["area_m2"].sum()),
        "reviewed": 2,
        "candidates": 1,
        "rejected": 1,
    }
    geolabel.export(path, tmp_path / "checked.gpkg", reviewed_only=True)
    assert read_layer(tmp_path / "checked.gpkg", "landslides")["id"].tolist() == [7, 9]
    assert spatial_layers(tmp_path / "checked.gpkg") == ["landslides", "rejected"]
    assert read_provenance(tmp_path / "checked.gpkg")["scene"] == {"name": "Überhang.tif"}
    again = read_review(tmp_path / "checked.gpkg")
    assert again.kept["id"].tolist() == [7, 9]
    assert again.rejected["id"].tolist() == [1]


def others() -> gpd.GeoDataFrame:
    shapes = [MultiPolygon([box(500_800 + k, 3_999_100, 500_805 + k, 3_999_110)]) for k in (0, 50)]
    return gpd.GeoDataFrame({"id": [7, 8], "status": "unreviewed"}, geometry=shapes, crs=UTM)


def test_an_export_is_reprojected(tmp_path: Path) -> None:
    path = write(tmp_path / "slides.gpkg")
    geolabel.export(path, tmp_path / "slides.shp", dst_crs="EPSG:3857")
    found = gpd.read_file(tmp_path / "slides.shp")
    assert found.crs == "EPSG:3857"
    assert shapely.hausdorff_distance(found.to_crs(UTM).geometry.to_numpy(), slides().geometry.to_numpy()).max() < 1e-6
    with pytest.raises(OptionError, match=r"CRS 'nowhere': give a code such as EPSG:32648"):
        geolabel.export(path, tmp_path / "other.shp", dst_crs="nowhere")
    with pytest.raises(OptionError, match=r"--dst-crs: other\.geojson is GeoJSON, which has longitudes and latitudes"):
        geolabel.export(path, tmp_path / "other.geojson", dst_crs="EPSG:32648")
    geolabel.export(path, tmp_path / "some.geojson", dst_crs="EPSG:4326")
    plain = write(tmp_path / "plain.gpkg", slides(None), Grid(None, GRID.transform, 1000, 1000, unit_m=1))
    with pytest.raises(OptionError, match="nothing can be reprojected to WGS 84: omit --dst-crs"):
        geolabel.export(plain, tmp_path / "other.shp", dst_crs="EPSG:4326")
    with pytest.raises(OutputError, match=r"has no CRS: write a \.gpkg"):
        geolabel.export(plain, tmp_path / "other.geojson")
    assert not (tmp_path / "other.shp").exists()


def test_polygons_of_a_mask_are_reprojected(tmp_path: Path) -> None:
    import rasterio

    mask = np.zeros((200, 200), np.uint8)
    mask[50:90, 60:120] = 1
    how = {"driver": "GTiff", "height": 200, "width": 200, "count": 1, "dtype": "uint8"}
    with rasterio.open(tmp_path / "mask.tif", "w", **how, crs=UTM, transform=GRID.transform) as target:
        target.write(mask, 1)
    plain = geolabel.polygonize(tmp_path / "mask.tif")
    found = geolabel.polygonize(tmp_path / "mask.tif", out=tmp_path / "slides.gpkg", dst_crs="EPSG:4326")
    assert found.crs == read_layer(tmp_path / "slides.gpkg").crs == "EPSG:4326"
    np.testing.assert_allclose(found["area_m2"], plain["area_m2"], rtol=1e-6)
    assert shapely.hausdorff_distance(found.to_crs(UTM).geometry[0], plain.geometry[0]) < 1e-6


def test_info_says_what_is_in_zipped_shapefiles_and_takes_a_delivery_for_a_scene(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "slides.zip", candidates=others())
    assert run(["info", str(path), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert {name: layer["count"] for name, layer in said["layers"].items()} == {
        "landslides": 3,
        "candidates": 2,
        "rejected": 0,
    }
    write(tmp_path / "outline.geojson")
    with zipfile.ZipFile(tmp_path / "delivery.zip", "w") as archive:
        archive.write(tmp_path / "outline.geojson", "outline.geojson")
        archive.writestr("scene.tif", b"II*")
    assert run(["info", str(tmp_path / "delivery.zip"), "--json"]) == 1
    assert "ZIP archive: give the raster inside" in capsys.readouterr().err


@pytest.mark.parametrize("suffix", ["parquet", "shp", "fgb", "kmz"])
def test_extract_takes_the_last_name_for_its_output(tmp_path: Path, suffix: str) -> None:
    from geolabel.cli.extract import _split

    assert _split(("a.tif", f"slides.{suffix}"), None, needed=True) == (("a.tif",), f"slides.{suffix}")
    assert _split(("a.tif", "items.geojson"), "slides.gpkg", needed=True) == (("a.tif", "items.geojson"), "slides.gpkg")


def test_a_merged_inventory_is_reprojected(tmp_path: Path) -> None:
    one, other = (write(tmp_path / f"{name}.gpkg", slides().assign(notes=None)) for name in "ab")
    geolabel.merge([one, other], tmp_path / "plain.gpkg")
    geolabel.merge([one, other], tmp_path / "both.gpkg", dst_crs="EPSG:4326")
    plain, moved = (read_layer(tmp_path / f"{name}.gpkg", "landslides") for name in ("plain", "both"))
    assert (plain.crs, moved.crs) == (UTM, "EPSG:4326")
    assert moved["id"].tolist() == plain["id"].tolist()
    off = shapely.hausdorff_distance(moved.to_crs(UTM).geometry.to_numpy(), plain.geometry.to_numpy())
    assert off.max() < 1e-6

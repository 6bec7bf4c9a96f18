"""STAC items of results and networks: valid by the schemas that pystac has, and by what the extensions ask for."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import geopandas as gpd
import jsonschema
import numpy as np
import pyproj
import pystac
import pytest
import rasterio
import referencing
import shapely
from affine import Affine
from pystac.extensions.file import FileExtension
from pystac.extensions.projection import ProjectionExtension
from pystac.validation.local_validator import get_local_schema_cache
from shapely import MultiPolygon, box

import geolabel
from geolabel.cli.main import run
from geolabel.errors import OptionError, OutputError, WeightsError
from geolabel.io.write.stac import EXTENSIONS, bbox_of, footprint
from geolabel.io.write.vectors import write_inventory
from geolabel.models.stac import network_items
from geolabel.scene import Grid

UTM = pyproj.CRS(32648)
GRID = Grid(UTM, Affine(1, 0, 500_000, 0, -1, 4_000_000), 1000, 2000)
WEIGHTS = Path(geolabel.__file__).parent / "weights"
LOCALIZER = hashlib.sha256((WEIGHTS / "localizer.safetensors").read_bytes()).hexdigest()


def check(item: dict[str, Any]) -> pystac.Item:
    """Validate an item by the schemas of STAC 1.1.0 that pystac brings along, without a network."""
    schemas = get_local_schema_cache()
    pairs = [(name, referencing.Resource.from_contents(one)) for name, one in schemas.items()]
    registry = referencing.Registry().with_resources(pairs)
    schema = schemas["https://schemas.stacspec.org/v1.1.0/item-spec/json-schema/item.json"]
    jsonschema.Draft7Validator(schema, registry=registry, format_checker=jsonschema.FormatChecker()).validate(item)
    for asset in item["assets"].values():
        assert re.fullmatch("[a-f0-9]+", asset["file:checksum"])
        assert isinstance(asset["file:size"], int)
    return pystac.Item.from_dict(item)


def provenance(**more: Any) -> dict[str, Any]:
    grid = {"height": 1000, "width": 2000, "gsd_m": 1.0, "transform": list(GRID.transform)[:6], "crs": UTM.to_wkt()}
    return {
        "software": {"geolabel": "1", "torch": "2"},
        "scene": {"name": "/home/secret/data/scene.tif", "event_date": "2008-05-12"},
        "working_grid": grid,
        "networks": {"localizer": {"source": "bundled", "sha256": LOCALIZER}},
        "parameters": {"method": "apsam"},
    } | more


def write(path: Path, made: dict[str, Any] | None = None, grid: Grid = GRID, **columns: Any) -> Path:
    shapes = [MultiPolygon([box(500_100, 3_999_100, 500_200, 3_999_200)])]
    table = gpd.GeoDataFrame({"id": [1], "status": ["accepted"]} | columns, geometry=shapes, crs=grid.crs)
    write_inventory(path, table, None, None, provenance() if made is None else made, grid=grid)
    return path


def test_an_item_says_where_when_and_what(tmp_path: Path) -> None:
    (tmp_path / "data and more").mkdir()
    path = write(tmp_path / "data and more" / "slides.gpkg")
    geolabel.export(path, tmp_path / "slides.shp")
    (tmp_path / "preview.png").write_bytes(b"png")
    item = geolabel.stac_item(path, [tmp_path / "slides.shp", tmp_path / "preview.png"], out=tmp_path / "item.json")
    assert item == json.loads((tmp_path / "item.json").read_text(encoding="utf-8"))
    found = check(item)
    assert (found.id, found.properties["datetime"]) == ("item", "2008-05-12T00:00:00Z")
    outline = shapely.geometry.shape(item["geometry"])
    wanted = gpd.GeoSeries([GRID.outline], crs=UTM).to_crs(4326)[0]
    assert shapely.hausdorff_distance(outline, wanted) < 1e-5
    assert outline.exterior.is_ccw
    np.testing.assert_allclose(item["bbox"], wanted.bounds, atol=1e-6)
    projection = ProjectionExtension.ext(found)
    assert (projection.code, projection.shape) == ("EPSG:32648", [1000, 2000])
    assert projection.transform == list(GRID.transform)[:6]
    assert found.properties["processing:software"] == {"geolabel": "1", "torch": "2"}
    assert found.properties["geolabel:review"] == {"accepted": 1}
    names = {"slides.gpkg", "preview.png", *(f"slides.{end}" for end in ("shp", "shx", "dbf", "prj", "cpg"))}
    assert {*found.assets} == names
    for asset in found.assets.values():
        file = tmp_path / unquote(asset.href)
        told = FileExtension.ext(asset)
        assert told.size == file.stat().st_size
        assert told.checksum == "1220" + hashlib.sha256(file.read_bytes()).hexdigest()
    assert found.assets["slides.gpkg"].href == "./data%20and%20more/slides.gpkg"
    assert found.assets["preview.png"].roles == ["overview"]
    assert str(tmp_path) not in json.dumps(item)
    assert "secret" not in json.dumps(item)
    assert found.properties["title"] == "Landslides of scene.tif"


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_a_raster_is_described_band_by_band(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path, place = write(tmp_path / "slides.gpkg"), Affine(2, 0, 500_000, 0, -2, 4_000_000)
    profile = {"driver": "GTiff", "dtype": "float32", "count": 3, "width": 5, "height": 4, "nodata": np.nan}
    with rasterio.open(tmp_path / "a.tif", "w", crs=UTM, transform=place, **profile) as file:
        file.write(np.zeros((3, 4, 5), np.float32))
        file.descriptions = ("landslide", "water", "water")
    with rasterio.open(tmp_path / "b.tif", "w", **(profile | {"dtype": "uint8", "count": 1, "nodata": 255})) as file:
        file.write(np.zeros((1, 4, 5), np.uint8))
    (tmp_path / "c.tif").write_bytes(b"no raster")
    given = [tmp_path / f"{name}.tif" for name in "abc"]
    item = geolabel.stac_item(path, given, out=tmp_path / "item.json")
    assets = check(item).to_dict()["assets"]
    kinds = {"data_type": "float32", "nodata": "nan"}
    assert assets["a.tif"]["bands"] == [{"name": name} | kinds for name in ("landslide", "water 2", "water 3")]
    assert (assets["a.tif"]["proj:shape"], assets["a.tif"]["proj:transform"]) == ([4, 5], list(place)[:6])
    assert assets["b.tif"]["bands"] == [{"name": "band 1", "data_type": "uint8", "nodata": 255}]
    assert "bands" not in assets["c.tif"]
    assert "c.tif is named without its bands" in caplog.text
    assert "bands" not in assets["slides.gpkg"]


def test_the_same_files_give_the_same_item(tmp_path: Path) -> None:
    path = write(tmp_path / "slides.gpkg")
    geolabel.stac_item(path, out=tmp_path / "a.json")
    before = (tmp_path / "a.json").read_bytes()
    geolabel.stac_item(path, out=tmp_path / "a.json", overwrite=True)
    assert (tmp_path / "a.json").read_bytes() == before
    with pytest.raises(OutputError, match=r"a\.json exists: give --overwrite"):
        geolabel.stac_item(path, out=tmp_path / "a.json")


@pytest.mark.parametrize("suffix", [".gpkg", ".parquet", ".geojson", ".fgb", ".shp"])
def test_every_format_has_an_item(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"slides{suffix}")
    item = geolabel.stac_item(path, out=tmp_path / "a.json", date="2008-05-12")
    check(item)
    wanted = "Landslides of scene.tif" if suffix != ".shp" else "Landslides of slides.shp"
    assert item["properties"]["title"] == wanted
    assert item["properties"]["geolabel:landslides"] == 1


@pytest.mark.parametrize(
    ("date", "times"),
    [
        ("2024-02-29", {"datetime": "2024-02-29T00:00:00Z"}),
        (
            "2024-01-01/2024-02-01",
            {"datetime": None, "start_datetime": "2024-01-01T00:00:00Z", "end_datetime": "2024-02-01T23:59:59Z"},
        ),
        (None, {"datetime": "2008-05-12T00:00:00Z"}),
    ],
)
def test_times_of_an_item(tmp_path: Path, date: str | None, times: dict[str, Any]) -> None:
    item = geolabel.stac_item(write(tmp_path / "slides.gpkg"), out=tmp_path / "a.json", date=date)
    check(item)
    assert {name: value for name, value in item["properties"].items() if "datetime" in name} == times


@pytest.mark.parametrize(
    ("date", "message"),
    [(None, "no date of the scene is known"), ("2023-02-29", "date '2023-02-29': give"), ("May", "date 'May': give")],
)
def test_a_date_that_is_missing_or_none_is_asked_for(tmp_path: Path, date: str | None, message: str) -> None:
    path = write(tmp_path / "slides.gpkg", provenance(scene={"name": "scene.tif", "event_date": None}))
    with pytest.raises(OptionError, match=message):
        geolabel.stac_item(path, out=tmp_path / "a.json", date=date)
    assert not (tmp_path / "a.json").exists()


def test_an_inventory_without_crs_has_no_place(tmp_path: Path) -> None:
    grid = Grid(None, GRID.transform, 1000, 2000, unit_m=1)
    facts = provenance()
    facts["working_grid"]["crs"] = None
    item = geolabel.stac_item(write(tmp_path / "slides.gpkg", facts, grid), out=tmp_path / "a.json")
    check(item)
    assert item["geometry"] is None
    assert "bbox" not in item
    assert item["properties"]["proj:code"] is None


@pytest.mark.parametrize("made", [{}, {"parts": 3}, {"working_grid": {"crs": "x"}, "scene": 1, "networks": [1]}])
def test_a_provenance_of_anyone_is_taken_for_what_it_is(tmp_path: Path, made: dict[str, Any]) -> None:
    item = geolabel.stac_item(write(tmp_path / "slides.gpkg", made), out=tmp_path / "a.json", date="2024-01-01")
    check(item)
    assert shapely.geometry.shape(item["geometry"]).area > 0  # the box around the polygons


@pytest.mark.parametrize("made", [{"scene": 1}, {"scene": ["x"], "scenes": 3}, {"scenes": [1, None, "x"]}])
def test_scenes_that_are_none_have_no_date(tmp_path: Path, made: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match="give --date"):
        geolabel.stac_item(write(tmp_path / "slides.gpkg", made), out=tmp_path / "a.json")


def test_a_footprint_is_cut_at_the_antimeridian() -> None:
    crs = pyproj.CRS(32601)
    x, y = pyproj.Transformer.from_crs(4326, crs, always_xy=True).transform(180.0, -17.0)
    shape = footprint([(box(x - 500, y - 500, x + 500, y + 500), crs)])
    assert shape is not None
    west, south, east, north = bbox_of(shape)
    assert 179 < west <= 180
    assert -180 <= east < -179
    assert south < -17 < north


def test_files_that_no_item_can_name_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "slides.gpkg")
    (tmp_path / "a.exe").touch()
    with pytest.raises(OptionError, match=r"a\.exe: no media type is known of \.exe: give \.gpkg"):
        geolabel.stac_item(path, [tmp_path / "a.exe"], out=tmp_path / "a.json")
    with pytest.raises(OptionError, match="two files have one name"):
        geolabel.stac_item(path, [path], out=tmp_path / "a.json")
    with pytest.raises(OutputError, match=r"b\.png cannot be read: No such file"):
        geolabel.stac_item(path, [tmp_path / "b.png"], out=tmp_path / "a.json")


# --- networks --------------------------------------------------------------------------------------------------------


def test_the_bundled_networks_have_items_with_the_extension_for_models(tmp_path: Path) -> None:
    found = network_items("bundled", tmp_path)
    assert {*found} == {"localizer", "segmenter"}
    for kind, path in found.items():
        item = json.loads(path.read_text(encoding="utf-8"))
        check(item)
        facts = item["properties"]
        assert EXTENSIONS["mlm"] in item["stac_extensions"]
        _check_mlm(item)
        (asset,) = item["assets"].values()
        assert asset["href"] == f"./{kind}.safetensors"
        copy = (tmp_path / f"{kind}.safetensors").read_bytes()
        assert asset["file:checksum"] == "1220" + hashlib.sha256(copy).hexdigest()
        assert copy == (WEIGHTS / f"{kind}.safetensors").read_bytes()
        assert (facts["license"], facts["mlm:input"][0]["bands"]) == ("Apache-2.0", ["red", "green", "blue"])
        assert facts["mlm:total_parameters"] > 3_000_000
        assert "/" not in facts["mlm:name"]
        assert str(WEIGHTS) not in json.dumps(item)


def _check_mlm(item: dict[str, Any]) -> None:
    """What version 1.6.0 of the extension asks of an item."""
    facts = item["properties"]
    assert {"mlm:name", "mlm:architecture", "mlm:tasks", "mlm:input", "mlm:output"} <= {*facts}
    assert not {"mlm:artifact_type", "mlm:compile_method", "mlm:entrypoint"} & {*facts}
    assert re.fullmatch(r"[a-zA-Z][a-zA-Z0-9_.\-\s]+[a-zA-Z0-9]", facts["mlm:name"])
    assert {*facts["mlm:tasks"]} <= {"semantic-segmentation", "instance-segmentation"}
    models = [asset for asset in item["assets"].values() if "mlm:model" in asset["roles"]]
    assert models
    assert all("mlm:artifact_type" in asset for asset in models)
    assert {band["name"] for band in facts["bands"]} == {"red", "green", "blue"}
    for given in facts["mlm:input"]:
        _check_array(given["input"])
        assert ("bands" in given["input"]["dim_order"]) == bool(given["bands"])
        scaling = given.get("value_scaling", [])
        assert all(one["type"] == "z-score" and one["stddev"] > 0 for one in scaling)
    for result in facts["mlm:output"]:
        _check_array(result["result"])
        assert {"name", "tasks"} <= {*result}
        assert all({"value", "name", "description"} == {*one} for one in result["classification:classes"])
    assert all(re.fullmatch(r"[0-9a-zA-Z_.-]+", name) for name in facts["mlm:hyperparameters"])


def _check_array(array: dict[str, Any]) -> None:
    assert len(array["shape"]) == len({*array["dim_order"]}) == len(array["dim_order"])
    assert all(isinstance(side, int) and side >= -1 for side in array["shape"])
    assert all(re.fullmatch("[a-z-_]+", name) for name in array["dim_order"])
    assert array["data_type"] == "float32"


def test_an_item_links_to_the_networks_that_made_the_inventory(tmp_path: Path) -> None:
    (tmp_path / "networks").mkdir()
    found = network_items("bundled", tmp_path / "networks")
    path = write(tmp_path / "slides.gpkg")
    item = geolabel.stac_item(path, out=tmp_path / "a.json", networks=[found["localizer"]])
    check(item)
    (link,) = item["links"]
    assert (link["rel"], link["href"]) == ("derived_from", "./networks/localizer.json")
    with pytest.raises(
        OptionError, match=r"segmenter\.json describes no network that made this .* \(known: localizer\)"
    ):
        geolabel.stac_item(path, out=tmp_path / "b.json", networks=[found["segmenter"]])
    held = found["localizer"].read_bytes()
    with pytest.raises(OutputError, match="is an input of this run"):
        geolabel.stac_item(path, out=found["localizer"], networks=[found["localizer"]], overwrite=True)
    assert found["localizer"].read_bytes() == held


def test_weights_that_do_not_say_what_they_are_have_no_item(tmp_path: Path) -> None:
    (tmp_path / "a.pth").write_bytes(b"PK\x03\x04")
    with pytest.raises(WeightsError, match="is not a weights file of geolabel with a description"):
        network_items(tmp_path / "a.pth", tmp_path)
    with pytest.raises(WeightsError, match="no network is called 'nothing'"):
        network_items("nothing", tmp_path)
    with pytest.raises(OutputError, match=r"nowhere/inside: the folder cannot be created: No such file"):
        network_items("bundled", tmp_path / "nowhere" / "inside")
    assert set(network_items("bundled", tmp_path / "new")) == {"localizer", "segmenter"}


def test_the_commands_write_items(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "slides.gpkg")
    assert run(["models", "stac", str(WEIGHTS / "localizer.safetensors"), "--out", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"localizer": str(tmp_path / "localizer.json")}
    words = [str(path), "--out", str(tmp_path / "a.json"), "--network", str(tmp_path / "localizer.json"), "--json"]
    assert run(["review", "stac", *words]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said == {
        "output": str(tmp_path / "a.json"),
        "id": "a",
        "date": "2008-05-12T00:00:00Z",
        "assets": ["slides.gpkg"],
    }
    assert len(check(json.loads((tmp_path / "a.json").read_text())).links) == 1

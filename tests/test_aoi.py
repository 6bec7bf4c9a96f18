"""Vector files of areas of interest: layers, names, what else is in them, and where they are."""

from collections.abc import Callable
from pathlib import Path

import geopandas as gpd
import pyproj
import pytest
import shapely
from affine import Affine
from shapely import LineString, Point, box

from geolabel.errors import OutputError, VectorError
from geolabel.extraction.extract import extract
from geolabel.extraction.request import Reading
from geolabel.extraction.segment import segment
from geolabel.io.read.features import read_aoi, read_features
from geolabel.scene import Grid

UTM = pyproj.CRS(32648)


def drawn(path: Path, pieces: list, crs: object = UTM) -> Path:
    gpd.GeoDataFrame(geometry=gpd.GeoSeries(pieces, crs=crs)).to_file(path)
    return path


def layers(path: Path, **frames: list) -> Path:
    """A file with a layer for each list of geometries."""
    for name, pieces in frames.items():
        gpd.GeoDataFrame(geometry=gpd.GeoSeries(pieces, crs=UTM)).to_file(path, layer=name)
    return path


def test_the_only_layer_of_polygons_is_the_area_of_interest(tmp_path: Path):
    path = layers(tmp_path / "aoi.gpkg", empty=[], pins=[Point(5, 5)], paths=[LineString([(0, 0), (9, 9)])])
    with pytest.raises(VectorError, match=r"layer empty of .* encloses no area, since it is empty"):
        read_aoi(path, UTM)
    with pytest.raises(VectorError, match=r"layer paths of .* since it holds LineString alone: draw a polygon"):
        read_aoi(path, UTM, "paths")
    layers(path, area=[box(0, 0, 2, 2)])
    assert read_aoi(path, UTM).area == 4
    layers(path, other=[box(0, 0, 3, 3)])
    with pytest.raises(VectorError, match=r"several layers of polygons, area, other: choose one \(--aoi-layer NAME\)"):
        read_aoi(path, UTM)
    assert read_aoi(path, UTM, "other").area == 9
    with pytest.raises(VectorError, match=r"has no layer nowhere: it has empty, pins, paths, area, other"):
        read_aoi(path, UTM, "nowhere")


@pytest.mark.parametrize("command", [extract, segment])
def test_an_area_of_interest_is_no_output(tmp_path: Path, command: Callable[..., object]):
    area = drawn(tmp_path / "area.gpkg", [box(0, 0, 2, 2)])
    before = area.read_bytes()
    with pytest.raises(OutputError, match="is an input of this run"):
        command(tmp_path / "scene.tif", out=area, reading=Reading(aoi=area), overwrite=True)
    assert area.read_bytes() == before


def test_folders_of_google_earth_are_layers(tmp_path: Path):
    ring = "<LinearRing><coordinates>0,0,5 1,0,5 1,1,5 0,1,5 0,0,5</coordinates></LinearRing>"
    polygon = f"<Placemark><Polygon><outerBoundaryIs>{ring}</outerBoundaryIs></Polygon></Placemark>"
    pin = "<Placemark><Point><coordinates>0,0</coordinates></Point></Placemark>"
    folders = "".join(f"<Folder><name>{k}</name>{inside}</Folder>" for k, inside in enumerate(("", pin, pin + polygon)))
    path = tmp_path / "a.kml"
    path.write_text(f'<kml xmlns="http://www.opengis.net/kml/2.2"><Document>{folders}</Document></kml>')
    assert read_aoi(path, pyproj.CRS(4326)).area == 1


def test_other_geometry_beside_polygons_is_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    collection = shapely.GeometryCollection([Point(0, 0), shapely.MultiPolygon([box(0, 0, 2, 2)])])
    path = drawn(tmp_path / "aoi.gpkg", [Point(1, 1), shapely.force_3d(box(5, 5, 6, 6), 100), collection])
    assert read_aoi(path, UTM).area == 5
    assert "3 features, of which 2 are not polygons and are ignored" in caplog.text


def test_an_area_elsewhere_is_refused_with_both_extents(tmp_path: Path):
    grid = Grid(UTM, Affine(1, 0, 500_000, 0, -1, 3_000_000), 100, 100)
    path = drawn(tmp_path / "aoi.gpkg", [box(600_000, 0, 600_010, 10)])
    message = r"layer .* of .*aoi\.gpkg misses the scene: it covers x 600000 to 600010, y 0 to 10, the scene covers x"
    with pytest.raises(VectorError, match=message):
        read_aoi(path, UTM, grid=grid)
    # the frame around two polygons meets the scene, and neither of them does
    sides = drawn(
        tmp_path / "sides.gpkg", [box(499_000, 2_999_900, 499_900, 3e6), box(500_200, 2_999_900, 501_000, 3e6)]
    )
    with pytest.raises(VectorError, match="misses the scene"):
        read_aoi(sides, UTM, grid=grid)
    lost = drawn(tmp_path / "lost.shp", [box(99, 27, 100, 28)])
    lost.with_suffix(".prj").unlink()
    with pytest.raises(
        VectorError, match=r"has no CRS and is assumed to be in WGS 84 / UTM zone 48N, misses the scene"
    ):
        read_aoi(lost, UTM, grid=grid)


def test_an_area_without_crs_is_taken_to_be_in_the_scenes_and_that_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    path = drawn(tmp_path / "aoi.shp", [box(500_010, 2_999_950, 500_020, 2_999_960)])
    grid = Grid(UTM, Affine(1, 0, 500_000, 0, -1, 3_000_000), 100, 100)
    assert read_aoi(path, UTM, grid=grid).area == 100
    assert not caplog.messages
    path.with_suffix(".prj").unlink()
    assert read_aoi(path, UTM, grid=grid).area == 100
    assert [said for said in caplog.messages if "has no CRS" in said] == [
        f"{path} has no CRS: its coordinates are taken to be in WGS 84 / UTM zone 48N"
    ]


@pytest.mark.parametrize("crs", [32648, 3857, 2154, 4326])
def test_an_area_may_be_larger_than_what_the_scenes_crs_can_map(tmp_path: Path, crs: int):
    x, y, unit = {32648: (5e5, 3e6, 1), 3857: (1.15e7, 3e6, 1), 2154: (7e5, 6.6e6, 1), 4326: (105, 30, 1e-5)}[crs]
    grid = Grid(pyproj.CRS(crs), Affine(unit, 0, x, 0, -unit, y), 100, 100)
    world = drawn(tmp_path / "world.gpkg", [box(-180, -90, 180, 90)], crs=4326)
    assert read_aoi(world, grid.crs, grid=grid).contains(grid.outline)
    half = gpd.GeoSeries([box(x, y - 100 * unit, x + 50 * unit, y)], crs=crs).to_crs(4326)
    area = read_aoi(drawn(tmp_path / "half.gpkg", list(half), crs=4326), grid.crs, grid=grid)
    assert area.intersection(grid.outline).area == pytest.approx(grid.outline.area / 2, rel=1e-3)
    with pytest.raises(VectorError, match=r"misses the scene: .*it covers x -60 to -50, y -30 to -20, the scene"):
        read_aoi(drawn(tmp_path / "brazil.gpkg", [box(-60, -30, -50, -20)], crs=4326), grid.crs, grid=grid)


@pytest.mark.parametrize("name", ["!site", "a;b", "a!b;c ü"])
@pytest.mark.parametrize("suffix", [".geojson", ".gpkg", ".shp"])
def test_names_that_pyogrio_would_cut_are_read(tmp_path: Path, name: str, suffix: str):
    (tmp_path / name).mkdir()
    for source in drawn(tmp_path / f"a{suffix}", [box(0, 0, 1, 1)], crs=4326).parent.glob("a.*"):
        source.rename(tmp_path / name / source.name.replace("a.", f"{name}."))
    assert read_aoi(tmp_path / name / f"{name}{suffix}", pyproj.CRS(4326)).area == pytest.approx(1)


def test_text_in_an_older_encoding_hinders_nothing(tmp_path: Path):
    gpd.GeoDataFrame({"name": ["Hölle"]}, geometry=[box(0, 0, 1, 1)], crs=UTM).to_file(
        tmp_path / "a.shp", encoding="ISO-8859-1"
    )
    (tmp_path / "a.cpg").write_text("UTF-8")
    assert read_aoi(tmp_path / "a.shp", UTM).area == 1
    assert read_features(tmp_path / "a.shp", UTM)["name"].tolist() == ["Hölle"]

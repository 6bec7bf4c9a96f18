"""What comes from strangers runs no code, takes no memory that was not asked for, and reads no file of this machine."""

from __future__ import annotations

import functools
import http.server
import json
import os
import sqlite3
import threading
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pyproj
import pytest
import rasterio
import shapely
from affine import Affine
from PIL import Image
from rasterio.shutil import copy
from rasterio.transform import from_origin
from rasterio.vrt import WarpedVRT
from scenes import write_raster

from geolabel.errors import GeolabelError, OutputError, SceneError, VectorError, WeightsError
from geolabel.evaluation.evaluate import evaluate
from geolabel.extraction.plan import make_plan
from geolabel.extraction.polygonize import polygonize
from geolabel.extraction.request import Parameters
from geolabel.io import databases, storage
from geolabel.io.read import formats
from geolabel.io.read.features import read_aoi, read_prompts
from geolabel.io.read.fingerprints import fingerprint
from geolabel.io.read.opening import files_of, is_remote, reading
from geolabel.io.read.scenes import SceneReader
from geolabel.io.read.sources import FileSource
from geolabel.io.read.vrt import refuse_local
from geolabel.io.records import Store
from geolabel.io.write.geopackage import read_provenance
from geolabel.io.written import read_written
from geolabel.models.nets import build
from geolabel.scene import Grid
from geolabel.testing import RECIPES
from geolabel.tiles import BlockGrid, TileGrid, Window

PLACE = "<SRS>EPSG:32648</SRS><GeoTransform>500000, 0.5, 0, 3000000, 0, -0.5</GeoTransform>"


def vrt(bands: str, size: int = 64, inner: str = PLACE) -> str:
    return f'<VRTDataset rasterXSize="{size}" rasterYSize="{size}">{inner}{bands}</VRTDataset>'


def huge(path: Path) -> Path:
    """A file of a kilobyte whose one tile takes 1.5 GB when it is read."""
    size = {"height": 40_000, "width": 40_000, "blockxsize": 40_000, "blockysize": 40_000}
    place = {"crs": "EPSG:32648", "transform": from_origin(500_000, 3_000_000, 0.5, 0.5)}
    options = {"tiled": True, "compress": "deflate", "sparse_ok": True, "bigtiff": "yes"}
    with rasterio.open(path, "w", driver="GTiff", dtype="uint8", count=1, **size, **place, **options):
        return path


def band(source: str, relative: int = 0, kind: str = "SimpleSource") -> str:
    name = f'<SourceFilename relativeToVRT="{relative}">{source}</SourceFilename><SourceBand>1</SourceBand>'
    return f'<VRTRasterBand dataType="Byte"><{kind}>{name}</{kind}></VRTRasterBand>'


@pytest.fixture(autouse=True)
def no_waits(monkeypatch):
    monkeypatch.setattr(storage, "WAITS", (0.0,))


@pytest.fixture
def tiff(tmp_path: Path) -> Path:
    path = tmp_path / "scene.tif"
    return write_raster(path, np.full((3, 64, 64), 200, np.uint8), photometric="rgb")


# Code


def test_a_vrt_runs_no_python(tiff: Path, tmp_path: Path):
    code = f"def f(*a):\n  open({str(tmp_path / 'ran')!r}, 'w')"
    function = (
        f"<PixelFunctionLanguage>Python</PixelFunctionLanguage><PixelFunctionType>f</PixelFunctionType>"
        f"<PixelFunctionCode><![CDATA[{code}]]></PixelFunctionCode>"
    )
    one = band(str(tiff)).replace("<VRTRasterBand ", '<VRTRasterBand subClass="VRTDerivedRasterBand" ')
    path = tmp_path / "code.vrt"
    path.write_text(vrt(one.replace("<SimpleSource>", f"{function}<SimpleSource>") * 3))
    with pytest.raises(GeolabelError):
        make_plan(SceneReader(path), *RECIPES, Parameters())
    slides = tmp_path / "slides.gpkg"
    gpd.GeoDataFrame(geometry=[shapely.box(5e5, 3e6 - 9, 5e5 + 9, 3e6)], crs=32648).to_file(slides)
    for read in (lambda: polygonize(path), lambda: evaluate(slides, path)):
        with pytest.raises(GeolabelError):
            read()
    assert not (tmp_path / "ran").exists()


# Sizes


def test_a_header_may_not_claim_more_than_can_be_worked_on(tmp_path: Path):
    path = tmp_path / "huge.vrt"
    place = "<SRS>EPSG:3857</SRS><GeoTransform>-20000000, 0.01, 0, 10000000, 0, -0.01</GeoTransform>"
    path.write_text(vrt('<VRTRasterBand dataType="Byte"/>' * 3, 2**31 - 1, place))
    reader = SceneReader(path)
    with pytest.raises(SceneError, match=r"\d+ x \d+ px make \d+ pieces .*--bounds"):
        make_plan(reader, *RECIPES, Parameters())
    with pytest.raises(SceneError, match="pieces"):
        polygonize(path)
    part = make_plan(reader, *RECIPES, Parameters(), bounds=(0, 0, 2, 2), stretch="0,255")
    assert 190 < part.grid.width < 210


@pytest.mark.parametrize("size", [1, 512])
def test_pieces_are_counted_before_they_are_listed(size: int):
    with pytest.raises(SceneError, match="the limit of a run is 67108864"):
        TileGrid(2**31, 2**31, size, 0)
    with pytest.raises(SceneError, match="the limit of a run is 67108864"):
        BlockGrid(10**12, 10**12, size)


def test_a_header_may_not_claim_any_number_of_bands(tmp_path: Path):
    path = tmp_path / "bands.vrt"
    path.write_text(vrt('<VRTRasterBand dataType="Byte"/>' * 100_000))
    with pytest.raises(SceneError, match="100000 bands, the limit is 4096"):
        _ = SceneReader(path).scene


@pytest.mark.parametrize(("width", "height", "count", "says"), [(2**30, 8, 3, "1024 MB"), (256, 256, 4000, "blocks")])
def test_a_piece_of_a_file_may_not_take_all_memory(tmp_path: Path, width: int, height: int, count: int, says: str):
    path = tmp_path / "pieces.tif"
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        dtype="uint16",
        count=count,
        height=height,
        width=width,
        sparse_ok=True,
        interleave="pixel",
        crs="EPSG:32648",
        transform=Affine(0.5, 0, 5e5, 0, -0.5, 3e6),
        bigtiff="yes",
        **({"tiled": True, "blockxsize": 512, "blockysize": 512} if width < 1000 else {"blockysize": 1}),
    ):
        pass
    with pytest.raises(SceneError, match=r"blocks of .*TILED=YES"):
        _ = SceneReader(path).scene


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ({"shape": [1 << 50]}, r"claims \(1125899906842624,\)"),
        ({"shape": [1 << 50], "data_offsets": [0, 1 << 50]}, r"claims \(1125899906842624,\)"),
        ({"shape": ["x" * 1000, 1 << 40]}, "claims"),
        ({"shape": [-5, -2]}, "claims"),
        ({"shape": [0], "data_offsets": [0, 0]}, "are accounted for"),
        ({"data_offsets": [-10, 0]}, "claims"),
        ({"data_offsets": 5}, "damaged"),
        ({"dtype": "O"}, "damaged"),
        ({"dtype": ["U8"]}, "damaged"),
        ({"shape": None}, "damaged"),
    ],
)
def test_a_record_may_not_claim_more_than_it_holds(tmp_path: Path, entry: dict[str, Any], says: str):
    header = {
        "__metadata__": {"crc32": '{"a": 0}'},
        "a": {"dtype": "U8", "shape": [10], "data_offsets": [0, 10]} | entry,
    }
    text = json.dumps(header).encode()
    (tmp_path / "x").mkdir()
    store = Store(tmp_path)
    (tmp_path / store.name("x", 0)).write_bytes(len(text).to_bytes(8, "little") + text + bytes(10))
    with pytest.raises(OutputError, match=says):
        store.read("x", 0)


@pytest.mark.parametrize("header", [b"", b"[" * 99999, b"[]", b"7", b"{}", b'{"__metadata__": 5}', b"\xff", b'{"a":'])
def test_a_record_without_a_header_is_none(tmp_path: Path, header: bytes):
    (tmp_path / "x").mkdir()
    store = Store(tmp_path)
    for length in (len(header), 1 << 62):
        (tmp_path / store.name("x", 0)).write_bytes(length.to_bytes(8, "little") + header)
        with pytest.raises(OutputError, match="damaged"):
            store.read("x", 0)
        assert not store.whole("x", 0)


@pytest.mark.parametrize(
    "change",
    [{"widths": [10**9] * 4}, {"depths": [10**9, 1, 1, 1]}, {"classes": float("inf")}, {"widths": [8] * 10**6}],
)
def test_a_network_may_not_ask_for_any_size(change: dict[str, Any]):
    pyramid = {"name": "pyramid", "classes": 2, "widths": [8] * 4, "depths": [1] * 4, "features": 8}
    with pytest.raises(WeightsError, match=next(iter(change))):
        build(pyramid | change)


def test_prompts_share_their_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from geolabel.io import prompt_layers

    monkeypatch.setattr(prompt_layers, "MOST_POINTS", 1000)
    path = tmp_path / "points.gpkg"
    numbers = np.r_[np.zeros(50, int), np.arange(50)]
    points = shapely.points(5e5 + numbers * 0.1, np.full(100, 3e6 - 5.0))
    gpd.GeoDataFrame({"prompt": numbers}, geometry=points, crs=32648).to_file(path)
    grid = Grid(pyproj.CRS("EPSG:32648"), Affine(0.5, 0, 5e5, 0, -0.5, 3e6), 100, 100)
    with pytest.raises(VectorError, match=r"prompt 0 has 51 points, and 50 prompts"):
        read_prompts(path, grid)


# Names


def test_names_of_layers_and_columns_may_hold_quotes(tmp_path: Path):
    path = tmp_path / "odd.gpkg"
    name = "a\"b'; DROP TABLE gpkg_contents; --"
    area = gpd.GeoDataFrame({name: [1]}, geometry=[shapely.box(0, 0, 9, 9)], crs=32648)
    area.to_file(path, layer=name, driver="GPKG")
    assert read_aoi(path, area.crs).area == 81
    assert evaluate(path, path).areas.iou == pytest.approx(1)


# Networks


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

    files = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(tmp_path)))
    thread = threading.Thread(target=files.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{files.server_port}"
    files.shutdown()
    files.server_close()
    thread.join()


def test_a_vrt_from_a_network_may_lay_images_of_the_network_side_by_side(tiff: Path, tmp_path: Path, server: str):
    (tmp_path / "mosaic.vrt").write_text(
        vrt(band("scene.tif", 1) + band(f"/vsicurl/{server}/scene.tif") + band("scene.tif", 1, "ComplexSource"))
    )
    reader = SceneReader(f"{server}/mosaic.vrt")
    bands, valid = reader.read(Window(0, 0, 64, 64), reader.scene.grid)
    assert valid.all()
    assert (bands == 200).all()


@pytest.mark.parametrize(
    ("named", "relative"),
    [
        ("{folder}/scene.tif", 0),
        ("{folder}/scene.tif", 1),
        ("file://{folder}/scene.tif", 0),
        ("/vsicurl/file://{folder}/scene.tif", 0),
        ("/vsizip/{folder}/scene.zip/scene.tif", 0),
        ("vrt://{folder}/scene.tif?bands=1", 0),
        ("GTIFF_DIR:1:{folder}/scene.tif", 1),
        ("&lt;VRTDataset/&gt;", 0),
    ],
)
def test_a_vrt_from_a_network_may_not_name_files_of_this_machine(
    tiff: Path, tmp_path: Path, server: str, named: str, relative: int
):
    (tmp_path / "local.vrt").write_text(vrt(band(named.format(folder=tmp_path), relative) * 3))
    with pytest.raises(SceneError, match=r"comes from a network but names .*download it"):
        _ = SceneReader(f"{server}/local.vrt").scene


def test_nor_by_way_of_another(tiff: Path, tmp_path: Path, server: str):
    (tmp_path / "inner.tif").write_text(vrt(band(str(tiff)) * 3))
    (tmp_path / "outer.vrt").write_text(vrt(band("inner.tif", 1) * 3))
    with pytest.raises(SceneError, match=r"leads to .*inner\.tif"):
        _ = SceneReader(f"{server}/outer.vrt").scene


def test_nor_do_more_than_lay_images_side_by_side(tiff: Path, tmp_path: Path, server: str):
    text = vrt(band("scene.tif", 1) * 3).replace("<VRTDataset ", '<VRTDataset subClass="VRTWarpedDataset" ')
    for name, changed in (
        (
            "derived",
            vrt(band("scene.tif", 1).replace("<VRTR", "<VRTR", 1)).replace(
                "<VRTRasterBand ", '<VRTRasterBand subClass="VRTDerivedRasterBand" '
            ),
        ),
        ("warped", text),
    ):
        (tmp_path / f"{name}.vrt").write_text(changed)
        with pytest.raises(SceneError, match=r"more than mosaic images|cannot be opened"):
            _ = SceneReader(f"{server}/{name}.vrt").scene


def test_overviews_of_an_image_from_a_network_lie_in_the_network(tiff: Path, tmp_path: Path, server: str):
    with rasterio.open(tiff, "r+") as file:
        file.update_tags(ns="OVERVIEWS", OVERVIEW_FILE=str(tiff))
    with pytest.raises(SceneError, match="names"):
        _ = SceneReader(f"{server}/scene.tif").scene


def test_formats_that_lead_elsewhere_are_not_opened_from_a_network(tiff: Path, tmp_path: Path, server: str):
    with rasterio.open(tiff) as file:
        profile = file.profile | {"driver": "ENVI"}
        pixels = file.read()
    for name in ("photometric", "tiled", "compress", "interleave", "blockxsize", "blockysize"):
        profile.pop(name, None)
    with rasterio.open(tmp_path / "scene.img", "w", **profile) as file:
        file.write(pixels)
    (tmp_path / "index.xml").write_text(
        f"<GDAL_WMS><Service name='TiledWMS'><ServerUrl>{server}</ServerUrl></Service></GDAL_WMS>"
    )
    assert SceneReader(tmp_path / "scene.img").scene.band_count == 3
    with pytest.raises(SceneError):
        _ = SceneReader(f"{server}/scene.img").scene
    with pytest.raises(SceneError):
        _ = SceneReader(f"{server}/index.xml").scene


def description(tiff: Path, inside: str = "", source: str = "<SourceBand>1</SourceBand>", name: str = "") -> str:
    named = f'<SourceFilename relativeToVRT="0">{name or tiff}</SourceFilename>'
    return vrt(
        f'<VRTRasterBand dataType="Byte">{inside}<SimpleSource>{named}{source}</SimpleSource></VRTRasterBand>' * 3
    )


OPTIONS = "<OpenOptions><OOI key='A'>b</OOI></OpenOptions>"


@pytest.mark.parametrize(
    "change",
    [
        {"source": OPTIONS},
        {"source": OPTIONS.lower()},
        {"source": "<openoptions/>"},
        {"inside": "<PixelFunctionCode>x</PixelFunctionCode>"},
        {"inside": "<Metadata domain='OVERVIEWS'><MDI key='OVERVIEW_FILE'>a.tif</MDI></Metadata>"},
        {"inside": "<MaskBand><VRTRasterBand subClass='VRTRawRasterBand'/></MaskBand>"},
        {"name": "vrt://a.tif"},
        {"name": "GTIFF_RAW:a.tif"},
        {"name": "/vsisubfile/0,a.tif"},
        {"name": "/vsimem/a.tif"},
        {"name": "/vsicurl?url=http://127.0.0.1/a.tif"},
        {"name": "/vsistdin/"},
        {"name": "&lt;VRTDataset/&gt;"},
        {"name": "{scene}.xml"},
        {"name": "{scene}.gti.gpkg"},
        {"name": "x" * 5000},
    ],
)
def test_a_vrt_of_this_machine_holds_nothing_but_what_is_listed(tiff: Path, tmp_path: Path, change: dict[str, str]):
    (tmp_path / "scene.tif.xml").write_text("<GDAL_WMS/>")
    (tmp_path / "scene.tif.gti.gpkg").write_bytes(tiff.read_bytes())
    change = {key: value.replace("{scene}", str(tiff)) for key, value in change.items()}
    path = tmp_path / "case.vrt"
    path.write_text(description(tiff, **change))
    with pytest.raises(GeolabelError, match=r"is not allowed there|leads to|can be called"):
        _ = SceneReader(path).scene
    path.write_text(description(tiff))
    assert SceneReader(path).scene.band_count == 3


def test_vrts_in_vrts_are_checked_too(tiff: Path, tmp_path: Path):
    (tmp_path / "inner.vrt").write_text(description(tiff))
    (tmp_path / "outer.vrt").write_text(description(tiff, name=str(tmp_path / "inner.vrt")))
    with SceneReader(tmp_path / "outer.vrt") as reader:
        assert (reader.read(Window(0, 0, 64, 64), reader.scene.grid)[0] == 200).all()
        assert {str(tmp_path / "inner.vrt"), str(tiff)} < set(files_of(str(tmp_path / "outer.vrt")))
    (tmp_path / "inner.vrt").write_text(description(tiff, source=OPTIONS))
    (tmp_path / "other.vrt").write_text(description(tiff, name=str(tmp_path / "inner.vrt")))
    with pytest.raises(SceneError, match="OpenOptions"):
        _ = SceneReader(tmp_path / "other.vrt").scene
    (tmp_path / "self.vrt").write_text(description(tiff, name=str(tmp_path / "self.vrt")))
    with pytest.raises(SceneError, match="leads to"):
        _ = SceneReader(tmp_path / "self.vrt").scene


@pytest.mark.parametrize("end", [".ovr", ".msk", ".OVR", ".ovr.msk"])
def test_what_lies_beside_an_image_is_an_image(tiff: Path, tmp_path: Path, end: str):
    if end == ".ovr.msk":
        (tmp_path / "scene.tif.ovr").write_bytes(tiff.read_bytes())
    (tmp_path / f"scene.tif{end}").write_text(description(tiff))
    for name in ("scene.tif", "case.vrt"):
        (tmp_path / "case.vrt").write_text(description(tiff))
        with pytest.raises(SceneError, match="as its overviews or mask, but it is not an image"):
            _ = SceneReader(tmp_path / name).scene


def test_overviews_beside_a_vrt_are_used(tmp_path: Path):
    with rasterio.open(
        tmp_path / "a.tif",
        "w",
        driver="GTiff",
        dtype="uint8",
        count=3,
        height=512,
        width=512,
        crs="EPSG:32648",
        transform=Affine(0.5, 0, 5e5, 0, -0.5, 3e6),
    ) as file:
        file.write(np.full((3, 512, 512), 9, np.uint8))
    path = tmp_path / "a.vrt"
    copy(tmp_path / "a.tif", path, driver="VRT")
    assert SceneReader(path).source.levels == ((512, 512),)
    with rasterio.open(path, "r+") as file:
        file.build_overviews([2, 4])
    path.touch()
    assert SceneReader(path).source.levels == ((512, 512), (256, 256), (128, 128))


def test_a_warped_vrt_is_read_as_gdal_reads_it(tiff: Path, tmp_path: Path):
    with rasterio.open(tiff) as file, WarpedVRT(file, crs="EPSG:3857") as warped:
        copy(warped, tmp_path / "warped.vrt", driver="VRT")
        expected = warped.read()
    reader = SceneReader(tmp_path / "warped.vrt", bands="1,2,3")
    grid = reader.scene.grid
    assert np.array_equal(reader.read(grid.window, grid)[0], expected[:3])


def test_a_remote_description_is_fetched_once(tiff: Path, tmp_path: Path, server: str):
    path = tmp_path / "once.vrt"
    path.write_text(vrt(band("scene.tif", 1) * 3))
    first = SceneReader(f"{server}/once.vrt")
    assert first.scene.band_count == 3
    path.write_text(vrt(band(str(tiff)) * 3))
    with SceneReader(f"{server}/once.vrt") as again:
        assert (again.read(Window(0, 0, 9, 9), again.scene.grid)[0] == 200).all()
    area = gpd.GeoDataFrame(geometry=[shapely.box(0, 0, 9, 9)], crs=32648)
    area.to_file(tmp_path / "area.gpkg", layer="area")
    assert read_aoi(f"{server}/area.gpkg", area.crs).area == 81
    (tmp_path / "area.gpkg").unlink()
    assert read_aoi(f"{server}/area.gpkg", area.crs).area == 81


def test_vector_files_hold_their_own_features(tmp_path: Path, server: str):
    area = gpd.GeoDataFrame(geometry=[shapely.box(5e5, 0, 5e5 + 9, 9)], crs=32648)
    for name, driver in (
        ("a.gpkg", "GPKG"),
        ("a.shp", "ESRI Shapefile"),
        ("a.fgb", "FlatGeobuf"),
        ("a.geojson", "GeoJSON"),
        ("a.kml", "LIBKML"),
        ("a.kmz", "LIBKML"),
        ("a.gdb", "OpenFileGDB"),
        ("a.shp.zip", "ESRI Shapefile"),
    ):
        area.to_crs(4326 if "km" in name else 32648).to_file(tmp_path / name, driver=driver)
        assert read_aoi(tmp_path / name, area.crs).area == pytest.approx(81, rel=1e-3), name
        if name != "a.gdb":
            assert read_aoi(f"{server}/{name}", area.crs).area == pytest.approx(81, rel=1e-3), name
    source = f"<SrcDataSource>{tmp_path / 'a.gpkg'}</SrcDataSource>"
    for name, text in (
        ("a.vrt", f'<OGRVRTDataSource><OGRVRTLayer name="a">{source}</OGRVRTLayer></OGRVRTDataSource>'),
        (
            "a.gdalg.json",
            json.dumps({"type": "gdal_streamed_alg", "command_line": f"gdal vector info {tmp_path}/a.gpkg"}),
        ),
        ("a.gml", "<gml:FeatureCollection xmlns:gml='http://www.opengis.net/gml'/>"),
        ("a.csv", "WKT\nPOINT(0 0)\n"),
    ):
        (tmp_path / name).write_text(text)
        for path in (tmp_path / name, f"{server}/{name}", f"/vsicurl/{server}/{name}"):
            with pytest.raises(VectorError, match="cannot be read as a vector file"):
                read_aoi(path, area.crs)


@pytest.mark.parametrize(
    "table",
    [
        "CREATE VIRTUAL TABLE v USING VirtualText('/etc/a')",
        "CREATE/**/VIRTUAL TABLE v USING VirtualText('/etc/a')",
        "CREATE VIRTUAL TABLE v USING VirtualText('/etc/a', ' USING rtree')",
    ],
)
def test_a_geopackage_has_no_table_that_is_read_from_elsewhere(tmp_path: Path, table: str):
    path = tmp_path / "a.gpkg"
    gpd.GeoDataFrame(geometry=[shapely.box(0, 0, 9, 9)], crs=32648).to_file(path)
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("PRAGMA writable_schema = ON")
        database.execute("INSERT INTO sqlite_master VALUES ('table', 'v', 'v', 0, ?)", (table,))
    with pytest.raises(VectorError, match="a table that is read from elsewhere"):
        read_aoi(path, pyproj.CRS(32648))


def test_nor_has_a_geopackage_of_tiles(tmp_path: Path):
    path = tmp_path / "a.gpkg"
    image = np.full((3, 64, 64), 90, np.uint8)
    transform = from_origin(500000, 3000000, 1, 1)
    with rasterio.open(
        path, "w", driver="GPKG", width=64, height=64, count=3, dtype="uint8", crs=32648, transform=transform
    ) as file:
        file.write(image)
    assert SceneReader(path).scene.grid.width == 64
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("PRAGMA writable_schema = ON")
        table = "CREATE/**/VIRTUAL TABLE v USING VirtualText('/etc/a')"
        database.execute("INSERT INTO sqlite_master VALUES ('table', 'v', 'v', 0, ?)", (table,))
    with pytest.raises(SceneError, match=r"a table that is read from elsewhere.*as GeoTIFF"):
        SceneReader(path).scene  # noqa: B018
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(path, "a.gpkg")
    with pytest.raises(SceneError, match="is a database in an archive"):
        SceneReader(f"/vsizip/{tmp_path}/a.zip/a.gpkg").scene  # noqa: B018


@pytest.mark.parametrize(
    ("view", "fails"),
    [
        ("SELECT fid, geom FROM a", False),
        ("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i AS fid, geom FROM n, a", True),
        ("SELECT gdal_get_pixel_value('b.tif', 1, 'pixel', 1, 1) AS v, geom FROM a", True),
    ],
)
def test_a_view_of_a_geopackage_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, view: str, fails: bool):
    monkeypatch.setattr(databases, "MAX_STEPS", databases.STEPS)
    path = tmp_path / "a.gpkg"
    gpd.GeoDataFrame(geometry=[shapely.box(0, 0, 9, 9)], crs=32648).to_file(path)
    with closing(sqlite3.connect(path)) as database, database:
        database.execute(f"CREATE VIEW v AS {view}")
    if fails:
        with pytest.raises(VectorError, match="its view 'v' takes too long to read"):
            read_aoi(path, pyproj.CRS(32648))
    else:
        assert read_aoi(path, pyproj.CRS(32648)).area == 81


@pytest.mark.parametrize(
    "content",
    [
        '{"type": "GeometryCollection", "geometries": 5}',
        '{"type": "FeatureCollection", "crs": {"type": "name", "properties": 5}, "features": []}',
        '{"type": "Polygon", "coordinates": [[[1e300, 27], [105.1, 2e300], [105.1, 27.1], [1e300, 27]]]}',
    ],
)
def test_geojson_of_any_values_is_an_error_of_ours(tmp_path: Path, content: str):
    (tmp_path / "a.geojson").write_text(content)
    with pytest.raises(VectorError):
        read_aoi(tmp_path / "a.geojson", pyproj.CRS(32648))


@pytest.mark.parametrize("name", ["p.tif", "p.vrt", "p"])
def test_a_pipe_is_no_scene(tmp_path: Path, name: str):
    os.mkfifo(tmp_path / name)
    with pytest.raises(SceneError, match="a pipe or a device"):
        FileSource(str(tmp_path / name)).header  # noqa: B018


def test_nor_is_one_read_in_the_folder_of_a_run_or_for_provenance(tmp_path: Path):
    os.mkfifo(tmp_path / "run.json")
    with pytest.raises(OutputError, match="a pipe or a device, not a file: remove it"):
        storage.FolderStorage(tmp_path).open("run.json")
    assert read_provenance(tmp_path / "run.json") is None
    assert read_written(tmp_path / "run.json") is None


@pytest.mark.parametrize("end", [".ovr", ".msk", ".aux.xml"])
def test_nor_is_one_read_beside_a_scene(tiff: Path, end: str):
    os.mkfifo(f"{tiff}{end}")
    with pytest.raises(SceneError, match="a pipe or a device, not a file: remove it"):
        FileSource(str(tiff)).header  # noqa: B018


def test_a_crs_that_leads_elsewhere_is_an_error_of_ours(tiff: Path):
    tiff.with_name(f"{tiff.name}.aux.xml").write_text("<PAMDataset><SRS>/etc/hostname</SRS></PAMDataset>")
    with pytest.raises(SceneError):
        FileSource(str(tiff)).header  # noqa: B018


@pytest.mark.parametrize(
    "begin", ["zip://{}!", "/vsizip/{}/", "zip+{}!", "/vsizip/vsicurl/{}/", "/vsizip//vsicurl/{}/"]
)
def test_a_vrt_in_an_archive_shows_what_is_in_it(tiff: Path, tmp_path: Path, server: str, begin: str):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(tiff, "a.tif")
        archive.writestr("a.vrt", vrt(band("a.tif", 1)))
    home = f"{server}/a.zip" if "curl" in begin or "+" in begin else str(tmp_path / "a.zip")
    with reading(f"{begin.format(home)}a.vrt") as found, rasterio.open(tiff) as image:
        assert (found.read(1) == image.read(1)).all()


@pytest.mark.parametrize(
    ("name", "remote"),
    [
        ("https://a.org/b.tif", True),
        ("/vsicurl/https://a.org/b.tif", True),
        ("/vsicurl_streaming/https://a.org/b.tif", True),
        ("/vsizip//vsicurl/https://a.org/b.zip/c.tif", True),
        ("/vsizip/vsicurl/https://a.org/b.zip/c.tif", True),
        ("/vsizip/{/vsis3/a/b.zip}/c.tif", True),
        ("/vsis3/a/b.tif", True),
        ("b.tif", False),
        ("/etc/hostname", False),
        ("C:\\a.tif", False),
        ("/vsizip/{/home/a.zip}/vsicurl/b.tif", False),
        ("/vsimem/a.tif", False),
        ("file:///etc/hostname", False),
        ("/vsicurl?url=file:///etc/hostname", False),
        ("vrt:///etc/hostname", False),
        ("", False),
    ],
)
def test_what_leads_to_this_machine(name: str, remote: bool):
    if remote:
        refuse_local(name, "https://a.org/scene.vrt")
        assert is_remote(name)
    else:
        with pytest.raises(SceneError, match="local files"):
            refuse_local(name, "https://a.org/scene.vrt")


def test_formats_are_gdals():
    with rasterio.Env() as env:
        known = set(env.drivers())
    listed = {driver for one in formats.FORMATS for driver in one.drivers}
    far = {driver for one in formats.FORMATS if one.network for driver in one.drivers}
    assert {"GTiff", "PNG", "JPEG", "JP2OpenJPEG", "HFA", "ENVI", "GPKG"} <= listed & known
    assert not {"VRT", "WMS", "GTI", "STACIT", "MRF", "PCIDSK", "DIMAP", "PDS4", "PDF", "Rasterlite"} & listed
    assert not {"HDF5", "netCDF", "GPKG", "Zarr", "ENVI", "HFA"} & far


def test_a_raster_that_is_nowhere_opens_without_a_foreign_warning(tmp_path: Path) -> None:
    path = tmp_path / "chip.png"
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with reading(str(path)) as dataset:
            assert dataset.crs is None
        assert SceneReader(path, gsd=1).sample()[1].all()
        assert fingerprint(SceneReader(path, gsd=1)) is not None


def test_pieces_that_do_not_fit_into_memory_are_refused_of_what_a_raster_leads_to(tmp_path: Path, tiff: Path) -> None:
    source = huge(tmp_path / "huge.tif")
    (tmp_path / "a.vrt").write_text(vrt(band(str(source)), 40_000))
    source_beside = tmp_path / "b.tif"
    source_beside.write_bytes(tiff.read_bytes())
    for scene in (source, tmp_path / "a.vrt"):
        with pytest.raises(SceneError, match=r"huge\.tif is stored in blocks of 40000 x 40000 px, 1525 MB each"):
            SceneReader(scene).sample()
    source.rename(tmp_path / "b.tif.ovr")
    with pytest.raises(SceneError, match=r"b\.tif\.ovr is stored in blocks"):
        SceneReader(source_beside).sample()

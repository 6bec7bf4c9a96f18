"""Layers of map tiles: the same pixels and polygons as of one file, and nothing but tiles from whom they were asked."""

from __future__ import annotations

import http.server
import json
import os
import pickle
import threading
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from click.testing import CliRunner
from PIL import Image

import geolabel
from geolabel.cli.main import cli
from geolabel.errors import GeolabelError, OptionError, SceneError
from geolabel.extraction.request import Networks, Parameters, Reading
from geolabel.extraction.scene_groups import prepare
from geolabel.io import storage
from geolabel.io.read import map_tiles, tile_cache
from geolabel.io.read.fingerprints import fingerprint
from geolabel.io.read.map_tiles import MapTiles, open_map_tiles
from geolabel.io.read.scene_inputs import list_scenes
from geolabel.io.read.scenes import SceneReader
from geolabel.io.read.tile_urls import HALF_M, Template, is_map_tiles, template_of
from geolabel.synthetic import synthesize
from geolabel.tiles import Window
from geolabel.types import AnyArray
from geolabel.urls import without_secrets

ZOOM, ROW, COL = 18, 109_000, 206_000  # 27.9 degrees north, where its pixels have 0.53 m
PIXEL = 2 * HALF_M / (256 << ZOOM)
PLACE = Affine(PIXEL, 0, COL * 256 * PIXEL - HALF_M, 0, -PIXEL, HALF_M - ROW * 256 * PIXEL)


class Answers(http.server.BaseHTTPRequestHandler):
    """Serves tiles by their path, and what else a test has put there: a status, bytes, or where to go instead."""

    server: Server

    def do_GET(self) -> None:
        self.server.asked.append((self.path, dict(self.headers)))
        content = self.server.content
        found = content.get(self.path.partition("?")[0], content.get("*", 404))
        if isinstance(found, str):
            self.send_response(302)
            self.send_header("Location", found)
            self.end_headers()
        elif isinstance(found, int):
            self.send_response(found)
            self.end_headers()
        else:
            self.send_response(200)
            self.send_header("Content-Length", str(len(found)))
            self.end_headers()
            self.wfile.write(found)

    def log_message(self, *_: object) -> None:
        pass


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.content: dict[str, bytes | int | str] = {}
        self.asked: list[tuple[str, dict[str, str]]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/{{z}}/{{x}}/{{y}}.png"

    def cut(self, picture: AnyArray, size: int = 256, zoom: int = ZOOM, row: int = ROW, col: int = COL) -> None:
        """Serve a picture (H, W, 3 or 4) as tiles, the first of them at a row and a column."""
        for down in range(0, picture.shape[0], size):
            for along in range(0, picture.shape[1], size):
                name = f"/{zoom}/{col + along // size}/{row + down // size}.png"
                self.content[name] = encoded(picture[down : down + size, along : along + size])

    def handle_error(self, *_: object) -> None:
        pass


def encoded(picture: AnyArray, form: str = "PNG", **options: Any) -> bytes:
    buffer = BytesIO()
    Image.fromarray(picture).save(buffer, form, **options)
    return buffer.getvalue()


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as one:
        threading.Thread(target=one.serve_forever, args=(0.01,), daemon=True).start()
        yield one
        one.shutdown()


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own, and no waits."""
    monkeypatch.setenv("GEOLABEL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(storage, "WAITS", (0.0,))
    return tmp_path / "cache" / "tiles"


def noise(height: int = 512, width: int = 768, bands: int = 3) -> AnyArray:
    return np.random.default_rng(0).integers(1, 255, (height, width, bands), np.uint8)


def bounds_of(height: int, width: int, place: Affine = PLACE) -> tuple[float, float, float, float]:
    left, top = place * (0, 0)
    right, bottom = place * (width, height)
    return left, bottom, right, top


def opened(server: Server, picture: AnyArray, gsd: float = 0.55) -> MapTiles:
    server.cut(picture)
    return open_map_tiles(server.url, bounds_of(*picture.shape[:2]), gsd)


def tiff(path: Path, picture: AnyArray) -> Path:
    height, width, count = picture.shape
    profile = {"crs": "EPSG:3857", "transform": PLACE, "dtype": "uint8", "photometric": "rgb"}
    with rasterio.open(path, "w", driver="GTiff", count=count, height=height, width=width, **profile) as target:
        target.write(np.moveaxis(picture, 2, 0))
    return path


def outline(path: Path, bounds: tuple[float, float, float, float]) -> Path:
    gpd.GeoDataFrame(geometry=[shapely.box(*bounds)], crs="EPSG:3857").to_crs("EPSG:4326").to_file(path)
    return path


# --- the pixels ------------------------------------------------------------------------------------------------------


def test_tiles_are_the_picture_that_they_were_cut_from(server: Server) -> None:
    picture = noise()
    layer = opened(server, picture)
    assert layer.header.transform is not None
    assert layer.header.transform.almost_equals(PLACE, 1e-6)
    for window in (Window(0, 0, 512, 768), Window(200, 250, 100, 270), Window(511, 767, 1, 1), Window(3, 3, 9, 9)):
        values, valid = layer.read([3, 1], window)
        rows, cols = slice(window.row, window.bottom), slice(window.col, window.right)
        np.testing.assert_array_equal(values, np.moveaxis(picture[rows, cols], 2, 0)[[2, 0]])
        assert valid.all()


def test_a_sample_picks_the_pixels_that_gdal_picks_of_a_file(server: Server, tmp_path: Path) -> None:
    picture = noise()
    layer = opened(server, picture)
    with rasterio.open(tiff(tmp_path / "one.tif", picture)) as one:
        for height, width in ((512, 768), (100, 77), (1, 1), (511, 3)):
            np.testing.assert_array_equal(
                layer.decimate([1, 2, 3], height, width)[0], one.read(out_shape=(3, height, width))
            )


def test_transparent_and_missing_pixels_are_no_data(server: Server) -> None:
    picture = noise(bands=4)
    picture[..., 3] = 255
    picture[:40, :, 3] = 0
    server.cut(picture)
    del server.content[f"/{ZOOM}/{COL + 2}/{ROW + 1}.png"]
    server.content[f"/{ZOOM}/{COL}/{ROW + 1}.png"] = 410
    server.content[f"/{ZOOM}/{COL + 1}/{ROW}.png"] = b""
    layer = open_map_tiles(server.url, bounds_of(512, 768), 0.55)
    assert layer.fetch() == 3
    truth = picture[..., 3] > 0
    truth[256:, 512:] = truth[256:, :256] = truth[:256, 256:512] = False
    np.testing.assert_array_equal(layer.read([1], Window(0, 0, 512, 768))[1], truth)


@pytest.mark.parametrize(
    ("form", "mode"), [("JPEG", "RGB"), ("WEBP", "RGB"), ("PNG", "P"), ("PNG", "L"), ("PNG", "LA")]
)
def test_tiles_come_in_the_formats_of_the_web(server: Server, form: str, mode: str) -> None:
    grey = np.full((256, 256, 3), 120, np.uint8)
    buffer = BytesIO()
    Image.fromarray(grey).convert(mode, palette=Image.Palette.ADAPTIVE).save(buffer, form)
    server.content[f"/{ZOOM}/{COL}/{ROW}.png"] = buffer.getvalue()
    values, valid = open_map_tiles(server.url, bounds_of(256, 256), 0.55).read([1, 2, 3], Window(0, 0, 256, 256))
    assert abs(values.astype(int) - 120).max() <= 2
    assert valid.all()


def test_large_tiles_are_read_one_zoom_level_earlier(server: Server) -> None:
    picture = noise(512, 512)
    server.cut(picture, 512, ZOOM - 1, ROW // 2, COL // 2)
    for row in (0, 1):  # which the server has too, as the finer zoom that it was asked for first
        server.cut(noise(512, 1024), 512, ZOOM, ROW + row, COL)
    layer = open_map_tiles(server.url, bounds_of(512, 512), 0.55)
    assert (layer.zoom, layer.size) == (ZOOM - 1, 512)
    np.testing.assert_array_equal(layer.read([1], Window(0, 0, 512, 512))[0][0], picture[..., 0])


@pytest.mark.parametrize(("gsd", "zoom"), [(0.53, 18), (0.6, 18), (0.5, 19), (1.05, 17), (30, 13), (1e9, 0)])
def test_the_zoom_is_the_coarsest_that_is_as_fine_as_asked_for(server: Server, gsd: float, zoom: int) -> None:
    server.content["*"] = encoded(noise(256, 256))
    layer = open_map_tiles(server.url, bounds_of(256, 256), gsd)
    assert layer.zoom == zoom
    found = SceneReader(layer).scene.grid.gsd
    assert found <= gsd * 1.01
    assert zoom == 0 or 2 * found > gsd


@pytest.mark.parametrize(
    ("template", "url"),
    [
        ("https://h/{z}/{x}/{y}.png", "https://h/3/5/2.png"),
        ("https://h/{z}/{x}/{-y}.png", "https://h/3/5/5.png"),
        ("https://h/t/{q}.jpg?g=1", "https://h/t/121.jpg?g=1"),
        ("https://h/%7Bz%7D/%7bx%7d/{y}", "https://h/3/5/2"),
        (
            "https://h/wmts/layer/default/GoogleMapsCompatible/{TileMatrix}/{TileRow}/{TileCol}.png",
            "https://h/wmts/layer/default/GoogleMapsCompatible/3/2/5.png",
        ),
        ("https://h/w?REQUEST=GetTile&TILEMATRIX={z}&TILEROW={y}&TILECOL={x}", None),
    ],
)
def test_the_url_of_a_tile_is_that_of_its_place(template: str, url: str | None) -> None:
    # Bing's quadkey of column 5, row 2 at zoom 3: digits are bits of the column plus twice those of the row.
    assert is_map_tiles(template)
    made = Template.parse(template).url(3, 2, 5)
    assert made == (url or "https://h/w?REQUEST=GetTile&TILEMATRIX=3&TILEROW=2&TILECOL=5")


def test_it_travels_as_its_arguments(server: Server) -> None:
    layer = opened(server, noise())
    with SceneReader(layer) as reader:
        there = pickle.loads(pickle.dumps(reader))
    grid = there.scene.grid
    np.testing.assert_array_equal(there.read(grid.window, grid)[0], np.moveaxis(noise(), 2, 0))
    assert fingerprint(there) == fingerprint(reader)


# --- the cache -------------------------------------------------------------------------------------------------------


def test_a_tile_is_asked_for_once(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = opened(server, noise())
    del server.content[f"/{ZOOM}/{COL}/{ROW}.png"]
    assert layer.fetch() == 1
    asked = len(server.asked)
    assert asked == 6  # the probe counts, and is not asked again
    assert all(headers["User-Agent"].startswith("geolabel/") for _, headers in server.asked)
    again = pickle.loads(pickle.dumps(layer))
    assert again.fetch() == 1
    monkeypatch.setenv("GEOLABEL_OFFLINE", "1")
    again.read([1], Window(0, 0, 512, 768))
    assert len(server.asked) == asked
    with pytest.raises(SceneError, match="GEOLABEL_OFFLINE forbids"):
        open_map_tiles(server.url, bounds_of(256, 256), 0.2)


def test_an_old_tile_is_asked_for_again(server: Server, alone: Path) -> None:
    layer = opened(server, noise())
    layer.fetch()
    asked = len(server.asked)
    for path in (one for one in alone.rglob("*") if one.is_file()):
        os.utime(path, (0, time.time() - 8 * 86_400))
    layer.fetch()
    assert len(server.asked) == 2 * asked


def test_the_cache_does_not_outgrow_its_limit(server: Server, alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep = alone / "mine.txt"
    keep.parent.mkdir(parents=True)
    keep.write_text("mine")
    layer = opened(server, noise())
    size = len(server.content[f"/{ZOOM}/{COL}/{ROW}.png"])  # type: ignore[arg-type]
    monkeypatch.setattr(tile_cache, "MAX_CACHE_BYTES", 3 * size)
    monkeypatch.setattr(tile_cache, "PRUNE_AFTER", 2)
    monkeypatch.setattr(map_tiles, "CONNECTIONS", 1)
    assert layer.fetch() == 0
    kept = [one for one in alone.rglob("*") if one.is_file() and one != keep]
    assert 1 <= len(kept) <= 3
    assert keep.read_text() == "mine"
    np.testing.assert_array_equal(layer.read([1], Window(0, 0, 512, 768))[0][0], noise()[..., 0])


def test_a_cache_that_cannot_be_written_costs_time_alone(server: Server, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    assert opened(server, noise()).fetch() == 0


# --- runs ------------------------------------------------------------------------------------------------------------


def test_polygons_of_a_layer_are_those_of_the_same_picture_in_a_file(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    picture = synthesize(512, 0.5, seed=1001).rgb
    server.cut(picture)
    url = server.url.replace("//", "//me:secret@") + "?key=secret"
    area = outline(tmp_path / "area.gpkg", bounds_of(511, 511))
    for name, scene, more in (("one", str(tiff(tmp_path / "one.tif", picture)), []), ("layer", url, ["--gsd", "0.55"])):
        out = str(tmp_path / f"{name}.gpkg")
        done = CliRunner().invoke(
            cli, ["extract", scene, "--out", out, "--aoi", str(area), "--min-confidence", "0", "--keep", *more]
        )
        assert done.exit_code == 0, done.output
    assert done.output.count("the terms of its provider") == 1
    truth, found = (gpd.read_file(tmp_path / f"{name}.gpkg", layer="landslides") for name in ("one", "layer"))
    assert len(truth) > 0
    assert found.geometry.geom_equals_exact(truth.geometry, 1e-6).all()
    assert list(found["confidence"]) == list(truth["confidence"])
    assert set(found["source"]) == {server.url}
    assert "secret" not in done.output
    for file in (one for one in tmp_path.rglob("*") if one.is_file()):
        assert b"secret" not in file.read_bytes(), file


def test_missing_tiles_are_said_and_left_out(server: Server, tmp_path: Path) -> None:
    server.cut(noise())
    del server.content[f"/{ZOOM}/{COL + 2}/{ROW}.png"]
    left, bottom, right, top = bounds_of(512, 768)
    arguments = ["predict", server.url, "--bounds", f"{left},{bottom},{right},{top}", "--gsd", "0.55", "--out"]
    done = CliRunner().invoke(cli, [*arguments, str(tmp_path / "scores.tif")])
    assert done.exit_code == 0, done.output
    assert "1 of 6 map tiles are missing on the server, and are read as nodata" in done.output
    with rasterio.open(tmp_path / "scores.tif") as scores:
        hidden = scores.read(1) == scores.nodata
    np.testing.assert_array_equal(hidden[:240, 528:], True)
    np.testing.assert_array_equal(hidden[270:, :] | hidden[:, :500].any(), False)


def test_the_page_of_a_review_shows_the_tiles_around_its_polygons(server: Server, tmp_path: Path) -> None:
    server.cut(noise(512, 1024))
    slides = outline(tmp_path / "slides.gpkg", bounds_of(60, 60, PLACE * Affine.translation(300, 100)))
    figures = geolabel.view(slides, server.url, tmp_path / "page.html", gsd=0.55)
    assert figures["polygons"] == 1
    assert {path for path, _ in server.asked} == {f"/{ZOOM}/{COL + 1}/{ROW}.png"}
    with pytest.raises(OptionError, match="--gsd METRES"):
        geolabel.view(slides, server.url, tmp_path / "other.html")


def test_layers_and_files_are_listed_alike(tmp_path: Path) -> None:
    (tmp_path / "scenes.txt").write_text("https://h/{z}/{x}/{y}.png\n")
    (one,) = list_scenes(tmp_path / "scenes.txt")
    assert one.source == "https://h/{z}/{x}/{y}.png"


def test_an_interrupted_fetch_resumes(server: Server) -> None:
    layer = opened(server, noise())
    name = f"/{ZOOM}/{COL + 2}/{ROW + 1}.png"
    tile, server.content[name] = server.content[name], 403
    with pytest.raises(SceneError, match=r"cannot be fetched: .*; run again to resume"):
        layer.fetch()
    server.content[name] = tile
    server.asked.clear()
    assert layer.fetch() == 0
    assert {path for path, _ in server.asked} >= {name}
    assert len(server.asked) < 6


# --- WMTS ------------------------------------------------------------------------------------------------------------

SETS = """
<TileMatrixSet><ows:Identifier>local</ows:Identifier><ows:SupportedCRS>urn:ogc:def:crs:EPSG::2056</ows:SupportedCRS>
<TileMatrix><ows:Identifier>0</ows:Identifier><ScaleDenominator>14285714.2857</ScaleDenominator>
<TopLeftCorner>2420000 1350000</TopLeftCorner><TileWidth>256</TileWidth><TileHeight>256</TileHeight></TileMatrix>
</TileMatrixSet>
<TileMatrixSet><ows:Identifier>google</ows:Identifier><ows:SupportedCRS>urn:ogc:def:crs:EPSG:6.18:3:3857</ows:SupportedCRS>
{matrices}</TileMatrixSet>"""

MATRIX = """<TileMatrix><ows:Identifier>{name}</ows:Identifier><ScaleDenominator>{scale}</ScaleDenominator>
<TopLeftCorner>-20037508.3428 20037508.3428</TopLeftCorner><TileWidth>256</TileWidth><TileHeight>256</TileHeight>
</TileMatrix>"""

REST = '<ResourceURL format="image/png" resourceType="tile" template="{url}"/>'


def capabilities(resource: str = "", sets: str = "google", href: str = "", names: str = "EPSG:3857:{}") -> bytes:
    """What a server says of its layer ortho, as the standard has it."""
    # 559082264.0287178 is the scale denominator of zoom 0 in the standard
    levels = [MATRIX.format(name=names.format(zoom), scale=559082264.0287178 / 2**zoom) for zoom in range(20)]
    get = f'<ows:Operation name="GetTile"><ows:DCP><ows:HTTP><ows:Get xlink:href="{href}"/></ows:HTTP></ows:DCP>'
    return f"""<?xml version="1.0"?><Capabilities xmlns="http://www.opengis.net/wmts/1.0"
xmlns:ows="http://www.opengis.net/ows/1.1" xmlns:xlink="http://www.w3.org/1999/xlink">
<ows:OperationsMetadata>{get if href else "<ows:Operation name='GetTile'>"}</ows:Operation></ows:OperationsMetadata>
<Contents><Layer><ows:Identifier>ortho</ows:Identifier><Style isDefault="true"><ows:Identifier>main</ows:Identifier>
</Style><Format>image/png</Format><Dimension><ows:Identifier>Time</ows:Identifier><Default>2023</Default></Dimension>
<TileMatrixSetLink><TileMatrixSet>{sets}</TileMatrixSet></TileMatrixSetLink>{resource}</Layer>
<Layer><ows:Identifier>hills</ows:Identifier></Layer>{SETS.format(matrices="".join(levels))}</Contents></Capabilities>""".encode()


def described(server: Server, **said: str) -> str:
    server.content["/caps.xml"] = capabilities(**said)
    return f"WMTS:http://127.0.0.1:{server.server_port}/caps.xml,layer=ortho"


def test_a_layer_of_wmts_has_the_tiles_that_its_capabilities_name(server: Server) -> None:
    picture = noise()
    server.cut(picture)
    where = f"http://127.0.0.1:{server.server_port}/t/{{Style}}/{{Time}}/{{TileMatrixSet}}/"
    text = described(server, resource=REST.format(url=where + "{TileMatrix}/{TileRow}/{TileCol}.png"))
    for name, tile in list(server.content.items()):
        if name.startswith(f"/{ZOOM}/"):
            _, zoom, col, row = name.removesuffix(".png").split("/")
            server.content[f"/t/main/2023/google/EPSG:3857:{zoom}/{row}/{col}.png"] = tile
            del server.content[name]
    layer = open_map_tiles(text, bounds_of(512, 768), 0.55)
    assert layer.fetch() == 0
    np.testing.assert_array_equal(layer.read([1], Window(0, 0, 512, 768))[0][0], picture[..., 0])
    asked = len(server.asked)
    assert pickle.loads(pickle.dumps(layer)).read([1], Window(0, 0, 9, 9))[1].all()
    assert open_map_tiles(text, bounds_of(512, 768), 0.55).zoom == ZOOM
    assert len(server.asked) == asked  # the capabilities are kept as tiles are
    with pytest.raises(OptionError, match=r"zoom levels 0 to 19, but --gsd needs 21"):
        open_map_tiles(text, bounds_of(256, 256), 0.1)


def test_without_a_template_the_query_of_the_standard_is_asked(server: Server) -> None:
    text = described(server, href=f"http://127.0.0.1:{server.server_port}/wmts?map=a&amp;", names="{}")
    made = template_of(text).url(3, 2, 5)
    assert made == (
        f"http://127.0.0.1:{server.server_port}/wmts?map=a&SERVICE=WMTS&REQUEST=GetTile&VERSION=1.0.0&LAYER=ortho"
        "&STYLE=main&FORMAT=image%2Fpng&TILEMATRIXSET=google&TILEMATRIX=3&TILEROW=2&TILECOL=5"
    )


def test_what_is_behind_a_proxy_is_asked_as_its_capabilities_are(monkeypatch: pytest.MonkeyPatch) -> None:
    said = capabilities(REST.format(url="http://maps.example:8080/{TileMatrix}/{TileCol}/{TileRow}.png"))
    monkeypatch.setattr(tile_cache, "tile_file", lambda *_: said)
    template = template_of("WMTS:https://me:secret@maps.example/caps.xml?key=secret,layer=ortho")
    assert template.url(1, 0, 1) == "https://me:secret@maps.example/EPSG:3857:1/1/0.png"


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost:{port}/{TileMatrix}/{TileCol}/{TileRow}.png",
        "http://127.0.0.1:1/{TileMatrix}/{TileCol}/{TileRow}.png",
        "https://elsewhere.example/{TileMatrix}/{TileCol}/{TileRow}.png",
        "file:///etc/{TileMatrix}/{TileCol}/{TileRow}.png",
        "/vsicurl/{TileMatrix}/{TileCol}/{TileRow}.png",
        "http://[/{TileMatrix}/{TileCol}/{TileRow}.png",
        "http://127.0.0.1:x/{TileMatrix}/{TileCol}/{TileRow}.png",
        "",
    ],
)
def test_capabilities_may_not_lead_to_another_server(server: Server, url: str) -> None:
    text = described(server, resource=REST.format(url=url.replace("{port}", str(server.server_port))))
    with pytest.raises(SceneError, match="only tiles of that server are read"):
        template_of(text)


@pytest.mark.parametrize(
    "answer", [b"", b"<html/>", b"<a>" * 99, b"<!DOCTYPE Capabilities [<!ENTITY a 'b'>]><Capabilities/>", b"\0" * 9]
)
def test_capabilities_that_are_none_are_said(server: Server, answer: bytes) -> None:
    text = described(server)
    server.content["/caps.xml"] = answer
    with pytest.raises(SceneError, match="does not give WMTS capabilities"):
        template_of(text)


def test_a_layer_of_wmts_is_named_and_in_web_mercator(server: Server) -> None:
    text = described(server, sets="local")
    with pytest.raises(SceneError, match=r"has no tiles in web Mercator \(EPSG:3857\), but in local"):
        template_of(text)
    with pytest.raises(OptionError, match=r"no layer is named: .* it has ortho, hills"):
        template_of(text.partition(",")[0])
    with pytest.raises(OptionError, match="there is no layer b: "):
        template_of(text.replace("ortho", "b"))
    for url in ("file:///a.xml", "http://h/a.xml", "/vsicurl/https://h/a.xml", "https://[/a.xml", "a.xml"):
        with pytest.raises(OptionError, match="over https"):
            template_of(f"WMTS:{url},layer=ortho")
    assert is_map_tiles("wmts:https://h/a.xml?b=c,layer=d")
    (listed,) = list_scenes("WMTS:https://h/a.xml?b=[c],layer=d")
    assert listed.source == "WMTS:https://h/a.xml?b=[c],layer=d"


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "file:///tiles/{z}/{x}/{y}.png",
        "/vsicurl/https://h/{z}/{x}/{y}.png",
        "/vsizip/a.zip/{z}/{x}/{y}.png",
        "tiles/{z}/{x}/{y}.png",
        "s3://bucket/{z}/{x}/{y}.png",
        "ftp://h/{z}/{x}/{y}.png",
        "http://h/{z}/{x}/{y}.png",
        "http://localhost.evil.example/{z}/{x}/{y}.png",
        "http://127.0.0.1@evil.example/{z}/{x}/{y}.png",
        "https://{z}.h/{x}/{y}.png",
        "https://{s}.h/{z}/{x}/{y}.png",
        "https://h/{z}/{x}.png",
        "https://h/{z}/{y}.png",
        "https://h/{z}/{x}/{y}/{time}.png",
        "https://h/{z}/{x}/{y}}.png",
        "https:///{z}/{x}/{y}.png",
    ],
)
def test_only_urls_of_tiles_are_asked(text: str) -> None:
    assert is_map_tiles(text)
    with pytest.raises(OptionError):
        open_map_tiles(text, bounds_of(256, 256), 0.5)
    with pytest.raises(GeolabelError):
        prepare(text, Reading(bounds=bounds_of(256, 256), gsd=0.5), Networks(), Parameters())


@pytest.mark.parametrize(
    ("reading", "said"),
    [
        (Reading(gsd=0.5), "--aoi or --bounds"),
        (Reading(bounds=(0, 0, 100, 100)), "--gsd METRES"),
        (Reading(bounds=(0, 0, 100, 100), gsd=1e-4), "the limit is 24"),
        (Reading(bounds=(9e7, 0, 9.1e7, 100), gsd=1), "no area"),
    ],
)
def test_an_area_and_a_size_of_pixels_are_needed(reading: Reading, said: str) -> None:
    with pytest.raises(OptionError, match=said):
        prepare("https://h.invalid/{z}/{x}/{y}.png", reading, Networks(), Parameters())


def test_a_region_of_too_many_tiles_is_refused_before_they_are_fetched(server: Server) -> None:
    server.content["*"] = encoded(noise(256, 256))
    left, bottom, right, top = bounds_of(256, 256)
    with pytest.raises(SceneError, match=r"takes \d+ tiles of zoom 18; the limit for a scene is 16384"):
        open_map_tiles(server.url, (left - 1e5, bottom - 1e5, right + 1e5, top + 1e5), 0.55)
    assert len(server.asked) <= 9


def test_where_the_server_has_nothing_is_said(server: Server) -> None:
    with pytest.raises(SceneError, match="has no tile of zoom 18 in the middle of the area"):
        open_map_tiles(server.url, bounds_of(256, 256), 0.55)


def test_commands_that_take_no_area_say_so() -> None:
    done = CliRunner().invoke(cli, ["info", "https://h.invalid/{z}/{x}/{y}.png"])
    assert done.exit_code != 0
    with pytest.raises(SceneError, match="is a layer of map tiles"):
        SceneReader("https://h.invalid/{z}/{x}/{y}.png")


# --- hostile ---------------------------------------------------------------------------------------------------------

VRT = b'<VRTDataset rasterXSize="256" rasterYSize="256"><VRTRasterBand dataType="Byte" band="1"/></VRTDataset>'


@pytest.mark.parametrize(
    "answer",
    [
        VRT,
        b"<html>give a key</html>",
        encoded(np.zeros((100, 256, 3), np.uint8)),
        encoded(np.zeros((1024, 1024, 3), np.uint8)),
        encoded(np.zeros((256, 256, 3), np.uint8), "TIFF"),
        encoded(np.zeros((256, 256, 3), np.uint8), "GIF"),
        encoded(noise(256, 256))[:300],
        b"\x89PNG\r\n\x1a\n" + bytes(100),
    ],
)
def test_what_is_no_tile_is_opened_by_nothing(server: Server, answer: bytes) -> None:
    server.content[f"/{ZOOM}/{COL}/{ROW}.png"] = answer
    with pytest.raises(SceneError, match="is not a tile"):
        open_map_tiles(server.url, bounds_of(256, 256), 0.55)


def test_an_answer_without_end_is_cut_off(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tile_cache, "MAX_TILE_BYTES", 1000)
    server.content[f"/{ZOOM}/{COL}/{ROW}.png"] = encoded(noise(256, 256))
    with pytest.raises(SceneError, match="too large for a map tile"):
        open_map_tiles(server.url, bounds_of(256, 256), 0.55)


def test_one_layer_has_tiles_of_one_size(server: Server) -> None:
    layer = opened(server, noise())
    server.content[f"/{ZOOM}/{COL}/{ROW}.png"] = encoded(noise(512, 512))
    with pytest.raises(SceneError, match="a tile of 512 px, and others are of 256 px"):
        layer.fetch()


@pytest.mark.parametrize(
    "target",
    [
        "file:///etc/passwd",
        "http://localhost:{port}/secret.png",
        "http://169.254.169.254/latest",
        "https://10.0.0.1/a.png",
        "https://printer.local/a.png",
        "ftp://example.org/a.png",
    ],
)
def test_redirects_into_this_machine_or_its_network_are_not_followed(server: Server, target: str) -> None:
    server.content["/secret.png"] = encoded(noise(256, 256))
    server.content[f"/{ZOOM}/{COL}/{ROW}.png"] = target.replace("{port}", str(server.server_port))
    with pytest.raises(SceneError, match=r"redirects|cannot be fetched"):
        open_map_tiles(server.url, bounds_of(256, 256), 0.55)
    assert not any("secret" in path for path, _ in server.asked)


def test_keys_in_the_url_of_tiles_are_not_shown() -> None:
    url = "https://me:secret@h/{z}/{x}/{y}.png?key=secret"
    assert without_secrets(url) == "https://h/{z}/{x}/{y}.png"
    assert without_secrets(f"no {url}, sorry") == "no https://h/{z}/{x}/{y}.png, sorry"
    assert without_secrets("https://h/{switch:a,b}/{z}?key=secret") == "https://h/{switch:a,b}/{z}"
    assert without_secrets(json.dumps({"a": "https://h/a?b=c"})) == '{"a": "https://h/a"}'

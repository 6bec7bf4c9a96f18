"""Scenes on web servers and in object stores: few requests, patience with what fails for a while, and no more."""

from __future__ import annotations

import http.server
import pickle
import re
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dask
import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.shutil import copy

import geolabel
from geolabel.errors import SceneError
from geolabel.extraction.request import Networks
from geolabel.io import storage
from geolabel.io.read import sources
from geolabel.io.read.fingerprints import fingerprint
from geolabel.io.read.scene_inputs import list_scenes
from geolabel.io.read.scenes import SceneReader
from geolabel.methods.apsam import Scenes
from geolabel.testing import RECIPES
from geolabel.tiles import Window

PART = Window(600, 600, 512, 512)


class Answers(http.server.BaseHTTPRequestHandler):
    """Serves the scene, in ranges, unless a fault is due: a status, an answer that breaks off, or none."""

    protocol_version = "HTTP/1.1"
    server: Store

    def do_HEAD(self) -> None:
        self.answer(b"")

    def do_GET(self) -> None:
        self.answer(self.server.content)

    def answer(self, content: bytes) -> None:
        fault = self.server.faults.pop(0) if self.server.faults else None
        self.server.requests.append((self.command, self.path, dict(self.headers)))
        if fault == "stalls":
            time.sleep(1.5)
            self.close_connection = True
            return
        if isinstance(fault, int):
            self.send_response(fault)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        size = len(self.server.content)
        asked = re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        first, last = (int(asked[1]), min(int(asked[2] or size), size - 1)) if asked else (0, size - 1)
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        self.send_header("Content-Length", str(last + 1 - first))
        self.send_header("ETag", self.server.tag)
        self.end_headers()
        part = content[first : last + 1]
        if fault == "breaks off":
            part, self.close_connection = part[: len(part) // 2], True
        self.wfile.write(part)

    def log_message(self, *_: object) -> None:
        pass


class Store(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, content: bytes) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.content = content
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.faults: list[int | str] = []
        self.served = 0
        self.tag = '"one"'

    def url(self) -> str:
        """A new name each time, since GDAL remembers what it knows of a file."""
        self.served += 1
        return f"http://127.0.0.1:{self.server_port}/{self.served}.tif"

    def handle_error(self, *_: object) -> None:
        """A client that has heard enough closes its connection."""


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scene")
    values = np.random.default_rng(0).integers(0, 200, (3, 1500, 1500), np.uint8)
    values[:, 700:820, 650:800] = 255
    with rasterio.open(
        folder / "plain.tif",
        "w",
        driver="GTiff",
        dtype="uint8",
        count=3,
        height=1500,
        width=1500,
        crs="EPSG:32648",
        transform=Affine(0.5, 0, 5e5, 0, -0.5, 3e6),
        photometric="rgb",
    ) as target:
        target.write(values)
    copy(folder / "plain.tif", folder / "cog.tif", driver="COG", blocksize=256, compress="deflate")
    return folder / "cog.tif"


@pytest.fixture(scope="module")
def expected(scene: Path) -> np.ndarray:
    reader = SceneReader(scene)
    return reader.read(PART, reader.scene.grid)[0]


@pytest.fixture(scope="module")
def serving(scene: Path) -> Iterator[Store]:
    with Store(scene.read_bytes()) as store:
        threading.Thread(target=store.serve_forever, daemon=True).start()
        yield store
        store.shutdown()


@pytest.fixture
def store(serving: Store, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setattr(storage, "WAITS", (0.01,) * 3)
    monkeypatch.setenv("GDAL_HTTP_RETRY_DELAY", "0.01")
    monkeypatch.setenv("GDAL_HTTP_LOW_SPEED_TIME", "1")
    serving.requests.clear()
    serving.faults.clear()
    return serving


def test_a_window_takes_few_requests(store: Store, expected: np.ndarray) -> None:
    reader = SceneReader(store.url())
    grid = reader.scene.grid
    assert len(store.requests) <= 2  # its size, and the header
    assert np.array_equal(reader.read(PART, grid)[0], expected)
    assert len(store.requests) <= 5  # one for each row of blocks


FAULTS = {
    "busy": [503] * 3,
    "busy for longer": [503] * 9,
    "too many requests": [429, 429],
    "an error of the server": [500, 502, 504],
    "stalled": ["stalls"],
}


@pytest.mark.parametrize("faults", FAULTS.values(), ids=FAULTS)
def test_a_server_that_fails_for_a_while_is_opened(store: Store, expected: np.ndarray, faults: list) -> None:
    store.faults[:] = faults
    reader = SceneReader(store.url())
    assert np.array_equal(reader.read(PART, reader.scene.grid)[0], expected)
    assert not store.faults


@pytest.mark.parametrize(
    "faults", [*FAULTS.values(), ["breaks off"], ["breaks off"] * 9], ids=[*FAULTS, "breaks off", "breaks off often"]
)
def test_a_server_that_fails_for_a_while_is_read(store: Store, expected: np.ndarray, faults: list) -> None:
    reader = SceneReader(store.url())
    grid = reader.scene.grid
    store.faults[:] = faults
    assert np.array_equal(reader.read(PART, grid)[0], expected)
    assert not store.faults


def test_a_server_that_is_down_is_given_up_on(store: Store) -> None:
    store.faults[:] = [503] * 1000
    with pytest.raises(SceneError, match="503"):
        _ = SceneReader(store.url()).scene
    assert len(store.requests) < 30


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_an_answer_is_an_error_at_once(store: Store, status: int) -> None:
    store.faults[:] = [status] * 1000
    with pytest.raises(SceneError, match=f"{status}"):
        _ = SceneReader(store.url()).scene
    assert len(store.requests) == 1


def test_a_file_that_is_taken_away_is_an_error_at_once(store: Store) -> None:
    reader = SceneReader(store.url())
    grid = reader.scene.grid
    store.faults[:] = [404] * 1000
    store.requests.clear()
    with pytest.raises(SceneError, match="404"):
        reader.read(PART, grid)
    assert len(store.requests) < 9


def test_what_is_no_raster_is_an_error_at_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "content", b"<html>log in first</html>" * 99)
    with pytest.raises(SceneError, match="in no format that GDAL reads"):
        _ = SceneReader(store.url()).scene
    assert len(store.requests) <= 3


def test_credentials_are_those_of_the_environment(store: Store, expected: np.ndarray, monkeypatch) -> None:
    for name, value in {
        "AWS_S3_ENDPOINT": f"127.0.0.1:{store.server_port}",
        "AWS_HTTPS": "NO",
        "AWS_VIRTUAL_HOSTING": "FALSE",
        "AWS_ACCESS_KEY_ID": "somebody",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "eu-central-1",
    }.items():
        monkeypatch.setenv(name, value)
    reader = SceneReader("s3://bucket/scene.tif")
    assert np.array_equal(reader.read(PART, reader.scene.grid)[0], expected)
    assert {path for _, path, _ in store.requests} == {"/bucket/scene.tif"}
    assert all("Credential=somebody/" in headers["Authorization"] for _, _, headers in store.requests)


def test_what_the_environment_sets_is_respected(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GDAL_HTTP_MAX_RETRY", "0")
    monkeypatch.setenv("GDAL_HTTP_HEADERS", "X-Token: 17")
    monkeypatch.setattr(storage, "WAITS", ())
    store.faults[:] = [503]
    with pytest.raises(SceneError, match="503"):
        _ = SceneReader(store.url()).scene
    assert [headers["X-Token"] for _, _, headers in store.requests] == ["17"]


def test_a_scene_is_known_by_its_tag_although_the_server_is_busy(store: Store) -> None:
    reader = SceneReader(store.url())
    assert reader.scene.band_count == 3
    store.faults[:] = [503, 503]
    mark = fingerprint(reader)
    assert mark is not None
    assert mark["tag"] == '"one"'


def test_a_scene_that_is_replaced_while_it_is_read_is_an_error(
    store: Store, expected: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "CONFIRM_S", 0.0)
    reader = SceneReader(store.url())
    grid = reader.scene.grid
    fingerprint(reader)
    assert np.array_equal(reader.read(PART, grid)[0], expected)
    travelled = pickle.loads(pickle.dumps(reader))
    monkeypatch.setattr(store, "tag", '"two"')
    for one in (reader, travelled):
        with pytest.raises(SceneError, match=r'was replaced on its server .*"one", and is "two"'):
            one.read(PART, grid)


def test_a_list_is_fetched_with_patience(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "content", b"a.tif\nb.tif\n")
    url = store.url().replace(".tif", ".txt")
    home = url.rpartition("/")[0]
    store.faults[:] = [503, 503]
    assert [scene.source for scene in list_scenes(url)] == [f"{home}/a.tif", f"{home}/b.tif"]
    store.faults[:] = [404, 404]
    with pytest.raises(SceneError, match="404"):
        list_scenes(url)
    assert store.faults == [404]


# A real server

NGINX = """
daemon off; master_process off; pid {folder}/pid; error_log {folder}/error.log;
events {{}}
http {{
  access_log {folder}/access.log; client_body_temp_path {folder}/b; proxy_temp_path {folder}/p;
  fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  server {{ listen 127.0.0.1:{port}; root {root}; }}
}}
"""


@contextmanager
def nginx(root: Path, folder: Path) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (folder / "nginx.conf").write_text(NGINX.format(folder=folder, port=port, root=root))
    command = ["nginx", "-c", str(folder / "nginx.conf"), "-p", str(folder), "-e", str(folder / "error.log")]
    server = subprocess.Popen(command)
    try:
        for _ in range(200):
            with socket.socket() as knock:
                if knock.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(10)


@pytest.mark.nginx
def test_a_run_on_a_scene_that_nginx_serves(scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Networks, "recipes", lambda *_: RECIPES)
    (tmp_path / "nginx").mkdir()
    parameters = geolabel.Parameters(method=Scenes(activation_threshold=250), threads=1)
    options = {
        "parameters": parameters,
        "reading": geolabel.Reading(stretch="0,255", bounds=(500_250, 2_999_500, 500_500, 2_999_750)),
    }
    expected = geolabel.extract(scene, **options)
    # one task after the other: threads may ask for the same bytes at once
    with nginx(scene.parent, tmp_path / "nginx") as home, dask.config.set(scheduler="synchronous"):
        found = geolabel.extract(f"{home}/cog.tif", out=tmp_path / "slides.gpkg", **options)
        with pytest.raises(SceneError, match="404"):
            geolabel.extract(f"{home}/gone.tif", **options)
    assert found.drop(columns="source").equals(expected.drop(columns="source"))
    lines = (tmp_path / "nginx" / "access.log").read_text().splitlines()
    reads = [line for line in lines if "cog.tif" in line]
    read = sum(int(line.split()[9]) for line in reads)
    assert all(line.split()[8] in ("200", "206") for line in reads)
    assert len(found) == 1
    assert len(reads) <= 15, f"{len(reads)} requests for 9 blocks, with header, tag and a look at the pixels"
    assert read <= 0.5 * scene.stat().st_size

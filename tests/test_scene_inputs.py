"""Which scenes a user means."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from geolabel.errors import OptionError, SceneError
from geolabel.io.read import scene_inputs
from geolabel.io.read.files import check_redirect
from geolabel.io.read.scene_inputs import list_scenes


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("b.tif", "a.tif", "folder/2.tif", "folder/1.tif", "odd[1].tif"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def names(given: Any, **options: Any) -> list[str]:
    return [str(scene.name or scene.source) for scene in list_scenes(given, **options)]


def test_what_is_named_comes_in_the_order_given_and_once(here: Path) -> None:
    assert names(["b.tif", Path("a.tif"), "b.tif"]) == ["b.tif", "a.tif"]
    assert names("a.tif") == ["a.tif"]
    assert list_scenes("a.tif")[0].source == str(here / "a.tif")
    assert names("https://host/*.tif") == ["https://host/*.tif"]  # a server has no patterns


def test_patterns_are_expanded_in_order() -> None:
    assert names(["folder/*.tif", "folder/1.tif"]) == ["folder/1.tif", "folder/2.tif"]
    assert names("odd[1].tif") == ["odd[1].tif"]  # a file that is called so
    with pytest.raises(SceneError, match="no file matches"):
        names("nothing*.tif")


def test_a_list_counts_from_where_it_lies(here: Path) -> None:
    (here / "folder" / "list.txt").write_text("# scenes\n2.tif\n\n../a.tif\n/vsizip/x.zip/y.tif\n1*.tif\n")
    assert [Path(name).name for name in names("folder/list.txt")] == ["2.tif", "a.tif", "y.tif", "1.tif"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "lists no scene"),
        (b"\xff\xfe\x00", "UTF-8"),
        (b"other.txt", "not other lists"),
        (b"hi", "list.txt .* lists hi"),
    ],
)
def test_a_list_that_is_none(here: Path, content: bytes, says: str) -> None:
    (here / "list.txt").write_bytes(content)
    with pytest.raises(SceneError, match=says):
        names("list.txt")


def item(number: int, **assets: Any) -> dict[str, Any]:
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": f"item-{number}",
        "geometry": None,
        "links": [],
        "properties": {"datetime": f"2024-05-0{number}T03:00:00Z"},
        "assets": assets,
    }


COG = {"type": "image/tiff; application=geotiff; profile=cloud-optimized", "roles": ["data"]}


def collection(path: Path, *items: dict[str, Any]) -> Path:
    path.write_text(json.dumps({"type": "FeatureCollection", "features": list(items)}))
    return path


def test_items_name_their_pictures_and_dates(here: Path) -> None:
    thumbnail = {"href": "small.png", "type": "image/png", "roles": ["thumbnail"]}
    first = item(1, visual={"href": "a.tif", **COG}, B04={"href": "red.tif", **COG}, thumbnail=thumbnail)
    second = item(2, image={"href": "https://host/b.tif"}, metadata={"href": "b.xml", "type": "application/xml"})
    path = collection(here / "items.json", first, second)
    found = list_scenes(path)
    assert [Path(str(scene.source)).name for scene in found] == ["a.tif", "b.tif"]
    assert [scene.event_date for scene in found] == ["2024-05-01", "2024-05-02"]


def test_an_asset_is_chosen_or_asked_for(here: Path) -> None:
    bands = item(1, B04={"href": "red.tif", **COG}, B03={"href": "green.tif", **COG})
    path = collection(here / "items.json", bands)
    with pytest.raises(SceneError, match=r"item-1 has no single image asset, .* B03, B04: choose one with --asset"):
        list_scenes(path)
    assert names("items.json", asset="B03") == ["green.tif"]
    with pytest.raises(SceneError, match="no asset B99"):
        list_scenes(path, asset="B99")


def test_items_as_pystac_has_them(here: Path) -> None:
    class Items:
        def to_dict(self) -> dict[str, Any]:
            return {"type": "FeatureCollection", "features": [item(1, image={"href": "a.tif", **COG})]}

    assert names(Items()) == ["a.tif"]
    assert names([Items(), "b.tif"]) == ["a.tif", "b.tif"]


@pytest.mark.parametrize("content", ["{", "[]", '{"type": "FeatureCollection", "features": [{"geometry": null}]}'])
def test_other_json_is_taken_for_a_scene(here: Path, content: str) -> None:
    (here / "other.json").write_text(content)
    assert names("other.json") == ["other.json"]


@pytest.mark.parametrize(
    "entry", ["file:///etc/passwd", "/vsizip//etc/x.zip/a", "/vsicurl/file:///etc/passwd", "GTIFF:/etc/a"]
)
@pytest.mark.parametrize("home", ["https://host/folder/list", "s3://bucket/folder/list"])
def test_a_list_from_a_network_names_no_local_files(monkeypatch, home: str, entry: str) -> None:
    monkeypatch.setattr(scene_inputs, "_content", lambda name: entry.encode())
    with pytest.raises(SceneError, match="may not name local files"):
        list_scenes(f"{home}.txt")
    items = json.dumps(item(1, image={"href": entry, **COG}))
    monkeypatch.setattr(scene_inputs, "_content", lambda name: items.encode())
    with pytest.raises(SceneError, match="may not name local files"):
        list_scenes(f"{home}.json")


@pytest.mark.parametrize("home", ["https://host/folder", "s3://bucket/folder"])
def test_a_list_from_a_network_counts_from_there(monkeypatch: pytest.MonkeyPatch, home: str) -> None:
    monkeypatch.setattr(scene_inputs, "_content", lambda name: b"a.tif\nsub/b.tif\ngs://other/c.tif")
    assert names(f"{home}/list.txt") == [f"{home}/a.tif", f"{home}/sub/b.tif", "gs://other/c.tif"]


def test_the_root_of_a_server_is_not_that_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scene_inputs, "_content", lambda name: b"/etc/passwd")
    assert names("https://host/folder/list.txt") == ["https://host/etc/passwd"]
    with pytest.raises(SceneError, match="may not name local files"):
        names("s3://bucket/list.txt")


def test_arrays_and_what_is_no_scene() -> None:
    array = xr.DataArray(np.zeros((3, 4, 4)), dims=("band", "y", "x"))
    assert list_scenes([array, "a.tif"])[0].source is array
    for given, says in (([], "no scene"), (7, "is not a scene")):
        with pytest.raises(OptionError, match=says):
            list_scenes(given)


@pytest.mark.parametrize(
    "more",
    [{"properties": 5, "links": 9}, {"properties": ["a"], "links": {"a": 1}}],
)
def test_items_with_any_values_elsewhere(here: Path, more: dict[str, Any]) -> None:
    asset = {"href": "a.tif", "type": "image/tiff", "roles": 7}
    (here / "i.json").write_text(json.dumps({"type": "Feature", "assets": {"visual": asset}, **more}))
    assert [str(scene.source) for scene in list_scenes("i.json")] == [str(here / "a.tif")]


# --- redirects -------------------------------------------------------------------------------------------------------


class Redirects(http.server.BaseHTTPRequestHandler):
    """Sends ``/here`` to a list of the same server, and ``/there`` to one under another name of it."""

    def do_GET(self) -> None:
        port = self.server.server_address[1]
        target = {"/here.txt": "/list.txt", "/there.txt": f"http://localhost:{port}/list.txt"}.get(self.path)
        self.send_response(200 if target is None else 302)
        if target is not None:
            self.send_header("Location", target)
        self.end_headers()
        if target is None:
            self.wfile.write(b"a.tif")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Redirects) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{served.server_address[1]}"
        served.shutdown()


def test_a_list_is_fetched_through_a_redirect_on_its_server_only(server: str) -> None:
    assert names(f"{server}/here.txt") == [f"{server}/a.tif"]
    with pytest.raises(SceneError, match=r"/there\.txt redirects to http://localhost:\d+/list\.txt; redirects"):
        names(f"{server}/there.txt")


@pytest.mark.parametrize(
    ("target", "followed"),
    [
        ("https://host.org/b", True),
        ("http://host.org/b", True),
        ("https://store.example.com/b?sig=1", True),
        ("http://store.example.com/b", False),
        ("https://host.org:8443/b", True),
        ("http://host.org:8080/b", False),
        ("http://169.254.169.254/latest", False),
        ("https://127.0.0.1/b", False),
        ("https://0x7f.1/b", False),
        ("https://[::ffff:127.0.0.1]/b", False),
        ("https://localhost./b", False),
        ("https://vault.internal/b", False),
        ("ftp://store.example.com/b", False),
    ],
)
def test_where_a_redirect_may_lead(target: str, followed: bool) -> None:
    if followed:
        check_redirect("http://host.org/a", target)
    else:
        with pytest.raises(SceneError, match="give that URL itself, if you trust it"):
            check_redirect("http://host.org/a", target)

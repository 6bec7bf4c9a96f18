"""The page of a review: what it holds, what it lets run, and what a person can do with it in a browser."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import zlib

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import rasterio
import shapely
from affine import Affine
from browsing import Browser
from click.testing import CliRunner
from PIL import Image

from geolabel import view
from geolabel.cli.review import review
from geolabel.errors import OptionError, OutputError, SceneError, VectorError
from geolabel.io.read.review import read_review
from geolabel.io.written import same_outlines

HOSTILE = "</script><img src=x onerror=document.title='run'><b>&amp;\u2028'\""
LEFT, TOP = 500_000.0, 3_100_000.0


def write_scene(path, values, *, crs="EPSG:32648", transform=None, nodata=None):
    values = np.asarray(values, np.uint8)
    transform = transform or Affine(0.5, 0, LEFT, 0, -0.5, TOP)
    size = {"count": len(values), "height": values.shape[1], "width": values.shape[2]}
    with rasterio.open(
        path, "w", driver="GTiff", dtype="uint8", crs=crs, transform=transform, nodata=nodata, **size
    ) as file:
        file.write(values)
    return path


def half_and_half(left, right, height=80, width=100):
    values = np.zeros((3, height, width), np.uint8)
    values[:, :, : width // 2], values[:, :, width // 2 :] = np.reshape(left, (3, 1, 1)), np.reshape(right, (3, 1, 1))
    return values


def slides(crs="EPSG:32648"):
    shapes = [
        shapely.box(LEFT + 5, TOP - 15, LEFT + 15.1, TOP - 5),
        shapely.box(LEFT + 20, TOP - 30, LEFT + 40, TOP - 20).difference(
            shapely.box(LEFT + 25, TOP - 27, LEFT + 30, TOP - 23)
        ),
        shapely.MultiPolygon([shapely.box(LEFT + 30, TOP - 10, LEFT + 33, TOP - 5 - 1 / 3)]),
    ]
    return gpd.GeoDataFrame(
        {
            "id": [1, 2, 3],
            "class": ["landslide", HOSTILE, None],
            "confidence": [0.9, 0.4, None],
            "area_m2": [101.0, 180.0, 14.0],
            "status": ["unreviewed", "unreviewed", "accepted"],
            "notes": [None, HOSTILE, None],
        },
        geometry=shapes,
        crs=crs,
    )


@pytest.fixture
def files(tmp_path):
    scene = write_scene(tmp_path / "scene.tif", half_and_half((250, 10, 10), (10, 250, 10)))
    slides().to_file(tmp_path / "slides.gpkg", layer="landslides")
    return tmp_path / "slides.gpkg", scene


def data_of(page):
    text = page.read_text(encoding="utf-8")
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1])


def vertices_of(data):
    """(V, 2), unpacked byte by byte."""
    ranks = zlib.decompress(base64.b64decode(data["coordinates"]))
    numbers = len(ranks) // 8
    words = [int.from_bytes(ranks[n::numbers], "little") for n in range(numbers)]
    for n in range(2, numbers):
        words[n] ^= words[n - 2]
    return np.array(words, np.uint64).view(float).reshape(-1, 2)


def picture_of(page, name="after"):
    encoded = re.search(rf'id="{name}" alt="" src="data:image/webp;base64,([^"]+)"', page.read_text(encoding="utf-8"))
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded[1]))).convert("RGBA"))


def test_the_page_runs_its_own_script_and_nothing_else(files, tmp_path):
    out = tmp_path / "page.html"
    view(*files, out)
    text = out.read_text(encoding="utf-8")
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]+)"', text)[1]
    assert policy.startswith("default-src 'none'; img-src data:;")
    for kind in ("style", "script"):
        (content,) = re.findall(rf"<{kind}>(.*?)</{kind}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert not re.search(r'(src|href)="(?!data:)', text)


def test_no_text_of_the_file_is_markup(files, tmp_path):
    out = tmp_path / "page.html"
    named = files[0].rename(tmp_path / "<i>&x.gpkg")
    view(named, files[1], out)
    text = out.read_text(encoding="utf-8")
    assert "<img src=x" not in text
    assert "<i>" not in text
    assert text.count("</script>") == 2
    assert data_of(out)["notes"] == [None, HOSTILE, None]


def test_the_page_holds_all_digits_of_the_outlines(files, tmp_path):
    out = tmp_path / "page.html"
    view(*files, out)
    data = data_of(out)
    xy = vertices_of(data)
    shapes = shapely.from_ragged_array(shapely.GeometryType.MULTIPOLYGON, xy, tuple(map(np.array, data["offsets"])))
    assert same_outlines(shapes, slides().geometry.to_numpy()).all()
    assert data["crs"] == "urn:ogc:def:crs:EPSG::32648"
    assert Affine(*data["inverse"]) * (LEFT + 5, TOP - 15) == pytest.approx((10, 30))


def test_the_same_files_give_the_same_page(files, tmp_path):
    pages = [tmp_path / "a.html", tmp_path / "b.html"]
    for page in pages:
        view(*files, page)
    assert pages[0].read_bytes() == pages[1].read_bytes()


def test_a_crs_without_a_code_becomes_longitudes_and_latitudes(files, tmp_path):
    local = "+proj=tmerc +lat_0=28 +lon_0=105 +x_0=500000 +ellps=GRS80 +units=m"
    table = slides().to_crs(local)
    table.to_file(tmp_path / "local.gpkg", layer="landslides")
    out = tmp_path / "page.html"
    view(tmp_path / "local.gpkg", files[1], out)
    data = data_of(out)
    assert data["crs"] is None
    xy = vertices_of(data)
    assert xy[:, 0] == pytest.approx(105, abs=0.01)
    assert xy[:, 1] == pytest.approx(28.01, abs=0.02)


def test_the_layers_of_an_inventory_come_together(files, tmp_path):
    path = files[0]
    slides().iloc[:1].assign(id=7, confidence=0.1).to_file(path, layer="candidates")
    slides().iloc[:1].assign(id=8).to_file(path, layer="rejected")
    view(*files, tmp_path / "page.html")
    data = data_of(tmp_path / "page.html")
    assert data["layers"] == ["landslides"] * 3 + ["candidates", "rejected"]
    assert data["status"] == ["unreviewed", "unreviewed", "accepted", "unreviewed", "rejected"]


def test_names_and_numbers_of_a_persons_columns_stay_what_they_are(files, tmp_path):
    table = slides().assign(layer=["roads", None, "x"], parcel=pd.array([2**53 + 1, None, 5], "Int64"), seen=True)
    table["class"] = [1, 2, None]
    table.to_file(tmp_path / "own.gpkg", layer="landslides")
    view(tmp_path / "own.gpkg", files[1], tmp_path / "page.html")
    data = data_of(tmp_path / "page.html")
    values = {one["name"]: column for one, column in zip(data["columns"], data["values"], strict=True)}
    assert "layer" not in values
    assert values["layer_"] == ["roads", None, "x"]
    assert values["parcel"] == ["9007199254740993", None, 5]
    assert values["class"] == ["1", "2", None]
    assert values["seen"] == [True] * 3


def test_the_table_says_why_a_polygon_is_a_candidate(files, tmp_path):
    slides_, scene = files
    view(slides_, scene, tmp_path / "none.html")
    assert "reason" not in [one["name"] for one in data_of(tmp_path / "none.html")["table"]]
    slides().assign(reason=[None, "slope", None]).to_file(slides_, layer="landslides")
    view(slides_, scene, tmp_path / "page.html")
    data = data_of(tmp_path / "page.html")
    names = [one["name"] for one in data["table"]]
    assert names == ["id", "class", "confidence", "area_m2", "reason", "status"]
    assert data["values"][[one["name"] for one in data["columns"]].index("reason")] == [None, "slope", None]


def test_an_empty_inventory_has_a_page(files, tmp_path):
    slides().iloc[:0].to_file(files[0], layer="landslides")
    assert view(*files, tmp_path / "page.html")["polygons"] == 0


def test_pictures_stay_within_the_size_that_is_asked_for(files, tmp_path):
    view(*files, tmp_path / "page.html", max_pixels=500)
    height, width, _ = picture_of(tmp_path / "page.html").shape
    assert height * width == pytest.approx(500, rel=0.1)
    data = data_of(tmp_path / "page.html")
    assert (data["width"], data["height"]) == (width, height)
    assert data["metres"] == pytest.approx(2, rel=0.05)


def test_the_scene_before_comes_to_the_place_of_the_scene(files, tmp_path):
    # the same ground in another CRS, finer, and turned by 90 degrees: its left half is blue, its right half white
    frame = gpd.GeoSeries([shapely.box(LEFT, TOP - 40, LEFT + 50, TOP)], crs="EPSG:32648").to_crs("EPSG:3857")
    left, bottom, right, top = frame.total_bounds
    values = half_and_half((10, 10, 250), (250, 250, 250), 160, 200)
    turned = np.rot90(values, axes=(1, 2)).copy()
    step_x, step_y = (right - left) / 200, (top - bottom) / 160
    place = Affine(0, -step_x, right, -step_y, 0, top)  # rows run west, columns run south
    before = write_scene(tmp_path / "before.tif", turned, crs="EPSG:3857", transform=place)
    view(*files, tmp_path / "page.html", before=before, stretch="none")
    shown = picture_of(tmp_path / "page.html", "before")
    assert shown.shape[:2] == picture_of(tmp_path / "page.html").shape[:2]
    west, east = shown[40, 20, :3].astype(int), shown[40, 80, :3].astype(int)
    assert west[2] > 200 > 100 > west[0]
    assert east.min() > 200


def test_what_cannot_be_shown_says_why(files, tmp_path):
    out = tmp_path / "page.html"
    far = write_scene(
        tmp_path / "far.tif", half_and_half((1, 2, 3), (4, 5, 6)), transform=Affine(0.5, 0, 0, 0, -0.5, 0)
    )
    with pytest.raises(VectorError, match="misses the scene"):
        view(files[0], far, out)
    with pytest.raises(OptionError, match="shows nothing of the scene"):
        view(*files, out, before=far)
    nowhere = write_scene(tmp_path / "nowhere.tif", half_and_half((1, 2, 3), (4, 5, 6)), crs=None)
    with pytest.raises(SceneError, match="scene has no CRS"):
        view(files[0], nowhere, out, gsd=0.5)
    slides().assign(status="maybe").to_file(files[0], layer="landslides")
    with pytest.raises(VectorError, match="'maybe' is not one of unreviewed, accepted, rejected"):
        view(*files, out)
    with pytest.raises(OutputError, match=r"end with \.html"):
        view(*files, tmp_path / "page.pdf")
    assert not out.exists()


def test_the_command_says_what_it_wrote(files, tmp_path):
    arguments = [str(files[0]), "--scene", str(files[1]), "--out", str(tmp_path / "page.html")]
    done = CliRunner().invoke(review, ["view", *arguments, "--json"], catch_exceptions=False)
    found = json.loads(done.stdout)
    assert found["polygons"] == 3
    assert found["bytes"] == (tmp_path / "page.html").stat().st_size
    done = CliRunner().invoke(review, ["view", *arguments, "--overwrite"], catch_exceptions=False)
    assert "extract --keep-reviewed reads" in done.stdout


# --- in a browser ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    found = Browser(tmp_path_factory.mktemp("browser"))
    yield found
    found.close()


@pytest.fixture
def page(browser, files, tmp_path):
    before = write_scene(tmp_path / "before.tif", half_and_half((10, 10, 250), (10, 10, 250)))
    view(*files, tmp_path / "page.html", before=before, stretch="none")
    browser.errors.clear()
    browser.open(tmp_path / "page.html")
    yield browser
    assert not browser.errors


def text(browser, selector):
    return browser.run(f"document.querySelector({json.dumps(selector)}).textContent")


def focus(browser, selector):
    browser.run(f"document.querySelector({json.dumps(selector)}).focus()")


def states(browser):
    return browser.run("[...document.querySelectorAll('#rows tr')].map(r => r.querySelector('.state').textContent)")


def pixel(browser, across):
    """Colour of the canvas at a share of its width, above the outlines."""
    return browser.run(
        "(() => { const c = document.getElementById('map'); const s = Math.min(c.width / 100, c.height / 80);"
        "return [...c.getContext('2d').getImageData("
        f"c.width / 2 + ({across} - 0.5) * 100 * s, c.height / 2 + 38 * s, 1, 1).data]; }})()"
    )


@pytest.mark.chromium
def test_keys_accept_reject_undo_and_the_reviewed_file_comes_back(page, files):
    for key in "nar":
        page.press(key)
    assert states(page) == ["accepted", "rejected", "accepted"]
    assert "2 accepted, 1 rejected, 0 unreviewed" in text(page, "#progress")
    page.press("z")
    assert states(page) == ["accepted", "unreviewed", "accepted"]
    page.press("r")
    focus(page, "#notes")
    page.run("document.querySelector('#notes').select()")
    page.press("a")  # a letter, where a person writes
    page.run("document.getElementById('download').click()")
    given = page.downloaded("slides_reviewed.geojson")
    layers = [one["properties"]["layer"] for one in json.loads(given.read_text())["features"]]
    assert layers == page.run("data.layers")
    kept = read_review(given)
    assert kept.crs.to_epsg() == 32648
    assert kept.kept["id"].tolist() == [1, 3]
    assert kept.rejected["id"].tolist() == [2]
    assert kept.rejected["notes"].tolist() == ["a"]
    whole = slides().geometry.to_numpy()
    assert same_outlines(kept.kept.geometry.to_numpy(), whole[[0, 2]]).all()
    assert same_outlines(kept.rejected.geometry.to_numpy(), whole[[1]]).all()
    (page.downloads / "slides_reviewed.geojson").unlink()
    page.run("localStorage.clear(); unsaved = false")


@pytest.mark.chromium
def test_a_hostile_attribute_runs_nothing(page):
    page.press("n")
    page.press("n")
    assert text(page, "#name") == f"{HOSTILE} 2: unreviewed"
    assert page.run("document.querySelectorAll('b, img:not(.picture)').length") == 0
    assert page.run("document.title") == "slides.gpkg: review"


@pytest.mark.chromium
def test_a_column_of_any_name_comes_into_the_reviewed_file(browser, files, tmp_path):
    names = ("__proto__", "constructor", "layer")
    slides().assign(**{name: ["a", "b", "c"] for name in names}).to_file(tmp_path / "named.gpkg", layer="landslides")
    view(tmp_path / "named.gpkg", files[1], tmp_path / "page.html")
    browser.errors.clear()
    browser.open(tmp_path / "page.html")
    given = json.loads(browser.run("reviewedFile()"))["features"][1]["properties"]
    assert [given[name] for name in ("__proto__", "constructor", "layer_", "layer")] == ["b", "b", "b", "landslides"]
    assert not browser.errors


@pytest.mark.chromium
def test_the_swipe_shows_the_scene_before_on_the_left(page):
    page.run(
        "const swipe = document.getElementById('swipe'); swipe.value = 50; swipe.dispatchEvent(new Event('input'))"
    )
    page.wait("beforeIsReady && !asked")
    left, right = pixel(page, 0.2), pixel(page, 0.8)
    assert left[2] > 200 > 100 > left[0]
    assert right[1] > 200 > 100 > right[2]
    page.run("swipe.value = 0; swipe.dispatchEvent(new Event('input'))")
    page.wait("!asked")
    assert pixel(page, 0.2)[0] > 200


@pytest.mark.chromium
def test_the_slider_and_the_heading_choose_and_order(page):
    order = "[...document.querySelectorAll('#rows tr:not([hidden]) button')].map(b => b.textContent)"
    assert page.run(order) == ["1", "2", "3"]
    page.run("document.querySelector('th[data-name=area_m2] button').click()")
    assert page.run(order) == ["2", "1", "3"]
    assert page.run("document.querySelector('th[data-name=area_m2]').getAttribute('aria-sort')") == "descending"
    page.run(
        "const least = document.getElementById('least'); least.value = 0.5; least.dispatchEvent(new Event('input'))"
    )
    assert page.run(order) == ["1", "3"]  # what has no confidence stays


@pytest.mark.chromium
def test_the_page_works_by_keyboard_and_names_what_it_has(page):
    focus(page, "#rows button[tabindex='0']")
    page.press("Enter")
    assert text(page, "#name") == "Landslide 1: unreviewed"
    page.press("ArrowDown")
    assert page.run("document.activeElement.textContent") == "2"
    focus(page, "#map")
    page.press("0")
    scale = page.run("view.scale")
    page.press("+")
    assert page.run("view.scale") > scale
    nodes = page.call("Accessibility.getFullAXTree")["nodes"]
    named = {(n["role"]["value"], n.get("name", {}).get("value", "")) for n in nodes if not n["ignored"]}
    nameless = [
        role for role, name in named if role in ("button", "slider", "combobox", "textbox", "checkbox") and not name
    ]
    assert not nameless
    assert ("slider", "Share of the view that shows the scene before") in named
    assert ("textbox", "Notes") in named
    assert any(role == "columnheader" and name.startswith("Confidence") for role, name in named)
    page.run("document.getElementById('keys').click()")
    page.press("a")
    assert states(page).count("accepted") == 1


@pytest.mark.chromium
def test_a_click_selects_and_a_draft_outlives_the_tab(page, tmp_path):
    place = page.run(
        "(() => { const b = document.getElementById('map').getBoundingClientRect();"
        "return [b.left + b.width / 2 + (20 - view.x) * view.scale,"
        " b.top + b.height / 2 + (20 - view.y) * view.scale]; })()"
    )
    page.click(*place)
    assert text(page, "#name") == "Landslide 1: unreviewed"
    page.press("a")
    page.run("unsaved = false")
    page.open(tmp_path / "page.html")
    assert states(page)[0] == "accepted"
    page.run("document.getElementById('restart').click()")
    assert states(page)[0] == "unreviewed"
    page.run("localStorage.clear(); unsaved = false")


def test_a_scene_that_the_polygons_were_not_found_in_is_said(files, tmp_path, caplog):
    source = [json.dumps(["/somewhere/other.tif"]), json.dumps(["C:\\data\\second.tif"]), None]
    slides().assign(source=source).to_file(tmp_path / "found.gpkg", layer="landslides")
    view(tmp_path / "found.gpkg", files[1], tmp_path / "page.html")
    (said,) = [record.getMessage() for record in caplog.records]
    assert "found.gpkg: its polygons were found in other.tif, second.tif, and the page shows scene.tif: give" in said
    caplog.clear()
    for names in (["/elsewhere/scene.tif", "b.tif"], ["array"], "https://host/scene.tif?token=secret"):
        text = names if isinstance(names, str) else json.dumps(names)
        slides().assign(source=text).to_file(tmp_path / "found.gpkg", layer="landslides")
        view(tmp_path / "found.gpkg", files[1], tmp_path / "page.html", overwrite=True)
    assert not caplog.records


def test_polygons_that_no_scene_shows_are_counted(files, tmp_path, caplog):
    table = slides()
    table.loc[0, "geometry"] = shapely.box(LEFT + 900, TOP - 15, LEFT + 910, TOP - 5)
    table.to_file(tmp_path / "far.gpkg", layer="landslides")
    view(tmp_path / "far.gpkg", files[1], tmp_path / "page.html")
    (said,) = [record.getMessage() for record in caplog.records]
    assert "far.gpkg: 1 of 3 polygons are outside the scenes that are given" in said

"""The project for QGIS: what QGIS sees in it, whose it is, and what of a stranger's file is left out."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import zipfile
from contextlib import closing
from pathlib import Path
from xml.etree import ElementTree as ET

import geopandas as gpd
import numpy as np
import pyproj
import pytest
import rasterio
import shapely
from affine import Affine
from PIL import Image

import geolabel
from geolabel.cli.main import run as command
from geolabel.errors import OptionError, OutputError
from geolabel.io.write.vectors import write_layers

EAST, NORTH = 500_000.0, 3_000_000.0
UTM = pyproj.CRS.from_epsg(32648)
QGIS = Path(__file__).with_name("in_qgis.py")


def square(x: float, y: float, side: float = 20) -> shapely.MultiPolygon:
    """By metres east and south of the corner of the scene."""
    return shapely.MultiPolygon([shapely.box(EAST + x, NORTH - y - side, EAST + x + side, NORTH - y)])


def write_slides(path: Path, crs: pyproj.CRS | None = UTM) -> Path:
    one = gpd.GeoDataFrame({"id": [1], "confidence": [0.9]}, geometry=[square(10, 10)], crs=crs)
    other = gpd.GeoDataFrame({"id": [2], "confidence": [0.1]}, geometry=[square(60, 60)], crs=crs)
    tiles = gpd.GeoDataFrame({"tile": [0], "status": ["clear"]}, geometry=[square(0, 0, 100)], crs=crs)
    write_layers(path, one, None, tiles, {}, crs=crs, candidates=other)
    return path


def write_scene(path: Path, colour=(200, 100, 50), *, crs="EPSG:32648", dtype="uint8") -> Path:
    values = np.zeros((len(colour), 100, 100), dtype) + np.reshape(colour, (-1, 1, 1)).astype(dtype)
    values[:, 0, 0] = 0
    where = {"crs": crs, "transform": Affine(1, 0, EAST, 0, -1, NORTH)}
    size = {"count": len(colour), "height": 100, "width": 100, "dtype": dtype}
    with rasterio.open(path, "w", driver="GTiff", photometric="MINISBLACK", **size, **where) as file:
        file.write(values)
    return path


@pytest.fixture
def slides(tmp_path: Path) -> Path:
    return write_slides(tmp_path / "slides.gpkg")


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    return write_scene(tmp_path / "scene.tif")


def root_of(project: Path) -> ET.Element:
    with zipfile.ZipFile(project) as archive:
        assert archive.testzip() is None
        (name,) = archive.namelist()
        assert name == f"{project.stem}.qgs"
        return ET.fromstring(archive.read(name))


def sources_of(project: Path) -> list[str | None]:
    return [one.findtext("datasource") for one in root_of(project).iter("maplayer")]


def in_qgis(folder: Path, *projects: tuple[Path, Path, str]) -> list[dict]:
    """What QGIS says of projects: each comes with the picture to draw, and the file to save it as, if any."""
    home = folder / "home"
    home.mkdir(mode=0o700)
    clean = {
        "HOME": str(home),
        "XDG_RUNTIME_DIR": str(home),
        "QT_QPA_PLATFORM": "offscreen",
        "PATH": os.environ["PATH"],
    }
    words = [str(word) for project in projects for word in project]
    done = subprocess.run(["/usr/bin/python3", QGIS, *words], capture_output=True, text=True, check=True, env=clean)
    return [json.loads(line) for line in done.stdout.splitlines()[-len(projects) :]]


@pytest.mark.qgis
def test_qgis_opens_projects_without_a_word_also_where_they_were_moved(tmp_path: Path):
    folder = tmp_path / "a & b's <place>"
    folder.mkdir()
    slides = write_slides(folder / "slides & more.gpkg")
    scene = write_scene(folder / "scene.tif", (1000, 3000, 2000, 500), dtype="uint16")
    before = write_scene(folder / "before.tif", (9, 9, 9))
    geolabel.write_project(slides, folder / "slides.qgz", scene=scene, before=before, bands="3,2,1")
    placeless = write_slides(tmp_path / "placeless.gpkg", None)
    scene = write_scene(tmp_path / "placeless.tif", crs=None)
    geolabel.write_project(placeless, tmp_path / "placeless.qgz", scene=scene, gsd=1.0)
    moved = folder.rename(tmp_path / "moved")
    project = moved / "slides.qgz"
    found, other = in_qgis(
        tmp_path,
        (project, tmp_path / "map.png", str(project)),
        (tmp_path / "placeless.qgz", tmp_path / "other.png", ""),
    )
    assert found["read"]
    assert other["read"]
    assert found["said"] == found["failed"] == other["said"] == other["failed"] == []
    assert (found["error"], other["error"]) == ("", "")
    assert (found["crs"], found["title"], found["groups"]) == ("EPSG:32648", "slides & more", ["slides & more"])
    names = ["landslides", "candidates", "tiles", "scene", "before"]
    assert [one["name"] for one in found["layers"]] == names
    assert [one["ticked"] for one in found["layers"]] == [True] * 4 + [False]
    assert all(one["valid"] and one["crs"] == "EPSG:32648" for one in found["layers"])
    assert all(one["source"].startswith(str(moved)) for one in found["layers"])
    vectors, rasters = found["layers"][:3], found["layers"][3:]
    assert all(one["own_style"] and one["renderer"] == "RuleRenderer" for one in vectors)
    assert [one["features"] for one in vectors] == [1, 1, 1]
    assert rasters[0]["bands"] == [3, 2, 1]
    assert rasters[0]["stretch"] == [[0, 2000], [0, 3000], [0, 1000]]  # of one value but for a corner
    left, bottom, right, top = found["extent"]
    assert left <= EAST - 5
    assert right >= EAST + 105
    assert (left + right) / 2 == pytest.approx(EAST + 50)
    assert (bottom + top) / 2 == pytest.approx(NORTH - 50)
    picture = np.asarray(Image.open(tmp_path / "map.png").convert("RGB")).astype(int)
    assert picture[100, 300].tolist() == [255, 255, 255]  # the scene, stretched to its highest value
    assert (picture[60:140, 60:140] != 255).any(axis=2).sum() > 100  # and an outline on it
    assert (other["crs"], [one["valid"] for one in other["layers"]]) == ("", [True] * 4)
    # what QGIS has saved is a person's
    assert found["saved"]
    with pytest.raises(OutputError, match=r"slides.qgz was saved in QGIS"):
        geolabel.write_project(moved / slides.name, project, overwrite=True)


def test_a_file_of_one_layer_has_the_style_of_landslides(tmp_path: Path, slides: Path):
    gpd.read_file(slides, layer="landslides").to_file(tmp_path / "b.geojson")
    geolabel.write_project(tmp_path / "b.geojson", tmp_path / "b.qgz")
    assert sources_of(tmp_path / "b.qgz") == ["./b.geojson"]
    assert root_of(tmp_path / "b.qgz").find("projectlayers/maplayer/renderer-v2") is not None


def test_paths_are_relative_also_to_other_folders(tmp_path: Path, slides: Path):
    for name in ("images", "projects"):
        (tmp_path / name).mkdir()
    scene = write_scene(tmp_path / "images" / "scene.tif")
    out = tmp_path / "projects" / "look.qgz"
    geolabel.write_project(slides, out, scene=scene)
    assert sources_of(out) == [
        "../slides.gpkg|layername=landslides",
        "../slides.gpkg|layername=candidates",
        "../slides.gpkg|layername=tiles",
        "../images/scene.tif",
    ]
    assert root_of(out).findtext("properties/Paths/Absolute") == "false"


def test_the_same_files_give_the_same_bytes(tmp_path: Path, slides: Path, scene: Path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        for path in (slides, scene):
            shutil.copy(path, tmp_path / name)
        geolabel.write_project(
            tmp_path / name / slides.name, tmp_path / name / "s.qgz", scene=tmp_path / name / scene.name
        )
    assert (tmp_path / "one" / "s.qgz").read_bytes() == (tmp_path / "two" / "s.qgz").read_bytes()


def test_a_project_of_a_person_is_never_replaced(tmp_path: Path, slides: Path):
    out = tmp_path / "slides.qgz"
    geolabel.write_project(slides, out)
    with pytest.raises(OutputError, match="give --overwrite"):
        geolabel.write_project(slides, out)
    geolabel.write_project(slides, out, overwrite=True)
    with zipfile.ZipFile(out) as archive:
        text, comment = archive.read("slides.qgs"), archive.comment
    with zipfile.ZipFile(out, "w") as archive:  # changed by a program that keeps comments
        archive.writestr("slides.qgs", text.replace(b"slides", b"mine"))
        archive.comment = comment
    for content in (out.read_bytes(), b"", b"geolabel " + b"0" * 64):
        out.write_bytes(content)
        with pytest.raises(OutputError, match=r"is not replaced: give another name, or delete it"):
            geolabel.write_project(slides, out, overwrite=True)
        assert out.read_bytes() == content


def test_no_style_of_a_stranger_gets_into_the_project(tmp_path: Path, slides: Path):
    evil = "<qgis><editforminitcode>import os</editforminitcode></qgis>"
    with closing(sqlite3.connect(slides)) as connection, connection:
        assert connection.execute("UPDATE layer_styles SET styleQML = ?", (evil,)).rowcount == 3
    out = tmp_path / "slides.qgz"
    geolabel.write_project(slides, out)
    root = root_of(out)
    assert not list(root.iter("editforminitcode"))
    assert len(list(root.iter("renderer-v2"))) == 3


def test_columns_of_a_person_are_in_the_form(tmp_path: Path, slides: Path):
    table = gpd.read_file(slides, layer="landslides")
    table["surveyor's <name>"] = ["A & B"]
    table.to_file(slides, layer="landslides", driver="GPKG")
    geolabel.write_project(slides, tmp_path / "slides.qgz")
    fields = [one.get("name") for one in root_of(tmp_path / "slides.qgz").iter("attributeEditorField")]
    assert "surveyor's <name>" in fields


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"scene": "https://example.com/a.tif"}, OptionError, "^https://example.com/a.tif: a project needs a file of"),
        ({"before": ["missing.tif"]}, OptionError, "missing.tif: a project needs a file"),
        ({"out": "slides.qgs"}, OutputError, "must end with .qgz"),
        ({"slides": "slides.kmz"}, OptionError, r"slides.kmz: a project shows files that end with \.gpkg"),
        ({"slides": "a|b.gpkg"}, OptionError, "QGIS takes what follows | for options"),
    ],
)
def test_what_a_project_cannot_show_is_refused(
    change: dict, error: type[Exception], message: str, tmp_path: Path, slides: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    for name in ("slides.kmz", "a|b.gpkg"):
        shutil.copy(slides, name)
    given = {"slides": "slides.gpkg", "out": "slides.qgz"} | change
    with pytest.raises(error, match=message.replace("|", r"\|")):
        geolabel.write_project(given.pop("slides"), given.pop("out"), **given)
    assert not list(tmp_path.glob("*.qg*"))


def test_the_command_writes_beside_the_result(
    tmp_path: Path, slides: Path, scene: Path, capsys: pytest.CaptureFixture[str]
):
    assert command(["qgis", "project", str(slides), "--scene", str(scene), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "output": str(tmp_path / "slides.qgz"),
        "layers": ["landslides", "candidates", "tiles"],
        "scenes": ["scene"],
    }
    assert command(["qgis", "project", str(slides), "--before-bands", "3,2,1", "--out", str(tmp_path / "a.qgz")]) == 2
    assert "--before-bands 3,2,1: bands of --before; give that too" in capsys.readouterr().err
    assert command(["qgis", "project", str(slides)]) == 1
    assert "slides.qgz exists: give --overwrite" in capsys.readouterr().err

"""Tables of pairs: many scenes in one call, each with its own images from before the event and masks."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import geopandas as gpd
import numpy as np
import pyproj
import pytest
from affine import Affine
from scenes import PLACE, write_raster
from scipy import ndimage

import geolabel
from geolabel.cli.main import run as command
from geolabel.errors import OptionError, OutputError, SceneError
from geolabel.extraction import before as before_of_run
from geolabel.extraction.request import Networks, Reading
from geolabel.io.read.scene_inputs import SceneInput, list_scenes
from geolabel.parsing import Measure
from geolabel.testing import RECIPES

UTM = pyproj.CRS.from_epsg(32648)
NONE = Measure(0, "px")
GIVEN = geolabel.Parameters(tile_size=64, overlap=16, block_size=100, threads=1, min_area=NONE, max_hole=NONE)
SIDE = 160
BOXES = ((20, 20, 30, 30), (100, 100, 30, 30))
"""Bright boxes of both places: the first was bare before in place 0, the second in place 1."""


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks that find what is bright, whose scenes are not stretched."""
    monkeypatch.setattr(Networks, "recipes", lambda *_: RECIPES)
    monkeypatch.setattr(before_of_run, "STRETCH", "0,255")


def write(path: Path, image: np.ndarray, east: float = 0.0) -> Path:
    return write_raster(path, image.astype(np.uint8), transform=Affine.translation(east, 0) * PLACE)


def ground(seed: int, *boxes: tuple[int, int, int, int]) -> np.ndarray:
    rough = ndimage.gaussian_filter(np.random.default_rng(seed).normal(0, 1, (3, SIDE, SIDE)), (0, 1.5, 1.5))
    image = 45 + 60 * rough
    for row, col, height, width in boxes:
        image[:, row : row + height, col : col + width] = 225
    return image.clip(0, 255)


@pytest.fixture
def places(tmp_path: Path) -> Path:
    """Two scenes on one grid, side by side, and images from before beside them."""
    for place in (0, 1):
        write(tmp_path / f"after{place}.tif", ground(place, *BOXES), 200 * place)
        write(tmp_path / f"before{place}.tif", 0.8 * ground(place, BOXES[place]) + 10, 200 * place)
    clouds = np.zeros((1, SIDE, SIDE))
    clouds[:, 90:140, 90:140] = 1
    write(tmp_path / "clouds.tif", clouds)
    return tmp_path


def table(folder: Path, text: str) -> Path:
    path = folder / "pairs.csv"
    path.write_text(text)
    return path


PAIRS = "scene,before\nafter0.tif,before0.tif\nafter1.tif,before1.tif\n"


def extract(scenes: object, **given: object) -> gpd.GeoDataFrame:
    return geolabel.extract(scenes, reading=Reading(stretch="0,255"), parameters=GIVEN, cut=True, **given)


def test_each_scene_of_a_table_is_compared_with_its_own_image(places: Path) -> None:
    out = places / "s.gpkg"
    found = extract(table(places, PAIRS), out=out)
    assert len(found) == 2
    candidates = gpd.read_file(out, layer="candidates")
    assert candidates["reason"].tolist() == ["before", "before"]
    # what was bare before is the first box of the first place, and the second of the second
    corners = candidates.geometry.bounds[["minx", "maxy"]].to_numpy() - [500_000, 3_000_000]
    assert np.allclose(corners, [[10, -10], [250, -50]], atol=1)
    with closing(sqlite3.connect(out)) as database:
        texts = [json.loads(row[0]) for row in database.execute("SELECT metadata FROM gpkg_metadata")]
    parts = next(made for made in texts if "software" in made)["parts"]
    assert [part["evidence"]["before"] for part in parts] == [str(places / f"before{place}.tif") for place in (0, 1)]


def test_a_table_names_masks_and_several_images(places: Path) -> None:
    rows = [
        "scene, before, before_mask, mask",
        "after0.tif, before1.tif | before0.tif, none | clouds.tif, clouds.tif",
        "after1.tif,,,",
    ]
    first, second = list_scenes(str(table(places, "\n".join(rows))))
    there = [str(places / name) for name in ("before1.tif", "before0.tif", "clouds.tif")]
    assert (first.before, first.before_mask, first.mask) == (tuple(there[:2]), ("none", there[2]), (there[2],))
    assert second == SceneInput(str(places / "after1.tif"), str(places / "after1.tif"))


def test_the_mask_of_a_row_hides_ground_of_its_scene_alone(places: Path) -> None:
    given = table(places, "scene,mask\nafter0.tif,clouds.tif\nafter1.tif,\n")
    assert len(extract(given)) == 3


def test_what_trusts_positions_and_leaves_polygons_whole_applies_to_a_table(places: Path) -> None:
    """Without registration no displacement is reported; without --no-cut nothing is cut out of a polygon."""
    report = geolabel.Report()
    given = table(places, PAIRS)
    found = geolabel.extract(
        given,
        reading=Reading(stretch="0,255"),
        parameters=GIVEN,
        register=False,
        cut=False,
        report=report,
        out=places / "s.gpkg",
    )
    assert len(found) == 2
    assert "displacements_px" not in report.found
    with closing(sqlite3.connect(places / "s.gpkg")) as database:
        texts = [json.loads(row[0]) for row in database.execute("SELECT metadata FROM gpkg_metadata")]
    parts = next(made for made in texts if "software" in made)["parts"]
    assert [(part["evidence"]["register"], part["evidence"]["cut"]) for part in parts] == [(False, False)] * 2
    alone = table(places, "scene\nafter0.tif\nafter1.tif\n")
    with pytest.raises(OptionError, match="--no-register trusts the position"):
        extract(alone, register=False)


def test_tables_that_cannot_be_meant_are_refused(places: Path) -> None:
    with pytest.raises(SceneError, match="has a column 'earlier': give a header and rows of scene, before"):
        extract(table(places, "scene,earlier\nafter0.tif,before0.tif\n"))
    with pytest.raises(SceneError, match="has no row, or no column scene"):
        extract(table(places, "before\nbefore0.tif\n"))
    with pytest.raises(SceneError, match="has two columns before: give a header"):
        extract(table(places, "scene,before,before\nafter0.tif,before0.tif,before1.tif\n"))
    with pytest.raises(SceneError, match="line 3: more cells than columns; put a path with a comma in quotes"):
        extract(table(places, "scene,before\nafter0.tif,before0.tif\nafter0.tif,a,b.tif\n"))
    with pytest.raises(SceneError, match="line 3: 0 scenes; give one per row"):
        extract(table(places, "scene,before\nafter0.tif,\n,before0.tif\n"))
    with pytest.raises(OptionError, match=r"after0.tif is the scene itself, where nothing changes"):
        extract(table(places, "scene,before\nafter0.tif,before0.tif | after0.tif\n"))
    with pytest.raises(SceneError, match=r"--before .*before1.tif misses the scene"):
        extract(table(places, "scene,before\nafter0.tif,before1.tif\n"))
    with pytest.raises(OptionError, match=r"the table names .*before0.tif; give one of the two"):
        extract(table(places, PAIRS), before=places / "before0.tif")
    with pytest.raises(OutputError, match="is an input of this run"):
        extract(
            table(places, "scene,before\nafter0.tif,before0.tif\n"), score_out=places / "before0.tif", overwrite=True
        )
    with pytest.raises(OptionError, match="only extract compares them: remove the column before"):
        geolabel.predict(table(places, "scene,before\nafter0.tif,before0.tif\n"))


def test_the_command_takes_a_table(places: Path) -> None:
    out = places / "s.gpkg"
    words = ["extract", str(table(places, PAIRS)), "--out", str(out), "--stretch", "0,255", "--quiet"]
    assert command(words) == 0
    assert set(gpd.read_file(out, layer="candidates")["reason"]) == {"before"}

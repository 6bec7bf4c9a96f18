"""Masks: what a raster hides of a scene, on any grid and in any CRS, and what becomes of landslides beside it."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import geopandas as gpd
import numpy as np
import pyproj
import pytest
import rasterio
from affine import Affine
from scenes import EAST, GRID, PLACE, UTM, WEST, around, bright_scene, write_raster

import geolabel
from geolabel.cli.main import run as command
from geolabel.errors import OptionError, OutputError, SceneError
from geolabel.extraction.request import Networks, Reading
from geolabel.extraction.scene_groups import prepare
from geolabel.io.read.masks import hidden_share, open_masks
from geolabel.io.read.scenes import SceneReader
from geolabel.parsing import Measure
from geolabel.scene import Grid
from geolabel.testing import RECIPES
from geolabel.tiles import Window

NONE = Measure(0, "px")
GIVEN = geolabel.Parameters(tile_size=64, overlap=16, block_size=100, threads=1, min_area=NONE, max_hole=NONE)


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks that find what is bright."""
    monkeypatch.setattr(Networks, "recipes", lambda *_: RECIPES)


def write(path: Path, values: np.ndarray, grid: Grid = GRID, **profile: object) -> Path:
    return write_raster(path, values, crs=grid.crs, transform=grid.transform, **profile)


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    return bright_scene(tmp_path / "scene.tif")


def flags(where: Window, value: float = 1, kind: type = np.uint8, grid: Grid = GRID) -> np.ndarray:
    """Zero but for a window of the scene's grid."""
    rows, cols = np.mgrid[: grid.height, : grid.width] + 0.5
    x, y = grid.transform * (cols, rows)
    if not grid.crs.equals(UTM):
        x, y = pyproj.Transformer.from_crs(grid.crs, UTM, always_xy=True).transform(x, y)
    col, row = ~PLACE * (x, y)
    inside = (row >= where.row) & (row < where.bottom) & (col >= where.col) & (col < where.right)
    return np.where(inside, value, 0).astype(kind)


def extract(scene: Path, mask: object = (), **given: object) -> gpd.GeoDataFrame:
    reading = Reading(stretch="0,255", mask=mask)
    return geolabel.extract(scene, reading=reading, **({"parameters": GIVEN} | given))


def hidden(path: Path) -> np.ndarray:
    (mask,) = open_masks([path], [GRID], "--mask")
    return mask.hidden(GRID.window, GRID)


# --- which pixels ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("value", "kind"), [(1, np.uint8), (255, np.uint8), (-3, np.int8), (0.25, np.float32)])
def test_a_pixel_that_is_not_zero_is_hidden(tmp_path: Path, value: float, kind: type) -> None:
    found = hidden(write(tmp_path / "mask.tif", flags(WEST, value, kind)))
    assert np.array_equal(found, flags(WEST) > 0)


def test_zero_nodata_and_what_is_no_number_hide_nothing(tmp_path: Path) -> None:
    stated = flags(WEST, 7)
    stated[:, :40] = 255
    found = hidden(write(tmp_path / "a.tif", stated, nodata=255))
    assert np.array_equal(found, (flags(WEST) > 0) & (np.arange(200) >= 40))
    assert np.array_equal(hidden(write(tmp_path / "b.tif", flags(WEST, 2), nodata=0)), flags(WEST) > 0)
    unknown = np.where(flags(WEST) > 0, np.nan, flags(EAST, 3)).astype(np.float32)
    assert np.array_equal(hidden(write(tmp_path / "c.tif", unknown)), flags(EAST) > 0)


@pytest.mark.parametrize(("gsd", "crs"), [(0.1, 32648), (2.0, 32649), (5.0, 4326), (0.7, 3857)])
def test_a_mask_of_another_grid_hides_the_same_ground(tmp_path: Path, gsd: float, crs: int) -> None:
    grid = around(gsd, pyproj.CRS.from_epsg(crs))
    found = hidden(write(tmp_path / "mask.tif", flags(WEST, 200, grid=grid), grid))
    expected = flags(WEST) > 0
    rim = 2 + 2 * gsd  # pixels of the scene: as wide as those of the mask are
    inner, outer = (flags(Window(20 + d, 20 + d, 60 - 2 * d, 60 - 2 * d)) > 0 for d in (round(rim), -round(rim)))
    assert found[inner].all()
    assert not found[~outer].any()
    assert found.sum() == pytest.approx(expected.sum(), rel=0.25)


def test_ground_beyond_a_mask_is_not_hidden(tmp_path: Path) -> None:
    corner = replace(GRID, height=30, width=30)
    found = hidden(write(tmp_path / "mask.tif", np.ones((30, 30), np.uint8), corner))
    assert found[:29, :29].all()
    assert not found[31:].any()
    assert not found[:, 31:].any()


def test_what_is_hidden_depends_on_no_window(tmp_path: Path) -> None:
    noise = np.random.default_rng(1).integers(0, 2, (70, 70)).astype(np.uint8)
    path = write(tmp_path / "mask.tif", noise, replace(around(1.7), height=70, width=70))
    (mask,) = open_masks([path], [GRID], "--mask")
    whole = mask.hidden(GRID.window, GRID)
    assert 0.2 < whole.mean() < 0.8
    for window in (Window(0, 0, 1, 1), Window(37, 11, 50, 71), Window(150, 180, 50, 20)):
        assert np.array_equal(mask.hidden(window, GRID), whole[window.slices])


# --- scenes ----------------------------------------------------------------------------------------------------------


def test_what_is_hidden_is_not_valid_and_has_no_say_in_the_stretch(tmp_path: Path, scene: Path) -> None:
    masks = open_masks([write(tmp_path / "mask.tif", flags(WEST))], [GRID], "--mask")
    plain, masked = SceneReader(scene), SceneReader(scene).without(masks)
    for window in (GRID.window, Window(10, 15, 40, 30)):
        valid = masked.read(window, GRID)[1]
        assert np.array_equal(valid, plain.read(window, GRID)[1] & (flags(WEST)[window.slices] == 0))
    _, valid = masked.sample()
    assert np.array_equal(valid, flags(WEST) == 0)
    assert masked.without(()).sample()[1].all()
    both = open_masks([write(tmp_path / f"{n}.tif", flags(box)) for n, box in enumerate((WEST, EAST))], [GRID], "")
    plans = [prepare(scene, Reading(mask=given), Networks(), GIVEN) for given in ((), tuple(tmp_path.glob("[01].tif")))]
    assert plans[0].stretch.high[0] == 230
    assert plans[1].stretch.high[0] < 60
    assert plans[1].masked == hidden_share(SceneReader(scene).without(both), GRID, "") == pytest.approx(0.18)


def test_no_landslide_is_reported_on_hidden_ground(tmp_path: Path, scene: Path) -> None:
    mask, out = write(tmp_path / "mask.tif", flags(Window(0, 0, 200, 100))), tmp_path / "s.gpkg"
    assert len(extract(scene)) == 2
    found = extract(scene, mask, out=out, score_out=tmp_path / "score.tif")
    assert found["id"].tolist() == [1]
    assert found["masked_edge"].tolist() == [0]
    with rasterio.open(tmp_path / "score.tif") as scores:
        assert np.array_equal(scores.read(1) == 255, flags(Window(0, 0, 200, 100)) > 0)
    assert extract(
        scene, [mask, write(tmp_path / "east.tif", flags(EAST))][::-1] and (mask, tmp_path / "east.tif")
    ).empty


def test_a_strip_along_a_mask_is_a_candidate_with_its_reason(tmp_path: Path, scene: Path) -> None:
    """The mask leaves a strip 6 px wide of one box, and the larger part of the other."""
    cut = flags(Window(0, 0, 200, 74)) | flags(Window(0, 170, 200, 30))
    out = tmp_path / "s.gpkg"
    found = extract(scene, write(tmp_path / "mask.tif", cut), out=out)
    assert found["id"].tolist() == [2]
    assert found["masked_edge"].tolist() == pytest.approx([60 / 220], abs=0.02)
    candidates = gpd.read_file(out, layer="candidates")
    assert candidates[["id", "reason"]].to_numpy().tolist() == [[1, "masked"]]
    assert extract(scene)["masked_edge"].isna().all()


def test_what_masks_leave_out_is_a_layer_of_its_own(tmp_path: Path, scene: Path) -> None:
    """A quarter of a square metre a pixel: 900 and 2,500 m2."""
    out, mask = tmp_path / "s.gpkg", write(tmp_path / "mask.tif", flags(WEST) | flags(Window(100, 0, 100, 100)))
    extract(scene, mask, out=out)
    masked = gpd.read_file(out, layer="masked")
    assert masked["id"].tolist() == [1, 2]
    assert sorted(masked.area.tolist()) == [900, 2500]
    other = tmp_path / "other.gpkg"
    extract(scene, write(tmp_path / "none.tif", flags(WEST, 0)), out=other)
    assert "masked" not in gpd.list_layers(other)["name"].tolist()


def test_a_layer_masked_of_a_person_is_not_replaced(tmp_path: Path, scene: Path) -> None:
    """Where geolabel wrote none, a layer of that name is somebody's; one that geolabel wrote is made again."""
    out, mask = tmp_path / "s.gpkg", write(tmp_path / "mask.tif", flags(WEST))
    for _ in range(2):
        extract(scene, mask, out=out, overwrite=True)
    extract(scene, out=out, overwrite=True)
    gpd.GeoDataFrame(geometry=[GRID.outline], crs=UTM).to_file(out, layer="masked", driver="GPKG")
    with pytest.raises(OutputError, match="masked"):
        extract(scene, mask, out=out, overwrite=True)


def test_ground_that_another_scene_shows_is_not_left_out(tmp_path: Path, scene: Path) -> None:
    """The other scene is on another grid, 40 m further south, and has no mask: 20 m of what is hidden are its own."""
    with rasterio.open(scene) as source:
        grid = replace(GRID, transform=PLACE * Affine.translation(0.5, 80))
        write(tmp_path / "south.tif", source.read(), grid, photometric="rgb")
    write(tmp_path / "mask.tif", flags(Window(40, 0, 80, 200)))
    (tmp_path / "pairs.csv").write_text("scene,mask\nscene.tif,mask.tif\nsouth.tif,\n")
    out = tmp_path / "s.gpkg"
    geolabel.extract(tmp_path / "pairs.csv", reading=Reading(stretch="0,255"), parameters=GIVEN, out=out)
    masked = gpd.read_file(out, layer="masked")
    assert masked.area.sum() == pytest.approx(20 * 100 + 20 * 0.25)  # which begins a half pixel further east


def test_blocks_and_tiles_change_no_share_of_an_outline(
    tmp_path: Path, scene: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from geolabel.extraction import evidence

    mask = write(tmp_path / "mask.tif", flags(Window(0, 75, 200, 3)))
    parameters = replace(GIVEN, min_confidence=0)
    tables = [extract(scene, mask, parameters=replace(parameters, block_size=size)) for size in (64, 2048)]
    monkeypatch.setattr(evidence, "TILE_PX", 37)
    tables.append(extract(scene, mask, parameters=parameters))
    assert all(table.to_wkb().equals(tables[0].to_wkb()) for table in tables)
    assert tables[0]["masked_edge"].max() > 0.2


def test_scenes_on_one_grid_are_all_masked(tmp_path: Path, scene: Path) -> None:
    """Where the first scene is hidden, the one below does not show: the mask is of the place."""
    with rasterio.open(scene) as source:
        below = write(tmp_path / "below.tif", source.read(), photometric="rgb")
    found = geolabel.extract(
        [scene, below],
        reading=Reading(stretch="0,255", mask=write(tmp_path / "mask.tif", flags(WEST))),
        parameters=GIVEN,
    )
    assert len(found) == 1


def test_predict_and_segment_leave_out_the_same_ground(tmp_path: Path, scene: Path) -> None:
    mask = write(tmp_path / "mask.tif", flags(WEST))
    report = geolabel.Report()
    scores = geolabel.predict(scene, reading=Reading(stretch="0,255", mask=mask), parameters=GIVEN, report=report)
    assert np.array_equal(np.isnan(scores.values), flags(WEST) > 0)
    assert report.summary()["masked_share"] == 0.09


# --- before ----------------------------------------------------------------------------------------------------------


def test_no_change_is_judged_where_either_image_is_masked(tmp_path: Path, scene: Path) -> None:
    with rasterio.open(scene) as source:
        before = write(tmp_path / "before.tif", source.read(), photometric="rgb")
    mask = write(tmp_path / "mask.tif", flags(WEST))
    found = extract(scene, before=before, register=False)
    assert not len(found)  # both are bare on both days
    found = extract(scene, before=before, register=False, before_mask=mask)
    assert found["id"].tolist() == [1]
    assert found["change_z"].isna().tolist() == [True]
    assert found["activation_before"].isna().tolist() == [True]
    half = write(tmp_path / "half.tif", flags(Window(20, 20, 29, 60)))
    assert not len(extract(scene, before=before, register=False, before_mask=[half]))


# --- what is given ---------------------------------------------------------------------------------------------------


def test_masks_that_cannot_be_meant_are_refused(tmp_path: Path, scene: Path) -> None:
    with pytest.raises(SceneError, match="has 3 bands: give a raster of one band"):
        extract(scene, scene)
    with pytest.raises(SceneError, match=r"hides all of .*: non-zero pixels are hidden"):
        extract(scene, write(tmp_path / "all.tif", np.full((200, 200), 255, np.uint8)))
    far = Grid(UTM, PLACE * Affine.translation(5000, 0), 20, 20)
    with pytest.raises(SceneError, match=r"--mask .*far.tif misses the scene"):
        extract(scene, write(tmp_path / "far.tif", np.ones((20, 20), np.uint8), far))
    with pytest.raises(OptionError, match=r"--before-mask a.tif is of a scene from before: give one with --before"):
        extract(scene, before_mask="a.tif")
    mask = write(tmp_path / "mask.tif", flags(WEST))
    with pytest.raises(OutputError, match="is an input of this run"):
        extract(scene, mask, score_out=mask, overwrite=True)
    (tmp_path / "mask.xml").write_text("<GDAL_WMS><Service name='TMS'/></GDAL_WMS>")
    with pytest.raises(SceneError):
        extract(scene, tmp_path / "mask.xml")


def test_the_command_says_how_much_is_left_out(tmp_path: Path, scene: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "s.gpkg"
    masks = [str(write(tmp_path / f"{name}.tif", flags(box))) for name, box in (("a", WEST), ("b", EAST))]
    words = ["extract", str(scene), "--out", str(out), "--stretch", "0,255", "--mask", masks[0], "--mask", masks[1]]
    assert command(words) == 0
    assert "18.0% of the scene is left out" in capsys.readouterr().out
    with closing(sqlite3.connect(out)) as database:
        texts = [json.loads(row[0]) for row in database.execute("SELECT metadata FROM gpkg_metadata")]
    made = next(made for made in texts if "software" in made)
    assert made["masks"] == {"names": masks, "share": pytest.approx(0.18)}


def test_a_run_is_not_resumed_with_another_mask(tmp_path: Path, scene: Path) -> None:
    from geolabel.extraction.work import run_key

    mask = write(tmp_path / "mask.tif", flags(WEST))
    plans = [prepare(scene, Reading(mask=given), Networks(), GIVEN) for given in ((), mask)]
    keys = [run_key([plan], [None]) for plan in plans]
    write(mask, flags(EAST))
    keys.append(run_key([prepare(scene, Reading(mask=mask), Networks(), GIVEN)], [None]))
    assert keys[0] is not None
    assert len({json.dumps(key) for key in keys}) == 3

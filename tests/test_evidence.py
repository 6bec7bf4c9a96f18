"""Evidence beside the scene: heights on any grid, slopes under polygons, and what is no landslide for that reason."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import geopandas as gpd
import numpy as np
import pyproj
import pytest
import rasterio
import shapely
from affine import Affine
from rasterio.warp import Resampling, reproject
from scenes import GRID, PLACE, UTM, around, bright_scene, write_raster

import geolabel
from geolabel import terrain
from geolabel.cli.main import run as command
from geolabel.errors import OptionError, OutputError, SceneError, VectorError
from geolabel.extraction import evidence, heights
from geolabel.extraction.request import Networks, Reading
from geolabel.io.read.aligned import AlignedReader
from geolabel.io.read.features import read_exclusions
from geolabel.io.read.scenes import SceneReader
from geolabel.io.written import read_written
from geolabel.parsing import Measure
from geolabel.scene import Grid
from geolabel.testing import RECIPES
from geolabel.tiles import Window

NONE = Measure(0, "px")
GIVEN = geolabel.Parameters(tile_size=64, overlap=16, block_size=100, threads=1, min_area=NONE, max_hole=NONE)
READING = Reading(stretch="0,255")
TEN = Measure(10, "deg")


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks that find what is bright."""
    monkeypatch.setattr(Networks, "recipes", lambda *_: RECIPES)


def write(path: Path, values: np.ndarray, grid: Grid = GRID, **profile: object) -> Path:
    return write_raster(path, values, crs=grid.crs, transform=grid.transform, **profile)


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    return bright_scene(tmp_path / "scene.tif")


def hillside(grid: Grid) -> np.ndarray:
    """Heights: level in the west of the scene, a slope of 30 degrees down to the east beyond its middle."""
    rows, cols = np.mgrid[: grid.height, : grid.width] + 0.5
    x, y = grid.transform * (cols, rows)
    if not grid.crs.equals(UTM):
        x, _ = pyproj.Transformer.from_crs(grid.crs, UTM, always_xy=True).transform(x, y)
    return (500 - np.tan(np.radians(30)) * np.maximum(x - 500_050, 0)).astype(np.float32)


def extract(scene: Path, parameters: geolabel.Parameters = GIVEN, **given: object) -> gpd.GeoDataFrame:
    return geolabel.extract(scene, reading=READING, parameters=parameters, **given)


# --- slopes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [1, 3])
@pytest.mark.parametrize(
    ("east", "north", "degrees"), [(0, -1, 0.0), (-1, 0, 90.0), (0, 1, 180.0), (1, 0, 270.0), (-1, -1, 45.0)]
)
def test_a_plane_has_its_slope_and_the_direction_down_it(east: float, north: float, degrees: float, step: int) -> None:
    """East and north are the rise in metres per metre; ground that rises to the south falls to the north."""
    rows, cols = np.mgrid[:20, :20]
    heights = 100 + 0.5 * (east * cols - north * rows)
    found = terrain.derive(
        heights, np.ones_like(heights, bool), terrain.pixel_sizes(GRID, range(20 - 2 * step)), GRID, step
    )
    assert np.allclose(np.tan(np.radians(found.slope)), np.hypot(east, north), rtol=1e-3)
    assert found.known.all()
    assert np.allclose(terrain.aspect(found.east, found.north), degrees)


def test_slopes_of_a_rotated_grid_point_where_they_do_on_the_map() -> None:
    grid = replace(GRID, transform=PLACE * Affine.rotation(30))
    rows, cols = np.mgrid[:12, :12]
    x, _ = grid.transform * (cols, rows)
    heights = -0.5 * (x - x[0, 0])  # falls to the east
    found = terrain.derive(heights, np.ones_like(heights, bool), terrain.pixel_sizes(grid, range(10)), grid)
    assert np.allclose(terrain.aspect(found.east, found.north), 90)
    assert np.allclose(found.slope, np.degrees(np.arctan(0.5)), atol=0.02)


def test_level_ground_has_no_aspect_and_unknown_heights_no_slope() -> None:
    heights, known = np.full((9, 9), 7.0), np.ones((9, 9), bool)
    known[4, 4] = False
    found = terrain.derive(heights, known, terrain.pixel_sizes(GRID, range(7)), GRID)
    assert np.isnan(terrain.aspect(found.east, found.north)).all()
    assert not found.known[2:5, 2:5].any()
    assert found.known.sum() == 49 - 9


def test_pixels_of_a_geographic_grid_are_as_wide_as_their_latitude_makes_them() -> None:
    grid = Grid(pyproj.CRS.from_epsg(4326), Affine(0.001, 0, 10, 0, -0.001, 60.5), 1000, 4)
    wide, tall = terrain.pixel_sizes(grid, range(1000))
    assert wide[500] / wide[0] == pytest.approx(np.cos(np.radians(60)) / np.cos(np.radians(60.5)), rel=1e-3)
    assert tall.mean() == pytest.approx(111.4, rel=1e-3)


@pytest.mark.parametrize("step", [1, 4])
def test_curvature_is_that_of_the_surface(step: int) -> None:
    """A cap 100 - 0.02 x2 - 0.005 y2 has second derivatives of -0.04 and -0.01; a hollow has the other sign."""
    rows, cols = (np.mgrid[:30, :30] - 14.5) * 0.5
    sizes = terrain.pixel_sizes(GRID, range(30 - 2 * step))
    for sign, expected in ((1, 0.05), (-1, -0.05), (0, 0.0)):
        heights = 100 - sign * (0.02 * cols**2 + 0.005 * rows**2) + 0.3 * cols
        found = terrain.derive(heights, np.ones_like(heights, bool), sizes, GRID, step)
        assert found.curvature == pytest.approx(np.full(found.curvature.shape, expected), rel=2e-3, abs=1e-9)


def test_a_height_beyond_the_edge_continues_the_slope() -> None:
    """On a plane forms are the same with and without the heights of one side, and of a hole."""
    rows, cols = np.mgrid[:60, :60] * 0.5
    heights, known = 50 + 0.4 * cols - 0.3 * rows, np.ones((60, 60), bool)
    sizes, steps = terrain.pixel_sizes(GRID, range(40)), (2, 10)
    whole = terrain.forms(heights, known, sizes, GRID, steps)
    known[:, 40:] = known[20:23, 5:8] = False
    found = terrain.forms(np.where(known, heights, -9999), known, sizes, GRID, steps)
    assert found["known"].tolist() == known[10:-10, 10:-10].tolist()
    for name in ("slope_1", "slope_2", "rise_1", "rise_2"):
        assert found[name][found["known"]] == pytest.approx(whole[name][found["known"]], abs=1e-9)


# --- reading on another grid -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("crs", [4326, 32649, 3857])
def test_a_raster_of_another_crs_is_read_as_gdal_reprojects_it(tmp_path: Path, crs: int) -> None:
    grid = around(0.7, pyproj.CRS.from_epsg(crs))
    rows, cols = np.mgrid[: grid.height, : grid.width]
    stored = (100 + 20 * np.sin(rows / 9) * np.cos(cols / 7)).astype(np.float32)
    found, valid = AlignedReader(SceneReader(write(tmp_path / "a.tif", stored, grid)), 1).read(GRID.window, GRID)
    oracle = np.zeros((200, 200), np.float32)
    reproject(
        stored,
        oracle,
        src_transform=grid.transform,
        src_crs=grid.crs,
        dst_transform=PLACE,
        dst_crs=UTM,
        resampling=Resampling.bilinear,
        tolerance=0,
    )
    assert valid.all()
    assert np.abs(found[0] - oracle).max() < 0.2
    assert np.abs(found[0] - oracle).mean() < 0.01


def test_a_raster_on_the_same_grid_is_read_pixel_for_pixel(tmp_path: Path) -> None:
    stored = np.random.default_rng(1).uniform(0, 99, (200, 200)).astype(np.float32)
    reader = AlignedReader(SceneReader(write(tmp_path / "a.tif", stored)), 1)
    assert np.array_equal(reader.read(GRID.window, GRID)[0][0], stored.astype(float))
    assert reader.overlap(GRID) == 1


@pytest.mark.parametrize("gsd", [0.1, 0.5, 3.0])
def test_what_a_pixel_holds_depends_on_no_window(tmp_path: Path, gsd: float) -> None:
    grid = around(gsd, pyproj.CRS.from_epsg(32649), margin=-20)
    stored = np.random.default_rng(2).uniform(0, 99, (grid.height, grid.width)).astype(np.float32)
    reader = AlignedReader(SceneReader(write(tmp_path / "a.tif", stored, grid)), 1)
    whole, valid = reader.read(Window(-30, -30, 260, 260), GRID)
    assert 0 < valid.mean() < 1
    for window in (Window(0, 0, 1, 1), Window(37, 11, 50, 71), Window(150, 180, 60, 40)):
        part, good = reader.read(window, GRID)
        here = window.row + 30, window.col + 30
        place = slice(here[0], here[0] + window.height), slice(here[1], here[1] + window.width)
        assert np.array_equal(part[0], whole[0][place])
        assert np.array_equal(good, valid[place])


@pytest.mark.parametrize("shift", [(0.0, 0.0), (0.375, -2.5)])
def test_whole_rows_and_columns_have_the_values_of_their_pixels(tmp_path: Path, shift: tuple[float, float]) -> None:
    stored = np.random.default_rng(4).uniform(0, 99, (200, 200)).astype(np.float32)
    stored[50:90, 30:60] = -9999
    reader = AlignedReader(SceneReader(write(tmp_path / "a.tif", stored, nodata=-9999)), 1)
    rows, cols = np.arange(-3, 190)[:, None] + 0.5 + shift[0], np.arange(20, 206)[None] + 0.5 + shift[1]
    fast, valid = reader._sample(rows, cols, GRID)
    slow, same = reader._sample(*map(np.ascontiguousarray, np.broadcast_arrays(rows, cols)), GRID)
    assert 0.3 < valid.mean() < 0.99
    assert np.array_equal(fast, slow)
    assert np.array_equal(valid, same)


# --- polygons --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("gsd", "crs"), [(0.5, 32648), (2.0, 32649), (5.0, 4326), (0.2, 32648)])
def test_slopes_of_polygons_are_those_of_the_ground(tmp_path: Path, scene: Path, gsd: float, crs: int) -> None:
    grid = around(gsd, pyproj.CRS.from_epsg(crs))
    found = extract(scene, dem=write(tmp_path / "dem.tif", hillside(grid), grid))
    assert found["slope_mean_deg"].tolist() == pytest.approx([0, 30], abs=0.5)
    assert found["slope_max_deg"].tolist() == pytest.approx([0, 30], abs=1)
    wide = found.geometry.bounds.pipe(lambda box: box["maxx"] - box["minx"])
    assert found["relief_m"].tolist() == pytest.approx([0, (wide[1] - 0.5) * np.tan(np.radians(30))], rel=0.03, abs=0.1)
    assert found["aspect_deg"][1] == pytest.approx(90, abs=1)
    assert found["reason"].isna().all()


@pytest.mark.parametrize("turn", [0, 30])
def test_relief_over_length_is_the_tangent_of_the_slope_of_a_plane(tmp_path: Path, scene: Path, turn: int) -> None:
    """Whatever the direction of the fall, and of the rows of the grid."""
    grid = around(0.5, margin=60)
    rows, cols = np.mgrid[: grid.height, : grid.width] + 0.5
    x, y = grid.transform * (cols, rows)
    for east, north in ((0.5, 0.0), (-0.3, 0.4)):
        heights = (500 + east * (x - 500_050) + north * (y - 2_999_950)).astype(np.float32)
        dem = write(tmp_path / "dem.tif", heights, grid)
        place = Grid(
            UTM, PLACE * Affine.translation(100, 100) * Affine.rotation(turn) * Affine.translation(-100, -100), 200, 200
        )
        with rasterio.open(scene) as source:
            turned = write(tmp_path / "turned.tif", source.read(), place, photometric="rgb")
        found = extract(turned, dem=dem)
        assert found["h_over_l"].tolist() == pytest.approx([0.5, 0.5], rel=0.01)
        assert found["upslope_curvature"].tolist() == pytest.approx([0, 0], abs=2e-3)


def test_the_curvature_of_the_head_is_not_that_of_the_foot(tmp_path: Path, scene: Path) -> None:
    """Ground that bends down at its top and up at its foot, as a polygon's rows 20 to 80 have it."""
    y = (np.arange(200) + 0.5) * 0.5
    down = 40 * np.cos(np.clip((y - 10) / 30, 0, 1) * np.pi)  # z'' of the top: -40 (pi / 30)^2 = -0.439
    dem = write(tmp_path / "dem.tif", np.broadcast_to(down[:, None], (200, 200)).astype(np.float32))
    found = extract(scene, dem=dem)
    head = y[(y > 10) & (y < 40) & (down > 40 - 0.2 * 80)]
    expected = 40 * (np.pi / 30) ** 2 * np.cos((head - 10) / 30 * np.pi).mean()
    assert found["upslope_curvature"][0] == pytest.approx(expected, rel=0.05)
    assert found["h_over_l"][0] == pytest.approx(80 / 30, rel=0.03)
    assert extract(scene)[["h_over_l", "upslope_curvature"]].isna().all(axis=None)


def test_what_is_gentle_is_a_candidate_with_its_reason(tmp_path: Path, scene: Path) -> None:
    dem, out = write(tmp_path / "dem.tif", hillside(GRID)), tmp_path / "s.gpkg"
    found = extract(scene, out=out, dem=dem, min_slope=TEN)
    assert found["id"].tolist() == [2]
    candidates = gpd.read_file(out, layer="candidates")
    assert candidates[["id", "reason"]].to_numpy().tolist() == [[1, "slope"]]
    assert candidates["slope_mean_deg"][0] == pytest.approx(0, abs=0.5)
    assert len(extract(scene, dem=dem, min_slope=Measure(40, "deg"))) == 0


@pytest.mark.parametrize("said", ["20240531", "2024-W22-5", "31.5.2024"])
def test_dates_of_an_event_are_given_in_full(scene: Path, tmp_path: Path, said: str) -> None:
    with pytest.raises(OptionError, match=f"--event-after {said}: give a date such as 2024-05-31"):
        extract(scene, before=scene, event_after=said)


def test_a_run_that_continues_another_without_its_evidence_is_warned(
    tmp_path: Path, scene: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dem, out = write(tmp_path / "dem.tif", hillside(GRID)), tmp_path / "s.gpkg"
    extract(scene, out=out, dem=dem, min_slope=TEN)
    extract(scene, dem=dem, min_slope=TEN, keep_reviewed=out)
    assert "was made with" not in caplog.text
    for given in ({"keep_reviewed": out}, {"prompts_from": out}):
        caplog.clear()
        extract(scene, dem=dem, **given)
        assert "s.gpkg was made with --min-slope, but this run is not" in caplog.text
        caplog.clear()
        extract(scene, **given)
        assert "s.gpkg was made with --dem, --min-slope, but this run is not" in caplog.text


@pytest.mark.parametrize("suffix", [".zip", ".parquet", ".geojson", ".fgb"])
def test_other_formats_say_what_they_were_made_with_too(
    tmp_path: Path, scene: Path, suffix: str, caplog: pytest.LogCaptureFixture
) -> None:
    dem, out = write(tmp_path / "dem.tif", hillside(GRID)), tmp_path / f"s{suffix}"
    extract(scene, out=out, dem=dem, min_slope=TEN)
    extract(scene, keep_reviewed=out)
    assert f"s{suffix} was made with --dem, --min-slope, but this run is not" in caplog.text


def test_what_is_on_excluded_ground_is_a_candidate_with_its_reason(tmp_path: Path, scene: Path) -> None:
    """In another CRS; a polygon of which less than half is on it stays."""
    left, top = PLACE * (100, 100)
    lake = shapely.box(left, top - 50, left + 200, top + 50)
    pond = shapely.box(*(PLACE * (20, 80)), *(PLACE * (45, 20)))
    water = gpd.GeoDataFrame(geometry=[lake, pond], crs=UTM).to_crs(4326)
    water.to_file(tmp_path / "water.gpkg", layer="lakes")
    out = tmp_path / "s.gpkg"
    found = extract(scene, out=out, exclude=tmp_path / "water.gpkg")
    assert found["id"].tolist() == [1]
    assert gpd.read_file(out, layer="candidates")[["id", "reason"]].to_numpy().tolist() == [[2, "excluded"]]


def test_a_long_coast_is_cut_into_parts_that_hold_the_same_ground(tmp_path: Path) -> None:
    angle = np.linspace(0, 2 * np.pi, 3000, endpoint=False)
    left, top = PLACE * (100, 100)
    ring = np.stack([np.cos(angle), np.sin(angle)]) * (20 + 3 * np.sin(40 * angle)) + [[left], [top]]
    coast = shapely.Polygon(ring.T, [shapely.box(left - 5, top - 5, left + 5, top + 5).exterior])
    gpd.GeoDataFrame(geometry=[coast], crs=UTM).to_file(tmp_path / "coast.gpkg")
    parts = read_exclusions(tmp_path / "coast.gpkg", GRID)
    assert len(parts) > 10
    assert shapely.get_num_coordinates(parts).max() <= 256
    assert shapely.area(parts).sum() == pytest.approx(coast.area)
    assert shapely.union_all(parts).symmetric_difference(coast).area == pytest.approx(0, abs=1e-6)


def test_water_elsewhere_excludes_nothing_and_is_said(
    tmp_path: Path, scene: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sea = gpd.GeoDataFrame(geometry=[shapely.box(0, 0, 1, 1)], crs=4326)
    sea.to_file(tmp_path / "sea.gpkg")
    assert len(extract(scene, exclude=tmp_path / "sea.gpkg")) == 2
    assert "nothing is excluded" in caplog.text
    points = gpd.GeoDataFrame(geometry=[shapely.Point(0, 0)], crs=4326)
    points.to_file(tmp_path / "points.gpkg")
    with pytest.raises(VectorError, match="holds no polygon"):
        extract(scene, exclude=tmp_path / "points.gpkg")


def test_what_a_person_asks_for_is_not_judged(tmp_path: Path, scene: Path) -> None:
    dem = write(tmp_path / "dem.tif", np.zeros((200, 200), np.float32))
    west = shapely.box(*(PLACE * (18, 82)), *(PLACE * (82, 18)))
    gpd.GeoDataFrame(geometry=[west], crs=UTM).to_file(tmp_path / "boxes.gpkg")
    found = extract(scene, dem=dem, min_slope=TEN, prompts_from=tmp_path / "boxes.gpkg")
    assert found["slope_mean_deg"].tolist() == [0]


def test_without_heights_nothing_is_known_and_nothing_rejected(tmp_path: Path, scene: Path) -> None:
    heights = np.where(np.arange(200) < 100, -9999, hillside(GRID)).astype(np.float32)
    dem = write(tmp_path / "dem.tif", heights)
    found = extract(scene, dem=dem, min_slope=TEN)
    assert found["slope_mean_deg"].isna().tolist() == [True, False]
    assert found[["slope_max_deg", "relief_m", "aspect_deg"]].isna().all(axis=1).tolist() == [True, False]
    assert extract(scene)["slope_mean_deg"].isna().all()


def test_heights_in_feet_and_scaled_heights_are_metres(tmp_path: Path, scene: Path) -> None:
    metres = hillside(GRID)
    with rasterio.open(write(tmp_path / "feet.tif", (metres / 0.3048).astype(np.float32)), "r+") as dem:
        dem.units = ["ft"]
    with rasterio.open(write(tmp_path / "scaled.tif", np.rint(metres * 100).astype(np.int32)), "r+") as dem:
        dem.scales, dem.offsets = [0.01], [1000.0]
    for name in ("feet", "scaled"):
        assert extract(scene, dem=tmp_path / f"{name}.tif")["slope_mean_deg"][1] == pytest.approx(30, abs=1)
    with rasterio.open(write(tmp_path / "hours.tif", metres), "r+") as dem:
        dem.units = ["hours"]
    with pytest.raises(SceneError, match="in hours: give heights in metres or feet"):
        extract(scene, dem=tmp_path / "hours.tif")


def test_blocks_and_tiles_change_nothing(tmp_path: Path, scene: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = around(1.3, pyproj.CRS.from_epsg(4326))
    dem = write(
        tmp_path / "dem.tif",
        hillside(grid) + np.random.default_rng(0).normal(0, 0.3, (grid.height, grid.width)).astype(np.float32),
        grid,
    )
    tables = [extract(scene, replace(GIVEN, block_size=size), dem=dem) for size in (64, 100, 2048)]
    monkeypatch.setattr(evidence, "TILE_PX", 37)
    tables.append(extract(scene, dem=dem))
    for table in tables[1:]:
        assert table.to_wkb().equals(tables[0].to_wkb())
    assert tables[0]["slope_max_deg"][0] > 1


def test_no_more_than_a_tile_of_heights_is_read_at_once(
    tmp_path: Path, scene: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evidence, "TILE_PX", 40)
    monkeypatch.setattr(heights, "MAX_STEP_PX", 8)
    seen, read = [], AlignedReader.read
    monkeypatch.setattr(
        AlignedReader, "read", lambda self, window, grid: seen.append(window) or read(self, window, grid)
    )
    grid = around(30)
    extract(scene, dem=write(tmp_path / "dem.tif", hillside(grid), grid))
    assert max(max(window.height, window.width) for window in seen) == 40 + 2 * 8


def test_scenes_on_several_grids_are_judged_each_on_its_own(tmp_path: Path, scene: Path) -> None:
    """Two scenes of one place, half a pixel apart: what is gentle in both stays a candidate."""
    with rasterio.open(scene) as source:
        image = source.read()
    shifted = Grid(UTM, PLACE * Affine.translation(0.4, 0.4), 200, 200)
    other = write(tmp_path / "other.tif", image, shifted, photometric="rgb")
    dem, out = write(tmp_path / "dem.tif", hillside(around(1.0)), around(1.0)), tmp_path / "s.gpkg"
    found = geolabel.extract([scene, other], out=out, reading=READING, parameters=GIVEN, dem=dem, min_slope=TEN)
    assert found["slope_mean_deg"].tolist() == pytest.approx([30], abs=0.5)
    assert gpd.read_file(out, layer="candidates")["reason"].tolist() == ["slope"]


# --- what is given ---------------------------------------------------------------------------------------------------


def test_what_is_given_is_checked_before_the_run(tmp_path: Path, scene: Path) -> None:
    with pytest.raises(OptionError, match="--min-slope 10deg needs heights: give a height model with --dem"):
        extract(scene, min_slope=TEN)
    with pytest.raises(OptionError, match="give degrees below 90"):
        extract(scene, dem=scene, min_slope=Measure(10, "px"))
    with pytest.raises(SceneError, match="has 3 bands: give a raster of heights alone"):
        extract(scene, dem=scene)
    far = Grid(UTM, PLACE * Affine.translation(5000, 0), 20, 20)
    dem = write(tmp_path / "far.tif", np.zeros((20, 20), np.float32), far)
    with pytest.raises(SceneError, match=r"--dem .*far.tif misses the scene: it covers"):
        extract(scene, dem=dem)
    dem = write(tmp_path / "dem.tif", hillside(GRID))
    with pytest.raises(OutputError, match="is an input of this run"):
        extract(scene, dem=dem, score_out=dem, overwrite=True)


def test_a_height_model_of_a_format_that_is_not_allowed_is_not_opened(tmp_path: Path, scene: Path) -> None:
    (tmp_path / "dem.xml").write_text(
        "<GDAL_WMS><Service name='TMS'><ServerUrl>http://x/</ServerUrl></Service></GDAL_WMS>"
    )
    with pytest.raises(SceneError):
        extract(scene, dem=tmp_path / "dem.xml")


def test_the_file_says_what_was_given(tmp_path: Path, scene: Path) -> None:
    dem, out = write(tmp_path / "dem.tif", hillside(GRID)), tmp_path / "s.gpkg"
    words = ["extract", str(scene), "--out", str(out), "--dem", str(dem), "--min-slope", "10deg", "--stretch", "0,255"]
    assert command([*words, "--quiet"]) == 0
    assert {"dem": str(dem), "min_slope": "10deg"} == _provenance(out)["evidence"]
    assert command([*words[:-4], "--min-slope", "10", "--overwrite", "--quiet"]) == 2
    assert read_written(out) is not None


def _provenance(path: Path) -> dict:
    import json
    import sqlite3
    from contextlib import closing

    with closing(sqlite3.connect(path)) as database:
        texts = [row[0] for row in database.execute("SELECT metadata FROM gpkg_metadata")]
    return next(made for made in map(json.loads, texts) if "software" in made)

"""A scene from before the event: registered to a part of a pixel, compared, and what was bare before rejected."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import geopandas as gpd
import numpy as np
import pyproj
import pytest
import rasterio
from affine import Affine
from rasterio.warp import Resampling, reproject
from scipy import ndimage

import geolabel
from geolabel import change, registration
from geolabel.cli.main import run as command
from geolabel.errors import OptionError, SceneError
from geolabel.extraction import before as before_of_run
from geolabel.extraction.before import LAYERS, change_columns, compare, open_before
from geolabel.extraction.plan import make_plan
from geolabel.extraction.request import Networks, Reading
from geolabel.io.read.scenes import SceneReader
from geolabel.parsing import Measure
from geolabel.parts import EverywhereRecipe
from geolabel.synthetic import synthesize_pair
from geolabel.testing import RECIPES
from geolabel.tiles import Window

UTM = pyproj.CRS.from_epsg(32648)
PLACE = Affine(0.5, 0, 500_000, 0, -0.5, 3_000_000)
NONE = Measure(0, "px")
GIVEN = geolabel.Parameters(tile_size=64, overlap=16, block_size=100, threads=1, min_area=NONE, max_hole=NONE)
READING = Reading(stretch="0,255")
SIDE = 256

OLD, NEW = (40, 40, 30, 30), (150, 150, 30, 30)
"""Bright boxes after the event: row, column, height, width. The first was bright before."""


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks that find what is bright, whose scenes are not stretched."""
    monkeypatch.setattr(Networks, "recipes", lambda *_: RECIPES)
    monkeypatch.setattr(before_of_run, "STRETCH", "0,255")


def ground(*boxes: tuple[int, int, int, int], margin: int = 16) -> np.ndarray:
    """(3, h, w) rough dark ground with bright boxes, with a margin around."""
    rng = np.random.default_rng(0)
    rough = ndimage.gaussian_filter(rng.normal(0, 1, (SIDE + 2 * margin,) * 2), 1.5)
    image = np.repeat((45 + 60 * rough)[None], 3, axis=0) + np.array([0.0, 12.0, 0.0])[:, None, None]
    for row, col, height, width in boxes:
        place = slice(row + margin, row + margin + height), slice(col + margin, col + margin + width)
        image[:, *place] = 225 + 0.2 * image[:, *place]
    return image.clip(0, 255)


def write(path: Path, image: np.ndarray, transform: Affine = PLACE, crs: pyproj.CRS = UTM) -> Path:
    count, height, width = image.shape
    profile = {"driver": "GTiff", "dtype": "uint8", "count": count, "height": height, "width": width}
    with rasterio.open(path, "w", **profile, crs=crs, transform=transform, photometric="rgb") as target:
        target.write(np.rint(image).astype(np.uint8))
    return path


@pytest.fixture
def after(tmp_path: Path) -> Path:
    return write(tmp_path / "after.tif", ground(OLD, NEW)[:, 16:-16, 16:-16])


def earlier(path: Path, rows: float = 0.0, cols: float = 0.0, light: float = 0.8) -> Path:
    """The ground with the old box alone, in other light, displaced in its own file by rows and columns."""
    moved = ndimage.shift(ground(OLD), (0, rows, cols), order=1, mode="nearest")
    return write(path, light * moved[:, 16:-16, 16:-16] + 10)


def extract(scene: Path, parameters: geolabel.Parameters = GIVEN, **given: object) -> gpd.GeoDataFrame:
    return geolabel.extract(scene, reading=READING, parameters=parameters, **given)


# --- registration ----------------------------------------------------------------------------------------------------


def blocks(one: np.ndarray, other: np.ndarray, side: int = 128) -> list[registration.Peaks]:
    """Correlation of all blocks of two images (3, h, w)."""
    valid = np.ones((side, side), bool)
    return [
        registration.correlate(*(image[:, row : row + side, col : col + side] for image in (one, other)), valid, 32)
        for row in range(0, one.shape[1] - side + 1, side)
        for col in range(0, one.shape[2] - side + 1, side)
    ]


def coloured() -> np.ndarray:
    """(3, h, w) rough ground whose red and green vary each for itself."""
    rough = np.random.default_rng(3).normal(0, 1, (3, SIDE + 32, SIDE + 32))
    return (110 + 110 * ndimage.gaussian_filter(rough, (0, 1.5, 1.5))).clip(0, 255)


def displaced(image: np.ndarray, shift: tuple[float, float], scale: int = 1) -> np.ndarray:
    """The image with its content displaced, as a camera with pixels of another size sees it, on the same grid."""
    moved = ndimage.shift(image, (0, *shift), order=3, mode="nearest").clip(0, 255)
    if scale == 1:
        return np.rint(moved)
    rows, cols = moved.shape[1] // scale, moved.shape[2] // scale
    coarse = np.rint(moved.reshape(3, rows, scale, cols, scale).mean(axis=(2, 4)))
    return np.asarray(ndimage.zoom(coarse, (1, scale, scale), order=1, mode="nearest", grid_mode=True))


@pytest.mark.parametrize("shift", [(0.0, 0.0), (0.25, -0.5), (-3.4, 7.75), (8.0, 8.0), (-20.5, 11.2)])
@pytest.mark.parametrize("by", ["colour", "brightness"])
def test_a_displacement_is_measured_to_a_part_of_a_pixel(shift: tuple[float, float], by: str) -> None:
    image = coloured() if by == "colour" else np.repeat(ground()[1:2], 3, axis=0)
    found = registration.displacement(blocks(np.rint(image), displaced(image, shift)), 32)
    assert np.hypot(found.rows - shift[0], found.cols - shift[1]) < 0.15
    assert found.agreeing == found.blocks == 4
    assert found.by == by


@pytest.mark.parametrize(("seed", "scale"), [(1, 1), (2, 1), (2, 2), (3, 2)])
def test_a_pair_of_another_season_is_registered_to_half_a_pixel(seed: int, scale: int) -> None:
    """The scene before has other leaves and other roads, and shadows that point elsewhere."""
    pair = synthesize_pair(512, seed=seed)
    after, before = (np.moveaxis(image, 2, 0).astype(float) for image in (pair.after.rgb, pair.before))
    extra = np.random.default_rng(seed).uniform(-5, 5, 2)
    found = registration.displacement(blocks(after, displaced(before, tuple(extra), scale)), 32)
    moved = displaced(before, (extra[0] - found.rows, extra[1] - found.cols), scale)
    found = registration.confirmed(found, registration.displacement(blocks(after, moved), 32))
    assert np.hypot(*(np.array([found.rows, found.cols]) - pair.shift - extra)) < 0.5
    assert found.by == "colour"


def test_edges_of_brightness_that_move_do_not_move_the_displacement() -> None:
    """Shade of one shape lies 3 px further on the second day; the colours of the ground stay where they are."""
    shade = np.where(ndimage.gaussian_filter(np.random.default_rng(4).normal(0, 1, (SIDE + 32,) * 2), 4) > 0, 1.0, 0.35)
    light = [shade, np.roll(shade, 3, axis=1)]
    images = [np.rint(0.4 * coloured() * one) for one in light]
    found = registration.displacement(blocks(*images), 32)
    assert found.by == "colour"
    assert np.hypot(found.rows, found.cols) < 0.2
    grey = [np.repeat(image.mean(axis=0, keepdims=True), 3, axis=0) for image in images]
    assert registration.displacement(blocks(*grey), 32).cols > 1


def test_brightness_alone_is_told(caplog: pytest.LogCaptureFixture) -> None:
    image = np.repeat(ground()[1:2], 3, axis=0)
    found = registration.displacement(blocks(image, image), 32)
    registration.confirmed(found, found)
    assert "registered by brightness" in caplog.text


def test_scenes_of_two_places_are_refused() -> None:
    images = [np.moveaxis(synthesize_pair(384, seed=seed).before, 2, 0) for seed in (1, 2)]
    with pytest.raises(SceneError, match=r"--before cannot be registered: \d of 9 blocks agree"):
        registration.displacement(blocks(*images), 32)
    flat = np.full((3, 256, 256), 90, np.uint8)
    with pytest.raises(SceneError, match="no block has enough valid pixels and contrast"):
        registration.displacement(blocks(flat, flat), 32)


def test_blocks_that_agree_roughly_are_refused() -> None:
    """Each of three blocks is displaced a little differently; the mean of their displacements is little."""
    image = coloured()
    parts = [blocks(image, displaced(image, (0.9 * k, 0)))[k + 1] for k in (-1, 0, 1)]
    found = registration.displacement(parts, 32)
    with pytest.raises(SceneError, match=r"standard error of 0\.\d\d px; the limit is 0\.2 px"):
        registration.confirmed(found, found)


def test_what_is_left_of_a_displacement_has_to_be_little() -> None:
    with pytest.raises(SceneError, match=r"displaced by 5\.00 px, and by another 0\.60 px after correction"):
        registration.confirmed(registration.Displacement(3, 4, 9, 9), registration.Displacement(0.6, 0, 9, 9))
    found = registration.confirmed(
        registration.Displacement(3, 4, 9, 9), registration.Displacement(0.25, -0.25, 9, 8, 0.1, "colour")
    )
    assert found == registration.Displacement(3.25, 3.75, 9, 8, 0.1, "colour")


# --- change ----------------------------------------------------------------------------------------------------------


def test_features_of_known_colours() -> None:
    image = np.zeros((20, 20, 3), np.uint8)
    image[:, :10] = (50, 100, 50)
    greenness, brightness, texture = change.features(image) / change.UNIT
    assert greenness[0, 0] == 0.5  # (200 - 100) / 200
    assert greenness[0, 19] == 0
    assert brightness[0, 0] == pytest.approx(200 / 765, abs=1e-4)
    assert texture[10, 3] == texture[10, 16] == 0
    assert texture[10, 10] == pytest.approx(200 / 765 * np.sqrt(3 / 7 * 4 / 7), abs=1e-4)  # 3 of 7 columns are lit


def test_grey_values_become_those_of_unchanged_ground() -> None:
    """A third of the pixels changed, and has no say."""
    rng = np.random.default_rng(0)
    before = rng.integers(0, 200, (3, 30_000)).astype(np.uint8)
    after = (40 + before // 2).astype(np.uint8)
    after[:, :10_000] = 250
    tables = change.match_greys(before, after)
    assert np.abs(tables[:, 10:190].astype(int) - (40 + np.arange(10, 190) // 2)).max() <= 2
    assert (np.diff(tables.astype(int)) >= 0).all()
    assert change.match_greys(before[:, :0], after[:, :0]).tolist() == [[*range(256)]] * 3


def test_change_is_measured_in_what_the_scene_itself_changes() -> None:
    rng = np.random.default_rng(1)
    usual = rng.normal([[3], [-2], [0]], [[10], [100], [20]], (3, 20_000)) * 100
    usual[:, :2000] += 1e6  # true changes in a tenth of it
    found = change.Stable.of(usual)
    assert found.spread == pytest.approx((1000, 10_000, 2000), rel=0.25)
    means = np.array([[300.0, 4300.0], [-200.0, -200.0], [0.0, 0.0]])
    same, one = found.change(means)
    assert same < 0.3
    assert one == pytest.approx(4 / np.sqrt(3), rel=0.25)


def test_only_whole_patches_count() -> None:
    differences = np.zeros((3, 50, 75), np.int32)
    differences[:, :24, :24] = 7
    valid = np.ones((50, 75), bool)
    valid[30, 30] = False
    assert sorted(change.patch_means(differences, valid)[0]) == [0, 0, 0, 0, 7]


# --- polygons --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shift", [(0.0, 0.0), (2.5, -1.25), (-8.0, 6.0)])
def test_what_was_bare_before_is_a_candidate_with_its_reason(
    tmp_path: Path, after: Path, shift: tuple[float, float]
) -> None:
    out = tmp_path / "s.gpkg"
    found = extract(after, out=out, before=earlier(tmp_path / "before.tif", *shift))
    assert found["id"].tolist() == [2]
    assert found["activation_before"][0] < 0.3
    assert found["change_z"][0] > 5
    candidates = gpd.read_file(out, layer="candidates")
    assert candidates[["id", "reason"]].to_numpy().tolist() == [[1, "before"]]
    assert candidates["activation_before"][0] > 0.6
    assert candidates["change_z"][0] < 1


@pytest.mark.parametrize(("gsd", "crs"), [(0.5, 32649), (1.0, 32648), (0.2, 3857)])
def test_the_scene_before_may_be_on_any_grid(tmp_path: Path, after: Path, gsd: float, crs: int) -> None:
    image = (0.8 * ground(OLD) + 10).astype(np.uint8)
    whole = PLACE * Affine.translation(-16, -16)
    other = pyproj.CRS.from_epsg(crs)
    there = pyproj.Transformer.from_crs(UTM, other, always_xy=True)
    left, bottom, right, top = there.transform_bounds(500_000 - 8, 3_000_000 - 136, 500_000 + 136, 3_000_000 + 8)
    size = int((top - bottom) / gsd), int((right - left) / gsd)
    stored, transform = np.zeros((3, *size), np.uint8), Affine(gsd, 0, left, 0, -gsd, top)
    places = {"src_transform": whole, "src_crs": UTM, "dst_transform": transform, "dst_crs": other}
    reproject(image, stored, **places, resampling=Resampling.average if gsd > 0.5 else Resampling.bilinear)
    found = extract(after, before=write(tmp_path / "before.tif", stored, transform, other))
    assert found["id"].tolist() == [2]


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_pictures_without_a_crs_lie_on_each_other(tmp_path: Path) -> None:
    profile = {"driver": "PNG", "dtype": "uint8", "count": 3, "height": SIDE, "width": SIDE}
    images = {"after": ground(OLD, NEW), "before": 0.8 * ground(OLD) + 10}
    for name, image in images.items():
        with rasterio.open(tmp_path / f"{name}.png", "w", **profile) as target:
            target.write(np.rint(image[:, 16:-16, 16:-16]).astype(np.uint8))
    reading = replace(READING, gsd=0.5)
    before = tmp_path / "before.png"
    found = geolabel.extract(tmp_path / "after.png", reading=reading, parameters=GIVEN, before=before)
    assert found["id"].tolist() == [2]


def test_a_landslide_that_is_active_again_is_none_that_was_bare_before(tmp_path: Path, after: Path) -> None:
    """It was bare and has changed: half as bright, and rough."""
    image = 0.8 * ground(OLD) + 10
    row, col, height, width = (v + 16 * (k < 2) for k, v in enumerate(OLD))
    rough = np.random.default_rng(3).uniform(120, 200, (height, width))
    image[:, row : row + height, col : col + width] = rough
    before = write(tmp_path / "before.tif", image[:, 16:-16, 16:-16])
    found = extract(after, before=before)
    assert found["id"].tolist() == [1, 2]
    assert found["activation_before"][0] > 0.5
    assert found["change_z"][0] > 2
    assert found["activity"].fillna("not clear").tolist() == ["reactivated", "not clear"]  # dark ground is a bit bright
    assert extract(after)["activity"].isna().all()


def test_activity_is_said_where_the_scene_before_is_clear() -> None:
    """Bare and changed, green and changed, in between, bare and the same, green and the same, not known."""
    activation = np.array([0.9, 0.05, 0.2, 0.9, 0.05, np.nan, np.nan])
    change_z = np.array([3.0, 3.0, 3.0, 1.0, 1.0, 3.0, np.nan])
    expected = ["reactivated", "new", None, None, None, None, None]
    assert before_of_run.activity(change_z, activation).tolist() == expected


def test_blocks_change_nothing(tmp_path: Path, after: Path) -> None:
    before = earlier(tmp_path / "before.tif", 1.3, 0.6)
    out = tmp_path / "s.gpkg"
    tables = []
    for size in (64, 100, 2048):
        found = extract(after, replace(GIVEN, block_size=size), out=out, before=before, overwrite=True)
        tables.append([found.to_wkb(), gpd.read_file(out, layer="candidates").to_wkb()])
    for one, other in tables[1:]:
        assert one.equals(tables[0][0])
        assert other.equals(tables[0][1])


def test_where_the_scene_before_has_no_data_nothing_is_known(tmp_path: Path, after: Path) -> None:
    before = earlier(tmp_path / "before.tif")
    with rasterio.open(before, "r+") as opened:
        values = opened.read()
        values[:, :, :110] = 0
        opened.write(values)
        opened.nodata = 0
    found = extract(after, before=before)
    assert found["id"].tolist() == [1, 2]
    assert found["change_z"].isna().tolist() == found["activation_before"].isna().tolist() == [True, False]


def test_without_a_localizer_there_is_a_change_and_no_activation(tmp_path: Path, after: Path) -> None:
    plan = make_plan(SceneReader(after), EverywhereRecipe(), RECIPES[1], GIVEN, stretch="0,255")
    (known,) = open_before([earlier(tmp_path / "before.tif")], [plan])
    assert known is not None
    layers = compare(plan, known, Window(0, 0, 64, 64), Window(0, 0, 64, 64))
    totals = {name: np.array([layer.sum()]) for name, layer in zip(LAYERS, layers, strict=True)}
    columns = change_columns(totals, np.array([64 * 64]), known, 0.5, localized=plan.localized)
    assert columns["change_z"][0] < 1
    assert np.isnan(columns["activation_before"]).tolist() == [True]


def test_a_window_is_compared_alike_whether_or_not_its_whole_tile_is_read(tmp_path: Path, after: Path) -> None:
    plan = make_plan(SceneReader(after), *RECIPES, GIVEN, stretch="0,255")
    (known,) = open_before([earlier(tmp_path / "before.tif", 1.3, 0.6)], [plan])
    assert known is not None
    tile = plan.localize_tiles[0]
    for window in (Window(0, 0, 20, 30), Window(40, 50, 9, 11), tile):
        whole = compare(plan, known, tile, window)
        seen = whole[LAYERS.index("activation")].astype(np.uint8)
        assert np.array_equal(compare(plan, known, tile, window, seen), whole)


def test_a_scene_that_cannot_be_registered_is_refused_or_trusted(tmp_path: Path, after: Path) -> None:
    noise = np.random.default_rng(9).uniform(0, 255, (3, SIDE, SIDE))
    other = write(tmp_path / "other.tif", noise)
    with pytest.raises(SceneError, match=r"--before cannot be registered: .* --no-register to trust their positions"):
        extract(after, before=other)
    report = geolabel.Report()
    assert len(extract(after, before=other, register=False, report=report)) == 2
    assert "displacements_px" not in report.found
    with pytest.raises(OptionError, match="--no-register trusts the position of a scene from before: give one"):
        extract(after, register=False)


def test_what_is_given_is_checked(tmp_path: Path, after: Path) -> None:
    far = write(tmp_path / "far.tif", np.zeros((3, 64, 64)), PLACE * Affine.translation(9000, 0))
    with pytest.raises(SceneError, match=r"--before .*far.tif misses the scene"):
        extract(after, before=far)
    coarse = write(tmp_path / "coarse.tif", np.zeros((3, 32, 32)), PLACE * Affine.scale(10))
    with pytest.raises(SceneError, match="pixels that are 10 times as large"):
        extract(after, before=coarse)
    heights = tmp_path / "dem.tif"
    profile = {"driver": "GTiff", "dtype": "float32", "count": 1, "height": 9, "width": 9, "crs": UTM}
    with rasterio.open(heights, "w", **profile, transform=PLACE) as target:
        target.write(np.zeros((1, 9, 9), np.float32))
        target.descriptions = ["height"]
    with pytest.raises(SceneError, match="holds heights"):
        extract(after, before=heights)


def test_the_summary_says_how_far_it_was_displaced(
    tmp_path: Path, after: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = earlier(tmp_path / "before.tif", 3.0, 4.0)
    words = ["extract", str(after), "--out", str(tmp_path / "s.gpkg"), "--before", str(before), "--stretch", "0,255"]
    assert command([*words, "--quiet"]) == 0
    said = capsys.readouterr().out
    assert "displaced by 5.0" in said or "displaced by 4.9" in said
    assert "1, 1 bare before: in the layer candidates" in said


# --- several images and dates ----------------------------------------------------------------------------------------


def dated(path: Path, date: str) -> Path:
    with rasterio.open(path, "r+") as file:
        file.update_tags(ACQUISITIONDATETIME=f"{date}T10:20:30Z")
    return path


def flags(path: Path, box: tuple[int, int, int, int]) -> Path:
    row, col, height, width = box
    values = np.zeros((SIDE, SIDE), np.uint8)
    values[row : row + height, col : col + width] = 1
    profile = {"driver": "GTiff", "dtype": "uint8", "count": 1, "height": SIDE, "width": SIDE, "crs": UTM}
    with rasterio.open(path, "w", **profile, transform=PLACE) as target:
        target.write(values[None])
    return path


def test_what_one_image_before_does_not_show_another_fills(tmp_path: Path, after: Path) -> None:
    """The first is masked where the old box is, the second shows it bare, on another grid and in other light."""
    first = dated(earlier(tmp_path / "first.tif"), "2024-05-01")
    second = dated(earlier(tmp_path / "second.tif", 2.0, -3.0, light=0.6), "2023-08-15")
    clouds = flags(tmp_path / "clouds.tif", (30, 30, 50, 50))
    alone = extract(after, before=first, before_mask=clouds)
    assert alone["change_z"].isna().tolist() == [True, False]
    out = tmp_path / "s.gpkg"
    both = extract(after, before=[first, second], before_mask=[clouds, None], out=out)
    assert both["id"].tolist() == [2]
    candidates = gpd.read_file(out, layer="candidates")
    assert candidates["reason"].tolist() == ["before"]
    assert candidates["event_after"].dt.strftime("%Y-%m-%d").tolist() == ["2023-08-15"]
    assert both["event_after"].tolist() == ["2024-05-01"]
    assert both["change_z"][1 - 1] == pytest.approx(alone["change_z"][1], rel=0.3)


def test_images_before_are_registered_each_for_itself(tmp_path: Path, after: Path) -> None:
    report = geolabel.Report()
    images = [earlier(tmp_path / "a.tif", 3.0, 4.0), earlier(tmp_path / "b.tif", -2.0, 1.0)]
    extract(after, before=images, report=report)
    found = report.found["displacements_px"]
    assert np.allclose(found, [[3, 4], [-2, 1]], atol=0.2)


def test_filled_images_depend_on_no_window(tmp_path: Path, after: Path) -> None:
    from geolabel.extraction.scene_groups import prepare

    images = [earlier(tmp_path / "a.tif", 1.5, 0.0), earlier(tmp_path / "b.tif", light=0.5)]
    clouds = flags(tmp_path / "clouds.tif", (100, 20, 60, 90))
    plan = prepare(after, READING, Networks(), GIVEN)
    (known,) = open_before(images, [plan], masks=[[clouds], []])
    assert known is not None
    whole, valid = known.reader.read(Window(0, 0, SIDE, SIDE), plan.grid)
    assert valid.mean() > 0.99
    assert np.abs(whole[:, 130, 60] - whole[:, 130, 125]).max() < 120
    for window in (Window(95, 10, 20, 40), Window(120, 100, 33, 20)):
        part, good = known.reader.read(window, plan.grid)
        assert np.array_equal(part, whole[:, *window.slices])
        assert np.array_equal(good, valid[window.slices])


def test_the_event_is_between_the_dates_of_the_images(tmp_path: Path, after: Path) -> None:
    before = dated(earlier(tmp_path / "before.tif"), "2024-05-01")
    assert extract(after, before=before)["event_before"].tolist() == [None]
    found = extract(dated(after, "2024-07-14"), before=before)
    assert found[["event_after", "event_before"]].to_numpy().tolist() == [["2024-05-01", "2024-07-14"]]
    assert extract(after)["event_after"].isna().all()
    out = tmp_path / "s.gpkg"
    found = extract(after, before=before, event_after="2024-06-01", event_before="2024-06-30", out=out)
    assert found[["event_after", "event_before"]].to_numpy().tolist() == [["2024-06-01", "2024-06-30"]]
    kept = gpd.read_file(out, layer="landslides")
    assert [kept[name].dt.strftime("%Y-%m-%d").tolist() for name in ("event_after", "event_before")] == [
        ["2024-06-01"],
        ["2024-06-30"],
    ]


def test_images_the_wrong_way_round_are_told(tmp_path: Path, after: Path, caplog: pytest.LogCaptureFixture) -> None:
    extract(dated(after, "2024-01-01"), before=dated(earlier(tmp_path / "before.tif"), "2024-05-01"))
    assert "is of 2024-05-01, later than" in caplog.text


def test_several_images_are_checked(tmp_path: Path, after: Path) -> None:
    images = [earlier(tmp_path / "a.tif"), earlier(tmp_path / "b.tif")]
    with pytest.raises(OptionError, match="1 --before-mask for 2 --before: give one for each"):
        extract(after, before=images, before_mask="clouds.tif")
    with pytest.raises(OptionError, match="--event-after May: give a date such as 2024-05-31"):
        extract(after, event_after="May")
    with pytest.raises(OptionError, match="--event-after 2024-05-02 is later than --event-before 2024-05-01"):
        extract(after, event_after="2024-05-02", event_before="2024-05-01")


def test_the_command_takes_several_images(tmp_path: Path, after: Path) -> None:
    images = [earlier(tmp_path / "a.tif"), earlier(tmp_path / "b.tif")]
    clouds = flags(tmp_path / "clouds.tif", (30, 30, 50, 50))
    words = ["extract", str(after), "--out", str(tmp_path / "s.gpkg"), "--stretch", "0,255", "--quiet"]
    befores = ["--before", str(images[0]), "--before", str(images[1])]
    assert command([*words, *befores, "--before-mask", str(clouds), "--before-mask", "none"]) == 0
    assert gpd.read_file(tmp_path / "s.gpkg", layer="candidates")["reason"].tolist() == ["before"]

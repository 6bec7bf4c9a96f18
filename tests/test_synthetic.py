from __future__ import annotations

import json
from functools import cache

import geopandas as gpd
import numpy as np
import pytest
import rasterio
from click.testing import CliRunner
from rasterio.features import rasterize
from scipy import ndimage

from geolabel.cli.synthesize import synthesize as command
from geolabel.errors import OptionError, OutputError
from geolabel.labeling import synthesize as run
from geolabel.synthetic import CLASSES, synthesize, synthesize_pair
from geolabel.synthetic.cover import BARE, LANDSLIDE
from geolabel.synthetic.slides import NEAR, make_slides
from geolabel.synthetic.terrain import make_terrain

SCENES = [(seed, gsd) for seed in range(4) for gsd in (0.2, 0.5, 5.0)]
SIZE = 256


@cache
def drawn(seed, gsd):
    return synthesize(SIZE, gsd, seed)


@cache
def relief(seed, gsd):
    return make_terrain((SIZE, SIZE), gsd, np.random.default_rng((seed, 0)))


def arrays(scene):
    return {name: getattr(scene, name) for name in ("rgb", "truth", "ids", "classes", "dem")}


def test_a_seed_is_a_scene():
    first, again, other = (arrays(synthesize((70, 90), 0.5, seed)) for seed in (7, 7, 8))
    assert all(first[name].tobytes() == again[name].tobytes() for name in first)
    assert all(first[name].tobytes() != other[name].tobytes() for name in ("rgb", "classes", "dem"))


@pytest.mark.parametrize("size", [16, (16, 40), (130, 33)])
@pytest.mark.parametrize("gsd", [0.05, 100])
def test_shapes_and_types(size, gsd):
    shape = (size, size) if isinstance(size, int) else size
    scene = synthesize(size, gsd, 5)
    assert {name: (a.shape, a.dtype.name) for name, a in arrays(scene).items()} == {
        "rgb": ((*shape, 3), "uint8"),
        "truth": (shape, "uint8"),
        "ids": (shape, "int32"),
        "classes": (shape, "uint8"),
        "dem": (shape, "float32"),
    }
    assert np.isfinite(scene.dem).all()
    assert (scene.gsd, scene.seed) == (gsd, 5)


@pytest.mark.parametrize(("seed", "gsd"), SCENES)
def test_one_truth(seed, gsd):
    scene = drawn(seed, gsd)
    assert np.array_equal(scene.truth, scene.ids > 0)
    assert np.array_equal(scene.truth, scene.classes == CLASSES.index("landslide"))
    assert scene.count == len(np.unique(scene.ids)) - 1 > 0
    assert scene.classes.max() < len(CLASSES)


@pytest.mark.parametrize(("seed", "gsd"), SCENES)
def test_landslides_cover_a_small_part(seed, gsd):
    # the last landslide may be larger than what was left to cover
    assert 0.005 < drawn(seed, gsd).truth.mean() < 0.15


@pytest.mark.parametrize(("seed", "gsd"), SCENES)
def test_there_is_twice_as_much_bare_ground_that_is_none(seed, gsd):
    classes = drawn(seed, gsd).classes
    bare, landslide = (np.count_nonzero(classes == CLASSES.index(name)) for name in ("bare soil", "landslide"))
    assert bare >= 2 * landslide > 0


def test_colour_is_no_giveaway():
    """Bare soil and landslides differ less in their mean than single pixels of bare soil do."""
    scenes = [drawn(*scene) for scene in SCENES]
    bare, slide = (
        np.concatenate([scene.rgb[scene.classes == CLASSES.index(name)] for scene in scenes]).astype(float)
        for name in ("bare soil", "landslide")
    )
    assert (np.abs(bare.mean(axis=0) - slide.mean(axis=0)) < bare.std(axis=0)).all()


def test_most_kinds_of_cover_are_there():
    assert all(len(np.unique(drawn(*scene).classes)) >= 5 for scene in SCENES)


def test_landslides_lie_on_steep_ground():
    steeper = []
    for seed, gsd in SCENES:
        slope, truth = relief(seed, gsd).slope, drawn(seed, gsd).truth
        steeper.append(np.median(slope[truth > 0]) > np.median(slope))
    assert np.mean(steeper) >= 0.75  # what came down comes to rest where it is flat


def test_the_relief_is_the_scenes():
    assert all(np.array_equal(relief(*scene).dem, drawn(*scene).dem) for scene in SCENES)


@pytest.mark.parametrize(("seed", "gsd"), SCENES)
def test_landslides_run_down(seed, gsd):
    terrain = relief(seed, gsd)
    drops = []
    for slide in make_slides(terrain, 0.05, np.random.default_rng((seed, 2))):
        dem = terrain.dem[slide.window]
        crown, toe = (slide.mask & part for part in (slide.along < 0.3, slide.along > 0.7))
        if crown.any() and toe.any():  # else the frame of the scene cuts it
            drops.append(dem[crown].mean() - dem[toe].mean())
    assert len(drops) > 1
    assert min(drops) > 0


def test_landslides_keep_off_what_is_cleared_and_come_down_beside_roads(monkeypatch):
    terrain = relief(0, 0.5)
    roads = np.zeros(terrain.dem.shape, bool)
    roads[:, SIZE // 2 : SIZE // 2 + 6] = True
    monkeypatch.setattr("geolabel.synthetic.slides.ROADSIDE", 1.0)
    monkeypatch.setattr("geolabel.synthetic.slides.SISTERS", 0.0)
    slides = make_slides(terrain, 0.05, np.random.default_rng(0), clear=roads, roads=roads)
    assert slides
    for slide in slides:
        assert not (slide.mask & roads[slide.window]).any()
        crown = slide.mask & (slide.along == slide.along[slide.mask].min())
        col = np.nonzero(crown)[1].mean() + slide.window[1].start
        assert abs(col - SIZE / 2) < 2 * NEAR


def test_a_landslide_is_one_piece():
    for slide in make_slides(relief(0, 0.5), 0.05, np.random.default_rng(0)):
        assert ndimage.label(slide.mask)[1] == 1
        assert slide.depth[slide.mask].min() > 0
        assert 0 <= slide.along.min() < slide.along.max() <= 1


def test_without_landslides_the_land_is_the_same():
    with_slides, without = drawn(0, 0.5), synthesize(SIZE, 0.5, 0, slides=False)
    assert without.count == without.truth.max() == without.ids.max() == 0
    same = with_slides.truth == 0
    assert np.array_equal(with_slides.classes[same], without.classes[same])
    assert np.array_equal(with_slides.dem, without.dem)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((15,), "15 x 15 px"),
        (((64, 8),), "64 x 8 px"),
        ((1 << 16,), "32768 px a side"),
        ((64, 0.01), "gsd 0.01 m"),
        ((64, 101), "gsd 101 m"),
        ((64, float("nan")), "gsd nan m"),
        ((64, 0.5, -1), "seed -1"),
    ],
)
def test_what_cannot_be_drawn(arguments, message):
    with pytest.raises(OptionError, match=message):
        synthesize(*arguments)


def call(*arguments):
    return CliRunner().invoke(command, [str(a) for a in arguments], catch_exceptions=False)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = tmp_path_factory.mktemp("synthetic") / "scene.tif"
    return json.loads(call(path, "--size", "600x250", "--gsd", "0.3", "--seed", "3", "--json").stdout)


def test_names_derive_from_the_scene(written, tmp_path):
    files = run.SceneFiles.beside(tmp_path / "a.b.tiff")
    assert (files.truth.name, files.dem.name) == ("a.b_truth.gpkg", "a.b_dem.tif")
    folder = files.beside(written["scene"]).scene.parent
    assert sorted(p.name for p in folder.iterdir()) == [
        "scene.tif",
        "scene_classes.tif",
        "scene_dem.tif",
        "scene_truth.gpkg",
        "scene_truth.tif",
    ]


def test_rasters_hold_the_scene(written):
    scene = synthesize((600, 250), 0.3, 3)
    for name, values in {
        "scene": np.moveaxis(scene.rgb, 2, 0),
        "mask": scene.truth[None],
        "classes": scene.classes[None],
        "dem": scene.dem[None],
    }.items():
        with rasterio.open(written[name]) as file:
            assert np.array_equal(file.read(), values), name
            assert file.crs.to_epsg() == 32648
            assert tuple(file.transform)[:6] == (0.3, 0, 500_000, 0, -0.3, 3_000_000)
            assert file.nodata is None
            assert file.block_shapes == [(512, 512)] * len(values)
            assert file.compression.name == "deflate"
            assert file.overviews(1) == [2]
    assert written["landslides"] == scene.count
    assert written["landslide_share"] == pytest.approx(scene.truth.mean(), abs=1e-4)


def test_rasters_say_what_they_are(written):
    with rasterio.open(written["scene"]) as file:
        assert [c.name for c in file.colorinterp] == ["red", "green", "blue"]
        assert file.tags(ns="IMAGE_STRUCTURE")["INTERLEAVE"] == "PIXEL"
    with rasterio.open(written["classes"]) as file:
        tags, colours = file.tags(1), file.colormap(1)
        assert [tags[f"class_{number}"] for number in range(len(CLASSES))] == list(CLASSES)
        assert len({colours[number] for number in range(len(CLASSES))}) == len(CLASSES)
    with rasterio.open(written["dem"]) as file:
        assert file.units == ("m",)


def test_overviews_mix_no_labels(written):
    with rasterio.open(written["classes"], overview_level=0) as file:
        coarse = file.read(1)
    assert np.array_equal(coarse, synthesize((600, 250), 0.3, 3).classes[::2, ::2])


def test_a_folder_that_is_missing_is_refused_before_anything_is_said(tmp_path):
    found = CliRunner().invoke(command, [str(tmp_path / "missing" / "scene.tif")])
    assert isinstance(found.exception, OutputError)
    assert "the folder" in str(found.exception)
    assert found.output == ""


def test_outlines_are_exact(written):
    found = gpd.read_file(written["truth"], layer="landslides")
    scene = synthesize((600, 250), 0.3, 3)
    assert list(found.columns) == ["id", "area_m2", "geometry"]
    assert found.crs.to_epsg() == 32648
    assert set(found.geom_type) == {"MultiPolygon"}
    assert found.is_valid.all()
    numbers, pixels = np.unique(scene.ids[scene.ids > 0], return_counts=True)
    assert found["id"].tolist() == numbers.tolist()
    assert found["area_m2"].to_numpy() == pytest.approx(pixels * 0.09, rel=2e-3)  # the ellipsoid's, not the map's
    with rasterio.open(written["mask"]) as file:
        burnt = rasterize(zip(found.geometry, found["id"], strict=True), file.shape, transform=file.transform)
        assert np.array_equal(burnt > 0, file.read(1))
    assert np.array_equal(burnt, scene.ids)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_same_call_writes_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        run.synthesize(tmp_path / name / "scene.tif", size=64, seed=1)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_nothing_is_replaced_unasked(tmp_path):
    path = tmp_path / "scene.tif"
    run.synthesize(path, size=64)
    before = contents(tmp_path)
    path.unlink()  # one of the files is enough
    del before["scene.tif"]
    with pytest.raises(OutputError, match="give --overwrite"):
        call(path, "--size", 64, "--seed", 1)
    assert contents(tmp_path) == before
    assert call(path, "--size", 64, "--seed", 1, "--overwrite").exit_code == 0
    assert all(contents(tmp_path)[name] != before[name] for name in ("scene_dem.tif", "scene_truth.gpkg"))


def test_a_scene_without_landslides_has_an_empty_layer(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "draw", lambda *arguments: synthesize(*arguments, slides=False))
    run.synthesize(tmp_path / "scene.tif", size=64)
    assert len(gpd.read_file(tmp_path / "scene_truth.gpkg", layer="landslides")) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size", "12"], "12 x 12 px"),
        (["--size", "100x"], "size '100x'"),
        (["--size", "1e3"], "size '1e3'"),
        (["--size", "64", "--gsd", "0"], "gsd 0"),
        (["--epsg", "4326"], "not projected in metres"),
        (["--epsg", "2263"], "not projected in metres"),  # feet
        (["--epsg", "3857"], "its metre is 0.897 m"),
        (["--epsg", "1"], "not a known CRS"),
    ],
)
def test_what_cannot_be_written_says_why(tmp_path, arguments, message):
    with pytest.raises(OptionError, match=message):
        call(tmp_path / "scene.tif", *arguments)
    assert not list(tmp_path.iterdir())


def test_the_place_of_another_crs(tmp_path):
    run.synthesize(tmp_path / "scene.tif", size=32, epsg=32733)
    with rasterio.open(tmp_path / "scene.tif") as file:
        assert file.crs.to_epsg() == 32733


# --- pairs -----------------------------------------------------------------------------------------------------------


@cache
def pair(seed):
    return synthesize_pair(256, seed=seed)


def edges(rgb):
    return ndimage.gaussian_gradient_magnitude(rgb.astype(float).mean(axis=-1), 1.5)


def test_a_pair_is_one_place_on_two_days():
    """Edges stay where they are through light and season, but where a landslide came down."""
    for seed in range(3):
        found = pair(seed)
        assert found.before.shape == found.after.rgb.shape
        assert max(map(abs, found.shift)) <= 3
        back = ndimage.shift(found.before.astype(float), (*(-v for v in found.shift), 0), order=1, mode="nearest")
        before, after = edges(back), edges(found.after.rgb)
        slides = found.after.truth > 0
        here, elsewhere = (np.corrcoef(before[part], after[part])[0, 1] for part in (slides, ~slides))
        assert elsewhere > here + 0.15


def test_a_scene_of_a_pair_has_new_ground_that_is_no_landslide():
    for seed in range(3):
        alone, found = synthesize(256, seed=seed), pair(seed).after
        new = (found.classes == BARE) & (alone.classes != BARE) & (alone.classes != LANDSLIDE)
        assert new.mean() > 0.01
        assert np.array_equal(found.dem, alone.dem)


def test_a_pair_is_a_seed():
    again = synthesize_pair(256, seed=1)
    assert np.array_equal(again.before, pair(1).before)
    assert again.shift == pair(1).shift


def test_a_pair_is_written_as_a_scene_and_the_scene_before(tmp_path):
    assert call(tmp_path / "scene.tif", "--size", 64, "--pair").exit_code == 0
    with rasterio.open(tmp_path / "scene_before.tif") as before, rasterio.open(tmp_path / "scene.tif") as after:
        assert (before.crs, before.transform, before.shape) == (after.crs, after.transform, after.shape)
        assert not np.array_equal(before.read(), after.read())
    call(tmp_path / "alone.tif", "--size", 64)
    assert not (tmp_path / "alone_before.tif").exists()


def test_a_landslide_that_moves_again_was_there_before():
    """What is after the event is the same; before it, only the ground of these landslides differs."""
    new, found = pair(1), synthesize_pair(256, seed=1, reactivated=0.5)
    assert np.array_equal(found.after.rgb, new.after.rgb)
    assert np.array_equal(found.after.ids, new.after.ids)
    assert 0 < len(found.reactivated) < new.after.count
    moved = np.abs(found.before.astype(int) - new.before).sum(axis=2) > 60
    near = ndimage.binary_dilation(np.isin(found.after.ids, found.reactivated), iterations=8)
    assert moved[near].mean() > 0.1
    assert moved[~near].mean() < 0.01
    assert new.reactivated == synthesize_pair(256, seed=1, reactivated=0).reactivated == ()


def test_the_truth_of_a_pair_says_which_landslides_were_there_before(tmp_path):
    assert call(tmp_path / "scene.tif", "--size", 256, "--seed", 1, "--pair", "--reactivated", 0.5).exit_code == 0
    table = gpd.read_file(tmp_path / "scene_truth.gpkg", layer="landslides")
    again = synthesize_pair(256, seed=1, reactivated=0.5).reactivated
    assert table["id"][table["activity"] == "reactivated"].tolist() == [n for n in table["id"] if n in again]
    assert set(table["activity"]) == {"new", "reactivated"}
    with pytest.raises(OptionError, match=r"--reactivated 0\.5 needs a scene before"):
        run.synthesize(tmp_path / "alone.tif", size=64, reactivated=0.5)
    with pytest.raises(OptionError, match="give a share of 0 to 1"):
        synthesize_pair(64, reactivated=1.5)

from __future__ import annotations

import os
import pickle
import warnings
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import rioxarray
import shapely
import xarray
from affine import Affine
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rasterio.control import GroundControlPoint
from rasterio.enums import ColorInterp, Resampling
from rasterio.errors import NotGeoreferencedWarning

from geolabel.errors import OptionError, SceneError, TileError
from geolabel.io.read.opening import is_remote
from geolabel.io.read.scenes import SceneReader
from geolabel.scene import inside
from geolabel.tiles import TileGrid, Window

UTM = Affine(0.5, 0, 500_000, 0, -0.5, 5_000_000)
TILED = {"tiled": True, "blockxsize": 16, "blockysize": 16}
OPEN_FILES = Path("/proc/self/fd")
SHARED = Path(__file__).parents[2] / "shared" / "data"


def write(path, bands, *, colours=None, descriptions=None, mask=None, tags=None, gcps=None, **profile):
    """A small GeoTIFF in UTM."""
    bands = np.asarray(bands)
    profile = {"crs": "EPSG:32632", "transform": UTM, "driver": "GTiff", **profile}
    count, height, width = bands.shape
    size = {"count": count, "height": height, "width": width}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        file = rasterio.open(path, "w", **size, dtype=bands.dtype, **profile)
    with file:
        file.write(bands)
        if gcps:
            file.gcps = (gcps, rasterio.CRS.from_epsg(4326))
        if colours:
            file.colorinterp = [ColorInterp[colour] for colour in colours]
        if descriptions:
            file.descriptions = descriptions
        if mask is not None:
            file.write_mask(mask)
        if tags:
            file.update_tags(**tags)
    return str(path)


def noise(dtype="uint8", shape=(3, 60, 70), seed=0):
    return np.random.default_rng(seed).integers(1, 250, shape).astype(dtype)


def whole(reader):
    grid = reader.scene.grid
    return reader.read(grid.window, grid)


# What is read


@pytest.mark.parametrize(
    "dtype", ["uint8", "int8", "uint16", "int16", "uint32", "int32", "int64", "float32", "float64"]
)
def test_a_window_holds_the_pixels_of_the_file(tmp_path, dtype):
    bands = noise(dtype)
    path = write(tmp_path / "scene.tif", bands, colours=["red", "green", "blue"])
    with SceneReader(path) as reader, rasterio.open(path) as file:
        window = Window(7, 11, 20, 30)
        values, valid = reader.read(window, reader.scene.grid)
        np.testing.assert_array_equal(values, file.read(window=((7, 27), (11, 41))))
        assert valid.all()
        assert values.dtype == ("float32" if dtype == "float64" else dtype)
        assert reader.scene.dtype == values.dtype


def test_a_header_becomes_a_scene(tmp_path):
    path = write(tmp_path / "scene.tif", noise("uint16", shape=(4, 60, 70)))
    with SceneReader(Path(path)) as reader:
        scene = reader.scene
    assert (scene.name, scene.band_count, scene.bands) == (path, 4, (1, 2, 3))
    assert (scene.grid.height, scene.grid.width, scene.grid.transform) == (60, 70, UTM)
    assert scene.grid.crs.to_epsg() == 32632
    assert scene.size_bytes == Path(path).stat().st_size
    assert scene.modified.endswith("+00:00")
    assert "unknown colour" in reader.warnings[0]


def test_pixels_of_a_rotated_scene_stay_where_they_are(tmp_path):
    bands, transform = noise(), UTM * Affine.rotation(33)
    with SceneReader(write(tmp_path / "scene.tif", bands, transform=transform)) as reader:
        assert reader.scene.grid.transform.almost_equals(transform)
        np.testing.assert_array_equal(whole(reader)[0], bands)
        half = reader.scene.grid.at_gsd(1.0)
        np.testing.assert_array_equal(
            reader.read(half.window, half)[0], np.rint(bands.reshape(3, 30, 2, 35, 2).mean(axis=(2, 4)))
        )


TURNS = {
    "north-up": (UTM, lambda a: a),
    "south-up": (UTM * Affine(1, 0, 0, 0, -1, 60), lambda a: a[..., ::-1, :]),
    "mirrored": (UTM * Affine(-1, 0, 70, 0, 1, 0), lambda a: a[..., ::-1]),
    "upside-down": (UTM * Affine(-1, 0, 70, 0, -1, 60), lambda a: a[..., ::-1, ::-1]),
    "transposed": (UTM * Affine(0, 1, 0, 1, 0, 0), lambda a: a.swapaxes(-1, -2)),
    "turned-left": (UTM * Affine(0, -1, 70, 1, 0, 0), lambda a: a.swapaxes(-1, -2)[..., ::-1, :]),
    "turned-right": (UTM * Affine(0, 1, 0, -1, 0, 60), lambda a: a.swapaxes(-1, -2)[..., ::-1]),
    "turned-over": (UTM * Affine(0, -1, 70, -1, 0, 60), lambda a: a.swapaxes(-1, -2)[..., ::-1, ::-1]),
}


@pytest.mark.parametrize("kind", ["file", "array"])
@pytest.mark.parametrize("turn", TURNS)
def test_a_scene_reads_the_same_however_it_is_stored(tmp_path, turn, kind):
    transform, stored = TURNS[turn]
    bands, hidden = noise(), np.zeros((60, 70), bool)
    hidden[10:20, 5:9] = True
    bands[:, hidden] = 0
    plain = write(tmp_path / "plain.tif", bands, mask=~hidden, **TILED)
    path = write(tmp_path / "turned.tif", stored(bands), mask=stored(~hidden), transform=transform, **TILED)
    for file in (plain, path):
        with rasterio.open(file, "r+") as dataset:
            dataset.build_overviews([2], Resampling.average)
    if kind == "array" and stored(hidden).shape != hidden.shape:
        pytest.skip("the coordinates of an array say nothing of turned axes")
    source = path
    if kind == "array":
        source, plain = (rioxarray.open_rasterio(file, masked=False) for file in (path, plain))
    with SceneReader(source) as reader, SceneReader(plain) as expected:
        grid = expected.scene.grid
        assert reader.scene.grid == grid
        for gsd in (0.5, 0.4, 1.0, 1.7):
            for window in (grid.at_gsd(gsd).window, Window(3, 5, 9, 11)):
                read = [one.read(window, grid.at_gsd(gsd)) for one in (reader, expected)]
                np.testing.assert_array_equal(read[0][0][:, read[0][1]], read[1][0][:, read[1][1]])
                np.testing.assert_array_equal(read[0][1], read[1][1])
        for one, other in zip(reader.sample(), expected.sample(), strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(("bands", "order"), [("3,2,1", [2, 1, 0]), ("2", [1, 1, 1]), ((1, 1, 4), [0, 0, 3])])
def test_bands_come_in_the_order_that_was_asked(tmp_path, bands, order):
    stored = noise(shape=(4, 20, 20))
    with SceneReader(write(tmp_path / "scene.tif", stored), bands=bands) as reader:
        np.testing.assert_array_equal(whole(reader)[0], stored[order])
        np.testing.assert_array_equal(reader.sample()[0], stored[order])


def test_many_bands_cost_only_those_that_are_used(tmp_path):
    stored = noise("uint16", (40, 16, 16))
    names = [f"wl_{i}" for i in range(40)]
    with SceneReader(write(tmp_path / "scene.tif", stored, descriptions=names), bands="wl_30,wl_20,wl_10") as reader:
        np.testing.assert_array_equal(whole(reader)[0], stored[[30, 20, 10]])


def test_bands_of_a_vrt_may_differ_in_type(tmp_path):
    low, high = write(tmp_path / "a.tif", noise()[:1]), write(tmp_path / "b.tif", noise("int16")[:1] - 300)
    band = (
        '<VRTRasterBand dataType="{}" band="{}"><SimpleSource><SourceFilename>{}</SourceFilename></SimpleSource>'
        "</VRTRasterBand>"
    )
    path = tmp_path / "scene.vrt"
    inner = band.format("Byte", 1, low) + band.format("Int16", 2, high) + band.format("Byte", 3, low)
    path.write_text(f'<VRTDataset rasterXSize="70" rasterYSize="60">{PLACED}{inner}</VRTDataset>')
    with SceneReader(path) as reader:
        values, _ = whole(reader)
    assert values.dtype == np.int16
    np.testing.assert_array_equal(values, np.stack([noise()[0], noise()[0] - 300.0, noise()[0]]))


PLACED = "<SRS>EPSG:32632</SRS><GeoTransform>500000, 0.5, 0, 5000000, 0, -0.5</GeoTransform>"


# Which pixels are valid


def test_nodata_alpha_mask_and_nan_hide_pixels_together(tmp_path):
    bands = noise("float32", (4, 4, 8))
    bands[3] = 255
    bands[1, 0, 0] = -9999  # nodata in one band
    bands[2, 0, 1] = np.nan
    bands[0, 0, 2] = np.inf
    bands[3, 0, 3] = 0  # transparent
    bands[3, 0, 4] = 1  # nearly
    mask = np.full((4, 8), 255, np.uint8)
    mask[0, 5] = 0
    path = write(tmp_path / "scene.tif", bands, colours=["red", "green", "blue", "alpha"], nodata=-9999, mask=mask)
    expected = np.ones((4, 8), bool)
    expected[0, [0, 1, 2, 3, 5]] = False
    with SceneReader(path) as reader:
        np.testing.assert_array_equal(whole(reader)[1], expected)
        np.testing.assert_array_equal(reader.sample()[1], expected)


@pytest.mark.parametrize("internal", [True, False])
def test_a_mask_may_lie_inside_the_file_or_beside_it(tmp_path, internal):
    mask = np.zeros((60, 70), np.uint8)
    mask[10:50, 20:60] = 255
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=internal):
        path = write(tmp_path / "scene.tif", noise(), mask=mask)
    assert (tmp_path / "scene.tif.msk").exists() is not internal
    with SceneReader(path) as reader:
        np.testing.assert_array_equal(whole(reader)[1], mask > 0)


@pytest.mark.parametrize(
    ("dtype", "nodata", "hidden"),
    [
        ("uint8", 7, True),
        ("int16", -9999, True),
        ("float32", -9999, True),
        ("float32", 0.1, True),  # which no float32 equals
        ("float32", -3.4028234663852886e38, True),
        ("float32", float("nan"), True),
        ("uint8", -9999, False),
        ("uint8", 256, False),
        ("uint8", float("nan"), False),
        ("uint16", 7.5, False),
        ("float32", 1e300, False),
    ],
)
def test_nodata_that_is_given_is_found_where_the_dtype_can_hold_it(tmp_path, dtype, nodata, hidden):
    bands = noise(dtype) // 2 * 2
    if hidden:
        bands[:, 3, 4] = nodata
    with SceneReader(write(tmp_path / "scene.tif", bands, nodata=2), nodata=nodata) as reader:
        valid = whole(reader)[1]
    assert valid.sum() == valid.size - hidden
    assert valid[3, 4] != hidden


def test_nodata_of_floats_is_compared_as_in_gdal(tmp_path):
    lowest = np.finfo("f4").min
    tried = np.array([lowest, np.nextafter(lowest, np.float32(0)), -3.4e38, 3.4e38, -1e20, 0.5], "f4")
    for stated in (-3.4028230607370965e38, -3.4028234663852886e38, -3.4e38, -1e20, -9999.0, 0.5):
        bands = np.broadcast_to(np.append(tried, np.float32([-9999, -9998.999, -9998])), (3, 1, 9))
        path = write(tmp_path / "scene.tif", bands, nodata=stated, colours=["red", "green", "blue"])
        with SceneReader(path) as reader, rasterio.open(path) as file:
            hidden = ~file.dataset_mask().astype(bool)
            assert hidden.any()
            assert not whole(reader)[1][hidden].any()


@pytest.mark.parametrize(
    ("dtype", "nodata"), [("uint8", 0), ("uint8", 255), ("uint16", 0), ("uint16", 65535), ("int16", 0), ("float32", 0)]
)
@pytest.mark.parametrize("kind", ["file", "array"])
def test_nodata_in_all_bands_hides_a_pixel_as_in_rasterio(tmp_path, dtype, nodata, kind):
    bands = np.where(noise(shape=(3, 20, 30)) < 150, nodata, 100).astype(dtype)  # all eight combinations, often
    bands[:, 0, 0] = 255, 0, 0
    path = write(tmp_path / "scene.tif", bands, colours=["red", "green", "blue"], nodata=nodata)
    with rasterio.open(path) as file:
        expected = file.dataset_mask() > 0
    with SceneReader(path if kind == "file" else array_of(path)) as reader:
        np.testing.assert_array_equal(whole(reader)[1], expected)
        np.testing.assert_array_equal(reader.sample()[1], expected)
    assert expected[0, 0]
    assert 0.1 < expected.mean() < 0.9


def test_only_chosen_bands_say_where_data_are(tmp_path):
    bands = np.where(noise(shape=(5, 20, 30)) < 150, 0, 100).astype("uint8")
    path = write(tmp_path / "scene.tif", bands, nodata=0)
    with SceneReader(path, bands="5,1,5") as reader:
        np.testing.assert_array_equal(whole(reader)[1], bands[[0, 4]].any(axis=0))


@pytest.mark.parametrize(("dtype", "nodata"), [("int16", -9999), ("float32", 1e20), ("float32", float("nan"))])
def test_nodata_that_nothing_measures_hides_a_pixel_by_one_band(tmp_path, dtype, nodata):
    bands = noise(dtype)
    bands[1, 3, 4] = nodata
    with SceneReader(write(tmp_path / "scene.tif", bands, nodata=nodata)) as reader:
        valid = whole(reader)[1]
    assert not valid[3, 4]
    assert valid.sum() == valid.size - 1


def test_bands_of_a_vrt_may_differ_in_nodata(tmp_path):
    source = write(tmp_path / "a.tif", np.array([[[0, 0, 5]], [[0, 7, 7]], [[0, 7, 0]]], np.uint8))
    band = (
        '<VRTRasterBand dataType="Byte" band="{0}">{1}<SimpleSource><SourceFilename>{2}</SourceFilename>'
        "<SourceBand>{0}</SourceBand></SimpleSource></VRTRasterBand>"
    )
    nodata = {1: "<NoDataValue>0</NoDataValue>", 2: "<NoDataValue>0</NoDataValue>"}
    for stated, expected in (({**nodata, 3: nodata[1]}, [False, True, True]), (nodata, [True, True, True])):
        inner = "".join(band.format(k, stated.get(k, ""), source) for k in (1, 2, 3))
        path = tmp_path / f"{len(stated)}.vrt"
        path.write_text(f'<VRTDataset rasterXSize="3" rasterYSize="1">{PLACED}{inner}</VRTDataset>')
        with rasterio.open(path) as file, SceneReader(path) as reader:
            assert whole(reader)[1].tolist() == [expected] == (file.dataset_mask() > 0).tolist()


def test_a_vrt_may_state_a_nodata_that_its_bytes_cannot_hold(tmp_path):
    source = write(tmp_path / "a.tif", noise())
    path = tmp_path / "scene.vrt"
    path.write_text(
        f'<VRTDataset rasterXSize="70" rasterYSize="60">{PLACED}<VRTRasterBand dataType="Byte" band="1">'
        f"<NoDataValue>-9999</NoDataValue><SimpleSource><SourceFilename>{source}</SourceFilename></SimpleSource>"
        "</VRTRasterBand></VRTDataset>"
    )
    with SceneReader(path) as reader:
        assert whole(reader)[1].all()


def test_a_scene_without_a_valid_pixel_reads_quietly(tmp_path):
    with SceneReader(write(tmp_path / "a.tif", np.full((3, 30, 30), np.nan, "float32"))) as reader:
        half = reader.scene.grid.at_gsd(1.0)
        assert not reader.sample()[1].any()
        assert not reader.read(half.window, half)[1].any()


def test_values_too_large_for_float32_are_not_valid(tmp_path):
    bands = np.ones((3, 4, 4))
    bands[0, 1, 1] = 1e200
    with SceneReader(write(tmp_path / "a.tif", bands)) as reader:
        assert (~whole(reader)[1]).sum() == 1


def test_pixels_outside_the_area_of_interest_are_not_valid(tmp_path):
    path = write(tmp_path / "scene.tif", noise())
    area = shapely.Polygon([(500_002, 4_999_999), (500_030, 4_999_990), (500_010, 4_999_972)])
    with SceneReader(path, aoi=area) as reader, SceneReader(path) as plain:
        for grid in (reader.scene.grid, reader.scene.grid.at_gsd(0.7)):
            for window in TileGrid(grid.height, grid.width, 32, 8):
                values, valid = reader.read(window, grid)
                np.testing.assert_array_equal(valid, inside(area, grid, window))
                np.testing.assert_array_equal(values, plain.read(window, grid)[0])
        assert reader.sample()[1].all(), "statistics are the scene's, not the area's"
        assert plain.within(area).aoi is area


# The working grid


@st.composite
def window_of(draw, height, width):
    row, col = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
    return Window(row, col, draw(st.integers(1, height - row)), draw(st.integers(1, width - col)))


@pytest.fixture(scope="module")
def holed(tmp_path_factory):
    """A float scene in which every fifth pixel or so is missing, with a value that would be noticed."""
    bands = noise("float32", (3, 61, 83))
    bands[:, np.random.default_rng(3).random((61, 83)) < 0.2] = 1e6
    return write(
        tmp_path_factory.mktemp("holed") / "scene.tif", bands, nodata=1e6, tiled=True, blockxsize=16, blockysize=16
    )


@pytest.mark.parametrize("gsd", [0.21, 0.37, 0.8, 1.0, 3.3])
@pytest.mark.parametrize("kind", ["file", "array"])
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_a_pixel_depends_on_no_window_and_no_crop(holed, monkeypatch, kind, gsd, data):
    monkeypatch.setattr("geolabel.io.read.scenes.SOURCE_PX", 1 << 9)
    reader = SceneReader(holed if kind == "file" else array_of(holed))
    grid = reader.scene.grid.at_gsd(gsd)
    bands, valid = reader.read(grid.window, grid)
    window = data.draw(window_of(grid.height, grid.width))
    crop = data.draw(window_of(window.height, window.width))
    for part, part_of, seen in (
        (window, grid, window),
        (crop, grid.crop(window), Window(window.row + crop.row, window.col + crop.col, crop.height, crop.width)),
    ):
        values, ok = reader.read(part, part_of)
        np.testing.assert_array_equal(ok, valid[seen.slices])
        np.testing.assert_array_equal(values, bands[:, *seen.slices])
    assert bands[:, valid].max() < 250


def test_reading_in_parts_changes_nothing(holed, monkeypatch):
    with SceneReader(holed) as reader:
        grid = reader.scene.grid.at_gsd(1.3)
        expected = reader.read(grid.window, grid)
        for pixels in (1, 100, 2000):
            monkeypatch.setattr("geolabel.io.read.scenes.SOURCE_PX", pixels)
            for found, wanted in zip(reader.read(grid.window, grid), expected, strict=True):
                np.testing.assert_array_equal(found, wanted)


def test_shrinking_agrees_with_gdal_where_pixels_are_missing(tmp_path):
    bands = noise("float32", (3, 60, 80))
    bands[:, np.random.default_rng(4).random((60, 80)) < 0.2] = -1
    path = write(tmp_path / "scene.tif", bands, nodata=-1)
    with SceneReader(path) as reader, rasterio.open(path) as file:
        grid = reader.scene.grid.at_gsd(1.0)
        values, valid = reader.read(grid.window, grid)
        expected = file.read(out_shape=(3, 30, 40), resampling=Resampling.average, masked=True)
    np.testing.assert_allclose(values[:, valid], expected.data[:, valid], rtol=1e-6)
    assert not expected.mask[:, valid].any()


def test_overviews_spare_reading(tmp_path):
    path = write(tmp_path / "scene.tif", np.full((3, 64, 64), 10, np.uint8), **TILED)
    with rasterio.open(path, "r+") as file:
        file.build_overviews([2, 4], Resampling.average)
    with rasterio.open(path, "r+") as file:
        file.write(np.full((3, 64, 64), 20, np.uint8))  # the overviews still say 10
    with SceneReader(path) as reader:
        for gsd, value in ((0.5, 20), (0.3, 20), (0.8, 20), (1.0, 10), (1.7, 10), (6.0, 10)):
            grid = reader.scene.grid.at_gsd(gsd)
            assert set(reader.read(grid.window, grid)[0].flat) == {value}, gsd


@pytest.mark.parametrize("gsd", [1.0, 1.6, 2.1])
def test_pixels_from_overviews_depend_on_no_window(tmp_path, gsd):
    path = write(tmp_path / "scene.tif", noise(shape=(3, 131, 117)), **TILED)
    with rasterio.open(path, "r+") as file:
        file.build_overviews([2, 4], Resampling.average)
    with SceneReader(path) as reader:
        grid = reader.scene.grid.at_gsd(gsd)
        bands, _ = reader.read(grid.window, grid)
        for window in TileGrid(grid.height, grid.width, 17, 3):
            np.testing.assert_array_equal(reader.read(window, grid)[0], bands[:, *window.slices])


def test_an_overview_that_lost_its_mask_is_not_used(tmp_path):
    mask = np.zeros((64, 64), np.uint8)
    mask[:32] = 255
    path = write(tmp_path / "scene.tif", noise(shape=(3, 64, 64)), **TILED)
    with rasterio.open(path, "r+") as file:
        file.build_overviews([2], Resampling.average)
    with rasterio.open(path, "r+") as file:
        file.write_mask(mask)
    with SceneReader(path) as reader:
        grid = reader.scene.grid.at_gsd(1.0)
        np.testing.assert_array_equal(reader.read(grid.window, grid)[1], mask[::2, ::2] > 0)


# Statistics


def test_a_small_scene_is_its_own_sample(tmp_path):
    bands = noise()
    with SceneReader(write(tmp_path / "scene.tif", bands)) as reader:
        np.testing.assert_array_equal(reader.sample()[0], bands)


@pytest.mark.parametrize("most", [1, 7, 500, 4199, 4200])
def test_a_sample_picks_pixels_and_has_a_bound(tmp_path, most):
    path = write(tmp_path / "scene.tif", np.arange(4200, dtype=np.int32).reshape(1, 60, 70))
    with SceneReader(path) as reader, SceneReader(array_of(path)) as other:
        values, valid = reader.sample(most)
        assert most / 4 < valid.size <= most
        assert len(np.unique(values)) == valid.size
        np.testing.assert_array_equal(other.sample(most)[0], values)


def test_a_narrow_scene_has_a_sample(tmp_path):
    with SceneReader(write(tmp_path / "scene.tif", noise(shape=(3, 3, 5000)))) as reader:
        assert 500 < reader.sample(1000)[1].size <= 1000


# Arrays


def array_of(path, **chunks):
    with rioxarray.open_rasterio(path) as array:
        return array.load().chunk(chunks or {"y": 17, "x": 23})


@pytest.mark.parametrize("gsd", [0.2, 0.5, 0.9, 1.0])
def test_an_array_reads_like_its_file(holed, gsd):
    with SceneReader(holed) as file, SceneReader(array_of(holed)) as array:
        assert array.scene.grid == file.scene.grid
        grid = file.scene.grid.at_gsd(gsd)
        for found, expected in zip(array.read(grid.window, grid), file.read(grid.window, grid), strict=True):
            np.testing.assert_array_equal(found, expected)


def test_an_array_may_be_masked_flat_or_turned_around(tmp_path):
    bands = noise("int16")
    bands[:, 3, 4] = -1
    path = write(tmp_path / "scene.tif", bands, nodata=-1)
    with rioxarray.open_rasterio(path, masked=True) as masked:
        values, valid = whole(SceneReader(masked))
    assert (~valid).sum() == 1
    np.testing.assert_array_equal(values[:, valid], bands[:, valid])
    array = array_of(path)
    np.testing.assert_array_equal(whole(SceneReader(array[0]))[0], bands[[0, 0, 0]])
    np.testing.assert_array_equal(whole(SceneReader(array.transpose("x", "band", "y")))[0], bands)
    np.testing.assert_array_equal(whole(SceneReader(array > 100))[0], bands > 100)


def test_a_cut_or_thinned_array_lies_where_its_coordinates_say(tmp_path):
    array = array_of(write(tmp_path / "scene.tif", noise()))
    cut = SceneReader(array[:, 10:40, 20:50]).scene.grid
    assert cut.transform.almost_equals(UTM * Affine.translation(20, 10))
    thin = SceneReader(array[:, ::2, ::2]).scene.grid
    assert thin.transform.almost_equals(UTM * Affine.translation(-0.5, -0.5) * Affine.scale(2))
    flipped = SceneReader(array[:, ::-1]).scene.grid
    assert flipped.transform.almost_equals(UTM)


def test_bands_of_an_array_are_known_by_name(tmp_path):
    path = write(tmp_path / "scene.tif", noise(shape=(4, 20, 20)), descriptions=["nir", "blue", "green", "red"])
    assert SceneReader(array_of(path)).scene.bands == (4, 3, 2)
    named = array_of(path)
    del named.attrs["long_name"]
    named = named.assign_coords(band=["B08", "B02", "B03", "B04"])
    assert SceneReader(named).scene.bands == (4, 3, 2)
    clear = array_of(path)
    clear.attrs["long_name"] = ("red", "green", "blue", "alpha")
    clear[3, 5, 6] = 0
    assert (~whole(SceneReader(clear))[1]).sum() == 1


def dataset_of(path, names=("red", "green", "blue")):
    return array_of(path).to_dataset("band").rename(dict(enumerate(names, 1)))


def test_a_dataset_of_named_bands_reads_like_its_file(tmp_path):
    bands = noise("int16", (4, 30, 40))
    bands[:, 3, 4] = -1
    path = write(tmp_path / "scene.tif", bands, nodata=-1)
    names = ("nir", "blue", "green", "red")
    data = dataset_of(path, names)
    for name in names:
        data[name] = data[name].rio.write_nodata(-1)
    data["red"] = data["red"].astype("float64")
    data["quality"] = ("text", ["good"])
    with SceneReader(path, bands="4,3,2") as file, SceneReader(data) as found:
        assert found.scene.bands == (4, 3, 2)
        assert found.scene.grid == file.scene.grid
        assert found.header.descriptions == names
        for one, other in zip(whole(found), whole(file), strict=True):
            np.testing.assert_array_equal(one, other)
    assert SceneReader(data[["nir", "green", "blue"]], bands="nir,green,blue").scene.bands == (1, 2, 3)


def test_a_dataset_may_hold_one_array_or_counted_variables(tmp_path):
    path = write(tmp_path / "scene.tif", noise(), descriptions=["b", "g", "r"])
    with (
        xarray.open_dataset(path, engine="rasterio") as one,
        rioxarray.open_rasterio(path, band_as_variable=True) as many,
    ):
        for data in (one, many):
            with SceneReader(data) as reader:
                assert reader.scene.grid.crs.to_epsg() == 32632
                assert reader.header.count == 3
                assert whole(reader)[1].all()
        assert SceneReader(many).scene.bands == (3, 2, 1)


def test_variables_of_several_grids_are_refused(tmp_path):
    data = xarray.Dataset({"a": (("y", "x"), noise()[0]), "b": (("lat", "lon"), noise()[0, ::2])})
    with pytest.raises(SceneError, match=r"a of 60 x 70 px, b of 30 x 70 px\): choose those of one grid"):
        SceneReader(data)


@pytest.mark.parametrize("axis", [0, 1])
def test_one_time_is_left_out_and_dates_the_scene(tmp_path, axis):
    path = write(tmp_path / "scene.tif", noise())
    array = array_of(path).expand_dims({"time": np.array(["2024-05-01T10:00"], "datetime64[ns]")}, axis=axis)
    data = dataset_of(path).expand_dims({"time": np.array(["2024-05-01"], "datetime64[ns]")})
    for one in (array, array.isel(time=0), array.to_dataset("band").rename({1: "red", 2: "green", 3: "blue"}), data):
        with SceneReader(one) as reader:
            assert reader.scene.event_date == "2024-05-01"
            np.testing.assert_array_equal(whole(reader)[0], noise())


def test_rows_and_columns_may_be_latitudes_and_longitudes(tmp_path):
    path = write(tmp_path / "scene.tif", noise(), crs="EPSG:4326", transform=Affine(1e-5, 0, 9, 0, -1e-5, 46))
    array = array_of(path).rename(y="lat", x="lon")
    with SceneReader(array) as found, SceneReader(path) as file:
        assert found.scene.grid.transform.almost_equals(file.scene.grid.transform, 1e-9)
        np.testing.assert_array_equal(whole(found)[0], noise())


def test_a_plain_array_needs_a_gsd():
    plain = xarray.DataArray(noise(), dims=("band", "y", "x"))
    with pytest.raises(SceneError, match=r"--gsd METRES$"):
        _ = SceneReader(plain).scene
    placed = plain.assign_coords(y=np.arange(60) * -0.5, x=np.arange(70) * 0.5)
    with pytest.raises(SceneError, match=r"or its CRS \(array\.rio\.write_crs"):
        _ = SceneReader(placed).scene
    downwards = plain.assign_coords(y=np.arange(60) * 0.5, x=np.arange(70) * 0.5)  # as rows of a picture count
    np.testing.assert_array_equal(whole(SceneReader(downwards, gsd=0.5))[0], noise())
    with SceneReader(plain, gsd=0.5) as reader:
        assert reader.scene.grid.transform == Affine(1, 0, 0, 0, -1, 0)  # as of a picture
        assert reader.scene.grid.gsd == 0.5
        np.testing.assert_array_equal(whole(reader)[0], noise())


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (xarray.DataArray(noise(), dims=("band", "i", "j")), "name them y and x"),
        (
            xarray.DataArray(noise(shape=(2, 3, 4, 5)), dims=("time", "band", "y", "x")),
            r"2 times .* array\.isel\(time=0\)",
        ),
        (xarray.DataArray(noise(shape=(5, 4, 5)), dims=("time", "y", "x")), "has 5 times along 'time'"),
        (xarray.DataArray(noise(shape=(2, 3, 4, 5)), dims=("orbit", "band", "y", "x")), "choose one of"),
        (xarray.Dataset({"name": ((), "nothing")}), "no variable of rows and columns, only name"),
        (xarray.Dataset({"red": (("time", "y", "x"), noise(shape=(3, 4, 5)))}), "has 3 times"),
        (
            xarray.DataArray(noise()[0, :3, :3], {"y": [0, 1, 2], "x": [0, 1, 5]}, ("y", "x")).rio.write_crs(32632),
            "not evenly spaced",
        ),
    ],
)
def test_arrays_that_are_no_scene(array, message):
    with pytest.raises(SceneError, match=message):
        _ = SceneReader(array).scene


def test_one_of_several_times_is_chosen():
    values = noise(shape=(3, 3, 4, 5))
    times = np.array(["2024-04-30T10:30", "2024-05-01T10:30", "2024-05-01T16:00"], "datetime64[ns]")
    array = xarray.DataArray(values, {"time": times}, ("time", "band", "y", "x"))
    bands = xarray.Dataset({name: array[:, k] for k, name in enumerate(("red", "green", "blue"))})
    for data in (array, bands):
        with SceneReader(data, gsd=1, time="2024-05-01 16") as reader:
            np.testing.assert_array_equal(whole(reader)[0], values[2])
            assert reader.scene.event_date == "2024-05-01"
        assert SceneReader(data, gsd=1, time="2024-04").scene.event_date == "2024-04-30"
        with pytest.raises(SceneError, match=r"has 2024-04-30T10:30:00, .*; 2 of its times start"):
            _ = SceneReader(data, gsd=1, time="2024-05-01").scene
        with pytest.raises(SceneError, match=r"3 times along 'time'.* select one, such as time='2024-04-30T10:30:00'"):
            _ = SceneReader(data, gsd=1).scene
    with pytest.raises(SceneError, match="no time axis"):
        _ = SceneReader(array[0], gsd=1, time="2024").scene


def test_one_of_several_times_of_a_file_is_chosen(tmp_path):
    values = noise(shape=(2, 3, 4, 5))
    places = {
        "time": np.array(["2024-04-30", "2024-05-01"], "datetime64[ns]"),
        "y": 3_000_003.5 - np.arange(4),
        "x": 500_000.5 + np.arange(5),
    }
    array = xarray.DataArray(values.astype(np.int16), places, ("time", "band", "y", "x"), name="scene")
    array = array.rio.write_crs(32648).rio.write_coordinate_system()
    array.to_netcdf(tmp_path / "scene.nc", engine="scipy", format="NETCDF3_64BIT")
    with pickle.loads(pickle.dumps(SceneReader(tmp_path / "scene.nc", time="2024-05-01"))) as reader:
        np.testing.assert_array_equal(whole(reader)[0], values[1])
        assert reader.scene.event_date == "2024-05-01"
    with pytest.raises(SceneError, match="has 2024-04-30T00:00:00, 2024-05-01T00:00:00; none of its times starts"):
        _ = SceneReader(tmp_path / "scene.nc", time="2023").scene
    with pytest.raises(SceneError, match=r"the bands of .* have no times"):
        _ = SceneReader(write(tmp_path / "plain.tif", noise()), time="2023").scene


def test_a_failing_array_is_a_failing_window():
    def explode(block):
        raise RuntimeError("no such granule")

    array = xarray.DataArray(noise(), dims=("band", "y", "x")).chunk({"y": 30})
    with pytest.raises(TileError, match="no such granule"):
        whole(SceneReader(array.copy(data=array.data.map_blocks(explode, dtype=np.uint8)), gsd=1))


# Where a scene lies


def test_a_picture_without_crs_needs_a_gsd(tmp_path):
    path = write(tmp_path / "picture.png", noise(), driver="PNG", crs=None, transform=None)
    with SceneReader(path, gsd=0.25) as reader:
        grid = reader.scene.grid
        np.testing.assert_array_equal(whole(reader)[0], noise())
    assert grid.crs is None
    assert grid.transform == Affine(1, 0, 0, 0, -1, 0)
    assert grid.gsd == 0.25
    with pytest.raises(SceneError, match=r"no CRS.*--gsd METRES"):
        _ = SceneReader(path).scene


def test_a_transform_without_crs_is_kept(tmp_path):
    with SceneReader(write(tmp_path / "scene.tif", noise(), crs=None), gsd=0.3) as reader:
        assert reader.scene.grid.transform == UTM
        assert reader.scene.grid.gsd == pytest.approx(0.3)


def test_a_crs_knows_its_gsd(tmp_path):
    with pytest.raises(SceneError, match=r"leave out --gsd 0\.5"):
        _ = SceneReader(write(tmp_path / "scene.tif", noise()), gsd=0.5).scene


@pytest.mark.parametrize("gsd", [0, -1, float("nan"), float("inf")])
def test_a_gsd_is_a_positive_length(gsd):
    with pytest.raises(OptionError, match="positive number of metres"):
        SceneReader("scene.png", gsd=gsd)


def test_a_crs_without_transform_lies_nowhere(tmp_path):
    with pytest.raises(SceneError, match="a_ullr"):
        _ = SceneReader(write(tmp_path / "scene.tif", noise(), transform=None)).scene


def test_ground_control_points_want_rectifying(tmp_path):
    points = [GroundControlPoint(r, c, 9 + c / 1e4, 46 - r / 1e4) for r, c in ((0, 0), (0, 70), (60, 0), (60, 70))]
    path = write(tmp_path / "scene.tif", noise(), crs=None, transform=None, gcps=points)
    with pytest.raises(SceneError, match=r"ground control points.*gdalwarp"):
        _ = SceneReader(path, gsd=1).scene


@pytest.mark.parametrize(
    "crs",
    [
        "EPSG:2263",
        "EPSG:4326",
        "+proj=laea +lat_0=46.5 +lon_0=9.3 +datum=WGS84",
        'LOCAL_CS["site",UNIT["metre",1]]',
        "EPSG:2056+5728",
    ],
)
def test_any_crs_comes_through(tmp_path, crs):
    path = write(tmp_path / "scene.tif", noise(), crs=crs, transform=Affine(1e-5, 0, 9, 0, -1e-5, 46))
    with SceneReader(path) as reader, rasterio.open(path) as file:
        assert rasterio.CRS.from_wkt(reader.scene.grid.crs.to_wkt()) == file.crs


# Dates


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ({"TIFFTAG_DATETIME": "2021:07:05 10:11:12", "TIFFTAG_SOFTWARE": "Adobe Photoshop"}, None),
        ({"EXIF_DateTime": "2021:07:05 10:11:12", "DATETIME": "2021-07-05", "GENERATION_TIME": "2021-07-05"}, None),
        ({"EXIF_DateTimeOriginal": "2021:07:05 10:11:12", "EXIF_DateTime": "2022:01:01 00:00:00"}, "2021-07-05"),
        ({"NITF_IDATIM": "20210705101112", "NITF_FDT": "20230101000000"}, "2021-07-05"),
        ({"ACQUISITIONDATETIME": "2020-02-29T01:02:03Z", "TIFFTAG_DATETIME": "2021:07:05 10:11:12"}, "2020-02-29"),
        ({"acquired": "2019-12-31"}, "2019-12-31"),
        ({"DATE_ACQUIRED": "20190102"}, "2019-01-02"),
        ({"EXIF_DateTimeOriginal": "0000:00:00 00:00:00"}, None),
        ({"DATE_ACQUIRED": "yesterday"}, None),
        ({}, None),
    ],
)
def test_the_event_date_is_what_the_scene_knows(tmp_path, tags, expected):
    with SceneReader(write(tmp_path / "scene.tif", noise(), tags=tags)) as reader:
        assert reader.scene.event_date == expected


# What is beside a raster, and around it


def unplaced(path, **profile):
    return write(path, noise(), crs=None, transform=None, **profile)


@pytest.mark.parametrize(
    ("name", "driver", "world"), [("s.tif", "GTiff", "s.tfw"), ("s.png", "PNG", "s.pgw"), ("s.png", "PNG", "s.wld")]
)
@pytest.mark.parametrize("text", [rasterio.CRS.from_epsg(32648).to_wkt(), "EPSG:32648"], ids=["wkt", "code"])
def test_world_file_and_projection_beside_a_raster_place_it(tmp_path, name, driver, world, text):
    path = unplaced(tmp_path / name, driver=driver)
    (tmp_path / f"{name}.aux.xml").unlink(missing_ok=True)
    (tmp_path / world).write_text("0.5\n0\n0\n-0.5\n500000.25\n2999999.75\n")
    with SceneReader(path) as reader, pytest.raises(SceneError, match=r"give --gsd METRES, or its CRS .* -a_srs"):
        _ = reader.scene
    (tmp_path / "s.prj").write_text(text)
    with SceneReader(path) as reader:
        assert reader.scene.grid.crs.to_epsg() == 32648
        assert reader.scene.grid.transform == Affine(0.5, 0, 500_000, 0, -0.5, 3_000_000)


def test_a_projection_alone_or_one_that_is_none_places_nothing(tmp_path):
    path = unplaced(tmp_path / "s.tif")
    (tmp_path / "s.prj").write_text(rasterio.CRS.from_epsg(32648).to_wkt())  # of a shapefile s.shp, perhaps
    with SceneReader(path, gsd=0.5) as reader:
        assert reader.scene.grid.crs is None
    (tmp_path / "s.tfw").write_text("0.5\n0\n0\n-0.5\n500000.25\n2999999.75\n")
    (tmp_path / "s.prj").write_text("a list of projects")
    with (
        SceneReader(path) as reader,
        pytest.raises(SceneError, match=r"CRS in .*s\.prj, which is beside s\.tif: correct"),
    ):
        _ = reader.scene


def test_an_archive_says_the_way_into_it(tmp_path):
    path = write(tmp_path / "s.tif", noise())
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        archive.write(path, "in/s.tif")
    with SceneReader(tmp_path / "z.zip") as reader, pytest.raises(SceneError, match="ZIP archive") as caught:
        _ = reader.scene
    way = next(word for word in str(caught.value).split() if word.startswith("/vsizip/")).rstrip(",")
    with SceneReader(way) as reader:
        np.testing.assert_array_equal(whole(reader)[0], noise())
    for name, content in (("b.7z", b"7z\xbc\xaf\x27\x1c"), ("c.tar.gz", b"\x1f\x8b\x08\x00"), ("d.zip", b"PK\x03\x04")):
        (tmp_path / name).write_bytes(content)
        with SceneReader(tmp_path / name) as reader, pytest.raises(SceneError, match=r"archive.*: unpack it first"):
            _ = reader.scene


# Travelling and sharing


def test_a_reader_travels_as_its_arguments(tmp_path):
    path = write(tmp_path / "scene.tif", noise(shape=(4, 60, 70)))
    with SceneReader(path, bands="4,2,1", nodata=9, aoi=shapely.box(500_000, 4_999_980, 500_020, 5_000_000)) as reader:
        expected = whole(reader)
        luggage = pickle.dumps(reader)
    assert len(luggage) < 2000
    with pickle.loads(luggage) as again:
        for found, wanted in zip(whole(again), expected, strict=True):
            np.testing.assert_array_equal(found, wanted)
    array = pickle.loads(pickle.dumps(SceneReader(array_of(path), bands="4,2,1")))
    np.testing.assert_array_equal(whole(array)[0], expected[0])


def test_threads_read_the_same_at_once(holed):
    with SceneReader(holed) as reader:
        grid = reader.scene.grid.at_gsd(0.7)
        windows = list(TileGrid(grid.height, grid.width, 20, 7)) * 3
        expected = [reader.read(window, grid)[0] for window in windows]
        with ThreadPoolExecutor(8) as pool:
            for found, wanted in zip(pool.map(lambda w: reader.read(w, grid)[0], windows), expected, strict=True):
                np.testing.assert_array_equal(found, wanted)


@pytest.mark.skipif(not OPEN_FILES.is_dir(), reason="only Linux lists the open files of a process")
def test_handles_are_closed_with_the_reader_or_their_thread(holed):
    def open_files():
        links = [link for link in OPEN_FILES.iterdir() if link.is_symlink()]
        return sum(os.path.realpath(link) == holed for link in links)

    reader = SceneReader(holed)
    before = whole(reader)[0]
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda _: whole(reader), range(6)))
    assert open_files() == 1
    reader.close()
    assert open_files() == 0
    np.testing.assert_array_equal(whole(reader)[0], before)
    reader.close()


# What cannot be read


def test_a_reader_opens_nothing_before_it_is_asked():
    SceneReader("missing.tif", bands="9", nodata=3).close()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.tif", None, "there is no such file"),
        ("notes.tif", b"these are my notes\nfrom the field\n", "is a text file, not a raster"),
        ("page.tif", b"<!DOCTYPE html><html><body>404</body></html>", "web page.*failed download"),
        ("error.tif", b"\n<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "web page or XML"),
        ("empty.tif", b"", "is empty"),
        ("slides.shp", b"\x00\x00\x27\x0a" + bytes(252), "holds vectors or tables, not a raster"),
        ("slides.fgb", b"fgb\x03fgb\x01" + bytes(252), "holds vectors or tables, not a raster"),
        ("slides.geojson", b'{"type": "FeatureCollection", "features": []}', "holds vectors or tables, not a raster"),
        ("garbage.tif", bytes(range(256)) * 4, r"damaged or in an unsupported format$"),
        ("header.tif", b"II*\x00\x08\x00\x00\x00", "damaged or in an unsupported format"),
    ],
)
def test_a_file_that_is_no_raster_says_why(tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SceneError, match=message) as caught:
        _ = SceneReader(path).scene
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_geopackage_of_polygons_is_no_scene(tmp_path):
    path = tmp_path / "slides.gpkg"
    gpd.GeoDataFrame(geometry=[shapely.box(0, 0, 1, 1)], crs=32648).to_file(path)
    with pytest.raises(SceneError, match="holds vectors or tables, not a raster"):
        _ = SceneReader(path).scene


def test_a_folder_is_no_scene(tmp_path):
    with pytest.raises(SceneError, match="is a folder"):
        _ = SceneReader(tmp_path).scene


def test_a_uri_that_fails_is_passed_on():
    with pytest.raises(SceneError, match="cannot be opened"):
        _ = SceneReader("/vsizip/nowhere.zip/scene.tif").scene


def test_a_truncated_file_opens_and_fails_where_it_ends(tmp_path):
    path = tmp_path / "scene.tif"
    write(path, noise(shape=(3, 64, 64)), **TILED)
    path.write_bytes(path.read_bytes()[:-3000])
    with SceneReader(path) as reader:
        grid = reader.scene.grid
        np.testing.assert_array_equal(
            reader.read(Window(0, 0, 16, 64), grid)[0], noise(shape=(3, 64, 64))[:, :16], strict=True
        )
        with pytest.raises(
            TileError, match=r"the window at row 48, col 0, 16 x 64 px cannot be read: its data are damaged or end"
        ) as caught:
            reader.read(Window(48, 0, 16, 64), grid)
        assert isinstance(caught.value.__cause__, rasterio.errors.RasterioError)
        with pytest.raises(SceneError, match="cannot be sampled"):
            reader.sample()


@pytest.mark.parametrize("dtype", ["complex64", "complex128"])
def test_complex_bands_are_refused(tmp_path, dtype):
    path = write(tmp_path / "scene.tif", noise().astype(dtype))
    with pytest.raises(SceneError, match="choose real bands"):
        _ = SceneReader(path).scene
    with pytest.raises(SceneError, match="choose real bands"):
        _ = SceneReader(xarray.DataArray(noise().astype(dtype), dims=("band", "y", "x")), gsd=1).scene


@pytest.mark.parametrize(("bands", "message"), [("1,2,9", "no band 9: the scene has 3"), ("swir", "no band 'swir'")])
def test_bands_that_the_scene_lacks(tmp_path, bands, message):
    with pytest.raises(SceneError, match=message):
        _ = SceneReader(write(tmp_path / "scene.tif", noise()), bands=bands).scene


def test_subdatasets_are_listed(tmp_path):
    path = tmp_path / "two.gpkg"
    for append, table in (("NO", "before"), ("YES", "after")):
        write(path, noise(), driver="GPKG", RASTER_TABLE=table, APPEND_SUBDATASET=append)
    with pytest.raises(SceneError, match=r"one of its subdatasets.*GPKG:.*:before, GPKG:.*:after") as caught:
        _ = SceneReader(path).scene
    with SceneReader(str(caught.value).split("(")[1].split(",")[0]) as reader:
        assert reader.scene.grid.width >= 70


def test_a_vrt_runs_no_code(tmp_path):
    source = write(tmp_path / "a.tif", noise()[:1])
    path = tmp_path / "scene.vrt"
    path.write_text(
        f'<VRTDataset rasterXSize="70" rasterYSize="60">{PLACED}<VRTRasterBand dataType="Byte" band="1" '
        'subClass="VRTDerivedRasterBand"><PixelFunctionType>f</PixelFunctionType><PixelFunctionLanguage>Python'
        "</PixelFunctionLanguage><PixelFunctionCode><![CDATA[\ndef f(*_, **__):\n    open('"
        f"{tmp_path}/ran', 'w')\n]]></PixelFunctionCode><SimpleSource><SourceFilename>{source}</SourceFilename>"
        "</SimpleSource></VRTRasterBand></VRTDataset>"
    )
    with SceneReader(path) as reader, pytest.raises(SceneError, match="PixelFunctionType is not allowed"):
        whole(reader)
    assert not (tmp_path / "ran").exists()


def test_absurd_windows_take_no_memory(tmp_path):
    path = tmp_path / "scene.vrt"
    path.write_text(
        f'<VRTDataset rasterXSize="2000000000" rasterYSize="2000000000">{PLACED}'
        '<VRTRasterBand dataType="Byte" band="1"/></VRTDataset>'
    )
    with SceneReader(path) as reader:
        grid = reader.scene.grid
        with pytest.raises(TileError, match="use smaller tiles"):
            reader.read(grid.window, grid)
        assert (reader.read(Window(1_999_999_000, 5, 10, 10), grid)[0] == 0).all()
    with pytest.raises(SceneError, match="row 1999999999, col 5, 10 x 10 px extends beyond the grid"):
        reader.read(Window(1_999_999_999, 5, 10, 10), grid)


@pytest.mark.parametrize(
    ("uri", "remote"),
    [
        ("s3://bucket/scene.tif", True),
        ("https://host/scene.tif", True),
        ("zip+https://host/a.zip!scene.tif", True),
        ("/vsicurl/https://host/scene.tif", True),
        ("/vsis3/bucket/scene.tif", True),
        ("scene.tif", False),
        ("/vsizip/a.zip/scene.tif", False),
        ("file:///data/scene.tif", False),
        ("NETCDF:a.nc:rgb", False),
    ],
)
def test_which_scenes_are_far_away(uri, remote):
    assert is_remote(uri) is remote


# Real scenes


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.is_dir(), reason="the real imagery is not here")
def test_real_scenes_are_read_as_rasterio_reads_them():
    paths = sorted([*(SHARED / "geotiffs").glob("*.tif"), *(SHARED / "chittagong_s2").glob("*.tif")])
    assert paths
    for path in paths:
        with SceneReader(path) as reader, rasterio.open(path) as file:
            grid = reader.scene.grid
            window = Window(grid.height // 2, grid.width // 2, 128, 128)
            values, valid = reader.read(window, grid)
            part = rasterio.windows.Window(window.col, window.row, 128, 128)
            np.testing.assert_array_equal(values, file.read(reader.scene.bands, window=part))
            np.testing.assert_array_equal(valid, file.read_masks(reader.scene.bands, window=part).any(axis=0))
            working = grid.working((0.2, 30))
            values, valid = reader.read(Window(0, 0, min(256, working.height), min(256, working.width)), working)
            assert values.shape == (3, *valid.shape)
            assert 0 < reader.sample()[1].mean() <= 1

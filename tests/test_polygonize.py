from __future__ import annotations

import json
from pathlib import Path

import geopandas as gpd
import numpy as np
import pyproj
import pytest
import rasterio
import shapely
from affine import Affine
from click.testing import CliRunner
from PIL import Image
from scenes import write_raster

from geolabel.cli.polygonize import polygonize as command
from geolabel.errors import GeolabelError, OptionError, OutputError, SceneError
from geolabel.extraction.polygonize import polygonize
from geolabel.extraction.vectorize import vectorize
from geolabel.io.columns import LANDSLIDE_COLUMNS
from geolabel.io.write.rasters import write_cog
from geolabel.masks import FULL, OUTSIDE
from geolabel.mosaic import Layers
from geolabel.parsing import Measure
from geolabel.scene import Grid
from geolabel.tiles import BlockGrid

PLACE = Affine(0.5, 0, 400000, 0, -0.5, 3000000)


@pytest.fixture
def mask():
    """An object of 12 px, and one of 8 px around a hole of 1 px."""
    mask = np.zeros((20, 30), np.uint8)
    mask[2:5, 3:7] = 1
    mask[10:13, 20:23] = 1
    mask[11, 21] = 0
    return mask


class Mosaic:
    """Scores in memory."""

    def __init__(self, whole):
        self.whole = whole

    def scores(self, window):
        return self.whole[window.slices]

    def read(self, window, spans):
        return Layers(self.scores(window))


def write(path, values, crs="EPSG:32648", **profile):
    bands = values[None] if values.ndim == 2 else values
    profile = {"crs": crs, "transform": PLACE, "dtype": values.dtype, "nodata": None} | profile
    scale = profile.pop("scale", None)
    with rasterio.open(
        path, "w", driver="GTiff", count=len(bands), height=bands.shape[1], width=bands.shape[2], **profile
    ) as file:
        file.write(bands)
        if scale:
            file.scales = (scale,)
    return path


def expected(mask):
    boxes = [shapely.box(400001.5, 2999997.5, 400003.5, 2999999)]
    hole = shapely.box(400010.5, 2999994, 400011, 2999994.5)
    boxes.append(shapely.box(400010, 2999993.5, 400011.5, 2999995).difference(hole))
    return boxes


def assert_found(found, mask):
    assert len(found) == 2
    for polygon, box in zip(found.geometry, expected(mask), strict=True):
        assert polygon.equals(box)


@pytest.mark.parametrize(
    ("change", "profile"),
    [
        (lambda mask: mask, {}),
        (lambda mask: mask * 255, {}),
        (lambda mask: mask * 255, {"nodata": 0}),
        (lambda mask: mask.astype(np.int16) * np.arange(1, 31, dtype=np.int16), {"nodata": -1}),  # labels
        (lambda mask: mask.astype(np.uint32) * 70000, {}),
        (lambda mask: mask * np.float32(0.5), {}),
        (lambda mask: mask * np.float32(0.8) + np.float32(0.1), {}),
        (lambda mask: np.where(mask, 0.8, np.nan).astype(np.float64), {}),
        (lambda mask: np.where(mask, 0.8, -9999).astype(np.float32), {"nodata": -9999}),
        (lambda mask: mask * np.uint8(200), {"scale": 1 / FULL, "nodata": 255}),
        (lambda mask: mask.astype(np.uint16) * 9000, {"scale": 1e-4}),
    ],
)
def test_masks_labels_and_scores(tmp_path, mask, change, profile):
    found = polygonize(write(tmp_path / "in.tif", change(mask), **profile))
    assert_found(found, mask)
    assert found.crs == pyproj.CRS("EPSG:32648")
    assert list(found.columns) == [*LANDSLIDE_COLUMNS, "geometry"]


def test_scores_are_kept_and_masks_have_none(tmp_path, mask):
    scores = polygonize(write(tmp_path / "scores.tif", mask * np.float32(0.8)))
    assert scores["score_mean"].tolist() == pytest.approx([0.8, 0.8], abs=0.5 / FULL)
    assert polygonize(write(tmp_path / "mask.tif", mask))["score_mean"].isna().all()


def test_a_threshold_cuts_exactly(tmp_path):
    # of two values that quantise alike, one is below the threshold
    values = np.array([[0.3, 0, np.nextafter(np.float32(0.3), np.float32(0)), 0, 0.9]], np.float32)
    found = polygonize(write(tmp_path / "scores.tif", values), threshold=0.3)
    assert found.geometry.bounds["minx"].tolist() == [400000, 400002]


@pytest.mark.parametrize("nodata", [None, OUTSIDE])
def test_own_scores_give_the_same_polygons_again(tmp_path, nodata):
    scores = np.random.default_rng(0).integers(0, 255 if nodata is None else 256, (40, 50), np.uint8)
    grid = Grid(pyproj.CRS("EPSG:32648"), PLACE, 40, 50)
    write_cog(tmp_path / "scores.tif", [(grid.window, scores)], grid, nodata=nodata, kind="score")
    for threshold, level in ((0.5, 127), (0.3, 77)):
        again = polygonize(tmp_path / "scores.tif", threshold=threshold, max_hole=Measure(3, "px"))
        first = vectorize(Mosaic(scores), grid, BlockGrid(40, 50, 16), threshold=level, max_hole_px=3)
        assert again.geometry.equals(first.geometry)
        assert again["score_mean"].equals(first["score_mean"])


def test_limits_count_square_metres_and_pixels(tmp_path, mask):
    path = write(tmp_path / "mask.tif", mask)
    assert len(polygonize(path, min_area=Measure(2.5, "m2"))) == 1  # 12 px are 3 m2, 8 px are 2 m2
    assert len(polygonize(path, min_area=Measure(8, "px"))) == 2
    filled = polygonize(path, max_hole=Measure(0.3, "m2"))
    assert filled["area_m2"].tolist() == pytest.approx([3, 2.25], rel=1e-3)


def test_background_that_a_mask_calls_nodata_may_be_a_hole(tmp_path, mask):
    path = write(tmp_path / "mask.tif", mask * np.uint8(255), nodata=0)
    assert polygonize(path, max_hole=Measure(1, "px"))["area_m2"].tolist() == pytest.approx([3, 2.25], rel=1e-3)


def test_a_picture_without_crs(tmp_path, mask):
    Image.fromarray(mask * 255).save(tmp_path / "mask.png")
    found = polygonize(tmp_path / "mask.png", gsd=2)
    assert found.crs is None
    assert found["area_m2"].tolist() == [48, 32]
    assert found["lon"].isna().all()
    with pytest.raises(SceneError, match="--gsd"):
        polygonize(tmp_path / "mask.png")


def test_any_band(tmp_path, mask):
    path = write(tmp_path / "stack.tif", np.stack([np.zeros_like(mask), mask]))
    assert len(polygonize(path)) == 0
    assert_found(polygonize(path, band=2), mask)
    with pytest.raises(SceneError, match="no band 3"):
        polygonize(path, band=3)


@pytest.mark.parametrize(
    ("value", "threshold", "error", "message"),
    [
        (3.7, 0.5, SceneError, "holds 3.7, but scores are between 0 and 1"),
        (-1.0, 0.5, SceneError, "holds -1, but scores"),
        (0.7, 2.0, OptionError, "threshold 2: .* holds scores, so give 0 to 1"),
        (0.7, 0.0, OptionError, "threshold 0"),
    ],
)
def test_refuses_what_is_no_score(tmp_path, mask, value, threshold, error, message):
    path = write(tmp_path / "scores.tif", mask * np.float32(value))
    with pytest.raises(error, match=message):
        polygonize(path, threshold=threshold, out=tmp_path / "out.gpkg")
    assert [file.name for file in tmp_path.iterdir()] == ["scores.tif"]


def test_refuses_to_overwrite_unless_told(tmp_path, mask):
    path, out = write(tmp_path / "mask.tif", mask), tmp_path / "out.gpkg"
    polygonize(path, out=out)
    first = out.read_bytes()
    with pytest.raises(OutputError, match="--overwrite"):
        polygonize(path, out=out)
    polygonize(path, out=out, overwrite=True, block_size=3)
    assert out.read_bytes() == first


def test_the_command_writes_a_geopackage(tmp_path, mask):
    path, out = write(tmp_path / "mask.tif", mask), tmp_path / "out.gpkg"
    arguments = [str(path), "--out", str(out), "--min-area", "1px", "--max-hole", "0px", "--simplify", "0px", "--json"]
    result = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    assert json.loads(result.stdout)["landslides"] == 2
    assert_found(gpd.read_file(out, layer="landslides"), mask)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["--min-area", "400"], 2), (["--min-area", "-4m2"], 2), (["--smooth", "4m2"], 2), (["--band", "0"], 2)],
)
def test_the_command_refuses_measures_without_units(tmp_path, mask, arguments, code):
    path = write(tmp_path / "mask.tif", mask)
    result = CliRunner().invoke(command, [str(path), "--out", str(tmp_path / "x.gpkg"), *arguments])
    assert result.exit_code == code


def test_the_command_needs_one_output(tmp_path, mask):
    path = str(write(tmp_path / "mask.tif", mask))
    for arguments in ([path], [path, "a.gpkg", "--out", "b.gpkg"]):
        assert isinstance(CliRunner().invoke(command, arguments).exception, GeolabelError)


def picture(path: Path, bands, **profile) -> Path:
    return write_raster(path, bands, **profile)


def test_a_picture_is_refused_unless_a_band_is_named(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (4, 40, 50), dtype=np.uint8)
    for count in (3, 4):
        path = picture(tmp_path / "scene.tif", noise[:count])
        with pytest.raises(SceneError, match=r"is an image of 3 bands: .*geolabel extract detects"):
            polygonize(path)
    noise[1] = noise[1] > 200
    assert len(polygonize(picture(tmp_path / "scene.tif", noise[:3]), band=2))


def test_a_mask_that_was_saved_in_colours_is_a_mask(tmp_path: Path) -> None:
    mask = np.zeros((40, 50), np.uint8)
    mask[10:30, 10:40] = 255
    for bands in ([mask] * 3, [*[mask] * 3, np.full_like(mask, 255)], [mask, np.full_like(mask, 255)]):
        path = picture(tmp_path / "mask.tif", bands, photometric="rgb" if len(bands) > 2 else "minisblack")
        assert polygonize(path)["area_m2"].round().tolist() == [150.0]


def test_what_is_probably_no_mask_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    grey = np.random.default_rng(0).integers(1, 255, (1, 40, 50), dtype=np.uint8)
    polygonize(picture(tmp_path / "grey.tif", grey))
    assert "a grey image is not a mask" in caplog.text
    scores = np.random.default_rng(0).random((3, 40, 50), dtype=np.float32)
    polygonize(picture(tmp_path / "scores.tif", scores))
    assert "has 3 bands: band 1 is used" in caplog.text


# Several classes


def named(found: gpd.GeoDataFrame) -> list[tuple[str, float]]:
    return [(name, round(area * 4)) for name, area in zip(found["class"], found.geometry.area, strict=True)]


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    """Values 1 and 2 side by side, 3 apart, and names for all of them."""
    values = np.zeros((20, 30), np.uint8)
    values[2:6, 2:6], values[2:6, 6:9], values[10:12, 2:4] = 1, 2, 3
    path = write(tmp_path / "labels.tif", values)
    with rasterio.open(path, "r+") as file:
        file.update_tags(1, class_0="background", class_1="slide", class_2="fall", class_3="road")
    return path


def test_labels_that_the_file_names_are_classes(labels: Path) -> None:
    assert named(polygonize(labels)) == [("slide", 16), ("fall", 12), ("road", 4)]
    assert named(polygonize(labels, classes=["fall", "road"])) == [("fall", 12), ("road", 4)]
    assert named(polygonize(labels, threshold=2)) == [("fall", 12), ("road", 4)]
    with pytest.raises(OptionError, match=r"called 'rode': did you mean road[?] There are slide, fall, road"):
        polygonize(labels, classes=["rode"])


def test_bands_of_scores_are_classes(tmp_path: Path) -> None:
    scores = np.zeros((2, 20, 30), np.uint8)
    scores[0, 2:6, 2:8], scores[1, 2:6, 5:9], scores[1, 10:12, 2:4] = 200, 220, 150
    scores[:, 19] = OUTSIDE
    grid = Grid(pyproj.CRS("EPSG:32648"), PLACE, 20, 30)
    blocks = [(window, scores[:, *window.slices]) for window in BlockGrid(20, 30, 7)]
    path = tmp_path / "scores.tif"
    write_cog(path, blocks, grid, nodata=OUTSIDE, kind="score", classes=("slide", "fall"))
    with rasterio.open(path) as file:
        assert file.descriptions == ("slide", "fall")
        assert np.array_equal(file.read(), scores)
    found = polygonize(path)
    assert named(found) == [("slide", 12), ("fall", 16), ("fall", 4)]
    assert found["score_max"].tolist() == pytest.approx([200 / FULL, 220 / FULL, 150 / FULL])
    assert named(polygonize(path, classes=["slide"])) == named(polygonize(path, band=1)) == [("slide", 24)]
    assert named(polygonize(path, block_size=5)) == named(found)


def test_the_command_finds_the_classes_that_are_asked_for(tmp_path: Path, labels: Path) -> None:
    out = tmp_path / "out.gpkg"
    arguments = [str(labels), "--out", str(out), "--min-area", "1px", "--class", "road", "--class", "slide", "--json"]
    result = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert json.loads(result.stdout)["landslides"] == 2
    assert set(gpd.read_file(out, layer="landslides")["class"]) == {"slide", "road"}

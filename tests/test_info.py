from __future__ import annotations

import json

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from click.testing import CliRunner
from PIL import Image
from scipy import stats

from geolabel.cli.info import info
from geolabel.errors import OptionError, OutputError, SceneError, VectorError
from geolabel.models import loading
from geolabel.review.summary import density, fit_power_law


@pytest.fixture
def scene(tmp_path):
    bands = np.arange(4 * 40 * 50, dtype=np.uint16).reshape(4, 40, 50)
    bands[:, :10] = 65535
    path = tmp_path / "scene.tif"
    transform = Affine(0.05, 0, 500_000, 0, -0.05, 5_000_000)
    size = {"count": 4, "height": 40, "width": 50}
    with rasterio.open(
        path, "w", driver="GTiff", dtype="uint16", crs="EPSG:32632", transform=transform, nodata=65535, **size
    ) as file:
        file.write(bands)
    return str(path)


def run(*arguments):
    return CliRunner().invoke(info, arguments, catch_exceptions=False)


def test_info_says_what_was_understood(scene):
    found = json.loads(run(scene, "--json").stdout)
    assert (found["width"], found["height"], found["dtype"], found["band_count"]) == (50, 40, "uint16", 4)
    assert found["bands"] == [1, 2, 3]
    assert found["gsd_m"] == pytest.approx(0.05, rel=1e-3)
    assert found["working_gsd_m"] == pytest.approx(0.2, rel=0.05)
    assert (found["working_width"], found["working_height"]) == (13, 10)
    assert found["valid_share"] == 0.75
    assert found["nodata"] == [65535] * 3
    assert found["crs"] == "WGS 84 / UTM zone 32N"
    assert "first is often blue" in found["warnings"][0]


def test_what_was_guessed_is_said_on_stderr(scene):
    assert "choose with --bands" in run(scene).stderr
    assert run(scene, "-b", "3,2,1").stderr == ""
    assert run(scene, "-q").stderr == ""


def test_options_reach_the_reader(scene):
    found = json.loads(
        run(scene, "--json", "-b", "4", "--nodata", "nan", "--stretch", "5,500", "--working-gsd", "0.1").stdout
    )
    assert found["bands"] == [4, 4, 4]
    assert found["valid_share"] == 1
    assert found["nodata"] == ["nan"] * 3
    assert (found["stretch"], found["stretch_low"], found["stretch_high"]) == ("5,500", [5] * 3, [500] * 3)
    assert found["working_width"] == 25


def test_the_text_is_plain(scene):
    lines = dict(line.split(maxsplit=1) for line in run(scene, "-q").stdout.splitlines() if " " not in line[:8].strip())
    assert lines["width"] == "50"
    assert lines["nodata"] == "65535, 65535, 65535"
    assert lines["mask"] == "no"
    assert lines["warnings"].startswith("4 bands")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["--working-gsd", "0"], OptionError, "positive number of metres"),
        (["--stretch", "wide"], OptionError, "give percentiles"),
        (["--gsd", "0.5"], SceneError, "leave out --gsd"),
        (["--bands", "1,2"], OptionError, "one band or three"),
    ],
)
def test_what_cannot_work_says_why(scene, arguments, error, message):
    with pytest.raises(error, match=message):
        run(scene, *arguments)


def test_the_working_grid_is_that_of_the_bundled_networks():
    recipes = [loading.recipe(role, "bundled", device="cpu") for role in ("localizer", "segmenter")]
    parts = [loading.load(recipe) for recipe in recipes]
    finest, coarsest = loading.bundled_gsd_range()
    assert finest == max(part.gsd_range[0] for part in parts)
    assert coarsest == min(part.gsd_range[1] for part in parts)


# inventories


def inventory(path, size, status=None):
    """Squares of given areas in m2, 1 km apart on the equator of a metric CRS."""
    side = np.sqrt(size)
    shapes = [shapely.box(1000 * k, 0, 1000 * k + s, s) for k, s in enumerate(side)]
    values = {"class": ["flow" if k % 2 else "fall" for k in range(len(size))]}
    values |= {} if status is None else {"status": status}
    gpd.GeoDataFrame(values, geometry=shapes, crs="EPSG:6933").to_file(path, driver="GPKG")
    return str(path)


def law_of(count, exponent, low=100.0, seed=3):
    """Areas by inversion of the law: a = low (1 - u) ** (-1 / (exponent - 1))."""
    return low * (1 - np.random.default_rng(seed).random(count)) ** (-1 / (exponent - 1))


def test_an_inventory_is_counted_by_layer_class_and_review(tmp_path):
    path = inventory(tmp_path / "a.gpkg", [100.0, 400.0, 900.0], ["accepted", "rejected", "accepted"])
    found = json.loads(run(path, "--json").stdout)
    assert found["layers"]["landslides"] == {"count": 2, "area_m2": pytest.approx(1000, rel=1e-4)}
    assert found["layers"]["rejected"] == {"count": 1, "area_m2": pytest.approx(400, rel=1e-4)}
    assert found["classes"] == {"fall": found["layers"]["landslides"]}
    assert {name: one["count"] for name, one in found["states"].items()} == {"accepted": 2, "rejected": 1}
    assert found["area_quartiles_m2"][2] == pytest.approx(500, rel=1e-4)
    assert found["power_law"] is None
    assert "not fitted" in run(path).stdout


def test_the_exponent_and_minimum_of_a_power_law_are_found():
    size = np.concatenate([law_of(600, 2.4), np.random.default_rng(4).uniform(10, 100, 200)])
    law = fit_power_law(size)
    assert law.exponent == pytest.approx(2.4, abs=3 * law.error)
    assert 80 < law.min_area_m2 < 160
    assert law.plausible
    # eq. 3.1 and 3.2 by hand, above the minimum that was found
    tail = size[size >= law.min_area_m2]
    by_hand = 1 + len(tail) / np.log(tail / law.min_area_m2).sum()
    assert (law.exponent, law.error) == pytest.approx((by_hand, (by_hand - 1) / np.sqrt(len(tail))))
    assert law == fit_power_law(size), "the same again"


def test_the_distance_is_that_of_kolmogorov_and_smirnov():
    size = law_of(80, 2.2)
    law = fit_power_law(size)
    tail = size[size >= law.min_area_m2]
    expected = stats.kstest(tail, lambda x: 1 - (x / law.min_area_m2) ** (1 - law.exponent)).statistic
    assert law.distance == pytest.approx(expected)


def test_what_is_no_power_law_is_ruled_out():
    # equal shares from 100 to 200 m2: 400 areas, of which no tail of half or more follows a law
    law = fit_power_law(np.concatenate([np.linspace(100, 200, 400), np.full(60, 210.0)]))
    assert not law.plausible


def test_few_landslides_and_equal_ones_have_no_power_law():
    assert fit_power_law(law_of(49, 2.4)) is None
    assert fit_power_law(np.full(200, 50.0)) is None


def test_the_density_is_count_over_width():
    centre, count = density(np.array([100.0, 100.0, 1000.0]))
    width = 100 * (10 ** (1 / 6) - 1)
    assert centre == pytest.approx([100 * 10 ** (1 / 12), 1000 * 10 ** (1 / 12)])
    assert count == pytest.approx([2 / width, 0.1 / width])


def test_the_plot_is_drawn_and_the_same_again(tmp_path):
    path = inventory(tmp_path / "a.gpkg", law_of(60, 2.4))
    for kind in ("png", "svg", "pdf"):
        assert "exponent" in run(path, "--plot", str(tmp_path / f"a.{kind}")).stdout
        run(path, "--plot", str(tmp_path / f"b.{kind}"))
        assert (tmp_path / f"a.{kind}").read_bytes() == (tmp_path / f"b.{kind}").read_bytes()
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.size == (780, 585)
    with pytest.raises(OutputError, match=r"a\.png"):
        run(path, "--plot", str(tmp_path / "a.png"))


def test_a_name_is_no_formula(tmp_path):
    path = inventory(tmp_path / "a$\\frac$.gpkg", [100.0])
    run(path, "--plot", str(tmp_path / "a.png"))
    assert (tmp_path / "a.png").exists()


def test_options_of_the_other_kind_of_file_are_refused(scene, tmp_path):
    path = inventory(tmp_path / "a.gpkg", [100.0])
    with pytest.raises(OptionError, match="--bands: an option of scenes"):
        run(path, "--bands", "1,2,3")
    with pytest.raises(OptionError, match="--plot: an option of inventories"):
        run(scene, "--plot", str(tmp_path / "a.png"))


def test_segments_are_no_landslides(tmp_path):
    outlines = gpd.GeoDataFrame({"id": [1]}, geometry=[shapely.box(0, 0, 9, 9)], crs="EPSG:32648")
    outlines.to_file(tmp_path / "segments.gpkg", layer="segments", driver="GPKG")
    with pytest.raises(VectorError, match="holds segments, but no landslides"):
        run(str(tmp_path / "segments.gpkg"))


def test_overwrite_without_a_plot_is_refused(tmp_path):
    outlines = gpd.GeoDataFrame({"id": [1]}, geometry=[shapely.box(0, 0, 9, 9)], crs="EPSG:32648")
    outlines.to_file(tmp_path / "slides.gpkg", layer="landslides", driver="GPKG")
    with pytest.raises(OptionError, match="--overwrite replaces the plot"):
        run(str(tmp_path / "slides.gpkg"), "--overwrite")

from __future__ import annotations

import json

import numpy as np
import pytest
import rasterio
from affine import Affine
from click.testing import CliRunner

from geolabel.cli.info import info
from geolabel.errors import OptionError, SceneError
from geolabel.models import loading


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
        (["--gsd", "0.5"], SceneError, "leave --gsd"),
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

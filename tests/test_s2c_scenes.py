"""S2C over scenes: peaks of the blended activation, the masks they ask for, and which of these count."""

from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import rasterio
from affine import Affine
from skimage.feature import peak_local_max

from geolabel.engine import worker
from geolabel.errors import OptionError
from geolabel.extraction import request
from geolabel.extraction.extract import extract
from geolabel.extraction.request import Networks, Parameters, Reading
from geolabel.methods import s2c
from geolabel.parsing import Measure
from geolabel.testing import FakeLocalizer, FakeSegmenter, brightness

UTM = Affine(0.5, 0, 500_000, 0, -0.5, 3_000_000)
HEIGHT, WIDTH = 200, 260
EXACT = {name: Measure(0, "px") for name in ("min_area", "max_hole", "simplify", "smooth")}
BUMPS = ((50, 60), (50, 100), (150, 128), (150, 190))
"""Centres of two pairs of hills; the first pair shares a slope."""


def relief() -> np.ndarray:
    rows, cols = np.mgrid[:HEIGHT, :WIDTH]
    hills = [np.exp(-((rows - r) ** 2 + (cols - c) ** 2) / (2 * 15**2)) for r, c in BUMPS]
    return (np.clip(np.max(hills, axis=0), 0, 1) * 250).astype(np.uint8)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scene") / "scene.tif"
    options = {"crs": "EPSG:32648", "transform": UTM, "photometric": "rgb", "dtype": "uint8", "count": 3}
    with rasterio.open(path, "w", driver="GTiff", height=HEIGHT, width=WIDTH, **options) as target:
        target.write(np.stack([relief()] * 3))
    return path


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    locate = FakeLocalizer(function=brightness, stride=1, window=16)
    monkeypatch.setattr(request, "check_trained", lambda *_: None)
    monkeypatch.setattr(worker, "_load", lambda of: locate if of.role == "localizer" else FakeSegmenter(radius=8))


def find(scene: Path, out: Path | None = None, **parameters) -> gpd.GeoDataFrame:
    asked = {name: parameters.pop(name) for name in s2c.Scenes.options() if name in parameters}
    method = s2c.Scenes(**{"activation_threshold": 130, "gate": 0.0} | asked)
    numbers = Parameters(method=method, **{"tile_size": 128} | EXACT | parameters)
    reading = Reading(stretch="0,255")
    return extract(scene, out=out, reading=reading, networks=Networks(device="cpu"), parameters=numbers)


def test_every_hill_is_asked_about_by_its_top(scene: Path, tmp_path: Path):
    out = tmp_path / "slides.gpkg"
    found = find(scene, out)
    points = gpd.read_file(out, layer="prompt_points")
    cols, rows = (points.geometry.x - 500_000) / 0.5 - 0.5, (3_000_000 - points.geometry.y) / 0.5 - 0.5
    tops = sorted(zip(rows.round().astype(int), cols.round().astype(int), strict=True))
    distance = s2c.peak_distance(128)
    expected = peak_local_max(relief(), min_distance=distance, threshold_abs=131, exclude_border=False)
    assert len(tops) == len(expected) == 4
    for (row, col), (r, c) in zip(tops, sorted(map(tuple, expected.tolist())), strict=True):
        assert max(abs(row - r), abs(col - c)) <= 2  # tops are flat, and feathers round
    assert len(gpd.read_file(out, layer="prompts").query("geometry.notna()")) <= 4
    assert len(found) == 4


def test_tiles_and_blocks_change_nothing(scene: Path):
    first, *others = (find(scene, block_size=size) for size in (2048, 64, 33))
    for other in others:
        assert other.geometry.tolist() == first.geometry.tolist()


def test_masks_of_little_confidence_do_not_count(scene: Path):
    # a disc of radius 8 on a hill whose slope falls to 0.87 of the top there
    assert len(find(scene, confidence=0.8)) == 4
    assert len(find(scene, confidence=0.99)) == 0


def test_confidence_is_asked_of_masks_as_suits_the_segmenter():
    found = [s2c.Scenes().with_defaults(networks).confidence for networks in (Networks(), Networks(sam="vit_b"))]
    assert found == [0.0, 0.5]
    assert s2c.Scenes(confidence=0.3).with_defaults(Networks()).confidence == 0.3


def test_boxes_are_none_of_its_prompts():
    with pytest.raises(OptionError, match="prompts with points"):
        s2c.Scenes(prompts="box")

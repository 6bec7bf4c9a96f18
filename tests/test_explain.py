"""What decides at one place: the same as in a run over the whole scene."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyproj
import pytest
import rasterio
import rasterio.shutil
import shapely
from affine import Affine
from PIL import Image
from scipy import ndimage

import geolabel
from geolabel.cli.main import run
from geolabel.cli.summary import of_place
from geolabel.engine import worker
from geolabel.errors import OptionError, OutputError
from geolabel.extraction.activation_maps import likely_activation
from geolabel.extraction.plan import Run
from geolabel.extraction.request import ContourMethod, Networks, Parameters, SceneMethod
from geolabel.masks import Masks
from geolabel.parsing import Measure
from geolabel.parts import NoSegmenterRecipe, Recipe
from geolabel.prompts import Prompts
from geolabel.testing import RECIPES, FakeLocalizer
from geolabel.tiles import Window
from geolabel.types import UInt8Array

UTM = Affine(0.5, 0, 500_000, 0, -0.5, 3_000_000)
SIZE = 520, 740
PARAMETERS = Parameters(
    method=ContourMethod(activation_floor=0, gate=0.3),
    tile_size=64,
    overlap=16,
    block_size=100,
    min_area=Measure(0, "px"),
    simplify=Measure(0, "px"),
)


@dataclass(frozen=True)
class BrightSegmenter:
    """Outlines what is bright in the box of a prompt and 4 px around it, the surer the brighter."""

    window: int = 64
    gsd_range: tuple[float, float] = (0.01, 1000.0)

    def __call__(self, images: Sequence[UInt8Array], prompts: Sequence[Prompts]) -> list[Masks]:
        return [self._masks(image, asked) for image, asked in zip(images, prompts, strict=True)]

    def _masks(self, image: UInt8Array, prompts: Prompts) -> Masks:
        scores = np.zeros((len(prompts), *image.shape[:2]), np.uint8)
        for k, extent in enumerate(prompts.extents):
            x0, y0, x1, y1 = (max(0, int(v)) for v in extent + np.asarray([-4, -4, 4, 4]))
            part = image[y0:y1, x0:x1].mean(axis=2)
            scores[k, y0:y1, x0:x1] = np.where(part > 120, np.minimum(part, 250), 20)
        good = np.full(len(prompts), 0.9, np.float32)
        return Masks(scores, good, good, prompts.ids, np.zeros(len(prompts), np.int64))


class DenseMethod(SceneMethod):
    """The activation is the score."""

    name = "cism"
    dense = True

    def recipes(self, networks: Networks) -> tuple[Recipe, Recipe]:
        return RECIPES[0], NoSegmenterRecipe()

    def map_of(self, run: Run, window: Window, class_id: int) -> UInt8Array:
        return likely_activation(run, window, class_id, self.gate)


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Bright ellipses of many sizes on dark ground, without data in the first columns."""
    locate = FakeLocalizer(function=lambda image: image.mean(axis=2) / np.float32(255), stride=4)
    monkeypatch.setattr(worker, "_load", lambda recipe: locate if recipe.role == "localizer" else BrightSegmenter())
    monkeypatch.setattr(Networks, "recipes", lambda self, selection: RECIPES)
    rng = np.random.default_rng(3)
    rows, cols = np.mgrid[: SIZE[0], : SIZE[1]]
    image = ndimage.gaussian_filter(rng.integers(0, 90, SIZE).astype(float), 2)
    for _ in range(45):
        row, col, tall, wide = rng.uniform((0, 30, 5, 5), (*SIZE, 26, 20))
        image[((rows - row) / tall) ** 2 + ((cols - col) / wide) ** 2 < 1] = rng.uniform(130, 240)
    image[:, :20] = 0
    path = tmp_path / "scene.tif"
    shape = {"count": 3, "height": SIZE[0], "width": SIZE[1], "dtype": "uint8"}
    with rasterio.open(path, "w", driver="GTiff", crs="EPSG:32648", transform=UTM, nodata=0, **shape) as target:
        target.write(np.repeat(np.clip(image, 1, 255).astype(np.uint8)[None], 3, axis=0) * (cols >= 20))
    return path


READING = geolabel.Reading(stretch="0,255")


def explain(scene: Path, at: tuple[float, float], parameters: Parameters = PARAMETERS, **given: Any) -> dict[str, Any]:
    return geolabel.explain(scene, at, parameters=parameters, reading=READING, **given)


def inside(shape: shapely.Geometry) -> tuple[float, float]:
    point = shape.representative_point()
    return point.x, point.y


def test_a_place_has_what_it_has_in_a_run_over_the_whole_scene(scene: Path) -> None:
    found = geolabel.extract(scene, parameters=PARAMETERS, reading=READING)
    scores = geolabel.predict(scene, parameters=PARAMETERS, reading=READING)
    small = found[found.area < 900]  # those that are not cut at the frame of the part
    assert len(small) > 15
    for slide in small.sample(5, random_state=0).itertuples():
        x, y = inside(slide.geometry)
        here = explain(scene, (x, y))
        assert here["verdict"] == "landslide"
        assert here["polygon"]["area_m2"] == pytest.approx(slide.area_m2, rel=1e-9)
        assert here["polygon"]["score_mean"] == slide.score_mean
        assert here["polygon"]["activation_mean"] == slide.activation_mean
        assert here["score"] == pytest.approx(float(scores.sel(x=x, y=y, method="nearest")), abs=1e-4)
        assert max(mask["score"] for mask in here["masks"]) == here["score"]


@pytest.fixture
def slide(scene: Path) -> tuple[float, float]:
    found = geolabel.extract(scene, parameters=PARAMETERS, reading=READING)
    shapes = [shape for shape in found.geometry if 100 < shape.area < 600 and shape.bounds[0] > 500_040]
    return inside(shapes[0])


def method(**settings: Any) -> Parameters:
    return replace(PARAMETERS, method=replace(PARAMETERS.method, **settings))


@pytest.mark.parametrize(
    ("parameters", "why"),
    [
        (method(gate=1.0), "the class probability of the region, 0.* is below the gate, 1, so the segmenter is not"),
        (method(activation_threshold=254), "its activation, .* does not exceed the threshold, 254, so"),
        (method(min_quality=0.95), "the segmenter was asked about the region, and none of its masks takes part"),
        (replace(PARAMETERS, score_threshold=0.99), "the masks of prompts nearby leave this place out: their best"),
        (replace(PARAMETERS, min_area=Measure(1e6, "m2")), "smaller than the minimum area, 1e[+]06m2|1000000.*m2"),
    ],
)
def test_the_step_that_decides_is_named(
    scene: Path, slide: tuple[float, float], parameters: Parameters, why: str
) -> None:
    assert explain(scene, slide)["verdict"] == "landslide"
    found = explain(scene, slide, parameters)
    assert found["verdict"] == "nothing"
    assert found["polygon"] is None
    assert re.search(why, found["why"])


def test_a_mask_below_the_activation_floor_is_named(scene: Path, slide: tuple[float, float]) -> None:
    activation = explain(scene, slide)["activation"]
    found = explain(scene, slide, method(activation_floor=activation))
    assert found["why"].endswith(f"does not exceed the activation floor, {activation}")


def test_a_place_without_data_is_named(scene: Path) -> None:
    found = explain(scene, (500_004.2, 2_999_900.2))
    assert (found["valid"], found["verdict"], found["why"]) == (
        False,
        "nothing",
        "nothing: there is no data at this place",
    )


def test_what_evidence_speaks_against_is_a_candidate(scene: Path, slide: tuple[float, float], tmp_path: Path) -> None:
    import geopandas as gpd

    lake = tmp_path / "lake.gpkg"
    gpd.GeoDataFrame(geometry=[shapely.Point(slide).buffer(60)], crs="EPSG:32648").to_file(lake)
    found = explain(scene, slide, exclude=lake)
    assert found["verdict"] == "candidate"
    assert found["why"].endswith("whose reason is 'excluded'")


def test_a_place_in_another_crs_is_the_same(scene: Path, slide: tuple[float, float]) -> None:
    to_degrees = pyproj.Transformer.from_crs("EPSG:32648", "EPSG:4326", always_xy=True)
    found = explain(scene, to_degrees.transform(*slide), at_crs="EPSG:4326")
    here = explain(scene, slide)
    assert {k: v for k, v in found.items() if k not in "xy"} == {k: v for k, v in here.items() if k not in "xy"}


def test_a_place_beside_the_scene_is_refused(scene: Path) -> None:
    with pytest.raises(OptionError, match=r"5,6 is not on .*scene.tif, which covers x 500000 to 500370.*--at-crs"):
        explain(scene, (5, 6))


def test_the_picture_is_the_same_each_time(scene: Path, slide: tuple[float, float], tmp_path: Path) -> None:
    one, other = tmp_path / "one.png", tmp_path / "other.png"
    explain(scene, slide, out=one)
    explain(scene, slide, out=other)
    assert one.read_bytes() == other.read_bytes()
    with Image.open(one) as picture:
        assert min(picture.size) > 800
        assert np.asarray(picture).std() > 20
    with pytest.raises(OutputError, match=r"one\.png exists"):
        explain(scene, slide, out=one)


@pytest.mark.parametrize("role", ["scene", "mask", "dem", "inside a VRT"])
def test_a_picture_replaces_no_input(scene: Path, slide: tuple[float, float], tmp_path: Path, role: str) -> None:
    picture = tmp_path / "a.png"
    with rasterio.open(scene) as opened:
        place = {"crs": opened.crs, "transform": opened.transform, "height": SIZE[0], "width": SIZE[1]}
        values = opened.read()
    count = 3 if role in ("scene", "inside a VRT") else 1
    with rasterio.open(picture, "w", driver="PNG", dtype="uint8", count=count, **place) as target:
        target.write(values[:count])
    held, given = picture.read_bytes(), {"mask": {"reading": geolabel.Reading(mask=picture)}, "dem": {"dem": picture}}
    source = {"scene": picture}.get(role, scene)
    if role == "inside a VRT":
        source = tmp_path / "a.vrt"
        rasterio.shutil.copy(picture, source, driver="VRT")
    with pytest.raises(OutputError, match="is an input of this run"):
        geolabel.explain(source, slide, out=picture, overwrite=True, parameters=PARAMETERS, **given.get(role, {}))
    assert picture.read_bytes() == held


def test_the_command_says_what_decides(
    scene: Path, slide: tuple[float, float], capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--stretch", "0,255", "--tile-size", "64", "--overlap", "16", "--activation-floor", "0"]
    assert run(["explain", str(scene), "--at", f"{slide[0]},{slide[1]}", *options, "-q"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("verdict      landslide\nwhy          a landslide of")
    assert run(["explain", str(scene), "--at", "5,6", "--overwrite", *options]) == 2
    assert "--overwrite replaces the picture: give its name with --out" in capsys.readouterr().err
    assert run(["explain", str(scene), "--at", "5", *options]) == 2
    assert "give two numbers, X,Y" in capsys.readouterr().err


def test_maps_that_are_scores_have_no_threshold_of_the_activation(scene: Path, slide: tuple[float, float]) -> None:
    dense = replace(PARAMETERS, method=DenseMethod())
    found = explain(scene, slide, dense)
    assert found["verdict"] == "landslide"
    assert found["activation"] > 120
    assert (found["activation_threshold"], found["activation_floor"]) == (None, None)
    assert of_place(found, None)["activation"] == f"{found['activation']} of 255"
    assert "threshold 120" in of_place(explain(scene, slide), None)["activation"]

"""Several classes in one run: what each pixel is, and that classes do not get into each other's way."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pyproj
import pytest
import rasterio
import shapely
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st

import geolabel
from geolabel.engine import worker
from geolabel.errors import OptionError
from geolabel.evaluation.evaluate import evaluate
from geolabel.extraction.extract import run_extract
from geolabel.extraction.outputs import Targets
from geolabel.extraction.plan import make_plan
from geolabel.extraction.polygonize import polygonize
from geolabel.extraction.request import ContourMethod, Networks, Parameters, Reading, SceneMethod
from geolabel.extraction.result import Result, merge_overlaps
from geolabel.extraction.scene_groups import SceneGroups
from geolabel.extraction.vectorize import find_objects, vectorize
from geolabel.extraction.work import run_key
from geolabel.io.columns import LANDSLIDE_COLUMNS
from geolabel.io.read.scenes import SceneReader
from geolabel.io.styles import style_of
from geolabel.methods.student import Scenes as Student
from geolabel.mosaic import Layers
from geolabel.parsing import Measure
from geolabel.scene import Grid
from geolabel.testing import RECIPES, FakeLocalizer, FakeSegmenter
from geolabel.tiles import BlockGrid, Window

UTM = Affine(0.5, 0, 350_000, 0, -0.5, 3_450_000)
ZERO = Measure(0, "px")


class Scores:
    """A mosaic of one class held in memory."""

    def __init__(self, scores: Any) -> None:
        self.values = np.asarray(scores, np.uint8)

    def scores(self, window: Window) -> np.ndarray:
        return self.values[window.slices]

    def read(self, window: Window, spans: Any) -> Layers:
        return Layers(self.scores(window))


def grid_of(shape: tuple[int, int]) -> Grid:
    return Grid(None, UTM, *shape, unit_m=1.0)


def table(mosaics: Sequence[Scores], classes: Sequence[str], block: int = 100, **options: Any) -> list[tuple[Any, ...]]:
    shape = mosaics[0].values.shape
    found = vectorize(mosaics, grid_of(shape), BlockGrid(*shape, block), threshold=128, classes=classes, **options)
    return list(
        zip(found["class"], found["area_m2"] * 4, found["score_mean"] * 254, found.geometry.to_wkb(), strict=True)
    )


# Which pixel is of which class


def test_a_pixel_is_of_the_class_that_scores_highest_and_of_the_first_where_it_ties() -> None:
    first = Scores([[200, 200, 200, 0], [0, 0, 0, 0]])
    second = Scores([[0, 200, 220, 220], [0, 0, 130, 0]])
    found = table([first, second], ("slide", "fall"))
    assert [(name, area, score) for name, area, score, _ in found] == [
        ("slide", 2, 200),  # the pixel where both are 200 is of the first
        ("fall", 3, pytest.approx((220 + 220 + 130) / 3)),  # the sums are those of its own scores
    ]
    assert [name for name, *_ in table([second, first], ("fall", "slide"))] == ["slide", "fall"]


def test_objects_of_different_classes_that_touch_stay_apart_at_every_seam() -> None:
    first, second = np.zeros((2, 7, 8), np.uint8)
    first[2:5, :4], second[2:5, 4:] = 200, 200
    second[5:, 1:3] = 200  # below the first, with the same left side as nothing else
    whole = table([Scores(first), Scores(second)], ("a", "b"))
    assert [(name, area) for name, area, *_ in whole] == [("a", 12), ("b", 12), ("b", 4)]
    for block in (1, 2, 3, 5):
        assert table([Scores(first), Scores(second)], ("a", "b"), block) == whole


def test_a_hole_that_holds_an_object_of_another_class_is_no_hole() -> None:
    ring, core = np.zeros((2, 7, 7), np.uint8)
    ring[1:6, 1:6], ring[2:5, 2:5] = 200, 0
    core[3, 3] = 200
    mosaics = [Scores(ring), Scores(core)]
    found = table(mosaics, ("ring", "core"), max_hole_px=9)
    assert [(name, area) for name, area, *_ in found] == [("ring", 16), ("core", 1)]
    # an object that is too small is none, and leaves nothing behind
    assert [(name, area) for name, area, *_ in table(mosaics, ("ring", "core"), max_hole_px=9, min_area_px=2)] == [
        ("ring", 25)
    ]


fields = st.builds(
    lambda seed, classes: (np.random.default_rng(seed).permutation(254 * 6)[: classes * 144] / 6).reshape(
        classes, 12, 12
    ),
    st.integers(0, 2**32 - 1),
    st.integers(2, 4),
)


@given(fields, st.integers(0, 5), st.integers(0, 9), st.integers(1, 12), st.randoms(use_true_random=False))
@settings(max_examples=40, deadline=None)
def test_the_order_of_the_classes_changes_their_names_alone(
    values: np.ndarray, minimum: int, hole: int, block: int, random: Any
) -> None:
    ranks = np.argsort(np.argsort(values, axis=0), axis=0)  # of each pixel: no two classes tie
    scores = (100 + 40 * ranks).astype(np.uint8)
    order = list(range(len(scores)))
    random.shuffle(order)
    names = [f"class {k}" for k in order]
    options = {"min_area_px": minimum, "max_hole_px": hole}
    plain = table([Scores(own) for own in scores], [f"class {k}" for k in range(len(scores))], 12, **options)
    assert table([Scores(scores[k]) for k in order], names, block, **options) == plain


@given(st.integers(0, 2**32 - 1), st.integers(0, 5), st.integers(0, 9))
@settings(max_examples=25, deadline=None)
def test_a_class_without_rivals_is_as_it_is_alone(seed: int, minimum: int, hole: int) -> None:
    scores = np.random.default_rng(seed).integers(0, 256, (12, 12)).astype(np.uint8)
    options = {"min_area_px": minimum, "max_hole_px": hole}
    alone = table([Scores(scores)], ("landslide",), 5, **options)
    outside = np.where(scores == 255, 255, 0)
    assert table([Scores(outside), Scores(scores), Scores(outside)], ("x", "landslide", "y"), 7, **options) == alone


@given(fields, st.integers(0, 12), st.integers(0, 9))
@settings(max_examples=25, deadline=None)
def test_no_two_objects_share_a_pixel(values: np.ndarray, minimum: int, hole: int) -> None:
    mosaics = [Scores(own) for own in values.astype(np.uint8)]
    objects = find_objects(mosaics, BlockGrid(12, 12, 5), threshold=100, min_area_px=minimum, max_hole_px=hole)
    painted = np.zeros((12, 12), int)
    for row, start, stop in zip(objects.spans.row, objects.spans.start, objects.spans.stop, strict=True):
        painted[row, start:stop] += 1
    assert painted.max(initial=0) <= 1
    assert objects.areas.sum() == painted.sum()


# A scene of two classes


def two(image: np.ndarray) -> np.ndarray:
    """Landslides are bright in red, rockfalls in blue."""
    return np.stack([image[..., 0] > 180, image[..., 2] > 180]).astype(np.float32)


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    image = np.full((3, 160, 200), 40, np.uint8)
    image[0, 20:60, 30:80] = 230  # a landslide over the seams of the blocks
    image[2, 20:60, 80:120] = 230  # a rockfall that touches it
    image[2, 100:140, 20:60] = 230
    path = tmp_path / "scene.tif"
    profile = {"driver": "GTiff", "dtype": "uint8", "count": 3, "height": 160, "width": 200, "photometric": "rgb"}
    with rasterio.open(path, "w", crs="EPSG:32648", transform=UTM, **profile) as target:
        target.write(image)
    return path


def know(monkeypatch: pytest.MonkeyPatch, *classes: str) -> None:
    locate = FakeLocalizer(function=two, classes=classes, stride=1)
    segment = FakeSegmenter()
    monkeypatch.setattr(worker, "_load", lambda recipe: locate if recipe.role == "localizer" else segment)


def run(scene: Path, out: Path | None = None, **parameters: Any) -> Result:
    options = {"tile_size": 128, "block_size": 64, "simplify": ZERO, "min_area": ZERO, "max_hole": ZERO}
    plan = make_plan(SceneReader(scene), *RECIPES, Parameters(**options | parameters), stretch="0,255")
    score, mask = (None, None) if out is None else (out.with_suffix(".score.tif"), out.with_suffix(".mask.tif"))
    return run_extract(SceneGroups.of(plan), Targets.of(out, score, mask, overwrite=True))


def found_in(found: Result) -> list[tuple[str, tuple[float, ...]]]:
    """Class and bounds in pixels of every polygon."""
    shapes = found.landslides.geometry.affine_transform((~UTM).to_shapely())
    return [(name, shape.bounds) for name, shape in zip(found.landslides["class"], shapes, strict=True)]


BOTH = [
    ("landslide", (30, 20, 80, 60)),
    ("rockfall", (80, 20, 120, 60)),
    ("rockfall", (20, 100, 60, 140)),
]


@pytest.mark.parametrize("method", [ContourMethod(), Student(student="student.safetensors")])
def test_a_run_finds_all_classes_that_its_network_knows(
    scene: Path, method: SceneMethod, monkeypatch: pytest.MonkeyPatch
) -> None:
    know(monkeypatch, "landslide", "rockfall")
    found = run(scene, method=method)
    assert found_in(found) == BOTH
    assert set(found.parts[0].prompts.class_ids.tolist()) == ({0, 1} if not method.dense else set())
    assert found.figures()["classes"] == {"rockfall": 2, "landslide": 1}


@pytest.mark.parametrize("method", [ContourMethod(), Student(student="student.safetensors")])
def test_a_class_that_is_chosen_is_found_as_if_there_were_no_other(
    scene: Path, method: SceneMethod, monkeypatch: pytest.MonkeyPatch
) -> None:
    know(monkeypatch, "landslide", "rockfall")
    assert found_in(run(scene, method=method, class_names=("rockfall",))) == BOTH[1:]
    assert found_in(run(scene, method=method, class_names=("landslide",))) == BOTH[:1]
    assert found_in(run(scene, method=method, class_names=("rockfall", "landslide"))) == BOTH


def test_a_class_that_no_network_knows_is_an_error_that_lists_those_it_does(
    scene: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    know(monkeypatch, "landslide", "rockfall")
    with pytest.raises(OptionError, match=r"'rockfal': did you mean rockfall[?] There are landslide, rockfall"):
        run(scene, class_names=("rockfal",))


@pytest.mark.parametrize("method", [ContourMethod(), Student(student="student.safetensors")])
def test_rasters_have_a_band_or_a_label_for_each_class(
    scene: Path, tmp_path: Path, method: SceneMethod, monkeypatch: pytest.MonkeyPatch
) -> None:
    know(monkeypatch, "landslide", "rockfall")
    run(scene, tmp_path / "slides.gpkg", method=method)
    with rasterio.open(tmp_path / "slides.score.tif") as written:
        assert written.descriptions == ("landslide", "rockfall")
        landslide, rockfall = written.read() >= 127
    with rasterio.open(tmp_path / "slides.mask.tif") as written:
        labels, tags = written.read(1), written.tags(1)
    assert (tags["class_1"], tags["class_2"]) == ("landslide", "rockfall")
    for row, col, value in ((40, 50, 1), (40, 100, 2), (120, 40, 2), (80, 150, 0)):
        assert labels[row, col] == value
        assert (landslide[row, col], rockfall[row, col]) == (value == 1, value == 2)
    assert polygonize(tmp_path / "slides.score.tif")["class"].tolist() == [name for name, _ in BOTH]
    assert evaluate(tmp_path / "slides.gpkg", tmp_path / "slides.mask.tif").as_dict()["mean"]["iou"] == pytest.approx(1)


@pytest.mark.parametrize("compute", [True, False])
def test_predict_has_a_band_for_each_class(
    scene: Path, tmp_path: Path, compute: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    know(monkeypatch, "landslide", "rockfall")
    monkeypatch.setattr(Networks, "recipes", lambda *_: RECIPES)
    given: dict[str, Any] = {
        "reading": geolabel.Reading(stretch="0,255"),
        "parameters": Parameters(method=ContourMethod(activation_floor=0), tile_size=128, block_size=64),
    }
    scores = geolabel.predict(scene, compute=compute, **given)
    assert scores["band"].values.tolist() == ["landslide", "rockfall"]
    assert scores.rio.crs == "EPSG:32648"
    assert scores.sel(band="rockfall").values[40, 100] > 0.5 > scores.sel(band="landslide").values[40, 100]
    assert geolabel.predict(scene, out=tmp_path / "scores.tif", **given).equals(scores.compute())


def test_a_network_of_one_class_writes_the_rasters_it_always_wrote(
    scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    locate = FakeLocalizer(function=lambda image: two(image)[0], stride=1)
    monkeypatch.setattr(worker, "_load", lambda recipe: locate if recipe.role == "localizer" else FakeSegmenter())
    run(scene, tmp_path / "alone.gpkg")
    know(monkeypatch, "landslide", "rockfall")
    run(scene, tmp_path / "chosen.gpkg", class_names=("landslide",))
    for kind in ("score", "mask"):
        written = [(tmp_path / f"{name}.{kind}.tif").read_bytes() for name in ("alone", "chosen")]
        assert written[0] == written[1]
    with rasterio.open(tmp_path / "alone.score.tif") as file:
        assert file.descriptions == ("score",)


def test_polygons_of_two_scenes_that_overlap_are_one_where_they_are_of_one_class() -> None:
    def inventory(name: str, left: float) -> gpd.GeoDataFrame:
        shape = shapely.MultiPolygon([shapely.box(left, 0, left + 10, 10)])
        row = {"id": [1], "class": [name], "area_m2": [100.0], "source": ['["x.tif"]'], "prompts": [None]}
        return gpd.GeoDataFrame(row, geometry=[shape], crs="EPSG:32648")

    crs = pyproj.CRS("EPSG:32648")
    assert len(merge_overlaps([inventory("a", 0), inventory("a", 5)], crs)) == 1
    apart = merge_overlaps([inventory("a", 0), inventory("b", 5)], crs)
    assert apart["class"].tolist() == ["a", "b"]


def test_a_review_keeps_its_classes(scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    know(monkeypatch, "landslide", "rockfall")
    monkeypatch.setattr(Networks, "recipes", lambda *_: RECIPES)
    options: dict[str, Any] = {
        "parameters": Parameters(method=ContourMethod(activation_floor=0), tile_size=128),
        "overwrite": True,
    }
    out, mask = tmp_path / "slides.gpkg", tmp_path / "mask.tif"
    geolabel.extract(scene, out=out, reading=Reading(stretch="0,255"), **options)
    table = gpd.read_file(out, layer="landslides")
    table.loc[table["id"] == 3, ["status", "class"]] = ["accepted", "debris flow"]
    table.to_file(out, layer="landslides", driver="GPKG")
    again = geolabel.extract(
        scene, out=out, reading=Reading(stretch="0,255"), keep_reviewed=out, mask_out=mask, **options
    )
    assert sorted(zip(again["id"], again["class"], strict=True)) == [
        (1, "landslide"),
        (2, "rockfall"),
        (3, "debris flow"),
    ]
    with rasterio.open(mask) as file:
        assert file.tags(1)["class_3"] == "debris flow"
        assert np.bincount(file.read(1).ravel())[1:].tolist() == [40 * 50, 40 * 40, 40 * 40]


def test_classes_have_colours_of_their_own_in_qgis() -> None:
    features = pd.DataFrame({"class": ["rockfall", "landslide", "person's", None], "confidence": [None] * 4})
    qml = style_of("landslides", features, LANDSLIDE_COLUMNS).qml()
    for name in ("'rockfall'", "'landslide'", "'person''s'"):
        assert f"&quot;class&quot; = {name}" in qml
    alone = style_of("landslides", features[:1], LANDSLIDE_COLUMNS).qml()
    assert "class&quot; =" not in alone


@pytest.mark.parametrize("scheduler", ["synchronous", "threads"])
def test_the_scheduler_and_the_blocks_change_nothing(
    scene: Path, tmp_path: Path, scheduler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dask

    know(monkeypatch, "landslide", "rockfall")
    run(scene, tmp_path / "a.gpkg")
    with dask.config.set(scheduler=scheduler):
        run(scene, tmp_path / "b.gpkg", block_size=37)
    for kind in ("score", "mask"):
        written = [(tmp_path / f"{name}.{kind}.tif").read_bytes() for name in ("a", "b")]
        assert written[0] == written[1]
    tables = [gpd.read_file(tmp_path / f"{name}.gpkg", layer="landslides") for name in ("a", "b")]
    assert tables[0].equals(tables[1])


def test_a_run_resumes_with_the_classes_that_it_began_with_alone(scene: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    know(monkeypatch, "landslide", "rockfall")
    keys = []
    for class_names in ((), ("rockfall", "landslide"), ("rockfall",)):
        parameters = Parameters(tile_size=128, class_names=class_names)
        keys.append(run_key([make_plan(SceneReader(scene), *RECIPES, parameters, stretch="0,255")], [None]))
    assert keys[0] == keys[1] != keys[2]

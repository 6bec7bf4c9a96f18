"""The whole run on stand-in networks, whose results are known to the pixel."""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask
import geopandas as gpd
import numpy as np
import pyogrio
import pytest
import rasterio
import rioxarray
import shapely
from affine import Affine
from rasterio.features import rasterize, shapes
from shapely.geometry import shape

import geolabel
from geolabel.adaptation.confidence import plan_around
from geolabel.engine import worker
from geolabel.errors import OptionError, OutputError, SceneError
from geolabel.extraction.extract import run_extract
from geolabel.extraction.outputs import Targets
from geolabel.extraction.plan import make_plan
from geolabel.extraction.predict import run_predict
from geolabel.extraction.request import ContourMethod, Networks, Parameters, SceneMethod
from geolabel.extraction.result import Result
from geolabel.extraction.scene_groups import SceneGroups
from geolabel.io.read.features import read_prompts
from geolabel.io.read.scenes import SceneReader
from geolabel.masks import Masks
from geolabel.methods.student import Scenes as Student
from geolabel.parsing import Measure
from geolabel.parts import LocalizerRecipe, SegmenterRecipe
from geolabel.prompts import Prompts
from geolabel.testing import FakeLocalizer
from geolabel.types import UInt8Array

UTM = Affine(0.5, 0, 500_000, 0, -0.5, 3_000_000)
RECIPES = LocalizerRecipe("stand-in", "0" * 64, batch=4), SegmenterRecipe("stand-in", "0" * 64)


@dataclass(frozen=True)
class BrightSegmenter:
    """Outlines what is bright in the box of a prompt and a few pixels around it."""

    window: int = 128
    gsd_range: tuple[float, float] = (0.01, 1000.0)

    def __call__(self, images: Sequence[UInt8Array], prompts: Sequence[Prompts]) -> list[Masks]:
        return [self._masks(image, asked) for image, asked in zip(images, prompts, strict=True)]

    def _masks(self, image: UInt8Array, prompts: Prompts) -> Masks:
        bright = image.mean(axis=2) > 180
        scores = np.zeros((len(prompts), *bright.shape), np.uint8)
        for k, extent in enumerate(prompts.extents):
            x0, y0, x1, y1 = (max(0, int(v)) for v in extent + np.asarray([-6, -6, 6, 6]))
            scores[k, y0:y1, x0:x1] = np.where(bright[y0:y1, x0:x1], 250, 20)
        good = np.full(len(prompts), 0.9, np.float32)
        return Masks(scores, good, good, prompts.ids, np.zeros(len(prompts), np.int64))


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    locate = FakeLocalizer(function=lambda image: (image.mean(axis=2) > 180).astype(np.float32), stride=4)
    monkeypatch.setattr(worker, "_load", lambda recipe: locate if recipe.role == "localizer" else BrightSegmenter())


def ellipse(size: tuple[int, int], row: float, col: float, height: float, width: float) -> np.ndarray:
    rows, cols = np.mgrid[: size[0], : size[1]]
    return np.asarray(((rows - row) / height) ** 2 + ((cols - col) / width) ** 2 < 1)


def country(size: tuple[int, int] = (300, 420)) -> np.ndarray:
    """Small and large objects, one longer than a tile, one with a hole, two at seams, one at the frame."""
    mask = ellipse(size, 60, 60, 15, 22) | ellipse(size, 130, 128, 20, 14) | ellipse(size, 128, 300, 14, 100)
    mask |= ellipse(size, 240, 40, 45, 30) & ~ellipse(size, 240, 40, 20, 12)
    mask |= ellipse(size, 299, 256, 20, 30)
    return mask


def write(path: Path, mask: np.ndarray, **profile: Any) -> Path:
    noise = np.random.default_rng(0).integers(20, 60, (3, *mask.shape))
    image = np.where(mask, 230, noise).astype(np.uint8)
    image[:, 0, 0] = 0  # the stretch then runs from the darkest to the brightest
    options = {"crs": "EPSG:32648", "transform": UTM, "photometric": "rgb", "tiled": True} | profile
    height, width = mask.shape
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        dtype="uint8",
        count=3,
        height=height,
        width=width,
        blockxsize=64,
        blockysize=64,
        **options,
    ) as target:
        target.write(image)
    return path


def run(
    scene: Any, out: Path | None = None, *, prompts_from: Path | None = None, rasters: bool = False, **parameters: Any
) -> Result:
    options: dict[str, Any] = {
        "tile_size": 128,
        "overlap": 32,
        "block_size": 100,
        "simplify": Measure(0, "px"),
        "min_area": Measure(0, "px"),
        "max_hole": Measure(0, "px"),
    }
    own = {name: parameters.pop(name) for name in ContourMethod.options() if name in parameters}
    parameters["method"] = ContourMethod(**own)
    reader = scene if isinstance(scene, SceneReader) else SceneReader(scene)
    plan = make_plan(reader, *RECIPES, Parameters(**(options | parameters)), stretch="0,255")
    score = out.with_name(out.stem + "_score.tif") if out and rasters else None
    mask = out.with_name(out.stem + "_mask.tif") if out and rasters else None
    return run_extract(SceneGroups.of(plan), Targets.of(out, score, mask, overwrite=True), prompts_from=prompts_from)


def as_mask(found: gpd.GeoDataFrame, size: tuple[int, int], transform: Affine = UTM) -> np.ndarray:
    burnt = rasterize(found.geometry, out_shape=size, transform=transform) if len(found) else np.zeros(size)
    return np.asarray(burnt > 0)


def test_every_object_is_found_whole_and_to_the_pixel(tmp_path: Path) -> None:
    mask = country()
    found = run(write(tmp_path / "scene.tif", mask), tmp_path / "slides.gpkg", rasters=True)
    assert len(found.landslides) == 5
    assert np.array_equal(as_mask(found.landslides, mask.shape), mask)
    with rasterio.open(tmp_path / "slides_mask.tif") as written:
        assert np.array_equal(written.read(1), mask)
    with rasterio.open(tmp_path / "slides_score.tif") as written:
        assert np.array_equal(written.read(1) >= 127, mask)


def test_polygons_are_those_of_the_whole_mask(tmp_path: Path) -> None:
    mask = country()
    found = run(write(tmp_path / "scene.tif", mask))
    whole = [
        shape(geometry) for geometry, value in shapes(mask.astype(np.uint8), connectivity=4, transform=UTM) if value
    ]
    assert len(whole) == len(found.landslides)
    for expected in whole:
        assert sum(expected.equals(polygon) for polygon in found.landslides.geometry) == 1


@pytest.mark.parametrize("block_size", [37, 128, 4096])
def test_no_byte_depends_on_the_block_size(tmp_path: Path, block_size: int) -> None:
    scene = write(tmp_path / "scene.tif", country())
    first = run(scene, tmp_path / "a.gpkg", rasters=True)
    second = run(scene, tmp_path / "b.gpkg", rasters=True, block_size=block_size)
    assert first.landslides.to_wkb().equals(second.landslides.to_wkb())
    assert digest(tmp_path / "a_score.tif") == digest(tmp_path / "b_score.tif")
    assert digest(tmp_path / "a_mask.tif") == digest(tmp_path / "b_mask.tif")


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(("floor", "whole"), [(0, True), (100, False)])
@pytest.mark.parametrize("block_size", [37, 4096])
def test_masks_end_where_activation_is_below_the_floor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, floor: int, whole: bool, block_size: int
) -> None:
    # the segmenter takes all of an object, of which the localizer gives every second stripe 77 of 255
    mask = country()
    left = mask & (np.arange(mask.shape[1]) % 8 < 4)

    def activation(image: np.ndarray) -> np.ndarray:
        return np.where(image[..., 0] == 230, np.where(image[..., 2] == 230, 1.0, 0.3), 0.0).astype(np.float32)

    monkeypatch.setattr(
        worker,
        "_load",
        lambda recipe: (
            FakeLocalizer(function=activation, stride=1) if recipe.role == "localizer" else BrightSegmenter()
        ),
    )
    image = np.where(mask, 230, np.random.default_rng(0).integers(20, 60, (3, *mask.shape))).astype(np.uint8)
    image[2][mask & ~left] = 210
    scene = write(tmp_path / "scene.tif", mask)
    with rasterio.open(scene, "r+") as target:
        target.write(image)
    found = run(scene, activation_floor=floor, block_size=block_size)
    assert np.array_equal(as_mask(found.landslides, mask.shape), mask if whole else left)
    # half of each mask is active: the activation is followed where it says where masks count
    assert (found.landslides["activation_share"] == (0 if whole else 1)).all()


def test_the_same_run_writes_the_same_file(tmp_path: Path) -> None:
    scene = write(tmp_path / "scene.tif", country())
    run(scene, tmp_path / "slides.gpkg")
    before = digest(tmp_path / "slides.gpkg")
    run(scene, tmp_path / "slides.gpkg")
    assert digest(tmp_path / "slides.gpkg") == before


def test_an_object_longer_than_a_tile_is_prompted_tile_by_tile(tmp_path: Path) -> None:
    mask = ellipse((300, 420), 128, 210, 14, 190)
    found = run(write(tmp_path / "scene.tif", mask))
    assert len(found.parts[0].prompts) > 2
    assert (found.parts[0].prompts.boxes[:, 2] - found.parts[0].prompts.boxes[:, 0] <= 128).all()
    assert len(found.landslides) == 1
    assert 2 < found.landslides["n_prompts"].item() <= len(found.parts[0].prompts)  # where masks agree, the first wins
    assert np.array_equal(as_mask(found.landslides, mask.shape), mask)


def test_prompts_do_not_depend_on_tiles(tmp_path: Path) -> None:
    scene = write(tmp_path / "scene.tif", ellipse((300, 420), 150, 200, 30, 40) | ellipse((300, 420), 40, 380, 9, 12))
    reference = run(scene, overlap=60).parts[0].prompts
    for overlap in (0, 24, 63):
        prompts = run(scene, tile_size=128, overlap=overlap).parts[0].prompts
        # cells of the activation lie elsewhere in every grid of tiles; their outline may move by less than a cell
        assert len(prompts) == len(reference) == 2
        assert np.abs(prompts.boxes - reference.boxes).max() <= 4


def test_what_is_not_valid_is_never_landslide(tmp_path: Path) -> None:
    mask = country()
    path = write(tmp_path / "scene.tif", mask, nodata=230)
    with rasterio.open(path, "r+") as target:
        image = target.read()
        image[:, mask] = 231
        image[:, 100:150, :] = 230
        target.write(image)
    found = run(path, tmp_path / "slides.gpkg", rasters=True)
    expected = mask.copy()
    expected[100:150] = False
    assert np.array_equal(as_mask(found.landslides, mask.shape), expected)
    with rasterio.open(tmp_path / "slides_score.tif") as written:
        assert (written.read(1)[100:150] == 255).all()
        assert written.nodata == 255


def test_tiles_without_data_go_to_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def count(images: Sequence[UInt8Array]) -> list[Any]:
        seen.append(len(images))
        return FakeLocalizer()(images)

    locate = FakeLocalizer()
    fake = type(
        "Counting", (), {"classes": locate.classes, "gsd_range": locate.gsd_range, "__call__": lambda _, x: count(x)}
    )()
    monkeypatch.setattr(worker, "_load", lambda recipe: fake if recipe.role == "localizer" else BrightSegmenter())
    path = write(tmp_path / "scene.tif", np.zeros((128, 384), bool), nodata=7)
    with rasterio.open(path, "r+") as target:
        image = target.read()
        image[:, :, 128:] = 7
        target.write(image)
    found = run(path, overlap=0)
    assert sum(seen) == 1
    assert found.tiles["status"].tolist() == ["clear", "nodata", "nodata"]
    assert found.report.tiles_without_data == 2


def test_nothing_found_is_a_file_with_no_features(tmp_path: Path) -> None:
    out = tmp_path / "slides.gpkg"
    found = run(write(tmp_path / "scene.tif", np.zeros((140, 150), bool)), out)
    assert len(found.landslides) == 0
    layers = {name: pyogrio.read_info(out, layer=name)["features"] for name in ("landslides", "prompts", "tiles")}
    assert layers == {"landslides": 0, "prompts": 0, "tiles": 4}
    assert pyogrio.read_info(out, layer="landslides")["geometry_type"] == "MultiPolygon"


def test_attributes_say_what_is_known(tmp_path: Path) -> None:
    found = run(write(tmp_path / "scene.tif", ellipse((200, 200), 100, 100, 20, 40)))
    (row,) = found.landslides.to_dict("records")
    assert row["id"] == 1
    assert row["class"] == "landslide"
    pixels = int(ellipse((200, 200), 100, 100, 20, 40).sum())
    assert row["area_m2"] == pytest.approx(pixels * 0.25, rel=2e-3)
    assert row["length_m"] == pytest.approx(40, rel=0.05)
    assert row["width_m"] == pytest.approx(20, rel=0.05)
    assert row["score_mean"] == row["score_max"] == pytest.approx(250 / 254)
    assert row["predicted_iou"] == row["stability"] == pytest.approx(0.9)
    assert 0.9 < row["activation_mean"] <= 1
    assert row["n_prompts"] == 1
    assert row["gsd_m"] == pytest.approx(0.5, rel=1e-3)
    assert row["source"].endswith("scene.tif")
    assert row["status"] == "unreviewed"


def test_prompts_that_extract_found_give_the_same_landslides_again(tmp_path: Path) -> None:
    mask = ellipse((300, 420), 60, 60, 15, 22) | ellipse((300, 420), 200, 300, 30, 20)
    scene = write(tmp_path / "scene.tif", mask)
    first = run(scene, tmp_path / "first.gpkg")
    again = run(scene, prompts_from=tmp_path / "first.gpkg")
    assert again.landslides.equals(first.landslides)
    assert again.tiles.equals(first.tiles)  # the localizer weighs its own prompts as it did
    assert not again.parts[0].prompts.drawn.any()


def test_drawn_prompts_replace_the_activation(tmp_path: Path) -> None:
    mask = ellipse((300, 420), 60, 60, 15, 22) | ellipse((300, 420), 200, 300, 30, 20)
    scene = write(tmp_path / "scene.tif", mask)
    drawn = gpd.GeoDataFrame(
        {"label": [1]}, geometry=gpd.points_from_xy([500_000 + 300 * 0.5], [3_000_000 - 200 * 0.5]), crs="EPSG:32648"
    )
    drawn.to_file(tmp_path / "drawn.geojson")
    plan_grid = run(scene).parts[0].plan.grid
    assert read_prompts(tmp_path / "drawn.geojson", plan_grid).points[0, 0] == pytest.approx([299.5, 199.5])
    found = run(scene, prompts_from=tmp_path / "drawn.geojson")
    assert len(found.landslides) == 1
    assert as_mask(found.landslides, mask.shape)[200, 300]
    assert found.parts[0].prompts.drawn.all()
    assert set(found.tiles["status"]) == {"unseen"}  # nothing that a person drew is weighed by the localizer


@pytest.mark.parametrize("kind", ["box", "point", "both"])
def test_the_segmenter_gets_what_was_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    given: list[Prompts] = []
    segmenter = BrightSegmenter()

    def remember(images: Sequence[UInt8Array], prompts: Sequence[Prompts]) -> list[Masks]:
        given.extend(prompts)
        return segmenter(images, prompts)

    fake = type(
        "Remembering", (), {"window": 128, "gsd_range": (0.01, 1000.0), "__call__": lambda _, *a: remember(*a)}
    )()
    locate = FakeLocalizer(function=lambda image: (image.mean(axis=2) > 180).astype(np.float32), stride=4)
    monkeypatch.setattr(worker, "_load", lambda recipe: locate if recipe.role == "localizer" else fake)
    found = run(write(tmp_path / "scene.tif", country()), prompts=kind)
    asked = Prompts.concatenate(given)
    assert (asked.has_box == (kind != "point")).all()
    assert (asked.has_point == (kind != "box")).all()
    assert found.parts[0].prompts.has_box.all()  # what is written can be run again either way
    assert found.parts[0].prompts.has_point.all()


def test_the_gate_holds_back_what_is_improbable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    locate = FakeLocalizer(function=lambda image: (image.mean(axis=2) > 180).astype(np.float32) * 0.6, stride=4)
    monkeypatch.setattr(worker, "_load", lambda recipe: locate if recipe.role == "localizer" else BrightSegmenter())
    scene = write(tmp_path / "scene.tif", country())
    assert len(run(scene, gate=0.55).landslides) == 5
    assert len(run(scene, gate=0.65).landslides) == 0


def test_small_objects_and_holes_go_by_their_area(tmp_path: Path) -> None:
    mask = ellipse((200, 200), 60, 60, 4, 4) | ellipse((200, 200), 130, 130, 30, 30) & ~ellipse(
        (200, 200), 130, 130, 5, 5
    )
    scene = write(tmp_path / "scene.tif", mask)
    found = run(scene, min_area=Measure(20, "m2"), max_hole=Measure(100, "px"))
    assert len(found.landslides) == 1
    assert not as_mask(found.landslides, mask.shape)[60, 60]
    assert as_mask(found.landslides, mask.shape)[130, 130]


def test_an_array_and_its_file_give_the_same_landslides(tmp_path: Path) -> None:
    path = write(tmp_path / "scene.tif", country())
    with rioxarray.open_rasterio(path, chunks={"x": 100, "y": 90}) as array:
        found = run(SceneReader(array)).landslides
    expected = run(path).landslides
    assert found.geometry.to_wkb().equals(expected.geometry.to_wkb())


@pytest.mark.parametrize(
    ("crs", "transform"),
    [
        ("EPSG:4326", Affine(5e-6, 0, 103.5, 0, -5e-6, 31.0)),
        ("EPSG:2263", Affine(1.64, 0, 980_000, 0, -1.64, 200_000)),
        ("EPSG:32648", Affine.translation(5e5, 3e6) * Affine.rotation(33) * Affine.scale(0.5, -0.5)),
        ("EPSG:32648", Affine(0.5, 0, 5e5, 0, 0.5, 3e6)),
    ],
)
def test_any_grid(tmp_path: Path, crs: str, transform: Affine) -> None:
    mask = ellipse((300, 420), 150, 200, 30, 60)
    found = run(write(tmp_path / "scene.tif", mask, crs=crs, transform=transform), tmp_path / "slides.gpkg")
    assert len(found.landslides) == 1
    assert found.landslides.crs == crs
    truth = as_mask(found.landslides, mask.shape, transform)
    assert (truth & mask).sum() / (truth | mask).sum() > 0.93
    expected = mask.sum() * np.prod(SceneReader(tmp_path / "scene.tif").scene.grid.pixel_size_m())
    assert found.landslides["area_m2"].item() == pytest.approx(expected, rel=0.05)
    assert gpd.read_file(tmp_path / "slides.gpkg", layer="landslides").geometry.is_valid.all()


@pytest.mark.parametrize("stored", ["south-up", "mirrored", "turned"])
def test_polygons_do_not_depend_on_how_a_scene_is_stored(tmp_path: Path, stored: str) -> None:
    mask = country()
    height, width = mask.shape
    expected = run(write(tmp_path / "scene.tif", mask), tmp_path / "slides.gpkg")
    with rasterio.open(tmp_path / "scene.tif") as file:
        bands, profile = file.read(), file.profile
    way, turned = {
        "south-up": (Affine(1, 0, 0, 0, -1, height), bands[:, ::-1]),
        "mirrored": (Affine(-1, 0, width, 0, 1, 0), bands[:, :, ::-1]),
        "turned": (Affine(0, -1, width, 1, 0, 0), bands.swapaxes(1, 2)[:, ::-1]),
    }[stored]
    size = {"height": turned.shape[1], "width": turned.shape[2], "transform": profile["transform"] * way}
    with rasterio.open(tmp_path / "scene.tif", "w", **profile | size) as file:
        file.write(turned)
    found = run(tmp_path / "scene.tif", tmp_path / "again.gpkg")
    columns = [name for name in expected.landslides.columns if name != "geometry"]
    assert found.landslides[columns].equals(expected.landslides[columns])
    assert found.landslides.geometry.to_wkb().equals(expected.landslides.geometry.to_wkb())


def test_bounds_leave_the_rest_alone(tmp_path: Path) -> None:
    mask = country()
    reader = SceneReader(write(tmp_path / "scene.tif", mask))
    bounds = (500_000.0, 3_000_000 - 50.0, 500_000 + 50.0, 3_000_000.0)
    plan = make_plan(
        reader, *RECIPES, Parameters(tile_size=64, simplify=Measure(0, "px")), bounds=bounds, stretch="0,255"
    )
    assert (plan.grid.height, plan.grid.width) == (100, 100)
    found = run_extract(SceneGroups.of(plan), Targets.of(None))
    assert np.array_equal(as_mask(found.landslides, mask.shape), mask & (np.indices(mask.shape) < 100).all(axis=0))


def broken(path: Path) -> Path:
    """A scene of which some blocks cannot be read."""
    whole = write(path, country(), compress="deflate")
    data = bytearray(whole.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 4000] = b"\xff" * 4000
    whole.write_bytes(data)
    return whole


def test_a_tile_that_cannot_be_read_ends_the_run_or_is_a_gap(tmp_path: Path) -> None:
    scene = broken(tmp_path / "scene.tif")
    out = tmp_path / "slides.gpkg"
    with pytest.raises(SceneError, match=r"scene\.tif cannot be"):
        run(scene, out)
    assert [p.name for p in tmp_path.iterdir()] == ["scene.tif"]
    found = run(scene, out, on_error="skip")
    failed = gpd.read_file(out, layer="tiles").query("status == 'failed'")
    assert len(failed) == found.report.tiles_failed > 0
    assert failed["message"].str.contains("cannot be read").all()
    assert len(found.report.gaps) >= len(failed)


def test_an_output_is_never_half_replaced(tmp_path: Path) -> None:
    scene = write(tmp_path / "scene.tif", country())
    out = tmp_path / "slides.gpkg"
    run(scene, out)
    before = digest(out)
    with pytest.raises(OutputError, match="--overwrite"):
        Targets.of(out)
    with pytest.raises(SceneError):
        run(broken(tmp_path / "broken.tif"), out)
    assert digest(out) == before


def test_outputs_that_share_a_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="share a name"):
        Targets.of(None, tmp_path / "a.tif", tmp_path / "a.tif")


def test_a_tile_larger_than_the_segmenter_sees_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="at most 128 px"):
        run(write(tmp_path / "scene.tif", country()), tile_size=256)


def test_provenance_tells_how_it_was_made(tmp_path: Path) -> None:
    from geolabel.io.write.geopackage import read_provenance

    run(write(tmp_path / "scene.tif", country()), tmp_path / "slides.gpkg")
    record = read_provenance(tmp_path / "slides.gpkg")
    assert record["networks"]["localizer"]["sha256"] == "0" * 64
    assert record["parameters"]["activation_threshold"] == 120
    assert record["parameters"]["min_area"] == "0px"
    assert record["scene"]["size_bytes"] == (tmp_path / "scene.tif").stat().st_size
    assert {"geolabel", "torch", "gdal"} <= set(record["software"])


@pytest.mark.parametrize("scheduler", ["synchronous", "threads"])
def test_the_scheduler_changes_nothing(tmp_path: Path, scheduler: str) -> None:
    scene = write(tmp_path / "scene.tif", country())
    expected = run(scene).landslides
    with dask.config.set(scheduler=scheduler):
        found = run(scene).landslides
    assert expected.geometry.to_wkb().equals(found.geometry.to_wkb())


def test_predict_gives_scores_block_by_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mask = country()
    scene = write(tmp_path / "scene.tif", mask, nodata=7)
    monkeypatch.setattr(Networks, "recipes", lambda self, selection: RECIPES)
    parameters = Parameters(method=ContourMethod(activation_floor=0), tile_size=128, block_size=100)
    scores = geolabel.predict(scene, parameters=parameters, reading=geolabel.Reading(stretch="0,255"))
    assert scores.chunks is not None
    assert scores.chunksizes["x"] == (100, 100, 100, 100, 20)
    assert scores.rio.crs == "EPSG:32648"
    assert scores.rio.transform() == UTM
    assert np.array_equal(scores.values >= 0.5, mask)
    expected = run(scene, tmp_path / "slides.gpkg", rasters=True, block_size=64)
    with rasterio.open(tmp_path / "slides_score.tif") as written:
        assert np.array_equal(np.rint(scores.values * 254), written.read(1))
    with rioxarray.open_rasterio(tmp_path / "slides_score.tif") as opened:
        assert np.array_equal(scores.x, opened.x)
        assert np.array_equal(scores.y, opened.y)
    assert expected.report.masks > 0


def test_the_temporary_folder_of_predict_goes_with_the_array(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Networks, "recipes", lambda self, selection: RECIPES)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temp"))
    (tmp_path / "temp").mkdir()
    scene = write(tmp_path / "scene.tif", country())
    scores = geolabel.predict(scene, parameters=Parameters(tile_size=128), reading=geolabel.Reading(stretch="0,255"))
    assert len(list((tmp_path / "temp").iterdir())) == 1
    part = scores[:50, :50]
    del scores
    gc.collect()
    assert part.values.shape == (50, 50)
    del part
    gc.collect()
    assert not list((tmp_path / "temp").iterdir())


@pytest.mark.parametrize("method", [ContourMethod(activation_floor=0), Student(student="student.safetensors")])
@pytest.mark.parametrize("scheduler", ["synchronous", "threads"])
def test_scores_that_are_computed_later_are_those_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: SceneMethod, scheduler: str
) -> None:
    monkeypatch.setattr(Networks, "recipes", lambda self, selection: RECIPES)
    monkeypatch.setattr(Student, "recipes", lambda *_: RECIPES)
    located: list[Any] = []
    real = worker.localizer
    monkeypatch.setattr(worker, "localizer", lambda recipe: located.append(recipe) or real(recipe))
    scene = rioxarray.open_rasterio(write(tmp_path / "scene.tif", country(), nodata=7), chunks={"x": 64, "y": 64})
    given: dict[str, Any] = {
        "parameters": Parameters(method=method, tile_size=128, block_size=100),
        "reading": geolabel.Reading(stretch="0,255"),
    }
    expected = geolabel.predict(scene, out=tmp_path / "scores.tif", **given)
    located.clear()
    later = geolabel.predict(scene, compute=False, **given)
    located.clear()  # the plan asks what the networks know
    assert later.chunksizes["x"] == (100, 100, 100, 100, 20)
    passes = {key.partition("-")[0] for key in map(str, later.data.dask) if not key.startswith("(")}
    assert {"localize", "merge", "score"} <= passes
    assert {"prompt", "segment"} <= passes or method.dense
    assert not located
    with dask.config.set(scheduler=scheduler):
        found = later.compute()
    with rasterio.open(tmp_path / "scores.tif") as written:
        stored = written.read(1)
    assert np.array_equal(np.where(found.isnull(), 255, np.rint(found.values * 254)), stored)
    assert (stored >= 127).any()
    assert expected.equals(found)
    asked = len(located)
    assert asked > 0
    assert later[:50].compute(scheduler=scheduler).equals(found[:50])
    assert len(located) == asked  # what was found is kept for as long as the array is


def test_predict_refuses_what_contradicts(tmp_path: Path) -> None:
    scene = write(tmp_path / "scene.tif", country())
    with pytest.raises(OptionError, match="compute=False: the networks must run now"):
        geolabel.predict(scene, out=tmp_path / "scores.tif", compute=False)
    with pytest.raises(OptionError, match="keep: without a file"):
        geolabel.predict(scene, keep=True)


def test_predict_writes_the_scores_alone(tmp_path: Path) -> None:
    plan = make_plan(
        SceneReader(write(tmp_path / "scene.tif", country())), *RECIPES, Parameters(tile_size=128), stretch="0,255"
    )
    report = run_predict(SceneGroups.of(plan), Targets.of(None, tmp_path / "scores.tif"))
    assert report.masks > 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scene.tif", "scores.tif"]


@pytest.mark.parametrize("working_gsd", [None, 2.0])
@pytest.mark.parametrize(("pixel", "warned"), [(0.5, False), (2.0, False), (8.0, False), (50.0, True)])
def test_pixels_coarser_than_the_networks_know_are_spoken_of(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    pixel: float,
    warned: bool,
    working_gsd: float | None,
) -> None:
    locate = FakeLocalizer(gsd_range=(0.1, 2.01))
    monkeypatch.setattr(worker, "_load", lambda recipe: locate if recipe.role == "localizer" else BrightSegmenter())
    transform = Affine(pixel, 0, 500_000, 0, -pixel, 3_000_000)
    path = write(tmp_path / "scene.tif", np.zeros((8, 8), bool), transform=transform)
    plan = make_plan(SceneReader(path), *RECIPES, Parameters(), working_gsd=working_gsd)
    assert caplog.text.count("landslides less than") == warned
    everywhere = shapely.box(0, 0, plan.grid.width, plan.grid.height)
    assert plan_around(plan, everywhere, RECIPES).grid.gsd == plan.grid.gsd
    assert caplog.text.count("landslides less than") == warned  # a plan of a part of the scene says nothing again

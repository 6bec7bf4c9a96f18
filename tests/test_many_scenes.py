"""Runs over many scenes on stand-in networks: seams between scenes, other grids, unions, resume."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import dask
import geopandas as gpd
import numpy as np
import pyproj
import pytest
import rasterio
import shapely
from affine import Affine
from rasterio.warp import calculate_default_transform, reproject

import geolabel
from geolabel.cli.main import run as command
from geolabel.engine.run_folder import RunFolderOptions, summarize
from geolabel.errors import OptionError, RunError, SceneError, VectorError
from geolabel.extraction.request import ContourMethod, Networks, Reading
from geolabel.extraction.result import merge_overlaps, overlapping
from geolabel.extraction.work import scenes_of
from geolabel.io.write.geopackage import read_provenance
from geolabel.parsing import Measure
from geolabel.testing import RECIPES
from geolabel.tiles import Window
from geolabel.types import BoolArray

UTM = Affine(0.5, 0, 500_000, 0, -0.5, 3_000_000)
SIZE = 220
NONE = Measure(0, "px")
PARAMETERS = geolabel.Parameters(
    tile_size=64, overlap=16, block_size=100, threads=1, min_area=NONE, max_hole=NONE, simplify=NONE
)
GIVEN: dict[str, Any] = {"reading": Reading(stretch="0,255"), "parameters": PARAMETERS}
QUARTERS = {
    "nw": Window(0, 0, 120, 130),
    "ne": Window(0, 110, 120, 110),
    "sw": Window(120, 0, 100, 130),
    "se": Window(110, 130, 110, 90),
}


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Networks, "recipes", lambda *_: RECIPES)


def country() -> BoolArray:
    """An object over the corner where four scenes meet, one in two of them, one in one, one at the frame."""
    rows, cols = np.mgrid[:SIZE, :SIZE]
    mask = np.hypot(rows - 118, cols - 125) < 33
    mask |= (abs(rows - 30) < 8) & (abs(cols - 120) < 25)
    mask |= (np.hypot(rows - 190, cols - 40) < 12) | (rows > 212) & (cols > 180)
    return np.asarray(mask)


def write(
    path: Path,
    mask: BoolArray,
    window: Window,
    *,
    transform: Affine = UTM,
    crs: str | None = "EPSG:32648",
    **profile: Any,
) -> Path:
    noise = np.random.default_rng(0).integers(20, 60, (3, *mask.shape))
    image = np.where(mask, 230, noise).astype(np.uint8)[:, *window.slices]
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        dtype="uint8",
        count=3,
        height=window.height,
        width=window.width,
        crs=crs,
        transform=transform * Affine.translation(window.col, window.row),
        photometric="rgb",
        **profile,
    ) as target:
        target.write(image)
    return path


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    return write(tmp_path / "whole.tif", country(), Window(0, 0, SIZE, SIZE))


@pytest.fixture
def quarters(tmp_path: Path) -> list[Path]:
    return [write(tmp_path / f"{name}.tif", country(), window) for name, window in QUARTERS.items()]


def names(source: str) -> list[str]:
    return [Path(name).stem for name in json.loads(source)]


def test_scenes_on_one_grid_leave_no_seam(whole: Path, quarters: list[Path], tmp_path: Path) -> None:
    expected = geolabel.extract(whole, out=tmp_path / "a.gpkg", mask_out=tmp_path / "a.tif", **GIVEN)
    found = geolabel.extract(quarters, out=tmp_path / "b.gpkg", mask_out=tmp_path / "b.tif", **GIVEN)
    assert len(found) == 4
    assert found.drop(columns="source").equals(expected.drop(columns="source"))
    assert (tmp_path / "a.tif").read_bytes() == (tmp_path / "b.tif").read_bytes()
    assert expected["source"].unique().tolist() == [str(whole)]
    for layer in ("prompts", "prompt_points", "tiles"):
        assert gpd.read_file(tmp_path / "a.gpkg", layer=layer).equals(gpd.read_file(tmp_path / "b.gpkg", layer=layer))


def test_every_landslide_names_the_scenes_that_show_in_it(quarters: list[Path]) -> None:
    found = geolabel.extract(quarters, **GIVEN)
    assert [sorted(names(source)) for source in found["source"]] == [
        ["ne", "nw"],
        ["ne", "nw", "se", "sw"],
        ["sw"],
        ["se"],
    ]
    assert names(found["source"][1])[0] == "nw"  # in the order given
    turned = geolabel.extract(quarters[::-1], **GIVEN)
    assert turned.geometry.equals(found.geometry)
    assert names(turned["source"][1])[0] == "se"


def test_a_coarser_grid_is_worked_on_as_one_file_is(whole: Path, quarters: list[Path]) -> None:
    coarse = GIVEN | {"reading": Reading(stretch="0,255", working_gsd=0.9)}
    expected, found = geolabel.extract(whole, **coarse), geolabel.extract(quarters, **coarse)
    assert found.drop(columns="source").equals(expected.drop(columns="source"))
    assert len(found) > 2
    assert all(names(source) for source in found["source"])


def test_scores_of_scenes_on_one_grid(whole: Path, quarters: list[Path]) -> None:
    assert geolabel.predict(quarters, **GIVEN).equals(geolabel.predict(whole, **GIVEN))


def shifted(folder: Path, name: str, window: Window, *, pixels: float = 0.5, crs: str = "EPSG:32648") -> Path:
    """The same ground on a grid that lies half a pixel off, or in another CRS."""
    if crs == "EPSG:32648":
        return write(folder / f"{name}.tif", country(), window, transform=UTM * Affine.translation(pixels, 0))
    with rasterio.open(write(folder / f"{name}_there.tif", country(), window)) as source:
        transform, width, height = calculate_default_transform(
            source.crs, crs, source.width, source.height, *source.bounds
        )
        values = np.zeros((3, height, width), np.uint8)
        reproject(
            source.read(),
            values,
            src_transform=source.transform,
            src_crs=source.crs,
            dst_transform=transform,
            dst_crs=crs,
        )
    with rasterio.open(
        folder / f"{name}.tif",
        "w",
        driver="GTiff",
        dtype="uint8",
        count=3,
        height=height,
        width=width,
        crs=crs,
        transform=transform,
        photometric="rgb",
        nodata=0,
    ) as target:
        target.write(values)
    return folder / f"{name}.tif"


def test_scenes_on_other_grids_are_united(tmp_path: Path) -> None:
    left = write(tmp_path / "left.tif", country(), Window(0, 0, SIZE, 130))
    right = shifted(tmp_path, "right", Window(0, 110, SIZE, 110))
    found = geolabel.extract([left, right], out=tmp_path / "slides.gpkg", **GIVEN)
    assert sorted(sorted(names(source)) for source in found["source"]) == [
        ["left"],
        ["left", "right"],
        ["left", "right"],
        ["right"],
    ]
    assert found["id"].tolist() == [1, 2, 3, 4]
    assert found.crs == "EPSG:32648"
    alone = [geolabel.extract(scene, **GIVEN) for scene in (left, right)]
    area = shapely.union_all([*alone[0].geometry, *alone[1].geometry]).area
    assert found["area_m2"].sum() == pytest.approx(area, rel=2e-3)  # geodesic, off the central meridian
    assert found["n_prompts"].sum() == alone[0]["n_prompts"].sum() + alone[1]["n_prompts"].sum()
    boxes, tiles = (gpd.read_file(tmp_path / "slides.gpkg", layer=layer) for layer in ("prompts", "tiles"))
    assert boxes["prompt"].is_unique
    assert tiles["tile"].is_unique
    made = read_provenance(tmp_path / "slides.gpkg")
    assert [part["scene"]["name"] for part in made["parts"]] == [str(left), str(right)]
    assert made["counts"]["landslides"] == 4
    assert made["counts"]["tiles"] == len(tiles)


def test_scenes_of_several_crss_need_one_to_meet_in(tmp_path: Path) -> None:
    left = write(tmp_path / "left.tif", country(), Window(0, 0, SIZE, 130))
    right = shifted(tmp_path, "right", Window(0, 110, SIZE, 110), crs="EPSG:3857")
    with pytest.raises(OptionError, match=r"different CRSs .* --dst-crs"):
        geolabel.extract([left, right], **GIVEN)
    found = geolabel.extract([left, right], dst_crs="EPSG:4326", **GIVEN)
    assert found.crs == "EPSG:4326"
    assert sorted(len(names(source)) for source in found["source"]) == [1, 1, 2, 2]
    assert found.geometry.is_valid.all()
    expected = geolabel.extract([left, shifted(tmp_path, "r", Window(0, 110, SIZE, 110))], **GIVEN)
    assert found["area_m2"].sum() == pytest.approx(expected["area_m2"].sum(), rel=0.05)
    both = found[[len(names(source)) == 2 for source in found["source"]]]
    middle = both.to_crs("EPSG:32648").geometry.iloc[-1].centroid
    assert (middle.x - 500_000) / 0.5 == pytest.approx(125, abs=3)


def test_one_scene_in_another_crs(whole: Path, tmp_path: Path) -> None:
    own = geolabel.extract(whole, **GIVEN)
    found = geolabel.extract(whole, out=tmp_path / "a.gpkg", score_out=tmp_path / "a.tif", dst_crs="EPSG:4326", **GIVEN)
    assert found.crs == "EPSG:4326"
    assert found["source"].tolist() == own["source"].tolist()
    assert found["area_m2"].to_numpy() == pytest.approx(own["area_m2"].to_numpy(), rel=1e-6)
    assert gpd.read_file(tmp_path / "a.gpkg", layer="tiles").crs == "EPSG:4326"
    with rasterio.open(tmp_path / "a.tif") as scores:
        assert scores.crs == "EPSG:32648"


def test_a_stretch_for_each_scene(tmp_path: Path, whole: Path) -> None:
    """A scene that is half as bright is worked on as if it were not."""
    expected = geolabel.extract(whole, parameters=PARAMETERS)
    left = write(tmp_path / "left.tif", country(), Window(0, 0, SIZE, 110))
    right = write(tmp_path / "right.tif", country(), Window(0, 110, SIZE, 110))
    with rasterio.open(right, "r+") as scene:
        scene.write(scene.read() // 2)
    found = geolabel.extract([left, right], parameters=PARAMETERS)
    assert len(found) == len(expected)
    assert found["area_m2"].to_numpy() == pytest.approx(expected["area_m2"].to_numpy(), rel=0.02)


def test_rasters_need_one_grid(tmp_path: Path) -> None:
    scenes = [write(tmp_path / "a.tif", country(), Window(0, 0, 90, 90)), shifted(tmp_path, "b", Window(0, 0, 90, 90))]
    with pytest.raises(OptionError, match="one raster, but the scenes are on 2 grids"):
        geolabel.extract(scenes, score_out=tmp_path / "s.tif", **GIVEN)
    with pytest.raises(OptionError, match="one raster, but the scenes are on 2 grids"):
        geolabel.predict(scenes, **GIVEN)


def test_an_area_leaves_scenes_out(quarters: list[Path], tmp_path: Path) -> None:
    area = tmp_path / "area.gpkg"
    gpd.GeoDataFrame(geometry=[shapely.box(500_000, 2_999_890, 500_040, 2_999_915)], crs="EPSG:32648").to_file(area)
    read = replace(GIVEN["reading"], aoi=area)
    found = geolabel.extract(quarters, **GIVEN | {"reading": read})
    assert [names(source) for source in found["source"]] == [["sw"]]
    bounds = replace(GIVEN["reading"], bounds=(500_000, 2_999_890, 500_040, 2_999_915))
    assert geolabel.extract(quarters, **GIVEN | {"reading": bounds}).geometry.equals(found.geometry)
    away = replace(GIVEN["reading"], bounds=(0.0, 0.0, 1.0, 1.0))
    with pytest.raises(VectorError, match="miss all 4 scenes"):
        geolabel.extract(quarters, **GIVEN | {"reading": away})
    gpd.GeoDataFrame(geometry=[shapely.box(600_000, 10, 600_010, 20)], crs="EPSG:32648").to_file(area)
    with pytest.raises(VectorError, match="misses all 4 scenes"):
        geolabel.extract(quarters, **GIVEN | {"reading": read})


def test_scenes_without_a_place(tmp_path: Path, whole: Path) -> None:
    lost = write(tmp_path / "lost.tif", country(), Window(0, 0, 90, 90), crs=None)
    with pytest.raises(SceneError, match="no CRS"):
        geolabel.extract([whole, lost], **GIVEN)
    with pytest.raises(OptionError, match="EPSG:zzz"):
        geolabel.extract(whole, dst_crs="EPSG:zzz", **GIVEN)
    placed = Reading(stretch="0,255", gsd=0.5)
    with pytest.raises(OptionError, match="omit --dst-crs"):
        geolabel.extract(lost, dst_crs="EPSG:4326", reading=placed, parameters=PARAMETERS)


def test_drawn_prompts_go_to_the_scenes_that_they_lie_on(tmp_path: Path) -> None:
    left = write(tmp_path / "left.tif", country(), Window(0, 0, SIZE, 130))
    right = shifted(tmp_path, "right", Window(0, 110, SIZE, 110))
    out = tmp_path / "slides.gpkg"
    geolabel.extract([left, right], out=out, **GIVEN)
    again = geolabel.extract([left, right], prompts_from=out, **GIVEN)
    assert len(again) == 4
    drawn = tmp_path / "drawn.gpkg"
    box = shapely.box(500_010, 2_999_900, 500_030, 2_999_910)
    gpd.GeoDataFrame(geometry=[box], crs="EPSG:32648").to_file(drawn)
    found = geolabel.extract([left, right], prompts_from=drawn, **GIVEN)
    assert [names(source) for source in found["source"]] == [["left"]]
    gpd.GeoDataFrame(geometry=[shapely.box(0, 0, 9, 9)], crs="EPSG:32648").to_file(drawn)
    with pytest.raises(VectorError, match=r"no prompt .* is on any of the scenes"):
        geolabel.extract([left, right], prompts_from=drawn, **GIVEN)


# Resume


@pytest.mark.parametrize("grids", [1, 2])
def test_a_run_over_many_scenes_goes_on(grids: int, quarters: list[Path], tmp_path: Path, monkeypatch) -> None:
    scenes = quarters if grids == 1 else [quarters[0], shifted(tmp_path, "right", Window(0, 110, SIZE, 110))]
    out = tmp_path / "slides.gpkg"
    geolabel.extract(scenes, out=tmp_path / "expected.gpkg", **GIVEN)
    from geolabel.extraction import pipeline

    real, calls = pipeline.merge, []

    def fails_once(*given: Any) -> None:
        calls.append(given)
        if len(calls) == grids:
            raise OSError(5, "the disk is gone")
        real(*given)

    monkeypatch.setattr(pipeline, "merge", fails_once)
    with pytest.raises(OSError, match="the disk is gone"):
        geolabel.extract(scenes, out=out, **GIVEN)
    told = summarize(tmp_path / "slides.gpkg.run")
    assert scenes_of(told.key) == [str(scene) for scene in scenes]
    assert told.status == "failed"
    assert len([name for name in told.done if name.endswith("localize")]) == grids
    assert all(done == total for done, total in told.done.values())
    other = GIVEN | {"parameters": replace(PARAMETERS, method=ContourMethod(gate=0.4))}
    with pytest.raises(RunError, match=r"parameters.gate was 0.5 and is 0.4 now"):
        geolabel.extract(scenes, out=out, **other)
    with pytest.raises(RunError, match="scene"):
        geolabel.extract(scenes[::-1], out=out, **GIVEN)
    geolabel.extract(scenes, out=out, **GIVEN)
    assert out.read_bytes() == (tmp_path / "expected.gpkg").read_bytes()
    assert not (tmp_path / "slides.gpkg.run").exists()


def test_a_run_resumes_in_another_crs(whole: Path, tmp_path: Path) -> None:
    run_folder, report = RunFolderOptions(tmp_path / "run", keep=True), geolabel.Report()
    first = geolabel.extract(whole, run_folder=run_folder, **GIVEN)
    found = geolabel.extract(whole, dst_crs="EPSG:4326", run_folder=run_folder, report=report, **GIVEN)
    assert found.crs == "EPSG:4326"
    assert report.tasks_kept == report.tasks > 0
    assert report.summary()["landslides"] == len(found) == len(first)


def test_a_scene_that_changed_is_noticed(quarters: list[Path], tmp_path: Path) -> None:
    run_folder = RunFolderOptions(keep=True)
    geolabel.extract(quarters, out=tmp_path / "slides.gpkg", run_folder=run_folder, **GIVEN)
    write(quarters[2], ~country(), QUARTERS["sw"])
    (tmp_path / "slides.gpkg").unlink()
    with pytest.raises(RunError, match=r"scene\.3\."):
        geolabel.extract(quarters, out=tmp_path / "slides.gpkg", run_folder=run_folder, **GIVEN)


def test_where_the_tasks_run_changes_nothing(tmp_path: Path) -> None:
    scenes = [
        write(tmp_path / "left.tif", country(), Window(0, 0, SIZE, 130)),
        shifted(tmp_path, "right", Window(0, 110, SIZE, 110)),
    ]
    for name, scheduler in (("a", "synchronous"), ("b", "threads")):
        with dask.config.set(scheduler=scheduler):
            geolabel.extract(scenes, out=tmp_path / f"{name}.gpkg", **GIVEN)
    assert (tmp_path / "a.gpkg").read_bytes() == (tmp_path / "b.gpkg").read_bytes()


# The command line


def test_the_command_takes_many_scenes(quarters: list[Path], tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["--stretch", "0,255", "--tile-size", "64", "--json", "-q"]
    assert command(["extract", "nw.tif", "ne.tif", "s*.tif", "slides.gpkg", *options]) == 0
    assert json.loads(capsys.readouterr().out)["landslides"] == 4
    with sqlite3.connect(tmp_path / "slides.gpkg") as file:
        assert ('["sw.tif"]',) in file.execute("SELECT source FROM landslides").fetchall()
    (tmp_path / "list.txt").write_text("nw.tif\nne.tif\nsw.tif\nse.tif\n")
    assert command(["predict", "list.txt", "scores.tif", *options]) == 0
    assert command(["predict", "nw.tif", "ne.tif", "sw.tif", *options]) == 2
    assert "give --out" in capsys.readouterr().err
    assert command(["extract", "list.txt", "--dry-run", *options]) == 0
    assert "3 more" in capsys.readouterr().out


def test_a_scene_is_no_output(quarters: list[Path], tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert command(["predict", "n*.tif", "--out", "ne.tif", "--overwrite"]) == 1
    assert "is an input" in capsys.readouterr().err


# Unions


def square(x: float, y: float, side: float = 10) -> shapely.Geometry:
    return shapely.MultiPolygon([shapely.box(x, y, x + side, y + side)])


def table(scene: str, *squares: shapely.Geometry, score: float = 0.8, date: str | None = None) -> gpd.GeoDataFrame:
    n = len(squares)
    values = {
        "id": range(1, n + 1),
        "class": "landslide",
        "score_mean": score,
        "score_max": score,
        "predicted_iou": np.nan,
        "stability": 0.5,
        "activation_mean": None,
        "n_prompts": 2,
        "gsd_m": 1.0,
        "source": json.dumps([scene]),
        "event_date": date,
        "confidence": np.nan,
        "status": "unreviewed",
        "notes": None,
        "perimeter_m": 0.0,
        "length_m": 0.0,
        "width_m": 0.0,
        "elongation": 1.0,
        "lon": 0.0,
        "lat": 0.0,
        "area_m2": [part.area for part in squares],
    }
    return gpd.GeoDataFrame(values, geometry=list(squares), crs="EPSG:32648", index=range(n))


def test_landslides_that_share_ground_are_one() -> None:
    a = table("a", square(500_000, 0), square(500_100, 0), square(500_110, 0), score=0.6, date="2024-05-01")
    b = table("b", square(500_005, 0, 20), square(500_120, 0), score=0.9, date="2024-05-01")
    found = merge_overlaps([a, b], pyproj.CRS.from_epsg(32648))
    assert found["id"].tolist() == [1, 2, 3, 4]
    assert [json.loads(source) for source in found["source"]] == [["a", "b"], ["a"], ["a"], ["b"]]
    first = found.iloc[0]
    assert first.geometry.area == 100 + 400 - 50
    assert first["area_m2"] == pytest.approx(450, rel=2e-3)
    assert first["score_mean"] == pytest.approx((0.6 * 100 + 0.9 * 400) / 500)
    assert (first["score_max"], first["n_prompts"], first["event_date"]) == (0.9, 4, "2024-05-01")
    assert np.isnan(first["predicted_iou"])
    assert found["area_m2"].tolist()[1:] == [100, 100, 100]  # as they were


def test_a_chain_of_overlaps_is_one_landslide_without_a_common_date() -> None:
    a, b, c = (table(name, square(500_000 + 8 * k, 0), date=f"2024-05-0{k + 1}") for k, name in enumerate("abc"))
    found = merge_overlaps([a, b, c], pyproj.CRS.from_epsg(32648))
    assert found["source"].tolist() == ['["a", "b", "c"]']
    assert found["event_date"].tolist() == [None]


def test_nothing_is_a_table_too() -> None:
    assert len(merge_overlaps([table("a"), table("b")], pyproj.CRS.from_epsg(32648))) == 0
    assert len(merge_overlaps([table("a"), table("b", square(0, 0))], pyproj.CRS.from_epsg(4326))) == 1


def test_those_of_one_scene_stay_apart() -> None:
    shapes = np.asarray([square(0, 0), square(5, 0), square(40, 0), square(50, 0)])
    labels, count = overlapping(shapes, np.asarray([0, 0, 0, 1]))
    assert (labels.tolist(), count) == ([0, 1, 2, 3], 4)
    labels, count = overlapping(shapes, np.asarray([0, 1, 1, 1]))
    assert (labels.tolist(), count) == ([0, 0, 1, 2], 3)

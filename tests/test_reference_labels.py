"""What inventories say of a scene, and those that say too much."""

from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from PIL import Image

from geolabel.errors import ChipError, SceneError, VectorError
from geolabel.labeling.reference_labels import read_truth
from geolabel.labels import IGNORE
from geolabel.scene import Grid
from geolabel.tiles import Window

GRID = Grid(gpd.GeoSeries(crs="EPSG:32632").crs, Affine(1, 0, 5e5, 0, -1, 5e6), 64, 64)


def classes_of(path: Path, values: np.ndarray, transform: Affine, **profile: Any) -> Path:
    height, width = values.shape
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        dtype=values.dtype,
        count=1,
        height=height,
        width=width,
        crs="EPSG:32632",
        transform=transform,
        **profile,
    ) as file:
        file.write(values, 1)
    return path


@pytest.mark.parametrize("dtype", ["int16", "float32"])
@pytest.mark.parametrize("shift", [0, 0.25])
def test_nodata_of_a_raster_of_classes_is_unknown_but_not_its_background(tmp_path: Path, dtype: str, shift: float):
    values = np.zeros((64, 64), dtype)
    values[:32, :40] = 1
    place = GRID.transform * Affine.translation(shift, shift)
    for nodata, unknown in ((-9, IGNORE), (0, 0)):
        values[40:, 40:] = nodata
        found = read_truth(classes_of(tmp_path / f"{nodata}.tif", values, place, nodata=nodata), GRID)
        assert found.classes == ("landslide",)
        mask = found.mask(Window(2, 2, 60, 60))
        assert (mask[0, 0], mask[0, 50], mask[50, 50]) == (1, 0, unknown)


def test_a_raster_of_objects_has_no_classes(tmp_path: Path):
    objects = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64)
    with pytest.raises(ChipError, match="holds 4094 values, but chips have up to 254 classes"):
        read_truth(classes_of(tmp_path / "t.tif", objects, GRID.transform), GRID)
    only = read_truth(tmp_path / "t.tif", GRID, classes=["class_7"])
    assert only.mask(GRID.window).sum() == 1 + IGNORE  # 263 is not 7 once more


def test_a_column_of_numbers_has_too_many_classes(tmp_path: Path):
    points = [shapely.Point(5e5 + k % 64, 5e6 - k // 64) for k in range(300)]
    gpd.GeoDataFrame({"id_": [f"p{k}" for k in range(300)]}, geometry=points, crs=32632).to_file(tmp_path / "p.gpkg")
    with pytest.raises(ChipError, match=r"column id_ of .* holds 300 classes, but chips have up to 254"):
        read_truth(tmp_path / "p.gpkg", GRID, class_column="id_")


def test_what_lies_outside_a_raster_is_not_known(tmp_path: Path):
    values = np.ones((16, 64), np.uint8)
    values[:, 40:] = 0
    found = read_truth(classes_of(tmp_path / "t.tif", values, GRID.transform * Affine.translation(0, 32)), GRID)
    mask = found.mask(GRID.window)
    assert (mask[32:48] == values).all()
    assert (mask[:32] == IGNORE).all()
    assert (mask[48:] == IGNORE).all()


@pytest.mark.parametrize("white", [1, 255])
def test_a_mask_without_georeference_is_on_the_grid_of_its_scene(tmp_path: Path, white: int):
    values = np.zeros((64, 64), np.uint8)
    values[8:24, 16:32] = white
    Image.fromarray(values).save(tmp_path / "t.png")
    coarse = GRID.at_gsd(2 * GRID.gsd)
    for grid in (GRID, coarse):
        mask = read_truth(tmp_path / "t.png", grid, scene=GRID).mask(grid.window)
        step = 64 // grid.height
        assert np.array_equal(mask, values[::step, ::step] > 0)
    with pytest.raises(SceneError, match="64 x 64 px, but the scene has 32 x 32 px"):
        read_truth(tmp_path / "t.png", coarse)


def test_inventories_of_another_place_are_refused_with_both_extents(tmp_path: Path):
    far = classes_of(tmp_path / "t.tif", np.ones((8, 8), np.uint8), Affine(1, 0, 6e5, 0, -1, 5e6))
    gpd.GeoDataFrame(geometry=[shapely.box(6e5, 5e6 - 8, 6e5 + 8, 5e6)], crs=32632).to_crs(4326).to_file(
        tmp_path / "t.gpkg"
    )
    for path in (far, tmp_path / "t.gpkg"):
        message = r"misses the scene: it covers x (600|599).* to 60.*, the scene covers x 500000 to 500064, y 4999936"
        with pytest.raises(VectorError, match=message):
            read_truth(path, GRID)


def points(folder: Path, **columns: list[Any]) -> Path:
    count = len(next(iter(columns.values())))
    places = [shapely.Point(5e5 + 10 + 9 * k, 5e6 - 20) for k in range(count)]
    gpd.GeoDataFrame(columns, geometry=places, crs=32632).to_file(folder / "p.gpkg")
    return folder / "p.gpkg"


@pytest.mark.parametrize("labels", [[1.0, 0.0], [True, False], ["yes", "No"], [" 1 ", "no_landslide"], ["T", "none"]])
def test_labels_of_points_are_read_as_those_of_tables(tmp_path: Path, labels: list[Any]):
    found = read_truth(points(tmp_path, label=labels), GRID)
    assert found.classes == ("landslide",)
    assert [shown for _, shown in found.windows(32, 0)] == [(True,), (False,)]


def test_features_without_a_class_are_refused(tmp_path: Path):
    with pytest.raises(ChipError, match=r"1 of 2 features of .*p\.gpkg have no class in column label: write 0"):
        read_truth(points(tmp_path, label=[1, None]), GRID)
    empty = points(tmp_path, label=[None, None], depth=[1, 2])
    assert read_truth(empty, GRID).classes == ("landslide",)


def test_landslides_that_a_person_rejected_label_no_chip(tmp_path: Path):
    found = read_truth(points(tmp_path, status=["accepted", "rejected", "unreviewed"]), GRID)
    assert len(list(found.windows(32, 0))) == 2

"""What inventories say of a scene, and those that say too much."""

from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine

from geolabel.errors import ChipError
from geolabel.labels import IGNORE
from geolabel.run.truths import read_truth
from geolabel.scene import Grid
from geolabel.tiles import Window

GRID = Grid(gpd.GeoSeries(crs="EPSG:32632").crs, Affine(1, 0, 5e5, 0, -1, 5e6), 64, 64)


def classes_of(path: Path, values: np.ndarray, transform: Affine, **profile: Any) -> Path:
    height, width = values.shape
    with rasterio.open(
        path, "w", driver="GTiff", dtype=values.dtype, count=1, height=height, width=width, crs="EPSG:32632",
        transform=transform, **profile,
    ) as file:  # fmt: skip
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
    with pytest.raises(ChipError, match="holds the value 256, and classes are numbered up to 254"):
        read_truth(classes_of(tmp_path / "t.tif", objects, GRID.transform), GRID)
    only = read_truth(tmp_path / "t.tif", GRID, classes=["class_7"])
    assert only.mask(GRID.window).sum() == 1 + IGNORE  # 263 is not 7 once more


def test_a_column_of_numbers_has_too_many_classes(tmp_path: Path):
    points = [shapely.Point(5e5 + k % 64, 5e6 - k // 64) for k in range(300)]
    gpd.GeoDataFrame({"id_": [f"p{k}" for k in range(300)]}, geometry=points, crs=32632).to_file(tmp_path / "p.gpkg")
    with pytest.raises(ChipError, match=r"column id_ of .* holds 300 classes, and chips have up to 254"):
        read_truth(tmp_path / "p.gpkg", GRID, class_column="id_")


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

import json
import logging
import math
import subprocess
import sys
from pathlib import Path

import geopandas as gpd
import numpy as np
import pyproj
import pytest
import rasterio
import shapely
from affine import Affine
from click.testing import CliRunner
from rasterio.features import shapes
from scipy import ndimage
from shapely import Polygon, box

from geolabel.cli.evaluate import SECTIONS
from geolabel.cli.evaluate import evaluate as command
from geolabel.errors import OptionError, SceneError, VectorError
from geolabel.evaluation import evaluate as module
from geolabel.evaluation.evaluate import evaluate
from geolabel.io.write.vectors import write_inventory
from geolabel.scene import Grid

UTM = pyproj.CRS(32648)
TRANSFORM = Affine(2, 0, 500_000, 0, -2, 3_000_000)
SCORE_SCENE = Path(__file__).parents[2] / "shared" / "tools" / "score_scene.py"


def pixel_box(col: float, row: float, width: float, height: float) -> Polygon:
    """A rectangle of pixels of the grid at `TRANSFORM`."""
    corners = [(col, row), (col + width, row), (col + width, row + height), (col, row + height)]
    return Polygon([TRANSFORM * corner for corner in corners])


def write_slides(path: Path, polygons: list, crs: object = UTM, layer: str = "landslides") -> Path:
    gpd.GeoDataFrame({"id": range(1, len(polygons) + 1)}, geometry=polygons, crs=crs).to_file(path, layer=layer)
    return path


def write_truth(path: Path, values: np.ndarray, **changes: object) -> Path:
    profile = {"driver": "GTiff", "count": 1, "dtype": values.dtype, "crs": UTM.to_wkt(), "transform": TRANSFORM}
    height, width = values.shape
    with rasterio.open(path, "w", **(profile | {"height": height, "width": width} | changes)) as dataset:
        dataset.write(values, 1)
    return path


@pytest.fixture
def truth(tmp_path: Path) -> Path:
    """12 x 20 px: landslides of 4 x 4 and 2 x 5 px, and two unknown columns at the right."""
    values = np.zeros((12, 20), np.uint8)
    values[2:6, 2:6] = 1
    values[8:10, 10:15] = 1
    values[:, 18:] = 255
    return write_truth(tmp_path / "truth.tif", values)


def test_pixels_and_objects_by_hand(tmp_path: Path, truth: Path):
    # 8 of the first landslide's 16 pixels and 4 beside it; 10 on background, 4 of them unknown; nothing of the second
    slides = write_slides(tmp_path / "s.gpkg", [pixel_box(4, 2, 3, 4), pixel_box(15, 0, 5, 2)])
    result = evaluate(slides, truth)
    assert (result.areas.tp, result.areas.fp, result.areas.fn, result.areas.tn) == (8, 10, 18, 12 * 18 - 36)
    assert (result.objects.true_objects, result.objects.found) == (2, 1)
    assert (result.objects.polygons, result.objects.right) == (2, 1)
    assert result.objects.matched == 0  # 8 of 20 pixels of the union
    assert result.true_ha == pytest.approx(26 * 4 / 1e4, rel=2e-3)  # geodesic, so a little off the grid's metres
    assert result.predicted_ha == pytest.approx(18 * 4 / 1e4, rel=2e-3)


def test_polygons_like_the_truth_score_one(tmp_path: Path, truth: Path):
    slides = write_slides(tmp_path / "s.gpkg", [pixel_box(2, 2, 4, 4), pixel_box(10, 8, 5, 2)])
    figures = evaluate(slides, truth).as_dict()
    ones = {k for k, v in figures.items() if v == 1}
    assert ones == {
        *("overall_accuracy", "precision", "recall", "f1", "iou", "miou", "kappa"),
        *("found", "right", "object_precision", "object_recall", "object_f1"),
    }
    assert figures["matched"] == 2


def random_scene(folder: Path, seed: int = 1, *, unknown: bool = True) -> tuple[Path, Path]:
    """Blobs as truth, other blobs as polygons: both cross blocks, and some landslides touch at corners only."""
    rng = np.random.default_rng(seed)
    fields = [ndimage.gaussian_filter(rng.normal(size=(150, 170)), 3) for _ in range(2)]
    true = fields[0] > 0.08
    values = true.astype(np.uint8)
    if unknown:
        values[20:40, 100:] = 255
    predicted = (fields[0] + 0.6 * fields[1] > 0.09).astype(np.uint8)
    polygons = [shapely.geometry.shape(g) for g, v in shapes(predicted, connectivity=4, transform=TRANSFORM) if v]
    return write_slides(folder / "s.gpkg", polygons), write_truth(folder / "t.tif", values)


@pytest.mark.parametrize(
    ("columns", "layer", "count"),
    [
        ({"status": ["accepted", "unreviewed", "Rejected "]}, "landslides", 2),
        ({"status": ["rejected"] * 3}, "rejected", 3),
        ({"status": ["accepted", "unreviewed", "rejected"], "layer": ["candidates"] * 3}, "slides_reviewed", 1),
        ({"STATUS": ["accepted", "unreviewed", "rejected"]}, "landslides", 2),
        ({"Status": ["accepted", "unreviewed", "rejected"], "LAYER": ["candidates"] * 3}, "slides_reviewed", 1),
        ({"status": ["accepted", "unreviewed", "unreviewed"], "layer": ["road", None, "road"]}, "slides", 3),
    ],
)
def test_polygons_that_a_person_rejected_are_no_landslides(
    tmp_path: Path, columns: dict[str, list[str]], layer: str, count: int, caplog: pytest.LogCaptureFixture
):
    boxes = [pixel_box(2, 2, 4, 4), pixel_box(10, 8, 5, 2), pixel_box(10, 2, 2, 2)]
    path = tmp_path / "slides.gpkg"
    gpd.GeoDataFrame(columns, geometry=boxes, crs=UTM).to_file(path, layer=layer)
    other = write_slides(tmp_path / "other.gpkg", boxes[:1])
    figures = evaluate(path, other, layer=layer)
    assert figures.objects.polygons == count
    assert evaluate(other, path, truth_layer=layer).objects.true_objects == count
    assert (f"{3 - count} rejected polygons or candidates are left out" in caplog.text) == (count < 3)


@pytest.mark.parametrize("block", [7, 64, 149])
def test_blocks_do_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int):
    slides, truth = random_scene(tmp_path)
    whole = evaluate(slides, truth)
    assert whole.objects.matched > 3
    monkeypatch.setattr(module, "BLOCK", block)
    assert evaluate(slides, truth) == whole


@pytest.mark.shared
@pytest.mark.skipif(not SCORE_SCENE.exists(), reason="needs ../shared/tools beside the project")
@pytest.mark.parametrize("seed", [1, 2])
def test_figures_agree_with_an_independent_script(tmp_path: Path, seed: int):
    slides, truth = random_scene(tmp_path, seed, unknown=False)  # the script takes what is not known for wrong
    done = subprocess.run(
        [sys.executable, SCORE_SCENE, slides, truth, "--json"], capture_output=True, text=True, check=True
    )
    peer, own = json.loads(done.stdout), evaluate(slides, truth).as_dict()
    for name in ("precision", "recall", "f1", "iou", "true_landslides", "found", "polygons", "right"):
        assert own[name] == pytest.approx(peer[name], abs=5e-5), name
    for name in ("true_ha", "predicted_ha"):
        assert own[name] == pytest.approx(peer[name], rel=2e-3), name


def test_an_area_of_interest_limits_what_is_judged(tmp_path: Path, truth: Path):
    slides = write_slides(tmp_path / "s.gpkg", [pixel_box(4, 2, 3, 4)])
    aoi = write_slides(tmp_path / "aoi.gpkg", [pixel_box(0, 0, 10, 7)])
    areas = evaluate(slides, truth, aoi=aoi).areas
    assert (areas.tp, areas.fp, areas.fn, areas.total) == (8, 4, 8, 70)


def test_other_values_and_nodata(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    slides = write_slides(tmp_path / "s.gpkg", [pixel_box(0, 0, 4, 1)])
    values = np.array([[1, 2, -9, np.nan]], np.float32)
    areas = evaluate(slides, write_truth(tmp_path / "a.tif", values, nodata=-9)).areas
    assert (areas.tp, areas.fp, areas.total) == (1, 1, 2)
    areas = evaluate(slides, write_truth(tmp_path / "b.tif", np.array([[1, 0, 0, 0]], np.uint8), nodata=0)).areas
    assert (areas.tp, areas.fp, areas.total) == (1, 3, 4)
    with caplog.at_level(logging.WARNING):
        evaluate(slides, write_truth(tmp_path / "c.tif", np.array([[0, 0, 0, 255]], np.uint8), nodata=255))
    assert "holds no landslide: these are pixels of value 1" in caplog.text


MASK = np.zeros((12, 20), np.uint8)
MASK[2:6, 2:6] = 1
ON_MASK = pixel_box(2, 2, 4, 4)
"""The one landslide of `MASK`."""


@pytest.mark.parametrize(
    ("values", "changes"),
    [
        (MASK * 255, {}),
        (MASK * 255, {"nodata": 0}),
        (MASK.astype(np.uint16) * 65535, {}),
        (MASK * 255.0, {}),
        (MASK.astype(np.float32), {"nodata": math.nan}),
        (MASK, {"nbits": 1}),
        (np.where(MASK > 0, 1, 0).astype(np.int16), {"nodata": -1}),
        (MASK, {"photometric": "palette"}),
    ],
    ids=["255", "nodata 0", "65535", "255.0", "float", "bits", "signed", "palette"],
)
def test_masks_of_any_program_say_the_same(tmp_path: Path, values: np.ndarray, changes: dict):
    slides = write_slides(tmp_path / "s.gpkg", [ON_MASK])
    result = evaluate(slides, write_truth(tmp_path / "t.tif", values, **changes))
    assert (result.areas.f1, result.areas.total, result.objects.true_objects, result.objects.right) == (1, 240, 1, 1)


def test_masks_of_several_bands_are_read_where_the_bands_are_alike(tmp_path: Path):
    slides = write_slides(tmp_path / "s.gpkg", [ON_MASK])
    truth = write_truth(tmp_path / "t.tif", MASK, count=3)
    with rasterio.open(truth, "r+") as dataset:
        dataset.write(np.stack([MASK * 255] * 3))
    assert evaluate(slides, truth).areas.f1 == 1
    with rasterio.open(truth, "r+") as dataset:
        dataset.write(MASK, 3)
    with pytest.raises(SceneError, match="has 3 bands that differ: give the one that holds the labels"):
        evaluate(slides, truth)


def test_classes_that_a_raster_names(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    slides = write_slides(tmp_path / "s.gpkg", [ON_MASK])
    truth = write_truth(tmp_path / "t.tif", MASK * 7 + 1)
    with pytest.raises(SceneError, match="holds 8, but landslides are the value 1"):
        evaluate(slides, write_truth(tmp_path / "u.tif", MASK * 8))
    evaluate(slides, truth)
    assert "holds the values 1, 8: 1 is landslide, the others are background" in caplog.text
    with rasterio.open(truth, "r+") as dataset:
        dataset.update_tags(1, class_1="forest", class_8="landslide")
    assert evaluate(slides, truth).areas.f1 == 1
    with rasterio.open(truth, "r+") as dataset:
        dataset.update_tags(1, class_8="scar")
    with pytest.raises(SceneError, match="holds forest, scar, but landslides are"):
        evaluate(slides, truth)


@pytest.mark.parametrize(
    ("value", "message"), [(0.37, r"0\.37, but labels are integers"), (-9, "-9, .*declare it as nodata")]
)
def test_values_that_are_no_labels(tmp_path: Path, value: float, message: str):
    slides = write_slides(tmp_path / "s.gpkg", [ON_MASK])
    values = MASK.astype(np.float32)
    values[0, 0] = value
    with pytest.raises(SceneError, match=message):
        evaluate(slides, write_truth(tmp_path / "t.tif", values))


def test_rasters_that_cannot_be_labels(tmp_path: Path):
    slides = write_slides(tmp_path / "s.gpkg", [ON_MASK])
    with pytest.raises(SceneError, match=r"the only known value of .* is 1, the rest is nodata or transparent"):
        evaluate(slides, write_truth(tmp_path / "a.tif", np.where(MASK > 0, MASK, 9), nodata=9))
    with pytest.raises(SceneError, match="holds 298 values: give a raster of classes, not of objects"):
        evaluate(slides, write_truth(tmp_path / "b.tif", np.arange(300, dtype=np.int32).reshape(15, 20)))
    with pytest.raises(SceneError, match="is compressed as JPEG, which changes values"):
        evaluate(slides, write_truth(tmp_path / "c.tif", MASK * 255, compress="jpeg"))


def test_what_lies_outside_the_truth_counts_nowhere(tmp_path: Path):
    # right; outside; half outside; on what is not known; smaller than a pixel, which is judged and wrong
    boxes = [ON_MASK, pixel_box(30, 0, 4, 4), pixel_box(-2, 8, 4, 2), pixel_box(12, 0, 3, 3), pixel_box(9, 9, 0.2, 0.2)]
    slides = write_slides(tmp_path / "s.gpkg", boxes)
    values = MASK.copy()
    values[0:3, 12:15] = 255
    result = evaluate(slides, write_truth(tmp_path / "t.tif", values))
    assert (result.areas.tp, result.areas.fp, result.areas.total) == (16, 4, 231)
    assert (result.objects.polygons, result.objects.right, result.objects.matched) == (3, 1, 1)
    with pytest.raises(SceneError, match=r"do not intersect: the raster covers x 500000 to 500040, y 2999976 to"):
        evaluate(write_slides(tmp_path / "far.gpkg", [pixel_box(1000, 0, 2, 2)]), tmp_path / "t.tif")


def test_a_mask_without_georeference_needs_its_scene(tmp_path: Path):
    slides = write_slides(tmp_path / "s.gpkg", [ON_MASK])
    with pytest.warns(rasterio.errors.NotGeoreferencedWarning):
        plain = write_truth(tmp_path / "t.png", MASK * 255, crs=None, transform=Affine.identity(), driver="PNG")
    with pytest.raises(SceneError, match=r"has no georeference, but the polygons of .* are in WGS 84 / UTM zone 48N"):
        evaluate(slides, plain)
    assert evaluate(slides, plain, scene=write_truth(tmp_path / "scene.tif", MASK)).areas.f1 == 1
    other = write_truth(tmp_path / "other.tif", MASK[:11])
    with pytest.raises(SceneError, match="12 x 20 px, but the scene has 11 x 20 px: give a raster of"):
        evaluate(slides, plain, scene=other)


def test_a_scene_without_crs(tmp_path: Path):
    grid = Grid(None, Affine(1, 0, 0, 0, -1, 0), 12, 20, unit_m=0.5)
    slides = gpd.GeoDataFrame({"id": [1]}, geometry=[box(2, -6, 6, -2)])
    write_inventory(tmp_path / "s.gpkg", slides, None, None, {}, grid=grid)
    values = np.zeros((12, 20), np.uint8)
    values[2:6, 2:6] = 1
    with pytest.warns(rasterio.errors.NotGeoreferencedWarning):
        truth = write_truth(tmp_path / "t.tif", values, crs=None, transform=Affine.identity())
    result = evaluate(tmp_path / "s.gpkg", truth)
    assert (result.areas.tp, result.areas.fp, result.areas.fn) == (16, 0, 0)
    assert math.isnan(result.true_ha)
    assert result.as_dict()["true_ha"] is None


def test_polygons_are_brought_to_the_truth(tmp_path: Path, truth: Path):
    slides = gpd.GeoDataFrame(geometry=[pixel_box(2, 2, 4, 4)], crs=UTM).to_crs(4326)
    slides.to_file(tmp_path / "s.geojson")
    assert evaluate(tmp_path / "s.geojson", truth).areas.tp == 16


def test_no_polygons_at_all(tmp_path: Path, truth: Path):
    empty = gpd.GeoDataFrame({"id": []}, geometry=[], crs=UTM)
    write_inventory(tmp_path / "s.gpkg", empty, None, None, {}, grid=Grid(UTM, TRANSFORM, 12, 20))
    figures = evaluate(tmp_path / "s.gpkg", truth).as_dict()
    assert (figures["recall"], figures["precision"], figures["polygons"], figures["found"]) == (0, None, 0, 0)


# --- a truth of polygons ---------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:'crs' was not provided")
@pytest.mark.parametrize("crs", [32648, 4326, None], ids=["utm", "degrees", "none"])
def test_areas_of_polygons_are_exact(tmp_path: Path, crs: int | None):
    # squares of 100 units at the equator of the UTM zone's middle, or of the plane
    def place(*squares: tuple[float, float, float, float]) -> list[Polygon]:
        scale, x, y = (1e-5, 100.0, 30.0) if crs == 4326 else (1.0, 500_000.0, 3_000_000.0)
        return [box(x + a * scale, y + b * scale, x + c * scale, y + d * scale) for a, b, c, d in squares]

    slides = write_slides(tmp_path / "s.gpkg", place((0, 0, 100, 100), (300, 0, 400, 100)), crs=crs)
    truth = write_slides(tmp_path / "t.gpkg", place((20, 0, 120, 100), (600, 0, 700, 50)), crs=crs)
    result = evaluate(slides, truth)
    areas = result.areas
    # in squares: 0.8 shared, 1.2 predicted in vain, 0.2 + 0.5 missed
    assert [areas.fp / areas.tp, areas.fn / areas.tp] == pytest.approx([1.2 / 0.8, 0.7 / 0.8], rel=1e-5)
    assert areas.iou == pytest.approx(0.8 / 2.7, rel=1e-5)
    assert math.isnan(areas.overall_accuracy)
    assert result.objects == evaluate(slides, truth, aoi=None).objects
    assert (result.objects.found, result.objects.right, result.objects.matched) == (1, 1, 1)
    if crs is not None:
        geod = pyproj.CRS(crs).get_geod()
        first = gpd.GeoSeries(place((20, 0, 120, 100), (600, 0, 700, 50)), crs=crs).to_crs(4326)
        true_m2 = sum(abs(geod.geometry_area_perimeter(polygon)[0]) for polygon in first)
        assert result.true_ha == pytest.approx(true_m2 / 1e4, rel=1e-6)


def test_the_background_needs_an_extent(tmp_path: Path, truth: Path):
    slides = write_slides(tmp_path / "s.gpkg", [pixel_box(0, 0, 10, 12), pixel_box(30, 0, 5, 5)])
    other = write_slides(tmp_path / "t.gpkg", [pixel_box(5, 0, 10, 12)])
    figures = evaluate(slides, other).as_dict()
    assert figures["overall_accuracy"] is figures["kappa"] is figures["miou"] is None
    by_scene = evaluate(slides, other, scene=truth)
    # the scene is 20 columns wide: 5 right, 5 and 5 wrong, 5 empty; what lies beside it counts nowhere
    assert by_scene.areas.overall_accuracy == pytest.approx(0.5, rel=1e-6)
    assert by_scene.objects.polygons == 1
    aoi = write_slides(tmp_path / "aoi.gpkg", [pixel_box(0, 0, 10, 12)])
    both = evaluate(slides, other, scene=truth, aoi=aoi)
    assert (both.areas.precision, both.areas.recall) == (pytest.approx(0.5, rel=1e-6), pytest.approx(1, rel=1e-6))


def test_overlapping_polygons_count_once(tmp_path: Path):
    square = pixel_box(0, 0, 10, 10)
    slides = write_slides(tmp_path / "s.gpkg", [square, square])
    truth = write_slides(tmp_path / "t.gpkg", [square])
    result = evaluate(slides, truth)
    assert result.areas.precision == pytest.approx(1)
    assert (result.objects.right, result.objects.matched) == (2, 1)


def test_raster_and_polygons_agree(tmp_path: Path, truth: Path):
    slides = write_slides(tmp_path / "s.gpkg", [pixel_box(4, 2, 3, 4), pixel_box(9, 8, 5, 2)])
    polygons = write_slides(tmp_path / "t.gpkg", [pixel_box(2, 2, 4, 4), pixel_box(10, 8, 5, 2)])
    judged = write_slides(tmp_path / "aoi.gpkg", [pixel_box(0, 0, 18, 12)])
    one, two = evaluate(slides, truth).as_dict(), evaluate(slides, polygons, aoi=judged).as_dict()
    for name in one.keys() - {"true_ha", "predicted_ha"}:
        assert one[name] == pytest.approx(two[name], rel=1e-5), name
    assert one["true_ha"] == pytest.approx(two["true_ha"], rel=1e-5)


def test_landslides_are_regions_in_either_form_of_one_truth(tmp_path: Path):
    # two features that touch, one that overlaps, one of two parts, one at a corner of another, one with a hole
    ring = pixel_box(10, 0, 6, 6).difference(pixel_box(12, 2, 2, 2))
    parts = shapely.MultiPolygon([pixel_box(0, 8, 2, 2), pixel_box(4, 8, 2, 2)])
    outlines = [pixel_box(0, 0, 2, 2), pixel_box(2, 0, 2, 3), pixel_box(3, 2, 3, 2), parts, pixel_box(6, 4, 2, 2), ring]
    values = np.zeros((12, 20), np.uint8)
    for col, row, width, height in ((0, 0, 2, 2), (2, 0, 2, 3), (3, 2, 3, 2), (0, 8, 2, 2), (4, 8, 2, 2), (6, 4, 2, 2)):
        values[row : row + height, col : col + width] = 1
    values[0:6, 10:16] = 1
    values[2:4, 12:14] = 0
    raster = write_truth(tmp_path / "t.tif", values)
    slides = write_slides(tmp_path / "s.gpkg", [pixel_box(1, 0, 4, 4), pixel_box(10, 0, 6, 6), pixel_box(0, 8, 6, 2)])
    judged = write_slides(tmp_path / "aoi.gpkg", [pixel_box(0, 0, 20, 12)])
    one = evaluate(slides, raster).as_dict()
    assert (one["true_landslides"], one["polygons"], one["matched"]) == (5, 3, 2)
    for crs in (32648, 4326):
        polygons = gpd.GeoDataFrame(geometry=outlines, crs=UTM).to_crs(crs)
        polygons.to_file(tmp_path / f"{crs}.gpkg", layer="landslides")
        two = evaluate(slides, tmp_path / f"{crs}.gpkg", aoi=judged).as_dict()
        assert two == pytest.approx(one, rel=1e-4)


def test_polygons_that_overlap_count_in_a_raster_as_in_a_vector_file(tmp_path: Path, truth: Path):
    square = pixel_box(2, 2, 4, 4)
    slides = write_slides(tmp_path / "s.gpkg", [square, square, pixel_box(2, 2, 4, 8)])
    objects = evaluate(slides, truth).objects
    assert (objects.polygons, objects.right, objects.matched, objects.found) == (3, 3, 1, 1)


# --- what goes wrong -------------------------------------------------------------------------------------------------


def test_errors_name_the_file_and_the_way_out(tmp_path: Path, truth: Path):
    slides = write_slides(tmp_path / "s.gpkg", [pixel_box(4, 2, 3, 4)])
    with pytest.raises(VectorError, match="has no layer slides: it has landslides"):
        evaluate(slides, truth, layer="slides")
    with pytest.raises(VectorError, match=r"missing\.gpkg cannot be read"):
        evaluate(tmp_path / "missing.gpkg", truth)
    with pytest.raises(VectorError, match=r"missing\.tif opens neither as a raster nor as a vector file"):
        evaluate(slides, tmp_path / "missing.tif")
    with pytest.raises(OptionError, match="has its own outline"):
        evaluate(slides, truth, scene=truth)
    cut = tmp_path / "cut.tif"
    write_truth(cut, np.random.default_rng(0).integers(0, 2, (300, 300), np.uint8), compress="deflate")
    cut.write_bytes(cut.read_bytes()[:4000])
    with pytest.raises(SceneError, match=r"cut\.tif cannot be read"):
        evaluate(slides, cut)


def test_the_command_prints_a_table_or_json(tmp_path: Path, truth: Path):
    slides = write_slides(tmp_path / "s.gpkg", [pixel_box(4, 2, 3, 4)])
    table = CliRunner().invoke(command, [str(slides), str(truth)])
    assert table.exit_code == 0, table.output
    assert "F1" in table.output
    assert "0.4211" in table.output  # 2 x 8 / (12 + 26)
    done = CliRunner().invoke(command, [str(slides), str(truth), "--json"])
    figures = json.loads(done.stdout)
    assert figures == evaluate(slides, truth).as_dict()
    assert figures["f1"] == 16 / 38


def test_every_figure_has_a_place_in_the_table(tmp_path: Path, truth: Path):
    slides = write_slides(tmp_path / "s.gpkg", [pixel_box(4, 2, 3, 4)])
    result = evaluate(slides, truth)
    assert sorted(key for names in SECTIONS.values() for key in names) == sorted(result.as_dict())


# Several classes


def write_classes(path: Path, polygons: list[tuple[str | None, Polygon]]) -> Path:
    names, outlines = zip(*polygons, strict=True)
    gpd.GeoDataFrame({"class": names}, geometry=list(outlines), crs=UTM).to_file(path, layer="landslides")
    return path


TWO = [
    ("landslide", pixel_box(2, 2, 4, 4)),
    ("rockfall", pixel_box(10, 8, 5, 2)),
    ("landslide", pixel_box(10, 2, 2, 2)),
]
"""Polygons in pixels of the fixture below: the last is a rockfall in truth."""


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    """12 x 20 px: a landslide of 4 x 4, rockfalls of 2 x 5 and 2 x 2 px, and a road that nobody looked for."""
    values = np.zeros((12, 20), np.uint8)
    values[2:6, 2:6], values[8:10, 10:15], values[2:4, 10:12], values[11] = 1, 2, 2, 3
    path = write_truth(tmp_path / "classes.tif", values)
    with rasterio.open(path, "r+") as dataset:
        dataset.update_tags(1, class_0="background", class_1="landslide", class_2="rockfall", class_3="road")
    return path


@pytest.mark.parametrize("form", ["raster", "polygons"])
def test_classes_are_compared_one_by_one(tmp_path: Path, classes: Path, form: str):
    slides = write_classes(tmp_path / "s.gpkg", TWO)
    true = [*TWO[:2], ("rockfall", TWO[2][1])]
    truth = classes if form == "raster" else write_classes(tmp_path / "t.gpkg", true)
    figures = evaluate(slides, truth).as_dict()
    assert figures["f1"] == pytest.approx(1)  # all are found, whatever they are called
    assert list(figures["classes"]) == ["landslide", "rockfall"]
    slide, fall = figures["classes"].values()
    assert (slide["precision"], slide["recall"]) == (pytest.approx(16 / 20), pytest.approx(1))
    assert (fall["precision"], fall["recall"]) == (pytest.approx(1), pytest.approx(10 / 14))
    assert (slide["true_landslides"], slide["polygons"], fall["true_landslides"], fall["polygons"]) == (1, 2, 2, 1)
    assert figures["mean"]["recall"] == pytest.approx((1 + 10 / 14) / 2)
    assert "polygons" not in figures["mean"]


@pytest.mark.parametrize("suffix", [".gpkg", ".zip", ".parquet"])
def test_a_class_that_was_searched_and_not_found_counts(tmp_path: Path, classes: Path, suffix: str):
    """Of the road nothing is said, since nobody looked for it."""
    path, names = tmp_path / f"s{suffix}", ["landslide", "rockfall"]
    slides = gpd.GeoDataFrame({"id": [1], "class": "landslide"}, geometry=[pixel_box(2, 2, 4, 4)], crs=UTM)
    write_inventory(path, slides, None, None, {"classes": names}, grid=Grid(UTM, TRANSFORM, 12, 20))
    found = evaluate(path, classes).as_dict()["classes"]
    assert {name: figures["recall"] for name, figures in found.items()} == {"landslide": 1, "rockfall": 0}


def test_a_class_that_is_named_counts_alone(tmp_path: Path, classes: Path):
    slides = write_classes(tmp_path / "s.gpkg", TWO)
    alone = evaluate(slides, classes, classes=["rockfall"]).as_dict()
    assert alone == evaluate(slides, classes).as_dict()["classes"]["rockfall"]
    with_road = evaluate(slides, classes, classes=["road", "rockfall"]).as_dict()
    assert with_road["classes"]["road"]["recall"] == 0
    assert with_road["mean"]["recall"] == pytest.approx(10 / 28)
    with pytest.raises(OptionError, match=r"'rockfal': did you mean rockfall[?] There are landslide, road, rockfall"):
        evaluate(slides, classes, classes=["rockfal"])


def test_a_side_that_names_no_classes_is_compared_as_it_is(tmp_path: Path, truth: Path, caplog):
    polygons = [pixel_box(2, 2, 4, 4), pixel_box(10, 8, 5, 2)]
    plain = evaluate(write_slides(tmp_path / "p.gpkg", polygons), truth)
    named = write_classes(tmp_path / "n.gpkg", [("slide", polygons[0]), ("fall", polygons[1])])
    assert evaluate(named, truth) == plain
    with pytest.raises(OptionError, match="has no classes"):
        evaluate(named, truth, classes=["fall"])
    other = write_classes(tmp_path / "o.gpkg", [("Rutschung", polygons[0]), (None, polygons[1])])
    assert not evaluate(named, other).classes
    assert "no class of" in caplog.text


def test_the_command_shows_a_column_for_each_class(tmp_path: Path, classes: Path):
    slides = write_classes(tmp_path / "s.gpkg", TWO)
    table = CliRunner().invoke(command, [str(slides), str(classes)])
    assert table.exit_code == 0, table.output
    header = table.stdout.splitlines()[0].split()
    assert header == ["Area", "all", "landslide", "rockfall", "mean"]
    done = CliRunner().invoke(command, [str(slides), str(classes), "--class", "rockfall", "--json"])
    assert json.loads(done.stdout) == evaluate(slides, classes, classes=["rockfall"]).as_dict()

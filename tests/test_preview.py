"""The picture of an inventory: where the north is, how long the bar is, and what is drawn where."""

from __future__ import annotations

import math

import geopandas as gpd
import numpy as np
import pyproj
import pytest
import rasterio
import shapely
from affine import Affine
from PIL import Image

import geolabel
from geolabel.errors import OptionError, OutputError, SceneError
from geolabel.scene import Grid
from geolabel.viewing.backdrop import Source, frame_of
from geolabel.viewing.preview import (
    ACCEPTED_LINE,
    CANDIDATE,
    MASKED_GROUND,
    REJECTED_LINE,
    UNKNOWN,
    bar_of,
    grade_of,
    lines_of,
    north_of,
    together_of,
    write_preview,
)


def grid_at(crs, x, y, pixel=1.0, side=100):
    """North up, with its middle at a place."""
    half = side / 2 * pixel
    return Grid(pyproj.CRS(crs), Affine(pixel, 0, x - half, 0, -pixel, y + half), side, side)


def test_the_north_of_a_map_of_a_zone_turns_with_the_distance_from_its_meridian():
    lon, lat = 108.0, 45.0  # 3 degrees east of the meridian of zone 48
    x, y = pyproj.Transformer.from_crs(4326, 32648, always_xy=True).transform(lon, lat)
    east, south = north_of(grid_at("EPSG:32648", x, y))
    convergence = math.atan(math.tan(math.radians(3)) * math.sin(math.radians(lat)))
    assert (east, south) == pytest.approx((-math.sin(convergence), -math.cos(convergence)), abs=1e-4)


@pytest.mark.parametrize(
    ("crs", "x", "y", "expected"),
    [
        ("EPSG:4326", 10.0, 60.0, (0, -1)),
        ("EPSG:3995", 2e6, 0.0, (-1, 0)),  # 90 degrees east of the polar map's meridian: the pole is in the west
        ("EPSG:3031", 0.0, 2e6, (0, -1)),  # at the South Pole all ways lead north: here away from it
    ],
)
def test_the_north_is_where_the_pole_is(crs, x, y, expected):
    assert north_of(grid_at(crs, x, y, 1e-5 if crs == "EPSG:4326" else 1.0)) == pytest.approx(expected, abs=1e-3)


def test_a_picture_without_a_place_has_no_north():
    assert north_of(Grid(None, Affine(1, 0, 0, 0, -1, 0), 10, 10, 0.5)) is None


def test_the_bar_is_as_long_on_the_ground_as_it_says():
    # Web Mercator shows the ground at 60 degrees twice as large as it is
    _, y = pyproj.Transformer.from_crs(4326, 3857, always_xy=True).transform(0, 60)
    metres, pixels = bar_of(grid_at("EPSG:3857", 0, y), 90, 50)
    assert metres == 20
    assert pixels == pytest.approx(40, rel=0.01)
    assert bar_of(Grid(None, Affine(1, 0, 0, 0, -1, 0), 10, 400, 0.5), 100, 5) == (50, 100)


def polygons(**columns):
    shapes = [shapely.box(20 * k + 5, 30, 20 * k + 15, 70) for k in range(5)]
    return gpd.GeoDataFrame(columns, geometry=shapes[: len(next(iter(columns.values())))], crs="EPSG:32648")


def test_each_polygon_has_the_line_of_its_status_layer_or_confidence():
    table = polygons(
        confidence=[0.9, 0.3, None, 0.1, 0.7],
        status=["unreviewed", "accepted", "unreviewed", "unreviewed", "rejected"],
        layer=["landslides", "landslides", "landslides", "candidates", "landslides"],
    )
    expected = {grade_of(0.9): 1, UNKNOWN: 1, CANDIDATE: 1, ACCEPTED_LINE: 1, REJECTED_LINE: 1}
    assert lines_of(table) == expected
    assert grade_of(0.2).label == "confidence 0.2 to 0.4"
    assert grade_of(1.0).label == "confidence 0.8 to 1"


def test_layers_come_together_whatever_columns_they_have():
    layers = {
        "landslides": polygons(confidence=[0.5, 0.6]),
        "rejected": polygons(status=["rejected"]).rename_geometry("geom"),
        "candidates": polygons(confidence=[0.5]).iloc[:0],
    }
    table = together_of(layers, pyproj.CRS("EPSG:32648"))
    assert table["layer"].tolist() == ["landslides", "landslides", "rejected"]
    assert lines_of(table) == {grade_of(0.6): 1, grade_of(0.5): 1, REJECTED_LINE: 1}
    assert len(together_of({}, None)) == 0


@pytest.fixture
def scene(tmp_path):
    values = np.full((3, 100, 200), 60, np.uint8)
    values[:, :, 100:] = 160
    path = tmp_path / "scene.tif"
    size = {"count": 3, "height": 100, "width": 200}
    with rasterio.open(
        path, "w", driver="GTiff", dtype="uint8", crs="EPSG:32648", transform=Affine(1, 0, 0, 0, -1, 100), **size
    ) as file:
        file.write(values)
    return path


def test_outlines_are_drawn_where_they_are(scene, tmp_path):
    table = polygons(confidence=[0.9])
    source = Source.open(scene, stretch="none")
    write_preview(tmp_path / "a.png", table, [source], title="one")
    write_preview(tmp_path / "b.png", table, [source], title="one")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    with Image.open(tmp_path / "a.png") as opened:
        picture = np.asarray(opened.convert("RGB")).astype(int)
    wanted = np.round(np.multiply(grade_of(0.9).rgb, 255))
    rows, cols = np.nonzero((np.abs(picture - wanted) < 30).all(axis=2))
    drawn = rows < 380  # not the legend
    scale = picture.shape[1] / 200
    assert (cols[drawn].min() / scale, cols[drawn].max() / scale) == pytest.approx((5, 15), abs=0.8)
    top = np.nonzero((np.abs(picture - 60) < 3).all(axis=2).mean(axis=1) > 0.3)[0].min()
    assert ((rows[drawn].min() - top) / scale, (rows[drawn].max() - top) / scale) == pytest.approx((30, 70), abs=0.8)


def read(path):
    with Image.open(path) as opened:
        return np.asarray(opened.convert("RGB")).astype(int)


def test_the_bar_is_seen_on_dark_and_on_bright_ground(tmp_path):
    """Both halves and what is around them: none is as bright as the ground on all sides."""
    for grey in (0, 255):
        path = tmp_path / f"{grey}.tif"
        size = {"count": 3, "height": 400, "width": 400, "transform": Affine(1, 0, 0, 0, -1, 400)}
        with rasterio.open(path, "w", driver="GTiff", dtype="uint8", crs="EPSG:32648", **size) as file:
            file.write(np.full((3, 400, 400), grey, np.uint8))
        source = Source.open(path, stretch="none")
        picture = tmp_path / f"{grey}.png"
        write_preview(picture, polygons(confidence=[0.9]), [source], title="one")
        shown = read(picture)[-110:-44, :300].mean(axis=2)
        _, length = bar_of(source.grid, 80, 390)
        line = (np.abs(shown - grey) > 128).sum(axis=1).max()  # pixels of a row that stand out from the ground
        assert line >= 0.95 * length * 700 / 400


def test_masked_and_excluded_ground_is_hatched_and_named(scene, tmp_path):
    source = Source.open(scene, stretch="none")
    ring = shapely.box(110, 20, 190, 80).difference(shapely.box(130, 35, 170, 65))
    grounds = {MASKED_GROUND: gpd.GeoDataFrame(geometry=[ring], crs="EPSG:32648")}
    write_preview(tmp_path / "a.png", polygons(confidence=[0.9]), [source], title="one")
    write_preview(tmp_path / "b.png", polygons(confidence=[0.9]), [source], title="one", grounds=grounds)
    one, other = read(tmp_path / "a.png"), read(tmp_path / "b.png")
    scale = one.shape[1] / 200
    changed = (np.abs(one - other).max(axis=2) > 20)[44:]
    rows, cols = np.mgrid[: changed.shape[0], : changed.shape[1]] / scale
    x, y = cols, 100 - rows
    inner = (np.abs(x - 150) < 18) & (np.abs(y - 50) < 13)
    around = (np.abs(x - 150) < 39) & (np.abs(y - 50) < 29) & ~((np.abs(x - 150) < 21) & (np.abs(y - 50) < 16))
    assert changed[around].mean() > 0.85  # not where a line is as bright as the ground
    assert not changed[inner].any()
    assert changed[int(100 * scale) :].any()  # the legend
    nothing = {MASKED_GROUND: grounds[MASKED_GROUND].iloc[:0]}
    write_preview(tmp_path / "c.png", polygons(confidence=[0.9]), [source], title="one", grounds=nothing)
    assert np.array_equal(read(tmp_path / "c.png"), one)


def test_a_picture_needs_a_scene_or_polygons(tmp_path):
    with pytest.raises(SceneError, match="give --scene"):
        write_preview(tmp_path / "a.png", polygons(confidence=[0.9]).iloc[:0], [], title="none")
    with pytest.raises(OutputError, match=r"end with \.png, \.jpg"):
        write_preview(tmp_path / "a.pdf", polygons(confidence=[0.9]), [], title="none")
    write_preview(tmp_path / "a.jpg", polygons(confidence=[0.9]), [], title="no scene")
    with Image.open(tmp_path / "a.jpg") as picture:
        assert picture.format == "JPEG"


def test_a_turned_scene_is_shown_with_north_up(scene):
    turned = Grid(pyproj.CRS("EPSG:32648"), Affine.rotation(30) * Affine.scale(1, -1), 100, 200)
    frame = frame_of([turned], turned.crs, 10_000)
    assert (frame.transform.b, frame.transform.d) == (0, 0)
    assert frame.transform.e < 0 < frame.transform.a
    assert frame.outline.buffer(0.01).contains(turned.outline)
    assert frame.width * frame.height == pytest.approx(10_000, rel=0.05)


def test_extract_draws_what_it_found(scene, tmp_path):
    out = {"out": tmp_path / "slides.gpkg", "preview": tmp_path / "slides.png"}
    found = geolabel.extract(scene, **out)
    with Image.open(tmp_path / "slides.png") as picture:
        assert picture.width >= 700
    with pytest.raises(OutputError, match="exists"):
        geolabel.extract(scene, out=tmp_path / "others.gpkg", preview=out["preview"])
    with pytest.raises(OptionError, match="share a name"):
        geolabel.extract(scene, score_out=tmp_path / "a.png", preview=tmp_path / "a.png")
    assert len(found) == len(gpd.read_file(out["out"], layer="landslides"))

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pyproj
import pytest
import shapely
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from rasterio.features import geometry_mask

from geolabel.errors import SceneError
from geolabel.scene import Grid, inside
from geolabel.testing import grids
from geolabel.tiles import Window

UTM = pyproj.CRS("EPSG:32632")
SITE = pyproj.CRS.from_wkt(
    'ENGCRS["site",EDATUM["gate"],CS[Cartesian,2],AXIS["x",east],AXIS["y",north],LENGTHUNIT["foot",0.3048]]'
)
CUSTOM = pyproj.CRS("+proj=laea +lat_0=46.5 +lon_0=9.3 +datum=WGS84 +units=m")


def north_up(x, y, size, crs, height=100, width=100):
    return Grid(crs, Affine(size, 0, x, 0, -size, y), height, width)


def test_utm_pixels_are_metres_over_the_scale_factor():
    # On the central meridian UTM shrinks lengths by 0.9996.
    width, height = north_up(500_000 - 25, 5_000_000, 0.5, UTM).pixel_size_m()
    assert width == pytest.approx(0.5 / 0.9996, rel=1e-6)
    assert height == pytest.approx(0.5 / 0.9996, rel=1e-6)


def test_web_mercator_at_60_degrees_is_half_of_what_it_says():
    y = pyproj.Transformer.from_crs(4326, 3857, always_xy=True).transform(0, 60)[1]
    width, height = north_up(0, y + 50, 1.0, pyproj.CRS(3857)).pixel_size_m()
    # EPSG:3857 is a sphere's projection of ellipsoidal coordinates: the two directions differ a little.
    n = 6378137 / math.sqrt(1 - 0.00669438 * math.sin(math.radians(60)) ** 2)
    assert width == pytest.approx(n / 6378137 * 0.5, rel=1e-4)
    assert height == pytest.approx(0.5, rel=5e-3)
    assert width != pytest.approx(height, rel=1e-4)


def test_degrees_are_measured_where_the_scene_is():
    one_arcsecond = north_up(10, 45.0 + 50 / 3600, 1 / 3600, pyproj.CRS(4326))
    width, height = one_arcsecond.pixel_size_m()
    # Arcs of a second at 45 degrees: 111131.75 m and 78846.8 m per degree.
    assert height == pytest.approx(111_131.75 / 3600, rel=1e-4)
    assert width == pytest.approx(78_846.8 / 3600, rel=1e-4)
    assert one_arcsecond.gsd == pytest.approx(math.sqrt(width * height))


def test_survey_feet():
    # New York Long Island, US survey feet; the projection's scale is within 1e-4 of one.
    assert north_up(985_000, 210_000, 1.0, pyproj.CRS(2263)).gsd == pytest.approx(0.3048006, rel=1e-4)


def test_custom_projection():
    assert north_up(0, 0, 2.0, CUSTOM).gsd == pytest.approx(2, rel=1e-5)


def test_a_compound_crs_counts_its_horizontal_part():
    assert north_up(2_600_000, 1_200_000, 0.1, pyproj.CRS("EPSG:2056+5728")).gsd == pytest.approx(0.1, rel=1e-3)


@pytest.mark.parametrize("angle", [0, 30, 90, 137])
def test_rotation_keeps_the_pixel_size(angle):
    turned = Affine.translation(500_000, 5_000_000) * Affine.rotation(angle) * Affine.scale(0.5, -0.25)
    width, height = Grid(UTM, turned, 40, 40).pixel_size_m()
    assert (width, height) == pytest.approx((0.5 / 0.9996, 0.25 / 0.9996), rel=1e-5)


def test_south_up_is_as_good_as_north_up():
    up = Grid(UTM, Affine(0.5, 0, 5e5, 0, 0.5, 5e6), 100, 100)
    assert up.gsd == pytest.approx(0.5 / 0.9996, rel=1e-5)


def test_without_crs_a_unit_has_the_length_that_it_is_given():
    picture = Grid(None, Affine(2, 0, 0, 0, -2, 0), 10, 10, unit_m=0.25)
    assert picture.pixel_size_m() == (0.5, 0.5)
    with pytest.raises(SceneError, match="--gsd"):
        Grid(None, Affine(1, 0, 0, 0, -1, 0), 10, 10).pixel_size_m()


def test_an_engineering_crs_counts_in_its_own_unit():
    assert Grid(SITE, Affine(2, 0, 0, 0, -2, 0), 10, 10).gsd == pytest.approx(0.6096)


def test_a_transform_that_leaves_the_earth_is_refused():
    with pytest.raises(SceneError, match="is outside"):
        north_up(5e8, 5e8, 1.0, UTM).pixel_size_m()


@pytest.mark.parametrize("transform", [Affine(0, 0, 0, 0, -1, 0), Affine(math.nan, 0, 0, 0, -1, 0)])
def test_pixels_need_an_area(transform):
    with pytest.raises(SceneError, match="no area"):
        Grid(UTM, transform, 10, 10)


def test_a_grid_needs_pixels():
    with pytest.raises(SceneError, match="has no pixels"):
        Grid(UTM, Affine.identity(), 0, 10)


def test_at_gsd_keeps_the_extent():
    grid = north_up(500_000, 5_000_000, 0.5, UTM, 300, 401)
    coarse = grid.at_gsd(1.0)
    assert (coarse.height, coarse.width) == (150, 201)
    assert coarse.transform * (0, 0) == grid.transform * (0, 0)
    assert coarse.transform * (201, 150) == pytest.approx(grid.transform * (401, 300))


def test_at_gsd_evens_out_pixels_that_are_not_square():
    degrees = north_up(10, 60, 1e-4, pyproj.CRS(4326), 500, 500)
    width, height = degrees.at_gsd(5.0).pixel_size_m()
    assert width == pytest.approx(5, rel=0.01)
    assert height == pytest.approx(5, rel=0.01)


def test_a_grid_that_is_near_enough_is_used_as_it_is():
    grid = north_up(500_000, 5_000_000, 0.5, UTM)
    assert grid.at_gsd(0.503) is grid
    assert grid.at_gsd(0.51) is not grid


@pytest.mark.parametrize(
    ("size", "expected"), [(0.05, 0.2), (0.2, 0.2), (1.0, 1.0), (3.0, 1.5), (6.0, 1.5), (10.0, 2.5), (30.0, 7.5)]
)
def test_working_grid_stays_in_the_networks_range_and_enlarges_four_times_at_most(size, expected):
    assert north_up(500_000, 5_000_000, size, UTM, 400, 400).working((0.2, 1.5)).gsd == pytest.approx(
        expected, rel=0.02
    )


def test_crop_moves_the_origin():
    grid = north_up(500_000, 5_000_000, 0.5, UTM)
    part = grid.crop(Window(10, 20, 30, 40))
    assert (part.height, part.width) == (30, 40)
    assert part.transform * (0, 0) == grid.transform * (20, 10)
    with pytest.raises(SceneError, match="is not inside a grid"):
        grid.crop(Window(80, 0, 30, 10))


FAN = shapely.Polygon([(3.2, 4.1), (170.7, 30.3), (150.4, 180.9), (90.1, 60.6), (20.9, 170.2)])
HOLED = FAN.difference(shapely.box(60, 40, 100.3, 55.7))


@pytest.mark.parametrize("geometry", [FAN, HOLED, shapely.MultiPolygon([FAN, shapely.box(180, 180, 190, 190)])])
@pytest.mark.parametrize("angle", [0, 25])
def test_inside_agrees_with_gdal(geometry, angle):
    transform = Affine.rotation(angle) * Affine.translation(-20, 210) * Affine.scale(1, -1)
    grid = Grid(UTM, transform, 230, 240)
    expected = geometry_mask([geometry], (230, 240), transform, invert=True)
    np.testing.assert_array_equal(inside(geometry, grid, grid.window), expected)


@given(st.integers(0, 199), st.integers(0, 199), st.integers(1, 100), st.integers(1, 100))
def test_inside_depends_on_no_window(row, col, height, width):
    grid = Grid(None, Affine(1, 0, 0, 0, 1, 0), 200, 200)
    window = Window(row, col, min(height, 200 - row), min(width, 200 - col))
    np.testing.assert_array_equal(inside(HOLED, grid, window), inside(HOLED, grid, grid.window)[window.slices])


@given(grid=grids(), row=st.integers(-500, 500), col=st.integers(-500, 500), size=st.integers(1, 40))
def test_grids_that_share_pixels_know_where_the_other_lies(grid: Grid, row: int, col: int, size: int) -> None:
    moved = grid.transform * Affine.translation(col, row)
    other = Grid(grid.crs, moved, size, size + 1)
    assert grid.window_of(other) == Window(row, col, size, size + 1)
    back = other.window_of(grid)
    assert back is not None
    assert (back.row, back.col) == (-row, -col)


@pytest.mark.parametrize(
    "change",
    [
        Affine.translation(0.4, 0),
        Affine.translation(0, 0.1),
        Affine.scale(1.01),
        Affine.rotation(1),
        Affine.scale(1, -1),
    ],
    ids=["half a pixel", "a tenth", "scale", "rotation", "flip"],
)
def test_grids_that_share_no_pixels_do_not(change: Affine) -> None:
    grid = Grid(pyproj.CRS.from_epsg(32648), Affine(0.5, 0, 500_000, 0, -0.5, 3_000_000), 50, 60)
    assert grid.window_of(replace(grid, transform=grid.transform * change)) is None
    assert grid.window_of(replace(grid, crs=pyproj.CRS.from_epsg(32649))) is None
    assert replace(grid, crs=None, unit_m=1.0).window_of(replace(grid, crs=None, unit_m=1.0)) is None

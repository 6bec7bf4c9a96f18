from __future__ import annotations

import numpy as np
import pyproj
import pytest
import shapely

from geolabel.geodesy import measure

WGS84 = pyproj.Geod(ellps="WGS84")


def multi(*polygons):
    return np.array([shapely.MultiPolygon([polygon]) for polygon in polygons], object)


def ground_rectangle(lon, lat, length, width, azimuth):
    """Corners, in degrees, of a rectangle of metres on the ground around a point."""
    half = np.hypot(length, width) / 2
    turn = np.degrees(np.arctan2(width, length))
    angles = [azimuth + turn, azimuth + 180 - turn, azimuth + 180 + turn, azimuth - turn]
    x, y, _ = WGS84.fwd([lon] * 4, [lat] * 4, angles, [half] * 4)
    return np.column_stack([x, y])


@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:3857", "EPSG:32632", "EPSG:2154"])
@pytest.mark.parametrize("lat", [46.0, 60.0])
def test_a_rectangle_has_the_same_size_in_any_crs(crs, lat):
    corners = ground_rectangle(9.0, lat, 400, 100, 35)
    to_crs = pyproj.Transformer.from_crs("EPSG:4326", crs, always_xy=True)
    polygon = shapely.Polygon(np.column_stack(to_crs.transform(*corners.T)))
    sizes = measure(multi(polygon), pyproj.CRS(crs))
    assert sizes.area_m2[0] == pytest.approx(40000, rel=1e-4)
    assert sizes.perimeter_m[0] == pytest.approx(1000, rel=1e-4)
    assert sizes.length_m[0] == pytest.approx(400, rel=1e-3)
    assert sizes.width_m[0] == pytest.approx(100, rel=1e-3)
    assert sizes.elongation[0] == pytest.approx(4, rel=1e-3)
    assert abs(sizes.lon[0] - 9) < 0.003
    assert abs(sizes.lat[0] - lat) < 0.003


def test_holes_are_no_area_but_have_an_outline():
    crs = pyproj.CRS("EPSG:32648")
    holed = shapely.Polygon(
        shapely.box(500000, 0, 500100, 100).exterior, [shapely.box(500040, 40, 500060, 60).exterior]
    )
    sizes = measure(multi(holed, holed.reverse(), shapely.box(500000, 0, 500100, 100)), crs)
    scale = 0.9996  # of UTM on its central meridian
    assert sizes.area_m2 * scale**2 == pytest.approx([9600, 9600, 10000], rel=1e-5)
    assert sizes.perimeter_m * scale == pytest.approx([480, 480, 400], rel=1e-5)


def test_parts_and_neighbours_do_not_mix():
    two = shapely.MultiPolygon([shapely.box(0, 0, 1, 1), shapely.box(5, 0, 7, 1)])
    one = shapely.MultiPolygon([shapely.box(0, 0, 3, 3)])
    flat = measure(np.array([two, one], object), None, unit_m=2)
    assert flat.area_m2.tolist() == [12, 36]
    assert flat.perimeter_m.tolist() == [20, 24]
    assert flat.length_m.tolist() == [14, 6]
    assert flat.width_m.tolist() == [2, 6]
    assert np.isnan(flat.lon).all()
    assert np.isnan(flat.lat).all()
    round_ = measure(np.array([two, one], object), pyproj.CRS("EPSG:32631"))
    assert round_.area_m2 == pytest.approx([3, 9], rel=0.01)


def test_the_smallest_rectangle_may_lie_askew():
    slanted = shapely.Polygon([(0, 0), (3, 3), (2, 4), (-1, 1)])
    sizes = measure(multi(slanted), None)
    assert sizes.length_m[0] == pytest.approx(3 * np.sqrt(2))
    assert sizes.width_m[0] == pytest.approx(np.sqrt(2))


def test_degrees_count_from_greenwich_whatever_the_crs_counts_in():
    # NTF (Paris) counts grads from the meridian of Paris, 2.337 degrees east of Greenwich
    sizes = measure(multi(shapely.box(-0.001, 50, 0.001, 50.002)), pyproj.CRS("EPSG:4807"))
    assert sizes.lon[0] == pytest.approx(2.33722917, abs=1e-4)
    assert sizes.lat[0] == pytest.approx(45.0009, abs=1e-4)
    assert sizes.area_m2[0] == pytest.approx(200.05 * 141.9, rel=0.01)


def test_feet():
    crs = pyproj.CRS("EPSG:2263")  # New York, US survey feet
    polygon = shapely.box(1000000, 200000, 1000000 + 3280.8333, 200000 + 328.08333)
    sizes = measure(multi(polygon), crs)
    assert sizes.length_m[0] == pytest.approx(1000, rel=1e-3)
    assert sizes.area_m2[0] == pytest.approx(100000, rel=1e-3)
    site = pyproj.CRS.from_wkt('LOCAL_CS["site",UNIT["foot",0.3048]]')
    assert measure(multi(shapely.box(0, 0, 10, 10)), site).area_m2[0] == pytest.approx(9.290304)


def test_beyond_the_projection_sizes_are_unknown():
    sizes = measure(multi(shapely.box(1e9, 1e9, 1.1e9, 1.1e9)), pyproj.CRS("EPSG:32648"))
    assert np.isnan([sizes.area_m2[0], sizes.length_m[0], sizes.lon[0]]).all()


def test_nothing_measures_nothing():
    assert len(measure(np.zeros(0, object), None).area_m2) == 0

"""Polygons at the antimeridian, and at the edges of maps of the world."""

from pathlib import Path

import geopandas as gpd
import numpy as np
import pyproj
import pytest
import rasterio
import shapely
from affine import Affine
from shapely import box

from geolabel.evaluation.evaluate import evaluate
from geolabel.extraction.result import reprojected
from geolabel.geodesy import measure, near, reproject, unwrapped
from geolabel.io.read.features import in_crs, read_aoi
from geolabel.io.write.vectors import write_layers
from geolabel.polygons import Geometries
from geolabel.scene import Grid

LONLAT = pyproj.CRS(4326)
UTM = pyproj.CRS(32601)
RING = box(179.998, 10, 180.002, 10.004).difference(box(179.999, 10.001, 180.001, 10.003))
"""Of 440 m a side, with a hole; the antimeridian runs through the middle of both."""


def in_utm(*lonlat: shapely.Geometry) -> Geometries:
    to_utm = pyproj.Transformer.from_crs(LONLAT, UTM, always_xy=True)
    return shapely.transform(np.array(lonlat, object), to_utm.transform, interleaved=False)


def ground(geometry: shapely.Geometry, crs: pyproj.CRS) -> float:
    """Geodesic area of a geometry, part by part."""
    back = pyproj.Transformer.from_crs(crs, LONLAT, always_xy=True)
    parts = shapely.get_parts([shapely.transform(geometry, back.transform, interleaved=False)])
    return sum(abs(pyproj.Geod(ellps="WGS84").geometry_area_perimeter(part)[0]) for part in parts)


@pytest.mark.parametrize("target", [4326, 4258, 4979, 3857, 3395, 8857, "+proj=longlat +datum=WGS84 +lon_wrap=180"])
def test_what_the_edge_of_a_map_runs_through_is_cut_there(target: int | str):
    crs = pyproj.CRS(target)
    (moved,) = reproject(in_utm(RING), UTM, crs)
    assert moved.geom_type == "MultiPolygon"
    assert moved.is_valid
    assert max(part.bounds[2] - part.bounds[0] for part in moved.geoms) < (0.0021 if crs.is_geographic else 300)
    assert ground(moved, crs) == pytest.approx(ground(RING, LONLAT), rel=1e-5)
    if crs.is_geographic:
        west, east = sorted(moved.geoms, key=lambda part: -part.bounds[0])
        assert (west.bounds[2], east.bounds[0]) == (180, -180)


@pytest.mark.parametrize("target", [32601, 32660, 3832, 3338, 3572, "+proj=longlat +pm=paris", "+proj=laea +lon_0=180"])
def test_maps_whose_edge_is_elsewhere_cut_nothing(target: int | str):
    (moved,) = reproject(in_utm(RING), UTM, pyproj.CRS(target))
    assert moved.geom_type == "Polygon"
    assert ground(moved, pyproj.CRS(target)) == pytest.approx(ground(RING, LONLAT), rel=1e-5)


def test_the_edge_of_a_map_may_be_any_meridian():
    crs = pyproj.CRS("+proj=merc +lon_0=-177")
    (moved,) = reproject(np.array([box(2.999, 10, 3.001, 10.002)]), LONLAT, crs)
    assert shapely.get_num_geometries(moved) == 2
    assert max(part.bounds[2] - part.bounds[0] for part in moved.geoms) < 200


def test_polygons_beside_the_antimeridian_stay_on_their_side():
    one, other = reproject(in_utm(box(179.99, 10, 180, 10.01), box(180, 10, 180.01, 10.01)), UTM, LONLAT)
    assert one.bounds == pytest.approx((179.99, 10, 180, 10.01))
    assert other.bounds == pytest.approx((-180, 10, -179.99, 10.01))


def test_sizes_are_those_of_the_whole():
    own = measure(shapely.multipolygons(in_utm(RING)[:, None]), UTM)
    for target in (4326, 3857):
        crs = pyproj.CRS(target)
        cut = measure(reproject(in_utm(RING), UTM, crs), crs)
        for name in ("area_m2", "perimeter_m", "length_m", "width_m"):
            assert getattr(cut, name) == pytest.approx(getattr(own, name), rel=1e-4), name
        assert np.abs(cut.lon) == pytest.approx(179.9985, abs=0.0006)


def test_longitudes_beyond_180_degrees_are_named_as_usual():
    sizes = measure(np.array([shapely.MultiPolygon([box(180.1, 10, 180.2, 10.1)])]), LONLAT)
    assert sizes.lon == pytest.approx(-179.85)


def test_outlines_drawn_across_the_antimeridian_are_taken_the_short_way():
    jumping = np.array([shapely.Polygon([(179.9, 0), (-179.9, 0), (-179.9, 1), (179.9, 1)])])
    assert unwrapped(jumping, LONLAT)[0].bounds == pytest.approx((179.9, 0, 180.1, 1))
    world = np.array([box(-180, -90, 180, 90)])
    assert unwrapped(world, LONLAT)[0].equals(world[0])
    area = in_crs(gpd.GeoDataFrame(geometry=jumping, crs=LONLAT), UTM, "a.geojson").geometry[0]
    assert area.area == pytest.approx(ground(box(179.9, 0, 180.1, 1), LONLAT), rel=2e-3)


def test_areas_are_turned_to_scenes_that_count_on_beyond_180_degrees(tmp_path: Path):
    grid = Grid(LONLAT, Affine(0.001, 0, 179.9, 0, -0.001, 1), 100, 200)
    halves = shapely.MultiPolygon([box(179.95, 0.9, 180, 1), box(-180, 0.9, -179.95, 1)])
    gpd.GeoDataFrame(geometry=[halves], crs=LONLAT).to_file(tmp_path / "aoi.geojson")
    area = read_aoi(tmp_path / "aoi.geojson", LONLAT, grid=grid)
    assert area.equals(box(179.95, 0.9, 180.05, 1))
    world = np.array([box(-180, -80, 180, 80)])
    assert near(world, LONLAT, grid.outline)[0].contains(grid.outline)


def test_a_geopackage_takes_boxes_that_are_cut(tmp_path: Path):
    frame = gpd.GeoDataFrame({"tile": [1, 2]}, geometry=in_utm(RING, box(179, 10, 179.1, 10.1)), crs=UTM)
    tiles = frame.set_geometry(gpd.GeoSeries(reprojected(frame, LONLAT), crs=LONLAT))
    empty = gpd.GeoDataFrame({"id": []}, geometry=[], crs=LONLAT)
    write_layers(tmp_path / "a.gpkg", empty, None, tiles, {}, crs=LONLAT)
    found = gpd.read_file(tmp_path / "a.gpkg", layer="tiles")
    assert shapely.get_num_geometries(found.geometry.to_numpy()).tolist() == [2, 1]


def test_one_landslide_scores_one_in_any_crs(tmp_path: Path):
    slide = gpd.GeoDataFrame(geometry=in_utm(RING), crs=UTM)
    slide.to_file(tmp_path / "utm.gpkg", layer="landslides")
    for target in (4326, 3857):
        path = tmp_path / f"{target}.gpkg"
        gpd.GeoDataFrame(geometry=reprojected(slide, pyproj.CRS(target)), crs=target).to_file(path, layer="landslides")
        for slides, truth in ((path, tmp_path / "utm.gpkg"), (tmp_path / "utm.gpkg", path)):
            result = evaluate(slides, truth)
            assert result.areas.iou == pytest.approx(1, abs=1e-4)
            assert (result.objects.true_objects, result.objects.matched) == (1, 1)
            assert result.true_ha == pytest.approx(ground(RING, LONLAT) / 1e4, rel=1e-4)
    left, bottom, right, top = slide.total_bounds
    place = Affine(2, 0, left, 0, -2, top)
    size = {"height": int(top - bottom) // 2, "width": int(right - left) // 2}
    with rasterio.open(
        tmp_path / "t.tif", "w", driver="GTiff", count=1, dtype="uint8", crs=UTM.to_wkt(), transform=place, **size
    ) as raster:
        raster.write(rasterio.features.rasterize(slide.geometry, raster.shape, transform=place), 1)
    assert evaluate(tmp_path / "4326.gpkg", tmp_path / "t.tif").areas.iou > 0.99

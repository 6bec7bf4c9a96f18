"""Polygons on pixels: the same ones whichever window they are drawn in."""

import numpy as np
import shapely
from affine import Affine
from rasterio import features

from geolabel.io.write.rasters import in_pixels, rasterize
from geolabel.scene import Grid
from geolabel.tiles import Window

GRID = Grid(None, Affine(0.5, 0.1, 1000, 0.1, -0.5, 2000), 60, 70, unit_m=1)


def scattered(count: int = 30) -> np.ndarray:
    rng = np.random.default_rng(0)
    places = [GRID.transform * tuple(place) for place in rng.uniform(0, 70, (count, 2))]
    return np.array([shapely.Point(place).buffer(rng.uniform(0.2, 6)) for place in places])


def test_windows_are_rasterized_as_the_whole_is():
    shapes = scattered()
    tree, values = shapely.STRtree(in_pixels(shapes, GRID)), np.arange(1, len(shapes) + 1, dtype=np.uint8)
    whole = rasterize(tree, values, GRID.window)
    expected = features.rasterize(zip(shapes, values, strict=True), (60, 70), transform=GRID.transform, dtype="uint8")
    np.testing.assert_array_equal(whole, expected)
    assert whole.dtype == np.uint8
    for window in (Window(0, 0, 7, 70), Window(13, 5, 20, 31), Window(59, 69, 1, 1)):
        np.testing.assert_array_equal(rasterize(tree, values, window), whole[window.slices])


def test_a_grid_draws_its_outline_as_it_lies():
    corners = shapely.get_coordinates(in_pixels(np.array([GRID.outline]), GRID)[0])
    np.testing.assert_allclose(corners, [[0, 0], [70, 0], [70, 60], [0, 60], [0, 0]], atol=1e-6)
    assert np.isclose(GRID.outline.area, abs(GRID.transform.determinant) * 60 * 70)

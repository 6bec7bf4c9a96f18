from __future__ import annotations

import numpy as np
import pytest
import rasterio.features
import shapely
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from geolabel import polygons
from geolabel.polygons import multipolygons, outlines, place, simplify, smooth, trace
from geolabel.spans import Spans
from geolabel.tiles import Window

shapes = st.tuples(st.integers(1, 12), st.integers(1, 12))
dense = st.builds(
    lambda shape, share, seed: np.random.default_rng(seed).random(shape) < share,
    shapes,
    st.sampled_from([0.3, 0.6, 0.8]),
    st.integers(0, 10**6),
)
masks = hnp.arrays(bool, shapes) | dense

TRANSFORMS = [
    Affine(0.5, 0, 400000, 0, -0.5, 3000000),
    Affine(0.5, 0, 400000, 0, 0.5, 3000000),  # south-up
    Affine.translation(91.8, 22.3) * Affine.rotation(31) * Affine.scale(1e-5, -1.1e-5),
]


def picture(text):
    return np.array([[character == "#" for character in line] for line in text.split()])


def labelled(mask):
    spans = Spans.of_mask(mask, Window(0, 0, *mask.shape))
    return spans, *spans.components(4)


def traced(mask):
    return trace(*labelled(mask))


def oracle(mask):
    found = rasterio.features.shapes(mask.astype(np.uint8), mask=mask, connectivity=4)
    return np.array([shapely.geometry.shape(geometry) for geometry, _ in found], object)


def same(ours, theirs):
    return sorted(shapely.to_wkb(shapely.normalize(ours))) == sorted(shapely.to_wkb(shapely.normalize(theirs)))


@given(masks)
def test_outlines_are_those_of_rasterio(mask):
    polygons = traced(mask)
    assert same(polygons, oracle(mask))
    assert shapely.is_valid(polygons).all()


def test_outlines_of_a_large_noisy_mask_are_those_of_rasterio():
    mask = np.random.default_rng(3).random((300, 400)) < 0.6
    assert same(traced(mask), oracle(mask))


@given(masks)
def test_polygons_come_in_the_order_of_their_objects(mask):
    spans, labels, count = labelled(mask)
    image = spans.paint(Window(0, 0, *mask.shape), labels + 1)
    for number, polygon in enumerate(trace(spans, labels, count), 1):
        filled = rasterio.features.rasterize([polygon], mask.shape)
        assert (filled == (image == number)).all()


def test_a_ring_starts_at_its_first_vertical_edge_and_has_no_collinear_vertex():
    (polygon,) = traced(picture(".## ### ###"))
    assert polygon.wkt == "POLYGON ((1 0, 1 1, 0 1, 0 3, 3 3, 3 0, 1 0))"
    (ring,) = traced(picture("### #.# ###"))
    assert ring.interiors[0].wkt == "LINEARRING (1 2, 1 1, 2 1, 2 2, 1 2)"


def test_objects_that_meet_at_a_corner_stay_apart():
    assert [polygon.wkt for polygon in traced(picture("#. .#"))] == [
        "POLYGON ((0 0, 0 1, 1 1, 1 0, 0 0))",
        "POLYGON ((1 1, 1 2, 2 2, 2 1, 1 1))",
    ]


def test_an_object_that_meets_itself_at_a_corner_encloses_a_hole():
    (polygon,) = traced(picture("#### #..# #.#. ####"))
    assert shapely.is_valid(polygon)
    assert len(polygon.interiors) == 1
    assert polygon.area == 12


@pytest.mark.parametrize("tolerance", [0.6, 1.5])
@given(mask=masks)
def test_simplified_outlines_stay_near_and_keep_their_number(mask, tolerance):
    exact = traced(mask)
    simpler = simplify(exact, tolerance)
    assert len(simpler) == len(exact)
    assert (shapely.area(simpler) > 0).all()
    assert (shapely.get_num_coordinates(simpler) <= shapely.get_num_coordinates(exact)).all()
    far = shapely.hausdorff_distance(shapely.boundary(simpler), shapely.boundary(exact))
    assert (far <= 2 * tolerance).all()


def test_simplify_by_hand():
    # the line from (2, 0) to (4, 3) passes the corners of the stairs at 0.55, 0.28 and 0.55 px
    stairs = traced(picture("##.. ###. ####"))
    assert simplify(stairs, 0.6)[0].equals(shapely.Polygon([(0, 0), (0, 3), (4, 3), (2, 0)]))
    assert simplify(stairs, 0)[0] is stairs[0]


def test_smoothing_cuts_corners_no_further_than_its_reach():
    square = shapely.box(0, 0, 100, 100)
    (smoothed,) = smooth(np.array([square], object), 8.0)
    assert square.contains(smoothed)
    assert smoothed.distance(shapely.Point(0, 0)) > 1
    for middle in [(50, 0), (100, 50), (9, 0), (0, 91)]:
        assert smoothed.boundary.distance(shapely.Point(middle)) < 1e-9
    assert len(shapely.get_coordinates(smoothed)) == 4 * 2**4 + 1


def test_smoothing_short_sides_is_chaikin():
    diamond = smooth(np.array([shapely.box(0, 0, 4, 4)], object), 1e9)[0]
    # the limit of Chaikin's scheme touches every side at its middle and lies inside
    assert shapely.box(0, 0, 4, 4).buffer(1e-9).contains(diamond)
    for middle in [(2, 0), (4, 2), (2, 4), (0, 2)]:
        assert diamond.boundary.distance(shapely.Point(middle)) < 1e-9
    assert 12 < diamond.area < 14  # 4/3 of the inscribed diamond's 8, and 16 - 4 * 2/3 in the limit: 13.33


@given(masks, st.sampled_from([0, 0.75, 2.5]), st.sampled_from([0, 0.5, 5.0]), st.sampled_from(TRANSFORMS))
def test_results_are_valid_multipolygons_in_place(mask, tolerance, reach, transform):
    spans, labels, count = labelled(mask)
    result = outlines(spans, labels, count, transform, tolerance=tolerance, reach=reach)
    assert (shapely.get_type_id(result) == shapely.GeometryType.MULTIPOLYGON).all()
    assert shapely.is_valid(result).all()
    assert (shapely.area(result) > 0).all()
    shells = shapely.get_exterior_ring(shapely.get_parts(result))
    if not (tolerance or reach):
        assert shapely.is_ccw(shells).all()
        pixel = abs(transform.determinant)
        assert shapely.area(result) / pixel == pytest.approx(np.bincount(labels, spans.lengths, count), rel=1e-4)


def test_broken_outlines_are_mended_and_lines_dropped():
    bow = shapely.Polygon([(0, 0), (2, 2), (2, 0), (0, 2)])
    tail = shapely.Polygon([(0, 0), (2, 0), (2, 2), (5, 2), (2, 2), (0, 2)])
    whole = shapely.box(0, 0, 1, 1)
    mended = multipolygons(np.array([bow, tail, whole], object))
    assert [len(geometry.geoms) for geometry in mended] == [2, 1, 1]
    assert shapely.area(mended).tolist() == [2, 4, 1]
    assert shapely.is_valid(mended).all()


def test_the_transform_is_applied_once_and_shells_run_counterclockwise():
    (polygon,) = traced(picture("#"))
    (north_up,) = place(np.array([polygon], object), Affine(2, 0, 10, 0, -2, 100))
    (south_up,) = place(np.array([polygon], object), Affine(2, 0, 10, 0, 2, 100))
    assert north_up.wkt == "POLYGON ((10 100, 10 98, 12 98, 12 100, 10 100))"
    assert south_up.wkt == "POLYGON ((10 100, 12 100, 12 102, 10 102, 10 100))"


def test_nothing_gives_nothing():
    assert len(outlines(*labelled(np.zeros((3, 3), bool)), Affine.identity(), tolerance=1, reach=1)) == 0


@pytest.mark.parametrize("pairs", [1, 3, 100])
def test_areas_of_many_pairs_are_those_of_each_with_few_intersections_at_once(
    monkeypatch: pytest.MonkeyPatch, pairs: int
):
    squares = np.array([shapely.box(k, 0, k + 4, 3) for k in range(4)])
    one, other = (indices.ravel() for indices in np.indices((4, 4)))
    made: list[int] = []
    whole = shapely.intersection

    def intersection(some: np.ndarray, others: np.ndarray) -> np.ndarray:
        made.append(len(some))
        return whole(some, others)

    monkeypatch.setattr(polygons, "PAIRS", pairs)
    monkeypatch.setattr(shapely, "intersection", intersection)
    areas = polygons.shared_areas(squares, squares, (one, other))
    assert areas.tolist() == (3 * (4 - np.abs(one - other))).tolist()
    assert max(made) == min(pairs, 16)

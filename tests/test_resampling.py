from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from rasterio.enums import Resampling
from scipy import sparse

from geolabel.errors import SceneError
from geolabel.resampling import Axis, axes, resample
from geolabel.scene import Grid
from geolabel.tiles import Window


def shares(axis, start, stop):
    span, matrix = axis.weights(start, stop)
    return span, matrix.toarray() / matrix.sum(axis=1)[:, None]


def test_shrinking_by_whole_numbers_averages_whole_pixels():
    span, weights = shares(Axis(Fraction(2), Fraction(0), 8), 1, 3)
    assert span == slice(2, 6)
    np.testing.assert_array_equal(weights, [[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]])


def test_shrinking_by_fractions_shares_pixels():
    # Two pixels over three: each has one whole source pixel and half of the middle one.
    span, weights = shares(Axis(Fraction(3, 2), Fraction(0), 3), 0, 2)
    assert span == slice(0, 3)
    np.testing.assert_allclose(weights, [[2 / 3, 1 / 3, 0], [0, 1 / 3, 2 / 3]])


def test_growing_interpolates_between_centres_and_repeats_the_frame():
    _, weights = shares(Axis(Fraction(1, 2), Fraction(0), 2), 0, 4)
    np.testing.assert_allclose(weights, [[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]])


def test_an_offset_moves_the_source():
    span, weights = shares(Axis(Fraction(2), Fraction(3), 9), 0, 1)
    assert span == slice(3, 5)
    np.testing.assert_array_equal(weights, [[0.5, 0.5]])


def test_an_overview_is_the_same_axis_on_fewer_pixels():
    assert Axis(Fraction(5, 2), Fraction(10), 100).resized(50) == Axis(Fraction(5, 4), Fraction(5), 50)


@st.composite
def axes_of_a_source(draw):
    """A source of some length, cropped to pixels and resized to some other length, as working grids are made."""
    length, target = draw(st.integers(1, 200)), draw(st.integers(1, 200))
    return Axis(Fraction(length, target), Fraction(0), length), target


@given(axes_of_a_source(), st.data())
def test_a_pixel_has_the_same_shares_in_every_window(case, data):
    axis, count = case
    start = data.draw(st.integers(0, count - 1))
    stop = data.draw(st.integers(start + 1, count))
    whole_span, whole = axis.weights(0, count)
    span, part = axis.weights(start, stop)
    expected = np.zeros((stop - start, axis.length))
    expected[:, whole_span] = whole.toarray()[start:stop]
    found = np.zeros_like(expected)
    found[:, span] = part.toarray()
    np.testing.assert_array_equal(found, expected)
    assert len(set(found.sum(axis=1))) == 1


@given(axes_of_a_source())
def test_a_shrunken_axis_keeps_the_mean(case):
    axis, count = case
    if axis.scale > 1:
        span, weights = shares(axis, 0, count)
        assert span == slice(0, axis.length)
        np.testing.assert_allclose(weights.mean(axis=0), 1 / axis.length)


UTM_NUMBERS = Affine(0.05, 0, 654_321.123456, 0, -0.05, 5_123_456.654321)
DEGREES = Affine(4.5e-7, 0, 9.123456789, 0, -4.5e-7, 46.987654321)
TURNED = Affine.translation(654_321, 5_123_456) * Affine.rotation(33) * Affine.scale(0.3, -0.3)


@pytest.mark.parametrize("transform", [UTM_NUMBERS, DEGREES, TURNED])
@pytest.mark.parametrize("size", [(7_001, 9_973), (30_000, 41_234), (90_001, 99_991)])
@pytest.mark.parametrize("factor", [0.21, 0.7, 1.9])
def test_a_cropped_grid_meets_the_same_source_pixels_exactly(transform, size, factor):
    height, width = size
    h, w = round(height * factor), round(width * factor)
    source = Grid(None, transform, height, width, unit_m=1)
    grid = Grid(None, transform * Affine.scale(width / w, height / h), h, w, unit_m=1)
    rows, cols = axes(source, grid)
    assert (rows, cols) == (
        Axis(Fraction(height, h), Fraction(0), height),
        Axis(Fraction(width, w), Fraction(0), width),
    )
    cut_rows, cut_cols = axes(source, grid.crop(Window(h // 3, w // 2, h // 4, w // 5)))
    assert cut_rows == Axis(rows.scale, rows.scale * (h // 3), height)
    assert cut_cols == Axis(cols.scale, cols.scale * (w // 2), width)


def test_the_scenes_own_pixels_are_aligned():
    source = Grid(None, UTM_NUMBERS, 1000, 1000, unit_m=1)
    for part in (source, source.crop(Window(123, 456, 300, 300))):
        assert all(axis.aligned for axis in axes(source, part))
    coarse = Grid(None, UTM_NUMBERS * Affine.scale(1000 / 999), 999, 999, unit_m=1)
    assert not any(axis.aligned for axis in axes(source, coarse))


@pytest.mark.parametrize(
    "transform",
    [
        UTM_NUMBERS * Affine.rotation(1),
        UTM_NUMBERS * Affine.scale(1, -1),
        UTM_NUMBERS * Affine.translation(-5, 0),
        UTM_NUMBERS * Affine.translation(0, 900.5),
    ],
)
def test_another_grid_is_refused(transform):
    with pytest.raises(SceneError, match="not the scene's own, scaled or cropped"):
        axes(Grid(None, UTM_NUMBERS, 1000, 1000, unit_m=1), Grid(None, transform, 100, 100, unit_m=1))


def test_a_scene_that_is_too_large_to_be_resampled_says_what_to_do():
    source = Grid(None, UTM_NUMBERS * Affine.scale(0.1), 100, 18_816_307, unit_m=1)
    with pytest.raises(SceneError, match=r"100 x 18816307 px.* too large to be resampled: .*--working-gsd"):
        axes(source, source.resized(171, 34_070_329))
    rows, cols = axes(source, source.crop(Window(10, 18_000_000, 50, 1000)))
    assert rows.aligned
    assert cols.aligned
    assert (rows.offset, cols.offset) == (10, 18_000_000)


def whole(height, width, h, w):
    rows, cols = Axis(Fraction(height, h), Fraction(0), height), Axis(Fraction(width, w), Fraction(0), width)
    return rows.weights(0, h)[1], cols.weights(0, w)[1]


def test_values_that_are_not_valid_reach_nobody():
    values = np.array([[[10, 20, 255, 255], [30, 255, 255, 255]]], np.uint8)
    valid = values[0] < 255
    out, kept = resample(values, valid, *whole(2, 4, 1, 2))
    np.testing.assert_array_equal(kept, [[True, False]])
    np.testing.assert_array_equal(out, [[[20, 0]]])


def test_half_of_the_weight_is_enough():
    values = np.array([[[8, 0], [0, 4]]], np.uint8)
    out, kept = resample(values, values[0] > 0, *whole(2, 2, 1, 1))
    assert kept.all()
    assert out.item() == 6


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.float32])
@pytest.mark.parametrize("size", [(30, 40), (37, 41), (60, 80)])
def test_shrinking_agrees_with_gdal(dtype, size):
    source = np.random.default_rng(1).integers(0, 200, (3, 120, 160)).astype(dtype)
    with rasterio.MemoryFile() as memory:
        with memory.open(driver="GTiff", height=120, width=160, count=3, dtype=dtype, transform=UTM_NUMBERS) as file:
            file.write(source)
        with memory.open() as file:
            expected = file.read(out_shape=(3, *size), resampling=Resampling.average)
    found, kept = resample(source, np.ones((120, 160), bool), *whole(120, 160, *size))
    assert kept.all()
    assert found.dtype == expected.dtype
    # GDAL rounds half up, and sums in another order.
    assert np.abs(found.astype(float) - expected).max() <= (1e-3 if dtype is np.float32 else 1)
    assert np.mean(found == expected) > 0.8 or dtype is np.float32


def test_growing_agrees_with_gdal():
    source = np.random.default_rng(2).random((1, 20, 30), np.float32)
    with rasterio.MemoryFile() as memory:
        with memory.open(driver="GTiff", height=20, width=30, count=1, dtype="float32", transform=UTM_NUMBERS) as file:
            file.write(source)
        with memory.open() as file:
            expected = file.read(out_shape=(1, 47, 75), resampling=Resampling.bilinear)
    found, _ = resample(source, np.ones((20, 30), bool), *whole(20, 30, 47, 75))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_infinities_and_nans_that_are_not_valid_do_no_harm():
    values = np.array([[[np.nan, 1, np.inf, 3]]], np.float32)
    out, kept = resample(values, np.isfinite(values[0]), *whole(1, 4, 1, 2))
    assert kept.all()
    np.testing.assert_array_equal(out, [[[1, 3]]])


def test_weights_are_whole_numbers():
    _, matrix = Axis(Fraction(1000, 777), Fraction(0), 1000).weights(0, 777)
    assert sparse.issparse(matrix)
    np.testing.assert_array_equal(matrix.data, np.rint(matrix.data))

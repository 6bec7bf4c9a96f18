from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from geolabel.errors import OptionError
from geolabel.radiometry import MID_GREY, Stretch, parse_stretch

EVERY = np.ones((1, 5), bool)


def sample(dtype, low=0, high=101):
    """Each band a ramp; its percentiles are its values."""
    return np.broadcast_to(np.arange(low, high).reshape(1, 1, -1), (3, 1, high - low)).astype(dtype)


def row(*values, dtype):
    return np.broadcast_to(np.array(values, dtype), (3, 1, len(values)))


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "uint16", "int32", "uint32", "float32", "float64"])
def test_percentiles_become_black_and_white(dtype):
    ramp = sample(dtype)
    stretch = Stretch.from_sample(ramp, np.ones(ramp.shape[1:], bool), "p2-98")
    assert (stretch.low, stretch.high) == ((2.0,) * 3, (98.0,) * 3)
    out = stretch.apply(row(0, 2, 50, 98, 101, dtype=dtype), EVERY)
    assert out.dtype == np.uint8
    assert out.shape == (1, 5, 3)
    np.testing.assert_array_equal(out[0, :, 0], [0, 0, 128, 255, 255])


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "float32"])
def test_negative_values_come_in_order(dtype):
    out = Stretch((-100.0,) * 3, (100.0,) * 3).apply(row(-128, -100, 0, 50, 127, dtype=dtype), EVERY)
    np.testing.assert_array_equal(out[0, :, 1], [0, 0, 128, 191, 255])


def test_tables_and_arithmetic_agree():
    values = np.arange(0, 65536, 13).reshape(1, 1, -1).repeat(3, axis=0)
    stretch, valid = Stretch((100.5, 0.0, 60_000.0), (3000.25, 65535.0, 60_001.0)), np.ones(values.shape[1:], bool)
    np.testing.assert_array_equal(
        stretch.apply(values.astype(np.uint16), valid), stretch.apply(values.astype(np.float64), valid)
    )


def test_bands_keep_their_order_and_their_numbers():
    bands = np.array([[[10]], [[20]], [[30]]], np.uint8)
    out = Stretch((0.0, 0.0, 30.0), (10.0, 40.0, 60.0)).apply(bands, np.ones((1, 1), bool))
    np.testing.assert_array_equal(out, [[[255, 128, 0]]])


def test_pixels_that_are_not_valid_count_nowhere_and_come_out_black():
    ramp = np.array(sample(np.int16))
    ramp[:, 0, 60:] = 9999
    valid = ramp[0] != 9999
    stretch = Stretch.from_sample(ramp, valid, "p0-100")
    assert stretch.high == (59.0,) * 3
    out = stretch.apply(ramp, valid)
    assert (out[~valid] == 0).all()
    assert out[valid].max() == 255


def test_two_values_hold_for_all_bands():
    stretch = Stretch.from_sample(sample(np.uint16), np.ones((1, 101), bool), "0,3000")
    assert (stretch.low, stretch.high) == ((0.0,) * 3, (3000.0,) * 3)


def test_none_leaves_bytes_alone():
    every = np.arange(256, dtype=np.uint8).reshape(1, 1, 256).repeat(3, axis=0)
    valid = np.ones((1, 256), bool)
    np.testing.assert_array_equal(
        Stretch.from_sample(every, valid, "none").apply(every, valid)[0, :, 2], np.arange(256)
    )
    with pytest.raises(OptionError, match="uint16"):
        Stretch.from_sample(every.astype(np.uint16), valid, "none")


def test_a_constant_band_is_mid_grey():
    flat = np.full((3, 4, 4), 7, np.uint16)
    stretch = Stretch.from_sample(flat, np.ones((4, 4), bool))
    assert (stretch.apply(flat, np.ones((4, 4), bool)) == MID_GREY).all()
    floats = flat.astype(np.float32)
    assert (Stretch.from_sample(floats, np.ones((4, 4), bool)).apply(floats, np.ones((4, 4), bool)) == MID_GREY).all()


def test_a_nearly_constant_band_shows_its_few_other_pixels():
    bands = np.full((3, 10, 100), 5, np.uint8)
    bands[:, 0, 0] = 9
    stretch = Stretch.from_sample(bands, np.ones((10, 100), bool))
    assert (stretch.low, stretch.high) == ((5.0,) * 3, (9.0,) * 3)


@pytest.mark.parametrize("spec", ["p2-98", "0,3000"])
@pytest.mark.parametrize("fill", [0, np.nan])
def test_a_scene_without_valid_pixels_gets_a_harmless_stretch(spec, fill):
    bands, valid = np.full((3, 4, 4), fill, np.float32), np.zeros((4, 4), bool)
    stretch = Stretch.from_sample(bands, valid, spec)
    assert stretch.empty
    assert (stretch.apply(bands, valid) == 0).all()


@given(hnp.arrays(st.sampled_from([np.float32, np.float64]), (3, 2, 3)))
def test_no_value_warns(bands):
    valid = np.isfinite(bands).all(axis=0)
    stretch = Stretch.from_sample(bands, valid)
    out = stretch.apply(bands, valid)
    assert (out[~valid] == 0).all()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("p98-2", "percentiles from 0 to 100"),
        ("p2-101", "percentiles from 0 to 100"),
        ("3000,0", "two finite values"),
        ("5,5", "two finite values"),
        ("nan,5", "two finite values"),
        ("0,inf", "two finite values"),
        ("1,2,3", "give percentiles"),
        ("", "give percentiles"),
        ("auto", "give percentiles"),
        ("p2", "give percentiles"),
    ],
)
def test_a_stretch_that_means_nothing(spec, message):
    with pytest.raises(OptionError, match=message):
        parse_stretch(spec)


def test_a_stretch_is_a_value():
    assert Stretch((0.0,) * 3, (1.0,) * 3) == Stretch((0.0,) * 3, (1.0,) * 3)
    assert hash(Stretch((0.0,) * 3, (1.0,) * 3))


@given(st.integers(-5, 260), st.integers(-5, 260))
def test_bytes_are_stretched_as_wider_integers_are(low, high):
    """Tables of either size agree."""
    if low >= high:
        return
    stretch = Stretch((low,) * 3, (high,) * 3)
    every = np.broadcast_to(np.arange(256), (3, 2, 256))
    valid = np.ones((2, 256), bool)
    assert (stretch.apply(every.astype(np.uint8), valid) == stretch.apply(every.astype(np.uint16), valid)).all()


@given(
    hnp.arrays(np.uint8, hnp.array_shapes(min_dims=1, max_dims=1, min_side=2, max_side=200)),
    st.floats(0, 49),
    st.floats(51, 100),
)
def test_percentiles_of_bytes_are_those_of_numpy(values, low, high):
    expected = np.percentile(values.astype(np.float64), (low, high))
    bands = np.broadcast_to(values, (3, 1, len(values)))
    found = Stretch.from_sample(bands, np.ones((1, len(values)), bool), f"p{low:.17f}-{high:.17f}")
    if expected[0] != expected[1]:
        assert (found.low[0], found.high[0]) == pytest.approx(tuple(expected), rel=1e-12, abs=1e-12)

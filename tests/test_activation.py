"""Activation maps: normalise, gate, quantise, enlarge."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from geolabel.activation import Activation, Enlarged, local_probability, normalise, quantise, upsample


def test_normalise_by_the_maximum_is_eq_1():
    raw = np.array([[[-2.0, 1.0], [4.0, 0.0]]], np.float32)
    assert normalise(raw).tolist() == [[[0.0, 0.25], [1.0, 0.0]]]


def test_normalise_by_a_constant_cuts_what_exceeds_it():
    raw = np.array([[[-2.0, 1.0], [4.0, 8.0]]], np.float32)
    assert normalise(raw, 4.0).tolist() == [[[0.0, 0.25], [1.0, 1.0]]]


@pytest.mark.parametrize("constant", [None, 3.0])
@pytest.mark.parametrize("value", [-1.0, 0.0])
def test_a_map_without_a_positive_value_becomes_zeros_and_is_not_inverted(constant, value):
    raw = np.full((2, 3, 3), value, np.float32)
    raw[:, 0, 0] = 3 * value
    normalised = normalise(raw, constant)
    assert normalised.dtype == np.float32
    assert not normalised.any()


def test_a_positive_constant_map_becomes_ones():
    assert (normalise(np.full((1, 2, 2), 0.3, np.float32)) == 1).all()


def test_classes_are_normalised_apart_and_the_input_is_kept():
    raw = np.array([[[1.0, 2.0]], [[10.0, 5.0]]], np.float32)
    before = raw.copy()
    assert normalise(raw).tolist() == [[[0.5, 1.0]], [[1.0, 0.5]]]
    normalise(raw, 2.0)
    assert (raw == before).all()


def test_the_constant_puts_the_operating_point_at_grey_120():
    raw = np.array([119.4, 120.0, 120.6], np.float32) / 255
    grey = quantise(normalise(raw, 1.0))
    assert grey.tolist() == [119, 120, 121]
    assert (grey > 120).tolist() == [False, False, True]


def brute_force(raw, bias, cells):
    _, height, width = raw.shape
    kh, kw = min(cells, height), min(cells, width)
    expected = np.empty(raw.shape)
    for i in range(height):
        for j in range(width):
            top, left = min(max(i - kh // 2, 0), height - kh), min(max(j - kw // 2, 0), width - kw)
            mean = raw[:, top : top + kh, left : left + kw].astype(float).mean(axis=(1, 2))
            expected[:, i, j] = 1 / (1 + np.exp(-(mean + bias)))
    return expected


@given(
    raw=arrays.arrays(
        np.float32,
        st.tuples(st.integers(1, 2), st.integers(1, 9), st.integers(1, 9)),
        elements=st.floats(-50, 50, width=32),
    ),
    cells=st.integers(1, 10),
)
def test_local_probability_is_the_sigmoid_of_the_windows_mean(raw, cells):
    bias = np.linspace(-1, 1, len(raw)).astype(np.float32)
    np.testing.assert_allclose(local_probability(raw, bias, cells), brute_force(raw, bias, cells), atol=1e-6)


@given(
    raw=arrays.arrays(np.float32, (2, 6, 7), elements=st.floats(-4, 4, width=32)),
    cells=st.integers(1, 8),
    sharpness=st.sampled_from([0.25, 1.0, 4.0]),
)
def test_local_probability_pools_as_the_training_does(raw, cells, sharpness):
    bias = np.array([-1, 1], np.float32)
    found = local_probability(raw, bias, cells, sharpness)
    k = [min(cells, side) for side in raw.shape[1:]]
    for i, j in ((0, 0), (3, 4), (5, 6)):
        top, left = (min(max(at - size // 2, 0), side - size) for at, size, side in zip((i, j), k, (6, 7), strict=True))
        window = raw[:, top : top + k[0], left : left + k[1]].astype(float)
        pooled = np.log(np.exp(sharpness * window).mean(axis=(1, 2))) / sharpness + bias
        # what a rounding of the largest of the map leaves of a window that is far below it
        np.testing.assert_allclose(found[:, i, j], 1 / (1 + np.exp(-pooled)), atol=2e-3 if sharpness > 1 else 1e-5)


def test_pooling_lies_between_the_mean_and_the_maximum():
    raw = np.array([[[0, 0, 0, 8]]], np.float32)
    found = [local_probability(raw, np.full(1, -4, np.float32), 4, r)[0, 0, 0] for r in (None, 1e-3, 1.0, 50.0)]
    assert found[0] == pytest.approx(1 / (1 + np.exp(2)))  # mean 2
    assert found[1] == pytest.approx(found[0], rel=1e-2)
    assert found[2] == pytest.approx(1 / (1 + np.exp(4 - np.log((3 + np.exp(8)) / 4))))
    assert found[3] == pytest.approx(1 / (1 + np.exp(-4 - np.log(1 / 4) / 50)))


def test_a_small_slide_does_not_drown_in_a_large_tile():
    raw = np.full((1, 64, 64), -3.0, np.float32)
    raw[:, 5:21, 40:56] = 3.0
    maps = Activation(normalise(raw, 3.0), local_probability(raw, np.zeros(1), 16), raw.max((1, 2)), 8, ("landslide",))
    assert maps.probability[0] == pytest.approx(1 / (1 + np.exp(-3)))
    assert 1 / (1 + np.exp(-raw.mean())) < 0.1  # the gate of the whole tile would have missed it


def test_local_probability_survives_huge_logits():
    raw = np.array([[[1e6, -1e6]]], np.float32)
    assert local_probability(raw, np.zeros(1), 1).tolist() == [[[1.0, pytest.approx(0.0, abs=1e-20)]]]


def test_quantise_rounds_to_nearest_and_clips():
    values = np.array([-0.5, 0, 0.49 / 255, 0.51 / 255, 0.5, 1, 1.5], np.float32)
    assert quantise(values).tolist() == [0, 0, 0, 1, 128, 255, 255]


def test_upsample_by_hand():
    # pixel centres lie a quarter and three quarters between cell centres; the frame repeats
    assert upsample(np.array([[0, 100]], np.uint8), 2, 2, 4).tolist() == [[0, 25, 75, 100]] * 2


def test_upsample_with_stride_one_cuts():
    values = np.arange(12, dtype=np.uint8).reshape(3, 4)
    assert upsample(values, 1, 2, 3).tolist() == [[0, 1, 2], [4, 5, 6]]


cells = arrays.arrays(np.uint8, st.tuples(st.integers(1, 7), st.integers(1, 7)))


@given(values=cells, stride=st.sampled_from([2, 3, 4, 8, 16]), cut=st.tuples(st.integers(0, 15), st.integers(0, 15)))
def test_upsample_equals_torch_to_half_a_grey_level(values, stride, cut):
    height, width = (max(1, side * stride - c) for side, c in zip(values.shape, cut, strict=True))
    whole = torch.nn.functional.interpolate(
        torch.from_numpy(values.astype(np.float64))[None, None], scale_factor=stride, mode="bilinear"
    )[0, 0].numpy()
    enlarged = upsample(values, stride, height, width)
    assert enlarged.shape == (height, width)
    assert np.abs(enlarged - whole[:height, :width]).max() <= 0.5 + 1e-9


@given(values=cells, stride=st.sampled_from([2, 4, 8]))
def test_upsample_equals_opencv(values, stride):
    height, width = values.shape[0] * stride, values.shape[1] * stride
    expected = cv2.resize(values.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    assert np.abs(upsample(values, stride, height, width) - expected).max() <= 0.5 + 1e-3


@given(values=arrays.arrays(np.uint8, (6, 6)), row=st.integers(0, 3), col=st.integers(0, 3))
def test_upsample_of_a_part_equals_the_part_of_the_whole_away_from_its_frame(values, row, col):
    stride = 4
    whole = upsample(values, stride, 24, 24)
    part = upsample(values[row : row + 3, col : col + 3], stride, 12, 12)
    inner = slice(stride // 2, 12 - stride // 2)
    placed = whole[row * stride : row * stride + 12, col * stride : col * stride + 12]
    assert (part[inner, inner] == placed[inner, inner]).all()


@given(
    arrays.arrays(np.uint8, arrays.array_shapes(min_dims=2, max_dims=2, max_side=6)),
    st.sampled_from([1, 2, 3, 8]),
    st.integers(0, 255),
    st.data(),
)
def test_nothing_exceeds_a_level_outside_its_reach_and_a_part_is_as_in_the_whole(values, stride, level, data):
    enlarged = Enlarged(values, stride)
    whole = enlarged[:, :] if stride == 1 else enlarged[: values.shape[0] * stride, : values.shape[1] * stride]
    part = tuple(
        slice(start, data.draw(st.integers(start + 1, n)))
        for n in whole.shape
        for start in [data.draw(st.integers(0, n - 1))]
    )
    assert (enlarged[part] == whole[part]).all()
    reach = enlarged.reach(level, part)
    inside = np.zeros(whole.shape, bool)
    if reach is not None:
        inside[reach] = True
        assert all(p.start <= r.start < r.stop <= p.stop for p, r in zip(part, reach, strict=True))
    assert not (whole[part] > level)[~inside[part]].any()

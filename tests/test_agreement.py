"""Agreement of label maps with masks: counts, figures and bootstrap intervals."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix

from geolabel.agreement import Agreement, count_pixels, paired_interval

TWO = ("background", "landslide")


def test_pixels_are_counted_by_truth_and_by_what_they_were_taken_for():
    predicted = np.array([[0, 1, 1], [1, 255, 0]], np.uint8)
    truth = np.array([[0, 1, 0], [255, 1, 1]], np.uint8)
    np.testing.assert_array_equal(count_pixels(predicted, truth, 2), [[1, 1], [1, 1]])


@given(st.integers(0, 2**32 - 1), st.integers(2, 5))
def test_counts_are_those_of_scikit_learn(seed: int, classes: int):
    predicted, truth = np.random.default_rng(seed).integers(0, classes, (2, 6, 7)).astype(np.uint8)
    expected = confusion_matrix(truth.ravel(), predicted.ravel(), labels=range(classes))
    np.testing.assert_array_equal(count_pixels(predicted, truth, classes), expected)


def test_figures_by_hand():
    # 40 right background, 10 false alarms, 5 missed, 45 hits
    figures = Agreement(np.array([[[20, 5], [5, 20]], [[20, 5], [0, 25]]]), TWO).figures()
    assert figures["overall_accuracy"] == 85 / 100
    assert figures["precision"] == 45 / 55
    assert figures["recall"] == 45 / 50
    assert figures["iou"] == 45 / 60
    assert figures["f1"] == pytest.approx(90 / 105)
    assert figures["miou"] == pytest.approx((45 / 60 + 40 / 55) / 2)


@given(st.lists(st.integers(0, 50), min_size=4, max_size=4).filter(lambda v: sum(v[1:]) > 0))
def test_iou_follows_from_f1(values: list[int]):
    figures = Agreement(np.array(values).reshape(1, 2, 2), TWO).figures()
    assert figures["iou"] == pytest.approx(figures["f1"] / (2 - figures["f1"]))


def test_a_class_that_neither_side_has_is_left_out_of_the_mean():
    counts = np.zeros((1, 3, 3), np.int64)
    counts[0, 0, 0], counts[0, 1, 1], counts[0, 0, 1] = 6, 3, 3
    figures = Agreement(counts, ("background", "scar", "fan")).figures()
    assert math.isnan(figures["fan iou"])
    assert figures["scar iou"] == 0.5
    assert figures["miou"] == pytest.approx((6 / 9 + 0.5) / 2)


def test_intervals_hold_the_figure_and_close_where_all_chips_are_alike():
    random = np.random.default_rng(1)
    agreement = Agreement(random.integers(1, 30, (40, 2, 2)), TWO)
    found, low_high = agreement.figures(), agreement.interval()
    assert all(low < found[key] < high for key, (low, high) in low_high.items())
    assert low_high == agreement.interval()
    assert low_high != agreement.interval(seed=1)
    alike = Agreement(np.broadcast_to([[8, 1], [1, 10]], (5, 2, 2)), TWO)
    assert all(low == pytest.approx(high) for low, high in alike.interval().values())


def test_a_figure_that_is_nowhere_defined_has_no_interval():
    interval = Agreement(np.array([[[4, 0], [0, 0]]] * 3), TWO).interval()
    assert math.isnan(interval["iou"][0])
    assert interval["overall_accuracy"] == (1.0, 1.0)


def test_paired_differences():
    first, second = np.array([0.5, 0.7, np.nan, 0.9]), np.array([0.4, 0.6, 0.1, 0.8])
    mean, low, high = paired_interval(first, second)
    assert mean == low == high == pytest.approx(0.1)
    spread = np.linspace(-1, 1, 101)
    mean, low, high = paired_interval(spread, np.zeros(101))
    # the standard error of the mean is 0.583 / sqrt(101) = 0.058
    assert mean == pytest.approx(0)
    assert high == pytest.approx(1.96 * 0.058, abs=0.02)
    assert low == pytest.approx(-high, abs=0.03)
    assert all(math.isnan(v) for v in paired_interval([np.nan], [1.0]))

"""Figures of a sample, against published ones, hand-computed ones, and the share of intervals that hold the truth."""

from __future__ import annotations

import math

import numpy as np
import pytest

from geolabel.review.accuracy import ErrorMatrix, rare_total, ratio, right_of_rest, wilson


def test_the_error_matrix_gives_the_figures_of_its_source() -> None:
    """Olofsson et al. (2014), section 5: deforestation, forest gain, stable forest, other; 10 million pixels."""
    counts = [[66, 0, 5, 4], [0, 55, 8, 12], [1, 0, 153, 11], [2, 1, 9, 313]]
    found = ErrorMatrix.of_counts(counts, [0.020, 0.015, 0.320, 0.645], 10e6 * 0.09)
    half = [(one.high - one.low) / 2 for one in map(found.users, range(4))]
    assert [round(found.users(k).value, 2) for k in range(4)] == [0.88, 0.73, 0.93, 0.96]
    assert [round(one, 2) for one in half] == [0.07, 0.10, 0.04, 0.02]
    assert [round(found.producers(k).value, 2) for k in range(4)] == [0.75, 0.85, 0.93, 0.96]
    assert round(found.producers(0).value - found.producers(0).low, 2) == 0.21
    assert (round(found.overall().value, 2), round(found.overall().high - found.overall().value, 2)) == (0.95, 0.02)
    area = found.area_of(0)
    assert round(area.value) == 21_158
    assert round(area.high - area.value) == pytest.approx(6158, abs=1)


def test_a_ratio_is_that_of_sums_with_the_spread_of_its_units() -> None:
    """Parts 1, 0, 3 of wholes 2, 2, 4 of 80: share 1/2; residuals 0, -1, 1; variance 0.9 * 3 * (2 / 2) / 64."""
    share, variance = ratio(np.array([1.0, 0, 3]), np.array([2.0, 2, 4]), 80)
    assert (share, variance) == (0.5, pytest.approx(0.9 * 3 / 64))
    assert ratio(np.array([1.0, 0, 3]), np.array([2.0, 2, 4]), 8) == (0.5, 0.0)
    assert math.isnan(ratio(np.array([1.0]), np.array([2.0]), 8)[1])


def test_the_rest_is_right_as_its_strata_are() -> None:
    """Half of 10 and nine tenths of 30 are right: 5 + 27; variance 10 * 20 * 0.25 / 9 + 30 * 50 * 0.09 / 19."""
    found = right_of_rest([10, 30, 0], [10, 20, 7], [5, 18, 0])
    assert found.value == pytest.approx(32)
    variance = 200 * 0.25 / 9 + 1500 * 0.09 / 19
    low, high = wilson(0.8, 0.16 / (variance / 1600))
    assert (found.low, found.high) == (pytest.approx(40 * low), pytest.approx(40 * high))


def test_where_all_were_right_the_rest_may_still_be_wrong() -> None:
    found = right_of_rest([100], [10], [10])
    assert (found.value, found.high) == (100, 100)
    assert 60 < found.low < 80
    assert right_of_rest([0], [10], [5]).value == 0


def test_where_nothing_was_missed_something_may_be() -> None:
    """The rule of three, for two sides: 3.69 of what was looked at."""
    found = rare_total(np.zeros(10), np.ones(10), 1000)
    assert (found.value, found.low, found.high) == (0, 0, pytest.approx(368.9, abs=0.1))


def test_counts_in_clusters_are_less_sure() -> None:
    even, clustered = (rare_total(np.array(n, float), np.ones(8), 800) for n in ([1] * 8, [8] + [0] * 7))
    assert even.value == clustered.value == 800
    assert clustered.high - clustered.low > even.high - even.low


@pytest.mark.parametrize(("share", "looked"), [(0.5, 12), (0.9, 20), (0.97, 30)])
def test_intervals_hold_the_truth_about_as_often_as_they_say(share: float, looked: int) -> None:
    random = np.random.default_rng(0)
    held = []
    for _ in range(400):
        truth = random.random(200) < share
        chosen = random.permutation(200)[:looked]
        rest = np.delete(truth, chosen)
        found = right_of_rest([len(rest)], [looked], [int(truth[chosen].sum())])
        held.append(found.low <= rest.sum() <= found.high)
    assert np.mean(held) > 0.9


def test_intervals_of_rare_totals_hold_the_truth() -> None:
    random = np.random.default_rng(1)
    held = []
    for _ in range(400):
        truth = random.poisson(0.3, 300) * (random.random(300) < 0.5) * 2
        chosen = random.permutation(300)[:25]
        found = rare_total(truth[chosen].astype(float), np.ones(25), 300)
        held.append(found.low <= truth.sum() <= found.high)
    assert np.mean(held) > 0.88

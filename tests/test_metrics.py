import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import accuracy_score, cohen_kappa_score, f1_score, jaccard_score, precision_score, recall_score

from geolabel.metrics import (
    Boundary,
    Confusion,
    Overlaps,
    WidthCounts,
    edge_pixels,
    object_widths,
)

HAND = Confusion(tp=6, fp=2, fn=4, tn=88)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("overall_accuracy", 0.94),
        ("precision", 0.75),
        ("recall", 0.6),
        ("f1", 12 / 18),
        ("iou", 0.5),
        ("miou", (0.5 + 88 / 94) / 2),
        ("kappa", (0.94 - (8 * 10 + 92 * 90) / 10_000) / (1 - (8 * 10 + 92 * 90) / 10_000)),
    ],
)
def test_figures_by_hand(name: str, value: float):
    assert getattr(HAND, name) == pytest.approx(value, abs=1e-15)


def test_published_figures_are_tied():
    # APSAM, table I: F1 79.14 and IoU 65.48; 73.71 and 58.37
    for f1, iou in ((0.7914, 0.6548), (0.7371, 0.5837)):
        assert f1 / (2 - f1) == pytest.approx(iou, abs=1e-4)


MASKS = hnp.arrays(bool, (3, 5, 7))


@given(MASKS)
def test_arrays_are_counted_as_scikit_learn_counts(masks: np.ndarray):
    predicted, truth, valid = masks
    found = Confusion.of(predicted, truth, valid)
    assert found.total == valid.sum()
    p, t = predicted[valid], truth[valid]
    peers = {
        "overall_accuracy": accuracy_score(t, p) if valid.any() else math.nan,
        "precision": precision_score(t, p, zero_division=np.nan) if valid.any() else math.nan,
        "recall": recall_score(t, p, zero_division=np.nan) if valid.any() else math.nan,
        "f1": f1_score(t, p, zero_division=np.nan) if valid.any() else math.nan,
    }
    if (t | p).any():
        peers["iou"] = jaccard_score(t, p)
    if 0 < t.sum() < len(t):
        peers["kappa"] = cohen_kappa_score(t, p)
    for name, value in peers.items():
        assert getattr(found, name) == pytest.approx(value, abs=1e-12, nan_ok=True), name


@given(MASKS, st.integers(0, 7))
def test_parts_add_up(masks: np.ndarray, cut: int):
    whole = Confusion.of(*masks)
    assert Confusion.of(*masks[..., :cut]) + Confusion.of(*masks[..., cut:]) == whole


@given(*[st.integers(0, 10**6)] * 4)
def test_iou_and_f1_are_tied(tp: int, fp: int, fn: int, tn: int):
    found = Confusion(tp, fp, fn, tn)
    assert found.iou == pytest.approx(found.f1 / (2 - found.f1), nan_ok=True)


@pytest.mark.parametrize(
    ("confusion", "defined"),
    [
        (Confusion(), set()),
        (Confusion(tn=5), {"overall_accuracy", "miou"}),
        (Confusion(fp=5), {"overall_accuracy", "precision", "f1", "iou", "miou", "kappa"}),
        (Confusion(fn=5), {"overall_accuracy", "recall", "f1", "iou", "miou", "kappa"}),
        (Confusion(tp=5, tn=math.nan), {"precision", "recall", "f1", "iou"}),
    ],
)
def test_what_has_no_denominator_is_nan(confusion: Confusion, defined: set[str]):
    names = {"overall_accuracy", "precision", "recall", "f1", "iou", "miou", "kappa"}
    assert {name for name in names if not math.isnan(getattr(confusion, name))} == defined


def overlaps(true: list, polygon: list, pairs: dict) -> Overlaps:
    """Of objects that overlap no other of their own kind."""
    index, shared = np.array([*pairs], int).reshape(-1, 2), np.array([*pairs.values()], float)
    covered, correct = np.zeros(len(true)), np.zeros(len(polygon))
    np.add.at(covered, index[:, 0], shared)
    np.add.at(correct, index[:, 1], shared)
    return Overlaps(np.array(true, float), covered, np.array(polygon, float), correct, index, shared)


def test_objects_by_hand():
    # 0 is found exactly to half by a polygon of the same size: IoU 5/15; 1 is matched; 2 is missed
    scores = overlaps([10, 20, 30], [10, 22, 50, 4], {(0, 0): 5, (1, 1): 18, (2, 2): 14}).scores()
    assert (scores.true_objects, scores.found, scores.polygons, scores.right, scores.matched) == (3, 2, 4, 2, 1)
    assert (scores.found_share, scores.right_share) == (2 / 3, 0.5)
    assert (scores.precision, scores.recall, scores.f1) == (1 / 4, 1 / 3, 2 / 7)


def test_a_split_landslide_is_found_but_matched_once():
    scores = overlaps([10], [5, 5], {(0, 0): 5, (0, 1): 5}).scores()
    assert (scores.found, scores.right, scores.matched) == (1, 2, 1)


def test_two_merged_landslides_are_found_but_matched_once():
    scores = overlaps([5, 5], [10], {(0, 0): 5, (1, 0): 5}).scores()
    assert (scores.found, scores.right, scores.matched) == (2, 1, 1)


def test_matching_finds_the_most_pairs():
    # polygon 0 fits both landslides, polygon 1 only the first: taking the best first would leave one over
    duplicates = Overlaps(
        np.array([10.0, 10]),
        np.array([10.0, 10]),
        np.array([10.0, 10]),
        np.array([10.0, 8]),
        np.array([[0, 0], [0, 1], [1, 0]]),
        np.array([9.0, 8, 8]),
    )
    assert duplicates.scores().matched == 2


def test_nothing_predicted_and_nothing_true():
    scores = overlaps([], [], {}).scores()
    assert scores.matched == 0
    assert all(math.isnan(v) for v in (scores.found_share, scores.right_share, scores.f1))
    assert math.isnan(overlaps([1], [], {}).scores().right_share)
    assert overlaps([1], [], {}).scores().found_share == 0


# width


def test_a_rectangle_is_as_wide_as_its_short_side_however_it_is_turned():
    ids = np.zeros((40, 40), np.int32)
    ids[2:5, 2:22] = 1  # 3 x 20 px
    ids[10:30, 30:31] = 3  # a line of pixels; number 2 does not occur
    rows, cols = np.mgrid[:40, :40]
    ids[(abs(rows - cols - 10) <= 4) & (rows + cols >= 30) & (rows + cols <= 54)] = 4
    straight, line, turned = object_widths(ids)
    assert (straight, line) == (3, 1)
    # nine diagonals of pixels, whose outer corners are 10 diagonals of half a pixel's diagonal apart
    assert turned == pytest.approx(10 / math.sqrt(2))


def test_the_width_of_an_object_with_a_hole_is_that_of_its_outline():
    ids = np.ones((9, 12), np.int32)
    ids[2:7, 2:10] = 0
    assert object_widths(ids).tolist() == [9]
    assert len(object_widths(np.zeros((4, 4), np.int32))) == 0


def test_landslides_are_sorted_into_bands_whose_lower_limit_is_inside():
    widths = np.array([1, 7.9, 8, 23, 64, 200.0])
    counts = WidthCounts.of(widths, np.array([True, False, True, True, False, True]))
    assert counts == WidthCounts((2, 2, 0, 2), (1, 2, 0, 1))
    assert counts + counts == WidthCounts((4, 4, 0, 4), (2, 4, 0, 2))
    below, small, middle, large = counts.recalls()
    assert (below, small, large) == (0.5, 1, 0.5)
    assert math.isnan(middle)


# outlines


def square(row: int, col: int, side: int, size: int = 40) -> np.ndarray:
    mask = np.zeros((size, size), bool)
    mask[row : row + side, col : col + side] = True
    return mask


EVERYWHERE = np.ones((40, 40), bool)


def test_an_outline_is_the_objects_outermost_pixels_and_not_the_frame():
    assert len(edge_pixels(square(10, 10, 5), EVERYWHERE)) == 16
    corner = edge_pixels(square(0, 0, 5), EVERYWHERE)
    assert len(corner) == 9  # two sides of four
    half = EVERYWHERE.copy()
    half[:, 15:] = False
    # the right side borders on what is not valid
    assert len(edge_pixels(square(10, 10, 5), half)) == 13


@pytest.mark.parametrize(("off", "near"), [(0, 76), (3, 76), (4, 44)])
def test_outlines_agree_within_the_tolerance(off: int, near: int):
    found = Boundary.of(square(10, 10 + off, 20), square(10, 10, 20), EVERYWHERE)
    # four to the right, the left and the right side are too far but for what is near the other side's corners
    assert found == Boundary(76, near, 76, near)
    assert found.f1 == near / 76


def test_the_shares_of_both_sides_have_their_harmonic_mean():
    found = Boundary.of(square(5, 5, 20), square(5, 5, 20) | square(30, 30, 5), EVERYWHERE)
    assert found == Boundary(76, 76, 92, 76)
    assert found.f1 == pytest.approx(2 * (76 / 92) / (1 + 76 / 92))
    assert (found + found).f1 == found.f1


def test_no_outline_agrees_with_none_and_nothing_is_defined_without_any():
    nothing = np.zeros((40, 40), bool)
    assert Boundary.of(nothing, square(5, 5, 5), EVERYWHERE).f1 == 0
    assert Boundary.of(square(5, 5, 5), nothing, EVERYWHERE).f1 == 0
    assert Boundary.of(square(5, 5, 5), square(30, 30, 5), EVERYWHERE).f1 == 0
    assert math.isnan(Boundary.of(nothing, nothing, EVERYWHERE).f1)

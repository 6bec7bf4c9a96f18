import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import accuracy_score, cohen_kappa_score, f1_score, jaccard_score, precision_score, recall_score

from geolabel.metrics import Confusion, Overlaps

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
        np.array([10.0, 10]), np.array([10.0, 10]), np.array([10.0, 10]), np.array([10.0, 8]),
        np.array([[0, 0], [0, 1], [1, 0]]), np.array([9.0, 8, 8]),
    )  # fmt: skip
    assert duplicates.scores().matched == 2


def test_nothing_predicted_and_nothing_true():
    scores = overlaps([], [], {}).scores()
    assert scores.matched == 0
    assert all(math.isnan(v) for v in (scores.found_share, scores.right_share, scores.f1))
    assert math.isnan(overlaps([1], [], {}).scores().right_share)
    assert overlaps([1], [], {}).scores().found_share == 0

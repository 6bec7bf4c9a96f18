"""Prompts: one record per object, whose box and points never part."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from geolabel import testing
from geolabel.prompts import BACKGROUND, FOREGROUND, PADDING, Prompts


def some():
    """Two boxes with a point each, one point alone with a background point beside it."""
    return Prompts.build(
        boxes=np.array([[0, 0, 4, 2], [5, 5, 9, 9], [np.nan] * 4]),
        points=np.array([[[1.5, 0.5], [0, 0]], [[6.5, 6.5], [0, 0]], [[7, 1], [9, 3]]]),
        labels=np.array([[FOREGROUND, PADDING], [FOREGROUND, PADDING], [FOREGROUND, BACKGROUND]]),
        scores=np.array([0.9, 0.5, 0.7]),
        ids=np.array([4, 8, 15]),
    )


def equal(a, b):
    names = ("boxes", "points", "labels", "class_ids", "scores", "ids")
    return all(np.array_equal(getattr(a, n), getattr(b, n), equal_nan=n == "boxes") for n in names)


def test_build_fills_in_what_is_not_given():
    prompts = Prompts.build(boxes=np.array([[1, 2, 3, 4], [5, 6, 7, 8]]))
    assert len(prompts) == 2
    assert prompts.points.shape == (2, 0, 2)
    assert prompts.ids.tolist() == [0, 1]
    assert prompts.scores.tolist() == [1, 1]
    assert prompts.has_box.all()
    assert not prompts.has_point.any()


def test_build_of_points_alone_makes_them_foreground():
    prompts = Prompts.build(points=np.array([[3.0, 4.0], [5.0, 6.0]]))
    assert prompts.points.tolist() == [[[3, 4]], [[5, 6]]]
    assert (prompts.labels == FOREGROUND).all()
    assert not prompts.has_box.any()


def test_nothing_is_a_valid_set_of_prompts():
    nothing = Prompts.build()
    assert len(nothing) == 0
    assert nothing.boxes.shape == (0, 4)
    assert nothing.extents.shape == (0, 4)
    assert len(nothing.shift(1, 1)) == 0
    assert len(Prompts.concatenate([])) == 0


@pytest.mark.parametrize(
    "given_",
    [
        {"boxes": np.zeros((2, 4)), "scores": np.ones(3)},
        {"boxes": np.zeros((2, 4)), "ids": np.arange(1)},
        {"points": np.zeros((2, 1, 2)), "labels": np.ones((2, 2))},
    ],
)
def test_fields_of_different_lengths_are_refused(given_):
    with pytest.raises(ValueError, match="do not match"):
        Prompts.build(**given_)


def test_an_object_that_asks_for_nothing_is_refused():
    with pytest.raises(ValueError, match="asks for nothing"):
        Prompts.build(boxes=np.full((1, 4), np.nan))
    with pytest.raises(ValueError, match="asks for nothing"):
        Prompts.build(points=np.zeros((1, 1, 2)), labels=np.array([[PADDING]]))


def test_extents_are_the_box_or_the_pixels_under_the_points():
    assert some().extents.tolist() == [[0, 0, 4, 2], [5, 5, 9, 9], [7, 1, 10, 4]]


def test_extents_leave_padding_out():
    prompts = Prompts.build(points=np.array([[[3, 4], [0, 0]]]), labels=np.array([[FOREGROUND, PADDING]]))
    assert prompts.extents.tolist() == [[3, 4, 4, 5]]


def test_only_boxes_and_only_points():
    boxes, points = some().only("box"), some().only("point")
    assert boxes.has_box.tolist() == [True, True, False]
    assert boxes.has_point.tolist() == [False, False, True]  # an object keeps the only thing it has
    assert not points.has_box.any()
    assert points.has_point.all()
    assert equal(some().only("both"), some())


def test_indexing_keeps_box_points_and_id_together():
    chosen = some()[np.array([2, 0])]
    assert chosen.ids.tolist() == [15, 4]
    assert chosen.points[0].tolist() == [[7, 1], [9, 3]]
    assert np.isnan(chosen.boxes[0]).all()
    assert some()[some().scores > 0.6].ids.tolist() == [4, 15]
    assert some()[:1].ids.tolist() == [4]


def test_concatenate_pads_points_and_keeps_ids():
    together = Prompts.concatenate([Prompts.build(boxes=np.array([[1.0, 1, 2, 2]]), ids=np.array([99])), some()])
    assert together.ids.tolist() == [99, 4, 8, 15]
    assert together.labels[0].tolist() == [PADDING, PADDING]
    assert equal(together[1:], some())


@given(testing.prompts(), st.integers(-50, 50), st.integers(-50, 50))
def test_shift_moves_extents_and_nothing_else(prompts, dx, dy):
    moved = prompts.shift(dx, dy)
    assert (moved.extents == np.add(prompts.extents, (dx, dy, dx, dy))).all()
    assert (moved.labels == prompts.labels).all()
    assert equal(moved.shift(-dx, -dy), prompts)


@given(testing.prompts(), testing.prompts())
def test_concatenating_and_taking_apart_again_loses_nothing(first, second):
    together = Prompts.concatenate([first, second])
    assert len(together) == len(first) + len(second)
    assert equal(together[: len(first)].only("both"), first)
    assert equal(together[len(first) :], second)

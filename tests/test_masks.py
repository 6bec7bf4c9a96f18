"""Masks: scores of logits, stability, the edge."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from segment_anything.utils.amg import calculate_stability_score

from geolabel.masks import EDGE, FULL, OUTSIDE, Masks, quantise_logits, stability_score

logits = arrays.arrays(np.float32, arrays.array_shapes(max_dims=3), elements=st.floats(-100, 100, width=32))


def masks_of(scores):
    count = len(scores)
    return Masks(
        scores=np.asarray(scores, np.uint8),
        predicted_iou=np.linspace(0.2, 0.8, count, dtype=np.float32),
        stability=np.full(count, 0.5, np.float32),
        prompt_ids=np.arange(count) + 10,
        candidates=np.ones(count, np.int64),
    )


@pytest.mark.parametrize(
    ("logit", "score"),
    [
        (-1e4, 0),
        (-2.97, 0),
        (-2.95, 13),
        (-1e-7, 126),
        (-0.0, 127),
        (0.0, 127),
        (1e-7, 127),
        (1.0, 186),
        (-1.0, 68),
        (1e4, 254),
    ],
)
def test_quantise_by_hand(logit, score):
    assert quantise_logits(np.array([logit], np.float32)) == score


@given(logits)
def test_the_edge_of_scores_is_the_edge_of_logits(values):
    scores = quantise_logits(values)
    assert ((scores >= EDGE) == (values >= 0)).all()
    assert scores.max() <= FULL < OUTSIDE


@given(logits)
def test_scores_rise_with_logits(values):
    order = np.argsort(values, axis=None)
    assert (np.diff(quantise_logits(values).ravel()[order].astype(int)) >= 0).all()


def test_stability_by_hand():
    values = np.array([[[2.0, 0.5, -0.5, -2.0]], [[-5.0, -5.0, -5.0, -5.0]], [[5.0, 5.0, 1.0, -1.0]]], np.float32)
    assert stability_score(values).tolist() == [pytest.approx(1 / 3), 0.0, pytest.approx(2 / 3)]
    assert stability_score(values, offset=3.0)[0] == 0.0


@given(arrays.arrays(np.float32, (3, 4, 5), elements=st.floats(-3, 3, width=32)))
def test_stability_equals_segment_anything(values):
    values[:, 0, 0] = 2.0  # segment-anything divides by zero for empty masks
    expected = calculate_stability_score(torch.from_numpy(values), 0.0, 1.0)
    np.testing.assert_allclose(stability_score(values), expected)


def test_masks_are_chosen_together_with_what_belongs_to_them():
    masks = masks_of([[[0, 126]], [[127, 254]], [[254, 0]]])
    chosen = masks[np.array([2, 0])]
    assert chosen.prompt_ids.tolist() == [12, 10]
    assert chosen.scores.tolist() == [[[254, 0]], [[0, 126]]]
    assert len(masks[masks.predicted_iou > 0.4]) == 2
    assert masks[1:].prompt_ids.tolist() == [11, 12]


def test_binary_and_quality():
    masks = masks_of([[[0, 126]], [[127, 254]]])
    assert masks.binary.tolist() == [[[False, False]], [[True, True]]]
    assert masks.quality == pytest.approx([0.1, 0.4])


def test_a_mask_without_a_pixel_has_no_stability():
    assert stability_score(np.zeros((0, 0), np.float32)) == 0
    assert stability_score(np.zeros((2, 0, 5), np.float32)).tolist() == [0, 0]

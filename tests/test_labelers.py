"""Labelers by hand: union, S2C's confidence, a threshold, clusters."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from geolabel.activation import Activation
from geolabel.labelers import (
    AgreedLabeler,
    ConfidenceLabeler,
    OverlapLabeler,
    ThresholdLabeler,
    UnionLabeler,
    follow_activation,
    gate,
    most_alike,
)
from geolabel.labels import IGNORE
from geolabel.masks import EDGE, FULL, Masks
from geolabel.parts import Labeler
from geolabel.prompts import Prompts


def masks_of(*filled: np.ndarray, stability: list[float] | None = None, score: int = FULL) -> Masks:
    count = len(filled)
    return Masks(
        scores=np.stack(filled).astype(np.uint8) * np.uint8(score),
        predicted_iou=np.ones(count, np.float32),
        stability=np.asarray(stability or [1.0] * count, np.float32),
        prompt_ids=np.arange(count) + 10,
        candidates=np.zeros(count, np.int64),
    )


def prompts_of(*class_ids: int) -> Prompts:
    points = np.zeros((len(class_ids), 2))
    return Prompts.build(points=points, class_ids=np.asarray(class_ids), ids=np.arange(len(class_ids)) + 10)


def activation(*maps: list[list[float]]) -> Activation:
    values = np.asarray(maps, np.float32)
    return Activation(values, values, values.max(axis=(1, 2)), 1, ("slide", "quarry")[: len(values)])


def columns(first: int, last: int) -> np.ndarray:
    mask = np.zeros((1, 4), bool)
    mask[:, first:last] = True
    return mask


def test_what_mask_and_activation_disagree_about_is_ignored():
    masks = masks_of(columns(0, 2), columns(2, 3))
    maps = activation([[0.9, 0.1, 0.9, 0.4]], [[0.1, 0.1, 0.2, 0.3]])
    labels = AgreedLabeler(threshold=0.4)(masks, prompts_of(0, 1), maps)
    assert labels.values.tolist() == [[1, IGNORE, IGNORE, 0]]
    assert labels.confidence[0, 1:3].tolist() == [0, 0]
    none = AgreedLabeler()(Masks.none(1, 4), Prompts.build(), activation([[0, 0, 1, 0]]))
    assert none.values.tolist() == [[0, 0, IGNORE, 0]]


def test_masks_of_one_class_are_united_and_counted_once() -> None:
    labels = UnionLabeler()(masks_of(columns(0, 2), columns(1, 3)), prompts_of(0, 0), activation([[1, 1, 1, 1]]))
    assert labels.values.tolist() == [[1, 1, 1, 0]]
    assert labels.classes == ("background", "slide")
    assert labels.confidence.tolist() == [[1, 1, 1, 1]]


def test_of_two_classes_the_higher_score_has_the_pixel() -> None:
    masks = masks_of(columns(0, 3), columns(1, 4))
    masks.scores[0, 0, 1] = 200
    labels = UnionLabeler()(masks, prompts_of(1, 0), activation([[1] * 4], [[1] * 4]))
    assert labels.values.tolist() == [[2, 1, 2, 1]]


def test_without_masks_all_is_background() -> None:
    labels = UnionLabeler()(Masks.none(1, 4), Prompts.build(), activation([[1, 1, 1, 1]]))
    assert labels.values.tolist() == [[0, 0, 0, 0]]


def test_a_mask_that_answers_nothing_asked_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"masks answer prompts \[10\], asked were \[\]"):
        UnionLabeler()(masks_of(columns(0, 1)), Prompts.build(), activation([[1, 1, 1, 1]]))


def test_confidence_is_stability_times_mean_activation() -> None:
    # alpha: 0.75 x 0.8 = 0.6 for the slide, 1 x 0.7 for the quarry; they share the pixels 1 and 2
    masks = masks_of(columns(0, 3), columns(1, 4))
    masks.scores[0][masks.scores[0] > 0] = round(0.75 * 254)
    maps = activation([[0.8, 0.8, 0.8, 0]], [[0, 0.7, 0.7, 0.7]])
    labels = ConfidenceLabeler(threshold=0.5)(masks, prompts_of(0, 1), maps)
    assert labels.values.tolist() == [[1, 2, 2, 2]]
    np.testing.assert_allclose(labels.confidence, [[0.6, 0.7, 0.7, 0.7]], atol=0.01)


def test_who_is_not_confident_enough_is_background_unless_there_is_no_threshold() -> None:
    masks, maps = masks_of(columns(0, 3), columns(1, 4)), activation([[0.4] * 4], [[0.3] * 4])
    assert ConfidenceLabeler(0.5)(masks, prompts_of(0, 1), maps).values.tolist() == [[0, 0, 0, 0]]
    assert ConfidenceLabeler(0)(masks, prompts_of(0, 1), maps).values.tolist() == [[1, 1, 1, 2]]


def test_an_empty_mask_has_no_confidence() -> None:
    masks = masks_of(columns(0, 0), columns(0, 1))
    labels = ConfidenceLabeler()(masks, prompts_of(0, 1), activation([[1] * 4], [[1] * 4]))
    assert labels.values.tolist() == [[2, 0, 0, 0]]


def test_the_threshold_is_the_activation_of_background() -> None:
    maps = activation([[0.2, 0.4, 0.6, 0.6]], [[0.1, 0.0, 0.5, 0.8]])
    labels = ThresholdLabeler(0.4)(Masks.none(1, 4), Prompts.build(), maps)
    assert labels.values.tolist() == [[0, 0, 1, 2]]
    np.testing.assert_allclose(labels.confidence, [[0.8, 0.6, 0.6, 0.8]], atol=0.002)


@pytest.mark.parametrize(("pixels", "kept"), [(0, False), (2999, True), (3000, True), (3001, False)])
def test_the_gate_keeps_what_covers_up_to_three_tenths(pixels: int, kept: bool) -> None:
    mask = (np.arange(10_000) < pixels).reshape(1, 100, 100)
    assert gate(mask, 0.3).tolist() == [kept]


def test_they_are_labelers() -> None:
    labelers: list[Labeler] = [
        UnionLabeler(),
        ConfidenceLabeler(),
        ThresholdLabeler(),
    ]
    assert len(labelers) == 3


def test_the_mask_most_like_the_activation_is_taken_whatever_the_network_thinks() -> None:
    # Three candidates of one prompt, one of another; the activation covers columns 1 and 2.
    masks = masks_of(columns(1, 2), columns(0, 4), columns(1, 3), columns(3, 4))
    masks = replace(
        masks, prompt_ids=np.asarray([10, 10, 10, 11]), predicted_iou=np.asarray([0.99, 0.9, 0.1, 1], np.float32)
    )
    seen = activation([[0.1, 0.9, 0.9, 0.1]])
    assert most_alike(masks, prompts_of(0, 0), seen.values > 0.4).tolist() == [2, 3]
    labels = OverlapLabeler(0.4)(masks[:3], prompts_of(0), seen)
    assert labels.values.tolist() == [[0, 1, 1, 0]]


def test_a_chosen_mask_is_as_sure_as_the_activation_under_it() -> None:
    seen = activation([[0.2, 0.8, 0.5, 0.2]], [[0.1, 0.6, 0.3, 0.2]])
    masks = masks_of(columns(1, 4), score=200)
    labels = OverlapLabeler(0.4)(masks, prompts_of(0), seen)
    assert labels.values.tolist() == [[0, 1, 1, 1]]
    np.testing.assert_allclose(labels.confidence, [[0.8, 0.8, 0.5, 0.2]], atol=0.002)
    doubtful = OverlapLabeler(0.4, AgreedLabeler())(masks, prompts_of(0), seen)
    assert doubtful.values.tolist() == [[0, 1, 1, IGNORE]]
    np.testing.assert_allclose(doubtful.confidence, [[0.8, 0.8, 0.5, 0]], atol=0.002)


def test_a_prompt_asks_about_what_is_active_in_its_box() -> None:
    masks = replace(masks_of(columns(0, 2), columns(0, 4)), prompt_ids=np.asarray([10, 10]))
    active = np.ones((1, 1, 4), bool)
    whole = Prompts.build(boxes=np.asarray([[0.0, 0, 4, 1]]), ids=np.asarray([10]))
    left = Prompts.build(boxes=np.asarray([[0.0, 0, 2, 1]]), ids=np.asarray([10]))
    assert most_alike(masks, whole, active).tolist() == [1]
    assert most_alike(masks, left, active).tolist() == [0]


def test_masks_that_are_equally_alike_are_taken_in_order() -> None:
    masks = replace(masks_of(columns(0, 1), columns(1, 2)), prompt_ids=np.asarray([10, 10]))
    assert most_alike(masks, prompts_of(0), np.zeros((1, 1, 4), bool)).tolist() == [0]


def boxed(*class_ids: int, box: tuple[int, int, int, int], origins: tuple[int, ...] | None = None) -> Prompts:
    prompts = prompts_of(*class_ids)
    given = prompts.origins if origins is None else np.asarray(origins, np.int8)
    return replace(prompts, boxes=np.tile(np.asarray(box, float), (len(class_ids), 1)), origins=given)


GREY = np.asarray([[[200, 255, 130, 0, 180]], [[0, 0, 0, 255, 255]]], np.uint8)
"""Activation of two classes of a row of five pixels."""


def row(*pixels: int) -> np.ndarray:
    mask = np.zeros((1, 5), bool)
    mask[0, list(pixels)] = True
    return mask


def test_a_mask_that_disagrees_becomes_the_region_of_its_prompt() -> None:
    prompts = boxed(0, 0, 1, box=(0, 0, 4, 1))
    masks = masks_of(row(0, 1, 2), row(0, 1, 3), row(0, 1, 2))
    found, followed = follow_activation(masks, prompts, GREY, 120)
    assert followed.tolist() == [False, True, True]  # IoU 1, 2 of 4, and 0 of 4
    assert found.scores[0].tolist() == masks.scores[0].tolist()
    assert found.binary[1].tolist() == row(0, 1, 2).tolist()  # the last pixel is outside the box
    assert found.binary[2].tolist() == row(3).tolist()
    # the score rises from the edge at the threshold to the highest at full activation
    assert found.scores[1, 0].tolist() == [EDGE + 80 * 127 // 135, FULL, EDGE + 10 * 127 // 135, 0, 0]
    assert masks.scores[1, 0].tolist() == [FULL, FULL, 0, FULL, 0]  # what was given stays as it was


def test_a_mask_of_a_person_a_point_or_of_nothing_active_stays() -> None:
    masks = masks_of(row(3, 4), row(3, 4), row(3))
    drawn = boxed(0, 0, 0, box=(0, 0, 4, 1), origins=(1, 2, 0))
    _, followed = follow_activation(masks, drawn, GREY, 120)
    assert followed.tolist() == [False, False, True]
    _, followed = follow_activation(masks, prompts_of(0, 0, 0), GREY, 120)
    assert not followed.any()
    _, followed = follow_activation(masks, boxed(0, 0, 0, box=(3, 0, 4, 1)), GREY, 120)
    assert not followed.any()
    assert follow_activation(Masks.none(1, 5), drawn, GREY, 120)[1].shape == (0,)

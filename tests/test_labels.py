"""Label maps, who owns a pixel that several masks cover, and closed regions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from geolabel.labels import IGNORE, LabelMap, closed_regions, from_run_lengths, highest_wins, run_lengths, smallest_wins
from geolabel.testing import binary_masks


def label_map(values: list[list[int]], *classes: str, confidence: float = 1.0) -> LabelMap:
    array = np.asarray(values, np.uint8)
    return LabelMap(array, np.full(array.shape, confidence, np.float32), classes)


def square(side: int, size: int) -> np.ndarray:
    mask = np.zeros((size, size), bool)
    mask[:side, :side] = True
    return mask


def test_of_nested_masks_the_smaller_owns_the_pixels_it_covers() -> None:
    masks = np.stack([square(3, 5), square(2, 5)])  # areas 9 and 4
    owner = smallest_wins(masks)
    assert owner[:2, :2].tolist() == [[1, 1], [1, 1]]
    assert (owner == 0).sum() == 5
    assert (owner == -1).sum() == 16


@given(st.permutations(range(4)), st.integers(0, 2**32 - 1))
def test_the_order_of_masks_of_different_sizes_does_not_matter(order: list[int], seed: int) -> None:
    random = np.random.default_rng(seed)
    masks = np.stack([np.roll(square(side, 9), random.integers(0, 5, 2), (0, 1)) for side in (2, 3, 4, 5)])
    shuffled = smallest_wins(masks[order])
    expected = smallest_wins(masks)
    assert np.array_equal(np.where(shuffled < 0, -1, np.asarray(order)[shuffled]), expected)


def test_of_masks_of_one_size_the_first_wins() -> None:
    assert smallest_wins(np.ones((3, 2, 2), bool)).tolist() == [[0, 0], [0, 0]]


def test_without_masks_nobody_owns_a_pixel() -> None:
    assert smallest_wins(np.zeros((0, 2, 3), bool)).tolist() == [[-1] * 3] * 2
    assert highest_wins(np.zeros((0, 2, 3), np.uint8)).tolist() == [[-1] * 3] * 2


def test_the_highest_score_owns_a_pixel_and_a_tie_goes_to_the_first() -> None:
    scores = np.asarray([[[5, 0, 7]], [[6, 0, 7]]], np.uint8)
    assert highest_wins(scores).tolist() == [[1, -1, 0]]


def test_cluster_0_is_no_gap() -> None:
    labels = label_map([[0, IGNORE], [1, 0]], "a", "b")
    assert labels.labelled.tolist() == [[True, False], [True, True]]
    assert closed_regions(labels).class_ids.tolist() == [0, 0, 1]


@pytest.mark.parametrize(
    ("values", "classes", "message"),
    [
        ([[2]], ("a", "b"), "value 2 is not one of the 2 classes"),
        ([[0]], (), "0 classes"),
        ([[0]], tuple(map(str, range(256))), "256 classes: a label map holds 1 to 255"),
    ],
)
def test_a_value_without_a_class_is_refused(values: list[list[int]], classes: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        label_map(values, *classes)


def test_closed_regions_are_4_connected_have_a_size_and_the_mean_confidence() -> None:
    labels = label_map([[1, 1, 0, 2], [0, 0, 1, 2], [255, 1, 0, 0]], "background", "slide", "quarry")
    labels.confidence[0] = [0.5, 1, 0, 0.25]
    labels.confidence[1, 3] = 0.75
    objects = closed_regions(labels)
    assert objects.class_ids.tolist() == [1, 1, 1, 2]
    assert objects.areas.tolist() == [2, 1, 1, 2]
    assert objects.scores.tolist() == [0.75, 1, 1, 0.5]
    assert objects.mask(0).tolist() == [[True, True, False, False], [False] * 4, [False] * 4]
    large = closed_regions(labels, min_area=2)
    assert (large.class_ids.tolist(), large.areas.tolist(), large.ids.max()) == ([1, 2], [2, 2], 2)


def test_background_alone_has_no_instances() -> None:
    assert len(closed_regions(LabelMap.background(3, 4, ("background", "slide")))) == 0


def test_run_lengths_go_down_the_columns_and_begin_outside() -> None:
    mask = np.asarray([[1, 0], [1, 1], [0, 1]], bool)
    assert run_lengths(mask) == [0, 2, 2, 2]
    assert run_lengths(~mask) == [2, 2, 2]


@given(binary_masks())
def test_run_lengths_give_the_mask_back(mask: np.ndarray) -> None:
    counts = run_lengths(mask)
    assert all(count > 0 for count in counts[1:])
    assert np.array_equal(from_run_lengths(counts, *mask.shape), mask)


def test_run_lengths_have_to_fill_the_image() -> None:
    with pytest.raises(ValueError, match="run lengths of 5 pixels do not fill an image of 2 x 3 px"):
        from_run_lengths([2, 3], 2, 3)

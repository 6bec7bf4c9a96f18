"""The public stand-ins and strategies do what they promise."""

from __future__ import annotations

import numpy as np
from hypothesis import given

from geolabel import testing
from geolabel.prompts import BACKGROUND, FOREGROUND, Prompts


def test_the_fake_localizer_marks_what_is_bright():
    image = np.zeros((16, 20, 3), np.uint8)
    image[8:, 8:16] = 255
    (found,) = testing.FakeLocalizer(stride=8, window=8)([image])
    assert found.values.tolist() == [[[0, 0, 0], [0, 1, 0]]]
    assert found.local_probability.tolist() == found.values.tolist()
    assert (found.probability.tolist(), found.raw_max.tolist()) == ([1.0], [1.0])


def test_the_fake_localizer_marks_what_a_function_says_near_it_too():
    locate = testing.FakeLocalizer(function=lambda image: (image[..., 0] > 9).astype(np.float32), stride=4, window=12)
    image = np.zeros((20, 20, 3), np.uint8)
    image[0, 0] = 10
    (found,) = locate([image])
    assert found.values[0, 0, 0] == 1 / 16
    assert (found.local_probability[0] > 0).sum() == 4  # the cell and its neighbours inside the image


def test_the_fake_segmenter_fills_boxes_and_discs():
    prompts = Prompts.build(
        boxes=np.array([[1, 0, 3, 2], [np.nan] * 4]),
        points=np.array([[[9, 9], [0, 0]], [[4, 4], [0, 0]]]),
        labels=np.array([[FOREGROUND, BACKGROUND]] * 2),
        ids=np.array([7, 3]),
    )
    (masks,) = testing.FakeSegmenter(radius=1.0)([np.zeros((6, 6, 3), np.uint8)], [prompts])
    assert masks.prompt_ids.tolist() == [7, 3]
    assert np.argwhere(masks.binary[0]).tolist() == [[0, 1], [0, 2], [1, 1], [1, 2]]
    assert np.argwhere(masks.binary[1]).tolist() == [[3, 4], [4, 3], [4, 4], [4, 5], [5, 4]]


@given(testing.prompts(max_side=32))
def test_the_fake_segmenter_stays_inside_the_extents_of_boxes(prompts):
    (masks,) = testing.FakeSegmenter()([np.zeros((32, 32, 3), np.uint8)], [prompts])
    areas = masks.binary.sum(axis=(1, 2))
    sizes = np.diff(prompts.boxes.reshape(-1, 2, 2), axis=1).prod(axis=(1, 2))
    assert (areas == sizes)[prompts.has_box].all()


@given(testing.binary_masks(max_side=9))
def test_binary_masks_are_small_and_boolean(mask):
    assert mask.dtype == bool
    assert 1 <= min(mask.shape) <= max(mask.shape) <= 9


@given(testing.grids())
def test_grids_have_a_pixel_size_near_half_a_metre(grid):
    assert 0.4 < grid.gsd < 0.7

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geolabel.activation import Activation
from geolabel.prompters import ContourPrompter, centroid_outside
from geolabel.prompts import Prompts
from geolabel.spans import Shapes, Spans
from geolabel.tiles import Window


def activation(grey: np.ndarray) -> Activation:
    values = (grey / 255).astype(np.float32)[None]
    return Activation(values, np.full_like(values, 0.9), values.max(axis=(1, 2)), 1, ("landslide",))


def ask(grey: np.ndarray, **options: object) -> Prompts:
    return ContourPrompter(**options)(activation(grey))  # type: ignore[arg-type]


def test_box_and_centroid_of_a_filled_rectangle() -> None:
    grey = np.zeros((50, 60), np.uint8)
    grey[30:36, 20:30] = 200
    prompts = ask(grey)
    assert prompts.boxes.tolist() == [[20, 30, 30, 36]]
    assert prompts.points.tolist() == [[[24.5, 32.5]]]
    assert prompts.scores.tolist() == [pytest.approx(0.9)]


def test_moments_are_sums_over_pixels() -> None:
    # ten columns and six rows: 60 pixels, where the polygon through their centres would enclose 45
    grey = np.zeros((50, 60), np.uint8)
    grey[30:36, 20:30] = 200
    spans = Spans.of_mask(grey > 120, Window(0, 0, 50, 60))
    labels, count = spans.components(8)
    assert Shapes.of(spans, labels, count).area.tolist() == [60]


@pytest.mark.parametrize(("rows", "cols"), [((7, 8), (9, 10)), ((7, 8), (3, 15)), ((2, 14), (9, 10))])
def test_a_pixel_and_a_line_keep_box_and_point_together(rows: tuple[int, int], cols: tuple[int, int]) -> None:
    grey = np.zeros((20, 20), np.uint8)
    grey[slice(*rows), slice(*cols)] = 255
    prompts = ask(grey)
    assert len(prompts) == 1
    assert prompts.has_box.all()
    assert prompts.has_point.all()
    assert prompts.points[0, 0].tolist() == [(cols[0] + cols[1] - 1) / 2, (rows[0] + rows[1] - 1) / 2]


@pytest.mark.parametrize(("grey", "found"), [(119, 0), (120, 0), (121, 1)])
def test_the_grey_value_has_to_exceed_the_threshold(grey: int, found: int) -> None:
    image = np.zeros((9, 9), np.uint8)
    image[3:6, 3:6] = grey
    assert len(ask(image)) == found


def test_a_ring_asks_once_and_its_centroid_lies_in_the_hole() -> None:
    grey = np.zeros((21, 21), np.uint8)
    grey[3:18, 3:18] = 200
    grey[7:14, 7:14] = 0
    prompts = ask(grey)
    assert prompts.boxes.tolist() == [[3, 3, 18, 18]]
    assert prompts.points[0, 0].tolist() == [10, 10]
    inside = ask(grey, point="inside").points[0, 0].astype(int)
    assert grey[inside[1], inside[0]] == 200


def test_objects_that_touch_diagonally_are_one() -> None:
    grey = np.zeros((10, 10), np.uint8)
    grey[2:5, 2:5] = grey[5:8, 5:8] = 200
    assert len(ask(grey)) == 1


def test_nothing_above_the_threshold_asks_for_nothing() -> None:
    assert len(ask(np.zeros((8, 8), np.uint8))) == 0
    assert len(ask(np.full((8, 8), 100, np.uint8))) == 0


def test_a_constant_map_asks_for_everything() -> None:
    assert ask(np.full((8, 9), 255, np.uint8)).boxes.tolist() == [[0, 0, 9, 8]]


masks = st.integers(0, 2**31).map(lambda seed: np.random.default_rng(seed).random((24, 31)) < 0.3)


@settings(max_examples=40, deadline=None)
@given(masks)
def test_boxes_and_components_are_those_of_opencv(mask: np.ndarray) -> None:
    prompts = ask(mask.astype(np.uint8) * 255)
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    # external contours leave out what is in a hole of something else; components do not
    outer = {(x, y, x + w, y + h) for x, y, w, h in map(cv2.boundingRect, contours)}
    assert outer <= {tuple(int(v) for v in box) for box in prompts.boxes}
    count, _, stats, centers = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    expected = sorted((*stats[k, :4], *np.round(centers[k], 6)) for k in range(1, count))
    found = sorted(
        (x0, y0, x1 - x0, y1 - y0, *point)
        for (x0, y0, x1, y1), point in zip(prompts.boxes, prompts.points[:, 0], strict=True)
    )
    assert np.allclose(np.asarray(found).reshape(-1, 6), np.asarray(expected).reshape(-1, 6))


@settings(max_examples=25, deadline=None)
@given(masks, st.integers(0, 9), st.integers(0, 9))
def test_prompts_move_with_the_map(mask: np.ndarray, dx: int, dy: int) -> None:
    moved = np.zeros((40, 50), bool)
    moved[dy : dy + 24, dx : dx + 31] = mask
    still = np.zeros((40, 50), bool)
    still[:24, :31] = mask
    before, after = ask(still * np.uint8(255)), ask(moved * np.uint8(255))
    assert np.array_equal(before.shift(dx, dy).boxes, after.boxes)
    assert np.allclose(before.shift(dx, dy).points, after.points, atol=2e-6)


def test_centroids_outside_their_object_are_counted() -> None:
    mask = np.zeros((30, 60), bool)
    mask[2:8, 2:8] = True  # a square: inside
    mask[12:26, 2:16] = True
    mask[15:23, 5:16] = False  # a bow: outside
    spans = Spans.of_mask(mask, Window(0, 0, 30, 60))
    labels, count = spans.components(8)
    assert count == 2
    assert centroid_outside(spans, labels, Shapes.of(spans, labels, count)) == 1


def test_two_classes_keep_their_numbers_and_get_ids_of_their_own() -> None:
    values = np.zeros((2, 12, 12), np.float32)
    values[0, 2:4, 2:4] = values[1, 8:10, 8:10] = values[1, 2:4, 8:10] = 1
    maps = Activation(values, values, np.ones(2, np.float32), 1, ("landslide", "river"))
    prompts = ContourPrompter()(maps)
    assert prompts.class_ids.tolist() == [0, 1, 1]
    assert prompts.ids.tolist() == [0, 1, 2]

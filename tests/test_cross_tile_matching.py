"""Masks of several tiles that are of one object, on arrays small enough to see."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from geolabel.cross_tile_matching import (
    Part,
    Sightings,
    agreements,
    choose,
    identify,
    is_cut,
    representative_point,
    unite,
)
from geolabel.spans import Spans
from geolabel.testing import binary_masks
from geolabel.tiles import TileGrid, Window

GRID = Window(0, 0, 8, 24)


def part(row: int, col: int, height: int, width: int) -> Part:
    return Part(Window(row, col, height, width), np.ones((height, width), bool))


def sightings(*rows: tuple[int, tuple[int, int, int, int], bool], quality: list[float] | None = None) -> Sightings:
    windows = np.asarray([window for _, window, _ in rows], np.int64).reshape(-1, 4)
    return Sightings(
        tile=np.asarray([tile for tile, *_ in rows], np.int64),
        window=windows,
        cut=np.asarray([cut for *_, cut in rows], bool),
        point=windows[:, :2] + windows[:, 2:] // 2,
        quality=np.asarray(quality or [1.0] * len(rows)),
    )


def pairs(*rows: tuple[int, int, float]) -> tuple[np.ndarray, np.ndarray]:
    return np.asarray([row[:2] for row in rows], np.int64).reshape(-1, 2), np.asarray([row[2] for row in rows], float)


def test_masks_are_compared_where_both_tiles_see() -> None:
    shared = Window(0, 8, 8, 4)
    # in the shared columns 8 to 11: 2 rows x 2 columns of the first, of which the second has all and 2 pixels more
    found, iou = agreements([part(0, 0, 2, 10)], [part(0, 8, 2, 3), part(5, 9, 2, 9)], shared, 0.5)
    assert (found.tolist(), iou.tolist()) == ([[0, 0]], [pytest.approx(4 / 6)])
    assert len(agreements([part(0, 0, 2, 10)], [part(0, 8, 2, 3)], shared, 0.7)[0]) == 0


def test_a_mask_has_one_partner_and_none_outside_the_shared_window() -> None:
    shared = Window(0, 8, 8, 4)
    first, second = [part(0, 6, 4, 6), part(0, 6, 3, 6), part(0, 0, 2, 8)], [part(0, 8, 4, 9)]
    assert agreements(first, second, shared, 0.5)[0].tolist() == [[0, 0]]
    assert agreements([], second, shared, 0.5)[0].shape == (0, 2)


@pytest.mark.parametrize(
    ("window", "cut"),
    [((1, 9, 2, 2), False), ((1, 8, 2, 2), True), ((1, 14, 2, 2), True), ((0, 9, 2, 2), False), ((6, 9, 2, 2), False)],
)
def test_a_mask_is_cut_at_sides_of_its_tile_that_are_no_sides_of_the_grid(
    window: tuple[int, int, int, int], cut: bool
) -> None:
    assert is_cut(part(*window), Window(0, 8, 8, 8), GRID) is cut


def test_the_representative_point_lies_in_the_mask() -> None:
    ring = np.ones((5, 5), bool)
    ring[1:4, 1:4] = False
    row, col = representative_point(Part(Window(10, 20, 5, 5), ring))
    assert ring[row - 10, col - 20]
    assert representative_point(part(2, 3, 3, 3)) == (3, 4)


def test_an_object_longer_than_two_tiles_is_one() -> None:
    seen = sightings((0, (2, 0, 2, 8), True), (1, (2, 6, 2, 8), True), (2, (2, 12, 2, 8), True))
    assert identify(seen, *pairs((0, 1, 1.0), (1, 2, 1.0))).tolist() == [0, 0, 0]


def test_what_a_tile_tells_apart_stays_apart() -> None:
    # one tile sees a wing and a plane, the other, which sees the wing alone, agrees with both
    seen = sightings((0, (2, 0, 4, 7), False), (0, (2, 5, 2, 2), False), (1, (2, 5, 2, 2), True))
    assert identify(seen, *pairs((0, 2, 0.9), (1, 2, 1.0))).tolist() == [0, 1, 1]


def test_the_arms_of_a_bow_are_joined_by_the_tile_that_sees_its_bend() -> None:
    seen = sightings((0, (0, 0, 2, 8), True), (0, (6, 0, 2, 8), True), (1, (0, 6, 8, 4), True))
    assert identify(seen, *pairs((0, 2, 0.9), (1, 2, 0.8))).tolist() == [0, 0, 0]
    nested = sightings((0, (0, 0, 4, 8), True), (0, (1, 2, 2, 6), True), (1, (0, 6, 4, 4), True))
    assert identify(nested, *pairs((0, 2, 0.9), (1, 2, 0.8))).tolist() == [0, 1, 0]


TILES = TileGrid(8, 24, 8, 2)  # tiles from columns 0, 6, 12, 16


def test_of_whole_masks_the_owner_is_taken_and_cut_ones_are_united() -> None:
    seen = sightings(
        (0, (2, 5, 2, 2), False), (1, (2, 6, 2, 2), False), (1, (4, 10, 2, 4), True), (2, (4, 12, 2, 4), True)
    )
    groups = np.asarray([0, 0, 1, 1], np.int32)
    assert TILES.core(0).right == 7
    assert choose(seen, groups, TILES) == [[0], [2, 3]]


def test_where_nobody_owns_an_object_the_best_mask_is_taken() -> None:
    seen = sightings((0, (2, 7, 2, 2), False), (2, (2, 7, 2, 2), False), quality=[0.5, 0.9])
    assert choose(seen, np.asarray([0, 0], np.int32), TILES) == [[1]]


def test_what_nobody_else_sees_counts_in_the_tile_that_owns_it() -> None:
    seen = sightings((0, (2, 2, 2, 2), False), (0, (2, 6, 2, 2), False), (1, (2, 9, 2, 2), False))
    assert choose(seen, np.asarray([0, 1, 2], np.int32), TILES) == [[0], [2]]
    assert choose(sightings(), np.zeros(0, np.int32), TILES) == []


@given(binary_masks(), st.integers(-5, 5), st.integers(-5, 5))
def test_spans_that_overlap_are_united(mask: np.ndarray, down: int, across: int) -> None:
    whole = Window(0, 0, 40, 40)
    canvas = np.zeros((3, 40, 40), bool)
    rows, cols = mask.shape
    canvas[0, 6 : 6 + rows, 6 : 6 + cols] = mask
    canvas[1, 6 + down : 6 + down + rows, 6 + across : 6 + across + cols] = mask
    canvas[2] = canvas[0] | canvas[1]
    first, second, expected = (Spans.of_mask(image, whole) for image in canvas)
    found = unite([first, second])
    for name in ("row", "start", "stop"):
        assert np.array_equal(getattr(found, name), getattr(expected, name))


def test_nothing_united_is_nothing() -> None:
    assert len(unite([Spans.empty()])) == 0

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from geolabel.masks import OUTSIDE
from geolabel.mosaic import blend, feather, mark_outside, merge_scores
from geolabel.tiles import BlockGrid, TileGrid, Window


def test_feather_rises_from_the_floor_at_the_frame():
    assert feather(3, 4, floor=2).tolist() == [[4, 6, 6, 4], [6, 9, 9, 6], [4, 6, 6, 4]]
    assert feather(1, 1).tolist() == [[1]]


def test_one_tile_keeps_its_values_up_to_the_frame():
    values = np.arange(20, dtype=np.uint8).reshape(4, 5)
    assert (blend(Window(0, 0, 4, 5), [(Window(0, 0, 4, 5), values)]) == values).all()


def test_blend_weighs_tiles_by_the_distance_from_their_frames():
    left = (Window(0, 0, 1, 4), np.full((1, 4), 100, np.uint8))  # weights 1 2 2 1
    right = (Window(0, 2, 1, 4), np.full((1, 4), 200, np.uint8))
    # (2 * 100 + 1 * 200) / 3 = 133.3 and (1 * 100 + 2 * 200) / 3 = 166.7; nothing covers the last column
    assert blend(Window(0, 0, 1, 7), [left, right]).tolist() == [[100, 100, 133, 167, 200, 200, 0]]


def test_blend_rounds_halves_up():
    place = Window(0, 0, 1, 1)
    parts = [(place, np.full((1, 1), value, np.uint8)) for value in (4, 5)]
    assert blend(place, parts).tolist() == [[5]]


@st.composite
def tiled_scenes(draw):
    height, width, size = (draw(st.integers(1, 20)) for _ in range(3))
    tiles = TileGrid(height, width, size, draw(st.integers(0, size - 1)))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    parts = [(tile, rng.integers(0, 256, (tile.height, tile.width), np.uint8)) for tile in tiles]
    return Window(0, 0, height, width), parts, BlockGrid(height, width, draw(st.integers(1, 20)))


@given(tiled_scenes(), st.randoms())
def test_a_pixel_is_blended_alike_in_any_block_and_order(scene, random):
    whole, parts, blocks = scene
    expected = blend(whole, parts)
    random.shuffle(parts)
    for block in blocks:
        assert (blend(block, parts) == expected[block.slices]).all()


@given(tiled_scenes(), st.randoms())
def test_masks_meet_alike_in_any_block_and_order(scene, random):
    whole, parts, blocks = scene
    masks = [(window, values // 64, number) for number, (window, values) in enumerate(parts, 1)]
    scores, winner = merge_scores(whole, masks)
    every = np.zeros((len(masks), whole.height, whole.width), np.uint8)
    for (window, values, _), layer in zip(masks, every, strict=True):
        layer[window.slices] = values
    assert (scores == every.max(axis=0)).all()
    assert (winner == np.where(every.max(axis=0) > 0, every.argmax(axis=0) + 1, 0)).all()
    random.shuffle(masks)
    for block in blocks:
        part = merge_scores(block, masks)
        assert (part[0] == scores[block.slices]).all()
        assert (part[1] == winner[block.slices]).all()


def test_a_mask_is_not_averaged_with_its_absence():
    masks = [
        (Window(0, 0, 1, 2), np.array([[200, 90]], np.uint8), 1),
        (Window(0, 1, 1, 2), np.array([[90, 0]], np.uint8), 2),
    ]
    scores, winner = merge_scores(Window(0, 0, 1, 4), masks, np.uint8)
    assert winner.dtype == np.uint8
    assert scores.tolist() == [[200, 90, 0, 0]]
    assert winner.tolist() == [[1, 1, 0, 0]]  # a tie goes to the first, a score of 0 to nobody


def test_pixels_that_are_not_valid_are_marked():
    scores = np.array([[0, 254]], np.uint8)
    marked = mark_outside(scores, np.array([[False, True]]))
    assert marked.dtype == np.uint8
    assert marked.tolist() == [[OUTSIDE, 254]]

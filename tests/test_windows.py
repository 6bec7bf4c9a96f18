from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from geolabel.extraction.plan import MARGIN, assign, clip_to_tiles, oversized
from geolabel.prompts import PADDING, Prompts
from geolabel.tiles import TileGrid, Window


def boxes(*corners: tuple[float, float, float, float]) -> Prompts:
    return Prompts.build(boxes=np.asarray(corners, float))


def test_a_prompt_in_the_middle_of_a_tile_goes_to_that_tile() -> None:
    tiles = TileGrid(400, 400, 160, 40)  # starts 0, 120, 240
    (found,) = assign(boxes((180, 180, 220, 220)), tiles)
    assert found.window == Window(120, 120, 160, 160)


def test_a_prompt_that_no_tile_holds_with_its_margin_gets_a_window_of_its_own() -> None:
    tiles = TileGrid(400, 400, 160, 40)
    (found,) = assign(boxes((60, 60, 200, 200)), tiles)
    assert found.window == Window(50, 50, 160, 160)


def test_the_margin_ends_at_the_frame_of_the_scene() -> None:
    tiles = TileGrid(400, 400, 160, 40)
    (found,) = assign(boxes((0, 0, 150, 100)), tiles)
    assert found.window == Window(0, 0, 160, 160)
    (beyond,) = assign(boxes((0, 0, 151, 100)), tiles)
    assert beyond.window.col == 0  # moved inside the scene
    assert beyond.window.width == 160


def test_prompts_of_one_window_come_together_and_in_order() -> None:
    tiles = TileGrid(400, 400, 160, 40)
    asked = boxes((300, 300, 310, 310), (20, 20, 40, 40), (60, 60, 80, 80))
    first, last = assign(asked, tiles)
    assert first.window == Window(0, 0, 160, 160)
    assert first.prompts.ids.tolist() == [1, 2]
    assert last.prompts.ids.tolist() == [0]


@given(
    x=st.integers(0, 399),
    y=st.integers(0, 299),
    width=st.integers(1, 96),
    height=st.integers(1, 96),
    overlap=st.integers(0, 60),
)
def test_every_prompt_is_seen_whole_in_exactly_one_window(
    x: int, y: int, width: int, height: int, overlap: int
) -> None:
    tiles = TileGrid(300, 400, 96, overlap)
    asked = boxes((x, y, min(x + width, 400), min(y + height, 300)))
    (found,) = assign(asked, tiles)
    x0, y0, x1, y1 = asked.boxes[0]
    assert found.window.col <= x0
    assert found.window.row <= y0
    assert x1 <= found.window.right
    assert y1 <= found.window.bottom
    assert tiles.height >= found.window.bottom
    assert tiles.width >= found.window.right


def test_what_a_tile_cannot_show_is_oversized() -> None:
    tiles = TileGrid(400, 400, 160, 40)
    asked = boxes((0, 0, 160, 160), (0, 0, 161, 10), (0, 0, 10, 161))
    assert oversized(asked, tiles).tolist() == [False, True, True]


def test_a_scene_smaller_than_a_tile_has_no_oversized_prompts() -> None:
    assert not oversized(boxes((0, 0, 100, 90)), TileGrid(90, 100, 512, 128)).any()


def test_a_large_box_is_cut_to_tiles_and_its_points_stay_where_they_are() -> None:
    tiles = TileGrid(100, 300, 100, 0)
    asked = Prompts.build(boxes=np.asarray([[50.0, 10, 250, 90]]), points=np.asarray([[[60.0, 50]]]))
    parts = clip_to_tiles(asked, tiles)
    assert parts.boxes.tolist() == [[50, 10, 100, 90], [100, 10, 200, 90], [200, 10, 250, 90]]
    assert parts.labels.tolist() == [[1], [PADDING], [PADDING]]


def test_points_far_apart_without_a_box_stay_only_where_they_are() -> None:
    tiles = TileGrid(100, 300, 100, 0)
    asked = Prompts.build(points=np.asarray([[[10.0, 50], [290.0, 50]]]))
    parts = clip_to_tiles(asked, tiles)
    assert parts.labels.tolist() == [[1, PADDING], [PADDING, 1]]


@pytest.mark.parametrize("index", [0, 1, 4, 8])
def test_margin_is_a_share_of_the_tile(index: int) -> None:
    tiles = TileGrid(1000, 1000, 400, 100)  # starts 0, 300, 600
    tile = tiles[index]
    inset = 400 * MARGIN
    box = (tile.col + inset, tile.row + inset, tile.right - inset, tile.bottom - inset)
    (found,) = assign(boxes(box), tiles)
    assert found.window == tile

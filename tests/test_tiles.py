from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from geolabel.errors import OptionError
from geolabel.tiles import BlockGrid, TileGrid, Window, extent, strips, tile_starts, window_around

lengths = st.integers(1, 60)
windows = st.builds(Window, st.integers(0, 70), st.integers(0, 70), st.integers(1, 40), st.integers(1, 40))


@st.composite
def tile_grids(draw):
    size = draw(st.integers(1, 30))
    return TileGrid(draw(lengths), draw(lengths), size, draw(st.integers(0, size - 1)))


@pytest.mark.parametrize(
    ("length", "size", "stride", "expected"),
    [
        (600, 256, 153, (0, 153, 306, 344)),  # the published helper's case
        (256, 256, 153, (0,)),  # where it repeats a tile
        (100, 256, 153, (0,)),  # and where it starts before the image
        (257, 256, 153, (0, 1)),
        (512, 256, 256, (0, 256)),
        (3, 1, 1, (0, 1, 2)),
    ],
)
def test_tile_starts(length, size, stride, expected):
    assert tile_starts(length, size, stride) == expected


@given(tile_grids())
def test_tiles_cover_the_grid_without_leaving_it_or_repeating(grid):
    hits = np.zeros((grid.height, grid.width), int)
    for tile in grid:
        assert Window(0, 0, grid.height, grid.width).contains(tile)
        assert (tile.height, tile.width) == (min(grid.size, grid.height), min(grid.size, grid.width))
        hits[tile.slices] += 1
    assert hits.min() >= 1
    assert len(set(grid)) == len(grid)


@given(tile_grids())
def test_neighbouring_tiles_share_at_least_the_overlap(grid):
    for starts in (grid.rows, grid.cols):
        assert all(0 < b - a <= grid.size - grid.overlap for a, b in itertools.pairwise(starts))


@given(tile_grids(), windows)
def test_covering_finds_the_tiles_that_share_a_pixel(grid, window):
    assert grid.covering(window) == [i for i, tile in enumerate(grid) if tile.intersection(window)]


@given(tile_grids(), st.floats(0, 60), st.floats(0, 60))
def test_nearest_tile_has_the_nearest_centre(grid, row, col):
    tile = grid[grid.nearest(row, col)]
    for start, size, starts, at in (
        (tile.row, tile.height, grid.rows, row),
        (tile.col, tile.width, grid.cols, col),
    ):
        assert abs(start + size / 2 - at) == min(abs(s + size / 2 - at) for s in starts)


@given(tile_grids())
def test_cores_partition_the_grid_and_lie_in_their_tiles(grid):
    owner = np.full((grid.height, grid.width), -1)
    for index, tile in enumerate(grid):
        core = grid.core(index)
        assert tile.contains(core)
        assert (owner[core.slices] == -1).all()
        owner[core.slices] = index
    assert (owner >= 0).all()


@given(lengths, lengths, st.integers(1, 30), windows)
def test_blocks_partition_the_grid(height, width, size, window):
    blocks = BlockGrid(height, width, size)
    hits = np.zeros((height, width), int)
    for block in blocks:
        hits[block.slices] += 1
    assert (hits == 1).all()
    assert len(list(blocks)) == len(blocks)
    assert blocks.covering(window) == [i for i, block in enumerate(blocks) if block.intersection(window)]


@given(windows, windows)
def test_intersection_agrees_with_arrays(a, b):
    canvas = np.zeros((120, 120), int)
    canvas[a.slices] += 1
    canvas[b.slices] += 1
    common = a.intersection(b)
    if common is None:
        assert canvas.max() == 1
    else:
        assert (canvas[common.slices] == 2).all()
        assert (canvas == 2).sum() == common.height * common.width
        assert a.contains(common)
        assert b.contains(common)


def test_within_picks_a_window_from_an_array_of_a_larger_one():
    outer, inner = Window(10, 20, 8, 9), Window(12, 21, 3, 4)
    canvas = np.arange(50 * 50).reshape(50, 50)
    np.testing.assert_array_equal(canvas[outer.slices][inner.within(outer)], canvas[inner.slices])


@given(st.floats(-5, 70), st.floats(-5, 70), st.integers(1, 80), lengths, lengths)
def test_window_around_a_point_stays_inside(row, col, size, height, width):
    window = window_around(row, col, size, height, width)
    assert Window(0, 0, height, width).contains(window)
    assert (window.height, window.width) == (min(size, height), min(size, width))


def test_window_around_is_centred_where_there_is_room():
    assert window_around(50, 40, 20, 100, 100) == Window(40, 30, 20, 20)
    assert window_around(3, 98, 20, 100, 100) == Window(0, 80, 20, 20)


@pytest.mark.parametrize(("size", "overlap"), [(256, 256), (256, 300), (256, -1), (0, 0)])
def test_impossible_tiles_are_refused(size, overlap):
    with pytest.raises(OptionError, match="px"):
        TileGrid(10, 10, size, overlap)


def test_blocks_need_a_size():
    with pytest.raises(OptionError, match="at least 1 px"):
        BlockGrid(10, 10, 0)


def test_a_tile_that_is_not_there():
    with pytest.raises(IndexError, match="tile 4 of 4"):
        TileGrid(20, 20, 10, 0)[4]
    with pytest.raises(IndexError, match="block -1 of 4"):
        BlockGrid(20, 20, 10)[-1]


@given(tile_grids(), windows)
def test_patches_partition_a_window_and_no_tile_ends_inside_one(grid, window):
    window = window.intersection(Window(0, 0, grid.height, grid.width))
    if window is None:
        return
    hits = np.zeros((grid.height, grid.width), int)
    for patch, indices in grid.patches(window):
        hits[patch.slices] += 1
        shared = [index for index in range(len(grid)) if grid[index].intersection(patch)]
        assert indices == shared
        assert all(grid[index].contains(patch) for index in indices)
    assert hits[window.slices].min() == 1
    assert hits.sum() == window.height * window.width


@given(tile_grids(), st.integers(1, 5))
def test_strips_keep_every_window_in_order_and_are_filled_by_their_members(grid, most):
    parts = list(strips(grid, most))
    assert [window for _, members in parts for window in members] == list(grid)
    for strip, members in parts:
        assert len(members) <= most
        assert {(window.row, window.bottom) for window in members} == {(strip.row, strip.bottom)}
        assert {col for window in members for col in range(window.col, window.right)} == set(
            range(strip.col, strip.right)
        )


def test_a_gap_or_another_row_begins_a_strip():
    windows = [Window(0, 0, 4, 4), Window(0, 4, 4, 4), Window(0, 9, 4, 4), Window(1, 10, 4, 4)]
    assert [members for _, members in strips(windows, 8)] == [windows[:2], windows[2:3], windows[3:]]
    assert list(strips([], 8)) == []


def test_a_part_undoes_within_and_a_hull_holds_both():
    outer, inner = Window(3, 5, 20, 30), Window(7, 9, 2, 4)
    assert outer.part(inner.within(outer)) == inner
    assert Window(0, 4, 2, 2).hull(Window(5, 1, 1, 1)) == Window(0, 1, 6, 5)


def test_the_extent_is_from_the_first_to_the_last_that_is_not_zero():
    values = np.zeros((5, 6), np.uint8)
    assert extent(values) is None
    values[1, 4] = values[3, 2] = 7
    assert extent(values) == (slice(1, 4), slice(2, 5))
    assert extent(np.zeros((0, 0), bool)) is None

"""How the work of a pass is shared out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geolabel.run.plan import SHARES, TASK_PX, even_side, task_size
from geolabel.tiles import tile_starts

MOST = TASK_PX // 512**2


@pytest.mark.parametrize(
    ("count", "batch", "size"),
    [
        (0, 1, 1),
        (5, 1, 1),
        (32, 1, 1),
        (33, 1, 2),
        (500, 1, 16),
        (10**6, 1, 32),
        (100, 8, 8),
        (300, 8, 16),
        (9, 64, 32),
    ],
)
def test_short_passes_have_small_tasks(count: int, batch: int, size: int) -> None:
    assert task_size(count, batch, 512) == size


@given(count=st.integers(1, 10**6), batch=st.integers(1, MOST))
def test_tasks_are_whole_batches_and_enough_for_many_workers(count: int, batch: int) -> None:
    size = task_size(count, batch, 512)
    assert 1 <= size <= MOST
    assert size % batch == 0 or size == MOST
    tasks = -(-count // size)
    assert tasks >= min(SHARES // 2, -(-count // batch)) or size == MOST


@given(length=st.integers(1, 10**5), size=st.sampled_from([64, 512, 1024]), data=st.data())
def test_even_tiles_cover_an_axis_with_as_many_and_little_to_spare(length: int, size: int, data: st.DataObject) -> None:
    overlap = data.draw(st.integers(0, size - 1))
    side = even_side(length, size, overlap)
    assert overlap < side <= size
    count = len(tile_starts(length, side, side - overlap))
    assert count == len(tile_starts(length, size, size - overlap))
    assert side == size or count * (side - 32 - overlap) < max(1, length - overlap)  # a step less would not cover it

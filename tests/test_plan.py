"""How the work of a pass is shared out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geolabel.extraction.plan import SHARES, TASK_TILES, task_size


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
    assert task_size(count, batch) == size


@given(count=st.integers(1, 10**6), batch=st.integers(1, TASK_TILES))
def test_tasks_are_whole_batches_and_enough_for_many_workers(count: int, batch: int) -> None:
    size = task_size(count, batch)
    assert 1 <= size <= TASK_TILES
    assert size % batch == 0 or size == TASK_TILES
    tasks = -(-count // size)
    assert tasks >= min(SHARES // 2, -(-count // batch)) or size == TASK_TILES

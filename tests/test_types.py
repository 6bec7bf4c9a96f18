"""Whether a value is of the kind that an annotation names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import pytest

from geolabel.extraction import passes
from geolabel.extraction.passes import Regions, TileReport
from geolabel.models.checkpoint import NetworkInfo
from geolabel.spans import Spans
from geolabel.types import AnyArray, Int32Array, depth, hints, of_kind

THREE = np.arange(3, dtype=np.int32)


@pytest.mark.parametrize(
    ("value", "kind", "fits"),
    [
        (1, int, True),
        (True, int, False),
        (1, float, True),
        ("1", float, False),
        (None, int | None, True),
        (None, None, True),
        (1.5, int | None, False),
        ("a", Literal["a", "b"], True),
        (1, Literal[True], False),
        ([1, 2], list[int], True),
        ((1, 2), list[int], False),
        ((1, "x"), tuple[int, str], True),
        ((1, "x", 2), tuple[int, str], False),
        ((1, 2, 3), tuple[int, ...], True),
        ((1, "2"), tuple[int, ...], False),
        ({"a": 1}, Mapping[str, int], True),
        ({1: 1}, dict[str, int], False),
        (THREE, Int32Array, True),
        (THREE.astype(np.int64), Int32Array, False),
        ([0, 1, 2], Int32Array, False),
        (THREE, AnyArray, True),
        (object(), Any, True),
        (TileReport(1, "clear", None), TileReport, True),
        (TileReport("1", "clear", None), TileReport, False),
        (Regions(Spans(THREE, THREE, THREE + 1), THREE.astype(np.int64)), Regions, True),
        (Regions(Spans(THREE, THREE, THREE / 2), THREE.astype(np.int64)), Regions, False),
    ],
)
def test_a_value_is_of_a_kind_or_not(value: Any, kind: Any, fits: bool):
    assert of_kind(value, kind) is fits


def test_every_pass_says_what_it_finds():
    for step in (passes.LOCALIZE, passes.PROMPT, passes.SEGMENT, passes.MERGE):
        assert hints(step.function)["return"] == step.record
    assert hints(NetworkInfo)["gsd_range"] == tuple[float, float]


@pytest.mark.parametrize(("value", "levels"), [(1, 1), ([], 1), ([1], 2), ({"a": [1, {"b": ()}]}, 4)])
def test_levels_are_counted(value: Any, levels: int):
    assert depth(value) == levels

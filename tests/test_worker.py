"""How many calls of a network a process has at once, and that it makes no difference to what they answer."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import rasterio
import torch
from scenes import write_raster

from geolabel.devices import count_cores
from geolabel.engine import worker
from geolabel.extraction.extract import extract
from geolabel.extraction.request import Networks, Parameters
from geolabel.masks import Filters
from geolabel.models.loading import recipe
from geolabel.parts import Recipe
from geolabel.synthetic import synthesize
from geolabel.testing import RECIPES

BUNDLED = recipe("segmenter")


@pytest.mark.parametrize(
    ("part", "calls"),
    [
        (BUNDLED, 3),
        (recipe("localizer"), 3),
        (replace(BUNDLED, device="cuda"), 1),
        (BUNDLED.everything(Filters()), 3),
        (replace(BUNDLED, source="vit_b"), 1),
        (replace(BUNDLED, engine="onnx"), 3),
        (replace(BUNDLED, engine="onnx").everything(Filters()), 3),
    ],
)
def test_small_networks_and_those_of_onnx_runtime_alone_are_called_side_by_side(part: Recipe, calls: int) -> None:
    assert worker.calls_at_once(part, 3) == calls
    assert worker.calls_at_once(part, 1) == 1
    assert worker.calls_at_once(BUNDLED, None) == torch.get_num_threads()
    assert worker.calls_at_once(replace(BUNDLED, engine="onnx"), None) == count_cores()


def test_threads_of_a_process_hold_where_a_plan_fixes_none() -> None:
    try:
        worker.use_threads(5)
        assert worker.calls_at_once(BUNDLED, None) == 5
        assert worker.calls_at_once(BUNDLED, 2) == 2
    finally:
        worker.use_threads(None)
    assert worker.calls_at_once(BUNDLED, None) == torch.get_num_threads()


def test_networks_of_one_call_are_entered_together_as_the_slowest_of_them() -> None:
    large = replace(BUNDLED, source="vit_b")
    entered = []

    def call(_: int) -> None:
        with worker.networks([BUNDLED, large], 3), worker.networks([], 3):
            entered.append(threading.active_count())
            assert len(entered) == 1
            time.sleep(0.01)
            entered.pop()

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(call, range(6)))


def test_as_many_are_in_a_small_network_as_there_are_threads_each_on_one() -> None:
    together = threading.Barrier(3, timeout=30)

    def call(_: int) -> int:
        with worker.network(BUNDLED, 3):
            together.wait()  # breaks if one of the three has to wait for another
            return torch.get_num_threads()

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(call, range(3))) == [1, 1, 1]


def test_one_is_in_a_large_network_on_all_threads() -> None:
    inside, most = [], []

    def call(number: int) -> int:
        with worker.network(RECIPES[1], 3):
            inside.append(number)
            most.append(len(inside))
            time.sleep(0.01)
            inside.remove(number)
            return torch.get_num_threads()

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(call, range(8))) == [3] * 8
    assert max(most) == 1


@pytest.mark.parametrize("engine", ["onnx", "torch"])
def test_the_number_of_threads_changes_no_byte(tmp_path: Path, engine: Literal["onnx", "torch"]) -> None:
    drawn = synthesize(640, seed=900_100)
    scene = tmp_path / "scene.tif"
    write_raster(scene, np.moveaxis(drawn.rgb, 2, 0), photometric="rgb")
    for threads in (1, 3):
        parameters = Parameters(threads=threads, tile_size=256)
        networks = Networks(engine=engine)
        extract(scene, networks=networks, parameters=parameters, score_out=tmp_path / f"{threads}.tif")
    assert (tmp_path / "1.tif").read_bytes() == (tmp_path / "3.tif").read_bytes()
    with rasterio.open(tmp_path / "1.tif") as scores:
        assert scores.read(1).any()

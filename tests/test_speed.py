"""Measuring speed: operations of the official encoders, and every row on a tiny network."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partialmethod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from geolabel import devices
from geolabel.cli.main import run as command
from geolabel.errors import OptionError, OutputError
from geolabel.evaluation import speed
from geolabel.evaluation.speed import Measure, bench_speed, operations, table
from geolabel.evaluation.speed import _Clock as Clock
from geolabel.models import tuning
from geolabel.models.on_torch import TorchSam
from geolabel.prompts import Prompts

ROOT = Path(__file__).parents[1]


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(speed.ENCODERS, "vit_b", (32, 2, 2, (1,)))
    return "vit_b"


@pytest.mark.parametrize(("model", "tera"), [("vit_b", 0.97), ("vit_l", 2.99), ("vit_h", 5.96)])
def test_operations_of_a_tile_are_those_that_are_known(model: str, tera: float) -> None:
    assert operations(model) / 1e12 == pytest.approx(tera, abs=0.005)


def test_operations_are_those_that_torch_counts(tiny: str) -> None:
    sam = speed.build(tiny, 256)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        sam.image_encoder(torch.zeros(1, 3, 256, 256))
    assert operations(tiny, 256) == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_every_row_is_measured_and_a_trace_written(tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "COMPILER", "eager")
    trace = tmp_path / "trace.json"
    found = bench_speed(Measure((tiny,), side=64, prompts=3, seconds=1e-3, compiled=True), profile=trace)
    assert {"matrix product fp32, TFLOP/s", "disk, read, GB/s"} <= found["ceilings"].keys()
    encoder = found["encoders"][tiny]
    assert encoder["km2/h at 0.5 m"] == pytest.approx(encoder["tiles/s"] * 32**2 * 3600 / 1e6)
    assert encoder["share of the ceiling"] == pytest.approx(
        encoder["TFLOP/s"] / found["ceilings"]["matrix product fp32, TFLOP/s"]
    )
    stages = found["stages"][tiny]
    assert list(stages)[1:3] == ["encode", "decode"]
    assert all(0 <= figures["busy"] <= 1 for figures in stages.values())
    assert found["predictor"][tiny]["times as fast"] > 0
    assert found["encoders"][f"{tiny}, compiled"]["tiles/s"] > 0
    assert found["left_out"] == {}
    assert "| vit_b |" in table(found)
    assert json.loads(json.dumps(found)) == found
    assert any("scaled_dot_product" in event["name"] for event in json.loads(trace.read_text())["traceEvents"])
    with pytest.raises(OutputError, match="trace"):
        bench_speed(Measure((tiny,), side=64), profile=trace)


def test_the_command_prints_a_table_or_json(tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    more = "--side", "64", "--prompts", "2", "--seconds", "0.001", "--device", "cpu", "-q"
    assert command(["bench", "speed", "--model", tiny, *more]) == 0
    assert "| stages of vit_b |" in capsys.readouterr().out
    assert command(["bench", "speed", "--model", tiny, *more, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["asked"]["side"] == 64


@pytest.mark.parametrize(("wrong", "says"), [({"side": 100}, "multiple of 16"), ({"models": ("vit_x",)}, "vit_x")])
def test_what_cannot_be_measured_is_refused(wrong: dict, says: str) -> None:
    with pytest.raises(OptionError, match=says):
        Measure(**wrong)


def test_what_cannot_be_compiled_is_left_out(tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(graph: Any, inputs: Any) -> Any:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(devices, "COMPILER", fail)
    found = bench_speed(Measure((tiny,), side=64, prompts=1, seconds=1e-3, compiled=True))
    assert found["left_out"] == {"vit_b, compiled": "no compiler"}
    assert found["predictor"][tiny]["times as fast"] > 0


def test_the_batch_that_fits_a_gpu_is_measured_too(tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def fitting(prepare: Any, device: str) -> int:
        calls.append(device)
        prepare(2)()
        return 2

    monkeypatch.setattr(tuning, "fitting_batch", fitting)
    on_gpu = Measure((tiny,), device="cuda", precision="fp32", batch=1, side=64, prompts=1, seconds=1e-3)
    monkeypatch.setattr(speed, "_Clock", lambda device, seconds: Clock("cpu", seconds))
    monkeypatch.setattr(TorchSam, "__init__", partialmethod(as_on_a_processor, TorchSam.__init__))
    found = speed._fitting(speed.build(tiny, 64), Prompts.build(points=np.array([[3.0, 4]])), on_gpu)
    assert calls == ["cuda"]
    assert found["batch auto"] == 2
    assert found["tiles/s with it"] > 0


def as_on_a_processor(self: TorchSam, init: Any, sam: Any, *, device: str, **given: Any) -> None:
    assert device == "cuda"
    init(self, sam, device="cpu", **given)


BARE = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"scipy", "psutil", "rasterio", "geopandas", "click", "timm", "dask", "PIL.x"}:
            raise ModuleNotFoundError(name, name=name)

sys.meta_path.insert(0, Missing())
from geolabel.evaluation import speed
speed.ENCODERS["vit_b"] = (32, 1, 2, (0,))
found = speed.bench_speed(speed.Measure(("vit_b",), device="cpu", side=32, prompts=1, seconds=1e-3))
assert found["stages"]["vit_b"], found
print(found["left_out"])
"""


def test_the_rows_of_networks_need_torch_and_segment_anything_alone() -> None:
    done = subprocess.run([sys.executable, "-c", BARE], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "geolabel's own path needs" in done.stdout


def test_the_script_for_gpus_runs_where_there_is_none(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if not request.config.getoption("--slow"):
        pytest.skip("takes minutes on a busy machine: run with --slow")
    script = ["sh", str(ROOT / "tests/benchmarks/gpu.sh"), str(tmp_path), "small"]
    environment = {"PATH": "/usr/bin:/bin", "PYTHON": sys.executable}
    assert subprocess.run(script, env=environment, check=False).returncode == 0
    assert {path.name for path in tmp_path.iterdir()} == {"speed.json", "speed.md", "trace.json"}

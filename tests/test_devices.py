"""Devices and precisions: what ``auto`` means, and what is refused."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest
import torch

from geolabel import devices
from geolabel.devices import count_cores, exact, forward, resolve_device, resolve_precision
from geolabel.errors import OptionError


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


@pytest.fixture
def two_gpus(monkeypatch):
    monkeypatch.setattr(devices, "_has_driver", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5) if device == "cuda:1" else (8, 0))


@pytest.mark.usefixtures("no_gpu")
def test_without_a_gpu_everything_runs_on_the_cpu_in_single_precision():
    assert resolve_device() == resolve_device("cpu") == "cpu"
    assert resolve_precision("auto", "cpu") == "fp32"
    assert resolve_precision("bf16", "cpu") == "bf16"


def test_torch_is_not_asked_for_gpus_where_there_is_no_driver(monkeypatch):
    monkeypatch.setattr(devices, "_has_driver", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: pytest.fail("torch was asked"))
    assert resolve_device() == "cpu"
    with pytest.raises(OptionError, match="cuda: torch sees 0 CUDA devices"):
        resolve_device("cuda")


def test_cores_are_those_that_the_process_may_use(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3}, raising=False)
    assert count_cores() == 1
    for given, expected in (("3", 3), ("0", 1), ("many", 1)):
        monkeypatch.setenv("OMP_NUM_THREADS", given)
        assert count_cores() == expected


@pytest.mark.usefixtures("two_gpus")
def test_with_gpus_the_first_is_taken_in_bf16_if_it_has_that():
    assert resolve_device("auto") == "cuda"
    assert resolve_device("cuda:1") == "cuda:1"
    assert resolve_precision("auto", "cuda") == "bf16"
    assert resolve_precision("auto", "cuda:1") == "fp32"
    assert resolve_precision("fp32", "cuda") == "fp32"
    assert resolve_precision("tf32", "cuda") == "tf32"


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cuda", "torch sees 0 CUDA devices here; use --device cpu"),
        ("cuda:0", "torch sees 0 CUDA devices"),
        ("mps", "no Apple GPU"),
        ("gpu", "device 'gpu' is unknown: give auto, cpu, cuda, cuda:N or mps"),
        ("meta", "device 'meta' is unknown"),
    ],
)
def test_devices_that_are_not_here_are_refused(name, message):
    with pytest.raises(OptionError, match=message):
        resolve_device(name)


@pytest.mark.usefixtures("two_gpus")
def test_a_gpu_beyond_the_last_is_refused():
    with pytest.raises(OptionError, match="cuda:2: torch sees 2 CUDA devices"):
        resolve_device("cuda:2")


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(
    ("precision", "device"), [("bf16", "cuda:1"), ("bf16", "mps"), ("tf32", "cuda:1"), ("tf32", "mps"), ("tf32", "cpu")]
)
def test_a_precision_is_refused_where_it_is_not(precision, device):
    with pytest.raises(
        OptionError, match=f"precision {precision}: not supported by {device}; use --precision fp32 or auto"
    ):
        resolve_precision(precision, device)


def test_an_unknown_precision_is_refused():
    with pytest.raises(OptionError, match="precision 'fp16' is unknown: give auto, fp32, tf32, bf16"):
        resolve_precision("fp16", "cpu")


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_forward_decides_precision_and_gradients(precision, dtype):
    weight = torch.ones(2, 2, requires_grad=True)
    tf32 = torch.backends.cudnn.allow_tf32
    with forward("cpu", precision):
        product = weight @ torch.ones(2, 2)
    assert product.dtype == dtype
    assert not product.requires_grad
    assert torch.backends.cudnn.allow_tf32 == tf32


def test_cuda_is_deterministic_and_rounds_to_no_tf32():
    before = torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32
    with forward("cuda", "fp32"):
        assert torch.backends.cudnn.deterministic
        assert not torch.backends.cudnn.allow_tf32
    assert before == (torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32)


@pytest.mark.filterwarnings("ignore:CUDA is not available:UserWarning")  # the settings are there without one
def test_tf32_holds_within_a_call_alone():
    matrices = torch.backends.cuda.matmul
    with forward("cuda", "tf32"):
        assert (matrices.allow_tf32, torch.backends.cudnn.allow_tf32) == (True, True)
        with forward("cuda", "fp32"):
            assert not matrices.allow_tf32
        assert matrices.allow_tf32
        with exact("cuda"):
            assert not matrices.allow_tf32
    with forward("cuda", "bf16"):
        assert matrices.allow_tf32
    assert not matrices.allow_tf32


BUFFERS = """
import resource, sys
import numpy as np
from geolabel.devices import keep_freed_memory

if sys.argv[1] == "keep":
    assert keep_freed_memory()
np.ones(2 << 20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    np.ones(2 << 20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told what to do with freed memory")
def test_a_worker_of_dask_keeps_the_pages_of_buffers_that_it_frees():
    faults = {}
    for choice in ("keep", "leave"):
        found = subprocess.run(
            [sys.executable, "-c", BUFFERS, choice],
            # without huge pages, of which there are few faults, and not always some free
            env=os.environ | {"MALLOC_TRIM_THRESHOLD_": "65536", "NUMPY_MADVISE_HUGEPAGE": "0"},
            capture_output=True,
            text=True,
            check=True,
        )
        faults[choice] = int(found.stdout)
    assert faults["keep"] < 100 < 1000 < faults["leave"]

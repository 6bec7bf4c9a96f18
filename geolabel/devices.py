"""Devices and numeric precisions of networks.

torch is imported only where needed, since the import takes seconds.
"""

from __future__ import annotations

import ctypes
import logging
import os
import platform
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from geolabel.errors import OptionError

R = TypeVar("R")

Precision = Literal["fp32", "tf32", "bf16"]
"""``tf32`` is single precision with factors of products rounded to 10 bits, on the tensor cores of CUDA devices."""

Compile = Literal["auto", "on", "off"]

COMPILER = "inductor"
"""Backend of ``torch.compile``."""

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Parameters of ``mallopt``, numbered as in malloc.h of glibc."""

KEPT_BYTES, SMALL_BYTES = 512 << 20, 32 << 20
"""Bytes of freed memory that a process keeps, and maximum buffer size served from it: the largest that glibc allows."""


DEVICES = re.compile(r"auto|cpu|cuda(:\d+)?|mps")


def check_device(name: str) -> None:
    """Refuse an invalid device name, without importing torch.

    Raises
    ------
    OptionError
        If it is not ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
    """
    if not DEVICES.fullmatch(name):
        raise OptionError(f"device {name!r} is unknown: give auto, cpu, cuda, cuda:N or mps")


def resolve_device(name: str = "auto") -> str:
    """Resolve ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps`` to an available device.

    ``auto`` is CUDA if torch sees a GPU, otherwise the CPU; never ``mps``, whose results are not tested.

    Raises
    ------
    OptionError
        If the name is invalid, or the machine does not have the device.
    """
    check_device(name)
    if name == "auto":
        return "cuda" if count_gpus() else "cpu"
    if name == "cpu":
        return name
    import torch

    device = torch.device(name)
    if device.type == "cuda":
        count = count_gpus()
        if (device.index or 0) >= count:
            raise OptionError(f"device {name}: torch sees {count} CUDA devices here; use --device cpu or auto")
    elif not torch.backends.mps.is_available():
        raise OptionError("device mps: torch sees no Apple GPU here; use --device cpu or auto")
    return str(device)


def count_gpus() -> int:
    """Number of CUDA devices that torch sees; 0, without importing torch, if no driver is installed."""
    if not _has_driver():
        return 0
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


@cache
def _has_driver() -> bool:
    # torch reports AMD GPUs as CUDA devices too; their driver is part of the Linux kernel.
    if Path("/dev/kfd").exists():
        return True
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    return True


def count_cores() -> int:
    """Cores that this process may use, from its affinity or ``OMP_NUM_THREADS``."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    if given.isdecimal() and int(given):
        return int(given)
    import psutil

    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(allowed, psutil.cpu_count(logical=False) or allowed)


def resolve_precision(name: str, device: str) -> Precision:
    """Resolve ``auto`` or a precision to one that `device` supports; ``auto`` is bf16 on CUDA if supported.

    Raises
    ------
    OptionError
        If the name is unknown or the device does not support it.
    """
    kind = device.partition(":")[0]
    has_both = kind == "cuda" and _has_tensor_cores(device)
    if name == "auto":
        return "bf16" if has_both else "fp32"
    known = next((one for one in get_args(Precision) if one == name), None)
    if known is None:
        raise OptionError(f"precision {name!r} is unknown: give auto, {', '.join(get_args(Precision))}")
    if known == "fp32" or has_both or (known == "bf16" and kind == "cpu"):
        return known  # type: ignore[no-any-return]
    raise OptionError(f"precision {name}: not supported by {device}; use --precision fp32 or auto")


def _has_tensor_cores(device: str) -> bool:
    # since Ampere, which introduced bf16 and TF32
    import torch

    return torch.cuda.get_device_capability(device) >= (8, 0)


@contextmanager
def forward(device: str, precision: str) -> Iterator[None]:
    """Run networks without gradients, with products in bf16 or TF32 if that is the precision.

    On CUDA, convolutions are deterministic, and fp32 means fp32: by default torch rounds their inputs to TF32. With
    bf16, remaining single-precision products use TF32; see `exact`.
    """
    import torch

    kind = torch.device(device).type
    with torch.inference_mode(), ExitStack() as settings:
        if precision == "bf16":
            settings.enter_context(torch.autocast(kind, torch.bfloat16))
        if kind == "cuda":
            rounded = precision != "fp32"
            settings.enter_context(torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=rounded))
            settings.enter_context(products("tf32" if rounded else "fp32"))
        yield


@contextmanager
def products(precision: str) -> Iterator[None]:
    """Multiply single-precision matrices in TF32 on CUDA if that is the precision, and exactly otherwise."""
    import torch

    settings = torch.backends.cuda.matmul
    before = settings.allow_tf32
    settings.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        settings.allow_tf32 = before


@contextmanager
def exact(device: str) -> Iterator[None]:
    """Compute in single precision whatever `forward` sets: image coordinates need more than ten bits."""
    import torch

    with torch.autocast(torch.device(device).type, enabled=False), products("fp32"):
        yield


def compiled(function: Callable[..., R]) -> Callable[..., R]:
    """A function of tensors of fixed shape, compiled by torch at its first call.

    Kernels are not selected by timing, which would change the last digits from run to run. CUDA graphs are disabled,
    since a graph belongs to one thread, and tasks run in several.
    """
    import torch

    # On a CPU, torch warns that there is no CUDA.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    options: dict[str, Any] | None = {"deterministic": True} if COMPILER == "inductor" else None
    made: Callable[..., R] = torch.compile(function, dynamic=False, backend=COMPILER, options=options)
    return made


@cache
def keep_freed_memory() -> bool:
    """Let the C library reuse the memory that networks free; False if it cannot.

    On a CPU, a network allocates the same buffers at each call. glibc returns large ones to the system, which fills
    every page with zeros when they are allocated again. glibc adapts to this up to a limit, but not if
    ``MALLOC_TRIM_THRESHOLD_`` is set, as dask does for its workers: there, networks would take 1.7 times as long.
    """
    if platform.system() != "Linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # not glibc
        return False
    return bool(mallopt(M_TRIM_THRESHOLD, KEPT_BYTES) and mallopt(M_MMAP_THRESHOLD, SMALL_BYTES))

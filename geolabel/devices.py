"""Where networks run, and in which precision."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Literal, get_args

import torch

from geolabel.errors import OptionError

Precision = Literal["fp32", "bf16"]

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Parameters of ``mallopt``, as malloc.h of glibc numbers them."""

KEPT_BYTES, SMALL_BYTES = 512 << 20, 32 << 20
"""Freed memory that a process keeps, and the size up to which a buffer is made of it: the largest that glibc allows."""


def resolve_device(name: str = "auto") -> str:
    """Turn ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps`` into a device that is there.

    ``auto`` is CUDA where torch sees a GPU and the CPU elsewhere; never ``mps``, whose results nobody has checked.

    Raises
    ------
    OptionError
        If the name means no device, or one that this machine lacks.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except (RuntimeError, ValueError) as error:
        raise OptionError(f"device {name!r} is unknown: give auto, cpu, cuda, cuda:N or mps") from error
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise OptionError(f"device {name}: torch sees {count} CUDA devices here; use --device cpu or auto")
    elif device.type == "mps":
        if not torch.backends.mps.is_available():
            raise OptionError("device mps: torch sees no Apple GPU here; use --device cpu or auto")
    elif device.type != "cpu":
        raise OptionError(f"device {name!r} is not supported: give auto, cpu, cuda, cuda:N or mps")
    return str(device)


def resolve_precision(name: str, device: str) -> Precision:
    """Turn ``auto``, ``fp32`` or ``bf16`` into what `device` can do; ``auto`` is bf16 on a CUDA device that has it.

    Raises
    ------
    OptionError
        If the name is unknown or the device has no bf16.
    """
    kind = torch.device(device).type
    has_bf16 = kind == "cpu" or (kind == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0))
    if name == "auto":
        return "bf16" if kind == "cuda" and has_bf16 else "fp32"
    if name == "bf16" and not has_bf16:
        raise OptionError(f"precision bf16: the device {device} has none; use --precision fp32 or auto")
    if name not in get_args(Precision):
        raise OptionError(f"precision {name!r} is unknown: give auto, {' or '.join(get_args(Precision))}")
    return "bf16" if name == "bf16" else "fp32"


@contextmanager
def forward(device: str, precision: str) -> Iterator[None]:
    """Run networks without gradients, their products in bf16 where that is the precision.

    On CUDA, convolutions are deterministic, and fp32 means fp32: by default torch rounds their inputs to TF32.
    """
    kind = torch.device(device).type
    with torch.inference_mode(), ExitStack() as settings:
        if precision == "bf16":
            settings.enter_context(torch.autocast(kind, torch.bfloat16))
        if kind == "cuda":
            settings.enter_context(torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False))
        yield


@cache
def keep_freed_memory() -> bool:
    """Have the C library keep what networks free for what they ask for next; False where it offers no such choice.

    On a CPU a network asks for the same buffers at each call. glibc gives large ones back to the system, which fills
    every page with zeros when they are asked for again. It learns from that up to a point, but not where the variable
    ``MALLOC_TRIM_THRESHOLD_`` is set, as dask sets it for its workers: there networks take 1.7 times as long.
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # a C library other than glibc
        return False
    return bool(mallopt(M_TRIM_THRESHOLD, KEPT_BYTES) and mallopt(M_MMAP_THRESHOLD, SMALL_BYTES))

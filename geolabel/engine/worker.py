"""State of a process between tasks: loaded networks, and how many tasks run them at a time."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib import import_module
from importlib.metadata import version
from typing import Any, TypeVar

from geolabel.devices import Precision, count_cores, resolve_device, resolve_precision
from geolabel.models.defaults import BUNDLED
from geolabel.parts import Localizer, Recipe, Segmenter
from geolabel.types import UInt8Array

P = TypeVar("P")

STAND_IN = "stand-in"
"""Source of recipes that `geolabel.testing` creates, in any process."""

_CACHE_MB = 128
"""GDAL's cache in a worker process; ``GDAL_CACHEMAX`` in the worker's environment takes precedence."""

_loading = threading.RLock()


def localizer(recipe: Recipe) -> Localizer:
    """Return the localizer of a recipe, loaded on first use."""
    part = _part(recipe)
    assert recipe.role == "localizer"
    return part  # type: ignore[return-value]


def segmenter(recipe: Recipe) -> Segmenter:
    """Return the segmenter of a recipe, loaded on first use."""
    part = _part(recipe)
    assert recipe.role == "segmenter"
    return part  # type: ignore[return-value]


def once(load: Callable[..., P], *given: Any, **options: Any) -> P:
    """Return the result of a loader, called on first use: for parts other than localizers and segmenters."""
    with _loading:
        part: P = _once(load, *given, **options)
    return part


@lru_cache(maxsize=4)
def _once(load: Callable[..., Any], *given: Any, **options: Any) -> Any:
    return load(*given, **options)


def _part(recipe: Recipe) -> Localizer | Segmenter:
    with _loading:
        return _load(recipe)


@lru_cache(maxsize=4)
def _load(recipe: Recipe) -> Localizer | Segmenter:
    if recipe.source.partition(":")[0] == STAND_IN:
        from geolabel import testing

        return testing.stand_in(recipe)
    from geolabel.models import loading

    return loading.load(recipe)


def is_small(recipe: Recipe) -> bool:
    """Whether a network is small in memory and time, like those in the package."""
    return recipe.source == BUNDLED


def calls_at_once(recipe: Recipe, threads: int | None) -> int:
    """Number of concurrent calls of a network in a process.

    For a small network on a CPU, as many calls as there are threads, each on one thread, are faster than calls one
    after another on all threads, since its layers are too short to parallelise; its results then do not depend on the
    number of threads either. ONNX Runtime always works like this. Other networks run one call at a time, to save
    memory.

    Parameters
    ----------
    threads
        Threads of this process; None for all cores.
    """
    side_by_side = recipe.engine == "onnx" or (recipe.device == "cpu" and is_small(recipe))
    return _threads(recipe, threads) if side_by_side else 1


@contextmanager
def network(recipe: Recipe, threads: int | None) -> Iterator[None]:
    """Enter a network when it is this call's turn, with the number of threads fixed by the plan.

    The last digits of a result depend on the number of threads, so nothing else may set it. See `calls_at_once`.
    """
    with networks([recipe], threads):
        yield


@contextmanager
def networks(recipes: Sequence[Recipe], threads: int | None) -> Iterator[None]:
    """Enter the networks that one call runs, like `network`; the one with the fewest concurrent calls decides."""
    if not recipes:
        yield
        return
    calls = min(calls_at_once(recipe, threads) for recipe in recipes)
    with _places(calls):
        ours = [recipe for recipe in recipes if recipe.engine == "torch"]
        if ours:
            import torch

            each = 1 if calls > 1 else _threads(ours[0], threads)
            if torch.get_num_threads() != each:
                torch.set_num_threads(each)
        yield


def waiting(recipe: Recipe, images: Sequence[UInt8Array]) -> Sequence[UInt8Array]:
    """Images (H, W, 3) waiting for a network: in pinned memory for a CUDA device."""
    if recipe.engine != "torch" or not recipe.device.startswith("cuda"):
        return images
    from geolabel.models.on_device import pinned

    return pinned(images)


def _threads(recipe: Recipe, threads: int | None) -> int:
    return threads or _own.threads or (_torch_threads() if recipe.engine == "torch" else count_cores())


@dataclass
class _Own:
    """Settings of this process."""

    threads: int | None = None


_own = _Own()


def use_threads(count: int | None) -> None:
    """Set the number of threads of network calls in this process, if no plan fixes it; None for all cores."""
    _own.threads = count


@cache
def _torch_threads() -> int:
    # read before this module changes it: new threads inherit the last number set
    import torch

    return torch.get_num_threads()


@cache
def _places(count: int) -> threading.BoundedSemaphore:
    return threading.BoundedSemaphore(count)


def settle(number: int, *, gpus: int, local: bool, threads: int | None = None) -> None:
    """Set up a worker process before it opens anything.

    Parameters
    ----------
    number
        Number of the worker, from 0.
    gpus
        GPUs of this machine to distribute the workers over; 0 to leave the choice unchanged.
    local
        Whether the process belongs to the run: then the client handles Ctrl-C.
    threads
        See `use_threads`.
    """
    use_threads(threads)
    os.environ.setdefault("GDAL_CACHEMAX", str(_CACHE_MB))
    if gpus:
        names = (os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(gpus)))).split(",")
        os.environ["CUDA_VISIBLE_DEVICES"] = names[number % len(names)].strip()
    if local and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def warm_up(modules: Sequence[str]) -> None:
    """Import what tasks need, which takes seconds."""
    for name in modules:
        import_module(name)


def versions() -> dict[str, str]:
    """Versions of libraries that the last digits of a network and the pixels of a scene depend on."""
    import rasterio

    import geolabel

    engines = {name: version(name) for name in ("onnxruntime", "torch")}  # importing torch would take seconds
    return {"geolabel": geolabel.__version__, "gdal": rasterio.__gdal_version__} | engines


def device_and_precision(device: str, precision: str) -> tuple[str, Precision]:
    """Resolve ``auto`` in this process; see `geolabel.devices`."""
    resolved = resolve_device(device)
    return resolved, resolve_precision(precision, resolved)

"""What a process keeps between tasks: loaded networks, and the lock that lets one task at a time into them."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from importlib import import_module
from typing import TYPE_CHECKING

from geolabel.parts import Localizer, Recipe, Segmenter

if TYPE_CHECKING:
    from geolabel.devices import Precision

STAND_IN = "stand-in"
"""Source of recipes that `geolabel.testing` makes, in whatever process they are wanted."""

CACHE_MB = 128
"""GDAL's cache in a worker process; ``GDAL_CACHEMAX`` in the worker's environment is respected."""

_loading = threading.Lock()
_in_network = threading.Lock()


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


def _part(recipe: Recipe) -> Localizer | Segmenter:
    with _loading:
        return _load(recipe)


@lru_cache(maxsize=4)
def _load(recipe: Recipe) -> Localizer | Segmenter:
    if recipe.source.partition(":")[0] == STAND_IN:
        from geolabel import testing

        return testing.stand_in(recipe)
    from geolabel.io import weights

    return weights.load(recipe)


@contextmanager
def network(threads: int | None) -> Iterator[None]:
    """Enter a network: one task at a time, with a fixed number of threads.

    A network's last digits depend on its number of threads, so the plan fixes it; and two forward calls at once on the
    same cores take longer than one after the other.
    """
    import torch

    with _in_network:
        if threads is not None and torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        yield


def settle(number: int, *, gpus: int, local: bool) -> None:
    """Fit a process out for work, before it opens anything.

    Parameters
    ----------
    number
        Of the worker, from 0.
    gpus
        GPUs of this machine to spread the workers over; 0 to leave the choice as it is.
    local
        Whether the process belongs to the run: then it is the client that decides what Ctrl-C means.
    """
    os.environ.setdefault("GDAL_CACHEMAX", str(CACHE_MB))
    if gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = str(number % gpus)
    if local and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def warm_up() -> None:
    """Import what tasks need, which takes seconds."""
    for name in ("geolabel.io.weights", "geolabel.localizers", "geolabel.segmenters", "geolabel.run.passes"):
        import_module(name)


def versions() -> dict[str, str]:
    """Versions of what a network's last digits and the pixels of a scene depend on, in this process."""
    import rasterio
    import torch

    import geolabel

    return {"geolabel": geolabel.__version__, "torch": torch.__version__, "gdal": rasterio.__gdal_version__}


def device_and_precision(device: str, precision: str) -> tuple[str, Precision]:
    """What ``auto`` means in this process; see `geolabel.devices`."""
    from geolabel.devices import resolve_device, resolve_precision

    resolved = resolve_device(device)
    return resolved, resolve_precision(precision, resolved)

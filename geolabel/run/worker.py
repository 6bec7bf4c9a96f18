"""What a process keeps between tasks: loaded networks, and the lock that lets one task at a time into them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

from geolabel.parts import Localizer, Recipe, Segmenter

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

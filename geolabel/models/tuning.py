"""How networks use a machine: batches that fit the memory of a GPU, and compiled encoders."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from typing import Any, TypeVar, cast

import numpy as np

from geolabel.devices import compiled, forward
from geolabel.errors import OptionError, ran_out_of_memory
from geolabel.models.loading import default_batch, load
from geolabel.parts import Localizer, Recipe, Segmenter, SegmenterRecipe, WordsRecipe
from geolabel.prompts import Prompts
from geolabel.types import UInt8Array

AnyRecipe = TypeVar("AnyRecipe", bound=Recipe)

log = logging.getLogger(__name__)

MAX_BATCH, SHARE = 32, 0.7
"""Maximum number of images that `fitting_batch` finds, and the share of the free memory that their call may take."""

SCENE_TILE = 512
"""Maximum side in pixels of the tiles of a localizer."""

TRIED_PROMPTS = 64
"""Boxes in each image of a call whose memory is measured: as many as a decoder processes at once."""


def largest_batch(recipe: Recipe, beside: Recipe | None = None) -> int:
    """Number of images per call that the memory of a recipe's GPU holds, by trial; `default_batch` on other devices.

    Parameters
    ----------
    beside
        Recipe of another network whose weights stay in the same memory.

    Raises
    ------
    WeightsError
        As `load`.
    """
    if not recipe.device.startswith("cuda"):
        return default_batch(recipe.device)
    held = None if beside is None else load(beside)
    batch = _tried_batch(recipe)
    del held
    return batch


def _tried_batch(recipe: Recipe) -> int:
    if isinstance(recipe, SegmenterRecipe):
        segmenter = cast("Segmenter", load(replace(recipe, batch=MAX_BATCH, compile="off")))
        return fitting_batch(lambda count: partial(segmenter, *_sample(segmenter.window, count)), recipe.device)

    def prepare(count: int) -> Callable[[], Any]:
        # one localizer per size, since it pads every call to its batch
        localizer = cast("Localizer", load(replace(recipe, batch=count)))
        side = localizer.window if isinstance(recipe, WordsRecipe) else SCENE_TILE
        return partial(localizer, _sample(side, count)[0])

    return fitting_batch(prepare, recipe.device)


def _sample(side: int, count: int) -> tuple[list[UInt8Array], list[Prompts]]:
    # Grey images, each with boxes.
    image = np.full((side, side, 3), 127, np.uint8)
    boxes = np.tile([[side / 4, side / 4, side / 2, side / 2]], (TRIED_PROMPTS, 1))
    return [image] * count, [Prompts.build(boxes=boxes)] * count


def fitting_batch(prepare: Callable[[int], Callable[[], Any]], device: str) -> int:
    """Number of images that a GPU processes in one call: a power of two, at most `MAX_BATCH`.

    One image shows the memory of a call, and the free memory how many fit. Batches are tried, and their
    size is halved while memory runs out.

    Parameters
    ----------
    prepare
        Returns a call with a number of images, with everything that stays in memory between calls.
    device
        A CUDA device.
    """
    import torch

    def peak(count: int) -> int | None:
        call = prepare(count)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        try:
            call()
        except Exception as error:
            if not ran_out_of_memory(error):
                raise
            return None
        return max(1, torch.cuda.max_memory_allocated(device) - before)

    one = peak(1)
    if one is None:
        return 1
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    free = torch.cuda.mem_get_info(device)[0] + unused
    batch = 1 << (max(1, min(MAX_BATCH, int(SHARE * free / one))).bit_length() - 1)
    while batch > 1 and peak(batch) is None:
        batch //= 2
    return batch


LONG = 20_000
"""Windows from which ``--compile auto`` compiles: compiling the largest encoder takes a minute or two, which a tenth of
its time over so many windows is worth. An estimate; not measured on a GPU."""


def compile_for(recipe: AnyRecipe, windows: int) -> AnyRecipe:
    """The same recipe; if ``compile`` is ``auto``, with the choice for a number of windows."""
    if not isinstance(recipe, SegmenterRecipe) or recipe.compile != "auto":
        return recipe
    on = recipe.device.startswith("cuda") and recipe.engine == "torch" and windows >= LONG
    log.info("--compile auto: %s, for %d windows on %s", "on" if on else "off", windows, recipe.device)
    return replace(recipe, compile="on" if on else "off")


def uncompiled(recipe: AnyRecipe) -> AnyRecipe:
    """The same recipe, with ``auto`` replaced by ``off``: its meaning where windows are not counted."""
    if not isinstance(recipe, SegmenterRecipe) or recipe.compile != "auto":
        return recipe
    return replace(recipe, compile="off")


@cache
def check_compiler(device: str) -> None:
    """Compile something small.

    Raises
    ------
    OptionError
        If that fails on the device.
    """
    import torch

    kind = device.partition(":")[0]
    if kind not in ("cpu", "cuda"):
        raise OptionError(f"compile on: networks are compiled for CUDA and the CPU, not for {device}; leave it out")
    try:
        with forward(device, "fp32"):
            compiled(lambda values: values.exp() + 1)(torch.ones(8, device=device))
    except Exception as error:
        needs = "triton" if kind == "cuda" else "a C++ compiler and the headers of Python"
        if "optimization option" in str(error):  # an option of `compiled` that older versions lack
            needs = "a newer PyTorch, whose compiler can choose kernels without timing them"
        reason = str(getattr(error, "inner_exception", error)).strip().partition("\n")[0] or type(error).__name__
        raise OptionError(
            f"compile on: torch.compile does not work on {device} ({reason[:200]}): it needs {needs}; install that, or "
            "leave --compile out"
        ) from error

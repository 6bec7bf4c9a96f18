"""Procedural landslide scenes with truth.

Every pixel is drawn from a seed: a fractal relief, land cover that follows it, landslides that run down it, and a
camera. Bare ground that is no landslide covers at least twice the landslides' area and is made of the same soils, so
colour alone does not tell them apart; shape, texture and the place on the slope do.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from geolabel.errors import OptionError
from geolabel.synthetic.cover import BARE, CLASSES, LANDSLIDE, make_cover
from geolabel.synthetic.sensor import photograph, reflectance
from geolabel.synthetic.slides import Slide, make_slides
from geolabel.synthetic.terrain import make_terrain
from geolabel.types import Float32Array, Int32Array, UInt8Array

__all__ = ["CLASSES", "SyntheticScene", "synthesize"]

SHARE = (0.02, 0.08)
"""Least and largest part of a scene that landslides are meant to cover."""


@dataclass(frozen=True)
class SyntheticScene:
    """A scene and what is true of it."""

    rgb: UInt8Array
    """(H, W, 3)"""
    truth: UInt8Array
    """(H, W) 1 where a landslide is."""
    ids: Int32Array
    """(H, W) number of the landslide, from 1; 0 elsewhere."""
    classes: UInt8Array
    """(H, W) index into `CLASSES`."""
    dem: Float32Array
    """(H, W) metres."""
    gsd: float
    seed: int

    @property
    def count(self) -> int:
        """Number of landslides to be seen; one may hide another."""
        return len(np.unique(self.ids[self.truth > 0]))


def synthesize(size: int | tuple[int, int], gsd: float = 0.5, seed: int = 0, slides: bool = True) -> SyntheticScene:
    """Draw a scene.

    Parameters
    ----------
    size
        Side, or height and width, in pixels.
    gsd
        Metres per pixel, 0.05 to 100.
    seed
        0 or more; the same seed gives the same bytes.
    slides
        False for a scene without landslides.

    Raises
    ------
    OptionError
        If the size, the gsd or the seed is out of range.
    """
    shape = (size, size) if isinstance(size, int) else size
    if min(shape) < 16 or max(shape) > 1 << 15:
        raise OptionError(f"size {shape[0]} x {shape[1]} px: a synthetic scene has 16 to {1 << 15} px a side")
    if not 0.05 <= gsd <= 100:
        raise OptionError(f"gsd {gsd} m: a synthetic scene has 0.05 to 100 m")
    if seed < 0:
        raise OptionError(f"seed {seed}: it has to be 0 or more")
    relief, land, fall, light, camera = (np.random.default_rng((seed, k)) for k in range(5))
    terrain = make_terrain(shape, gsd, relief)
    classes, variant = make_cover(terrain, gsd, land)
    found = make_slides(terrain, _share(classes, fall), fall) if slides else []
    ids = _number(shape, found)
    while _too_many(ids, classes):
        found.pop()
        ids = _number(shape, found)
    rgb = photograph(reflectance(classes, variant, found, terrain, gsd, light), camera)
    classes[ids > 0] = LANDSLIDE
    return SyntheticScene(rgb, (ids > 0).astype(np.uint8), ids, classes, terrain.dem, gsd, seed)


def _share(classes: UInt8Array, rng: np.random.Generator) -> float:
    """How much of the scene landslides are to cover; the last one to come down may exceed it."""
    return min(rng.uniform(*SHARE), 0.45 * float((classes == BARE).mean()))


def _too_many(ids: Int32Array, classes: UInt8Array) -> bool:
    """Whether landslides cover more than half of what other bare ground is left."""
    return 2 * int((ids > 0).sum()) > int((classes[ids == 0] == BARE).sum()) and bool((ids > 0).any())


def _number(shape: tuple[int, int], slides: list[Slide]) -> Int32Array:
    ids = np.zeros(shape, np.int32)
    for number, slide in enumerate(slides, 1):
        view = ids[slide.window]
        view[slide.mask & (view == 0)] = number
    return ids

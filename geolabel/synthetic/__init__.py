"""Procedural landslide scenes with truth.

Every pixel is drawn from a seed: a fractal relief, land cover that follows it, landslides that run down it, and a
camera. Bare ground that is no landslide covers at least twice the landslides' area and is made of the same soils, so
colour alone does not tell them apart; shape, texture and the place on the slope do.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from geolabel.errors import OptionError
from geolabel.synthetic.cover import BARE, CLASSES, LANDSLIDE, RIVER, ROAD, make_cover
from geolabel.synthetic.light import photograph, reflect
from geolabel.synthetic.slides import Slide, make_slides
from geolabel.synthetic.terrain import make_terrain
from geolabel.types import Float32Array, Int32Array, UInt8Array

__all__ = ["CLASSES", "SyntheticScene", "synthesize"]

SHARE = (0.03, 0.12)
"""Minimum and maximum part of a scene that landslides are meant to cover."""

BARE_RATIO = 2.05
"""Bare ground that is no landslide covers at least this many times the landslides' area."""


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
    relief, ground, fall, light, camera = (np.random.default_rng((seed, k)) for k in range(5))
    terrain = make_terrain(shape, gsd, relief)
    land = make_cover(terrain, gsd, ground)
    found: list[Slide] = []
    if slides:
        share = min(fall.uniform(*SHARE), float((land.classes == BARE).mean()) / BARE_RATIO)
        roads = land.classes == ROAD
        clear = (land.classes == RIVER) | (roads if fall.random() < 0.6 else False)
        found = make_slides(terrain, share, fall, clear=clear, roads=roads)
    ids, found = _number(land.classes, found)
    rgb = photograph(reflect(land, found, terrain, gsd, light), camera)
    land.classes[ids > 0] = LANDSLIDE
    return SyntheticScene(rgb, (ids > 0).astype(np.uint8), ids, land.classes, terrain.dem, gsd, seed)


def _number(classes: UInt8Array, slides: list[Slide]) -> tuple[Int32Array, list[Slide]]:
    """Number the landslides, but for those that would leave too little other bare ground.

    Where two overlap, the one that came first keeps the ground; one that lies wholly under others has no number.
    """
    ids = np.zeros(classes.shape, np.int32)
    bare, slid, kept = int((classes == BARE).sum()), 0, list[Slide]()
    for slide in slides:
        view = ids[slide.window]
        new = slide.mask & (view == 0)
        area = int(new.sum())
        left = bare - int((new & (classes[slide.window] == BARE)).sum())
        if area and left >= BARE_RATIO * (slid + area):
            kept.append(slide)
            view[new] = len(kept)
            bare, slid = left, slid + area
    return ids, kept

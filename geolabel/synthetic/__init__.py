"""Procedural landslide scenes with truth.

Every pixel is drawn from a seed: a fractal relief, land cover that follows it, landslides that run down it, and a
camera. Bare ground that is not landslide covers at least twice the landslides' area and is made of the same soils, so
colour alone does not tell them apart; shape, texture and the place on the slope do.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage

from geolabel.errors import OptionError
from geolabel.synthetic.cover import BARE, CLASSES, LANDSLIDE, RIVER, ROAD, Cover, altered, make_cover
from geolabel.synthetic.light import photograph, reflect
from geolabel.synthetic.slides import Slide, make_slides
from geolabel.synthetic.terrain import Terrain, make_terrain
from geolabel.types import Float32Array, Int32Array, UInt8Array

__all__ = ["CLASSES", "SyntheticPair", "SyntheticScene", "synthesize", "synthesize_pair"]

SHARE = (0.03, 0.12)
"""Minimum and maximum share of a scene that landslides are meant to cover."""

BARE_RATIO = 2.05
"""Bare ground other than landslides covers at least this many times the landslides' area."""

OLDER, GROWN = (0.35, 0.75), (0.6, 1.0)
"""How fresh a landslide was before it moved again, and how far down its path it reached, both 0..1."""

MAX_SHIFT = 3.0
"""Maximum displacement of the scene before, along either axis, in pixels."""


@dataclass(frozen=True)
class SyntheticScene:
    """A scene and its truth."""

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
        """Number of visible landslides; one may hide another."""
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
    shape = _checked(size, gsd, seed)
    relief, ground, fall, light, camera = (np.random.default_rng((seed, k)) for k in range(5))
    terrain = make_terrain(shape, gsd, relief)
    land = make_cover(terrain, gsd, ground)
    ids, found = _make_slides(land, terrain, fall) if slides else (np.zeros(shape, np.int32), [])
    rgb = photograph(reflect(land, found, terrain, gsd, light), camera)
    land.classes[ids > 0] = LANDSLIDE
    return SyntheticScene(rgb, (ids > 0).astype(np.uint8), ids, land.classes, terrain.dem, gsd, seed)


@dataclass(frozen=True)
class SyntheticPair:
    """A scene, and the same place before its landslides."""

    after: SyntheticScene
    """The scene after; it also has new roads, pits and ploughed fields."""
    before: UInt8Array
    """(H, W, 3) of another day: other light, another season, another camera."""
    shift: tuple[float, float]
    """Rows and columns by which the content of `before` is displaced, in pixels."""
    reactivated: tuple[int, ...] = ()
    """Numbers of the landslides that are in `before` too, older and shorter."""


def synthesize_pair(
    size: int | tuple[int, int], gsd: float = 0.5, seed: int = 0, *, reactivated: float = 0.0
) -> SyntheticPair:
    """Make a scene with landslides, and the same place before them; see `synthesize`.

    Ground that was bare before stays bare: quarries, gravel banks, old roads, fallow fields. New bare ground other than
    landslides covers about as much as the landslides.

    Parameters
    ----------
    reactivated
        Probability that a landslide was there before, 0..1: partly overgrown, and often shorter. It changes `before`
        only.
    """
    if not 0 <= reactivated <= 1:
        raise OptionError(f"{reactivated:g} of the landslides reactivated: give a share of 0 to 1")
    shape = _checked(size, gsd, seed)
    relief, ground, fall, light, camera, work, day, other = (np.random.default_rng((seed, k)) for k in range(8))
    terrain = make_terrain(shape, gsd, relief)
    old = make_cover(terrain, gsd, ground)
    land = altered(old, terrain, gsd, work)
    ids, found = _make_slides(land, terrain, fall)
    shift = (float(day.uniform(-MAX_SHIFT, MAX_SHIFT)), float(day.uniform(-MAX_SHIFT, MAX_SHIFT)))
    again = _older(found, reactivated, np.random.default_rng((seed, 8)))
    earlier = reflect(old, list(again.values()), terrain, gsd, np.random.default_rng((seed, 3)), day)
    for band in range(3):
        earlier[..., band] = ndimage.shift(earlier[..., band], shift, order=1, mode="nearest", prefilter=False)
    before = photograph(earlier, other)
    rgb = photograph(reflect(land, found, terrain, gsd, light), camera)
    land.classes[ids > 0] = LANDSLIDE
    after = SyntheticScene(rgb, (ids > 0).astype(np.uint8), ids, land.classes, terrain.dem, gsd, seed)
    return SyntheticPair(after, before, shift, tuple(again))


def _older(slides: list[Slide], share: float, rng: np.random.Generator) -> dict[int, Slide]:
    """Some of the landslides before they moved again, by their numbers."""
    again = {}
    for number, slide in enumerate(slides, 1):
        moved, freshness, reach = rng.random(), float(rng.uniform(*OLDER)), rng.uniform(*GROWN)
        if moved < share:
            again[number] = replace(slide, mask=slide.mask & (slide.along < reach), freshness=freshness)
    return again


def _checked(size: int | tuple[int, int], gsd: float, seed: int) -> tuple[int, int]:
    """Height and width of a scene."""
    shape = (size, size) if isinstance(size, int) else size
    if min(shape) < 16 or max(shape) > 1 << 15:
        raise OptionError(f"size {shape[0]} x {shape[1]} px: a synthetic scene has 16 to {1 << 15} px a side")
    if not 0.05 <= gsd <= 100:
        raise OptionError(f"gsd {gsd} m: a synthetic scene has 0.05 to 100 m")
    if seed < 0:
        raise OptionError(f"seed {seed}: it has to be 0 or more")
    return shape


def _make_slides(land: Cover, terrain: Terrain, rng: np.random.Generator) -> tuple[Int32Array, list[Slide]]:
    """(H, W) the number of the landslide at each pixel, and the landslides."""
    share = min(rng.uniform(*SHARE), float((land.classes == BARE).mean()) / BARE_RATIO)
    roads = land.classes == ROAD
    clear = (land.classes == RIVER) | (roads if rng.random() < 0.6 else False)
    return _number(land.classes, make_slides(terrain, share, rng, clear=clear, roads=roads))


def _number(classes: UInt8Array, slides: list[Slide]) -> tuple[Int32Array, list[Slide]]:
    """Number the landslides, except those that would leave too little other bare ground.

    Where two overlap, the earlier one keeps the ground; one that is completely covered by others has no number.
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

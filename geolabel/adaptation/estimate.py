"""What `geolabel.adapt` would learn from, which levels it could adapt, and how long that would take."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely

from geolabel.adaptation.confidence import plan_around
from geolabel.adaptation.ground import GROUND, LANDSLIDE
from geolabel.adaptation.levels import FOLDS, Blocks, Cells, Level, tally
from geolabel.adaptation.networks import BaseLocalizer, said_of_cells
from geolabel.adaptation.region import ONE_PLACE, Region
from geolabel.extraction.estimate import EVERYWHERE, estimate_plan, warm_seconds
from geolabel.extraction.request import Networks, Reading

if TYPE_CHECKING:
    from geolabel.io.read.scene_inputs import Scenes

FITS = FOLDS + 1
"""Number of fits of each level: one without each fold, and one to everything."""

STEP = 3.0
"""Time of a step of level ``all``, relative to a map of as many pixels: forward, and back through most layers."""

NOTHING, SOMETHING = "seconds_without_gain", "seconds_with_gain"


def estimate_adaptation(
    scene: Scenes,
    reviewed: str | Path | Sequence[str | Path],
    *,
    level: Level | None = None,
    reading: Reading | None = None,
    networks: Networks | str | Path | None = None,
    accept_unreviewed: bool = False,
) -> dict[str, Any]:
    """Estimate from which polygons and areas `geolabel.adapt` would learn, and how long it would take.

    Nothing is kept or written: one tile is mapped, and layers are fitted to it once, for timing.

    Parameters
    ----------
    scene, reviewed, level, reading, networks, accept_unreviewed
        As in `geolabel.adapt`.

    Returns
    -------
    Figures by name. ``levels`` maps each level, and the ``decoder`` of the segmenter, to the reason why it is not
    tried, or to null. In ``files`` all polygons of a file count; all other counts are of the scenes. Times are
    given without a gain, and with one, where the segmenter has to process all reviewed ground for the confidence.

    Raises
    ------
    VectorError
        If a file cannot be read.
    OptionError
        If the localizer or the segmenter cannot be adapted.
    GeolabelError
        See `geolabel.errors`.

    Examples
    --------
    >>> import geolabel
    >>> geolabel.estimate_adaptation("scene.tif", "slides.gpkg")["levels"]  # doctest: +SKIP
    """
    region = Region.read(scene, reviewed, None, reading, networks, accept_unreviewed=accept_unreviewed, overwrite=False)
    base = BaseLocalizer.of(region.plans[0], level)
    tiles = region.tiles()
    said, pixels = _said(region, tiles, base.info.stride)
    blocks = Blocks.of(said) if said else None
    levels = _levels(base, region, blocks, level)
    names = {"landslides": "landslides", "drawn": "drawn", "rejected": "rejected", "unreviewed": "waiting"}
    names |= {"areas": "areas"}
    figures: dict[str, Any] = {
        "files": [
            {"file": one.path.name} | {name: len(getattr(one, field)) for name, field in names.items()}
            for one in region.files
        ],
        **{name: region.count(field) for name, field in names.items()},
        "landslide_km2": round(pixels[LANDSLIDE], 6),
        "other_ground_km2": round(pixels[GROUND], 6),
        "tiles": len(tiles),
        "blocks": 0 if blocks is None else blocks.shown,
        "device": base.recipe.device,
        "levels": levels,
    }
    possible = [name for name, why in levels.items() if why is None]
    return figures | (_seconds(base, region, tiles, said, possible) if possible else {NOTHING: 0.0, SOMETHING: 0.0})


def _said(region: Region, tiles: Sequence[tuple[int, int]], stride: int) -> tuple[list[Cells], dict[int, float]]:
    """The judgement of the cells of tiles, and km2 of landslide and of other ground there."""
    said, ground = [], {LANDSLIDE: 0.0, GROUND: 0.0}
    for number, index in tiles:
        _, truth = region.pixels(number, index)
        said.append(said_of_cells(truth, region.place(number, index, stride), stride))
        for value in ground:
            ground[value] += np.count_nonzero(truth == value) * region.plans[number].grid.gsd ** 2 / 1e6
    return said, ground


def _levels(base: BaseLocalizer, region: Region, blocks: Blocks | None, level: Level | None) -> dict[str, str | None]:
    """Why each level is not tried; None for one that is."""
    lacks = region.lacks or (ONE_PLACE if blocks is None else None)
    other = None if level is None else f"--level {level} is asked for"
    found: dict[str, str | None] = {"threshold": other if level != "threshold" else None}
    two_octaves = "only localizers of two octaves have last layers that can be fitted"
    unseen = "no area was reviewed completely; --level {} tries it anyway"
    if level not in (None, "head"):
        found["head"] = other
    elif base.head is None:
        found["head"] = two_octaves
    else:
        found["head"] = None if level or region.count("areas") else unseen.format("head")
    if level not in (None, "all"):
        found["all"] = other
    elif base.all_layers is None:
        slow = base.recipe.device == "cpu" and base.head is not None
        found["all"] = "it takes minutes on a CPU; --level all tries it" if slow else two_octaves
    else:
        found["all"] = None if level or region.count("areas") else unseen.format("all")
    from geolabel.adaptation.decoder import lacking

    return {name: lacks or why for name, why in found.items()} | {
        "decoder": lacks or lacking(region.plans, region.grounds)
    }


def _seconds(
    base: BaseLocalizer,
    region: Region,
    tiles: Sequence[tuple[int, int]],
    said: Sequence[Cells],
    possible: Sequence[str],
) -> dict[str, float]:
    """Seconds of everything, from one tile with landslides."""
    shown = next(k for k, cells in enumerate(said) if (cells.cover * cells.judged).any())
    rgb, truth = region.pixels(*tiles[shown])
    place = region.place(*tiles[shown], base.info.stride)
    map_s = warm_seconds(lambda: base.cells(rgb, truth, place))
    cells = base.cells(rgb, truth, place)
    numbers = np.zeros(cells.raw.shape, np.int64)
    tally_s = warm_seconds(lambda: tally(cells.raw, cells, numbers, 1, base.point, base.window))
    layers = [name for name in ("head", "all") if name in possible]
    total = len(tiles) * (map_s + (1 + len(layers)) * tally_s)
    if "head" in layers and base.head is not None:
        start = time.perf_counter()
        base.head.fitted([cells], base.point.cut, 0)
        total += FITS * (time.perf_counter() - start)
    if "all" in layers:
        from geolabel.adaptation.all_layers import CROPS, SIDE, STEPS

        step = STEP * map_s * CROPS * SIDE**2 / (rgb.shape[0] * rgb.shape[1])
        total += FITS * STEPS * step + len(tiles) * map_s
    if "decoder" in possible:
        from geolabel.adaptation.decoder import seconds_to_fit

        total += seconds_to_fit(region.plans[0].segmenter, region.plans, region.grounds, FITS)
    after = 0.0
    if base.confidence is not None:
        for plan, ground in zip(region.plans, region.grounds, strict=True):
            if not shapely.is_empty(ground.judged):
                around = plan_around(plan, ground.judged, (plan.localizer, plan.segmenter))
                after += estimate_plan(around)[EVERYWHERE]
    return {NOTHING: round(total, 1), SOMETHING: round(total + after, 1)}

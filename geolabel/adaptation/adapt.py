"""Adapt the networks to a region: read what was reviewed, choose a level, write the folder of networks."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from geolabel.adaptation.confidence import fit_again
from geolabel.adaptation.ground import LANDSLIDE, UNJUDGED, Ground, Reviewed
from geolabel.adaptation.levels import Blocks, Cells, Choice, Level, choose
from geolabel.adaptation.networks import Begun, Layers, check_segmenter, write_localizer, write_segmenter
from geolabel.engine.tasks import Progress, Silent
from geolabel.errors import VectorError
from geolabel.extraction.plan import Plan
from geolabel.extraction.request import FOLDER_FILES, Networks, Parameters, Reading, decide
from geolabel.extraction.scene_groups import prepare_scenes
from geolabel.folders import check_folder, claim, replacing_folder
from geolabel.io.read.scene_inputs import list_scenes
from geolabel.models.confidence import save_confidence
from geolabel.prompts import Prompts
from geolabel.types import UInt8Array
from geolabel.urls import without_secrets

if TYPE_CHECKING:
    from geolabel.adaptation.decoder import Redrawn
    from geolabel.io.read.scene_inputs import SceneInput, Scenes

log = logging.getLogger(__name__)

MINIMUM = 3
"""Landslides that have to be reviewed."""

MAX_TILES = 128
"""Tiles that are looked at; where more are reviewed, those with landslides come first, and then as many others."""


@dataclass(frozen=True)
class Adaptation:
    """What `adapt` chose, and how much it gains."""

    level: Level | None
    """What was adapted; None where nothing gains, and nothing is written."""
    scores: dict[str, float]
    """F1 of the map's cells by cross-validation over spatial blocks: ``none`` is the network as it is."""
    landslides: int
    """Reviewed landslides on the scenes."""
    rejected: int
    areas: int
    """Areas that a person has looked at whole."""
    tiles: int
    blocks: int
    """Blocks with landslides that levels were compared on."""
    cut: tuple[float, float]
    """Operating point as it was and as it is, in units of the network's own: 1 is as it was."""
    gate: tuple[float, float]
    """Mean activation, in the same units, that some window of a landslide has to reach."""
    drawn: int = 0
    """Landslides whose outline a person drew or corrected."""
    masks: tuple[float, float] | None = None
    """Mean IoU of the segmenter's masks with these outlines, as it is and with its decoder fitted to them, by
    cross-validation over spatial blocks; None where they are too few, or in one place."""
    decoder: bool = False
    """Whether the decoder gains, and is written."""
    folder: Path | None = None
    """Where the networks are."""

    @property
    def gain(self) -> float:
        """F1 that the level gains by cross-validation; 0 where nothing gains."""
        return self.scores[self.level] - self.scores["none"] if self.level else 0.0

    @property
    def gains(self) -> bool:
        """Whether anything gains: a level of the localizer, or the decoder of the segmenter."""
        return self.level is not None or self.decoder


def adapt(
    scene: Scenes,
    reviewed: str | Path | Sequence[str | Path],
    *,
    out: str | Path | None = None,
    level: Level | None = None,
    reading: Reading | None = None,
    networks: Networks | str | Path | None = None,
    accept_unreviewed: bool = False,
    seed: int = 0,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Adaptation:
    """Adapt the networks to a region from what a person reviewed there.

    Levels of the localizer are compared by cross-validation over spatial blocks. Where five outlines or more were drawn
    or corrected, the mask decoder of the segmenter is fitted to them, and judged in the same way. Where nothing gains,
    nothing is written.

    Parameters
    ----------
    scene
        One scene or several, as `geolabel.extract` takes them.
    reviewed
        Vector files: reviewed inventories of geolabel, or other polygons of landslides. See
        `geolabel.adaptation.ground` for what counts as ground without landslides.
    out
        Folder to write; None to write nothing. `Networks.from_folder` takes it.
    level
        What to adapt if it gains anything: ``threshold``, the operating point; ``head``, the layers after the pyramid
        too; ``all``, those of the pyramid and of most of the trunk too. None for the simplest that gains 0.02 F1 over
        all simpler ones; layers are tried then only where somebody has looked at an area whole, and ``all`` only on a
        GPU, since it takes minutes on a CPU.
    reading, networks
        How scenes are read, and the networks to begin with; the segmenter has to be one of geolabel's own. What
        ``head`` and ``all`` are fitted to is computed by torch in single precision, one tile at a time, whatever
        engine, precision and batch the networks have.
    accept_unreviewed
        Whether landslides that nobody reviewed count as accepted, in all files: for a truth that needs no review, such
        as a mask that `geolabel.polygonize` has traced. Candidates do not.
    seed
        Of the samples that the layers are fitted to.
    overwrite
        Whether networks that were written there before may be replaced.
    progress
        Follows the run.

    Returns
    -------
    Adaptation
        What was chosen, and what it gains.

    Raises
    ------
    VectorError
        If a file cannot be read, or holds too few reviewed landslides on the scenes, or all in one place.
    OptionError
        If the localizer or the segmenter is none that can be adapted.
    GeolabelError
        See `geolabel.errors`.

    Examples
    --------
    >>> import geolabel
    >>> found = geolabel.adapt("scene.tif", "slides.gpkg", out="valley")  # doctest: +SKIP
    >>> networks = geolabel.Networks.from_folder("valley")  # doctest: +SKIP
    """
    reading, networks, progress = reading or Reading(), Networks.of(networks), progress or Silent()
    check_segmenter(networks)
    paths = [Path(one) for one in ([reviewed] if isinstance(reviewed, str | Path) else reviewed)]
    scenes = list_scenes(scene, asset=reading.asset)
    if out is not None:
        beside = [*paths, *reading.masks, *([] if reading.aoi is None else [reading.aoi])]
        check_folder(Path(out), [*beside, *(one.source for one in scenes if isinstance(one.source, str))])
        claim(Path(out), overwrite=overwrite)
    files = [Reviewed.read(path, accept_unreviewed=accept_unreviewed) for path in paths]
    groups = prepare_scenes(scenes, reading, networks, Parameters())
    for text in groups.warnings:
        log.warning("%s", text)
    begun, segmenter = Begun.of(groups.plans[0], level), groups.plans[0].segmenter
    grounds = [Ground.on(plan.grid, files) for plan in groups.plans]
    adaptation, choice, cells = _choose(begun, groups.plans, grounds, paths, level, seed, progress)
    redrawn = _redrawn(begun, choice, cells, groups.plans, grounds, seed, progress)
    if redrawn is not None:
        masks = round(redrawn.before, 4), round(redrawn.after, 4)
        adaptation = replace(adaptation, masks=masks, decoder=redrawn.decoder is not None)
    if out is None or not adaptation.gains:
        return adaptation
    made = asdict(adaptation) | {
        "scenes": [_name(one) for one in scenes],
        "reviewed": [path.name for path in paths],
    }
    with replacing_folder(Path(out), overwrite=overwrite) as folder:
        written = {
            "localizer": write_localizer(folder, begun, choice, made),
            "sam_checkpoint": write_segmenter(folder, segmenter, redrawn, made),
        }
        if begun.confidence is not None:
            given: dict[str, Any] = {name: str(path) for name, path in written.items() if path is not None}
            recipes = decide(replace(networks, **given, sam=None, confidence_model=None), Parameters())[1]
            fitted = fit_again(begun.confidence, recipes, groups.plans, grounds, progress)
            save_confidence(folder / FOLDER_FILES["confidence_model"], fitted, overwrite=False)
    return replace(adaptation, folder=Path(out))


def _choose(
    begun: Begun,
    plans: Sequence[Plan],
    grounds: Sequence[Ground],
    paths: Sequence[Path],
    level: Level | None,
    seed: int,
    progress: Progress,
) -> tuple[Adaptation, Choice[Layers], list[Cells]]:
    """Choose a level on the ground that was reviewed, the tiles of which come back too; raises as `adapt`."""
    landslides, rejected, areas, waiting = (
        sum(len(getattr(one, name)) for one in grounds) for name in ("landslides", "rejected", "areas", "waiting")
    )
    if landslides < MINIMUM:
        raise VectorError(
            f"{', '.join(map(str, paths))}: {landslides} reviewed landslides on the scenes, at least {MINIMUM} are "
            f"needed, and {waiting} polygons of geolabel that nobody reviewed: accept, redraw or add some more; or "
            "give --accept-unreviewed, if they are a truth that needs no review"
        )
    tiles = _tiles(plans, grounds)
    cells = [
        _cells(plans[number], number, index, truth, begun)
        for number, index, truth in progress.track(tiles, "map", len(tiles))
    ]
    blocks = Blocks.of(cells)
    if blocks is None:
        raise VectorError(
            f"{', '.join(map(str, paths))}: all reviewed landslides are in one place, and levels cannot be compared on "
            "others: review some further away"
        )
    # Layers that are fitted to polygons alone unlearn what nobody looked at, and no square shows it.
    fits = begun.fits(seed, level) if areas or level is not None else {}
    choice = choose(cells, blocks, begun.point, begun.window, fits, level=level, progress=progress)
    adaptation = Adaptation(
        choice.level,
        {name: round(score, 4) for name, score in choice.scores.items()},
        landslides=landslides,
        rejected=rejected,
        areas=areas,
        tiles=len(tiles),
        blocks=blocks.shown,
        cut=(1.0, round(choice.point.cut / begun.point.cut, 4)),
        gate=(round(begun.point.gate / begun.point.cut, 4), round(choice.point.gate / begun.point.cut, 4)),
        drawn=sum(len(ground.drawn) for ground in grounds),
    )
    return adaptation, choice, cells


def _redrawn(
    begun: Begun,
    choice: Choice[Layers],
    cells: Sequence[Cells],
    plans: Sequence[Plan],
    grounds: Sequence[Ground],
    seed: int,
    progress: Progress,
) -> Redrawn | None:
    """What outlines teach the decoder that is asked as the chosen localizer asks; None where they are too few."""
    if not any(len(ground.drawn) for ground in grounds):
        return None
    from geolabel.adaptation.decoder import fit_decoder, regions

    stride = begun.info.stride
    found: list[list[Prompts]] = [[] for _ in plans]
    for one in cells:
        if (one.cover * one.judged).any():
            raw = one.raw if choice.layers is None else choice.layers.map(one)
            number, *first = one.place
            found[number].append(regions(raw, choice.point, begun.window, stride, (first[0], first[1])))
    prompts = [Prompts.concatenate(parts) for parts in found]
    return fit_decoder(plans[0].segmenter, plans, grounds, prompts, seed, progress)


def _name(scene: SceneInput) -> str:
    """How a file of networks names a scene."""
    source = scene.source if isinstance(scene.source, str) else "an array"
    return Path(without_secrets(scene.name or source)).name


# --- the ground ------------------------------------------------------------------------------------------------------


def _tiles(plans: Sequence[Plan], grounds: Sequence[Ground]) -> list[tuple[int, int, UInt8Array]]:
    """Number of the plan, index, and what was said of the pixels in the core of each tile that is looked at."""
    shown: list[tuple[int, int]] = []
    others: list[tuple[int, int]] = []
    for number, (plan, ground) in enumerate(zip(plans, grounds, strict=True)):
        for index in range(len(plan.localize_tiles)):
            said = ground.paint(plan.localize_tiles.core(index))
            if said.any():
                (shown if (said == LANDSLIDE).any() else others).append((number, index))
    shown = shown[:: max(1, math.ceil(len(shown) / MAX_TILES))]
    room = MAX_TILES - len(shown)
    others = others[:: max(1, math.ceil(len(others) / room))] if room else []
    return [(n, index, _said_of(plans[n], grounds[n], index)) for n, index in sorted([*shown, *others])]


def _said_of(plan: Plan, ground: Ground, index: int) -> UInt8Array:
    """(H, W) what was said of the pixels of a tile, in its core."""
    window, core = plan.localize_tiles[index], plan.localize_tiles.core(index)
    truth = np.zeros((window.height, window.width), np.uint8)
    truth[core.within(window)] = ground.paint(core)
    return truth


def _cells(plan: Plan, number: int, index: int, truth: UInt8Array, begun: Begun) -> Cells:
    """The map of a tile, and what was said of its cells."""
    window = plan.localize_tiles[index]
    bands, valid = plan.reader.read(window, plan.grid)
    rgb, stride = plan.stretch.apply(bands, valid), begun.info.stride
    return begun.cells(rgb, np.where(valid, truth, UNJUDGED), (number, window.row // stride, window.col // stride))

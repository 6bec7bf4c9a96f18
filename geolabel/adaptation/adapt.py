"""Adapt the networks to a region: read what was reviewed, choose a level, write the folder of networks."""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from geolabel.adaptation.ground import LANDSLIDE, UNJUDGED, Ground, Reviewed
from geolabel.adaptation.levels import Blocks, Cells, Choice, Level, OperatingPoint, by_cell, choose
from geolabel.engine.tasks import Progress, Silent
from geolabel.errors import OptionError, VectorError
from geolabel.extraction.plan import Plan
from geolabel.extraction.request import FOLDER_FILES, Networks, Parameters, Reading
from geolabel.extraction.scene_groups import prepare_scenes
from geolabel.folders import check_folder, claim, replacing_folder
from geolabel.io.read.scene_inputs import list_scenes
from geolabel.models import loading
from geolabel.models.checkpoint import NetworkInfo, load_checkpoint, read_info, save_checkpoint
from geolabel.models.confidence import METHOD, knows, load_confidence, save_confidence, shipped
from geolabel.models.defaults import localizer_defaults
from geolabel.models.engines import graph_files
from geolabel.parts import LocalizerRecipe, Recipe
from geolabel.types import UInt8Array
from geolabel.urls import without_secrets

if TYPE_CHECKING:
    from geolabel.io.read.scene_inputs import SceneInput, Scenes

log = logging.getLogger(__name__)

MINIMUM = 3
"""Landslides that have to be reviewed."""

MAX_TILES = 128
"""Tiles that are looked at; where more are reviewed, those with landslides come first, and then as many others."""

GREY_CUT = 120 / 255
"""Activation at the cut, see `geolabel.models.checkpoint.NetworkInfo.constant`."""


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
    folder: Path | None = None
    """Where the networks are."""

    @property
    def gain(self) -> float:
        """F1 that the level gains by cross-validation; 0 where nothing gains."""
        return self.scores[self.level] - self.scores["none"] if self.level else 0.0


def adapt(
    scene: Scenes,
    reviewed: str | Path | Sequence[str | Path],
    *,
    out: str | Path | None = None,
    reading: Reading | None = None,
    networks: Networks | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Adaptation:
    """Adapt the localizer to a region from what a person reviewed there.

    Levels are compared by cross-validation over spatial blocks, and where none gains, nothing is written.

    Parameters
    ----------
    scene
        One scene or several, as `geolabel.extract` takes them.
    reviewed
        Vector files: reviewed inventories of geolabel, or other polygons of landslides. See
        `geolabel.adaptation.ground` for what counts as ground without landslides.
    out
        Folder to write; None to write nothing. `Networks.from_folder` takes it.
    reading, networks
        How scenes are read, and the networks to begin with.
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
        If the localizer is none that can be adapted.
    GeolabelError
        See `geolabel.errors`.

    Examples
    --------
    >>> import geolabel
    >>> found = geolabel.adapt("scene.tif", "slides.gpkg", out="valley")  # doctest: +SKIP
    >>> networks = geolabel.Networks.from_folder("valley")  # doctest: +SKIP
    """
    reading, networks, progress = reading or Reading(), networks or Networks(), progress or Silent()
    paths = [Path(one) for one in ([reviewed] if isinstance(reviewed, str | Path) else reviewed)]
    scenes = list_scenes(scene, asset=reading.asset)
    if out is not None:
        check_folder(Path(out), [*paths, *(one.source for one in scenes if isinstance(one.source, str))])
        claim(Path(out), overwrite=overwrite)
    files = [Reviewed.read(path) for path in paths]
    groups = prepare_scenes(scenes, reading, networks, Parameters())
    for text in groups.warnings:
        log.warning("%s", text)
    localizer, segmenter = groups.plans[0].localizer, groups.plans[0].segmenter
    begun = _Begun.of(localizer)
    grounds = [Ground.on(plan.grid, files) for plan in groups.plans]
    landslides, rejected, areas = (
        sum(len(getattr(one, name)) for one in grounds) for name in ("landslides", "rejected", "areas")
    )
    if landslides < MINIMUM:
        raise VectorError(
            f"{', '.join(map(str, paths))}: {landslides} reviewed landslides on the scenes, at least "
            f"{MINIMUM} are needed: accept, redraw or add some more"
        )
    tiles = _tiles(groups.plans, grounds)
    cells = [
        _cells(groups.plans[number], number, index, truth, begun)
        for number, index, truth in progress.track(tiles, "map", len(tiles))
    ]
    blocks = Blocks.of(cells)
    if blocks is None:
        raise VectorError(
            f"{', '.join(map(str, paths))}: all reviewed landslides are in one place, and levels cannot be compared on "
            "others: review some further away"
        )
    choice = choose(cells, blocks, begun.point, begun.window)
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
    )
    if choice.level is None or out is None:
        return adaptation
    made = asdict(adaptation) | {
        "scenes": [_name(one) for one in scenes],
        "reviewed": [path.name for path in paths],
        "from": localizer.sha256,
    }
    with replacing_folder(Path(out), overwrite=overwrite) as folder:
        _write(folder, begun, choice, made, segmenter)
    return replace(adaptation, folder=Path(out))


def _name(scene: SceneInput) -> str:
    """How a file of networks names a scene."""
    source = scene.source if isinstance(scene.source, str) else "an array"
    return Path(without_secrets(scene.name or source)).name


# --- the localizer ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Begun:
    """The localizer to begin with."""

    recipe: LocalizerRecipe
    path: Path
    info: NetworkInfo
    point: OperatingPoint
    maps: Any
    """Gives raw maps, see `geolabel.models.cam.CamLocalizer.raw_maps`."""

    @classmethod
    def of(cls, recipe: Recipe) -> _Begun:
        from geolabel.models.cam import CamLocalizer

        path = loading.file_of(recipe)
        info = read_info(path)
        if not isinstance(recipe, LocalizerRecipe) or info.kind != "localizer" or len(info.classes) != 1:
            raise OptionError(
                f"--localizer {recipe.source}: adapt knows localizers of one class, and this is a {info.kind} of "
                f"{len(info.classes)}: give another"
            )
        network, info = loading.maps_of(recipe, path)
        maps = CamLocalizer(network, info, batch=1)
        assert info.constant is not None, "a localizer without a constant was refused before"
        point = OperatingPoint(info.constant * GREY_CUT, -float(network.bias[0]), info.sharpness)
        return cls(recipe, path, info, point, maps)

    @property
    def window(self) -> int:
        """Side of the gate's window in cells."""
        return max(1, self.info.window // self.info.stride)


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


def _cells(plan: Plan, number: int, index: int, truth: UInt8Array, begun: _Begun) -> Cells:
    """The map of a tile, and what was said of its cells."""
    window = plan.localize_tiles[index]
    bands, valid = plan.reader.read(window, plan.grid)
    raw = begun.maps.raw_maps([plan.stretch.apply(bands, valid)])[0, 0]
    stride = begun.info.stride
    missing = [(0, n * stride - side) for n, side in zip(raw.shape, truth.shape, strict=True)]
    truth = np.pad(np.where(valid, truth, UNJUDGED), missing, constant_values=UNJUDGED)
    judged, slides = by_cell(truth != UNJUDGED, stride), by_cell(truth == LANDSLIDE, stride)
    cover = np.divide(slides, judged, out=np.zeros_like(slides), where=judged > 0)
    return Cells(raw, cover, judged, (number, window.row // stride, window.col // stride))


# --- the folder ------------------------------------------------------------------------------------------------------


def _write(folder: Path, begun: _Begun, choice: Choice, made: dict[str, Any], segmenter: Recipe) -> None:
    """Write the localizer with its operating point, its graph, and the confidence."""
    import torch

    state, info = load_checkpoint(begun.path)
    state["bias"] = torch.full_like(state["bias"], -choice.point.gate)
    target = folder / FOLDER_FILES["localizer"]
    info = replace(
        info,
        constant=choice.point.cut / GREY_CUT,
        floor=localizer_defaults(begun.recipe.source).activation_floor,
        trained=info.trained | {loading.ADAPTED: made},
    )
    save_checkpoint(target, state, info)
    for old, new in zip(graph_files(begun.path, "localizer"), graph_files(target, "localizer"), strict=True):
        if old.is_file():
            shutil.copyfile(old, new)
    own = {"localizer": begun.recipe.sha256, "segmenter": segmenter.sha256}
    if knows(own, METHOD):
        fitted = load_confidence(shipped())
        networks = own | {"localizer": loading.recipe("localizer", target, device="cpu").sha256}
        save_confidence(folder / FOLDER_FILES["confidence_model"], replace(fitted, networks=networks), overwrite=False)

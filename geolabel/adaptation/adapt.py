"""Adapt the networks to a region: read what was reviewed, choose a level, write the folder of networks."""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from geolabel.adaptation.confidence import fit_again
from geolabel.adaptation.ground import LANDSLIDE, UNJUDGED, Ground, Reviewed
from geolabel.adaptation.levels import Blocks, Cells, Choice, Fit, Level, Mapper, OperatingPoint, by_cell, choose
from geolabel.engine.tasks import Progress, Silent
from geolabel.errors import OptionError, VectorError
from geolabel.extraction.plan import Plan
from geolabel.extraction.request import FOLDER_FILES, Networks, Parameters, Reading, decide
from geolabel.extraction.scene_groups import prepare_scenes
from geolabel.folders import check_folder, claim, replacing_folder
from geolabel.io.read.scene_inputs import list_scenes
from geolabel.models import loading
from geolabel.models.cam import CamLocalizer
from geolabel.models.checkpoint import NetworkInfo, load_checkpoint, load_localizer, read_info, save_checkpoint
from geolabel.models.confidence import METHOD, FittedConfidence, knows, load_confidence, save_confidence, shipped
from geolabel.models.defaults import localizer_defaults
from geolabel.models.engines import MapNetwork, graph_files
from geolabel.parts import LocalizerRecipe
from geolabel.types import UInt8Array
from geolabel.urls import without_secrets

if TYPE_CHECKING:
    from torch import Tensor

    from geolabel.adaptation.head import Head
    from geolabel.adaptation.whole import Whole
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
    level: Level | None = None,
    reading: Reading | None = None,
    networks: Networks | str | Path | None = None,
    accept_unreviewed: bool = False,
    seed: int = 0,
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
    level
        What to adapt if it gains anything: ``threshold``, the operating point; ``head``, the layers after the pyramid
        too; ``all``, those of the pyramid and of most of the trunk too. None for the simplest that gains 0.02 F1 over
        all simpler ones; layers are tried then only where somebody has looked at an area whole, and ``all`` only on a
        GPU, since it takes minutes on a CPU.
    reading, networks
        How scenes are read, and the networks to begin with. What ``head`` and ``all`` are fitted to is computed by
        torch in single precision, one tile at a time, whatever engine, precision and batch the networks have.
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
        If the localizer is none that can be adapted.
    GeolabelError
        See `geolabel.errors`.

    Examples
    --------
    >>> import geolabel
    >>> found = geolabel.adapt("scene.tif", "slides.gpkg", out="valley")  # doctest: +SKIP
    >>> networks = geolabel.Networks.from_folder("valley")  # doctest: +SKIP
    """
    reading, networks, progress = reading or Reading(), Networks.of(networks), progress or Silent()
    networks.refuse("adapt changes the localizer alone", "sam", "sam_checkpoint")
    paths = [Path(one) for one in ([reviewed] if isinstance(reviewed, str | Path) else reviewed)]
    scenes = list_scenes(scene, asset=reading.asset)
    if out is not None:
        check_folder(Path(out), [*paths, *(one.source for one in scenes if isinstance(one.source, str))])
        claim(Path(out), overwrite=overwrite)
    files = [Reviewed.read(path, accept_unreviewed=accept_unreviewed) for path in paths]
    groups = prepare_scenes(scenes, reading, networks, Parameters())
    for text in groups.warnings:
        log.warning("%s", text)
    begun = Begun.of(groups.plans[0], level)
    grounds = [Ground.on(plan.grid, files) for plan in groups.plans]
    adaptation, choice = _choose(begun, groups.plans, grounds, paths, level, seed, progress)
    if choice.level is None or out is None:
        return adaptation
    made = asdict(adaptation) | {
        "scenes": [_name(one) for one in scenes],
        "reviewed": [path.name for path in paths],
        "from": begun.recipe.sha256,
    }
    with replacing_folder(Path(out), overwrite=overwrite) as folder:
        localizer = write_localizer(folder, begun, choice, made)
        if begun.confidence is not None:
            recipes = decide(replace(networks, localizer=str(localizer), confidence_model=None), Parameters())[1]
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
) -> tuple[Adaptation, Choice[Layers]]:
    """Choose a level on the ground that was reviewed; raises as `adapt`."""
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
    )
    return adaptation, choice


def _name(scene: SceneInput) -> str:
    """How a file of networks names a scene."""
    source = scene.source if isinstance(scene.source, str) else "an array"
    return Path(without_secrets(scene.name or source)).name


# --- the localizer ---------------------------------------------------------------------------------------------------


class Layers(Mapper, Protocol):
    """Layers of a localizer that were fitted."""

    def tensors(self) -> dict[str, Tensor]:
        """By their names in the network."""
        ...


@dataclass(frozen=True)
class Begun:
    """The localizer to begin with."""

    recipe: LocalizerRecipe
    confidence: FittedConfidence | None
    """Of polygons that it finds, with the segmenter; None where none is known."""
    path: Path
    info: NetworkInfo
    point: OperatingPoint
    maps: CamLocalizer
    """Gives raw maps, or features where layers are fitted."""
    head: Head | None
    """None where no layers are fitted."""
    whole: Whole | None
    """None where those of the trunk stay."""

    @classmethod
    def of(cls, plan: Plan, level: Level | None) -> Begun:
        """The localizer of a plan; raises as `adapt`."""
        recipe = plan.localizer
        path = loading.file_of(recipe)
        info = read_info(path)
        if not isinstance(recipe, LocalizerRecipe) or info.kind != "localizer" or len(info.classes) != 1:
            raise OptionError(
                f"--localizer {recipe.source}: adapt knows localizers of one class, and this is a {info.kind} of "
                f"{len(info.classes)}: give another"
            )
        assert info.constant is not None, "a localizer without a constant was refused before"
        network, head, whole = cls._network(recipe, path, info, level)
        point = OperatingPoint(info.constant * GREY_CUT, -float(network.bias[0]), info.sharpness)
        return cls(
            recipe, confidence_before(plan), path, info, point, CamLocalizer(network, info, batch=1), head, whole
        )

    @staticmethod
    def _network(
        recipe: LocalizerRecipe, path: Path, info: NetworkInfo, level: Level | None
    ) -> tuple[MapNetwork, Head | None, Whole | None]:
        if level != "threshold":
            from geolabel.adaptation.head import Head, OctaveMaps
            from geolabel.adaptation.whole import Whole
            from geolabel.models.nets.localizer import PyramidLocalizer

            network, _ = load_localizer(path)
            head = Head.of(network)
            wanted = level == "all" or (level is None and recipe.device != "cpu")
            whole = Whole.of(network, info, recipe.device) if head is not None and wanted else None
            if level == "all" and whole is None:
                raise OptionError(
                    f"--level all: {recipe.source} is no localizer of two octaves on EfficientNet-Lite, whose layers "
                    "can be fitted: take --level threshold"
                )
            if head is not None and isinstance(network, PyramidLocalizer):
                return OctaveMaps(network, device=recipe.device), head, whole
            if level == "head":
                raise OptionError(
                    f"--level head: {recipe.source} is no localizer of two octaves, whose last layers can be fitted: "
                    "take --level threshold"
                )
        return loading.maps_of(recipe, path)[0], None, None

    @property
    def window(self) -> int:
        """Side of the gate's window in cells."""
        return max(1, self.info.window // self.info.stride)

    def fits(self, seed: int, level: Level | None) -> dict[Level, Fit[Layers]]:
        """What fits the layers of each level that is tried; ``head`` is not, where another is asked for."""
        layers: dict[Level, Head | Whole | None] = {"head": self.head, "all": self.whole}
        return {
            name: partial(one.fitted, cut=self.point.cut, seed=seed)
            for name, one in layers.items()
            if one is not None and level in (None, name)
        }

    def cells(self, rgb: UInt8Array, truth: UInt8Array, place: tuple[int, int, int]) -> Cells:
        """The map of an image (H, W, 3), and what was said (H, W) of it by cell."""
        maps, stride = self.maps.raw_maps([rgb])[0], self.info.stride
        missing = [(0, n * stride - side) for n, side in zip(maps.shape[1:], truth.shape, strict=True)]
        truth = np.pad(truth, missing, constant_values=UNJUDGED)
        judged, slides = by_cell(truth != UNJUDGED, stride), by_cell(truth == LANDSLIDE, stride)
        cover = np.divide(slides, judged, out=np.zeros_like(slides), where=judged > 0)
        if self.head is None:
            return Cells(maps[0], cover, judged, place)
        features = np.moveaxis(maps, 0, 2).astype(np.float16)
        found = Cells(maps[0], cover, judged, place, features, None if self.whole is None else rgb)
        return replace(found, raw=self.head.map(found))


def confidence_before(plan: Plan) -> FittedConfidence | None:
    """The confidence of polygons that the networks of a plan find."""
    if plan.confidence is not None:
        return plan.confidence
    networks = {recipe.role: recipe.sha256 for recipe in (plan.localizer, plan.segmenter)}
    return load_confidence(shipped()) if knows(networks, METHOD) else None


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


# --- the folder ------------------------------------------------------------------------------------------------------


def write_localizer(folder: Path, begun: Begun, choice: Choice[Layers], made: dict[str, Any]) -> Path:
    """Write the localizer with what was chosen, and its graph.

    Parameters
    ----------
    made
        What the file says of how it was made.
    """
    import torch

    state, info = load_checkpoint(begun.path)
    state |= {} if choice.layers is None else choice.layers.tensors()
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
    return target

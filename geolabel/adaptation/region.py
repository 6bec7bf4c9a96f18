"""The scenes of a region, a person's judgement of their ground, and the tiles to use."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np

from geolabel.adaptation.ground import LANDSLIDE, UNJUDGED, Ground, Reviewed
from geolabel.adaptation.networks import check_segmenter
from geolabel.extraction.plan import Plan
from geolabel.extraction.request import Networks, Parameters, Reading
from geolabel.extraction.scene_groups import prepare_scenes
from geolabel.folders import check_folder, claim
from geolabel.io.read.scene_inputs import list_scenes
from geolabel.types import UInt8Array

if TYPE_CHECKING:
    from geolabel.io.read.scene_inputs import SceneInput, Scenes

log = logging.getLogger(__name__)

MINIMUM = 3
"""Minimum number of reviewed landslides."""

MAX_TILES = 128
"""Maximum number of tiles; if more are reviewed, those with landslides come first, and then as many others."""

ONE_PLACE = (
    "all reviewed landslides are in one place, and levels cannot be compared on others: review some further away"
)


@dataclass(frozen=True)
class Region:
    """Scenes, the networks to start from, and a person's judgement of the ground."""

    scenes: Sequence[SceneInput]
    files: Sequence[Reviewed]
    networks: Networks
    plans: Sequence[Plan]
    """One for each grid."""
    grounds: Sequence[Ground]
    """Ground of each plan."""

    @classmethod
    def read(
        cls,
        scene: Scenes,
        reviewed: str | Path | Sequence[str | Path],
        out: str | Path | None,
        reading: Reading | None,
        networks: Networks | str | Path | None,
        *,
        accept_unreviewed: bool,
        overwrite: bool,
    ) -> Self:
        """Read scenes and reviewed files; parameters and errors are those of `geolabel.adapt`."""
        reading, networks = reading or Reading(), Networks.of(networks)
        check_segmenter(networks)
        paths = [Path(one) for one in ([reviewed] if isinstance(reviewed, str | Path) else reviewed)]
        scenes = list_scenes(scene, asset=reading.asset)
        if out is not None:
            beside = [*paths, *reading.inputs]
            check_folder(Path(out), [*beside, *(one.source for one in scenes if isinstance(one.source, str))])
            claim(Path(out), overwrite=overwrite)
        files = [Reviewed.read(path, accept_unreviewed=accept_unreviewed) for path in paths]
        groups = prepare_scenes(scenes, reading, networks, Parameters())
        for text in groups.warnings:
            log.warning("%s", text)
        return cls(scenes, files, networks, groups.plans, [Ground.on(plan.grid, files) for plan in groups.plans])

    @property
    def named(self) -> str:
        """The reviewed files, for messages."""
        return ", ".join(str(one.path) for one in self.files)

    def count(self, name: str) -> int:
        """Number of polygons on the scenes, of a field of `geolabel.adaptation.ground.Ground`."""
        return sum(len(getattr(ground, name)) for ground in self.grounds)

    @property
    def lacks(self) -> str | None:
        """What is missing to adapt anything; None if there is enough."""
        if self.count("landslides") >= MINIMUM:
            return None
        return (
            f"{self.count('landslides')} reviewed landslides on the scenes, at least {MINIMUM} are needed, and "
            f"{self.count('waiting')} polygons of geolabel that nobody reviewed: accept, redraw or add some more; or "
            "give --accept-unreviewed, if they are a truth that needs no review"
        )

    def tiles(self) -> list[tuple[int, int]]:
        """Number of the plan and index of each tile to use."""
        shown: list[tuple[int, int]] = []
        others: list[tuple[int, int]] = []
        for number, (plan, ground) in enumerate(zip(self.plans, self.grounds, strict=True)):
            for index in range(len(plan.localize_tiles)):
                said = ground.paint(plan.localize_tiles.core(index))
                if said.any():
                    (shown if (said == LANDSLIDE).any() else others).append((number, index))
        shown = shown[:: max(1, math.ceil(len(shown) / MAX_TILES))]
        room = MAX_TILES - len(shown)
        others = others[:: max(1, math.ceil(len(others) / room))] if room else []
        return sorted([*shown, *others])

    def pixels(self, number: int, index: int) -> tuple[UInt8Array, UInt8Array]:
        """The image (H, W, 3) of a tile, and (H, W) the judgement of the valid pixels in its core."""
        plan, ground = self.plans[number], self.grounds[number]
        window, core = plan.localize_tiles[index], plan.localize_tiles.core(index)
        truth = np.full((window.height, window.width), UNJUDGED, np.uint8)
        truth[core.within(window)] = ground.paint(core)
        bands, valid = plan.reader.read(window, plan.grid)
        return plan.stretch.apply(bands, valid), np.where(valid, truth, UNJUDGED)

    def place(self, number: int, index: int, stride: int) -> tuple[int, int, int]:
        """Number of the grid, row and column of the first cell of a tile; see `geolabel.adaptation.levels.Cells`."""
        window = self.plans[number].localize_tiles[index]
        return number, window.row // stride, window.col // stride

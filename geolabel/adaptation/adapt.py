"""Adapt the networks to a region: read the review, choose a level, write the folder of networks."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geolabel.adaptation.confidence import fit_again
from geolabel.adaptation.levels import Blocks, Cells, Choice, Level, choose
from geolabel.adaptation.networks import BaseLocalizer, Layers, write_localizer, write_segmenter
from geolabel.adaptation.region import ONE_PLACE, Region
from geolabel.engine.tasks import Progress, Silent
from geolabel.errors import VectorError
from geolabel.extraction.request import FOLDER_FILES, Networks, Parameters, Reading, decide
from geolabel.folders import replacing_folder
from geolabel.models.confidence import save_confidence
from geolabel.prompts import Prompts
from geolabel.urls import without_secrets

if TYPE_CHECKING:
    from geolabel.adaptation.decoder import Redrawn
    from geolabel.io.read.scene_inputs import SceneInput, Scenes

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Adaptation:
    """What `adapt` chose, and how much it gains."""

    level: Level | None
    """What was adapted; None if nothing gains, and nothing is written."""
    scores: dict[str, float]
    """F1 of the map's cells by cross-validation over spatial blocks: ``none`` is the unchanged network."""
    landslides: int
    """Reviewed landslides on the scenes."""
    rejected: int
    areas: int
    """Areas that a person has examined completely."""
    tiles: int
    blocks: int
    """Blocks with landslides on which levels were compared."""
    cut: tuple[float, float]
    """Operating point before and after, relative to the network's own: the first is 1."""
    gate: tuple[float, float]
    """Mean activation, in the same units, that some window of a landslide has to reach."""
    drawn: int = 0
    """Landslides whose outline a person drew or corrected."""
    masks: tuple[float, float] | None = None
    """Mean IoU of the segmenter's masks with these outlines, unchanged and with its decoder fitted to them, by
    cross-validation over spatial blocks; None if they are too few, or in one place."""
    decoder: bool = False
    """Whether the decoder gains, and is written."""
    folder: Path | None = None
    """Folder of the networks."""

    @property
    def gain(self) -> float:
        """F1 that the level gains by cross-validation; 0 if nothing gains."""
        return self.scores[self.level] - self.scores["none"] if self.level else 0.0

    @property
    def said(self) -> str:
        """The gains by cross-validation, in words."""
        parts = []
        if self.level is not None:
            before, after = self.scores["none"], self.scores[self.level]
            parts.append(f"F1 of the map rises from {before:.2f} to {after:.2f} with {self.level}")
        if self.decoder and self.masks is not None:
            parts.append("IoU of masks rises from {:.2f} to {:.2f}".format(*self.masks))
        return ", and ".join(parts) or "nothing gains"

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
    """Adapt the networks to a region from a person's review.

    Levels of the localizer are compared by cross-validation over spatial blocks. If five outlines or more were drawn
    or corrected, the mask decoder of the segmenter is fitted to them and judged in the same way. If nothing gains,
    nothing is written.

    Parameters
    ----------
    scene
        One scene or several, as `geolabel.extract` takes them.
    reviewed
        Vector files: reviewed inventories of geolabel, or other polygons of landslides. See
        `geolabel.adaptation.ground` for what counts as ground without landslides.
    out
        Folder to write; None to write nothing. Pass it to `Networks.from_folder`.
    level
        What to adapt if it gains anything: ``threshold``, the operating point; ``head``, also the layers after the
        pyramid; ``all``, also those of the pyramid and of most of the trunk. None for the simplest that gains 0.02 F1
        over all simpler ones; layers are then tried only if an area was examined completely, and ``all`` only on a
        GPU, since it takes minutes on a CPU.
    reading, networks
        How scenes are read, and the networks to start from; the segmenter has to be one of geolabel's own. The inputs
        of ``head`` and ``all`` are computed by torch in single precision, one tile at a time, whatever
        engine, precision and batch the networks have.
    accept_unreviewed
        Whether unreviewed landslides count as accepted, in all files: for a truth that needs no review, such
        as a mask that `geolabel.polygonize` has traced. Candidates do not.
    seed
        Seed of the samples that the layers are fitted to.
    overwrite
        Whether to replace networks that were written there before.
    progress
        Follows the run.

    Returns
    -------
    Adaptation
        The chosen level and its gain.

    Raises
    ------
    VectorError
        If a file cannot be read, or holds too few reviewed landslides on the scenes, or all in one place.
    OptionError
        If the localizer or the segmenter cannot be adapted.
    GeolabelError
        See `geolabel.errors`.

    Examples
    --------
    >>> import geolabel
    >>> found = geolabel.adapt("scene.tif", "slides.gpkg", out="valley")  # doctest: +SKIP
    >>> networks = geolabel.Networks.from_folder("valley")  # doctest: +SKIP
    """
    progress = progress or Silent()
    region = Region.read(
        scene, reviewed, out, reading, networks, accept_unreviewed=accept_unreviewed, overwrite=overwrite
    )
    plans, grounds = region.plans, region.grounds
    base, segmenter = BaseLocalizer.of(plans[0], level), plans[0].segmenter
    adaptation, choice, cells = _choose(base, region, level, seed, progress)
    redrawn = _redrawn(base, choice, cells, region, seed, progress)
    if redrawn is not None:
        masks = round(redrawn.before, 4), round(redrawn.after, 4)
        adaptation = replace(adaptation, masks=masks, decoder=redrawn.decoder is not None)
    if out is None or not adaptation.gains:
        return adaptation
    made = asdict(adaptation) | {
        "scenes": [_name(one) for one in region.scenes],
        "reviewed": [one.path.name for one in region.files],
    }
    if Path(out).is_dir() and any(Path(out).iterdir()):
        log.warning("%s: the networks there are replaced; by cross-validation, %s", out, adaptation.said)
    with replacing_folder(Path(out), overwrite=overwrite) as folder:
        written = {
            "localizer": write_localizer(folder, base, choice, made),
            "sam_checkpoint": write_segmenter(folder, segmenter, redrawn, made),
        }
        if base.confidence is not None:
            given: dict[str, Any] = {name: str(path) for name, path in written.items() if path is not None}
            recipes = decide(replace(region.networks, **given, sam=None, confidence_model=None), Parameters())[1]
            fitted = fit_again(base.confidence, recipes, plans, grounds, progress)
            save_confidence(folder / FOLDER_FILES["confidence_model"], fitted, overwrite=False)
    return replace(adaptation, folder=Path(out))


def _choose(
    base: BaseLocalizer, region: Region, level: Level | None, seed: int, progress: Progress
) -> tuple[Adaptation, Choice[Layers], list[Cells]]:
    """Choose a level on the reviewed ground; returns its tiles too; raises as `adapt`."""
    if (lacking := region.lacks) is not None:
        raise VectorError(f"{region.named}: {lacking}")
    tiles = region.tiles()
    cells = [
        base.cells(*region.pixels(*where), region.place(*where, base.info.stride))
        for where in progress.track(tiles, "map", len(tiles))
    ]
    blocks = Blocks.of(cells)
    if blocks is None:
        raise VectorError(f"{region.named}: {ONE_PLACE}")
    # Layers fitted to polygons alone unlearn ground that nobody examined, and no block shows it.
    fits = base.fits(seed, level) if region.count("areas") or level is not None else {}
    choice = choose(cells, blocks, base.point, base.window, fits, level=level, progress=progress)
    adaptation = Adaptation(
        choice.level,
        {name: round(score, 4) for name, score in choice.scores.items()},
        landslides=region.count("landslides"),
        rejected=region.count("rejected"),
        areas=region.count("areas"),
        tiles=len(tiles),
        blocks=blocks.shown,
        cut=(1.0, round(choice.point.cut / base.point.cut, 4)),
        gate=(round(base.point.gate / base.point.cut, 4), round(choice.point.gate / base.point.cut, 4)),
        drawn=region.count("drawn"),
    )
    return adaptation, choice, cells


def _redrawn(
    base: BaseLocalizer,
    choice: Choice[Layers],
    cells: Sequence[Cells],
    region: Region,
    seed: int,
    progress: Progress,
) -> Redrawn | None:
    """The decoder fitted to outlines with the prompts of the chosen localizer; None if there are too few outlines."""
    if not region.count("drawn"):
        return None
    from geolabel.adaptation.decoder import fit_decoder, regions

    stride = base.info.stride
    found: list[list[Prompts]] = [[] for _ in region.plans]
    for one in cells:
        if (one.cover * one.judged).any():
            raw = one.raw if choice.layers is None else choice.layers.map(one)
            number, *first = one.place
            found[number].append(regions(raw, choice.point, base.window, stride, (first[0], first[1])))
    prompts = [Prompts.concatenate(parts) for parts in found]
    return fit_decoder(region.plans[0].segmenter, region.plans, region.grounds, prompts, seed, progress)


def _name(scene: SceneInput) -> str:
    """Name of a scene in the metadata of a file of networks."""
    source = scene.source if isinstance(scene.source, str) else "an array"
    return Path(without_secrets(scene.name or source)).name

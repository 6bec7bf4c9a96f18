"""Cut ground that is not landslide out of objects, using supplementary data.

The evidence head classifies every pixel of an object, from the image and the activation, those before the event, and
the surrounding heights. Pixels are processed in the tiles of the localizer, each in the tile whose core contains it, so
that the result does not depend on blocks or workers. Ground cut out of an object becomes a separate object.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from geolabel import terrain
from geolabel.change import REACH as FEATURE_REACH
from geolabel.change import Seen, Stable, box_sums, pixel_features
from geolabel.engine.tasks import Pass
from geolabel.errors import TileError
from geolabel.extraction.activation_maps import blend_activation
from geolabel.extraction.before import Before, activation_of, matched
from geolabel.extraction.evidence import GROUND, LEVELS, Evidence
from geolabel.extraction.heights import MAX_STEP_PX, Heights
from geolabel.extraction.plan import Plan, Run
from geolabel.extraction.vectorize import Objects, with_ground
from geolabel.extraction.work import Work
from geolabel.models.evidence_head import EvidenceHeads, Kind, Trees, heads_for
from geolabel.spans import Spans, drop_small, join
from geolabel.tiles import TileGrid, Window, extent
from geolabel.types import AnyArray, BoolArray, UInt8Array

log = logging.getLogger(__name__)

REACH = 3
"""Radius in pixels over which probabilities are averaged, for smooth outlines of the cuts."""

CHUNK_PX = 1 << 16
"""Number of pixels processed by the trees at once, to bound memory."""


@dataclass(frozen=True)
class Known:
    """Inputs of the decision about pixels."""

    heads: EvidenceHeads
    before: Before | None
    heights: Heights | None


def _asked(evidence: Evidence) -> bool:
    return evidence.cut and not (evidence.before is None and evidence.heights is None)


def heads_of(run: Run, evidence: Evidence) -> EvidenceHeads | None:
    """The heads for a run; None if there is no data for them, or they do not fit the localizer."""
    fits = run.localized and run.plan.localized and len(run.plan.classes) == 1
    return heads_for(run.plan.localizer.sha256) if _asked(evidence) and fits else None


def known_beside(run: Run, evidence: Evidence) -> Known | None:
    """Inputs of the decision about pixels; None without supplementary data or a head fitted to the localizer."""
    if not _asked(evidence):
        return None
    heads = heads_of(run, evidence)
    if heads is None:
        log.info("evidence judges whole polygons: the head that cuts them was fitted to the bundled localizer")
        return None
    return Known(heads, evidence.before, evidence.heights)


@dataclass(frozen=True)
class Pieces:
    """Pieces of the objects in a tile: ground that is cut out, and the remaining parts."""

    kept: Spans
    cut: Spans
    failures: tuple[str, ...] = ()
    """Failed reads; nothing is cut there."""


def cut_ground(work: Work, objects: Objects, known: Known, fixed: BoolArray, min_area_px: float) -> Objects:
    """Separate ground in objects of one class: `Objects.ground` are the pieces that the head classifies as ground.

    Parameters
    ----------
    fixed : (K,)
        Objects that are not cut.
    min_area_px
        Minimum size of a piece, pixels; a smaller one is merged with the piece that it touches.
    """
    tiles, free = work.run.plan.localize_tiles, ~fixed[objects.labels]
    spans = objects.spans[free]
    jobs = [
        (index, part) for index in range(len(tiles)) for part, _ in [spans.clip(_around(tiles, index))] if len(part)
    ]
    parts = list(work.apply(_LOOK.bind(work.run, known), jobs, networks=[work.run.plan.localizer]))
    work.report.gaps += [text for part in parts for text in part.failures]
    kept, away = join([part.kept for part in parts])[0], join([part.cut for part in parts])[0]
    kept, away = _settled(kept, away, min_area_px)
    return with_ground(join([kept, objects.spans[~free]])[0], away)


def _settled(kept: Spans, away: Spans, min_area_px: float) -> tuple[Spans, Spans]:
    """Merge small pieces with those they touch: first cut ones, then remaining ones."""
    large = drop_small(away, min_area_px)
    kept = join([kept, away[~away.meeting(large)]])[0]
    stays = drop_small(kept, min_area_px)
    return stays, join([large, kept[~kept.meeting(stays)]])[0]


def _around(tiles: TileGrid, index: int) -> Window:
    """The core of a tile with a margin for the averages."""
    return tiles.core(index).grown(REACH).shared(tiles[index])


# --- pixel probabilities ---------------------------------------------------------------------------------------------


def _look(run: Run, known: Known, job: tuple[int, Spans]) -> Pieces:
    """Cut the objects in the core of a tile, and store the probabilities and the earlier activation."""
    index, spans = job
    plan = run.plan
    tile, core, window = (
        plan.localize_tiles[index],
        plan.localize_tiles.core(index),
        _around(plan.localize_tiles, index),
    )
    mask = spans.paint(window, np.ones(len(spans), np.uint8)) > 0
    try:
        levels, away, activation = _probabilities(run, known, tile, window, mask)
    except TileError as error:
        if plan.parameters.on_error == "fail":
            raise
        log.warning("%s", error)
        return Pieces(spans.clip(core)[0], Spans.empty(), (f"{tile}: {error}",))
    here = core.within(window)
    run.store.write(GROUND, index, {"evidence": levels[here], "activation": activation[here]})
    return Pieces(Spans.of_mask(mask[here] & ~away[here], core), Spans.of_mask(away[here], core))


def _probabilities(
    run: Run, known: Known, tile: Window, window: Window, mask: BoolArray
) -> tuple[UInt8Array, BoolArray, UInt8Array]:
    """(H, W) quantised probability, cut pixels, and earlier activation, of a window in a tile."""
    sight = see(run.plan, known.before, tile)
    found, cuts = np.zeros(int(mask.sum()), np.uint8), np.zeros(int(mask.sum()), np.int32)
    left = np.ones(len(found), bool)
    for kind, there, columns in looked_at(run, known.before, known.heights, sight, window, mask):
        new = left & there
        if new.any():
            head = known.heads.heads[kind]
            found[new] = _levels(head.trees, columns, new)
            cuts[new] = 1 + round(head.cut * LEVELS)
            left &= ~new
        if not left.any():
            break
    levels, excess = np.zeros(mask.shape, np.uint8), np.zeros(mask.shape, np.int32)
    levels[mask], excess[mask] = found, found - cuts
    activation = sight.activation[window.within(tile)]
    return levels, (levels > 0) & (box_sums(excess, REACH) < 0), activation


@dataclass(frozen=True)
class Sight:
    """The scene and the earlier scene in a tile of the localizer."""

    tile: Window
    bands: AnyArray
    """(3, h, w) the scene."""
    valid: BoolArray
    """(h, w) where the scene is valid."""
    both: BoolArray
    """(h, w) where both scenes are valid."""
    image: UInt8Array | None
    """(h, w, 3) the earlier scene, stretched for networks; None without one."""
    activation: UInt8Array
    """(h, w) activation of the earlier scene, 0..255; 0 where not both are valid."""


def see(plan: Plan, before: Before | None, tile: Window) -> Sight:
    """Read both scenes in a tile of the localizer, and run the localizer on the earlier one.

    Raises
    ------
    TileError
        If a raster cannot be read.
    """
    bands, valid = plan.reader.read(tile, plan.grid)
    if before is None:
        return Sight(tile, bands, valid, np.zeros_like(valid), None, np.zeros(valid.shape, np.uint8))
    moved, known = before.reader.read(tile, plan.grid)
    both = valid & known
    image = before.stretch.apply(moved, both)
    return Sight(tile, bands, valid, both, image, activation_of(plan, image) * both)


def looked_at(
    run: Run, before: Before | None, heights: Heights | None, sight: Sight, window: Window, where: BoolArray
) -> Iterator[tuple[Kind, BoolArray, dict[str, AnyArray]]]:
    """Yield the kinds of evidence for P pixels in a tile of the localizer, the one with most data first.

    Each comes with where (P,) it is known, and with the features (P,) of its head, by name.

    Parameters
    ----------
    sight
        Contents of the tile, see `see`.
    window
        Window in the tile.
    where : (H, W)
        The pixels of the window.

    Raises
    ------
    TileError
        If a raster cannot be read.
    """
    hull = extent(where)
    if hull is None:
        return
    plan, spot = run.plan, window.part(hull)
    around = spot.grown(FEATURE_REACH).shared(sight.tile)
    part, place = around.within(sight.tile), np.zeros((around.height, around.width), bool)
    place[spot.within(around)] = where[hull]
    grey = blend_activation(run, around, 0, lambda patch, _: patch)
    ground, on_ground = {}, np.zeros(int(where.sum()), bool)
    if heights is not None:
        ground = {name: values[where[hull]] for name, values in _forms(plan, heights, spot).items()}
        on_ground = ground.pop("known")

    def features(valid: BoolArray, earlier: Seen | None, stable: Stable | None) -> dict[str, AnyArray]:
        later = Seen(plan.stretch.apply(sight.bands[:, *part], valid[part]), grey)
        return pixel_features(later, earlier, valid[part], stable, place)

    if before is not None and sight.image is not None:
        earlier = Seen(matched(sight.image[part], before.tables), sight.activation[part])
        pair, known = features(sight.both, earlier, before.stable), sight.both[window.within(sight.tile)][where]
        if heights is not None:
            yield "both", known & on_ground, pair | ground
        yield "before", known, pair
    if heights is not None:
        yield (
            "dem",
            sight.valid[window.within(sight.tile)][where] & on_ground,
            features(sight.valid, None, None) | ground,
        )


def _forms(plan: Plan, heights: Heights, window: Window) -> dict[str, AnyArray]:
    """(H, W) features of the ground in a window; see `geolabel.terrain.forms`."""
    sizes = terrain.pixel_sizes(plan.grid, range(window.row, window.bottom))
    steps = terrain.form_steps(plan.grid.gsd, heights.step, MAX_STEP_PX)
    margin = max(steps)
    return terrain.forms(*heights.read(window.grown(margin), plan), sizes, plan.grid, steps)


def _levels(trees: Trees, columns: Mapping[str, AnyArray], where: BoolArray) -> UInt8Array:
    """(P,) quantised probability of the pixels that `where` (N,) marks."""
    picked = {name: columns[name][where] for name in trees.names}
    parts = [
        trees({name: values[first : first + CHUNK_PX] for name, values in picked.items()})
        for first in range(0, int(where.sum()), CHUNK_PX)
    ]
    return np.asarray(1 + np.rint(np.concatenate(parts) * LEVELS), np.uint8)


_LOOK = Pass("look", _look, Pieces, lambda *given: f"tile {given[-1][0]}")

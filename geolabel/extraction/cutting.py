"""Cut out of objects the ground that is no landslide by what is known beside the scene.

The evidence head looks at every pixel of an object: at the image and the activation, at those from before the event,
and at the heights around. Pixels are looked at on the tiles of the localizer, each on the tile whose core it is in, so
that the result depends on no block and no worker. What is cut out of an object is an object of its own.
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
from geolabel.extraction.evidence import GROUND, LEVELS, MAX_STEP_PX, Evidence, Heights
from geolabel.extraction.plan import Plan, Run
from geolabel.extraction.vectorize import Objects, with_ground
from geolabel.extraction.work import Work
from geolabel.models.evidence_head import EvidenceHeads, Kind, Trees, heads_for
from geolabel.spans import Spans, drop_small, join
from geolabel.tiles import TileGrid, Window, extent
from geolabel.types import AnyArray, BoolArray, UInt8Array

log = logging.getLogger(__name__)

REACH = 3
"""Pixels on either side of a pixel whose mean probability decides: outlines of what is cut are not ragged."""

CHUNK_PX = 1 << 16
"""Pixels that trees look at together: a bound on memory."""


@dataclass(frozen=True)
class Known:
    """What decides about a pixel."""

    heads: EvidenceHeads
    before: Before | None
    heights: Heights | None


def _asked(evidence: Evidence) -> bool:
    return evidence.cut and not (evidence.before is None and evidence.heights is None)


def heads_of(run: Run, evidence: Evidence) -> EvidenceHeads | None:
    """The heads that look at the pixels of a run; None where it has nothing for them, or they do not fit it."""
    fits = run.localized and run.plan.localized and len(run.plan.classes) == 1
    return heads_for(run.plan.localizer.sha256) if _asked(evidence) and fits else None


def known_beside(run: Run, evidence: Evidence) -> Known | None:
    """What decides about pixels; None where nothing is known, or no head was fitted to the localizer."""
    if not _asked(evidence):
        return None
    heads = heads_of(run, evidence)
    if heads is None:
        log.info("evidence judges whole polygons: the head that cuts them was fitted to the bundled localizer")
        return None
    return Known(heads, evidence.before, evidence.heights)


@dataclass(frozen=True)
class Pieces:
    """What is cut out of the objects in a tile, and what stays of them."""

    kept: Spans
    cut: Spans
    failures: tuple[str, ...] = ()
    """What could not be read: nothing is cut there."""


def cut_ground(work: Work, objects: Objects, known: Known, fixed: BoolArray, min_area_px: float) -> Objects:
    """The ground of objects of one class as other objects: `Objects.ground` are those that the head calls no landslide.

    Parameters
    ----------
    fixed : (K,)
        Which objects stay as they are.
    min_area_px
        Minimum size of a piece, pixels; a smaller one stays with the piece that it touches.
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
    """Give small pieces back to what they touch: first those that were cut, then those that stay."""
    large = drop_small(away, min_area_px)
    kept = join([kept, away[~away.meeting(large)]])[0]
    stays = drop_small(kept, min_area_px)
    return stays, join([large, kept[~kept.meeting(stays)]])[0]


def _around(tiles: TileGrid, index: int) -> Window:
    """The core of a tile and the pixels next to it that decide with those in it."""
    return tiles.core(index).grown(REACH).shared(tiles[index])


# --- looking ---------------------------------------------------------------------------------------------------------


def _look(run: Run, known: Known, job: tuple[int, Spans]) -> Pieces:
    """Cut the objects in the core of a tile, and leave the probabilities and the activation before in the store."""
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
    """(H, W) levels of probability, what is cut, and the activation before, of a window in a tile."""
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
    """What a tile of the localizer shows of the scene and of the scene before."""

    tile: Window
    bands: AnyArray
    """(3, h, w) of the scene."""
    valid: BoolArray
    """(h, w) where the scene is."""
    both: BoolArray
    """(h, w) where both scenes are."""
    image: UInt8Array | None
    """(h, w, 3) the scene before as networks see it; None where there is none."""
    activation: UInt8Array
    """(h, w) of the scene before, 0..255; 0 where not both are."""


def see(plan: Plan, before: Before | None, tile: Window) -> Sight:
    """Read both scenes in a tile of the localizer, and look at the one before.

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
    """Yield kinds of evidence about P pixels in a tile of the localizer, the one with most first.

    Each comes with where (P,) it is known, and with the features (P,) that a head of its kind looks at, by name.

    Parameters
    ----------
    sight
        Of the tile, see `see`.
    window
        In the tile.
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
    """(P,) levels of probability of the pixels that `where` (N,) marks."""
    picked = {name: columns[name][where] for name in trees.names}
    parts = [
        trees({name: values[first : first + CHUNK_PX] for name, values in picked.items()})
        for first in range(0, int(where.sum()), CHUNK_PX)
    ]
    return np.asarray(1 + np.rint(np.concatenate(parts) * LEVELS), np.uint8)


_LOOK = Pass("look", _look, Pieces, lambda *given: f"tile {given[-1][0]}")

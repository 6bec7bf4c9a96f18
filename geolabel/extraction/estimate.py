"""Estimate the work and time of a run, by timing one tile of each network."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geolabel.engine import executors, worker
from geolabel.extraction.plan import Plan
from geolabel.extraction.request import Networks, Parameters, Reading
from geolabel.extraction.scene_groups import SceneGroups, prepare_scenes
from geolabel.extraction.supplements import Supplements
from geolabel.io.read.scene_inputs import list_scenes
from geolabel.parsing import Measure
from geolabel.parts import Recipe
from geolabel.tiles import Window

if TYPE_CHECKING:
    from geolabel.io.read.scene_inputs import Scenes

log = logging.getLogger(__name__)

BASE_BYTES, TORCH_BYTES = 250 << 20, 500 << 20
"""Memory of the process with its libraries, and the additional memory of torch when it runs a network."""

SMALL_BYTES_PER_PX, NETWORK_BYTES_PER_PX = 300, 1_500
"""Memory per pixel of a batch in a small network, and in a large one: features in single precision."""

TILE_BYTES_PER_PX = 7
"""Bytes per pixel of a tile in a task: three bands, the stretched image, and validity."""

BLOCK_BYTES_PER_PX = 24
"""Bytes per pixel of a block in a task: sums, weights, scores, winners."""


NONE, EVERYWHERE = "seconds_without_landslides", "seconds_with_landslides_everywhere"

TOTALS = ("area_km2", "localizer_tiles", "blocks", NONE, EVERYWHERE)
"""Figures that are summed over the grids of a run."""


def estimate(
    scene: Scenes,
    *,
    reading: Reading | None = None,
    networks: Networks | str | Path | None = None,
    parameters: Parameters | None = None,
    dst_crs: str | None = None,
    dem: str | Path | None = None,
    min_slope: Measure | None = None,
    exclude: str | Path | None = None,
    before: str | Path | Sequence[str | Path] | None = None,
    before_mask: str | Path | Sequence[str | Path | None] = (),
    register: bool = True,
    cut: bool = True,
    event_after: str | None = None,
    event_before: str | None = None,
) -> dict[str, Any]:
    """Estimate the work and time of `geolabel.extract`, by timing one warm tile of each network.

    Parameters
    ----------
    scene, reading, networks, parameters, dst_crs, dem, min_slope, exclude, before, before_mask, register, cut,
    event_after, event_before
        As in `geolabel.extract`.

    Returns
    -------
    Figures by name. The number of segmenter windows is unknown before the activation is; the time is given for none
    and for every tile. Supplementary data is named, but not included.

    Raises
    ------
    GeolabelError
        See `geolabel.errors`.
    """
    reading = reading or Reading()
    scenes = list_scenes(scene, asset=reading.asset)
    groups = prepare_scenes(
        scenes,
        reading,
        Networks.of(networks),
        parameters or Parameters(),
        dst_crs=dst_crs,
        supplements=Supplements(dem, min_slope, exclude, before, before_mask, register, cut, event_after, event_before),
    )
    for text in groups.warnings:
        log.warning("%s", text)
    beside = {"dem": dem, "exclude": exclude, "before": before}
    return _estimate_scenes(groups) | {"not_counted": [f"--{name}" for name, given in beside.items() if given]}


def estimate_plan(plan: Plan) -> dict[str, Any]:
    """Count the work of a plan and time one warm tile of each network on real pixels.

    The number of segmenter windows is unknown before the activation is; the total time is given for none and for every
    tile.
    """
    tile = plan.localize_tiles[len(plan.localize_tiles) // 2]
    image = _read(plan, tile)
    locate, segment = worker.localizer(plan.localizer), worker.segmenter(plan.segmenter)
    asked = plan.method.sample(tile.height, tile.width)
    threads = plan.parameters.threads
    calls = {recipe: worker.calls_at_once(recipe, threads) for recipe in (plan.localizer, plan.segmenter)}
    with worker.network(plan.localizer, threads):
        alone_s = warm_seconds(lambda: locate([image] * plan.localizer.batch))
    localize_s = alone_s / plan.localizer.batch / calls[plan.localizer]
    window = _read(plan, plan.segment_tiles[len(plan.segment_tiles) // 2])
    with worker.network(plan.segmenter, threads):
        segment_s = warm_seconds(lambda: segment([window], [asked])) / calls[plan.segmenter]
    read_s = warm_seconds(lambda: _read(plan, tile))
    tiles, windows = len(plan.localize_tiles), len(plan.segment_tiles)
    per_tile = max(localize_s, read_s)
    tile_px, block_px = tile.height * tile.width, min(plan.blocks.size**2, plan.grid.height * plan.grid.width)
    window_px = window.shape[0] * window.shape[1]
    memory = (
        BASE_BYTES
        + TORCH_BYTES * any(recipe.engine == "torch" for recipe in (plan.localizer, plan.segmenter))
        + executors.LOCAL_WORKERS * block_px * BLOCK_BYTES_PER_PX
        + (executors.BESIDE_NETWORK + max(calls.values())) * plan.task_tiles * tile_px * TILE_BYTES_PER_PX
        # both: memory of the first network is kept for its next call, and not shared with the second
        + calls[plan.localizer] * _inside(plan.localizer, tile_px)
        + calls[plan.segmenter] * _inside(plan.segmenter, window_px)
    )
    return {
        "scene": plan.reader.scene.name,
        "working_grid": f"{plan.grid.height} x {plan.grid.width} px at {plan.grid.gsd:.4g} m",
        "area_km2": round(plan.grid.height * plan.grid.width * plan.grid.gsd**2 / 1e6, 6),
        "bands": ",".join(map(str, plan.reader.scene.bands)),
        "device": plan.localizer.device,
        "engine": plan.localizer.engine,
        "localizer_tiles": tiles,
        "localizer_tile_px": plan.localize_tiles.size,
        "segmenter_tile_px": plan.segment_tiles.size,
        "overlap_px": plan.segment_tiles.overlap,
        "blocks": len(plan.blocks),
        "memory_mb": round(memory / 2**20),
        "seconds_per_localizer_tile": round(per_tile, 4),
        "seconds_per_segmenter_window": round(segment_s, 6),
        NONE: round(tiles * per_tile, 1),
        EVERYWHERE: round(tiles * per_tile + windows * segment_s, 1),
    }


def _estimate_scenes(groups: SceneGroups) -> dict[str, Any]:
    """Count the work of all plans together; for scenes on one grid see `estimate_plan`."""
    parts = [estimate_plan(plan) for plan in groups.plans]
    figures = parts[0]
    if len(parts) > 1:
        totals = {name: round(sum(part[name] for part in parts), 6) for name in TOTALS}
        memory = max(part["memory_mb"] for part in parts)
        place = {name: parts[0][name] for name in ("device", "engine")}
        figures = {"scenes": groups.scenes, "grids": len(parts), **place, **totals, "memory_mb": memory}
    per_km2 = {
        name.replace("seconds", "seconds_per_km2"): round(figures[name] / figures["area_km2"], 2)
        for name in (NONE, EVERYWHERE)
    }
    return figures | per_km2


def _read(plan: Plan, window: Window) -> Any:
    return plan.stretch.apply(*plan.reader.read(window, plan.grid))


def _inside(recipe: Recipe, pixels: int) -> int:
    """Bytes of the features in one call of a network."""
    return recipe.batch * pixels * (SMALL_BYTES_PER_PX if worker.is_small(recipe) else NETWORK_BYTES_PER_PX)


def warm_seconds(call: Callable[[], object]) -> float:
    """Seconds of the second call of a function."""
    call()
    start = time.perf_counter()
    call()
    return time.perf_counter() - start

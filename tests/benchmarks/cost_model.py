"""What a run over a scene of any size takes on a machine of any size, from what a small one took here.

Usage: python tests/benchmarks/cost_model.py check [--calibrate 1536] [--size 3072]
       python tests/benchmarks/cost_model.py predict [--km2 10000] [--gsd 0.5] [--faster 30] [--figures FILE]

check
    Measure the figures of `Costs` on one scene, predict another of twice the side, and measure that one: predicted over
    measured. CPU seconds of one process and one thread, so that a busy machine does not matter. ``--figures`` keeps the
    costs as JSON.
predict
    The model for 1, 8 and 128 GPUs with eight cores each. A GPU is taken to be `--faster` times as fast as one core
    here inside the networks; ``geolabel extract --dry-run`` says what yours is.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("GDAL_CACHEMAX", "64")

TILE, STRIDE, TASK, BLOCK = 512, 384, 32, 2048
"""Pixels of a tile and between tiles, tiles of a task, pixels of a block: the defaults of a run."""


@dataclass(frozen=True)
class Costs:
    """Seconds of one core, unless they say otherwise."""

    localize_s: float = 0.0775
    """In the localizer, per tile."""
    segment_s: float = 0.109
    """In the segmenter, per window."""
    read_s: float = 0.0019
    """Per tile of the first pass outside the network: read, stretch, pack, write the record."""
    window_s: float = 0.0045
    """Per window of the segmenter outside the network: read again, crop masks, write."""
    area_s: float = 0.0377
    """Per megapixel: blend, threshold, merge, spans, sums."""
    start_s: float = 0.1
    """Write the outputs; starting a cluster comes on top."""
    task_s: float = 0.004
    """Of client and scheduler per task: submit, four messages, take in the result."""
    object_s: float = 0.0001
    """Of the client per landslide: join, outline, measure, write."""
    read_mb: float = TILE * TILE * 3 / 1e6
    """Per tile or window, as decoded; what travels is as much smaller as the file is compressed."""
    record_mb: float = (TILE * TILE / 8 + 2 * (TILE / 8) ** 2) / 1e6
    """Per tile, written and read once more: validity, activation and probability at stride 8."""


@dataclass(frozen=True)
class Scene:
    """The work of a run."""

    height: int
    width: int
    windows_per_tile: float
    """Windows of the segmenter over tiles: how much of the scene is followed up."""
    objects: int = 0

    @property
    def tiles(self) -> int:
        """Tiles of the localizer."""
        return math.prod(max(1, math.ceil((side - TILE) / STRIDE) + 1) for side in (self.height, self.width))

    @property
    def tasks(self) -> int:
        """Of all passes: tiles, windows, and blocks four times over (prompt, merge, spans, sums)."""
        blocks = math.ceil(self.height / BLOCK) * math.ceil(self.width / BLOCK)
        return math.ceil(self.tiles / TASK) + math.ceil(self.tiles * self.windows_per_tile / TASK) + 4 * blocks


@dataclass(frozen=True)
class Machine:
    """The machine of a run."""

    cores: int = 1
    networks: int = 1
    """Cores or GPUs that run networks."""
    faster: float = 1
    """How much faster than one core a GPU is; 1 where cores run the networks, among their other work."""
    mb_per_s: float = math.inf
    """That the storage hands out to all workers together, as decoded."""


def predict(costs: Costs, scene: Scene, machine: Machine) -> dict[str, float]:
    """Seconds of each part of a run; passes follow one another, and within one the slowest of its parts counts."""
    tiles, windows, megapixels = scene.tiles, scene.tiles * scene.windows_per_tile, scene.height * scene.width / 1e6

    def slowest(network: float, outside: float, megabytes: float, tasks: float) -> float:
        shared = machine.faster == 1  # the same cores do both
        work = (
            (network + outside) / machine.cores
            if shared
            else max(network / machine.networks / machine.faster, outside / machine.cores)
        )
        clients = tasks * costs.task_s if machine.cores > 1 else 0
        return max(work, megabytes / machine.mb_per_s, clients)

    moved = costs.read_mb + costs.record_mb
    return {
        "start": costs.start_s,
        "localize": slowest(tiles * costs.localize_s, tiles * costs.read_s, tiles * moved, tiles / TASK),
        "segment": slowest(windows * costs.segment_s, windows * costs.window_s, windows * moved, windows / TASK),
        "blocks": slowest(0, megapixels * costs.area_s, tiles * costs.record_mb, 4 * megapixels * 1e6 / BLOCK**2),
        "client": scene.objects * costs.object_s,
    }


# --- figures ---------------------------------------------------------------------------------------------------------


def measure(size: int) -> tuple[Costs, Scene, float]:
    """Costs of a run over a synthetic scene, what there was to do, and its CPU seconds in all."""
    import dask
    from extract import ForwardClock, make_scene

    from geolabel.engine import tasks, worker
    from geolabel.extraction.extract import run_extract
    from geolabel.extraction.outputs import Targets
    from geolabel.extraction.request import Networks, Parameters, Reading
    from geolabel.extraction.scene_groups import SceneGroups, prepare

    tasks.time = SimpleNamespace(perf_counter=time.process_time, monotonic=time.process_time)  # type: ignore
    dask.config.set(scheduler="synchronous")
    with tempfile.TemporaryDirectory() as folder:
        scene = make_scene(Path(folder), size)
        plan = prepare(scene, Reading(), Networks(device="cpu"), Parameters(threads=1))
        clocks: list[Any] = []
        for part in (worker.localizer(plan.localizer), worker.segmenter(plan.segmenter)):
            clocks.append(ForwardClock())
            clocks[-1].watch(part)
        run_extract(SceneGroups.of(plan), Targets.of(None))  # once to be warm
        localize, segment = (clock.seconds for clock in clocks)
        start = time.process_time()
        found = run_extract(SceneGroups.of(plan), Targets.of(Path(folder) / "slides.gpkg"))
        total = time.process_time() - start
    localize, segment = (clock.seconds - before for clock, before in zip(clocks, (localize, segment), strict=True))
    took, tiles, windows = found.report.seconds, found.report.tiles, max(1, found.report.windows)
    costs = Costs(
        localize_s=localize / tiles,
        segment_s=segment / windows,
        read_s=(took["localize"] - localize) / tiles,
        window_s=(took["segment"] - segment) / windows,
        area_s=(took["prompt"] + took["merge"] + took["polygons"]) / (size**2 / 1e6),
        start_s=total - sum(took.values()),
    )
    return costs, Scene(size, size, found.report.windows / tiles, len(found.landslides)), total


def check(calibrate: int, size: int, figures: Path | None) -> None:
    """Print predicted over measured."""
    costs, scene, total = measure(calibrate)
    print(f"{calibrate} px, {scene.tiles} tiles: {total:.1f} s CPU; {asdict(costs)}", flush=True)
    if figures is not None:
        figures.write_text(json.dumps(asdict(costs), indent=1))
    _, larger, measured = measure(size)
    foreseen = predict(costs, larger, Machine())
    print(
        f"{size} px, {larger.tiles} tiles, {larger.windows_per_tile:.2f} windows a tile: predicted "
        f"{sum(foreseen.values()):.1f} s, measured {measured:.1f} s CPU, ratio {sum(foreseen.values()) / measured:.2f}"
    )


def table(km2: float, gsd: float, faster: float, costs: Costs) -> None:
    """Print the prediction for 1, 8 and 128 GPUs."""
    side = round(math.sqrt(km2) * 1000 / gsd)
    scene = Scene(side, side, windows_per_tile=0.3, objects=round(km2 * 5))
    moved = scene.tiles * (1 + scene.windows_per_tile) * costs.read_mb / 1e6
    print(
        f"{km2:g} km2 at {gsd:g} m: {side} px a side, {scene.tiles} tiles, {scene.tasks} tasks, {moved:.2f} TB decoded"
    )
    for gpus in (1, 8, 128):
        parts = predict(costs, scene, Machine(8 * gpus, gpus, faster, mb_per_s=2000 * min(gpus, 8)))
        words = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in parts.items())
        print(f"{gpus:4d} GPUs: {sum(parts.values()) / 60:.0f} min ({words})")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["check", "predict"])
    parser.add_argument("--calibrate", type=int, default=1536)
    parser.add_argument("--size", type=int, default=3072)
    parser.add_argument("--km2", type=float, default=10_000)
    parser.add_argument("--gsd", type=float, default=0.5)
    parser.add_argument("--faster", type=float, default=30)
    parser.add_argument("--figures", type=Path)
    given = parser.parse_args()
    if given.what == "check":
        check(given.calibrate, given.size, given.figures)
    else:
        costs = Costs(**json.loads(given.figures.read_text())) if given.figures else Costs()
        table(given.km2, given.gsd, given.faster, costs)


if __name__ == "__main__":
    main()

"""What a run costs beside its networks, and whether its memory grows with the scene.

Usage: python tests/benchmarks/extract.py overhead [--size 4096] [--localizer NAME|FILE] [--sam-checkpoint FILE]
       python tests/benchmarks/extract.py memory [--sizes 4096 8192]

overhead
    CPU seconds of ``extract SCENE --out FILE.gpkg`` outside the calls of its networks, over those of the minimum
    work that any program has to do: reading the same tiles with rasterio and one ``rasterio.features.shapes`` of the
    final mask. One thread, all in one process, median of five runs in turn.

    Only these calls are left out, and what a process does once, whatever the scenes: importing packages, loading
    weights. Opening the scene, its statistics, the records of the run and the GeoPackage count. Each run opens the
    scene again, as the minimum work does, so that neither finds decoded blocks. The same tiles are the windows
    that the networks see: the localizer's tiles, and the segmenter's windows in the order in which it sees them. The
    ratio over the localizer's tiles alone stands beside it.
memory
    Peak resident memory of a process that extracts, for growing scenes, with GDAL's cache fixed.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("GDAL_CACHEMAX", "64")

import dask
import numpy as np
import rasterio
import rasterio.features
from rasterio.windows import Window as RasterWindow

from geolabel.engine import worker
from geolabel.extraction.extract import run_extract
from geolabel.extraction.outputs import Targets
from geolabel.extraction.plan import Plan, assign
from geolabel.extraction.request import Networks, Parameters, Reading
from geolabel.extraction.result import Result
from geolabel.extraction.scene_groups import SceneGroups, prepare
from geolabel.tiles import Window

T = TypeVar("T")

REPEATS = 5


class ForwardClock:
    """CPU seconds inside the calls of networks, whatever engine runs them."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def watch(self, part: Any) -> None:
        """Count the calls of the network of a localizer or a segmenter."""
        part._network = _Watched(part._network, self)

    def timed(self, function: Callable[..., T], *given: Any, **named: Any) -> T:
        """Call a function and count its time."""
        start = time.process_time()
        try:
            return function(*given, **named)
        finally:
            self.seconds += time.process_time() - start


class _Watched:
    """A network whose calls are counted; the rest is as it was."""

    def __init__(self, network: Any, clock: ForwardClock) -> None:
        self._watched, self._clock = network, clock

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._watched, name)
        return partial(self._clock.timed, value) if name in ("encode", "decode") else value

    def __call__(self, pixels: Any) -> Any:
        return self._clock.timed(self._watched, pixels)


def minimum_work(scene: Path, windows: list[Window], found: Result) -> float:
    """CPU seconds of reading windows with rasterio and of one polygonization of the whole mask."""
    mask = found.parts[0].objects.mask(found.parts[0].plan.grid.window)
    start = time.process_time()
    with rasterio.open(scene) as source:
        for window in windows:
            source.read(window=RasterWindow(window.col, window.row, window.width, window.height))
        list(rasterio.features.shapes(mask, mask=mask == 1, transform=source.transform))
    return time.process_time() - start


def overhead(size: int, networks: Networks) -> None:
    """Print the ratio and where the time goes."""
    dask.config.set(scheduler="synchronous")
    with tempfile.TemporaryDirectory() as folder:
        scene = make_scene(Path(folder), size)

        def plan_run() -> Plan:
            return prepare(scene, Reading(), networks, Parameters(threads=1))

        plan, clock = plan_run(), ForwardClock()  # loads the networks
        for part in (worker.localizer(plan.localizer), worker.segmenter(plan.segmenter)):
            clock.watch(part)
        plan.reader.close()
        ratios, costs = [], []
        for repeat in range(REPEATS):
            clock.seconds = 0.0
            targets = Targets.of(Path(folder) / "slides.gpkg", None, None, overwrite=True)
            start = time.process_time()
            plan = plan_run()
            prepared = time.process_time() - start
            found = run_extract(SceneGroups.of(plan), targets)
            plan.reader.close()
            total = time.process_time() - start
            outside = total - clock.seconds
            tiles = list(plan.localize_tiles)
            prompted = [seen.window for seen in assign(found.parts[0].prompts, plan.segment_tiles)]
            minimum, first = (minimum_work(scene, windows, found) for windows in (tiles + prompted, tiles))
            ratios.append((outside / minimum, outside / first))
            costs.append(outside / (size * size / 1e6))
            print(
                f"run {repeat}: {total:.2f} s CPU, {clock.seconds:.2f} s in networks, {outside:.2f} s outside "
                f"({prepared:.2f} s before the first tile), {minimum:.2f} s minimum work, ratio {ratios[-1][0]:.2f}, "
                f"{first:.2f} s over the localizer's tiles alone, {len(found.landslides)} landslides, "
                f"{len(tiles)} tiles, {len(prompted)} windows, {found.report.seconds}"
            )
        median, alone = (statistics.median(column) for column in zip(*ratios, strict=True))
        print(f"median ratio {median:.2f} at {size} px; {alone:.2f} over the localizer's tiles alone")
        print(f"median {statistics.median(costs):.3f} CPU s/Mpx beside the networks")


def memory(sizes: list[int], options: list[str]) -> None:
    """Print the peak of every size and the ratio of the last to the first."""
    peaks = []
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            scene = make_scene(Path(folder), size)
            script = (
                "import resource, sys; from geolabel.cli.main import run; code = run(sys.argv[1:]); "
                "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr); sys.exit(code)"
            )
            done = subprocess.run(
                [sys.executable, "-c", script, "extract", str(scene), "--out", f"{folder}/slides.gpkg", *options],
                capture_output=True,
                text=True,
                check=True,
            )
            peaks.append(int(done.stderr.split()[-1]) / 1024)
            print(f"{size} px: peak {peaks[-1]:.0f} MiB")
    print(f"ratio {peaks[-1] / peaks[0]:.3f}")


def make_scene(folder: Path, size: int) -> Path:
    """Lay synthetic patches of 2048 px side by side: a scene of any size in little memory."""
    from geolabel.synthetic import synthesize

    path = folder / "scene.tif"
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        dtype="uint8",
        count=3,
        height=size,
        width=size,
        crs="EPSG:32648",
        tiled=True,
        transform=rasterio.transform.from_origin(500000, 3000000, 0.5, 0.5),
        compress="deflate",
        photometric="rgb",
        blockxsize=512,
        blockysize=512,
    ) as target:
        patch = min(2048, size)
        pictures = [np.moveaxis(synthesize(patch, 0.5, 990000 + k).rgb, 2, 0) for k in range(2)]
        for number, row in enumerate(range(0, size, patch)):
            for col in range(0, size, patch):
                picture = pictures[(number + col // patch) % 2]
                height, width = min(patch, size - row), min(patch, size - col)
                target.write(picture[:, :height, :width], window=RasterWindow(col, row, width, height))
    return path


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["overhead", "memory"])
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--sizes", type=int, nargs="+", default=[4096, 8192])
    parser.add_argument("--localizer", default="bundled")
    parser.add_argument("--sam-checkpoint")
    given = parser.parse_args()
    if given.what == "overhead":
        overhead(given.size, Networks(localizer=given.localizer, sam_checkpoint=given.sam_checkpoint, device="cpu"))
    else:
        options = [
            "--localizer",
            given.localizer,
            *(["--sam-checkpoint", given.sam_checkpoint] if given.sam_checkpoint else []),
        ]
        memory(given.sizes, options)


if __name__ == "__main__":
    main()

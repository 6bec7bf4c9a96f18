"""What a run costs beside its networks as scenes and clusters grow, and whether it survives what machines do.

Usage: python tests/benchmarks/scaling.py workers [--size 8192]
       python tests/benchmarks/scaling.py memory [--sizes 8192 65536] [--workers 2] [--graph FILE]
       python tests/benchmarks/scaling.py tiles [--tiles 100000]
       python tests/benchmarks/scaling.py resume [--workers 0]
       python tests/benchmarks/scaling.py kills [--client 150] [--worker 50]

workers
    Pixels per second of the passes with ``--workers 2`` over those with ``--workers 1``, one thread each, bundled
    networks; start-up and the writing of files are left out. Needs two cores that are free.
memory
    Peak memory of the client and of each worker, for growing scenes that hold little, with stand-ins for the networks
    and GDAL's cache fixed. With ``--graph``, also a picture of memory over time.
tiles
    Wall and CPU time beyond that of the stand-ins, per tile: one process, records and GeoPackage included.
resume
    Tasks that are done twice when a run is killed half way and started again, by SIGKILL to the client.
kills
    Runs of a small scene, each killed at random moments (the client, or one of two workers) until it ends: how many
    write the same bytes as one that nothing disturbed.

All but the first run on stand-ins for the networks.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("GDAL_CACHEMAX", "64")

import dask
import numpy as np
import psutil
import rasterio
from affine import Affine
from rasterio.windows import Window as RasterWindow

from geolabel.cli.main import run as command
from geolabel.engine import executors, tasks, worker
from geolabel.extraction import request
from geolabel.extraction.extract import run_extract
from geolabel.extraction.outputs import Targets
from geolabel.extraction.plan import make_plan
from geolabel.extraction.request import Parameters
from geolabel.extraction.scene_groups import SceneGroups
from geolabel.io.read.scenes import SceneReader
from geolabel.testing import RECIPES

STAND_IN, BEGUN = "BENCH_STAND_IN", "BENCH_BEGUN"
"""Environment of a process that runs on stand-ins, and the file in which it notes the tasks that it begins. Workers
import this file too, so both hold there."""

SMALL = ("--tile-size", "48", "--overlap", "16", "--block-size", "100", "--stretch", "0,255", "--threads", "1")


def _stand_ins() -> None:
    source = f"stand-in:{os.environ[STAND_IN]}"
    request.Networks.recipes = lambda *_: tuple(replace(recipe, source=source) for recipe in RECIPES)  # type: ignore


def _note_tasks() -> None:
    kept = tasks.Recorded._kept

    def noting(self: Any, number: int) -> Any:
        found = kept(self, number)
        if found is None and self.store is not None:
            with Path(os.environ[BEGUN]).open("a") as file:
                file.write(f"{self.step.step.name} {number}\n")
        return found

    tasks.Recorded._kept = noting  # type: ignore[method-assign]


if STAND_IN in os.environ:
    _stand_ins()
if BEGUN in os.environ:
    _note_tasks()


def geolabel(*words: str, **environment: str) -> subprocess.Popen[str]:
    """Start the command line, on stand-ins where the environment says so."""
    return subprocess.Popen(
        [sys.executable, __file__, "command", *words],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: subprocess.Popen[str]) -> dict[str, Any]:
    """Wait for a command that was given ``--json``."""
    said, errors = process.communicate()
    if process.returncode:
        raise SystemExit(errors)
    return json.loads(said) | {"client_mb": int(errors.split()[-1]) // 1024}


def sparse_scene(path: Path, size: int) -> Path:
    """Write a scene mostly without data, with bright objects on dark ground along its diagonal."""
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        dtype="uint8",
        count=3,
        height=size,
        width=size,
        crs="EPSG:32648",
        nodata=0,
        transform=Affine(0.5, 0, 5e5, 0, -0.5, 3e6),
        tiled=True,
        blockxsize=512,
        blockysize=512,
        sparse_ok=True,
        photometric="rgb",
        compress="deflate",
        bigtiff="if_safer",
    ) as file:
        side = min(256, size)
        rows, cols = np.mgrid[:side, :side]
        ground = np.random.default_rng(0).integers(20, 60, (3, side, side))
        picture = np.where((rows // 40 + cols // 60) % 3 == 0, 230, ground).astype(np.uint8)
        for at in np.linspace(0, size - side, 16 if size > side else 1).astype(int):
            file.write(picture, window=RasterWindow(at, at, side, side))
    return path


# --- two workers over one --------------------------------------------------------------------------------------------


def workers(size: int) -> None:
    sys.path.insert(0, str(Path(__file__).parent))
    from extract import make_scene

    speeds = {}
    with tempfile.TemporaryDirectory() as folder:
        scene = make_scene(Path(folder), size)
        for count in (1, 2, 1, 2):
            out = str(Path(folder) / "slides.gpkg")
            words = ("extract", str(scene), out, "--workers", str(count), "--device", "cpu", "--overwrite", "--json")
            speeds.setdefault(count, []).append(ended(geolabel(*words))["pixels_per_second"])
            print(f"{count} workers: {speeds[count][-1] / 1e6:.3f} Mpx/s", flush=True)
    print(f"{size} px: ratio {max(speeds[2]) / max(speeds[1]):.2f} (best of two each)")


# --- memory ----------------------------------------------------------------------------------------------------------


def memory(sizes: list[int], count: int, graph: Path | None) -> None:
    peaks, curves = [], {}
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            scene, out = sparse_scene(Path(folder) / "scene.tif", size), Path(folder) / "slides.gpkg"
            words = ("extract", str(scene), str(out), "--stretch", "0,255", "--json")
            words += ("--workers", str(count)) if count else ()
            process = geolabel(*words, **{STAND_IN: "0:512"})
            curves[size] = watched(process)
            found = ended(process)
            peaks.append((found["client_mb"], max(found["peak_mb"].values())))
            print(
                f"{size} px: {found['tiles']} tiles, {found['landslides']} landslides, client {peaks[-1][0]} MB, "
                f"workers at most {peaks[-1][1]} MB",
                flush=True,
            )
    client, workers = (last / first for first, last in zip(peaks[0], peaks[-1], strict=True))
    print(f"{sizes[-1]} px over {sizes[0]} px: client {client:.3f}, workers {workers:.3f}")
    if graph is not None:
        draw(curves, graph)


def watched(process: subprocess.Popen[str]) -> np.ndarray:
    """(N, 3) share of the run that is over, MB of the client, MB of the largest worker; twice a second."""
    client, rows, start = psutil.Process(process.pid), [], time.monotonic()
    while process.poll() is None:
        with suppress(psutil.Error):
            workers = [child for child in client.children() if "spawn_main" in " ".join(child.cmdline())]
            sizes = [of.memory_info().rss / 2**20 for of in (client, *workers)]
            rows.append((time.monotonic() - start, sizes[0], max(sizes[1:], default=np.nan)))
        time.sleep(0.5)
    curve = np.asarray(rows[:-1])  # in the last one the processes are ending
    return np.column_stack([curve[:, 0] / curve[-1, 0], curve[:, 1:]])


def draw(curves: dict[int, np.ndarray], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.2), layout="constrained")
    axes = figure.add_subplot()
    for colour, (size, curve) in zip(("tab:blue", "tab:orange", "tab:green", "tab:red"), curves.items(), strict=False):
        axes.plot(curve[:, 0], curve[:, 1], color=colour, label=f"client, {size} px")
        axes.plot(curve[:, 0], curve[:, 2], color=colour, linestyle="--", label=f"largest worker, {size} px")
    axes.set(xlabel="share of the run", ylabel="resident memory, MB", xlim=(0, 1), ylim=(0, None))
    axes.legend(fontsize="small", loc="lower right")
    figure.savefig(path, dpi=100)


# --- cost of a tile --------------------------------------------------------------------------------------------------


class Clock:
    """Wall and CPU seconds inside the stand-ins."""

    def __init__(self) -> None:
        self.spent = np.zeros(2)

    def around(self, part: Any) -> Any:
        class Timed:
            def __getattr__(_, name: str) -> Any:
                return getattr(part, name)

            def __call__(_, *arguments: Any) -> Any:
                start = _now()
                answer = part(*arguments)
                self.spent += _now() - start
                return answer

        return Timed()


def _now() -> np.ndarray:
    return np.array([time.perf_counter(), time.process_time()])


def tiles(wanted: int) -> None:
    tile, clock, load = 64, Clock(), worker._load
    parts = {recipe.role: clock.around(load(recipe)) for recipe in RECIPES}
    worker._load = lambda recipe: parts[recipe.role]  # type: ignore
    with tempfile.TemporaryDirectory() as folder, dask.config.set(scheduler="synchronous"):
        scene = sparse_scene(Path(folder) / "scene.tif", tile * round(wanted**0.5))
        given = Parameters(tile_size=tile, overlap=0, threads=1)
        start = _now()
        plan = make_plan(SceneReader(scene), *RECIPES, given, stretch="0,255")
        found = run_extract(SceneGroups.of(plan), Targets.of(Path(folder) / "slides.gpkg"))
        outside = _now() - start - clock.spent
    count = found.report.tiles
    print(
        f"{count} tiles of {tile} px, {found.report.tasks} tasks, {len(found.landslides)} landslides; "
        f"stand-ins {clock.spent[0]:.1f} s wall, {clock.spent[1]:.1f} s CPU; {found.report.seconds}"
    )
    print(f"beside the stand-ins: {outside[0] / count * 1e3:.3f} ms wall, {outside[1] / count * 1e3:.3f} ms CPU a tile")


# --- what is done twice ----------------------------------------------------------------------------------------------


def resume(count: int, size: int = 1024) -> None:
    with tempfile.TemporaryDirectory() as folder:
        scene, out = sparse_scene(Path(folder) / "scene.tif", size), Path(folder) / "slides.gpkg"
        begun = Path(folder) / "begun"
        words = ("extract", str(scene), str(out), "--json", *SMALL, *(("--workers", str(count)) if count else ()))
        slow = {STAND_IN: "0.01", BEGUN: str(begun)}
        ended(geolabel(*words, **slow))
        expected, total = out.read_bytes(), len(begun.read_text().splitlines())
        out.unlink()
        begun.unlink()
        victim = geolabel(*words, **slow)
        while not begun.exists() or len(begun.read_text().splitlines()) < total / 2:
            time.sleep(0.005)
        victim.send_signal(signal.SIGKILL)
        victim.communicate()
        done = len(list(Path(folder).glob("slides.gpkg.run/*-done/*.safetensors")))
        time.sleep(2 if count else 0)  # workers notice that their client is gone
        ended(geolabel(*words, **slow))
        again = Counter(begun.read_text().splitlines())
        twice = [task for task, times in again.items() if times > 1]
        at_work = count or 3
        print(
            f"{total} tasks, killed with {done} done; {len(twice)} begun twice, {len(twice) / at_work:.1f} a worker "
            f"({at_work} at work): {', '.join(twice)}; same bytes: {out.read_bytes() == expected}"
        )


# --- random kills ----------------------------------------------------------------------------------------------------


def kills(client: int, workers: int, seed: int = 0) -> None:
    dice = random.Random(seed)
    os.environ[STAND_IN] = "0.002"
    _stand_ins()
    worker.versions()  # imports what a run needs, for all that are forked from here
    with tempfile.TemporaryDirectory() as folder:
        scene = sparse_scene(Path(folder) / "scene.tif", 320)
        words = ["extract", str(scene), "--quiet", *SMALL]
        seconds, expected = _whole(Path(folder) / "whole.gpkg", words)
        print(f"undisturbed: {seconds:.2f} s", flush=True)
        same = killed = 0
        for trial in range(client):
            out = Path(folder) / f"client{trial}.gpkg"
            killed += _kill_until_done(out, words, dice, seconds)
            same += out.read_bytes() == expected
        print(f"clients killed: {same} of {client} equal, {killed} kills", flush=True)
        if workers:
            print(f"workers killed: {_kill_workers(Path(folder), words, expected, dice, workers)}")


def _forked(function: Callable[..., Any], *arguments: Any) -> multiprocessing.Process:
    # everything is imported already, so a run begins at once
    process = multiprocessing.get_context("fork").Process(target=function, args=arguments)
    process.start()
    return process  # type: ignore[return-value]


def _run(words: list[str], out: Path) -> None:
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):  # noqa: PTH123
        os._exit(command([*words, "--out", str(out)]))


def _whole(out: Path, words: list[str]) -> tuple[float, bytes]:
    start = time.perf_counter()
    process = _forked(_run, words, out)
    process.join()
    assert process.exitcode == 0
    return time.perf_counter() - start, out.read_bytes()


def _kill_until_done(out: Path, words: list[str], dice: random.Random, seconds: float) -> int:
    for kills in range(4):
        process = _forked(_run, words, out)
        process.join(dice.uniform(0, seconds) if kills < 3 else None)
        if process.exitcode is not None:
            return kills  # an error because the output is there already is right too: the last one was killed just then
        process.kill()
        process.join()
    raise AssertionError("the last run was not killed and did not end")


@contextmanager
def _two_workers() -> Iterator[Any]:
    import distributed

    waits = {"distributed.scheduler.allowed-failures": 20, executors.PATIENCE: "30s"}
    with (
        dask.config.set(waits),
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0"
        ) as local,
        distributed.Client(local),
    ):
        yield local


def _kill_workers(folder: Path, words: list[str], expected: bytes, dice: random.Random, trials: int) -> str:
    same = killed = again = 0
    with ExitStack() as crew:
        local = crew.enter_context(_two_workers())
        for trial in range(trials):
            out, over = folder / f"worker{trial}.gpkg", threading.Event()

            def kill(over: threading.Event = over) -> None:
                nonlocal killed
                while not over.wait(dice.uniform(0.1, 1.5)):
                    pids = [nanny.pid for nanny in local.workers.values() if getattr(nanny, "pid", None)]  # noqa: B023
                    if pids:
                        os.kill(dice.choice(pids), signal.SIGKILL)
                        killed += 1
                        return

            killer = threading.Thread(target=kill)
            killer.start()
            code = command([*words, "--out", str(out)])
            if code:  # dask does not replace a worker that dies while it starts; with none left, a run ends and resumes
                crew.close()
                local = crew.enter_context(_two_workers())
                code = command([*words, "--out", str(out)])
                again += 1
            over.set()
            killer.join()
            same += code == 0 and out.read_bytes() == expected
    return f"{same} of {trials} equal, {killed} kills, {again} runs resumed with new workers"


@contextmanager
def _peak_at_end() -> Iterator[None]:
    yield
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)


def main() -> None:
    """Read the command line."""
    if sys.argv[1:2] == ["command"]:
        with _peak_at_end():
            code = command(sys.argv[2:])
        sys.exit(code)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["workers", "memory", "tiles", "resume", "kills"])
    parser.add_argument("--size", type=int, default=8192)
    parser.add_argument("--sizes", type=int, nargs="+", default=[8192, 65536])
    parser.add_argument("--workers", type=int)
    parser.add_argument("--graph", type=Path)
    parser.add_argument("--tiles", type=int, default=100_000)
    parser.add_argument("--client", type=int, default=150)
    parser.add_argument("--worker", type=int, default=50)
    given = parser.parse_args()
    match given.what:
        case "workers":
            workers(given.size)
        case "memory":
            memory(given.sizes, 2 if given.workers is None else given.workers, given.graph)
        case "tiles":
            tiles(given.tiles)
        case "resume":
            resume(given.workers or 0)
        case "kills":
            kills(given.client, given.worker)


if __name__ == "__main__":
    main()

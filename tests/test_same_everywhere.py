"""One result, wherever the tasks run, in whatever order they end, and however often the run was cut short."""

from __future__ import annotations

import asyncio
import random
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import cloudpickle
import dask
import distributed
import numpy as np
import pyproj
import pytest
import rasterio
from affine import Affine
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from geolabel.datasets.chips import read_chips
from geolabel.datasets.examples import ImageFolder
from geolabel.datasets.pseudo_labels import PseudoLabelWriter
from geolabel.engine import executors, worker
from geolabel.engine.run_folder import RunFolderOptions
from geolabel.engine.tasks import Silent
from geolabel.extraction.extract import run_extract
from geolabel.extraction.outputs import Targets
from geolabel.extraction.plan import Plan, make_plan
from geolabel.extraction.request import ContourMethod, Parameters
from geolabel.extraction.result import Result
from geolabel.extraction.scene_groups import SceneGroups
from geolabel.extraction.segment import GridPrompts, run_segment
from geolabel.io.read.scenes import SceneReader
from geolabel.io.write.rasters import write_geotiff
from geolabel.labelers import UnionLabeler
from geolabel.labeling.cut_chips import cut_chips
from geolabel.labeling.label import label_images
from geolabel.labeling.regions import segment_maps
from geolabel.labels import LabelMap
from geolabel.masks import Filters
from geolabel.parsing import Measure
from geolabel.parts import EverywhereRecipe, Pipeline, label_image
from geolabel.prompters import ContourPrompter
from geolabel.scene import Grid
from geolabel.testing import RECIPES, FakeLocalizer, binary_masks, grids
from geolabel.types import BoolArray, UInt8Array

PLACE = Grid(None, Affine(0.5, 0, 500_000, 0, -0.5, 3_000_000), 1, 1)
NONE = Measure(0, "px")


class Shuffled(Executor):
    """Does what it was given in any order but the right one, and when it is asked for a result at the earliest."""

    def __init__(self, seed: int = 0, dies_after: float = float("inf")) -> None:
        self.random = random.Random(seed)
        self.waiting: list[Callable[[], None]] = []
        self.left = dies_after

    def submit(self, function, item):  # type: ignore[override]
        future = Later(self)
        self.waiting.append(lambda: future.set_result(function(item)))
        return future

    def work(self) -> None:
        if self.left <= 0:
            raise ConnectionError("the machine is gone")
        self.left -= 1
        self.waiting.pop(self.random.randrange(len(self.waiting)))()


class Later(Future):  # type: ignore[type-arg]
    def __init__(self, executor: Shuffled) -> None:
        super().__init__()
        self.executor = executor

    def result(self, timeout=None):
        while not self.done():
            self.executor.work()
        return super().result(timeout)


@contextmanager
def cluster(workers: int, *, processes: bool = False) -> Iterator[None]:
    def see(folder: str) -> None:  # within a function: sent by value, since workers cannot import this module yet
        if folder not in sys.path:
            sys.path.append(folder)

    with (
        distributed.LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=processes,
            dashboard_address="127.0.0.1:0",
            host="127.0.0.1",
            protocol="tcp",
        ) as local,
        distributed.Client(local) as client,
    ):
        client.run(see, str(Path(__file__).parents[1]))
        yield


def draw(path: Path, mask: BoolArray, grid: Grid = PLACE, nodata: float | None = None) -> Path:
    """What is in the mask is bright on dark, noisy ground."""
    noise = np.random.default_rng(0).integers(20, 60, (3, *mask.shape))
    height, width = mask.shape
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        dtype="uint8",
        count=3,
        height=height,
        width=width,
        nodata=nodata,
        crs="EPSG:32648" if grid.crs is None else grid.crs.to_wkt(),
        transform=grid.transform,
        photometric="rgb",
    ) as target:
        target.write(np.where(mask, 230, noise).astype(np.uint8))
    return path


def country(size: int = 300) -> BoolArray:
    """Objects at seams, at corners, over many blocks, and with holes across seams."""
    rows, cols = np.mgrid[:size, :size]
    ring = np.hypot(rows - 128, cols - 130)
    mask = (ring < 60) & (ring > 25) | (abs(rows - cols - 90) < 9) & (rows > 200)
    mask |= (np.hypot(rows - 30, cols - 250) < 14) | (rows > 280) & (cols < 90)
    return np.asarray(mask)


def planned(scene: Path, **parameters: Any) -> Plan:
    options: dict[str, Any] = {
        "tile_size": 64,
        "overlap": 16,
        "block_size": 96,
        "threads": 1,
        "min_area": NONE,
        "max_hole": NONE,
        "simplify": NONE,
    }
    own = {name: parameters.pop(name) for name in ContourMethod.options() if name in parameters}
    parameters["method"] = ContourMethod(**own)
    return make_plan(SceneReader(scene), *RECIPES, Parameters(**(options | parameters)), stretch="0,255")


def run(plan: Plan, folder: Path, name: str = "slides") -> Result:
    targets = Targets.of(folder / f"{name}.gpkg", folder / f"{name}_score.tif", folder / f"{name}_mask.tif")
    return run_extract(SceneGroups.of(plan), targets)


def outputs(folder: Path, name: str = "slides") -> list[bytes]:
    return [(folder / f"{name}{end}").read_bytes() for end in (".gpkg", "_score.tif", "_mask.tif")]


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw(tmp_path_factory.mktemp("scene") / "scene.tif", country())


@pytest.fixture(scope="module")
def expected(scene: Path, tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    folder = tmp_path_factory.mktemp("expected")
    with dask.config.set(scheduler="synchronous"):
        found = run(planned(scene), folder)
    assert len(found.landslides) == 4
    assert found.report.tasks > 30
    return outputs(folder)


@pytest.mark.parametrize(
    "scheduler", ["threads", Shuffled(1), Shuffled(2), dask.get], ids=["threads", "shuffled", "again", "dask.get"]
)
def test_schedulers_of_this_process(scene: Path, expected: list[bytes], tmp_path: Path, scheduler: object) -> None:
    with dask.config.set(scheduler=scheduler):
        run(planned(scene), tmp_path)
    assert outputs(tmp_path) == expected


def test_the_pool_and_the_number_of_threads_that_dask_is_configured_for() -> None:
    threads: set[str] = set()

    def note(item: int) -> int:
        threads.add(threading.current_thread().name)
        return item

    with ThreadPoolExecutor(2, "mine") as pool, dask.config.set(pool=pool):
        assert list(executors.ordered(note, range(9))) == list(range(9))
    assert {name.partition("_")[0] for name in threads} == {"mine"}
    threads.clear()
    with dask.config.set(num_workers=1):
        assert list(executors.ordered(note, range(9))) == list(range(9))
    assert len(threads) == 1


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_workers_of_a_cluster(scene: Path, expected: list[bytes], tmp_path: Path, workers: int) -> None:
    with cluster(workers):
        run(planned(scene), tmp_path)
    assert outputs(tmp_path) == expected


def test_processes_of_a_cluster(scene: Path, expected: list[bytes], tmp_path: Path) -> None:
    with cluster(2, processes=True):
        found = run(planned(scene), tmp_path)
    assert outputs(tmp_path) == expected
    assert len(found.report.peak_bytes) == 2


cloudpickle.register_pickle_by_value(sys.modules[__name__])  # which workers cannot import


def extract_here(scene: Path, folder: Path) -> None:
    run(planned(scene), folder)


@pytest.mark.parametrize("processes", [False, True])
def test_a_task_of_a_cluster_whose_only_slot_it_takes(
    scene: Path, expected: list[bytes], tmp_path: Path, processes: bool
) -> None:
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder in folders:
        folder.mkdir()

    def work(scene: Path, folder: Path) -> None:  # not of the module, which pickle would let workers import
        extract_here(scene, folder)

    with cluster(1, processes=processes):
        client = distributed.get_client()
        for task in client.map(work, [scene] * 2, folders, pure=False):
            task.result(timeout=60)
        client.compute(dask.delayed(work)(scene, tmp_path)).result(timeout=60)
    assert outputs(folders[0]) == outputs(folders[1]) == outputs(tmp_path) == expected


def test_a_thread_beside_a_client(scene: Path, expected: list[bytes], tmp_path: Path) -> None:
    with cluster(1), ThreadPoolExecutor(1) as pool:
        pool.submit(extract_here, scene, tmp_path).result(timeout=120)
    assert outputs(tmp_path) == expected


def test_a_task_of_the_executor_that_dask_is_configured_for(scene: Path, expected: list[bytes], tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as pool, dask.config.set(scheduler=pool):
        pool.submit(extract_here, scene, tmp_path).result(timeout=120)
    assert outputs(tmp_path) == expected


def test_a_coroutine_with_an_asynchronous_client(scene: Path, expected: list[bytes], tmp_path: Path) -> None:
    async def work() -> None:
        async with (
            distributed.LocalCluster(
                n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None, asynchronous=True
            ) as local,
            distributed.Client(local, asynchronous=True) as client,
        ):
            extract_here(scene, tmp_path)
            await asyncio.to_thread(extract_here, scene, tmp_path / "thread")
            await client.submit(extract_here, scene, tmp_path / "task")

    for name in ("thread", "task"):
        (tmp_path / name).mkdir()
    asyncio.run(work())
    assert outputs(tmp_path) == outputs(tmp_path / "thread") == outputs(tmp_path / "task") == expected


# What is made of images and of scenes beside landslides


@dataclass(frozen=True)
class Labels:
    """A method of stand-ins, as workers label with it."""

    def __call__(self, names: Sequence[str], images: Sequence[UInt8Array]) -> list[LabelMap]:
        segmenter = worker.segmenter(RECIPES[1])
        pipeline = Pipeline(FakeLocalizer(), ContourPrompter(), segmenter, UnionLabeler())
        return [label_image(pipeline, image, 64) for image in images]


def make_labels(inputs: Path, folder: Path) -> None:
    writer = PseudoLabelWriter(folder / "labels", ("background", "landslide"), {"method": "test"})
    label_images(ImageFolder(inputs / "images"), Labels(), writer, networks=RECIPES, progress=Silent())


def make_segment_maps(inputs: Path, folder: Path) -> None:
    chips = read_chips(inputs)
    segment_maps(chips, RECIPES[1], folder / "maps", filters=Filters(), points_per_side=4, progress=Silent())


def make_chips(inputs: Path, folder: Path) -> None:
    with patch("geolabel.labeling.cut_chips._TASK_PIXELS", 2 * 64**2):
        cut_chips(inputs / "scene.tif", inputs / "truth.tif", folder / "chips", size=64, overlap=16)


def make_segments(inputs: Path, folder: Path) -> None:
    parameters = Parameters(tile_size=64, overlap=16, threads=1)
    plan = make_plan(SceneReader(inputs / "scene.tif"), EverywhereRecipe(), RECIPES[1], parameters, stretch="0,255")
    found = run_segment(plan, Targets.of(folder / "segments.gpkg"), GridPrompts(points_per_side=4))
    assert len(found.segments) > 9


MAKERS = [make_labels, make_segment_maps, make_chips, make_segments]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scene, what is bright in it as a raster, and a table of images."""
    folder, mask = tmp_path_factory.mktemp("inputs"), country(200)
    draw(folder / "scene.tif", mask)
    grid = replace(PLACE, crs=pyproj.CRS(32648), height=200, width=200)
    write_geotiff(folder / "truth.tif", mask.astype(np.uint8), grid, description="")
    (folder / "images").mkdir()
    for number in range(5):
        part = mask[20 * number :, :90]
        Image.fromarray(np.where(part[..., None], 230, np.uint8([30, 40, 50]))).save(folder / f"images/{number}.png")
    rows = "".join(f"images/{number}.png,{number % 2}\n" for number in range(5))
    (folder / "labels.csv").write_text("image,label\n" + rows)
    return folder


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def made(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What all makers make, one task after the other."""
    folder = tmp_path_factory.mktemp("made")
    with dask.config.set(scheduler="synchronous"):
        for make in MAKERS:
            make(inputs, folder)
    found = files_in(folder)
    assert {name.split("/")[0] for name in found} == {"labels", "maps", "chips", "segments.gpkg"}
    assert len(found) > 30
    return found


def test_threads_of_this_process_make_the_same(inputs: Path, made: dict[str, bytes], tmp_path: Path) -> None:
    for make in MAKERS:
        make(inputs, tmp_path)
    assert files_in(tmp_path) == made


def test_tasks_in_any_order_make_the_same(inputs: Path, made: dict[str, bytes], tmp_path: Path) -> None:
    with dask.config.set(scheduler=Shuffled(4)):
        for make in MAKERS:
            make(inputs, tmp_path)
    assert files_in(tmp_path) == made


def test_processes_of_a_cluster_make_the_same(inputs: Path, made: dict[str, bytes], tmp_path: Path) -> None:
    with cluster(2, processes=True):
        for make in MAKERS:
            make(inputs, tmp_path)
    assert files_in(tmp_path) == made


def test_a_task_of_a_cluster_makes_the_same(inputs: Path, made: dict[str, bytes], tmp_path: Path) -> None:
    def work(inputs: Path, folder: Path) -> None:  # not of the module, which pickle would let workers import
        for make in MAKERS:
            make(inputs, folder)

    with cluster(1):
        distributed.get_client().submit(work, inputs, tmp_path, pure=False).result(timeout=120)
    assert files_in(tmp_path) == made


@pytest.mark.parametrize("make", MAKERS)
def test_what_was_cut_short_resumes(
    make: Callable[[Path, Path], None], inputs: Path, made: dict[str, bytes], tmp_path: Path
) -> None:
    with dask.config.set(scheduler=Shuffled(1, dies_after=3)), pytest.raises(ConnectionError):
        make(inputs, tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.suffix in (".png", ".safetensors")]
    make(inputs, tmp_path)
    found = files_in(tmp_path)
    assert found == {name: made[name] for name in found}
    assert found


@pytest.mark.slow
def test_processes_of_dask(scene: Path, expected: list[bytes], tmp_path: Path) -> None:
    with dask.config.set(scheduler="processes", num_workers=2):
        run(planned(scene), tmp_path)
    assert outputs(tmp_path) == expected


@pytest.mark.parametrize("block_size", [31, 64, 1000])
def test_blocks_of_any_size(scene: Path, expected: list[bytes], tmp_path: Path, block_size: int) -> None:
    run(planned(scene, block_size=block_size), tmp_path)
    assert outputs(tmp_path)[1:] == expected[1:]  # the inventory says which size it was


@pytest.mark.parametrize("done", [1, 40])
def test_a_run_that_was_cut_short(scene: Path, expected: list[bytes], tmp_path: Path, done: int) -> None:
    with dask.config.set(scheduler=Shuffled(done, dies_after=done)), pytest.raises(ConnectionError):
        run(planned(scene), tmp_path)
    assert (tmp_path / "slides.gpkg.run").is_dir()
    found = run(planned(scene), tmp_path)
    assert outputs(tmp_path) == expected
    assert found.report.tasks_kept == done
    assert not (tmp_path / "slides.gpkg.run").exists()


def test_a_run_that_was_cut_short_again_and_again(scene: Path, expected: list[bytes], tmp_path: Path) -> None:
    kept = []
    for attempt in range(100):
        try:
            with dask.config.set(scheduler=Shuffled(attempt, dies_after=8 + (kept[-1] if kept else 0))):
                kept.append(run(planned(scene), tmp_path).report.tasks_kept)
            break
        except ConnectionError:
            kept.append(len(list(tmp_path.glob("slides.gpkg.run/*-done/*.safetensors"))))
    assert len(kept) > 2  # it was cut short more than once
    assert kept == sorted(kept)
    assert outputs(tmp_path) == expected


@settings(max_examples=4, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    mask=binary_masks(30),
    grid=grids(),
    overlap=st.sampled_from([0, 5, 24]),
    blocks=st.tuples(*[st.integers(25, 90)] * 2),
    seed=st.integers(0, 99),
    done=st.integers(1, 30),
    magnify=st.integers(2, 3),
)
def test_any_scene(
    tmp_path_factory: pytest.TempPathFactory,
    mask: BoolArray,
    grid: Grid,
    overlap: int,
    blocks: tuple[int, int],
    seed: int,
    done: int,
    magnify: int,
) -> None:
    """Objects that touch seams, diagonals, holes across seams, objects over many blocks; any transform."""
    folder = tmp_path_factory.mktemp("any")
    scene = draw(folder / "scene.tif", np.kron(mask, np.ones((magnify, magnify), bool)), grid)

    def plan(block_size: int) -> Plan:
        return planned(scene, tile_size=32, overlap=overlap, block_size=block_size)

    with dask.config.set(scheduler="synchronous"):
        run(plan(blocks[0]), folder, "plain")
    with dask.config.set(scheduler=Shuffled(seed, dies_after=done)):
        try:
            run(plan(blocks[1]), folder, "cut")
        except ConnectionError:
            with dask.config.set(scheduler=Shuffled(seed)):
                again = run(plan(blocks[1]), folder, "cut")
            assert again.report.tasks_kept == done
    assert outputs(folder, "cut")[1:] == outputs(folder, "plain")[1:]


@pytest.mark.slow
def test_the_bundled_networks(tmp_path: Path) -> None:
    from geolabel.extraction.request import Networks, Reading
    from geolabel.extraction.scene_groups import prepare
    from geolabel.labeling.synthesize import synthesize

    scene = tmp_path / "scene.tif"
    synthesize(scene, size=(600, 700), gsd=0.5, seed=900100)

    def extract(name: str, block_size: int = 512) -> list[bytes]:
        parameters = Parameters(threads=1, block_size=block_size, tile_size=128)
        plan = prepare(scene, Reading(), Networks(device="cpu"), parameters)
        with rasterio.Env(GDAL_CACHEMAX=64 << 20):
            assert len(run(plan, tmp_path, name).landslides)
        return outputs(tmp_path, name)

    with dask.config.set(scheduler="synchronous"):
        reference = extract("reference")
    for scheduler in ("threads", Shuffled(3)):
        with dask.config.set(scheduler=scheduler):
            assert extract(f"run-{id(scheduler)}") == reference
    with dask.config.set(scheduler=Shuffled(5, dies_after=9)), pytest.raises(ConnectionError):
        extract("cut")
    assert extract("cut") == reference
    assert extract("blocks", 333)[1:] == reference[1:]
    for workers in (1, 2, 4):
        with cluster(workers, processes=True):
            assert extract(f"workers-{workers}") == reference


def test_what_differs_is_told_and_overwritten_only_when_asked(scene: Path, tmp_path: Path) -> None:
    from geolabel.errors import RunError

    with dask.config.set(scheduler=Shuffled(dies_after=9)), pytest.raises(ConnectionError) as caught:
        run(planned(scene), tmp_path)
    assert "run the same command again" in caught.value.__notes__[0]
    with pytest.raises(RunError, match=r"parameters\.gate was 0\.5 and is 0\.25 now.*--overwrite"):
        run(planned(scene, gate=0.25), tmp_path)
    targets = replace(Targets.of(tmp_path / "slides.gpkg"), overwrite=True)
    assert run_extract(SceneGroups.of(planned(scene, gate=0.25)), targets).report.tasks_kept == 0


def test_records_stay_when_asked_for(scene: Path, tmp_path: Path) -> None:
    run_folder = RunFolderOptions(tmp_path / "here", keep=True)
    first = run_extract(SceneGroups.of(planned(scene)), Targets.of(None), run_folder=run_folder)
    again = run_extract(SceneGroups.of(planned(scene)), Targets.of(None), run_folder=run_folder)
    assert again.report.tasks_kept == again.report.tasks == first.report.tasks
    assert again.landslides.to_wkb().equals(first.landslides.to_wkb())

"""What machines do: processes die, disks fill, networks answer nonsense. The run ends right, or says what to do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import dask
import distributed
import numpy as np
import psutil
import pytest
import rasterio
from affine import Affine

from geolabel.activation import Activation
from geolabel.engine import executors, worker
from geolabel.engine.tasks import Pass, Recorded
from geolabel.errors import ClusterError, MemoryLimitError, OptionError, OutputError, TileError
from geolabel.extraction.extract import run_extract
from geolabel.extraction.outputs import Targets
from geolabel.extraction.plan import make_plan
from geolabel.extraction.request import Parameters
from geolabel.extraction.result import Result
from geolabel.extraction.scene_groups import SceneGroups
from geolabel.io.read.scenes import SceneReader
from geolabel.io.storage import FolderStorage
from geolabel.masks import Masks
from geolabel.prompts import Prompts
from geolabel.testing import RECIPES, FakeLocalizer, FakeSegmenter
from geolabel.types import UInt8Array

SIZE = 420

SECONDS = 0.02
"""That a stand-in takes for an image, in runs that are disturbed."""

SCRIPT = """
import sys
from dataclasses import replace
from geolabel.cli.workers import at_work
from geolabel.cli.main import run as command
from geolabel.io.read.scenes import SceneReader
from geolabel.extraction import scene_groups
from geolabel.extraction.plan import make_plan
from geolabel.extraction.request import Parameters
from geolabel.testing import RECIPES

def prepare_scenes(scenes, *_, **__):
    slow = [replace(recipe, source="stand-in:{seconds}") for recipe in RECIPES]
    parameters = Parameters(tile_size=48, overlap=16, block_size=100)
    plan = make_plan(SceneReader(scenes[0].source), *slow, parameters, stretch="0,255")
    return scene_groups.SceneGroups.of(plan)

scene_groups.prepare_scenes = prepare_scenes
if __name__ == "__main__":
    sys.exit(command(sys.argv[1:]))
"""
"""The command line on stand-ins that take their time."""


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    path = tmp_path / "scene.tif"
    rows, cols = np.mgrid[:SIZE, :SIZE]
    mask = (rows // 40 + cols // 60) % 3 == 0
    noise = np.random.default_rng(0).integers(20, 60, (3, SIZE, SIZE))
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        dtype="uint8",
        count=3,
        height=SIZE,
        width=SIZE,
        crs="EPSG:32648",
        photometric="rgb",
        transform=Affine(0.5, 0, 5e5, 0, -0.5, 3e6),
    ) as target:
        target.write(np.where(mask, 230, noise).astype(np.uint8))
    return path


def run(scene: Path, out: Path | None = None, **parameters: Any) -> Result:
    given = Parameters(**({"tile_size": 48, "overlap": 16, "block_size": 100} | parameters))
    return run_extract(SceneGroups.of(make_plan(SceneReader(scene), *RECIPES, given, stretch="0,255")), Targets.of(out))


def start(scene: Path, out: Path, *options: str) -> subprocess.Popen[str]:
    script = scene.with_name("run.py")
    script.write_text(SCRIPT.format(seconds=SECONDS))
    command = [sys.executable, str(script), "extract", str(scene), "--out", str(out), *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def records(out: Path) -> int:
    return len(list(out.with_name(out.name + ".run").glob("*-done/*.safetensors")))


def until(condition: Any, limit: float = 200) -> None:
    end = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def as_the_command_writes_it(scene: Path, threads: int | None = None) -> bytes:
    """The inventory of a run that nothing disturbed, by the same recipes."""
    slow = [replace(recipe, source=f"stand-in:{SECONDS}") for recipe in RECIPES]
    given = Parameters(tile_size=48, overlap=16, block_size=100, threads=threads)
    out = scene.with_name("whole.gpkg")
    run_extract(SceneGroups.of(make_plan(SceneReader(scene), *slow, given, stretch="0,255")), Targets.of(out))
    return out.read_bytes()


# The client


def test_a_killed_client_loses_at_most_what_was_at_work(scene: Path, tmp_path: Path) -> None:
    out = tmp_path / "slides.gpkg"
    victim = start(scene, out)
    until(lambda: records(out) >= 2)
    victim.kill()
    victim.communicate()
    done = records(out)
    assert not out.exists()
    again = start(scene, out, "--json")
    said, _ = again.communicate(timeout=200)
    assert again.returncode == 0
    assert f'"tasks_kept": {done}' in said
    assert out.read_bytes() == as_the_command_writes_it(scene)


def test_ctrl_c_finishes_what_is_at_work_and_says_how_to_go_on(scene: Path, tmp_path: Path) -> None:
    out = tmp_path / "slides.gpkg"
    victim = start(scene, out)
    until(lambda: records(out) >= 1)
    victim.send_signal(signal.SIGINT)
    _, said = victim.communicate(timeout=200)
    assert victim.returncode == 130
    assert f"finished work is kept in {out}.run: run the same command again to resume" in said
    assert "Traceback" not in said
    assert not list((tmp_path / "slides.gpkg.run").rglob("*.part"))
    done = records(out)
    again = start(scene, out, "--json")
    said, _ = again.communicate(timeout=200)
    assert again.returncode == 0
    assert f'"tasks_kept": {done}' in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.py", "scene.tif", "slides.gpkg"]


@pytest.mark.slow
def test_two_runs_do_not_share_a_folder(scene: Path, tmp_path: Path) -> None:
    out = tmp_path / "slides.gpkg"
    first = start(scene, out)
    until(lambda: records(out) >= 1)
    second = start(scene, out)
    _, said = second.communicate(timeout=200)
    assert second.returncode == 1
    assert "is in use by process" in said
    first.communicate(timeout=200)
    assert first.returncode == 0


# The workers


@pytest.mark.slow
def test_killed_workers_change_nothing(scene: Path, tmp_path: Path) -> None:
    out = tmp_path / "slides.gpkg"
    running = start(scene, out, "--workers", "2", "--threads", "1")
    done = 0
    for _ in range(2):
        until(lambda: records(out) > done or running.poll() is not None)  # noqa: B023
        done = records(out) + 2
        workers = [
            child for child in psutil.Process(running.pid).children() if "spawn_main" in " ".join(child.cmdline())
        ]
        for victim in workers[:1]:
            victim.kill()
    _, said = running.communicate(timeout=200)
    assert running.returncode == 0, said
    assert out.read_bytes() == as_the_command_writes_it(scene)


@pytest.mark.slow
def test_ctrl_c_with_workers(scene: Path, tmp_path: Path) -> None:
    """As a terminal sends it: to the whole group of processes."""
    out = tmp_path / "slides.gpkg"
    victim = start(scene, out, "--workers", "1")
    until(lambda: records(out) >= 1)
    os.killpg(victim.pid, signal.SIGINT)
    _, said = victim.communicate(timeout=200)
    assert victim.returncode == 130, said
    assert "run the same command again to resume" in said
    done = records(out)
    again = start(scene, out, "--json")
    said, _ = again.communicate(timeout=200)
    assert f'"tasks_kept": {done}' in said


def die(_: int) -> None:
    os._exit(9)


def test_a_task_that_kills_its_workers_is_named() -> None:
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        distributed.LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address="127.0.0.1:0") as local,
        distributed.Client(local),
        pytest.raises(executors.TaskLostError, match="memory ran out") as caught,
    ):
        list(executors.ordered(die, [0, 1]))
    assert caught.value.number == 0


def test_workers_that_do_not_come_back_end_the_run() -> None:
    with (
        dask.config.set({executors.PATIENCE: "1s"}),
        distributed.LocalCluster(
            n_workers=1, processes=False, protocol="tcp", dashboard_address="127.0.0.1:0", threads_per_worker=1
        ) as local,
        distributed.Client(local),
    ):
        results = executors.ordered(slowly, range(200))
        next(results)
        local.scale(0)
        with pytest.raises(ClusterError, match="no worker is left"):
            list(results)
        with pytest.raises(ClusterError, match="no worker is left"):
            list(executors.ordered(slowly, range(3)))


def test_a_lost_scheduler_is_an_error_that_says_how_to_go_on() -> None:
    with (
        distributed.LocalCluster(
            n_workers=1, processes=False, protocol="tcp", dashboard_address="127.0.0.1:0", threads_per_worker=1
        ) as local,
        distributed.Client(local, timeout=1) as client,
    ):
        results = executors.ordered(slowly, range(20))
        next(results)
        client.cluster.scheduler.loop.add_callback(client.cluster.scheduler.close)
        with pytest.raises(ClusterError, match="the same command resumes"):
            list(results)
        with pytest.raises(ClusterError, match="the scheduler is gone"):
            list(executors.ordered(slowly, range(3)))
    distributed.client._del_global_client(client)  # which keeps looking for its scheduler


def slowly(number: int) -> int:
    time.sleep(0.1)
    return number


def test_no_scheduler_at_an_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    from geolabel.cli import workers
    from geolabel.cli.main import run as command

    monkeypatch.setattr(workers, "CONNECT_S", 0.5)
    (tmp_path / "scene.tif").touch()
    words = ["extract", str(tmp_path / "scene.tif"), "--out", str(tmp_path / "a.gpkg")]
    words += ["--scheduler", "tcp://127.0.0.1:9"]
    assert command(words) == 1
    assert "no scheduler answers at tcp://127.0.0.1:9" in capsys.readouterr().err
    (tmp_path / "scheduler.json").write_text("{}")
    assert command([*words[:-1], str(tmp_path / "scheduler.json")]) == 1


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"workers": 2, "scheduler": "tcp://a:1"}, "give one of them"),
        ({"tls_cert": "a.pem"}, "are for a --scheduler"),
    ],
)
def test_options_that_contradict_each_other(given: dict[str, Any], says: str) -> None:
    from geolabel.cli.workers import ExecutorOptions, at_work

    options = dict.fromkeys(ExecutorOptions.__dataclass_fields__) | {"device": "cpu"} | given
    with pytest.raises(OptionError, match=says), at_work(options):
        pass


def test_an_unknown_scheduler_of_dask() -> None:
    with dask.config.set(scheduler="abacus"), pytest.raises(OptionError, match="abacus"):
        list(executors.ordered(slowly, [1]))


def test_a_worker_that_does_not_see_an_output_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    executors.check_seen(Path(__file__))
    monkeypatch.setattr(executors, "everywhere", lambda *_: {"tcp://a:1": True, "tcp://b:2": False})
    with pytest.raises(ClusterError, match=f"tcp://b:2 does not see {tmp_path}: give a folder that all workers"):
        executors.check_seen(tmp_path / "run.json")


def test_memory_that_runs_out_is_told_with_the_task(tmp_path: Path) -> None:
    from geolabel.io.records import Store

    def hungry(job: int) -> None:
        raise MemoryError("Unable to allocate 64. GiB")

    with pytest.raises(MemoryLimitError, match=r"task 3 of pass localize .*64 GiB wanted.*--tile-size"):
        Recorded(Pass("localize", hungry, None).bind(), Store(tmp_path))((3, 0))


# The disk


def test_a_full_disk_ends_the_run_and_room_lets_it_go_on(
    scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, write, written = tmp_path / "slides.gpkg", FolderStorage._write, []

    def fills_up(self: FolderStorage, target: Path, fill: Any) -> None:
        if target.suffix == ".safetensors":
            written.append(target)
            if len(written) > 30:
                raise OSError(28, "No space left on device")
        write(self, target, fill)

    with monkeypatch.context() as patch:
        patch.setattr(FolderStorage, "_write", fills_up)
        with pytest.raises(OutputError, match="No space left") as caught:
            run(scene, out)
    assert "run the same command again" in caught.value.__notes__[0]
    found = run(scene, out)
    assert 0 < found.report.tasks_kept <= 30
    assert found.landslides.to_wkb().equals(run(scene).landslides.to_wkb())


# The networks


class Nonsense(FakeLocalizer):
    """Answers tiles whose first pixel is bright with values that are no numbers."""

    def __call__(self, images: Sequence[UInt8Array]) -> list[Activation]:
        answers = super().__call__(images)
        for image, answer in zip(images, answers, strict=True):
            if image[0, 0].max() > 200:
                answer.values[:] = np.nan
        return answers


class Doubtful(FakeSegmenter):
    def __call__(self, images: Sequence[UInt8Array], prompts: Sequence[Prompts]) -> list[Masks]:
        answers = super().__call__(images, prompts)
        if images[0][0, 0].max() > 200:
            answers[0].predicted_iou[:1] = np.nan
        return answers


@pytest.mark.parametrize("role", ["localizer", "segmenter"])
def test_a_network_that_answers_no_numbers(
    scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, role: str
) -> None:
    networks: dict[str, Any] = {"localizer": FakeLocalizer(stride=4), "segmenter": FakeSegmenter()}
    networks[role] = Nonsense(stride=4) if role == "localizer" else Doubtful()
    monkeypatch.setattr(worker, "_load", lambda recipe: networks[recipe.role])
    with pytest.raises(TileError, match=rf"the {role} returns values that are not finite for row .*--on-error skip"):
        run(scene, tmp_path / "slides.gpkg")
    found = run(scene, tmp_path / "slides.gpkg", on_error="skip")
    assert found.report.gaps
    assert all("not finite" in gap for gap in found.report.gaps)
    assert 0 < found.report.tiles_failed < found.report.tiles or role == "segmenter"
    assert len(found.landslides)

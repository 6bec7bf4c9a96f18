"""The folder of a run: its key, its lock, its records, and what is said of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import rasterio
from safetensors.numpy import save_file
from scenes import write_raster

from geolabel.cli.main import run as command
from geolabel.engine import run_state
from geolabel.engine.run_folder import Folder, RunFolderOptions, clean, find_runs, opened, summarize, written_by
from geolabel.engine.run_state import STOP, Holder, State, difference, holder, locked
from geolabel.engine.tasks import Pass, Recorded, pack, unpack
from geolabel.errors import OutputError, RunError
from geolabel.extraction.extract import run_extract
from geolabel.extraction.outputs import Targets
from geolabel.extraction.passes import MaskTable, Regions, TileReport
from geolabel.extraction.plan import make_plan
from geolabel.extraction.request import ContourMethod, Parameters
from geolabel.extraction.scene_groups import SceneGroups
from geolabel.extraction.vectorize import Sums
from geolabel.extraction.work import ALLOWED, run_key
from geolabel.io import storage
from geolabel.io.read.fingerprints import fingerprint
from geolabel.io.read.scenes import SceneReader
from geolabel.io.records import Store
from geolabel.io.storage import FolderStorage, storage_at
from geolabel.spans import Spans
from geolabel.testing import RECIPES
from geolabel.tiles import Window
from geolabel.types import AnyArray

# Results as records

THREE = np.arange(3, dtype=np.int32)
RESULTS = [
    True,
    [TileReport(4, "clear", 0.1 + 0.2), TileReport(5, "failed", None, "why")],
    Regions(Spans(THREE, THREE, THREE + 1), THREE.astype(np.int64)),
    MaskTable(
        np.zeros((0, 4), np.int64),
        THREE.astype(np.int64),
        THREE / 3,
        THREE / 7,
        THREE > 1,
        THREE,
        ((Window(1, 2, 3, 4), "x"),),
    ),
    ([Spans.empty()], False),
    Sums(THREE, ("score",), np.ones((1, 3), np.int64), np.ones((1, 3), np.int64), np.ones((2, 3), np.int64)),
    np.asarray([np.nan, 1.5]),
]
RECORDS = list[TileReport] | Regions | MaskTable | Sums
"""Types of these, with those of their fields."""


@pytest.mark.parametrize("result", RESULTS, ids=lambda value: type(value).__name__)
def test_a_result_comes_back_as_it_was(result: object, tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write("x-done", 0, pack(result))
    assert same(unpack(store.read("x-done", 0), RECORDS), result)


def same(a: object, b: object) -> bool:
    if isinstance(b, np.ndarray):
        assert isinstance(a, np.ndarray)
        return a.dtype == b.dtype and np.array_equal(a, b, equal_nan=b.dtype.kind == "f")
    if isinstance(b, tuple | list):
        return type(a) is type(b) and all(same(x, y) for x, y in zip(a, b, strict=True))  # type: ignore[call-overload]
    if hasattr(b, "__dataclass_fields__"):
        return type(a) is type(b) and all(same(getattr(a, name), getattr(b, name)) for name in b.__dataclass_fields__)
    return bool(a == b)


@pytest.mark.parametrize(
    "outline",
    [
        "",
        "[",
        '{"os.system": ["x"]}',
        '{"array": 7}',
        '{"Window": [1]}',
        '{"a": 1, "b": 2}',
        '{"Window": 5}',
        "[" * 9999,
    ],
)
def test_what_is_no_result_is_refused(outline: str) -> None:
    with pytest.raises(OutputError, match="not as it was written"):
        unpack({"outline": np.frombuffer(outline.encode() or b" ", np.uint8)}, MaskTable)


def recorded(name: str, function: Callable[[int], Any], record: Any, store: Store, pixels: str | None = None) -> Any:
    return Recorded(Pass(name, function, record, pixels=pixels).bind(), store)


def test_a_pass_returns_what_it_says(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="pass square returned"):
        recorded("square", lambda job: [job], list[str], Store(tmp_path))((0, 7))


def test_a_record_makes_no_type_that_its_pass_does_not_name() -> None:
    arrays = pack(Window(1, 2, 3, 4))
    assert unpack(arrays, tuple[Window, bool]) == Window(1, 2, 3, 4)
    with pytest.raises(OutputError, match="'Window'"):
        unpack(arrays, TileReport)


def test_a_task_is_done_once(tmp_path: Path) -> None:
    calls = []
    task = recorded("square", lambda job: calls.append(job) or np.asarray([job]), AnyArray, Store(tmp_path))
    first, again = task((3, 7)), task((3, 7))
    assert calls == [7]
    assert (first.kept, again.kept) == (False, True)
    assert again.result == first.result == [7]
    assert again.peak_bytes > 1e6


def test_a_damaged_result_is_found_again(tmp_path: Path) -> None:
    task = recorded("square", lambda job: np.asarray([job]), AnyArray, Store(tmp_path))
    task((0, 7))
    (tmp_path / "square-done" / "00000000.safetensors").write_bytes(b"half of it")
    assert not task((0, 7)).kept
    assert task((0, 7)).kept


def test_a_result_of_another_kind_is_found_again(tmp_path: Path) -> None:
    def count(number: int) -> list[int]:
        return [number]

    store = Store(tmp_path)
    for found in (["7"], {"tuple": [7]}, [1.5], True):
        text = np.frombuffer(json.dumps({"list": found} if isinstance(found, list) else found).encode(), np.uint8)
        store.write("count-done", 7, {"outline": text})
        outcome = recorded("count", count, list[int], store)((7, 7))
        assert outcome.result == [7]
        assert not outcome.kept


@pytest.mark.parametrize(
    "text",
    [
        '{"format": 2, "key": ' + "[" * 400 + "]" * 400 + "}",
        '{"format": 2, "key": {"a": ' + "[" * 400 + "]" * 400 + '}, "started": "", "overwrite": false, "status": "", '
        '"message": "", "passes": {}, "written": {}}',
        "[" * 100_000,
        " " * (17 << 20),
    ],
    ids=["no key", "deep", "deeper", "long"],
)
def test_what_calls_itself_a_run(text: str, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(RunError):
        summarize(tmp_path)
    for overwrite in (False, True):
        with pytest.raises(RunError, match="cannot be read by this version of geolabel"):
            Folder(Store(tmp_path)).begin({}, overwrite=overwrite)
    assert written_by(tmp_path) == frozenset()


def test_records_that_do_not_belong_together_are_an_error(scene: Path, tmp_path: Path) -> None:
    plan = make_plan(SceneReader(scene), *RECIPES, Parameters(tile_size=48, overlap=16), stretch="0,255")
    run_folder = RunFolderOptions(tmp_path / "run", keep=True)
    run_extract(SceneGroups.of(plan), Targets.of(None), run_folder=run_folder)
    store = Store(tmp_path / "run")
    store.write("localize", 0, store.read("localize", 0) | {"activation_0": np.zeros((1, 2, 3), np.uint8)})
    for number in range(store.count("prompt-done")):
        (tmp_path / "run" / store.name("prompt-done", number)).unlink()
    with pytest.raises(RunError, match="records of an earlier run, and resuming from them failed"):
        run_extract(SceneGroups.of(plan), Targets.of(None), run_folder=run_folder)


def test_a_result_without_its_pixels_is_found_again(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def merge(job: int) -> bool:
        store.write("mosaic", job, {"scores": THREE})
        return True

    task = recorded("merge", merge, bool, store, pixels="mosaic")
    task((0, 0))
    assert task((0, 0)).kept
    pixels = tmp_path / "mosaic" / "00000000.safetensors"
    pixels.write_bytes(pixels.read_bytes()[:-30])
    assert not task((0, 0)).kept
    nothing = recorded("merge", lambda job: False, bool, store, pixels="mosaic")
    nothing((1, 1))
    assert nothing((1, 1)).kept  # a block where nothing is has no pixels


def test_a_run_that_is_to_stop_begins_no_task(tmp_path: Path) -> None:
    task = recorded("same", lambda job: job, int, Store(tmp_path))
    task((0, 1))
    (tmp_path / STOP).touch()
    assert task((1, 1)).stopped
    assert task((0, 1)).kept


# Places


def flaky(times: int):
    """The memory of this process as a store that fails so often before it answers."""

    class Flaky(fsspec.get_filesystem_class("memory")):  # type: ignore[misc]
        protocol = "flaky"
        left = times
        store: dict = {}  # noqa: RUF012
        pseudo_dirs = [""]  # noqa: RUF012

        def _fail(self) -> None:
            if type(self).left > 0:
                type(self).left -= 1
                raise OSError(5, "Input/output error")

        def pipe_file(self, *args, **kwargs):
            self._fail()
            return super().pipe_file(*args, **kwargs)

        def cat_file(self, *args, **kwargs):
            self._fail()
            return super().cat_file(*args, **kwargs)

    fsspec.register_implementation("flaky", Flaky, clobber=True)
    fsspec.get_filesystem_class("flaky").clear_instance_cache()
    return Flaky


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "WAITS", (0.0, 0.0, 0.0))
    monkeypatch.setattr("geolabel.io.records._storage", storage.storage_at)


def test_a_store_that_fails_for_a_while_is_asked_again(quick: None) -> None:
    kind = flaky(3)
    store = Store("flaky://bucket/run")
    store.write("a", 0, {"x": THREE})
    kind.left = 2
    assert np.array_equal(store.read("a", 0)["x"], THREE)
    assert store.count("a") == 1
    store.remove()
    assert not list(store.storage.names())


def test_a_store_that_goes_on_failing_is_an_error(quick: None) -> None:
    flaky(99)
    with pytest.raises(OutputError, match="could not be written: Input/output error"):
        Store("flaky://bucket/run").write("a", 0, {"x": THREE})


def test_a_full_disk_is_not_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def full(*_: object) -> None:
        asked.append(1)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(FolderStorage, "_write", full)
    with pytest.raises(OutputError, match=r"No space left.*same command resumes"):
        Store(tmp_path).write("a", 0, {"x": THREE})
    assert len(asked) == 1


def test_a_place_that_no_store_answers_for() -> None:
    from geolabel.errors import OptionError

    with pytest.raises(OptionError, match="nosuch"):
        storage_at("nosuch://bucket/run")


# Locks


def dead_process() -> int:
    done = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    return int(done.stdout)


def hold(folder: Path, **changes: object) -> Holder:
    kept = replace(Holder.here(), **changes)
    folder.mkdir(exist_ok=True)
    (folder / run_state.LOCK).write_bytes(kept.dump())
    return kept


def test_a_second_run_is_refused(tmp_path: Path) -> None:
    here = storage_at(tmp_path / "run")
    with locked(here, "slides.run", on_loss=lambda: None):
        with (
            pytest.raises(RunError, match=rf"slides\.run is in use by process {os.getpid()}"),
            locked(here, "slides.run", on_loss=lambda: None),
        ):
            pass
        assert holder(here) is not None
    assert holder(here) is None
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("changes", [{"pid": dead_process()}, {"born": 0.0}], ids=["dead", "another"])
def test_the_lock_of_a_dead_process_is_taken_over(tmp_path: Path, changes: dict[str, object]) -> None:
    hold(tmp_path / "run", **changes)
    with locked(storage_at(tmp_path / "run"), "run", on_loss=lambda: None):
        assert json.loads((tmp_path / "run" / run_state.LOCK).read_text())["pid"] == os.getpid()


def test_a_run_elsewhere_is_known_by_its_signs_of_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_state, "BEAT", 0.05)
    kept = hold(tmp_path, host="another machine")
    assert holder(storage_at(tmp_path)) is None  # it gives none
    beating = threading.Timer(0.03, lambda: hold(tmp_path, host="another machine", token=kept.token, beat=1))
    beating.start()
    assert holder(storage_at(tmp_path)) is not None
    beating.join()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"host": 3}',
        '{"host": " ", "pid": 1, "born": 0.0, "token": "x", "beat": 1}',
        '{"host": "a", "pid": -1, "born": 0.0, "token": "x", "beat": 1}',
        '{"host": "a", "pid": Infinity, "born": 0.0, "token": "x", "beat": 1}',
        "[" * 9999,
    ],
)
def test_a_lock_that_says_nothing_holds_nobody(tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_state, "BEAT", 0.01)
    (tmp_path / run_state.LOCK).write_text(text)
    assert holder(storage_at(tmp_path)) is None
    with locked(storage_at(tmp_path), "run", on_loss=lambda: None):
        assert holder(storage_at(tmp_path)) is not None


def test_whoever_loses_the_lock_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_state, "BEAT", 0.02)
    lost = threading.Event()
    with locked(storage_at(tmp_path), "run", on_loss=lost.set):
        time.sleep(0.1)
        assert json.loads((tmp_path / run_state.LOCK).read_text())["beat"] > 0
        hold(tmp_path, token="another")
        assert lost.wait(30)
    assert json.loads((tmp_path / run_state.LOCK).read_text())["token"] == "another"


# Keys


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    path = tmp_path / "scene.tif"
    return write_raster(path, np.random.default_rng(0).integers(0, 255, (3, 80, 90), np.uint8), photometric="rgb")


def key_of(scene: Path, **parameters: object) -> dict[str, object]:
    own = {name: parameters.pop(name) for name in ContourMethod.options() if name in parameters}
    parameters["method"] = ContourMethod(**own)
    plan = make_plan(SceneReader(scene), *RECIPES, Parameters(tile_size=64, **parameters), stretch="0,255")  # type: ignore[arg-type]
    key = run_key([plan], [None])
    assert key is not None
    return key


def test_the_same_run_has_the_same_key(scene: Path) -> None:
    assert key_of(scene) == key_of(scene)
    assert not difference(json.loads(json.dumps(key_of(scene))), key_of(scene))


def test_a_key_tells_what_changed(scene: Path) -> None:
    before = key_of(scene)
    assert difference(before, key_of(scene, gate=0.25)) == "parameters.gate was 0.5 and is 0.25 now"
    assert "parameters.threads was not given and is 1 now" in difference(before, key_of(scene, threads=1))
    with rasterio.open(scene, "r+") as target:
        target.write(np.zeros((3, 80, 90), np.uint8))
    told = difference(before, key_of(scene))
    assert "scene.pixels" in told
    assert "scene.files" in told


def test_gaps_may_be_allowed_later_but_not_forbidden(scene: Path) -> None:
    strict, lenient = key_of(scene), key_of(scene, on_error="skip")
    assert not difference(strict, lenient, ALLOWED)
    assert difference(lenient, strict, ALLOWED) == "parameters.on_error was skip and is fail now"


def test_an_array_has_no_key_of_its_own(scene: Path) -> None:
    import rioxarray

    with rioxarray.open_rasterio(scene) as array:
        reader = SceneReader(array)
        assert fingerprint(reader) is None
        plan = make_plan(reader, *RECIPES, Parameters(tile_size=64), stretch="0,255")
        assert run_key([plan], [None]) is None
        assert run_key([plan], [None], scene_key="march") is not None


# Folders


KEY = {"scene": {"uri": "scene.tif"}, "gate": 0.5}


def cut_short(root: Path, *, overwrite: bool = False) -> None:
    with (  # noqa: PT012
        pytest.raises(ValueError, match="the machine"),
        opened(RunFolderOptions(), root, KEY, overwrite=overwrite) as folder,
    ):
        folder.note_pass("localize", 5)
        folder.store.write("localize-done", 0, pack(True))
        folder.store.write("localize", 0, {"x": THREE})
        raise ValueError("the machine")


def kept(root: Path, key: dict[str, object] = KEY, *, overwrite: bool = False) -> int:
    with opened(RunFolderOptions(), root, key, overwrite=overwrite) as folder:
        return folder.store.count("localize-done")


def test_a_folder_is_gone_after_success(tmp_path: Path) -> None:
    assert kept(tmp_path / "run") == 0
    assert not (tmp_path / "run").exists()


def test_a_run_goes_on(tmp_path: Path) -> None:
    cut_short(tmp_path / "run")
    assert kept(tmp_path / "run") == 1


def test_nothing_done_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="early"), opened(RunFolderOptions(), tmp_path / "run", KEY, overwrite=False):
        raise ValueError("early")
    assert not (tmp_path / "run").exists()


def test_overwrite_starts_anew_unless_the_run_began_with_it(tmp_path: Path) -> None:
    cut_short(tmp_path / "run")
    assert kept(tmp_path / "run", overwrite=True) == 0
    cut_short(tmp_path / "run", overwrite=True)
    assert kept(tmp_path / "run", overwrite=True) == 1


def test_another_run_is_refused_or_overwritten(tmp_path: Path) -> None:
    cut_short(tmp_path / "run")
    with pytest.raises(RunError, match=r"gate was 0\.5 and is 0\.6 now"):
        kept(tmp_path / "run", KEY | {"gate": 0.6})
    assert kept(tmp_path / "run", KEY | {"gate": 0.6}, overwrite=True) == 0


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.docx").write_text("mine")
    with pytest.raises(RunError, match="is not the folder of a run"):
        kept(tmp_path, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.docx"]


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"format": 99}', '{"format": 2, "key": 5}', "[" * 9999])
def test_a_folder_of_another_program_is_refused(tmp_path: Path, text: str) -> None:
    cut_short(tmp_path / "run")
    (tmp_path / "run" / "run.json").write_text(text)
    before = files_of(tmp_path)
    for overwrite in (False, True):
        with pytest.raises(RunError, match=r"cannot be read by this version of geolabel.*another --run-dir"):
            kept(tmp_path / "run", overwrite=overwrite)
    assert files_of(tmp_path) == before


def files_of(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def network(path: Path) -> None:
    """Write weights as a person keeps them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"w": THREE}, path, metadata={"format": "pt"})


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    "names",
    [
        ["landslides/best.safetensors"],
        ["landslides/00000001.safetensors"],
        ["lock"],
        ["stop"],
        ["localize/0.part"],
        ["best.safetensors", "deep/er/best.safetensors"],
        ["models/00000001.safetensors", "models/" + "0" * 32 + ".part"],
    ],
    ids=lambda names: names[0],
)
def test_a_folder_of_somebody_is_refused_and_nothing_in_it_is_touched(
    tmp_path: Path, names: list[str], overwrite: bool
) -> None:
    for name in names:
        network(tmp_path / "mine" / name)
    before = files_of(tmp_path)
    with pytest.raises(RunError, match="is not the folder of a run"):
        kept(tmp_path / "mine", overwrite=overwrite)
    assert files_of(tmp_path) == before


def test_what_somebody_put_into_the_folder_of_a_run_stays(tmp_path: Path) -> None:
    cut_short(tmp_path / "run")
    mine = ["notes.txt", "localize/best.safetensors", "localize/00000099.safetensors", "other/00000000.safetensors"]
    for name in mine:
        network(tmp_path / "run" / name)
    assert kept(tmp_path / "run") == 1
    assert sorted(files_of(tmp_path / "run")) == sorted(mine)


def test_a_run_dir_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(RunError, match="is a file"):
        kept(tmp_path / "notes")
    assert (tmp_path / "notes").read_text() == "mine"


def test_an_output_of_the_same_run_may_be_written_again(tmp_path: Path) -> None:
    out = tmp_path / "slides.gpkg"
    with (  # noqa: PT012
        pytest.raises(ValueError, match="killed"),
        opened(RunFolderOptions(), tmp_path / "slides.gpkg.run", KEY, overwrite=False) as folder,
    ):
        folder.store.write("localize-done", 0, pack(True))
        with folder.writing(out):
            out.write_text("polygons")
        raise ValueError("killed")
    assert written_by(tmp_path / "slides.gpkg.run") == {out}
    assert Targets.of(out).may_replace(out)
    out.write_text("polygons of somebody else")
    with pytest.raises(OutputError, match="--overwrite"):
        Targets.of(out)


def test_so_may_one_that_was_whole_when_the_run_was_killed_but_not_said_to_be(tmp_path: Path) -> None:
    out = tmp_path / "slides.gpkg"
    with (  # noqa: PT012
        pytest.raises(ValueError, match="killed"),
        opened(RunFolderOptions(), tmp_path / "slides.gpkg.run", KEY, overwrite=False) as folder,
    ):
        folder.store.write("localize-done", 0, pack(True))
        with folder.writing(out):
            out.write_text("polygons")
            raise ValueError("killed")
    assert Targets.of(out).may_replace(out)
    os.utime(out, ns=(0, 0))  # somebody else's, of another time
    with pytest.raises(OutputError, match="--overwrite"):
        Targets.of(out)


def test_what_is_left_of_a_folder_that_was_being_cleared_away_is_no_hindrance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_short(tmp_path / "run")
    remove, left = FolderStorage.remove, [1]

    def die(self: FolderStorage, name: str) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        remove(self, name)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):  # noqa: PT012
        patch.setattr(FolderStorage, "remove", die)
        Folder(Store(tmp_path / "run")).remove()
    assert len(files_of(tmp_path / "run")) == 2
    assert kept(tmp_path / "run") == 0
    assert not (tmp_path / "run").exists()


def test_a_folder_may_lie_in_a_store(quick: None) -> None:
    flaky(0)
    root = "flaky://bucket/folder"
    with pytest.raises(ValueError, match="early"), opened(RunFolderOptions(), root, KEY, overwrite=False) as folder:  # noqa: PT012
        folder.store.write("localize-done", 0, pack(True))
        raise ValueError("early")
    assert summarize(root).status == "failed"
    assert kept(root) == 1  # type: ignore[arg-type]
    assert not list(storage_at(root).names())


# What is said of runs


def test_runs_are_listed_described_and_cleaned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "slides.gpkg.run"
    cut_short(root)
    assert find_runs(tmp_path) == find_runs(root) == [root]
    assert command(["runs", "list", str(tmp_path), "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["status"], row["tasks_done"], row["tasks"]) == ("failed", 1, 5)
    assert row["size_bytes"] > 100
    assert command(["runs", "list", str(tmp_path)]) == 0
    assert "failed  1 of 5 tasks" in capsys.readouterr().out
    assert command(["runs", "show", str(root)]) == 0
    shown = capsys.readouterr().out
    assert "the machine" in shown
    assert "scene.tif" in shown
    assert command(["runs", "show", str(root), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["done"] == {"localize": [1, 5]}
    assert command(["runs", "clean", str(root)]) == 0
    assert not root.exists()
    assert command(["runs", "show", str(root)]) == 1
    assert "not the folder of a run" in capsys.readouterr().err
    assert command(["runs", "list", str(tmp_path)]) == 0
    assert f"no unfinished runs in {tmp_path}" in capsys.readouterr().err


def test_a_run_that_is_going_on_is_not_cleaned(tmp_path: Path) -> None:
    with opened(RunFolderOptions(), tmp_path / "run", KEY, overwrite=False):
        assert summarize(tmp_path / "run").status == "running"
        with pytest.raises(RunError, match="in use"):
            clean(tmp_path / "run")
    hold(tmp_path / "run", pid=dead_process())
    (tmp_path / "run" / "run.json").write_bytes(State(KEY, "now").dump())
    assert summarize(tmp_path / "run").status == "dead"
    clean(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_is_no_folder_of_a_run_is_not_cleaned(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    with pytest.raises(RunError, match="not the folder of a run"):
        clean(tmp_path / "precious")
    assert Folder(Store(tmp_path / "precious")).store.root.exists()  # type: ignore[union-attr]

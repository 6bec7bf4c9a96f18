"""Moves of several files: all or none, whatever happens in between; and nothing of anyone else's is touched."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from geolabel import scratch
from geolabel.errors import OutputError
from geolabel.outputs import replacing, together
from geolabel.scratch import settle

NAMES = ("scene.tif", "truth.gpkg", "deep/mask.tif")

SCRIPT = """
import os, sys
from pathlib import Path
from geolabel import scratch
from geolabel.outputs import replacing, together

root, left = Path(sys.argv[1]), int(sys.argv[2])
rename, link, unlink = os.replace, os.link, Path.unlink
steps = [0]

def counted(function):
    def step(*given, **named):
        if steps[0] == left:
            os._exit(9)  # as SIGKILL: nothing is cleaned up
        steps[0] += 1
        return function(*given, **named)
    return step

def arm():
    scratch.os.link = counted(link)
    Path.replace = counted(Path.replace)
    Path.unlink = counted(unlink)

with together(*(root / name for name in sys.argv[3:])):
    for name in sys.argv[3:]:
        with replacing(root / name, overwrite=True) as part:
            part.write_text("new")
    arm()
"""
"""Writes files together and dies at a step of their moves."""


def contents(root: Path) -> dict[str, str]:
    return {path.relative_to(root).as_posix(): path.read_text() for path in sorted(root.rglob("*")) if path.is_file()}


def fill(root: Path) -> None:
    (root / "deep").mkdir(parents=True)
    for name in (*NAMES[:2], "scene.tif.aux.xml", "deep/notes.txt"):
        (root / name).write_text("old")


def test_a_kill_at_any_step_leaves_the_old_files_or_the_new_ones(tmp_path: Path) -> None:
    fill(tmp_path / "never")
    before = contents(tmp_path / "never")
    after = dict.fromkeys(NAMES, "new") | {"deep/notes.txt": "old"}
    ends = set()
    for left in range(100):
        root = tmp_path / f"{left}"
        fill(root)
        done = subprocess.run([sys.executable, "-c", SCRIPT, str(root), str(left), *NAMES], check=False)
        for folder in (root, root / "deep"):
            settle(folder)
        found = contents(root)
        assert found in (before, after), f"killed at step {left}"
        ends.add(found == after)
        if not done.returncode:
            break
        assert done.returncode == 9
    assert ends == {False, True}
    assert left > 10


def test_a_file_that_cannot_be_moved_leaves_all_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path)
    before, places = contents(tmp_path), [tmp_path / name for name in NAMES]
    rename = Path.replace

    def refuse(source: Path, target: Path) -> Path:
        if source == tmp_path / "truth.gpkg":
            raise OSError(errno.EPERM, "Operation not permitted", str(source), None, str(target))
        return rename(source, target)

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(OutputError, match="Operation not permitted"), together(*places):  # noqa: PT012
        for name in NAMES:
            with replacing(tmp_path / name, overwrite=True) as part:
                part.write_text("new")
    assert contents(tmp_path) == before


def test_an_error_in_the_second_file_takes_the_first_back(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space"), together(tmp_path / "scene.tif", tmp_path / "truth.tif"):  # noqa: PT012
        with replacing(tmp_path / "scene.tif", overwrite=False) as part:
            part.write_text("new")
        with replacing(tmp_path / "truth.tif", overwrite=False):
            raise OSError(errno.ENOSPC, "No space left on device")
    assert not list(tmp_path.iterdir())


def test_a_file_that_appears_in_the_meantime_is_kept_with_all_others(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="exists"), together(*(tmp_path / name for name in NAMES[:2])):  # noqa: PT012
        for name in NAMES[:2]:
            with replacing(tmp_path / name, overwrite=False) as part:
                part.write_text("late")
        (tmp_path / NAMES[1]).write_text("first")
    assert contents(tmp_path) == {NAMES[1]: "first"}


def test_nobody_knows_the_name_of_scratch_and_no_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "theirs").write_text("theirs")
    for name in (".out.part.tif", ".out.blocks.tif", "out.tif.part", ".out.tif.part", ".geolabel-0.part"):
        (tmp_path / name).symlink_to(tmp_path / "theirs")
    names = set()
    for _ in range(3):
        with replacing(tmp_path / "out.tif", overwrite=True) as part:
            names.add(part.parent.parent.parent.name)
            part.write_text("new")
    assert len(names) == 3
    assert (tmp_path / "theirs").read_text() == "theirs"
    assert len(list(tmp_path.iterdir())) == 7


@pytest.mark.parametrize("mark", [None, "scratch of geolabel 1\n", "copied"])
def test_a_folder_that_only_looks_like_scratch_is_left_alone(tmp_path: Path, mark: str | None) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    folder = tmp_path / ".geolabel-x1.part"
    (folder / "old").mkdir(parents=True)
    (folder / "new").mkdir()
    (folder / "old" / "0").write_text("mine")
    (folder / "journal.json").write_text(
        '{"moves": [["new/0", "thesis.tex", null], [null, "../x", null]], "first": null, "others": []}'
    )
    if mark == "copied":
        other = scratch.Scratch(tmp_path)
        mark = (other.path / "owner").read_text()
        other.close()
    if mark is not None:
        (folder / "owner").write_text(mark)
    before = contents(tmp_path)
    settle(tmp_path)
    assert contents(tmp_path) == before


def test_scratch_of_a_run_that_is_going_on_is_left_alone(tmp_path: Path) -> None:
    mine = scratch.Scratch(tmp_path)
    settle(tmp_path)
    assert mine.path.is_dir()
    mine.close()
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_deleted_is_deleted_by_the_next_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(scratch.shutil, "rmtree", lambda *_, **__: None)
        with together(*(tmp_path / name for name in NAMES)):
            for name in NAMES:
                with replacing(tmp_path / name, overwrite=True) as part:
                    part.write_text("new")
    assert len(list(tmp_path.glob(".geolabel-*"))) == 1
    settle(tmp_path)
    settle(tmp_path / "deep")
    assert contents(tmp_path) == dict.fromkeys(NAMES, "new") | {"deep/notes.txt": "old"}


def test_another_file_that_is_written_meanwhile_is_there_at_once(tmp_path: Path) -> None:
    with together(tmp_path / "a", tmp_path / "b"):
        for name in "abc":
            with replacing(tmp_path / name, overwrite=False) as part:
                part.write_text(name)
        assert contents(tmp_path).get("c") == "c"
        assert not (tmp_path / "a").exists()
    assert contents(tmp_path) == {"a": "a", "b": "b", "c": "c"}

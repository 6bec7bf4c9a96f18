"""The plugin of QGIS: how it calls geolabel, how it gets into a profile, and what QGIS makes of it."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import geopandas as gpd
import numpy as np
import psutil
import pytest
from PIL import Image

import geolabel
from geolabel.cli.main import run as command
from geolabel.errors import OptionError, OutputError
from geolabel.extraction import passes, segment
from geolabel.qgis import install
from geolabel.qgis.plugin import program
from geolabel.qgis.plugin.program import Canceled, ProgramError, version_of

PLUGIN = Path(install.SOURCE)
needs_shebangs = pytest.mark.skipif(sys.platform == "win32", reason="scripts are no programs there")


# --- the files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(PLUGIN.glob("*.py")), ids=lambda path: path.name)
def test_the_plugin_needs_the_python_of_qgis_alone(path: Path):
    """That of QGIS 3.22 may be 3.8, and has none of geolabel's libraries."""
    tree = ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 8))
    absolute = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and not node.level]
    names = {node.module for node in absolute} | {
        alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
    }
    assert {name.split(".")[0] for name in names if name} <= {*sys.stdlib_module_names, "qgis", "processing"}
    assert "tomllib" not in names


def test_the_plugin_has_the_version_of_geolabel():
    lines = (PLUGIN / "metadata.txt").read_text(encoding="utf-8").splitlines()
    values = dict(line.split("=", 1) for line in lines[1:])
    assert values["version"] == geolabel.__version__
    assert {"name", "description", "about", "author", "email", "qgisMinimumVersion"} <= values.keys()
    assert values["hasProcessingProvider"] == "yes"
    assert (PLUGIN / values["icon"]).is_file()


# --- the call --------------------------------------------------------------------------------------------------------


def write_program(path: Path, body: str) -> str:
    """A program that answers ``--version`` as geolabel does, and does something else otherwise."""
    path.write_text(
        f"#!{sys.executable}\nimport json, os, subprocess, sys, time\n"
        f"if '--version' in sys.argv:\n    print('geolabel, version {geolabel.__version__}')\n    sys.exit()\n{body}"
    )
    path.chmod(0o755)
    return str(path)


def call(program_path: str, *words: str, is_canceled=lambda: False):
    steps, said = [], []
    done = program.run(
        program_path,
        list(words),
        is_canceled=is_canceled,
        on_progress=lambda *record: steps.append(record),
        on_message=said.append,
    )
    return done, steps, said


@needs_shebangs
def test_words_arrive_as_they_are_and_answers_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in program.FOREIGN:
        monkeypatch.setenv(name, "of QGIS")
    path = write_program(
        tmp_path / "a b",
        "print(json.dumps({'progress': 'look', 'done': 0, 'total': None}), file=sys.stderr)\n"
        "print(json.dumps({'progress': 'find', 'done': 1, 'total': 2}), file=sys.stderr)\n"
        'os.write(2, b\'warning: \\xff {odd}\\n{"no": "progress"}\\n\')\n'
        f"print(json.dumps([sys.argv[1:], sorted({{*{program.FOREIGN!r}}} & {{*os.environ}})]))\nsys.exit(3)\n",
    )
    words = ("a b", "'q\"", "-x", "$HOME", "é;&|", "")
    done, steps, said = call(path, *words)
    assert done.code == program.GAPS
    assert done.result == [list(words), []]
    assert steps == [("look", 0, None), ("find", 1, 2)]
    assert said == ["warning: \ufffd {odd}", '{"no": "progress"}']


def test_the_passes_of_a_command_share_one_bar():
    steps = [("preparing", 0, None), ("localize", 0, 4), ("localize", 2, 4), ("prompt", 0, 0), ("peaks", 1, 2)]
    shares = [program.share_done("extract", *step) for step in [*steps, ("merge", 3, 4), ("merge", 4, 4)]]
    assert shares == [None, 0, 1 / 8, 1 / 2, None, 15 / 16, 1]
    several = [
        program.share_done("extract", f"{name} {k}/3", 1, 2) for k in (1, 2, 3) for name in ("localize", "merge")
    ]
    assert several == pytest.approx([1 / 24, 7 / 24, 9 / 24, 15 / 24, 17 / 24, 23 / 24])
    assert program.share_done("adapt", "map", 1, 2) == 0.5


def test_the_passes_of_a_command_are_those_that_it_makes():
    extract = [step.name for step in (passes.LOCALIZE, passes.PROMPT, passes.SEGMENT, passes.MERGE)]
    assert program.PASSES["extract"] == tuple(extract)
    everything = [step.name for step in (passes.SEGMENT, segment.LOOK, segment.MATCH, segment.OUTLINE)]
    assert program.PASSES["segment"] == tuple(everything)


@needs_shebangs
def test_an_error_is_what_geolabel_says(tmp_path: Path):
    fails = write_program(
        tmp_path / "a", "print('geolabel: no such scene: give another', file=sys.stderr)\nsys.exit(1)\n"
    )
    with pytest.raises(ProgramError, match=r"^no such scene: give another$"):
        call(fails)
    silent = write_program(tmp_path / "b", "sys.exit(9)\n")
    with pytest.raises(ProgramError, match="ended with the code 9 and said nothing"):
        call(silent)
    with pytest.raises(ProgramError, match="answered with no JSON: words"):
        call(write_program(tmp_path / "c", "print('words')\n"))


@needs_shebangs
@pytest.mark.parametrize("stubborn", [False, True])
def test_canceling_ends_everything_that_was_started(stubborn: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(program, "GRACE_S", 0.5)
    path = write_program(
        tmp_path / "a",
        "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nchild = subprocess.Popen(['sleep', '60'])\n"
        + ("" if stubborn else "signal.signal(signal.SIGINT, lambda *_: sys.exit(130))\n")
        + f"open({str(tmp_path / 'pids')!r}, 'w').write(f'{{os.getpid()}} {{child.pid}}')\ntime.sleep(60)\n",
    )
    started = time.monotonic()
    with pytest.raises(Canceled):
        call(path, is_canceled=lambda: (tmp_path / "pids").exists() and (tmp_path / "pids").read_text() != "")
    assert time.monotonic() - started < 30
    for pid in map(int, (tmp_path / "pids").read_text().split()):
        for _ in range(50):  # until init has taken note of an orphan
            if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                break
            time.sleep(0.1)
        else:
            pytest.fail(f"{pid} lives")


@needs_shebangs
def test_only_the_command_of_geolabel_is_called(tmp_path: Path):
    other = tmp_path / "other"
    other.write_text("#!/bin/sh\necho hello\n")
    other.chmod(0o755)
    plain = tmp_path / "plain"
    plain.write_text("words")
    for name, message in (
        ("", "no command: give the whole path"),
        ("geolabel", "geolabel: give the whole path"),
        (str(tmp_path / "missing"), "give the whole path"),
        (str(tmp_path), "give the whole path"),
        (str(plain), "cannot be run"),
        (str(other), "is not the command geolabel: it answers --version with 'hello'"),
    ):
        with pytest.raises(ProgramError, match=message):
            version_of(name)
    assert version_of(write_program(tmp_path / "geolabel", "")) == geolabel.__version__


# --- the profile -----------------------------------------------------------------------------------------------------


@pytest.fixture
def profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the plugin in an empty profile."""
    home = tmp_path / "config"
    (home / "profiles" / "default").mkdir(parents=True)
    monkeypatch.setenv(install.CUSTOM, str(home))
    return home / "profiles" / "default" / "python" / "plugins" / install.NAME


def test_the_plugin_is_installed_replaced_and_removed(profile: Path, capsys: pytest.CaptureFixture[str]):
    assert command(["qgis", "install", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["folders"] == [str(profile)]
    assert (profile / "command.txt").read_text().strip() == said["command"]
    assert version_of(said["command"]) == geolabel.__version__
    shipped = {path.name for path in PLUGIN.iterdir() if path.is_file()}
    assert {path.name for path in profile.iterdir()} == shipped | {"command.txt", ".geolabel.jsonl"}
    subprocess.run([sys.executable, "-m", "compileall", "-q", profile], check=True)
    assert command(["qgis", "install"]) == 0
    (profile / "mine.txt").write_text("mine")
    assert command(["qgis", "uninstall"]) == 0
    assert [path.name for path in profile.iterdir()] == ["mine.txt"]
    assert command(["qgis", "uninstall"]) == 1


def test_what_a_person_changed_stays(profile: Path):
    geolabel.install_plugin()
    (profile / "algorithms.py").write_text("mine")
    for change in (geolabel.install_plugin, geolabel.uninstall_plugin):
        with pytest.raises(OutputError, match=r"algorithms\.py was changed, or not written by geolabel"):
            change()
    assert (profile / "algorithms.py").read_text() == "mine"
    assert (profile / "provider.py").exists()


def test_a_folder_of_another_is_not_touched(profile: Path):
    profile.mkdir(parents=True)
    (profile / "__init__.py").write_text("theirs")
    for change in (geolabel.install_plugin, geolabel.uninstall_plugin):
        with pytest.raises(OutputError):
            change()
    assert [path.name for path in profile.iterdir()] == ["__init__.py"]


def test_each_version_that_has_the_profile_gets_the_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(install.CUSTOM, raising=False)
    monkeypatch.setattr(install.platformdirs, "user_data_path", lambda *_, **__: tmp_path)
    with pytest.raises(OptionError, match="no profile default here: start QGIS once"):
        geolabel.install_plugin()
    for name in ("QGIS3/profiles/default", "QGIS3/profiles/field", "QGIS4/profiles/default"):
        (tmp_path / name).mkdir(parents=True)
    assert len(geolabel.install_plugin()["folders"]) == 2
    assert len(geolabel.install_plugin(profile="field")["folders"]) == 1
    with pytest.raises(OptionError, match="no profile home here: there are default, field"):
        geolabel.install_plugin(profile="home")
    with pytest.raises(OptionError, match="give the name of a profile"):
        geolabel.install_plugin(profile="../field")
    assert len(geolabel.uninstall_plugin()["folders"]) == 2


# --- in QGIS ---------------------------------------------------------------------------------------------------------


def in_qgis(profile: Path, work: Path, *calls: tuple[str, dict]) -> list[dict]:
    """What QGIS says of calls of the algorithms."""
    (work / "calls.json").write_text(json.dumps(calls))
    (work / "home").mkdir(mode=0o700)
    home = str(work / "home")
    clean = {"HOME": home, "XDG_RUNTIME_DIR": home, "PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1"}
    script = [Path(__file__).with_name("in_qgis_plugin.py"), profile.parent, work]
    done = subprocess.run(
        ["/usr/bin/python3", *map(str, script)], capture_output=True, text=True, check=False, env=clean
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.qgis
def test_qgis_extracts_and_loads(profile: Path, tmp_path: Path):
    scene, out = tmp_path / "-scene.tif", tmp_path / "slides.gpkg"
    geolabel.synthesize(scene, size=512, gsd=0.5, seed=2)
    geolabel.install_plugin()
    extract = {"SCENE": str(scene), "OUTPUT": str(out), "LOADED": True, "MIN_CONFIDENCE": 0.0}
    first, wrong = in_qgis(
        profile,
        tmp_path,
        ("extract", extract),
        ("extract", {"SCENE": str(scene), "OUTPUT": "TEMPORARY_OUTPUT", "OPTIONS": "--out x.gpkg"}),
    )
    assert first["results"] == {"OUTPUT": str(out), "COUNT": len(gpd.read_file(out, layer="landslides"))}
    assert first["results"]["COUNT"] > 0
    assert all(line.startswith("Results: ") for line in first["said"])
    assert {step.split(":")[0] for step in first["steps"]} >= {"preparing", "localize", "merge"}
    layers = ["landslides", "candidates", "prompts", "prompt_points", "tiles"]
    assert first["tree"] == [["slides", [[name, "RuleRenderer"] for name in layers]]]
    picture = np.asarray(Image.open(tmp_path / "map.png").convert("RGB"))
    assert (picture != 255).any(axis=2).sum() > 100
    assert wrong["results"]["error"] == "--out is set by the dialog: leave it out of the options"


@pytest.mark.qgis
@needs_shebangs
def test_qgis_gives_each_parameter_to_its_option(profile: Path, tmp_path: Path):
    scene = tmp_path / "scene.tif"
    geolabel.synthesize(scene, size=64, gsd=0.5, seed=1)
    areas = gpd.read_file(tmp_path / "scene_truth.gpkg", layer="landslides")
    areas = gpd.GeoDataFrame(geometry=[areas.union_all().envelope.buffer(n) for n in (1, 2)], crs=areas.crs)
    areas.to_file(tmp_path / "areas.gpkg", layer="areas")
    areas.to_file(tmp_path / "areas.gpkg", layer="water")
    (tmp_path / "nets").mkdir()
    geolabel.install_plugin()
    recorder = write_program(
        tmp_path / "geolabel",
        "print(json.dumps({'landslides': 0, 'level': 'head', 'gain': 0.1, 'f1': 0.5, 'iou': None}))\n"
        f"open({str(tmp_path / 'words.jsonl')!r}, 'a').write(json.dumps(sys.argv[1:]) + '\\n')\n",
    )
    (profile / "command.txt").write_text(recorder)
    one, areas_file = str(scene), str(tmp_path / "areas.gpkg")
    full = {
        "SCENE": one,
        "AOI": f"{areas_file}|layername=water",
        "BEFORE": one,
        "DEM": one,
        "MIN_SLOPE": 10,
        "EXCLUDE": f"{areas_file}|layername=water",
        "KEEP_REVIEWED": areas_file,
        "MIN_CONFIDENCE": 0.35,
        "NETWORKS": str(tmp_path / "nets"),
        "OPTIONS": "--min-area '400 m2' --device cpu",
        "OVERWRITE": True,
        "OUTPUT": str(tmp_path / "out.gpkg"),
    }
    found = in_qgis(
        profile,
        tmp_path,
        ("extract", full),
        ("segment", {"SCENE": one, "SELECTED": f"{areas_file}|layername=areas", "OUTPUT": str(tmp_path / "s.gpkg")}),
        ("adapt", {"SCENE": one, "REVIEWED": areas_file, "LEVEL": 2, "OUTPUT": str(tmp_path / "valley")}),
        (
            "evaluate",
            {"SLIDES": f"{areas_file}|layername=areas", "TRUTH": one, "REPORT": str(tmp_path / "report.json")},
        ),
    )
    assert not [one for one in found if "error" in one["results"]]
    extract, segment, adapt, evaluate = map(json.loads, (tmp_path / "words.jsonl").read_text().splitlines())
    at = extract.index("--exclude") + 1
    assert len(gpd.read_file(extract[at])) == 2  # a file of one layer, written for it
    extract[at] = "WATER"
    assert extract == [
        *("extract", "--out", str(tmp_path / "out.gpkg"), "--before", one, "--dem", one),
        *("--aoi", areas_file, "--aoi-layer", "water", "--exclude", "WATER", "--min-slope", "10deg"),
        *("--min-confidence", "0.35", "--keep-reviewed", areas_file, "--networks", str(tmp_path / "nets")),
        *("--min-area", "400 m2", "--device", "cpu", "--overwrite", "--json", "--", one),
    ]
    assert segment[:4] == ["segment", "--out", str(tmp_path / "s.gpkg"), "--aoi"]
    assert len(gpd.read_file(segment[4])) == 1  # what is selected
    assert adapt == [
        *("adapt", "--out", str(tmp_path / "valley"), "--reviewed", areas_file, "--level", "head", "--json", "--", one)
    ]
    assert found[2]["results"] == {"OUTPUT": str(tmp_path / "valley"), "CHOSEN": "head", "GAIN": 0.1}
    assert evaluate == ["evaluate", "--layer", "areas", "--json", "--", areas_file, one]
    figures = found[3]["results"]
    assert (figures["F1"], figures["IOU"], figures["REPORT"]) == (0.5, None, str(tmp_path / "report.json"))
    assert json.loads((tmp_path / "report.json").read_text())["f1"] == 0.5
    assert {"F1 of the area: 0.5000", "IoU of the area: not defined"} <= {*found[3]["said"]}

"""The command line as a whole: help, exit codes, what goes where, and the environment."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import pytest
import rasterio
from affine import Affine

from geolabel.cli.commands import TITLES, Command, Group
from geolabel.cli.extract import extract
from geolabel.cli.main import COMMANDS, cli, run
from geolabel.cli.polygonize import polygonize
from geolabel.errors import GeolabelError


def every_command(group: click.Group = cli, *names: str) -> Iterator:
    """All commands with the words that lead to them."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        yield pytest.param((*names, name), command, id=" ".join([*names, name]))
        if isinstance(command, click.Group):
            yield from every_command(command, *names, name)


EVERY_COMMAND = list(every_command())


@pytest.fixture
def scene(tmp_path: Path) -> str:
    """Four bands that do not say which is red."""
    path = tmp_path / "scene.tif"
    profile = {"driver": "GTiff", "dtype": "uint8", "count": 4, "height": 40, "width": 50, "crs": "EPSG:32632"}
    place = Affine(0.5, 0, 500_000, 0, -0.5, 5_000_000)
    with rasterio.open(path, "w", photometric="minisblack", transform=place, **profile) as file:
        file.write(np.random.default_rng(0).integers(0, 255, (4, 40, 50), np.uint8))
    return str(path)


@pytest.fixture
def prepared(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """What extract asks for; the run ends there."""
    asked: dict[str, object] = {}

    def prepare(scene, reading, networks, parameters):
        asked.update(scene=scene, reading=reading, networks=networks, parameters=parameters)
        raise GeolabelError("seen enough")

    monkeypatch.setattr("geolabel.run.request.prepare", prepare)
    return asked


# Help


@pytest.mark.parametrize(("words", "command"), EVERY_COMMAND)
def test_every_command_helps(words: tuple[str, ...], command: click.Command, capsys):
    assert run([*words, "--help"]) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith(f"Usage: geolabel {' '.join(words)}")
    assert shown.err == ""
    assert command.help
    assert command.get_short_help_str(limit=200).endswith(".")
    assert "\\b" not in shown.out, "a raw text keeps click from seeing the backspace"


def test_examples_keep_their_lines(capsys):
    assert run(["bench", "weak", "--help"]) == 0
    assert "\n  geolabel bench weak chips/ --pack chips.zip\n  geolabel bench weak chips.zip" in capsys.readouterr().out


@pytest.mark.parametrize(("words", "command"), EVERY_COMMAND)
def test_every_option_says_what_it_does(words: tuple[str, ...], command: click.Command):
    options = [parameter for parameter in command.params if isinstance(parameter, click.Option)]
    assert not [option.opts for option in options if not (option.help or "").endswith(".")]


@pytest.mark.parametrize(("words", "command"), EVERY_COMMAND)
def test_every_option_has_a_group_of_the_help(words: tuple[str, ...], command: click.Command):
    options = [parameter for parameter in command.params if isinstance(parameter, click.Option)]
    assert not [option.opts for option in options if getattr(option, "group", None) not in TITLES]
    assert isinstance(command, Group if isinstance(command, click.Group) else Command)


def test_groups_of_the_help_stand_in_their_order(capsys):
    assert run(["extract", "--help"]) == 0
    shown = capsys.readouterr().out
    places = [shown.index(f"\n{title}:\n") for title in TITLES.values()]
    assert places == sorted(places)
    assert "\n  -o, --out FILE" in shown[places[1] : places[2]]


def test_the_help_leaves_rare_options_to_help_all(capsys):
    assert run(["extract", "--help"]) == 0
    short = capsys.readouterr().out
    assert run(["extract", "--help-all"]) == 0
    whole = capsys.readouterr().out
    rare = [max(one.opts, key=len) for one in extract.params if getattr(one, "rare", False)]
    assert rare
    assert not [name for name in rare if f" {name} " in short]
    assert not [name for name in rare if f" {name} " not in whole]
    assert f"{len(rare)} more options, seldom needed: geolabel extract --help-all" in short
    assert "seldom needed" not in whole


def test_a_command_without_rare_options_speaks_of_no_others(capsys):
    rare = [one for one in polygonize.params if getattr(one, "rare", False)]
    polygonize.params = [one for one in polygonize.params if one not in rare]
    try:
        assert run(["polygonize", "--help"]) == 0
    finally:
        polygonize.params += rare
    assert "--help-all" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["extrct"], "did you mean extract?"),
        (["evalute", "a.gpkg"], "did you mean evaluate?"),
        (["model"], "did you mean models"),
        (["scene.tif"], "geolabel extract scene.tif --out slides.gpkg"),
        (["wibble"], "there are extract, predict"),
        (["models", "lst"], "did you mean list?"),
        (["models", "scene.tif"], "there are fetch"),
        (["extract", "scene.tif", "--bound", "1,2,3,4"], "--bounds"),
    ],
)
def test_what_is_misspelled_is_answered_with_what_was_meant(words: list[str], says: str, capsys):
    assert run(words) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(("words", "command"), EVERY_COMMAND)
def test_the_environment_speaks_as_the_command_line_does(
    words: tuple[str, ...], command: click.Command, monkeypatch: pytest.MonkeyPatch
):
    context = click.Context(command, auto_envvar_prefix="GEOLABEL_" + "_".join(words).upper())
    for option in command.params:
        if isinstance(option, click.Option):
            name = max(option.opts, key=len).removeprefix("--").replace("-", "_").upper()
            monkeypatch.setenv(f"{context.auto_envvar_prefix}_{name}", "1")
            assert option.resolve_envvar_value(context) == "1", option.opts


def test_commands_are_the_files_of_the_folder():
    folder = Path(__file__).parents[1] / "cli"
    assert {path.stem for path in folder.glob("*.py")} - set(COMMANDS) == {
        "__init__",
        "cluster",
        "commands",
        "main",
        "options",
        "grounding",
        "learn",
        "packing",
        "pretraining",
        "terminal",
    }


def test_no_word_is_a_call_for_help(capsys):
    run([])
    shown = capsys.readouterr()
    assert "Usage: geolabel" in shown.out + shown.err


# The environment


def test_an_option_from_the_environment(scene: str, prepared, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("GEOLABEL_EXTRACT_TILE_SIZE", "256")
    monkeypatch.setenv("GEOLABEL_EXTRACT_MIN_AREA", "400m2")
    assert run(["extract", scene, "--out", f"{scene}.gpkg"]) == 1
    assert prepared["parameters"].tile_size == 256
    assert str(prepared["parameters"].min_area) == "400m2"


def test_the_command_line_overrules_the_environment(scene: str, prepared, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("GEOLABEL_EXTRACT_TILE_SIZE", "256")
    run(["extract", scene, "--out", f"{scene}.gpkg", "--tile-size", "128"])
    assert prepared["parameters"].tile_size == 128


def test_a_wrong_value_in_the_environment_is_wrong_usage(scene: str, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setenv("GEOLABEL_EXTRACT_TILE_SIZE", "large")
    assert run(["extract", scene, "--out", f"{scene}.gpkg"]) == 2
    assert "'--tile-size': 'large'" in capsys.readouterr().err


# Exit codes


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["extract", "scene.tif", "--speed", "high"], "--speed"),
        (["extrude", "scene.tif"], "extrude"),
        (["extract"], "SCENE"),
        (["extract", "scene.tif", "--min-area", "100"], "100m2"),
        (["extract", "scene.tif", "--min-area", "100m"], "100m2"),
        (["extract", "scene.tif", "--min-area=-3px"], "negative"),
        (["extract", "scene.tif", "--gate", "1.5"], "1.5"),
        (["extract", "scene.tif", "--tile-size", "0"], "32"),
    ],
)
def test_wrong_usage_is_2(words: list[str], says: str, capsys):
    assert run(words) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert says in shown.err
    assert "Traceback" not in shown.err


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ([], "give --out"),
        (["a.gpkg", "--out", "b.gpkg"], "two outputs"),
        (["--out", "a.gpkg", "--bounds", "1,2,3"], "LEFT,BOTTOM,RIGHT,TOP"),
        (["--out", "a.gpkg", "--bounds", "3,0,1,5"], "enclose nothing"),
        (["--out", "a.gpkg", "--tile-size", "128", "--overlap", "128"], "does not fit"),
    ],
)
def test_an_option_that_cannot_work_is_2(scene: str, options, says: str, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(["extract", scene, *options]) == 2
    assert_one_line(capsys.readouterr(), says)
    assert [path.name for path in tmp_path.iterdir()] == ["scene.tif"]


def assert_one_line(shown, says: str) -> None:
    assert shown.out == ""
    (line,) = shown.err.splitlines()
    assert re.match("geolabel: ", line)
    assert says in line


@pytest.mark.parametrize("command", ["info", "extract", "predict", "polygonize"])
def test_an_error_is_1_and_one_line(command: str, tmp_path: Path, capsys):
    out = [] if command == "info" else ["--out", str(tmp_path / ("a.tif" if command == "predict" else "a.gpkg"))]
    assert run([command, str(tmp_path / "missing.tif"), *out]) == 1
    assert_one_line(capsys.readouterr(), "missing.tif")
    assert not list(tmp_path.iterdir())


def test_a_surprise_is_1_and_one_line(scene: str, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr("geolabel.io.scenes.SceneReader", lambda *_, **__: 1 // 0)
    assert run(["info", scene]) == 1
    assert_one_line(capsys.readouterr(), "unexpected ZeroDivisionError")
    assert run(["info", scene, "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_an_interrupted_run_is_130(scene: str, monkeypatch: pytest.MonkeyPatch, capsys):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("geolabel.io.scenes.SceneReader", interrupt)
    assert run(["info", scene]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_debug_shows_where(tmp_path: Path):
    command = [
        sys.executable,
        "-c",
        "from geolabel.cli.main import main; main()",
        "info",
        str(tmp_path / "missing.tif"),
    ]
    calm = subprocess.run(command, capture_output=True, text=True, check=False)
    loud = subprocess.run([*command, "--debug"], capture_output=True, text=True, check=False)
    assert (calm.returncode, loud.returncode) == (1, 1)
    assert "Traceback" not in calm.stderr
    assert "Traceback" in loud.stderr
    assert "SceneError" in loud.stderr


def test_debug_changes_no_exit_code(tmp_path: Path, scene: str, capsys):
    assert run(["info", str(tmp_path / "missing.tif"), "--debug"]) == 1
    assert run(["extract", scene, "--debug"]) == 2
    assert "OptionError" in capsys.readouterr().err


# What goes where


def test_results_on_stdout_the_rest_on_stderr(scene: str, capsys):
    assert run(["info", scene]) == 0
    shown = capsys.readouterr()
    assert "EPSG" in shown.out or "UTM" in shown.out
    assert shown.err.startswith("warning: ")


def test_quiet_says_nothing_but_the_result(scene: str, capsys):
    assert run(["info", scene, "-q"]) == 0
    shown = capsys.readouterr()
    assert shown.out
    assert shown.err == ""


def test_quiet_polygonize(tmp_path: Path, capsys):
    mask = tmp_path / "mask.tif"
    profile = {"driver": "GTiff", "dtype": "uint8", "count": 1, "height": 40, "width": 50, "crs": "EPSG:32632"}
    with rasterio.open(mask, "w", transform=Affine(0.5, 0, 500_000, 0, -0.5, 5_000_000), **profile) as file:
        file.write(np.pad(np.ones((1, 10, 10), np.uint8), ((0, 0), (10, 20), (10, 30))))
    assert run(["polygonize", str(mask), "--out", str(tmp_path / "a.gpkg"), "-q"]) == 0
    assert capsys.readouterr().err == ""
    assert run(["polygonize", str(mask), "--out", str(tmp_path / "b.gpkg")]) == 0
    assert capsys.readouterr().err != ""

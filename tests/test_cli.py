"""The command line as a whole: help, exit codes, what goes where, and the environment."""

import json
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
from geolabel.cli.inputs import check_outputs, check_scenes
from geolabel.cli.main import COMMANDS, cli, run
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

    def prepare(scenes, reading, networks, parameters, **_):
        asked.update(scenes=scenes, reading=reading, networks=networks, parameters=parameters)
        raise GeolabelError("seen enough")

    monkeypatch.setattr("geolabel.extraction.extract.prepare_scenes", prepare)
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
    assert run(["synthesize", "--help"]) == 0
    assert "--help-all" not in capsys.readouterr().out
    assert run(["polygonize", "--help"]) == 0
    assert "1 more option, seldom needed: geolabel polygonize --help-all" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["extrct"], "did you mean extract?"),
        (["evalute", "a.gpkg"], "did you mean evaluate?"),
        (["model"], "did you mean models"),
        (["scene.tif"], "geolabel extract scene.tif --out slides.gpkg"),
        (["wibble"], "there are extract, predict"),
        (["models", "lst"], "did you mean list?"),
        (["models", "scene.tif"], "there are export, fetch"),
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
        "workers",
        "commands",
        "inputs",
        "main",
        "options",
        "train_on_chips",
        "scene_options",
        "settings",
        "streams",
        "summary",
        "terminal",
    }


def test_no_word_is_a_call_for_help(capsys):
    run([])
    shown = capsys.readouterr()
    assert "Usage: geolabel" in shown.out + shown.err


# Files that are missing


HEAVY = ("torch", "geopandas", "pandas", "dask", "scipy")
"""Libraries that take seconds to load from a disk that has not read them lately."""

WITHOUT = [
    ("extract {missing} --out {folder}/a.gpkg", "missing.tif: there is no such file"),
    ("extract {folder}/a.tif {missing} --out {folder}/a.gpkg", "missing.tif: there is no such file"),
    ("extract {folder}/list.txt --out {folder}/a.gpkg", "not_there.tif: there is no such file"),
    ("extract {folder}/a.tif --aoi {missing} --out {folder}/a.gpkg", "missing.tif: there is no such file"),
    ("extract {folder}/a.tif --prompts-from {missing} --out {folder}/a.gpkg", "missing.tif: there is no such file"),
    ("extract {folder}/a.tif --student {missing} --out {folder}/a.gpkg", "missing.tif: there is no such file"),
    ("extract {folder}/a.tif --localizer {missing} --out {folder}/a.gpkg", "missing.tif: there is no such file"),
    ("extract {folder}/a.tif --sam vit_b --sam-checkpoint {missing} --out {folder}/a.gpkg", "there is no such file"),
    ("extract {folder}/a.tff --out {folder}/a.gpkg", "a.tff: there is no such file; {folder}/a.tif is there"),
    ("predict {missing} {folder}/a.tif", "missing.tif: there is no such file"),
    ("segment {missing} --out {folder}/a.gpkg", "missing.tif: there is no such file"),
    ("info {missing}", "missing.tif: there is no such file"),
    ("polygonize {missing} --out {folder}/a.gpkg", "missing.tif: there is no such file"),
    ("evaluate {missing} {folder}/a.tif", "missing.tif: there is no such file"),
    ("evaluate {folder}/a.tif {missing}", "missing.tif: there is no such file"),
    ("extract {folder}/a.tif --out {folder}/old.gpkg", "old.gpkg exists: give --overwrite"),
    ("extract {folder}/a.tif --out {folder}/no/a.gpkg", "no does not exist; create it first"),
    ("predict {folder}/a.tif --out {folder}/old.tif", "old.tif exists: give --overwrite"),
    ("segment {folder}/a.tif --out {folder}/old.gpkg", "old.gpkg exists: give --overwrite"),
    ("polygonize {folder}/a.tif --out {folder}/old.gpkg", "old.gpkg exists: give --overwrite"),
    ("chips {missing} --inventory {folder}/a.tif --out {folder}/chips", "missing.tif: there is no such file"),
    ("chips {folder}/a.tif --inventory {missing} --out {folder}/chips", "missing.tif: there is no such file"),
    ("label {missing} --method apsam --out {folder}/labels", "missing.tif: there is no such file"),
    ("train localizer {missing} --out {folder}/trained", "missing.tif: there is no such file"),
    ("train student {missing} --out {folder}/trained", "missing.tif: there is no such file"),
    ("study prompts {missing} --out {folder}/study", "missing.tif: there is no such file"),
]


def test_what_is_missing_or_in_the_way_is_named_before_anything_heavy_is_loaded(tmp_path: Path):
    for name in ("a.tif", "old.gpkg", "old.tif"):
        (tmp_path / name).touch()
    (tmp_path / "list.txt").write_text("not_there.tif\n", encoding="utf-8")
    places = {"missing": tmp_path / "missing.tif", "folder": tmp_path}
    calls = [call.format(**places).split() for call, _ in WITHOUT]
    script = (
        "import json, sys; from geolabel.cli.main import run\n"
        f"for call in json.loads(sys.argv[1]): print(run(call))\n"
        f"print(sorted(set({HEAVY!r}) & set(sys.modules)))"
    )
    command = [sys.executable, "-c", script, json.dumps(calls)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == ["1"] * len(calls) + ["[]"], done.stderr
    for line, (call, says) in zip(done.stderr.splitlines(), WITHOUT, strict=True):
        assert line.startswith("geolabel: "), call
        assert says.format(**places) in line, call


def test_an_output_of_a_run_that_may_resume_is_left_to_the_run(tmp_path: Path):
    (tmp_path / "a.gpkg").touch()
    (tmp_path / "a.gpkg.run").mkdir()
    check_outputs(str(tmp_path / "a.gpkg"), overwrite=False)
    check_outputs(str(tmp_path / "a.gpkg"), overwrite=False, run_dir="s3://bucket/run")


@pytest.mark.parametrize(
    "name",
    [
        "/vsizip/a.zip/b.tif",
        "https://example.org/a.tif",
        "s3://bucket/a.tif",
        "NETCDF:a.nc:b",
        "<VRTDataset/>",
        "*.tif",
    ],
)
def test_what_leads_elsewhere_is_for_others_to_open(name: str):
    check_scenes([name])


# Libraries that are missing


@pytest.mark.parametrize(
    ("call", "module", "says"),
    [
        ("train localizer . --out t", "lightning", "training needs lightning"),
        ("train student . --out t --model unet", "segmentation_models_pytorch", "segmentation-models-pytorch"),
        ("train student . --out t --model maskrcnn", "pycocotools", "training needs pycocotools"),
        ("train bundled --out t", "lightning", "training needs lightning"),
        ("train confidence --out t.json", "sklearn", "fitting the confidence needs scikit-learn"),
        ("study s2c . --out t", "lightning", "training needs lightning"),
        ("study alps . --out t", "sklearn", "training needs scikit-learn"),
        ("bench weak . --out t.md", "lightning", "training needs lightning"),
        ("label chips --out t --method alps --sam vit_b", "sklearn", "clustering needs scikit-learn"),
        ("label chips --out t --method diffuprompter --sam vit_b", "diffusers", "diffuprompter needs diffusers"),
        ("extract a.tif --out t.gpkg --method diffuprompter --sam vit_b", "transformers", "needs transformers"),
    ],
)
def test_a_missing_extra_is_named_before_work_and_downloads(
    call: str, module: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    def find(name: str):
        return None if name == module else object()

    def download(*_, **__):
        raise AssertionError("a download before the missing library was named")

    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.tif").touch()
    (tmp_path / "chips").mkdir()
    (tmp_path / "chips" / "a.png").touch()
    monkeypatch.setattr("geolabel.errors.find_spec", find)
    monkeypatch.setattr("geolabel.io.downloads.download", download)
    monkeypatch.setenv("GEOLABEL_CACHE", str(tmp_path / "cache"))
    assert run(call.split()) == 1
    shown = capsys.readouterr()
    assert says in shown.err
    assert "pip install 'geolabel[" in shown.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tif", "chips"]
    assert [path.name for path in (tmp_path / "chips").iterdir()] == ["a.png"]


# The environment


def test_an_option_from_the_environment(scene: str, prepared, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("GEOLABEL_EXTRACT_TILE_SIZE", "256")
    monkeypatch.setenv("GEOLABEL_EXTRACT_MIN_AREA", "400m2")
    assert run(["extract", scene, "--out", f"{scene}.gpkg"]) == 1
    assert prepared["parameters"].tile_size == 256
    assert str(prepared["parameters"].min_area) == "400m2"


def test_a_misspelled_option_in_the_environment_is_named(
    scene: str, prepared, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    for name in ("EXTRACT_GAT", "EXTRACT_OUT", "EXTRACTOR_TILE", "CACHE"):
        monkeypatch.setenv(f"GEOLABEL_{name}", f"{scene}.gpkg")
    run(["extract", scene])
    said = capsys.readouterr().err
    assert "warning: GEOLABEL_EXTRACT_GAT names no option of geolabel extract and is ignored: did you mean" in said
    assert "GEOLABEL_EXTRACT_GATE?" in said
    assert said.count("names no option") == 1
    run(["extract", scene, "-q"])
    assert "names no option" not in capsys.readouterr().err


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
        (["--out", "a.gpkg", "--working-gsd", "-1"], "positive number of metres"),
        (["--out", "a.gpkg", "--stretch", "wide"], "give percentiles"),
        (["--out", "a.gpkg", "--device", "gpu"], "device 'gpu' is unknown"),
        (["--out", "a.gpkg", "--min-slope", "10deg"], "--dem"),
        (["--out", "a.gpkg", "--event-after", "20241301"], "such as 2024-05-31"),
    ],
)
def test_an_option_that_cannot_work_is_2(scene: str, options, says: str, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(["extract", scene, *options]) == 2
    assert_one_line(capsys.readouterr(), says)
    assert [path.name for path in tmp_path.iterdir()] == ["scene.tif"]


def test_a_network_that_nobody_knows_is_refused_before_work_begins(scene: str, capsys, tmp_path):
    for option, role in (("--sam", "segmenter"), ("--localizer", "localizer")):
        assert run(["extract", scene, "--out", str(tmp_path / "a.gpkg"), option, "nothing"]) == 1
        assert_one_line(capsys.readouterr(), f"no {role} is called 'nothing': known are bundled")


def assert_one_line(shown, says: str, *, before: tuple[str, ...] = ()) -> None:
    assert shown.out == ""
    *others, line = shown.err.splitlines()
    assert tuple(others) == before
    assert re.match("geolabel: ", line)
    assert says in line


@pytest.mark.parametrize("command", ["info", "extract", "predict", "polygonize"])
def test_an_error_is_1_and_one_line(command: str, tmp_path: Path, capsys):
    out = [] if command == "info" else ["--out", str(tmp_path / ("a.tif" if command == "predict" else "a.gpkg"))]
    assert run([command, str(tmp_path / "missing.tif"), *out]) == 1
    assert_one_line(capsys.readouterr(), "missing.tif")
    assert not list(tmp_path.iterdir())


def test_a_surprise_is_1_and_one_line(scene: str, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr("geolabel.io.read.scenes.SceneReader", lambda *_, **__: 1 // 0)
    assert run(["info", scene]) == 1
    assert_one_line(capsys.readouterr(), "unexpected ZeroDivisionError")
    assert run(["info", scene, "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_an_interrupted_run_is_130(scene: str, monkeypatch: pytest.MonkeyPatch, capsys):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("geolabel.io.read.scenes.SceneReader", interrupt)
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


class OutOfMemoryError(RuntimeError):
    """As torch's for a GPU: it is known by its name."""


@pytest.mark.parametrize(
    ("error", "wanted"),
    [
        (MemoryError(), ""),
        (MemoryError("Unable to allocate 64.0 GiB for an array with shape (1,)"), ", 64.0 GiB wanted"),
        (OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"), ", 20.00 GiB wanted"),
        (
            RuntimeError(
                "[enforce] DefaultCPUAllocator: can't allocate memory: you tried to allocate 68719476736 bytes"
            ),
            ", 64.0 GiB wanted",
        ),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 1073741824 bytes."), ", 1.0 GiB"),
    ],
)
def test_memory_that_runs_out_is_one_line_with_a_way_out(error, wanted: str, scene, monkeypatch, capsys, tmp_path):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("geolabel.extraction.extract.prepare_scenes", fail)
    assert run(["extract", scene, "--out", str(tmp_path / "a.gpkg")]) == 1
    assert_one_line(capsys.readouterr(), f"memory ran out{wanted}", before=("preparing",))
    monkeypatch.setattr("geolabel.io.read.scenes.SceneReader", fail)
    assert run(["info", scene]) == 1
    assert_one_line(capsys.readouterr(), "close other programs")


def test_the_way_out_of_too_little_memory_names_options_that_there_are(scene, monkeypatch, capsys, tmp_path):
    def fail(*_, **__):
        raise MemoryError

    monkeypatch.setattr("geolabel.extraction.extract.prepare_scenes", fail)
    assert run(["extract", scene, "--out", str(tmp_path / "a.gpkg")]) == 1
    assert "a smaller --batch or --tile-size or --block-size or --workers or --bounds" in capsys.readouterr().err


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

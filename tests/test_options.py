"""The command line and the library speak of the same parameters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import click
import pytest

from geolabel.cli.extract import extract
from geolabel.cli.inputs import parse_bounds
from geolabel.cli.main import run
from geolabel.cli.options import Request
from geolabel.cli.predict import predict
from geolabel.errors import OptionError
from geolabel.extraction.request import Networks, Parameters, Reading, SceneMethod
from geolabel.methods import alps, cism, student
from geolabel.parsing import Measure


def given(*arguments: str) -> Request:
    context = extract.make_context("extract", ["scene.tif", "--out", "x.gpkg", *arguments])
    return Request.of(context.params)


def test_defaults_are_those_of_the_library() -> None:
    assert given() == Request(Reading(), Networks(), Parameters())


def test_every_parameter_has_its_option() -> None:
    names = {option.name for option in extract.params}
    known = {field.name for record in (Parameters, Networks, Reading) for field in fields(record)}
    assert known <= names


def test_predict_takes_what_extract_takes_but_for_polygons() -> None:
    missing = {option.name for option in extract.params} - {option.name for option in predict.params}
    assert missing == {
        "score_out",
        "mask_out",
        "preview",
        "score_threshold",
        "min_confidence",
        "min_area",
        "max_hole",
        "simplify",
        "split",
        "smooth",
        "dry_run",
        "dem",
        "min_slope",
        "exclude",
        "before",
        "before_mask",
        "event_after",
        "event_before",
        "register",
        "cut",
        "dst_crs",
        "keep_reviewed",
        "discard_review",
    }


def test_options_arrive_in_their_records() -> None:
    request = given(
        "--tile-size", "256", "--min-area", "400m2", "--bands", "3,2,1", "--device", "cpu", "--bounds", "0,1,2,3"
    )
    assert request.parameters.tile_size == 256
    assert request.parameters.min_area == Measure(400, "m2")
    assert request.reading.bands == "3,2,1"
    assert request.reading.bounds == (0, 1, 2, 3)
    assert request.networks.device == "cpu"


@pytest.mark.parametrize("text", ["", "1,2,3", "a,b,c,d", "5,0,1,1", "0,5,1,1"])
def test_bounds_that_enclose_nothing_are_refused(text: str) -> None:
    with pytest.raises(OptionError, match="bounds"):
        parse_bounds(text)


@pytest.mark.parametrize("text", ["400", "400km", "-1m2", "m2", "nan m2"])
def test_a_measure_needs_a_unit_and_a_sensible_value(text: str) -> None:
    with pytest.raises(click.BadParameter):
        given("--min-area", text)


@pytest.mark.parametrize("command", [extract, predict], ids=["extract", "predict"])
@pytest.mark.parametrize(
    ("words", "option", "owner"),
    [
        ("--confidence 0.9", "--confidence", "s2c, not of apsam"),
        ("--clusters nope.json", "--clusters", "alps, not of apsam"),
        ("--method s2c --activation-floor 3", "--activation-floor", "apsam, not of s2c"),
        ("--method cism --selection whole", "--selection", "apsam and s2c and diffuprompter and sam3, not of cism"),
        ("--method cism --draws 2", "--draws", "diffuprompter, not of cism"),
        (
            "--method alps --clusters c.json --gate 0",
            "--gate",
            "apsam and s2c and cism and diffuprompter and sam3, not of alps",
        ),
        (
            "--student s.safetensors --gate 0.5",
            "--gate",
            "apsam and s2c and cism and diffuprompter and sam3, not of student",
        ),
        (
            "--student s.safetensors --prompts box",
            "--prompts",
            "apsam and s2c and diffuprompter and sam3, not of student",
        ),
        ("--student s.safetensors --method apsam", "--student", "student, not of apsam"),
        ("--cluster-name river", "--cluster-name", "alps, not of apsam"),
    ],
)
def test_options_of_another_method_are_refused(
    command: click.Command, words: str, option: str, owner: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s.safetensors").touch()
    context = command.make_context("extract", ["scene.tif", "--out", "x.tif", *words.split()])
    with pytest.raises(OptionError, match=f"^{option} is an option of --method {owner}, which has --"):
        Request.of(context.params)


@pytest.mark.parametrize(
    ("method", "networks", "message"),
    [
        (student.Scenes(student="s.safetensors"), Networks(localizer="bundled"), "--localizer bundled: a student"),
        (student.Scenes(student="s.safetensors"), Networks(sam="vit_b"), "--sam vit_b: a student segments by itself"),
        (cism.Scenes(), Networks(sam="vit_b"), "--sam vit_b: --method cism uses no segmenter; leave it out"),
        (cism.Scenes(), Networks(sam_checkpoint="a.pth"), "--sam-checkpoint a.pth: --method cism uses no segmenter"),
        (alps.Scenes(clusters="c.json"), Networks(localizer="a"), "--localizer a: --method alps has no localizer"),
    ],
)
def test_networks_that_a_method_does_not_run_are_refused(method: SceneMethod, networks: Networks, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        method.recipes(networks)


@pytest.mark.parametrize(("words", "message"), [("student", "give --student FILE"), ("alps", "give --clusters FILE")])
def test_what_a_method_cannot_do_without_is_asked_for(words: str, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        given("--method", words)


def test_a_student_is_a_method(tmp_path: Path) -> None:
    (tmp_path / "s.safetensors").touch()
    for words in ([], ["--method", "student"]):
        found = given("--student", str(tmp_path / "s.safetensors"), *words).parameters.method
        assert (found.name, found.dense) == ("student", True)


def test_classes_and_clusters_are_named_one_by_one(tmp_path: Path) -> None:
    words = ["--method", "alps", "--clusters", "c.json", "--cluster-name", "scar", "--cluster-name", "fan"]
    found = given(*words, "--class", "fan").parameters
    assert found.class_names == ("fan",)
    assert found.method == alps.Scenes(clusters="c.json", cluster_names=("scar", "fan"))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Reading(gsd=-1), "^gsd -1 m: give a positive number of metres$"),
        (lambda: Reading(working_gsd=float("nan")), "^working gsd nan m: give a positive"),
        (lambda: Reading(stretch="wide"), "give percentiles"),
        (lambda: Networks(device="gpu"), "^device 'gpu' is unknown: give auto, cpu, cuda"),
    ],
)
def test_records_refuse_what_cannot_be(make: Callable[[], object], says: str) -> None:
    with pytest.raises(OptionError, match=says):
        make()


def test_adapt_names_only_segmenters_whose_decoder_it_can_fit(capsys: pytest.CaptureFixture[str]) -> None:
    said = {}
    for command in ("adapt", "extract"):
        assert run([command, "--help"]) == 0
        said[command] = " ".join(capsys.readouterr().out.partition("--sam ")[2].split())
    assert said["adapt"].startswith("FILE Segmenter of geolabel's own, whose decoder can be fitted. Default: bundled.")
    assert said["extract"].startswith("NAME|FOLDER Segmenter: a name from geolabel models list")

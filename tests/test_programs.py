"""What programs that call geolabel rely on: the fields of ``--json`` are those that the guide names."""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import redirect_stdout
from dataclasses import fields
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any

import click
import pytest

from geolabel.adaptation.adapt import Adaptation
from geolabel.cli.adapt import _figures as figures_of_adapt
from geolabel.cli.main import cli, run
from geolabel.extraction.explain import _Answer

GUIDE = Path(__file__).parents[1] / "docs" / "guide" / "programs.md"

CALLS = {
    "synthesize": "synthesize scene.tif --size 256 --gsd 0.5 --seed 0",
    "extract": "extract scene.tif --out slides.gpkg --keep",
    "extract --dry-run": "extract scene.tif --dry-run",
    "explain": "explain scene.tif --at 500064,2999936",
    "segment": "segment scene.tif --out segments.gpkg --points-per-side 4",
    "predict": "predict scene.tif --out scores.tif",
    "polygonize": "polygonize scene_truth.tif --out truth.gpkg",
    "adapt --dry-run": "adapt scene.tif --reviewed truth.gpkg --accept-unreviewed --level threshold --dry-run",
    "evaluate": "evaluate truth.gpkg scene_truth.tif",
    "info SCENE": "info scene.tif",
    "info SLIDES": "info truth.gpkg",
    "review diff": "review diff truth.gpkg slides.gpkg",
    "review merge": "review merge truth.gpkg slides.gpkg --out both.gpkg",
    "review export": "review export truth.gpkg --out truth.parquet",
    "review stac": "review stac truth.gpkg --out truth.json --date 2024-01-01",
    "review next": "review next truth.gpkg",
    "review estimate": "review estimate truth.gpkg",
    "review view": "review view truth.gpkg --scene scene.tif --out page.html",
    "models list": "models list",
    "models fetch": "models fetch bundled",
    "models verify": "models verify bundled",
    "doctor": "doctor",
    "runs list": "runs list .",
}
"""A call of each command that the guide names, in an order in which each finds its files."""


def documented() -> dict[str, tuple[set[str], set[str]]]:
    """Fields by command: those that are always there, and those that may be."""
    text = re.search("<!-- fields -->(.*?)<!-- end -->", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    assert text is not None
    found = {}
    for row in text[1].strip().splitlines()[2:]:
        command, fields = row.strip("| ").split(" | ")
        always, _, sometimes = fields.partition("[")
        found[command.strip("`")] = tuple({*re.findall("`([^`]+)`", part)} for part in (always, sometimes))
    return found


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What each call prints with ``--json``, and nothing beside it."""
    folder = tmp_path_factory.mktemp("programs")
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for command, words in CALLS.items():
            with redirect_stdout(StringIO()) as stdout:
                code = run([*words.split(), "--json", "-q"])
            assert code in (0, 4) or command == "doctor", command  # a machine that is not well is described too
            found[command] = json.loads(stdout.getvalue())
            assert found[command], command
    return found


@pytest.mark.parametrize("command", CALLS)
def test_the_fields_are_those_of_the_guide(printed: Mapping[str, Any], command: str) -> None:
    always, sometimes = documented()[command]
    objects = printed[command] if isinstance(printed[command], list) else [printed[command]]
    for one in objects:
        assert always <= {*one} <= always | sometimes


def test_every_command_of_the_guide_is_called_here() -> None:
    assert {*documented()} == {*CALLS, "adapt"}


def test_the_fields_of_adapt_are_those_of_the_guide() -> None:
    """It takes a scene with reviewed landslides, and longer than the other commands do."""
    counts = dict.fromkeys(("landslides", "rejected", "areas", "tiles", "blocks"), 3)
    found = Adaptation(None, {"none": 0.5}, cut=(1.0, 1.0), gate=(1.0, 1.0), **counts)
    always, sometimes = documented()["adapt"]
    assert ({*figures_of_adapt(found)}, sometimes) == (always, set())


def test_the_parts_of_fields_are_those_of_the_guide(printed: Mapping[str, Any]) -> None:
    text = GUIDE.read_text(encoding="utf-8").rpartition("<!-- end -->")[2]
    assert {*printed["doctor"]["findings"][0]} == {"name", "ok", "found", "advice"}
    for name in ("name", "ok", "found", "advice", *(field.name for field in fields(_Answer))):
        assert f"`{name}`" in text


@cache
def _commands() -> dict[str, click.Command]:
    def walk(command: click.Command, name: str) -> Iterator[tuple[str, click.Command]]:
        if isinstance(command, click.Group):
            context = click.Context(command)
            for one in command.list_commands(context):
                found = command.get_command(context, one)
                assert found is not None
                yield from walk(found, f"{name} {one}".strip())
        else:
            yield name, command

    return dict(walk(cli, ""))


def test_every_command_that_has_a_result_prints_it_as_json() -> None:
    without = {name for name, one in _commands().items() if "as_json" not in {param.name for param in one.params}}
    assert without == {"runs clean", "completion"}  # which print what was deleted, and a script


def test_areas_and_counts_agree_between_commands(printed: Mapping[str, Any]) -> None:
    polygons = printed["polygonize"]
    assert polygons["landslides"] > 0
    layers = printed["info SLIDES"]["layers"]
    assert layers["landslides"]["count"] == polygons["landslides"] == printed["review export"]["landslides"]
    assert layers["landslides"]["area_m2"] == pytest.approx(polygons["area_m2"], rel=1e-6)
    assert printed["evaluate"]["f1"] > 0.98

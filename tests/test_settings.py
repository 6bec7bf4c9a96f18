"""Fields of the records of the methods are the options of the command line, with one declaration each."""

import subprocess
import sys
from dataclasses import dataclass, fields, replace
from importlib import import_module
from typing import Annotated, Any, Literal

import click
import pytest

from geolabel import concepts, prompters
from geolabel.cli.extract import extract
from geolabel.cli.label import label
from geolabel.cli.predict import predict
from geolabel.cli.segment import segment
from geolabel.cli.settings import owners_of, setting_option
from geolabel.errors import OptionError
from geolabel.methods import METHODS, Use, alps, cism, diffuprompter, s2c, sam3
from geolabel.models import diffusion_files
from geolabel.settings import Setting, check_limits, option_name, settings_of
from geolabel.settings.methods import ApsamChips, DiffuprompterChips, DiffuprompterScenes, GridSettings

SCENES = [(command, method) for command in (extract, predict) for method in METHODS]
CHIPS = [(label, name) for name, method in METHODS.items() if method.for_chips]


@pytest.mark.parametrize(
    ("command", "record", "home"),
    [
        *((command, "Scenes", METHODS[method].home) for command, method in SCENES),
        *((command, "Settings", METHODS[method].home) for command, method in CHIPS),
        (segment, "GridPrompts", "geolabel.extraction.segment"),
    ],
)
def test_every_field_that_a_method_takes_is_an_option(command: click.Command, record: str, home: str) -> None:
    found = getattr(import_module(home), record)
    taken = {one.name: one.opts for one in command.params}
    for name in (one.name for one in fields(found) if one.init):
        assert option_name(found, name).split("/")[0] in taken[name]


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_the_records_of_a_method_have_the_settings_that_the_registry_names(method: Any) -> None:
    module = import_module(method.home)
    assert issubclass(module.Scenes, method.for_scenes)
    assert settings_of(module.Scenes) == settings_of(method.for_scenes)
    if method.for_chips is not None:
        assert issubclass(module.Settings, method.for_chips)
        assert settings_of(module.Settings) == settings_of(method.for_chips)


RECORDS = [
    GridSettings,
    *(record for known in METHODS.values() for record in (known.for_scenes, known.for_chips) if record),
]


@pytest.mark.parametrize("record", RECORDS)
def test_every_setting_says_in_sentences_what_it_is(record: type) -> None:
    for known in settings_of(record).values():
        assert known.help.endswith(".")
        assert known.help[0].isupper()


@pytest.mark.parametrize("use", ["for_scenes", "for_chips"])
def test_methods_that_share_an_option_have_the_same_limits(use: Use) -> None:
    for name, owners in owners_of(use).items():
        assert len({replace(settings_of(record)[name], help="") for record in owners.values()}) == 1, name


def test_defaults_are_the_constants_of_the_methods() -> None:
    assert ApsamChips().activation_threshold == prompters.THRESHOLD
    for words in (DiffuprompterChips(), DiffuprompterScenes()):
        assert words.diffusion == diffusion_files.DEFAULT
        assert words.template == concepts.TEMPLATE
    assert DiffuprompterChips().threshold == 0.4  # eq. 10


def help_of(command: click.Command, name: str) -> str | None:
    return next(one.help for one in command.params if isinstance(one, click.Option) and one.name == name)


def test_the_help_says_which_methods_have_an_option_and_their_defaults() -> None:
    assert help_of(extract, "activation_threshold") == (
        "apsam, s2c, diffuprompter, sam3: threshold of the activation, a grey value. Default: 120; 102 with "
        "diffuprompter; 127 with sam3."
    )
    assert help_of(label, "activation_threshold") == (
        "apsam, cism: threshold of the activation, a grey value. Default: 120; 102 with cism."
    )
    assert help_of(extract, "cluster_names") == ("alps: name of the clusters to find; repeatable. Default: landslide.")
    assert str(help_of(extract, "student")).startswith("Student of geolabel train student")


@dataclass(frozen=True)
class Example:
    side: Annotated[int, Setting("Side.", "shape", low=1, metavar="PX")] = 4
    share: Annotated[float | None, Setting("Share.", "shape", above=0, below=1)] = None
    gate: Annotated[float, Setting("Gate.", "sensitivity", rare=True, low=0, high=1)] = 0.0
    ratio: Annotated[float, Setting("Ratio.", "shape")] = 1.5
    words: Annotated[tuple[str, ...], Setting("Words.", "input", flag="--word")] = ()
    kind: Annotated[Literal["a", "b"] | None, Setting("Kind.", "method")] = None
    some: Annotated[Literal["a", "b"], Setting("Some.", "method", choices=("a",))] = "a"
    loud: Annotated[bool, Setting("Loud.", "messages")] = False
    quiet: Annotated[bool | None, Setting("Quiet.", "messages", flag="--quiet/--no-quiet")] = None
    file: Annotated[str | None, Setting("File.", "input", kind="path")] = None
    plain: int = 3


def made(name: str, **changes: Any) -> click.Option:
    @click.command()
    @setting_option(Example, name, **changes)
    def command(**_: Any) -> None: ...

    (option,) = command.params
    assert isinstance(option, click.Option)
    return option


def test_types_and_limits_become_types_of_options() -> None:
    side, share, ratio, kind, some = (made(name).type for name in ("side", "share", "ratio", "kind", "some"))
    assert isinstance(side, click.IntRange)
    assert (side.min, side.max, made("side").metavar, made("side").default) == (1, None, "PX", 4)
    assert isinstance(share, click.FloatRange)
    assert (share.min, share.max, share.min_open, share.max_open) == (0, 1, True, True)
    assert ratio is click.FLOAT
    assert isinstance(kind, click.Choice)
    assert list(kind.choices) == ["a", "b"]
    assert isinstance(some, click.Choice)
    assert list(some.choices) == ["a"]
    assert isinstance(made("file").type, click.Path)


def test_flags_repeated_options_and_zero_are_what_they_are_in_the_record() -> None:
    assert (made("words").opts, made("words").name, made("words").multiple) == (["--word"], "words", True)
    assert made("loud").is_flag
    assert made("quiet").secondary_opts == ["--no-quiet"]
    assert made("gate").show_default  # 0 is a default to show, None and False are none
    assert not made("kind").show_default
    assert not made("loud").show_default
    assert made("gate", help="Other.").help == "Other."
    assert "plain" not in settings_of(Example)
    assert repr(settings_of(Example)["side"]) == "Setting('Side.')"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: s2c.Scenes(gate=2.0), r"^gate 2\.0: it must be between 0 and 1$"),
        (lambda: s2c.Scenes(confidence=-0.1), r"^confidence -0\.1: it must be between 0 and 1$"),
        (lambda: cism.Scenes(gate=float("nan")), "^gate nan: it must be between 0 and 1$"),
        (lambda: alps.Scenes(clusters="c.json", min_quality=1.5), r"^min quality 1\.5: it must be between 0 and 1$"),
        (lambda: diffuprompter.Scenes(activation_threshold=256), "threshold 256: it must be between 0 and 255$"),
        (lambda: check_limits(Example(gate=3)), "^gate 3: it must be between 0 and 1$"),
        (lambda: diffuprompter.Settings(threshold=1.0), r"^threshold 1\.0: it must be between 0 and 1$"),
        (lambda: sam3.Settings(threshold=0.0), r"^threshold 0\.0: it must be between 0 and 1$"),
    ],
)
def test_records_hold_their_numbers_to_their_limits(make: Any, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        make()


def test_options_are_made_without_numpy() -> None:
    code = "import sys, geolabel.cli.extract, geolabel.cli.label; assert not {'numpy', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)

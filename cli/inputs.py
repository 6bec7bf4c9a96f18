"""Types of arguments: files, networks and measures, checked before large libraries are imported."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from geolabel.errors import ChipError, GeolabelError, SceneError, VectorError, WeightsError
from geolabel.models import registry
from geolabel.models.hub import HUB_ID

if TYPE_CHECKING:
    from geolabel.io.read.scene_inputs import SceneInput

ELSEWHERE = re.compile(r"/vsi|\w[\w+.-]+:|\s*[<{]|.*[*?\[]", re.DOTALL)
"""Texts that are not plain paths: URLs, GDAL drivers and file systems, inline descriptions, and patterns."""

WORD = re.compile(r"[\w-]+")
"""Form of names of published networks, unless a file of that name exists."""

GLANCE = 4096
"""Maximum entries of a folder that are searched for a similar name."""


def check_exists(text: str, error: type[GeolabelError]) -> None:
    """Refuse the plain path of a file or folder that does not exist.

    Parameters
    ----------
    error
        Class of the error to raise.
    """
    if not ELSEWHERE.match(text) and not os.path.exists(text):  # noqa: PTH110  # False for names that no file can have
        raise error(f"{_shown(text)}: there is no such file{_similar(text)}")


def check_scenes(texts: Iterable[str]) -> None:
    """Refuse scenes that are plain paths of missing files."""
    for text in texts:
        check_exists(text, SceneError)


def check_inputs(scenes: Iterable[SceneInput]) -> None:
    """Refuse entries of lists and STAC items that are plain paths of missing files."""
    check_scenes(scene.source for scene in scenes if isinstance(scene.source, str))


def check_outputs(*targets: str | None, overwrite: bool, run_dir: str | None = None) -> None:
    """Refuse outputs that cannot be written, as far as that is known without reading the run that may be resumed.

    Parameters
    ----------
    run_dir
        Folder of its records, if not beside the output.
    """
    from geolabel.outputs import check_target

    given = [Path(target) for target in targets if target is not None]
    resumed = run_dir is not None or any(path.with_name(f"{path.name}.run").exists() for path in given)
    for path in given:
        check_target(path, overwrite=overwrite or resumed, suffixes=(path.suffix.lower(),))


def one_output(named: str | None, out: str | None, example: str) -> str:
    """The output of a command, given among its arguments or with --out.

    Parameters
    ----------
    named
        Output among the arguments.
    example
        Example for --out, for the message.
    """
    from geolabel.errors import OptionError

    if named and out:
        raise OptionError(f"two outputs, {named} and {out}: give one")
    if not (named or out):
        raise OptionError(f"no output: give --out {example}")
    return named or out or ""


def _shown(text: str) -> str:
    return text if len(text) <= 300 else f"{text[:300]}..."


def _similar(text: str) -> str:
    # A similar name in the folder.
    path = Path(text)
    try:
        with os.scandir(path.parent) as entries:
            names = [entry.name for entry in islice(entries, GLANCE)]
    except (OSError, ValueError):
        return ""
    close = get_close_matches(path.name, names, n=1, cutoff=0.75)
    return f"; {path.parent / close[0]} is there" if close else ""


class Input(click.Path):
    """An existing file or folder to read, or a URL or name.

    Parameters
    ----------
    error
        Class of the error for a missing file.
    names
        Pattern of names, such as that of the bundled network, that are accepted if there is no such file.
    role
        Role of the networks that may be given by name; other words are refused.
    settings
        As for ``click.Path``.
    """

    def __init__(
        self,
        error: type[GeolabelError],
        *,
        names: str | None = None,
        role: registry.Role | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        self.error = error
        self.names = names
        self.role = role

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Check the path."""
        text = os.fspath(value)
        if self.role and WORD.fullmatch(text) and not os.path.exists(text):  # noqa: PTH110
            registry.lookup(text, self.role)
        elif not (self.names and re.fullmatch(self.names, text)):
            check_exists(text, self.error)
        return super().convert(value, param, ctx)


SCENE = Input(SceneError)
MASK = Input(SceneError, names="none")
VECTORS = INVENTORY = Input(VectorError, dir_okay=False)
WEIGHTS = Input(WeightsError, dir_okay=False)
NETWORK = Input(WeightsError, names=HUB_ID.pattern, role="localizer")
SEGMENTER = Input(
    WeightsError,
    names=rf"{'|'.join(map(re.escape, registry.names('segmenter')))}|{HUB_ID.pattern}",
    role="segmenter",
)
FOLDER = Input(WeightsError, file_okay=False)
CHIPS = Input(ChipError)
CHIPS_PATH = Input(ChipError, path_type=Path)


class BatchSize(click.ParamType):  # type: ignore[type-arg]
    """A number of images, or ``auto``."""

    name = "batch"

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:  # noqa: ARG002
        """Show the choice in the help."""
        return "N|auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Accept ``auto`` or a positive number."""
        if value == "auto" or isinstance(value, int):
            return value
        if not (value.isdecimal() and int(value)):
            self.fail(f"{value!r}: give a number from 1, or auto", param, ctx)
        return int(value)


class MeasureType(click.ParamType):  # type: ignore[type-arg]
    """A length or an area with its unit, such as 2px, 1.5m or 400m2."""

    name = "measure"

    def __init__(self, *units: str) -> None:
        self.units = units

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:  # noqa: ARG002
        """Show the units in the help."""
        return "|".join(f"N{unit}" for unit in self.units)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse the text; a bare number is an error that names the units."""
        from geolabel.errors import OptionError
        from geolabel.parsing import Measure

        if isinstance(value, Measure):
            return value
        try:
            return Measure.parse(value, units=self.units)
        except OptionError as error:
            self.fail(str(error), param, ctx)


def parse_place(text: str) -> tuple[float, float]:
    """Read x and y."""
    from geolabel.errors import OptionError

    try:
        x, y = (float(part) for part in text.replace(",", " ").split())
    except ValueError:
        raise OptionError(f"place {text!r}: give two numbers, X,Y in the scene's CRS or in that of --at-crs") from None
    return x, y


def parse_bounds(text: str) -> tuple[float, float, float, float]:
    """Read four numbers."""
    from geolabel.errors import OptionError

    try:
        left, bottom, right, top = (float(part) for part in text.replace(",", " ").split())
    except ValueError:
        raise OptionError(f"bounds {text!r}: give four numbers, LEFT,BOTTOM,RIGHT,TOP in the scene's CRS") from None
    if not (left < right and bottom < top):
        raise OptionError(f"bounds {text!r} enclose nothing: LEFT has to be less than RIGHT and BOTTOM than TOP")
    return left, bottom, right, top


def numbers(kind: Callable[[str], Any]) -> Callable[[click.Context, click.Parameter, str], tuple[Any, ...]]:
    """Return a callback that reads numbers with commas between them, each once."""

    def read(ctx: click.Context, param: click.Parameter, value: str) -> tuple[Any, ...]:
        try:
            return tuple(dict.fromkeys(kind(part) for part in value.split(",")))
        except ValueError:
            raise click.BadParameter(f"{value!r}: give numbers with commas between them", ctx, param) from None

    return read

"""Files that a command reads and writes: what is in the way is named at once, before anything heavy is imported."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
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
"""What is no plain path: URLs, names of GDAL's drivers and file systems, whole descriptions, and patterns."""

GLANCE = 4096
"""Entries of a folder among which a similar name is looked for."""


def check_exists(text: str, error: type[GeolabelError]) -> None:
    """Refuse the plain path of a file or folder that is not there.

    Parameters
    ----------
    error
        Class of the error to raise.
    """
    if not ELSEWHERE.match(text) and not os.path.exists(text):  # noqa: PTH110  # False for names that no file can have
        raise error(f"{_shown(text)}: there is no such file{_similar(text)}")


def check_scenes(texts: Iterable[str]) -> None:
    """Refuse scenes that are plain paths of files that are not there."""
    for text in texts:
        check_exists(text, SceneError)


def check_inputs(scenes: Iterable[SceneInput]) -> None:
    """Refuse what lists and STAC items name, where it is a plain path of a file that is not there."""
    check_scenes(scene.source for scene in scenes if isinstance(scene.source, str))


def check_outputs(*targets: str | None, overwrite: bool, run_dir: str | None = None) -> None:
    """Refuse outputs that cannot be written, as far as that is known without reading the run that may be resumed.

    Parameters
    ----------
    run_dir
        Where its records are, if that is not beside the output.
    """
    from geolabel.outputs import check_target

    given = [Path(target) for target in targets if target is not None]
    resumed = run_dir is not None or any(path.with_name(f"{path.name}.run").exists() for path in given)
    for path in given:
        check_target(path, overwrite=overwrite or resumed, suffixes=(path.suffix.lower(),))


def _shown(text: str) -> str:
    return text if len(text) <= 300 else f"{text[:300]}..."


def _similar(text: str) -> str:
    # What may have been meant, where the folder holds something of nearly that name.
    path = Path(text)
    try:
        with os.scandir(path.parent) as entries:
            names = [entry.name for entry in islice(entries, GLANCE)]
    except (OSError, ValueError):
        return ""
    close = get_close_matches(path.name, names, n=1, cutoff=0.75)
    return f"; {path.parent / close[0]} is there" if close else ""


class Input(click.Path):
    """A file or folder to read, which has to be there, or a name that leads elsewhere.

    Parameters
    ----------
    error
        Class of the error to raise where it is missing.
    names
        Pattern of what is a name, such as that of the bundled network, where there is no such file.
    settings
        As for ``click.Path``.
    """

    def __init__(self, error: type[GeolabelError], *, names: str | None = None, **settings: Any) -> None:
        super().__init__(**settings)
        self.error = error
        self.names = names

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Check the path."""
        text = os.fspath(value)
        if not (self.names and re.fullmatch(self.names, text)):
            check_exists(text, self.error)
        return super().convert(value, param, ctx)


SCENE = Input(SceneError)
VECTORS = Input(VectorError, dir_okay=False)
WEIGHTS = Input(WeightsError, dir_okay=False)
NETWORK = Input(WeightsError, dir_okay=False, names=r"[\w-]+")
SEGMENTER = Input(
    WeightsError, names=rf"[\w-]+|{'|'.join(map(re.escape, registry.names('segmenter')))}|{HUB_ID.pattern}"
)
CHIPS = Input(ChipError)
CHIPS_PATH = Input(ChipError, path_type=Path)

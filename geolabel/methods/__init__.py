"""The published methods, each a composition of the parts and a module of this package.

A module that labels images has a frozen dataclass ``Settings``, whose fields are the method's own options with their
defaults, and a function ``label`` of the shape of `Label`. A new method is its module, one more line in `METHODS`, and
those of its options that no other method has in ``geolabel.cli.label``. A method that has a localizer has a setting of
that name: `Networks` says which segmenter runs, and where.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from geolabel.errors import OptionError

if TYPE_CHECKING:
    from geolabel.engine.progress import Progress
    from geolabel.extraction.request import Networks


class Label(Protocol):
    """Labels every image of a folder and writes the pseudo-labels."""

    def __call__(
        self, chips: Path, out: Path, settings: Any, networks: Networks, *, overwrite: bool, progress: Progress
    ) -> dict[str, Any]:
        """Return the figures that a user wants to see at the end."""
        ...


@dataclass(frozen=True)
class Method:
    """What is known of a method before anything heavy is imported."""

    summary: str
    """For the help: what it needs."""
    home: str
    """The module with its `Settings` and `label`."""

    @property
    def label(self) -> Label:
        """The function that labels a folder."""
        function: Label = import_module(self.home).label
        return function

    def settings(self, given: Mapping[str, Any]) -> Any:
        """The method's settings from options by name; those that are None keep their defaults.

        Raises
        ------
        OptionError
            If an option was given that the method does not have, or a value cannot be.
        """
        record = import_module(self.home).Settings
        known = {field.name for field in fields(record)}
        chosen = {name: value for name, value in given.items() if value is not None}
        foreign = sorted(set(chosen) - known)
        if foreign:
            names = ", ".join("--" + name.replace("_", "-") for name in foreign)
            own = ", ".join("--" + name.replace("_", "-") for name in sorted(known))
            raise OptionError(f"{names}: no option of this method, which has {own}")
        return record(**chosen)


def label(
    chips: str | Path,
    out: str | Path,
    *,
    method: str,
    networks: Networks | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Make pseudo-labels of a folder of images. What was stopped resumes with the same call.

    Parameters
    ----------
    chips
        Folder of images; see `geolabel.read_chips`.
    out
        Folder to write.
    method
        A name of `METHODS`.
    networks
        The segmenter, and where networks run.
    overwrite
        Whether pseudo-labels in the folder may be replaced.
    progress
        Follows the run.
    **options
        Settings of the method by name, see the ``Settings`` of its module; those that are None keep their defaults.

    Returns
    -------
    Figures by name: images, those that were labelled before, classes.

    Raises
    ------
    GeolabelError
        See `geolabel.errors`.
    """
    from geolabel.engine.progress import Silent
    from geolabel.extraction.request import Networks

    if method not in METHODS:
        raise OptionError(f"method {method}: give one of {', '.join(METHODS)}")
    chosen = METHODS[method]
    settings = chosen.settings(options)
    return chosen.label(
        Path(chips), Path(out), settings, networks or Networks(), overwrite=overwrite, progress=progress or Silent()
    )


METHODS: dict[str, Method] = {
    "apsam": Method(
        "labels of whole chips: contours of the class activation ask a segmenter", "geolabel.methods.apsam"
    ),
    "s2c": Method("labels of whole chips: peaks of the class activation ask a segmenter", "geolabel.methods.s2c"),
    "cism": Method("labels of whole chips: the class activation, thresholded", "geolabel.methods.cism"),
    "alps": Method("no label at all: clusters of everything that the segmenter finds", "geolabel.methods.alps"),
    "diffuprompter": Method("classes in words, no training", "geolabel.methods.diffuprompter"),
}
"""By the name that ``--method`` takes."""

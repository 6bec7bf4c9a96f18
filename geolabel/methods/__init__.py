"""The methods by name, each a module of this package.

A module has, for scenes, a frozen dataclass ``Scenes``, a `geolabel.extraction.request.SceneMethod`; and for
folders of images a frozen dataclass ``Settings`` and a function ``label`` of the shape of `Label`. The fields of both
records are the options of the method. A new method is its module, one more line in `METHODS`, and on the command line
those of its options that no other method has. This is the only place where methods are chosen by their names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from geolabel.errors import OptionError

if TYPE_CHECKING:
    from geolabel.engine.tasks import Progress
    from geolabel.extraction.request import Networks, SceneMethod


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
    """The module with its records and functions."""
    labels: bool = True
    """Whether it labels folders of images."""

    @property
    def label(self) -> Label:
        """The function that labels a folder."""
        function: Label = import_module(self.home).label
        return function

    def settings(self, given: Mapping[str, Any]) -> Any:
        """The method's settings for a folder from options by name; those that are None keep their defaults.

        Raises
        ------
        OptionError
            If an option was given that the method does not have, or a value cannot be.
        """
        return _chosen(self, "Settings", given)

    @property
    def scenes(self) -> type[SceneMethod]:
        """Its record for scenes."""
        record: type[SceneMethod] = import_module(self.home).Scenes
        return record

    def options(self, record: Literal["Settings", "Scenes"]) -> list[str]:
        """Names of the settings of one of its records that can be chosen."""
        found = getattr(import_module(self.home), record, None)
        return [] if found is None else sorted(one.name for one in fields(found) if one.init)


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
        The segmenter, the localizer where no setting names one, and where networks run.
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
    from geolabel.engine.tasks import Silent
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
    "student": Method("a student of your own", "geolabel.methods.student", labels=False),
}
"""By the name that ``--method`` takes."""

DEFAULT, STUDENT = "apsam", "student"
"""Methods over scenes where none is named, without and with a student."""


def scene_method(given: Mapping[str, Any], name: str | None = None) -> SceneMethod:
    """A method over scenes from options by name; those that are None keep their defaults.

    Parameters
    ----------
    name
        Of the method; None for the default, or for the student where one is given.

    Raises
    ------
    OptionError
        If there is no such method, an option is one of another method, or a value cannot be.
    """
    name = name or (DEFAULT if given.get("student") is None else STUDENT)
    if name not in METHODS:
        raise OptionError(f"no method is called {name!r}: known are {', '.join(METHODS)}")
    method: SceneMethod = _chosen(METHODS[name], "Scenes", given)
    return method


def _chosen(method: Method, record: Literal["Settings", "Scenes"], given: Mapping[str, Any]) -> Any:
    """A record of a method; its own options alone may be given."""
    known, chosen = method.options(record), {name: value for name, value in given.items() if value is not None}
    foreign = sorted(set(chosen) - set(known))
    if foreign:
        owners = [name for name, other in METHODS.items() if foreign[0] in other.options(record)]
        own = next(name for name, other in METHODS.items() if other is method)
        raise OptionError(
            f"{_option(foreign[0])} is an option of --method {' and '.join(owners)}, not of {own}, which has "
            f"{', '.join(map(_option, known))}"
        )
    return getattr(import_module(method.home), record)(**chosen)


def _option(name: str) -> str:
    """A setting as the command line names it."""
    return {"cluster_names": "--cluster-name"}.get(name, "--" + name.replace("_", "-"))

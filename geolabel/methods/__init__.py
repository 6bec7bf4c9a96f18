"""The methods by name, each a module of this package.

A module has, for scenes, a frozen dataclass ``Scenes``, a `geolabel.extraction.request.SceneMethod`; and for folders of
images a frozen dataclass ``Settings`` and a function ``label`` like `Label`. Both records inherit their fields from
`geolabel.settings.methods`; the fields are the options of the method. A new method needs a module, settings, and a row
in `METHODS`. This is the only place where methods are selected by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from geolabel.errors import OptionError
from geolabel.settings import methods as settings
from geolabel.settings import option_name, settings_of

if TYPE_CHECKING:
    from geolabel.engine.tasks import Progress
    from geolabel.extraction.request import Networks, SceneMethod


class Label(Protocol):
    """Labels every image of a folder and writes the pseudo-labels."""

    def __call__(
        self, chips: Path, out: Path, settings: Any, networks: Networks, *, overwrite: bool, progress: Progress
    ) -> dict[str, Any]:
        """Return the main figures for the user."""
        ...


Use = Literal["for_scenes", "for_chips"]
"""Uses of a method."""

_RECORDS: dict[Use, str] = {"for_scenes": "Scenes", "for_chips": "Settings"}
"""Names of the records in the module of a method."""


@dataclass(frozen=True)
class Method:
    """Description of a method, available without heavy imports."""

    summary: str
    """Text for the help: what it needs."""
    home: str
    """Module with its records and functions."""
    for_scenes: type
    """Its settings over scenes."""
    for_chips: type | None = None
    """Its settings for folders of images; None if it cannot label them."""

    @property
    def label(self) -> Label:
        """The function that labels a folder."""
        function: Label = import_module(self.home).label
        return function

    def settings(self, given: Mapping[str, Any]) -> Any:
        """The method's settings for a folder, from options by name; None keeps the default.

        Raises
        ------
        OptionError
            If the method does not have one of the options, or a value is invalid.
        """
        return _chosen(self, "for_chips", given)

    @property
    def scenes(self) -> type[SceneMethod]:
        """Its record for scenes."""
        record: type[SceneMethod] = import_module(self.home).Scenes
        return record

    def options(self, use: Use) -> dict[str, str]:
        """Option of the command line for each of its settings."""
        record = getattr(self, use)
        return {name: option_name(record, name) for name in (settings_of(record) if record else ())}


def label(
    chips: str | Path,
    out: str | Path,
    *,
    method: str,
    networks: Networks | str | Path | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Write pseudo-labels for a folder of images. An interrupted call can be repeated to resume.

    Parameters
    ----------
    chips
        Folder of images; see `geolabel.read_chips`.
    out
        Folder to write.
    method
        A name of `METHODS`.
    networks
        The segmenter, the localizer if no setting names one, and where networks run.
    overwrite
        Whether existing pseudo-labels in the folder may be replaced.
    progress
        Follows the run.
    **options
        Settings of the method by name, see the ``Settings`` of its module; None keeps the default.

    Returns
    -------
    Figures by name: images, images labelled earlier, classes.

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
        Path(chips), Path(out), settings, Networks.of(networks), overwrite=overwrite, progress=progress or Silent()
    )


METHODS: dict[str, Method] = {
    "apsam": Method(
        "labels of whole chips: contours of the class activation ask a segmenter",
        "geolabel.methods.apsam",
        settings.ApsamScenes,
        settings.ApsamChips,
    ),
    "s2c": Method(
        "labels of whole chips: peaks of the class activation ask a segmenter",
        "geolabel.methods.s2c",
        settings.S2cScenes,
        settings.S2cChips,
    ),
    "cism": Method(
        "labels of whole chips: the class activation, thresholded",
        "geolabel.methods.cism",
        settings.CismScenes,
        settings.CismChips,
    ),
    "alps": Method(
        "no label at all: clusters of everything that the segmenter finds",
        "geolabel.methods.alps",
        settings.AlpsScenes,
        settings.AlpsChips,
    ),
    "diffuprompter": Method(
        "classes in words, no training",
        "geolabel.methods.diffuprompter",
        settings.DiffuprompterScenes,
        settings.DiffuprompterChips,
    ),
    "sam3": Method(
        "classes in words, no training: Segment Anything 3 finds what they name",
        "geolabel.methods.sam3",
        settings.Sam3Scenes,
        settings.Sam3Chips,
    ),
    "student": Method("a student of your own", "geolabel.methods.student", settings.StudentScenes),
}
"""Methods by their name in ``--method``."""

DEFAULT, STUDENT = "apsam", "student"
"""Default methods over scenes, without and with a student."""


def scene_method(given: Mapping[str, Any], name: str | None = None) -> SceneMethod:
    """A method over scenes, from options by name; None keeps the default.

    Parameters
    ----------
    name
        Name of the method; None for the default, or for the student if one is given.

    Raises
    ------
    OptionError
        If there is no such method, an option belongs to another method, or a value is invalid.
    """
    name = name or (DEFAULT if given.get("student") is None else STUDENT)
    if name not in METHODS:
        raise OptionError(f"no method is called {name!r}: known are {', '.join(METHODS)}")
    method: SceneMethod = _chosen(METHODS[name], "for_scenes", given)
    return method


def _chosen(method: Method, use: Use, given: Mapping[str, Any]) -> Any:
    """Create the record of a method; only its own options are accepted."""
    known, chosen = method.options(use), {name: value for name, value in given.items() if value is not None}
    foreign = min(set(chosen) - set(known), default=None)
    if foreign is not None:
        names = {name: other.options(use) for name, other in METHODS.items()}
        owners = [name for name, options in names.items() if foreign in options]
        own = next(name for name, other in METHODS.items() if other is method)
        option = names[owners[0]][foreign] if owners else "--" + foreign.replace("_", "-")
        raise OptionError(
            f"{option} is an option of --method {' and '.join(owners)}, not of {own}, which has "
            f"{', '.join(known[name] for name in sorted(known))}"
        )
    return getattr(import_module(method.home), _RECORDS[use])(**chosen)

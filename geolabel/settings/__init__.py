"""Settings: fields of records that a user chooses, each declared once with its default, its help and its limits.

A field of a frozen dataclass says what it is for beside its type and its default::

    gate: Annotated[float, Setting("Minimum class probability.", "sensitivity", low=0, high=1)] = 0.5

The command line makes its options of such fields, and `check_limits` holds records to the same limits. The records of
this package import nothing heavy, since the help has to be quick; what is done with them is elsewhere. Their modules
keep annotations as objects: no ``from __future__ import annotations`` there.
"""

from dataclasses import dataclass, fields
from typing import Any, Literal

from geolabel.errors import OptionError

Topic = Literal["input", "output", "evidence", "sensitivity", "shape", "method", "machine", "messages"]
"""Groups of settings, in the order of the help."""

Kind = Literal["path", "folder", "weights", "network"]
"""What a path leads to: anything, a folder to write, weights, weights or the name of a network."""


@dataclass(frozen=True, repr=False)
class Setting:
    """What is known of a field besides its name, its type and its default."""

    help: str
    """Sentences for the user. The default follows them where they have no ``Default:``."""
    topic: Topic
    rare: bool = False
    """Whether it is seldom needed."""
    low: float | None = None
    """Minimum."""
    high: float | None = None
    """Maximum."""
    above: float | None = None
    """Bound that the value has to exceed."""
    below: float | None = None
    """Bound that the value has to stay below."""
    metavar: str | None = None
    """What a value looks like, such as ``PX`` or ``NAME``."""
    kind: Kind | None = None
    """What a path leads to."""
    choices: tuple[str, ...] = ()
    """Values to offer, where these are fewer than the type has."""
    flag: str | None = None
    """Name of the option, where that is not the name of the field: ``--cluster-name``."""

    def __repr__(self) -> str:
        """The help alone, which signatures of records show."""
        return f"Setting({self.help!r})"


def settings_of(record: type) -> dict[str, Setting]:
    """The settings of a dataclass by the name of the field, in its order."""
    found = {one.name: getattr(one.type, "__metadata__", ()) for one in fields(record)}
    return {name: known for name, extras in found.items() for known in extras if isinstance(known, Setting)}


def option_name(record: type, name: str) -> str:
    """What the command line calls a field of a record."""
    return settings_of(record)[name].flag or "--" + name.replace("_", "-")


def check_limits(record: Any) -> None:
    """Hold the numbers of a record to their ``low`` and ``high``, where they have both.

    Raises
    ------
    OptionError
        If a number is outside, or is no number; it names the field, the number and the limits.
    """
    for name, one in settings_of(type(record)).items():
        value = getattr(record, name)
        if value is not None and one.low is not None and one.high is not None and not one.low <= value <= one.high:
            raise OptionError(f"{name.replace('_', ' ')} {value}: it has to be between {one.low:g} and {one.high:g}")

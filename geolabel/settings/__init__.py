"""Settings: record fields that a user chooses, each declared once with its default, help and limits.

A field of a frozen dataclass has its purpose beside its type and default::

    gate: Annotated[float, Setting("Minimum class probability.", "sensitivity", low=0, high=1)] = 0.5

The command line makes options of such fields, and `check_limits` enforces the limits on records. The records of this
package import nothing heavy, so that the help is fast; their implementation is elsewhere. Annotations must stay
objects: no ``from __future__ import annotations`` in these modules.
"""

from dataclasses import dataclass, fields
from typing import Any, Literal

from geolabel.errors import OptionError

Topic = Literal["input", "output", "evidence", "sensitivity", "shape", "method", "machine", "messages"]
"""Groups of settings, in the order of the help."""

Kind = Literal["path", "folder", "weights", "network"]
"""What a path refers to: anything, a folder to write, weights, weights or the name of a network."""


@dataclass(frozen=True, repr=False)
class Setting:
    """Description of a field besides its name, type and default."""

    help: str
    """Sentences for the user. The default is appended unless they contain ``Default:``."""
    topic: Topic
    rare: bool = False
    """Whether it is rarely needed."""
    low: float | None = None
    """Minimum."""
    high: float | None = None
    """Maximum."""
    above: float | None = None
    """Exclusive lower bound."""
    below: float | None = None
    """Exclusive upper bound."""
    metavar: str | None = None
    """Placeholder of a value, such as ``PX`` or ``NAME``."""
    kind: Kind | None = None
    """What a path refers to."""
    choices: tuple[str, ...] = ()
    """Values to offer, if fewer than the type has."""
    flag: str | None = None
    """Name of the option, if not the name of the field: ``--cluster-name``."""

    def __repr__(self) -> str:
        """Only the help, for signatures of records."""
        return f"Setting({self.help!r})"


def settings_of(record: type) -> dict[str, Setting]:
    """The settings of a dataclass by field name, in order."""
    found = {one.name: getattr(one.type, "__metadata__", ()) for one in fields(record)}
    return {name: known for name, extras in found.items() for known in extras if isinstance(known, Setting)}


def option_name(record: type, name: str) -> str:
    """The command line's name for a field of a record."""
    return settings_of(record)[name].flag or "--" + name.replace("_", "-")


def check_limits(record: Any) -> None:
    """Check the numbers of a record against their ``low`` and ``high``, or ``above`` and ``below``, if both are set.

    Raises
    ------
    OptionError
        If a number is out of range, or not a number; the message names the field, the number and the limits.
    """
    for name, one in settings_of(type(record)).items():
        value, inclusive = getattr(record, name), one.low is not None
        low, high = (one.low, one.high) if inclusive else (one.above, one.below)
        if value is None or low is None or high is None:
            continue
        if not (low <= value <= high if inclusive else low < value < high):
            raise OptionError(f"{name.replace('_', ' ')} {value}: it must be between {low:g} and {high:g}")

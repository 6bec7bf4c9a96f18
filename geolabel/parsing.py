"""Parsing of untrusted text: JSON, XML, file names, numbers with units; all bounded in size and depth.

Nothing in them is followed or expanded.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
import stat
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, TypeGuard
from xml.etree import ElementTree as ET
from xml.parsers import expat

from geolabel.errors import OptionError

MAX_JSON_BYTES = 256 << 20
"""Of a file of JSON that a person gives."""

MAX_XML_BYTES = 64 << 20
"""A mosaic of 50,000 sources takes as much."""

MAX_DEPTH = 64
"""Values in values, or elements in elements."""

MAX_NAME = 200

MAX_ELEMENTS = 2_000_000


def parse_json(text: bytes | str, *, limit: int = MAX_JSON_BYTES, depth: int = MAX_DEPTH) -> Any:
    """Parse JSON of at most `limit` bytes, in which values are nested at most `depth` deep.

    Raises
    ------
    ValueError
        If it is larger, nested deeper, or no JSON; the message says which and can follow a file name and a colon.
    """
    if len(text) > limit:
        raise ValueError(f"it is larger than {_size(limit)}")
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError(f"its values are nested more than {depth} deep") from None
    level = [value]
    for _ in range(depth):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if type(outer) is dict else outer if type(outer) is list else ())
            if type(inner) in (dict, list)
        ]
        if not level:
            return value
    raise ValueError(f"its values are nested more than {depth} deep")


def read_json(path: Path, *, limit: int = MAX_JSON_BYTES, depth: int = MAX_DEPTH) -> Any:
    """Parse a file of JSON in UTF-8, see `parse_json`.

    Raises
    ------
    OSError
        If it cannot be read.
    ValueError
        As `parse_json`.
    """
    check_regular(path)
    with path.open("rb") as file:
        return parse_json(file.read(limit + 1), limit=limit, depth=depth)


def parse_xml(text: bytes, *, limit: int = MAX_XML_BYTES, depth: int = MAX_DEPTH) -> ET.Element:
    """Parse XML of at most `limit` bytes without a document type, so that it declares no entities.

    Raises
    ------
    ValueError
        If it is larger, nested deeper, declares a document type, or is no XML.
    """
    if len(text) > limit:
        raise ValueError(f"it is larger than {_size(limit)}")
    builder, parser = ET.TreeBuilder(), expat.ParserCreate()
    open_elements = elements = 0

    def start(name: str, attributes: dict[str, str]) -> None:
        nonlocal open_elements, elements
        open_elements, elements = open_elements + 1, elements + 1
        if open_elements > depth:
            raise ValueError(f"its elements are nested more than {depth} deep")
        if elements > MAX_ELEMENTS:
            raise ValueError(f"it has more than {MAX_ELEMENTS} elements")
        builder.start(name, attributes)

    def end(name: str) -> None:
        nonlocal open_elements
        open_elements -= 1
        builder.end(name)

    def refuse(*_: object) -> None:
        raise ValueError("it declares a document type")

    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = refuse
    parser.buffer_text = True
    try:
        parser.Parse(text, True)
    except (expat.ExpatError, LookupError) as error:  # LookupError: of an encoding that Python does not know
        raise ValueError(f"it is no XML ({error})") from error
    return builder.close()


def parse_name(value: Any) -> str:
    """The name of a class: a line of 1 to 200 characters.

    Raises
    ------
    ValueError
        If it is anything else.
    """
    if not isinstance(value, str) or not 0 < len(value.strip()) <= MAX_NAME or not value.isprintable():
        raise ValueError(f"{str(value)[:40]!r} is no name: a name is a line of up to {MAX_NAME} characters")
    return value


def parse_file_name(value: Any) -> str:
    """The name of a file in a folder: a `parse_name` that leads nowhere else.

    Raises
    ------
    ValueError
        If it is anything else.
    """
    if parse_name(value).startswith(".") or any(mark in value for mark in "/\\:"):
        raise ValueError(f"{value!r} is no name of a file: it leads out of its folder")
    return str(value)


def parse_length(value: Any) -> float:
    """A positive, finite number of metres.

    Raises
    ------
    ValueError
        If it is anything else.
    """
    number = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    if not (math.isfinite(number) and number > 0):
        raise ValueError(f"{str(value)[:40]} is no positive number of metres")
    return number


def check_metres(name: str, value: float | None) -> None:
    """Refuse a length, named `name` in the message, that is not a positive, finite number of metres; None passes.

    Raises
    ------
    OptionError
        If it is anything else.
    """
    if value is not None and not 0 < value < math.inf:
        raise OptionError(f"{name} {value} m: give a positive number of metres")


def _size(limit: int) -> str:
    return f"{limit >> 20} MB" if limit >= 1 << 20 else f"{limit >> 10} KB"


MAX_PART_BYTES = 255
"""Of a name without its folders, on the file systems in use."""


def check_name(name: str | os.PathLike[str]) -> None:
    """Refuse a name that GDAL, GeoPackage and JSON cannot hold, before any work is done.

    Raises
    ------
    OptionError
        If it is not text in UTF-8, as on disks that old systems wrote, or longer than any file can be called.
    """
    text = os.fspath(name)
    try:
        text.encode()
    except UnicodeEncodeError:
        # The bytes of a name on disk; of one in a JSON file, which no disk has, the characters.
        shown = re.sub("[\ud800-\udbff]", lambda half: f"\\u{ord(half[0]):x}", text)
        shown = os.fsencode(shown).decode("utf-8", "backslashreplace")
        raise OptionError(
            f"the name {shown} is not text in UTF-8 (bytes with a backslash are of another encoding): rename the file"
        ) from None
    file = "://" not in text and not text.startswith("/vsi")
    longest = max((len(part.encode()) for part in re.split(r"[/\\]", text)), default=0)
    if file and (longest > MAX_PART_BYTES or "\0" in text):
        raise OptionError(f"no file can be called {text[:60]!r}... ({longest} bytes): give the name of a file")


def check_regular(name: str | os.PathLike[str]) -> None:
    """Refuse what is no file, but is opened like one: reading a pipe waits for ever, and a device has no end.

    Raises
    ------
    OSError
        If it is a pipe, a socket or a device. What is not there passes, as do files and folders.
    """
    try:
        mode = Path(name).stat().st_mode
    except (OSError, ValueError):
        return
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise OSError(errno.EINVAL, "it is a pipe or a device, not a file", os.fspath(name))


def exists(name: str | os.PathLike[str]) -> bool:
    """Whether there is a file or folder of a name; not where it cannot be, or cannot be seen."""
    try:
        return Path(name).exists()
    except (OSError, ValueError):  # the latter of what no file system can hold
        return False


Unit = Literal["m", "m2", "px", "deg"]
"""Metres, square metres, or pixels of the working grid: their sides where a length is meant, else their number."""

MEASURE = re.compile(r"\s*([-+]?[0-9]*\.?[0-9]+(?:[eE][-+]?[0-9]+)?)\s*([a-zA-Z][a-zA-Z0-9]*|)\s*")


@dataclass(frozen=True)
class Measure:
    """A length, an area or a slope that is not negative, such as ``2px``, ``1.5m``, ``400m2`` or ``10deg``.

    Raises
    ------
    OptionError
        If the value is negative or not finite.
    """

    value: float
    unit: Unit

    def __post_init__(self) -> None:
        if not (math.isfinite(self.value) and self.value >= 0):
            raise OptionError(f"{self}: it has to be a number that is not negative")

    @classmethod
    def check(cls, name: str, value: object) -> None:
        """Make sure that a value is a measure.

        Raises
        ------
        OptionError
            If it is a plain number or a text.
        """
        if not isinstance(value, cls):
            raise OptionError(f"{name} {value!r} has no unit: give a Measure, such as Measure.parse('400 m2')")

    @classmethod
    def parse(cls, text: str, units: Collection[str] = ("m", "m2", "px")) -> Self:
        """Read a number with one of `units`, in any case and with or without a space between.

        Raises
        ------
        OptionError
            If the text is no number, lacks its unit, or has one that does not fit.

        Examples
        --------
        >>> Measure.parse("400 m2")
        Measure(value=400.0, unit='m2')
        """
        match = MEASURE.fullmatch(text)
        if match is None:
            raise OptionError(f"{text!r} is not a number with a unit, such as {_examples('10', units)}")
        number, unit = match[1], match[2].lower()
        if not unit:
            raise OptionError(f"{text!r} lacks a unit: give {_examples(number, units)}")
        if not (_is_unit(unit) and unit in units):
            raise OptionError(f"{text!r}: the unit {match[2]} does not fit here: give {_examples(number, units)}")
        return cls(float(number), unit)

    def pixels(self, gsd: float) -> float:
        """Sides of pixels, or a number of pixels where the measure is an area, at `gsd` metres per pixel."""
        if self.unit == "px":
            return self.value
        return self.value / (gsd if self.unit == "m" else gsd**2)

    def __str__(self) -> str:
        return f"{self.value:g}{self.unit}"


def _is_unit(text: str) -> TypeGuard[Unit]:
    return text in ("m", "m2", "px", "deg")


def _examples(number: str, units: Collection[str]) -> str:
    return " or ".join(f"{number}{unit}" for unit in units)

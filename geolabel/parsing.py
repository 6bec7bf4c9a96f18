"""Parsing of untrusted text: JSON, XML, file names, numbers with units; with limits of size and depth.

References in it are neither followed nor expanded.
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
"""Maximum size of a user's JSON file."""

MAX_XML_BYTES = 64 << 20
"""Maximum size of XML; a mosaic of 50,000 sources takes about as much."""

MAX_DEPTH = 64
"""Maximum nesting of values or elements."""

MAX_NAME = 200

MAX_ELEMENTS = 2_000_000


def parse_json(text: bytes | str, *, limit: int = MAX_JSON_BYTES, depth: int = MAX_DEPTH) -> Any:
    """Parse JSON of at most `limit` bytes and at most `depth` levels.

    Raises
    ------
    ValueError
        If it is larger, deeper or invalid; the message can follow a file name and a colon.
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
    """Parse a UTF-8 JSON file, see `parse_json`.

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
    """Parse XML of at most `limit` bytes without a document type, and thus without entities.

    Raises
    ------
    ValueError
        If it is larger, deeper, declares a document type, or is invalid.
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
    except (expat.ExpatError, LookupError) as error:  # LookupError: an encoding unknown to Python
        raise ValueError(f"it is not XML ({error})") from error
    return builder.close()


def parse_name(value: Any) -> str:
    """Validate a class name: one line of 1 to 200 characters.

    Raises
    ------
    ValueError
        If it is anything else.
    """
    if not isinstance(value, str) or not 0 < len(value.strip()) <= MAX_NAME or not value.isprintable():
        raise ValueError(f"{str(value)[:40]!r} is not a name: a name is a line of up to {MAX_NAME} characters")
    return value


def parse_file_name(value: Any) -> str:
    """Validate the name of a file in a folder: a `parse_name` that does not lead elsewhere.

    Raises
    ------
    ValueError
        If it is anything else.
    """
    if parse_name(value).startswith(".") or any(mark in value for mark in "/\\:"):
        raise ValueError(f"{value!r} is not a file name: it leads out of its folder")
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
        raise ValueError(f"{str(value)[:40]} is not a positive number of metres")
    return number


def check_metres(name: str, value: float | None) -> None:
    """Refuse a length, called `name` in the message, that is not a positive, finite number of metres; None passes.

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
"""Maximum bytes of a file name on common file systems."""


def check_name(name: str | os.PathLike[str]) -> None:
    """Refuse a name that GDAL, GeoPackage and JSON cannot store, before any work is done.

    Raises
    ------
    OptionError
        If it is not UTF-8, as on disks written by old systems, or longer than a file name can be.
    """
    text = os.fspath(name)
    try:
        text.encode()
    except UnicodeEncodeError:
        # Bytes of a name on disk; for a name from a JSON file, which no disk has, its characters.
        shown = re.sub("[\ud800-\udbff]", lambda half: f"\\u{ord(half[0]):x}", text)
        shown = os.fsencode(shown).decode("utf-8", "backslashreplace")
        raise OptionError(
            f"the name {shown} is not UTF-8 text (backslashes show bytes of another encoding): rename the file"
        ) from None
    file = "://" not in text and not text.startswith("/vsi")
    longest = max((len(part.encode()) for part in re.split(r"[/\\]", text)), default=0)
    if file and (longest > MAX_PART_BYTES or "\0" in text):
        raise OptionError(f"no file can be called {text[:60]!r}... ({longest} bytes): give the name of a file")


def check_regular(name: str | os.PathLike[str]) -> None:
    """Refuse special files, which open like files: reading a pipe waits for ever, and a device has no end.

    Raises
    ------
    OSError
        If it is a pipe, a socket or a device. Missing paths, files and folders pass.
    """
    try:
        mode = Path(name).stat().st_mode
    except (OSError, ValueError):
        return
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise OSError(errno.EINVAL, "it is a pipe or a device, not a file", os.fspath(name))


def exists(name: str | os.PathLike[str]) -> bool:
    """Whether a file or folder of that name exists and is visible."""
    try:
        return Path(name).exists()
    except (OSError, ValueError):  # ValueError: names that no file system can hold
        return False


Unit = Literal["m", "m2", "px", "deg"]
"""Metres, square metres, degrees, or pixels of the working grid (their side for lengths, their number for areas)."""

MEASURE = re.compile(r"\s*([-+]?[0-9]*\.?[0-9]+(?:[eE][-+]?[0-9]+)?)\s*([a-zA-Z][a-zA-Z0-9]*|)\s*")


@dataclass(frozen=True)
class Measure:
    """A non-negative length, area or slope, such as ``2px``, ``1.5m``, ``400m2`` or ``10deg``.

    Raises
    ------
    OptionError
        If the value is negative or not finite.
    """

    value: float
    unit: Unit

    def __post_init__(self) -> None:
        if not (math.isfinite(self.value) and self.value >= 0):
            raise OptionError(f"{self}: it must be a number that is not negative")

    @classmethod
    def check(cls, name: str, value: object) -> None:
        """Check that a value is a measure.

        Raises
        ------
        OptionError
            If it is a plain number or a text.
        """
        if not isinstance(value, cls):
            raise OptionError(f"{name} {value!r} has no unit: give a Measure, such as Measure.parse('400 m2')")

    @classmethod
    def parse(cls, text: str, units: Collection[str] = ("m", "m2", "px")) -> Self:
        """Parse a number with one of `units`, case-insensitive, with or without a space.

        Raises
        ------
        OptionError
            If it is not a number, or its unit is missing or not allowed.

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
        """The measure in pixels (sides for a length, number for an area), at `gsd` metres per pixel."""
        if self.unit == "px":
            return self.value
        return self.value / (gsd if self.unit == "m" else gsd**2)

    def __str__(self) -> str:
        return f"{self.value:g}{self.unit}"


def _is_unit(text: str) -> TypeGuard[Unit]:
    return text in ("m", "m2", "px", "deg")


def _examples(number: str, units: Collection[str]) -> str:
    return " or ".join(f"{number}{unit}" for unit in units)

"""JSON and XML that anyone may have written: bounded in size and depth, and nothing in them is followed or expanded."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET
from xml.parsers import expat

from geolabel.names import check_regular

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


def _size(limit: int) -> str:
    return f"{limit >> 20} MB" if limit >= 1 << 20 else f"{limit >> 10} KB"

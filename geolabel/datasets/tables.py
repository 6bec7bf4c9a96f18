"""Tables of labels, as written by people, spreadsheets and data frames.

A label says yes or no in one of the words below, or names classes. It is parsed the same way in a CSV file and in an
attribute of a vector file.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from geolabel.errors import ChipError
from geolabel.parsing import check_regular

YES = ("1", "true", "yes", "t", "y")
NO = ("0", "false", "no", "f", "n")
"""Labels that say whether the one class is there, lower case."""

NO_CLASS = ("background", "negative", "none", "other")
"""Names that mean the absence of every class; so do names with ``no_`` or ``not_`` in front."""

NOT_KNOWN = ("", "nan", "na", "<na>", "n/a", "null")
"""Texts of empty cells, lower case."""

DELIMITERS = ",;\t|"


@dataclass(frozen=True)
class Row:
    """An image and the classes that it shows."""

    line: int
    """Line of the table, from 1."""
    image: str
    labels: tuple[bool, ...]


def plain(label: object) -> str:
    """A label as text, without surrounding space; a whole number without decimals, since gaps turn 1 into 1.0."""
    text = str(label).strip()
    return text.split(".")[0] if re.fullmatch(r"-?\d+\.0+", text) else text


def is_yes(label: str) -> bool | None:
    """Whether a plain label says yes; None if it says neither yes nor no."""
    word = label.lower()
    return True if word in YES else False if word in NO else None


def means_nothing(name: str) -> bool:
    """Whether a name of a class, or of a folder, means that no class is shown."""
    word = name.lower()
    return word in NO_CLASS or word.startswith(("no_", "not_", "non_", "no-", "not-", "non-"))


def read_table(path: Path, class_name: str) -> tuple[tuple[str, ...], list[Row]]:
    """Read the classes and the rows of a table.

    Parameters
    ----------
    path
        A CSV file in UTF-8 whose cells are separated by one of `DELIMITERS`. Names of columns may be in any case.
    class_name
        Class of a single column of yes and no.

    Raises
    ------
    ChipError
        If the table cannot be read or understood.
    """
    header, lines = _cells(path)
    columns = [name.lower() for name in header]
    if "image" not in columns or len(header) < 2:
        raise ChipError(f"{path} has the columns {', '.join(header) or 'none'}: it needs image, and label or classes")
    named = ["label"] if "label" in columns else [name for name in columns if name != "image"]
    places = [columns.index(name) for name in named]
    images = [(line, cells[columns.index("image")]) for line, cells in lines]
    for line, image in images:
        if not image:
            raise ChipError(f"line {line} of {path} names no image: delete the line, or add the path of a chip")
    labels = [(line, [plain(cells[place]) for place in places]) for line, cells in lines]
    for line, row in labels:
        if any(label.lower() in NOT_KNOWN for label in row):
            raise ChipError(
                f"line {line} of {path} has no label: write 0 or none if it shows no class, or delete the line"
            )
    if all(is_yes(label) is not None for _, row in labels for label in row):
        classes = (class_name,) if named == ["label"] else tuple(header[place] for place in places)
        shown = [tuple(bool(is_yes(label)) for label in row) for _, row in labels]
    elif named == ["label"]:
        classes, shown = _by_name(path, [(line, row[0]) for line, row in labels])
    else:
        line, row = next((line, row) for line, row in labels if None in map(is_yes, row))
        raise ChipError(f"line {line} of {path}: a column of a class holds 0 or 1, not {row}")
    return classes, [Row(line, image, found) for (line, image), found in zip(images, shown, strict=True)]


def _cells(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Header, and number and cells of every line that is not empty, without surrounding space."""
    try:
        check_regular(path)
        with path.open(newline="", encoding="utf-8-sig") as file:
            first = file.readline()
            if not first.lower().startswith("sep="):  # which Excel writes and reads as a directive
                file.seek(0)
            reader = csv.reader(file, delimiter=_delimiter(first), skipinitialspace=True)
            lines = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ChipError(f"{path} cannot be read as CSV ({error}): save it as UTF-8 with commas") from error
    lines = [(line, cells) for line, cells in lines if any(cells)]
    if not lines:
        return [], []
    (_, header), *rows = lines
    used = [place for place, name in enumerate(header) if name]
    names = [header[place] for place in used]
    twice = {name for name in names if [other.lower() for other in names].count(name.lower()) > 1}
    if twice:
        raise ChipError(f"{path} has several columns {sorted(twice)[0]}: keep one")
    for line, cells in rows:
        if any(cells[len(header) :]):
            raise ChipError(
                f"line {line} of {path} has {len(cells)} cells and the header {len(header)}: put quotes "
                "around a cell that holds a comma"
            )
    return names, [(line, [cells[place] if place < len(cells) else "" for place in used]) for line, cells in rows]


def _delimiter(header: str) -> str:
    if header.lower().startswith("sep=") and header.strip()[-1] in DELIMITERS:
        return header.strip()[-1]
    for delimiter in DELIMITERS:
        names = next(csv.reader([header], delimiter=delimiter, skipinitialspace=True), [])
        if len(names) > 1 and "image" in (name.strip().lower() for name in names):
            return delimiter
    return DELIMITERS[0]


def _by_name(path: Path, labels: Sequence[tuple[int, str]]) -> tuple[tuple[str, ...], list[tuple[bool, ...]]]:
    """Classes that labels name, several of them separated by semicolons, and which each row shows."""
    shown = [(line, set(_names(label))) for line, label in labels]
    classes = tuple(sorted(set().union(*(names for _, names in shown))))
    if not classes:
        raise ChipError(f"{path} names no class: its labels are 0 and 1, or names of classes")
    flags = {name for name in classes if name.lower() in YES}
    for line, names in shown:
        others = sorted(name for name in names - flags if not name.isdecimal())
        if flags and others:
            raise ChipError(
                f"line {line} of {path}: the label {others[0]!r} beside labels of 0 and 1: correct the line, "
                "or use names of classes only"
            )
        for name in names:
            if re.fullmatch(r"-\d+|[-+]?\d*\.\d+([eE][-+]?\d+)?", name):
                raise ChipError(
                    f"line {line} of {path}: the label {name} is not a class: decide from which value on the "
                    "class is shown, and write 1 or 0"
                )
            if same := [other for other in classes if other != name and other.lower() == name.lower()]:
                raise ChipError(f"line {line} of {path}: the class {name!r} is also written {same[0]!r}: write one")
    return classes, [tuple(name in names for name in classes) for _, names in shown]


def _names(label: str) -> Iterator[str]:
    for name in map(plain, label.split(";")):
        if name and is_yes(name) is not False and not means_nothing(name):
            yield name

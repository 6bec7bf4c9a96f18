"""Which bands of a scene serve as red, green and blue."""

from __future__ import annotations

import re
from collections.abc import Sequence

from geolabel.errors import OptionError, SceneError

COLOURS = ("red", "green", "blue")

ALPHA = "alpha"

_WORDS = {
    "red": re.compile(r"\bred\b(?![ -]*edge)|^r$|(?:^|\b)b0?4$"),
    "green": re.compile(r"\bgreen\b|^g$|(?:^|\b)b0?3$"),
    "blue": re.compile(r"\bblue\b|^b$|(?:^|\b)b0?2$"),
}
"""How bands of each colour are described; B04, B03, B02 as Sentinel-2 and Landsat 8 and 9 number them."""


def choose_bands(
    names: Sequence[str | None], colours: Sequence[str], spec: Sequence[int] | str | None = None
) -> tuple[tuple[int, int, int], tuple[str, ...]]:
    """Choose red, green and blue.

    A given choice is taken as it is. Otherwise the bands whose colour interpretation says so; else those whose
    description does; else the first three that are not alpha, which is a guess and comes with a warning. One
    band serves as all three.

    Parameters
    ----------
    names
        Description of each band, or None.
    colours
        Colour interpretation of each band, lower case, as GDAL names them.
    spec
        One-based numbers, or a text of one or three numbers, descriptions or colours with commas between.

    Returns
    -------
    bands
        One-based numbers.
    warnings
        What had to be guessed.

    Raises
    ------
    OptionError
        If `spec` does not name one band or three.
    SceneError
        If it names a band that the scene does not have.
    """
    if spec is not None:
        return _chosen(names, colours, spec), ()
    for known in (_by_colour(colours), _by_name(names)):
        if known:
            return known, ()
    plain = [i for i, colour in enumerate(colours, 1) if colour != ALPHA and (names[i - 1] or "").lower() != ALPHA]
    if not plain:
        raise SceneError(f"none of the {len(colours)} bands holds an image: every one is alpha")
    if len(plain) == 1:
        indexed = colours[plain[0] - 1] == "palette"
        return (plain[0],) * 3, (_PALETTE,) if indexed else ()
    if len(plain) == 2:
        return (plain[0],) * 3, (
            f"two bands of unknown colour: band {plain[0]} is used as red, green and blue; choose with --bands",
        )
    guess = (plain[0], plain[1], plain[2])
    doubt = "; with four or more bands the first is often blue" if len(plain) > 3 else ""
    text = ", ".join(map(str, guess))
    return guess, (
        f"{len(plain)} bands of unknown colour: {text} taken as red, green, blue{doubt}; choose with --bands",
    )


_PALETTE = (
    "the band holds indices into a palette, not brightness: make colours of them first "
    "(gdal_translate -expand rgb IN OUT)"
)


def _by_colour(colours: Sequence[str]) -> tuple[int, int, int] | None:
    if not set(COLOURS) <= set(colours):
        return None
    red, green, blue = (colours.index(colour) + 1 for colour in COLOURS)
    return red, green, blue


def _by_name(names: Sequence[str | None]) -> tuple[int, int, int] | None:
    plain = [re.sub(r"[_\s]+", " ", name or "").strip().lower() for name in names]
    found = [next((i for i, name in enumerate(plain, 1) if _WORDS[c].search(name)), 0) for c in COLOURS]
    if not all(found):
        return None
    red, green, blue = found
    return red, green, blue


def _chosen(names: Sequence[str | None], colours: Sequence[str], spec: Sequence[int] | str) -> tuple[int, int, int]:
    words = [word.strip() for word in spec.split(",")] if isinstance(spec, str) else [str(band) for band in spec]
    if len(words) not in (1, 3) or not all(words):
        raise OptionError(f"bands {spec!r}: give one band or three, such as 3,2,1 or red,green,blue")
    numbers = [_number(word, names, colours) for word in words]
    red, green, blue = numbers if len(numbers) == 3 else numbers * 3
    return red, green, blue


def _number(word: str, names: Sequence[str | None], colours: Sequence[str]) -> int:
    count = len(colours)
    if re.fullmatch(r"[+-]?\d+", word):
        if not 1 <= int(word) <= count:
            raise SceneError(f"there is no band {word}: the scene has {count}, numbered from 1")
        return int(word)
    wanted = word.lower()
    for labels in ([(name or "").lower() for name in names], list(colours)):
        if wanted in labels:
            return labels.index(wanted) + 1
    known = sorted({name for name in names if name} | {c for c in colours if c != "undefined"})
    listed = ", ".join(known) if known else "no descriptions and no colours"
    raise SceneError(f"there is no band {word!r}: the scene has {listed}, and the numbers 1 to {count}")

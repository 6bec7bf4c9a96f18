"""Choose the bands of a scene that are used as red, green and blue."""

from __future__ import annotations

import re
from collections.abc import Sequence

from geolabel.errors import OptionError, SceneError

COLOURS = ("red", "green", "blue")

ALPHA = "alpha"

_ALPHA_NAMES = re.compile(r"a|alpha( channel| band)?|transparency|opacity|mask")

_NO_NAME = re.compile(r"((band|channel|layer|ch) ?)?\d*|b[1-5]|unknown|undefined|gray|grey|alpha \d+")
"""Descriptions without information, such as "Band 4"."""

_WORDS = {colour: re.compile(rf"\b{colour}\b") for colour in COLOURS}

_OTHERS = re.compile(
    r"\b(coastal|deep|ultra|far|infra|near|red|green|blue)[ -]?(infra[ -]?red|blue|red|edge)\b|\bgreen i\b"
    r"|\b(qa|mask|quality|std|stdev|sigma|error|uncertainty|count|offset|noise)\b"
)
"""Bands that are not the main red, green or blue, or describe them: of SuperDove, WorldView, Landsat and MicaSense."""

_LETTERS = {"red": re.compile(r"(band )?r"), "green": re.compile(r"(band )?g"), "blue": re.compile(r"(band )?b")}

_NUMBERED = re.compile(r"(?:^|\b)(?:sr |toa |boa )?b(\d{1,2}a?)(?:$|\b)")

CENTRES_NM = {"red": 660.0, "green": 555.0, "blue": 480.0}

RANGES_NM = {"red": (600.0, 700.0), "green": (510.0, 600.0), "blue": (440.0, 515.0)}
"""Acceptable and optimal wavelengths of each colour, in nanometres."""

_STATED_NM = re.compile(r"(\d+(?:\.\d+)?) ?(nm|nanomet\w*|um|µm|μm|micromet\w*|micron\w*)\b")

_SPECTRAL = re.compile(r"red|green|blue|infra|\b[ns]w?ir|\bvnir|coastal|yellow|thermal|pan|\bb\d|\bn\b|ndvi|\d ?nm\b")
"""Parts of a description that tell what a band measures."""

_NUMBERING = re.compile(r"landsat|sentinel|(^|[^a-z])(l[coet]0\d|s2[abc]?|hls)[_.]", re.IGNORECASE)
"""Sensors whose bands are identified by number."""

_EARLY_LANDSAT = re.compile(r"landsat[ _-]?[457]\b|(^|[^a-z])l[te]0[457]_|\betm\b", re.IGNORECASE)
"""Sensors whose bands 1, 2, 3 are blue, green, red; since Landsat 8, and on Sentinel-2, these are 2, 3, 4."""


PLANET = re.compile(
    r"(?P<id>(?P<date>\d{8})_\d{6}(?:_\d+)?_[0-9a-z]{4})_3B_(?P<kind>AnalyticMS(?:_SR)?(?:_8b)?|Analytic|Visual)"
    r"(?:_harmonized)?(?:_clip)?\.tif",
    re.IGNORECASE,
)
"""Name of a PlanetScope image: acquisition and kind."""

PLANET_BANDS = {
    "analyticms_sr_8b": (6, 4, 2),
    "analyticms_sr": (3, 2, 1),
    "analyticms_8b": (6, 4, 2),
    "analyticms": (3, 2, 1),
    "visual": (1, 2, 3),
    "analytic": (1, 2, 3),
}
"""Red, green and blue by kind of PlanetScope image, the best kind first."""


def choose_bands(
    names: Sequence[str | None],
    colours: Sequence[str],
    spec: Sequence[int] | str | None = None,
    *,
    wavelengths: Sequence[float | None] = (),
    sensor: str = "",
) -> tuple[tuple[int, int, int], tuple[str, ...]]:
    """Choose red, green and blue.

    An explicit choice is used unchanged. Otherwise, in this order: bands described as red, green and blue; bands of
    suitable wavelengths; bands with these colour interpretations (after descriptions, since programs label three or
    four byte bands red, green, blue and alpha by default); the bands that a PlanetScope file name implies; and finally,
    with a warning, the first three that are not alpha. A single band is used as all three.

    Parameters
    ----------
    names
        Description of each band, or None.
    colours
        Colour interpretation of each band, lower case, as named by GDAL.
    spec
        One-based numbers, or a comma-separated text of one or three numbers, descriptions or colours.
    wavelengths
        Centre wavelength of each band in nanometres, if known.
    sensor
        Text that may name the sensor: the scene's name and metadata.

    Returns
    -------
    bands
        One-based numbers.
    warnings
        Assumptions for the user to check.

    Raises
    ------
    OptionError
        If `spec` does not name one band or three.
    SceneError
        If it names a band that the scene does not have.
    """
    if spec is not None:
        return _chosen(names, colours, spec), ()
    stated = [length or _stated(name) for name, length in zip(names, wavelengths or [None] * len(names), strict=True)]
    for known in (_by_name(names, sensor), _by_wavelength(stated), _by_colour(names, colours), _by_kind(names, sensor)):
        if known is not None:
            return known
    plain = [i for i, pair in enumerate(zip(names, colours, strict=True), 1) if not is_alpha(*pair)]
    if not plain:
        raise SceneError(f"none of the {len(colours)} bands holds an image: all are alpha")
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


_IN_NAME = re.compile(
    r"(?:^|(?<=[_\-. ]))((?:sr_)?b\d{1,2}a?|red|green|blue|nir\d?|swir\d?|pan|coastal|[rgbn])(?=$|[_\-. ])",
    re.IGNORECASE,
)


def band_in_name(name: str) -> tuple[str, str | None]:
    """The name of a file without the band it contains, and that band, if any.

    Examples
    --------
    >>> band_in_name("in/T48RUV_B04_10m.tif"), band_in_name("scene.tif")
    (('in/T48RUV_*_10m', 'B04'), ('scene', None))
    """
    stem = re.sub(r"\.\w{1,5}$", "", name)
    folder, _, file = stem.rpartition("/")
    found = list(_IN_NAME.finditer(file))
    if not found:
        return stem, None
    last = found[-1]
    rest = f"{file[: last.start(1)]}*{file[last.end(1) :]}"
    return (f"{folder}/{rest}" if folder else rest), last[1]


def is_alpha(name: str | None, colour: str) -> bool:
    """Whether a band marks which pixels are visible.

    GDAL reports the fourth of four bands as alpha by default; one with another description is not alpha.
    """
    plain = _plain(name)
    if _ALPHA_NAMES.fullmatch(plain) and (colour == ALPHA or plain.startswith(ALPHA)):
        return True
    return colour == ALPHA and _NO_NAME.fullmatch(plain) is not None


_PALETTE = "the band holds palette indices, not brightness: expand it to RGB first (gdal_translate -expand rgb IN OUT)"

_Found = tuple[tuple[int, int, int], tuple[str, ...]]


def _by_colour(names: Sequence[str | None], colours: Sequence[str]) -> _Found | None:
    if not set(COLOURS) <= set(colours):
        return None
    red, green, blue = bands = tuple(colours.index(colour) + 1 for colour in COLOURS)
    plain = {band: _plain(names[band - 1]) for band in bands}
    said = [str(names[band - 1]) for band, p in plain.items() if _SPECTRAL.search(p) and not _NO_NAME.fullmatch(p)]
    if not said:
        return (red, green, blue), ()
    doubt = (
        f"bands {red}, {green}, {blue} are marked as red, green, blue, a default of many programs; descriptions say "
        f"{', '.join(said)}: choose with --bands"
    )
    return (red, green, blue), (doubt,)


def _by_kind(names: Sequence[str | None], sensor: str) -> _Found | None:
    """The bands of a PlanetScope image, whose file name is the first word of the sensor text."""
    match = PLANET.match(sensor)
    bands = PLANET_BANDS[match["kind"].lower()] if match else None
    fits = bands is not None and len(names) == {6: 8, 3: 4, 1: 3}[bands[0]]
    return (bands, ()) if bands is not None and fits else None


def _by_wavelength(lengths: Sequence[float | None]) -> _Found | None:
    found = []
    for colour in COLOURS:
        low, high = RANGES_NM[colour]
        fits = [(abs(nm - CENTRES_NM[colour]), i) for i, nm in enumerate(lengths, 1) if nm and low <= nm <= high]
        if not fits:
            return None
        found.append(min(fits)[1])
    return (found[0], found[1], found[2]), ()


def _by_name(names: Sequence[str | None], sensor: str) -> _Found | None:
    """The bands described as red, green and blue: in words, by letters, or by sensor band numbers."""
    plain = [_plain(name) for name in names]
    numbers = _numbers(plain, sensor)
    found, warnings = [], []
    for colour in COLOURS:
        ways = (
            [i for i, name in enumerate(plain, 1) if name == colour],
            [i for i, name in enumerate(plain, 1) if _WORDS[colour].search(name) and not _OTHERS.search(name)],
            [i for i, name in enumerate(plain, 1) if _LETTERS[colour].fullmatch(name)],
            [i for i, name in enumerate(plain, 1) if numbers[0].get(name) == colour],
        )
        same = next((way for way in ways if way), [])
        if not same:
            return None
        if len(same) > 1:
            listed = ", ".join(map(str, same))
            warnings.append(f"bands {listed} are all described as {colour}: {same[0]} is used; choose with --bands")
        found.append(same[0])
    by_number = [plain[band - 1] in numbers[0] for band in found]
    return (found[0], found[1], found[2]), (*warnings, *(numbers[1] if all(by_number) else ()))


def _numbers(plain: Sequence[str], sensor: str) -> tuple[dict[str, str], tuple[str, ...]]:
    """Colours of numbered bands by description, and warnings about them."""
    numbered = {name: match[1].lstrip("0") for name in plain if (match := _NUMBERED.search(name))}
    there = set(numbered.values())
    in_a_row = there == {str(n) for n in range(1, len(there) + 1)} and all(f"b{n}" in plain for n in there)
    unknown = in_a_row and not _NUMBERING.search(sensor)
    if unknown and len(there) in (1, 2, 3, 4, 5, 6, 8):  # a plain count of bands
        return {}, ()
    if any(name.startswith("sur refl") for name in plain):  # MODIS
        colours = {"1": "red", "4": "green", "3": "blue"}
    elif _EARLY_LANDSAT.search(sensor) or (there == {"1", "2", "3", "4", "5", "7"}):
        colours = {"3": "red", "2": "green", "1": "blue"}
    else:
        colours = {"4": "red", "3": "green", "2": "blue"}
    doubt = (
        "bands B4, B3, B2 are used as red, green, blue, as for Landsat 8 and 9 and Sentinel-2; Landsat 4 "
        "to 7 need B3, B2, B1: choose with --bands"
    )
    return {name: colours[n] for name, n in numbered.items() if n in colours}, (doubt,) if unknown else ()


def _stated(name: str | None) -> float | None:
    """The wavelength in nanometres given in a description."""
    match = _STATED_NM.search(_plain(name))
    if match is None:
        return None
    return float(match[1]) * (1 if match[2].startswith("n") else 1000)


def _plain(name: str | None) -> str:
    """A description in lower case, with words separated by single spaces."""
    return re.sub(r"[\s_:;,/()\[\]-]+", " ", name or "").strip().lower()


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

"""Lengths and areas with their units, as people type them."""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal, Self, TypeGuard

from geolabel.errors import OptionError

Unit = Literal["m", "m2", "px"]
"""Metres, square metres, or pixels of the working grid: their sides where a length is meant, else their number."""

MEASURE = re.compile(r"\s*([-+]?[0-9]*\.?[0-9]+(?:[eE][-+]?[0-9]+)?)\s*([a-zA-Z][a-zA-Z0-9]*|)\s*")


@dataclass(frozen=True)
class Measure:
    """A length or an area that is not negative, such as ``2px``, ``1.5m`` or ``400m2``.

    Raises
    ------
    OptionError
        If the value is negative or not finite.
    """

    value: float
    unit: Unit

    def __post_init__(self) -> None:
        if not (math.isfinite(self.value) and self.value >= 0):
            raise OptionError(f"{self}: a length or an area has to be a number that is not negative")

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
    return text in ("m", "m2", "px")


def _examples(number: str, units: Collection[str]) -> str:
    return " or ".join(f"{number}{unit}" for unit in units)

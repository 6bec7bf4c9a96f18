"""Supplementary data of scenes: heights, earlier images and their masks, dates, excluded ground."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from geolabel.errors import OptionError
from geolabel.parsing import Measure
from geolabel.urls import without_secrets


@dataclass(frozen=True)
class Supplements:
    """Supplementary data given by the user.

    Raises
    ------
    OptionError
        If a minimum slope is given without heights, or is not in degrees, or masks are given without an earlier image.
    """

    dem: str | Path | None = None
    """Heights in metres, on any grid and in any CRS."""
    min_slope: Measure | None = None
    """Minimum mean slope of a landslide, degrees."""
    exclude: str | Path | None = None
    """A vector file of ground where nothing counts as a landslide."""
    before: str | Path | Sequence[str | Path] | None = None
    """An image from before the event, on any grid and in any CRS, or several in order of precedence."""
    before_mask: str | Path | Sequence[str | Path | None] = ()
    """Its masks, see `geolabel.io.read.masks`; for several images one for each, or None."""
    register: bool = True
    """Whether to measure its displacement; otherwise its position is trusted."""
    cut: bool = True
    """Whether to cut ground out of polygons, see `geolabel.extraction.cutting`; otherwise whole polygons are judged."""
    event_after: str | None = None
    event_before: str | None = None
    """ISO 8601 dates of the interval with the event, instead of those of the images."""

    def __post_init__(self) -> None:
        self._check_masks()
        self._check_dates()
        if self.min_slope is not None:
            Measure.check("min_slope", self.min_slope)
            if self.dem is None:
                raise OptionError(f"--min-slope {self.min_slope} needs heights: give a height model with --dem")
            if self.min_slope.unit != "deg" or not self.min_slope.value < 90:
                raise OptionError(f"--min-slope {self.min_slope}: give degrees below 90, such as 10deg")

    def check_used(self, *, in_table: bool) -> None:
        """Refuse options without effect.

        Parameters
        ----------
        in_table
            Whether a table of scenes names earlier images.

        Raises
        ------
        OptionError
            If there is no earlier image whose position could be trusted, or no evidence for cutting.
        """
        compared = bool(self.befores) or in_table
        if not compared and not self.register:
            raise OptionError("--no-register trusts the position of a scene from before: give one with --before")
        if not self.cut and not compared and self.dem is None:
            raise OptionError("--no-cut leaves polygons whole that evidence would cut: give --before or --dem")

    @property
    def inputs(self) -> list[str | Path]:
        """The files."""
        masks = [path for own in self.before_masks for path in own]
        return [path for path in (self.dem, self.exclude, *self.befores, *masks) if path is not None]

    @property
    def befores(self) -> list[str | Path]:
        """The earlier images."""
        return _listed(self.before)

    @property
    def before_masks(self) -> list[list[str | Path]]:
        """The masks of each earlier image."""
        given = _listed(self.before_mask)
        if len(self.befores) == 1:
            return [[path for path in given if not _is_none(path)]]
        return [[] if _is_none(path) else [path] for path in given] or [[] for _ in self.befores]

    def _check_dates(self) -> None:
        for option, value in (("--event-after", self.event_after), ("--event-before", self.event_before)):
            if value is not None and not _is_date(value):
                raise OptionError(f"{option} {value}: give a date such as 2024-05-31")
        if self.event_after and self.event_before and self.event_after > self.event_before:
            raise OptionError(f"--event-after {self.event_after} is later than --event-before {self.event_before}")

    def _check_masks(self) -> None:
        given = _listed(self.before_mask)
        if given and not self.befores:
            raise OptionError(f"--before-mask {given[0]} is of a scene from before: give one with --before")
        if given and len(self.befores) not in (1, len(given)):
            raise OptionError(
                f"{len(given)} --before-mask for {len(self.befores)} --before: give one for each, in their order, and "
                "none where nothing is masked"
            )

    def as_dict(self) -> dict[str, Any]:
        """Plain values for provenance: the given data."""
        given = {"dem": self.dem, "min_slope": self.min_slope, "exclude": self.exclude}
        given |= {"event_after": self.event_after, "event_before": self.event_before}
        named: dict[str, Any] = {
            name: without_secrets(str(value)) for name, value in given.items() if value is not None
        }
        for name in ("before", "before_mask"):
            texts = [without_secrets(str(path)) for path in _listed(getattr(self, name))]
            named |= {name: texts[0] if len(texts) == 1 else texts} if texts else {}
        return named | {name: False for name in ("register", "cut") if not getattr(self, name)}


def _is_date(text: str) -> bool:
    """Whether a text is a full date: later versions of Python accept other forms, which do not sort as text."""
    try:
        return date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False


def _listed(given: Any) -> list[Any]:
    """One path or several as a list."""
    return [] if given is None else [given] if isinstance(given, str | Path) else list(given)


def _is_none(mask: str | Path | None) -> bool:
    return mask is None or mask == "none"


NO_SUPPLEMENTS = Supplements()

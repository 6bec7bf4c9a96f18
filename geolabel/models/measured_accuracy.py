"""Accuracy of the bundled networks on real scenes by pixel size, as measured with ``geolabel bench quality``.

The figures are stored only beside the weights they were measured with: help texts and warnings are made from them, and
``geolabel bench card`` updates them with the model cards.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

from geolabel.errors import WeightsError
from geolabel.parsing import read_json

REACH = 2.0
"""Maximum ratio between a pixel size and those of a set for its figures to apply."""


@dataclass(frozen=True)
class SetFigures:
    """A set of real scenes that was not used in training."""

    data: str
    gsd_m: tuple[float, float]
    """Metres per pixel of the finest and the coarsest scene."""
    f1: float
    """F1 of the area of the polygons."""
    peers: Mapping[str, float] = field(default_factory=dict)
    """F1 of baselines without a network, by name."""
    narrow_px: int | None = None
    """Width in pixels below which landslides count as narrow."""
    narrow: int = 0
    """Number of narrow landslides."""
    narrow_found: float = 0.0
    """Share of these that is found."""

    @property
    def best_baseline(self) -> tuple[str, float]:
        """Name and F1 of the best baseline; empty and 0 without any."""
        return max(self.peers.items(), key=lambda one: one[1], default=("", 0.0))

    @property
    def size(self) -> str:
        """Pixel sizes, as text."""
        low, high = self.gsd_m
        return f"{low:g} m" if low == high else f"{low:g} to {high:g} m"

    def distance(self, gsd: float) -> float:
        """Log ratio of `gsd` metres to the nearest pixel size of its scenes; 0 within their range."""
        low, high = self.gsd_m
        return max(math.log(low / gsd), math.log(gsd / high), 0.0)

    @property
    def worth_it(self) -> bool:
        """Whether the networks are better than the best baseline."""
        return self.f1 > self.best_baseline[1]


@dataclass(frozen=True)
class Measured:
    """Figures of networks, identified by the SHA-256 of their weights."""

    networks: Mapping[str, str]
    """SHA-256 by role."""
    sets: tuple[SetFigures, ...]

    def near(self, gsd: float) -> list[SetFigures]:
        """The sets with pixel sizes nearest to `gsd` metres; empty if all differ too much."""
        least = min((one.distance(gsd) for one in self.sets), default=math.inf)
        reached = least <= math.log(REACH) + 1e-9
        return [one for one in self.sets if reached and one.distance(gsd) <= least + 1e-9]

    def caution(self, gsd: float) -> str | None:
        """A warning for pixels of `gsd` metres; None if the networks did well at that size."""
        if not self.sets:
            return None
        near = self.near(gsd)
        if not near:
            finest, coarsest = min(one.gsd_m[0] for one in self.sets), max(one.gsd_m[1] for one in self.sets)
            return (
                f"pixels of {gsd:.3g} m: the bundled networks were measured on scenes of {finest:g} to {coarsest:g} m, "
                "none of them near this; they may miss landslides, or detect other ground"
            )
        bad = [one for one in near if not one.worth_it]
        if not bad:
            return None
        worst = min(bad, key=lambda one: one.f1 - one.best_baseline[1])
        name, f1 = worst.best_baseline
        text = (
            f"pixels of {gsd:.3g} m: on real scenes of {worst.size} the bundled networks have an F1 of "
            f"{worst.f1:.2f}, where {name} has {f1:.2f}"
        )
        if worst.narrow_px is not None and worst.narrow and worst.narrow_found < 0.5:
            found = round(worst.narrow_found * worst.narrow)
            text += f"; of {worst.narrow} landslides less than {worst.narrow_px} px wide they find {found or 'none'}"
        return f"{text}. Finer imagery suits them, or a localizer of your own (geolabel train localizer)"

    def sentence(self) -> str:
        """All sets in one sentence, for the help."""
        parts = []
        for one in sorted(self.sets, key=lambda one: one.gsd_m):
            name, f1 = one.best_baseline
            parts.append(f"{one.f1:.2f} at {one.size}" + (f" ({f1:.2f} by {name})" if name else ""))
        said = "; ".join(parts)
        return f"F1 of the area of polygons on real scenes that no training saw (geolabel bench quality): {said}."

    def markdown(self) -> str:
        """All sets as a table, for the README."""
        lines = [
            "| real scenes that no training saw | pixels | F1 of geolabel | best threshold on colour |",
            "|---|---|---|---|",
        ]
        for one in sorted(self.sets, key=lambda one: one.gsd_m):
            name, f1 = one.best_baseline
            lines.append(f"| {one.data} | {one.size} | {one.f1:.2f} | {f1:.2f}, {name} |")
        return "\n".join(lines)


MEASURED = "measured.json"
"""Name of the file of figures, beside the weights."""


def shipped() -> Path:
    """Path of the figures of the bundled networks."""
    return Path(str(resources.files("geolabel.weights") / MEASURED))


@lru_cache(maxsize=1)
def of_bundled() -> Measured:
    """Figures of the bundled networks."""
    return load_measured(shipped())


def caution(gsd: float, networks: Mapping[str, str]) -> str | None:
    """A warning for pixels of `gsd` metres, for networks given by the SHA-256 of their weights.

    None if they did well at that size, or no figures are known.
    """
    found = of_bundled()
    return found.caution(gsd) if dict(found.networks) == dict(networks) else None


def load_measured(path: Path) -> Measured:
    """Read figures.

    Raises
    ------
    WeightsError
        If the file is missing or does not hold figures.
    """
    try:
        values = read_json(path)
        return Measured(
            dict(values["networks"]),
            tuple(SetFigures(**(one | {"gsd_m": tuple(one["gsd_m"])})) for one in values["sets"]),
        )
    except OSError as error:
        raise WeightsError(f"{path} cannot be read ({error.strerror}): install geolabel again") from error
    except (ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"{path} has no figures ({error}): write it again with geolabel bench card") from error


def save_measured(path: Path, networks: Mapping[str, str], sets: Sequence[SetFigures]) -> None:
    """Write figures as JSON; the file appears when it is complete."""
    from geolabel.outputs import replacing

    values: dict[str, Any] = {"networks": dict(networks), "sets": [asdict(one) for one in sets]}
    with replacing(path, overwrite=True) as part:
        part.write_text(json.dumps(values, indent=1, allow_nan=False) + "\n", encoding="utf-8")

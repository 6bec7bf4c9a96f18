"""What the help and the warnings of a run say of the networks that ship, taken from the table of ``bench quality``."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from geolabel.evaluation.table import OURS, Measurement, Section
from geolabel.models.measured import SetFigures

SECTIONS = ("scene", "coarse")
"""Those with real scenes at their own ground sample distance."""

GSD_OF = {"sichuan": (0.2, 0.9)}
"""Metres per pixel of sets whose single images do not say theirs."""

PEER = "Otsu on "
"""How the names of peers begin that need neither training nor labels."""

NARROW_PX, NARROW_BANDS = 24, ("below 8 px", "8 to 24 px")
"""Width below which landslides count as narrow, and the columns of the table of widths that it is made of."""


def figures_of_sets(sections: Mapping[str, Section]) -> list[SetFigures]:
    """Figures of every set of real scenes.

    Parameters
    ----------
    sections
        By name; sets whose cases do not say their ground sample distance are left out.
    """
    widths = {m.data: m.figures for m in _measured(sections, ["width"]) if m.method == OURS}
    found = []
    for section in (sections[name] for name in SECTIONS if name in sections):
        for ours in (m for m in section.measured if m.method == OURS and " without " not in m.data):
            case = next(iter(section.cases.get(ours.data, [])), {})
            if "gsd" not in case:
                continue
            of_set = [m for m in section.measured if m.data == ours.data and m.method.startswith(PEER)]
            peers = {m.method: round(_number(m.figures["F1"]), 4) for m in of_set}
            gsd = GSD_OF.get(ours.data, (case["gsd"], case["gsd"]))
            narrow = _narrow(widths.get(ours.data, {}))
            found.append(SetFigures(ours.data, gsd, round(_number(ours.figures["F1"]), 4), peers, **narrow))
    return found


def _measured(sections: Mapping[str, Section], names: Iterable[str]) -> Iterable[Measurement]:
    return (m for name in names if name in sections for m in sections[name].measured)


def _narrow(figures: Mapping[str, float]) -> dict[str, Any]:
    counts = [int(figures.get(f"landslides {band}", 0)) for band in NARROW_BANDS]
    if not sum(counts):
        return {}
    seen = sum(_number(figures[band]) * count for band, count in zip(NARROW_BANDS, counts, strict=True) if count)
    return {"narrow_px": NARROW_PX, "narrow": sum(counts), "narrow_found": round(seen / sum(counts), 4)}


def _number(figure: float) -> float:
    return 0.0 if math.isnan(figure) else figure  # of nothing found

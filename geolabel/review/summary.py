"""Summary of an inventory: counts and areas by layer, class and status, and the size-frequency distribution.

Areas of landslides follow a power law above some minimum, in many inventories with an exponent of 2.2 to 2.6 (Malamud
et al. 2004, "Landslide inventories and their statistical properties"). Exponent, minimum, and whether a power law is
plausible at all are estimated after Clauset, Shalizi and Newman (2009), "Power-law distributions in empirical data".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from geolabel.io.read.review import POLYGON_LAYERS
from geolabel.io.written import plain
from geolabel.outputs import check_target, saving
from geolabel.review.inventories import LANDSLIDES, areas, read_inventory
from geolabel.types import AnyArray, Float64Array

MINIMUM_COUNT = 50
"""Minimum landslides for a fit: with fewer, exponents are unreliable (Clauset et al., figure 3.2)."""

MINIMUM_TAIL = 10
"""Minimum number of landslides of at least the minimum area."""

CANDIDATES = 50
"""Maximum number of tried minimum areas, spread over the ranks."""

SIMULATIONS = 200
"""Number of synthetic inventories: p is accurate to 0.035 (Clauset et al., section 4.1: half of one over the root)."""

PLAUSIBLE = 0.1
"""Minimum p of a power law that is not ruled out (Clauset et al., section 4.1)."""

SAME = 1e-6
"""Relative tolerance for equal areas, whose last digits may differ."""

BINS_PER_DECADE = 6
"""Resolution of the plot."""

SUFFIXES = (".png", ".svg", ".pdf")
"""Formats of the plot."""


@dataclass(frozen=True)
class PowerLaw:
    """The density of areas above a minimum, proportional to ``area ** -exponent``."""

    exponent: float
    error: float
    """Standard error of `exponent` for the given minimum (Clauset et al., eq. 3.2)."""
    min_area_m2: float
    """Minimum area of the fit."""
    count: int
    """Number of landslides of at least this area."""
    distance: float
    """Kolmogorov-Smirnov distance between law and data, 0..1."""
    p: float
    """Share of synthetic inventories with a larger distance from their own fit, 0..1."""

    @property
    def plausible(self) -> bool:
        """Whether a power law is not ruled out."""
        return self.p >= PLAUSIBLE


@dataclass(frozen=True)
class Group:
    """A group of polygons."""

    count: int
    area_m2: float
    """Total area on the ellipsoid."""


@dataclass(frozen=True)
class Summary:
    """Contents of an inventory."""

    crs: str | None
    layers: dict[str, Group]
    """``landslides``, ``candidates`` and ``rejected``, after the review."""
    classes: dict[str, Group]
    """Landslides by class."""
    states: dict[str, Group]
    """All polygons by status: unreviewed, accepted, rejected, edited, added and deleted."""
    areas_m2: Float64Array
    """(N,) areas of the landslides, ascending."""
    power_law: PowerLaw | None
    """None if there are too few landslides for a fit."""

    def figures(self) -> dict[str, Any]:
        """Plain values."""
        size = self.areas_m2
        quantiles = [float(np.quantile(size, q)) for q in (0, 0.25, 0.5, 0.75, 1)] if len(size) else []
        parts = {name: {key: asdict(one) for key, one in getattr(self, name).items()} for name in _PARTS}
        law = self.power_law
        fit = None if law is None else asdict(law) | {"plausible": law.plausible}
        return {"crs": self.crs} | parts | {"area_quartiles_m2": quantiles, "power_law": fit}


_PARTS = ("layers", "classes", "states")


def summarize(path: str | Path, *, plot: str | Path | None = None, overwrite: bool = False, seed: int = 0) -> Summary:
    """Summarise an inventory, and plot the size-frequency distribution of its landslides.

    Parameters
    ----------
    path
        An output of geolabel, or another file of polygons.
    plot
        Picture to write, ``.png``, ``.svg`` or ``.pdf``; None to draw nothing.
    overwrite
        Whether `plot` may be replaced.
    seed
        Random seed of the synthetic inventories that test whether a power law is plausible.

    Raises
    ------
    GeolabelError
        If a file cannot be read or written.

    Examples
    --------
    >>> import geolabel
    >>> geolabel.summarize("slides.gpkg").power_law  # doctest: +SKIP
    """
    if plot is not None:
        check_target(Path(plot), overwrite=overwrite, suffixes=SUFFIXES, inputs=[path])
    inventory = read_inventory(path)
    size = areas(inventory.outlines(inventory.crs), inventory.crs)
    table = inventory.polygons
    landslide = np.asarray(inventory.layer == LANDSLIDES, bool)
    named = table["class"] if "class" in table else [None] * len(table)
    classes = np.array([*(plain(name) or "none" for name in named), None], object)[:-1]
    found = Summary(
        crs=None if inventory.crs is None else inventory.crs.name,
        layers=_groups(inventory.layer, size, POLYGON_LAYERS),
        classes=_groups(classes[landslide], size[landslide]),
        states=_groups(inventory.state, size),
        areas_m2=np.sort(size[landslide]),
        power_law=fit_power_law(size[landslide], seed),
    )
    if plot is not None:
        _draw(Path(plot), found, Path(path).name)
    return found


def _groups(names: AnyArray, size: Float64Array, order: Sequence[str] | None = None) -> dict[str, Group]:
    wanted = sorted({*names}) if order is None else order
    return {name: Group(int((names == name).sum()), float(size[names == name].sum())) for name in wanted}


def fit_power_law(size: Float64Array, seed: int = 0) -> PowerLaw | None:
    """Fit a power law to areas, see the module; None if there are too few or they are all equal.

    The minimum is the one with the smallest Kolmogorov-Smirnov distance (section 3.3), the exponent has the largest
    likelihood above it (eq. 3.1), and p comes from synthetic inventories that have the law above the minimum and the
    data below it, each fitted again (section 4.1).

    Parameters
    ----------
    size : (N,)
        Areas; non-positive ones are ignored.
    """
    ordered = np.sort(size[np.isfinite(size) & (size > 0)])
    if len(ordered) < MINIMUM_COUNT:
        return None
    best = _best(ordered)
    if best is None:
        return None
    start, exponent, distance = best
    low, tail = ordered[start], len(ordered) - start
    random = np.random.default_rng(seed)
    further = 0
    for _ in range(SIMULATIONS):
        above = random.random(len(ordered)) < tail / len(ordered)
        law = low * (1 - random.random(len(ordered))) ** (-1 / (exponent - 1))
        below = ordered[random.integers(0, max(1, start), len(ordered))]
        again = _best(np.sort(np.where(above, law, below)))
        further += again is not None and again[2] >= distance
    return PowerLaw(
        exponent=float(exponent),
        error=float((exponent - 1) / math.sqrt(tail)),
        min_area_m2=float(low),
        count=int(tail),
        distance=float(distance),
        p=further / SIMULATIONS,
    )


def _best(ordered: Float64Array) -> tuple[int, float, float] | None:
    """Rank of the minimum with the smallest distance, exponent, and distance; None if all areas are equal."""
    n = len(ordered)
    logs = np.log(ordered)
    sums = np.cumsum(logs[::-1])[::-1]
    # the first of equal areas is the minimum
    starts = np.unique(np.searchsorted(ordered, ordered[: n - MINIMUM_TAIL + 1], side="left"))
    if len(starts) > CANDIDATES:
        starts = starts[np.linspace(0, len(starts) - 1, CANDIDATES).round().astype(int)]
    best: tuple[int, float, float] | None = None
    for start in starts.tolist():
        tail = n - start
        spread = float(sums[start] - tail * logs[start])
        if logs[-1] - logs[start] < SAME:
            continue
        exponent = 1 + tail / spread
        law = -np.expm1(-(exponent - 1) * (logs[start:] - logs[start]))
        rank = np.arange(tail) / tail
        distance = float(max((law - rank).max(), (rank + 1 / tail - law).max()))
        if best is None or distance < best[2]:
            best = start, exponent, distance
    return best


def density(size: Float64Array) -> tuple[Float64Array, Float64Array]:
    """Frequency density of areas: centres of bins, m2, and number of landslides in each over its width, 1/m2.

    Bins are equal on a logarithmic axis; empty ones are omitted.
    """
    positive = size[size > 0]
    low, high = math.floor(math.log10(positive.min())), math.log10(positive.max())
    bins = math.floor((high - low) * BINS_PER_DECADE) + 1
    edges = 10 ** (low + np.arange(bins + 1) / BINS_PER_DECADE)
    counts, _ = np.histogram(positive, edges)
    filled = counts > 0
    return np.sqrt(edges[1:] * edges[:-1])[filled], (counts / np.diff(edges))[filled]


def _draw(path: Path, found: Summary, name: str) -> None:
    """Draw frequency density against area, both logarithmic, with the fitted law."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4.5), dpi=130, layout="constrained")
    axes = figure.subplots()
    axes.set(xlabel="area of a landslide (m²)", ylabel="landslides per m² of area")
    axes.set_title(name, parse_math=False)
    axes.grid(visible=True, which="major", color="0.9")
    if (found.areas_m2 > 0).any():
        axes.set(xscale="log", yscale="log")
        axes.plot(
            *density(found.areas_m2), "o", color="#333333", markersize=4, label=f"{len(found.areas_m2)} landslides"
        )
        if (law := found.power_law) is not None:
            x = np.geomspace(law.min_area_m2, found.areas_m2[-1], 50)
            y = law.count * (law.exponent - 1) / law.min_area_m2 * (x / law.min_area_m2) ** -law.exponent
            said = "" if law.plausible else ", ruled out"
            axes.plot(x, y, color="#c03020", label=f"power law, exponent {law.exponent:.2f} ± {law.error:.2f}{said}")
            axes.axvline(law.min_area_m2, color="#c03020", linewidth=0.8, linestyle=":")
        axes.legend()
    kind = path.suffix.lower()[1:]
    fixed: dict[str, Any] = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}[kind]
    with saving(path) as part, rc_context({"svg.hashsalt": "geolabel"}):  # ids in an SVG are random by default
        figure.savefig(part, format=kind, metadata=fixed)

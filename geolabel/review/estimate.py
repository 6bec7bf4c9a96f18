"""Estimates from a review: how many unreviewed polygons are correct, how many landslides were missed, and the area.

The map has strata: landslides by confidence, candidates, and the ground outside polygons. Estimates are based on a
stratified random sample of each (`geolabel.sample_review`); without one, all reviewed polygons represent their stratum,
which is only valid if they were not selected by appearance. Missed landslides are estimated only from windows outside
polygons that a person has searched completely.

Areas follow Olofsson et al. (2014), see `geolabel.review.accuracy`, with two classes, landslide and other ground. Units
are polygons and windows of unequal size, so shares within a class are ratio estimates instead of shares of points.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import shapely

from geolabel.errors import OutputError
from geolabel.io.read.review import SAMPLE, UNREVIEWED, read_windows
from geolabel.io.styles import LIMITS
from geolabel.io.written import read_written
from geolabel.polygons import valid_multipolygons
from geolabel.review.accuracy import ErrorMatrix, Estimated, rare_total, ratio, right_of_rest
from geolabel.review.inventories import CANDIDATES, LANDSLIDES, Inventory, areas, read_inventory
from geolabel.review.window_layers import frame_of
from geolabel.types import AnyArray, BoolArray, Float64Array

OUTSIDE = "outside polygons"
"""Stratum of the ground outside polygons."""

BEFORE = "reviewed before"
"""Suffix of strata of polygons that were a person's work when the file was written."""

MINIMUM = 3
"""Minimum reviewed polygons of a stratum; smaller ones are merged with the next."""


@dataclass(frozen=True)
class Stratum:
    """A stratum of the map's polygons."""

    name: str
    mapped: int
    rest: int
    """Unreviewed polygons."""
    reviewed: int
    """Reviewed polygons used for the estimate."""
    right: int
    """Number of them that are landslides."""


@dataclass(frozen=True)
class Estimate:
    """Estimates from the review of an inventory. Unknown figures are None, with the reason in `notes`."""

    sampled: bool
    """Whether it is based on a stratified random sample."""
    strata: tuple[Stratum, ...]
    right: Estimated | None
    """Unreviewed landslides that are correct."""
    candidates: Estimated | None
    """Unreviewed candidates that are landslides."""
    missed: Estimated | None
    """Landslides outside polygons, including those that were added."""
    added: int
    """Landslides added by a person."""
    windows: int
    """Number of searched windows outside polygons."""
    matrix: ErrorMatrix | None
    """By area, m2: class 0 is landslide, class 1 other ground."""
    notes: tuple[str, ...]

    def figures(self) -> dict[str, Any]:
        """Plain values; each figure with its 95 % interval."""
        known = {"right": self.right, "candidates_right": self.candidates, "missed": self.missed}
        if self.matrix is not None:
            known |= {
                "users_accuracy": self.matrix.users(0),
                "producers_accuracy": self.matrix.producers(0),
                "overall_accuracy": self.matrix.overall(),
                "landslide_area_m2": self.matrix.area_of(0),
            }
        return {
            "sampled": self.sampled,
            "strata": [vars(stratum) for stratum in self.strata],
            **{name: None if one is None else one.plain() for name, one in known.items()},
            "added": self.added,
            "windows": self.windows,
            "notes": list(self.notes),
        }


def estimate_review(path: str | Path, *, aoi: str | Path | None = None) -> Estimate:
    """Estimate how many unreviewed polygons are correct, and how many landslides were missed.

    Parameters
    ----------
    path
        A partly reviewed GeoPackage written by geolabel.
    aoi
        Polygons of the searched area, as for `geolabel.sample_review`; by default the tiles that the localizer saw.
        Masked ground is excluded.

    Raises
    ------
    VectorError
        If a file cannot be read.
    OutputError
        If the file is not a GeoPackage written by geolabel.

    Examples
    --------
    >>> import geolabel
    >>> geolabel.estimate_review("slides.gpkg").figures()  # doctest: +SKIP
    """
    if read_written(path) is None:
        raise OutputError(
            f"{path} has no record of what geolabel wrote, so added and deleted polygons are not known: give an "
            "output of geolabel extract or polygonize that ends with .gpkg"
        )
    inventory = read_inventory(path)
    mapped = MappedPolygons.of(inventory)
    sample = read_windows(path, SAMPLE, inventory.record) if _has(inventory, SAMPLE) else None
    return _Review(inventory, mapped, sample, frame_of(path, inventory.crs, aoi)).estimate()


def _has(inventory: Inventory, layer: str) -> bool:
    return inventory.record is not None and bool(inventory.record.of(layer))


@dataclass(frozen=True)
class MappedPolygons:
    """The N landslides and candidates as geolabel wrote them, whatever a person did with them since."""

    ids: AnyArray
    """(N,)"""
    layer: AnyArray
    """(N,) ``landslides`` or ``candidates``."""
    outlines: AnyArray
    """(N,) outlines as written."""
    confidence: Float64Array
    """(N,) NaN if unknown, as for deleted polygons."""
    decided: BoolArray
    """(N,)"""
    right: BoolArray
    """(N,) whether a person considers each a landslide."""
    before: BoolArray
    """(N,) whether each was a person's work when the file was written, and thus not a result of the map."""

    @classmethod
    def of(cls, inventory: Inventory) -> MappedPolygons:
        """The polygons of an inventory with a record."""
        assert inventory.record is not None
        rows = sorted(
            (one for (layer, _), one in inventory.record.features.items() if layer in (LANDSLIDES, CANDIDATES)),
            key=lambda one: one.key,
        )
        table = inventory.polygons
        numbers = pd.to_numeric(table["id"]).to_numpy(float) if "id" in table else np.zeros(0)
        said = table["confidence"] if "confidence" in table else pd.Series(np.nan, table.index)
        place = {int(number): k for k, number in enumerate(numbers) if np.isfinite(number)}
        at = [place.get(one.key) for one in rows]
        confidence = pd.to_numeric(said, errors="coerce").to_numpy(float)
        return cls(
            ids=np.array([one.key for one in rows], np.int64),
            layer=np.array([one.layer for one in rows], object),
            outlines=valid_multipolygons(np.array([*(one.outline for one in rows), None], object)[:-1]),
            confidence=np.array([np.nan if k is None else confidence[k] for k in at]),
            decided=np.array([k is None or not inventory.waiting[k] for k in at], bool),
            right=np.array([k is not None and bool(inventory.right[k]) for k in at], bool),
            before=np.array([one.reviewed for one in rows], bool),
        )

    def strata(self, drawn: Mapping[int, str]) -> AnyArray:
        """(N,) name of the stratum of each: landslides by confidence, candidates, and those reviewed before.

        Landslides are a single stratum if the confidence of a deleted one is not known any more.

        Parameters
        ----------
        drawn
            Strata of the polygons of a sample, by number.
        """
        own = (self.layer == LANDSLIDES) & ~self.before
        names = self._classes()
        for k, number in enumerate(self.ids.tolist()):
            names[k] = drawn.get(number, names[k])
        if any(name is None for name in names[own]):
            names[own] = LANDSLIDES
        names[self.before] = [f"{layer}, {BEFORE}" for layer in self.layer[self.before]]
        return names

    def _classes(self) -> AnyArray:
        """(N,) confidence classes of landslides, None if unknown; and candidates."""
        own = self.layer == LANDSLIDES
        classes = np.clip(np.searchsorted(LIMITS, self.confidence, side="right") - 1, 0, len(LIMITS) - 2)
        names = [f"{LANDSLIDES}, confidence {LIMITS[k]:g} to {LIMITS[k + 1]:g}" for k in range(len(LIMITS) - 1)]
        found: AnyArray = np.array([*(names[k] for k in classes), None], object)[:-1]
        found[~np.isfinite(self.confidence)] = None
        found[~own] = CANDIDATES
        return found


@dataclass(frozen=True)
class _Review:
    """Data for an estimate."""

    inventory: Inventory
    mapped: MappedPolygons
    sample: pd.DataFrame | None
    frame: shapely.Geometry | None
    """Searched area."""

    def estimate(self) -> Estimate:
        mapped, notes = self.mapped, list[str]()
        units, drawn = mapped.decided.copy(), dict[int, str]()
        if self.sample is not None:
            rows = self.sample[self.sample["polygon"].notna()]
            drawn = dict(zip(rows["polygon"].astype(int), rows["stratum"].astype(str), strict=True))
            units &= np.isin(mapped.ids, list(drawn)) | mapped.before
        names = _joined(mapped.strata(drawn), mapped.layer, units)
        strata = [_stratum(name, names == name, mapped, units) for name in dict.fromkeys(sorted(names))]
        by_layer = {layer: [one for one in strata if one.name.startswith(layer)] for layer in (LANDSLIDES, CANDIDATES)}
        known = {layer: self._rest(layer, some, notes) for layer, some in by_layer.items()}
        windows = self._windows(notes)
        if self.sample is None and (units & ~mapped.before).any():
            notes.append(
                "no random sample was drawn: the reviewed polygons represent the others, which holds only if they "
                "were not selected by their look; geolabel review next --estimate draws a sample"
            )
        return Estimate(
            sampled=self.sample is not None,
            strata=tuple(strata),
            right=known[LANDSLIDES],
            candidates=known[CANDIDATES],
            missed=None if windows is None else rare_total(windows["missed"], windows["area"], windows["total"]),
            added=int(self.inventory.added.sum()),
            windows=0 if windows is None else len(windows["area"]),
            matrix=None if windows is None else self._matrix(names, units, windows, notes),
            notes=tuple(notes),
        )

    def _rest(self, layer: str, strata: list[Stratum], notes: list[str]) -> Estimated | None:
        """Number of unreviewed polygons of a layer that are landslides; None if too few were reviewed."""
        few = [one for one in strata if one.rest and one.reviewed < MINIMUM]
        if few:
            rest = sum(one.rest for one in few)
            notes.append(
                f"{rest} {layer} are unreviewed in strata with fewer than {MINIMUM} reviewed ones: how many are "
                "landslides is not known"
            )
            return None
        columns = [[getattr(one, name) for one in strata] for name in ("rest", "reviewed", "right")]
        return right_of_rest(*columns)

    def _windows(self, notes: list[str]) -> dict[str, Any] | None:
        """Searched windows outside polygons: `area`, `missed` landslides, `missed_area`; `total` area."""
        looked = None
        if self.sample is not None:
            outside = self.sample["polygon"].isna() & (self.sample["status"] != UNREVIEWED)
            looked = np.asarray(self.sample[outside].geometry.to_numpy(), object)
        if looked is None or len(looked) < 2:
            count = 0 if looked is None else len(looked)
            waiting = 0 if self.sample is None else int(self.sample["polygon"].isna().sum()) - count
            advice = (
                f"set status to reviewed in {waiting} windows of the layer review_sample, as you look at them"
                if waiting + count >= 2
                else "geolabel review next --estimate draws windows"
            )
            notes.append(
                f"{count} windows outside polygons were looked at, and 2 are needed: how many landslides were missed, "
                f"and how much of their area is mapped, cannot be known from polygons alone; {advice}"
            )
            return None
        if self.frame is None:
            notes.append("the area that was searched is not known, since there is no layer tiles: give --aoi FILE")
            return None
        crs = self.inventory.crs
        union = shapely.union_all(self.mapped.outlines)
        ground = shapely.difference(shapely.intersection(looked, self.frame), union)
        new = self.inventory.outlines(crs)[self.inventory.added]
        beyond = shapely.point_on_surface(shapely.difference(new, union))  # an added polygon may overlap another
        one, _ = shapely.STRtree(beyond).query(ground, predicate="intersects")
        return {
            "area": areas(_polygons(ground), crs),
            "missed": np.bincount(one, minlength=len(looked)).astype(float),
            "missed_area": areas(_shared(ground, new), crs),
            "total": float(areas(_polygons(np.array([shapely.difference(self.frame, union)], object)), crs)[0]),
        }

    def _matrix(
        self, names: AnyArray, units: BoolArray, windows: Mapping[str, Any], notes: list[str]
    ) -> ErrorMatrix | None:
        """The error matrix by area: landslides of the map, and candidates with the ground outside polygons."""
        crs, mapped = self.inventory.crs, self.mapped
        size = areas(mapped.outlines, crs)
        true = _shared(mapped.outlines, self.inventory.outlines(crs)[self.inventory.right])
        correct = np.where(mapped.right, areas(true, crs), 0.0)
        parts: dict[int, list[tuple[float, float, float]]] = {0: [], 1: []}  # area, share of landslide, its variance
        for name in dict.fromkeys(names):
            own = names == name
            value, spread = ratio(correct[own & units], size[own & units], float(size[own].sum()))
            parts[0 if name.startswith(LANDSLIDES) else 1].append((float(size[own].sum()), value, spread))
        parts[1].append((windows["total"], *ratio(windows["missed_area"], windows["area"], windows["total"])))
        if not np.isfinite([value for part in parts.values() for row in part for value in row]).all():
            notes.append("a stratum without two reviewed polygons has no share of landslide: accuracy is not known")
            return None
        if not parts[0]:
            notes.append("the map has no landslides, so it has no accuracy of landslides")
            return None
        if not windows["missed"].any():
            notes.append(
                "no landslide was missed in the windows: the upper end of missed still counts possible ones; "
                "the producer's accuracy assumes none"
            )
        whole = np.array([sum(row[0] for row in part) for part in parts.values()])
        share = [sum(a * r for a, r, _ in part) / total for part, total in zip(parts.values(), whole, strict=True)]
        variance = [
            sum(a**2 * v for a, _, v in part) / total**2 for part, total in zip(parts.values(), whole, strict=True)
        ]
        return ErrorMatrix(
            weights=whole / whole.sum(),
            shares=np.array([[share[0], 1 - share[0]], [share[1], 1 - share[1]]]),
            variances=np.array([[variance[0]] * 2, [variance[1]] * 2]),
            area=float(whole.sum()),
        )


def _polygons(geometries: AnyArray) -> AnyArray:
    """(N,) geometries as multipolygons, without parts that have no area."""
    return valid_multipolygons(shapely.buffer(np.asarray(geometries, object), 0))


def _shared(shapes: AnyArray, others: AnyArray) -> AnyArray:
    """(N,) intersection of each shape with the union of others, as multipolygons."""
    found = np.array([shapely.MultiPolygon()] * len(shapes) + [None], object)[:-1]
    one, other = shapely.STRtree(others).query(shapes, predicate="intersects")
    for k in np.unique(one):
        found[k] = shapely.intersection(shapes[k], shapely.union_all(others[other[one == k]]))
    return _polygons(found)


def _stratum(name: str, own: BoolArray, mapped: MappedPolygons, units: BoolArray) -> Stratum:
    counted = own & units
    return Stratum(
        name=name,
        mapped=int(own.sum()),
        rest=int((own & ~mapped.decided).sum()),
        reviewed=int(counted.sum()),
        right=int((counted & mapped.right).sum()),
    )


def _joined(names: AnyArray, layer: AnyArray, units: BoolArray) -> AnyArray:
    """(N,) names of strata; those with too few reviewed polygons are merged with the next of their layer."""
    joined = names.copy()
    for kind in (LANDSLIDES, CANDIDATES):
        waiting = [name for name in sorted({*names[layer == kind]}) if not name.endswith(BEFORE)]
        held: list[list[str]] = []
        for name in waiting:
            if held and (_count(names, held[-1], units) < MINIMUM):
                held[-1].append(name)
            else:
                held.append([name])
        if len(held) > 1 and _count(names, held[-1], units) < MINIMUM:
            last = held.pop()
            held[-1] += last
        for group in held:
            if len(group) > 1:
                low, high = group[0].split(" to ")[0], group[-1].split(" to ")[-1]
                joined[np.isin(names, group)] = f"{low} to {high}"
    return joined


def _count(names: AnyArray, group: list[str], units: BoolArray) -> int:
    return int((np.isin(names, group) & units).sum())

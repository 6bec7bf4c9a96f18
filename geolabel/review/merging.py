"""Merge inventories of one area into one file, and record where their reviews differ.

Polygons are taken in this order: a person's work, unreviewed landslides, unreviewed candidates; within each, the
inventories in the order given. A polygon becomes a part of one that was taken before it, from another inventory, if

* both are one landslide: the intersection over union of their outlines reaches a minimum; or
* at least half of it is on the other, unless people decided differently about the two.

An unreviewed polygon that covers at least half of an accepted one becomes a candidate, as with ``extract
--keep-reviewed``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pyproj
import shapely

from geolabel.errors import OptionError, VectorError
from geolabel.extraction.evidence import DECIDED
from geolabel.extraction.result import reprojected, stacked
from geolabel.extraction.reviewed import SHARE, reviewed_in
from geolabel.extraction.scene_groups import check_dst_crs, parse_crs
from geolabel.io.columns import LANDSLIDE_COLUMNS, WINDOW_COLUMNS, Kind
from geolabel.io.read.review import (
    LAYER,
    POLYGON_LAYERS,
    REJECTED,
    WHY,
    Carried,
    Review,
    check_work,
    read_review,
)
from geolabel.io.read.typed_columns import added_columns, common_kinds, one_case, one_spelling
from geolabel.io.write.exchange import check_lonlat
from geolabel.io.write.vectors import SUFFIXES, Reviewed, provenance_of, write_layers
from geolabel.io.written import plain, read_written
from geolabel.outputs import check_target, same_file
from geolabel.polygons import shared_areas, valid_multipolygons
from geolabel.review.inventories import CANDIDATES, LANDSLIDES
from geolabel.review.window_layers import frame_of, masked_ground
from geolabel.types import AnyArray, BoolArray, Float64Array, Int64Array

SOURCES, DISAGREEMENT = "sources", "disagreement"
"""Columns of a merged inventory: the sources of a polygon, and who decided differently about it."""

COLUMNS: Mapping[str, Kind] = {SOURCES: "text", DISAGREEMENT: "text"}


@dataclass(frozen=True)
class Merged:
    """One inventory merged from several, in the CRS of the first."""

    landslides: gpd.GeoDataFrame
    candidates: gpd.GeoDataFrame
    rejected: gpd.GeoDataFrame
    joined: int
    """Polygons that became a part of a polygon of another inventory."""

    @property
    def disagreements(self) -> gpd.GeoDataFrame:
        """Polygons about which people decided differently."""
        rows = pd.concat([self.landslides, self.candidates, self.rejected], ignore_index=True)
        return gpd.GeoDataFrame(rows[rows[DISAGREEMENT].notna()], crs=self.landslides.crs)

    def figures(self) -> dict[str, int]:
        """How many polygons there are, were joined, and are in dispute."""
        layers = {name: len(getattr(self, name)) for name in POLYGON_LAYERS}
        return layers | {"joined": self.joined, "disagreements": len(self.disagreements)}


def merge(
    inventories: Sequence[str | Path],
    out: str | Path,
    *,
    min_iou: float = 0.1,
    dst_crs: str | None = None,
    overwrite: bool = False,
    discard_review: bool = False,
) -> Merged:
    """Merge inventories of one place, such as those of several reviewers, into one.

    Where people decided differently about a polygon, the first inventory is followed, and the column ``disagreement``
    has the decisions of the others. The column ``sources`` names the files and numbers of a polygon. Numbers of the
    first inventory stay. Ground that masks left out of one inventory, and no other one saw, is the layer ``masked``.
    Prompts and tiles are left out.

    Parameters
    ----------
    inventories
        Outputs of geolabel, or other files of polygons; at least two.
    out
        File of layers to write.
    min_iou
        Minimum intersection over union of two polygons that are one landslide, above 0, at most 1.
    dst_crs
        CRS of the result; None for that of the first inventory.
    overwrite
        Whether to replace `out`, unless it holds reviews or edits.
    discard_review
        Whether to replace such a file and lose its reviews and edits.

    Raises
    ------
    OptionError
        If `min_iou` is out of its range, fewer than two inventories are given, or one of them twice.
    GeolabelError
        If a file cannot be read or written.

    Examples
    --------
    >>> import geolabel
    >>> geolabel.merge(["hers.gpkg", "his.gpkg"], "both.gpkg").figures()  # doctest: +SKIP
    """
    if not 0 < min_iou <= 1:
        raise OptionError(f"min iou {min_iou}: it must be above 0, at most 1")
    if len(inventories) < 2:
        raise OptionError(f"{len(inventories)} inventory: merging needs at least two")
    carried, crs = Carried(discard=discard_review), parse_crs(dst_crs)
    for k, path in enumerate(inventories):
        if any(same_file(Path(path), other) for other in inventories[:k]):
            raise OptionError(f"{path} is given twice: name each inventory once")
    check_target(Path(out), overwrite=overwrite, suffixes=SUFFIXES, inputs=inventories)
    check_work(out, carried)
    names = _names(inventories)
    reviews = _spelled_alike([read_review(path, record=read_written(path)) for path in inventories])
    check_dst_crs(crs, reviews[0].crs)
    check_lonlat(Path(out), reviews[0].crs, crs)
    joint = _Joint.of(reviews, names, crs or reviews[0].crs)
    found = joint.merged(min_iou)
    made = [
        {"file": name, "provenance": provenance_of(path) or None} for name, path in zip(names, inventories, strict=True)
    ]
    reviewed = Reviewed(
        numbers=frozenset(joint.numbers[joint.decided].tolist()),
        rejected=found.rejected,
        columns={name: kind for name, kind in joint.columns.items() if name not in LANDSLIDE_COLUMNS},
        highest=max(int(joint.numbers.max(initial=0)), joint.highest),
        looked=joint.windows(reviews),
    )
    write_layers(
        out,
        found.landslides,
        None,
        None,
        {"merged": made, "min_iou": min_iou},
        crs=joint.crs,
        candidates=found.candidates,
        masked=_masked(inventories, reviews, joint.crs),
        reviewed=reviewed,
        overwrite=overwrite,
        carried=carried,
    )
    return found


def _spelled_alike(reviews: Sequence[Review]) -> list[Review]:
    """The same reviews with one spelling of columns that differ in case only, see `one_spelling`."""
    return [
        replace(
            review,
            kept=review.kept.rename(columns=new),
            rejected=review.rejected.rename(columns=new),
            waiting=review.waiting.rename(columns=new),
            columns={new.get(name, name): kind for name, kind in review.columns.items()},
        )
        for review, new in zip(reviews, one_spelling(review.columns for review in reviews), strict=True)
    ]


def _masked(paths: Sequence[str | Path], reviews: Sequence[Review], crs: pyproj.CRS | None) -> gpd.GeoDataFrame | None:
    """Ground that masks left out of an inventory, and that no other one saw, by its layer ``tiles``, in polygons.

    Compared in the CRS of the first inventory: in another CRS, shared sides with different vertices leave slivers.
    """
    first = reviews[0].crs

    def union(grounds: Sequence[shapely.Geometry | None]) -> shapely.Geometry:
        pairs = [(ground, review.crs) for ground, review in zip(grounds, reviews, strict=True) if ground is not None]
        parts = [reprojected(gpd.GeoDataFrame(geometry=[ground], crs=own), first) for ground, own in pairs]
        return shapely.union_all(np.concatenate([np.zeros(0, object), *parts]))

    left_out = union([masked_ground(path) for path in paths])
    if left_out.is_empty:
        return None
    seen = union([frame_of(path, review.crs, None) for path, review in zip(paths, reviews, strict=True)])
    parts = [part for part in shapely.get_parts(shapely.difference(left_out, seen)) if part.area]
    parts = [*shapely.get_parts(reprojected(gpd.GeoDataFrame(geometry=parts, crs=first), crs))]
    return gpd.GeoDataFrame({"id": np.arange(1, len(parts) + 1)}, geometry=parts, crs=crs)


def _names(paths: Sequence[str | Path]) -> list[str]:
    """Names of the files in the result: without their folders if that is unambiguous."""
    short = [Path(path).name for path in paths]
    return short if len({*short}) == len(short) else [str(path) for path in paths]


@dataclass
class _Joint:
    """The polygons of all inventories, N in number, in the order in which they are taken."""

    crs: pyproj.CRS | None
    columns: Mapping[str, Kind]
    table: gpd.GeoDataFrame
    """Rows with the columns `LAYER` and `WHY`."""
    names: Sequence[str]
    """Names of the inventories in the result."""
    owner: Int64Array
    """(N,) index of the inventory."""
    ids: AnyArray
    """(N,) numbers there, null if a polygon has none."""
    highest: int
    """Highest number that polygons have had."""
    taken_by: Int64Array = field(init=False)
    """(N,) index of the polygon that each is a part of; its own if it stays."""

    def __post_init__(self) -> None:
        self.taken_by = np.arange(len(self.table))

    @classmethod
    def of(cls, reviews: Sequence[Review], names: Sequence[str], crs: pyproj.CRS | None) -> _Joint:
        """Read the tables of all inventories, reprojected to one CRS."""
        for review in reviews:
            if (review.crs is None) != (crs is None):
                raise VectorError(
                    f"{reviews[0].path} and {review.path}: one has a CRS and the other has none, so they cannot be "
                    "compared; give both a CRS, or neither"
                )
        added = common_kinds((pd.concat(review.tables), review.columns) for review in reviews)
        columns = {**LANDSLIDE_COLUMNS, **added, **COLUMNS}
        whole = columns | {LAYER: "text", WHY: "text"}
        parts, owner = [], []
        for index, review in enumerate(reviews):
            for rows in review.tables:
                table = reviewed_in(rows, crs, None)
                mixed = [n for n, kind in review.columns.items() if columns[n] == "text" != kind and n in table]
                table = table.assign(**{name: _as_text(table[name]) for name in mixed})
                parts.append(stacked([table], crs, whole))
                owner += [index] * len(table)
        table = gpd.GeoDataFrame(pd.concat(parts, ignore_index=True), crs=crs)
        waiting, candidate = table[WHY].isna().to_numpy(bool), (table[LAYER] == CANDIDATES).to_numpy(bool)
        order = np.lexsort((pd.to_numeric(table["id"]).to_numpy(float), owner, waiting & candidate, waiting))
        table = table.iloc[order].reset_index(drop=True)
        owners, ids = np.array(owner, np.int64)[order], table["id"].to_numpy(object)
        return cls(crs, columns, table, names, owners, ids, max(review.highest for review in reviews))

    @property
    def decided(self) -> BoolArray:
        """(N,) whether a person decided about it."""
        return np.asarray(self.table[WHY].notna(), bool)

    @property
    def stays(self) -> BoolArray:
        """(N,) whether it is not a part of another."""
        return np.asarray(self.taken_by == np.arange(len(self.table)))

    @property
    def numbers(self) -> Int64Array:
        """(N,) numbers in the result: those of the first inventory stay, all others are higher than any before."""
        first = self.stays & (self.owner == 0) & pd.notna(self.ids)
        numbers, new = np.zeros(len(self.ids), np.int64), self.stays & ~first
        numbers[first] = self.ids[first].astype(np.int64)
        numbers[new] = np.arange(self.highest + 1, self.highest + 1 + new.sum())
        return numbers[self.taken_by]

    @property
    def right(self) -> BoolArray:
        """(N,) whether it is not rejected."""
        return np.asarray(self.table[LAYER] != REJECTED, bool)

    def merged(self, min_iou: float) -> Merged:
        """Join polygons of one landslide, and sort the others into layers."""
        shapes = valid_multipolygons(np.asarray(self.table.geometry.to_numpy(), object))
        one, other, shared = self._overlaps(shapes)
        self._join(shapes, one, other, shared, min_iou)
        stays = self.stays
        decided, right = self.decided, self.right
        around = (shared >= SHARE * shapely.area(shapes)[other]) & ~decided[one] & (decided & right & stays)[other]
        layer, reason = (self.table[name].to_numpy(object, copy=True) for name in (LAYER, "reason"))
        moved = one[around][layer[one[around]] == LANDSLIDES]
        layer[moved], reason[moved] = CANDIDATES, DECIDED
        said = self._said()
        table = self.table.assign(**{"id": self.numbers, "reason": reason, SOURCES: said[0], DISAGREEMENT: said[1]})
        parts = [table[stays & (layer == name)] for name in POLYGON_LAYERS]
        tables = [
            stacked([part], self.crs, self.columns).sort_values("id", kind="stable", ignore_index=True)
            for part in parts
        ]
        return Merged(tables[0], tables[1], tables[2], joined=int((~stays).sum()))

    def _overlaps(self, shapes: AnyArray) -> tuple[Int64Array, Int64Array, Float64Array]:
        """Pairs of polygons of different inventories, both ways, and the areas that they share."""
        one, other = shapely.STRtree(shapes).query(shapes, predicate="intersects")
        apart = self.owner[one] != self.owner[other]
        one, other = one[apart], other[apart]
        shared = shared_areas(shapes, shapes, (one, other))
        return one[shared > 0], other[shared > 0], shared[shared > 0]

    def _join(self, shapes: AnyArray, one: Int64Array, other: Int64Array, shared: Float64Array, min_iou: float) -> None:
        """Find the polygon that each is a part of: the one taken before it with the largest IoU."""
        area, decided, right = shapely.area(shapes), self.decided, self.right
        iou = shared / (area[one] + area[other] - shared)
        alike = ~decided[one] | (right[one] == right[other])
        fits = (other < one) & ((iou >= min_iou) | (alike & (shared >= SHARE * area[one])))
        order = np.lexsort((other, -iou, one))
        for k in order[fits[order]].tolist():
            mine, its = int(one[k]), int(other[k])
            if self.taken_by[mine] == mine and self.taken_by[its] == its:
                self.taken_by[mine] = its

    def _said(self) -> tuple[list[str], list[str | None]]:
        """For each polygon its files and numbers, and the differing decisions of other people."""
        called = [
            self.names[index] + ("" if plain(number) is None else f":{int(number)}")
            for index, number in zip(self.owner, self.ids, strict=True)
        ]
        sources = [[name] for name in called]
        against: list[list[str]] = [[] for _ in called]
        decided, right = self.decided, self.right
        classes = [plain(name) for name in self.table["class"]]
        for k in np.flatnonzero(~self.stays).tolist():
            its = int(self.taken_by[k])
            sources[its].append(called[k])
            if not decided[k]:
                continue
            if right[k] != right[its]:
                against[its].append(f"{called[k]}: {'landslide' if right[k] else REJECTED}")
            elif right[k] and classes[k] != classes[its]:
                against[its].append(f"{called[k]}: class {classes[k] or 'none'}")
        return ["; ".join(names) for names in sources], ["; ".join(names) or None for names in against]

    def windows(self, reviews: Sequence[Review]) -> gpd.GeoDataFrame:
        """Windows that people have reviewed, with the numbers of the polygons in the result."""
        numbers, parts = self.numbers, []
        for index, review in enumerate(reviews):
            if not len(review.looked):
                continue
            own = np.flatnonzero((self.owner == index) & pd.notna(self.ids))
            became = dict(zip(self.ids[own].astype(int).tolist(), numbers[own].tolist(), strict=True))
            about = [None if plain(number) is None else became.get(int(number)) for number in review.looked["polygon"]]
            parts.append(review.looked.assign(polygon=pd.Series(about, review.looked.index, dtype=object)))
        if not parts:
            return gpd.GeoDataFrame()
        parts = one_case(parts)
        windows = stacked(parts, self.crs, WINDOW_COLUMNS | added_columns(parts, WINDOW_COLUMNS))
        return windows.assign(window=np.arange(1, len(windows) + 1))


def _as_text(values: pd.Series) -> pd.Series:
    said: list[Any] = [plain(value) for value in values]
    text = [f"{one:.15g}" if isinstance(one, float) else None if one is None else str(one) for one in said]
    return pd.Series(text, values.index, dtype=object)

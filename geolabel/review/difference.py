"""Changes between two inventories of one area."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pyproj
import shapely

from geolabel.errors import OptionError
from geolabel.io.columns import CHANGE_COLUMNS
from geolabel.io.read.review import CHANGES, CHANGES_ABOUT, REJECTED, UNREVIEWED
from geolabel.io.styles import style_of
from geolabel.io.write.geopackage import Layer, VectorFile
from geolabel.io.write.vectors import SUFFIXES, write_vectors
from geolabel.io.written import plain
from geolabel.outputs import check_target
from geolabel.polygons import shared_areas
from geolabel.review.inventories import Inventory, areas, read_inventory
from geolabel.types import AnyArray, Float64Array, Int64Array

ADDED, REMOVED, CHANGED = "added", "removed", "changed"
"""Kinds of change."""

SAME_OUTLINE = 1 - 1e-6
"""IoU above which outlines count as equal: areas of the same ring with another start differ in the last digits."""


@dataclass(frozen=True)
class Difference:
    """Changes from one inventory to another, in the CRS of the new one."""

    changes: gpd.GeoDataFrame
    """A row for each added, removed or changed polygon; see `geolabel.io.columns.CHANGES`."""
    same: int
    """Number of polygons in both without changes."""

    def __bool__(self) -> bool:
        return len(self.changes) > 0

    def figures(self) -> dict[str, int]:
        """Numbers of unchanged, added, removed and changed polygons, and what changed."""
        kinds = self.changes["change"].tolist()
        said = [part for what in self.changes["what"].dropna() for part in what.split(", ")]
        counts = {"same": self.same} | {kind: kinds.count(kind) for kind in (ADDED, REMOVED, CHANGED)}
        return counts | {f"changed {name}": said.count(name) for name in ("outline", "layer", "status", "class")}


def diff(
    old: str | Path,
    new: str | Path,
    *,
    min_iou: float = 0.1,
    out: str | Path | None = None,
    overwrite: bool = False,
) -> Difference:
    """Compare two inventories polygon by polygon.

    Polygons of the layers landslides, candidates and rejected are matched by outline, in the order of descending
    intersection over union. Polygons deleted by a person count as rejected.

    Parameters
    ----------
    old, new
        Outputs of geolabel, or other files of polygons. `old` is reprojected to the CRS of `new`.
    min_iou
        Minimum intersection over union of two polygons of the same landslide, above 0, at most 1.
    out
        File of layers to write, whose layer ``changes`` has a row for each change; None to write nothing.
    overwrite
        Whether `out` may be replaced.

    Raises
    ------
    OptionError
        If `min_iou` is out of range.
    GeolabelError
        If a file cannot be read or written.

    Examples
    --------
    >>> import geolabel
    >>> geolabel.diff("first.gpkg", "second.gpkg").figures()  # doctest: +SKIP
    """
    if not 0 < min_iou <= 1:
        raise OptionError(f"min iou {min_iou}: it must be above 0, at most 1")
    if out is not None:
        check_target(Path(out), overwrite=overwrite, suffixes=SUFFIXES, inputs=[old, new])
    found = compare(read_inventory(old), read_inventory(new), min_iou)
    if out is not None:
        style = style_of(CHANGES, found.changes, CHANGE_COLUMNS)
        layer = Layer(CHANGES, "MultiPolygon", CHANGES_ABOUT, CHANGE_COLUMNS, found.changes, style.qml())
        made = {"old": Path(old).name, "new": Path(new).name, "min_iou": min_iou}
        write_vectors(out, VectorFile([layer], found.changes.crs, made), overwrite=overwrite)
    return found


def compare(old: Inventory, new: Inventory, min_iou: float) -> Difference:
    """Compare two inventories in memory; see `diff`."""
    before, after = old.outlines(new.crs), new.outlines(new.crs)
    pairs, iou = paired(before, after, min_iou)
    values = _said(old, areas(before, new.crs)), _said(new, areas(after, new.crs))
    rows, outlines, same = [], [], 0
    for (one, other), share in zip(pairs.tolist(), iou.tolist(), strict=True):
        what = _changed(values[0][one], values[1][other], share)
        if not what:
            same += 1
            continue
        rows.append(_row(CHANGED, values[0][one], values[1][other]) | {"what": ", ".join(what), "iou": share})
        outlines.append(after[other])
    for k in np.setdiff1d(np.arange(len(before)), pairs[:, 0]):
        rows.append(_row(REMOVED, values[0][k], {}))
        outlines.append(before[k])
    for k in np.setdiff1d(np.arange(len(after)), pairs[:, 1]):
        rows.append(_row(ADDED, {}, values[1][k]))
        outlines.append(after[k])
    return Difference(_table(rows, outlines, new.crs), same)


def paired(before: AnyArray, after: AnyArray, min_iou: float) -> tuple[Int64Array, Float64Array]:
    """Pairs of polygons of the same landslide; each polygon is in at most one pair.

    Returns
    -------
    pairs : (K, 2) indices, ascending
    iou : (K,) intersection over union of each pair
    """
    one, other = shapely.STRtree(after).query(before, predicate="intersects")
    shared = shared_areas(before, after, (one, other))
    union = shapely.area(before[one]) + shapely.area(after[other]) - shared
    iou = np.divide(shared, union, out=np.zeros(len(shared)), where=union > 0)
    taken: tuple[set[int], set[int]] = set(), set()
    kept = []
    for k in np.lexsort((other, one, -iou)).tolist():
        first, second = int(one[k]), int(other[k])
        if iou[k] >= min_iou and first not in taken[0] and second not in taken[1]:
            taken[0].add(first)
            taken[1].add(second)
            kept.append((first, second, float(iou[k])))
    kept.sort()
    return np.array([pair[:2] for pair in kept], np.int64).reshape(-1, 2), np.array([pair[2] for pair in kept])


def _said(inventory: Inventory, area: Float64Array) -> list[dict[str, Any]]:
    """Properties of each polygon that are compared besides its outline."""
    table = inventory.polygons
    ids = table["id"] if "id" in table else [None] * len(table)
    names = table["class"] if "class" in table else [None] * len(table)
    # polygons deleted by a person have the status rejected, and an edit keeps the previous status
    states = table["status"] if "status" in table else [None] * len(table)
    rows = zip(ids, names, states, inventory.layer, area.tolist(), strict=True)
    return [
        {
            "id": None if plain(number) is None else int(number),
            "class": plain(name),
            "status": REJECTED if layer == REJECTED else str(plain(state) or UNREVIEWED).lower(),
            "layer": layer,
            "area_m2": size,
        }
        for number, name, state, layer, size in rows
    ]


def _changed(before: dict[str, Any], after: dict[str, Any], iou: float) -> list[str]:
    what = ["outline"] if iou < SAME_OUTLINE else []
    return what + [name for name in ("layer", "status", "class") if before[name] != after[name]]


def _row(change: str, before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    names = ("id", "layer", "status", "class", "area_m2")
    sides = {"old": before, "new": after}
    return {"change": change} | {f"{side}_{name}": said.get(name) for side, said in sides.items() for name in names}


def _table(rows: list[dict[str, Any]], outlines: list[shapely.Geometry], crs: pyproj.CRS | None) -> gpd.GeoDataFrame:
    values = {name: [row.get(name) for row in rows] for name in CHANGE_COLUMNS}
    return gpd.GeoDataFrame(values, geometry=np.array([*outlines, None], object)[:-1], crs=crs)

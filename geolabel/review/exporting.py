"""Export an inventory after its review to another format or CRS."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pyproj

import geolabel
from geolabel.extraction.result import stacked
from geolabel.extraction.reviewed import looked_in, number_new, reviewed_in
from geolabel.extraction.scene_groups import check_dst_crs, parse_crs
from geolabel.io.columns import LANDSLIDE_COLUMNS
from geolabel.io.read.review import LAYER, WHY, Carried, Review, check_work, read_review
from geolabel.io.write.exchange import check_lonlat
from geolabel.io.write.vectors import SUFFIXES, Reviewed, provenance_of, write_layers
from geolabel.outputs import check_target
from geolabel.review.inventories import CANDIDATES, LANDSLIDES


@dataclass(frozen=True)
class Exported:
    """Summary of the written file."""

    landslides: gpd.GeoDataFrame
    candidates: gpd.GeoDataFrame
    rejected: gpd.GeoDataFrame
    reviewed: int
    """Number of landslides that a person accepted, edited or added."""

    def figures(self) -> dict[str, Any]:
        """Numbers of polygons, and the area of the landslides."""
        area = pd.to_numeric(self.landslides["area_m2"]).sum()
        return {
            "landslides": len(self.landslides),
            "area_m2": float(area),
            "reviewed": self.reviewed,
            "candidates": len(self.candidates),
            "rejected": len(self.rejected),
        }


def export(
    inventory: str | Path,
    out: str | Path,
    *,
    dst_crs: str | None = None,
    reviewed_only: bool = False,
    overwrite: bool = False,
    discard_review: bool = False,
) -> Exported:
    """Write an inventory in another format or CRS, with its review applied.

    Accepted candidates are landslides, rejected and deleted polygons are not, and the sizes of redrawn outlines are
    measured. Prompts and tiles are omitted.

    Parameters
    ----------
    inventory
        Output of geolabel, or another file of polygons.
    out
        File of layers to write; its suffix names the format.
    dst_crs
        CRS of the polygons; None for that of the inventory.
    reviewed_only
        Whether to write accepted, edited and added polygons only.
    overwrite
        Whether `out` may be replaced, unless it holds reviews or edits.
    discard_review
        Whether to replace such a file and lose its reviews and edits.

    Raises
    ------
    OptionError
        If the CRS is unknown, or the inventory has none.
    GeolabelError
        If a file cannot be read or written.

    Examples
    --------
    >>> import geolabel
    >>> geolabel.export("slides.gpkg", "slides.parquet", dst_crs="EPSG:4326").figures()  # doctest: +SKIP
    """
    crs, carried = parse_crs(dst_crs), Carried(discard=discard_review)
    check_target(Path(out), overwrite=overwrite, suffixes=SUFFIXES, inputs=[inventory])
    check_work(out, carried)
    review = read_review(inventory)
    check_dst_crs(crs, review.crs)
    check_lonlat(Path(out), review.crs, crs)
    crs = crs or review.crs
    found, reviewed = _layers(review, crs, reviewed_only=reviewed_only)
    made = {"reviewed_only": reviewed_only, "geolabel": geolabel.__version__, "from": Path(inventory).name}
    write_layers(
        out,
        found.landslides,
        None,
        None,
        provenance_of(inventory) | {"export": made},
        crs=crs,
        candidates=None if reviewed_only else found.candidates,
        reviewed=reviewed,
        overwrite=overwrite,
        carried=carried,
    )
    return found


def _layers(review: Review, crs: pyproj.CRS | None, *, reviewed_only: bool) -> tuple[Exported, Reviewed]:
    """The polygons of a review by layer, in a CRS, and the information about the review."""
    columns = LANDSLIDE_COLUMNS | dict(review.columns)
    kept, rejected, waiting = (reviewed_in(one, crs, None) for one in review.tables)
    highest = number_new((kept, rejected), review.highest)
    shown = pd.concat([kept] if reviewed_only else [kept, waiting], ignore_index=True)
    layers = []
    for name in (LANDSLIDES, CANDIDATES):
        rows = gpd.GeoDataFrame(shown[shown[LAYER] == name], geometry="geometry", crs=crs)
        layers.append(stacked([rows], crs, columns).sort_values("id", kind="stable", ignore_index=True))
    decided = kept[kept[LAYER] == LANDSLIDES]
    refused = stacked([rejected], crs, columns)
    found = Exported(layers[0], layers[1], refused, int(np.count_nonzero(decided[WHY].notna())))
    numbers = frozenset(int(number) for number in kept["id"])
    return found, Reviewed(numbers, refused, review.columns, highest, looked_in(review, crs))

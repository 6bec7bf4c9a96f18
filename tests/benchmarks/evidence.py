"""What a scene from before and heights reject: false alarms and recall on synthetic pairs, and how well pairs register.

    python tests/benchmarks/evidence.py --folder DIR [--first 910000] [--count 20] [--size 1024] [--min-confidence 0.1]

Pairs are `geolabel synthesize --pair` scenes with heights. Each is extracted once with `--before` and `--dem`; what
each kind of evidence rejects follows from the attributes. Printed are, over all pairs: the area of false alarms as a
share of the scenes without evidence, and with evidence as a share of that; the area of landslides found with evidence
as a share of that without; and the error of the registration, pixels. DIR keeps scenes and tables: a second call
resumes.
"""

from __future__ import annotations

import argparse
import json
import logging
import sqlite3
from contextlib import closing
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely

import geolabel
from geolabel.errors import SceneError
from geolabel.extraction.evidence import BARE_BEFORE, UNCHANGED


def made_with(path: Path, key: str) -> dict:
    """What a GeoPackage says of a key of how it was made."""
    with closing(sqlite3.connect(path)) as database:
        found = [json.loads(row[0]) for row in database.execute("SELECT metadata FROM gpkg_metadata")]
    return next(made[key] for made in found if key in made)


def measure(seed: int, folder: Path, size: int, min_confidence: float) -> pd.DataFrame:
    """Polygons of one pair: area, area on landslides, attributes; one row without a polygon says how it registered."""
    scene = folder / f"{seed}.tif"
    if not scene.exists():
        geolabel.synthesize(scene, size=size, seed=seed, pair=True)
    truth = gpd.read_file(scene.with_name(f"{seed}_truth.gpkg"))
    whole = shapely.union_all(truth.geometry.to_numpy())
    out, given = folder / f"{seed}.gpkg", {"dem": scene.with_name(f"{seed}_dem.tif"), "overwrite": True}
    given["parameters"] = geolabel.Parameters(min_confidence=min_confidence)
    before = scene.with_name(f"{seed}_before.tif")
    try:
        geolabel.extract(scene, out=out, before=before, **given)
        moved = made_with(out, "evidence")["change"]["displacement_px"]
        true = made_with(scene.with_name(f"{seed}_truth.gpkg"), "synthetic")["before"]["shift_px"]
        error = float(np.hypot(moved["rows"] - true[0], moved["cols"] - true[1]))
    except SceneError as refused:
        logging.warning("%d: %s", seed, refused)
        geolabel.extract(scene, out=out, **given)
        error = float("nan")
    tables = [gpd.read_file(out, layer=layer) for layer in ("landslides", "candidates")]
    found = pd.concat(tables)
    shapes = np.asarray(found.geometry.to_numpy(), object)
    inside = shapely.area(shapely.intersection(shapes, whole))
    rows = pd.DataFrame(found.drop(columns="geometry")).assign(area=shapely.area(shapes), true=inside)
    pair = pd.DataFrame([{"area": 0.0, "true": 0.0, "error_px": error, "truth": whole.area}])
    return pd.concat([rows, pair]).assign(seed=seed, scene=(size / 2) ** 2)


def rejected(rows: pd.DataFrame, *, before: bool, min_slope: float) -> np.ndarray:
    """Which polygons the evidence rejects."""
    bare = (rows["activation_before"].astype(float) >= BARE_BEFORE) & (rows["change_z"].astype(float) <= UNCHANGED)
    return (bare & before) | (rows["slope_mean_deg"].astype(float) < min_slope)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--first", type=int, default=910_000)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--min-confidence", type=float, default=0.1)
    parser.add_argument("--min-slope", type=float, default=15.0)
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    tables = []
    for seed in range(given.first, given.first + given.count):
        kept = given.folder / f"{seed}.csv"
        if not kept.exists():
            measure(seed, given.folder, given.size, given.min_confidence).to_csv(kept, index=False)
        tables.append(pd.read_csv(kept))
    rows = pd.concat(tables, ignore_index=True)
    rows = rows[rows["truth"].notna() | (rows["confidence"] >= given.min_confidence)]
    false, true = (rows["area"] - rows["true"]).to_numpy(), rows["true"].to_numpy()
    pairs = rows[rows["truth"].notna()]
    share, recall = false.sum() / pairs["scene"].sum(), true.sum() / pairs["truth"].sum()
    print(
        f"{len(pairs)} pairs, {len(rows) - len(pairs)} polygons; "
        f"false alarms on {share:.4f} of the area, recall {recall:.3f}"
    )
    for name, before, slope in (
        ("before", True, 0.0),
        ("dem", False, given.min_slope),
        ("both", True, given.min_slope),
    ):
        kept_rows = ~rejected(rows, before=before, min_slope=slope)
        left, still = false[kept_rows].sum() / false.sum(), true[kept_rows].sum() / true.sum()
        count = int(kept_rows.sum()) - len(pairs)
        print(f"{name:8} false alarms left {left:.3f}  recall kept {still:.3f}  polygons {count}")
    errors = pairs["error_px"].to_numpy(float)
    known = errors[np.isfinite(errors)]
    print(
        f"registration: {len(errors) - len(known)} refused; error median {np.median(known):.2f} px, "
        f"at most 0.5 px in {np.mean(known <= 0.5):.2f}, maximum {known.max():.2f} px"
    )


if __name__ == "__main__":
    main()

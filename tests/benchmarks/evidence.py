"""What a scene from before and heights take away: false alarms and recall, with synthetic pairs and pasted landslides.

    python tests/benchmarks/evidence.py --folder DIR [--first 910000] [--count 20] [--size 1024] [--min-confidence 0.1]
    python tests/benchmarks/evidence.py --folder DIR --pasted DATA [--vary]

Synthetic pairs are `geolabel synthesize --pair` scenes with heights. Each is extracted without evidence, with
`--before`, with `--dem`, and with both. Printed are, over all pairs: the area of false alarms as a share of the scenes
without evidence, and with evidence as a share of that; the area of landslides found with evidence as a share of that
without; the calibration error of the confidence, over the polygons of both layers; and the error of the registration,
pixels. With `--pasted`: the F1 of area with and without `--before` on real ground with real landslides pasted on it
(tests/benchmarks/pasted.py, images for reports), whose scene before is that ground, with `--vary` on another day.
DIR keeps scenes and tables: a second call resumes.
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
import rasterio
import shapely
from pasted import write_pairs
from rasterio.features import shapes as outlined

import geolabel
from geolabel.errors import SceneError
from geolabel.evaluation.calibration import expected_calibration_error, reliability

KINDS = ("none", "before", "dem", "both")


def made_with(path: Path, key: str) -> dict:
    """What a GeoPackage says of a key of how it was made."""
    with closing(sqlite3.connect(path)) as database:
        found = [json.loads(row[0]) for row in database.execute("SELECT metadata FROM gpkg_metadata")]
    return next(made[key] for made in found if key in made)


def extracted(scene: Path, out: Path, truth: shapely.Geometry, min_confidence: float, **given: Path) -> pd.DataFrame:
    """Polygons of both layers: area, area on landslides, attributes."""
    parameters = geolabel.Parameters(min_confidence=min_confidence)
    geolabel.extract(scene, out=out, overwrite=True, parameters=parameters, **given)
    tables = [gpd.read_file(out, layer=layer).assign(layer=layer) for layer in ("landslides", "candidates")]
    found = pd.concat([table for table in tables if len(table)] or tables)
    shapes = np.asarray(found.geometry.to_numpy(), object)
    rows = pd.DataFrame(found.drop(columns="geometry")).assign(area=shapely.area(shapes))
    return rows.assign(true=shapely.area(shapely.intersection(shapes, truth)))


def measure(seed: int, folder: Path, size: int, min_confidence: float) -> pd.DataFrame:
    """Polygons of one pair for each kind of evidence; one row without a polygon says how it registered."""
    scene = folder / f"{seed}.tif"
    if not scene.exists():
        geolabel.synthesize(scene, size=size, seed=seed, pair=True)
    whole = shapely.union_all(gpd.read_file(folder / f"{seed}_truth.gpkg").geometry.to_numpy())
    before, dem = folder / f"{seed}_before.tif", folder / f"{seed}_dem.tif"
    parts, error = [], float("nan")
    for kind in KINDS:
        out = folder / f"{seed}_{kind}.gpkg"
        given = ({"before": before} if kind in ("before", "both") else {}) | (
            {"dem": dem} if kind in ("dem", "both") else {}
        )
        try:
            parts.append(extracted(scene, out, whole, min_confidence, **given).assign(kind=kind))
        except SceneError as refused:  # a person would go on without the scene before
            logging.warning("%d: %s", seed, refused)
            given.pop("before")
            parts.append(extracted(scene, out, whole, min_confidence, **given).assign(kind=kind))
            continue
        if kind == "before":
            moved = made_with(out, "evidence")["change"]["displacement_px"]
            true = made_with(folder / f"{seed}_truth.gpkg", "synthetic")["before"]["shift_px"]
            error = float(np.hypot(moved["rows"] - true[0], moved["cols"] - true[1]))
    pair = pd.DataFrame([{"kind": "pair", "error_px": error, "truth": whole.area, "scene": (size / 2) ** 2}])
    return pd.concat([*parts, pair]).assign(seed=seed)


def report(rows: pd.DataFrame) -> None:
    """Print the figures of synthetic pairs."""
    pairs = rows[rows["kind"] == "pair"]
    shown = rows[rows["layer"] == "landslides"]
    without = shown[shown["kind"] == "none"]
    false, true = float((without["area"] - without["true"]).sum()), float(without["true"].sum())
    print(
        f"{len(pairs)} pairs, {len(without)} polygons; false alarms on {false / pairs['scene'].sum():.4f} of the area, "
        f"recall {true / pairs['truth'].sum():.3f}"
    )
    for kind in KINDS:
        own, all_own = shown[shown["kind"] == kind], rows[rows["kind"] == kind]
        stated = all_own["confidence"].to_numpy(float)
        right = (all_own["true"] >= 0.5 * all_own["area"]).to_numpy(bool)
        known = np.isfinite(stated)
        error = expected_calibration_error(reliability(stated[known], right[known]))
        left = float((own["area"] - own["true"]).sum()) / false
        print(
            f"{kind:8} false alarms left {left:.3f}  recall kept {float(own['true'].sum()) / true:.3f}  "
            f"polygons {len(own)}  calibration error {error:.3f} of {int(known.sum())}"
        )
    errors = pairs["error_px"].to_numpy(float)
    known = errors[np.isfinite(errors)]
    print(
        f"registration: {len(errors) - len(known)} refused; error median {np.median(known):.2f} px, "
        f"at most 0.5 px in {np.mean(known <= 0.5):.2f}, maximum {known.max():.2f} px"
    )


def report_pasted(data: Path, folder: Path, min_confidence: float, *, vary: bool) -> None:
    """Print the F1 of pasted landslides, by set of ground."""
    rows = []
    for scene in write_pairs(data, folder / ("vary" if vary else "same"), "report", vary=vary):
        kept = scene.with_suffix(".csv")
        if not kept.exists():
            with rasterio.open(scene.with_name(f"{scene.stem}_truth.tif")) as source:
                found = outlined(source.read(1), mask=source.read(1) > 0, transform=source.transform)
            whole = shapely.union_all([shapely.geometry.shape(outline) for outline, _ in found])
            for kind in ("none", "before"):
                given = {"before": scene.with_name(f"{scene.stem}_before.tif")} if kind == "before" else {}
                out = scene.with_name(f"{scene.stem}_{kind}.gpkg")
                table = extracted(scene, out, whole, min_confidence, **given)
                own = table[table["layer"] == "landslides"]
                figures = {"area": own["area"].sum(), "true": own["true"].sum(), "truth": whole.area}
                rows.append({"scene": scene.stem, "kind": kind, **figures})
            pd.DataFrame(rows[-2:]).to_csv(kept, index=False)
        else:
            rows += pd.read_csv(kept).to_dict("records")
    table = pd.DataFrame(rows).assign(set=lambda t: t["scene"].str.rsplit("_", n=1).str[0])
    for name, part in [*table.groupby("set"), ("all", table)]:
        sums = part.groupby("kind")[["area", "true", "truth"]].sum()
        f1 = 2 * sums["true"] / (sums["area"] + sums["truth"])
        print(f"{name:18} {part['scene'].nunique():2} scenes  F1 {f1['none']:.3f}, with --before {f1['before']:.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--first", type=int, default=910_000)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--min-confidence", type=float, default=0.1)
    parser.add_argument("--pasted", type=Path, metavar="DATA")
    parser.add_argument("--vary", action="store_true")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    if given.pasted:
        report_pasted(given.pasted, given.folder, given.min_confidence, vary=given.vary)
        return
    tables = []
    for seed in range(given.first, given.first + given.count):
        kept = given.folder / f"{seed}.csv"
        if not kept.exists():
            measure(seed, given.folder, given.size, given.min_confidence).to_csv(kept, index=False)
        tables.append(pd.read_csv(kept))
    report(pd.concat(tables, ignore_index=True))


if __name__ == "__main__":
    main()

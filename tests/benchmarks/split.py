"""Objects found, with and without --split: recall, precision and F1 at an IoU of 0.5, and F1 of area.

    python tests/benchmarks/split.py --seeds 311 312 313 314 315 316
    python tests/benchmarks/split.py --scenes a.tif=a_truth.gpkg b.tif=b_truth.gpkg

Synthetic scenes of 2048 px have landslides that run together, each with an outline of its own. A touching landslide has
another within a pixel; the polygons that are compared with these are those that reach them. Of real scenes whose truth
is a mask, the F1 of area alone says something.
"""

import argparse
import tempfile
from pathlib import Path

import geopandas as gpd
import numpy as np
import shapely

import geolabel
from geolabel.types import AnyArray

ENOUGH = 0.5
"""IoU from which a polygon and a landslide are the same; above it, no other can be."""


def matches(truth: AnyArray, found: AnyArray) -> int:
    """Landslides of which a polygon has an IoU of more than `ENOUGH`."""
    one, other = shapely.STRtree(found).query(truth, predicate="intersects")
    shared = shapely.area(shapely.intersection(truth[one], found[other]))
    union = shapely.area(truth)[one] + shapely.area(found)[other] - shared
    return int((shared > ENOUGH * union).sum())


def touching(truth: AnyArray, found: AnyArray, pixel: float) -> tuple[AnyArray, AnyArray]:
    """Landslides with another beside them, and the polygons that reach these."""
    one, other = shapely.STRtree(truth).query(truth, predicate="dwithin", distance=1.2 * pixel)
    close = truth[np.unique(one[one != other])]
    return close, found[np.unique(shapely.STRtree(found).query(close, predicate="intersects")[1])]


def main() -> None:
    """Print a row for each way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="*", default=[])
    parser.add_argument("--scenes", nargs="*", default=[])
    parser.add_argument("--split", type=float, nargs="+", default=[0.5])
    given = parser.parse_args()
    scenes = [tuple(map(Path, pair.split("="))) for pair in given.scenes]
    counts: dict[tuple[float | None, str], AnyArray] = {}
    with tempfile.TemporaryDirectory() as folder:
        for seed in given.seeds:
            path = Path(folder) / f"{seed}.tif"
            geolabel.synthesize(path, size=(2048, 2048), seed=seed)
            scenes.append((path, path.with_name(f"{seed}_truth.gpkg")))
        for path, outlines in scenes:
            truth = gpd.read_file(outlines, layer="landslides")
            for split in (None, *given.split):
                found = geolabel.extract(path, parameters=geolabel.Parameters(split=split))
                ours, right = np.asarray(found.geometry), np.asarray(truth.to_crs(found.crs).geometry)
                one, all_of = shapely.union_all(ours), shapely.union_all(right)
                area = [shapely.area(shapely.intersection(one, all_of)), shapely.area(all_of), shapely.area(one)]
                close, reached = touching(right, ours, float(found["gsd_m"].iloc[0]))
                for name, row in (
                    ("all", [matches(right, ours), len(right), len(ours)]),
                    ("touching", [matches(close, reached), len(close), len(reached)]),
                    ("area", area),
                ):
                    counts[split, name] = counts.get((split, name), np.zeros(3)) + row
            print(f"{path.name}: {len(truth)} landslides", flush=True)
    for (split, name), (hits, right, found) in counts.items():
        recall, precision = hits / right, hits / found
        said = f"--split {split}" if split is not None else "without"
        print(
            f"{said:<12} {name:<9} recall {recall:.3f}  precision {precision:.3f}  F1 {2 * hits / (right + found):.3f}"
        )


if __name__ == "__main__":
    main()

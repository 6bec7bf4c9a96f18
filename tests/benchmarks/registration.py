"""How well pairs register: scenes from before that are displaced by up to 8 px, at one and two times the pixel size.

    python tests/benchmarks/registration.py --folder DIR [--first 910000] [--count 20] [--size 1024]

Pairs are `geolabel synthesize --pair` scenes, of two seasons and hours. The scene before is written again with a place
that is wrong by up to 8 px along each axis, at its own and at twice its pixel size, and registered as with
`geolabel extract --before`. Printed are the error of each, pixels of the scene, or why it is refused. DIR keeps the
scenes.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import numpy as np
import rasterio
from affine import Affine
from evidence import made_with

import geolabel
from geolabel.errors import SceneError
from geolabel.extraction.before import open_before
from geolabel.extraction.request import Networks, Parameters, Reading
from geolabel.extraction.scene_groups import prepare

SHIFT = 8.0
"""Maximum displacement along either axis that is added to that of the pair, pixels."""


def misplaced(before: Path, target: Path, shift: np.ndarray, scale: int) -> Path:
    """Write a scene again whose content is displaced by a shift, with larger pixels."""
    with rasterio.open(before) as source:
        bands, profile = source.read().astype(float), source.profile
    rows, cols = bands.shape[1] // scale, bands.shape[2] // scale
    bands = bands[:, : rows * scale, : cols * scale].reshape(3, rows, scale, cols, scale).mean(axis=(2, 4))
    place = profile["transform"] * Affine.translation(shift[1], shift[0]) * Affine.scale(scale)
    with rasterio.open(target, "w", **profile | {"transform": place, "height": rows, "width": cols}) as written:
        written.write(np.rint(bands).astype(np.uint8))
    return target


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--first", type=int, default=910_000)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--size", type=int, default=1024)
    given = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    given.folder.mkdir(parents=True, exist_ok=True)
    errors: dict[int, list[float]] = {1: [], 2: []}
    for seed in range(given.first, given.first + given.count):
        scene, rng = given.folder / f"{seed}.tif", np.random.default_rng(seed)
        if not scene.exists():
            geolabel.synthesize(scene, size=given.size, seed=seed, pair=True)
        true = made_with(scene.with_name(f"{seed}_truth.gpkg"), "synthetic")["before"]["shift_px"]
        plan = prepare(scene, Reading(), Networks(), Parameters())
        for scale, found in errors.items():
            shift = rng.uniform(-SHIFT, SHIFT, 2)
            before = misplaced(scene.with_name(f"{seed}_before.tif"), given.folder / f"{seed}_moved.tif", shift, scale)
            try:
                (known,) = open_before([before], [plan])
            except SceneError as refused:
                print(f"{seed} at {scale}: {refused}", flush=True)
                found.append(float("nan"))
                continue
            finally:
                before.unlink()
            assert known is not None
            (moved,) = known.displacements
            found.append(float(np.hypot(moved.rows - true[0] - shift[0], moved.cols - true[1] - shift[1])))
            print(f"{seed} at {scale}: {found[-1]:.2f} px, {moved}", flush=True)
    for scale, found in errors.items():
        values = np.asarray(found)
        known_values = values[np.isfinite(values)]
        print(
            f"{scale} x the pixel size: {len(values)} pairs, {np.isnan(values).sum()} refused; median "
            f"{np.median(known_values):.2f} px, maximum {known_values.max():.2f} px, at most 0.5 px in "
            f"{(known_values <= 0.5).sum()} of {len(known_values)}"
        )


if __name__ == "__main__":
    main()

"""The loop of review and adaptation on one scene, reviewed by the Python of QGIS, with pictures of before and after.

Usage: python tests/benchmarks/review_loop.py SCENE TRUTH.tif --out FOLDER [--windows 12] [--level LEVEL]

Extracts SCENE, has `geolabel review next` choose windows, and has QGIS's Python review them by TRUTH
(tests/qgis_review.py: accept, reject, redraw, add). Then adapts, extracts again with ``--keep-reviewed``, and compares
both inventories on the ground outside of all windows and of what was reviewed. TRUTH is a raster of the size of SCENE:
1 landslide, 255 unknown. What is in FOLDER already is not made again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import rasterio
from PIL import Image, ImageDraw
from rasterio.features import rasterize

import geolabel
from geolabel.adaptation.ground import Reviewed

QGIS = Path(__file__).parents[1] / "qgis_review.py"

UNKNOWN = 255

PICTURE = 1600
"""Longest side of a picture, pixels."""

COLOURS = {"truth": (255, 255, 0), "inventory": (255, 40, 40), "windows": (80, 200, 255)}


def timed(name: str, make: Callable[[], Any]) -> Any:
    """Make something, and say how long it took."""
    begun, busy = time.perf_counter(), time.process_time()
    made = make()
    print(f"{name}: {time.perf_counter() - begun:.0f} s, {time.process_time() - busy:.0f} CPU s", flush=True)
    return made


def agreement(slides: gpd.GeoDataFrame, truth: np.ndarray, where: np.ndarray, transform: Any) -> str:
    """Precision, recall and F1 of the area of polygons, where it is to be judged."""
    drawn = rasterize(list(slides.geometry), truth.shape, transform=transform) if len(slides) else np.zeros(truth.shape)
    found, true = (drawn > 0) & where, (truth == 1) & where
    both, either = (found & true).sum(), found.sum() + true.sum()
    parts = both / max(1, found.sum()), both / max(1, true.sum()), 2 * both / max(1, either)
    return "precision {:.3f}, recall {:.3f}, F1 {:.3f}".format(*parts)


def picture(path: Path, scene: Path, layers: dict[str, gpd.GeoDataFrame]) -> None:
    """The scene with outlines, as a PNG."""
    with rasterio.open(scene) as source:
        scale = min(1.0, PICTURE / max(source.shape))
        height, width = (round(side * scale) for side in source.shape)
        image = Image.fromarray(np.moveaxis(source.read((1, 2, 3), out_shape=(3, height, width)), 0, 2))
        onto = ~(source.transform * source.transform.scale(1 / scale))
    draw = ImageDraw.Draw(image)
    for name, table in layers.items():
        for outline in table.geometry.explode(index_parts=False):
            draw.line([onto * point[:2] for point in outline.exterior.coords], fill=COLOURS[name], width=2)
    image.save(path)


def main() -> None:
    """Run what is missing of the loop, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scene", type=Path)
    parser.add_argument("truth", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--windows", type=int, default=12, metavar="N")
    parser.add_argument("--level", choices=["threshold", "head", "all"])
    given = parser.parse_args()
    out: Path = given.out
    out.mkdir(parents=True, exist_ok=True)
    first, second, valley, known = (out / name for name in ("first.gpkg", "second.gpkg", "valley", "truth.gpkg"))
    if not first.is_file():
        timed("extract", lambda: geolabel.extract(given.scene, out=first))
    if "review" not in set(gpd.list_layers(first)["name"]):
        print(f"windows: {len(geolabel.next_windows(first, count=given.windows).windows)}", flush=True)
    if not known.is_file():
        geolabel.polygonize(given.truth, out=known)
    if not (out / "review.json").is_file():
        python = subprocess.run(["/usr/bin/python3", QGIS, first, known], check=True, capture_output=True, text=True)
        (out / "review.json").write_text(python.stdout.splitlines()[-1], encoding="utf-8")
    print("reviewed:", json.loads((out / "review.json").read_text(encoding="utf-8")))
    if not valley.is_dir():
        found = timed("adapt", lambda: geolabel.adapt(given.scene, first, out=valley, level=given.level))
        print(found.level, found.scores, "cut", found.cut, "gate", found.gate)
        if found.level is None:
            return
    if not second.is_file():
        networks = geolabel.Networks.from_folder(valley)
        timed("extract", lambda: geolabel.extract(given.scene, out=second, networks=networks, keep_reviewed=first))
    with rasterio.open(given.truth) as source:
        truth, transform = source.read(1), source.transform
    windows, review = gpd.read_file(first, layer="review"), Reviewed.read(first)
    decided = [windows, review.landslides, review.rejected, review.removed]  # polygons reach out of the windows
    outlines = [outline for table in decided for outline in table.geometry]
    away = (truth != UNKNOWN) & (rasterize(outlines, truth.shape, transform=transform, all_touched=True) == 0)
    print(f"ground outside of windows and reviewed polygons: {away.mean():.2f} of the scene")
    print("changes:", geolabel.diff(first, second).figures())
    for name, path in (("before", first), ("after", second)):
        slides = gpd.read_file(path, layer="landslides")
        if name == "before":  # as it was found: without what was added and with what was rejected
            slides = slides[slides["id"].notna()]
        print(f"{name}: {len(slides)} landslides; on that ground {agreement(slides, truth, away, transform)}")
        layers = {"windows": windows, "truth": gpd.read_file(known, layer="landslides"), "inventory": slides}
        picture(out / f"{name}.png", given.scene, layers)


if __name__ == "__main__":
    main()

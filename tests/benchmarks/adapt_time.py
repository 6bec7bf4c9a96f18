"""How long adaptation takes on a scene with some reviewed polygons.

Usage: python tests/benchmarks/adapt_time.py --out FOLDER [--size 4096] [--polygons 20] [--drawn 10] [--seed 21]

Makes a synthetic scene, extracts it, and reviews polygons drawn at random by the truth: those that are half landslide
are accepted, some of them with the outline of the truth, and the others rejected. A square around each is an area that
was looked at whole, so that layers are tried. What is in FOLDER already is not made again, but for the adaptation.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import geopandas as gpd
import numpy as np
import pandas as pd

import geolabel

T = TypeVar("T")

AROUND = 60.0
"""Metres between a reviewed polygon and the edge of the area that was looked at whole."""


class Timed:
    """Says how long each pass took."""

    def track(self, results: Iterable[T], name: str, total: int) -> Iterator[T]:
        """Pass `results` through."""
        begun, busy = time.perf_counter(), time.process_time()
        yield from results
        wall, cpu = time.perf_counter() - begun, time.process_time() - busy
        print(f"  {name}, {total}: {wall:.1f} s, {cpu:.1f} CPU s", flush=True)


def review(path: Path, truth: gpd.GeoDataFrame, polygons: int, drawn: int, seed: int) -> None:
    """Accept, redraw or reject some polygons of an inventory."""
    table = gpd.read_file(path, layer="landslides")
    chosen = np.random.default_rng(seed).permutation(len(table))[:polygons]
    whole = truth.union_all()
    redrawn = 0
    for row in chosen:
        outline = table.geometry.iloc[row]
        right = outline.intersection(whole).area >= outline.area / 2
        table.loc[row, "status"] = "accepted" if right else "rejected"
        if right and redrawn < drawn:
            table.loc[row, "geometry"] = truth[truth.intersects(outline)].union_all()
            redrawn += 1
    areas = table.geometry.iloc[chosen].envelope.buffer(AROUND, join_style="mitre")
    added = truth[truth.within(areas.union_all()) & ~truth.intersects(table.union_all())][["geometry"]]
    both = gpd.GeoDataFrame(pd.concat([table, added], ignore_index=True), crs=table.crs)
    both.to_file(path, layer="landslides", driver="GPKG")
    gpd.GeoDataFrame(geometry=areas.tolist(), crs=table.crs).to_file(path, layer="reviewed", driver="GPKG")
    print(f"{len(table)} polygons: {len(chosen)} reviewed, {redrawn} redrawn, {len(added)} added", flush=True)


def main() -> None:
    """Make what is missing, adapt, and print the seconds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--polygons", type=int, default=20)
    parser.add_argument("--drawn", type=int, default=10)
    parser.add_argument("--seed", type=int, default=21)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    scene, first = given.out / "scene.tif", given.out / "first.gpkg"
    if not scene.is_file():
        geolabel.synthesize(scene, size=given.size, gsd=0.5, seed=given.seed)
    if not first.is_file():
        geolabel.extract(scene, out=first)
        truth = gpd.read_file(given.out / "scene_truth.gpkg", layer="landslides")
        review(first, truth, given.polygons, given.drawn, given.seed)
    begun, busy = time.perf_counter(), time.process_time()
    found = geolabel.adapt(scene, first, out=given.out / "valley", overwrite=True, progress=Timed())
    print(f"adapt: {time.perf_counter() - begun:.0f} s, {time.process_time() - busy:.0f} CPU s")
    print(found)


if __name__ == "__main__":
    main()

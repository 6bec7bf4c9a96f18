"""What adaptation gains from a few chips of a region, on other chips of it.

Usage: python tests/benchmarks/adapt.py DATA --out FOLDER [--sets hokkaido bijie l4s] [--sizes N...] [--draws 5]
       [--localizer FILE] [--tests N] [--polygons N] [--all]

DATA holds hokkaido_planet_3m, bijie and l4s_rgb_10m. Each draw takes some chips at random, adapts to their masks as to
areas that were looked at whole (`geolabel.adapt`; each chip is a scene, with a stretch of its own), and judges the map
of all chips that are kept for the test. Adapted weights are thrown away. What was done is kept in FOLDER, and the same
command resumes from it; ``cells`` holds the features of the frozen trunk, of every chip once.

zero-shot
    F1 of the area of the cells that the network as it is takes, of all test chips together.
chosen
    The same with what cross-validation chose on the drawn chips; `zero-shot` where it chose nothing.
threshold, head, all
    With that level, whatever cross-validation said. `all` is tried with --all alone, as `adapt` does on a CPU: it takes
    minutes for each draw.
levels
    How many draws show fewer than three landslides, which is refused, choose nothing, the threshold, the head, all.
best
    The highest F1 that any operating point has on the test chips, with the network as it is: what no choice of a
    threshold can exceed.
polygons
    With --polygons: F1 of the area of the polygons that `geolabel.extract` writes for N test chips, evenly taken,
    before and after `geolabel.adapt` with a folder.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import rasterio.features
import shapely
from affine import Affine

from geolabel.activation import window_logits
from geolabel.adaptation.adapt import adapt
from geolabel.adaptation.ground import GROUND, LANDSLIDE
from geolabel.adaptation.levels import (
    CUTS,
    GATES,
    OWN,
    Blocks,
    Cells,
    Choice,
    Level,
    choose,
    f1,
    level_of,
    region_peaks,
    tally,
)
from geolabel.adaptation.networks import BaseLocalizer, Layers
from geolabel.adaptation.region import MINIMUM
from geolabel.engine.worker import use_threads
from geolabel.errors import VectorError
from geolabel.evaluation.examples import Example, Files
from geolabel.evaluation.scenes import example_grid, onto, polygon_ids, write_scene
from geolabel.extraction.extract import extract
from geolabel.extraction.plan import Plan
from geolabel.extraction.request import Networks, Parameters, Reading
from geolabel.extraction.scene_groups import prepare
from geolabel.io.write.rasters import write_geotiff
from geolabel.outputs import saving


@dataclass(frozen=True)
class Set:
    """Chips to learn from and to test on."""

    name: str
    pool: str
    """Folder of chips that draws are made from."""
    test: str
    """Folder of chips to test on; where it is the pool, those that were not drawn."""
    gsd: float
    sizes: tuple[int, ...]


SETS = {
    "hokkaido": Set("hokkaido_planet_3m", "hokkaido_planet_3m", "hokkaido_planet_3m", 3.0, (5, 10)),
    "bijie": Set("bijie", "bijie/train", "bijie/val", 0.8, (5, 20, 50)),
    "l4s": Set("l4s_rgb_10m", "l4s_rgb_10m/train", "l4s_rgb_10m/validation", 10.0, (5, 20, 50)),
}

LEVELS: tuple[Level, ...] = ("threshold", "head", "all")


@dataclass(frozen=True)
class Bench:
    """The network, the data and the folder."""

    data: Path
    out: Path
    networks: Networks
    tests: int | None = None
    """Maximum number of test chips, evenly taken from all."""
    level: Level | None = None
    """``all`` where it is tried too."""

    @property
    @cache  # noqa: B019  # one for the whole script
    def base(self) -> BaseLocalizer:
        """The localizer."""
        image = self.images(SETS["hokkaido"].pool)[0]
        with tempfile.TemporaryDirectory() as folder:
            return BaseLocalizer.of(self.plan(Path(folder) / "scene.tif", self.example(image), 3.0), self.level)

    def plan(self, path: Path, example: Example, gsd: float) -> Plan:
        """A chip as a scene."""
        return prepare(write_scene(path, example, gsd), Reading(), self.networks, Parameters())

    def images(self, folder: str) -> list[Path]:
        """Chips of a folder."""
        return sorted((self.data / folder / "images").iterdir())

    def example(self, image: Path) -> Example:
        """A chip with its mask."""
        (found,) = Files((image,), image.parents[1] / "masks")
        return found

    def cells(self, image: Path, gsd: float, number: int) -> Cells:
        """Features and labels of a chip, computed once."""
        path = self.out / ("images" if self.level else "cells") / f"{image.parents[1].name}-{image.stem}.npz"
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            made = self._cells(self.example(image), gsd)
            with saving(path) as part, part.open("wb") as file:
                parts = {name: value for name, value in vars(made).items() if name != "place" and value is not None}
                np.savez(file, **parts)
        with np.load(path) as found:
            return Cells(place=(number, 0, 0), **found)

    def own(self, one: Set, tested: Sequence[Path]) -> np.ndarray:
        """Counts of test chips with the network as it is; kept where all draws have the same."""
        path = self.out / f"{one.name}.npy"
        if one.pool == one.test or not path.is_file():
            found = counts((self.cells(image, one.gsd, 0) for image in tested), self.base)
            if one.pool == one.test:
                return found
            with saving(path) as part, part.open("wb") as file:
                np.save(file, found)
        return np.load(path)

    def polygons(self, one: Set, images: Sequence[Path]) -> float:
        """F1 of the area of polygons of chips with the network as it is; kept for all draws that have the same."""
        names = zlib.crc32("".join(image.stem for image in images).encode())
        path = self.out / f"{one.name}-polygons-{names}.json"
        if not path.is_file():
            with saving(path) as part:
                part.write_text(json.dumps(area_f1(self, images, one.gsd, self.networks)), encoding="utf-8")
        return float(json.loads(path.read_text(encoding="utf-8")))

    def _cells(self, example: Example, gsd: float) -> Cells:
        with tempfile.TemporaryDirectory() as folder:
            plan = prepare(
                write_scene(Path(folder) / "scene.tif", example, gsd), Reading(), self.networks, Parameters()
            )
            bands, valid = plan.reader.read(plan.grid.window, plan.grid)
            truth = onto_larger(example.truth, valid.shape)
            painted = np.where(valid, np.where(truth, LANDSLIDE, GROUND), 0).astype(np.uint8)
            return self.base.cells(plan.stretch.apply(bands, valid), painted, (0, 0, 0))


def onto_larger(values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Sample values at the pixels of a working grid of the same extent."""
    rows, cols = (
        ((np.arange(wanted) + 0.5) * held / wanted).astype(int)
        for held, wanted in zip(values.shape, shape, strict=True)
    )
    return values[rows[:, None], cols]


def drawn(bench: Bench, one: Set, size: int, draw: int) -> tuple[list[Path], list[Path]]:
    """Chips to adapt to, at least one of them with a landslide, and chips to test on."""
    pool, random = bench.images(one.pool), np.random.default_rng([draw, size])
    while True:
        chosen = [pool[k] for k in random.permutation(len(pool))[:size]]
        if any(bench.example(image).truth.any() for image in chosen):
            break
    tested = [image for image in bench.images(one.test) if image not in chosen]
    return chosen, tested[:: max(1, -(-len(tested) // (bench.tests or len(tested))))]


def counts(cells: Iterable[Cells], base: BaseLocalizer) -> np.ndarray:
    """(cuts, gates, 3) of the maps of all cells, with the network as it is."""
    total = np.zeros((len(CUTS), len(GATES) + 1, 3))
    for one in cells:
        total += tally(one.raw, one, np.zeros(one.raw.shape, np.int64), 1, base.point, base.window)[0]
    return total


def scored(cells: Iterable[Cells], base: BaseLocalizer, pick: Choice[Layers]) -> float:
    """F1 of all cells with what was chosen."""
    sums = np.zeros(3)
    for one in cells:
        raw = one.raw if pick.layers is None else pick.layers.map(one)
        logits = window_logits(raw[None], base.window, base.point.sharpness)[0]
        taken = region_peaks(raw, logits, pick.point.cut).reshape(raw.shape) >= pick.point.gate
        slides = one.cover * one.judged
        sums += [slides[taken].sum(), one.judged[taken].sum(), slides.sum()]
    return float(f1(sums))


def measure(bench: Bench, one: Set, size: int, draw: int, polygons: int) -> dict[str, Any]:
    """Figures of one draw."""
    base = bench.base
    chosen, tested = drawn(bench, one, size, draw)
    shown = [bench.cells(image, one.gsd, k) for k, image in enumerate(chosen)]
    fits = base.fits(draw, None)
    blocks = Blocks.of(shown)
    picks: dict[str, Choice[Layers]] = {}
    for name in LEVELS:
        if blocks is not None and name in ("threshold", *fits):
            tried = {name: fits[name]} if name in fits else {}
            picks[name] = choose(shown, blocks, base.point, base.window, tried, level=name)
    others = partial(map, lambda image: bench.cells(image, one.gsd, 0), tested)
    own = bench.own(one, tested)
    found: dict[str, Any] = {"zero-shot": float(f1(own[OWN])), "best": float(f1(own).max())}
    for name in ("threshold", *fits):
        pick = picks.get(name)
        gains = pick is not None and pick.level is not None
        found[name] = scored(others(), base, pick) if pick is not None and gains else found["zero-shot"]
    found["validated"] = {name: score for pick in picks.values() for name, score in pick.scores.items()}
    level = level_of(found["validated"]) if picks else None
    found["landslides"] = sum(int(bench.example(image).ids.max()) for image in chosen)
    found["level"] = "refused" if found["landslides"] < MINIMUM else level or "none"
    found["chosen"] = found[found["level"] if found["level"] in LEVELS else "zero-shot"]
    if polygons:
        shown_to = tested[:: max(1, len(tested) // polygons)][:polygons]
        found["polygons before"] = found["polygons after"] = bench.polygons(one, shown_to)
        with tempfile.TemporaryDirectory() as folder:
            adapted = adapted_to(bench, chosen, one.gsd, Path(folder), draw, "all" if level == "all" else None)
            if adapted is not None:
                found["polygons after"] = area_f1(bench, shown_to, one.gsd, adapted)
    return found


def adapted_to(
    bench: Bench, images: Sequence[Path], gsd: float, folder: Path, seed: int, level: Level | None
) -> Networks | None:
    """Networks that `geolabel.adapt` makes of chips that lie far apart; None where nothing gains."""
    scenes, outlines, frames = [], [], []
    for number, image in enumerate(images):
        example = bench.example(image)
        grid = example_grid(example, gsd)
        away = 1e4 + gsd / (len(images) + 1)  # no two share a grid, which would join them to one scene
        grid = replace(grid, transform=Affine.translation(0, away * number) * grid.transform)
        write_geotiff(folder / f"{number}.tif", example.rgb, grid, description=example.name, overwrite=True)
        scenes.append(folder / f"{number}.tif")
        shapes = rasterio.features.shapes(example.truth.astype(np.uint8), example.truth, transform=grid.transform)
        outlines += [shapely.geometry.shape(outline) for outline, _ in shapes]
        frames.append(grid.outline)
    reviewed = folder / "reviewed.gpkg"
    for layer, geometries in (("landslides", outlines), ("reviewed", frames)):
        gpd.GeoDataFrame(geometry=geometries, crs="EPSG:32648").to_file(reviewed, layer=layer)
    try:
        found = adapt(scenes, reviewed, out=folder / "valley", level=level, networks=bench.networks, seed=seed)
    except VectorError:  # too few landslides
        return None
    return None if found.folder is None else Networks.from_folder(found.folder, device="cpu", precision="fp32")


def area_f1(bench: Bench, images: Sequence[Path], gsd: float, networks: Networks) -> float:
    """F1 of the area of the polygons of chips, each a scene of its own."""
    sums = np.zeros(3)
    with tempfile.TemporaryDirectory() as folder:
        for image in images:
            example = bench.example(image)
            path = write_scene(Path(folder) / "scene.tif", example, gsd)
            found = extract(path, networks=networks)
            ids = onto(polygon_ids(found.geometry, example_grid(example, gsd)), example_grid(example, gsd))
            sums += [((ids > 0) & example.truth).sum(), (ids > 0).sum(), example.truth.sum()]
    return float(f1(sums))


def table(rows: dict[str, list[dict[str, Any]]]) -> str:
    """All figures as Markdown: means over the draws, and the least and the largest gain."""
    polygons = any("polygons after" in one for draws in rows.values() for one in draws)
    tried = [name for name in LEVELS if any(name in one for draws in rows.values() for one in draws)]
    head = ["set, chips", "zero-shot", "chosen", "gain: mean, worst, best", *tried, "levels", "best"]
    head += ["polygons: before, after"] * polygons
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for name, draws in rows.items():
        gains = [one["chosen"] - one["zero-shot"] for one in draws]
        mean = {key: np.mean([one[key] for one in draws]) for key in ("zero-shot", "chosen", *tried, "best")}
        levels = ", ".join(str(sum(one["level"] == level for one in draws)) for level in ("refused", "none", *tried))
        row = [name, f"{mean['zero-shot']:.3f}", f"{mean['chosen']:.3f}"]
        row += [f"{np.mean(gains):+.3f}, {min(gains):+.3f}, {max(gains):+.3f}"]
        row += [*(f"{mean[name]:.3f}" for name in tried), levels, f"{mean['best']:.3f}"]
        if polygons:
            both = [(one["polygons before"], one["polygons after"]) for one in draws if "polygons after" in one]
            row += [", ".join(f"{value:.3f}" for value in np.mean(both, 0)) if both else ""]
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measure what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--sizes", nargs="+", type=int, metavar="N", help="chips that are drawn, instead of the set's")
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--localizer", help="instead of the bundled one")
    parser.add_argument("--tests", type=int, metavar="N", help="test chips at most, evenly taken from all")
    parser.add_argument("--polygons", type=int, default=0, metavar="N")
    parser.add_argument("--all", action="store_true", help="try level all too")
    given = parser.parse_args()
    use_threads(1)
    logging.getLogger("geolabel").setLevel(logging.ERROR)
    networks = Networks(localizer=given.localizer, device="cpu", precision="fp32")
    bench = Bench(given.data, given.out, networks, given.tests, "all" if given.all else None)
    rows: dict[str, list[dict[str, Any]]] = {}
    for key in given.sets:
        one = SETS[key]
        for size in given.sizes or one.sizes:
            for draw in range(given.draws):
                path = given.out / f"{key}-{size}-{draw}.json"
                if not path.is_file():
                    figures = measure(bench, one, size, draw, given.polygons)
                    with saving(path) as part:
                        part.write_text(json.dumps(figures), encoding="utf-8")
                rows.setdefault(f"{one.name}, {size}", []).append(json.loads(path.read_text(encoding="utf-8")))
            print(table(rows), flush=True)


if __name__ == "__main__":
    main()

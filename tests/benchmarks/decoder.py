"""What a segmenter gains from a few corrected outlines, on outlines of other chips.

Usage: python tests/benchmarks/decoder.py DATA --out FOLDER [--sets hokkaido bijie] [--sizes 5 10 20] [--draws 5]

DATA holds hokkaido_planet_3m and bijie. A draw takes some outlines of the truth at random as corrected ones, asked for
as `geolabel.extract` asks: by box and centroid of the region of the activation that is most like them, or by their own.
Outlines of other chips are asked for in the same way: of hokkaido those of chips that show none of the drawn ones; of
bijie, where draws are from every ninth chip of ``train`` with a landslide, those of every second of ``val``; up to 60
chips each. Outlines below 200 px and above 440 px a side are left out. IoU is that of the mask that the network
prefers, in the decoder's cells. What the frozen layers see is kept in FOLDER.

before, fitted
    Mean IoU on outlines of other chips.
validated
    What `geolabel.adapt` says the decoder gains, by cross-validation over the drawn outlines alone.
written
    Draws in which it is written, and the mean gain where a decoder that is not written gains 0.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
from dataclasses import fields
from pathlib import Path
from typing import Any, cast

import numpy as np
import rasterio.features
import shapely
import torch
from segment_anything.modeling import Sam

sys.path.insert(0, str(Path(__file__).parent))
import adapt

from geolabel.adaptation import decoder
from geolabel.adaptation.decoder import Lessons
from geolabel.adaptation.ground import Ground
from geolabel.engine.tasks import Silent
from geolabel.engine.worker import use_threads
from geolabel.extraction.pipeline import find_prompts, localize
from geolabel.extraction.request import Networks
from geolabel.extraction.work import in_scratch
from geolabel.models import registry
from geolabel.models.checkpoint import load_own
from geolabel.models.on_torch import TorchSam
from geolabel.outputs import saving

SMALL, LARGE = 200, 440
"""Pixels of an outline, and of its longer side."""

CHIPS = 60
"""Maximum number of chips of a folder."""

OTHERS = 100
"""Outlines to test on."""


def outlines_of(ids: np.ndarray) -> np.ndarray:
    """Outlines of the landslides of a chip, in its pixels."""
    found = []
    for number in range(1, int(ids.max()) + 1):
        mask = ids == number
        outline = shapely.union_all(
            [shapely.geometry.shape(part) for part, _ in rasterio.features.shapes(mask.astype(np.uint8), mask)]
        )
        left, top, right, bottom = outline.bounds
        if mask.sum() >= SMALL and max(right - left, bottom - top) <= LARGE:
            found.append(outline)
    return np.array([*found, None], object)[:-1]


def lessons_of(bench: adapt.Bench, network: TorchSam, image: Path, gsd: float, number: int) -> Lessons | None:
    """The outlines of a chip, computed once; None where it has none."""
    path = bench.out / "outlines" / f"{image.parents[1].name}-{image.stem}.pt"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            plan = bench.plan(Path(folder) / "scene.tif", bench.example(image), gsd)
            with in_scratch(plan) as work:
                localize(work)
                found = find_prompts(work)
            outlines = outlines_of(adapt.onto_larger(bench.example(image).ids, (plan.grid.height, plan.grid.width)))
            nothing = outlines[:0]
            ground = Ground(outlines, nothing, nothing, nothing, nothing, outlines)
            made = decoder._gather(network, [plan], [ground], [found], Silent())
        with saving(path) as part:
            torch.save(None if made is None else vars(made), part)
    kept = torch.load(path, weights_only=False)
    return None if kept is None else Lessons(**{**kept, "places": kept["places"] * 0 + [number, 0, 0]})


def joined(parts: list[Lessons]) -> Lessons:
    """The outlines of several chips."""
    made = {one.name: [getattr(part, one.name) for part in parts] for one in fields(Lessons)}
    return Lessons(
        torch.cat(made["cells"]), torch.cat(made["tokens"]), torch.cat(made["covers"]), np.concatenate(made["places"])
    )


def measure(sam: Sam, pool: Lessons, tested: Lessons | None, size: int, draw: int) -> dict[str, Any]:
    """Figures of one draw."""
    random = np.random.default_rng([size, draw])
    drawn = pool.only(random.permutation(len(pool))[:size])
    if tested is None:
        tested = pool.only(~np.isin(pool.places[:, 0], drawn.places[:, 0]))
        if not len(tested):
            raise SystemExit(f"{size} outlines are of all chips: draw fewer")
    tested = tested.only(random.permutation(len(tested))[:OTHERS])
    folds = decoder.folds_of(drawn.places)
    first, before = sam.mask_decoder, decoder.ious(sam.mask_decoder, drawn)
    after = before.copy()
    for fold in np.unique(folds) if folds is not None else []:
        held = folds == fold
        after[held] = decoder.ious(decoder.fitted(first, drawn.only(~held), draw), drawn.only(held))
    fitted = decoder.ious(decoder.fitted(first, drawn, draw), tested).mean()
    return {
        "before": float(decoder.ious(first, tested).mean()),
        "fitted": float(fitted),
        "validated": float((after - before).mean()),
        "written": bool(folds is not None and decoder.gains(before, after)),
    }


def table(rows: dict[str, list[dict[str, Any]]]) -> str:
    """All figures as Markdown."""
    head = ["set, outlines", "before", "fitted", "gain: mean, worst, best", "validated", "written, gain"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for name, draws in rows.items():
        mean = {key: np.mean([one[key] for one in draws]) for key in ("before", "fitted", "validated")}
        rise = np.array([one["fitted"] - one["before"] for one in draws])
        written = np.array([one["written"] for one in draws])
        row = [name, f"{mean['before']:.3f}", f"{mean['fitted']:.3f}"]
        row += [f"{rise.mean():+.3f}, {rise.min():+.3f}, {rise.max():+.3f}", f"{mean['validated']:+.3f}"]
        row += [f"{written.sum()} of {len(draws)}, {(rise * written).mean():+.3f}"]
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measure what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", choices=["hokkaido", "bijie"], default=["hokkaido", "bijie"])
    parser.add_argument("--sizes", nargs="+", type=int, default=[5, 10, 20])
    parser.add_argument("--draws", type=int, default=5)
    given = parser.parse_args()
    use_threads(1)
    logging.getLogger("geolabel").setLevel(logging.ERROR)
    bench = adapt.Bench(given.data, given.out, Networks(device="cpu", precision="fp32"))
    sam = cast("Sam", load_own(registry.lookup("bundled", "segmenter")[0].path, "segmenter")[0])
    network = TorchSam(sam, resize=False, batch=1)
    rows: dict[str, list[dict[str, Any]]] = {}
    for key in given.sets:
        one = adapt.SETS[key]
        pools = []
        for folder, step in ((one.pool, 9 if key == "bijie" else 1), (one.test, 2)):
            images = [image for image in bench.images(folder) if bench.example(image).truth.any()][::step][:CHIPS]
            parts = [lessons_of(bench, network, image, one.gsd, number) for number, image in enumerate(images)]
            pools.append(joined([part for part in parts if part is not None]))
            if one.pool == one.test:
                break
        for size in given.sizes:
            for draw in range(given.draws):
                path = given.out / f"{key}-{size}-{draw}.json"
                if not path.is_file():
                    figures = measure(sam, pools[0], pools[1] if len(pools) > 1 else None, size, draw)
                    with saving(path) as part:
                        part.write_text(json.dumps(figures), encoding="utf-8")
                rows.setdefault(f"{one.name}, {size}", []).append(json.loads(path.read_text(encoding="utf-8")))
            print(table(rows), flush=True)


if __name__ == "__main__":
    main()

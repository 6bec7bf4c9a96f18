"""F1 of the activation cut at levels that a rule takes from the histogram of each scene, against the fixed level.

    python tests/benchmarks/operating_point.py --data data/ --keep maps/

Every scene is localized once; its map, probabilities and truth are kept in the folder and found there again. A level is
a shift of the logit, by which threshold and gate move together: 0 is the level that ships.
"""

import argparse
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike
from scipy import ndimage
from scipy.special import expit, logit

from geolabel.evaluation.bench import Bench
from geolabel.evaluation.examples import CHIP_GSD, HOKKAIDO_GSD, L4S_GSD, OUTLINED_GSD, Data, Example
from geolabel.evaluation.scenes import lay_mosaic, write_scene
from geolabel.extraction.activation_maps import blend_activation, class_probability, validity
from geolabel.extraction.pipeline import localize
from geolabel.extraction.request import Networks, Reading
from geolabel.extraction.scene_groups import prepare
from geolabel.extraction.work import in_scratch
from geolabel.models.loading import load

SHIFTS = np.round(np.arange(-1.2, 1.21, 0.1), 1)
GREYS = np.arange(256)
THRESHOLD = 120


def look(bench: Bench, path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Blended activation and gate, 0..255, and validity of a scene, on the working grid."""
    plan = prepare(path, Reading(), bench.networks, bench.parameters)
    with in_scratch(plan) as work:
        localize(work)
        run, whole = work.run, plan.grid.window
        valid = validity(run, whole)
        valid = np.ones((whole.height, whole.width), bool) if valid is None else valid
        activation = np.zeros((whole.height, whole.width), np.uint8)
        gate = activation.copy()
        for block in plan.blocks:
            activation[block.slices] = blend_activation(run, block, 0, lambda patch, _: patch)
            gate[block.slices] = class_probability(run, block, 0, np.ones((block.height, block.width), bool))
    return activation, gate, valid


def scenes(bench: Bench, folder: Path) -> Iterator[tuple[str, str, Callable[[], tuple[Path, np.ndarray]]]]:
    """Set and name of every scene, and what writes it and gives its truth."""

    def whole(one: Example, gsd: float) -> tuple[Path, np.ndarray]:
        return write_scene(folder / "scene.tif", one, gsd), one.ids

    def mosaic(items: Sequence[Example], gsd: float) -> tuple[Path, np.ndarray]:
        return folder / "mosaic.tif", lay_mosaic(items, folder / "mosaic.tif", gsd).ids

    yield "bijie", "mosaic", partial(mosaic, bench.bijie, CHIP_GSD)
    for name, items, gsd in (
        ("sichuan", bench.sichuan, OUTLINED_GSD),
        ("hokkaido", bench.hokkaido, HOKKAIDO_GSD),
        ("l4s", bench.l4s, L4S_GSD),
    ):
        for one in items:
            yield name, one.name, partial(whole, one, gsd)
    yield "hokkaido_mosaic", "mosaic", partial(mosaic, bench.hokkaido, HOKKAIDO_GSD)
    yield "l4s_mosaic", "mosaic", partial(mosaic, bench.l4s, L4S_GSD)


def counts(maps: Mapping[str, np.ndarray], scale: float) -> np.ndarray:
    """(25, 3) pixels found and true, found only, missed, at each shift."""
    activation, gate, valid, ids = (maps[name] for name in ("act", "prob", "ok", "ids"))
    rows, cols = (((np.arange(n) + 0.5) * m / n).astype(int) for n, m in zip(ids.shape, activation.shape, strict=True))
    known, true = valid[rows[:, None], cols] & (ids >= 0), ids > 0
    found = []
    for shift in SHIFTS:
        mask = (activation > max(THRESHOLD - shift * 255 / scale, 0)) & valid
        labels, count = ndimage.label(mask, np.ones((3, 3)))
        if count:
            peaks = np.asarray(ndimage.maximum(gate, labels, np.arange(1, count + 1)))
            mask = np.concatenate([[False], peaks / 255 >= expit(-shift)])[labels]
        mask = mask[rows[:, None], cols] & known
        hits = int((mask & true).sum())
        found.append((hits, int(mask.sum()) - hits, int((true & known).sum()) - hits))
    return np.array(found)


def otsu(histogram: np.ndarray) -> float:
    """Level with the largest variance between classes."""
    weight, moment = np.cumsum(histogram), np.cumsum(histogram * GREYS)
    with np.errstate(all="ignore"):
        between = (moment * weight[-1] / weight[-1] - moment[-1] * weight / weight[-1]) ** 2
        between = between / (weight * (weight[-1] - weight))
    return float(np.argmax(np.nan_to_num(between)))


def valley(histogram: np.ndarray) -> float:
    """Lowest place of the smoothed histogram from 40 to 220."""
    smooth = ndimage.gaussian_filter1d(histogram.astype(float), 6, mode="nearest")
    return 40 + float(np.argmin(smooth[40:220]))


def prior_by_em(histogram: np.ndarray, prior: float, heat: float, scale: float) -> float:
    """Share of landslide pixels after Saerens et al. (2002), from the posteriors that a known prior gave."""
    posterior = expit(heat * (GREYS - THRESHOLD) * scale / 255)
    share = prior
    for _ in range(200):
        one, other = share / prior * posterior, (1 - share) / (1 - prior) * (1 - posterior)
        new = float((one / (one + other) * histogram).sum() / histogram.sum())
        if abs(new - share) < 1e-6:
            break
        share = float(np.clip(new, 1e-4, 1 - 1e-4))
    return share


def rules(scale: float) -> dict[str, Callable[[np.ndarray], float]]:
    """Shift of each rule, from the histogram of the activation; positive takes more."""

    def at(level: float) -> float:
        return (THRESHOLD - level) * scale / 255

    found: dict[str, Callable[[np.ndarray], float]] = {
        "fixed": lambda _: 0.0,
        "valley": lambda h: at(valley(h)),
        "Otsu": lambda h: at(otsu(h)),
        "Otsu, 80 to 160": lambda h: at(float(np.clip(otsu(h), 80, 160))),
        "Otsu of what exceeds 10": lambda h: at(otsu(np.where(GREYS > 10, h, 0))),
    }
    for prior in (0.02, 0.05, 0.1, 0.2):
        for heat in (1, 2, 4):
            for damp in (0.5, 1):
                found[f"EM, prior {prior}, heat {heat}, damping {damp}"] = lambda h, p=prior, t=heat, d=damp: (
                    d * float(logit(prior_by_em(h, p, t, scale)) - logit(p)) / t
                )
    return found


def f1(rows: ArrayLike) -> float:
    """F1 of pixels of scenes together."""
    hits, wrong, missed = np.asarray(rows).reshape(-1, 3).sum(axis=0)
    return float(2 * hits / max(1, 2 * hits + wrong + missed))


def measured(bench: Bench, kept: Path, scale: float) -> dict[str, list[tuple[np.ndarray, np.ndarray]]]:
    """Histogram of the activation, and counts at each shift, of every scene of every set."""
    found: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, scene, make in scenes(bench, Path(folder)):
            path = kept / f"{name}--{scene}.npz"
            if not path.exists():
                picture, ids = make()
                activation, gate, valid = look(bench, picture)
                np.savez_compressed(path, act=activation, prob=gate, ok=valid, ids=ids)
            with np.load(path) as maps:
                histogram = np.bincount(maps["act"][maps["ok"]], minlength=256)
                found.setdefault(name, []).append((histogram, counts(maps, scale)))
    return found


def main() -> None:
    """Print F1 of every rule on every set."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--keep", type=Path, required=True)
    given = parser.parse_args()
    given.keep.mkdir(parents=True, exist_ok=True)
    networks = Networks(device="cpu")
    scale = load(networks.recipes()[0])._info.constant
    found = measured(Bench(Data.inside(given.data), networks, "report"), given.keep, scale)
    print(f"{'':36s}", *(f"{name:>16s}" for name in found), "   mean of gains", "   smallest gain")
    fixed = np.array([f1([rows[len(SHIFTS) // 2] for _, rows in some]) for some in found.values()])
    shown = {
        "best of each set, truth known": [
            max(f1(np.sum([r for _, r in some], axis=0)[k]) for k in range(len(SHIFTS))) for some in found.values()
        ],
        "best of each scene, truth known": [
            f1([r[max(range(len(SHIFTS)), key=lambda k: f1(r[k]))] for _, r in some]) for some in found.values()
        ],
    }
    for label, rule in rules(scale).items():
        shown[label] = [f1([r[np.argmin(abs(SHIFTS - rule(h)))] for h, r in some]) for some in found.values()]
    for label, values in shown.items():
        gains = (np.array(values) - fixed)[:4]  # mosaics show the same images again
        print(
            f"{label:36s}", *(f"{value:16.3f}" for value in values), f"{gains.mean():+16.3f}", f"{gains.min():+16.3f}"
        )


if __name__ == "__main__":
    main()

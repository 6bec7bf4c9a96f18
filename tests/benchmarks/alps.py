"""Clusters of ALPS against k-means on mean colour with the same number, on images with masks.

Usage: python tests/benchmarks/alps.py TRAIN VAL --regions FOLDER [--clusters 8 16 32] [--points 8] [--sam vit_b]
       [--max-share 0.3 0.7 1] [--named 0.2]

TRAIN and VAL are folders with images/ and masks/; an image without a mask shows no landslide. Clusters are made of all
images of TRAIN, named on a part of them, and scored on VAL. Figures are means over three seeds of k-means, and F1 over
twenty draws of the named part besides.

AMI
    Adjusted mutual information of the clusters with landslide / other, over a sample of all pixels of VAL; what no
    object covers is a cluster of its own.
F1
    Of landslide pixels of VAL, all of them: the union of clusters with the highest F1 score on the named part of TRAIN.
chosen
    The same where TRAIN is cut in halves, one to name by and one to score: what choices are made by.

Beside ALPS stand k-means on the mean colour of the same objects, and on the colours of pixels, which covers all.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Self

import numpy as np
from sklearn.cluster import MiniBatchKMeans
from sklearn.metrics import adjusted_mutual_info_score

from geolabel.cli.terminal import Lines
from geolabel.clusters import Clusters, unnamed
from geolabel.datasets.chips import mask_path, read_image
from geolabel.datasets.examples import ImageFolder
from geolabel.engine import worker
from geolabel.extraction.request import Networks
from geolabel.labeling.cluster_names import Tally
from geolabel.labeling.regions import RegionFolder, Regions
from geolabel.methods.alps import Settings, source_of
from geolabel.mosaic import NO_MASK
from geolabel.training.clusters import fit_clusters

PIXELS = 400
"""Pixels of an image that the mutual information, and k-means on pixels, are taken of."""

SEEDS, DRAWS = 3, 20
"""Of k-means, and of the part of TRAIN that is named."""

Labeller = Callable[[np.ndarray, Regions], np.ndarray]
"""Clusters (H, W) of an image and its regions; K where there is none."""


@dataclass(frozen=True)
class Held:
    """Images with their regions and masks, in memory."""

    images: list[np.ndarray]
    regions: list[Regions]
    truths: list[np.ndarray]

    @classmethod
    def of(cls, folder: RegionFolder) -> Self:
        """Read everything."""
        at = range(len(folder.images))
        return cls(
            *([read(index) for index in at] for read in (folder.images.read, folder.read, partial(truth_of, folder)))
        )

    def shuffled(self, seed: int, number: int) -> list[int]:
        """Order of images in one pass of k-means, as `RegionFolder.features` has it."""
        return np.random.default_rng([seed, number]).permutation(len(self.images)).tolist()


def truth_of(folder: RegionFolder, index: int) -> np.ndarray:
    """Where an image shows a landslide."""
    path = mask_path(folder.images.paths[index])
    if not path.is_file():
        return np.zeros(folder.images.read(index).shape[:2], bool)
    values = read_image(path)
    return (values if values.ndim == 2 else values.max(axis=2)) > 0


def colours(image: np.ndarray, regions: Regions) -> np.ndarray:
    """(M, 3) mean colour of what each mask owns, 0 where it owns nothing."""
    owner = regions.owner.ravel()
    pixels = image.reshape(-1, 3)[owner != NO_MASK].astype(float)
    owner = owner[owner != NO_MASK]
    count = np.bincount(owner, minlength=len(regions.areas))
    sums = np.stack([np.bincount(owner, pixels[:, band], len(count)) for band in range(3)], axis=1)
    return (sums / np.maximum(count, 1)[:, None]).astype(np.float32)


def painted(values: np.ndarray, regions: Regions, share: float, count: int) -> np.ndarray:
    """(H, W) the cluster of the object that owns a pixel."""
    table = np.append(np.where(regions.objects(share), values, count), count)
    return table[regions.owner]


def alps(train: Held, count: int, share: float, seed: int, *, normalised: bool = False) -> Labeller:
    """Clusters of features."""

    def stream(number: int) -> Iterator[np.ndarray]:
        some = (train.regions[index] for index in train.shuffled(seed, number))
        yield from (regions.features[regions.objects(share)] for regions in some)

    clusters, _ = fit_clusters(stream, count, seed=seed, normalised=normalised)
    return lambda _, regions: painted(clusters.assign(regions.features), regions, share, count)


def mean_colour(train: Held, count: int, share: float, seed: int) -> Labeller:
    """Clusters of the mean colours of the same objects."""

    def stream(number: int) -> Iterator[np.ndarray]:
        for index in train.shuffled(seed, number):
            regions = train.regions[index]
            owning = np.isin(np.arange(len(regions.areas)), regions.owner)
            yield colours(train.images[index], regions)[regions.objects(share) & owning]

    clusters, _ = fit_clusters(stream, count, seed=seed)
    return lambda image, regions: painted(clusters.assign(colours(image, regions)), regions, share, count)


def pixel_colour(train: Held, count: int, seed: int) -> Labeller:
    """Clusters of the colours of pixels."""
    random = np.random.default_rng(seed)
    sampled = [random.permutation(image.reshape(-1, 3))[:PIXELS] for image in train.images]
    fitted = MiniBatchKMeans(count, random_state=seed, n_init=3).fit(np.concatenate(sampled).astype(np.float32))
    names = tuple(map(unnamed, range(count)))
    clusters = Clusters(fitted.cluster_centers_.astype(np.float32), np.zeros(count, np.int64), names)
    return lambda image, _: clusters.assign(image.reshape(-1, 3).astype(np.float32)).reshape(image.shape[:2])


def measure(train: Held, val: Held, make: Callable[[int], Labeller], count: int, named: float) -> str:
    """One row of the table."""
    rows = []
    for seed in range(SEEDS):
        labeller = make(seed)
        known, _ = counted(train, labeller, count)
        there, ami = counted(val, labeller, count)
        for draw in range(DRAWS):
            random = np.random.default_rng(draw)
            half = random.random(len(known)) < 0.5
            chosen = scored(known[half], known[~half])
            rows.append((ami, *scored(known[random.random(len(known)) < named], there), chosen[0]))
    return "| " + " | ".join(f"{value:.3f}" for value in np.mean(rows, axis=0)) + " |"


def scored(known: np.ndarray, there: np.ndarray) -> tuple[float, float, float]:
    """F1, precision and recall, on images `there`, of the clusters that are best on those `known`."""
    best = tally(known).best()
    scores = tally(there).confusion(best)
    return (scores.f1, scores.precision, scores.recall) if best else (0.0, 0.0, 0.0)


def tally(tables: np.ndarray) -> Tally:
    """Sum of the tables (N, 2, K + 1) of images."""
    inside, outside = tables.sum(axis=0)
    return Tally(inside[:-1], outside[:-1], int(inside[-1]), len(tables))


def counted(held: Held, labeller: Labeller, count: int) -> tuple[np.ndarray, float]:
    """(N, 2, K + 1) pixels of clusters inside and outside of landslides, by image, and the mutual information."""
    random = np.random.default_rng(1)
    tables = np.zeros((len(held.images), 2, count + 1), np.int64)
    found, truths = [], []
    for table, image, regions, mask in zip(tables, held.images, held.regions, held.truths, strict=True):
        clusters, truth = labeller(image, regions).ravel(), mask.ravel()
        for row, where in enumerate((truth, ~truth)):
            table[row] = np.bincount(clusters[where], minlength=count + 1)
        at = random.integers(len(truth), size=PIXELS)
        found += clusters[at].tolist()
        truths += truth[at].tolist()
    return tables, adjusted_mutual_info_score(truths, found)


def covered(held: Held, share: float) -> tuple[float, float]:
    """Share of all pixels, and of those of landslides, that objects cover."""
    inside = np.zeros(2)
    pixels = np.zeros(2)
    for regions, truth in zip(held.regions, held.truths, strict=True):
        objects = np.append(regions.objects(share), False)[regions.owner]
        inside += objects.sum(), objects[truth].sum()
        pixels += truth.size, truth.sum()
    return tuple(inside / np.maximum(pixels, 1))


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", type=Path)
    parser.add_argument("val", type=Path)
    parser.add_argument("--regions", type=Path, required=True)
    parser.add_argument("--clusters", type=int, nargs="+", default=[8, 16, 32])
    parser.add_argument("--points", type=int, default=8)
    parser.add_argument("--predicted-iou", type=float)
    parser.add_argument("--stability", type=float)
    parser.add_argument("--max-share", type=float, nargs="+", default=[0.3, 0.7, 1.0])
    parser.add_argument("--named", type=float, default=0.2)
    parser.add_argument("--sam", default="bundled")
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    settings = Settings(points_per_side=given.points, predicted_iou=given.predicted_iou, stability=given.stability)
    source, recipe = source_of(settings, Networks(sam=given.sam, device=given.device))
    folders = []
    for name in ("train", "val"):
        folders.append(RegionFolder(given.regions / name, ImageFolder(getattr(given, name))))
        folders[-1].find(worker.segmenter(recipe), source, Lines())
    train, val = map(Held.of, folders)
    print(f"{len(train.images)} and {len(val.images)} images\n")
    for share in given.max_share:
        print("gate {}: objects cover {:.3f} of VAL, and {:.3f} of its landslides".format(share, *covered(val, share)))
    print("\n| K | clusters of | gate | AMI | F1 | precision | recall | chosen |\n|---|---|---|---|---|---|---|---|")
    for count in given.clusters:
        rows = {"colour of pixels | ": partial(pixel_colour, train, count)}
        for share in given.max_share:
            rows |= {
                f"mean colour of objects | {share}": partial(mean_colour, train, count, share),
                f"features (ALPS) | {share}": partial(alps, train, count, share),
                f"directions of features | {share}": partial(alps, train, count, share, normalised=True),
            }
        for name, make in rows.items():
            print(f"| {count} | {name} {measure(train, val, make, count, given.named)}", flush=True)


if __name__ == "__main__":
    main()

"""Clusters of ALPS against k-means on mean colour with the same number, on images with masks.

Usage: python tests/benchmarks/alps.py TRAIN VAL --regions FOLDER [--clusters 8 16 32] [--points 8] [--sam vit_b]
       [--max-share 0.3] [--named 0.2]

TRAIN and VAL are folders with images/ and masks/; an image without a mask shows no landslide. Clusters are made of all
images of TRAIN, named on a part of them, and scored on VAL.

AMI
    Adjusted mutual information of the clusters with landslide / other, over a sample of all pixels of VAL; what no
    object covers is a cluster of its own.
F1
    Of landslide pixels of VAL, all of them: the union of clusters with the highest F1 score on the named part of TRAIN.

Beside ALPS stand k-means on the mean colour of the same objects, and on the colours of pixels, which covers all.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from sklearn.cluster import MiniBatchKMeans
from sklearn.metrics import adjusted_mutual_info_score

from geolabel.cli.terminal import Lines
from geolabel.clusters import Clusters, unnamed
from geolabel.datasets.chips import mask_path, read_image
from geolabel.datasets.images import ImageFolder
from geolabel.methods.alps import Settings, source_of
from geolabel.mosaic import NO_MASK
from geolabel.run import worker
from geolabel.run.naming import Tally
from geolabel.run.regions import RegionFolder, Regions
from geolabel.run.request import Networks
from geolabel.trainers.clusters import fit_clusters

PIXELS = 400
"""Pixels of an image that the mutual information, and k-means on pixels, are taken of."""

Labeller = Callable[[np.ndarray, Regions], np.ndarray]
"""Clusters (H, W) of an image and its regions; K where there is none."""


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


def alps(train: RegionFolder, count: int, share: float, normalised: bool) -> Labeller:
    """Clusters of features."""
    clusters, _ = fit_clusters(lambda number: train.features(number, share), count, normalised=normalised)
    return lambda _, regions: painted(clusters.assign(regions.features), regions, share, count)


def mean_colour(train: RegionFolder, count: int, share: float) -> Labeller:
    """Clusters of the mean colours of the same objects."""

    def stream(number: int) -> Iterator[np.ndarray]:
        for index in np.random.default_rng([0, number]).permutation(len(train.images)).tolist():
            regions = train.read(index)
            owning = np.isin(np.arange(len(regions.areas)), regions.owner)
            yield colours(train.images.read(index), regions)[regions.objects(share) & owning]

    clusters, _ = fit_clusters(stream, count)
    return lambda image, regions: painted(clusters.assign(colours(image, regions)), regions, share, count)


def pixel_colour(train: RegionFolder, count: int) -> Labeller:
    """Clusters of the colours of pixels."""
    random = np.random.default_rng(0)
    drawn = [random.permutation(train.images.read(k).reshape(-1, 3))[:PIXELS] for k in range(len(train.images))]
    fitted = MiniBatchKMeans(count, random_state=0, n_init=3).fit(np.concatenate(drawn).astype(np.float32))
    names = tuple(map(unnamed, range(count)))
    clusters = Clusters(fitted.cluster_centers_.astype(np.float32), np.zeros(count, np.int64), names)
    return lambda image, _: clusters.assign(image.reshape(-1, 3).astype(np.float32)).reshape(image.shape[:2])


def measure(train: RegionFolder, val: RegionFolder, labeller: Labeller, count: int, named: float) -> str:
    """One row of the table."""
    random = np.random.default_rng(0)
    part = np.flatnonzero(random.random(len(train.images)) < named).tolist()
    best = counted(train, part, labeller, count)[0].best()
    scored, found, truth = counted(val, list(range(len(val.images))), labeller, count)
    ami = adjusted_mutual_info_score(truth, found)
    if not best:
        return f"| {ami:.4f} | - | - | - | 0 |"
    scores = scored.confusion(best)
    return f"| {ami:.4f} | {scores.f1:.3f} | {scores.precision:.3f} | {scores.recall:.3f} | {len(best)} |"


def counted(folder: RegionFolder, images: list[int], labeller: Labeller, count: int) -> tuple[Tally, list, list]:
    """Pixels of clusters inside and outside of landslides, and a sample of both."""
    random = np.random.default_rng(1)
    table = np.zeros((2, count + 1), np.int64)
    found, truths = [], []
    for index in images:
        clusters = labeller(folder.images.read(index), folder.read(index)).ravel()
        truth = truth_of(folder, index).ravel()
        for row, where in enumerate((truth, ~truth)):
            table[row] += np.bincount(clusters[where], minlength=count + 1)
        at = random.integers(len(truth), size=PIXELS)
        found += clusters[at].tolist()
        truths += truth[at].tolist()
    return Tally(table[0, :count], table[1, :count], int(table[0, count]), len(images)), found, truths


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
    parser.add_argument("--max-share", type=float, default=0.3)
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
    train, val = folders
    covered = np.mean([(val.read(k).label(np.zeros(len(val.read(k).areas), np.int32), ("a",), given.max_share)
                        ).labelled.mean() for k in range(len(val.images))])  # fmt: skip
    print(f"{len(train.images)} and {len(val.images)} images; objects cover {covered:.2f} of an image of VAL\n")
    print("| K | clusters of | AMI | F1 | precision | recall | named |\n|---|---|---|---|---|---|---|")
    for count in given.clusters:
        rows = {
            "features (ALPS)": alps(train, count, given.max_share, normalised=False),
            "directions of features": alps(train, count, given.max_share, normalised=True),
            "mean colour of objects": mean_colour(train, count, given.max_share),
            "colour of pixels": pixel_colour(train, count),
        }
        for name, labeller in rows.items():
            print(f"| {count} | {name} {measure(train, val, labeller, count, given.named)}", flush=True)


if __name__ == "__main__":
    main()

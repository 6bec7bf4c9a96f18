"""Online k-means over a stream of mask features, and estimation of the number of clusters.

Sources: ALPS, section "Mask Class Association" (online k-means; the number of clusters from the data if unknown);
Sculley (2010), "Web-scale k-means clustering", as scikit-learn's ``MiniBatchKMeans``; Blei and Jordan (2006),
"Variational inference for Dirichlet process mixtures", as its ``BayesianGaussianMixture``; Vitter (1985), "Random
sampling with a reservoir".
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from geolabel.clusters import Clusters, check_count, prepared, unnamed
from geolabel.errors import OptionError, require
from geolabel.types import Float32Array, Int64Array

log = logging.getLogger(__name__)

BATCH = 512
"""Masks per step of k-means, as in the released code of ALPS."""

SAMPLE = 4000
"""Masks from which the number of clusters is estimated."""

COMPONENTS, DIMENSIONS = 64, 16
"""Maximum number of clusters, and of principal components for the estimate."""

_MIN_SHARE = 0.005
"""Minimum share of the sample in a component of the mixture for it to count."""

_MIN_MEMBERS = 20
"""Minimum masks per component of the mixture, which otherwise fits single masks."""

_LOWER = "give more images, or accept more masks with a lower --predicted-iou and --stability"


def require_clustering() -> None:
    """Check that clusters can be fitted here; raises a GeolabelError that names what is missing."""
    require("train", "sklearn", purpose="clustering")


def fit_clusters(
    stream: Callable[[int], Iterable[Float32Array]],
    clusters: int,
    *,
    passes: int = 3,
    seed: int = 0,
    normalised: bool = False,
) -> tuple[Clusters, float]:
    """Cluster features that need not fit into memory.

    Parameters
    ----------
    stream
        Features (M, D) of one image after another, M from 0; the argument is the number of the pass, so that the order
        may differ between passes.
    clusters
        Number of clusters.
    passes
        Number of training passes; one more pass counts the masks.
    seed
        Seed for scikit-learn.
    normalised
        See `Clusters`.

    Returns
    -------
    clusters : the largest first, with the number of masks in each
    inertia : mean squared distance of a mask to its centre

    Raises
    ------
    OptionError
        If there are fewer masks than clusters, more clusters than a label map can hold, or no passes.
    GeolabelError
        If scikit-learn is not installed.
    """
    check_count(clusters)
    if passes < 1:
        raise OptionError(f"{passes} passes: give at least one")
    require_clustering()
    from sklearn.cluster import MiniBatchKMeans

    kmeans = MiniBatchKMeans(clusters, random_state=seed, batch_size=BATCH, n_init=1)
    seen = 0
    for number in range(passes):
        for batch in _batches(stream(number), max(BATCH, clusters)):
            if not seen and len(batch) < clusters:  # the first batch needs at least one mask per cluster
                raise OptionError(f"{clusters} clusters of {len(batch)} masks: ask for fewer, or {_LOWER}")
            seen += len(batch)
            kmeans.partial_fit(prepared(batch, normalised))
    if not seen:
        raise OptionError(f"{clusters} clusters of 0 masks in all images: {_LOWER}")
    names = tuple(unnamed(k) for k in range(clusters))
    centres = np.asarray(kmeans.cluster_centers_, np.float32)
    found = Clusters(centres, np.zeros(clusters, np.int64), names, normalised)
    sizes, inertia = _count(found, stream(passes))
    largest = np.argsort(-sizes, kind="stable")
    return Clusters(centres[largest], sizes[largest], names, normalised), inertia


def _batches(parts: Iterable[Float32Array], size: int) -> Iterator[Float32Array]:
    held: list[Float32Array] = []
    for part in parts:
        if len(part):
            held.append(part)
        if sum(map(len, held)) >= size:
            yield np.concatenate(held)
            held = []
    if held:
        yield np.concatenate(held)


def _count(clusters: Clusters, parts: Iterable[Float32Array]) -> tuple[Int64Array, float]:
    sizes, squares = np.zeros(len(clusters), np.int64), 0.0
    for part in parts:
        distances = clusters.distances(part)
        sizes += np.bincount(distances.argmin(axis=1), minlength=len(clusters))
        squares += float(distances.min(axis=1).sum(dtype=np.float64))
    return sizes, squares / max(1, int(sizes.sum()))


def predict_count(parts: Iterable[Float32Array], *, seed: int = 0, normalised: bool = False) -> int:
    """Estimate the number of clusters: components of a Dirichlet process mixture with enough features.

    Uses a uniform sample of up to `SAMPLE` masks.

    Raises
    ------
    OptionError
        If there are fewer than two masks.
    GeolabelError
        If scikit-learn is not installed.
    """
    require_clustering()
    from sklearn.decomposition import PCA
    from sklearn.mixture import BayesianGaussianMixture

    sample = prepared(_reservoir(parts, SAMPLE, seed), normalised)
    if len(sample) < 2:
        raise OptionError(f"too few masks to cluster ({len(sample)} in all images): {_LOWER}")
    dimensions = min(DIMENSIONS, *sample.shape)
    components = min(COMPONENTS, max(1, len(sample) // _MIN_MEMBERS))
    reduced = PCA(dimensions, random_state=seed).fit_transform(sample.astype(np.float64))
    reduced /= max(float(reduced.std()), 1e-12)
    model = BayesianGaussianMixture(
        n_components=components,
        covariance_type="diag",
        weight_concentration_prior_type="dirichlet_process",
        weight_concentration_prior=1e-2,
        reg_covar=1e-3,
        max_iter=200,
        random_state=seed,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the number of components is usable before convergence
        members = np.bincount(model.fit_predict(reduced))
    count = int((members >= max(1, _MIN_SHARE * len(sample))).sum())
    if count == components:
        log.warning(
            "%d clusters, the maximum for %d masks: there may be more; give their number with --clusters",
            count,
            len(sample),
        )
    return count


def _reservoir(parts: Iterable[Float32Array], size: int, seed: int) -> Float32Array:
    # Algorithm R: a uniform sample of a stream of unknown length.
    random = np.random.default_rng(seed)
    kept: list[Float32Array] = []
    seen = 0
    for part in parts:
        for row in part:
            seen += 1
            if len(kept) < size:
                kept.append(row)
            elif (place := int(random.integers(seen))) < size:
                kept[place] = row
    return np.stack(kept) if kept else np.zeros((0, 1), np.float32)

"""Clusters of mask features, and their names.

Source: ALPS (Zhang et al.), section "Mask Class Association". A cluster becomes a class when it is named.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any, Self

import numpy as np

from geolabel.errors import OptionError
from geolabel.labels import BACKGROUND
from geolabel.masks import Filters
from geolabel.parsing import parse_name
from geolabel.types import Float32Array, Int32Array, Int64Array

MOST = 255
"""Maximum number of clusters in a label map; 255 marks pixels without a mask."""


def check_count(clusters: int) -> None:
    """Refuse a number of clusters that a label map cannot hold.

    Raises
    ------
    OptionError
        If it is not 1 to `MOST`.
    """
    if not 1 <= clusters <= MOST:
        raise OptionError(f"{clusters} clusters: a label map holds 1 to {MOST}")


@dataclass(frozen=True)
class Clusters:
    """K centres in the feature space.

    Raises
    ------
    OptionError
        If there are more than a label map can hold, or the numbers of centres, names and sizes differ.
    """

    centres: Float32Array
    """(K, D)"""
    sizes: Int64Array
    """(K,) number of training masks nearest to each centre."""
    names: tuple[str, ...]
    """(K,) ``cluster_k`` until it is named; several may share a name."""
    normalised: bool = False
    """Whether features are normalised to unit length, so that directions are compared."""

    def __post_init__(self) -> None:
        check_count(len(self.centres))
        if not len(self.centres) == len(self.sizes) == len(self.names):
            raise OptionError(f"{len(self.centres)} centres, {len(self.sizes)} sizes and {len(self.names)} names")

    def __len__(self) -> int:
        return len(self.centres)

    def distances(self, features: Float32Array) -> Float32Array:
        """(M, K) squared distances of features (M, D) to the centres."""
        x = prepared(features, self.normalised).astype(np.float64)
        centres = self.centres.astype(np.float64)
        squares = (x**2).sum(axis=1)[:, None] - 2 * x @ centres.T + (centres**2).sum(axis=1)
        distances: Float32Array = np.maximum(squares, 0).astype(np.float32)
        return distances

    def assign(self, features: Float32Array) -> Int32Array:
        """(M,) nearest cluster of features (M, D); ties to the lower number."""
        nearest: Int32Array = self.distances(features).argmin(axis=1).astype(np.int32)
        return nearest

    def named(self, names: dict[int, str]) -> Self:
        """The same clusters with some renamed.

        Raises
        ------
        OptionError
            If there is no such cluster, or a name is empty.
        """
        wrong = sorted(set(names) - set(range(len(self))))
        if wrong:
            raise OptionError(f"there is no cluster {wrong[0]}: they are numbered 0 to {len(self) - 1}")
        if any(not name.strip() for name in names.values()):
            raise OptionError("a cluster name must not be empty")
        return replace(self, names=tuple(names.get(k, name) for k, name in enumerate(self.names)))

    def of_class(self, name: str) -> Int64Array:
        """(N,) numbers of the clusters with a name.

        Raises
        ------
        OptionError
            If no cluster has it.
        """
        found = np.flatnonzero([own == name for own in self.names])
        if not len(found):
            given = sorted({own for k, own in enumerate(self.names) if own != unnamed(k)})
            raise OptionError(
                f"no cluster is called {name!r} (named are {', '.join(given) or 'none'}): "
                "name some with geolabel clusters name"
            )
        return found.astype(np.int64)

    @property
    def classes(self) -> tuple[str, ...]:
        """Classes of label maps: the clusters, or, once some are named, background and the names."""
        given = dict.fromkeys(name for k, name in enumerate(self.names) if name != unnamed(k))
        return (BACKGROUND, *(name for name in given if name != BACKGROUND)) if given else self.names

    def values(self, features: Float32Array) -> Int32Array:
        """(M,) index into `classes` of features (M, D)."""
        classes = self.classes
        table = np.asarray([classes.index(name) if name in classes else 0 for name in self.names], np.int32)
        found: Int32Array = table[self.assign(features)]
        return found

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON, exact."""
        return {
            "names": list(self.names),
            "sizes": self.sizes.tolist(),
            "normalised": self.normalised,
            "centres": self.centres.astype(np.float64).tolist(),
        }

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> Self:
        """Read the result of `as_dict`."""
        return cls(
            np.asarray(record["centres"], np.float32),
            np.asarray(record["sizes"], np.int64),
            tuple(map(parse_name, record["names"])),
            bool(record["normalised"]),
        )


MAX_POINTS, MAX_TILE = 512, 1 << 14
"""Maximum points along a side of a tile, and maximum side in pixels, for any segmenter."""


@dataclass(frozen=True)
class Source:
    """Origin of the features of clusters; features of other networks or masks are not comparable."""

    segmenter: str
    """SHA-256 of its weights."""
    tile: int
    """Maximum side in pixels of what the segmenter processes at once."""
    points_per_side: int = 32
    filters: Filters = field(default_factory=Filters)
    max_share: float = 0.3
    """Masks that cover a larger share of a tile are background and dropped (ALPS, eq. 2 and 3)."""

    def __post_init__(self) -> None:
        if not 0 < self.max_share <= 1:
            raise OptionError(f"share {self.max_share} of an image that a mask covers: it must be above 0, up to 1")
        if not (1 <= self.points_per_side <= MAX_POINTS and 1 <= self.tile <= MAX_TILE):
            raise OptionError(
                f"{self.points_per_side} points a side of a tile of {self.tile} px: give 1 to {MAX_POINTS} points, and "
                f"tiles of at most {MAX_TILE} px"
            )

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> Self:
        """Read the result of `as_dict`."""
        return cls(**record | {"filters": Filters(**record["filters"])})


@dataclass(frozen=True)
class ClusterChoice:
    """The clusters that a segmenter returns, as part of a recipe."""

    path: str
    """Path of the file of clusters."""
    sha256: str
    """SHA-256 of the file; checked when it is loaded."""
    class_names: tuple[str, ...]
    """Names of clusters, which become the classes of the masks."""


def unnamed(k: int) -> str:
    """Name of a cluster before it is named by a person."""
    return f"cluster_{k}"


def prepared(features: Float32Array, normalised: bool) -> Float32Array:
    """Features (M, D) as they are compared; zero vectors stay zero."""
    if not normalised:
        return features
    length = np.linalg.norm(features, axis=1, keepdims=True)
    directions: Float32Array = np.divide(features, length, out=np.zeros_like(features), where=length > 0)
    return directions

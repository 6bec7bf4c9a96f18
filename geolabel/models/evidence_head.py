"""The evidence head: probability of landslide for each pixel, given supplementary data; and its file.

Gradient-boosted regression trees (Friedman 2001) on features that `geolabel.extraction.cutting` computes from a pixel
and its surroundings, with separate trees for each kind of evidence. Trees compare numbers and add constants, so a pixel
has the same probability on every machine and in every context.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from geolabel.errors import WeightsError
from geolabel.outputs import replacing
from geolabel.parsing import read_json
from geolabel.types import AnyArray, BoolArray, Float64Array, Int64Array

Kind = Literal["before", "dem", "both"]
"""Kinds of evidence besides the scene."""

KINDS: tuple[Kind, ...] = ("before", "dem", "both")

LOGIT_UNIT = 1000
"""Units per logit of leaf values, which are integers, so that their sum does not depend on their order."""

LEAF = -1
"""Feature index that marks a leaf."""

MAX_LEAVES, MAX_NODES = 64, 1 << 16
"""Maximum number of leaves of a tree, and of nodes in a file."""


@dataclass(frozen=True)
class Trees:
    """Binary trees with N nodes in total, concatenated; children come after their parents."""

    names: tuple[str, ...]
    """Names of the compared features."""
    roots: tuple[int, ...]
    feature: tuple[int, ...]
    """(N,) index into `names`, or `LEAF`."""
    threshold: tuple[float, ...]
    """(N,) values up to this go left."""
    left: tuple[int, ...]
    right: tuple[int, ...]
    value: tuple[int, ...]
    """(N,) values of leaves, `LOGIT_UNIT` per logit."""
    start: int
    """Value that the leaves are added to, in the same unit."""

    def __post_init__(self) -> None:
        count = len(self.feature)
        own = [len(values) for values in (self.threshold, self.left, self.right, self.value)]
        if not self.roots or count > MAX_NODES or any(length != count for length in own):
            raise ValueError(f"trees have 1 to {MAX_NODES} nodes, each with a feature, a threshold, children and value")
        places = np.arange(count)
        inner = np.asarray(self.feature) != LEAF
        children = np.stack([np.asarray(self.left), np.asarray(self.right)])[:, inner]
        if np.any(children <= places[inner]) or np.any(children >= count):
            raise ValueError("children of nodes come after them")
        if not (all(0 <= root < count for root in self.roots) and all(map(math.isfinite, self.threshold))):
            raise ValueError("roots are nodes, and thresholds are finite")
        if np.any(np.asarray(self.feature)[inner] < 0) or np.any(np.asarray(self.feature) >= len(self.names)):
            raise ValueError(f"nodes compare features 0 to {len(self.names) - 1}")
        _leaves(self)

    def __call__(self, features: Mapping[str, AnyArray]) -> Float64Array:
        """(P,) probability, 0..1, that each of P pixels is landslide; features are (P,) each."""
        columns = [np.asarray(features[name], np.float64) for name in self.names]
        logit: Int64Array = np.full(len(columns[0]), self.start, np.int64)
        for tests, values in _leaves(self):
            kind = np.min_scalar_type((1 << len(values)) - 1).type
            passed = np.zeros(len(logit), kind)
            for feature, threshold, left in tests:
                passed |= (columns[feature] > threshold) * kind(left)
            reached = ~passed & (passed + kind(1))  # the lowest bit that is not set
            logit += values[np.frexp(reached.astype(np.float64))[1] - 1]
        return np.asarray(1 / (1 + np.exp(-np.clip(logit / LOGIT_UNIT, -60, 60))))


_Test = tuple[int, float, int]
"""A feature, a threshold, and the leaves, as bits, that larger values exclude."""


@lru_cache(maxsize=2 * len(KINDS))
def _leaves(trees: Trees) -> list[tuple[list[_Test], Int64Array]]:
    """Tests and leaves of each tree, to find a pixel's leaf without a walk (QuickScorer; Lucchese et al. 2015).

    Leaves are numbered from left to right. A value above the threshold of a node excludes all leaves to its left; a
    pixel reaches the first leaf that is not excluded.

    Raises
    ------
    ValueError
        If a tree has more than `MAX_LEAVES`.
    """
    found = []
    for root in trees.roots:
        tests: list[_Test] = []
        values: list[int] = []
        _walk(trees, root, 0, tests, values)
        found.append((tests, np.asarray(values, np.int64)))
    return found


def _walk(trees: Trees, node: int, depth: int, tests: list[_Test], values: list[int]) -> None:
    """Append the tests and leaves at and below a node, from left to right."""
    if max(depth, len(values)) >= MAX_LEAVES:
        raise ValueError(f"a tree has at most {MAX_LEAVES} leaves")
    if trees.feature[node] == LEAF:
        values.append(trees.value[node])
        return
    first = len(values)
    _walk(trees, trees.left[node], depth + 1, tests, values)
    tests.append((trees.feature[node], trees.threshold[node], (1 << len(values)) - (1 << first)))
    _walk(trees, trees.right[node], depth + 1, tests, values)


@dataclass(frozen=True)
class Head:
    """Trees for one kind of evidence, with their settings."""

    trees: Trees
    cut: float
    """Pixels with a lower probability are cut out of polygons, 0..1."""
    confidence: tuple[float, float, float, float]
    """Confidence of a polygon: ``sigmoid(a + b * logit(confidence without evidence) + c * logit(mean of the pixels))``,
    with d added in the sigmoid if that mean is below the cut."""

    def __post_init__(self) -> None:
        if not (0 < self.cut < 1 and all(map(math.isfinite, self.confidence))):
            raise ValueError("its cut is between 0 and 1, and its confidence has finite numbers")

    def confidence_with(self, without: Float64Array, evidence: Float64Array) -> Float64Array:
        """(K,) confidence of polygons; without evidence if the mean of their pixels is unknown."""
        start, own, seen, below = self.confidence
        logits = start + own * logit(without) + seen * logit(evidence) + below * (evidence < self.cut)
        return np.where(np.isnan(evidence), without, 1 / (1 + np.exp(-np.clip(logits, -60, 60))))


def logit(probability: Float64Array) -> Float64Array:
    """Logarithm of the odds of probabilities, limited to 0.002..0.998."""
    inside = np.clip(probability, 0.002, 0.998)
    return np.asarray(np.log(inside / (1 - inside)))


@dataclass(frozen=True)
class EvidenceHeads:
    """A head for each kind of evidence, and the localizer they were fitted to."""

    heads: Mapping[Kind, Head]
    localizer: str
    """SHA-256 of the localizer's weights."""
    fitted: Mapping[str, Any]
    """Data, counts and figures, as plain values."""
    sha256: str = ""
    """SHA-256 of the file that they were read from."""


def shipped() -> Path:
    """Path of the bundled heads."""
    return Path(str(resources.files("geolabel.weights") / "evidence.json"))


def heads_for(localizer: str) -> EvidenceHeads | None:
    """The bundled heads for a localizer, by SHA-256; None if they were not fitted to it.

    The activation of another localizer has another scale.
    """
    found = _shipped(shipped())
    return found if found.localizer == localizer else None


def with_evidence(confidence: Float64Array, attributes: Mapping[str, ArrayLike], localizer: str) -> Float64Array:
    """(K,) confidence of polygons, from that without evidence and their attributes; unchanged if none is known."""
    columns = {name: np.asarray(attributes[name], float) for name in ("evidence", "change_z", "slope_mean_deg")}
    heads = None if np.isnan(columns["evidence"]).all() else heads_for(localizer)
    if heads is None:
        return confidence
    before, dem = np.isfinite(columns["change_z"]), np.isfinite(columns["slope_mean_deg"])
    sure = confidence.copy()
    kinds: tuple[tuple[Kind, BoolArray], ...] = (
        ("before", before & ~dem),
        ("dem", dem & ~before),
        ("both", before & dem),
    )
    for kind, these in kinds:
        sure[these] = heads.heads[kind].confidence_with(confidence[these], columns["evidence"][these])
    return sure


@lru_cache(maxsize=1)
def _shipped(path: Path) -> EvidenceHeads:
    return load_heads(path)


def load_heads(path: Path) -> EvidenceHeads:
    """Read heads.

    Raises
    ------
    WeightsError
        If the file is missing or does not hold heads.
    """
    again = "write it again with tests/benchmarks/evidence_fit.py"
    try:
        values = read_json(path)
        heads = {kind: _head(values["heads"][kind]) for kind in KINDS}
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        return EvidenceHeads(heads, str(values["localizer"]), dict(values["fitted"]), digest)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read ({error.strerror}): {again}") from error
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise WeightsError(f"{path} does not hold evidence heads ({error}): {again}") from error


def _head(values: Mapping[str, Any]) -> Head:
    trees = values["trees"]
    whole = {name: tuple(map(int, trees[name])) for name in ("roots", "feature", "left", "right", "value")}
    first, second, third, fourth = map(float, values["confidence"])
    found = Trees(
        names=tuple(map(str, trees["names"])),
        threshold=tuple(map(float, trees["threshold"])),
        start=int(trees["start"]),
        **whole,
    )
    return Head(found, float(values["cut"]), (first, second, third, fourth))


def save_heads(path: Path, found: EvidenceHeads, *, overwrite: bool) -> None:
    """Write heads as JSON; the file appears when it is complete.

    Raises
    ------
    OutputError
        If it exists and may not be replaced.
    """
    values = {
        "heads": {kind: asdict(head) for kind, head in found.heads.items()},
        "localizer": found.localizer,
        "fitted": found.fitted,
    }
    with replacing(path, overwrite=overwrite) as part:
        part.write_text(json.dumps(values, allow_nan=False, separators=(",", ":")) + "\n", encoding="utf-8")

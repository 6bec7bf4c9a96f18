"""Clusters on disk: ``clusters.json``, with what their features come from and how they were made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from geolabel.clusters import Clusters, Source
from geolabel.datasets.pseudo_labels import read_json, write_json
from geolabel.errors import GeolabelError, OptionError, WeightsError
from geolabel.parts import Recipe

NAME = "clusters.json"
"""What the file is called in a folder of pseudo-labels."""

FORMAT = 1
"""Version of the file; a reader refuses what is newer than it knows."""


@dataclass(frozen=True)
class ClusterFile:
    """What the file holds."""

    clusters: Clusters
    source: Source
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """What the clusters are made of and with."""
    results: Mapping[str, Any] = field(default_factory=dict)
    """Figures of how they came out."""

    def check(self, segmenter: Recipe) -> None:
        """Make sure that a segmenter is the one that the features come from.

        Raises
        ------
        OptionError
            If it is another one.
        """
        if segmenter.sha256 != self.source.segmenter:
            raise OptionError(
                f"the clusters are those of a segmenter with SHA-256 {self.source.segmenter[:12]}..., and "
                f"{segmenter.source} has {segmenter.sha256[:12]}...: give --sam or --sam-checkpoint as when they were "
                "made"
            )

    def named(self, names: dict[int, str]) -> ClusterFile:
        """The same, some clusters named; see `Clusters.named`."""
        return replace(self, clusters=self.clusters.named(names))


def clusters_path(path: Path) -> Path:
    """The file itself, from its name or from the folder of pseudo-labels that it lies in."""
    return path / NAME if path.is_dir() else path


def save_clusters(path: Path, content: ClusterFile) -> None:
    """Write the file, whole or not at all.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    write_json(
        path,
        {
            "format": FORMAT,
            "clusters": content.clusters.as_dict(),
            "source": content.source.as_dict(),
            "provenance": dict(content.provenance),
            "results": dict(content.results),
        },
    )


def load_clusters(path: Path) -> ClusterFile:
    """Read the file.

    Raises
    ------
    WeightsError
        If it is missing or damaged, no file of clusters, or of a newer geolabel.
    """
    path = clusters_path(path)
    if not path.is_file():
        raise WeightsError(f"{path} does not exist: make clusters with geolabel label --method alps")
    try:
        record = read_json(path)
        newer = record["format"] > FORMAT
        content = None if newer else _parse(record)
    except (GeolabelError, KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        raise WeightsError(
            f"{path} cannot be read as clusters ({error}): make them again with geolabel label --method alps"
        ) from error
    if content is None:
        raise WeightsError(f"{path} has format {record['format']}, this geolabel reads {FORMAT}: upgrade it")
    return content


def _parse(record: Mapping[str, Any]) -> ClusterFile:
    return ClusterFile(
        Clusters.from_dict(record["clusters"]),
        Source.from_dict(record["source"]),
        dict(record["provenance"]),
        dict(record["results"]),
    )

"""Runs of ALPS over a scene: a grid of points in every tile, and of the answers those whose cluster has a name."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from geolabel.clusters import ClusterChoice
from geolabel.datasets.clusters import clusters_path, load_clusters
from geolabel.errors import OptionError
from geolabel.extraction.passes import MaskTable
from geolabel.extraction.plan import Plan
from geolabel.extraction.request import Networks
from geolabel.extraction.segment import ask_everywhere
from geolabel.extraction.work import Work
from geolabel.io.downloads import sha256
from geolabel.masks import Selection
from geolabel.parts import EverythingRecipe, EverywhereRecipe
from geolabel.prompters import GridPrompter
from geolabel.prompts import Prompts


@dataclass(frozen=True)
class ClusteredNetworks(Networks):
    """Networks of a run that has clusters instead of a localizer."""

    clusters: str | Path = ""
    """The file of clusters, or the folder of pseudo-labels that it lies in."""
    class_name: str = "landslide"

    @classmethod
    def of(cls, networks: Networks, clusters: str | Path | None, class_name: str) -> ClusteredNetworks:
        """The same segmenter, and clusters of what it sees.

        Raises
        ------
        OptionError
            If there are no clusters.
        """
        if clusters is None:
            raise OptionError("--method alps finds clusters that have a name: give --clusters FILE")
        return cls(**vars(networks), clusters=clusters, class_name=class_name)

    def recipes(self, selection: Selection = "best_iou") -> tuple[EverywhereRecipe, EverythingRecipe]:  # type: ignore[override]
        """Recipes of a localizer that sees the class everywhere, and of a segmenter that leaves out all others.

        Raises
        ------
        WeightsError
            If the clusters cannot be read.
        OptionError
            If no cluster has the name, or the clusters are those of another segmenter.
        """
        path = clusters_path(Path(self.clusters)).absolute()
        content = load_clusters(path)
        content.clusters.of_class(self.class_name)
        _, segmenter = super().recipes(selection)
        content.check(segmenter)
        choice = ClusterChoice(str(path), sha256(path), self.class_name)
        return (
            EverywhereRecipe(classes=(self.class_name,)),
            segmenter.everything(content.source.filters, features=True, clusters=choice),
        )


def find_clustered(work: Work) -> tuple[Prompts, list[MaskTable]]:
    """Ask about everything, tile by tile: the masks of the class, and the points that they answer."""
    plan = work.run.plan
    points = points_asked(plan)
    tables = ask_everywhere(work, points)
    prompts = _answered(plan, tables, points)
    work.report.prompts += len(prompts)
    return prompts, tables


def points_asked(plan: Plan) -> int:
    """Points along each side of the grid in every tile."""
    assert isinstance(plan.segmenter, EverythingRecipe)
    choice = plan.segmenter.clusters
    assert choice is not None
    return load_clusters(Path(choice.path)).source.points_per_side


def _answered(plan: Plan, tables: list[MaskTable], points: int) -> Prompts:
    ids = np.unique(np.concatenate([np.zeros(0, np.int64), *(table.prompt_ids for table in tables)]))
    grid, parts = GridPrompter(points), []
    for index in np.unique(ids // points**2).tolist():
        tile = plan.segment_tiles[index]
        asked = grid.over(tile.height, tile.width).shift(tile.col, tile.row)
        asked = replace(asked, ids=asked.ids + index * len(asked))
        parts.append(asked[np.isin(asked.ids, ids)])
    return Prompts.concatenate(parts)

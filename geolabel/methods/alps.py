"""ALPS: all objects in the images, clustered by the encoder's features; pseudo-labels without any label.

Source: Zhang et al., "ALPS: An Auto-Labeling and Pre-training Scheme for Remote Sensing Segmentation With Segment
Anything Model". Its steps and where they are:

* eq. 1, masks of everything: `geolabel.models.everything`
* eq. 2 and 3, the filtering gate: `geolabel.labelers.gate`
* eq. 4, features of masks: `geolabel.models.everything.pool`
* online k-means, and estimation of the number of clusters: `geolabel.training.clusters`
* pseudo-labels: `geolabel.labeling.regions.Regions`; the smallest mask of a pixel wins, and 255 is uncovered

The gate drops masks that cover more than a share of an image, as background: 0.3 in the paper, whose images are some
900 px wide. A landslide that fills its image is dropped too, so the share is larger for segmenters with smaller tiles:
see `geolabel.models.defaults`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from geolabel.clusters import ClusterChoice, Clusters, Source, check_count
from geolabel.datasets.examples import ImageFolder
from geolabel.datasets.pseudo_labels import (
    NAME,
    ClusterFile,
    PseudoLabelWriter,
    clusters_path,
    labels_folder,
    load_clusters,
    save_clusters,
)
from geolabel.engine import worker
from geolabel.engine.tasks import Progress
from geolabel.errors import OptionError
from geolabel.extraction.passes import MaskTable
from geolabel.extraction.plan import Plan
from geolabel.extraction.request import Networks, SceneMethod
from geolabel.extraction.segment import GridPrompts, ask_everywhere
from geolabel.io.downloads import sha256
from geolabel.labeling.label import label_images, label_provenance, label_within
from geolabel.labeling.regions import RegionFolder, find_regions
from geolabel.labels import LabelMap
from geolabel.models import loading
from geolabel.models.defaults import segmenter_defaults
from geolabel.models.tuning import uncompiled
from geolabel.parts import EverythingRecipe, EverywhereRecipe, Recipe
from geolabel.prompters import GridPrompter
from geolabel.prompts import Prompts
from geolabel.settings import option_name, settings_of
from geolabel.settings.methods import AlpsChips, AlpsScenes
from geolabel.training.clusters import fit_clusters, predict_count, require_clustering
from geolabel.types import UInt8Array

if TYPE_CHECKING:
    from geolabel.extraction.work import Work

AUTO = "auto"


@dataclass(frozen=True)
class Settings(AlpsChips):
    """Settings for a folder of images.

    Raises
    ------
    OptionError
        If there are no clusters, or more than a label map can hold.
    """

    def __post_init__(self) -> None:
        if self.count is not None:
            check_count(self.count)  # checked first, as the segmenter runs for hours

    @property
    def count(self) -> int | None:
        """The requested number of clusters, if it is a number."""
        return int(self.clusters) if self.clusters.isdecimal() else None

    @property
    def file(self) -> Path | None:
        """The file of existing clusters, if one is given."""
        return None if self.count is not None or self.clusters == AUTO else clusters_path(Path(self.clusters))


def label(
    chips: Path, out: Path, settings: Settings, networks: Networks, *, overwrite: bool, progress: Progress
) -> dict[str, Any]:
    """Label a folder of images; see `geolabel.methods.Label`."""
    networks.refuse("--method alps has no localizer", "localizer")
    if settings.file is None:
        require_clustering()
    images = ImageFolder(chips)
    known = None if settings.file is None else known_clusters(settings.file, settings, networks)
    source, recipe = source_of(settings, networks) if known is None else (known.source, recipe_of(networks, known))
    provenance = label_provenance("alps", replace(settings, regions=None), [recipe], images)
    if known is not None:
        provenance["clusters"] = known.clusters.as_dict()
        writer = PseudoLabelWriter(out, known.clusters.classes, provenance)
        by_pipeline = _Known(known, recipe)
        return label_images(
            images,
            by_pipeline,
            writer,
            networks=[recipe],
            weigh=lambda index: images.tiles(index, source.tile),
            overwrite=overwrite,
            progress=progress,
        )
    with labels_folder(out, provenance, overwrite=overwrite, inputs=images.sources) as folder:
        found = RegionFolder(settings.regions or folder / "regions", images)
        found.find(recipe, source, progress)
        content = _clustered(folder / NAME, found, source, settings, provenance)
        clusters = content.clusters
        by_regions = _Found(found, clusters, source.max_share, {name: k for k, name in enumerate(images.names)})
        figures = label_within(images, by_regions, PseudoLabelWriter(folder, clusters.classes, provenance), progress)
        if settings.regions is None:
            found.remove()
    return figures | dict(content.results)


def source_of(settings: Settings, networks: Networks) -> tuple[Source, EverythingRecipe]:
    """Origin of the features, and the segmenter that computes them."""
    asked = GridPrompts(
        points_per_side=32 if settings.points_per_side is None else settings.points_per_side,
        predicted_iou=settings.predicted_iou,
        stability=settings.stability,
    )
    segmenter = uncompiled(networks.recipes()[1])
    recipe = networks.fastest(loading.everything(segmenter, asked.filters(segmenter.source), features=True))
    source = Source(
        segmenter=recipe.sha256,
        tile=worker.segmenter(recipe).window,
        points_per_side=asked.points_per_side,
        filters=recipe.filters,
        max_share=segmenter_defaults(networks.sam).max_share if settings.max_share is None else settings.max_share,
    )
    return source, recipe


def known_clusters(path: Path, settings: Settings, networks: Networks) -> ClusterFile:
    """Existing clusters, with the origin of their features.

    Raises
    ------
    WeightsError
        If the file cannot be read.
    OptionError
        If there is no such file, or a setting for making clusters is given.
    """
    if not path.is_file():
        raise OptionError(
            f"clusters {path}: there is no such file; give a number, auto, or a file of existing clusters"
        )
    usual = AlpsChips()
    others = [name for name in settings_of(AlpsChips) if name != "clusters"]
    given = [name for name in others if getattr(settings, name) != getattr(usual, name)]
    if given:
        names = ", ".join(option_name(AlpsChips, name) for name in given)
        raise OptionError(f"{names}: the clusters of {path} were made with their own; leave it out")
    content = load_clusters(path)
    recipe_of(networks, content)
    return content


def recipe_of(networks: Networks, content: ClusterFile) -> EverythingRecipe:
    """The segmenter that the features of clusters come from.

    Raises
    ------
    OptionError
        If the networks use another one.
    """
    segmenter = uncompiled(networks.recipes()[1])
    content.check(segmenter)
    return networks.fastest(loading.everything(segmenter, content.source.filters, features=True))


@dataclass(frozen=True)
class _Known:
    """Labels images with existing clusters."""

    content: ClusterFile
    recipe: EverythingRecipe

    def __call__(self, _: Sequence[str], images: Sequence[UInt8Array]) -> list[LabelMap]:
        return [self._label(image) for image in images]

    def _label(self, image: UInt8Array) -> LabelMap:
        clusters, source = self.content.clusters, self.content.source
        regions = find_regions(image, worker.segmenter(self.recipe), source.points_per_side, source.tile)
        return regions.label(clusters.values(regions.features), clusters.classes, source.max_share)


@dataclass(frozen=True)
class _Found:
    """Labels images with clusters of their own regions."""

    regions: RegionFolder
    clusters: Clusters
    max_share: float
    index_of: Mapping[str, int]

    def __call__(self, names: Sequence[str], _: Sequence[UInt8Array]) -> list[LabelMap]:
        return [self._label(name) for name in names]

    def _label(self, name: str) -> LabelMap:
        regions = self.regions.read(self.index_of[name])
        return regions.label(self.clusters.assign(regions.features), self.clusters.classes, self.max_share)


def _clustered(
    path: Path, folder: RegionFolder, source: Source, settings: Settings, provenance: dict[str, Any]
) -> ClusterFile:
    # The clusters of an interrupted run are those that it would compute again.
    if path.is_file() and (found := load_clusters(path)).provenance == provenance:
        return found
    clusters, results = cluster(folder, source.max_share, settings)
    content = ClusterFile(clusters, source, provenance, results)
    save_clusters(path, content)
    return content


def cluster(folder: RegionFolder, max_share: float, settings: Settings) -> tuple[Clusters, dict[str, Any]]:
    """Cluster the objects of all images; returns the clusters and figures on their quality."""
    count = settings.count
    if count is None:
        parts = folder.features(0, max_share, settings.seed)
        count = predict_count(parts, seed=settings.seed, normalised=settings.normalised)
    clusters, inertia = fit_clusters(
        lambda number: folder.features(number, max_share, settings.seed),
        count,
        passes=settings.passes,
        seed=settings.seed,
        normalised=settings.normalised,
    )
    empty = int((clusters.sizes == 0).sum())
    masks = int(clusters.sizes.sum())
    return clusters, {"masks": masks, "clusters": count, "empty_clusters": empty, "inertia": round(inertia, 6)}


@dataclass(frozen=True)
class Scenes(AlpsScenes, SceneMethod):
    """The method over scenes: a grid of points in every tile, and the answers whose cluster has a requested name.

    Raises
    ------
    OptionError
        If there are no clusters, or no name.
    """

    name = "alps"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.clusters is None:
            raise OptionError("--method alps finds clusters that have a name: give --clusters FILE")
        if not self.cluster_names:
            raise OptionError("--method alps finds clusters that have a name: give --cluster-name NAME")

    def recipes(self, networks: Networks) -> tuple[Recipe, Recipe]:
        """A localizer with uniform activation, and a segmenter restricted to the classes."""
        networks.refuse("--method alps has no localizer", "localizer")
        path = clusters_path(Path(self.clusters or "")).absolute()
        content = load_clusters(path)
        for name in self.cluster_names:
            content.clusters.of_class(name)
        _, segmenter = networks.recipes()
        content.check(segmenter)
        choice = ClusterChoice(str(path), sha256(path), self.cluster_names)
        return (
            EverywhereRecipe(classes=self.cluster_names),
            loading.everything(segmenter, content.source.filters, features=True, clusters=choice),
        )

    def ask(self, work: Work) -> tuple[Prompts, list[MaskTable]]:
        """Segment everything, tile by tile: the masks of the classes, and the points that they answer."""
        points = self.points_per_side
        tables = ask_everywhere(work, points)
        prompts = _answered(work.run.plan, tables, points)
        work.report.prompts += len(prompts)
        return prompts, tables

    @property
    def points_per_side(self) -> int:
        """Points along each side of the grid in every tile."""
        return load_clusters(Path(self.clusters or "")).source.points_per_side

    def sample(self, height: int, width: int) -> Prompts:
        """Prompts to time a tile of that size."""
        return GridPrompter(self.points_per_side).over(height, width)


def _answered(plan: Plan, tables: list[MaskTable], points: int) -> Prompts:
    """The points that masks answer, each with the class of its first mask."""
    every = np.concatenate([np.zeros(0, np.int64), *(table.prompt_ids for table in tables)])
    classes = np.concatenate([np.zeros(0, np.int32), *(table.class_ids for table in tables)])
    ids, first = np.unique(every, return_index=True)
    grid, parts = GridPrompter(points), []
    for index in np.unique(ids // points**2).tolist():
        tile = plan.segment_tiles[index]
        asked = grid.over(tile.height, tile.width).shift(tile.col, tile.row)
        asked = replace(asked, ids=asked.ids + index * len(asked))
        parts.append(asked[np.isin(asked.ids, ids)])
    return replace(Prompts.concatenate(parts), class_ids=classes[first])

"""Subjects of ``bench quality``: the networks, and the available data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar, cast

import geolabel
from geolabel.engine.tasks import Progress, Silent
from geolabel.evaluation import examples
from geolabel.evaluation.examples import FOLDERS, Data, Example, Examples, Split
from geolabel.extraction.request import Networks, Parameters, decide
from geolabel.models import loading
from geolabel.models.defaults import BUNDLED
from geolabel.parts import Localizer, LocalizerRecipe, Segmenter, SegmenterRecipe

SCENES = 20
"""Synthetic scenes of a split."""

IMAGE_LABELS = "bundled-weak"
"""The localizer trained on labels of whole images only."""

T = TypeVar("T")


@dataclass(frozen=True)
class Bench:
    """Networks, and the images that they are measured on."""

    data: Data
    networks: Networks
    split: Split = "report"
    limit: int | None = None
    """Maximum number of examples of each set of data, for a quick look; None for all."""
    windows: int = 2
    """Number of windows that the baseline of the speed section is timed on."""
    progress: Progress = field(default_factory=Silent)

    @cached_property
    def recipes(self) -> tuple[LocalizerRecipe, SegmenterRecipe]:
        """Recipes of the localizer and the segmenter."""
        return self.networks.recipes()

    @cached_property
    def localizer(self) -> Localizer:
        """The localizer, its maps scaled by their maximum: values above the constant would be clipped to one."""
        return _scaled(self.networks)

    @cached_property
    def others(self) -> dict[str, Networks]:
        """Networks with localizers to compare with the default one in its tables, by name."""
        if self.recipes[0].source != BUNDLED:
            return {}
        return {IMAGE_LABELS: replace(self.networks, localizer=IMAGE_LABELS)}

    @cached_property
    def other_localizers(self) -> dict[str, Localizer]:
        """Their localizers, scaled in the same way."""
        return {name: _scaled(networks) for name, networks in self.others.items()}

    @cached_property
    def segmenter(self) -> Segmenter:
        """The segmenter with the product's settings."""
        return cast("Segmenter", loading.load(self.recipes[1]))

    @cached_property
    def parameters(self) -> Parameters:
        """The product's defaults."""
        return Parameters()

    @cached_property
    def sichuan(self) -> examples.Files | None:
        """Orthophotos with careful outlines."""
        return self._limited(examples.outlined(self.data.sichuan, self.split) if self.data.sichuan else None)

    @cached_property
    def bijie(self) -> examples.Files | None:
        """Chips with and without landslides."""
        return self._limited(examples.chips(self.data.bijie, self.split) if self.data.bijie else None)

    @cached_property
    def hokkaido(self) -> examples.Files | None:
        """Chips of 3 m with many small landslides; nothing is selected by them."""
        shown = self.data.hokkaido is not None and self.split == "report"
        return self._limited(examples.report_only(self.data.hokkaido) if shown and self.data.hokkaido else None)

    @cached_property
    def l4s(self) -> examples.Files | None:
        """Chips of 10 m with landslides."""
        return self._limited(examples.satellite_chips(self.data.l4s, self.split) if self.data.l4s else None)

    @cached_property
    def negatives(self) -> dict[str, examples.Negatives]:
        """Sets without landslides by name."""
        if self.data.negatives is None:
            return {}
        sets = examples.without_landslides(self.data.negatives, self.split)
        return {name: replace(some, images=self.some_of(some.images)) for name, some in sets.items()}

    @cached_property
    def geotiffs(self) -> tuple[Path, ...]:
        """GeoTIFFs without landslides, of both splits."""
        return tuple(examples.tiffs(self.data.geotiffs)) if self.data.geotiffs else ()

    @property
    def synthetic(self) -> examples.SyntheticScenes:
        """Synthetic scenes."""
        count = SCENES if self.limit is None else min(SCENES, self.limit)
        return examples.SyntheticScenes(examples.SYNTHETIC[self.split], count)

    def _limited(self, files: examples.Files | None) -> examples.Files | None:
        return None if files is None else replace(files, images=self.some_of(files.images))

    def some_of(self, items: Sequence[T]) -> tuple[T, ...]:
        """All items, or evenly spread ones up to the limit, so that items of each kind are included."""
        if self.limit is None:
            return tuple(items)
        return tuple(items[:: max(1, len(items) // self.limit)][: self.limit])

    def track(self, items: Examples, name: str) -> Iterator[Example]:
        """Iterate over examples and report progress."""
        return self.progress.track(items, name, len(items))

    def key(self) -> dict[str, Any]:
        """Everything that the figures depend on, as plain values."""
        files = {"sichuan": self.sichuan, "bijie": self.bijie, "hokkaido": self.hokkaido, "l4s": self.l4s}
        without = {f"negatives/{name}": examples.listed(some.images) for name, some in self.negatives.items()}
        without |= {"geotiffs": examples.listed(self.geotiffs)}
        return {
            "geolabel": geolabel.__version__,
            "networks": {recipe.role: recipe.sha256 for recipe in self.recipes}
            | {name: networks.recipes()[0].sha256 for name, networks in self.others.items()},
            "parameters": decide(self.networks, self.parameters)[0].as_dict(),
            "split": self.split,
            "limit": self.limit,
            "data": {name: held.listed() if held else None for name, held in files.items()} | without,
        }

    def missing(self) -> list[str]:
        """Names of the folders that are not available."""
        return [FOLDERS[name] for name, folder in asdict(self.data).items() if folder is None]


def _scaled(networks: Networks) -> Localizer:
    return cast("Localizer", loading.load(replace(networks.recipes()[0], normalisation="maximum")))

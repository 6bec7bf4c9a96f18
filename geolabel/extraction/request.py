"""What a user asks for: how to read a scene, with which networks. Plain records that become a plan."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from geolabel.engine import worker
from geolabel.errors import OptionError, WeightsError
from geolabel.extraction.plan import Parameters
from geolabel.masks import Selection
from geolabel.models.confidence import knows
from geolabel.models.defaults import BUNDLED
from geolabel.parts import LocalizerRecipe, Recipe, SegmenterRecipe


@dataclass(frozen=True)
class Reading:
    """How a scene is read."""

    bands: str | tuple[int, ...] | None = None
    """Red, green and blue, as numbers from 1, descriptions or colours; None to find them in the header."""
    nodata: float | None = None
    gsd: float | None = None
    """Metres per pixel of a scene without CRS."""
    aoi: str | Path | None = None
    """A vector file; only its polygons are worked on."""
    aoi_layer: str | None = None
    """Its layer; None for the only one that holds polygons."""
    bounds: tuple[float, float, float, float] | None = None
    """Left, bottom, right, top in the scene's CRS; only this part is worked on."""
    working_gsd: float | None = None
    """Metres per pixel to work at; None for the scene's own within the networks' range."""
    stretch: str = "p2-98"
    """Radiometric stretch of the whole scene: percentiles, two values, or ``none``."""
    time: str | None = None
    """Which of several times of a file or dataset is the scene: an ISO 8601 date, or date and time, as far as it takes
    to tell it from the others."""
    asset: str | None = None
    """Which asset of STAC items is the scene; None for the one that is a picture."""


LIKELY = 0.2
"""Minimum confidence of a landslide with the bundled networks.

Of the polygons on images for choices, 3 % of those that are right have less, and 20 % of those that are wrong; no set
of these images loses F1. A higher one leaves fewer false alarms, and misses landslides, large ones among them."""


@dataclass(frozen=True)
class Networks:
    """Which networks run, and where."""

    localizer: str | None = None
    """Name or file; None for the bundled one."""
    sam: str | None = None
    """Name of the segmenter; None for the bundled one."""
    sam_checkpoint: str | Path | None = None
    device: str = "auto"
    precision: str = "auto"
    engine: Literal["auto", "torch", "onnx"] = "auto"
    """``onnx`` is ONNX Runtime; ``auto`` is that for the bundled networks where they go over a scene on a CPU in fp32,
    and torch elsewhere."""
    batch: int | None = None
    """Images per network call; None for 1 on the CPU and 8 on a GPU."""

    def recipes(self, selection: Selection = "best_iou") -> tuple[LocalizerRecipe, SegmenterRecipe]:
        """Recipes of the localizer and the segmenter."""
        from geolabel.models import loading

        # Decided where the networks will run: the client of a cluster may have no GPU.
        device, precision = _device_and_precision(self.device, self.precision)
        batch = loading.default_batch(device) if self.batch is None else self.batch
        engine = "torch" if self.engine == "auto" else self.engine
        localizer = loading.recipe("localizer", self.localizer or BUNDLED, device="cpu")
        segmenter = loading.recipe(
            "segmenter", self.sam or BUNDLED, checkpoint=self.sam_checkpoint, selection=selection, device="cpu"
        )
        assert isinstance(localizer, LocalizerRecipe)
        assert isinstance(segmenter, SegmenterRecipe)
        where: dict[str, Any] = {"device": device, "precision": precision, "batch": batch}
        return (
            loading.with_engine(replace(localizer, **where), engine),
            loading.with_engine(replace(segmenter, **where), engine),
        )

    def refuse(self, why: str, *names: str) -> None:
        """Refuse networks that were chosen for a method that does not run them.

        Parameters
        ----------
        why
            What is said of them.
        names
            Fields of this record.

        Raises
        ------
        OptionError
            If one is not None.
        """
        for name in names:
            if getattr(self, name) is not None:
                option = name.replace("_", "-")
                raise OptionError(f"--{option} {getattr(self, name)}: {why}; leave it out")


def decide(networks: Networks, parameters: Parameters) -> tuple[Parameters, tuple[Recipe, Recipe]]:
    """Recipes of the localizer and the segmenter, and the parameters with all that follows from these.

    Raises
    ------
    OptionError
        If a network is chosen that the method does not run, or a minimum confidence where none is known.
    WeightsError
        If a network cannot be had, or was not trained for the method.
    """
    method = parameters.method.with_defaults(networks)
    recipes = method.recipes(networks)
    if networks.engine == "auto":
        recipes = _faster_engine(recipes[0]), _faster_engine(recipes[1])
    return with_limit(replace(parameters, method=method), recipes), recipes


def with_limit(parameters: Parameters, recipes: tuple[Recipe, Recipe]) -> Parameters:
    """The parameters with the minimum confidence that suits the networks, where none is given.

    Raises
    ------
    OptionError
        If one is given and polygons of these networks, or of this method, have no confidence.
    """
    if not knows({recipe.role: recipe.sha256 for recipe in recipes}, parameters.method.name):
        if parameters.min_confidence:
            raise OptionError(
                f"min confidence {parameters.min_confidence}: polygons have a confidence with the bundled networks "
                "and --method apsam alone; leave it out"
            )
        return parameters
    return replace(parameters, min_confidence=LIKELY) if parameters.min_confidence is None else parameters


def _faster_engine(recipe: Recipe) -> Recipe:
    """The same recipe for the engine that is faster over a scene, where calls of small networks run side by side.

    It follows from the network and the device alone, so that machines of one kind have one result.
    """
    from geolabel.models import loading

    faster = worker.is_small(recipe) and recipe.device == "cpu" and recipe.precision == "fp32"
    return loading.with_engine(recipe, "onnx") if faster else recipe


def check_trained(localizer: Recipe, method: str) -> None:
    """Refuse a localizer that was not trained for a method: its map is on another scale, and points elsewhere.

    Raises
    ------
    WeightsError
        If its description names another training, or none.
    """
    from geolabel.models import loading
    from geolabel.models.checkpoint import read_info

    trained = read_info(loading.file_of(localizer)).trained.get("method")
    if trained != method:
        how = f"with --method {trained}" if trained else "in another way"
        raise WeightsError(
            f"--method {method} needs a localizer that was trained so, and {localizer.source} was trained {how}: train "
            f"one on chips (geolabel train localizer --method {method}) and give its file with --localizer, or take "
            "--method apsam"
        )


def _device_and_precision(device: str, precision: str) -> tuple[str, str]:
    try:
        from geolabel.engine import executors
    except ModuleNotFoundError:  # a machine that only trains may have no dask, and then has no cluster either
        return worker.device_and_precision(device, precision)
    return executors.where_networks_run(worker.device_and_precision, device, precision)

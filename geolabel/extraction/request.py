"""What a user asks for: how to read a scene, with which networks. Plain records that become a plan."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from geolabel.engine import worker
from geolabel.errors import OptionError, WeightsError
from geolabel.extraction.plan import DENSE, LOCALIZER_TILE, Parameters
from geolabel.masks import Filters, Selection
from geolabel.parts import LocalizerRecipe, NoSegmenterRecipe, Recipe, SegmenterRecipe


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


FLOOR = 100
"""Activation, in grey values, that every pixel of a landslide has to exceed with the bundled localizer.

Objects begin where it exceeds 120, and reach as far as the segmenter says, but not onto ground that the localizer takes
for something else: edges come from the one network, what a thing is from the other."""

LIKELY = 0.2
"""Least confidence of a landslide with the bundled networks.

Of the polygons on images for choices, 3 % of those that are right have less, and 20 % of those that are wrong; no set
of these images loses F1. A higher one leaves fewer false alarms, and misses landslides, large ones among them."""

OWN_TRAINING = ("s2c", "cism")
"""Methods whose localizer learns what no other does."""

TAU = 0.5
"""The tau of S2C's eq. 11: least stability times mean activation of a mask that counts."""


_BUNDLED_EVERYWHERE = Filters(predicted_iou=0.25, stability=0.15)


def usual_filters(segmenter: str) -> Filters:
    """What counts as an answer of a segmenter, by its name, where a grid of points asks about everything.

    The bundled one learned to outline what a box asks for, not what lies under a point, and says so: its predicted IoU
    and stability are lower than those of the official networks, which next to none of its masks would reach.
    """
    return _BUNDLED_EVERYWHERE if segmenter == "bundled" else Filters()


@dataclass(frozen=True)
class Networks:
    """Which networks run, and where."""

    localizer: str = "bundled"
    student: str | Path | None = None
    """File of a student, which needs neither localizer nor segmenter."""
    sam: str = "bundled"
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
        localizer = loading.recipe("localizer", self.localizer, device="cpu")
        segmenter = loading.recipe(
            "segmenter", self.sam, checkpoint=self.sam_checkpoint, selection=selection, device="cpu"
        )
        assert isinstance(localizer, LocalizerRecipe)
        assert isinstance(segmenter, SegmenterRecipe)
        where: dict[str, Any] = {"device": device, "precision": precision, "batch": batch}
        return (
            loading.with_engine(replace(localizer, **where), engine),
            loading.with_engine(replace(segmenter, **where), engine),
        )

    def recipes_for(self, method: str, selection: Selection = "best_iou") -> tuple[LocalizerRecipe, SegmenterRecipe]:
        """Recipes for a method, whose localizer has to be trained for it.

        Raises
        ------
        WeightsError
            If it is not.
        """
        localizer, segmenter = self.recipes(selection)
        if method in OWN_TRAINING:
            check_trained(localizer, method)
        return localizer, segmenter

    @property
    def usual_confidence(self) -> float:
        """Tau for masks of this segmenter: the paper's, but 0 for the bundled one, as in the released code.

        On landslide chips half of the bundled segmenter's masks are less stable than 0.55: times a mean activation of
        0.65, next to none of them reaches one half.
        """
        return 0.0 if self.sam == "bundled" else TAU

    @property
    def usual_floor(self) -> int:
        """Activation floor for maps of this localizer: `FLOOR` for the bundled one, whose scale is known; else none."""
        return FLOOR if self.localizer == "bundled" else 0

    def has_confidence(self, parameters: Parameters) -> bool:
        """Whether it is known how sure one may be of the polygons: those of the bundled networks, asked as by apsam."""
        bundled = self.localizer == self.sam == "bundled" and self.sam_checkpoint is None and self.student is None
        return bundled and parameters.method == "apsam"

    def settled(self, parameters: Parameters) -> Parameters:
        """The numbers of a run that follow from its networks, where they were left open or cannot be another way."""
        if self.student is not None:
            parameters = replace(parameters, method="student")
        if parameters.method in DENSE and parameters.tile_size is None:
            parameters = replace(parameters, tile_size=LOCALIZER_TILE)
        if parameters.method == "s2c" and parameters.confidence is None:
            parameters = replace(parameters, confidence=self.usual_confidence)
        if parameters.method == "apsam" and parameters.activation_floor is None:
            parameters = replace(parameters, activation_floor=self.usual_floor)
        if not self.has_confidence(parameters):
            if parameters.min_confidence:
                raise OptionError(
                    f"min confidence {parameters.min_confidence}: polygons have a confidence with the bundled networks "
                    "and --method apsam alone; leave it out"
                )
        elif parameters.min_confidence is None:
            parameters = replace(parameters, min_confidence=LIKELY)
        return parameters

    def with_localizer(self, localizer: str) -> Networks:
        """The same with another localizer."""
        return replace(self, localizer=localizer)

    def recipes_of(self, parameters: Parameters) -> tuple[Recipe, Recipe]:
        """Recipes of the localizer and the segmenter that a method needs.

        Raises
        ------
        WeightsError
            If the file of a student holds something else, or the localizer was not trained for the method.
        """
        if self.student is not None:
            from geolabel.models.checkpoint import read_info

            kind = read_info(self.student).kind
            if kind != "student":
                raise WeightsError(f"{self.student} holds a {kind}, not a student: give it with --{kind}")
            networks: Networks = replace(self, localizer=str(self.student), student=None)
            return networks.recipes_of(parameters)
        localizer: Recipe
        segmenter: Recipe
        localizer, segmenter = self.recipes_for(parameters.method, parameters.selection)
        if self.engine == "auto":
            localizer, segmenter = usual_engine(localizer), usual_engine(segmenter)
        if parameters.method in DENSE:
            segmenter = NoSegmenterRecipe()
        return localizer, segmenter


def usual_engine(recipe: Recipe) -> Recipe:
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

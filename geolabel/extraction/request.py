"""What a user asks for: how to read a scene, with which networks and method. Plain records that become a plan."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, TypeVar

import numpy as np

from geolabel.devices import Compile, check_device
from geolabel.engine import worker
from geolabel.errors import OptionError, WeightsError
from geolabel.masks import Selection
from geolabel.models.confidence import FittedConfidence, knows, load_fitted
from geolabel.models.defaults import BUNDLED, localizer_defaults
from geolabel.parsing import Measure, check_metres
from geolabel.parts import LocalizerRecipe, Recipe, SegmenterRecipe
from geolabel.prompts import Prompts
from geolabel.radiometry import parse_stretch
from geolabel.settings import check_limits
from geolabel.settings.methods import ApsamScenes

if TYPE_CHECKING:
    from geolabel.extraction.passes import MaskTable
    from geolabel.extraction.plan import Run
    from geolabel.extraction.work import Work
    from geolabel.tiles import Window
    from geolabel.types import BoolArray, UInt8Array


AnyRecipe = TypeVar("AnyRecipe", bound=Recipe)
OtherRecipe = TypeVar("OtherRecipe", bound=Recipe)
R = TypeVar("R")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reading:
    """How a scene is read.

    Raises
    ------
    OptionError
        If a pixel size is not positive, or the stretch is unknown.
    """

    bands: str | tuple[int, ...] | None = None
    """Red, green and blue, as numbers from 1, descriptions or colours; None to find them in the header."""
    nodata: float | None = None
    gsd: float | None = None
    """Metres per pixel of a scene without CRS, or of the zoom level to read of a layer of map tiles."""
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
    mask: str | Path | tuple[str | Path, ...] = ()
    """Rasters of any grid and CRS: pixels that are not zero are left out; see `geolabel.io.read.masks`."""

    def __post_init__(self) -> None:
        check_metres("gsd", self.gsd)
        check_metres("working gsd", self.working_gsd)
        parse_stretch(self.stretch)

    @property
    def masks(self) -> tuple[str | Path, ...]:
        """The masks, one or several."""
        return (self.mask,) if isinstance(self.mask, str | Path) else tuple(self.mask)

    @property
    def inputs(self) -> tuple[str | Path, ...]:
        """Files beside the scene, none of which may be an output."""
        return self.masks if self.aoi is None else (*self.masks, self.aoi)


FOLDER_FILES = {
    "localizer": "localizer.safetensors",
    "sam_checkpoint": "segmenter.safetensors",
    "confidence_model": "confidence.json",
}
"""Files of a folder of networks, by the field of `Networks` that they fill."""


@dataclass(frozen=True)
class Networks:
    """Which networks run, and where.

    Raises
    ------
    OptionError
        If the name of the device is unknown.
    """

    localizer: str | None = None
    """Name or file; None for the bundled one."""
    sam: str | None = None
    """Name, file or folder of the segmenter, or ``OWNER/NAME[@REVISION]`` of the hub; None for the bundled one."""
    sam_checkpoint: str | Path | None = None
    confidence_model: str | Path | None = None
    """File of the confidence of polygons, fitted to these networks; None for the one of the bundled networks."""
    device: str = "auto"
    precision: str = "auto"
    engine: Literal["auto", "torch", "onnx"] = "auto"
    """``onnx`` is ONNX Runtime; ``auto`` is that for the bundled networks, and what was adapted from them, over a scene
    on a CPU in fp32, and torch elsewhere."""
    batch: int | Literal["auto"] | None = None
    """Images per network call; None for 1 on the CPU and 8 on a GPU, ``auto`` for as many as its memory takes."""
    compile: Compile | None = None
    """Whether torch.compile makes the segmenter's encoder; ``auto`` does so on a GPU over large scenes. None is
    ``off``."""

    def __post_init__(self) -> None:
        check_device(self.device)

    @classmethod
    def of(cls, given: Networks | str | Path | None) -> Networks:
        """The networks that a user names: this record, a folder of them (see `from_folder`), or None for the bundled.

        Raises
        ------
        OptionError
            If it is none of these.
        """
        if isinstance(given, str | Path):
            return cls.from_folder(given)
        if given is not None and not isinstance(given, Networks):
            raise OptionError(f"networks {given!r}: give geolabel.Networks(...), or a folder that geolabel adapt wrote")
        return given or cls()

    @classmethod
    def from_folder(cls, folder: str | Path, **where: Any) -> Self:
        """The networks of a folder, as `geolabel.adapt` writes it.

        Parameters
        ----------
        folder
            Holds ``localizer.safetensors``, ``segmenter.safetensors`` and ``confidence.json``, or some of them; what is
            missing is that of the bundled networks.
        **where
            Fields of this record that say where networks run: device, precision, engine, batch, compile.

        Raises
        ------
        WeightsError
            If the folder holds no network.
        """
        files = {role: Path(folder) / name for role, name in FOLDER_FILES.items()}
        found: dict[str, Any] = {role: str(path) for role, path in files.items() if path.is_file()}
        if not found.keys() - {"confidence_model"}:
            raise WeightsError(
                f"{folder} holds no network, neither {FOLDER_FILES['localizer']} nor "
                f"{FOLDER_FILES['sam_checkpoint']}: give a folder that geolabel adapt wrote"
            )
        return replace(cls(**where), **found)

    def recipes(self, selection: Selection = "best_iou") -> tuple[LocalizerRecipe, SegmenterRecipe]:
        """Recipes of the localizer and the segmenter."""
        from geolabel.models import loading

        # Decided where the networks will run: the client of a cluster may have no GPU.
        device, precision = _where_networks_run(worker.device_and_precision, self.device, self.precision)
        batch = self.batch if isinstance(self.batch, int) else loading.default_batch(device)
        engine = "torch" if self.engine == "auto" else self.engine
        localizer = loading.recipe("localizer", self.localizer or BUNDLED, device="cpu")
        segmenter = loading.recipe(
            "segmenter", self.sam or BUNDLED, checkpoint=self.sam_checkpoint, selection=selection, device="cpu"
        )
        assert isinstance(localizer, LocalizerRecipe)
        assert isinstance(segmenter, SegmenterRecipe)
        where: dict[str, Any] = {"device": device, "precision": precision, "batch": batch}
        if self.compile == "on":
            from geolabel.models import tuning

            _where_networks_run(tuning.check_compiler, device)
        asked = replace(segmenter, compile=self.compile or "off", **where)
        return self.fitted(loading.with_engine(replace(localizer, **where), engine), loading.with_engine(asked, engine))

    def fitted(self, localizer: AnyRecipe, segmenter: OtherRecipe) -> tuple[AnyRecipe, OtherRecipe]:
        """The same recipes, where the batch is ``auto`` with as many images as their GPU takes with both in memory."""
        if self.batch != "auto":
            return localizer, segmenter
        one, other = _largest_batch(localizer, segmenter), _largest_batch(segmenter, localizer)
        return replace(localizer, batch=one), replace(segmenter, batch=other)

    def for_images(self, selection: Selection = "best_iou") -> tuple[LocalizerRecipe, SegmenterRecipe]:
        """Recipes for folders of images; see `fastest`."""
        from geolabel.models.tuning import uncompiled

        localizer, segmenter = self.recipes(selection)
        return self.fastest(localizer), self.fastest(uncompiled(segmenter))

    def fastest(self, recipe: AnyRecipe) -> AnyRecipe:
        """The same recipe for the engine that is faster, where calls of small networks run side by side.

        An engine that was chosen stays. Else it follows from the network and the device alone, so that machines of one
        kind have one result.
        """
        from geolabel.models import loading

        compiles = isinstance(recipe, SegmenterRecipe) and recipe.compile == "on"
        fits = self.engine == "auto" and recipe.device == "cpu" and recipe.precision == "fp32" and not compiles
        faster = fits and (worker.is_small(recipe) or loading.is_adapted(recipe))
        return loading.with_engine(recipe, "onnx") if faster else recipe

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


@dataclass(frozen=True)
class SceneMethod:
    """A method over scenes: a frozen record of its settings, which knows what to do with them.

    The fields here are what the passes read. A method that has one of them as its option inherits it from its settings,
    too; in all others it keeps a value that changes nothing.

    Raises
    ------
    OptionError
        If a number is out of its range.
    """

    name: ClassVar[str]
    gate: float = field(default=0.5, init=False)
    """Minimum class probability of an activation that is followed up, in some window of the localizer's size."""
    activation_threshold: int = field(default=120, init=False)
    """Grey value 0..255 that activation has to exceed (APSAM, eq. 2)."""
    activation_floor: int | None = field(default=0, init=False)
    """Grey value 0..255 that the activation of a mask's pixels has to exceed."""
    prompts: Literal["box", "point", "both"] = field(default="both", init=False)
    """What the segmenter is given of each object."""
    selection: Selection = field(default="best_iou", init=False)
    """Which of the segmenter's candidates answers a prompt."""
    min_quality: float = field(default=0.0, init=False)
    """Minimum predicted IoU x stability of a mask that takes part in the mosaic; the papers leave out none."""

    def __post_init__(self) -> None:
        check_limits(self)

    @property
    def dense(self) -> bool:
        """Whether the localizer's maps are the scores, and no segmenter is asked."""
        return False

    @classmethod
    def options(cls) -> tuple[str, ...]:
        """Names of the settings that can be chosen."""
        return tuple(sorted(one.name for one in fields(cls) if one.init))

    def as_dict(self) -> dict[str, Any]:
        """Plain values for provenance."""
        values = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(self).items()}
        return {"method": self.name} | values

    def require(self) -> None:
        """Make sure that what the method needs is installed: asked before a scene is opened.

        Raises
        ------
        OptionError
            If an extra is missing.
        """

    def with_defaults(self, networks: Networks) -> Self:  # noqa: ARG002
        """The same settings, with what suits the networks where one is None."""
        return self

    def recipes(self, networks: Networks) -> tuple[Recipe, Recipe]:
        """Recipes of the localizer and the segmenter.

        Raises
        ------
        OptionError
            If a network is chosen that the method does not run.
        WeightsError
            If a network cannot be had, or was not trained for the method.
        """
        return networks.recipes(self.selection)

    def find_prompts(self, work: Work) -> Prompts | None:  # noqa: ARG002
        """Prompts of the method's own, in pixels of the working grid; None for box and centroid of every region."""
        return None

    def ask(self, work: Work) -> tuple[Prompts, list[MaskTable]] | None:  # noqa: ARG002
        """Prompts and masks of a method that asks in a way of its own; None for one that has prompts."""
        return None

    def sample(self, height: int, width: int) -> Prompts:
        """What a tile of that size may be asked, to time it: one box."""
        return Prompts.build(boxes=np.asarray([[1.0, 1.0, max(2, width - 1), max(2, height - 1)]]))

    def counts(self, work: Work, masks: Sequence[MaskTable]) -> list[BoolArray]:  # noqa: ARG002
        """Which masks of every table take part in the mosaic."""
        return [np.ones(len(table.windows), bool) for table in masks]

    def map_of(self, run: Run, window: Window, class_id: int) -> UInt8Array:
        """(H, W) grey values 0..255 of a class in a window, which are its scores; called of dense methods alone."""
        raise NotImplementedError


@dataclass(frozen=True)
class ContourMethod(ApsamScenes, SceneMethod):
    """APSAM over scenes, and what is done unless another method is chosen: box and centroid of every region.

    The activation floor is that of the localizer, see `geolabel.models.defaults`; the published method has none, 0.
    """

    name = "apsam"

    def with_defaults(self, networks: Networks) -> Self:
        """With the activation floor of the localizer."""
        if self.activation_floor is not None:
            return self
        return replace(self, activation_floor=localizer_defaults(networks.localizer).activation_floor)


LIKELY = 0.2
"""Minimum confidence of a landslide with the bundled networks.

Of the polygons on images for choices, 3 % of those that are right have less, and 20 % of those that are wrong; no set
of these images loses F1. A higher one leaves fewer false alarms, and misses landslides, large ones among them."""


@dataclass(frozen=True)
class Parameters:
    """Every number and choice that the polygons depend on, beside the scene and the networks."""

    method: SceneMethod = field(default_factory=ContourMethod)
    """What is asked of the networks, with the settings of its own."""
    class_names: tuple[str, ...] = ()
    """Classes to find, of those that the localizer or the student knows; none for all. The others are as good as not
    known: a pixel belongs to the one of these classes that scores highest."""
    tile_size: int | None = None
    """Side in pixels of the segmenter's windows; None for the network's own."""
    overlap: int | None = None
    """Pixels that neighbouring tiles share; None for a quarter of the tile."""
    block_size: int = 2048
    """Side in pixels of the blocks that the mosaic is written in. No result depends on it."""
    score_threshold: float = 0.5
    """Minimum score of a landslide's pixels in the mosaic."""
    min_confidence: float | None = None
    """Minimum confidence of a landslide; what is less sure is a candidate. None for
    `LIKELY` where the networks have a confidence, and for no limit elsewhere."""
    min_area: Measure = field(default_factory=lambda: Measure(50, "px"))
    max_hole: Measure = field(default_factory=lambda: Measure(50, "px"))
    split: float | None = None
    """Cut landslides where they are narrower than this share of the narrower of both parts, 0..1; None for not."""
    simplify: Measure = field(default_factory=lambda: Measure(0.75, "px"))
    smooth: Measure = field(default_factory=lambda: Measure(0, "px"))
    on_error: Literal["fail", "skip"] = "fail"
    threads: int | None = None
    """Threads per network call; None for as many as torch takes."""

    def __post_init__(self) -> None:
        limits = {
            "score threshold": (self.score_threshold, 0, 1),
            "min confidence": (self.min_confidence or 0, 0, 1),
            "split": (self.split or 0, 0, 1),
        }
        for name, (value, low, high) in limits.items():
            if not low <= value <= high:
                raise OptionError(f"{name} {value}: it has to be between {low} and {high}")
        for name in ("min_area", "max_hole", "simplify", "smooth"):
            Measure.check(name, getattr(self, name))
        if self.tile_size is not None and self.tile_size < 32:
            raise OptionError(f"tile size {self.tile_size} px: a network sees nothing below 32 px")
        if self.overlap is not None and self.tile_size is not None and not 0 <= self.overlap < self.tile_size:
            raise OptionError(
                f"overlap {self.overlap} px does not fit a tile size of {self.tile_size} px: give an overlap from 0 to "
                f"{self.tile_size - 1} px"
            )

    def as_dict(self) -> dict[str, Any]:
        """Plain values for provenance, those of the method among them."""
        plain = {name: str(value) if isinstance(value, Measure) else value for name, value in vars(self).items()}
        del plain["class_names"]  # the plan says which classes these are
        return plain | self.method.as_dict()


def decide(
    networks: Networks, parameters: Parameters
) -> tuple[Parameters, tuple[Recipe, Recipe], FittedConfidence | None]:
    """The parameters with all that follows from the networks, recipes of localizer and segmenter, and the confidence.

    The confidence is None for the one that comes with geolabel.

    Raises
    ------
    OptionError
        If a network is chosen that the method does not run, or a minimum confidence where none is known.
    WeightsError
        If a network cannot be had, or was not trained for the method.
    """
    method = parameters.method.with_defaults(networks)
    recipes = method.recipes(networks)
    recipes = networks.fastest(recipes[0]), networks.fastest(recipes[1])
    confidence = None
    if networks.confidence_model is not None:
        confidence = load_fitted(Path(networks.confidence_model), {recipe.role: recipe.sha256 for recipe in recipes})
    return with_limit(replace(parameters, method=method), recipes, confidence), recipes, confidence


def with_limit(
    parameters: Parameters, recipes: tuple[Recipe, Recipe], confidence: FittedConfidence | None = None
) -> Parameters:
    """The parameters with the minimum confidence that suits the networks, where none is given.

    Raises
    ------
    OptionError
        If one is given and polygons of these networks, or of this method, have no confidence.
    """
    if not knows({recipe.role: recipe.sha256 for recipe in recipes}, parameters.method.name, confidence):
        if parameters.min_confidence:
            raise OptionError(
                f"min confidence {parameters.min_confidence}: polygons have a confidence with the bundled networks "
                "and --method apsam alone; leave it out, or give that of these networks with --confidence-model"
            )
        return parameters
    return replace(parameters, min_confidence=LIKELY) if parameters.min_confidence is None else parameters


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


def _where_networks_run(function: Callable[..., R], *arguments: Any) -> R:
    try:
        from geolabel.engine import executors
    except ModuleNotFoundError:  # a machine that only trains may have no dask, and then has no cluster either
        return function(*arguments)
    return executors.where_networks_run(function, *arguments)


@cache
def _largest_batch(recipe: Recipe, beside: Recipe) -> int:
    # Once in a process: the free memory may be other each time, and a run is of one batch.
    from geolabel.models import tuning

    batch = _where_networks_run(tuning.largest_batch, recipe, beside)
    log.info("--batch auto: the %s takes %d images at a time on %s", recipe.role, batch, recipe.device)
    return batch

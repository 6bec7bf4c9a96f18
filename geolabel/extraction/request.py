"""The user's request: how to read a scene, with which networks and method. Plain records that become a plan."""

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
    """Red, green and blue, as one-based numbers, descriptions or colours; None to find them in the header."""
    nodata: float | None = None
    gsd: float | None = None
    """Metres per pixel of a scene without CRS, or of the zoom level to read of a layer of map tiles."""
    aoi: str | Path | None = None
    """A vector file; only the area of its polygons is processed."""
    aoi_layer: str | None = None
    """Its layer; None for the only one with polygons."""
    bounds: tuple[float, float, float, float] | None = None
    """Left, bottom, right, top in the scene's CRS; only this part is processed."""
    working_gsd: float | None = None
    """Metres per pixel of the working grid; None for the scene's own within the networks' range."""
    stretch: str = "p2-98"
    """Radiometric stretch of the whole scene: percentiles, two values, or ``none``."""
    time: str | None = None
    """Which of several times of a file or dataset to read: an ISO 8601 date or date and time, or a prefix of one that
    is unique."""
    asset: str | None = None
    """Asset of STAC items to read; None for the only image."""
    mask: str | Path | tuple[str | Path, ...] = ()
    """Rasters on any grid and in any CRS whose non-zero pixels are excluded; see `geolabel.io.read.masks`."""

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
"""Files of a folder of networks, by the field of `Networks` that they set."""


@dataclass(frozen=True)
class Networks:
    """The networks to run, and where.

    Raises
    ------
    OptionError
        If the device name is invalid.
    """

    localizer: str | None = None
    """Name or file; None for the bundled one."""
    sam: str | None = None
    """Name, file or folder of the segmenter, or ``OWNER/NAME[@REVISION]`` of the hub; None for the bundled one."""
    sam_checkpoint: str | Path | None = None
    confidence_model: str | Path | None = None
    """File with the confidence model of these networks; None for that of the bundled networks."""
    device: str = "auto"
    precision: str = "auto"
    engine: Literal["auto", "torch", "onnx"] = "auto"
    """``onnx`` is ONNX Runtime; ``auto`` selects it for the bundled networks, and networks adapted from them, for
    scenes on a CPU in fp32, and torch otherwise."""
    batch: int | Literal["auto"] | None = None
    """Images per network call; None for 1 on a CPU and 8 on a GPU, ``auto`` for as many as fit in its memory."""
    compile: Compile | None = None
    """Whether to compile the segmenter's encoder with torch.compile; ``auto`` does so on a GPU for large scenes. None
    is ``off``."""

    def __post_init__(self) -> None:
        check_device(self.device)

    @classmethod
    def of(cls, given: Networks | str | Path | None) -> Networks:
        """Networks given as this record, as a folder (see `from_folder`), or as None for the bundled ones.

        Raises
        ------
        OptionError
            If it is none of these.
        """
        if isinstance(given, str | Path):
            return cls.from_folder(given)
        if given is not None and not isinstance(given, Networks):
            raise OptionError(f"networks {given!r}: give geolabel.Networks(...), or a folder written by geolabel adapt")
        return given or cls()

    @classmethod
    def from_folder(cls, folder: str | Path, **where: Any) -> Self:
        """The networks of a folder written by `geolabel.adapt`.

        Parameters
        ----------
        folder
            Contains ``localizer.safetensors``, ``segmenter.safetensors`` and ``confidence.json``, or some of them;
            missing ones are those of the bundled networks.
        **where
            Fields of this record for where networks run: device, precision, engine, batch, compile.

        Raises
        ------
        WeightsError
            If the folder has no networks.
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

        # Resolved where the networks will run: the client of a cluster may have no GPU.
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

    def fitted(
        self, localizer: AnyRecipe, segmenter: OtherRecipe, *, alone: bool = False
    ) -> tuple[AnyRecipe, OtherRecipe]:
        """The same recipes, with batch ``auto`` resolved to the number of images that fit on their GPU.

        With `alone` the localizer runs without the segmenter, which is then not loaded.
        """
        if self.batch != "auto":
            return localizer, segmenter
        one = replace(localizer, batch=_largest_batch(localizer, None if alone else segmenter))
        return one, segmenter if alone else replace(segmenter, batch=_largest_batch(segmenter, localizer))

    def unfitted(self) -> Networks:
        """The same networks, with batch ``auto`` left to a later `fitted`."""
        return replace(self, batch=None) if self.batch == "auto" else self

    def for_images(self, selection: Selection = "best_iou") -> tuple[LocalizerRecipe, SegmenterRecipe]:
        """Recipes for folders of images; see `fastest`."""
        from geolabel.models.tuning import uncompiled

        localizer, segmenter = self.recipes(selection)
        return self.fastest(localizer), self.fastest(uncompiled(segmenter))

    def fastest(self, recipe: AnyRecipe) -> AnyRecipe:
        """The same recipe with the engine that is faster for parallel calls of small networks.

        An explicit engine is kept. Otherwise it depends on network and device only, so machines of one kind give the
        same result.
        """
        from geolabel.models import loading

        compiles = isinstance(recipe, SegmenterRecipe) and recipe.compile == "on"
        fits = self.engine == "auto" and recipe.device == "cpu" and recipe.precision == "fp32" and not compiles
        faster = fits and (worker.is_small(recipe) or loading.is_adapted(recipe))
        return loading.with_engine(recipe, "onnx") if faster else recipe

    def refuse(self, why: str, *names: str) -> None:
        """Refuse networks that were chosen for a method that does not use them.

        Parameters
        ----------
        why
            Reason, for the message.
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
    """A method over scenes: a frozen record of its settings, with its implementation.

    The fields here are read by the passes. A method with one of them as an option also inherits it from its settings;
    in others the field keeps a value without effect.

    Raises
    ------
    OptionError
        If a number is out of its range.
    """

    name: ClassVar[str]
    gate: float = field(default=0.5, init=False)
    """Minimum class probability, in some window of the localizer's size, of activation that is used."""
    activation_threshold: int = field(default=120, init=False)
    """Grey value 0..255 that activation must exceed (APSAM, eq. 2)."""
    activation_floor: int | None = field(default=0, init=False)
    """Grey value 0..255 that the activation of a mask's pixels must exceed."""
    prompts: Literal["box", "point", "both"] = field(default="both", init=False)
    """Form of the prompts of each object."""
    selection: Selection = field(default="best_iou", init=False)
    """Which of the segmenter's candidates answers a prompt."""
    min_quality: float = field(default=0.0, init=False)
    """Minimum predicted IoU x stability of masks in the mosaic; the papers have no minimum."""

    def __post_init__(self) -> None:
        check_limits(self)

    @property
    def dense(self) -> bool:
        """Whether the localizer's maps are the scores, without a segmenter."""
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
        """Check that the method's optional dependencies are installed, before a scene is opened.

        Raises
        ------
        OptionError
            If an extra is missing.
        """

    def with_defaults(self, networks: Networks) -> Self:  # noqa: ARG002
        """The same settings with defaults of the networks for those that are None."""
        return self

    def recipes(self, networks: Networks) -> tuple[Recipe, Recipe]:
        """Recipes of the localizer and the segmenter.

        Raises
        ------
        OptionError
            If a network is chosen that the method does not use.
        WeightsError
            If a network cannot be loaded or downloaded, or was not trained for the method.
        """
        return networks.recipes(self.selection)

    def find_prompts(self, work: Work) -> Prompts | None:  # noqa: ARG002
        """The method's own prompts, in pixels of the working grid; None for box and centroid of every region."""
        return None

    def ask(self, work: Work) -> tuple[Prompts, list[MaskTable]] | None:  # noqa: ARG002
        """Prompts and masks of a method with its own way of segmenting; None for others."""
        return None

    def sample(self, height: int, width: int) -> Prompts:
        """Prompts to time a tile of that size: one box."""
        return Prompts.build(boxes=np.asarray([[1.0, 1.0, max(2, width - 1), max(2, height - 1)]]))

    def counts(self, work: Work, masks: Sequence[MaskTable]) -> list[BoolArray]:  # noqa: ARG002
        """Which masks of every table are used in the mosaic."""
        return [np.ones(len(table.windows), bool) for table in masks]

    def map_of(self, run: Run, window: Window, class_id: int) -> UInt8Array:
        """(H, W) grey values 0..255 of a class in a window, used as scores; called for dense methods only."""
        raise NotImplementedError


@dataclass(frozen=True)
class ContourMethod(ApsamScenes, SceneMethod):
    """APSAM over scenes, the default: box and centroid of every region.

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

On images reserved for such choices, 3 % of the correct polygons have less, and 20 % of the wrong ones; F1 does not
decrease on any set. A higher minimum leaves fewer false alarms but misses landslides, including large ones."""


@dataclass(frozen=True)
class Parameters:
    """All numbers and choices that polygons depend on, besides the scene and the networks."""

    method: SceneMethod = field(default_factory=ContourMethod)
    """The method, with its settings."""
    class_names: tuple[str, ...] = ()
    """Classes to find, of those that the localizer or student knows; none for all. Other classes are ignored: a pixel
    belongs to the one of these classes with the highest score."""
    tile_size: int | None = None
    """Side in pixels of the segmenter's windows; None for the network's own."""
    overlap: int | None = None
    """Overlap of neighbouring tiles in pixels; None for a quarter of the tile."""
    block_size: int = 2048
    """Side in pixels of the blocks of the mosaic. It does not affect the result."""
    score_threshold: float = 0.5
    """Minimum score of a landslide's pixels in the mosaic."""
    min_confidence: float | None = None
    """Minimum confidence of a landslide; polygons below are candidates. None for
    `LIKELY` if the networks have a confidence, otherwise for no minimum."""
    min_area: Measure = field(default_factory=lambda: Measure(50, "px"))
    max_hole: Measure = field(default_factory=lambda: Measure(50, "px"))
    split: float | None = None
    """Split landslides at necks narrower than this share of the narrower part, 0..1; None for no splitting."""
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
                raise OptionError(f"{name} {value}: it must be between {low} and {high}")
        for name in ("min_area", "max_hole", "simplify", "smooth"):
            Measure.check(name, getattr(self, name))
        if self.tile_size is not None and self.tile_size < 32:
            raise OptionError(f"tile size {self.tile_size} px: networks need at least 32 px")
        if self.overlap is not None and self.tile_size is not None and not 0 <= self.overlap < self.tile_size:
            raise OptionError(
                f"overlap {self.overlap} px does not fit a tile size of {self.tile_size} px: give an overlap from 0 to "
                f"{self.tile_size - 1} px"
            )

    def as_dict(self) -> dict[str, Any]:
        """Plain values for provenance, including those of the method."""
        plain = {name: str(value) if isinstance(value, Measure) else value for name, value in vars(self).items()}
        del plain["class_names"]  # recorded in the plan
        return plain | self.method.as_dict()


def decide(
    networks: Networks, parameters: Parameters
) -> tuple[Parameters, tuple[Recipe, Recipe], FittedConfidence | None]:
    """The parameters with all defaults of the networks, recipes of localizer and segmenter, and the confidence.

    The confidence is None for the bundled one.

    Raises
    ------
    OptionError
        If a network is chosen that the method does not use, or a minimum confidence without a confidence model.
    WeightsError
        If a network cannot be loaded or downloaded, or was not trained for the method.
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
    """The parameters with the default minimum confidence of the networks, unless given.

    Raises
    ------
    OptionError
        If one is given, but polygons of these networks, or of this method, have no confidence.
    """
    if not knows({recipe.role: recipe.sha256 for recipe in recipes}, parameters.method.name, confidence):
        if parameters.min_confidence:
            raise OptionError(
                f"min confidence {parameters.min_confidence}: only polygons of the bundled networks and --method "
                "apsam have a confidence; omit it, or give that of these networks with --confidence-model"
            )
        return parameters
    return replace(parameters, min_confidence=LIKELY) if parameters.min_confidence is None else parameters


def check_trained(localizer: Recipe, method: str) -> None:
    """Refuse a localizer that was not trained for a method: its map has another scale and meaning.

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
            f"--method {method} needs a localizer that was trained for it, but {localizer.source} was trained {how}: "
            f"train one on chips (geolabel train localizer --method {method}) and give it with --localizer, or use "
            "--method apsam"
        )


def _where_networks_run(function: Callable[..., R], *arguments: Any) -> R:
    try:
        from geolabel.engine import executors
    except ModuleNotFoundError:  # a machine that only trains may have no dask, and thus no cluster
        return function(*arguments)
    return executors.where_networks_run(function, *arguments)


@cache
def _largest_batch(recipe: Recipe, beside: Recipe | None) -> int:
    # Once per process: the free memory may vary, and a run uses one batch size.
    from geolabel.models import tuning

    batch = _where_networks_run(tuning.largest_batch, recipe, beside)
    log.info("--batch auto: the %s takes %d images at a time on %s", recipe.role, batch, recipe.device)
    return batch

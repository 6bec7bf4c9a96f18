"""Options that several commands share, each named once, and how a command talks to the terminal."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from .commands import option

if TYPE_CHECKING:
    from geolabel.run.plan import Parameters
    from geolabel.run.request import Networks, Reading

F = TypeVar("F", bound=Callable[..., Any])


@dataclass
class Session:
    """What ``-v``, ``-q`` and ``--debug`` decided for one call of the command line."""

    debug: bool = False
    quiet: bool = False
    verbose: int = 0

    def level(self) -> int:
        """Logging level."""
        if self.debug or self.verbose > 1:
            return logging.DEBUG
        if self.quiet:
            return logging.ERROR
        return logging.INFO if self.verbose else logging.WARNING


def _remember(name: str) -> Callable[[click.Context, click.Parameter, Any], None]:
    def callback(ctx: click.Context, _: click.Parameter, value: Any) -> None:
        session = ctx.ensure_object(Session)
        if value:
            setattr(session, name, value)
        _configure_logging(session)

    return callback


def _configure_logging(session: Session) -> None:
    root = logging.getLogger("geolabel")
    root.setLevel(session.level())
    if not root.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
        root.addHandler(handler)


def terminal(command: F) -> F:
    """Add ``-v``, ``-q`` and ``--debug``."""
    for decorate in (
        option(
            "--debug",
            group="messages",
            rare=True,
            is_flag=True,
            expose_value=False,
            callback=_remember("debug"),
            help="Show tracebacks and every log line.",
        ),
        option(
            "-q",
            "--quiet",
            group="messages",
            is_flag=True,
            expose_value=False,
            callback=_remember("quiet"),
            help="No progress, no warnings.",
        ),
        option(
            "-v",
            "--verbose",
            group="messages",
            count=True,
            expose_value=False,
            callback=_remember("verbose"),
            help="Say what happens; twice for more.",
        ),
    ):
        command = decorate(command)
    return command


class MeasureType(click.ParamType):  # type: ignore[type-arg]
    """A length or an area with its unit, such as 2px, 1.5m or 400m2."""

    name = "measure"

    def __init__(self, *units: str) -> None:
        self.units = units

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:  # noqa: ARG002
        """Show the units in the help."""
        return "|".join(f"N{unit}" for unit in self.units)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse the text; a bare number is an error that names the units."""
        from geolabel.errors import OptionError
        from geolabel.units import Measure

        if isinstance(value, Measure):
            return value
        try:
            return Measure.parse(value, units=self.units)
        except OptionError as error:
            self.fail(str(error), param, ctx)


@dataclass(frozen=True)
class Request:
    """The shared options of a run, as the library takes them."""

    reading: Reading
    networks: Networks
    parameters: Parameters

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Request:
        """Sort the options of a command into the library's records."""
        from geolabel.errors import OptionError
        from geolabel.run.plan import Parameters
        from geolabel.run.request import Networks, Reading

        def pick(record: type) -> dict[str, Any]:
            names = {field.name for field in fields(record)}
            return {name: value for name, value in given.items() if name in names and value is not None}

        bounds = given["bounds"]
        reading = pick(Reading) | ({"bounds": parse_bounds(bounds)} if bounds else {})
        networks, parameters = Networks(**pick(Networks)), pick(Parameters)
        if given.get("method") == "diffuprompter":
            from geolabel.run.grounded import DEFAULTS, grounded_networks

            networks, parameters = grounded_networks(networks, given), DEFAULTS | parameters
        elif foreign := [name for name in GROUNDING if given.get(name) is not None]:
            else_where = "; geolabel label takes it with cism too, for chips" if foreign[0] == "crf" else ""
            raise OptionError(f"--{foreign[0]} is an option of --method diffuprompter{else_where}")
        elif given.get("method") == "alps":
            from geolabel.run.clustered import ClusteredNetworks

            networks = ClusteredNetworks.of(networks, given["clusters"], given["class_name"])
        return cls(Reading(**reading), networks, Parameters(**parameters))


def parse_bounds(text: str) -> tuple[float, float, float, float]:
    """Read four numbers."""
    from geolabel.errors import OptionError

    try:
        left, bottom, right, top = (float(part) for part in text.replace(",", " ").split())
    except ValueError:
        raise OptionError(f"bounds {text!r}: give four numbers, LEFT,BOTTOM,RIGHT,TOP in the scene's CRS") from None
    if not (left < right and bottom < top):
        raise OptionError(f"bounds {text!r} enclose nothing: LEFT has to be less than RIGHT and BOTTOM than TOP")
    return left, bottom, right, top


def numbers(kind: Callable[[str], Any]) -> Callable[[click.Context, click.Parameter, str], tuple[Any, ...]]:
    """Return a callback that reads numbers with commas between them, each once."""

    def read(ctx: click.Context, param: click.Parameter, value: str) -> tuple[Any, ...]:
        try:
            return tuple(dict.fromkeys(kind(part) for part in value.split(",")))
        except ValueError:
            raise click.BadParameter(f"{value!r}: give numbers with commas between them", ctx, param) from None

    return read


asset = option(
    "--asset",
    group="input",
    rare=True,
    metavar="NAME",
    help="Which asset of STAC items is the scene, where that is not clear.",
)
overwrite = option("--overwrite", group="output", is_flag=True, help="Replace the output if it exists.")
as_json = option("--json", "as_json", group="output", is_flag=True, help="Print the result as JSON.")


def run_options(command: F) -> F:
    """Add the options that say where the records of a run are kept, and for how long."""
    for decorate in (
        option("--keep", group="machine", rare=True, is_flag=True, help="Keep the records when the run has succeeded."),
        option(
            "--run-dir",
            group="machine",
            rare=True,
            metavar="FOLDER|URL",
            help="Where the records are kept from which an interrupted run goes on; all workers have to see "
            "it. Default: a folder beside the output.",
        ),
    ):
        command = decorate(command)
    return command


def scene_options(command: F) -> F:
    """Add the options that say how a scene is read, and which part of it."""
    for decorate in (
        option(
            "--bounds",
            group="input",
            type=str,
            metavar="LEFT,BOTTOM,RIGHT,TOP",
            help="Work on this rectangle only, in the scene's CRS.",
        ),
        option(
            "--aoi", group="input", type=click.Path(dir_okay=False), help="Work inside the polygons of this file only."
        ),
    ):
        command = decorate(command)
    return reading_options(command)


def reading_options(command: F) -> F:
    """Add the options that say how a scene is read."""
    for decorate in (
        option(
            "--stretch",
            group="input",
            rare=True,
            default="p2-98",
            show_default=True,
            help="Radiometric stretch of the whole scene: pLOW-HIGH percentiles, LOW,HIGH values, or none.",
        ),
        option(
            "--working-gsd",
            group="input",
            rare=True,
            type=float,
            metavar="METRES",
            help="Pixel size to work at; the default is the scene's own, within the networks' range.",
        ),
        option(
            "--gsd",
            group="input",
            type=float,
            metavar="METRES",
            help="Pixel size of a scene without CRS, such as a plain PNG.",
        ),
        option(
            "--nodata",
            group="input",
            type=float,
            help="Value that marks pixels without data, in place of the file's own.",
        ),
        option(
            "-b", "--bands", group="input", help="Red, green and blue: band numbers (3,2,1), descriptions or colours."
        ),
    ):
        command = decorate(command)
    return command


score_threshold = option(
    "--score-threshold",
    group="sensitivity",
    type=click.FloatRange(0, 1),
    default=0.5,
    show_default=True,
    help="Minimum score of a landslide's pixels.",
)

min_confidence = option(
    "--min-confidence",
    group="sensitivity",
    type=click.FloatRange(0, 1),
    help="Minimum confidence of a landslide; what is less sure goes to the layer candidates. "
    "What has no confidence counts, as after --prompts-from. Default: 0.2 with the bundled "
    "networks; others have no confidence.",
)


CLUSTERING_OPTIONS: tuple[Callable[[Any], Any], ...] = (
    option(
        "--clusters",
        group="method",
        metavar="K|auto|FILE",
        help="alps: how many clusters, auto to find out, or clusters that were made before. Default: auto.",
    ),
    option(
        "--max-share",
        group="sensitivity",
        type=click.FloatRange(0, 1, min_open=True),
        help="alps: leave out what covers more of an image, as background; a landslide that fills a chip goes "
        "with it. Default: 0.3; 0.7 of the bundled network, whose tiles are small.",
    ),
    option(
        "--points-per-side",
        group="method",
        type=click.IntRange(min=1),
        help="alps: points of the grid along each side of an image. Default: 32.",
    ),
    option(
        "--predicted-iou",
        group="sensitivity",
        type=click.FloatRange(0, 1),
        help="alps: predicted IoU that a mask has to exceed. Default: 0.88, less for the bundled network.",
    ),
    option(
        "--stability",
        group="sensitivity",
        type=click.FloatRange(0, 1),
        help="alps: minimum stability of a mask. Default: 0.95, less for the bundled network.",
    ),
    option(
        "--passes",
        group="method",
        rare=True,
        type=click.IntRange(min=1),
        help="alps: how often k-means sees all masks. Default: 3.",
    ),
    option(
        "--normalised",
        group="method",
        rare=True,
        is_flag=True,
        default=None,
        help="alps: cluster the directions of features, whatever their lengths.",
    ),
)
"""How ALPS finds objects and clusters them; None is the method's own default."""

GROUNDING_OPTIONS: tuple[Callable[[Any], Any], ...] = (
    option(
        "--classes",
        group="method",
        rare=True,
        metavar="NAME[/SYNONYM...],...",
        help="diffuprompter: what to look for, in words, such as landslide/mudslide,airplane. Default: landslide.",
    ),
    option(
        "--diffusion",
        group="method",
        rare=True,
        metavar="FOLDER|OWNER/NAME",
        help="diffuprompter: a Stable Diffusion 1.x, from a folder or from the Hugging Face hub. Default: "
        "stable-diffusion-v1-5/stable-diffusion-v1-5, 4 GB.",
    ),
    option(
        "--template",
        group="method",
        rare=True,
        help="diffuprompter: the text that the class stands in. Default: Photo of a {}.",
    ),
    option(
        "--timestep",
        group="method",
        rare=True,
        type=click.IntRange(min=0),
        help="diffuprompter: step of the noise schedule that noise is added at, of 1000. Default: 40.",
    ),
    option(
        "--draws",
        group="method",
        rare=True,
        type=click.IntRange(min=1),
        help="diffuprompter: maps of independent noise that are averaged. Default: 50.",
    ),
    option(
        "--crf",
        group="method",
        rare=True,
        is_flag=True,
        default=None,
        help="diffuprompter, and cism where chips are labelled: draw the maps along the edges of the image "
        "with a dense CRF.",
    ),
)
"""What a diffusion network is asked; None is the method's own default."""

GROUNDING = ("classes", "diffusion", "template", "timestep", "draws", "crf")
"""Names of these."""


def prediction_options(command: F) -> F:
    """Add the options that lead from the scene to the mosaic of scores."""
    for decorate in (
        *reversed(GROUNDING_OPTIONS),
        option(
            "--on-error",
            group="machine",
            type=click.Choice(["fail", "skip"]),
            default="fail",
            show_default=True,
            help="What a tile that cannot be read does: end the run, or leave a gap and exit code 3.",
        ),
        option(
            "--min-quality",
            group="sensitivity",
            rare=True,
            type=click.FloatRange(0, 1),
            default=0.0,
            show_default=True,
            help="Minimum predicted IoU x stability of a mask that counts.",
        ),
        option(
            "--activation-threshold",
            group="sensitivity",
            rare=True,
            type=click.IntRange(0, 255),
            help="Grey value that the activation has to exceed. Default: 120; 102 with diffuprompter.",
        ),
        option(
            "--activation-floor",
            group="sensitivity",
            rare=True,
            type=click.IntRange(0, 255),
            help="apsam: grey value that the activation of every pixel of a landslide has to exceed. Default: "
            "100 with the bundled localizer, else 0.",
        ),
        option(
            "--gate",
            group="sensitivity",
            type=click.FloatRange(0, 1),
            default=0.5,
            show_default=True,
            help="Minimum class probability around an activation that is followed up.",
        ),
        option(
            "--block-size",
            group="machine",
            rare=True,
            type=click.IntRange(min=1),
            default=2048,
            show_default=True,
            metavar="PX",
            help="Side of the blocks that the mosaic is kept in; no result depends on it.",
        ),
        option(
            "--overlap",
            group="machine",
            rare=True,
            type=click.IntRange(min=0),
            metavar="PX",
            help="Pixels that neighbouring tiles share; default a quarter of the tile.",
        ),
        option(
            "--tile-size",
            group="machine",
            rare=True,
            type=click.IntRange(min=32),
            metavar="PX",
            help="Side of the tiles; default 512 for the bundled segmenter, 1024 for the official ones.",
        ),
        option(
            "--selection",
            group="method",
            rare=True,
            type=click.Choice(["best_iou", "first", "whole", "single", "overlap"]),
            help="Which of the segmenter's candidates answers a prompt; overlap is the one most like the "
            "activation. Default: best_iou; overlap with diffuprompter.",
        ),
        option(
            "--prompts-from",
            group="input",
            type=click.Path(dir_okay=False),
            metavar="FILE",
            help="Points and boxes that replace the activation, such as an edited output of extract.",
        ),
        option(
            "--prompts",
            group="method",
            rare=True,
            type=click.Choice(["box", "point", "both"]),
            default="both",
            show_default=True,
            help="What the segmenter is given of each object.",
        ),
        option(
            "--student",
            group="method",
            type=click.Path(dir_okay=False),
            metavar="FILE",
            help="A student of geolabel train student, which draws by itself: no localizer, no segmenter.",
        ),
        option(
            "--confidence",
            group="sensitivity",
            rare=True,
            type=click.FloatRange(0, 1),
            help="s2c: minimum stability x activation of a mask that counts. Default: 0.5; 0 with the bundled "
            "segmenter.",
        ),
        option(
            "--method",
            group="method",
            type=click.Choice(["apsam", "s2c", "cism", "alps", "diffuprompter"]),
            default="apsam",
            show_default=True,
            help="The published system to follow. apsam: contours of the map ask the segmenter; s2c: peaks "
            "do; cism: the map draws alone; these two need a --localizer of their own. alps needs none, but "
            "--clusters; diffuprompter needs none, but a class in words.",
        ),
        option(
            "--class",
            "class_name",
            group="method",
            rare=True,
            default="landslide",
            show_default=True,
            help="alps: name of the clusters to find.",
        ),
        option(
            "--clusters",
            group="method",
            rare=True,
            type=click.Path(),
            metavar="FILE",
            help="alps: named clusters, or the folder of pseudo-labels that they lie in.",
        ),
    ):
        command = decorate(command)
    return command


_threads = option("--threads", group="machine", type=click.IntRange(min=1), help="Threads; all cores by default.")
_precision = option(
    "--precision",
    group="machine",
    rare=True,
    type=click.Choice(["auto", "fp32", "bf16"]),
    default="auto",
    show_default=True,
    help="auto is bf16 on CUDA and fp32 elsewhere.",
)
_device = option("--device", group="machine", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N or mps.")
_sam_checkpoint = option(
    "--sam-checkpoint", group="method", type=click.Path(dir_okay=False), help="Weights file for --sam."
)
_sam = option(
    "--sam",
    group="method",
    type=click.Choice(["bundled", "vit_b", "vit_l", "vit_h"]),
    default="bundled",
    show_default=True,
    help="The segmenter.",
)

NETWORKS = ("localizer", "sam", "sam_checkpoint", "device", "precision", "batch")
"""Options of `network_options` that are fields of `geolabel.run.request.Networks`."""


def network_options(command: F) -> F:
    """Add the options that choose the networks and where they run."""
    decorate = option(
        "--localizer",
        group="method",
        default="bundled",
        show_default=True,
        metavar="NAME|FILE",
        help="The network that makes the activation maps.",
    )
    return decorate(segmenter_options(command))


def segmenter_options(command: F) -> F:
    """Add the options that choose the segmenter and where networks run."""
    batch = option(
        "--batch",
        group="machine",
        rare=True,
        type=click.IntRange(min=1),
        help="Images per network call; default 1 on the CPU, 8 on a GPU.",
    )
    for decorate in (_threads, batch, _precision, _device, _sam_checkpoint, _sam):
        command = decorate(command)
    return command


def place_options(command: F) -> F:
    """Add the options that all trainings on chips share: where they run, and what becomes of what is there."""
    resume = option(
        "--resume", group="machine", is_flag=True, help="Go on from where a stopped training in --out was saved."
    )
    for decorate in (as_json, overwrite, resume, _threads, _precision, _device):
        command = decorate(command)
    return command


def training_options(command: F) -> F:
    """Add the options of trainings that a segmenter takes part in."""
    return _sam(_sam_checkpoint(place_options(command)))


def check_training(file: Path, *, overwrite: bool) -> None:
    """Refuse, before anything is imported, to replace finished weights or to train without the libraries for it."""
    from importlib.util import find_spec

    from geolabel.errors import GeolabelError, OutputError

    if file.exists() and not overwrite:
        raise OutputError(f"{file} exists: choose another --out, or give --overwrite")
    if find_spec("lightning") is None:
        raise GeolabelError('training needs lightning, which is not installed: pip install "geolabel[train]"')


def training_networks(given: dict[str, Any]) -> Networks:
    """Take the options of `training_options` that say what runs where out of those given, and set the threads."""
    import torch

    from geolabel.run.request import Networks

    threads = given.pop("threads")
    if threads:
        torch.set_num_threads(threads)
    names = ("sam", "sam_checkpoint", "device", "precision")
    return Networks(**{name: given.pop(name) for name in names if name in given})


def networks_of(given: dict[str, Any], *, localizer: bool = False) -> Networks:
    """Take the options of `segmenter_options` out of those given, and set the threads; with a localizer, its too."""
    import torch

    from geolabel.run.request import Networks

    if threads := given.pop("threads"):
        torch.set_num_threads(threads)
    wanted = [name for name in NETWORKS if name in given and (localizer or name != "localizer")]
    return Networks(**{name: given.pop(name) for name in wanted})


def polygon_options(command: F) -> F:
    """Add the options that shape the polygons."""
    for decorate in (
        option(
            "--smooth",
            group="shape",
            type=MeasureType("m", "px"),
            default=None,
            help="Round corners: cut every corner back by at most this length.",
        ),
        option(
            "--simplify",
            group="shape",
            type=MeasureType("m", "px"),
            default="0.75px",
            show_default=True,
            help="Leave out corners of an outline that matter less than this.",
        ),
        option(
            "--max-hole",
            group="shape",
            type=MeasureType("m2", "px"),
            default="50px",
            show_default=True,
            help="Fill holes of up to this.",
        ),
        option(
            "--min-area",
            group="shape",
            type=MeasureType("m2", "px"),
            default="50px",
            show_default=True,
            help="Drop landslides smaller than this.",
        ),
    ):
        command = decorate(command)
    return command

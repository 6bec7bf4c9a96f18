"""Options that several commands share, and the settings of messages."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from geolabel.urls import without_secrets

from .commands import F, option
from .inputs import FOLDER, NETWORK, SCENE, SEGMENTER, VECTORS, WEIGHTS, BatchSize, parse_bounds
from .settings import owners_of

if TYPE_CHECKING:
    from geolabel.extraction.request import Networks, Parameters, Reading


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


class _Messages(logging.Handler):
    """Writes to whatever stderr is at the moment: progress bars put themselves in its way, and keep below the lines."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line; what a user should know is not marked with the module that says it."""
        try:
            source = "" if record.levelno >= logging.WARNING else f"{record.name}: "
            click.echo(f"{record.levelname.lower()}: {source}{without_secrets(self.format(record))}", err=True)
        except Exception:  # noqa: BLE001  # as every handler of the standard library
            self.handleError(record)


def _configure_logging(session: Session) -> None:
    root = logging.getLogger("geolabel")
    root.setLevel(session.level())
    if not root.handlers:
        root.addHandler(_Messages())


def terminal(command: F) -> F:
    """Add ``-v``, ``-q`` and ``--debug``."""
    for decorate in (
        option(
            "--debug",
            group="messages",
            is_flag=True,
            expose_value=False,
            callback=_remember("debug"),
            help="Print tracebacks and all log messages.",
        ),
        option(
            "-q",
            "--quiet",
            group="messages",
            is_flag=True,
            expose_value=False,
            callback=_remember("quiet"),
            help="Print neither progress nor warnings.",
        ),
        option(
            "-v",
            "--verbose",
            group="messages",
            count=True,
            expose_value=False,
            callback=_remember("verbose"),
            help="Print log messages; -vv for more.",
        ),
    ):
        command = decorate(command)
    return command


@dataclass(frozen=True)
class Request:
    """The shared options of a run, as the library takes them."""

    reading: Reading
    networks: Networks
    parameters: Parameters

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Request:
        """Sort the options of a command into the library's records."""
        from geolabel.extraction.request import Parameters, Reading
        from geolabel.methods import scene_method

        def pick(record: type) -> dict[str, Any]:
            names = {field.name for field in fields(record)}
            return {name: value for name, value in given.items() if name in names and value is not None}

        bounds = given["bounds"]
        reading = pick(Reading) | ({"bounds": parse_bounds(bounds)} if bounds else {})
        parameters = pick(Parameters) | {"class_names": tuple(given.get("class_names") or ())}
        if "method" in given:
            chosen = {name: None if given[name] == () else given[name] for name in owners_of("for_scenes")}
            parameters["method"] = scene_method(chosen, given["method"])
        return cls(Reading(**reading), _chosen_networks(given), Parameters(**parameters))


asset = option(
    "--asset",
    group="input",
    rare=True,
    metavar="NAME",
    help="Asset of STAC items to read, where several could be the scene.",
)


def vectors_out(*, required: bool = False) -> Callable[[F], F]:
    """Add the option for the file of polygons that a command writes."""
    return option(
        "-o",
        "--out",
        group="output",
        required=required,
        type=click.Path(dir_okay=False),
        help="File to write. Its suffix names the format: .gpkg, which holds everything; .fgb, .parquet, .geojson or "
        ".shp, the first layer; .zip, Shapefiles of all layers; .kmz.",
    )


dst_crs = option(
    "--dst-crs",
    group="output",
    metavar="CRS",
    help="CRS of the polygons, such as EPSG:32648. Default: that of the input.",
)

overwrite = option("--overwrite", group="output", is_flag=True, help="Replace the output if it exists.")
discard_review = option(
    "--discard-review",
    group="output",
    is_flag=True,
    help="With --overwrite: replace the output even if it holds reviews or edits.",
)
as_json = option("--json", "as_json", group="output", is_flag=True, help="Print the result as JSON.")


def run_options(command: F) -> F:
    """Add the options that say where the records of a run are kept, and for how long."""
    for decorate in (
        option("--keep", group="machine", rare=True, is_flag=True, help="Keep the run folder after success."),
        option(
            "--run-dir",
            group="machine",
            rare=True,
            metavar="FOLDER|URL",
            help="Run folder: records from which an interrupted run resumes. All workers need access to it. Default: "
            "beside the output.",
        ),
    ):
        command = decorate(command)
    return command


aoi_layer = option(
    "--aoi-layer",
    group="input",
    rare=True,
    metavar="NAME",
    help="Layer of --aoi. Default: the only one with polygons.",
)


mask = option(
    "--mask",
    group="input",
    type=SCENE,
    metavar="FILE|URI",
    multiple=True,
    help="Raster of pixels to leave out, such as clouds, on any grid and in any CRS: all that are not 0. Or "
    "a folder or archive of Sentinel-2, Landsat or PlanetScope, for its own cloud mask. Repeatable.",
)


def scene_options(command: F) -> F:
    """Add the options that say how a scene is read, and which part of it."""
    for decorate in (
        option(
            "--bounds",
            group="input",
            type=str,
            metavar="LEFT,BOTTOM,RIGHT,TOP",
            help="Restrict the run to this rectangle, in the CRS of the scene.",
        ),
        mask,
        aoi_layer,
        option("--aoi", group="input", type=VECTORS, help="Restrict the run to the polygons of this file."),
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
            help="Radiometric stretch of the whole scene: percentiles pLOW-HIGH, values LOW,HIGH, or none.",
        ),
        option(
            "--working-gsd",
            group="input",
            rare=True,
            type=float,
            metavar="METRES",
            help="Pixel size to work at. Default: that of the scene, within the range of the networks.",
        ),
        option(
            "--gsd",
            group="input",
            type=float,
            metavar="METRES",
            help="Pixel size of a scene without CRS, such as a plain PNG, or of a layer of map tiles.",
        ),
        option(
            "--nodata",
            group="input",
            type=float,
            help="Nodata value, instead of the file's own.",
        ),
        option(
            "--time",
            group="input",
            rare=True,
            metavar="DATE",
            help="Time to read of a file with several, such as 2024-05-01 or 2024-05-01T10:30.",
        ),
        option(
            "-b",
            "--bands",
            group="input",
            help="Bands for red, green and blue: numbers (3,2,1), descriptions or colours.",
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
    help="Minimum score of the pixels of a landslide.",
)

min_confidence = option(
    "--min-confidence",
    group="sensitivity",
    type=click.FloatRange(0, 1),
    help="Minimum confidence of a landslide; polygons below it become candidates. Polygons without a confidence, "
    "such as those of prompts drawn by a person, are landslides. Default: 0.2 with the bundled networks; others have "
    "no confidence.",
)


_threads = option(
    "--threads", group="machine", type=click.IntRange(min=1), help="Number of threads. Default: all cores."
)
_precision = option(
    "--precision",
    group="machine",
    rare=True,
    type=click.Choice(["auto", "fp32", "tf32", "bf16"]),
    default="auto",
    show_default=True,
    help="auto is bf16 on CUDA and fp32 otherwise; tf32 rounds products of fp32, on CUDA alone.",
)
_device = option("--device", group="machine", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N or mps.")
_sam_checkpoint = option("--sam-checkpoint", group="method", type=WEIGHTS, help="Weights file for --sam.")
_sam = option(
    "--sam",
    group="method",
    type=SEGMENTER,
    metavar="NAME|FOLDER",
    help="Segmenter: a name from geolabel models list, a file or folder, or OWNER/NAME[@REVISION] on the Hugging "
    "Face hub. Default: bundled.",
)

CHOSEN = ("localizer", "sam", "sam_checkpoint", "confidence_model")
PLACED = ("device", "precision", "engine", "batch", "compile")
"""Options of `network_options` that are fields of `geolabel.extraction.request.Networks`: which run, and where."""

_LOCALIZERS_OF_METHODS = (
    "Network that makes the activation maps; with --method sam3 a folder, or OWNER/NAME[@REVISION] of the Hugging Face "
    "hub. Default: bundled; sam3 with --method sam3."
)

networks_folder = option(
    "--networks",
    group="method",
    type=FOLDER,
    metavar="FOLDER",
    help="Folder of geolabel adapt with localizer, segmenter and confidence.",
)


def network_options(command: F, localizers: str = _LOCALIZERS_OF_METHODS, sam: Callable[[F], F] = _sam) -> F:
    """Add the options that choose the networks and where they run.

    Parameters
    ----------
    localizers, sam
        The help of ``--localizer``, and the option ``--sam``.
    """
    for decorate in (
        option(
            "--confidence-model",
            group="method",
            rare=True,
            type=WEIGHTS,
            metavar="FILE",
            help="Confidence model of your own networks, from geolabel train confidence.",
        ),
        option(
            "--localizer",
            group="method",
            type=NETWORK,
            metavar="NAME|FILE|FOLDER",
            help=localizers,
        ),
        networks_folder,
    ):
        command = decorate(command)
    return segmenter_options(command, sam)


def own_network_options(command: F, sam: Callable[[F], F] = _sam) -> F:
    """Add `network_options` to a command without ``--method``, whose networks are geolabel's own."""
    return network_options(command, "Network that makes the activation maps. Default: bundled.", sam)


def _chosen_networks(given: Mapping[str, Any], names: Sequence[str] = (*CHOSEN, *PLACED)) -> Networks:
    """The networks that options ask for: those of a folder, or one by one.

    Parameters
    ----------
    names
        Options that count.

    Raises
    ------
    OptionError
        If a folder is given and one of its networks besides.
    """
    from geolabel.errors import OptionError
    from geolabel.extraction.request import Networks

    fields = {name: given[name] for name in names if given.get(name) is not None}
    folder = given.get("networks")
    if folder is None:
        return Networks(**fields)
    double = [name for name in CHOSEN if given.get(name) is not None]
    if double:
        raise OptionError(
            f"--{double[0].replace('_', '-')} {given[double[0]]}: --networks {folder} says which networks run; "
            "leave one of them out"
        )
    return Networks.from_folder(folder, **fields)


def segmenter_options(command: F, sam: Callable[[F], F] = _sam) -> F:
    """Add the options that choose the segmenter and where networks run."""
    batch = option(
        "--batch",
        group="machine",
        rare=True,
        type=BatchSize(),
        help="Images per network call; default 1 on the CPU, 8 on a GPU. auto: what a GPU's memory takes, up to 32.",
    )
    compiled = option(
        "--compile",
        group="machine",
        rare=True,
        type=click.Choice(["auto", "on", "off"]),
        help="Compile the segmenter's image encoder with torch.compile, which takes a minute or two. auto: on a GPU, "
        "over scenes of 20000 windows or more. Default: off.",
    )
    engine = option(
        "--engine",
        group="machine",
        rare=True,
        type=click.Choice(["auto", "torch", "onnx"]),
        default="auto",
        show_default=True,
        help="Library that runs the networks: PyTorch, or ONNX Runtime on a CPU in fp32. auto is onnx for the "
        "bundled networks, and those adapted from them, on a CPU, and torch otherwise.",
    )
    for decorate in (_threads, compiled, batch, engine, _precision, _device, _sam_checkpoint, sam):
        command = decorate(command)
    return command


def machine_options(command: F) -> F:
    """Add the options that say where something is measured; see `set_threads`."""
    for decorate in (_threads, _precision, _device):
        command = decorate(command)
    return command


def place_options(command: F) -> F:
    """Add the options that all trainings on chips share: device, and resuming or replacing an output."""
    resume = option(
        "--resume", group="machine", is_flag=True, help="Resume an interrupted training from the state in --out."
    )
    for decorate in (as_json, overwrite, resume, _threads, _precision, _device):
        command = decorate(command)
    return command


def training_options(command: F) -> F:
    """Add the options of trainings that a segmenter takes part in."""
    return _sam(_sam_checkpoint(place_options(command)))


def check_training(file: Path, *modules: str, overwrite: bool) -> None:
    """Refuse, before anything is imported, to replace finished weights or to train without the libraries for it.

    Parameters
    ----------
    modules
        Libraries that this training needs beside lightning.
    """
    from geolabel.errors import OutputError, require

    if file.exists() and not overwrite:
        raise OutputError(f"{file} exists: choose another --out, or give --overwrite")
    require("train", "lightning", *modules, purpose="training")


def training_networks(given: dict[str, Any]) -> Networks:
    """Take the options of `training_options` that say what runs where out of those given, and set the threads."""
    import torch

    from geolabel.extraction.request import Networks

    threads = given.pop("threads")
    if threads:
        torch.set_num_threads(threads)
    names = ("sam", "sam_checkpoint", "device", "precision")
    return Networks(**{name: given.pop(name) for name in names if name in given})


def set_threads(threads: int | None) -> None:
    """Have networks of this process run on a number of threads; None for all cores."""
    from geolabel.engine.worker import use_threads

    use_threads(threads)
    if threads:
        import torch  # which takes seconds, and may not be needed

        torch.set_num_threads(threads)


def networks_of(given: dict[str, Any], *, localizer: bool = False) -> Networks:
    """Take the options of `segmenter_options` out of those given, and set the threads; with a localizer, its too."""
    set_threads(given.pop("threads"))
    names = [name for name in (*CHOSEN, *PLACED) if localizer or name != "localizer"]
    networks = _chosen_networks(given, names)
    for name in (*names, "networks"):
        given.pop(name, None)
    return networks

"""``geolabel train``: train networks."""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click

from . import options, train_on_chips
from .commands import group, option
from .terminal import announce, progress_bar

KINDS = ("localizer", "segmenter")


@group()
def train() -> None:
    """Train networks. Needs the extra: pip install "geolabel[train]"."""


train.add_command(train_on_chips.localizer)
train.add_command(train_on_chips.student)


@train.command()
@option(
    "--out",
    group="output",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder to write: weights, model cards and training curves.",
)
@option("--seed", group="method", type=click.IntRange(min=0), default=0, show_default=True, help="Random seed.")
@option(
    "--preset",
    group="method",
    type=click.Choice(["full", "refine", "short"]),
    default="full",
    show_default=True,
    help="Length of the training. full: one to two hours a network on one core; refine: under an hour, from --init; "
    "short: seconds, as a test.",
)
@option(
    "--minutes",
    group="method",
    type=click.FloatRange(min=0, min_open=True),
    metavar="N",
    help="Maximum duration in minutes; the weights then depend on the speed of the machine.",
)
@option(
    "--network",
    "networks",
    group="method",
    type=click.Choice(KINDS),
    multiple=True,
    default=KINDS,
    show_default=True,
    help="Network to train; repeatable.",
)
@option(
    "--data",
    group="input",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of real landslides to learn from as well: images/ and masks/.",
)
@option(
    "--negatives",
    group="input",
    multiple=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of images without landslides, or of several such folders; repeatable.",
)
@option(
    "--coarse",
    group="input",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of landslides in images of 10 m: images/ and masks/. A fifth calibrates the localizer.",
)
@option(
    "--pack",
    group="input",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="One file with --data and --negatives, from chips --pack.",
)
@option(
    "--credit",
    group="input",
    multiple=True,
    metavar="TEXT",
    help="Source and licence of the real images, for the model cards.",
)
@option(
    "--init",
    group="method",
    metavar="bundled|FOLDER",
    help="Initial weights: the bundled networks, or those of a folder. Default: random.",
)
@option(
    "--scenes",
    group="method",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder that keeps the synthetic scenes for later runs.",
)
@option(
    "--threads", group="machine", type=click.IntRange(min=1), metavar="N", help="Number of threads. Default: all cores."
)
@option("--device", group="machine", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@option(
    "--precision",
    group="machine",
    rare=True,
    type=click.Choice(["auto", "fp32", "tf32", "bf16"]),
    default="auto",
    show_default=True,
    help="Precision of the training steps. auto: bf16 on a GPU that has it. bf16 also halves the time on CPUs with "
    "instructions for it.",
)
@option(
    "--resume",
    group="machine",
    is_flag=True,
    help="Resume an interrupted training from the state in --out.",
)
@options.overwrite
@options.as_json
@options.terminal
def bundled(
    out: Path,
    networks: tuple[str, ...],
    data: Path | None,
    negatives: tuple[Path, ...],
    pack: Path | None,
    init: str | None,
    threads: int | None,
    device: str,
    precision: str,
    overwrite: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Train the bundled networks from a seed and synthetic scenes."""
    files = {kind: out / f"{kind}.safetensors" for kind in dict.fromkeys(networks)}
    for file in files.values():
        options.check_training(file, overwrite=overwrite)
    import torch

    from geolabel.devices import resolve_device, resolve_precision
    from geolabel.errors import OptionError
    from geolabel.training.bundled import train_bundled
    from geolabel.training.bundled_data import unpack

    workers = threads or os.cpu_count() or 1
    torch.set_num_threads(workers)
    device = resolve_device(device)
    if pack is not None:
        if data or negatives:
            raise OptionError(f"--pack {pack} contains the training data: omit --data and --negatives")
        folder = click.get_current_context().with_resource(TemporaryDirectory(prefix="geolabel-"))
        data, packed = unpack(pack, Path(folder))
        negatives = (packed,) if packed else ()
    figures = train_bundled(
        out,
        device=device,
        precision=resolve_precision(precision, device),
        data=data,
        negatives=negatives,
        networks=tuple(files),  # type: ignore[arg-type]
        init=_first(init),
        workers=workers,
        overwrite=overwrite,
        **given,
    )
    facts: dict[str, object] = {}
    for kind, path in files.items():
        facts[kind] = str(path)
        facts |= {f"{kind} {name}": round(value, 4) for name, value in figures[kind].items()}
    announce(facts, as_json=as_json)


@train.command()
@click.argument(
    "files", nargs=-1, required=True, metavar="FILE...", type=click.Path(exists=True, dir_okay=False, path_type=Path)
)
@option(
    "--out",
    group="output",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder to write: localizer.safetensors and its model card.",
)
@option(
    "--scenes",
    group="method",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder that keeps the synthetic scenes for later runs.",
)
@option(
    "--threads", group="machine", type=click.IntRange(min=1), metavar="N", help="Number of threads. Default: all cores."
)
@options.overwrite
@options.as_json
@options.terminal
def average(
    files: tuple[Path, ...], out: Path, scenes: Path | None, threads: int | None, overwrite: bool, as_json: bool
) -> None:
    """Average the weights of localizers from train bundled, and calibrate the mean.

    The mean of trainings with the same initial weights and different augmentations is often better than each of them. A
    FILE that is named twice counts twice.
    """
    from geolabel.errors import OutputError

    target = out / "localizer.safetensors"
    if target.exists() and not overwrite:
        raise OutputError(f"{target} exists: choose another --out, or give --overwrite")
    import torch

    from geolabel.training.averaging import average_localizers

    workers = threads or os.cpu_count() or 1
    torch.set_num_threads(workers)
    figures = average_localizers(out, files, scenes=scenes, workers=workers)
    announce({"localizer": str(target)} | {k: round(v, 4) for k, v in figures.items()}, as_json=as_json)


def _first(init: str | None) -> Path | None:
    from geolabel.errors import OptionError

    bundled_weights = Path(str(resources.files("geolabel.weights")))
    folder = bundled_weights if init == "bundled" else Path(init) if init else None
    if folder and not any((folder / f"{kind}.safetensors").is_file() for kind in KINDS):
        raise OptionError(f"--init {init} holds no localizer.safetensors or segmenter.safetensors: give another folder")
    return folder


@train.command()
@option(
    "--out",
    group="output",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="JSON file to write; the bundled one is geolabel/weights/confidence.json.",
)
@option(
    "--scenes",
    group="method",
    type=click.IntRange(min=5),
    default=32,
    show_default=True,
    metavar="N",
    help="Number of synthetic scenes to extract.",
)
@option(
    "--data",
    group="input",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of real images to extract as well, as for bench quality; images kept for reports are not used.",
)
@options.own_network_options
@options.overwrite
@options.as_json
@options.terminal
@click.pass_context
def confidence(
    ctx: click.Context,
    /,
    out: Path,
    scenes: int,
    data: Path | None,
    overwrite: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Fit the confidence of polygons to the networks; repeat it after training them.

    Extracts the scenes kept for selection, and fits a logistic model that predicts from the attributes of a polygon
    whether at least half of it is landslide. Takes some minutes.

    \b
    geolabel train confidence --out geolabel/weights/confidence.json --overwrite
    """
    from geolabel.errors import require

    require("train", "sklearn", purpose="fitting the confidence")
    from geolabel.evaluation.confidence import fit_confidence
    from geolabel.evaluation.examples import Data
    from geolabel.models.confidence import save_confidence
    from geolabel.outputs import check_target

    check_target(out, overwrite=overwrite, suffixes=(".json",))
    networks = options.networks_of(given, localizer=True)
    with progress_bar(ctx) as progress:
        found = fit_confidence(networks, scenes=scenes, data=Data.inside(data) if data else None, progress=progress)
    save_confidence(out, found, overwrite=overwrite)
    facts = {name: value for name, value in found.fitted.items() if name != "data"}
    announce({"model": str(out)} | facts, as_json=as_json)


@train.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...", type=click.Path(path_type=Path))
@options.as_json
@options.terminal
def graphs(files: tuple[Path, ...], as_json: bool) -> None:
    """Write ONNX graphs beside the FILEs of weights, for --engine onnx.

    FILE holds a localizer or a segmenter of geolabel. A graph has no weights and depends on the architecture only;
    existing graphs are replaced. geolabel models export writes one file for other programs.

    \b
    geolabel train graphs my-localizer.safetensors
    geolabel extract scene.tif --out slides.gpkg --localizer my-localizer.safetensors --engine onnx
    """
    from importlib.util import find_spec

    from geolabel.errors import GeolabelError

    if find_spec("onnxscript") is None:
        raise GeolabelError('graphs are made with onnxscript, which is not installed: pip install "geolabel[train]"')
    from geolabel.training.graphs import write_graphs

    announce({str(file): ", ".join(map(str, write_graphs(file))) for file in files}, as_json=as_json)

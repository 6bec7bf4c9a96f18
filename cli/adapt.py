"""``geolabel adapt``: adapt the networks to reviewed polygons."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

import geolabel
from geolabel.errors import OptionError

from . import options
from .commands import command, complete_files, option
from .inputs import SEGMENTER, VECTORS, check_inputs, check_scenes
from .terminal import announce, duration, extent, loading, progress_bar

if TYPE_CHECKING:
    from geolabel.adaptation.adapt import Adaptation

NO_GAIN = 4
"""Exit code if nothing gains, and nothing was written."""

READING = ("bands", "nodata", "gsd", "working_gsd", "stretch", "time", "asset")


_SAM = option(
    "--sam",
    group="method",
    type=SEGMENTER,
    metavar="FILE",
    help="Segmenter of geolabel's own, whose decoder can be fitted. Default: bundled.",
)


@command(short_help="Adapt the networks to a region, from a few reviewed places.")
@click.argument("scenes", nargs=-1, required=True, metavar="SCENE...", shell_complete=complete_files)
@option(
    "--reviewed",
    group="input",
    required=True,
    multiple=True,
    type=VECTORS,
    metavar="FILE",
    help="A reviewed output of extract, or another file of landslide polygons; repeatable.",
)
@option(
    "--accept-unreviewed",
    group="input",
    is_flag=True,
    help="Count landslides without a review as accepted, in every file: for a truth that needs no review, such as a "
    "mask from polygonize.",
)
@option(
    "-o",
    "--out",
    group="output",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder to write, for --networks of other commands; required without --dry-run.",
)
@option(
    "--level",
    group="method",
    type=click.Choice(["auto", "threshold", "head", "all"]),
    default="auto",
    show_default=True,
    help="What to adapt of the localizer. threshold: the threshold of the activation; head: also the last layers; all: "
    "most layers; auto: the simplest level that gains 0.02 F1 over all simpler ones. auto tries layers only where an "
    "area was reviewed as a whole, and all only on a GPU. The decoder of the segmenter is tried with each level.",
)
@option(
    "--seed", group="method", rare=True, type=click.IntRange(min=0), default=0, show_default=True, help="Random seed."
)
@options.asset
@options.reading_options
@partial(options.own_network_options, sam=_SAM)
@option(
    "--dry-run",
    group="output",
    is_flag=True,
    help="Print what would be learned from, which levels are tried, and an estimate of the time; write nothing.",
)
@options.overwrite
@options.as_json
@options.terminal
@click.pass_context
def adapt(
    ctx: click.Context,
    /,
    scenes: tuple[str, ...],
    reviewed: tuple[str, ...],
    out: Path | None,
    level: Literal["auto", "threshold", "head", "all"],
    accept_unreviewed: bool,
    seed: int,
    dry_run: bool,
    overwrite: bool,
    as_json: bool,
    **given: Any,
) -> int:
    """Adapt the networks to the region of one or several SCENEs, from reviewed polygons.

    Accepted, redrawn and added polygons are landslides; rejected and deleted ones are other ground, and so is a ring
    around each reviewed polygon. Areas that were reviewed as a whole (a layer "reviewed", or windows of the layer
    "review" with the status reviewed) are other ground outside their polygons. The segmenter learns from five outlines
    or more that were drawn or corrected. The gain is validated on blocks that were held out of the training; without a
    gain nothing is written, and the exit code is 4.

    \b
    geolabel extract scene.tif --out first.gpkg
    geolabel adapt scene.tif --reviewed first.gpkg --dry-run
    geolabel adapt scene.tif --reviewed first.gpkg --out valley/
    geolabel extract scene.tif --networks valley/ --keep-reviewed first.gpkg --out second.gpkg
    """
    check_scenes(scenes)
    from geolabel.folders import check_folder, claim
    from geolabel.io.read.scene_inputs import list_scenes

    if out is None and not dry_run:
        raise OptionError("no output: give --out FOLDER")
    if dry_run and ctx.get_parameter_source("seed") is not click.core.ParameterSource.DEFAULT:
        raise OptionError(f"--seed {seed}: --dry-run draws nothing at random; leave it out")
    if out is not None:
        check_folder(out, reviewed)
        claim(out, overwrite=overwrite)
    listed = list_scenes(scenes, asset=given["asset"])
    check_inputs(listed)
    reading = geolabel.Reading(**{name: given[name] for name in READING if given[name] is not None})
    chosen: Any = {
        "level": None if level == "auto" else level,
        "reading": reading,
        "accept_unreviewed": accept_unreviewed,
    }
    if dry_run:
        with loading(ctx, "estimating"):
            networks = options.networks_of(given, localizer=True)
            figures = geolabel.estimate_adaptation(listed, reviewed, networks=networks, **chosen)
        announce(figures if as_json else _prospect(figures), as_json=as_json)
        return 0 if None in figures["levels"].values() else NO_GAIN
    with progress_bar(ctx, "preparing") as progress:
        networks = options.networks_of(given, localizer=True)
        found = geolabel.adapt(
            listed,
            reviewed,
            out=out,
            networks=networks,
            **chosen,
            seed=seed,
            overwrite=overwrite,
            progress=progress,
        )
    announce(_figures(found) if as_json else _summary(found), as_json=as_json)
    return 0 if found.gains else NO_GAIN


def _prospect(figures: dict[str, Any]) -> dict[str, str]:
    """Rows on the training data; `figures` are those of `geolabel.estimate_adaptation`."""
    from geolabel.adaptation.estimate import NOTHING, SOMETHING

    def counted(of: dict[str, Any]) -> str:
        return (
            f"{of['landslides']} landslides, of which {of['drawn']} drawn or redrawn; {of['rejected']} rejected; areas "
            f"reviewed as a whole: {of['areas']}"
        )

    rows = {"learns from": counted(figures)}
    if len(figures["files"]) > 1:
        rows["files"] = "\n".join(f"{one['file']}: {counted(one)}" for one in figures["files"])
    rows |= {
        "ground": f"{extent(figures['landslide_km2'] * 1e6)} of landslides and "
        f"{extent(figures['other_ground_km2'] * 1e6)} of other ground, in {figures['tiles']} tiles",
        "unreviewed": f"{figures['unreviewed']} polygons, which are not used",
        "places": f"{figures['blocks']} with landslides, on which a gain is validated",
        "device": figures["device"],
    }
    reasons = {*figures["levels"].values()}
    if len(reasons) == 1 and None not in reasons:
        rows["levels"] = f"none: {reasons.pop()}"
    else:
        rows |= {name: "is tried" if why is None else f"no: {why}" for name, why in figures["levels"].items()}
    low, high = (duration(figures[name]) for name in (NOTHING, SOMETHING))
    if figures[SOMETHING]:
        times = low if low == high else f"{low} if nothing gains, up to {high} if something does"
        rows["time"] = f"{times}; plus some seconds to start"
    return rows


def _figures(found: Adaptation) -> dict[str, Any]:
    folder = None if found.folder is None else str(found.folder)
    return vars(found) | {"folder": folder, "gain": round(found.gain, 4)}


def _summary(found: Adaptation) -> dict[str, Any]:
    as_it_is, *levels = found.scores.items()
    lines = {
        "learned from": f"{found.landslides} landslides, {found.rejected} rejected; "
        f"areas reviewed as a whole: {found.areas}; tiles: {found.tiles}",
        "F1 as it is": f"{as_it_is[1]:.2f}, on the reviewed cells of the map",
    }
    lines |= {f"F1 of {name}": f"{score:.2f}, validated on {found.blocks} places in turn" for name, score in levels}
    if found.masks is not None:
        mean, fitted = found.masks
        lines["IoU of masks"] = f"{mean:.2f}, of {found.drawn} outlines; of a fitted decoder {fitted:.2f}, validated"
    if not found.gains:
        return lines | {"output": "none: nothing gains enough to be sure of; review more, or areas as a whole"}
    if found.level is not None:
        lines |= {
            "chosen": f"{found.level}, + {found.gain:.2f}",
            "activation": f"cut at {found.cut[1]:.2f}, gate at {found.gate[1] / found.gate[0]:.2f} times the value "
            "before",
        }
    segmenter = "with the fitted decoder" if found.decoder else "as it was"
    return lines | {"segmenter": segmenter, "output": f"{found.folder}, for --networks"}

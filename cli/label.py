"""``geolabel label``: images to pseudo-labels, with any of the methods."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from geolabel.methods import METHODS

from . import options
from .terminal import announce, progress_bar

F = TypeVar("F", bound=Callable[..., Any])

METHOD_OPTIONS: tuple[Callable[[Any], Any], ...] = (
    click.option("--localizer", metavar="NAME|FILE",
                 help="apsam, s2c, cism: the network that makes the activation maps. Default: bundled."),
    click.option("--class-name", help="apsam, s2c, cism: what label 1 of the chips means. Default: landslide."),
    click.option("--activation-threshold", type=click.IntRange(0, 255),
                 help="apsam, cism: grey value that the activation has to exceed. Default: 120; of cism 102."),
    click.option("--prompts", type=click.Choice(["box", "point", "both"]),
                 help="apsam: what the segmenter is given of each object. Default: both."),
    click.option("--selection", type=click.Choice(["best_iou", "first", "whole", "single"]),
                 help="apsam, s2c: which of the segmenter's candidates answers. Default: whole; of apsam with another "
                 "segmenter than the bundled one best_iou."),
    click.option("--agreed/--not-agreed", default=None,
                 help="apsam: ignore pixels where mask and activation disagree. Default: with the bundled segmenter."),
    click.option("--confidence", type=click.FloatRange(0, 1),
                 help="s2c: least stability times activation of a mask that counts. Default: 0.5; 0 with the bundled "
                 "segmenter."),
    click.option("--single-peak", is_flag=True, default=None, help="s2c: ask about the highest place only."),
    click.option("--single-scale", is_flag=True, default=None,
                 help="apsam, s2c, cism: one view of a chip in place of four scales and mirrored ones."),
    *options.CLUSTERING_OPTIONS,
    click.option("--regions", type=click.Path(file_okay=False, path_type=Path), metavar="FOLDER",
                 help="alps: keep here what the segmenter finds, for another number of clusters or another share."),
    *options.GROUNDING_OPTIONS,
    click.option("--threshold", type=click.FloatRange(0, 1, min_open=True, max_open=True),
                 help="diffuprompter: activation that counts. Default: 0.4."),
    click.option("--attention-only", is_flag=True, default=None,
                 help="diffuprompter: take the thresholded maps for labels and ask no segmenter."),
    click.option("--seed", type=click.IntRange(min=0), help="alps, diffuprompter: number to draw from. Default: 0."),
)  # fmt: skip
"""Options of single methods, each named once, with the methods that have it. None is the method's own default."""


def method_options(command: F) -> F:
    """Add the options of all methods; which of them a method takes is seen from its settings."""
    for decorate in reversed(METHOD_OPTIONS):
        command = decorate(command)
    return command


def _summaries() -> str:
    # \b keeps click from filling the lines
    return "\b\n" + "\n".join(f"{name:<14}{method.summary}" for name, method in METHODS.items())


@click.command(short_help="Make pseudo-labels of a folder of images.", epilog=_summaries())
@click.argument("chips", type=click.Path(path_type=Path))
@click.option("-o", "--out", required=True, type=click.Path(file_okay=False, path_type=Path),
              help="Folder to write.")  # fmt: skip
@click.option("--method", required=True, type=click.Choice(list(METHODS)), help="The published system to follow.")
@method_options
@options.segmenter_options
@options.overwrite
@options.as_json
@options.terminal
@click.pass_context
def label(
    ctx: click.Context, /, chips: Path, out: Path, method: str, overwrite: bool, as_json: bool, **given: Any
) -> None:
    """Make pseudo-labels of the images in CHIPS.

    The folder that is written holds the images, a label map for each, their closed regions as COCO instances, and how
    they were made. A run that was stopped goes on with the same command.
    """
    networks = options.networks_of(given)
    chosen = METHODS[method]
    settings = chosen.settings(given)
    with progress_bar(ctx) as progress:
        figures = chosen.label(chips, out, settings, networks, overwrite=overwrite, progress=progress)
    announce({"output": str(out)} | figures, as_json=as_json)

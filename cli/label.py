"""``geolabel label``: images to pseudo-labels, by any of the methods."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

import geolabel
from geolabel.methods import METHODS

from . import options
from .commands import command, option
from .inputs import CHIPS_PATH
from .settings import method_options
from .terminal import announce, progress_bar
from .workers import at_work, cluster_options

LABELLING = {name: method for name, method in METHODS.items() if method.for_chips}
"""Methods that label folders of images."""


def _summaries() -> str:
    # \b keeps click from filling the lines
    return "\b\n" + "\n".join(f"{name:<14}{method.summary}" for name, method in LABELLING.items())


@command(short_help="Make pseudo-labels for a folder of images.", epilog=_summaries())
@click.argument("chips", type=CHIPS_PATH)
@option(
    "-o",
    "--out",
    group="output",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder to write.",
)
@option(
    "--method",
    group="method",
    required=True,
    type=click.Choice(list(LABELLING)),
    help="Published method.",
)
@method_options("for_chips")
@options.networks_folder
@options.segmenter_options
@cluster_options
@options.overwrite
@options.as_json
@options.terminal
@click.pass_context
def label(
    ctx: click.Context, /, chips: Path, out: Path, method: str, overwrite: bool, as_json: bool, **given: Any
) -> None:
    """Make pseudo-labels for the images in CHIPS.

    The output folder has the images, a label map for each, their connected regions as COCO instances, and a record of
    how they were made. The same command resumes an interrupted run.
    """
    from geolabel.folders import check_work

    check_work(out, overwrite=overwrite, inputs=[chips])
    with progress_bar(ctx, "preparing") as progress, at_work(given):
        networks = options.networks_of(given)
        figures = geolabel.label(
            chips, out, method=method, networks=networks, overwrite=overwrite, progress=progress, **given
        )
    announce({"output": str(out)} | figures, as_json=as_json)

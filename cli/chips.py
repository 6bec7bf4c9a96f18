"""``geolabel chips``: training images, cut from a scene or packed into one file."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from . import options
from .commands import F, command, option
from .inputs import SCENE, VECTORS
from .terminal import announce, progress_bar
from .workers import at_work, cluster_options

PACKING = ("data", "negatives", "seeds", "exclude", "quality")
"""Options of `packing_options` besides ``--pack``."""


class _Seeds(click.ParamType):  # type: ignore[type-arg]
    """Seeds such as 0-9 or 3,5,8."""

    name = "seeds"

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:  # noqa: ARG002
        """Show the form in the help."""
        return "N[-N][,...]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Split at commas; two numbers with a dash between them are an inclusive range."""
        if not isinstance(value, str):
            return value
        seeds: list[int] = []
        for part in value.split(","):
            first, dash, last = part.strip().partition("-")
            if not (first.isdecimal() and (last.isdecimal() or not dash)):
                self.fail(f"{value!r}: give seeds such as 0-9 or 3,5,8", param, ctx)
            seeds += range(int(first), int(last or first) + 1)
        return tuple(seeds)


def _packing_options(command: F) -> F:
    """Add the options of packing."""
    for decorate in (
        option(
            "--quality",
            group="output",
            rare=True,
            type=click.IntRange(1, 95),
            default=92,
            show_default=True,
            help="Packing: JPEG quality of images in other formats.",
        ),
        option(
            "--exclude",
            group="input",
            multiple=True,
            metavar="END",
            help="Packing: skip images whose names end like this; repeatable.",
        ),
        option("--seeds", group="input", type=_Seeds(), default=(), help="Packing: synthetic scenes to add."),
        option(
            "--negatives",
            group="input",
            type=click.Path(file_okay=False, path_type=Path),
            help="Packing: a folder with images that show no landslide.",
        ),
        option(
            "--data",
            group="input",
            type=click.Path(file_okay=False, path_type=Path),
            help="Packing: a folder with images/ and masks/ of landslides.",
        ),
        option(
            "--pack",
            group="output",
            type=click.Path(dir_okay=False, path_type=Path),
            metavar="FILE",
            help="Pack pictures for train bundled --pack into one ZIP file of at most 30 MB.",
        ),
    ):
        command = decorate(command)
    return command


@command(short_help="Cut labelled images from a scene, or pack pictures into a file.")
@click.argument("scene", required=False, type=SCENE)
@option(
    "--inventory",
    group="input",
    type=VECTORS,
    metavar="FILE",
    help="Inventory: polygons, labelled points, or a raster of classes.",
)
@option("-o", "--out", group="output", type=click.Path(), help="Folder to write.")
@option(
    "--size",
    group="output",
    type=click.IntRange(min=32),
    default=256,
    show_default=True,
    metavar="PX",
    help="Side of the chips.",
)
@option(
    "--overlap",
    group="output",
    type=click.IntRange(min=0),
    metavar="PX",
    help="Overlap of neighbouring chips. Default: a quarter of the side.",
)
@option("--layer", group="input", help="Layer of the inventory. Default: landslides, or the only one.")
@option(
    "--class-column",
    group="input",
    metavar="NAME",
    help="Attribute with the class of a feature, or 1 or 0. Default: label or class, if present.",
)
@option("--class-name", group="input", default="landslide", show_default=True, help="Class of features without one.")
@option(
    "--class",
    "classes",
    group="output",
    multiple=True,
    metavar="NAME",
    help="Class to label by; repeatable. Default: all.",
)
@options.mask
@options.reading_options
@_packing_options
@cluster_options
@options.run_options
@options.overwrite
@options.as_json
@options.terminal
@click.pass_context
def chips(
    ctx: click.Context,
    /,
    pack: Path | None,
    run_dir: str | None,
    keep: bool,
    overwrite: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Cut SCENE into chips, each with a label for the whole chip from an inventory.

    The output folder has images/, labels.csv and, if the inventory covers every pixel, masks/. Chips keep the pixels of
    the scene. Points give one chip each; polygons and rasters give chips of the whole scene.

    With --pack, and without SCENE, images are packed into one file for a machine with torch and no raster library.

    \b
    geolabel chips scene.tif --inventory slides.gpkg --out chips/
    geolabel chips --pack pictures.zip --data slides/ --negatives fields/
    """
    packing = {name: given.pop(name) for name in PACKING}
    if pack is not None:
        if given["workers"] or given["scheduler"] or run_dir or keep:
            raise click.UsageError(
                "--workers, --scheduler, --run-dir and --keep are for SCENE: leave them out of --pack"
            )
        if given["mask"]:
            raise click.UsageError("--mask is of SCENE: leave it out of --pack")
        _pack(pack, overwrite=overwrite, as_json=as_json, **packing)
        return
    scene, inventory, out = (given.pop(name) for name in ("scene", "inventory", "out"))
    if scene is None or inventory is None or out is None:
        raise click.UsageError("give SCENE with --inventory FILE and --out FOLDER; or --pack FILE")
    from geolabel.engine.run_folder import RunFolderOptions
    from geolabel.extraction.request import Reading
    from geolabel.labeling.cut_chips import cut_chips

    names = {field.name for field in fields(Reading)}
    reading = Reading(**{name: given.pop(name) for name in list(given) if name in names})
    run_folder = RunFolderOptions(run_dir, keep)
    with at_work(given), progress_bar(ctx) as progress:
        cut = cut_chips(
            scene,
            inventory,
            out,
            reading=reading,
            overwrite=overwrite,
            run_folder=run_folder,
            progress=progress,
            **given,
        )
    shown = dict(zip(cut.classes, cut.shown, strict=True))
    facts = {"chips": cut.chips, **{f"with {name}": count for name, count in shown.items()}, "left out": cut.unclear}
    announce({"output": str(cut.folder), **facts}, as_json=as_json)


def _pack(pack: Path, *, overwrite: bool, as_json: bool, **given: Any) -> None:
    """Write the pack and print its contents."""
    from geolabel.outputs import check_target
    from geolabel.training.bundled_data import write_pack

    check_target(pack, overwrite=overwrite, suffixes=(".zip",))
    announce({"pack": str(pack)} | write_pack(pack, overwrite=overwrite, **given), as_json=as_json)

"""Packing training pictures into one file: the part of ``geolabel chips`` that makes no chips."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .commands import F, option
from .terminal import announce


class Seeds(click.ParamType):  # type: ignore[type-arg]
    """Seeds such as 0-9 or 3,5,8."""

    name = "seeds"

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:  # noqa: ARG002
        """Show the form in the help."""
        return "N[-N][,...]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Split at commas; two numbers with a dash between them are a range, its end included."""
        if not isinstance(value, str):
            return value
        seeds: list[int] = []
        for part in value.split(","):
            first, dash, last = part.strip().partition("-")
            if not (first.isdecimal() and (last.isdecimal() or not dash)):
                self.fail(f"{value!r}: give seeds such as 0-9 or 3,5,8", param, ctx)
            seeds += range(int(first), int(last or first) + 1)
        return tuple(seeds)


def packing_options(command: F) -> F:
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
            help="Packing: leave out images whose names end so; repeatable.",
        ),
        option("--seeds", group="input", type=Seeds(), default=(), help="Packing: synthetic scenes to add."),
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


def run_packing(pack: Path, *, overwrite: bool, as_json: bool, **given: Any) -> None:
    """Write the pack and say what is in it."""
    from geolabel.outputs import check_target
    from geolabel.training.pictures import write_pack

    check_target(pack, overwrite=overwrite, suffixes=(".zip",))
    announce({"pack": str(pack)} | write_pack(pack, overwrite=overwrite, **given), as_json=as_json)

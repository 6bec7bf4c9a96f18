"""``geolabel review``: what a person's review is used for: where to look next, what it says of the rest, comparing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from geolabel.errors import VectorError

from . import options
from .commands import group, option
from .inputs import Input
from .terminal import announce, extent, loading

if TYPE_CHECKING:
    from geolabel.review.difference import Difference

INVENTORY = Input(VectorError, dir_okay=False)

DIFFERENT = 4
"""Exit code where something differs, or people disagree."""


@group(short_help="Use what a person decided about polygons.")
def review() -> None:
    """Use what a person decided about the polygons of an inventory."""


@review.command()
@click.argument("old", type=INVENTORY)
@click.argument("new", type=INVENTORY)
@option(
    "-o",
    "--out",
    group="output",
    type=click.Path(dir_okay=False),
    help="Also write the changes as a layer, in the format that the suffix names.",
)
@option(
    "--min-iou",
    group="sensitivity",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.1,
    show_default=True,
    help="Minimum intersection over union of two polygons that are one landslide.",
)
@options.overwrite
@options.as_json
@options.terminal
@click.pass_context
def diff(
    ctx: click.Context,
    /,
    old: str,
    new: str,
    out: str | None,
    min_iou: float,
    overwrite: bool,
    as_json: bool,
) -> int:
    """Say what changed from the inventory OLD to NEW: polygons added, removed, or changed in outline, status or class.

    The exit code is 0 where nothing changed and 4 where something did. Polygons are paired by their outlines; what a
    person deleted counts as rejected.

    \b
    geolabel review diff first.gpkg second.gpkg
    geolabel review diff first.gpkg second.gpkg --out changes.gpkg
    """
    with loading(ctx, "comparing"):
        import geolabel

        found = geolabel.diff(old, new, min_iou=min_iou, out=out, overwrite=overwrite)
    figures: dict[str, Any] = found.figures() | ({"output": out} if out else {})
    announce(figures if as_json else _changes(found, figures), as_json=as_json)
    return DIFFERENT if found else 0


def _changes(found: Difference, figures: dict[str, Any]) -> dict[str, str]:
    # Rows for a person: what became of the polygons, and of how much ground.
    rows = {"same": str(figures["same"])}
    for kind, side in (("added", "new"), ("removed", "old"), ("changed", "new")):
        own = found.changes[found.changes["change"] == kind]
        area = f", {extent(float(own[f'{side}_area_m2'].sum()))}" if len(own) else ""
        rows[kind] = f"{len(own)}{area}"
    named = {name: figures[f"changed {name}"] for name in ("outline", "layer", "status", "class")}
    rows["changed"] += "".join(f"; {name} {count}" for name, count in named.items() if count)
    return rows | ({"output": figures["output"]} if "output" in figures else {})

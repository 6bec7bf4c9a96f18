"""``geolabel evaluate``: score an inventory against the truth."""

from __future__ import annotations

import json
from typing import Any

import click

from .options import as_json, terminal

SECTIONS = {
    "Area": {
        "overall_accuracy": "overall accuracy",
        "precision": "precision",
        "recall": "recall",
        "f1": "F1",
        "iou": "IoU",
        "miou": "mean IoU",
        "kappa": "kappa",
        "true_ha": "true, ha",
        "predicted_ha": "predicted, ha",
    },
    "Objects": {
        "true_landslides": "true landslides",
        "found": "covered to at least half",
        "polygons": "predicted polygons",
        "right": "on landslide to at least half",
        "matched": "pairs of IoU 0.5 or more",
        "object_precision": "precision of pairs",
        "object_recall": "recall of pairs",
        "object_f1": "F1 of pairs",
    },
}
"""The figures, in the order of the table."""


@click.command(short_help="Score polygons against a truth raster or inventory.")
@click.argument("slides", type=click.Path(dir_okay=False))
@click.argument("truth", type=click.Path(dir_okay=False))
@click.option("--layer", help="Layer of SLIDES; default landslides, or the first.")
@click.option("--truth-layer", help="Layer of TRUTH, where it holds polygons; default landslides, or the first.")
@click.option(
    "--scene",
    type=click.Path(dir_okay=False),
    help="Raster whose outline was judged, where TRUTH holds polygons; accuracy and kappa need it or --aoi.",
)
@click.option("--aoi", type=click.Path(dir_okay=False), help="Judge only what lies inside the polygons of this file.")
@as_json
@terminal
def evaluate(
    slides: str,
    truth: str,
    layer: str | None,
    truth_layer: str | None,
    scene: str | None,
    aoi: str | None,
    as_json: bool,
) -> None:
    """Score the polygons of SLIDES against TRUTH.

    TRUTH is a raster (1 landslide, 255 or nodata not judged, all else background) or a file of polygons.
    """
    from geolabel.run.evaluate import evaluate as score

    figures = score(slides, truth, layer=layer, truth_layer=truth_layer, scene=scene, aoi=aoi).as_dict()
    if as_json:
        click.echo(json.dumps(figures, indent=2))
    else:
        _print_table(figures)


def _print_table(figures: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    for section, names in SECTIONS.items():
        table = Table("", section, box=None, pad_edge=False, header_style="bold")
        table.columns[1].justify = "right"
        for key, name in names.items():
            value = figures[key]
            text = "not defined" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)
            table.add_row(name, text)
        console.print(table)
        console.print()

"""``geolabel evaluate``: score an inventory or label maps against a truth."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from geolabel.errors import VectorError

from .commands import command, option
from .inputs import SCENE, VECTORS, Input
from .options import aoi_layer, as_json, terminal
from .terminal import loading, progress_bar

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


@command(short_help="Score polygons or predicted labels against a truth.")
@click.argument("slides", type=Input(VectorError))
@click.argument("truth", type=Input(VectorError))
@option("--layer", group="input", help="Layer of SLIDES. Default: landslides, or the only one.")
@option(
    "--truth-layer", group="input", help="Layer of TRUTH, if it holds polygons. Default: landslides, or the only one."
)
@option(
    "--scene",
    group="input",
    type=SCENE,
    help="With a TRUTH of polygons: raster whose extent is scored; accuracy and kappa need it or --aoi. With a TRUTH "
    "without georeference: the raster of the same size that it belongs to.",
)
@option(
    "--aoi",
    group="input",
    type=VECTORS,
    help="Score only inside the polygons of this file.",
)
@aoi_layer
@option(
    "--class",
    "classes",
    group="input",
    multiple=True,
    metavar="NAME",
    help="Class to score; repeatable. Default: all, each separately if both files have several.",
)
@option("--class-name", group="input", default="landslide", show_default=True, help="Name of label 1 of chips.")
@as_json
@terminal
@click.pass_context
def evaluate(
    ctx: click.Context,
    /,
    slides: str,
    truth: str,
    layer: str | None,
    truth_layer: str | None,
    scene: str | None,
    aoi: str | None,
    aoi_layer: str | None,
    classes: tuple[str, ...],
    class_name: str,
    as_json: bool,
) -> None:
    """Score the polygons of SLIDES against TRUTH.

    TRUTH is a file of polygons or a raster: 1 is landslide, 255 or nodata is ignored, other values are background; or 0
    and 255. Ground outside the raster, the scene or the area of interest is ignored. True landslides are connected
    regions of pixels or polygons. Classes, in a column "class" or in band tags class_K, are scored separately, with
    their mean.

    If TRUTH is a folder of chips with masks, SLIDES is a folder of label maps of these chips, as "geolabel label"
    writes it, or the file of a student. The figures then have 95 % intervals, by resampling the chips.

    \b
    geolabel evaluate slides.gpkg truth.gpkg --scene scene.tif
    geolabel evaluate pseudo/ chips/
    geolabel evaluate student.safetensors chips/
    """
    if Path(truth).is_dir():
        foreign = {
            "--layer": layer,
            "--truth-layer": truth_layer,
            "--scene": scene,
            "--aoi": aoi,
            "--aoi-layer": aoi_layer,
            "--class": classes,
        }
        _score_chips(
            ctx, slides, truth, class_name, [name for name, value in foreign.items() if value], as_json=as_json
        )
        return
    with loading(ctx, "comparing"):
        from geolabel.evaluation.evaluate import evaluate as score

        figures = score(
            slides,
            truth,
            layer=layer,
            truth_layer=truth_layer,
            scene=scene,
            aoi=aoi,
            aoi_layer=aoi_layer,
            classes=classes,
        ).as_dict()
    if as_json:
        click.echo(json.dumps(figures, indent=2))
    else:
        _print_table(figures)


def _score_chips(
    ctx: click.Context, predicted: str, truth: str, class_name: str, foreign: list[str], *, as_json: bool
) -> None:
    from geolabel.errors import OptionError
    from geolabel.evaluation.chip_scores import score_chips

    if foreign:
        raise OptionError(f"{', '.join(foreign)}: not an option for chips, which have no georeference")
    with progress_bar(ctx) as progress:
        scores = score_chips(predicted, truth, class_name=class_name, progress=progress)
    tables = scores.tables()
    if as_json:
        click.echo(json.dumps({"chips": len(scores.names), **tables}, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    console = Console()
    for title, figures in tables.items():
        table = Table("", title, "from", "to", box=None, pad_edge=False, header_style="bold")
        for column in table.columns[1:]:
            column.justify = "right"
        for name, row in figures.items():
            table.add_row(_words(name), *("not defined" if v is None else f"{v:.4f}" for v in row.values()))
        console.print(table)
        console.print()


def _words(name: str) -> str:
    *of, key = name.split(" ")
    return " ".join([*of, SECTIONS["Area"].get(key, key)])


def _print_table(figures: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    classes = figures.get("classes", {})
    columns = [figures, *classes.values(), *([figures["mean"]] if classes else [])]
    for section, names in SECTIONS.items():
        titles = ["all", *classes, "mean"] if classes else [section]
        table = Table(section if classes else "", *titles, box=None, pad_edge=False, header_style="bold")
        for column in table.columns[1:]:
            column.justify = "right"
        for key, name in names.items():
            table.add_row(name, *(_text(values[key]) if key in values else "" for values in columns))
        console.print(table)
        console.print()


def _text(value: float | None) -> str:
    return "not defined" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)

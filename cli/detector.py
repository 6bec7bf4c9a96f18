"""``geolabel train detector``: Mask R-CNN on instances."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from . import options
from .terminal import announce


@click.command()
@click.argument("labels", type=click.Path(path_type=Path))
@click.option("-o", "--out", required=True, type=click.Path(file_okay=False, path_type=Path),
              help="Folder for detector.safetensors and the curves.")  # fmt: skip
@click.option("--start", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
              help="A detector to go on from, such as one that learned from pseudo-labels.")  # fmt: skip
@click.option("--share", type=click.FloatRange(0, 1, min_open=True), default=1.0, show_default=True,
              help="Part of the images to learn from; less is among more.")  # fmt: skip
@click.option("--test", type=click.Path(path_type=Path), metavar="FOLDER|FILE",
              help="Images with objects to report on; default one in five of LABELS, kept aside.")  # fmt: skip
@click.option("--preset", type=click.Choice(["cpu", "paper"]), default="cpu", show_default=True,
              help="Numbers of the training: of a small machine, or as papers have them.")  # fmt: skip
@click.option("--epochs", type=click.FloatRange(min=0, min_open=True), metavar="N",
              help="How often every image is seen; default the preset's.")  # fmt: skip
@click.option("--minutes", type=click.FloatRange(min=0, min_open=True), metavar="N",
              help="End by then; the weights then depend on the machine's speed.")  # fmt: skip
@click.option("--size", type=click.IntRange(min=64), metavar="PX", help="Side of the crops, a multiple of 32.")
@click.option("--crops", "batch", cls=options.Named, type=click.IntRange(min=1), metavar="N",
              help="Crops of a step; default the preset's.")  # fmt: skip
@click.option("--class-name", default="landslide", show_default=True, help="What masks of one class show.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Number to draw from.")
@options.place_options
@options.terminal
def detector(
    labels: Path, out: Path, test: Path | None, class_name: str, resume: bool, overwrite: bool, as_json: bool,
    **given: Any,
) -> None:  # fmt: skip
    r"""Train a detector of instances, Mask R-CNN, on LABELS.

    LABELS is a folder as "geolabel label" writes it, a folder of chips with masks, or a COCO file. What is reported is
    the average precision as COCO has it. As DiffuPrompter was measured:

    \b
    geolabel train detector pseudo/ --out first/ --test real.json
    geolabel train detector outlined.json --start first/detector.safetensors --share 0.25 --out tuned/ --test real.json
    """
    options.check_training(out / "detector.safetensors", overwrite=overwrite)
    from geolabel.run.detectors import DetectorRequest, train_detector

    networks = options.training_networks(given)
    request = DetectorRequest(**given)
    figures = train_detector(labels, out, request, test=test, networks=networks, class_name=class_name, resume=resume)
    rounded = {name: round(value, 4) for name, value in figures.items()}
    announce({"detector": str(out / "detector.safetensors"), **rounded}, as_json=as_json)

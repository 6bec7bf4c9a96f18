"""``geolabel train localizer`` and ``geolabel train student``: train networks on chips."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

from . import options
from .commands import command, option
from .inputs import CHIPS, CHIPS_PATH
from .terminal import announce, loading, progress_bar
from .workers import at_work, cluster_options

SMP = "unet", "deeplabv3plus", "segformer", "upernet", "pspnet"
"""Networks of segmentation-models-pytorch."""

LIBRARIES = {
    "maskrcnn": ("pycocotools",),
    **dict.fromkeys(SMP, ("segmentation_models_pytorch",)),
}
"""Libraries that students need besides lightning, by --model."""

_epochs = option(
    "--epochs",
    group="method",
    type=click.FloatRange(min=0, min_open=True),
    metavar="N",
    help="Number of epochs. Default: that of the preset.",
)
_minutes = option(
    "--minutes",
    group="method",
    type=click.FloatRange(min=0, min_open=True),
    metavar="N",
    help="Maximum duration in minutes; the weights then depend on the speed of the machine.",
)
_size = option(
    "--size", group="method", type=click.IntRange(min=64), metavar="PX", help="Side of the crops, a multiple of 32."
)
_crops = option(
    "--crops",
    "batch",
    group="method",
    type=click.IntRange(min=1),
    metavar="N",
    help="Number of crops in a batch. Default: that of the preset.",
)
_gsd = option(
    "--gsd",
    group="input",
    type=float,
    metavar="METRES",
    help="Pixel size of images without georeference, such as PNGs.",
)
_seed = option("--seed", group="method", type=click.IntRange(min=0), default=0, show_default=True, help="Random seed.")


@command()
@click.argument("chips", type=CHIPS)
@option(
    "-o",
    "--out",
    group="output",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder to write: localizer.safetensors and training curves.",
)
@option(
    "--method",
    group="method",
    type=click.Choice(["cam", "s2c", "cism"]),
    default="cam",
    show_default=True,
    help="Training method. cam: from image labels alone, as in APSAM; s2c: also from segments of a segmenter; cism: "
    "from pairs of chips.",
)
@option(
    "--init",
    group="method",
    default="imagenet",
    show_default=True,
    metavar="imagenet|bundled|FILE|TIMM-NAME|none",
    help="Initial weights: a trunk pretrained on ImageNet, which comes with geolabel; the bundled localizer, which "
    "learned from masks; a localizer of your own; a network of timm (downloaded); or none.",
)
@option(
    "--init-weights",
    group="method",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="ImageNet weights of the backbone, with --init imagenet and --preset paper or code, or a --backbone: a file "
    "of timm or torchvision, or the published WRN-38.",
)
@option(
    "--preset",
    group="method",
    type=click.Choice(["cpu", "paper", "code"]),
    default="cpu",
    show_default=True,
    help="Hyperparameters: for a small machine, of the paper, or of the released code of the authors.",
)
@option(
    "--backbone",
    group="method",
    metavar="TIMM-NAME|wrn38",
    help="Backbone, with --init none, or with --init imagenet and --init-weights. Default: that of the preset.",
)
@_epochs
@_minutes
@_size
@_crops
@option("--class-name", group="input", default="landslide", show_default=True, help="Name of label 1.")
@_gsd
@_seed
@options.training_options
@cluster_options
@options.terminal
@click.pass_context
def localizer(
    ctx: click.Context,
    /,
    chips: str,
    out: Path,
    class_name: str,
    resume: bool,
    overwrite: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Train a localizer on CHIPS, from labels of whole chips.

    CHIPS is a folder or table as "geolabel chips" writes it. The localizer is for scenes:

    \b
    geolabel train localizer chips/ --method cam --out trained/
    geolabel extract scene.tif --localizer trained/localizer.safetensors --out slides.gpkg
    """
    from geolabel.folders import check_folder

    if given["method"] != "s2c" and (given["workers"] or given["scheduler"]):
        raise click.UsageError(
            f"--workers and --scheduler are for the segments of --method s2c; {given['method']} trains in this process"
        )
    options.check_training(out / "localizer.safetensors", overwrite=overwrite)
    check_folder(out, [chips], shared=True)
    with ExitStack() as stack:
        with loading(ctx):
            from geolabel.datasets.chips import read_chips
            from geolabel.training.localizers import LocalizerRequest
            from geolabel.training.train import train

            stack.enter_context(at_work(given))
            networks = options.training_networks(given)
        with progress_bar(ctx) as progress:
            figures = train(
                read_chips(chips, class_name=class_name),
                out,
                LocalizerRequest(**given),
                networks=networks,
                overwrite=overwrite,
                resume=resume,
                progress=progress,
            )
    rounded = {name: round(value, 4) for name, value in figures.items()}
    announce({"localizer": str(out / "localizer.safetensors"), **rounded}, as_json=as_json)


@command()
@click.argument("labels", type=CHIPS)
@option(
    "-o",
    "--out",
    group="output",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder to write: student.safetensors or detector.safetensors, and training curves.",
)
@option(
    "--model",
    group="method",
    type=click.Choice(["resunet", "bundled", "imagenet", *SMP, "maskrcnn"]),
    help="Network: ResUNet of APSAM; bundled or imagenet, on the trunk of the bundled localizer, which learned from "
    "masks, or one pretrained on ImageNet; a network of segmentation-models-pytorch; or Mask R-CNN, which finds "
    "single objects. Default: imagenet; resunet with --preset paper.",
)
@option(
    "--preset",
    group="method",
    type=click.Choice(["cpu", "paper"]),
    default="cpu",
    show_default=True,
    help="Hyperparameters: for a small machine, or of the papers of APSAM and DiffuPrompter.",
)
@option(
    "--init",
    group="method",
    type=(click.Choice(["overall", "backbone", "head"]), click.Path(dir_okay=False, path_type=Path)),
    metavar="overall|backbone|head FILE",
    help="Initial weights from another student: of the whole network, its backbone or its head.",
)
@option(
    "--init-weights",
    group="method",
    metavar="imagenet|FILE",
    help="ImageNet weights for the encoder of a network of segmentation-models-pytorch: imagenet downloads those of "
    "the library; FILE is one of timm or torchvision.",
)
@option(
    "--share",
    group="method",
    type=click.FloatRange(0, 1, min_open=True),
    default=1.0,
    show_default=True,
    help="Share of the images to learn from; a smaller share is a subset of a larger one.",
)
@option(
    "--test",
    group="input",
    type=CHIPS_PATH,
    metavar="FOLDER|FILE",
    help="Masks or objects to test on. Default: one in five of LABELS.",
)
@_epochs
@_minutes
@_size
@_crops
@option(
    "--plain",
    group="method",
    is_flag=True,
    help="Sample crops uniformly and use cross-entropy alone. Otherwise half of the crops of preset cpu show a "
    "class, and the loss includes the overlap.",
)
@option(
    "--class-name",
    group="input",
    default="landslide",
    show_default=True,
    help="Name of label 1 of chips with masks.",
)
@_gsd
@_seed
@options.place_options
@options.terminal
def student(
    labels: str,
    out: Path,
    model: str | None,
    test: Path | None,
    plain: bool,
    class_name: str,
    resume: bool,
    overwrite: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Train a student on LABELS: pseudo-labels, or chips with masks.

    LABELS is a folder as "geolabel label" or "geolabel chips" writes it. The student segments scenes by itself:

    \b
    geolabel train student pseudo/ --out trained/
    geolabel train student masks/ --init overall trained/student.safetensors --out tuned/
    geolabel extract scene.tif --student trained/student.safetensors --out slides.gpkg

    Mask R-CNN learns objects, from such a folder or from a COCO file, and reports average precision as COCO does. As in
    the evaluation of DiffuPrompter:

    \b
    geolabel train student pseudo/ --model maskrcnn --out first/ --test real.json
    geolabel train student outlined.json --model maskrcnn --init overall first/detector.safetensors --share 0.25
        --out tuned/ --test real.json
    """
    kind = "detector" if model == "maskrcnn" else "student"
    file = out / f"{kind}.safetensors"
    from geolabel.folders import check_folder

    options.check_training(file, *LIBRARIES.get(model or "", ()), overwrite=overwrite)
    check_folder(out, [labels, *([] if test is None else [test])], shared=True)
    networks = options.training_networks(given)
    from geolabel.training.train import train

    if kind == "detector":
        from geolabel.errors import OptionError

        if plain:
            raise OptionError("--plain: Mask R-CNN has its own losses; omit it")
        if given.pop("init_weights") is not None:
            raise OptionError("--init-weights: Mask R-CNN starts with random weights or --init; omit it")
        from geolabel.datasets.instances import read_instances
        from geolabel.training.detectors import DetectorRequest

        objects = read_instances(labels, class_name=class_name)
        apart = None if test is None else read_instances(test, class_name=class_name)
        figures = train(
            objects, out, DetectorRequest(**given), test=apart, networks=networks, overwrite=overwrite, resume=resume
        )
    else:
        from geolabel.datasets.chips import read_painted
        from geolabel.datasets.examples import PaintedExamples
        from geolabel.training.students import StudentRequest

        examples: PaintedExamples = read_painted(labels, class_name=class_name)
        held: PaintedExamples | None = None if test is None else read_painted(test, class_name=class_name)
        request = StudentRequest(model, plain=plain, **given)
        figures = train(examples, out, request, test=held, networks=networks, overwrite=overwrite, resume=resume)
    rounded = {name: round(value, 4) for name, value in figures.items()}
    announce({kind: str(file), **rounded}, as_json=as_json)

"""``geolabel study``: ablations and parameter sweeps of the methods."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from geolabel.errors import ChipError

from . import options
from .commands import F, group, option
from .inputs import CHIPS, CHIPS_PATH, NETWORK, Input, numbers
from .settings import method_options
from .terminal import announce, loading, progress_bar
from .train_on_chips import LIBRARIES, SMP

if TYPE_CHECKING:
    from geolabel.evaluation.steps import Section


@group(short_help="Run ablations and parameter sweeps of the methods.")
def study() -> None:
    """Run ablations and parameter sweeps of a method: a table and a plot.

    Chips need labels and masks. Masks are the reference; only the study of alps also trains on some.
    """


FOLDER = click.Path(file_okay=False, path_type=Path)

_out = option(
    "-o",
    "--out",
    group="output",
    required=True,
    type=FOLDER,
    help="Folder to write: table, plot and figures; an interrupted study resumes there.",
)
_only = option(
    "--only",
    group="method",
    multiple=True,
    metavar="ROW",
    help="Row of the table to measure; repeatable. Default: all.",
)


def _study_options(command: F) -> F:
    for decorate in (
        options.terminal,
        options.as_json,
        options.overwrite,
        options.segmenter_options,
        option(
            "--single-scale",
            group="method",
            is_flag=True,
            help="One view of a chip, instead of four scales and mirrored ones: fifteen times as fast.",
        ),
        option(
            "--class-name",
            group="input",
            default="landslide",
            show_default=True,
            help="Name of label 1 of the chips.",
        ),
        _only,
        _out,
        click.argument("chips", type=CHIPS),
    ):
        command = decorate(command)
    return command


_localizer = option(
    "--localizer",
    group="method",
    type=NETWORK,
    default="bundled",
    show_default=True,
    metavar="NAME|FILE",
    help="Network that makes the activation maps.",
)
_pamr = option(
    "--pamr",
    group="method",
    is_flag=True,
    help="Refine the activation maps first, as label does with localizers that learned from image labels.",
)
_epochs = option(
    "--epochs",
    group="method",
    type=click.FloatRange(min=0, min_open=True),
    metavar="N",
    help="Epochs of each training. Default: that of the preset, 8 with cpu.",
)
_size = option(
    "--size",
    group="method",
    type=click.IntRange(min=32),
    metavar="PX",
    help="Side of the crops of each training. Default: that of the preset, 160 with cpu.",
)
_init = option(
    "--init",
    group="method",
    default="imagenet",
    show_default=True,
    metavar="imagenet|bundled|FILE|NAME|none",
    help="Initial weights of each training, as in train localizer.",
)
_init_weights = option(
    "--init-weights",
    group="method",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="ImageNet weights of the backbone of --preset paper or code, as in train localizer.",
)


def _preset(*names: str) -> Callable[[F], F]:
    return option(
        "--preset",
        group="method",
        type=click.Choice(names),
        default="cpu",
        show_default=True,
        help="Hyperparameters of each training, except those that its row varies; as in train localizer.",
    )


_seeds = option(
    "--seeds",
    group="method",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="N",
    help="Number of random seeds to train each row with.",
)


@study.command()
@_study_options
@_localizer
@_pamr
@click.pass_context
def threshold(ctx: click.Context, /, **given: Any) -> None:
    """The threshold of APSAM's activation: pseudo-labels at grey values from 40 to 220."""
    _run(ctx, "threshold", given)


@study.command()
@_study_options
@_localizer
@_pamr
@click.pass_context
def prompts(ctx: click.Context, /, **given: Any) -> None:
    """The prompts of APSAM's segmenter: points, boxes, or both."""
    _run(ctx, "prompts", given)


@study.command()
@_study_options
@_localizer
@_pamr
@click.pass_context
def everything(ctx: click.Context, /, **given: Any) -> None:
    """Masks from a grid of eight by eight points without a map, compared with APSAM."""
    _run(ctx, "everything", given)


@study.command()
@_study_options
@_epochs
@_size
@option(
    "--points-per-side",
    group="method",
    type=click.IntRange(min=1),
    metavar="N",
    help="Points of the grid of prompts along each side of a chip. Default: that of the preset, 12 with cpu.",
)
@_init
@_init_weights
@_preset("cpu", "paper", "code")
@_seeds
@click.pass_context
def s2c(ctx: click.Context, /, **given: Any) -> None:
    """What the terms of S2C add to the class activation; trains nine networks."""
    _run(ctx, "s2c", given)


@study.command()
@_study_options
@_epochs
@_size
@_init
@_init_weights
@_preset("cpu", "paper")
@_seeds
@click.pass_context
def cism(ctx: click.Context, /, **given: Any) -> None:
    """What the modules and losses of CISM add to the class activation; trains twelve networks."""
    _run(ctx, "cism", given)


def _run(ctx: click.Context, name: Any, given: dict[str, Any]) -> None:
    chips, out, class_name, as_json = (given.pop(key) for key in ("chips", "out", "class_name", "as_json"))
    if name in ("s2c", "cism"):
        options.check_training(out / "nothing", overwrite=True)
    with loading(ctx):
        from geolabel.datasets.chips import read_chips
        from geolabel.evaluation.studies import Study
        from geolabel.folders import check_work

    check_work(out, overwrite=given["overwrite"], inputs=[chips])
    networks = options.networks_of(given)
    with progress_bar(ctx) as progress:
        found = Study(name, read_chips(chips, class_name=class_name), out, networks, progress=progress, **given).run()
    _announce(found, out, as_json=as_json)


def _announce(found: Section, out: Path, *, as_json: bool) -> None:
    rows = {", ".join(filter(None, (row.method, row.data))): row.figures for row in found.measured}
    files = {"table": str(out / f"{found.name}.md"), "plot": str(out / f"{found.name}.png")}
    announce(files | rows, as_json=as_json)


@study.command()
@click.argument("labels", type=CHIPS_PATH)
@_out
@option(
    "--classes",
    group="method",
    metavar="NAME[/SYNONYM...],...",
    help="Words for the classes of LABELS, in order. Default: their names.",
)
@option(
    "--diffusion",
    group="method",
    metavar="FOLDER|OWNER/NAME",
    help="Model of Stable Diffusion 1.x, a folder or a name on the Hugging Face hub.",
)
@option("--template", group="method", rare=True, help="Text around the name of the class. Default: Photo of a {}.")
@option(
    "--timesteps",
    group="method",
    default="30,40,50",
    show_default=True,
    callback=numbers(int),
    metavar="N,...",
    help="Steps of the noise schedule, at 50 draws.",
)
@option(
    "--draws",
    group="method",
    default="1,5,10,25,50,100",
    show_default=True,
    callback=numbers(int),
    metavar="N,...",
    help="Numbers of draws, at step 40.",
)
@option(
    "--thresholds",
    group="sensitivity",
    default="0.3,0.4,0.5",
    show_default=True,
    callback=numbers(float),
    metavar="N,...",
    help="Thresholds of the activation; each costs little more.",
)
@option("--class-name", group="input", default="landslide", show_default=True, help="Name of label 1 of the chips.")
@options.segmenter_options
@options.overwrite
@options.as_json
@options.terminal
@click.pass_context
def diffuprompter(
    ctx: click.Context, /, labels: Path, out: Path, class_name: str, overwrite: bool, as_json: bool, **given: Any
) -> None:
    """The time step, threshold and number of draws of DiffuPrompter, and what the segmenter adds to the map.

    LABELS is a folder of chips with masks, an output folder of "geolabel label", or a COCO file. An hour or more on a
    GPU for a hundred images; fewer numbers take less.
    """
    from geolabel.concepts import Grounding, parse_concepts
    from geolabel.datasets.instances import read_instances
    from geolabel.evaluation.study_diffuprompter import DiffuPrompterStudy
    from geolabel.folders import check_work
    from geolabel.models.diffusion_files import DEFAULT

    plain = options.networks_of(given)
    check_work(out, overwrite=overwrite, inputs=[labels])
    examples = read_instances(labels, class_name=class_name)
    words, template = given.pop("classes"), given.pop("template")
    concepts = parse_concepts(words or ",".join(examples.classes))
    grounding = Grounding(concepts, **({"template": template} if template else {}))
    source = given.pop("diffusion") or DEFAULT
    swept = {name: given.pop(name) for name in ("timesteps", "draws", "thresholds")}
    with progress_bar(ctx) as progress:
        found = DiffuPrompterStudy(
            examples, out, plain, source, grounding, overwrite=overwrite, progress=progress, **swept
        ).run()
    _announce(found, out, as_json=as_json)


@study.command()
@click.argument("chips", type=Input(ChipError, file_okay=False, path_type=Path))
@_out
@_only
@option("--test", group="input", type=FOLDER, help="Chips with masks to test on. Default: one in five of CHIPS.")
@option("--images", group="input", type=FOLDER, help="Images to make pseudo-labels of. Default: those of CHIPS.")
@option("--before", group="input", type=FOLDER, help="Images of another set, to pre-train the row chained on first.")
@option(
    "--masks",
    group="method",
    default="50",
    show_default=True,
    callback=numbers(int),
    metavar="N,...",
    help="Numbers of masks to tune on, with as many chips without a landslide.",
)
@option(
    "--seeds",
    group="method",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="N",
    help="Number of times that students are tuned, each on other chips.",
)
@option(
    "--steps",
    group="method",
    type=click.IntRange(min=2),
    default=300,
    show_default=True,
    metavar="N",
    help="Steps of pre-training and of tuning; the paper has 80000.",
)
@option(
    "--model",
    group="method",
    type=click.Choice(["imagenet", "resunet", *SMP]),
    help="Network of the student. Default: imagenet, a ResUNet on a trunk pretrained on ImageNet, where the row "
    "scratch begins too; resunet, from random weights, with --preset paper.",
)
@option(
    "--preset",
    group="method",
    type=click.Choice(["cpu", "paper"]),
    default="cpu",
    show_default=True,
    help="Preset of the student and its training.",
)
@option(
    "--size", group="method", type=click.IntRange(min=64), metavar="PX", help="Side of the crops, a multiple of 32."
)
@option(
    "--crops",
    group="method",
    type=click.IntRange(min=2),
    metavar="N",
    help="Number of crops in a batch. Default: that of the preset.",
)
@option(
    "--seed",
    group="method",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Random seed of the clusters.",
)
@option("--class-name", group="input", default="landslide", show_default=True, help="Name of label 1 of the chips.")
@method_options("for_chips", only="alps", without=("seed", "regions"))
@options.segmenter_options
@options.overwrite
@options.as_json
@options.terminal
@click.pass_context
def alps(
    ctx: click.Context, /, chips: Path, out: Path, class_name: str, overwrite: bool, as_json: bool, **given: Any
) -> None:
    """What a student gains from ALPS before its first mask, with other gates, clusters and steps.

    In each row a student is pre-trained on pseudo-labels, keeps some of its weights, and is fine-tuned on a few masks
    of CHIPS. The row scratch is only fine-tuned; gains are relative to it, on the same chips. Rows: overall, backbone,
    head; gate 0.1, 0.3, 0.5, 0.7, 1.0; binary; chained; longer. Each takes as long as two trainings of its steps; the
    segmenter sees each image once.

    \b
    geolabel study alps data/train --test data/val --masks 50,200 --seeds 3 --only overall --out study/
    geolabel study alps data/train --test data/val --before other/ --out study/
    """
    options.check_training(out / "nothing", "sklearn", *LIBRARIES.get(given["model"] or "", ()), overwrite=True)
    with loading(ctx):
        from geolabel.datasets.chips import read_chips
        from geolabel.evaluation.study_alps import AlpsStudy
        from geolabel.folders import check_work
        from geolabel.methods import METHODS
        from geolabel.training.students import StudentRequest

    check_work(out, overwrite=overwrite, inputs=[chips])
    networks = options.networks_of(given)
    learner = {name: given.pop(name) for name in ("model", "preset", "size")} | {"batch": given.pop("crops")}
    test = given.pop("test")
    kept = {name: given.pop(name) for name in ("only", "before", "masks", "seeds", "steps")}
    images = given.pop("images") or chips
    with progress_bar(ctx) as progress:
        study = AlpsStudy(
            read_chips(chips, class_name=class_name),
            images,
            out,
            networks,
            test=None if test is None else read_chips(test, class_name=class_name),
            settings=METHODS["alps"].settings(given),
            student=StudentRequest(**learner),
            overwrite=overwrite,
            progress=progress,
            **kept,
        )
        found = study.run()
    _announce(found, out, as_json=as_json)

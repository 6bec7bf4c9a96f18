"""``geolabel bench``: measure the networks against simple baselines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from . import options
from .commands import group, option
from .inputs import CHIPS_PATH
from .terminal import announce, loading, progress_bar

SECTIONS = ("mask", "map", "gate", "scene", "coarse", "band", "alarms", "synthetic", "speed")

FOLDER = click.Path(file_okay=False, path_type=Path)


@group()
def bench() -> None:
    """Measure the networks against simple baselines."""


class Names(click.ParamType):  # type: ignore[type-arg]
    """Names separated by commas."""

    name = "names"

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:  # noqa: ARG002
        """Show the form in the help."""
        return "NAME[,NAME]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Split at commas; an unknown name is an error that lists the known ones."""
        names = value.split(",") if isinstance(value, str) else list(value)
        unknown = [name for name in names if name not in SECTIONS]
        if unknown:
            self.fail(f"{', '.join(unknown)}: known are {', '.join(SECTIONS)}", param, ctx)
        return tuple(dict.fromkeys(names))


@bench.command()
@option(
    "--out",
    group="output",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder to write: quality.md, quality.json and reliability curves.",
)
@option(
    "--data",
    group="input",
    type=FOLDER,
    help="Folder with any of sichuan, bijie, hokkaido_planet_3m, l4s_rgb_10m, negatives and geotiffs.",
)
@option("--sichuan", group="input", type=FOLDER, help="Orthophotos with careful outlines: images/ and masks/.")
@option(
    "--bijie",
    group="input",
    type=FOLDER,
    help="Chips with and without landslides: train/ and val/, images/ and masks/.",
)
@option("--hokkaido", group="input", type=FOLDER, help="Chips of 3 m, for reports only: images/ and masks/.")
@option(
    "--l4s",
    group="input",
    type=FOLDER,
    help="Chips of 10 m with landslides: train/ and validation/, images/ and masks/.",
)
@option("--negatives", group="input", type=FOLDER, help="Images without landslides, a folder for each set.")
@option("--geotiffs", group="input", type=FOLDER, help="GeoTIFFs that show no landslide.")
@option(
    "--only",
    group="method",
    type=Names(),
    help=f"Sections to measure, of {', '.join(SECTIONS)}; speed only if it is named.",
)
@option(
    "--split",
    group="input",
    type=click.Choice(["report", "select"]),
    default="report",
    show_default=True,
    help="report: images kept for tables; select: images kept for choosing between weights.",
)
@option(
    "--limit",
    group="input",
    type=click.IntRange(min=1),
    metavar="N",
    help="Maximum number of images of each folder, for a quick look.",
)
@option(
    "--speed",
    group="method",
    is_flag=True,
    help="Also time a scene of 4096 px, compared with ViT-B of segment-anything.",
)
@option("--overwrite", group="output", is_flag=True, help="Measure sections again that are in --out.")
@options.own_network_options
@options.as_json
@options.terminal
@click.pass_context
def quality(
    ctx: click.Context,
    /,
    out: Path,
    data: Path | None,
    sichuan: Path | None,
    bijie: Path | None,
    hokkaido: Path | None,
    l4s: Path | None,
    negatives: Path | None,
    geotiffs: Path | None,
    only: tuple[str, ...] | None,
    split: str,
    limit: int | None,
    speed: bool,
    overwrite: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Measure how good the networks are: one table for each question, with the SHA-256 of the weights.

    Masks, maps, gate, polygons by set, ground sample distance and width, false alarms and calibration, each compared
    with simple baselines of the same run. Sets that are not given are skipped. Earlier measurements are kept; those of
    other weights, data or parameters are refused without --overwrite.

    \b
    geolabel bench quality --data data/ --out quality/
    """
    with loading(ctx):
        from geolabel.evaluation.bench import Bench
        from geolabel.evaluation.examples import Data
        from geolabel.evaluation.quality import bench_quality

        networks = options.networks_of(given, localizer=True)
    named = {
        "sichuan": sichuan,
        "bijie": bijie,
        "hokkaido": hokkaido,
        "l4s": l4s,
        "negatives": negatives,
        "geotiffs": geotiffs,
    }
    available = vars(Data.inside(data) if data else Data()) | {name: path for name, path in named.items() if path}
    chosen = only or tuple(name for name in SECTIONS if speed or name != "speed")
    with progress_bar(ctx) as progress:
        files = bench_quality(
            out,
            Bench(
                Data(**available),
                networks,
                split,  # type: ignore[arg-type]
                limit,
                progress=progress,
            ),
            only=chosen,
            overwrite=overwrite,
        )
    announce(files, as_json=as_json)


@bench.command()
@click.argument("quality", type=FOLDER)
@option(
    "--out",
    group="output",
    required=True,
    type=FOLDER,
    help="Folder to write: localizer.md, segmenter.md, measured.json and pictures of failures.",
)
@options.own_network_options
@options.overwrite
@options.as_json
@options.terminal
def card(quality: Path, out: Path, overwrite: bool, as_json: bool, **given: Any) -> None:
    """Write the model cards of the networks, from the output folder QUALITY of bench quality.

    \b
    geolabel bench card quality/ --out cards/
    """
    from geolabel.evaluation.cards import write_cards

    files = write_cards(out, quality, options.networks_of(given, localizer=True), overwrite=overwrite)
    announce(files, as_json=as_json)


@bench.command()
@click.argument("data", type=CHIPS_PATH)
@option(
    "-o",
    "--out",
    group="output",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Table to write, as Markdown.",
)
@option(
    "--preset",
    group="method",
    type=click.Choice(["quick", "cpu", "gpu"]),
    default="cpu",
    show_default=True,
    help="cpu: crops of 160 px, some hours; quick: crops of 128 px and few steps, half an hour of one core for each "
    "seed with --init bundled --limit 1000 --precision bf16; gpu: crops of 256 px. With --init none, ResNet-18 and a "
    "narrow ResUNet, with gpu ResNet-50 and the paper's ResUNet.",
)
@option(
    "--seeds",
    group="method",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    metavar="N",
    help="Number of random seeds to run all steps with.",
)
@option(
    "--minutes",
    group="method",
    type=click.FloatRange(min=0, min_open=True),
    metavar="N",
    help="Minutes after which no step is started; the same command resumes.",
)
@option(
    "--only",
    group="method",
    multiple=True,
    type=click.Choice(["maps", "labels", "students"]),
    help="Measure only the maps of localizers, pseudo-labels or students; repeatable.",
)
@option(
    "--method",
    "methods",
    group="method",
    multiple=True,
    type=click.Choice(["cam", "s2c", "cism"]),
    help="Localizer to measure, with its pseudo-labels and student; repeatable. Default: all three.",
)
@option(
    "--init",
    group="method",
    default="imagenet",
    show_default=True,
    metavar="imagenet|bundled|FILE|NAME|none",
    help="Initial weights of localizers, as in train localizer; imagenet and bundled also apply to students.",
)
@option(
    "--limit",
    group="input",
    type=click.IntRange(min=4),
    metavar="N",
    help="Maximum number of chips of each split, for a quick look.",
)
@option(
    "--epochs",
    group="method",
    type=click.FloatRange(min=0, min_open=True),
    metavar="N",
    help="Epochs of each training, for a quick look.",
)
@option(
    "--pictures",
    group="output",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Also plot twelve chips with their maps, prompts, pseudo-labels and students, as PNG.",
)
@option(
    "--pack",
    group="output",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Only pack DATA into one file, to use as DATA on another machine.",
)
@option(
    "--quality",
    group="output",
    rare=True,
    type=click.IntRange(1, 95),
    default=85,
    show_default=True,
    help="JPEG quality of --pack.",
)
@options.segmenter_options
@option(
    "--overwrite",
    group="output",
    is_flag=True,
    help="Measure again and replace the figures of earlier calls with this --out.",
)
@options.as_json
@options.terminal
@click.pass_context
def weak(
    ctx: click.Context,
    /,
    data: Path,
    out: Path | None,
    pictures: Path | None,
    pack: Path | None,
    quality: int,
    minutes: float | None,
    limit: int | None,
    only: tuple[Any, ...],
    methods: tuple[Any, ...],
    overwrite: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Measure weak supervision by labels of whole chips: localizers, pseudo-labels and students, with baselines.

    DATA is a folder with train/ and val/, each with images/, masks/ and labels.csv, or a pack of such a folder. Figures
    and trainings are kept in a folder beside the table; the same command resumes there.

    \b
    geolabel bench weak chips/ --preset cpu --minutes 60 --out table.md
    geolabel bench weak chips/ --pack chips.zip
    geolabel bench weak chips.zip --preset gpu --out table.md
    """
    import time

    from geolabel.errors import OptionError
    from geolabel.evaluation.examples import pack_chips
    from geolabel.outputs import check_target

    if pack is not None:
        check_target(pack, overwrite=overwrite, suffixes=(".zip",), inputs=[data])
        packed = pack_chips(data, pack, quality=quality, limit=limit, overwrite=overwrite)
        announce({"pack": str(pack), **packed}, as_json=as_json)
        return
    if out is None:
        raise OptionError("no output: give --out FILE.md, or --pack FILE.zip")
    options.check_training(out.with_name("nothing"), overwrite=True)
    with loading(ctx):
        from geolabel.evaluation.weak import KINDS, METHODS, WeakBench
        from geolabel.evaluation.weak_report import draw_sheet, write_table
        from geolabel.folders import check_rewritten, check_work, remember

    work = out.with_name(out.name + ".run")
    check_work(work, overwrite=overwrite)
    for file in (out, *([] if pictures is None else [pictures])):
        check_rewritten(file, work, overwrite=overwrite, suffixes=(file.suffix.lower(),))
    networks = options.networks_of(given)
    deadline = None if minutes is None else time.monotonic() + 60 * minutes
    with progress_bar(ctx) as progress:
        measured = WeakBench(
            data,
            work,
            networks=networks,
            limit=limit,
            deadline=deadline,
            only=only or KINDS,
            methods=methods or METHODS,
            overwrite=overwrite,
            progress=progress,
            **given,
        )
        done = measured.run()
        left = sum(name not in done for name, _ in measured.steps())
        if overwrite and left:
            facts: dict[str, Any] = {"table": f"{out} is kept until all steps are done", "steps done": len(done)}
            announce(facts | {"steps left": left}, as_json=as_json)
            return
        sheet = {} if pictures is None else draw_sheet(measured, pictures)
    write_table(done, out, f"Labels of whole chips: {data.name}, preset {measured.preset}")
    for file in (out, *([] if pictures is None else [pictures])):
        remember(file, work)
    facts = {"table": str(out), "steps done": len(done), "steps left": left}
    announce(facts | ({"pictures": str(pictures), **sheet} if pictures else {}), as_json=as_json)


@bench.command()
@option(
    "--model",
    "models",
    group="method",
    multiple=True,
    type=click.Choice(["vit_b", "vit_l", "vit_h"]),
    help="Encoder of Segment Anything, with random weights; repeatable. Default: all three.",
)
@option(
    "--side",
    group="method",
    type=click.IntRange(min=32),
    default=1024,
    show_default=True,
    metavar="PX",
    help="Side of a tile, a multiple of 16.",
)
@option(
    "--prompts",
    group="method",
    type=click.IntRange(min=1),
    default=32,
    show_default=True,
    help="Number of points in a tile.",
)
@option(
    "--seconds",
    group="method",
    type=click.FloatRange(min=0, min_open=True),
    default=2.0,
    show_default=True,
    metavar="N",
    help="Minimum duration of each row, in seconds.",
)
@option(
    "--profile",
    group="output",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE.json",
    help="Also write a trace of the last model, for Perfetto or chrome://tracing.",
)
@option(
    "--compile",
    "compiled",
    group="method",
    is_flag=True,
    help="Measure the encoders compiled by torch.compile, too, which takes minutes.",
)
@options.machine_options
@option(
    "--batch",
    group="machine",
    type=click.IntRange(min=1),
    help="Tiles per call of the encoder. Default: 8 on a GPU, 1 on a CPU.",
)
@options.as_json
@options.terminal
@click.pass_context
def speed(
    ctx: click.Context,
    /,
    models: tuple[str, ...],
    batch: int | None,
    profile: Path | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Measure how fast Segment Anything runs here, compared with the limits of the machine.

    Ceilings of the same run (matrix products, copies, disk), encoders and their share of the ceiling, the stages of a
    tile, and the path of a scene compared with SamPredictor.

    \b
    geolabel bench speed --model vit_b
    geolabel bench speed --device cuda --profile trace.json --json
    """
    with loading(ctx):
        from geolabel.evaluation.speed import ENCODERS, Measure, bench_speed, table

        options.set_threads(given.pop("threads"))
    found = bench_speed(Measure(models=models or tuple(ENCODERS), batch=batch or 0, **given), profile=profile)
    if as_json:
        announce(found, as_json=True)
    else:
        click.echo(table(found))

"""``geolabel study diffuprompter``: other time steps, thresholds and draws, and the map alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from . import options
from .commands import command, option
from .inputs import CHIPS_PATH
from .terminal import announce, progress_bar


@command()
@click.argument("labels", type=CHIPS_PATH)
@option(
    "-o",
    "--out",
    group="output",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for the table, the plot and the figures; a stopped study resumes there.",
)
@option(
    "--classes",
    group="method",
    metavar="NAME[/SYNONYM...],...",
    help="Words for the classes of LABELS, in their order. Default: their own names.",
)
@option(
    "--diffusion",
    group="method",
    metavar="FOLDER|OWNER/NAME",
    help="A Stable Diffusion 1.x, from a folder or from the Hugging Face hub.",
)
@option("--template", group="method", rare=True, help="The text that the class stands in. Default: Photo of a {}.")
@option(
    "--timesteps",
    group="method",
    default="30,40,50",
    show_default=True,
    callback=options.numbers(int),
    metavar="N,...",
    help="Steps of the noise schedule, at 50 draws.",
)
@option(
    "--draws",
    group="method",
    default="1,5,10,25,50,100",
    show_default=True,
    callback=options.numbers(int),
    metavar="N,...",
    help="Numbers of draws, at step 40.",
)
@option(
    "--thresholds",
    group="sensitivity",
    default="0.3,0.4,0.5",
    show_default=True,
    callback=options.numbers(float),
    metavar="N,...",
    help="Activation that counts; each costs little more.",
)
@option("--class-name", group="input", default="landslide", show_default=True, help="What masks of one class show.")
@options.segmenter_options
@options.overwrite
@options.as_json
@options.terminal
@click.pass_context
def diffuprompter(
    ctx: click.Context, /, labels: Path, out: Path, class_name: str, overwrite: bool, as_json: bool, **given: Any
) -> None:
    """Which time step, threshold and number of draws suit; and what the segmenter adds to the map.

    LABELS is a folder of chips with masks, one as "geolabel label" writes it, or a COCO file. An hour and more on a GPU
    for a hundred images; fewer numbers take less.
    """
    from geolabel.concepts import Grounding, parse_concepts
    from geolabel.datasets.instances import read_instances
    from geolabel.evaluation.grounding import GroundingStudy
    from geolabel.extraction.text_prompts import GroundedNetworks
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
    networks = GroundedNetworks.of(plain, source, grounding)
    with progress_bar(ctx) as progress:
        found = GroundingStudy(examples, out, networks, overwrite=overwrite, progress=progress, **swept).run()
    rows = {row.method: row.figures for row in found.measured}
    announce({"table": str(out / "diffuprompter.md"), "plot": str(out / "diffuprompter.png"), **rows}, as_json=as_json)

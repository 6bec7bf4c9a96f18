"""``geolabel clusters``: show clusters, and name them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from . import options
from .commands import group, option
from .terminal import announce, progress_bar

PSEUDO = click.argument("pseudo", type=click.Path(file_okay=False, path_type=Path))


@group(short_help="Show and name groups of regions found without labels.")
def clusters() -> None:
    """Show the clusters of label --method alps, and name them."""


@clusters.command()
@PSEUDO
@option(
    "-o",
    "--out",
    group="output",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder to write, one PNG for each cluster.",
)
@option(
    "--each",
    group="output",
    type=click.IntRange(min=1),
    default=24,
    show_default=True,
    help="Number of regions on a sheet.",
)
@option("--seed", group="output", type=click.IntRange(min=0), default=0, show_default=True, help="Random seed.")
@options.overwrite
@options.as_json
@options.terminal
@click.pass_context
def show(ctx: click.Context, /, pseudo: Path, out: Path, each: int, seed: int, overwrite: bool, as_json: bool) -> None:
    """Write a contact sheet of every cluster of PSEUDO: some of its regions, outlined, as a help to name it.

    \b
    geolabel clusters show pseudo/ --out sheets/
    """
    from geolabel.folders import replacing_folder
    from geolabel.labeling.cluster_names import followed, sample_regions, write_sheet

    labels, content = _read(pseudo)
    found = content.clusters
    with (
        replacing_folder(out, overwrite=overwrite, inputs=[pseudo], shared=True) as folder,
        progress_bar(ctx) as progress,
    ):
        pictures = sample_regions(progress.track(followed(labels), "look", len(labels)), len(found), each, seed)
        for k, drawn in enumerate(pictures):
            name = "" if found.names[k] == f"cluster_{k}" else f" ({found.names[k]})"
            write_sheet(folder / f"cluster_{k:03d}.png", drawn, f"cluster {k}{name}: {found.sizes[k]} masks")
    announce({"sheets": len(found), "output": str(out)}, as_json=as_json)


@clusters.command()
@PSEUDO
@option(
    "--name",
    "names",
    group="method",
    multiple=True,
    metavar="K=NAME",
    help="Name of cluster K; several clusters may share one.",
)
@option(
    "--chips",
    group="method",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Name the clusters that match the masks of these labelled chips best; PSEUDO contains some of the chips.",
)
@option(
    "--localizer",
    group="method",
    metavar="NAME|FILE",
    help="Name the clusters that match the activation of this localizer best; bundled is the one that comes with "
    "geolabel.",
)
@option(
    "--class",
    "class_name",
    group="method",
    default="landslide",
    show_default=True,
    help="Name to give.",
)
@option(
    "--device",
    group="machine",
    default="auto",
    show_default=True,
    help="Device of the localizer: auto, cpu, cuda, cuda:N or mps.",
)
@options.as_json
@options.terminal
@click.pass_context
def name(
    ctx: click.Context,
    /,
    pseudo: Path,
    names: tuple[str, ...],
    chips: Path | None,
    localizer: str | None,
    class_name: str,
    device: str,
    as_json: bool,
) -> None:
    """Name clusters of PSEUDO by hand, from labelled chips, or by the activation of a localizer.

    The names are written to PSEUDO/clusters.json, for label --clusters and extract --clusters.

    \b
    geolabel clusters name pseudo/ --name 3=landslide --name 7=river
    geolabel clusters name pseudo/ --chips labelled/
    geolabel clusters name pseudo/ --localizer bundled
    """
    from geolabel.datasets.pseudo_labels import NAME, save_clusters
    from geolabel.engine import worker
    from geolabel.errors import OptionError
    from geolabel.labeling import cluster_names
    from geolabel.models.loading import recipe

    if sum(map(bool, (names, chips, localizer))) != 1:
        raise OptionError("give one of --name, --chips and --localizer")
    labels, content = _read(pseudo)
    count = len(content.clusters)
    facts: dict[str, Any] = {}
    if names:
        chosen = _parse(names)
    else:
        if chips is not None:
            truth = cluster_names.chip_masks(chips)
        else:
            truth = cluster_names.active(
                worker.localizer(recipe("localizer", localizer or "", device=device)), class_name
            )
        with progress_bar(ctx) as progress:
            counted = cluster_names.tally(
                progress.track(cluster_names.followed(labels), "name", len(labels)), truth, count
            )
        best = counted.best()
        if not best:
            raise OptionError(f"no cluster overlaps {class_name!r} in the {counted.images} images where it is known")
        chosen = dict.fromkeys(best, class_name)
        scores = counted.confusion(best)
        facts = {"images": counted.images, "precision": scores.precision, "recall": scores.recall, "f1": scores.f1}
        facts = {key: round(value, 4) for key, value in facts.items()}
    content = content.named(chosen)
    save_clusters(pseudo / NAME, content)
    table = {f"cluster {k}": content.clusters.names[k] for k in sorted(chosen)}
    announce(facts | table, as_json=as_json)


def _read(pseudo: Path) -> Any:
    # The labels of a folder and the clusters that they refer to.
    from geolabel.datasets.pseudo_labels import PseudoLabels, load_clusters
    from geolabel.errors import OptionError

    labels = PseudoLabels(pseudo)
    content = load_clusters(pseudo)
    if labels.provenance != content.provenance:
        raise OptionError(f"{pseudo} does not hold the labels that its clusters were made with: label again")
    return labels, content


def _parse(texts: tuple[str, ...]) -> dict[int, str]:
    from geolabel.errors import OptionError

    chosen: dict[int, str] = {}
    for text in texts:
        number, found, name = (part.strip() for part in text.partition("="))
        if not found or not number.isdecimal():
            raise OptionError(f"{text!r}: give the number of a cluster and its name, such as 3=landslide")
        if chosen.setdefault(int(number), name) != name:
            raise OptionError(f"cluster {number} is named twice, {chosen[int(number)]} and {name}: give it one name")
    return chosen

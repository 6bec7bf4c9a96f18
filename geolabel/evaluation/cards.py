"""Model cards that show what was measured: tables of `bench quality`, and pictures of where it went wrong."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, cast

from geolabel.errors import OptionError
from geolabel.evaluation import examples, scenes
from geolabel.evaluation.examples import Example
from geolabel.evaluation.layout import write_scene
from geolabel.evaluation.measured import figures_of_sets
from geolabel.evaluation.quality import PARTS, TABLE
from geolabel.evaluation.table import OURS, Section
from geolabel.extraction.plan import Parameters
from geolabel.extraction.request import Networks
from geolabel.models import loading
from geolabel.models.checkpoint import Kind, load_checkpoint
from geolabel.models.measured import MEASURED, save_measured
from geolabel.outputs import check_target, replacing, together
from geolabel.parsing import read_json
from geolabel.training.cards import write_card
from geolabel.types import BoolArray

SHOWN: dict[Kind, tuple[str, ...]] = {
    "localizer": (
        *("map", "gate", "scene", "coarse", "band", "width", "image"),
        *("alarms", "calibration", "reliability", "synthetic"),
    ),
    "segmenter": ("mask", "scene", "coarse", "gain", "synthetic", "speed"),
}
"""Sections of the table that the card of each network shows."""

FAILURES = "failures.jpg"
"""Pictures of the worst synthetic scenes, beside the cards."""

WORST = 3
"""Scenes on it."""


def write_cards(out: Path, quality: Path, networks: Networks, *, overwrite: bool = False) -> dict[str, Path]:
    """Write the model card of both networks, with the figures that ``bench quality`` left in a folder.

    Parameters
    ----------
    out
        Folder for ``localizer.md``, ``segmenter.md``, `MEASURED` and `FAILURES`; made if it is not there.
    quality
        Folder with the table.
    overwrite
        Whether files that are there may be replaced.

    Returns
    -------
    files written, by what they are

    Raises
    ------
    OptionError
        If the folder holds no table, or one of other networks.
    OutputError
        If a file exists and must not be replaced, or cannot be written.
    """
    table = _read(quality / TABLE)
    out.mkdir(parents=True, exist_ok=True)
    sections = {values["name"]: Section.of(values) for values in table["sections"]}
    pictures = ["The synthetic scenes with the lowest IoU: truth in yellow, what was found in red.", ""]
    pictures += [f"![the worst synthetic scenes]({FAILURES})", ""]
    worst = _worst(quality / PARTS / "synthetic.json")
    files: dict[str, Path] = {}
    paths = [out / name for name in ("localizer.md", "segmenter.md", MEASURED, *([FAILURES] if worst else []))]
    for path in paths:
        check_target(path, overwrite=overwrite, suffixes=(path.suffix,), inputs=[quality / TABLE])
    with together(*paths):
        for recipe in networks.recipes():
            held = table["weights"][recipe.role]["sha256"]
            if held != recipe.sha256:
                raise OptionError(
                    f"{quality / TABLE} was measured with a {recipe.role} of SHA-256 {held}, this one has "
                    f"{recipe.sha256}: run geolabel bench quality --out {quality} again"
                )
            kind = cast("Kind", recipe.role)
            measured = [sections[name].markdown() for name in SHOWN[kind] if name in sections]
            state, info = load_checkpoint(loading.file_of(recipe))
            counted = (tensor for name, tensor in state.items() if "running" not in name and "num_" not in name)
            count = sum(tensor.numel() for tensor in counted)
            files[kind] = out / f"{kind}.md"
            write_card(files[kind], info, parameters=count, measured=measured, failures=pictures if worst else [])
        if figures := figures_of_sets(sections):
            files["measured"] = out / MEASURED
            save_measured(files["measured"], {recipe.role: recipe.sha256 for recipe in networks.recipes()}, figures)
        if worst:
            files["failures"] = out / FAILURES
            draw_failures(files["failures"], worst, networks)
    return files


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise OptionError(f"{path} does not exist: run geolabel bench quality --out {path.parent} first")
    table: dict[str, Any] = read_json(path)
    return table


def _worst(path: Path) -> list[int]:
    """Seeds of the synthetic scenes with the lowest IoU, the worst first; none if they were not measured."""
    if not path.is_file():
        return []
    cases = read_json(path)["section"]["cases"]["synthetic"]
    ranked = sorted((case for case in cases if case[OURS] is not None), key=lambda case: float(case[OURS]))
    return [int(case["name"].removeprefix("seed ")) for case in ranked[:WORST]]


def draw_failures(path: Path, seeds: list[int], networks: Networks) -> None:
    """Draw synthetic scenes side by side: truth in yellow, what was found in red."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(seeds), 4.3), dpi=100, layout="constrained")
    panels = figure.subplots(1, len(seeds), squeeze=False)[0]
    for axes, seed in zip(panels, seeds, strict=True):
        (example,) = examples.Drawn(seed, 1)
        found = find(example, networks)
        axes.imshow(example.rgb)
        for mask, colour in ((example.truth, "yellow"), (found, "red")):
            if mask.any():
                axes.contour(mask, levels=[0.5], colors=colour, linewidths=0.9)
        axes.set_title(example.name, fontsize=9)
        axes.set_axis_off()
    with replacing(path, overwrite=True) as part:
        figure.savefig(part, format="jpeg", pil_kwargs={"quality": 80})


def find(example: Example, networks: Networks) -> BoolArray:
    """(H, W) where the product finds landslides in an example."""
    with tempfile.TemporaryDirectory(prefix="geolabel-") as folder:
        path = write_scene(Path(folder) / "scene.tif", example, examples.SYNTHETIC_GSD)
        ids = scenes.answers(path, networks, Parameters()).answers[OURS].ids
    mask: BoolArray = ids > 0
    return mask

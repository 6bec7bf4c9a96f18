"""Model cards of networks: tables of ``bench quality``, pictures of failures, and the figures of warnings."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from geolabel.errors import OptionError
from geolabel.evaluation import examples
from geolabel.evaluation.examples import Example, SyntheticScenes
from geolabel.evaluation.quality import PARTS, REAL, TABLE
from geolabel.evaluation.scene_scores import WITHOUT
from geolabel.evaluation.scenes import BASELINES, answer_scene, write_scene
from geolabel.evaluation.steps import OURS, Measurement, Section
from geolabel.extraction.request import Networks, Parameters
from geolabel.models import loading
from geolabel.models.checkpoint import Kind, load_checkpoint
from geolabel.models.measured_accuracy import MEASURED, SetFigures, save_measured
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

GSD_OF = {"sichuan": (0.2, 0.9)}
"""Metres per pixel, finest and coarsest, of sets whose images have no georeference."""

NARROW_PX, NARROW_BANDS = 24, ("below 8 px", "8 to 24 px")
"""Width below which landslides are narrow, and the columns of the table of widths below it."""


def write_cards(out: Path, quality: Path, networks: Networks, *, overwrite: bool = False) -> dict[str, Path]:
    """Write the model cards of both networks, with the figures of ``bench quality`` in a folder.

    Parameters
    ----------
    out
        Folder for ``localizer.md``, ``segmenter.md``, `MEASURED` and `FAILURES`; created if necessary.
    quality
        Folder with the table.
    overwrite
        Whether existing files may be replaced.

    Returns
    -------
    written files, by kind

    Raises
    ------
    OptionError
        If the folder has no table, or one of other networks.
    OutputError
        If a file exists and may not be replaced, or cannot be written.
    """
    table = _read(quality / TABLE)
    out.mkdir(parents=True, exist_ok=True)
    sections = {values["name"]: Section.of(values) for values in table["sections"]}
    with_cases = {name: _with_cases(quality / PARTS / f"{name}.json", sections[name]) for name in sections}
    pictures = ["The synthetic scenes with the lowest IoU: truth in yellow, polygons in red.", ""]
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
        if figures := figures_of_sets(with_cases):
            files["measured"] = out / MEASURED
            save_measured(files["measured"], {recipe.role: recipe.sha256 for recipe in networks.recipes()}, figures)
        if worst:
            files["failures"] = out / FAILURES
            _draw_failures(files["failures"], worst, networks)
    return files


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise OptionError(f"{path} does not exist: run geolabel bench quality --out {path.parent} first")
    table: dict[str, Any] = read_json(path)
    return table


def _with_cases(path: Path, section: Section) -> Section:
    # single cases are only in the file of the section, which a later run may have replaced
    held = Section.of(read_json(path)["section"]) if path.is_file() else section
    return replace(section, cases=held.cases) if held.measured == section.measured else section


def _worst(path: Path) -> list[int]:
    """Seeds of the synthetic scenes with the lowest IoU, the worst first; empty if they were not measured."""
    if not path.is_file():
        return []
    cases = read_json(path)["section"]["cases"]["synthetic"]
    ranked = sorted((case for case in cases if case[OURS] is not None), key=lambda case: float(case[OURS]))
    return [int(case["name"].removeprefix("seed ")) for case in ranked[:WORST]]


def _draw_failures(path: Path, seeds: list[int], networks: Networks) -> None:
    """Plot synthetic scenes side by side: truth in yellow, the product's polygons in red."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(seeds), 4.3), dpi=100, layout="constrained")
    panels = figure.subplots(1, len(seeds), squeeze=False)[0]
    for axes, seed in zip(panels, seeds, strict=True):
        (example,) = SyntheticScenes(seed, 1)
        found = _find(example, networks)
        axes.imshow(example.rgb)
        for mask, colour in ((example.truth, "yellow"), (found, "red")):
            if mask.any():
                axes.contour(mask, levels=[0.5], colors=colour, linewidths=0.9)
        axes.set_title(example.name, fontsize=9)
        axes.set_axis_off()
    with replacing(path, overwrite=True) as part:
        figure.savefig(part, format="jpeg", pil_kwargs={"quality": 80})


def _find(example: Example, networks: Networks) -> BoolArray:
    """(H, W) where the product finds landslides in an example."""
    with tempfile.TemporaryDirectory(prefix="geolabel-") as folder:
        path = write_scene(Path(folder) / "scene.tif", example, examples.SYNTHETIC_GSD)
        ids = answer_scene(path, networks, Parameters()).by_method[OURS].ids
    mask: BoolArray = ids > 0
    return mask


# --- figures of sets -------------------------------------------------------------------------------------------------


def figures_of_sets(sections: Mapping[str, Section]) -> list[SetFigures]:
    """Figures of each set of real scenes, from sections by name; sets without ground sample distance are left out."""
    widths = {m.data: m.figures for m in _measured(sections, ["width"]) if m.method == OURS}
    found = []
    for section in (sections[name] for name in REAL if name in sections):
        for ours in (m for m in section.measured if m.method == OURS and WITHOUT not in m.data):
            case = next(iter(section.cases.get(ours.data, [])), {})
            if "gsd" not in case:
                continue
            of_set = [m for m in section.measured if m.data == ours.data and m.method in BASELINES]
            others = {m.method: round(_number(m.figures["F1"]), 4) for m in of_set}
            gsd = GSD_OF.get(ours.data, (case["gsd"], case["gsd"]))
            narrow = _narrow(widths.get(ours.data, {}))
            found.append(SetFigures(ours.data, gsd, round(_number(ours.figures["F1"]), 4), others, **narrow))
    return found


def _measured(sections: Mapping[str, Section], names: Iterable[str]) -> Iterable[Measurement]:
    return (m for name in names if name in sections for m in sections[name].measured)


def _narrow(figures: Mapping[str, float]) -> dict[str, Any]:
    counts = [int(figures.get(f"landslides {band}", 0)) for band in NARROW_BANDS]
    if not sum(counts):
        return {}
    seen = sum(_number(figures[band]) * count for band, count in zip(NARROW_BANDS, counts, strict=True) if count)
    return {"narrow_px": NARROW_PX, "narrow": sum(counts), "narrow_found": round(seen / sum(counts), 4)}


def _number(figure: float) -> float:
    return 0.0 if math.isnan(figure) else figure  # NaN if nothing was found

"""Studies: ablations and parameter sweeps of a method, as table and plot, compared with the paper's figures.

Studies of pseudo-labels use an existing localizer, those of training train one for each row. Chips need masks, which
are the reference and never used in training.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from geolabel.activation import Activation
from geolabel.chips import Chip, ChipSubset, split
from geolabel.datasets.chips import ChipDataset
from geolabel.engine import worker
from geolabel.engine.tasks import Progress, Silent
from geolabel.errors import ChipError
from geolabel.evaluation.chip_scores import paired_interval
from geolabel.evaluation.network_scores import THRESHOLDS, MapScores, image_scores, iou, label_scores
from geolabel.evaluation.steps import (
    Measurement,
    Section,
    check_names,
    figures_of,
    run_steps,
    step_folder,
    write_json,
    write_text,
)
from geolabel.extraction.request import Networks
from geolabel.labelers import ThresholdLabeler
from geolabel.labeling.label import ActivatedLabels, chip_localizer
from geolabel.masks import Masks
from geolabel.methods import apsam
from geolabel.models import loading
from geolabel.models.defaults import segmenter_defaults
from geolabel.models.sam import FittingSegmenter
from geolabel.outputs import replacing
from geolabel.parts import NoMasks, NoPrompts, Pipeline, Segmenter
from geolabel.prompters import GridPrompter
from geolabel.training import localizers
from geolabel.training.cism import CismTerms
from geolabel.training.presets import Method, PresetName
from geolabel.training.s2c import Given, S2cTerms
from geolabel.training.train import train

Figures = dict[str, float]

StudyName = Literal["threshold", "prompts", "everything", "s2c", "cism"]

GREYS = tuple(range(40, 221, 20))
"""Thresholds of the activation in grey values; the paper's is 120."""

POINTS = 8
"""Points along each side of the grid in the study everything: the N of the paper's section III-D."""

QUESTIONS: dict[StudyName, str] = {
    "threshold": "Which threshold of the activation is best? (APSAM, Fig. 5)",
    "prompts": "Which prompts does the segmenter need? (APSAM, Table II)",
    "everything": "What does the segmenter find without prompts? (APSAM, Fig. 4)",
    "s2c": "What do the parts of S2C add to the map? (its Tables 1 and 2)",
    "cism": "What do the parts of CISM add to the map? (its Tables 4 to 8)",
}

_NONE = S2cTerms(contrast=False, prompted=False)
_FULL = S2cTerms()

S2C: dict[str, S2cTerms] = {
    "none": _NONE,
    "SSC on logits": replace(_NONE, contrast=True, contrast_on_logits=True),
    "SSC on features": replace(_NONE, contrast=True),
    "SSC and CPM": _FULL,
    "CPM: single peak": replace(_FULL, single_peak=True),
    "CPM: no scores": replace(_FULL, by_stability=False, by_activation=False),
    "CPM: no activation score": replace(_FULL, by_activation=False),
    "CPM: no segmenter's score": replace(_FULL, by_stability=False),
    "CPM: no background": replace(_FULL, background=False),
}
"""Rows of S2C's Tables 1 and 2."""

_PLAIN = CismTerms(
    prototypes=False, enhancement=False, secondary=False, common=False, non_common=False, generated=False
)
_BASE = replace(_PLAIN, affinity=True)
_VECTORS = replace(_PLAIN, prototypes=True)
_ENHANCED = replace(_VECTORS, enhancement=True)
_LOSSES = replace(_ENHANCED, secondary=True)
_PAIRS = replace(_LOSSES, common=True, non_common=True)
_ALL = CismTerms()

CISM: dict[str, CismTerms] = {
    "baseline": _BASE,
    "without affinity": _PLAIN,
    "PV": _VECTORS,
    "PV and PIE": _ENHANCED,
    "without SLSC": replace(_PAIRS, secondary=False),
    "with SLSC": _PAIRS,
    "SLSC and MCSG": _ALL,
    "losses ml, sl, nsc": replace(_LOSSES, non_common=True),
    "losses ml, sl, csm": replace(_LOSSES, common=True),
    **{f"without SLSC, eta {eta}": replace(_PAIRS, secondary=False, eta=eta) for eta in (0.1, 0.5, 0.7)},
}
"""Rows of CISM's Tables 4 to 8, those of two tables once. Eta is 0.3 unless the row names another.

The baseline is CIAN, whose affinity CISM does not use. PV and PIE are without SLSC: their class vectors are classified
like the image."""

PAPER: dict[StudyName, dict[str, float]] = {
    "threshold": {},
    "prompts": {"point": 0.2733, "box": 0.4851, "both": 0.4900},
    "everything": {},
    "s2c": {
        "none": 0.501,
        "SSC on logits": 0.573,
        "SSC on features": 0.632,
        "SSC and CPM": 0.761,
        "CPM: single peak": 0.730,
        "CPM: no scores": 0.727,
        "CPM: no activation score": 0.732,
        "CPM: no background": 0.749,
    },
    "cism": {
        "baseline": 0.239,
        "PV": 0.246,
        "PV and PIE": 0.284,
        "without SLSC": 0.322,
        "with SLSC": 0.335,
        "SLSC and MCSG": 0.341,
        "losses ml, sl, nsc": 0.203,
        "losses ml, sl, csm": 0.298,
        "without SLSC, eta 0.1": 0.289,
        "without SLSC, eta 0.5": 0.274,
        "without SLSC, eta 0.7": 0.258,
    },
}
"""IoU that APSAM prints, and mean IoU with the background that S2C and CISM print, on their own data (Hong Kong, VOC,
iSAID): compare the order."""

BASELINE: dict[StudyName, str] = {"prompts": "point", "s2c": "none", "cism": "baseline"}
"""Row that the others are compared with, chip by chip."""

_CHIPS = "ious"
"""Key of a row's IoU of each chip, besides its figures."""


@dataclass(frozen=True)
class Study:
    """A study: its rows, the chips and the networks.

    A stopped study resumes: the figures of each row are kept in `out`.
    """

    name: StudyName
    chips: ChipDataset
    out: Path
    """Folder for the table, the plot, and the figures of each row."""
    networks: Networks
    localizer: str = "bundled"
    """Localizer of studies of pseudo-labels."""
    pamr: bool = False
    """Whether its maps are refined; see `geolabel.models.refinement.PamrLocalizer`."""
    epochs: float | None = None
    """Epochs of studies of training."""
    size: int | None = None
    """Side in pixels of training crops; None for the preset's."""
    points_per_side: int | None = None
    """Points of the grid for S2C's segments; None for the preset's."""
    init: str = "imagenet"
    """Initial weights of each training; see `geolabel.training.localizers.LocalizerRequest`."""
    init_weights: Path | None = None
    """File of ImageNet weights, as there."""
    preset: PresetName = "cpu"
    """Preset of each training, except for the settings that its row varies."""
    seeds: int = 1
    """Number of trainings of each row."""
    single_scale: bool = False
    """Use one view of a chip instead of four scales and mirrored views, which take fifteen times as long."""
    only: tuple[str, ...] = ()
    """Names of the rows to measure; empty for all."""
    overwrite: bool = False
    """Whether to measure again; the figures of an earlier study are replaced once this one is complete."""
    progress: Progress = field(default_factory=Silent)

    def rows(self) -> dict[str, Callable[[], dict[str, Any]]]:
        """What each row measures, by its name."""
        if self.name == "s2c":
            return {name: partial(self._trained, "s2c", {"s2c": terms}) for name, terms in S2C.items()}
        if self.name == "cism":
            return {name: partial(self._trained, "cism", {"cism": terms}) for name, terms in CISM.items()}
        if self.name == "threshold":
            cut = {str(grey): replace(apsam.PAPER, activation_threshold=grey) for grey in GREYS}
            return {name: partial(self._labelled, settings) for name, settings in cut.items()}
        if self.name == "prompts":
            kinds: tuple[Literal["point", "box", "both"], ...] = ("point", "box", "both")
            asked = {kind: replace(apsam.PAPER, prompts=kind) for kind in kinds}
            of_maps = {kind: partial(self._labelled, settings) for kind, settings in asked.items()}
            of_masks = partial(self._labelled, of_masks=True)
            return of_maps | {f"{kind} of masks": partial(of_masks, settings) for kind, settings in asked.items()}
        return {"everything": self._everything, "both": partial(self._labelled, apsam.PAPER)}

    def run(self) -> Section:
        """Measure the rows that are not measured yet, and write table and plot.

        Raises
        ------
        ChipError
            If no chip has a mask to compare with.
        OptionError
            If a row of `only` does not exist, or `out` has figures of other options.
        """
        check_names(self.only, self.rows())
        if not any(chip.mask is not None for chip in self._shown()):
            raise ChipError("no chip that shows something has a mask: a study compares with masks, add masks/")
        # by number: names of rows may not be valid file names
        numbers = {name: f"{k:02d}" for k, name in enumerate(self.rows()) if not self.only or name in self.only}
        with step_folder(
            self.out, self._key(), numbers.values(), overwrite=self.overwrite, inputs=self.chips.sources
        ) as folder:
            rows = replace(self, out=folder).rows()
            steps = {number: partial(_named, name, rows[name]) for name, number in numbers.items()}
            done = run_steps(folder, steps, title=self.name, progress=self.progress)
            chips = {values["variant"]: values.pop(_CHIPS, None) for values in done.values()}
            measured = [
                self._measurement(**values | self._over_baseline(values["variant"], chips)) for values in done.values()
            ]
            section = Section(self.name, QUESTIONS[self.name], measured)
            write_study(section, folder, figure="map IoU" if self.name in ("s2c", "cism") else "IoU")
        return section

    def _measurement(self, variant: str, **values: float | None) -> Measurement:
        printed = PAPER[self.name].get(variant)
        name = "mIoU in the paper" if self.name in ("s2c", "cism") else "IoU in the paper"
        return Measurement("", variant, figures_of(values) | ({} if printed is None else {name: printed}))

    def _over_baseline(self, variant: str, chips: Mapping[str, Any]) -> Figures:
        """Mean difference from the IoU of the baseline on the same chips, and its interval of 95 %; see `BASELINE`."""
        baseline = BASELINE.get(self.name, variant)
        own, other = chips[variant], chips.get(baseline)
        if variant == baseline or own is None or other is None:  # rows of an earlier version have no chips
            return {}
        return dict(zip((f"over {baseline}", "from", "to"), paired_interval(own, other), strict=True))

    def _key(self) -> dict[str, Any]:
        """Everything that the figures depend on."""
        kept = ("localizer", "pamr", "epochs", "size", "points_per_side", "init", "preset", "seeds", "single_scale")
        key = {name: getattr(self, name) for name in kept} | self._place()
        key["init_weights"] = self.init_weights and str(self.init_weights)
        return key | {"segmenter": self.networks.recipes()[1].sha256, "chips": list(self.chips.names)}

    def _shown(self) -> Iterator[Any]:
        return (self.chips.chip(int(k)) for k in np.flatnonzero(self.chips.labels.any(axis=1)))

    def _labelled(self, settings: apsam.Settings, *, of_masks: bool = False) -> dict[str, Any]:
        """Figures of pseudo-labels of the chips that show a class, whose prompts are those of maps or of masks."""
        segmenter = worker.segmenter(self.networks.recipes(settings.selection or "best_iou")[1])
        compose = partial(apsam.pipeline, segmenter=segmenter, settings=settings)
        shown = self.chips.part(np.any(self.chips.labels, axis=1))
        if of_masks:
            found = label_scores(lambda chip: compose(_mask_maps(chip, shown.classes))(chip.rgb).values, shown)
        else:
            recipe = loading.recipe("localizer", self.localizer, batch=1, **self._place())
            locate = chip_localizer(recipe, multiscale=not self.single_scale, pamr=self.pamr)
            label = ActivatedLabels(locate, compose)
            found = label_scores(lambda chip: label(chip.rgb, chip.labels).values, shown)
        return _figures(found) | {_CHIPS: found["ious"]}

    def _everything(self) -> Figures:
        """Masks of a grid of points: their number, their union, and the best of each chip by its true mask."""
        _, recipe = self.networks.recipes()
        segmenter = worker.segmenter(loading.everything(recipe, segmenter_defaults(recipe.source).filters))
        means: dict[str, list[float]] = {"mean IoU of chips": [], "mean IoU of the best by truth": [], "masks": []}
        pixels = np.zeros(2, np.int64)
        for chip in self._shown():
            if chip.mask is None:
                continue
            truth, masks = chip.mask > 0, _grid_masks(segmenter, chip.rgb).binary
            union = np.asarray(masks.any(axis=0))
            pixels += np.count_nonzero(union & truth), np.count_nonzero(union | truth)
            best = max((iou(mask, truth) for mask in masks), default=0.0)
            for values, value in zip(means.values(), (iou(union, truth), best, len(masks)), strict=True):
                values.append(value)
        found = {name: float(np.mean(values)) for name, values in means.items()}
        return {"IoU": float(pixels[0] / max(1, pixels[1]))} | found | {"chips": len(means["masks"])}

    def _trained(self, method: Method, terms: Mapping[str, Any]) -> dict[str, Any]:
        """Figures of the maps of a localizer trained with some terms, means over the seeds."""
        found = [self._train(method, terms, seed) for seed in range(self.seeds)]
        chips = np.mean([one.pop(_CHIPS) for one in found], axis=0)
        means = {name: float(np.mean([one[name] for one in found])) for name in found[0]}
        spread = {"spread": float(np.ptp([one["map IoU"] for one in found]))} if len(found) > 1 else {}
        return means | spread | {_CHIPS: chips.tolist()}

    def _train(self, method: Method, terms: Mapping[str, Any], seed: int) -> dict[str, Any]:
        request = localizers.LocalizerRequest(
            method,
            self.preset,
            self.init,
            self.init_weights,
            segments=self.out / "segments",
            epochs=self.epochs,
            size=self.size,
            seed=seed,
        )
        numbers = request.numbers
        numbers = replace(numbers, points_per_side=self.points_per_side or numbers.points_per_side)
        if self.preset == "cpu":
            numbers = replace(numbers, output_stride=16)
        numbers = replace(numbers, **{k: _changed(getattr(numbers, k), v) for k, v in terms.items()})
        mark = hashlib.sha256(repr(terms).encode()).hexdigest()[:12]
        folder = self.out / "trained" / f"{mark}-{seed}"
        train(self.chips, folder, request, networks=self.networks, preset=numbers, resume=True, progress=self.progress)
        recipe = loading.recipe("localizer", folder / localizers.FILE, batch=1, **self._place())
        locate = chip_localizer(recipe, multiscale=not self.single_scale)
        _, kept = split(self.chips)
        judged = kept if kept.labels.any() else ChipSubset(self.chips, np.arange(len(self.chips)))
        maps = MapScores.of(locate, judged)
        best = maps.best_threshold()
        figures = {"map IoU": float(maps.at(best).mean()), "hits": float(np.mean(maps.hits))}
        cut = ThresholdLabeler(THRESHOLDS[best])
        label = ActivatedLabels(locate, lambda of: Pipeline(of, NoPrompts(), NoMasks(), cut))
        pixels = label_scores(lambda chip: label(chip.rgb, chip.labels).values, judged)["all"]
        figures |= {"mIoU": pixels["miou"], "OA": pixels["overall_accuracy"]}
        images = image_scores(chip_localizer(recipe, multiscale=False), judged)
        return figures | {"cut at": THRESHOLDS[best]} | images | {_CHIPS: maps.at(best).tolist()}

    def _place(self) -> dict[str, Any]:
        device, precision = worker.device_and_precision(self.networks.device, self.networks.precision)
        return {"device": device, "precision": precision}


def _mask_maps(chip: Chip, classes: tuple[str, ...]) -> Given:
    """The masks of a chip as maps that no localizer could improve on."""
    values = np.stack([chip.mask == c + 1 for c in range(len(classes))]).astype(np.float32)
    return Given([Activation(values, values, values.max(axis=(1, 2)), 1, classes)], classes)


def _grid_masks(segmenter: Segmenter, rgb: Any) -> Masks:
    """Masks of an image (H, W, 3) for a grid of points."""
    fitting = FittingSegmenter(segmenter)
    return fitting([rgb], [GridPrompter(POINTS).over(*rgb.shape[:2])])[0]


def _changed(preset: Any, row: Any) -> Any:
    # the terms that a row changes; others are those of the preset
    usual = type(row)()
    names = [field.name for field in fields(row) if getattr(row, field.name) != getattr(usual, field.name)]
    return replace(preset, **{name: getattr(row, name) for name in names})


def _figures(found: Mapping[str, Any]) -> Figures:
    """Figures over all pixels of the chips, and the mean IoU of single chips; see `label_scores`."""
    figures = {name: found["all"][key] for name, key in _columns(found["all"])}
    return figures | {"mean IoU of chips": float(np.mean(found["ious"])), "chips": len(found["ious"])}


def _columns(figures: Mapping[str, float]) -> list[tuple[str, str]]:
    names = [("IoU", "iou"), ("F1", "f1"), ("P", "precision"), ("R", "recall")]
    held = [(name, key) for name, key in names if key in figures]
    both = [("mIoU", "miou"), ("OA", "overall_accuracy")]
    return [*held, *both] if held else [("IoU", "miou"), *both]


def _named(variant: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    return {"variant": variant} | measure()


# --- table and plot --------------------------------------------------------------------------------------------------


def write_study(section: Section, folder: Path, *, figure: str = "IoU", pale: str | None = None) -> None:
    """Write the table of a study as Markdown and JSON, and a plot, named by the section; see `_draw`."""
    write_text(folder / f"{section.name}.md", section.markdown())
    write_json(folder / f"{section.name}.json", section.as_json())
    _draw(section, folder / f"{section.name}.png", figure=figure, pale=pale)


def _draw(section: Section, path: Path, *, figure: str = "IoU", pale: str | None = None) -> None:
    """Plot one figure of each row: as a line if rows are numbers, else as bars.

    Parameters
    ----------
    pale
        Suffix of the names of rows whose bars are grey.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = [", ".join(filter(None, (row.method, row.data))) for row in section.measured]
    values = [row.figures[figure] for row in section.measured]
    lines = names[0].isdecimal()
    canvas = Figure(figsize=(7, 4) if lines else (8, 1.2 + 0.28 * len(names)))
    FigureCanvasAgg(canvas)
    axes = canvas.subplots()
    if lines:
        axes.plot([int(name) for name in names], values, marker="o")
        axes.set(xlabel="grey value", ylabel=figure)
    else:
        colours = ["#bbbbbb" if pale and name.endswith(pale) else "#4477aa" for name in names]
        axes.barh(names[::-1], values[::-1], color=colours[::-1])
        axes.set_xlabel(figure)
        axes.tick_params(axis="y", labelsize=8)
    axes.set_title(section.question, fontsize=9)
    canvas.tight_layout()
    with replacing(path, overwrite=True) as part:
        canvas.savefig(part, format="png", dpi=150, metadata={"Software": None})

"""Train the networks that ship with geolabel, reproducibly from a seed."""

from __future__ import annotations

import hashlib
import logging
import math
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
from segment_anything.modeling import Sam
from torch import nn

from geolabel.devices import Precision
from geolabel.errors import OutputError, WeightsError
from geolabel.folders import work_folder
from geolabel.models.checkpoint import Kind, NetworkInfo, load_checkpoint, save_checkpoint
from geolabel.models.engines import every_graph_file
from geolabel.models.nets import build
from geolabel.models.nets.localizer import PyramidLocalizer
from geolabel.models.nets.sam import LOW_RES_STRIDE
from geolabel.models.nets.trunk import IMAGENET_MEAN, IMAGENET_STD, LiteTrunk, load_trunk
from geolabel.training import localizer_objective, segmenter_objective
from geolabel.training.bundled_data import (
    REPORTED,
    SUFFIXES,
    Picture,
    read_pictures,
    read_sets,
    seen_at,
    synthetic_pictures,
)
from geolabel.training.cards import write_card
from geolabel.training.fit import STATE, Objective, Schedule, fit
from geolabel.training.localizer_objective import GATE, STRENGTH, Judged, LocalizerObjective
from geolabel.training.samples import Changes, Sampling
from geolabel.training.segmenter_objective import SegmenterObjective

logger = logging.getLogger(__name__)

Preset = Literal["full", "refine", "short"]

MEAN = (110.0, 110.0, 110.0)
STD = (65.0, 65.0, 65.0)
"""Typical mean and spread of a stretched scene, whatever its sensor."""

GSDS = (0.5, 1.0, 0.5, 0.3, 0.5, 2.0, 0.5, 5.0, 0.5, 0.7, 0.5, 10.0, 0.5, 0.2, 1.0, 30.0)
"""Ground sample distances of the synthetic scenes in metres, cycled: mostly orthophotos, up to Landsat."""

SELECTION_SEED = 800_000
"""First seed of the selection scenes. Training uses seeds from 0; 900000 and up are for reports."""

CLASSES = ("landslide",)

SEGMENTER = "segmenter.safetensors"
"""Network whose trunk initialises a localizer in the same folder."""

SEEN = ((1, 1), (2, 1), (6, 2), (16, 4))
"""Factors by which real images are coarsened, and enlarged again, for calibration: 0.5, 1, 3 and 8 m."""

COARSE = 4
"""Enlargement of the images of 10 m in calibration."""

COARSE_ZOOMS = (2.0, 5.0)
"""Enlargement of those used in training."""

JUDGED = 40
"""Maximum images without landslides of a set used in calibration."""

Range = tuple[float, float]

GSD_RANGES: dict[Kind, Range] = {"localizer": (0.2, 0.6), "segmenter": (min(GSDS), max(GSDS))}
"""Pixel size of the networks in metres. Coarser scenes are enlarged, which helps with small landslides."""

Norm = tuple[tuple[float, float, float], tuple[float, float, float]]
"""Mean and standard deviation of red, green and blue, for normalisation."""


@dataclass(frozen=True)
class Recipe:
    """Everything that determines the weights, besides the seed and the data."""

    scenes: int
    scene_size: int
    selection: int
    selection_size: int
    localizer: dict[str, Any]
    """Architecture."""
    localizer_schedule: Schedule
    localizer_samples: tuple[int, int]
    """Side in pixels, and number, of the samples of a step."""
    localizer_real: float
    """Samples of real landslides per synthetic sample."""
    localizer_coarse: float
    """Samples of landslides in images of 10 m per synthetic sample."""
    localizer_negatives: float
    """Samples of real images without landslides per synthetic sample, the same number from every set: many real
    landslides, which fill half of a sample, would teach that all bare ground is a landslide."""
    localizer_zooms: tuple[float, float]
    """Enlargements of the images with landslides: a landslide is a few pixels wide to wider than a sample."""
    localizer_changes: Changes
    """Changes in colour, towards those of the given real images. Without haze in training, a localizer takes bright,
    bluish ground for landslides, whatever its vegetation."""
    localizer_laid: float
    """Share of samples that are partly covered by another one."""
    segmenter: dict[str, Any]
    segmenter_schedule: Schedule
    segmenter_samples: tuple[int, int]
    segmenter_real: float
    judged: int
    """Number of samples for the selection of the segmenter."""


_PYRAMID = {"name": "pyramid", "classes": 1, "octaves": 2}
_LITE = _PYRAMID | {"trunk": "lite0", "features": 96}
_SAM = {"name": "sam", "decoder_depth": 2, "heads": 4, "pixel_mean": list(MEAN), "pixel_std": list(STD)}

_FULL = Recipe(
    scenes=160,
    scene_size=1024,
    selection=8,
    selection_size=768,
    localizer=_LITE,
    localizer_schedule=Schedule(
        cycles=(1000, 1000), rate=1.5e-3, evaluations=8, warmup=0.1, average=0.99, trunk=0.1, keeps_last=5
    ),
    localizer_samples=(384, 4),
    localizer_real=6.0,
    localizer_coarse=1.8,
    localizer_negatives=5.2,
    localizer_zooms=(0.3, 2.0),
    localizer_changes=Changes(1.0, haze=0.25, tinted=0.3, coarse=0.35),
    localizer_laid=0.3,
    segmenter=_SAM
    | {"img_size": 512, "widths": [40, 80, 144, 192], "depths": [2, 2, 2, 2], "embed_dim": 128, "mlp_dim": 256},
    segmenter_schedule=Schedule(cycles=(2000, 2000, 2000, 2000), rate=1e-3, evaluations=32),
    segmenter_samples=(256, 12),
    segmenter_real=0.4,
    judged=32,
)

RECIPES: dict[Preset, Recipe] = {
    "full": _FULL,
    "refine": replace(
        _FULL,
        localizer_schedule=Schedule(cycles=(200,), rate=6e-4, evaluations=2, average=0.99, trunk=0.1, keeps_last=1),
        localizer_changes=Changes(1.0, haze=0.25, tinted=0.4, repainted=0.2, coarse=0.35),
        segmenter_schedule=Schedule(cycles=(1800,), rate=5e-4, evaluations=6),
    ),
    "short": Recipe(
        scenes=2,
        scene_size=256,
        selection=2,
        selection_size=384,
        localizer=_PYRAMID | {"widths": [32, 32, 32, 32], "depths": [1, 1, 1, 1], "features": 16},
        localizer_schedule=Schedule(cycles=(16, 8), rate=4e-3, evaluations=2),
        localizer_samples=(128, 4),
        localizer_real=0.06,
        localizer_coarse=0.0,
        localizer_negatives=0.1,
        localizer_zooms=(0.25, 1.0),
        localizer_changes=Changes(STRENGTH, haze=0.4, tinted=0.4, repainted=0.4, coarse=0.3),
        localizer_laid=0.4,
        segmenter=_SAM
        | {"img_size": 256, "widths": [32, 32, 32, 32], "depths": [1, 1, 1, 1], "embed_dim": 32, "mlp_dim": 32},
        segmenter_schedule=Schedule(cycles=(16, 8), rate=4e-3, evaluations=2),
        segmenter_samples=(128, 4),
        segmenter_real=0.18,
        judged=2,
    ),
}
"""``full`` takes 2 hours for the segmenter and 1 for the localizer, in bf16 on one core each; ``short`` takes seconds.

The bundled segmenter was trained with earlier recipes: ``refine`` after 7000 of the 8000 steps of ``full``.
"""


@dataclass(frozen=True)
class Data:
    """Pictures for training and selection, and their sources."""

    synthetic: list[Picture]
    selection: list[Picture]
    real: list[Picture]
    negatives: list[list[Picture]]
    """One list per set."""
    coarse: list[Picture]
    """With landslides, 10 m pixels."""
    calibration: list[Picture]
    """The same, enlarged, held out from all training."""
    sources: list[str]

    def judged(self) -> Judged:
        """Pictures for the calibration of a localizer: held-out ones, if there are any.

        Activation is higher on training images: there, the best threshold is more than twice as high.
        """
        outlined = [self.calibration] if self.calibration else [[seen_at(p, *s) for p in self.real] for s in SEEN]
        outlined = [pictures for pictures in outlined if pictures] or [self.selection]
        return Judged(outlined, [pictures[:: -(-len(pictures) // JUDGED)] for pictures in self.negatives])

    def mix(self, real: float, negatives: float, coarse: float = 0.0) -> list[Picture]:
        """All training pictures, weighted by kind relative to the synthetic ones; `negatives` show no landslide.

        Sets without landslides have equal weight, whatever their number of images.
        """
        each = negatives / max(1, len(self.negatives))
        shares = [(self.synthetic, 1.0), (self.real, real), *((pictures, each) for pictures in self.negatives)]
        shares += [(self.coarse, coarse)] if coarse and self.coarse else []
        totals = [sum(p.weight for p in group) for group, _ in shares]
        return [
            replace(p, weight=p.weight * share / total)
            for (group, share), total in zip(shares, totals, strict=True)
            for p in group
        ]

    def sampling(
        self,
        samples: tuple[int, int],
        seed: int,
        *,
        real: float,
        negatives: float = 0.12,
        coarse: float = 0.0,
        zooms: Range | None = None,
        norm: Norm = (MEAN, STD),
    ) -> Sampling:
        """Sampling of a training: side of squares in pixels, number per step; `real` as for `mix`."""
        pictures = self.mix(real, negatives, coarse)
        if zooms:
            outlined = {id(p.rgb) for p in self.real}
            pictures = [replace(p, zooms=zooms) if id(p.rgb) in outlined else p for p in pictures]
        return Sampling(pictures, self.selection, *samples, mean=norm[0], std=norm[1], seed=seed)


def train_bundled(
    out: Path,
    *,
    seed: int = 0,
    preset: Preset = "full",
    minutes: float | None = None,
    device: str = "cpu",
    precision: Precision = "fp32",
    data: Path | None = None,
    negatives: Sequence[Path] = (),
    coarse: Path | None = None,
    credit: Sequence[str] = (),
    networks: Sequence[Kind] = get_args(Kind),
    init: Path | None = None,
    scenes: Path | None = None,
    workers: int = 1,
    overwrite: bool = False,
    resume: bool = False,
) -> dict[str, dict[str, float]]:
    """Train the localizer and the segmenter, and write each to `out` with a model card and graphs.

    Parameters
    ----------
    minutes
        Wall clock limit of both trainings together; without it, the weights depend on seed, data and kind of machine
        only.
    precision
        Precision of the steps. On a processor with bf16 instructions, bf16 halves the time.
    data
        Folder with images/ and masks/ of real landslides for training.
    negatives
        Folders with images without landslides, or with a subfolder for each set of them.
    coarse
        Folder with images/ and masks/ of landslides in images of 10 m: a fifth calibrates the localizer's map and gate,
        the others are used in training.
    credit
        Sources and licences of these folders, for the model cards.
    networks
        Networks to train, the segmenter first: a localizer starts from the trunk of a segmenter in `out`.
    init
        Folder with networks of the same architecture to start from; missing ones start without.
    scenes
        Folder that keeps the synthetic scenes for other runs; by default a temporary one.
    workers
        Processes that generate synthetic scenes.
    overwrite
        Whether existing networks in `out` may be replaced, once the new ones are trained.
    resume
        Resume from the states that an interrupted run left in `out`.

    Returns
    -------
    figures on the selection scenes, of each network
    """
    recipe = RECIPES[preset]
    with nullcontext(scenes) if scenes else tempfile.TemporaryDirectory(prefix="geolabel-") as folder:
        pool = _gather(recipe, Path(folder), data=data, negatives=negatives, coarse=coarse, workers=workers)
    named = [f"{kind}.{end}" for kind in networks for end in ("safetensors", "md")]
    named += [file.name for kind in networks for file in every_graph_file(out / f"{kind}.safetensors", kind)]
    held = next((name for name in (*named, *(f"{kind}/{STATE}" for kind in networks)) if (out / name).exists()), None)
    if held is not None and not (overwrite or resume):
        raise OutputError(f"{out} holds {held} of an earlier training: give --resume, --overwrite or another folder")

    def is_own(name: str) -> bool:
        return name in named or name.partition("/")[0] in networks

    folders = [folder for folder in (data, *negatives, coarse) if folder is not None]
    place = work_folder(
        out, overwrite=overwrite, inputs=folders, shared=True, named=named, leaving=is_own, goes_on=lambda _: resume
    )
    with place as work:
        results: dict[str, dict[str, float]] = {}
        for kind in sorted(networks, reverse=True):
            schedule = recipe.localizer_schedule if kind == "localizer" else recipe.segmenter_schedule
            # Outlining takes longer to learn than finding.
            share = {"localizer": 0.4, "segmenter": 0.6}[kind] if len(networks) > 1 else 1.0
            schedule = replace(schedule, minutes=minutes * share if minutes else math.inf)
            train = _train_localizer if kind == "localizer" else _train_segmenter
            torch.manual_seed(seed)
            begin = init / f"{kind}.safetensors" if init else None
            begin = begin if begin and begin.is_file() else None
            trunk = next((f for f in (work / SEGMENTER, out / SEGMENTER) if f.is_file()), None)
            course = _Course(schedule, work / kind, seed, device, precision, resume, begin, trunk)
            network, info, figures = train(recipe, pool, course)
            trained = {
                "seed": seed,
                "preset": preset,
                "precision": precision,
                "began with": hashlib.sha256(begin.read_bytes()).hexdigest() if begin else None,
                "data": [*pool.sources, *credit],
                "steps": int(figures.pop("steps")),
                "minutes": figures.pop("minutes"),
                "selection": figures,
            }
            info = replace(info, trained=trained)
            save_checkpoint(work / f"{kind}.safetensors", network, info)
            if preset != "short":  # which is for a quick test; graphs would take longer
                from geolabel.training.graphs import write_graphs

                write_graphs(work / f"{kind}.safetensors")
            write_card(work / f"{kind}.md", info, parameters=sum(p.numel() for p in network.parameters()))
            results[kind] = figures
    return results


def _gather(
    recipe: Recipe,
    folder: Path,
    *,
    data: Path | None,
    negatives: Sequence[Path],
    coarse: Path | None = None,
    workers: int,
) -> Data:
    """Generate the synthetic scenes and read the real images."""
    logger.info("generating %d synthetic scenes", recipe.scenes + recipe.selection)
    selection = draw_selection(recipe, folder, workers)
    synthetic = synthetic_pictures(range(recipe.scenes), recipe.scene_size, GSDS, folder=folder, workers=workers)
    real = read_pictures(data, exclude=REPORTED, zooms=(0.25, 1.0)) if data else []
    without = [pictures for place in negatives for pictures in _without_landslides(place)]
    sources = [f"{recipe.scenes} synthetic scenes of geolabel (seeds 0 to {recipe.scenes - 1})"]
    sources += [f"{len(real)} real images with landslides ({data.name})"] if data else []
    sources += [f"{sum(map(len, without))} real images without landslides ({', '.join(p.name for p in negatives)})"] * (
        len(without) > 0
    )
    kept, learned = [], []
    if coarse:
        kept = read_pictures(coarse, exclude=(), zooms=(1, 1), part="kept")
        sources += [f"{len(kept)} real images of 10 m ({coarse.name}), for calibration"]
        if recipe.localizer_coarse:
            learned = read_pictures(coarse, exclude=(), zooms=COARSE_ZOOMS, part="others")
            sources += [f"{len(learned)} real images of 10 m with landslides ({coarse.name})"]
    return Data(synthetic, selection, real, without, learned, [seen_at(p, 1, COARSE) for p in kept], sources)


def _without_landslides(folder: Path) -> list[list[Picture]]:
    if any(path.suffix.lower() in SUFFIXES for path in folder.iterdir()):
        return [read_pictures(folder, exclude=REPORTED, zooms=(0.5, 1.5))]
    return read_sets(folder)


def draw_selection(recipe: Recipe, folder: Path, workers: int = 1) -> list[Picture]:
    """Generate the synthetic scenes for selection."""
    kept = range(SELECTION_SEED, SELECTION_SEED + recipe.selection)
    return synthetic_pictures(kept, recipe.selection_size, GSDS, folder=folder, workers=workers)


@dataclass(frozen=True)
class _Course:
    """How one of the two networks is trained."""

    schedule: Schedule
    folder: Path
    """Receives the curves and the state to resume from."""
    seed: int
    device: str
    precision: Precision
    resume: bool
    begin: Path | None
    """Initial weights."""
    trunk: Path | None
    """Segmenter whose trunk initialises a localizer without other weights."""

    def fit(self, objective: Objective) -> dict[str, float]:
        return fit(
            objective, self.schedule, self.folder, device=self.device, precision=self.precision, resume=self.resume
        )


Trained = tuple[nn.Module, NetworkInfo, dict[str, float]]
"""A network, its description, and the figures of its weights."""


def _train_localizer(recipe: Recipe, data: Data, course: _Course) -> Trained:
    network = cast("PyramidLocalizer", build(recipe.localizer))
    norm = norm_of(recipe.localizer)
    if course.begin is not None:
        _start(network, course.begin)
    elif isinstance(network.trunk, LiteTrunk):
        network.trunk.load_state_dict(load_trunk(recipe.localizer["trunk"]))
    else:
        _start_from_segmenter(network, course.trunk)
    sampling = data.sampling(
        recipe.localizer_samples,
        course.seed,
        real=recipe.localizer_real,
        negatives=recipe.localizer_negatives,
        coarse=recipe.localizer_coarse,
        zooms=recipe.localizer_zooms,
        norm=norm,
    )
    looks = tuple(picture.rgb for pictures in (data.real, *data.negatives) for picture in pictures)
    changes = replace(recipe.localizer_changes, looks=looks)
    objective = LocalizerObjective(network, sampling, changes=changes, laid=recipe.localizer_laid, judged=data.judged())
    figures = course.fit(objective)
    constant = localizer_objective.settle(objective.module, figures)
    return network, _info("localizer", recipe.localizer, GATE, network.stride, constant, norm), figures


def _train_segmenter(recipe: Recipe, data: Data, course: _Course) -> Trained:
    sam = cast("Sam", build(recipe.segmenter))
    if course.begin is not None:
        _start(sam, course.begin)
    sampling = data.sampling(recipe.segmenter_samples, course.seed, real=recipe.segmenter_real)
    objective = SegmenterObjective(sam, sampling, judged=recipe.judged)
    figures = course.fit(objective)
    segmenter_objective.settle(objective.module, figures)
    return (
        sam,
        _info("segmenter", recipe.segmenter, recipe.segmenter["img_size"], LOW_RES_STRIDE, None),
        figures,
    )


def norm_of(architecture: Mapping[str, Any]) -> Norm:
    """Normalisation of images for a network: that of its pretrained trunk, if it has one."""
    return (IMAGENET_MEAN, IMAGENET_STD) if architecture.get("trunk") else (MEAN, STD)


def _start(network: nn.Module, path: Path) -> None:
    state, _ = load_checkpoint(path)
    # A localizer with one octave can initialise one with two, which starts by averaging them.
    mixing = {name: value for name, value in network.state_dict().items() if name.startswith("mix.")}
    try:
        network.load_state_dict(mixing | state)
    except RuntimeError as error:
        raise WeightsError(f"{path} has another architecture than this training: start without it") from error
    logger.info("starting from %s", path)


def _start_from_segmenter(network: PyramidLocalizer, path: Path | None) -> None:
    """Start from the trunk of a segmenter in the same folder, which has learned textures and edges of all ground."""
    if path is None:
        logger.info("no segmenter to take a trunk from: the localizer starts with random weights")
        return
    prefix = "image_encoder.trunk."
    state, _ = load_checkpoint(path)
    network.trunk.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
    logger.info("the localizer starts with the trunk of %s", path)


def _info(
    kind: Kind,
    architecture: dict[str, Any],
    window: int,
    stride: int,
    constant: float | None,
    norm: Norm = (MEAN, STD),
) -> NetworkInfo:
    return NetworkInfo(
        kind=kind,
        architecture=architecture,
        classes=CLASSES,
        window=window,
        stride=stride,
        gsd_range=GSD_RANGES[kind],
        mean=norm[0],
        std=norm[1],
        constant=constant,
    )

"""The networks that ship with geolabel, made again from a seed."""

from __future__ import annotations

import hashlib
import logging
import math
import tempfile
from collections.abc import Sequence
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
from geolabel.networks import build
from geolabel.networks.checkpoint import Kind, NetworkInfo, load_checkpoint, save_checkpoint
from geolabel.networks.engines import graph_files
from geolabel.networks.localizer import PyramidLocalizer
from geolabel.networks.sam import LOW_RES_STRIDE
from geolabel.trainers import localizer, segmenter
from geolabel.trainers.cards import write_card
from geolabel.trainers.fit import STATE, Objective, Schedule, fit
from geolabel.trainers.localizer import GATE, STRENGTH, LocalizerObjective
from geolabel.trainers.pictures import REPORTED, Picture, read_pictures, synthetic_pictures
from geolabel.trainers.samples import Changes, Sampling
from geolabel.trainers.segmenter import SegmenterObjective

logger = logging.getLogger(__name__)

Preset = Literal["full", "refine", "short"]

MEAN = (110.0, 110.0, 110.0)
STD = (65.0, 65.0, 65.0)
"""A stretched scene is centred and spread about like this, whatever its sensor."""

GSDS = (0.5, 1.0, 0.5, 0.3, 0.5, 2.0, 0.5, 5.0, 0.5, 0.7, 0.5, 10.0, 0.5, 0.2, 1.0, 30.0)
"""Ground sample distances of the synthetic scenes, metres, in turn: mostly orthophotos, up to Landsat."""

SELECTION_SEED = 800_000
"""First seed of the scenes that weights are selected on. Training has those from 0; 900000 and up are for reports."""

CLASSES = ("landslide",)

SEGMENTER = "segmenter.safetensors"
"""Whose trunk a localizer of the same folder begins with."""


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights, beside the seed and the data given."""

    scenes: int
    scene_size: int
    selection: int
    selection_size: int
    localizer: dict[str, Any]
    """Architecture."""
    localizer_schedule: Schedule
    localizer_samples: tuple[int, int]
    """Pixels a side, and number, of the samples of a step."""
    localizer_real: float
    """Samples of real landslides for each synthetic sample. Real ones fill half of a sample with bare ground that is a
    slide, and many of them teach a localizer that all bare ground is."""
    localizer_changes: Changes
    """In colour; the looks are those of the real images that are given. Bright, bluish ground is taken for slides,
    whatever grows on it, by a localizer that has seen no haze."""
    localizer_laid: float
    """Share of samples over which part of another is laid."""
    segmenter: dict[str, Any]
    segmenter_schedule: Schedule
    segmenter_samples: tuple[int, int]
    segmenter_real: float
    judged: int
    """Samples that the segmenter is selected on."""


_PYRAMID = {"name": "pyramid", "classes": 1, "octaves": 2}
_SAM = {"name": "sam", "decoder_depth": 2, "heads": 4, "pixel_mean": list(MEAN), "pixel_std": list(STD)}

_FULL = Recipe(
    scenes=320,
    scene_size=1024,
    selection=8,
    selection_size=768,
    localizer=_PYRAMID | {"widths": [40, 80, 144, 192], "depths": [2, 2, 2, 2], "features": 96},
    localizer_schedule=Schedule(cycles=(7000,), rate=1.5e-3, evaluations=14),
    localizer_samples=(256, 8),
    localizer_real=0.3,
    localizer_changes=Changes(STRENGTH, haze=0.0),
    localizer_laid=0.0,
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
        localizer_schedule=Schedule(cycles=(900,), rate=4e-4, evaluations=2),
        localizer_samples=(384, 4),
        localizer_real=0.5,
        localizer_changes=Changes(STRENGTH, haze=0.3, tinted=0.4, repainted=0.4),
        localizer_laid=0.15,
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
        localizer_changes=Changes(STRENGTH, haze=0.4, tinted=0.4, repainted=0.4),
        localizer_laid=0.4,
        segmenter=_SAM
        | {"img_size": 256, "widths": [32, 32, 32, 32], "depths": [1, 1, 1, 1], "embed_dim": 32, "mlp_dim": 32},
        segmenter_schedule=Schedule(cycles=(16, 8), rate=4e-3, evaluations=2),
        segmenter_samples=(128, 4),
        segmenter_real=0.18,
        judged=2,
    ),
}
"""``full`` took 120 minutes for the segmenter and 42 for the localizer, in bf16 on a core each, ``refine`` 32 and 9;
``short`` takes a few seconds, to see that it runs.

The networks that ship are not made again byte for byte. The segmenter is of ``refine`` after 7000 of the 8000 steps of
``full``, both of which saw scenes as they were drawn before. The localizer is the mean (`trainers.averaging`) of
trainings that began with one of ``full``, of one octave, and went on with ``refine``, as it was then and as it is now.
"""


@dataclass(frozen=True)
class Data:
    """Pictures to train and to select on, and where they come from."""

    synthetic: list[Picture]
    selection: list[Picture]
    real: list[Picture]
    negatives: list[Picture]
    sources: list[str]

    def mix(self, real: float) -> list[Picture]:
        """All pictures to train on; of the real ones about `real` samples come for each synthetic one.

        Few, since they are: enough to learn what real ground looks like, not enough to learn them by heart.
        """
        shares = ((self.synthetic, 1.0), (self.real, real), (self.negatives, 0.12))
        return [replace(p, weight=share / len(group)) for group, share in shares for p in group]

    def sampling(self, samples: tuple[int, int], real: float, seed: int) -> Sampling:
        """How a training draws from these: samples of so many pixels a side, so many a step; `real` as for `mix`."""
        return Sampling(self.mix(real), self.selection, *samples, mean=MEAN, std=STD, seed=seed)


def train_bundled(
    out: Path,
    *,
    seed: int = 0,
    preset: Preset = "full",
    minutes: float | None = None,
    device: str = "cpu",
    precision: Precision = "fp32",
    data: Path | None = None,
    negatives: Path | None = None,
    credit: Sequence[str] = (),
    networks: Sequence[Kind] = get_args(Kind),
    init: Path | None = None,
    scenes: Path | None = None,
    workers: int = 1,
    overwrite: bool = False,
    resume: bool = False,
) -> dict[str, dict[str, float]]:
    """Train the localizer and the segmenter, and write each to `out` with a model card and its graphs.

    Parameters
    ----------
    minutes
        Wall clock limit of both trainings together; without one the number of steps alone decides, and so the weights
        depend on seed, data and kind of machine only.
    precision
        Of the steps. On a processor with instructions for bf16 that halves the time.
    data
        Folder with images/ and masks/ of real landslides to train on besides.
    negatives
        Folder with images without landslides.
    credit
        Sources and licences of both folders, for the model cards.
    networks
        Which to train, the segmenter first: a localizer begins with the trunk of a segmenter in `out`.
    init
        Folder with networks of the same architecture to begin with; what it lacks begins as without one.
    scenes
        Folder that keeps the synthetic scenes for another run; a temporary one otherwise.
    workers
        Processes that draw synthetic scenes.
    overwrite
        Whether networks of these kinds in `out` may be replaced, when the new ones are trained.
    resume
        Go on from the states that an interrupted run left in `out`.

    Returns
    -------
    figures on the selection scenes, of each network
    """
    recipe = RECIPES[preset]
    with nullcontext(scenes) if scenes else tempfile.TemporaryDirectory(prefix="geolabel-") as folder:
        pool = gather(recipe, Path(folder), data=data, negatives=negatives, workers=workers)
    named = [f"{kind}.{end}" for kind in networks for end in ("safetensors", "md")]
    named += [file.name for kind in networks for file in graph_files(out / f"{kind}.safetensors", kind)]
    held = next((name for name in (*named, *(f"{kind}/{STATE}" for kind in networks)) if (out / name).exists()), None)
    if held is not None and not (overwrite or resume):
        raise OutputError(f"{out} holds {held} of an earlier training: give --resume, --overwrite or another folder")

    def is_own(name: str) -> bool:
        return name in named or name.partition("/")[0] in networks

    folders = [folder for folder in (data, negatives) if folder is not None]
    place = work_folder(out, overwrite=overwrite, inputs=folders, shared=True, named=named, leaving=is_own,
                        goes_on=lambda _: resume)  # fmt: skip
    with place as work:
        results: dict[str, dict[str, float]] = {}
        for kind in sorted(networks, reverse=True):
            schedule = recipe.localizer_schedule if kind == "localizer" else recipe.segmenter_schedule
            # Outlining is learned more slowly than finding.
            share = {"localizer": 0.4, "segmenter": 0.6}[kind] if len(networks) > 1 else 1.0
            schedule = replace(schedule, minutes=minutes * share if minutes else math.inf)
            train = _train_localizer if kind == "localizer" else _train_segmenter
            torch.manual_seed(seed)
            begin = init / f"{kind}.safetensors" if init else None
            begin = begin if begin and begin.is_file() else None
            trunk = next((f for f in (work / SEGMENTER, out / SEGMENTER) if f.is_file()), None)
            network, info, figures = train(
                recipe, pool, _Course(schedule, work / kind, seed, device, precision, resume, begin, trunk)
            )
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
            if preset != "short":  # which is for a look, and graphs take longer than its seconds
                from geolabel.trainers.graphs import write_graphs

                write_graphs(work / f"{kind}.safetensors")
            write_card(work / f"{kind}.md", info, parameters=sum(p.numel() for p in network.parameters()))
            results[kind] = figures
    return results


def gather(recipe: Recipe, folder: Path, *, data: Path | None, negatives: Path | None, workers: int) -> Data:
    """Draw the synthetic scenes and read the real images."""
    logger.info("drawing %d synthetic scenes", recipe.scenes + recipe.selection)
    selection = draw_selection(recipe, folder, workers)
    synthetic = synthetic_pictures(range(recipe.scenes), recipe.scene_size, GSDS, folder=folder, workers=workers)
    real = read_pictures(data, exclude=REPORTED, zooms=(0.25, 1.0)) if data else []
    without = read_pictures(negatives, exclude=REPORTED, zooms=(0.5, 1.5)) if negatives else []
    sources = [f"{recipe.scenes} synthetic scenes of geolabel (seeds 0 to {recipe.scenes - 1})"]
    sources += [f"{len(real)} real images with landslides ({data.name})"] if data else []
    sources += [f"{len(without)} real images without landslides ({negatives.name})"] if negatives else []
    return Data(synthetic, selection, real, without, sources)


def draw_selection(recipe: Recipe, folder: Path, workers: int = 1) -> list[Picture]:
    """Draw the synthetic scenes that weights are selected on."""
    kept = range(SELECTION_SEED, SELECTION_SEED + recipe.selection)
    return synthetic_pictures(kept, recipe.selection_size, GSDS, folder=folder, workers=workers)


@dataclass(frozen=True)
class _Course:
    """How a network is trained, whichever of the two it is."""

    schedule: Schedule
    folder: Path
    """Gets the curves and the state to go on from."""
    seed: int
    device: str
    precision: Precision
    resume: bool
    begin: Path | None
    """First weights."""
    trunk: Path | None
    """A segmenter whose trunk a localizer begins with otherwise."""

    def fit(self, objective: Objective) -> dict[str, float]:
        return fit(
            objective, self.schedule, self.folder, device=self.device, precision=self.precision, resume=self.resume
        )


Trained = tuple[nn.Module, NetworkInfo, dict[str, float]]
"""A network, its description, and the figures of its weights."""


def _train_localizer(recipe: Recipe, data: Data, course: _Course) -> Trained:
    network = cast("PyramidLocalizer", build(recipe.localizer))
    if course.begin is None:
        _start_from_segmenter(network, course.trunk)
    else:
        _start(network, course.begin)
    sampling = data.sampling(recipe.localizer_samples, recipe.localizer_real, course.seed)
    changes = replace(recipe.localizer_changes, looks=tuple(picture.rgb for picture in (*data.real, *data.negatives)))
    objective = LocalizerObjective(network, sampling, changes=changes, laid=recipe.localizer_laid)
    figures = course.fit(objective)
    constant = localizer.settle(objective.module, figures)
    return network, _info("localizer", recipe.localizer, GATE, network.stride, constant), figures


def _train_segmenter(recipe: Recipe, data: Data, course: _Course) -> Trained:
    sam = cast("Sam", build(recipe.segmenter))
    if course.begin is not None:
        _start(sam, course.begin)
    sampling = data.sampling(recipe.segmenter_samples, recipe.segmenter_real, course.seed)
    objective = SegmenterObjective(sam, sampling, judged=recipe.judged)
    figures = course.fit(objective)
    segmenter.settle(objective.module, figures)
    return sam, _info("segmenter", recipe.segmenter, recipe.segmenter["img_size"], LOW_RES_STRIDE, None), figures


def _start(network: nn.Module, path: Path) -> None:
    state, _ = load_checkpoint(path)
    # A localizer of one octave starts one of two, whose mixing begins as a mean.
    mixing = {name: value for name, value in network.state_dict().items() if name.startswith("mix.")}
    try:
        network.load_state_dict(mixing | state)
    except RuntimeError as error:
        raise WeightsError(f"{path} is of another architecture than this training's: begin without it") from error
    logger.info("beginning with %s", path)


def _start_from_segmenter(network: PyramidLocalizer, path: Path | None) -> None:
    """Begin with the trunk of a segmenter in the same folder, which has learned textures and edges of every ground."""
    if path is None:
        logger.info("no segmenter to take a trunk from: the localizer begins with random weights")
        return
    prefix = "image_encoder.trunk."
    state, _ = load_checkpoint(path)
    network.trunk.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
    logger.info("the localizer begins with the trunk of %s", path)


def _info(kind: Kind, architecture: dict[str, Any], window: int, stride: int, constant: float | None) -> NetworkInfo:
    return NetworkInfo(
        kind=kind,
        architecture=architecture,
        classes=CLASSES,
        window=window,
        stride=stride,
        gsd_range=(min(GSDS), max(GSDS)),
        mean=MEAN,
        std=STD,
        constant=constant,
    )

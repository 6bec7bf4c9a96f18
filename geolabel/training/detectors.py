"""Train a detector on instances, go on with one on a share of others, and measure it: DiffuPrompter's evaluation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from geolabel.datasets.examples import Examples, Outlined, Subset
from geolabel.datasets.instances import read_instances
from geolabel.engine import worker
from geolabel.extraction.request import Networks
from geolabel.models.checkpoint import NetworkInfo, save_checkpoint
from geolabel.models.nets import build
from geolabel.models.nets.initial import Share
from geolabel.training.crops import Cropping
from geolabel.training.detector_objective import DetectorLosses, DetectorObjective, judge
from geolabel.training.fit import Schedule, fit
from geolabel.training.presets import TrainingPreset
from geolabel.training.setup import (
    TrainingRequest,
    begin,
    check_same_classes,
    gsd_range,
    share_of,
    sources_of,
    split,
    training_folder,
)

FILE = "detector.safetensors"

PresetName = Literal["cpu", "paper"]


@dataclass(frozen=True, kw_only=True)
class DetectorPreset(TrainingPreset):
    """Numbers of a training of a detector."""

    architecture: Mapping[str, Any]
    """What `geolabel.models.nets.build` makes it from, but for the classes."""
    rate: float
    """Highest learning rate."""


PRESETS: dict[PresetName, DetectorPreset] = {
    # The paper names Mask R-CNN and images of 512 px. Batch and epochs are those of the usual schedule from random
    # weights (He et al., 2019), the rate is AdamW's.
    "paper": DetectorPreset(
        architecture={"backbone": "resnet50"}, epochs=72, batch=16, cropping=Cropping(512, strength=0.0), rate=2e-4
    ),
    "cpu": DetectorPreset(
        architecture={"backbone": "resnet18", "anchors": [16, 32, 64, 128, 256], "sampled": 64},
        epochs=12,
        batch=4,
        cropping=Cropping(192, strength=0.35),
        rate=3e-4,
    ),
}


@dataclass(frozen=True)
class DetectorRequest(TrainingRequest):
    """What a user asks of a training of a detector."""

    preset: PresetName = "cpu"
    init: tuple[Share, str | Path] | None = None
    """First weights: which share of the network, and the detector's file that they come from."""
    share: float = 1.0
    """Part of the images that are learned from."""

    @property
    def numbers(self) -> DetectorPreset:
        """The preset with what was asked for."""
        return self.applied_to(PRESETS[self.preset])


def train_detector(
    examples: str | Path | Examples[Outlined],
    out: Path,
    request: DetectorRequest | None = None,
    *,
    test: str | Path | Examples[Outlined] | None = None,
    networks: Networks | None = None,
    preset: DetectorPreset | None = None,
    class_name: str = "landslide",
    overwrite: bool = False,
    resume: bool = False,
) -> dict[str, float]:
    """Train a detector.

    One image in five, by its name, is kept to select the weights by.

    Parameters
    ----------
    examples, test
        See `geolabel.datasets.instances.read_instances`; `test` is what is reported on instead of the kept images.
    out
        Folder that gets `FILE`, the curves, and the state that a stopped training goes on from.
    preset
        Numbers instead of those of the request.
    overwrite
        Whether what an earlier training left in `out` may be replaced; it stands until this one has ended.
    resume
        Go on from where a stopped training in `out` was saved.

    Returns
    -------
    AP, AP50, AP75, APs, APm, APl, and how many steps were taken

    Raises
    ------
    ChipError
        If the images cannot be read, or are of other classes than those of the test.
    WeightsError, OptionError
        If the file of the first weights cannot be read, or holds another network.
    OutputError
        If the folder cannot be written to.
    """
    request, networks = request or DetectorRequest(), networks or Networks()
    numbers = preset or request.numbers
    known = _opened(examples, class_name)
    asked = Subset(known, share_of(known.names, request.share))
    learn, select = (Subset(asked, part) for part in split(asked.names))
    held = None if test is None else _opened(test, class_name)
    if held is not None:
        check_same_classes(known.classes, held.classes)
    torch.manual_seed(request.seed)
    architecture = {"name": "maskrcnn", "classes": len(known.classes), **numbers.architecture}
    detector = build(architecture)
    begun = {} if request.init is None else begin(detector, architecture, known.classes, *request.init, "detector")
    objective = DetectorObjective(
        DetectorLosses(detector), learn, select, numbers.cropping, min(numbers.batch, len(learn)), request.seed
    )
    steps = math.ceil((request.epochs or numbers.epochs) * len(learn) / objective.batch_size)
    schedule = Schedule((max(2, steps),), numbers.rate, minutes=request.minutes or math.inf)
    device, precision = worker.device_and_precision(networks.device, networks.precision)
    with training_folder(out, FILE, overwrite=overwrite, resume=resume, inputs=sources_of(known)) as folder:
        figures = fit(objective, schedule, folder, device=device, precision=precision, resume=resume)
        if held is not None:
            figures |= judge(detector, held)
        told = {name: value for name, value in figures.items() if not math.isnan(value)}
        trained = {"preset": request.preset, "seed": request.seed, "share": request.share, "images": len(learn)}
        info = NetworkInfo(
            kind="detector",
            architecture=architecture,
            classes=tuple(known.classes),
            window=numbers.cropping.size,
            stride=1,
            gsd_range=gsd_range(request.gsd, numbers.cropping),
            mean=(0.0,) * 3,
            std=(255.0,) * 3,
            trained=trained | {"figures": told} | begun,
        )
        save_checkpoint(folder / FILE, detector, info)
    return figures


def _opened(examples: str | Path | Examples[Outlined], class_name: str) -> Examples[Outlined]:
    return read_instances(examples, class_name=class_name) if isinstance(examples, str | Path) else examples

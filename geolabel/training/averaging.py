"""The mean of the weights of several localizers, often better than each of them.

The loss is low between the results of trainings that start with the same weights and differ in their data, and the mean
is less specialised. Source: Wortsman et al. (2022), "Model soups".
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch

from geolabel.errors import OutputError, WeightsError
from geolabel.models.checkpoint import load_checkpoint, save_checkpoint
from geolabel.models.nets import build
from geolabel.models.nets.localizer import PyramidLocalizer
from geolabel.outputs import same_file, together
from geolabel.training import localizer_objective
from geolabel.training.bundled import RECIPES, Preset, draw_selection
from geolabel.training.cards import write_card
from geolabel.training.localizer_objective import GATE, Judged, LocalizerLosses


def average_localizers(
    out: Path, files: Sequence[Path], *, preset: Preset = "full", scenes: Path | None = None, workers: int = 1
) -> dict[str, float]:
    """Average localizers of one architecture, recalibrate map and gate, and write the result with a card to `out`.

    Parameters
    ----------
    files
        Localizers written by `train_bundled`; a file given twice counts twice.
    preset
        Preset with the selection scenes for calibration.
    scenes, workers
        As for `train_bundled`.

    Returns
    -------
    figures on the selection scenes

    Raises
    ------
    OutputError
        If one of the files would be overwritten, or `out` cannot be written.
    WeightsError
        If the architectures differ, or are not that of a pyramid localizer.
    """
    target = out / "localizer.safetensors"
    if any(same_file(target, file) for file in files):
        raise OutputError(f"{target} is one of the files to average: give another folder")
    states, infos = zip(*(load_checkpoint(file) for file in files), strict=True)
    info = infos[0]
    for file, other in zip(files, infos, strict=True):
        if (other.architecture, other.classes) != (info.architecture, info.classes):
            raise WeightsError(f"{file} has another architecture than {files[0]}: their weights cannot be averaged")
    network = build(info.architecture)
    if not isinstance(network, PyramidLocalizer):
        raise WeightsError(f"{files[0]} holds a {type(network).__name__}: give localizers that train bundled made")
    mean = {name: torch.stack([state[name] for state in states]).double().mean(dim=0).float() for name in states[0]}
    network.load_state_dict({name: value.to(network.state_dict()[name].dtype) for name, value in mean.items()})
    losses = LocalizerLosses(network)
    torch.nn.init.zeros_(losses.log_gain)  # already folded into the saved weights
    with nullcontext(scenes) if scenes else tempfile.TemporaryDirectory(prefix="geolabel-") as folder:
        selection = draw_selection(RECIPES[preset], Path(folder), workers)
    figures = localizer_objective.measure(network, Judged([selection]), info.mean, info.std)
    trained = {
        "data": sorted({str(source) for one in infos for source in one.trained.get("data", ())}),
        "mean of": [hashlib.sha256(file.read_bytes()).hexdigest() for file in files],
        "selection": figures,
    }
    method = infos[0].trained.get("method")
    if method and all(one.trained.get("method") == method for one in infos):
        trained["method"] = method  # valid if all of them were trained for that method
    info = replace(info, window=GATE, constant=localizer_objective.settle(losses, figures), trained=trained)
    out.mkdir(parents=True, exist_ok=True)
    card = out / "localizer.md"
    with together(target, card):
        save_checkpoint(target, network, info)
        write_card(card, info, parameters=sum(p.numel() for p in network.parameters()))
    if preset != "short":
        from geolabel.training.graphs import write_graphs

        write_graphs(target)
    return figures

"""The mean of the weights of several localizers: often better than each of them.

Trainings that begin with the same weights and differ in what they are shown end in places between which the loss is
low, and their mean is less of a specialist. Source: Wortsman et al. (2022), "Model soups".
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
    """Write the mean of localizers of one architecture, its map and gate calibrated again, with a model card to `out`.

    Parameters
    ----------
    files
        Localizers that `train_bundled` made; one that is named twice counts twice.
    preset
        Whose selection scenes it is calibrated on.
    scenes, workers
        As for `train_bundled`.

    Returns
    -------
    figures on the selection scenes

    Raises
    ------
    OutputError
        If one of the files is where the mean is to be written, or that cannot be written.
    WeightsError
        If the files hold networks that differ in more than their weights, or no localizer of a pyramid.
    """
    target = out / "localizer.safetensors"
    if any(same_file(target, file) for file in files):
        raise OutputError(f"{target} is one of the files to average: give another folder")
    states, infos = zip(*(load_checkpoint(file) for file in files), strict=True)
    info = infos[0]
    for file, other in zip(files, infos, strict=True):
        if (other.architecture, other.classes) != (info.architecture, info.classes):
            raise WeightsError(f"{file} is of another architecture than {files[0]}: the mean of both is no network")
    network = build(info.architecture)
    if not isinstance(network, PyramidLocalizer):
        raise WeightsError(f"{files[0]} holds a {type(network).__name__}: give localizers that train bundled made")
    mean = {name: torch.stack([state[name] for state in states]).double().mean(dim=0).float() for name in states[0]}
    network.load_state_dict({name: value.to(network.state_dict()[name].dtype) for name, value in mean.items()})
    losses = LocalizerLosses(network)
    torch.nn.init.zeros_(losses.log_gain)  # what trained networks are saved with is folded in
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
        trained["method"] = method  # what all of them were trained for, their mean is for too
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

"""The fit loop of every training: schedules, weight averaging, curves, and a state to resume from."""

from __future__ import annotations

import csv
import logging
import math
import os
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol, Self

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from geolabel.devices import Precision, keep_freed_memory, products
from geolabel.folders import check_made, note
from geolabel.outputs import replacing

logger = logging.getLogger(__name__)

STATE = "state.pt"
"""State from which an interrupted training resumes: plain tensors and numbers."""

LOSSES, SELECTION, EVENTS = "curves.csv", "selection.csv", "tensorboard"
"""Losses of every step, figures of every evaluation, and the folder of both for ``tensorboard --logdir``."""


class Objective(Protocol):
    """A training task: the module, its batches, and its evaluation."""

    @property
    def module(self) -> nn.Module:
        """Called with a batch, returns losses by name; their sum is minimised."""
        ...

    def batch(self, step: int) -> dict[str, Tensor]:
        """Return the samples of a step, the same at every call, so that a resumed training sees the same samples."""
        ...

    def figures(self, module: nn.Module) -> dict[str, float]:
        """Evaluate a module on data held out for selection; weights with the highest ``score`` are kept."""
        ...


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Length and learning rate of a training."""

    cycles: tuple[int, ...] = ()
    """Steps of each cycle: the rate rises, falls, and rises again to half the height. Empty in presets, where the
    number of images is unknown; see `lasting`."""
    rate: float
    """Maximum learning rate of the first cycle."""
    fall: Literal["cosine", "poly", "step"] = "cosine"
    """How the rate falls; see `rate_at`. ``cosine`` has a warm-up, which high rates need on pretrained weights."""
    power: float = 0.9
    """Exponent of ``poly``."""
    kind: Literal["sgd", "adam", "adamw"] = "adamw"
    """Optimiser."""
    momentum: float = 0.9
    """Momentum of SGD. Released code of APSAM and S2C passes its weight decay here; 1e-4 and 5e-4 reproduce that."""
    decay: float = 0.02
    """Weight decay."""
    evaluations: int = 6
    """Number of evaluations of the averaged weights, evenly over the training."""
    warmup: float = 0.05
    """Share of a cycle with a rising rate, for ``cosine``."""
    average: float = 0.998
    """Decay of the moving average of the weights, after enough steps."""
    trunk: float = 1.0
    """Factor of the learning rate for the parameters of a ``trunk``: a pretrained one needs less."""
    keeps_last: int = 0
    """Keep the mean of the weights at this many last evaluations; 0 for those with the highest score. For selections
    that are not informative: longer training improves similar images at the expense of others, and the mean balances
    both. Source: Izmailov et al. (2018), "Averaging Weights Leads to Wider Optima and Better
    Generalization"."""
    minutes: float | None = None
    """Time limit: the schedule is compressed to it, including resumed runs. The weights then depend on the machine."""

    def lasting(self, steps: int, minutes: float | None = None) -> Self:
        """Return the schedule of a training with one cycle of that many steps, stopped after `minutes` if given."""
        return replace(self, cycles=(steps,), minutes=minutes)

    def optimiser(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """Create the optimiser for groups of parameters."""
        if self.kind == "sgd":
            return torch.optim.SGD(groups, lr=self.rate, momentum=self.momentum)
        return (torch.optim.Adam if self.kind == "adam" else torch.optim.AdamW)(groups, lr=self.rate)

    @property
    def steps(self) -> int:
        """Total steps of all cycles."""
        return sum(self.cycles)

    def progress(self, step: int, seconds: float) -> float:
        """Completed share of the training, 0..1."""
        return min(1.0, max(step / self.steps, seconds / 60 / (self.minutes or math.inf)))

    def rate_at(self, progress: float) -> float:
        """Learning rate at a share of the training.

        ``cosine``: in each cycle a linear rise, then half a cosine down to a hundredth; ``poly``:
        ``rate (1 - progress) ^ power``; ``step``: a tenth after each third of the training.

        Source: Loshchilov and Hutter (2017), "SGDR: Stochastic Gradient Descent with Warm Restarts".
        """
        if self.fall == "poly":
            return float(self.rate * max(0.0, 1 - progress) ** self.power)
        if self.fall == "step":
            return self.rate * 0.1 ** min(2, int(progress * 3 + 1e-9))
        left, peak = progress * self.steps, self.rate
        for steps in self.cycles[:-1]:
            if left < steps:
                break
            left, peak = left - steps, peak / 2
        else:
            steps = self.cycles[-1]
        at = left / steps
        share = at / self.warmup if at < self.warmup else _half_cosine((at - self.warmup) / (1 - self.warmup))
        return peak * (0.01 + 0.99 * share)


def _half_cosine(x: float) -> float:
    return (1 + math.cos(math.pi * x)) / 2


@dataclass
class _State:
    """State of a training between two steps."""

    fabric: Fabric
    module: nn.Module
    average: AveragedModel
    optimiser: torch.optim.Optimizer
    step: int = 0
    seconds: float = 0.0
    best: dict[str, Tensor] | None = None
    score: float = -math.inf

    def save(self, path: Path) -> None:
        parts = {name: getattr(self, name).state_dict() for name in ("module", "average", "optimiser")}
        rest = {name: getattr(self, name) for name in ("step", "seconds", "best", "score")}
        with replacing(path, overwrite=True) as part:
            torch.save(parts | rest, part)

    def load(self, path: Path) -> None:
        kept = torch.load(path, weights_only=True, map_location="cpu")
        for name in ("module", "average", "optimiser"):
            getattr(self, name).load_state_dict(kept[name])
        self.step, self.seconds, self.best, self.score = (kept[n] for n in ("step", "seconds", "best", "score"))


def fit(
    objective: Objective,
    schedule: Schedule,
    folder: Path,
    *,
    device: str = "cpu",
    precision: Precision = "fp32",
    resume: bool = False,
) -> dict[str, float]:
    """Train ``objective.module`` and leave in it the averaged weights with the highest score.

    Parameters
    ----------
    folder
        Receives the files of `Curves`, and `STATE`.
    precision
        Precision of the steps; weights are stored, averaged and evaluated in single precision.
    resume
        Resume from `STATE` if it exists, with the same result as without an interruption.

    Returns
    -------
    figures of the kept weights, number of ``steps`` and their ``minutes``
    """
    with products(precision):
        return _fit(objective, schedule, folder, device, precision, resume=resume)


def _fit(
    objective: Objective, schedule: Schedule, folder: Path, device: str, precision: Precision, *, resume: bool
) -> dict[str, float]:
    folder.mkdir(parents=True, exist_ok=True)
    keep_freed_memory()
    state = _start(objective.module, schedule, device, precision)
    if resume and (folder / STATE).is_file():
        state.load(folder / STATE)
        logger.info("resuming from step %d", state.step)
    last_evaluated = _stage(schedule, state)
    began = time.monotonic() - state.seconds
    with Curves(folder, after=state.step) as curves, ThreadPoolExecutor(1) as ahead:
        coming = ahead.submit(objective.batch, state.step)
        while (progress := schedule.progress(state.step, state.seconds)) < 1:
            batch = coming.result()
            coming = ahead.submit(objective.batch, state.step + 1)
            losses = _step(state, batch, schedule.rate_at(progress))
            state.seconds = time.monotonic() - began
            curves.losses(state.step, state.seconds, losses)
            if (stage := _stage(schedule, state)) > last_evaluated:
                last_evaluated = stage
                last = max(0, stage - schedule.evaluations + schedule.keeps_last)
                figures = _evaluate(objective, state, last if schedule.keeps_last else None)
                curves.figures(state.step, state.seconds, figures)
                state.save(folder / STATE)
    assert state.best is not None
    objective.module.load_state_dict(state.best)
    objective.module.eval()
    with torch.inference_mode():
        return objective.figures(objective.module) | {
            "steps": float(state.step),
            "minutes": round(state.seconds / 60, 1),
        }


def _start(module: nn.Module, schedule: Schedule, device: str, precision: Precision) -> _State:
    kind, _, index = device.partition(":")
    fabric = Fabric(
        accelerator=kind,
        devices=[int(index or 0)] if kind == "cuda" else 1,
        precision="bf16-mixed" if precision == "bf16" else "32-true",
    )
    optimiser = schedule.optimiser(_groups(module, schedule))
    average = AveragedModel(module, avg_fn=_moving_average(schedule.average), use_buffers=True)
    wrapped, wrapped_optimiser = fabric.setup(module, optimiser)
    return _State(fabric, wrapped, average.to(fabric.device), wrapped_optimiser)


def _groups(module: nn.Module, schedule: Schedule) -> list[dict[str, Any]]:
    def group(*, trunk: bool, decayed: bool) -> dict[str, Any]:
        # No weight decay for norms and biases.
        held = [p for n, p in module.named_parameters() if ("trunk." in n) == trunk and (p.ndim > 1) == decayed]
        share, decay = schedule.trunk if trunk else 1.0, schedule.decay if decayed else 0.0
        return {"params": held, "weight_decay": decay, "share": share, "lr": schedule.rate * share}

    groups = [group(trunk=t, decayed=d) for t in (False, True) for d in (True, False)]
    return [g for g in groups if g["params"]]


def _moving_average(decay: float) -> Any:
    def blend(average: Tensor, new: Tensor, count: Tensor | int) -> Tensor:
        # At first about a mean over the last tenth of the steps so far, so that random initial weights are forgotten.
        weight = max(1 - decay, 1 / (1 + int(count) / 10))
        return average + (new - average) * weight

    return blend


def _stage(schedule: Schedule, state: _State) -> int:
    return int(schedule.progress(state.step, state.seconds) * schedule.evaluations + 1e-9)


def _step(state: _State, batch: Mapping[str, Tensor], rate: float) -> dict[str, float]:
    for group in state.optimiser.param_groups:
        group["lr"] = rate * group["share"]
    state.module.train()
    losses = state.module(**state.fabric.to_device(dict(batch)))
    state.optimiser.zero_grad()
    state.fabric.backward(sum(losses.values()))
    state.fabric.clip_gradients(state.module, state.optimiser, max_norm=5.0)
    state.optimiser.step()
    state.average.update_parameters(state.module)
    state.step += 1
    return {"rate": rate} | {name: round(loss.item(), 6) for name, loss in losses.items()}


def _evaluate(objective: Objective, state: _State, last: int | None) -> dict[str, float]:
    """Figures of the averaged weights, kept as the best, or as number `last` (from 1) of the last in their mean."""
    averaged = state.average.module
    averaged.eval()
    with torch.inference_mode():
        figures = objective.figures(averaged)
    logger.info("step %d, %.0f s: %s", state.step, state.seconds, {k: round(v, 4) for k, v in figures.items()})
    if last is None and figures["score"] <= state.score:
        return figures
    state.score = figures["score"]
    kept = {name: tensor.detach().cpu().clone() for name, tensor in averaged.state_dict().items()}
    state.best = _mean_weights(state.best, kept, last) if state.best is not None and last else kept
    return figures


def _mean_weights(mean: dict[str, Tensor], new: dict[str, Tensor], count: int) -> dict[str, Tensor]:
    """The running mean of `count` weights; step counters are those of the latest."""
    return {
        name: mean[name] + (tensor - mean[name]) / count if tensor.is_floating_point() else tensor
        for name, tensor in new.items()
    }


# --- curves -----------------------------------------------------------------------------------------------------------


class Curves:
    """Writes losses and figures step by step: tables for people and programs, events for TensorBoard.

    Parameters
    ----------
    folder
        Receives `LOSSES`, `SELECTION` and, if tensorboard is installed, `EVENTS`.
    after
        Last step that is kept: later rows of an interrupted run are dropped and written again.
    """

    def __init__(self, folder: Path, after: int) -> None:
        self._folder = folder
        for name in (LOSSES, SELECTION):
            check_made(folder / name)
            _drop_rows(folder / name, after)
            note(folder / name)
        self._events = _open_events(folder / EVENTS, after)

    def losses(self, step: int, seconds: float, values: Mapping[str, float]) -> None:
        """Add the losses of a step."""
        self._add(LOSSES, "train", step, seconds, values)

    def figures(self, step: int, seconds: float, values: Mapping[str, float]) -> None:
        """Add the figures of an evaluation."""
        self._add(SELECTION, "selection", step, seconds, values)

    def _add(self, name: str, group: str, step: int, seconds: float, values: Mapping[str, float]) -> None:
        row = {"step": step, "seconds": round(seconds, 2)} | dict(values)
        path = self._folder / name
        fresh = not path.exists() or not path.stat().st_size
        with path.open("a", newline="") as file:
            writer = csv.DictWriter(file, row)
            if fresh:
                writer.writeheader()
            writer.writerow(row)
        if self._events is not None:
            for key, value in values.items():
                self._events.add_scalar(f"{group}/{key}", value, step)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._events is not None:
            self._events.close()
            for path in (self._folder / EVENTS).glob(f"events.out.tfevents.*.{os.getpid()}.*"):
                note(path)


def _open_events(folder: Path, after: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ModuleNotFoundError:
        logger.info("tensorboard is not installed: curves are written as CSV alone")
        return None
    return SummaryWriter(str(folder), purge_step=after + 1)


def _drop_rows(path: Path, after: int) -> None:
    if path.exists() and path.stat().st_size:
        header, *rows = path.read_text().splitlines()
        kept = [row for row in rows if int(row.split(",")[0]) <= after]
        path.write_text("\n".join([header, *kept, ""]) if kept else "")

"""Schedules of published trainings: one fall of the rate, and the optimiser that the paper names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch

from geolabel.training.fit import Schedule


@dataclass(frozen=True)
class Falling(Schedule):
    """A rate that falls once: by steps, as a power of what is left of the training, or as `Schedule` has it."""

    kind: Literal["sgd", "adam", "adamw"] = "sgd"
    momentum: float = 0.9
    """Of SGD. Released code of APSAM and of S2C passes its weight decay here, so 1e-4 and 5e-4 do as they do."""
    fall: Literal["poly", "step", "cosine"] = "poly"
    """``cosine`` is the one that rises first, as high rates need that follow on weights of another training."""
    power: float = 0.9
    """Of ``poly``."""

    def optimiser(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """Make what takes the steps."""
        if self.kind == "sgd":
            return torch.optim.SGD(groups, lr=self.rate, momentum=self.momentum)
        return (torch.optim.Adam if self.kind == "adam" else torch.optim.AdamW)(groups, lr=self.rate)

    def rate_at(self, progress: float) -> float:
        """Learning rate: ``rate (1 - progress) ^ power``, a tenth after each third of the training, or a cosine."""
        if self.fall == "cosine":
            return super().rate_at(progress)
        if self.fall == "poly":
            return float(self.rate * max(0.0, 1 - progress) ** self.power)
        return self.rate * 0.1 ** min(2, int(progress * 3 + 1e-9))

"""Training a student: a segmentation network on label maps, whoever made them.

APSAM's last step (its section II-D), which S2C and CISM share. A student learns what most pseudo-labels say and forgets
what a few say otherwise; pixels that are ignored teach nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from geolabel.agreement import Agreement, count_pixels
from geolabel.errors import TrainingError
from geolabel.labels import IGNORE
from geolabel.networks.student import zoomed_probabilities
from geolabel.trainers.crops import epoch_indices, take_crop
from geolabel.trainers.samples import generator, to_tensor
from geolabel.trainers.weak import Learning
from geolabel.types import Float32Array, Int64Array, UInt8Array


class Painted(Protocol):
    """An image and its label map."""

    @property
    def image(self) -> UInt8Array:
        """(H, W, 3) red first."""
        ...

    @property
    def values(self) -> UInt8Array:
        """(H, W) index into the classes, or `geolabel.labels.IGNORE`."""
        ...


class Examples(Protocol):
    """Images with label maps, read one by one, when they are asked for."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Name of every value from 0; the background is one of them where there is one."""
        ...

    @property
    def names(self) -> tuple[str, ...]:
        """Name of every image, each once."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Painted:
        """Read one image."""
        ...


@dataclass(frozen=True)
class Some:
    """Some of a set of examples, in the order of `index`."""

    whole: Examples
    index: Int64Array

    @property
    def classes(self) -> tuple[str, ...]:
        """Of the whole."""
        return self.whole.classes

    @property
    def names(self) -> tuple[str, ...]:
        """Name of every image."""
        return tuple(self.whole.names[i] for i in self.index)

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, index: int) -> Painted:
        """Read one image."""
        return self.whole[int(self.index[index])]


def segmentation_loss(logits: Tensor, values: Tensor) -> Tensor:
    """Mean cross-entropy of logits (N, K, H, W) over the pixels of (N, H, W) that are not ignored; 0 without any."""
    total = functional.cross_entropy(logits, values, ignore_index=IGNORE, reduction="sum")
    return total / (values != IGNORE).sum().clamp(min=1)


class StudentLosses(nn.Module):
    """A network and its loss; one that is no number ends the training and says of which images it was."""

    def __init__(self, network: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.network: Any = network
        self._names = tuple(names)

    def forward(self, index: Tensor, images: Tensor, values: Tensor) -> dict[str, Tensor]:
        """Loss of normalised crops (N, 3, S, S) of the images (N,) `index`, with label maps (N, S, S).

        Raises
        ------
        TrainingError
            If it is no number.
        """
        loss = segmentation_loss(self.network(images), values)
        if not torch.isfinite(loss):
            images_of = ", ".join(dict.fromkeys(self._names[i] for i in index.tolist()))
            raise TrainingError(
                f"the loss is {loss.item()} on the images {images_of}: look at these, or lower the learning rate"
            )
        return {"pixels": loss}


class StudentObjective:
    """Crops with their label maps, and the mean IoU of held-out images, judged whole."""

    def __init__(self, losses: StudentLosses, learn: Examples, select: Examples, learning: Learning) -> None:
        self.module = losses
        self._learn, self._learning = learn, learning
        at = np.unique(np.linspace(0, len(select) - 1, min(learning.judged, len(select))).astype(np.int64))
        self._select = Some(select, at)

    def batch(self, step: int) -> dict[str, Tensor]:
        """Crops of one step."""
        learning = self._learning
        rng = generator(learning.seed, 1, step)
        index = epoch_indices(len(self._learn), learning.batch, step, learning.seed)
        examples = (self._learn[int(i)] for i in index)
        crops = [take_crop(example.image, learning.cropping, rng, example.values) for example in examples]
        return {
            "index": torch.from_numpy(index),
            "images": to_tensor([crop.rgb for crop in crops], learning.mean, learning.std),
            "values": torch.from_numpy(np.stack([np.asarray(crop.layer) for crop in crops])).long(),
        }

    def figures(self, module: nn.Module) -> dict[str, float]:
        """Agreement with the label maps of held-out images, which may be pseudo-labels too; the score is mean IoU."""
        assert isinstance(module, StudentLosses)
        figures = judge(module.network, self._select, self._learning)
        return {"score": figures["miou"], "accuracy": figures["overall_accuracy"]}


def judge(network: Any, examples: Examples, learning: Learning) -> dict[str, float]:
    """Agreement of a student with the label maps of whole images; see `Agreement.figures`."""
    counts = []
    for k in range(len(examples)):
        example = examples[k]
        found = probabilities(network, example.image, learning).argmax(axis=0).astype(np.uint8)
        counts.append(count_pixels(found, example.values, len(examples.classes)))
    return Agreement(np.stack(counts), examples.classes).figures()


@torch.inference_mode()
def probabilities(network: Any, rgb: UInt8Array, learning: Learning) -> Float32Array:
    """(K, H, W) probability of every class in an image (H, W, 3), seen at the middle of the zooms of the training."""
    device = next(network.parameters()).device
    pixels = to_tensor([rgb], learning.mean, learning.std).to(device)
    return zoomed_probabilities(network, pixels, learning.cropping.zoom)[0].cpu().numpy()

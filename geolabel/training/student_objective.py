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
from numpy.random import Generator
from torch import Tensor, nn
from torch.nn import functional

from geolabel.agreement import Agreement, count_pixels
from geolabel.datasets.examples import Examples, Subset
from geolabel.errors import TrainingError
from geolabel.labels import IGNORE
from geolabel.models.nets.student import zoomed_probabilities
from geolabel.training.crops import balanced_indices, take_crop
from geolabel.training.samples import generator, to_tensor
from geolabel.training.weak import Learning
from geolabel.types import BoolArray, Float32Array, UInt8Array


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


class PaintedExamples(Examples[Painted], Protocol):
    """Images with label maps; `classes` names every value from 0, the background being one where there is one."""

    @property
    def shown(self) -> BoolArray:
        """(N,) whether the label map of an image has a class other than the first, the background."""
        ...


@dataclass(frozen=True)
class PaintedSubset(Subset[Painted]):
    """Some of a set of images with label maps."""

    whole: PaintedExamples

    @property
    def shown(self) -> BoolArray:
        """(N,) whether an image shows a class."""
        return np.asarray(self.whole.shown[self.index], bool)


def segmentation_loss(logits: Tensor, values: Tensor) -> Tensor:
    """Mean cross-entropy of logits (N, K, H, W) over the pixels of (N, H, W) that are not ignored; 0 without any."""
    total = functional.cross_entropy(logits, values, ignore_index=IGNORE, reduction="sum")
    return total / (values != IGNORE).sum().clamp(min=1)


def overlap_loss(logits: Tensor, values: Tensor) -> Tensor:
    """One minus the Dice overlap of every class but the first, over all known pixels of a step; their mean.

    Cross-entropy weighs a pixel of a rare class as any other, so what covers a tenth of the ground is drawn too small;
    an overlap weighs classes. Source: Milletari et al. (2016), "V-Net", with the sum in the denominator; 1 is added to
    both sides, so that a class that is nowhere and not found anywhere agrees.

    Parameters
    ----------
    logits : (N, K, H, W)
    values : (N, H, W)
        0 to K - 1, or `IGNORE`.
    """
    known = (values != IGNORE)[:, None]
    precise = torch.promote_types(logits.dtype, torch.float32)  # sums over a step are too long for half precision
    probability = logits.softmax(dim=1, dtype=precise) * known
    truth = functional.one_hot(values.masked_fill(values == IGNORE, 0), logits.shape[1]).movedim(-1, 1) * known
    both, total = (part.sum(dim=(0, 2, 3))[1:] for part in (probability * truth, probability + truth))
    return (1 - (2 * both + 1) / (total + 1)).mean()


class StudentLosses(nn.Module):
    """A network and its loss; one that is no number ends the training and says of which images it was.

    Parameters
    ----------
    network
        Makes logits of every pixel.
    names
        Of the images.
    overlap
        Weight of `overlap_loss`.
    """

    def __init__(self, network: nn.Module, names: Sequence[str], overlap: float = 0.0) -> None:
        super().__init__()
        self.network: Any = network
        self._names, self._overlap = tuple(names), overlap

    def forward(self, index: Tensor, images: Tensor, values: Tensor) -> dict[str, Tensor]:
        """Loss of normalised crops (N, 3, S, S) of the images (N,) `index`, with label maps (N, S, S).

        Raises
        ------
        TrainingError
            If it is no number.
        """
        logits = self.network(images)
        losses = {"pixels": segmentation_loss(logits, values)}
        if self._overlap:
            losses["overlap"] = self._overlap * overlap_loss(logits, values)
        if not torch.isfinite(loss := sum(losses.values(), torch.zeros_like(losses["pixels"]))):
            images_of = ", ".join(dict.fromkeys(self._names[i] for i in index.tolist()))
            raise TrainingError(
                f"the loss is {loss.item()} on the images {images_of}: look at these, or lower the learning rate"
            )
        return losses


class StudentObjective:
    """Crops with their label maps, and the mean IoU of held-out images, judged whole.

    Parameters
    ----------
    shown
        Share of the crops of a step that are of images which show a class, each around a pixel of it; 0 for crops of
        all images alike, anywhere in them.
    """

    def __init__(
        self,
        losses: StudentLosses,
        learn: PaintedExamples,
        select: PaintedExamples,
        learning: Learning,
        shown: float = 0.0,
    ) -> None:
        self.module = losses
        self._learn, self._learning, self._share = learn, learning, shown
        self._shown = learn.shown if shown else np.ones(len(learn), bool)
        at = np.unique(np.linspace(0, len(select) - 1, min(learning.judged, len(select))).astype(np.int64))
        self._select = PaintedSubset(select, at)

    def batch(self, step: int) -> dict[str, Tensor]:
        """Crops of one step."""
        learning = self._learning
        rng = generator(learning.seed, 1, step)
        index = balanced_indices(self._shown, self._share, learning.batch, step, learning.seed)
        examples = (self._learn[int(i)] for i in index)
        crops = [take_crop(e.image, learning.cropping, rng, e.values, self._place(e.values, rng)) for e in examples]
        return {
            "index": torch.from_numpy(index),
            "images": to_tensor([crop.rgb for crop in crops], learning.mean, learning.std),
            "values": torch.from_numpy(np.stack([np.asarray(crop.layer) for crop in crops])).long(),
        }

    def _place(self, values: UInt8Array, rng: Generator) -> tuple[int, int] | None:
        # landslides are small in large images: most crops anywhere would show none
        of_a_class = np.flatnonzero((values > 0) & (values != IGNORE)) if self._share else ()
        if not len(of_a_class):
            return None
        row, col = divmod(int(rng.choice(of_a_class)), values.shape[1])
        return row, col

    def figures(self, module: nn.Module) -> dict[str, float]:
        """Agreement with the label maps of held-out images, which may be pseudo-labels too; the score is mean IoU."""
        assert isinstance(module, StudentLosses)
        figures = judge(module.network, self._select, self._learning)
        return {"score": figures["miou"], "accuracy": figures["overall_accuracy"]}


def judge(network: Any, examples: Examples[Painted], learning: Learning) -> dict[str, float]:
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
    return zoomed_probabilities(network, pixels, learning.cropping.zoom, learning.cropping.size)[0].cpu().numpy()

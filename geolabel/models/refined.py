"""Activation that a dense CRF has moved to the edges of the image (DiffuPrompter, eq. 10; CISM's last step).

Every pixel is tied to every other one, the more the nearer and the more alike they are; mean field inference (the
paper's algorithm 1) finds the marginals. Sums over all pixels are Gaussian filters: that of the smoothness is
separable, and that of the appearance works on a grid of two axes of place and three of colour, so the time grows with
the number of pixels and not with its square. The grid is off by some hundredths of a sum; memory is about 400 bytes a
pixel.

Sources: Krähenbühl and Koltun (2011), "Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials",
eq. 3 and algorithm 1; for the grid, Chen, Paris and Durand (2007), "Real-time Edge-Aware Image Processing with the
Bilateral Grid".
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import conv1d

from geolabel.activation import Activation
from geolabel.errors import OptionError
from geolabel.labelers import enlarged
from geolabel.parts import Localizer
from geolabel.types import Float32Array, UInt8Array

Filter = Callable[[Tensor], Tensor]
"""Sums (K, H * W) over all pixels, weighted by a kernel."""

SPREAD = math.sqrt(5 / 6)
"""Standard deviation, in cells, of what the grid does to a value: linear weights in and out have a variance of a sixth
each, and the blur between them of a half."""


@dataclass(frozen=True)
class DenseCrf:
    """Refines maps by the image. The defaults are those of the released code of S2C.

    Raises
    ------
    OptionError
        If a width or the number of iterations is not positive, or a weight is negative.
    """

    iterations: int = 10
    smooth_weight: float = 3.0
    smooth_px: float = 3.0
    """Standard deviation of the smoothness kernel, pixels."""
    alike_weight: float = 10.0
    alike_px: float = 80.0
    alike_grey: float = 13.0
    """Standard deviations of the appearance kernel: pixels, and grey values of each colour."""

    def __post_init__(self) -> None:
        if self.iterations < 1 or min(self.smooth_px, self.alike_px, self.alike_grey) <= 0:
            raise OptionError("a dense CRF needs at least one iteration, and kernels of positive width")
        if min(self.smooth_weight, self.alike_weight) < 0:
            raise OptionError("the weights of a dense CRF must not be negative")

    def __call__(self, image: UInt8Array, probabilities: Float32Array, device: str = "cpu") -> Float32Array:
        """Marginals (K, H, W) of K classes.

        Parameters
        ----------
        image : (H, W, 3)
        probabilities : (K, H, W)
            Of each class before pixels look at each other; a pixel's add up to one.
        """
        classes, height, width = probabilities.shape
        unary = -torch.from_numpy(np.clip(probabilities, 1e-6, 1)).to(device).log().reshape(classes, -1)
        colours = torch.from_numpy(np.ascontiguousarray(image)).to(device).float()
        kernels = [
            (self.smooth_weight, normalised(gaussian(height, width, self.smooth_px), unary)),
            (self.alike_weight, normalised(bilateral(colours, self.alike_px, self.alike_grey), unary)),
        ]
        marginals = torch.softmax(-unary, dim=0)
        for _ in range(self.iterations):
            # The compatibility is Potts': a neighbour of another label costs the weight, so one's own earns it.
            marginals = torch.softmax(sum((w * filtered(marginals) for w, filtered in kernels), -unary), dim=0)
        refined: Float32Array = marginals.reshape(classes, height, width).cpu().numpy()
        return refined


def normalised(kernel: Filter, like: Tensor) -> Filter:
    """The same kernel, divided by the roots of what it gives to ones at both of its ends."""
    total = kernel(torch.ones_like(like[:1])).clamp(min=1e-12).rsqrt()
    return lambda values: kernel(values * total) * total


def gaussian(height: int, width: int, sigma: float) -> Filter:
    """Sums weighted by ``exp(-distance^2 / (2 sigma^2))``, cut off at four sigma; nothing lies outside the image."""
    reach = max(1, math.ceil(4 * sigma))
    taps = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2)[None, None]

    def along(values: Tensor) -> Tensor:
        lines = values.reshape(-1, 1, values.shape[-1])
        return conv1d(lines, taps.to(values), padding=reach).reshape(values.shape)

    def apply(values: Tensor) -> Tensor:
        planes = values.reshape(-1, height, width)
        return along(along(planes).transpose(1, 2)).transpose(1, 2).reshape(values.shape)

    return apply


def bilateral(colours: Tensor, sigma_px: float, sigma_grey: float) -> Filter:
    """Sums weighted by how near two pixels are and how alike their colours (H, W, 3), but for a constant factor.

    Values are spread over the corners of the cells of a grid, blurred there, and read again.
    """
    height, width, _ = colours.shape
    rows, cols = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    places = torch.stack([rows, cols], dim=-1).to(colours) / sigma_px
    features = torch.cat([places, (colours - colours.amin(dim=(0, 1))) / sigma_grey], dim=-1).reshape(-1, 5) * SPREAD
    cells, share = features.floor().long(), features - features.floor()
    shape = (cells.amax(dim=0) + 2).tolist()
    pitch = torch.tensor([math.prod(shape[axis + 1 :]) for axis in range(5)], device=colours.device)
    corners = []
    for corner in itertools.product((0, 1), repeat=5):
        step = torch.tensor(corner, device=colours.device)
        weight = torch.where(step > 0, share, 1 - share).prod(dim=1)
        corners.append((((cells + step) * pitch).sum(dim=1), weight))

    def apply(values: Tensor) -> Tensor:
        grid = values.new_zeros(len(values), math.prod(shape))
        for at, weight in corners:
            grid.index_add_(1, at, values * weight)
        grid = _blur(grid.reshape(-1, *shape)).reshape(len(values), -1)
        read = torch.zeros_like(values)
        for at, weight in corners:
            read += grid[:, at] * weight
        return read

    return apply


def _blur(grid: Tensor) -> Tensor:
    # (1 2 1) / 4 along each of the axes after the first; nothing lies outside.
    for axis in range(1, grid.ndim):
        half = grid / 2
        first, last = half.narrow(axis, 0, grid.shape[axis] - 1), half.narrow(axis, 1, grid.shape[axis] - 1)
        half = half.clone()
        half.narrow(axis, 0, grid.shape[axis] - 1).add_(last / 2)
        half.narrow(axis, 1, grid.shape[axis] - 1).add_(first / 2)
        grid = half
    return grid


@dataclass(frozen=True)
class RefinedLocalizer:
    """A localizer whose maps are refined, each class against a background that is as active everywhere as `threshold`.

    A map A and the constant gamma become the probabilities A / (A + gamma) and gamma / (A + gamma), and the marginals
    of the field become a map again in the same way: what exceeds gamma is what the field calls the class, and a field
    that ties no pixels gives back the map as it was.
    """

    localizer: Localizer
    threshold: float
    """The gamma of eq. 10."""
    crf: DenseCrf = field(default_factory=DenseCrf)
    device: str = "cpu"
    jointly: bool = False
    """Whether all classes and the background share one field, as CISM has it, instead of a field for each class: in
    every pixel only the class keeps its activation that the field likes best."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.localizer.classes

    @property
    def window(self) -> int:
        """Side in pixels of the images that the localizer was trained on."""
        return self.localizer.window

    @property
    def stride(self) -> int:
        """1: the refined activation has the image's own pixels."""
        return 1

    @property
    def gsd_range(self) -> tuple[float, float]:
        """Finest and coarsest ground sample distance, metres, that the localizer knows."""
        return self.localizer.gsd_range

    def __call__(self, images: Sequence[UInt8Array]) -> list[Activation]:
        """Activations of images (H, W, 3), red first; all of one size."""
        pairs = zip(images, self.localizer(images), strict=True)
        return [self._refined(image, activation) for image, activation in pairs]

    def _refined(self, image: UInt8Array, activation: Activation) -> Activation:
        maps = enlarged(activation, *image.shape[:2])
        probability = [
            self._nearest(of_class, activation.stride, maps.shape[1:]) for of_class in activation.local_probability
        ]
        fields = [maps] if self.jointly else list(maps[:, None])
        values = np.concatenate([self._refine(image, of_field) for of_field in fields])
        return replace(activation, values=values, local_probability=np.stack(probability), stride=1)

    def _refine(self, image: UInt8Array, maps: Float32Array) -> Float32Array:
        """Maps (K, H, W) that share a field."""
        constant = np.full_like(maps[:1], self.threshold)
        shares = np.concatenate([constant, maps]) / (constant + maps.sum(axis=0))
        marginals = self.crf(image, shares, self.device)
        background, active = marginals[0], marginals[1:]
        refined: Float32Array = np.minimum(np.float32(self.threshold) * active / np.maximum(background, 1e-6), 1)
        refined[active < active.max(axis=0)] = 0
        return refined

    @staticmethod
    def _nearest(values: Float32Array, stride: int, size: tuple[int, ...]) -> Float32Array:
        return values.repeat(stride, axis=0).repeat(stride, axis=1)[: size[0], : size[1]]


_refined: type[Localizer] = RefinedLocalizer

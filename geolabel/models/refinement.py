"""Activation aligned with the edges of the image: by a dense CRF, or by neighbouring pixels.

In a dense CRF (DiffuPrompter, eq. 10; CISM's last step) all pairs of pixels are connected, more strongly the nearer and
more similar they are; mean field inference (algorithm 1 of Krähenbühl and Koltun) finds the marginals. Sums over all
pixels are Gaussian filters: the smoothness filter is separable, and the appearance filter uses a grid with two spatial
and three colour axes, so time is linear in the number of pixels. The grid is accurate to a few hundredths; memory is
about 400 bytes a pixel, and 900 on a GPU. There, contributions to a cell are sorted before they are added, so the sums
have the same bytes in each run, and those of a CPU.

Pixel-adaptive refinement (`Pamr`) repeatedly replaces every pixel by the mean of several dozen pixels around it,
weighted by similarity.

Sources: Krähenbühl and Koltun (2011), "Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials",
eq. 3 and algorithm 1; for the grid, Chen, Paris and Durand (2007), "Real-time Edge-Aware Image Processing with the
Bilateral Grid"; Araslanov and Roth (2020), "Single-Stage Semantic Segmentation from Image Labels", section 3.3.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from skimage.filters import threshold_otsu
from torch import Tensor
from torch.nn.functional import conv1d, interpolate, pad

from geolabel.activation import Activation, normalise
from geolabel.devices import forward
from geolabel.errors import OptionError
from geolabel.labelers import enlarged
from geolabel.parts import Localizer
from geolabel.types import Float32Array, UInt8Array

Filter = Callable[[Tensor], Tensor]
"""Sums (K, H * W) over all pixels, weighted by a kernel."""

SPREAD = math.sqrt(5 / 6)
"""Standard deviation, in cells, of the grid's own smoothing: linear weights in and out have a variance of a sixth
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
            Unary probabilities of each class; they sum to one in each pixel.
        """
        with forward(device, "fp32"):
            return self._marginals(image, probabilities, device)

    def _marginals(self, image: UInt8Array, probabilities: Float32Array, device: str) -> Float32Array:
        classes, height, width = probabilities.shape
        unary = -torch.from_numpy(np.clip(probabilities, 1e-6, 1)).to(device).log().reshape(classes, -1)
        colours = torch.from_numpy(np.ascontiguousarray(image)).to(device).float()
        kernels = [
            (self.smooth_weight, normalised(gaussian(height, width, self.smooth_px), unary)),
            (self.alike_weight, normalised(bilateral(colours, self.alike_px, self.alike_grey), unary)),
        ]
        marginals = torch.softmax(-unary, dim=0)
        for _ in range(self.iterations):
            # Potts compatibility: a neighbour with another label costs the weight, so one with the same label earns it.
            marginals = torch.softmax(sum((w * filtered(marginals) for w, filtered in kernels), -unary), dim=0)
        refined: Float32Array = marginals.reshape(classes, height, width).cpu().numpy()
        return refined


def normalised(kernel: Filter, like: Tensor) -> Filter:
    """The same kernel, divided by the square roots of its sums over ones at both ends."""
    total = kernel(torch.ones_like(like[:1])).clamp(min=1e-12).rsqrt()
    return lambda values: kernel(values * total) * total


def gaussian(height: int, width: int, sigma: float) -> Filter:
    """Sums weighted by ``exp(-distance^2 / (2 sigma^2))``, truncated at four sigma; zero outside the image."""
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
    """Sums weighted by similarity in position and colour (H, W, 3), up to a constant factor.

    Values are splatted to the corners of the cells of a grid, blurred, and sliced (Chen et al., 2007).
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

    spread = (sorted_sums if colours.is_cuda else sums)(corners, math.prod(shape))

    def apply(values: Tensor) -> Tensor:
        grid = _blur(spread(values).reshape(-1, *shape)).reshape(len(values), -1)
        read = torch.zeros_like(values)
        for at, weight in corners:
            read += grid[:, at] * weight
        return read

    return apply


Corners = Sequence[tuple[Tensor, Tensor]]
"""For each corner of a cell: the grid cell (N,) that each pixel falls into, and its weight (N,)."""


def sums(corners: Corners, cells: int) -> Filter:
    """Sums (K, cells) of weighted values (K, N), added corner by corner, pixel by pixel.

    A GPU adds in any order, which changes the last digits: there, `sorted_sums` gives the same bytes.
    """

    def apply(values: Tensor) -> Tensor:
        grid = values.new_zeros(len(values), cells)
        for at, weight in corners:
            grid.index_add_(1, at, values * weight)
        return grid

    return apply


def sorted_sums(corners: Corners, cells: int) -> Filter:
    """Like `sums`, cell by cell: the values of a cell are gathered in the order in which `sums` adds them."""
    at, order = torch.sort(torch.cat([at for at, _ in corners]), stable=True)
    starts = torch.searchsorted(at, torch.arange(cells + 1, device=at.device))
    weight, pixel = torch.cat([weight for _, weight in corners])[order], order % len(corners[0][0])

    def apply(values: Tensor) -> Tensor:
        landed = (values[:, pixel] * weight).T.contiguous()  # two axes: each cell of each row is added by one thread
        return torch.segment_reduce(landed, "sum", offsets=starts, axis=0, initial=0).T

    return apply


def _blur(grid: Tensor) -> Tensor:
    # (1 2 1) / 4 along each axis after the first; zero outside.
    for axis in range(1, grid.ndim):
        half = grid / 2
        first, last = half.narrow(axis, 0, grid.shape[axis] - 1), half.narrow(axis, 1, grid.shape[axis] - 1)
        half = half.clone()
        half.narrow(axis, 0, grid.shape[axis] - 1).add_(last / 2)
        half.narrow(axis, 1, grid.shape[axis] - 1).add_(first / 2)
        grid = half
    return grid


@dataclass(frozen=True)
class Pamr:
    """Refines maps by the pixels around each. The defaults are those of the released code.

    The affinity of two pixels is ``-|x_i - x_j| / (0.1 sigma_i)``, averaged over colours, where sigma is the standard
    deviation of a colour in the neighbourhood; a softmax over the neighbourhood gives the weights (eq. 4 to 6).

    Raises
    ------
    OptionError
        If a number is not positive.
    """

    iterations: int = 10
    distances: tuple[int, ...] = (1, 2, 4, 8, 12, 24)
    """Distances; at each, eight pixels are used."""
    side: int = 160
    """Maximum longer side in pixels; larger images are reduced, so a distance is a similar share of each image."""

    def __post_init__(self) -> None:
        if min(self.iterations, self.side, *self.distances) < 1 or not self.distances:
            raise OptionError("pixel-adaptive refinement needs at least one iteration, one distance and one pixel")

    def __call__(self, image: UInt8Array, maps: Float32Array, device: str = "cpu") -> Float32Array:
        """Refined maps (K, H, W); each pixel stays between the minimum and maximum of its map.

        Parameters
        ----------
        image : (H, W, 3)
        maps : (K, H, W)
        """
        with forward(device, "fp32"):
            return self._refined(image, maps, device)

    def _refined(self, image: UInt8Array, maps: Float32Array, device: str) -> Float32Array:
        share = min(1.0, self.side / max(image.shape[:2]))
        size = [max(1, round(n * share)) for n in image.shape[:2]]
        colours = torch.from_numpy(np.ascontiguousarray(image)).to(device).permute(2, 0, 1).float() / 255
        colours = interpolate(colours[None], size, mode="bilinear", align_corners=False, antialias=True)[0]
        values = torch.from_numpy(np.ascontiguousarray(maps)).to(device)
        values = interpolate(values[None], size, mode="bilinear", align_corners=False)[0]
        weights = self._weights(colours)
        for _ in range(self.iterations):
            values = (self._around(values) * weights[:, None]).sum(dim=0)
        enlarged = interpolate(values[None], image.shape[:2], mode="bilinear", align_corners=False)
        refined: Float32Array = enlarged[0].cpu().numpy()
        return refined

    def _weights(self, colours: Tensor) -> Tensor:
        """(N, h, w) weights of the pixels around each, which sum to one, from colours (3, h, w)."""
        around = self._around(colours)
        count = len(around) + 1
        mean = (around.sum(dim=0) + colours) / count
        variance = (((around - mean) ** 2).sum(dim=0) + (colours - mean) ** 2) / count
        unlike = (around - colours).abs() / (0.1 * variance.sqrt() + 1e-8)
        return (-unlike.mean(dim=1)).softmax(dim=0)

    def _around(self, values: Tensor) -> Tensor:
        """(N, K, h, w) the pixels around each of (K, h, w); pixels are repeated beyond the frame."""
        height, width = values.shape[1:]
        found = []
        for d in self.distances:
            padded = pad(values[None], (d, d, d, d), mode="replicate")[0]
            corners = itertools.product((0, d, 2 * d), repeat=2)
            found += [padded[:, y : y + height, x : x + width] for y, x in corners if (y, x) != (d, d)]
        return torch.stack(found)


@dataclass(frozen=True)
class _Wrapping:
    """A localizer whose maps are changed, at the resolution of the image."""

    localizer: Localizer

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.localizer.classes

    @property
    def window(self) -> int:
        """Side in pixels of the localizer's training images."""
        return self.localizer.window

    @property
    def stride(self) -> int:
        """1: the refined activation has the resolution of the image."""
        return 1

    @property
    def gsd_range(self) -> tuple[float, float]:
        """Finest and coarsest ground sample distance, metres, that the localizer supports."""
        return self.localizer.gsd_range

    def __call__(self, images: Sequence[UInt8Array]) -> list[Activation]:
        """Activations of images (H, W, 3), red first; all of one size."""
        pairs = zip(images, self.localizer(images), strict=True)
        return [self._refined(image, activation) for image, activation in pairs]

    def _refined(self, image: UInt8Array, activation: Activation) -> Activation:
        maps = enlarged(activation, *image.shape[:2])
        probability = [_nearest(p, activation.stride, maps.shape[1:]) for p in activation.local_probability]
        values = self._values(image, maps)
        return replace(activation, values=values, local_probability=np.stack(probability), stride=1)

    def _values(self, image: UInt8Array, maps: Float32Array) -> Float32Array:
        """Refined maps (C, H, W) from maps at the size of the image."""
        raise NotImplementedError


def _nearest(values: Float32Array, stride: int, size: tuple[int, ...]) -> Float32Array:
    return values.repeat(stride, axis=0).repeat(stride, axis=1)[: size[0], : size[1]]


@dataclass(frozen=True)
class PamrLocalizer(_Wrapping):
    """A localizer of chips whose maps are refined by `Pamr` and rescaled; see `levelled`."""

    pamr: Pamr = field(default_factory=Pamr)
    device: str = "cpu"

    def _values(self, image: UInt8Array, maps: Float32Array) -> Float32Array:
        return np.stack([levelled(one) for one in self.pamr(image, maps, self.device)])


def levelled(values: Float32Array) -> Float32Array:
    """A map (H, W) rescaled so that its maximum is 1 and its Otsu threshold 0.5, piecewise linear.

    A fixed level suits no two chips: maps of large landslides are low compared with their maximum, those of small ones
    are wide. A map without positive values becomes 0.

    Source: Otsu (1979), "A Threshold Selection Method from Gray-Level Histograms"
    """
    scaled = normalise(values)
    if scaled.max() == scaled.min():
        return scaled
    cut = float(threshold_otsu(scaled))  # type: ignore[no-untyped-call]
    return np.interp(scaled, (0, cut, 1), (0, 0.5, 1)).astype(np.float32)


@dataclass(frozen=True)
class RefinedLocalizer(_Wrapping):
    """A localizer whose maps are refined, each class against a background with the constant activation `threshold`.

    A map A and the constant gamma become the probabilities A / (A + gamma) and gamma / (A + gamma), and the marginals
    are converted back to a map in the same way: pixels above gamma are those that the CRF assigns to the class, and a
    CRF without connections returns the map unchanged.
    """

    threshold: float
    """The gamma of eq. 10."""
    crf: DenseCrf = field(default_factory=DenseCrf)
    device: str = "cpu"
    jointly: bool = False
    """Whether all classes and the background share one CRF, as in CISM, instead of one per class: each pixel then keeps
    the activation of its most probable class only."""

    def _values(self, image: UInt8Array, maps: Float32Array) -> Float32Array:
        fields = [maps] if self.jointly else list(maps[:, None])
        return np.concatenate([self._refine(image, of_field) for of_field in fields])

    def _refine(self, image: UInt8Array, maps: Float32Array) -> Float32Array:
        """Maps (K, H, W) refined in one CRF."""
        constant = np.full_like(maps[:1], self.threshold)
        shares = np.concatenate([constant, maps]) / (constant + maps.sum(axis=0))
        marginals = self.crf(image, shares, self.device)
        background, active = marginals[0], marginals[1:]
        refined: Float32Array = np.minimum(np.float32(self.threshold) * active / np.maximum(background, 1e-6), 1)
        refined[active < active.max(axis=0)] = 0
        return refined


_refined: type[Localizer] = RefinedLocalizer
_pamr: type[Localizer] = PamrLocalizer

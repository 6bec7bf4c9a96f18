"""Activation that a dense CRF has drawn along the edges of the image (DiffuPrompter, eq. 10; CISM's last step)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from geolabel.activation import Activation
from geolabel.crf import DenseCrf
from geolabel.labelers import enlarged
from geolabel.parts import Localizer
from geolabel.types import Float32Array, UInt8Array


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
    """Whether all classes and the background share one field, as CISM has it, in place of a field for each class: in
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
        probability = [self._nearest(of_class, activation.stride, maps.shape[1:])
                       for of_class in activation.local_probability]  # fmt: skip
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

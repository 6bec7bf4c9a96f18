"""Localizers with a single network: class activation maps of a classifier, and probabilities of a student.

Sources: Zhou et al. (2016), "Learning Deep Features for Discriminative Localization"; eq. 1 of APSAM.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from geolabel.activation import Activation, Normalisation, local_probability, normalise
from geolabel.devices import forward
from geolabel.errors import WeightsError
from geolabel.labels import BACKGROUND, LabelMap
from geolabel.models.checkpoint import NetworkInfo
from geolabel.models.engines import ImageMapNetwork, MapNetwork
from geolabel.types import Float32Array, UInt8Array


class CamLocalizer:
    """A classifier with a linear head, as a `parts.Localizer`.

    Parameters
    ----------
    network
        Maps (N, 3, H, W) normalised pixels to raw maps ``theta^T F``.
    info
        Its description.
    batch
        Images per call. The last batch is padded, since the last digits of a result depend on the batch size.
    normalisation
        What is scaled to activation 1.

    Raises
    ------
    WeightsError
        If the normalisation is by constant and the description has none.
    """

    def __init__(
        self, network: MapNetwork, info: NetworkInfo, *, batch: int = 8, normalisation: Normalisation = "constant"
    ) -> None:
        self._constant = info.constant if normalisation == "constant" else None
        if normalisation == "constant" and not (self._constant and self._constant > 0):
            raise WeightsError(
                f"the localizer has the constant {info.constant}, but scenes need a positive one: calibrate it, "
                "or normalise each image by its maximum"
            )
        self._network = network
        self._info = info
        self._batch = batch
        self._mean, self._std = (np.asarray(values, np.float32)[:, None, None] for values in (info.mean, info.std))

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self._info.classes

    @property
    def window(self) -> int:
        """Side in pixels of its training images."""
        return self._info.window

    @property
    def stride(self) -> int:
        """Image pixels per cell of the activation."""
        return self._info.stride

    @property
    def gsd_range(self) -> tuple[float, float]:
        """Finest and coarsest supported ground sample distance, metres."""
        return self._info.gsd_range

    def __call__(self, images: Sequence[UInt8Array]) -> list[Activation]:
        """Activations of images (H, W, 3), red first.

        Raises
        ------
        ValueError
            If the images differ in size.
        """
        if len({image.shape for image in images}) > 1:
            raise ValueError(f"images of one call must have one size, not {sorted({image.shape for image in images})}")
        raw: list[Float32Array] = []
        for start in range(0, len(images), self._batch):
            raw.extend(self.raw_maps(images[start : start + self._batch]))
        return [self._activation(maps) for maps in raw]

    def raw_maps(self, images: Sequence[UInt8Array]) -> Float32Array:
        """Raw maps (n, C, ceil(H / stride), ceil(W / stride)) of up to `batch` images (H, W, 3) of one size."""
        height, width = images[0].shape[:2]
        network = self._network
        if isinstance(network, ImageMapNetwork) and network.apart:
            maps = network.of_images(images, self._mean, self._std, self._batch)
        else:
            maps = network(self._normalised(images))
        return maps[: len(images), :, : -(-height // self.stride), : -(-width // self.stride)]

    def _normalised(self, images: Sequence[UInt8Array]) -> Float32Array:
        height, width = images[0].shape[:2]
        multiple = self._network.multiple
        missing = ((0, self._batch - len(images)), (0, 0), (0, -height % multiple), (0, -width % multiple))
        stack = np.stack([np.moveaxis(image, 2, 0) for image in images])
        if np.any(missing):
            stack = np.pad(stack, missing, mode="edge")
        pixels: Float32Array = stack - self._mean
        pixels /= self._std
        return pixels

    def _activation(self, raw: Float32Array) -> Activation:
        cells = max(1, self.window // self.stride)
        return Activation(
            values=normalise(raw, self._constant),
            local_probability=local_probability(raw, self._network.bias, cells, self._info.sharpness),
            raw_max=raw.max(axis=(1, 2)),
            stride=self.stride,
            classes=self.classes,
        )


class DenseLocalizer:
    """A segmentation network as a `parts.Localizer`; its activation is the probability of each class.

    Parameters
    ----------
    network, info
        A student and its description.
    zoom
        Enlargement before the network; 1 for scenes, whose working grid has the right gsd. For chips see
        `NetworkInfo.zoom`.
    device, precision
        A torch device; see `geolabel.devices.Precision`.
    batch
        Images per forward call. The last batch is padded, since the last digits of a result depend on the batch size.
    """

    stride = 1

    def __init__(
        self,
        network: Any,
        info: NetworkInfo,
        *,
        zoom: float = 1.0,
        device: str = "cpu",
        precision: str = "fp32",
        batch: int = 1,
    ) -> None:
        import torch

        self._network = network.to(device).to(memory_format=torch.channels_last).eval()
        self._info, self._zoom = info, zoom
        self._device, self._precision, self._batch = device, precision, batch
        self._mean, self._std = (torch.tensor(v, device=device)[:, None, None] for v in (info.mean, info.std))
        self._shown = [k for k, name in enumerate(info.classes) if name != BACKGROUND]

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, without background."""
        return tuple(self._info.classes[k] for k in self._shown)

    @property
    def window(self) -> int:
        """Side in pixels of its training images."""
        return self._info.window

    @property
    def gsd_range(self) -> tuple[float, float]:
        """Finest and coarsest supported ground sample distance, metres."""
        return self._info.gsd_range

    def __call__(self, images: Sequence[UInt8Array]) -> list[Activation]:
        """Probabilities of images (H, W, 3) of one size; an image's class probability is its maximum."""
        return [self._activation(values[self._shown]) for values in self.probabilities(images)]

    def probabilities(self, images: Sequence[UInt8Array]) -> list[Float32Array]:
        """(K, H, W) of each image: probability of every class, including background."""
        import torch

        from geolabel.models.nets.student import zoomed_probabilities
        from geolabel.models.on_device import upload

        found: list[Float32Array] = []
        with forward(self._device, self._precision):
            for start in range(0, len(images), self._batch):
                part = list(images[start : start + self._batch])
                padded = part + [part[-1]] * (self._batch - len(part))
                pixels = torch.stack(upload(padded, self._device)).permute(0, 3, 1, 2).float()
                values = zoomed_probabilities(self._network, (pixels - self._mean) / self._std, self._zoom, self.window)
                found.extend(values[: len(part)].float().cpu().numpy())
        return found

    def label(self, image: UInt8Array) -> LabelMap:
        """The most probable class of every pixel of an image (H, W, 3)."""
        (values,) = self.probabilities([image])
        best = values.argmax(axis=0)
        return LabelMap(best.astype(np.uint8), values.max(axis=0), self._info.classes)

    def _activation(self, values: Float32Array) -> Activation:
        highest = values.max(axis=(1, 2))
        everywhere = np.broadcast_to(highest[:, None, None], values.shape)
        return Activation(values, everywhere, highest, self.stride, self.classes)

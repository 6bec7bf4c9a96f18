"""Interfaces between networks and their engines: PyTorch anywhere, ONNX Runtime on a CPU.

Images and prompts are passed as arrays. Features and masks between two calls of a network are the engine's own arrays,
which support NumPy's indexing; `PromptedNetwork.host` converts them to NumPy arrays.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from geolabel.prompts import CORNERS, PADDING
from geolabel.types import AnyArray, Float32Array, Int32Array, Int64Array, UInt8Array

Engine = Literal["torch", "onnx"]

GRAPHS = {
    "localizer": ("",),
    "segmenter": ("-encoder", "-decoder"),
    "everything": ("-encoder", "-tokens", "-masks"),
}
"""Suffixes of graph files by kind of network; ``everything`` is that mode of a segmenter."""

PROMPTS_CPU = 8
"""Prompts of everything mode per call of a decoder on a CPU: the cells of more do not stay near to a processor. The
graph of such a decoder takes that many."""

Points = tuple[AnyArray, Int32Array]
"""Coordinates (K, N, 2) in pixels of the frame, and labels (K, N)."""


NOWHERE = -100.0
"""Logit of a mask outside its image."""


def cells_within(size: tuple[int, int], window: int, cells: int) -> tuple[int, int]:
    """Rows and columns of the embedding cells that an image's pixels depend on; each has four mask cells a side.

    Parameters
    ----------
    size
        Height and width of the image in the frame.
    window, cells
        Pixels and cells along a side of the frame.
    """
    last = (math.floor((side - 0.5) * 4 * cells / window - 0.5) + 1 for side in size)
    rows, cols = (min(cells, at // 4 + 1) for at in last)
    return rows, cols


def bucket(count: int, batch: int) -> int:
    """Batch size for `count` images: the next power of two, up to `batch`.

    Last digits depend on the batch size: there are few sizes, and few images are not padded to a large batch.
    """
    return min(batch, 1 << (count - 1).bit_length())


def graph_files(weights: Path, kind: str) -> tuple[Path, ...]:
    """Graph files beside a weights file, existing or not; empty for a kind without graphs."""
    return tuple(weights.with_name(f"{weights.stem}{end}.onnx") for end in GRAPHS.get(kind, ()))


def every_graph_file(weights: Path, kind: str) -> tuple[Path, ...]:
    """All graph files of a network, including everything mode; see `graph_files`."""
    kinds = ("segmenter", "everything") if kind == "segmenter" else (kind,)
    return tuple(dict.fromkeys(file for each in kinds for file in graph_files(weights, each)))


def as_tokens(points: Points | None, boxes: AnyArray | None) -> tuple[Float32Array, AnyArray]:
    """Coordinates (K, N, 2) and labels (K, N) of prompts of one kind, with a box as two corners.

    Points without a box get a padding token, as in SAM's prompt encoder.
    """
    parts = [] if points is None else [points]
    if boxes is not None:
        parts.append((boxes.reshape(-1, 2, 2), np.tile(np.asarray(CORNERS, np.int32), (len(boxes), 1))))
    elif points is not None:
        count = len(points[0])
        parts.append((np.zeros((count, 1, 2)), np.full((count, 1), PADDING, np.int32)))
    coords = np.concatenate([coords for coords, _ in parts], axis=1, dtype=np.float32)
    return coords, np.concatenate([labels for _, labels in parts], axis=1, dtype=np.int64)


class MapNetwork(Protocol):
    """A network of raw class activation maps with a linear head."""

    stride: int
    """Image pixels per cell of the maps."""
    multiple: int
    """Image sides must be multiples of this."""
    bias: Float32Array
    """(C,) bias of the head, which is not part of the maps."""

    def __call__(self, pixels: Float32Array) -> Float32Array:
        """Raw maps (N, C, H / stride, W / stride) of normalised images (N, 3, H, W)."""
        ...


@runtime_checkable
class ImageMapNetwork(MapNetwork, Protocol):
    """A network of raw class activation maps that can also take images as bytes."""

    apart: bool
    """Whether it runs on a device to which images are copied before they are normalised."""

    def of_images(
        self, images: Sequence[UInt8Array], mean: Float32Array, std: Float32Array, batch: int
    ) -> Float32Array:
        """Raw maps (`batch`, C, h, w) of up to `batch` images (H, W, 3) of one size; the last one is repeated.

        Parameters
        ----------
        mean, std : (3, 1, 1)
            Of red, green and blue, for normalisation.
        """
        ...


class PromptedNetwork(Protocol):
    """A network with the structure of Segment Anything."""

    window: int
    """Maximum side in pixels of an image, and side of its frame."""
    cells: int
    """Cells of an embedding along a side of the frame."""
    width: int
    """Channels of an embedding."""
    stretches: bool
    """Whether an image is stretched to the frame; masks are then enlarged from cells to its pixels directly. If not, it
    keeps its shape, and masks are enlarged to the frame first."""
    batch: int
    """Images per call of the encoder. The last batch is padded, see `bucket`."""

    apart: bool
    """Whether it runs on a device whose results the host must wait for; masks are then computed there, in PyTorch."""

    def running(self) -> AbstractContextManager[None]:
        """Context in which the methods below are called."""
        ...

    def frame_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width of an image in the encoder's frame."""
        ...

    def encode(self, images: Sequence[UInt8Array]) -> Any:
        """Embeddings of up to `batch` images (H, W, 3), red first, H and W up to `window`, for `decode`."""
        ...

    def features(self, embedding: Any) -> Any:
        """(D, h, w) features of an embedding, for each cell of the frame."""
        ...

    def decode(
        self, embedding: Any, points: Points | None, boxes: AnyArray | None, *, single: bool = False
    ) -> tuple[Any, Any]:
        """Candidates of K prompts of one kind: logits (K, 3, h, w) and predicted IoU (K, 3).

        Parameters
        ----------
        embedding
            Embedding of one image.
        boxes : (K, 4)
            First and last pixel in the frame.
        single
            Whether to return the single mask for an unambiguous prompt instead of three.
        """
        ...

    def enlarge(self, logits: Any, size: tuple[int, int]) -> Any:
        """Logits (h, w) at another size, bilinear; cell centres keep their position (``align_corners=False``)."""
        ...

    def host(self, array: Any) -> AnyArray:
        """The values as a NumPy array."""
        ...


@runtime_checkable
class SelectiveNetwork(PromptedNetwork, Protocol):
    """A network that can compute the masks of likely candidates only."""

    def decode_likely(
        self, embedding: Any, points: Points | None, boxes: AnyArray | None, least: float, size: tuple[int, int]
    ) -> tuple[Any, Float32Array, Int64Array, Int64Array]:
        """The candidates of K prompts of one kind whose predicted IoU exceeds `least`, ordered by prompt.

        Parameters
        ----------
        size
            Height and width of the image in the frame; masks have the logit `NOWHERE` outside.

        Returns
        -------
        Logits (M, h, w) as the engine's array; on the host, predicted IoU (M,), prompt (M,) and candidate (M,) of each
        mask.
        """
        ...

"""What runs a network: PyTorch anywhere, or ONNX Runtime on a CPU; and what parts need of either.

Images and prompts go in as arrays. Features and masks between two calls of a network are the engine's own arrays,
which know NumPy's indexing; `PromptedNetwork.host` makes NumPy arrays of them.
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
"""By kind of network, how the names of the files of its graphs end; ``everything`` is that mode of a segmenter."""

Points = tuple[AnyArray, Int32Array]
"""Coordinates (K, N, 2) in pixels of the frame, and labels (K, N)."""


NOWHERE = -100.0
"""Logit of a mask where its image has no pixels."""


def cells_within(size: tuple[int, int], window: int, cells: int) -> tuple[int, int]:
    """Rows and columns of the cells of an embedding that pixels of an image are made of, four mask cells to each side.

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
    """Images that a call takes in which there are `count`: the next power of two, up to `batch`.

    A network's last digits depend on the size of a call: there are few sizes, and few images are not filled up to many.
    """
    return min(batch, 1 << (count - 1).bit_length())


def graph_files(weights: Path, kind: str) -> tuple[Path, ...]:
    """Files of the graphs beside a file of weights, whether they exist or not; none for a kind that has no graphs."""
    return tuple(weights.with_name(f"{weights.stem}{end}.onnx") for end in GRAPHS.get(kind, ()))


def every_graph_file(weights: Path, kind: str) -> tuple[Path, ...]:
    """Files of all graphs that a network has, those of everything mode among them; see `graph_files`."""
    kinds = ("segmenter", "everything") if kind == "segmenter" else (kind,)
    return tuple(dict.fromkeys(file for each in kinds for file in graph_files(weights, each)))


def as_tokens(points: Points | None, boxes: AnyArray | None) -> tuple[Float32Array, AnyArray]:
    """Coordinates (K, N, 2) and labels (K, N) of prompts of one kind, a box as two corners.

    Points without a box have a token of padding, which SAM's prompt encoder gives them.
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
    """A network of raw class activation maps, whose head is linear."""

    stride: int
    """Image pixels per cell of the maps."""
    multiple: int
    """The sides of an image are multiples of this."""
    bias: Float32Array
    """(C,) of the head; the maps are without it."""

    def __call__(self, pixels: Float32Array) -> Float32Array:
        """Raw maps (N, C, H / stride, W / stride) of normalised images (N, 3, H, W)."""
        ...


@runtime_checkable
class ImageMapNetwork(MapNetwork, Protocol):
    """A network of raw class activation maps that can take images as they are."""

    apart: bool
    """Whether it runs on a device to which images travel, and where they are then normalised."""

    def of_images(
        self, images: Sequence[UInt8Array], mean: Float32Array, std: Float32Array, batch: int
    ) -> Float32Array:
        """Raw maps (`batch`, C, h, w) of up to `batch` images (H, W, 3) of one size, the last of which is repeated.

        Parameters
        ----------
        mean, std : (3, 1, 1)
            Of red, green and blue, by which images are normalised.
        """
        ...


class PromptedNetwork(Protocol):
    """A network of the Segment Anything shape."""

    window: int
    """Side in pixels of the largest image it takes, and of its frame."""
    cells: int
    """Cells of an embedding along a side of the frame."""
    width: int
    """Channels of an embedding."""
    stretches: bool
    """Whether an image fills the frame along both sides; its masks then go from cells to its pixels at once. If not, it
    keeps its shape, and masks go through the pixels of the frame."""
    batch: int
    """Images per call of the encoder. The last batch is padded, see `bucket`."""

    apart: bool
    """Whether it runs on a device for whose results the host has to wait; masks are then made there, in PyTorch."""

    def running(self) -> AbstractContextManager[None]:
        """Everything below is called within this."""
        ...

    def frame_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width that an image of some height and width has in the encoder's frame."""
        ...

    def encode(self, images: Sequence[UInt8Array]) -> Any:
        """Embeddings of up to `batch` images (H, W, 3), red first, H and W up to `window`, as `decode` takes them."""
        ...

    def features(self, embedding: Any) -> Any:
        """(D, h, w) of an embedding: what the encoder saw in each cell of the frame."""
        ...

    def decode(
        self, embedding: Any, points: Points | None, boxes: AnyArray | None, *, single: bool = False
    ) -> tuple[Any, Any]:
        """Candidates of K prompts of one kind: logits (K, 3, h, w) and predicted IoU (K, 3).

        Parameters
        ----------
        embedding
            Of one image.
        boxes : (K, 4)
            First and last pixel in the frame.
        single
            Whether the one mask of a prompt that means one thing is asked for instead of three.
        """
        ...

    def enlarge(self, logits: Any, size: tuple[int, int]) -> Any:
        """Logits (h, w) at another size, bilinearly; cell centres keep their place (``align_corners=False``)."""
        ...

    def host(self, array: Any) -> AnyArray:
        """The same as a NumPy array."""
        ...


@runtime_checkable
class SelectiveNetwork(PromptedNetwork, Protocol):
    """A network that makes the masks of likely candidates only."""

    def decode_likely(
        self, embedding: Any, points: Points | None, boxes: AnyArray | None, least: float, size: tuple[int, int]
    ) -> tuple[Any, Float32Array, Int64Array, Int64Array]:
        """The candidates, of K prompts of one kind, whose predicted IoU exceeds `least`, prompt by prompt.

        Parameters
        ----------
        size
            Height and width of the image in the frame: masks have the logit `NOWHERE` where none of its pixels is.

        Returns
        -------
        Logits (M, h, w), the engine's own; predicted IoU (M,), and which prompt (M,) and which of its candidates (M,)
        each is of, on the host.
        """
        ...

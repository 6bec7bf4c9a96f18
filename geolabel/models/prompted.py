"""How images and prompts reach a SAM-shaped network: what its segmenters share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from geolabel.masks import Masks
from geolabel.models.engines import PromptedNetwork
from geolabel.prompts import Prompts
from geolabel.types import UInt8Array


def answer(
    network: PromptedNetwork,
    images: Sequence[UInt8Array],
    prompts: Sequence[Prompts],
    decode: Callable[[Any, UInt8Array, Prompts], Masks],
    nothing: Callable[[UInt8Array], Masks],
) -> list[Masks]:
    """Masks of images (H, W, 3), red first.

    Parameters
    ----------
    decode
        Makes the masks of one image of its embedding (D, h, w), itself and its prompts.
    nothing
        Makes those of an image without prompts, which is not encoded.

    Raises
    ------
    ValueError
        If an image that is asked about is larger than the network's window.
    """
    asked = [i for i, of_image in enumerate(prompts) if len(of_image)]
    masks = [nothing(image) for image in images]
    with network.running():
        for start in range(0, len(asked), network.batch):
            group = asked[start : start + network.batch]
            for i in group:
                if max(images[i].shape[:2]) > network.window:
                    size = images[i].shape[:2]
                    raise ValueError(f"an image of {size} px exceeds the segmenter's window of {network.window} px")
            for i, embedding in zip(group, network.encode([images[i] for i in group]), strict=True):
                masks[i] = decode(embedding, images[i], prompts[i])
    return masks

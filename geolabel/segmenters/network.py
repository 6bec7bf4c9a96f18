"""A SAM-shaped network, and how images and prompts reach it: what its segmenters share."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from segment_anything.modeling import Sam
from segment_anything.utils.transforms import ResizeLongestSide
from torch import Tensor

from geolabel.devices import forward
from geolabel.masks import Masks
from geolabel.prompts import Prompts
from geolabel.types import UInt8Array

Points = tuple[Tensor, Tensor]
"""Coordinates (K, N, 2) in pixels of the frame and labels (K, N), as the prompt encoder takes them."""


class SamNetwork:
    """Encodes images in batches of one size, and decodes prompts.

    Parameters
    ----------
    sam
        Is moved to `device` and set to evaluate.
    resize
        Whether images are first enlarged until their longest side is the encoder's. If not, they keep their pixels and
        are padded with zeros at the bottom and the right.
    device, precision
        A torch device; ``fp32`` or ``bf16``. Positions of prompts are always encoded in single precision, since eight
        bits cannot tell neighbouring pixels apart.
    batch
        Images per call of the encoder. The last batch is padded: a network's last digits depend on the batch.
    """

    def __init__(self, sam: Sam, *, resize: bool, device: str, precision: str, batch: int) -> None:
        self.sam = sam.to(device).eval()
        self.resize = ResizeLongestSide(self.window) if resize else None
        self.device = device
        self._precision = precision
        self._batch = batch
        with torch.inference_mode():
            self._positions = sam.prompt_encoder.get_dense_pe()

    @property
    def window(self) -> int:
        """Side in pixels of the largest image it takes."""
        return int(self.sam.image_encoder.img_size)

    def frame_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width that an image of some height and width has in the encoder's frame."""
        if self.resize is None:
            return size
        frame: tuple[int, int] = self.resize.get_preprocess_shape(*size, self.window)
        return frame

    def answer(
        self,
        images: Sequence[UInt8Array],
        prompts: Sequence[Prompts],
        decode: Callable[[Tensor, UInt8Array, Prompts], Masks],
        nothing: Callable[[UInt8Array], Masks],
    ) -> list[Masks]:
        """Masks of images (H, W, 3), red first.

        Parameters
        ----------
        decode
            Makes the masks of one image of its embedding (1, D, h, w), itself and its prompts.
        nothing
            Makes those of an image without prompts, which is not encoded.

        Raises
        ------
        ValueError
            If an image is larger than `window`.
        """
        asked = [i for i, of_image in enumerate(prompts) if len(of_image)]
        masks = [nothing(image) for image in images]
        with forward(self.device, self._precision):
            for start in range(0, len(asked), self._batch):
                group = asked[start : start + self._batch]
                for i, embedding in zip(group, self._encode([images[i] for i in group]), strict=False):
                    masks[i] = decode(embedding[None], images[i], prompts[i])
        return masks

    def _encode(self, images: list[UInt8Array]) -> Tensor:
        # As Sam.preprocess does: normalised, then padded with zeros, so that the padding is the mean colour.
        frames = torch.empty((self._batch, 3, self.window, self.window), device=self.device)
        frames[len(images) :].zero_()
        for frame, image in zip(frames, images, strict=False):
            pixels = self._pixels(image)
            height, width = pixels.shape[1:]
            frame[:, :height, :width].copy_(pixels).sub_(self.sam.pixel_mean).div_(self.sam.pixel_std)
            frame[:, height:].zero_()
            frame[:, :height, width:].zero_()
        embeddings: Tensor = self.sam.image_encoder(frames)
        return embeddings.float()

    def _pixels(self, image: UInt8Array) -> Tensor:
        # (3, h, w), 0..255, on the scale of the frame.
        if max(image.shape[:2]) > self.window:
            raise ValueError(f"an image of {image.shape[:2]} px exceeds the segmenter's window of {self.window} px")
        pixels = self.resize.apply_image(image) if self.resize else np.ascontiguousarray(image)
        return torch.from_numpy(np.moveaxis(pixels, 2, 0))

    def decode(
        self, embedding: Tensor, points: Points | None, boxes: Tensor | None, *, single: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Candidates of K prompts of one kind: logits (K, 3, h, w) and predicted IoU (K, 3).

        Parameters
        ----------
        embedding : (1, D, h, w)
        boxes : (K, 4)
            First and last pixel in the frame.
        single
            Whether the one mask of a prompt that means one thing is asked for in place of three.
        """
        with torch.autocast(torch.device(self.device).type, enabled=False):
            sparse, dense = self.sam.prompt_encoder(points=points, boxes=boxes, masks=None)
        low_res, quality = self.sam.mask_decoder(
            image_embeddings=embedding,
            image_pe=self._positions,
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=not single,
        )
        return low_res.float(), quality.float()

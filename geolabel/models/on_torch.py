"""Networks run by PyTorch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from segment_anything.modeling import ImageEncoderViT, Sam
from segment_anything.utils.transforms import ResizeLongestSide
from torch import Tensor
from torch.nn.functional import interpolate, pad

from geolabel.devices import compiled, exact, forward
from geolabel.models.engines import (
    NOWHERE,
    ImageMapNetwork,
    MapNetwork,
    Points,
    PromptedNetwork,
    SelectiveNetwork,
    as_tokens,
    bucket,
    cells_within,
)
from geolabel.models.nets import folded, vit
from geolabel.models.on_device import upload
from geolabel.types import AnyArray, Float32Array, Int64Array, UInt8Array

if TYPE_CHECKING:
    from geolabel.models.nets.classifier import Classifier
    from geolabel.models.nets.localizer import PyramidLocalizer


class TorchMaps:
    """A classifier with a linear head, as an `engines.ImageMapNetwork`.

    Parameters
    ----------
    network
        Maps (N, 3, H, W) normalised pixels to raw maps ``theta^T F``; it is moved to `device` and set to evaluation.
    device, precision
        A torch device; see `geolabel.devices.Precision`.
    """

    def __init__(self, network: PyramidLocalizer | Classifier, *, device: str = "cpu", precision: str = "fp32") -> None:
        # Convolutions are fastest in channels-last layout; the first one converts its input.
        self._network = network.to(device).to(memory_format=torch.channels_last).eval()
        self._device, self._precision = device, precision
        self.apart = torch.device(device).type != "cpu"
        self.stride, self.multiple = network.stride, network.multiple
        self.bias: Float32Array = network.bias.detach().float().cpu().numpy()

    def __call__(self, pixels: Float32Array) -> Float32Array:
        """Raw maps (N, C, H / stride, W / stride) of normalised images (N, 3, H, W)."""
        with forward(self._device, self._precision):
            maps: Tensor = self._network(torch.from_numpy(pixels).to(self._device))
            raw: Float32Array = maps.float().cpu().numpy()
            return raw

    def of_images(
        self, images: Sequence[UInt8Array], mean: Float32Array, std: Float32Array, batch: int
    ) -> Float32Array:
        """Raw maps of images (H, W, 3); see `engines.ImageMapNetwork`."""
        height, width = images[0].shape[:2]
        with forward(self._device, self._precision):
            given = torch.stack(upload(images, self._device)).permute(0, 3, 1, 2).float()
            stack = torch.cat([given, given[-1:].expand(batch - len(given), -1, -1, -1)])
            stack = pad(stack, (0, -width % self.multiple, 0, -height % self.multiple), mode="replicate")
            stack = (stack - self._tensor(mean)).div_(self._tensor(std))
            raw: Float32Array = self._network(stack).float().cpu().numpy()
            return raw

    def _tensor(self, values: Float32Array) -> Tensor:
        return torch.from_numpy(values).to(self._device)


class OnDevice:
    """Common base of networks of the Segment Anything shape that PyTorch runs."""

    def __init__(self, device: str, precision: str) -> None:
        self.apart = torch.device(device).type != "cpu"
        self._device, self._precision = device, precision

    def running(self) -> AbstractContextManager[None]:
        """Without gradients, in the requested precision."""
        return forward(self._device, self._precision)

    def _decoding(self) -> AbstractContextManager[Any]:
        # In bf16 the predicted IoU of candidates is too coarse for selection: on a GPU the decoder stays in single
        # precision, with TF32 products.
        rounded = self.apart and self._precision == "bf16"
        return torch.autocast(torch.device(self._device).type, enabled=False) if rounded else nullcontext()

    def enlarge(self, logits: Tensor, size: tuple[int, int]) -> Tensor:
        """Logits (h, w) at another size, bilinear."""
        return interpolate(logits[None, None], size, mode="bilinear", align_corners=False)[0, 0]

    def host(self, array: Tensor) -> AnyArray:
        """The values as a NumPy array."""
        values: AnyArray = array.cpu().numpy()
        return values

    def _tensor(self, values: AnyArray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(self._device)


class TorchSam(OnDevice):
    """A SAM-shaped network, as an `engines.PromptedNetwork`.

    Parameters
    ----------
    sam
        It is moved to `device` and set to evaluation.
    resize
        Whether images are first scaled so that their longest side is the encoder's. If not, they keep their resolution
        and are padded with zeros at the bottom and right.
    device, precision
        A torch device; see `geolabel.devices.Precision`. Positions of prompts are always encoded in single precision,
        since eight bits cannot distinguish neighbouring pixels. In ``bf16`` on a GPU, the encoder's weights are stored
        as bf16, and the decoder computes in TF32.
    batch
        Images per call of the encoder.
    compile_encoder
        Whether to compile the encoder with torch.compile, for a fixed shape: all calls then have `batch` images.
    """

    def __init__(
        self,
        sam: Sam,
        *,
        resize: bool = True,
        device: str = "cpu",
        precision: str = "fp32",
        batch: int = 8,
        compile_encoder: bool = False,
    ) -> None:
        super().__init__(device, precision)
        self.sam = sam.to(device).eval()
        # Convolutions are fastest in channels-last layout; the first one converts its input.
        self.sam.image_encoder.to(memory_format=torch.channels_last)
        self.window = int(sam.image_encoder.img_size)
        self.cells = int(sam.prompt_encoder.image_embedding_size[0])
        self.width = int(sam.prompt_encoder.embed_dim)
        self.stretches, self.batch = False, batch
        self.resize = ResizeLongestSide(self.window) if resize else None
        if self.apart and precision == "bf16":
            vit.halve(self.sam.image_encoder)
        encoder = self.sam.image_encoder
        encode = partial(vit.encode, encoder) if isinstance(encoder, ImageEncoderViT) else encoder
        self._encode = compiled(encode) if compile_encoder else encode
        self._one_shape = compile_encoder
        with torch.inference_mode():
            self._positions = sam.prompt_encoder.get_dense_pe()

    def frame_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width of an image in the encoder's frame."""
        if self.resize is None:
            return size
        frame: tuple[int, int] = self.resize.get_preprocess_shape(*size, self.window)
        return frame

    def encode(self, images: Sequence[UInt8Array]) -> Tensor:
        """Embeddings (N, D, h, w) of up to `batch` images (H, W, 3).

        Like Sam.preprocess: normalised, then padded with zeros, so that the padding is the mean colour.
        """
        count = self.batch if self._one_shape else bucket(len(images), self.batch)
        frames = torch.empty((count, 3, self.window, self.window), device=self._device)
        frames[len(images) :].zero_()
        for frame, pixels in zip(frames, self._pixels(images), strict=False):
            height, width = pixels.shape[1:]
            frame[:, :height, :width].copy_(pixels).sub_(self.sam.pixel_mean).div_(self.sam.pixel_std)
            frame[:, height:].zero_()
            frame[:, :height, width:].zero_()
        embeddings: Tensor = self._encode(frames)
        return embeddings[: len(images)].float()

    def features(self, embedding: Tensor) -> Tensor:
        """The embedding unchanged."""
        return embedding

    def _pixels(self, images: Sequence[UInt8Array]) -> Iterator[Tensor]:
        # (3, h, w), 0..255, at the scale of the frame.
        if self.apart:
            for sent in upload(images, self._device):
                yield self._resized(sent.permute(2, 0, 1))
            return
        for image in images:
            pixels = self.resize.apply_image(image) if self.resize else np.ascontiguousarray(image)
            yield torch.from_numpy(np.moveaxis(pixels, 2, 0))

    def _resized(self, pixels: Tensor) -> Tensor:
        # Like Pillow in segment-anything, which rounds to integers too; some values differ by one.
        size = (pixels.shape[1], pixels.shape[2])
        frame = self.frame_size(size)
        if frame == size:
            return pixels
        resized = interpolate(pixels[None].float(), frame, mode="bilinear", align_corners=False, antialias=True)
        return resized[0].round().clamp(0, 255)

    def decode(
        self, embedding: Tensor, points: Points | None, boxes: AnyArray | None, *, single: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Candidates of K prompts of one kind; see `engines.PromptedNetwork`."""
        coords, labels = (self._tensor(given) for given in as_tokens(points, boxes))
        encoder = self.sam.prompt_encoder
        with exact(self._device):
            # PromptEncoder selects points by boolean masks, which would synchronise with the device.
            sparse = folded.prompt_tokens(encoder, coords, labels)
            dense = folded.dense_prompts(encoder, coords, labels)
        with self._decoding():
            low_res, quality = self.sam.mask_decoder(
                image_embeddings=embedding[None],
                image_pe=self._positions,
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
                multimask_output=not single,
            )
        return low_res.float(), quality.float()

    def decode_likely(
        self, embedding: Tensor, points: Points | None, boxes: AnyArray | None, least: float, size: tuple[int, int]
    ) -> tuple[Tensor, Float32Array, Int64Array, Int64Array]:
        """Candidates whose predicted IoU exceeds `least`; see `engines.SelectiveNetwork`."""
        coords, labels = (self._tensor(given) for given in as_tokens(points, boxes))
        encoder, decoder = self.sam.prompt_encoder, self.sam.mask_decoder
        with exact(self._device):
            tokens = folded.prompt_tokens(encoder, coords, labels)
            prompted = folded.prompted_cells(encoder, coords, labels)
        positions = self._positions.flatten(2).transpose(1, 2)
        with self._decoding():
            cells, weights, quality = folded.decode_tokens(decoder, embedding[None], positions, tokens, prompted)
        assert isinstance(cells, Tensor)
        likely = self.host(quality[:, 1:].float())  # the number of masks depends on it, so this waits for the device
        prompts, candidates = np.nonzero(likely > least)
        some, of_some = np.unique(prompts, return_inverse=True)
        rows, cols = within = cells_within(size, self.window, self.cells)
        of_cells, of_mask, token = (self._tensor(index) for index in (some, of_some, candidates))
        parts = cells[of_cells].reshape(len(some), self.cells, self.cells, self.width)[:, :rows, :cols].flatten(1, 2)
        with self._decoding():
            masks = folded.make_masks(decoder, parts, weights[of_cells, 1:])[of_mask, token]
        rest = (0, 4 * (self.cells - cols), 0, 4 * (self.cells - rows))
        low_res = pad(folded.unfold_masks(masks.float(), within), rest, value=NOWHERE)
        return low_res, likely[prompts, candidates], prompts, candidates


_maps: type[MapNetwork] = TorchMaps
_image_maps: type[ImageMapNetwork] = TorchMaps
_prompted: type[PromptedNetwork] = TorchSam
_selective: type[SelectiveNetwork] = TorchSam

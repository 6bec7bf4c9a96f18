"""Cross-attention of a text-to-image network as activation: where the image attends to a word.

A network like Stable Diffusion 1.x denoises an image according to a text. In its cross-attention, each place of the
image attends to each word of the text, and places that attend to "landslide" are where the network would draw one. One
conditional pass without guidance shows that; noise in the maps is suppressed by averaging over independent samples of
noise.

Source: Li et al. (2024), "DiffuPrompter: Pixel-Level Automatic Annotation for High-Resolution Remote Sensing Images
with Foundation Models", eq. 1 and 3 to 9. Decisions that the paper leaves open:

* The maps of one resolution, of several layers and heads, are averaged first: S of eq. 4 counts resolutions.
* Norm of eq. 4 scales minimum and maximum to 0..1; a constant map becomes zeros. The mean of eq. 9 is scaled once more,
  since the threshold of eq. 10 is defined on 0..1.
* Samples are independent: noise is added to the same clean image each time.
* Maps of the words of a class, and of the tokens of a word, are averaged.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import grid_sample, interpolate, pad

from geolabel.activation import Activation
from geolabel.concepts import Grounding, word_pieces
from geolabel.devices import forward
from geolabel.errors import OptionError
from geolabel.parts import Localizer
from geolabel.types import UInt8Array

CROSS_ATTENTION = ".attn2.processor"
"""Suffix of the names of cross-attention layers; ``attn1`` is self-attention."""

GSD_RANGE = (0.01, 1000.0)
"""Metres. The network was trained on pictures of every scale; the paper's images have 0.3 to 3 m."""


@dataclass(frozen=True)
class DiffusionNetworks:
    """The parts of a text-to-image model that grounding needs, from diffusers and transformers."""

    unet: Any
    """UNet2DConditionModel"""
    vae: Any
    """AutoencoderKL"""
    text_encoder: Any
    """CLIPTextModel"""
    tokenizer: Any
    """CLIPTokenizer"""
    alphas_cumprod: Tensor
    """(T,) share of the signal's variance at each time step."""


# --- the recording processor -----------------------------------------------------------------------------------------


@dataclass
class AttentionRecorder:
    """An attention processor that records the attention to a few tokens, with the output of the default one.

    The default uses a fused kernel and never stores the probabilities; here they exist for one layer at a time. What is
    kept is one map per image of the batch and resolution, however many layers and tokens there are.
    """

    columns: Sequence[int]
    """Tokens whose attention is recorded, averaged."""
    sums: dict[int, Tensor] = field(default_factory=dict)
    """By number of places: (B, places) sum over the layers."""
    layers: dict[int, int] = field(default_factory=dict)
    """By number of places: number of summed layers."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,  # noqa: ARG002  # given by the layer, unused in cross-attention over a sequence
    ) -> Tensor:
        """Attend (eq. 1): hidden states (B, places, D) to those of the text (B, tokens, E)."""
        batch, places, _ = hidden_states.shape
        query = attn.head_to_batch_dim(attn.to_q(hidden_states))
        key = attn.head_to_batch_dim(attn.to_k(encoder_hidden_states))
        value = attn.head_to_batch_dim(attn.to_v(encoder_hidden_states))
        # (B * heads, places, tokens); rows sum to one (eq. 3)
        probabilities = attn.get_attention_scores(query, key, attention_mask)
        self._keep(probabilities, batch, places)
        attended: Tensor = attn.batch_to_head_dim(torch.bmm(probabilities, value))
        for layer in attn.to_out:
            attended = layer(attended)
        return attended

    def _keep(self, probabilities: Tensor, batch: int, places: int) -> None:
        columns = torch.as_tensor(self.columns, device=probabilities.device)
        kept = probabilities.index_select(2, columns).float().mean(dim=2).reshape(batch, -1, places).mean(dim=1)
        self.sums[places] = self.sums[places] + kept if places in self.sums else kept
        self.layers[places] = self.layers.get(places, 0) + 1

    def pyramid(self) -> list[Tensor]:
        """Maps (B, side, side) of square images, one per resolution, the coarsest first, averaged over the layers."""
        sides = {math.isqrt(places): places for places in sorted(self.sums)}
        return [(self.sums[places] / self.layers[places]).reshape(-1, side, side) for side, places in sides.items()]


@contextmanager
def recording(unet: Any, columns: Sequence[int]) -> Iterator[AttentionRecorder]:
    """Record the cross-attention of a network to some tokens; its own processors are restored afterwards."""
    own: Mapping[str, Any] = unet.attn_processors
    recorder = AttentionRecorder(columns)
    unet.set_attn_processor({name: recorder if name.endswith(CROSS_ATTENTION) else own[name] for name in own})
    try:
        yield recorder
    finally:
        unet.set_attn_processor(dict(own))


# --- the equations ---------------------------------------------------------------------------------------------------


def noisy(latent: Tensor, noise: Tensor, alpha_cumprod: float) -> Tensor:
    """The forward diffusion: a clean latent and noise, mixed so that the noise has the variance ``1 - alpha``."""
    return latent * math.sqrt(alpha_cumprod) + noise * math.sqrt(1 - alpha_cumprod)


def stretched(maps: Tensor) -> Tensor:
    """Norm of eq. 4: maps (..., h, w) scaled from minimum and maximum to 0..1; constant ones become zeros."""
    low, high = maps.amin(dim=(-2, -1), keepdim=True), maps.amax(dim=(-2, -1), keepdim=True)
    return torch.where(high > low, (maps - low) / (high - low).clamp(min=1e-12), 0.0)


def combined(pyramid: Sequence[Tensor]) -> Tensor:
    """Eq. 4 without its Norm: the mean over resolutions of maps (B, s, s), each divided by its maximum.

    Returns
    -------
    (B, S, S) at the finest resolution, to which the others are interpolated.
    """
    finest = max(int(maps.shape[-1]) for maps in pyramid)
    scaled = []
    for maps in pyramid:
        peak = maps.amax(dim=(-2, -1), keepdim=True)
        shares = torch.where(peak > 0, maps / peak.clamp(min=1e-12), 0.0)
        scaled.append(interpolate(shares[:, None], (finest, finest), mode="bilinear", align_corners=False)[:, 0])
    return torch.stack(scaled).mean(dim=0)


def token_columns(tokenizer: Any, prompt: str, word: str) -> list[int]:
    """Positions of a word's tokens in a prompt, including the start token.

    Raises
    ------
    OptionError
        If the tokenizer does not know the word, splits it into letters, or the prompt is too long.
    """
    pieces, ids = word_pieces(tokenizer, word), list(tokenizer(prompt).input_ids)
    if len(ids) > tokenizer.model_max_length:
        raise OptionError(
            f"the prompt for {word!r} has {len(ids)} tokens, the limit is {tokenizer.model_max_length}: "
            "give a shorter template"
        )
    starts = [k for k in range(len(ids)) if ids[k : k + len(pieces)] == pieces]
    assert starts, f"{word!r} is not a separate word in {prompt!r}"
    return list(range(starts[-1], starts[-1] + len(pieces)))


# --- the localizer ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Question:
    """An encoded word."""

    embedding: Tensor
    """(1, tokens, E)"""
    columns: list[int]


class DiffusionLocalizer:
    """A text-to-image network as a `parts.Localizer`. It was not trained on the classes.

    Every image is assumed to show all classes: the maps say where, not whether, and class probabilities are 1. An image
    smaller than the network's is enlarged.

    Parameters
    ----------
    networks
        They are moved to `device` and set to evaluation.
    grounding
        The classes, and how the network is asked for them.
    device, precision
        A torch device; see `geolabel.devices.Precision`.
    batch
        Noise samples per forward call. The last batch is padded, since last digits depend on the batch size.

    Raises
    ------
    OptionError
        If the tokenizer does not know a word, or the schedule has no such time step.
    """

    def __init__(
        self,
        networks: DiffusionNetworks,
        grounding: Grounding,
        *,
        device: str = "cpu",
        precision: str = "fp32",
        batch: int = 8,
    ) -> None:
        steps = len(networks.alphas_cumprod)
        if grounding.timestep >= steps:
            raise OptionError(
                f"time step {grounding.timestep}: the network's schedule ends at {steps - 1}: give an earlier one"
            )
        self._unet = networks.unet.to(device).eval()
        self._vae = networks.vae.to(device).eval()
        self._grounding = grounding
        self._alpha = float(networks.alphas_cumprod[grounding.timestep])
        self._device = device
        self._precision = precision
        self._batch = min(batch, grounding.draws)
        self._noise = self._draw()
        self._asked = np.ones(len(grounding.concepts), bool)
        encoder = networks.text_encoder.to(device).eval()
        with forward(device, precision):
            self._questions = [
                [_ask(encoder, networks.tokenizer, grounding.prompt(word), word, device) for word in concept.words]
                for concept in grounding.concepts
            ]

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self._grounding.classes

    @property
    def window(self) -> int:
        """Side in pixels of the network's training images, and of the largest image it accepts."""
        return self._latent_side * self._pixels_per_latent

    @property
    def stride(self) -> int:
        """Pixels per cell of an image with the size of `window`; cells of smaller images have fewer."""
        return self._pixels_per_latent

    @property
    def gsd_range(self) -> tuple[float, float]:
        """Finest and coarsest supported ground sample distance, metres."""
        return GSD_RANGE

    @property
    def _latent_side(self) -> int:
        return int(self._unet.config.sample_size)

    @property
    def _pixels_per_latent(self) -> int:
        halvings: int = len(self._vae.config.block_out_channels) - 1
        return 1 << halvings

    def __call__(self, images: Sequence[UInt8Array]) -> list[Activation]:
        """Activations of images (H, W, 3), red first, H and W up to `window`.

        Raises
        ------
        ValueError
            If an image is larger.
        """
        with forward(self._device, self._precision):
            return [self._activation(image) for image in images]

    def only(self, classes: Collection[str]) -> DiffusionLocalizer:
        """The same networks for images that show only some of the classes; the maps of other classes are 0."""
        fewer = copy(self)
        fewer._asked = np.asarray([name in classes for name in self.classes])
        return fewer

    def _activation(self, image: UInt8Array) -> Activation:
        latent = self._encode(image)
        nowhere = torch.zeros((self._latent_side, self._latent_side), device=self._device)
        looks = [
            self._look(latent, questions) if asked else (nowhere, 0.0)
            for questions, asked in zip(self._questions, self._asked, strict=True)
        ]
        means, peaks = zip(*looks, strict=True)
        stride = max(1, max(image.shape[:2]) * self._pixels_per_latent // self.window)
        maps = self._cells(torch.stack(means), image.shape[:2], stride)
        values = stretched(maps).cpu().numpy()  # scaled within the image, after the padding was removed
        raw = np.asarray(peaks, np.float32)  # maps are scaled to 1 in every image: only these compare images
        shown = np.broadcast_to(raw[:, None, None], values.shape)
        return Activation(values, shown, raw, stride, self.classes)

    def _encode(self, image: UInt8Array) -> Tensor:
        # The clean latent (1, C, h, w) of an image, enlarged to the window and padded with its last row and column.
        if max(image.shape[:2]) > self.window:
            raise ValueError(f"an image of {image.shape[:2]} px exceeds the network's window of {self.window} px")
        pixels = torch.from_numpy(np.moveaxis(image, 2, 0).copy()).to(self._device).float()[None] / 127.5 - 1
        size = _frame(image.shape[:2], self.window)
        if size != image.shape[:2]:
            pixels = interpolate(pixels, size, mode="bicubic", align_corners=False).clamp(-1, 1)
        pixels = pad(pixels, (0, self.window - size[1], 0, self.window - size[0]), mode="replicate")
        latent: Tensor = self._vae.encode(pixels).latent_dist.mode() * self._vae.config.scaling_factor
        return latent.float()

    def _look(self, latent: Tensor, questions: Sequence[_Question]) -> tuple[Tensor, float]:
        # Eq. 9 for one class: the mean map (S, S) over words and samples, and the mean of the maxima of the raw maps.
        total, peak = torch.zeros((), device=self._device), 0.0
        for question in questions:
            for raw in self._pyramids(latent, question):
                total = total + stretched(combined(raw)).sum(dim=0)
                peak += float(torch.stack([maps.amax(dim=(1, 2)) for maps in raw]).mean(dim=0).sum())
        count = len(questions) * self._grounding.draws
        return total / count, peak / count

    def _pyramids(self, latent: Tensor, question: _Question) -> Iterator[list[Tensor]]:
        # Recorded maps of all batches of samples.
        draws, timestep = self._grounding.draws, torch.tensor(self._grounding.timestep, device=self._device)
        text = question.embedding.expand(self._batch, -1, -1)
        for start in range(0, draws, self._batch):
            noise = self._noise[[k % draws for k in range(start, start + self._batch)]].to(self._device)
            with recording(self._unet, question.columns) as recorder:
                self._unet(noisy(latent, noise, self._alpha), timestep, encoder_hidden_states=text)
            yield [maps[: draws - start] for maps in recorder.pyramid()]

    def _draw(self) -> Tensor:
        # Sampled one by one, so that the first samples do not depend on their number.
        source = torch.Generator().manual_seed(self._grounding.seed)
        shape = (self._unet.config.in_channels, self._latent_side, self._latent_side)
        return torch.stack([torch.randn(shape, generator=source) for _ in range(self._grounding.draws)])

    def _cells(self, maps: Tensor, size: tuple[int, ...], stride: int) -> Tensor:
        # Maps (C, S, S) of the window, interpolated at the centres of the image's own cells.
        axes = []
        for pixels, enlarged in zip(size, _frame(size, self.window), strict=True):
            centres = (torch.arange(-(-pixels // stride), device=maps.device) + 0.5) * stride
            axes.append(centres * (enlarged / pixels) / self.window * 2 - 1)
        y, x = torch.meshgrid(*axes, indexing="ij")
        at = torch.stack([x, y], dim=-1)[None]
        return grid_sample(maps[None].float(), at.float(), padding_mode="border", align_corners=False)[0]


def _frame(size: tuple[int, ...], window: int) -> tuple[int, int]:
    # Size of an image scaled so that its longest side is the window's.
    height, width = (max(1, round(side * window / max(size))) for side in size[:2])
    return height, width


def _ask(encoder: Any, tokenizer: Any, prompt: str, word: str, device: str) -> _Question:
    columns = token_columns(tokenizer, prompt, word)
    tokens = tokenizer(prompt, padding="max_length", max_length=tokenizer.model_max_length, return_tensors="pt")
    embedding: Tensor = encoder(tokens.input_ids.to(device))[0]
    return _Question(embedding, columns)


_localizer: type[Localizer] = DiffusionLocalizer

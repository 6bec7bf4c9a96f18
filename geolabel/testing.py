"""Stand-ins for networks, and hypothesis strategies: for the tests of geolabel and of programs that build on it.

The stand-ins are real implementations of the Protocols in `parts`, fast and predictable to the pixel. The strategies
need hypothesis, which is imported on use.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyproj
from affine import Affine
from scipy import ndimage

from geolabel.activation import Activation
from geolabel.masks import FULL, Masks
from geolabel.parts import Localizer, LocalizerRecipe, Recipe, Segmenter, SegmenterRecipe
from geolabel.prompts import FOREGROUND, Prompts
from geolabel.scene import Grid
from geolabel.types import BoolArray, Float32Array, UInt8Array

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy


def brightness(image: UInt8Array) -> Float32Array:
    """Mean of red, green and blue as a map (H, W) of 0..1."""
    share: Float32Array = (image.mean(axis=2) / 255).astype(np.float32)
    return share


@dataclass(frozen=True)
class FakeLocalizer:
    """Responds to a function of the image; by default its brightness.

    The activation of a cell is the mean of the function over its pixels; the class probability around it is the maximum
    activation in a window of the training size.
    """

    function: Callable[[UInt8Array], Float32Array] = brightness
    """Image (H, W, 3) to map (H, W) of 0..1, or (C, H, W) of several classes."""
    classes: tuple[str, ...] = ("landslide",)
    window: int = 64
    stride: int = 8
    gsd_range: tuple[float, float] = (0.01, 1000.0)

    def __call__(self, images: Sequence[UInt8Array]) -> list[Activation]:
        """Activations of images (H, W, 3)."""
        return [self._activation(self.function(image)) for image in images]

    def _activation(self, marked: Float32Array) -> Activation:
        step = self.stride
        maps = marked.reshape(-1, *marked.shape[-2:])
        height, width = (-(-side // step) for side in maps.shape[1:])
        padded = np.pad(maps, [(0, 0), *((0, -side % step) for side in maps.shape[1:])], mode="edge")
        cells = padded.reshape(-1, height, step, width, step).mean(axis=(2, 4), dtype=np.float32)
        nearby = [ndimage.maximum_filter(own, size=max(1, self.window // step), mode="nearest") for own in cells]
        return Activation(cells, np.stack(nearby), cells.max(axis=(1, 2)), step, self.classes)


@dataclass(frozen=True)
class FakeSegmenter:
    """Fills the box of a prompt or, without one, discs around its foreground points."""

    radius: float = 8.0
    """Radius of a disc, pixels."""
    window: int = 128
    gsd_range: tuple[float, float] = (0.01, 1000.0)
    predicted_iou: float = 1.0

    def __call__(self, images: Sequence[UInt8Array], prompts: Sequence[Prompts]) -> list[Masks]:
        """Masks of images (H, W, 3)."""
        return [self._masks(image.shape[:2], asked) for image, asked in zip(images, prompts, strict=True)]

    def _masks(self, size: tuple[int, ...], prompts: Prompts) -> Masks:
        filled = np.zeros((len(prompts), *size), bool)
        for k, has_box in enumerate(prompts.has_box):
            filled[k] = self._box(size, prompts, k) if has_box else self._discs(size, prompts, k)
        return Masks(
            scores=filled.astype(np.uint8) * np.uint8(FULL),
            predicted_iou=np.full(len(prompts), self.predicted_iou, np.float32),
            stability=np.ones(len(prompts), np.float32),
            prompt_ids=prompts.ids,
            candidates=np.zeros(len(prompts), np.int64),
        )

    def _box(self, size: tuple[int, ...], prompts: Prompts, k: int) -> BoolArray:
        rows, cols = np.ogrid[: size[0], : size[1]]
        x0, y0, x1, y1 = prompts.boxes[k] - 0.5  # a pixel is in the box if its centre is
        inside: BoolArray = (cols > x0) & (cols < x1) & (rows > y0) & (rows < y1)
        return inside

    def _discs(self, size: tuple[int, ...], prompts: Prompts, k: int) -> BoolArray:
        rows, cols = np.ogrid[: size[0], : size[1]]
        near = np.zeros(size, bool)
        for x, y in prompts.points[k][prompts.labels[k] == FOREGROUND]:
            near |= (cols - x) ** 2 + (rows - y) ** 2 <= self.radius**2
        return near


DIFFUSION_WORDS = ("photo", "of", "a", "an", "landslide", "mud|slide", "airplane", "storage", "tank")
"""Default vocabulary of the tokenizer of `write_diffusion`."""

RECIPES = LocalizerRecipe("stand-in", "0" * 64, batch=1), SegmenterRecipe("stand-in", "0" * 64, batch=1)
"""Recipes of stand-ins, for runs whose tasks go to other processes."""


@dataclass(frozen=True)
class _Slow:
    """A stand-in with a delay."""

    part: FakeLocalizer | FakeSegmenter
    seconds: float
    """Delay per image."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.part, name)

    def __call__(self, images: Sequence[UInt8Array], *prompts: Any) -> Any:
        """Answer as the wrapped part does, later."""
        time.sleep(self.seconds * len(images))
        return self.part(images, *prompts)


def stand_in(recipe: Recipe) -> Localizer | Segmenter:
    """Create the stand-in of a recipe.

    Its source is ``stand-in``, ``stand-in:SECONDS`` for one that sleeps, or
    ``stand-in:SECONDS:PIXELS`` for a segmenter with another window.
    """
    _, seconds_given, window = f"{recipe.source}::".split(":")[:3]
    seconds = float(seconds_given or 0)
    part = FakeLocalizer(stride=4) if recipe.role == "localizer" else FakeSegmenter(window=int(window or 128))
    slow: Any = _Slow(part, seconds) if seconds else part
    made: Localizer | Segmenter = slow
    return made


def write_diffusion(folder: Path, words: Sequence[str] = DIFFUSION_WORDS, *, seed: int = 0) -> Path:
    """Write a tiny text-to-image model with random weights in the format of diffusers; return its folder.

    It takes images of 128 px, attends to 16, 8, 4 and 2 cells a side, and reads up to 77 tokens. Needs diffusers
    and transformers.

    Parameters
    ----------
    words
        Vocabulary of its tokenizer, in lower case: words of one token, or of several separated by ``|``. Other words of
        the letters a to z are spelled.
    """
    import torch
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    vocabulary = write_tokenizer(folder / "tokenizer", words)
    blocks = {"block_out_channels": (8, 8, 16, 16), "norm_num_groups": 4, "layers_per_block": 1}
    text = CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts = {
            "unet": UNet2DConditionModel(sample_size=16, cross_attention_dim=16, attention_head_dim=2, **blocks),
            "vae": AutoencoderKL(
                down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, **blocks
            ),
            "text_encoder": CLIPTextModel(text),
        }
    for name, part in parts.items():
        part.save_pretrained(folder / name)
    DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear").save_pretrained(
        folder / "scheduler"
    )
    return folder


def write_tokenizer(folder: Path, words: Sequence[str]) -> int:
    """Write a tokenizer like CLIP's, with the vocabulary of `write_diffusion`; return its number of tokens."""
    # Pairs of pieces are merged in order; every word merges the pieces that earlier words leave.
    letters = "abcdefghijklmnopqrstuvwxyz"
    merges: dict[tuple[str, str], None] = {}
    for word in words:
        *parts, last = word.split("|")
        for pieces in (*map(list, parts), [*last[:-1], f"{last[-1]}</w>"]):
            for pair in merges:
                _merge(pieces, pair)
            while len(pieces) > 1:
                merges[pieces[0], pieces[1]] = None
                _merge(pieces, (pieces[0], pieces[1]))
    known = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    known += [left + right for left, right in merges]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({piece: k for k, piece in enumerate(known)}), encoding="utf-8")
    pairs = "\n".join(" ".join(pair) for pair in merges)
    (folder / "merges.txt").write_text(f"#version: 0.2\n{pairs}\n", encoding="utf-8")
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return len(known)


def _merge(pieces: list[str], pair: tuple[str, str]) -> None:
    for k in range(len(pieces) - 2, -1, -1):
        if (pieces[k], pieces[k + 1]) == pair:
            pieces[k : k + 2] = ["".join(pair)]


def binary_masks(max_side: int = 24) -> SearchStrategy[BoolArray]:
    """Masks (H, W) of up to `max_side` pixels a side: noise, blobs, empty and full."""
    from hypothesis import strategies as st

    def build(height: int, width: int, seed: int, share: float, size: int) -> BoolArray:
        noise = np.random.default_rng(seed).random((height, width))
        return np.asarray(ndimage.uniform_filter(noise, size, mode="nearest") < share)

    side = st.integers(1, max_side)
    share = st.sampled_from([0.0, 0.3, 0.5, 0.7, 1.1])
    return st.builds(build, side, side, st.integers(0, 2**32 - 1), share, st.integers(1, 4))


def grids(max_side: int = 64) -> SearchStrategy[Grid]:
    """Grids of up to `max_side` pixels a side: projected, in degrees, in feet; north-up, south-up and rotated."""
    from hypothesis import strategies as st

    def build(place: tuple[int, float, float, float], height: int, width: int, south_up: bool, angle: float) -> Grid:
        epsg, x, y, pixel = place
        flip = pixel if south_up else -pixel
        transform = Affine.translation(x, y) * Affine.rotation(angle) * Affine.scale(pixel, flip)
        return Grid(pyproj.CRS.from_epsg(epsg), transform, height, width)

    places = [
        (32648, 350_000.0, 3_450_000.0, 0.5),
        (4326, 103.5, 31.0, 5e-6),
        (2263, 980_000.0, 200_000.0, 2.0),  # New York, US survey feet
    ]
    side = st.integers(1, max_side)
    return st.builds(build, st.sampled_from(places), side, side, st.booleans(), st.sampled_from([0.0, 30.0, -111.0]))


def prompts(max_side: int = 64, max_objects: int = 5) -> SearchStrategy[Prompts]:
    """Prompts inside an image of `max_side` pixels a side: with box, with up to two points, or both."""
    from hypothesis import strategies as st

    def build(count: int, seed: int) -> Prompts:
        random = np.random.default_rng(seed)
        corners = np.sort(random.integers(0, max_side, (count, 2, 2)), axis=1)
        corners[:, 1] += 1
        boxes = corners.reshape(count, 4).astype(float)
        labels = random.integers(-1, 2, (count, 2)).astype(np.int8)
        boxless = random.random(count) < 0.3
        labels[boxless, 0] = FOREGROUND
        boxes[boxless] = np.nan
        points = random.integers(0, max_side, (count, 2, 2)).astype(float)
        return Prompts.build(boxes=boxes, points=points, labels=labels)

    return st.builds(build, st.integers(0, max_objects), st.integers(0, 2**32 - 1))


_localizer: Localizer = FakeLocalizer()
_segmenter: Segmenter = FakeSegmenter()

"""Square samples: of pictures with outlines, for the bundled networks, and of chips of any size, for all others.

Every sample has its own random generator, derived from seed and step, so a resumed training sees the same samples as an
uninterrupted one.

If chips were cut around objects, the size of a chip reveals what it shows. So crops are taken at the chip's own scale,
or at a random one that does not depend on its size, and a chip smaller than a crop may be anywhere in it, with its
surroundings mirrored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.random import Generator
from PIL import Image
from torch import Tensor

from geolabel.tiles import mirrored
from geolabel.training.bundled_data import Picture, on_slides
from geolabel.training.colours import coarsen, recolour, repaint, tint
from geolabel.types import AnyArray, BoolArray, Float64Array, Int32Array, Int64Array, UInt8Array, UInt16Array


@dataclass(frozen=True)
class Sample:
    """Part of a picture, turned, scaled and recoloured."""

    rgb: UInt8Array
    """(S, S, 3)"""
    classes: UInt8Array
    """(S, S) land cover, as `Picture.classes`."""
    regions: UInt16Array
    """(S, S) numbered regions, as `Picture.regions`."""

    @property
    def slides(self) -> UInt8Array:
        """(S, S), 1 on landslides."""
        return on_slides(self.classes)


@dataclass(frozen=True)
class Sampling:
    """Source, number and normalisation of a training's samples."""

    pictures: Sequence[Picture]
    """Pictures for training."""
    selection: Sequence[Picture]
    """Pictures for selection."""
    size: int
    """Side in pixels."""
    batch: int
    """Samples per step."""
    mean: Sequence[float]
    """Mean of red, green and blue, 0..255; likewise `std`."""
    std: Sequence[float]
    seed: int = 0

    def to_tensor(self, images: Sequence[UInt8Array]) -> Tensor:
        """Normalised images (N, 3, H, W) of images (H, W, 3)."""
        return to_tensor(images, self.mean, self.std)


@dataclass(frozen=True)
class Changes:
    """Strength and frequency of colour changes."""

    strength: float = 1.0
    """Strength for `colours.recolour`."""
    haze: float = 0.2
    """Share of samples with haze."""
    tinted: float = 0.0
    """Share of samples that get the colours of a part of another picture."""
    repainted: float = 0.0
    """Share of samples in which a few regions get another brightness, contrast and tone."""
    coarse: float = 0.0
    """Share of samples that are blurred like an enlarged image."""
    looks: tuple[UInt8Array, ...] = ()
    """Images (H, W, 3) that samples get their colours from."""


def generator(seed: int, *key: int) -> Generator:
    """Random generator that depends on the seed and its purpose, not on earlier random numbers."""
    return np.random.default_rng([seed, *key])


def draw(
    pictures: Sequence[Picture],
    size: int,
    rng: Generator,
    *,
    on_slide: float,
    whole: float = 0.0,
    changes: Changes = Changes(),  # frozen
) -> Sample:
    """Cut one sample of `size` x `size` pixels, with probability `on_slide` near a landslide but not centred on it.

    Parameters
    ----------
    whole
        Probability that a sample near a landslide contains all of it, reduced beyond the picture's range of zooms if
        necessary, as in extraction.
    changes
        Changes in colour and sharpness.
    """
    weights = np.array([picture.weight for picture in pictures])
    picture = pictures[rng.choice(len(pictures), p=weights / weights.sum())]
    zoom = np.exp(rng.uniform(*np.log(picture.zooms)))
    if len(picture.slide_boxes) and rng.random() < on_slide * whole:
        box = picture.slide_boxes[rng.integers(len(picture.slide_boxes))]
        extent = float((box[2:] - box[:2]).max())
        zoom = min(zoom, size / extent * rng.uniform(0.5, 0.85))
        slack = 0.45 * size / zoom - extent / 2
        centre = _inside(picture, (box[:2] + box[2:])[::-1] / 2 + rng.uniform(-slack, slack, 2), 0.45 * size / zoom)
    else:
        centre = _centre(picture, rng, on_slide, reach=0.45 * size / zoom)
    sample = _resample(picture, centre, _turn(rng) / zoom, size)
    return replace(sample, rgb=_change(sample, rng, changes))


def _change(sample: Sample, rng: Generator, changes: Changes) -> UInt8Array:
    rgb = sample.rgb
    if changes.looks and rng.random() < changes.tinted:
        rgb = tint(rgb, changes.looks[rng.integers(len(changes.looks))], rng)
    if rng.random() < changes.repainted:
        rgb = repaint(rgb, sample.regions, sample.slides, rng)
    rgb = recolour(rgb, rng, changes.strength, changes.haze)
    return coarsen(rgb, rng) if rng.random() < changes.coarse else rgb


def lay_together(samples: Sequence[Sample], rng: Generator, share: float) -> list[Sample]:
    """Cover a random rectangle of about a `share` of the samples by the same rectangle of the next sample.

    A mosaic of scenes changes its light and colours along straight lines, which do not make the ground between them a
    landslide. Source: Yun et al. (2019), "CutMix".
    """
    laid = []
    for sample, other in zip(samples, [*samples[1:], samples[0]], strict=True):
        if rng.random() >= share:
            laid.append(sample)
            continue
        size = len(sample.rgb)
        sides = (size * rng.uniform(0.25, 0.75, 2)).astype(int)
        top, left = rng.integers(0, size - sides + 1)
        place = slice(top, top + sides[0]), slice(left, left + sides[1])
        layers = {}
        for name in ("rgb", "classes", "regions"):
            layers[name] = getattr(sample, name).copy()
            layers[name][place] = getattr(other, name)[place]
        laid.append(Sample(**layers))
    return laid


def _centre(picture: Picture, rng: Generator, on_slide: float, reach: float) -> Float64Array:
    """(2,) x and y of the middle of a sample that reaches `reach` pixels to each side."""
    shape = np.array(picture.slides.shape)
    centre = rng.uniform(0, shape)
    pixels = picture.slide_pixels
    if len(pixels) and rng.random() < on_slide:
        at = np.array(np.unravel_index(pixels[rng.integers(len(pixels))], picture.slides.shape))
        centre = at + rng.uniform(-reach, reach, 2)
    return _inside(picture, centre, reach)


def _inside(picture: Picture, centre: Float64Array, reach: float) -> Float64Array:
    """(2,) x and y of the centre, given as y and x, so moved that a sample does not look beyond its picture."""
    # Only necessary if the picture is smaller than the sample.
    shape = np.array(picture.slides.shape)
    margin = np.minimum(reach, shape / 2)
    inside: Float64Array = np.clip(centre, margin, shape - margin)[::-1]
    return inside


def _turn(rng: Generator) -> Float64Array:
    """(2, 2) a quarter turn or, one time in three, any angle; flipped half of the time."""
    angle = rng.integers(4) * np.pi / 2 if rng.random() < 2 / 3 else rng.uniform(0, 2 * np.pi)
    cos, sin = np.cos(angle), np.sin(angle)
    return np.array([[cos, -sin], [sin, cos]]) @ np.diag([rng.choice([-1.0, 1.0]), 1.0])


def _resample(picture: Picture, centre: Float64Array, matrix: Float64Array, size: int) -> Sample:
    # The matrix maps pixels of the sample, from its centre, to pixels of the picture, from `centre`; x before y.
    half = np.abs(matrix).sum(axis=1) * size / 2 + 2
    low, high = np.floor(centre - half).astype(int), np.ceil(centre + half).astype(int)
    offset = centre - low - matrix @ np.full(2, size / 2)
    rgb, classes, regions = (_cut(layer, low, high) for layer in (picture.rgb, picture.classes, picture.regions))
    image = Image.fromarray(rgb)
    # Pixels are averaged when a picture is reduced, as by a sensor; Pillow's transform only samples.
    shrink = max(1, int(np.sqrt(abs(np.linalg.det(matrix)))))
    image = image.reduce(shrink) if shrink > 1 else image
    return Sample(
        _warp(image, matrix / shrink, offset / shrink, size, Image.Resampling.BILINEAR),
        _warp(Image.fromarray(classes), matrix, offset, size, Image.Resampling.NEAREST),
        _warp(Image.fromarray(regions), matrix, offset, size, Image.Resampling.NEAREST),
    )


def _warp(image: Image.Image, matrix: Float64Array, offset: Float64Array, size: int, how: Image.Resampling) -> AnyArray:
    data = (*matrix[0], offset[0], *matrix[1], offset[1])
    return np.asarray(image.transform((size, size), Image.Transform.AFFINE, data, how))


def _cut(layer: AnyArray, low: AnyArray, high: AnyArray) -> AnyArray:
    # Reflected beyond the picture's frame, so there are no straight black edges to learn.
    (x0, y0), (x1, y1) = low, high
    if x0 >= 0 and y0 >= 0 and y1 <= layer.shape[0] and x1 <= layer.shape[1]:
        return np.ascontiguousarray(layer[y0:y1, x0:x1])
    return layer[mirrored(y0, y1, layer.shape[0])[:, None], mirrored(x0, x1, layer.shape[1])]


def in_cells(classes: UInt8Array, stride: int) -> UInt8Array:
    """(H / stride, W / stride) classes at the centre of the cells of a map."""
    return classes[stride // 2 :: stride, stride // 2 :: stride]


def to_tensor(images: Sequence[UInt8Array], mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Normalised images (N, 3, H, W) of images (H, W, 3)."""
    stacked = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float()
    shape = (1, 3, 1, 1)
    return (stacked - torch.tensor(mean).reshape(shape)) / torch.tensor(std).reshape(shape)


@dataclass(frozen=True)
class Cropping:
    """How crops are taken."""

    size: int
    """Side in pixels."""
    zooms: tuple[float, float] = (1.0, 1.0)
    """Range of enlargements."""
    strength: float = 1.0
    """Strength of the changes in colour and sharpness; 0 for none."""

    @property
    def zoom(self) -> float:
        """The middle of `zooms`, at which whole chips are evaluated."""
        return float(np.sqrt(self.zooms[0] * self.zooms[1]))


@dataclass(frozen=True)
class Crop:
    """Part of a chip."""

    rgb: UInt8Array
    """(S, S, 3)"""
    layer: AnyArray | None
    """(S, S) the layer of numbers, cropped with it."""


def take_crop(
    rgb: UInt8Array,
    cropping: Cropping,
    rng: Generator,
    layer: AnyArray | None = None,
    holding: tuple[int, int] | None = None,
) -> Crop:
    """Cut, scale, turn, mirror and recolour part of a chip.

    Parameters
    ----------
    rgb : (H, W, 3)
    layer : (H, W)
        Numbers, uint8 or int32, that are transformed in the same way, by nearest neighbour.
    holding
        Row and column of a pixel that must be anywhere in the crop; None for any part of the chip.
    """
    size = cropping.size
    zoom = np.exp(rng.uniform(*np.log(cropping.zooms)))
    reach = max(1, round(size / zoom))
    held = (None, None) if holding is None else holding
    rows, cols = (_span(length, reach, rng, at) for length, at in zip(rgb.shape[:2], held, strict=True))
    turns, mirror = int(rng.integers(4)), bool(rng.integers(2))

    def warp(values: AnyArray, how: Image.Resampling) -> AnyArray:
        part = Image.fromarray(_along(_along(values, rows, 0), cols, 1))
        scaled = np.asarray(part if reach == size else part.resize((size, size), how))
        turned = np.rot90(scaled, turns)
        return np.ascontiguousarray(turned[:, ::-1] if mirror else turned)

    out = warp(rgb, Image.Resampling.BILINEAR)
    if cropping.strength > 0:
        out = recolour(out, rng, cropping.strength)
    return Crop(out, None if layer is None else warp(layer, Image.Resampling.NEAREST))


def _span(length: int, reach: int, rng: Generator, at: int | None = None) -> Int64Array:
    """Indices of `reach` pixels along a side of `length`: at a random position inside, or around it, mirrored.

    With `at`, including this pixel.
    """
    spare = length - reach
    if spare < 0:
        first = -int(rng.integers(-spare + 1))
    elif at is None:
        first = int(rng.integers(spare + 1))
    else:
        first = int(rng.integers(max(0, at - reach + 1), min(spare, at) + 1))
    return mirrored(first, first + reach, length)


def _along(values: AnyArray, at: Int64Array, axis: int) -> AnyArray:
    # most spans mirror nothing: their steps are all 1, and a slice avoids a copy
    if at[-1] - at[0] == len(at) - 1:
        return values[(slice(None),) * axis + (slice(at[0], at[-1] + 1),)]
    return np.take(values, at, axis=axis)


def epoch_indices(count: int, batch: int, step: int, seed: int) -> Int32Array:
    """(batch,) which of `count` samples make up a step: all of them once per epoch, in random order.

    The last batch of an epoch is filled from its start.
    """
    steps = -(-count // batch)
    epoch, at = divmod(step, steps)
    order = np.random.default_rng([seed, 3, epoch]).permutation(count).astype(np.int32)
    return np.take(order, np.arange(at * batch, (at + 1) * batch), mode="wrap")


def balanced_indices(shown: BoolArray, share: float, batch: int, step: int, seed: int) -> Int32Array:
    """(batch,) like `epoch_indices`, but with a `share` of samples (N,) that show something in every step.

    Each kind has its own epochs. If there is only one kind, the result is that of `epoch_indices`.
    """
    kinds = np.flatnonzero(shown), np.flatnonzero(~shown)
    if not share or not all(map(len, kinds)):
        return epoch_indices(len(shown), batch, step, seed)
    first = min(batch - 1, max(1, round(batch * share)))
    drawn = [
        kind[epoch_indices(len(kind), count, step, seed + number)]
        for number, (kind, count) in enumerate(zip(kinds, (first, batch - first), strict=True))
    ]
    return np.concatenate(drawn).astype(np.int32)

"""How far one image is displaced against another of the same place: phase correlation of edges in many blocks.

Each block has the cross-power spectrum of the edges of both images (Kuglin and Hines, 1975), whitened in part
(rho-PHAT: Donohue et al., 2007), and the peak of its inverse, in parts of a pixel by a parabola through the logarithm.
Edges are taken of the ratio of red and green first: shadows point elsewhere at another hour, and shift edges of
brightness along by several pixels, while they leave that ratio nearly as it is. Where an image has no colour, or blocks
do not agree on its displacement, brightness serves.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import fft, ndimage

from geolabel.errors import SceneError
from geolabel.types import AnyArray, BoolArray, Float64Array

log = logging.getLogger(__name__)

SMOOTH = 1.0
"""Sigma, in pixels, of the blur before edges are found, and of the peak that two blocks in register make."""

WHITENING = 0.6
"""Power of the magnitude that a cross-power spectrum is divided by: 1 is phase alone, and lets the pixels of coarser
colour, as pansharpening leaves it, count like edges."""

AGREE_PX = 1.0
"""Maximum distance between the displacement of a block and that of the whole."""

MIN_AGREEING = 0.25
"""Minimum share of blocks that agree. Of blocks that show different places, about one in a thousand does by chance."""

MIN_CONTRAST = 7.0
"""Minimum height of the peak of one or two blocks alone, in standard deviations of what is around."""

MIN_BLOCKS = 3
"""With fewer blocks agreement says little, so the height of the peak counts too."""

MAX_ERROR_PX = 0.2
"""Maximum standard error of the displacement that blocks agree on."""

MAX_REST_PX = 0.5
"""Maximum displacement that may be left where the first is corrected."""

WAY_OUT = "give orthorectified scenes of the same place, or --no-register to trust their positions"


@dataclass(frozen=True)
class Displacement:
    """How far the content of one image is displaced against another."""

    rows: float
    cols: float
    """Pixels from where a place is in the one to where it is in the other."""
    blocks: int = 0
    """Number of blocks that were compared."""
    agreeing: int = 0
    """Number of blocks whose own displacement is within `AGREE_PX` of the whole."""
    spread: float = 0.0
    """Median distance, in pixels, of the agreeing blocks from their median."""
    by: str = ""
    """What it was measured by, ``colour`` or ``brightness``; empty where it was not measured."""

    @property
    def error(self) -> float:
        """Standard error of the displacement, pixels."""
        return self.spread / math.sqrt(max(1, self.agreeing))


Peaks = dict[str, Float64Array]
"""Correlation of a block around no displacement (2 r + 1, 2 r + 1), by what was compared, one of `VIEWS`."""


def correlate(one: AnyArray, other: AnyArray, valid: BoolArray, limit: int) -> Peaks:
    """Correlate a block of two images.

    Parameters
    ----------
    one, other : (3, h, w)
        Red, green and blue. Zero stands for no light, about 255 for the brightest ground.
    valid : (h, w)
        Where both are.
    limit
        Maximum displacement along either axis that is looked for, pixels.

    Returns
    -------
    What can be compared; nothing where less than half is valid, or one of the images has no edges.
    """
    if valid.mean() < 0.5:
        return {}
    peaks = {name: _correlation(view(one), view(other), valid, limit) for name, view in VIEWS.items()}
    return {name: peak for name, peak in peaks.items() if peak is not None}


def displacement(blocks: Iterable[Peaks], limit: int) -> Displacement:
    """Displacement that blocks agree on.

    Parameters
    ----------
    blocks
        As `correlate` gives them.
    limit
        As there.

    Raises
    ------
    SceneError
        If there is no block, or too few agree.
    """
    found = list(blocks)
    agreed: tuple[int, int] = 0, 0
    for name in VIEWS:
        peaks = [peak[name] for peak in found if name in peak]
        if peaks:
            measured, enough = _agreed(peaks, name)
            if enough:
                return measured
            agreed = measured.agreeing, measured.blocks
    if not agreed[1]:
        raise SceneError(
            "--before cannot be registered: no block has enough valid pixels and contrast in both scenes: give a pair "
            "that shows the same place, or --no-register to trust their positions"
        )
    raise SceneError(
        f"--before cannot be registered: {agreed[0]} of {agreed[1]} blocks agree on a displacement of up to {limit} px "
        f"({agreed[0] / agreed[1]:.0%}; {MIN_AGREEING:.0%} have to, within {AGREE_PX:g} px): {WAY_OUT}"
    )


def _agreed(peaks: Sequence[Float64Array], name: str) -> tuple[Displacement, bool]:
    """The displacement of the mean of those blocks that agree with the mean of all, and whether they are enough."""
    whole, contrast = _peak(np.mean(peaks, axis=0))
    own = np.asarray([_peak(peak)[0] for peak in peaks])
    near = np.hypot(*(own - whole).T) <= AGREE_PX
    if not near.any():
        return Displacement(0.0, 0.0, len(peaks)), False
    shift, _ = _peak(np.mean([peak for peak, agrees in zip(peaks, near, strict=True) if agrees], axis=0))
    spread = float(np.median(np.hypot(*(own[near] - np.median(own[near], axis=0)).T)))
    rows, cols = (round(float(v) * 64) / 64 for v in shift)
    measured = Displacement(rows, cols, len(peaks), int(near.sum()), round(spread, 3), name)
    return measured, near.mean() >= MIN_AGREEING and (len(peaks) >= MIN_BLOCKS or contrast >= MIN_CONTRAST)


def confirmed(moved: Displacement, rest: Displacement) -> Displacement:
    """A displacement together with what is left of it where it is corrected.

    Raises
    ------
    SceneError
        If more than `MAX_REST_PX` is left, so that the blocks agreed on something else, or they differ too much.
    """
    if math.hypot(rest.rows, rest.cols) > MAX_REST_PX:
        raise SceneError(
            f"--before cannot be registered: it seems displaced by {math.hypot(moved.rows, moved.cols):.2f} px, and by "
            f"another {math.hypot(rest.rows, rest.cols):.2f} px where that is corrected, where at most {MAX_REST_PX:g} "
            f"px is due: {WAY_OUT}"
        )
    if rest.error > MAX_ERROR_PX:
        raise SceneError(
            f"--before cannot be registered: {rest.agreeing} of {rest.blocks} blocks agree on a displacement with a "
            f"standard error of {rest.error:.2f} px, and at most {MAX_ERROR_PX:g} px is trusted: {WAY_OUT}"
        )
    if rest.by == "brightness":
        log.warning(
            "--before is registered by brightness, since its colours and those of the scene do not agree, or there are "
            "none: shadows that point elsewhere can shift the displacement by up to 3 px"
        )
    return replace(rest, rows=moved.rows + rest.rows, cols=moved.cols + rest.cols)


# --- what is compared ------------------------------------------------------------------------------------------------

DARK, STEEP = 4.0, 60.0
"""Added to the bands so that the noise of dark pixels is no colour, and the scale of their ratio."""


def _colour(image: AnyArray) -> Float64Array:
    """(h, w) logarithm of red over green: blue is left out, since the sky lights shadows with it."""
    red, green = (np.maximum(band, 0).astype(np.float64) + DARK for band in image[:2])
    return np.asarray(STEEP * np.log(red / green))


def _brightness(image: AnyArray) -> Float64Array:
    return np.asarray(image.mean(axis=0, dtype=np.float64))


VIEWS: dict[str, Callable[[AnyArray], Float64Array]] = {"colour": _colour, "brightness": _brightness}
"""What is compared of two images; the first that blocks agree on counts."""


# --- correlation -----------------------------------------------------------------------------------------------------


def _correlation(one: Float64Array, other: Float64Array, valid: BoolArray, limit: int) -> Float64Array | None:
    """Correlation of the edges of two blocks, blurred, up to a displacement; None where there is too little to compare.

    Returns
    -------
    (2 r + 1, 2 r + 1), where r is the limit and one, or less in a small block; its maximum is about 1.
    """
    waves = []
    for view in (one, other):
        edges = ndimage.gaussian_gradient_magnitude(np.where(valid, view, view[valid].mean()), SMOOTH)
        edges = np.where(ndimage.binary_erosion(valid, iterations=4, border_value=1), edges, 0.0)
        if edges.std() < 1e-3:
            return None
        edges = np.minimum(edges, np.quantile(edges, 0.98))  # a few bright roofs do not decide
        waves.append(fft.rfft2((edges - edges.mean()) * _hann(view.shape)))
    cross = waves[1] * np.conj(waves[0])
    rows, cols = fft.fftfreq(one.shape[0])[:, None], fft.rfftfreq(one.shape[1])[None]
    low_pass = np.exp(-2 * (np.pi * SMOOTH) ** 2 * (rows * rows + cols * cols))
    peak = fft.fftshift(fft.irfft2(cross / np.maximum(np.abs(cross), 1e-12) ** WHITENING * low_pass, s=one.shape))
    near = peak[tuple(_around(side, limit) for side in peak.shape)]
    return np.asarray(near / max(float(np.abs(near).max()), 1e-12))


def _around(side: int, limit: int) -> slice:
    middle = side // 2
    reach = min(limit + 1, middle)
    return slice(middle - reach, middle + reach + 1)


def _hann(shape: tuple[int, ...]) -> Float64Array:
    return np.outer(*(np.hanning(side + 2)[1:-1] for side in shape))


def _peak(correlation: Float64Array) -> tuple[Float64Array, float]:
    """(2,) rows and columns of the highest place inside the rim, and its height in standard deviations."""
    inner = correlation[1:-1, 1:-1]
    top = np.unravel_index(int(np.argmax(inner)), inner.shape)
    row, col = int(top[0]) + 1, int(top[1]) + 1
    place = []
    for line, at in ((correlation[:, col], row), (correlation[row], col)):
        before, here, after = (np.log(max(float(line[k]), 1e-9)) for k in (at - 1, at, at + 1))
        bend = before - 2 * here + after  # the peak is a Gaussian, whose logarithm is a parabola
        part = 0.0 if bend >= 0 else float(np.clip((before - after) / (2 * bend), -1, 1))
        place.append(at - len(line) // 2 + part)
    return np.asarray(place), float(inner.max() / max(inner.std(), 1e-12))

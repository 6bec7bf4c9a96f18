"""Displacement between two images of the same place: phase correlation of edges in many blocks.

For each block, the cross-power spectrum of the edges of both images (Kuglin and Hines, 1975) is partly whitened
(rho-PHAT: Donohue et al., 2007), and the peak of its inverse is located to a fraction of a pixel by a parabola through
the logarithm. Edges of the ratio of red and green are used first: shadows move with the time of day and shift edges of
brightness by several pixels, but hardly affect that ratio. If an image has no colour, or blocks disagree on its
displacement, brightness is used.
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
"""Sigma, in pixels, of the blur before edge detection, and of the peak of two blocks in register."""

WHITENING = 0.6
"""Exponent of the magnitude that a cross-power spectrum is divided by: 1 is phase only, which would give the pixels of
coarser colour, such as after pansharpening, the weight of edges."""

AGREE_PX = 1.0
"""Maximum distance between the displacement of a block and the common one."""

MIN_AGREEING = 0.25
"""Minimum share of blocks that agree. Among blocks of different places, about one in a thousand agrees by chance."""

MIN_CONTRAST = 7.0
"""Minimum height of the peak of one or two blocks, in standard deviations of its surroundings."""

MIN_BLOCKS = 3
"""With fewer blocks, agreement is weak evidence, so the height of the peak is checked too."""

MAX_ERROR_PX = 0.2
"""Maximum standard error of the common displacement."""

MAX_REST_PX = 0.5
"""Maximum displacement left after correction."""

WAY_OUT = "give orthorectified scenes of the same place, or --no-register to trust their positions"


@dataclass(frozen=True)
class Displacement:
    """Displacement of the content of one image against another."""

    rows: float
    cols: float
    """Pixels from a place in the first image to the same place in the second."""
    blocks: int = 0
    """Number of compared blocks."""
    agreeing: int = 0
    """Number of blocks within `AGREE_PX` of the common displacement."""
    spread: float = 0.0
    """Median distance, in pixels, of the agreeing blocks from their median."""
    by: str = ""
    """Measured by ``colour`` or ``brightness``; empty if not measured."""

    @property
    def error(self) -> float:
        """Standard error of the displacement, pixels."""
        return self.spread / math.sqrt(max(1, self.agreeing))


Peaks = dict[str, Float64Array]
"""Correlation (2 r + 1, 2 r + 1) of a block around zero displacement, by entry of `VIEWS`."""


def correlate(one: AnyArray, other: AnyArray, valid: BoolArray, limit: int) -> Peaks:
    """Correlate a block of two images.

    Parameters
    ----------
    one, other : (3, h, w)
        Red, green and blue. Zero is no light, about 255 the brightest ground.
    valid : (h, w)
        Where both images are valid.
    limit
        Maximum displacement along either axis, pixels.

    Returns
    -------
    Correlations by entry of `VIEWS`; empty if less than half is valid, or an image has no edges.
    """
    if valid.mean() < 0.5:
        return {}
    peaks = {name: _correlation(view(one), view(other), valid, limit) for name, view in VIEWS.items()}
    return {name: peak for name, peak in peaks.items() if peak is not None}


def displacement(blocks: Iterable[Peaks], limit: int) -> Displacement:
    """The displacement that blocks agree on.

    Parameters
    ----------
    blocks
        Results of `correlate`.
    limit
        The `limit` given there.

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
        f"({agreed[0] / agreed[1]:.0%}; at least {MIN_AGREEING:.0%} must, within {AGREE_PX:g} px): {WAY_OUT}"
    )


def _agreed(peaks: Sequence[Float64Array], name: str) -> tuple[Displacement, bool]:
    """The displacement of the mean of the blocks that agree with the overall mean, and whether they are enough."""
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
    """Confirm a displacement with the one measured after correction.

    Raises
    ------
    SceneError
        If more than `MAX_REST_PX` remains, so that the first was wrong, or the blocks differ too much.
    """
    if math.hypot(rest.rows, rest.cols) > MAX_REST_PX:
        raise SceneError(
            f"--before cannot be registered: it seems displaced by {math.hypot(moved.rows, moved.cols):.2f} px, and by "
            f"another {math.hypot(rest.rows, rest.cols):.2f} px after correction; the limit is {MAX_REST_PX:g} "
            f"px: {WAY_OUT}"
        )
    if rest.error > MAX_ERROR_PX:
        raise SceneError(
            f"--before cannot be registered: {rest.agreeing} of {rest.blocks} blocks agree on a displacement with a "
            f"standard error of {rest.error:.2f} px; the limit is {MAX_ERROR_PX:g} px: {WAY_OUT}"
        )
    if rest.by == "brightness":
        log.warning(
            "--before is registered by brightness, since its colours and those of the scene do not agree, or there are "
            "none: shadows of another time of day can shift the displacement by up to 3 px"
        )
    return replace(rest, rows=moved.rows + rest.rows, cols=moved.cols + rest.cols)


# --- compared quantities ---------------------------------------------------------------------------------------------

DARK, STEEP = 4.0, 60.0
"""Offset added to the bands so that noise of dark pixels does not count as colour, and scale of their ratio."""


def _colour(image: AnyArray) -> Float64Array:
    """(h, w) logarithm of red over green; blue is excluded, since skylight colours shadows."""
    red, green = (np.maximum(band, 0).astype(np.float64) + DARK for band in image[:2])
    return np.asarray(STEEP * np.log(red / green))


def _brightness(image: AnyArray) -> Float64Array:
    return np.asarray(image.mean(axis=0, dtype=np.float64))


VIEWS: dict[str, Callable[[AnyArray], Float64Array]] = {"colour": _colour, "brightness": _brightness}
"""Compared quantities in order of preference; the first that blocks agree on is used."""


# --- correlation -----------------------------------------------------------------------------------------------------


def _correlation(one: Float64Array, other: Float64Array, valid: BoolArray, limit: int) -> Float64Array | None:
    """Blurred correlation of the edges of two blocks, up to a displacement; None if there is too little to compare.

    Returns
    -------
    (2 r + 1, 2 r + 1), where r is the limit plus one, or less in a small block; its maximum is about 1.
    """
    waves = []
    for view in (one, other):
        edges = ndimage.gaussian_gradient_magnitude(np.where(valid, view, view[valid].mean()), SMOOTH)
        edges = np.where(ndimage.binary_erosion(valid, iterations=4, border_value=1), edges, 0.0)
        if edges.std() < 1e-3:
            return None
        edges = np.minimum(edges, np.quantile(edges, 0.98))  # limits the weight of a few bright roofs
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
    """(2,) row and column of the maximum inside the rim, and its height in standard deviations."""
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

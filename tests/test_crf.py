"""Maps at the edges of the image: the dense CRF against sums over all pairs, PAMR against loops over pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from geolabel.errors import OptionError
from geolabel.models.refinement import (
    DenseCrf,
    Pamr,
    PamrLocalizer,
    bilateral,
    gaussian,
    levelled,
    normalised,
    sorted_sums,
    sums,
)
from geolabel.testing import FakeLocalizer


def picture(seed: int = 0, size: int = 24) -> np.ndarray:
    """Two plains of colour with noise, the edge between them at column 13."""
    random = np.random.default_rng(seed)
    image = np.where(np.arange(size)[None, :, None] < 13, (70, 90, 60), (150, 130, 110)) + random.normal(
        0, 5, (size, size, 3)
    )
    return image.round().clip(0, 255).astype(np.uint8)


def pairs(size: int, sigma: float) -> np.ndarray:
    """exp(-d^2 / 2 sigma^2) for every pair of pixels."""
    at = np.stack(np.meshgrid(np.arange(size), np.arange(size), indexing="ij"), -1).reshape(-1, 2) / sigma
    return np.exp(-0.5 * ((at[:, None] - at[None]) ** 2).sum(-1))


def alike(image: np.ndarray, sigma_px: float, sigma_grey: float) -> np.ndarray:
    colours = image.reshape(-1, 3).astype(float) / sigma_grey
    return pairs(len(image), sigma_px) * np.exp(-0.5 * ((colours[:, None] - colours[None]) ** 2).sum(-1))


def exact(image: np.ndarray, probabilities: np.ndarray, crf: DenseCrf) -> np.ndarray:
    """Mean field with sums over all pairs: algorithm 1 of the paper, symmetrically normalised."""
    unary = -np.log(np.clip(probabilities.reshape(len(probabilities), -1), 1e-6, 1))
    total = np.zeros((unary.shape[1],) * 2)
    for weight, kernel in (
        (crf.smooth_weight, pairs(len(image), crf.smooth_px)),
        (crf.alike_weight, alike(image, crf.alike_px, crf.alike_grey)),
    ):
        roots = 1 / np.sqrt(kernel.sum(1))
        total += weight * kernel * roots[:, None] * roots[None]

    def softmax(x: np.ndarray) -> np.ndarray:
        e = np.exp(x - x.max(0))
        return e / e.sum(0)

    marginals = softmax(-unary)
    for _ in range(crf.iterations):
        marginals = softmax(marginals @ total - unary)
    return marginals.reshape(probabilities.shape)


def test_the_gaussian_is_the_sum_over_all_pairs() -> None:
    values = np.random.default_rng(1).random((2, 24 * 24))
    got = gaussian(24, 24, 3.0)(torch.from_numpy(values).float()).numpy()
    assert np.abs(got - values @ pairs(24, 3.0)).max() < 2e-3 * got.max()


@pytest.mark.parametrize("sigma_px", [12.0, 80.0])
def test_the_bilateral_grid_is_close_to_the_sum_over_all_pairs(sigma_px: float) -> None:
    image = picture()
    values = torch.from_numpy(map_of().reshape(2, -1))
    got = normalised(bilateral(torch.from_numpy(image).float(), sigma_px, 13.0), values)(values).numpy()
    kernel = alike(image, sigma_px, 13.0)
    roots = 1 / np.sqrt(kernel.sum(1))
    expected = values.numpy() @ (kernel * roots[:, None] * roots[None])
    assert np.abs(got - expected).mean() < 0.04 * expected.mean()
    assert np.corrcoef(got.ravel(), expected.ravel())[0, 1] > 0.98


def map_of(size: int = 24) -> np.ndarray:
    """Active from column 9 on: four columns beyond the edge of the picture, and noisy."""
    active = np.where(np.arange(size) < 9, 0.35, 0.65) + np.random.default_rng(2).normal(0, 0.05, (size, size))
    return np.stack([1 - active, active]).astype(np.float32)


def test_marginals_are_those_of_all_pairs_but_for_the_grid() -> None:
    crf, probabilities = DenseCrf(iterations=5, alike_px=20.0, alike_weight=4.0), map_of()
    got, expected = crf(picture(), probabilities), exact(picture(), probabilities, crf)
    assert got.sum(axis=0) == pytest.approx(1, abs=1e-5)
    assert np.abs(got - expected).mean() < 0.02
    assert ((got[1] > 0.5) == (expected[1] > 0.5)).mean() > 0.98


def test_a_map_moves_to_the_edge_of_the_image() -> None:
    refined = DenseCrf()(picture(), map_of())[1] > 0.5
    assert (refined == (np.arange(24) >= 13)).mean() > 0.98
    assert ((map_of()[1] > 0.5) == (np.arange(24) >= 13)).mean() < 0.9


def test_without_ties_nothing_changes() -> None:
    free = DenseCrf(smooth_weight=0, alike_weight=0)
    assert free(picture(), map_of()) == pytest.approx(map_of() / map_of().sum(axis=0), abs=1e-5)


@pytest.mark.parametrize("given", [{"iterations": 0}, {"alike_px": 0.0}, {"smooth_weight": -1.0}])
def test_numbers_that_cannot_be(given: dict[str, float]) -> None:
    with pytest.raises(OptionError):
        DenseCrf(**given)  # type: ignore[arg-type]


# --- PAMR ------------------------------------------------------------------------------------------------------------


def looped(image: np.ndarray, values: np.ndarray, pamr: Pamr) -> np.ndarray:
    """The definition, pixel by pixel."""
    height, width = values.shape
    colours = image / 255
    for _ in range(pamr.iterations):
        refined = np.zeros_like(values)
        for y, x in np.ndindex(height, width):
            steps = [(i * d, j * d) for d in pamr.distances for i in (-1, 0, 1) for j in (-1, 0, 1) if i or j]
            around = [(min(max(y + i, 0), height - 1), min(max(x + j, 0), width - 1)) for i, j in steps]
            own, others = colours[y, x], np.array([colours[p] for p in around])
            sigma = np.vstack([others, own[None]]).std(axis=0)
            affinity = -(np.abs(others - own) / (0.1 * sigma + 1e-8)).mean(axis=1)
            weights = np.exp(affinity - affinity.max())
            refined[y, x] = weights @ [values[p] for p in around] / weights.sum()
        values = refined
    return values


def test_pamr_is_its_definition() -> None:
    random = np.random.default_rng(0)
    image, values = random.integers(0, 256, (7, 9, 3), np.uint8), random.random((7, 9)).astype(np.float32)
    pamr = Pamr(iterations=2, distances=(1, 3))
    assert np.abs(pamr(image, values[None])[0] - looped(image, values, pamr)).max() < 1e-4


def test_pamr_moves_a_map_to_the_edge() -> None:
    image, values = picture(size=48), map_of(size=48)[1]
    truth = np.arange(48) >= 13
    before, after = ((v > 0.5) == truth for v in (values, Pamr()(image, values[None])[0]))
    assert before.mean() < 0.95 < 0.98 < after.mean()


def test_pamr_stays_within_the_map_and_keeps_what_is_the_same_everywhere() -> None:
    image = picture(size=24)
    maps = np.stack([map_of()[1], np.full((24, 24), 0.7, np.float32)])
    refined = Pamr()(image, maps)
    assert refined[0].min() >= maps[0].min()
    assert refined[0].max() <= maps[0].max()
    assert np.abs(refined[1] - 0.7).max() < 1e-5


def test_sorted_sums_have_the_bytes_of_sums_in_turn() -> None:
    random = torch.Generator().manual_seed(0)
    corners = [
        (torch.randint(0, high, (500,), generator=random), torch.rand(500, generator=random)) for high in (1, 7, 90)
    ]
    values = torch.rand(3, 500, generator=random)
    found, expected = sorted_sums(corners, 100)(values), sums(corners, 100)(values)
    assert torch.equal(found, expected)
    assert not found[:, 90:].any()
    backwards = [(at.flip(0), weight.flip(0)) for at, weight in corners[::-1]]
    assert not torch.equal(sums(backwards, 100)(values.flip(1)), expected)  # the order of a sum shows in its bytes


def test_pamr_sees_large_images_reduced() -> None:
    image, values = (np.repeat(np.repeat(a, 4, 0), 4, 1) for a in (picture(size=40), map_of(size=40)[1]))
    small, large = Pamr(side=40)(image, values[None])[0], Pamr(side=40)(picture(size=40), map_of(size=40)[1][None])[0]
    assert small.shape == (160, 160)
    assert np.abs(small[2::4, 2::4] - large).mean() < 0.02


def test_a_refined_map_is_levelled_at_the_pixels_of_the_image() -> None:
    bright = FakeLocalizer(function=lambda rgb: rgb.mean(axis=2) / 400, stride=8)
    (found,) = PamrLocalizer(bright)([picture(size=64)])
    assert (found.stride, found.values.shape, found.values.max()) == (1, (1, 64, 64), 1)
    assert ((found.values[0] > 0.5) == (np.arange(64) >= 13)).mean() > 0.98


def test_levels_of_a_map() -> None:
    values = np.repeat(np.array([[-1, 0.1, 0.3, 4]], np.float32), 4, axis=0)
    found = levelled(values)[0]
    assert found[0] == 0 < found[1] < found[2] < 0.5 < found[3] == 1
    assert not levelled(np.full((3, 3), -2, np.float32)).any()
    assert (levelled(np.full((3, 3), 2, np.float32)) == 1).all()


def test_numbers_of_pamr_are_checked() -> None:
    for wrong in ({"iterations": 0}, {"distances": ()}, {"side": 0}):
        with pytest.raises(OptionError, match="pixel-adaptive refinement needs"):
            Pamr(**wrong)

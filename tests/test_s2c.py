"""S2C's losses: hand-computed cases, invariances and gradients."""

import math

import pytest
import torch
from torch.autograd import gradcheck

from geolabel.training.s2c import normalised, prompted_mask_loss, prototypes, segment_contrast, with_background


def two_segments() -> tuple[torch.Tensor, torch.Tensor]:
    """Two pixels along each of two axes: every pixel equals its own prototype, at right angles to the other."""
    features = torch.tensor([[[1.0, 1, 0, 0]], [[0, 0, 1, 1]]])[None]
    return features, torch.tensor([[[1, 1, 2, 2]]])


@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_orthogonal_segments_by_hand(temperature: float):
    loss = segment_contrast(*two_segments(), temperature)
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-1 / temperature)), abs=1e-6)


def test_the_published_constants():
    assert segment_contrast(*two_segments(), 0.5).item() == pytest.approx(0.1269, abs=1e-4)
    assert segment_contrast(*two_segments(), 1.0).item() == pytest.approx(0.3133, abs=1e-4)


def test_a_prototype_is_the_direction_of_the_mean():
    features = torch.tensor([[1.0, 0], [0, 1], [0, 1]])
    found = prototypes(features, torch.tensor([0, 0, 1]), 2)
    torch.testing.assert_close(found, torch.tensor([[2**-0.5, 2**-0.5], [0, 1]]))


def test_numbers_and_lengths_do_not_matter():
    torch.manual_seed(0)
    features = torch.randn(2, 5, 6, 6)
    segments = torch.randint(0, 4, (2, 6, 6))
    table = torch.tensor([0, 900, 7, 300])  # other numbers; 0 stays what is not covered
    first = segment_contrast(features, segments)
    torch.testing.assert_close(first, segment_contrast(features * 3, table[segments]))


def test_segments_of_one_image_are_no_negatives_of_another():
    features, segments = two_segments()
    alone = segment_contrast(features, segments)
    other = torch.ones_like(segments)  # one segment: nothing to tell apart, loss 0
    both = segment_contrast(torch.cat([features, features]), torch.cat([segments, other]))
    torch.testing.assert_close(both, alone / 2)


def test_uncovered_pixels_take_no_part_and_an_uncovered_image_counts_nothing():
    features, segments = two_segments()
    spoiled = torch.cat([features, torch.full((1, 2, 1, 1), -5.0)], dim=3)
    covered = torch.nn.functional.pad(segments, (0, 1))
    torch.testing.assert_close(segment_contrast(spoiled, covered), segment_contrast(features, segments))
    nothing = features.clone().requires_grad_()
    loss = segment_contrast(nothing, torch.zeros_like(segments))
    loss.backward()
    assert loss.item() == 0
    assert nothing.grad.abs().sum() == 0


def test_thinned_pixels_estimate_the_whole():
    torch.manual_seed(0)
    features, segments = torch.randn(1, 8, 64, 64), torch.randint(1, 5, (1, 64, 64))
    assert segment_contrast(features, segments, pixels=1024) == pytest.approx(
        segment_contrast(features, segments).item(), abs=0.05
    )


@pytest.mark.parametrize("detach", [False])
def test_the_contrast_has_the_gradient_of_its_values(detach: bool):
    torch.manual_seed(0)
    features = torch.randn(1, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    segments = torch.tensor([[[1, 1], [2, 2]]])
    assert gradcheck(lambda x: segment_contrast(x, segments, detach=detach), (features,))


def test_detached_prototypes_are_constants():
    torch.manual_seed(0)
    features = torch.randn(1, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    segments = torch.tensor([[[1, 1], [2, 2]]])
    segment_contrast(features, segments).backward()
    flat = torch.nn.functional.normalize(features.flatten(2)[0].T, dim=1)
    centres = prototypes(flat.detach(), torch.tensor([0, 0, 1, 1]), 2)
    by_hand = torch.nn.functional.cross_entropy(flat @ centres.T / 0.5, torch.tensor([0, 0, 1, 1]))
    (expected,) = torch.autograd.grad(by_hand, features)
    torch.testing.assert_close(features.grad, expected)


# CPM

ALL = torch.tensor([True])


def test_maps_are_scaled_by_their_maximum_and_gated_by_the_label():
    maps = torch.tensor([[[[2.0, -1], [1, 0]], [[3, 3], [3, 3]], [[-1, -2], [-3, -4]]]])
    scaled = normalised(maps, torch.tensor([[1.0, 0, 1]]))
    torch.testing.assert_close(scaled[0, 0], torch.tensor([[1.0, 0], [0.5, 0]]), atol=1e-4, rtol=0)
    assert scaled[0, 1:].abs().max() == 0


def test_the_background_is_what_the_strongest_class_leaves():
    maps = torch.tensor([[[[0.25]], [[0.75]]]])
    assert with_background(maps).flatten().tolist() == [0.25, 0.25, 0.75]


def test_a_perfect_map_has_the_floor_of_its_cross_entropy():
    maps = torch.tensor([[[[1.0, 0.0]]]])
    target = torch.tensor([[[1, 0]]])
    assert prompted_mask_loss(maps, target, ALL).item() == pytest.approx(0.3133, abs=1e-4)
    many = torch.zeros(1, 20, 1, 1)
    many[:, 3] = 1
    assert prompted_mask_loss(many, torch.tensor([[[4]]]), ALL).item() == pytest.approx(
        math.log(1 + 20 / math.e), abs=1e-4
    )


def test_ignored_pixels_and_a_background_left_out():
    maps = torch.tensor([[[[0.9, 0.2, 0.4]]]])
    only = prompted_mask_loss(maps[..., :1], torch.tensor([[[1]]]), ALL)
    torch.testing.assert_close(prompted_mask_loss(maps, torch.tensor([[[1, 255, 255]]]), ALL), only)
    apart = prompted_mask_loss(maps, torch.tensor([[[1, 0, 255]]]), ALL, background=False)
    assert apart.item() == pytest.approx((0.1 + 0.2) / 2)
    assert prompted_mask_loss(maps, torch.full((1, 1, 3), 255), ALL).item() == 0


def test_chips_that_show_nothing_dilute_no_mask_loss():
    torch.manual_seed(0)
    maps, target = torch.rand(1, 1, 4, 4, requires_grad=True), torch.randint(0, 2, (1, 4, 4))
    prompted_mask_loss(maps, target, ALL).backward()
    beside = torch.cat([maps.detach(), torch.zeros(4, 1, 4, 4)]).requires_grad_()
    shows = torch.tensor([True, False, False, False, False])
    prompted_mask_loss(beside, torch.cat([target, torch.zeros(4, 4, 4).long()]), shows).backward()
    torch.testing.assert_close(beside.grad[:1], maps.grad)
    assert prompted_mask_loss(maps, target, torch.tensor([False])).item() == 0


def test_without_background_both_sides_of_a_mask_teach():
    maps = torch.full((1, 1, 1, 2), 0.5, requires_grad=True)
    prompted_mask_loss(maps, torch.tensor([[[1, 0]]]), ALL, background=False).backward()
    assert maps.grad.flatten().tolist() == pytest.approx([-0.5, 0.5])


def test_the_mask_loss_has_the_gradient_of_its_values():
    torch.manual_seed(0)
    raw = torch.rand(1, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    target = torch.tensor([[[0, 1, 2, 255]] * 4])
    assert gradcheck(lambda x: prompted_mask_loss(normalised(x), target, ALL), (raw,))

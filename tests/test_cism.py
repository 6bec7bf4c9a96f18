"""CISM's modules and losses: hand-computed cases, symmetries and gradients."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck

from geolabel.training.cism import (
    class_maps,
    class_vectors,
    common_semantic_loss,
    cross_similarity,
    enhanced,
    generated_sample,
    low_group,
    non_common_semantic_loss,
    pair_labels,
    prototype,
    rescaled,
    single_label_loss,
)

Q, R = torch.tensor([[1.0, 1, 0]]), torch.tensor([[0.0, 1, 1]])


def noise(*size: int) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(sum(size)))


# Prototype vectors


def test_without_a_gate_a_prototype_is_the_mean():
    features = noise(2, 4, 3, 3)
    torch.testing.assert_close(prototype(features, torch.ones(2, 1, 3, 3)), features.mean(dim=(2, 3)))


def test_the_scale_of_dropout_cancels_and_a_closed_gate_gives_no_nan():
    features = noise(1, 4, 3, 3)
    gate = torch.zeros(1, 1, 3, 3)
    gate[..., 0, :2] = 1
    torch.testing.assert_close(prototype(features, gate / 0.7), prototype(features, gate))
    torch.testing.assert_close(prototype(features, gate)[0], features[0, :, 0, :2].mean(dim=1))
    assert prototype(features, gate * 0).abs().max() == 0


# Prototype interactive enhancement


def test_identical_images_are_alike_everywhere_and_orthogonal_ones_nowhere():
    x = noise(2, 5, 3, 4)
    same = cross_similarity(x, x)
    torch.testing.assert_close(same.q, torch.ones(2, 1, 3, 4))
    q, r = torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 3, 3)
    q[:, 0], r[:, 1] = 1, 1
    assert cross_similarity(q, r).q.abs().max() == 0


def test_similarity_is_symmetric_and_free_of_scale():
    q, r = noise(2, 5, 3, 4), noise(2, 5, 2, 2)
    there, back = cross_similarity(q, r), cross_similarity(r, q)
    torch.testing.assert_close(there.q, back.r)
    torch.testing.assert_close(there.r, back.q)
    torch.testing.assert_close(cross_similarity(3 * q, 0.1 * r).q, there.q)


def test_similarity_is_spread_over_each_image():
    found = rescaled(torch.tensor([[[[0.2, 0.4], [0.6, 0.2]]], [[[0.5, 0.5], [0.5, 0.5]]]]))
    torch.testing.assert_close(found[0, 0], torch.tensor([[0.0, 0.5], [1, 0]]))
    assert (found[1] == 1).all()


def test_enhancement_adds_the_similar_part_of_the_other_image():
    other = torch.tensor([[[[1.0, 9]], [[2, 9]]]])
    found = enhanced(torch.tensor([[10.0, 20]]), other, torch.tensor([[[[1.0, 0]]]]))
    torch.testing.assert_close(found, torch.tensor([[11.0, 22]]))


# Secondary classification


def test_class_maps_are_positive_with_a_maximum_of_one():
    found = class_maps(torch.tensor([[[[4.0, -4], [2, 0]], [[-1, -2], [-1, -3]]]]))
    torch.testing.assert_close(found[0, 0], torch.tensor([[1.0, 0], [0.5, 0]]), atol=1e-4, rtol=0)
    assert found[0, 1].abs().max() == 0


def test_uniform_weights_give_the_spatial_mean():
    features, maps, prototypes = noise(2, 4, 3, 3), noise(2, 5, 3, 3).abs(), noise(2, 4)
    weights = torch.full((2, 5, 3, 3), 0.2)
    found = class_vectors(features, maps, prototypes, weights)
    expected = (maps[:, :, None] * prototypes[:, None, :, None, None] * features[:, None]).mean(dim=(3, 4))
    torch.testing.assert_close(found, expected)


def test_one_present_class_is_cross_entropy():
    logits = noise(3, 6, 6)
    shown = torch.tensor([2, 0, 5])
    expected = torch.nn.functional.cross_entropy(logits[[0, 1, 2], shown], shown)
    torch.testing.assert_close(single_label_loss(logits, torch.eye(6)[shown]), expected)


def test_two_classes_of_an_image_are_told_from_each_other():
    both = torch.ones(1, 2)
    alike, apart = torch.zeros(1, 2, 2), torch.tensor([[[9.0, 0], [0, 9]]])
    assert single_label_loss(alike, both).item() == pytest.approx(math.log(2))
    assert single_label_loss(apart, both).item() < 1e-3


def test_ignorance_costs_the_logarithm_of_the_number_of_classes():
    labels = torch.zeros(2, 15)
    labels[0, :4] = 1  # the second image shows nothing and takes no part
    assert single_label_loss(torch.zeros(2, 15, 15), labels).item() == pytest.approx(math.log(15))
    assert single_label_loss(torch.zeros(2, 15, 15), labels * 0).item() == 0


def test_with_one_class_there_is_nothing_to_tell_apart():
    assert single_label_loss(noise(4, 1, 1), torch.ones(4, 1)).abs().item() == 0


def test_a_class_that_is_always_beside_another_rises_above_it():
    vectors, both = torch.eye(2, 4) + 0.2 * noise(3, 2, 4), torch.ones(3, 2)
    weights = torch.nn.Parameter(torch.zeros(2, 4))
    optimiser = torch.optim.Adam([weights], 0.1)
    for _ in range(60):
        optimiser.zero_grad()
        single_label_loss(vectors @ weights.T, both).backward()
        optimiser.step()
    margin = vectors @ (weights[0] - weights[1]).detach()
    assert (margin[:, 0] > 0).all()
    assert (margin[:, 1] < 0).all()


# Pairs


def test_labels_of_a_pair_by_hand():
    found = pair_labels(Q, R)
    assert [x.tolist() for x in found] == [[[0, 1, 0]], [[1, 0, 0]], [[0, 0, 1]]]


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=8))
def test_labels_of_a_pair_never_overlap_and_add_up(pairs):
    q, r = torch.tensor(pairs, dtype=torch.float32).T[:, None]
    common, q_only, r_only = pair_labels(q, r)
    assert ((common + q_only + r_only) <= 1).all()
    torch.testing.assert_close(common + q_only, q)
    torch.testing.assert_close(common + r_only, r)


def test_pair_losses_by_hand():
    labels = pair_labels(Q, R)
    zero = torch.zeros(1, 3)
    assert common_semantic_loss(zero, zero, labels.common).item() == pytest.approx(3 * math.log(2))
    assert non_common_semantic_loss(zero, zero, labels).item() == pytest.approx(6 * math.log(2))
    sure = 40 * (2 * labels.common - 1)
    assert common_semantic_loss(sure / 2, sure / 2, labels.common).item() == pytest.approx(0, abs=1e-6)


def test_a_pair_that_shares_nothing_is_skipped():
    q, r = torch.tensor([[1.0, 0], [1, 1]]), torch.tensor([[0.0, 1], [0, 1]])
    labels = pair_labels(q, r)
    logits = noise(2, 2)
    alone = pair_labels(q[1:], r[1:])
    torch.testing.assert_close(
        common_semantic_loss(logits, logits, labels.common),
        common_semantic_loss(logits[1:], logits[1:], alone.common),
    )
    torch.testing.assert_close(
        non_common_semantic_loss(logits, logits, labels), non_common_semantic_loss(logits[1:], logits[1:], alone)
    )
    nothing = pair_labels(q[:1], r[:1])
    assert non_common_semantic_loss(logits[:1], logits[:1], nothing).item() == 0


def test_losses_have_the_gradients_of_their_values():
    x, y = noise(2, 3).double().requires_grad_(), noise(2, 3).double().requires_grad_()
    q, r = torch.tensor([[1.0, 1, 0], [1, 0, 0]]).double(), torch.tensor([[0.0, 1, 1], [1, 0, 1]]).double()
    assert gradcheck(lambda a: single_label_loss(a, q), (noise(2, 3, 3).double().requires_grad_(),))
    assert gradcheck(lambda a, b: common_semantic_loss(a, b, q * r), (x, y))
    assert gradcheck(lambda a, b: non_common_semantic_loss(a, b, pair_labels(q, r)), (x, y))
    u, v = noise(1, 3, 2, 2).double().requires_grad_(), noise(1, 3, 2, 3).double().requires_grad_()
    assert gradcheck(lambda a, b: tuple(rescaled(s) for s in cross_similarity(a, b)), (u, v))


# Generated samples


def test_few_classes_are_the_low_group():
    labels = np.array([[1, 0, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [0, 0, 0, 0, 0]], bool)
    assert low_group(labels).tolist() == [True, True, False, False]


@given(st.integers(0, 1000))
def test_a_sample_shows_all_four_images_and_has_the_largest_size(seed: int):
    sizes = [(20, 31), (41, 9), (16, 16), (7, 50)]
    images = [np.full((*size, 3), 50 * (k + 1), np.uint8) for k, size in enumerate(sizes)]
    sample = generated_sample(images, np.random.default_rng(seed))
    assert sample.shape == (41, 50, 3)
    values, counts = np.unique(sample, return_counts=True)
    assert values.tolist() == [50, 100, 150, 200]
    assert counts.min() >= 3 * 14 * 17  # no corner is smaller than 35 % of either side


def test_three_images_make_no_sample():
    with pytest.raises(ValueError, match="four images, not 3"):
        generated_sample([np.zeros((4, 4, 3), np.uint8)] * 3, np.random.default_rng(0))

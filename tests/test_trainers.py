"""Losses by hand, samples and prompts by property, and both trainings in miniature."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from sklearn.metrics import precision_recall_curve, roc_auc_score
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from geolabel.cli.train import train
from geolabel.errors import OptionError, OutputError, WeightsError
from geolabel.models.checkpoint import load_checkpoint, save_checkpoint
from geolabel.models.nets import build
from geolabel.models.nets.localizer import PyramidLocalizer
from geolabel.synthetic.cover import FOREST, LANDSLIDE
from geolabel.training import bundled_data, losses, segmenter_objective
from geolabel.training.averaging import average_localizers
from geolabel.training.bundled import RECIPES, _info, _start, _start_from_segmenter, train_bundled
from geolabel.training.bundled_data import (
    HARD_WEIGHT,
    Picture,
    is_reported,
    number_regions,
    read_pictures,
    read_sets,
    seen_at,
    segment_regions,
    stretch,
    synthetic_pictures,
)
from geolabel.training.colours import coarsen, recolour, repaint, tint
from geolabel.training.fit import Schedule, fit
from geolabel.training.localizer_objective import (
    CENTRE,
    PREVALENCE,
    LocalizerLosses,
    area_under_curve,
    best_threshold,
    calibrate,
    settle,
    weigh_slides,
)
from geolabel.training.samples import Changes, Sample, draw, generator, lay_together, to_tensor
from geolabel.training.segmenter_objective import (
    SegmenterLosses,
    choose_objects,
    exact_prompt,
    localizer_prompt,
    sloppy_prompt,
)

LN2 = math.log(2)


def checkerboard(size: int = 64) -> Picture:
    """A bright square, the slide, on dark ground; three regions."""
    slides = np.zeros((size, size), np.uint8)
    slides[20:36, 28:52] = 1
    rgb = np.where(slides[..., None], [200, 180, 160], [40, 60, 30]).astype(np.uint8)
    regions = 1 + slides.astype(np.uint16)
    regions[:10, :10] = 3
    classes = np.where(slides, LANDSLIDE, FOREST).astype(np.uint8)
    return Picture(rgb, classes, regions, weight=1.0, zooms=(1.0, 1.0))


# Losses


def test_window_logits_average_windows():
    maps = torch.arange(16.0).reshape(1, 1, 4, 4)
    expected = torch.tensor([[[[2.5, 4.5], [10.5, 12.5]]]]) + 1
    torch.testing.assert_close(losses.window_logits(maps, torch.tensor([1.0]), cells=2, step=2), expected)


def test_gate_loss_ignores_windows_that_say_nothing():
    logits = torch.tensor([0.0, 0.0, 50.0])
    share = torch.tensor([0.5, 0.0, 0.01])
    assert losses.gate_loss(logits, share, minimum=0.02).item() == pytest.approx(LN2)
    assert losses.gate_loss(logits[2:], share[2:], minimum=0.02).item() == 0


def test_focal_loss_by_hand():
    # At probability 1/2 the weight is 1/4 and the cross-entropy ln 2.
    assert losses.focal_loss(torch.zeros(1, 2, 2), torch.ones(1, 2, 2)).item() == pytest.approx(LN2 / 4)
    # A cell half covered, predicted half covered, has no weight.
    assert losses.focal_loss(torch.zeros(1, 2, 2), torch.full((1, 2, 2), 0.5)).item() == 0


def test_dice_loss_by_hand():
    logits = torch.full((1, 2, 2), 100.0)
    target = torch.tensor([[[1.0, 1.0], [0.0, 0.0]]])
    assert losses.dice_loss(logits, target).item() == pytest.approx(1 - (2 * 2 + 1) / (4 + 2 + 1))
    assert losses.dice_loss(-logits, torch.zeros(1, 2, 2)).item() == pytest.approx(0)


def test_mask_iou_by_hand():
    logits = torch.tensor([[[1.0, 1.0], [-1.0, -1.0]]]).repeat(3, 1, 1)
    target = torch.tensor([[[1.0, 0.4], [0.5, 0.0]], [[0.0, 0.0], [0.0, 0.0]], [[1.0, 1.0], [0.0, 0.0]]])
    torch.testing.assert_close(losses.mask_iou(logits, target), torch.tensor([1 / 3, 0.0, 1.0]))
    assert losses.mask_iou(torch.full((1, 2, 2), -1.0), torch.zeros(1, 2, 2)).item() == 0


def test_best_candidate_trains_the_best_and_a_little_the_rest():
    each = torch.tensor([[3.0, 1.0, 2.0]], requires_grad=True)
    loss = losses.best_candidate(each, rest=0.3)
    assert loss.item() == pytest.approx(0.7 * 1 + 0.3 * 2)
    loss.sum().backward()
    torch.testing.assert_close(each.grad, torch.tensor([[0.1, 0.8, 0.1]]))


# Judging


def test_area_under_curve_is_scikit_learns():
    rng = np.random.default_rng(0)
    truth = rng.random(200) < 0.3
    values = np.round(rng.normal(size=200) + truth, 1)  # with ties
    assert area_under_curve(values, truth) == pytest.approx(roc_auc_score(truth, values))
    assert math.isnan(area_under_curve(values, np.ones(200, bool)))


def test_best_threshold_is_scikit_learns():
    rng = np.random.default_rng(1)
    truth = rng.random(300) < 0.2
    values = rng.normal(size=300) + 2 + 1.5 * truth
    threshold, f1 = best_threshold([(values, truth)])
    # At the prevalence that it assumes, all landslides together weigh 5 % of the pixels.
    weights = np.where(truth, PREVALENCE / truth.sum(), (1 - PREVALENCE) / (~truth).sum())
    precision, recall, _ = precision_recall_curve(truth, values, sample_weight=weights)
    assert f1 == pytest.approx(np.max(2 * precision * recall / np.maximum(precision + recall, 1e-12)), abs=1e-6)
    found = values >= threshold
    taken = weights[found].sum()
    assert 2 * weights[found & truth].sum() / (taken + PREVALENCE) == pytest.approx(f1, abs=1e-6)


def test_ground_without_landslides_raises_the_threshold():
    truth = np.arange(1000) < 100
    values = np.where(truth, np.linspace(4, 1, 1000), 0.5)
    alone, _ = best_threshold([(values, truth)])
    with_ground, _ = best_threshold([(values, truth)], [np.full(1000, 3.8)])
    assert alone < with_ground
    assert best_threshold([(-values, truth)]) == (1e-3, 0.0)


def test_small_landslides_weigh_more():
    slides = np.zeros((128, 128), np.uint8)
    slides[0:60, 0:60] = 1  # 3600 px
    slides[80:105, 80:105] = 1  # 625 px
    slides[120:124, 8:12] = 1  # 16 px
    weights = weigh_slides(slides, 8)
    assert weights.shape == (16, 16)
    assert weights[2, 2] == 1  # large
    assert weights[11, 11] == 2  # the square root of 2500 / 625
    assert weights[15, 1] == 3  # the most
    assert weights[10, 3] == 1  # ground


def test_calibration_makes_frequencies_probabilities():
    rng = np.random.default_rng(2)
    logits = rng.normal(0, 3, 20000)
    truth = rng.random(20000) < 1 / (1 + np.exp(-(0.5 * logits - 1)))
    scale, shift = calibrate(logits, truth)
    assert (scale, shift) == pytest.approx((0.5, -1), abs=0.06)
    assert calibrate(logits, np.zeros(20000, bool)) == (1.0, 0.0)


def test_settling_keeps_what_the_gate_says():
    torch.manual_seed(0)
    network = build(RECIPES["short"].localizer).eval()
    module = LocalizerLosses(network)
    images = torch.randn(1, 3, 128, 128)
    with torch.inference_mode():
        gain = module.log_gain.exp()
        before = losses.window_logits(network(images) * gain, network.bias, 16, 8)
        peak = (network(images) * gain).max()
    constant = settle(module, {"gate/scale": 0.5, "gate/shift": -1.0, "map/threshold": peak.item()})
    with torch.inference_mode():
        after = losses.window_logits(network(images), network.bias, 16, 8)
        torch.testing.assert_close(after, 0.5 * before - 1)
        # What was the threshold is grey value 120 of 255.
        assert 255 * network(images).max().item() / constant == pytest.approx(120, abs=1e-3)
    assert module.log_gain.item() == 0


def test_localizer_losses_reward_a_map_on_the_slide():
    class Given(nn.Module):
        stride, bias = 8, torch.zeros(1)

        def __init__(self, maps: torch.Tensor) -> None:
            super().__init__()
            self.maps = maps
            self.head = nn.Conv2d(1, 1, 1, bias=False)
            nn.init.ones_(self.head.weight)

        def features(self, _images: torch.Tensor) -> torch.Tensor:
            return self.maps

    slides = torch.zeros(1, 1, 128, 128)
    slides[..., :32, :32] = 1
    on = torch.full((1, 1, 16, 16), 0.0)
    on[..., :4, :4] = 2 * CENTRE
    classes = torch.zeros(1, 16, 16, dtype=torch.long)
    for name in ("dense", "overlap"):
        right, wrong = (
            LocalizerLosses(Given(maps))(slides, slides, classes, torch.ones(1, 1, 16, 16))[name].item()
            for maps in (on, on.flip(-1))
        )
        assert right < 0.2 < 0.4 < wrong


def test_a_localizer_begins_with_the_trunk_beside_it(tmp_path):
    network = cast("PyramidLocalizer", build(RECIPES["short"].localizer))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    path = tmp_path / "segmenter.safetensors"
    _start_from_segmenter(network, None)  # none there: nothing changes
    torch.testing.assert_close(network.state_dict(), before, rtol=0, atol=0)
    sam = build(RECIPES["short"].segmenter)
    save_checkpoint(path, sam, _info("segmenter", RECIPES["short"].segmenter, 256, 4, None))
    _start_from_segmenter(network, path)
    for name, tensor in network.trunk.state_dict().items():
        kept = sam.image_encoder.trunk.state_dict()[name]
        torch.testing.assert_close(tensor, kept, rtol=1e-3, atol=1e-4)  # as halves
    torch.testing.assert_close(network.head.weight, before["head.weight"], rtol=0, atol=0)


# Pictures and samples


def test_cover_loss_by_hand():
    logits = torch.tensor([[1.0, 2.0, -1.0], [0.0, 3.0, 0.5]]).T[None, :, :, None]  # two cells, three classes
    told = losses.cover_loss(logits, torch.tensor([[[1], [0]]]), one=2, unknown=255)
    first, second = torch.tensor([1.0, 2.0, -1.0]).softmax(0), torch.tensor([0.0, 3.0, 0.5]).softmax(0)
    assert told.item() == pytest.approx(-(first[1].log() + second[0].log()).item() / 2, rel=1e-5)
    partly = losses.cover_loss(logits, torch.tensor([[[255], [0]]]), one=2, unknown=255)
    assert partly.item() == pytest.approx(-((1 - first[2]).log() + second[0].log()).item() / 2, rel=1e-5)


def test_regions_of_a_real_picture_follow_its_edges():
    rgb = np.full((80, 120, 3), 60, np.uint8)
    rgb[20:60, 30:90] = 200
    regions = segment_regions(rgb, 200.0)
    inside, outside = regions[24:56, 34:86], regions[:16, :26]
    assert (inside == inside[0, 0]).all()
    assert (outside == outside[0, 0]).all()
    assert inside[0, 0] != outside[0, 0]


def test_regions_are_numbered_by_class_and_connection():
    classes = np.array([[0, 0, 1, 0], [0, 0, 1, 0], [1, 1, 1, 0], [2, 1, 1, 0]], np.uint8)
    regions = number_regions(classes, minimum=2)
    assert len(np.unique(regions[regions > 0])) == 3
    assert regions[0, 0] != regions[0, 3]
    assert regions[0, 2] == regions[3, 1]
    assert regions[3, 0] == 0  # too small


def test_stretch_is_the_products():
    rgb = np.arange(256 * 3, dtype=np.uint16).reshape(16, 16, 3)
    low, high = np.percentile(rgb.reshape(-1, 3), (2, 98), axis=0)
    expected = np.clip((rgb - low) / (high - low), 0, 1) * 255
    np.testing.assert_allclose(stretch(rgb), expected, atol=1.01)


def test_scenes_are_drawn_once(tmp_path):
    first = synthetic_pictures([3], 96, (0.5,), folder=tmp_path, workers=1)[0]
    stamp = [path.stat().st_mtime_ns for path in tmp_path.iterdir()]
    again = synthetic_pictures([3], 96, (0.5,), folder=tmp_path, workers=1)[0]
    assert stamp == [path.stat().st_mtime_ns for path in tmp_path.iterdir()]
    for name in ("rgb", "classes", "regions"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))


def test_scenes_of_another_generator_are_not_reused(tmp_path, monkeypatch):
    synthetic_pictures([3], 96, (0.5,), folder=tmp_path, workers=1)
    monkeypatch.setattr(bundled_data, "_generator_version", lambda: "another")
    synthetic_pictures([3], 96, (0.5,), folder=tmp_path, workers=1)
    assert len(list(tmp_path.iterdir())) == 2


def test_folder_of_real_images(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    mask = np.zeros((20, 30), np.uint8)
    mask[5:9, 6:12] = 255
    for stem in ("a001", "a003"):
        Image.new("RGB", (30, 20), (10, 20, 30)).save(tmp_path / "images" / f"{stem}.png")
    Image.fromarray(mask).save(tmp_path / "masks" / "a001.png")
    (picture,) = read_pictures(tmp_path, exclude=("003",), zooms=(1, 1))
    np.testing.assert_array_equal(picture.slides, mask // 255)
    with pytest.raises(OptionError, match=r"a003.png has no .*a003.png"):
        read_pictures(tmp_path, exclude=(), zooms=(1, 1))
    with pytest.raises(OptionError, match="holds no image"):
        read_pictures(tmp_path, exclude=("1", "3"), zooms=(1, 1))
    Image.new("RGB", (30, 20), (10, 20, 30)).save(tmp_path / "images" / "c.tif")
    Image.fromarray(mask).save(tmp_path / "masks" / "c.png")
    assert len(read_pictures(tmp_path, exclude=("001", "003"), zooms=(1, 1))) == 1
    (tmp_path / "images" / "b.png").write_bytes(b"no image")
    with pytest.raises(OptionError, match=r"b.png .*cannot be read"):
        read_pictures(tmp_path, exclude=("001", "003"), zooms=(1, 1))


def test_sets_without_landslides_leave_out_what_is_reported(tmp_path):
    kept, reported = "img_0", "img_14"
    assert (is_reported(kept), is_reported(reported)) == (False, True)
    for place, names in {"farm": [kept, reported], "flights": ["brighton_1", "caliterra_7"], "notes": []}.items():
        (tmp_path / place).mkdir()
        for name in names:
            Image.new("RGB", (300, 100), (10, 200, 30)).save(tmp_path / place / f"{name}.png")
    (tmp_path / "farm" / "img_2.tif").write_bytes(b"no image")
    farm, flights = read_sets(tmp_path)
    assert [len(farm), len(flights)] == [1, 1]  # what cannot be read is left out, too
    assert not farm[0].slides.any()
    assert flights[0].weight == HARD_WEIGHT * farm[0].weight
    assert farm[0].zooms == (2.0, 2.2)
    with pytest.raises(OptionError, match="a folder a set"):
        read_sets(tmp_path / "notes")


def test_a_coarse_picture_has_the_pixels_that_extraction_sees():
    slides = np.zeros((64, 96), np.uint8)
    slides[16:32, 32:64] = LANDSLIDE
    rgb = np.repeat(np.where(slides == LANDSLIDE, 200, 40)[..., None], 3, axis=2).astype(np.uint8)
    picture = Picture(rgb, slides, np.zeros((64, 96), np.uint16), 1.0, (1, 1))
    coarse = seen_at(picture, 8, 2)
    assert coarse.rgb.shape == (16, 24, 3)
    assert coarse.slides[4:8, 8:16].all()
    assert coarse.slides.sum() == 32
    assert coarse.rgb[6, 12, 0] == 200


def test_samples_depend_on_seed_and_step_alone():
    def cut(seed: int, step: int) -> Sample:
        return draw([checkerboard()], 48, generator(seed, step), on_slide=0.5)

    same = [cut(0, 1), cut(0, 1)]
    np.testing.assert_array_equal(same[0].rgb, same[1].rgb)
    assert not np.array_equal(cut(0, 2).rgb, same[0].rgb)
    assert not np.array_equal(cut(1, 1).rgb, same[0].rgb)


@pytest.mark.parametrize("step", range(12))
def test_labels_turn_with_the_image(step, monkeypatch):
    monkeypatch.setattr("geolabel.training.samples.recolour", lambda rgb, *_: rgb)
    picture = replace(checkerboard(), zooms=(0.5, 2.0))
    sample = draw([picture], 48, generator(5, step), on_slide=1.0)
    bright = sample.rgb[..., 0] > 120
    disagree = (bright != (sample.slides > 0)).sum()
    outline = (np.diff(sample.slides, axis=0) != 0).sum() + (np.diff(sample.slides, axis=1) != 0).sum()
    assert sample.slides.any()
    assert disagree <= 0.7 * outline  # only at the edge, where one is interpolated
    np.testing.assert_array_equal(sample.regions == 2, sample.slides == 1)


def test_coarsening_takes_detail_and_keeps_the_mean():
    rgb = np.random.default_rng(0).integers(0, 255, (64, 48, 3), dtype=np.uint8)
    for i in range(5):
        coarse = coarsen(rgb, generator(0, i))
        assert coarse.shape == rgb.shape
        assert coarse.std() < 0.8 * rgb.std()
        assert coarse.mean() == pytest.approx(rgb.mean(), abs=3)


def test_recolouring_keeps_shape_and_changes_values():
    rgb = checkerboard().rgb
    changed = [recolour(rgb, generator(0, i)) for i in range(20)]
    assert all(image.shape == rgb.shape and image.dtype == np.uint8 for image in changed)
    assert all(not np.array_equal(image, rgb) for image in changed)


@pytest.mark.parametrize("seed", range(4))
def test_a_tint_has_the_colours_of_the_other_image(seed):
    rng = np.random.default_rng(seed)
    mixing = rng.normal(0, 12, (2, 3, 3))
    own, other = (np.clip(rng.standard_normal((96, 96, 3)) @ m + 128, 0, 255).astype(np.uint8) for m in mixing)
    tinted = tint(own, other, SimpleNamespace(integers=lambda low, _: low, uniform=lambda *_: 1.0))
    apart = [np.abs(colours.reshape(-1, 3).mean(0) - other.reshape(-1, 3).mean(0)).max() for colours in (tinted, own)]
    assert apart[0] < 2
    wanted, found, before = (np.cov(colours.reshape(-1, 3).T) for colours in (other, tinted, own))
    assert np.abs(found - wanted).max() < 0.35 * np.abs(before - wanted).max()


def test_repainting_changes_whole_regions_and_no_other():
    regions = np.zeros((64, 64), np.uint16)
    regions[8:40, 8:40], regions[50:53, 50:53] = 1, 2  # the second is too small to be painted
    rgb = np.random.default_rng(0).integers(90, 110, (64, 64, 3), dtype=np.uint8)
    none = np.zeros((64, 64), np.uint8)
    shifts = []
    for seed in range(40):
        painted = repaint(rgb, regions, none, np.random.default_rng(seed)).astype(float)
        assert np.abs(painted - rgb)[56:, 56:].max() <= 1  # rounding, and the blur of an edge 16 px away
        shifts.append(painted[16:32, 16:32].mean() - 100)
    assert np.mean(shifts) > 10  # bare ground becomes brighter
    assert np.std(shifts) > 10
    np.testing.assert_array_equal(repaint(rgb, np.zeros_like(regions), none, np.random.default_rng(0)), rgb)


@pytest.mark.parametrize("seed", range(6))
def test_a_whole_slide_fits_into_the_sample(seed, monkeypatch):
    monkeypatch.setattr("geolabel.training.samples._turn", lambda _: np.eye(2))
    picture = checkerboard()
    np.testing.assert_array_equal(picture.slide_boxes, [[28, 20, 52, 36]])
    sample = draw([picture], 16, np.random.default_rng(seed), on_slide=1.0, whole=1.0, changes=Changes(strength=0.0))
    frame = np.concatenate([sample.slides[[0, -1]].ravel(), sample.slides[:, [0, -1]].ravel()])
    assert sample.slides.any()
    assert not frame.any()
    others = [draw([picture], 16, np.random.default_rng(s), on_slide=1.0) for s in range(6)]
    assert any(other.slides[[0, -1]].any() for other in others)


def test_samples_are_laid_over_each_other():
    samples = [
        Sample(*(np.full(shape, n, kind) for shape, kind in (((8, 8, 3), "u1"), ((8, 8), "u1"), ((8, 8), "u2"))))
        for n in range(3)
    ]
    laid = lay_together(samples, np.random.default_rng(0), share=1.0)
    for n, sample in enumerate(laid):
        assert set(np.unique(sample.classes)) == {n, (n + 1) % 3}
        np.testing.assert_array_equal(sample.rgb, np.repeat(sample.classes[..., None], 3, 2))
        np.testing.assert_array_equal(sample.regions, sample.classes)
        rows, cols = np.nonzero(sample.classes != n)
        assert len(rows) == (np.ptp(rows) + 1) * (np.ptp(cols) + 1)
    assert [s.classes[0, 0] for s in samples] == [0, 1, 2]
    assert lay_together(samples, np.random.default_rng(0), share=0.0) == samples


def test_to_tensor_normalises():
    image = np.full((2, 3, 3), 100, np.uint8)
    image[..., 2] = 50
    out = to_tensor([image], mean=(90.0, 100.0, 50.0), std=(10.0, 1.0, 1.0))
    assert out.shape == (1, 3, 2, 3)
    torch.testing.assert_close(out[0, :, 0, 0], torch.tensor([1.0, 0.0, 0.0]))


# Objects and prompts


def test_objects_are_slides_first_and_no_region_inside_one():
    picture = checkerboard()
    sample = Sample(picture.rgb, picture.classes, picture.regions)
    chosen = choose_objects(sample, 4, 1.0, generator(0))
    slides = [mask for mask, is_slide in chosen if is_slide]
    others = [mask for mask, is_slide in chosen if not is_slide]
    assert len(slides) == 1
    np.testing.assert_array_equal(slides[0], picture.slides == 1)
    # Region 1 fills more than half of the sample, region 2 is the slide itself.
    assert len(others) == 1
    np.testing.assert_array_equal(others[0], picture.regions == 3)


@pytest.mark.parametrize("step", range(8))
def test_prompts_belong_to_their_object(step):
    mask = checkerboard().slides == 1
    sloppy = sloppy_prompt(mask, generator(0, step))
    x, y = sloppy.point.astype(int)
    assert mask[y, x]
    assert np.abs(sloppy.box - [28, 20, 51, 35]).max() < 12
    coarse = localizer_prompt(mask, generator(1, step), noise=0.0)
    # Whole cells that are at least half covered; 20 and 36 are in the middle of a cell.
    assert (coarse.box[:2] % 8 == 0).all()
    assert (coarse.box[2:] % 8 == 7).all()
    assert np.abs(coarse.box - [28, 20, 51, 35]).max() <= 8
    x0, y0, x1, y1 = coarse.box
    assert x0 <= coarse.point[0] <= x1
    assert y0 <= coarse.point[1] <= y1


def test_the_exact_prompt_is_box_and_centroid():
    crescent = np.zeros((8, 8), bool)
    crescent[1:7, 2] = crescent[1, 2:6] = crescent[6, 2:6] = True
    prompt = exact_prompt(crescent)
    np.testing.assert_array_equal(prompt.box, [2, 1, 5, 6])
    np.testing.assert_allclose(prompt.point, [2 + 12 / 12, 3.5])
    assert not crescent[3, 3]


def test_segmenter_answers_a_batch_as_segment_anything_answers_one_image():
    torch.manual_seed(0)
    sam = build(RECIPES["short"].segmenter).eval()
    module = SegmenterLosses(sam)
    images = torch.randn(2, 3, 256, 256)
    points, boxes = torch.tensor([[40.0, 50.0], [90.0, 80.0]]), torch.tensor([[20.0, 30, 70, 90], [60.0, 60, 200, 120]])
    with torch.inference_mode():
        logits, quality = module.answer(images, torch.tensor([1, 0]), torch.tensor([0, 0]), points, boxes)
        for row, image in enumerate((1, 0)):
            sparse, dense = sam.prompt_encoder((points[row, None, None], torch.ones(1, 1)), boxes[row, None], None)
            embedding = sam.image_encoder(images[image, None])
            position = sam.prompt_encoder.get_dense_pe()
            expected, iou = sam.mask_decoder(embedding, position, sparse, dense, multimask_output=True)
            torch.testing.assert_close(logits[row, 1:], expected[0], atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(quality[row, 1:], iou[0], atol=1e-4, rtol=1e-4)


def test_logits_become_probabilities():
    rng = np.random.default_rng(3)
    logits = rng.normal(0, 1, 50_000)
    truth = rng.random(50_000) < 1 / (1 + np.exp(-2.5 * logits))
    assert segmenter_objective.logit_scale(np.where(truth, logits, -logits)) == pytest.approx(2.5, rel=0.05)


def test_settling_scales_every_mask_and_nothing_else():
    torch.manual_seed(0)
    module = SegmenterLosses(build(RECIPES["short"].segmenter)).eval()
    asked = (
        torch.randn(1, 3, 128, 128),
        torch.tensor([0]),
        torch.tensor([0, 0]),
        None,
        torch.tensor([[9.0, 9, 60, 70]]),
    )
    with torch.inference_mode():
        logits, quality = module.answer(*asked)
    segmenter_objective.settle(module, {"logit/scale": 3.0})
    with torch.inference_mode():
        scaled, same = module.answer(*asked)
    torch.testing.assert_close(scaled, 3 * logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(same, quality)


# Fitting


class Line:
    """An objective small enough to follow: the slope of y = 3 x."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.module = Slope()

    def batch(self, step: int) -> dict[str, torch.Tensor]:
        return {"x": torch.from_numpy(generator(0, step).normal(size=(16, 1))).float()}

    def figures(self, module: nn.Module) -> dict[str, float]:
        return {"score": -abs(module.line.weight.item() - 3)}


class Slope(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(1, 1, bias=False)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"square": (self.line(x) - 3 * x).square().mean()}


def read_curves(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_fit_finds_the_slope_and_keeps_the_best(tmp_path):
    objective = Line()
    figures = fit(objective, Schedule(cycles=(120,), rate=0.2, evaluations=4, average=0.9, decay=0), tmp_path)
    assert objective.module.line.weight.item() == pytest.approx(3, abs=0.05)
    assert figures["steps"] == 120
    curves = read_curves(tmp_path / "curves.csv")
    assert len(curves) == 120
    assert float(curves[-1]["square"]) < 0.01 < float(curves[0]["square"])
    judged = [float(row["score"]) for row in read_curves(tmp_path / "selection.csv")]
    assert len(judged) == 4
    assert figures["score"] == pytest.approx(max(judged))
    shown = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in shown.Scalars("train/square")] == list(range(1, 121))
    assert [event.value for event in shown.Scalars("selection/score")] == pytest.approx(judged)


@pytest.mark.parametrize("interrupted", [False, True])
def test_fit_keeps_the_mean_of_the_last_evaluations(tmp_path, interrupted):
    """Also where the training stopped among them."""
    seen: list[float] = []

    class Seen(Line):
        def figures(self, module: nn.Module) -> dict[str, float]:
            seen.append(module.line.weight.item())
            return super().figures(module)

    schedule = Schedule(cycles=(40,), rate=0.1, evaluations=8, average=0.5, keeps_last=3)
    if interrupted:

        class Stopping(Seen):
            def batch(self, step: int) -> dict[str, torch.Tensor]:
                if step == 37:
                    raise KeyboardInterrupt
                return super().batch(step)

        with pytest.raises(KeyboardInterrupt):
            fit(Stopping(), schedule, tmp_path)
        assert len(seen) == 7
    objective = Seen()
    fit(objective, schedule, tmp_path, resume=True)
    weights = seen[:8]
    assert objective.module.line.weight.item() == pytest.approx(np.mean(weights[-3:]), abs=1e-6)
    assert len(set(weights)) == 8


def test_resumed_fit_equals_an_uninterrupted_one(tmp_path):
    schedule = Schedule(cycles=(20, 20), rate=0.1, evaluations=4)
    whole = Line()
    fit(whole, schedule, tmp_path / "whole")

    class Interrupted(Line):
        def batch(self, step: int) -> dict[str, torch.Tensor]:
            if step == 27:
                raise KeyboardInterrupt
            return super().batch(step)

    with pytest.raises(KeyboardInterrupt):
        fit(Interrupted(), schedule, tmp_path / "parts")
    resumed = Line()
    fit(resumed, schedule, tmp_path / "parts", resume=True)
    assert resumed.module.line.weight.item() == whole.module.line.weight.item()
    steps = [int(row["step"]) for row in read_curves(tmp_path / "parts" / "curves.csv")]
    assert steps == list(range(1, 41))
    shown = EventAccumulator(str(tmp_path / "parts" / "tensorboard")).Reload()
    assert [event.step for event in shown.Scalars("train/square")] == steps


def test_schedule_ends_in_time():
    schedule = Schedule(cycles=(600, 400), rate=1.0, minutes=2)
    assert schedule.progress(10, seconds=60) == 0.5
    assert schedule.progress(10, seconds=121) == 1
    assert schedule.rate_at(0.6 * schedule.warmup) == pytest.approx(1)
    assert schedule.rate_at(0.6 + 0.4 * schedule.warmup) == pytest.approx(0.5)
    assert schedule.rate_at(0.6 - 1e-9) == pytest.approx(0.01, abs=1e-4)
    assert schedule.rate_at(1) == pytest.approx(0.005)


# The whole


def test_bundled_training_in_miniature(tmp_path):
    runner = CliRunner()
    common = ["bundled", "--preset", "short", "--threads", "1", "--scenes", str(tmp_path / "scenes"), "--json"]
    result = runner.invoke(train, [*common, "--out", str(tmp_path / "a")], catch_exceptions=False)
    assert result.exit_code == 0
    assert json.loads(result.stdout)["localizer"] == str(tmp_path / "a" / "localizer.safetensors")
    for kind in ("localizer", "segmenter"):
        state, info = load_checkpoint(tmp_path / "a" / f"{kind}.safetensors")
        build(info.architecture).load_state_dict(state)
        assert info.kind == kind
        assert (info.constant is not None) == (kind == "localizer")
        assert f"# The bundled {kind}" in (tmp_path / "a" / f"{kind}.md").read_text()
        curves = read_curves(tmp_path / "a" / kind / "curves.csv")
        total = [sum(float(row[name]) for name in row if name not in {"step", "seconds", "rate"}) for row in curves]
        assert np.mean(total[-8:]) < np.mean(total[:8])
    # The same seed, and the same segmenter to begin with, make the same weights.
    (tmp_path / "b").mkdir()
    shutil.copy(tmp_path / "a" / "segmenter.safetensors", tmp_path / "b")
    train_bundled(tmp_path / "b", preset="short", networks=("localizer",), scenes=tmp_path / "scenes")
    again = load_checkpoint(tmp_path / "b" / "localizer.safetensors")[0]
    for name, tensor in load_checkpoint(tmp_path / "a" / "localizer.safetensors")[0].items():
        torch.testing.assert_close(again[name], tensor, rtol=0, atol=0)


def test_training_goes_on_from_given_weights(tmp_path, monkeypatch):
    still = replace(RECIPES["short"], localizer_schedule=Schedule(cycles=(1,), rate=0.0))
    monkeypatch.setitem(RECIPES, "short", still)
    monkeypatch.setattr("geolabel.training.localizer_objective.settle", lambda *_: 1.0)
    torch.manual_seed(5)
    network, first = build(still.localizer), tmp_path / "first"
    first.mkdir()
    save_checkpoint(first / "localizer.safetensors", network, _info("localizer", still.localizer, 64, 8, 1.0))
    begun = load_checkpoint(first / "localizer.safetensors")[0]
    train_bundled(tmp_path / "on", preset="short", networks=("localizer",), init=first)
    ended, info = load_checkpoint(tmp_path / "on" / "localizer.safetensors")
    learned = dict(network.named_parameters())  # running means follow the images at any rate
    assert all(torch.equal(ended[name], begun[name]) for name in learned)
    assert info.trained["began with"] == hashlib.sha256((first / "localizer.safetensors").read_bytes()).hexdigest()
    assert info.trained["began with"] in (tmp_path / "on" / "localizer.md").read_text()

    other = build(still.localizer | {"features": 8})
    save_checkpoint(first / "localizer.safetensors", other, _info("localizer", still.localizer, 64, 8, 1.0))
    with pytest.raises(WeightsError, match="has another architecture"):
        train_bundled(tmp_path / "off", preset="short", networks=("localizer",), init=first)


def test_a_localizer_of_one_octave_begins_one_of_two(tmp_path):
    architecture = RECIPES["short"].localizer
    torch.manual_seed(5)
    single = build({name: value for name, value in architecture.items() if name != "octaves"})
    save_checkpoint(tmp_path / "one.safetensors", single, _info("localizer", architecture, 32, 8, 1.0))
    network = build(architecture)
    _start(network, tmp_path / "one.safetensors")
    torch.testing.assert_close(network.head.weight, single.head.weight, rtol=1e-3, atol=1e-4)  # as halves


def test_the_mean_of_localizers_is_calibrated_anew(tmp_path, monkeypatch):
    recipe = RECIPES["short"]
    files = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        files.append(tmp_path / f"{seed}.safetensors")
        info = replace(_info("localizer", recipe.localizer, 32, 8, 1.0), trained={"data": ["drawn", f"only {seed}"]})
        save_checkpoint(files[-1], build(recipe.localizer), info)
    monkeypatch.setitem(RECIPES, "full", recipe)
    asked = ["average", *map(str, (*files, files[1])), "--out", str(tmp_path / "mean"), "--threads", "1"]
    result = CliRunner().invoke(train, asked, catch_exceptions=False)
    assert result.exit_code == 0
    state, info = load_checkpoint(tmp_path / "mean" / "localizer.safetensors")
    first, second = (load_checkpoint(file)[0] for file in files)
    same = "trunk.stem.0.0.weight"
    torch.testing.assert_close(state[same], (first[same] + 2 * second[same]) / 3, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(
        state["head.weight"],
        info.trained["selection"]["gate/scale"] * (first["head.weight"] + 2 * second["head.weight"]) / 3,
        rtol=1e-3,
        atol=1e-4,
    )
    assert info.trained["data"] == ["drawn", "only 1", "only 2"]
    assert info.trained["mean of"] == [hashlib.sha256(f.read_bytes()).hexdigest() for f in (*files, files[1])]
    assert info.trained["mean of"][0] in (tmp_path / "mean" / "localizer.md").read_text()
    assert isinstance(CliRunner().invoke(train, asked).exception, OutputError)  # is not replaced unasked
    other = build(recipe.localizer | {"features": 8})
    architecture = recipe.localizer | {"features": 8}
    save_checkpoint(files[0], other, _info("localizer", architecture, 32, 8, 1.0))
    with pytest.raises(WeightsError, match="has another architecture"):
        average_localizers(tmp_path / "none", files, preset="short")


def test_a_folder_to_begin_with_has_to_hold_networks(tmp_path):
    (tmp_path / "empty").mkdir()
    asked = ["bundled", "--out", str(tmp_path / "out"), "--preset", "short", "--init", str(tmp_path / "empty")]
    result = CliRunner().invoke(train, asked)
    assert isinstance(result.exception, OptionError)
    assert "holds no localizer.safetensors" in str(result.exception)


def test_finished_weights_are_not_replaced_unasked(tmp_path):
    (tmp_path / "segmenter.safetensors").touch()
    result = CliRunner().invoke(train, ["bundled", "--out", str(tmp_path), "--preset", "short"])
    assert result.exit_code != 0
    assert "give --overwrite" in str(result.exception)

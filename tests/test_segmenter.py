"""SamSegmenter: equal to segment-anything's own predictor, for any mixture of prompts."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from segment_anything import SamPredictor
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

from geolabel.masks import EDGE, FAINT, quantise_logits, stability_score
from geolabel.models import sam as segmenters
from geolabel.models.on_torch import TorchSam
from geolabel.models.sam import SamSegmenter
from geolabel.parts import Segmenter
from geolabel.prompts import BACKGROUND, FOREGROUND, PADDING, Prompts

SIDE = 64
PEAKS = torch.tensor([-2.5, -1.5, -0.5])[:, None, None]
"""Highest logits of three candidates, of which little is not faint."""
GSD_RANGE = (0.1, 10.0)


@pytest.fixture(scope="module")
def sam() -> Sam:
    """A vision transformer of the official shape, tiny and random, whose masks are neither empty nor full."""
    torch.manual_seed(3)
    dim, cells = 32, SIDE // 16
    encoder = ImageEncoderViT(
        img_size=SIDE,
        embed_dim=32,
        depth=2,
        num_heads=2,
        out_chans=dim,
        use_rel_pos=True,
        window_size=2,
        global_attn_indexes=(1,),
        norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
    )
    prompts = PromptEncoder(dim, (cells, cells), (SIDE, SIDE), mask_in_chans=4)
    decoder = MaskDecoder(
        transformer_dim=dim,
        transformer=TwoWayTransformer(depth=2, embedding_dim=dim, mlp_dim=32, num_heads=2),
        iou_head_hidden_dim=16,
    )
    network = Sam(encoder, prompts, decoder)
    for parameter in network.mask_decoder.output_hypernetworks_mlps.parameters():
        parameter.data *= 4
    return network.eval().requires_grad_(False)


def image_of(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def mixed_prompts():
    """Box and point, box, point, two points, box and two points: every kind of call, in no order."""
    nothing = [np.nan] * 4
    return Prompts.build(
        boxes=np.array([[4, 6, 30, 28], [10, 2, 40, 20], nothing, [0, 0, 12, 40], nothing, [8, 8, 20, 30.0]]),
        points=np.array(
            [
                [[9, 9], [0, 0]],
                [[0, 0], [0, 0]],
                [[0, 0], [20, 11]],
                [[5, 30], [0, 0]],
                [[3, 3], [30, 12]],
                [[10, 10], [19, 29]],
            ],
            float,
        ),
        labels=np.array(
            [
                [FOREGROUND, PADDING],
                [PADDING, PADDING],
                [PADDING, FOREGROUND],
                [FOREGROUND, PADDING],
                [FOREGROUND, BACKGROUND],
                [FOREGROUND, BACKGROUND],
            ]
        ),
        ids=np.array([5, 3, 9, 1, 7, 2]),
    )


def predict(network, image, prompts, *, multimask):
    """What segment-anything's predictor answers, one object at a time: logits, predicted IoU."""
    predictor = SamPredictor(network)
    predictor.set_image(image)
    for box, points, labels in zip(prompts.boxes, prompts.points, prompts.labels, strict=True):
        real = labels != PADDING
        logits, quality, _ = predictor.predict(
            point_coords=points[real] if real.any() else None,
            point_labels=labels[real] if real.any() else None,
            box=None if np.isnan(box).any() else box - [0, 0, 1, 1],
            multimask_output=multimask,
            return_logits=True,
        )
        yield logits, quality


def spy_on_logits(monkeypatch):
    """Logits in full: nothing is left out as faint."""
    seen = []
    monkeypatch.setattr(segmenters, "FAINT_LOGIT", -np.inf)

    def spy(logits):
        seen.append(logits.copy())
        return quantise_logits(logits)

    monkeypatch.setattr(segmenters, "quantise_logits", spy)
    return seen


def close_scores(scores, expected):
    """A tolerance of 1e-4 on the logit is at most one step of the score; the step that ends in faintness ends at 0."""
    step = np.abs(scores.astype(int) - expected)
    return ((step <= 1) | (np.maximum(scores, expected) == FAINT) & (np.minimum(scores, expected) == 0)).all()


@pytest.mark.parametrize("size", [(64, 64), (48, 40), (37, 61), (33, 64)])
@pytest.mark.parametrize(
    ("selection", "multimask", "pick"),
    [
        ("best_iou", True, np.argmax),
        ("first", True, lambda quality: 0),
        ("whole", True, lambda quality: 2),
        ("single", False, lambda quality: 0),
    ],
)
def test_equals_the_predictor_of_segment_anything(sam, size, selection, multimask, pick):
    image, prompts = image_of(*size), mixed_prompts()
    segment = SamSegmenter(TorchSam(sam, batch=1), gsd_range=GSD_RANGE, selection=selection)
    (masks,) = segment([image], [prompts])
    assert masks.scores.shape == (6, *size)
    assert masks.prompt_ids.tolist() == [5, 3, 9, 1, 7, 2]
    for k, (logits, quality) in enumerate(predict(sam, image, prompts, multimask=multimask)):
        chosen = pick(quality)
        assert masks.candidates[k] == chosen + multimask
        assert masks.predicted_iou[k] == pytest.approx(np.clip(quality[chosen], 0, 1), abs=1e-4)
        assert masks.stability[k] == pytest.approx(stability_score(logits[chosen]), abs=2e-3)
        assert close_scores(masks.scores[k], quantise_logits(logits[chosen]))
        far = np.abs(logits[chosen]) > 1e-4
        assert ((masks.scores[k] >= EDGE) == (logits[chosen] > 0))[far].all()


def test_logits_equal_the_predictors_to_a_tenth_of_a_thousandth(sam, monkeypatch):
    seen = spy_on_logits(monkeypatch)
    image, prompts = image_of(50, 64), mixed_prompts()[:1]
    SamSegmenter(TorchSam(sam, batch=1), gsd_range=GSD_RANGE, selection="first")([image], [prompts])
    ((logits, _),) = predict(sam, image, prompts, multimask=True)
    assert 0 < (logits[0] > 0).mean() < 1  # a mask worth comparing
    np.testing.assert_allclose(seen[0], logits[0], atol=1e-4)


@pytest.mark.parametrize("size", [(64, 64), (64, 37), (20, 64)])
def test_what_is_faint_is_left_out_and_nothing_else_changes(sam, size, monkeypatch):
    image, prompts = image_of(*size), mixed_prompts()
    # logits lowered until most of each mask is faint
    decode = sam.mask_decoder.forward

    def lowered(**given_):
        logits, quality = decode(**given_)
        return logits - logits.amax(dim=(-2, -1), keepdim=True) + torch.tensor([-2.5, -1.5, -0.5])[
            :, None, None
        ], quality

    monkeypatch.setattr(sam.mask_decoder, "forward", lowered)
    segment = SamSegmenter(TorchSam(sam, resize=False, batch=1), gsd_range=GSD_RANGE)
    (cropped,) = segment([image], [prompts])
    areas = []
    monkeypatch.setattr(
        segmenters, "quantise_logits", lambda logits: areas.append(logits.size) or quantise_logits(logits)
    )
    segment([image], [prompts])
    monkeypatch.setattr(segmenters, "FAINT_LOGIT", -np.inf)
    (whole,) = segment([image], [prompts])
    assert sum(areas[:6]) < sum(areas[6:]) == 6 * size[0] * size[1]
    assert np.array_equal(cropped.scores, whole.scores)
    assert np.array_equal(cropped.stability, whole.stability)
    assert whole.scores.any()
    assert not ((whole.scores > 0) & (whole.scores < FAINT)).any()


def test_selections_differ(sam):
    image, prompts = image_of(64, 64), mixed_prompts()
    scores = [
        SamSegmenter(TorchSam(sam, batch=1), gsd_range=GSD_RANGE, selection=selection)([image], [prompts])[0].scores
        for selection in ("first", "whole", "single")
    ]
    assert not np.array_equal(scores[0], scores[1])
    assert not np.array_equal(scores[0], scores[2])


def test_a_batch_equals_one_by_one_whatever_the_sizes(sam, monkeypatch):
    images = [image_of(64, 64, 1), image_of(40, 64, 2), image_of(64, 20, 3)]
    prompts = [mixed_prompts(), mixed_prompts()[2:4], mixed_prompts()[:1]]
    seen = spy_on_logits(monkeypatch)
    together = SamSegmenter(TorchSam(sam, batch=2), gsd_range=GSD_RANGE, prompts_per_batch=1)(images, prompts)
    batched = seen.copy()
    seen.clear()
    alone = SamSegmenter(TorchSam(sam, batch=1), gsd_range=GSD_RANGE, prompts_per_batch=1)
    for image, asked, masks in zip(images, prompts, together, strict=True):
        (expected,) = alone([image], [asked])
        assert masks.prompt_ids.tolist() == expected.prompt_ids.tolist()
        np.testing.assert_allclose(masks.predicted_iou, expected.predicted_iou, atol=1e-4)
    assert len(batched) == len(seen) == 9
    for a, b in zip(batched, seen, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_the_same_batch_gives_the_same_bytes_whoever_shares_it(sam):
    images, prompts = [image_of(64, 64, s) for s in range(3)], [mixed_prompts()] * 3
    segment = SamSegmenter(TorchSam(sam, batch=4), gsd_range=GSD_RANGE)
    whole = segment(images, prompts)
    others = [image_of(64, 64, s) for s in (5, 6)]
    assert np.array_equal(whole[2].scores, segment([*others, images[2]], prompts)[2].scores)
    assert np.array_equal(whole[0].scores, segment(images, prompts)[0].scores)  # nothing is remembered


def test_prompts_of_one_kind_share_a_call(sam, monkeypatch):
    sizes = []
    decoder = sam.mask_decoder.forward

    def counting(**given_):
        sizes.append(len(given_["sparse_prompt_embeddings"]))
        return decoder(**given_)

    monkeypatch.setattr(sam.mask_decoder, "forward", counting)
    boxes = Prompts.build(boxes=np.tile([4.0, 4, 20, 20], (7, 1)))
    SamSegmenter(TorchSam(sam, batch=1), gsd_range=GSD_RANGE, prompts_per_batch=3)([image_of(32, 32)], [boxes])
    assert sizes == [3, 3, 1]


def test_images_without_prompts_are_not_encoded(sam, monkeypatch):
    def refuse(images):
        raise AssertionError("the encoder ran")

    monkeypatch.setattr(sam.image_encoder, "forward", refuse)
    segment = SamSegmenter(TorchSam(sam), gsd_range=GSD_RANGE)
    masks = segment([image_of(10, 12), image_of(64, 64)], [Prompts.build(), Prompts.build()])
    assert [m.scores.shape for m in masks] == [(0, 10, 12), (0, 64, 64)]
    assert segment([], []) == []


def test_answers_stay_with_their_image_when_others_have_no_prompts(sam):
    images = [image_of(64, 64, s) for s in range(3)]
    segment = SamSegmenter(TorchSam(sam, batch=1), gsd_range=GSD_RANGE)
    masks = segment(images, [mixed_prompts(), Prompts.build(), mixed_prompts()[:2]])
    assert [len(m) for m in masks] == [6, 0, 2]
    assert np.array_equal(masks[2].scores, segment(images[2:], [mixed_prompts()[:2]])[0].scores)


def test_without_resizing_small_images_keep_their_pixels(sam, monkeypatch):
    seen = spy_on_logits(monkeypatch)
    image, prompts = image_of(30, 40), mixed_prompts()[:1]
    SamSegmenter(TorchSam(sam, resize=False, batch=1), gsd_range=GSD_RANGE, selection="first")([image], [prompts])
    # The predictor agrees when it is told that the image already has the encoder's scale.
    predictor = SamPredictor(sam)
    predictor.original_size = predictor.input_size = (30, 40)
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None]
    predictor.features = sam.image_encoder(sam.preprocess(pixels))
    predictor.is_image_set = True
    logits, _, _ = predictor.predict_torch(
        torch.tensor([[[9.0, 9.0]]]), torch.tensor([[1]]), torch.tensor([[4.0, 6, 29, 27]]), return_logits=True
    )
    np.testing.assert_allclose(seen[0], logits[0, 0], atol=1e-4)


def test_an_image_larger_than_the_window_is_refused(sam):
    segment = SamSegmenter(TorchSam(sam), gsd_range=GSD_RANGE)
    with pytest.raises(ValueError, match=r"\(65, 10\) px exceeds the segmenter's window of 64 px"):
        segment([image_of(65, 10)], [mixed_prompts()])


def test_boxes_become_corner_pixels():
    # columns 2..4 and row 7: SAM adds half a pixel to each corner and so speaks of the centres of these
    assert segmenters.corner_pixels(np.array([[2.0, 7, 5, 8]])).tolist() == [[2, 7, 4, 7]]


def test_bf16_keeps_to_the_answer(sam):
    image, prompts = image_of(64, 64), mixed_prompts()
    (exact,) = SamSegmenter(TorchSam(sam, batch=1), gsd_range=GSD_RANGE, selection="first")([image], [prompts])
    (rough,) = SamSegmenter(TorchSam(sam, batch=1, precision="bf16"), gsd_range=GSD_RANGE, selection="first")(
        [image], [prompts]
    )
    assert (exact.binary == rough.binary).mean() > 0.95
    assert not np.array_equal(exact.scores, rough.scores)


def test_it_is_a_segmenter(sam):
    segment: Segmenter = SamSegmenter(TorchSam(sam), gsd_range=GSD_RANGE)
    assert (segment.window, segment.gsd_range) == (SIDE, GSD_RANGE)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_gpu_agrees_with_the_cpu(sam):
    images, prompts = [image_of(64, 50, s) for s in range(3)], [mixed_prompts()] * 3
    expected = SamSegmenter(TorchSam(sam), gsd_range=GSD_RANGE, selection="first")(images, prompts)
    try:
        found = SamSegmenter(TorchSam(sam, device="cuda"), gsd_range=GSD_RANGE, selection="first")(images, prompts)
    finally:
        sam.to("cpu")
    for a, b in zip(found, expected, strict=True):
        assert np.abs(a.scores.astype(int) - b.scores).max() <= 2
        np.testing.assert_allclose(a.predicted_iou, b.predicted_iou, atol=1e-3)

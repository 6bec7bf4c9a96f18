"""Everything mode: equal to segment-anything's own mask generator, mask by mask and in its order."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from segment_anything import SamAutomaticMaskGenerator, SamPredictor
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from torchvision.ops import nms

from geolabel.errors import OptionError
from geolabel.masks import EVERY_CANDIDATE, FeaturedMasks, Filters
from geolabel.models.everything import EverythingSegmenter, _distinct, pool
from geolabel.models.on_torch import TorchSam
from geolabel.parts import Everywhere, Segmenter
from geolabel.prompters import GridPrompter
from geolabel.prompts import Prompts

SIDE = 64
BIAS = torch.tensor([0.5, 2.46, 1.5, 2.18])
"""Brings the predicted IoU of the three candidates near one half."""
LOOSE = Filters(predicted_iou=0.45, stability=0.8, offset=0.1, duplicate=0.97)


@pytest.fixture(scope="module")
def sam() -> Sam:
    """Tiny and random; its answers differ from point to point, its predicted IoU spreads round a half."""
    torch.manual_seed(5)
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
    decoder = MaskDecoder(
        transformer_dim=dim,
        transformer=TwoWayTransformer(depth=2, embedding_dim=dim, mlp_dim=32, num_heads=2),
        iou_head_hidden_dim=16,
    )
    network = Sam(encoder, PromptEncoder(dim, (cells, cells), (SIDE, SIDE), mask_in_chans=4), decoder)
    for parameter in network.mask_decoder.output_hypernetworks_mlps.parameters():
        parameter.data *= 4
    last = network.mask_decoder.iou_prediction_head.layers[-1]
    last.weight.data *= 10
    last.bias.data += BIAS
    return network.eval().requires_grad_(False)


def image_of(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def everything(sam: Sam, filters: Filters = LOOSE, **options: object) -> EverythingSegmenter:
    place = {name: options.pop(name) for name in ("resize", "device", "precision", "batch") if name in options}
    network = TorchSam(sam, **place)  # type: ignore[arg-type]
    return EverythingSegmenter(network, gsd_range=(0.1, 10.0), filters=filters, **options)  # type: ignore[arg-type]


def generate(sam: Sam, image: np.ndarray, points: int, filters: Filters = LOOSE) -> list[dict]:
    return SamAutomaticMaskGenerator(
        sam,
        points_per_side=points,
        points_per_batch=16,
        pred_iou_thresh=filters.predicted_iou,
        stability_score_thresh=filters.stability,
        stability_score_offset=filters.offset,
        box_nms_thresh=filters.duplicate,
    ).generate(image)


@pytest.mark.parametrize("size", [(64, 64), (48, 64), (40, 30), (37, 61)])
@pytest.mark.parametrize(("filters", "least"), [(LOOSE, 1), (replace(LOOSE, duplicate=1.0), 15)])
def test_equals_the_mask_generator_of_segment_anything(
    sam: Sam, size: tuple[int, int], filters: Filters, least: int
) -> None:
    image, grid = image_of(*size), GridPrompter(6).over(*size)
    expected = generate(sam, image, 6, filters)
    # images before and after it make a batch of three, the last of two padded
    segment = everything(sam, filters, batch=2)
    found = segment([image_of(*size, 1), image, image_of(*size, 2)], [grid[:3], grid, grid[:2]])[1]
    assert len(expected) >= least
    assert len(found) == len(expected)
    for k, one in enumerate(expected):
        assert (found.binary[k] != one["segmentation"]).mean() < 1e-3  # logits of zero, to a last digit
        assert found.predicted_iou[k] == pytest.approx(np.clip(one["predicted_iou"], 0, 1), abs=1e-4)
        assert found.stability[k] == pytest.approx(one["stability_score"], abs=2e-3)
        assert grid.points[found.prompt_ids[k], 0].tolist() == pytest.approx(one["point_coords"][0])


def test_masks_come_by_falling_predicted_iou_and_several_to_a_point(sam: Sam) -> None:
    (found,) = everything(sam, EVERY_CANDIDATE)([image_of(64, 64)], [GridPrompter(3).over(64, 64)])
    assert (np.diff(found.predicted_iou) <= 0).all()
    assert len(found) > 9
    assert set(found.candidates.tolist()) == {1, 2, 3}


def test_filters_leave_out_and_duplicates_go(sam: Sam) -> None:
    image, grid = image_of(64, 64), GridPrompter(6).over(64, 64)

    def count(**changes: float) -> int:
        return len(everything(sam, Filters(**{**vars(EVERY_CANDIDATE), **changes}))([image], [grid])[0])

    assert count() > count(predicted_iou=0.5) > 0
    assert count() > count(stability=0.15) > 0
    assert count() > count(duplicate=0.97) > 0


def test_an_image_without_prompts_is_not_encoded(sam: Sam, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sam.image_encoder, "forward", lambda *_: pytest.fail("encoded"))
    (found,) = everything(sam, features=True)([image_of(20, 30)], [Prompts.build()])
    assert (len(found), found.scores.shape, found.features.shape) == (0, (0, 20, 30), (0, 32))


def test_without_resizing_small_images_keep_their_pixels(sam: Sam) -> None:
    image, grid = image_of(30, 40), GridPrompter(4).over(30, 40)
    (found,) = everything(sam, EVERY_CANDIDATE, resize=False)([image], [grid])
    # The predictor agrees when it is told that the image already has the encoder's scale.
    predictor = SamPredictor(sam)
    predictor.original_size = predictor.input_size = (30, 40)
    with torch.inference_mode():
        predictor.features = sam.image_encoder(sam.preprocess(torch.from_numpy(image).permute(2, 0, 1)[None]))
    predictor.is_image_set = True
    masks, quality, _ = predictor.predict_torch(torch.from_numpy(grid.points), torch.ones((16, 1), dtype=torch.int))
    solid = [(q, mask.sum()) for q, mask in zip(quality.flatten(), masks.flatten(0, 1), strict=True) if mask.any()]
    expected = sorted(((float(q), int(area)) for q, area in solid), reverse=True)
    assert len(found) == len(expected) > 0
    areas = found.binary.sum(axis=(1, 2))
    np.testing.assert_allclose(areas, [area for _, area in expected], atol=2)


def test_features_are_the_embedding_under_the_mask(sam: Sam) -> None:
    image, grid = image_of(64, 64), GridPrompter(3).over(64, 64)
    (found,) = everything(sam, EVERY_CANDIDATE, features=True, batch=1)([image], [grid])
    assert isinstance(found, FeaturedMasks)
    with torch.inference_mode():
        embedding = sam.image_encoder(sam.preprocess(torch.from_numpy(image).permute(2, 0, 1)[None]))[0].numpy()
    enlarged = embedding.repeat(16, axis=1).repeat(16, axis=2)
    expected = np.stack([enlarged[:, mask].mean(axis=1) for mask in found.binary])
    np.testing.assert_allclose(found.features, expected, atol=2e-3)


def test_boxes_and_points_are_answered_too_but_not_mixed(sam: Sam) -> None:
    boxes = np.array([[4, 6, 30, 28.0], [10, 2, 40, 20]])
    both = Prompts.build(boxes=boxes, points=np.array([[9, 9.0], [20, 10]]))
    image = image_of(64, 64)
    assert len(everything(sam, EVERY_CANDIDATE)([image], [both])[0]) == 6
    assert len(everything(sam, EVERY_CANDIDATE)([image], [both.only("box")])[0]) == 6
    mixed = Prompts.concatenate([both[:1], both[1:].only("point")])
    with pytest.raises(ValueError, match="of several kinds"):
        everything(sam)([image], [mixed])
    with pytest.raises(ValueError, match="exceeds the segmenter's window of 64 px"):
        everything(sam)([image_of(65, 20)], [both])


@pytest.mark.parametrize("most", [0.0, 0.3, 0.7, 1.0])
def test_duplicates_are_those_of_torchvision(most: float) -> None:
    random = np.random.default_rng(0)
    first = random.integers(0, 20, (300, 2))
    boxes = np.concatenate([first, first + random.integers(0, 12, (300, 2))], axis=1).astype(np.float32)
    quality = random.integers(0, 40, 300).astype(np.float32)  # some are equal, and some boxes have no area
    expected = nms(torch.from_numpy(boxes), torch.from_numpy(quality), most).tolist()
    assert _distinct(boxes, quality, most).tolist() == expected
    assert len(expected) > (3 if most < 1 else 250)
    assert _distinct(boxes[:0], quality[:0], most).tolist() == []


# --- features by hand --------------------------------------------------------------------------------------------


def test_a_constant_feature_is_the_feature_of_any_mask() -> None:
    masks = np.zeros((2, 8, 8), bool)
    masks[0, 3, 5] = True  # smaller than a cell
    masks[1, :, 2:] = True
    features = pool(np.broadcast_to(np.array([2.0, 0], np.float32)[:, None, None], (2, 2, 2)), masks, 4)
    assert features.tolist() == [[2, 0], [2, 0]]


def test_two_halves_of_one_and_three_average_to_two() -> None:
    embedding = np.array([[[1, 3]]], np.float32)
    masks = np.ones((1, 4, 8), bool)
    assert pool(embedding, masks, 4).tolist() == [[2]]
    masks[..., 6:] = False  # four columns of one, two of three
    assert pool(embedding, masks, 4)[0, 0].item() == pytest.approx(10 / 6)


def test_cells_that_end_inside_a_pixel_share_it() -> None:
    masks = np.zeros((1, 1, 3), bool)
    masks[0, 0, 1] = True  # half in the first cell of 1.5 pixels, half in the second
    assert pool(np.array([[[1, 3]]], np.float32), masks, 1.5).tolist() == [[2]]


# --- grid --------------------------------------------------------------------------------------------------------


def test_the_grid_is_the_generators() -> None:
    from segment_anything.utils.amg import build_point_grid

    (activation,) = Everywhere()([image_of(30, 40)])
    points = GridPrompter(5)(activation).points[:, 0]
    np.testing.assert_allclose(points, build_point_grid(5) * [40, 30])


def test_senseless_numbers_are_refused() -> None:
    with pytest.raises(OptionError, match="points per side 0: at least one"):
        GridPrompter(0)
    with pytest.raises(OptionError, match=r"stability 1\.5: it must be between 0 and 1"):
        Filters(stability=1.5)
    with pytest.raises(OptionError, match="offset -1: it must not be negative"):
        Filters(offset=-1)


def test_it_is_a_segmenter(sam: Sam) -> None:
    segment: Segmenter = everything(sam)
    assert (segment.window, segment.gsd_range) == (SIDE, (0.1, 10.0))

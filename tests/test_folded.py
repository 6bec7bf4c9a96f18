"""The folded decoder: equal to segment-anything's own, whatever its weights and its prompts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

from geolabel.models.engines import NOWHERE, SelectiveNetwork, cells_within
from geolabel.models.nets.sam import build_sam
from geolabel.models.on_torch import TorchSam

SIDE, CELLS, WIDTH = 64, 4, 32


def official() -> Sam:
    encoder = ImageEncoderViT(img_size=SIDE, embed_dim=16, depth=1, num_heads=2, out_chans=WIDTH)
    transformer = TwoWayTransformer(depth=2, embedding_dim=WIDTH, mlp_dim=24, num_heads=4)
    decoder = MaskDecoder(transformer_dim=WIDTH, transformer=transformer, iou_head_hidden_dim=16)
    return Sam(encoder, PromptEncoder(WIDTH, (CELLS, CELLS), (SIDE, SIDE), mask_in_chans=4), decoder)


def drawing() -> Sam:
    return build_sam(
        img_size=SIDE,
        widths=(8, 8, 8, 8),
        depths=(1, 1, 1, 1),
        embed_dim=WIDTH,
        decoder_depth=2,
        heads=4,
        mlp_dim=24,
        pixel_mean=(1, 1, 1),
        pixel_std=(1, 1, 1),
    )


@pytest.fixture(params=[official, drawing], ids=["official", "drawing"])
def sam(request: pytest.FixtureRequest) -> Sam:
    """Every parameter is noise: what begins as zero or one would hide what is left out."""
    torch.manual_seed(3)
    network = request.param()
    for parameter in network.parameters():
        parameter.data.normal_(std=0.3)
    return network.eval().requires_grad_(False)


POINTS = np.random.default_rng(1).uniform(0, SIDE, (7, 2, 2)), np.tile(np.array([1, 0], np.int32), (7, 1))
BOXES = np.array([[3, 5, 20, 60.0]] * 7) + np.arange(7)[:, None]


@pytest.mark.parametrize(("points", "boxes"), [(POINTS, None), (None, BOXES), (POINTS, BOXES)])
def test_all_candidates_are_those_of_the_unfolded_decoder(sam: Sam, points, boxes) -> None:
    network: SelectiveNetwork = TorchSam(sam, batch=1)
    asked = points and (points[0].astype(np.float32), points[1]), None if boxes is None else boxes.astype(np.float32)
    with network.running():
        embedding = torch.randn(WIDTH, CELLS, CELLS)
        expected, quality = network.decode(embedding, *asked)
        found, likely, prompts, candidates = network.decode_likely(embedding, *asked, -np.inf, (SIDE, SIDE))
    assert prompts.tolist() == np.repeat(range(7), 3).tolist()
    assert candidates.tolist() == [0, 1, 2] * 7
    assert expected.std() > 1e-3
    torch.testing.assert_close(found, expected.flatten(0, 1), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(likely, quality.flatten(), rtol=1e-4, atol=1e-4)


def test_unlikely_candidates_have_no_masks(sam: Sam) -> None:
    network = TorchSam(sam, batch=1)
    points = POINTS[0].astype(np.float32), POINTS[1]
    with network.running():
        embedding = torch.randn(WIDTH, CELLS, CELLS)
        every, quality, *_ = network.decode_likely(embedding, points, None, -np.inf, (SIDE, SIDE))
        cut = float(np.median(quality))
        some, likely, prompts, candidates = network.decode_likely(embedding, points, None, cut, (SIDE, SIDE))
        none, *_ = network.decode_likely(embedding, points, None, np.inf, (SIDE, SIDE))
    rows = np.flatnonzero(quality > cut)
    assert 0 < len(rows) < len(quality)
    np.testing.assert_allclose(likely, quality[rows], rtol=1e-5)
    torch.testing.assert_close(some, every[rows])
    assert (prompts * 3 + candidates).tolist() == rows.tolist()
    assert none.shape == (0, *every.shape[1:])


def test_masks_of_a_small_image_are_made_where_it_is(sam: Sam) -> None:
    network, points = TorchSam(sam, batch=1), (POINTS[0].astype(np.float32), POINTS[1])
    with network.running():
        embedding = torch.randn(WIDTH, CELLS, CELLS)
        whole, *_ = network.decode_likely(embedding, points, None, -np.inf, (SIDE, SIDE))
        part, *_ = network.decode_likely(embedding, points, None, -np.inf, (20, 32))
    assert part.shape == whole.shape
    pixels, of_part = (network.enlarge(masks[4], (SIDE, SIDE))[:20, :32] for masks in (whole, part))
    torch.testing.assert_close(of_part, pixels)
    assert (part[:, 8:] == NOWHERE).all()  # two rows of cells are enough for 20 rows of pixels
    assert (part[:, :8, :12] == whole[:, :8, :12]).float().mean() > 0.9
    assert (part[:, :, 12:] == NOWHERE).all()  # a third column, since the last pixels are also made of its cells


def test_an_image_is_made_of_the_cells_around_its_pixels() -> None:
    sizes = [(1, 16), (13, 14), (14, 15), (16, 17), (64, 63)]
    assert [cells_within(size, 64, 4) for size in sizes] == [(1, 2), (1, 1), (1, 2), (2, 2), (4, 4)]

"""The vision transformer: equal to segment-anything's own, whatever its weights and the size of its windows."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

from geolabel.models.nets import vit
from geolabel.models.on_torch import TorchSam


def noisy(side: int = 64, window: int = 3, **options: object) -> ImageEncoderViT:
    """Every parameter is noise: positions that begin as zero would hide what is left out."""
    torch.manual_seed(4)
    encoder = ImageEncoderViT(
        img_size=side, embed_dim=32, depth=2, num_heads=2, out_chans=16, window_size=window, global_attn_indexes=(1,),
        norm_layer=partial(torch.nn.LayerNorm, eps=1e-6), **{"use_rel_pos": True, **options},
    )  # fmt: skip
    for parameter in encoder.parameters():
        parameter.data.normal_(std=0.2)
    return encoder.eval().requires_grad_(False)


@pytest.mark.parametrize("options", [{}, {"use_rel_pos": False}, {"use_abs_pos": False}, {"window": 0}, {"window": 4}])
@pytest.mark.parametrize("biases", [vit.BIAS, 1, 100])
def test_embeddings_are_those_of_segment_anything(options: dict, biases: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vit, "BIAS", biases)
    encoder, frames = noisy(**options), torch.randn(3, 3, 64, 64)
    with torch.inference_mode():
        expected = encoder(frames)
        assert expected.std() > 0.1
        torch.testing.assert_close(vit.encode(encoder, frames), expected, rtol=0, atol=1e-4)


def test_windows_are_padded_at_1024_px_as_there() -> None:
    encoder, frames = noisy(1024, 14), torch.randn(1, 3, 1024, 1024)
    with torch.inference_mode():
        torch.testing.assert_close(vit.encode(encoder, frames), encoder(frames), rtol=0, atol=1e-4)


def test_an_image_that_is_not_square_is_encoded_as_there() -> None:
    encoder = noisy()
    sam = Sam(
        encoder,
        PromptEncoder(16, (4, 4), (64, 64), mask_in_chans=4),
        MaskDecoder(transformer_dim=16, transformer=TwoWayTransformer(1, 16, 2, 8)),
    )
    image = np.random.default_rng(0).integers(0, 256, (64, 37, 3)).astype(np.uint8)
    network = TorchSam(sam, batch=2)
    with network.running():
        (found,) = network.encode([image])
        expected = encoder(sam.preprocess(torch.from_numpy(image).permute(2, 0, 1)[None]))[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_biases_are_made_some_rows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    attend = vit.scaled_dot_product_attention

    def watched(*given, attn_mask=None, **options):
        sizes.append(attn_mask.numel())
        return attend(*given, attn_mask=attn_mask, **options)

    monkeypatch.setattr(vit, "scaled_dot_product_attention", watched)
    monkeypatch.setattr(vit, "BIAS", 1 << 9)
    with torch.inference_mode():
        vit.encode(noisy(window=0), torch.randn(3, 3, 64, 64))
    assert max(sizes) <= 1 << 9 < 6 * 16 * 16

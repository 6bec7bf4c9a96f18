"""MobileSAM: Segment Anything with a TinyViT for its image encoder, from timm's modules and segment-anything's own.

Source: Zhang et al. (2023), "Faster Segment Anything: Towards Lightweight SAM for Mobile Applications"; Wu et al.
(2022), "TinyViT: Fast Pretraining Distillation for Small Vision Transformers". Unlike TinyViT the last stage keeps the
size of the one before, so that cells have 16 px, and a neck as in Segment Anything follows. timm numbers layers
differently from the published file, whose names `renamed` translates.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from segment_anything.modeling import MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from segment_anything.modeling.common import LayerNorm2d
from timm.models.tiny_vit import TinyVit
from torch import Tensor, nn

SIDE, CELLS, WIDTH = 1024, 64, 256
"""Side of the frame in pixels and in cells, channels of a cell."""

UNREAD = ("image_encoder.head.", "image_encoder.norm_head.")
"""Prefixes of the names of tensors of the image classifier, which is not run."""

PLACES = {
    "patch_embed.seq.0.": "patch_embed.conv1.",
    "patch_embed.seq.2.": "patch_embed.conv2.",
    **{f"layers.{k}.blocks.": f"stages.{k}.blocks." for k in range(4)},
    **{f"layers.{k}.downsample.": f"stages.{k + 1}.downsample." for k in range(3)},
    ".c.weight": ".conv.weight",
}
"""Parts of names in the published file, and their names in timm."""


class MobileEncoder(nn.Module):
    """The image encoder."""

    img_size = SIDE

    def __init__(self) -> None:
        super().__init__()
        trunk: Any = TinyVit(
            num_classes=0,
            embed_dims=(64, 128, 160, 320),
            depths=(2, 2, 6, 2),
            num_heads=(2, 4, 5, 10),
            window_sizes=(7, 7, 14, 7),
            drop_path_rate=0.0,
        )
        trunk.stages[3].downsample.conv2.conv.stride = (1, 1)
        trunk.head = nn.Identity()
        self.trunk = trunk
        self.neck = nn.Sequential(
            nn.Conv2d(320, WIDTH, 1, bias=False),
            LayerNorm2d(WIDTH),
            nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False),
            LayerNorm2d(WIDTH),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Embed (N, 3, 1024, 1024) images as (N, 256, 64, 64)."""
        embedding: Tensor = self.neck(self.trunk.forward_features(images))
        return embedding


def build_mobile_sam() -> Sam:
    """Build the network, with random weights."""
    return Sam(
        image_encoder=MobileEncoder(),
        prompt_encoder=PromptEncoder(
            embed_dim=WIDTH, image_embedding_size=(CELLS, CELLS), input_image_size=(SIDE, SIDE), mask_in_chans=16
        ),
        mask_decoder=MaskDecoder(
            num_multimask_outputs=3,
            transformer=TwoWayTransformer(depth=2, embedding_dim=WIDTH, mlp_dim=2048, num_heads=8),
            transformer_dim=WIDTH,
            iou_head_depth=3,
            iou_head_hidden_dim=256,
        ),
    )


def renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of the published file under the names of `build_mobile_sam`."""
    return {_name(name): tensor for name, tensor in state.items() if not name.startswith(UNREAD)}


def _name(name: str) -> str:
    prefix, _, place = name.partition("image_encoder.")
    if prefix or place.startswith("neck."):
        return name
    for part, instead in PLACES.items():
        place = place.replace(part, instead)
    return f"image_encoder.trunk.{place}"

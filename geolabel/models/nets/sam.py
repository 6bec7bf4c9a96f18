"""A small network of the Segment Anything shape, built from segment-anything's own modules.

Source: Kirillov et al. (2023), "Segment Anything". Only the image encoder differs from theirs, being convolutional
instead of a vision transformer, and the prompt encoder also draws the prompts.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from segment_anything.modeling import MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from torch import Tensor, nn

from geolabel.models.nets.trunk import STRIDES, Trunk, conv_norm, enlarge

EMBEDDING_STRIDE = STRIDES[2]
LOW_RES_STRIDE = EMBEDDING_STRIDE // 4
"""Image pixels per cell of the decoder's low-resolution masks, and of mask prompts."""


class ConvEncoder(nn.Module):
    """Image encoder: a trunk whose four outputs are joined at stride 16.

    SAM's decoder has no skip connections, so edges must be in the embedding. Finer features are
    therefore folded into channels (space to depth) rather than pooled away.
    """

    def __init__(self, *, img_size: int, widths: Sequence[int], depths: Sequence[int], out_channels: int) -> None:
        super().__init__()
        self.img_size = img_size
        self.trunk = Trunk(widths, depths)
        fine = out_channels // 4
        self.fold4 = nn.Sequential(conv_norm(widths[0], fine // 4, size=1), nn.ReLU(), nn.PixelUnshuffle(4))
        self.fold8 = nn.Sequential(conv_norm(widths[1], fine, size=1), nn.ReLU(), nn.PixelUnshuffle(2))
        self.lateral16 = nn.Sequential(conv_norm(widths[2], out_channels, size=1), nn.ReLU())
        self.lateral32 = nn.Sequential(conv_norm(widths[3], out_channels, size=1), nn.ReLU())
        self.merge = nn.Sequential(conv_norm(4 * out_channels, out_channels, size=1), nn.ReLU())
        self.neck = nn.Conv2d(out_channels, out_channels, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        """Embed (N, 3, img_size, img_size) images as (N, out_channels, img_size / 16, img_size / 16)."""
        at4, at8, at16, at32 = self.trunk(images)
        wide = enlarge(self.lateral32(at32))
        embedding: Tensor = self.neck(
            self.merge(torch.cat([self.fold4(at4), self.fold8(at8), self.lateral16(at16), wide], dim=1))
        )
        return embedding


class DrawingPromptEncoder(PromptEncoder):  # type: ignore[misc]
    """SAM's prompt encoder, which also draws boxes and points as the coarse mask they imply.

    SAM passes a prompt to the decoder as two or three tokens, and a decoder learns where a token points only from very
    many masks. If no mask is given, one is drawn here: 1 inside the box, a bump at each foreground point, a dent at
    each background point. It is passed on like a mask prompt, through the same weights.
    """

    bump = 16.0
    """Standard deviation of a drawn point, pixels: one cell of the embedding."""

    def forward(
        self, points: tuple[Tensor, Tensor] | None, boxes: Tensor | None, masks: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Sparse (B, N, D) and dense (B, D, h, w) embeddings, as segment-anything's encoder returns them."""
        if masks is None and (points is not None or boxes is not None):
            masks = self.draw(points, boxes)
        sparse, dense = super().forward(points, boxes, masks)
        return sparse, dense

    def draw(self, points: tuple[Tensor, Tensor] | None, boxes: Tensor | None) -> Tensor:
        """Coarse masks (B, 1, 4 h, 4 w) of points (B, N, 2) with labels (B, N), boxes (B, 4) or both, in pixels."""
        height, width = self.mask_input_size
        device = self._get_device()
        rows = (torch.arange(height, device=device) + 0.5) * (self.input_image_size[0] / height)
        cols = (torch.arange(width, device=device) + 0.5) * (self.input_image_size[1] / width)
        parts: list[Tensor] = []
        if boxes is not None:
            x0, y0, x1, y1 = (boxes.reshape(-1, 4) + 0.5).float().unbind(1)
            parts.append(_coverage(rows, y0, y1)[:, :, None] * _coverage(cols, x0, x1)[:, None, :])
        if points is not None:
            coords, labels = points[0].float() + 0.5, points[1]
            dx = (cols - coords[..., :1]) / self.bump
            dy = (rows - coords[..., 1:]) / self.bump
            sign = (labels == 1).float() - (labels == 0).float()  # padding, -1, draws nothing
            bumps = (
                sign[..., None, None] * torch.exp(-(dy**2)[..., :, None] / 2) * torch.exp(-(dx**2)[..., None, :] / 2)
            )
            parts.append(bumps.sum(dim=1))
        drawn = sum(parts[1:], parts[0])
        return drawn[:, None]


def _coverage(centres: Tensor, low: Tensor, high: Tensor) -> Tensor:
    # (B, n): share of each cell between the edges of each box, which reach half a pixel beyond their centres.
    size = centres[1] - centres[0]
    left, right = centres - size / 2, centres + size / 2
    inside = torch.minimum(right, high[:, None] + 0.5) - torch.maximum(left, low[:, None] - 0.5)
    return inside.clamp(min=0) / size


def build_sam(
    *,
    img_size: int,
    widths: Sequence[int],
    depths: Sequence[int],
    embed_dim: int,
    decoder_depth: int,
    heads: int,
    mlp_dim: int,
    pixel_mean: Sequence[float],
    pixel_std: Sequence[float],
) -> Sam:
    """Assemble a Sam with a convolutional encoder and a narrow decoder.

    Parameters
    ----------
    img_size
        Side of the encoder's square input; smaller images are padded with zeros at the bottom and right.
    widths, depths
        Widths and depths of the trunk.
    embed_dim
        Channels of the embedding.
    decoder_depth, heads, mlp_dim
        Sizes of the two-way transformer.
    pixel_mean, pixel_std
        For red, green and blue on the scale 0..255.
    """
    cells = img_size // EMBEDDING_STRIDE
    prompts = DrawingPromptEncoder(
        embed_dim=embed_dim,
        image_embedding_size=(cells, cells),
        input_image_size=(img_size, img_size),
        mask_in_chans=16,
    )
    # Frequencies from half a wave to six waves per image instead of one octave: small objects need the high ones.
    octaves = torch.logspace(-1.0, 2.6, embed_dim // 2, base=2.0)
    prompts.pe_layer.positional_encoding_gaussian_matrix *= octaves
    transformer = TwoWayTransformer(depth=decoder_depth, embedding_dim=embed_dim, num_heads=heads, mlp_dim=mlp_dim)
    decoder = MaskDecoder(
        num_multimask_outputs=3,
        transformer=transformer,
        transformer_dim=embed_dim,
        iou_head_depth=3,
        iou_head_hidden_dim=embed_dim,
    )
    encoder = ConvEncoder(img_size=img_size, widths=widths, depths=depths, out_channels=embed_dim)
    return Sam(encoder, prompts, decoder, list(pixel_mean), list(pixel_std))

"""SAM's vision transformer, without its attention matrices.

segment-anything computes the scores of all pairs of cells, adds two terms of relative position to them, and takes their
softmax: at 1024 px, 4096 x 4096 values for each head, several times over. Here
``torch.nn.functional.scaled_dot_product_attention`` does it, with both terms as its bias, for some rows of cells at a
time. Where a block attends within windows, cells are projected before they are put into windows: the cells that pad
the last windows are zeros, whose projection is a bias, and are a sixth of all at 1024 px.

Sources: Kirillov et al. (2023), "Segment Anything"; Li et al. (2022), "MViTv2", section 4.1, for the positions;
``segment_anything.modeling.image_encoder``, whose modules and weights these are.
"""

from __future__ import annotations

import torch
from segment_anything.modeling import ImageEncoderViT
from segment_anything.modeling.image_encoder import Attention, Block, get_rel_pos
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

BIAS = 1 << 23
"""Maximum number of biases in memory at a time, unless one row of cells has more."""


def encode(encoder: ImageEncoderViT, frames: Tensor) -> Tensor:
    """Embeddings (N, D, h, w) of normalised frames (N, 3, H, W), equal to ``encoder(frames)``."""
    cells = encoder.patch_embed(frames)
    if encoder.pos_embed is not None:
        cells = cells + encoder.pos_embed
    for block in encoder.blocks:
        cells = _pass(block, cells)
    embeddings: Tensor = encoder.neck(cells.permute(0, 3, 1, 2))
    return embeddings


def halve(encoder: nn.Module) -> None:
    """Store the weights of an encoder's products in bf16: those that autocast would cast at each call."""
    for module in encoder.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            module.to(torch.bfloat16)


def _pass(block: Block, cells: Tensor) -> Tensor:
    cells = cells + _attend(block.attn, block.norm1(cells), block.window_size)
    passed: Tensor = cells + block.mlp(block.norm2(cells))
    return passed


def _attend(attention: Attention, cells: Tensor, side: int) -> Tensor:
    # (N, h, w, D) from (N, h, w, D), within windows of `side` cells, or all of them if that is 0
    size, heads = cells.shape[1:3], attention.num_heads
    mixed = attention.qkv(cells)
    if side:
        mixed = _windows(mixed, attention.qkv.bias, side)
    count, rows, cols, width = mixed.shape
    mixed = mixed.reshape(count, rows * cols, 3, heads, width // 3 // heads)
    queries, keys, values = mixed.permute(2, 0, 3, 1, 4).unbind(0)  # (N, heads, h w, d)
    if attention.use_rel_pos:
        found = _attend_by_place(attention, queries, keys, values, (rows, cols))
    else:
        found = scaled_dot_product_attention(queries, keys, values, scale=attention.scale)
    seen = found.transpose(1, 2).reshape(count, rows, cols, width // 3)
    out: Tensor = attention.proj(_from_windows(seen, (size[0], size[1])) if side else seen)
    return out


def _windows(projected: Tensor, padding: Tensor | None, side: int) -> Tensor:
    # (N R C, side, side, D) from (N, h, w, D), padded with the padding (D,), or zeros
    count, height, width, channels = projected.shape
    rows, cols = -(-height // side), -(-width // side)
    whole = projected.new_zeros(()) if padding is None else padding.to(projected.dtype)
    whole = whole.expand(count, rows * side, cols * side, channels).clone()
    whole[:, :height, :width] = projected
    parts = whole.view(count, rows, side, cols, side, channels).transpose(2, 3)
    return parts.reshape(-1, side, side, channels)


def _from_windows(windows: Tensor, size: tuple[int, int]) -> Tensor:
    # (N, h, w, D) from the result of `_windows`
    (height, width), side = size, windows.shape[1]
    rows, cols = -(-height // side), -(-width // side)
    parts = windows.view(-1, rows, cols, side, side, windows.shape[3]).transpose(2, 3)
    return parts.reshape(-1, rows * side, cols * side, windows.shape[3])[:, :height, :width]


def _attend_by_place(
    attention: Attention, queries: Tensor, keys: Tensor, values: Tensor, size: tuple[int, int]
) -> Tensor:
    rows, cols = size
    placed = queries.reshape(*queries.shape[:2], rows, cols, -1)
    across_rows = torch.einsum("nahwd,hkd->nahwk", placed, get_rel_pos(rows, rows, attention.rel_pos_h))
    across_cols = torch.einsum("nahwd,wkd->nahwk", placed, get_rel_pos(cols, cols, attention.rel_pos_w))
    step = max(1, BIAS // (queries.shape[0] * queries.shape[1] * cols * rows * cols))
    parts = []
    for start in range(0, rows, step):
        here = slice(start, start + step)
        bias = (across_rows[:, :, here, :, :, None] + across_cols[:, :, here, :, None, :]).flatten(4).flatten(2, 3)
        some = placed[:, :, here].flatten(2, 3)
        parts.append(scaled_dot_product_attention(some, keys, values, attn_mask=bias, scale=attention.scale))
    return torch.cat(parts, dim=2)

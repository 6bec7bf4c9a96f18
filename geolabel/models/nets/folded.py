"""SAM's prompt encoder and mask decoder for many prompts of one image, in fewer operations than segment-anything's.

The decoder attends between a few tokens and thousands of cells of the embedding, prompt by prompt, and most of its time
goes into projections of these cells. Three identities leave them out; sums come in another order, so that the last
digits differ, and nothing else:

* ``(x Wq) (t Wk)^T = x (Wq Wk^T t^T)``: where cells meet tokens, the tokens are projected twice instead of the cells.
* A constant added to all scores of a softmax changes nothing: the bias of the cells' keys is dropped.
* A transposed convolution of stride and size two is a matrix product of each cell: channels stay side by side.

Masks are made of the prompts alone whose predicted IoU is worth it, since that is known before.

Sources: Kirillov et al. (2023), "Segment Anything", appendix A; ``segment_anything.modeling``, whose modules these are.
"""

from __future__ import annotations

import math

import torch
from segment_anything.modeling import MaskDecoder, PromptEncoder
from segment_anything.modeling.transformer import Attention
from torch import Tensor, nn
from torch.nn.functional import layer_norm, linear

from geolabel.models.nets.sam import DrawingPromptEncoder
from geolabel.prompts import CORNERS, PADDING


def prompt_tokens(encoder: PromptEncoder, coords: Tensor, labels: Tensor) -> Tensor:
    """Tokens (K, N, D) of prompts of any kind: what PromptEncoder makes one by one, by a table.

    Parameters
    ----------
    coords : (K, N, 2)
        Pixels of the frame, x first.
    labels : (K, N)
        Of points 1 or 0, of the corners of a box `geolabel.prompts.CORNERS`, and `geolabel.prompts.PADDING`.
    """
    height, width = encoder.input_image_size
    size = torch.tensor([width, height], dtype=torch.float32, device=coords.device)
    positions = encoder.pe_layer._pe_encoding((coords + 0.5) / size)
    kinds = [encoder.not_a_point_embed.weight, *(kind.weight for kind in encoder.point_embeddings)]
    placed = (labels != PADDING).float()[..., None] * positions
    tokens: Tensor = placed + torch.cat(kinds)[labels - PADDING]
    return tokens


def drawn_prompts(encoder: DrawingPromptEncoder, coords: Tensor, labels: Tensor) -> Tensor:
    """Coarse masks (K, 1, 4 h, 4 w) that are drawn of prompts; see `prompt_tokens`."""
    first, last = ((coords * (labels == corner)[..., None]).sum(dim=1) for corner in CORNERS)
    boxed = (labels == CORNERS[0]).any(dim=1).float()[:, None, None, None]
    drawn: Tensor = encoder.draw((coords, labels), None)
    return drawn + boxed * encoder.draw(None, torch.cat([first, last], dim=1))


def prompted_cells(encoder: PromptEncoder, coords: Tensor, labels: Tensor) -> Tensor:
    """What prompts add to the cells of an embedding: (K, h w, D) where they are drawn, else (1, 1, D)."""
    if not isinstance(encoder, DrawingPromptEncoder):
        none: Tensor = encoder.no_mask_embed.weight[None]
        return none
    fold1, norm1, act1, fold2, norm2, act2, last = encoder.mask_downscaling
    rows, cols = encoder.image_embedding_size
    # (K, h, w, 2, 2, 2, 2): a cell is two by two parts, each of two by two of what is drawn.
    parts = drawn_prompts(encoder, coords, labels).reshape(-1, rows, 2, 2, cols, 2, 2).permute(0, 1, 4, 2, 5, 3, 6)
    parts = linear(parts.reshape(-1, rows * cols, 4, 4), fold1.weight.flatten(1), fold1.bias)
    parts = act1(layer_norm(parts, norm1.weight.shape, norm1.weight, norm1.bias, norm1.eps)).flatten(2)
    parts = linear(parts, fold2.weight.permute(0, 2, 3, 1).flatten(1), fold2.bias)
    parts = act2(layer_norm(parts, norm2.weight.shape, norm2.weight, norm2.bias, norm2.eps))
    added: Tensor = linear(parts, last.weight.flatten(1), last.bias)
    return added


def cell_positions(encoder: PromptEncoder) -> Tensor:
    """(1, h w, D) positions of the cells."""
    dense: Tensor = encoder.get_dense_pe().flatten(2).transpose(1, 2)
    return dense


def decode_tokens(
    decoder: MaskDecoder, embedding: Tensor, positions: Tensor, tokens: Tensor, prompted: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Cells (K, h w, D), weights (K, 4, D / 8) of what becomes of their channels, and predicted IoU (K, 4).

    The single mask of a prompt comes first, then the three candidates.

    Parameters
    ----------
    embedding : (1, D, h, w)
    positions, tokens, prompted
        See `cell_positions`, `prompt_tokens`, `prompted_cells`.
    """
    transformer = decoder.transformer
    answers = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
    asked = torch.cat([answers[None].expand(len(tokens), -1, -1), tokens], dim=1)
    queries, cells = asked, (embedding.flatten(2).transpose(1, 2) + prompted).expand(len(tokens), -1, -1)
    for layer in transformer.layers:
        if layer.skip_first_layer_pe:
            queries = layer.self_attn(q=queries, k=queries, v=queries)
        else:
            placed = queries + asked
            queries = queries + layer.self_attn(q=placed, k=placed, v=queries)
        queries = layer.norm1(queries)
        here = cells + positions
        queries = layer.norm2(queries + _look_at_cells(layer.cross_attn_token_to_image, queries + asked, here, cells))
        queries = layer.norm3(queries + layer.mlp(queries))
        told = _tell_cells(layer.cross_attn_image_to_token, here, queries + asked, queries)
        cells = layer.norm4(cells + told)
    found = _look_at_cells(transformer.final_attn_token_to_image, queries + asked, cells + positions, cells)
    queries = transformer.norm_final_attn(queries + found)
    weights = [head(queries[:, 1 + k]) for k, head in enumerate(decoder.output_hypernetworks_mlps)]
    return cells, torch.stack(weights, dim=1), decoder.iou_prediction_head(queries[:, 0])


def make_masks(decoder: MaskDecoder, cells: Tensor, weights: Tensor, size: tuple[int, int]) -> Tensor:
    """Logits (K, T, 4 h, 4 w) of masks.

    Parameters
    ----------
    cells : (K, h w, D)
    weights : (K, T, D / 8)
    size
        h and w.
    """
    fold1, norm, act1, fold2, act2 = decoder.output_upscaling
    parts = act1(layer_norm(_unfold(cells, fold1), norm.weight.shape, norm.weight, norm.bias, norm.eps))
    parts = act2(_unfold(parts, fold2)).flatten(1, -2)  # (K, h w 4 4, D / 8)
    rows, cols = size
    masks = (weights @ parts.transpose(1, 2)).reshape(-1, rows, cols, 2, 2, 2, 2)
    masks = masks.permute(0, 1, 3, 5, 2, 4, 6)  # (K T, h, 2, 2, w, 2, 2)
    logits: Tensor = masks.reshape(len(cells), weights.shape[1], 4 * rows, 4 * cols)
    return logits


def _unfold(cells: Tensor, layer: nn.ConvTranspose2d) -> Tensor:
    # A transposed convolution of size and stride two of (..., C): (..., 4, C') of its two by two parts, row by row.
    weight = layer.weight.permute(2, 3, 1, 0).reshape(-1, layer.in_channels)
    assert layer.bias is not None
    parts: Tensor = linear(cells, weight, layer.bias.repeat(4))
    return parts.reshape(*parts.shape[:-1], 4, layer.out_channels)


def _look_at_cells(attention: Attention, tokens: Tensor, placed: Tensor, cells: Tensor) -> Tensor:
    # Attention of tokens (K, T, D) to cells (K, n, D), whose keys are made of `placed`.
    heads, size, (count, width) = attention.num_heads, _head_size(attention), tokens.shape[1:]
    asked = _heads(attention.q_proj(tokens), heads) / math.sqrt(size)
    asked = (asked @ attention.k_proj.weight.reshape(heads, size, width)).flatten(1, 2)  # (K, heads T, D)
    found = torch.softmax(asked @ placed.transpose(1, 2), dim=-1) @ cells
    found = found.reshape(-1, heads, count, width) @ attention.v_proj.weight.reshape(heads, size, width).transpose(1, 2)
    out: Tensor = attention.out_proj(found.transpose(1, 2).flatten(2) + attention.v_proj.bias)
    return out


def _tell_cells(attention: Attention, placed: Tensor, tokens: Tensor, values: Tensor) -> Tensor:
    # Attention of cells (K, n, D), given with their places, to tokens (K, T, D).
    heads, size, (count, width) = attention.num_heads, _head_size(attention), tokens.shape[1:]
    keys = _heads(attention.k_proj(tokens), heads) / math.sqrt(size)
    level = keys @ attention.q_proj.bias.reshape(heads, size, 1)  # (K, heads, T, 1)
    keys = (keys @ attention.q_proj.weight.reshape(heads, size, width)).flatten(1, 2)
    scores = (keys @ placed.transpose(1, 2)).reshape(-1, heads, count, placed.shape[1]) + level
    shares = torch.softmax(scores, dim=2).flatten(1, 2)  # (K, heads T, n)
    # The shares of each head add up to one: a part of the bias for each, and no sum over all cells.
    told = _heads(attention.v_proj(values), heads) @ attention.out_proj.weight.reshape(width, heads, size).permute(
        1, 2, 0
    )
    out: Tensor = shares.transpose(1, 2) @ (told + attention.out_proj.bias / heads).flatten(1, 2)
    return out


def _heads(values: Tensor, heads: int) -> Tensor:
    # (K, heads, T, d) of (K, T, heads d)
    return values.reshape(*values.shape[:2], heads, -1).transpose(1, 2)


def _head_size(attention: Attention) -> int:
    return int(attention.internal_dim // attention.num_heads)

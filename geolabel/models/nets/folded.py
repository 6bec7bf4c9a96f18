"""SAM's prompt encoder and mask decoder for many prompts of one image, in fewer operations than segment-anything's.

The decoder attends between a few tokens and thousands of cells of the embedding, prompt by prompt, and most of its time
is spent on projections of these cells. Four identities avoid them; sums are in another order, so only the last
digits differ:

* ``(x Wq) (t Wk)^T = x (Wq Wk^T t^T)``: for scores of cells and tokens, the tokens are projected twice, not the cells.
* A constant added to all scores of a softmax has no effect: the bias of the cells' keys is dropped.
* A transposed convolution of stride and size two is a matrix product per cell: its outputs stay as channels.
* Before the first layer, the cells of all prompts differ in a few drawn channels only: products with the shared part
  are computed once for all prompts.

In a graph for a CPU, the cells of each prompt are then processed separately, so that they stay in its cache; the sums
are the same. Masks are computed only for prompts with a sufficient predicted IoU, which is known before.

Sources: Kirillov et al. (2023), "Segment Anything", appendix A; ``segment_anything.modeling``, whose modules these are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from segment_anything.modeling import MaskDecoder, PromptEncoder
from segment_anything.modeling.transformer import Attention
from torch import Tensor, nn
from torch.nn.functional import layer_norm, linear

from geolabel.models.nets.sam import DrawingPromptEncoder
from geolabel.prompts import CORNERS, PADDING


def prompt_tokens(encoder: PromptEncoder, coords: Tensor, labels: Tensor) -> Tensor:
    """Tokens (K, N, D) of prompts of any kind, by a table; PromptEncoder computes them one by one.

    Parameters
    ----------
    coords : (K, N, 2)
        Pixels of the frame, x first.
    labels : (K, N)
        1 or 0 for points, `geolabel.prompts.CORNERS` for the corners of a box, and `geolabel.prompts.PADDING`.
    """
    height, width = encoder.input_image_size
    size = torch.tensor([width, height], dtype=torch.float32, device=coords.device)
    positions = encoder.pe_layer._pe_encoding((coords + 0.5) / size)
    kinds = [encoder.not_a_point_embed.weight, *(kind.weight for kind in encoder.point_embeddings)]
    placed = (labels != PADDING).float()[..., None] * positions
    tokens: Tensor = placed + torch.cat(kinds)[labels - PADDING]
    return tokens


def drawn_prompts(encoder: DrawingPromptEncoder, coords: Tensor, labels: Tensor) -> Tensor:
    """Coarse masks (K, 1, 4 h, 4 w) drawn from prompts; see `prompt_tokens`."""
    first, last = ((coords * (labels == corner)[..., None]).sum(dim=1) for corner in CORNERS)
    boxed = (labels == CORNERS[0]).any(dim=1).float()[:, None, None, None]
    drawn: Tensor = encoder.draw((coords, labels), None)
    return drawn + boxed * encoder.draw(None, torch.cat([first, last], dim=1))


def dense_prompts(encoder: PromptEncoder, coords: Tensor, labels: Tensor) -> Tensor:
    """(K, D, h, w) dense embeddings of prompts, as in PromptEncoder; see `prompt_tokens`."""
    if not isinstance(encoder, DrawingPromptEncoder):
        none: Tensor = encoder.no_mask_embed.weight.reshape(1, -1, 1, 1)
        return none.expand(len(coords), -1, *encoder.image_embedding_size)
    dense: Tensor = encoder._embed_masks(drawn_prompts(encoder, coords, labels))
    return dense


@dataclass(frozen=True)
class Prompted:
    """The dense part of K prompts, to add to the cells: ``same + drawn^T @ spread``, of which only `drawn` is large."""

    same: Tensor
    """(1, 1, D), added to every cell by every prompt."""
    drawn: Tensor
    """(K, C, h w) drawn prompts in C channels; C is 0 if nothing is drawn."""
    spread: Tensor
    """(C, D)"""


def prompted_cells(encoder: PromptEncoder, coords: Tensor, labels: Tensor) -> Prompted:
    """The dense part of prompts, to add to the cells of an embedding; see `prompt_tokens`."""
    if not isinstance(encoder, DrawingPromptEncoder):
        none: Tensor = encoder.no_mask_embed.weight
        return Prompted(none[None], none.new_zeros((len(coords), 0, math.prod(encoder.image_embedding_size))), none[:0])
    *small, last = encoder.mask_downscaling
    drawn = drawn_prompts(encoder, coords, labels)
    for layer in small:
        drawn = layer(drawn)
    return Prompted(last.bias[None, None], drawn.flatten(2), last.weight.flatten(1).T)


def cell_positions(encoder: PromptEncoder) -> Tensor:
    """(1, h w, D) positions of the cells."""
    dense: Tensor = encoder.get_dense_pe().flatten(2).transpose(1, 2)
    return dense


def decode_tokens(
    decoder: MaskDecoder,
    embedding: Tensor,
    positions: Tensor,
    tokens: Tensor,
    prompted: Prompted,
    *,
    apart: bool = False,
) -> tuple[Tensor | list[Tensor], Tensor, Tensor]:
    """Cells (K, h w, D), weights (K, 4, D / 8) for their upscaled channels, and predicted IoU (K, 4).

    The single mask of a prompt comes first, then the three candidates.

    Parameters
    ----------
    embedding : (1, D, h, w)
    positions, tokens, prompted
        See `cell_positions`, `prompt_tokens`, `prompted_cells`.
    apart
        Whether to process the cells of each prompt separately, as K tensors (h w, D), instead of in one tensor.
    """
    transformer = decoder.transformer
    answers = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
    asked = torch.cat([answers[None].expand(len(tokens), -1, -1), tokens], dim=1)
    shared = embedding.flatten(2).transpose(1, 2) + prompted.same
    cells: _AnyCells = _SharedCells(shared, positions, prompted, apart=apart)
    queries = asked
    for layer in transformer.layers:
        if layer.skip_first_layer_pe:
            queries = layer.self_attn(q=queries, k=queries, v=queries)
        else:
            placed = queries + asked
            queries = queries + layer.self_attn(q=placed, k=placed, v=queries)
        queries = layer.norm1(queries)
        queries = layer.norm2(queries + _look_at_cells(layer.cross_attn_token_to_image, queries + asked, cells))
        queries = layer.norm3(queries + layer.mlp(queries))
        cells = _tell_cells(layer.cross_attn_image_to_token, layer.norm4, cells, queries + asked, queries)
    queries, asked = queries[:, : len(answers)], asked[:, : len(answers)]  # the prompts' own tokens are not used below
    found = _look_at_cells(transformer.final_attn_token_to_image, queries + asked, cells)
    queries = transformer.norm_final_attn(queries + found)
    weights = [head(queries[:, 1 + k]) for k, head in enumerate(decoder.output_hypernetworks_mlps)]
    return cells.cells, torch.stack(weights, dim=1), decoder.iou_prediction_head(queries[:, 0])


class _Cells:
    """The cells (K, n, D) of an embedding for K prompts, without and with their positions (1, n, D)."""

    def __init__(self, cells: Tensor, positions: Tensor) -> None:
        self.cells, self._positions = cells, positions
        self._placed = cells + positions

    def scores(self, rows: Tensor) -> Tensor:
        """(K, R, n) products of rows (K, R, D) with the cells and their positions."""
        return rows @ self._placed.transpose(1, 2)

    def look(self, rows: Tensor) -> Tensor:
        """(K, R, D) means of the cells, weighted by the softmax of their scores."""
        return torch.softmax(self.scores(rows), dim=-1) @ self.cells

    def told(self, norm: nn.Module, shares: Tensor, rows: Tensor) -> _Cells:
        """The cells and ``shares^T @ rows``, of shares (K, R, n) and rows (K, R, D), normalised."""
        return _Cells(norm(self.cells + shares.transpose(1, 2) @ rows), self._positions)


class _SharedCells:
    """`_Cells` before the first layer, where those of all prompts differ in the drawn channels only.

    Products with the shared part are computed for all prompts at once, and no sum for each prompt.

    Parameters
    ----------
    shared, positions : (1, n, D)
    own
        The part of each prompt.
    apart
        Whether `told` returns `_CellsApart`.
    """

    def __init__(self, shared: Tensor, positions: Tensor, own: Prompted, *, apart: bool) -> None:
        self.cells, self._positions, self._own, self._apart = shared, positions, own, apart
        self._placed = shared + positions

    def scores(self, rows: Tensor) -> Tensor:
        """See `_Cells`."""
        same = rows.flatten(0, 1) @ self._placed[0].T
        return same.reshape(*rows.shape[:2], -1) + (rows @ self._own.spread.T) @ self._own.drawn

    def look(self, rows: Tensor) -> Tensor:
        """See `_Cells`."""
        shares = torch.softmax(self.scores(rows), dim=-1)
        same = (shares.flatten(0, 1) @ self.cells[0]).reshape(*shares.shape[:2], -1)
        return same + (shares @ self._own.drawn.transpose(1, 2)) @ self._own.spread

    def told(self, norm: nn.Module, shares: Tensor, rows: Tensor) -> _Cells | _CellsApart:
        """See `_Cells`."""
        shares = torch.cat([self._own.drawn, shares], dim=1)
        rows = torch.cat([self._own.spread.expand(len(rows), -1, -1), rows], dim=1)
        if self._apart:
            return _CellsApart([self.cells[0]] * len(rows), self._positions).told(norm, shares, rows)
        return _Cells(self.cells, self._positions).told(norm, shares, rows)


class _CellsApart:
    """`_Cells` of K prompts, each a separate tensor (n, D), which is written and read before the next."""

    def __init__(self, cells: list[Tensor], positions: Tensor) -> None:
        self.cells, self._positions = cells, positions
        self._placed = [one + positions[0] for one in cells]

    def scores(self, rows: Tensor) -> Tensor:
        """See `_Cells`."""
        made = [asked @ placed.T for asked, placed in zip(_each(rows), self._placed, strict=True)]
        return torch.cat(made).reshape(*rows.shape[:2], -1)

    def look(self, rows: Tensor) -> Tensor:
        """See `_Cells`."""
        parts = zip(_each(rows), self._placed, self.cells, strict=True)
        made = [torch.softmax(asked @ placed.T, dim=-1) @ cells for asked, placed, cells in parts]
        return torch.cat(made).reshape(rows.shape)

    def told(self, norm: nn.Module, shares: Tensor, rows: Tensor) -> _CellsApart:
        """See `_Cells`."""
        parts = zip(self.cells, _each(shares), _each(rows), strict=True)
        return _CellsApart([norm(torch.addmm(cells, share.T, row)) for cells, share, row in parts], self._positions)


def _each(values: Tensor) -> list[Tensor]:
    # K tensors (R, ...) from one (K, R, ...), with the fewest steps in a graph.
    count, rows = values.shape[:2]
    flat = values.flatten(0, 1)
    return [flat[k * rows : (k + 1) * rows] for k in range(count)]


def make_masks(decoder: MaskDecoder, cells: Tensor, weights: Tensor) -> Tensor:
    """Logits (K, T, n, 16) of masks: for each cell two by two parts, each of two by two; see `unfold_masks`.

    Parameters
    ----------
    cells : (K, n, D)
        Any cells of an embedding.
    weights : (K, T, D / 8)
    """
    fold1, norm, act1, fold2, act2 = decoder.output_upscaling
    parts = act1(layer_norm(_unfold(cells, fold1), norm.weight.shape, norm.weight, norm.bias, norm.eps))
    parts = act2(_unfold(parts, fold2)).flatten(1, -2)  # (K, n 4 4, D / 8)
    logits: Tensor = (weights @ parts.transpose(1, 2)).reshape(*weights.shape[:2], cells.shape[1], 16)
    return logits


def unfold_masks(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Logits (M, 4 h, 4 w) from those (M, h w, 16) that `make_masks` computes for h by w cells."""
    rows, cols = size
    parts = masks.reshape(-1, rows, cols, 2, 2, 2, 2).permute(0, 1, 3, 5, 2, 4, 6)  # (M, h, 2, 2, w, 2, 2)
    logits: Tensor = parts.reshape(-1, 4 * rows, 4 * cols)
    return logits


def _unfold(cells: Tensor, layer: nn.ConvTranspose2d) -> Tensor:
    # A transposed convolution of size and stride two of (..., C): (..., 4, C'), its two by two parts row by row.
    weight = layer.weight.permute(2, 3, 1, 0).reshape(-1, layer.in_channels)
    assert layer.bias is not None
    # as one matrix, which a graph multiplies and shifts in one step
    parts: Tensor = linear(cells.flatten(0, -2), weight, layer.bias.repeat(4))
    return parts.reshape(*cells.shape[:-1], 4, layer.out_channels)


_AnyCells = _Cells | _SharedCells | _CellsApart


def _look_at_cells(attention: Attention, tokens: Tensor, cells: _AnyCells) -> Tensor:
    # Attention of tokens (K, T, D) to cells, whose keys include their positions.
    heads, size, (count, width) = attention.num_heads, _head_size(attention), tokens.shape[1:]
    asked = _heads(attention.q_proj(tokens), heads) / math.sqrt(size)
    asked = (asked @ attention.k_proj.weight.reshape(heads, size, width)).flatten(1, 2)  # (K, heads T, D)
    found = cells.look(asked)
    found = found.reshape(-1, heads, count, width) @ attention.v_proj.weight.reshape(heads, size, width).transpose(1, 2)
    out: Tensor = attention.out_proj(found.transpose(1, 2).flatten(2) + attention.v_proj.bias)
    return out


def _tell_cells(
    attention: Attention, norm: nn.Module, cells: _AnyCells, tokens: Tensor, values: Tensor
) -> _Cells | _CellsApart:
    # Cells after attention, with their positions, to tokens (K, T, D), normalised.
    heads, size, (count, width) = attention.num_heads, _head_size(attention), tokens.shape[1:]
    keys = _heads(attention.k_proj(tokens), heads) / math.sqrt(size)
    level = keys @ attention.q_proj.bias.reshape(heads, size, 1)  # (K, heads, T, 1)
    keys = (keys @ attention.q_proj.weight.reshape(heads, size, width)).flatten(1, 2)
    scores = cells.scores(keys)
    scores = scores.reshape(-1, heads, count, scores.shape[-1]) + level
    # Like a softmax over tokens, written out: engines are slow if that is not the last axis.
    shares = torch.exp(scores - scores.amax(dim=2, keepdim=True))
    shares = (shares / shares.sum(dim=2, keepdim=True)).flatten(1, 2)  # (K, heads T, n)
    # The shares of each head add up to one: a part of the bias for each, and no sum over all cells.
    told = _heads(attention.v_proj(values), heads) @ attention.out_proj.weight.reshape(width, heads, size).permute(
        1, 2, 0
    )
    return cells.told(norm, shares, (told + attention.out_proj.bias / heads).flatten(1, 2))


def _heads(values: Tensor, heads: int) -> Tensor:
    # (K, heads, T, d) from (K, T, heads d)
    return values.reshape(*values.shape[:2], heads, -1).transpose(1, 2)


def _head_size(attention: Attention) -> int:
    return int(attention.internal_dim // attention.num_heads)

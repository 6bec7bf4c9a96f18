"""Export networks as ONNX graphs, from the PyTorch modules.

A graph depends on the architecture. Weights are named but omitted, so it stays valid for any training, and
`geolabel.models.on_onnx` inserts those of the file beside it.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import onnx
import torch
from onnx import TensorProto, helper
from onnxscript import optimizer
from segment_anything.modeling import Sam
from torch import Tensor, nn

from geolabel.errors import WeightsError
from geolabel.models.checkpoint import NetworkInfo, read_info
from geolabel.models.engines import PROMPTS_CPU, every_graph_file
from geolabel.models.nets import build, folded
from geolabel.models.nets.sam import EMBEDDING_STRIDE, LOW_RES_STRIDE
from geolabel.models.on_onnx import KEY
from geolabel.outputs import replacing

logger = logging.getLogger(__name__)

ELSEWHERE = "weights"
"""Placeholder for the file of the weights in a graph; the safetensors file beside it may have any name."""

_DynamicAxes = Mapping[str, Mapping[int, str] | None]


class _ImageEncoder(nn.Module):
    """The encoder of a Sam, with weights named as in the whole network."""

    def __init__(self, sam: Sam) -> None:
        super().__init__()
        self.image_encoder = sam.image_encoder

    def forward(self, images: Tensor) -> Tensor:
        """Embeddings (N, D, h, w) of normalised frames (N, 3, window, window)."""
        embeddings: Tensor = self.image_encoder(images)
        return embeddings


class _Decoder(nn.Module):
    """The prompt encoder and mask decoder of a Sam, with weights named as in the whole network."""

    def __init__(self, sam: Sam) -> None:
        super().__init__()
        self.prompt_encoder = sam.prompt_encoder
        self.mask_decoder = sam.mask_decoder


class _PromptDecoder(_Decoder):
    """From prompts of any kind, as tokens, to masks."""

    def forward(self, embedding: Tensor, coords: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """All four masks of K prompts: logits (K, 4, h, w) and predicted IoU (K, 4), the single mask first.

        Parameters
        ----------
        embedding : (1, D, h, w)
        coords, labels
            See `geolabel.models.nets.folded.prompt_tokens`.
        """
        masks, quality = self.mask_decoder.predict_masks(
            image_embeddings=embedding,
            image_pe=self.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=folded.prompt_tokens(self.prompt_encoder, coords, labels),
            dense_prompt_embeddings=folded.dense_prompts(self.prompt_encoder, coords, labels),
        )
        return masks, quality


class _TokenDecoder(_Decoder):
    """From the same inputs to those of the mask computation."""

    def forward(self, embedding: Tensor, coords: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        """Cells of each prompt, weights and predicted IoU of `geolabel.models.nets.folded.decode_tokens`."""
        encoder = self.prompt_encoder
        cells, weights, quality = folded.decode_tokens(
            self.mask_decoder,
            embedding,
            folded.cell_positions(encoder),
            folded.prompt_tokens(encoder, coords, labels),
            folded.prompted_cells(encoder, coords, labels),
            apart=True,
        )
        return *cells, weights, quality


class _MaskMaker(_Decoder):
    """From these to masks."""

    def forward(self, cells: Tensor, weights: Tensor) -> Tensor:
        """Logits of `geolabel.models.nets.folded.make_masks`."""
        return folded.make_masks(self.mask_decoder, cells, weights)


@dataclass(frozen=True)
class _Part:
    """A part that is exported as a separate graph."""

    module: nn.Module
    inputs: tuple[Tensor, ...]
    names: tuple[str, ...]
    outputs: tuple[str, ...]
    axes: _DynamicAxes
    """Dynamic axes of the inputs, by name."""
    multiple: int
    stride: int


def write_graphs(weights: Path) -> tuple[Path, ...]:
    """Write the graphs of a network beside its weights file; return their paths.

    Raises
    ------
    WeightsError
        If the file is missing, damaged, or holds a network without graphs.
    """
    info = read_info(weights)
    files = every_graph_file(weights, info.kind)
    if not files:
        raise WeightsError(f"{weights} holds a {info.kind}: graphs are made of a localizer or a segmenter")
    for path, part in zip(files, _parts(info), strict=True):
        facts = {"architecture": info.architecture, "multiple": part.multiple, "stride": part.stride}
        graph = _without_weights(part)
        helper.set_model_props(graph, {KEY: json.dumps(facts, sort_keys=True)})
        with replacing(path, overwrite=True) as scratch:
            scratch.write_bytes(graph.SerializeToString(deterministic=True))
        logger.info("wrote %s", path)
    return files


def _parts(info: NetworkInfo) -> Iterator[_Part]:
    network = build(info.architecture).eval().requires_grad_(False)
    if info.kind == "localizer":
        multiple, stride = (int(cast("int", getattr(network, name))) for name in ("multiple", "stride"))
        # All sizes are distinct, since the exporter treats equal sizes as one.
        images = torch.zeros(2, 3, 3 * multiple, 4 * multiple)
        axes = {"images": {0: "batch", 2: "height", 3: "width"}}
        yield _Part(network, (images,), ("images",), ("maps",), axes, multiple, stride)
        return
    sam = cast("Sam", network)
    side, width = info.window, int(sam.prompt_encoder.embed_dim)
    cells = sam.prompt_encoder.image_embedding_size
    frames = torch.zeros(2, 3, side, side)
    yield _Part(
        _ImageEncoder(sam), (frames,), ("images",), ("embeddings",), {"images": {0: "batch"}}, side, EMBEDDING_STRIDE
    )
    prompts = (torch.zeros(1, width, *cells), torch.zeros(5, 3, 2), torch.zeros(5, 3, dtype=torch.int64))
    both = {0: "prompts", 1: "points"}
    axes_of_prompts = {"embedding": None, "coords": both, "labels": both}
    names = ("embedding", "coords", "labels")
    yield _Part(_PromptDecoder(sam), prompts, names, ("masks", "quality"), axes_of_prompts, side, LOW_RES_STRIDE)
    cells_of_each = (f"cells{k}" for k in range(PROMPTS_CPU))
    asked = (torch.zeros(1, width, *cells), torch.zeros(PROMPTS_CPU, 3, 2), torch.zeros(PROMPTS_CPU, 3).long())
    axes_of_asked = {"embedding": None, "coords": {1: "points"}, "labels": {1: "points"}}
    answers = (*cells_of_each, "weights", "quality")
    yield _Part(_TokenDecoder(sam), asked, names, answers, axes_of_asked, side, EMBEDDING_STRIDE)
    channels = sam.mask_decoder.output_upscaling[3].out_channels
    parts = (torch.zeros(5, cells[0] * cells[1], width), torch.zeros(5, 3, channels))
    axes_of_masks = {"cells": {0: "prompts", 1: "cells"}, "weights": {0: "prompts", 1: "candidates"}}
    yield _Part(_MaskMaker(sam), parts, ("cells", "weights"), ("masks",), axes_of_masks, side, LOW_RES_STRIDE)


def _without_weights(part: _Part) -> onnx.ModelProto:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings of torch's exporter
        program = torch.onnx.export(
            part.module,
            part.inputs,
            dynamo=True,
            dynamic_shapes=dict(part.axes),
            input_names=list(part.names),
            output_names=list(part.outputs),
            optimize=False,
            verbose=False,
        )
    assert program is not None
    model: onnx.ModelProto = program.model_proto
    graph = model.graph
    weights = {name: list(tensor.shape) for name, tensor in part.module.state_dict().items()}
    # Weights are inputs during simplification, so nothing depends on their values.
    named = [tensor for tensor in graph.initializer if tensor.name in weights]
    others = [tensor for tensor in graph.initializer if tensor.name not in weights]
    graph.input.extend(helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)) for t in named)
    _replace(graph.initializer, others)
    model = optimizer.optimize(model)
    graph = model.graph
    read = {name for node in graph.node for name in node.input}
    for name in [value.name for value in graph.input if value.name in weights and value.name in read]:
        initializer = graph.initializer.add(name=name, data_type=TensorProto.FLOAT, dims=weights[name])
        initializer.data_location = TensorProto.EXTERNAL
        initializer.external_data.add(key="location", value=ELSEWHERE)
    _replace(graph.input, [value for value in graph.input if value.name not in weights])
    _strip(graph)
    return model


def _replace(repeated: Any, values: Sequence[Any]) -> None:
    del repeated[:]
    repeated.extend(values)


def _strip(graph: onnx.GraphProto) -> None:
    # Stack traces of torch are many times larger than the graph.
    del graph.value_info[:]
    for described in (graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        described.ClearField("doc_string")
        del described.metadata_props[:]

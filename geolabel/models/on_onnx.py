"""Networks run by ONNX Runtime, with one thread per call.

Beside the weights of a network, ``NAME.safetensors``, are its graphs: ``NAME.onnx``, or for a segmenter
``NAME-encoder.onnx`` and ``NAME-decoder.onnx``. A graph contains the names of weights only; those of the safetensors
file are inserted on loading. So weights ship once for both engines, and a graph depends on the architecture only.
`geolabel.training.graphs` writes them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from google.protobuf.message import DecodeError
from onnx import TensorProto, numpy_helper

from geolabel.errors import WeightsError
from geolabel.models.checkpoint import NetworkInfo, load_arrays
from geolabel.models.engines import (
    NOWHERE,
    MapNetwork,
    Points,
    PromptedNetwork,
    SelectiveNetwork,
    as_tokens,
    bucket,
    cells_within,
    graph_files,
)
from geolabel.parsing import parse_json
from geolabel.types import AnyArray, Float32Array, Int64Array, UInt8Array

KEY = "geolabel"
"""Metadata key of a graph, with JSON: its ``architecture``, the ``multiple`` to which image sides are padded, and its
``stride``, image pixels per output cell."""

PARTS = 16
"""Mask cells per embedding cell."""

AGAIN = "write it again with geolabel train graphs"


def read_graph(path: Path, weights: Mapping[str, Float32Array]) -> onnx.ModelProto:
    """Read a graph and insert the weights it names.

    Raises
    ------
    WeightsError
        If it is missing or damaged, or a weight is missing or of another shape.
    """
    try:
        model = onnx.load_model(path, load_external_data=False)
    except FileNotFoundError as error:
        raise WeightsError(f"{path} does not exist: {AGAIN}") from error
    except (DecodeError, OSError) as error:
        raise WeightsError(f"{path} is not an ONNX graph ({error}): {AGAIN}") from error
    for tensor in model.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            weight = weights.get(tensor.name)
            if weight is None or list(weight.shape) != list(tensor.dims):
                raise WeightsError(f"{path} needs the weight {tensor.name}, which the file beside it lacks: {AGAIN}")
            tensor.CopyFrom(numpy_helper.from_array(weight, tensor.name))
    return model


def facts_of(model: onnx.ModelProto) -> dict[str, Any]:
    """Metadata of a graph under `KEY`."""
    facts: dict[str, Any] = parse_json(next((prop.value for prop in model.metadata_props if prop.key == KEY), "{}"))
    return facts


def is_graph(path: Path) -> bool:
    """Whether a file is a graph without weights, unlike ONNX files written by `geolabel.models.exports`."""
    try:
        return bool(facts_of(onnx.load_model(path, load_external_data=False)))
    except (DecodeError, OSError, ValueError):  # damaged, or written by another program
        return False


class _Graph:
    """A loaded graph with weights.

    Parameters
    ----------
    path
        ONNX file.
    weights
        Weights by name.
    info
        Description of the network that it must be a graph of.

    Raises
    ------
    WeightsError
        If it is missing, damaged, or of another network.
    """

    def __init__(self, path: Path, weights: Mapping[str, Float32Array], info: NetworkInfo) -> None:
        model = read_graph(path, weights)
        facts = facts_of(model)
        if facts.get("architecture") != json.loads(json.dumps(info.architecture)):
            raise WeightsError(f"{path} is the graph of another network than the weights beside it: {AGAIN}")
        self.multiple, self.stride = int(facts["multiple"]), int(facts["stride"])
        options = onnxruntime.SessionOptions()
        # One thread: sums have the same order on every machine, and parallel calls use the other cores.
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.use_deterministic_compute = True
        options.log_severity_level = 4  # errors are raised as well
        try:
            self._session = onnxruntime.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # ONNX Runtime raises plain exceptions
            raise WeightsError(f"{path} is not a graph that ONNX Runtime can run ({error}): {AGAIN}") from error
        self.batch = next((axis for axis in self._session.get_inputs()[-1].shape[:1] if isinstance(axis, int)), None)
        """Rows of its last input, if their number is fixed."""
        outputs = self._session.get_outputs()
        self._outputs = [output.name for output in outputs]
        self.last = outputs[0].shape[-1]
        """Size of the last axis of its first output, if fixed."""

    def __call__(self, **inputs: AnyArray) -> list[Float32Array]:
        """Outputs of inputs by name."""
        found: list[Float32Array] = self._session.run(self._outputs, inputs)
        return found


def _graphs(path: Path, kind: str, graphs: str = "") -> tuple[list[_Graph], dict[str, Float32Array], NetworkInfo]:
    arrays, info = load_arrays(path)
    if info.kind != kind:
        raise WeightsError(f"{path} holds a {info.kind}, but a {kind} is needed: give another file")
    return [_Graph(file, arrays, info) for file in graph_files(path, graphs or kind)], arrays, info


class OnnxMaps:
    """A localizer, as an `engines.MapNetwork`.

    Parameters
    ----------
    path
        File of its weights.

    Raises
    ------
    WeightsError
        If the weights or the graph beside them are missing, damaged, or something else.
    """

    def __init__(self, path: Path) -> None:
        (self._graph,), arrays, self.info = _graphs(path, "localizer")
        self.stride, self.multiple = self._graph.stride, self._graph.multiple
        self.bias = arrays["bias"]

    def __call__(self, pixels: Float32Array) -> Float32Array:
        """Raw maps (N, C, H / stride, W / stride) of normalised images (N, 3, H, W)."""
        return self._graph(images=pixels)[0]


class OnnxSam:
    """A segmenter of geolabel, as an `engines.PromptedNetwork`. Images keep their resolution.

    Parameters
    ----------
    path
        File of its weights.
    batch
        Images per call of the encoder.

    Raises
    ------
    WeightsError
        If the weights or a graph beside them are missing, damaged, or something else.
    """

    apart = False
    graphs = "segmenter"
    """Which of its graphs are used, see `engines.GRAPHS`."""

    def __init__(self, path: Path, *, batch: int = 1) -> None:
        (self._encoder, *self._decoders), _, self.info = _graphs(path, "segmenter", self.graphs)
        self.window, self.stretches, self.batch = self.info.window, False, batch
        self.width = int(self.info.architecture["embed_dim"])
        self._mean, self._std = (
            np.asarray(self.info.architecture[name], np.float32)[:, None, None] for name in ("pixel_mean", "pixel_std")
        )
        self.cells = self.window // self._encoder.stride

    def running(self) -> AbstractContextManager[None]:
        """No context is needed."""
        return nullcontext()

    def frame_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """The size unchanged."""
        return size

    def encode(self, images: Sequence[UInt8Array]) -> Float32Array:
        """Embeddings (N, D, h, w) of up to `batch` images (H, W, 3), normalised and then padded with zeros."""
        frames = np.zeros((bucket(len(images), self.batch), 3, self.window, self.window), np.float32)
        for frame, image in zip(frames, images, strict=False):
            height, width = image.shape[:2]
            np.divide(np.moveaxis(image, 2, 0) - self._mean, self._std, out=frame[:, :height, :width])
        return self._encoder(images=frames)[0][: len(images)]

    def features(self, embedding: Float32Array) -> Float32Array:
        """The embedding unchanged."""
        return embedding

    def decode(
        self, embedding: Float32Array, points: Points | None, boxes: AnyArray | None, *, single: bool = False
    ) -> tuple[Float32Array, Float32Array]:
        """Candidates of K prompts of one kind; see `engines.PromptedNetwork`."""
        coords, labels = as_tokens(points, boxes)
        (decoder,) = self._decoders
        masks, quality = decoder(embedding=embedding[None], coords=coords, labels=labels)
        kept = slice(0, 1) if single else slice(1, None)
        return masks[:, kept], quality[:, kept]

    def enlarge(self, logits: Float32Array, size: tuple[int, int]) -> Float32Array:
        """Logits (h, w) at another size, bilinear."""
        # Columns first: the few rows of cells then become rows of pixels by copying whole lines.
        return _along(_along(logits.T, size[1]).T, size[0])

    def host(self, array: AnyArray) -> AnyArray:
        """The array unchanged."""
        return array


class OnnxEverything(OnnxSam):
    """The same network for many prompts of an image, as an `engines.SelectiveNetwork`.

    Its decoder is that of `geolabel.models.nets.folded`.
    """

    graphs = "everything"

    def __init__(self, path: Path, *, batch: int = 1) -> None:
        super().__init__(path, batch=batch)
        if self._decoders[1].last != PARTS:
            raise WeightsError(f"the graphs beside {path} are of an earlier version of geolabel: {AGAIN}")

    def decode(
        self, embedding: Float32Array, points: Points | None, boxes: AnyArray | None, *, single: bool = False
    ) -> tuple[Float32Array, Float32Array]:
        """Candidates of K prompts of one kind; see `engines.PromptedNetwork`."""
        cells, weights, quality = self._answers(embedding, points, boxes)
        kept = slice(0, 1) if single else slice(1, None)
        masks = self._masks(np.stack(cells), weights[:, kept])
        low_res = np.empty((*masks.shape[:2], 4 * self.cells, 4 * self.cells), np.float32)
        _unfold(masks.reshape(-1, *masks.shape[2:]), low_res.reshape(-1, *low_res.shape[2:]))
        return low_res, quality[:, kept]

    def decode_likely(
        self,
        embedding: Float32Array,
        points: Points | None,
        boxes: AnyArray | None,
        least: float,
        size: tuple[int, int],
    ) -> tuple[Float32Array, Float32Array, Int64Array, Int64Array]:
        """Candidates whose predicted IoU exceeds `least`; see `engines.SelectiveNetwork`."""
        cells, weights, quality = self._answers(embedding, points, boxes)
        quality = quality[:, 1:]
        prompts, candidates = np.nonzero(quality > least)
        low_res = np.full((len(prompts), 4 * self.cells, 4 * self.cells), NOWHERE, np.float32)
        if len(prompts):
            some, of_some = np.unique(prompts, return_inverse=True)
            rows, cols = cells_within(size, self.window, self.cells)
            frame = self.cells, self.cells, self.width
            within = np.stack([cells[prompt].reshape(frame)[:rows, :cols] for prompt in some.tolist()])
            masks = self._masks(within.reshape(len(some), rows * cols, self.width), weights[some, 1:])[
                of_some, candidates
            ]
            _unfold(masks, low_res[:, : 4 * rows, : 4 * cols])
        return low_res, quality[prompts, candidates], prompts, candidates

    def _answers(
        self, embedding: Float32Array, points: Points | None, boxes: AnyArray | None
    ) -> tuple[list[Float32Array], Float32Array, Float32Array]:
        # Cells (h w, D) of each prompt, weights (K, 4, D / 8) and quality (K, 4). The last call is filled up.
        coords, labels = as_tokens(points, boxes)
        count, tokens = len(coords), self._decoders[0]
        size = tokens.batch or count
        every: list[Float32Array] = []
        parts = []
        for first in range(0, count, size):
            rows = np.arange(first, first + size).clip(max=count - 1)
            *cells, weights, quality = tokens(embedding=embedding[None], coords=coords[rows], labels=labels[rows])
            every.extend(cells if tokens.batch else cells[0])  # graphs of an earlier version answer with all in one
            parts.append((weights, quality))
        weights, quality = (np.concatenate(each)[:count] for each in zip(*parts, strict=True))
        return every[:count], weights, quality

    def _masks(self, cells: Float32Array, weights: Float32Array) -> Float32Array:
        return self._decoders[1](cells=cells, weights=weights)[0]


def _unfold(masks: Float32Array, out: Float32Array) -> None:
    # Like `geolabel.models.nets.folded.unfold_masks`, into (M, 4 h, 4 w).
    rows, cols = out.shape[1] // 4, out.shape[2] // 4
    parts = masks.reshape(len(masks), rows, cols, 2, 2, 2, 2).transpose(0, 1, 3, 5, 2, 4, 6)
    out[...] = parts.reshape(out.shape)


def _along(values: Float32Array, size: int) -> Float32Array:
    # The first axis at another size: weights follow from the pixel's centre relative to those of cells.
    count = len(values)
    centre = np.clip((np.arange(size) + 0.5) * (count / size) - 0.5, 0, count - 1)
    before = np.minimum(centre.astype(np.int64), max(0, count - 2))
    share = (centre - before).astype(np.float32)[:, None]
    mixed: Float32Array = values[before] * (1 - share)
    mixed += values[np.minimum(before + 1, count - 1)] * share
    return mixed


_maps: type[MapNetwork] = OnnxMaps
_prompted: type[PromptedNetwork] = OnnxSam
_selective: type[SelectiveNetwork] = OnnxEverything

"""Networks that ONNX Runtime runs, each call on one thread.

Beside the weights of a network, ``NAME.safetensors``, are its graphs: ``NAME.onnx``, or of a segmenter
``NAME-encoder.onnx`` and ``NAME-decoder.onnx``. A graph has no weights, it names them: those of the safetensors file go
in when it is loaded. So weights ship once, both engines read the same, and a graph depends on the architecture alone.
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
"""Where a graph says, as JSON in its metadata, of which ``architecture`` it is, to which ``multiple`` the sides of an
image are padded, and its ``stride``: image pixels per cell of what it answers."""

PARTS = 16
"""Of a cell of an embedding, in a mask."""

AGAIN = "make it again with geolabel train graphs"


def read_graph(path: Path, weights: Mapping[str, Float32Array]) -> onnx.ModelProto:
    """Read a graph and put the weights in that it names.

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
        raise WeightsError(f"{path} is no ONNX graph ({error}): {AGAIN}") from error
    for tensor in model.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            weight = weights.get(tensor.name)
            if weight is None or list(weight.shape) != list(tensor.dims):
                raise WeightsError(f"{path} names the weight {tensor.name}, which the file beside it lacks: {AGAIN}")
            tensor.CopyFrom(numpy_helper.from_array(weight, tensor.name))
    return model


def facts_of(model: onnx.ModelProto) -> dict[str, Any]:
    """What a graph says of itself under `KEY`."""
    facts: dict[str, Any] = parse_json(next((prop.value for prop in model.metadata_props if prop.key == KEY), "{}"))
    return facts


def is_graph(path: Path) -> bool:
    """Whether a file is a graph without weights; an ONNX file that `geolabel.models.exports` writes is none."""
    try:
        return bool(facts_of(onnx.load_model(path, load_external_data=False)))
    except (DecodeError, OSError, ValueError):  # damaged, or another program wrote it
        return False


class _Graph:
    """A graph with weights, ready to run.

    Parameters
    ----------
    path
        ONNX file.
    weights
        By name.
    info
        Of the network that it has to be a graph of.

    Raises
    ------
    WeightsError
        If it is missing, damaged, or another network's.
    """

    def __init__(self, path: Path, weights: Mapping[str, Float32Array], info: NetworkInfo) -> None:
        model = read_graph(path, weights)
        facts = facts_of(model)
        if facts.get("architecture") != json.loads(json.dumps(info.architecture)):
            raise WeightsError(f"{path} is the graph of another network than the weights beside it: {AGAIN}")
        self.multiple, self.stride = int(facts["multiple"]), int(facts["stride"])
        options = onnxruntime.SessionOptions()
        # One thread: sums are then in the same order on every machine, and calls side by side use the others.
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.use_deterministic_compute = True
        options.log_severity_level = 4  # what goes wrong is raised too
        try:
            self._session = onnxruntime.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # what ONNX Runtime raises has no class of its own
            raise WeightsError(f"{path} is no graph that ONNX Runtime can run ({error}): {AGAIN}") from error
        outputs = self._session.get_outputs()
        self._outputs = [output.name for output in outputs]
        self.last = outputs[0].shape[-1]
        """Size of the last axis of what it answers first, where that is fixed."""

    def __call__(self, **inputs: AnyArray) -> list[Float32Array]:
        """Outputs of inputs by name."""
        found: list[Float32Array] = self._session.run(self._outputs, inputs)
        return found


def _graphs(path: Path, kind: str, graphs: str = "") -> tuple[list[_Graph], dict[str, Float32Array], NetworkInfo]:
    arrays, info = load_arrays(path)
    if info.kind != kind:
        raise WeightsError(f"{path} holds a {info.kind}, a {kind} is needed: give another file")
    return [_Graph(file, arrays, info) for file in graph_files(path, graphs or kind)], arrays, info


class OnnxMaps:
    """A localizer, as a `engines.MapNetwork`.

    Parameters
    ----------
    path
        Of its weights.

    Raises
    ------
    WeightsError
        If they or the graph beside them are missing or damaged, or something else.
    """

    def __init__(self, path: Path) -> None:
        (self._graph,), arrays, self.info = _graphs(path, "localizer")
        self.stride, self.multiple = self._graph.stride, self._graph.multiple
        self.bias = arrays["bias"]

    def __call__(self, pixels: Float32Array) -> Float32Array:
        """Raw maps (N, C, H / stride, W / stride) of normalised images (N, 3, H, W)."""
        return self._graph(images=pixels)[0]


class OnnxSam:
    """A segmenter of geolabel, as a `engines.PromptedNetwork`. Images keep their pixels.

    Parameters
    ----------
    path
        Of its weights.
    batch
        Images per call of the encoder.

    Raises
    ------
    WeightsError
        If they or a graph beside them are missing or damaged, or something else.
    """

    apart = False
    graphs = "segmenter"
    """Which of its graphs run, see `engines.GRAPHS`."""

    def __init__(self, path: Path, *, batch: int = 1) -> None:
        (self._encoder, *self._decoders), _, self.info = _graphs(path, "segmenter", self.graphs)
        self.window, self.stretches, self.batch = self.info.window, False, batch
        self.width = int(self.info.architecture["embed_dim"])
        self._mean, self._std = (
            np.asarray(self.info.architecture[name], np.float32)[:, None, None] for name in ("pixel_mean", "pixel_std")
        )
        self.cells = self.window // self._encoder.stride

    def running(self) -> AbstractContextManager[None]:
        """Nothing has to be prepared."""
        return nullcontext()

    def frame_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """The size itself."""
        return size

    def encode(self, images: Sequence[UInt8Array]) -> Float32Array:
        """Embeddings (N, D, h, w) of up to `batch` images (H, W, 3), normalised and then padded with zeros."""
        frames = np.zeros((bucket(len(images), self.batch), 3, self.window, self.window), np.float32)
        for frame, image in zip(frames, images, strict=False):
            height, width = image.shape[:2]
            np.divide(np.moveaxis(image, 2, 0) - self._mean, self._std, out=frame[:, :height, :width])
        return self._encoder(images=frames)[0][: len(images)]

    def features(self, embedding: Float32Array) -> Float32Array:
        """The embedding itself."""
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
        """Logits (h, w) at another size, bilinearly."""
        # Columns first: the few rows of cells then become rows of pixels by copies of whole lines.
        return _along(_along(logits.T, size[1]).T, size[0])

    def host(self, array: AnyArray) -> AnyArray:
        """The same."""
        return array


class OnnxEverything(OnnxSam):
    """The same network for many prompts of an image, as a `engines.SelectiveNetwork`.

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
        masks = self._masks(cells, weights[:, kept])
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
            within = cells.reshape(len(cells), self.cells, self.cells, self.width)[some, :rows, :cols]
            masks = self._masks(within.reshape(len(some), rows * cols, self.width), weights[some, 1:])[
                of_some, candidates
            ]
            _unfold(masks, low_res[:, : 4 * rows, : 4 * cols])
        return low_res, quality[prompts, candidates], prompts, candidates

    def _answers(self, embedding: Float32Array, points: Points | None, boxes: AnyArray | None) -> list[Float32Array]:
        coords, labels = as_tokens(points, boxes)
        return self._decoders[0](embedding=embedding[None], coords=coords, labels=labels)

    def _masks(self, cells: Float32Array, weights: Float32Array) -> Float32Array:
        return self._decoders[1](cells=cells, weights=weights)[0]


def _unfold(masks: Float32Array, out: Float32Array) -> None:
    # As `geolabel.models.nets.folded.unfold_masks` does, into (M, 4 h, 4 w).
    rows, cols = out.shape[1] // 4, out.shape[2] // 4
    parts = masks.reshape(len(masks), rows, cols, 2, 2, 2, 2).transpose(0, 1, 3, 5, 2, 4, 6)
    out[...] = parts.reshape(out.shape)


def _along(values: Float32Array, size: int) -> Float32Array:
    # The first axis at another size: what each pixel is made of follows from where its centre is among those of cells.
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
